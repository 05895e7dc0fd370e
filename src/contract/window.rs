//! The window: transactions that are published, but that a snapshot of Postgres may not see yet.
//!
//! One entry a batch with rows, kept in Redis until a snapshot sees all of it. It names exactly the batch's
//! transactions: other ones that run meanwhile, in other databases too, must not make a handoff begin too low.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::core::position::StreamId;
use crate::core::snapshot::Snapshot;

/// Most runs of an entry that took in others.
const RUNS_MAX: usize = 1000;

/// The transactions of one batch, or of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowEntry {
    /// Stream ID of the batch's first change; a handoff that must not miss these transactions begins below.
    pub first: StreamId,
    /// Runs of transaction ids, lowest and highest of each.
    runs: Vec<(u32, u32)>,
}

impl WindowEntry {
    /// An entry that begins at this change of this transaction.
    pub fn new(first: StreamId, xid: u32) -> Self {
        Self {
            first,
            runs: vec![(xid, xid)],
        }
    }

    /// Adds a transaction. Transactions mostly commit in the order of their ids, so runs stay few.
    pub fn add(&mut self, xid: u32) {
        if self.contains(xid) {
            return;
        }
        match self.runs.last_mut() {
            Some((_, high)) if high.checked_add(1) == Some(xid) => *high = xid,
            _ => self.runs.push((xid, xid)),
        }
    }

    /// Takes in the next entry. The runs grow over gaps where they would become too many: then a snapshot counts as not
    /// seeing this entry while it does not see a transaction of a gap.
    pub fn merge(&mut self, next: Self) {
        self.first = self.first.min(next.first);
        self.runs.extend(next.runs);
        self.runs.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(self.runs.len());
        for run in self.runs.drain(..) {
            match joined.last_mut() {
                Some(last) if run.0 <= last.1.saturating_add(1) => last.1 = last.1.max(run.1),
                _ => joined.push(run),
            }
        }
        while joined.len() > RUNS_MAX {
            let pairs = joined.chunks(2);
            joined = pairs
                .filter_map(|pair| Some((pair.first()?.0, pair.last()?.1)))
                .collect();
        }
        self.runs = joined;
    }

    /// Whether a transaction may be one of it.
    pub fn contains(&self, xid: u32) -> bool {
        self.runs.iter().rev().any(|(low, high)| (*low..=*high).contains(&xid))
    }

    /// Whether a snapshot sees all of it.
    pub fn is_seen_by(&self, snapshot: &Snapshot) -> bool {
        self.runs.iter().all(|(low, high)| snapshot.sees_all(*low, *high))
    }

    /// The entries of the window's hash; malformed fields are left out.
    pub fn parse_all(fields: &HashMap<String, String>) -> Vec<Self> {
        let entries = fields.iter();
        entries.filter_map(|(first, runs)| Self::parse(first, runs)).collect()
    }

    /// The runs as text: `7-9,12`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for (low, high) in &self.runs {
            if !text.is_empty() {
                text.push(',');
            }
            // Writing to a String cannot fail.
            let _ = if low == high {
                write!(text, "{low}")
            } else {
                write!(text, "{low}-{high}")
            };
        }
        text
    }

    /// Reads an entry; `None` when it is not one.
    pub fn parse(first: &str, runs: &str) -> Option<Self> {
        let run = |text: &str| {
            let (low, high) = text.split_once('-').unwrap_or((text, text));
            Some((low.parse().ok()?, high.parse().ok()?))
        };
        Some(Self {
            first: first.parse().ok()?,
            runs: runs.split(',').map(run).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: StreamId = StreamId { ms: 5, seq: 1 };

    fn entry(xids: &[u32]) -> WindowEntry {
        let mut entry = WindowEntry::new(FIRST, xids[0]);
        xids[1..].iter().for_each(|xid| entry.add(*xid));
        entry
    }

    #[test]
    fn runs_are_short_and_somebody_elses_transaction_is_in_none() {
        let entry = entry(&[7, 8, 9, 9, 12, 8]);
        assert_eq!(entry.encode(), "7-9,12");
        let elsewhere = Snapshot {
            xmin: 10,
            xmax: 20,
            in_progress: vec![10, 11],
        };
        assert!(entry.is_seen_by(&elsewhere));
        let ours = Snapshot {
            xmin: 12,
            xmax: 20,
            in_progress: vec![12],
        };
        assert!(!entry.is_seen_by(&ours));
        assert_eq!(WindowEntry::parse("5-1", "x"), None);
    }

    #[test]
    fn merged_entry_begins_at_the_first_and_names_all_transactions() {
        let mut merged = entry(&[20, 21, 30]);
        let second = WindowEntry {
            first: StreamId { ms: 9, seq: 1 },
            ..entry(&[7, 22, 29])
        };
        merged.merge(second);
        assert_eq!((merged.first, merged.encode().as_str()), (FIRST, "7,20-22,29-30"));
        for xid in 0..5000 {
            merged.merge(WindowEntry::new(FIRST, 100 + 2 * xid));
        }
        assert!(merged.runs.len() <= RUNS_MAX);
        assert!((0..5000).all(|xid| merged.contains(100 + 2 * xid)));
    }

    proptest! {
        #[test]
        fn an_entry_is_read_as_it_was_written_and_holds_each_transaction(
            xids in proptest::collection::vec(any::<u32>(), 1..50)
        ) {
            let entry = entry(&xids);
            prop_assert_eq!(WindowEntry::parse("5-1", &entry.encode()), Some(entry.clone()));
            for xid in xids {
                prop_assert!(entry.contains(xid));
            }
        }
    }
}
