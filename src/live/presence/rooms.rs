//! Telling readers of a tenant how its users are: a room per tenant that has readers here.
//!
//! Each room asks Redis once a tick for what has changed, and its readers share one text. With n users of one tenant who
//! all come at once, n readers would hear n changes: so changes of a tick are one event, the ticks of a process become
//! longer the more bytes it has sent, and an event that would be too long, or too expensive, is replaced by a word that
//! something has changed: the reader asks for what it needs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Serialize, Serializer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::entry::{Entry, Error, Status};
use crate::config;
use crate::core::time::Timestamp;
use crate::live::presence::store::{Changes, Known, PresenceStore};
use crate::live::presence::streams::Streams;

/// Events that a reader may be behind before it receives the whole state again.
const BEHIND_MAX: usize = 8;

/// What an event costs beside its bytes, in bytes: a reader is woken and its socket written to.
const EVENT_BYTES: usize = 256;

/// What a reader receives when it must request the state itself.
const TRUNCATED: &str = r#"{"type":"presence","truncated":true}"#;

/// The tenants that have readers here.
#[derive(Debug)]
pub(crate) struct Rooms {
    rooms: Mutex<HashMap<Arc<str>, Arc<Room>>>,
    next: AtomicU64,
    tick: Duration,
    tick_max: Duration,
    entries_max: usize,
    bytes_per_second: f64,
}

/// One tenant.
#[derive(Debug)]
struct Room {
    state: Mutex<State>,
    entries_max: usize,
}

#[derive(Debug)]
struct State {
    known: Known,
    /// All users who are present; nothing when they are more than fit an event.
    present: Option<BTreeMap<Uuid, Status>>,
    /// The same in the form of an event, once a reader has needed it.
    whole: Option<Arc<str>>,
    pending: Pending,
    /// No event goes out before.
    due: Instant,
    /// Whether the room knows how its tenant is.
    is_known: bool,
    /// The last events, and the number of the newest.
    events: VecDeque<Arc<str>>,
    newest: u64,
    /// How many readers there are, and those who wait.
    readers: usize,
    waiting: HashMap<u64, Waker>,
}

/// What readers have not received.
#[derive(Debug)]
enum Pending {
    Changes(BTreeMap<Uuid, (Status, i64)>),
    /// More than fits an event.
    TooMany,
    /// What they know is void.
    Whole,
}

/// A reader of a room.
#[derive(Debug)]
pub struct Watcher {
    room: Arc<Room>,
    number: u64,
    /// The last event that was sent; `None` before the whole state was.
    sent: Option<u64>,
}

impl Watcher {
    /// The next event: first all who are present, then what changes, as the data of an event `presence`. Waits as long as
    /// Redis is away. Safe to cancel.
    pub async fn next(&mut self) -> Arc<str> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same, when there is one.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Arc<str>> {
        let mut state = self.room.lock();
        let behind = self.sent.map(|sent| state.newest - sent);
        if let Some(behind @ 1..) = behind
            && let Ok(behind) = usize::try_from(behind)
            && let Some(event) = state
                .events
                .len()
                .checked_sub(behind)
                .and_then(|at| state.events.get(at))
        {
            self.sent = self.sent.map(|sent| sent + 1);
            return Poll::Ready(event.clone());
        }
        // A reader without the whole state, or too far behind, receives it, with all earlier events in it.
        if behind != Some(0) && state.is_known {
            self.sent = Some(state.newest);
            return Poll::Ready(state.whole());
        }
        state.waiting.insert(self.number, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.readers -= 1;
        state.waiting.remove(&self.number);
    }
}

/// One user in an event.
#[derive(Serialize)]
struct Line {
    user_id: Uuid,
    status: Status,
    #[serde(serialize_with = "time")]
    last_seen: Option<i64>,
}

#[derive(Serialize)]
struct Data {
    r#type: &'static str,
    snapshot: bool,
    version: u64,
    users: Vec<Line>,
}

fn time<S: Serializer>(ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    let time = ms.and_then(chrono::DateTime::from_timestamp_millis).map(Timestamp);
    time.serialize(serializer)
}

impl State {
    fn event(&self, snapshot: bool, users: Vec<Line>) -> Arc<str> {
        let data = Data {
            r#type: "presence",
            snapshot,
            version: self.known.version,
            users,
        };
        serde_json::to_string(&data).map_or(TRUNCATED.into(), Into::into)
    }

    /// All users who are present, or that they are too many for an event.
    fn whole(&mut self) -> Arc<str> {
        if let Some(whole) = &self.whole {
            return whole.clone();
        }
        let whole = match &self.present {
            None => TRUNCATED.into(),
            Some(present) => {
                let lines = present.iter().map(|(user, status)| Line {
                    user_id: *user,
                    status: *status,
                    last_seen: None,
                });
                self.event(true, lines.collect())
            }
        };
        self.whole.insert(whole).clone()
    }

    fn take(&mut self, entry: &Entry, entries_max: usize) {
        if let Some(present) = &mut self.present {
            match entry.status.is_present() {
                true => present.insert(entry.user, entry.status),
                false => present.remove(&entry.user),
            };
        }
        if let Pending::Changes(changes) = &mut self.pending {
            changes.insert(entry.user, (entry.status, entry.seen_ms));
            if changes.len() > entries_max {
                self.pending = Pending::TooMany;
            }
        }
    }

    /// What is to be sent, once.
    fn news(&mut self) -> Option<Arc<str>> {
        match std::mem::replace(&mut self.pending, Pending::Changes(BTreeMap::new())) {
            Pending::Changes(changes) if changes.is_empty() => None,
            Pending::Changes(changes) => {
                let lines = changes.into_iter().map(|(user_id, (status, seen))| Line {
                    user_id,
                    status,
                    last_seen: (!status.is_present()).then_some(seen),
                });
                Some(self.event(false, lines.collect()))
            }
            Pending::TooMany => Some(TRUNCATED.into()),
            Pending::Whole => Some(self.whole()),
        }
    }
}

impl Room {
    fn new(entries_max: usize) -> Self {
        Self {
            state: Mutex::new(State {
                known: Known::default(),
                present: Some(BTreeMap::new()),
                whole: None,
                pending: Pending::Whole,
                due: Instant::now(),
                is_known: false,
                events: VecDeque::new(),
                newest: 0,
                readers: 0,
                waiting: HashMap::new(),
            }),
            entries_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// What the room knows, for the next question.
    fn known(&self) -> Known {
        self.lock().known.clone()
    }

    /// Takes in what has changed. Gives whether there is more to ask for at once.
    fn take(&self, changes: Changes) -> bool {
        let mut state = self.lock();
        let is_few = changes.present <= self.entries_max;
        // Few again: who is present is learned from the beginning.
        let is_relearned = state.present.is_none() && changes.present <= self.entries_max * 3 / 4;
        if changes.is_new || is_relearned {
            state.present = is_few.then(BTreeMap::new);
            state.pending = Pending::Whole;
            // Who comes before all is learned waits.
            state.is_known = false;
        } else if !is_few {
            state.present = None;
        }
        if changes.is_new || is_relearned || !changes.entries.is_empty() || !is_few {
            state.whole = None;
        }
        if is_relearned && !changes.is_new {
            state.known = Known {
                version: 0,
                ..changes.known
            };
            return true;
        }
        for entry in &changes.entries {
            state.take(entry, self.entries_max);
        }
        state.known = changes.known;
        if changes.has_more && state.present.is_some() {
            return true;
        }
        if changes.has_more {
            // They are not sent one by one.
            state.pending = Pending::TooMany;
            state.known.version = changes.newest;
        }
        let waiting = match std::mem::replace(&mut state.is_known, true) {
            true => HashMap::new(),
            false => std::mem::take(&mut state.waiting),
        };
        drop(state);
        waiting.into_values().for_each(Waker::wake);
        false
    }
}

impl Rooms {
    pub(crate) fn new(settings: &config::Presence) -> Self {
        Self {
            rooms: Mutex::default(),
            next: AtomicU64::new(0),
            tick: Duration::from_millis(settings.tick_ms),
            tick_max: Duration::from_secs(settings.tick_seconds_max).max(Duration::from_millis(settings.tick_ms)),
            entries_max: settings.entries_max,
            bytes_per_second: settings.fanout_bytes_per_second as f64,
        }
    }

    pub(crate) fn watch(rooms: &Arc<Self>, tenant: &str) -> Watcher {
        let mut all = rooms.lock();
        let room = match all.get(tenant) {
            Some(room) => room.clone(),
            None => {
                let room = Arc::new(Room::new(rooms.entries_max));
                all.insert(tenant.into(), room.clone());
                room
            }
        };
        let number = rooms.next.fetch_add(1, Ordering::Relaxed);
        room.lock().readers += 1;
        drop(all);
        Watcher {
            room,
            number,
            sent: None,
        }
    }

    pub(crate) async fn run(&self, store: &PresenceStore, streams: &Streams, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_away = false;
        // Until then this process has sent its share.
        let mut free = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let rooms = self.open();
            if rooms.is_empty() {
                continue;
            }
            if was_away {
                // Else all users would be offline for a moment.
                streams.hold_all().await;
            }
            match self.ask(store, &rooms).await {
                // Redis lost its state, and receives it again before any reader does.
                Ok(is_lost) if is_lost && !was_away => {
                    streams.hold_all().await;
                    was_away = self.ask(store, &rooms).await.is_err();
                }
                Ok(_) => was_away = false,
                Err(error) => {
                    tracing::debug!(%error, "presence is not known");
                    was_away = true;
                }
            }
            self.tell(&rooms, &mut free);
        }
    }

    /// Rooms with readers; the others are closed.
    fn open(&self) -> Vec<(Arc<str>, Arc<Room>)> {
        let mut rooms = self.lock();
        rooms.retain(|_, room| Arc::strong_count(room) > 1);
        rooms
            .iter()
            .map(|(tenant, room)| (tenant.clone(), room.clone()))
            .collect()
    }

    /// Asks for what has changed. Gives whether what was known is void.
    async fn ask(&self, store: &PresenceStore, rooms: &[(Arc<str>, Arc<Room>)]) -> Result<bool, Error> {
        let mut is_lost = false;
        let mut asking: Vec<&(Arc<str>, Arc<Room>)> = rooms.iter().collect();
        while !asking.is_empty() {
            let known: Vec<Known> = asking.iter().map(|(_, room)| room.known()).collect();
            let questions: Vec<(&str, &Known)> = asking.iter().map(|(tenant, _)| &**tenant).zip(&known).collect();
            let mut answers = store.poll(&questions, self.entries_max + 1).await?.into_iter();
            asking.retain(|(_, room)| {
                answers.next().is_some_and(|changes| {
                    is_lost |= changes.is_new && room.lock().is_known;
                    room.take(changes)
                })
            });
        }
        Ok(is_lost)
    }

    /// Sends what is due, as far as the process may.
    fn tell(&self, rooms: &[(Arc<str>, Arc<Room>)], free: &mut Instant) {
        let now = Instant::now();
        let mut rooms: Vec<&Arc<Room>> = rooms.iter().map(|(_, room)| room).collect();
        rooms.sort_by_key(|room| room.lock().due);
        for room in rooms {
            if *free > now + self.tick / 2 {
                return;
            }
            let mut state = room.lock();
            let readers = state.readers;
            if state.due > now || !state.is_known {
                continue;
            }
            let Some(mut event) = state.news() else { continue };
            if readers == 0 {
                continue;
            }
            let time_for = |event: &str| {
                let bytes = (event.len() + EVENT_BYTES) as f64 * readers as f64;
                Duration::from_secs_f64(bytes / self.bytes_per_second)
            };
            if time_for(&event) > self.tick_max {
                event = TRUNCATED.into();
            }
            let took = time_for(&event).min(self.tick_max);
            let wait = if *event == *TRUNCATED {
                self.tick_max
            } else {
                self.tick.max(took)
            };
            // A little less than whole ticks, so that none is missed by a hair.
            state.due = now + wait.saturating_sub(self.tick / 2);
            *free = (*free).max(now) + took;
            state.events.push_back(event);
            if state.events.len() > BEHIND_MAX {
                state.events.pop_front();
            }
            state.newest += 1;
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_values().for_each(Waker::wake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Room>>> {
        self.rooms.lock()
    }
}
