//! Refresh tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::accounts::random::random;
use crate::feature::Error;

/// A well-formed refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken {
    /// Constant in a session.
    family: [u8; 16],
    /// Changes with every use.
    secret: [u8; 32],
}

impl std::fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RefreshToken").field(&self.session()).finish()
    }
}

impl RefreshToken {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            family: random()?,
            secret: random()?,
        })
    }

    /// Parses a token.
    pub fn parse(text: &str) -> Option<Self> {
        // Checked first, so that long texts are not decoded.
        if text.len() != 64 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (family, secret) = bytes.split_first_chunk()?;
        Some(Self {
            family: *family,
            secret: secret.try_into().ok()?,
        })
    }

    /// The id of its session.
    pub fn session(&self) -> Uuid {
        let digest = Sha256::new()
            .chain_update(b"posduif session\0")
            .chain_update(self.family)
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        uuid::Builder::from_random_bytes(id).into_uuid()
    }

    pub(super) fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode([&self.family[..], &self.secret[..]].concat())
    }

    pub(super) fn hash(&self) -> String {
        let digest = Sha256::new()
            .chain_update(self.family)
            .chain_update(self.secret)
            .finalize();
        URL_SAFE_NO_PAD.encode(digest)
    }

    pub(super) fn successor(&self, salt: &[u8]) -> Self {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(b"posduif refresh\0");
        mac.update(salt);
        Self {
            family: self.family,
            secret: mac.finalize().into_bytes().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_token_round_trips_and_rejects_malformed_text() {
        let token = RefreshToken::new().expect("random bits");
        let text = token.text();
        assert_eq!(text.len(), 64);
        assert_eq!(RefreshToken::parse(&text), Some(token.clone()));
        for bad in ["", &text[1..], &format!("{text}A"), &"=".repeat(64), &"ä".repeat(32)] {
            assert_eq!(RefreshToken::parse(bad), None, "{bad}");
        }
        assert!(!format!("{token:?}").contains(&text));
    }

    #[test]
    fn successor_derives_from_token_and_salt_in_the_same_session() {
        let token = RefreshToken::new().expect("random bits");
        let next = token.successor(b"salt");
        assert_eq!(next, token.successor(b"salt"));
        assert_eq!(next.session(), token.session());
        assert_ne!(next.hash(), token.hash());
        assert_ne!(next, token.successor(b"other salt"));
        assert_ne!(next, RefreshToken::new().expect("random bits").successor(b"salt"));
    }
}
