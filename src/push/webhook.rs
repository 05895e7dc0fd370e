//! Sends triggered pushes to the webhook of the operator ([`crate::net::webhook`]).
//!
//! Each entry of a stream `push` is sent at least once, with the same `webhook-id` each time, until the server accepts it
//! (any status of 2xx), answers 410 Gone, or the attempts are used up. Entries stay in Redis until then, so a crash loses
//! none. A request contains no data of rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::config::lane::LaneName;
use crate::core::backoff::Backoff;
use crate::core::time::{Timestamp, millis};
use crate::net::webhook::{Answer, Sender};
use crate::postgres::{Database, tenants};
use crate::push::candidates::{self, Claimed, Trigger};
use crate::redis::store::Store;
use crate::telemetry::metrics::Metrics;

/// Delays before an entry is sent again.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

/// Pause before Redis or Postgres is asked again.
const PAUSE: Duration = Duration::from_secs(2);

/// Sends entries.
#[derive(Debug)]
pub struct Webhook {
    sender: Sender,
    timeout: Duration,
    attempts_max: u32,
    concurrency: usize,
    store: Store,
    /// The lane whose entries it sends.
    lane: LaneName,
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
    pub fn new(config: &Config, store: Store, metrics: Arc<Metrics>) -> Result<Option<Self>> {
        let settings = &config.push;
        let Some(webhook) = settings.webhook()? else {
            return Ok(None);
        };
        let timeout = Duration::from_secs(settings.webhook_timeout_seconds);
        let sender = Sender::new(webhook, &settings.webhook_ca_file, timeout);
        Ok(Some(Self {
            sender: sender.context("key `push.webhook_ca_file`")?,
            timeout,
            attempts_max: settings.webhook_attempts_max,
            concurrency: settings.webhook_concurrency,
            store,
            lane: config.lane.clone(),
            metrics,
            hinted: Mutex::default(),
            hint: Notify::new(),
            is_gone: AtomicBool::new(false),
        }))
    }

    /// Marks a tenant as having entries to send.
    pub(super) fn hint(&self, tenant: &str) {
        let mut hinted = self.hinted.lock();
        hinted.insert(tenant.to_owned());
        self.hint.notify_one();
    }

    /// Sends entries as they come, those of former engines first. Never returns.
    pub(super) async fn deliver(self: Arc<Self>, database: &Database) {
        let mut due: HashMap<String, Instant> = HashMap::new();
        loop {
            match tenants::list_of(database, &self.lane).await {
                Ok(tenants) => {
                    due.extend(tenants.into_iter().map(|tenant| (tenant.name, Instant::now())));
                    break;
                }
                Err(error) => tracing::warn!(%error, "webhook entries not read; retrying"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        loop {
            let first = due.values().min().copied();
            tokio::select! {
                () = self.hint.notified() => {}
                () = tokio::time::sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {}
            }
            let hinted = std::mem::take(&mut *self.hinted.lock());
            due.extend(hinted.into_iter().map(|tenant| (tenant, Instant::now())));
            self.round(&mut due).await;
        }
    }

    /// Sends entries of tenants that are due, as many at once as is allowed.
    async fn round(&self, due: &mut HashMap<String, Instant>) {
        let now = Instant::now();
        let mut ready: Vec<(Instant, String)> = due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(tenant, at)| (*at, tenant.clone()))
            .collect();
        ready.sort();
        let mut claims: Vec<(Trigger, i64)> = Vec::new();
        // Longer than a request takes, so that no other engine sends it meanwhile.
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
                    tracing::warn!(%error, tenant, "webhook entries not read; retrying");
                    Some(PAUSE)
                }
            };
            match next {
                Some(wait) => due.insert(tenant, Instant::now() + wait),
                None => due.remove(&tenant),
            };
        }
        let claimed = Instant::now();
        let attempts = claims
            .iter()
            .map(|(trigger, now_ms)| self.deliver_one(trigger, *now_ms, claimed));
        let again = futures_util::future::join_all(attempts).await;
        for ((trigger, _), again) in claims.iter().zip(again) {
            if let Some(at) = again {
                let known = due.entry(trigger.tenant.clone()).or_insert(at);
                *known = (*known).min(at);
            }
        }
    }

    /// Sends one entry; returns when it is to be sent again.
    async fn deliver_one(&self, trigger: &Trigger, now_ms: i64, claimed: Instant) -> Option<Instant> {
        let answer = if self.is_gone.load(Ordering::Relaxed) {
            Ok(Answer::Gone)
        } else {
            self.sender.send(&trigger.entry.id, body(trigger)).await
        };
        let (cause, asked) = match answer {
            Ok(Answer::Taken) => {
                self.metrics.push.delivered("taken");
                return self.settle(trigger).await;
            }
            Ok(Answer::Gone) => {
                if !self.is_gone.swap(true, Ordering::Relaxed) {
                    tracing::error!("webhook answered 410 Gone; no more requests until this engine restarts");
                }
                self.metrics.push.delivered("gone");
                return self.settle(trigger).await;
            }
            Ok(Answer::Refused(status, asked)) => (format!("it answered {status}"), asked),
            Err(error) => (format!("{error:#}"), None),
        };
        let (id, tries) = (&trigger.entry.id, trigger.tries);
        if tries >= self.attempts_max {
            tracing::error!(id, tries, cause, "webhook entry not accepted; attempts used up");
            self.metrics.push.delivered("given_up");
            return self.settle(trigger).await;
        }
        self.metrics.push.delivered("refused");
        let wait = asked.unwrap_or_default().max(RETRY.after(tries));
        tracing::warn!(
            id,
            tries,
            cause,
            wait_ms = wait.as_millis(),
            "webhook entry not accepted; retrying"
        );
        let at = Instant::now() + wait;
        let at_ms = now_ms.saturating_add(millis(at - claimed));
        if let Err(error) = candidates::postpone(&self.store, trigger, at_ms).await {
            tracing::warn!(%error, id, "webhook retry not scheduled; the entry is sent again when its claim expires");
        }
        Some(at)
    }

    async fn settle(&self, trigger: &Trigger) -> Option<Instant> {
        match candidates::settle(&self.store, trigger).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(%error, id = trigger.entry.id, "webhook entry was accepted, but not removed; it is sent again");
                Some(Instant::now() + PAUSE)
            }
        }
    }
}

/// The body of the request, the same in each attempt.
fn body(trigger: &Trigger) -> Bytes {
    let at = chrono::DateTime::from_timestamp_millis(trigger.at_ms).unwrap_or_default();
    let body = json!({
        "type": "device.waiting",
        "timestamp": Timestamp(at),
        "data": {
            "tenant": trigger.tenant,
            "user_id": trigger.entry.user_id,
            "device_id": trigger.entry.device_id,
            "event": trigger.entry.event,
            "pending": trigger.entry.pending,
        },
    });
    body.to_string().into()
}
