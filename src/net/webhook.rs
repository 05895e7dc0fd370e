//! Requests to a webhook of the operator: Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks>, specification 1.0.0).

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use sha2::Sha256;

use crate::config::{self, WebhookSecret};
use crate::net::http::Client;
use crate::net::tls::Roots;

/// The longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

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
pub enum Answer {
    /// Any status of 2xx.
    Taken,
    /// It wants none any more.
    Gone,
    /// It did not take it, and may want to be left alone for a while.
    Refused(StatusCode, Option<Duration>),
}

impl Answer {
    /// Whether the same request would be refused again, at any time.
    pub fn is_final(self) -> bool {
        match self {
            Self::Taken => false,
            Self::Gone => true,
            Self::Refused(status, _) => {
                let is_passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
                status.is_client_error() && !is_passing
            }
        }
    }
}

/// Sends signed requests to one URL.
#[derive(Debug)]
pub struct Sender {
    client: Client,
    path: String,
    secrets: Vec<WebhookSecret>,
}

impl Sender {
    /// # Errors
    /// When the file of the authority, or those of the system, cannot be read.
    pub fn new(webhook: config::Webhook, ca_file: &str, timeout: Duration) -> Result<Self> {
        let roots = match ca_file {
            "" => Roots::System,
            file => Roots::File(file.into()),
        };
        let path = webhook.url.path.clone();
        Ok(Self {
            client: Client::new(webhook.url, roots, timeout)?,
            path,
            secrets: webhook.secrets,
        })
    }

    /// Sends a body. The id is the same in each attempt, so that the server can recognize a repeat.
    ///
    /// # Errors
    /// When no answer came in time.
    pub async fn send(&self, id: &str, body: Bytes) -> Result<Answer> {
        let timestamp = chrono::Utc::now().timestamp();
        let signature = sign(&self.secrets, id, timestamp, &body).context("the request cannot be signed")?;
        let request = hyper::Request::post(&self.path)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("posduif/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
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
}
