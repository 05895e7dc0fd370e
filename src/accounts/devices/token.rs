//! Device tokens and their hashes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::accounts::random::random;
use crate::feature::Error;

/// Longest device token that is hashed; Posduif's tokens have 43 characters.
const BYTES_MAX: usize = 512;

/// SHA-256 of a device token. A token has 256 random bits, so that the hash does not reveal it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// `None` for a text that is longer than any token.
    pub fn of(token: &str) -> Option<Self> {
        (token.len() <= BYTES_MAX).then(|| Self(Sha256::digest(token.as_bytes()).into()))
    }

    /// The hash in base64url.
    pub fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads the text of a hash.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// `None` for bytes that are no SHA-256.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A new device token.
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) hash: TokenHash,
}

impl Token {
    /// 256 random bits in base64url.
    pub(crate) fn generate() -> Result<Self, Error> {
        let text = URL_SAFE_NO_PAD.encode(random::<32>()?);
        let hash = TokenHash(Sha256::digest(text.as_bytes()).into());
        Ok(Self { text, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_random_and_contains_no_dot() {
        let (one, two) = (Token::generate().expect("a token"), Token::generate().expect("a token"));
        assert_ne!(one.text, two.text);
        assert_eq!(one.text.len(), 43);
        assert!(!one.text.contains('.'), "a dot distinguishes access tokens");
        assert_eq!(TokenHash::of(&one.text), Some(one.hash));
        assert_eq!(TokenHash::parse(&one.hash.text()), Some(one.hash));
        assert_eq!(TokenHash::of(&"x".repeat(BYTES_MAX + 1)), None);
    }
}
