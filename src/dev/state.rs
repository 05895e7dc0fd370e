//! Whether a server of this process runs, for those who follow it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

/// The state of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ServerState {
    pub state: Phase,
    /// Its process; `None` while there is none.
    pub pid: Option<u32>,
    /// When this state began, in milliseconds of Unix time.
    pub at: u64,
    /// How long the server was down before, in milliseconds; `None` for the first start.
    pub down_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It accepts connections.
    Up,
    Down,
}

/// Publishes the state of a server.
#[derive(Debug)]
pub struct StateSender {
    sender: watch::Sender<ServerState>,
    down_since: Option<Instant>,
}

impl StateSender {
    /// A server that has not started yet.
    pub fn new() -> Self {
        let state = ServerState {
            state: Phase::Down,
            pid: None,
            at: now_ms(),
            down_ms: None,
        };
        Self {
            sender: watch::Sender::new(state),
            down_since: None,
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<ServerState> {
        self.sender.subscribe()
    }

    pub fn up(&mut self, pid: Option<u32>) {
        let down_ms = self
            .down_since
            .take()
            .map(|since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.send(Phase::Up, pid, down_ms);
    }

    pub fn down(&mut self) {
        self.down_since.get_or_insert_with(Instant::now);
        self.send(Phase::Down, None, None);
    }

    fn send(&self, state: Phase, pid: Option<u32>, down_ms: Option<u64>) {
        let at = now_ms();
        self.sender.send_replace(ServerState {
            state,
            pid,
            at,
            down_ms,
        });
    }
}

impl Default for StateSender {
    fn default() -> Self {
        Self::new()
    }
}

/// Milliseconds of Unix time.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
