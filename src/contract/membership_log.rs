//! The sorted set `memberships` of a tenant: which memberships began and ended lately, in the order of commits.
//!
//! The hash of a user's memberships ([`super::members`]) is filled from Postgres, which may not show yet what is published.
//! What it does not show is here. The publisher adds each change, and removes the set when Postgres shows all of it.

use uuid::Uuid;

use super::group::{GroupId, Membership};
use crate::config::group::Groups;
use crate::core::digest;
use crate::core::position::StreamId;

/// Most changes of one tenant. Of more, the first are removed.
pub const CHANGES_MAX: usize = 10_000;

/// A place behind all others.
const UNKNOWN: StreamId = StreamId {
    ms: u64::MAX,
    seq: u64::MAX,
};

/// Identifies the groups of which a writer records memberships.
pub fn groups_digest(groups: &Groups) -> String {
    format!("{:016x}", digest::short(serde_json::to_vec(groups).unwrap_or_default()))
}

/// One change of a user's memberships.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipChange {
    pub id: StreamId,
    pub user: Uuid,
    pub membership: Membership,
}

impl MembershipChange {
    /// `<stream ID> <user> +<group>`, or `-<group>` at its end.
    pub fn encode(&self) -> String {
        let sign = match self.membership {
            Membership::Join(_) => '+',
            Membership::Leave(_) => '-',
        };
        format!("{} {} {sign}{}", self.id, self.user, self.membership.group())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (id, user, change) = (words.next()?, words.next()?, words.next()?);
        let group = |name: &str| name.parse::<GroupId>().ok();
        let membership = match change.strip_prefix('+') {
            Some(name) => Membership::Join(group(name)?),
            None => Membership::Leave(group(change.strip_prefix('-')?)?),
        };
        Some(Self {
            id: id.parse().ok()?,
            user: user.parse().ok()?,
            membership,
        })
    }
}

/// The set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MembershipLog {
    /// Changes up to here may be missing.
    cut: StreamId,
    changes: Vec<MembershipChange>,
}

impl MembershipLog {
    /// Reads the set. Where changes were removed, the first element is the stream ID of the last of them; where one is
    /// malformed, all before it count as removed.
    pub fn parse(elements: &[String]) -> Self {
        let mut log = Self::default();
        for element in elements {
            match MembershipChange::parse(element) {
                Some(change) => log.changes.push(change),
                None => {
                    log.changes.clear();
                    log.cut = element.parse().unwrap_or(UNKNOWN);
                }
            }
        }
        log
    }

    /// The same, where it is kept since a place only. `None`: it is not kept by the present writer.
    #[must_use]
    pub fn kept_since(mut self, since: Option<StreamId>) -> Self {
        self.cut = self.cut.max(since.unwrap_or(UNKNOWN));
        self
    }

    /// Whether it has all changes behind a place that Postgres may not show.
    pub fn is_complete_behind(&self, place: StreamId) -> bool {
        self.cut <= place
    }

    /// A user's changes behind one place, up to and including another.
    pub fn of(&self, user: Uuid, after: StreamId, until: StreamId) -> impl Iterator<Item = &MembershipChange> {
        let is_one = move |change: &&MembershipChange| change.user == user && change.id > after && change.id <= until;
        self.changes.iter().filter(is_one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change(ms: u64, membership: Membership) -> MembershipChange {
        MembershipChange {
            id: StreamId { ms, seq: 1 },
            user: Uuid::from_u128(7),
            membership,
        }
    }

    fn group() -> GroupId {
        "list:4".parse().expect("a group")
    }

    #[test]
    fn log_has_what_follows_the_changes_that_were_removed() {
        let (join, leave) = (
            change(5, Membership::Join(group())),
            change(6, Membership::Leave(group())),
        );
        let at = |ms| StreamId { ms, seq: 1 };
        let log = MembershipLog::parse(&["4-1".to_owned(), join.encode(), leave.encode()]);
        assert!(log.is_complete_behind(at(4)) && !log.is_complete_behind(at(3)));
        assert_eq!(log.of(join.user, at(4), at(5)).collect::<Vec<_>>(), [&join]);
        assert_eq!(log.of(join.user, at(5), at(9)).collect::<Vec<_>>(), [&leave]);
        assert_eq!(log.of(Uuid::nil(), at(4), at(9)).count(), 0);
        assert!(MembershipLog::default().is_complete_behind(StreamId::ZERO));
        assert!(!MembershipLog::default().kept_since(None).is_complete_behind(at(9)));
        assert!(!log.clone().kept_since(Some(at(6))).is_complete_behind(at(5)));
        assert!(!log.clone().kept_since(Some(at(3))).is_complete_behind(at(3)));
        let unknown = MembershipLog::parse(&[join.encode(), "what is this".to_owned()]);
        assert!(!unknown.is_complete_behind(at(9)));
    }

    proptest! {
        #[test]
        fn change_is_read_as_it_was_written(
            (ms, seq, user) in any::<(u64, u64, u128)>(), name in "[a-z]{1,8}", id in "[!-~]{1,40}", is_join in any::<bool>()
        ) {
            let group = GroupId::new(&name.as_str().into(), id.as_bytes()).expect("an id");
            let change = MembershipChange {
                id: StreamId { ms, seq },
                user: Uuid::from_u128(user),
                membership: if is_join { Membership::Join(group) } else { Membership::Leave(group) },
            };
            prop_assert_eq!(MembershipChange::parse(&change.encode()), Some(change));
        }
    }
}
