//! Taking a connection over: what goes on behind an answer's head belongs to somebody else.
//!
//! hyper keeps buffers and state for every HTTP/1 connection, which a stream that lives for hours does not need. So an
//! answer may bear a [`Upgrade`]. When it comes by, its head is written down here, hyper is taken apart, and the bare
//! socket goes to the owner whom the answer names. Over HTTP/2 the owner gets the body of the answer instead. An answer
//! of status 101 (RFC 9110, section 15.2.2) changes hands the same way.
//!
//! A body behind such a head has neither a length nor chunks: it ends with the connection (RFC 9112, section 6.3). The
//! connection cannot serve another request afterwards anyhow, HTTP/1.0 clients understand it too, and an `EventSource`
//! makes no difference between a stream that ends and one that breaks: it connects again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use chrono::Utc;
use hyper::StatusCode;
use hyper::header::{CONNECTION, DATE};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::either::Either;

use super::response::Response;
use super::wire::{Connection, Socket, Wire};

/// How long what was sent may be unconfirmed, in milliseconds.
#[cfg(target_os = "linux")]
const SILENCE_MAX_MS: u32 = 60_000;

/// What a new owner does until the client's end.
pub type Owning = Pin<Box<dyn Future<Output = ()> + Send>>;

type Owner = Box<dyn FnOnce(Wire, BytesMut) -> Owning + Send>;

/// Who goes on behind an answer's head. It travels in the answer's extensions.
#[derive(Clone)]
pub struct Upgrade(Arc<Mutex<Option<Owner>>>);

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}

impl Upgrade {
    /// Hands the way to the client to this owner, with what must be written to it first.
    pub fn new<F>(owner: impl FnOnce(Wire, BytesMut) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(Mutex::new(Some(Box::new(move |wire, first| {
            Box::pin(owner(wire, first))
        })))))
    }

    /// Begins the owner's work.
    pub fn begin(self, wire: Wire, first: BytesMut) -> Option<Owning> {
        let owner = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(owner(wire, first))
    }
}

/// Where an HTTP/1 connection's service leaves an answer for whoever drives the connection.
#[derive(Debug, Default)]
pub struct UpgradedSocket {
    waiting: Mutex<Option<(Response, Upgrade)>>,
    /// Bytes of an earlier answer wait in hyper.
    is_blocked: AtomicBool,
}

impl UpgradedSocket {
    /// Leaves an answer that is to be taken over. The service must not answer any more.
    pub fn leave(&self, response: Response, takeover: Upgrade) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some((response, takeover));
    }

    /// An answer that was left, once all before it is written. To be asked whenever hyper has been polled.
    pub fn take(&self) -> Option<(Response, Upgrade)> {
        if self.is_blocked.load(Ordering::Relaxed) {
            return None;
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A connection as hyper sees it, which tells whether hyper still holds bytes that do not fit the socket.
#[derive(Debug)]
pub struct Watched {
    io: TokioIo<Connection>,
    handover: Arc<UpgradedSocket>,
}

impl Watched {
    pub fn new(io: Connection, handover: Arc<UpgradedSocket>) -> Self {
        Self {
            io: TokioIo::new(io),
            handover,
        }
    }

    /// The bare socket, of which this was read already.
    pub fn into_socket(self, ahead: Bytes) -> Socket {
        let io = self.io.into_inner();
        let stream = match &io {
            Either::Left(stream) => stream,
            Either::Right(encrypted) => encrypted.get_ref().0,
        };
        if let Err(error) = end_when_silent(stream) {
            tracing::debug!(%error, "a client that vanishes is missed late");
        }
        Socket::new(io, ahead)
    }

    /// hyper writes until all is written or the socket takes no more, so the last answer tells.
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.handover.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl Read for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.note(flushed)
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
        self.note(written)
    }
}

/// Ends a connection whose client has not confirmed for a while what was sent to it (RFC 5482): a phone without coverage
/// says nothing, and by itself the system tries for a quarter of an hour.
#[cfg(target_os = "linux")]
fn end_when_silent(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_user_timeout(stream, SILENCE_MAX_MS)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn end_when_silent(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// An answer's head as HTTP/1.1 writes it (RFC 9112, section 2.1). Who takes the connection over closes it, unless the
/// protocol was switched.
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
    fn a_head_ends_the_connection_with_its_body_unless_the_protocol_is_switched() {
        let mut answer = response::no_content();
        *answer.status_mut() = StatusCode::OK;
        answer.headers_mut().insert("x-a", HeaderValue::from_static("b"));
        let head = lines(&answer);
        assert_eq!(head[..2], ["HTTP/1.1 200 OK", "x-a: b"]);
        assert!(
            head[2].starts_with("date: ") && head[2].ends_with(" GMT"),
            "{}",
            head[2]
        );
        assert_eq!(head[3..], ["connection: close"]);

        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let head = lines(&answer);
        assert_eq!(head[0], "HTTP/1.1 101 Switching Protocols");
        assert!(head.contains(&"connection: upgrade".to_owned()) && !head.contains(&"connection: close".to_owned()));
    }
}
