use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::label::{Label, create};

/// Metrics of mails about accounts. Cloning shares the counters.
#[derive(Debug, Clone)]
pub struct Mail {
    mails: Family<Label, Counter>,
}

/// How an attempt to send a mail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailResult {
    /// The webhook took it.
    Sent,
    /// It is tried again.
    Retried,
    /// It is given up.
    Failed,
}

impl MailResult {
    const ALL: [Self; 3] = [Self::Sent, Self::Retried, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Retried => "retried",
            Self::Failed => "failed",
        }
    }
}

impl Mail {
    pub(super) fn new() -> Self {
        let new = Self {
            mails: Family::default(),
        };
        create(&new.mails, "result", &MailResult::ALL.map(MailResult::as_str));
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "mails",
            "Attempts to send a mail about an account by the webhook, by result",
            self.mails.clone(),
        );
    }

    /// An attempt has ended.
    pub fn ended(&self, result: MailResult) {
        self.mails.get_or_create(&[("result", result.as_str())]).inc();
    }
}
