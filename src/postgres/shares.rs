//! Shares of connections: a tenant whose statements wait, for a lock on a table for example, must not hold all of them.
//!
//! A tenant takes another connection only while it holds fewer than three times as many as are free. Alone it gets three
//! quarters; of n tenants whose statements all wait, each holds 3/(3n + 1), and 1/(3n + 1) stay free for the others. No
//! tenant needs a limit of its own. The rule is that of "Dynamic queue length thresholds for shared-memory packet switches"
//! (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998), with alpha = 3.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How many times as many connections as are free a tenant may hold, less one.
const ALPHA: usize = 3;

/// Connections that tenants share. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// The tenants that hold a connection or wait for one.
    tenants: HashMap<String, Line>,
    /// Those that wait, in the order of their turns.
    turns: VecDeque<String>,
    /// The number of the next one that waits.
    next: u64,
}

/// The line of a tenant.
#[derive(Debug, Default)]
struct Line {
    held: usize,
    waiting: BTreeMap<u64, oneshot::Sender<Share>>,
}

impl State {
    fn may_take(&self, tenant: &str) -> bool {
        let held = self.tenants.get(tenant).map_or(0, |line| line.held);
        held < ALPHA * self.free
    }

    /// Takes a free connection for a tenant.
    fn take(&mut self, tenant: &str) {
        self.free -= 1;
        self.line(tenant).held += 1;
    }

    fn line(&mut self, tenant: &str) -> &mut Line {
        self.tenants.entry(tenant.to_owned()).or_default()
    }

    /// Changes the line of a tenant, and forgets it when nothing of it is left.
    fn change(&mut self, tenant: &str, change: impl FnOnce(&mut Line)) {
        if let Some(line) = self.tenants.get_mut(tenant) {
            change(line);
            if line.waiting.is_empty() {
                self.turns.retain(|waiting| waiting != tenant);
                if line.held == 0 {
                    self.tenants.remove(tenant);
                }
            }
        }
    }

    /// Takes a connection for the next one that waits and may have it.
    fn next_turn(&mut self) -> Option<(String, oneshot::Sender<Share>)> {
        let index = self.turns.iter().position(|tenant| self.may_take(tenant))?;
        let tenant = self.turns.remove(index)?;
        self.take(&tenant);
        let line = self.line(&tenant);
        let (_, next) = line.waiting.pop_first()?;
        if !line.waiting.is_empty() {
            self.turns.push_back(tenant.clone());
        }
        Some((tenant, next))
    }
}

impl Shares {
    /// So many connections, at least one.
    pub fn new(connections: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: connections.max(1),
            tenants: HashMap::new(),
            turns: VecDeque::new(),
            next: 0,
        })))
    }

    /// Waits for a connection of a tenant. The tenant's requests get theirs in the order of their arrival, tenants in turns.
    pub async fn take(&self, tenant: &str) -> Share {
        let (number, granted) = {
            let mut state = self.0.lock();
            if state.may_take(tenant) {
                state.take(tenant);
                return Share::new(self, tenant);
            }
            let number = state.next;
            state.next += 1;
            let (sender, granted) = oneshot::channel();
            let line = state.line(tenant);
            let is_first = line.waiting.is_empty();
            line.waiting.insert(number, sender);
            if is_first {
                state.turns.push_back(tenant.to_owned());
            }
            (number, granted)
        };
        let place = Place {
            shares: self,
            tenant,
            number,
        };
        match granted.await {
            Ok(share) => share,
            // A sender leaves the line only with a share or with its place.
            Err(_) => {
                drop(place);
                std::future::pending().await
            }
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.lock().tenants.values().map(|line| line.waiting.len()).sum()
    }

    /// Returns a connection and gives those that are free to those that wait and may have them.
    fn release(&self, tenant: &str) {
        let mut returned = Some(tenant.to_owned());
        loop {
            let next = {
                let mut state = self.0.lock();
                if let Some(tenant) = returned.take() {
                    state.free += 1;
                    state.change(&tenant, |line| line.held -= 1);
                }
                state.next_turn()
            };
            let Some((tenant, next)) = next else {
                return;
            };
            if let Err(mut share) = next.send(Share::new(self, &tenant)) {
                // Its receiver has gone in this moment.
                share.0 = None;
                returned = Some(tenant);
            }
        }
    }
}

/// A place in the line of a tenant; dropping it leaves the line.
struct Place<'a> {
    shares: &'a Shares,
    tenant: &'a str,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.shares.0.lock();
        state.change(self.tenant, |line| {
            line.waiting.remove(&self.number);
        });
    }
}

/// A connection of a tenant, until it is dropped.
#[derive(Debug)]
pub struct Share(Option<(Shares, String)>);

impl Share {
    fn new(shares: &Shares, tenant: &str) -> Self {
        Self(Some((shares.clone(), tenant.to_owned())))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some((shares, tenant)) = self.0.take() {
            shares.release(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn take_now(shares: &Shares, tenant: &str) -> Option<Share> {
        shares.take(tenant).now_or_never()
    }

    fn take_all(shares: &Shares, tenant: &str) -> Vec<Share> {
        std::iter::from_fn(|| take_now(shares, tenant)).collect()
    }

    #[test]
    fn tenant_leaves_connections_to_others_however_much_it_wants() {
        let shares = Shares::new(16);
        let first = take_all(&shares, "first");
        assert_eq!(first.len(), 12);
        let second = take_all(&shares, "second");
        assert_eq!(second.len(), 3);
        assert!(take_now(&shares, "third").is_some());
        drop(first);
        // Those that held more than their share get it back only as far as others leave it.
        assert_eq!(take_all(&shares, "first").len(), 10);
        drop(second);
        assert_eq!(shares.0.lock().free, 16);
        assert!(shares.0.lock().tenants.is_empty());
    }

    #[test]
    fn single_connection_goes_to_tenants_in_turns() {
        let shares = Shares::new(1);
        let held = take_now(&shares, "first").expect("a free connection");
        let mut again: Vec<_> = (0..2).map(|_| Box::pin(shares.take("first"))).collect();
        let mut other = Box::pin(shares.take("second"));
        for waiting in &mut again {
            assert!(waiting.now_or_never().is_none());
        }
        assert!((&mut other).now_or_never().is_none());
        assert_eq!(shares.waiting(), 3);
        drop(held);
        let held = (&mut again[0]).now_or_never().expect("the first in the line");
        drop(held);
        assert!((&mut again[1]).now_or_never().is_none());
        drop(other.now_or_never().expect("the other tenant"));
        assert!(again.remove(1).now_or_never().is_some());
    }

    #[test]
    fn request_that_has_gone_takes_no_connection() {
        let shares = Shares::new(1);
        let held = take_now(&shares, "first").expect("a free connection");
        for _ in 0..3 {
            let mut gone = Box::pin(shares.take("first"));
            assert!((&mut gone).now_or_never().is_none());
        }
        assert_eq!(shares.waiting(), 0);
        let mut granted = Box::pin(shares.take("second"));
        assert!((&mut granted).now_or_never().is_none());
        drop(held);
        // It has the connection, and goes before it knows.
        drop(granted);
        assert_eq!(shares.0.lock().free, 1);
        assert!(shares.0.lock().tenants.is_empty() && shares.0.lock().turns.is_empty());
    }

    proptest! {
        /// Whatever tenants take, return and give up: no connection is lost or taken twice, and no tenant that may take one waits.
        #[test]
        fn connections_are_neither_lost_nor_doubled(
            connections in 1..9_usize,
            acts in prop::collection::vec((0..3_u8, 0..4_usize, any::<prop::sample::Index>()), 1..200),
        ) {
            let shares = Shares::new(connections);
            let names = ["a", "b", "c", "d"];
            let mut held = Vec::new();
            let mut waiting: Vec<_> = Vec::new();
            for (act, tenant, index) in acts {
                match act {
                    0 => {
                        let mut taking = Box::pin(shares.take(names[tenant]));
                        match (&mut taking).now_or_never() {
                            Some(share) => held.push(share),
                            None => waiting.push(taking),
                        }
                    }
                    1 if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
                    2 if !waiting.is_empty() => drop(waiting.swap_remove(index.index(waiting.len()))),
                    _ => {}
                }
                let mut still = Vec::new();
                for mut taking in waiting {
                    match (&mut taking).now_or_never() {
                        Some(share) => held.push(share),
                        None => still.push(taking),
                    }
                }
                waiting = still;
                let state = shares.0.lock();
                prop_assert_eq!(state.free + held.len(), connections);
                prop_assert_eq!(state.tenants.values().map(|line| line.held).sum::<usize>(), held.len());
                prop_assert_eq!(state.tenants.values().map(|line| line.waiting.len()).sum::<usize>(), waiting.len());
                prop_assert!(!state.turns.iter().any(|tenant| state.may_take(tenant)));
            }
            drop(waiting);
            drop(held);
            prop_assert!(shares.0.lock().tenants.is_empty());
            prop_assert_eq!(shares.0.lock().free, connections);
        }
    }
}
