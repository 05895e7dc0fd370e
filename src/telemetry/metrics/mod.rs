//! Counters and histograms for Prometheus.
//!
//! Each engine has its own registry, since several may run in one process. The structs here are updated once per batch or
//! request, never once per row, and take plain numbers and labels: this module knows no other part of the engine. Gauges
//! that can be read at scrape time are built by the handler of `/metrics` (`src/api/metrics.rs`), which may read every part.
//! Labels have few values, all known beforehand: no tenant, no user, no raw path.

mod auth;
mod cache;
mod http;
mod label;
mod mail;
mod operations;
mod push;
mod replication;
mod sync;

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

pub use self::auth::{Auth, ExternalToken, KeyRead};
pub use self::cache::{Cache, CacheUse, QueryCache};
pub use self::http::{Direction, Gzip, Http, LimitedBy, LoginResult, OpenConnection, RequestLabels};
pub use self::label::{Label, Labels};
pub use self::mail::{Mail, MailResult};
pub use self::operations::Operations;
pub use self::push::Push;
pub use self::replication::{Bound, Replication, ReplicationCounts};
pub use self::sync::{Source, Sync};
use crate::telemetry::journal::Journal;
use crate::telemetry::process;

/// The format of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// First part of every name.
const PREFIX: &str = "posduif";

/// The counters of an engine.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub replication: Replication,
    pub http: Http,
    /// Shared with the readers of keys.
    pub auth: Arc<Auth>,
    pub gzip: Gzip,
    pub mail: Mail,
    pub push: Push,
    pub sync: Sync,
    /// The cache of device tokens.
    pub device_cache: CacheUse,
    /// The cache of rows of Postgres.
    pub query_cache: QueryCache,
    /// What the console shows of the last moments.
    pub journal: Journal,
}

/// A registry with the engine's prefix.
pub fn registry() -> Registry {
    Registry::with_prefix(PREFIX)
}

impl Metrics {
    /// Counters at zero. Those of the replicator are exposed only where one runs.
    pub fn new(replicates: bool, labels: &Labels) -> Self {
        let mut registry = registry();
        let new = Self {
            replication: Replication::new(labels),
            http: Http::new(labels),
            auth: Arc::new(Auth::new()),
            gzip: Gzip::new(),
            mail: Mail::new(),
            push: Push::new(),
            sync: Sync::new(labels),
            device_cache: CacheUse::new(),
            query_cache: QueryCache::new(),
            journal: Journal::default(),
            registry: Registry::default(),
        };
        if replicates {
            new.replication.register(&mut registry);
            new.push.register(&mut registry);
        }
        new.http.register(&mut registry);
        new.auth.register(&mut registry);
        new.gzip.register(&mut registry);
        new.mail.register(&mut registry);
        new.sync.register(&mut registry);
        new.device_cache.register(&mut registry);
        new.query_cache.register(&mut registry);
        Self { registry, ..new }
    }

    /// All counters, and the gauges of `now`, as OpenMetrics text.
    ///
    /// # Errors
    /// When a metric cannot be written, which does not happen for the types used here.
    pub fn render(&self, now: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        for registry in [now, &self.registry, &process::registry()] {
            text::encode_registry(&mut text, registry)?;
        }
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}
