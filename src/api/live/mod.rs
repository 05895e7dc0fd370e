//! Live streams: one loop that tells one reader what changes, history first, then live, until one of both ends.
//!
//! The loop knows neither the wire form nor the connection: an [`outlet::EventSink`] has both. An event's `id` is the cursor
//! of its place, the same that batches use; a stream resumes behind it on whichever transport. Events are thin: a device
//! fetches rows by sync, a web page by request.

pub mod event;
pub mod outlet;
pub mod sse;
pub mod websocket;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;
use uuid::Uuid;

use self::event::Event;
use self::outlet::{EventSink, Received};
use crate::accounts::devices::DevicePrincipal;
use crate::accounts::sessions::Watch;
use crate::api::App;
use crate::api::auth::WebPrincipal;
use crate::core::tenant::Tenant;
use crate::http::error::{Code, Error};
use crate::http::request::Request;
use crate::live::feed::{Feed, FeedEvent};
use crate::live::hub::Signals;
use crate::live::presence;
use crate::live::tail::Notice;
use crate::redis::store::Place;
use crate::sync::cursor::{Cursor, Owner};
use crate::sync::{device_state, incoming, snapshot};

/// Pause before a feed that lost Redis looks again.
const RETRY: Duration = Duration::from_millis(500);

/// How long the last words may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before a device that has changed is looked at again, when its change could not be seen yet.
const RECHECK: Duration = Duration::from_millis(20);

/// Whose stream it is.
#[derive(Debug)]
pub enum Reader {
    /// A device's.
    Device(Arc<DevicePrincipal>),
    /// A web user's.
    Web {
        /// Their tenant.
        tenant: Tenant,
        /// Their id.
        user: Uuid,
        /// The end of the session that the access token is of.
        session: Watch,
    },
}

impl Reader {
    /// A user with an access token; `None` when its session was ended.
    ///
    /// # Errors
    /// 503 while Redis is away.
    pub async fn web(app: &App, user: &WebPrincipal) -> Result<Option<Self>, Error> {
        // Watched first: an end in between must not be missed.
        let session = app.sessions.watch(user.session);
        if app.sessions.is_ended(user.session).await? {
            return Ok(None);
        }
        Ok(Some(Self::Web {
            tenant: user.tenant.clone(),
            user: user.user_id,
            session,
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

    /// Where presence says that the user is.
    fn place(&self) -> presence::Place {
        match self {
            Self::Device(device) => presence::Place::Device(device.device_id.clone()),
            Self::Web { session, .. } => presence::Place::Session(session.session()),
        }
    }

    /// Ready when the session of a web user was ended.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Device(..) => Poll::Pending,
            Self::Web { session, .. } => session.poll_ended(context),
        }
    }
}

/// A stream that is ready to begin.
#[derive(Debug)]
pub struct Live {
    app: Arc<App>,
    reader: Reader,
    feed: Feed,
    /// Things that wait for a device.
    waiting: usize,
    /// Tells who comes and goes, unless the reader does not want to know.
    presence: Option<presence::Watcher>,
    /// A device of the user has changed, in this transaction if it is known, and was not looked at since.
    unseen: Option<Option<u32>>,
    /// When something is tried again that could not be found out.
    again: Option<Pin<Box<Sleep>>>,
    /// When a reader is too slow who has left no room for a while.
    slow: Option<Pin<Box<Sleep>>>,
}

/// Why a stream wakes.
enum Wake {
    Presence(Arc<str>),
    Signals(Signals),
    Resume(String),
    Ended,
    Done,
    Gone,
    Slow,
    Stop,
}

/// How a stream ends.
enum End {
    /// There are last words.
    Words,
    /// The client has gone.
    Gone,
    /// It is too slow.
    Slow,
}

/// Whether a reader may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Kept,
    Lost,
    /// Postgres does not show the change yet, or does not answer.
    Unknown,
}

// Tens of thousands of these wait at once. What is seldom awaited is therefore boxed, and takes memory only then.
impl Live {
    /// Looks whether a stream could begin as a request wants it, and prepares none.
    ///
    /// # Errors
    /// As [`Live::open`].
    pub async fn check(app: &App, reader: &Reader, request: &Request) -> Result<(), Error> {
        wants_presence(request)?;
        if let Some(id) = request.resume().filter(|id| !id.is_empty()) {
            resume_place(app, reader, id).await?;
        }
        Ok(())
    }

    /// Prepares a stream as a request wants it: from behind the id that it names, else from now on.
    ///
    /// # Errors
    /// 400 for a bad id to resume from or a bad parameter, 503 while Redis is away.
    pub async fn open(app: Arc<App>, reader: Reader, request: &Request) -> Result<Box<Self>, Error> {
        let wants_presence = wants_presence(request)?;
        let (feed, waiting) = feed(&app, &reader, request.resume()).await?;
        Ok(Box::new(Self {
            presence: wants_presence.then(|| app.presence.watch(&reader.tenant().name)),
            app,
            reader,
            feed,
            waiting,
            unseen: None,
            again: None,
            slow: None,
        }))
    }

    /// Tells the reader what comes until its client goes, it loses its standing, or the server stops.
    pub async fn run(mut self: Box<Self>, mut outlet: impl EventSink) {
        outlet.begin(self.retry());
        self.greet(&mut outlet);
        let (tenant, user) = (&self.reader.tenant().name, self.reader.user_id());
        let here = self.app.presence.enter(tenant, user, &self.reader.place());
        Box::pin(here.seen()).await;
        // What the history told is known already.
        let mut wake = Wake::Signals(Signals::default());
        let end = loop {
            if let Some(end) = self.act(&mut outlet, wake).await {
                break end;
            }
            wake = poll_fn(|context| self.poll_wake(&mut outlet, context)).await;
        };
        match end {
            End::Words => Box::pin(close(outlet)).await,
            End::Gone => drop(outlet),
            End::Slow => {
                tracing::info!(user = %self.reader.user_id(), "a slow reader is cut; it resumes by its last id");
                outlet.cut();
            }
        }
        drop(here);
    }

    fn poll_wake(&mut self, outlet: &mut impl EventSink, context: &mut Context<'_>) -> Poll<Wake> {
        match outlet.poll_hear(context) {
            Poll::Ready(Received::Resume(id)) => return Poll::Ready(Wake::Resume(id)),
            Poll::Ready(Received::Done) => return Poll::Ready(Wake::Done),
            Poll::Ready(Received::Gone) => return Poll::Ready(Wake::Gone),
            Poll::Pending => {}
        }
        if self.reader.poll_ended(context).is_ready() {
            return Poll::Ready(Wake::Ended);
        }
        match outlet.poll_flush(context) {
            Poll::Ready(Ok(())) => self.slow = None,
            Poll::Ready(Err(_)) => return Poll::Ready(Wake::Gone),
            // While something waits to be written, what comes waits in the hub, where there is a bound.
            Poll::Pending => {
                let patience = Duration::from_secs(self.app.config.live.write_timeout_seconds);
                let sleep = || Box::pin(tokio::time::sleep(patience));
                if self.slow.get_or_insert_with(sleep).as_mut().poll(context).is_ready() {
                    return Poll::Ready(Wake::Slow);
                }
                return self.feed.poll_closed(context).map(|()| Wake::Stop);
            }
        }
        if let Some(again) = &mut self.again
            && again.as_mut().poll(context).is_ready()
        {
            self.again = None;
            return Poll::Ready(Wake::Signals(Signals::default()));
        }
        if let Some(watcher) = &mut self.presence
            && let Poll::Ready(event) = watcher.poll_next(context)
        {
            return Poll::Ready(Wake::Presence(event));
        }
        self.feed.poll_signals(context).map(Wake::Signals)
    }

    /// Does what a wake is for. Gives how the stream ends, if it does.
    async fn act(&mut self, outlet: &mut impl EventSink, wake: Wake) -> Option<End> {
        match wake {
            Wake::Signals(signals) => self.pass_on(outlet, signals).await,
            Wake::Presence(data) => {
                self.put(outlet, &Event::presence(&data));
                None
            }
            Wake::Resume(id) => {
                Box::pin(self.resume(outlet, &id)).await;
                self.pass_on(outlet, Signals::default()).await
            }
            Wake::Ended => {
                self.put(outlet, &Event::revoked());
                Some(End::Words)
            }
            Wake::Stop => {
                let bye = Event::bye(self.retry().as_millis() as u64);
                self.put(outlet, &bye);
                Some(End::Words)
            }
            Wake::Done => Some(End::Words),
            Wake::Gone => Some(End::Gone),
            Wake::Slow => Some(End::Slow),
        }
    }

    /// Tells what the hub had, and what is known beside it.
    async fn pass_on(&mut self, outlet: &mut impl EventSink, signals: Signals) -> Option<End> {
        if self.feed.take(&signals) {
            Box::pin(self.close_gap()).await;
        }
        while let Some((event, place)) = self.feed.pop() {
            self.tell(outlet, event, place).await;
        }
        if signals.is_beat {
            outlet.heartbeat();
        }
        if signals.is_closed {
            let bye = Event::bye(self.retry().as_millis() as u64);
            self.put(outlet, &bye);
            return Some(End::Words);
        }
        if self.unseen.is_some() {
            return Box::pin(self.look(outlet)).await;
        }
        None
    }

    /// Reads what the hub has not told, and again in a moment if that cannot be had.
    async fn close_gap(&mut self) {
        if let Err(error) = self.feed.close_gap().await {
            tracing::debug!(%error, "a feed waits for Redis");
            self.again = Some(Box::pin(tokio::time::sleep(RETRY)));
        }
    }

    /// Says where the stream begins, and whether something waits.
    fn greet(&self, outlet: &mut impl EventSink) {
        let beginning = self.cursor(self.feed.beginning());
        self.put(outlet, &Event::hello(&beginning));
        if self.waiting > 0 {
            self.put(outlet, &Event::sync_required(self.waiting).at(&beginning));
        }
    }

    /// Begins anew behind an id that the client names. If that cannot be, all goes on as it was.
    async fn resume(&mut self, outlet: &mut impl EventSink, id: &str) {
        match feed(&self.app, &self.reader, Some(id)).await {
            Ok((feed, waiting)) => {
                self.feed = feed;
                self.waiting = waiting;
                self.greet(outlet);
            }
            Err(error) => outlet.refuse(&error),
        }
    }

    /// Puts what a feed gives into its reader's form.
    async fn tell(&mut self, outlet: &mut impl EventSink, event: FeedEvent, place: Place) {
        let cursor = self.cursor(place);
        match (event, &self.reader) {
            (FeedEvent::DeviceChanged(xid), _) => self.unseen = Some(xid),
            (FeedEvent::Change(notice), Reader::Web { .. }) if is_new_message(&notice) => {
                let unread = Box::pin(self.unread(&notice)).await;
                self.put(outlet, &Event::new_message(&notice, unread).at(&cursor));
            }
            (FeedEvent::Change(notice), reader) => {
                let mut event = Event::change(&notice).at(&cursor);
                // The seed's name for a new message on a device's stream.
                if event.name == "new_message" && matches!(reader, Reader::Device(_)) {
                    event.name = "message";
                }
                self.put(outlet, &event);
            }
            (FeedEvent::ReplayTruncated, _) => {
                let pending = Box::pin(self.pending()).await;
                self.put(outlet, &Event::sync_required(pending).at(&cursor));
            }
            (FeedEvent::Reset, reader) => {
                self.put(outlet, &Event::reset().at(&cursor));
                if matches!(reader, Reader::Device(_)) {
                    let pending = Box::pin(self.pending()).await;
                    self.put(outlet, &Event::sync_required(pending).at(&cursor));
                }
            }
        }
    }

    fn put(&self, outlet: &mut impl EventSink, event: &Event<'_>) {
        self.app.metrics.http.event_written(event.name);
        outlet.put(event);
    }

    fn cursor(&self, place: Place) -> String {
        let cursor = Cursor { place, page: None };
        let cursors = &self.app.cursors;
        cursors.encode(&self.reader.tenant().name, self.reader.owner(), &cursor)
    }

    /// How long a client is to wait before it connects again.
    fn retry(&self) -> Duration {
        let least = self.app.config.live.retry_ms;
        Duration::from_millis(least + random_up_to(least))
    }

    /// Looks whether the reader may go on, and again in a moment if nobody knows yet.
    async fn look(&mut self, outlet: &mut impl EventSink) -> Option<End> {
        let xid = self.unseen?;
        match self.standing(xid).await {
            Standing::Kept => self.unseen = None,
            Standing::Unknown => self.again = Some(Box::pin(tokio::time::sleep(RECHECK))),
            Standing::Lost => {
                self.put(outlet, &Event::revoked());
                return Some(End::Words);
            }
        }
        None
    }

    /// Whether the reader may go on after what this transaction did.
    async fn standing(&self, xid: Option<u32>) -> Standing {
        let app = &self.app;
        // In this order: what is seen now, the check behind it sees too.
        if let Some(xid) = xid
            && !matches!(app.devices.sees(xid).await, Ok(true))
        {
            return Standing::Unknown;
        }
        let Reader::Device(device) = &self.reader else {
            return match app
                .active
                .load((self.reader.tenant().clone(), self.reader.user_id()))
                .await
            {
                Ok(Some(_)) => Standing::Kept,
                Ok(None) => Standing::Lost,
                Err(_) => Standing::Unknown,
            };
        };
        match app.devices.check_again(device).await {
            Ok(_) => Standing::Kept,
            Err(crate::feature::Error::Unauthorized(_) | crate::feature::Error::NotFound(_)) => Standing::Lost,
            Err(_) => Standing::Unknown,
        }
    }

    /// How many messages a web user has not read, this one included.
    async fn unread(&self, notice: &Notice) -> Option<i64> {
        let (tenant, user) = (self.reader.tenant(), self.reader.user_id());
        let messages = &self.app.messages;
        messages
            .unread_count_including(tenant, user, notice.xid)
            .await
            .inspect_err(|error| tracing::warn!(cause = crate::telemetry::chain(error), "an unread count is missing"))
            .ok()
    }

    /// How many things wait; at least one, since that is why it is asked.
    async fn pending(&self) -> usize {
        match &self.reader {
            Reader::Device(device) => self.app.incoming.pending(device).await.unwrap_or(1).max(1),
            Reader::Web { .. } => 1,
        }
    }
}

/// Writes the last words and ends the stream.
async fn close(mut outlet: impl EventSink) {
    let closing = poll_fn(|context| match outlet.poll_flush(context) {
        Poll::Ready(Ok(())) => outlet.poll_close(context),
        other => other,
    });
    let _gone_anyhow = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
}

fn wants_presence(request: &Request) -> Result<bool, Error> {
    Ok(request.query.parsed("presence", "true or false")?.unwrap_or(true))
}

fn is_new_message(notice: &Notice) -> bool {
    notice.event == "new_message" && notice.table == "messages"
}

/// A feed from behind this id if there is one, else from now on; and how many things wait for a device.
async fn feed(app: &App, reader: &Reader, resume: Option<&str>) -> Result<(Feed, usize), Error> {
    let resume = match resume.filter(|text| !text.is_empty()) {
        Some(text) => Some(resume_place(app, reader, text).await?),
        None => None,
    };
    let (tenant, user) = (reader.tenant(), reader.user_id());
    let subscription = app.hub.subscribe(&tenant.name, user);
    let replay_max = app.config.live.replay_events_max;
    let mut feed = Feed::open(app.store.clone(), subscription, resume, replay_max).await?;
    if feed.missing().any() {
        // A lost stream would have nothing to tell for ever.
        snapshot::ensure_streams(&app.database, &app.store, tenant, user)
            .await
            .map_err(incoming::Error::from)?;
        feed = Feed::open(app.store.clone(), feed.into_subscription(), resume, replay_max).await?;
    }
    let waiting = match reader {
        Reader::Device(device) => app.incoming.pending(device).await?,
        Reader::Web { .. } => 0,
    };
    Ok((feed, waiting))
}

/// Where the client wants to go on.
async fn resume_place(app: &App, reader: &Reader, text: &str) -> Result<Place, Error> {
    let tenant = &reader.tenant().name;
    let cursor = app
        .cursors
        .decode(tenant, reader.owner(), text)
        .map_err(|error| Error::new(Code::InvalidCursor, error.to_string()).with("field", "last_event_id"))?;
    let mut place = cursor.place;
    // What a device has acknowledged needs no event any more, and may be trimmed already.
    if let Reader::Device(device) = reader {
        let state = device_state::read(&app.store, tenant, &device.device_id).await?;
        if let Some((epoch, acknowledged)) = state.acknowledged
            && epoch == place.epoch
        {
            place.position = place.position.max(acknowledged);
        }
    }
    Ok(place)
}

fn random_up_to(bound: u64) -> u64 {
    getrandom::u64().map_or(0, |random| random % (bound + 1))
}
