//! A driver of the reference phone for `posduif kit`; docs/conformance.md has its commands.
//!
//! ```sh
//! cargo build --examples
//! posduif kit run --driver target/debug/examples/phone_driver
//! ```

mod clock;
mod line;
#[expect(dead_code, reason = "its command line and what only that uses")]
#[path = "../phone.rs"]
mod phone;
mod socket;

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::clock::Clock;
use self::line::{Line, Traffic, Transport};
use self::phone::{Http, Item, Phone, State, Trouble, Wish};
use self::socket::Socket;

const FEATURES: [&str; 9] = [
    "restart",
    "write",
    "messages",
    "groups",
    "live",
    "clock",
    "silence",
    "websocket",
    "socket-uploads",
];

/// Items of a frame of a WebSocket; the server's default limit.
const FRAME_ITEMS_MAX: usize = 100;

/// A phone that follows events in a task of its own, with a connection of its own to the file.
struct Following {
    task: JoinHandle<Result<(), Trouble>>,
    wishes: mpsc::Sender<Wish>,
}

struct Driver {
    file: PathBuf,
    phone: Phone,
    line: Line,
    following: Option<Following>,
}

impl Driver {
    fn start(command: &Value) -> anyhow::Result<Self> {
        let text = |name: &str| {
            command[name]
                .as_str()
                .with_context(|| format!("`init` without `{name}`"))
        };
        let file = PathBuf::from(text("store")?).join("phone.sqlite");
        let address = text("url")?.to_owned();
        let line = Line {
            http: Http::new(&address),
            address,
            clock: Arc::new(Clock::default()),
            traffic: Arc::new(Traffic::default()),
            transport: Transport::Sse,
            socket: Arc::new(Socket::default()),
        };
        let phone = Phone::open(&file)?;
        Ok(Self {
            file,
            phone,
            line,
            following: None,
        })
    }

    async fn answer(&mut self, command: &Value) -> Result<Value, Trouble> {
        let text = |name: &str| command[name].as_str().unwrap_or_default();
        match text("do") {
            "enroll" => {
                let token = text("url").rsplit('/').next().unwrap_or_default();
                self.phone.enroll(&self.line, token).await?;
            }
            "sync" => self.sync().await?,
            "write" => self.change("create", command).await?,
            op @ ("edit" | "delete" | "read") => self.change(op, command).await?,
            "open" => {
                self.line.transport = match text("over") {
                    "websocket" => Transport::WebSocket,
                    _ => Transport::Sse,
                };
                self.open();
            }
            "close" => self.close().await,
            "advance" => {
                let mut left = Some(Duration::from_millis(command["ms"].as_u64().unwrap_or(0)));
                while let Some(most) = left {
                    left = self.line.clock.pass(most);
                    self.line.traffic.rest().await;
                }
            }
            "wait" => self.line.traffic.rest().await,
            "rows" => {
                let rows: Vec<Value> = self.phone.view(text("table"))?.into_values().collect();
                return Ok(json!({"rows": rows}));
            }
            "outbox" => {
                let waiting: Vec<Value> = self.phone.waiting()?.iter().map(Item::to_json).collect();
                let refused = self.phone.refused()?.into_iter();
                let refused =
                    refused.map(|item| json!({"table": item.table, "op": item.op, "id": item.id, "code": item.code}));
                return Ok(json!({"waiting": waiting, "refused": refused.collect::<Vec<_>>()}));
            }
            "status" => {
                let state = match self.phone.state()? {
                    State::Unenrolled => "unenrolled",
                    State::Fresh => "fresh",
                    State::Snapshot => "snapshot",
                    State::Stream => "stream",
                };
                let live = if self.line.traffic.is_open() { "open" } else { "closed" };
                return Ok(json!({"state": state, "live": live}));
            }
            unknown => return Err(Trouble::Misuse(format!("there is no command {unknown:?}"))),
        }
        Ok(json!({}))
    }

    async fn sync(&mut self) -> Result<(), Trouble> {
        let (asker, answer) = oneshot::channel();
        let is_following = match &self.following {
            Some(following) => following.wishes.send(Wish { asker: Some(asker) }).await.is_ok(),
            None => false,
        };
        if !is_following {
            return self.phone.sync(&self.line).await.map(|_| ());
        }
        match answer.await {
            Ok(true) => Ok(()),
            _ => Err(Trouble::later("the sync did not succeed")),
        }
    }

    async fn change(&mut self, op: &str, command: &Value) -> Result<(), Trouble> {
        let text = |name: &str| command[name].as_str().unwrap_or("messages");
        let row = command.get("row").cloned().unwrap_or_else(|| json!({}));
        self.phone.queue(op, text("table"), text("id"), row)?;
        if let Some(following) = &self.following {
            // It has ended: the change waits for the next one.
            following.wishes.send(Wish::default()).await.ok();
        }
        Ok(())
    }

    fn open(&mut self) {
        let (wishes, mut wished) = mpsc::channel(1);
        let (file, line) = (self.file.clone(), self.line.clone());
        let task = tokio::task::spawn_local(async move {
            let mut phone = Phone::open(&file)?;
            phone.upload_items = FRAME_ITEMS_MAX;
            phone.watch(&line, &mut wished, |_, _| {}).await
        });
        self.following = Some(Following { task, wishes });
    }

    async fn close(&mut self) {
        if let Some(Following { task, .. }) = self.following.take() {
            task.abort();
            // Until it has dropped its requests.
            let _aborted = task.await;
        }
    }
}

async fn drive(mut commands: mpsc::Receiver<Value>) -> anyhow::Result<()> {
    let mut driver: Option<Driver> = None;
    let mut output = std::io::stdout();
    while let Some(command) = commands.recv().await {
        let answer = match (command["do"].as_str(), &mut driver) {
            (Some("bye"), _) => break,
            (Some("init"), _) => {
                driver = Some(Driver::start(&command)?);
                Ok(json!({"client": "phone.rs", "features": FEATURES, "known": []}))
            }
            (_, Some(driver)) => driver.answer(&command).await,
            (_, None) => Err(Trouble::Misuse("the first command is `init`".to_owned())),
        };
        let (is_ok, mut answer) = match answer {
            Ok(answer) => (true, answer),
            Err(trouble) => (false, json!({"message": trouble.to_string()})),
        };
        (answer["n"], answer["ok"]) = (command["n"].clone(), is_ok.into());
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    if let Some(driver) = &mut driver {
        driver.close().await;
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let (sender, commands) = mpsc::channel(1);
    std::thread::spawn(move || {
        let lines = std::io::stdin().lock().lines();
        let commands = lines.map_while(|line| serde_json::from_str(&line.ok()?).ok());
        for command in commands {
            if sender.blocking_send(command).is_err() {
                return;
            }
        }
    });
    // One thread: the phone rests when no task of the runtime can go on.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(drive(commands)))
}
