//! A small company: the tenant `acme` with bob and jane at the web, joe and sally on phones, and a running engine.

use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::engine::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use super::http::Api;
use super::{RunningEngine, World, eventually};

/// The world with its people.
pub(crate) struct Office {
    pub(crate) world: World,
    pub(crate) engine: RunningEngine,
    /// A client without credentials.
    pub(crate) anybody: Api,
    /// A web user, logged in.
    pub(crate) bob: Api,
    pub(crate) bob_id: Uuid,
    /// A mobile user.
    pub(crate) joe_id: Uuid,
}

impl Office {
    /// An office under the default settings of tests.
    pub(crate) async fn open() -> Self {
        Self::with(|_| {}).await
    }

    /// An office under other settings.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::within(World::new().await, change).await
    }

    /// An office in a world that is there.
    pub(crate) async fn within(mut world: World, change: impl FnOnce(&mut Config)) -> Self {
        // Tests often wait until something is published, which a heartbeat ends at the latest.
        world.config.replication.heartbeat_interval_ms = 100;
        change(&mut world.config);
        let engine = world.engine(Role::All).await;
        // What is commanded before the slot exists is in no log.
        world.published().await;
        world.tenant("acme").await;
        let bob_id = world.user("acme", "bob", UserType::Web).await;
        let joe_id = world.user("acme", "joe", UserType::Mobile).await;
        // Before the first checkpoint there are no streams, and a request for one is answered with Retry-After.
        world.published().await;
        let anybody = engine.api();
        let bob = anybody.log_in("acme", "bob").await;
        Self {
            world,
            engine,
            anybody,
            bob,
            bob_id,
            joe_id,
        }
    }

    /// A phone of joe's, enrolled and published: what it syncs from now on is what a test writes.
    pub(crate) async fn phone(&self, device_id: &str) -> Api {
        let phone = self.bob.enroll(device_id, Some(&self.joe_id.to_string())).await.0;
        self.world.published().await;
        phone
    }

    /// Bob writes to joe; gives the message's id.
    pub(crate) async fn send(&self, content: &str) -> String {
        let body = json!({"recipient_id": self.joe_id, "content": content});
        id(&self.bob.post("/api/messages", &body).await.expect(201))
    }

    /// Somebody writes so many messages from bob to joe by SQL, in one transaction; gives their ids in order.
    pub(crate) async fn insert(&self, count: i32) -> Vec<String> {
        let statement = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content, created_at) \
                         SELECT $1, $2, 'message ' || n, now() + n * interval '1 microsecond' \
                         FROM generate_series(1, $3) n RETURNING id";
        let psql = self.world.psql().await;
        let rows = psql.query(statement, &[&self.bob_id, &self.joe_id, &count]).await;
        rows.unwrap()
            .iter()
            .map(|row| row.get::<_, Uuid>(0).to_string())
            .collect()
    }

    /// Runs a statement as another client than the engine.
    pub(crate) async fn sql(&self, statement: &str) {
        self.world.psql().await.batch_execute(statement).await.unwrap();
    }

    /// A message as bob sees it.
    pub(crate) async fn message(&self, id: &str) -> Value {
        self.bob.get(&format!("/api/messages/{id}")).await.expect(200)
    }

    /// Waits until the engine calls itself ready; gives its checks and their details.
    pub(crate) async fn ready(&self) -> Value {
        eventually("the engine is ready", || async {
            let answer = self.anybody.admin().get("/ready").await;
            (answer.status == 200).then(|| answer.json())
        })
        .await
    }

    /// Stops the engine.
    pub(crate) async fn close(self) {
        self.engine.stop().await;
    }
}

/// The `id` of a row.
#[track_caller]
pub(crate) fn id(row: &Value) -> String {
    row["id"].as_str().unwrap().to_owned()
}

/// The ids of the rows in a list.
#[track_caller]
pub(crate) fn ids(rows: &Value) -> Vec<String> {
    rows.as_array().unwrap().iter().map(id).collect()
}
