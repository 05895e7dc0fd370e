//! What a live stream says to its client with: a wire form on a [`crate::http::wire::Wire`].

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::api::live::event::Event;
use crate::http::error::Error;

/// What was heard of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It wants to go on behind this cursor instead.
    Resume(String),
    /// It has ended the conversation, or can say nothing more that would be understood: the stream is to be closed.
    Done,
    /// It has gone, or closed its sending side, which tells the same here.
    Gone,
}

/// One client's wire form and the way to it. What is put in waits until [`EventSink::poll_flush`] takes it away.
pub trait EventSink: Send {
    /// What every stream begins with, before its first event: how long to wait before connecting again.
    fn begin(&mut self, retry: Duration);

    /// Puts an event behind what waits.
    fn put(&mut self, event: &Event<'_>);

    /// Puts in what shows that the server is there.
    fn heartbeat(&mut self);

    /// Puts in why what the client asked for last cannot be.
    fn refuse(&mut self, error: &Error);

    /// Writes what waits. Ready at once when nothing does.
    ///
    /// # Errors
    /// When the client is gone.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// What the client says. To be polled all the time, since its end is heard here.
    fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<Received>;

    /// Ends the stream in good order. All must have been flushed.
    ///
    /// # Errors
    /// When the client is gone.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the stream of a reader that is too slow.
    fn cut(self);
}
