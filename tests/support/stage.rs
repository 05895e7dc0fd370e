//! A world in which something goes on already: an engine follows the log, and a tenant has users.

use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::engine::Role;
use uuid::Uuid;

use super::oracle::Oracle;
use super::{Entry, RunningEngine, World};

/// An engine, the tenant `acme`, its web user Bob and its mobile user Joe.
pub(crate) struct Stage {
    // Before the world: fields are dropped in this order, and the engine must not see the database go.
    pub(crate) engine: Option<RunningEngine>,
    pub(crate) oracle: Oracle,
    pub(crate) psql: tokio_postgres::Client,
    pub(crate) bob: Uuid,
    pub(crate) joe: Uuid,
    pub(crate) world: World,
}

impl Stage {
    /// A stage in a new world.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A stage in a new world with other settings.
    pub(crate) async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let mut world = World::new().await;
        configure(&mut world.config);
        Self::on(world).await
    }

    /// A stage in this world, with a replicator in the test.
    pub(crate) async fn on(world: World) -> Self {
        Self::on_with(world, Role::Replicator).await
    }

    /// A stage in this world, with an engine in the test.
    pub(crate) async fn on_with(world: World, role: Role) -> Self {
        let engine = world.engine(role).await;
        // The first epoch has started when the tenant is created, so that its streams are created once.
        world.published().await;
        Self {
            engine: Some(engine),
            ..Self::without_engine(world).await
        }
    }

    /// A stage in a world whose control schema exists, without an engine.
    pub(crate) async fn without_engine(world: World) -> Self {
        let oracle = Oracle::new(&world).await;
        world.tenant("acme").await;
        Self {
            engine: None,
            oracle,
            psql: world.psql().await,
            bob: world.user("acme", "bob", UserType::Web).await,
            joe: world.user("acme", "joe", UserType::Mobile).await,
            world,
        }
    }

    /// A stage in this world, with the engine in a process of its own.
    pub(crate) async fn with_process(world: World, role: &str) -> (Self, super::Process) {
        let process = world.process(role).await;
        world.published().await;
        (Self::without_engine(world).await, process)
    }

    /// Runs statements as another client.
    pub(crate) async fn sql(&self, sql: &str) {
        self.psql.batch_execute(sql).await.unwrap();
    }

    /// The server's version: 150018 is 15.18.
    pub(crate) async fn server_version(&self) -> i32 {
        let version = "SELECT current_setting('server_version_num')::int";
        self.psql.query_one(version, &[]).await.unwrap().get(0)
    }

    /// Inserts a message and gives its id.
    pub(crate) async fn message(&self, from: Uuid, to: Uuid, content: &str) -> Uuid {
        let insert =
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, $3) RETURNING id";
        self.psql
            .query_one(insert, &[&from, &to, &content])
            .await
            .unwrap()
            .get(0)
    }

    /// Another user of the tenant.
    pub(crate) async fn user(&self, username: &str) -> Uuid {
        self.world.user("acme", username, UserType::Mobile).await
    }

    /// What is in a user's inbox once all that is committed has been published.
    pub(crate) async fn inbox(&self, user: Uuid) -> Vec<Entry> {
        self.world.published().await;
        let key = self.world.keys().inbox("acme", &user.to_string());
        self.world.stream(&key).await
    }

    /// What is in the tenant's stream of all changes once all that is committed has been published.
    pub(crate) async fn changes(&self) -> Vec<Entry> {
        self.world.published().await;
        self.world.stream(&self.world.keys().changes("acme")).await
    }

    /// What is in the tenant's shared stream once all that is committed has been published.
    pub(crate) async fn shared(&self) -> Vec<Entry> {
        self.world.published().await;
        self.world.stream(&self.world.keys().shared("acme")).await
    }

    /// Stops the engine, if it is in the test.
    pub(crate) async fn stop(mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop().await;
        }
    }
}
