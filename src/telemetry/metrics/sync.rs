//! Batches to devices, and uploads with the results of their items.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::label::{Label, Labels, create};

/// Metrics of batches to and from devices.
#[derive(Debug)]
pub struct Sync {
    batches: Family<Label, Counter>,
    rows: Counter,
    batch_rows: Histogram,
    batch_seconds: Histogram,
    acknowledgements: Counter,
    uploads: Counter,
    upload_items: Family<Label, Counter>,
    rejections: Family<Label, Counter>,
    codes: Vec<&'static str>,
    upload_seconds: Histogram,
}

/// The source of a batch's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Postgres: the device has no usable cursor.
    Snapshot,
    /// The device's streams.
    Stream,
}

impl Sync {
    pub(super) fn new(labels: &Labels) -> Self {
        let new = Self {
            batches: Family::default(),
            rows: Counter::default(),
            // 1 to 16,384 rows, 1 ms to 16 s.
            batch_rows: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            acknowledgements: Counter::default(),
            uploads: Counter::default(),
            upload_items: Family::default(),
            rejections: Family::default(),
            codes: labels.upload_codes.clone(),
            upload_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
        };
        for source in [Source::Snapshot, Source::Stream] {
            drop(new.batches.get_or_create(&source.label()));
        }
        create(&new.upload_items, "result", &labels.upload_results);
        create(&new.rejections, "code", &labels.upload_codes);
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sync_batches",
            "Batches sent to devices, by the source of their rows",
            self.batches.clone(),
        );
        registry.register("sync_rows", "Rows in the batches sent to devices", self.rows.clone());
        registry.register(
            "sync_batch_rows",
            "Rows per batch, empty batches excluded",
            self.batch_rows.clone(),
        );
        registry.register(
            "sync_batch_seconds",
            "Time to collect and encode a batch, without compression",
            self.batch_seconds.clone(),
        );
        registry.register(
            "sync_acknowledgements",
            "Acknowledgements that request no further batch",
            self.acknowledgements.clone(),
        );
        registry.register("sync_uploads", "Uploads received from devices", self.uploads.clone());
        registry.register(
            "sync_upload_items",
            "Items in the uploads of devices, by result",
            self.upload_items.clone(),
        );
        registry.register(
            "sync_upload_rejections",
            "Items in the uploads of devices that were rejected, by the code of the cause",
            self.rejections.clone(),
        );
        registry.register(
            "sync_upload_seconds",
            "Time to write an upload to Postgres",
            self.upload_seconds.clone(),
        );
    }

    /// A batch was sent to a device.
    pub fn delivered(&self, source: Source, rows: usize, took: Duration) {
        self.batches.get_or_create(&source.label()).inc();
        self.rows.inc_by(rows as u64);
        self.batch_seconds.observe(took.as_secs_f64());
        if rows > 0 {
            self.batch_rows.observe(rows as f64);
        }
    }

    /// Uploaded items with this result so far.
    pub fn upload_items(&self, result: &'static str) -> u64 {
        self.upload_items.get_or_create(&[("result", result)]).get()
    }

    /// Items that were rejected so far by the codes that occurred.
    pub fn rejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |code: &&'static str| (*code, self.rejections.get_or_create(&[("code", *code)]).get());
        self.codes.iter().map(count).filter(|(_, count)| *count > 0)
    }

    /// A device acknowledged without requesting a batch.
    pub fn acknowledged(&self) {
        self.acknowledgements.inc();
    }

    /// An item of an upload was rejected for this cause.
    pub fn rejected(&self, code: &'static str) {
        self.rejections.get_or_create(&[("code", code)]).inc();
    }

    /// An upload of a device was processed, with these results.
    pub fn uploaded(&self, results: impl Iterator<Item = &'static str>, took: Duration) {
        self.uploads.inc();
        self.upload_seconds.observe(took.as_secs_f64());
        for result in results {
            self.upload_items.get_or_create(&[("result", result)]).inc();
        }
    }
}

impl Source {
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
