//! How far the log has come: four positions that must never be confused. Pure.

use postgres_types::PgLsn;

/// End LSNs of whole transactions, each at most the one before it, none ever going back within one
/// `START_REPLICATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    received: PgLsn,
    published: PgLsn,
    durable: PgLsn,
    acknowledged: PgLsn,
}

impl Progress {
    /// All four stand where the slot is confirmed.
    pub fn starting_at(confirmed: PgLsn) -> Self {
        Self {
            received: confirmed,
            published: confirmed,
            durable: confirmed,
            acknowledged: confirmed,
        }
    }

    /// A transaction was read to its end.
    pub fn receive(&mut self, end_lsn: PgLsn) {
        self.received = self.received.max(end_lsn);
    }

    /// An `EXEC` that holds all up to here has succeeded.
    pub fn publish(&mut self, end_lsn: PgLsn) {
        self.published = self.published.max(end_lsn.min(self.received));
    }

    /// Redis can no longer lose what it holds up to here.
    pub fn make_durable(&mut self, end_lsn: PgLsn) {
        self.durable = self.durable.max(end_lsn.min(self.published));
    }

    /// Postgres may be told: the checkpoint says so durably.
    pub fn acknowledge(&mut self, end_lsn: PgLsn) {
        self.acknowledged = self.acknowledged.max(end_lsn.min(self.durable));
    }

    /// Read from Postgres.
    pub fn received(&self) -> PgLsn {
        self.received
    }

    /// In Redis' memory.
    pub fn published(&self) -> PgLsn {
        self.published
    }

    /// On Redis' disk.
    pub fn durable(&self) -> PgLsn {
        self.durable
    }

    /// Confirmed to Postgres, which may forget it.
    pub fn acknowledged(&self) -> PgLsn {
        self.acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_holds_and_nothing_goes_back(steps in proptest::collection::vec((0_u8..4, 0_u64..1000), 0..100)) {
            let mut progress = Progress::starting_at(100.into());
            for (step, lsn) in steps {
                let before = progress;
                match step {
                    0 => progress.receive(lsn.into()),
                    1 => progress.publish(lsn.into()),
                    2 => progress.make_durable(lsn.into()),
                    _ => progress.acknowledge(lsn.into()),
                }
                prop_assert!(progress.acknowledged <= progress.durable);
                prop_assert!(progress.durable <= progress.published);
                prop_assert!(progress.published <= progress.received);
                prop_assert!(progress.received >= before.received && progress.published >= before.published);
                prop_assert!(progress.durable >= before.durable && progress.acknowledged >= before.acknowledged);
            }
        }
    }
}
