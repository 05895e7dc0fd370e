//! A forgotten password: a mail with a token, sent by a webhook of the operator, allows to set another one.
//!
//! A token names the user, the security stamp and its end, under an HMAC. Setting a password changes the stamp, so a token
//! works once, and none outlives another change of the password, a disabling or the end of all sessions. The server
//! stores nothing. The response to a request does not show whether there is such a user: the work is done afterwards.

use std::collections::HashMap;
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
use parking_lot::Mutex;
use serde_json::json;
use sha2::Sha256;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
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

/// Mails that may wait for their next attempt, and those of one tenant. They hold none of the requests at once.
const RETRIES_MAX: usize = 1000;
const RETRIES_OF_TENANT_MAX: usize = 250;

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
            slots: Semaphore::new(CONCURRENCY),
            retries: Retries::default(),
        });
        let wanted = stream::unfold(queue, |mut queue| async {
            queue.recv().await.map(|next| (next, queue))
        });
        let sending = wanted.for_each_concurrent(CONCURRENCY + RETRIES_MAX, |wanted| {
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
    /// One for each request to the webhook at once.
    slots: Semaphore,
    retries: Retries,
}

impl Mails {
    async fn send(&self, wanted: &Wanted) -> Result<(), Error> {
        let Ok(slot) = self.slots.acquire().await else {
            return Ok(());
        };
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
        self.deliver(&tenant, user, (body, expires_at), slot).await
    }

    async fn deliver(
        &self,
        tenant: &Tenant,
        user: Uuid,
        (body, expires_at): (Bytes, DateTime<Utc>),
        mut slot: SemaphorePermit<'_>,
    ) -> Result<(), Error> {
        let id = format!("mail_{}", Uuid::new_v4().simple());
        let mut attempt = 1;
        loop {
            let answer = self.sender.send(&id, body.clone()).await;
            let is_final = answer.as_ref().is_ok_and(|answer| answer.is_final());
            let (cause, asked) = match answer {
                Ok(Answer::Taken) => return Ok(()),
                Ok(Answer::Gone) => ("it answered 410 Gone".to_owned(), None),
                Ok(Answer::Refused(status, asked)) => (format!("it answered {status}"), asked),
                Err(error) => (format!("{error:#}"), None),
            };
            let failed = |reason: &str| {
                let text = format!("the webhook did not take the mail to the user {user}: {cause}{reason}");
                Err(Error::Internal(text))
            };
            let wait = wait(attempt, asked, (Utc::now(), expires_at)).filter(|_| !is_final);
            let Some(wait) = wait else { return failed("") };
            let Some(retry) = self.retries.enter(&tenant.name) else {
                return failed("; too many mails wait for another attempt");
            };
            tracing::warn!(tenant = tenant.name, %user, attempt, cause, "mail not taken by the webhook; retrying");
            drop(slot);
            tokio::time::sleep(wait).await;
            slot = match self.slots.acquire().await {
                Ok(slot) => slot,
                Err(_) => return Ok(()),
            };
            drop(retry);
            if Utc::now() >= expires_at {
                return failed("; its token has ended");
            }
            attempt += 1;
        }
    }
}

/// How long a mail waits for its next attempt; `None` after the last one, or if its token would have ended by then.
fn wait(attempt: u32, asked: Option<Duration>, (now, expires_at): (DateTime<Utc>, DateTime<Utc>)) -> Option<Duration> {
    let wait = asked.unwrap_or_default().max(RETRY.after(attempt));
    (attempt < ATTEMPTS_MAX && now + wait < expires_at).then_some(wait)
}

/// The mails of each tenant that wait for their next attempt.
#[derive(Default)]
struct Retries(Mutex<HashMap<String, usize>>);

/// The place of a mail that waits.
struct Retry<'a> {
    all: &'a Retries,
    tenant: &'a str,
}

impl Retries {
    /// A place, unless too many wait.
    fn enter<'a>(&'a self, tenant: &'a str) -> Option<Retry<'a>> {
        let mut waiting = self.0.lock();
        if waiting.values().sum::<usize>() >= RETRIES_MAX {
            return None;
        }
        let of_tenant = waiting.entry(tenant.to_owned()).or_default();
        if *of_tenant >= RETRIES_OF_TENANT_MAX {
            return None;
        }
        *of_tenant += 1;
        Some(Retry { all: self, tenant })
    }
}

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        let mut waiting = self.all.0.lock();
        if let Some(of_tenant) = waiting.get_mut(self.tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                waiting.remove(self.tenant);
            }
        }
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

    #[test]
    fn mail_is_not_retried_when_its_token_would_have_ended() {
        let (now, asked) = (Utc::now(), Some(Duration::from_secs(600)));
        let expires_at = now + Duration::from_secs(900);
        assert_eq!(wait(1, asked, (now, expires_at)), asked);
        assert_eq!(wait(2, asked, (now + Duration::from_secs(600), expires_at)), None);
        assert_eq!(wait(ATTEMPTS_MAX, None, (now, expires_at)), None);
    }

    #[test]
    fn mails_that_wait_are_bounded_for_each_tenant_and_in_all() {
        fn fill<'a>(retries: &'a Retries, tenant: &'a str) -> Vec<Retry<'a>> {
            std::iter::from_fn(|| retries.enter(tenant)).collect()
        }
        let retries = Retries::default();
        let mut waiting = ["a", "b", "c", "d"].map(|tenant| fill(&retries, tenant));
        let counts = waiting.each_ref().map(Vec::len);
        assert_eq!(counts, [RETRIES_OF_TENANT_MAX; 4]);
        assert_eq!(fill(&retries, "e").len(), 0);
        waiting[0].clear();
        assert_eq!(fill(&retries, "e").len(), RETRIES_OF_TENANT_MAX);
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
