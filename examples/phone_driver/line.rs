//! The phone's network as the kit needs it: it counts requests in flight, and its time is that of the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::phone::{Answer, Event, EventSource, Events, Http, Live, Lost, Network, Request, Trouble};
use crate::socket::{Socket, SocketEvents};

/// Turns of the runtime without a request, after which nothing is due.
const QUIET_TURNS: usize = 25;

/// What is going on.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    in_flight: AtomicUsize,
    is_open: AtomicBool,
    has_ended: Notify,
}

/// One request in flight.
struct Flight<'a>(&'a Traffic);

impl Traffic {
    fn begin(&self) -> Flight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Flight(self)
    }

    /// Whether a stream is open.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Waits until nothing is due.
    pub(crate) async fn rest(&self) {
        let mut turns = 0;
        while turns < QUIET_TURNS {
            tokio::task::yield_now().await;
            turns += 1;
            while self.in_flight.load(Ordering::Relaxed) > 0 {
                self.has_ended.notified().await;
                turns = 0;
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.has_ended.notify_one();
    }
}

/// How events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Sse,
    /// Uploads and acknowledgements go this way, too, while it is open.
    WebSocket,
}

#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) http: Http,
    pub(crate) address: String,
    pub(crate) clock: Arc<Clock>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) transport: Transport,
    pub(crate) socket: Arc<Socket>,
}

impl Network for Line {
    async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
        let _flight = self.traffic.begin();
        match tokio::time::timeout(self.http.timeout, self.socket.exchange(&request)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => self.http.exchange(request).await,
            Err(_) => Err(Lost("no results over the WebSocket in time".to_owned())),
        }
    }
}

impl Live for Line {
    type Events = Stream;

    async fn events(&self, path: String, headers: Vec<(&'static str, String)>) -> Result<Stream, Trouble> {
        let _flight = self.traffic.begin();
        let source = match self.transport {
            Transport::Sse => Source::Sse(self.http.events(path, headers).await?),
            Transport::WebSocket => Source::WebSocket(self.socket.open(&self.address, headers).await?),
        };
        self.traffic.is_open.store(true, Ordering::Relaxed);
        Ok(Stream {
            source,
            traffic: self.traffic.clone(),
        })
    }

    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        self.clock.sleep(duration)
    }
}

/// An open stream.
pub(crate) struct Stream {
    source: Source,
    traffic: Arc<Traffic>,
}

enum Source {
    Sse(Events),
    WebSocket(SocketEvents),
}

impl EventSource for Stream {
    async fn receive(&mut self) -> Result<Vec<Event>, Trouble> {
        match &mut self.source {
            Source::Sse(events) => events.receive().await,
            Source::WebSocket(events) => events.receive().await,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.traffic.is_open.store(false, Ordering::Relaxed);
    }
}
