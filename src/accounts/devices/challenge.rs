//! Challenges that devices sign. They are stored nowhere: a challenge is its end and random bits under an HMAC that covers the
//! tenant, the device and the present token of the device.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::token::TokenHash;
use crate::accounts::random::random;
use crate::config;
use crate::feature::Error;

/// Validity of a challenge.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_secs(120);

/// Separates this use of the secret from all others.
const KEY_PURPOSE: &[u8] = b"posduif device challenge";

/// Bytes of a challenge: its end in seconds since 1970, random bits, the tag.
const END_BYTES: usize = 8;
const RANDOM_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
pub(super) const CHALLENGE_BYTES: usize = END_BYTES + RANDOM_BYTES + TAG_BYTES;

/// Makes and checks challenges.
#[derive(Clone)]
pub(super) struct Challenges {
    /// The current key first; those of previous secrets are accepted.
    keys: Vec<Hmac<Sha256>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenges")
    }
}

impl Challenges {
    pub(super) fn new(settings: &config::Auth) -> Self {
        let secrets = std::iter::once(&settings.jwt_secret).chain(&settings.jwt_previous_secrets);
        let keys = secrets.map(|secret| {
            let derived = mac(secret.expose().as_bytes()).chain_update(KEY_PURPOSE);
            mac(&derived.finalize().into_bytes())
        });
        Self { keys: keys.collect() }
    }

    /// A challenge for a device with this token. Devices that do not exist have none.
    pub(super) fn make(
        &self,
        tenant: &str,
        device_id: &str,
        token: Option<TokenHash>,
        now: i64,
    ) -> Result<String, Error> {
        let key = self
            .keys
            .first()
            .ok_or_else(|| Error::Internal("no secret for challenges".into()))?;
        let lifetime = i64::try_from(CHALLENGE_LIFETIME.as_secs()).unwrap_or(i64::MAX);
        let mut challenge = now.saturating_add(lifetime).to_be_bytes().to_vec();
        challenge.extend_from_slice(&random::<RANDOM_BYTES>()?);
        let tag = covering(key, tenant, device_id, token, &challenge)
            .finalize()
            .into_bytes();
        challenge.extend(tag.iter().take(TAG_BYTES));
        Ok(URL_SAFE_NO_PAD.encode(challenge))
    }

    /// Whether this is a challenge of this server for a device with this token that has not expired.
    pub(super) fn is_current(
        &self,
        challenge: &[u8; CHALLENGE_BYTES],
        tenant: &str,
        device_id: &str,
        token: TokenHash,
        now: i64,
    ) -> bool {
        let (content, tag) = challenge.split_at(END_BYTES + RANDOM_BYTES);
        let is_genuine = self.keys.iter().any(|key| {
            covering(key, tenant, device_id, Some(token), content)
                .verify_truncated_left(tag)
                .is_ok()
        });
        let end = content
            .first_chunk::<END_BYTES>()
            .map_or(0, |end| i64::from_be_bytes(*end));
        is_genuine && now < end
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    // HMAC accepts keys of any length (RFC 2104, section 3), so this cannot fail.
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}

/// The HMAC of a challenge; lengths separate the parts.
fn covering(
    key: &Hmac<Sha256>,
    tenant: &str,
    device_id: &str,
    token: Option<TokenHash>,
    content: &[u8],
) -> Hmac<Sha256> {
    let mut mac = key.clone();
    for part in [
        tenant.as_bytes(),
        device_id.as_bytes(),
        token.as_ref().map_or(&[], TokenHash::as_bytes),
        content,
    ] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

/// Reads the text of a challenge, of any server.
pub(super) fn parse(challenge: &str) -> Result<[u8; CHALLENGE_BYTES], Error> {
    let is_short = challenge.len() <= 2 * CHALLENGE_BYTES;
    let bytes = is_short.then(|| URL_SAFE_NO_PAD.decode(challenge).ok()).flatten();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        let text = "is none of this server: send the text that POST /api/devices/{id}/challenge returned";
        Error::invalid("challenge", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auth, Secret};

    fn challenges(secret: &str, previous: &[&str]) -> Challenges {
        Challenges::new(&Auth {
            jwt_secret: Secret::new(secret),
            jwt_previous_secrets: previous.iter().map(|secret| Secret::new(*secret)).collect(),
            ..Auth::default()
        })
    }

    #[test]
    fn challenge_is_of_one_device_token_secret_and_time() {
        let (token, other) = (
            TokenHash::of("one").expect("a hash"),
            TokenHash::of("two").expect("a hash"),
        );
        let made = challenges("secret", &[]);
        let text = made.make("acme", "phone", Some(token), 1000).expect("a challenge");
        assert_eq!(text.len(), 54);
        assert_ne!(text, made.make("acme", "phone", Some(token), 1000).expect("another"));
        let challenge = parse(&text).expect("a challenge");
        let last = 1000 + 119;
        assert!(made.is_current(&challenge, "acme", "phone", token, last));
        assert!(
            !made.is_current(&challenge, "acme", "phone", token, last + 1),
            "expired"
        );
        assert!(
            !made.is_current(&challenge, "acme", "phone", other, 1000),
            "the token was replaced"
        );
        assert!(!made.is_current(&challenge, "acm", "phone", token, 1000));
        assert!(
            !made.is_current(&challenge, "acm", "ephone", token, 1000),
            "lengths separate the parts"
        );
        let none = parse(&made.make("acme", "phone", None, 1000).expect("a challenge")).expect("a challenge");
        assert!(!made.is_current(&none, "acme", "phone", token, 1000));
        assert!(challenges("new", &["secret"]).is_current(&challenge, "acme", "phone", token, last));
        assert!(!challenges("new", &[]).is_current(&challenge, "acme", "phone", token, last));
        for index in 0..CHALLENGE_BYTES {
            let mut changed = challenge;
            changed[index] ^= 1;
            assert!(!made.is_current(&changed, "acme", "phone", token, 1000), "byte {index}");
        }
        let long = "A".repeat(1_000_000);
        for bad in ["", "a\0", &text[1..], &format!("{text}A"), &format!("{text}=="), &long] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
