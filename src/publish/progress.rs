//! Progress through the log: four positions that must never be confused. Pure.

use postgres_types::PgLsn;

/// End LSNs of whole transactions, each at most the one before it; none goes back within one `START_REPLICATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    received: PgLsn,
    published: PgLsn,
    durable: PgLsn,
    acknowledged: PgLsn,
}

impl Progress {
    /// All four at the slot's confirmed position.
    pub fn starting_at(confirmed: PgLsn) -> Self {
        Self {
            received: confirmed,
            published: confirmed,
            durable: confirmed,
            acknowledged: confirmed,
        }
    }

    /// Records a transaction that was read completely.
    pub fn receive(&mut self, end_lsn: PgLsn) {
        self.received = self.received.max(end_lsn);
    }

    /// Records an `EXEC` that has written everything up to here.
    pub fn publish(&mut self, end_lsn: PgLsn) {
        self.published = self.published.max(end_lsn.min(self.received));
    }

    /// Records that Redis can no longer lose anything up to here.
    pub fn make_durable(&mut self, end_lsn: PgLsn) {
        self.durable = self.durable.max(end_lsn.min(self.published));
    }

    /// Allows to confirm up to here to Postgres: the checkpoint on disk allows it.
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

    /// Confirmed to Postgres, which may remove it.
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
