//! `/api/sse/ticket`: tickets for browsers, whose `EventSource` and `WebSocket` cannot send credentials in a header.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::accounts::devices;
use crate::accounts::tickets::{Grant, Holder, LIFETIME, Stream};
use crate::accounts::users::UserType;
use crate::api::App;
use crate::api::auth::{Principal, WebPrincipal, unauthorized};
use crate::http::error::{Code, Error};
use crate::http::request::{Request, percent_decode};
use crate::http::response::{self, Response};
use crate::http::routes::{Params, Route};

#[derive(Default, Deserialize)]
struct Wanted {
    stream: Option<String>,
}

/// `POST /api/sse/ticket`: a ticket for a stream of the caller's, which the body may name by its path.
///
/// # Errors
/// 400 for what is no stream's path, 401 when the caller's session was ended, 403 and 404 as the stream itself would
/// say, 503 without Redis.
pub async fn create(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: Wanted = request.json_or_default(app.config.server.body_bytes_max).await?;
    let caller = request.caller()?;
    let stream = match body.stream {
        Some(path) => stream_at(&path).ok_or_else(|| {
            let allowed = "must be /sse/web/<user id>, /sse/mobile/<device id> or /ws";
            Error::invalid("stream", allowed)
        })?,
        None => own(caller),
    };
    check_own(&app, caller, &stream).await?;
    let holder = match caller {
        Principal::Web(user) => {
            if app.sessions.is_ended(user.session).await? {
                return Err(unauthorized("this session was ended"));
            }
            Holder::User {
                user_id: user.user_id,
                user_type: user.user_type,
                session: user.session,
                device_id: user.device_id.clone(),
            }
        }
        Principal::Device(device) => Holder::Device {
            device_id: device.device_id.clone(),
            token: device.token,
        },
    };
    let grant = Grant {
        tenant: caller.tenant().clone(),
        stream,
        holder,
    };
    let ticket = app.tickets.issue(&grant).await?;
    response::json(
        StatusCode::CREATED,
        &json!({"ticket": ticket, "stream": grant.stream.to_string(), "expires_in": LIFETIME.as_secs()}),
    )
}

/// The stream that a caller means who names none.
fn own(caller: &Principal) -> Stream {
    match caller {
        Principal::Device(device) => Stream::Mobile(device.device_id.clone()),
        Principal::Web(user) if user.user_type == UserType::Web => Stream::Web(user.user_id),
        Principal::Web(_) => Stream::Socket,
    }
}

/// The stream of a path as a client writes it.
fn stream_at(path: &str) -> Option<Stream> {
    if let Some(user) = path.strip_prefix("/sse/web/") {
        return Uuid::try_parse(user).ok().map(Stream::Web);
    }
    if let Some(device) = path.strip_prefix("/sse/mobile/") {
        return percent_decode(device).map(Stream::Mobile);
    }
    (path == "/ws").then_some(Stream::Socket)
}

/// The stream that a route leads to; `None` for all other routes, which take no tickets.
pub(crate) fn stream_of(route: &Route, params: &Params) -> Option<Stream> {
    let param = || params.first().map(|(_, value)| value);
    match route.path {
        "/sse/web/{user_id}" => Uuid::try_parse(param()?).ok().map(Stream::Web),
        "/sse/mobile/{device_id}" => param().cloned().map(Stream::Mobile),
        "/ws" => Some(Stream::Socket),
        _ => None,
    }
}

/// Who comes with a ticket.
///
/// # Errors
/// 401 for a ticket that is good for nothing, or no more, and for a device that is no more what it was. That a session
/// was ended is for the stream to say, which does so in its own way.
pub(crate) async fn redeem(app: &App, ticket: &str, stream: &Stream) -> Result<Principal, Error> {
    let grant = app.tickets.take(ticket, stream).await?.ok_or_else(|| {
        unauthorized("the ticket is not valid: it was used, is older than 30 s, or is for another stream")
    })?;
    Ok(match grant.holder {
        Holder::User {
            user_id,
            user_type,
            session,
            device_id,
        } => {
            if let Some(device_id) = &device_id {
                app.devices.check_bound(&grant.tenant, user_id, device_id).await?;
            }
            Principal::Web(WebPrincipal {
                tenant: grant.tenant,
                user_id,
                user_type,
                session,
                device_id,
            })
        }
        Holder::Device { device_id, token } => {
            let device = app.devices.check_hash(&grant.tenant.name, &device_id, token).await;
            Principal::Device(device?)
        }
    })
}

/// Refuses a stream that is not the caller's own.
///
/// # Errors
/// 403, or 404 when the tenant has no such device or user.
pub(crate) async fn check_own(app: &App, caller: &Principal, stream: &Stream) -> Result<(), Error> {
    let tenant = caller.tenant();
    match (stream, caller) {
        (Stream::Socket, _) => Ok(()),
        (Stream::Mobile(wanted), Principal::Device(device)) if *wanted == device.device_id => Ok(()),
        (Stream::Web(wanted), Principal::Web(user)) if *wanted == user.user_id && user.user_type == UserType::Web => {
            Ok(())
        }
        (Stream::Mobile(wanted), _) => Err(match devices::exists(&app.database, tenant, wanted).await? {
            true => Error::new(Code::Forbidden, "this is another device's stream"),
            false => Error::new(Code::NotFound, "device not found"),
        }),
        (Stream::Web(wanted), _) => {
            app.users.get(tenant, *wanted).await?;
            Err(Error::new(
                Code::Forbidden,
                "this is another user's stream, or not for users of this kind",
            ))
        }
    }
}
