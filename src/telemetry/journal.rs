//! What has just happened, for the console: how long transactions took to be published, and the steps of rows on their way to
//! devices. Steps are made only while they have a receiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use postgres_types::PgLsn;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::core::position::StreamId;

/// Latencies kept between two reads; of more, these first ones stand for all.
const LATENCIES_MAX: usize = 4096;

/// Steps that wait for a follower; a slower one misses some.
const STEPS_MAX: usize = 4096;

/// The steps and latencies of a process. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    latencies: Mutex<Vec<f32>>,
    steps: broadcast::Sender<Step>,
    /// Read without a lock: a step may be one of 100,000 in a second.
    followers: AtomicUsize,
}

/// A step of changes on their way, and when it happened, µs since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub kind: StepKind,
    pub at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// All transactions that end here or before are in Redis.
    Published(PgLsn),
    /// All transactions that end here or before are on Redis' disk.
    Durable(PgLsn),
    /// A reader came to know of changes.
    Reader(Arc<ReaderStep>),
}

/// A step to one reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderStep {
    pub tenant: String,
    pub user: Uuid,
    /// `None` for a web user.
    pub device: Option<String>,
    pub progress: ReaderProgress,
}

/// What happened, and to which changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderProgress {
    /// A live stream sent the event of the change of this ID.
    Notified(StreamId),
    /// A batch with the changes after the first ID, up to the second.
    Delivered(StreamId, StreamId),
    /// The device has stored what a batch brought: the changes after the first ID, up to the second.
    Acknowledged(StreamId, StreamId),
}

impl ReaderProgress {
    /// Whether it is about the change of this ID.
    pub fn covers(self, id: StreamId) -> bool {
        match self {
            Self::Notified(of) => of == id,
            Self::Delivered(after, last) | Self::Acknowledged(after, last) => after < id && id <= last,
        }
    }

    /// The name in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Notified(_) => "notified",
            Self::Delivered(..) => "delivered",
            Self::Acknowledged(..) => "acknowledged",
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self(Arc::new(Shared {
            latencies: Mutex::default(),
            steps: broadcast::Sender::new(STEPS_MAX),
            followers: AtomicUsize::new(0),
        }))
    }
}

impl Journal {
    /// Adds how long a transaction took from its commit to its streams.
    pub fn latency(&self, after: Duration) {
        let mut latencies = self.0.latencies.lock();
        if latencies.len() < LATENCIES_MAX {
            latencies.push(after.as_secs_f32());
        }
    }

    /// The latencies since the last call, in seconds.
    pub fn take_latencies(&self) -> Vec<f32> {
        std::mem::take(&mut self.0.latencies.lock())
    }

    /// Notes a step, if anybody follows.
    pub fn note(&self, step: impl FnOnce() -> Step) {
        if self.0.followers.load(Ordering::Relaxed) > 0 {
            // It fails only when the last follower has just left.
            let _ = self.0.steps.send(step());
        }
    }

    /// Follows the steps from now on.
    pub fn follow(&self) -> StepReceiver {
        self.0.followers.fetch_add(1, Ordering::Relaxed);
        StepReceiver {
            steps: self.0.steps.subscribe(),
            journal: self.clone(),
        }
    }
}

/// Receives steps until it is dropped.
#[derive(Debug)]
pub struct StepReceiver {
    steps: broadcast::Receiver<Step>,
    journal: Journal,
}

impl StepReceiver {
    /// The next step; `None` if some were missed. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Step> {
        match self.steps.recv().await {
            Ok(step) => Some(step),
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            // The journal lives as long as its follower.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for StepReceiver {
    fn drop(&mut self) {
        self.journal.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> StreamId {
        StreamId { ms, seq: 0 }
    }

    #[test]
    fn progress_covers_what_is_after_its_start_up_to_its_end() {
        let covered = |progress: ReaderProgress| [1, 2, 3, 4].map(|ms| progress.covers(id(ms)));
        assert_eq!(covered(ReaderProgress::Notified(id(2))), [false, true, false, false]);
        assert_eq!(
            covered(ReaderProgress::Delivered(id(1), id(3))),
            [false, true, true, false]
        );
    }

    #[tokio::test]
    async fn steps_are_made_for_followers_only() {
        let journal = Journal::default();
        let step = Step {
            kind: StepKind::Published(7.into()),
            at: 0,
        };
        journal.note(|| unreachable!("there is no receiver"));
        let mut follower = journal.follow();
        journal.note(|| step.clone());
        assert_eq!(follower.next().await, Some(step));
        drop(follower);
        journal.note(|| unreachable!("there is no receiver any longer"));
    }
}
