//! A clock that stands still: `advance` alone lets time pass.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Time>);

#[derive(Debug, Default)]
struct Time {
    now: Duration,
    /// Whom to wake, and when.
    sleepers: Vec<(Duration, oneshot::Sender<()>)>,
}

impl Clock {
    /// Ends when so much time has passed.
    pub(crate) fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let (waker, woken) = oneshot::channel();
        let mut time = self.0.lock();
        let end = time.now + duration;
        time.sleepers.push((end, waker));
        async move {
            woken.await.ok();
        }
    }

    /// Moves to the next end of a sleep within this time, and ends it; returns how much of the time is left. `None`: there is
    /// none, and all of it has passed.
    pub(crate) fn pass(&self, most: Duration) -> Option<Duration> {
        let mut time = self.0.lock();
        time.sleepers.retain(|(_, waker)| !waker.is_closed());
        let until = time.now + most;
        let ends = time.sleepers.iter().map(|(end, _)| *end).enumerate();
        let Some((at, end)) = ends.filter(|(_, end)| *end <= until).min_by_key(|(_, end)| *end) else {
            time.now = until;
            return None;
        };
        time.now = time.now.max(end);
        let (_, waker) = time.sleepers.remove(at);
        waker.send(()).ok();
        Some(until.saturating_sub(time.now))
    }
}
