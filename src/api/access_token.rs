//! Access tokens of users (JWT, RFC 7519, as RFC 8725 advises).

use chrono::Utc;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::auth::WebPrincipal;
use super::error::unauthorized;
use crate::accounts::login::Login;
use crate::accounts::standing::StampProof;
use crate::accounts::users::{Role, UserType};
use crate::config;
use crate::core::tenant::Tenant;
use crate::http::error::{Code, Error};

/// Tolerated difference between the clocks of two nodes.
const LEEWAY_SECONDS: u64 = 5;

/// The claims of an access token.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: Uuid,
    tenant: String,
    user_type: UserType,
    /// For clients: the server reads the role from the user's row. Tokens of earlier versions have none.
    #[serde(default)]
    role: Role,
    sid: Uuid,
    /// The user's security stamp.
    #[serde(default)]
    stamp: Uuid,
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
    /// Keys by `kid`, the current one first.
    decoding: Vec<(String, DecodingKey)>,
    validation: Validation,
    issuer: String,
    audience: String,
    lifetime_seconds: i64,
    /// Whether sessions cannot be refreshed, so that streams end with the token that opened them.
    is_final: bool,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("kid", &self.header.kid)
            .finish_non_exhaustive()
    }
}

impl Tokens {
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
            is_final: !settings.passwords,
        }
    }

    /// Issues a token for a session of a user, which may be bound to a device.
    pub fn issue(&self, login: &Login, session: Uuid, device_id: Option<&str>) -> Result<String, Error> {
        let now = Utc::now().timestamp();
        let claims = Claims {
            sub: login.id,
            tenant: login.tenant.name.clone(),
            user_type: login.user_type,
            role: login.role,
            sid: session,
            stamp: login.stamp,
            did: device_id.map(str::to_owned),
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            iat: now,
            nbf: now,
            exp: now.saturating_add(self.lifetime_seconds),
            jti: Uuid::new_v4(),
        };
        encode(&self.header, &claims, &self.encoding)
            .map_err(|error| Error::internal(format!("cannot sign an access token: {error}")))
    }

    /// The user that a token identifies. Only the token is checked, not the user.
    ///
    /// # Errors
    /// 401 for a malformed, forged or expired token, and for one of another issuer or audience.
    pub fn check(&self, token: &str) -> Result<WebPrincipal, Error> {
        use jsonwebtoken::errors::ErrorKind;
        let invalid = || unauthorized("the access token is not valid");
        let kid = decode_header(token).map_err(|_| invalid())?.kid;
        // Without a `kid` only the current key applies.
        let mut keys = self.decoding.iter();
        let (_, key) = keys
            .find(|(name, _)| kid.as_ref().is_none_or(|kid| kid == name))
            .ok_or_else(invalid)?;
        let claims = decode::<Claims>(token, key, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => {
                    Error::new(Code::TOKEN_EXPIRED, "the access token has expired: refresh it")
                }
                _ => invalid(),
            })?
            .claims;
        Ok(WebPrincipal {
            tenant: Tenant::named(&claims.tenant).ok_or_else(invalid)?,
            user_id: claims.sub,
            user_type: claims.user_type,
            session: claims.sid,
            proof: StampProof::Stamp(claims.stamp),
            expires_at: self.is_final.then_some(claims.exp),
            device_id: claims.did,
        })
    }
}

/// Identifies a key without revealing it.
fn kid(secret: &[u8]) -> String {
    let digest = Sha256::new()
        .chain_update(b"posduif kid\0")
        .chain_update(secret)
        .finalize();
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
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

    const SESSION: Uuid = Uuid::from_u128(8);

    fn bob() -> Login {
        Login {
            tenant: Tenant::named("demo").expect("a name"),
            id: Uuid::from_u128(7),
            username: "bob".into(),
            user_type: UserType::Web,
            stamp: Uuid::from_u128(9),
            role: Role::Member,
        }
    }

    fn principal(device_id: Option<&str>) -> WebPrincipal {
        let login = bob();
        WebPrincipal {
            tenant: login.tenant,
            user_id: login.id,
            user_type: login.user_type,
            session: SESSION,
            proof: StampProof::Stamp(login.stamp),
            expires_at: None,
            device_id: device_id.map(str::to_owned),
        }
    }

    #[test]
    fn token_is_valid_under_its_own_key_and_audience_only() {
        let user = principal(Some("laptop"));
        let ours = tokens(&"s".repeat(32), "posduif");
        let token = ours.issue(&bob(), SESSION, Some("laptop")).expect("signed");
        assert_eq!(ours.check(&token).expect("valid"), user);
        assert!(tokens(&"t".repeat(32), "posduif").check(&token).is_err());
        assert!(tokens(&"s".repeat(32), "other").check(&token).is_err());
        for bad in ["", "a.b.c", &token[..token.len() - 1], &format!("{token}x")] {
            assert_eq!(ours.check(bad).expect_err("not valid").code, Code::UNAUTHORIZED);
        }
        // `alg: none`, and the signature left out.
        let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).expect("claims"));
        assert!(ours.check(&unsigned).is_err());
    }

    #[test]
    fn token_ends_its_streams_where_sessions_cannot_be_refreshed() {
        let secret = "s".repeat(32);
        let token = tokens(&secret, "posduif").issue(&bob(), SESSION, None).expect("signed");
        let without_passwords = Tokens::new(&config::Auth {
            jwt_secret: Secret::new(&*secret),
            passwords: false,
            ..config::Auth::default()
        });
        let user = without_passwords.check(&token).expect("valid");
        assert!(user.expires_at.expect("an end") > Utc::now().timestamp());
    }

    #[test]
    fn token_of_a_previous_key_is_valid_under_its_kid_only() {
        let user = principal(None);
        let (old, new) = ("o".repeat(32), "n".repeat(32));
        let token = tokens(&old, "posduif").issue(&bob(), SESSION, None).expect("signed");
        let rotated = |previous: &[&str]| {
            Tokens::new(&config::Auth {
                jwt_secret: Secret::new(&*new),
                jwt_previous_secrets: previous.iter().map(|secret| Secret::new(*secret)).collect(),
                ..config::Auth::default()
            })
        };
        let both = rotated(&["another previous secret of enough bytes", &old]);
        assert_eq!(both.check(&token).expect("valid"), user);
        assert!(rotated(&[]).check(&token).is_err());
        // New tokens carry the kid of the new key.
        let fresh = both.issue(&bob(), SESSION, None).expect("signed");
        assert!(rotated(&[]).check(&fresh).is_ok());
        assert!(tokens(&old, "posduif").check(&fresh).is_err());
        // The previous key under the kid of the current one, and without a kid.
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
}
