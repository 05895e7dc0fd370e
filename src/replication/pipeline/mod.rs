//! From pgoutput messages to a batch of commands: decode, number, route, encode. No IO but log lines, and no clock.

mod commands;
mod outbox;
mod rows;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use postgres_types::PgLsn;

use super::catalog::Outline;
use super::epoch::{Break, Replay};
use super::heartbeat;
use crate::contract::checkpoint::{OpenTransaction, TransactionMark};
use crate::contract::control;
use crate::contract::entry::EntryBody;
use crate::contract::keys::Keys;
use crate::contract::quarantine::QuarantineKind;
use crate::contract::stream_name::Target;
use crate::core::operation::Operation;
use crate::core::position::{Position, StreamId};
use crate::decode::pgoutput::{self, Begin, Cell, Commit, DecodeError, Head, Message, Old, ReplicaIdentity, Tuple};
use crate::decode::relation::{Relation, Types};
use crate::postgres::migrations::CONTROL_SCHEMA;
use crate::publish::batch::{Batch, Change};
use crate::route::outbox::TABLE as OUTBOX;
use crate::route::router::{Plan, Router};
use crate::route::row::Row;
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

/// What the rows of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Rows of a tenant, or of no tenant.
    Data,
    /// Commands to the engine.
    Commands,
    /// Events of a tenant, where its schema is a tenant's.
    Outbox,
}

impl Purpose {
    fn of(relation: &Relation) -> Self {
        match (&*relation.schema, &*relation.table) {
            (CONTROL_SCHEMA, control::TABLE) => Self::Commands,
            (_, OUTBOX) => Self::Outbox,
            _ => Self::Data,
        }
    }
}

/// A table and its plan.
#[derive(Debug)]
struct Table {
    relation: Relation,
    purpose: Purpose,
    /// `None` for tables outside of tenants' schemas.
    plan: Option<Plan>,
    /// Of a partitioned table.
    outline: Option<Outline>,
    /// The catalogs have it in no tenant's schema either. It may return to one.
    is_astray: bool,
    /// Tenants in whose quarantine an old row is that is not whole, since the table was described so.
    reported: HashSet<Arc<str>>,
}

impl Table {
    /// What must be known of it. Its old rows are examined by its outline where rows are routed by them, and the log marks them
    /// as whole.
    fn question(&self) -> Option<Question> {
        let oid = self.relation.oid;
        match &self.plan {
            Some(plan) if plan.is_routed() && self.relation.replica_identity == ReplicaIdentity::Full => {
                Some(Question::Outline(oid))
            }
            None if self.purpose != Purpose::Commands && !self.is_astray => Some(Question::Place(oid)),
            _ => None,
        }
    }

    /// The table and its plan, when it belongs to a tenant.
    fn of_tenant(&self) -> Option<(&Relation, &Plan)> {
        self.plan.as_ref().map(|plan| (&self.relation, plan))
    }

    /// The old row of a change as far as it is known, where it is not whole: columns that are NULL in it are unknown.
    fn key_of_partial<'a>(&self, row: &Row<'a>) -> Option<Old<'a>> {
        match row.old_row() {
            Some(Old::Full(old)) if !self.has_whole_old(row) => Some(Old::Key(old.clone())),
            _ => None,
        }
    }

    /// Whether the log has the whole old row of a change.
    fn has_whole_old(&self, row: &Row<'_>) -> bool {
        match row.old_row() {
            _ if !row.has_before() => true,
            Some(Old::Full(old)) if self.relation.replica_identity == ReplicaIdentity::Full => {
                let outline = self.outline.as_ref();
                outline.is_none_or(|outline| outline.is_whole(&self.relation, old))
            }
            _ => false,
        }
    }
}

/// What the catalogs must say of a table before the next message is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Which columns an old row must have.
    Outline(u32),
    /// In which schema it is. A walsender may name a former one: Postgres does not let it know that a schema has another
    /// name, and it reads old transactions with the names of then.
    Place(u32),
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub enum Answer {
    /// `None` for a table that is not partitioned.
    Outline(Option<Outline>),
    /// `None` for a table that is gone.
    Place(Option<String>),
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
    /// Messages outside of transactions, which have no position, and outbox messages where these are off.
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
    /// The lane.
    pub lane: Arc<str>,
    /// Names of the tenants in the lane; others are created by commands in the log.
    pub tenants: HashSet<Arc<str>>,
    /// Names of the tenants in other lanes, whose changes are not published here.
    pub elsewhere: HashSet<Arc<str>>,
    /// Whether logical decoding messages are published as outbox messages.
    pub logical_messages: bool,
}

/// The stages between the two connections.
#[derive(Debug)]
pub struct Pipeline {
    keys: Keys,
    router: Router,
    heartbeat_prefix: String,
    types: Types,
    tables: HashMap<u32, Table>,
    /// What must be answered before rows are read.
    questions: Vec<Question>,
    base: u64,
    seen: StreamId,
    replay: Replay,
    transaction: Option<Transaction>,
    /// Tenants that this transaction has reset.
    reset: HashSet<Arc<str>>,
    /// The tenant whose updated rows in this transaction are delivered as inserts.
    retried: Option<Arc<str>>,
    received: PgLsn,
    /// The lane of the tenants.
    lane: Arc<str>,
    tenants: HashSet<Arc<str>>,
    /// Tenants of other lanes.
    elsewhere: HashSet<Arc<str>>,
    logical_messages: bool,
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
                logged: HashSet::new(),
                logged_nameless: HashSet::new(),
            },
            keys,
            router,
            heartbeat_prefix: format!("{}{slot}", heartbeat::PREFIX),
            types: Types::default(),
            tables: HashMap::new(),
            questions: Vec::new(),
            base: start.base,
            seen: start.seen,
            replay: start.replay,
            transaction: None,
            reset: HashSet::new(),
            retried: None,
            received: PgLsn::from(0),
            lane: start.lane,
            tenants: start.tenants,
            elsewhere: start.elsewhere,
            logical_messages: start.logical_messages,
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

    /// What must be given to [`Self::answer`] before the next message is applied.
    pub fn question(&self) -> Option<Question> {
        self.questions.last().copied()
    }

    /// Takes the answer to that question.
    pub fn answer(&mut self, answer: Answer) {
        let Some(Question::Outline(oid) | Question::Place(oid)) = self.questions.pop() else {
            return;
        };
        let Some(table) = self.tables.get_mut(&oid) else { return };
        match answer {
            Answer::Outline(outline) => table.outline = outline,
            Answer::Place(schema) => {
                if let Some(schema) = schema {
                    table.relation.schema = schema.into();
                    table.purpose = Purpose::of(&table.relation);
                    table.plan = plan_of(&self.router, &self.tenants, &table.relation);
                }
                table.is_astray = table.plan.is_none();
                self.questions.extend(table.question());
            }
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
                let plan = plan_of(&self.router, &self.tenants, &relation);
                // Postgres also describes a table again that has not changed.
                let former = self.tables.remove(&relation.oid);
                let former = former.filter(|former| former.relation == relation);
                if former.is_none() {
                    self.entries.logged.remove(&relation.oid);
                    self.entries.logged_nameless.remove(&relation.oid);
                }
                let table = Table {
                    purpose: Purpose::of(&relation),
                    relation,
                    plan,
                    outline: None,
                    is_astray: false,
                    reported: former.map(|former| former.reported).unwrap_or_default(),
                };
                self.questions.extend(table.question());
                self.tables.insert(table.relation.oid, table);
                Ok(())
            }
            Message::Type { oid, namespace, name } => {
                self.types.insert(oid, namespace, name);
                Ok(())
            }
            Message::Origin { .. } => Ok(()),
            Message::Insert { relation, new } => match self.purpose(relation)? {
                Purpose::Data => self.row(relation, Row::inserted(&new)),
                Purpose::Commands => self.command(relation, &new),
                Purpose::Outbox => self.outbox_row(relation, &new),
            },
            Message::Update { relation, old, new } => match self.purpose(relation)? {
                Purpose::Data => self.row(relation, Row::updated(old.as_ref(), &new)),
                Purpose::Commands | Purpose::Outbox => self.pass(),
            },
            Message::Delete { relation, old } => match self.purpose(relation)? {
                Purpose::Data => self.row(relation, Row::deleted(&old)),
                Purpose::Commands | Purpose::Outbox => self.pass(),
            },
            Message::Truncate { relations, .. } => {
                relations.into_iter().try_for_each(|oid| match self.purpose(oid)? {
                    Purpose::Data => self.truncate(oid),
                    Purpose::Commands | Purpose::Outbox => self.pass(),
                })
            }
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

    /// Applies a message that is too large to be read, by its first bytes.
    ///
    /// # Errors
    /// When the message is not of a row, and of no logical decoding message.
    pub fn apply_oversized(&mut self, head: &[u8], bytes: usize) -> Result<(), Error> {
        match pgoutput::decode_head(head)? {
            Head::Row { relation } => self.oversized_row(relation, bytes),
            Head::Logical { transactional: true } => self.pass(),
            Head::Logical { transactional: false } => {
                self.counts.ignored_messages += 1;
                Ok(())
            }
        }
    }

    /// The transaction that is being read.
    pub fn open_transaction(&self) -> Option<Begin> {
        self.transaction.as_ref().map(|transaction| transaction.begin)
    }

    /// Ends the open transaction, whose other changes cannot be read.
    pub fn abandon_transaction(&mut self, end_lsn: PgLsn) -> Result<(), Error> {
        let Some(begin) = self.open_transaction() else {
            return Ok(());
        };
        self.commit(&Commit {
            commit_lsn: begin.final_lsn,
            end_lsn,
            commit_ts: begin.commit_ts,
        })
    }

    /// The names of all tenants.
    pub fn tenant_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.iter()
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

    fn purpose(&self, oid: u32) -> Result<Purpose, Error> {
        let table = self.tables.get(&oid).ok_or(Error::UnknownRelation(oid))?;
        Ok(table.purpose)
    }

    /// Numbers a change that is not published.
    fn pass(&mut self) -> Result<(), Error> {
        if let (Some(id), _) = self.next_id()?
            && id > self.entries.published
        {
            self.entries.batch.reach(id, None);
        }
        Ok(())
    }
}

/// The plan of a table with rows of a tenant that exists, or that a column names.
fn plan_of(router: &Router, tenants: &HashSet<Arc<str>>, relation: &Relation) -> Option<Plan> {
    let plan = router.plan(relation)?;
    let exists = plan.tenancy.whole().is_none_or(|tenant| tenants.contains(tenant));
    exists.then_some(plan)
}

/// A column's text.
fn text<'a>(relation: &Relation, row: &Tuple<'a>, column: &str) -> Option<&'a str> {
    match row.get(relation.column(column)?)? {
        Cell::Text(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
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
    /// Tables of which the log names a quarantined row.
    logged: HashSet<u32>,
    /// Tables of which the log names a row of no tenant.
    logged_nameless: HashSet<u32>,
}

impl Entries {
    /// Removes the key of a stream, whatever its type.
    fn remove_stream(&mut self, target: &Target) {
        self.batch.remove_stream(target);
        if self.stopped.remove(target) {
            self.batch.unstop(target);
        }
    }

    /// Adds an entry to a stream that takes entries: where it is published already, only if the stream lacks it.
    fn add(&mut self, target: Target, id: StreamId, change: Change<'_>) {
        if self.stopped.contains(&target) {
            return;
        }
        if id > self.published {
            self.batch.entry(target, id, change, &self.body);
        } else {
            self.batch.entry_unless_there(target, id, change, &self.body);
        }
    }

    /// Adds the change to the quarantine. A table may have millions of such rows: only the first is logged.
    fn quarantine(&mut self, relation: &Relation, tenant: &str, id: StreamId, reason: (QuarantineKind, &str)) {
        if self.logged.insert(relation.oid) {
            tracing::warn!(
                tenant, table = &*relation.table, %id, cause = reason.1,
                "row quarantined; further ones of this table are not logged"
            );
        }
        self.batch.quarantine(tenant, Some(id), reason, Some(&self.body));
    }

    /// Makes all readers of a tenant take a snapshot.
    fn reset_tenant(&mut self, tenant: &Arc<str>, id: StreamId, begin: &Begin) {
        let change = Change::of(Operation::Truncate, Some("reset"));
        self.add(Target::Shared(tenant.clone()), id, change);
        if id > self.published {
            self.batch.reset_notice(id, tenant, begin.commit_ts);
        }
    }

    /// Lets memberships of a tenant be read again.
    fn reset_groups(&mut self, tenant: &Arc<str>, id: StreamId, begin: &Begin) {
        if id > self.published {
            self.batch.reset_groups(tenant, id, begin.xid);
        }
    }
}
