//! What the demo's page may do to the servers, as requests to their supervisor.

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::dev::state::ServerState;

/// Requests that may wait for the supervisor.
const REQUESTS_MAX: usize = 8;

/// A request, and where its result goes.
#[derive(Debug)]
pub enum Request {
    /// Kills the engine; the result is its process id, `None` while it does not run.
    KillEngine(oneshot::Sender<Option<u32>>),
    /// Restarts the private Redis; the result is the time that this took, in milliseconds.
    RestartRedis(oneshot::Sender<u64>),
}

/// The states of the servers, and a queue to their supervisor. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Control {
    pub engine: watch::Receiver<ServerState>,
    pub redis: watch::Receiver<ServerState>,
    requests: mpsc::Sender<Request>,
}

impl Control {
    /// The control, and the requests that the supervisor receives.
    pub fn new(
        engine: watch::Receiver<ServerState>,
        redis: watch::Receiver<ServerState>,
    ) -> (Self, mpsc::Receiver<Request>) {
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let control = Self {
            engine,
            redis,
            requests,
        };
        (control, received)
    }

    pub(super) async fn kill_engine(&self) -> Result<Option<u32>> {
        self.ask(Request::KillEngine).await
    }

    pub(super) async fn restart_redis(&self) -> Result<u64> {
        self.ask(Request::RestartRedis).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (sender, result) = oneshot::channel();
        let request = request(sender);
        self.requests.send(request).await.context("the servers are stopping")?;
        result.await.context("the servers are stopping")
    }
}
