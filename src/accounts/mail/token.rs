//! Tokens of mails. They are stored nowhere: a token names what it allows, the stamp of that moment and its end, under an
//! HMAC. What it allows changes the stamp, so it works once.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// Separate the uses of the secret from each other and from all others.
const RESET_PURPOSE: &[u8] = b"posduif password reset";
const ADDRESS_PURPOSE: &[u8] = b"posduif email verification";

/// Characters of a token: a tenant's name has at most 48 bytes, an address at most 254 characters.
const TOKEN_CHARS_MAX: usize = 2048;

/// Bytes in a token behind the names: user, stamp, end, and the MAC.
const IDS_BYTES: usize = 16 + 16 + 8;
const MAC_BYTES: usize = 32;

/// Between the tenant and the address, neither of which contains it.
const SEPARATOR: char = '\0';

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The name of the tenant.
    pub tenant: String,
    pub user: Uuid,
    /// The stamp that the act replaces.
    pub stamp: Uuid,
    /// The address that becomes the user's; `None` for another password.
    pub email: Option<String>,
    /// Seconds since 1970.
    pub(super) expires_at: i64,
}

/// Signs and checks tokens.
#[derive(Clone)]
pub(super) struct Key {
    reset: Hmac<Sha256>,
    address: Hmac<Sha256>,
}

impl Key {
    pub(super) fn new(secret: &[u8]) -> anyhow::Result<Self> {
        let derive = |purpose: &[u8]| {
            let mac = Hmac::<Sha256>::new_from_slice(secret).context("the token secret is no key")?;
            let key = mac.chain_update(purpose).finalize().into_bytes();
            Hmac::new_from_slice(&key).context("the derived key is no key")
        };
        Ok(Self {
            reset: derive(RESET_PURPOSE)?,
            address: derive(ADDRESS_PURPOSE)?,
        })
    }

    pub(super) fn token(&self, claim: &Claim) -> String {
        let mut bytes = claim.tenant.as_bytes().to_vec();
        let mut mac = self.reset.clone();
        if let Some(email) = &claim.email {
            mac = self.address.clone();
            bytes.extend_from_slice(format!("{SEPARATOR}{email}").as_bytes());
        }
        bytes.extend_from_slice(claim.user.as_bytes());
        bytes.extend_from_slice(claim.stamp.as_bytes());
        bytes.extend_from_slice(&claim.expires_at.to_be_bytes());
        mac.update(&bytes);
        bytes.extend_from_slice(&mac.finalize().into_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The claim of a genuine token for another password that has not ended.
    pub(super) fn check_reset(&self, token: &str, now: i64) -> Option<Claim> {
        check(self.reset.clone(), token, now).filter(|claim| claim.email.is_none())
    }

    /// The claim of a genuine token for an address that has not ended.
    pub(super) fn check_address(&self, token: &str, now: i64) -> Option<Claim> {
        check(self.address.clone(), token, now).filter(|claim| claim.email.is_some())
    }
}

fn check(mac: Hmac<Sha256>, token: &str, now: i64) -> Option<Claim> {
    if token.len() > TOKEN_CHARS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
    mac.chain_update(signed).verify_slice(tag).ok()?;
    let (names, ids) = signed.split_at_checked(signed.len().checked_sub(IDS_BYTES)?)?;
    let names = std::str::from_utf8(names).ok()?;
    let (tenant, email) = match names.split_once(SEPARATOR) {
        Some((tenant, email)) => (tenant, Some(email.to_owned())),
        None => (names, None),
    };
    let claim = Claim {
        tenant: tenant.to_owned(),
        user: Uuid::from_slice(ids.get(..16)?).ok()?,
        stamp: Uuid::from_slice(ids.get(16..32)?).ok()?,
        email,
        expires_at: i64::from_be_bytes(ids.get(32..)?.try_into().ok()?),
    };
    (now < claim.expires_at).then_some(claim)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(email: Option<&str>) -> Claim {
        Claim {
            tenant: "acme".to_owned(),
            user: Uuid::from_u128(1),
            stamp: Uuid::from_u128(2),
            email: email.map(str::to_owned),
            expires_at: 1000,
        }
    }

    fn key(secret: &[u8]) -> Key {
        Key::new(secret).expect("a key")
    }

    #[test]
    fn token_says_what_it_was_made_of_until_its_end() {
        let reset = key(b"secret").token(&claim(None));
        assert_eq!(key(b"secret").check_reset(&reset, 999), Some(claim(None)));
        assert_eq!(key(b"secret").check_reset(&reset, 1000), None);
        assert_eq!(key(b"other").check_reset(&reset, 999), None);
        let address = key(b"secret").token(&claim(Some("ann@example.com")));
        let found = key(b"secret").check_address(&address, 999);
        assert_eq!(found, Some(claim(Some("ann@example.com"))));
        assert_eq!(key(b"secret").check_address(&address, 1000), None);
        let longest = Claim {
            tenant: "t".repeat(48),
            ..claim(Some(&"𝕒".repeat(254)))
        };
        let token = key(b"secret").token(&longest);
        assert_eq!(key(b"secret").check_address(&token, 0), Some(longest));
    }

    #[test]
    fn token_of_one_kind_is_none_of_the_other() {
        let key = key(b"secret");
        assert_eq!(key.check_address(&key.token(&claim(None)), 0), None);
        assert_eq!(key.check_reset(&key.token(&claim(Some("a@b"))), 0), None);
    }

    proptest! {
        #[test]
        fn changed_token_is_refused(index in 0_usize..200, bit in 0_u8..8, with_email in any::<bool>()) {
            let key = key(b"secret");
            let token = key.token(&claim(with_email.then_some("ann@example.com")));
            let mut bytes = URL_SAFE_NO_PAD.decode(token).expect("base64");
            let index = index % bytes.len();
            bytes[index] ^= 1 << bit;
            let changed = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert_eq!(key.check_reset(&changed, 0), None);
            prop_assert_eq!(key.check_address(&changed, 0), None);
        }

        #[test]
        fn any_text_is_refused(text in ".{0,300}") {
            let key = key(b"secret");
            prop_assert_eq!(key.check_reset(&text, 0), None);
            prop_assert_eq!(key.check_address(&text, 0), None);
        }
    }
}
