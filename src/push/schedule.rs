//! Users who are to be looked at, and when.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

type User = (Arc<str>, Uuid);

/// A bounded set of users by time, each once, at its earliest time.
#[derive(Debug)]
pub(super) struct Schedule {
    by_time: BTreeSet<(Instant, User)>,
    times: HashMap<User, Instant>,
    most: usize,
    has_overflown: bool,
}

impl Schedule {
    /// An empty one for so many users.
    pub(super) fn new(most: usize) -> Self {
        Self {
            by_time: BTreeSet::new(),
            times: HashMap::new(),
            most,
            has_overflown: false,
        }
    }

    /// Puts a user in; one who is in already stays at the earlier time. Who does not fit is only counted as lost.
    pub(super) fn put(&mut self, tenant: &str, user: Uuid, at: Instant) {
        let key: User = (tenant.into(), user);
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

    /// Takes out all who are due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<User> {
        let mut due = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            let Some((_, user)) = self.by_time.pop_first() else {
                break;
            };
            self.times.remove(&user);
            due.push(user);
        }
        due
    }

    /// Whether a user did not fit since the last call.
    pub(super) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.has_overflown)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
