use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::provider::{self, Provider};
use super::secret::Secret;
use super::section::section;

/// How devices authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceAuth {
    /// `X-Device-ID` and `Authorization: Bearer <device_token>`.
    Token,
    /// `X-Device-ID` alone. A device ID is guessable: for closed networks and old clients only.
    Id,
}

section! {
    /// Authentication.
    pub struct Auth {
        /// Key of access tokens and cursors, at least 32 bytes. Required, except under `posduif dev`, which generates one.
        pub jwt_secret: Secret = Secret::new("");
        /// Former values of `jwt_secret`, at least 32 bytes each; access tokens and cursors made with them stay valid.
        pub jwt_previous_secrets: Vec<Secret> = Vec::new();
        /// `iss` of access tokens.
        pub jwt_issuer: String = "posduif".into();
        /// `aud` of access tokens.
        pub jwt_audience: String = "posduif".into();
        /// Whether users log in here with a password. Otherwise login, registration and refresh respond with 403, and
        /// sessions end when their access tokens expire.
        pub passwords: bool = true;
        /// Providers of external identities, whose access tokens are accepted like own ones
        /// (docs/external-logins.md).
        pub providers: Vec<Provider> = Vec::new();
        /// Seconds until an access token expires.
        pub token_expiry_seconds: u64 = 3600, 60..=86_400;
        /// Seconds after its last login or refresh at which a session expires.
        pub session_expiry_seconds: u64 = 2_592_000, 300..=31_536_000;
        /// Maximum number of sessions of a user; a further login ends the least recently used session.
        pub sessions_max: usize = 100, 1..=1000;
        /// Seconds in which a refresh may be repeated with the same token after a lost response.
        pub refresh_retry_seconds: u64 = 30, 0..=300;
        /// Maximum number of devices of a user that are not revoked.
        pub devices_max: usize = 100, 1..=1000;
        /// Whether registration is open in every tenant; otherwise only where the tenant itself allows it.
        pub registration_open: bool = false;
        /// How devices authenticate: `token` or `id`.
        pub device_auth: DeviceAuth = DeviceAuth::Token;
        /// Seconds that a verified device token is cached. Revocations reach the cache through the log within moments;
        /// while the log is not fresh, the cache is not used.
        pub device_cache_seconds: u64 = 600, 0..=3600;
        /// Memory of Argon2id in KiB.
        pub argon2_memory_kib: u32 = 19_456, 8192..=1_048_576;
        /// Passes of Argon2id.
        pub argon2_iterations: u32 = 2, 1..=10;
        /// Maximum number of password hashes computed at once, each with one core at low priority and
        /// `argon2_memory_kib`; 0 means the number of cores less one, at least one.
        pub hash_concurrency: usize = 0, 0..=64;
    }
}

/// Fewest different bytes of a secret: random ones in hexadecimal have about 15.
const DISTINCT_MIN: usize = 8;

impl Auth {
    pub(super) fn check(&self) -> Result<()> {
        if !self.passwords && self.providers.is_empty() {
            bail!("key `auth.passwords` is false, and key `auth.providers` lists no provider: no user could log in");
        }
        provider::check_all(&self.providers, &self.jwt_issuer)
    }

    /// Refuses a missing or short token secret, and well-known examples.
    pub(super) fn check_secrets(&self) -> Result<()> {
        fn is_weak(secret: &Secret) -> bool {
            let secret = secret.expose();
            let distinct = secret.bytes().collect::<BTreeSet<_>>().len();
            secret.len() < 32 || distinct < DISTINCT_MIN || secret.to_ascii_lowercase().contains("change")
        }
        if let Some(index) = self.jwt_previous_secrets.iter().position(is_weak) {
            bail!(
                "key `auth.jwt_previous_secrets[{index}]` is too short, too uniform or an example: tokens could be forged"
            );
        }
        if is_weak(&self.jwt_secret) {
            bail!(
                "key `auth.jwt_secret` is {}: set at least 32 random bytes, for example \
                 POSDUIF__AUTH__JWT_SECRET=$(openssl rand -hex 32)",
                if self.jwt_secret.expose().is_empty() {
                    "not set"
                } else {
                    "too short, too uniform or an example"
                }
            );
        }
        Ok(())
    }
}
