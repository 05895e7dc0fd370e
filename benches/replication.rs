//! How fast changes travel from Postgres into Redis, beside what `pg_recvlogical` reads from a copy of the same slot in
//! the same run.
//!
//! Absolute figures depend on the machine and on what else it does; the ratio of two neighbours in one run does not,
//! or much less. So each round runs every contestant in turn, each on its own copy of the slot, start-up included, and
//! the report gives the median of the ratios with their range. After each of the engine's runs all that Redis holds is
//! read back and compared with the table: every row, in commit order.
//!
//! ```text
//! scripts/bench replication [--rounds 3] [--single 300000] [--bulk 1000000] [--latency-seconds 20]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use futures_util::TryStreamExt;
use posduif::contract::keys::Keys;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamRangeReply, StreamReadOptions, StreamReadReply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_postgres::NoTls;
use tokio_postgres::types::PgLsn;

use support::{Process, Servers, stop};

/// Users who each have an inbox.
const USERS: i64 = 10_000;

/// Entries read back at once.
const PAGE: usize = 2_000;

/// The template's slot, which nobody reads; contestants read copies.
const BASE: &str = "bench_base";
const COPY: &str = "bench_copy";
const ENGINE: &str = "posduif";

#[derive(Debug, Parser)]
#[command(about = "The engine beside pg_recvlogical on copies of the same slot")]
struct Options {
    /// Rounds; each runs every contestant once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Transactions of one row; 0 leaves this workload out.
    #[arg(long, default_value_t = 300_000)]
    single: i64,
    /// Rows in transactions of 1,000; 0 leaves this workload out.
    #[arg(long, default_value_t = 1_000_000)]
    bulk: i64,
    /// Seconds at 1,000 commits a second; 0 leaves the latency out.
    #[arg(long, default_value_t = 20)]
    latency_seconds: u64,
    /// Runs only the engine and `pg_recvlogical` over TCP.
    #[arg(long)]
    short: bool,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    /// Decoding inside Postgres, nothing sent.
    Decode,
    /// `pg_recvlogical` into /dev/null.
    Receive { socket: bool, binary: bool },
    /// The engine; each row into `changes`, and with a rule into one of the inboxes.
    Engine { inboxes: bool },
    /// What the engine made Redis write to its append-only file, from memory into Redis again: what the server takes at
    /// most.
    Replay,
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Decode => "decoding in Postgres, binary",
            Self::Receive {
                socket: true,
                binary: false,
            } => "pg_recvlogical, socket, text",
            Self::Receive {
                socket: true,
                binary: true,
            } => "pg_recvlogical, socket, binary",
            Self::Receive {
                socket: false,
                binary: false,
            } => "pg_recvlogical, TCP, text",
            Self::Receive {
                socket: false,
                binary: true,
            } => "pg_recvlogical, TCP, binary",
            Self::Engine { inboxes: true } => "engine, changes and inbox",
            Self::Engine { inboxes: false } => "engine, changes only",
            Self::Replay => "Redis alone, changes and inbox",
        })
    }
}

/// What all are measured against.
const REFERENCE: Contestant = Contestant::Receive {
    socket: false,
    binary: true,
};

/// One run of one contestant.
#[derive(Debug, Clone, Copy)]
struct Run {
    rows_per_second: f64,
    /// CPU time in µs a row: walsender (or decoding session), reader, Redis.
    cpu: [f64; 3],
    /// Peak memory of the reader in KiB.
    peak_kib: u64,
}

struct Workload {
    name: &'static str,
    rows: i64,
    rows_per_transaction: i64,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let mut bench = Bench::prepare().await;
    println!(
        "{} on {} CPUs, {}, Redis {} (appendonly, everysec)\n",
        bench.versions().await,
        std::thread::available_parallelism().map_or(0, usize::from),
        std::env::consts::ARCH,
        bench.redis_version().await
    );
    let workloads = [
        Workload {
            name: "transactions of one row",
            rows: options.single,
            rows_per_transaction: 1,
        },
        Workload {
            name: "transactions of 1,000 rows",
            rows: options.bulk / 1000 * 1000,
            rows_per_transaction: 1000,
        },
    ];
    let mut contestants = vec![
        REFERENCE,
        Contestant::Engine { inboxes: true },
        Contestant::Replay,
        Contestant::Engine { inboxes: false },
    ];
    if !options.short {
        contestants.extend([
            Contestant::Receive {
                socket: true,
                binary: true,
            },
            Contestant::Receive {
                socket: true,
                binary: false,
            },
            Contestant::Decode,
        ]);
    }
    for workload in workloads.iter().filter(|workload| workload.rows > 0) {
        bench.measure(workload, &contestants, options.rounds).await;
    }
    if options.latency_seconds > 0 {
        bench.latency(Duration::from_secs(options.latency_seconds)).await;
    }
}

struct Bench {
    servers: Servers,
    sql: tokio_postgres::Client,
    binaries: PathBuf,
    /// What Redis held when the slot stood at its base.
    template: PathBuf,
    next_row: i64,
    /// What the last run with inboxes wrote to the append-only file.
    written: Vec<u8>,
}

impl Bench {
    /// Servers of our own, a tenant with its users, and a state from which every run starts.
    async fn prepare() -> Self {
        let servers = Servers::start().await;
        let sql = servers.connect_sql().await;
        sql.batch_execute(include_str!("replication.sql")).await.unwrap();
        sql.execute("CALL tenant_bench.add_users($1)", &[&USERS]).await.unwrap();
        Self {
            binaries: binaries(),
            template: servers.folder.0.join("template"),
            servers,
            sql,
            next_row: 0,
            written: Vec::new(),
        }
    }

    /// Lets an engine make slot, streams and checkpoint, and keeps all of it as what every run starts from.
    async fn settle(&mut self) {
        self.drop_slot(BASE).await;
        self.drop_slot(ENGINE).await;
        self.servers.redis.kill().await.unwrap();
        clear(&self.servers.folder.0.join("redis"));
        self.servers.redis.restart().await.unwrap();
        let mut engine = self.start_engine(true);
        self.wait(|_| true).await;
        let lsn = self.mark().await;
        self.wait(|state| state.acknowledged >= lsn).await;
        stop(&mut engine).await;
        self.servers.redis.stop().await.unwrap();
        clear(&self.template);
        copy(&self.servers.folder.0.join("redis"), &self.template);
        self.servers.redis.restart().await.unwrap();
        self.copy_slot(ENGINE, BASE).await;
    }

    /// Takes Redis and the engine's slot back to what was kept.
    async fn reset(&mut self) {
        self.drop_slot(ENGINE).await;
        self.copy_slot(BASE, ENGINE).await;
        self.servers.redis.kill().await.unwrap();
        clear(&self.servers.folder.0.join("redis"));
        copy(&self.template, &self.servers.folder.0.join("redis"));
        self.servers.redis.restart().await.unwrap();
    }

    async fn versions(&self) -> String {
        let row = self.sql.query_one("SHOW server_version", &[]).await.unwrap();
        format!("PostgreSQL {}", row.get::<_, String>(0))
    }

    async fn redis_version(&self) -> String {
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut self.connect().await)
            .await
            .unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Writes one workload, then lets every contestant read it in each round.
    async fn measure(&mut self, workload: &Workload, contestants: &[Contestant], rounds: usize) {
        let Workload {
            name,
            rows,
            rows_per_transaction,
        } = *workload;
        self.settle().await;
        let first = self.next_row + 1;
        self.next_row += rows;
        self.sql
            .execute(
                "CALL tenant_bench.write($1, $2, $3)",
                &[&first, &self.next_row, &rows_per_transaction],
            )
            .await
            .unwrap();
        let end = self.mark().await;
        let expected = self.expected(first).await;
        println!("{rows} rows in {name}");
        let mut runs: HashMap<String, Vec<Run>> = HashMap::new();
        for round in 1..=rounds {
            for contestant in contestants {
                self.copy_slot(BASE, COPY).await;
                let run = match *contestant {
                    Contestant::Decode => self.decode(end, rows).await,
                    Contestant::Replay => self.replay(rows).await,
                    Contestant::Receive { socket, binary } => self.receive(socket, binary, end, rows).await,
                    Contestant::Engine { inboxes } => self.run_engine(inboxes, end, rows, &expected).await,
                };
                eprintln!("  round {round}: {contestant}: {:.0} rows/s", run.rows_per_second);
                self.drop_slot(COPY).await;
                runs.entry(contestant.to_string()).or_default().push(run);
            }
        }
        report(contestants, &runs);
        println!(
            "  complete and in order: {} rows, checksum {:016x}\n",
            expected.count, expected.ordered
        );
    }

    async fn decode(&self, end: PgLsn, rows: i64) -> Run {
        let pid: i32 = self.sql.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let (start, before) = (Instant::now(), Process::of(pid.unsigned_abs()));
        let query = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, $2, NULL, 'proto_version', '1', \
                     'publication_names', 'posduif', 'messages', 'true', 'binary', 'true')";
        self.sql.query_one(query, &[&COPY, &end]).await.unwrap();
        let time = start.elapsed();
        let after = Process::of(pid.unsigned_abs());
        run(rows, time, [after.cpu - before.cpu, Duration::ZERO, Duration::ZERO], 0)
    }

    async fn receive(&self, socket: bool, binary: bool, end: PgLsn, rows: i64) -> Run {
        let url = self.servers.postgres.url();
        let place = if socket {
            let (credentials, database) = url
                .rsplit_once('@')
                .map(|(a, b)| (a, b.rsplit_once('/').unwrap().1))
                .unwrap();
            format!(
                "{credentials}@/{database}?host={}&port={}",
                self.servers.folder.0.display(),
                self.servers.postgres.port()
            )
        } else {
            url
        };
        let start = Instant::now();
        let mut command = Command::new(self.binaries.join("pg_recvlogical"));
        command.args(["--start", "--no-loop", "-f", "/dev/null", "-S", COPY, "-d", &place]);
        command.args([
            "-E",
            &end.to_string(),
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=posduif",
        ]);
        command.args([
            "-o",
            "messages=true",
            "-o",
            if binary { "binary=true" } else { "binary=false" },
        ]);
        let mut child = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let sender = self.sender(COPY).await;
        let reader = child.id().unwrap();
        let (mut sender_now, mut reader_now) = (Process::default(), Process::default());
        let status = loop {
            sender_now.look(sender);
            reader_now.look(reader);
            if let Ok(status) = tokio::time::timeout(Duration::from_millis(5), child.wait()).await {
                break status.unwrap();
            }
        };
        assert!(status.success(), "pg_recvlogical failed: {status}");
        let cpu = [sender_now.cpu, reader_now.cpu, Duration::ZERO];
        run(rows, start.elapsed(), cpu, reader_now.peak_kib)
    }

    async fn run_engine(&mut self, inboxes: bool, end: PgLsn, rows: i64, expected: &Expected) -> Run {
        self.reset().await;
        let redis = self.servers.redis.pid().unwrap();
        let redis_before = Process::of(redis);
        let start = Instant::now();
        let mut engine = self.start_engine(inboxes);
        let sender = self.sender(ENGINE).await;
        self.wait(|state| state.published >= end).await;
        let time = start.elapsed();
        let (walsender, reader) = (Process::of(sender), Process::of(engine.id().unwrap()));
        let redis_cpu = Process::of(redis).cpu - redis_before.cpu;
        stop(&mut engine).await;
        self.verify(inboxes, expected).await;
        if inboxes {
            let (kept, file) = (
                append_only_file(&self.template),
                append_only_file(&self.servers.folder.0.join("redis")),
            );
            self.written = std::fs::read(file).unwrap();
            self.written.drain(..std::fs::read(kept).unwrap().len());
        }
        run(rows, time, [walsender.cpu, reader.cpu, redis_cpu], reader.peak_kib)
    }

    async fn replay(&mut self, rows: i64) -> Run {
        self.reset().await;
        let redis = self.servers.redis.pid().unwrap();
        let redis_before = Process::of(redis).cpu;
        let stream = TcpStream::connect(("127.0.0.1", self.servers.redis.port()))
            .await
            .unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let url = self.servers.redis.url();
        let (login, _) = url.trim_start_matches("redis://").split_once('@').unwrap();
        let (user, password) = login.split_once(':').unwrap();
        let login = format!("AUTH {user} {password}\r\n");
        let start = Instant::now();
        let written = std::mem::take(&mut self.written);
        let writing = tokio::spawn(async move {
            writer.write_all(login.as_bytes()).await.unwrap();
            writer.write_all(&written).await.unwrap();
            writer.write_all(b"ECHO the-end\r\n").await.unwrap();
        });
        let mut replies = Vec::new();
        while !replies.ends_with(b"the-end\r\n") {
            let old = replies.len().saturating_sub(16);
            replies.drain(..old);
            reader.read_buf(&mut replies).await.unwrap();
        }
        let time = start.elapsed();
        writing.await.unwrap();
        let redis_cpu = Process::of(redis).cpu - redis_before;
        run(rows, time, [Duration::ZERO, Duration::ZERO, redis_cpu], 0)
    }

    fn start_engine(&self, inboxes: bool) -> Child {
        let config = self
            .servers
            .folder
            .0
            .join(if inboxes { "inboxes.yaml" } else { "changes.yaml" });
        let routes = if inboxes {
            "routes: [{ table: events, to: [user_id], event: change }]\n"
        } else {
            ""
        };
        std::fs::write(&config, routes).unwrap();
        self.servers
            .engine("replicator")
            .arg("--config")
            .arg(&config)
            .env("POSDUIF__STREAMS__CHANGES_ENTRIES_MAX", "100000000")
            .spawn()
            .unwrap()
    }

    /// Reads back what Redis holds and compares it with the table.
    async fn verify(&mut self, inboxes: bool, expected: &Expected) {
        let mut redis = self.connect().await;
        let keys = Keys::new(&self.servers.config.redis.prefix);
        let mut found = Expected::default();
        read(&mut redis, &keys.changes("bench"), |row| found.add(row)).await;
        assert_eq!(&found, expected, "the stream of changes is not what the table holds");
        if inboxes {
            let mut found = Expected::default();
            for user in 1..=USERS {
                let user = format!("00000000-0000-4000-8000-{user:012x}");
                read(&mut redis, &keys.inbox("bench", &user), |row| found.add(row)).await;
            }
            assert_eq!(
                (found.count, found.unordered),
                (expected.count, expected.unordered),
                "inboxes"
            );
        }
    }

    /// What the table says must have come from this row on.
    async fn expected(&self, first: i64) -> Expected {
        let query = "SELECT id, user_id::text, body FROM tenant_bench.events WHERE id >= $1 ORDER BY id";
        let rows = self.sql.query_raw(query, [first]).await.unwrap();
        let mut rows = std::pin::pin!(rows);
        let mut expected = Expected::default();
        while let Some(row) = rows.try_next().await.unwrap() {
            expected.add(Row {
                id: row.get(0),
                user_id: row.get(1),
                body: row.get(2),
            });
        }
        expected
    }

    /// Time from commit to a blocked reader of the stream, at 1,000 commits a second.
    async fn latency(&mut self, duration: Duration) {
        const WRITERS: i64 = 8;
        self.settle().await;
        let mut engine = self.start_engine(true);
        let lsn = self.mark().await;
        self.wait(|state| state.published >= lsn).await;

        let deadline = Instant::now() + duration;
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..WRITERS {
            let url = self.servers.postgres.url();
            let first = self.next_row + 1 + number;
            writers.spawn(async move {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
                tokio::spawn(connection);
                let insert = "INSERT INTO tenant_bench.events SELECT * FROM tenant_bench.make($1)";
                let insert = client.prepare(insert).await.unwrap();
                let mut ticks = tokio::time::interval(Duration::from_millis(WRITERS.unsigned_abs()));
                let mut written = 0_usize;
                while Instant::now() < deadline {
                    ticks.tick().await;
                    let id = first + WRITERS * i64::try_from(written).unwrap();
                    client.execute(&insert, &[&id]).await.unwrap();
                    written += 1;
                }
                written
            });
        }
        let reader = tokio::spawn(follow(
            self.connect().await,
            Keys::new(&self.servers.config.redis.prefix).changes("bench"),
            deadline + Duration::from_secs(1),
        ));
        let before = (Process::of(engine.id().unwrap()).cpu, Instant::now());
        let written: usize = writers.join_all().await.into_iter().sum();
        let share = (Process::of(engine.id().unwrap()).cpu - before.0).as_secs_f64() / before.1.elapsed().as_secs_f64();
        let mut latencies = reader.await.unwrap();
        stop(&mut engine).await;
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies[index.min(latencies.len() - 1)] as f64 / 1000.0
        };
        println!(
            "commit to stream at {:.0} commits/s for {} s",
            written as f64 / duration.as_secs_f64(),
            duration.as_secs()
        );
        println!(
            "  p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; {} of {written} seen; engine {:.1} % of a core\n",
            at(0.50),
            at(0.99),
            at(1.0),
            latencies.len(),
            100.0 * share
        );
        assert_eq!(latencies.len(), written, "not every commit was seen");
    }

    /// A place in the log behind all that was written so far.
    async fn mark(&self) -> PgLsn {
        let query = "SELECT pg_logical_emit_message(true, 'bench', '')";
        self.sql.query_one(query, &[]).await.unwrap().get(0)
    }

    async fn copy_slot(&self, from: &str, to: &str) {
        let query = "SELECT pg_copy_logical_replication_slot($1, $2)";
        self.sql.query_one(query, &[&from, &to]).await.unwrap();
    }

    async fn drop_slot(&self, slot: &str) {
        // The walsender of a reader that has gone may hold it for a moment.
        let query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        while let Err(error) = self.sql.query(query, &[&slot]).await {
            assert!(error.to_string().contains("db error"), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The process that sends from a slot.
    async fn sender(&self, slot: &str) -> u32 {
        let query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
        loop {
            let rows = self.sql.query(query, &[&slot]).await.unwrap();
            if let Some(pid) = rows.first().and_then(|row| row.get::<_, Option<i32>>(0)) {
                return pid.unsigned_abs();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.servers.redis.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    async fn state(&self, redis: &mut MultiplexedConnection) -> Option<State> {
        let key = Keys::new(&self.servers.config.redis.prefix).checkpoint();
        let fields: (Option<String>, Option<String>) = redis.hmget(&key, &["end_lsn", "acknowledged"]).await.unwrap();
        let lsn = |text: Option<String>| text.and_then(|text| text.parse().ok());
        Some(State {
            published: lsn(fields.0)?,
            acknowledged: lsn(fields.1)?,
        })
    }

    async fn wait(&self, done: impl Fn(&State) -> bool) {
        let mut redis = self.connect().await;
        while !self.state(&mut redis).await.as_ref().is_some_and(&done) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What the checkpoint says.
struct State {
    published: PgLsn,
    acknowledged: PgLsn,
}

#[derive(serde::Deserialize)]
struct Row {
    id: i64,
    user_id: String,
    body: String,
}

/// Checksums over rows: one that depends on their order, one that does not.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    count: u64,
    ordered: u64,
    unordered: u64,
}

impl Expected {
    fn add(&mut self, row: Row) {
        // FNV-1a.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in row
            .id
            .to_be_bytes()
            .iter()
            .chain(row.user_id.as_bytes())
            .chain(row.body.as_bytes())
        {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.count += 1;
        self.unordered = self.unordered.wrapping_add(hash);
        self.ordered = self.ordered.rotate_left(5).wrapping_mul(0x0100_0000_01b3) ^ hash;
    }
}

/// The table of an entry: a field in `changes`, the third part of the head elsewhere.
fn table(entry: &redis::streams::StreamId) -> Option<String> {
    entry.get("table").or_else(|| {
        let head: serde_json::Value = serde_json::from_str(&entry.get::<String>("head")?).unwrap();
        head[2].as_str().map(str::to_owned)
    })
}

async fn read(redis: &mut MultiplexedConnection, key: &str, mut take: impl FnMut(Row)) {
    let mut from = "-".to_owned();
    loop {
        let page: StreamRangeReply = redis.xrange_count(key, &from, "+", PAGE).await.unwrap();
        for entry in &page.ids {
            if table(entry).as_deref() == Some("events") {
                take(serde_json::from_str(&entry.get::<String>("row").unwrap()).unwrap());
            }
        }
        match page.ids.last() {
            Some(last) if page.ids.len() == PAGE => from = format!("({}", last.id),
            _ => return,
        }
    }
}

/// Ages of entries when a blocked reader gets them, in µs.
async fn follow(mut redis: MultiplexedConnection, key: String, deadline: Instant) -> Vec<i64> {
    let mut last = "$".to_owned();
    let mut ages = Vec::new();
    let options = StreamReadOptions::default().block(200).count(1000);
    while Instant::now() < deadline {
        let reply: Option<StreamReadReply> = redis.xread_options(&[&key], &[&last], &options).await.unwrap();
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
        for entry in reply
            .iter()
            .flat_map(|reply| &reply.keys)
            .flat_map(|stream| &stream.ids)
        {
            ages.push(now - entry.get::<i64>("ts").unwrap());
            last.clone_from(&entry.id);
        }
    }
    ages
}

fn run(rows: i64, time: Duration, cpu: [Duration; 3], peak_kib: u64) -> Run {
    let rows = rows as f64;
    Run {
        rows_per_second: rows / time.as_secs_f64(),
        cpu: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / rows),
        peak_kib,
    }
}

fn report(contestants: &[Contestant], runs: &HashMap<String, Vec<Run>>) {
    println!(
        "  {:32} {:>9}  {:>24}  µs CPU a row: sender, reader, Redis   peak",
        "", "rows/s", "of the reference (range)"
    );
    let reference = &runs[&REFERENCE.to_string()];
    for contestant in contestants {
        let own = &runs[&contestant.to_string()];
        let mut ratios: Vec<f64> = own
            .iter()
            .zip(reference)
            .map(|(own, other)| own.rows_per_second / other.rows_per_second)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let median = |of: &dyn Fn(&Run) -> f64| {
            let mut values: Vec<f64> = own.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let peak = own.iter().map(|run| run.peak_kib).max().unwrap_or(0);
        println!(
            "  {contestant:32} {:>9.0}      {:>6.2} ({:.2} to {:.2})  {:>13.1} {:>9.1} {:>9.1}  {:>6.1} MiB",
            median(&|run| run.rows_per_second),
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1],
            median(&|run| run.cpu[0]),
            median(&|run| run.cpu[1]),
            median(&|run| run.cpu[2]),
            peak as f64 / 1024.0,
        );
    }
    std::io::stdout().flush().unwrap();
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status();
    assert!(status.unwrap().success());
}

/// Empties a folder, which others may hold open.
fn clear(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        }
        .unwrap();
    }
}

/// The part of Redis' append-only file that grows.
fn append_only_file(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("appendonlydir")).unwrap();
    let mut paths = files.map(|entry| entry.unwrap().path());
    paths
        .find(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .unwrap()
}

fn binaries() -> PathBuf {
    let output = std::process::Command::new("pg_config").arg("--bindir").output();
    let stated = output.ok().filter(|output| output.status.success());
    let stated = stated.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let candidates = stated.into_iter().chain(
        (14..=18)
            .rev()
            .map(|major| format!("/usr/lib/postgresql/{major}/bin").into()),
    );
    candidates
        .into_iter()
        .find(|folder| folder.join("pg_recvlogical").exists())
        .expect("pg_recvlogical is not installed: it comes with the Postgres client programs")
}
