//! The clients, in a process of their own: raw sockets that follow event streams and tell what came when.
//!
//! It reads one command a line from its standard input, and answers each with a line of JSON.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Connections that are being made at once.
const CONNECTING_MAX: usize = 1024;

/// Which server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Peer {
    Posduif,
    Nchan,
}

/// What the clients are to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Connect so many, beginning at moments that are spread over this time; each behind its last id if it has one.
    Open {
        peer: Peer,
        address: SocketAddr,
        count: usize,
        spread_ms: u64,
    },
    /// Forget what has come.
    Forget,
    /// Wait until so many events have come altogether.
    Await { events: u64 },
    /// Tell when each event came that is about a message.
    Tell,
    /// Tell how the connections are.
    Look,
    /// Close all connections.
    Close,
}

/// What the clients answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Connections that are open.
    pub(crate) open: u64,
    /// Connections that ended before they were closed here, since the last `Open`.
    pub(crate) ended: u64,
    /// Connections that could not be opened.
    pub(crate) failed: u64,
    /// How the first of them failed.
    pub(crate) failure: Option<String>,
    /// Time from the first attempt to the last success.
    pub(crate) took_ms: u64,
    /// The slowest of them, from connecting to its first event.
    pub(crate) slowest_ms: u64,
    /// Events that have come, and their bytes.
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// When the last one came, µs since 1970.
    pub(crate) last_us: u64,
    /// Fewest heartbeats that a connection has had since the last `Forget`.
    pub(crate) beats_min: u64,
    /// Messages, and when an event about each came, µs since 1970.
    pub(crate) received: Vec<(String, u64)>,
}

#[derive(Debug, Default)]
struct Seat {
    last_id: String,
    beats: u64,
}

#[derive(Debug, Default)]
struct Shared {
    seats: Mutex<Vec<Arc<Mutex<Seat>>>>,
    open: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    failure: Mutex<Option<String>>,
    slowest_ms: AtomicU64,
    last_open_us: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
    last_us: AtomicU64,
    received: Mutex<Vec<(String, u64)>>,
}

pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Runs until its standard input ends.
pub(crate) fn run() {
    posduif::http::descriptors::raise_descriptor_limit().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shared = Arc::new(Shared::default());
    let mut connections: Option<(watch::Sender<bool>, JoinSet<()>)> = None;
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line.unwrap()).unwrap();
        let mut received = Vec::new();
        let mut took_ms = 0;
        runtime.block_on(async {
            match command {
                Command::Open {
                    peer,
                    address,
                    count,
                    spread_ms,
                } => {
                    let begun = now_us();
                    connections = Some(open(&shared, peer, address, count, spread_ms).await);
                    took_ms = shared.last_open_us.load(Ordering::SeqCst).saturating_sub(begun) / 1000;
                }
                Command::Forget => forget(&shared),
                Command::Await { events } => {
                    until(|| shared.events.load(Ordering::SeqCst) >= events).await;
                }
                Command::Tell => received = std::mem::take(&mut *shared.received.lock().unwrap()),
                Command::Look => {}
                Command::Close => {
                    if let Some((close, mut tasks)) = connections.take() {
                        close.send(true).unwrap();
                        while tasks.join_next().await.is_some() {}
                    }
                }
            }
        });
        let load = |number: &AtomicU64| number.load(Ordering::SeqCst);
        let beats = |seat: &Arc<Mutex<Seat>>| seat.lock().unwrap().beats;
        let answer = Answer {
            open: load(&shared.open),
            ended: load(&shared.ended),
            failed: load(&shared.failed),
            failure: shared.failure.lock().unwrap().clone(),
            took_ms,
            slowest_ms: load(&shared.slowest_ms),
            events: load(&shared.events),
            bytes: load(&shared.bytes),
            last_us: load(&shared.last_us),
            beats_min: shared.seats.lock().unwrap().iter().map(beats).min().unwrap_or(0),
            received,
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
        out.flush().unwrap();
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() && begun.elapsed() < TIMEOUT {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn forget(shared: &Shared) {
    for number in [&shared.events, &shared.bytes, &shared.last_us] {
        number.store(0, Ordering::SeqCst);
    }
    shared.received.lock().unwrap().clear();
    for seat in &*shared.seats.lock().unwrap() {
        seat.lock().unwrap().beats = 0;
    }
}

async fn open(
    shared: &Arc<Shared>,
    peer: Peer,
    address: SocketAddr,
    count: usize,
    spread_ms: u64,
) -> (watch::Sender<bool>, JoinSet<()>) {
    for number in [&shared.open, &shared.ended, &shared.failed, &shared.slowest_ms] {
        number.store(0, Ordering::SeqCst);
    }
    let mut seats = shared.seats.lock().unwrap().clone();
    seats.resize_with(count.max(seats.len()), Arc::default);
    seats.truncate(count);
    *shared.seats.lock().unwrap() = seats.clone();
    let (close, closed) = watch::channel(false);
    let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
    let mut tasks = JoinSet::new();
    for (number, seat) in seats.into_iter().enumerate() {
        let (shared, mut closed, connecting) = (shared.clone(), closed.clone(), connecting.clone());
        let wait = Duration::from_micros(spread_ms * 1000 * number as u64 / count.max(1) as u64);
        tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            let following = follow(&shared, peer, address, number + 1, &seat, connecting);
            tokio::select! {
                error = following => {
                    shared.failure.lock().unwrap().get_or_insert(error);
                }
                _ = closed.wait_for(|closed| *closed) => {}
            }
        });
    }
    until(|| {
        let settled = [&shared.open, &shared.failed, &shared.ended].map(|number| number.load(Ordering::SeqCst));
        settled.iter().sum::<u64>() >= count as u64
    })
    .await;
    (close, tasks)
}

fn head(peer: Peer, number: usize, last_id: &str) -> String {
    let resume = if last_id.is_empty() {
        String::new()
    } else {
        format!("Last-Event-ID: {last_id}\r\n")
    };
    match peer {
        Peer::Posduif => format!(
            "GET /sse/mobile/d{number} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\nX-Device-ID: d{number}\r\n\
             Authorization: Bearer token-{number}\r\n{resume}\r\n"
        ),
        Peer::Nchan => {
            format!("GET /sub HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n{resume}\r\n")
        }
    }
}

/// Follows one stream until it ends, and tells how.
async fn follow(
    shared: &Shared,
    peer: Peer,
    address: SocketAddr,
    number: usize,
    seat: &Mutex<Seat>,
    connecting: Arc<Semaphore>,
) -> String {
    let permit = connecting.acquire().await.unwrap();
    let begun = Instant::now();
    let request = head(peer, number, &seat.lock().unwrap().last_id);
    let connected = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        std::io::Result::Ok(stream)
    };
    let stream = match connected.await {
        Ok(stream) => stream,
        Err(error) => {
            shared.failed.fetch_add(1, Ordering::SeqCst);
            return format!("cannot connect: {error}");
        }
    };
    let mut permit = Some(permit);
    let mut is_open = false;
    // What does not make a whole block yet; empty nearly always.
    let mut rest: Vec<u8> = Vec::new();
    let end = loop {
        if let Err(error) = stream.readable().await {
            break error.to_string();
        }
        let mut bytes = [0; 4096];
        match stream.try_read(&mut bytes) {
            Ok(0) => break "the server has closed the connection".to_owned(),
            Ok(count) => rest.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => break error.to_string(),
        }
        let now = now_us();
        while let Some(end) = memchr::memmem::find(&rest, if is_open { b"\n\n" } else { b"\r\n\r\n" }) {
            let length = end + if is_open { 2 } else { 4 };
            let block = std::str::from_utf8(&rest[..end]).unwrap();
            if is_open {
                take(shared, seat, block, now);
            } else if block.starts_with("HTTP/1.1 200") {
                is_open = true;
                drop(permit.take());
                let took = begun.elapsed().as_millis() as u64;
                shared.slowest_ms.fetch_max(took, Ordering::SeqCst);
                shared.last_open_us.fetch_max(now, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
            } else {
                shared.failed.fetch_add(1, Ordering::SeqCst);
                return block.lines().next().unwrap_or_default().to_owned();
            }
            rest.drain(..length);
        }
        if rest.is_empty() {
            rest = Vec::new();
        }
    };
    if is_open {
        shared.open.fetch_sub(1, Ordering::SeqCst);
        shared.ended.fetch_add(1, Ordering::SeqCst);
    } else {
        shared.failed.fetch_add(1, Ordering::SeqCst);
    }
    end
}

/// Takes in a block of an event stream.
fn take(shared: &Shared, seat: &Mutex<Seat>, block: &str, now: u64) {
    if block.starts_with(": heartbeat") {
        seat.lock().unwrap().beats += 1;
        return;
    }
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let Some(data) = field("data: ") else { return };
    let name = field("event: ").unwrap_or_default();
    if name == "hello" {
        let cursor = data
            .split_once("\"cursor\":\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        cursor.unwrap().0.clone_into(&mut seat.lock().unwrap().last_id);
        return;
    }
    if let Some(id) = field("id: ") {
        id.clone_into(&mut seat.lock().unwrap().last_id);
    }
    if let Some((_, rest)) = data.split_once("\"message_id\":\"") {
        let id = rest.split_once('"').unwrap().0.to_owned();
        shared.received.lock().unwrap().push((id, now));
    }
    shared.bytes.fetch_add(block.len() as u64 + 2, Ordering::SeqCst);
    shared.last_us.fetch_max(now, Ordering::SeqCst);
    shared.events.fetch_add(1, Ordering::SeqCst);
}
