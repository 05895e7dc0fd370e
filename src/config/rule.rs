//! Routing rules: which table's changes are delivered to which users. Rules are data: built-in ones for messages, users and
//! encrypted state, and the operator's own from the configuration.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::group::Groups;
use super::placement::{self, Placement, TenantOf};
use super::provider::Provider;
use super::section::within;
use crate::core::event;
use crate::core::operation::Operation;
use crate::core::subject::UserNames;

/// The value of `to` for every user of the tenant.
pub const TENANT: &str = "tenant";

/// The value of `subjects` for columns that hold ids of users.
pub const NO_SUBJECTS: &str = "none";

/// Most columns in a list of a rule.
const COLUMNS_MAX: usize = 1600;

/// Events that no rule may send, since they say something about the reader.
const RESERVED_EVENTS: [&str; 2] = [event::GROUP_JOINED, event::GROUP_LEFT];

/// The table of encrypted state.
pub const ENCRYPTED_STATES: &str = "encrypted_states";

/// The table of messages.
pub const MESSAGES: &str = "messages";

/// The table of marks: up to where members have read their groups.
pub const MESSAGE_READS: &str = "message_reads";

/// Tables of a tenant's schema whose rules are built in.
const BUILT_IN: [&str; 7] = [
    MESSAGES,
    MESSAGE_READS,
    "users",
    "devices",
    ENCRYPTED_STATES,
    "message_conflicts",
    "outbox",
];

/// A rule's condition; all given parts must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// Only these operations; empty means all.
    pub op: Vec<Operation>,
    /// Only updates that change one of these columns; empty means all. Inserts, deletes and changes of the recipient
    /// pass.
    pub changed: Vec<String>,
    /// Only rows in which these columns have these values, as text.
    pub equals: BTreeMap<String, String>,
}

/// What devices may write in a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// The column with the id of the owner: devices of that user may change the row, and create it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Groups whose members may change and create rows: the name of the group, and the column with its id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by: BTreeMap<String, String>,
    /// Columns that devices may set.
    pub columns: Vec<String>,
    /// How an edit that is based on an older version is merged; it is a conflict if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
}

/// How concurrent edits of one row are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Merge {
    /// By column: an edit applies if its columns still have the values that the device read.
    Columns,
}

/// Who receives the rows of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Recipient {
    /// A column that holds a user's id, or [`TENANT`].
    Column(String),
    /// The members of a group, whose id a column holds: `{<group>: <column>}`.
    Group(BTreeMap<String, String>),
}

impl Recipient {
    /// The name of the group and the column with its id, if it is one.
    pub fn group(&self) -> Option<(&String, &String)> {
        match self {
            Self::Column(_) => None,
            Self::Group(group) => group.iter().next(),
        }
    }

    /// The column that names the recipient.
    pub fn column(&self) -> &str {
        match self {
            Self::Column(column) => column,
            Self::Group(group) => group.values().next().map_or("", String::as_str),
        }
    }
}

impl From<&str> for Recipient {
    fn from(column: &str) -> Self {
        Self::Column(column.to_owned())
    }
}

/// Routes the changes of one table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The table: in each tenant's schema, unless there is `schema`.
    pub table: String,
    /// The schema of a table that is not in each tenant's schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// The tenant of the rows of such a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantOf>,
    /// Whose subjects the columns with users hold: the issuer of a provider, or [`NO_SUBJECTS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subjects: Option<String>,
    /// Columns that hold user ids, groups with the column of their id, or `tenant` alone for every user of the tenant.
    pub to: Vec<Recipient>,
    /// The only columns that devices and pages receive, beside `id`; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Name of the live event; `change` unless given.
    #[serde(default = "default_event")]
    pub event: String,
    #[serde(default)]
    pub when: When,
    /// What devices may write; nothing if absent.
    #[serde(default)]
    pub upload: Option<Upload>,
}

fn default_event() -> String {
    "change".into()
}

/// Whether a text is a valid name of a live event: 1 to 64 of a-z, 0-9 and _.
pub fn is_event_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            table: String::new(),
            schema: None,
            tenant: None,
            subjects: None,
            to: Vec::new(),
            columns: Vec::new(),
            event: default_event(),
            when: When::default(),
            upload: None,
        }
    }
}

impl Rule {
    /// The built-in rule for encrypted state: all devices of the user.
    pub fn encrypted_states() -> Self {
        Self::built_in(ENCRYPTED_STATES, "user_id", event::STATE_CHANGED, &[])
    }

    /// The built-in rule for open conflicts: all devices of the author of the change.
    pub fn conflicts() -> Self {
        Self::built_in("message_conflicts", "user_id", event::CONFLICT, &[])
    }

    /// The built-in rule for marks: all devices of the member.
    pub fn message_reads() -> Self {
        Self::built_in(MESSAGE_READS, "user_id", event::GROUP_READ, &[])
    }

    /// The part of the built-in rule for messages that concerns groups of this kind: their members.
    pub fn messages_to(group: &str) -> Self {
        let mut rule = Self::built_in(MESSAGES, TENANT, event::NEW_MESSAGE, &[]);
        rule.to = vec![Recipient::Group([(group.to_owned(), "group_id".to_owned())].into())];
        rule.when.equals = [("group_name".to_owned(), group.to_owned())].into();
        rule
    }

    /// The built-in rules of tables that come under `changes`.
    pub fn of_changes(groups: &Groups) -> Vec<Self> {
        let mut rules = vec![Self::encrypted_states(), Self::conflicts()];
        if !groups.is_empty() {
            rules.push(Self::message_reads());
            rules.extend(groups.keys().map(|group| Self::messages_to(group)));
        }
        rules
    }

    /// Who sees the rows of the tables with built-in rules, beside the members of groups.
    pub fn all_built_in() -> [Self; 6] {
        [
            Self {
                to: ["sender_id", "recipient_id"].map(Recipient::from).into(),
                ..Self::built_in(MESSAGES, TENANT, "change", &[])
            },
            Self::built_in("users", TENANT, "change", &[]),
            Self::built_in("devices", "user_id", "change", &[]),
            Self::encrypted_states(),
            Self::conflicts(),
            Self::message_reads(),
        ]
    }

    /// A rule for a table of the tenant schema.
    pub(crate) fn built_in(table: &str, to: &str, event: &str, changed: &[&str]) -> Self {
        Self {
            table: table.into(),
            to: vec![to.into()],
            event: event.into(),
            when: When {
                changed: changed.iter().map(|column| (*column).to_owned()).collect(),
                ..When::default()
            },
            ..Self::default()
        }
    }

    /// Where its rows are.
    pub fn placement(&self) -> Placement<'_> {
        Placement::of(&self.table, self.schema.as_ref(), self.tenant.as_ref())
    }

    /// Whether devices and pages receive a column.
    pub fn delivers(&self, column: &str) -> bool {
        self.columns.is_empty() || column == "id" || self.columns.iter().any(|listed| listed == column)
    }

    /// Whether every user of the tenant receives its rows.
    pub fn is_for_tenant(&self) -> bool {
        matches!(&self.to[..], [Recipient::Column(word)] if word == TENANT)
    }

    /// Whether a table of a tenant's schema is Posduif's.
    pub fn has_built_in(table: &str) -> bool {
        BUILT_IN.contains(&table)
    }

    /// The column of a table that marks a row as deleted when it is set.
    pub fn gone_column(table: &str) -> &'static str {
        match table {
            // A resolved conflict needs no further attention.
            "message_conflicts" => "resolved_at",
            _ => "deleted_at",
        }
    }

    /// Checks the rule by itself; the error says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.table.is_empty() || self.table.len() > 63 {
            return Err(format!("table is {:?}: allowed is a name of 1 to 63 bytes", self.table));
        }
        if Self::has_built_in(&self.table) {
            return Err(format!(
                "table {:?} has a built-in rule; own rules are for own tables",
                self.table
            ));
        }
        placement::check(self.schema.as_ref(), self.tenant.as_ref())?;
        let is_tenant = |to: &Recipient| matches!(to, Recipient::Column(word) if word == TENANT);
        let is_malformed = |to: &Recipient| matches!(to, Recipient::Group(group) if group.len() != 1);
        if self.to.is_empty()
            || (self.to.len() > 1 && self.to.iter().any(is_tenant))
            || self.to.iter().any(is_malformed)
        {
            return Err(
                "`to` must be columns that hold user ids, groups such as {list: list_id}, or [tenant] alone".into(),
            );
        }
        if RESERVED_EVENTS.contains(&self.event.as_str()) {
            return Err(format!("event {:?} is Posduif's: choose another name", self.event));
        }
        if !is_event_name(&self.event) {
            return Err(format!(
                "event is {:?}: allowed are 1 to 64 of a-z, 0-9 and _",
                self.event
            ));
        }
        if self.columns.len() > COLUMNS_MAX {
            return Err(format!("columns has more than {COLUMNS_MAX} names"));
        }
        if let Some(column) = self
            .columns
            .iter()
            .find(|column| column.is_empty() || column.len() > 63)
        {
            return Err(format!("columns names {column:?}: allowed is a name of 1 to 63 bytes"));
        }
        if let Some(upload) = &self.upload {
            if let Some(column) = upload.columns.iter().find(|column| !self.delivers(column)) {
                return Err(format!(
                    "upload.columns names {column:?}, which `columns` does not: devices would write what they cannot read"
                ));
            }
            if upload.columns.is_empty() {
                return Err("upload.columns must name the columns that devices may set".into());
            }
            if upload.owner.is_none() && upload.by.is_empty() {
                return Err("upload must say who may write: `owner`, a column, or `by`, groups with columns".into());
            }
            let set = upload
                .owner
                .as_deref()
                .into_iter()
                .chain(self.placement().tenant_column());
            for reserved in set.chain(["id", "deleted_at"]) {
                if upload.columns.iter().any(|column| column == reserved) {
                    return Err(format!(
                        "upload.columns names {reserved:?}, which the engine sets: omit it"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// How the columns of a rule or a group name users. With one provider, values that are no UUID are its subjects unless the
/// key `subjects` says otherwise.
pub fn user_names(subjects: Option<&String>, providers: &[Provider]) -> UserNames {
    match (subjects.map(String::as_str), providers) {
        (None, [only]) => UserNames::Both(only.subject_prefix.clone()),
        (None | Some(NO_SUBJECTS), _) => UserNames::Ids,
        (Some(issuer), providers) => providers
            .iter()
            .find(|provider| provider.issuer == issuer)
            .map_or(UserNames::Ids, |provider| {
                UserNames::Subjects(provider.subject_prefix.clone())
            }),
    }
}

/// Checks that the provider of each rule and group is known.
pub(super) fn check_subjects(rules: &[Rule], groups: &Groups, providers: &[Provider]) -> Result<()> {
    let of_rules = rules.iter().enumerate();
    let of_rules = of_rules.map(|(index, rule)| (format!("routes[{index}]"), &rule.subjects));
    let of_groups = groups
        .iter()
        .map(|(name, group)| (format!("groups.{name}"), &group.subjects));
    for (key, subjects) in of_rules.chain(of_groups) {
        let Some(subjects) = subjects.as_deref().filter(|subjects| *subjects != NO_SUBJECTS) else {
            continue;
        };
        if !providers.iter().any(|provider| provider.issuer == subjects) {
            bail!(
                "key `{key}.subjects` is {subjects:?}: allowed are the issuer of one of `auth.providers`, and `{NO_SUBJECTS}`"
            );
        }
    }
    Ok(())
}

/// Checks all rules, that no table has two uploads, and that a name is one table's.
pub(super) fn check_all(rules: &[Rule], groups: &Groups) -> Result<()> {
    within("routes (their number)", rules.len() as u64, &(0..=200))?;
    for (index, rule) in rules.iter().enumerate() {
        rule.check().map_err(|why| anyhow!("key `routes[{index}]`: {why}"))?;
        let has_upload = |other: &Rule| other.table == rule.table && other.upload.is_some();
        if rule.upload.is_some() && rules[..index].iter().any(has_upload) {
            bail!(
                "key `routes[{index}].upload`: the table {:?} has one in another rule",
                rule.table
            );
        }
        let set = |rule: &Rule| rule.columns.iter().cloned().collect::<BTreeSet<String>>();
        if rules[..index]
            .iter()
            .any(|other| other.table == rule.table && set(other) != set(rule))
        {
            bail!(
                "key `routes[{index}].columns`: another rule has other columns of the table {:?}; all its rules need the same list",
                rule.table
            );
        }
        let others = rules[..index].iter().map(Rule::placement);
        let mut others = others.chain(groups.values().map(|group| group.placement()));
        if others.any(|other| other.table == rule.table && other.outside != rule.placement().outside) {
            bail!(
                "key `routes[{index}]`: another rule or group names the table {:?} with another `schema` or `tenant`; clients \
                 know a table by its name",
                rule.table
            );
        }
    }
    Ok(())
}
