//! Operations on other servers: their number, duration and failures.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::label::Label;

/// Name of an operation, and the cause of its failure.
type ErrorLabels = [(&'static str, &'static str); 2];

/// Counts the operations of one server. Cloning shares the counters.
#[derive(Debug, Clone)]
pub struct Operations {
    /// The label that names an operation.
    label: &'static str,
    seconds: Family<Label, Histogram, fn() -> Histogram>,
    errors: Family<ErrorLabels, Counter>,
}

impl Operations {
    /// The label names an operation; its values must be few and known beforehand.
    pub fn new(label: &'static str) -> Self {
        Self {
            label,
            seconds: Family::new_with_constructor(seconds),
            errors: Family::default(),
        }
    }

    /// An operation ended; `failed` is the cause if it failed.
    pub fn ended(&self, name: &'static str, took: Duration, failed: Option<&'static str>) {
        self.seconds
            .get_or_create(&[(self.label, name)])
            .observe(took.as_secs_f64());
        if let Some(cause) = failed {
            self.errors.get_or_create(&[(self.label, name), ("cause", cause)]).inc();
        }
    }

    /// Exposes them as `<what>_seconds` and `<what>_errors_total`.
    pub(crate) fn register(&self, registry: &mut Registry, what: &str, help: [&str; 2]) {
        registry.register(format!("{what}_seconds"), help[0], self.seconds.clone());
        registry.register(format!("{what}_errors"), help[1], self.errors.clone());
    }
}

/// 0.25 ms to 5 s: few buckets, since each name has a histogram.
fn seconds() -> Histogram {
    Histogram::new([0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0])
}
