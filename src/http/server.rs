//! The HTTP server: connections, and a request's way from its head to its log line.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_MATCH, IF_NONE_MATCH, REFERRER_POLICY, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tower::{ServiceBuilder, ServiceExt as _};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument as _;
use uuid::Uuid;

use super::address;
use super::error::{Code, Error};
use super::request::{Query, Request, drain, header};
use super::response::{self, Response};
use super::routes::{Access, Answer, Handler, Params, Route, Router};
use super::secure::Acceptor;
use super::wire::{self, Connection, Wire};
use crate::accounts::tickets::Stream;
use crate::api::App;
use crate::api::auth::{self, Principal};
use crate::api::health::Diagnostics;
use crate::api::metrics::request_labels;
use crate::api::tickets;
use crate::config;
use crate::http::upgrade::{self, Owning, Upgrade, UpgradedSocket, Watched};
use crate::telemetry::metrics::OpenConnection;
use crate::telemetry::traces;

/// How long to wait when the system has no more file descriptors or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Requests that one HTTP/2 connection may have under way, streams of events included.
const HTTP2_STREAMS_MAX: u32 = 100;

/// Largest head of an HTTP/2 request; hyper's own bound for HTTP/1 is about 400 KiB in 100 headers.
const HTTP2_HEADER_BYTES_MAX: u32 = 64 * 1024;

/// Bytes that may wait for a slow reader of one HTTP/2 answer.
const HTTP2_SEND_BYTES_MAX: usize = 256 * 1024;

/// How often a silent HTTP/2 client is asked whether it is there, and how long it has to say so.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);

/// Pause before looking again at a first word that is not complete.
const PEEK_PAUSE: Duration = Duration::from_millis(5);

/// How long a browser may remember what pages of other origins may do.
const CORS_AGE: Duration = Duration::from_secs(600);

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    secure: Option<Acceptor>,
    service: Arc<Service>,
}

/// What connections share.
#[derive(Debug)]
struct Service {
    vitals: Arc<Diagnostics>,
    /// `None` where only the process's health is served.
    app: Option<Arc<App>>,
    router: Router,
}

/// What a request's line in the log tells besides its answer.
#[derive(Debug, Default)]
struct Seen {
    /// The path's pattern, never the path: an enrollment's token is part of that.
    pattern: &'static str,
    principal: Option<Principal>,
}

impl Seen {
    fn tenant(&self) -> Option<&str> {
        self.principal
            .as_ref()
            .map(|principal| principal.tenant().name.as_str())
    }

    fn user(&self) -> Option<String> {
        self.principal.as_ref().map(|principal| principal.user_id().to_string())
    }

    fn device(&self) -> Option<&str> {
        match &self.principal {
            Some(Principal::Device(device)) => Some(&device.device_id),
            _ => None,
        }
    }
}

/// What the log tells of a request that failed.
struct Failure {
    code: &'static str,
    cause: Option<String>,
    backtrace: Option<String>,
}

/// A handler, and what it works with.
enum Call {
    Api(fn(Arc<App>, Request) -> Answer, Arc<App>),
    Diagnostics(fn(Arc<Diagnostics>, Request) -> Answer),
    /// Nothing: who asks has lost the right to a stream for good.
    Over,
}

/// Listens at `server.host` and `server.port`, with room for `server.backlog` connections that wait.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn listen(settings: &config::Server) -> io::Result<TcpListener> {
    let listening = async {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in tokio::net::lookup_host((settings.host.as_str(), settings.port)).await? {
            match listen_at(address, settings.backlog) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    listening.await.map_err(|error| {
        let place = format!("{}:{}", settings.host, settings.port);
        io::Error::new(
            error.kind(),
            format!("cannot listen on {place}: {error}; see `server.host` and `server.port`"),
        )
    })
}

fn listen_at(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for connections that have just ended.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// Raises the number of descriptors that this process may hold to the most that the system allows it, and gives that. A
/// shell gives 1,024 by default, which is a thousand clients.
///
/// # Errors
/// When the system does not tell or refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

impl Server {
    /// A server on a listening socket; without an `app` only of how the process is.
    ///
    /// # Errors
    /// When two paths of the route table collide, or the certificate cannot be read.
    pub fn new(listener: TcpListener, vitals: Arc<Diagnostics>, app: Option<Arc<App>>) -> anyhow::Result<Self> {
        let router = Router::new(app.is_some())?;
        let secure = vitals
            .config
            .server
            .certificate_files()
            .map(Acceptor::new)
            .transpose()?;
        Ok(Self {
            listener,
            secure,
            service: Arc::new(Service { vitals, app, router }),
        })
    }

    /// Serves until told to stop; then lets requests under way finish, within `server.shutdown_grace_seconds`.
    ///
    /// # Errors
    /// None at present: what goes wrong with one connection ends that connection.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let settings = &self.service.vitals.config.server;
        let connections = Arc::new(Semaphore::new(settings.connections_max));
        let tasks = TaskTracker::new();
        let protocols = Arc::new(Protocols::new(settings));
        let cors = cors(settings)?;
        if let Some(secure) = &self.secure {
            let following = secure.clone().follow_files();
            let shutdown = shutdown.clone();
            tokio::spawn(async move { shutdown.run_until_cancelled_owned(following).await });
        }
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accept(&self.listener, &connections) => accepted,
            };
            let (stream, peer, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let service = self.service.clone();
            let handler = tower::service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, io::Error>(service.answer(request, peer).await) }
            });
            let handler = ServiceBuilder::new().option_layer(cors.clone()).service(handler);
            let (protocols, secure) = (protocols.clone(), self.secure.clone());
            let tenure = UpgradeTimer {
                permit,
                counted: self.service.vitals.metrics.http.connected(),
                tasks: tasks.clone(),
                shutdown: shutdown.clone(),
            };
            tasks.spawn(async move {
                let opening = protocols.open(stream, secure.as_ref());
                let ended = match tenure.shutdown.run_until_cancelled(opening).await {
                    Some(Ok((stream, protocol))) => protocols.serve(stream, protocol, handler, tenure).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Ok(()),
                };
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection broke");
                }
            });
        }
        drop(self.listener);
        let grace = Duration::from_secs(settings.shutdown_grace_seconds);
        tasks.close();
        if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
            tracing::warn!(
                grace_seconds = grace.as_secs(),
                "requests were still under way after the grace period"
            );
        }
        Ok(())
    }
}

/// Accepts a connection when there may be one more. Those beyond the limit wait in the listener's backlog.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, permit))
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// How connections are opened and served.
#[derive(Debug)]
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    opening_max: Duration,
}

impl Protocols {
    fn new(settings: &config::Server) -> Self {
        let opening_max = Duration::from_secs(settings.header_timeout_seconds);
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(opening_max);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
            .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
            // A client that is gone without a word ends here.
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .keep_alive_timeout(HTTP2_PING_INTERVAL);
        Self {
            http1,
            http2,
            opening_max,
        }
    }

    /// Shakes hands where that is wanted, and finds out what the client speaks: by ALPN (RFC 7301), or by the first bytes
    /// of a client that knows beforehand (RFC 9113, section 3.3).
    async fn open(&self, stream: TcpStream, secure: Option<&Acceptor>) -> io::Result<(Connection, Protocol)> {
        let opening = async {
            let Some(secure) = secure else {
                let protocol = protocol_of(&stream).await?;
                return Ok((Either::Left(stream), protocol));
            };
            let stream = secure.accept(stream).await?;
            let protocol = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Protocol::Http2,
                _ => Protocol::Http1,
            };
            Ok((Either::Right(Box::new(stream)), protocol))
        };
        tokio::time::timeout(self.opening_max, opening)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Serves a connection until it ends, or somebody takes it over.
    async fn serve<S>(
        &self,
        stream: Connection,
        protocol: Protocol,
        handler: S,
        tenure: UpgradeTimer,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: tower::Service<hyper::Request<Incoming>, Response = Response, Error = io::Error> + Clone + Send + 'static,
        S::Future: Send,
    {
        match protocol {
            Protocol::Http1 => self.serve_http1(stream, handler, tenure).await?,
            Protocol::Http2 => self.serve_http2(stream, handler, tenure).await?,
        }
        Ok(())
    }

    async fn serve_http1<S>(&self, stream: Connection, handler: S, tenure: UpgradeTimer) -> hyper::Result<()>
    where
        S: tower::Service<hyper::Request<Incoming>, Response = Response, Error = io::Error> + Clone + Send + 'static,
        S::Future: Send,
    {
        let handover = Arc::new(UpgradedSocket::default());
        let leaving = handover.clone();
        let service = service_fn(move |request| {
            let (handler, handover) = (handler.clone(), leaving.clone());
            async move {
                match answer_or_upgrade(handler, request).await? {
                    (response, None) => Ok(response),
                    (response, Some(takeover)) => {
                        handover.leave(response, takeover);
                        // It is not hyper who answers.
                        std::future::pending::<io::Result<Response>>().await
                    }
                }
            }
        });
        let io = Watched::new(stream, handover.clone());
        let mut connection = self.http1.serve_connection(io, service);
        let mut stop = Stop::new(&tenure.shutdown);
        let taken = poll_fn(|context| {
            let mut connection = Pin::new(&mut connection);
            if stop.comes(context) {
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.poll(context) {
                return Poll::Ready(ended.map(|()| None));
            }
            handover
                .take()
                .map_or(Poll::Pending, |left| Poll::Ready(Ok(Some(left))))
        });
        let Some((response, takeover)) = taken.await? else {
            return Ok(());
        };
        drop(stop);
        let parts = connection.into_parts();
        // Copied, because a part of the read buffer would keep all of it.
        let socket = parts.io.into_socket(Bytes::copy_from_slice(&parts.read_buf));
        let owning = takeover.begin(Wire::Socket(socket), upgrade::head(&response));
        tenure.pass_on(owning);
        Ok(())
    }

    async fn serve_http2<S>(&self, stream: Connection, handler: S, tenure: UpgradeTimer) -> hyper::Result<()>
    where
        S: tower::Service<hyper::Request<Incoming>, Response = Response, Error = io::Error> + Clone + Send + 'static,
        S::Future: Send,
    {
        let tasks = tenure.tasks.clone();
        let service = service_fn(move |request| {
            let (handler, tasks) = (handler.clone(), tasks.clone());
            async move {
                let (mut response, takeover) = answer_or_upgrade(handler, request).await?;
                if let Some(takeover) = takeover {
                    let (sender, body) = wire::stream();
                    *response.body_mut() = body.boxed_unsync();
                    if let Some(owning) = takeover.begin(Wire::Stream(sender), BytesMut::new()) {
                        tasks.spawn(owning);
                    }
                }
                Ok::<_, io::Error>(response)
            }
        });
        let mut connection = self.http2.serve_connection(TokioIo::new(stream), service);
        let mut stop = Stop::new(&tenure.shutdown);
        poll_fn(|context| {
            let mut connection = Pin::new(&mut connection);
            if stop.comes(context) {
                connection.as_mut().graceful_shutdown();
            }
            connection.poll(context)
        })
        .await
    }
}

/// What a connection lives under.
struct UpgradeTimer {
    /// Counts it among those that there may be.
    permit: OwnedSemaphorePermit,
    /// Counts it for the metrics.
    counted: OpenConnection,
    /// All that a stop waits for.
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl UpgradeTimer {
    /// Gives a connection to its new owner. That is a task of its own, because one that has spoken HTTP is as large as
    /// all that it has needed for that.
    fn pass_on(self, owning: Option<Owning>) {
        let Self {
            permit, counted, tasks, ..
        } = self;
        if let Some(owning) = owning {
            tasks.spawn(async move {
                owning.await;
                drop((permit, counted));
            });
        }
    }
}

/// Tells once that the server stops.
struct Stop<'a>(Option<Pin<Box<WaitForCancellationFuture<'a>>>>);

impl<'a> Stop<'a> {
    fn new(shutdown: &'a CancellationToken) -> Self {
        Self(Some(Box::pin(shutdown.cancelled())))
    }

    fn comes(&mut self, context: &mut Context<'_>) -> bool {
        let comes = self
            .0
            .as_mut()
            .is_some_and(|stop| stop.as_mut().poll(context).is_ready());
        if comes {
            self.0 = None;
        }
        comes
    }
}

/// Answers a request, and tells who takes over behind the answer's head.
async fn answer_or_upgrade<S>(handler: S, request: hyper::Request<Incoming>) -> io::Result<(Response, Option<Upgrade>)>
where
    S: tower::Service<hyper::Request<Incoming>, Response = Response, Error = io::Error>,
{
    let mut response = handler.oneshot(request).await?;
    let takeover = response.extensions_mut().remove::<Upgrade>();
    Ok((response, takeover))
}

/// Looks at the first bytes without taking them.
async fn protocol_of(stream: &TcpStream) -> io::Result<Protocol> {
    // No method of HTTP/1 is called so.
    const PREFACE: &[u8; 4] = b"PRI ";
    loop {
        let mut first = [0; PREFACE.len()];
        let count = stream.peek(&mut first).await?;
        if count == 0 || !PREFACE.starts_with(&first[..count]) {
            return Ok(Protocol::Http1);
        }
        if count == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        // What is there stays there, so waiting for readiness would not wait.
        tokio::time::sleep(PEEK_PAUSE).await;
    }
}

/// What pages of other origins may do (Fetch standard, "CORS protocol"); `None` where there are none.
fn cors(settings: &config::Server) -> io::Result<Option<CorsLayer>> {
    if settings.cors_origins.is_empty() {
        return Ok(None);
    }
    let origins = if settings.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = settings.cors_origins.iter().map(|origin| HeaderValue::from_str(origin));
        AllowOrigin::list(origins.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?)
    };
    const SENT: [HeaderName; 11] = [
        AUTHORIZATION,
        CONTENT_TYPE,
        CONTENT_ENCODING,
        IF_MATCH,
        IF_NONE_MATCH,
        X_REQUEST_ID,
        HeaderName::from_static("x-device-id"),
        HeaderName::from_static("x-tenant"),
        HeaderName::from_static("x-pending-outgoing"),
        HeaderName::from_static("last-event-id"),
        HeaderName::from_static("traceparent"),
    ];
    Ok(Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers(SENT)
            .expose_headers([X_REQUEST_ID, RETRY_AFTER, ETAG])
            .max_age(CORS_AGE),
    ))
}

impl Service {
    /// Answers one request, whatever happens: errors become envelopes, panics too.
    async fn answer(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Response {
        let started = Instant::now();
        let method = request.method().clone();
        let id = request_id(request.headers());
        let trace = traces::Request::begin(header(request.headers(), "traceparent"));
        let mut seen = Seen::default();
        // Whatever is logged on the way bears the request's id.
        let span = tracing::info_span!("request", request_id = id);
        let answering = self.dispatch(request, peer, &id, &mut seen).instrument(span);
        let answering = traces::Request::within(trace.as_ref(), answering);
        let result = AssertUnwindSafe(answering)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(Error::internal("a handler panicked; the panic is in the log above")));
        let (mut response, failure) = match result {
            Ok(response) => (response, None),
            Err(mut error) => {
                let failure = Failure {
                    code: error.code.as_str(),
                    cause: error.cause.take(),
                    backtrace: error.backtrace.take().map(|here| here.to_string()),
                };
                (error.into_response(&id), Some(failure))
            }
        };
        finish(response.headers_mut(), &id, self.vitals.config.server.is_secure());
        let (status, took) = (response.status().as_u16(), started.elapsed());
        let labels = request_labels(&method, seen.pattern, response.status());
        self.vitals.metrics.http.answered(labels, took);
        let trace_id = trace.as_ref().map(traces::Request::trace_id);
        if let Some(trace) = trace {
            let [(_, method), (_, route), _] = labels;
            trace.answered(method, route, status, &id);
        }
        // A macro, since the level of an event is fixed where it stands.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    %method,
                    path = seen.pattern,
                    status,
                    ms = took.as_secs_f64() * 1000.0,
                    bytes = response.body().size_hint().exact(),
                    tenant = seen.tenant(),
                    user = seen.user(),
                    device = seen.device(),
                    request_id = id,
                    trace_id,
                    %peer,
                    code = failure.as_ref().map(|failure| failure.code),
                    cause = failure.as_ref().and_then(|failure| failure.cause.as_deref()),
                    backtrace = failure.as_ref().and_then(|failure| failure.backtrace.as_deref()),
                    "request"
                )
            };
        }
        match (&failure, seen.pattern) {
            (Some(_), _) if status >= 500 => line!(error),
            // Probes come every few seconds.
            (None, "/health" | "/ready" | "/metrics") => line!(debug),
            _ => line!(info),
        }
        response
    }

    /// Routes, admits and runs.
    async fn dispatch(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        id: &str,
        seen: &mut Seen,
    ) -> Result<Response, Error> {
        let (head, body) = request.into_parts();
        let prepared = self.prepare(&head, &mut seen.pattern);
        let timeout = Duration::from_secs(self.vitals.config.server.request_timeout_seconds);
        let work = async {
            let admitted = match prepared {
                Ok((route, params, query)) => self
                    .admit(route, &head.headers, &params, &query)
                    .await
                    .map(|(call, principal)| (call, params, query, principal)),
                Err(error) => Err(error),
            };
            let (call, params, query, principal) = match admitted {
                Ok(admitted) => admitted,
                Err(error) => {
                    drain(body, &head.headers).await;
                    return Err(error);
                }
            };
            seen.principal.clone_from(&principal);
            let trusted = &self.vitals.config.server.trusted_proxies;
            let mut request = Request {
                method: head.method.clone(),
                address: address::client(peer.ip(), &head.headers, trusted),
                headers: head.headers,
                query,
                principal,
                id: id.to_owned(),
                params,
                body: Some(body),
                metrics: self.vitals.metrics.clone(),
            };
            // These take no body, and an unread one would make the connection's end overtake the answer.
            if matches!(head.method, Method::GET | Method::HEAD | Method::DELETE)
                && let Some(body) = request.body.take()
            {
                drain(body, &request.headers).await;
            }
            match call {
                Call::Api(handler, app) => handler(app, request).await,
                Call::Diagnostics(handler) => handler(self.vitals.clone(), request).await,
                Call::Over => Ok(response::no_content()),
            }
        };
        // The bound holds until the answer begins: a body that streams may go on.
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            Err(Error::new(
                Code::Timeout,
                format!("the request took longer than {} s", timeout.as_secs()),
            ))
        })
    }

    /// Who asks, and what answers.
    async fn admit(
        &self,
        route: &Route,
        headers: &HeaderMap,
        params: &Params,
        query: &Query,
    ) -> Result<(Call, Option<Principal>), Error> {
        match (route.handler, &self.app) {
            (Handler::Diagnostics(handler), _) => Ok((Call::Diagnostics(handler), None)),
            (Handler::Api(handler), Some(app)) => {
                let stream = tickets::stream_of(route, params);
                let ticket = query.get("ticket").zip(stream.as_ref());
                let principal = match auth::admit(app, route.access, headers, ticket).await {
                    Err(error)
                        if error.code == Code::Unauthorized
                            && ticket.is_none()
                            && matches!(stream, Some(Stream::Mobile(_)))
                            && auth::has_lost_standing(app, headers).await =>
                    {
                        return Ok((Call::Over, None));
                    }
                    admitted => admitted?,
                };
                // Streams, and what a user does with sessions, say it in their own way.
                if let Some(Principal::Web(user)) = &principal
                    && stream.is_none()
                    && route.access != Access::User
                    && app.sessions.is_known_ended(user.session)
                {
                    return Err(auth::unauthorized("this session was ended"));
                }
                Ok((Call::Api(handler, app.clone()), principal))
            }
            (Handler::Api(_), None) => Err(Error::internal("the router gave a route that is not served")),
        }
    }

    /// What the head alone tells.
    fn prepare(
        &self,
        head: &hyper::http::request::Parts,
        pattern: &mut &'static str,
    ) -> Result<(&'static Route, Params, Query), Error> {
        let (route, params) = self.router.find(&head.method, head.uri.path())?;
        *pattern = route.path;
        let query = Query::parse(head.uri.query().unwrap_or_default())?;
        Ok((route, params, query))
    }
}

/// The client's request id if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    header(headers, "x-request-id")
        .filter(|id| {
            (1..=128).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'))
        })
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Headers of every answer. What a handler has set stays.
fn finish(headers: &mut HeaderMap, id: &str, is_secure: bool) {
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(X_REQUEST_ID, id);
    }
    const ALL: [(HeaderName, &str); 4] = [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-store"),
        // An answer that is opened as a page does nothing, and is nobody's frame.
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        // Paths may hold an enrollment's token.
        (REFERRER_POLICY, "no-referrer"),
    ];
    let https = is_secure.then_some((STRICT_TRANSPORT_SECURITY, "max-age=31536000"));
    for (name, value) in ALL.into_iter().chain(https) {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sane_request_ids_are_kept() {
        let id_for = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_static(value));
            request_id(&headers)
        };
        assert_eq!(id_for("abc-1"), "abc-1");
        assert_ne!(id_for("a b"), "a b");
        assert_eq!(request_id(&HeaderMap::new()).len(), 36);
    }
}
