//! Messages to groups: all members may read them and send to the group.
//!
//! A message has a number, its place in the group. Each member has a mark, the number up to which the member has read: a row of
//! `message_reads`, which all devices and pages of the member receive. To read a message changes nothing of it.
//!
//! Who is a member is read from the table of the memberships, by the statement that writes or reads messages
//! (`is_member()` in `migrations/tenant/0020_group_messages.up.sql`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::types::{Json, Type};
use uuid::Uuid;

use super::{Message, Messages};
use crate::config::group::Groups;
use crate::config::rule::user_names;
use crate::contract::group::GroupId;
use crate::core::page::{Page, Rows};
use crate::core::tenant::Tenant;
use crate::feature::viewer::Viewer;
use crate::feature::{self, Error};
use crate::postgres::sql;

pub(super) const NO_MEMBER: &str = "you are no member of this group";

/// The group to which a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOfMessage {
    /// The name of its kind in the configuration.
    pub name: String,
    pub id: String,
}

impl GroupOfMessage {
    /// The group, if the configuration has its kind and it can have this id.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn checked(self, groups: &Groups) -> Result<Self, Error> {
        let invalid = |message: String| Error::Invalid {
            field: "group",
            message,
        };
        if !groups.contains_key(&self.name) {
            let known: Vec<&str> = groups.keys().map(String::as_str).collect();
            return Err(invalid(match known.as_slice() {
                [] => "no groups are configured".to_owned(),
                known => format!("name must be one of {}", known.join(", ")),
            }));
        }
        GroupId::new(&self.name.as_str().into(), self.id.as_bytes()).map_err(|error| invalid(error.to_string()))?;
        Ok(self)
    }
}

/// Reads `<name>:<id>`.
impl FromStr for GroupOfMessage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, id) = text.split_once(':').ok_or_else(|| Error::Invalid {
            field: "group",
            message: "must be the name and the id of a group, such as list:42".to_owned(),
        })?;
        Ok(Self {
            name: name.to_owned(),
            id: id.to_owned(),
        })
    }
}

/// The unread messages of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadInGroup {
    pub group: GroupOfMessage,
    /// Those of others; at most 1,000 are counted.
    pub unread_count: i64,
}

impl Messages {
    /// What the functions in Postgres need to look for a user among the members of groups, by the name of their kind.
    pub(super) async fn lists(&self, tenant: &Tenant, user: Uuid) -> Result<Value, Error> {
        let (groups, providers) = (&self.0.config.groups, &self.0.config.auth.providers);
        if groups.is_empty() {
            return Ok(json!({}));
        }
        let names = groups
            .values()
            .map(|group| user_names(group.subjects.as_ref(), providers));
        let viewer = Viewer::of(self.database(), tenant, user, names).await?;
        Ok(viewer.lists(groups, providers))
    }

    /// The same of one kind of group; null for one that the configuration does not have.
    async fn list_for(&self, tenant: &Tenant, user: Uuid, group: &GroupOfMessage) -> Result<Json<Value>, Error> {
        Ok(Json(self.lists(tenant, user).await?[&group.name].take()))
    }

    /// Whether a user is a member of a group.
    pub(super) async fn is_member(&self, tenant: &Tenant, user: Uuid, group: &GroupOfMessage) -> Result<bool, Error> {
        let list = self.list_for(tenant, user, group).await?;
        let row = self
            .database()
            .query_often(
                &sql!("messages/group_member", tenant),
                &[
                    (&tenant.schema, Type::TEXT),
                    (&list, Type::JSONB),
                    (&group.id, Type::TEXT),
                ],
            )
            .await?
            .ok_or_else(|| Error::Internal("looking for a member returned no row".into()))?;
        Ok(row.try_get("is_member")?)
    }

    /// Creates a message of a web user to a group. The caller has checked the content and the group.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when the sender is no member, [`Error::Unauthorized`] when the sender is disabled or deleted.
    pub async fn create_in_group(
        &self,
        tenant: &Tenant,
        sender: Uuid,
        group: &GroupOfMessage,
        content: &str,
    ) -> Result<Message, Error> {
        let list = self.list_for(tenant, sender, group).await?;
        let row = self
            .database()
            .query_often(
                &sql!("messages/message_send_to_group", tenant),
                &[
                    (&sender, Type::UUID),
                    (&tenant.schema, Type::TEXT),
                    (&list, Type::JSONB),
                    (&group.name, Type::TEXT),
                    (&group.id, Type::TEXT),
                    (&content, Type::TEXT),
                ],
            )
            .await?
            .ok_or_else(|| Error::Internal("inserting a message returned no row".into()))?;
        if !row.try_get::<_, bool>("sender_is_active")? {
            return Err(Error::Unauthorized("this user is disabled or deleted"));
        }
        if row.try_get::<_, Option<Uuid>>("id")?.is_some() {
            self.invalidate_counts(tenant, &[sender]);
            return Message::from_row(&row);
        }
        if row.try_get("is_unknown")? {
            let name = &group.name;
            return Err(Error::Internal(format!(
                "the memberships of groups {name:?} cannot be read: the role of Posduif needs SELECT on their table"
            )));
        }
        Err(Error::Forbidden(NO_MEMBER))
    }

    /// A page of the messages of a group, newest first by their number.
    pub(super) async fn list_of_group(
        &self,
        tenant: &Tenant,
        user: Uuid,
        group: &GroupOfMessage,
        page: &Page,
    ) -> Result<Rows<Message>, Error> {
        let list = self.list_for(tenant, user, group).await?;
        let rows = self
            .database()
            .query(
                &sql!("messages/message_list_of_group", tenant),
                &[
                    (&tenant.schema, Type::TEXT),
                    (&list, Type::JSONB),
                    (&group.name, Type::TEXT),
                    (&group.id, Type::TEXT),
                    (&page.rows_max(), Type::INT8),
                    (&page.offset(), Type::INT8),
                    (&feature::page_row_id(page)?, Type::UUID),
                    (&page.is_after(), Type::BOOL),
                    (&page.place().is_none(), Type::BOOL),
                ],
            )
            .await?;
        match rows.first() {
            Some(row) if row.try_get("is_member")? => {
                feature::read_page(&rows, page, page.is_after(), Message::from_row)
            }
            _ => Err(Error::Forbidden(NO_MEMBER)),
        }
    }

    /// The groups of a user that have messages which the user has not read; `None` if no groups are configured.
    pub async fn unread_in_groups(&self, tenant: &Tenant, user: Uuid) -> Result<Option<Vec<UnreadInGroup>>, Error> {
        if self.0.config.groups.is_empty() {
            return Ok(None);
        }
        let lists = Json(self.lists(tenant, user).await?);
        let rows = self
            .database()
            .query(
                &sql!("messages/unread_in_groups", tenant),
                &[(&user, Type::UUID), (&tenant.schema, Type::TEXT), (&lists, Type::JSONB)],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| {
            Ok(UnreadInGroup {
                group: GroupOfMessage {
                    name: row.try_get("group_name")?,
                    id: row.try_get("group_id")?,
                },
                unread_count: row.try_get("unread_count")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, Error>>().map(Some)
    }
}
