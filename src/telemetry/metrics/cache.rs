//! How often a cache helps, and how much it holds.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Label;

/// The use of one cache. Cloning shares the counters.
#[derive(Clone, Default)]
pub struct CacheUse {
    lookups: Family<Label, Counter>,
    /// Tells the number of entries.
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
        for result in ["hit", "miss"] {
            let _zero = new.lookups.get_or_create(&[("result", result)]);
        }
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "device_cache_lookups",
            "Devices that showed a token, by whether the cache knew them (auth.device_cache_seconds)",
            self.lookups.clone(),
        );
    }

    /// Shows the size of this moment, where there is a cache.
    pub(crate) fn register_size(&self, now: &mut Registry) {
        if let Some(size) = self.size.get() {
            now.register(
                "device_cache_entries",
                "Devices that the cache knows, roughly",
                ConstGauge::new(size() as f64),
            );
        }
    }

    /// Somebody asked the cache.
    pub fn asked(&self, known: bool) {
        let result = if known { "hit" } else { "miss" };
        self.lookups.get_or_create(&[("result", result)]).inc();
    }

    /// Whoever wants to know the size calls this.
    pub fn measured_by(&self, size: impl Fn() -> u64 + Send + Sync + 'static) {
        // A second cache would have counters of its own.
        let _ = self.size.set(Box::new(size));
    }
}
