//! The routes of the demo's server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper::Method;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::control::Control;
use super::data::{self, LIST_NAME, Prepared};
use super::events::{self, AdminListener};
use super::sql_box::{Refusal, SqlBox};
use super::{PASSWORD, TENANT};
use crate::config;
use crate::http::assets::Page;
use crate::http::error::{Code, Error};
use crate::http::memory::BodyMemory;
use crate::http::own_origin::OwnOrigin;
use crate::http::query::Query;
use crate::http::request::{self, Request, drain};
use crate::http::request_id::{X_REQUEST_ID, request_id};
use crate::http::response::{self, Response};
use crate::http::routes::{Params, Router};
use crate::http::security_headers;
use crate::http::server::{self, Server};
use crate::postgres::{Database, sql};
use crate::telemetry::metrics::{Labels, Metrics};

/// Timeout of a request; a restart of Redis takes longest.
const TIMEOUT: Duration = Duration::from_secs(30);

const CONNECTIONS_MAX: usize = 64;

/// How long the end of the demo waits for requests in progress.
const SHUTDOWN_GRACE_SECONDS: u64 = 1;

const BODY_BYTES_MAX: usize = 64 * 1024;

/// Requests that change something, at once.
const CHANGES_MAX: usize = 4;

/// Open streams of events.
const STREAMS_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Redirects to the page.
    Root,
    Page,
    Setup,
    ConsoleLink,
    Sql,
    KillEngine,
    RestartRedis,
    Truth,
    Events,
}

const ROUTES: [(Method, &str, Route); 11] = [
    (Method::GET, "/", Route::Root),
    (Method::GET, "/demo", Route::Root),
    (Method::GET, "/demo/", Route::Page),
    (Method::GET, "/demo/{*file}", Route::Page),
    (Method::GET, "/demo/api/setup", Route::Setup),
    (Method::POST, "/demo/api/console-link", Route::ConsoleLink),
    (Method::POST, "/demo/api/sql", Route::Sql),
    (Method::POST, "/demo/api/engine/kill", Route::KillEngine),
    (Method::POST, "/demo/api/redis/restart", Route::RestartRedis),
    (Method::GET, "/demo/api/truth", Route::Truth),
    (Method::GET, "/demo/api/events", Route::Events),
];

/// What the demo's server is made of.
#[derive(Debug)]
pub struct Parts {
    /// The port of the demo's server.
    pub port: u16,
    /// The origin of the engine.
    pub engine: String,
    pub admin: Option<AdminListener>,
    /// The owner's connections.
    pub database: Database,
    pub prepared: Prepared,
    /// The port and the database of the private Postgres; `None` without one: then no page runs statements.
    pub private_postgres: Option<(u16, String)>,
    pub has_private_redis: bool,
    pub control: Control,
    /// Ends the streams of events.
    pub stop: CancellationToken,
}

/// The demo's server as a service.
#[derive(Debug)]
pub struct Service {
    router: Router<Route>,
    own: OwnOrigin,
    parts: Parts,
    metrics: Arc<Metrics>,
    sql_box: Option<SqlBox>,
    memory: BodyMemory,
    changes: Semaphore,
    streams: Arc<Semaphore>,
}

#[derive(Debug, Deserialize)]
struct SqlForm {
    sql: String,
}

/// Creates the demo's server on a listening socket, and the role of its SQL box where Postgres is private.
///
/// # Errors
/// When Postgres refuses the role.
pub async fn server(listener: TcpListener, parts: Parts) -> Result<Server<Service>> {
    let settings = config::Server {
        port: parts.port,
        connections_max: CONNECTIONS_MAX,
        connections_per_address_max: CONNECTIONS_MAX,
        shutdown_grace_seconds: SHUTDOWN_GRACE_SECONDS,
        ..config::Server::default()
    };
    let metrics = Arc::new(Metrics::new(false, &Labels::default()));
    let service = Service::create(parts, metrics.clone()).await?;
    Server::new(listener, settings, metrics, service)
}

impl server::Service for Service {
    async fn respond(&self, request: hyper::Request<Incoming>, _peer: SocketAddr) -> Response {
        let id = request_id(request.headers());
        let handled = tokio::time::timeout(TIMEOUT, self.handle(request, &id)).await;
        let handled = handled.unwrap_or_else(|_| Err(Error::new(Code::OVERLOADED, "the request took too long")));
        let mut response = handled.unwrap_or_else(|error| {
            if let Some(cause) = &error.cause {
                tracing::warn!(request_id = id, cause, "a request to the demo failed");
            }
            error.into_response(&id)
        });
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(&id) {
            headers.insert(X_REQUEST_ID, id);
        }
        security_headers::add(headers, false);
        response
    }
}

impl Service {
    async fn create(parts: Parts, metrics: Arc<Metrics>) -> Result<Self> {
        let sql_box = match &parts.private_postgres {
            Some((port, name)) => {
                let has_tables = parts.prepared.list.is_some();
                Some(SqlBox::create(parts.database.clone(), *port, name, has_tables).await?)
            }
            None => None,
        };
        Ok(Self {
            router: Router::new(ROUTES)?,
            own: OwnOrigin::on_loopback(parts.port),
            sql_box,
            memory: BodyMemory::new(CHANGES_MAX * BODY_BYTES_MAX),
            changes: Semaphore::new(CHANGES_MAX),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            metrics,
            parts,
        })
    }

    async fn handle(&self, request: hyper::Request<Incoming>, id: &str) -> Result<Response, Error> {
        let (head, body) = request.into_parts();
        let admitted = self
            .own
            .check_host(&head.uri, &head.headers)
            .and_then(|()| self.router.find(&head.method, head.uri.path()))
            .and_then(|(route, params)| {
                self.check_sender(&head.method, head.uri.path(), &head.headers)?;
                let query = Query::parse(head.uri.query().unwrap_or_default())?;
                Ok((route, params, query))
            });
        let (route, params, query) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                drain(body, &head.headers).await;
                return Err(error);
            }
        };
        let mut request = Request {
            method: head.method,
            headers: head.headers,
            query,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            principal: None::<()>,
            id: id.to_owned(),
            params,
            body: Some(body),
            memory: self.memory.share(),
            metrics: self.metrics.clone(),
        };
        if request.method != Method::POST {
            if let Some(body) = request.body.take() {
                drain(body, &request.headers).await;
            }
            return self.get(route, &request).await;
        }
        let _slot = self.changes.try_acquire().map_err(|_| overloaded())?;
        self.post(route, &mut request).await
    }

    /// Pages of other origins may link to the page, and do nothing else.
    fn check_sender(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Error> {
        if *method == Method::POST {
            self.own.check_change(headers)?;
            let is_json = headers
                .get(CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
            return match is_json {
                true => Ok(()),
                false => Err(Error::new(
                    Code::UNSUPPORTED_MEDIA_TYPE,
                    "Content-Type must be application/json",
                )),
            };
        }
        match path.starts_with("/demo/api/") {
            true => self.own.check_sender(headers),
            false => Ok(()),
        }
    }

    async fn get(&self, route: Route, request: &Request<()>) -> Result<Response, Error> {
        match route {
            Route::Root => response::see_other("/demo/"),
            Route::Page => Page::Demo.respond(file(&request.params), &request.headers, &self.engine_origins()),
            Route::Setup => self.setup(),
            Route::Truth => self.truth(request).await,
            Route::Events => self.events(),
            _ => Err(Error::internal("the router returned a route of another method")),
        }
    }

    async fn post(&self, route: Route, request: &mut Request<()>) -> Result<Response, Error> {
        match route {
            Route::Sql => {
                let form: SqlForm = request.json(BODY_BYTES_MAX).await?;
                self.run_sql(&form.sql).await
            }
            Route::ConsoleLink => self.console_link().await,
            Route::KillEngine => {
                let pid = self.parts.control.kill_engine().await.map_err(unavailable)?;
                match pid {
                    Some(pid) => response::ok(&json!({ "pid": pid })),
                    None => Err(Error::new(Code::OVERLOADED, "the engine does not run now")),
                }
            }
            Route::RestartRedis if self.parts.has_private_redis => {
                let ms = self.parts.control.restart_redis().await.map_err(unavailable)?;
                response::ok(&json!({ "ms": ms }))
            }
            Route::RestartRedis => Err(Error::new(Code::NOT_FOUND, "Redis is not a private one")),
            _ => Err(Error::internal("the router returned a route of another method")),
        }
    }

    fn setup(&self) -> Result<Response, Error> {
        let Prepared { users, list } = &self.parts.prepared;
        let console = self.parts.admin.as_ref().map(|admin| format!("{}/console/", admin.url));
        response::ok(&json!({
            "engine": self.parts.engine,
            "tenant": TENANT,
            "password": PASSWORD,
            "users": users,
            "list": list.map(|id| json!({ "id": id, "name": LIST_NAME })),
            "console": console,
            "features": {
                "sql": self.sql_box.is_some(),
                "kill": true,
                "redis": self.parts.has_private_redis,
            },
        }))
    }

    /// Where the page may connect to: the engine, by HTTP and by WebSocket.
    fn engine_origins(&self) -> [String; 2] {
        let engine = &self.parts.engine;
        [engine.clone(), engine.replacen("http", "ws", 1)]
    }

    async fn run_sql(&self, statement: &str) -> Result<Response, Error> {
        let Some(sql_box) = &self.sql_box else {
            return Err(Error::new(Code::NOT_FOUND, "Postgres is not a private one"));
        };
        match sql_box.run(statement).await {
            Ok(output) => response::ok(&output),
            Err(Refusal { message, sqlstate }) => {
                let error = json!({ "code": "SQL_ERROR", "message": message, "sqlstate": sqlstate });
                response::json(Code::VALIDATION_ERROR.status(), &json!({ "error": error }))
            }
        }
    }

    async fn console_link(&self) -> Result<Response, Error> {
        let Some(admin) = &self.parts.admin else {
            return Err(Error::new(Code::NOT_FOUND, "the engine has no admin listener"));
        };
        let link = async {
            let (client, request) = admin.request(Method::POST, "/admin/api/link")?;
            client.send(request).await
        };
        let answer = link.await.map_err(unavailable)?;
        if !answer.status().is_success() {
            return Err(unavailable(anyhow::anyhow!(
                "the admin listener answered {} to the request for a link",
                answer.status()
            )));
        }
        Ok(response::with_type(
            answer.status(),
            "application/json",
            answer.into_body(),
        ))
    }

    async fn truth(&self, request: &Request<()>) -> Result<Response, Error> {
        if self.parts.prepared.list.is_none() {
            return Err(Error::new(Code::NOT_FOUND, "the demo runs without its tables"));
        }
        let user = request.query.get("user").unwrap_or_default();
        let user: Uuid = request::uuid("user", user)?;
        let tenant = data::tenant().map_err(unavailable)?;
        let rows = self
            .parts
            .database
            .query(&sql!("dev/demo_truth", tenant), &[(&user, Type::UUID)])
            .await;
        let text: Result<String, anyhow::Error> = async {
            let rows = rows?;
            let row = rows.first().ok_or_else(|| anyhow::anyhow!("no row"))?;
            Ok(row.try_get(0)?)
        }
        .await;
        let value: serde_json::Value = serde_json::from_str(&text.map_err(unavailable)?)
            .map_err(|error| Error::internal(format!("the truth is not JSON: {error}")))?;
        response::ok(&value)
    }

    fn events(&self) -> Result<Response, Error> {
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| overloaded())?;
        let Parts {
            control, admin, stop, ..
        } = &self.parts;
        let body = events::open(control.clone(), admin.clone(), stop.clone(), permit);
        Ok(response::event_stream(body))
    }
}

fn file(params: &Params) -> &str {
    params.first().map_or("", |(_, file)| file.as_str())
}

fn overloaded() -> Error {
    Error::new(Code::OVERLOADED, "too many requests at once; try again in a moment")
}

/// 503 for what a restart of a server may cause.
fn unavailable(error: anyhow::Error) -> Error {
    let mut failure = Error::new(Code::OVERLOADED, "a server does not answer now; try again in a moment");
    failure.cause = Some(format!("{error:#}").into());
    failure
}
