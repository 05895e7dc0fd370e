//! What the API adds to Postgres: messages a second through `POST /api/messages` beside `pgbench -M prepared` that does the
//! same INSERT, and two reads beside a bare hyper handler that gives as many bytes.
//!
//! All take turns in each round, with as many connections each, against the same Postgres with the same durability, while
//! the engine publishes what is written. Between two of them the log is drained, so that none works off what another
//! left. At the end, many log in at once, and another client tells how long it waits meanwhile. The load comes from one thread of this process, as pgbench's comes from one of its own; its CPU counts as
//! pgbench's does, since all share the machine. Afterwards the rows are counted.
//!
//! ```text
//! scripts/bench api [--rounds 3] [--seconds 10] [--connections 16]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use posduif::accounts::users::UserType;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use support::{PASSWORD, Process, Servers, TENANT, spread, stop};

/// Mobile users who get messages.
const RECIPIENTS: usize = 1000;

/// A message's text.
const CONTENT: &str =
    "The quick brown fox jumps over the lazy dog, and the lazy dog takes it as it comes, as lazy dogs do.";

/// Who log in at once.
const LOGINS: usize = 200;

/// Messages that a page of the read shows.
const PAGE_ROWS: usize = 50;

#[derive(Debug, Parser)]
#[command(about = "The API beside pgbench and a bare hyper handler")]
struct Options {
    /// Rounds; each runs every contestant once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one runs.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections: of pgbench and of the engine's pool to Postgres, and of clients to the API.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Leaves out the reads.
    #[arg(long)]
    writes_only: bool,
    /// What this process is started as, for the bare handler: bytes of its answer.
    #[arg(long, hide = true)]
    bare: Option<usize>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if let Some(bytes) = options.bare {
        // As many threads as the engine has.
        return tokio::runtime::Runtime::new().unwrap().block_on(serve_bare(bytes));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = Bench::prepare(&options).await;
        bench.run(&options).await;
    });
}

/// Answers everything with so many bytes of JSON, and does nothing else.
async fn serve_bare(bytes: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let body = Bytes::from(format!("\"{}\"", "x".repeat(bytes.saturating_sub(2))));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let body = body.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |_: Request<Incoming>| {
                let response = Response::builder()
                    .header("content-type", "application/json")
                    .body(Full::new(body.clone()));
                async move { Ok::<_, Infallible>(response.unwrap()) }
            });
            let _closed = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// One run of one contestant.
#[derive(Debug, Clone, Copy)]
struct Run {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    /// CPU in µs a request: engine, Postgres, Redis, client.
    cpu: [f64; 4],
}

struct Bench {
    servers: Servers,
    sql: tokio_postgres::Client,
    engine: Child,
    address: String,
    pgbench: PathBuf,
    /// An access token a connection, each of a user of its own.
    tokens: Vec<String>,
    recipients: Vec<String>,
    /// A device with a cursor behind which nothing is.
    device: String,
    cursor: String,
}

impl Bench {
    async fn prepare(options: &Options) -> Self {
        let servers = Servers::start().await;
        let pool = ("POSDUIF__POSTGRES__POOL_SIZE", options.connections.to_string());
        let (engine, address) = servers.serve(&[pool]).await;
        let sql = servers.connect_sql().await;
        let mut http = Http::connect(&address).await;
        let mut tokens = Vec::new();
        for number in 0..options.connections {
            let username = format!("web-{number}");
            servers.user(&username, UserType::Web).await;
            let login = json!({"tenant": TENANT, "username": username, "password": PASSWORD});
            let answer = http.post("/api/auth/login", "", &login).await;
            tokens.push(answer["token"].as_str().unwrap().to_owned());
        }
        // Users whose ids pgbench can count out, the senders among them. With a device, recipients have an inbox.
        sql.batch_execute(&format!(
            "CREATE FUNCTION counted(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
                 $$ SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid $$;
             INSERT INTO tenant_{TENANT}.users (id, username, user_type)
                 SELECT counted(n), 'mobile-' || n, 'mobile' FROM generate_series(1, {RECIPIENTS}) n;
             INSERT INTO tenant_{TENANT}.devices (device_id, user_id)
                 SELECT 'mobile-' || n, counted(n) FROM generate_series(1, {RECIPIENTS}) n;
             INSERT INTO tenant_{TENANT}.users (id, username, user_type)
                 SELECT counted(1000000 + n), 'sender-' || n, 'web' FROM generate_series(0, {}) n;",
            options.connections
        ))
        .await
        .unwrap();
        let recipients: Vec<String> = (1..=RECIPIENTS)
            .map(|number| format!("00000000-0000-4000-8000-{number:012}"))
            .collect();
        let mut bench = Self {
            pgbench: binary("pgbench"),
            servers,
            sql,
            engine,
            address,
            tokens,
            recipients,
            device: String::new(),
            cursor: String::new(),
        };
        bench.servers.published(&bench.sql).await;
        bench.enroll(&mut http).await;
        bench
    }

    /// A device of a user to whom nobody writes, which has all there is.
    async fn enroll(&mut self, http: &mut Http) {
        let access = format!("authorization: Bearer {}\r\n", self.tokens[0]);
        let invited = http.post("/api/enrollment/create", &access, &json!({})).await;
        let complete = json!({
            "token": invited["token"], "device_id": "phone", "username": "idle",
            "device_info": {"platform": "android", "version": "13", "model": "Pixel 7", "app_version": "1.0.0"},
        });
        let enrolled = http.post("/api/enrollment/complete", "", &complete).await;
        let token = enrolled["device_token"].as_str().unwrap();
        self.device = format!("authorization: Bearer {token}\r\nx-device-id: phone\r\n");
        self.servers.published(&self.sql).await;
        let mut page = json!({"has_more": true, "cursor": ""});
        while page["has_more"] == true {
            let path = format!(
                "/api/sync/incoming?limit=1000&cursor={}",
                page["cursor"].as_str().unwrap()
            );
            page = serde_json::from_slice(&http.get(&path, &self.device).await).unwrap();
        }
        self.cursor = page["cursor"].as_str().unwrap().to_owned();
    }

    async fn run(mut self, options: &Options) {
        let duration = Duration::from_secs(options.seconds);
        println!(
            "{} connections, {} s a run, {} CPUs; CPU in µs a request: engine / Postgres / Redis / client\n",
            options.connections,
            options.seconds,
            std::thread::available_parallelism().map_or(0, usize::from),
        );
        // Connections are opened and statements planned before anything counts.
        self.create(Duration::from_secs(1)).await;
        let (mut ratios, mut ratios_same) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            let bare = self.pgbench(PLAIN_INSERT, options).await;
            show(round, "pgbench, INSERT", &bare);
            let same = self.pgbench(&api_insert(), options).await;
            show(round, "pgbench, the API's statement", &same);
            let api = self.create(duration).await;
            show(round, "POST /api/messages", &api);
            ratios.push(api.per_second / bare.per_second);
            ratios_same.push(api.per_second / same.per_second);
            println!("         ratio {:.2}, {:.2}", ratios[round - 1], ratios_same[round - 1]);
        }
        println!("\nPOST /api/messages of pgbench's INSERT: {}", spread(&mut ratios, 2));
        println!(
            "POST /api/messages of pgbench with the API's own statement: {}\n",
            spread(&mut ratios_same, 2)
        );
        if !options.writes_only {
            self.reads(options.rounds, duration).await;
            self.logins(options.rounds).await;
        }
        stop(&mut self.engine).await;
    }

    async fn reads(&mut self, rounds: usize, duration: Duration) {
        let lists = |token: &String| {
            request(
                "GET",
                &format!("/api/messages?limit={PAGE_ROWS}"),
                &format!("authorization: Bearer {token}\r\n"),
                "",
            )
        };
        let lists: Vec<Vec<Vec<u8>>> = self.tokens.iter().map(|token| vec![lists(token)]).collect();
        let incoming = request(
            "GET",
            &format!("/api/sync/incoming?cursor={}", self.cursor),
            &self.device,
            "",
        );
        let incoming = vec![vec![incoming]; self.tokens.len()];
        for (name, requests) in [("GET /api/messages", lists), ("GET /api/sync/incoming", incoming)] {
            let mut http = Http::connect(&self.address).await;
            let bytes = http.send(&requests[0][0]).await.len();
            let mut handler = Command::new(std::env::current_exe().unwrap())
                .args(["--bare", &bytes.to_string()])
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = tokio::io::BufReader::new(handler.stdout.take().unwrap()).lines();
            let bare_address = lines.next_line().await.unwrap().unwrap();
            let mut ratios = Vec::new();
            for round in 1..=rounds {
                let bare = self.load(&bare_address, handler.id(), &requests, duration).await;
                show(round, &format!("a bare handler's {bytes} bytes"), &bare);
                let api = self.load(&self.address, self.engine.id(), &requests, duration).await;
                show(round, name, &api);
                ratios.push(api.per_second / bare.per_second);
            }
            println!("{name} of a bare handler: {}\n", spread(&mut ratios, 2));
            handler.kill().await.unwrap();
        }
    }

    /// How long other requests take while many log in at once.
    async fn logins(&self, rounds: usize) {
        let access = format!("authorization: Bearer {}\r\n", self.tokens[0]);
        let question = request("GET", "/api/messages?limit=1", &access, "");
        let mut http = Http::connect(&self.address).await;
        for round in 1..=rounds {
            let mut alone = Vec::new();
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2) {
                alone.push(timed(&mut http, &question).await);
            }
            let mut logins = tokio::task::JoinSet::new();
            for number in 0..LOGINS {
                let username = format!("web-{}", number % self.tokens.len());
                let body = json!({"tenant": TENANT, "username": username, "password": PASSWORD}).to_string();
                let mut http = Http::connect(&self.address).await;
                logins.spawn(async move { http.exchange(&request("POST", "/api/auth/login", "", &body)).await.0 });
            }
            let (mut tenant_command, mut done) = (Vec::new(), 0);
            let start = Instant::now();
            while !logins.is_empty() {
                tenant_command.push(timed(&mut http, &question).await);
                while let Some(status) = logins.try_join_next() {
                    done += usize::from(status.unwrap() == 200);
                }
            }
            println!(
                "round {round}: {done} of {LOGINS} logins at once in {:.1} s; another client's p99 {:.1} ms, {:.1} ms alone",
                start.elapsed().as_secs_f64(),
                p99(&mut tenant_command),
                p99(&mut alone)
            );
        }
    }

    /// Messages through the API.
    async fn create(&self, duration: Duration) -> Run {
        let before = self.count().await;
        let requests: Vec<Vec<Vec<u8>>> = self
            .tokens
            .iter()
            .enumerate()
            .map(|(number, token)| {
                let access = format!("authorization: Bearer {token}\r\n");
                // Each begins elsewhere.
                let recipients = self.recipients.iter().cycle().skip(number * 61);
                recipients
                    .take(RECIPIENTS)
                    .map(|recipient| {
                        let body = json!({"recipient_id": recipient, "content": CONTENT});
                        request("POST", "/api/messages", &access, &body.to_string())
                    })
                    .collect()
            })
            .collect();
        let run = self.load(&self.address, self.engine.id(), &requests, duration).await;
        self.servers.published(&self.sql).await;
        let written = self.count().await - before;
        let answered = (run.per_second * duration.as_secs_f64()).round() as i64;
        let difference = (written - answered).abs();
        assert!(
            difference <= 1 + answered / 100,
            "{answered} were answered, {written} written"
        );
        run
    }

    /// Each connection sends its requests, one when the one before is answered, again and again.
    async fn load(&self, address: &str, server: Option<u32>, requests: &[Vec<Vec<u8>>], duration: Duration) -> Run {
        let mut connections = Vec::new();
        for requests in requests {
            connections.push((Http::connect(address).await, requests.clone()));
        }
        let before = self.cpu(server).await;
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (mut http, requests) in connections {
            tasks.spawn(async move {
                let mut times = Vec::new();
                for request in requests.iter().cycle() {
                    let sent = start.elapsed();
                    if sent >= duration {
                        break;
                    }
                    http.send(request).await;
                    times.push(start.elapsed() - sent);
                }
                times
            });
        }
        let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        let took = start.elapsed();
        let after = self.cpu(server).await;
        times.sort_unstable();
        Run {
            per_second: times.len() as f64 / took.as_secs_f64(),
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
            cpu: std::array::from_fn(|at| per_request(after[at] - before[at], times.len() as f64)),
        }
    }

    /// The same by pgbench, from one thread.
    async fn pgbench(&self, script: &str, options: &Options) -> Run {
        let file = self.servers.folder.0.join("insert.sql");
        std::fs::write(&file, script).unwrap();
        let log = self.servers.folder.0.join("pgbench_log");
        let before = self.cpu(self.engine.id()).await;
        let (start, own) = (Instant::now(), children_cpu());
        let output = Command::new(&self.pgbench)
            .args([
                "-n",
                "-M",
                "prepared",
                "-j",
                "1",
                "-c",
                &options.connections.to_string(),
            ])
            .args(["-T", &options.seconds.to_string(), "-f", file.to_str().unwrap()])
            .args(["-l", "--log-prefix", log.to_str().unwrap()])
            .arg(self.servers.postgres.url())
            .output()
            .await
            .unwrap();
        let took = start.elapsed();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let after = self.cpu(self.engine.id()).await;
        let number = |begin: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(begin)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let count = number("number of transactions actually processed: ");
        let mut times = Vec::new();
        for entry in std::fs::read_dir(&self.servers.folder.0).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("pgbench_log") {
                let text = std::fs::read_to_string(&path).unwrap();
                let lines = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
                times.extend(lines.map(Duration::from_micros));
                std::fs::remove_file(&path).unwrap();
            }
        }
        times.sort_unstable();
        self.servers.published(&self.sql).await;
        let mut cpu: [f64; 4] = std::array::from_fn(|at| per_request(after[at] - before[at], count));
        cpu[3] = per_request(children_cpu() - own, count);
        assert!(took.as_secs() >= options.seconds);
        Run {
            per_second: number("tps = "),
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
            cpu,
        }
    }

    /// CPU so far of a server, all of Postgres, Redis and this process.
    async fn cpu(&self, server: Option<u32>) -> [Duration; 4] {
        let folder = std::fs::read_dir("/proc").unwrap();
        let postgres = self.servers.postgres.pid().unwrap();
        // Backends come and go, with pgbench; those that have gone count with their parent.
        let of = |pid: u32| Process::of(pid).cpu;
        let children = folder
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| parent(*pid) == Some(postgres));
        [
            of(server.unwrap()),
            of(postgres) + waited_cpu(postgres) + children.map(of).sum::<Duration>(),
            of(self.servers.redis.pid().unwrap()),
            of(std::process::id()),
        ]
    }

    async fn count(&self) -> i64 {
        let query = format!("SELECT count(*) FROM tenant_{TENANT}.messages");
        self.sql.query_one(&query, &[]).await.unwrap().get(0)
    }
}

/// The row that the API writes, by a plain INSERT.
const PLAIN_INSERT: &str = "\\set r random(1, 1000)\n\
    \\set s 1000000 + :client_id\n\
    INSERT INTO tenant_bench.messages (sender_id, recipient_id, content) VALUES (counted(:s), counted(:r), \
    'The quick brown fox jumps over the lazy dog, and the lazy dog takes it as it comes, as lazy dogs do.') \
    RETURNING id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at;\n";

/// The API's own statement, which also looks at sender and recipient.
fn api_insert() -> String {
    let statement = include_str!("../sql/messages/message_insert.sql")
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect::<Vec<_>>()
        .join(" ");
    let statement = statement
        .replace("{schema}", "tenant_bench")
        .replace("$1", "counted(:s)")
        .replace("$2", "counted(:r)")
        .replace("$3", &format!("'{CONTENT}'"));
    format!("\\set r random(1, 1000)\n\\set s 1000000 + :client_id\n{statement};\n")
}

async fn timed(http: &mut Http, request: &[u8]) -> Duration {
    let start = Instant::now();
    http.send(request).await;
    start.elapsed()
}

/// In ms.
fn p99(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() * 99 / 100].as_secs_f64() * 1000.0
}

fn per_request(cpu: Duration, count: f64) -> f64 {
    cpu.as_secs_f64() * 1e6 / count
}

fn show(round: usize, name: &str, run: &Run) {
    println!(
        "round {round}: {name}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, CPU {:.0} / {:.0} / {:.0} / {:.0}",
        run.per_second,
        run.p50.as_secs_f64() * 1000.0,
        run.p99.as_secs_f64() * 1000.0,
        run.cpu[0],
        run.cpu[1],
        run.cpu[2],
        run.cpu[3]
    );
}

/// Fields of `/proc/<pid>/stat` behind the name.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace();
    Some(fields.map(|field| field.parse().unwrap_or(0)).collect())
}

fn parent(pid: u32) -> Option<u32> {
    u32::try_from(*stat(pid)?.get(1)?).ok()
}

/// CPU of those children of a process that have gone. USER_HZ is 100 on every Linux that matters.
fn waited_cpu(pid: u32) -> Duration {
    let fields = stat(pid).unwrap_or_default();
    let ticks: u64 = fields.get(13..15).unwrap_or_default().iter().sum();
    Duration::from_millis(ticks * 10)
}

fn children_cpu() -> Duration {
    waited_cpu(std::process::id())
}

/// A program of Postgres.
fn binary(name: &str) -> PathBuf {
    let output = std::process::Command::new("pg_config").arg("--bindir").output();
    let mut places: Vec<PathBuf> = output
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
        .into_iter()
        .collect();
    for version in (14..=20).rev() {
        places.push(format!("/usr/lib/postgresql/{version}/bin").into());
    }
    let found = places
        .into_iter()
        .map(|place| place.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is needed"))
}

/// A request as it goes over the wire.
fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = match body {
        "" => String::new(),
        body => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n{headers}{length}\r\n{body}").into_bytes()
}

/// A connection that asks one thing after the other and looks at nothing but status and length.
struct Http {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Http {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::with_capacity(64 * 1024),
        }
    }

    async fn post(&mut self, path: &str, headers: &str, body: &Value) -> Value {
        let request = request("POST", path, headers, &body.to_string());
        serde_json::from_slice(self.send(&request).await).unwrap()
    }

    async fn get(&mut self, path: &str, headers: &str) -> Vec<u8> {
        self.send(&request("GET", path, headers, "")).await.to_vec()
    }

    /// The body of an answer that must be good.
    async fn send(&mut self, request: &[u8]) -> &[u8] {
        let (status, body) = self.exchange(request).await;
        assert!(
            (200..300).contains(&status),
            "{status}: {}",
            String::from_utf8_lossy(body)
        );
        body
    }

    /// Status and body of an answer.
    async fn exchange(&mut self, request: &[u8]) -> (u16, &[u8]) {
        self.stream.write_all(request).await.unwrap();
        self.buffer.clear();
        let mut body = None;
        loop {
            let count = self.stream.read_buf(&mut self.buffer).await.unwrap();
            assert!(count > 0, "the server has closed the connection");
            if body.is_none()
                && let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&self.buffer[..end]).unwrap();
                let status = head["HTTP/1.1 ".len()..][..3].parse().unwrap();
                let at = head.find("content-length: ").expect("answers have a length") + "content-length: ".len();
                let digits = head[at..].split('\r').next().unwrap();
                body = Some((status, end + 4, digits.parse::<usize>().unwrap()));
            }
            if let Some((status, start, length)) = body
                && self.buffer.len() >= start + length
            {
                return (status, &self.buffer[start..start + length]);
            }
        }
    }
}
