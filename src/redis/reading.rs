//! Reads a user's entries from Redis, in most cases with one round trip.
//!
//! Each read is a `MULTI`/`EXEC`, so that inbox, shared stream, trim points and checkpoint are of the same moment.
//! Otherwise a read could miss an entry of the inbox and return a later one of the shared stream.
//!
//! A user of many groups has too many streams for that. One transaction then tells which of them have entries, and others
//! read these in parts, up to the position of the first and in the same history: what is published up to there does not
//! change any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis::RedisError;
use uuid::Uuid;

use super::merge::{cut, merge};
use super::read_position::{ReadPosition, verify};
use super::store::{Error, Fields, NotReached, Store, Values, checkpoint_command, parse_view};
use crate::contract::checkpoint::View;
use crate::contract::entry::Entry;
use crate::contract::lua;
use crate::contract::members::{GROUPS_MAX, Members};
use crate::contract::meta::{self, Meta};
use crate::contract::stream_name::Target;
use crate::contract::terms::Continuity;
use crate::core::position::{EpochId, StreamId};
use crate::core::resp::{self, transaction};

/// Most entries read at once from one stream.
const READ_MAX: usize = 1000;

/// Most streams whose entries are read at once. Of more, those that have entries are found first.
const STREAMS_AT_ONCE: usize = 16;

/// How often a read is repeated because the user joined or left a group, or a stream was trimmed, meanwhile.
const REPEATS_MAX: usize = 5;

/// How long a reader ahead of the streams waits for them, before it counts as one of a lost history. A stale server is
/// replaced within this time, or a session of the publisher begins, which decides.
const AHEAD_GRACE: Duration = Duration::from_secs(5);

/// Shortest time between two renewals of connections by doubtful reads.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// A range of a user's entries.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Entries of the user's streams in commit order.
    pub entries: Vec<Entry>,
    /// Everything up to here is in it.
    pub end: StreamId,
    /// There is more behind it.
    pub has_more: bool,
    /// See [`ReadPosition::is_incomplete`]: the reader was, or has passed a reset that its snapshot covers.
    pub is_incomplete: bool,
    /// The checkpoint at that moment.
    pub view: View,
    /// The user's memberships at that moment; empty without groups.
    pub members: Arc<Members>,
}

/// The result of a read.
#[derive(Debug, Clone)]
pub enum Read {
    /// What follows.
    Slice(Slice),
    /// The streams do not reach back to the position, or their continuity ends behind it: a snapshot is needed.
    Broken(View),
}

impl Read {
    /// The checkpoint at that moment.
    fn view(&self) -> &View {
        match self {
            Self::Slice(slice) => &slice.view,
            Self::Broken(view) => view,
        }
    }
}

impl Store {
    /// The entries behind a position, up to about `limit`, but no more than 1,000 of each stream. All of them are in
    /// memory together, so a caller that does not know their size passes a small limit. Twice as many, or 16, are in memory
    /// while the streams of many groups are read.
    pub async fn read(&self, tenant: &str, user: Uuid, place: ReadPosition, limit: usize) -> Result<Read, Error> {
        let mut reading = self.read_once(tenant, user, place, limit).await?;
        if self.is_doubtful(&reading) && self.renew_if_due() {
            reading = self.read_once(tenant, user, place, limit).await?;
        }
        let (read, continuity) = reading;
        match continuity {
            Continuity::NotReached if self.is_awaited(read.view(), place.reach()) => Err(Error::NotReached),
            _ => Ok(read),
        }
    }

    /// Whether a read may be of a server that lags: the reader, or the live tail, has received more.
    fn is_doubtful(&self, (read, continuity): &(Read, Continuity)) -> bool {
        let view = read.view();
        let is_behind = |(epoch, position)| epoch != view.epoch || position > view.position;
        matches!(continuity, Continuity::NotReached | Continuity::Unknown) || self.0.tail.lock().is_some_and(is_behind)
    }

    /// Renews the connections, unless that was done a moment ago.
    fn renew_if_due(&self) -> bool {
        let mut renewed = self.0.renewed.lock();
        if renewed.is_some_and(|at| at.elapsed() < RENEW_INTERVAL) {
            return false;
        }
        *renewed = Some(Instant::now());
        self.renew();
        true
    }

    /// Whether the streams are expected to reach a position that is ahead of them.
    fn is_awaited(&self, view: &View, position: StreamId) -> bool {
        let mut ahead = self.0.ahead.lock();
        match &mut *ahead {
            // Behind the former position, the streams have made up for it.
            Some(ahead) if ahead.term == view.term && ahead.position > view.position => {
                ahead.position = ahead.position.max(position);
                ahead.since.elapsed() < AHEAD_GRACE
            }
            _ => {
                *ahead = Some(NotReached {
                    term: view.term,
                    position,
                    since: Instant::now(),
                });
                true
            }
        }
    }

    /// Records what the live tail has received: a read below is of a server that lags.
    pub fn note_tail(&self, epoch: Option<EpochId>, position: StreamId) {
        *self.0.tail.lock() = epoch.map(|epoch| (epoch, position));
    }

    /// The checkpoint, and whether everything up to a place of its epoch is in the streams.
    pub async fn verify(&self, place: ReadPosition) -> Result<(View, Continuity), Error> {
        let (mut pipe, terms) = (redis::pipe(), self.0.keys.terms());
        pipe.atomic();
        checkpoint_command(&mut pipe, &self.0.keys);
        pipe.hget(&terms, place.term.to_string());
        let (fields, ended): (Vec<Option<String>>, Option<String>) = self.query(&pipe).await?;
        let view = parse_view(&fields)?;
        Ok((view, verify(place, &view, ended)))
    }

    async fn read_once(
        &self,
        tenant: &str,
        user: Uuid,
        place: ReadPosition,
        limit: usize,
    ) -> Result<(Read, Continuity), Error> {
        let mut members = self.assumed(tenant, user).await?;
        for _ in 0..REPEATS_MAX {
            match self.read_assuming(tenant, user, place, limit, &members).await? {
                Reading::Done(read, continuity) => return Ok((read, continuity)),
                Reading::OtherMembers(now) => {
                    members = Arc::new(now);
                    self.assume(tenant, user, &members);
                }
                Reading::Changed => {}
            }
        }
        Err(std::io::Error::other("the user's memberships or streams changed with each read").into())
    }

    /// The groups that a read of a user assumes.
    async fn assumed(&self, tenant: &str, user: Uuid) -> Result<Arc<Members>, Error> {
        if !self.has_groups() {
            return Ok(Arc::default());
        }
        if let Some(assumed) = self.0.assumed.lock().get(&(tenant.to_owned(), user)) {
            return Ok(assumed.clone());
        }
        let mut pipe = redis::pipe();
        pipe.hgetall(self.0.keys.members(tenant, &user.to_string()));
        let (fields,): (HashMap<String, String>,) = self.query(&pipe).await?;
        let members = Members::parse(&fields);
        // Without complete memberships a snapshot is due, whatever the streams have.
        let is_complete = members.since.is_some() && members.groups.len() <= GROUPS_MAX;
        let members = Arc::new(if is_complete { members } else { Members::default() });
        self.assume(tenant, user, &members);
        Ok(members)
    }

    fn assume(&self, tenant: &str, user: Uuid, members: &Arc<Members>) {
        self.0.assumed.lock().put((tenant.to_owned(), user), members.clone());
    }

    /// Reads the streams of a user with these memberships, and checks in the same transaction that they are right.
    async fn read_assuming(
        &self,
        tenant: &str,
        user: Uuid,
        place: ReadPosition,
        limit: usize,
        assumed: &Arc<Members>,
    ) -> Result<Reading, Error> {
        let (name, user_text): (Arc<str>, String) = (tenant.into(), user.to_string());
        let own = [Target::Inbox(name.clone(), user), Target::Shared(name.clone())];
        let mut streams: Vec<(Target, StreamId)> = own.map(|target| (target, place.position)).into();
        // Rows of before the user joined come by a snapshot of the group.
        let groups = assumed.groups.iter();
        streams.extend(groups.map(|(group, joined)| {
            let target = Target::Group(name.clone(), group.clone());
            (target, place.position.max(*joined))
        }));
        let is_at_once = streams.len() <= STREAMS_AT_ONCE;
        // All of them are in memory together. Of a user without groups each of the two may fill the limit.
        let share = match streams.len() {
            2 => limit,
            streams => limit / streams,
        };
        let count = share.clamp(1, READ_MAX);
        let keys: Vec<String> = streams.iter().map(|(target, _)| target.key(&self.0.keys)).collect();
        let names: Vec<String> = streams.iter().map(|(target, _)| target.name()).collect();
        let from: Vec<String> = streams.iter().map(|(_, after)| after.next().to_string()).collect();
        let (meta, checkpoint) = (self.0.keys.meta(tenant), self.0.keys.checkpoint());
        let (stopped, terms, term) = (self.0.keys.stopped(), self.0.keys.terms(), place.term.to_string());
        let (members, count_text) = (self.0.keys.members(tenant, &user_text), count.to_string());
        let meta_fields = meta::fields_of_reader(user, assumed.groups.keys());
        let keys_text = keys.len().to_string();
        let mut commands: Vec<Vec<&str>> = Vec::with_capacity(STREAMS_AT_ONCE + 6);
        if is_at_once {
            for (key, from) in keys.iter().zip(&from) {
                commands.push(vec!["XRANGE", key, from, "+", "COUNT", &count_text]);
            }
        } else {
            let arguments = keys.iter().chain(&from).map(String::as_str);
            commands.push(["EVAL", lua::HEADS, &keys_text].into_iter().chain(arguments).collect());
        }
        let exist = std::iter::once("EXISTS").chain(keys.iter().map(String::as_str));
        commands.push(exist.collect());
        commands.push(
            ["HMGET", &meta]
                .into_iter()
                .chain(meta_fields.iter().map(String::as_str))
                .collect(),
        );
        commands.push(["HMGET", &checkpoint].into_iter().chain(View::FIELDS).collect());
        commands.push(
            ["HMGET", &stopped]
                .into_iter()
                .chain(names.iter().map(String::as_str))
                .collect(),
        );
        commands.push(vec!["HMGET", &terms, &term]);
        if self.has_groups() {
            commands.push(vec!["HGETALL", &members]);
        }
        let reply = self.transact(&commands).await?;
        let mut replies = transaction(&reply, commands.len())?;
        let (mut ranges, mut heads) = (Vec::new(), Vec::new());
        if is_at_once {
            for _ in &streams {
                ranges.push(Entry::read_range(&mut replies, &reply)?);
            }
        } else {
            heads = replies.texts()?;
        }
        let existing = replies.integer()?;
        let (meta, checkpoint, stopped) = (replies.texts()?, replies.texts()?, replies.texts()?);
        let ended = replies.texts()?.into_iter().flatten().next();
        let members = if self.has_groups() {
            replies.texts()?
        } else {
            Vec::new()
        };

        let view = parse_view(&checkpoint)?;
        let meta = Meta::parse(meta);
        if meta.is_paused {
            return Err(Error::Paused);
        }
        let is_known = view.epoch == place.epoch && meta.generation == Some(place.generation);
        if !is_known || meta.is_trimmed_after(place.position) {
            return Ok(Reading::Done(Read::Broken(view), Continuity::Valid));
        }
        let mut held = assumed.clone();
        if self.has_groups() {
            let members = Members::parse(&pairs(members));
            let is_complete = members.is_of(view.epoch, meta.generation, meta.groups_reset)
                && members.since.is_some_and(|since| since <= place.position);
            if !is_complete {
                self.0.assumed.lock().pop(&(tenant.to_owned(), user));
                return Ok(Reading::Done(Read::Broken(view), Continuity::Valid));
            }
            if members.groups != assumed.groups {
                return Ok(Reading::OtherMembers(members));
            }
            held = Arc::new(members);
        }
        if existing != i64::try_from(streams.len()).unwrap_or(i64::MAX) {
            return Ok(Reading::Done(Read::Broken(view), Continuity::Valid));
        }
        let continuity = verify(place, &view, ended);
        if continuity != Continuity::Valid {
            return Ok(Reading::Done(Read::Broken(view), continuity));
        }
        let mut horizon = cut(&ranges, count);
        if !is_at_once {
            let heads = heads.into_iter().map(|head| head?.parse().ok());
            let filled = streams
                .into_iter()
                .zip(heads)
                .enumerate()
                .filter_map(Filled::new)
                .collect();
            let Some((entries, end)) = self.read_in_parts(tenant, user, place, limit, &view, filled).await? else {
                return Ok(Reading::Changed);
            };
            (ranges, horizon) = (vec![entries], Some(end));
        }
        let read = merge(ranges, horizon, place, view, (user, held));
        if let Read::Slice(slice) = &read {
            let Some(last) = slice.entries.last() else {
                return if !slice.has_more && stopped.iter().any(Option::is_some) {
                    Err(Error::Stopped)
                } else {
                    Ok(Reading::Done(read, continuity))
                };
            };
            let mut furthest = self.0.furthest.lock();
            *furthest = last.id.max(*furthest);
        }
        Ok(Reading::Done(read, continuity))
    }

    /// The entries of streams that have some, in parts, and up to where they are complete. `None` if what a view shows of the
    /// streams is no longer so.
    async fn read_in_parts(
        &self,
        tenant: &str,
        user: Uuid,
        place: ReadPosition,
        limit: usize,
        view: &View,
        mut filled: Vec<Filled>,
    ) -> Result<Option<(Vec<Entry>, StreamId)>, Error> {
        filled.sort_by_key(|stream| stream.head);
        let limit = limit.max(1);
        let mut horizon = view.position;
        // Each with the number of its stream: of one change, the entry of the inbox comes first.
        let mut kept: Vec<(StreamId, usize, Entry)> = Vec::new();
        for part in filled.chunks(STREAMS_AT_ONCE) {
            // The first entries of all others are behind those of this part.
            if part.first().is_none_or(|first| first.head > horizon) {
                break;
            }
            let count = (limit / part.len()).clamp(1, READ_MAX);
            let Some(ranges) = self
                .read_part(tenant, user, place, (view, horizon), part, count)
                .await?
            else {
                return Ok(None);
            };
            horizon = cut(&ranges, count).map_or(horizon, |end| end.min(horizon));
            for (stream, range) in part.iter().zip(ranges) {
                kept.extend(range.into_iter().map(|entry| (entry.id, stream.number, entry)));
            }
            kept.sort_by_key(|(id, number, _)| (*id, *number));
            // All entries of a change stay together.
            if let Some((last, ..)) = kept.get(limit - 1) {
                horizon = horizon.min(*last);
            }
            kept.truncate(kept.partition_point(|(id, ..)| *id <= horizon));
        }
        Ok(Some((kept.into_iter().map(|(.., entry)| entry).collect(), horizon)))
    }

    /// The entries of some streams up to a horizon, at most `count` of each.
    async fn read_part(
        &self,
        tenant: &str,
        user: Uuid,
        place: ReadPosition,
        (view, horizon): (&View, StreamId),
        part: &[Filled],
        count: usize,
    ) -> Result<Option<Vec<Vec<Entry>>>, Error> {
        let keys: Vec<String> = part.iter().map(|stream| stream.target.key(&self.0.keys)).collect();
        let from: Vec<String> = part.iter().map(|stream| stream.after.next().to_string()).collect();
        let (until, count) = (horizon.to_string(), count.to_string());
        let (meta, checkpoint) = (self.0.keys.meta(tenant), self.0.keys.checkpoint());
        let (terms, term) = (self.0.keys.terms(), place.term.to_string());
        let groups = part.iter().filter_map(|stream| match &stream.target {
            Target::Group(_, group) => Some(group),
            _ => None,
        });
        let meta_fields = meta::fields_of_reader(user, groups);
        let ranges = keys.iter().zip(&from);
        let mut commands: Vec<Vec<&str>> = ranges
            .map(|(key, from)| vec!["XRANGE", key, from, &until, "COUNT", &count])
            .collect();
        let fields = meta_fields.iter().map(String::as_str);
        commands.push(["EXISTS"].into_iter().chain(keys.iter().map(String::as_str)).collect());
        commands.push(["HMGET", &meta].into_iter().chain(fields).collect());
        commands.push(["HMGET", &checkpoint].into_iter().chain(View::FIELDS).collect());
        commands.push(vec!["HMGET", &terms, &term]);
        let reply = self.transact(&commands).await?;
        let mut replies = transaction(&reply, commands.len())?;
        let mut ranges = Vec::with_capacity(part.len());
        for _ in part {
            ranges.push(Entry::read_range(&mut replies, &reply)?);
        }
        let existing = replies.integer()?;
        let meta = Meta::parse(replies.texts()?);
        let now = parse_view(&replies.texts()?)?;
        let ended = replies.texts()?.into_iter().flatten().next();
        let is_same = (now.epoch, now.term) == (view.epoch, view.term)
            && meta.generation == Some(place.generation)
            && !meta.is_trimmed_after(place.position)
            && existing == i64::try_from(part.len()).unwrap_or(i64::MAX)
            && verify(place, &now, ended) == Continuity::Valid;
        Ok(is_same.then_some(ranges))
    }

    /// The last entry that a reader of this process received: cached rows must not be older.
    pub fn furthest(&self) -> StreamId {
        *self.0.furthest.lock()
    }

    /// Forgets it: IDs of the next epoch may be lower.
    pub fn forget_furthest(&self) {
        *self.0.furthest.lock() = StreamId::ZERO;
    }

    /// The entries of a user's inbox behind `after` up to and including `until`, at most `count`.
    pub async fn inbox(
        &self,
        tenant: &str,
        user: Uuid,
        after: StreamId,
        until: StreamId,
        count: usize,
    ) -> Result<Vec<Entry>, Error> {
        let inbox = self.0.keys.inbox(tenant, &user.to_string());
        let (from, until, count) = (after.next().to_string(), until.to_string(), count.to_string());
        let commands: [&[&str]; 1] = [&["XRANGE", &inbox, &from, &until, "COUNT", &count]];
        let reply = self.transact(&commands).await?;
        Ok(Entry::read_range(&mut transaction(&reply, commands.len())?, &reply)?)
    }

    /// Runs commands as one transaction and returns the replies as Redis sent them.
    async fn transact<'c>(&self, commands: &[impl AsRef<[&'c str]>]) -> Result<bytes::Bytes, RedisError> {
        let mut encoded = BytesMut::with_capacity(1024);
        resp::command(&mut encoded, &[b"MULTI"]);
        for command in commands {
            let command = command.as_ref();
            resp::begin(&mut encoded, command.len());
            command
                .iter()
                .for_each(|argument| resp::argument(&mut encoded, argument.as_bytes()));
        }
        resp::command(&mut encoded, &[b"EXEC"]);
        self.0.ranges.request(&encoded, commands.len() + 2).await
    }
}

/// What came of a read that assumed a user's memberships.
enum Reading {
    Done(Read, Continuity),
    /// The user has these.
    OtherMembers(Members),
    /// Between two parts the streams were trimmed, replaced or created again.
    Changed,
}

/// A stream of a user that has entries to read.
struct Filled {
    /// Its place among the user's streams, of which the inbox is the first.
    number: usize,
    target: Target,
    /// Everything up to here was read.
    after: StreamId,
    /// Its first entry behind that.
    head: StreamId,
}

impl Filled {
    fn new((number, ((target, after), head)): (usize, ((Target, StreamId), Option<StreamId>))) -> Option<Self> {
        Some(Self {
            number,
            target,
            after,
            head: head?,
        })
    }
}

/// Names and values that alternate.
fn pairs(texts: Values) -> Fields {
    let mut texts = texts.into_iter().flatten();
    std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect()
}
