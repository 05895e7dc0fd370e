//! Mails that wait for their next attempt: how long, and how many. They hold none of the requests at once, so that a tenant
//! whose addresses the webhook refuses does not delay the mails of others.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use crate::core::backoff::Backoff;

/// Attempts for one mail, and the delays between them. The user can ask again.
const ATTEMPTS_MAX: u32 = 5;
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Mails that may wait, and those of one tenant.
pub(super) const RETRIES_MAX: usize = 1000;
const RETRIES_OF_TENANT_MAX: usize = 250;

/// How long a mail waits for its next attempt; `None` after the last one, or if it would be of no use by then.
pub(super) fn wait(
    attempt: u32,
    asked: Option<Duration>,
    (now, useful_until): (DateTime<Utc>, DateTime<Utc>),
) -> Option<Duration> {
    let wait = asked.unwrap_or_default().max(RETRY.after(attempt));
    (attempt < ATTEMPTS_MAX && now + wait < useful_until).then_some(wait)
}

/// The mails of each tenant that wait.
#[derive(Default)]
pub(super) struct Retries(Mutex<HashMap<String, usize>>);

/// The place of a mail that waits.
pub(super) struct Retry<'a> {
    all: &'a Retries,
    tenant: &'a str,
}

impl Retries {
    /// A place, unless too many wait.
    pub(super) fn enter<'a>(&'a self, tenant: &'a str) -> Option<Retry<'a>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
