//! Whether the live tail has reached everything that this process has read.

use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use crate::live::tail::{ChangeListener, Freshness, Notice};
use crate::redis::store::Store;

/// Open while the tail is connected, fresh, and not behind a stream read of this process: then a value that the changes of
/// the tail keep consistent is not older than what a client has received.
#[derive(Debug, Clone)]
pub struct TailGate {
    freshness: watch::Receiver<Freshness>,
    freshness_bound: Duration,
    store: Store,
}

impl TailGate {
    pub fn new(freshness: watch::Receiver<Freshness>, freshness_bound: Duration, store: Store) -> Self {
        Self {
            freshness,
            freshness_bound,
            store,
        }
    }

    pub fn is_open(&self) -> bool {
        let freshness = *self.freshness.borrow();
        freshness.is_connected
            && freshness.is_within(self.freshness_bound)
            && freshness.position >= self.store.furthest()
    }
}

/// It must be the last of the listeners: the gate may open only when the others have dropped what they kept.
impl ChangeListener for TailGate {
    fn changed(&self, _tenant: &str, notice: &Notice, users: Option<&[Uuid]>) {
        if notice.op.is_break() || (notice.table.is_empty() && users.is_none()) {
            self.lost();
        }
    }

    fn lost(&self) {
        // A new epoch may restart the positions.
        self.store.forget_furthest();
    }
}
