//! Presence as Redis holds it: scripts that each leave the tenant's keys whole.
//!
//! Statuses are folded where the streams are counted, so that every node sees the same change once and in the same order,
//! whichever node's stream it was. Each change of a status has a version, larger than all before; a node asks for what lies
//! behind the version that it has. Nothing travels that a node could miss.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use redis::{Pipeline, RedisResult, Value, from_redis_value};
use uuid::Uuid;

use super::entry::{Entry, Error, Place, Status};
use crate::config;
use crate::contract::keys::Keys;
use crate::contract::lua;
use crate::core::time::millis;
use crate::redis::shared::SharedConnection;
use crate::telemetry::metrics::Operations;

/// How long Redis may take to answer.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);

/// Streams in one script: it runs for about a millisecond, and Redis does nothing else meanwhile.
const SCRIPT_STREAMS: usize = 200;

/// Scripts in one round trip.
const PIPELINE_SCRIPTS: usize = 10;

/// How long who is gone is remembered here. Postgres knows their last seen time before.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// One open stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) tenant: std::sync::Arc<str>,
    /// `<user>/<place>/<stream>`.
    pub(crate) name: Box<str>,
}

/// What a node knows of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Which life of the tenant's keys; empty before the first.
    pub(crate) epoch: String,
    /// All changes up to this one.
    pub(crate) version: u64,
}

/// What has changed behind what a node knows.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What is known with these.
    pub(crate) known: Known,
    /// The last change that there is.
    pub(crate) newest: u64,
    /// How many users are present.
    pub(crate) present: usize,
    /// What was known before is void.
    pub(crate) is_new: bool,
    /// There are more.
    pub(crate) has_more: bool,
    pub(crate) entries: Vec<Entry>,
}

/// A part of the list of users.
#[derive(Debug, Default)]
pub struct List {
    /// The last change that is in it.
    pub version: u64,
    /// How many users are remembered.
    pub total: i64,
    /// The users.
    pub entries: Vec<Entry>,
}

/// Which users are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    Page { offset: i64, limit: i64 },
    Of(&'a [Uuid]),
    Present,
}

/// When a user was last seen, and on which device if it was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSeen {
    pub user: Uuid,
    pub device: Option<String>,
    /// ms since 1970.
    pub at_ms: i64,
    /// Its member in Redis.
    member: String,
}

/// Runs the scripts. Cloning shares the connection.
#[derive(Clone)]
pub(crate) struct PresenceStore {
    connection: SharedConnection,
    keys: Keys,
    held: Duration,
    grace: Duration,
}

impl std::fmt::Debug for PresenceStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PresenceStore")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl PresenceStore {
    /// A connection of its own, made when it is first needed and again whenever it breaks. What is asked over it is
    /// counted there.
    ///
    /// # Errors
    /// When `redis.url` is malformed.
    pub(crate) fn connect(config: &config::Config, operations: Operations) -> anyhow::Result<Self> {
        let settings = &config.redis;
        let grace = Duration::from_secs(config.presence.grace_seconds);
        Ok(Self {
            connection: SharedConnection::new(settings, TIMEOUT, operations)
                .context("cannot prepare the Redis connection for presence by `redis.url`")?,
            keys: Keys::new(&settings.keys_prefix()),
            // A missed heartbeat does not make a device offline, and a node that dies is no better than one that leaves.
            held: 2 * Duration::from_secs(config.live.heartbeat_seconds) + grace.max(Duration::from_secs(5)),
            grace,
        })
    }

    /// Counts streams as open until they are held again, leave, or some time has passed.
    pub(crate) async fn hold(&self, streams: &[Member]) -> Result<(), Error> {
        let held = self.held.as_millis().to_string();
        self.each_tenant(lua::PRESENCE_HOLD, &[&held], streams).await
    }

    /// Counts streams as open for the grace only.
    pub(crate) async fn leave(&self, streams: &[Member]) -> Result<(), Error> {
        let (grace, held) = (self.grace.as_millis().to_string(), self.held.as_millis().to_string());
        self.each_tenant(lua::PRESENCE_LEAVE, &[&grace, &held], streams).await
    }

    /// Runs a script over streams, however many: a few hundred of one tenant at once, in few round trips. A script that
    /// fails does not keep others from running; the first error is returned after all.
    async fn each_tenant(&self, script: &str, arguments: &[&str], streams: &[Member]) -> Result<(), Error> {
        let mut by_tenant: HashMap<&str, Vec<&str>> = HashMap::new();
        for stream in streams {
            by_tenant.entry(&stream.tenant).or_default().push(&stream.name);
        }
        let parts: Vec<(&str, &[&str])> = by_tenant
            .iter()
            .flat_map(|(tenant, names)| names.chunks(SCRIPT_STREAMS).map(|part| (*tenant, part)))
            .collect();
        let mut failed = Ok(());
        for parts in parts.chunks(PIPELINE_SCRIPTS) {
            let mut pipe = redis::pipe();
            for (tenant, names) in parts {
                self.script(&mut pipe, script, tenant)
                    .arg(arguments)
                    .arg(*names)
                    .ignore();
            }
            match self.run::<()>(&pipe).await {
                // Redis executes the whole pipeline, whatever one of its scripts returns.
                Err(error) if error.is_of_script() => failed = failed.and(Err(error)),
                result => result?,
            }
        }
        failed
    }

    /// Notes what a place says of itself; gives what its user is with that.
    pub(crate) async fn declare(
        &self,
        tenant: &str,
        user: Uuid,
        place: &Place,
        status: Status,
    ) -> Result<Status, Error> {
        let mut pipe = redis::pipe();
        self.script(&mut pipe, lua::PRESENCE_DECLARE, tenant)
            .arg(self.held_ms())
            .arg(user.to_string())
            .arg(place.name())
            .arg(status.as_str());
        let (folded,): (String,) = self.run(&pipe).await?;
        Status::parse(&folded).ok_or(Error::Malformed)
    }

    /// What has changed in tenants behind what is known of each, up to so many users of each.
    pub(crate) async fn poll(&self, tenants: &[(&str, &Known)], most: usize) -> Result<Vec<Changes>, Error> {
        let mut all = Vec::with_capacity(tenants.len());
        for part in tenants.chunks(PIPELINE_SCRIPTS) {
            let mut pipe = redis::pipe();
            for (tenant, known) in part {
                self.script(&mut pipe, lua::PRESENCE_POLL, tenant)
                    .arg(self.held_ms())
                    .arg(&known.epoch)
                    .arg(known.version.to_string())
                    .arg(most);
            }
            let replies: Vec<Vec<Value>> = self.run(&pipe).await?;
            for reply in replies {
                all.push(parse_changes(reply, most).ok_or(Error::Malformed)?);
            }
        }
        Ok(all)
    }

    /// Users and how they are now.
    pub(crate) async fn list(&self, tenant: &str, asked: Asked<'_>) -> Result<List, Error> {
        let mut pipe = redis::pipe();
        let command = self.script(&mut pipe, lua::PRESENCE_LIST, tenant).arg(self.held_ms());
        match asked {
            Asked::Page { offset, limit } => {
                // Reckoned here: Lua's numbers lose the last digits of large ones.
                command.arg("page").arg(offset).arg(offset.saturating_add(limit - 1))
            }
            Asked::Of(users) => command
                .arg("of")
                .arg(users.iter().map(Uuid::to_string).collect::<Vec<_>>()),
            Asked::Present => command.arg("present"),
        };
        let (reply,): (Vec<Value>,) = self.run(&pipe).await?;
        let mut values = reply.into_iter();
        let mut next = || values.next().and_then(text);
        let mut list = || {
            Some(List {
                version: next()?.parse().ok()?,
                total: next()?.parse().ok()?,
                entries: Vec::new(),
            })
        };
        let mut list = list().ok_or(Error::Malformed)?;
        while let (Some(user), Some(record)) = (next(), next()) {
            list.entries.push(Entry::parse(&user, &record).ok_or(Error::Malformed)?);
        }
        Ok(list)
    }

    /// When places were seen that Postgres does not know yet, up to so many; what was written since the last time is
    /// not given again.
    pub(crate) async fn unwritten(
        &self,
        tenant: &str,
        written: &[LastSeen],
        most: usize,
    ) -> Result<Vec<LastSeen>, Error> {
        let mut pipe = redis::pipe();
        let command = self.script(&mut pipe, lua::PRESENCE_CARRY, tenant);
        command.arg(self.held_ms()).arg(millis(REMEMBERED)).arg(most);
        for seen in written {
            command.arg(&seen.member).arg(seen.at_ms);
        }
        let (reply,): (Vec<String>,) = self.run(&pipe).await?;
        let (members, _) = reply.as_chunks::<2>();
        Ok(members
            .iter()
            .filter_map(|[member, at]| {
                let (user, place) = member.split_once('/')?;
                Some(LastSeen {
                    user: Uuid::try_parse(user).ok()?,
                    device: Place::device_of(place).map(str::to_owned),
                    at_ms: at.parse().ok()?,
                    member: member.clone(),
                })
            })
            .collect())
    }

    /// Whether this process is the one that carries times to Postgres until the interval is over.
    pub(crate) async fn claim_last_seen(&self, interval: Duration) -> Result<bool, Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("SET")
            .arg(self.keys.presence_carrier())
            .arg("1")
            .arg("NX")
            .arg("PX")
            .arg(millis(interval));
        let (answer,): (Option<String>,) = self.run(&pipe).await?;
        Ok(answer.is_some())
    }

    fn held_ms(&self) -> i64 {
        millis(self.held)
    }

    /// Begins a script over a tenant's keys.
    fn script<'p>(&self, pipe: &'p mut Pipeline, script: &str, tenant: &str) -> &'p mut Pipeline {
        let keys = [
            self.keys.presence(tenant),
            self.keys.presence_part(tenant, "users"),
            self.keys.presence_part(tenant, "changed"),
            self.keys.presence_part(tenant, "gone"),
            self.keys.presence_part(tenant, "seen"),
            self.keys.presence_part(tenant, "unwritten"),
        ];
        pipe.cmd("EVAL").arg(script).arg(keys.len()).arg(&keys)
    }

    async fn run<T: redis::FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let mut connection = self.connection.clone();
        let answer: RedisResult<T> = tokio::time::timeout(TIMEOUT, commands.query_async(&mut connection))
            .await
            .map_err(|_| Error::Timeout)?;
        Ok(answer?)
    }
}

fn text(value: Value) -> Option<String> {
    from_redis_value(value).ok()
}

fn parse_changes(reply: Vec<Value>, most: usize) -> Option<Changes> {
    let mut values = reply.into_iter();
    let mut next = || values.next().and_then(text);
    let mut changes = Changes {
        known: Known {
            epoch: next()?,
            version: next()?.parse().ok()?,
        },
        present: next()?.parse().ok()?,
        is_new: next()? == "1",
        ..Changes::default()
    };
    let mut last = 0;
    while let Some(user) = next() {
        last = next()?.parse().ok()?;
        changes.entries.push(Entry::parse(&user, &next()?)?);
    }
    changes.newest = changes.known.version;
    changes.has_more = changes.entries.len() == most && last < changes.known.version;
    if changes.has_more {
        changes.known.version = last;
    }
    Some(changes)
}
