//! The API as the server's service. Each request is routed, admitted, handled, finished and logged here.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Version};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::App;
use super::admission::{Admission, admit};
use super::auth::Principal;
use super::console::Console;
use super::health::Diagnostics;
use super::request::Request;
use super::request_log::{Failure, RequestRecord, Target};
use super::routes::{self, Handler, HandlerFuture, Route, Surface};
use crate::http::address;
use crate::http::error::{Code, Error};
use crate::http::memory::BodyMemory;
use crate::http::query::Query;
use crate::http::request::drain;
use crate::http::request_id::X_REQUEST_ID;
use crate::http::response::{self, Response};
use crate::http::routes::{Params, Router};
use crate::http::security_headers;
use crate::http::server;
use crate::telemetry::traces;

/// The API, its public diagnostics only, or the admin listener's.
#[derive(Debug)]
pub struct Service {
    diagnostics: Arc<Diagnostics>,
    /// `None` where diagnostics only are served.
    app: Option<Arc<App>>,
    /// On the admin listener.
    console: Option<Arc<Console>>,
    /// Whether its listener speaks HTTPS.
    is_secure: bool,
    router: Router<&'static Route>,
    /// For the bodies of all requests.
    memory: BodyMemory,
}

/// The service of the admin listener. It runs on a thread of its own, so that `/health` is answered while all others are busy;
/// these do the rest.
#[derive(Debug)]
pub struct AdminService {
    service: Arc<Service>,
    workers: Handle,
}

impl AdminService {
    /// To be called where the rest is to be done.
    ///
    /// # Errors
    /// When two paths of the route table collide.
    pub fn new(diagnostics: Arc<Diagnostics>, console: Arc<Console>) -> Result<Self, matchit::InsertError> {
        let service = Service {
            console: Some(console),
            ..Service::of(diagnostics, None, Surface::Admin)?
        };
        Ok(Self {
            service: Arc::new(service),
            workers: Handle::current(),
        })
    }
}

impl server::Service for AdminService {
    async fn respond(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Response {
        if request.uri().path() == "/health" {
            return Box::pin(self.service.respond(request, peer)).await;
        }
        let service = self.service.clone();
        let responding = self
            .workers
            .spawn(async move { Box::pin(service.respond(request, peer)).await });
        match AbortOnDropHandle::new(responding).await {
            Ok(response) => response,
            Err(_) => Error::internal("the engine stops").into_response(""),
        }
    }
}

/// A handler and its state.
enum Call {
    Api(fn(Arc<App>, Request) -> HandlerFuture, Arc<App>),
    Diagnostics(fn(Arc<Diagnostics>, Request) -> HandlerFuture, Arc<Diagnostics>),
    Console(fn(Arc<Console>, Request) -> HandlerFuture, Arc<Console>),
    /// 204: the device was revoked and must not reconnect.
    NoContent,
}

impl Call {
    async fn run(self, request: Request) -> Result<Response, Error> {
        match self {
            Self::Api(handler, app) => handler(app, request).await,
            Self::Diagnostics(handler, diagnostics) => handler(diagnostics, request).await,
            Self::Console(handler, console) => handler(console, request).await,
            Self::NoContent => Ok(response::no_content()),
        }
    }
}

/// What the head of a request determines.
struct Routed {
    route: &'static Route,
    params: Params,
    query: Query,
}

impl server::Service for Service {
    async fn respond(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Response {
        let trusted = &self.diagnostics.config.server.trusted_proxies;
        let mut record = RequestRecord::begin(&request, peer, trusted);
        // Every log line of this request contains its id.
        let span = tracing::info_span!("request", request_id = record.id);
        let handling = self.handle(request, peer, &record.id, &mut record.target);
        let handling = traces::Request::within(record.trace.as_ref(), handling.instrument(span));
        let result = AssertUnwindSafe(handling)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(Error::internal("a handler panicked; the log above shows the panic")));
        let (mut response, failure) = match result {
            Ok(response) => (response, None),
            Err(mut error) => {
                let failure = Failure::of(&mut error);
                (error.into_response(&record.id), Some(failure))
            }
        };
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(&record.id) {
            headers.insert(X_REQUEST_ID, id);
        }
        security_headers::add(headers, self.is_secure);
        record.finish(&self.diagnostics.metrics, &response, failure.as_ref());
        response
    }
}

impl Service {
    /// The public service: the API if there is one, and the public diagnostics.
    ///
    /// # Errors
    /// When two paths of the route table collide.
    pub fn new(diagnostics: Arc<Diagnostics>, app: Option<Arc<App>>) -> Result<Self, matchit::InsertError> {
        let surface = if app.is_some() {
            Surface::Api
        } else {
            Surface::Diagnostics
        };
        Ok(Self {
            is_secure: diagnostics.config.server.is_secure(),
            ..Self::of(diagnostics, app, surface)?
        })
    }

    fn of(
        diagnostics: Arc<Diagnostics>,
        app: Option<Arc<App>>,
        surface: Surface,
    ) -> Result<Self, matchit::InsertError> {
        Ok(Self {
            router: routes::router(surface)?,
            is_secure: false,
            memory: BodyMemory::new(diagnostics.config.body_memory_bytes()),
            diagnostics,
            app,
            console: None,
        })
    }

    /// Routes, admits and runs a request within `server.request_timeout_seconds`. The limit applies until the response
    /// begins: a body that streams may continue.
    async fn handle(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        id: &str,
        target: &mut Target,
    ) -> Result<Response, Error> {
        let timeout = Duration::from_secs(self.diagnostics.config.server.request_timeout_seconds);
        let work = self.run(request, peer, id, target);
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            let text = format!("the request took longer than {} s", timeout.as_secs());
            Err(Error::new(Code::TIMEOUT, text))
        })
    }

    async fn run(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        id: &str,
        target: &mut Target,
    ) -> Result<Response, Error> {
        let (head, body) = request.into_parts();
        let admitted = match self.route(&head, target) {
            Ok(routed) => self
                .admit(&routed, &head.headers, peer)
                .await
                .map(|(call, principal)| (call, principal, routed)),
            Err(error) => Err(error),
        };
        let (call, principal, routed) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                drain(body, &head.headers).await;
                return Err(error);
            }
        };
        target.principal.clone_from(&principal);
        let trusted = &self.diagnostics.config.server.trusted_proxies;
        if let Some(app) = &self.app
            && let Some(proxy) = address::unlisted_proxy(peer.ip(), &head.headers, trusted)
        {
            app.unlisted_proxy.note(proxy);
        }
        let mut request = Request {
            address: address::client(peer.ip(), &head.headers, trusted),
            method: head.method,
            headers: head.headers,
            query: routed.query,
            principal,
            id: id.to_owned(),
            params: routed.params,
            body: Some(body),
            memory: self.memory.share(),
            metrics: self.diagnostics.metrics.clone(),
        };
        // The handlers of these methods read no body, and closing a connection with unread bytes could lose the response.
        if matches!(request.method, Method::GET | Method::HEAD | Method::DELETE)
            && let Some(body) = request.body.take()
        {
            drain(body, &request.headers).await;
        }
        call.run(request).await
    }

    fn route(&self, head: &Parts, target: &mut Target) -> Result<Routed, Error> {
        check_host(head)?;
        let (route, params) = self.router.find(&head.method, head.uri.path())?;
        target.pattern = route.path;
        let query = Query::parse(head.uri.query().unwrap_or_default())?;
        Ok(Routed { route, params, query })
    }

    async fn admit(
        &self,
        routed: &Routed,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<(Call, Option<Principal>), Error> {
        let Routed { route, params, query } = routed;
        let unserved = || Error::internal("the router returned a route that is not served");
        let (handler, app) = match route.handler {
            Handler::Diagnostics(handler) => {
                return Ok((Call::Diagnostics(handler, self.diagnostics.clone()), None));
            }
            Handler::Console(need, handler) => {
                let console = self.console.as_ref().ok_or_else(unserved)?;
                console.admit(need, headers)?;
                return Ok((Call::Console(handler, console.clone()), None));
            }
            Handler::Api(handler) => (handler, self.app.as_ref().ok_or_else(unserved)?),
        };
        let trusted = &self.diagnostics.config.server.trusted_proxies;
        let address = address::client(peer.ip(), headers, trusted);
        app.rates.take_of_address(address, route.cost)?;
        Ok(match admit(app, route, headers, address, params, query).await? {
            Admission::Admitted(principal) => {
                if let Some(principal) = &principal {
                    app.rates.take_of_principal(principal, route.cost)?;
                    app.place(&principal.tenant().name).await?;
                }
                (Call::Api(handler, app.clone()), principal)
            }
            Admission::Revoked => (Call::NoContent, None),
        })
    }
}

/// Checks that a request of HTTP/1.1 has one Host (RFC 9112, section 3.2): a proxy could choose another one of several.
fn check_host(head: &Parts) -> Result<(), Error> {
    let count = head.headers.get_all(HOST).iter().count();
    if count > 1 || (count == 0 && head.version == Version::HTTP_11) {
        return Err(Error::new(
            Code::VALIDATION_ERROR,
            "the request must have one header Host",
        ));
    }
    Ok(())
}
