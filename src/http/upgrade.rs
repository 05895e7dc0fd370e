//! Upgrades: what follows the head of a response bypasses hyper.
//!
//! hyper keeps buffers and state for every HTTP/1 connection, which a stream that is open for hours does not need. A
//! response may therefore carry an [`Upgrade`]. Over HTTP/1 its head is written here, hyper's connection is dismantled, and
//! the bare socket goes to the upgrade's handler. Over HTTP/2 the handler gets the body of the response instead. A
//! response of status 101 (RFC 9110, section 15.2.2) is upgraded the same way.
//!
//! The body after such a head has neither a length nor chunks: it ends with the connection (RFC 9112, section 6.3). The
//! connection could not serve another request anyway, HTTP/1.0 clients understand it too, and an `EventSource` treats the
//! end of a stream and a broken one alike: it reconnects.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use chrono::Utc;
use hyper::StatusCode;
use hyper::header::{CONNECTION, DATE};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::progress::Timed;
use super::response::Response;
use super::wire::{Connection, Socket, Wire};

/// The work of an upgraded connection, until it ends.
pub type UpgradeTask = Pin<Box<dyn Future<Output = ()> + Send>>;

type UpgradeHandler = Box<dyn FnOnce(Wire, BytesMut) -> UpgradeTask + Send>;

/// Takes the connection over after the head of a response. It is carried in the response's extensions.
#[derive(Clone)]
pub struct Upgrade(Arc<Mutex<Option<UpgradeHandler>>>);

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}

impl Upgrade {
    /// Passes the wire to this handler, with the bytes that it must write first.
    pub fn new<F>(handler: impl FnOnce(Wire, BytesMut) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(Mutex::new(Some(Box::new(move |wire, first| {
            Box::pin(handler(wire, first))
        })))))
    }

    /// Starts the handler; `None` if a clone was started before.
    pub fn start(self, wire: Wire, first: BytesMut) -> Option<UpgradeTask> {
        let handler = self.0.lock().take()?;
        Some(handler(wire, first))
    }
}

/// Where the service of an HTTP/1 connection leaves a response that upgrades it, for the task that drives the connection.
#[derive(Debug, Default)]
pub struct PendingUpgrade {
    waiting: Mutex<Option<(Response, Upgrade)>>,
    /// hyper still buffers bytes of an earlier response.
    is_blocked: AtomicBool,
}

impl PendingUpgrade {
    /// Leaves a response. The service must not complete afterwards.
    pub fn put(&self, response: Response, upgrade: Upgrade) {
        *self.waiting.lock() = Some((response, upgrade));
    }

    /// Takes the response, once all earlier ones are written. Call it whenever hyper was polled.
    pub fn take(&self) -> Option<(Response, Upgrade)> {
        if self.is_blocked.load(Ordering::Relaxed) {
            return None;
        }
        self.waiting.lock().take()
    }
}

/// The connection as hyper uses it; records whether hyper still buffers bytes that the socket does not accept.
#[derive(Debug)]
pub struct Http1Io {
    io: Timed<TokioIo<Connection>>,
    pending: Arc<PendingUpgrade>,
}

impl Http1Io {
    pub fn new(io: Connection, write_timeout: Duration, pending: Arc<PendingUpgrade>) -> Self {
        Self {
            io: Timed::new(TokioIo::new(io), write_timeout),
            pending,
        }
    }

    /// The bare socket; `read_ahead` was read from it already.
    pub fn into_socket(self, read_ahead: Bytes) -> Socket {
        Socket::new(self.io.into_inner().into_inner(), read_ahead)
    }

    /// hyper writes until its buffer is empty or the socket accepts no more, so the last result decides.
    fn record<T>(&self, written: Poll<T>) -> Poll<T> {
        self.pending.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl Read for Http1Io {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl Write for Http1Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.record(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.record(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.record(written)
    }
}

/// The head of a response in HTTP/1.1 (RFC 9112, section 2.1). The connection closes after the body, unless the protocol
/// is switched.
pub fn head(response: &Response) -> BytesMut {
    let status = response.status();
    let mut head = BytesMut::with_capacity(768);
    head.put_slice(b"HTTP/1.1 ");
    head.put_slice(status.as_str().as_bytes());
    head.put_u8(b' ');
    head.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.put_slice(b"\r\n");
    let mut line = |name: &str, value: &[u8]| {
        head.put_slice(name.as_bytes());
        head.put_slice(b": ");
        head.put_slice(value);
        head.put_slice(b"\r\n");
    };
    let headers = response.headers();
    for (name, value) in headers {
        line(name.as_str(), value.as_bytes());
    }
    if !headers.contains_key(DATE) {
        // RFC 9110, section 5.6.7.
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        line("date", date.as_bytes());
    }
    if status != StatusCode::SWITCHING_PROTOCOLS && !headers.contains_key(CONNECTION) {
        line("connection", b"close");
    }
    head.put_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::http::response;

    fn lines(response: &Response) -> Vec<String> {
        let head = head(response);
        let text = std::str::from_utf8(&head).expect("text");
        let lines = text.strip_suffix("\r\n\r\n").expect("an empty line at the end");
        lines.split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn head_closes_the_connection_unless_the_protocol_switches() {
        let mut response = response::no_content();
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().insert("x-a", HeaderValue::from_static("b"));
        let head = lines(&response);
        assert_eq!(head[..2], ["HTTP/1.1 200 OK", "x-a: b"]);
        assert!(
            head[2].starts_with("date: ") && head[2].ends_with(" GMT"),
            "{}",
            head[2]
        );
        assert_eq!(head[3..], ["connection: close"]);

        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let head = lines(&response);
        assert_eq!(head[0], "HTTP/1.1 101 Switching Protocols");
        assert!(head.contains(&"connection: upgrade".to_owned()) && !head.contains(&"connection: close".to_owned()));
    }
}
