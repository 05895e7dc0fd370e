//! What is counted, for Prometheus.
//!
//! Each engine has a registry of its own, since several may run in one process. Counters and histograms live here and are
//! fed once a batch or a request, never once a row; what can be read off when somebody asks, gauges above all, is put
//! together by [`crate::api::metrics`]. Labels have few values, all known beforehand: no tenant, no user, no raw path.

mod cache;
mod operations;
mod sync;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use self::cache::CacheUse;
pub use self::operations::Operations;
pub use self::sync::{Source, Sync};
use crate::replication::end::FailureCause as Cause;
use crate::replication::epoch::Break;
use crate::replication::pipeline::Counts;
use crate::sync::outgoing::Outcome;
use crate::telemetry::process;

/// First part of every name.
const PREFIX: &str = "posduif";

/// The kinds of refusals that are told apart: the first word of what Redis answers.
const REFUSALS: [&str; 5] = ["OOM", "READONLY", "LOADING", "MISCONF", "NOPERM"];

/// One label and its value.
pub type Label = [(&'static str, &'static str); 1];

/// What a request is counted under: its method, its route's pattern, and the class of its status.
pub type RequestLabels = [(&'static str, &'static str); 3];

/// An engine's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What the replicator does.
    pub replication: Replication,
    /// What the HTTP server does.
    pub http: Http,
    /// What is compressed and inflated.
    pub gzip: Gzip,
    /// Devices that are woken.
    pub push: Push,
    /// What devices sync.
    pub sync: Sync,
    /// The cache of who a device is.
    pub cache: CacheUse,
    /// What is looked up in memory.
    pub caches: Caches,
}

/// What the replicator counts.
#[derive(Debug)]
pub struct Replication {
    transactions: Counter,
    changes: Counter,
    replayed: Counter,
    quarantined: Counter,
    ignored_messages: Counter,
    batches: Counter,
    entries: Counter,
    decode_seconds: Counter<f64, AtomicU64>,
    received_bytes: Counter,
    exec_seconds: Histogram,
    batch_changes: Histogram,
    batch_bytes: Histogram,
    growing_changes: Gauge,
    trims_waiting: Gauge,
    tenants: Gauge,
    refusals: Family<Label, Counter>,
    restarts: Family<Label, Counter>,
    epochs: Family<Label, Counter>,
}

/// What the HTTP server counts.
#[derive(Debug)]
pub struct Http {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RequestLabels, Histogram, fn() -> Histogram>,
    sse_events: Family<Label, Counter>,
    websocket_items: Family<Label, Counter>,
    connections: Gauge,
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Devices that are woken.
#[derive(Debug, Default)]
pub struct Push {
    triggers: Counter,
    webhooks: Family<Label, Counter>,
}

/// What is remembered of Postgres, by kind.
#[derive(Debug)]
pub struct Caches {
    lookups: Family<[(&'static str, &'static str); 2], Counter>,
}

/// A kind of what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// How many messages a user has not read.
    UnreadCount,
    /// How many messages a user has.
    MessagesTotal,
    /// How many mobile users a tenant has.
    UsersTotal,
    /// Messages.
    Message,
    /// Users.
    User,
}

impl Cache {
    fn as_str(self) -> &'static str {
        match self {
            Self::UnreadCount => "unread_count",
            Self::MessagesTotal => "messages_total",
            Self::UsersTotal => "users_total",
            Self::Message => "message",
            Self::User => "user",
        }
    }
}

/// Compressing and inflating, by direction.
#[derive(Debug)]
pub struct Gzip {
    plain_bytes: Family<Label, Counter>,
    packed_bytes: Family<Label, Counter>,
    seconds: Family<Label, Histogram, fn() -> Histogram>,
}

/// Which way a compressed body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Compressed here.
    Answer,
    /// Inflated here.
    Upload,
}

impl Direction {
    fn label(self) -> Label {
        match self {
            Self::Answer => [("direction", "answer")],
            Self::Upload => [("direction", "upload")],
        }
    }
}

/// A registry whose names begin with ours.
pub fn registry() -> Registry {
    Registry::with_prefix(PREFIX)
}

impl Metrics {
    /// Counters at zero; the replicator's are shown only where there is one.
    pub fn new(replicates: bool) -> Self {
        let mut registry = registry();
        let replication = Replication::new();
        if replicates {
            replication.register(&mut registry);
        }
        let http = Http {
            requests: Family::default(),
            seconds: Family::new_with_constructor(request_seconds),
            sse_events: Family::default(),
            connections: Gauge::default(),
            websocket_items: Family::default(),
        };
        for outcome in Outcome::ALL {
            let _zero = http.websocket_items.get_or_create(&[("status", outcome.as_str())]);
        }
        registry.register(
            "http_requests",
            "Requests answered, by method, pattern of the path and class of the status",
            http.requests.clone(),
        );
        registry.register(
            "http_request_seconds",
            "Time until the answer began, which for an event stream is not its end",
            http.seconds.clone(),
        );
        registry.register(
            "sse_events",
            "Events written to event streams and WebSockets, by name (of a rule's events: change)",
            http.sse_events.clone(),
        );
        registry.register(
            "websocket_items",
            "Items that came over WebSockets, by what became of them",
            http.websocket_items.clone(),
        );
        registry.register(
            "http_connections",
            "Connections of clients that are open, event streams included",
            http.connections.clone(),
        );
        let gzip = Gzip::new();
        gzip.register(&mut registry);
        let push = Push::default();
        if replicates {
            push.register(&mut registry);
        }
        let sync = Sync::new();
        sync.register(&mut registry);
        let cache = CacheUse::new();
        cache.register(&mut registry);
        let caches = Caches::new();
        registry.register(
            "cache_lookups",
            "Questions that memory could answer (hit) and those that Postgres had to (miss)",
            caches.lookups.clone(),
        );
        Self {
            registry,
            replication,
            http,
            gzip,
            push,
            sync,
            cache,
            caches,
        }
    }

    /// All counters, and the gauges of `now`, in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric refuses to be written, which none does.
    pub fn render(&self, now: &Registry) -> Result<String, fmt::Error> {
        let mut open = String::new();
        text::encode_registry(&mut open, now)?;
        text::encode_registry(&mut open, &self.registry)?;
        text::encode_registry(&mut open, &process::registry())?;
        Ok(plain(&open))
    }
}

impl Replication {
    fn new() -> Self {
        let new = Self {
            transactions: Counter::default(),
            changes: Counter::default(),
            replayed: Counter::default(),
            quarantined: Counter::default(),
            ignored_messages: Counter::default(),
            batches: Counter::default(),
            entries: Counter::default(),
            decode_seconds: Counter::default(),
            received_bytes: Counter::default(),
            growing_changes: Gauge::default(),
            trims_waiting: Gauge::default(),
            tenants: Gauge::default(),
            // 0.25 ms to 4 s, 1 to 65,536 changes, 256 B to 64 MiB.
            exec_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 15)),
            batch_changes: Histogram::new(exponential_buckets(1.0, 4.0, 9)),
            batch_bytes: Histogram::new(exponential_buckets(256.0, 4.0, 10)),
            refusals: Family::default(),
            restarts: Family::default(),
            epochs: Family::default(),
        };
        // A counter that is there from the beginning lets the first event show as an increase.
        for kind in REFUSALS.into_iter().chain(["other"]) {
            let _zero = new.refusals.get_or_create(&[("kind", kind)]);
        }
        for cause in Cause::ALL {
            let _zero = new.restarts.get_or_create(&[("cause", cause.as_str())]);
        }
        for reason in Break::KINDS {
            let _zero = new.epochs.get_or_create(&[("reason", reason)]);
        }
        new
    }

    fn register(&self, registry: &mut Registry) {
        let counters = [
            (
                "transactions",
                "Transactions read to their end, heartbeats included",
                &self.transactions,
            ),
            (
                "changes",
                "Changes read, routed or not, heartbeats included",
                &self.changes,
            ),
            (
                "changes_replayed",
                "Changes read again that were published already",
                &self.replayed,
            ),
            (
                "changes_quarantined",
                "Changes that could not be routed or stored",
                &self.quarantined,
            ),
            (
                "messages_ignored",
                "Logical messages outside of transactions, which have no place in the order",
                &self.ignored_messages,
            ),
            ("batches", "Batches that Redis took", &self.batches),
            (
                "entries",
                "Stream entries in the batches that Redis took",
                &self.entries,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "decode_seconds",
            "Time to decode and route what was read, and to put it into batches",
            self.decode_seconds.clone(),
        );
        registry.register(
            "received_bytes",
            "Bytes of pgoutput messages read from Postgres",
            self.received_bytes.clone(),
        );
        registry.register(
            "batch_growing_changes",
            "Changes in the batch that grows while another is under way; full at replication.batch_changes_max",
            self.growing_changes.clone(),
        );
        registry.register(
            "trims_waiting",
            "Streams to be trimmed that wait for the publisher, at most 256",
            self.trims_waiting.clone(),
        );
        registry.register(
            "tenants",
            "Tenants whose streams this process writes",
            self.tenants.clone(),
        );
        registry.register(
            "batch_exec_seconds",
            "Time from sending a batch to the answer of its EXEC",
            self.exec_seconds.clone(),
        );
        registry.register("batch_changes", "Changes in a batch", self.batch_changes.clone());
        registry.register("batch_bytes", "Bytes of commands in a batch", self.batch_bytes.clone());
        registry.register(
            "redis_refusals",
            "Batches that Redis refused, to be sent again, by the first word of its answer",
            self.refusals.clone(),
        );
        registry.register(
            "session_restarts",
            "Replication sessions that ended against our will, by cause",
            self.restarts.clone(),
        );
        registry.register(
            "epochs_begun",
            "Breaks in history that began a new epoch, by reason",
            self.epochs.clone(),
        );
    }

    /// Adds what has gone through the pipeline since the last time.
    pub fn add(&self, counts: Counts, reported: &mut Counts) {
        let before = std::mem::replace(reported, counts);
        self.transactions
            .inc_by(counts.transactions.saturating_sub(before.transactions));
        self.changes.inc_by(counts.changes.saturating_sub(before.changes));
        self.replayed.inc_by(counts.replayed.saturating_sub(before.replayed));
        self.quarantined
            .inc_by(counts.quarantined.saturating_sub(before.quarantined));
        self.ignored_messages
            .inc_by(counts.ignored_messages.saturating_sub(before.ignored_messages));
    }

    /// So many bytes were decoded and routed.
    pub fn decoded(&self, bytes: usize, took: Duration) {
        self.received_bytes.inc_by(bytes as u64);
        self.decode_seconds.inc_by(took.as_secs_f64());
    }

    /// How much waits: changes in the batch that grows, and streams to be trimmed.
    pub fn waiting(&self, changes: usize, trims: usize) {
        self.growing_changes.set(as_gauge(changes));
        self.trims_waiting.set(as_gauge(trims));
    }

    /// There are so many tenants.
    pub fn tenants(&self, count: usize) {
        self.tenants.set(as_gauge(count));
    }

    /// Redis took a batch.
    pub fn wrote(&self, took: Duration, entries: usize, changes: usize, bytes: usize) {
        self.batches.inc();
        self.entries.inc_by(entries as u64);
        self.exec_seconds.observe(took.as_secs_f64());
        self.batch_changes.observe(changes as f64);
        self.batch_bytes.observe(bytes as f64);
    }

    /// Redis refused a batch with these words.
    pub fn refused(&self, answer: &str) {
        let kind = refusal_kind(answer);
        self.refusals.get_or_create(&[("kind", kind)]).inc();
    }

    /// A session ended against our will.
    pub fn restarted(&self, cause: Cause) {
        self.restarts.get_or_create(&[("cause", cause.as_str())]).inc();
    }

    /// An epoch has begun.
    pub fn epoch_began(&self, reason: &Break) {
        self.epochs.get_or_create(&[("reason", reason.kind())]).inc();
    }
}

impl Http {
    /// A request was answered.
    pub fn answered(&self, labels: RequestLabels, took: Duration) {
        self.requests.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A client has connected; counted until the answer is dropped.
    pub fn connected(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// An event was written to an event stream.
    pub fn event_written(&self, name: &'static str) {
        self.sse_events.get_or_create(&[("event", name)]).inc();
    }

    /// An item that came over a WebSocket was answered.
    pub fn item_answered(&self, status: &'static str) {
        self.websocket_items.get_or_create(&[("status", status)]).inc();
    }
}

impl Push {
    fn register(&self, registry: &mut Registry) {
        for outcome in ["taken", "refused", "given_up", "gone"] {
            let _zero = self.webhooks.get_or_create(&[("outcome", outcome)]);
        }
        registry.register(
            "push_triggers",
            "Devices that were away and had something waiting",
            self.triggers.clone(),
        );
        registry.register(
            "push_webhooks",
            "What became of telling the webhook, by outcome",
            self.webhooks.clone(),
        );
    }

    /// A device was woken.
    pub fn triggered(&self) {
        self.triggers.inc();
    }

    /// The webhook was told.
    pub fn told(&self, outcome: &'static str) {
        self.webhooks.get_or_create(&[("outcome", outcome)]).inc();
    }
}

impl Caches {
    fn new() -> Self {
        let new = Self {
            lookups: Family::default(),
        };
        for kind in [
            Cache::UnreadCount,
            Cache::MessagesTotal,
            Cache::UsersTotal,
            Cache::Message,
            Cache::User,
        ] {
            for result in ["hit", "miss"] {
                let _zero = new
                    .lookups
                    .get_or_create(&[("cache", kind.as_str()), ("result", result)]);
            }
        }
        new
    }

    /// Somebody asked.
    pub fn lookup(&self, kind: Cache, is_hit: bool) {
        let result = if is_hit { "hit" } else { "miss" };
        self.lookups
            .get_or_create(&[("cache", kind.as_str()), ("result", result)])
            .inc();
    }
}

impl Gzip {
    fn new() -> Self {
        let new = Self {
            plain_bytes: Family::default(),
            packed_bytes: Family::default(),
            // 0.1 ms to 1.6 s.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_1, 2.0, 15))),
        };
        for direction in [Direction::Answer, Direction::Upload] {
            let _zero = new.plain_bytes.get_or_create(&direction.label());
            let _zero = new.packed_bytes.get_or_create(&direction.label());
            let _zero = new.seconds.get_or_create(&direction.label());
        }
        new
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "gzip_plain_bytes",
            "Bytes of answers before compressing and of uploads after inflating",
            self.plain_bytes.clone(),
        );
        registry.register(
            "gzip_packed_bytes",
            "Bytes of the same answers and uploads on the wire",
            self.packed_bytes.clone(),
        );
        registry.register(
            "gzip_seconds",
            "Time to compress an answer or to inflate an upload",
            self.seconds.clone(),
        );
    }

    /// A body was compressed or inflated.
    pub fn add(&self, direction: Direction, plain_bytes: usize, packed_bytes: usize, took: Duration) {
        let label = direction.label();
        self.plain_bytes.get_or_create(&label).inc_by(plain_bytes as u64);
        self.packed_bytes.get_or_create(&label).inc_by(packed_bytes as u64);
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
    }
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn request_seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

fn refusal_kind(answer: &str) -> &'static str {
    let word = answer.split(' ').next().unwrap_or_default();
    REFUSALS.into_iter().find(|kind| *kind == word).unwrap_or("other")
}

/// The encoder writes OpenMetrics, where a counter's family lacks the `_total` of its samples. In the plain format, which
/// every scraper and `promtool` know, both have the same name.
fn plain(open: &str) -> String {
    let mut plain = String::with_capacity(open.len() + 1024);
    let mut lines = open.lines().peekable();
    while let Some(line) = lines.next() {
        let counter = |line: &str| -> Option<String> {
            let name = line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?;
            Some(name.to_owned())
        };
        let next = lines.peek().and_then(|next| counter(next));
        match (line.strip_prefix("# HELP "), next, counter(line)) {
            (Some(help), Some(name), _) => {
                let text = help.strip_prefix(&name).unwrap_or(help);
                plain.push_str(&format!("# HELP {name}_total{text}"));
            }
            (_, _, Some(name)) => plain.push_str(&format!("# TYPE {name}_total counter")),
            _ => plain.push_str(line),
        }
        plain.push('\n');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_family_is_named_as_its_samples() {
        let open = "# HELP posduif_batches Batches.\n# TYPE posduif_batches counter\nposduif_batches_total 3\n\
                    # HELP posduif_subscribers Streams.\n# TYPE posduif_subscribers gauge\nposduif_subscribers 1\n";
        let expected = "# HELP posduif_batches_total Batches.\n# TYPE posduif_batches_total counter\n\
                        posduif_batches_total 3\n\
                        # HELP posduif_subscribers Streams.\n# TYPE posduif_subscribers gauge\nposduif_subscribers 1\n";
        assert_eq!(plain(open), expected);
    }

    #[test]
    fn refusals_are_told_apart_by_their_first_word() {
        assert_eq!(
            refusal_kind("OOM command not allowed when used memory > 'maxmemory'."),
            "OOM"
        );
        assert_eq!(
            refusal_kind("READONLY You can't write against a read only replica."),
            "READONLY"
        );
        assert_eq!(refusal_kind("ERR something new"), "other");
        assert_eq!(refusal_kind(""), "other");
    }

    #[test]
    fn only_what_went_through_since_the_last_time_is_added() {
        let replication = Replication::new();
        let mut reported = Counts::default();
        let counts = |changes| Counts {
            changes,
            ..Counts::default()
        };
        replication.add(counts(3), &mut reported);
        replication.add(counts(10), &mut reported);
        assert_eq!(replication.changes.get(), 10);
    }
}
