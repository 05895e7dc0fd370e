//! Following streams as they grow, for people and scripts who look on: several streams in one order, whatever happens to
//! Redis meanwhile.
//!
//! Within one read the entries of all streams come in the order of commits. What cannot come any more, because it was
//! trimmed or the stream was recreated, is reported in its place.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamRangeReply, StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands as _, RedisError};

use crate::admin::streams;
use crate::config;
use crate::contract::entry::{Entry, Text};
use crate::contract::json::members;
use crate::contract::keys::Keys;
use crate::contract::meta::trim_field;
use crate::contract::stream_name::Target;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::net;
use crate::redis::cluster;
use crate::redis::entries;
use crate::redis::error::is_wrong_type;

/// How long one read waits for something new.
const BLOCK: Duration = Duration::from_secs(1);

/// Entries read at once from one stream.
const COUNT: usize = 200;

/// Between two looks at whether the streams are still those that are followed.
const LOOK: Duration = Duration::from_secs(5);

/// Follows streams.
pub struct Tail {
    config: config::Redis,
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
    /// The stream was recreated with lower IDs; it is read from its beginning.
    Recreated(Target),
    /// Something else is in the stream's place, of this type; it is not followed until there is a stream again.
    WrongType(Target, String),
}

/// An entry, and the stream that contains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub target: Target,
    pub entry: Entry,
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
    /// When it was committed.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        streams::time_of_micros(self.entry.commit_ts?)
    }

    /// The row's `id`, new or old, as text.
    pub fn row_id(&self) -> Option<String> {
        let Entry { row, old, .. } = &self.entry;
        [row, old].into_iter().flatten().find_map(|row| {
            let id = columns_of(row.as_str()).find(|(name, _)| *name == "id")?.1;
            match serde_json::from_str(id) {
                Ok(serde_json::Value::String(text)) => Some(text),
                Ok(serde_json::Value::Null) | Err(_) => None,
                Ok(other) => Some(other.to_string()),
            }
        })
    }

    /// The columns that it is about, in the table's order: of an update those that differ, as far as the log has
    /// the old row; of anything else all.
    pub fn columns(&self) -> Vec<Column<'_>> {
        if self.entry.op == Operation::Message {
            return Vec::new();
        }
        let old = self.entry.old.as_ref().map(Text::as_str);
        let old: Vec<(&str, &str)> = old.map(columns_of).into_iter().flatten().collect();
        let Some(row) = &self.entry.row else {
            return old
                .into_iter()
                .map(|(name, old)| Column {
                    name,
                    old: Some(old),
                    new: None,
                })
                .collect();
        };
        columns_of(row.as_str())
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
            config: config.clone(),
            settings: redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(timeout))
                .set_response_timeout(Some(BLOCK + timeout)),
            keys: Keys::new(&config.keys_prefix()),
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
    /// When Redis fails. The next call reconnects, and no entry is lost in between.
    pub async fn next(&mut self) -> Result<Vec<Seen>, RedisError> {
        if self.followed.is_empty() {
            tokio::time::sleep(BLOCK).await;
            return Ok(Vec::new());
        }
        let (mut connection, is_new) = match &self.connection {
            Some(connection) => (connection.clone(), false),
            None => {
                cluster::locate(&self.config).await?;
                let client = net::redis::client(&self.config)?;
                let connecting = client.get_multiplexed_async_connection_with_config(&self.settings);
                (connecting.await?, true)
            }
        };
        let result = self.read(&mut connection, is_new).await;
        self.connection = match &result {
            Err(error) if error.code().is_none() || cluster::is_elsewhere(error) => None,
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
            Err(error) if is_wrong_type(&error) => return self.look(connection).await,
            reply => reply?,
        };
        let Some(reply) = reply else { return Ok(Vec::new()) };

        let mut stretches = Vec::new();
        for stream in &reply.keys {
            let Some(index) = self.followed.iter().position(|followed| followed.key == stream.key) else {
                continue;
            };
            let target = &self.followed[index].target;
            let change = |entry| Change {
                target: target.clone(),
                entry,
            };
            let entries: Vec<Change> = stream.ids.iter().filter_map(entries::entry).map(change).collect();
            stretches.push((index, stream.ids.len() >= COUNT, entries));
        }
        // Behind the last entry of a stretch that was cut there may be others that come first.
        let cut = |(_, is_cut, entries): &(usize, bool, Vec<Change>)| {
            entries.last().filter(|_| *is_cut).map(|last| last.entry.id)
        };
        let horizon = stretches.iter().filter_map(cut).min();
        let mut pipe = redis::pipe();
        for (index, ..) in &stretches {
            let target = &self.followed[*index].target;
            pipe.cmd("HGET")
                .arg(self.keys.meta(target.tenant()))
                .arg(trim_field(target));
        }
        let trimmed: Vec<Option<String>> = pipe.query_async(connection).await?;
        let (mut seen, mut changes) = (Vec::new(), Vec::new());
        for ((index, _, mut entries), trimmed) in stretches.into_iter().zip(trimmed) {
            entries.retain(|change| horizon.is_none_or(|horizon| change.entry.id <= horizon));
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                continue;
            };
            let followed = &mut self.followed[index];
            let trimmed: Option<StreamId> = trimmed.and_then(|trimmed| trimmed.parse().ok());
            if let Some(first_kept) = trimmed
                && followed.after.next() < first_kept
                && first.entry.id >= first_kept
            {
                seen.push(Seen::Gap(followed.target.clone(), first_kept));
            }
            followed.after = last.entry.id;
            changes.extend(entries);
        }
        changes.sort_by_key(|change| change.entry.id);
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

    fn change(op: Operation, row: Option<&str>, old: Option<&str>) -> Change {
        let text = |json: &str| json.to_owned().into();
        Change {
            target: Target::Changes("acme".into()),
            entry: Entry {
                op,
                row: row.map(text),
                old: old.map(text),
                ..Entry::default()
            },
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
        let update = change(Operation::Update, Some(new), Some(old));
        assert_eq!(columns(&update), [column("body", "\"a\"", "\"b\"")]);
        assert_eq!(update.row_id().as_deref(), Some("7"));
        let insert = change(Operation::Insert, Some(new), None);
        assert_eq!(columns(&insert).len(), 3);
        let delete = change(Operation::Delete, None, Some(old));
        assert_eq!(columns(&delete)[1], column("body", "\"a\"", "-"));
        assert_eq!(delete.row_id().as_deref(), Some("7"));
        // With the key alone it is unknown which other columns differ.
        let partial = change(Operation::Update, Some(new), Some(r#"{"id":7}"#));
        assert_eq!(
            columns(&partial),
            [column("body", "-", "\"b\""), column("n", "-", "null")]
        );
    }
}
