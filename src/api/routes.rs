//! The whole surface of the API in one table: method, path, access, handler. `docs/openapi.yaml` describes the same routes.

use std::pin::Pin;
use std::sync::Arc;

use hyper::Method;

use super::console::session::Need;
use super::console::{self, Console, actions, streams, values};
use super::health::Diagnostics;
use super::live::{sse, websocket};
use super::request::Request;
use super::{
    App, account, app_instructions, conflicts, device_proof, devices, enrollment, health, home, messages, metrics,
    openapi, password_reset, presence, second_factor, sessions, state, sync, tables, tickets, users,
};
use crate::http::error::Error;
use crate::http::response::Response;
use crate::http::routes::Router;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any client.
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
    /// On the admin listener.
    Console(Need, fn(Arc<Console>, Request) -> HandlerFuture),
}

/// One line of the table.
#[derive(Debug)]
pub struct Route {
    /// GET serves HEAD too.
    pub method: Method,
    /// The path, with parameters in braces.
    pub path: &'static str,
    pub access: Access,
    /// Tokens of the section `rates` that a request takes.
    pub cost: u32,
    pub handler: Handler,
}

/// One line: method, path, access, cost, handler. Diagnostics are public, and cost nothing: monitoring must not be limited.
macro_rules! route {
    ($method:ident $path:literal $access:ident $cost:literal $handler:path) => {
        Route {
            method: Method::$method,
            path: $path,
            access: Access::$access,
            cost: $cost,
            handler: Handler::Api(|app, request| Box::pin($handler(app, request))),
        }
    };
    (Console $method:ident $path:literal $need:ident $handler:path) => {
        Route {
            method: Method::$method,
            path: $path,
            access: Access::Public,
            cost: 0,
            handler: Handler::Console(Need::$need, |console, request| Box::pin($handler(console, request))),
        }
    };
    ($path:literal Diagnostics $handler:path) => {
        Route {
            method: Method::GET,
            path: $path,
            access: Access::Public,
            cost: 0,
            handler: Handler::Diagnostics(|diagnostics, request| Box::pin($handler(diagnostics, request))),
        }
    };
}

#[rustfmt::skip]
static ROUTES: &[Route] = &[
    route!(GET    "/api/auth/methods"          Public  1 sessions::methods),
    route!(POST   "/api/auth/login"            Public  5 sessions::login),
    route!(POST   "/api/auth/register"         Public 10 sessions::register),
    route!(POST   "/api/auth/refresh"          Public  2 sessions::refresh),
    route!(POST   "/api/auth/logout"           User    1 sessions::logout),
    route!(POST   "/api/auth/password"         User   10 sessions::change_password),
    route!(POST   "/api/auth/reset"            Public 10 password_reset::request),
    route!(POST   "/api/auth/reset/complete"   Public 10 password_reset::complete),
    route!(GET    "/api/auth/sessions"         User    2 sessions::list),
    route!(DELETE "/api/auth/sessions"         User    5 sessions::end_others),
    route!(DELETE "/api/auth/sessions/{id}"    User    1 sessions::end),
    route!(POST   "/api/auth/second-factor"    User   10 second_factor::begin),
    route!(POST   "/api/auth/second-factor/confirm" User   10 second_factor::confirm),
    route!(POST   "/api/auth/second-factor/delete" User   10 second_factor::remove_own),
    route!(POST   "/api/auth/second-factor/recovery-codes" User 10 second_factor::renew_recovery_codes),

    route!(GET    "/api/users"                 Web     5 users::list),
    route!(GET    "/api/users/{id}"            Any     1 users::get),
    route!(POST   "/api/users/{id}/delete"     User   10 users::erase),
    route!(POST   "/api/users/{id}/second-factor/delete" User   10 second_factor::remove),
    route!(GET    "/api/account"               User    1 account::get),
    route!(POST   "/api/account/email"         User   10 account::change_address),
    route!(POST   "/api/account/email/verify"  Public 10 account::verify_address),
    route!(POST   "/api/account/delete"        User   10 users::erase_own),

    route!(POST   "/api/messages"              Web     2 messages::create),
    route!(GET    "/api/messages"              Any     3 messages::list),
    route!(GET    "/api/messages/unread-count" Any     1 messages::unread_count),
    route!(GET    "/api/messages/{id}"         Any     1 messages::get),
    route!(PATCH  "/api/messages/{id}"         Any     2 messages::edit),
    route!(DELETE "/api/messages/{id}"         Any     2 messages::delete),
    route!(PUT    "/api/messages/{id}/read"    Any     2 messages::mark_read),

    route!(POST   "/api/enrollment/create"     Any     5 enrollment::create),
    route!(POST   "/api/enrollment/complete"   Public 10 enrollment::complete),
    route!(GET    "/api/enrollment"            Any     2 enrollment::list),
    route!(GET    "/api/enrollment/{token}"    Public  2 enrollment::get),
    route!(DELETE "/api/enrollment/{token}"    Any     2 enrollment::withdraw),
    route!(GET    "/api/enrollment/{token}/qr.svg" Public  3 enrollment::picture),

    route!(GET    "/api/devices"               Any     2 devices::list),
    route!(POST   "/api/devices"               User   10 devices::add),
    route!(PATCH  "/api/devices/{id}"          Any     3 devices::update),
    route!(POST   "/api/devices/{id}/challenge" Public 2 device_proof::challenge),
    route!(POST   "/api/devices/{id}/token"    Public 10 device_proof::renew_token),
    route!(DELETE "/api/devices/{id}"          Any     5 devices::revoke),

    route!(GET    "/api/presence"              Any     1 presence::list),
    route!(PUT    "/api/presence"              Any     2 presence::declare),

    route!(GET    "/api/app-instructions"      Device  1 app_instructions::instructions),

    route!(GET    "/api/sync/incoming"         Device  3 sync::incoming),
    route!(POST   "/api/sync/ack"              Device  1 sync::acknowledge),
    route!(POST   "/api/sync/outgoing"         Device  5 sync::outgoing),
    route!(GET    "/api/sync/status"           Device  1 sync::status),

    route!(GET    "/api/tables/{table}"        Any     3 tables::list),
    route!(GET    "/api/tables/{table}/{id}"   Any     1 tables::get),

    route!(GET    "/api/state"                 Any     3 state::list),
    route!(POST   "/api/state/batch"           Any     5 state::batch),
    route!(GET    "/api/state/{key}"           Any     1 state::get),
    route!(PUT    "/api/state/{key}"           Any     2 state::put),
    route!(DELETE "/api/state/{key}"           Any     2 state::delete),

    route!(GET    "/api/conflicts"             Any     3 conflicts::list),
    route!(POST   "/api/conflicts/{id}/resolve" Any     3 conflicts::resolve),

    route!(POST   "/api/sse/ticket"            Any     2 tickets::create),
    route!(GET    "/sse/mobile/{device_id}"    Device  3 sse::mobile),
    route!(GET    "/sse/web/{user_id}"         Web     3 sse::web),
    route!(GET    "/ws"                        Any     3 websocket::open),

    route!(GET    "/openapi.json"              Public  1 openapi::openapi),
    route!(GET    "/"                          Public  1 home::home),

    route!(       "/health"                    Diagnostics health::health),
    route!(       "/ready"                     Diagnostics health::ready),
];

/// The routes of the admin listener.
#[rustfmt::skip]
static ADMIN_ROUTES: &[Route] = &[
    route!(       "/health"                    Diagnostics health::health),
    route!(       "/ready"                     Diagnostics health::ready_in_full),
    route!(       "/metrics"                   Diagnostics metrics::metrics),

    route!(Console GET    "/"                                Nothing  console::home),
    route!(Console GET    "/console/"                        Nothing  console::page),
    route!(Console GET    "/console/{file}"                  Nothing  console::page),

    route!(Console GET    "/admin/openapi.json"              Nothing  openapi::admin_openapi),
    route!(Console GET    "/admin/api/about"                 Nothing  console::session::about),
    route!(Console POST   "/admin/api/session"               Nothing  console::session::open),
    route!(Console GET    "/admin/api/session"               Session console::session::show),
    route!(Console DELETE "/admin/api/session"               Change console::session::end),
    route!(Console POST   "/admin/api/link"                  Change console::session::link),

    route!(Console GET    "/admin/api/figures"               Session streams::figures),
    route!(Console GET    "/admin/api/trace"                 Session streams::trace),

    route!(Console GET    "/admin/api/status"                Session values::status),
    route!(Console GET    "/admin/api/slots"                 Session values::slots),
    route!(Console GET    "/admin/api/epochs"                Session values::epochs),
    route!(Console GET    "/admin/api/tenants"               Session values::tenants),
    route!(Console GET    "/admin/api/tenants/{tenant}"      Session values::tenant),
    route!(Console GET    "/admin/api/tenants/{tenant}/devices" Session values::devices),
    route!(Console GET    "/admin/api/tenants/{tenant}/devices/{device}" Session values::device),
    route!(Console GET    "/admin/api/tenants/{tenant}/groups" Session values::groups),
    route!(Console GET    "/admin/api/tenants/{tenant}/quarantine" Session values::quarantine),
    route!(Console GET    "/admin/api/tenants/{tenant}/conflicts" Session values::conflicts),
    route!(Console GET    "/admin/api/streams"               Session values::streams),
    route!(Console GET    "/admin/api/audit"                 Session values::audit),
    route!(Console GET    "/admin/api/doctor"                Session values::doctor),
    route!(Console GET    "/admin/api/config"                Session values::config),

    route!(Console POST   "/admin/api/slots/{slot}/drop"     Action actions::drop_slot),
    route!(Console POST   "/admin/api/tenants/{tenant}/pause" Action actions::pause),
    route!(Console POST   "/admin/api/tenants/{tenant}/resume" Action actions::resume),
    route!(Console POST   "/admin/api/tenants/{tenant}/resync" Action actions::resync),
    route!(Console POST   "/admin/api/tenants/{tenant}/devices/{device}/revoke" Action actions::revoke),
    route!(Console POST   "/admin/api/tenants/{tenant}/devices/{device}/resync" Action actions::resync_device),
    route!(Console POST   "/admin/api/tenants/{tenant}/quarantine/{id}/drop" Action actions::drop_quarantined),
    route!(Console POST   "/admin/api/tenants/{tenant}/quarantine/{id}/retry" Action actions::retry_quarantined),
    route!(Console POST   "/admin/api/tenants/{tenant}/conflicts/{id}/resolve" Action actions::resolve_conflict),
];

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// The API and the public diagnostics.
    Api,
    /// The public diagnostics only.
    Diagnostics,
    /// The routes of the admin listener.
    Admin,
}

/// The routes of the public listener.
pub fn table() -> &'static [Route] {
    ROUTES
}

/// The routes of the admin listener.
pub fn admin_table() -> &'static [Route] {
    ADMIN_ROUTES
}

/// The router of a surface.
///
/// # Errors
/// When two of its paths collide.
pub fn router(surface: Surface) -> Result<Router<&'static Route>, matchit::InsertError> {
    let table = match surface {
        Surface::Api | Surface::Diagnostics => ROUTES,
        Surface::Admin => ADMIN_ROUTES,
    };
    let is_served = |route: &&Route| match surface {
        Surface::Api | Surface::Admin => true,
        Surface::Diagnostics => matches!(route.handler, Handler::Diagnostics(_)),
    };
    let routes = table.iter().filter(is_served);
    Router::new(routes.map(|route| (route.method.clone(), route.path, route)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::error::Code;

    #[test]
    fn router_serves_the_routes_of_its_surface_only() {
        let served = |surface, path| {
            let router = router(surface).expect("no two paths collide");
            router.find(&Method::GET, path).map(drop).map_err(|error| error.code)
        };
        for (path, surfaces) in [
            ("/health", [true, true, true]),
            ("/ready", [true, true, true]),
            ("/metrics", [false, false, true]),
            ("/api/users", [true, false, false]),
        ] {
            for (surface, expected) in [Surface::Api, Surface::Diagnostics, Surface::Admin]
                .into_iter()
                .zip(surfaces)
            {
                let found = served(surface, path);
                assert_eq!(
                    found,
                    if expected { Ok(()) } else { Err(Code::NOT_FOUND) },
                    "{surface:?} {path}"
                );
            }
        }
    }
}
