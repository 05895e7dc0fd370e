//! Transactions that are published, but that a snapshot of Postgres may not see yet, and what is kept in Redis on their account:
//! the window, and the latest changes of memberships.

use std::collections::HashMap;
use std::sync::Arc;

use crate::contract::window::WindowEntry;
use crate::core::position::StreamId;
use crate::core::snapshot::Snapshot;
use crate::publish::batch::Batch;

/// Most entries of the window. Devices that take a snapshot read all of them.
const WINDOW_ENTRIES_MAX: usize = 1000;

/// What is published and may not be seen.
#[derive(Debug)]
pub(super) struct UnseenTransactions {
    /// In order.
    window: Vec<WindowEntry>,
    /// Tenants whose latest changes of memberships are kept, and the end of the last batch with some.
    memberships: HashMap<Arc<str>, StreamId>,
}

impl UnseenTransactions {
    /// What the writer before has left.
    pub(super) fn new(window: Vec<WindowEntry>) -> Self {
        Self {
            window,
            memberships: HashMap::new(),
        }
    }

    /// The first change that may not be seen.
    pub(super) fn first(&self) -> Option<StreamId> {
        self.window.first().map(|entry| entry.first)
    }

    /// A batch is sent.
    pub(super) fn send(&mut self, batch: &Batch) {
        let Some(end) = batch.position() else { return };
        let tenants = batch.membership_tenants().iter();
        self.memberships.extend(tenants.map(|tenant| (tenant.clone(), end)));
    }

    /// A batch is published. While no heartbeat succeeds, entries of the window stay: the oldest takes in the next ones, which
    /// the batch that is being filled writes.
    pub(super) fn publish(&mut self, batch: &Batch, filled: &mut Batch) {
        self.window.extend(batch.window().cloned());
        while self.window.len() > WINDOW_ENTRIES_MAX {
            let next = self.window.remove(1);
            let gone = next.first;
            let Some(oldest) = self.window.first_mut() else { return };
            oldest.merge(next);
            filled.merge_window(oldest.clone(), gone);
        }
    }

    /// Removes what a snapshot sees, by the batch that is being filled. Everything up to `published` was published before.
    pub(super) fn remove_seen(&mut self, snapshot: &Snapshot, published: StreamId, filled: &mut Batch) {
        let seen = self.window.extract_if(.., |entry| entry.is_seen_by(snapshot));
        let seen: Vec<String> = seen.map(|entry| entry.first.to_string()).collect();
        if !seen.is_empty() {
            filled.close_window(seen);
        }
        let first = self.first();
        let is_seen = |tenant: &Arc<str>, end: &mut StreamId| {
            // Those of the batch that is being filled would go with them.
            let has_more = *end > published || filled.membership_tenants().contains(tenant);
            !has_more && first.is_none_or(|first| *end < first)
        };
        let seen: Vec<_> = self.memberships.extract_if(is_seen).collect();
        for (tenant, _) in seen {
            filled.forget_memberships(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::contract::group::Membership;
    use crate::contract::keys::Keys;
    use crate::contract::membership_log::MembershipChange;

    fn at(ms: u64) -> StreamId {
        StreamId { ms, seq: 1 }
    }

    fn batch(ms: u64, xid: u32, tenant: Option<&str>) -> Batch {
        let mut batch = Batch::new(Keys::new("posduif"));
        batch.reach(at(ms), Some(xid));
        if let Some(tenant) = tenant {
            let change = MembershipChange {
                id: at(ms),
                user: Uuid::from_u128(7),
                membership: Membership::Leave("list:4".parse().expect("a group")),
            };
            batch.membership(&tenant.into(), &change, 0);
        }
        batch
    }

    fn forgets(batch: &Batch) -> bool {
        let (commands, _) = batch.commands();
        commands.windows(6).any(|word| word == b"UNLINK")
    }

    #[test]
    fn memberships_are_kept_until_all_of_a_tenant_are_seen() {
        let snapshot = |text| Snapshot::parse(text).expect("a snapshot");
        let mut unseen = UnseenTransactions::new(Vec::new());
        let mut filled = batch(9, 12, None);
        let first = batch(4, 10, Some("acme"));
        unseen.send(&first);
        // Not before its reply is there.
        unseen.remove_seen(&snapshot("13:13:"), at(3), &mut filled);
        assert!(!forgets(&filled));
        unseen.publish(&first, &mut filled);
        unseen.remove_seen(&snapshot("10:13:10"), at(4), &mut filled);
        assert!(!forgets(&filled) && unseen.first() == Some(at(4)));
        // Nor while others follow.
        let mut later = batch(9, 12, Some("acme"));
        unseen.remove_seen(&snapshot("11:13:"), at(4), &mut later);
        assert!(!forgets(&later) && unseen.first().is_none());
        unseen.remove_seen(&snapshot("11:13:"), at(4), &mut filled);
        assert!(forgets(&filled));
    }

    #[test]
    fn window_keeps_its_bound_by_merging_the_oldest() {
        let mut unseen = UnseenTransactions::new(Vec::new());
        let mut filled = batch(5000, 1, None);
        for number in 0..1500 {
            unseen.publish(&batch(number, u32::try_from(number).unwrap_or(0), None), &mut filled);
        }
        assert_eq!((unseen.window.len(), unseen.first()), (WINDOW_ENTRIES_MAX, Some(at(0))));
        assert!(unseen.window.first().is_some_and(|oldest| oldest.contains(499)));
    }
}
