//! A tenant's quarantine: changes that could not be routed or stored, each with its cause.

use std::collections::BTreeMap;
use std::fmt;

use redis::streams::StreamRangeReply;
use serde::Serialize;
use serde_json::{Value, json};

use crate::admin::streams::{rfc3339, time_of_micros};
use crate::contract::quarantine::{QuarantineEntry, QuarantineKind};
use crate::core::position::StreamId;
use crate::postgres::Database;
use crate::postgres::audit::{self, Act, Actor};
use crate::redis::store::{Error, Store};

/// Changes read at once; each may hold a large row twice.
const PAGE: usize = 100;

/// What resolves a quarantined change, once its cause is fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Writing the row once more: no device holds a version of it that it should not.
    Row {
        /// The table.
        table: String,
        /// The row's id.
        id: String,
    },
    /// Recreating the tenant's streams, for this reason.
    Resync(&'static str),
    /// Its sender must send it again.
    Sender,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row { .. } => f.write_str("`retry`, which touches the row, after its cause is fixed"),
            Self::Resync(reason) => write!(f, "`retry --resync` only: {reason}"),
            Self::Sender => f.write_str("the sender of the message: send a corrected message, and drop this one"),
        }
    }
}

/// A quarantined change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub tenant: String,
    pub id: String,
    pub time: Option<String>,
    pub position: Option<String>,
    pub table: Option<String>,
    pub kind: Option<&'static str>,
    pub cause: String,
    pub settled_by: &'static str,
    #[serde(skip)]
    pub entry: QuarantineEntry,
}

impl Report {
    pub fn of(tenant: &str, entry: QuarantineEntry) -> Self {
        Self {
            tenant: tenant.to_owned(),
            id: entry.id.to_string(),
            time: time(&entry).map(rfc3339),
            position: entry.position.map(|position| position.to_string()),
            table: entry.table().filter(|table| !table.is_empty()).map(str::to_owned),
            kind: entry.kind.map(QuarantineKind::as_str),
            cause: entry.cause.clone(),
            settled_by: match remedy(&entry) {
                Remedy::Row { .. } => "retry",
                Remedy::Resync(_) => "resync",
                Remedy::Sender => "sender",
            },
            entry,
        }
    }
}

/// When a change was quarantined.
pub fn time(entry: &QuarantineEntry) -> Option<chrono::DateTime<chrono::Utc>> {
    let ms = i64::try_from(entry.id.ms).ok()?;
    time_of_micros(ms.checked_mul(1000)?)
}

/// What resolves an entry.
pub fn remedy(entry: &QuarantineEntry) -> Remedy {
    match entry.kind {
        Some(QuarantineKind::Message) => return Remedy::Sender,
        Some(QuarantineKind::Stream) => return Remedy::Resync("a stream lacks entries from then on"),
        Some(QuarantineKind::Table) => {
            return Remedy::Resync("rows may have changed since the engine reset the streams");
        }
        None if entry.position.is_none() => return Remedy::Resync("a stream lacks entries from then on"),
        _ => {}
    }
    let old = entry.old();
    if entry.kind.is_none() && entry.row().is_none() && old.is_none() && entry.content().is_some() {
        return Remedy::Sender;
    }
    // Recipients that lost a row by an invalid new recipient received the delete.
    if old.is_some() && entry.kind != Some(QuarantineKind::Recipient) {
        return Remedy::Resync("devices may hold the row as it was before");
    }
    match row(entry) {
        Some((table, id)) => Remedy::Row { table, id },
        None => Remedy::Resync("the entry does not identify the row"),
    }
}

/// The table and the id of the row that an entry is about, as far as it contains them.
pub fn row(entry: &QuarantineEntry) -> Option<(String, String)> {
    let row: Value = serde_json::from_str(entry.row()?).ok()?;
    let id = match &row["id"] {
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => return None,
    };
    Some((entry.table()?.to_owned(), id))
}

/// How many changes are in a tenant's quarantine.
pub async fn count(store: &Store, tenant: &str) -> Result<u64, Error> {
    query(store, tenant, "XLEN", &[]).await
}

/// The newest changes of a tenant's quarantine, newest first.
pub async fn newest(store: &Store, tenant: &str, most: usize) -> Result<Vec<QuarantineEntry>, Error> {
    read(store, "XREVRANGE", tenant, ["+", "-"], most).await
}

/// One change of a tenant's quarantine.
pub async fn one(store: &Store, tenant: &str, id: StreamId) -> Result<Option<QuarantineEntry>, Error> {
    let id = id.to_string();
    Ok(read(store, "XRANGE", tenant, [&id, &id], 1).await?.into_iter().next())
}

/// Visits a tenant's quarantine behind an ID, oldest first.
pub async fn each(
    store: &Store,
    tenant: &str,
    mut after: StreamId,
    mut visit: impl FnMut(QuarantineEntry),
) -> Result<(), Error> {
    loop {
        let page = read(store, "XRANGE", tenant, [&after.next().to_string(), "+"], PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.id;
        page.into_iter().for_each(&mut visit);
    }
}

/// Sends a command about a tenant's quarantine.
async fn query<T: redis::FromRedisValue>(
    store: &Store,
    tenant: &str,
    command: &str,
    arguments: &[&str],
) -> Result<T, Error> {
    let (mut pipe, key) = (redis::pipe(), store.keys().quarantine(tenant));
    pipe.cmd(command).arg(&key).arg(arguments);
    let (answer,) = store.query_key(&pipe, Some(tenant), &key).await?;
    Ok(answer)
}

async fn read(
    store: &Store,
    command: &str,
    tenant: &str,
    range: [&str; 2],
    most: usize,
) -> Result<Vec<QuarantineEntry>, Error> {
    let most = most.to_string();
    let reply: StreamRangeReply = query(store, tenant, command, &[range[0], range[1], "COUNT", &most]).await?;
    let entries = reply.ids.into_iter().filter_map(|raw| {
        let fields: BTreeMap<String, String> = raw
            .map
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), redis::from_redis_value_ref(value).ok()?)))
            .collect();
        Some(QuarantineEntry::parse(raw.id.parse().ok()?, fields))
    });
    Ok(entries.collect())
}

/// Removes these changes; returns how many there were.
pub async fn forget(store: &Store, tenant: &str, ids: &[StreamId]) -> Result<u64, Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let ids: Vec<String> = ids.iter().map(StreamId::to_string).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    query(store, tenant, "XDEL", &ids).await
}

/// Records who retried or dropped so many changes.
pub async fn record(database: &Database, tenant: &str, action: &'static str, changes: u64, by: &Actor) {
    let act = Act {
        tenant: Some(tenant),
        actor: by,
        action,
        subject: None,
        detail: json!({"changes": changes}),
    };
    audit::record(database, act).await;
}

/// Removes all changes up to this one; those that arrive meanwhile stay. Returns how many there were.
pub async fn forget_up_to(store: &Store, tenant: &str, last: StreamId) -> Result<u64, Error> {
    query(store, tenant, "XTRIM", &["MINID", &last.next().to_string()]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Option<QuarantineKind>, fields: &[(&str, &str)]) -> QuarantineEntry {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        QuarantineEntry {
            id: StreamId { ms: 1, seq: 0 },
            position: (kind != Some(QuarantineKind::Stream)).then_some(StreamId { ms: 7, seq: 1 }),
            kind,
            cause: String::new(),
            fields: fields.iter().map(own).chain([own(&("table", "orders"))]).collect(),
        }
    }

    #[test]
    fn row_resolves_itself_unless_a_device_may_hold_an_older_one() {
        let row = |id: &str| Remedy::Row {
            table: "orders".into(),
            id: id.into(),
        };
        let (new, old) = (("row", r#"{"id":7}"#), ("old", r#"{"id":7}"#));
        for kind in [QuarantineKind::Rule, QuarantineKind::Row, QuarantineKind::Recipient] {
            assert_eq!(remedy(&entry(Some(kind), &[new])), row("7"), "{kind:?}");
        }
        assert_eq!(remedy(&entry(None, &[("row", r#"{"id":"a"}"#)])), row("a"));
        assert_eq!(remedy(&entry(Some(QuarantineKind::Recipient), &[new, old])), row("7"));
        for (kind, fields) in [
            (Some(QuarantineKind::Rule), &[new, old][..]),
            (None, &[new, old]),
            (Some(QuarantineKind::Rule), &[old]),
            (Some(QuarantineKind::Row), &[]),
            (Some(QuarantineKind::Recipient), &[("row", r#"{"key":7}"#)]),
            (Some(QuarantineKind::Stream), &[]),
        ] {
            let remedy = remedy(&entry(kind, fields));
            assert!(matches!(remedy, Remedy::Resync(_)), "{kind:?} {fields:?}");
        }
        assert_eq!(remedy(&entry(Some(QuarantineKind::Message), &[])), Remedy::Sender);
        assert_eq!(remedy(&entry(None, &[("content", "x")])), Remedy::Sender);
    }
}
