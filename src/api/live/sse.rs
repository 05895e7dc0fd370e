//! `/sse`: live events as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! `Last-Event-ID` resumes after the event of that id; see [`crate::api::live`] for the events.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use http_body_util::BodyExt as _;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use tokio::io::ReadBuf;

use crate::accounts::tickets::Stream;
use crate::api::App;
use crate::api::live::event::Event;
use crate::api::live::event_sink::{EventSink, Received};
use crate::api::live::{Live, Reader};
use crate::api::request::Request;
use crate::api::tickets;
use crate::http::error::Error;
use crate::http::response::{self, Response};
use crate::http::upgrade::Upgrade;
use crate::http::wire::{self, Wire};

/// Bytes read from a client at once, and discarded: it sends nothing after its request.
const READ_BYTES: usize = 512;

/// `GET /sse/mobile/:device_id`.
///
/// # Errors
/// 403 for the stream of another device, 400 for an invalid id to resume from.
pub async fn mobile(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let device = request.device()?.clone();
    let wanted = Stream::Mobile(request.param("device_id").to_owned());
    tickets::check_own(&app, request.caller()?, &wanted).await?;
    open(app, &request, Reader::Device(device)).await
}

/// `GET /sse/web/:user_id`.
///
/// # Errors
/// 403 for the stream of another user, 400 for an invalid id to resume from. The response is 204 if the session was ended.
pub async fn web(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let caller = request.user()?;
    let wanted = Stream::Web(request.param_id("user_id", "user")?);
    tickets::check_own(&app, request.caller()?, &wanted).await?;
    match Reader::web(&app, caller).await? {
        Some(reader) => open(app, &request, reader).await,
        // 204 stops an EventSource from reconnecting (WHATWG HTML, section 9.2.3).
        None => Ok(response::no_content()),
    }
}

async fn open(app: Arc<App>, request: &Request, reader: Reader) -> Result<Response, Error> {
    let mut response = response::no_content();
    if request.method == Method::HEAD {
        Live::check(&app, &reader, request).await?;
        // A body of unknown length, as for GET.
        *response.body_mut() = wire::stream().1.boxed_unsync();
    } else {
        let live = Live::open(app, reader, request).await?;
        let upgrade = Upgrade::new(move |wire, out| live.run(Sse { wire, out }));
        response.extensions_mut().insert(upgrade);
    }
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, no-transform"),
    );
    // Prevents proxies such as nginx from buffering events.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(response)
}

/// Server-sent events to one client.
#[derive(Debug)]
struct Sse {
    wire: Wire,
    out: BytesMut,
}

impl EventSink for Sse {
    fn begin(&mut self, retry: Duration) {
        self.out.put_slice(b"retry: ");
        self.out
            .put_slice(itoa::Buffer::new().format(retry.as_millis()).as_bytes());
        self.out.put_slice(b"\n\n");
    }

    fn send(&mut self, event: &Event<'_>) {
        // The JSON has no line breaks, names are checked by the configuration, ids are base64.
        self.out.put_slice(b"event: ");
        self.out.put_slice(event.shown_name().as_bytes());
        if let Some(id) = event.id {
            self.out.put_slice(b"\nid: ");
            self.out.put_slice(id.as_bytes());
        }
        self.out.put_slice(b"\ndata: ");
        self.out.put_slice(event.data.as_bytes());
        self.out.put_slice(b"\n\n");
    }

    fn heartbeat(&mut self) {
        self.out.put_slice(b": heartbeat\n\n");
    }

    fn refuse(&mut self, _error: &Error) {
        // An SSE client cannot send requests on the stream.
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_write(context, &mut self.out)
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        let mut bytes = [0; READ_BYTES];
        let mut bytes = ReadBuf::new(&mut bytes);
        match self.wire.poll_read(context, &mut bytes) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !bytes.filled().is_empty() => {
                // Yields to other tasks: a client could send without end.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(_) => Poll::Ready(Received::Gone),
        }
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_close(context)
    }

    fn cut(self) {
        self.wire.cut();
    }
}
