//! Random breaks of continuity, and what the log does not carry: after each of them every device holds what Postgres has.
//!
//! The faults of [`crate::faults`] end in no new epoch, and the streams are compared. Here servers are set back to older
//! copies, each by itself or both together, tables change by DDL, commits wait for a standby that does not exist, an engine is
//! killed around an `EXEC` of which Redis refuses a part, one tenant fills Redis, writes a row that Postgres cannot send, or
//! gives its name to another; devices of two tenants sync all the while. `./scripts/faults --breaks --minutes 30 --seed 7`
//! runs longer.

mod device;
mod tenant;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use posduif::config::lane::Lane;
use posduif::config::{Config, Secret};
use posduif::dev::{PrivatePostgres, PrivateRedis};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::device::Device;
use self::tenant::{ACME, GLOBEX, OTHER_LANE, Tenant};
use crate::support::http::Api;
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::servers::{self, Own};
use crate::support::{Process, World, eventually_within, try_connect};

/// How long devices may take to hold what Postgres has, on a busy machine: a look at the catalogs that takes three seconds
/// is followed by the next one after a minute.
const CONVERGENCE: Duration = Duration::from_secs(180);

const NOTES: &str = "CREATE TABLE tenant_acme.notes (id int, owner uuid, body text, day int, PRIMARY KEY (id, day)) \
                     PARTITION BY LIST (day)";

const NOTES_OF_GLOBEX: &str = "CREATE TABLE tenant_globex.notes (id int PRIMARY KEY, owner uuid, body text, day int)";

const ROUTES: &str = "routes:\n  - {table: notes, to: [owner], event: note}\n";

/// A row of 300 MB, which is printed with two digits a byte. Each statement is a transaction of its own.
const LARGE_ROW: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS tenant_globex.blobs (id int PRIMARY KEY, blob bytea)",
    "INSERT INTO tenant_globex.blobs SELECT 1, convert_to(repeat('x', 300 * 1024 * 1024), 'UTF8')",
    "UPDATE tenant_globex.blobs SET blob = blob || '\\x00'",
];

/// Writes 8 MB of messages to each mobile user.
const FLOOD: &str = "INSERT INTO tenant_globex.messages (sender_id, recipient_id, content) \
                     SELECT bob.id, users.id, repeat(md5(n::text), 300) \
                     FROM tenant_globex.users, tenant_globex.users bob, generate_series(1, 800) n \
                     WHERE users.user_type = 'mobile' AND bob.username = 'bob'";

/// The same behind a row of 300 MB, which Postgres prints three times.
const LARGE_ROW_CONVERGENCE: Duration = Duration::from_secs(400);

/// The most memory that an engine may use, in KiB.
const MEMORY_KIB_MAX: u64 = 256 * 1024;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    PartitionCreated,
    PartitionAttached,
    PartitionDetached,
    PartitionDropped,
    PartitionTruncated,
    TableTruncated,
    IdentityChanged,
    ColumnRewritten,
    SchemaRenamed,
    CommitsHeld,
    RedisEmptied,
    RedisRestored,
    PostgresRestored,
    PostgresFailedOver,
    BothRestored,
    /// Postgres to the lagging standby first, then Redis to the older copy.
    BothFailedOver,
    /// The other way round.
    BothFailedOverRedisFirst,
    EngineRestarted,
    /// At an `EXEC`, when Redis refuses an inbox.
    EngineKilled,
    /// By one tenant, without relief from outside.
    RedisFilled,
    TenantRecreated,
    /// To the other lane.
    TenantMoved,
    /// A row of 300 MB that Postgres cannot send. It takes half a minute, and is no part of a short run.
    LargeRowUpdated,
}

impl Break {
    const ALL: [Self; 23] = [
        Self::PartitionCreated,
        Self::PartitionAttached,
        Self::PartitionDetached,
        Self::PartitionDropped,
        Self::PartitionTruncated,
        Self::TableTruncated,
        Self::IdentityChanged,
        Self::ColumnRewritten,
        Self::SchemaRenamed,
        Self::CommitsHeld,
        Self::RedisEmptied,
        Self::RedisRestored,
        Self::PostgresRestored,
        Self::PostgresFailedOver,
        Self::BothRestored,
        Self::BothFailedOver,
        Self::BothFailedOverRedisFirst,
        Self::EngineRestarted,
        Self::EngineKilled,
        Self::RedisFilled,
        Self::TenantRecreated,
        Self::TenantMoved,
        Self::LargeRowUpdated,
    ];
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// An engine with the routes beside its log.
async fn engine(world: &World, config: &Config, log: &Path) -> Process {
    let file = log.with_extension("yaml");
    world.process_under("all", config, Some(log), &[], Some(&file)).await
}

/// A message of a tenant's bob.
fn message(tenant: &str, user: Uuid, content: &str) -> String {
    format!(
        "INSERT INTO tenant_{tenant}.messages (sender_id, recipient_id, content) \
         SELECT id, '{user}', '{content}' FROM tenant_{tenant}.users WHERE username = 'bob'"
    )
}

/// A run. Fields are dropped in this order.
struct Run {
    engine: Option<Process>,
    engine_config: Config,
    to_redis: Proxy,
    devices: Vec<Device>,
    world: World,
    redis: Own<PrivateRedis>,
    postgres: Own<PrivatePostgres>,
    log: PathBuf,
    random: Random,
    acme: Tenant,
    globex: Tenant,
    /// The days of the partitions.
    days: Vec<usize>,
    days_used: usize,
    notes_used: usize,
    held: Vec<tokio::task::JoinHandle<()>>,
    /// The most memory that an engine has used, in KiB.
    memory_kib: u64,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let (postgres, redis) = tokio::join!(servers::postgres(), servers::redis());
        let mut world = World::on(&postgres.server.url(), &redis.server.url()).await;
        world.config.replication.heartbeat_interval_ms = 100;
        world.config.replication.catalog_interval_seconds = 1;
        // Only sessions that ask for it wait for a standby.
        let psql = world.psql().await;
        let name: String = psql
            .query_one("SELECT current_database()::text", &[])
            .await
            .unwrap()
            .get(0);
        let local = format!("ALTER DATABASE {name} SET synchronous_commit = local");
        psql.batch_execute(&local).await.unwrap();
        // On the same server: what strikes it strikes both.
        world.config.lanes = vec![Lane {
            name: OTHER_LANE.to_owned(),
            ..Lane::default()
        }];
        // A full Redis has room for one when all else is cut.
        world.config.replication.batch_bytes_max = 128 * 1024;
        let to_redis = Proxy::before(&redis.server.url()).await;
        let mut engine_config = world.config.clone();
        engine_config.redis.url = Secret::new(to_redis.url(engine_config.redis.url.expose()));
        let log = std::env::temp_dir().join(format!("posduif-breaks-{seed}-{}.log", std::process::id()));
        let lanes = format!("lanes: [{{name: {OTHER_LANE}}}]\n");
        std::fs::write(log.with_extension("yaml"), format!("{ROUTES}\n{lanes}")).unwrap();
        let engine = engine(&world, &engine_config, &log).await;
        world.published().await;
        let acme = Tenant::create(&world, &engine.api(), ACME, NOTES, &[]).await;
        let globex = Tenant::create(&world, &engine.api(), GLOBEX, NOTES_OF_GLOBEX, &[]).await;
        let mut devices = acme.enroll(ACME, 4).await;
        devices.extend(globex.enroll(GLOBEX, 2).await);
        let mut run = Self {
            engine: Some(engine),
            engine_config,
            to_redis,
            devices,
            world,
            redis,
            postgres,
            log,
            random: Random::new(seed),
            acme,
            globex,
            days: Vec::new(),
            days_used: 0,
            notes_used: 0,
            held: Vec::new(),
            memory_kib: 0,
        };
        for _ in 0..3 {
            run.add_partition(false).await;
        }
        run.world.published().await;
        run.save_postgres().await;
        run.save_redis().await;
        run
    }

    /// A client of the engine.
    fn api(&self) -> Api {
        self.engine.as_ref().unwrap().api()
    }

    async fn start_engine(&mut self) {
        let engine = engine(&self.world, &self.engine_config, &self.log).await;
        let api = self.engine.insert(engine).api();
        for device in &mut self.devices {
            device.api = device.api.at(&api);
        }
        for tenant in [&mut self.acme, &mut self.globex] {
            tenant.bob = tenant.bob.at(&api);
        }
    }

    /// The engine, which is to end.
    fn take_engine(&mut self) -> Process {
        let engine = self.engine.take().unwrap();
        self.memory_kib = self.memory_kib.max(engine.peak_memory_kib());
        engine
    }

    /// Runs statements. What a fault interrupts is not repeated.
    async fn sql(&self, statements: &str) -> bool {
        match try_connect(self.world.config.postgres.url.expose()).await {
            Some(client) => client.batch_execute(statements).await.is_ok(),
            None => false,
        }
    }

    /// A partition with a row for each user; it may get them before it is attached.
    async fn add_partition(&mut self, attaches: bool) {
        self.days_used += 1;
        let day = self.days_used;
        let rows: Vec<String> = self
            .acme
            .users
            .clone()
            .iter()
            .map(|user| self.note(*user, day))
            .collect();
        let (part, rows) = (format!("tenant_acme.notes_{day}"), rows.join(", "));
        let made = match attaches {
            true => format!(
                "CREATE TABLE {part} (LIKE tenant_acme.notes INCLUDING ALL); INSERT INTO {part} VALUES {rows}; \
                 ALTER TABLE tenant_acme.notes ATTACH PARTITION {part} FOR VALUES IN ({day})"
            ),
            false => format!(
                "CREATE TABLE {part} PARTITION OF tenant_acme.notes FOR VALUES IN ({day}); \
                 INSERT INTO tenant_acme.notes VALUES {rows}"
            ),
        };
        if self.sql(&made).await {
            self.days.push(day);
        }
    }

    fn note(&mut self, user: Uuid, day: usize) -> String {
        self.notes_used += 1;
        format!("({0}, '{user}', 'note {0}', {day})", self.notes_used)
    }

    fn user(&mut self) -> Uuid {
        self.acme.users[self.random.below(self.acme.users.len())]
    }

    /// Some commits, while devices sync.
    async fn write(&mut self, count: usize) {
        for _ in 0..count {
            let (tenant, user, day) = match self.random.below(4) {
                0 => (GLOBEX, self.globex.users[self.random.below(2)], Some(0)),
                _ => {
                    let day = (!self.days.is_empty()).then(|| self.days[self.random.below(self.days.len())]);
                    (ACME, self.user(), day)
                }
            };
            let some = self.random.below(self.notes_used + 1);
            let statement = match (self.random.below(10), day) {
                (0..4, Some(day)) => {
                    let note = self.note(user, day);
                    format!("INSERT INTO tenant_{tenant}.notes VALUES {note}")
                }
                (4, _) => format!("UPDATE tenant_{tenant}.notes SET owner = '{user}' WHERE id = {some}"),
                (5 | 6, _) => format!("UPDATE tenant_{tenant}.notes SET body = body || '!' WHERE id = {some}"),
                (7, _) => format!("DELETE FROM tenant_{tenant}.notes WHERE id = {some}"),
                _ => message(tenant, user, "message"),
            };
            self.sql(&statement).await;
            if self.random.one_in(3) {
                let index = self.random.below(self.devices.len());
                self.devices[index].sync().await;
            }
        }
    }

    fn data(&self) -> PathBuf {
        let home = self.postgres.folder().join("postgres").canonicalize().unwrap();
        home.join("data")
    }

    async fn save_postgres(&mut self) {
        self.postgres.server.stop().await.unwrap();
        copy(&self.data(), &self.data().with_file_name("data.copy"));
        self.postgres.server.restart().await.unwrap();
    }

    async fn save_redis(&mut self) {
        self.redis.server.stop().await.unwrap();
        let folder = self.redis.folder();
        copy(&folder.join("redis/appendonlydir"), &folder.join("saved"));
        self.redis.server.restart().await.unwrap();
    }

    /// Puts the copy of Postgres in its place; with `promotes`, as a standby that is promoted.
    async fn restore_postgres(&mut self, promotes: bool) {
        self.postgres.server.kill().await.unwrap();
        copy(&self.data().with_file_name("data.copy"), &self.data());
        if promotes {
            std::fs::write(self.data().join("standby.signal"), "").unwrap();
        }
        self.postgres.server.restart().await.unwrap();
        if promotes {
            self.sql("SELECT pg_promote()").await;
        }
        // What the copy has.
        let days = "SELECT substr(relname, 7)::int FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid \
                    WHERE inhparent = 'tenant_acme.notes'::regclass";
        let rows = self.world.psql().await.query(days, &[]).await.unwrap();
        self.days = rows
            .iter()
            .map(|row| usize::try_from(row.get::<_, i32>(0)).unwrap())
            .collect();
    }

    async fn restore_redis(&mut self) {
        self.redis.server.kill().await.unwrap();
        let folder = self.redis.folder();
        copy(&folder.join("saved"), &folder.join("redis/appendonlydir"));
        self.redis.server.restart().await.unwrap();
    }

    fn take_day(&mut self) -> Option<usize> {
        (self.days.len() > 1).then(|| self.days.swap_remove(self.random.below(self.days.len())))
    }

    /// Waits until the catalog watch knows the tables: it misses what comes and goes between two of its looks.
    async fn recorded(&self) {
        let unknown = "SELECT FROM pg_class class JOIN pg_namespace schema ON schema.oid = class.relnamespace \
                       WHERE schema.nspname = 'tenant_acme' AND class.relkind IN ('r', 'p') \
                       AND NOT EXISTS (SELECT FROM posduif.tables known WHERE known.relation = class.oid)";
        let psql = self.world.psql().await;
        eventually_within(CONVERGENCE, "the tables are recorded", || async {
            psql.query(unknown, &[]).await.unwrap().is_empty().then_some(())
        })
        .await;
    }

    async fn inflict(&mut self, kind: Break) {
        let is_ddl = [
            Break::PartitionDetached,
            Break::PartitionDropped,
            Break::PartitionTruncated,
            Break::IdentityChanged,
            Break::ColumnRewritten,
            Break::SchemaRenamed,
        ];
        if is_ddl.contains(&kind) {
            self.recorded().await;
        }
        match kind {
            Break::PartitionCreated => {
                self.add_partition(false).await;
                if let Some(day) = self.days.last() {
                    let (part, user) = (format!("tenant_acme.notes_{day}"), self.acme.users[0]);
                    self.sql(&format!("UPDATE {part} SET owner = '{user}' WHERE id % 2 = 0"))
                        .await;
                    self.sql(&format!("DELETE FROM {part} WHERE id % 2 = 1")).await;
                }
            }
            Break::PartitionAttached => self.add_partition(true).await,
            Break::PartitionDetached => {
                if let Some(day) = self.take_day() {
                    let part = format!("tenant_acme.notes_{day}");
                    self.sql(&format!("ALTER TABLE tenant_acme.notes DETACH PARTITION {part}"))
                        .await;
                }
            }
            Break::PartitionDropped => {
                if let Some(day) = self.take_day() {
                    self.sql(&format!("DROP TABLE tenant_acme.notes_{day}")).await;
                }
            }
            Break::PartitionTruncated => {
                let day = self.days[self.random.below(self.days.len())];
                self.sql(&format!("TRUNCATE tenant_acme.notes_{day}")).await;
            }
            Break::TableTruncated => {
                self.sql("TRUNCATE tenant_acme.notes").await;
            }
            Break::IdentityChanged => {
                let day = self.days[self.random.below(self.days.len())];
                let part = format!("tenant_acme.notes_{day}");
                self.sql(&format!("ALTER TABLE {part} REPLICA IDENTITY DEFAULT")).await;
                self.sql(&format!("DELETE FROM {part} WHERE id % 2 = 0")).await;
                let user = self.user();
                self.sql(&format!("UPDATE {part} SET owner = '{user}'")).await;
            }
            Break::ColumnRewritten => {
                let rewrite = "ALTER TABLE tenant_acme.notes ALTER COLUMN body TYPE text USING body || '.'";
                self.sql(rewrite).await;
            }
            Break::SchemaRenamed => {
                self.sql("ALTER SCHEMA tenant_acme RENAME TO former").await;
                self.sql("UPDATE former.notes SET body = body || '?'").await;
                self.write(5).await;
                self.sql("ALTER SCHEMA former RENAME TO tenant_acme").await;
            }
            Break::CommitsHeld => self.hold().await,
            Break::RedisEmptied => {
                let _: String = self.world.ask_redis(&["FLUSHALL"]).await;
            }
            Break::RedisRestored => self.restore_redis().await,
            Break::PostgresRestored => self.restore_postgres(false).await,
            Break::PostgresFailedOver => self.restore_postgres(true).await,
            Break::BothRestored => {
                self.restore_redis().await;
                self.restore_postgres(false).await;
            }
            Break::BothFailedOver => {
                self.restore_postgres(true).await;
                self.restore_redis().await;
            }
            Break::BothFailedOverRedisFirst => {
                self.restore_redis().await;
                self.write(5).await;
                self.restore_postgres(true).await;
            }
            Break::EngineRestarted => {
                self.take_engine().terminate().await;
                self.write(5).await;
                self.start_engine().await;
            }
            Break::EngineKilled => self.kill_at_exec().await,
            Break::RedisFilled => self.fill_redis().await,
            Break::TenantRecreated => {
                self.recreate_tenant().await;
                // An older copy would have the devices of the former tenant.
                self.save_postgres().await;
            }
            Break::TenantMoved => self.move_tenant().await,
            Break::LargeRowUpdated => {
                for statement in LARGE_ROW {
                    assert!(self.sql(statement).await, "{statement}");
                }
                let user = self.user();
                self.sql(&message(ACME, user, "behind the large row")).await;
                self.converge_within(LARGE_ROW_CONVERGENCE, "behind a large row").await;
                self.sql("DROP TABLE tenant_globex.blobs").await;
            }
        }
    }

    /// Kills the engine at one of the `EXEC` that follow a message, whose inbox Redis refuses meanwhile: before it arrives,
    /// or before its replies do.
    async fn kill_at_exec(&mut self) {
        let (user, keys) = (self.user(), self.world.keys());
        let others = [
            keys.live(0),
            keys.changes(ACME),
            keys.shared(ACME),
            keys.of_tenant(GLOBEX),
            format!("{}:*", self.world.in_lane(OTHER_LANE).config.redis.keys_prefix()),
        ];
        let others = others.map(|key| format!("~{key}")).join(" ");
        let deny = ["ACL", "SETUSER", "default", "-xadd", &format!("(+xadd {others})")];
        let _: String = self.world.ask_redis(&deny).await;
        self.notes_used += 1;
        let content = format!("at an EXEC, {}", self.notes_used);
        self.to_redis
            .stop_at_exec(&content, self.random.below(4), self.random.one_in(2));
        self.sql(&message(ACME, user, &content)).await;
        eventually_within(CONVERGENCE, "the EXEC comes", || async {
            self.to_redis.has_stopped().then_some(())
        })
        .await;
        self.take_engine().kill().await;
        let permit = ["ACL", "SETUSER", "default", "clearselectors", "+xadd"];
        let _: String = self.world.ask_redis(&permit).await;
        // What was withheld comes late, or never.
        if self.random.one_in(2) {
            self.to_redis.cut();
        }
        self.to_redis.resume();
        self.start_engine().await;
    }

    /// One tenant writes more than Redis has room for, and nothing else changes until all devices hold what they must.
    async fn fill_redis(&mut self) {
        let info: String = self.world.ask_redis(&["INFO", "memory"]).await;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        let limit = used.unwrap().trim().parse::<u64>().unwrap() + 1024 * 1024;
        let set = ["CONFIG", "SET", "maxmemory", &limit.to_string()];
        let _: String = self.world.ask_redis(&set).await;
        let resets: usize = self.devices.iter().map(|device| device.resets).sum();
        self.sql(FLOOD).await;
        let user = self.user();
        self.sql(&message(ACME, user, "behind the flood")).await;
        self.converge("while Redis is full").await;
        let after: usize = self.devices.iter().map(|device| device.resets).sum();
        assert!(after > resets, "no inbox was cut");
        let _: String = self.world.ask_redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
        let shorten = "UPDATE tenant_globex.messages SET content = 'short' WHERE length(content) > 1000";
        self.sql(shorten).await;
    }

    /// From now on commits of sessions that wait for a standby are published and not shown.
    async fn hold(&mut self) {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
        self.sql("SELECT pg_reload_conf()").await;
        for _ in 0..3 {
            let (url, user) = (self.world.config.postgres.url.expose().to_owned(), self.user());
            self.held.push(tokio::spawn(async move {
                let insert = format!("SET synchronous_commit = on; {}", message(ACME, user, "held"));
                if let Some(client) = try_connect(&url).await {
                    let _ = client.batch_execute(&insert).await;
                }
            }));
        }
    }

    async fn release(&mut self) {
        self.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
        self.sql("SELECT pg_reload_conf()").await;
        for held in self.held.drain(..) {
            held.await.unwrap();
        }
    }

    /// What a user's devices must hold.
    async fn expected(&self, tenant: &str, user: Uuid) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let psql = self.world.psql().await;
        let notes = format!("SELECT id::text, body FROM tenant_{tenant}.notes WHERE owner = $1");
        let messages = format!("SELECT id::text, content FROM tenant_{tenant}.messages WHERE recipient_id = $1");
        let mut found = Vec::new();
        for query in [notes, messages] {
            let rows = psql.query(&query, &[&user]).await.unwrap();
            found.push(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
        }
        let messages = found.pop().unwrap();
        (found.pop().unwrap(), messages)
    }

    /// Each device comes to hold what Postgres has.
    async fn converge(&mut self, after: &str) {
        self.converge_within(CONVERGENCE, after).await;
    }

    async fn converge_within(&mut self, limit: Duration, after: &str) {
        let api = self.api();
        eventually_within(limit, &format!("ready {after}"), || async {
            (api.get("/ready").await.status == 200).then_some(())
        })
        .await;
        let mut devices = std::mem::take(&mut self.devices);
        for device in &mut devices {
            let (tenant, user, begin) = (device.tenant, device.user, Instant::now());
            let device = Mutex::new(device);
            eventually_within(limit, &format!("a device holds what Postgres has {after}"), || async {
                let (notes, messages) = self.expected(tenant, user).await;
                let mut device = device.lock().await;
                let has_synced = device.sync().await;
                if begin.elapsed() > limit / 2 {
                    assert_eq!(device.notes, notes, "notes {after}");
                    assert_eq!(device.messages, messages, "messages {after}");
                }
                (has_synced && device.notes == notes && device.messages == messages).then_some(())
            })
            .await;
        }
        self.devices = devices;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_breaks_leave_devices_with_what_postgres_has() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<f64>().unwrap());
    let minutes = number("POSDUIF_FAULTS_MINUTES");
    let seed = number("POSDUIF_FAULTS_SEED").map_or(1, |seed| seed as u64);
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let mut run = Run::new(seed).await;
    run.write(20).await;
    run.converge("at the beginning").await;
    let (mut deck, mut done) = (Vec::new(), Vec::new());
    loop {
        if end.is_some_and(|end| Instant::now() > end) {
            break;
        }
        let Some(kind) = deck.pop() else {
            // Each kind comes once in a run of the suite.
            if end.is_none() && !done.is_empty() {
                break;
            }
            deck.extend(Break::ALL);
            deck.retain(|kind| end.is_some() || *kind != Break::LargeRowUpdated);
            run.random.shuffle(&mut deck);
            continue;
        };
        let begin = Instant::now();
        done.push(kind);
        match run.random.below(6) {
            0 => run.save_postgres().await,
            1 => run.save_redis().await,
            _ => {}
        }
        let count = run.random.below(15);
        run.write(count).await;
        run.inflict(kind).await;
        let count = run.random.below(15);
        run.write(count).await;
        // While commits are held, the next break comes, too.
        if kind != Break::CommitsHeld {
            run.release().await;
            run.converge(&format!("after {done:?}, seed {seed}")).await;
        }
        println!("{:>4} {kind:?}, {:.1} s", done.len(), begin.elapsed().as_secs_f64());
    }
    run.release().await;
    run.converge(&format!("at the end, after {done:?}, seed {seed}")).await;
    run.take_engine().terminate().await;
    println!("the engine used at most {} KiB", run.memory_kib);
    assert!(run.memory_kib < MEMORY_KIB_MAX, "{} KiB, seed {seed}", run.memory_kib);
    for file in [run.log.with_extension("yaml"), run.log.clone()] {
        std::fs::remove_file(file).unwrap();
    }
}
