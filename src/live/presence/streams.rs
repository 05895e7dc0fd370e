//! The open streams of this process, held in Redis together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::live::presence::store::{Member, PresenceStore, TIMEOUT};

/// Parts of a heartbeat in each of which a part of the streams is held again, so that Redis never gets all at once.
const SLICES: u64 = 8;

/// All streams, and those that Redis does not know of yet.
#[derive(Debug)]
pub(crate) struct Streams {
    state: Mutex<State>,
    wake: Notify,
    /// Rounds of reports to Redis that are over.
    rounds: watch::Sender<u64>,
    /// Distinguishes this process's streams from others'.
    process: u32,
    left_max: usize,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Member>,
    fresh: Vec<u64>,
    left: Vec<Member>,
    next: u64,
    /// Redis may have forgotten all of them.
    is_in_doubt: bool,
    /// Rounds that have begun.
    rounds: u64,
}

/// An open stream. Dropping it leaves.
#[derive(Debug)]
pub struct Here {
    streams: Arc<Streams>,
    number: u64,
    round: u64,
}

impl Here {
    /// Waits until others can see that it is here, or Redis does not answer.
    pub async fn seen(&self) {
        self.streams.held(self.round).await;
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        let Some(member) = state.open.remove(&self.number) else {
            return;
        };
        // While Redis is away they pile up. Those that do not fit are over by themselves, a little later.
        if state.left.len() < self.streams.left_max {
            state.left.push(member);
        }
        drop(state);
        self.streams.wake.notify_one();
    }
}

impl Streams {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            rounds: watch::Sender::new(0),
            process: getrandom::u32().unwrap_or_else(|_| std::process::id()),
            left_max: config.server.connections_max,
        }
    }

    pub(crate) fn enter(streams: &Arc<Self>, tenant: &str, user: Uuid, place: &str) -> Here {
        let mut state = streams.lock();
        let number = state.next;
        state.next += 1;
        let member = Member {
            tenant: tenant.into(),
            name: format!("{user}/{place}/{:08x}{number:x}", streams.process).into(),
        };
        state.open.insert(number, member);
        state.fresh.push(number);
        let round = state.rounds + 1;
        drop(state);
        streams.wake.notify_one();
        Here {
            streams: streams.clone(),
            number,
            round,
        }
    }

    /// Tells Redis of streams as they come and go, and again and again of those that stay.
    pub(crate) async fn run(&self, store: &PresenceStore, heartbeat: Duration, stop: &CancellationToken) {
        let mut beats = tokio::time::interval(heartbeat / u32::try_from(SLICES).unwrap_or(1));
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut slice = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                // While one round is under way the next one gathers.
                () = self.wake.notified() => self.tell(store).await,
                _ = beats.tick() => {
                    slice = (slice + 1) % SLICES;
                    self.hold(store, |number| number % SLICES == slice).await;
                }
            }
        }
        // They connect elsewhere within the grace.
        let all: Vec<Member> = {
            let mut state = self.lock();
            let left = std::mem::take(&mut state.left);
            state.open.drain().map(|(_, member)| member).chain(left).collect()
        };
        if let Err(error) = store.leave(&all).await {
            tracing::debug!(%error, "presence is not written; these streams are over by themselves");
        }
    }

    /// Holds all streams again, and waits for it.
    pub(crate) async fn hold_all(&self) {
        let round = {
            let mut state = self.lock();
            state.is_in_doubt = true;
            state.rounds + 1
        };
        self.wake.notify_one();
        self.held(round).await;
    }

    /// Waits until a round is over, or Redis does not answer.
    async fn held(&self, round: u64) {
        let mut rounds = self.rounds.subscribe();
        let over = rounds.wait_for(|rounds| *rounds >= round);
        let _ = tokio::time::timeout(TIMEOUT, over).await;
    }

    async fn hold(&self, store: &PresenceStore, which: impl Fn(u64) -> bool) {
        let streams: Vec<Member> = {
            let state = self.lock();
            let open = state.open.iter().filter(|(number, _)| which(**number));
            open.map(|(_, member)| member.clone()).collect()
        };
        if let Err(error) = store.hold(&streams).await {
            tracing::debug!(%error, "presence is not written; the next heartbeat does it");
        }
    }

    async fn tell(&self, store: &PresenceStore) {
        let (fresh, left, round) = {
            let mut state = self.lock();
            state.rounds += 1;
            let numbers = std::mem::take(&mut state.fresh);
            let fresh: Vec<Member> = match std::mem::take(&mut state.is_in_doubt) {
                true => state.open.values().cloned().collect(),
                false => {
                    let numbers = numbers.iter();
                    numbers.filter_map(|number| state.open.get(number).cloned()).collect()
                }
            };
            (fresh, std::mem::take(&mut state.left), state.rounds)
        };
        // Who moves from one stream to another comes before it goes.
        let held = store.hold(&fresh).await;
        let gone = store.leave(&left).await;
        if let Err(error) = held.and(gone) {
            tracing::debug!(%error, "presence is not written; the next heartbeat does it");
        }
        self.rounds.send_replace(round);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
