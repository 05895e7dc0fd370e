//! A user as the columns of rules and groups name the user, and what a tenant's functions in Postgres need to look for the user
//! among the members of groups.

use postgres_types::Type;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::config::Provider;
use crate::config::group::{Group, Groups};
use crate::config::placement::{Placement, Share};
use crate::config::rule::user_names;
use crate::core::subject::UserNames;
use crate::core::tenant::Tenant;
use crate::feature;
use crate::postgres::{Database, sql};

/// A user as the columns of rules and groups name the user.
#[derive(Debug)]
pub struct Viewer<'a> {
    pub tenant: &'a Tenant,
    pub user: Uuid,
    /// With the prefix of its provider.
    subject: Option<String>,
}

impl<'a> Viewer<'a> {
    /// Reads the subject of a user if columns that name users in one of these ways may hold it.
    pub async fn of(
        database: &Database,
        tenant: &'a Tenant,
        user: Uuid,
        mut names: impl Iterator<Item = UserNames>,
    ) -> Result<Self, feature::Error> {
        let mut subject = None;
        if names.any(|names| names != UserNames::Ids) {
            let row = database
                .query_opt(
                    &sql!("sync/user_subject"),
                    &[(&tenant.name, Type::TEXT), (&user, Type::UUID)],
                )
                .await?;
            subject = row.map(|row| row.try_get("subject")).transpose()?;
        }
        Ok(Self { tenant, user, subject })
    }

    /// A user whom columns name by id.
    #[cfg(test)]
    pub(crate) fn with_id(tenant: &'a Tenant, user: Uuid) -> Self {
        Self {
            tenant,
            user,
            subject: None,
        }
    }

    /// The values of a column that name the user, preferred ones first.
    pub fn values(&self, names: &UserNames) -> Vec<String> {
        names.values(self.user, self.subject.as_deref())
    }

    /// Where the rows of the user's tenant are, as functions in Postgres take it: nothing for a table of the tenant's schema,
    /// `None` if the table has none of the tenant.
    pub fn placed(&self, placement: Placement<'_>) -> Option<Map<String, Value>> {
        let share = placement.share_of(&self.tenant.name)?;
        let mut entry = Map::new();
        if placement.outside.is_some() {
            entry.insert("schema".into(), placement.schema(self.tenant).into());
        }
        if let Share::Part { column, value } = share {
            entry.insert("tenant".into(), json!({"column": column, "value": value}));
        }
        Some(entry)
    }

    /// The memberships of a kind of group and the values that name the user there, as functions in Postgres take them; `None`
    /// if its table has no rows of the tenant.
    pub fn list(&self, group: &Group, providers: &[Provider]) -> Option<Map<String, Value>> {
        let mut list = self.placed(group.placement())?;
        let authors = self.values(&user_names(group.subjects.as_ref(), providers));
        for (name, value) in [("members", &group.table), ("id", &group.id), ("user", &group.user)] {
            list.insert(name.into(), value.as_str().into());
        }
        list.insert("authors".into(), authors.into());
        Some(list)
    }

    /// The [`Viewer::list`] of each kind of group by its name.
    pub fn lists(&self, groups: &Groups, providers: &[Provider]) -> Value {
        let lists = groups
            .iter()
            .filter_map(|(name, group)| Some((name.clone(), self.list(group, providers)?.into())));
        Value::Object(lists.collect())
    }
}
