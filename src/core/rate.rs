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
        Self::of(window / max.max(1), window)
    }

    /// So many tokens a second; an empty bucket becomes full within the window.
    pub fn per_second(tokens: u32, window: Duration) -> Self {
        let interval = Duration::from_secs(1) / tokens.max(1);
        Self::of(interval, window.max(interval))
    }

    fn of(interval: Duration, window: Duration) -> Self {
        Self {
            full_at: Arc::new(Mutex::new(LruCache::new(KEYS_MAX))),
            interval,
            window,
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The time until there is one.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        self.take_many(key, 1)
    }

    /// Takes so many tokens, or all of a full bucket if that has fewer.
    ///
    /// # Errors
    /// The time until there are so many; none is taken.
    pub fn take_many(&self, key: K, tokens: u32) -> Result<(), Duration> {
        self.take_at(key, tokens, Instant::now())
    }

    fn take_at(&self, key: K, tokens: u32, now: Instant) -> Result<(), Duration> {
        let cost = self.interval.saturating_mul(tokens).min(self.window);
        let mut full_at = self.full_at.lock();
        let full = full_at.get_or_insert_mut(key, || now);
        let next = (*full).max(now) + cost;
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
            assert_eq!(rate.take_at("a", 1, start), Ok(()));
        }
        assert_eq!(rate.take_at("a", 1, start), Err(Duration::from_secs(10)));
        assert_eq!(rate.take_at("b", 1, start), Ok(()));
        let later = start + Duration::from_secs(10);
        assert_eq!(rate.take_at("a", 1, later), Ok(()));
        assert_eq!(rate.take_at("a", 1, later), Err(Duration::from_secs(10)));
        assert_eq!(rate.take_at("a", 1, start + Duration::from_secs(600)), Ok(()));
    }

    #[test]
    fn tokens_of_a_request_are_taken_together_or_not_at_all() {
        let rate = Rate::per_second(10, Duration::from_secs(2));
        let start = Instant::now();
        assert_eq!(rate.take_at("a", 15, start), Ok(()));
        assert_eq!(rate.take_at("a", 15, start), Err(Duration::from_secs(1)));
        assert_eq!(rate.take_at("a", 5, start), Ok(()));
        assert_eq!(rate.take_at("a", 1, start), Err(Duration::from_millis(100)));
        // More than a bucket holds is all that it holds.
        assert_eq!(rate.take_at("b", 1000, start), Ok(()));
        assert_eq!(rate.take_at("b", 1000, start), Err(Duration::from_secs(2)));
        assert_eq!(rate.take_at("b", 1000, start + Duration::from_secs(2)), Ok(()));
    }

    #[test]
    fn keys_in_memory_are_bounded() {
        let rate = Rate::per_second(1, Duration::from_secs(1));
        let start = Instant::now();
        for key in 0..250_000 {
            assert_eq!(rate.take_at(key, 1, start), Ok(()));
        }
        assert_eq!(rate.full_at.lock().len(), KEYS_MAX.get());
        assert!(rate.take_at(249_999, 1, start).is_err());
        assert_eq!(rate.take_at(0, 1, start), Ok(()));
    }
}
