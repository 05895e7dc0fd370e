//! Candidates for pushes, and the tenants' streams `push`. [`crate::push`] decides when to examine a candidate.
//!
//! One script checks a device's presence and progress, marks it and adds the entry. So there is one entry until the device
//! has synced, however many bursts come and however many engines examine it. Entries that the webhook has not accepted stay
//! in a list beside the stream.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::{FromRedisValue as _, Pipeline, Value, from_redis_value};
use serde::Deserialize;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::contract::device_state::{PROGRESS_FIELDS, Progress};
use crate::contract::entry::Entry;
use crate::contract::group::GroupId;
use crate::contract::lua;
use crate::contract::push::PushEntry;
use crate::core::event;
use crate::core::position::{EpochId, StreamId};
use crate::core::time::millis;
use crate::live::tail::{ChangeListener, Notice};
use crate::redis::entries;
use crate::redis::store::{Error, Store};

/// Entries looked at at once.
const LOOK: usize = 50;

/// Users whose memberships are read at once.
const MEMBERS: usize = 20;

/// Entries looked at at most. Who has more to catch up with has something.
const LOOK_MAX: usize = 1000;

/// Gathers users who received events, from the notices of the live tail.
#[derive(Debug, Default)]
pub struct PushCandidates {
    /// Events that count, and how many users are kept; `None` while no push is triggered here.
    wanted: RwLock<Option<(HashSet<String>, usize)>>,
    gathered: Mutex<Gathered>,
    is_new: Notify,
}

/// What was gathered since the last call of [`PushCandidates::take`].
#[derive(Debug, Default)]
pub struct Gathered {
    /// Users by tenant.
    pub users: HashMap<String, HashSet<Uuid>>,
    /// Tenants all of whose users received an event, or may have.
    pub tenants: HashSet<String>,
    /// Groups, with their tenants, whose members received an event.
    pub groups: HashSet<(String, GroupId)>,
    /// Events may have been missed.
    pub is_gap: bool,
    count: usize,
}

impl PushCandidates {
    /// Gathers these events from now on, up to so many users; `None` stops it.
    pub fn listen(&self, events: Option<(HashSet<String>, usize)>) {
        *self.wanted.write() = events;
        *self.gathered.lock() = Gathered::default();
    }

    /// How many candidates are kept, if an event counts.
    fn bound(&self, name: &str) -> Option<usize> {
        let wanted = self.wanted.read();
        let (events, most) = wanted.as_ref()?;
        let counts = match name {
            // Entries that were published while the tenant was paused wait for its devices, too.
            event::TENANT_RESUMED => true,
            name => !name.is_empty() && !event::is_internal(name) && (events.contains(name) || events.contains("*")),
        };
        counts.then_some(*most)
    }

    /// Adds groups whose members received an event.
    fn add_groups(&self, tenant: &str, name: &str, groups: &[GroupId]) {
        let Some(most) = self.bound(name) else { return };
        let mut gathered = self.gathered.lock();
        for group in groups {
            if gathered.count >= most {
                gathered.is_gap = true;
                break;
            }
            let is_new = gathered.groups.insert((tenant.to_owned(), group.clone()));
            gathered.count += usize::from(is_new);
        }
        drop(gathered);
        self.is_new.notify_one();
    }

    /// Adds the recipients of an event; `None` is every user of the tenant.
    fn add(&self, tenant: &str, name: &str, users: Option<&[Uuid]>) {
        let Some(most) = self.bound(name) else { return };
        let mut gathered = self.gathered.lock();
        match users {
            None => {
                gathered.tenants.insert(tenant.to_owned());
            }
            Some(users) => {
                for user in users {
                    if gathered.count >= most {
                        gathered.is_gap = true;
                        break;
                    }
                    let is_new = match gathered.users.get_mut(tenant) {
                        Some(known) => known.insert(*user),
                        None => gathered.users.entry(tenant.to_owned()).or_default().insert(*user),
                    };
                    gathered.count += usize::from(is_new);
                }
            }
        }
        drop(gathered);
        self.is_new.notify_one();
    }

    /// Waits until something is gathered. Safe to cancel.
    pub async fn gathered(&self) {
        self.is_new.notified().await;
    }

    /// What was gathered since the last call.
    pub fn take(&self) -> Gathered {
        std::mem::take(&mut *self.gathered.lock())
    }
}

impl ChangeListener for PushCandidates {
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>) {
        self.add(tenant, &notice.event, users);
    }

    fn changed_for_groups(&self, tenant: &str, notice: &Notice, groups: &[GroupId]) {
        self.add_groups(tenant, &notice.event, groups);
    }

    fn lost(&self) {
        if self.is_active() {
            self.gathered.lock().is_gap = true;
            self.is_new.notify_one();
        }
    }

    fn is_active(&self) -> bool {
        self.wanted.read().is_some()
    }
}

/// A device that may have to be woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub device_id: String,
    /// Its user.
    pub user: Uuid,
    /// When it was enrolled, µs since 1970. What came before is no news to a device that never synced.
    pub enrolled_ts: i64,
}

/// What waits for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The last entry that counts.
    pub last: StreamId,
    /// Its event.
    pub event: String,
    /// How many entries count, as far as was looked.
    pub count: usize,
}

/// What was decided of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is woken.
    Triggered,
    /// Not now: it has a stream, or the tenant is paused.
    Later,
    /// It had a stream a moment ago: after this time.
    In(Duration),
    /// There is nothing that it does not have, or it was woken before.
    Nothing,
}

/// What the trigger's entry needs beside the device.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Time without a stream.
    pub after: Duration,
    /// About how many entries the stream keeps.
    pub entries_max: u64,
    /// Whether there is a webhook.
    pub has_webhook: bool,
}

/// An entry that is due at the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    pub tenant: String,
    /// Its ID in the stream.
    pub stream_id: String,
    pub entry: PushEntry,
    /// When the push was triggered, ms since 1970.
    pub at_ms: i64,
    /// Counts attempts to send it, with this one.
    pub tries: u32,
}

/// Entries that are due at the webhook.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The entries.
    pub triggers: Vec<Trigger>,
    /// When there will be another; `None` when there is none.
    pub next: Option<Duration>,
    /// Redis' time, ms since 1970.
    pub now_ms: i64,
}

/// Which streams of several users can hold what counts.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// That of the whole tenant.
    pub shared: bool,
    pub groups: bool,
}

/// What waits for devices that were not woken, each by its place in the list.
///
/// # Errors
/// See [`Error`].
pub async fn waiting(
    store: &Store,
    tenant: &str,
    epoch: EpochId,
    devices: &[Device],
    counts: impl Fn(&str) -> bool,
    streams: Streams,
) -> Result<Vec<Option<Waiting>>, Error> {
    let keys = store.keys();
    let mut pipe = redis::pipe();
    for device in devices {
        pipe.hmget(keys.device(tenant, &device.device_id), &PROGRESS_FIELDS);
    }
    let states: Vec<Vec<Option<String>>> = store.query(&pipe).await?;
    let mut found: Vec<Option<Waiting>> = vec![None; devices.len()];
    let mut looks = Vec::new();
    let mut members = Vec::new();
    for (index, (device, state)) in devices.iter().zip(&states).enumerate() {
        let progress = Progress::parse(state, epoch);
        if progress.is_pushed {
            continue;
        }
        looks.push((index, keys.inbox(tenant, &device.user.to_string()), progress.has));
        if streams.shared {
            looks.push((index, keys.shared(tenant), progress.has));
        }
        if streams.groups {
            members.push((index, progress.has));
        }
    }
    let since = |index: usize, has: Option<StreamId>| has.is_none().then_some(devices[index].enrolled_ts);
    let looks: Vec<Look> = looks
        .into_iter()
        .map(|(index, key, has)| Look {
            index,
            key,
            after: has,
            since_ts: since(index, has),
        })
        .collect();
    look_at(store, devices, &looks, &counts, &mut found).await?;
    if !store.has_groups() {
        return Ok(found);
    }
    // A user may have many groups: few users at a time, and no further streams of a device with enough in those before.
    for part in members.chunks(MEMBERS) {
        let users: Vec<Uuid> = part.iter().map(|(index, _)| devices[*index].user).collect();
        let mut looks = VecDeque::new();
        for ((index, has), members) in part.iter().zip(store.memberships(tenant, &users).await?) {
            looks.extend(members.groups.into_iter().map(|(group, joined)| Look {
                index: *index,
                key: keys.group(tenant, &group),
                after: Some(has.map_or(joined, |has| has.max(joined))),
                since_ts: since(*index, *has),
            }));
        }
        while !looks.is_empty() {
            let has_enough = |look: &Look| found[look.index].as_ref().is_some_and(|waiting| waiting.count >= LOOK);
            looks.retain(|look| !has_enough(look));
            let next: Vec<Look> = looks.drain(..looks.len().min(LOOK)).collect();
            look_at(store, devices, &next, &counts, &mut found).await?;
        }
    }
    Ok(found)
}

/// A stream to be read for a device.
struct Look {
    /// The device's place in the list.
    index: usize,
    key: String,
    /// Behind this position.
    after: Option<StreamId>,
    /// Only what was committed from then on, µs since 1970.
    since_ts: Option<i64>,
}

/// Reads streams, and adds what counts to what waits for their devices.
async fn look_at(
    store: &Store,
    devices: &[Device],
    looks: &[Look],
    counts: &impl Fn(&str) -> bool,
    found: &mut [Option<Waiting>],
) -> Result<(), Error> {
    for part in looks.chunks(LOOK) {
        let mut pipe = redis::pipe();
        for look in part {
            range(&mut pipe, &look.key, look.after, None);
        }
        let replies: Vec<redis::streams::StreamRangeReply> = store.query(&pipe).await?;
        for (at, reply) in part.iter().zip(replies) {
            let device = &devices[at.index].device_id;
            let counts = |entry: &Entry| counts(entry.event_name()) && !is_own(device, entry);
            let waiting = look(store, &at.key, at.after, reply, &counts, at.since_ts).await?;
            let best = &mut found[at.index];
            *best = match (best.take(), waiting) {
                (Some(one), Some(other)) => Some(Waiting {
                    count: one.count + other.count,
                    ..if one.last > other.last { one } else { other }
                }),
                (one, other) => one.or(other),
            };
        }
    }
    Ok(())
}

/// Entries of a stream before one, newest first.
fn range(pipe: &mut Pipeline, key: &str, after: Option<StreamId>, before: Option<StreamId>) {
    let end = before.map_or("+".to_owned(), |before| format!("({before}"));
    let start = after.map_or("-".to_owned(), |after| format!("({after}"));
    pipe.cmd("XREVRANGE")
        .arg(key)
        .arg(end)
        .arg(start)
        .arg("COUNT")
        .arg(LOOK);
}

/// What counts among the newest entries, and those before them as long as none is found.
async fn look(
    store: &Store,
    key: &str,
    has: Option<StreamId>,
    mut reply: redis::streams::StreamRangeReply,
    counts: &impl Fn(&Entry) -> bool,
    since_ts: Option<i64>,
) -> Result<Option<Waiting>, Error> {
    let mut looked = 0;
    loop {
        let mut waiting: Option<Waiting> = None;
        let mut last = None;
        for entry in reply.ids.iter().filter_map(entries::entry) {
            last = Some(entry.id);
            let is_old = since_ts.is_some_and(|since| entry.commit_ts.is_none_or(|ts| ts < since));
            if is_old || !counts(&entry) {
                continue;
            }
            match &mut waiting {
                Some(waiting) => waiting.count += 1,
                None => {
                    waiting = Some(Waiting {
                        last: entry.id,
                        event: entry.event_name().to_owned(),
                        count: 1,
                    });
                }
            }
        }
        looked += reply.ids.len();
        let (Some(last), LOOK) = (last, reply.ids.len()) else {
            return Ok(waiting);
        };
        if waiting.is_some() {
            return Ok(waiting);
        }
        if looked >= LOOK_MAX {
            return Ok(Some(Waiting {
                last,
                event: "sync_required".into(),
                count: looked,
            }));
        }
        let mut pipe = redis::pipe();
        range(&mut pipe, key, has, Some(last));
        let (next,): (redis::streams::StreamRangeReply,) = store.query(&pipe).await?;
        reply = next;
    }
}

/// Whether the device wrote the change itself, so that it is no reason for a push.
fn is_own(device_id: &str, entry: &Entry) -> bool {
    #[derive(Deserialize)]
    struct Writer<'a> {
        #[serde(borrow)]
        device_id: Option<Cow<'a, str>>,
    }
    // The built-in tables' column; changes of a status by others have events of their own.
    matches!(entry.event_name(), event::MESSAGE_UPDATED | event::STATE_CHANGED)
        && entry.row.as_ref().is_some_and(|row| {
            serde_json::from_slice::<Writer<'_>>(row.as_bytes())
                .is_ok_and(|row| row.device_id.as_deref() == Some(device_id))
        })
}

/// Decides of devices for which something waits, in one round trip.
///
/// # Errors
/// See [`Error`].
pub async fn trigger(
    store: &Store,
    tenant: &str,
    epoch: EpochId,
    devices: &[(&Device, Waiting)],
    terms: Terms,
) -> Result<Vec<Decision>, Error> {
    let keys = store.keys();
    let mut pipe = redis::pipe();
    for (device, waiting) in devices {
        let names = [
            keys.device(tenant, &device.device_id),
            keys.meta(tenant),
            keys.presence_part(tenant, "users"),
            keys.presence_part(tenant, "seen"),
            keys.push(tenant),
            keys.push_due(tenant),
        ];
        let user = device.user.to_string();
        let entry = PushEntry {
            id: format!("push_{}", Uuid::new_v4().simple()),
            user_id: user.clone(),
            device_id: device.device_id.clone(),
            event: waiting.event.clone(),
            pending: waiting.count as u64,
        };
        pipe.cmd("EVAL")
            .arg(lua::TRIGGER)
            .arg(names.len())
            .arg(&names)
            .arg(epoch.to_string())
            .arg(waiting.last.to_string())
            .arg(&user)
            .arg(&device.device_id)
            .arg(millis(terms.after))
            .arg(terms.entries_max)
            .arg(u8::from(terms.has_webhook));
        for (name, value) in entry.encode() {
            pipe.arg(name).arg(value);
        }
    }
    // Not repeated by itself: whether it was decided shows the next time.
    let replies: Vec<(String, Option<Value>)> = {
        let replies: Vec<Vec<Value>> = pipe.query_async(&mut store.connection()).await?;
        let parse = |reply: Vec<Value>| {
            let mut values = reply.into_iter();
            let word = values.next().and_then(|value| from_redis_value(value).ok());
            (word.unwrap_or_default(), values.next())
        };
        replies.into_iter().map(parse).collect()
    };
    Ok(replies
        .into_iter()
        .map(|(word, rest)| match word.as_str() {
            "triggered" => Decision::Triggered,
            "paused" | "present" => Decision::Later,
            "early" => {
                let ms = rest.and_then(|value| u64::from_redis_value(value).ok());
                Decision::In(Duration::from_millis(ms.unwrap_or(1000)))
            }
            _ => Decision::Nothing,
        })
        .collect())
}

/// Takes what is due at the webhook; no other engine takes it for `lease`.
///
/// # Errors
/// See [`Error`].
pub async fn claim(store: &Store, tenant: &str, lease: Duration, most: usize) -> Result<Claimed, Error> {
    let keys = store.keys();
    let names = [keys.push_due(tenant), keys.push_tries(tenant), keys.push(tenant)];
    let mut pipe = redis::pipe();
    pipe.cmd("EVAL")
        .arg(lua::CLAIM)
        .arg(names.len())
        .arg(&names)
        .arg(millis(lease))
        .arg(most);
    type Entry = (String, u32, Vec<String>);
    let ((now, next, entries),): ((i64, String, Vec<Entry>),) = pipe.query_async(&mut store.connection()).await?;
    let triggers = entries.into_iter().map(|(stream_id, tries, fields)| Trigger {
        tenant: tenant.to_owned(),
        at_ms: stream_id
            .split('-')
            .next()
            .and_then(|ms| ms.parse().ok())
            .unwrap_or_default(),
        stream_id,
        entry: PushEntry::parse(&fields),
        tries,
    });
    let until = |at: i64| Duration::from_millis(u64::try_from(at - now).unwrap_or(0));
    Ok(Claimed {
        triggers: triggers.collect(),
        next: next.parse().ok().map(until),
        now_ms: now,
    })
}

/// Removes an entry from those that are due.
///
/// # Errors
/// See [`Error`].
pub async fn settle(store: &Store, trigger: &Trigger) -> Result<(), Error> {
    let keys = store.keys();
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.zrem(keys.push_due(&trigger.tenant), &trigger.stream_id).ignore();
    pipe.hdel(keys.push_tries(&trigger.tenant), &trigger.stream_id).ignore();
    let () = store.query(&pipe).await?;
    Ok(())
}

/// Sets the time of the next attempt, ms since 1970.
///
/// # Errors
/// See [`Error`].
pub async fn postpone(store: &Store, trigger: &Trigger, at_ms: i64) -> Result<(), Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("ZADD")
        .arg(store.keys().push_due(&trigger.tenant))
        .arg("XX")
        .arg(at_ms)
        .arg(&trigger.stream_id)
        .ignore();
    let () = store.query(&pipe).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_notices_open_a_gap_while_events_are_gathered() {
        let candidates = PushCandidates::default();
        candidates.lost();
        assert!(!candidates.is_active() && !candidates.take().is_gap);
        candidates.listen(Some((["new_message".to_owned()].into(), 10)));
        candidates.lost();
        assert!(candidates.is_active() && candidates.take().is_gap);
    }
}
