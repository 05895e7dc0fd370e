//! Failed logins and proofs of devices, in the log and, within a rate, in the audit log: any client can cause them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use crate::accounts::login::Credentials;
use crate::config::client_network;
use crate::core::rate::Rate;
use crate::core::tenant::is_valid_name;
use crate::postgres::Database;
use crate::postgres::audit::{self, Act, Actor};

/// Entries in the audit log for one address (IPv6: one /64), in each process.
const ADDRESS_PER_MINUTE: u32 = 10;

/// Entries in the audit log for all addresses, in each process.
const TOTAL_PER_MINUTE: u32 = 60;

/// Characters of a name that are logged.
const NAME_MAX: usize = 255;

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The tenant, name or password is wrong, or the user is disabled.
    Refused,
    /// The password is right, and the code of the second factor is wrong.
    WrongCode,
    /// Too many attempts.
    Limited,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::WrongCode => "wrong_code",
            Self::Limited => "limited",
        }
    }
}

/// A genuine token of another provider that was refused.
#[derive(Debug, Clone, Copy)]
pub struct RefusedIdentity<'a> {
    /// The tenant that it names, if any.
    pub tenant: Option<&'a str>,
    pub issuer: &'a str,
    /// Its subject, if it has one.
    pub subject: Option<&'a str>,
    pub reason: &'static str,
}

/// Records failed logins. Cloning shares the rates.
#[derive(Debug, Clone)]
pub struct FailedLogins {
    database: Database,
    of_address: Rate<IpAddr>,
    total: Rate<()>,
    /// Those since the last entry that have none.
    skipped: Arc<AtomicU64>,
}

impl FailedLogins {
    pub fn new(database: Database) -> Self {
        Self {
            database,
            of_address: Rate::per_minute(ADDRESS_PER_MINUTE),
            total: Rate::per_minute(TOTAL_PER_MINUTE),
            skipped: Arc::default(),
        }
    }

    /// Logs a failed login. Beyond the rates it is only counted, in the next entry.
    pub async fn note(&self, address: IpAddr, credentials: Credentials<'_>, reason: Reason) {
        let name = loggable(credentials.name);
        let tenant = is_valid_name(credentials.tenant).then_some(credentials.tenant);
        let reason = reason.as_str();
        tracing::warn!(tenant, name, client = %address, reason, "login failed");
        let Some(skipped) = self.skipped_for(address) else {
            return;
        };
        let act = Act {
            tenant,
            actor: &Actor::anonymous(address),
            action: "login_failed",
            subject: Some(name),
            detail: json!({"reason": reason, "skipped": skipped}),
        };
        audit::record(&self.database, act).await;
    }

    /// Logs a refused proof of a device, which need not exist. Beyond the rates it is only counted.
    pub async fn note_proof(&self, address: IpAddr, tenant: &str, device_id: &str) {
        tracing::warn!(tenant, device = device_id, client = %address, "device proof refused");
        let Some(skipped) = self.skipped_for(address) else {
            return;
        };
        let act = Act {
            tenant: Some(tenant),
            actor: &Actor::anonymous(address),
            action: "device_proof_refused",
            subject: Some(device_id.to_owned()),
            detail: json!({"skipped": skipped}),
        };
        audit::record(&self.database, act).await;
    }

    /// Logs a genuine token of another provider that was refused. Beyond the rates it is only counted.
    pub async fn note_identity(&self, address: IpAddr, refused: RefusedIdentity<'_>) {
        let RefusedIdentity {
            tenant,
            issuer,
            subject,
            reason,
        } = refused;
        tracing::warn!(tenant, issuer, subject, client = %address, reason, "identity refused");
        let Some(skipped) = self.skipped_for(address) else {
            return;
        };
        let act = Act {
            tenant,
            actor: &Actor::anonymous(address),
            action: "identity_refused",
            subject: subject.map(str::to_owned),
            detail: json!({"issuer": issuer, "reason": reason, "skipped": skipped}),
        };
        audit::record(&self.database, act).await;
    }

    /// The number of failures since the last entry; `None` beyond the rates.
    fn skipped_for(&self, address: IpAddr) -> Option<u64> {
        if self.of_address.take(client_network(address)).is_err() || self.total.take(()).is_err() {
            self.skipped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.skipped.swap(0, Ordering::Relaxed))
    }
}

/// A name as far as it is logged, with control characters escaped.
fn loggable(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars().take(NAME_MAX) {
        if c.is_control() {
            text.extend(c.escape_unicode());
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_truncated_and_escaped() {
        assert_eq!(loggable("bob"), "bob");
        assert_eq!(loggable("ä\0\nb\u{1b}[31m"), "ä\\u{0}\\u{a}b\\u{1b}[31m");
        assert_eq!(loggable(&"x".repeat(1_000_000)).len(), NAME_MAX);
    }
}
