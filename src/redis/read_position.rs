//! Up to where a reader has read, and whether that is in the streams.

use crate::contract::checkpoint::View;
use crate::contract::terms::{self, Continuity};
use crate::core::position::{EpochId, StreamId, TermId};

/// Up to where a reader has read the streams of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPosition {
    /// The epoch that the position belongs to.
    pub epoch: EpochId,
    /// The tenant's generation that it belongs to.
    pub generation: i64,
    /// The term in which it was received.
    pub term: TermId,
    /// Everything up to here was read.
    pub position: StreamId,
    /// After a snapshot that begins below what was published: up to where it was published. The snapshot was taken
    /// after each reset up to here.
    pub resets_covered: Option<StreamId>,
    /// The snapshot lacks rows that no stream has: once Postgres shows everything up to `resets_covered`, another
    /// snapshot is due.
    pub is_incomplete: bool,
}

impl ReadPosition {
    /// The end of what the reader may have received.
    pub fn reach(&self) -> StreamId {
        self.resets_covered
            .map_or(self.position, |covered| covered.max(self.position))
    }

    /// Whether the reader's snapshot was taken after a reset at this position.
    pub(super) fn covers_reset(&self, at: StreamId) -> bool {
        self.resets_covered.is_some_and(|covered| at <= covered)
    }
}

/// Checks a place of the view's epoch with what Redis has of its term, if that has ended.
pub(super) fn verify(place: ReadPosition, view: &View, ended: Option<String>) -> Continuity {
    let ended = ended.and_then(|text| text.parse().ok());
    terms::verify(place.term, place.reach(), view, ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_of_a_lost_history_is_not_continued() {
        let at = |seq| StreamId { ms: 1, seq };
        let view = View {
            epoch: EpochId(1),
            base: 0,
            position: at(9),
            published: at(9),
            term: TermId(2),
            timeline: 1,
        };
        let place = |covered: Option<u64>| ReadPosition {
            epoch: EpochId(1),
            generation: 1,
            term: TermId(1),
            position: at(3),
            resets_covered: covered.map(at),
            is_incomplete: false,
        };
        // The term ended between the position and that of the snapshot: another history has followed.
        let ended = || Some(format!("1 {}", at(5)));
        assert_eq!(verify(place(None), &view, ended()), Continuity::Valid);
        assert_eq!(verify(place(Some(5)), &view, ended()), Continuity::Valid);
        assert_eq!(verify(place(Some(6)), &view, ended()), Continuity::Lost);
        let current = |covered| ReadPosition {
            term: view.term,
            ..place(covered)
        };
        assert_eq!(verify(current(Some(9)), &view, None), Continuity::Valid);
        assert_eq!(verify(current(Some(10)), &view, None), Continuity::NotReached);
    }
}
