//! Devices that were woken, and deliveries to the webhook.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::label::{Label, create};

/// Metrics of push triggers.
#[derive(Debug)]
pub struct Push {
    triggers: Counter,
    webhooks: Family<Label, Counter>,
}

impl Push {
    pub(super) fn new() -> Self {
        let new = Self {
            triggers: Counter::default(),
            webhooks: Family::default(),
        };
        create(&new.webhooks, "outcome", &["taken", "refused", "given_up", "gone"]);
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "push_triggers",
            "Triggers for devices that were offline with pending events",
            self.triggers.clone(),
        );
        registry.register("push_webhooks", "Webhook deliveries, by outcome", self.webhooks.clone());
    }

    /// A device was triggered.
    pub fn triggered(&self) {
        self.triggers.inc();
    }

    /// A delivery to the webhook ended.
    pub fn delivered(&self, outcome: &'static str) {
        self.webhooks.get_or_create(&[("outcome", outcome)]).inc();
    }
}
