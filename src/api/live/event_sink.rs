//! Event sinks: the transport of a live stream on a [`crate::http::wire::Wire`].

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::api::live::event::Event;
use crate::http::error::Error;

/// What was received from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Continue after this cursor instead.
    Resume(String),
    /// The client closed the stream or violated the protocol: the stream must be closed.
    Done,
    /// The client disconnected or closed its sending side.
    Gone,
}

/// The transport to one client. Output is buffered until [`EventSink::poll_flush`].
pub trait EventSink: Send {
    /// Starts the stream, before its first event; clients wait for `retry` before they reconnect.
    fn begin(&mut self, retry: Duration);

    /// Buffers an event.
    fn send(&mut self, event: &Event<'_>);

    /// Buffers a sign of life.
    fn heartbeat(&mut self);

    /// Buffers the error of the client's last request.
    fn refuse(&mut self, error: &Error);

    /// Writes the buffer. Ready at once if it is empty.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Receives from the client. Must be polled all the time, because it detects a disconnect.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received>;

    /// Ends the stream in order. Everything must have been flushed.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Aborts the stream of a slow reader.
    fn cut(self);
}
