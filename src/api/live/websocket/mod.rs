//! `/ws`: live events over a WebSocket (RFC 6455), and a way back for what its client does.
//!
//! Events are those of [`crate::api::live::sse`], from the same loop and with the same ids, each a text frame of JSON; see
//! [`crate::api::live`]. What comes from the client is carried out one frame after the other, and while one is under way
//! none is read: TCP holds the rest back. The protocol itself, its frames, masks and closing handshake, is
//! tungstenite's, which here reads from the bare socket and writes into a buffer.
//!
//! Pages of other origins are refused unless the configuration names them. Nothing depends on it, since no cookie lets
//! anybody in here and a page cannot know another's token or ticket; but what is refused needs no second thought.
//!
//! WebSockets over HTTP/2 (RFC 8441) are not offered; browsers then open an HTTP/1.1 connection by themselves.

mod items;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use hyper::header::{CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::ReadBuf;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error as Fault, Message, Utf8Bytes};

use self::items::{Answer, Said};
use crate::api::App;
use crate::api::auth::{Principal, unauthorized};
use crate::api::live::event::Event;
use crate::api::live::outlet::{EventSink, Received};
use crate::api::live::{Live, Reader};
use crate::config::Config;
use crate::decode::value::write_string;
use crate::http::error::{Code, Error};
use crate::http::request::Request;
use crate::http::response::{self, Response};
use crate::http::upgrade::Upgrade;
use crate::http::wire::Wire;

/// What is read at once. A connection keeps a buffer of it, and most say nothing most of the time.
const READ_BYTES: usize = 512;

/// Messages, or portions of bytes, that are taken at once from one client.
const MESSAGES_MAX: usize = 8;

/// Heartbeats that may go by without a word from the client.
const UNANSWERED_MAX: u32 = 2;

/// Close code: the session was ended, the device revoked or the user disabled. Of the range for applications.
const REVOKED: CloseCode = CloseCode::Library(4401);

/// `GET /ws`.
///
/// # Errors
/// 400 for a bad id to resume from, 401 when the session was ended, 403 for a page of a wrong_type origin, 426 for what is no
/// opening of a WebSocket, 503 while Redis is away.
pub async fn open(app: Arc<App>, request: Request) -> Result<Response, Error> {
    check_origin(&app.config, &request)?;
    let accept = opening(&request)?;
    let caller = request.caller()?.clone();
    let reader = match &caller {
        Principal::Device(device) => Reader::Device(device.clone()),
        Principal::Web(user) => Reader::web(&app, user)
            .await?
            .ok_or_else(|| unauthorized("this session was ended"))?,
    };
    let live = Live::open(app.clone(), reader, &request).await?;

    let mut response = response::no_content();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let takeover = Upgrade::new(move |wire, first| live.run(Socket::new(app, caller, wire, first)));
    response.extensions_mut().insert(takeover);
    Ok(response)
}

/// Reads the opening handshake (RFC 6455, section 4.2.1) and gives what accepts it.
fn opening(request: &Request) -> Result<HeaderValue, Error> {
    let has = |name, token: &str| {
        request
            .header(name)
            .is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let refused = |message: &str| Error::new(Code::UpgradeRequired, message);
    if request.method != Method::GET || !has("connection", "upgrade") || !has("upgrade", "websocket") {
        return Err(refused(
            "this is a WebSocket, which is opened by GET over HTTP/1.1 with Upgrade: websocket",
        ));
    }
    if request.header("sec-websocket-version") != Some("13") {
        return Err(refused("Sec-WebSocket-Version must be 13"));
    }
    let key = request
        .header("sec-websocket-key")
        .filter(|key| STANDARD.decode(key).is_ok_and(|bits| bits.len() == 16))
        .ok_or_else(|| Error::invalid("Sec-WebSocket-Key", "must be 16 bytes in base64"))?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|error| Error::internal(format!("an accepting header: {error}")))
}

/// Refuses a page of a wrong_type origin (RFC 6455, section 10.2). What is no browser names none.
fn check_origin(config: &Config, request: &Request) -> Result<(), Error> {
    let Some(origin) = request.headers.get(ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = request.header("host").unwrap_or_default();
    match is_welcome(&config.server.cors_origins, &config.public_url(), host, origin) {
        true => Ok(()),
        false => Err(Error::new(
            Code::Forbidden,
            "pages of this origin are not served here; see `server.cors_origins`",
        )),
    }
}

/// Whether an origin is one of those that are named, or this server's own, as the client or the configuration knows it.
fn is_welcome(named: &[String], public_url: &str, host: &str, origin: &str) -> bool {
    let is_own = origin
        .split_once("://")
        .is_some_and(|(_, authority)| !authority.is_empty() && authority.eq_ignore_ascii_case(host));
    let is_public = public_url
        .strip_prefix(origin)
        .is_some_and(|rest| !origin.is_empty() && (rest.is_empty() || rest.starts_with('/')));
    is_own || is_public || named.iter().any(|name| name == "*" || name == origin)
}

type Work = Pin<Box<dyn Future<Output = Vec<Answer>> + Send>>;

/// A WebSocket, its client's events on their way out and its client's items on their way in.
struct Socket {
    app: Arc<App>,
    caller: Principal,
    wire: Wire,
    out: BytesMut,
    protocol: WebSocketContext,
    /// Items that are under way; while there are some, nothing is read.
    work: Option<Work>,
    /// Pings since the last word from the client.
    unanswered: u32,
    /// Why it is closed, when it is.
    end: (CloseCode, &'static str),
    /// There is nothing more to hear.
    is_done: bool,
    /// What the client sends is no more understood.
    is_broken: bool,
    stage: Stage,
}

/// How far the closing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The last frame is written or on its way.
    Closing,
    /// Nothing more is written, and what comes is thrown away.
    Shut,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// The connection as tungstenite sees it: a read takes what is there, a write always fits.
struct Ends<'a, 'b> {
    from: Option<(&'a mut Wire, &'a mut Context<'b>)>,
    to: &'a mut BytesMut,
}

impl io::Read for Ends<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some((wire, context)) = &mut self.from else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut into = ReadBuf::new(into);
        match wire.poll_read(context, &mut into) {
            Poll::Ready(read) => read.map(|()| into.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl io::Write for Ends<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
            end: (CloseCode::Normal, ""),
            is_done: false,
            is_broken: false,
            stage: Stage::Open,
        }
    }

    /// Puts a frame behind what waits. Behind the closing frame there is none.
    fn send(&mut self, message: Message) {
        let mut ends = Ends {
            from: None,
            to: &mut self.out,
        };
        let _closed = self.protocol.write(&mut ends, message);
    }

    fn answer(&mut self, answer: &Answer) {
        self.app.metrics.http.item_answered(answer.status.as_str());
        self.say("result", &json!(answer));
    }

    /// Says something that is no event of a stream.
    fn say(&mut self, name: &str, data: &Value) {
        self.send(Message::text(json!({"event": name, "data": data}).to_string()));
    }

    /// Ends the conversation with a client that breaks the protocol in this way.
    fn break_off(&mut self, code: CloseCode, reason: &'static str) -> Received {
        self.is_broken = true;
        self.finish(code, reason)
    }

    /// Ends the conversation for this reason.
    fn finish(&mut self, code: CloseCode, reason: &'static str) -> Received {
        self.end = (code, reason);
        self.is_done = true;
        Received::Done
    }

    /// Carries on with items that are under way, if there are any.
    fn poll_work(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(work) = &mut self.work {
            let answers = ready!(work.as_mut().poll(context));
            self.work = None;
            answers.iter().for_each(|answer| self.answer(answer));
        }
        Poll::Ready(())
    }

    /// The next message, if it is complete.
    fn read(&mut self, context: &mut Context<'_>) -> Result<Message, Fault> {
        let mut ends = Ends {
            from: Some((&mut self.wire, context)),
            to: &mut self.out,
        };
        self.protocol.read(&mut ends)
    }

    /// Takes in one message, if it is complete.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Received>> {
        let message = match self.read(context) {
            Ok(message) => message,
            Err(Fault::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            // Both have said that they close.
            Err(Fault::ConnectionClosed) => return Poll::Ready(Some(self.finish(CloseCode::Normal, ""))),
            Err(Fault::Capacity(_)) => {
                return Poll::Ready(Some(self.break_off(CloseCode::Size, "the message is too large")));
            }
            Err(Fault::Utf8(_)) => {
                return Poll::Ready(Some(self.break_off(CloseCode::Invalid, "a text must be UTF-8")));
            }
            Err(Fault::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return Poll::Ready(Some(Received::Gone));
            }
            Err(Fault::Protocol(_)) => {
                return Poll::Ready(Some(self.break_off(CloseCode::Protocol, "that is not RFC 6455")));
            }
            Err(_) => return Poll::Ready(Some(Received::Gone)),
        };
        self.unanswered = 0;
        Poll::Ready(match message {
            Message::Text(text) => self.take(&text),
            Message::Binary(_) => {
                self.refuse(&Error::new(Code::ValidationError, "a frame must be text: JSON"));
                None
            }
            // Answers to both are on their way by themselves.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => None,
        })
    }

    fn take(&mut self, text: &str) -> Option<Received> {
        match items::read(text, self.app.config.websocket.items_max) {
            Ok(Said::Resume(cursor)) => return Some(Received::Resume(cursor)),
            Ok(Said::Ping(id)) => self.say("pong", &json!({"type": "pong", "id": id})),
            Ok(Said::Items(items)) => {
                let work = items::carry_out(self.app.clone(), self.caller.clone(), items);
                self.work = Some(Box::pin(work));
            }
            Err(error) => self.refuse(&error),
        }
        None
    }
}

impl EventSink for Socket {
    fn begin(&mut self, _retry: Duration) {}

    fn put(&mut self, event: &Event<'_>) {
        match event.name {
            "revoked" => self.end = (REVOKED, "revoked"),
            "bye" => self.end = (CloseCode::Restart, "the server goes away"),
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
            self.send(Message::Text(text));
        }
    }

    fn heartbeat(&mut self) {
        // Its answers would not be heard while items are under way.
        if self.work.is_some() {
            return;
        }
        if self.unanswered == UNANSWERED_MAX {
            self.finish(CloseCode::Error, "no answer to pings");
            return;
        }
        self.unanswered += 1;
        self.send(Message::Ping(Bytes::new()));
    }

    fn refuse(&mut self, error: &Error) {
        self.answer(&Answer::refused(Value::Null, error));
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_write(context, &mut self.out)
    }

    fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        if self.is_done {
            return Poll::Ready(Received::Done);
        }
        for _ in 0..MESSAGES_MAX {
            ready!(self.poll_work(context));
            // Who does not take what it is told is not listened to.
            if ready!(self.poll_flush(context)).is_err() {
                return Poll::Ready(Received::Gone);
            }
            if let Some(heard) = ready!(self.poll_message(context)) {
                return Poll::Ready(heard);
            }
        }
        // Others come first: a client could go on for ever.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_work(context));
        if self.stage == Stage::Open {
            let (code, reason) = self.end;
            let frame = CloseFrame {
                code,
                reason: reason.into(),
            };
            self.send(Message::Close(Some(frame)));
            self.stage = Stage::Closing;
        }
        ready!(self.poll_flush(context))?;
        for _ in 0..MESSAGES_MAX {
            match self.stage {
                // The client's own closing frame comes behind what it had sent before.
                Stage::Closing if !self.is_broken => match self.read(context) {
                    Ok(_) => {}
                    Err(Fault::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                    Err(_) => return self.wire.poll_close(context),
                },
                Stage::Open | Stage::Closing => {
                    ready!(self.wire.poll_close(context))?;
                    self.stage = Stage::Shut;
                }
                // Unread bytes would make the connection's end overtake the last frame.
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
    fn pages_of_this_server_and_of_named_origins_are_welcome() {
        let named = ["https://app.example.com".to_owned()];
        let is_welcome = |origin: &str| is_welcome(&named, "https://sync.example.com/base", "127.0.0.1:8080", origin);
        for own in [
            "http://127.0.0.1:8080",
            "https://127.0.0.1:8080",
            "https://sync.example.com",
            "https://app.example.com",
        ] {
            assert!(is_welcome(own), "{own}");
        }
        for wrong_type in [
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
            assert!(!is_welcome(wrong_type), "{wrong_type}");
        }
        assert!(super::is_welcome(&["*".to_owned()], "", "", "https://anybody.example"));
    }
}
