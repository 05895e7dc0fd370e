//! Ends connections whose clients do not go on: who reads no answers, or holds an HTTP/2 connection without a request.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::response::{self, Response};

/// Largest part of a body that HTTP/2 takes at once, so that a client that reads shows progress.
const PART_BYTES: usize = 32 * 1024;

/// Fails a write that makes no progress for a while.
#[derive(Debug)]
pub struct WriteTimeout {
    timeout: Duration,
    /// When the write that waits fails.
    timer: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, timer: None }
    }

    /// Passes the result of a write on, or fails it.
    pub fn check<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        timer
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A connection whose writes fail without progress.
#[derive(Debug)]
pub struct Timed<T> {
    io: T,
    timeout: WriteTimeout,
}

impl<T> Timed<T> {
    pub fn new(io: T, timeout: Duration) -> Self {
        Self {
            io,
            timeout: WriteTimeout::new(timeout),
        }
    }

    pub fn into_inner(self) -> T {
        self.io
    }
}

impl<T: Read + Unpin> Read for Timed<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<T: Write + Unpin> Write for Timed<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.timeout.check(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.timeout.check(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.io).poll_shutdown(context);
        self.timeout.check(context, closed)
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
        self.timeout.check(context, written)
    }
}

/// What an HTTP/2 connection has to do.
#[derive(Debug)]
struct Work {
    /// There was a request.
    has_begun: bool,
    /// Requests whose response has not ended.
    open: usize,
    /// Since when there are none.
    idle_since: Instant,
    /// When the last part of each response was taken, event streams excepted: their readers are watched elsewhere.
    taken: HashMap<u64, Instant>,
    next: u64,
}

/// Watches an HTTP/2 connection. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Mutex<Work>>);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Work {
            has_begun: false,
            open: 0,
            idle_since: Instant::now(),
            taken: HashMap::new(),
            next: 0,
        })))
    }
}

impl Activity {
    /// A request begins.
    pub fn begin(&self) -> OpenRequest {
        let mut work = self.0.lock();
        work.has_begun = true;
        work.open += 1;
        drop(work);
        OpenRequest(self.clone())
    }

    /// Whether there was a request.
    pub fn has_begun(&self) -> bool {
        self.0.lock().has_begun
    }

    /// How long the connection has had no request.
    pub fn idle(&self) -> Option<Duration> {
        let work = self.0.lock();
        (work.open == 0).then(|| work.idle_since.elapsed())
    }

    /// The longest time for which the client has taken nothing of a response.
    pub fn stalled(&self) -> Option<Duration> {
        let work = self.0.lock();
        work.taken.values().min().map(Instant::elapsed)
    }
}

/// A request whose response has not ended.
#[derive(Debug)]
pub struct OpenRequest(Activity);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut work = self.0.0.lock();
        work.open -= 1;
        work.idle_since = Instant::now();
    }
}

impl OpenRequest {
    /// Watches an event stream: it may be silent.
    pub fn stream(self, response: Response) -> Response {
        self.watch(response, None)
    }

    /// Watches an ordinary response: the client must take it.
    pub fn ordinary(self, response: Response) -> Response {
        let id = {
            let mut work = self.0.0.lock();
            work.next += 1;
            let id = work.next;
            work.taken.insert(id, Instant::now());
            id
        };
        self.watch(response, Some(id))
    }

    fn watch(self, response: Response, id: Option<u64>) -> Response {
        response.map(|body| {
            let watched = WatchedBody {
                body,
                rest: Bytes::new(),
                id,
                request: self,
            };
            watched.boxed_unsync()
        })
    }
}

/// A body that records when it is taken.
struct WatchedBody {
    body: response::Body,
    /// What is left of the last frame.
    rest: Bytes,
    id: Option<u64>,
    request: OpenRequest,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Some(id) = this.id {
            this.request.0.0.lock().taken.insert(id, Instant::now());
        }
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let part = this.rest.split_to(this.rest.len().min(PART_BYTES));
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let inner = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.request.0.0.lock().taken.remove(&id);
        }
    }
}
