//! What several Redis servers publish beside one, in the same run.
//!
//! The rows of all tenants are in the log before an engine starts. It publishes them into one Redis, then, after the tenants
//! were moved, into one for each tenant. Each round runs both, start-up included; the report gives the rows per second, their ratio,
//! and the CPU time of each process for a row: on a machine with few cores these say what more cores or nodes would give.
//!
//! ```text
//! scripts/bench lanes [--rounds 3] [--lanes 3] [--rows 600000]
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use clap::Parser;
use posduif::config::Secret;
use posduif::config::lane::Lane;
use posduif::contract::keys::Keys;
use posduif::core::lane::MAIN;
use posduif::dev::{PrivateRedis, RedisOptions};
use posduif::postgres::{Database, tenants};
use serde_json::json;
use tokio_postgres::types::PgLsn;

use support::{Process, Servers, spread, stop};

/// Rows of a transaction.
const TRANSACTION: usize = 1000;

/// Users of each tenant, who have an inbox each.
const USERS: usize = 1000;

#[derive(Debug, Parser)]
#[command(about = "Several Redis servers beside one")]
struct Options {
    /// Rounds; each publishes into one Redis, and into all.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Lanes, each with a Redis of its own, and as many tenants.
    #[arg(long, default_value_t = 3)]
    lanes: usize,
    /// Rows of all tenants together.
    #[arg(long, default_value_t = 600_000)]
    rows: usize,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One run. CPU time in µs a row.
struct Run {
    rows_per_second: f64,
    engine: f64,
    walsenders: f64,
    redis: f64,
    peak_kib: u64,
}

struct Bench {
    servers: Servers,
    /// Of the lanes beside the main one.
    others: Vec<PrivateRedis>,
    database: Database,
    options: Options,
}

fn tenant(number: usize) -> String {
    format!("t{number}")
}

fn lane(number: usize) -> String {
    match number {
        0 => MAIN.to_owned(),
        number => format!("lane_{number}"),
    }
}

#[tokio::main]
async fn main() {
    let bench = Bench::prepare(Options::parse()).await;
    let (mut one, mut several, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        one.push(bench.run(false).await);
        several.push(bench.run(true).await);
        if let (Some(one), Some(several)) = (one.last(), several.last()) {
            ratios.push(several.rows_per_second / one.rows_per_second);
        }
    }
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{} rows of {} tenants in transactions of {TRANSACTION}, on {cpus} CPUs\n",
        bench.options.rows, bench.options.lanes
    );
    println!(
        "                     rows/s                     µs of CPU a row: engine   walsenders   Redis   peak memory"
    );
    for (name, runs) in [("one Redis", &one), ("one for each tenant", &several)] {
        let of = |value: fn(&Run) -> f64, decimals| spread(&mut runs.iter().map(value).collect::<Vec<_>>(), decimals);
        let peak = runs.iter().map(|run| run.peak_kib).max().unwrap_or_default() / 1024;
        println!(
            "{name:20} {:26} {:>24} {:>12} {:>7}   {peak} MiB",
            of(|run| run.rows_per_second, 0),
            of(|run| run.engine, 1),
            of(|run| run.walsenders, 1),
            of(|run| run.redis, 1),
        );
    }
    println!("\nratio of rows per second: {}", spread(&mut ratios, 2));
}

impl Bench {
    async fn prepare(options: Options) -> Self {
        let mut servers = Servers::start_with(&[("max_replication_slots", "32"), ("max_wal_senders", "32")]).await;
        let mut others = Vec::new();
        for number in 1..options.lanes {
            let folder = servers.folder.0.join(format!("redis-{number}"));
            let settings = RedisOptions::new().unwrap().setting("auto-aof-rewrite-percentage", "0");
            others.push(PrivateRedis::start(&folder, settings).await.unwrap());
        }
        servers.config.lanes = others
            .iter()
            .enumerate()
            .map(|(number, redis)| Lane {
                name: lane(number + 1),
                redis_url: Secret::new(redis.url()),
                ..Lane::default()
            })
            .collect();
        let database = Database::connect(&servers.config.postgres).await.unwrap();
        let sql = servers.connect_sql().await;
        for number in 0..options.lanes {
            let name = tenant(number);
            tenants::create(&database, &servers.config.replication, &name, MAIN)
                .await
                .unwrap();
            sql.batch_execute(&format!(
                "CREATE TABLE tenant_{name}.items (id bigserial PRIMARY KEY, owner uuid, body text);
                 INSERT INTO tenant_{name}.users (username, user_type)
                 SELECT 'user ' || n, 'mobile' FROM generate_series(1, {USERS}) n"
            ))
            .await
            .unwrap();
        }
        Self {
            servers,
            others,
            database,
            options,
        }
    }

    /// Publishes the rows, into one Redis or into all.
    async fn run(&self, apart: bool) -> Run {
        // An engine makes the slots, moves what has to be moved, and stops.
        for number in 0..self.options.lanes {
            let to = if apart { lane(number) } else { MAIN.to_owned() };
            tenants::move_to(&self.database, &tenant(number), &to).await.unwrap();
        }
        let mut engine = self.engine();
        self.published().await;
        stop(&mut engine).await;
        let sql = self.servers.connect_sql().await;
        let transactions = self.options.rows / TRANSACTION;
        for number in 0..transactions {
            let name = tenant(number % self.options.lanes);
            sql.batch_execute(&format!(
                "INSERT INTO tenant_{name}.items (owner, body)
                 SELECT id, repeat('x', 100) FROM tenant_{name}.users ORDER BY random() LIMIT {TRANSACTION}"
            ))
            .await
            .unwrap();
        }
        let redis_before = self.redis_cpu();
        let started = Instant::now();
        let mut engine = self.engine();
        let pid = engine.id().unwrap();
        let (mut process, mut walsenders) = (Process::of(pid), std::collections::HashMap::new());
        let publishing = self.published();
        tokio::pin!(publishing);
        loop {
            tokio::select! {
                () = &mut publishing => break,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            process.look(pid);
            for row in sql.query("SELECT pid FROM pg_stat_replication", &[]).await.unwrap() {
                let pid = u32::try_from(row.get::<_, i32>(0)).unwrap();
                walsenders.entry(pid).or_insert_with(|| Process::of(pid)).look(pid);
            }
        }
        let (seconds, rows) = (started.elapsed().as_secs_f64(), (transactions * TRANSACTION) as f64);
        process.look(pid);
        let of_row = |cpu: Duration| cpu.as_secs_f64() * 1e6 / rows;
        let run = Run {
            rows_per_second: rows / seconds,
            engine: of_row(process.cpu),
            walsenders: of_row(walsenders.values().map(|process| process.cpu).sum()),
            redis: of_row(self.redis_cpu() - redis_before),
            peak_kib: process.peak_kib,
        };
        stop(&mut engine).await;
        run
    }

    fn engine(&self) -> tokio::process::Child {
        let routes = json!([{"table": "items", "to": ["owner"], "event": "item"}]);
        let lanes = self.servers.config.lanes.iter();
        let lanes = lanes.map(|lane| json!({"name": lane.name, "redis_url": lane.redis_url.expose()}));
        self.servers
            .engine("replicator")
            .env("POSDUIF__ROUTES", routes.to_string())
            .env("POSDUIF__LANES", json!(lanes.collect::<Vec<_>>()).to_string())
            .spawn()
            .unwrap()
    }

    /// Waits until each lane has published all that is committed now.
    async fn published(&self) {
        let sql = self.servers.connect_sql().await;
        let emit = "SELECT pg_logical_emit_message(true, 'bench', '')";
        let target: PgLsn = sql.query_one(emit, &[]).await.unwrap().get(0);
        for (_, config) in self.servers.config.of_lanes().iter() {
            let client = redis::Client::open(config.redis.url.expose()).unwrap();
            let mut redis = client.get_multiplexed_async_connection().await.unwrap();
            let key = Keys::new(&config.redis.keys_prefix()).checkpoint();
            loop {
                let asking = redis::cmd("HGET")
                    .arg(&key)
                    .arg("end_lsn")
                    .query_async(&mut redis)
                    .await;
                // A busy Redis may not answer in time.
                let end: Option<String> = asking.unwrap_or_default();
                if end.is_some_and(|end| end.parse::<PgLsn>().unwrap() > target) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// CPU time of all Redis servers.
    fn redis_cpu(&self) -> Duration {
        let all = self.others.iter().chain([&self.servers.redis]);
        all.filter_map(PrivateRedis::pid).map(|pid| Process::of(pid).cpu).sum()
    }
}
