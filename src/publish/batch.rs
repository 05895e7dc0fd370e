//! A batch: the commands of one `MULTI`/`EXEC`, encoded as changes arrive, and the totals of its content.

use std::sync::Arc;

use bytes::BytesMut;
use uuid::Uuid;

use crate::contract::checkpoint::{Checkpoint, CheckpointUpdate, Epoch, OpenTransaction, TransactionMark};
use crate::contract::entry::{self, EntryBody, Source};
use crate::contract::group::{GroupId, Membership};
use crate::contract::keys::Keys;
use crate::contract::members::GROUPS_MAX;
use crate::contract::membership_log::{CHANGES_MAX, MembershipChange};
use crate::contract::notice::{self, NoticeWriter};
use crate::contract::quarantine::{self, QuarantineKind};
use crate::contract::stream_name::{Audience, Target};
use crate::contract::window::WindowEntry;
use crate::contract::{lua, meta};
use crate::core::operation::Operation;
use crate::core::position::{StreamId, TermId};
use crate::core::resp;
use crate::core::tenant::state_name;
use crate::publish::cut::Cut;
use crate::route::outbox::OutboxMessage;
use crate::route::router::Delivery;

/// A tenant's quarantine keeps about this many entries.
const QUARANTINE_ENTRIES_MAX: &[u8] = b"10000";

/// Live streams are cut once in this many entries; cutting each time would cost more than the entries.
const LIVE_TRIM_EVERY: u64 = 64;

/// Bytes of a stream with one small entry.
pub(crate) const STREAM_BYTES: usize = 4700;

/// Size up to which an emptied batch keeps its buffer; one that a large row has grown beyond is given back.
const BUFFER_KEEP_BYTES: usize = 4 * 1024 * 1024;

/// What a command in the batch does, which decides what its reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Adds a change to a stream that must exist; a nil reply means that it does not.
    Entry(Target),
    /// Creates a stream by a `reset` entry; an entry that is there already does as well.
    Create(Target),
    /// Ends the continuity of a stream that has a hole by a `reset` entry, which must be there.
    Recreate(Target),
    /// Records where a stream begins again.
    TrimPoint(Target),
    /// Writes a key of a tenant that is none of these streams. A failure concerns that tenant only.
    Tenant {
        key: String,
        /// A stream that it creates unless there is one.
        creates: Option<Target>,
    },
    /// Anything else, which must succeed.
    Other,
}

impl Purpose {
    /// Of a key of a tenant beside its streams.
    fn of_tenant(key: impl Into<String>) -> Self {
        Self::Tenant {
            key: key.into(),
            creates: None,
        }
    }
}

/// What an entry says beside the fields that all audiences of a change have in common.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub op: Operation,
    /// The live event; none in `changes`.
    pub event: Option<&'a str>,
    /// Groups that the user joins or leaves by it.
    pub memberships: &'a [Membership],
}

impl<'a> Change<'a> {
    /// A change that concerns no membership.
    pub fn of(op: Operation, event: Option<&'a str>) -> Self {
        Self {
            op,
            event,
            memberships: &[],
        }
    }

    /// How many arguments [`Change::write`] appends.
    fn arguments(&self, target: &Target, body: &EntryBody) -> usize {
        match target {
            Target::Changes(_) => body.changes_arguments(),
            _ => body.delivered_arguments(self.op),
        }
    }

    /// Appends the fields of its entry in a stream.
    fn write(&self, target: &Target, body: &EntryBody, out: &mut BytesMut) {
        match target {
            Target::Changes(_) => body.write(out, self.op),
            _ => body.write_delivered(out, self.op, self.event, self.memberships),
        }
    }
}

/// The commands of one `EXEC` in the making.
#[derive(Debug)]
pub struct Batch {
    keys: Keys,
    commands: BytesMut,
    /// For each command: where it ends in `commands`, and what it is.
    queued: Vec<(usize, Purpose)>,
    changes: usize,
    position: Option<StreamId>,
    complete: Option<(StreamId, TransactionMark)>,
    /// Transactions with rows of tenants that are complete here, and their commit times; kept only where traces are sent.
    traced: Vec<(StreamId, i64)>,
    open: Option<OpenTransaction>,
    window: Option<WindowEntry>,
    /// The oldest entry of the window, if it took in others.
    merged: Option<WindowEntry>,
    window_done: Vec<String>,
    /// Tenants of whose memberships it has changes.
    membership_tenants: Vec<Arc<str>>,
    notices: NoticeWriter,
    heartbeat_ts: Option<i64>,
    /// It is published although it may have no notice: a reader waits for its live entry.
    announces: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            commands: BytesMut::new(),
            queued: Vec::new(),
            changes: 0,
            position: None,
            complete: None,
            traced: Vec::new(),
            open: None,
            window: None,
            merged: None,
            window_done: Vec::new(),
            membership_tenants: Vec::new(),
            notices: NoticeWriter::default(),
            heartbeat_ts: None,
            announces: false,
        }
    }

    /// Removes the content, but keeps the memory: fresh memory for each batch would cost page faults.
    pub fn clear(&mut self) {
        let commands = std::mem::take(&mut self.commands);
        let (queued, notices) = (std::mem::take(&mut self.queued), std::mem::take(&mut self.notices));
        *self = Self::new(self.keys.clone());
        if commands.capacity() <= BUFFER_KEEP_BYTES {
            (self.commands, self.queued, self.notices) = (commands, queued, notices);
            self.commands.clear();
            self.queued.clear();
            self.notices.clear();
        }
    }

    /// Nothing to send.
    pub fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.position.is_none() && self.complete.is_none() && self.window_done.is_empty()
    }

    /// Commands in it.
    pub fn command_count(&self) -> usize {
        self.queued.len()
    }

    /// Changes in it, routed or not.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Stream entries in it.
    pub fn entries(&self) -> usize {
        let is_entry = |(_, purpose): &&(usize, Purpose)| matches!(purpose, Purpose::Entry(_));
        self.queued.iter().filter(is_entry).count()
    }

    /// The stream of each entry in it, and the bytes of its command, which are about those that it takes in Redis.
    pub fn written(&self) -> impl Iterator<Item = (&Target, usize)> {
        let mut start = 0;
        self.queued.iter().filter_map(move |(end, purpose)| {
            let bytes = end - std::mem::replace(&mut start, *end);
            match purpose {
                Purpose::Entry(target) => Some((target, bytes)),
                Purpose::Create(target) | Purpose::Recreate(target) => Some((target, bytes.max(STREAM_BYTES))),
                Purpose::Tenant { creates, .. } => creates.as_ref().map(|target| (target, STREAM_BYTES)),
                Purpose::TrimPoint(_) | Purpose::Other => None,
            }
        })
    }

    /// Bytes of commands in it.
    pub fn bytes(&self) -> usize {
        self.commands.len() + self.notices.json().len()
    }

    /// What it holds so far: commands as RESP, and notices as JSON without the brackets around them.
    pub fn commands(&self) -> (&[u8], &[u8]) {
        (&self.commands, self.notices.json())
    }

    /// The last change in it.
    pub fn position(&self) -> Option<StreamId> {
        self.position
    }

    /// The last complete transaction in it.
    pub fn complete_transaction(&self) -> Option<TransactionMark> {
        self.complete.map(|(_, mark)| mark)
    }

    /// Records that a change was reached. Rows also open the window: until a snapshot sees the transaction, a handoff
    /// must begin below here.
    pub fn reach(&mut self, id: StreamId, xid_of_rows: Option<u32>) {
        self.changes += 1;
        self.position = Some(id);
        if let Some(xid) = xid_of_rows {
            match &mut self.window {
                Some(entry) => entry.add(xid),
                None => self.window = Some(WindowEntry::new(id, xid)),
            }
        }
    }

    /// Records a transaction with rows, for its trace.
    pub fn trace(&mut self, last: StreamId, commit_ts: i64) {
        self.traced.push((last, commit_ts));
    }

    /// Transactions that were recorded for their traces: place and commit time, µs since 1970.
    pub fn traced(&self) -> &[(StreamId, i64)] {
        &self.traced
    }

    /// Records that a transaction is complete.
    pub fn complete(&mut self, last: StreamId, mark: TransactionMark) {
        self.complete = Some((last, mark));
        self.position = Some(self.position.map_or(last, |position| position.max(last)));
    }

    /// Records the transaction that ends in a later batch.
    pub fn leave_open(&mut self, open: OpenTransaction) {
        self.open = Some(open);
    }

    /// The window entry that it will write.
    pub fn window(&self) -> Option<&WindowEntry> {
        self.window.as_ref()
    }

    /// Writes a window entry again, since it took in the one that began at `gone`.
    pub fn merge_window(&mut self, entry: WindowEntry, gone: StreamId) {
        self.merged = Some(entry);
        self.window_done.push(gone.to_string());
    }

    /// Forgets window entries that a snapshot has seen.
    pub fn close_window(&mut self, entries: Vec<String>) {
        self.window_done.extend(entries);
    }

    /// Adds a change to a stream.
    pub fn entry(&mut self, target: Target, id: StreamId, change: Change<'_>, body: &EntryBody) {
        resp::begin(&mut self.commands, 4 + change.arguments(&target, body));
        resp::argument(&mut self.commands, b"XADD");
        self.push_key(&target);
        // A missing stream must not be created with a hole in front: only `create_stream` does that.
        resp::argument(&mut self.commands, b"NOMKSTREAM");
        self.push_id(id);
        change.write(&target, body, &mut self.commands);
        self.queued.push((self.commands.len(), Purpose::Entry(target)));
    }

    /// Adds a change of a batch whose replies were never read, unless the stream holds it.
    pub fn entry_unless_there(&mut self, target: Target, id: StreamId, change: Change<'_>, body: &EntryBody) {
        resp::begin(&mut self.commands, 5 + change.arguments(&target, body));
        for text in ["EVAL", lua::RECHECK, "1"] {
            resp::argument(&mut self.commands, text.as_bytes());
        }
        self.push_key(&target);
        self.push_id(id);
        change.write(&target, body, &mut self.commands);
        self.queued.push((self.commands.len(), Purpose::Entry(target)));
    }

    /// Records that a user joined or left a group: among the tenant's latest changes, and where the user's memberships are
    /// kept.
    pub fn membership(&mut self, tenant: &Arc<str>, change: &MembershipChange, commit_ts: i64) {
        let (log, members) = (
            self.keys.memberships(tenant),
            self.keys.members(tenant, &change.user.to_string()),
        );
        let (group, id) = (change.membership.group(), change.id.to_string());
        let (text, name) = (change.encode(), group.to_string());
        let (changes_max, groups_max) = (CHANGES_MAX.to_string(), GROUPS_MAX.to_string());
        match &change.membership {
            Membership::Join(_) => {
                let (stream, groups) = (self.keys.group(tenant, group), self.keys.groups(tenant));
                let keys = [&log, &members, &stream, &groups].map(String::as_str);
                let commit_ts = commit_ts.to_string();
                let arguments = [&text, &changes_max, &name, &id, &commit_ts, &groups_max].map(String::as_str);
                self.script(lua::JOIN_GROUP, &keys, &arguments);
                self.creates(Target::Group(tenant.clone(), group.clone()));
            }
            Membership::Leave(_) => {
                let arguments = [&text, &changes_max, &name, &groups_max].map(String::as_str);
                self.script(lua::LEAVE_GROUP, &[&log, &members], &arguments);
            }
        }
        if !self.membership_tenants.contains(tenant) {
            self.membership_tenants.push(tenant.clone());
        }
    }

    /// Tenants of whose memberships it has changes.
    pub fn membership_tenants(&self) -> &[Arc<str>] {
        &self.membership_tenants
    }

    /// Forgets the latest changes of a tenant's memberships.
    pub fn forget_memberships(&mut self, tenant: &str) {
        let key = self.keys.memberships(tenant);
        self.tenant_command(&key, &[b"UNLINK", key.as_bytes()]);
    }

    /// Creates an inbox by a `reset` entry, unless there is one.
    pub fn create_inbox(&mut self, tenant: &Arc<str>, user: Uuid, id: StreamId, commit_ts: i64) {
        let inbox = self.keys.inbox(tenant, &user.to_string());
        let arguments = [id.to_string(), commit_ts.to_string()];
        self.script(lua::CREATE_INBOX, &[&inbox], &arguments.each_ref().map(String::as_str));
        self.creates(Target::Inbox(tenant.clone(), user));
    }

    /// Creates a group's stream by a `reset` entry, unless there is one.
    pub fn create_group(&mut self, tenant: &Arc<str>, group: &GroupId, id: StreamId, commit_ts: i64) {
        let (stream, groups) = (self.keys.group(tenant, group), self.keys.groups(tenant));
        let arguments = [group.to_string(), id.to_string(), commit_ts.to_string()];
        self.script(
            lua::CREATE_GROUP,
            &[&stream, &groups],
            &arguments.each_ref().map(String::as_str),
        );
        self.creates(Target::Group(tenant.clone(), group.clone()));
    }

    /// The last command creates a stream, unless there is one.
    fn creates(&mut self, target: Target) {
        if let Some((_, Purpose::Tenant { creates, .. })) = self.queued.last_mut() {
            *creates = Some(target);
        }
    }

    /// Runs a script on keys of one tenant, the first of which tells what fails with it.
    fn script(&mut self, script: &str, keys: &[&str], arguments: &[&str]) {
        let count = keys.len().to_string();
        let words = ["EVAL", script, &count].into_iter();
        let words: Vec<&[u8]> = words
            .chain(keys.iter().copied())
            .chain(arguments.iter().copied())
            .map(str::as_bytes)
            .collect();
        self.tenant_command(keys.first().copied().unwrap_or_default(), &words);
    }

    /// Records that memberships of a tenant must be read again, since a transaction changed them in a way that the log does not
    /// name.
    pub fn reset_groups(&mut self, tenant: &str, id: StreamId, xid: u32) {
        let (key, id, xid) = (self.keys.meta(tenant), id.to_string(), xid.to_string());
        let command = ["HSET", &key, meta::GROUPS_RESET, &id, meta::GROUPS_RESET_XID, &xid];
        self.tenant_command(&key, &command.map(str::as_bytes));
    }

    /// Creates a stream by a `reset` entry, unless it is there.
    pub fn create_stream(&mut self, target: Target, id: StreamId, commit_ts: i64) {
        self.push_reset(&target, id, commit_ts);
        self.queued.push((self.commands.len(), Purpose::Create(target)));
    }

    /// Ends the continuity of a stream that has a hole by a `reset` entry. It is the trim point, too: readers that may
    /// ignore resets must not miss what the stream lacks.
    pub fn recreate_stream(&mut self, target: Target, id: StreamId, commit_ts: i64) {
        let (meta, field, id_text) = (
            self.keys.meta(target.tenant()),
            meta::trim_field(&target),
            id.to_string(),
        );
        let command = ["HSET", &meta, &field, &id_text].map(str::as_bytes);
        resp::command(&mut self.commands, &command);
        self.queued
            .push((self.commands.len(), Purpose::TrimPoint(target.clone())));
        self.push_reset(&target, id, commit_ts);
        self.queued.push((self.commands.len(), Purpose::Recreate(target)));
    }

    fn push_reset(&mut self, target: &Target, id: StreamId, commit_ts: i64) {
        resp::begin(&mut self.commands, 3 + entry::RESET_ARGUMENTS);
        resp::argument(&mut self.commands, b"XADD");
        self.push_key(target);
        self.push_id(id);
        entry::write_reset(&mut self.commands, commit_ts);
    }

    /// Replaces a tenant's meta hash: its generation, which every cursor must match, and its state. In an epoch that goes on,
    /// memberships of before this change are not used.
    pub fn reset_meta(&mut self, tenant: &str, generation: i64, is_paused: bool, change: Option<(StreamId, u32)>) {
        let (key, generation) = (self.keys.meta(tenant), generation.to_string());
        let change = change.map(|(id, xid)| [id.to_string(), xid.to_string()]);
        let mut arguments = vec![&*generation, state_name(is_paused)];
        arguments.extend(change.iter().flatten().map(String::as_str));
        self.script(lua::RESET_META, &[&key], &arguments);
    }

    /// Pauses or resumes a tenant's delivery.
    pub fn set_state(&mut self, tenant: &str, is_paused: bool) {
        let key = self.keys.meta(tenant);
        let command = ["HSET", &key, meta::STATE, state_name(is_paused)];
        self.tenant_command(&key, &command.map(str::as_bytes));
    }

    /// Records that a stream takes no entries, so that the next writer recreates it.
    pub fn stop(&mut self, target: &Target, cause: &str) {
        let (key, name) = (self.keys.stopped(), target.name());
        self.other(&[b"HSET", key.as_bytes(), name.as_bytes(), cause.as_bytes()]);
    }

    /// Removes the record that a stream took no entries.
    pub fn unstop(&mut self, target: &Target) {
        let (key, name) = (self.keys.stopped(), target.name());
        self.other(&[b"HDEL", key.as_bytes(), name.as_bytes()]);
    }

    /// Removes what a dropped tenant leaves to the next one of its name.
    pub fn remove_tenant(&mut self, tenant: &str) {
        let keys = self.keys.without_users(tenant);
        let command = ["UNLINK"].into_iter().chain(keys.iter().map(String::as_str));
        let command: Vec<&[u8]> = command.map(str::as_bytes).collect();
        self.tenant_command(&self.keys.meta(tenant), &command);
    }

    /// Removes a stream, for a creation to follow.
    pub fn remove_stream(&mut self, target: &Target) {
        let key = target.key(&self.keys);
        self.tenant_command(&key, &[b"UNLINK", key.as_bytes()]);
    }

    /// Trims a stream at this place in the log.
    pub fn trim(&mut self, cut: &Cut) {
        cut.write(&self.keys, "", &mut self.commands);
        let purpose = Purpose::of_tenant(cut.meta(&self.keys));
        self.queued.push((self.commands.len(), purpose));
    }

    /// Adds a change that could not be routed or stored to the quarantine, with the cause.
    pub fn quarantine(
        &mut self,
        tenant: &str,
        id: Option<StreamId>,
        (kind, cause): (QuarantineKind, &str),
        body: Option<&EntryBody>,
    ) {
        let key = self.keys.quarantine(tenant);
        resp::begin(&mut self.commands, 6 + quarantine::arguments(body));
        for text in [
            &b"XADD"[..],
            key.as_bytes(),
            b"MAXLEN",
            b"~",
            QUARANTINE_ENTRIES_MAX,
            b"*",
        ] {
            resp::argument(&mut self.commands, text);
        }
        quarantine::write(&mut self.commands, id, kind, cause, body);
        self.queued.push((self.commands.len(), Purpose::of_tenant(key)));
    }

    /// Notifies API nodes of a change. `payload` is what live events contain beside the row's id, JSON.
    pub fn notice(
        &mut self,
        id: StreamId,
        tenant: &str,
        source: &Source<'_>,
        row_id: Option<&[u8]>,
        deliveries: &[Delivery<'_>],
        payload: Option<&[u8]>,
    ) {
        let recipients = deliveries
            .iter()
            .map(|delivery| (delivery.event, delivery.operation, &delivery.audience));
        self.notices.push(id, tenant, source, row_id, recipients, payload);
    }

    /// Notifies API nodes of an outbox message.
    pub fn outbox_notice(&mut self, id: StreamId, source: &Source<'_>, message: &OutboxMessage<'_>) {
        let recipients = message.to.iter();
        let recipients = recipients.map(|audience| (message.event, Operation::Message, audience));
        let (row_id, payload) = (id.to_string(), message.data.as_bytes());
        self.notices.push(
            id,
            message.tenant,
            source,
            Some(row_id.as_bytes()),
            recipients,
            Some(payload),
        );
    }

    /// Notifies API nodes that streams of a tenant were created, or that their continuity ends.
    pub fn reset_notice(&mut self, id: StreamId, tenant: &str, commit_ts: i64) {
        self.notify(id, tenant, ("reset", Operation::Reset, &Audience::Tenant), commit_ts);
    }

    /// Notifies API nodes that a stream was recreated: those who read it look at it.
    pub fn recreation_notice(&mut self, id: StreamId, target: &Target, commit_ts: i64) {
        let audience = match target {
            Target::Inbox(_, user) => Audience::User(*user),
            Target::Group(_, group) => Audience::Group(group.clone()),
            Target::Shared(_) => Audience::Tenant,
            Target::Changes(_) => return,
        };
        self.notify(id, target.tenant(), ("reset", Operation::Reset, &audience), commit_ts);
    }

    /// Notifies API nodes of an event of a tenant as a whole.
    pub fn tenant_notice(&mut self, id: StreamId, tenant: &str, event: &str, commit_ts: i64) {
        self.notify(id, tenant, (event, Operation::Other, &Audience::Tenant), commit_ts);
    }

    /// Notifies an audience of an event that is no row's.
    fn notify(&mut self, id: StreamId, tenant: &str, recipient: (&str, Operation, &Audience), commit_ts: i64) {
        let source = Source {
            schema: "",
            table: "",
            commit_ts,
            xid: 0,
        };
        self.notices
            .push(id, tenant, &source, None, std::iter::once(recipient), None);
    }

    /// A heartbeat was reached; its age at the clients is the freshness.
    pub fn heartbeat(&mut self, commit_ts: i64) {
        self.heartbeat_ts = Some(commit_ts);
    }

    /// Begins an epoch: the whole checkpoint, and a live entry that announces the epoch to API nodes.
    pub fn begin_epoch(&mut self, checkpoint: &Checkpoint) {
        let (key, window, fields) = (self.keys.checkpoint(), self.keys.window(), checkpoint.fields());
        let terms = self.keys.terms();
        let mut arguments: Vec<&[u8]> = vec![b"HSET", key.as_bytes()];
        for (name, value) in &fields {
            arguments.extend([name.as_bytes(), value.as_bytes()]);
        }
        self.other(&arguments);
        self.other(&[b"UNLINK", window.as_bytes(), terms.as_bytes()]);
        self.position = Some(checkpoint.position);
        self.announces = true;
    }

    /// Adds a whole command that must succeed.
    pub fn other(&mut self, arguments: &[&[u8]]) {
        resp::command(&mut self.commands, arguments);
        self.queued.push((self.commands.len(), Purpose::Other));
    }

    /// Adds a whole command that writes a tenant's key beside its streams.
    fn tenant_command(&mut self, key: &str, arguments: &[&[u8]]) {
        resp::command(&mut self.commands, arguments);
        self.queued.push((self.commands.len(), Purpose::of_tenant(key)));
    }

    fn push_key(&mut self, target: &Target) {
        target.push_key(&self.keys, &mut self.commands);
    }

    fn push_id(&mut self, id: StreamId) {
        let mut text = [0_u8; 41];
        let mut ms = itoa::Buffer::new();
        let ms = ms.format(id.ms).as_bytes();
        let mut seq = itoa::Buffer::new();
        let seq = seq.format(id.seq).as_bytes();
        let length = ms.len() + 1 + seq.len();
        text[..ms.len()].copy_from_slice(ms);
        text[ms.len()] = b'-';
        text[ms.len() + 1..length].copy_from_slice(seq);
        resp::argument(&mut self.commands, &text[..length]);
    }

    /// Removes commands, so that the rest can be sent again.
    pub fn remove(&mut self, is_removed: impl Fn(&Purpose) -> bool) {
        let commands = std::mem::take(&mut self.commands);
        let mut start = 0;
        self.queued.retain_mut(|(end, purpose)| {
            let command = &commands[start..*end];
            start = *end;
            let is_kept = !is_removed(purpose);
            if is_kept {
                self.commands.extend_from_slice(command);
                *end = self.commands.len();
            }
            is_kept
        });
    }

    /// Appends what comes behind the commands: the window, the live entry and the checkpoint.
    pub(super) fn write_tail(&self, tail: &Tail<'_>, out: &mut BytesMut) -> WrittenTail {
        let mut commands = self.queued.len() + self.write_window(out);
        let live = self.live_entry(tail);
        let live_index = live.map(|_| commands);
        if let Some(id) = live {
            commands += self.write_live(tail, id, out);
        }
        self.write_checkpoint(tail, live, out);
        WrittenTail {
            commands: commands + 1,
            live: live.unwrap_or(tail.live),
            live_index,
        }
    }

    /// Appends the commands on the window, and returns how many.
    fn write_window(&self, out: &mut BytesMut) -> usize {
        let window = self.keys.window();
        let mut count = 0;
        // Before the removals: it may have been seen since.
        for entry in self.merged.iter().chain(&self.window) {
            let (first, range) = (entry.first.to_string(), entry.encode());
            resp::command(out, &[b"HSET", window.as_bytes(), first.as_bytes(), range.as_bytes()]);
            count += 1;
        }
        if !self.window_done.is_empty() {
            resp::begin(out, 2 + self.window_done.len());
            for argument in ["HDEL", &window]
                .into_iter()
                .chain(self.window_done.iter().map(AsRef::as_ref))
            {
                resp::argument(out, argument.as_bytes());
            }
            count += 1;
        }
        count
    }

    /// The ID of the batch's live entry, if it has one.
    fn live_entry(&self, tail: &Tail<'_>) -> Option<StreamId> {
        let has_content = self.heartbeat_ts.is_some() || self.announces || !self.notices.is_empty();
        self.position.filter(|position| has_content && *position > tail.live)
    }

    /// Appends the live entry, and returns the number of commands.
    fn write_live(&self, tail: &Tail<'_>, id: StreamId, out: &mut BytesMut) -> usize {
        let key = self.keys.live(tail.lane);
        resp::begin(out, 3 + notice::ARGUMENTS);
        for text in ["XADD", &key, &id.to_string()] {
            resp::argument(out, text.as_bytes());
        }
        let epoch = (tail.epoch.id, tail.term);
        notice::write_entry(out, tail.live, epoch, self.heartbeat_ts, &self.notices);
        if !tail.sequence.is_multiple_of(LIVE_TRIM_EVERY) {
            return 1;
        }
        let keep = tail.live_entries_max.to_string();
        resp::command(out, &[b"XTRIM", key.as_bytes(), b"MAXLEN", b"~", keep.as_bytes()]);
        2
    }

    /// Appends the command on the checkpoint. `live` is the ID of the live entry before it.
    fn write_checkpoint(&self, tail: &Tail<'_>, live: Option<StreamId>, out: &mut BytesMut) {
        let update = CheckpointUpdate {
            acknowledged: tail.marks.acknowledged,
            seen: tail.marks.seen,
            position: self.position.map(|position| (position, self.open)),
            complete: self.complete,
            live,
        };
        let fields = update.fields();
        resp::begin(out, 2 + 2 * fields.len());
        for argument in ["HSET", &self.keys.checkpoint()] {
            resp::argument(out, argument.as_bytes());
        }
        for (name, value) in &fields {
            resp::argument(out, name.as_bytes());
            resp::argument(out, value.as_bytes());
        }
    }

    /// What the command at an index is; `None` for those behind the batch's own.
    pub(super) fn purpose(&self, index: usize) -> Option<&Purpose> {
        self.queued.get(index).map(|(_, purpose)| purpose)
    }
}

/// What was written of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct WrittenTail {
    /// Commands between MULTI and EXEC.
    pub(super) commands: usize,
    /// ID of the last live entry afterwards.
    pub(super) live: StreamId,
    /// Which command adds the live entry.
    pub(super) live_index: Option<usize>,
}

/// What a batch's end says beside its own content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail<'a> {
    /// Number of the lane, which is also its live stream's.
    pub(super) lane: u32,
    /// The current epoch.
    pub(super) epoch: &'a Epoch,
    /// The term of this session.
    pub(super) term: TermId,
    /// ID of the last live entry.
    pub(super) live: StreamId,
    /// Entries that a live stream keeps.
    pub(super) live_entries_max: u64,
    /// Counts batches.
    pub(super) sequence: u64,
    /// What this batch says of the ones before.
    pub(super) marks: Marks,
}

/// What the checkpoint says of the batches before the one that writes it.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// What may be acknowledged to Postgres once this is durable.
    pub acknowledged: postgres_types::PgLsn,
    /// Up to where their replies were read.
    pub seen: StreamId,
}
