//! A batch: the commands of one `MULTI`/`EXEC`, encoded as they come, and what they add up to.

use crate::contract::control::Trim;
use crate::contract::entry::EntryBody;
use crate::contract::entry::Source;
use crate::contract::quarantine::QuarantineKind;
use crate::contract::stream_name::Target;
use std::io::Write as _;

use bytes::BytesMut;
use uuid::Uuid;

use crate::config::rule::Operation;
use crate::contract::checkpoint::{Checkpoint, Epoch, OpenTransaction, TransactionMark};
use crate::contract::keys::Keys;
use crate::contract::stream_name::Audience;
use crate::contract::window::WindowEntry;
use crate::core::position::StreamId;
use crate::core::resp;
use crate::decode::value::write_string;
use crate::route::outbox::OutboxMessage;
use crate::route::router::Delivery;

/// A tenant's quarantine keeps about this many entries.
const QUARANTINE_ENTRIES_MAX: &[u8] = b"10000";

/// Live streams are cut once in this many entries; cutting each time would cost more than the entries.
const LIVE_TRIM_EVERY: u64 = 64;

/// Size up to which an emptied batch keeps its buffer; one that a large row has grown beyond is given back.
const BUFFER_KEEP_BYTES: usize = 4 * 1024 * 1024;

/// Moves a trim point on and trims, but never back: a trim that waited here while a later one was made would otherwise
/// hide from readers what is gone. Numbers are compared as texts, since Lua's lose digits beyond 2^53. A key that holds
/// something else is left alone; its next entry stops the stream.
const TRIM_SCRIPT: &[u8] = b"\
local function below(a, b) if #a ~= #b then return #a < #b end return a < b end \
local old_ms, old_seq = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+)-(%d+)$') \
local ms, seq = string.match(ARGV[2], '^(%d+)-(%d+)$') \
if old_ms and (below(ms, old_ms) or (ms == old_ms and below(seq, old_seq))) then return 0 end \
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) \
local trimmed = redis.pcall('XTRIM', KEYS[2], 'MINID', ARGV[2]) \
if type(trimmed) == 'table' then return 0 end \
return trimmed";

/// What a command in the batch is, to make sense of its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Adds a change to a stream that must exist; a nil reply tells that it does not.
    Entry(Target),
    /// Creates a stream by a `reset` entry; an entry that is there already does as well.
    Create(Target),
    /// Breaks the history of a stream that has a hole by a `reset` entry, which must be there.
    Recreate(Target),
    /// Writes a key of a tenant that is none of these streams. What goes wrong with it is that tenant's alone.
    Tenant(String),
    /// Anything else, which must succeed.
    Other,
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
    ended: Vec<(StreamId, i64)>,
    open: Option<OpenTransaction>,
    window: Option<WindowEntry>,
    window_done: Vec<String>,
    notices: Vec<u8>,
    heartbeat_ts: Option<i64>,
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
            ended: Vec::new(),
            open: None,
            window: None,
            window_done: Vec::new(),
            notices: Vec::new(),
            heartbeat_ts: None,
            announces: false,
        }
    }

    /// Forgets its content, but not the memory that held it: fresh memory for each batch would cost page faults.
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

    /// Bytes of commands in it.
    pub fn bytes(&self) -> usize {
        self.commands.len() + self.notices.len()
    }

    /// What it holds so far: commands as RESP, and notices as JSON without the brackets around them.
    pub fn commands(&self) -> (&[u8], &[u8]) {
        (&self.commands, &self.notices)
    }

    /// The last change in it.
    pub fn position(&self) -> Option<StreamId> {
        self.position
    }

    /// The last complete transaction in it.
    pub fn complete_transaction(&self) -> Option<TransactionMark> {
        self.complete.map(|(_, mark)| mark)
    }

    /// Notes that a change was reached. Rows also open the window: until a snapshot sees the transaction, a handoff
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

    /// Notes a transaction with rows, for its trace.
    pub fn trace(&mut self, last: StreamId, commit_ts: i64) {
        self.ended.push((last, commit_ts));
    }

    /// Transactions that were noted for their traces: place and commit time, µs since 1970.
    pub fn traced(&self) -> &[(StreamId, i64)] {
        &self.ended
    }

    /// Notes that a transaction is complete.
    pub fn complete(&mut self, last: StreamId, mark: TransactionMark) {
        self.complete = Some((last, mark));
        self.position = Some(self.position.map_or(last, |position| position.max(last)));
    }

    /// Notes the transaction that ends in a later batch.
    pub fn leave_open(&mut self, open: OpenTransaction) {
        self.open = Some(open);
    }

    /// The window entry that it will write.
    pub fn window(&self) -> Option<&WindowEntry> {
        self.window.as_ref()
    }

    /// Forgets window entries that a snapshot has seen.
    pub fn close_window(&mut self, entries: Vec<String>) {
        self.window_done.extend(entries);
    }

    /// Adds a change to a stream.
    pub fn entry(&mut self, target: Target, id: StreamId, op: &str, event: Option<&str>, body: &EntryBody) {
        let arguments = 6 + body.arguments + if event.is_some() { 2 } else { 0 };
        resp::begin(&mut self.commands, arguments);
        resp::argument(&mut self.commands, b"XADD");
        self.push_key(&target);
        // A stream that is not there must not come to be with a hole in front: only a creation makes one.
        resp::argument(&mut self.commands, b"NOMKSTREAM");
        self.push_id(id);
        resp::argument(&mut self.commands, b"op");
        resp::argument(&mut self.commands, op.as_bytes());
        self.commands.extend_from_slice(&body.encoded);
        if let Some(event) = event {
            resp::argument(&mut self.commands, b"event");
            resp::argument(&mut self.commands, event.as_bytes());
        }
        self.queued.push((self.commands.len(), Purpose::Entry(target)));
    }

    /// Creates a stream by a `reset` entry, unless it is there.
    pub fn create_stream(&mut self, target: Target, id: StreamId, commit_ts: i64) {
        self.push_reset(&target, id, commit_ts);
        self.queued.push((self.commands.len(), Purpose::Create(target)));
    }

    /// Breaks the history of a stream that has a hole by a `reset` entry.
    pub fn recreate_stream(&mut self, target: Target, id: StreamId, commit_ts: i64) {
        self.push_reset(&target, id, commit_ts);
        self.queued.push((self.commands.len(), Purpose::Recreate(target)));
    }

    fn push_reset(&mut self, target: &Target, id: StreamId, commit_ts: i64) {
        resp::begin(&mut self.commands, 7);
        resp::argument(&mut self.commands, b"XADD");
        self.push_key(target);
        self.push_id(id);
        for text in ["op", "reset", "ts"] {
            resp::argument(&mut self.commands, text.as_bytes());
        }
        resp::argument(&mut self.commands, itoa::Buffer::new().format(commit_ts).as_bytes());
    }

    /// Begins a tenant's meta hash anew, whatever is in its place: with its generation, which every cursor must match,
    /// and its state. The trim points go; all that they told of lies before the generation.
    pub fn reset_meta(&mut self, tenant: &str, generation: i64, state: &str) {
        let (key, generation) = (self.keys.meta(tenant), generation.to_string());
        self.other(&[b"DEL", key.as_bytes()]);
        let fields: [&[u8]; 4] = [b"generation", generation.as_bytes(), b"state", state.as_bytes()];
        self.tenant_command(&key, &[&[b"HSET", key.as_bytes()][..], &fields].concat());
    }

    /// Pauses a tenant's delivery, or lets it go on.
    pub fn set_state(&mut self, tenant: &str, state: &str) {
        let key = self.keys.meta(tenant);
        self.tenant_command(&key, &[b"HSET", key.as_bytes(), b"state", state.as_bytes()]);
    }

    /// Notes that a stream takes no entries, so that whoever publishes next knows of the hole.
    pub fn stop(&mut self, target: &Target, cause: &str) {
        let (key, name) = (self.keys.stopped(), target.name());
        self.other(&[b"HSET", key.as_bytes(), name.as_bytes(), cause.as_bytes()]);
    }

    /// Forgets that a stream took no entries.
    pub fn unstop(&mut self, target: &Target) {
        let (key, name) = (self.keys.stopped(), target.name());
        self.other(&[b"HDEL", key.as_bytes(), name.as_bytes()]);
    }

    /// Removes a stream, for a creation to follow.
    pub fn remove_stream(&mut self, target: &Target) {
        let key = target.key(&self.keys);
        self.other(&[b"DEL", key.as_bytes()]);
    }

    /// Trims a stream. The trim point is stored with it, because Redis does not keep it.
    pub fn trim(&mut self, trim: &Trim) {
        let (meta, field) = (self.keys.meta(trim.target.tenant()), trim.target.trim_field());
        let (key, id) = (trim.target.key(&self.keys), trim.min_id.to_string());
        let command: [&[u8]; 7] = [
            b"EVAL",
            TRIM_SCRIPT,
            b"2",
            meta.as_bytes(),
            key.as_bytes(),
            field.as_bytes(),
            id.as_bytes(),
        ];
        self.tenant_command(&meta, &command);
    }

    /// Puts a change that could not be routed or stored aside, with the cause.
    pub fn quarantine(
        &mut self,
        tenant: &str,
        id: Option<StreamId>,
        (kind, cause): (QuarantineKind, &str),
        body: Option<&EntryBody>,
    ) {
        let key = self.keys.quarantine(tenant);
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        resp::begin(&mut self.commands, 12 + body.map_or(0, |body| body.arguments));
        let head: [&[u8]; 12] = [
            b"XADD",
            key.as_bytes(),
            b"MAXLEN",
            b"~",
            QUARANTINE_ENTRIES_MAX,
            b"*",
            b"position",
            id.as_bytes(),
            b"kind",
            kind.as_str().as_bytes(),
            b"cause",
            cause.as_bytes(),
        ];
        head.iter().for_each(|text| resp::argument(&mut self.commands, text));
        if let Some(body) = body {
            self.commands.extend_from_slice(&body.encoded);
        }
        self.queued.push((self.commands.len(), Purpose::Tenant(key)));
    }

    /// Tells API nodes about a change: `[id, tenant, table, row id, xid, commit time, [[event, op, users or null], …]]`,
    /// behind them the data of a message, or what is told of the row, as JSON.
    pub fn notice(
        &mut self,
        id: StreamId,
        tenant: &str,
        source: &Source<'_>,
        row_id: Option<&[u8]>,
        deliveries: &[Delivery<'_>],
        told: Option<&[u8]>,
    ) {
        self.begin_notice(id, tenant, source, row_id);
        for (index, delivery) in deliveries.iter().enumerate() {
            // Audiences with the same event are named together.
            let is_same = |other: &Delivery<'_>| other.event == delivery.event && other.operation == delivery.operation;
            if deliveries[..index].iter().any(is_same) {
                continue;
            }
            let users = deliveries[index..]
                .iter()
                .filter(|other| is_same(other))
                .map(|other| other.audience);
            self.push_notice_group(delivery.event, operation_text(delivery.operation), users);
        }
        self.end_notice(told);
    }

    /// Tells API nodes about a message for users.
    pub fn outbox_notice(&mut self, id: StreamId, source: &Source<'_>, letter: &OutboxMessage<'_>) {
        self.begin_notice(id, letter.tenant, source, Some(id.to_string().as_bytes()));
        self.push_notice_group(letter.event, "message", letter.to.iter().copied());
        self.end_notice(Some(letter.data.as_bytes()));
    }

    /// Tells API nodes that streams of a tenant were created or broken.
    pub fn reset_notice(&mut self, id: StreamId, tenant: &str, audience: Audience, commit_ts: i64) {
        self.tenant_notice(id, tenant, "reset", audience, commit_ts);
    }

    /// Tells API nodes about a tenant as a whole.
    pub fn tenant_notice(&mut self, id: StreamId, tenant: &str, event: &str, audience: Audience, commit_ts: i64) {
        let source = Source {
            schema: "",
            table: "",
            commit_ts,
            xid: 0,
        };
        self.begin_notice(id, tenant, &source, None);
        self.push_notice_group(event, event, std::iter::once(audience));
        self.end_notice(None);
    }

    /// A heartbeat was reached; its age at the clients is the freshness.
    pub fn heartbeat(&mut self, commit_ts: i64) {
        self.heartbeat_ts = Some(commit_ts);
    }

    /// Begins an epoch: the whole checkpoint, and a live entry whose epoch tells API nodes.
    pub fn begin_epoch(&mut self, checkpoint: &Checkpoint) {
        let (key, window, fields) = (self.keys.checkpoint(), self.keys.window(), checkpoint.fields());
        let mut arguments: Vec<&[u8]> = vec![b"HSET", key.as_bytes()];
        for (name, value) in &fields {
            arguments.extend([name.as_bytes(), value.as_bytes()]);
        }
        resp::command(&mut self.commands, &arguments);
        self.queued.push((self.commands.len(), Purpose::Other));
        self.other(&[b"DEL", window.as_bytes()]);
        self.position = Some(checkpoint.position);
        self.announces = true;
    }

    fn begin_notice(&mut self, id: StreamId, tenant: &str, source: &Source<'_>, row_id: Option<&[u8]>) {
        let out = &mut self.notices;
        if !out.is_empty() {
            out.push(b',');
        }
        let _ = write!(out, "[\"{id}\",\"{tenant}\",");
        write_string(source.table, out);
        out.push(b',');
        match row_id.and_then(|bytes| std::str::from_utf8(bytes).ok()) {
            Some(text) => write_string(text, out),
            None => out.extend_from_slice(b"null"),
        }
        let _ = write!(out, ",{},{},[", source.xid, source.commit_ts);
    }

    fn push_notice_group(&mut self, event: &str, op: &str, audiences: impl Iterator<Item = Audience>) {
        let out = &mut self.notices;
        if out.last() == Some(&b']') {
            out.push(b',');
        }
        out.push(b'[');
        write_string(event, out);
        let _ = write!(out, ",\"{op}\",");
        let start = out.len();
        for audience in audiences {
            match audience {
                Audience::User(user) => {
                    out.push(if out.len() == start { b'[' } else { b',' });
                    out.push(b'"');
                    out.extend_from_slice(user.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
                    out.push(b'"');
                }
                Audience::Tenant => {
                    out.truncate(start);
                    out.extend_from_slice(b"null]");
                    return;
                }
            }
        }
        out.extend_from_slice(b"]]");
    }

    fn end_notice(&mut self, data: Option<&[u8]>) {
        self.notices.push(b']');
        if let Some(data) = data {
            self.notices.push(b',');
            self.notices.extend_from_slice(data);
        }
        self.notices.push(b']');
    }

    /// Adds a whole command that must succeed.
    pub fn other(&mut self, arguments: &[&[u8]]) {
        resp::command(&mut self.commands, arguments);
        self.queued.push((self.commands.len(), Purpose::Other));
    }

    /// Adds a whole command that writes a tenant's key beside its streams.
    fn tenant_command(&mut self, key: &str, arguments: &[&[u8]]) {
        resp::command(&mut self.commands, arguments);
        self.queued.push((self.commands.len(), Purpose::Tenant(key.to_owned())));
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

    /// Takes a command away, so that the rest can be sent again.
    pub fn remove(&mut self, index: usize) -> Option<Purpose> {
        let end = self.queued.get(index)?.0;
        let start = index.checked_sub(1).map_or(0, |before| self.queued[before].0);
        let rest = self.commands.split_off(end);
        self.commands.truncate(start);
        self.commands.extend_from_slice(&rest);
        let (_, purpose) = self.queued.remove(index);
        for (later, _) in &mut self.queued[index..] {
            *later -= end - start;
        }
        Some(purpose)
    }

    /// Appends what comes behind the commands: the window, the live entry and the checkpoint.
    pub(super) fn write_tail(&self, tail: &Tail<'_>, out: &mut BytesMut) -> Written {
        let mut count = self.queued.len();
        let mut live = tail.live;
        let mut live_index = None;
        if let Some(entry) = &self.window {
            let (first, range) = (entry.first.to_string(), entry.encode());
            let window = self.keys.window();
            resp::command(out, &[b"HSET", window.as_bytes(), first.as_bytes(), range.as_bytes()]);
            count += 1;
        }
        if !self.window_done.is_empty() {
            let window = self.keys.window();
            resp::begin(out, 2 + self.window_done.len());
            resp::argument(out, b"HDEL");
            resp::argument(out, window.as_bytes());
            self.window_done
                .iter()
                .for_each(|id| resp::argument(out, id.as_bytes()));
            count += 1;
        }
        if let Some(position) = self.position
            && (self.heartbeat_ts.is_some() || self.announces || !self.notices.is_empty())
            && position > tail.live
        {
            let key = self.keys.live(tail.lane);
            let (id, prev) = (position.to_string(), tail.live.to_string());
            let heartbeat = self.heartbeat_ts.map(|ts| ts.to_string()).unwrap_or_default();
            let notices = [b"[", &self.notices[..], b"]"].concat();
            let epoch = tail.epoch.id.to_string();
            let command: [&[u8]; 11] = [
                b"XADD",
                key.as_bytes(),
                id.as_bytes(),
                b"prev",
                prev.as_bytes(),
                b"epoch",
                epoch.as_bytes(),
                b"heartbeat",
                heartbeat.as_bytes(),
                b"notices",
                &notices,
            ];
            resp::command(out, &command);
            live_index = Some(count);
            count += 1;
            live = position;
            if tail.sequence.is_multiple_of(LIVE_TRIM_EVERY) {
                let keep = tail.live_entries_max.to_string();
                resp::command(out, &[b"XTRIM", key.as_bytes(), b"MAXLEN", b"~", keep.as_bytes()]);
                count += 1;
            }
        }
        let mut fields: Vec<(&str, String)> = vec![("acknowledged", tail.acknowledged.to_string())];
        if let Some(position) = self.position {
            fields.push(("position", position.to_string()));
            // Whoever replays from here must be able to tell whether it is the same transaction.
            fields.push(("open", self.open.map(|open| open.to_string()).unwrap_or_default()));
        }
        if let Some((published, mark)) = self.complete {
            fields.push(("published", published.to_string()));
            fields.push(("lsn", mark.lsn.to_string()));
            fields.push(("end_lsn", mark.end_lsn.to_string()));
            fields.push(("xid", mark.xid.to_string()));
            fields.push(("commit_ts", mark.commit_ts.to_string()));
        }
        if live != tail.live {
            fields.push(("live", live.to_string()));
        }
        let checkpoint = self.keys.checkpoint();
        resp::begin(out, 2 + 2 * fields.len());
        resp::argument(out, b"HSET");
        resp::argument(out, checkpoint.as_bytes());
        for (name, value) in &fields {
            resp::argument(out, name.as_bytes());
            resp::argument(out, value.as_bytes());
        }
        Written {
            commands: count + 1,
            live,
            live_index,
        }
    }

    /// What the command at an index is; `None` for those behind the batch's own.
    pub(super) fn purpose(&self, index: usize) -> Option<&Purpose> {
        self.queued.get(index).map(|(_, purpose)| purpose)
    }
}

/// What was written of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
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
    /// ID of the last live entry.
    pub(super) live: StreamId,
    /// Entries that a live stream keeps.
    pub(super) live_entries_max: u64,
    /// Counts batches.
    pub(super) sequence: u64,
    /// What Postgres may be told once this is durable.
    pub(super) acknowledged: postgres_types::PgLsn,
}

/// The text of an operation in entries and notices.
pub fn operation_text(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
    }
}
