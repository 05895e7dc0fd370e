//! The scripted server: the routes of a device over the history in memory, on loopback.
//!
//! It is `src/http` without Postgres and Redis. The routes of `src/api` need both, so their answers are made here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Version};
use serde_json::{Value, json};
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::event::Frame;
use super::fault::{self, Action};
use super::socket;
use super::stage::Stage;
use super::wire::{End, Record, Route};
use crate::config;
use crate::http::error::{Code, Error};
use crate::http::memory::BodyMemory;
use crate::http::query::Query;
use crate::http::request::Request;
use crate::http::response::{self, Response};
use crate::http::routes::Router;
use crate::http::server::{self, Server};
use crate::http::upgrade::Upgrade;
use crate::http::websocket;
use crate::http::wire::Wire;
use crate::telemetry::metrics::{Labels, Metrics};

/// Bytes of a body, after inflating.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of all bodies.
const MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Events that wait for one stream.
const FRAMES_MAX: usize = 1000;

/// A server that listens; dropping it stops it.
#[derive(Debug)]
pub struct Listening {
    pub url: String,
    pub stage: Arc<Stage>,
    stop: CancellationToken,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stage.with(|inner| inner.end_streams(None));
        self.stop.cancel();
    }
}

/// Starts the server at a free port of loopback.
///
/// # Errors
/// When no port is free.
pub async fn start(stage: Arc<Stage>) -> Result<Listening> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.context("cannot listen on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    let settings = config::Server {
        port,
        shutdown_grace_seconds: 0,
        ..config::Server::default()
    };
    let metrics = Arc::new(Metrics::new(false, &Labels::default()));
    let service = Service {
        stage: stage.clone(),
        router: router()?,
        metrics: metrics.clone(),
        memory: BodyMemory::new(MEMORY_BYTES),
    };
    let server = Server::new(listener, settings, metrics, service)?;
    let stop = CancellationToken::new();
    tokio::spawn(server.run(stop.clone()));
    Ok(Listening {
        url: format!("http://127.0.0.1:{port}"),
        stage,
        stop,
    })
}

fn router() -> Result<Router<Route>, matchit::InsertError> {
    Router::new([
        (Method::POST, "/api/enrollment/complete", Route::Enrollment),
        (Method::GET, "/api/enrollment/{token}", Route::Token),
        (Method::GET, "/api/sync/incoming", Route::Incoming),
        (Method::POST, "/api/sync/ack", Route::Ack),
        (Method::POST, "/api/sync/outgoing", Route::Outgoing),
        (Method::GET, "/sse/mobile/{device_id}", Route::Live),
        (Method::POST, "/api/sse/ticket", Route::Ticket),
        (Method::GET, "/ws", Route::Socket),
        (Method::GET, "/api/app-instructions", Route::Settings),
    ])
}

struct Service {
    stage: Arc<Stage>,
    router: Router<Route>,
    metrics: Arc<Metrics>,
    memory: BodyMemory,
}

impl server::Service for Service {
    async fn respond(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Response {
        self.handle(request, peer)
            .await
            .unwrap_or_else(|error| error.into_response("kit"))
    }
}

impl Service {
    async fn handle(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Result<Response, Error> {
        let (head, body) = request.into_parts();
        let line = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        let line = format!("{} {line}", head.method);
        let (route, params) = match self.router.find(&head.method, head.uri.path()) {
            Ok(found) => found,
            Err(error) => {
                let record = record(Route::Other, line, &head.headers, &BTreeMap::new());
                let number = self.stage.arrive(record);
                self.stage.end(number, End::Status(error.code.status().as_u16()));
                return Err(error);
            }
        };
        let mut request = Request {
            method: head.method,
            headers: head.headers,
            query: Query::parse(head.uri.query().unwrap_or_default())?,
            address: peer.ip(),
            principal: None::<()>,
            id: "kit".to_owned(),
            params,
            body: Some(body),
            memory: self.memory.share(),
            metrics: self.metrics.clone(),
        };
        let body = match request.method {
            Method::POST => request.json_inflated::<Value>(BODY_BYTES_MAX).await?,
            _ => Value::Null,
        };
        if self.stage.is_offline() {
            return Ok(fault::no_answer());
        }
        let given = |name: &str| request.query.get(name).map(str::to_owned);
        let parameters = ["cursor", "limit", "last_event_id", "lastEventId", "ticket"];
        let parameters = parameters
            .into_iter()
            .filter_map(|name| Some((name, given(name)?)))
            .collect();
        let arrived = Record {
            body,
            ..record(route, line, &request.headers, &parameters)
        };
        let number = self.stage.arrive(arrived.clone());
        let arrived = self.with_ticket(arrived, &parameters);
        let mut guard = Guard {
            stage: self.stage.clone(),
            number: Some(number),
        };
        let response = self.answer(&request, &arrived, &parameters, number, head.version).await;
        guard.number = None;
        Ok(response)
    }

    /// The request as the device that has the ticket of its address.
    fn with_ticket(&self, arrived: Record, parameters: &BTreeMap<&str, String>) -> Record {
        let ticket = parameters.get("ticket").filter(|_| arrived.route == Route::Socket);
        match ticket.and_then(|ticket| self.stage.take_ticket(ticket)) {
            Some((device, token)) => Record {
                device: Some(device),
                token: Some(token),
                ..arrived
            },
            None => arrived,
        }
    }

    /// Answers through the fault seam, and notes how the request ended before the client can know it.
    async fn answer(
        &self,
        request: &Request<()>,
        arrived: &Record,
        parameters: &BTreeMap<&str, String>,
        number: usize,
        version: Version,
    ) -> Response {
        let stage = &self.stage;
        let fault = stage.take_fault(arrived.route);
        let action = fault.as_ref().map(|fault| fault.action);
        let lost = || {
            stage.end(number, End::Lost);
            fault::no_answer()
        };
        if action == Some(Action::DropRequest) {
            return lost();
        }
        if let Some(fault) = fault.as_ref().filter(|fault| fault.action == Action::Refuse) {
            let response = fault.refusal().into_response("kit");
            stage.end(number, End::Status(response.status().as_u16()));
            return response;
        }
        let mut result = self.carry_out(request, arrived, parameters, number, version);
        if action == Some(Action::Duplicate) {
            result = self.carry_out(request, arrived, parameters, number, version);
        }
        let response = result.unwrap_or_else(|error| error.into_response("kit"));
        match action {
            Some(Action::DropAnswer) => return lost(),
            Some(Action::Truncate) => {
                stage.end(number, End::Lost);
                return fault::truncated(response).await;
            }
            Some(Action::Garble) => {
                stage.end(number, End::Lost);
                return fault::garbled();
            }
            Some(Action::Delay) => {
                let held = stage.hold();
                tokio::time::timeout(fault::DELAY_MAX, held.released()).await.ok();
            }
            _ => {}
        }
        let is_stream = arrived.route.is_stream() && matches!(response.status().as_u16(), 200 | 101);
        if !is_stream {
            stage.end(number, End::Status(response.status().as_u16()));
        }
        response
    }

    fn carry_out(
        &self,
        request: &Request<()>,
        arrived: &Record,
        parameters: &BTreeMap<&str, String>,
        number: usize,
        version: Version,
    ) -> Result<Response, Error> {
        let stage = &self.stage;
        match arrived.route {
            Route::Enrollment => response::created(&stage.complete(&arrived.body)?),
            Route::Token => response::ok(&stage.invitation(request.param("token"))?),
            Route::Incoming => {
                let limit = parameters.get("limit").and_then(|limit| limit.parse().ok());
                response::ok(&stage.batch(arrived, limit)?)
            }
            Route::Ack => response::ok(&stage.acknowledge(arrived)?),
            Route::Outgoing => response::ok(&stage.upload(arrived)?),
            Route::Settings => response::ok(&stage.settings(arrived)?),
            Route::Ticket => response::created(&stage.issue_ticket(arrived)?),
            Route::Socket => {
                let mut response = websocket::accept(request)?;
                if parameters.contains_key("ticket") && arrived.token.is_none() {
                    return Err(Error::new(Code::UNAUTHORIZED, "the ticket was used, or there was none"));
                }
                let revoked = || Error::new(Code::DEVICE_REVOKED, "the device was revoked");
                let hello = stage.open(arrived)?.ok_or_else(revoked)?;
                let (sender, receiver) = mpsc::channel(FRAMES_MAX);
                stage.add_stream(arrived, number, sender);
                let (stage, caller) = (stage.clone(), arrived.clone());
                let upgrade = Upgrade::new(move |wire, out| async move {
                    socket::serve(stage.clone(), caller, &hello, wire, out, receiver).await;
                    stage.end(number, End::Status(101));
                });
                response.extensions_mut().insert(upgrade);
                Ok(response)
            }
            Route::Live => {
                let Some(hello) = stage.open(arrived)? else {
                    return Ok(response::no_content());
                };
                let (sender, receiver) = mpsc::channel(FRAMES_MAX);
                stage.add_stream(arrived, number, sender);
                let (stage, is_http1) = (stage.clone(), version < Version::HTTP_2);
                let mut response = response::event_stream(response::full(""));
                response
                    .extensions_mut()
                    .insert(Upgrade::new(move |wire, mut out| async move {
                        if !is_http1 {
                            out = BytesMut::new();
                        }
                        out.extend_from_slice(format!("retry: 1000\n\n{}", hello.to_text()).as_bytes());
                        serve(wire, out, receiver).await;
                        stage.end(number, End::Status(200));
                    }));
                Ok(response)
            }
            Route::Frame | Route::Other => Err(Error::new(Code::NOT_FOUND, "no resource at this path")),
        }
    }
}

/// Notes the loss of a request whose client went away.
struct Guard {
    stage: Arc<Stage>,
    number: Option<usize>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.stage.with(|inner| inner.log.gone(number));
        }
    }
}

fn record(route: Route, line: String, headers: &HeaderMap, parameters: &BTreeMap<&str, String>) -> Record {
    let header = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let parameter = |name: &str| parameters.get(name).filter(|value| !value.is_empty()).cloned();
    Record {
        route,
        line,
        device: header("x-device-id"),
        token: header("authorization").and_then(|value| Some(value.strip_prefix("Bearer ")?.to_owned())),
        cursor: parameter("cursor"),
        is_newest: false,
        is_streaming: false,
        last_event_id: header("last-event-id")
            .or_else(|| parameter("last_event_id"))
            .or_else(|| parameter("lastEventId")),
        body: Value::Null,
        command: 0,
        end: End::Open,
    }
}

/// Writes the events of one stream until the case or the client ends it.
async fn serve(mut wire: Wire, mut out: BytesMut, mut frames: mpsc::Receiver<Frame>) {
    if !fault::write(&mut wire, &mut out).await {
        return;
    }
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame,
            () = gone(&mut wire) => return,
        };
        let text = match frame {
            Some(Frame::Event(event)) => event.to_text(),
            Some(Frame::Heartbeat) => ":\n\n".to_owned(),
            Some(Frame::HalfOpen) => return fault::half_open(&mut frames).await,
            Some(Frame::End(_)) | None => return,
        };
        let mut out = BytesMut::from(text.as_str());
        if !fault::write(&mut wire, &mut out).await {
            return;
        }
    }
}

/// Ready when the client has closed the connection.
async fn gone(wire: &mut Wire) {
    let mut bytes = [0; 64];
    loop {
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = std::future::poll_fn(|context| wire.poll_read(context, &mut buffer)).await;
        if read.is_err() || buffer.filled().is_empty() {
            return;
        }
    }
}

/// The settings that a device reads.
pub fn settings(items_max: usize) -> Value {
    json!({
        "tenant_id": "kit", "version": "1.0.0", "widgets": {}, "tables": [],
        "sync_config": {"batch_size": 100, "compression": false, "sync_interval_seconds": 300},
        "conflict_strategy": "last_write_wins",
        "limits": {"batch_size_max": 1000, "upload_items_max": items_max, "upload_bytes_max": BODY_BYTES_MAX},
    })
}
