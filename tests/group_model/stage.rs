//! What all stories share: an engine, its rules, and the tenants.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posduif::accounts::users::UserType;
use posduif::config::ConflictStrategy;
use posduif::config::rule::Rule;
use posduif::engine::Role;
use posduif::postgres::{Database, tenants};
use postgres_types::PgLsn;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use uuid::Uuid;

use super::faults::Fault;
use crate::support::folder::Folder;
use crate::support::http::Api;
use crate::support::unreliable::Address;
use crate::support::{PASSWORD, RunningEngine, TIMEOUT, World, eventually};

/// What the engine's rules show beside what they always do, as bits.
pub(super) mod rules {
    /// Notes are not delivered.
    pub(in super::super) const NO_NOTES: u8 = 1;
    /// The helper of a note sees it.
    pub(in super::super) const HELPERS: u8 = 2;
    /// The assignee of a task does not see it.
    pub(in super::super) const NO_ASSIGNEES: u8 = 4;
    /// No user sees a task only because it is for all.
    pub(in super::super) const NONE_FOR_ALL: u8 = 8;
}

/// Whether rules have a bit.
pub(super) fn has(rules: u8, bit: u8) -> bool {
    rules & bit != 0
}

fn routes(rules: u8) -> Vec<Rule> {
    let mut tasks = vec![json!({"list": "list_id"}), json!({"team": "team"})];
    if !has(rules, rules::NO_ASSIGNEES) {
        tasks.push(json!("assignee"));
    }
    let mut notes = vec![json!({"list": "list_id"}), json!("owner")];
    if has(rules, rules::HELPERS) {
        notes.push(json!("helper"));
    }
    let mut routes = vec![
        json!({"table": "lists", "to": [{"list": "id"}]}),
        json!({"table": "tasks", "to": tasks, "upload": {
            "by": {"list": "list_id", "team": "team"}, "columns": ["body", "list_id", "team", "assignee"],
        }}),
    ];
    if !has(rules, rules::NONE_FOR_ALL) {
        routes.push(json!({"table": "tasks", "to": ["tenant"], "when": {"equals": {"scope": "all"}}}));
    }
    if !has(rules, rules::NO_NOTES) {
        routes.push(json!({"table": "notes", "to": notes, "upload": {
            "owner": "owner", "by": {"list": "list_id"}, "columns": ["body", "list_id", "helper"],
        }}));
    }
    serde_json::from_value(Value::from(routes)).unwrap()
}

const TABLES: &str = "
    CREATE TABLE {s}.lists (id bigint PRIMARY KEY, title text NOT NULL, deleted_at timestamptz);
    CREATE TABLE {s}.list_members (
        list_id bigint, user_id uuid, deleted_at timestamptz, PRIMARY KEY (list_id, user_id)
    );
    CREATE TABLE {s}.team_members (team text, member uuid, UNIQUE (team, member));
    CREATE TABLE {s}.tasks (
        id uuid PRIMARY KEY, list_id bigint, team text, assignee uuid, scope text, body text NOT NULL,
        version bigint NOT NULL DEFAULT 1, deleted_at timestamptz
    );
    CREATE TABLE {s}.notes (id uuid PRIMARY KEY, list_id bigint, owner uuid, helper uuid, body text NOT NULL);
    CREATE TRIGGER count BEFORE UPDATE ON {s}.tasks FOR EACH ROW EXECUTE FUNCTION public.count();";

/// Tables whose every change is noted.
const NOTED: [&str; 7] = [
    "lists",
    "list_members",
    "team_members",
    "tasks",
    "notes",
    "messages",
    "message_reads",
];

/// One engine, with what all stories share.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) engine: tokio::sync::Mutex<Option<RunningEngine>>,
    pub(super) address: Address,
    /// What shook everybody, so far and just now.
    pub(super) shocks: Arc<AtomicU64>,
    /// The rules so far, the last of which are those of now.
    pub(super) rules: Mutex<Vec<u8>>,
    pub(super) psql: tokio_postgres::Client,
    pub(super) redis: MultiplexedConnection,
    pub(super) database: Database,
    pub(super) folder: Folder,
    pub(super) fault: Option<Fault>,
    tenants: AtomicUsize,
    texts: AtomicU64,
    pub(super) tallies: Mutex<BTreeMap<String, u64>>,
}

/// Where a story takes place.
pub(super) struct Tenant {
    pub(super) name: String,
    pub(super) schema: String,
    pub(super) bob: Uuid,
    pub(super) token: String,
}

impl Stage {
    pub(super) async fn new(strategy: ConflictStrategy, fault: Option<Fault>) -> Arc<Self> {
        let mut world = World::new().await;
        let config = &mut world.config;
        config.replication.heartbeat_interval_ms = 200;
        config.postgres.pool_size = 8;
        config.streams.retention_after_ack_seconds = 0;
        // Stories trim by themselves: two who trim would undo each other's notes of it.
        config.streams.trim_interval_seconds = 3600;
        config.sync.conflict_strategy = strategy;
        config.sync.batch_size = 10;
        config.auth.token_expiry_seconds = 86_400;
        config.groups = serde_json::from_value(json!({
            "list": {"table": "list_members", "id": "list_id", "user": "user_id"},
            "team": {"table": "team_members", "id": "team", "user": "member"},
        }))
        .unwrap();
        config.routes = routes(0);
        let engine = world.engine(Role::All).await;
        world.published().await;
        // In memory where there is such a folder: phones sync their files to the disk, which is not what is tested.
        let parent = Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir());
        let folder = parent.unwrap_or_else(std::env::temp_dir);
        let psql = world.psql().await;
        psql.batch_execute(
            "CREATE TABLE public.history (number bigserial PRIMARY KEY, space text, tbl text, op text, old jsonb, new jsonb);
             CREATE INDEX ON public.history (space);
             CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 INSERT INTO public.history (space, tbl, op, old, new) VALUES (TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP,
                     CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN to_jsonb(OLD) END,
                     CASE WHEN TG_OP IN ('INSERT', 'UPDATE') THEN to_jsonb(NEW) END);
                 RETURN NULL;
             END $$;
             CREATE FUNCTION public.count() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.version = OLD.version AND NEW IS DISTINCT FROM OLD THEN
                     NEW.version := OLD.version + 1;
                 END IF;
                 RETURN NEW;
             END $$",
        )
        .await
        .unwrap();
        Arc::new(Self {
            address: Arc::new(Mutex::new(engine.api().address().to_owned())),
            engine: tokio::sync::Mutex::new(Some(engine)),
            shocks: Arc::default(),
            rules: Mutex::new(vec![0]),
            redis: world.redis().await,
            database: world.database().await,
            psql,
            folder: Folder::within(&folder),
            world,
            fault,
            tenants: AtomicUsize::new(0),
            texts: AtomicU64::new(0),
            tallies: Mutex::default(),
        })
    }

    pub(super) fn api(&self) -> Api {
        Api::new(&self.address.lock().unwrap())
    }

    pub(super) fn tally(&self, what: &str) {
        *self.tallies.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    /// A text that was not written before.
    pub(super) fn text(&self) -> String {
        format!("text {}", self.texts.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until all that is committed now has been published.
    pub(super) async fn published(&self) {
        let emit = "SELECT pg_logical_emit_message(true, 'test', '')::text";
        let row = self.psql.query_one(emit, &[]).await.unwrap();
        let target: PgLsn = row.get::<_, String>(0).parse().unwrap();
        let since = Instant::now();
        while self
            .checkpoint("end_lsn")
            .await
            .and_then(|end| end.parse::<PgLsn>().ok())
            .is_none_or(|end| end <= target)
        {
            assert!(since.elapsed() < 2 * TIMEOUT, "what is committed is not published");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn checkpoint(&self, field: &str) -> Option<String> {
        let mut get = redis::cmd("HGET");
        get.arg(self.world.keys().checkpoint()).arg(field);
        get.query_async(&mut self.redis.clone()).await.unwrap()
    }

    pub(super) fn rules_now(&self) -> u8 {
        self.rules.lock().unwrap().last().copied().unwrap_or_default()
    }

    /// The engine starts again, perhaps by other rules.
    pub(super) async fn restart(&self, rules: Option<u8>) {
        let mut engine = self.engine.lock().await;
        self.shocks.fetch_add(1, Ordering::SeqCst);
        engine.take().unwrap().stop().await;
        if let Some(rules) = rules {
            self.rules.lock().unwrap().push(rules);
            self.tally("rules changed");
        }
        let mut config = self.world.config.clone();
        config.routes = routes(self.rules_now());
        let started = self.world.engine_with(Role::All, config).await;
        *self.address.lock().unwrap() = started.api().address().to_owned();
        *engine = Some(started);
        self.shocks.fetch_add(1, Ordering::SeqCst);
        self.tally("engine restarts");
    }

    pub(super) async fn break_history(&self) {
        let _one_at_a_time = self.engine.lock().await;
        self.shocks.fetch_add(1, Ordering::SeqCst);
        let before = self.checkpoint("epoch").await;
        self.forget(&self.world.keys().checkpoint()).await;
        eventually("a new epoch", || async {
            let epoch = self.checkpoint("epoch").await;
            epoch.filter(|now| Some(now) != before.as_ref()).map(drop)
        })
        .await;
        self.shocks.fetch_add(1, Ordering::SeqCst);
        self.tally("epochs");
    }

    /// Deletes a key of Redis.
    pub(super) async fn forget(&self, key: &str) {
        let () = redis::cmd("DEL")
            .arg(key)
            .query_async(&mut self.redis.clone())
            .await
            .unwrap();
    }

    /// A tenant for stories one after the other, with bob at the web.
    pub(super) async fn new_tenant(&self) -> Tenant {
        let name = format!("m{}", self.tenants.fetch_add(1, Ordering::Relaxed));
        let replication = &self.world.config.replication;
        tenants::create(&self.database, replication, &name, posduif::core::lane::MAIN)
            .await
            .unwrap();
        let schema = format!("tenant_{name}");
        let mut statements = TABLES.replace("{s}", &schema);
        for table in NOTED {
            if !table.starts_with("message") {
                statements.push_str(&format!("ALTER TABLE {schema}.{table} REPLICA IDENTITY FULL;"));
            }
            statements.push_str(&format!(
                "CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {schema}.{table}
                     FOR EACH ROW EXECUTE FUNCTION public.note();
                 CREATE TRIGGER note_all AFTER TRUNCATE ON {schema}.{table} EXECUTE FUNCTION public.note();"
            ));
        }
        self.psql.batch_execute(&statements).await.unwrap();
        if let Some(fault) = &self.fault {
            fault.seed(&self.psql, &schema).await;
        }
        let bob = self.world.user(&name, "bob", UserType::Web).await;
        self.published().await;
        let answer = eventually("bob is logged in", || async {
            let body = json!({"tenant": name, "username": "bob", "password": PASSWORD}).to_string();
            let json = Some("application/json");
            let answer = self
                .api()
                .try_send(hyper::Method::POST, "/api/auth/login", json, body)
                .await;
            answer.ok().filter(|answer| answer.status == 200)
        });
        let token = answer.await.json()["token"].as_str().unwrap().to_owned();
        Tenant {
            name,
            schema,
            bob,
            token,
        }
    }
}
