//! A rule says which table feeds whom. Rules are data: built-in ones for messages, users and encrypted state, the
//! operator's own from the configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The word in `to` that means every user of the tenant.
pub const TENANT: &str = "tenant";

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
        Self {
            table: "encrypted_states".into(),
            to: vec!["user_id".into()],
            event: "state_changed".into(),
            when: When::default(),
        }
    }

    /// Checks the rule's own form.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        const BUILT_IN: [&str; 3] = ["messages", "users", "encrypted_states"];
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
        Ok(())
    }
}
