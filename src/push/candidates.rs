//! The tenants' streams `push`: "this device is away and has something". What decides when to look is [`crate::push`].
//!
//! Whether a device is woken is decided where it is written down: one script looks at its presence and at how far it has
//! come, marks it and adds the entry. So there is one entry until the device has synced, however many bursts come and
//! however many engines look. What the webhook has not taken stays in a list beside the stream.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use redis::{FromRedisValue as _, Pipeline, Value, from_redis_value};
use serde::Deserialize;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::core::position::EpochId;
use crate::core::position::StreamId;
use crate::redis::store::{Error, Store};

const TRIGGER: &str = include_str!("../contract/lua/trigger.lua");
const CLAIM: &str = include_str!("../contract/lua/claim.lua");

/// Entries looked at at once.
const LOOK: usize = 50;

/// Entries looked at at most. Who has more to catch up with has something.
const LOOK_MAX: usize = 1000;

/// Who got something, as the live tail hears it; gathered until somebody looks.
#[derive(Debug, Default)]
pub struct PushCandidates {
    /// Events that count, and how many users are remembered; nothing while nobody looks.
    wanted: RwLock<Option<(HashSet<String>, usize)>>,
    told: Mutex<Decided>,
    is_new: Notify,
    is_listening: AtomicBool,
}

/// What was heard since the last look.
#[derive(Debug, Default)]
pub struct Decided {
    /// Users by tenant.
    pub users: HashMap<String, HashSet<Uuid>>,
    /// Tenants all of whose users got something, or may have.
    pub tenants: HashSet<String>,
    /// Something may have been missed.
    pub is_gap: bool,
    count: usize,
}

impl PushCandidates {
    /// Gathers these events from now on, or none any more; up to so many users.
    pub fn listen(&self, events: Option<(HashSet<String>, usize)>) {
        self.is_listening.store(events.is_some(), Ordering::SeqCst);
        *self.wanted.write().unwrap_or_else(PoisonError::into_inner) = events;
        *self.told() = Decided::default();
    }

    /// Whether somebody looks.
    pub(crate) fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::Relaxed)
    }

    /// Notes who got an event; `None` is everybody.
    pub(crate) fn note(&self, tenant: &str, event: &str, users: Option<&[Uuid]>) {
        let wanted = self.wanted.read().unwrap_or_else(PoisonError::into_inner);
        let Some((events, most)) = &*wanted else { return };
        // What waited while the tenant was paused waits for devices, too.
        let counts = match event {
            "tenant_resumed" => true,
            // Words for nodes, which are in no stream.
            "" | "tenant_paused" | "device_changed" | "user_seen" => false,
            event => events.contains(event) || events.contains("*"),
        };
        if !counts {
            return;
        }
        let mut told = self.told();
        match users {
            None => {
                told.tenants.insert(tenant.to_owned());
            }
            Some(users) => {
                for user in users {
                    if told.count >= *most {
                        told.is_gap = true;
                        break;
                    }
                    let is_new = match told.users.get_mut(tenant) {
                        Some(known) => known.insert(*user),
                        None => told.users.entry(tenant.to_owned()).or_default().insert(*user),
                    };
                    told.count += usize::from(is_new);
                }
            }
        }
        drop(told);
        self.is_new.notify_one();
    }

    /// Notes that something may have been missed.
    pub(crate) fn note_gap(&self) {
        if self.is_listening() {
            self.told().is_gap = true;
            self.is_new.notify_one();
        }
    }

    /// Waits until there is something. Safe to cancel.
    pub async fn something(&self) {
        self.is_new.notified().await;
    }

    /// What was heard since the last look.
    pub fn take(&self) -> Decided {
        std::mem::take(&mut *self.told())
    }

    fn told(&self) -> MutexGuard<'_, Decided> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
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

/// How far a device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// What it has, in this epoch.
    has: Option<StreamId>,
    /// It was woken and has not synced since.
    is_pushed: bool,
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
    /// Whether a webhook is to be told.
    pub has_webhook: bool,
}

/// An entry that the webhook is to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Its tenant.
    pub tenant: String,
    /// Its id in the stream.
    pub entry: String,
    /// Its own id, which stays the same however often it is told.
    pub id: String,
    /// Whose device.
    pub user_id: String,
    /// Which one.
    pub device_id: String,
    /// The event of what waits.
    pub event: String,
    /// How many wait, as far as was looked.
    pub pending: u64,
    /// When it was decided, ms since 1970.
    pub at_ms: i64,
    /// How often it is told with this time.
    pub tries: u32,
}

/// What is to be told now.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The entries.
    pub triggers: Vec<Trigger>,
    /// When there will be another; `None` when there is none.
    pub next: Option<Duration>,
    /// Redis' time, ms since 1970.
    pub now_ms: i64,
}

/// What waits for devices that were not woken, each by its place in the list. `is_shared` says whether the shared stream
/// can hold what counts.
///
/// # Errors
/// See [`Error`].
pub async fn waiting(
    store: &Store,
    tenant: &str,
    epoch: EpochId,
    devices: &[Device],
    counts: impl Fn(&str) -> bool,
    is_shared: bool,
) -> Result<Vec<Option<Waiting>>, Error> {
    let keys = store.keys();
    let mut pipe = redis::pipe();
    for device in devices {
        pipe.hmget(
            keys.device(tenant, &device.device_id),
            &["epoch", "ack", "read", "pushed"],
        );
    }
    let states: Vec<Vec<Option<String>>> = store.query(&pipe).await?;
    let mut found = vec![None; devices.len()];
    let mut looks = Vec::new();
    for (index, (device, state)) in devices.iter().zip(&states).enumerate() {
        let progress = progress(state, epoch);
        if progress.is_pushed {
            continue;
        }
        looks.push((index, keys.inbox(tenant, &device.user.to_string()), progress.has));
        if is_shared {
            looks.push((index, keys.shared(tenant), progress.has));
        }
    }
    for part in looks.chunks(LOOK) {
        let mut pipe = redis::pipe();
        for (_, key, has) in part {
            range(&mut pipe, key, *has, None);
        }
        let replies: Vec<redis::streams::StreamRangeReply> = store.query(&pipe).await?;
        for ((index, key, has), reply) in part.iter().zip(replies) {
            let since = has.is_none().then_some(devices[*index].enrolled_ts);
            let device = &devices[*index].device_id;
            let counts = |event: &str, entry: &redis::streams::StreamId| counts(event) && !is_own(device, event, entry);
            let waiting = look(store, key, *has, reply, &counts, since).await?;
            let best: &mut Option<Waiting> = &mut found[*index];
            *best = match (best.take(), waiting) {
                (Some(one), Some(other)) => Some(Waiting {
                    count: one.count + other.count,
                    ..if one.last > other.last { one } else { other }
                }),
                (one, other) => one.or(other),
            };
        }
    }
    Ok(found)
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
    counts: &impl Fn(&str, &redis::streams::StreamId) -> bool,
    since_ts: Option<i64>,
) -> Result<Option<Waiting>, Error> {
    let mut looked = 0;
    loop {
        let mut waiting: Option<Waiting> = None;
        let mut last = None;
        for entry in &reply.ids {
            let Ok(id) = entry.id.parse::<StreamId>() else { continue };
            last = Some(id);
            let event: String = entry.get("event").unwrap_or_default();
            let is_old = since_ts.is_some_and(|since| entry.get::<i64>("ts").is_none_or(|ts| ts < since));
            if is_old || !counts(&event, entry) {
                continue;
            }
            match &mut waiting {
                Some(waiting) => waiting.count += 1,
                None => {
                    waiting = Some(Waiting {
                        last: id,
                        event,
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

/// Whether a change is the device's own: of what it has written itself it need not be told.
fn is_own(device_id: &str, event: &str, entry: &redis::streams::StreamId) -> bool {
    #[derive(Deserialize)]
    struct Writer<'a> {
        #[serde(borrow)]
        device_id: Option<Cow<'a, str>>,
    }
    // The built-in tables' column; statuses, which others move, have events of their own.
    matches!(event, "message_updated" | "state_changed")
        && entry.get::<String>("row").is_some_and(|row| {
            serde_json::from_str::<Writer<'_>>(&row).is_ok_and(|row| row.device_id.as_deref() == Some(device_id))
        })
}

/// The same as the script says.
fn progress(state: &[Option<String>], epoch: EpochId) -> Progress {
    let field = |index: usize| state.get(index).and_then(Option::as_deref);
    let place = |index: usize| {
        let (epoch, position) = field(index)?.split_once(' ')?;
        Some((epoch.parse::<EpochId>().ok()?, position.parse::<StreamId>().ok()?))
    };
    let acknowledged = field(0)
        .and_then(|text| text.parse::<EpochId>().ok())
        .zip(field(1).and_then(|text| text.parse::<StreamId>().ok()));
    let here = |place: Option<(EpochId, StreamId)>| place.filter(|(of, _)| *of == epoch).map(|(_, position)| position);
    let has = here(acknowledged).max(here(place(2)));
    let is_pushed = place(3).is_some_and(|(of, position)| has.is_none_or(|has| of == epoch && has < position));
    Progress { has, is_pushed }
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
        let id = format!("push_{}", Uuid::new_v4().simple());
        pipe.cmd("EVAL")
            .arg(TRIGGER)
            .arg(names.len())
            .arg(&names)
            .arg(epoch.to_string())
            .arg(waiting.last.to_string())
            .arg(&user)
            .arg(&device.device_id)
            .arg(u64::try_from(terms.after.as_millis()).unwrap_or(u64::MAX))
            .arg(terms.entries_max)
            .arg(u8::from(terms.has_webhook))
            .arg(&["id", &id, "user_id", &user, "device_id", &device.device_id])
            .arg(&["event", &waiting.event, "pending", &waiting.count.to_string()]);
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

/// Takes what is due at the webhook; nobody else takes it for `lease`.
///
/// # Errors
/// See [`Error`].
pub async fn claim(store: &Store, tenant: &str, lease: Duration, most: usize) -> Result<Claimed, Error> {
    let keys = store.keys();
    let names = [keys.push_due(tenant), keys.push_tries(tenant), keys.push(tenant)];
    let mut pipe = redis::pipe();
    pipe.cmd("EVAL")
        .arg(CLAIM)
        .arg(names.len())
        .arg(&names)
        .arg(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX))
        .arg(most);
    type Entry = (String, u32, Vec<String>);
    let ((now, next, entries),): ((i64, String, Vec<Entry>),) = pipe.query_async(&mut store.connection()).await?;
    let triggers = entries.into_iter().map(|(entry, tries, fields)| {
        let (pairs, _) = fields.as_chunks::<2>();
        let field = |name: &str| pairs.iter().find(|[key, _]| key == name).map_or("", |[_, value]| value);
        Trigger {
            tenant: tenant.to_owned(),
            id: field("id").to_owned(),
            user_id: field("user_id").to_owned(),
            device_id: field("device_id").to_owned(),
            event: field("event").to_owned(),
            pending: field("pending").parse().unwrap_or_default(),
            at_ms: entry
                .split('-')
                .next()
                .and_then(|ms| ms.parse().ok())
                .unwrap_or_default(),
            entry,
            tries,
        }
    });
    let until = |at: i64| Duration::from_millis(u64::try_from(at - now).unwrap_or(0));
    Ok(Claimed {
        triggers: triggers.collect(),
        next: next.parse().ok().map(until),
        now_ms: now,
    })
}

/// Notes that the webhook need not be told again.
///
/// # Errors
/// See [`Error`].
pub async fn settle(store: &Store, trigger: &Trigger) -> Result<(), Error> {
    let keys = store.keys();
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.zrem(keys.push_due(&trigger.tenant), &trigger.entry).ignore();
    pipe.hdel(keys.push_tries(&trigger.tenant), &trigger.entry).ignore();
    let () = store.query(&pipe).await?;
    Ok(())
}

/// Notes that the webhook is to be told again at this time, ms since 1970.
///
/// # Errors
/// See [`Error`].
pub async fn postpone(store: &Store, trigger: &Trigger, at_ms: i64) -> Result<(), Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("ZADD")
        .arg(store.keys().push_due(&trigger.tenant))
        .arg("XX")
        .arg(at_ms)
        .arg(&trigger.entry)
        .ignore();
    let () = store.query(&pipe).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(fields: [&str; 4]) -> Vec<Option<String>> {
        fields
            .iter()
            .map(|text| (!text.is_empty()).then(|| (*text).to_owned()))
            .collect()
    }

    #[test]
    fn a_device_that_was_woken_counts_as_synced_when_it_has_what_waited_then() {
        let epoch: EpochId = "00000000000000aa".parse().expect("an epoch");
        let at = |ms| Some(StreamId { ms, seq: 1 });
        for (fields, has, is_pushed) in [
            (["", "", "", ""], None, false),
            (["00000000000000aa", "5-1", "", ""], at(5), false),
            (["00000000000000aa", "5-1", "00000000000000aa 7-1", ""], at(7), false),
            (["00000000000000aa", "5-1", "", "00000000000000aa 7-1"], at(5), true),
            (["00000000000000aa", "7-1", "", "00000000000000aa 7-1"], at(7), false),
            (["", "", "00000000000000aa 10-1", "00000000000000aa 9-1"], at(10), false),
            (["", "", "", "00000000000000aa 9-1"], None, true),
            // Woken in an epoch that is over.
            (["00000000000000bb", "5-1", "", "00000000000000bb 4-1"], None, true),
            (["00000000000000aa", "1-1", "", "00000000000000bb 9-1"], at(1), false),
        ] {
            assert_eq!(
                progress(&state(fields), epoch),
                Progress { has, is_pushed },
                "{fields:?}"
            );
        }
    }
}
