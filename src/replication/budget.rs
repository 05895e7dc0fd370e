//! What is cut of a tenant that holds more than its budget: `changes` first, then the largest streams down to one level.
//! Pure.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Streams of which the size is remembered. Those below the largest are counted only, and come to be the largest when these
/// are cut.
const LARGEST_MAX: usize = 10_000;

/// The part of a bound to which a stream or tenant beyond it is cut, so that this is not repeated with each entry.
pub const fn goal(bound: u64) -> u64 {
    bound - bound / 8
}

/// What a tenant holds.
#[derive(Debug)]
pub struct TenantUse<T> {
    changes: u64,
    /// What is not cut: quarantine and pushes.
    fixed: u64,
    /// The smallest is on top.
    largest: BinaryHeap<Reverse<(u64, T)>>,
    /// The others together.
    rest: u64,
}

/// The sizes to which streams are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// The size for `changes`, if it is to be cut.
    pub changes: Option<u64>,
    /// The size for each of these streams.
    pub level: u64,
    pub streams: Vec<(T, u64)>,
}

impl<T: Ord> Default for TenantUse<T> {
    fn default() -> Self {
        Self {
            changes: 0,
            fixed: 0,
            largest: BinaryHeap::new(),
            rest: 0,
        }
    }
}

impl<T: Ord> TenantUse<T> {
    pub fn add_changes(&mut self, bytes: u64) {
        self.changes += bytes;
    }

    pub fn add_fixed(&mut self, bytes: u64) {
        self.fixed += bytes;
    }

    pub fn add(&mut self, stream: T, bytes: u64) {
        self.largest.push(Reverse((bytes, stream)));
        if self.largest.len() > LARGEST_MAX
            && let Some(Reverse((bytes, _))) = self.largest.pop()
        {
            self.rest += bytes;
        }
    }

    /// The sum.
    pub fn used(&self) -> u64 {
        let largest: u64 = self.largest.iter().map(|Reverse((bytes, _))| bytes).sum();
        self.changes + self.fixed + self.rest + largest
    }

    /// What can be cut.
    pub fn cuttable(&self) -> u64 {
        self.used() - self.fixed
    }

    /// What is to be cut under this budget; `None` if nothing.
    ///
    /// What is not cut leaves less for the streams, but never less than a quarter of the budget: to cut what cannot be enough
    /// would only lose history.
    pub fn plan(self, budget: u64) -> Option<Plan<T>> {
        let used = self.used();
        if used <= budget {
            return None;
        }
        let excess = (used - goal(budget)).min(self.cuttable().saturating_sub(budget / 4));
        Some(self.plan_to_free(excess))
    }

    /// What is to be cut to free so many bytes.
    pub fn plan_to_free(self, excess: u64) -> Plan<T> {
        let of_changes = self.changes.min(excess);
        let largest: Vec<(u64, T)> = self.largest.into_iter().map(|Reverse(stream)| stream).collect();
        let level = level(largest.iter().map(|(bytes, _)| *bytes).collect(), excess - of_changes);
        let streams = largest.into_iter().filter(|(bytes, _)| *bytes > level);
        Plan {
            changes: (of_changes > 0).then_some(self.changes - of_changes),
            level,
            streams: streams.map(|(bytes, stream)| (stream, bytes)).collect(),
        }
    }
}

/// The size to which all that are larger must be cut to save so many bytes.
fn level(mut sizes: Vec<u64>, excess: u64) -> u64 {
    if excess == 0 {
        return u64::MAX;
    }
    sizes.sort_unstable_by_key(|size| Reverse(*size));
    let mut sum = 0;
    for (count, size) in (1..).zip(&sizes) {
        sum += size;
        let level = sum.saturating_sub(excess) / count;
        let next = sizes.get(count as usize).copied().unwrap_or(0);
        if level >= next && sum >= excess {
            return level;
        }
    }
    0
}

/// How many of its newest entries a stream keeps in the next step towards a size. Nothing shows how large its entries are
/// but its size after the step. So it goes the whole way, as if all were equal, only while it is far away, and then a quarter
/// of it: the oldest entries may be the largest.
pub fn kept(bytes: u64, entries: u64, goal: u64) -> u64 {
    if bytes <= goal {
        return entries;
    }
    let even = u128::from(entries) * u128::from(goal) / u128::from(bytes);
    let even = u64::try_from(even).unwrap_or(entries);
    let step = match bytes / 2 > goal {
        true => entries - even,
        false => (entries - even).div_ceil(4).max(entries.div_ceil(16)),
    };
    entries.saturating_sub(step.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant_use(changes: u64, fixed: u64, streams: &[u64]) -> TenantUse<usize> {
        let mut tenant_use = TenantUse::default();
        tenant_use.add_changes(changes);
        tenant_use.add_fixed(fixed);
        for (stream, bytes) in streams.iter().enumerate() {
            tenant_use.add(stream, *bytes);
        }
        tenant_use
    }

    #[test]
    fn changes_are_cut_first_then_the_largest_streams() {
        let plan = |changes, streams: &[u64]| tenant_use(changes, 0, streams).plan(800);
        assert_eq!(plan(400, &[300, 100]), None);
        let cut = |changes, level, streams| {
            Some(Plan {
                changes,
                level,
                streams,
            })
        };
        assert_eq!(plan(401, &[300, 100]), cut(Some(300), u64::MAX, vec![]));
        let sorted = |plan: Option<Plan<usize>>| {
            let mut plan = plan.unwrap();
            plan.streams.sort_unstable();
            Some(plan)
        };
        assert_eq!(sorted(plan(100, &[900, 50])), cut(Some(0), 650, vec![(0, 900)]));
        assert_eq!(
            sorted(plan(0, &[500, 50, 400])),
            cut(None, 325, vec![(0, 500), (2, 400)])
        );
    }

    #[test]
    fn what_is_not_cut_leaves_a_quarter_to_streams() {
        let plan = tenant_use(100, 5000, &[300]).plan(800).unwrap();
        assert_eq!((plan.changes, plan.level), (Some(0), 200));
        assert_eq!(tenant_use(0, 5000, &[150]).plan(800).unwrap().streams, []);
    }

    proptest! {
        #[test]
        fn plan_ends_within_the_budget_and_takes_the_largest_only(
            changes in 0..2_000_u64,
            fixed in 0..100_u64,
            streams in prop::collection::vec(0..1_000_u64, 0..40),
            budget in 200..4_000_u64,
        ) {
            let tenant_use = tenant_use(changes, fixed, &streams);
            let used = tenant_use.used();
            prop_assert_eq!(used, changes + fixed + streams.iter().sum::<u64>());
            let Some(plan) = tenant_use.plan(budget) else {
                prop_assert!(used <= budget);
                return Ok(());
            };
            prop_assert!(used > budget);
            let left: u64 = streams.iter().map(|bytes| (*bytes).min(plan.level)).sum();
            let after = plan.changes.unwrap_or(changes) + fixed + left;
            prop_assert!(after <= goal(budget), "{after} of {budget}");
            // No more than needed, but for what does not divide by the number of streams.
            prop_assert!(after + 40 >= goal(budget), "{after} of {budget}");
            if plan.changes.unwrap_or(changes) > 0 {
                prop_assert_eq!(&plan.streams, &[]);
            }
            let larger: Vec<usize> = (0..streams.len()).filter(|stream| streams[*stream] > plan.level).collect();
            let mut cut: Vec<usize> = plan.streams.iter().map(|(stream, _)| *stream).collect();
            cut.sort_unstable();
            prop_assert_eq!(cut, larger);
        }

        #[test]
        fn steps_end_at_the_size_whatever_the_entries_are(
            old in prop::collection::vec(1..10_000_u64, 0..300),
            new in prop::collection::vec(1..10_000_000_u64, 1..300),
            goal in 0..100_000_000_u64,
        ) {
            let mut entries: Vec<u64> = old.into_iter().chain(new).collect();
            let mut steps = 0;
            loop {
                let bytes: u64 = entries.iter().sum();
                let kept = kept(bytes, entries.len() as u64, goal);
                if bytes <= goal {
                    prop_assert_eq!(kept, entries.len() as u64);
                    break;
                }
                prop_assert!(kept < entries.len() as u64);
                entries.drain(..entries.len() - kept as usize);
                steps += 1;
            }
            prop_assert!(steps <= 128, "{steps} steps");
        }
    }

    #[test]
    fn heavy_old_entries_do_not_take_many_small_ones_with_them() {
        // A flood of 1,000 entries, then 10,000 small ones: half of the flood is enough.
        let mut entries: Vec<u64> = [vec![40_000; 1000], vec![400; 10_000]].concat();
        let goal = 32_000_000;
        while entries.iter().sum::<u64>() > goal {
            let kept = kept(entries.iter().sum(), entries.len() as u64, goal);
            entries.drain(..entries.len() - kept as usize);
        }
        assert!(entries.len() >= 10_000, "{} entries", entries.len());
    }

    #[test]
    fn remembered_streams_are_bounded() {
        let mut tenant_use = TenantUse::default();
        let count = 3 * LARGEST_MAX as u64;
        (0..count).for_each(|bytes| tenant_use.add(bytes, bytes));
        assert_eq!(tenant_use.largest.len(), LARGEST_MAX);
        assert_eq!(tenant_use.used(), count * (count - 1) / 2);
    }
}
