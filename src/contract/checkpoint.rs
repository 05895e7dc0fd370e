//! The checkpoint: how far publishing is.
//!
//! [`Checkpoint`] is the whole hash, [`CheckpointUpdate`] what a batch changes, [`View`] and [`Published`] are the parts
//! that readers need. Only the publisher's own `EXEC` writes the hash, and each `EXEC` is guarded by `WATCH` on it: any
//! other write, even of the same value, makes the `EXEC` fail.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use postgres_types::PgLsn;

use crate::core::position::{EpochId, StreamId, TermId};
use crate::core::time::age_of;

const EPOCH: &str = "epoch";
const NUMBER: &str = "number";
const BASE: &str = "base";
const SYSTEM_ID: &str = "system_id";
const TIMELINE: &str = "timeline";
const POSITION: &str = "position";
const PUBLISHED: &str = "published";
const LSN: &str = "lsn";
const END_LSN: &str = "end_lsn";
const XID: &str = "xid";
const COMMIT_TS: &str = "commit_ts";
const OPEN: &str = "open";
const SEEN: &str = "seen";
const ACKNOWLEDGED: &str = "acknowledged";
const LIVE: &str = "live";
const TORN: &str = "torn";

/// Identity of the Redis process.
const RUN_ID: &str = "run_id";

/// The writer: the only session whose `EXEC` succeeds, and the identity of its term. It is there before the first epoch.
pub const WRITER: &str = "writer";

/// The number of its term.
const TERM: &str = "term";

/// `<writer> <groups> <stream ID>`: since when this writer, and those before it, kept the latest changes of memberships in these
/// groups. Writers of earlier versions leave it as it is.
pub const MEMBERSHIPS: &str = "memberships";

/// Since when the writer of a term keeps the latest changes of memberships.
pub fn memberships_since(value: Option<&str>, term: TermId) -> Option<StreamId> {
    let mut words = value?.split(' ');
    let (writer, _, since) = (words.next()?, words.next()?, words.next()?);
    (writer.parse() == Ok(term)).then(|| since.parse().ok())?
}

/// Names of its fields.
pub const FIELDS: [&str; 20] = [
    WRITER,
    TERM,
    MEMBERSHIPS,
    EPOCH,
    NUMBER,
    BASE,
    SYSTEM_ID,
    TIMELINE,
    POSITION,
    PUBLISHED,
    LSN,
    END_LSN,
    XID,
    COMMIT_TS,
    OPEN,
    SEEN,
    ACKNOWLEDGED,
    LIVE,
    TORN,
    RUN_ID,
];

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

/// A transaction, described so that a replay recognises it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionMark {
    /// Commit LSN.
    pub lsn: PgLsn,
    /// First LSN behind it.
    pub end_lsn: PgLsn,
    /// Transaction id, without epoch.
    pub xid: u32,
    /// Commit time, µs since 1970. A restored server can repeat LSN and xid, but not the time.
    pub commit_ts: i64,
}

/// A transaction of which only the first changes are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Commit LSN.
    pub lsn: PgLsn,
    /// Transaction id, without epoch.
    pub xid: u32,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
}

impl fmt::Display for OpenTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.lsn, self.xid, self.commit_ts)
    }
}

impl OpenTransaction {
    /// Reads what [`fmt::Display`] wrote.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            lsn: parts.next()?.parse().ok()?,
            xid: parts.next()?.parse().ok()?,
            commit_ts: parts.next()?.parse().ok()?,
        })
    }
}

/// Longest cause that is kept of a torn transaction.
const CAUSE_CHARS_MAX: usize = 500;

/// Redis ran only parts of a transaction: a new epoch must follow this one, whichever engine begins it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The number of the epoch in which that happened.
    pub number: i64,
    /// What Redis answered.
    pub cause: String,
}

impl Torn {
    pub fn new(number: i64, cause: &str) -> Self {
        let cause = cause.chars().take(CAUSE_CHARS_MAX).collect();
        Self { number, cause }
    }

    /// Reads what [`fmt::Display`] wrote.
    fn parse(text: &str) -> Option<Self> {
        let (number, cause) = text.split_once(' ')?;
        Some(Self {
            number: number.parse().ok()?,
            cause: cause.to_owned(),
        })
    }
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.cause)
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
    /// Up to here the writer has read what became of each entry; behind it, one may have failed unnoticed.
    pub seen: StreamId,
    /// What Postgres may have been sent as acknowledged.
    pub acknowledged: PgLsn,
    /// ID of the last entry of the live stream.
    pub live: StreamId,
    /// A transaction of which Redis ran only parts.
    pub torn: Option<Torn>,
    /// Identity of the Redis process at the writer's claim.
    pub run_id: String,
}

/// A malformed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field} of the checkpoint is {value:?}: another program wrote to it")]
pub struct CheckpointError {
    field: &'static str,
    value: String,
}

impl Checkpoint {
    /// Reads the fields; `None` when there is no epoch yet (the writer's name alone is no checkpoint).
    pub fn parse(fields: &HashMap<String, String>) -> Result<Option<Self>, CheckpointError> {
        fn field<T: FromStr>(fields: &HashMap<String, String>, name: &'static str) -> Result<T, CheckpointError> {
            let value = fields.get(name).map(String::as_str).unwrap_or_default();
            value.parse().map_err(|_| CheckpointError {
                field: name,
                value: value.to_owned(),
            })
        }
        if !fields.contains_key(EPOCH) {
            return Ok(None);
        }
        let transaction = if fields.get(XID).is_some_and(|xid| !xid.is_empty()) {
            Some(TransactionMark {
                lsn: field(fields, LSN)?,
                end_lsn: field(fields, END_LSN)?,
                xid: field(fields, XID)?,
                commit_ts: field(fields, COMMIT_TS)?,
            })
        } else {
            None
        };
        let open = match fields.get(OPEN).map_or("", String::as_str) {
            "" => None,
            text => Some(OpenTransaction::parse(text).ok_or_else(|| CheckpointError {
                field: OPEN,
                value: text.to_owned(),
            })?),
        };
        let torn = match fields.get(TORN).map_or("", String::as_str) {
            "" => None,
            text => Some(Torn::parse(text).ok_or_else(|| CheckpointError {
                field: TORN,
                value: text.to_owned(),
            })?),
        };
        Ok(Some(Self {
            epoch: Epoch {
                id: field(fields, EPOCH)?,
                number: field(fields, NUMBER)?,
                base: field(fields, BASE)?,
            },
            system_id: field(fields, SYSTEM_ID)?,
            timeline: field(fields, TIMELINE)?,
            position: field(fields, POSITION)?,
            published: field(fields, PUBLISHED)?,
            transaction,
            open,
            // Versions before the field was there read the replies, too, and wrote nothing of it.
            seen: field(fields, if fields.contains_key(SEEN) { SEEN } else { POSITION })?,
            acknowledged: field(fields, ACKNOWLEDGED)?,
            live: field(fields, LIVE)?,
            torn,
            run_id: field(fields, RUN_ID)?,
        }))
    }

    /// How long ago the last complete transaction was committed, by the clocks of Postgres and of this machine. While an
    /// engine publishes, it is about as old as the last heartbeat. `None` in a new epoch.
    pub fn age(&self) -> Option<Duration> {
        Some(age_of(self.transaction?.commit_ts))
    }

    /// All fields and their texts, as a new epoch writes them.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mark = self.transaction;
        let text = |value: Option<String>| value.unwrap_or_default();
        vec![
            (EPOCH, self.epoch.id.to_string()),
            (NUMBER, self.epoch.number.to_string()),
            (BASE, self.epoch.base.to_string()),
            (SYSTEM_ID, self.system_id.clone()),
            (TIMELINE, self.timeline.to_string()),
            (POSITION, self.position.to_string()),
            (PUBLISHED, self.published.to_string()),
            (LSN, text(mark.map(|mark| mark.lsn.to_string()))),
            (END_LSN, mark.map_or(self.acknowledged, |mark| mark.end_lsn).to_string()),
            (XID, text(mark.map(|mark| mark.xid.to_string()))),
            (COMMIT_TS, text(mark.map(|mark| mark.commit_ts.to_string()))),
            (OPEN, text(self.open.map(|open| open.to_string()))),
            (SEEN, self.seen.to_string()),
            (ACKNOWLEDGED, self.acknowledged.to_string()),
            (LIVE, self.live.to_string()),
            (TORN, text(self.torn.as_ref().map(ToString::to_string))),
            (RUN_ID, self.run_id.clone()),
        ]
    }
}

/// What a batch changes in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointUpdate {
    /// What Postgres may be sent as acknowledged once this is durable.
    pub acknowledged: PgLsn,
    /// Up to where the replies of the batches before were read.
    pub seen: StreamId,
    /// The last entry of the batch, and the transaction inside of which it lies, if it does: a replay from there must
    /// recognise it.
    pub position: Option<(StreamId, Option<OpenTransaction>)>,
    /// The last change of the last complete transaction in the batch.
    pub complete: Option<(StreamId, TransactionMark)>,
    /// ID of the batch's live entry.
    pub live: Option<StreamId>,
}

impl CheckpointUpdate {
    /// The fields that change, and their texts.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            (ACKNOWLEDGED, self.acknowledged.to_string()),
            (SEEN, self.seen.to_string()),
        ];
        if let Some((position, open)) = self.position {
            fields.push((POSITION, position.to_string()));
            fields.push((OPEN, open.map(|open| open.to_string()).unwrap_or_default()));
        }
        if let Some((published, mark)) = self.complete {
            fields.push((PUBLISHED, published.to_string()));
            fields.push((LSN, mark.lsn.to_string()));
            fields.push((END_LSN, mark.end_lsn.to_string()));
            fields.push((XID, mark.xid.to_string()));
            fields.push((COMMIT_TS, mark.commit_ts.to_string()));
        }
        if let Some(live) = self.live {
            fields.push((LIVE, live.to_string()));
        }
        fields
    }
}

/// The part of the checkpoint that readers of streams need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The current epoch.
    pub epoch: EpochId,
    /// Its base.
    pub base: u64,
    /// Last entry written.
    pub position: StreamId,
    /// Last complete transaction.
    pub published: StreamId,
    /// The term of the writer.
    pub term: TermId,
    /// The timeline of the Postgres server that is published.
    pub timeline: i32,
}

impl View {
    /// The fields of [`View::parse`].
    pub const FIELDS: [&'static str; 6] = [EPOCH, BASE, POSITION, PUBLISHED, WRITER, TIMELINE];

    /// Reads the values of [`View::FIELDS`]; `None` before the first epoch, or when one is malformed.
    pub fn parse(values: &[Option<String>]) -> Option<Self> {
        Some(Self {
            epoch: value(values, 0)?,
            base: value(values, 1)?,
            position: value(values, 2)?,
            published: value(values, 3)?,
            // Earlier versions named writers otherwise.
            term: value(values, 4).unwrap_or(TermId::EARLIER_VERSIONS),
            timeline: value(values, 5)?,
        })
    }

    /// The commit LSN of the last entry's transaction.
    pub fn lsn(&self) -> PgLsn {
        self.position.ms.saturating_sub(self.base).into()
    }
}

/// The part of the checkpoint that shows whether a position in the WAL is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// End of the last complete transaction.
    pub end_lsn: Option<PgLsn>,
    /// Last entry written, and the commit LSN of its transaction.
    pub position: Option<(StreamId, PgLsn)>,
}

impl Published {
    /// The fields of [`Published::parse`].
    pub const FIELDS: [&'static str; 3] = [END_LSN, BASE, POSITION];

    /// Reads the values of [`Published::FIELDS`].
    pub fn parse(values: &[Option<String>]) -> Self {
        let base: Option<u64> = value(values, 1);
        let position: Option<StreamId> = value(values, 2);
        Self {
            end_lsn: value(values, 0),
            position: position
                .zip(base)
                .map(|(position, base)| (position, PgLsn::from(position.ms.saturating_sub(base)))),
        }
    }
}

fn value<T: FromStr>(values: &[Option<String>], index: usize) -> Option<T> {
    values.get(index)?.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids() -> impl Strategy<Value = StreamId> {
        any::<(u64, u64)>().prop_map(|(ms, seq)| StreamId { ms, seq })
    }

    fn marks() -> impl Strategy<Value = TransactionMark> {
        any::<(u64, u64, u32, i64)>().prop_map(|(lsn, end_lsn, xid, commit_ts)| TransactionMark {
            lsn: lsn.into(),
            end_lsn: end_lsn.into(),
            xid,
            commit_ts,
        })
    }

    fn open_transactions() -> impl Strategy<Value = OpenTransaction> {
        any::<(u64, u32, i64)>().prop_map(|(lsn, xid, commit_ts)| OpenTransaction {
            lsn: lsn.into(),
            xid,
            commit_ts,
        })
    }

    fn checkpoints() -> impl Strategy<Value = Checkpoint> {
        let epoch = any::<(u64, i64, u64)>().prop_map(|(id, number, base)| Epoch {
            id: EpochId(id),
            number,
            base,
        });
        let transactions = (prop::option::of(marks()), prop::option::of(open_transactions()));
        (
            epoch,
            "[0-9]{1,20}",
            any::<i32>(),
            [ids(), ids(), ids(), ids()],
            transactions,
            any::<u64>(),
            prop::option::of((any::<i64>(), ".{0,40}").prop_map(|(number, cause)| Torn::new(number, &cause))),
            "[0-9a-f]{40}",
        )
            .prop_map(
                |(
                    epoch,
                    system_id,
                    timeline,
                    [position, published, live, seen],
                    (transaction, open),
                    acknowledged,
                    torn,
                    run_id,
                )| {
                    Checkpoint {
                        epoch,
                        system_id,
                        timeline,
                        position,
                        published,
                        transaction,
                        open,
                        seen,
                        acknowledged: acknowledged.into(),
                        live,
                        torn,
                        run_id,
                    }
                },
            )
    }

    fn hash(fields: Vec<(&'static str, String)>) -> HashMap<String, String> {
        fields.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
    }

    proptest! {
        #[test]
        fn checkpoint_reads_as_written_and_updated(
            checkpoint in checkpoints(),
            acknowledged in any::<u64>(),
            seen in ids(),
            position in prop::option::of((ids(), prop::option::of(open_transactions()))),
            complete in prop::option::of((ids(), marks())),
            live in prop::option::of(ids()),
        ) {
            let mut written = hash(checkpoint.fields());
            let term = TermId(acknowledged);
            written.insert(WRITER.to_owned(), term.to_string());
            prop_assert_eq!(Checkpoint::parse(&written), Ok(Some(checkpoint.clone())));

            let update = CheckpointUpdate { acknowledged: acknowledged.into(), seen, position, complete, live };
            written.extend(hash(update.fields()));
            prop_assert!(written.keys().all(|name| FIELDS.contains(&name.as_str())));
            let updated = Checkpoint {
                acknowledged: update.acknowledged,
                seen,
                position: position.map_or(checkpoint.position, |(position, _)| position),
                open: position.map_or(checkpoint.open, |(_, open)| open),
                published: complete.map_or(checkpoint.published, |(published, _)| published),
                transaction: complete.map_or(checkpoint.transaction, |(_, mark)| Some(mark)),
                live: live.unwrap_or(checkpoint.live),
                ..checkpoint.clone()
            };
            prop_assert_eq!(Checkpoint::parse(&written), Ok(Some(updated.clone())));

            let view = View::parse(&View::FIELDS.map(|name| written.get(name).cloned()));
            prop_assert_eq!(view, Some(View {
                epoch: updated.epoch.id,
                base: updated.epoch.base,
                position: updated.position,
                published: updated.published,
                term,
                timeline: updated.timeline,
            }));
            prop_assert_eq!(view.map(|view| view.lsn()), Some(updated.position.ms.saturating_sub(updated.epoch.base).into()));
            let published = Published::parse(&Published::FIELDS.map(|name| written.get(name).cloned()));
            let end_lsn = complete.map(|(_, mark)| mark.end_lsn);
            let end_lsn = end_lsn.or(checkpoint.transaction.map(|mark| mark.end_lsn)).unwrap_or(checkpoint.acknowledged);
            prop_assert_eq!(published.end_lsn, Some(end_lsn));
            let commit_lsn = PgLsn::from(updated.position.ms.saturating_sub(updated.epoch.base));
            prop_assert_eq!(published.position, Some((updated.position, commit_lsn)));
        }
    }

    #[test]
    fn checkpoint_without_an_epoch_is_none_and_a_malformed_one_an_error() {
        assert_eq!(
            Checkpoint::parse(&HashMap::from([(WRITER.into(), "x".into())])),
            Ok(None)
        );
        assert!(Checkpoint::parse(&HashMap::from([(EPOCH.into(), "x".into())])).is_err());
        assert_eq!(View::parse(&[None, None, None, None, None, None]), None);
    }
}
