//! `/ws`: live events over a WebSocket (RFC 6455), and a way back for what its client does.
//!
//! Events are those of [`super::sse`], from the same loop and with the same ids, each a text frame of JSON; see
//! [`super::live`]. What comes from the client is carried out one frame after the other, and while one is under way
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
use bytes::{Buf as _, BytesMut};
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::ReadBuf;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error as Fault, Message};

use self::items::{Answer, Said};
use super::App;
use super::auth::{Principal, unauthorized};
use super::error::{Code, Error};
use super::live::event::Event;
use super::live::outlet::{Heard, Outlet};
use super::live::{Live, Reader};
use super::request::Request;
use super::response::{self, Response};
use super::takeover::Takeover;
use super::wire::Wire;
use crate::config::Config;
use crate::decode::value::write_string;

/// What is read at once. A connection keeps a buffer of it, and most say nothing most of the time.
const READ_BYTES: usize = 512;

/// Heartbeats that may go by without a word from the client.
const UNANSWERED_MAX: u32 = 2;

/// Close code: the session was ended, the device revoked or the user disabled. Of the range for applications.
const REVOKED: CloseCode = CloseCode::Library(4401);

/// `GET /ws`.
///
/// # Errors
/// 400 for a bad id to resume from, 401 when the session was ended, 403 for a page of a foreign origin, 426 for what is no
/// opening of a WebSocket, 503 while Redis is away.
pub async fn open(app: Arc<App>, request: Request) -> Result<Response, Error> {
    check_origin(&app.config, &request)?;
    let caller = request.caller()?.clone();
    let reader = match &caller {
        Principal::Device(device) => Reader::Device(device.clone()),
        Principal::Web(user) => Reader::user(&app, user)
            .await?
            .ok_or_else(|| unauthorized("this session was ended"))?,
    };
    let accept = opening(&request);
    let live = Live::open(app.clone(), reader, request.resume()).await?;
    let accept = accept?;

    let mut response = response::no_content();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let takeover = Takeover::new(move |wire, first| live.run(Socket::new(app, caller, wire, first)));
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
    let refused = |message: &str| {
        let mut error = Error::new(Code::UpgradeRequired, message);
        error.upgrade = true;
        error
    };
    if request.method != Method::GET || !has("connection", "upgrade") || !has("upgrade", "websocket") {
        return Err(refused("this is a WebSocket, which is opened by GET over HTTP/1.1 with Upgrade: websocket"));
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
