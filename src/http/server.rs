//! The server: accepts connections, passes their requests to a [`Service`], and drains on shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;

use super::connection::{ConnectionGuard, Connector};
use super::cors;
use super::response::Response;
use super::secure::Acceptor;
use crate::config::{self, client_network};
use crate::core::slots::Slots;
use crate::telemetry::metrics::Metrics;

/// Pause after `accept` failed, for example because no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long sent data may remain unacknowledged, in milliseconds.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX_MS: u32 = 60_000;

/// What responds to requests. It never fails: an error is a response too.
pub trait Service: Send + Sync + 'static {
    /// Responds to one request of a peer.
    fn respond(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> impl Future<Output = Response> + Send;
}

/// A listening server.
#[derive(Debug)]
pub struct Server<S> {
    listener: TcpListener,
    settings: config::Server,
    metrics: Arc<Metrics>,
    acceptor: Option<Acceptor>,
    service: Arc<S>,
}

impl<S: Service> Server<S> {
    /// A server on a listening socket.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn new(
        listener: TcpListener,
        settings: config::Server,
        metrics: Arc<Metrics>,
        service: S,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            listener,
            acceptor: settings.certificate_files().map(Acceptor::new).transpose()?,
            settings,
            metrics,
            service: Arc::new(service),
        })
    }

    /// Serves until `shutdown`; then requests in progress may finish within `server.shutdown_grace_seconds`.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let settings = &self.settings;
        let slots = Arc::new(Semaphore::new(settings.connections_max));
        let address_slots = Slots::new(settings.connections_per_address_max);
        let tasks = TaskTracker::new();
        let cors = cors::layer(settings)?;
        if let Some(acceptor) = &self.acceptor {
            let reloading = acceptor.clone().reload_on_change();
            let shutdown = shutdown.clone();
            tokio::spawn(async move { shutdown.run_until_cancelled_owned(reloading).await });
        }
        let connector = Arc::new(Connector::new(settings, self.acceptor));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let (stream, peer, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let address_slot = if settings.trusted_proxies.iter().any(|proxy| proxy.contains(peer.ip())) {
                None
            } else if let Some(slot) = address_slots.take(client_network(peer.ip())) {
                Some(slot)
            } else {
                self.metrics.http.refused();
                tracing::debug!(%peer, "connection refused: its address has server.connections_per_address_max");
                continue;
            };
            let service = self.service.clone();
            let respond = tower::service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, io::Error>(service.respond(request, peer).await) }
            });
            let respond = ServiceBuilder::new().option_layer(cors.clone()).service(respond);
            let guard = ConnectionGuard {
                permit,
                address_slot,
                counted: self.metrics.http.connected(),
                tasks: tasks.clone(),
                shutdown: shutdown.clone(),
            };
            let connector = connector.clone();
            tasks.spawn(async move {
                if let Err(error) = connector.serve(stream, respond, guard).await {
                    tracing::debug!(%peer, %error, "connection failed");
                }
            });
        }
        drop(self.listener);
        let grace = Duration::from_secs(settings.shutdown_grace_seconds);
        tasks.close();
        if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
            tracing::warn!(
                grace_seconds = grace.as_secs(),
                "requests were still in progress after the grace period"
            );
        }
        Ok(())
    }
}

/// Accepts a connection once a slot is free. Connections beyond the limit wait in the listener's backlog.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    if let Err(error) = set_user_timeout(&stream) {
        tracing::debug!(%error, "cannot set TCP_USER_TIMEOUT; a vanished client is detected late");
    }
    Ok((stream, peer, permit))
}

/// Ends a connection whose client does not acknowledge sent data for a while (RFC 5482). By default the system retries
/// for a quarter of an hour to reach a phone without coverage.
#[cfg(target_os = "linux")]
fn set_user_timeout(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MAX_MS)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn set_user_timeout(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}
