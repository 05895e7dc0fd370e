//! Notes a proxy that is not in `server.trusted_proxies`: all its clients count as one against the limits.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::redis::store::Store;

/// How often the note is written again.
const INTERVAL: Duration = Duration::from_secs(3600);

/// How long `doctor` shows it.
const LIFETIME: Duration = Duration::from_secs(86_400);

/// The note.
#[derive(Debug)]
pub struct UnlistedProxy {
    store: Store,
    noted_at: Mutex<Option<Instant>>,
}

impl UnlistedProxy {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            noted_at: Mutex::default(),
        }
    }

    /// Notes that this peer forwards for clients. The log has the first one only.
    pub fn note(&self, peer: IpAddr) {
        {
            let mut noted_at = self.noted_at.lock();
            if noted_at.is_some_and(|at| at.elapsed() < INTERVAL) {
                return;
            }
            if noted_at.is_none() {
                tracing::warn!(
                    %peer,
                    "a peer sends X-Forwarded-For or Forwarded but is not in server.trusted_proxies: all its clients count \
                     as one, and anybody can use up their limits; list it if it is your proxy"
                );
            }
            *noted_at = Some(Instant::now());
        }
        let store = self.store.clone();
        tokio::spawn(async move {
            let mut pipe = redis::pipe();
            let key = store.keys().unlisted_proxy();
            pipe.set_ex(key, peer.to_string(), LIFETIME.as_secs()).ignore();
            if let Err(error) = store.query::<()>(&pipe).await {
                tracing::debug!(%error, "an unlisted proxy was not noted");
            }
        });
    }
}
