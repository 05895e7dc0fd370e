//! A cache of rows, or of counts of rows, that the change stream keeps consistent.
//!
//! Each change invalidates the entries it touches before any reader of this process receives it: a cached value is never
//! older than what a client has received. Three races are excluded:
//!
//! - The log delivers a commit before Postgres shows it, so that a read in between returns the old row. A value is therefore
//!   kept only if its snapshot sees every transaction that has touched its key.
//! - A client receives a change from a stream before the live tail delivers it. The [`Gate`] is closed until the tail has
//!   reached everything that was read here, and while the tail is disconnected: nothing is kept and nothing is returned.
//! - A change arrives during a query. A [`Ticket`] records when the query began; a value whose key was written here since, or
//!   whose changes may have been missed since, is not kept.
//!
//! A reset of a tenant invalidates its values only. Writes of this process invalidate at once, other nodes follow the log. No entry lives longer than `cache.ttl_seconds`.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::config;
use crate::core::snapshot::Snapshot;
use crate::telemetry::metrics::{self, Metrics};

/// After missed changes nothing is kept for this time: they may not be visible yet.
const SETTLE: Duration = Duration::from_secs(1);

/// Number of slots that record changes. Keys that share a slot invalidate each other.
const SLOTS: usize = 16_384;

/// Number of slots that record resets of tenants. Tenants that share a slot invalidate each other.
const TENANT_SLOTS: usize = 4096;

/// Whether the live tail of a tenant's lane has reached everything that this process has read there.
pub type Gate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The settings that all caches of a process share.
#[derive(Clone)]
pub struct Settings {
    lifetime: Duration,
    /// Most entries of a cache of small values.
    pub entries_max: u64,
    /// Most bytes of a cache of messages.
    pub messages_bytes_max: u64,
    gate: Gate,
    metrics: Arc<Metrics>,
}

impl Settings {
    /// With a lifetime of 0 the gate stays closed.
    pub fn new(config: &config::Cache, gate: Gate, metrics: Arc<Metrics>) -> Self {
        let lifetime = Duration::from_secs(config.ttl_seconds);
        Self {
            lifetime,
            entries_max: config.entries_max,
            messages_bytes_max: config.messages_bytes_max,
            gate: if lifetime.is_zero() { Arc::new(|_| false) } else { gate },
            metrics,
        }
    }
}

/// The key of an entry: a tenant's name, and the id of a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    tenant: String,
    id: Uuid,
}

impl Key {
    pub fn new(tenant: &str, id: Uuid) -> Self {
        Self {
            tenant: tenant.to_owned(),
            id,
        }
    }

    /// The key of a value about the whole tenant.
    pub fn tenant(tenant: &str) -> Self {
        Self::new(tenant, Uuid::nil())
    }
}

/// The result of a lookup.
#[derive(Debug)]
pub enum Lookup<V> {
    Hit(V),
    /// The caller queries Postgres, and passes the ticket to [`RowCache::insert`]. `None` while the gate is closed.
    Miss(Option<Ticket>),
}

/// A key, and when the query for its value began.
#[derive(Debug)]
pub struct Ticket {
    key: Key,
    clock: u64,
}

#[derive(Debug)]
struct CacheEntry<V> {
    value: V,
    /// When the query for it began.
    clock: u64,
    snapshot: Snapshot,
}

/// Values of one kind.
pub struct RowCache<V: Send + Sync + 'static> {
    kind: metrics::Cache,
    settings: Settings,
    values: Cache<Key, Arc<CacheEntry<V>>>,
    changes: Mutex<Changes>,
    /// The clock at the last reset of the tenants of a slot.
    resets: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// The changes that decide whether a value may be kept.
#[derive(Debug)]
struct Changes {
    /// Counts writes of this process and gaps.
    clock: u64,
    /// The clock at the last gap.
    missed: u64,
    settled: Option<Instant>,
    slots: Box<[Slot]>,
    /// Until when nothing is kept for the tenants of a slot.
    settling: Box<[Option<Instant>]>,
}

/// The changes of the keys of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The clock at the last write of this process.
    written: u64,
    /// First and last transaction of the log, until a snapshot sees all between.
    xids: Option<(u32, u32)>,
}

impl<V: Send + Sync + 'static> fmt::Debug for RowCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowCache")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl<V: Clone + Send + Sync + 'static> RowCache<V> {
    /// A cache of at most `entries_max` values.
    pub fn new(kind: metrics::Cache, settings: &Settings) -> Self {
        Self::weighted(kind, settings, settings.entries_max, |_| 1)
    }

    /// A cache of values that together weigh at most `weight_max`.
    pub fn weighted(kind: metrics::Cache, settings: &Settings, weight_max: u64, weigh: fn(&V) -> usize) -> Self {
        Self {
            kind,
            settings: settings.clone(),
            values: Cache::builder()
                .max_capacity(weight_max)
                .weigher(move |_, entry: &Arc<CacheEntry<V>>| weigh(&entry.value).try_into().unwrap_or(u32::MAX))
                .time_to_live(settings.lifetime)
                .build(),
            changes: Mutex::new(Changes {
                clock: 0,
                missed: 0,
                settled: None,
                slots: vec![Slot::default(); SLOTS].into(),
                settling: vec![None; TENANT_SLOTS].into(),
            }),
            resets: (0..TENANT_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    fn slot(&self, key: &Key) -> usize {
        self.hasher.hash_one(key) as usize % SLOTS
    }

    fn tenant_slot(&self, tenant: &str) -> usize {
        self.hasher.hash_one(tenant) as usize % TENANT_SLOTS
    }

    pub fn lookup(&self, key: Key) -> Lookup<V> {
        self.lookup_entry(key, |_| true)
    }

    /// Like [`RowCache::lookup`], for a value whose snapshot sees a transaction.
    pub fn lookup_seeing(&self, key: Key, xid: u32) -> Lookup<V> {
        self.lookup_entry(key, |snapshot| snapshot.sees_all(xid, xid))
    }

    fn lookup_entry(&self, key: Key, is_usable: impl Fn(&Snapshot) -> bool) -> Lookup<V> {
        if !(self.settings.gate)(&key.tenant) {
            return Lookup::Miss(None);
        }
        let reset = self.resets[self.tenant_slot(&key.tenant)].load(Ordering::Acquire);
        let found = self.values.get(&key);
        let found = found.filter(|entry| entry.clock >= reset && is_usable(&entry.snapshot));
        self.settings.metrics.query_cache.lookup(self.kind, found.is_some());
        match found {
            Some(entry) => Lookup::Hit(entry.value.clone()),
            None => Lookup::Miss(Some(self.ticket(key))),
        }
    }

    fn ticket(&self, key: Key) -> Ticket {
        let clock = self.changes.lock().clock;
        Ticket { key, clock }
    }

    /// Keeps a value, unless a change has arrived that it may not show.
    pub fn insert(&self, ticket: Ticket, value: V, snapshot: Snapshot) {
        let (slot, tenant) = (self.slot(&ticket.key), self.tenant_slot(&ticket.key.tenant));
        let mut changes = self.changes.lock();
        let settled = changes.settled.max(changes.settling[tenant]);
        if settled.is_some_and(|settled| Instant::now() < settled) || changes.missed > ticket.clock {
            return;
        }
        let recorded = &mut changes.slots[slot];
        if recorded.written > ticket.clock {
            return;
        }
        if let Some((first, last)) = recorded.xids {
            if !snapshot.sees_all(first, last) {
                return;
            }
            recorded.xids = None;
        }
        // Under the lock, so that no change arrives between the check and the insertion.
        let clock = ticket.clock;
        let entry = CacheEntry { value, clock, snapshot };
        self.values.insert(ticket.key, Arc::new(entry));
    }

    /// A transaction of the log has touched a key.
    pub fn invalidate_changed(&self, key: &Key, xid: u32) {
        let slot = self.slot(key);
        let mut changes = self.changes.lock();
        let xids = &mut changes.slots[slot].xids;
        *xids = Some(match *xids {
            Some((first, last)) => (older(first, xid), newer(last, xid)),
            None => (xid, xid),
        });
        self.values.invalidate(key);
    }

    /// This process has written under a key, and its commit is visible.
    pub fn invalidate_written(&self, key: &Key) {
        let slot = self.slot(key);
        let mut changes = self.changes.lock();
        changes.clock += 1;
        changes.slots[slot].written = changes.clock;
        self.values.invalidate(key);
    }

    /// Changes of a tenant were missed, or touch unnamed rows.
    pub fn invalidate_tenant(&self, tenant: &str) {
        let slot = self.tenant_slot(tenant);
        let mut changes = self.changes.lock();
        changes.clock += 1;
        changes.settling[slot] = Some(Instant::now() + SETTLE);
        self.resets[slot].store(changes.clock, Ordering::Release);
    }

    /// Changes were missed.
    pub fn invalidate_all(&self) {
        let mut changes = self.changes.lock();
        changes.clock += 1;
        changes.missed = changes.clock;
        changes.settled = Some(Instant::now() + SETTLE);
        // After a restore transaction ids are reused.
        changes.slots.iter_mut().for_each(|slot| slot.xids = None);
        self.values.invalidate_all();
    }
}

/// Transaction ids are compared modulo 2^32 (Postgres chapter 25.1.5).
fn older(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() < 0 { a } else { b }
}

fn newer(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() < 0 { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Labels;

    fn cache() -> RowCache<i64> {
        let config = config::Cache::default();
        let settings = Settings::new(
            &config,
            Arc::new(|_: &str| true),
            Arc::new(Metrics::new(false, &Labels::default())),
        );
        RowCache::new(metrics::Cache::UnreadCount, &settings)
    }

    fn key(tenant: &str) -> Key {
        Key::new(tenant, Uuid::from_u128(1))
    }

    fn insert(cache: &RowCache<i64>, ticket: Ticket, value: i64, snapshot: &str) {
        cache.insert(ticket, value, Snapshot::parse(snapshot).expect("a snapshot"));
    }

    fn value(cache: &RowCache<i64>, key: &Key) -> Option<i64> {
        match cache.lookup(key.clone()) {
            Lookup::Hit(value) => Some(value),
            Lookup::Miss(_) => None,
        }
    }

    #[test]
    fn value_read_before_a_change_is_not_kept() {
        let (cache, key) = (cache(), key("demo"));
        insert(&cache, cache.ticket(key.clone()), 1, "100:100:");
        assert_eq!(value(&cache, &key), Some(1));
        let early = cache.ticket(key.clone());
        cache.invalidate_changed(&key, 100);
        assert_eq!(value(&cache, &key), None);
        // Read before the change was visible, whenever the query began.
        insert(&cache, early, 1, "100:100:");
        insert(&cache, cache.ticket(key.clone()), 1, "100:101:100");
        assert_eq!(value(&cache, &key), None);
        // The later transaction is visible, the earlier one is not.
        cache.invalidate_changed(&key, 102);
        insert(&cache, cache.ticket(key.clone()), 1, "100:103:100");
        assert_eq!(value(&cache, &key), None);
        insert(&cache, cache.ticket(key.clone()), 2, "103:103:");
        assert_eq!(value(&cache, &key), Some(2));
    }

    #[test]
    fn value_queried_before_an_own_write_is_not_kept() {
        let (cache, key, other) = (cache(), key("demo"), key("other"));
        let before = cache.ticket(key.clone());
        cache.invalidate_written(&key);
        insert(&cache, before, 1, "100:100:");
        assert_eq!(value(&cache, &key), None);
        insert(&cache, cache.ticket(key.clone()), 2, "101:101:");
        assert_eq!(value(&cache, &key), Some(2));
        // The same id in another tenant is another row.
        assert_eq!(value(&cache, &other), None);
    }

    #[test]
    fn missed_changes_empty_the_cache_and_delay_insertions() {
        let (cache, key) = (cache(), key("demo"));
        insert(&cache, cache.ticket(key.clone()), 1, "100:100:");
        let before = cache.ticket(key.clone());
        cache.invalidate_all();
        assert_eq!(value(&cache, &key), None);
        insert(&cache, cache.ticket(key.clone()), 1, "100:100:");
        assert_eq!(value(&cache, &key), None);
        cache.changes.lock().settled = None;
        insert(&cache, before, 1, "100:100:");
        assert_eq!(value(&cache, &key), None);
        insert(&cache, cache.ticket(key.clone()), 2, "100:100:");
        assert_eq!(value(&cache, &key), Some(2));
    }

    #[test]
    fn reset_of_a_tenant_leaves_values_of_others() {
        let (cache, demo) = (cache(), key("demo"));
        let others = (0..10).map(|number| key(&format!("tenant{number}")));
        let other = others
            .into_iter()
            .find(|other| cache.tenant_slot(&other.tenant) != cache.tenant_slot("demo"))
            .expect("a tenant of another slot");
        let before = cache.ticket(demo.clone());
        for key in [&demo, &other] {
            insert(&cache, cache.ticket(key.clone()), 1, "100:100:");
        }
        cache.invalidate_tenant("demo");
        assert_eq!((value(&cache, &demo), value(&cache, &other)), (None, Some(1)));
        insert(&cache, cache.ticket(demo.clone()), 1, "100:100:");
        assert_eq!(value(&cache, &demo), None, "it may not be visible yet");
        cache.changes.lock().settling.fill(None);
        insert(&cache, before, 1, "100:100:");
        assert_eq!(value(&cache, &demo), None, "the query began before the reset");
        insert(&cache, cache.ticket(demo.clone()), 2, "100:100:");
        assert_eq!(value(&cache, &demo), Some(2));
    }

    #[test]
    fn lookup_behind_a_closed_gate_returns_nothing() {
        let config = config::Cache::default();
        let settings = Settings::new(
            &config,
            Arc::new(|_| false),
            Arc::new(Metrics::new(false, &Labels::default())),
        );
        let cache: RowCache<i64> = RowCache::new(metrics::Cache::UnreadCount, &settings);
        assert!(matches!(cache.lookup(key("demo")), Lookup::Miss(None)));
    }

    #[test]
    fn transaction_ids_are_compared_across_the_wraparound() {
        assert_eq!((older(1, 2), newer(1, 2)), (1, 2));
        assert_eq!((older(u32::MAX, 3), newer(u32::MAX, 3)), (u32::MAX, 3));
    }
}
