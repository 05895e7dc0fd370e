//! Processor time for long request bodies, which any client may send: few are inflated or parsed at once, others wait.
//!
//! Each costs a core for a while. If all ran at once, they would leave the requests of others a small share of the machine.
//! A body that waits holds its bytes, so that [`super::memory`] bounds how many wait, and the time limit of requests how long.

use std::sync::{Arc, LazyLock};

use tokio::sync::Semaphore;

use super::error::Error;

/// All cores but one, at least one.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(cores.saturating_sub(1).max(1)))
});

/// Runs CPU-bound work outside the async runtime, when it has its turn.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let turn = TURNS.clone().acquire_owned().await;
    let turn = turn.map_err(|_| Error::internal("the line of long bodies is closed"))?;
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        // Held until here also when the client has gone: the core was busy.
        drop(turn);
        result
    });
    let done = done.await;
    done.map_err(|error| Error::internal(format!("reading a long body failed: {error}")))
}
