//! From the log to Redis: bytes, changes, batches, refusals, epochs, changes of tables.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::label::{Label, Labels, create};

/// Kinds of refusals by Redis: the first word of an error reply.
const REFUSALS: [&str; 5] = ["OOM", "READONLY", "LOADING", "MISCONF", "NOPERM"];

/// The kind of all other refusals.
const OTHER: &str = "other";

/// The bound for which a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Its entries.
    Entries,
    /// Its bytes.
    Bytes,
    /// The budget of its tenant.
    Tenant,
    /// What Redis may use.
    Memory,
}

impl Bound {
    const ALL: [Self; 4] = [Self::Entries, Self::Bytes, Self::Tenant, Self::Memory];

    fn as_str(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Bytes => "bytes",
            Self::Tenant => "tenant",
            Self::Memory => "memory",
        }
    }
}

/// Metrics of the replicator.
#[derive(Debug)]
pub struct Replication {
    transactions: Counter,
    changes: Counter,
    replayed: Counter,
    quarantined: Counter,
    without_tenant: Counter,
    ignored_messages: Counter,
    batches: Counter,
    entries: Counter,
    decode_seconds: Counter<f64, AtomicU64>,
    received_bytes: Counter,
    exec_seconds: Histogram,
    batch_changes: Histogram,
    batch_bytes: Histogram,
    pending_changes: Gauge<f64, AtomicU64>,
    trim_queue_length: Gauge<f64, AtomicU64>,
    tenants: Gauge<f64, AtomicU64>,
    cuts: Family<Label, Counter>,
    budget_used: Gauge<f64, AtomicU64>,
    tenants_exceeded: Gauge<f64, AtomicU64>,
    refusals: Family<Label, Counter>,
    restarts: Family<Label, Counter>,
    epochs: Family<Label, Counter>,
    catalog_changes: Family<Label, Counter>,
}

/// Totals of a session's pipeline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicationCounts {
    /// Complete transactions.
    pub transactions: u64,
    /// Changes, routed or not.
    pub changes: u64,
    /// Changes below the checkpoint, read again in a replay.
    pub replayed: u64,
    /// Messages outside of transactions, which have no position.
    pub ignored_messages: u64,
    /// Changes that were quarantined.
    pub quarantined: u64,
    /// Changes of rows that name no tenant.
    pub without_tenant: u64,
}

impl Replication {
    pub(super) fn new(labels: &Labels) -> Self {
        let new = Self {
            transactions: Counter::default(),
            changes: Counter::default(),
            replayed: Counter::default(),
            quarantined: Counter::default(),
            without_tenant: Counter::default(),
            ignored_messages: Counter::default(),
            batches: Counter::default(),
            entries: Counter::default(),
            decode_seconds: Counter::default(),
            received_bytes: Counter::default(),
            // 0.25 ms to 4 s, 1 to 65,536 changes, 256 B to 64 MiB.
            exec_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 15)),
            batch_changes: Histogram::new(exponential_buckets(1.0, 4.0, 9)),
            batch_bytes: Histogram::new(exponential_buckets(256.0, 4.0, 10)),
            pending_changes: Gauge::default(),
            trim_queue_length: Gauge::default(),
            tenants: Gauge::default(),
            cuts: Family::default(),
            budget_used: Gauge::default(),
            tenants_exceeded: Gauge::default(),
            refusals: Family::default(),
            restarts: Family::default(),
            epochs: Family::default(),
            catalog_changes: Family::default(),
        };
        create(&new.cuts, "bound", &Bound::ALL.map(Bound::as_str));
        create(&new.refusals, "kind", REFUSALS.iter().chain([&OTHER]));
        create(&new.restarts, "cause", &labels.restart_causes);
        create(&new.epochs, "reason", &labels.epoch_reasons);
        create(&new.catalog_changes, "kind", &labels.catalog_kinds);
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let counters = [
            (
                "transactions",
                "Complete transactions read, heartbeats included",
                &self.transactions,
            ),
            (
                "changes",
                "Changes read, routed or not, heartbeats included",
                &self.changes,
            ),
            (
                "changes_replayed",
                "Changes read again that were already published",
                &self.replayed,
            ),
            (
                "changes_quarantined",
                "Changes that could not be routed or stored",
                &self.quarantined,
            ),
            (
                "changes_without_tenant",
                "Changes of rows whose column names no tenant that exists; they are not delivered",
                &self.without_tenant,
            ),
            (
                "messages_ignored",
                "Logical messages outside of transactions, which have no position",
                &self.ignored_messages,
            ),
            ("batches", "Batches written to Redis", &self.batches),
            (
                "entries",
                "Stream entries in the batches written to Redis",
                &self.entries,
            ),
            (
                "received_bytes",
                "Bytes of pgoutput messages read from Postgres",
                &self.received_bytes,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "decode_seconds",
            "Time to decode and route changes and to add them to batches",
            self.decode_seconds.clone(),
        );
        let gauges = [
            (
                "batch_pending_changes",
                "Changes in the pending batch while another is in flight; full at replication.batch_changes_max",
                &self.pending_changes,
            ),
            (
                "trim_queue_length",
                "Streams that wait to be trimmed, at most 256",
                &self.trim_queue_length,
            ),
            ("tenants", "Tenants whose streams this process writes", &self.tenants),
            (
                "tenant_budget_used_ratio",
                "Part of streams.tenant_bytes_max that the streams of the largest tenant were last seen to hold",
                &self.budget_used,
            ),
            (
                "tenants_beyond_budget",
                "Tenants whose streams hold more than streams.tenant_bytes_max although they were cut",
                &self.tenants_exceeded,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let histograms = [
            (
                "batch_exec_seconds",
                "Time from sending a batch to the reply of its EXEC",
                &self.exec_seconds,
            ),
            ("batch_changes", "Changes per batch", &self.batch_changes),
            ("batch_bytes", "Bytes of commands per batch", &self.batch_bytes),
        ];
        for (name, help, histogram) in histograms {
            registry.register(name, help, histogram.clone());
        }
        let families = [
            (
                "streams_cut",
                "Streams that were cut because they, or their tenant, held more than they may, by the bound",
                &self.cuts,
            ),
            (
                "redis_refusals",
                "Batches refused by Redis, which are sent again, by the first word of the error",
                &self.refusals,
            ),
            (
                "session_restarts",
                "Replication sessions that ended with an error, by cause",
                &self.restarts,
            ),
            (
                "epochs_begun",
                "Epochs started because replication continuity was lost, by reason",
                &self.epochs,
            ),
            (
                "catalog_changes",
                "Tables that changed in a way that the log does not have, by what happened",
                &self.catalog_changes,
            ),
        ];
        for (name, help, family) in families {
            registry.register(name, help, family.clone());
        }
    }

    /// Changes read so far.
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Adds the difference between two totals of a pipeline.
    pub fn add(&self, counts: ReplicationCounts, reported: &mut ReplicationCounts) {
        let before = std::mem::replace(reported, counts);
        for (counter, now, before) in [
            (&self.transactions, counts.transactions, before.transactions),
            (&self.changes, counts.changes, before.changes),
            (&self.replayed, counts.replayed, before.replayed),
            (&self.quarantined, counts.quarantined, before.quarantined),
            (&self.without_tenant, counts.without_tenant, before.without_tenant),
            (&self.ignored_messages, counts.ignored_messages, before.ignored_messages),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
    }

    /// Bytes were decoded and routed.
    pub fn decoded(&self, bytes: usize, took: Duration) {
        self.received_bytes.inc_by(bytes as u64);
        self.decode_seconds.inc_by(took.as_secs_f64());
    }

    /// Sets the number of changes in the pending batch and of streams that wait to be trimmed.
    pub fn waiting(&self, changes: usize, trims: usize) {
        self.pending_changes.set(changes as f64);
        self.trim_queue_length.set(trims as f64);
    }

    /// Sets the number of tenants.
    pub fn tenants(&self, count: usize) {
        self.tenants.set(count as f64);
    }

    /// A stream beyond a bound is cut.
    pub fn cut(&self, bound: Bound) {
        self.cuts.get_or_create(&[("bound", bound.as_str())]).inc();
    }

    /// Sets what the largest tenant uses of its budget, and how many tenants use more than theirs.
    pub fn budgets(&self, largest: f64, exceeded: usize) {
        self.budget_used.set(largest);
        self.tenants_exceeded.set(exceeded as f64);
    }

    /// A batch was written to Redis.
    pub fn wrote(&self, took: Duration, entries: usize, changes: usize, bytes: usize) {
        self.batches.inc();
        self.entries.inc_by(entries as u64);
        self.exec_seconds.observe(took.as_secs_f64());
        self.batch_changes.observe(changes as f64);
        self.batch_bytes.observe(bytes as f64);
    }

    /// Redis refused a batch with this error.
    pub fn refused(&self, error: &str) {
        self.refusals.get_or_create(&[("kind", refusal_kind(error))]).inc();
    }

    /// A session ended with an error.
    pub fn restarted(&self, cause: &'static str) {
        self.restarts.get_or_create(&[("cause", cause)]).inc();
    }

    /// A table changed in a way that the log does not have.
    pub fn catalog_changed(&self, kind: &'static str) {
        self.catalog_changes.get_or_create(&[("kind", kind)]).inc();
    }

    /// A new epoch started.
    pub fn epoch_began(&self, reason: &'static str) {
        self.epochs.get_or_create(&[("reason", reason)]).inc();
    }
}

fn refusal_kind(error: &str) -> &'static str {
    let word = error.split(' ').next().unwrap_or_default();
    REFUSALS.into_iter().find(|kind| *kind == word).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_kind_is_the_first_word_of_the_error() {
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
    fn repeated_totals_are_added_once() {
        let replication = Replication::new(&Labels::default());
        let mut reported = ReplicationCounts::default();
        let counts = |changes| ReplicationCounts {
            changes,
            ..ReplicationCounts::default()
        };
        replication.add(counts(3), &mut reported);
        replication.add(counts(10), &mut reported);
        assert_eq!(replication.changes.get(), 10);
    }
}
