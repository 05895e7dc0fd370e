//! The checkpoint: how far publishing has come, as Redis holds it.
//!
//! Only the publisher's own `EXEC` writes this hash, and each `EXEC` is guarded by `WATCH` on it: whoever else touches
//! it, even to set the same value, makes the `EXEC` fail.

use crate::core::position::EpochId;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres_types::PgLsn;

use crate::core::position::StreamId;

/// An epoch: a span of history in which positions only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// Random identity; cursors carry it.
    pub id: EpochId,
    /// Counts epochs of a slot, from 1.
    pub number: i64,
    /// Added to commit LSNs to make stream IDs, so that these grow although LSNs went backwards.
    pub base: u64,
}

/// A transaction, well enough described to be recognised when it is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionMark {
    /// Its commit LSN.
    pub lsn: PgLsn,
    /// First LSN behind it.
    pub end_lsn: PgLsn,
    /// Its id, without epoch.
    pub xid: u32,
    /// Its commit time, µs since 1970. A restored server can repeat LSN and xid, but not the time.
    pub commit_ts: i64,
}

/// A transaction of which only the first changes are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Its commit LSN.
    pub lsn: PgLsn,
    /// Its id, without epoch.
    pub xid: u32,
    /// Its commit time, µs since 1970.
    pub commit_ts: i64,
}

impl fmt::Display for OpenTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.lsn, self.xid, self.commit_ts)
    }
}

impl OpenTransaction {
    /// Reads what [`fmt::Display`] wrote; `None` when it is not that.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            lsn: parts.next()?.parse().ok()?,
            xid: parts.next()?.parse().ok()?,
            commit_ts: parts.next()?.parse().ok()?,
        })
    }
}

/// The checkpoint hash, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The current epoch.
    pub epoch: Epoch,
    /// System identifier of the Postgres cluster.
    pub system_id: String,
    /// Its timeline.
    pub timeline: i32,
    /// Stream ID of the last entry written, maybe inside a transaction.
    pub position: StreamId,
    /// Stream ID of the last complete transaction's last change.
    pub published: StreamId,
    /// The last complete published transaction; `None` in a new epoch.
    pub transaction: Option<TransactionMark>,
    /// The transaction inside of which `position` lies, if it does.
    pub open: Option<OpenTransaction>,
    /// What Postgres may have been told.
    pub acknowledged: PgLsn,
    /// ID of the last entry of the live stream.
    pub live: StreamId,
    /// Identity of the Redis process that held it when the writer came.
    pub run_id: String,
}

/// A checkpoint that is there but does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field} of the checkpoint is {value:?}: somebody else wrote to it")]
pub struct CheckpointError {
    field: &'static str,
    value: String,
}

impl Checkpoint {
    /// Reads the fields; `None` when there is no epoch yet (the writer's name alone makes no checkpoint).
    ///
    /// # Errors
    /// When a field is missing or malformed.
    pub fn parse(fields: &HashMap<String, String>) -> Result<Option<Self>, CheckpointError> {
        fn field<T: FromStr>(fields: &HashMap<String, String>, name: &'static str) -> Result<T, CheckpointError> {
            let value = fields.get(name).map(String::as_str).unwrap_or_default();
            value.parse().map_err(|_| CheckpointError {
                field: name,
                value: value.to_owned(),
            })
        }
        if !fields.contains_key("epoch") {
            return Ok(None);
        }
        let transaction = if fields.get("xid").is_some_and(|xid| !xid.is_empty()) {
            Some(TransactionMark {
                lsn: field(fields, "lsn")?,
                end_lsn: field(fields, "end_lsn")?,
                xid: field(fields, "xid")?,
                commit_ts: field(fields, "commit_ts")?,
            })
        } else {
            None
        };
        let open = match fields.get("open").map_or("", String::as_str) {
            "" => None,
            text => Some(OpenTransaction::parse(text).ok_or_else(|| CheckpointError {
                field: "open",
                value: text.to_owned(),
            })?),
        };
        Ok(Some(Self {
            epoch: Epoch {
                id: field(fields, "epoch")?,
                number: field(fields, "number")?,
                base: field(fields, "base")?,
            },
            system_id: field(fields, "system_id")?,
            timeline: field(fields, "timeline")?,
            position: field(fields, "position")?,
            published: field(fields, "published")?,
            transaction,
            open,
            acknowledged: field(fields, "acknowledged")?,
            live: field(fields, "live")?,
            run_id: field(fields, "run_id")?,
        }))
    }

    /// How long ago the last complete transaction was committed, by the clocks of Postgres and of this machine. With an
    /// engine at work it is about as old as the last heartbeat. `None` in a new epoch.
    pub fn age(&self) -> Option<Duration> {
        let committed = Duration::from_micros(self.transaction?.commit_ts.unsigned_abs());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(now.saturating_sub(committed))
    }

    /// All fields and their texts, as a new epoch writes them.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mark = self.transaction;
        let text = |value: Option<String>| value.unwrap_or_default();
        vec![
            ("epoch", self.epoch.id.to_string()),
            ("number", self.epoch.number.to_string()),
            ("base", self.epoch.base.to_string()),
            ("system_id", self.system_id.clone()),
            ("timeline", self.timeline.to_string()),
            ("position", self.position.to_string()),
            ("published", self.published.to_string()),
            ("lsn", text(mark.map(|mark| mark.lsn.to_string()))),
            (
                "end_lsn",
                mark.map_or(self.acknowledged, |mark| mark.end_lsn).to_string(),
            ),
            ("xid", text(mark.map(|mark| mark.xid.to_string()))),
            ("commit_ts", text(mark.map(|mark| mark.commit_ts.to_string()))),
            ("open", text(self.open.map(|open| open.to_string()))),
            ("acknowledged", self.acknowledged.to_string()),
            ("live", self.live.to_string()),
            ("run_id", self.run_id.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written() {
        let mut checkpoint = Checkpoint {
            epoch: Epoch {
                id: EpochId(0xabc),
                number: 3,
                base: 17,
            },
            system_id: "7000".into(),
            timeline: 1,
            position: StreamId { ms: 9, seq: 4 },
            published: StreamId { ms: 8, seq: 1 },
            transaction: Some(TransactionMark {
                lsn: 8.into(),
                end_lsn: 9.into(),
                xid: 5,
                commit_ts: -1,
            }),
            open: Some(OpenTransaction {
                lsn: 9.into(),
                xid: 6,
                commit_ts: 2,
            }),
            acknowledged: 7.into(),
            live: StreamId::ZERO,
            run_id: "r".into(),
        };
        let read = |checkpoint: &Checkpoint| {
            let fields = checkpoint
                .fields()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            Checkpoint::parse(&fields)
        };
        assert_eq!(read(&checkpoint), Ok(Some(checkpoint.clone())));
        (checkpoint.transaction, checkpoint.open) = (None, None);
        assert_eq!(read(&checkpoint), Ok(Some(checkpoint.clone())));
        assert_eq!(
            Checkpoint::parse(&HashMap::from([("writer".into(), "x".into())])),
            Ok(None)
        );
        assert!(Checkpoint::parse(&HashMap::from([("epoch".into(), "x".into())])).is_err());
    }
}
