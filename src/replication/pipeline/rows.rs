//! Rows of tables: whose they are, who receives them, and what happens where the log does not say.

use std::sync::Arc;

use super::{ENTRY_BYTES_MAX, Error, Pipeline};
use crate::contract::group;
use crate::contract::membership_log::MembershipChange;
use crate::contract::quarantine::QuarantineKind;
use crate::contract::stream_name::{Audience, Target};
use crate::core::json::write_string;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::decode::pgoutput::{Begin, Cell, Old, Tuple};
use crate::publish::batch::Change;
use crate::replication::catalog;
use crate::replication::row_json::{source, write_payload, write_removal, write_rows};
use crate::route::router::{Delivery, Plan, RouteError};
use crate::route::row::{ColumnValue, Row, user_id};
use crate::route::tenancy::{RowTenant, Tenancy};

impl Pipeline {
    /// A changed row.
    pub(super) fn row(&mut self, oid: u32, row: Row<'_>) -> Result<(), Error> {
        let (Some((id, begin)), Some(table)) = (self.reach(oid)?, self.tables.get(&oid)) else {
            return Ok(());
        };
        let Some((_, plan)) = table.of_tenant() else {
            return Ok(());
        };
        match plan.tenancy.whole().cloned() {
            Some(tenant) => self.row_of(oid, &tenant, row, (id, &begin)),
            None => self.row_by_column(oid, row, (id, &begin)),
        }
    }

    /// A changed row of a table in which a column names the tenant.
    fn row_by_column(&mut self, oid: u32, row: Row<'_>, at: (StreamId, &Begin)) -> Result<(), Error> {
        let Some(table) = self.tables.get(&oid) else {
            return Ok(());
        };
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        let Tenancy::ByColumn(column) = &plan.tenancy else {
            return Ok(());
        };
        if let Some(name) = column.missing() {
            let cause = format!(
                "the rule for table {} names column {name} for the tenant, which does not exist",
                relation.table
            );
            // Once: no snapshot has rows of such a table, and so none is stale afterwards.
            let mut tenants = self.tenants_of(plan);
            tenants.retain(|tenant| !table.reported.contains(tenant));
            return self.lack_tenant(oid, &tenants, at, (QuarantineKind::Rule, &cause));
        }
        let partial = table.key_of_partial(&row);
        let known = partial.as_ref().map_or(row, |old| row.with_old(old));
        let (before, after) = column.of(relation, &known);
        let existing = |tenant: &RowTenant<'_>| match tenant {
            RowTenant::Named(name) => self.tenants.get(&**name).cloned(),
            RowTenant::NoRow | RowTenant::Nameless | RowTenant::Unknown => None,
        };
        if before == RowTenant::Unknown || after == RowTenant::Unknown {
            let tenants = self.tenants_of(plan);
            return self.lack_tenant(oid, &tenants, at, (QuarantineKind::Table, catalog::OLD_ROW_MISSING));
        }
        let (old, new) = (existing(&before), existing(&after));
        let is_elsewhere = matches!(&after, RowTenant::Named(name) if self.elsewhere.contains(&**name));
        let is_nameless = after != RowTenant::NoRow && new.is_none() && !is_elsewhere;
        if is_nameless && at.0 > self.entries.published {
            self.counts.without_tenant += 1;
            if self.entries.logged_nameless.insert(oid) {
                let value = match &after {
                    RowTenant::Named(name) => &**name,
                    _ => "",
                };
                tracing::warn!(
                    schema = &*relation.schema,
                    table = &*relation.table,
                    tenant = value,
                    "row of no tenant is not delivered; further ones of this table are not logged; see `posduif routes check`"
                );
            }
        }
        match (old, new) {
            (Some(old), Some(new)) if old == new => self.row_of(oid, &old, row, at),
            (old, new) => {
                // The value that the log omits for the new row is that of the old one.
                let arriving = arriving(&known);
                if let Some(old) = old {
                    let leaving = if row.has_after() { row.departing() } else { row };
                    self.row_of(oid, &old, leaving, at)?;
                }
                match (new, arriving) {
                    (Some(new), Some(tuple)) if row.has_before() => self.row_of(oid, &new, row.arriving(&tuple), at),
                    (Some(new), _) => self.row_of(oid, &new, row, at),
                    (None, _) => Ok(()),
                }
            }
        }
    }

    /// The tenants of which a table may have rows.
    fn tenants_of(&self, plan: &Plan) -> Vec<Arc<str>> {
        if let Some(tenant) = plan.tenancy.whole() {
            return vec![tenant.clone()];
        }
        let tenants = self.tenants.iter().filter(|tenant| plan.tenancy.may_be(tenant));
        tenants.cloned().collect()
    }

    /// A changed row of a tenant, or the part of the change that the tenant may see.
    fn row_of(&mut self, oid: u32, tenant: &Arc<str>, row: Row<'_>, at: (StreamId, &Begin)) -> Result<(), Error> {
        let (id, begin) = at;
        let Some(table) = self.tables.get(&oid) else {
            return Ok(());
        };
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        let is_whole = table.has_whole_old(&row);
        let partial = table.key_of_partial(&row);
        let row = partial.as_ref().map_or(row, |old| row.with_old(old));
        let source = source(relation, begin);
        self.entries.body.begin(&source);
        let mut deliveries: Vec<Delivery<'_>> = Vec::new();
        let is_retried = self.retried.as_ref() == Some(tenant);
        let (is_stored, quarantined) = match write_rows(relation, &row, None, &mut self.json, &mut self.entries.body) {
            Ok(()) if self.entries.body.bytes() > ENTRY_BYTES_MAX => {
                let bytes = self.entries.body.bytes();
                self.entries.body.begin(&source);
                let cause = format!("the row has {bytes} bytes; an entry may have at most {ENTRY_BYTES_MAX}");
                (false, Some((QuarantineKind::Row, cause)))
            }
            Ok(()) => {
                let changes = Target::Changes(tenant.clone());
                self.entries.add(changes, id, Change::of(row.effect(), None));
                let routed_row = if is_retried { row.as_new() } else { row };
                if !is_whole && routed_row.has_before() && plan.is_routed() {
                    return self.lack_old_row(oid, tenant, at);
                }
                let routed = plan.route(tenant, &routed_row, &mut deliveries);
                let quarantined = routed.err().map(|cause| match &cause {
                    RouteError::Recipient { .. } | RouteError::Group { .. } => {
                        (QuarantineKind::Recipient, cause.to_string())
                    }
                    RouteError::Rule(_) => (QuarantineKind::Rule, cause.to_string()),
                });
                (true, quarantined)
            }
            Err(cause) => (false, Some((QuarantineKind::Row, cause.to_string()))),
        };
        // Of what is published, the rest of the EXEC succeeded.
        let is_new = id > self.entries.published;
        if let Some((kind, cause)) = quarantined
            && is_new
        {
            self.counts.quarantined += 1;
            self.entries.quarantine(relation, tenant, id, (kind, &cause));
        }
        if !is_stored {
            return Ok(());
        }
        if is_new
            && let Some(column) = plan.inbox_column
            && row.operation == Operation::Insert
            && let Ok(Some(user)) = user_id(row.after(column))
        {
            let batch = &mut self.entries.batch;
            // Before the entry of the row itself.
            batch.create_inbox(tenant, user, id.previous(), begin.commit_ts);
        }
        if is_new
            && let Some(column) = plan.user_column
            && row.operation == Operation::Delete
            && let Ok(Some(user)) = user_id(row.before(column))
        {
            // Nothing else would remove it: what is listed by users lacks it from now on.
            self.entries.remove_stream(&Target::Inbox(tenant.clone(), user));
        }
        // The log of the tenant has all columns, its readers those of the list.
        if let Some(shown) = plan.delivered.as_deref()
            && deliveries.iter().any(|delivery| delivery.stored)
        {
            self.entries.body.begin(&source);
            // A value that is not UTF-8 was refused above.
            if write_rows(relation, &row, Some(shown), &mut self.json, &mut self.entries.body).is_err() {
                return Ok(());
            }
        }
        let is_removal = |delivery: &Delivery<'_>| delivery.operation == Operation::Delete;
        if row.has_before() || deliveries.iter().any(is_removal) {
            let (json, body) = (&mut self.json, &mut self.entries.body);
            if write_removal(relation, &plan.removal_columns, &row, json, body).is_err() {
                return Ok(());
            }
        }
        let mut payload = None;
        if let Some(audiences) = plan.audiences(tenant, &row) {
            payload = plan.group_of_message(&audiences).map(group::message_payload);
            write_audiences(&audiences, &mut self.json);
            self.entries.body.via(&self.json);
        }
        for delivery in deliveries.iter().filter(|delivery| delivery.stored) {
            let target = Target::of(tenant, delivery.audience.clone());
            let change = Change {
                op: delivery.operation,
                event: Some(delivery.event),
                memberships: &delivery.memberships,
            };
            self.entries.add(target, id, change);
        }
        if is_new {
            for delivery in &deliveries {
                let Audience::User(user) = delivery.audience else {
                    continue;
                };
                for membership in &delivery.memberships {
                    let change = MembershipChange {
                        id,
                        user,
                        membership: membership.clone(),
                    };
                    self.entries.batch.membership(tenant, &change, begin.commit_ts);
                }
            }
        }
        if is_new && !deliveries.is_empty() {
            let row_id = plan.id_column.and_then(|column| match row.latest(column) {
                ColumnValue::Text(text) => Some(text),
                _ => None,
            });
            // A user who joined or left a group receives an event about that.
            deliveries.retain(|delivery| {
                let payload = group::payload(&delivery.memberships);
                if let Some(payload) = &payload {
                    let (batch, delivery) = (&mut self.entries.batch, std::slice::from_ref(delivery));
                    batch.notice(id, tenant, &source, row_id, delivery, Some(payload.as_bytes()));
                }
                payload.is_none()
            });
            let payload = match write_payload(relation, &plan.live_columns, &row, &mut self.json) {
                Ok(()) if !plan.live_columns.is_empty() => Some(&*self.json),
                // A row with a value that is not UTF-8 was refused above.
                _ => payload.as_ref().map(String::as_bytes),
            };
            if !deliveries.is_empty() {
                self.entries
                    .batch
                    .notice(id, tenant, &source, row_id, &deliveries, payload);
            }
        }
        Ok(())
    }

    /// The log does not have who saw a row before its change: all users of the tenant take a snapshot. One transaction
    /// resets a tenant once, since a snapshot includes all of it.
    fn lack_old_row(&mut self, oid: u32, tenant: &Arc<str>, at: (StreamId, &Begin)) -> Result<(), Error> {
        let Some(table) = self.tables.get_mut(&oid) else {
            return Ok(());
        };
        let is_reported = !table.reported.insert(tenant.clone());
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        let lists_members = plan.lists_members();
        if !is_reported {
            self.counts.quarantined += 1;
            let cause = catalog::OLD_ROW_MISSING;
            self.entries
                .quarantine(relation, tenant, at.0, (QuarantineKind::Table, cause));
        }
        self.entries.body.begin(&source(relation, at.1));
        self.reset(std::slice::from_ref(tenant), lists_members, at);
        Ok(())
    }

    /// The log does not have whose row it was or is: each tenant that it may be takes a snapshot. None of them gets the row
    /// itself, which may be another's.
    fn lack_tenant(
        &mut self,
        oid: u32,
        tenants: &[Arc<str>],
        at: (StreamId, &Begin),
        reason: (QuarantineKind, &str),
    ) -> Result<(), Error> {
        let Some(table) = self.tables.get_mut(&oid) else {
            return Ok(());
        };
        let unreported: Vec<Arc<str>> = tenants
            .iter()
            .filter(|tenant| table.reported.insert((*tenant).clone()))
            .cloned()
            .collect();
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        let lists_members = plan.lists_members();
        self.entries.body.begin(&source(relation, at.1));
        for tenant in &unreported {
            self.counts.quarantined += 1;
            self.entries.quarantine(relation, tenant, at.0, reason);
        }
        self.reset(tenants, lists_members, at);
        Ok(())
    }

    /// Makes the users of tenants take a snapshot, once in a transaction. The body has the source of the change, which may be in
    /// a table of memberships.
    fn reset(&mut self, tenants: &[Arc<str>], lists_members: bool, (id, begin): (StreamId, &Begin)) {
        for tenant in tenants {
            if lists_members {
                self.entries.reset_groups(tenant, id, begin);
            }
            if self.reset.insert(tenant.clone()) {
                self.entries.reset_tenant(tenant, id, begin);
            }
        }
    }

    /// Quarantines a row without its content. Where its table is routed, its readers are unknown.
    pub(super) fn oversized_row(&mut self, oid: u32, bytes: usize) -> Result<(), Error> {
        let (Some((id, begin)), Some(table)) = (self.reach(oid)?, self.tables.get(&oid)) else {
            return Ok(());
        };
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        let (tenants, is_routed, lists_members) = (self.tenants_of(plan), plan.is_routed(), plan.lists_members());
        self.entries.body.begin(&source(relation, &begin));
        if id > self.entries.published {
            let cause = format!(
                "the change has {bytes} bytes in the log, more than replication.row_bytes_max; it is in no stream"
            );
            for tenant in &tenants {
                self.counts.quarantined += 1;
                self.entries
                    .quarantine(relation, tenant, id, (QuarantineKind::Row, &cause));
            }
        }
        if is_routed {
            self.reset(&tenants, lists_members, (id, &begin));
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, oid: u32) -> Result<(), Error> {
        let (Some((id, begin)), Some((relation, plan))) = (
            self.reach(oid)?,
            self.tables.get(&oid).and_then(super::Table::of_tenant),
        ) else {
            return Ok(());
        };
        self.entries.body.begin(&source(relation, &begin));
        for tenant in self.tenants_of(plan) {
            self.entries.add(
                Target::Changes(tenant.clone()),
                id,
                Change::of(Operation::Truncate, None),
            );
            if plan.is_routed() {
                // The log does not have the rows and so not their viewers: all users of the tenant take a snapshot.
                self.entries.reset_tenant(&tenant, id, &begin);
            }
            if plan.lists_members() {
                self.entries.reset_groups(&tenant, id, &begin);
            }
        }
        Ok(())
    }
}

/// The new row of an update, with the values of the old one where the log omits unchanged ones.
fn arriving<'a>(row: &Row<'a>) -> Option<Tuple<'a>> {
    let new = row.new_tuple()?;
    let old = match row.old_row() {
        Some(Old::Full(old)) => Some(old),
        _ => None,
    };
    let cells = new.iter().enumerate().map(|(index, cell)| match (cell, old) {
        (Cell::Unchanged, Some(old)) => old.get(index).copied().unwrap_or(Cell::Unchanged),
        (cell, _) => *cell,
    });
    Some(cells.collect())
}

/// Writes audiences as a JSON array of texts.
fn write_audiences(audiences: &[Audience], out: &mut Vec<u8>) {
    out.clear();
    out.push(b'[');
    for audience in audiences {
        if out.len() > 1 {
            out.push(b',');
        }
        write_string(&audience.to_string(), out);
    }
    out.push(b']');
}
