//! The hash `meta` of a tenant: its generation, its state, and up to which ID each of its streams was trimmed.

use uuid::Uuid;

use super::group::GroupId;
use super::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::PAUSED;

/// Counts how often the tenant's streams were created; cursors contain it.
pub const GENERATION: &str = "generation";

/// `active` or `paused`.
pub const STATE: &str = "state";

/// The stream ID of the last reset behind which memberships in groups must be read again; at first that of the tenant's
/// creation, missing in a new epoch.
pub const GROUPS_RESET: &str = "groups";

/// The transaction of that reset.
pub const GROUPS_RESET_XID: &str = "groups_xid";

/// The trim point of the shared stream.
const TRIM_SHARED: &str = "trim:shared";

/// A reset of which the place is unknown.
const UNKNOWN: StreamId = StreamId {
    ms: u64::MAX,
    seq: u64::MAX,
};

/// Names of its fields.
pub const FIELDS: [&str; 5] = [GENERATION, STATE, GROUPS_RESET, GROUPS_RESET_XID, "trim:<stream>"];

/// The field with the trim point of a stream: the first ID that was kept.
pub fn trim_field(target: &Target) -> String {
    format!("trim:{}", target.stream())
}

/// The fields that a read of one user's streams needs, in the order that [`Meta::parse`] expects.
pub fn fields_of_reader<'g>(user: Uuid, groups: impl Iterator<Item = &'g GroupId>) -> Vec<String> {
    let common = [GENERATION, STATE, GROUPS_RESET, TRIM_SHARED].map(str::to_owned);
    let inbox = format!("trim:inbox:{user}");
    let groups = groups.map(|group| format!("trim:group:{group}"));
    common.into_iter().chain([inbox]).chain(groups).collect()
}

/// What a reader of one user's streams reads of the hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// `None` when the hash is missing or malformed.
    pub generation: Option<i64>,
    pub is_paused: bool,
    /// The last reset of all readers.
    pub groups_reset: StreamId,
    /// Trim points of the streams, as far as these were trimmed.
    trim_points: Vec<String>,
}

impl Meta {
    /// Reads the values of [`fields_of_reader`]; missing ones at the end are empty.
    pub fn parse(values: Vec<Option<String>>) -> Self {
        let mut values = values.into_iter();
        let mut next = || values.next().flatten();
        Self {
            generation: next().and_then(|text| text.parse().ok()),
            is_paused: next().is_some_and(|state| state == PAUSED),
            // What is malformed must be read again.
            groups_reset: next().map_or(StreamId::ZERO, |text| text.parse().unwrap_or(UNKNOWN)),
            trim_points: values.flatten().collect(),
        }
    }

    /// Behind which position nothing was trimmed.
    pub fn kept_behind(&self) -> StreamId {
        let first_kept = self.trim_points.iter().filter_map(|text| text.parse().ok());
        first_kept.map(StreamId::previous).max().unwrap_or(StreamId::ZERO)
    }

    /// Whether entries that follow a position were trimmed. A trim point that is malformed counts as such.
    pub fn is_trimmed_after(&self, position: StreamId) -> bool {
        self.trim_points.iter().any(|text| {
            text.parse::<StreamId>()
                .map_or(true, |first_kept| position.next() < first_kept)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn meta_reads_generation_state_and_trim_points(generation in any::<i64>(), paused in any::<bool>(), ms in 1..u64::MAX) {
            let trim_point = StreamId { ms, seq: 0 };
            let values = vec![
                Some(generation.to_string()),
                Some(crate::core::tenant::state_name(paused).to_owned()),
                None,
                None,
                Some(trim_point.to_string()),
            ];
            let meta = Meta::parse(values);
            prop_assert_eq!((meta.generation, meta.is_paused), (Some(generation), paused));
            prop_assert_eq!(meta.kept_behind(), trim_point.previous());
            prop_assert!(!meta.is_trimmed_after(trim_point.previous()));
            prop_assert!(meta.is_trimmed_after(trim_point.previous().previous()));
        }
    }

    #[test]
    fn trim_fields_of_a_reader_are_those_of_its_streams() {
        let (tenant, user) = (std::sync::Arc::<str>::from("acme"), Uuid::from_u128(7));
        let group: GroupId = "list:42".parse().unwrap();
        let fields = fields_of_reader(user, std::iter::once(&group));
        assert_eq!(fields[3], trim_field(&Target::Shared(tenant.clone())));
        assert_eq!(fields[4], trim_field(&Target::Inbox(tenant.clone(), user)));
        assert_eq!(fields[5], trim_field(&Target::Group(tenant, group)));
    }

    #[test]
    fn malformed_trim_point_counts_as_trimmed() {
        let meta = Meta::parse(vec![None, None, None, Some("x".into())]);
        assert!(meta.is_trimmed_after(StreamId::ZERO));
    }
}
