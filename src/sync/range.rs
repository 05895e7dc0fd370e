//! Ranges: what follows a place in a device's streams, gathered for a batch.

use uuid::Uuid;

use super::item::{self, Version};
use crate::contract::group::GroupId;
use crate::core::position::{StreamId, TermId};
use crate::redis::read_position::ReadPosition;
use crate::redis::reading::Read;
use crate::redis::store::{Error, Store};

/// Entries of the first read, before their size is known.
pub const FIRST_ENTRIES: usize = 64;

/// Expected bytes of one read: small enough for Redis and this process to work on one batch in turns, and for a reply to
/// stay in a processor's cache.
const READ_BYTES: usize = 256 * 1024;

/// The limits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most rows.
    pub limit: usize,
    /// Bytes of rows at which the batch ends.
    pub bytes_max: usize,
}

/// A range. If more follows, it ends with a whole transaction, unless it is part of a single one or ends where the user joined
/// a group.
#[derive(Debug)]
pub struct Range {
    /// All versions of rows in commit order.
    pub versions: Vec<Version>,
    /// More follows.
    pub has_more: bool,
    /// It ends where the user joined this group.
    pub joined: Option<GroupId>,
    /// The term in which it was read.
    pub term: TermId,
    /// See [`ReadPosition::is_incomplete`].
    pub is_incomplete: bool,
    /// The published checkpoint.
    pub published: StreamId,
}

impl Range {
    /// Cuts it before a place that is not its first.
    pub fn end_before(&mut self, place: StreamId) {
        self.versions.retain(|version| version.place < place);
        (self.has_more, self.joined) = (true, None);
        end_at_transaction(&mut self.versions);
    }

    /// The place of the last entry.
    pub fn end(&self) -> Option<StreamId> {
        self.versions.last().map(|version| version.place)
    }
}

/// Gathers what follows a place, of which `first` was read; `None` if the streams do not reach back to it.
pub async fn gather(
    store: &Store,
    tenant: &str,
    user: Uuid,
    mut place: ReadPosition,
    first: Read,
    bounds: Bounds,
) -> Result<Option<Range>, Error> {
    let (mut versions, mut bytes, mut read) = (Vec::new(), 0, first);
    // The place at which the batch has its bytes.
    let mut full: Option<StreamId> = None;
    loop {
        let Read::Slice(slice) = read else {
            return Ok(None);
        };
        (place.position, place.term, place.is_incomplete) = (slice.end, slice.view.term, slice.is_incomplete);
        for entry in &slice.entries {
            bytes += entry.bytes();
            if bytes >= bounds.bytes_max {
                full = full.or(Some(entry.id));
            }
        }
        let count = versions.len() + slice.entries.len();
        let room = bounds.limit.saturating_sub(count);
        if !slice.has_more || room == 0 || full.is_some() {
            versions.extend(item::versions(slice.entries));
            if let Some(full) = full {
                versions.retain(|version| version.place <= full);
            }
            truncate(&mut versions, bounds.limit);
            let is_cut = versions.last().is_some_and(|last| last.place < slice.end);
            let has_more = item::end_before_return(&mut versions) || slice.has_more || is_cut;
            let joined = item::end_at_join(&mut versions);
            if has_more && joined.is_none() {
                end_at_transaction(&mut versions);
            }
            return Ok(Some(Range {
                versions,
                has_more: has_more || joined.is_some(),
                joined,
                term: place.term,
                is_incomplete: place.is_incomplete,
                published: slice.view.published,
            }));
        }
        let expected = READ_BYTES / (bytes / count.max(1)).max(1);
        // Entries are converted while Redis reads the next ones.
        let (next, ()) = tokio::join!(store.read(tenant, user, place, room.min(expected.max(1))), async {
            versions.extend(item::versions(slice.entries))
        });
        read = next?;
    }
}

/// Truncates to a number of versions, and those that are of the same change as the last.
fn truncate(versions: &mut Vec<Version>, limit: usize) {
    let last = versions.get(limit.saturating_sub(1)).map(|version| version.place);
    let rest = versions
        .iter()
        .skip(limit)
        .take_while(|version| Some(version.place) == last);
    let end = limit + rest.count();
    versions.truncate(end);
}

/// Truncates to the end of a transaction, unless all versions belong to one.
fn end_at_transaction(versions: &mut Vec<Version>) {
    let Some(last) = versions.last().map(|version| version.place.ms) else {
        return;
    };
    if versions.first().is_some_and(|first| first.place.ms != last) {
        versions.retain(|version| version.place.ms != last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::entry::Entry;
    use crate::core::operation::Operation;

    fn versions(ids: &[(u64, u64)]) -> Vec<Version> {
        let entry = |(ms, seq): &(u64, u64)| Entry {
            id: StreamId { ms: *ms, seq: *seq },
            op: Operation::Insert,
            ..Entry::default()
        };
        item::versions(ids.iter().map(entry).collect()).collect()
    }

    #[test]
    fn all_versions_of_a_change_are_in_one_range() {
        let mut cut = versions(&[(1, 1), (1, 2), (1, 2), (1, 2), (1, 3)]);
        truncate(&mut cut, 2);
        assert_eq!(cut.len(), 4);
        truncate(&mut cut, 4);
        truncate(&mut cut, 9);
        assert_eq!(cut.len(), 4);
        truncate(&mut cut, 1);
        assert_eq!(cut.len(), 1);
    }

    #[test]
    fn range_that_is_cut_has_more_and_ends_at_a_transaction() {
        let mut range = Range {
            versions: versions(&[(1, 1), (2, 1), (2, 2), (2, 3)]),
            has_more: false,
            joined: None,
            term: TermId::default(),
            is_incomplete: false,
            published: StreamId::ZERO,
        };
        range.end_before(StreamId { ms: 2, seq: 3 });
        assert_eq!((range.versions.len(), range.has_more), (1, true));
    }

    #[test]
    fn range_with_more_ends_at_a_transaction() {
        let mut cut = versions(&[(1, 1), (1, 2), (2, 1), (2, 2)]);
        end_at_transaction(&mut cut);
        assert_eq!(cut.len(), 2);
        let mut one = versions(&[(2, 1), (2, 2)]);
        end_at_transaction(&mut one);
        assert_eq!(one.len(), 2);
        end_at_transaction(&mut Vec::new());
    }
}
