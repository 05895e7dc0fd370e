//! Reads a user's entries from Redis with one round trip.
//!
//! Each read is a `MULTI`/`EXEC`, so that inbox, shared stream, trim points and checkpoint are of the same moment.
//! Otherwise a read could miss an entry of the inbox and return a later one of the shared stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis::RedisError;
use uuid::Uuid;

use super::merge::merge;
use super::read_position::{ReadPosition, verify};
use super::store::{Error, Fields, NotReached, Store, Values, checkpoint_command, parse_view};
use crate::contract::checkpoint::View;
use crate::contract::entry::Entry;
use crate::contract::members::Members;
use crate::contract::meta::{self, Meta};
use crate::contract::stream_name::Target;
use crate::contract::terms::Continuity;
use crate::core::position::{EpochId, StreamId};
use crate::core::resp::{self, transaction};

/// Most entries read at once from one stream.
const READ_MAX: usize = 1000;

/// Fewest entries read at once from each stream of a user with groups.
const GROUP_ENTRIES_MIN: usize = 16;

/// How often a read is repeated because the user joined or left a group meanwhile.
const MEMBERSHIP_READS_MAX: usize = 5;

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
    /// memory together, so a caller that does not know their size passes a small limit.
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
        for _ in 0..MEMBERSHIP_READS_MAX {
            match self.read_assuming(tenant, user, place, limit, &members).await? {
                Reading::Done(read, continuity) => return Ok((read, continuity)),
                Reading::OtherMembers(now) => {
                    members = Arc::new(now);
                    self.assume(tenant, user, &members);
                }
            }
        }
        Err(std::io::Error::other("the user's memberships changed with each read").into())
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
        let members = Arc::new(Members::parse(&fields));
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
        let count = match streams.len() {
            2 => limit,
            // All of them are in memory together.
            streams => (limit / streams).max(GROUP_ENTRIES_MIN),
        }
        .clamp(1, READ_MAX);
        let keys: Vec<String> = streams.iter().map(|(target, _)| target.key(&self.0.keys)).collect();
        let names: Vec<String> = streams.iter().map(|(target, _)| target.name()).collect();
        let from: Vec<String> = streams.iter().map(|(_, after)| after.next().to_string()).collect();
        let (meta, checkpoint) = (self.0.keys.meta(tenant), self.0.keys.checkpoint());
        let (stopped, terms, term) = (self.0.keys.stopped(), self.0.keys.terms(), place.term.to_string());
        let (members, count_text) = (self.0.keys.members(tenant, &user_text), count.to_string());
        let meta_fields = meta::fields_of_reader(user, assumed.groups.keys());
        let mut commands: Vec<Vec<&str>> = Vec::with_capacity(streams.len() + 6);
        for (key, from) in keys.iter().zip(&from) {
            commands.push(vec!["XRANGE", key, from, "+", "COUNT", &count_text]);
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
        let mut ranges = Vec::with_capacity(streams.len());
        for _ in &streams {
            ranges.push(Entry::read_range(&mut replies, &reply)?);
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
        let read = merge(ranges, count, place, view, (user, held));
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
}

/// Names and values that alternate.
fn pairs(texts: Values) -> Fields {
    let mut texts = texts.into_iter().flatten();
    std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect()
}
