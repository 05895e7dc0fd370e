//! The tables in the stream: Relation and Type messages, kept for the rows that follow.

use std::collections::HashMap;
use std::sync::Arc;

use super::pgoutput::{self, ReplicaIdentity};
use super::value::Kind;

/// A table as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    pub schema: Arc<str>,
    pub table: Arc<str>,
    pub replica_identity: ReplicaIdentity,
    /// Columns in the order of tuples.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// Part of the replica identity.
    pub is_key: bool,
    /// How its values are converted to JSON.
    pub kind: Kind,
    /// `"name":`, ready for a JSON object.
    pub json_key: Vec<u8>,
}

impl Relation {
    /// The index of a column by name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// Types that are not built in, by OID; a Type message precedes the relation that uses it.
#[derive(Debug, Default)]
pub struct Types {
    kinds: HashMap<u32, Kind>,
}

impl Types {
    /// Stores a Type message. A domain has the name of its base type, and no schema when that is built in.
    pub fn insert(&mut self, oid: u32, namespace: &str, name: &str) {
        let kind = match Kind::of_built_in(name) {
            Some(kind) if namespace.is_empty() => kind,
            // Postgres names the array type of `mood` `_mood`; its elements are texts.
            _ if name.starts_with('_') => Kind::TextArray,
            _ => Kind::Text,
        };
        self.kinds.insert(oid, kind);
    }

    /// Builds the relation that a Relation message describes.
    pub fn relation(&self, message: &pgoutput::Relation<'_>) -> Relation {
        let columns = message
            .columns
            .iter()
            .map(|column| {
                let mut json_key = Vec::with_capacity(column.name.len() + 3);
                super::value::write_string(column.name, &mut json_key);
                json_key.push(b':');
                Column {
                    name: column.name.to_owned(),
                    is_key: column.is_key,
                    kind: self.kind(column.type_oid),
                    json_key,
                }
            })
            .collect();
        Relation {
            oid: message.oid,
            schema: if message.namespace.is_empty() {
                "pg_catalog"
            } else {
                message.namespace
            }
            .into(),
            table: message.name.into(),
            replica_identity: message.replica_identity,
            columns,
        }
    }

    pub fn kind(&self, oid: u32) -> Kind {
        self.kinds.get(&oid).copied().unwrap_or_else(|| Kind::of_type(oid))
    }
}
