//! The page's stream of events: the states of the servers, and the trace of the engine, passed through. The stream outlives
//! the engine: the trace is opened again when the engine is up again.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use hyper::header::{ACCEPT, AUTHORIZATION};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::TENANT;
use super::control::Control;
use crate::config::{HttpUrl, Secret};
use crate::dev::state::{Phase, ServerState};
use crate::http::response::Body;
use crate::net::http::Client;
use crate::net::tls::Roots;

/// Events that wait for a slow page.
const EVENTS_MAX: usize = 64;

/// Interval of comments on an idle stream, which show that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Pauses before the trace is opened again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Timeout of the head of the trace.
const TRACE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one event of the trace.
const EVENT_BYTES_MAX: usize = 256 * 1024;

/// The admin listener of the engine.
#[derive(Debug, Clone)]
pub struct AdminListener {
    pub url: String,
    pub token: Secret,
}

impl AdminListener {
    /// A client of the listener, and a request with its credentials.
    pub(super) fn request(&self, method: hyper::Method, path: &str) -> Result<(Client, Request<Bytes>)> {
        let url: HttpUrl = self.url.parse().with_context(|| format!("{:?}", self.url))?;
        let client = Client::new(url, Roots::System, TRACE_TIMEOUT)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(AUTHORIZATION, format!("Bearer {}", self.token.expose()))
            .header(ACCEPT, "text/event-stream, application/json")
            .body(Bytes::new())?;
        Ok((client, request))
    }
}

/// The body of a stream of events, until the page leaves or `stop`. The permit is given back then.
pub(super) fn open(
    control: Control,
    admin: Option<AdminListener>,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Body {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    if let Some(admin) = admin {
        let (sender, stop, engine) = (sender.clone(), stop.clone(), control.engine.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = follow_trace(&admin, engine, &sender) => {}
                () = sender.closed() => {}
                () = stop.cancelled() => {}
            }
        });
    }
    tokio::spawn(async move {
        tokio::select! {
            // It ends when the page does not read any more.
            _ = follow_servers(control, &sender) => {}
            () = sender.closed() => {}
            () = stop.cancelled() => {}
        }
        drop(permit);
    });
    let frames = stream::unfold(events, |mut events: mpsc::Receiver<Bytes>| async {
        let event = events.recv().await?;
        Some((Ok(Frame::data(event)), events))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Sends the states of the servers, and each change of them.
async fn follow_servers(control: Control, sender: &mpsc::Sender<Bytes>) -> Result<()> {
    let Control {
        mut engine, mut redis, ..
    } = control;
    engine.mark_changed();
    redis.mark_changed();
    loop {
        let event = tokio::select! {
            changed = engine.changed() => {
                changed?;
                state_event("engine", *engine.borrow_and_update())?
            }
            changed = redis.changed() => {
                changed?;
                state_event("redis", *redis.borrow_and_update())?
            }
            () = tokio::time::sleep(HEARTBEAT) => Bytes::from_static(b":\n\n"),
        };
        sender.send(event).await?;
    }
}

fn state_event(name: &str, state: ServerState) -> Result<Bytes> {
    Ok(format!("event: {name}\ndata: {}\n\n", serde_json::to_string(&state)?).into())
}

/// Sends the events of the trace, over one connection after the other.
async fn follow_trace(admin: &AdminListener, mut engine: watch::Receiver<ServerState>, sender: &mpsc::Sender<Bytes>) {
    let mut pause = PAUSE_MIN;
    loop {
        let is_up = engine.wait_for(|state| state.state == Phase::Up).await.is_ok();
        if !is_up {
            return;
        }
        let mut has_begun = false;
        if let Err(error) = pass_trace(admin, sender, &mut has_begun).await {
            tracing::debug!(cause = format!("{error:#}"), "the trace of the engine has ended");
        }
        pause = if has_begun {
            PAUSE_MIN
        } else {
            (pause * 2).min(PAUSE_MAX)
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = engine.changed() => if changed.is_err() { return },
        }
    }
}

/// Passes the events of one connection to the trace on, whole.
async fn pass_trace(admin: &AdminListener, sender: &mpsc::Sender<Bytes>, has_begun: &mut bool) -> Result<()> {
    let path = format!("/admin/api/trace?tenant={TENANT}");
    let (client, request) = admin.request(hyper::Method::GET, &path)?;
    let mut response = client.open(request).await?;
    let status = response.head.status;
    if !status.is_success() {
        bail!("the admin listener answered {status}");
    }
    *has_begun = true;
    let mut buffer = BytesMut::new();
    while let Some(frame) = response.body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = memchr::memmem::find(&buffer, b"\n\n") {
            let event = buffer.split_to(end + 2).freeze();
            sender.send(event).await?;
        }
        if buffer.len() > EVENT_BYTES_MAX {
            bail!("an event of the trace has more than {EVENT_BYTES_MAX} bytes");
        }
    }
    Ok(())
}
