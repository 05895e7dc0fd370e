//! Processor time for long request bodies, which any client may send: few are inflated or parsed at once, others wait.
//!
//! Each costs a core for a while. If all ran at once, they would leave the requests of others a small share of the machine.
//! Of one client (by address) only one body is in line, so that clients take turns however many bodies each of them sends. A
//! body that waits holds its bytes, so that [`super::memory`] bounds how many wait, and the time limit of requests how long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use crate::config::client_network;

/// All cores but one, at least one.
static LINE: LazyLock<Line> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Line::new(cores.saturating_sub(1).max(1))
});

/// Runs CPU-bound work for a client outside the async runtime, when it has its turn.
pub(super) async fn run<T: Send + 'static>(
    client: IpAddr,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let turn = LINE.turn(client_network(client)).await?;
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        // Held until here also when the client has gone: the core was busy.
        drop(turn);
        result
    });
    let done = done.await;
    done.map_err(|error| Error::internal(format!("reading a long body failed: {error}")))
}

/// Who waits for a turn.
#[derive(Debug)]
struct Line {
    turns: Arc<Semaphore>,
    /// Of each client that has a body here, who may be in line.
    clients: Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>,
}

impl Line {
    fn new(turns: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(turns)),
            clients: Arc::default(),
        }
    }

    async fn turn(&self, client: IpAddr) -> Result<Turn, Error> {
        let place = Place {
            gate: self.clients.lock().entry(client).or_insert_with(one).clone(),
            clients: self.clients.clone(),
            client,
        };
        let own = acquire(&place.gate).await?;
        let shared = acquire(&self.turns).await?;
        Ok(Turn {
            _shared: shared,
            _own: own,
            _place: place,
        })
    }
}

fn one() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

async fn acquire(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    let permit = semaphore.clone().acquire_owned().await;
    permit.map_err(|_| Error::internal("the line of long bodies is closed"))
}

/// A turn, until it is dropped.
#[derive(Debug)]
struct Turn {
    _shared: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    // Last: it counts who else uses the gate.
    _place: Place,
}

/// A body's place among those of its client; the client is forgotten with the last.
#[derive(Debug)]
struct Place {
    gate: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.clients.lock();
        // This one and the map's: all others are taken under the lock.
        if Arc::strong_count(&self.gate) <= 2 {
            clients.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn clients_take_turns_however_many_bodies_one_sends() {
        let line = Line::new(1);
        let (mut first, mut second, mut third) = (
            pin!(line.turn(address(1))),
            pin!(line.turn(address(1))),
            pin!(line.turn(address(1))),
        );
        let mut other = pin!(line.turn(address(2)));
        let turn = poll(first.as_mut()).expect("a free turn");
        assert!(poll(second.as_mut()).is_none() && poll(third.as_mut()).is_none());
        assert!(poll(other.as_mut()).is_none());
        drop(turn);
        // The other client came last, and is the next.
        assert!(poll(second.as_mut()).is_none());
        let turn = poll(other.as_mut()).expect("the next turn");
        drop(turn);
        drop(poll(second.as_mut()).expect("the next turn"));
        drop(poll(third.as_mut()).expect("the last turn"));
    }

    #[test]
    fn client_that_has_gone_is_forgotten() {
        let line = Line::new(1);
        let turn = {
            let mut first = pin!(line.turn(address(1)));
            let turn = poll(first.as_mut()).expect("a free turn");
            let mut waiting = pin!(line.turn(address(1)));
            assert!(poll(waiting.as_mut()).is_none());
            turn
        };
        assert_eq!(line.clients.lock().len(), 1);
        drop(turn);
        assert!(line.clients.lock().is_empty());
        assert_eq!(line.turns.available_permits(), 1);
    }
}
