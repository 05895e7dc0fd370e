use std::fmt;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::rule;
use super::secret::Secret;
use super::section::{number, section, within};
use super::url::HttpUrl;

/// Bytes of a webhook's key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

section! {
    /// Push triggers for devices that are offline: an entry in the tenant's stream `push`, and a webhook.
    pub struct Push {
        /// Seconds without a stream after which a device with pending events is triggered.
        pub offline_delay_seconds: u64 = 60, 1..=3600;
        /// Live events that trigger; `*` for all. An empty list disables triggers.
        pub events: Vec<String> = vec!["new_message".into()];
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

/// A webhook: where it is, and what signs requests to it.
#[derive(Debug, Clone)]
pub struct Webhook {
    pub url: HttpUrl,
    pub secrets: Vec<WebhookSecret>,
}

/// A decoded key that signs requests to a webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

impl WebhookSecret {
    /// Decodes `whsec_<base64>`; `None` if the form or the length is wrong.
    pub fn decode(text: &str) -> Option<Self> {
        let key = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
        KEY_BYTES.contains(&key.len()).then_some(Self(key))
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Push {
    /// The webhook, if there is one.
    ///
    /// # Errors
    /// When its URL or a secret is malformed; the error names the key and shows neither.
    pub fn webhook(&self) -> Result<Option<Webhook>> {
        if self.webhook_url.is_empty() {
            return Ok(None);
        }
        let url = match self.webhook_url.parse() {
            Ok(url) if !self.webhook_url.contains(['@', '#']) => url,
            _ => bail!(
                "key `push.webhook_url`: must be a URL such as https://push.example.com/posduif, without user, password \
                 or fragment"
            ),
        };
        let mut secrets = vec![decode("push.webhook_secret", &self.webhook_secret)?];
        for (index, secret) in self.webhook_previous_secrets.iter().enumerate() {
            secrets.push(decode(&format!("push.webhook_previous_secrets[{index}]"), secret)?);
        }
        Ok(Some(Webhook { url, secrets }))
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

fn decode(key: &str, secret: &Secret) -> Result<WebhookSecret> {
    let Some(decoded) = WebhookSecret::decode(secret.expose()) else {
        bail!(
            "key `{key}` is {}: allowed is whsec_ and the base64 of 24 to 64 random bytes, for example \
             POSDUIF__PUSH__WEBHOOK_SECRET=whsec_$(openssl rand -base64 32)",
            if secret.expose().is_empty() {
                "not set"
            } else {
                "not such a key"
            }
        );
    };
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_secret_of_wrong_form_or_length_is_refused() {
        for bad in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_not base64!",
        ] {
            assert_eq!(WebhookSecret::decode(bad), None, "{bad:?}");
        }
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        assert_eq!(WebhookSecret::decode(&long), None);
    }

    #[test]
    fn webhook_url_with_password_or_fragment_is_refused_and_not_shown() {
        let push = |url: &str| Push {
            webhook_url: url.into(),
            webhook_secret: Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            ..Push::default()
        };
        assert!(push("").webhook().unwrap().is_none());
        let webhook = push("https://push.example.com/a").webhook().unwrap().unwrap();
        assert_eq!((webhook.url.port, webhook.secrets.len()), (443, 1));
        for bad in [
            "push.example.com",
            "ftp://a/b",
            "https://",
            "https://me:hush@a/b",
            "/a",
            "https://a/b#c",
        ] {
            let text = push(bad).webhook().unwrap_err().to_string();
            assert!(text.contains("`push.webhook_url`") && !text.contains("hush"), "{text}");
        }
    }
}
