//! Random breaks of continuity, and what the log does not carry: after each of them every device holds what Postgres has.
//!
//! The faults of [`crate::faults`] end in no new epoch, and the streams are compared. Here servers are set back to older
//! copies, each by itself or both together, tables change by DDL, and commits wait for a standby that does not exist;
//! devices sync all the while. `./scripts/faults --breaks --minutes 30 --seed 7` runs longer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use posduif::accounts::users::UserType;
use posduif::config::rule::Rule;
use posduif::dev::{PrivatePostgres, PrivateRedis};
use posduif::engine::Role;
use serde_json::Value;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::support::http::Api;
use crate::support::random::Random;
use crate::support::servers::{self, Own};
use crate::support::{RunningEngine, World, eventually_within, try_connect};

/// How long devices may take to hold what Postgres has, on a busy machine.
const CONVERGENCE: Duration = Duration::from_secs(90);

/// Breaks of a run of the suite.
const BREAKS: usize = 8;

const NOTES: &str = "CREATE TABLE tenant_acme.notes (id int, owner uuid, body text, day int, PRIMARY KEY (id, day)) \
                     PARTITION BY LIST (day)";

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
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
}

impl Break {
    const ALL: [Self; 17] = [
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
    ];
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// A device, and what it holds: contents by id.
struct Device {
    api: Api,
    user: Uuid,
    cursor: Option<String>,
    notes: BTreeMap<String, String>,
    messages: BTreeMap<String, String>,
}

impl Device {
    /// Syncs to the end, or until a request fails. True if none did.
    async fn sync(&mut self) -> bool {
        for _ in 0..1000 {
            let from = self
                .cursor
                .as_ref()
                .map_or(String::new(), |cursor| format!("?cursor={cursor}"));
            let path = format!("/api/sync/incoming{from}");
            let Ok(answer) = self.api.try_send(Method::GET, &path, None, "").await else {
                return false;
            };
            if answer.status != 200 {
                if answer.status == 400 {
                    assert_eq!(answer.code(), "INVALID_CURSOR");
                    self.cursor = None;
                }
                return false;
            }
            let page = answer.json();
            self.take(&page);
            self.cursor = Some(page["cursor"].as_str().unwrap().to_owned());
            if page["has_more"] != true {
                return true;
            }
        }
        panic!("a sync without end");
    }

    fn take(&mut self, page: &Value) {
        if page["reset"] == true {
            self.notes.clear();
            self.messages.clear();
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for message in page["messages"].as_array().unwrap() {
            self.messages.insert(text(&message["id"]), text(&message["content"]));
        }
        for change in page["changes"].as_array().unwrap() {
            if change["table"] != "notes" {
                continue;
            }
            if change["op"] == "delete" {
                self.notes.remove(&text(&change["id"]));
            } else {
                self.notes.insert(text(&change["id"]), text(&change["row"]["body"]));
            }
        }
    }
}

/// A run. Fields are dropped in this order.
struct Run {
    engine: Option<RunningEngine>,
    devices: Vec<Device>,
    world: World,
    redis: Own<PrivateRedis>,
    postgres: Own<PrivatePostgres>,
    random: Random,
    users: Vec<Uuid>,
    /// The days of the partitions.
    days: Vec<usize>,
    days_used: usize,
    notes_used: usize,
    held: Vec<tokio::task::JoinHandle<()>>,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let (postgres, redis) = tokio::join!(servers::postgres(), servers::redis());
        let mut world = World::on(&postgres.server.url(), &redis.server.url()).await;
        world.config.replication.heartbeat_interval_ms = 100;
        world.config.replication.catalog_interval_seconds = 1;
        world.config.routes = vec![Rule {
            table: "notes".into(),
            to: vec!["owner".into()],
            event: "note".into(),
            ..Rule::default()
        }];
        // Only sessions that ask for it wait for a standby.
        let psql = world.psql().await;
        let name: String = psql
            .query_one("SELECT current_database()::text", &[])
            .await
            .unwrap()
            .get(0);
        let local = format!("ALTER DATABASE {name} SET synchronous_commit = local");
        psql.batch_execute(&local).await.unwrap();
        let engine = world.engine(Role::All).await;
        world.published().await;
        world.tenant("acme").await;
        world.user("acme", "bob", UserType::Web).await;
        let mut users = Vec::new();
        for name in ["joe", "jane"] {
            users.push(world.user("acme", name, UserType::Mobile).await);
        }
        world.published().await;
        let bob = engine.api().log_in("acme", "bob").await;
        let mut devices = Vec::new();
        for number in 0..4 {
            let user = users[number % 2];
            devices.push(Device {
                api: bob.enroll(&format!("device-{number}"), Some(&user.to_string())).await.0,
                user,
                cursor: None,
                notes: BTreeMap::new(),
                messages: BTreeMap::new(),
            });
        }
        world.psql().await.batch_execute(NOTES).await.unwrap();
        let mut run = Self {
            engine: Some(engine),
            devices,
            world,
            redis,
            postgres,
            random: Random::new(seed),
            users,
            days: Vec::new(),
            days_used: 0,
            notes_used: 0,
            held: Vec::new(),
        };
        for _ in 0..3 {
            run.add_partition(false).await;
        }
        run.world.published().await;
        run.save_postgres().await;
        run.save_redis().await;
        run
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
        let rows: Vec<String> = self.users.clone().iter().map(|user| self.note(*user, day)).collect();
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
        self.users[self.random.below(self.users.len())]
    }

    /// Some commits, while devices sync.
    async fn write(&mut self, count: usize) {
        for _ in 0..count {
            let user = self.user();
            let some = self.random.below(self.notes_used + 1);
            let statement = match (self.random.below(10), self.days.is_empty()) {
                (0..4, false) => {
                    let day = self.days[self.random.below(self.days.len())];
                    let note = self.note(user, day);
                    format!("INSERT INTO tenant_acme.notes VALUES {note}")
                }
                (4, _) => format!("UPDATE tenant_acme.notes SET owner = '{user}' WHERE id = {some}"),
                (5 | 6, _) => format!("UPDATE tenant_acme.notes SET body = body || '!' WHERE id = {some}"),
                (7, _) => format!("DELETE FROM tenant_acme.notes WHERE id = {some}"),
                _ => format!(
                    "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
                     SELECT id, '{user}', 'message' FROM tenant_acme.users WHERE username = 'bob'"
                ),
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
                if let Some(engine) = self.engine.take() {
                    engine.stop().await;
                }
                self.write(5).await;
                let engine = self.world.engine(Role::All).await;
                for device in &mut self.devices {
                    device.api = device.api.at(&engine.api());
                }
                self.engine = Some(engine);
            }
        }
    }

    /// From now on commits of sessions that wait for a standby are published and not shown.
    async fn hold(&mut self) {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
        self.sql("SELECT pg_reload_conf()").await;
        for _ in 0..3 {
            let (url, user) = (self.world.config.postgres.url.expose().to_owned(), self.user());
            self.held.push(tokio::spawn(async move {
                let insert = format!(
                    "SET synchronous_commit = on; \
                     INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
                     SELECT id, '{user}', 'held' FROM tenant_acme.users WHERE username = 'bob'"
                );
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
    async fn expected(&self, user: Uuid) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let psql = self.world.psql().await;
        let notes = "SELECT id::text, body FROM tenant_acme.notes WHERE owner = $1";
        let messages = "SELECT id::text, content FROM tenant_acme.messages WHERE recipient_id = $1";
        let mut found = Vec::new();
        for query in [notes, messages] {
            let rows = psql.query(query, &[&user]).await.unwrap();
            found.push(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
        }
        let messages = found.pop().unwrap();
        (found.pop().unwrap(), messages)
    }

    /// Each device comes to hold what Postgres has.
    async fn converge(&mut self, after: &str) {
        let api = self.engine.as_ref().unwrap().api();
        eventually_within(CONVERGENCE, &format!("ready {after}"), || async {
            (api.get("/ready").await.status == 200).then_some(())
        })
        .await;
        let mut devices = std::mem::take(&mut self.devices);
        for device in &mut devices {
            let (user, begin) = (device.user, Instant::now());
            let device = Mutex::new(device);
            eventually_within(
                CONVERGENCE,
                &format!("a device holds what Postgres has {after}"),
                || async {
                    let (notes, messages) = self.expected(user).await;
                    let mut device = device.lock().await;
                    let has_synced = device.sync().await;
                    if begin.elapsed() > CONVERGENCE / 2 {
                        assert_eq!(device.notes, notes, "notes {after}");
                        assert_eq!(device.messages, messages, "messages {after}");
                    }
                    (has_synced && device.notes == notes && device.messages == messages).then_some(())
                },
            )
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
    while end.map_or(done.len() < BREAKS, |end| Instant::now() < end) {
        if deck.is_empty() {
            deck.extend(Break::ALL);
            run.random.shuffle(&mut deck);
        }
        let Some(kind) = deck.pop() else { continue };
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
        if minutes.is_some() {
            println!("{:>4} {kind:?}", done.len());
        }
    }
    run.release().await;
    run.converge(&format!("at the end, after {done:?}, seed {seed}")).await;
    run.engine.take().unwrap().stop().await;
}
