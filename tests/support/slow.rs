//! A Postgres whose commits are published before any `SELECT` sees them.

use posduif::config::Config;
use posduif::core::tenant::Tenant;
use posduif::engine::Role;
use posduif::postgres::Database;
use posduif::redis::store::Store;
use uuid::Uuid;

use super::servers::{self, Own};
use super::stage::Stage;
use super::{World, eventually};

pub(crate) const INSERT: &str =
    "INSERT INTO tenant_acme.messages (id, sender_id, recipient_id, content) VALUES ($1, $2, $3, 'x')";

/// A stage whose Postgres can keep commits invisible: shipped, but waiting for a standby that does not exist. Only
/// sessions that ask for it wait.
pub(crate) struct Slow {
    pub(crate) stage: Stage,
    pub(crate) store: Store,
    pub(crate) database: Database,
    pub(crate) tenant: Tenant,
    admin: tokio_postgres::Client,
    // Last: the world is cleaned up before its server goes.
    _server: Own<posduif::dev::PrivatePostgres>,
}

impl Slow {
    pub(crate) async fn new() -> Self {
        Self::with(Role::Replicator).await
    }

    pub(crate) async fn with(role: Role) -> Self {
        Self::configured(role, |_| {}).await
    }

    /// One whose engine has other settings.
    pub(crate) async fn configured(role: Role, change: impl FnOnce(&mut Config)) -> Self {
        let server = servers::postgres().await;
        let mut world = World::on(&server.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
        change(&mut world.config);
        let admin = world.psql().await;
        let name: String = admin
            .query_one("SELECT current_database()::text", &[])
            .await
            .unwrap()
            .get(0);
        let local = format!("ALTER DATABASE {name} SET synchronous_commit = local");
        admin.batch_execute(&local).await.unwrap();
        let admin = world.psql().await;
        let stage = Stage::on_with(world, role).await;
        Self {
            store: Store::new(&stage.world.config.redis).unwrap(),
            database: stage.world.database().await,
            tenant: Tenant::named("acme").unwrap(),
            stage,
            admin,
            _server: server,
        }
    }

    /// From now on, waiting sessions' commits stay invisible, or become visible.
    pub(crate) async fn hold(&self, held: bool) {
        let set = match held {
            true => "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
            false => "ALTER SYSTEM RESET synchronous_standby_names",
        };
        self.admin.batch_execute(set).await.unwrap();
        self.admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        // Each process of the server reads its settings when it comes to it. Holding has begun when a commit is held.
        loop {
            let session = self.waiting_session().await;
            let emit = "SELECT pg_logical_emit_message(true, 'test', '')";
            let probe = tokio::spawn(async move { session.batch_execute(emit).await });
            let is_held = eventually("a commit is held or not", || async {
                let held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
                let held: i64 = self.admin.query_one(held, &[]).await.unwrap().get(0);
                match held {
                    0 => probe.is_finished().then_some(false),
                    _ => Some(true),
                }
            })
            .await;
            if is_held == held {
                return;
            }
        }
    }

    /// A session that waits for the standby.
    pub(crate) async fn waiting_session(&self) -> tokio_postgres::Client {
        let client = self.stage.world.psql().await;
        client.batch_execute("SET synchronous_commit = on").await.unwrap();
        client
    }

    /// Commits statements that no SELECT shows while commits are held, as one transaction; gives the commit once it is
    /// published.
    pub(crate) async fn invisible(&self, statements: &str) -> tokio::task::JoinHandle<()> {
        let session = self.waiting_session().await;
        let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let statements = statements.to_owned();
        let commit = tokio::spawn(async move { session.batch_execute(&statements).await.unwrap() });
        eventually("the commit waits for the standby", || async {
            let waits = "SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
            self.admin.query_opt(waits, &[&pid]).await.unwrap().map(|_| ())
        })
        .await;
        self.stage.world.published().await;
        commit
    }

    /// Commits a message that no SELECT sees while commits are held; gives its id, and the commit.
    pub(crate) async fn invisible_message(&self, from: Uuid, to: Uuid) -> (Uuid, tokio::task::JoinHandle<()>) {
        let id = Uuid::new_v4();
        let session = self.waiting_session().await;
        let commit = tokio::spawn(async move {
            session.execute(INSERT, &[&id, &from, &to]).await.unwrap();
        });
        let inbox = self.stage.world.keys().inbox("acme", &to.to_string());
        eventually("the invisible commit is in the stream", || async {
            let entries = self.stage.world.stream(&inbox).await;
            let is_it = |entry: &crate::support::Entry| {
                entry.field("op") == "insert" && entry.json("row")["id"] == id.to_string()
            };
            entries.iter().any(is_it).then_some(())
        })
        .await;
        (id, commit)
    }
}
