//! The whole surface of the API in one table: method, path, access, handler. `docs/openapi.yaml` describes the same routes.

use std::pin::Pin;
use std::sync::Arc;

use hyper::Method;

use super::health::Diagnostics;
use super::live::{sse, websocket};
use super::request::Request;
use super::{
    App, app_instructions, conflicts, devices, enrollment, health, messages, metrics, openapi, presence, sessions,
    state, sync, tables, tickets, users,
};
use crate::http::error::Error;
use crate::http::response::Response;
use crate::http::routes::Router;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Public,
    /// The access token of a web user.
    Web,
    /// The access token of any user.
    User,
    /// The credentials of a device.
    Device,
    /// Any access token or device credentials.
    Any,
}

/// The boxed future of a handler, so that all handlers have one type. It must complete within
/// `server.request_timeout_seconds`; the body of the response may stream for longer.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;

/// A handler as the table holds it.
#[derive(Debug, Clone, Copy)]
pub enum Handler {
    Api(fn(Arc<App>, Request) -> HandlerFuture),
    /// Served in every role.
    Diagnostics(fn(Arc<Diagnostics>, Request) -> HandlerFuture),
}

/// One line of the table.
#[derive(Debug)]
pub struct Route {
    /// GET serves HEAD too.
    pub method: Method,
    /// The path, with parameters in braces.
    pub path: &'static str,
    pub access: Access,
    pub handler: Handler,
}

/// One line: method, path, access, handler. Diagnostics are public.
macro_rules! route {
    ($method:ident $path:literal $access:ident $handler:path) => {
        Route {
            method: Method::$method,
            path: $path,
            access: Access::$access,
            handler: Handler::Api(|app, request| Box::pin($handler(app, request))),
        }
    };
    ($path:literal Diagnostics $handler:path) => {
        Route {
            method: Method::GET,
            path: $path,
            access: Access::Public,
            handler: Handler::Diagnostics(|diagnostics, request| Box::pin($handler(diagnostics, request))),
        }
    };
}

#[rustfmt::skip]
static ROUTES: &[Route] = &[
    route!(POST   "/api/auth/login"            Public sessions::login),
    route!(POST   "/api/auth/register"         Public sessions::register),
    route!(POST   "/api/auth/refresh"          Public sessions::refresh),
    route!(POST   "/api/auth/logout"           User   sessions::logout),
    route!(POST   "/api/auth/password"         User   sessions::change_password),
    route!(GET    "/api/auth/sessions"         User   sessions::list),
    route!(DELETE "/api/auth/sessions"         User   sessions::end_others),
    route!(DELETE "/api/auth/sessions/{id}"    User   sessions::end),

    route!(GET    "/api/users"                 Web    users::list),
    route!(GET    "/api/users/{id}"            Any    users::get),

    route!(POST   "/api/messages"              Web    messages::create),
    route!(GET    "/api/messages"              Any    messages::list),
    route!(GET    "/api/messages/unread-count" Any    messages::unread_count),
    route!(GET    "/api/messages/{id}"         Any    messages::get),
    route!(PATCH  "/api/messages/{id}"         Any    messages::edit),
    route!(DELETE "/api/messages/{id}"         Any    messages::delete),
    route!(PUT    "/api/messages/{id}/read"    Any    messages::mark_read),

    route!(POST   "/api/enrollment/create"     Any    enrollment::create),
    route!(POST   "/api/enrollment/complete"   Public enrollment::complete),
    route!(GET    "/api/enrollment"            Any    enrollment::list),
    route!(GET    "/api/enrollment/{token}"    Public enrollment::get),
    route!(DELETE "/api/enrollment/{token}"    Any    enrollment::withdraw),
    route!(GET    "/api/enrollment/{token}/qr.svg" Public enrollment::picture),

    route!(GET    "/api/devices"               Any    devices::list),
    route!(POST   "/api/devices"               User   devices::add),
    route!(PATCH  "/api/devices/{id}"          Any    devices::update),
    route!(DELETE "/api/devices/{id}"          Any    devices::revoke),

    route!(GET    "/api/presence"              Any    presence::list),
    route!(PUT    "/api/presence"              Any    presence::declare),

    route!(GET    "/api/app-instructions"      Device app_instructions::instructions),

    route!(GET    "/api/sync/incoming"         Device sync::incoming),
    route!(POST   "/api/sync/ack"              Device sync::acknowledge),
    route!(POST   "/api/sync/outgoing"         Device sync::outgoing),
    route!(GET    "/api/sync/status"           Device sync::status),

    route!(GET    "/api/tables/{table}"        Any    tables::list),
    route!(GET    "/api/tables/{table}/{id}"   Any    tables::get),

    route!(GET    "/api/state"                 Any    state::list),
    route!(POST   "/api/state/batch"           Any    state::batch),
    route!(GET    "/api/state/{key}"           Any    state::get),
    route!(PUT    "/api/state/{key}"           Any    state::put),
    route!(DELETE "/api/state/{key}"           Any    state::delete),

    route!(GET    "/api/conflicts"             Any    conflicts::list),
    route!(POST   "/api/conflicts/{id}/resolve" Any   conflicts::resolve),

    route!(POST   "/api/sse/ticket"            Any    tickets::create),
    route!(GET    "/sse/mobile/{device_id}"    Device sse::mobile),
    route!(GET    "/sse/web/{user_id}"         Web    sse::web),
    route!(GET    "/ws"                        Any    websocket::open),

    route!(GET    "/openapi.json"              Public openapi::openapi),

    route!(       "/health"                    Diagnostics health::health),
    route!(       "/ready"                     Diagnostics health::ready),
    route!(       "/metrics"                   Diagnostics metrics::metrics),
];

pub fn table() -> &'static [Route] {
    ROUTES
}

/// The router over the table; without the API, over the diagnostics only.
///
/// # Errors
/// When two paths of the table collide.
pub fn router(with_api: bool) -> Result<Router<&'static Route>, matchit::InsertError> {
    let is_served = |route: &&Route| with_api || matches!(route.handler, Handler::Diagnostics(_));
    let routes = ROUTES.iter().filter(is_served);
    Router::new(routes.map(|route| (route.method.clone(), route.path, route)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::error::Code;

    #[test]
    fn router_without_the_api_serves_diagnostics_only() {
        router(true).expect("no two paths collide");
        let diagnostics = router(false).expect("no two paths collide");
        assert!(diagnostics.find(&Method::GET, "/ready").is_ok());
        let api = diagnostics
            .find(&Method::GET, "/api/users")
            .map(|(route, _)| route.path);
        assert_eq!(api.map_err(|error| error.code), Err(Code::NOT_FOUND));
    }
}
