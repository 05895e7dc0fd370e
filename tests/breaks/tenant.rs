//! The tenants of a run, and one that gives its name to another.

use std::collections::BTreeMap;
use std::time::Duration;

use posduif::accounts::users::UserType;
use posduif::admin::published;
use posduif::core::lane::MAIN;
use posduif::postgres::tenants;
use posduif::redis::store::Store;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::device::Device;
use super::{CONVERGENCE, NOTES_OF_GLOBEX, Run};
use crate::support::http::Api;
use crate::support::{PASSWORD, World, eventually_within, try_connect};

/// The tenant whose tables change.
pub(super) const ACME: &str = "acme";

/// The tenant that fills Redis, writes large rows, and is dropped.
pub(super) const GLOBEX: &str = "globex";

/// The lane beside the main one, between which it is moved.
pub(super) const OTHER_LANE: &str = "eu";

/// How long a drop waits until it is published.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);

/// A tenant with bob at the web and two mobile users.
pub(super) struct Tenant {
    pub(super) users: Vec<Uuid>,
    /// Bob's session.
    pub(super) bob: Api,
    pub(super) refresh_token: String,
}

impl Tenant {
    /// A new tenant with a table of notes. Its mobile users may be those of an earlier one, as from a backup.
    pub(super) async fn create(world: &World, api: &Api, name: &str, notes: &str, users: &[Uuid]) -> Self {
        world.tenant(name).await;
        let psql = world.psql().await;
        psql.batch_execute(notes).await.unwrap();
        world.user(name, "bob", UserType::Web).await;
        let mut found = users.to_vec();
        for (number, username) in ["joe", "jane"].into_iter().enumerate() {
            if let Some(id) = users.get(number) {
                let insert =
                    format!("INSERT INTO tenant_{name}.users (id, username, user_type) VALUES ($1, $2, 'mobile')");
                psql.execute(&insert, &[id, &username]).await.unwrap();
            } else {
                found.push(world.user(name, username, UserType::Mobile).await);
            }
        }
        world.published().await;
        let body = json!({"tenant": name, "username": "bob", "password": PASSWORD});
        let answer = api.post("/api/auth/login", &body).await.expect(200);
        let text = |name: &str| answer[name].as_str().unwrap();
        Self {
            users: found,
            bob: api.with("authorization", &format!("Bearer {}", text("token"))),
            refresh_token: text("refresh_token").to_owned(),
        }
    }

    /// Enrolls devices that hold nothing, in turn for each mobile user.
    pub(super) async fn enroll(&self, name: &'static str, count: usize) -> Vec<Device> {
        let mut devices = Vec::new();
        for number in 0..count {
            let (user, id) = (self.users[number % 2], format!("device-{number}"));
            devices.push(Device {
                api: self.bob.enroll(&id, Some(&user.to_string())).await.0,
                tenant: name,
                user,
                cursor: None,
                notes: BTreeMap::new(),
                messages: BTreeMap::new(),
                resets: 0,
            });
        }
        devices
    }
}

impl Run {
    /// Drops a tenant and creates one of the same name, while rows of both tenants are written.
    pub(super) async fn recreate_tenant(&mut self) {
        let former: Vec<Device> = self.devices.extract_if(.., |device| device.tenant == GLOBEX).collect();
        let users = match self.random.one_in(2) {
            true => self.globex.users.clone(),
            false => Vec::new(),
        };
        let (stop, load) = self.load();
        let database = self.world.database().await;
        let lane = self.world.in_lane(self.lane().await);
        let store = Store::new(&lane.config.redis).unwrap();
        let dropped = tenants::drop(&database, GLOBEX).await.unwrap().unwrap();
        let place = (&store, &lane.config.lane);
        let removing = published::remove_tenant(&database, place, GLOBEX, dropped, DROP_TIMEOUT, |_| {});
        // The next tenant may come before the keys of the former one are gone.
        let is_at_once = self.random.one_in(2);
        let api = self.api();
        let creating = Tenant::create(&self.world, &api, GLOBEX, NOTES_OF_GLOBEX, &users);
        let tenant = if is_at_once {
            let (removed, tenant) = tokio::join!(removing, creating);
            removed.unwrap();
            tenant
        } else {
            removing.await.unwrap();
            creating.await
        };
        let mut devices = tenant.enroll(GLOBEX, former.len()).await;
        stop.cancel();
        load.await.unwrap();
        let former_tenant = std::mem::replace(&mut self.globex, tenant);

        // The devices and the session of the former tenant end, and what they receive until then is nothing of the next.
        for device in &former {
            let cursor = device
                .cursor
                .as_ref()
                .map_or(String::new(), |at| format!("?cursor={at}"));
            let path = format!("/api/sync/incoming{cursor}");
            self.is_refused("a device of the former tenant", || async {
                device.api.get(&path).await.status
            })
            .await;
        }
        let bob = &former_tenant.bob;
        self.is_refused("the session of the former tenant", || async {
            bob.get("/api/messages").await.status
        })
        .await;
        let refresh = json!({"refresh_token": former_tenant.refresh_token});
        let refreshed = self.api().post("/api/auth/refresh", &refresh).await;
        assert_eq!(refreshed.status, 401, "the refresh token of the former tenant");

        // One comes with the cursor of a device of the former tenant that had the same name.
        if let (Some(device), Some(former)) = (devices.first_mut(), former.into_iter().next()) {
            device.cursor = former.cursor;
            (device.notes, device.messages) = (former.notes, former.messages);
        }
        self.devices.extend(devices);
    }

    /// The lane of the tenant. A copy of Postgres that is put in its place may have it in another one.
    async fn lane(&self) -> &'static str {
        let query = "SELECT lane = 'main' FROM posduif.tenants WHERE name = 'globex'";
        match self.world.psql().await.query_one(query, &[]).await.unwrap().get(0) {
            true => MAIN,
            false => OTHER_LANE,
        }
    }

    /// Moves the tenant to the other lane, while rows of both tenants are written.
    pub(super) async fn move_tenant(&mut self) {
        let (stop, load) = self.load();
        let database = self.world.database().await;
        let to = match self.lane().await {
            MAIN => OTHER_LANE,
            _ => MAIN,
        };
        tenants::move_to(&database, GLOBEX, to).await.unwrap().unwrap();
        self.world.in_lane(to).published().await;
        stop.cancel();
        load.await.unwrap();
    }

    async fn is_refused<F: Future<Output = hyper::StatusCode>>(&self, what: &str, ask: impl Fn() -> F) {
        eventually_within(CONVERGENCE, &format!("{what} is refused"), || async {
            (ask().await == 401).then_some(())
        })
        .await;
    }

    /// Writes rows of both tenants until it is stopped.
    fn load(&self) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let (stop, url) = (
            CancellationToken::new(),
            self.world.config.postgres.url.expose().to_owned(),
        );
        let (stopped, user) = (stop.clone(), self.acme.users[0]);
        let load = tokio::spawn(async move {
            let Some(client) = try_connect(&url).await else { return };
            while !stopped.is_cancelled() {
                let insert = format!(
                    "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
                     SELECT id, '{user}', 'load' FROM tenant_acme.users WHERE username = 'bob'"
                );
                client.batch_execute(&insert).await.unwrap();
                // There may be no such tenant.
                let other = "INSERT INTO tenant_globex.messages (sender_id, recipient_id, content) \
                             SELECT id, id, 'load' FROM tenant_globex.users";
                let _ = client.batch_execute(other).await;
            }
        });
        (stop, load)
    }
}
