//! Who sends a request: access tokens of users (JWT, RFC 7519, as RFC 8725 advises) and device tokens.
//!
//! An access token is a JWT and has dots; a device token has none. So one `Authorization: Bearer` header serves both,
//! and a device's needs `X-Device-ID` beside it. Streams can be opened by a ticket instead, see [`crate::api::tickets`].

use std::sync::Arc;

use chrono::Utc;
use hyper::header::HeaderMap;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::accounts::devices::DevicePrincipal;
use crate::accounts::tickets::Stream;
use crate::accounts::users::UserType;
use crate::api::App;
use crate::api::tickets;
use crate::config::{self, DeviceAuth};
use crate::core::tenant::Tenant;
use crate::http::error::{Code, Error};
use crate::http::request::header;
use crate::http::routes::Access;
use crate::sync::cursor::Owner;

/// Seconds by which the clocks of two nodes may differ.
const LEEWAY_SECONDS: u64 = 5;

/// A user with an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebPrincipal {
    /// Their tenant.
    pub tenant: Tenant,
    /// Their id.
    pub user_id: Uuid,
    /// What they are. A mobile user with a password can log in too.
    pub user_type: UserType,
    /// The session that the token was issued in.
    pub session: Uuid,
    /// The user's device that the session is bound to, if its login named one.
    pub device_id: Option<String>,
}

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A user with an access token.
    Web(WebPrincipal),
    /// A device with its token.
    Device(Arc<DevicePrincipal>),
}

impl Principal {
    /// The tenant that all they may see is in.
    pub fn tenant(&self) -> &Tenant {
        match self {
            Self::Web(user) => &user.tenant,
            Self::Device(device) => &device.tenant,
        }
    }

    /// What that user is.
    pub fn user_type(&self) -> UserType {
        match self {
            Self::Web(user) => user.user_type,
            Self::Device(device) => device.user_type,
        }
    }

    /// The user who they are, or whose device they are.
    pub fn user_id(&self) -> Uuid {
        match self {
            Self::Web(user) => user.user_id,
            Self::Device(device) => device.user_id,
        }
    }

    /// The device that they are, or whose session it is.
    pub fn device_id(&self) -> Option<&str> {
        match self {
            Self::Web(user) => user.device_id.as_deref(),
            Self::Device(device) => Some(&device.device_id),
        }
    }

    /// Whose their cursors are.
    pub fn cursor_owner(&self) -> Owner<'_> {
        match self {
            Self::Web(user) => Owner::User(user.user_id),
            Self::Device(device) => Owner::Device(&device.device_id),
        }
    }
}

/// What an access token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: Uuid,
    tenant: String,
    user_type: UserType,
    sid: Uuid,
    /// The device that the session is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    did: Option<String>,
    iss: String,
    aud: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: Uuid,
}

/// Issues and checks access tokens.
pub struct Tokens {
    header: Header,
    encoding: EncodingKey,
    /// By `kid`, the one that signs first.
    decoding: Vec<(String, DecodingKey)>,
    validation: Validation,
    issuer: String,
    audience: String,
    lifetime_seconds: i64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("kid", &self.header.kid)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Takes key, issuer, audience and lifetime from the settings.
    pub fn new(settings: &config::Auth) -> Self {
        let secret = settings.jwt_secret.expose().as_bytes();
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(kid(secret));
        let previous = settings.jwt_previous_secrets.iter();
        let secrets = previous.map(|secret| secret.expose().as_bytes());
        let decoding = std::iter::once(secret)
            .chain(secrets)
            .map(|secret| (kid(secret), DecodingKey::from_secret(secret)))
            .collect();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[&settings.jwt_issuer]);
        validation.set_audience(&[&settings.jwt_audience]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        Self {
            header,
            encoding: EncodingKey::from_secret(secret),
            decoding,
            validation,
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            lifetime_seconds: i64::try_from(settings.token_expiry_seconds).unwrap_or(i64::MAX),
        }
    }

    /// A token for a user, from now on.
    ///
    /// # Errors
    /// 500 when it cannot be signed.
    pub fn issue(&self, user: &WebPrincipal) -> Result<String, Error> {
        let now = Utc::now().timestamp();
        let claims = Claims {
            sub: user.user_id,
            tenant: user.tenant.name.clone(),
            user_type: user.user_type,
            sid: user.session,
            did: user.device_id.clone(),
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            iat: now,
            nbf: now,
            exp: now.saturating_add(self.lifetime_seconds),
            jti: Uuid::new_v4(),
        };
        encode(&self.header, &claims, &self.encoding)
            .map_err(|error| Error::internal(format!("an access token cannot be signed: {error}")))
    }

    /// Who a token speaks for. Nothing but the token is looked at.
    ///
    /// # Errors
    /// 401 for a malformed, forged, expired or foreign token.
    pub fn check(&self, token: &str) -> Result<WebPrincipal, Error> {
        use jsonwebtoken::errors::ErrorKind;
        let invalid = || unauthorized("the access token is not valid");
        let kid = decode_header(token).map_err(|_| invalid())?.kid;
        // Without a name it can only be the present key.
        let mut keys = self.decoding.iter();
        let (_, key) = keys
            .find(|(name, _)| kid.as_ref().is_none_or(|kid| kid == name))
            .ok_or_else(invalid)?;
        let claims = decode::<Claims>(token, key, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => unauthorized("the access token has expired"),
                _ => invalid(),
            })?
            .claims;
        Ok(WebPrincipal {
            tenant: Tenant::named(&claims.tenant).ok_or_else(invalid)?,
            user_id: claims.sub,
            user_type: claims.user_type,
            session: claims.sid,
            device_id: claims.did,
        })
    }
}

/// Names a key without telling it.
fn kid(secret: &[u8]) -> String {
    let digest = Sha256::new()
        .chain_update(b"posduif kid\0")
        .chain_update(secret)
        .finalize();
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unauthorized(message: &str) -> Error {
    Error::new(Code::Unauthorized, message)
}

/// Admits a request to a route, or says why not. A ticket for the stream that the route leads to goes before headers.
///
/// # Errors
/// 401 without valid credentials of the right kind, 403 with those of the wrong kind of user.
pub async fn admit(
    app: &App,
    access: Access,
    headers: &HeaderMap,
    ticket: Option<(&str, &Stream)>,
) -> Result<Option<Principal>, Error> {
    if access == Access::Public {
        return Ok(None);
    }
    let principal = match ticket {
        Some((ticket, stream)) => tickets::redeem(app, ticket, stream).await?,
        None => identify(app, access, headers).await?,
    };
    match (access, &principal) {
        (Access::Device, Principal::Web(_)) => Err(unauthorized(needed(access, app.config.auth.device_auth))),
        (Access::Web, Principal::Device(_)) => Err(Error::new(Code::Forbidden, "this is for web users")),
        (Access::User, Principal::Device(_)) => {
            Err(Error::new(Code::Forbidden, "this is for users who have logged in"))
        }
        (Access::Web, Principal::Web(user)) if user.user_type != UserType::Web => {
            Err(Error::new(Code::Forbidden, "this is for web users"))
        }
        _ => Ok(Some(principal)),
    }
}

/// Whether the headers are those of a device that was let in once and is no more, because it was revoked or its user
/// disabled. Its stream is answered by 204 then, which says to an EventSource that it must not come back.
pub(crate) async fn has_lost_standing(app: &App, headers: &HeaderMap) -> bool {
    match (bearer(headers), header(headers, "x-device-id")) {
        (Ok(Some(token)), Some(device_id)) => app.devices.has_known(device_id, token).await.unwrap_or(false),
        _ => false,
    }
}

/// Who the headers say to send a request.
async fn identify(app: &App, access: Access, headers: &HeaderMap) -> Result<Principal, Error> {
    let bearer = bearer(headers)?;
    let device_id = header(headers, "x-device-id");
    match (bearer, device_id) {
        (Some(token), _) if token.contains('.') => {
            let user = app.tokens.check(token)?;
            if let Some(device_id) = &user.device_id {
                app.devices.check_bound(&user.tenant, user.user_id, device_id).await?;
            }
            Ok(Principal::Web(user))
        }
        (token, Some(device_id)) if token.is_some() || app.config.auth.device_auth == DeviceAuth::Id => {
            let tenant = header(headers, "x-tenant");
            Ok(Principal::Device(
                app.devices.authenticate(tenant, device_id, token).await?,
            ))
        }
        (Some(_), None) if matches!(access, Access::Device | Access::Any) => {
            Err(unauthorized("the header X-Device-ID is needed"))
        }
        (Some(_), None) => Err(unauthorized("the access token is not valid")),
        (None, _) => Err(unauthorized(needed(access, app.config.auth.device_auth))),
        (Some(_), Some(_)) => Err(unauthorized("the credentials are not valid")),
    }
}

fn needed(access: Access, mode: DeviceAuth) -> &'static str {
    match (access, mode) {
        (Access::Device, DeviceAuth::Token) => {
            "a device's credentials are needed: the headers X-Device-ID and Authorization: Bearer <device_token>"
        }
        (Access::Device, DeviceAuth::Id) => "a device's credentials are needed: the header X-Device-ID",
        _ => "credentials are needed: the header Authorization: Bearer <token>",
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
    use crate::config::Secret;

    fn tokens(secret: &str, audience: &str) -> Tokens {
        Tokens::new(&config::Auth {
            jwt_secret: Secret::new(secret),
            jwt_audience: audience.into(),
            ..config::Auth::default()
        })
    }

    #[test]
    fn a_token_speaks_for_its_user_under_its_own_key_and_audience_only() {
        let user = WebPrincipal {
            tenant: Tenant::named("demo").expect("a name"),
            user_id: Uuid::from_u128(7),
            user_type: UserType::Web,
            session: Uuid::from_u128(8),
            device_id: Some("laptop".into()),
        };
        let ours = tokens(&"s".repeat(32), "posduif");
        let token = ours.issue(&user).expect("signed");
        assert_eq!(ours.check(&token).expect("valid"), user);
        assert!(tokens(&"t".repeat(32), "posduif").check(&token).is_err());
        assert!(tokens(&"s".repeat(32), "other").check(&token).is_err());
        for bad in ["", "a.b.c", &token[..token.len() - 1], &format!("{token}x")] {
            assert_eq!(ours.check(bad).expect_err("not valid").code, Code::Unauthorized);
        }
        // `alg: none`, and the signature left out.
        let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).expect("claims"));
        assert!(ours.check(&unsigned).is_err());
    }

    #[test]
    fn tokens_of_a_former_key_are_taken_as_long_as_it_is_known_and_only_under_its_name() {
        let user = WebPrincipal {
            tenant: Tenant::named("demo").expect("a name"),
            user_id: Uuid::from_u128(7),
            user_type: UserType::Web,
            session: Uuid::from_u128(8),
            device_id: None,
        };
        let (old, new) = ("o".repeat(32), "n".repeat(32));
        let token = tokens(&old, "posduif").issue(&user).expect("signed");
        let rotated = |previous: &[&str]| {
            Tokens::new(&config::Auth {
                jwt_secret: Secret::new(&*new),
                jwt_previous_secrets: previous.iter().map(|secret| Secret::new(*secret)).collect(),
                ..config::Auth::default()
            })
        };
        let both = rotated(&["another former secret of enough bytes", &old]);
        assert_eq!(both.check(&token).expect("valid"), user);
        assert!(rotated(&[]).check(&token).is_err());
        // What is issued now bears the new key's name.
        let fresh = both.issue(&user).expect("signed");
        assert!(rotated(&[]).check(&fresh).is_ok());
        assert!(tokens(&old, "posduif").check(&fresh).is_err());
        // A former key under the present one's name, and one without a name.
        for name in [Some(kid(new.as_bytes())), None] {
            let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(&token)
                .expect("claims")
                .claims;
            let mut header = Header::new(Algorithm::HS256);
            header.kid = name;
            let forged = encode(&header, &claims, &EncodingKey::from_secret(old.as_bytes())).expect("signed");
            assert!(both.check(&forged).is_err());
        }
    }

    #[test]
    fn bearer_tokens_are_read() {
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
            assert_eq!(with(bad), Err(Code::Unauthorized), "{bad}");
        }
    }
}
