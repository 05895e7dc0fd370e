//! What a user reads of one moment: the entries of several streams as one.

use std::sync::Arc;

use uuid::Uuid;

use super::read_position::ReadPosition;
use super::reading::{Read, Slice};
use crate::contract::checkpoint::View;
use crate::contract::entry::{Entry, Text};
use crate::contract::members::Members;
use crate::contract::stream_name::Audience;
use crate::core::operation::Operation;
use crate::core::position::StreamId;

/// Where the first of ranges ends that were each cut at `count` entries: behind it there may be others.
pub(super) fn cut(ranges: &[Vec<Entry>], count: usize) -> Option<StreamId> {
    let is_cut = |entries: &&Vec<Entry>| entries.len() >= count;
    let lasts = ranges.iter().filter(is_cut).filter_map(|entries| entries.last());
    lasts.map(|last| last.id).min()
}

/// Merges ranges that are complete up to a horizon, if there is one: the inbox, then what others see, too.
pub(super) fn merge(
    ranges: Vec<Vec<Entry>>,
    horizon: Option<StreamId>,
    place: ReadPosition,
    view: View,
    (user, members): (Uuid, Arc<Members>),
) -> Read {
    // Entries behind the published position were not written by the publisher; a reader that moved there would skip
    // entries that are still to come.
    let horizon = horizon.filter(|horizon| *horizon < view.position);
    let end = horizon.unwrap_or(view.position);
    let mut entries: Vec<Entry> = ranges.into_iter().flatten().filter(|entry| entry.id <= end).collect();
    // Each is sorted. A change that differs for the user is in several streams, and the inbox has precedence.
    entries.sort_by_key(|entry| entry.id);
    // Also where nothing else is left, the reader moves on.
    let last = entries.last().map_or(place.position, |entry| entry.id);
    let count = entries.len();
    entries.retain(|entry| !entry.op.is_break() || !place.covers_reset(entry.id));
    // What was published before it may be missing in a stream, and not shown to the snapshot.
    let is_incomplete = place.is_incomplete || entries.len() < count;
    if entries.iter().any(|entry| entry.op.is_break()) {
        return Read::Broken(view);
    }
    for entry in &mut entries {
        // What one audience does not see any more, the user may see by another, but not by a group that the user joined later:
        // the row may have left that group before, and was not the user's to read then.
        let is_seen = |via: &Text| is_seen(via, user, &members, entry.id);
        if entry.op == Operation::Delete && entry.via.as_ref().is_some_and(is_seen) {
            entry.op = Operation::Update;
        }
    }
    entries.dedup_by(|next, kept| {
        let is_same = next.id == kept.id;
        // Memberships of the user and the row belong together.
        if is_same && kept.op == Operation::Member {
            let member = kept.member.take();
            std::mem::swap(kept, next);
            kept.member = member;
        }
        is_same
    });
    Read::Slice(Slice {
        end: last,
        has_more: horizon.is_some(),
        is_incomplete,
        entries,
        view,
        members,
    })
}

/// Whether a user was among audiences, which are a JSON array of texts, at the time of an entry.
fn is_seen(via: &Text, user: Uuid, members: &Members, at: StreamId) -> bool {
    let audiences: Vec<String> = serde_json::from_slice(via.as_bytes()).unwrap_or_default();
    audiences.iter().any(|audience| {
        *audience == Audience::Tenant.to_string()
            || *audience == Audience::User(user).to_string()
            || audience
                .parse()
                .ok()
                .and_then(|group| members.groups.get(&group))
                .is_some_and(|joined| *joined <= at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::position::{EpochId, TermId};

    fn entry(seq: u64, op: Operation, via: &[&str]) -> Entry {
        Entry {
            id: StreamId { ms: 1, seq },
            op,
            row: Some(format!("{{\"id\":{seq}}}").into()),
            via: Some(serde_json::json!(via).to_string().into()),
            ..Entry::default()
        }
    }

    /// Number, operation and memberships of each entry, for a member of list 1, and from entry 5 on of list 2; `None` if continuity
    /// has ended.
    fn merged(ranges: Vec<Vec<Entry>>, count: usize) -> Option<Vec<(u64, &'static str, String)>> {
        merged_behind(ranges, count, None)
    }

    /// The same behind a snapshot that covers resets up to a number.
    fn merged_behind(
        ranges: Vec<Vec<Entry>>,
        count: usize,
        resets_covered: Option<u64>,
    ) -> Option<Vec<(u64, &'static str, String)>> {
        let slice = slice_behind(ranges, count, resets_covered)?;
        let outline = |entry: Entry| {
            let memberships = entry.memberships();
            let texts: Vec<String> = memberships.iter().map(ToString::to_string).collect();
            (entry.id.seq, entry.op.as_str(), texts.join(" "))
        };
        Some(slice.entries.into_iter().map(outline).collect())
    }

    fn slice_behind(ranges: Vec<Vec<Entry>>, count: usize, resets_covered: Option<u64>) -> Option<Slice> {
        let joined = |group: &str, seq| (group.parse().expect("a group"), StreamId { ms: 1, seq });
        let groups = [joined("list:1", 0), joined("list:2", 5)];
        let members = Members {
            groups: groups.into(),
            ..Members::default()
        };
        let position = StreamId { ms: 1, seq: 9 };
        let view = View {
            epoch: EpochId(1),
            base: 0,
            position,
            published: position,
            term: TermId(1),
            timeline: 1,
        };
        let reader = (Uuid::from_u128(7), Arc::new(members));
        let horizon = cut(&ranges, count);
        match merge(ranges, horizon, place(resets_covered), view, reader) {
            Read::Slice(slice) => Some(slice),
            Read::Broken(_) => None,
        }
    }

    fn plain(entries: &[(u64, &'static str)]) -> Option<Vec<(u64, &'static str, String)>> {
        Some(entries.iter().map(|(seq, op)| (*seq, *op, String::new())).collect())
    }

    fn place(resets_covered: Option<u64>) -> ReadPosition {
        ReadPosition {
            epoch: EpochId(1),
            generation: 1,
            term: TermId(1),
            position: StreamId::ZERO,
            resets_covered: resets_covered.map(|seq| StreamId { ms: 1, seq }),
            is_incomplete: false,
        }
    }

    #[test]
    fn reset_is_ignored_only_if_the_snapshot_covers_it() {
        use Operation::{Insert, Reset, Truncate};
        let inbox = || vec![entry(1, Insert, &[]), entry(2, Reset, &[]), entry(3, Insert, &[])];
        // The row of another user, whose inbox was created by the same change.
        let shared = || vec![entry(2, Insert, &[])];
        let all = plain(&[(1, "insert"), (2, "insert"), (3, "insert")]);
        assert_eq!(merged_behind(vec![inbox(), shared()], 100, Some(2)), all);
        assert_eq!(merged_behind(vec![inbox(), shared()], 100, Some(1)), None);
        let truncated = || vec![vec![entry(2, Truncate, &[])]];
        assert_eq!(merged_behind(truncated(), 100, Some(2)), plain(&[]));
        assert_eq!(merged_behind(truncated(), 100, Some(1)), None);
        // Another snapshot is due when the reader has passed one.
        let is_incomplete = |ranges, covered| slice_behind(ranges, 100, Some(covered)).map(|slice| slice.is_incomplete);
        assert_eq!(is_incomplete(truncated(), 2), Some(true));
        assert_eq!(is_incomplete(vec![vec![entry(2, Insert, &[])]], 2), Some(false));
    }

    #[test]
    fn deletion_for_one_audience_is_an_update_for_another_of_the_reader() {
        use Operation::{Delete, Insert, Update};
        let own = format!("user:{}", Uuid::from_u128(7));
        let gone = vec![
            entry(1, Delete, &["list:1"]),
            entry(2, Delete, &[&own]),
            entry(3, Delete, &["tenant"]),
            entry(4, Delete, &["list:3"]),
            entry(5, Delete, &[]),
        ];
        let expected = [
            (1, "update"),
            (2, "update"),
            (3, "update"),
            (4, "delete"),
            (5, "delete"),
        ];
        assert_eq!(merged(vec![gone], 100), plain(&expected));
        // It comes once, however many streams have it.
        let (inbox, group) = (
            vec![entry(1, Update, &["list:1"])],
            vec![entry(1, Insert, &["list:1"]), entry(2, Insert, &[])],
        );
        assert_eq!(merged(vec![inbox, group], 100), plain(&[(1, "update"), (2, "insert")]));
    }

    #[test]
    fn deletion_before_the_reader_joined_the_other_group_stays_one() {
        let moved = |seq| entry(seq, Operation::Delete, &["list:2"]);
        assert_eq!(
            merged(vec![vec![moved(1), moved(4), moved(5), moved(6)]], 100),
            plain(&[(1, "delete"), (4, "delete"), (5, "update"), (6, "update")])
        );
    }

    #[test]
    fn memberships_stay_with_the_row_of_the_same_change() {
        let mut joined = entry(1, Operation::Member, &[]);
        joined.member = Some("+list:2".to_owned().into());
        let group = vec![entry(1, Operation::Insert, &["list:1"])];
        assert_eq!(
            merged(vec![vec![joined], group], 100),
            Some(vec![(1, "insert", "+list:2".to_owned())])
        );
    }

    #[test]
    fn merge_ends_where_the_first_cut_stream_ends() {
        use Operation::{Insert, Reset};
        let long = vec![entry(1, Insert, &[]), entry(3, Insert, &[])];
        let short = vec![entry(2, Insert, &[]), entry(4, Insert, &[])];
        assert_eq!(
            merged(vec![long, short.clone()], 2),
            plain(&[(1, "insert"), (2, "insert"), (3, "insert")])
        );
        assert_eq!(merged(vec![short, vec![entry(3, Reset, &[])]], 100), None);
    }
}
