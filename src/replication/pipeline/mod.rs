//! From pgoutput messages to a batch of commands: decode, number, route, encode. No IO but log lines, and no clock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use postgres_types::PgLsn;

use super::catalog::{self, Outline};
use super::epoch::{Break, Replay};
use super::heartbeat;
use super::row_json::{source, write_payload, write_rows};
use crate::contract::checkpoint::{OpenTransaction, TransactionMark};
use crate::contract::control::{Command, Trim};
use crate::contract::entry::{EntryBody, Source};
use crate::contract::keys::Keys;
use crate::contract::quarantine::QuarantineKind;
use crate::contract::stream_name::Target;
use crate::core::operation::Operation;
use crate::core::position::{Position, StreamId};
use crate::decode::pgoutput::{self, Begin, Commit, DecodeError, Message, Old, ReplicaIdentity};
use crate::decode::relation::{Relation, Types};
use crate::publish::batch::Batch;
use crate::route::outbox::{self, OutboxMessage};
use crate::route::router::{Delivery, Plan, RouteError, Router, SCHEMA_PREFIX};
use crate::route::row::{ColumnValue, Row, user_id};
use crate::telemetry::metrics::ReplicationCounts;
use crate::telemetry::traces;

/// Longest entry in bytes. Redis closes the connection on an argument beyond 512 MiB.
const ENTRY_BYTES_MAX: usize = 384 * 1024 * 1024;

/// Why the stream cannot be followed further.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Messages in an order that the protocol does not allow.
    #[error("pgoutput: {0}")]
    Order(&'static str),
    #[error("pgoutput: a row of the table with OID {0} without a preceding Relation message")]
    UnknownRelation(u32),
    /// A new epoch must begin.
    #[error("replication continuity lost: {0}")]
    Broken(Break),
}

/// The transaction being read.
#[derive(Debug, Clone, Copy)]
struct Transaction {
    begin: Begin,
    ordinal: u64,
    /// It has rows of tenants, which readers wait for.
    has_rows: bool,
}

/// A table and its plan.
#[derive(Debug)]
struct Table {
    relation: Relation,
    /// `None` for tables outside of tenants' schemas.
    plan: Option<Plan>,
    /// Of a partitioned table.
    outline: Option<Outline>,
    /// An old row that is not whole was quarantined since the table was described.
    is_reported: bool,
}

impl Table {
    /// The table and its plan, when it belongs to a tenant.
    fn of_tenant(&self) -> Option<(&Relation, &Plan)> {
        self.plan.as_ref().map(|plan| (&self.relation, plan))
    }

    /// Whether the log has the whole old row of a change.
    fn has_whole_old(&self, row: &Row<'_>) -> bool {
        match row.old_row() {
            _ if row.operation == Operation::Insert => true,
            Some(Old::Full(old)) if self.relation.replica_identity == ReplicaIdentity::Full => {
                let outline = self.outline.as_ref();
                outline.is_none_or(|outline| outline.is_whole(&self.relation, old))
            }
            _ => false,
        }
    }
}

/// Counts of what went through, for logs and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Complete transactions.
    pub transactions: u64,
    /// Changes, routed or not.
    pub changes: u64,
    /// Changes of a replay that the checkpoint already includes.
    pub replayed: u64,
    /// Messages outside of transactions, which have no position.
    pub ignored_messages: u64,
    /// Changes that went to a quarantine.
    pub quarantined: u64,
}

/// Where a pipeline starts.
#[derive(Debug, Clone)]
pub struct Start {
    /// The epoch's base.
    pub base: u64,
    /// Everything up to here is published.
    pub position: StreamId,
    /// Of what is published behind here, it is unknown whether each stream took its entries: they are added again
    /// where they are missing.
    pub seen: StreamId,
    /// What the replay must verify.
    pub replay: Replay,
    /// Names of the existing tenants; others are created by messages in the log.
    pub tenants: HashSet<Arc<str>>,
}

/// The stages between the two connections.
#[derive(Debug)]
pub struct Pipeline {
    keys: Keys,
    router: Router,
    heartbeat_prefix: String,
    types: Types,
    tables: HashMap<u32, Table>,
    /// A table whose outline must be read before its rows are.
    undescribed: Option<u32>,
    base: u64,
    seen: StreamId,
    replay: Replay,
    transaction: Option<Transaction>,
    /// Tenants that this transaction has reset.
    reset: HashSet<Arc<str>>,
    /// The tenant whose updated rows in this transaction are delivered as inserts.
    retried: Option<Arc<str>>,
    received: PgLsn,
    tenants: HashSet<Arc<str>>,
    entries: Entries,
    /// A written batch, whose memory the next one reuses.
    spare: Option<Batch>,
    json: Vec<u8>,
    counts: ReplicationCounts,
}

impl Pipeline {
    /// A pipeline for the stream of a slot.
    pub fn new(keys: Keys, router: Router, slot: &str, start: Start) -> Self {
        Self {
            entries: Entries {
                batch: Batch::new(keys.clone()),
                published: start.position,
                stopped: HashSet::new(),
                body: EntryBody::default(),
            },
            keys,
            router,
            heartbeat_prefix: format!("{}{slot}", heartbeat::PREFIX),
            types: Types::default(),
            tables: HashMap::new(),
            undescribed: None,
            base: start.base,
            seen: start.seen,
            replay: start.replay,
            transaction: None,
            reset: HashSet::new(),
            retried: None,
            received: PgLsn::from(0),
            tenants: start.tenants,
            spare: None,
            json: Vec::new(),
            counts: ReplicationCounts::default(),
        }
    }

    /// The batch being filled.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.entries.batch
    }

    /// Takes the batch and starts another.
    pub fn take_batch(&mut self) -> Batch {
        if let Some(Transaction { begin, ordinal, .. }) = self.transaction
            && ordinal > 0
        {
            self.entries.batch.leave_open(OpenTransaction {
                lsn: begin.final_lsn,
                xid: begin.xid,
                commit_ts: begin.commit_ts,
            });
        }
        let next = self.spare.take().unwrap_or_else(|| Batch::new(self.keys.clone()));
        std::mem::replace(&mut self.entries.batch, next)
    }

    /// Keeps the memory of a written batch for the next one.
    pub fn recycle(&mut self, mut batch: Batch) {
        batch.clear();
        self.spare = Some(batch);
    }

    /// End LSN of the last transaction that was read completely.
    pub fn received(&self) -> PgLsn {
        self.received
    }

    /// While this is true the replay has not yet verified the checkpoint's transaction, and nothing may be
    /// acknowledged.
    pub fn is_unverified(&self) -> bool {
        self.replay.is_unverified()
    }

    /// Totals since the start.
    pub fn counts(&self) -> ReplicationCounts {
        self.counts
    }

    /// How many tenants there are.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// How many streams take no entries.
    pub fn stopped_streams(&self) -> usize {
        self.entries.stopped.len()
    }

    /// Stops a stream that refuses entries: later entries are left out until the stream is recreated, by the next
    /// session or by the tenant's resync. That is noted in the batch that is sent next: this one, if it is not the
    /// pipeline's.
    pub fn stop_stream(&mut self, target: Target, cause: &str, next: Option<&mut Batch>) {
        if !self.entries.stopped.insert(target.clone()) {
            return;
        }
        tracing::error!(
            stream = target.key(&self.keys),
            cause,
            "stream stopped: Redis refuses its entries"
        );
        let cause = format!("Redis refuses entries of stream {}: {cause}", target.key(&self.keys));
        let batch = next.unwrap_or(&mut self.entries.batch);
        batch.quarantine(target.tenant(), None, (QuarantineKind::Stream, &cause), None);
        // The mark survives a restart: entries are missing until the stream is recreated.
        batch.stop(&target, &cause);
        self.counts.quarantined += 1;
    }

    /// A table whose outline must be read, and given to [`Self::describe`], before the next message is applied.
    pub fn undescribed(&self) -> Option<u32> {
        self.undescribed
    }

    /// Takes the outline of the table that was last described.
    pub fn describe(&mut self, outline: Option<Outline>) {
        if let Some(table) = self.undescribed.take().and_then(|oid| self.tables.get_mut(&oid)) {
            table.outline = outline;
        }
    }

    /// Applies one pgoutput message.
    ///
    /// # Errors
    /// Also when the message shows that a new epoch must begin.
    pub fn apply(&mut self, payload: &[u8]) -> Result<(), Error> {
        match pgoutput::decode(payload)? {
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(&commit),
            Message::Relation(relation) => {
                let relation = self.types.relation(&relation);
                let plan = self
                    .router
                    .plan(&relation)
                    .filter(|plan| self.tenants.contains(&plan.tenant));
                // Where nothing is routed, nothing depends on old rows.
                if plan.as_ref().is_some_and(Plan::is_routed) {
                    self.undescribed = Some(relation.oid);
                }
                let table = Table {
                    relation,
                    plan,
                    outline: None,
                    is_reported: false,
                };
                self.tables.insert(table.relation.oid, table);
                Ok(())
            }
            Message::Type { oid, namespace, name } => {
                self.types.insert(oid, namespace, name);
                Ok(())
            }
            Message::Origin { .. } => Ok(()),
            Message::Insert { relation, new } => self.row(relation, Row::inserted(&new)),
            Message::Update { relation, old, new } => self.row(relation, Row::updated(old.as_ref(), &new)),
            Message::Delete { relation, old } => self.row(relation, Row::deleted(&old)),
            Message::Truncate { relations, .. } => relations.into_iter().try_for_each(|oid| self.truncate(oid)),
            Message::Logical {
                transactional: false, ..
            } => {
                // It has no position in commit order: its LSN can equal that of the next commit.
                self.counts.ignored_messages += 1;
                Ok(())
            }
            Message::Logical { prefix, content, .. } => self.message(prefix, content),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<(), Error> {
        if self.transaction.is_some() {
            return Err(Error::Order("a transaction begins inside another"));
        }
        self.replay.verify(&begin).map_err(Error::Broken)?;
        self.retried = None;
        self.reset.clear();
        self.transaction = Some(Transaction {
            begin,
            ordinal: 0,
            has_rows: false,
        });
        Ok(())
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), Error> {
        let transaction = self
            .transaction
            .take()
            .ok_or(Error::Order("a commit without a begin"))?;
        if transaction.begin.final_lsn != commit.commit_lsn {
            return Err(Error::Order("a commit of another transaction"));
        }
        self.received = self.received.max(commit.end_lsn);
        self.counts.transactions += 1;
        let position = Position {
            commit_lsn: commit.commit_lsn,
            ordinal: transaction.ordinal,
        };
        let last = StreamId::of(position, self.base);
        // A replayed transaction must not move the checkpoint back; of the last one, the checkpoint may still lack the
        // commit.
        if last >= self.entries.published {
            if transaction.has_rows && traces::is_enabled() {
                self.entries.batch.trace(last, transaction.begin.commit_ts);
            }
            self.entries.batch.complete(
                last,
                TransactionMark {
                    lsn: commit.commit_lsn,
                    end_lsn: commit.end_lsn,
                    xid: transaction.begin.xid,
                    commit_ts: transaction.begin.commit_ts,
                },
            );
        }
        Ok(())
    }

    /// Numbers a change; `None` when it is published and seen already.
    fn next_id(&mut self) -> Result<(Option<StreamId>, Begin), Error> {
        let transaction = self
            .transaction
            .as_mut()
            .ok_or(Error::Order("a change outside of a transaction"))?;
        transaction.ordinal += 1;
        let position = Position {
            commit_lsn: transaction.begin.final_lsn,
            ordinal: transaction.ordinal,
        };
        let id = StreamId::of(position, self.base);
        self.counts.changes += 1;
        if id <= self.entries.published {
            self.counts.replayed += 1;
        }
        Ok(((id > self.seen).then_some(id), transaction.begin))
    }

    /// Numbers a change of a table; `None` when it is published and seen already or its table belongs to no tenant.
    fn reach(&mut self, oid: u32) -> Result<Option<(StreamId, Begin)>, Error> {
        let (Some(id), begin) = self.next_id()? else {
            return Ok(None);
        };
        let table = self.tables.get(&oid).ok_or(Error::UnknownRelation(oid))?;
        let is_tenants = table.of_tenant().is_some();
        if id > self.entries.published {
            self.entries.batch.reach(id, is_tenants.then_some(begin.xid));
            if let Some(transaction) = &mut self.transaction {
                transaction.has_rows |= is_tenants;
            }
        }
        Ok(is_tenants.then_some((id, begin)))
    }

    fn row(&mut self, oid: u32, row: Row<'_>) -> Result<(), Error> {
        let (Some((id, begin)), Some(table)) = (self.reach(oid)?, self.tables.get(&oid)) else {
            return Ok(());
        };
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        let is_whole = table.has_whole_old(&row);
        // Columns that are NULL in it are unknown.
        let partial = match row.old_row() {
            Some(Old::Full(old)) if !is_whole => Some(Old::Key(old.clone())),
            _ => None,
        };
        let row = partial.as_ref().map_or(row, |old| row.with_old(old));
        let source = source(relation, &begin);
        self.entries.body.begin(&source);
        let mut deliveries: Vec<Delivery<'_>> = Vec::new();
        let is_retried = self.retried.as_ref() == Some(&plan.tenant);
        let (is_stored, quarantined) = match write_rows(relation, &row, &mut self.json, &mut self.entries.body) {
            Ok(()) if self.entries.body.bytes() > ENTRY_BYTES_MAX => {
                let bytes = self.entries.body.bytes();
                self.entries.body.begin(&source);
                let cause = format!("the row has {bytes} bytes; an entry may have at most {ENTRY_BYTES_MAX}");
                (false, Some((QuarantineKind::Row, cause)))
            }
            Ok(()) => {
                let changes = Target::Changes(plan.tenant.clone());
                self.entries.add(changes, id, row.operation, None);
                let routed_row = if is_retried { row.as_new() } else { row };
                if !is_whole && routed_row.operation != Operation::Insert && plan.is_routed() {
                    return self.lack_old_row(oid, id, &begin);
                }
                let routed = plan.route(&routed_row, &mut deliveries);
                let quarantined = routed.err().map(|cause| match &cause {
                    RouteError::Recipient { .. } => (QuarantineKind::Recipient, cause.to_string()),
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
            tracing::warn!(tenant = &*plan.tenant, table = &*relation.table, %id, cause, "row quarantined");
            self.entries
                .batch
                .quarantine(&plan.tenant, Some(id), (kind, &cause), Some(&self.entries.body));
        }
        if !is_stored {
            return Ok(());
        }
        if is_new
            && let Some(column) = plan.creation_column
            && row.operation == Operation::Insert
            && let Ok(Some(user)) = user_id(row.after(column))
        {
            self.entries
                .batch
                .create_stream(Target::Inbox(plan.tenant.clone(), user), id, begin.commit_ts);
        }
        for delivery in deliveries.iter().filter(|delivery| delivery.stored) {
            let target = Target::of(&plan.tenant, delivery.audience);
            self.entries.add(target, id, delivery.operation, Some(delivery.event));
        }
        if is_new && !deliveries.is_empty() {
            let row_id = plan.id_column.and_then(|column| match row.latest(column) {
                ColumnValue::Text(text) => Some(text),
                _ => None,
            });
            let payload = match write_payload(relation, &plan.live_columns, &row, &mut self.json) {
                Ok(()) if !plan.live_columns.is_empty() => Some(&*self.json),
                // A row with a value that is not UTF-8 was refused above.
                _ => None,
            };
            self.entries
                .batch
                .notice(id, &plan.tenant, &source, row_id, &deliveries, payload);
        }
        Ok(())
    }

    /// The log does not have who saw a row before its change: all users of the tenant take a snapshot. One transaction
    /// resets a tenant once, since a snapshot includes all of it.
    fn lack_old_row(&mut self, oid: u32, id: StreamId, begin: &Begin) -> Result<(), Error> {
        let Some(table) = self.tables.get_mut(&oid) else {
            return Ok(());
        };
        let is_reported = std::mem::replace(&mut table.is_reported, true);
        let Some((relation, plan)) = table.of_tenant() else {
            return Ok(());
        };
        if !is_reported {
            self.counts.quarantined += 1;
            let cause = catalog::OLD_ROW_MISSING;
            tracing::warn!(tenant = &*plan.tenant, table = &*relation.table, %id, cause, "row quarantined");
            self.entries.batch.quarantine(
                &plan.tenant,
                Some(id),
                (QuarantineKind::Table, cause),
                Some(&self.entries.body),
            );
        }
        if self.reset.insert(plan.tenant.clone()) {
            self.entries.body.begin(&source(relation, begin));
            self.entries.reset_tenant(&plan.tenant, id, begin);
        }
        Ok(())
    }

    fn truncate(&mut self, oid: u32) -> Result<(), Error> {
        let (Some((id, begin)), Some((relation, plan))) =
            (self.reach(oid)?, self.tables.get(&oid).and_then(Table::of_tenant))
        else {
            return Ok(());
        };
        self.entries.body.begin(&source(relation, &begin));
        let changes = Target::Changes(plan.tenant.clone());
        self.entries.add(changes, id, Operation::Truncate, None);
        if plan.is_routed() {
            // The log does not have the rows and so not their viewers: all users of the tenant take a snapshot.
            self.entries.reset_tenant(&plan.tenant, id, &begin);
        }
        Ok(())
    }

    fn message(&mut self, prefix: &str, content: &[u8]) -> Result<(), Error> {
        let command = Command::parse(prefix, content);
        if let Some(Command::Retry { tenant }) = &command {
            // Also when the message is published already: the rows behind it may not be.
            self.retried = self.tenants.get(tenant).cloned();
        }
        let (Some(id), begin) = self.next_id()? else {
            return Ok(());
        };
        if let Some(event) = prefix.strip_prefix(outbox::PREFIX) {
            self.outbox_message(id, &begin, prefix, event, content);
            return Ok(());
        }
        if id <= self.entries.published {
            return Ok(());
        }
        self.entries.batch.reach(id, None);
        if prefix == self.heartbeat_prefix {
            self.entries.batch.heartbeat(begin.commit_ts);
            return Ok(());
        }
        if let Some(command) = command {
            self.execute(command, id, &begin);
        }
        Ok(())
    }

    /// Executes a control message.
    fn execute(&mut self, command: Command, id: StreamId, begin: &Begin) {
        let commit_ts = begin.commit_ts;
        match command {
            Command::CreateTenant {
                tenant,
                generation,
                is_paused,
            } => self.begin_tenant(id, begin, &tenant, generation, is_paused),
            Command::SetState { tenant, is_paused } => {
                let event = if is_paused { "tenant_paused" } else { "tenant_resumed" };
                self.entries.batch.set_state(&tenant, is_paused);
                self.entries.batch.tenant_notice(id, &tenant, event, commit_ts);
            }
            Command::DropTenant { tenant } => self.end_tenant(id, begin, &tenant),
            Command::CreateInbox { tenant, user } => {
                self.entries
                    .batch
                    .create_stream(Target::Inbox(tenant, user), id, commit_ts);
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
                let cause: String = cause.chars().take(catalog::CAUSE_LENGTH_MAX).collect();
                self.entries
                    .batch
                    .quarantine(&tenant, Some(id), (QuarantineKind::Table, &cause), None);
            }
            // A tenant that does not exist, and `Retry`, which takes effect before it is published.
            Command::RecreateStream(_)
            | Command::RemoveStream(_)
            | Command::Trim(_)
            | Command::ReportTable { .. }
            | Command::Retry { .. } => {}
        }
    }

    /// Removes the key of a stream, whatever its type, and creates the stream again when a position and time are given.
    fn renew_stream(&mut self, target: &Target, create_stream: Option<(StreamId, i64)>) {
        self.entries.batch.remove_stream(target);
        if self.entries.stopped.remove(target) {
            self.entries.batch.unstop(target);
        }
        if let Some((id, commit_ts)) = create_stream {
            self.entries.batch.create_stream(target.clone(), id, commit_ts);
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
        self.entries.batch.reset_meta(name, generation, is_paused);
        self.entries.batch.reset_notice(id, name, begin.commit_ts);
        if self.tenants.insert(tenant) {
            // Tables that were described before their tenant existed.
            for table in self.tables.values_mut().filter(|table| table.plan.is_none()) {
                let plan = self.router.plan(&table.relation);
                table.plan = plan.filter(|plan| self.tenants.contains(&plan.tenant));
            }
        }
    }

    /// Removes a dropped tenant and its streams; `tenant drop` removes the inboxes.
    fn end_tenant(&mut self, id: StreamId, begin: &Begin, name: &str) {
        let tenant: Arc<str> = name.into();
        for table in self.tables.values_mut() {
            table.plan.take_if(|plan| plan.tenant == tenant);
        }
        let stopped: Vec<Target> = self
            .entries
            .stopped
            .extract_if(|target| *target.tenant() == tenant)
            .collect();
        stopped.iter().for_each(|target| self.entries.batch.unstop(target));
        for target in [Target::Changes(tenant.clone()), Target::Shared(tenant.clone())] {
            self.entries.batch.remove_stream(&target);
        }
        // The access of connected devices is revoked.
        self.entries
            .batch
            .tenant_notice(id, name, "device_changed", begin.commit_ts);
        self.tenants.remove(&tenant);
    }

    /// Publishes an outbox message, or quarantines it.
    fn outbox_message(&mut self, id: StreamId, begin: &Begin, prefix: &str, event: &str, content: &[u8]) {
        let is_new = id > self.entries.published;
        if is_new {
            self.entries.batch.reach(id, None);
        }
        let message = OutboxMessage::parse(event, content);
        if message.is_err() && !is_new {
            return;
        }
        let name = match &message {
            Ok(message) => Some(message.tenant),
            Err(undeliverable) => undeliverable.tenant.as_deref(),
        };
        let Some(tenant) = name.and_then(|name| self.tenants.get(name)).cloned() else {
            self.counts.quarantined += 1;
            let cause = message.as_ref().err().map_or("no such tenant", |error| &error.cause);
            tracing::error!(prefix, %id, tenant = name, cause, "outbox message dropped");
            return;
        };
        let schema = format!("{SCHEMA_PREFIX}{tenant}");
        let source = Source {
            schema: &schema,
            table: prefix,
            commit_ts: begin.commit_ts,
            xid: begin.xid,
        };
        self.entries.body.begin(&source);
        let message = match message {
            Ok(message) => message,
            Err(undeliverable) => {
                self.counts.quarantined += 1;
                tracing::warn!(tenant = &*tenant, %id, cause = %undeliverable, "outbox message quarantined");
                self.entries
                    .body
                    .content(&content[..content.len().min(outbox::CONTENT_BYTES_MAX)]);
                let cause = undeliverable.to_string();
                self.entries.batch.quarantine(
                    &tenant,
                    Some(id),
                    (QuarantineKind::Message, &cause),
                    Some(&self.entries.body),
                );
                return;
            }
        };
        self.entries.body.row(message.data.as_bytes());
        let changes = Target::Changes(tenant.clone());
        let targets = message.to.iter().map(|audience| Target::of(&tenant, *audience));
        for (target, event) in
            std::iter::once((changes, None)).chain(targets.map(|target| (target, Some(message.event))))
        {
            self.entries.add(target, id, Operation::Message, event);
        }
        if is_new {
            self.entries.batch.outbox_notice(id, &source, &message);
        }
    }
}

/// Where the entries of a change go.
#[derive(Debug)]
struct Entries {
    batch: Batch,
    /// Everything up to here is published.
    published: StreamId,
    /// Streams that take no entries.
    stopped: HashSet<Target>,
    /// The change being added.
    body: EntryBody,
}

impl Entries {
    /// Adds an entry to a stream that takes entries: where it is published already, only if the stream lacks it.
    fn add(&mut self, target: Target, id: StreamId, operation: Operation, event: Option<&str>) {
        if self.stopped.contains(&target) {
            return;
        }
        if id > self.published {
            self.batch.entry(target, id, operation, event, &self.body);
        } else {
            self.batch.entry_unless_there(target, id, operation, event, &self.body);
        }
    }

    /// Makes all readers of a tenant take a snapshot.
    fn reset_tenant(&mut self, tenant: &Arc<str>, id: StreamId, begin: &Begin) {
        self.add(Target::Shared(tenant.clone()), id, Operation::Truncate, Some("reset"));
        if id > self.published {
            self.batch.reset_notice(id, tenant, begin.commit_ts);
        }
    }
}
