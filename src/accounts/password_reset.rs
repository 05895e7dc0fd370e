//! A forgotten password: a mail with a token, sent by a webhook of the operator, allows to set another one.
//!
//! A token names the user, the security stamp and its end, under an HMAC. Setting a password changes the stamp, so a token
//! works once, and none outlives another change of the password, a disabling or the end of all sessions. The server
//! stores nothing. The response to a request does not show whether there is such a user: the work is done afterwards.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use futures_util::stream;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::accounts::limits::Limits;
use crate::config::{self, Config};
use crate::core::backoff::Backoff;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::net::webhook::{Answer, Sender};
use crate::postgres::{Database, sql, tenants};

/// Requests that may wait.
const WAITING_MAX: usize = 1000;

/// Requests to the webhook at once.
const CONCURRENCY: usize = 4;

/// Attempts for one mail, and the delays between them. The user can ask again.
const ATTEMPTS_MAX: u32 = 5;
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Separates this use of the secret from all others.
const PURPOSE: &[u8] = b"posduif password reset";

/// Characters of a token: a tenant's name has at most 48.
const TOKEN_CHARS_MAX: usize = 256;

/// Bytes in a token behind the tenant's name: user, stamp, end, and the MAC.
const IDS_BYTES: usize = 16 + 16 + 8;
const MAC_BYTES: usize = 32;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The name of the tenant.
    pub tenant: String,
    pub user: Uuid,
    /// The security stamp that the new password replaces.
    pub stamp: Uuid,
    /// Seconds since 1970.
    expires_at: i64,
}

/// Signs and checks tokens.
#[derive(Clone)]
struct Key(Hmac<Sha256>);

impl Key {
    fn new(secret: &[u8]) -> anyhow::Result<Self> {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).context("the token secret is no key")?;
        mac.update(PURPOSE);
        let key = mac.finalize().into_bytes();
        Ok(Self(Hmac::new_from_slice(&key).context("the derived key is no key")?))
    }

    fn token(&self, claim: &Claim) -> String {
        let mut bytes = claim.tenant.as_bytes().to_vec();
        bytes.extend_from_slice(claim.user.as_bytes());
        bytes.extend_from_slice(claim.stamp.as_bytes());
        bytes.extend_from_slice(&claim.expires_at.to_be_bytes());
        let mac = self.0.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The claim of a token that is genuine and has not ended.
    fn check(&self, token: &str, now: i64) -> Option<Claim> {
        if token.len() > TOKEN_CHARS_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signed, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        self.0.clone().chain_update(signed).verify_slice(mac).ok()?;
        let (tenant, ids) = signed.split_at_checked(signed.len().checked_sub(IDS_BYTES)?)?;
        let claim = Claim {
            tenant: std::str::from_utf8(tenant).ok()?.to_owned(),
            user: Uuid::from_slice(ids.get(..16)?).ok()?,
            stamp: Uuid::from_slice(ids.get(16..32)?).ok()?,
            expires_at: i64::from_be_bytes(ids.get(32..)?.try_into().ok()?),
        };
        (now < claim.expires_at).then_some(claim)
    }
}

/// Takes requests for mails, and checks tokens.
pub struct Resets {
    key: Key,
    queue: mpsc::Sender<Wanted>,
}

impl std::fmt::Debug for Resets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resets").finish_non_exhaustive()
    }
}

/// A mail that was asked for.
#[derive(Debug)]
struct Wanted {
    tenant: String,
    email: String,
}

/// Sends the mails.
pub struct Mailer {
    key: Key,
    queue: mpsc::Receiver<Wanted>,
    sender: Sender,
    expiry: Duration,
    limits: Limits,
    database: Database,
}

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailer")
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}

/// The webhook of the settings, if there is one.
///
/// # Errors
/// When a secret or the URL is malformed, or the file of the authority cannot be read.
pub fn sender(settings: &config::Mail) -> anyhow::Result<Option<Sender>> {
    let Some(webhook) = settings.webhook()? else {
        return Ok(None);
    };
    let timeout = Duration::from_secs(settings.webhook_timeout_seconds);
    let sender = Sender::new(webhook, &settings.webhook_ca_file, timeout);
    sender.context("key `mail.webhook_ca_file`").map(Some)
}

impl Resets {
    /// Both halves, where a webhook sends mails.
    ///
    /// # Errors
    /// As [`sender`].
    pub fn new(config: &Config, database: Database, limits: Limits) -> anyhow::Result<Option<(Self, Mailer)>> {
        let Some(sender) = sender(&config.mail)? else {
            return Ok(None);
        };
        let key = Key::new(config.auth.jwt_secret.expose().as_bytes())?;
        let (queue, wanted) = mpsc::channel(WAITING_MAX);
        let mailer = Mailer {
            key: key.clone(),
            queue: wanted,
            sender,
            expiry: Duration::from_secs(config.mail.reset_expiry_seconds),
            limits,
            database,
        };
        Ok(Some((Self { key, queue }, mailer)))
    }

    /// Takes a request. Whether there is such a user shows later, and only in the mail.
    ///
    /// # Errors
    /// [`Error::Busy`] while too many wait.
    pub fn request(&self, tenant: String, email: String) -> Result<(), Error> {
        let queued = self.queue.try_send(Wanted { tenant, email });
        queued.map_err(|_| Error::Busy("too many mails wait; try again in a moment"))
    }

    /// What a token allows; `None` for one that is not genuine, or has ended.
    pub fn check(&self, token: &str) -> Option<Claim> {
        self.key.check(token, Utc::now().timestamp())
    }
}

impl Mailer {
    /// Sends mails as they are asked for, until a stop.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            key,
            queue,
            sender,
            expiry,
            limits,
            database,
        } = self;
        let mails = Arc::new(Mails {
            key,
            sender,
            expiry,
            limits,
            database,
        });
        let wanted = stream::unfold(queue, |mut queue| async {
            queue.recv().await.map(|next| (next, queue))
        });
        let sending = wanted.for_each_concurrent(CONCURRENCY, |wanted| {
            let mails = mails.clone();
            async move {
                if let Err(error) = mails.send(&wanted).await {
                    tracing::error!(tenant = wanted.tenant, %error, "mail not sent");
                }
            }
        });
        tokio::select! {
            () = sending => {}
            () = stop.cancelled() => {}
        }
    }
}

/// What sending needs.
struct Mails {
    key: Key,
    sender: Sender,
    expiry: Duration,
    limits: Limits,
    database: Database,
}

impl Mails {
    async fn send(&self, wanted: &Wanted) -> Result<(), Error> {
        let Some(tenant) = tenants::find(&self.database, &wanted.tenant).await? else {
            return Ok(());
        };
        let found = self
            .database
            .query_opt(
                &sql!("accounts/user_by_email", tenant),
                &[(&wanted.email, Type::TEXT), (&tenant.name, Type::TEXT)],
            )
            .await?;
        let Some(row) = found else { return Ok(()) };
        let user: Uuid = row.try_get("id")?;
        match self.limits.take_mail(&tenant.name, user).await {
            Ok(()) => {}
            Err(Error::Limited(_)) => {
                tracing::info!(tenant = tenant.name, %user, "no further mail to this user for a while");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let at = Utc::now();
        let expires_at = at + self.expiry;
        let token = self.key.token(&Claim {
            tenant: tenant.name.clone(),
            user,
            stamp: row.try_get("stamp")?,
            expires_at: expires_at.timestamp(),
        });
        let body = body(
            &tenant,
            user,
            (row.try_get("username")?, row.try_get("email")?),
            &token,
            [at, expires_at],
        );
        self.deliver(&tenant, user, body).await
    }

    async fn deliver(&self, tenant: &Tenant, user: Uuid, body: Bytes) -> Result<(), Error> {
        let id = format!("mail_{}", Uuid::new_v4().simple());
        for attempt in 1..=ATTEMPTS_MAX {
            let (cause, asked) = match self.sender.send(&id, body.clone()).await {
                Ok(Answer::Taken) => return Ok(()),
                Ok(Answer::Gone) => ("it answered 410 Gone".to_owned(), None),
                Ok(Answer::Refused(status, asked)) => (format!("it answered {status}"), asked),
                Err(error) => (format!("{error:#}"), None),
            };
            let wait = asked.unwrap_or_default().max(RETRY.after(attempt));
            if attempt == ATTEMPTS_MAX || wait > self.expiry {
                return Err(Error::Internal(format!(
                    "the webhook did not take the mail to the user {user}: {cause}"
                )));
            }
            tracing::warn!(tenant = tenant.name, %user, attempt, cause, "mail not taken by the webhook; retrying");
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

/// The body of the request, the same in each attempt.
fn body(
    tenant: &Tenant,
    user: Uuid,
    (username, email): (&str, &str),
    token: &str,
    [at, expires_at]: [DateTime<Utc>; 2],
) -> Bytes {
    let body = json!({
        "type": "account.password_reset",
        "timestamp": Timestamp(at),
        "data": {
            "tenant": tenant.name,
            "user_id": user,
            "username": username,
            "email": email,
            "token": token,
            "expires_at": Timestamp(expires_at),
        },
    });
    body.to_string().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim() -> Claim {
        Claim {
            tenant: "acme".to_owned(),
            user: Uuid::from_u128(1),
            stamp: Uuid::from_u128(2),
            expires_at: 1000,
        }
    }

    #[test]
    fn token_says_what_it_was_made_of_until_its_end() {
        let key = Key::new(b"secret").expect("a key");
        let token = key.token(&claim());
        assert_eq!(key.check(&token, 999), Some(claim()));
        assert_eq!(key.check(&token, 1000), None);
        assert_eq!(Key::new(b"other").expect("a key").check(&token, 999), None);
        let longest = Claim {
            tenant: "t".repeat(48),
            ..claim()
        };
        assert_eq!(key.check(&key.token(&longest), 0), Some(longest));
    }

    proptest! {
        #[test]
        fn changed_token_is_refused(index in 0_usize..130, bit in 0_u8..8) {
            let key = Key::new(b"secret").expect("a key");
            let mut bytes = URL_SAFE_NO_PAD.decode(key.token(&claim())).expect("base64");
            let index = index % bytes.len();
            bytes[index] ^= 1 << bit;
            prop_assert_eq!(key.check(&URL_SAFE_NO_PAD.encode(bytes), 0), None);
        }

        #[test]
        fn any_text_is_refused(text in ".{0,300}") {
            prop_assert_eq!(Key::new(b"secret").expect("a key").check(&text, 0), None);
        }
    }
}
