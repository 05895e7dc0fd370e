//! The whole surface of the API.

use std::pin::Pin;
use std::sync::Arc;

use hyper::Method;

use super::error::{Code, Error};
use super::request::{Request, percent_decode};
use super::response::Response;
use crate::api::health::Diagnostics;
use crate::api::live::{sse, websocket};
use crate::api::{
    App, app_instructions, conflicts, devices, enrollment, health, messages, metrics, openapi, presence, sessions,
    state, sync, tickets, users,
};

/// Whom a route admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// A web user's access token.
    Web,
    /// Any user's access token.
    User,
    /// A device's credentials.
    Device,
    /// Either of the two, and a mobile user's access token.
    Any,
}

/// What a handler gives, boxed, so that all handlers have one type. It must come within
/// `server.request_timeout_seconds`; the body of the answer may then stream for as long as it likes.
pub type Answer = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;

/// A handler as the table holds it.
#[derive(Debug, Clone, Copy)]
pub enum Handler {
    /// Of the API.
    Api(fn(Arc<App>, Request) -> Answer),
    /// Of how the process is: there in every role.
    Diagnostics(fn(Arc<Diagnostics>, Request) -> Answer),
}

/// One line of the table.
#[derive(Debug)]
pub struct Route {
    /// The method; a GET route answers HEAD too.
    pub method: Method,
    /// The path, parameters in braces.
    pub path: &'static str,
    /// Whom it admits.
    pub access: Access,
    /// What answers.
    pub handler: Handler,
}

/// One line: method, path, access, handler. What tells how the process is can be read by everybody.
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
            handler: Handler::Diagnostics(|vitals, request| Box::pin($handler(vitals, request))),
        }
    };
}

/// The table.
#[rustfmt::skip]
static ROUTES: &[Route] = &[
    route!(POST   "/api/auth/login"            Public sessions::login),
    route!(POST   "/api/auth/register"         Public sessions::register),
    route!(POST   "/api/auth/refresh"          Public sessions::refresh),
    route!(POST   "/api/auth/logout"           User   sessions::logout),
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

    route!(POST   "/api/enrollment/create"     Web    enrollment::create),
    route!(POST   "/api/enrollment/complete"   Public enrollment::complete),
    route!(GET    "/api/enrollment/{token}"    Public enrollment::get),
    route!(GET    "/api/enrollment/{token}/qr.svg" Public enrollment::picture),

    route!(GET    "/api/devices"               Any    devices::list),
    route!(PATCH  "/api/devices/{id}"          Any    devices::update),
    route!(DELETE "/api/devices/{id}"          Any    devices::revoke),

    route!(GET    "/api/presence"              Any    presence::list),
    route!(PUT    "/api/presence"              Any    presence::declare),

    route!(GET    "/api/app-instructions"      Device app_instructions::instructions),

    route!(GET    "/api/sync/incoming"         Device sync::incoming),
    route!(POST   "/api/sync/ack"              Device sync::acknowledge),
    route!(POST   "/api/sync/outgoing"         Device sync::outgoing),
    route!(GET    "/api/sync/status"           Device sync::status),

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

/// The table, to be read.
pub fn table() -> &'static [Route] {
    ROUTES
}

/// Finds the route of a request.
#[derive(Debug)]
pub struct Router {
    paths: matchit::Router<Vec<&'static Route>>,
}

/// A path's parameters, decoded.
pub type Params = Vec<(String, String)>;

impl Router {
    /// The router over the table, or only over what tells how the process is.
    ///
    /// # Errors
    /// When two paths of the table collide.
    pub fn new(with_api: bool) -> Result<Self, matchit::InsertError> {
        let mut paths = matchit::Router::new();
        let mut seen: Vec<(&str, Vec<&'static Route>)> = Vec::new();
        let is_served = |route: &&Route| with_api || matches!(route.handler, Handler::Diagnostics(_));
        for route in ROUTES.iter().filter(is_served) {
            match seen.iter_mut().find(|(path, _)| *path == route.path) {
                Some((_, routes)) => routes.push(route),
                None => seen.push((route.path, vec![route])),
            }
        }
        for (path, routes) in seen {
            paths.insert(path, routes)?;
        }
        Ok(Self { paths })
    }

    /// The route of a method and path, and the path's parameters.
    ///
    /// # Errors
    /// 404 for an unknown path, 405 for a method it does not have, 400 for parameters with bad percent-encoding.
    pub fn find(&self, method: &Method, path: &str) -> Result<(&'static Route, Params), Error> {
        let found = self
            .paths
            .at(path)
            .map_err(|_| Error::new(Code::NotFound, "there is nothing at this path"))?;
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let Some(route) = found.value.iter().find(|route| route.method == *wanted) else {
            let mut allow: Vec<&str> = found.value.iter().map(|route| route.method.as_str()).collect();
            if allow.contains(&"GET") {
                allow.push("HEAD");
            }
            let allow = allow.join(", ");
            let mut error = Error::new(Code::MethodNotAllowed, format!("allowed here: {allow}"));
            error.allow = Some(allow.into());
            return Err(error);
        };
        let params = found
            .params
            .iter()
            .map(|(key, value)| {
                percent_decode(value)
                    .map(|value| (key.to_owned(), value))
                    .ok_or_else(|| Error::invalid(key, "has bad percent-encoding or characters that cannot be"))
            })
            .collect::<Result<_, _>>()?;
        Ok((route, params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_are_found_or_refused() {
        let router = Router::new(true).expect("no two paths collide");
        let vitals = Router::new(false).expect("no two paths collide");
        assert!(vitals.find(&Method::GET, "/ready").is_ok());
        let api = vitals.find(&Method::GET, "/api/users").map(|(route, _)| route.path);
        assert_eq!(api.map_err(|error| error.code), Err(Code::NotFound));
        let find = |method: Method, path: &str| {
            router
                .find(&method, path)
                .map(|(route, params)| (route.path, params))
                .map_err(|error| (error.code, error.allow.map(String::from)))
        };
        assert_eq!(find(Method::GET, "/health"), Ok(("/health", vec![])));
        assert_eq!(find(Method::HEAD, "/health"), Ok(("/health", vec![])));
        assert_eq!(
            find(Method::GET, "/api/messages/unread-count"),
            Ok(("/api/messages/unread-count", vec![]))
        );
        assert_eq!(
            find(Method::PUT, "/api/messages/a%20b/read"),
            Ok(("/api/messages/{id}/read", vec![("id".into(), "a b".into())]))
        );
        assert_eq!(find(Method::GET, "/nothing"), Err((Code::NotFound, None)));
        assert_eq!(
            find(Method::DELETE, "/api/messages"),
            Err((Code::MethodNotAllowed, Some("POST, GET, HEAD".into())))
        );
        assert_eq!(find(Method::GET, "/api/users/%zz"), Err((Code::ValidationError, None)));
    }
}
