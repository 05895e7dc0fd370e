//! A rule says which table feeds whom. Rules are data: built-in ones for messages, users and encrypted state, the
//! operator's own from the configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The word in `to` that means every user of the tenant.
pub const TENANT: &str = "tenant";

/// The table of encrypted state.
pub const ENCRYPTED_STATES: &str = "encrypted_states";

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A removed row.
    Delete,
}

/// A rule's condition; all parts that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// Only these operations; empty means all.
    pub op: Vec<Operation>,
    /// Only updates that change one of these columns; empty means all. Inserts, deletes and changes of the recipient
    /// pass.
    pub changed: Vec<String>,
    /// Only rows in which these columns have these texts.
    pub equals: BTreeMap<String, String>,
}

/// What devices may write in a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// The column with the id of the user whose row it is: only that user's devices change it.
    pub owner: String,
    /// Columns that they may set.
    pub columns: Vec<String>,
}

/// Which table feeds whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Table name within each tenant's schema.
    pub table: String,
    /// Columns that hold user ids, or the single word `tenant` for every user of the tenant.
    pub to: Vec<String>,
    /// Name of the live event; `change` unless given.
    #[serde(default = "default_event")]
    pub event: String,
    /// Condition.
    #[serde(default)]
    pub when: When,
    /// What devices may write; nothing unless given.
    #[serde(default)]
    pub upload: Option<Upload>,
}

fn default_event() -> String {
    "change".into()
}

/// Whether a text can name a live event: 1 to 64 of a-z, 0-9 and _.
pub fn is_event_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

impl Rule {
    /// The built-in rule for encrypted state: all devices of the user.
    pub fn encrypted_states() -> Self {
        Self::built_in(ENCRYPTED_STATES, "user_id", "state_changed", &[])
    }

    /// The built-in rule for open conflicts: all devices of the user who made the change.
    pub fn conflicts() -> Self {
        Self::built_in("message_conflicts", "user_id", "conflict", &[])
    }

    /// A rule for one of the tables that every tenant has.
    pub(super) fn built_in(table: &str, to: &str, event: &str, changed: &[&str]) -> Self {
        Self {
            table: table.into(),
            to: vec![to.into()],
            event: event.into(),
            when: When {
                changed: changed.iter().map(|column| (*column).to_owned()).collect(),
                ..When::default()
            },
            upload: None,
        }
    }

    /// The column of a table that says, when set, that the row is as good as gone.
    pub fn gone_column(table: &str) -> &'static str {
        match table {
            // What is decided no longer concerns anybody.
            "message_conflicts" => "resolved_at",
            _ => "deleted_at",
        }
    }

    /// The columns of a table, in the order of rows, whose values live events deliver beside the row's id.
    pub fn live_columns(table: &str) -> &'static [&'static str] {
        match table {
            ENCRYPTED_STATES => &["key", "version", "device_id"],
            _ => &[],
        }
    }

    /// Checks the rule's own form.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        const BUILT_IN: [&str; 5] = ["messages", "users", "devices", ENCRYPTED_STATES, "message_conflicts"];
        if self.table.is_empty() || self.table.len() > 63 {
            return Err(format!(
                "table is {:?}: a table name of 1 to 63 bytes is needed",
                self.table
            ));
        }
        if BUILT_IN.contains(&self.table.as_str()) {
            return Err(format!(
                "table {:?} has a built-in rule; own rules are for own tables",
                self.table
            ));
        }
        if self.to.is_empty() || (self.to.len() > 1 && self.to.iter().any(|column| column == TENANT)) {
            return Err("`to` must be columns that hold user ids, or [tenant] alone".into());
        }
        if !is_event_name(&self.event) {
            return Err(format!(
                "event is {:?}: allowed are 1 to 64 of a-z, 0-9 and _",
                self.event
            ));
        }
        if let Some(upload) = &self.upload {
            if upload.columns.is_empty() {
                return Err("upload.columns must name the columns that devices may set".into());
            }
            for reserved in [upload.owner.as_str(), "id", "deleted_at"] {
                if upload.columns.iter().any(|column| column == reserved) {
                    return Err(format!(
                        "upload.columns names {reserved:?}, which is set by the engine: leave it out"
                    ));
                }
            }
        }
        Ok(())
    }
}
