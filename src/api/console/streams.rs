//! What the console follows: figures, and the life of rows, as server-sent events.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};

use super::Console;
use crate::admin::trace::{Filter, Trace};
use crate::api::request::Request;
use crate::http::error::{Code, Error};
use crate::http::request::uuid;
use crate::http::response::{self, Response};

/// Events that wait for a client.
const WAITING_MAX: usize = 64;

/// Pause after a failure of Redis.
const RETRY: Duration = Duration::from_secs(1);

/// Sends events to one client.
struct Events {
    out: mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Events {
    /// Waits for a slow client. False if it is gone.
    async fn send(&self, event: &str, data: &str) -> bool {
        self.out
            .send(format!("event: {event}\ndata: {data}\n\n").into())
            .await
            .is_ok()
    }

    /// Shows a proxy and the client that the stream is alive.
    async fn beat(&self) -> bool {
        self.out.send(Bytes::from_static(b": \n\n")).await.is_ok()
    }
}

/// A response whose events are sent by a task, which ends with the client or the server.
fn respond<F>(console: &Arc<Console>, run: impl FnOnce(Arc<Console>, Events) -> F) -> Result<Response, Error>
where
    F: Future<Output = ()> + Send + 'static,
{
    let permit = console.streams.clone().try_acquire_owned().map_err(|_| {
        Error::new(
            Code::OVERLOADED,
            "too many streams of the console are open; close one first",
        )
    })?;
    let (out, receiver) = mpsc::channel(WAITING_MAX);
    let running = run(console.clone(), Events { out, _permit: permit });
    let stop = console.stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled_owned(running).await });
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(bytes)), receiver))
    });
    let mut response = response::no_content();
    *response.body_mut() = StreamBody::new(chunks).boxed_unsync();
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(response)
}

/// `GET /admin/api/figures`: the last 15 minutes, then the figures of each second.
///
/// # Errors
/// 503 while too many streams are open.
pub async fn figures(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    respond(&console, |console, events| async move {
        let (history, mut following) = console.figures.watch();
        if !events.send("history", &history).await {
            return;
        }
        loop {
            match following.recv().await {
                Ok(figures) if events.send("figures", &figures).await => {}
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Ok(_) | Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    })
}

/// `GET /admin/api/trace`: changes as they are published, and their steps to each reader.
///
/// # Errors
/// 404 for an unknown tenant, 503 while Postgres or Redis is unavailable, or too many streams are open.
pub async fn trace(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let diagnostics = &console.diagnostics;
    let followed = console.tenants_named(&request).await?;
    let text = |name: &str| request.query.get(name).map(str::to_owned);
    let filter = Filter {
        table: text("table"),
        op: text("op"),
        row: text("row"),
        user: request.query.get("user").map(|id| uuid("user", id)).transpose()?,
    };
    let journal = &diagnostics.metrics.journal;
    // Without a tenant, those of the main lane: the steps of others are in no common order.
    let lane = match request.query.get("tenant") {
        Some(tenant) => diagnostics.lanes.of(tenant),
        None => diagnostics.lanes.main(),
    };
    let mut trace = Trace::begin(&lane.config, &lane.store, journal, &followed, filter).await?;
    respond(&console, |_, events| async move {
        // The head reaches the client with the first bytes.
        if !events.beat().await {
            return;
        }
        loop {
            let shown = match trace.next().await {
                Ok(shown) => shown,
                Err(error) => {
                    tracing::debug!(%error, "trace: Redis failed");
                    tokio::time::sleep(RETRY).await;
                    Vec::new()
                }
            };
            if shown.is_empty() && !events.beat().await {
                return;
            }
            for one in shown {
                if !events.send(one.event, &one.data.to_string()).await {
                    return;
                }
            }
        }
    })
}
