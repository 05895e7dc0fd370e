//! Sends mails: a bounded queue, a few at once, each with its retries.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::retries::{self, RETRIES_MAX, Retries};
use super::token::{Claim, Key};
use super::{Notice, Wanted, reset_stamp};
use crate::accounts::login;
use crate::accounts::login_limits::Limits;
use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::net::webhook::{Answer, Sender};
use crate::postgres::{Database, sql, tenants};
use crate::telemetry::metrics::{self, MailResult};

/// Requests to the webhook at once.
const CONCURRENCY: usize = 4;

/// How long a notice is of use, which has no token that could end.
const NOTICE_LIFETIME: Duration = Duration::from_secs(900);

/// Sends the mails.
pub struct Mailer {
    queue: mpsc::Receiver<Wanted>,
    sending: Sending,
}

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailer")
            .field("sender", &self.sending.sender)
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

impl Mailer {
    pub(super) fn new(
        settings: &config::Mail,
        key: Key,
        queue: mpsc::Receiver<Wanted>,
        sender: Sender,
        (limits, database, metrics): (Limits, Database, metrics::Mail),
    ) -> Self {
        let sending = Sending {
            key,
            sender,
            reset_expiry: Duration::from_secs(settings.reset_expiry_seconds),
            verification_expiry: Duration::from_secs(settings.verification_expiry_seconds),
            verified_only: settings.verified_only,
            limits,
            database,
            metrics,
            slots: Semaphore::new(CONCURRENCY),
            retries: Retries::default(),
        };
        Self { queue, sending }
    }

    /// Sends mails as they are asked for, until a stop.
    pub async fn run(self, stop: CancellationToken) {
        let Self { queue, sending } = self;
        let here = Arc::new(sending);
        let wanted = stream::unfold(queue, |mut queue| async {
            queue.recv().await.map(|next| (next, queue))
        });
        let sending = wanted.for_each_concurrent(CONCURRENCY + RETRIES_MAX, |wanted| {
            let here = here.clone();
            async move {
                let Ok(slot) = here.slots.acquire().await else { return };
                if let Err(error) = here.send(&wanted, slot).await {
                    here.metrics.ended(MailResult::Failed);
                    tracing::error!(tenant = wanted.tenant(), %error, "mail not sent");
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
struct Sending {
    key: Key,
    sender: Sender,
    reset_expiry: Duration,
    verification_expiry: Duration,
    /// Whether another password needs a verified address.
    verified_only: bool,
    limits: Limits,
    database: Database,
    metrics: metrics::Mail,
    /// One for each request to the webhook at once.
    slots: Semaphore,
    retries: Retries,
}

/// A mail, ready to be sent.
struct Mail<'a> {
    kind: &'static str,
    tenant: &'a Tenant,
    user: Uuid,
    username: &'a str,
    email: &'a str,
    /// And how long it is good.
    token: Option<(String, Duration)>,
}

impl Sending {
    async fn send(&self, wanted: &Wanted, slot: SemaphorePermit<'_>) -> Result<(), Error> {
        match wanted {
            Wanted::Reset { tenant, email } => self.reset(tenant, email, slot).await,
            Wanted::Verification { tenant, user, email } => self.verification(tenant, *user, email, slot).await,
            Wanted::Notice {
                notice,
                tenant,
                user,
                email,
            } => self.notice(*notice, (tenant, *user), email.as_deref(), slot).await,
        }
    }

    async fn reset(&self, tenant: &str, email: &str, slot: SemaphorePermit<'_>) -> Result<(), Error> {
        let Some(tenant) = tenants::find(&self.database, tenant).await? else {
            return Ok(());
        };
        let found = self
            .database
            .query_opt(
                &sql!("accounts/user_by_email", tenant),
                &[
                    (&email, Type::TEXT),
                    (&tenant.name, Type::TEXT),
                    (&self.verified_only, Type::BOOL),
                ],
            )
            .await?;
        let Some(row) = found else { return Ok(()) };
        let user: Uuid = row.try_get("id")?;
        if !is_admitted(&tenant, user, self.limits.take_mail(&tenant.name, user).await)? {
            return Ok(());
        }
        let claim = Claim {
            tenant: tenant.name.clone(),
            user,
            stamp: reset_stamp(row.try_get("stamp")?, row.try_get("email_stamp")?),
            email: None,
            expires_at: (Utc::now() + self.reset_expiry).timestamp(),
        };
        let mail = Mail {
            kind: "account.password_reset",
            tenant: &tenant,
            user,
            username: row.try_get("username")?,
            email: row.try_get("email")?,
            token: Some((self.key.token(&claim), self.reset_expiry)),
        };
        self.deliver(mail, slot).await
    }

    /// Whether another user has the address is not looked at: its reader may know.
    async fn verification(
        &self,
        tenant: &Tenant,
        user: Uuid,
        email: &str,
        slot: SemaphorePermit<'_>,
    ) -> Result<(), Error> {
        let Some(active) = login::active(&self.database, tenant, user).await? else {
            return Ok(());
        };
        let admitted = self.limits.take_verification(&tenant.name, user, email).await;
        if !is_admitted(tenant, user, admitted)? {
            return Ok(());
        }
        let claim = Claim {
            tenant: tenant.name.clone(),
            user,
            stamp: active.email_stamp,
            email: Some(email.to_owned()),
            expires_at: (Utc::now() + self.verification_expiry).timestamp(),
        };
        let mail = Mail {
            kind: "account.email_verification",
            tenant,
            user,
            username: &active.login.username,
            email,
            token: Some((self.key.token(&claim), self.verification_expiry)),
        };
        self.deliver(mail, slot).await
    }

    async fn notice(
        &self,
        notice: Notice,
        (tenant, user): (&Tenant, Uuid),
        email: Option<&str>,
        slot: SemaphorePermit<'_>,
    ) -> Result<(), Error> {
        let Some(active) = login::active(&self.database, tenant, user).await? else {
            return Ok(());
        };
        let verified = active.email.as_deref();
        let verified = verified.filter(|email| active.unverified_email.as_deref() != Some(email));
        let Some(email) = email.or(verified) else {
            return Ok(());
        };
        let mail = Mail {
            kind: notice.as_str(),
            tenant,
            user,
            username: &active.login.username,
            email,
            token: None,
        };
        self.deliver(mail, slot).await
    }

    async fn deliver(&self, mail: Mail<'_>, mut slot: SemaphorePermit<'_>) -> Result<(), Error> {
        let (tenant, user) = (&mail.tenant.name, mail.user);
        let lifetime = mail.token.as_ref().map_or(NOTICE_LIFETIME, |(_, expiry)| *expiry);
        let useful_until = Utc::now() + lifetime;
        let body = mail.body();
        let id = format!("mail_{}", Uuid::new_v4().simple());
        let mut attempt = 1;
        loop {
            let answer = self.sender.send(&id, body.clone()).await;
            let is_final = answer.as_ref().is_ok_and(|answer| answer.is_final());
            let (cause, asked) = match answer {
                Ok(Answer::Taken) => {
                    self.metrics.ended(MailResult::Sent);
                    return Ok(());
                }
                Ok(Answer::Gone) => ("it answered 410 Gone".to_owned(), None),
                Ok(Answer::Refused(status, asked)) => (format!("it answered {status}"), asked),
                Err(error) => (format!("{error:#}"), None),
            };
            let failed = |reason: &str| {
                let text = format!("the webhook did not take the mail to the user {user}: {cause}{reason}");
                Err(Error::Internal(text))
            };
            let wait = retries::wait(attempt, asked, (Utc::now(), useful_until)).filter(|_| !is_final);
            let Some(wait) = wait else { return failed("") };
            let Some(retry) = self.retries.enter(tenant) else {
                return failed("; too many mails wait for another attempt");
            };
            self.metrics.ended(MailResult::Retried);
            tracing::warn!(tenant, %user, attempt, cause, "mail not taken by the webhook; retrying");
            drop(slot);
            tokio::time::sleep(wait).await;
            slot = match self.slots.acquire().await {
                Ok(slot) => slot,
                Err(_) => return Ok(()),
            };
            drop(retry);
            if Utc::now() >= useful_until {
                return failed("; its time has passed");
            }
            attempt += 1;
        }
    }
}

/// Whether a mail is within the limits.
fn is_admitted(tenant: &Tenant, user: Uuid, taken: Result<(), Error>) -> Result<bool, Error> {
    match taken {
        Ok(()) => Ok(true),
        Err(Error::Limited(_)) => {
            tracing::info!(tenant = tenant.name, %user, "no further mail to this user for a while");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Mail<'_> {
    /// The body of the request, the same in each attempt.
    fn body(&self) -> Bytes {
        let now = Utc::now();
        let mut data = json!({
            "tenant": self.tenant.name,
            "user_id": self.user,
            "username": self.username,
            "email": self.email,
        });
        if let (Value::Object(fields), Some((token, expiry))) = (&mut data, &self.token) {
            fields.insert("token".to_owned(), json!(token));
            fields.insert("expires_at".to_owned(), json!(Timestamp(now + *expiry)));
        }
        let body = json!({"type": self.kind, "timestamp": Timestamp(now), "data": data});
        body.to_string().into()
    }
}
