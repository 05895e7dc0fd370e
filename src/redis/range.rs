//! Reads ranges of streams, over a pool of connections.
//!
//! A device that was away reads hundreds of thousands of entries, and the `redis` crate makes a tree of values with an
//! allocation for each of their fields. Here a reply stays one piece of memory, which entries share, and no read waits
//! behind another's megabyte. Reads change nothing, so a request whose connection is lost is repeated on a new one.

use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use redis::RedisError;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use crate::config;
use crate::net::BoxStream;
use crate::redis::connect::{self, READ_BYTES_MIN, read_replies};
use crate::redis::shared;
use crate::telemetry::metrics::Operations;
use crate::telemetry::traces;

/// Most connections; when all are in use, reads wait. Each holds one reply at a time.
const CONNECTIONS_MAX: usize = 16;

/// Room for a reply: the size of the connection's last ones, within these bounds. A buffer that grows is copied.
const ROOM_BYTES: RangeInclusive<usize> = READ_BYTES_MIN..=1024 * 1024;

/// Whether a node of a cluster has refused the commands, the first of which may be `MULTI`, because it does not have the slot.
fn has_moved(reply: &[u8]) -> bool {
    let first = reply.strip_prefix(b"+OK\r\n").unwrap_or(reply);
    first.starts_with(b"-MOVED ")
}

/// Connections to one Redis that only read.
pub(crate) struct Connections {
    config: config::Redis,
    timeout: Duration,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
    operations: Operations,
}

struct Connection {
    stream: BoxStream,
    buffer: BytesMut,
    room: usize,
}

impl Connections {
    /// An empty pool.
    pub(crate) fn new(config: &config::Redis, operations: Operations) -> Self {
        Self {
            config: config.clone(),
            timeout: Duration::from_secs(config.response_timeout_seconds),
            idle: Mutex::default(),
            permits: Semaphore::new(CONNECTIONS_MAX),
            operations,
        }
    }

    /// Sends commands and returns their replies, so many, as Redis sent them.
    pub(crate) async fn request(&self, commands: &[u8], replies: usize) -> Result<Bytes, RedisError> {
        let Ok(_permit) = self.permits.acquire().await else {
            return Err(io::Error::other("the connections are closed").into());
        };
        let started = Instant::now();
        let reply = self.request_with_retry(commands, replies).await;
        let failed = reply.as_ref().err().map(shared::cause);
        // The other commands are in the same round trip.
        self.operations.ended("XRANGE", started.elapsed(), failed);
        traces::operation_ended("redis", "XRANGE", started, failed);
        reply
    }

    /// Sends on an idle connection, and again on a new one when the idle one is lost.
    async fn request_with_retry(&self, commands: &[u8], replies: usize) -> Result<Bytes, RedisError> {
        let idle = self.idle.lock().pop();
        let reply = match idle {
            Some(connection) => match self.request_on(connection, commands, replies).await {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => None,
                // The slot has moved to another node.
                Ok(reply) if has_moved(&reply) => {
                    self.renew();
                    None
                }
                reply => Some(reply),
            },
            None => None,
        };
        let reply = match reply {
            Some(reply) => reply,
            None => self.request_on(self.open().await?, commands, replies).await,
        };
        if reply.is_err() {
            // The others are likely half-open as well, and each would time out by itself.
            self.renew();
        }
        Ok(reply?)
    }

    /// Closes the idle connections.
    pub(crate) fn renew(&self) {
        self.idle.lock().clear();
    }

    async fn request_on(&self, mut connection: Connection, commands: &[u8], replies: usize) -> io::Result<Bytes> {
        let reply = tokio::time::timeout(self.timeout, connection.request(commands, replies)).await;
        let reply = reply.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        self.idle.lock().push(connection);
        Ok(reply)
    }

    async fn open(&self) -> Result<Connection, RedisError> {
        let opening = connect::open(&self.config, self.timeout);
        Ok(Connection {
            stream: opening.await.map_err(|error| io::Error::other(format!("{error:#}")))?,
            buffer: BytesMut::new(),
            room: 0,
        })
    }
}

impl Connection {
    async fn request(&mut self, commands: &[u8], replies: usize) -> io::Result<Bytes> {
        self.stream.write_all(commands).await?;
        self.buffer
            .reserve(self.room.clamp(*ROOM_BYTES.start(), *ROOM_BYTES.end()));
        let reply = read_replies(&mut self.stream, &mut self.buffer, replies as u64).await?;
        // Large and small replies alternate.
        self.room = (reply.len() + ROOM_BYTES.start()).max(self.room - self.room / 4);
        Ok(reply)
    }
}
