//! Marks in the traces of transactions that a device received them.

use crate::core::position::{EpochId, StreamId};
use crate::sync::range::Range;
use crate::telemetry::traces;

/// Most transactions of one batch that are marked.
const TRACED_MAX: usize = 100;

/// Marks the sampled transactions of a range as delivered.
pub(super) fn delivered(epoch: EpochId, range: &Range) {
    if !traces::is_enabled() {
        return;
    }
    let mut places: Vec<StreamId> = range.versions.iter().map(|version| version.place).collect();
    places.dedup_by_key(|place| place.ms);
    let sampled = places
        .into_iter()
        .filter_map(|place| traces::Transaction::of(epoch, place));
    for transaction in sampled.take(TRACED_MAX) {
        transaction.delivered("sync", "batch");
    }
}
