//! Admission: whether a request may use its route.
//!
//! An access token is a JWT and contains dots; a device token has none. Own access tokens are signed with a secret, those of
//! other providers with a private key, see [`crate::oidc`]. So one `Authorization: Bearer` header serves both,
//! and a device sends `X-Device-ID` beside it. A stream can be opened by a ticket instead, see [`super::tickets`].

use std::net::IpAddr;

use hyper::header::HeaderMap;

use super::App;
use super::auth::{Principal, WebPrincipal};
use super::error::{device_revoked, unauthorized};
use super::rates::VERIFICATION_COST;
use super::routes::{Access, Route};
use super::tickets;
use crate::accounts::external;
use crate::accounts::failed_logins::RefusedIdentity;
use crate::accounts::standing::StampProof;
use crate::accounts::tickets::Stream;
use crate::accounts::users::UserType;
use crate::config::DeviceAuth;
use crate::feature;
use crate::http::error::{Code, Error};
use crate::http::query::Query;
use crate::http::request::header;
use crate::http::routes::Params;
use crate::oidc::Refused;

/// The outcome of an admission.
pub(crate) enum Admission {
    Admitted(Option<Principal>),
    /// The device or user asks for a stream, but was revoked or disabled.
    Revoked,
}

/// Decides whether a request may use a route.
///
/// # Errors
/// 401 without valid credentials of the right kind, 403 for the wrong kind of user.
pub(crate) async fn admit(
    app: &App,
    route: &Route,
    headers: &HeaderMap,
    address: IpAddr,
    params: &Params,
    query: &Query,
) -> Result<Admission, Error> {
    let stream = tickets::stream_of(route, params);
    let ticket = query.get("ticket").zip(stream.as_ref());
    let principal = match authenticate(app, route.access, headers, address, ticket).await {
        // 204 stops an EventSource from reconnecting, as for a session that was ended.
        Err(error)
            if error.code == Code::SESSION_ENDED && matches!(stream, Some(Stream::Mobile(_) | Stream::Web(_))) =>
        {
            return Ok(Admission::Revoked);
        }
        Err(error) if error.code == Code::UNAUTHORIZED && ticket.is_none() && was_revoked(app, headers).await => {
            if matches!(stream, Some(Stream::Mobile(_))) {
                return Ok(Admission::Revoked);
            }
            return Err(device_revoked());
        }
        authenticated => authenticated?,
    };
    // Streams report an ended session in their own form, and session routes check it themselves.
    if let Some(Principal::Web(user)) = &principal
        && stream.is_none()
        && route.access != Access::User
        && !app.sessions.is_live(&user.session_claim()).await?
    {
        return Err(session_ended());
    }
    Ok(Admission::Admitted(principal))
}

/// 401 for a session that was ended.
pub(crate) fn session_ended() -> Error {
    Error::new(Code::SESSION_ENDED, "the session was ended; log in again")
}

/// Checks the device to which a session of the user is bound.
///
/// # Errors
/// 401 when it is revoked.
pub(crate) async fn check_bound(app: &App, user: &WebPrincipal) -> Result<(), Error> {
    let Some(device_id) = &user.device_id else {
        return Ok(());
    };
    let checked = app.devices.check_bound(&user.tenant, user.user_id, device_id).await;
    checked.map_err(|error| match error {
        feature::Error::Unauthorized(text) => Error::new(Code::DEVICE_REVOKED, text),
        other => other.into(),
    })
}

/// Authenticates a request to a route. A ticket for the route's stream takes precedence over headers.
///
/// # Errors
/// 401 without valid credentials of the right kind, 403 for the wrong kind of user.
async fn authenticate(
    app: &App,
    access: Access,
    headers: &HeaderMap,
    address: IpAddr,
    ticket: Option<(&str, &Stream)>,
) -> Result<Option<Principal>, Error> {
    if access == Access::Public {
        return Ok(None);
    }
    let principal = match ticket {
        Some((ticket, stream)) => Box::pin(tickets::redeem(app, ticket, stream)).await?,
        None => identify(app, access, headers, address).await?,
    };
    match (access, &principal) {
        (Access::Device, Principal::Web(_)) => {
            Err(unauthorized(required_credentials(access, app.config.auth.device_auth)))
        }
        (Access::Web, Principal::Device(_)) => Err(Error::new(Code::FORBIDDEN, "only web users may do this")),
        (Access::User, Principal::Device(_)) => Err(Error::new(
            Code::FORBIDDEN,
            "only users with an access token may do this",
        )),
        (Access::Web, Principal::Web(user)) if user.user_type != UserType::Web => {
            Err(Error::new(Code::FORBIDDEN, "only web users may do this"))
        }
        _ => Ok(Some(principal)),
    }
}

/// Whether the headers are those of a device that was revoked, or whose user was disabled or deleted. Its stream responds
/// with 204, which stops an EventSource from reconnecting.
async fn was_revoked(app: &App, headers: &HeaderMap) -> bool {
    match (bearer(headers), header(headers, "x-device-id")) {
        (Ok(Some(token)), Some(device_id)) => app.devices.has_known(device_id, token).await.unwrap_or(false),
        _ => false,
    }
}

/// The principal that the headers identify.
async fn identify(app: &App, access: Access, headers: &HeaderMap, address: IpAddr) -> Result<Principal, Error> {
    let bearer = bearer(headers)?;
    let device_id = header(headers, "x-device-id");
    match (bearer, device_id) {
        // Before it is verified, and before its user is created.
        (Some(token), _) if access == Access::Device && app.providers.accept(token) => {
            Err(unauthorized(required_credentials(access, app.config.auth.device_auth)))
        }
        (Some(token), _) if app.providers.accept(token) => {
            let tenant = header(headers, "x-tenant");
            let user = Box::pin(external_user(app, token, tenant, address));
            Ok(Principal::Web(user.await?))
        }
        (Some(token), _) if token.contains('.') => {
            let user = app.tokens.check(token)?;
            check_bound(app, &user).await?;
            Ok(Principal::Web(user))
        }
        (token, Some(device_id)) if token.is_some() || app.config.auth.device_auth == DeviceAuth::Id => {
            let tenant = header(headers, "x-tenant");
            Ok(Principal::Device(
                app.devices.authenticate(tenant, device_id, token).await?,
            ))
        }
        (Some(_), None) if matches!(access, Access::Device | Access::Any) => {
            Err(unauthorized("the header X-Device-ID is required"))
        }
        (Some(_), None) => Err(unauthorized("the access token is not valid")),
        (None, _) => Err(unauthorized(required_credentials(access, app.config.auth.device_auth))),
        (Some(_), Some(_)) => Err(unauthorized("the credentials are not valid")),
    }
}

/// The user of another provider's token.
///
/// # Errors
/// 401 for a token that is not valid, 403 for one that identifies no user here, 429 for too many verifications of an address,
/// 503 while the keys of the provider are not available.
async fn external_user(app: &App, token: &str, tenant: Option<&str>, address: IpAddr) -> Result<WebPrincipal, Error> {
    let verified = match app.providers.known(token) {
        Some(known) => known,
        None => {
            app.rates.take_of_address(address, VERIFICATION_COST)?;
            match app.providers.verify(token).await {
                Ok(verified) => verified,
                Err(refused) => return Err(token_refused(app, refused, address).await),
            }
        }
    };
    if tenant.is_some_and(|tenant| tenant != verified.tenant.name) {
        let text = "the header X-Tenant names another tenant than the access token: omit it";
        return Err(Error::new(Code::FORBIDDEN, text));
    }
    let user = app.external_users.resolve(&verified, address).await;
    let user = user.map_err(|error| match error {
        feature::Error::Unauthorized(_) => session_ended(),
        other => other.into(),
    })?;
    Ok(WebPrincipal {
        tenant: verified.tenant.clone(),
        user_id: user.id,
        user_type: user.user_type,
        session: verified.session,
        proof: StampProof::IssuedAt(verified.issued_at),
        expires_at: Some(verified.expires_at),
        device_id: None,
    })
}

/// The error for a token of another provider that is refused.
async fn token_refused(app: &App, refused: Refused, address: IpAddr) -> Error {
    match refused {
        Refused::Invalid(why) => unauthorized(&format!("the access token is not valid: {why}")),
        Refused::Expired => Error::new(
            Code::TOKEN_EXPIRED,
            "the access token has expired: get another from its provider",
        ),
        Refused::Claim { issuer, claim } => {
            let refused = RefusedIdentity {
                tenant: None,
                issuer: &issuer,
                subject: None,
                reason: claim.as_str(),
            };
            app.failed_logins.note_identity(address, refused).await;
            Error::new(Code::FORBIDDEN, external::claim_refused(claim))
        }
        Refused::Unavailable(wait) => Error {
            retry_after_seconds: Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).max(1)),
            ..Error::new(
                Code::PROVIDER_UNAVAILABLE,
                "the keys of the provider of the access token are not available; try again later",
            )
        },
    }
}

fn required_credentials(access: Access, mode: DeviceAuth) -> &'static str {
    match (access, mode) {
        (Access::Device, DeviceAuth::Token) => {
            "device credentials are required: the headers X-Device-ID and Authorization: Bearer <device_token>"
        }
        (Access::Device, DeviceAuth::Id) => "device credentials are required: the header X-Device-ID",
        _ => "credentials are required: the header Authorization: Bearer <token>",
    }
}

/// The token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let Some(value) = headers.get(hyper::header::AUTHORIZATION) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty())
        .map(|(_, token)| Some(token.trim()))
        .ok_or_else(|| unauthorized("the header Authorization must be: Bearer <token>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_token_is_parsed() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value.parse().expect("a header"));
            bearer(&headers)
                .map(|token| token.map(str::to_owned))
                .map_err(|error| error.code)
        };
        assert_eq!(with("Bearer abc"), Ok(Some("abc".into())));
        assert_eq!(with("bearer  abc"), Ok(Some("abc".into())));
        for bad in ["Bearer", "Bearer ", "Basic abc", "abc"] {
            assert_eq!(with(bad), Err(Code::UNAUTHORIZED), "{bad}");
        }
    }
}
