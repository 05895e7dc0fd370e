//! What honest users notice of hostile clients: their requests, measured quiet and then under attack.
//!
//! The hostile clients are a process of its own, at the lowest priority: elsewhere they have machines of their own, and the CPU
//! time that they take to ask is not what the engine costs the honest users. They take what the others leave. Each has an address of 127.0.0.0/8 and one way to hurt, see [`attack`]; one
//! more address holds idle connections. The engine has the limits that it has by default. The honest users read and write
//! messages, a phone syncs, and all log in now and then. At the end every message that was answered with 201 must be in
//! Postgres, and the phone must hold exactly what Postgres holds for its user.
//!
//! ```text
//! scripts/bench hostile [--minutes 2] [--quiet-seconds 30] [--clients 16] [--idle 2000]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attack;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use posduif::accounts::users::UserType;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use uuid::Uuid;

use self::attack::Target;
use self::support::{PASSWORD, Process, Servers, TENANT, stop};
use self::wire::{Connection, TIMEOUT, request};

/// Honest users at the web, each at an address of its own.
const USERS: u8 = 4;

/// Pause of a user between two rounds of requests, of the phone between two syncs, and between two logins.
const USER_PAUSE: Duration = Duration::from_millis(100);
const PHONE_PAUSE: Duration = Duration::from_millis(250);
const LOGIN_PAUSE: Duration = Duration::from_secs(5);

/// Pause between two looks at the admin listener.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Parser)]
#[command(about = "Honest users beside hostile clients")]
struct Options {
    /// How long the attack lasts.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// How long the honest users are alone before.
    #[arg(long, default_value_t = 30)]
    quiet_seconds: u64,
    /// Hostile clients, each at an address of its own.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Idle connections from one more address.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Only the hostile clients of one kind.
    #[arg(long, value_parser = attack::KINDS)]
    only: Option<String>,
    /// Plays the hostile clients against this target, as JSON.
    #[arg(long, hide = true)]
    attack: Option<String>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    posduif::http::descriptors::raise_descriptor_limit().unwrap();
    // One thread: the honest users are not to wait for each other's threads.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if let Some(target) = &options.attack {
        return runtime.block_on(attack::run(serde_json::from_str(target).unwrap()));
    }
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let bench = Bench::prepare().await;
        bench.run(&options).await;
    });
}

/// What the honest users have seen in one phase.
#[derive(Debug, Default)]
struct Seen {
    requests: Vec<Duration>,
    logins: Vec<Duration>,
    /// Answers of the admin listener to `/health`.
    health: Vec<Duration>,
    /// Requests that were answered with another status than the good one, by it; 0 for no answer.
    refused: Vec<(&'static str, u16)>,
}

/// Shared by the tasks of the honest users.
#[derive(Default)]
struct Shared {
    seen: RefCell<Seen>,
    /// Messages that were answered with 201.
    written: RefCell<BTreeSet<String>>,
    /// Messages that the phone holds.
    held: RefCell<BTreeSet<String>>,
    is_over: Cell<bool>,
}

impl Shared {
    fn note(&self, what: &'static str, took: Duration, status: u16, good: u16) -> bool {
        let mut seen = self.seen.borrow_mut();
        match what {
            "login" => seen.logins.push(took),
            _ => seen.requests.push(took),
        }
        if status != good {
            seen.refused.push((what, status));
        }
        status == good
    }
}

struct Bench {
    servers: Servers,
    sql: tokio_postgres::Client,
    engine: tokio::process::Child,
    address: SocketAddr,
    admin: SocketAddr,
    target: Target,
    /// The mobile user to whom all honest users write, and the credentials of the phone.
    joe: Uuid,
    phone: String,
    shared: Rc<Shared>,
}

impl Bench {
    async fn prepare() -> Self {
        let servers = Servers::start().await;
        let admin = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let defaults = posduif::config::Rates::default();
        let rate = |name: &str, value: u32| (format!("POSDUIF__RATES__{name}_PER_SECOND"), value.to_string());
        let settings = [
            rate("ADDRESS", defaults.address_per_second),
            rate("USER", defaults.user_per_second),
            rate("DEVICE", defaults.device_per_second),
            rate("TENANT", defaults.tenant_per_second),
            ("POSDUIF__ADMIN__LISTEN".to_owned(), admin.to_string()),
        ];
        let settings: Vec<(&str, String)> = settings.iter().map(|(key, value)| (&**key, value.clone())).collect();
        let (engine, address) = servers.serve(&settings).await;
        let address: SocketAddr = address.parse().unwrap();
        let sql = servers.connect_sql().await;
        for number in 0..USERS {
            servers.user(&name(number), UserType::Web).await;
        }
        servers.user("eve", UserType::Web).await;
        let joe = servers.user("joe", UserType::Mobile).await;
        let own = Ipv4Addr::LOCALHOST;
        let access = |login: &Value| format!("authorization: Bearer {}\r\n", login["token"].as_str().unwrap());
        let eve = log_in(own, address, "eve").await;
        let phone = device(own, address, "joe", "phone").await;
        let target = Target {
            address,
            clients: 0,
            idle: 0,
            only: None,
            eve_id: eve["user"]["id"].as_str().unwrap().to_owned(),
            eve: access(&eve),
            eve_device: device(own, address, "eve", "eves-phone").await,
            users: (0..USERS).map(name).collect(),
        };
        servers.published(&sql).await;
        Self {
            servers,
            sql,
            engine,
            address,
            admin,
            target,
            joe,
            phone,
            shared: Rc::default(),
        }
    }

    async fn run(mut self, options: &Options) {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..USERS {
            tasks.spawn_local(user(self.shared.clone(), self.address, number, self.joe));
            tasks.spawn_local(logins(self.shared.clone(), self.address, number));
        }
        tasks.spawn_local(phone(self.shared.clone(), self.address, self.phone.clone()));
        let probing = Probe::start(self.admin);
        // Connections are opened and statements planned before anything counts.
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.shared.seen.take();
        probing.take();
        tokio::time::sleep(Duration::from_secs(options.quiet_seconds)).await;
        let mut quiet = self.shared.seen.take();
        quiet.add(probing.take());
        let memory_quiet = Process::of(self.engine.id().unwrap()).peak_kib;

        let target = Target {
            clients: options.clients,
            idle: options.idle,
            only: options.only.clone(),
            ..self.target.clone()
        };
        let mut hostile = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--attack", &serde_json::to_string(&target).unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(hostile.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        self.shared.seen.take();
        probing.take();
        tokio::time::sleep(Duration::from_secs_f64(options.minutes * 60.0)).await;
        let mut attacked = self.shared.seen.take();
        attacked.add(probing.take());
        // Its standard input ends, and it prints what it has done.
        drop(hostile.stdin.take());
        let mut report = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            report.push(line);
        }
        hostile.wait().await.unwrap();

        self.shared.is_over.set(true);
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        let mut process = Process::of(self.engine.id().unwrap());
        println!(
            "{} hostile clients for {} minutes and {} idle connections beside {USERS} users and a phone, {} CPUs",
            options.clients,
            options.minutes,
            options.idle,
            std::thread::available_parallelism().map_or(0, usize::from)
        );
        println!("\n{:<24}{:>10}{:>16}{:>16}", "", "count", "p50", "p99");
        for (what, times) in [
            ("requests", [&quiet.requests, &attacked.requests]),
            ("logins", [&quiet.logins, &attacked.logins]),
            ("/health, admin", [&quiet.health, &attacked.health]),
        ] {
            show(what, times);
        }
        for (phase, seen) in [("quiet", &quiet), ("attacked", &attacked)] {
            println!("not answered as wanted, {phase}: {}", counted(&seen.refused));
        }
        let worst = attacked.health.iter().max().copied().unwrap_or_default();
        println!(
            "worst answer of the admin listener's /health: {:.1} ms",
            worst.as_secs_f64() * 1000.0
        );
        process.look(self.engine.id().unwrap());
        println!(
            "peak memory of the engine: {:.1} MiB, {:.1} MiB before the attack",
            mib(process.peak_kib),
            mib(memory_quiet)
        );
        println!("\nthe hostile clients:");
        report.iter().for_each(|line| println!("  {line}"));
        self.compare().await;
        stop(&mut self.engine).await;
    }

    /// Compares what was answered, what the phone holds, and Postgres.
    async fn compare(&self) {
        self.servers.published(&self.sql).await;
        sync(&self.shared, self.address, &self.phone, true).await;
        let query = format!("SELECT id::text FROM tenant_{TENANT}.messages WHERE recipient_id = $1");
        let rows = self.sql.query(&query, &[&self.joe]).await.unwrap();
        let stored: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let (written, held) = (self.shared.written.borrow(), self.shared.held.borrow());
        println!(
            "\n{} messages were answered with 201, Postgres has {}, the phone {}",
            written.len(),
            stored.len(),
            held.len()
        );
        assert!(
            written.is_subset(&stored),
            "a message that was answered is not in Postgres"
        );
        assert_eq!(*held, stored, "the phone holds what Postgres holds");
        println!("no row was lost");
    }
}

fn name(number: u8) -> String {
    format!("web-{number}")
}

/// Where an honest user is.
fn home(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 2, 0, number + 1)
}

fn login_body(name: &str) -> String {
    json!({"tenant": TENANT, "username": name, "password": PASSWORD}).to_string()
}

async fn log_in(from: Ipv4Addr, address: SocketAddr, name: &str) -> Value {
    let mut connection = Connection::open(from, address).await.unwrap();
    let asked = request("POST", "/api/auth/login", "", login_body(name).as_bytes());
    let (status, body) = connection.ask(&asked).await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Adds a device to a user; gives the headers of its credentials.
async fn device(from: Ipv4Addr, address: SocketAddr, user: &str, id: &str) -> String {
    let login = log_in(from, address, user).await;
    let access = format!("authorization: Bearer {}\r\n", login["token"].as_str().unwrap());
    let body = json!({"name": id, "type": "mobile", "device_id": id}).to_string();
    let mut connection = Connection::open(from, address).await.unwrap();
    let asked = request("POST", "/api/devices", &access, body.as_bytes());
    let (status, body) = connection.ask(&asked).await.unwrap();
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    let added: Value = serde_json::from_slice(&body).unwrap();
    let token = added["device_token"].as_str().unwrap();
    format!("authorization: Bearer {token}\r\nx-device-id: {id}\r\n")
}

/// A user at the web, who writes and reads.
async fn user(shared: Rc<Shared>, address: SocketAddr, number: u8, joe: Uuid) {
    let login = log_in(home(number), address, &name(number)).await;
    let access = format!("authorization: Bearer {}\r\n", login["token"].as_str().unwrap());
    let write = json!({"recipient_id": joe, "content": "Is all well where you are?"}).to_string();
    let rounds = [
        (request("POST", "/api/messages", &access, write.as_bytes()), 201),
        (request("GET", "/api/messages?limit=20", &access, b""), 200),
        (request("GET", "/api/messages/unread-count", &access, b""), 200),
    ];
    let mut connection = None;
    while !shared.is_over.get() {
        for (asked, good) in &rounds {
            let (took, status, body) = ask(&mut connection, home(number), address, asked).await;
            if shared.note("request", took, status, *good) && *good == 201 {
                let message: Value = serde_json::from_slice(&body).unwrap();
                let id = message["id"].as_str().unwrap().to_owned();
                shared.written.borrow_mut().insert(id);
            }
        }
        tokio::time::sleep(USER_PAUSE).await;
    }
}

/// The same user logs in again, on a connection of its own.
async fn logins(shared: Rc<Shared>, address: SocketAddr, number: u8) {
    let asked = request("POST", "/api/auth/login", "", login_body(&name(number)).as_bytes());
    // Not all at the same moment.
    tokio::time::sleep(LOGIN_PAUSE * u32::from(number) / u32::from(USERS)).await;
    while !shared.is_over.get() {
        let (took, status, _) = ask(&mut None, home(number), address, &asked).await;
        shared.note("login", took, status, 200);
        tokio::time::sleep(LOGIN_PAUSE).await;
    }
}

/// The phone syncs.
async fn phone(shared: Rc<Shared>, address: SocketAddr, credentials: String) {
    while !shared.is_over.get() {
        sync(&shared, address, &credentials, false).await;
    }
}

thread_local! {
    static CURSOR: RefCell<String> = const { RefCell::new(String::new()) };
    static PHONE: RefCell<Option<Connection>> = const { RefCell::new(None) };
}

/// Reads batches until there is no more, or the run is over unless it is the `last` time.
async fn sync(shared: &Shared, address: SocketAddr, credentials: &str, last: bool) {
    let mut connection = PHONE.take();
    loop {
        let cursor = CURSOR.with_borrow(String::clone);
        let path = format!("/api/sync/incoming?limit=1000&cursor={cursor}");
        let from = Ipv4Addr::new(127, 2, 1, 1);
        let (took, status, body) = ask(&mut connection, from, address, &request("GET", &path, credentials, b"")).await;
        let is_good = shared.note("request", took, status, 200);
        if is_good {
            let batch: Value = serde_json::from_slice(&body).unwrap();
            let messages = batch["messages"].as_array().unwrap();
            let ids = messages
                .iter()
                .map(|message| message["id"].as_str().unwrap().to_owned());
            shared.held.borrow_mut().extend(ids);
            CURSOR.set(batch["cursor"].as_str().unwrap().to_owned());
            if batch["has_more"] == false {
                break;
            }
        } else if !last && shared.is_over.get() {
            break;
        }
        tokio::time::sleep(PHONE_PAUSE).await;
    }
    PHONE.set(connection);
    if !last {
        tokio::time::sleep(PHONE_PAUSE).await;
    }
}

/// Looks whether the admin listener answers, from a thread of its own as a monitoring system would: it does not wait for the
/// other clients here.
struct Probe(std::sync::mpsc::Receiver<(Duration, u16)>);

impl Probe {
    fn start(admin: SocketAddr) -> Self {
        let (sender, answers) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let asked = request("GET", "/health", "connection: close\r\n", b"");
            loop {
                let start = Instant::now();
                let status = Self::ask(admin, &asked).unwrap_or(0);
                if sender.send((start.elapsed(), status)).is_err() {
                    return;
                }
                std::thread::sleep(PROBE_PAUSE);
            }
        });
        Self(answers)
    }

    /// The status of an answer.
    fn ask(admin: SocketAddr, asked: &[u8]) -> std::io::Result<u16> {
        let mut stream = std::net::TcpStream::connect_timeout(&admin, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(asked)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(status.unwrap_or(0))
    }

    /// What was answered since the last time.
    fn take(&self) -> Vec<(Duration, u16)> {
        self.0.try_iter().collect()
    }
}

impl Seen {
    fn add(&mut self, answers: Vec<(Duration, u16)>) {
        let refused = answers.iter().filter(|(_, status)| *status != 200);
        self.refused.extend(refused.map(|(_, status)| ("health", *status)));
        self.health.extend(answers.iter().map(|(took, _)| *took));
    }
}

/// Sends a request, on a new connection if there is none; one that fails has the status 0.
async fn ask(
    connection: &mut Option<Connection>,
    from: Ipv4Addr,
    address: SocketAddr,
    asked: &[u8],
) -> (Duration, u16, Vec<u8>) {
    let start = Instant::now();
    let answer = tokio::time::timeout(TIMEOUT, async {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(from, address).await?,
        };
        let answer = open.ask(asked).await?;
        *connection = Some(open);
        std::io::Result::Ok(answer)
    })
    .await;
    match answer {
        Ok(Ok((status, body))) => (start.elapsed(), status, body),
        Ok(Err(_)) | Err(_) => (start.elapsed(), 0, Vec::new()),
    }
}

fn show(what: &str, times: [&Vec<Duration>; 2]) {
    let mut figures = [[0.0; 2]; 2];
    for (phase, times) in ["quiet", "attacked"].iter().zip(times).enumerate() {
        let (phase, (word, times)) = (phase, times);
        let mut sorted = times.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(place).copied().unwrap_or_default().as_secs_f64() * 1000.0
        };
        figures[phase] = [at(50), at(99)];
        println!(
            "{:<24}{:>10}{:>13.1} ms{:>13.1} ms",
            format!("{what}, {word}"),
            sorted.len(),
            at(50),
            at(99)
        );
    }
    let ratio = |place: usize| figures[1][place] / figures[0][place];
    println!(
        "{:<24}{:>10}{:>16.1}{:>16.1}",
        format!("{what}, ratio"),
        "",
        ratio(0),
        ratio(1)
    );
}

fn counted(refused: &[(&'static str, u16)]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for key in refused {
        *counts.entry(key).or_insert(0) += 1;
    }
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    let parts = counts.iter().map(|((what, status), count)| match status {
        0 => format!("{count} × {what} without an answer"),
        status => format!("{count} × {what} {status}"),
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
