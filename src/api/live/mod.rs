//! Live streams: one loop that sends one reader the changes, history first, then live, until either side ends.
//!
//! The loop is independent of the transport, which is an [`event_sink::EventSink`]. An event's `id` is the cursor of its
//! place, the same that batches use; a stream resumes after it on any transport. Events contain no rows: a device reads
//! them by sync, a web page by request.

pub mod event;
pub mod event_sink;
pub mod sse;
pub mod websocket;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Sleep;
use uuid::Uuid;

use self::event::Event;
use self::event_sink::{EventSink, Received};
use crate::accounts::devices::DevicePrincipal;
use crate::accounts::sessions::{SessionClaim, Watch};
use crate::api::App;
use crate::api::auth::WebPrincipal;
use crate::api::request::Request;
use crate::contract::group::Membership;
use crate::contract::terms::Continuity;
use crate::core::event::NEW_MESSAGE;
use crate::core::position::StreamId;
use crate::core::slots::Slot;
use crate::core::tenant::Tenant;
use crate::core::time::unix_micros;
use crate::http::error::{Code, Error};
use crate::live::feed::{Feed, FeedEvent, Opening};
use crate::live::hub::Signals;
use crate::live::presence;
use crate::live::tail::Notice;
use crate::redis::read_position::ReadPosition;
use crate::sync::cursor::{Cursor, Owner};
use crate::sync::tables::Routing;
use crate::sync::{device_state, incoming, snapshot};
use crate::telemetry::journal::{ReaderProgress, ReaderStep, Step, StepKind};

/// Pause before a feed reads again after a failure of Redis.
const RETRY: Duration = Duration::from_millis(500);

/// How long the last events may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before a changed device is checked again, if its change is not visible yet.
const RECHECK: Duration = Duration::from_millis(20);

/// The reader of a stream.
#[derive(Debug)]
pub enum Reader {
    Device(Arc<DevicePrincipal>),
    Web {
        tenant: Tenant,
        user: Uuid,
        /// Reports the end of the session.
        session: Watch,
        claim: SessionClaim,
        /// When the token ends that opened the stream, if that ends it.
        expiry: Option<Pin<Box<Sleep>>>,
    },
}

impl Reader {
    /// A user with an access token; `None` if the session was ended.
    pub async fn web(app: &App, user: &WebPrincipal) -> Result<Option<Self>, Error> {
        // Watched first, so that an end in between is not missed.
        let claim = user.session_claim();
        let session = app.sessions.watch(claim.clone());
        if !app.sessions.is_live_everywhere(&claim).await? {
            return Ok(None);
        }
        Ok(Some(Self::Web {
            tenant: user.tenant.clone(),
            user: user.user_id,
            session,
            claim,
            expiry: user.expires_at.map(|at| Box::pin(tokio::time::sleep(time_until(at)))),
        }))
    }

    fn tenant(&self) -> &Tenant {
        match self {
            Self::Device(device) => &device.tenant,
            Self::Web { tenant, .. } => tenant,
        }
    }

    fn user_id(&self) -> Uuid {
        match self {
            Self::Device(device) => device.user_id,
            Self::Web { user, .. } => *user,
        }
    }

    fn owner(&self) -> Owner<'_> {
        match self {
            Self::Device(device) => Owner::Device(&device.device_id),
            Self::Web { user, .. } => Owner::User(*user),
        }
    }

    /// The device or session in presence.
    fn place(&self) -> presence::Place {
        match self {
            Self::Device(device) => presence::Place::Device(device.device_id.clone()),
            Self::Web { session, .. } => presence::Place::Session(session.session()),
        }
    }

    /// Ready when the session of a web user has ended.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Device(..) => Poll::Pending,
            Self::Web { session, .. } => session.poll_ended(context),
        }
    }

    /// Ready when the token of a web user has expired.
    fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Web {
                expiry: Some(expiry), ..
            } => expiry.as_mut().poll(context),
            _ => Poll::Pending,
        }
    }
}

/// A stream that is ready to start.
#[derive(Debug)]
pub struct Live {
    app: Arc<App>,
    reader: Reader,
    feed: Feed,
    /// Rows pending for a device.
    pending: usize,
    /// Counts against `live.streams_per_user_max`.
    _slot: Slot<(Arc<str>, Uuid)>,
    /// Presence events, unless the reader does not want them.
    presence: Option<presence::Watcher>,
    /// A device of the user has changed, in this transaction if it is known, and has not been checked since.
    unchecked: Option<Option<u32>>,
    /// When a failed read or check is repeated.
    retry_timer: Option<Pin<Box<Sleep>>>,
    /// When a reader counts as too slow, while output is pending.
    slow_timer: Option<Pin<Box<Sleep>>>,
}

/// Why a stream wakes.
enum Wake {
    Presence(Arc<str>),
    Signals(Signals),
    Resume(String),
    Ended,
    Expired,
    Done,
    Gone,
    Slow,
    Stop,
}

/// How a stream ends.
enum End {
    /// In order, after its last events.
    Closed,
    /// The client disconnected.
    Gone,
    /// The reader is too slow.
    Slow,
}

/// Whether a reader is still authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authorization {
    Valid,
    Revoked,
    /// The change is not visible in Postgres yet, or Postgres fails.
    Unknown,
}

// Tens of thousands of these are idle at once. Rare futures are boxed, so that they take memory only while they run.
impl Live {
    /// Checks whether a stream could be opened for a request, without opening it.
    pub async fn check(app: &App, reader: &Reader, request: &Request) -> Result<(), Error> {
        wants_presence(request)?;
        if let Some(id) = request.resume().filter(|id| !id.is_empty()) {
            resume_place(app, reader, id).await?;
        }
        Ok(())
    }

    /// Opens a stream for a request: after the id that it resumes from, else from now on.
    ///
    /// # Errors
    /// 400 for an invalid id, 429 while the user has `live.streams_per_user_max` streams.
    pub async fn open(app: Arc<App>, reader: Reader, request: &Request) -> Result<Box<Self>, Error> {
        let wants_presence = wants_presence(request)?;
        let key = (reader.tenant().name.as_str().into(), reader.user_id());
        let slot = app.streams.take(key).ok_or_else(|| {
            let max = app.config.live.streams_per_user_max;
            Error::new(
                Code::RATE_LIMITED,
                format!("this user has {max} open streams; close one first"),
            )
            .with("streams_max", max)
        })?;
        let (feed, pending) = feed(&app, &reader, request.resume()).await?;
        Ok(Box::new(Self {
            presence: wants_presence.then(|| app.lane(&reader.tenant().name).presence.watch(&reader.tenant().name)),
            app,
            reader,
            feed,
            pending,
            _slot: slot,
            unchecked: None,
            retry_timer: None,
            slow_timer: None,
        }))
    }

    /// Sends events until the client disconnects, its access is revoked, or the server stops.
    pub async fn run(mut self: Box<Self>, mut sink: impl EventSink) {
        sink.begin(self.retry());
        self.send_hello(&mut sink);
        let (tenant, user) = (&self.reader.tenant().name, self.reader.user_id());
        let here = self.app.lane(tenant).presence.enter(tenant, user, &self.reader.place());
        Box::pin(here.seen()).await;
        // Starts with the events of the history.
        let mut wake = Wake::Signals(Signals::default());
        let end = loop {
            if let Some(end) = self.handle(&mut sink, wake).await {
                break end;
            }
            wake = poll_fn(|context| self.poll_wake(&mut sink, context)).await;
        };
        match end {
            End::Closed => Box::pin(close(sink)).await,
            End::Gone => drop(sink),
            End::Slow => {
                tracing::info!(user = %self.reader.user_id(), "slow reader disconnected; it resumes from its last id");
                sink.cut();
            }
        }
        drop(here);
    }

    fn poll_wake(&mut self, sink: &mut impl EventSink, context: &mut Context<'_>) -> Poll<Wake> {
        match sink.poll_receive(context) {
            Poll::Ready(Received::Resume(id)) => return Poll::Ready(Wake::Resume(id)),
            Poll::Ready(Received::Done) => return Poll::Ready(Wake::Done),
            Poll::Ready(Received::Gone) => return Poll::Ready(Wake::Gone),
            Poll::Pending => {}
        }
        if self.reader.poll_ended(context).is_ready() {
            return Poll::Ready(Wake::Ended);
        }
        if self.reader.poll_expired(context).is_ready() {
            return Poll::Ready(Wake::Expired);
        }
        match sink.poll_flush(context) {
            Poll::Ready(Ok(())) => self.slow_timer = None,
            Poll::Ready(Err(_)) => return Poll::Ready(Wake::Gone),
            // While output is pending, events wait in the hub, which has a limit.
            Poll::Pending => {
                let timeout = Duration::from_secs(self.app.config.live.write_timeout_seconds);
                let sleep = || Box::pin(tokio::time::sleep(timeout));
                if self
                    .slow_timer
                    .get_or_insert_with(sleep)
                    .as_mut()
                    .poll(context)
                    .is_ready()
                {
                    return Poll::Ready(Wake::Slow);
                }
                return self.feed.poll_closed(context).map(|()| Wake::Stop);
            }
        }
        if let Some(timer) = &mut self.retry_timer
            && timer.as_mut().poll(context).is_ready()
        {
            self.retry_timer = None;
            return Poll::Ready(Wake::Signals(Signals::default()));
        }
        if let Some(watcher) = &mut self.presence
            && let Poll::Ready(event) = watcher.poll_next(context)
        {
            return Poll::Ready(Wake::Presence(event));
        }
        self.feed.poll_signals(context).map(Wake::Signals)
    }

    /// Handles a wake. Returns how the stream ends, if it does.
    async fn handle(&mut self, sink: &mut impl EventSink, wake: Wake) -> Option<End> {
        match wake {
            Wake::Signals(signals) => self.forward(sink, signals).await,
            Wake::Presence(data) => {
                self.send(sink, &Event::presence(&data));
                None
            }
            Wake::Resume(id) => {
                Box::pin(self.resume(sink, &id)).await;
                self.forward(sink, Signals::default()).await
            }
            Wake::Ended => {
                self.send(sink, &Event::revoked());
                Some(End::Closed)
            }
            // The client reconnects with another token.
            Wake::Expired | Wake::Stop => {
                let bye = Event::bye(self.retry().as_millis() as u64);
                self.send(sink, &bye);
                Some(End::Closed)
            }
            Wake::Done => Some(End::Closed),
            Wake::Gone => Some(End::Gone),
            Wake::Slow => Some(End::Slow),
        }
    }

    /// Sends the events of the hub, then handles its signals.
    async fn forward(&mut self, sink: &mut impl EventSink, signals: Signals) -> Option<End> {
        if self.feed.take(&signals) {
            Box::pin(self.close_gap()).await;
        }
        let mut has_joined = false;
        while let Some((event, place)) = self.feed.pop() {
            has_joined |= matches!(&event, FeedEvent::Change(notice) if is_join(notice));
            self.send_feed_event(sink, event, place).await;
        }
        if has_joined && matches!(self.reader, Reader::Device(_)) {
            // The snapshot of the group may lack what Postgres does not show yet.
            Box::pin(self.feed.hold_unseen()).await;
        }
        if signals.is_beat {
            sink.heartbeat();
        }
        if signals.is_closed {
            let bye = Event::bye(self.retry().as_millis() as u64);
            self.send(sink, &bye);
            return Some(End::Closed);
        }
        if self.unchecked.is_some() {
            return Box::pin(self.check_authorization(sink)).await;
        }
        None
    }

    /// Reads the events that the hub dropped; retries after a failure.
    async fn close_gap(&mut self) {
        match self.try_close_gap().await {
            Ok(true) => return,
            Ok(false) => tracing::debug!("feed waits for the memberships of its user"),
            Err(error) => tracing::debug!(cause = crate::telemetry::chain(&error), "feed waits for its streams"),
        }
        self.retry_timer = Some(Box::pin(tokio::time::sleep(RETRY)));
    }

    async fn try_close_gap(&mut self) -> Result<bool, incoming::Error> {
        if self.feed.close_gap().await? {
            return Ok(true);
        }
        ensure_streams(&self.app, &self.reader).await?;
        Ok(self.feed.close_gap().await?)
    }

    /// Sends the start of the stream, and whether rows are pending.
    fn send_hello(&self, sink: &mut impl EventSink) {
        let beginning = self.cursor(self.feed.beginning());
        self.send(sink, &Event::hello(&beginning));
        if self.pending > 0 {
            self.send(sink, &Event::sync_required(self.pending).at(&beginning));
        }
    }

    /// Restarts after an id from the client. On an error the stream continues unchanged.
    async fn resume(&mut self, sink: &mut impl EventSink, id: &str) {
        match feed(&self.app, &self.reader, Some(id)).await {
            Ok((feed, pending)) => {
                self.feed = feed;
                self.pending = pending;
                self.send_hello(sink);
            }
            Err(error) => sink.refuse(&error),
        }
    }

    /// Sends an event of the feed in the form of its reader.
    async fn send_feed_event(&mut self, sink: &mut impl EventSink, event: FeedEvent, place: ReadPosition) {
        let cursor = self.cursor(place);
        if let FeedEvent::Change(notice) = &event {
            self.note(notice.id);
        }
        match (event, &self.reader) {
            (FeedEvent::DeviceChanged(xid), _) => self.unchecked = Some(xid),
            (FeedEvent::Change(notice), Reader::Web { .. }) if is_new_message(&notice) => {
                let unread = Box::pin(self.unread(&notice)).await;
                self.send(sink, &Event::new_message(&notice, unread).at(&cursor));
            }
            (FeedEvent::Change(notice), reader) => {
                let mut event = Event::change(&notice).at(&cursor);
                // Device streams name a new message `message`.
                if event.name == NEW_MESSAGE && matches!(reader, Reader::Device(_)) {
                    event.name = "message";
                }
                self.send(sink, &event);
            }
            (FeedEvent::ReplayTruncated, _) => {
                let pending = Box::pin(self.count_pending()).await;
                self.send(sink, &Event::sync_required(pending).at(&cursor));
            }
            (FeedEvent::Reset, reader) => {
                self.send(sink, &Event::reset().at(&cursor));
                if matches!(reader, Reader::Device(_)) {
                    let pending = Box::pin(self.count_pending()).await;
                    self.send(sink, &Event::sync_required(pending).at(&cursor));
                }
            }
        }
    }

    /// Notes for the console that the reader is sent the event of a change.
    fn note(&self, id: StreamId) {
        self.app.metrics.journal.note(|| Step {
            kind: StepKind::Reader(Arc::new(ReaderStep {
                tenant: self.reader.tenant().name.clone(),
                user: self.reader.user_id(),
                device: match &self.reader {
                    Reader::Device(device) => Some(device.device_id.clone()),
                    Reader::Web { .. } => None,
                },
                progress: ReaderProgress::Notified(id),
            })),
            at: unix_micros(),
        });
    }

    fn send(&self, sink: &mut impl EventSink, event: &Event<'_>) {
        self.app.metrics.http.event_written(event.name);
        sink.send(event);
    }

    fn cursor(&self, place: ReadPosition) -> String {
        let cursor = Cursor { place, page: None };
        let cursors = &self.app.cursors;
        cursors.encode(&self.reader.tenant().name, self.reader.owner(), &cursor)
    }

    /// How long the client waits before it reconnects.
    fn retry(&self) -> Duration {
        let least = self.app.config.live.retry_ms;
        Duration::from_millis(least + random_up_to(least))
    }

    /// Checks whether the reader is still authorized; repeats the check while that is unknown.
    async fn check_authorization(&mut self, sink: &mut impl EventSink) -> Option<End> {
        let xid = self.unchecked?;
        match self.authorization(xid).await {
            Authorization::Valid => self.unchecked = None,
            Authorization::Unknown => self.retry_timer = Some(Box::pin(tokio::time::sleep(RECHECK))),
            Authorization::Revoked => {
                self.send(sink, &Event::revoked());
                return Some(End::Closed);
            }
        }
        None
    }

    /// Whether the reader is still authorized after this transaction.
    async fn authorization(&self, xid: Option<u32>) -> Authorization {
        let app = &self.app;
        // In this order: a change that is visible here is visible to the check below.
        if let Some(xid) = xid
            && !matches!(app.devices.sees(xid).await, Ok(true))
        {
            return Authorization::Unknown;
        }
        let device = match &self.reader {
            Reader::Device(device) => device,
            Reader::Web { claim, .. } => {
                return match app.sessions.is_live_now(claim).await {
                    Ok(true) => Authorization::Valid,
                    Ok(false) => Authorization::Revoked,
                    Err(_) => Authorization::Unknown,
                };
            }
        };
        match app.devices.check_again(device).await {
            Ok(_) => Authorization::Valid,
            Err(crate::feature::Error::Unauthorized(_) | crate::feature::Error::NotFound(_)) => Authorization::Revoked,
            Err(_) => Authorization::Unknown,
        }
    }

    /// How many messages a web user has not read, this one included.
    async fn unread(&self, notice: &Notice) -> Option<i64> {
        let (tenant, user) = (self.reader.tenant(), self.reader.user_id());
        let messages = &self.app.messages;
        messages
            .unread_count_including(tenant, user, notice.xid)
            .await
            .inspect_err(|error| tracing::warn!(cause = crate::telemetry::chain(error), "unread count unavailable"))
            .ok()
    }

    /// The number of pending rows; at least one, because something is pending.
    async fn count_pending(&self) -> usize {
        match &self.reader {
            Reader::Device(device) => {
                let incoming = &self.app.lane(&device.tenant.name).incoming;
                incoming.pending(device).await.unwrap_or(1).max(1)
            }
            Reader::Web { .. } => 1,
        }
    }
}

/// Writes the last events and ends the stream.
async fn close(mut sink: impl EventSink) {
    let closing = poll_fn(|context| match sink.poll_flush(context) {
        Poll::Ready(Ok(())) => sink.poll_close(context),
        other => other,
    });
    tokio::time::timeout(CLOSE_TIMEOUT, closing).await.ok();
}

fn wants_presence(request: &Request) -> Result<bool, Error> {
    Ok(request.query.parsed("presence", "true or false")?.unwrap_or(true))
}

fn is_join(notice: &Notice) -> bool {
    matches!(notice.membership(), Some(Membership::Join(_)))
}

fn is_new_message(notice: &Notice) -> bool {
    // A message to a group has many readers: each would count.
    notice.event == NEW_MESSAGE && notice.table == "messages" && notice.group_of_message().is_none()
}

/// A feed after this id if there is one, else from now on; and the number of rows pending for a device.
async fn feed(app: &App, reader: &Reader, resume: Option<&str>) -> Result<(Feed, usize), Error> {
    let resume = match resume.filter(|text| !text.is_empty()) {
        Some(text) => Some(resume_place(app, reader, text).await?),
        None => None,
    };
    let (tenant, user) = (reader.tenant(), reader.user_id());
    let lane = app.lane(&tenant.name);
    let subscription = lane.hub.subscribe(&tenant.name, user);
    let opening = Opening {
        resume,
        replay_max: app.config.live.replay_events_max,
        visibility: lane.visibility.clone(),
        is_page: matches!(reader, Reader::Web { .. }),
    };
    let mut feed = Feed::open(lane.store.clone(), subscription, opening.clone()).await?;
    if feed.missing().any() {
        // A missing stream would never deliver anything.
        ensure_streams(app, reader).await?;
        feed = Feed::open(lane.store.clone(), feed.into_subscription(), opening).await?;
    }
    let pending = match reader {
        Reader::Device(device) => lane.incoming.pending(device).await?,
        Reader::Web { .. } => 0,
    };
    Ok((feed, pending))
}

/// Creates the streams that a reader lacks, and reads its memberships.
async fn ensure_streams(app: &App, reader: &Reader) -> Result<(), incoming::Error> {
    let (tenant, user) = (reader.tenant(), reader.user_id());
    let routing = Routing::configured(&app.config);
    snapshot::ensure_streams(&app.database, &app.lane(&tenant.name).store, tenant, user, routing).await?;
    Ok(())
}

/// The place to resume from.
async fn resume_place(app: &App, reader: &Reader, text: &str) -> Result<ReadPosition, Error> {
    let tenant = &reader.tenant().name;
    let cursor = app
        .cursors
        .decode(tenant, reader.owner(), text)
        .map_err(|error| Error::new(Code::INVALID_CURSOR, error.to_string()).with("field", "last_event_id"))?;
    let mut place = cursor.place;
    // Acknowledged changes need no event, and may be trimmed already.
    if let Reader::Device(device) = reader {
        let store = &app.lane(tenant).store;
        let state = device_state::read(store, tenant, &device.device_id).await?;
        if let Some((epoch, acknowledged)) = state.acknowledged
            && epoch == place.epoch
            && acknowledged > place.position
        {
            // A place of a lost history stays as it is, so that the feed resets.
            let (view, continuity) = store.verify(place).await?;
            if continuity == Continuity::Valid {
                (place.position, place.term) = (acknowledged, view.term);
            }
        }
    }
    Ok(place)
}

/// The time until a number of seconds since 1970.
fn time_until(seconds: i64) -> Duration {
    let left = DateTime::from_timestamp(seconds, 0).map(|at| at - Utc::now());
    left.and_then(|left| left.to_std().ok()).unwrap_or_default()
}

fn random_up_to(bound: u64) -> u64 {
    getrandom::u64().map_or(0, |random| random % (bound + 1))
}
