//! A webhook: where it is, and what signs requests to it (Standard Webhooks).

use std::fmt;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::secret::Secret;
use super::url::HttpUrl;

/// Bytes of a webhook's key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A webhook of the operator.
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

impl Webhook {
    /// The webhook of a section's keys `webhook_url`, `webhook_secret` and `webhook_previous_secrets`, if it has one.
    ///
    /// # Errors
    /// When its URL or a secret is malformed; the error names the key and shows neither.
    pub(super) fn of(section: &str, url: &str, secret: &Secret, previous: &[Secret]) -> Result<Option<Self>> {
        if url.is_empty() {
            return Ok(None);
        }
        let parsed = match url.parse() {
            Ok(parsed) if !url.contains(['@', '#']) => parsed,
            _ => bail!(
                "key `{section}.webhook_url`: must be a URL such as https://hooks.example.com/posduif, without user, \
                 password or fragment"
            ),
        };
        let mut secrets = vec![decode(section, "webhook_secret", secret)?];
        for (index, secret) in previous.iter().enumerate() {
            secrets.push(decode(section, &format!("webhook_previous_secrets[{index}]"), secret)?);
        }
        Ok(Some(Self { url: parsed, secrets }))
    }
}

fn decode(section: &str, key: &str, secret: &Secret) -> Result<WebhookSecret> {
    let Some(decoded) = WebhookSecret::decode(secret.expose()) else {
        bail!(
            "key `{section}.{key}` is {}: allowed is whsec_ and the base64 of 24 to 64 random bytes, for example \
             POSDUIF__{}__WEBHOOK_SECRET=whsec_$(openssl rand -base64 32)",
            if secret.expose().is_empty() {
                "not set"
            } else {
                "not such a key"
            },
            section.to_ascii_uppercase()
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
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let webhook = |url: &str| Webhook::of("push", url, &secret, &[]);
        assert!(webhook("").unwrap().is_none());
        let found = webhook("https://push.example.com/a").unwrap().unwrap();
        assert_eq!((found.url.port, found.secrets.len()), (443, 1));
        for bad in [
            "push.example.com",
            "ftp://a/b",
            "https://",
            "https://me:hush@a/b",
            "/a",
            "https://a/b#c",
        ] {
            let text = webhook(bad).unwrap_err().to_string();
            assert!(text.contains("`push.webhook_url`") && !text.contains("hush"), "{text}");
        }
    }
}
