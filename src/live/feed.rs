//! One reader's feed: history first, then live, each change once.
//!
//! The reader registers with the hub before it reads history, so nothing falls between the two; what the hub repeats is
//! recognised by its place. After a gap, history is read again from the last place seen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::contract::entry::Entry;
use crate::core::position::StreamId;
use crate::live::hub::{Member, Signals, Subscription};
use crate::live::tail::Notice;
use crate::redis::read_position::ReadPosition;
use crate::redis::store::{Error, Missing, Read, Standing, Store};
use crate::telemetry::traces;

/// Entries read at once in a replay.
const CHUNK: usize = 200;

/// What a feed gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedEvent {
    /// A change.
    Change(Arc<Notice>),
    /// More changes arrived than are delivered one by one; the event covers all up to the feed's position.
    ReplayTruncated,
    /// Continuity was lost: only a snapshot has the current rows.
    Reset,
    /// A device of the user has changed, maybe was revoked, in the transaction of this id if that is known;
    /// nothing for the reader itself.
    DeviceChanged(Option<u32>),
}

/// One reader's feed.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    subscription: Subscription,
    replay_max: usize,
    beginning: ReadPosition,
    place: ReadPosition,
    ready: VecDeque<(FeedEvent, ReadPosition)>,
    has_unread_gap: bool,
    /// Another session publishes: whether its history contains what was read before, the streams show.
    is_unverified: bool,
    missing: Missing,
    /// The tenant is paused: what comes waits in the streams.
    is_paused: bool,
    /// It was paused when the feed began from now on, so that what waits is unknown.
    owes_sum_up: bool,
}

impl Feed {
    /// A feed of what a reader who is registered already has not seen: behind the place of the last event that it has,
    /// else from now on. Up to `replay_max` entries of its history are delivered one by one.
    ///
    /// # Errors
    /// When Redis fails.
    pub async fn open(
        store: Store,
        subscription: Subscription,
        resume: Option<ReadPosition>,
        replay_max: usize,
    ) -> Result<Self, Error> {
        let Member { tenant, user, .. } = subscription.member();
        let standing = store.standing(tenant, *user).await?;
        let place = resume.unwrap_or(standing.place());
        let mut feed = Self {
            store,
            subscription,
            replay_max,
            beginning: place,
            place,
            ready: VecDeque::new(),
            has_unread_gap: false,
            is_unverified: false,
            missing: standing.missing,
            is_paused: standing.is_paused,
            owes_sum_up: standing.is_paused,
        };
        feed.set_groups(&standing);
        // What the groups of the user had meanwhile is in their streams only.
        if resume.is_some() || (!standing.missing.groups && !standing.members.groups.is_empty()) {
            feed.catch_up().await?;
        }
        Ok(feed)
    }

    /// Which of the user's streams did not exist when the feed was opened.
    pub fn missing(&self) -> Missing {
        self.missing
    }

    /// Returns the subscription, so that the feed can be opened again.
    pub fn into_subscription(self) -> Subscription {
        self.subscription
    }

    /// Where the feed began.
    pub fn beginning(&self) -> ReadPosition {
        self.beginning
    }

    /// The next event with its place, of those that are known.
    pub fn pop(&mut self) -> Option<(FeedEvent, ReadPosition)> {
        let next = self.ready.pop_front();
        if next.is_none() {
            // Most of its life a feed has no event.
            self.ready = VecDeque::new();
        }
        next
    }

    /// Waits for what the hub has for this reader. To be taken in by [`Feed::take`].
    pub fn poll_signals(&mut self, context: &mut Context<'_>) -> Poll<Signals> {
        self.subscription.poll_signals(context)
    }

    /// Waits for the end of all feeds. What the hub has otherwise waits there.
    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.subscription.poll_closed(context)
    }

    /// Takes in what the hub had. True when history must be read before the next event, by [`Feed::close_gap`].
    pub fn take(&mut self, signals: &Signals) -> bool {
        for notice in &signals.notices {
            self.take_notice(notice);
        }
        self.has_unread_gap |= signals.is_gap;
        self.must_read()
    }

    /// Reads the history behind the last place.
    ///
    /// # Errors
    /// When Redis fails; calling again tries again.
    pub async fn close_gap(&mut self) -> Result<(), Error> {
        self.catch_up().await?;
        self.is_unverified = false;
        if std::mem::take(&mut self.has_unread_gap) {
            // Changes of devices are in no stream.
            self.ready.push_back((FeedEvent::DeviceChanged(None), self.place));
        }
        Ok(())
    }

    /// History must be read before notices count.
    fn must_read(&self) -> bool {
        self.has_unread_gap || self.is_unverified
    }

    fn take_notice(&mut self, notice: &Arc<Notice>) {
        // In no stream and at a place that another event may have: it is delivered as often as it arrives.
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
            self.has_unread_gap = true;
            return;
        }
        if notice.term != self.place.term {
            self.is_unverified = true;
            return;
        }
        // Behind a gap, history is read.
        if self.must_read() || self.is_paused || notice.id <= self.place.position {
            return;
        }
        if notice.event == "tenant_paused" {
            self.is_paused = true;
            return;
        }
        if notice.op.is_break() {
            // The streams show what broke.
            self.has_unread_gap = true;
            return;
        }
        self.place.position = notice.id;
        self.trace(notice.id, "live", &notice.event);
        self.push(notice.clone());
    }

    /// Records that the reader is given a change, where its transaction's trace is sampled.
    fn trace(&self, id: StreamId, via: &'static str, event: &str) {
        if !event.is_empty()
            && let Some(transaction) = traces::Transaction::of(self.place.epoch, id)
        {
            transaction.delivered(via, event);
        }
    }

    fn push(&mut self, notice: Arc<Notice>) {
        if !notice.event.is_empty() {
            self.ready.push_back((FeedEvent::Change(notice), self.place));
        }
    }

    /// Reads history from the current place to its end.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let Member { tenant, user, .. } = self.subscription.member();
        let mut entries: Vec<Entry> = Vec::new();
        let mut reading = self.place;
        loop {
            let knew_groups = !self.store.has_groups() || self.subscription.knows_groups();
            let slice = match self.store.read(tenant, *user, reading, CHUNK).await {
                Ok(Read::Slice(slice)) => slice,
                // What a stopped stream lacks, only a snapshot has.
                Ok(Read::Broken(_)) | Err(Error::Stopped) => return self.jump(FeedEvent::Reset).await,
                Err(Error::Paused) => {
                    self.is_paused = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            (reading.position, reading.term) = (slice.end, slice.view.term);
            entries.extend(slice.entries);
            if entries.len() > self.replay_max {
                return self.jump(FeedEvent::ReplayTruncated).await;
            }
            if !knew_groups {
                let groups = slice.members.groups.keys();
                self.subscription.set_groups(groups, slice.view.position);
            } else if !slice.has_more {
                break;
            }
        }
        self.is_paused = false;
        self.place.term = reading.term;
        if std::mem::take(&mut self.owes_sum_up) {
            self.ready.push_back((FeedEvent::ReplayTruncated, self.place));
        }
        for entry in entries {
            self.place.position = entry.id;
            self.trace(entry.id, "replay", entry.event_name());
            self.push(Arc::new(entry.into()));
        }
        Ok(())
    }

    /// Lets the notices of the user's groups arrive, if the groups are known.
    fn set_groups(&self, standing: &Standing) {
        if !standing.missing.groups {
            let groups = standing.members.groups.keys();
            self.subscription.set_groups(groups, standing.view.position);
        }
    }

    /// Goes on from now, with one event for all that lies between.
    async fn jump(&mut self, event: FeedEvent) -> Result<(), Error> {
        let Member { tenant, user, .. } = self.subscription.member();
        let standing = self.store.standing(tenant, *user).await?;
        self.set_groups(&standing);
        self.place = standing.place();
        self.is_paused = standing.is_paused;
        self.ready.push_back((event, self.place));
        Ok(())
    }
}
