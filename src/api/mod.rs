//! The API over HTTP/1.1 and HTTP/2.
//!
//! [`routes`] is the whole surface in one table; [`server`] carries a request through it: identify, route, admit, run,
//! answer, log, once for all. Handlers are plain functions from a [`request::Request`] to an answer or an
//! [`error::Error`], one file a resource. A client that goes away cancels its handler; that is safe, because every
//! change is one statement or one transaction.

pub mod app_instructions;
pub mod auth;
pub mod conflicts;
pub mod devices;
pub mod enrollment;
pub mod health;
pub mod live;
pub mod messages;
pub mod metrics;
pub mod openapi;
pub mod presence;
pub mod sessions;
pub mod state;
pub mod sync;
pub mod tickets;
pub mod users;

use std::sync::Arc;
use std::time::Duration;

use postgres_types::PgLsn;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::accounts::devices::Devices;
use crate::accounts::limits::Limits;
use crate::accounts::loader::Loader;
use crate::accounts::password::Passwords;
use crate::accounts::sessions::Sessions;
use crate::accounts::tickets::Tickets;
use crate::accounts::users::{self as account_users, UserType, Users};
use crate::config::Config;
use crate::config::rule::Rule;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;

use crate::feature::cache;
use crate::live::gate::TailGate;
use crate::live::hub::Hub;
use crate::live::presence::Presence;
use crate::messages::Messages;
use crate::postgres::Database;
use crate::redis::store::{Store, View};
use crate::sync::cursor::CursorKey;
use crate::sync::incoming::{self, Incoming};
use crate::sync::metadata::Metadata;
use crate::sync::prefetch::Prefetch;
use crate::sync::statuses::Statuses;
use crate::telemetry::metrics::Metrics;

/// What handlers work with; one for the whole process.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub config: Arc<Config>,
    /// Ordinary SQL.
    pub database: Database,
    /// Hashes and checks passwords.
    pub passwords: Passwords,
    /// Issues and checks access tokens.
    pub tokens: auth::Tokens,
    /// Keeps sessions.
    pub sessions: Sessions,
    /// Issues and takes tickets.
    pub tickets: Tickets,
    /// Counts and refuses.
    pub limits: Limits,
    /// Checks device tokens.
    pub devices: Devices,
    /// Tells the types of users who may act.
    pub active: Loader<(Tenant, Uuid), UserType>,
    /// Users, with their cache.
    pub users: Users,
    /// Messages, with their caches.
    pub messages: Messages,
    /// Who is here.
    pub presence: Presence,
    /// Reads the streams.
    pub store: Store,
    /// Who is connected here.
    pub hub: Hub,
    /// Makes and checks cursors.
    pub cursors: CursorKey,
    /// Makes devices' batches.
    pub incoming: Incoming,
    /// Gathers sync times.
    pub metadata: Metadata,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

/// What the app is made of besides the settings.
#[derive(Debug)]
pub struct Parts {
    /// Ordinary SQL.
    pub database: Database,
    /// Reads the streams.
    pub store: Store,
    /// Who is connected here.
    pub hub: Hub,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

impl App {
    /// Makes the parts that only depend on settings and connections.
    ///
    /// # Errors
    /// When a setting is unusable; a missing token secret, for example.
    pub fn new(config: Arc<Config>, parts: Parts) -> anyhow::Result<Self> {
        config.check_secrets()?;
        let Parts {
            database,
            store,
            hub,
            metrics,
            stop,
        } = parts;
        let previous = config.auth.jwt_previous_secrets.iter();
        let cursors = previous.fold(CursorKey::derive(config.auth.jwt_secret.expose()), |key, secret| {
            key.or_previous(secret.expose())
        });
        let gate = TailGate::new(
            hub.freshness(),
            Duration::from_secs(config.health.max_staleness_seconds),
            store.clone(),
        );
        let is_open = gate.clone();
        let settings = cache::Settings::new(&config.cache, Arc::new(move || is_open.is_open()), metrics.clone());
        let users = Users::new(database.clone(), &settings);
        let messages = Messages::new(database.clone(), &settings);
        if config.cache.ttl_seconds > 0 {
            hub.set_listeners(vec![
                Arc::new(users.clone()),
                Arc::new(messages.clone()),
                Arc::new(gate),
            ]);
        }
        Ok(Self {
            passwords: Passwords::new(&config.auth)?,
            tokens: auth::Tokens::new(&config.auth),
            sessions: Sessions::new(store.clone(), &config),
            tickets: Tickets::new(store.clone()),
            limits: Limits::new(store.clone(), &config),
            devices: Devices::new(
                database.clone(),
                users.clone(),
                &config,
                hub.freshness(),
                metrics.device_cache.clone(),
            ),
            active: account_users::types(database.clone()),
            presence: Presence::new(&config, store.operations().clone())?,
            incoming: Incoming {
                database: database.clone(),
                store: store.clone(),
                cursors: cursors.clone(),
                rules: [Rule::encrypted_states(), Rule::conflicts()]
                    .into_iter()
                    .chain(config.routes.iter().cloned())
                    .collect(),
                prefetch: Prefetch::default(),
                statuses: Statuses::new(messages.clone(), store.clone(), stop.clone()),
                never_synced: incoming::never_synced(database.clone()),
            },
            metadata: Metadata::default(),
            users,
            messages,
            database,
            config,
            store,
            hub,
            cursors,
            metrics,
            stop,
        })
    }

    /// The stream ID that stands for a place in the write-ahead log; `None` while Redis does not tell the epoch.
    pub async fn stream_id_of(&self, lsn: PgLsn) -> Option<StreamId> {
        let View { base, .. } = tokio::time::timeout(PATIENCE, self.store.view()).await.ok()?.ok()?;
        Some(StreamId {
            ms: u64::from(lsn).saturating_add(base),
            seq: 0,
        })
    }
}

/// How long Redis may take for what an answer can do without.
const PATIENCE: Duration = Duration::from_millis(500);
