//! Access tokens of identity providers, and reads of their keys.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::label::{Label, create};

/// Metrics of external identities.
#[derive(Debug)]
pub struct Auth {
    tokens: Family<Label, Counter>,
    key_reads: Family<Label, Counter>,
}

/// How the check of a provider's token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalToken {
    /// Verified, by a check or an earlier one.
    Accepted,
    Refused,
    /// The keys of the provider were not available.
    Unavailable,
}

impl ExternalToken {
    const ALL: [Self; 3] = [Self::Accepted, Self::Refused, Self::Unavailable];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// How a read of a provider's keys ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRead {
    Read,
    Failed,
}

impl KeyRead {
    const ALL: [Self; 2] = [Self::Read, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Failed => "failed",
        }
    }
}

impl Auth {
    pub(super) fn new() -> Self {
        let new = Self {
            tokens: Family::default(),
            key_reads: Family::default(),
        };
        create(&new.tokens, "result", &ExternalToken::ALL.map(ExternalToken::as_str));
        create(&new.key_reads, "result", &KeyRead::ALL.map(KeyRead::as_str));
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "external_tokens",
            "Requests with an access token of an identity provider, by the result of its verification",
            self.tokens.clone(),
        );
        registry.register(
            "provider_key_reads",
            "Reads of the public keys of identity providers, by result",
            self.key_reads.clone(),
        );
    }

    /// A token of a provider was checked.
    pub fn external_token(&self, result: ExternalToken) {
        self.tokens.get_or_create(&[("result", result.as_str())]).inc();
    }

    /// A read of keys has ended.
    pub fn key_read(&self, result: KeyRead) {
        self.key_reads.get_or_create(&[("result", result.as_str())]).inc();
    }
}
