//! `/ws`: live events over a WebSocket (RFC 6455), and items from its client.
//!
//! Events are those of [`crate::api::live::sse`], from the same loop and with the same ids, each a text frame of JSON; see
//! [`crate::api::live`]. Frames from the client are executed one after the other; while one is in progress, none is read and
//! TCP applies backpressure. tungstenite implements the protocol itself, its frames, masks and closing handshake; it reads
//! from the bare socket and writes to a buffer.
//!
//! Pages of other origins are refused unless the configuration lists them. This is defense in depth: no cookie
//! authenticates here, and a page cannot obtain the token or ticket of another.
//!
//! WebSockets over HTTP/2 (RFC 8441) are not supported; browsers then open an HTTP/1.1 connection.

pub(crate) mod items;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::header::ORIGIN;
use serde_json::{Value, json};
use tokio::io::ReadBuf;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error as Fault, Message, Utf8Bytes};

use self::items::Frame;
use crate::api::App;
use crate::api::admission::session_ended;
use crate::api::auth::Principal;
use crate::api::item_body::ItemBody;
use crate::api::live::event::Event;
use crate::api::live::event_sink::{EventSink, Received};
use crate::api::live::{Live, Reader};
use crate::api::request::Request;
use crate::config::Config;
use crate::core::json::write_string;
use crate::http::error::{Code, Error};
use crate::http::response::Response;
use crate::http::upgrade::Upgrade;
use crate::http::websocket::{self, Ends};
use crate::http::wire::Wire;

/// Size of the read buffer. Every connection has one, and most connections are idle.
const READ_BYTES: usize = 512;

/// Messages, or chunks of bytes, received from one client before other tasks run.
const MESSAGES_MAX: usize = 8;

/// Heartbeats without any frame from the client after which it is disconnected.
const UNANSWERED_MAX: u32 = 2;

/// Close code of the range for applications: the session was ended, the device revoked or the user disabled.
const REVOKED: CloseCode = CloseCode::Library(4401);

/// `GET /ws`.
///
/// # Errors
/// 400 for an invalid id to resume from, 401 if the session was ended, 403 for a page of another origin, 426 for a request
/// that does not open a WebSocket.
pub async fn open(app: Arc<App>, request: Request) -> Result<Response, Error> {
    check_origin(&app.config, &request)?;
    let mut response = websocket::accept(&request)?;
    let caller = request.caller()?.clone();
    let reader = match &caller {
        Principal::Device(device) => Reader::Device(device.clone()),
        Principal::Web(user) => Reader::web(&app, user).await?.ok_or_else(session_ended)?,
    };
    let live = Live::open(app.clone(), reader, &request).await?;
    let upgrade = Upgrade::new(move |wire, first| live.run(Socket::new(app, caller, wire, first)));
    response.extensions_mut().insert(upgrade);
    Ok(response)
}

/// Refuses pages of other origins (RFC 6455, section 10.2). Only browsers send an origin.
fn check_origin(config: &Config, request: &Request) -> Result<(), Error> {
    let Some(origin) = request.headers.get(ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = request.header("host").unwrap_or_default();
    if is_allowed(&config.server.cors_origins, &config.public_url(), host, origin) {
        Ok(())
    } else {
        Err(Error::new(
            Code::FORBIDDEN,
            "the origin is not allowed; see `server.cors_origins`",
        ))
    }
}

/// Whether an origin is listed, or the server's own by the `Host` header or the public URL.
fn is_allowed(listed: &[String], public_url: &str, host: &str, origin: &str) -> bool {
    let is_own = origin
        .split_once("://")
        .is_some_and(|(_, authority)| !authority.is_empty() && authority.eq_ignore_ascii_case(host));
    let is_public = public_url
        .strip_prefix(origin)
        .is_some_and(|rest| !origin.is_empty() && (rest.is_empty() || rest.starts_with('/')));
    is_own || is_public || listed.iter().any(|name| name == "*" || name == origin)
}

type Work = Pin<Box<dyn Future<Output = Vec<ItemBody>> + Send>>;

/// A WebSocket: sends events, receives items.
struct Socket {
    app: Arc<App>,
    caller: Principal,
    wire: Wire,
    out: BytesMut,
    protocol: WebSocketContext,
    /// Items in progress; meanwhile no frame is read.
    work: Option<Work>,
    /// Pings since the last frame of the client.
    unanswered: u32,
    /// The code and reason of the closing frame.
    close: (CloseCode, &'static str),
    /// No more frames are read.
    is_done: bool,
    /// The client violated the protocol.
    is_broken: bool,
    stage: Stage,
}

/// The progress of closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The closing frame is buffered or sent.
    Closing,
    /// Nothing more is written; received bytes are discarded.
    Shut,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

impl Socket {
    fn new(app: Arc<App>, caller: Principal, wire: Wire, first: BytesMut) -> Self {
        let bytes_max = app.config.websocket.message_bytes_max;
        let settings = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_frame_size(Some(bytes_max))
            .max_message_size(Some(bytes_max));
        Self {
            app,
            caller,
            wire,
            out: first,
            protocol: WebSocketContext::new(Role::Server, Some(settings)),
            work: None,
            unanswered: 0,
            close: (CloseCode::Normal, ""),
            is_done: false,
            is_broken: false,
            stage: Stage::Open,
        }
    }

    /// Buffers a frame. After the closing frame there are none.
    fn send_frame(&mut self, message: Message) {
        let mut ends = Ends {
            from: None,
            to: &mut self.out,
        };
        self.protocol.write(&mut ends, message).ok();
    }

    /// Sends the result of an item.
    fn send_result(&mut self, result: &ItemBody) {
        self.app.metrics.http.item_answered(result.status.as_str());
        self.send_reply("result", json!(result));
    }

    /// Sends a frame that is not an event of the stream.
    fn send_reply(&mut self, name: &str, mut data: Value) {
        data["type"] = name.into();
        self.send_frame(Message::text(json!({"event": name, "data": data}).to_string()));
    }

    /// Closes the connection of a client that violates the protocol.
    fn fail(&mut self, code: CloseCode, reason: &'static str) -> Received {
        self.is_broken = true;
        self.finish(code, reason)
    }

    /// Closes the connection with this code and reason.
    fn finish(&mut self, code: CloseCode, reason: &'static str) -> Received {
        self.close = (code, reason);
        self.is_done = true;
        Received::Done
    }

    /// Continues the items in progress.
    fn poll_work(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(work) = &mut self.work {
            let results = ready!(work.as_mut().poll(context));
            self.work = None;
            results.iter().for_each(|result| self.send_result(result));
        }
        Poll::Ready(())
    }

    /// Reads the next message, if it is complete.
    fn read(&mut self, context: &mut Context<'_>) -> Result<Message, Fault> {
        let mut ends = Ends {
            from: Some((&mut self.wire, context)),
            to: &mut self.out,
        };
        self.protocol.read(&mut ends)
    }

    /// Receives one message, if it is complete.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Received>> {
        let message = match self.read(context) {
            Ok(message) => message,
            Err(Fault::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            // Both sides have closed.
            Err(Fault::ConnectionClosed) => return Poll::Ready(Some(self.finish(CloseCode::Normal, ""))),
            Err(Fault::Capacity(_)) => {
                return Poll::Ready(Some(self.fail(CloseCode::Size, "the message is too large")));
            }
            Err(Fault::Utf8(_)) => {
                return Poll::Ready(Some(self.fail(CloseCode::Invalid, "text must be UTF-8")));
            }
            Err(Fault::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return Poll::Ready(Some(Received::Gone));
            }
            Err(Fault::Protocol(_)) => {
                return Poll::Ready(Some(self.fail(CloseCode::Protocol, "protocol error (RFC 6455)")));
            }
            Err(_) => return Poll::Ready(Some(Received::Gone)),
        };
        self.unanswered = 0;
        Poll::Ready(match message {
            Message::Text(text) => self.receive(&text),
            Message::Binary(_) => {
                self.refuse(&Error::new(Code::VALIDATION_ERROR, "a frame must be JSON text"));
                None
            }
            // tungstenite responds to pings and closing frames.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => None,
        })
    }

    fn receive(&mut self, text: &str) -> Option<Received> {
        match items::parse(text, self.app.config.websocket.items_max) {
            Ok(Frame::Resume(cursor)) => return Some(Received::Resume(cursor)),
            Ok(Frame::Ping(id)) => self.send_reply("pong", json!({"id": id})),
            Ok(Frame::Items(items)) => {
                let work = items::execute(self.app.clone(), self.caller.clone(), items, text.len());
                self.work = Some(Box::pin(work));
            }
            Err(error) => self.refuse(&error),
        }
        None
    }
}

impl EventSink for Socket {
    fn begin(&mut self, _retry: Duration) {}

    fn send(&mut self, event: &Event<'_>) {
        match event.name {
            "revoked" => self.close = (REVOKED, "revoked"),
            "bye" => self.close = (CloseCode::Restart, "the server shuts down"),
            _ => {}
        }
        let mut text = Vec::with_capacity(event.data.len() + 192);
        text.extend_from_slice(b"{\"event\":");
        write_string(event.shown_name(), &mut text);
        if let Some(id) = event.id {
            text.extend_from_slice(b",\"id\":");
            write_string(id, &mut text);
        }
        text.extend_from_slice(b",\"data\":");
        text.extend_from_slice(event.data.as_bytes());
        text.push(b'}');
        if let Ok(text) = Utf8Bytes::try_from(text) {
            self.send_frame(Message::Text(text));
        }
    }

    fn heartbeat(&mut self) {
        // Pongs are not read while items are in progress.
        if self.work.is_some() {
            return;
        }
        if self.unanswered == UNANSWERED_MAX {
            self.finish(CloseCode::Error, "no answer to pings");
            return;
        }
        self.unanswered += 1;
        self.send_frame(Message::Ping(Bytes::new()));
    }

    fn refuse(&mut self, error: &Error) {
        self.send_result(&ItemBody::failed(Value::Null, error));
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_write(context, &mut self.out)
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        if self.is_done {
            return Poll::Ready(Received::Done);
        }
        for _ in 0..MESSAGES_MAX {
            ready!(self.poll_work(context));
            // Frames are read only after results are written.
            if ready!(self.poll_flush(context)).is_err() {
                return Poll::Ready(Received::Gone);
            }
            if let Some(received) = ready!(self.poll_message(context)) {
                return Poll::Ready(received);
            }
        }
        // Yields to other tasks: a client could send without end.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_work(context));
        if self.stage == Stage::Open {
            let (code, reason) = self.close;
            let frame = CloseFrame {
                code,
                reason: reason.into(),
            };
            self.send_frame(Message::Close(Some(frame)));
            self.stage = Stage::Closing;
        }
        ready!(self.poll_flush(context))?;
        for _ in 0..MESSAGES_MAX {
            match self.stage {
                // The client's closing frame follows what it had sent before.
                Stage::Closing if !self.is_broken => match self.read(context) {
                    Ok(_) => {}
                    Err(Fault::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                    Err(_) => return self.wire.poll_close(context),
                },
                Stage::Open | Stage::Closing => {
                    ready!(self.wire.poll_close(context))?;
                    self.stage = Stage::Shut;
                }
                // Closing a socket with unread bytes could lose the last frame.
                Stage::Shut => {
                    let mut bytes = [0; READ_BYTES];
                    let mut bytes = ReadBuf::new(&mut bytes);
                    ready!(self.wire.poll_read(context, &mut bytes))?;
                    if bytes.filled().is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn cut(self) {
        self.wire.cut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_and_listed_origins_are_allowed() {
        let listed = ["https://app.example.com".to_owned()];
        let is_allowed = |origin: &str| is_allowed(&listed, "https://sync.example.com/base", "127.0.0.1:8080", origin);
        for own in [
            "http://127.0.0.1:8080",
            "https://127.0.0.1:8080",
            "https://sync.example.com",
            "https://app.example.com",
        ] {
            assert!(is_allowed(own), "{own}");
        }
        for other in [
            "",
            "null",
            "http://",
            "http://127.0.0.1",
            "http://127.0.0.1:80801",
            "https://sync.example.co",
            "https://app.example.com.evil.example",
            "http://app.example.com",
            "https://evil.example",
        ] {
            assert!(!is_allowed(other), "{other}");
        }
        assert!(super::is_allowed(&["*".to_owned()], "", "", "https://any.example"));
    }
}
