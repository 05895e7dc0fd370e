//! `/sse`: live events as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! An event's `id` is the cursor of its place, the same that batches use; `Last-Event-ID` resumes behind it. Events are
//! thin: a device fetches rows by sync, a web page by request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Channel};
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::App;
use super::error::{Code, Error};
use super::request::Request;
use super::response::{self, Response};
use super::tickets;
use crate::database::tenants::Tenant;
use crate::deliver::entry::Op;
use crate::deliver::feed::{Change, Feed, FeedEvent, Start};
use crate::deliver::store::Place;
use crate::domain::devices::DevicePrincipal;
use crate::domain::sessions::Watch;
use crate::domain::tickets::Stream;
use crate::domain::{messages, users};
use crate::route::rule::ENCRYPTED_STATES;
use crate::sync::cursor::{Cursor, Owner};
use crate::sync::{device_state, incoming, snapshot, states};
use crate::telemetry::metrics::Http;

/// Writes that may wait for a slow reader's socket, beside the feed's own queue.
const CHUNKS_MAX: usize = 8;

/// Pause before a feed that lost Redis looks again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a reader may leave no room for its events.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause before a device that has changed is looked at again, when its change could not be seen yet.
const RECHECK: Duration = Duration::from_millis(20);

/// Whose stream it is.
#[derive(Debug, Clone)]
enum Reader {
    Device(Arc<DevicePrincipal>),
    Web {
        tenant: Tenant,
        user: Uuid,
        /// The name under which presence knows this stream.
        page: String,
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

    /// The name under which presence knows this stream.
    fn presence_name(&self) -> &str {
        match self {
            Self::Device(device) => &device.device_id,
            Self::Web { page, .. } => page,
        }
    }

    /// Waits until the session of a web user was ended. Safe to cancel.
    async fn ended(&self) {
        match self {
            Self::Device(..) => std::future::pending().await,
            Self::Web { session, .. } => session.ended().await,
        }
    }
}

/// `GET /sse/mobile/:device_id`.
///
/// # Errors
/// 403 for another device's stream, 400 for a bad id to resume from, 503 while Redis is away.
pub async fn mobile(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let device = request.device()?.clone();
    let wanted = Stream::Mobile(request.param("device_id").to_owned());
    tickets::check_own(&app, request.caller()?, &wanted).await?;
    open(app, &request, Reader::Device(device)).await
}

/// `GET /sse/web/:user_id`.
///
/// # Errors
/// 403 for another user's stream, 400 for a bad id to resume from, 503 while Redis is away. 204 is the answer when the
/// session was ended.
pub async fn web(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let caller = request.user()?;
    let (tenant, user) = (caller.tenant.clone(), caller.user_id);
    let wanted = Stream::Web(request.param_id("user_id", "user")?);
    tickets::check_own(&app, request.caller()?, &wanted).await?;
    // Watched first: an end in between must not be missed.
    let session = Arc::new(app.sessions.watch(caller.session));
    if app.sessions.is_ended(caller.session).await? {
        // What tells an EventSource to stop for good (WHATWG HTML, section 9.2.3).
        return Ok(response::no_content());
    }
    let page = format!("web:{}", Uuid::new_v4());
    let reader = Reader::Web {
        tenant,
        user,
        page,
        session,
    };
    open(app, &request, reader).await
}

async fn open(app: Arc<App>, request: &Request, reader: Reader) -> Result<Response, Error> {
    let resume = resume_place(&app, request, &reader).await?;
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
    let waiting = match &reader {
        Reader::Device(device) => app.incoming.pending(device).await?,
        Reader::Web { .. } => 0,
    };
    let (sender, body) = Channel::<Bytes, io::Error>::new(CHUNKS_MAX);
    // The body goes with its connection, and the guard with the body.
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    let body = body.map_frame(move |frame| {
        let _held = &guard;
        frame
    });
    tokio::spawn(stream(app, feed, reader, waiting, sender, gone));

    let mut response = hyper::Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, no-transform"),
    );
    // Proxies such as nginx would otherwise hold events back.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(response)
}

/// Where the client wants to go on.
async fn resume_place(app: &App, request: &Request, reader: &Reader) -> Result<Option<Place>, Error> {
    let text = request
        .header("last-event-id")
        .or_else(|| request.query.get("last_event_id"))
        .or_else(|| request.query.get("lastEventId"))
        .filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(None) };
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
    Ok(Some(place))
}

/// An event in its wire form.
struct Event {
    name: &'static str,
    own_name: Option<String>,
    id: Option<String>,
    data: Value,
}

impl Event {
    fn new(name: &'static str, data: Value) -> Self {
        Self {
            name,
            own_name: None,
            id: None,
            data,
        }
    }

    fn write(&self, out: &mut BytesMut, metrics: &Http) {
        metrics.event_written(self.name);
        // JSON has no line breaks of its own, names are checked by the configuration, ids are base64.
        out.put_slice(b"event: ");
        out.put_slice(self.own_name.as_deref().unwrap_or(self.name).as_bytes());
        if let Some(id) = &self.id {
            out.put_slice(b"\nid: ");
            out.put_slice(id.as_bytes());
        }
        out.put_slice(b"\ndata: ");
        out.put_slice(self.data.to_string().as_bytes());
        out.put_slice(b"\n\n");
    }
}

/// Why a stream wakes.
enum Wake {
    Events(Vec<(FeedEvent, Place)>),
    Interrupted,
    Heartbeat,
    Recheck,
    Ended,
    Gone,
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

/// Feeds one stream until its client goes, its device loses its standing, or the server stops.
async fn stream(
    app: Arc<App>,
    mut feed: Feed,
    reader: Reader,
    waiting: usize,
    mut sender: http_body_util::channel::Sender<Bytes, io::Error>,
    gone: CancellationToken,
) {
    let settings = &app.config.sse;
    let metrics = &app.metrics.http;
    let heartbeat = Duration::from_secs(settings.heartbeat_seconds);
    let mut heartbeats = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
    let cursor = |place: Place| {
        app.cursors
            .encode(&reader.tenant().name, reader.owner(), &Cursor { place, page: None })
    };

    let mut out = BytesMut::new();
    let retry_ms = settings.retry_ms + random_up_to(settings.retry_ms);
    out.put_slice(format!("retry: {retry_ms}\n\n").as_bytes());
    let beginning = cursor(feed.beginning());
    Event::new("hello", json!({"type": "hello", "cursor": beginning})).write(&mut out, metrics);
    if waiting > 0 {
        let mut event = Event::new(
            "sync_required",
            json!({"type": "sync_required", "pending_count": waiting}),
        );
        event.id = Some(beginning);
        event.write(&mut out, metrics);
    }
    touch(&app, &reader, heartbeat).await;
    // A device of the user has changed, in this transaction if it is known, and was not looked at since.
    let mut unseen: Option<Option<u32>> = None;
    loop {
        if let Some(xid) = unseen {
            match standing(&app, &reader, xid).await {
                Standing::Kept => unseen = None,
                Standing::Unknown => {}
                Standing::Lost => {
                    Event::new("revoked", json!({"type": "revoked"})).write(&mut out, metrics);
                    let _ = sender.send_data(out.split().freeze()).await;
                    break;
                }
            }
        }
        if !out.is_empty() {
            let write = sender.send_data(out.split().freeze());
            match tokio::time::timeout(WRITE_TIMEOUT, write).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break,
                Err(_) => {
                    tracing::info!(user = %reader.user(), "a slow reader is cut; it resumes by its last id");
                    sender.abort(io::ErrorKind::TimedOut.into());
                    break;
                }
            }
        }
        let wake = tokio::select! {
            () = app.stop.cancelled() => Wake::Stop,
            () = gone.cancelled() => Wake::Gone,
            () = reader.ended() => Wake::Ended,
            () = tokio::time::sleep(RECHECK), if unseen.is_some() => Wake::Recheck,
            events = feed.next() => match events {
                Ok(Some(events)) => Wake::Events(events),
                Ok(None) => Wake::Stop,
                Err(error) => {
                    tracing::debug!(%error, "a feed waits for Redis");
                    Wake::Interrupted
                }
            },
            _ = heartbeats.tick() => Wake::Heartbeat,
        };
        match wake {
            Wake::Events(events) => {
                let wants_unread = matches!(reader, Reader::Web { .. });
                for (event, place) in events {
                    let mut event = match event {
                        FeedEvent::DeviceChanged(xid) => {
                            unseen = Some(xid);
                            continue;
                        }
                        FeedEvent::Change(change) if wants_unread => web_event(&app, &reader, change).await,
                        FeedEvent::Change(change) => mobile_event(change),
                        FeedEvent::SumUp => sum_up(&app, &reader).await,
                        FeedEvent::Reset => {
                            let mut event = Event::new("reset", json!({"type": "reset"}));
                            if !wants_unread {
                                event.id = Some(cursor(place));
                                event.write(&mut out, metrics);
                                event = sum_up(&app, &reader).await;
                            }
                            event
                        }
                    };
                    event.id = Some(cursor(place));
                    event.write(&mut out, metrics);
                }
            }
            Wake::Recheck => {}
            Wake::Gone => break,
            Wake::Ended => {
                Event::new("revoked", json!({"type": "revoked"})).write(&mut out, metrics);
                let _ = sender.send_data(out.split().freeze()).await;
                break;
            }
            Wake::Interrupted => tokio::time::sleep(RETRY).await,
            Wake::Heartbeat => {
                out.put_slice(b": heartbeat\n\n");
                touch(&app, &reader, heartbeat).await;
                // In case that the word of it was lost.
                if let Reader::Web { session, .. } = &reader {
                    app.sessions.recheck(session).await;
                }
            }
            Wake::Stop => {
                let delay = settings.retry_ms + random_up_to(settings.retry_ms);
                Event::new("bye", json!({"type": "bye", "reconnect_ms": delay})).write(&mut out, metrics);
                let _ = sender.send_data(out.split().freeze()).await;
                break;
            }
        }
    }
    let _ = app
        .presence
        .leave(&reader.tenant().name, reader.user(), reader.presence_name())
        .await;
}

/// Whether the reader may go on after what this transaction did.
async fn standing(app: &App, reader: &Reader, xid: Option<u32>) -> Standing {
    // In this order: what is seen now, the check behind it sees too.
    if let Some(xid) = xid
        && !matches!(app.devices.sees(xid).await, Ok(true))
    {
        return Standing::Unknown;
    }
    let Reader::Device(device) = reader else {
        return match users::is_active(&app.database, reader.tenant(), reader.user()).await {
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

async fn touch(app: &App, reader: &Reader, heartbeat: Duration) {
    // A missed heartbeat does not make a device offline.
    let ttl = 2 * heartbeat + Duration::from_secs(5);
    if let Err(error) = app
        .presence
        .touch(&reader.tenant().name, reader.user(), reader.presence_name(), ttl)
        .await
    {
        tracing::debug!(%error, "presence is not written");
    }
}

fn mobile_event(change: Change) -> Event {
    let mut event = plain_event(change);
    // The seed's name for a new message on a device's stream.
    if event.name == "new_message" {
        event.name = "message";
    }
    event
}

async fn web_event(app: &App, reader: &Reader, change: Change) -> Event {
    let xid = change.xid;
    let mut event = plain_event(change);
    if event.name == "new_message" {
        let unread = messages::unread_count_including(&app.database, reader.tenant(), reader.user(), xid).await;
        event.data["unread_count"] = match unread {
            Ok(count) => count.into(),
            Err(error) => {
                tracing::warn!(%error, "an unread count is missing");
                Value::Null
            }
        };
    }
    event
}

fn plain_event(change: Change) -> Event {
    let name = match change.event.as_str() {
        "new_message" => "new_message",
        "message_read" => "message_read",
        "message_synced" => "message_synced",
        "message_updated" => "message_updated",
        "message_deleted" => "message_deleted",
        "state_changed" => "state_changed",
        _ => "change",
    };
    if change.table == "messages" {
        return Event::new(name, json!({"type": name, "message_id": change.row_id}));
    }
    let own_name = (name != change.event).then(|| change.event.clone());
    let mut data = json!({"type": change.event, "table": change.table, "op": change.op.as_str(), "id": change.row_id});
    let told = change.data.and_then(|text| serde_json::from_str(&text).ok());
    match (told, data.as_object_mut()) {
        // What a message says is its author's, so it has a place of its own.
        (Some(said), _) if change.op == Op::Message => data["data"] = said,
        (Some(Value::Object(told)), Some(data)) => {
            data.extend(told);
            if change.table == ENCRYPTED_STATES {
                data.insert("kind".to_owned(), states::kind(change.op).into());
            }
        }
        _ => {}
    }
    Event {
        own_name,
        ..Event::new(name, data)
    }
}

async fn sum_up(app: &App, reader: &Reader) -> Event {
    let pending = match reader {
        Reader::Device(device) => app.incoming.pending(device).await.unwrap_or(1).max(1),
        Reader::Web { .. } => 1,
    };
    Event::new(
        "sync_required",
        json!({"type": "sync_required", "pending_count": pending}),
    )
}

fn random_up_to(bound: u64) -> u64 {
    getrandom::u64().map_or(0, |random| random % (bound + 1))
}
