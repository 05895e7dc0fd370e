//! Users and groups of tenants that are to be looked at, and when.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use tokio::time::Instant;

/// A bounded set of users or groups by time, each once, at its earliest time.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    by_time: BTreeSet<(Instant, (Arc<str>, T))>,
    times: HashMap<(Arc<str>, T), Instant>,
    most: usize,
    has_overflown: bool,
}

impl<T: Clone + Ord + Hash> Schedule<T> {
    /// An empty one for so many.
    pub(super) fn new(most: usize) -> Self {
        Self {
            by_time: BTreeSet::new(),
            times: HashMap::new(),
            most,
            has_overflown: false,
        }
    }

    /// Adds one; what is there already stays at the earlier time. What does not fit is only counted as lost.
    pub(super) fn put(&mut self, tenant: &str, one: T, at: Instant) {
        let key = (tenant.into(), one);
        match self.times.get(&key) {
            Some(known) if *known <= at => return,
            Some(known) => {
                self.by_time.remove(&(*known, key.clone()));
            }
            None if self.times.len() >= self.most => {
                self.has_overflown = true;
                return;
            }
            None => {}
        }
        self.times.insert(key.clone(), at);
        self.by_time.insert((at, key));
    }

    /// When the first is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes all that are due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Arc<str>, T)> {
        std::iter::from_fn(|| self.next_due(now)).collect()
    }

    /// Removes the first, if it is due.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(Arc<str>, T)> {
        self.next().filter(|at| *at <= now)?;
        let (_, first) = self.by_time.pop_first()?;
        self.times.remove(&first);
        Some(first)
    }

    /// Whether one did not fit since the last call.
    pub(super) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.has_overflown)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn user_is_due_once_at_its_earliest_time_within_the_bound() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let user = Uuid::from_u128;
        let mut schedule = Schedule::new(2);
        schedule.put("acme", user(1), later);
        schedule.put("acme", user(1), now);
        schedule.put("acme", user(1), later);
        schedule.put("beta", user(1), later);
        assert!(!schedule.take_overflow());
        schedule.put("acme", user(3), now);
        assert!(schedule.take_overflow() && !schedule.take_overflow());
        assert_eq!(schedule.next(), Some(now));
        assert_eq!(schedule.due(now), [("acme".into(), user(1))]);
        assert_eq!(schedule.due(now), []);
        assert_eq!(schedule.due(later), [("beta".into(), user(1))]);
        assert_eq!(schedule.next(), None);
    }
}
