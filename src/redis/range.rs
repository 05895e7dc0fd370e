//! Reading stretches of streams, over connections of our own.
//!
//! A device that was away reads hundreds of thousands of entries, and the `redis` crate makes a tree of values with an
//! allocation for each of their fields. Here a reply stays one piece of memory, which entries share, and no reading waits
//! behind another's megabyte. Reading changes nothing, so what is lost with a connection is asked again on a new one.

use crate::core::resp::Reader;
use crate::core::resp::{Extent, malformed};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use redis::RedisError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::config;
use crate::core::resp;
use crate::net::{self, BoxStream};
use crate::redis::shared;
use crate::telemetry::metrics::Operations;
use crate::telemetry::traces;

/// Connections to read with, at most; who comes when all are in use waits. Each holds one reply at a time.
const CONNECTIONS_MAX: usize = 16;

/// Room for a reply: what the connection's last ones took, within these bounds. One that grows is copied each time.
const ROOM_BYTES: RangeInclusive<usize> = 4 * 1024..=1024 * 1024;

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
    /// None yet.
    pub(crate) fn new(config: &config::Redis, operations: Operations) -> Self {
        Self {
            config: config.clone(),
            timeout: Duration::from_secs(config.response_timeout_seconds),
            idle: Mutex::default(),
            permits: Semaphore::new(CONNECTIONS_MAX),
            operations,
        }
    }

    /// Sends commands and gives their replies, so many, as they came.
    ///
    /// # Errors
    /// When Redis cannot be reached, does not answer in time or not by the protocol.
    pub(crate) async fn ask(&self, commands: &[u8], replies: usize) -> Result<Bytes, RedisError> {
        let Ok(_permit) = self.permits.acquire().await else {
            return Err(io::Error::other("the connections are closed").into());
        };
        let started = Instant::now();
        let answer = self.ask_once_more(commands, replies).await;
        let failed = answer.as_ref().err().map(shared::cause);
        // What is asked beside the entries goes in the same round trip.
        self.operations.ended("XRANGE", started.elapsed(), failed);
        traces::asked("redis", "XRANGE", started, failed);
        answer
    }

    /// Asks, and again on a new connection when the one at hand turns out to be lost.
    async fn ask_once_more(&self, commands: &[u8], replies: usize) -> Result<Bytes, RedisError> {
        let idle = self.idle().pop();
        let answer = match idle {
            Some(connection) => match self.ask_on(connection, commands, replies).await {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => None,
                answer => Some(answer),
            },
            None => None,
        };
        let answer = match answer {
            Some(answer) => answer,
            None => self.ask_on(self.open().await?, commands, replies).await,
        };
        if answer.is_err() {
            // The others are likely half-open as well, and each would take its own time to show it.
            self.renew();
        }
        Ok(answer?)
    }

    /// Makes new connections from now on.
    pub(crate) fn renew(&self) {
        self.idle().clear();
    }

    async fn ask_on(&self, mut connection: Connection, commands: &[u8], replies: usize) -> io::Result<Bytes> {
        let answer = tokio::time::timeout(self.timeout, connection.ask(commands, replies)).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        self.idle().push(connection);
        Ok(answer)
    }

    async fn open(&self) -> Result<Connection, RedisError> {
        let opening = net::redis::open(&self.config, self.timeout);
        let (stream, login) = opening.await.map_err(|error| io::Error::other(format!("{error:#}")))?;
        let mut commands = BytesMut::new();
        let mut replies = 0;
        if let Some(password) = login.password() {
            let user = login.username().unwrap_or("default");
            resp::command(&mut commands, &[b"AUTH", user.as_bytes(), password.as_bytes()]);
            replies += 1;
        }
        if login.db() != 0 {
            resp::command(&mut commands, &[b"SELECT", login.db().to_string().as_bytes()]);
            replies += 1;
        }
        let mut connection = Connection {
            stream,
            buffer: BytesMut::new(),
            room: 0,
        };
        let logging_in = tokio::time::timeout(self.timeout, connection.ask(&commands, replies));
        let answer = logging_in
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let mut reader = Reader::new(&answer);
        for _ in 0..replies {
            reader.next_value()?;
        }
        Ok(connection)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    async fn ask(&mut self, commands: &[u8], replies: usize) -> io::Result<Bytes> {
        self.stream.write_all(commands).await?;
        self.buffer
            .reserve(self.room.clamp(*ROOM_BYTES.start(), *ROOM_BYTES.end()));
        let mut extent = Extent {
            at: 0,
            left: replies as u64,
        };
        while !extent.advance(&self.buffer)? {
            self.buffer.reserve(*ROOM_BYTES.start());
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if extent.at != self.buffer.len() {
            return Err(malformed("more replies than commands"));
        }
        // Large and small ones take turns.
        self.room = (extent.at + ROOM_BYTES.start()).max(self.room - self.room / 4);
        Ok(self.buffer.split().freeze())
    }
}
