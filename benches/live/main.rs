//! What tens of thousands of open event streams cost, and how fast they deliver, beside nginx with Nchan.
//!
//! The clients are raw sockets in processes of their own, one for each server, since a process may hold only so many
//! descriptors. Each speaks for a device of its own that has synced before. Measured are, in this order: what a silent
//! connection takes of the engine and of the kernel; whether all stay for a while; how fast one event reaches all, in turn
//! with nginx and Nchan where they are installed; how long after its commit a row reaches its one reader, of so many
//! rows a second to as many readers; and reconnect storms, with how many statements Postgres got meanwhile.
//!
//! ```text
//! scripts/bench live [--connections 18000] [--rounds 3] [--events 10] [--commits 1000] [--idle-seconds 30] [--spread-seconds 10]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod nchan;
#[path = "../support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use posduif::contract::keys::Keys;
use tokio_postgres::NoTls;

use self::client::{Answer, Command, Peer, now_us};
use self::nchan::Nchan;
use self::support::{Process, Servers, TENANT, spread, stop};

#[derive(Debug, Parser)]
#[command(about = "Open event streams beside nginx with Nchan")]
struct Options {
    /// Connections to each server.
    #[arg(long, default_value_t = 18_000)]
    connections: usize,
    /// Rounds of the fan-out; each runs every contestant once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events to all in a round, each when all have the one before.
    #[arg(long, default_value_t = 10)]
    events: usize,
    /// Commits in about one second, each to another reader.
    #[arg(long, default_value_t = 1_000)]
    commits: usize,
    /// How long the connections are left alone.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Over how long the clients of a storm begin.
    #[arg(long, default_value_t = 10)]
    spread_seconds: u64,
    /// Workers of nginx; one for each CPU by default.
    #[arg(long)]
    workers: Option<usize>,
    /// Leaves nginx out.
    #[arg(long)]
    alone: bool,
    /// Plays the clients.
    #[arg(long, hide = true)]
    client: bool,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if options.client {
        return client::run();
    }
    posduif::http::descriptors::raise_descriptor_limit().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut bench = Bench::prepare(&options).await;
        println!(
            "{} connections, {} CPUs, load {}\n",
            options.connections,
            std::thread::available_parallelism().map_or(0, usize::from),
            load()
        );
        bench.run(&options).await;
    });
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A process that plays all clients of one server.
struct Clients {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Clients {
    fn start() -> Self {
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .arg("--client")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            commands: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    fn tell(&mut self, command: &Command) -> Answer {
        writeln!(self.commands, "{}", serde_json::to_string(command).unwrap()).unwrap();
        self.commands.flush().unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the clients' process answers")
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Bench {
    servers: Servers,
    sql: tokio_postgres::Client,
    engine: tokio::process::Child,
    address: SocketAddr,
    clients: Clients,
}

impl Bench {
    async fn prepare(options: &Options) -> Self {
        let servers = Servers::start_with(&[
            ("shared_preload_libraries", "pg_stat_statements"),
            ("pg_stat_statements.max", "1000"),
        ])
        .await;
        let (engine, address) = start(&servers, options).await;
        let sql = servers.connect_sql().await;
        sql.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
        let bench = Self {
            servers,
            sql,
            engine,
            address,
            clients: Clients::start(),
        };
        bench.populate(options.connections as i64).await;
        bench
    }

    /// As many users as there are connections, each with a device that has all there is.
    async fn populate(&self, count: i64) {
        for statement in [
            "INSERT INTO tenant_bench.users (id, username, user_type) \
             SELECT md5('user ' || n)::uuid, 'user ' || n, 'mobile' FROM generate_series(0, $1::bigint) n",
            "INSERT INTO tenant_bench.devices (device_id, user_id) \
             SELECT 'd' || n, md5('user ' || n)::uuid FROM generate_series(1, $1::bigint) n",
            "INSERT INTO posduif.devices (tenant, device_id, user_id, token_hash, first_used_at) \
             SELECT 'bench', 'd' || n, md5('user ' || n)::uuid, sha256(convert_to('token-' || n, 'UTF8')), now() \
             FROM generate_series(1, $1::bigint) n",
        ] {
            self.sql.execute(statement, &[&count]).await.unwrap();
        }
        self.servers.published(&self.sql).await;
        let keys = Keys::new(&self.servers.config.redis.prefix);
        let mut redis = self.servers.connect_redis().await;
        let (epoch, published): (String, String) = redis::cmd("HMGET")
            .arg(keys.checkpoint())
            .arg(&["epoch", "published"])
            .query_async(&mut redis)
            .await
            .unwrap();
        let mut pipe = redis::pipe();
        for number in 1..=count {
            pipe.hset_multiple(
                keys.device(TENANT, &format!("d{number}")),
                &[("epoch", &epoch), ("ack", &published)],
            )
            .ignore();
        }
        let () = pipe.query_async(&mut redis).await.unwrap();
    }

    /// Statements that Postgres has got so far, this one not counted.
    async fn statements(&self) -> i64 {
        let query = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements";
        self.sql.query_one(query, &[]).await.unwrap().get(0)
    }

    async fn run(&mut self, options: &Options) {
        let nchan = if options.alone {
            None
        } else {
            Nchan::start(&self.servers.folder.0, options.workers).await
        };
        let mut nchan = nchan.map(|nchan| (nchan, Clients::start()));
        if nchan.is_none() {
            println!("nginx with Nchan is not installed or left out (Debian: nginx, libnginx-mod-nchan)\n");
        }
        self.connect(options, &mut nchan).await;
        self.leave_alone(options, &mut nchan).await;
        self.fan_out(options, &mut nchan).await;
        drop(nchan);
        self.commits(options).await;
        self.storms(options).await;
        stop(&mut self.engine).await;
    }

    fn open(&mut self, count: usize, spread: Duration) -> Answer {
        let answer = self.clients.tell(&Command::Open {
            peer: Peer::Posduif,
            address: self.address,
            count,
            spread_ms: spread.as_millis() as u64,
        });
        assert_eq!(
            (answer.open, answer.failed, answer.ended),
            (count as u64, 0, 0),
            "{:?}",
            answer.failure
        );
        answer
    }

    /// Opens all connections, and tells what they take.
    async fn connect(&mut self, options: &Options, nchan: &mut Option<(Nchan, Clients)>) {
        let count = options.connections;
        let spread = Duration::from_secs(options.spread_seconds);
        let engine = self.engine.id().unwrap();
        let per = |kib: u64, before: u64| kib.saturating_sub(before) as f64 / count as f64;
        let (resident, kernel) = (Process::of(engine).resident_kib, kernel_kib());
        let opened = self.open(count, spread);
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!(
            "posduif: {count} connected in {:.1} s, the slowest in {} ms; {:.2} KiB of the engine each ({:.1} MiB before), \
             {:.1} KiB of the kernel for both ends",
            opened.took_ms as f64 / 1000.0,
            opened.slowest_ms,
            per(Process::of(engine).resident_kib, resident),
            resident as f64 / 1024.0,
            per(kernel_kib(), kernel)
        );
        if let Some((nchan, clients)) = nchan {
            let (resident, kernel) = (nchan.resident_kib(), kernel_kib());
            let opened = clients.tell(&Command::Open {
                peer: Peer::Nchan,
                address: nchan.address,
                count,
                spread_ms: spread.as_millis() as u64,
            });
            assert_eq!(opened.open, count as u64, "{:?}", opened.failure);
            tokio::time::sleep(Duration::from_secs(2)).await;
            println!(
                "Nchan:   {count} connected in {:.1} s, the slowest in {} ms; {:.2} KiB of nginx each, {:.1} KiB of the kernel \
                 for both ends",
                opened.took_ms as f64 / 1000.0,
                opened.slowest_ms,
                per(nchan.resident_kib(), resident),
                per(kernel_kib(), kernel)
            );
        }
    }

    /// Leaves the connections alone, and tells whether all are there still.
    async fn leave_alone(&mut self, options: &Options, nchan: &mut Option<(Nchan, Clients)>) {
        self.clients.tell(&Command::Forget);
        let engine = self.engine.id().unwrap();
        let cpu = Process::of(engine).cpu;
        tokio::time::sleep(Duration::from_secs(options.idle_seconds)).await;
        let answer = self.clients.tell(&Command::Look);
        let cpu = Process::of(engine).cpu.saturating_sub(cpu);
        println!(
            "posduif: after {} s of silence {} are open and {} have ended; each has had {} heartbeats or more; CPU {:.1} %",
            options.idle_seconds,
            answer.open,
            answer.ended,
            answer.beats_min,
            100.0 * cpu.as_secs_f64() / options.idle_seconds.max(1) as f64
        );
        assert_eq!(answer.ended, 0, "{:?}", answer.failure);
        if let Some((_, clients)) = nchan {
            let answer = clients.tell(&Command::Look);
            println!("Nchan:   {} are open and {} have ended", answer.open, answer.ended);
        }
        println!();
    }

    /// One event to all, again and again, in turn.
    async fn fan_out(&mut self, options: &Options, nchan: &mut Option<(Nchan, Clients)>) {
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            let rate = self.round(options).await;
            print!("round {round}: posduif {rate}");
            ours.push(rate.per_second());
            if let Some((nchan, clients)) = nchan {
                let rate = nchan.round(options, clients).await;
                let ratio = ours.last().unwrap() / rate.per_second();
                print!(", Nchan {rate}, ratio {ratio:.2}");
                theirs.push(rate.per_second());
                ratios.push(ratio);
            }
            println!();
        }
        println!(
            "one event to all, events a second, median (range): posduif {}, Nchan {}; posduif of Nchan {}\n",
            spread(&mut ours, 0),
            spread(&mut theirs, 0),
            spread(&mut ratios, 2)
        );
    }

    async fn round(&mut self, options: &Options) -> Rate {
        let engine = self.engine.id().unwrap();
        let cpu = Process::of(engine).cpu;
        let insert = format!(
            "INSERT INTO tenant_{TENANT}.outbox (event, recipients, data) \
             VALUES ('announcement', '\"tenant\"', '{}')",
            nchan::CONTENT
        );
        let mut rate = Rate::default();
        for _ in 0..options.events {
            self.clients.tell(&Command::Forget);
            let begun = now_us();
            self.sql.batch_execute(&insert).await.unwrap();
            let events = options.connections as u64;
            rate.add(&self.clients.tell(&Command::Await { events }), begun, events);
        }
        rate.cpu = Process::of(engine).cpu.saturating_sub(cpu);
        rate
    }

    /// Rows to distinct readers, evenly over one second, and how long each took.
    async fn commits(&mut self, options: &Options) {
        self.clients.tell(&Command::Forget);
        let count = options.commits.min(options.connections);
        let insert = "INSERT INTO tenant_bench.messages (sender_id, recipient_id, content) \
                      VALUES (md5('user 0')::uuid, md5('user ' || $1::bigint)::uuid, 'hello') RETURNING id::text";
        // Several sessions, so that one slow commit does not hold up the next.
        const SESSIONS: usize = 8;
        let mut writers = tokio::task::JoinSet::new();
        let begun = Instant::now() + Duration::from_millis(200);
        for session in 0..SESSIONS {
            let url = self.servers.postgres.url();
            writers.spawn(async move {
                let (sql, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
                let driving = tokio::spawn(connection);
                let insert = sql.prepare(insert).await.unwrap();
                let mut written = Vec::new();
                for number in (session..count).step_by(SESSIONS) {
                    let due = begun + Duration::from_secs(1) * number as u32 / count as u32;
                    tokio::time::sleep_until(due.into()).await;
                    let asked = now_us();
                    let id: String = sql.query_one(&insert, &[&(number as i64 + 1)]).await.unwrap().get(0);
                    written.push((id, asked));
                }
                driving.abort();
                written
            });
        }
        let written: Vec<(String, u64)> = writers.join_all().await.into_iter().flatten().collect();
        let took = begun.elapsed();
        let events = count as u64;
        self.clients.tell(&Command::Await { events });
        let answer = self.clients.tell(&Command::Tell);
        let mut received: HashMap<String, u64> = HashMap::new();
        for (id, at) in answer.received {
            assert!(received.insert(id, at).is_none(), "a message was delivered twice");
        }
        let mut latencies: Vec<u64> = written
            .iter()
            .map(|(id, asked)| {
                received
                    .get(id)
                    .expect("a message did not reach its reader")
                    .saturating_sub(*asked)
            })
            .collect();
        latencies.sort_unstable();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
        println!(
            "{count} rows to {count} readers in {:.2} s: all came; from the INSERT to the client p50 {:.1} ms, p99 {:.1} ms, \
             the last {:.1} ms; {} connections open, {} ended\n",
            took.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(1.0),
            answer.open,
            answer.ended
        );
    }

    /// All go and come back behind their last ids: fewer and all, then all to an engine that has just begun.
    async fn storms(&mut self, options: &Options) {
        let spread = Duration::from_secs(options.spread_seconds);
        let (before, begun) = (self.statements().await, Instant::now());
        tokio::time::sleep(Duration::from_secs(5)).await;
        let idle = (self.statements().await - before) as f64 / begun.elapsed().as_secs_f64();
        println!("statements a second without a storm: {idle:.1}");
        for (count, is_cold) in [
            (options.connections / 10, false),
            (options.connections, false),
            (options.connections / 10, true),
            (options.connections, true),
        ] {
            self.clients.tell(&Command::Close);
            if is_cold {
                stop(&mut self.engine).await;
                (self.engine, self.address) = start(&self.servers, options).await;
                self.servers.published(&self.sql).await;
            }
            let (before, begun) = (self.statements().await, Instant::now());
            let opened = self.open(count, spread);
            let statements = (self.statements().await - before) as f64;
            println!(
                "storm of {count} {}: all back in {:.1} s, the slowest in {} ms, no error; {:.0} statements, {:.0} of them \
                 beyond those without a storm",
                if is_cold {
                    "to a new engine"
                } else {
                    "to the same engine"
                },
                opened.took_ms as f64 / 1000.0,
                opened.slowest_ms,
                statements,
                statements - idle * begun.elapsed().as_secs_f64()
            );
        }
        let engine = Process::of(self.engine.id().unwrap());
        println!("engine: {:.1} MiB at the end", engine.resident_kib as f64 / 1024.0);
    }
}

async fn start(servers: &Servers, options: &Options) -> (tokio::process::Child, SocketAddr) {
    let connections_max = (options.connections + 500).to_string();
    let settings = [
        ("POSDUIF__SERVER__CONNECTIONS_MAX", connections_max.clone()),
        ("POSDUIF__SERVER__CONNECTIONS_PER_ADDRESS_MAX", connections_max),
        ("POSDUIF__LOG__LEVEL", "warn".to_owned()),
    ];
    let (engine, address) = servers.serve(&settings).await;
    (engine, address.parse().unwrap())
}

/// Events that came, and how long they took.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    events: u64,
    bytes: u64,
    took: Duration,
    cpu: Duration,
}

impl Rate {
    fn add(&mut self, answer: &Answer, begun: u64, expected: u64) {
        assert_eq!(answer.events, expected, "events did not come, or twice");
        self.events += answer.events;
        self.bytes += answer.bytes;
        self.took += Duration::from_micros(answer.last_us.saturating_sub(begun));
    }

    fn per_second(self) -> f64 {
        self.events as f64 / self.took.as_secs_f64()
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}/s of {} bytes ({:.1} µs of CPU each)",
            self.per_second(),
            self.bytes / self.events.max(1),
            self.cpu.as_secs_f64() * 1e6 / self.events.max(1) as f64
        )
    }
}

/// What the kernel holds for sockets and whatever else is no process', in KiB.
fn kernel_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    kib("Slab:") + kib("KernelStack:") + kib("PageTables:")
}
