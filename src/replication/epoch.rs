//! Whether replication continues where the checkpoint ends, or a new epoch must begin. Pure: the start of a session
//! gathers the facts.
//!
//! LSNs go backwards after a restore, after a failover to a standby that lagged, and on a new cluster. Redis would then
//! refuse each new entry as too old, and to treat that as "already there" would silently lose all changes. So any doubt
//! begins a new epoch: streams get a `reset` entry, devices take a snapshot.

use std::fmt;

use postgres_types::PgLsn;

use super::connection::SystemIdentity;
use crate::contract::checkpoint::{Checkpoint, OpenTransaction, TransactionMark};
use crate::decode::pgoutput::Begin;

/// The state of the server after `START_REPLICATION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub identity: SystemIdentity,
    /// The slot was just created.
    pub slot_created: bool,
    /// The confirmed position of the slot.
    pub confirmed: PgLsn,
    /// The timeline's history file, when the checkpoint is of another timeline.
    pub timeline_history: Option<String>,
}

/// Why a new epoch begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// Redis holds no checkpoint: this is the first start, or Redis was emptied.
    NoCheckpoint,
    /// The slot was missing, and changes were lost with it.
    SlotCreated,
    /// The server belongs to another cluster.
    OtherSystem {
        /// The checkpoint's.
        was: String,
        /// The server's.
        is: String,
    },
    /// The server's timeline forked before the checkpoint.
    TimelineForked {
        /// The checkpoint's.
        was: i32,
        /// The server's.
        is: i32,
    },
    /// The server's WAL ends before the last published change.
    WalEndsEarly {
        /// The server's end of WAL.
        end: PgLsn,
        /// The checkpoint.
        published: PgLsn,
    },
    /// Another client advanced the slot past changes that were never published.
    SlotAdvanced {
        confirmed: PgLsn,
        /// The last position that this replicator acknowledged.
        acknowledged: PgLsn,
    },
    /// Redis lost what it had reported as durable: it was restored from an older copy.
    RedisRewound {
        /// The last position that Redis holds.
        published: PgLsn,
        acknowledged: PgLsn,
    },
    /// The replay lacks the transaction that the checkpoint names.
    TransactionMissing(TransactionMark),
    /// The replay lacks the transaction whose first part is published.
    OpenTransactionMissing(OpenTransaction),
    /// Redis ran only parts of a transaction.
    TornTransaction(String),
}

impl Break {
    /// Every [`Self::kind`].
    pub const KINDS: [&str; 10] = [
        "no_checkpoint",
        "slot_created",
        "other_system",
        "timeline_forked",
        "wal_ends_early",
        "slot_advanced",
        "redis_rewound",
        "transaction_missing",
        "open_transaction_missing",
        "torn_transaction",
    ];

    /// The value of the label in metrics.
    pub fn kind(&self) -> &'static str {
        let [
            no_checkpoint,
            slot_created,
            other_system,
            timeline_forked,
            wal_ends_early,
            slot_advanced,
            redis_rewound,
            transaction_missing,
            open_transaction_missing,
            torn_transaction,
        ] = Self::KINDS;
        match self {
            Self::NoCheckpoint => no_checkpoint,
            Self::SlotCreated => slot_created,
            Self::OtherSystem { .. } => other_system,
            Self::TimelineForked { .. } => timeline_forked,
            Self::WalEndsEarly { .. } => wal_ends_early,
            Self::SlotAdvanced { .. } => slot_advanced,
            Self::RedisRewound { .. } => redis_rewound,
            Self::TransactionMissing(_) => transaction_missing,
            Self::OpenTransactionMissing(_) => open_transaction_missing,
            Self::TornTransaction(_) => torn_transaction,
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCheckpoint => {
                f.write_str("Redis holds no checkpoint: this is the first start, or Redis was emptied")
            }
            Self::SlotCreated => f.write_str("the replication slot was missing and has been recreated"),
            Self::OtherSystem { was, is } => write!(f, "Postgres is another cluster: system id {is}, was {was}"),
            Self::TimelineForked { was, is } => {
                write!(f, "timeline {is} forked from timeline {was} before the checkpoint")
            }
            Self::WalEndsEarly { end, published } => {
                write!(
                    f,
                    "WAL ends at {end}, before the published position {published}: an older copy was restored"
                )
            }
            Self::SlotAdvanced {
                confirmed,
                acknowledged,
            } => {
                write!(
                    f,
                    "the slot is confirmed at {confirmed}, beyond the acknowledged position {acknowledged}"
                )
            }
            Self::RedisRewound {
                published,
                acknowledged,
            } => {
                write!(
                    f,
                    "Redis holds changes up to {published} only, but {acknowledged} was acknowledged"
                )
            }
            Self::TransactionMissing(mark) => write!(
                f,
                "the write-ahead log no longer holds the published transaction {} at {}: an older copy was restored",
                mark.xid, mark.lsn
            ),
            Self::OpenTransactionMissing(open) => write!(
                f,
                "the write-ahead log no longer holds the transaction {} at {}, of which a part was published: an older \
                 copy was restored",
                open.xid, open.lsn
            ),
            Self::TornTransaction(cause) => write!(f, "Redis did not run a transaction atomically: {cause}"),
        }
    }
}

/// Compares the server with the checkpoint; gives what the replay must verify.
///
/// # Errors
/// The [`Break`] that requires a new epoch.
pub fn detect_break(server: &Server, checkpoint: Option<&Checkpoint>) -> Result<Replay, Break> {
    let checkpoint = checkpoint.ok_or(Break::NoCheckpoint)?;
    let number = checkpoint.epoch.number;
    if let Some(torn) = checkpoint.torn.as_ref().filter(|torn| torn.number == number) {
        return Err(Break::TornTransaction(torn.cause.clone()));
    }
    if checkpoint.system_id != server.identity.system_id {
        return Err(Break::OtherSystem {
            was: checkpoint.system_id.clone(),
            is: server.identity.system_id.clone(),
        });
    }
    if server.slot_created {
        return Err(Break::SlotCreated);
    }
    let end_lsn = checkpoint
        .transaction
        .map_or(checkpoint.acknowledged, |mark| mark.end_lsn);
    // Its commit record begins there, so the log must reach further.
    let open_end = checkpoint.open.map(|open| PgLsn::from(u64::from(open.lsn) + 1));
    let reached = open_end.map_or(end_lsn, |open_end| open_end.max(end_lsn));
    if checkpoint.timeline != server.identity.timeline {
        let switch = server
            .timeline_history
            .as_deref()
            .and_then(|history| switch_point(history, checkpoint.timeline));
        if switch.is_none_or(|switch| switch < reached) {
            return Err(Break::TimelineForked {
                was: checkpoint.timeline,
                is: server.identity.timeline,
            });
        }
    }
    if server.identity.wal_end < reached {
        return Err(Break::WalEndsEarly {
            end: server.identity.wal_end,
            published: reached,
        });
    }
    if server.confirmed > checkpoint.acknowledged {
        return Err(Break::SlotAdvanced {
            confirmed: server.confirmed,
            acknowledged: checkpoint.acknowledged,
        });
    }
    if end_lsn < checkpoint.acknowledged {
        return Err(Break::RedisRewound {
            published: end_lsn,
            acknowledged: checkpoint.acknowledged,
        });
    }
    Ok(Replay {
        expected: checkpoint.transaction.filter(|mark| server.confirmed <= mark.lsn),
        open: checkpoint.open,
        published: checkpoint.published.ms.saturating_sub(checkpoint.epoch.base).into(),
    })
}

/// Where a timeline ended, by the history file of a later one (Postgres chapter 26.3.6).
fn switch_point(history: &str, timeline: i32) -> Option<PgLsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let id: i32 = fields.next()?.parse().ok()?;
        let lsn: PgLsn = fields.next()?.parse().ok()?;
        (id == timeline).then_some(lsn)
    })
}

/// Verifies that a replay holds the transactions that the checkpoint names: the last complete one, and after it the one
/// whose first part is published. What a restored server holds in place of the latter would otherwise count as
/// published.
///
/// A restored copy of the data directory has the same system id, timeline and slot, and its new transactions can even
/// repeat an LSN and a transaction id; they cannot repeat the commit time too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    expected: Option<TransactionMark>,
    open: Option<OpenTransaction>,
    /// Transactions that commit below are published completely.
    published: PgLsn,
}

impl Replay {
    /// A replay with nothing to verify.
    pub fn free() -> Self {
        Self {
            expected: None,
            open: None,
            published: PgLsn::from(0),
        }
    }

    /// While this is true nothing may be acknowledged.
    pub fn is_unverified(&self) -> bool {
        self.expected.is_some() || self.open.is_some()
    }

    /// Verifies a transaction that begins.
    ///
    /// # Errors
    /// When the replay has passed an expected transaction that it does not hold.
    pub fn verify(&mut self, begin: &Begin) -> Result<(), Break> {
        let matches = |lsn, xid, commit_ts| begin.final_lsn == lsn && begin.xid == xid && begin.commit_ts == commit_ts;
        match (self.expected, self.open) {
            (Some(mark), _) if begin.final_lsn < mark.lsn => Ok(()),
            (Some(mark), _) if matches(mark.lsn, mark.xid, mark.commit_ts) => {
                self.expected = None;
                Ok(())
            }
            (Some(mark), _) => Err(Break::TransactionMissing(mark)),
            (None, Some(_)) if begin.final_lsn < self.published => Ok(()),
            (None, Some(open)) if matches(open.lsn, open.xid, open.commit_ts) => {
                self.open = None;
                Ok(())
            }
            (None, Some(open)) => Err(Break::OpenTransactionMissing(open)),
            (None, None) => Ok(()),
        }
    }
}

/// How far the IDs of an epoch lie above all that this Redis and this Postgres know of: a TiB of WAL. What a lost server
/// held beyond, or a torn batch has left behind, is far below. There is room for 2^23 epochs.
const EPOCH_GAP: u64 = 1 << 40;

/// The base that keeps stream IDs growing: 0 in the first epoch.
pub fn base_above(last_ms: u64, previous_base: u64, start: PgLsn) -> u64 {
    if last_ms == 0 && previous_base == 0 {
        return 0;
    }
    let start = u64::from(start);
    let known = last_ms.max(previous_base.saturating_add(start));
    known.saturating_add(EPOCH_GAP).saturating_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::checkpoint::Epoch;
    use crate::core::position::EpochId;
    use crate::core::position::StreamId;

    fn mark() -> TransactionMark {
        TransactionMark {
            lsn: 100.into(),
            end_lsn: 110.into(),
            xid: 7,
            commit_ts: 1,
        }
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            epoch: Epoch {
                id: EpochId(1),
                number: 1,
                base: 0,
            },
            system_id: "s".into(),
            timeline: 1,
            position: StreamId { ms: 100, seq: 1 },
            published: StreamId { ms: 100, seq: 1 },
            transaction: Some(mark()),
            open: None,
            seen: StreamId { ms: 100, seq: 1 },
            acknowledged: 90.into(),
            live: StreamId::ZERO,
            torn: None,
            run_id: "r".into(),
        }
    }

    fn server() -> Server {
        Server {
            identity: SystemIdentity {
                system_id: "s".into(),
                timeline: 1,
                wal_end: 200.into(),
            },
            slot_created: false,
            confirmed: 80.into(),
            timeline_history: None,
        }
    }

    #[test]
    fn restart_continues_and_expects_the_last_transaction() {
        let replay = detect_break(&server(), Some(&checkpoint())).unwrap();
        assert!(replay.is_unverified());
        // A confirmed position beyond the transaction will not replay it.
        let mut checkpoint = checkpoint();
        checkpoint.acknowledged = 110.into();
        let confirmed = Server {
            confirmed: 110.into(),
            ..server()
        };
        assert!(!detect_break(&confirmed, Some(&checkpoint)).unwrap().is_unverified());
    }

    #[test]
    fn each_break_is_detected() {
        assert_eq!(detect_break(&server(), None), Err(Break::NoCheckpoint));
        let created = Server {
            slot_created: true,
            ..server()
        };
        assert_eq!(detect_break(&created, Some(&checkpoint())), Err(Break::SlotCreated));
        let mut other = server();
        other.identity.system_id = "t".into();
        assert!(matches!(
            detect_break(&other, Some(&checkpoint())),
            Err(Break::OtherSystem { .. })
        ));
        let mut short = server();
        short.identity.wal_end = 105.into();
        assert!(matches!(
            detect_break(&short, Some(&checkpoint())),
            Err(Break::WalEndsEarly { .. })
        ));
        let advanced = Server {
            confirmed: 95.into(),
            ..server()
        };
        assert!(matches!(
            detect_break(&advanced, Some(&checkpoint())),
            Err(Break::SlotAdvanced { .. })
        ));
        let mut rewound = checkpoint();
        rewound.acknowledged = 150.into();
        assert!(matches!(
            detect_break(&server(), Some(&rewound)),
            Err(Break::RedisRewound { .. })
        ));
    }

    #[test]
    fn promoted_standby_continues_unless_it_lagged() {
        let promoted = |history: &str| {
            let mut server = server();
            server.identity.timeline = 2;
            server.timeline_history = Some(history.into());
            detect_break(&server, Some(&checkpoint()))
        };
        assert!(promoted("1\t0/6E\tno recovery target specified\n").is_ok());
        assert!(matches!(
            promoted("1\t0/6D\tno recovery target specified\n"),
            Err(Break::TimelineForked { .. })
        ));
        assert!(matches!(promoted(""), Err(Break::TimelineForked { .. })));
    }

    #[test]
    fn replay_without_the_checkpoint_transaction_is_a_break() {
        let begin = |lsn: u64, xid, commit_ts| Begin {
            final_lsn: lsn.into(),
            xid,
            commit_ts,
        };
        let expecting = || detect_break(&server(), Some(&checkpoint())).unwrap();
        let mut replay = expecting();
        assert_eq!(replay.verify(&begin(90, 3, 9)), Ok(()));
        assert_eq!(replay.verify(&begin(100, 7, 1)), Ok(()));
        assert!(!replay.is_unverified());
        assert_eq!(replay.verify(&begin(101, 8, 2)), Ok(()));
        for other in [begin(100, 7, 2), begin(100, 8, 1), begin(101, 7, 1)] {
            assert!(expecting().verify(&other).is_err());
        }
    }

    #[test]
    fn replay_without_the_partly_published_transaction_is_a_break() {
        let open = OpenTransaction {
            lsn: 130.into(),
            xid: 8,
            commit_ts: 2,
        };
        let mut checkpoint = checkpoint();
        checkpoint.open = Some(open);
        checkpoint.position = StreamId { ms: 130, seq: 4 };
        let begin = |lsn: u64, xid, commit_ts| Begin {
            final_lsn: lsn.into(),
            xid,
            commit_ts,
        };
        let replay = detect_break(&server(), Some(&checkpoint)).unwrap();
        let mut same = replay;
        for met in [begin(90, 3, 9), begin(100, 7, 1), begin(130, 8, 2), begin(150, 9, 3)] {
            assert!(same.is_unverified() || met.xid == 9);
            assert_eq!(same.verify(&met), Ok(()));
        }
        assert!(!same.is_unverified());
        // Small transactions in its place would count as published already.
        for other in [begin(120, 8, 2), begin(130, 8, 3), begin(130, 9, 2), begin(140, 8, 2)] {
            let mut replay = replay;
            assert_eq!(replay.verify(&begin(100, 7, 1)), Ok(()));
            assert_eq!(replay.verify(&other), Err(Break::OpenTransactionMissing(open)));
        }
        let mut short = server();
        short.identity.wal_end = 130.into();
        assert!(matches!(
            detect_break(&short, Some(&checkpoint)),
            Err(Break::WalEndsEarly { .. })
        ));
        // The first transaction of an epoch, with nothing complete before it.
        checkpoint.transaction = None;
        checkpoint.acknowledged = 110.into();
        checkpoint.published = StreamId { ms: 110, seq: 0 };
        let mut replay = detect_break(&server(), Some(&checkpoint)).unwrap();
        assert_eq!(replay.verify(&begin(100, 7, 1)), Ok(()));
        assert_eq!(
            replay.verify(&begin(110, 8, 2)),
            Err(Break::OpenTransactionMissing(open))
        );
    }

    #[test]
    fn epoch_base_leaves_a_gap_above_all_that_is_known() {
        assert_eq!(base_above(0, 0, 100.into()), 0);
        for (last_ms, previous_base, start, known) in [
            (100, 0, 101, 101),
            (100, 0, 100, 100),
            (1000, 50, 100, 1000),
            (0, 50, 100, 150),
        ] {
            let base = base_above(last_ms, previous_base, start.into());
            assert_eq!(base + start, known + EPOCH_GAP);
        }
    }
}
