//! A tenant's quarantine: changes that could not be routed or stored, each with its cause.

use std::collections::BTreeMap;

use redis::streams::StreamRangeReply;

use super::store::{Error, Store};
use crate::change::StreamId;

/// What was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its ID in the quarantine, by Redis' clock.
    pub id: StreamId,
    /// Where the change stands in the log, as a stream ID; `None` when it is about a stream as a whole.
    pub position: Option<StreamId>,
    /// Why it is here.
    pub cause: String,
    /// The change's own fields: `schema`, `table`, `ts`, `xid`, and as far as they could be made `row` and `old`.
    pub fields: BTreeMap<String, String>,
}

/// How many changes are in a tenant's quarantine.
///
/// # Errors
/// When Redis fails.
pub async fn count(store: &Store, tenant: &str) -> Result<u64, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(store.keys().quarantine(tenant));
    let (count,): (u64,) = store.query(&pipe).await?;
    Ok(count)
}

/// The newest changes of a tenant's quarantine, newest first.
///
/// # Errors
/// When Redis fails.
pub async fn newest(store: &Store, tenant: &str, most: usize) -> Result<Vec<Aside>, Error> {
    read(store, "XREVRANGE", tenant, ["+", "-"], most).await
}

/// One change of a tenant's quarantine.
///
/// # Errors
/// When Redis fails.
pub async fn one(store: &Store, tenant: &str, id: StreamId) -> Result<Option<Aside>, Error> {
    let id = id.to_string();
    Ok(read(store, "XRANGE", tenant, [&id, &id], 1).await?.into_iter().next())
}

async fn read(store: &Store, command: &str, tenant: &str, range: [&str; 2], most: usize) -> Result<Vec<Aside>, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd(command)
        .arg(store.keys().quarantine(tenant))
        .arg(&range)
        .arg("COUNT")
        .arg(most);
    let (reply,): (StreamRangeReply,) = store.query(&pipe).await?;
    let asides = reply.ids.into_iter().filter_map(|raw| {
        let id = raw.id.parse().ok()?;
        let mut fields: BTreeMap<String, String> = raw
            .map
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), redis::from_redis_value_ref(value).ok()?)))
            .collect();
        Some(Aside {
            id,
            position: fields.remove("position").and_then(|position| position.parse().ok()),
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
    let ids: Vec<String> = ids.iter().map(StreamId::to_string).collect();
    let mut pipe = redis::pipe();
    pipe.cmd("XDEL").arg(store.keys().quarantine(tenant)).arg(ids);
    let (count,): (u64,) = store.query(&pipe).await?;
    Ok(count)
}

/// Forgets all changes up to this one; what is put aside meanwhile stays. Gives how many there were.
///
/// # Errors
/// When Redis fails.
pub async fn forget_up_to(store: &Store, tenant: &str, last: StreamId) -> Result<u64, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("XTRIM")
        .arg(store.keys().quarantine(tenant))
        .arg("MINID")
        .arg(last.next().to_string());
    let (count,): (u64,) = store.query(&pipe).await?;
    Ok(count)
}
