//! Work that costs a core for a while, on threads that leave precedence to requests.

use tokio::sync::oneshot;

/// The thread did not start, or the work panicked.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("cannot start a thread")]
    Start(#[from] std::io::Error),
    #[error("the work panicked")]
    Panicked,
}

/// Runs work on a new thread, whose cost is negligible beside the work. `niceness` is that of nice(2): under contention, 5
/// gets a third and 10 a tenth of a core that a request would get. Only Linux has priorities of threads. The work goes on
/// when the caller goes away.
///
/// # Errors
/// [`Failed`].
pub async fn run<T: Send + 'static>(
    name: &str,
    niceness: i32,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failed> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        lower_priority(niceness);
        // The caller may have gone.
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| Failed::Panicked)
}

#[cfg(target_os = "linux")]
fn lower_priority(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "thread priority not lowered");
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority(_: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_returns_its_value_and_a_panic_fails() {
        assert_eq!(run("work", 10, || 6 * 7).await.expect("a value"), 42);
        let failed = run("work", 10, || panic!("on purpose")).await;
        assert!(matches!(failed, Err::<(), _>(Failed::Panicked)));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_the_thread_of_the_work_has_low_priority() {
        let niceness = || rustix::process::getpriority_process(None).expect("a priority");
        let before = niceness();
        assert_eq!(run("work", 10, niceness).await.expect("a value"), before.max(10));
        assert_eq!(niceness(), before);
    }
}
