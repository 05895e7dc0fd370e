//! Reading stretches of streams, over connections of our own.
//!
//! A device that was away reads hundreds of thousands of entries, and the `redis` crate makes a tree of values with an
//! allocation for each of their fields. Here a reply stays one piece of memory, which entries share, and no reading waits
//! behind another's megabyte. Reading changes nothing, so what is lost with a connection is asked again on a new one.

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use redis::RedisError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::config;
use crate::publish::resp;
use crate::telemetry::metrics::Operations;
use crate::telemetry::traces;
use crate::transport::{self, BoxStream, shared};

/// Connections to read with, at most; who comes when all are in use waits. Each holds one reply at a time.
const CONNECTIONS_MAX: usize = 16;

/// Room for a reply: what the connection's last ones took, within these bounds. One that grows is copied each time.
const ROOM_BYTES: RangeInclusive<usize> = 4 * 1024..=1024 * 1024;

/// Connections to one Redis that only read.
pub(super) struct Connections {
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
    pub(super) fn new(config: &config::Redis, operations: Operations) -> Self {
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
    pub(super) async fn ask(&self, commands: &[u8], replies: usize) -> Result<Bytes, RedisError> {
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
    pub(super) fn renew(&self) {
        self.idle().clear();
    }

    async fn ask_on(&self, mut connection: Connection, commands: &[u8], replies: usize) -> io::Result<Bytes> {
        let answer = tokio::time::timeout(self.timeout, connection.ask(commands, replies)).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        self.idle().push(connection);
        Ok(answer)
    }

    async fn open(&self) -> Result<Connection, RedisError> {
        let opening = transport::redis::open(&self.config, self.timeout);
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
            reader.next()?;
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

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("reply from Redis is not understood: {what}"),
    )
}

/// How far a reply was looked at, so that each of its bytes is looked at once, however it is cut.
struct Extent {
    at: usize,
    /// Values that are still to come.
    left: u64,
}

impl Extent {
    /// Goes on; true when all is there.
    fn advance(&mut self, bytes: &[u8]) -> io::Result<bool> {
        while self.left > 0 {
            let Some((tag, number, start)) = head(bytes, self.at)? else {
                return Ok(false);
            };
            let mut end = start;
            match (tag, usize::try_from(number)) {
                (b'$', Ok(length)) => end = start.saturating_add(length).saturating_add(2),
                (b'*', Ok(count)) => self.left = self.left.saturating_add(count as u64),
                _ => {}
            }
            if end > bytes.len() {
                return Ok(false);
            }
            self.at = end;
            self.left -= 1;
        }
        Ok(true)
    }
}

/// The line that begins at a place: its tag, its number (0 of one that has none), and where the next begins.
fn head(bytes: &[u8], at: usize) -> io::Result<Option<(u8, i64, usize)>> {
    let Some((&tag, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let (length, number) = match tag {
        b'$' | b'*' | b':' => number(rest)?,
        b'+' | b'-' => (memchr(b'\r', rest).unwrap_or(rest.len()), 0),
        _ => return Err(malformed("unknown type")),
    };
    Ok((length + 1 < rest.len()).then_some((tag, number, at + length + 3)))
}

/// The number at the beginning, and how many bytes it takes. In replies of many short strings this is most of the work.
fn number(bytes: &[u8]) -> io::Result<(usize, i64)> {
    let is_negative = bytes.first() == Some(&b'-');
    let (mut at, mut number) = (usize::from(is_negative), 0_i64);
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        let longer = number.checked_mul(10);
        let longer = longer.and_then(|number| number.checked_add(i64::from(digit - b'0')));
        number = longer.ok_or_else(|| malformed("too large a number"))?;
        at += 1;
    }
    match bytes.get(at) {
        None | Some(b'\r') => Ok((at, if is_negative { -number } else { number })),
        Some(_) => Err(malformed("not a number")),
    }
}

/// A value of a reply; the elements of an array follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// An array of so many values.
    Array(usize),
    /// A string of any kind.
    Text(&'a [u8]),
    /// An integer.
    Integer(i64),
    /// Nothing.
    Nil,
}

/// Goes through the values of a whole reply.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the beginning.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next value.
    ///
    /// # Errors
    /// When it is an error, or there is none.
    pub(super) fn next(&mut self) -> io::Result<Value<'a>> {
        let (tag, number, start) = head(self.bytes, self.at)?.ok_or_else(|| malformed("cut short"))?;
        let line = &self.bytes[self.at + 1..start - 2];
        self.at = start;
        match (tag, usize::try_from(number)) {
            (b'+', _) => Ok(Value::Text(line)),
            (b'-', _) => Err(io::Error::other(String::from_utf8_lossy(line).into_owned())),
            (b':', _) => Ok(Value::Integer(number)),
            (b'*', Ok(count)) => Ok(Value::Array(count)),
            (b'$', Ok(length)) => {
                let text = self.bytes.get(start..start + length);
                self.at = start + length + 2;
                text.map(Value::Text).ok_or_else(|| malformed("cut short"))
            }
            _ => Ok(Value::Nil),
        }
    }

    /// The length of the array that must come.
    ///
    /// # Errors
    /// Like [`Reader::next`]; also when something else comes.
    pub(super) fn array(&mut self) -> io::Result<usize> {
        match self.next()? {
            Value::Array(count) => Ok(count),
            _ => Err(malformed("no array where one must be")),
        }
    }

    /// The string that must come.
    ///
    /// # Errors
    /// Like [`Reader::next`]; also when something else comes.
    pub(super) fn text(&mut self) -> io::Result<&'a [u8]> {
        match self.next()? {
            Value::Text(text) => Ok(text),
            _ => Err(malformed("no string where one must be")),
        }
    }

    /// An array of strings, of which some may be missing.
    ///
    /// # Errors
    /// Like [`Reader::next`]; also when something else comes.
    pub(super) fn texts(&mut self) -> io::Result<Vec<Option<String>>> {
        let count = self.array()?;
        let text = |reader: &mut Self| match reader.next()? {
            Value::Text(text) => Ok(String::from_utf8(text.to_vec()).ok()),
            Value::Nil => Ok(None),
            _ => Err(malformed("no string where one must be")),
        };
        (0..count.min(self.bytes.len())).map(|_| text(self)).collect()
    }

    /// The integer that must come.
    ///
    /// # Errors
    /// Like [`Reader::next`]; also when something else comes.
    pub(super) fn integer(&mut self) -> io::Result<i64> {
        match self.next()? {
            Value::Integer(number) => Ok(number),
            _ => Err(malformed("no integer where one must be")),
        }
    }
}

/// The replies to the commands of a transaction, behind those to `MULTI` and to each of them.
///
/// # Errors
/// When one of them was refused, or the transaction was.
pub(super) fn transaction(bytes: &Bytes, commands: usize) -> io::Result<Reader<'_>> {
    let mut reader = Reader::new(bytes);
    for _ in 0..=commands {
        reader.text()?;
    }
    if reader.array()? != commands {
        return Err(malformed("a transaction of another length"));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENTRY: &[u8] = b"+OK\r\n*2\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*4\r\n$2\r\nop\r\n$6\r\ninsert\r\n$3\r\nrow\r\n$4\r\n{\r\n}\r\n*-1\r\n$-1\r\n:-7\r\n";

    #[test]
    fn a_reply_is_found_whole_however_it_is_cut() {
        for cut in 0..ENTRY.len() {
            let mut extent = Extent { at: 0, left: 4 };
            assert!(!extent.advance(&ENTRY[..cut]).unwrap(), "{cut}");
            assert!(extent.advance(ENTRY).unwrap(), "{cut}");
            assert_eq!(extent.at, ENTRY.len());
        }
    }

    #[test]
    fn integers_are_read_to_their_ends_and_larger_ones_refused() {
        let read = |text: &str| {
            Reader::new(format!(":{text}\r\n").as_bytes()).next().ok() == text.parse().ok().map(Value::Integer)
        };
        for text in [
            "0",
            "-1",
            "999999999999999999",
            "9223372036854775807",
            "-9223372036854775807",
        ] {
            assert!(read(text), "{text}");
        }
        for text in ["9223372036854775808", "9999999999999999999", "99999999999999999999999"] {
            assert!(Reader::new(format!(":{text}\r\n").as_bytes()).next().is_err(), "{text}");
        }
    }

    #[test]
    fn the_values_of_a_reply_come_in_their_order() {
        let mut reader = Reader::new(ENTRY);
        assert_eq!(reader.text().unwrap(), b"OK");
        assert_eq!(
            (
                reader.array().unwrap(),
                reader.array().unwrap(),
                reader.array().unwrap()
            ),
            (2, 1, 2)
        );
        assert_eq!(reader.text().unwrap(), b"1-1");
        let fields = reader.texts().unwrap();
        assert_eq!(
            fields.iter().flatten().collect::<Vec<_>>(),
            ["op", "insert", "row", "{\r\n}"]
        );
        assert_eq!(
            (reader.next().unwrap(), reader.next().unwrap()),
            (Value::Nil, Value::Nil)
        );
        assert_eq!(reader.integer().unwrap(), -7);
        assert!(reader.next().is_err());
    }

    #[test]
    fn a_refusal_is_an_error_with_the_words_of_redis() {
        let refused = Bytes::from_static(b"+OK\r\n-LOADING the dataset\r\n-EXECABORT\r\n");
        let error = transaction(&refused, 1).err().unwrap();
        assert_eq!(error.to_string(), "LOADING the dataset");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extent { at: 0, left: 3 }.advance(&bytes);
            let mut reader = Reader::new(&bytes);
            while reader.next().is_ok() {}
        }
    }
}
