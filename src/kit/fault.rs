//! The fault seam in front of the scripted server: what the network, a proxy or an overloaded server does to a request.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::event::Frame;
use super::wire::Route;
use crate::http::error::{Code, Error};
use crate::http::response::{self, Response};
use crate::http::upgrade::Upgrade;
use crate::http::wire::Wire;

/// How long a delayed answer waits for `release`.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// How long a connection may take to accept a part of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to the next requests of a route.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub on: Route,
    #[serde(rename = "do")]
    pub action: Action,
    /// How many requests.
    #[serde(default = "once")]
    pub times: u32,
    /// How many go through before.
    #[serde(default)]
    pub skip: u32,
    /// Of `refuse`.
    pub code: Option<String>,
    /// `Retry-After` of `refuse`, in seconds.
    pub retry_after: Option<u32>,
    /// The sequence number that `refuse` says it expects.
    pub expected: Option<u64>,
}

fn once() -> u32 {
    1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The request is lost.
    DropRequest,
    /// The request is carried out, and its answer is lost.
    DropAnswer,
    /// The answer ends in the middle.
    Truncate,
    /// A proxy answers with a page of its own.
    Garble,
    /// The answer waits for `release`.
    Delay,
    /// The network delivers the request twice.
    Duplicate,
    /// The server refuses the request with an error.
    Refuse,
}

impl Fault {
    /// The answer of `refuse`.
    pub fn refusal(&self) -> Error {
        let name = self.code.as_deref().unwrap_or("OVERLOADED");
        let code = Code::ALL.into_iter().find(|code| code.as_str() == name);
        let mut error = Error::new(code.unwrap_or(Code::INTERNAL_ERROR), "refused by the case");
        error.retry_after_seconds = self.retry_after;
        match self.expected {
            Some(expected) => error.with("expected", expected),
            None => error,
        }
    }
}

/// Closes the connection without an answer.
pub fn no_answer() -> Response {
    let mut response = response::no_content();
    response.extensions_mut().insert(Upgrade::new(|_, _| async {}));
    response
}

/// Sends the first half of an answer and closes the connection.
pub async fn truncated(response: Response) -> Response {
    let (head, body) = response.into_parts();
    let bytes = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let mut response = Response::from_parts(head, response::full(Bytes::new()));
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    let half = bytes.slice(..bytes.len() / 2);
    response
        .extensions_mut()
        .insert(Upgrade::new(move |mut wire, mut out: BytesMut| async move {
            out.extend_from_slice(&half);
            write(&mut wire, &mut out).await;
        }));
    response
}

/// A page of a proxy or a captive portal.
pub fn garbled() -> Response {
    let mut response = response::ok(&"").unwrap_or_else(|error| error.into_response(""));
    *response.body_mut() = response::full("<html><body>Please log in to this network.</body></html>");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

/// The server neither reads nor writes any more, and does not close the connection until the case ends it.
pub async fn half_open(frames: &mut mpsc::Receiver<Frame>) {
    while !matches!(frames.recv().await, Some(Frame::End(_)) | None) {}
}

/// Writes all of `out`; returns whether the client took it.
pub async fn write(wire: &mut Wire, out: &mut BytesMut) -> bool {
    let written = std::future::poll_fn(|context| wire.poll_write(context, out));
    matches!(tokio::time::timeout(WRITE_TIMEOUT, written).await, Ok(Ok(())))
}
