//! The connection to one client without hyper: a socket that was taken out of its HTTP/1 connection, or the body of an
//! HTTP/2 response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// A connection, encrypted or not.
pub type Connection = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The connection to one client.
#[derive(Debug)]
pub enum Wire {
    Socket(Socket),
    /// The body of an HTTP/2 response.
    Stream(Sender),
}

impl Wire {
    /// Writes all of `out`. Ready when it is written; a [`Wire::Stream`] buffers one portion until the client's window
    /// has room. Then `out` has released its memory, because a stream is idle most of the time.
    pub fn poll_write(&mut self, context: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<()>> {
        let written = match self {
            Self::Socket(socket) => socket.poll_write_all(context, out),
            Self::Stream(sender) => sender.poll_send(context, out),
        };
        if written.is_ready() {
            *out = BytesMut::new();
        }
        written
    }

    /// Reads from the client. Zero bytes mean the end of the connection; an HTTP/2 client does not send anything.
    pub fn poll_read(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => Pin::new(socket).poll_read(context, into),
            Self::Stream(sender) => sender.poll_gone(context).map(Ok),
        }
    }

    /// Ends the stream in order. Everything must have been written.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => Pin::new(&mut socket.io).poll_shutdown(context),
            Self::Stream(sender) => {
                sender.end(End::Complete);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Aborts the connection, so that the client does not take the stream for complete.
    pub fn cut(self) {
        match self {
            Self::Socket(_) => {}
            Self::Stream(sender) => sender.end(End::Cut),
        }
    }
}

/// A socket, and the bytes that were read from it already.
#[derive(Debug)]
pub struct Socket {
    io: Connection,
    read_ahead: Bytes,
    is_unflushed: bool,
}

impl Socket {
    pub fn new(io: Connection, read_ahead: Bytes) -> Self {
        Self {
            io,
            read_ahead,
            is_unflushed: false,
        }
    }

    fn poll_write_all(&mut self, context: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            self.is_unflushed = true;
            let count = ready!(Pin::new(&mut self.io).poll_write(context, out))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(count);
        }
        if self.is_unflushed {
            // TLS buffers encrypted bytes.
            ready!(Pin::new(&mut self.io).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read_ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, into);
        }
        let count = self.read_ahead.len().min(into.remaining());
        into.put_slice(&self.read_ahead.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Cut,
}

/// The buffer between a sender and its body: one portion.
#[derive(Debug, Default)]
struct Exchange {
    portion: Option<Bytes>,
    end: Option<End>,
    /// The body was dropped: the client is gone.
    is_gone: bool,
    sender: Option<Waker>,
    body: Option<Waker>,
}

impl Exchange {
    fn wake_body(&mut self) {
        if let Some(waker) = self.body.take() {
            waker.wake();
        }
    }

    fn wake_sender(&mut self) {
        if let Some(waker) = self.sender.take() {
            waker.wake();
        }
    }
}

/// Writes a body.
#[derive(Debug)]
pub struct Sender(Arc<Mutex<Exchange>>);

/// A body that its [`Sender`] writes.
#[derive(Debug)]
pub struct Stream(Arc<Mutex<Exchange>>);

/// A body and its sender.
pub fn stream() -> (Sender, Stream) {
    let exchange = Arc::default();
    (Sender(Arc::clone(&exchange)), Stream(exchange))
}

impl Sender {
    fn poll_send(&mut self, context: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<()>> {
        let mut exchange = self.0.lock();
        if exchange.is_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if exchange.portion.is_some() {
            exchange.sender = Some(context.waker().clone());
            return Poll::Pending;
        }
        exchange.portion = Some(out.split().freeze());
        exchange.wake_body();
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut exchange = self.0.lock();
        if exchange.is_gone {
            return Poll::Ready(());
        }
        exchange.sender = Some(context.waker().clone());
        Poll::Pending
    }

    fn end(&self, end: End) {
        let mut exchange = self.0.lock();
        exchange.end.get_or_insert(end);
        exchange.wake_body();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(End::Complete);
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut exchange = self.0.lock();
        if exchange.end == Some(End::Cut) {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        }
        if let Some(portion) = exchange.portion.take() {
            exchange.wake_sender();
            return Poll::Ready(Some(Ok(Frame::data(portion))));
        }
        if exchange.end.is_some() {
            return Poll::Ready(None);
        }
        exchange.body = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut exchange = self.0.lock();
        exchange.is_gone = true;
        exchange.wake_sender();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn body_yields_portions_and_ends_as_its_sender_does() {
        let write = |sender: &mut Sender, text: &str| {
            let mut out = BytesMut::from(text);
            sender.poll_send(&mut Context::from_waker(Waker::noop()), &mut out)
        };
        let (mut sender, mut body) = stream();
        assert!(write(&mut sender, "one").is_ready());
        assert!(write(&mut sender, "two").is_pending(), "one portion at a time");
        let first = body.frame().await.expect("a frame").expect("no error");
        assert_eq!(first.into_data().expect("data"), "one");
        assert!(write(&mut sender, "two").is_ready());
        drop(sender);
        let rest = body.collect().await.expect("a whole body").to_bytes();
        assert_eq!(rest, "two");

        let (sender, body) = stream();
        Wire::Stream(sender).cut();
        body.collect().await.expect_err("a body that was cut is not whole");

        let (mut sender, body) = stream();
        drop(body);
        assert!(matches!(write(&mut sender, "x"), Poll::Ready(Err(_))));
    }
}
