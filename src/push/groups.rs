//! Groups whose members are to be looked at: one at a time, a page of members at a time.
//!
//! A group can have many members and change often. It is looked at again when it has rested for some times as long as the
//! last scan took, so that scans of one group take a small part of the time, however large it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::schedule::Schedule;
use crate::contract::group::GroupId;

/// A group rests this many times as long as its scan took.
const REST: u32 = 10;

/// A bounded set of groups.
#[derive(Debug)]
pub(super) struct GroupScans {
    waiting: Schedule<GroupId>,
    /// Until when groups rest that were looked at lately.
    resting: HashMap<(Arc<str>, GroupId), Instant>,
    current: Option<Scan>,
}

/// A look at the members of a group, as far as it has come.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) tenant: Arc<str>,
    pub(super) group: GroupId,
    after: Option<String>,
    took: Duration,
}

impl Scan {
    /// The last member that was looked at, as the table of the group names it.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }
}

impl GroupScans {
    /// An empty set for so many groups.
    pub(super) fn new(most: usize) -> Self {
        Self {
            waiting: Schedule::new(most),
            resting: HashMap::new(),
            current: None,
        }
    }

    /// Adds a group, of which something is new. One that is being looked at is looked at again afterwards.
    pub(super) fn put(&mut self, tenant: &str, group: GroupId, now: Instant) {
        let rest = self.resting.get(&(Arc::from(tenant), group.clone()));
        let at = rest.map_or(now, |until| now.max(*until));
        self.waiting.put(tenant, group, at);
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.current {
            Some(_) => Some(Instant::now()),
            None => self.waiting.next(),
        }
    }

    /// Takes the scan to go on with. Without [`Self::went_on`] it is over.
    pub(super) fn take(&mut self, now: Instant) -> Option<Scan> {
        if let Some(current) = self.current.take() {
            return Some(current);
        }
        while let Some((tenant, group)) = self.waiting.next_due(now) {
            // It may have been added while it was looked at.
            match self.resting.get(&(tenant.clone(), group.clone())) {
                Some(until) if *until > now => self.waiting.put(&tenant, group, *until),
                _ => {
                    return Some(Scan {
                        tenant,
                        group,
                        after: None,
                        took: Duration::ZERO,
                    });
                }
            }
        }
        None
    }

    /// A page was looked at, from this time on; `after` is its last member, unless it was the last page.
    pub(super) fn went_on(&mut self, scan: Scan, after: Option<String>, started: Instant) {
        let now = Instant::now();
        let took = scan.took + now.saturating_duration_since(started);
        if after.is_some() {
            self.current = Some(Scan { after, took, ..scan });
            return;
        }
        self.resting.retain(|_, until| *until > now);
        self.resting.insert((scan.tenant, scan.group), now + took * REST);
    }

    /// Whether a group did not fit since the last call.
    pub(super) fn take_overflow(&mut self) -> bool {
        self.waiting.take_overflow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_that_changes_during_its_scan_is_due_again_after_a_rest() {
        let start = Instant::now();
        let group: GroupId = "list:1".parse().expect("a group");
        let mut scans = GroupScans::new(10);
        scans.put("acme", group.clone(), start);
        let scan = scans.take(start).expect("a scan");
        assert_eq!((&*scan.tenant, scan.after()), ("acme", None));
        scans.went_on(scan, Some("7".into()), start);
        scans.put("acme", group.clone(), start);
        // The scan goes on where it was, before another begins.
        let scan = scans.take(start).expect("the same scan");
        assert_eq!(scan.after(), Some("7"));
        let began = Instant::now().checked_sub(Duration::from_secs(60)).expect("a time");
        scans.went_on(scan, None, began);
        assert!(scans.take(Instant::now()).is_none(), "it rests");
        let rested = Instant::now() + Duration::from_secs(601);
        let scan = scans.take(rested).expect("another scan");
        assert_eq!((scan.group, scan.after), (group, None));
        assert!(scans.take(rested).is_none());
    }

    #[test]
    fn failed_scan_of_a_group_is_over() {
        let start = Instant::now();
        let mut scans = GroupScans::new(10);
        scans.put("acme", "list:1".parse().expect("a group"), start);
        scans.put("acme", "list:2".parse().expect("a group"), start);
        let first = scans.take(start).expect("a scan");
        let second = scans.take(start).expect("another scan");
        assert_ne!(first.group, second.group);
        assert!(scans.take(start).is_none() && scans.next().is_none());
    }
}
