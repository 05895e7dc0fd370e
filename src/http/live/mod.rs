//! Live streams: one loop that tells one reader what changes, history first, then live, until one of both ends.
//!
//! The loop knows neither the wire form nor the connection: an [`outlet::Outlet`] has both. An event's `id` is the cursor
//! of its place, the same that batches use; a stream resumes behind it on whichever transport. Events are thin: a device
//! fetches rows by sync, a web page by request.

pub mod event;
pub mod outlet;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use uuid::Uuid;

use self::event::Event;
use self::outlet::{Heard, Outlet};
use super::App;
use super::auth::WebPrincipal;
use super::error::{Code, Error};
use super::request::Request;
use crate::database::tenants::Tenant;
use crate::deliver::feed::{Change, Feed, FeedEvent, Start};
use crate::deliver::presence;
use crate::deliver::store::Place;
use crate::domain::devices::DevicePrincipal;
use crate::domain::sessions::Watch;
use crate::domain::users;
use crate::sync::cursor::{Cursor, Owner};
use crate::sync::{device_state, incoming, snapshot};

/// Pause before a feed that lost Redis looks again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a reader may leave no room for its events.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the last words may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before a device that has changed is looked at again, when its change could not be seen yet.
const RECHECK: Duration = Duration::from_millis(20);

/// Whose stream it is.
#[derive(Debug, Clone)]
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
        session: Arc<Watch>,
    },
}

impl Reader {
    fn tenant(&self) -> &Tenant {
        match self {
            Self::Device(device) => &device.tenant,
            Self::Web { tenant, .. } => tenant,
        }
    }

    fn user(&self) -> Uuid {
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

    /// A user with an access token; `None` when its session was ended.
    ///
    /// # Errors
    /// 503 while Redis is away.
    pub async fn web(app: &App, user: &WebPrincipal) -> Result<Option<Self>, Error> {
        // Watched first: an end in between must not be missed.
        let session = Arc::new(app.sessions.watch(user.session));
        if app.sessions.is_ended(user.session).await? {
            return Ok(None);
        }
        Ok(Some(Self::Web {
            tenant: user.tenant.clone(),
            user: user.user_id,
            session,
        }))
    }

    /// Waits until the session of a web user was ended. Safe to cancel.
    async fn ended(&self) {
        match self {
            Self::Device(..) => std::future::pending().await,
            Self::Web { session, .. } => session.ended().await,
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
}

/// Why a stream wakes.
enum Wake {
    Events(Vec<(FeedEvent, Place)>),
    Presence(Arc<str>),
    Flushed,
    Interrupted,
    Resume(String),
    Heartbeat,
    Recheck,
    Ended,
    Done,
    Gone,
    Slow,
    Stop,
}

/// Whether a reader may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Kept,
    Lost,
    /// Postgres does not show the change yet, or does not answer.
    Unknown,
}

impl Live {
    /// Prepares a stream as a request wants it: from behind the id that it names, else from now on.
    ///
    /// # Errors
    /// 400 for a bad id to resume from or a bad parameter, 503 while Redis is away.
    pub async fn open(app: Arc<App>, reader: Reader, request: &Request) -> Result<Self, Error> {
        let wants_presence = request.query.parsed("presence", "true or false")?.unwrap_or(true);
        let (feed, waiting) = feed(&app, &reader, request.resume()).await?;
        Ok(Self {
            presence: wants_presence.then(|| app.presence.watch(&reader.tenant().name)),
            app,
            reader,
            feed,
            waiting,
            unseen: None,
        })
    }

    /// Tells the reader what comes until its client goes, it loses its standing, or the server stops.
    pub async fn run(mut self, mut outlet: impl Outlet) {
        let settings = self.app.config.sse.clone();
        let heartbeat = Duration::from_secs(settings.heartbeat_seconds);
        let mut heartbeats = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        outlet.begin(Duration::from_millis(
            settings.retry_ms + random_up_to(settings.retry_ms),
        ));
        self.greet(&mut outlet);
        let (tenant, user) = (&self.reader.tenant().name, self.reader.user());
        let here = self.app.presence.enter(tenant, user, &self.reader.place());
        here.seen().await;
        let mut is_written = false;
        let mut slow = Box::pin(tokio::time::sleep(WRITE_TIMEOUT));
        loop {
            if let Some(xid) = self.unseen
                && is_written
            {
                match self.standing(xid).await {
                    Standing::Kept => self.unseen = None,
                    Standing::Unknown => {}
                    Standing::Lost => {
                        self.put(&mut outlet, &Event::revoked());
                        break;
                    }
                }
            }
            let wake = tokio::select! {
                () = self.app.stop.cancelled() => Wake::Stop,
                () = self.reader.ended() => Wake::Ended,
                wake = poll_fn(|context| {
                    match outlet.poll_hear(context) {
                        Poll::Ready(Heard::Resume(id)) => return Poll::Ready(Wake::Resume(id)),
                        Poll::Ready(Heard::Done) => return Poll::Ready(Wake::Done),
                        Poll::Ready(Heard::Gone) => return Poll::Ready(Wake::Gone),
                        Poll::Pending => {}
                    }
                    match outlet.poll_flush(context) {
                        Poll::Ready(Ok(())) if is_written => Poll::Pending,
                        Poll::Ready(Ok(())) => Poll::Ready(Wake::Flushed),
                        Poll::Ready(Err(_)) => Poll::Ready(Wake::Gone),
                        Poll::Pending => Poll::Pending,
                    }
                }) => wake,
                () = &mut slow, if !is_written => Wake::Slow,
                () = tokio::time::sleep(RECHECK), if is_written && self.unseen.is_some() => Wake::Recheck,
                // While something waits to be written, what comes waits in the feed's queue, which has a bound.
                events = self.feed.next(), if is_written => match events {
                    Ok(Some(events)) => Wake::Events(events),
                    Ok(None) => Wake::Stop,
                    Err(error) => {
                        tracing::debug!(%error, "a feed waits for Redis");
                        Wake::Interrupted
                    }
                },
                event = presence_event(&mut self.presence), if is_written => Wake::Presence(event),
                _ = heartbeats.tick(), if is_written => Wake::Heartbeat,
            };
            match wake {
                Wake::Events(events) => {
                    for (event, place) in events {
                        self.tell(&mut outlet, event, place).await;
                    }
                    is_written = false;
                }
                Wake::Presence(data) => {
                    self.put(&mut outlet, &Event::presence(data));
                    is_written = false;
                }
                Wake::Flushed => is_written = true,
                Wake::Resume(id) => {
                    self.resume(&mut outlet, &id).await;
                    is_written = false;
                }
                Wake::Recheck => {}
                Wake::Done => break,
                Wake::Gone => return,
                Wake::Slow => {
                    tracing::info!(user = %self.reader.user(), "a slow reader is cut; it resumes by its last id");
                    outlet.cut();
                    return;
                }
                Wake::Ended => {
                    self.put(&mut outlet, &Event::revoked());
                    break;
                }
                Wake::Interrupted => tokio::time::sleep(RETRY).await,
                Wake::Heartbeat => {
                    outlet.beat();
                    is_written = false;
                    // In case that the word of it was lost.
                    if let Reader::Web { session, .. } = &self.reader {
                        self.app.sessions.recheck(session).await;
                    }
                }
                Wake::Stop => {
                    self.put(
                        &mut outlet,
                        &Event::bye(settings.retry_ms + random_up_to(settings.retry_ms)),
                    );
                    break;
                }
            }
            if !is_written {
                slow.as_mut().reset(tokio::time::Instant::now() + WRITE_TIMEOUT);
            }
        }
        let closing = poll_fn(|context| match outlet.poll_flush(context) {
            Poll::Ready(Ok(())) => outlet.poll_close(context),
            other => other,
        });
        let _gone_anyhow = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }

    /// Says where the stream begins, and whether something waits.
    fn greet(&self, outlet: &mut impl Outlet) {
        let beginning = self.cursor(self.feed.beginning());
        self.put(outlet, &Event::hello(&beginning));
        if self.waiting > 0 {
            let mut event = Event::sync_required(self.waiting);
            event.id = Some(beginning);
            self.put(outlet, &event);
        }
    }

    /// Begins anew behind an id that the client names. If that cannot be, all goes on as it was.
    async fn resume(&mut self, outlet: &mut impl Outlet, id: &str) {
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
    async fn tell(&mut self, outlet: &mut impl Outlet, event: FeedEvent, place: Place) {
        let id = Some(self.cursor(place));
        let is_web = matches!(self.reader, Reader::Web { .. });
        let mut event = match event {
            FeedEvent::DeviceChanged(xid) => {
                self.unseen = Some(xid);
                return;
            }
            FeedEvent::Change(change) if is_web => self.web_event(&change).await,
            FeedEvent::Change(change) => mobile_event(&change),
            FeedEvent::SumUp => self.sum_up().await,
            FeedEvent::Reset if is_web => Event::reset(),
            FeedEvent::Reset => {
                let mut event = Event::reset();
                event.id.clone_from(&id);
                self.put(outlet, &event);
                self.sum_up().await
            }
        };
        event.id = id;
        self.put(outlet, &event);
    }

    fn put(&self, outlet: &mut impl Outlet, event: &Event) {
        self.app.metrics.http.event_written(event.name);
        outlet.put(event);
    }

    fn cursor(&self, place: Place) -> String {
        let cursor = Cursor { place, page: None };
        let cursors = &self.app.cursors;
        cursors.encode(&self.reader.tenant().name, self.reader.owner(), &cursor)
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
            return match users::is_active(&app.database, self.reader.tenant(), self.reader.user()).await {
                Ok(true) => Standing::Kept,
                Ok(false) => Standing::Lost,
                Err(_) => Standing::Unknown,
            };
        };
        app.devices.invalidate(&device.tenant.name, device.user_id).await;
        match app.devices.check_again(device).await {
            Ok(_) => Standing::Kept,
            Err(crate::domain::Error::Unauthorized(_) | crate::domain::Error::NotFound(_)) => Standing::Lost,
            Err(_) => Standing::Unknown,
        }
    }

    async fn web_event(&self, change: &Change) -> Event {
        if change.event != "new_message" || change.table != "messages" {
            return Event::change(change);
        }
        let (tenant, user) = (self.reader.tenant(), self.reader.user());
        let unread = self.app.caches.unread_count_including(tenant, user, change.xid).await;
        if let Err(error) = &unread {
            tracing::warn!(%error, "an unread count is missing");
        }
        Event::new_message(change, unread.ok())
    }

    async fn sum_up(&self) -> Event {
        Event::sync_required(match &self.reader {
            Reader::Device(device) => self.app.incoming.pending(device).await.unwrap_or(1).max(1),
            Reader::Web { .. } => 1,
        })
    }
}

/// What the reader is told of who comes and goes.
async fn presence_event(watcher: &mut Option<presence::Watcher>) -> Arc<str> {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => std::future::pending().await,
    }
}

/// A feed from behind this id if there is one, else from now on; and how many things wait for a device.
async fn feed(app: &App, reader: &Reader, resume: Option<&str>) -> Result<(Feed, usize), Error> {
    let resume = match resume.filter(|text| !text.is_empty()) {
        Some(text) => Some(resume_place(app, reader, text).await?),
        None => None,
    };
    let start = Start {
        tenant: reader.tenant().name.clone(),
        user: reader.user(),
        resume,
        replay_max: app.config.sse.replay_events_max,
    };
    let mut feed = Feed::open(app.store.clone(), &app.hub, start.clone()).await?;
    if feed.missing().any() {
        // A lost stream would have nothing to tell for ever.
        snapshot::ensure_streams(&app.database, &app.store, reader.tenant(), reader.user())
            .await
            .map_err(incoming::Error::from)?;
        feed = Feed::open(app.store.clone(), &app.hub, start).await?;
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

fn mobile_event(change: &Change) -> Event {
    let mut event = Event::change(change);
    // The seed's name for a new message on a device's stream.
    if event.name == "new_message" {
        event.name = "message";
    }
    event
}

fn random_up_to(bound: u64) -> u64 {
    getrandom::u64().map_or(0, |random| random % (bound + 1))
}
