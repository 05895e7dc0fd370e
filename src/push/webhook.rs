//! Tells a server of the operator's which devices are to be woken: Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks>, specification 1.0.0).
//!
//! Each entry of a stream `push` is told at least once, with the same `webhook-id` each time, until the server takes it
//! (any status of 2xx), says that it wants none any more (410), or it was tried too often. Who was told is in no doubt
//! after a crash, because what is under way stays in Redis. What is told has no content of anything.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::Sha256;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config;
use crate::core::time::Timestamp;
use crate::net::tls::{Connector, Roots, Trust};
use crate::net::{self, Address, BoxStream};
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

/// Bytes of a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Where the webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    is_secure: bool,
    host: String,
    port: u16,
    /// As the header `Host` says it.
    authority: String,
    path: String,
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        const ALLOWED: &str =
            "must be a URL such as https://push.example.com/posduif, without user, password or fragment";
        let uri: Uri = url.parse().map_err(|_| ALLOWED)?;
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(ALLOWED.into()),
        };
        let authority = uri.authority().ok_or(ALLOWED)?;
        if authority.as_str().contains('@') || url.contains('#') || authority.host().is_empty() {
            return Err(ALLOWED.into());
        }
        Ok(Self {
            is_secure,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// The key of a secret `whsec_<base64>`; `None` when it is none, or too short or long.
pub fn decode_secret(text: &str) -> Option<Vec<u8>> {
    let key = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
    SECRET_BYTES.contains(&key.len()).then_some(key)
}

/// The header `webhook-signature`: one signature a key.
pub fn sign(keys: &[Vec<u8>], id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    let signatures = keys.iter().map(|key| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
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
    target: Target,
    connector: Option<Connector>,
    keys: Vec<Vec<u8>>,
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
    /// When a secret or the URL is malformed, or the authority cannot be read.
    pub fn new(settings: &config::Push, store: Store, metrics: Arc<Metrics>) -> Result<Option<Self>> {
        if settings.webhook_url.is_empty() {
            return Ok(None);
        }
        let target = Target::parse(&settings.webhook_url).map_err(|why| anyhow!("key `push.webhook_url`: {why}"))?;
        let roots = match settings.webhook_ca_file.as_str() {
            "" => Roots::System,
            file => Roots::File(file.into()),
        };
        let connector = target
            .is_secure
            .then(|| Connector::new(&Trust::ChainAndName(roots), None, Some(b"http/1.1")))
            .transpose()
            .context("key `push.webhook_ca_file`")?;
        let secrets = std::iter::once(&settings.webhook_secret).chain(&settings.webhook_previous_secrets);
        let keys: Option<Vec<_>> = secrets.map(|secret| decode_secret(secret.expose())).collect();
        Ok(Some(Self {
            target,
            connector,
            keys: keys.context("key `push.webhook_secret`, or a previous one, is none")?,
            timeout: Duration::from_secs(settings.webhook_timeout_seconds),
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
                self.metrics.push.told("taken");
                return self.settle(trigger).await;
            }
            Ok(Answer::Gone) => {
                if !self.is_gone.swap(true, Ordering::Relaxed) {
                    tracing::error!("the webhook answers 410 Gone: it is told nothing more until this engine restarts");
                }
                self.metrics.push.told("gone");
                return self.settle(trigger).await;
            }
            Ok(Answer::Refused(status, asked)) => (format!("it answered {status}"), asked),
            Err(error) => (format!("{error:#}"), None),
        };
        let (id, tries) = (&trigger.id, trigger.tries);
        if tries >= self.attempts_max {
            tracing::error!(id, tries, cause, "the webhook did not take an entry, which is given up");
            self.metrics.push.told("given_up");
            return self.settle(trigger).await;
        }
        self.metrics.push.told("refused");
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
        let sending = self.try_send(trigger);
        match tokio::time::timeout(self.timeout, sending).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow!("no answer within {} s", self.timeout.as_secs())),
        }
    }

    async fn try_send(&self, trigger: &Trigger) -> Result<Answer> {
        let body = body(trigger);
        let timestamp = chrono::Utc::now().timestamp();
        let signature = sign(&self.keys, &trigger.id, timestamp, &body).context("it cannot be signed")?;
        let request = hyper::Request::post(&self.target.path)
            .header(HOST, &self.target.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("posduif/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &trigger.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(Full::new(body))
            .context("the request cannot be made")?;
        let address = Address::Tcp(self.target.host.clone(), self.target.port);
        let mut stream: BoxStream = net::connect(&address, self.timeout).await?;
        if let Some(connector) = &self.connector {
            stream = Box::new(connector.connect(&self.target.host, stream).await?);
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut sending = pin!(sender.send_request(request));
        let mut connection = Some(Box::pin(connection));
        let mut failure = None;
        // Many servers close with their answer: it counts also when the connection ends in the same moment.
        let answered = poll_fn(|context| {
            if let Some(open) = &mut connection
                && let Poll::Ready(ended) = open.as_mut().poll(context)
            {
                failure = ended.err();
                connection = None;
            }
            sending.as_mut().poll(context)
        });
        let answered = answered.await;
        let response = answered.map_err(|error| failure.unwrap_or(error))?;
        // A redirect is a refusal: what is signed goes where the operator says and nowhere else.
        let status = response.status();
        Ok(match status {
            status if status.is_success() => Answer::Taken,
            StatusCode::GONE => Answer::Gone,
            status => {
                let asked = response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok());
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
        let key = decode_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let signature = sign(
            &[key.clone(), key],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        let one = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signature.expect("signed"), format!("{one} {one}"));
    }

    #[test]
    fn secrets_have_their_form_and_length() {
        for bad in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_not base64!",
        ] {
            assert_eq!(decode_secret(bad), None, "{bad:?}");
        }
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        assert_eq!(decode_secret(&long), None);
    }

    #[test]
    fn targets_are_urls_of_http() {
        let target = Target::parse("https://push.example.com/a?b=c").expect("a target");
        assert_eq!((target.host.as_str(), target.port), ("push.example.com", 443));
        assert_eq!(target.path, "/a?b=c");
        let target = Target::parse("http://[::1]:8080").expect("a target");
        assert_eq!(
            (target.host.as_str(), target.port, target.path.as_str()),
            ("::1", 8080, "/")
        );
        for bad in [
            "",
            "push.example.com",
            "ftp://a/b",
            "https://",
            "https://me:pw@a/b",
            "/a",
            "https://a/b#c",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn waits_grow_to_a_bound_and_are_never_the_same_for_all() {
        assert!((500..=1500).contains(&backoff(1).as_millis()));
        assert!((1000..=3000).contains(&backoff(2).as_millis()));
        assert!((150_000..=450_000).contains(&backoff(40).as_millis()));
    }
}
