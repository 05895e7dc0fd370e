//! The hash `groups` of a user: of which groups they are a member, as of what is published.
//!
//! It exists for users whose devices sync. A reader's snapshot creates it in three steps, so that no change is missed between
//! Postgres and the log: it marks the hash, from when on the publisher keeps it; it reads the memberships from Postgres, until
//! it sees everything up to the mark; it adds them, except those whose end was published meanwhile.

use std::collections::{BTreeMap, HashMap};

use super::group::GroupId;
use crate::core::position::{EpochId, StreamId};

/// The epoch in which it was marked.
pub const EPOCH: &str = ".epoch";

/// The tenant's generation in which it was marked.
pub const GENERATION: &str = ".generation";

/// What was published when it was marked.
pub const MARKED: &str = ".marked";

/// Up to where the memberships from Postgres are known to be complete; missing until they are added.
pub const SINCE: &str = ".since";

/// Names of its fields.
pub const FIELDS: [&str; 5] = [EPOCH, GENERATION, MARKED, SINCE, "<group>:<id>"];

/// The value of a group that was left before the memberships from Postgres were added.
pub const LEFT: &str = "-";

/// Most groups of one user. Scripts remove a hash of more, so that the next snapshot reads the memberships, and refuses.
pub const GROUPS_MAX: usize = 1000;

/// A user's memberships.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    pub epoch: Option<EpochId>,
    pub generation: Option<i64>,
    /// What was published when the hash was marked.
    pub marked: Option<StreamId>,
    /// A reader behind this position reads what it needs from the group's streams.
    pub since: Option<StreamId>,
    /// The groups, and behind which position the user reads them.
    pub groups: BTreeMap<GroupId, StreamId>,
}

impl Members {
    /// Reads the fields. Malformed ones are missing.
    pub fn parse(fields: &HashMap<String, String>) -> Self {
        fn number<T: std::str::FromStr>(fields: &HashMap<String, String>, name: &str) -> Option<T> {
            fields.get(name)?.parse().ok()
        }
        let group = |(name, value): (&String, &String)| Some((name.parse().ok()?, value.parse().ok()?));
        Self {
            epoch: number(fields, EPOCH),
            generation: number(fields, GENERATION),
            marked: number(fields, MARKED),
            since: number(fields, SINCE),
            groups: fields
                .iter()
                .filter(|(name, _)| !name.starts_with('.'))
                .filter_map(group)
                .collect(),
        }
    }

    /// Whether it holds for an epoch and a generation of the tenant whose readers were last reset at `reset`, and is within
    /// its bound.
    pub fn is_of(&self, epoch: EpochId, generation: Option<i64>, reset: StreamId) -> bool {
        let is_known = self.epoch == Some(epoch) && self.generation.is_some() && self.generation == generation;
        is_known && self.marked.is_some_and(|marked| marked >= reset) && self.groups.len() <= GROUPS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_read_groups_and_skip_those_that_were_left() {
        let field = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let fields = [
            (EPOCH, "7"),
            (GENERATION, "2"),
            (MARKED, "10-1"),
            (SINCE, "11-0"),
            ("list:42", "11-0"),
            ("list:a:b", "12-3"),
            ("list:43", LEFT),
        ];
        let members = Members::parse(&fields.map(field).into());
        let groups: Vec<String> = members.groups.keys().map(GroupId::to_string).collect();
        assert_eq!(groups, ["list:42", "list:a:b"]);
        let (marked, epoch) = (StreamId { ms: 10, seq: 1 }, EpochId(7));
        assert!(members.is_of(epoch, Some(2), marked));
        assert!(!members.is_of(epoch, Some(2), marked.next()));
        assert!(!members.is_of(epoch, Some(3), marked) && !members.is_of(EpochId(8), Some(2), marked));
        assert!(!Members::default().is_of(epoch, None, StreamId::ZERO));
    }
}
