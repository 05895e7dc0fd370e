//! What streams are like, for operators: how long, how large, from when to when, trimmed where, stopped why.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use postgres_types::PgLsn;
use redis::streams::{StreamInfoStreamReply, StreamRangeReply};
use serde::Serialize;
use uuid::Uuid;

use crate::contract::device_state::{self, TRIM_FIELDS};
use crate::contract::group::GroupId;
use crate::contract::meta;
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::redis::entries;
use crate::redis::error::is_missing_key;
use crate::redis::store::{Error, Store};

/// Keys asked about in one round trip.
pub const PAGE: usize = 500;

/// For how many streams of a tenant the wrong type is reported.
const ERRORS_SHOWN: usize = 5;

/// An entry's place: its ID, and what that and its fields contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The ID.
    #[serde(serialize_with = "as_text")]
    pub id: StreamId,
    /// Commit LSN of its transaction; of streams whose IDs are positions, if this epoch's base yields it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_optional_text")]
    pub commit_lsn: Option<PgLsn>,
    /// When it was committed; RFC 3339.
    #[serde(serialize_with = "as_time")]
    pub time: Option<DateTime<Utc>>,
}

/// A stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Entries.
    pub length: u64,
    /// The oldest entry.
    pub first: Option<Mark>,
    /// The newest entry.
    pub last: Option<Mark>,
    /// The newest ID that it ever had: further entries must lie above.
    pub last_id: StreamId,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Consumer groups.
    pub groups: u64,
}

/// What is in a key's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Missing,
    /// Something else: the name of its type.
    WrongType(String),
    /// A stream.
    Stream(Shape),
}

/// What the IDs of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Positions in the log, in an epoch of this base.
    Positions(u64),
    /// Redis' clock, ms since 1970.
    Clock,
}

/// How long a stream is, or why there is none, without a look inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Length {
    /// Nothing is there.
    Missing,
    /// Something else is there: the name of its type.
    WrongType(String),
    /// A stream of so many entries.
    Entries(u64),
}

/// How many entries a tenant's streams hold; nothing is known of one that is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The log of all changes.
    pub changes: Option<u64>,
    /// What every user must see.
    pub shared: Option<u64>,
    /// What could not be routed or stored.
    pub quarantine: Option<u64>,
    /// For keys of the wrong type: what is there, and how to repair it.
    #[serde(skip)]
    errors: Vec<String>,
    /// Beyond those.
    #[serde(skip)]
    more: u64,
}

impl Lengths {
    /// Something else is in the place of one of the tenant's streams.
    pub fn note(&mut self, store: &Store, tenant: &str, key: &str, kind: &str) {
        if self.errors.len() < ERRORS_SHOWN {
            self.errors.push(store.wrong_type(Some(tenant), key, kind).to_string());
        } else {
            self.more += 1;
        }
    }

    /// What is wrong, if anything is.
    pub fn error(&self) -> Option<String> {
        let mut shown = self.errors.join("; ");
        if self.more > 0 {
            shown.push_str(&format!("; and {} more", self.more));
        }
        (!shown.is_empty()).then_some(shown)
    }
}

/// A tenant's meta hash, but for trim points of inboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// The generation that readers go by.
    pub generation: Option<i64>,
    /// `active` or `paused`.
    pub state: Option<String>,
}

/// A stream that takes no entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The stream.
    pub target: Target,
    /// Why.
    pub cause: String,
}

/// The time of a commit, from µs since 1970.
pub fn time_of_micros(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
}

/// As every time is shown: RFC 3339, UTC, µs.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Looks at a stream.
///
/// # Errors
/// When Redis fails.
pub async fn look(store: &Store, key: &str, ids: Ids) -> Result<Found, Error> {
    let kind = type_of(store, key).await?;
    match kind.as_str() {
        "none" => return Ok(Found::Missing),
        "stream" => {}
        _ => return Ok(Found::WrongType(kind)),
    }
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO").arg("STREAM").arg(key);
    memory_command(&mut pipe, key);
    let answer: Result<(StreamInfoStreamReply, Option<u64>), _> = store.query(&pipe).await;
    let (info, memory) = match answer {
        Ok(answer) => answer,
        // It went between the two looks.
        Err(error) if is_missing_key(&error) => return Ok(Found::Missing),
        Err(error) => return Err(error.into()),
    };
    let mark = |entry: &redis::streams::StreamId| {
        let id: StreamId = entry.id.parse().ok()?;
        let micros = match ids {
            Ids::Positions(_) => entries::commit_ts(entry),
            Ids::Clock => i64::try_from(id.ms).ok().and_then(|ms| ms.checked_mul(1000)),
        };
        Some(Mark {
            id,
            commit_lsn: match ids {
                Ids::Positions(base) => id.ms.checked_sub(base).map(PgLsn::from),
                Ids::Clock => None,
            },
            time: micros.and_then(time_of_micros),
        })
    };
    Ok(Found::Stream(Shape {
        length: info.length as u64,
        first: mark(&info.first_entry),
        last: mark(&info.last_entry),
        last_id: info.last_generated_id.parse().unwrap_or_default(),
        memory_bytes: memory.unwrap_or(0),
        groups: info.groups as u64,
    }))
}

async fn type_of(store: &Store, key: &str) -> Result<String, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("TYPE").arg(key);
    let (kind,): (String,) = store.query(&pipe).await?;
    Ok(kind)
}

/// How long these streams are, in order. At most [`PAGE`] keys are asked about at once.
///
/// # Errors
/// When Redis fails.
pub async fn lengths(store: &Store, keys: &[String]) -> Result<Vec<Length>, Error> {
    let mut lengths = Vec::with_capacity(keys.len());
    for page in keys.chunks(PAGE) {
        let mut pipe = redis::pipe();
        for key in page {
            pipe.cmd("TYPE").arg(key);
        }
        let kinds: Vec<String> = store.query(&pipe).await?;
        let mut pipe = redis::pipe();
        let streams = page.iter().zip(&kinds).filter(|(_, kind)| *kind == "stream");
        for (key, _) in streams.clone() {
            pipe.cmd("XLEN").arg(key);
        }
        let entries: Vec<u64> = if streams.clone().next().is_some() {
            store.query(&pipe).await?
        } else {
            Vec::new()
        };
        let mut entries = entries.into_iter();
        lengths.extend(kinds.into_iter().map(|kind| match kind.as_str() {
            "none" => Length::Missing,
            "stream" => Length::Entries(entries.next().unwrap_or(0)),
            _ => Length::WrongType(kind),
        }));
    }
    Ok(lengths)
}

/// How many entries a tenant's streams hold but for inboxes.
///
/// # Errors
/// When Redis fails.
pub async fn lengths_of(store: &Store, tenant: &str) -> Result<Lengths, Error> {
    let names = store.keys();
    let keys = [names.changes(tenant), names.shared(tenant), names.quarantine(tenant)];
    let (mut known, mut wrong) = (Lengths::default(), Vec::new());
    let places = [&mut known.changes, &mut known.shared, &mut known.quarantine];
    for ((place, key), length) in places.into_iter().zip(&keys).zip(lengths(store, &keys).await?) {
        *place = match length {
            Length::Missing => Some(0),
            Length::Entries(count) => Some(count),
            Length::WrongType(kind) => {
                wrong.push((key, kind));
                None
            }
        };
    }
    wrong
        .iter()
        .for_each(|(key, kind)| known.note(store, tenant, key, kind));
    Ok(known)
}

/// The memory of a key. All nodes of a stream are counted: by default Redis takes a few of the oldest, which say nothing of
/// one that began with small entries.
fn memory_command(pipe: &mut redis::Pipeline, key: &str) {
    pipe.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
}

/// What each of these keys takes, in bytes.
///
/// # Errors
/// When Redis fails.
pub async fn memory(store: &Store, keys: &[String]) -> Result<Vec<u64>, Error> {
    let mut memory = Vec::with_capacity(keys.len());
    for page in keys.chunks(PAGE) {
        let mut pipe = redis::pipe();
        page.iter().for_each(|key| memory_command(&mut pipe, key));
        let bytes: Vec<Option<u64>> = store.query(&pipe).await?;
        memory.extend(bytes.into_iter().map(Option::unwrap_or_default));
    }
    Ok(memory)
}

/// The streams of a tenant's groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GroupTotals {
    pub count: u64,
    /// Groups whose stream has the wrong type.
    pub unusable: u64,
    /// Entries of all of them.
    pub entries: u64,
    /// Memory of all of them.
    pub memory_bytes: u64,
    /// The one that takes most memory.
    pub largest: Option<LargestGroup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LargestGroup {
    /// `<group>:<id>`.
    pub group: String,
    pub entries: u64,
    pub memory_bytes: u64,
}

/// Adds up the streams of a tenant's groups.
///
/// # Errors
/// When Redis fails.
pub async fn totals_of_groups(store: &Store, tenant: &str) -> Result<GroupTotals, Error> {
    let (mut totals, mut cursor) = (GroupTotals::default(), 0_u64);
    // A scan may give a name twice.
    let mut seen: HashSet<GroupId> = HashSet::new();
    loop {
        let mut pipe = redis::pipe();
        pipe.cmd("SSCAN").arg(store.keys().groups(tenant)).arg(cursor);
        pipe.arg("COUNT").arg(PAGE);
        let ((next, names),): ((u64, Vec<String>),) = store.query(&pipe).await?;
        let groups: Vec<GroupId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let groups: Vec<GroupId> = groups.into_iter().filter(|group| seen.insert(group.clone())).collect();
        let keys: Vec<String> = groups.iter().map(|group| store.keys().group(tenant, group)).collect();
        let (lengths, memory) = (lengths(store, &keys).await?, memory(store, &keys).await?);
        for ((group, length), memory_bytes) in groups.iter().zip(lengths).zip(memory) {
            let entries = match length {
                Length::Entries(entries) => entries,
                Length::Missing => continue,
                Length::WrongType(_) => {
                    totals.unusable += 1;
                    continue;
                }
            };
            totals.count += 1;
            totals.entries += entries;
            totals.memory_bytes += memory_bytes;
            let largest = totals.largest.as_ref();
            if largest.is_none_or(|largest| largest.memory_bytes < memory_bytes) {
                totals.largest = Some(LargestGroup {
                    group: group.to_string(),
                    entries,
                    memory_bytes,
                });
            }
        }
        cursor = next;
        if cursor == 0 {
            return Ok(totals);
        }
    }
}

/// A tenant's generation and state, as readers see them.
///
/// # Errors
/// When Redis fails.
pub async fn meta(store: &Store, tenant: &str) -> Result<Meta, Error> {
    let (mut pipe, key) = (redis::pipe(), store.keys().meta(tenant));
    pipe.hmget(&key, &[meta::GENERATION, meta::STATE]);
    let ((generation, state),): ((Option<i64>, Option<String>),) = store.query_key(&pipe, Some(tenant), &key).await?;
    Ok(Meta { generation, state })
}

/// The first ID that trimming has left of a stream; `None` when it was never trimmed.
///
/// # Errors
/// When Redis fails.
pub async fn trim_point(store: &Store, target: &Target) -> Result<Option<StreamId>, Error> {
    let (mut pipe, tenant) = (redis::pipe(), target.tenant());
    let key = store.keys().meta(tenant);
    pipe.cmd("HGET").arg(&key).arg(meta::trim_field(target));
    let (point,): (Option<String>,) = store.query_key(&pipe, Some(tenant), &key).await?;
    Ok(point.and_then(|point| point.parse().ok()))
}

/// All streams that take no entries, by their names.
///
/// # Errors
/// When Redis fails.
pub async fn stopped(store: &Store) -> Result<Vec<Stopped>, Error> {
    let stopped = store.stopped().await?;
    Ok(stopped
        .into_iter()
        .filter_map(|(name, cause)| {
            Some(Stopped {
                target: Target::parse(&name)?,
                cause,
            })
        })
        .collect())
}

/// Users that a tenant's keys have inboxes for, whether or not Postgres has them. Goes through all keys of Redis.
///
/// # Errors
/// When Redis fails.
pub async fn users_with_inboxes(store: &Store, tenant: &str) -> Result<Vec<Uuid>, Error> {
    let pattern = format!("{}inbox:*", store.keys().of_tenant(tenant).trim_end_matches('*'));
    let prefix = store.keys().inbox(tenant, "");
    let (mut users, mut cursor) = (Vec::new(), 0_u64);
    loop {
        let mut pipe = redis::pipe();
        pipe.cmd("SCAN").arg(cursor).arg(&["MATCH", &pattern, "COUNT", "1000"]);
        let ((next, keys),): ((u64, Vec<String>),) = store.query(&pipe).await?;
        users.extend(
            keys.iter()
                .filter_map(|key| key.strip_prefix(&prefix)?.parse::<Uuid>().ok()),
        );
        cursor = next;
        if cursor == 0 {
            // A scan may give a key twice.
            users.sort_unstable();
            users.dedup();
            return Ok(users);
        }
    }
}

/// The ID behind which the entries lie that were committed at or after a time. Found by halving: commit times grow with
/// the IDs, but for some milliseconds between transactions that commit side by side.
///
/// # Errors
/// When Redis fails, or the key holds no stream.
pub async fn before_time(store: &Store, key: &str, time: DateTime<Utc>) -> Result<StreamId, Error> {
    let micros = time.timestamp_micros();
    let edge = async |command: &str, from: &str, to: &str| edge(store, command, key, from, to).await;
    let Some((newest, newest_ts)) = edge("XREVRANGE", "+", "-").await? else {
        return Ok(StreamId::ZERO);
    };
    if newest_ts < micros {
        return Ok(newest);
    }
    // All at or below `low` is older, something above it and at or below `high` is not.
    let (mut low, mut high) = (0_u64, newest.ms);
    while low < high {
        let middle = low + (high - low) / 2;
        // The first transaction from the middle on decides for all between the two.
        let from = format!("{middle}-0");
        match edge("XRANGE", &from, "+").await? {
            Some((_, ts)) if ts < micros => low = middle + 1,
            _ => high = middle,
        }
    }
    Ok(StreamId { ms: low, seq: 0 }.previous())
}

/// The newest entry of a stream; [`StreamId::ZERO`] for an empty one, and without a stream.
///
/// # Errors
/// When Redis fails, or the key holds no stream.
pub async fn newest(store: &Store, key: &str) -> Result<StreamId, Error> {
    let newest = edge(store, "XREVRANGE", key, "+", "-").await?;
    Ok(newest.map_or(StreamId::ZERO, |(id, _)| id))
}

async fn edge(store: &Store, command: &str, key: &str, from: &str, to: &str) -> Result<Option<(StreamId, i64)>, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd(command).arg(key).arg(&[from, to, "COUNT", "1"]);
    let (reply,): (StreamRangeReply,) = store.query(&pipe).await?;
    Ok(reply.ids.first().and_then(|entry| {
        let id = entry.id.parse().ok()?;
        Some((id, entries::commit_ts(entry).unwrap_or(0)))
    }))
}

/// How many entries a stream has from one ID on, below another where there is one; counted up to `most`.
///
/// # Errors
/// When Redis fails, or the key holds no stream.
pub async fn count(store: &Store, key: &str, from: StreamId, below: Option<StreamId>, most: u64) -> Result<u64, Error> {
    let end = below.map_or_else(|| "+".to_owned(), |below| format!("({below}"));
    let (mut count, mut from) = (0, from);
    while count < most && below.is_none_or(|below| from < below) {
        let mut pipe = redis::pipe();
        pipe.cmd("XRANGE")
            .arg(key)
            .arg(from.to_string())
            .arg(&end)
            .arg("COUNT")
            .arg(PAGE);
        let (reply,): (StreamRangeReply,) = store.query(&pipe).await?;
        count += reply.ids.len() as u64;
        match reply.ids.last().and_then(|last| last.id.parse::<StreamId>().ok()) {
            Some(last) if reply.ids.len() == PAGE => from = last.next(),
            _ => break,
        }
    }
    Ok(count)
}

/// Where a device is with its user's inbox: the place up to which trimming may forget; `None` when it has none, and
/// begins with a snapshot.
///
/// # Errors
/// When Redis fails.
pub async fn device_places(store: &Store, tenant: &str, devices: &[String]) -> Result<Vec<Option<StreamId>>, Error> {
    let mut places = Vec::with_capacity(devices.len());
    for page in devices.chunks(PAGE) {
        let mut pipe = redis::pipe();
        for device in page {
            pipe.hmget(store.keys().device(tenant, device), &TRIM_FIELDS);
        }
        let fields: Vec<Vec<Option<String>>> = store.query(&pipe).await?;
        places.extend(fields.iter().map(|values| device_state::trim_point(values)));
    }
    Ok(places)
}

/// A target for one user of a tenant.
pub fn inbox(tenant: &str, user: Uuid) -> Target {
    Target::Inbox(Arc::from(tenant), user)
}

fn as_text<S: serde::Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_optional_text<S: serde::Serializer>(value: &Option<PgLsn>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_str(&value.to_string()),
        None => serializer.serialize_none(),
    }
}

fn as_time<S: serde::Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_str(&rfc3339(*time)),
        None => serializer.serialize_none(),
    }
}
