//! Tables that list the members of a group.

use std::sync::Arc;

use uuid::Uuid;

use super::router::{Delivery, RouteError};
use super::row::{ColumnValue, Row, named_user};
use crate::config::group::Group;
use crate::config::rule::Rule;
use crate::contract::group::{GroupId, Membership};
use crate::contract::stream_name::Audience;
use crate::core::operation::Operation;
use crate::core::subject::UserNames;
use crate::decode::relation::Relation;

/// The columns of the table that say who is a member of what.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    group: Arc<str>,
    id: (usize, String),
    user: (usize, String),
    names: UserNames,
    /// A value in this column ends the membership, as if the row were deleted.
    gone: Option<usize>,
}

impl Columns {
    /// The columns of a group's table. An error names the one that is missing.
    pub(super) fn compile(name: &str, group: &Group, names: &UserNames, relation: &Relation) -> Result<Self, String> {
        let find = |column: &String| {
            let missing = || {
                format!(
                    "the group {name} names column {column} of {}, which does not exist",
                    group.table
                )
            };
            relation
                .column(column)
                .map(|index| (index, column.clone()))
                .ok_or_else(missing)
        };
        Ok(Self {
            group: name.into(),
            id: find(&group.id)?,
            user: find(&group.user)?,
            names: names.clone(),
            gone: relation.column(Rule::gone_column(&group.table)),
        })
    }

    /// Tells a user who joins or leaves: beside the row, where the user receives that, too.
    ///
    /// # Errors
    /// When the new row names no user or group that could be one; a membership that ends is delivered nevertheless.
    pub(super) fn route(&self, tenant: &str, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), RouteError> {
        let before = match row.has_before() {
            false => None,
            // What is malformed was reported when it was written.
            true => self.member(tenant, |column| row.before(column)).unwrap_or_default(),
        };
        let after = match row.has_after() {
            false => Ok(None),
            true => self.member(tenant, |column| row.after(column)),
        };
        let (after, result) = match after {
            Ok(after) => (after, Ok(())),
            Err(error) => (None, Err(error)),
        };
        if before != after {
            if let Some((user, group)) = before {
                tell(user, Membership::Leave(group), out);
            }
            if let Some((user, group)) = after {
                tell(user, Membership::Join(group), out);
            }
        }
        result
    }

    fn member<'a>(
        &self,
        tenant: &str,
        value: impl Fn(usize) -> ColumnValue<'a>,
    ) -> Result<Option<(Uuid, GroupId)>, RouteError> {
        if self.gone.is_some_and(|column| value(column).is_set()) {
            return Ok(None);
        }
        let ((id, id_name), (user, user_name)) = (&self.id, &self.user);
        let user = named_user(&self.names, tenant, value(*user)).map_err(|cause| RouteError::Recipient {
            column: user_name.clone(),
            cause,
        })?;
        let group = match value(*id) {
            ColumnValue::Text(id) => Some(GroupId::new(&self.group, id).map_err(|cause| RouteError::Group {
                column: id_name.clone(),
                cause,
            })?),
            ColumnValue::Null | ColumnValue::Unknown => None,
        };
        Ok(user.zip(group))
    }
}

/// Adds a membership to what the user receives of the change, before all else.
fn tell(user: Uuid, membership: Membership, out: &mut Vec<Delivery<'_>>) {
    let event = membership.event();
    let audience = Audience::User(user);
    let known = out
        .iter()
        .position(|delivery| delivery.stored && delivery.audience == audience);
    let mut delivery = match known {
        Some(at) => out.remove(at),
        None => Delivery::stored(audience, Operation::Member, event),
    };
    delivery.event = event;
    delivery.memberships.push(membership);
    out.insert(0, delivery);
}
