//! How fast a device that was away catches up, beside what a bare client reads from the same stream in the same run.
//!
//! So many messages wait in one user's inbox. In each round a bare client reads the entries by `XRANGE`, in pages, as
//! fast as Redis gives them; then a device with an old cursor takes them over HTTP, page by page, until there is no more.
//! Both rates are in bytes of rows, as each of them gets them. Afterwards every row that came is compared with the table.
//! Before each catch-up the statuses are set back, so that each has all of them to move on; that time is given, too.
//!
//! ```text
//! scripts/bench sync [--rounds 3] [--messages 200000] [--content-bytes 200] [--limit 1000]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use clap::Parser;
use flate2::read::GzDecoder;
use posduif::accounts::users::UserType;
use posduif::contract::keys::Keys;
use serde_json::{Value, json};
use tokio::process::Child;
use uuid::Uuid;

use support::{PASSWORD, Process, Servers, TENANT, spread, stop};

/// Entries that the bare client asks for at once; the best of them counts.
const BARE_PAGES: [usize; 3] = [1_000, 5_000, 20_000];

#[derive(Debug, Parser)]
#[command(about = "A device that was away beside a bare XRANGE of the same entries")]
struct Options {
    /// Rounds; each runs every contestant once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages that wait.
    #[arg(long, default_value_t = 200_000)]
    messages: i64,
    /// Bytes of each one's text.
    #[arg(long, default_value_t = 200)]
    content_bytes: i32,
    /// Rows that the device asks for at once.
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
    /// Leaves out the catch-up with gzip.
    #[arg(long)]
    plain: bool,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let bench = Bench::prepare(&options).await;
    println!(
        "{} messages of {} bytes, pages of {}, {} CPUs\n",
        options.messages,
        options.content_bytes,
        options.limit,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    bench.run(&options).await;
}

/// What came, and how long it took.
#[derive(Debug, Clone, Copy)]
struct Rate {
    row_bytes: u64,
    time: Duration,
}

impl Rate {
    fn mib_per_second(self) -> f64 {
        self.row_bytes as f64 / (1024.0 * 1024.0) / self.time.as_secs_f64()
    }
}

/// A device's catch-up.
struct CatchUp {
    rate: Rate,
    /// Bytes of the answers' bodies as they came.
    body_bytes: u64,
    pages: usize,
    /// CPU of engine, Redis and Postgres.
    cpu: [Duration; 3],
    /// What the engine held before, and the most meanwhile, in KiB.
    memory_kib: [u64; 2],
    /// From the last page until all statuses have moved on, and its CPU.
    statuses: Duration,
    statuses_cpu: [Duration; 3],
}

struct Bench {
    servers: Servers,
    sql: tokio_postgres::Client,
    engine: Child,
    address: String,
    bob: Uuid,
    joe: Uuid,
    devices: Vec<Device>,
}

/// A device with the cursor that it had when it went away.
#[derive(Debug, Clone)]
struct Device {
    id: String,
    token: String,
    cursor: String,
}

impl Bench {
    async fn prepare(options: &Options) -> Self {
        let servers = Servers::start().await;
        let inbox_max = (2 * options.messages).to_string();
        let settings = [
            ("POSDUIF__STREAMS__INBOX_ENTRIES_MAX", inbox_max),
            // Trimming what the statuses leave to the sender would fall into some rounds and not into others.
            ("POSDUIF__STREAMS__TRIM_INTERVAL_SECONDS", "3600".to_owned()),
            ("POSDUIF__SYNC__BATCH_SIZE_MAX", options.limit.max(100).to_string()),
        ];
        let (engine, address) = servers.serve(&settings).await;
        let bob = servers.user("bob", UserType::Web).await;
        let joe = servers.user("joe", UserType::Mobile).await;
        let sql = servers.connect_sql().await;
        let mut bench = Self {
            servers,
            sql,
            engine,
            address,
            bob,
            joe,
            devices: Vec::new(),
        };
        bench.servers.published(&bench.sql).await;
        bench.enroll(2 * options.rounds);
        let insert = "INSERT INTO tenant_bench.messages (sender_id, recipient_id, content, created_at) \
                      SELECT $1, $2, left(repeat(md5(n::text), $4 / 32 + 1), $4), now() + n * interval '1 microsecond' \
                      FROM generate_series($3::bigint + 1, $3 + 1000) n";
        for first in (0..options.messages).step_by(1000) {
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&bob, &joe, &first, &options.content_bytes];
            bench.sql.execute(insert, &values).await.unwrap();
        }
        bench.servers.published(&bench.sql).await;
        bench
    }

    /// Devices of joe's that have all there is, and are away from now on.
    fn enroll(&mut self, count: usize) {
        let mut http = Http::connect(&self.address);
        let login = json!({"tenant": TENANT, "username": "bob", "password": PASSWORD});
        let token = http.post("/api/auth/login", &[], &login)["token"].clone();
        let bearer = format!("Bearer {}", token.as_str().unwrap());
        for number in 0..count {
            let invited = http.post(
                "/api/enrollment/create",
                &[("authorization", &bearer)],
                &json!({"user_id": self.joe}),
            );
            let id = format!("phone-{number}");
            let complete = json!({
                "token": invited["token"], "device_id": id,
                "device_info": {"platform": "android", "version": "13", "model": "Pixel 7", "app_version": "1.0.0"},
            });
            let enrolled = http.post("/api/enrollment/complete", &[], &complete);
            let mut device = Device {
                id,
                token: enrolled["device_token"].as_str().unwrap().to_owned(),
                cursor: String::new(),
            };
            let pages = device.sync(&mut http, 1000, false);
            device.cursor = Page::of(pages.last().unwrap()).cursor;
            self.devices.push(device);
        }
    }

    async fn run(mut self, options: &Options) {
        let mut devices = std::mem::take(&mut self.devices).into_iter();
        let (mut ratios, mut bares, mut plains, mut packeds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut best = None;
        for round in 1..=options.rounds {
            self.set_back().await;
            let bare = self.bare(&mut best, options.messages);
            let plain = self.catch_up(devices.next().unwrap(), options, false).await;
            let ratio = plain.rate.mib_per_second() / bare.mib_per_second();
            println!(
                "round {round}: XRANGE {:.1} MiB/s, device {}",
                bare.mib_per_second(),
                describe(&plain)
            );
            println!("         ratio {ratio:.3}");
            ratios.push(ratio);
            bares.push(bare.mib_per_second());
            plains.push(plain.rate.mib_per_second());
            if !options.plain {
                self.set_back().await;
                let packed = self.catch_up(devices.next().unwrap(), options, true).await;
                println!("         with gzip {}", describe(&packed));
                packeds.push(packed.rate.mib_per_second());
            }
        }
        println!(
            "\nrow bytes a second, median (range): XRANGE by {} {}, device {}, with gzip {} MiB/s",
            best.unwrap(),
            spread(&mut bares, 1),
            spread(&mut plains, 1),
            spread(&mut packeds, 1)
        );
        println!("device of XRANGE: {}", spread(&mut ratios, 3));
        stop(&mut self.engine).await;
    }

    /// Sets all statuses back as if no device had been there yet.
    async fn set_back(&self) {
        let statement = "UPDATE tenant_bench.messages SET status = 'pending_sync', synced_at = NULL \
                         WHERE status <> 'pending_sync'";
        self.sql.execute(statement, &[]).await.unwrap();
        for statement in ["VACUUM tenant_bench.messages", "CHECKPOINT"] {
            self.sql.batch_execute(statement).await.unwrap();
        }
        self.servers.published(&self.sql).await;
        let keys = Keys::new(&self.servers.config.redis.prefix);
        for key in [keys.changes(TENANT), keys.inbox(TENANT, &self.bob.to_string())] {
            redis::cmd("XTRIM")
                .arg(&key)
                .arg(&["MAXLEN", "0"])
                .exec_async(&mut self.servers.connect_redis().await)
                .await
                .unwrap();
        }
    }

    /// The best that a bare client gets; `best` is its page, once that is known.
    fn bare(&self, best: &mut Option<usize>, messages: i64) -> Rate {
        let pages = best.map_or(BARE_PAGES.to_vec(), |page| vec![page]);
        let runs = pages.into_iter().map(|page| {
            let key = Keys::new(&self.servers.config.redis.prefix).inbox(TENANT, &self.joe.to_string());
            let (rate, rows) = Bare::connect(&self.servers).read(&key, page);
            assert_eq!(rows, messages, "the inbox holds something else");
            (page, rate)
        });
        let (page, rate) = runs
            .max_by(|(_, a), (_, b)| a.mib_per_second().total_cmp(&b.mib_per_second()))
            .unwrap();
        *best = Some(page);
        rate
    }

    async fn catch_up(&self, device: Device, options: &Options, gzip: bool) -> CatchUp {
        let engine = self.engine.id().unwrap();
        let before = self.cpu().await;
        forget_peak(engine);
        let resident = Process::of(engine).resident_kib;
        let mut http = Http::connect(&self.address);
        let limit = options.limit;
        let start = Instant::now();
        let going = device.clone();
        let (pages, mut http) = tokio::task::spawn_blocking(move || (going.sync(&mut http, limit, gzip), http))
            .await
            .unwrap();
        let time = start.elapsed();
        let after = self.cpu().await;
        let peak = Process::of(engine).peak_kib;
        let last = pages.last().unwrap();
        device.acknowledge(&mut http, ending(&inflated(last), "cursor"));
        self.statuses_moved(&device).await;
        let statuses = start.elapsed() - time;
        let end = self.cpu().await;
        let row_bytes = self.verify(&pages).await;
        // A worker of Postgres may have ended meanwhile.
        let between = |a: [Duration; 3], b: [Duration; 3]| [0, 1, 2].map(|at| b[at].saturating_sub(a[at]));
        CatchUp {
            rate: Rate { row_bytes, time },
            body_bytes: pages.iter().map(|page| page.len() as u64).sum(),
            pages: pages.len(),
            cpu: between(before, after),
            memory_kib: [resident, peak],
            statuses,
            statuses_cpu: between(after, end),
        }
    }

    /// CPU so far of the engine, Redis and all of Postgres.
    async fn cpu(&self) -> [Duration; 3] {
        let backends = "SELECT pid FROM pg_stat_activity";
        let rows = self.sql.query(backends, &[]).await.unwrap();
        let postgres = rows
            .iter()
            .map(|row| Process::of(row.get::<_, i32>(0).unsigned_abs()).cpu)
            .sum();
        [
            Process::of(self.engine.id().unwrap()).cpu,
            Process::of(self.servers.redis.pid().unwrap()).cpu,
            postgres,
        ]
    }

    /// Waits until the statuses of all that the device has acknowledged have moved on.
    async fn statuses_moved(&self, device: &Device) {
        let mut redis = self.servers.connect_redis().await;
        let key = Keys::new(&self.servers.config.redis.prefix).device(TENANT, &device.id);
        loop {
            let places: (String, String) = redis::cmd("HMGET")
                .arg(&key)
                .arg(&["ack", "settled"])
                .query_async(&mut redis)
                .await
                .unwrap();
            if places.0 == places.1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks that each row came once and as the table has it; gives the bytes of rows.
    async fn verify(&self, pages: &[Vec<u8>]) -> u64 {
        let query = "SELECT id, content FROM tenant_bench.messages";
        let rows = self.sql.query(query, &[]).await.unwrap();
        let mut missing: HashMap<Uuid, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let mut row_bytes = 0;
        for page in pages {
            for row in Page::of(&inflated(page)).messages {
                row_bytes += row.get().len() as u64;
                let row: Value = serde_json::from_str(row.get()).unwrap();
                let id: Uuid = row["id"].as_str().unwrap().parse().unwrap();
                let content = missing.remove(&id).expect("a row came twice, or is nobody's");
                assert_eq!(row["content"], content);
            }
        }
        assert!(missing.is_empty(), "{} rows did not come", missing.len());
        let query = "SELECT count(*) FROM tenant_bench.messages WHERE status <> 'synced'";
        let left: i64 = self.sql.query_one(query, &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "statuses that have not moved on");
        row_bytes
    }
}

/// Resets a process' peak of memory to what is resident now.
fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn describe(run: &CatchUp) -> String {
    let seconds = |cpu: [Duration; 3]| cpu.map(|cpu| format!("{:.2}", cpu.as_secs_f64())).join(" / ");
    format!(
        "{:.1} MiB/s: {} pages, {:.1} MiB on the wire in {:.2} s, CPU {} s; engine {:.1} MiB before, {:.1} MiB at most; \
         then {:.2} s until the statuses have moved on, CPU {} s (engine / Redis / Postgres)",
        run.rate.mib_per_second(),
        run.pages,
        run.body_bytes as f64 / (1024.0 * 1024.0),
        run.rate.time.as_secs_f64(),
        seconds(run.cpu),
        run.memory_kib[0] as f64 / 1024.0,
        run.memory_kib[1] as f64 / 1024.0,
        run.statuses.as_secs_f64(),
        seconds(run.statuses_cpu),
    )
}

/// What the device reads of an answer.
#[derive(serde::Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    messages: Vec<&'a serde_json::value::RawValue>,
    cursor: String,
}

impl<'a> Page<'a> {
    fn of(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap()
    }
}

/// A body as it was before it was compressed, if it was.
fn inflated(body: &[u8]) -> Cow<'_, [u8]> {
    if !body.starts_with(&[0x1f, 0x8b]) {
        return body.into();
    }
    let mut plain = Vec::new();
    GzDecoder::new(body).read_to_end(&mut plain).unwrap();
    plain.into()
}

/// The text behind a name near the end of an answer: reading all of it would cost the device more than the engine.
fn ending<'a>(body: &'a [u8], name: &str) -> &'a str {
    let tail = std::str::from_utf8(&body[body.len().saturating_sub(600)..]).unwrap();
    let (_, value) = tail.rsplit_once(&format!("\"{name}\":")).unwrap();
    value.split([',', '}']).next().unwrap().trim_matches('"')
}

impl Device {
    /// Pages from the cursor on until there is no more, as they came.
    fn sync(&self, http: &mut Http, limit: usize, gzip: bool) -> Vec<Vec<u8>> {
        let mut pages = Vec::new();
        let mut cursor = self.cursor.clone();
        loop {
            let question = if cursor.is_empty() {
                format!("/api/sync/incoming?limit={limit}")
            } else {
                format!("/api/sync/incoming?limit={limit}&cursor={cursor}")
            };
            let bearer = format!("Bearer {}", self.token);
            let mut headers = vec![("authorization", bearer.as_str()), ("x-device-id", &self.id)];
            if gzip {
                headers.push(("accept-encoding", "gzip"));
            }
            let page = http.request("GET", &question, &headers, b"");
            let text = inflated(&page);
            cursor = ending(&text, "cursor").to_owned();
            let has_more = ending(&text, "has_more") == "true";
            drop(text);
            pages.push(page);
            if !has_more {
                return pages;
            }
        }
    }

    /// Tells that all of it is there.
    fn acknowledge(&self, http: &mut Http, cursor: &str) {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str()), ("x-device-id", &self.id)];
        http.post("/api/sync/ack", &headers, &json!({"cursor": cursor}));
    }
}

/// A connection that asks one thing after the other and spends nothing on what it need not know.
struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::with_capacity(256 * 1024, stream),
        }
    }

    fn post(&mut self, path: &str, headers: &[(&str, &str)], body: &Value) -> Value {
        let headers: Vec<_> = headers
            .iter()
            .copied()
            .chain([("content-type", "application/json")])
            .collect();
        serde_json::from_slice(&self.request("POST", path, &headers, body.to_string().as_bytes())).unwrap()
    }

    /// The body of an answer that must be good.
    fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let stream = self.stream.get_mut();
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let (mut line, mut status, mut length) = (String::new(), String::new(), 0);
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if status.is_empty() {
                status = line.to_owned();
            } else if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        assert!(
            status.starts_with("HTTP/1.1 2"),
            "{method} {path}: {status}: {}",
            String::from_utf8_lossy(&body)
        );
        body
    }
}

/// A client of Redis that goes over the reply's lengths and nothing else.
struct Bare {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer is read, and up to where it is filled.
    at: usize,
    end: usize,
}

impl Bare {
    fn connect(servers: &Servers) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", servers.redis.port())).unwrap();
        stream.set_nodelay(true).unwrap();
        let url = servers.redis.url();
        let (login, _) = url.trim_start_matches("redis://").split_once('@').unwrap();
        let (user, password) = login.split_once(':').unwrap();
        let mut bare = Self {
            stream,
            buffer: vec![0; 1024 * 1024],
            at: 0,
            end: 0,
        };
        bare.send(&["AUTH", user, password]);
        assert_eq!(bare.line(), b"+OK");
        bare
    }

    /// Reads a stream from its beginning to its end; gives the bytes of its rows, and their number.
    fn read(mut self, key: &str, page: usize) -> (Rate, i64) {
        let start = Instant::now();
        let (mut row_bytes, mut rows, mut from) = (0, 0, "-".to_owned());
        loop {
            self.send(&["XRANGE", key, &from, "+", "COUNT", &page.to_string()]);
            let entries = self.number(b'*');
            for _ in 0..entries {
                assert_eq!(self.number(b'*'), 2);
                let length = self.number(b'$');
                let id = self.bulk(length);
                from.clear();
                from.push('(');
                from.push_str(std::str::from_utf8(id).unwrap());
                for _ in 0..self.number(b'*') / 2 {
                    let length = self.number(b'$');
                    let is_row = self.bulk(length) == b"row";
                    let length = self.number(b'$');
                    self.bulk(length);
                    if is_row {
                        row_bytes += length as u64;
                        rows += 1;
                    }
                }
            }
            if entries < page {
                let time = start.elapsed();
                return (Rate { row_bytes, time }, rows);
            }
        }
    }

    fn send(&mut self, arguments: &[&str]) {
        let mut command = format!("*{}\r\n", arguments.len());
        for argument in arguments {
            command.push_str(&format!("${}\r\n{argument}\r\n", argument.len()));
        }
        self.stream.write_all(command.as_bytes()).unwrap();
    }

    fn number(&mut self, tag: u8) -> usize {
        let line = self.line();
        assert_eq!(line[0], tag, "{}", String::from_utf8_lossy(line));
        line[1..]
            .iter()
            .fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
    }

    /// The next line, without its end.
    fn line(&mut self) -> &[u8] {
        let mut looked = 0;
        loop {
            let unread = &self.buffer[self.at..self.end];
            if let Some(length) = unread[looked..].iter().position(|byte| *byte == b'\r')
                && looked + length + 1 < unread.len()
            {
                let line = self.at..self.at + looked + length;
                self.at = line.end + 2;
                return &self.buffer[line];
            }
            looked = unread.len().saturating_sub(1);
            self.fill();
        }
    }

    /// The next so many bytes, and behind them the end of a line.
    fn bulk(&mut self, length: usize) -> &[u8] {
        while self.end - self.at < length + 2 {
            self.fill();
        }
        let bulk = self.at..self.at + length;
        self.at = bulk.end + 2;
        &self.buffer[bulk]
    }

    fn fill(&mut self) {
        if self.buffer.len() - self.end < 64 * 1024 {
            self.buffer.copy_within(self.at..self.end, 0);
            self.end -= self.at;
            self.at = 0;
        }
        let count = self.stream.read(&mut self.buffer[self.end..]).unwrap();
        assert!(count > 0, "Redis has closed the connection");
        self.end += count;
    }
}
