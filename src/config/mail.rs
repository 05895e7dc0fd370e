use anyhow::Result;

use super::secret::Secret;
use super::section::section;
use super::webhook::Webhook;

section! {
    /// Mails about accounts. The engine sends none itself: a webhook of yours does.
    pub struct Mail {
        /// URL to which each mail is sent as JSON, for example `https://mail.example.com/posduif`; empty means none: no
        /// password can be reset, and no address verified.
        pub webhook_url: String = String::new();
        /// Key that signs the requests: `whsec_` and the base64 of 24 to 64 random bytes.
        pub webhook_secret: Secret = Secret::new("");
        /// Former values of `webhook_secret`; requests are signed with them, too.
        pub webhook_previous_secrets: Vec<Secret> = Vec::new();
        /// File (PEM) with the certificate authority of the webhook's server; empty means those of the system.
        pub webhook_ca_file: String = String::new();
        /// Maximum time in seconds of a request to the webhook.
        pub webhook_timeout_seconds: u64 = 10, 1..=60;
        /// Seconds in which a password can be reset with a mail.
        pub reset_expiry_seconds: u64 = 900, 60..=86_400;
        /// Seconds in which an address can be verified with a mail.
        pub verification_expiry_seconds: u64 = 86_400, 300..=604_800;
        /// Whether a mail to reset a password goes to no address that a registration has given and no mail has verified.
        pub verified_only: bool = true;
        /// Mails of each kind to one user, and to verify one address, within `limits.window_seconds`.
        pub user_max: u64 = 3, 1..=1000;
    }
}

impl Mail {
    /// The webhook, if there is one.
    ///
    /// # Errors
    /// When its URL or a secret is malformed; the error names the key and shows neither.
    pub fn webhook(&self) -> Result<Option<Webhook>> {
        Webhook::of(
            "mail",
            &self.webhook_url,
            &self.webhook_secret,
            &self.webhook_previous_secrets,
        )
    }

    pub(super) fn check(&self) -> Result<()> {
        self.webhook().map(drop)
    }
}
