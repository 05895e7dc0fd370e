//! Batches to and from devices, and the cache of who a device is.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Label;
use crate::sync::outgoing::Outcome;

/// What devices sync.
#[derive(Debug)]
pub struct Sync {
    batches: Family<Label, Counter>,
    rows: Counter,
    batch_rows: Histogram,
    batch_seconds: Histogram,
    acknowledgements: Counter,
    uploads: Counter,
    upload_items: Family<Label, Counter>,
    upload_seconds: Histogram,
}

/// Where a batch's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From Postgres: the device has no usable cursor.
    Snapshot,
    /// From the device's streams.
    Stream,
}

impl Sync {
    pub(super) fn new() -> Self {
        let new = Self {
            batches: Family::default(),
            rows: Counter::default(),
            // 1 to 16,384 rows, 1 ms to 16 s.
            batch_rows: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            acknowledgements: Counter::default(),
            uploads: Counter::default(),
            upload_items: Family::default(),
            upload_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
        };
        for source in [Source::Snapshot, Source::Stream] {
            let _zero = new.batches.get_or_create(&source.label());
        }
        for outcome in Outcome::ALL {
            let _zero = new.upload_items.get_or_create(&[("result", outcome.as_str())]);
        }
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sync_batches",
            "Batches given to devices, by where their rows come from",
            self.batches.clone(),
        );
        registry.register("sync_rows", "Rows in the batches given to devices", self.rows.clone());
        registry.register(
            "sync_batch_rows",
            "Rows in a batch given to a device, empty ones left out",
            self.batch_rows.clone(),
        );
        registry.register(
            "sync_batch_seconds",
            "Time to gather a batch and to make its answer, compressing left out",
            self.batch_seconds.clone(),
        );
        registry.register(
            "sync_acknowledgements",
            "Acknowledgements of devices without asking for more",
            self.acknowledgements.clone(),
        );
        registry.register("sync_uploads", "Uploads taken from devices", self.uploads.clone());
        registry.register(
            "sync_upload_items",
            "Items in the uploads of devices, by what became of them",
            self.upload_items.clone(),
        );
        registry.register(
            "sync_upload_seconds",
            "Time in which Postgres took an upload",
            self.upload_seconds.clone(),
        );
    }

    /// A device was given a batch.
    pub fn gave(&self, source: Source, rows: usize, took: Duration) {
        self.batches.get_or_create(&source.label()).inc();
        self.rows.inc_by(rows as u64);
        self.batch_seconds.observe(took.as_secs_f64());
        if rows > 0 {
            self.batch_rows.observe(rows as f64);
        }
    }

    /// A device acknowledged by itself.
    pub fn acknowledged(&self) {
        self.acknowledgements.inc();
    }

    /// A device's upload was taken, with these results.
    pub fn took(&self, results: impl Iterator<Item = Outcome>, took: Duration) {
        self.uploads.inc();
        self.upload_seconds.observe(took.as_secs_f64());
        for outcome in results {
            self.upload_items.get_or_create(&[("result", outcome.as_str())]).inc();
        }
    }
}

impl Source {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Stream => "stream",
        }
    }

    fn label(self) -> Label {
        [("source", self.as_str())]
    }
}
