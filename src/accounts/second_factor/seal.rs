//! Encryption of the secrets of second factors at rest: ChaCha20-Poly1305 under a key that is derived from
//! `auth.jwt_secret`, for one user of one tenant.
//!
//! A sealed secret begins with the name of its key. One of a key of `auth.jwt_previous_secrets` is opened as well, and
//! replaced when an engine starts, so that a former value can be removed later.

use std::sync::Arc;

use anyhow::Context as _;
use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Sha256;
use uuid::Uuid;

use crate::accounts::random::random;
use crate::config;
use crate::feature::Error;

/// Separates these uses of the secret from all others.
const KEY_PURPOSE: &[u8] = b"posduif second factor key";
const NAME_PURPOSE: &[u8] = b"posduif second factor key name";

/// Bytes of the name of a key.
pub(super) const NAME_BYTES: usize = 8;

/// Encrypts and decrypts. Cloning shares the keys.
#[derive(Clone)]
pub(super) struct Seal(Arc<[Key]>);

struct Key {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// The current key is the first one.
    pub(super) fn new(settings: &config::Auth) -> anyhow::Result<Self> {
        let secrets = std::iter::once(&settings.jwt_secret).chain(&settings.jwt_previous_secrets);
        let keys: anyhow::Result<Vec<Key>> = secrets.map(|secret| key(secret.expose().as_bytes())).collect();
        Ok(Self(keys?.into()))
    }

    /// The name of the current key.
    pub(super) fn name(&self) -> [u8; NAME_BYTES] {
        self.0.first().map_or([0; NAME_BYTES], |key| key.name)
    }

    pub(super) fn seal(&self, tenant: &str, user: Uuid, secret: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = || Error::Internal("cannot encrypt the secret of a second factor".into());
        let key = self.0.first().ok_or_else(failed)?;
        let nonce = random::<NONCE_LEN>()?;
        let mut content = secret.to_vec();
        let bound = Aad::from(context(tenant, user));
        key.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut content)
            .map_err(|_| failed())?;
        Ok([&key.name[..], &nonce[..], &content[..]].concat())
    }

    /// The secret of a user; `None` when it was sealed for another one, was changed, or its key is not configured.
    pub(super) fn open(&self, tenant: &str, user: Uuid, sealed: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = sealed.split_at_checked(NAME_BYTES)?;
        let (nonce, content) = rest.split_at_checked(NONCE_LEN)?;
        let key = self.0.iter().find(|key| key.name == name)?;
        let mut content = content.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = key
            .key
            .open_in_place(nonce, Aad::from(context(tenant, user)), &mut content);
        opened.ok().map(|secret| secret.to_vec())
    }
}

fn key(secret: &[u8]) -> anyhow::Result<Key> {
    let derive = |purpose: &[u8]| {
        let mac = Hmac::<Sha256>::new_from_slice(secret).context("the token secret is no key")?;
        anyhow::Ok(mac.chain_update(purpose).finalize().into_bytes())
    };
    let unbound = UnboundKey::new(&CHACHA20_POLY1305, &derive(KEY_PURPOSE)?);
    let mut name = [0; NAME_BYTES];
    name.copy_from_slice(&derive(NAME_PURPOSE)?[..NAME_BYTES]);
    Ok(Key {
        name,
        key: LessSafeKey::new(unbound.map_err(|_| anyhow::anyhow!("the derived key is no key"))?),
    })
}

/// Whose secret it is. A tenant's name has no zero byte.
fn context(tenant: &str, user: Uuid) -> Vec<u8> {
    [tenant.as_bytes(), &[0], user.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const USER: Uuid = Uuid::from_u128(7);

    fn seal(current: &str, previous: &[&str]) -> Seal {
        Seal::new(&config::Auth {
            jwt_secret: Secret::new(current),
            jwt_previous_secrets: previous.iter().map(|secret| Secret::new(*secret)).collect(),
            ..config::Auth::default()
        })
        .expect("keys")
    }

    #[test]
    fn sealed_secret_opens_for_its_user_under_current_and_former_keys() {
        let sealed = seal("one", &[]).seal("acme", USER, b"secret").expect("sealed");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(
            seal("one", &[]).open("acme", USER, &sealed).as_deref(),
            Some(&b"secret"[..])
        );
        assert_eq!(
            seal("two", &["one"]).open("acme", USER, &sealed).as_deref(),
            Some(&b"secret"[..])
        );
        assert_eq!(seal("two", &[]).open("acme", USER, &sealed), None);
        assert_eq!(seal("one", &[]).open("acme", Uuid::nil(), &sealed), None);
        assert_eq!(seal("one", &[]).open("acm", USER, &sealed), None);
        let again = seal("one", &[]).seal("acme", USER, b"secret").expect("sealed");
        assert_ne!(sealed, again, "each has a nonce of its own");
    }

    #[test]
    fn changed_or_short_secret_does_not_open() {
        let seal = seal("one", &[]);
        let sealed = seal.seal("acme", USER, b"secret").expect("sealed");
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(seal.open("acme", USER, &changed), None, "byte {index}");
            assert_eq!(seal.open("acme", USER, &sealed[..index]), None, "{index} bytes");
        }
    }
}
