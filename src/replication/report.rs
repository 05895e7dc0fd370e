//! What a replicator reports about itself: [`Report`] is the writing side, [`ReplicationStatus`] the reading side.

use std::sync::Arc;

use tokio::sync::watch;

use super::ledger::Ledger;
use super::slot::SlotSample;
use crate::config;
use crate::core::position::EpochId;
use crate::publish::progress::Progress;
use crate::telemetry::metrics::Metrics;

/// What a replicator does at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicatorState {
    /// It connects.
    Starting,
    /// Another engine reads from the slot; this one takes over when that engine stops.
    Waiting,
    /// It follows the write-ahead log.
    Streaming {
        epoch: EpochId,
        /// The epoch's number.
        number: i64,
        /// How many streams are stopped.
        stopped_streams: usize,
        progress: Progress,
        /// How many replicas of Redis acknowledge; `None` if none are required, or before that is known.
        replicas: Option<u64>,
        /// What is wrong with Redis at the moment.
        problem: Option<String>,
    },
    /// The last session failed; another starts soon.
    Failed(String),
}

impl ReplicatorState {
    pub fn is_streaming(&self) -> bool {
        matches!(self, Self::Streaming { .. })
    }
}

/// Where a replicator reports.
#[derive(Debug)]
pub struct Report {
    state: watch::Sender<ReplicatorState>,
    /// Progress of this session or the one before; `None` when another engine may have published since.
    pub progress: watch::Sender<Option<Progress>>,
    pub sample: watch::Sender<Option<SlotSample>>,
    /// Tables that are not published with the identity that they need, a few of them.
    pub uncovered: watch::Sender<Vec<String>>,
    /// What was written to streams.
    pub ledger: Arc<Ledger>,
    pub metrics: Arc<Metrics>,
}

/// The last reports of a replicator.
#[derive(Debug, Clone)]
pub struct ReplicationStatus {
    pub state: watch::Receiver<ReplicatorState>,
    pub progress: watch::Receiver<Option<Progress>>,
    pub sample: watch::Receiver<Option<SlotSample>>,
    /// Tables that are not published with the identity that they need, a few of them.
    pub uncovered: watch::Receiver<Vec<String>>,
}

/// How many bytes of the log each stage is behind its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Not read from Postgres.
    pub received: u64,
    /// Not in Redis' memory.
    pub published: u64,
    /// Not on Redis' disk.
    pub durable: u64,
    /// Not confirmed to Postgres.
    pub acknowledged: u64,
}

impl Report {
    pub fn new(metrics: Arc<Metrics>, settings: &config::Streams) -> (Self, ReplicationStatus) {
        let report = Self {
            state: watch::Sender::new(ReplicatorState::Starting),
            progress: watch::Sender::new(None),
            sample: watch::Sender::new(None),
            uncovered: watch::Sender::new(Vec::new()),
            ledger: Arc::new(Ledger::new(settings, metrics.clone())),
            metrics,
        };
        let status = ReplicationStatus {
            state: report.state.subscribe(),
            progress: report.progress.subscribe(),
            sample: report.sample.subscribe(),
            uncovered: report.uncovered.subscribe(),
        };
        (report, status)
    }

    pub fn state(&self) -> watch::Ref<'_, ReplicatorState> {
        self.state.borrow()
    }

    pub fn set_state(&self, state: ReplicatorState) {
        self.state.send_replace(state);
    }
}

impl ReplicationStatus {
    /// How far each stage was behind at the last heartbeat; `None` before this replicator has followed the log.
    pub fn lag(&self) -> Option<Lag> {
        let progress = (*self.progress.borrow())?;
        let sample = self.sample.borrow();
        let sample = sample.as_ref()?;
        Some(Lag {
            received: sample.bytes_behind(progress.received()),
            published: sample.bytes_behind(progress.published()),
            durable: sample.bytes_behind(progress.durable()),
            acknowledged: sample.bytes_behind(progress.acknowledged()),
        })
    }
}
