//! Lookups of caches: of devices, and of rows of Postgres.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::label::{Label, create};

fn result(is_hit: bool) -> &'static str {
    if is_hit { "hit" } else { "miss" }
}

/// Use of the cache of device tokens. Cloning shares the counters.
#[derive(Clone, Default)]
pub struct CacheUse {
    lookups: Family<Label, Counter>,
    /// Reads the number of entries.
    size: Arc<OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>>,
}

impl fmt::Debug for CacheUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheUse")
            .field("lookups", &self.lookups)
            .finish_non_exhaustive()
    }
}

impl CacheUse {
    pub(super) fn new() -> Self {
        let new = Self::default();
        create(&new.lookups, "result", &[result(true), result(false)]);
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "device_cache_lookups",
            "Lookups of device tokens in the cache (auth.device_cache_seconds), by result",
            self.lookups.clone(),
        );
    }

    /// Exposes the current size, if there is a cache.
    pub(crate) fn register_size(&self, now: &mut Registry) {
        if let Some(size) = self.size.get() {
            now.register(
                "device_cache_entries",
                "Approximate number of devices in the cache",
                ConstGauge::new(size() as f64),
            );
        }
    }

    pub fn lookup(&self, is_hit: bool) {
        self.lookups.get_or_create(&[("result", result(is_hit))]).inc();
    }

    /// Sets the function that reads the size of the cache. Only the first call has an effect.
    pub fn set_size(&self, size: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.size.set(Box::new(size));
    }
}

/// Use of the cache of rows of Postgres, by kind.
#[derive(Debug)]
pub struct QueryCache {
    lookups: Family<[(&'static str, &'static str); 2], Counter>,
}

/// What is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// The number of unread messages of a user.
    UnreadCount,
    /// The number of messages of a user.
    MessagesTotal,
    /// The number of mobile users of a tenant.
    UsersTotal,
    Message,
    User,
}

impl Cache {
    const ALL: [Self; 5] = [
        Self::UnreadCount,
        Self::MessagesTotal,
        Self::UsersTotal,
        Self::Message,
        Self::User,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::UnreadCount => "unread_count",
            Self::MessagesTotal => "messages_total",
            Self::UsersTotal => "users_total",
            Self::Message => "message",
            Self::User => "user",
        }
    }

    fn labels(self, is_hit: bool) -> [(&'static str, &'static str); 2] {
        [("cache", self.as_str()), ("result", result(is_hit))]
    }
}

impl QueryCache {
    pub(super) fn new() -> Self {
        let lookups: Family<_, Counter> = Family::default();
        for kind in Cache::ALL {
            for is_hit in [true, false] {
                drop(lookups.get_or_create(&kind.labels(is_hit)));
            }
        }
        Self { lookups }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "cache_lookups",
            "Lookups in the cache: answered from memory (hit) or by Postgres (miss)",
            self.lookups.clone(),
        );
    }

    pub fn lookup(&self, kind: Cache, is_hit: bool) {
        self.lookups.get_or_create(&kind.labels(is_hit)).inc();
    }
}
