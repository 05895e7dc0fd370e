//! A stretch of what a device must see, gathered from the streams and made ready for a batch.

use uuid::Uuid;

use super::item::{self, Version};
use crate::contract::entry::Entry;
use crate::core::position::StreamId;
use crate::redis::store::{Error, Place, Read, Store};

/// Entries read at once while nobody knows how large they are.
pub const FIRST_ENTRIES: usize = 256;

/// Bytes of entries that are read at once, as the ones before let expect: little enough that Redis and this side work in
/// turns on one batch, and that a reply stays in a processor's cache.
const READ_BYTES: usize = 256 * 1024;

/// What of a stretch a batch can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most rows.
    pub limit: usize,
    /// Bytes of rows at which it ends.
    pub bytes_max: usize,
}

/// A stretch that ends with a whole transaction where there is more behind it, unless all of it is one.
#[derive(Debug)]
pub struct Range {
    /// All versions of its rows in commit order.
    pub versions: Vec<Version>,
    /// There is more behind it.
    pub has_more: bool,
    /// The published checkpoint.
    pub published: StreamId,
}

impl Range {
    /// The place of its last entry, if there is one.
    pub fn end(&self) -> Option<StreamId> {
        self.versions.last().map(|version| version.place)
    }
}

/// Gathers what follows a place, of which the first is read; `None` when history does not reach back.
///
/// # Errors
/// See [`Error`].
pub async fn gather(
    store: &Store,
    tenant: &str,
    user: Uuid,
    mut place: Place,
    first: Read,
    bounds: Bounds,
) -> Result<Option<Range>, Error> {
    let (mut versions, mut bytes, mut read) = (Vec::new(), 0, first);
    loop {
        let Read::Slice(slice) = read else {
            return Ok(None);
        };
        place.position = slice.end;
        bytes += slice.entries.iter().map(Entry::bytes).sum::<usize>();
        let count = versions.len() + slice.entries.len();
        let room = bounds.limit.saturating_sub(count);
        if !slice.has_more || room == 0 || bytes >= bounds.bytes_max {
            versions.extend(item::versions(slice.entries));
            versions.truncate(bounds.limit);
            let is_cut = versions.last().is_some_and(|last| last.place < slice.end);
            let has_more = item::end_before_return(&mut versions) || slice.has_more || is_cut;
            if has_more {
                end_at_transaction(&mut versions);
            }
            return Ok(Some(Range {
                versions,
                has_more,
                published: slice.view.published,
            }));
        }
        let expected = READ_BYTES / (bytes / count.max(1)).max(1);
        // While Redis gathers what follows, what is here is made ready.
        let (next, ()) = tokio::join!(store.read(tenant, user, place, room.min(expected.max(1))), async {
            versions.extend(item::versions(slice.entries))
        });
        read = next?;
    }
}

/// Cuts a batch that goes on back to the end of a transaction, unless all of it is one.
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
    use crate::contract::entry::Op;

    fn versions(ids: &[(u64, u64)]) -> Vec<Version> {
        let entry = |(ms, seq): &(u64, u64)| Entry {
            id: StreamId { ms: *ms, seq: *seq },
            op: Op::Insert,
            ..Entry::default()
        };
        item::versions(ids.iter().map(entry).collect()).collect()
    }

    #[test]
    fn a_batch_that_goes_on_ends_with_a_whole_transaction_where_it_can() {
        let mut cut = versions(&[(1, 1), (1, 2), (2, 1), (2, 2)]);
        end_at_transaction(&mut cut);
        assert_eq!(cut.len(), 2);
        let mut one = versions(&[(2, 1), (2, 2)]);
        end_at_transaction(&mut one);
        assert_eq!(one.len(), 2);
        end_at_transaction(&mut Vec::new());
    }
}
