//! Outbox messages: rows of tenants' outboxes, and logical decoding messages where these are on.

use std::sync::Arc;

use super::{Error, Pipeline, text};
use crate::contract::entry::Source;
use crate::contract::quarantine::QuarantineKind;
use crate::contract::stream_name::Target;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::decode::pgoutput::{Begin, Tuple};
use crate::publish::batch::Change;
use crate::route::outbox::{self, OutboxMessage, Undeliverable};
use crate::route::router::SCHEMA_PREFIX;

impl Pipeline {
    /// Logical decoding messages, which any role may write: none of them controls anything.
    pub(super) fn message(&mut self, prefix: &str, content: &[u8]) -> Result<(), Error> {
        let (Some(id), begin) = self.next_id()? else {
            return Ok(());
        };
        let event = prefix.strip_prefix(outbox::PREFIX);
        if let Some(event) = event.filter(|_| self.logical_messages) {
            self.outbox_message(id, &begin, event, content);
            return Ok(());
        }
        if id <= self.entries.published {
            return Ok(());
        }
        self.entries.batch.reach(id, None);
        if event.is_some() {
            if self.counts.ignored_messages == 0 {
                tracing::warn!(
                    prefix,
                    "outbox message ignored, because outbox.logical_messages is false"
                );
            }
            self.counts.ignored_messages += 1;
        }
        if prefix == self.heartbeat_prefix {
            self.entries.batch.heartbeat(begin.commit_ts);
        }
        Ok(())
    }

    /// A row of a tenant's outbox.
    pub(super) fn outbox_row(&mut self, oid: u32, new: &Tuple<'_>) -> Result<(), Error> {
        let table = self.tables.get(&oid).ok_or(Error::UnknownRelation(oid))?;
        let Some((relation, plan)) = table.of_tenant() else {
            return self.pass();
        };
        let Some(tenant) = plan.tenancy.whole().cloned() else {
            return self.pass();
        };
        let column = |name| text(relation, new, name);
        let (event, recipients, data) = (column("event"), column("recipients"), column("data"));
        let (Some(id), begin) = self.next_id()? else {
            return Ok(());
        };
        let message = OutboxMessage::from_row(&tenant, event, recipients, data);
        let content = recipients.unwrap_or_default().as_bytes();
        self.publish(id, &begin, &tenant, message, content);
        Ok(())
    }

    /// A logical decoding message for the outbox of the tenant that it names.
    fn outbox_message(&mut self, id: StreamId, begin: &Begin, event: &str, content: &[u8]) {
        let message = OutboxMessage::parse(event, content);
        let name = match &message {
            Ok(message) => Some(message.tenant),
            Err(undeliverable) => undeliverable.tenant.as_deref(),
        };
        if name.is_some_and(|name| self.elsewhere.contains(name)) {
            if id > self.entries.published {
                self.entries.batch.reach(id, None);
            }
        } else if let Some(tenant) = name.and_then(|name| self.tenants.get(name)).cloned() {
            self.publish(id, begin, &tenant, message, content);
        } else if id > self.entries.published {
            self.entries.batch.reach(id, None);
            self.counts.quarantined += 1;
            let cause = message.as_ref().err().map_or("no such tenant", |error| &error.cause);
            tracing::error!(event, %id, tenant = name, cause, "outbox message dropped");
        }
    }

    /// Publishes an outbox message, or quarantines it with its content.
    fn publish(
        &mut self,
        id: StreamId,
        begin: &Begin,
        tenant: &Arc<str>,
        message: Result<OutboxMessage<'_>, Undeliverable>,
        content: &[u8],
    ) {
        let is_new = id > self.entries.published;
        if is_new {
            self.entries.batch.reach(id, None);
        }
        if message.is_err() && !is_new {
            return;
        }
        let event = match &message {
            Ok(message) => message.event,
            Err(undeliverable) => &*undeliverable.event,
        };
        let schema = format!("{SCHEMA_PREFIX}{tenant}");
        let name = format!("{}{event}", outbox::PREFIX);
        let source = Source {
            schema: &schema,
            table: &name,
            commit_ts: begin.commit_ts,
            xid: begin.xid,
        };
        self.entries.body.begin(&source);
        let message = match message {
            Ok(message) => message,
            Err(undeliverable) => {
                self.counts.quarantined += 1;
                tracing::warn!(tenant = &**tenant, %id, cause = %undeliverable, "outbox message quarantined");
                self.entries
                    .body
                    .content(&content[..content.len().min(outbox::CONTENT_BYTES_MAX)]);
                let cause = undeliverable.to_string();
                self.entries.batch.quarantine(
                    tenant,
                    Some(id),
                    (QuarantineKind::Message, &cause),
                    Some(&self.entries.body),
                );
                return;
            }
        };
        self.entries.body.row(message.data.as_bytes());
        let changes = Target::Changes(tenant.clone());
        let targets = message.to.iter().map(|audience| Target::of(tenant, audience.clone()));
        for (target, event) in
            std::iter::once((changes, None)).chain(targets.map(|target| (target, Some(message.event))))
        {
            self.entries.add(target, id, Change::of(Operation::Message, event));
        }
        if is_new {
            self.entries.batch.outbox_notice(id, &source, &message);
        }
    }
}
