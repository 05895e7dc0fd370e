//! WebSockets (RFC 6455): the opening handshake, and the connection as tungstenite uses it.

use std::io;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use hyper::{Method, StatusCode};
use tokio::io::ReadBuf;
use tungstenite::handshake::derive_accept_key;

use super::error::{Code, Error};
use super::request::Request;
use super::response::{self, Response};
use super::wire::Wire;

/// The response that accepts a WebSocket. Its connection is that of an [`super::upgrade::Upgrade`].
///
/// # Errors
/// 426 for a request that does not open a WebSocket, 400 for an invalid key (RFC 6455, section 4.2.1).
pub fn accept<P>(request: &Request<P>) -> Result<Response, Error> {
    let has = |name, token: &str| {
        request
            .header(name)
            .is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let refused = |message: &str| Error::new(Code::UPGRADE_REQUIRED, message);
    if request.method != Method::GET || !has("connection", "upgrade") || !has("upgrade", "websocket") {
        return Err(refused(
            "open a WebSocket here: GET over HTTP/1.1 with Upgrade: websocket",
        ));
    }
    if request.header("sec-websocket-version") != Some("13") {
        return Err(refused("Sec-WebSocket-Version must be 13"));
    }
    let key = request
        .header("sec-websocket-key")
        .filter(|key| STANDARD.decode(key).is_ok_and(|bits| bits.len() == 16))
        .ok_or_else(|| Error::invalid("Sec-WebSocket-Key", "must be 16 bytes in base64"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|error| Error::internal(format!("Sec-WebSocket-Accept: {error}")))?;
    let mut response = response::no_content();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The connection as tungstenite uses it: reads do not block, writes are buffered.
#[derive(Debug)]
pub struct Ends<'a, 'b> {
    /// `None`: there is nothing to read.
    pub from: Option<(&'a mut Wire, &'a mut Context<'b>)>,
    pub to: &'a mut BytesMut,
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
