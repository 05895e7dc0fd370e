//! Groups: rows that are shared by membership. A table lists the members; its rows are read from the log like all others.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::placement::{self, Placement, TenantOf};
use super::rule::{Recipient, Rule, TENANT};
use super::section::within;

/// The word for a user among audiences, which no group can have as its name.
pub const USER: &str = "user";

/// The groups by name.
pub type Groups = BTreeMap<String, Group>;

/// A kind of group: one row of its table is one membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The table with the memberships: in each tenant's schema, unless there is `schema`.
    pub table: String,
    /// The schema of a table that is not in each tenant's schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// The tenant of the rows of such a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantOf>,
    /// Whose subjects the column with members holds: the issuer of a provider, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subjects: Option<String>,
    /// Its column with the id of the group.
    pub id: String,
    /// Its column with the id of the member, a user.
    pub user: String,
}

impl Group {
    /// Where its rows are.
    pub fn placement(&self) -> Placement<'_> {
        Placement::of(&self.table, self.schema.as_ref(), self.tenant.as_ref())
    }

    /// Checks the group by itself; the error says what is wrong with it.
    fn check(&self, name: &str) -> Result<(), String> {
        let is_letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if !(1..=32).contains(&name.len()) || !name.bytes().all(is_letter) {
            return Err("its name must be 1 to 32 of a-z, 0-9 and _".into());
        }
        if [USER, TENANT].contains(&name) {
            return Err(format!("{name:?} is the name of another audience: choose another name"));
        }
        for (key, value) in [("table", &self.table), ("id", &self.id), ("user", &self.user)] {
            if value.is_empty() || value.len() > 63 {
                return Err(format!("{key} is {value:?}: allowed is a name of 1 to 63 bytes"));
            }
        }
        if Rule::has_built_in(&self.table) {
            return Err(format!("table {:?} is Posduif's: name one of your own", self.table));
        }
        placement::check(self.schema.as_ref(), self.tenant.as_ref())?;
        if self.id == self.user {
            return Err("id and user must be two columns".into());
        }
        Ok(())
    }
}

/// Checks all groups, and that each group that a rule names exists.
pub(super) fn check_all(groups: &Groups, rules: &[Rule]) -> Result<()> {
    within("groups (their number)", groups.len() as u64, &(0..=20))?;
    for (name, group) in groups {
        group.check(name).map_err(|why| anyhow!("key `groups.{name}`: {why}"))?;
        let shares = |(other, of_other): &(&String, &Group)| *other != name && of_other.table == group.table;
        if let Some((other, _)) = groups.iter().find(shares) {
            bail!(
                "key `groups.{name}.table`: {:?} is the table of group {other:?}, too; each needs its own",
                group.table
            );
        }
    }
    for (index, rule) in rules.iter().enumerate() {
        let of_uploads = rule.upload.iter().flat_map(|upload| upload.by.keys());
        let of_recipients = rule.to.iter().filter_map(Recipient::group).map(|(group, _)| group);
        if let Some(unknown) = of_recipients.chain(of_uploads).find(|name| !groups.contains_key(*name)) {
            bail!("key `routes[{index}]`: the group {unknown:?} is not in `groups`");
        }
    }
    Ok(())
}
