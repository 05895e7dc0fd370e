//! One connection: opening it, serving it with hyper, and passing it on when a response upgrades it.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::MissedTickBehavior;
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::progress::{Activity, Timed};
use super::protocol::Protocol;
use super::response::Response;
use super::secure::Acceptor;
use super::upgrade::{self, Http1Io, PendingUpgrade, Upgrade, UpgradeTask};
use super::wire::{self, Connection, Wire};
use crate::config;
use crate::core::slots::Slot;
use crate::telemetry::metrics::OpenConnection;

/// Concurrent requests of one HTTP/2 connection, event streams included.
const HTTP2_STREAMS_MAX: u32 = 100;

/// Largest head of an HTTP/2 request; hyper's own limit for HTTP/1 is about 400 KiB in 100 headers.
const HTTP2_HEADER_BYTES_MAX: u32 = 64 * 1024;

/// Bytes buffered for a slow reader of one HTTP/2 response.
const HTTP2_SEND_BYTES_MAX: usize = 256 * 1024;

/// Interval of pings to a silent HTTP/2 client, and the timeout of their answers.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// A service for the requests of one connection.
pub trait ConnectionService:
    tower::Service<hyper::Request<Incoming>, Response = Response, Error = io::Error, Future: Send> + Clone + Send + 'static
{
}

impl<S> ConnectionService for S where
    S: tower::Service<hyper::Request<Incoming>, Response = Response, Error = io::Error, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// What a connection holds until it ends.
pub struct ConnectionGuard {
    /// Counts against `server.connections_max`.
    pub permit: OwnedSemaphorePermit,
    /// Counts against `server.connections_per_address_max`, unless it is a trusted proxy's.
    pub address_slot: Option<Slot<IpAddr>>,
    /// Counts in the metrics.
    pub counted: OpenConnection,
    /// The tasks that a shutdown waits for.
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
}

impl ConnectionGuard {
    /// Runs the task of an upgraded connection. It is a task of its own because the one that has served HTTP keeps the
    /// memory that this needed.
    fn spawn(self, task: Option<UpgradeTask>) {
        let Self {
            permit,
            address_slot,
            counted,
            tasks,
            ..
        } = self;
        if let Some(task) = task {
            tasks.spawn(async move {
                task.await;
                drop((permit, address_slot, counted));
            });
        }
    }
}

/// Opens and serves connections.
#[derive(Debug)]
pub struct Connector {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    acceptor: Option<Acceptor>,
    open_timeout: Duration,
    write_timeout: Duration,
}

impl Connector {
    pub fn new(settings: &config::Server, acceptor: Option<Acceptor>) -> Self {
        let open_timeout = Duration::from_secs(settings.header_timeout_seconds);
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(open_timeout);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
            .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
            // Ends the connections of clients that vanished.
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .keep_alive_timeout(HTTP2_PING_INTERVAL);
        Self {
            http1,
            http2,
            acceptor,
            open_timeout,
            write_timeout: Duration::from_secs(settings.write_timeout_seconds),
        }
    }

    /// Serves a connection until it ends or is upgraded.
    pub async fn serve(
        &self,
        stream: TcpStream,
        service: impl ConnectionService,
        guard: ConnectionGuard,
    ) -> Result<(), BoxedError> {
        let Some(opened) = guard.shutdown.run_until_cancelled(self.open(stream)).await else {
            return Ok(());
        };
        match opened? {
            (stream, Protocol::Http1) => self.serve_http1(stream, service, guard).await?,
            (stream, Protocol::Http2) => self.serve_http2(stream, service, guard).await?,
        }
        Ok(())
    }

    /// Performs the TLS handshake if there is a certificate, and detects the protocol.
    async fn open(&self, stream: TcpStream) -> io::Result<(Connection, Protocol)> {
        let opening = async {
            let Some(acceptor) = &self.acceptor else {
                let protocol = Protocol::peek(&stream).await?;
                return Ok((Either::Left(stream), protocol));
            };
            let stream = acceptor.accept(stream).await?;
            let protocol = Protocol::negotiated(stream.get_ref().1.alpn_protocol());
            Ok((Either::Right(Box::new(stream)), protocol))
        };
        tokio::time::timeout(self.open_timeout, opening)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn serve_http1(
        &self,
        stream: Connection,
        service: impl ConnectionService,
        guard: ConnectionGuard,
    ) -> hyper::Result<()> {
        let pending = Arc::new(PendingUpgrade::default());
        let left = pending.clone();
        let service = service_fn(move |request| {
            let (service, pending) = (service.clone(), left.clone());
            async move {
                match respond(service, request).await? {
                    (response, None) => Ok(response),
                    (response, Some(upgrade)) => {
                        pending.put(response, upgrade);
                        // The response is written outside hyper, so this future never completes.
                        std::future::pending::<io::Result<Response>>().await
                    }
                }
            }
        });
        let io = Http1Io::new(stream, self.write_timeout, pending.clone());
        let mut connection = self.http1.serve_connection(io, service);
        let mut shutdown = ShutdownSignal::new(&guard.shutdown);
        let upgraded = poll_fn(|context| {
            let mut connection = Pin::new(&mut connection);
            if shutdown.fires(context) {
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.poll(context) {
                return Poll::Ready(ended.map(|()| None));
            }
            pending.take().map_or(Poll::Pending, |left| Poll::Ready(Ok(Some(left))))
        });
        let Some((response, upgrade)) = upgraded.await? else {
            return Ok(());
        };
        drop(shutdown);
        let parts = connection.into_parts();
        // Copied, because a slice of the read buffer would keep all of it.
        let socket = parts.io.into_socket(Bytes::copy_from_slice(&parts.read_buf));
        guard.spawn(upgrade.start(Wire::Socket(socket), upgrade::head(&response)));
        Ok(())
    }

    async fn serve_http2(
        &self,
        stream: Connection,
        service: impl ConnectionService,
        guard: ConnectionGuard,
    ) -> hyper::Result<()> {
        let tasks = guard.tasks.clone();
        let activity = Activity::default();
        let watch = activity.clone();
        let service = service_fn(move |request| {
            let (service, tasks, open) = (service.clone(), tasks.clone(), watch.begin());
            async move {
                let (mut response, upgrade) = respond(service, request).await?;
                let Some(upgrade) = upgrade else {
                    return Ok::<_, io::Error>(open.ordinary(response));
                };
                let (sender, body) = wire::stream();
                *response.body_mut() = body.boxed_unsync();
                if let Some(task) = upgrade.start(Wire::Stream(sender), BytesMut::new()) {
                    tasks.spawn(task);
                }
                Ok(open.stream(response))
            }
        });
        let io = Timed::new(TokioIo::new(stream), self.write_timeout);
        let mut connection = self.http2.serve_connection(io, service);
        let mut shutdown = ShutdownSignal::new(&guard.shutdown);
        let mut ticks = tokio::time::interval(self.open_timeout.min(self.write_timeout) / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_closing = false;
        poll_fn(|context| {
            let mut connection = Pin::new(&mut connection);
            if shutdown.fires(context) {
                connection.as_mut().graceful_shutdown();
            }
            while ticks.poll_tick(context).is_ready() {
                // hyper has no timeout for the handshake, for a connection without requests, nor for a window that stays
                // shut.
                let idle = activity.idle();
                let silence_max = if activity.has_begun() {
                    self.open_timeout + self.write_timeout
                } else {
                    self.open_timeout
                };
                if idle > Some(silence_max) || activity.stalled() > Some(self.write_timeout) {
                    return Poll::Ready(Ok(()));
                }
                if !is_closing && idle > Some(self.open_timeout) {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
            connection.as_mut().poll(context)
        })
        .await
    }
}

/// Responds to a request, and separates the upgrade that the response carries.
async fn respond(
    service: impl ConnectionService,
    request: hyper::Request<Incoming>,
) -> io::Result<(Response, Option<Upgrade>)> {
    let mut response = service.oneshot(request).await?;
    let upgrade = response.extensions_mut().remove::<Upgrade>();
    Ok((response, upgrade))
}

/// Fires once, when the server shuts down.
struct ShutdownSignal<'a>(Option<Pin<Box<WaitForCancellationFuture<'a>>>>);

impl<'a> ShutdownSignal<'a> {
    fn new(shutdown: &'a CancellationToken) -> Self {
        Self(Some(Box::pin(shutdown.cancelled())))
    }

    fn fires(&mut self, context: &mut Context<'_>) -> bool {
        let fires = self
            .0
            .as_mut()
            .is_some_and(|shutdown| shutdown.as_mut().poll(context).is_ready());
        if fires {
            self.0 = None;
        }
        fires
    }
}
