//! Presence: who is here right now.
//!
//! A user is online while one of their devices or web sessions has an open stream, away when all that have one say so, and
//! offline when the last stream has been closed for longer than the grace. It is ephemeral: it lives in Redis, nothing
//! durable depends on it, and what is lost there comes back within a heartbeat.
//!
//! - [`Presence::enter`] makes a stream count for as long as what it gives is kept. This process holds its streams in
//!   Redis together, a few hundred at once (`streams`); when it dies, they end by themselves.
//! - The statuses of users are folded in Redis by scripts (`store`), so that all nodes see the same.
//! - [`Presence::watch`] delivers the presence of a tenant to a reader: first the whole, then what changes. All readers of a
//!   tenant share the same text, and how much a process delivers is bounded (`rooms`).
//! - [`Presence::last_seen`] returns when users and devices left, for the task that writes these times to Postgres.
//!
//! Without Redis nothing here waits for longer than [`TIMEOUT`]; callers must be able to continue without a result.

mod entry;
mod rooms;
mod store;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::rooms::Rooms;
use self::store::{Asked, PresenceStore};
use self::streams::Streams;
use crate::config::Config;
use crate::telemetry::metrics::Operations;

pub use self::entry::{Entry, Error, Place, Status};
pub use self::rooms::Watcher;
pub use self::store::{LastSeen, List};
pub use self::streams::Here;

/// The timeout of each request to Redis.
pub const TIMEOUT: Duration = store::TIMEOUT;

/// Reads and writes presence. Cloning shares all of it.
#[derive(Debug, Clone)]
pub struct Presence {
    store: PresenceStore,
    streams: Arc<Streams>,
    rooms: Arc<Rooms>,
}

impl Presence {
    /// Presence without its tasks, which [`Presence::run`] is.
    ///
    /// # Errors
    /// When `redis.url` is malformed.
    pub fn new(config: &Config, operations: Operations) -> anyhow::Result<Self> {
        let store = PresenceStore::connect(config, operations)?;
        Ok(Self {
            streams: Arc::new(Streams::new(config)),
            rooms: Arc::new(Rooms::new(&config.presence)),
            store,
        })
    }

    /// Holds streams and notifies readers until `stop`; then this process's streams leave.
    pub async fn run(self, config: Arc<Config>, stop: CancellationToken) {
        let heartbeat = Duration::from_secs(config.live.heartbeat_seconds);
        tokio::join!(
            self.streams.run(&self.store, heartbeat, &stop),
            self.rooms.run(&self.store, &self.streams, &stop),
        );
    }

    /// Counts a stream as open until what this gives is dropped.
    pub fn enter(&self, tenant: &str, user: Uuid, place: &Place) -> Here {
        Streams::enter(&self.streams, tenant, user, &place.name())
    }

    /// Notes what a device or session says of itself; gives what its user is with that. Without an open stream it counts
    /// as here for a while.
    ///
    /// # Errors
    /// When Redis does not do it.
    pub async fn declare(&self, tenant: &str, user: Uuid, place: &Place, status: Status) -> Result<Status, Error> {
        self.store.declare(tenant, user, place, status).await
    }

    /// Delivers the presence of a tenant, and then its changes.
    pub fn watch(&self, tenant: &str) -> Watcher {
        Rooms::watch(&self.rooms, tenant)
    }

    /// Users who are here, or have been within the hour; the last changed first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn page(&self, tenant: &str, limit: i64, offset: i64) -> Result<List, Error> {
        self.store.list(tenant, Asked::Page { offset, limit }).await
    }

    /// How these users are, at most a thousand. Who has not been here within the hour is left out.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn of(&self, tenant: &str, users: &[Uuid]) -> Result<List, Error> {
        self.store.list(tenant, Asked::Of(users)).await
    }

    /// When users and devices of a tenant were last seen, as far as Postgres lacks it, up to so many. Those that were
    /// written since the last call are not returned again.
    pub async fn last_seen(&self, tenant: &str, written: &[LastSeen], most: usize) -> Result<Vec<LastSeen>, Error> {
        self.store.unwritten(tenant, written, most).await
    }

    /// Claims the interval in which this process writes last seen times to Postgres; false when another has it.
    pub async fn claim_last_seen(&self, interval: Duration) -> Result<bool, Error> {
        self.store.claim_last_seen(interval).await
    }

    /// The tenant's users who are online or away.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn present(&self, tenant: &str) -> Result<List, Error> {
        self.store.list(tenant, Asked::Present).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_status_time_and_devices() {
        let user = Uuid::from_u128(7);
        let record = format!(
            "online 1732500000123 phone-1/away/2/0 a:b.c_d-e/online/1/5 @{}/online/3/0",
            Uuid::nil()
        );
        let entry = Entry::parse(&user.to_string(), &record).expect("a record");
        assert_eq!(
            (entry.user, entry.status, entry.seen_ms),
            (user, Status::Online, 1_732_500_000_123)
        );
        let devices = [
            ("phone-1".to_owned(), Status::Away),
            ("a:b.c_d-e".to_owned(), Status::Online),
        ];
        assert_eq!(entry.devices, devices);
        for bad in ["", "online", "here 5", "online x"] {
            assert_eq!(Entry::parse(&user.to_string(), bad), None, "{bad:?}");
        }
    }
}
