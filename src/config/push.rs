use anyhow::{Result, bail};

use super::rule;
use super::secret::Secret;
use super::section::{number, section, within};
use super::webhook::Webhook;
use crate::core::event;

section! {
    /// Push triggers for devices that are offline: an entry in the tenant's stream `push`, and a webhook.
    pub struct Push {
        /// Seconds without a stream after which a device with pending events is triggered.
        pub offline_delay_seconds: u64 = 60, 1..=3600;
        /// Live events that trigger; `*` for all. An empty list disables triggers.
        pub events: Vec<String> = vec![event::NEW_MESSAGE.into()];
        /// Seconds between two sweeps over all devices, which find what was missed.
        pub sweep_interval_seconds: u64 = 300, 10..=86_400;
        /// Maximum number of users with pending events kept in memory; the next sweep finds the others.
        pub candidates_max: usize = 100_000, 100..=10_000_000;
        /// Approximate maximum number of entries in a tenant's stream `push`.
        pub stream_entries_max: u64 = 10_000, 100..=1_000_000;
        /// URL to which each entry is sent, for example `https://push.example.com/posduif`; empty means none.
        pub webhook_url: String = String::new();
        /// Key that signs the requests: `whsec_` and the base64 of 24 to 64 random bytes.
        pub webhook_secret: Secret = Secret::new("");
        /// Former values of `webhook_secret`; requests are signed with them, too.
        pub webhook_previous_secrets: Vec<Secret> = Vec::new();
        /// File (PEM) with the certificate authority of the webhook's server; empty means those of the system.
        pub webhook_ca_file: String = String::new();
        /// Maximum time in seconds of a request to the webhook.
        pub webhook_timeout_seconds: u64 = 10, 1..=60;
        /// Maximum number of attempts per entry.
        pub webhook_attempts_max: u32 = 12, 1..=100;
        /// Maximum number of concurrent requests to the webhook.
        pub webhook_concurrency: usize = 8, 1..=64;
    }
}

impl Push {
    /// The webhook, if there is one.
    ///
    /// # Errors
    /// When its URL or a secret is malformed; the error names the key and shows neither.
    pub fn webhook(&self) -> Result<Option<Webhook>> {
        Webhook::of(
            "push",
            &self.webhook_url,
            &self.webhook_secret,
            &self.webhook_previous_secrets,
        )
    }

    pub(super) fn check(&self) -> Result<()> {
        within("push.events (their number)", number(self.events.len()), &(0..=200))?;
        for event in &self.events {
            if event != "*" && !rule::is_event_name(event) {
                bail!("key `push.events` has {event:?}: allowed are * and names of 1 to 64 of a-z, 0-9 and _");
            }
        }
        self.webhook().map(drop)
    }
}
