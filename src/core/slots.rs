//! A bound of what is open at once for each key: connections of an address, streams of a user.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

type Counts<K> = Arc<Mutex<HashMap<K, usize>>>;

/// Slots for each key. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Slots<K> {
    counts: Counts<K>,
    max: usize,
}

impl<K: Hash + Eq + Clone> Slots<K> {
    /// So many slots for each key.
    pub fn new(max: usize) -> Self {
        Self {
            counts: Arc::default(),
            max,
        }
    }

    /// Takes a slot until it is dropped; `None` while all of this key are in use.
    pub fn take(&self, key: K) -> Option<Slot<K>> {
        let mut counts = self.counts.lock();
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Slot {
            counts: self.counts.clone(),
            key,
        })
    }
}

/// A slot that is in use.
#[derive(Debug)]
pub struct Slot<K: Hash + Eq> {
    counts: Counts<K>,
    key: K,
}

impl<K: Hash + Eq> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_a_key_are_bounded_and_forgotten_when_free() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take("a"), slots.take("a"));
        assert!(first.is_some() && second.is_some() && slots.take("a").is_none());
        assert!(slots.take("b").is_some());
        drop(first);
        assert!(slots.take("a").is_some());
        drop(second);
        assert!(slots.counts.lock().is_empty());
    }
}
