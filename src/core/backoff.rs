//! Delays between attempts of the same work.

use std::time::Duration;

/// Delays that double from a first one to a longest one. Each is shortened by up to a half at random, so that many
/// clients that lost the same server do not return at the same moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// The delay before the next attempt.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Duration {
        let delay = self.next.min(self.max);
        self.next = delay.saturating_mul(2).min(self.max);
        jitter(delay)
    }

    /// The delay after an attempt, counted from 1: for attempts that are counted elsewhere.
    pub fn after(&self, attempt: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        jitter(doubled.min(self.max))
    }

    /// Starts from the first delay again: call it when an attempt succeeds.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random duration from half of `delay` to all of it.
pub fn jitter(delay: Duration) -> Duration {
    let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    delay.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_repeated_attempts_double_up_to_the_maximum() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for longest in [100, 200, 350, 350] {
            let delay = backoff.next();
            assert!((ms(longest) / 2..=ms(longest)).contains(&delay), "{delay:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= ms(100));
        for (attempt, longest) in [(1, 100), (2, 200), (3, 350), (40, 350)] {
            let delay = backoff.after(attempt);
            assert!((ms(longest) / 2..=ms(longest)).contains(&delay), "{delay:?}");
        }
    }
}
