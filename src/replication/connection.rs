//! The replication connection: login, simple queries, then the copy-both stream.
//!
//! `tokio-postgres` has no replication mode, so this module implements the protocol on the message formats of
//! `postgres-protocol`. Socket IO ([`Connection::progress`]) and parsing ([`Connection::peek`]) are separate, so that a
//! caller can wait for several events at once and be cancelled at any await without losing a byte.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{self, Header, Message};
use postgres_protocol::message::frontend;
use postgres_types::PgLsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::error::SqlState;

use super::frame::{self, Frame};
use super::login::Login;
use crate::core::time::unix_micros;
use crate::net::postgres::Server;
use crate::net::{self, BoxStream};

/// Least free space of the read buffer.
const READ_BYTES_MIN: usize = 64 * 1024;

/// An empty read buffer that a large row has grown beyond this is replaced.
const READ_BUFFER_KEEP_BYTES: usize = 1024 * 1024;

/// Why a replication connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("replication connection lost")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Postgres sent a message that the protocol does not allow here.
    #[error("replication protocol: {0}")]
    Protocol(String),
    /// The login failed, TLS included.
    #[error("replication connection: {0}")]
    Authentication(String),
}

/// An ErrorResponse of Postgres.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    pub code: SqlState,
    pub message: String,
    /// Detail and hint, where given.
    pub detail: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Postgres: {} (SQLSTATE {})", self.message, self.code.code())?;
        if !self.detail.is_empty() {
            write!(f, "; {}", self.detail)?;
        }
        Ok(())
    }
}

impl ServerError {
    /// Another engine reads from the slot.
    pub fn is_slot_in_use(&self) -> bool {
        self.code == SqlState::OBJECT_IN_USE
    }

    /// Postgres may be unable to send a change: one of more than 1 GiB, as `out of memory`, `string buffer exceeds maximum
    /// allowed length` or `invalid memory alloc request size`.
    pub fn is_undecodable(&self) -> bool {
        [
            SqlState::OUT_OF_MEMORY,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            SqlState::INTERNAL_ERROR,
        ]
        .contains(&self.code)
    }
}

/// The row of `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Unique for each `initdb`.
    pub system_id: String,
    /// Grows with each promotion or point-in-time recovery.
    pub timeline: i32,
    /// Current end of WAL.
    pub wal_end: PgLsn,
}

/// A connection in replication mode.
pub struct Connection {
    stream: BoxStream,
    /// Longest message that is read into memory while streaming.
    message_bytes_max: usize,
    /// Bytes of an oversized message that are still to come.
    skipped: usize,
    /// Bytes at which the stream becomes readable.
    receive_low_water: usize,
    inbound: BytesMut,
    outbound: BytesMut,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("inbound", &self.inbound.len())
            .finish_non_exhaustive()
    }
}

/// What [`Connection::start_replication`] requests.
#[derive(Debug, Clone, Copy)]
pub struct StreamRequest<'a> {
    pub slot: &'a str,
    pub publication: &'a str,
    /// Commits before it are left out, as those before the slot's confirmed position are.
    pub from: PgLsn,
    /// Values come in the form of the types' send functions.
    pub is_binary: bool,
    /// Longer messages are not read into memory: [`Connection::peek`] gives their first bytes only.
    pub message_bytes_max: usize,
}

/// What a server is in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerRole {
    Primary,
    Standby,
}

impl Connection {
    /// Connects and logs in to the first host that is reachable and, of several, no standby.
    ///
    /// `sender_timeout` becomes the session's `wal_sender_timeout`, so that Postgres releases the slot of a dead
    /// engine.
    pub async fn connect(server: &Server, connect_timeout: Duration, sender_timeout: Duration) -> Result<Self, Error> {
        let addresses = server.addresses();
        let mut last = Error::Authentication("the connection URL names no host".into());
        for (address, name) in &addresses {
            let login = async {
                let stream = net::connect(address, connect_timeout).await?;
                let secured = server.secure(stream, name).await;
                let secured = secured.map_err(|error| Error::Authentication(format!("{address}: {error}")))?;
                let mut connection = Self {
                    stream: secured.stream,
                    message_bytes_max: usize::MAX,
                    skipped: 0,
                    receive_low_water: 1,
                    inbound: BytesMut::with_capacity(2 * READ_BYTES_MIN),
                    outbound: BytesMut::new(),
                };
                let role = connection
                    .log_in(server.config(), secured.end_point, sender_timeout)
                    .await?;
                Ok((connection, role))
            };
            let problem = match tokio::time::timeout(connect_timeout, login).await {
                Ok(Ok((_, ServerRole::Standby))) if addresses.len() > 1 => {
                    format!("{address} is a standby; the connection URL needs the primary")
                }
                Ok(Ok((connection, _))) => return Ok(connection),
                // As in libpq, a refused login ends the search.
                Ok(Err(error @ (Error::Authentication(_) | Error::Protocol(_)))) => return Err(error),
                Ok(Err(error)) => {
                    last = error;
                    continue;
                }
                Err(_) => format!(
                    "{address} did not complete the login within {} s",
                    connect_timeout.as_secs()
                ),
            };
            last = Error::Authentication(problem);
        }
        Err(last)
    }

    async fn log_in(
        &mut self,
        config: &tokio_postgres::Config,
        end_point: Option<Vec<u8>>,
        sender_timeout: Duration,
    ) -> Result<ServerRole, Error> {
        let mut login = Login::new(config, end_point)?;
        let mut role = ServerRole::Primary;
        login.start(sender_timeout, &mut self.outbound)?;
        loop {
            self.flush().await?;
            match self.message().await? {
                Message::ParameterStatus(body) => {
                    if body.name()? == "in_hot_standby" && body.value()? == "on" {
                        role = ServerRole::Standby;
                    }
                }
                Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => return Ok(role),
                Message::ErrorResponse(body) => return Err(server_error(&body)?.into()),
                request => login.answer(request, &mut self.outbound)?,
            }
        }
    }

    /// Identifies the server.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let row = self.query_row("IDENTIFY_SYSTEM").await?;
        let text = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        Ok(SystemIdentity {
            system_id: text(0),
            timeline: text(1).parse().map_err(|_| unexpected("timeline"))?,
            wal_end: text(2).parse().map_err(|_| unexpected("WAL position"))?,
        })
    }

    /// The history file of a timeline; the first one has none.
    pub async fn timeline_history(&mut self, timeline: i32) -> Result<Option<String>, Error> {
        if timeline <= 1 {
            return Ok(None);
        }
        let row = self.query_row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        Ok(row.get(1).cloned().flatten())
    }

    /// Runs a replication command that gives one row. Older servers accept such commands in upper case only.
    async fn query_row(&mut self, command: &str) -> Result<Vec<Option<String>>, Error> {
        frontend::query(command, &mut self.outbound)?;
        self.flush().await?;
        let mut row = Vec::new();
        let mut failure = None;
        loop {
            match self.message().await? {
                Message::DataRow(body) => {
                    let ranges: Vec<_> = body.ranges().collect()?;
                    row = ranges
                        .into_iter()
                        .map(|range| range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
                        .collect();
                }
                Message::ErrorResponse(body) => failure = Some(server_error(&body)?),
                Message::ReadyForQuery(_) => return failure.map_or(Ok(row), |error| Err(error.into())),
                _ => {}
            }
        }
    }

    /// Starts streaming; frames are then read by [`Connection::peek`].
    ///
    /// # Errors
    /// [`Error::Server`] when the slot is in use, missing or lost.
    pub async fn start_replication(&mut self, request: &StreamRequest<'_>) -> Result<(), Error> {
        let StreamRequest {
            slot,
            publication,
            from,
            is_binary,
            message_bytes_max,
        } = request;
        self.message_bytes_max = *message_bytes_max;
        // Both names consist of a-z, 0-9 and _ (checked by the config).
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} \
             (proto_version '1', publication_names '\"{publication}\"', messages 'true'{})",
            if *is_binary { ", binary 'true'" } else { "" }
        );
        frontend::query(&command, &mut self.outbound)?;
        self.flush().await?;
        loop {
            let header = self.whole_header().await?;
            // The parser of postgres-protocol refuses CopyBothResponse, so it is recognised by its tag.
            if header.tag() == b'W' {
                self.inbound.advance(1 + header_length(header));
                return Ok(());
            }
            match self.message().await? {
                Message::ErrorResponse(body) => return Err(server_error(&body)?.into()),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(unexpected("answer to START_REPLICATION")),
            }
        }
    }

    /// The first complete frame in the buffer, without IO; [`Connection::consume`] removes it.
    ///
    /// # Errors
    /// Also when Postgres has ended the stream.
    pub fn peek(&mut self) -> Result<Option<Frame<'_>>, Error> {
        self.skip();
        loop {
            let Some(header) = Header::parse(&self.inbound)? else {
                return Ok(None);
            };
            let length = 1 + header_length(header);
            if header.tag() == b'd' && length > self.message_bytes_max {
                let Some(content) = self.inbound.get(5..5 + frame::HEAD_BYTES) else {
                    return Ok(None);
                };
                return frame::parse_oversized(content, length - 5)
                    .map(Some)
                    .map_err(|error| Error::Protocol(error.to_string()));
            }
            if self.inbound.len() < length {
                return Ok(None);
            }
            match header.tag() {
                b'd' => break,
                b'E' => {
                    return match backend::Message::parse(&mut self.inbound)? {
                        Some(Message::ErrorResponse(body)) => Err(server_error(&body)?.into()),
                        _ => Err(unexpected("error response")),
                    };
                }
                b'N' | b'S' => self.inbound.advance(length),
                b'c' | b'C' | b'Z' => {
                    return Err(Error::Io(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "Postgres ended the stream",
                    )));
                }
                tag => {
                    return Err(Error::Protocol(format!(
                        "message with tag {tag:#04x} inside the stream"
                    )));
                }
            }
        }
        let Some(header) = Header::parse(&self.inbound)? else {
            return Ok(None);
        };
        let content = &self.inbound[5..1 + header_length(header)];
        frame::parse(content)
            .map(Some)
            .map_err(|error| Error::Protocol(error.to_string()))
    }

    /// Removes the frame that [`Connection::peek`] gave.
    pub fn consume(&mut self) {
        if let Ok(Some(header)) = Header::parse(&self.inbound) {
            self.skipped = 1 + header_length(header);
            self.skip();
        }
    }

    fn skip(&mut self) {
        let length = self.skipped.min(self.inbound.len());
        self.inbound.advance(length);
        self.skipped -= length;
    }

    async fn fill(&mut self) -> Result<(), Error> {
        self.make_room()?;
        match self.stream.read_buf(&mut self.inbound).await? {
            0 => Err(closed()),
            _ => Ok(()),
        }
    }

    fn make_room(&mut self) -> Result<(), Error> {
        if self.inbound.is_empty() && self.inbound.capacity() > READ_BUFFER_KEEP_BYTES {
            self.inbound = BytesMut::with_capacity(2 * READ_BYTES_MIN);
        }
        self.skip();
        // A large message gets its whole space at once instead of by doubling.
        let wanted = match Header::parse(&self.inbound)?.map(|header| 1 + header_length(header)) {
            Some(wanted) if wanted <= self.message_bytes_max => wanted,
            _ => 0,
        };
        self.inbound
            .reserve(READ_BYTES_MIN.max(wanted.saturating_sub(self.inbound.len())));
        Ok(())
    }

    /// Queues a status update; [`Connection::progress`] sends it.
    pub fn queue_status(&mut self, received: PgLsn, flushed: PgLsn, reply_requested: bool) {
        frame::write_status(received, flushed, unix_micros(), reply_requested, &mut self.outbound);
    }

    /// Keeps a stream alive that is not read yet: without status updates Postgres ends it after its sender timeout.
    /// Confirms nothing and completes only by an error. Cancel-safe.
    pub async fn keep_alive(&mut self, interval: Duration) -> Result<Infallible, Error> {
        loop {
            while self.has_outbound() {
                self.progress(false).await?;
            }
            tokio::time::sleep(interval).await;
            self.queue_status(PgLsn::from(0), PgLsn::from(0), false);
        }
    }

    pub fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Makes [`Connection::progress`] read only when this many bytes have arrived; best effort.
    pub fn set_receive_low_water(&mut self, bytes: usize) {
        if bytes != self.receive_low_water {
            self.stream.set_receive_low_water(bytes);
            self.receive_low_water = bytes;
        }
    }

    /// Writes queued bytes or, when `may_read`, reads, whichever is possible first; true when it read. Cancel-safe.
    pub async fn progress(&mut self, may_read: bool) -> Result<bool, Error> {
        if may_read {
            self.make_room()?;
        }
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        tokio::select! {
            written = writer.write_buf(&mut self.outbound), if !self.outbound.is_empty() => match written? {
                0 => Err(Error::Io(io::ErrorKind::WriteZero.into())),
                _ => Ok(false),
            },
            read = reader.read_buf(&mut self.inbound), if may_read => match read? {
                0 => Err(closed()),
                _ => Ok(true),
            },
        }
    }

    /// Writes some of the queued bytes. Cancel-safe.
    async fn write_some(&mut self) -> Result<(), Error> {
        if self.stream.write_buf(&mut self.outbound).await? == 0 {
            return Err(Error::Io(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    /// Ends the stream, so that Postgres releases the slot at once; gives up after a second.
    pub async fn close(mut self) {
        self.set_receive_low_water(1);
        frontend::copy_done(&mut self.outbound);
        frontend::terminate(&mut self.outbound);
        let closing = async {
            self.flush().await?;
            self.stream.shutdown().await?;
            // Postgres releases the slot before it closes the connection.
            let mut sink = [0_u8; 4096];
            while self.stream.read(&mut sink).await? > 0 {}
            Ok::<_, Error>(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), closing).await;
    }

    async fn flush(&mut self) -> Result<(), Error> {
        while self.has_outbound() {
            self.write_some().await?;
        }
        Ok(())
    }

    async fn whole_header(&mut self) -> Result<Header, Error> {
        loop {
            if let Some(header) = Header::parse(&self.inbound)?
                && self.inbound.len() > header_length(header)
            {
                return Ok(header);
            }
            self.fill().await?;
        }
    }

    async fn message(&mut self) -> Result<Message, Error> {
        self.whole_header().await?;
        Message::parse(&mut self.inbound)?.ok_or_else(|| unexpected("end of a message"))
    }
}

/// The length in a header, which includes itself but not the tag. `Header::parse` refuses less than 4.
fn header_length(header: Header) -> usize {
    usize::try_from(header.len()).unwrap_or(4)
}

fn closed() -> Error {
    Error::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "Postgres closed the connection",
    ))
}

pub(super) fn unexpected(what: &str) -> Error {
    Error::Protocol(format!("unexpected {what}"))
}

fn server_error(body: &backend::ErrorResponseBody) -> Result<ServerError, Error> {
    let mut error = ServerError {
        code: SqlState::INTERNAL_ERROR,
        message: String::new(),
        detail: String::new(),
    };
    let mut fields = body.fields();
    while let Some(field) = fields.next()? {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.code = SqlState::from_code(&value),
            b'M' => error.message = value,
            b'D' | b'H' if error.detail.is_empty() => error.detail = value,
            b'D' | b'H' => error.detail = format!("{}; {value}", error.detail),
            _ => {}
        }
    }
    Ok(error)
}
