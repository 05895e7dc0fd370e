//! Labels of counters.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// A label and its value.
pub type Label = [(&'static str, &'static str); 1];

/// Values of labels that other modules define. A counter that exists from the start shows its first event as an increase.
#[derive(Debug, Default)]
pub struct Labels {
    pub restart_causes: Vec<&'static str>,
    pub epoch_reasons: Vec<&'static str>,
    pub catalog_kinds: Vec<&'static str>,
    pub upload_results: Vec<&'static str>,
    pub upload_codes: Vec<&'static str>,
}

/// Creates the counters of these values at zero.
pub(super) fn create<'a>(
    family: &Family<Label, Counter>,
    label: &'static str,
    values: impl IntoIterator<Item = &'a &'static str>,
) {
    for value in values {
        drop(family.get_or_create(&[(label, value)]));
    }
}
