//! A TCP proxy in front of a server: it can cut, refuse, and hold up in silence what goes through it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the proxy is to do. A connection compares with the orders at its creation.
#[derive(Debug, Clone, Copy)]
struct Orders {
    target: SocketAddr,
    is_stalled: bool,
    is_refusing: bool,
    /// No answer reaches a client any more.
    is_muted: bool,
    /// Nothing reaches the server any more.
    is_withheld: bool,
    cuts: u64,
    abandoned: u64,
}

impl Orders {
    /// Whether a connection accepted under this generation is served now.
    fn serves(&self, create_stream: &Self) -> bool {
        !self.is_stalled && self.abandoned == create_stream.abandoned
    }
}

/// What a client sends last.
#[derive(Debug, Clone, Default)]
struct LastWords {
    words: Vec<u8>,
    /// What ends a request, of which so many more pass behind the words.
    end: &'static [u8],
    passing: usize,
    /// The last one does not arrive; otherwise its answer does not.
    withholds: bool,
}

/// A proxy; dropping it resets what goes through it.
pub(crate) struct Proxy {
    address: SocketAddr,
    orders: Arc<watch::Sender<Orders>>,
    last_words: Arc<watch::Sender<LastWords>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of the server that a URL names by IP address and port.
    pub(crate) async fn before(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (orders, given) = watch::channel(Orders {
            target: host_and_port(url).parse().unwrap(),
            is_stalled: false,
            is_refusing: false,
            is_muted: false,
            is_withheld: false,
            cuts: 0,
            abandoned: 0,
        });
        let (orders, last_words) = (Arc::new(orders), Arc::new(watch::Sender::new(LastWords::default())));
        let listening = Listening {
            orders: orders.clone(),
            last_words: last_words.clone(),
        };
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, given.clone(), listening.clone()));
            }
        });
        Self {
            address,
            orders,
            last_words,
            accepting,
        }
    }

    /// Withholds all answers of the server from the moment at which a client sends these words, which still arrive.
    pub(crate) fn mute_at(&self, words: &str) {
        self.last_words.send_replace(LastWords {
            words: words.as_bytes().to_vec(),
            ..LastWords::default()
        });
    }

    /// Lets so many `EXEC` pass from the moment at which a client sends these words. The next one does not arrive, or
    /// is not answered.
    pub(crate) fn stop_at_exec(&self, words: &str, passing: usize, withholds: bool) {
        self.last_words.send_replace(LastWords {
            words: words.as_bytes().to_vec(),
            end: b"\r\nEXEC\r\n",
            passing,
            withholds,
        });
    }

    /// Whether the last words have been sent.
    pub(crate) fn has_stopped(&self) -> bool {
        let orders = self.orders.borrow();
        orders.is_muted || orders.is_withheld
    }

    /// The URL by which the server is reached through the proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        url.replace(host_and_port(url), &self.address.to_string())
    }

    /// Resets all connections; new ones are served.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Stops forwarding silently, in both directions, until [`Self::resume`]. New connections are accepted and receive
    /// nothing.
    pub(crate) fn stall(&self) {
        self.orders.send_modify(|orders| orders.is_stalled = true);
    }

    /// Resets new connections, and those that are there.
    pub(crate) fn refuse(&self) {
        self.orders.send_modify(|orders| {
            orders.is_refusing = true;
            orders.cuts += 1;
        });
    }

    /// Silently stops forwarding on the open connections; new ones are served.
    pub(crate) fn abandon(&self) {
        self.orders.send_modify(|orders| orders.abandoned += 1);
    }

    /// Leads new connections to another server.
    pub(crate) fn lead_to(&self, url: &str) {
        let target = host_and_port(url).parse().unwrap();
        self.orders.send_modify(|orders| orders.target = target);
    }

    /// Serves again: what was held up goes on, what was cut or abandoned does not.
    pub(crate) fn resume(&self) {
        self.last_words.send_replace(LastWords::default());
        self.orders.send_modify(|orders| {
            orders.is_stalled = false;
            orders.is_refusing = false;
            orders.is_muted = false;
            orders.is_withheld = false;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub(crate) fn host_and_port(url: &str) -> &str {
    let rest = url.split_once("://").unwrap().1;
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap()
}

/// Looks for the last words in what clients send.
#[derive(Clone)]
struct Listening {
    orders: Arc<watch::Sender<Orders>>,
    last_words: Arc<watch::Sender<LastWords>>,
}

impl Listening {
    fn hear(&self, sent: &[u8]) {
        let has = |words: &[u8]| sent.windows(words.len()).any(|part| part == words);
        let last = self.last_words.borrow().clone();
        // Once the words are heard, the ends of requests are counted.
        let is_awaited = !last.words.is_empty();
        if is_awaited && !has(&last.words) || !is_awaited && (last.end.is_empty() || !has(last.end)) {
            return;
        }
        if !last.end.is_empty() && (last.passing > 0 || !has(last.end)) {
            self.last_words.send_modify(|last| {
                last.words.clear();
                last.passing -= usize::from(has(last.end));
            });
            return;
        }
        self.last_words.send_replace(LastWords::default());
        self.orders.send_modify(|orders| match last.withholds {
            true => orders.is_withheld = true,
            false => orders.is_muted = true,
        });
    }
}

/// One connection, from its acceptance to its end.
async fn serve(mut client: TcpStream, mut orders: watch::Receiver<Orders>, listening: Listening) {
    let create_stream = *orders.borrow_and_update();
    let mut ending = orders.clone();
    let mut server = None;
    let is_over = tokio::select! {
        () = forward(&mut client, &mut server, orders, create_stream, listening), if !create_stream.is_refusing => true,
        // Also when the proxy is gone.
        _ = ending.wait_for(|now| now.is_refusing || now.cuts != create_stream.cuts) => false,
    };
    if !is_over {
        let _ = client.set_zero_linger();
        if let Some(server) = server {
            let _ = server.set_zero_linger();
        }
    }
}

async fn forward(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    mut orders: watch::Receiver<Orders>,
    create_stream: Orders,
    listening: Listening,
) {
    let _ = orders.wait_for(|now| now.serves(&create_stream)).await;
    let target = orders.borrow().target;
    let Ok(connected) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let server = server.insert(connected);
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let _ = tokio::try_join!(
        pump(from_client, to_server, orders.clone(), create_stream, Some(listening)),
        pump(from_server, to_client, orders, create_stream, None)
    );
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut orders: watch::Receiver<Orders>,
    create_stream: Orders,
    from_client: Option<Listening>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        // Neither an end nor a reset passes a proxy that is stalled.
        let passes =
            |now: &Orders| now.serves(&create_stream) && !now.is_withheld && (from_client.is_some() || !now.is_muted);
        let _ = orders.wait_for(passes).await;
        match read? {
            0 => return to.shutdown().await,
            length => {
                if let Some(listening) = &from_client {
                    listening.hear(&buffer[..length]);
                    let _ = orders.wait_for(|now| !now.is_withheld).await;
                }
                to.write_all(&buffer[..length]).await?;
            }
        }
    }
}
