//! The text of a token, and the checks of its signature and times.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use super::Refused;
use super::claims::{self, Claims};
use super::jwks::{Key, library_algorithm};
use crate::config::{Provider, SignatureAlgorithm};

/// Most bytes of a token's header.
const HEADER_BYTES_MAX: usize = 4096;

/// The header of a token, not verified.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub(super) alg: SignatureAlgorithm,
    pub(super) kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, section 4.1.11); none is.
    crit: Option<serde_json::Value>,
}

/// The issuer of a token, not verified: it selects the provider whose keys verify it.
#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

/// The header of a token with a signature that this folder verifies; `None` for others, such as own tokens.
pub(super) fn header(token: &str) -> Option<Header> {
    let (header, _) = token.split_once('.')?;
    if header.len() > HEADER_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()
}

/// The issuer that a token names.
pub(super) fn issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims: Issuer = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    Some(claims.iss)
}

/// The claims and times of a token whose signature is right.
pub(super) struct Checked {
    pub(super) claims: Claims,
    pub(super) issued_at: i64,
    /// `exp`, and the leeway.
    pub(super) expires_at: i64,
}

/// Checks signature, issuer, audience and times.
pub(super) fn check(
    token: &str,
    header: &Header,
    keys: &[Key],
    settings: &Provider,
    now: i64,
) -> Result<Checked, Refused> {
    if header.crit.is_some() {
        return Err(Refused::Invalid("its header has critical extensions"));
    }
    let claims = verify(token, header.alg, keys, settings)?;
    if claims.get("iss").and_then(|issuer| issuer.as_str()) != Some(settings.issuer.as_str()) {
        return Err(Refused::Invalid("its issuer is not accepted"));
    }
    if !claims::has_audience(&claims, settings) {
        return Err(Refused::Invalid("its audience is not this server"));
    }
    let leeway = i64::try_from(settings.leeway_seconds).unwrap_or(i64::MAX);
    let expires_at = claims::seconds(&claims, "exp").ok_or(Refused::Invalid("it has no exp"))?;
    let issued_at = claims::seconds(&claims, "iat").ok_or(Refused::Invalid("it has no iat"))?;
    if expires_at.saturating_add(leeway) <= now {
        return Err(Refused::Expired);
    }
    let begins_at = claims.get("nbf").map(|_| claims::seconds(&claims, "nbf"));
    match begins_at {
        Some(None) => return Err(Refused::Invalid("its nbf is no time")),
        Some(Some(begins_at)) if begins_at > now.saturating_add(leeway) => {
            return Err(Refused::Invalid("it is not valid yet"));
        }
        _ => {}
    }
    if issued_at > now.saturating_add(leeway) {
        return Err(Refused::Invalid("its iat is in the future"));
    }
    let lifetime_max = i64::try_from(settings.token_lifetime_seconds_max).unwrap_or(i64::MAX);
    if expires_at.saturating_sub(issued_at) > lifetime_max {
        return Err(Refused::Invalid("it is valid for longer than this server allows"));
    }
    Ok(Checked {
        claims,
        issued_at,
        expires_at: expires_at.saturating_add(leeway),
    })
}

/// The claims, if one of the keys has signed them. Several keys may have one `kid`.
fn verify(token: &str, algorithm: SignatureAlgorithm, keys: &[Key], settings: &Provider) -> Result<Claims, Refused> {
    if !settings.algorithms.contains(&algorithm) {
        return Err(Refused::Invalid("its algorithm is not accepted"));
    }
    // The library checks the signature; the claims are checked by their mapping, and with errors that name them.
    let mut validation = Validation::new(library_algorithm(algorithm));
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    for key in keys {
        match decode::<Claims>(token, &key.decoding, &validation) {
            Ok(decoded) => return Ok(decoded.claims),
            Err(error) if matches!(error.kind(), ErrorKind::Json(_)) => {
                return Err(Refused::Invalid("its claims are no JSON object"));
            }
            Err(_) => {}
        }
    }
    Err(Refused::Invalid("its signature is wrong"))
}

/// The id under which a token is ended and watched, as a session is. It depends on what is signed, not on the signature: some
/// algorithms have several signatures of one text.
pub(super) fn session(token: &str) -> Uuid {
    let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
    let digest = Sha256::new()
        .chain_update(b"posduif external token\0")
        .chain_update(signed)
        .finalize();
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    Builder::from_random_bytes(first).into_uuid()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn token(header: &serde_json::Value) -> String {
        format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode(header.to_string()))
    }

    #[test]
    fn header_of_symmetric_or_unsigned_tokens_is_none_of_ours() {
        for bad in ["HS256", "HS512", "none", "NONE", "", "rs256", "ES512"] {
            assert!(header(&token(&json!({ "alg": bad }))).is_none(), "{bad}");
        }
        assert!(header(&token(&json!({"alg": ["RS256"]}))).is_none());
        assert!(header(&token(&json!({"alg": "RS256", "kid": 7}))).is_none());
        let good = header(&token(
            &json!({"alg": "EdDSA", "kid": "a", "jku": "https://evil.example.com"}),
        ));
        assert_eq!(good.expect("a header").kid.as_deref(), Some("a"));
        assert!(header(&token(&json!({"alg": "RS256", "kid": "x".repeat(HEADER_BYTES_MAX)}))).is_none());
    }

    #[test]
    fn issuer_is_read_of_three_parts_only() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iss":"i"}"#);
        assert_eq!(issuer(&format!("h.{claims}.s")).as_deref(), Some("i"));
        for bad in [
            format!("h.{claims}"),
            format!("h.{claims}.s.t"),
            "h..s".into(),
            "..".into(),
            String::new(),
        ] {
            assert_eq!(issuer(&bad), None, "{bad}");
        }
    }

    #[test]
    fn session_depends_on_the_signed_text_only() {
        assert_eq!(session("h.c.one"), session("h.c.two"));
        assert_ne!(session("h.c.one"), session("h.d.one"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,300}", json in "[ -~]{0,80}") {
            let _ = (header(&text), issuer(&text), session(&text));
            let part = URL_SAFE_NO_PAD.encode(&json);
            let token = format!("{part}.{part}.{part}");
            let _ = (header(&token), issuer(&token));
        }
    }
}
