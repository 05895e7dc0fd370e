//! One reader's feed: history first, then live, each change once.
//!
//! The reader registers with the hub before it reads history, so nothing falls between the two; what the hub repeats is
//! recognised by its place. After a gap, history is read again from the last place seen.
//!
//! A page's feed holds an event back until Postgres shows its change; see [`super::visibility`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::held::{Held, Released, Truncated, published};
use super::visibility::{Look, Visibility};
use crate::contract::entry::Entry;
use crate::contract::group::Membership;
use crate::core::event;
use crate::core::position::StreamId;
use crate::live::hub::{Member, Signals, Subscription};
use crate::live::tail::Notice;
use crate::redis::read_position::ReadPosition;
use crate::redis::reading::Read;
use crate::redis::standing::{Missing, Standing};
use crate::redis::store::{Error, Store};
use crate::telemetry::traces;

/// Entries read at once in a replay.
const CHUNK: usize = 200;

/// Most of these reads for changes that Postgres does not show.
const UNSEEN_CHUNKS_MAX: usize = 50;

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
    ready: VecDeque<Ready>,
    visibility: Visibility,
    is_page: bool,
    /// What it does not show yet.
    held: Option<Box<Held>>,
    /// The place of the last event that was given.
    given: ReadPosition,
    history: History,
    missing: Missing,
    pause: Pause,
}

/// Whether a feed may give what the hub has, or reads the streams first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum History {
    /// It was read up to the feed's place.
    Read,
    /// Another session publishes: whether its history contains what was read before, the streams show.
    Unverified,
    /// Something was missed.
    Gap,
}

/// Whether the tenant is paused: what comes waits in the streams then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    None,
    Paused,
    /// It was when the feed began from now on, so that what waits is unknown.
    PausedFromTheStart,
}

impl Pause {
    /// The state when the tenant is found paused, or not.
    fn found(self, is_paused: bool) -> Self {
        match (is_paused, self) {
            (false, _) => Self::None,
            (true, Self::None) => Self::Paused,
            (true, paused) => paused,
        }
    }
}

/// How a feed is opened.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The place of the last event that the reader has; else it begins from now on.
    pub resume: Option<ReadPosition>,
    /// Up to so many entries of its history are delivered one by one.
    pub replay_max: usize,
    /// Whether Postgres shows what is published.
    pub visibility: Visibility,
    /// The reader reads rows from Postgres, so that it gets each event when Postgres shows its change. A device gets
    /// rows from the streams, which have them.
    pub is_page: bool,
}

/// An event that can be given.
#[derive(Debug)]
struct Ready {
    event: FeedEvent,
    place: ReadPosition,
    /// Postgres shows its change.
    is_shown: bool,
}

impl Ready {
    fn shown(event: FeedEvent, place: ReadPosition) -> Self {
        let is_shown = true;
        Self { event, place, is_shown }
    }
}

impl Feed {
    /// A feed of what a reader who is registered already has not seen.
    ///
    /// # Errors
    /// When Redis fails.
    pub async fn open(store: Store, subscription: Subscription, opening: Opening) -> Result<Self, Error> {
        let Opening {
            resume,
            replay_max,
            visibility,
            is_page,
        } = opening;
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
            visibility,
            is_page,
            held: None,
            given: place,
            history: History::Read,
            missing: standing.missing,
            pause: if standing.is_paused {
                Pause::PausedFromTheStart
            } else {
                Pause::None
            },
        };
        feed.set_groups(&standing);
        if resume.is_none() && !standing.missing.any() {
            Box::pin(feed.hold_unseen()).await;
            feed.beginning = feed.resumable(feed.place);
        }
        // What the groups of the user had meanwhile is in their streams only.
        if resume.is_some() || (!standing.missing.groups && !standing.members.groups.is_empty()) {
            feed.catch_up().await?;
        }
        Ok(feed)
    }

    /// Which of the user's streams did not exist when the feed was opened, or continuity was lost. What only the memberships
    /// lack must be read before [`Feed::close_gap`] goes on.
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
        while let Some(next) = self.ready.pop_front() {
            if let Some(Ready { event, place, .. }) = self.unless_held(next) {
                self.given = place;
                return Some((event, self.resumable(place)));
            }
        }
        // Most of its life a feed has no event.
        self.ready = VecDeque::new();
        None
    }

    /// Gives an event back, unless Postgres does not show its change, or shows earlier ones that are held: then it is next
    /// behind these.
    fn unless_held(&mut self, mut next: Ready) -> Option<Ready> {
        let (true, FeedEvent::Change(notice)) = (self.is_page, &next.event) else {
            return Some(next);
        };
        if !next.is_shown && notice.xid != 0 {
            let epoch = self.place.epoch;
            let look = self.visibility.known();
            let Some(look) = look.filter(|look| look.shows(epoch, published(notice))) else {
                let held = self.held.get_or_insert_with(|| Box::new(Held::new(epoch)));
                held.hold(notice.clone(), self.replay_max);
                return None;
            };
            next.is_shown = true;
            let released = self.held.as_mut().map(|held| held.release(&look).notices);
            if let Some(released) = released.filter(|released| !released.is_empty()) {
                self.forget_empty();
                let place = self.given;
                self.ready.push_front(next);
                for notice in released.into_iter().rev() {
                    self.ready.push_front(Ready::shown(FeedEvent::Change(notice), place));
                }
                return None;
            }
        }
        if let (Some(held), FeedEvent::Change(notice)) = (&mut self.held, &next.event)
            && matches!(notice.membership(), Some(Membership::Leave(_)))
        {
            // Nothing may name a row of the group behind this event.
            held.sum_up(notice.id);
        }
        Some(next)
    }

    fn forget_empty(&mut self) {
        if self.held.as_ref().is_some_and(|held| held.is_empty()) {
            self.held = None;
        }
    }

    /// The place from which a reader that has this place gets all that is held, too.
    fn resumable(&self, place: ReadPosition) -> ReadPosition {
        let held = self.held.as_ref().filter(|held| held.epoch() == place.epoch);
        let position = held.map_or(place.position, |held| held.from(place.position));
        if position == place.position {
            return place;
        }
        ReadPosition {
            position,
            resets_covered: Some(place.reach()),
            ..place
        }
    }

    fn release(&mut self, released: Released) {
        self.forget_empty();
        // What the snapshot lacked is shown.
        self.place.is_incomplete &= !released.has_truncated;
        let sum_up = released.has_truncated.then_some(FeedEvent::ReplayTruncated);
        let changes = released.notices.into_iter().map(FeedEvent::Change);
        // All before the feed's place was given, or is held.
        let place = self.place;
        let events = changes.chain(sum_up);
        self.ready.extend(events.map(|event| Ready::shown(event, place)));
    }

    /// Waits for what the hub has for this reader. To be taken in by [`Feed::take`].
    pub fn poll_signals(&mut self, context: &mut Context<'_>) -> Poll<Signals> {
        // A tenant that is paused gets nothing.
        if let (Some(held), Pause::None) = (&mut self.held, self.pause)
            && let Poll::Ready(released) = held.poll_shown(&self.visibility, context)
        {
            self.release(released);
            return Poll::Ready(Signals::default());
        }
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
        if signals.is_gap {
            self.history = History::Gap;
        }
        self.history != History::Read
    }

    /// Reads the history behind the last place. False when the user's memberships must be read first.
    ///
    /// # Errors
    /// When Redis fails; calling again tries again.
    pub async fn close_gap(&mut self) -> Result<bool, Error> {
        if !self.catch_up().await? {
            self.history = History::Gap;
            return Ok(false);
        }
        if std::mem::replace(&mut self.history, History::Read) == History::Gap {
            // Changes of devices are in no stream.
            self.push_event(FeedEvent::DeviceChanged(None));
        }
        Ok(true)
    }

    fn take_notice(&mut self, notice: &Arc<Notice>) {
        // In no stream and at a place that another event may have: it is delivered as often as it arrives.
        if notice.event == event::DEVICE_CHANGED {
            self.push_event(FeedEvent::DeviceChanged(Some(notice.xid)));
            return;
        }
        // For what is remembered here, not for readers.
        if notice.event == event::USER_SEEN {
            return;
        }
        if notice.event == event::TENANT_RESUMED {
            self.history = History::Gap;
            return;
        }
        if notice.term != self.place.term {
            self.history = self.history.max(History::Unverified);
            return;
        }
        // Behind a gap, history is read.
        if self.history != History::Read || self.pause != Pause::None || notice.id <= self.place.position {
            return;
        }
        if notice.event == event::TENANT_PAUSED {
            self.pause = self.pause.found(true);
            return;
        }
        if notice.op.is_break() {
            // The streams show what broke.
            self.history = History::Gap;
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
        if notice.event.is_empty() {
            return;
        }
        let mut parts = notice.parts();
        // Nearly every notice is one event, whose memory all of its readers share.
        let last = parts.pop().map_or(notice, Arc::new);
        for part in parts {
            let mut place = self.place;
            // A reader that resumes behind it gets the others of the same change.
            place.position = part.id.previous();
            self.ready.push_back(Ready {
                event: FeedEvent::Change(Arc::new(part)),
                place,
                is_shown: false,
            });
        }
        self.push_event(FeedEvent::Change(last));
    }

    fn push_event(&mut self, event: FeedEvent) {
        self.ready.push_back(Ready {
            event,
            place: self.place,
            is_shown: false,
        });
    }

    /// Reads history from the current place to its end. False when the user's memberships must be read first.
    async fn catch_up(&mut self) -> Result<bool, Error> {
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
                    self.pause = self.pause.found(true);
                    return Ok(true);
                }
                Err(error) => return Err(error),
            };
            (reading.position, reading.term) = (slice.end, slice.view.term);
            if let (true, Some(until)) = (slice.is_incomplete, reading.resets_covered) {
                // The streams may lack what Postgres does not show yet.
                let (changes, epoch) = (self.sum_up(self.place.position, until), self.place.epoch);
                let held = self.held.get_or_insert_with(|| Box::new(Held::new(epoch)));
                held.owe(changes);
                // So that a reader who resumes behind it is owed it as well.
                (self.place.is_incomplete, self.place.resets_covered) = (true, Some(until));
            }
            entries.extend(slice.entries);
            if entries.len() > self.replay_max {
                return self.jump(FeedEvent::ReplayTruncated).await;
            }
            if !knew_groups {
                let groups = slice.members.groups.keys();
                if !self.subscription.set_groups(groups, slice.view.position) {
                    return Err(Error::NotReached);
                }
            } else if !slice.has_more {
                break;
            }
        }
        self.place.term = reading.term;
        if std::mem::replace(&mut self.pause, Pause::None) == Pause::PausedFromTheStart {
            self.push_event(FeedEvent::ReplayTruncated);
        }
        for entry in entries {
            self.place.position = entry.id;
            self.trace(entry.id, "replay", entry.event_name());
            self.push(Arc::new(entry.into()));
        }
        Ok(true)
    }

    /// Lets the notices of the user's groups arrive, if the groups are known.
    fn set_groups(&self, standing: &Standing) -> bool {
        !standing.missing.groups && {
            let groups = standing.members.groups.keys();
            self.subscription.set_groups(groups, standing.view.position)
        }
    }

    /// Goes on from now, with one event for all that lies between. False when the user's memberships must be read first, since
    /// no event of a group would come.
    async fn jump(&mut self, event: FeedEvent) -> Result<bool, Error> {
        let Member { tenant, user, .. } = self.subscription.member();
        let standing = self.store.standing(tenant, *user).await?;
        self.missing = standing.missing;
        // Without the other streams, continuity ends again when they are there.
        if !self.set_groups(&standing) && standing.missing.is_groups_only() && !standing.is_paused {
            return Ok(false);
        }
        self.place = standing.place();
        self.pause = self.pause.found(standing.is_paused);
        self.push_event(event);
        Box::pin(self.hold_unseen()).await;
        Ok(true)
    }

    /// Holds what is published up to the feed's place and not shown: a reader that loads its rows now lacks it.
    pub async fn hold_unseen(&mut self) {
        let until = self.place.position;
        let look = self.visibility.look().await;
        let from = match &look {
            Some(look) => match look.position(self.place.epoch) {
                Some(from) if from < until => from,
                // Nothing, or the epoch has ended, which the next notice shows.
                _ => {
                    self.held = None;
                    return;
                }
            },
            None => StreamId::ZERO,
        };
        let mut held = Held::new(self.place.epoch);
        let unseen = match &look {
            Some(look) if self.is_page => self.unseen(look, from).await,
            // A device whose snapshot lacks rows takes another one then.
            _ => None,
        };
        match unseen {
            Some(unseen) => unseen.into_iter().for_each(|notice| held.hold(notice, self.replay_max)),
            None => {
                held.owe(self.sum_up(from, until));
                if !self.is_page {
                    // A device that resumes behind it is owed it as well.
                    (self.place.is_incomplete, self.place.resets_covered) = (true, Some(until));
                }
            }
        }
        self.held = (!held.is_empty()).then(|| Box::new(held));
    }

    /// Changes that the reader will be given as one event.
    fn sum_up(&self, from: StreamId, until: StreamId) -> Truncated {
        // A device resumes where it is: its cursor says what its snapshot lacks.
        let from = if self.is_page { from } else { until };
        Truncated { from, until }
    }

    /// The changes behind a place, up to the feed's, that are not shown; `None` if the streams cannot say it.
    async fn unseen(&self, look: &Look, from: StreamId) -> Option<Vec<Arc<Notice>>> {
        let Member { tenant, user, .. } = self.subscription.member();
        let until = self.place;
        let mut reading = ReadPosition {
            position: from,
            resets_covered: Some(until.position),
            ..until
        };
        let mut unseen = Vec::new();
        for _ in 0..UNSEEN_CHUNKS_MAX {
            let Ok(Read::Slice(slice)) = self.store.read(tenant, *user, reading, CHUNK).await else {
                return None;
            };
            (reading.position, reading.term) = (slice.end, slice.view.term);
            let entries = slice.entries.into_iter().take_while(|entry| entry.id <= until.position);
            let notices = entries.flat_map(|entry| events(Arc::new(Notice::from(entry))));
            unseen.extend(notices.filter(|notice| !look.shows(until.epoch, published(notice))));
            if slice.is_incomplete || unseen.len() > self.replay_max {
                return None;
            }
            if !slice.has_more || slice.end >= until.position {
                return Some(unseen);
            }
        }
        None
    }
}

/// The events that a reader is given of a notice.
fn events(notice: Arc<Notice>) -> Vec<Arc<Notice>> {
    if notice.event.is_empty() {
        return Vec::new();
    }
    match notice.parts() {
        parts if parts.is_empty() => vec![notice],
        parts => parts.into_iter().map(Arc::new).collect(),
    }
}
