//! Processor time for long request bodies, which any client may send: few are inflated or parsed at once, others wait.
//!
//! Each costs a core for a while. If all ran at once, they would leave the requests of others a small share of the machine.
//! Clients (by address) take turns, however many bodies one of them sends. A body that waits holds its bytes, so that
//! [`super::memory`] bounds how many wait, and the time limit of requests how long.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::Error;
use crate::config::client_network;

/// All cores but one, at least one.
static LINE: LazyLock<Line> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Line::new(cores.saturating_sub(1).max(1))
});

/// Waits for the turn of a client.
pub(super) async fn turn(client: IpAddr) -> Result<Turn, Error> {
    LINE.turn(client_network(client)).await
}

/// Runs CPU-bound work outside the async runtime.
pub(super) async fn run<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        // Held until here also when the client has gone: the core was busy.
        drop(turn);
        result
    });
    let done = done.await;
    done.map_err(|error| Error::internal(format!("reading a long body failed: {error}")))
}

/// Who waits for a turn. Cloning shares it.
#[derive(Debug, Clone)]
struct Line(Arc<Mutex<Waiting>>);

#[derive(Debug)]
struct Waiting {
    /// Turns that are free.
    free: usize,
    /// The clients that wait, in the order of their turns, each with its bodies.
    clients: VecDeque<(IpAddr, VecDeque<oneshot::Sender<Turn>>)>,
}

impl Line {
    fn new(turns: usize) -> Self {
        Self(Arc::new(Mutex::new(Waiting {
            free: turns,
            clients: VecDeque::new(),
        })))
    }

    async fn turn(&self, client: IpAddr) -> Result<Turn, Error> {
        let next = {
            let mut waiting = self.0.lock();
            if waiting.free > 0 {
                waiting.free -= 1;
                return Ok(Turn(Some(self.clone())));
            }
            let (sender, next) = oneshot::channel();
            match waiting.clients.iter_mut().find(|(other, _)| *other == client) {
                Some((_, bodies)) => bodies.push_back(sender),
                None => waiting.clients.push_back((client, VecDeque::from([sender]))),
            }
            next
        };
        next.await
            .map_err(|_| Error::internal("the line of long bodies is closed"))
    }

    /// Gives a turn to the next client, or frees it.
    fn pass_on(self) {
        let mut turn = Turn(Some(self.clone()));
        loop {
            let next = {
                let mut waiting = self.0.lock();
                let Some((client, mut bodies)) = waiting.clients.pop_front() else {
                    waiting.free += 1;
                    turn.0 = None;
                    return;
                };
                let next = bodies.pop_front();
                if !bodies.is_empty() {
                    waiting.clients.push_back((client, bodies));
                }
                next
            };
            // One that has gone does not take it.
            match next.map(|next| next.send(turn)) {
                None | Some(Ok(())) => return,
                Some(Err(back)) => turn = back,
            }
        }
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Line>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
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
        let turn = poll(second.as_mut()).expect("the next turn");
        assert!(poll(third.as_mut()).is_none() && poll(other.as_mut()).is_none());
        drop(turn);
        // The other client came last, and is before the third body of the first.
        assert!(poll(third.as_mut()).is_none());
        let turn = poll(other.as_mut()).expect("the next turn");
        drop(turn);
        drop(poll(third.as_mut()).expect("the last turn"));
        assert_eq!(line.0.lock().free, 1);
    }

    #[test]
    fn one_client_has_all_turns_while_no_other_waits() {
        let line = Line::new(3);
        let turns = [(); 3].map(|()| poll(pin!(line.turn(address(1)))));
        assert!(turns.iter().all(Option::is_some));
    }

    #[test]
    fn body_of_a_client_that_has_gone_takes_no_turn() {
        let line = Line::new(1);
        let turn = poll(pin!(line.turn(address(1)))).expect("a free turn");
        {
            let mut gone = pin!(line.turn(address(1)));
            assert!(poll(gone.as_mut()).is_none());
        }
        let mut granted = Box::pin(line.turn(address(2)));
        assert!(poll(granted.as_mut()).is_none());
        drop(turn);
        // It has the turn, and goes before it knows.
        drop(granted);
        assert!(line.0.lock().clients.is_empty());
        assert_eq!(line.0.lock().free, 1);
    }
}
