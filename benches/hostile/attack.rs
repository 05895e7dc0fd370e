//! The hostile clients. Each plays one kind, from an address of its own, until the standard input ends.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::support::TENANT;
use super::wire::{Connection, connect, request};

/// What a client may do.
pub(crate) const KINDS: [&str; 8] = [
    "trees", "bombs", "uploads", "readers", "halves", "logins", "presence", "junk",
];

/// Connections of one client that ask one thing after the other, and of one that holds what it opens.
const ASKING: usize = 4;
const HOLDING: usize = 100;

/// Pause before a connection is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// Whom they attack, and with what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) clients: usize,
    pub(crate) idle: usize,
    /// Only this kind.
    pub(crate) only: Option<String>,
    /// A user of the tenant who is hostile: id, and headers of the access token and of a device.
    pub(crate) eve_id: String,
    pub(crate) eve: String,
    pub(crate) eve_device: String,
    /// Names whose passwords are guessed.
    pub(crate) users: Vec<String>,
}

/// What has come of it: how often, by kind and outcome.
#[derive(Debug, Default)]
struct Tally(Mutex<BTreeMap<(&'static str, String), u64>>);

impl Tally {
    fn count(&self, kind: &'static str, outcome: impl Into<String>) {
        *self.0.lock().unwrap().entry((kind, outcome.into())).or_default() += 1;
    }
}

/// One client.
#[derive(Clone)]
struct Client {
    kind: &'static str,
    from: Ipv4Addr,
    target: Arc<Target>,
    tally: Arc<Tally>,
    /// What it sends again and again.
    asked: Arc<Vec<Vec<u8>>>,
}

pub(crate) async fn run(target: Target) {
    rustix::process::setpriority_process(None, 19).unwrap();
    let (target, tally) = (Arc::new(target), Arc::<Tally>::default());
    let mut tasks = JoinSet::new();
    let kinds: Vec<&'static str> = KINDS
        .into_iter()
        .filter(|kind| target.only.as_deref().is_none_or(|only| only == *kind))
        .collect();
    // Large ones take seconds to build, and all clients of a kind send the same.
    let asked: Vec<Arc<Vec<Vec<u8>>>> = kinds.iter().map(|kind| Arc::new(requests(kind, &target))).collect();
    println!("ready");
    for number in 0..target.clients {
        let kind = kinds[number % kinds.len()];
        let client = Client {
            kind,
            from: Ipv4Addr::new(127, 1, (number / 250) as u8, (number % 250 + 1) as u8),
            target: target.clone(),
            tally: tally.clone(),
            asked: asked[number % kinds.len()].clone(),
        };
        let connections = if matches!(kind, "uploads" | "readers" | "halves") {
            HOLDING
        } else {
            ASKING
        };
        for connection in 0..connections {
            tasks.spawn(client.clone().play(connection));
        }
    }
    for number in 0..target.idle {
        let client = Client {
            kind: "idle",
            from: Ipv4Addr::new(127, 3, 0, 1),
            target: target.clone(),
            tally: tally.clone(),
            asked: Arc::default(),
        };
        tasks.spawn(client.play(number));
    }
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
    end.await.unwrap().unwrap();
    tasks.abort_all();
    let mut lines: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((kind, outcome), count) in &*tally.0.lock().unwrap() {
        lines.entry(kind).or_default().push(format!("{count} × {outcome}"));
    }
    let mut out = std::io::stdout().lock();
    for (kind, outcomes) in lines {
        writeln!(out, "{kind}: {}", outcomes.join(", ")).unwrap();
    }
}

impl Client {
    async fn play(self, number: usize) {
        // Not all in the same moment.
        tokio::time::sleep(Duration::from_millis(number as u64 % 1000)).await;
        loop {
            let end = match self.kind {
                "idle" | "halves" | "readers" | "uploads" => self.hold(number).await,
                _ => self.repeat().await,
            };
            if end.is_err() {
                self.tally.count(self.kind, "no connection");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends requests as fast as they are answered.
    async fn repeat(&self) -> std::io::Result<()> {
        let mut connection = Connection::open(self.from, self.target.address).await?;
        loop {
            for request in &*self.asked {
                match connection.ask(request).await {
                    Ok((status, _)) => self.tally.count(self.kind, status.to_string()),
                    Err(_) => {
                        self.tally.count(self.kind, "closed");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Opens a connection, sends a part, and holds it until the server closes it.
    async fn hold(&self, number: usize) -> std::io::Result<()> {
        let mut stream = connect(self.from, self.target.address, self.kind == "readers").await?;
        self.tally.count(self.kind, "opened");
        let begun = self.beginning(number);
        let end = async {
            stream.write_all(&begun).await?;
            match self.kind {
                // Reads nothing; the server notices that its writes find no room.
                "readers" => {
                    while stream.take_error()?.is_none() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                // The body comes, a little at a time.
                "uploads" => loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    stream.write_all(&[b' '; 64]).await?;
                },
                _ => {
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await?;
                }
            }
            std::io::Result::Ok(())
        };
        let _closed = end.await;
        self.tally.count(self.kind, "ended by the server");
        Ok(())
    }

    /// What a connection that is held begins with.
    fn beginning(&self, number: usize) -> Vec<u8> {
        let Target {
            eve,
            eve_device,
            eve_id,
            ..
        } = &*self.target;
        match (self.kind, number % 4) {
            ("idle", _) | ("halves", 0) => Vec::new(),
            ("halves", 1) => b"PRI ".to_vec(),
            ("halves", 2) => b"GET /api/messages HTTP/1.1\r\nHost: ben".to_vec(),
            ("halves", _) => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
            ("uploads", place) => {
                let credentials = if place < 2 { eve_device } else { "" };
                let path = if place < 2 {
                    "/api/sync/outgoing"
                } else {
                    "/api/enrollment/complete"
                };
                let type_and_length = "content-type: application/json\r\ncontent-length: 1000000\r\n";
                format!("POST {path} HTTP/1.1\r\nhost: bench\r\n{credentials}{type_and_length}\r\n{{").into_bytes()
            }
            ("readers", 0) => request("GET", &format!("/sse/web/{eve_id}"), eve, b""),
            ("readers", 1) => {
                let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                               sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                request("GET", "/ws", &format!("{eve}{upgrade}"), b"")
            }
            (_, 2) => request("GET", "/openapi.json", "", b"").repeat(50),
            _ => request("GET", "/api/messages?limit=1000", eve, b"").repeat(50),
        }
    }
}

/// What a client of a kind sends again and again.
fn requests(kind: &str, target: &Target) -> Vec<Vec<u8>> {
    let post = |path: &str, headers: &str, body: &str| request("POST", path, headers, body.as_bytes());
    let Target {
        eve, eve_device, users, ..
    } = target;
    match kind {
        "trees" => {
            let wide = vec!["{\"\":0}"; 130_000].join(",");
            let deep = "[".repeat(500_000);
            let id = uuid::Uuid::new_v4();
            vec![
                post(
                    "/api/enrollment/complete",
                    "",
                    &format!("{{\"token\":\"{id}\",\"device_id\":\"x\",\"device_info\":{{\"a\":[{wide}]}}}}"),
                ),
                post(
                    "/api/auth/login",
                    "",
                    &format!("{{\"username\":\"x\",\"device\":[{wide}]}}"),
                ),
                post("/api/auth/login", "", &format!("{{\"username\":{deep}")),
            ]
        }
        "bombs" => {
            let items = vec!["{\"\":0}"; 1_190_000].join(",");
            ["changes", "messages"]
                .map(|field| {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
                    write!(encoder, "{{\"{field}\":[{items}]}}").unwrap();
                    let headers = format!("{eve_device}content-encoding: gzip\r\n");
                    request("POST", "/api/sync/outgoing", &headers, &encoder.finish().unwrap())
                })
                .to_vec()
        }
        "logins" => users
            .iter()
            .map(|user| {
                let body = json!({"tenant": TENANT, "username": user, "password": "not the password"});
                post("/api/auth/login", "", &body.to_string())
            })
            .collect(),
        "presence" => ["away", "online"]
            .map(|status| {
                let body = json!({"status": status}).to_string();
                request("PUT", "/api/presence", eve, body.as_bytes())
            })
            .to_vec(),
        "junk" => {
            let bits = || uuid::Uuid::new_v4().simple().to_string();
            let token = format!("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{}.{}", bits(), bits());
            let bearer = format!("authorization: Bearer {token}\r\n");
            let of_device = format!("authorization: Bearer {}\r\nx-device-id: phone\r\n", bits());
            vec![
                request("GET", "/api/messages", &bearer, b""),
                request("GET", "/api/sync/incoming", &of_device, b""),
                post("/api/auth/refresh", "", &json!({"refresh_token": bits()}).to_string()),
                post("/api/account/email/verify", "", &json!({"token": bits()}).to_string()),
                request("GET", &format!("/api/enrollment/{}", uuid::Uuid::new_v4()), "", b""),
                request("GET", &format!("/ws?ticket={}", bits()), "", b""),
            ]
        }
        _ => Vec::new(),
    }
}
