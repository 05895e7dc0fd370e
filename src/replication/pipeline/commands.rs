//! The commands in the log: the life of tenants and streams.

use std::sync::Arc;

use super::{Error, Pipeline, plan_of, text};
use crate::contract::control::{Command, Trim};
use crate::contract::quarantine::QuarantineKind;
use crate::contract::stream_name::Target;
use crate::core::event;
use crate::core::position::StreamId;
use crate::decode::pgoutput::{Begin, Tuple};
use crate::replication::difference::CAUSE_LENGTH_MAX;

impl Pipeline {
    /// A row of the table of commands.
    pub(super) fn command(&mut self, oid: u32, new: &Tuple<'_>) -> Result<(), Error> {
        let table = self.tables.get(&oid).ok_or(Error::UnknownRelation(oid))?;
        let (name, arguments) = (
            text(&table.relation, new, "name"),
            text(&table.relation, new, "arguments"),
        );
        let command = Command::parse(name.unwrap_or_default(), arguments.unwrap_or_default());
        if let Some(Command::Retry { tenant }) = &command {
            // Also when the command is published already: the rows behind it may not be.
            self.retried = self.tenants.get(tenant).cloned();
        }
        let (Some(id), begin) = self.next_id()? else {
            return Ok(());
        };
        if id <= self.entries.published {
            return Ok(());
        }
        self.entries.batch.reach(id, None);
        match command {
            Some(command) => self.execute(command, id, &begin),
            None => tracing::warn!(name, arguments, "unknown command ignored"),
        }
        Ok(())
    }

    /// Executes a command.
    fn execute(&mut self, command: Command, id: StreamId, begin: &Begin) {
        let commit_ts = begin.commit_ts;
        match command {
            Command::CreateTenant {
                tenant,
                generation,
                is_paused,
                lane,
            } => {
                if lane == self.lane {
                    self.begin_tenant(id, begin, &tenant, generation, is_paused);
                } else {
                    self.end_tenant(id, begin, &tenant);
                    self.elsewhere.insert(tenant);
                }
            }
            Command::SetState { tenant, is_paused } if self.tenants.contains(&tenant) => {
                let event = if is_paused {
                    event::TENANT_PAUSED
                } else {
                    event::TENANT_RESUMED
                };
                self.entries.batch.set_state(&tenant, is_paused);
                self.entries.batch.tenant_notice(id, &tenant, event, commit_ts);
            }
            Command::DropTenant { tenant } => self.end_tenant(id, begin, &tenant),
            Command::CreateInbox { tenant, user } if self.tenants.contains(&tenant) => {
                self.entries.batch.create_inbox(&tenant, user, id, commit_ts);
            }
            Command::CreateGroup { tenant, group } if self.tenants.contains(&tenant) => {
                self.entries.batch.create_group(&tenant, &group, id, commit_ts);
            }
            Command::RecreateStream(target) if self.tenants.contains(target.tenant()) => {
                self.renew_stream(&target, Some((id, commit_ts)));
            }
            Command::RemoveStream(target) if self.tenants.contains(target.tenant()) => self.renew_stream(&target, None),
            Command::Trim(Trim { target, min_id }) if self.tenants.contains(target.tenant()) => {
                // An entry that is not published yet must not be hidden from its readers.
                let min_id = min_id.min(id);
                self.entries.batch.trim(&Trim { target, min_id }.into());
            }
            Command::ReportTable { tenant, cause } if self.tenants.contains(&tenant) => {
                self.counts.quarantined += 1;
                let cause: String = cause.chars().take(CAUSE_LENGTH_MAX).collect();
                self.entries
                    .batch
                    .quarantine(&tenant, Some(id), (QuarantineKind::Table, &cause), None);
            }
            // A tenant that does not exist, and `Retry`, which takes effect before it is published.
            Command::SetState { .. }
            | Command::CreateInbox { .. }
            | Command::CreateGroup { .. }
            | Command::RecreateStream(_)
            | Command::RemoveStream(_)
            | Command::Trim(_)
            | Command::ReportTable { .. }
            | Command::Retry { .. } => {}
        }
    }

    /// Removes the key of a stream, whatever its type, and creates the stream again when a position and time are given.
    fn renew_stream(&mut self, target: &Target, create_stream: Option<(StreamId, i64)>) {
        self.entries.remove_stream(target);
        if let Some((id, commit_ts)) = create_stream {
            self.entries.batch.create_stream(target.clone(), id, commit_ts);
            self.entries.batch.recreation_notice(id, target, commit_ts);
        }
    }

    /// Creates a tenant's streams, or resets them.
    fn begin_tenant(&mut self, id: StreamId, begin: &Begin, name: &str, generation: i64, is_paused: bool) {
        let tenant: Arc<str> = name.into();
        // The key of a stopped stream may be of the wrong type, which would also refuse the creation.
        let stopped: Vec<Target> = self
            .entries
            .stopped
            .extract_if(|target| *target.tenant() == tenant)
            .collect();
        for target in &stopped {
            self.entries.batch.remove_stream(target);
            self.entries.batch.unstop(target);
        }
        let own = [Target::Changes(tenant.clone()), Target::Shared(tenant.clone())];
        let inboxes = stopped.into_iter().filter(|target| !own.contains(target));
        for target in own.clone().into_iter().chain(inboxes) {
            self.entries.batch.create_stream(target, id, begin.commit_ts);
        }
        let change = Some((id, begin.xid));
        self.entries.batch.reset_meta(name, generation, is_paused, change);
        self.entries.batch.reset_notice(id, name, begin.commit_ts);
        // Tables that were described before their tenant existed, or have returned to its schema.
        self.elsewhere.remove(&tenant);
        self.tenants.insert(tenant);
        let Self {
            tables,
            router,
            tenants,
            questions,
            ..
        } = self;
        for table in tables.values_mut().filter(|table| table.plan.is_none()) {
            table.plan = plan_of(router, tenants, &table.relation);
            table.is_astray = false;
            questions.extend(table.question());
        }
    }

    /// Removes a tenant that was dropped, or is in another lane, and its keys; the command that did it removes those of users and
    /// devices.
    fn end_tenant(&mut self, id: StreamId, begin: &Begin, name: &str) {
        let tenant: Arc<str> = name.into();
        for table in self.tables.values_mut() {
            table.plan.take_if(|plan| plan.tenancy.whole() == Some(&tenant));
            table.reported.remove(&tenant);
        }
        let stopped: Vec<Target> = self
            .entries
            .stopped
            .extract_if(|target| *target.tenant() == tenant)
            .collect();
        stopped.iter().for_each(|target| self.entries.batch.unstop(target));
        self.entries.batch.remove_tenant(name);
        // The access of connected devices is revoked.
        self.entries
            .batch
            .tenant_notice(id, name, event::DEVICE_CHANGED, begin.commit_ts);
        self.tenants.remove(&tenant);
        self.elsewhere.remove(&tenant);
    }
}
