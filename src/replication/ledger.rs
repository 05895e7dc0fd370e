//! What was written to each stream since its size was last read: which streams and tenants may be beyond their bounds.
//!
//! The sizes here are upper bounds: what was read from Redis, and what the publisher has written since. Trims are not
//! subtracted. So a stream that is within its bound here is within it in Redis, and need not be looked at; one that is beyond
//! it here is read, which happens once in about as many bytes as it has room for. An idle stream is not in the ledger, and
//! costs nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config;
use crate::contract::stream_name::Target;
use crate::telemetry::metrics::Metrics;

/// Streams in the ledger. One that is pushed out is read again when it is written next.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);

/// A tenant beyond its budget is counted again between two rounds after it has written this part of the budget.
const EARLY_PART: u64 = 64;

/// A tenant is counted in a round after it has written this part of its budget.
const ROUND_PART: u64 = 8;

/// How much a stream holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    pub entries: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.entries = self.entries.saturating_add(other.entries);
    }

    /// This, without what was there before.
    fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(before.bytes),
            entries: self.entries.saturating_sub(before.entries),
        }
    }

    fn is_beyond(self, bound: Self) -> bool {
        self.bytes > bound.bytes || self.entries > bound.entries
    }
}

/// What streams and tenants may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    inbox: Size,
    shared: Size,
    group: Size,
    changes: Size,
    /// The budget of a tenant, in bytes.
    pub tenant: u64,
}

impl Bounds {
    pub fn new(settings: &config::Streams) -> Self {
        let bound = |bytes, entries| Size { bytes, entries };
        Self {
            inbox: bound(settings.inbox_bytes_max, settings.inbox_entries_max),
            shared: bound(settings.shared_bytes_max, settings.shared_entries_max),
            group: bound(settings.group_bytes_max, settings.group_entries_max),
            changes: bound(settings.changes_bytes_max, settings.changes_entries_max),
            tenant: settings.tenant_bytes_max,
        }
    }

    /// The bound of a stream.
    pub fn of(&self, target: &Target) -> Size {
        match target {
            Target::Inbox(..) => self.inbox,
            Target::Shared(_) => self.shared,
            Target::Group(..) => self.group,
            Target::Changes(_) => self.changes,
        }
    }
}

/// What the size of a stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Basis {
    /// Only what was written.
    #[default]
    Written,
    /// What was read in Redis, and written since.
    Read,
    /// The same. The stream is beyond its bound and could not be cut; the next round tries it again.
    Stuck,
}

/// What is known of a stream.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    size: Size,
    basis: Basis,
}

impl Account {
    /// Whether it must be looked at now, not only in the next round. The bound of entries bounds no memory.
    fn is_urgent(&self, bound: Size) -> bool {
        match self.basis {
            Basis::Written => self.size.bytes > bound.bytes / 8,
            Basis::Read => self.size.bytes > bound.bytes,
            Basis::Stuck => false,
        }
    }
}

/// What the streams of a tenant held when they were last counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Count {
    #[default]
    Never,
    Within(u64),
    /// More than its budget, although they were cut.
    Beyond(u64),
}

impl Count {
    fn used(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Within(used) | Self::Beyond(used) => Some(used),
        }
    }

    fn exceeded(self) -> Option<u64> {
        match self {
            Self::Beyond(used) => Some(used),
            Self::Never | Self::Within(_) => None,
        }
    }
}

/// What is known of a tenant.
#[derive(Debug, Clone, Copy, Default)]
struct TenantAccount {
    count: Count,
    /// Bytes written since.
    written: u64,
    /// A stream of it was written and is not in the ledger.
    is_incomplete: bool,
}

impl TenantAccount {
    fn upper(&self) -> u64 {
        self.count.used().unwrap_or(0).saturating_add(self.written)
    }

    fn is_urgent(&self, budget: u64) -> bool {
        self.count.exceeded().is_none() && self.upper() > budget && self.written >= budget / EARLY_PART
    }

    fn is_due(&self, budget: u64) -> bool {
        let is_uncounted = self.count == Count::Never && self.written > 0;
        let has_grown = self.written >= budget / ROUND_PART || self.written > 0 && self.upper() > budget;
        is_uncounted || has_grown || self.is_incomplete || self.count.exceeded().is_some()
    }
}

#[derive(Debug)]
struct State {
    /// Who may trim; `None` while this process does not publish.
    writer: Option<Arc<str>>,
    /// Redis has refused a batch because it is full, and accepted none since.
    is_full: bool,
    /// The streams of all tenants must be counted.
    sweep: bool,
    streams: LruCache<Target, Account>,
    /// Streams that may be beyond their bound, or whose size is not known.
    due: HashSet<Target>,
    tenants: HashMap<Arc<str>, TenantAccount>,
}

impl State {
    /// Adds what was written to a stream; whether something must be looked at now.
    fn add(&mut self, target: &Target, written: Size, bounds: &Bounds) -> bool {
        let account = match self.streams.get_mut(target) {
            Some(account) => account,
            None => {
                let pushed_out = self.streams.push(target.clone(), Account::default());
                if let Some((old, account)) = pushed_out
                    && account.basis == Basis::Written
                {
                    self.tenants.entry(old.tenant().clone()).or_default().is_incomplete = true;
                    self.due.remove(&old);
                }
                self.streams.get_or_insert_mut_ref(target, Account::default)
            }
        };
        account.size.add(written);
        let bound = bounds.of(target);
        let is_urgent = account.is_urgent(bound);
        if (account.basis == Basis::Written || account.size.is_beyond(bound)) && !self.due.contains(target) {
            self.due.insert(target.clone());
        }
        let tenant = match self.tenants.get_mut(target.tenant()) {
            Some(tenant) => tenant,
            None => self.tenants.entry(target.tenant().clone()).or_default(),
        };
        tenant.written = tenant.written.saturating_add(written.bytes);
        is_urgent || tenant.is_urgent(bounds.tenant)
    }
}

/// What is to be looked at.
#[derive(Debug, Default)]
pub struct Due {
    /// All tenants are to be counted.
    pub sweep: bool,
    /// Tenants to be counted.
    pub tenants: Vec<Arc<str>>,
    /// Streams to be read.
    pub streams: Vec<Target>,
}

/// What the ledger has at a moment, which a reading of sizes that begins then includes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark(Size);

/// The ledger of a process. The session adds, trimming takes.
#[derive(Debug)]
pub struct Ledger {
    pub bounds: Bounds,
    pub metrics: Arc<Metrics>,
    /// Something must be looked at before the next round.
    pub urgent: Notify,
    /// Redis is full, and what was due to be trimmed has freed nothing.
    pub full: Notify,
    state: Mutex<State>,
}

impl Ledger {
    pub fn new(settings: &config::Streams, metrics: Arc<Metrics>) -> Self {
        Self {
            bounds: Bounds::new(settings),
            metrics,
            urgent: Notify::new(),
            full: Notify::new(),
            state: Mutex::new(State {
                writer: None,
                is_full: false,
                sweep: false,
                streams: LruCache::new(STREAMS_MAX),
                due: HashSet::new(),
                tenants: HashMap::new(),
            }),
        }
    }

    /// This process publishes from now on. Another one may have written since the last time, so nothing is known.
    pub fn begin(&self, writer: &str) {
        let mut state = self.state.lock();
        state.writer = Some(writer.into());
        state.is_full = false;
        state.sweep = true;
        state.streams.clear();
        state.due.clear();
        state.tenants.clear();
        drop(state);
        self.urgent.notify_one();
    }

    /// This process does not publish any more.
    pub fn end(&self) {
        let mut state = self.state.lock();
        (state.writer, state.is_full) = (None, false);
    }

    /// Redis has refused a batch because it is full, after so many entries were trimmed with it. If those were none, trimming
    /// must free more.
    pub fn refuse(&self, removed: i64) {
        self.state.lock().is_full = true;
        if removed == 0 {
            self.full.notify_one();
        }
    }

    /// Whether Redis has refused the last batch because it is full.
    pub fn is_full(&self) -> bool {
        self.state.lock().is_full
    }

    /// Who may trim; `None` while this process does not publish.
    pub fn writer(&self) -> Option<Arc<str>> {
        self.state.lock().writer.clone()
    }

    /// A batch was written: its streams, and the bytes of each entry.
    pub fn note<'a>(&self, entries: impl Iterator<Item = (&'a Target, usize)>) {
        let mut state = self.state.lock();
        state.is_full = false;
        let mut is_urgent = false;
        // Entries of `changes` alternate with others; those of one stream often follow each other.
        let mut runs: [Option<(&Target, Size)>; 2] = [None, None];
        for (target, bytes) in entries {
            let run = &mut runs[usize::from(matches!(target, Target::Changes(_)))];
            let entry = Size {
                bytes: bytes as u64,
                entries: 1,
            };
            match run {
                Some((same, size)) if *same == target => size.add(entry),
                _ => {
                    if let Some((target, size)) = run.replace((target, entry)) {
                        is_urgent |= state.add(target, size, &self.bounds);
                    }
                }
            }
        }
        for (target, size) in runs.into_iter().flatten() {
            is_urgent |= state.add(target, size, &self.bounds);
        }
        drop(state);
        if is_urgent {
            self.urgent.notify_one();
        }
    }

    /// Takes what is to be looked at: in a round everything that is due, otherwise what is urgent.
    pub fn take(&self, is_round: bool) -> Due {
        let mut state = self.state.lock();
        let State {
            sweep,
            streams,
            due,
            tenants,
            ..
        } = &mut *state;
        let is_taken = |target: &Target| {
            let account = streams.peek(target).copied().unwrap_or_default();
            is_round || account.is_urgent(self.bounds.of(target))
        };
        let streams = due.extract_if(is_taken).collect();
        let budget = self.bounds.tenant;
        let is_due = |tenant: &TenantAccount| tenant.is_urgent(budget) || is_round && tenant.is_due(budget);
        let tenants = tenants.iter().filter(|(_, account)| is_due(account));
        Due {
            sweep: std::mem::take(sweep),
            tenants: tenants.map(|(name, _)| name.clone()).collect(),
            streams,
        }
    }

    /// Puts a stream back that could not be read, or is not small enough yet.
    pub fn put_back(&self, target: Target) {
        let mut state = self.state.lock();
        if state.streams.contains(&target) {
            state.due.insert(target);
        }
    }

    /// Puts a stream back that could not be cut, for the next round.
    pub fn put_back_stuck(&self, target: &Target) {
        let mut state = self.state.lock();
        if let Some(account) = state.streams.peek_mut(target) {
            account.basis = Basis::Stuck;
            state.due.insert(target.clone());
        }
    }

    /// All tenants must be counted again: some could not be.
    pub fn put_back_sweep(&self) {
        self.state.lock().sweep = true;
    }

    /// What the ledger has of a stream, before its size is read.
    pub fn mark(&self, target: &Target) -> Mark {
        let state = self.state.lock();
        Mark(
            state
                .streams
                .peek(target)
                .map_or_else(Size::default, |account| account.size),
        )
    }

    /// The size of a stream was read, behind a mark; `None` if there is no stream. Only streams in the ledger are kept.
    pub fn settle(&self, target: &Target, mark: Mark, read: Option<Size>) {
        let mut state = self.state.lock();
        let Some(account) = state.streams.peek_mut(target) else {
            return;
        };
        let mut size = account.size.since(mark.0);
        let Some(read) = read else {
            if size == Size::default() {
                state.streams.pop(target);
            }
            return;
        };
        size.add(read);
        let is_stuck = account.basis == Basis::Stuck && size.is_beyond(self.bounds.of(target));
        let basis = if is_stuck { Basis::Stuck } else { Basis::Read };
        *account = Account { size, basis };
        if !size.is_beyond(self.bounds.of(target)) {
            state.due.remove(target);
        }
    }

    /// What the ledger has of a tenant, before its streams are counted.
    pub fn mark_tenant(&self, tenant: &str) -> Mark {
        let state = self.state.lock();
        let written = state.tenants.get(tenant).map_or(0, |account| account.written);
        Mark(Size {
            bytes: written,
            entries: 0,
        })
    }

    /// The streams of a tenant were counted, behind a mark, and cut as far as they may.
    pub fn settle_tenant(&self, tenant: &Arc<str>, mark: Mark, used: u64) {
        let mut state = self.state.lock();
        let account = state.tenants.entry(tenant.clone()).or_default();
        let is_beyond = used > self.bounds.tenant;
        *account = TenantAccount {
            count: if is_beyond {
                Count::Beyond(used)
            } else {
                Count::Within(used)
            },
            written: account.written.saturating_sub(mark.0.bytes),
            is_incomplete: false,
        };
    }

    /// Forgets tenants that are gone.
    pub fn retain_tenants(&self, is_there: impl Fn(&str) -> bool) {
        self.state.lock().tenants.retain(|name, _| is_there(name));
    }

    /// Tenants beyond their budget, with what they use.
    pub fn exceeded(&self) -> BTreeMap<Arc<str>, u64> {
        let state = self.state.lock();
        let tenants = state.tenants.iter();
        tenants
            .filter_map(|(name, account)| Some((name.clone(), account.count.exceeded()?)))
            .collect()
    }

    /// The most bytes that a tenant may use; no bound is known of one that was never counted.
    pub fn used_at_most(&self, tenant: &str) -> u64 {
        let state = self.state.lock();
        let account = state.tenants.get(tenant);
        account
            .filter(|account| account.count != Count::Never)
            .map_or(u64::MAX, TenantAccount::upper)
    }

    /// The most bytes that a tenant was last seen to use.
    pub fn largest_tenant(&self) -> u64 {
        let state = self.state.lock();
        let counted = state.tenants.values().filter_map(|account| account.count.used());
        counted.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use uuid::Uuid;

    use super::*;
    use crate::telemetry::metrics::Labels;

    const MIB: u64 = 1024 * 1024;

    fn ledger() -> Ledger {
        let settings = config::Streams {
            inbox_bytes_max: MIB,
            inbox_entries_max: 800,
            changes_bytes_max: 4 * MIB,
            tenant_bytes_max: 8 * MIB,
            ..config::Streams::default()
        };
        let ledger = Ledger::new(&settings, Arc::new(Metrics::new(true, &Labels::default())));
        ledger.begin("me");
        assert!(ledger.take(true).sweep);
        ledger
    }

    fn inbox(user: u128) -> Target {
        Target::Inbox("acme".into(), Uuid::from_u128(user))
    }

    fn write(ledger: &Ledger, target: &Target, entries: usize, bytes: usize) {
        ledger.note(std::iter::repeat_n((target, bytes), entries));
    }

    /// Reads the size of a stream as this.
    fn read(ledger: &Ledger, target: &Target, bytes: u64, entries: u64) {
        let mark = ledger.mark(target);
        ledger.settle(target, mark, Some(Size { bytes, entries }));
    }

    #[test]
    fn written_stream_is_read_once_and_then_only_beyond_its_bound() {
        let (ledger, joe) = (ledger(), inbox(7));
        write(&ledger, &joe, 10, 1000);
        assert_eq!(ledger.take(false).streams, []);
        assert_eq!(ledger.take(true).streams, *from_ref(&joe));
        read(&ledger, &joe, 500_000, 300);
        write(&ledger, &joe, 10, 50_000);
        assert_eq!(ledger.take(true).streams, [], "1,000,000 of 1,048,576 bytes");
        write(&ledger, &joe, 1, 50_000);
        assert_eq!(
            ledger.take(false).streams,
            *from_ref(&joe),
            "beyond its bytes it is urgent"
        );
        read(&ledger, &joe, 900_000, 795);
        write(&ledger, &joe, 10, 10);
        assert_eq!(ledger.take(false).streams, [], "entries wait for a round");
        assert_eq!(ledger.take(true).streams, [joe]);
    }

    #[test]
    fn stream_that_cannot_be_cut_waits_for_rounds() {
        let (ledger, joe) = (ledger(), inbox(7));
        write(&ledger, &joe, 1, 2_000_000);
        assert_eq!(ledger.take(false).streams, *from_ref(&joe));
        read(&ledger, &joe, 2_000_000, 1);
        ledger.put_back_stuck(&joe);
        write(&ledger, &joe, 1, 100);
        assert_eq!(ledger.take(false).streams, []);
        assert_eq!(ledger.take(true).streams, *from_ref(&joe));
        read(&ledger, &joe, 500_000, 1);
        write(&ledger, &joe, 1, 2_000_000);
        assert_eq!(ledger.take(false).streams, [joe]);
    }

    #[test]
    fn what_is_written_while_a_stream_is_read_counts() {
        let (ledger, joe) = (ledger(), inbox(7));
        write(&ledger, &joe, 1, 1000);
        let mark = ledger.mark(&joe);
        write(&ledger, &joe, 1, 600_000);
        let read = |bytes| Some(Size { bytes, entries: 1 });
        ledger.settle(&joe, mark, read(500_000));
        assert_eq!(ledger.take(false).streams, *from_ref(&joe));
        ledger.settle(&joe, ledger.mark(&joe), None);
        write(&ledger, &joe, 1, 1);
        assert_eq!(ledger.take(true).streams, [joe], "of a new stream nothing is known");
    }

    #[test]
    fn unread_stream_that_is_pushed_out_leaves_its_tenant_to_be_counted() {
        let ledger = ledger();
        let tenant: Arc<str> = "acme".into();
        ledger.settle_tenant(&tenant, Mark::default(), 0);
        write(&ledger, &inbox(0), 1, 1);
        ledger.settle_tenant(&tenant, ledger.mark_tenant(&tenant), 0);
        let users = u128::try_from(STREAMS_MAX.get()).unwrap();
        for user in 1..=users {
            let target = Target::Inbox("other".into(), Uuid::from_u128(user));
            write(&ledger, &target, 1, 1);
        }
        let due = ledger.take(true);
        assert!(due.tenants.contains(&tenant), "{:?}", due.tenants);
        assert_eq!(due.streams.len(), STREAMS_MAX.get());
    }

    #[test]
    fn tenant_is_counted_as_it_grows_and_at_once_beyond_its_budget() {
        let (ledger, joe) = (ledger(), inbox(7));
        let tenant: Arc<str> = "acme".into();
        write(&ledger, &joe, 1, 1);
        assert_eq!(ledger.take(true).tenants, *from_ref(&tenant), "nothing is known of it");
        ledger.settle_tenant(&tenant, ledger.mark_tenant(&tenant), 7 * MIB);
        write(&ledger, &joe, 1, 500_000);
        assert_eq!(ledger.take(true).tenants, Vec::<Arc<str>>::new());
        write(&ledger, &joe, 1, 600_000);
        assert_eq!(ledger.take(false).tenants, *from_ref(&tenant));
        assert_eq!(ledger.exceeded(), BTreeMap::new());
        ledger.settle_tenant(&tenant, ledger.mark_tenant(&tenant), 9 * MIB);
        assert_eq!(ledger.exceeded(), BTreeMap::from([(tenant.clone(), 9 * MIB)]));
        write(&ledger, &joe, 10, 1_000_000);
        assert_eq!(
            ledger.take(false).tenants,
            Vec::<Arc<str>>::new(),
            "cutting it at once had no effect"
        );
        assert_eq!(ledger.take(true).tenants, *from_ref(&tenant));
        ledger.settle_tenant(&tenant, ledger.mark_tenant(&tenant), 8 * MIB);
        assert_eq!(ledger.exceeded(), BTreeMap::new());
    }
}
