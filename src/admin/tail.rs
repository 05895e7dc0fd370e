//! Following streams as they grow, for people and scripts who look on: several streams in one order, whatever happens to
//! Redis meanwhile.
//!
//! Within one read the entries of all streams come in the order of commits. What cannot come any more, because it was
//! trimmed or a stream began anew, is told in its place.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamRangeReply, StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands as _, FromRedisValue as _, RedisError};

use crate::admin::streams;
use crate::config;
use crate::contract::json::members;
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::net;

/// How long one read waits for something new.
const BLOCK: Duration = Duration::from_secs(1);

/// Entries read at once from one stream.
const COUNT: usize = 200;

/// Between two looks at whether the streams are still those that are followed.
const LOOK: Duration = Duration::from_secs(5);

/// Follows streams.
pub struct Tail {
    client: redis::Client,
    settings: redis::AsyncConnectionConfig,
    keys: Keys,
    connection: Option<MultiplexedConnection>,
    followed: Vec<Followed>,
    looked_at: Instant,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail")
            .field("followed", &self.followed)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Followed {
    target: Target,
    key: String,
    after: StreamId,
    /// Something else is in its place.
    is_wrong_type: bool,
}

/// What is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An entry.
    Change(Box<Change>),
    /// Entries of this stream below the ID were trimmed and cannot be shown.
    Gap(Target, StreamId),
    /// The stream was made anew behind the place that was reached; it is read from its beginning.
    Recreated(Target),
    /// Something else is in the stream's place, of this type; it is not followed until there is a stream again.
    WrongType(Target, String),
}

/// An entry of `changes`, `shared` or an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it was read.
    pub target: Target,
    /// Its place.
    pub id: StreamId,
    /// What happened, as the stream says it.
    pub op: String,
    /// Schema of the table; empty in a `reset`.
    pub schema: String,
    /// The table; empty in a `reset`.
    pub table: String,
    /// When it was committed.
    pub time: Option<DateTime<Utc>>,
    /// Transaction id.
    pub xid: Option<u32>,
    /// Name of the live event; not in `changes`.
    pub event: Option<String>,
    /// The new row, or what a message says, as JSON.
    pub row: Option<String>,
    /// The old row as JSON, as far as the log had it.
    pub old: Option<String>,
    /// Columns that the log left out, as a JSON array.
    pub unchanged: Option<String>,
}

/// A column that a change is about: its name, what it was and what it is, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it was, where the log had it.
    pub old: Option<&'a str>,
    /// What it is, where there is a row.
    pub new: Option<&'a str>,
}

impl Change {
    fn parse(target: &Target, raw: &redis::streams::StreamId) -> Option<Self> {
        let field = |name: &str| {
            let value = raw.map.get(name)?;
            String::from_redis_value_ref(value).ok()
        };
        Some(Self {
            target: target.clone(),
            id: raw.id.parse().ok()?,
            op: field("op").unwrap_or_default(),
            schema: field("schema").unwrap_or_default(),
            table: field("table").unwrap_or_default(),
            time: field("ts")
                .and_then(|ts| ts.parse().ok())
                .and_then(streams::time_of_micros),
            xid: field("xid").and_then(|xid| xid.parse().ok()),
            event: field("event"),
            row: field("row"),
            old: field("old"),
            unchanged: field("unchanged"),
        })
    }

    /// The row's `id`, new or old, as text.
    pub fn row_id(&self) -> Option<String> {
        [&self.row, &self.old].into_iter().flatten().find_map(|row| {
            let id = columns_of(row).find(|(name, _)| *name == "id")?.1;
            match serde_json::from_str(id) {
                Ok(serde_json::Value::String(text)) => Some(text),
                Ok(serde_json::Value::Null) | Err(_) => None,
                Ok(other) => Some(other.to_string()),
            }
        })
    }

    /// The columns that it is about, in the table's order: of an update those that differ, as far as the log tells; of
    /// anything else all.
    pub fn columns(&self) -> Vec<Column<'_>> {
        if self.op == "message" {
            return Vec::new();
        }
        let old: Vec<(&str, &str)> = self.old.as_deref().map(columns_of).into_iter().flatten().collect();
        let Some(row) = &self.row else {
            return old
                .into_iter()
                .map(|(name, old)| Column {
                    name,
                    old: Some(old),
                    new: None,
                })
                .collect();
        };
        columns_of(row)
            .filter_map(|(name, new)| {
                let old = old.iter().find(|(other, _)| *other == name).map(|(_, old)| *old);
                (old != Some(new)).then_some(Column {
                    name,
                    old,
                    new: Some(new),
                })
            })
            .collect()
    }
}

/// The columns of a row as the stream holds it.
fn columns_of(row: &str) -> impl Iterator<Item = (&str, &str)> {
    members(row.as_bytes())
        .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?)))
}

impl Tail {
    /// One that follows nothing yet.
    ///
    /// # Errors
    /// When the URL is none of Redis', or a certificate cannot be read.
    pub fn new(config: &config::Redis) -> Result<Self, RedisError> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        Ok(Self {
            client: net::redis::client(config)?,
            settings: redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(timeout))
                .set_response_timeout(Some(BLOCK + timeout)),
            keys: Keys::new(&config.prefix),
            connection: None,
            followed: Vec::new(),
            looked_at: Instant::now(),
        })
    }

    /// Whether a stream is followed.
    pub fn follows(&self, target: &Target) -> bool {
        self.followed.iter().any(|followed| followed.target == *target)
    }

    /// Follows a stream from behind a place on.
    pub fn follow(&mut self, target: Target, after: StreamId) {
        self.followed.push(Followed {
            key: target.key(&self.keys),
            target,
            after,
            is_wrong_type: false,
        });
    }

    /// Follows only the streams for which this holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&Target) -> bool) {
        self.followed.retain(|followed| keep(&followed.target));
    }

    /// What comes next; empty when nothing came within a second. May be dropped and called again.
    ///
    /// # Errors
    /// When Redis fails. The next call connects anew, and nothing is lost in between.
    pub async fn next(&mut self) -> Result<Vec<Seen>, RedisError> {
        if self.followed.is_empty() {
            tokio::time::sleep(BLOCK).await;
            return Ok(Vec::new());
        }
        let (mut connection, is_new) = match &self.connection {
            Some(connection) => (connection.clone(), false),
            None => {
                let connecting = self.client.get_multiplexed_async_connection_with_config(&self.settings);
                (connecting.await?, true)
            }
        };
        let result = self.read(&mut connection, is_new).await;
        self.connection = match &result {
            Err(error) if error.code().is_none() => None,
            _ => Some(connection),
        };
        result
    }

    async fn read(&mut self, connection: &mut MultiplexedConnection, is_new: bool) -> Result<Vec<Seen>, RedisError> {
        if is_new || self.looked_at.elapsed() > LOOK {
            let seen = self.look(connection).await?;
            if !seen.is_empty() {
                return Ok(seen);
            }
        }
        let streams: Vec<&Followed> = self
            .followed
            .iter()
            .filter(|followed| !followed.is_wrong_type)
            .collect();
        if streams.is_empty() {
            tokio::time::sleep(BLOCK).await;
            return Ok(Vec::new());
        }
        let keys: Vec<&str> = streams.iter().map(|followed| followed.key.as_str()).collect();
        let after: Vec<String> = streams.iter().map(|followed| followed.after.to_string()).collect();
        let options = StreamReadOptions::default()
            .count(COUNT)
            .block(BLOCK.as_millis() as usize);
        let reply: Option<StreamReadReply> = match connection.xread_options(&keys, &after, &options).await {
            Err(error) if error.code() == Some("WRONGTYPE") => return self.look(connection).await,
            reply => reply?,
        };
        let Some(reply) = reply else { return Ok(Vec::new()) };

        let mut stretches = Vec::new();
        for stream in &reply.keys {
            let Some(index) = self.followed.iter().position(|followed| followed.key == stream.key) else {
                continue;
            };
            let target = &self.followed[index].target;
            let entries: Vec<Change> = stream.ids.iter().filter_map(|raw| Change::parse(target, raw)).collect();
            stretches.push((index, stream.ids.len() >= COUNT, entries));
        }
        // Behind the last entry of a stretch that was cut there may be others that come first.
        let cut =
            |(_, is_cut, entries): &(usize, bool, Vec<Change>)| entries.last().filter(|_| *is_cut).map(|last| last.id);
        let horizon = stretches.iter().filter_map(cut).min();
        let mut pipe = redis::pipe();
        for (index, ..) in &stretches {
            let target = &self.followed[*index].target;
            pipe.cmd("HGET")
                .arg(self.keys.meta(target.tenant()))
                .arg(target.trim_field());
        }
        let trimmed: Vec<Option<String>> = pipe.query_async(connection).await?;
        let (mut seen, mut changes) = (Vec::new(), Vec::new());
        for ((index, _, mut entries), trimmed) in stretches.into_iter().zip(trimmed) {
            entries.retain(|change| horizon.is_none_or(|horizon| change.id <= horizon));
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                continue;
            };
            let followed = &mut self.followed[index];
            let trimmed: Option<StreamId> = trimmed.and_then(|trimmed| trimmed.parse().ok());
            if let Some(first_kept) = trimmed
                && followed.after.next() < first_kept
                && first.id >= first_kept
            {
                seen.push(Seen::Gap(followed.target.clone(), first_kept));
            }
            followed.after = last.id;
            changes.extend(entries);
        }
        changes.sort_by_key(|change| change.id);
        seen.extend(changes.into_iter().map(|change| Seen::Change(Box::new(change))));
        Ok(seen)
    }

    /// Whether the streams are still those that are followed.
    async fn look(&mut self, connection: &mut MultiplexedConnection) -> Result<Vec<Seen>, RedisError> {
        self.looked_at = Instant::now();
        let mut pipe = redis::pipe();
        for followed in &self.followed {
            pipe.cmd("TYPE").arg(&followed.key);
        }
        let kinds: Vec<String> = pipe.query_async(connection).await?;
        let mut seen = Vec::new();
        for (followed, kind) in self.followed.iter_mut().zip(kinds) {
            let was_wrong_type = std::mem::replace(&mut followed.is_wrong_type, !matches!(&*kind, "stream" | "none"));
            if followed.is_wrong_type {
                if !was_wrong_type {
                    seen.push(Seen::WrongType(followed.target.clone(), kind));
                }
                continue;
            }
            let newest: StreamRangeReply = connection.xrevrange_count(&followed.key, "+", "-", 1).await?;
            let newest: Option<StreamId> = newest.ids.first().and_then(|raw| raw.id.parse().ok());
            if newest.is_some_and(|newest| newest < followed.after) {
                followed.after = StreamId::ZERO;
                seen.push(Seen::Recreated(followed.target.clone()));
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(op: &str, row: Option<&str>, old: Option<&str>) -> Change {
        Change {
            target: Target::Changes("acme".into()),
            id: StreamId { ms: 1, seq: 1 },
            op: op.into(),
            schema: "tenant_acme".into(),
            table: "notes".into(),
            time: None,
            xid: None,
            event: None,
            row: row.map(str::to_owned),
            old: old.map(str::to_owned),
            unchanged: None,
        }
    }

    fn columns(change: &Change) -> Vec<(String, String, String)> {
        let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
        let columns = change.columns().into_iter();
        columns
            .map(|column| (column.name.to_owned(), text(column.old), text(column.new)))
            .collect()
    }

    #[test]
    fn an_update_is_about_the_columns_that_differ_and_all_else_about_all() {
        let (old, new) = (r#"{"id":7,"body":"a","n":null}"#, r#"{"id":7,"body":"b","n":null}"#);
        let column = |name: &str, old: &str, new: &str| (name.to_owned(), old.to_owned(), new.to_owned());
        let update = change("update", Some(new), Some(old));
        assert_eq!(columns(&update), [column("body", "\"a\"", "\"b\"")]);
        assert_eq!(update.row_id().as_deref(), Some("7"));
        let insert = change("insert", Some(new), None);
        assert_eq!(columns(&insert).len(), 3);
        let delete = change("delete", None, Some(old));
        assert_eq!(columns(&delete)[1], column("body", "\"a\"", "-"));
        assert_eq!(delete.row_id().as_deref(), Some("7"));
        // With the key alone nobody knows what else differs.
        let partial = change("update", Some(new), Some(r#"{"id":7}"#));
        assert_eq!(
            columns(&partial),
            [column("body", "-", "\"b\""), column("n", "-", "null")]
        );
    }
}
