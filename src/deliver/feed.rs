//! One reader's feed: history first, then live, each change once.
//!
//! The reader registers with the hub before it reads history, so nothing falls between the two; what the hub repeats is
//! recognised by its place. After a gap, history is read again from the last place seen.

use std::collections::VecDeque;

use uuid::Uuid;

use super::entry::{Entry, Op};
use super::live::{Hub, Notice, Signal, Subscription};
use super::store::{Error, Missing, Place, Read, Store};
use crate::change::StreamId;

/// Entries read at once in a replay.
const CHUNK: usize = 200;

/// A change as a live reader learns of it: thin, the row itself comes by sync or request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its place.
    pub id: StreamId,
    /// The event's name.
    pub event: String,
    /// The table.
    pub table: String,
    /// What it is for this reader.
    pub op: Op,
    /// The row's id.
    pub row_id: Option<String>,
    /// Transaction id.
    pub xid: u32,
    /// What a message says, JSON.
    pub data: Option<String>,
}

/// What a feed gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedEvent {
    /// A change.
    Change(Change),
    /// More has come than is told one by one; all up to the feed's place is meant.
    SumUp,
    /// History breaks: only a snapshot tells what is.
    Reset,
    /// A device of the user has changed, maybe lost its standing, in the transaction of this id if that is known;
    /// nothing for the reader itself.
    DeviceChanged(Option<u32>),
}

/// Whose feed, and from where.
#[derive(Debug, Clone)]
pub struct Start {
    /// The tenant's name.
    pub tenant: String,
    /// The user.
    pub user: Uuid,
    /// The place of the last event that the reader has.
    pub resume: Option<Place>,
    /// Entries replayed one by one.
    pub replay_max: usize,
}

/// One reader's feed.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    subscription: Subscription,
    start: Start,
    place: Place,
    ready: VecDeque<(FeedEvent, Place)>,
    unread_gap: bool,
    missing: Missing,
    /// The tenant is paused: what comes waits in the streams.
    is_paused: bool,
    /// It was paused when the feed began from now on, so that nobody could tell what waits.
    owes_sum_up: bool,
}

impl Feed {
    /// Registers, then reads what the reader missed.
    ///
    /// # Errors
    /// When Redis fails.
    pub async fn open(store: Store, hub: &Hub, start: Start) -> Result<Self, Error> {
        let subscription = hub.subscribe(&start.tenant, start.user);
        let handoff = store.handoff(&start.tenant, start.user).await?;
        let now = Place {
            epoch: handoff.view.epoch,
            generation: handoff.generation,
            position: handoff.view.position,
        };
        let mut feed = Self {
            store,
            subscription,
            place: start.resume.unwrap_or(now),
            start,
            ready: VecDeque::new(),
            unread_gap: false,
            missing: handoff.missing,
            is_paused: handoff.is_paused,
            owes_sum_up: handoff.is_paused,
        };
        if feed.start.resume.is_some() {
            feed.catch_up().await?;
        }
        Ok(feed)
    }

    /// Which of the user's streams did not exist when the feed was opened.
    pub fn missing(&self) -> Missing {
        self.missing
    }

    /// The place of what was given last; before anything was given, where the feed begins.
    pub fn beginning(&self) -> Place {
        self.start.resume.unwrap_or(self.place)
    }

    /// The next events with their places; `None` when the process ends. Safe to cancel.
    ///
    /// # Errors
    /// When Redis fails while a gap is closed; calling again tries again.
    pub async fn next(&mut self) -> Result<Option<Vec<(FeedEvent, Place)>>, Error> {
        loop {
            if self.unread_gap {
                self.catch_up().await?;
                self.unread_gap = false;
                // Changes of devices are in no stream.
                self.ready.push_back((FeedEvent::DeviceChanged(None), self.place));
            }
            if !self.ready.is_empty() {
                return Ok(Some(self.ready.drain(..).collect()));
            }
            let Some(signal) = self.subscription.recv().await else {
                return Ok(None);
            };
            self.take(signal);
            while self.ready.len() < CHUNK
                && !self.unread_gap
                && let Some(signal) = self.subscription.try_recv()
            {
                self.take(signal);
            }
        }
    }

    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Notice(notice) => self.take_notice(&notice),
            Signal::Gap => self.unread_gap = true,
        }
    }

    fn take_notice(&mut self, notice: &Notice) {
        // In no stream and at a place that another event may have: it is told as often as it comes.
        if notice.event == "device_changed" {
            self.ready
                .push_back((FeedEvent::DeviceChanged(Some(notice.xid)), self.place));
            return;
        }
        // For what is remembered here, not for readers.
        if notice.event == "user_seen" {
            return;
        }
        if notice.event == "tenant_resumed" {
            self.unread_gap = true;
            return;
        }
        if self.is_paused || notice.id <= self.place.position {
            return;
        }
        if notice.event == "tenant_paused" {
            self.is_paused = true;
            return;
        }
        if notice.op == Op::Reset {
            // The streams tell what broke.
            self.unread_gap = true;
            return;
        }
        self.place.position = notice.id;
        self.push(Change {
            id: notice.id,
            event: notice.event.clone(),
            table: notice.table.clone(),
            op: notice.op,
            row_id: notice.row_id.clone(),
            xid: notice.xid,
            data: notice.data.clone(),
        });
    }

    fn push(&mut self, change: Change) {
        if !change.event.is_empty() {
            self.ready.push_back((FeedEvent::Change(change), self.place));
        }
    }

    /// Reads history from the current place to its end.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut reading = self.place;
        loop {
            let slice = match self
                .store
                .read(&self.start.tenant, self.start.user, reading, CHUNK)
                .await
            {
                Ok(Read::Slice(slice)) => slice,
                Ok(Read::Broken(_)) => return self.jump(FeedEvent::Reset).await,
                Err(Error::Paused) => {
                    self.is_paused = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            reading.position = slice.end;
            entries.extend(slice.entries);
            if entries.len() > self.start.replay_max {
                return self.jump(FeedEvent::SumUp).await;
            }
            if !slice.has_more {
                break;
            }
        }
        self.is_paused = false;
        if std::mem::take(&mut self.owes_sum_up) {
            self.ready.push_back((FeedEvent::SumUp, self.place));
        }
        for entry in entries {
            self.place.position = entry.id;
            let row_id = entry.row_id().map(|id| id.to_string());
            let data = entry.row.filter(|_| entry.op == Op::Message);
            self.push(Change {
                id: entry.id,
                row_id,
                event: entry.event.to_string(),
                table: entry.table.to_string(),
                op: entry.op,
                xid: entry.xid,
                data: data.map(|data| data.to_string()),
            });
        }
        Ok(())
    }

    /// Goes on from now, with one event for all that lies between.
    async fn jump(&mut self, event: FeedEvent) -> Result<(), Error> {
        let handoff = self.store.handoff(&self.start.tenant, self.start.user).await?;
        self.place = Place {
            epoch: handoff.view.epoch,
            generation: handoff.generation,
            position: handoff.view.position,
        };
        self.is_paused = handoff.is_paused;
        self.ready.push_back((event, self.place));
        Ok(())
    }
}
