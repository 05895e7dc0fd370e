//! Random faults against an engine in a process of its own, with a second slot of Postgres as the oracle of each
//! stream.
//!
//! The suite runs about twenty seconds of it; `./scripts/faults --minutes 30 --seed 7` runs longer.

mod truth;
mod writers;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use posduif::accounts::users::UserType;
use posduif::config::{Config, Secret};
use posduif::dev::{PrivatePostgres, PrivateRedis};
use postgres_types::PgLsn;
use tokio::sync::watch;

use self::truth::{Deviation, Truth, compare};
use self::writers::{Office, Offices, Writers};
use crate::support::oracle::Oracle;
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::servers::{self, Own};
use crate::support::{Process, World, send_signal, send_signal_to_family, try_connect};

/// How long the engine may take for what is left when all faults are over.
const DRAIN: Duration = Duration::from_secs(90);

/// What is done to engine and servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    EngineKilled,
    EngineStopped,
    EngineRestarted,
    SecondEngine,
    RedisKilled,
    RedisStopped,
    RedisRestarted,
    RedisFull,
    RedisCut,
    RedisStalled,
    RedisAbandoned,
    RedisRefused,
    PowerLost,
    PostgresKilled,
    PostgresStopped,
    PostgresRestarted,
    PostgresCut,
    PostgresStalled,
    PostgresAbandoned,
    PostgresRefused,
    TenantAdded,
    ColumnAdded,
}

impl Fault {
    const ALL: [Self; 22] = [
        Self::EngineKilled,
        Self::EngineStopped,
        Self::EngineRestarted,
        Self::SecondEngine,
        Self::RedisKilled,
        Self::RedisStopped,
        Self::RedisRestarted,
        Self::RedisFull,
        Self::RedisCut,
        Self::RedisStalled,
        Self::RedisAbandoned,
        Self::RedisRefused,
        Self::PowerLost,
        Self::PostgresKilled,
        Self::PostgresStopped,
        Self::PostgresRestarted,
        Self::PostgresCut,
        Self::PostgresStalled,
        Self::PostgresAbandoned,
        Self::PostgresRefused,
        Self::TenantAdded,
        Self::ColumnAdded,
    ];
}

/// Sizes of Redis' append-only files at a moment.
type Sample = (Instant, BTreeMap<PathBuf, u64>);

/// A run. Fields are dropped in this order: the engines before what they stand on.
struct Run {
    engines: Vec<Process>,
    engine_config: Config,
    to_postgres: Proxy,
    to_redis: Proxy,
    world: World,
    redis: Own<PrivateRedis>,
    postgres: Own<PrivatePostgres>,
    log: PathBuf,
    offices: Offices,
    random: Random,
    is_long: bool,
    samples: Arc<Mutex<VecDeque<Sample>>>,
    /// Engines that were started, and those among them that took the place of one that had ended by itself.
    started: (u32, u32),
    columns: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_cause_no_loss_duplicate_or_reordering() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<f64>().unwrap());
    let minutes = number("POSDUIF_FAULTS_MINUTES");
    let seed = number("POSDUIF_FAULTS_SEED").map_or(1, |seed| seed as u64);
    let duration = Duration::from_secs_f64(minutes.map_or(20.0, |minutes| minutes * 60.0));

    let mut run = Run::new(seed, minutes.is_some()).await;
    let oracle = Oracle::new(&run.world).await;
    for number in 0..8 {
        run.add_tenant(&format!("office{number}")).await;
    }
    let url = run.world.config.postgres.url.expose().to_owned();
    let (until, target) = watch::channel(None);
    let truth = tokio::spawn(Truth::follow(oracle, url.clone(), run.world.keys(), target));
    // A long run commits more slowly, so that Redis can hold all of it until the end.
    let pause_ms = if duration > Duration::from_secs(300) { 100 } else { 15 };
    let writers = Writers::start(&url, &run.offices, &mut run.random, pause_ms);

    let counts = run.strike(duration, &writers).await;
    let scripts = writers.stop().await;
    let end = run.heal().await;
    let epochs = run.epochs().await;
    until.send_replace(Some(end));
    let truth = tokio::time::timeout(DRAIN, truth).await.unwrap().unwrap();

    println!(
        "faults, seed {seed}, {:.1} min, by kind:",
        duration.as_secs_f64() / 60.0
    );
    for (fault, count) in &counts {
        println!("  {count:>4} {fault:?}");
    }
    let (started, replaced) = run.started;
    println!(
        "{scripts} scripts, {} transactions, {} rows; {started} engines started, {replaced} for one that had ended by \
         itself; epochs: {epochs:?}",
        truth.transactions, truth.rows
    );
    let mut entries = 0;
    let mut deviations = BTreeMap::new();
    for (key, expected) in &truth.streams {
        let (found, deviation) = compare(&run.world, key, expected).await;
        entries += found;
        if deviation != Deviation::default() {
            deviations.insert(key, deviation);
        }
    }
    let sum = |of: fn(&Deviation) -> usize| deviations.values().map(of).sum::<usize>();
    println!(
        "{} streams, {entries} entries: lost {}, doubled {}, out of order {}, resets {}",
        truth.streams.len(),
        sum(|deviation| deviation.lost),
        sum(|deviation| deviation.doubled),
        sum(|deviation| deviation.out_of_order),
        sum(|deviation| deviation.resets),
    );
    assert!(truth.rows > 100, "the writers wrote next to nothing");
    assert!(
        deviations.is_empty(),
        "seed {seed}, log in {}: {deviations:#?}",
        run.log.display()
    );
    assert_eq!(epochs.len(), 1, "seed {seed}, log in {}: {epochs:?}", run.log.display());
    std::fs::remove_file(&run.log).unwrap();
}

impl Run {
    async fn new(seed: u64, is_long: bool) -> Self {
        let (postgres, redis) = tokio::join!(servers::postgres(), servers::redis());
        let world = World::on(&postgres.server.url(), &redis.server.url()).await;
        let to_postgres = Proxy::before(&postgres.server.url()).await;
        let to_redis = Proxy::before(&redis.server.url()).await;
        let mut config = world.config.clone();
        config.postgres.url = Secret::new(to_postgres.url(config.postgres.url.expose()));
        config.redis.url = Secret::new(to_redis.url(config.redis.url.expose()));
        // Small batches: more of them, and more transactions of several. Nothing is trimmed, for the comparison.
        config.replication.batch_changes_max = 50;
        config.replication.catalog_interval_seconds = 0;
        config.streams.inbox_entries_max = 100_000_000;
        config.streams.shared_entries_max = 100_000_000;
        config.streams.changes_entries_max = 100_000_000;
        if !is_long {
            config.replication.idle_timeout_seconds = 2;
            config.replication.wal_sender_timeout_seconds = 2;
            config.redis.response_timeout_seconds = 1;
        }
        let samples = Arc::default();
        tokio::spawn(sample(
            redis.folder().join("redis/appendonlydir"),
            Arc::downgrade(&samples),
        ));
        let mut run = Self {
            engines: Vec::new(),
            engine_config: config,
            to_postgres,
            to_redis,
            log: std::env::temp_dir().join(format!("posduif-faults-{seed}-{}.log", std::process::id())),
            world,
            redis,
            postgres,
            offices: Offices::default(),
            random: Random::new(seed),
            is_long,
            samples,
            started: (0, 0),
            columns: 0,
        };
        run.start_engine().await;
        run.world.published().await;
        run
    }

    async fn start_engine(&mut self) {
        let process = self
            .world
            .process_with("replicator", &self.engine_config, Some(&self.log))
            .await;
        self.engines.push(process);
        self.started.0 += 1;
    }

    /// Replaces engines that have exited by themselves, as a supervisor would.
    async fn supervise(&mut self) {
        let ended = self.engines.extract_if(.., |engine| engine.has_ended()).count();
        for _ in 0..ended {
            self.started.1 += 1;
            self.start_engine().await;
        }
    }

    async fn add_tenant(&mut self, name: &str) {
        self.world.tenant(name).await;
        let office = Office {
            tenant: name.to_owned(),
            sender: self.world.user(name, "sender", UserType::Web).await,
            recipients: [
                self.world.user(name, "one", UserType::Mobile).await,
                self.world.user(name, "two", UserType::Mobile).await,
            ],
        };
        self.offices.lock().unwrap().push(office);
    }

    /// Does one fault after the other until the time is up.
    async fn strike(&mut self, duration: Duration, writers: &Writers) -> BTreeMap<Fault, u32> {
        let start = Instant::now();
        let mut counts = BTreeMap::new();
        let mut deck: Vec<Fault> = Vec::new();
        while start.elapsed() < duration {
            // Each kind comes as often as the others, in ever new orders.
            if deck.is_empty() {
                deck.extend(Fault::ALL);
                self.random.shuffle(&mut deck);
            }
            let Some(fault) = deck.pop() else { continue };
            *counts.entry(fault).or_default() += 1;
            if self.is_long {
                println!(
                    "{:>7.1} s  {fault:?}, {} scripts so far",
                    start.elapsed().as_secs_f64(),
                    writers.committed()
                );
            }
            // Some do harm only to an engine that is busy. At times a second fault overlaps the others.
            let overlap = if matches!(fault, Fault::RedisFull | Fault::RedisCut | Fault::PowerLost) {
                let _ = self.catch_up(Duration::from_secs(15)).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
                6
            } else {
                self.random.below(6)
            };
            match overlap {
                0 => self.to_postgres.stall(),
                1 => self.to_redis.stall(),
                _ => {}
            }
            self.inflict(fault).await;
            self.to_postgres.resume();
            self.to_redis.resume();
            self.rest().await;
        }
        // At last those after which an engine must not simply go on, and no other fault that would mend what it did.
        for fault in [Fault::RedisCut, Fault::RedisFull, Fault::PowerLost] {
            *counts.entry(fault).or_default() += 1;
            let caught_up = self.catch_up(DRAIN).await;
            assert!(caught_up.is_some(), "not published; log in {}", self.log.display());
            tokio::time::sleep(Duration::from_millis(700)).await;
            self.inflict(fault).await;
        }
        counts
    }

    /// A time in which things go on as they are.
    async fn rest(&mut self) {
        let time = self.random.millis(50, if self.is_long { 2000 } else { 600 });
        tokio::time::sleep(time).await;
        self.supervise().await;
    }

    /// How long something is held up: at times beyond all timeouts.
    fn hold(&mut self) -> Duration {
        if self.random.one_in(6) {
            let seconds = if self.is_long { 10 } else { 3 };
            self.random.millis(seconds * 1000, seconds * 1200)
        } else {
            self.random.millis(50, if self.is_long { 3000 } else { 800 })
        }
    }

    async fn inflict(&mut self, fault: Fault) {
        let hold = self.hold();
        match fault {
            Fault::EngineKilled => {
                let index = self.random.below(self.engines.len());
                self.engines.swap_remove(index).kill().await;
                tokio::time::sleep(hold.min(Duration::from_millis(500))).await;
                if self.engines.is_empty() {
                    self.start_engine().await;
                }
            }
            Fault::EngineStopped => {
                let index = self.random.below(self.engines.len());
                let pid = self.engines[index].pid();
                send_signal(pid, Signal::SIGSTOP);
                tokio::time::sleep(hold).await;
                send_signal(pid, Signal::SIGCONT);
            }
            Fault::EngineRestarted => {
                let index = self.random.below(self.engines.len());
                self.engines.swap_remove(index).terminate().await;
                self.start_engine().await;
            }
            Fault::SecondEngine => {
                if self.engines.len() < 2 {
                    self.start_engine().await;
                }
                // The first one stalls, the second takes over, the first awakes.
                self.engines[0].signal(Signal::SIGSTOP);
                let seconds = self.engine_config.replication.wal_sender_timeout_seconds;
                tokio::time::sleep(Duration::from_secs(seconds + 1)).await;
                self.engines[0].signal(Signal::SIGCONT);
            }
            Fault::RedisKilled => {
                self.redis.server.kill().await.unwrap();
                tokio::time::sleep(hold.min(Duration::from_secs(2))).await;
                self.redis.server.restart().await.unwrap();
            }
            Fault::RedisStopped => {
                let pid = self.redis.server.pid().unwrap();
                send_signal(pid, Signal::SIGSTOP);
                tokio::time::sleep(hold).await;
                send_signal(pid, Signal::SIGCONT);
            }
            Fault::RedisRestarted => {
                self.redis.server.stop().await.unwrap();
                self.redis.server.restart().await.unwrap();
            }
            Fault::RedisFull => {
                self.limit_redis("1").await;
                tokio::time::sleep(hold.max(Duration::from_millis(600))).await;
                self.limit_redis("0").await;
            }
            Fault::PowerLost => self.lose_power().await,
            Fault::PostgresKilled => {
                self.postgres.server.kill().await.unwrap();
                self.postgres.server.restart().await.unwrap();
            }
            Fault::PostgresStopped => {
                let pid = self.postgres.server.pid().unwrap();
                send_signal_to_family(pid, Signal::SIGSTOP);
                tokio::time::sleep(hold).await;
                send_signal_to_family(pid, Signal::SIGCONT);
            }
            Fault::PostgresRestarted => {
                let start = Instant::now();
                self.postgres.server.stop().await.unwrap();
                if self.is_long {
                    println!("           Postgres took {:?} to stop", start.elapsed());
                }
                self.postgres.server.restart().await.unwrap();
            }
            Fault::RedisCut => self.to_redis.cut(),
            Fault::PostgresCut => self.to_postgres.cut(),
            Fault::RedisAbandoned => self.to_redis.abandon(),
            Fault::PostgresAbandoned => self.to_postgres.abandon(),
            Fault::RedisStalled => {
                self.to_redis.stall();
                tokio::time::sleep(hold).await;
            }
            Fault::PostgresStalled => {
                self.to_postgres.stall();
                tokio::time::sleep(hold).await;
            }
            Fault::RedisRefused => {
                self.to_redis.refuse();
                tokio::time::sleep(hold).await;
            }
            Fault::PostgresRefused => {
                self.to_postgres.refuse();
                tokio::time::sleep(hold).await;
            }
            Fault::TenantAdded => {
                let count = self.offices.lock().unwrap().len();
                // Enough is enough: a tenant is seven tables.
                if count < 40 {
                    self.add_tenant(&format!("office{count}")).await;
                }
            }
            Fault::ColumnAdded => {
                self.columns += 1;
                let index = self.random.below(8);
                let add = format!(
                    "ALTER TABLE tenant_office{index}.messages ADD COLUMN extra{} text DEFAULT 'more'",
                    self.columns
                );
                self.world.psql().await.batch_execute(&add).await.unwrap();
            }
        }
    }

    async fn limit_redis(&mut self, bytes: &str) {
        let mut redis = self.world.redis().await;
        let mut set = redis::cmd("CONFIG");
        let () = set
            .arg("SET")
            .arg("maxmemory")
            .arg(bytes)
            .query_async(&mut redis)
            .await
            .unwrap();
    }

    /// Kills Redis and takes from its append-only file what had not reached the disk up to a second before.
    async fn lose_power(&mut self) {
        let age = self.random.millis(400, 1000);
        self.redis.server.kill().await.unwrap();
        let then = Instant::now().checked_sub(age).unwrap();
        let sizes = {
            let samples = self.samples.lock().unwrap();
            // The oldest of the last second that is younger than that.
            let sample = samples.iter().find(|(at, _)| *at >= then);
            sample.map(|(_, sizes)| sizes.clone())
        };
        let log = append_only_file(&self.redis.folder().join("redis/appendonlydir"));
        if let (Some(sizes), Some(log)) = (sizes, log) {
            let now = std::fs::metadata(&log).unwrap().len();
            let then = sizes.get(&log).copied().unwrap_or(0).min(now);
            let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
            file.set_len(then).unwrap();
            println!("           {} bytes of {now} lost with the power", now - then);
        }
        self.redis.server.restart().await.unwrap();
    }

    /// Ends all faults and waits until all that is committed is published; gives the end of the log.
    async fn heal(&mut self) -> PgLsn {
        if self.engines.is_empty() {
            self.start_engine().await;
        }
        match self.catch_up(DRAIN).await {
            Some(end) => end,
            None => {
                let checkpoint = self.world.checkpoint().await;
                let log = self.log.display();
                panic!("not published within {DRAIN:?}; log in {log}; {checkpoint:?}")
            }
        }
    }

    /// Waits until all that is committed now is published, and gives the end of that; `None` when the time is up.
    async fn catch_up(&mut self, limit: Duration) -> Option<PgLsn> {
        let psql = self.world.psql().await;
        let emit = "SELECT pg_logical_emit_message(true, 'test', '')::text";
        let target: PgLsn = psql
            .query_one(emit, &[])
            .await
            .unwrap()
            .get::<_, String>(0)
            .parse()
            .unwrap();
        let start = Instant::now();
        while start.elapsed() < limit {
            let end = self.world.checkpoint().await.remove("end_lsn");
            if end
                .and_then(|end| end.parse::<PgLsn>().ok())
                .is_some_and(|end| end > target)
            {
                return Some(target);
            }
            self.supervise().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Why each epoch began.
    async fn epochs(&self) -> Vec<String> {
        let psql = try_connect(self.world.config.postgres.url.expose()).await.unwrap();
        let rows = psql
            .query("SELECT reason FROM posduif.epochs ORDER BY number", &[])
            .await;
        rows.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

/// Notes the sizes of the append-only files ten times a second, for a bit more than a second back.
async fn sample(folder: PathBuf, samples: std::sync::Weak<Mutex<VecDeque<Sample>>>) {
    while let Some(samples) = samples.upgrade() {
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let sizes = files.filter_map(|file| Some((file.path(), file.metadata().ok()?.len())));
        let sample = (Instant::now(), sizes.collect());
        {
            let mut samples = samples.lock().unwrap();
            samples.push_back(sample);
            while samples.len() > 12 {
                samples.pop_front();
            }
        }
        drop(samples);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The part of the append-only file that Redis writes to.
fn append_only_file(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let number = |path: &PathBuf| -> Option<u64> {
        let name = path.file_name()?.to_str()?.strip_suffix(".incr.aof")?;
        name.rsplit('.').next()?.parse().ok()
    };
    files.filter(|path| number(path).is_some()).max_by_key(number)
}
