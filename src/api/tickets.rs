//! `/api/sse/ticket`: tickets for browsers, whose `EventSource` and `WebSocket` cannot send headers.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::accounts::devices;
use crate::accounts::tickets::{Grant, Holder, LIFETIME, Stream};
use crate::accounts::users::UserType;
use crate::api::App;
use crate::api::admission::{check_bound, session_ended};
use crate::api::auth::{Principal, WebPrincipal};
use crate::api::error::unauthorized;
use crate::api::request::Request;
use crate::api::routes::Route;
use crate::http::error::{Code, Error};
use crate::http::percent;
use crate::http::response::{self, Response};
use crate::http::routes::Params;

#[derive(Default, Deserialize)]
struct TicketRequest {
    stream: Option<String>,
}

/// `POST /api/sse/ticket`: issues a ticket for a stream of the caller; the body may contain its path.
///
/// # Errors
/// 400 for a path that is not a stream, 401 if the caller's session was ended, 403 and 404 as for the stream itself.
pub async fn create(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: TicketRequest = request.json_or_default(app.config.server.body_bytes_max).await?;
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
                return Err(session_ended());
            }
            Holder::User {
                user_id: user.user_id,
                user_type: user.user_type,
                session: user.session,
                proof: user.proof,
                expires_at: user.expires_at,
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

/// The default stream of a caller.
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
        return percent::decode(device).map(Stream::Mobile);
    }
    (path == "/ws").then_some(Stream::Socket)
}

/// The stream of a route; `None` for other routes, which accept no tickets.
pub(crate) fn stream_of(route: &Route, params: &Params) -> Option<Stream> {
    let param = || params.first().map(|(_, value)| value);
    match route.path {
        "/sse/web/{user_id}" => Uuid::try_parse(param()?).ok().map(Stream::Web),
        "/sse/mobile/{device_id}" => param().cloned().map(Stream::Mobile),
        "/ws" => Some(Stream::Socket),
        _ => None,
    }
}

/// Redeems a ticket for its principal.
///
/// # Errors
/// 401 for an invalid, used or expired ticket, and for a device that was revoked since. An ended session is reported by the
/// stream in its own form.
pub(crate) async fn redeem(app: &App, ticket: &str, stream: &Stream) -> Result<Principal, Error> {
    let grant =
        app.tickets.take(ticket, stream).await?.ok_or_else(|| {
            unauthorized("the ticket is not valid: it is used, older than 30 s, or for another stream")
        })?;
    Ok(match grant.holder {
        Holder::User {
            user_id,
            user_type,
            session,
            proof,
            expires_at,
            device_id,
        } => {
            let user = WebPrincipal {
                tenant: grant.tenant,
                user_id,
                user_type,
                session,
                proof,
                expires_at,
                device_id,
            };
            check_bound(app, &user).await?;
            Principal::Web(user)
        }
        Holder::Device { device_id, token } => {
            let device = app.devices.check_hash(&grant.tenant.name, &device_id, token).await;
            Principal::Device(device?)
        }
    })
}

/// Refuses a stream of another device or user.
///
/// # Errors
/// 403, or 404 if the tenant has no such device or user.
pub(crate) async fn check_own(app: &App, caller: &Principal, stream: &Stream) -> Result<(), Error> {
    let tenant = caller.tenant();
    match (stream, caller) {
        (Stream::Socket, _) => Ok(()),
        (Stream::Mobile(wanted), Principal::Device(device)) if *wanted == device.device_id => Ok(()),
        (Stream::Web(wanted), Principal::Web(user)) if *wanted == user.user_id && user.user_type == UserType::Web => {
            Ok(())
        }
        (Stream::Mobile(wanted), _) => {
            let exists = devices::exists(&app.database, tenant, wanted).await?;
            Err(if exists {
                Error::new(Code::FORBIDDEN, "the stream belongs to another device")
            } else {
                Error::new(Code::NOT_FOUND, "device not found")
            })
        }
        (Stream::Web(wanted), _) => {
            app.users.get(tenant, *wanted).await?;
            Err(Error::new(
                Code::FORBIDDEN,
                "the stream belongs to another user, or the user is not a web user",
            ))
        }
    }
}
