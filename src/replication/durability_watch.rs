//! What a session follows of Redis' disk and replicas.

use std::time::Instant;

use postgres_types::PgLsn;
use tokio::sync::{mpsc, watch};

use crate::publish::aof::{self, Written};
use crate::publish::connection::Claim;
use crate::publish::durability::{Durability, Durable, StallWatch};

/// Follows what Redis has written to disk, and what its replicas have.
pub(super) struct DurabilityWatch {
    pub(super) state: Durability,
    /// Identity of the Redis process that the publisher writes to.
    pub(super) run_id: String,
    pub(super) written: watch::Sender<Written>,
    pub(super) readings: mpsc::Receiver<aof::Reading>,
    /// How many replicas must acknowledge.
    replicas_min: u64,
    /// How many did at the last reading; `None` before it, and if none are required.
    replicas: Option<u64>,
    stall: StallWatch,
    is_stalled: bool,
}

impl DurabilityWatch {
    pub(super) fn new(
        claim: &Claim,
        written: watch::Sender<Written>,
        readings: mpsc::Receiver<aof::Reading>,
        replicas_min: u64,
    ) -> Self {
        Self {
            state: Durability::new(claim.persistence, replicas_min > 0),
            run_id: claim.run_id.clone(),
            written,
            readings,
            replicas_min,
            replicas: None,
            stall: StallWatch::default(),
            is_stalled: false,
        }
    }

    /// How many replicas acknowledge; `None` if none are required, or before that is known.
    pub(super) fn replicas(&self) -> Option<u64> {
        self.replicas
    }

    /// Records how many replicas acknowledge; gives what that makes durable.
    pub(super) fn note_replicas(&mut self, reading: &aof::Reading) -> Option<Durable> {
        let (found, required) = (reading.replicas, self.replicas_min);
        if required == 0 {
            return None;
        }
        let before = self.replicas.replace(found);
        if found < required {
            if before.is_none_or(|before| before >= required) {
                tracing::warn!(
                    found,
                    required,
                    "too few replicas of Redis acknowledge; Postgres retains its log until more do"
                );
            }
            return None;
        }
        if before.is_some_and(|before| before < required) {
            tracing::info!(found, required, "enough replicas of Redis acknowledge");
        }
        let Written {
            published,
            acknowledged,
        } = reading.written;
        self.state.replicated(published, acknowledged)
    }

    /// Records how far publishing is, and what of that is durable.
    pub(super) fn note_progress(&mut self, published: PgLsn, durable: PgLsn, now: Instant) {
        self.is_stalled = self.stall.is_stalled(published, durable, now);
    }

    /// Why nothing has become durable for long.
    pub(super) fn problem(&self) -> Option<String> {
        if !self.is_stalled {
            return None;
        }
        let required = self.replicas_min;
        Some(match self.replicas.filter(|found| *found < required) {
            Some(found) => format!(
                "Redis accepts entries, but {found} of {required} required replicas acknowledge them, so Postgres \
                 retains its log; start the replicas, or lower `redis.replicas_min`"
            ),
            None => "Redis accepts entries, but does not write them to its append-only file; check its disk and \
                     `INFO persistence`"
                .to_owned(),
        })
    }
}
