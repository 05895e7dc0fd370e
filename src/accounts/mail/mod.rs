//! Mails about accounts, which a webhook of the operator sends: another password for a user who has forgotten it, and the
//! verification of an address.
//!
//! A mail has a [token]. The token for another password names the security stamp, which a new password changes; that
//! for an address names the stamp of the address, which a verification and a new password change. So each works once, and
//! none outlives what makes it obsolete. The response to a request does not show whether there is such a user or address:
//! the work is done afterwards.

mod retries;
mod sending;
mod token;

use chrono::Utc;
use tokio::sync::mpsc;
use tokio_postgres::types::Type;
use uuid::Uuid;

pub use self::sending::{Mailer, sender};
pub use self::token::Claim;
use self::token::Key;
use crate::accounts::login_limits::Limits;
use crate::accounts::users::taken;
use crate::config::Config;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, sql};
use crate::telemetry::metrics;

/// Requests that may wait.
const WAITING_MAX: usize = 1000;

/// What a user is notified of, because a thief may have done it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Goes to the former address.
    EmailChanged,
    SecondFactorAdded,
    SecondFactorRemoved,
    RecoveryCodesRenewed,
}

impl Notice {
    /// The type of the mail.
    fn as_str(self) -> &'static str {
        match self {
            Self::EmailChanged => "account.email_changed",
            Self::SecondFactorAdded => "account.second_factor_added",
            Self::SecondFactorRemoved => "account.second_factor_removed",
            Self::RecoveryCodesRenewed => "account.recovery_codes_renewed",
        }
    }
}

/// A mail that was asked for.
#[derive(Debug)]
enum Wanted {
    /// Another password for the user of this address, if there is one.
    Reset { tenant: String, email: String },
    /// Shows that the user reads the mails to this address.
    Verification { tenant: Tenant, user: Uuid, email: String },
    /// Says what has happened to the account, to this address or to the verified one of the user.
    Notice {
        notice: Notice,
        tenant: Tenant,
        user: Uuid,
        email: Option<String>,
    },
}

impl Wanted {
    fn tenant(&self) -> &str {
        match self {
            Self::Reset { tenant, .. } => tenant,
            Self::Verification { tenant, .. } | Self::Notice { tenant, .. } => &tenant.name,
        }
    }
}

/// Takes requests for mails, and checks tokens.
pub struct Mails {
    key: Key,
    queue: mpsc::Sender<Wanted>,
}

impl std::fmt::Debug for Mails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mails").finish_non_exhaustive()
    }
}

impl Mails {
    /// Both halves, where a webhook sends mails.
    ///
    /// # Errors
    /// As [`sender`].
    pub fn new(
        config: &Config,
        database: Database,
        limits: Limits,
        metrics: metrics::Mail,
    ) -> anyhow::Result<Option<(Self, Mailer)>> {
        let Some(sender) = sender(&config.mail)? else {
            return Ok(None);
        };
        let key = Key::new(config.auth.jwt_secret.expose().as_bytes())?;
        let (queue, wanted) = mpsc::channel(WAITING_MAX);
        let mailer = Mailer::new(&config.mail, key.clone(), wanted, sender, (limits, database, metrics));
        Ok(Some((Self { key, queue }, mailer)))
    }

    /// Takes a request for another password. Whether there is such a user shows later, and only in the mail.
    ///
    /// # Errors
    /// [`Error::Busy`] while too many wait.
    pub fn request_reset(&self, tenant: String, email: String) -> Result<(), Error> {
        self.queue(Wanted::Reset { tenant, email })
    }

    /// Takes a request to verify that an address is a user's. Whether another user has it shows later, and only to the
    /// reader of the mail.
    ///
    /// # Errors
    /// [`Error::Busy`] while too many wait.
    pub fn request_verification(&self, tenant: Tenant, user: Uuid, email: String) -> Result<(), Error> {
        self.queue(Wanted::Verification { tenant, user, email })
    }

    /// Takes a notice to a user: to this address, or to the verified one of the user if there is one. One that finds no room
    /// is logged.
    pub fn notify(&self, notice: Notice, tenant: Tenant, user: Uuid, email: Option<String>) {
        let wanted = Wanted::Notice {
            notice,
            tenant,
            user,
            email,
        };
        if let Err(error) = self.queue(wanted) {
            tracing::warn!(%user, %error, notice = notice.as_str(), "no notice to a user");
        }
    }

    fn queue(&self, wanted: Wanted) -> Result<(), Error> {
        let queued = self.queue.try_send(wanted);
        queued.map_err(|_| Error::Busy("too many mails wait; try again in a moment"))
    }

    /// What a token for another password allows; `None` for one that is not genuine, or has ended.
    pub fn check_reset(&self, token: &str) -> Option<Claim> {
        self.key.check_reset(token, Utc::now().timestamp())
    }

    /// What a token for an address allows; `None` for one that is not genuine, or has ended.
    pub fn check_address(&self, token: &str) -> Option<Claim> {
        self.key.check_address(token, Utc::now().timestamp())
    }
}

/// The stamp in a token for another password: a new password, the end of all sessions and another address change it, so that
/// no mail to a former address is of use.
pub fn reset_stamp(stamp: Uuid, email_stamp: Uuid) -> Uuid {
    Uuid::from_u128(stamp.as_u128() ^ email_stamp.as_u128())
}

/// What a verification has replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The verified address before, if it was another one.
    pub former: Option<String>,
}

/// Makes a verified address the user's, in place of the one before. A username that was the address changes with it. `None`
/// when the token was used, or a password was set since.
///
/// # Errors
/// [`Error::Conflict`] when another user has the address.
pub async fn verify_address(
    database: &Database,
    tenant: &Tenant,
    claim: &Claim,
    by: &Actor,
) -> Result<Option<Verified>, Error> {
    let Some(email) = &claim.email else { return Ok(None) };
    let [actor, address] = by.params();
    let row = database
        .query_opt(
            &sql!("accounts/email_verify", tenant),
            &[
                (&tenant.name, Type::TEXT),
                (&claim.user, Type::UUID),
                (&claim.stamp, Type::UUID),
                (email, Type::TEXT),
                actor,
                address,
            ],
        )
        .await
        .map_err(|error| taken(error, email))?;
    row.map(|row| {
        let former: Option<String> = row.try_get("former")?;
        Ok(Verified {
            former: former.filter(|former| former != email),
        })
    })
    .transpose()
}
