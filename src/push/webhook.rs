//! Tells a server of the operator's which devices are to be woken: Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks>, specification 1.0.0).
//!
//! Each entry of a stream `push` is told at least once, with the same `webhook-id` each time, until the server takes it
//! (any status of 2xx), says that it wants none any more (410), or it was tried too often. Who was told is in no doubt
//! after a crash, because what is under way stays in Redis. What is told has no content of anything.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use serde_json::json;
use sha2::Sha256;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::{self, WebhookSecret};
use crate::core::time::Timestamp;
use crate::net::http::Client;
use crate::net::tls::Roots;
use crate::postgres::{Database, tenants};
use crate::push::candidates::{self, Claimed, Trigger};
use crate::redis::store::Store;
use crate::telemetry::metrics::Metrics;

/// Waits before an entry is told again: after the first try, longest. They double, and are up to half as much longer or
/// shorter at random.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Pause before Redis or Postgres is asked again.
const PAUSE: Duration = Duration::from_secs(2);

/// The header `webhook-signature`: one signature per secret.
pub fn sign(secrets: &[WebhookSecret], id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    let signatures = secrets.iter().map(|secret| {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).ok()?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    });
    Some(signatures.collect::<Option<Vec<_>>>()?.join(" "))
}

/// What the server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Taken,
    /// It wants none any more.
    Gone,
    /// It did not take it, and may want to be left alone for a while.
    Refused(StatusCode, Option<Duration>),
}

/// Tells entries.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    path: String,
    secrets: Vec<WebhookSecret>,
    timeout: Duration,
    attempts_max: u32,
    concurrency: usize,
    store: Store,
    metrics: Arc<Metrics>,
    hinted: Mutex<HashSet<String>>,
    hint: Notify,
    is_gone: AtomicBool,
}

impl Webhook {
    /// The webhook of the settings, if there is one.
    ///
    /// # Errors
    /// When a secret or the URL is malformed, or the file of the authority cannot be read.
    pub fn new(settings: &config::Push, store: Store, metrics: Arc<Metrics>) -> Result<Option<Self>> {
        let Some(config::Webhook { url, secrets }) = settings.webhook()? else {
            return Ok(None);
        };
        let roots = match settings.webhook_ca_file.as_str() {
            "" => Roots::System,
            file => Roots::File(file.into()),
        };
        let timeout = Duration::from_secs(settings.webhook_timeout_seconds);
        let path = url.path.clone();
        Ok(Some(Self {
            client: Client::new(url, roots, timeout).context("key `push.webhook_ca_file`")?,
            path,
            secrets,
            timeout,
            attempts_max: settings.webhook_attempts_max,
            concurrency: settings.webhook_concurrency,
            store,
            metrics,
            hinted: Mutex::default(),
            hint: Notify::new(),
            is_gone: AtomicBool::new(false),
        }))
    }

    /// Says that a tenant has something to be told.
    pub(super) fn hint(&self, tenant: &str) {
        let mut hinted = self.hinted.lock().unwrap_or_else(PoisonError::into_inner);
        hinted.insert(tenant.to_owned());
        self.hint.notify_one();
    }

    /// Tells what there is, what was left from before first, for ever.
    pub(super) async fn deliver(self: Arc<Self>, database: &Database) {
        let mut due: HashMap<String, Instant> = HashMap::new();
        loop {
            match tenants::list(database).await {
                Ok(tenants) => {
                    due.extend(tenants.into_iter().map(|tenant| (tenant.name, Instant::now())));
                    break;
                }
                Err(error) => tracing::warn!(%error, "what the webhook was not told waits"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        loop {
            let first = due.values().min().copied();
            tokio::select! {
                () = self.hint.notified() => {}
                () = tokio::time::sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {}
            }
            let hinted = std::mem::take(&mut *self.hinted.lock().unwrap_or_else(PoisonError::into_inner));
            due.extend(hinted.into_iter().map(|tenant| (tenant, Instant::now())));
            self.round(&mut due).await;
        }
    }

    /// Tells as many entries at once as may be, of tenants that are due.
    async fn round(&self, due: &mut HashMap<String, Instant>) {
        let now = Instant::now();
        let mut ready: Vec<(Instant, String)> = due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(tenant, at)| (*at, tenant.clone()))
            .collect();
        ready.sort();
        let mut claims: Vec<(Trigger, i64)> = Vec::new();
        // Longer than telling takes, so that nobody else does it meanwhile.
        let lease = 2 * self.timeout + PAUSE;
        for (_, tenant) in ready {
            let room = self.concurrency - claims.len();
            if room == 0 {
                break;
            }
            let next = match candidates::claim(&self.store, &tenant, lease, room).await {
                Ok(Claimed { triggers, next, now_ms }) => {
                    let is_full = triggers.len() == room;
                    claims.extend(triggers.into_iter().map(|trigger| (trigger, now_ms)));
                    if is_full { Some(Duration::ZERO) } else { next }
                }
                Err(error) => {
                    tracing::warn!(%error, tenant, "what the webhook was not told waits");
                    Some(PAUSE)
                }
            };
            match next {
                Some(wait) => due.insert(tenant, Instant::now() + wait),
                None => due.remove(&tenant),
            };
        }
        let claimed = Instant::now();
        let tellings = claims
            .iter()
            .map(|(trigger, now_ms)| self.tell(trigger, *now_ms, claimed));
        let again = futures_util::future::join_all(tellings).await;
        for ((trigger, _), again) in claims.iter().zip(again) {
            if let Some(at) = again {
                let known = due.entry(trigger.tenant.clone()).or_insert(at);
                *known = (*known).min(at);
            }
        }
    }

    /// Tells one entry; gives when it is to be told again.
    async fn tell(&self, trigger: &Trigger, now_ms: i64, claimed: Instant) -> Option<Instant> {
        let answer = match self.is_gone.load(Ordering::Relaxed) {
            true => Ok(Answer::Gone),
            false => self.send(trigger).await,
        };
        let (cause, asked) = match answer {
            Ok(Answer::Taken) => {
                self.metrics.push.delivered("taken");
                return self.settle(trigger).await;
            }
            Ok(Answer::Gone) => {
                if !self.is_gone.swap(true, Ordering::Relaxed) {
                    tracing::error!("the webhook answers 410 Gone: it is told nothing more until this engine restarts");
                }
                self.metrics.push.delivered("gone");
                return self.settle(trigger).await;
            }
            Ok(Answer::Refused(status, asked)) => (format!("it answered {status}"), asked),
            Err(error) => (format!("{error:#}"), None),
        };
        let (id, tries) = (&trigger.id, trigger.tries);
        if tries >= self.attempts_max {
            tracing::error!(id, tries, cause, "the webhook did not take an entry, which is given up");
            self.metrics.push.delivered("given_up");
            return self.settle(trigger).await;
        }
        self.metrics.push.delivered("refused");
        let wait = asked.unwrap_or_default().max(backoff(tries));
        tracing::warn!(
            id,
            tries,
            cause,
            wait_ms = wait.as_millis(),
            "the webhook did not take an entry"
        );
        let at = Instant::now() + wait;
        let at_ms = now_ms.saturating_add(i64::try_from((at - claimed).as_millis()).unwrap_or(i64::MAX));
        if let Err(error) = candidates::postpone(&self.store, trigger, at_ms).await {
            tracing::warn!(%error, id, "the entry is told again when its turn is over");
        }
        Some(at)
    }

    async fn settle(&self, trigger: &Trigger) -> Option<Instant> {
        match candidates::settle(&self.store, trigger).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(%error, id = trigger.id, "the entry is told again, though it was taken");
                Some(Instant::now() + PAUSE)
            }
        }
    }

    async fn send(&self, trigger: &Trigger) -> Result<Answer> {
        let body = body(trigger);
        let timestamp = chrono::Utc::now().timestamp();
        let signature = sign(&self.secrets, &trigger.id, timestamp, &body).context("the request cannot be signed")?;
        let request = hyper::Request::post(&self.path)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("posduif/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &trigger.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body)
            .context("the request cannot be built")?;
        let head = self.client.send_for_head(request).await?;
        // A redirect counts as a refusal: signed requests go to the configured URL only.
        Ok(match head.status {
            status if status.is_success() => Answer::Taken,
            StatusCode::GONE => Answer::Gone,
            status => {
                let asked = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let seconds = asked.and_then(|text| text.parse().ok()).map(Duration::from_secs);
                Answer::Refused(status, seconds.map(|wait| wait.min(RETRY_AFTER_MAX)))
            }
        })
    }
}

/// What is told: whom to wake, and no content. The same each time.
fn body(trigger: &Trigger) -> Bytes {
    let at = chrono::DateTime::from_timestamp_millis(trigger.at_ms).unwrap_or_default();
    let body = json!({
        "type": "device.waiting",
        "timestamp": Timestamp(at),
        "data": {
            "tenant": trigger.tenant,
            "user_id": trigger.user_id,
            "device_id": trigger.device_id,
            "event": trigger.event,
            "pending": trigger.pending,
        },
    });
    body.to_string().into()
}

/// How long to wait after so many tries.
fn backoff(tries: u32) -> Duration {
    let wait = BACKOFF
        .0
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(BACKOFF.1);
    let share = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    wait.mul_f64(0.5 + share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_specifications_example() {
        // Of the libraries' own tests: https://github.com/standard-webhooks/standard-webhooks/tree/main/libraries
        let secret = WebhookSecret::decode("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let signature = sign(
            &[secret.clone(), secret],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        let one = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signature.expect("signed"), format!("{one} {one}"));
    }

    #[test]
    fn waits_grow_to_a_bound_and_are_never_the_same_for_all() {
        assert!((500..=1500).contains(&backoff(1).as_millis()));
        assert!((1000..=3000).contains(&backoff(2).as_millis()));
        assert!((150_000..=450_000).contains(&backoff(40).as_millis()));
    }
}
