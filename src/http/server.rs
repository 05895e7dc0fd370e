//! The HTTP server: connections, and a request's way from its head to its log line.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::App;
use super::auth::{self, Principal};
use super::error::{Code, Error};
use super::health::Vitals;
use super::metrics::request_labels;
use super::request::{Query, Request, drain, header};
use super::response::Response;
use super::routes::{Answer, Handler, Params, Route, Router};
use crate::config;

/// How long to wait when the system has no more file descriptors or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    service: Arc<Service>,
}

/// What connections share.
#[derive(Debug)]
struct Service {
    vitals: Arc<Vitals>,
    /// `None` where only the process's health is served.
    app: Option<Arc<App>>,
    router: Router,
}

/// A handler, and what it works with.
enum Call {
    Api(fn(Arc<App>, Request) -> Answer, Arc<App>),
    Vitals(fn(Arc<Vitals>, Request) -> Answer),
}

/// Listens at `server.host` and `server.port`.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn listen(settings: &config::Server) -> io::Result<TcpListener> {
    TcpListener::bind((settings.host.as_str(), settings.port))
        .await
        .map_err(|error| {
            let place = format!("{}:{}", settings.host, settings.port);
            io::Error::new(
                error.kind(),
                format!("cannot listen on {place}: {error}; see `server.host` and `server.port`"),
            )
        })
}

impl Server {
    /// A server on a listening socket; without an `app` only of how the process is.
    ///
    /// # Errors
    /// When two paths of the route table collide.
    pub fn new(listener: TcpListener, vitals: Arc<Vitals>, app: Option<Arc<App>>) -> io::Result<Self> {
        let router = Router::new(app.is_some()).map_err(io::Error::other)?;
        Ok(Self {
            listener,
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
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(settings.header_timeout_seconds));
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
            let connection = builder.serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| {
                    let service = service.clone();
                    async move { Ok::<_, io::Error>(service.answer(request, peer).await) }
                }),
            );
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                let mut connection = pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = shutdown.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection broke");
                }
                drop(permit);
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
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, permit))
}

impl Service {
    /// Answers one request, whatever happens: errors become envelopes, panics too.
    async fn answer(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Response {
        let started = Instant::now();
        let method = request.method().clone();
        let id = request_id(request.headers());
        // The path's pattern, never the path: an enrollment's token is part of that.
        let mut pattern = "";
        let result = AssertUnwindSafe(self.dispatch(request, &id, &mut pattern))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(Error::internal("a handler panicked; the panic is in the log above")));
        let (mut response, failure) = match result {
            Ok(response) => (response, None),
            Err(mut error) => {
                let cause = error.cause.take();
                let failure = (error.code.as_str(), cause);
                (error.into_response(&id), Some(failure))
            }
        };
        finish(response.headers_mut(), &id);
        let status = response.status().as_u16();
        let took = started.elapsed();
        let ms = took.as_millis() as u64;
        let metrics = &self.vitals.metrics.http;
        metrics.answered(request_labels(&method, pattern, response.status()), took);
        match failure {
            Some((code, cause)) if status >= 500 => {
                tracing::error!(%method, path = pattern, status, ms, request_id = id, %peer, code, cause, "request");
            }
            Some((code, cause)) => {
                tracing::info!(%method, path = pattern, status, ms, request_id = id, %peer, code, cause, "request");
            }
            // Probes come every few seconds.
            None if matches!(pattern, "/health" | "/ready" | "/metrics") => {
                tracing::debug!(%method, path = pattern, status, ms, request_id = id, %peer, "request");
            }
            None => tracing::info!(%method, path = pattern, status, ms, request_id = id, %peer, "request"),
        }
        response
    }

    /// Routes, admits and runs.
    async fn dispatch(
        &self,
        request: hyper::Request<Incoming>,
        id: &str,
        pattern: &mut &'static str,
    ) -> Result<Response, Error> {
        let (head, body) = request.into_parts();
        let prepared = self.prepare(&head, pattern);
        let timeout = Duration::from_secs(self.vitals.config.server.request_timeout_seconds);
        let work = async {
            let admitted = match prepared {
                Ok((route, params, query)) => self
                    .admit(route, &head.headers)
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
            let mut request = Request {
                headers: head.headers,
                query,
                principal,
                id: id.to_owned(),
                params,
                body: Some(body),
                metrics: self.vitals.metrics.clone(),
            };
            match call {
                Call::Api(handler, app) => handler(app, request).await,
                Call::Vitals(handler) => {
                    // They answer at once, and an unread body would make the connection's end overtake the answer.
                    if let Some(body) = request.body.take() {
                        drain(body, &request.headers).await;
                    }
                    handler(self.vitals.clone(), request).await
                }
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
    async fn admit(&self, route: &Route, headers: &HeaderMap) -> Result<(Call, Option<Principal>), Error> {
        match (route.handler, &self.app) {
            (Handler::Vitals(handler), _) => Ok((Call::Vitals(handler), None)),
            (Handler::Api(handler), Some(app)) => {
                let principal = auth::admit(app, route.access, headers).await?;
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
fn finish(headers: &mut HeaderMap, id: &str) {
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(X_REQUEST_ID, id);
    }
    headers
        .entry(X_CONTENT_TYPE_OPTIONS)
        .or_insert(HeaderValue::from_static("nosniff"));
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
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
