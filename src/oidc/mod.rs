//! Access tokens of other providers (OpenID Connect, or any signer of JWTs): keys, signatures, claims.
//!
//! This folder verifies tokens, and maps their claims to a tenant and a subject. It has no access to Postgres or Redis: a token
//! that is not verified costs no query. [`crate::accounts::external`] maps a verified token to a user.
//!
//! Symmetric algorithms do not exist here, and own tokens (HS256) are never verified with a provider's key: the algorithm of
//! the header selects the path, and each key has its algorithms (RFC 8725, section 3.1). Verified tokens are cached until they
//! expire or the keys of their provider change, so that a client's requests cost one verification.

mod claims;
mod jwks;
mod keys;
mod token;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::Utc;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::claims::RefusedClaim;
pub use self::jwks::{KeySet, NotAJwkSet};
pub use self::keys::{Fetched, Reader};
use self::keys::{Keys, NoKey};
use crate::config::{self, NewUserType};
use crate::core::subject::Subject;
use crate::core::tenant::Tenant;
use crate::telemetry::metrics::{Auth, ExternalToken};

/// How long a verified token stays in memory without a request.
const IDLE: Duration = Duration::from_secs(3600);

/// A verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedToken {
    pub issuer: Arc<str>,
    pub tenant: Tenant,
    pub subject: Subject,
    /// Whether the role means an admin; `None` where the provider has no claim for it.
    pub is_admin: Option<bool>,
    /// For a user who is created.
    pub name: Option<String>,
    /// For a user who is created; verified by the provider.
    pub email: Option<String>,
    /// `iat`, in seconds since 1970.
    pub issued_at: i64,
    /// When it is refused, in seconds since 1970: `exp`, and the leeway.
    pub expires_at: i64,
    /// Under which it is ended and watched, as a session is.
    pub session: Uuid,
    /// The type of the user that it creates, if it may create one.
    pub new_user: Option<NewUserType>,
    /// The keys of the provider when it was verified.
    provider: usize,
    keys_version: u64,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is malformed, forged, or for another service. The text says what is wrong.
    Invalid(&'static str),
    Expired,
    /// It is genuine, and one of its claims is not accepted.
    Claim {
        issuer: Arc<str>,
        claim: RefusedClaim,
    },
    /// The keys of the provider are not available; they may be after this time.
    Unavailable(Duration),
}

/// A provider, and its keys.
#[derive(Debug)]
struct Provider {
    settings: config::Provider,
    issuer: Arc<str>,
    /// The prefixes of subjects of the others.
    prefixes: Vec<String>,
    keys: Keys,
}

/// All providers of a process.
#[derive(Debug)]
pub struct Providers {
    providers: Vec<Provider>,
    by_issuer: HashMap<String, usize>,
    /// By the digest of the token.
    verified: Cache<[u8; 32], Arc<VerifiedToken>>,
    metrics: Arc<Auth>,
}

impl Providers {
    /// # Errors
    /// When the URL or the authority of a provider cannot be used.
    pub fn new(settings: &config::Config, metrics: Arc<Auth>) -> Result<Self> {
        let all = &settings.auth.providers;
        let providers = all.iter().enumerate().map(|(index, one)| {
            let others = all.iter().enumerate().filter(|(other, _)| *other != index);
            Ok(Provider {
                keys: Keys::new(one, metrics.clone()).with_context(|| format!("key `auth.providers[{index}]`"))?,
                issuer: one.issuer.as_str().into(),
                prefixes: others
                    .map(|(_, other)| other.subject_prefix.clone())
                    .filter(|prefix| !prefix.is_empty())
                    .collect(),
                settings: one.clone(),
            })
        });
        Ok(Self {
            providers: providers.collect::<Result<_>>()?,
            by_issuer: all
                .iter()
                .enumerate()
                .map(|(index, one)| (one.issuer.clone(), index))
                .collect(),
            verified: Cache::builder()
                .max_capacity(settings.cache.entries_max)
                .time_to_idle(IDLE)
                .build(),
            metrics,
        })
    }

    /// Reads the keys of all providers until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let reading = self.providers.iter().map(|provider| provider.keys.run(stop.clone()));
        futures_util::future::join_all(reading).await;
    }

    /// Whether a token is one of a provider by its form: signed with a private key. Own tokens are not.
    pub fn accept(&self, token: &str) -> bool {
        !self.providers.is_empty() && token::header(token).is_some()
    }

    /// A token that was verified before, and is still valid.
    pub fn known(&self, token: &str) -> Option<Arc<VerifiedToken>> {
        let digest = digest(token);
        let known = self.verified.get(&digest)?;
        let provider = self.providers.get(known.provider)?;
        let is_current = provider.keys.version() == Some(known.keys_version);
        if is_current && known.expires_at > Utc::now().timestamp() {
            self.metrics.external_token(ExternalToken::Accepted);
            return Some(known);
        }
        self.verified.invalidate(&digest);
        None
    }

    /// Verifies a token. It may wait for the keys of its provider, within their timeout.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn verify(&self, token: &str) -> Result<Arc<VerifiedToken>, Refused> {
        let result = self.try_verify(token).await;
        self.metrics.external_token(match &result {
            Ok(_) => ExternalToken::Accepted,
            Err(Refused::Unavailable(_)) => ExternalToken::Unavailable,
            Err(_) => ExternalToken::Refused,
        });
        let verified = Arc::new(result?);
        self.verified.insert(digest(token), verified.clone());
        Ok(verified)
    }

    async fn try_verify(&self, text: &str) -> Result<VerifiedToken, Refused> {
        const UNKNOWN: Refused = Refused::Invalid("its issuer is not accepted");
        let bytes_max = self
            .providers
            .iter()
            .map(|provider| provider.settings.token_bytes_max)
            .max();
        if bytes_max.is_none_or(|bytes_max| text.len() > bytes_max) {
            return Err(Refused::Invalid("it is too long"));
        }
        let header = token::header(text).ok_or(Refused::Invalid("its header is malformed"))?;
        let issuer = token::issuer(text).ok_or(Refused::Invalid("its claims are malformed"))?;
        let index = *self.by_issuer.get(&issuer).ok_or(UNKNOWN)?;
        let provider = self.providers.get(index).ok_or(UNKNOWN)?;
        let settings = &provider.settings;
        if text.len() > settings.token_bytes_max {
            return Err(Refused::Invalid("it is too long"));
        }
        if !settings.algorithms.contains(&header.alg) {
            return Err(Refused::Invalid("its algorithm is not accepted"));
        }
        let found = provider.keys.candidates(header.kid.as_deref(), header.alg).await;
        let (keys, keys_version) = found.map_err(|none| match none {
            NoKey::Unknown => Refused::Invalid("its provider has no such key"),
            NoKey::Unavailable(wait) => Refused::Unavailable(wait),
        })?;
        let checked = token::check(text, &header, &keys, settings, Utc::now().timestamp())?;
        let mapped = claims::map(&checked.claims, settings, &provider.prefixes).map_err(|claim| Refused::Claim {
            issuer: provider.issuer.clone(),
            claim,
        })?;
        Ok(VerifiedToken {
            issuer: provider.issuer.clone(),
            tenant: mapped.tenant,
            subject: mapped.subject,
            is_admin: mapped.is_admin,
            name: mapped.name,
            email: mapped.email,
            issued_at: checked.issued_at,
            expires_at: checked.expires_at,
            session: token::session(text),
            new_user: settings.provision.then_some(settings.user_type),
            provider: index,
            keys_version,
        })
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
