//! `/sse`: live events as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! `Last-Event-ID` resumes behind the event of that id; see [`crate::api::live`] for what is told.

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
use crate::api::live::outlet::{EventSink, Received};
use crate::api::live::{Live, Reader};
use crate::api::tickets;
use crate::http::error::Error;
use crate::http::request::Request;
use crate::http::response::{self, Response};
use crate::http::upgrade::Upgrade;
use crate::http::wire::{self, Wire};

/// Bytes of a client that are looked at, and thrown away, at once: behind its request it has nothing to say.
const READ_BYTES: usize = 512;

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
    let wanted = Stream::Web(request.param_id("user_id", "user")?);
    tickets::check_own(&app, request.caller()?, &wanted).await?;
    match Reader::web(&app, caller).await? {
        Some(reader) => open(app, &request, reader).await,
        // What tells an EventSource to stop for good (WHATWG HTML, section 9.2.3).
        None => Ok(response::no_content()),
    }
}

async fn open(app: Arc<App>, request: &Request, reader: Reader) -> Result<Response, Error> {
    let mut response = response::no_content();
    if request.method == Method::HEAD {
        Live::check(&app, &reader, request).await?;
        // As long as what a GET would bring: nobody knows.
        *response.body_mut() = wire::stream().1.boxed_unsync();
    } else {
        let live = Live::open(app, reader, request).await?;
        let takeover = Upgrade::new(move |wire, out| live.run(Sse { wire, out }));
        response.extensions_mut().insert(takeover);
    }
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

/// Server-sent events on their way to one client.
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

    fn put(&mut self, event: &Event<'_>) {
        // JSON has no line breaks of its own, names are checked by the configuration, ids are base64.
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
        // Nothing can be asked for behind the request.
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_write(context, &mut self.out)
    }

    fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        let mut bytes = [0; READ_BYTES];
        let mut bytes = ReadBuf::new(&mut bytes);
        match self.wire.poll_read(context, &mut bytes) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !bytes.filled().is_empty() => {
                // Others come first: a client could go on for ever.
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
