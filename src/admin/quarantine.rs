//! A tenant's quarantine: changes that could not be routed or stored, each with its cause.

use std::collections::BTreeMap;

use redis::streams::StreamRangeReply;
use serde_json::Value;

use crate::contract::quarantine::QuarantineKind;
use crate::core::position::StreamId;
use crate::redis::store::{Error, Store};

/// Changes read at once; each may hold a large row twice.
const PAGE: usize = 100;

/// What was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineEntry {
    /// Its ID in the quarantine, by Redis' clock.
    pub id: StreamId,
    /// Where the change stands in the log, as a stream ID; `None` when it is about a stream as a whole.
    pub position: Option<StreamId>,
    /// What it is; `None` of one that an older engine put aside.
    pub kind: Option<QuarantineKind>,
    /// Why it is here.
    pub cause: String,
    /// The change's own fields: `schema`, `table`, `ts`, `xid`, and as far as they could be made `row` and `old`.
    pub fields: BTreeMap<String, String>,
}

/// What settles a change that was put aside, once its cause is mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// To write the row once more: nobody holds a version of it that they should not.
    Row {
        /// The table.
        table: String,
        /// The row's id.
        id: String,
    },
    /// To begin the tenant's streams anew, for this reason.
    Resync(&'static str),
    /// Its sender alone can send it again.
    Sender,
}

impl QuarantineEntry {
    /// What settles it.
    pub fn remedy(&self) -> Remedy {
        match self.kind {
            Some(QuarantineKind::Message) => return Remedy::Sender,
            Some(QuarantineKind::Stream) => return Remedy::Resync("a stream lacks entries from then on"),
            None if self.position.is_none() => return Remedy::Resync("a stream lacks entries from then on"),
            _ => {}
        }
        let (row, old) = (self.fields.get("row"), self.fields.get("old"));
        if self.kind.is_none() && row.is_none() && old.is_none() && self.fields.contains_key("content") {
            return Remedy::Sender;
        }
        // Whoever lost a row by a name that is no user's was told so.
        if old.is_some() && self.kind != Some(QuarantineKind::Recipient) {
            return Remedy::Resync("devices may hold the row as it was before");
        }
        match self.row() {
            Some((table, id)) => Remedy::Row { table, id },
            None => Remedy::Resync("nothing tells which row it is"),
        }
    }

    /// The table and the id of the row that it is about, if it is and tells.
    pub fn row(&self) -> Option<(String, String)> {
        let row: Value = serde_json::from_str(self.fields.get("row")?).ok()?;
        let id = match &row["id"] {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => return None,
        };
        Some((self.fields.get("table")?.clone(), id))
    }
}

/// How many changes are in a tenant's quarantine.
///
/// # Errors
/// When Redis fails.
pub async fn count(store: &Store, tenant: &str) -> Result<u64, Error> {
    ask(store, tenant, "XLEN", &[]).await
}

/// The newest changes of a tenant's quarantine, newest first.
///
/// # Errors
/// When Redis fails.
pub async fn newest(store: &Store, tenant: &str, most: usize) -> Result<Vec<QuarantineEntry>, Error> {
    read(store, "XREVRANGE", tenant, ["+", "-"], most).await
}

/// One change of a tenant's quarantine.
///
/// # Errors
/// When Redis fails.
pub async fn one(store: &Store, tenant: &str, id: StreamId) -> Result<Option<QuarantineEntry>, Error> {
    let id = id.to_string();
    Ok(read(store, "XRANGE", tenant, [&id, &id], 1).await?.into_iter().next())
}

/// Goes through a tenant's quarantine from behind an ID on, oldest first.
///
/// # Errors
/// When Redis fails.
pub async fn each(
    store: &Store,
    tenant: &str,
    mut after: StreamId,
    mut see: impl FnMut(QuarantineEntry),
) -> Result<(), Error> {
    loop {
        let page = read(store, "XRANGE", tenant, [&after.next().to_string(), "+"], PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.id;
        page.into_iter().for_each(&mut see);
    }
}

/// Sends a command about a tenant's quarantine.
async fn ask<T: redis::FromRedisValue>(
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
    let reply: StreamRangeReply = ask(store, tenant, command, &[range[0], range[1], "COUNT", &most]).await?;
    let asides = reply.ids.into_iter().filter_map(|raw| {
        let id = raw.id.parse().ok()?;
        let mut fields: BTreeMap<String, String> = raw
            .map
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), redis::from_redis_value_ref(value).ok()?)))
            .collect();
        Some(QuarantineEntry {
            id,
            position: fields.remove("position").and_then(|position| position.parse().ok()),
            kind: fields.remove("kind").and_then(|kind| QuarantineKind::parse(&kind)),
            cause: fields.remove("cause").unwrap_or_default(),
            fields,
        })
    });
    Ok(asides.collect())
}

/// Forgets these changes; gives how many there were.
///
/// # Errors
/// When Redis fails.
pub async fn forget(store: &Store, tenant: &str, ids: &[StreamId]) -> Result<u64, Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let ids: Vec<String> = ids.iter().map(StreamId::to_string).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    ask(store, tenant, "XDEL", &ids).await
}

/// Forgets all changes up to this one; what is put aside meanwhile stays. Gives how many there were.
///
/// # Errors
/// When Redis fails.
pub async fn forget_up_to(store: &Store, tenant: &str, last: StreamId) -> Result<u64, Error> {
    ask(store, tenant, "XTRIM", &["MINID", &last.next().to_string()]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aside(kind: Option<QuarantineKind>, fields: &[(&str, &str)]) -> QuarantineEntry {
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
    fn a_row_settles_itself_unless_somebody_may_hold_an_older_one() {
        let row = |id: &str| Remedy::Row {
            table: "orders".into(),
            id: id.into(),
        };
        let (new, old) = (("row", r#"{"id":7}"#), ("old", r#"{"id":7}"#));
        for kind in [QuarantineKind::Rule, QuarantineKind::Row, QuarantineKind::Recipient] {
            assert_eq!(aside(Some(kind), &[new]).remedy(), row("7"), "{kind:?}");
        }
        assert_eq!(aside(None, &[("row", r#"{"id":"a"}"#)]).remedy(), row("a"));
        assert_eq!(aside(Some(QuarantineKind::Recipient), &[new, old]).remedy(), row("7"));
        for (kind, fields) in [
            (Some(QuarantineKind::Rule), &[new, old][..]),
            (None, &[new, old]),
            (Some(QuarantineKind::Rule), &[old]),
            (Some(QuarantineKind::Row), &[]),
            (Some(QuarantineKind::Recipient), &[("row", r#"{"key":7}"#)]),
            (Some(QuarantineKind::Stream), &[]),
        ] {
            let remedy = aside(kind, fields).remedy();
            assert!(matches!(remedy, Remedy::Resync(_)), "{kind:?} {fields:?}");
        }
        assert_eq!(aside(Some(QuarantineKind::Message), &[]).remedy(), Remedy::Sender);
        assert_eq!(aside(None, &[("content", "x")]).remedy(), Remedy::Sender);
    }
}
