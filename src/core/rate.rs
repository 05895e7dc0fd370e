//! A rate for each key, as a token bucket in the memory of the process.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

/// Most keys that a rate remembers; beyond them the one that was used least recently begins with a full bucket again.
const KEYS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);

/// A rate for each key. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Rate<K: Hash + Eq> {
    /// When the bucket of each key is full again.
    full_at: Arc<Mutex<LruCache<K, Instant>>>,
    /// The time in which one token comes back.
    interval: Duration,
    /// The time in which an empty bucket becomes full.
    window: Duration,
}

impl<K: Hash + Eq> Rate<K> {
    /// So many at once, which come back one by one within a minute.
    pub fn per_minute(max: u32) -> Self {
        let window = Duration::from_secs(60);
        Self {
            full_at: Arc::new(Mutex::new(LruCache::new(KEYS_MAX))),
            interval: window / max.max(1),
            window,
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The time until there is one.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock();
        let full = full_at.get_or_insert_mut(key, || now);
        let next = (*full).max(now) + self.interval;
        let wait = next.saturating_duration_since(now + self.window);
        if wait.is_zero() {
            *full = next;
            return Ok(());
        }
        Err(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_bounded_and_come_back_one_by_one() {
        let rate = Rate::per_minute(6);
        let start = Instant::now();
        for _ in 0..6 {
            assert_eq!(rate.take_at("a", start), Ok(()));
        }
        assert_eq!(rate.take_at("a", start), Err(Duration::from_secs(10)));
        assert_eq!(rate.take_at("b", start), Ok(()));
        let later = start + Duration::from_secs(10);
        assert_eq!(rate.take_at("a", later), Ok(()));
        assert_eq!(rate.take_at("a", later), Err(Duration::from_secs(10)));
        assert_eq!(rate.take_at("a", start + Duration::from_secs(600)), Ok(()));
    }
}
