//! The API over HTTP/1.1 and HTTP/2.
//!
//! [`routes`] is the whole surface in one table; [`service`] carries each request through it: route, admit, run, finish,
//! log. Handlers are plain functions from a [`request::Request`] to a response or an error, one file for each resource;
//! [`error`] maps the errors of features to statuses and codes. A client that disconnects cancels its handler; that is
//! safe, because every change is one statement or one transaction.

pub mod access_token;
pub mod account;
pub mod admission;
pub mod app_instructions;
pub mod auth;
mod batch_body;
mod confirmation;
pub mod conflicts;
pub mod console;
pub mod device_proof;
pub mod devices;
pub mod enrollment;
pub mod error;
pub mod health;
pub mod home;
pub(crate) mod item_body;
pub mod lane;
pub mod live;
pub mod messages;
pub mod metrics;
pub mod openapi;
pub mod password_reset;
pub mod presence;
pub mod rates;
pub mod request;
mod request_log;
pub mod routes;
pub mod second_factor;
pub mod service;
pub mod sessions;
pub mod state;
pub mod sync;
pub mod tables;
pub mod tickets;
pub mod unlisted_proxy;
pub mod users;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::access_token::Tokens;
use self::lane::Lane;
use self::rates::Rates;
use self::unlisted_proxy::UnlistedProxy;
use crate::accounts::devices::Devices;
use crate::accounts::external::ExternalUsers;
use crate::accounts::failed_logins::FailedLogins;
use crate::accounts::login_limits::Limits;
use crate::accounts::mail::Mails;
use crate::accounts::password::Passwords;
use crate::accounts::second_factor::SecondFactors;
use crate::accounts::sessions::Sessions;
use crate::accounts::standing::Standings;
use crate::accounts::tickets::Tickets;
use crate::accounts::users::Users;
use crate::config::Config;
use crate::config::rule::Rule;
use crate::core::lane::Lanes;
use crate::core::rate::Rate;
use crate::core::slots::Slots;
use crate::feature;
use crate::feature::budgets::Budgets;
use crate::feature::cache;
use crate::feature::turns::Turns;
use crate::http::error::{Code, Error};
use crate::live::gate::TailGate;
use crate::live::hub::Hub;
use crate::live::presence::Presence;
use crate::live::visibility::Visibility;
use crate::messages::Messages;
use crate::oidc::Providers;
use crate::postgres::{Database, tenants};
use crate::redis::store::Store;
use crate::sync::cursor::CursorKey;
use crate::sync::incoming::{self, Incoming};
use crate::sync::metadata::Metadata;
use crate::sync::outgoing::Outgoing;
use crate::sync::prefetch::Prefetch;
use crate::sync::report::Reports;
use crate::sync::statuses::Statuses;
use crate::telemetry::metrics::Metrics;
use uuid::Uuid;

/// The state of the API's handlers, one for the whole process.
#[derive(Debug)]
pub struct App {
    pub config: Arc<Config>,
    pub database: Database,
    pub passwords: Passwords,
    /// Issues and checks access tokens.
    pub tokens: Tokens,
    /// Verifies access tokens of other providers.
    pub providers: Providers,
    /// Finds and creates their users.
    pub external_users: ExternalUsers,
    pub sessions: Sessions,
    pub tickets: Tickets,
    pub limits: Limits,
    pub factors: SecondFactors,
    pub failed_logins: FailedLogins,
    /// Where a webhook sends mails.
    pub mails: Option<Mails>,
    /// Limits the requests of addresses, users, devices and tenants.
    pub rates: Rates,
    pub unlisted_proxy: UnlistedProxy,
    /// Authenticates devices.
    pub devices: Devices,
    /// Which tenants may write.
    pub budgets: Budgets,
    pub users: Users,
    pub messages: Messages,
    /// Counts the open streams of each user.
    pub streams: Slots<(Arc<str>, Uuid)>,
    /// Limits how often a user says how they are.
    pub declarations: Rate<(Arc<str>, Uuid)>,
    /// What each lane has for its tenants.
    pub lanes: Lanes<LaneApp>,
    pub cursors: CursorKey,
    /// Collects sync times.
    pub metadata: Metadata,
    pub metrics: Arc<Metrics>,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

/// What a lane has for its tenants.
#[derive(Debug, Clone)]
pub struct LaneApp {
    pub store: Store,
    pub hub: Hub,
    /// Whether Postgres shows what is published.
    pub visibility: Visibility,
    pub presence: Presence,
    /// Delivers batches to devices.
    pub incoming: Incoming,
    /// Takes uploads of devices.
    pub outgoing: Outgoing,
}

/// The connections and shared parts that an [`App`] is built from.
#[derive(Debug)]
pub struct Parts {
    pub database: Database,
    pub metrics: Arc<Metrics>,
    /// Where a webhook sends mails.
    pub mails: Option<Mails>,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

impl App {
    /// # Errors
    /// For an unusable setting, such as a missing token secret.
    pub fn new(config: Arc<Config>, lanes: &Lanes<Lane>, parts: Parts) -> anyhow::Result<Self> {
        config.check_secrets()?;
        let Parts {
            database,
            metrics,
            mails,
            stop,
        } = parts;
        // What belongs to no tenant, such as sessions and limits.
        let store = &lanes.main().store;
        let previous = config.auth.jwt_previous_secrets.iter();
        let cursors = previous.fold(CursorKey::derive(config.auth.jwt_secret.expose()), |key, secret| {
            key.or_previous(secret.expose())
        });
        let staleness_max = Duration::from_secs(config.health.max_staleness_seconds);
        let gates = lanes.map(|_, lane| TailGate::new(lane.hub.freshness(), staleness_max, lane.store.clone()));
        let are_open = gates.clone();
        let is_open = Arc::new(move |tenant: &str| are_open.of(tenant).is_open());
        let settings = cache::Settings::new(&config.cache, is_open, metrics.clone());
        let users = Users::new(database.clone(), &settings);
        let messages = Messages::new(database.clone(), &settings, &config);
        if config.cache.ttl_seconds > 0 {
            for (name, Lane { hub, .. }) in lanes.iter() {
                // The gate opens when all caches have seen a change, so it comes last.
                hub.add_listener(Arc::new(users.clone()));
                hub.add_listener(Arc::new(messages.clone()));
                if let Some(gate) = gates.named(name) {
                    hub.add_listener(Arc::new(gate.clone()));
                }
            }
        }
        let metadata = Metadata::default();
        let freshness = lanes.map(|_, lane| lane.hub.freshness());
        let standings = Standings::new(database.clone(), &config, freshness.clone());
        let budgets = Budgets::new(lanes, metrics.clone());
        let turns = Turns::new(config.postgres.pool_size);
        let apps = lanes.try_map(|_, lane| {
            let (store, visibility) = (&lane.store, &lane.visibility);
            let reports = Reports {
                store: store.clone(),
                metadata: metadata.clone(),
            };
            anyhow::Ok(LaneApp {
                store: store.clone(),
                hub: lane.hub.clone(),
                visibility: visibility.clone(),
                presence: Presence::new(&lane.config, store.operations().clone())?,
                incoming: Incoming {
                    database: database.clone(),
                    store: store.clone(),
                    cursors: cursors.clone(),
                    rules: Rule::of_changes(&config.groups)
                        .into_iter()
                        .chain(config.routes.iter().cloned())
                        .collect(),
                    providers: config.auth.providers.clone().into(),
                    prefetch: Prefetch::default(),
                    statuses: Statuses::new(messages.clone(), store.clone(), stop.clone()),
                    reports: reports.clone(),
                    visibility: visibility.clone(),
                    metrics: metrics.clone(),
                    never_synced: incoming::never_synced(database.clone()),
                },
                outgoing: Outgoing {
                    database: database.clone(),
                    store: store.clone(),
                    messages: messages.clone(),
                    reports,
                    metrics: metrics.clone(),
                    turns: turns.clone(),
                    config: config.clone(),
                    budgets: budgets.clone(),
                },
            })
        })?;
        let failed_logins = FailedLogins::new(database.clone());
        Ok(Self {
            providers: Providers::new(&config, metrics.auth.clone())?,
            external_users: ExternalUsers::new(
                database.clone(),
                standings.clone(),
                users.clone(),
                failed_logins.clone(),
            ),
            passwords: Passwords::new(&config.auth)?,
            tokens: Tokens::new(&config.auth),
            sessions: Sessions::new(store.clone(), standings, &config),
            tickets: Tickets::new(store.clone()),
            limits: Limits::new(store.clone(), &config),
            factors: SecondFactors::new(database.clone(), &config.auth)?,
            failed_logins,
            mails,
            rates: Rates::new(&config.rates, metrics.clone()),
            unlisted_proxy: UnlistedProxy::new(store.clone()),
            devices: Devices::new(
                database.clone(),
                users.clone(),
                &config,
                freshness,
                metrics.device_cache.clone(),
            ),
            budgets,
            streams: Slots::new(config.live.streams_per_user_max),
            declarations: Rate::per_minute(DECLARATIONS_PER_MINUTE),
            metadata,
            users,
            messages,
            database,
            config,
            lanes: apps,
            cursors,
            metrics,
            stop,
        })
    }
}

impl App {
    /// Makes sure that it is known where a tenant is, which may be new: [`Self::lane`] takes one that is not known to be in the main
    /// lane.
    ///
    /// # Errors
    /// When Postgres fails, or the tenant is in a lane that the configuration lacks.
    pub async fn place(&self, tenant: &str) -> Result<(), Error> {
        let places = self.lanes.places();
        if !self.lanes.has_others() || places.knows(tenant) {
            return Ok(());
        }
        let listed = tenants::registered(&self.database, tenant).await;
        let Some(listed) = listed.map_err(feature::Error::from)? else {
            return Ok(());
        };
        if self.lanes.named(&listed.lane).is_none() {
            return Err(Error::new(
                Code::SYNC_ERROR,
                "the tenant is in a lane that this process does not have",
            ));
        }
        places.note(tenant, &listed.lane);
        Ok(())
    }

    /// What the lane of a tenant has.
    pub fn lane(&self, tenant: &str) -> &LaneApp {
        self.lanes.of(tenant)
    }
}

/// How often a user may say that they are online or away.
const DECLARATIONS_PER_MINUTE: u32 = 60;

/// How long Redis may take for what a response does not depend on.
const OPTIONAL_TIMEOUT: Duration = Duration::from_millis(500);
