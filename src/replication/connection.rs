//! The replication connection: startup, authentication, simple queries, then the copy-both stream.
//!
//! `tokio-postgres` has no replication mode, so the wire is ours, on the message formats of `postgres-protocol`.
//! Reading and writing are split into "make progress on the socket" and "take what is complete", so that a caller can
//! wait for several things at once and be cancelled at any await without losing a byte.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::backend::{self, Header, Message};
use postgres_protocol::message::frontend;
use postgres_types::PgLsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::config::ChannelBinding as Binding;

use super::frame::{self, Frame};
use crate::net::postgres::Server;
use crate::net::{self, BoxStream};

/// Bytes that the read buffer offers to the socket at least.
const READ_BYTES_MIN: usize = 64 * 1024;

/// Size from which an emptied read buffer, grown by a large row, is given back.
const READ_BUFFER_KEEP_BYTES: usize = 1024 * 1024;

/// Why a replication connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("replication connection lost")]
    Io(#[from] io::Error),
    /// Postgres reported an error.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Postgres sent what the protocol does not foresee here.
    #[error("replication protocol: {0}")]
    Protocol(String),
    /// No way to log in, TLS included.
    #[error("replication connection: {0}")]
    Authentication(String),
}

/// An ErrorResponse of Postgres.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    /// SQLSTATE (Postgres appendix A).
    pub code: String,
    /// Its message.
    pub message: String,
    /// Detail and hint, where given.
    pub detail: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres: {} (SQLSTATE {})", self.message, self.code)?;
        if !self.detail.is_empty() {
            write!(f, "; {}", self.detail)?;
        }
        Ok(())
    }
}

impl ServerError {
    /// `object_in_use`: another engine reads from the slot.
    pub fn is_slot_in_use(&self) -> bool {
        self.code == "55006"
    }
}

/// Whom `IDENTIFY_SYSTEM` says we talk to.
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
    /// Bytes at which the stream wakes us.
    wakes_at: usize,
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

impl Connection {
    /// Connects and logs in to the first reachable host.
    ///
    /// `sender_timeout` becomes the session's `wal_sender_timeout`, so that a dead engine's slot is let go.
    ///
    /// # Errors
    /// When no host answers, TLS or the login fails, or the role may not replicate.
    pub async fn connect(server: &Server, connect_timeout: Duration, sender_timeout: Duration) -> Result<Self, Error> {
        let mut last = Error::Authentication("the connection URL names no host".into());
        for (address, name) in server.addresses() {
            match net::connect(&address, connect_timeout).await {
                Ok(stream) => {
                    let login = async {
                        let secured = server.secure(stream, &name).await;
                        let secured = secured.map_err(|error| Error::Authentication(format!("{address}: {error}")))?;
                        let mut connection = Self {
                            stream: secured.stream,
                            wakes_at: 1,
                            inbound: BytesMut::with_capacity(2 * READ_BYTES_MIN),
                            outbound: BytesMut::new(),
                        };
                        connection
                            .log_in(server.config(), secured.end_point, sender_timeout)
                            .await?;
                        Ok(connection)
                    };
                    return match tokio::time::timeout(connect_timeout, login).await {
                        Ok(result) => result,
                        Err(_) => Err(Error::Authentication(format!(
                            "{address} did not complete the login within {} s",
                            connect_timeout.as_secs()
                        ))),
                    };
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Logs in, bound to the server's end of an encrypted channel where both sides can.
    async fn log_in(
        &mut self,
        config: &tokio_postgres::Config,
        end_point: Option<Vec<u8>>,
        sender_timeout: Duration,
    ) -> Result<(), Error> {
        let user = config
            .get_user()
            .ok_or_else(|| Error::Authentication("the connection URL names no user".into()))?;
        let timeout = sender_timeout.as_millis().to_string();
        // Column values come as text, and text follows these settings: pin them, whatever the role or database says.
        let parameters = [
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("replication", "database"),
            ("application_name", "posduif replicator"),
            ("client_encoding", "UTF8"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO, YMD"),
            ("IntervalStyle", "postgres"),
            ("extra_float_digits", "1"),
            ("bytea_output", "hex"),
            ("wal_sender_timeout", &timeout),
        ];
        frontend::startup_message(parameters, &mut self.outbound)?;
        let must_bind = config.get_channel_binding() == Binding::Require;
        let mut end_point = end_point.filter(|_| config.get_channel_binding() != Binding::Disable);
        // The exchange under way, and whether it proved that the server knows the password and ends our channel.
        let mut scram: Option<ScramSha256> = None;
        let mut is_bound = false;
        let password = || {
            config.get_password().ok_or_else(|| {
                Error::Authentication(format!("postgres wants a password for user {user}, the URL has none"))
            })
        };
        loop {
            self.flush().await?;
            match self.message().await? {
                Message::AuthenticationOk if scram.is_some() => {
                    return Err(Error::Authentication(
                        "the server let us in without proof that it knows the password".into(),
                    ));
                }
                Message::AuthenticationOk if must_bind && !is_bound => {
                    return Err(unbound("the server wants no login for this user (see its pg_hba.conf)"));
                }
                Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_) if must_bind => {
                    return Err(unbound(
                        "the server wants no SCRAM login for this user (see its pg_hba.conf)",
                    ));
                }
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password()?, &mut self.outbound)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.outbound)?;
                }
                Message::AuthenticationSasl(body) => {
                    let offered: Vec<&str> = body.mechanisms().collect()?;
                    let offers_binding = offered.contains(&sasl::SCRAM_SHA_256_PLUS);
                    let (mechanism, binding) = match end_point.take() {
                        Some(end_point) if offers_binding => {
                            is_bound = true;
                            (
                                sasl::SCRAM_SHA_256_PLUS,
                                ChannelBinding::tls_server_end_point(end_point),
                            )
                        }
                        // The server refuses if it did offer, and somebody in between took the offer away.
                        Some(_) => (sasl::SCRAM_SHA_256, ChannelBinding::unrequested()),
                        None => (sasl::SCRAM_SHA_256, ChannelBinding::unsupported()),
                    };
                    if must_bind && !is_bound {
                        return Err(unbound(
                            "it needs TLS (sslmode=require or stronger) and a certificate whose signature names a hash",
                        ));
                    }
                    if !offered.contains(&mechanism) {
                        return Err(Error::Authentication(format!(
                            "postgres offers only {}; SCRAM-SHA-256 is needed",
                            offered.join(", ")
                        )));
                    }
                    let exchange = ScramSha256::new(password()?, binding);
                    frontend::sasl_initial_response(mechanism, exchange.message(), &mut self.outbound)?;
                    scram = Some(exchange);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let exchange = scram.as_mut().ok_or_else(|| unexpected("SASL continuation"))?;
                    exchange.update(body.data())?;
                    frontend::sasl_response(exchange.message(), &mut self.outbound)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let mut exchange = scram.take().ok_or_else(|| unexpected("SASL end"))?;
                    exchange.finish(body.data())?;
                }
                Message::ParameterStatus(_) | Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(server_error(&body)?.into()),
                Message::AuthenticationGss
                | Message::AuthenticationKerberosV5
                | Message::AuthenticationScmCredential
                | Message::AuthenticationSspi => {
                    return Err(Error::Authentication(
                        "postgres wants a login method other than password, MD5 or SCRAM-SHA-256".into(),
                    ));
                }
                _ => return Err(unexpected("message during login")),
            }
        }
    }

    /// Asks whom we talk to.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let row = self.query_row("IDENTIFY_SYSTEM").await?;
        let text = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        Ok(SystemIdentity {
            system_id: text(0),
            timeline: text(1).parse().map_err(|_| unexpected("timeline"))?,
            wal_end: text(2).parse().map_err(|_| unexpected("WAL position"))?,
        })
    }

    /// The history file of a timeline, `None` for the first one, which has none.
    ///
    /// # Errors
    /// When the connection fails or the server has lost the file.
    pub async fn timeline_history(&mut self, timeline: i32) -> Result<Option<String>, Error> {
        if timeline <= 1 {
            return Ok(None);
        }
        let row = self.query_row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        Ok(row.get(1).cloned().flatten())
    }

    /// Runs a replication command that gives one row. Such commands must be upper case: older servers' grammar knows
    /// no other.
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

    /// Starts streaming from the slot's confirmed position; from then on use [`Connection::peek`].
    ///
    /// # Errors
    /// [`Error::Server`] when the slot is in use, missing or lost.
    pub async fn start_replication(&mut self, slot: &str, publication: &str) -> Result<(), Error> {
        // 0/0 means: where the slot stands. Both names consist of a-z, 0-9 and _ (checked by the config).
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 \
             (proto_version '1', publication_names '\"{publication}\"', messages 'true')"
        );
        frontend::query(&command, &mut self.outbound)?;
        self.flush().await?;
        loop {
            let header = self.whole_header().await?;
            // postgres-protocol's parser refuses CopyBothResponse, so it is taken by its tag.
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

    /// The first complete frame in the buffer, without IO; [`Connection::consume`] takes it away.
    ///
    /// # Errors
    /// When Postgres ended the stream, or sent what is not understood.
    pub fn peek(&mut self) -> Result<Option<Frame<'_>>, Error> {
        loop {
            let Some(header) = Header::parse(&self.inbound)? else {
                return Ok(None);
            };
            let length = 1 + header_length(header);
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
                        "postgres ended the stream",
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

    /// Takes away the frame that [`Connection::peek`] gave.
    pub fn consume(&mut self) {
        if let Ok(Some(header)) = Header::parse(&self.inbound) {
            let length = (1 + header_length(header)).min(self.inbound.len());
            self.inbound.advance(length);
        }
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
        // A large message gets its whole room at once instead of by doublings.
        let wanted = Header::parse(&self.inbound)?.map_or(0, |header| 1 + header_length(header));
        self.inbound
            .reserve(READ_BYTES_MIN.max(wanted.saturating_sub(self.inbound.len())));
        Ok(())
    }

    /// Queues a status update; [`Connection::progress`] sends it.
    pub fn queue_status(&mut self, received: PgLsn, flushed: PgLsn, wants_answer: bool) {
        frame::write_status(received, flushed, unix_micros(), wants_answer, &mut self.outbound);
    }

    /// Keeps a stream alive that is not read yet: without a word Postgres would end it after its sender timeout. Confirms
    /// nothing. Never completes but by an error; safe to cancel.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn keep_alive(&mut self, interval: Duration) -> Result<Infallible, Error> {
        loop {
            while self.has_outbound() {
                self.progress(false).await?;
            }
            tokio::time::sleep(interval).await;
            self.queue_status(PgLsn::from(0), PgLsn::from(0), false);
        }
    }

    /// Whether something is queued.
    pub fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Asks [`Connection::progress`] to read only once so many bytes are there; best effort.
    pub fn set_receive_low_water(&mut self, bytes: usize) {
        if bytes != self.wakes_at {
            self.stream.set_receive_low_water(bytes);
            self.wakes_at = bytes;
        }
    }

    /// Writes what is queued and, when `may_read`, reads what is there, whichever is possible first; true when it
    /// read. Safe to cancel.
    ///
    /// # Errors
    /// When the connection has ended.
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

    /// Writes some of what is queued. Safe to cancel.
    ///
    /// # Errors
    /// When the connection has ended.
    async fn write_some(&mut self) -> Result<(), Error> {
        if self.stream.write_buf(&mut self.outbound).await? == 0 {
            return Err(Error::Io(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    /// Ends the stream so that the slot is free at once; gives up after a second.
    pub async fn close(mut self) {
        self.set_receive_low_water(1);
        frontend::copy_done(&mut self.outbound);
        frontend::terminate(&mut self.outbound);
        let farewell = async {
            self.flush().await?;
            self.stream.shutdown().await?;
            // The slot is released before the server closes its side.
            let mut sink = [0_u8; 4096];
            while self.stream.read(&mut sink).await? > 0 {}
            Ok::<_, Error>(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
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
        Message::parse(&mut self.inbound)?.ok_or_else(|| unexpected("cut message"))
    }
}

/// The length that a header declares, itself included, the tag not. `Header::parse` refuses less than 4.
fn header_length(header: Header) -> usize {
    usize::try_from(header.len()).unwrap_or(4)
}

fn closed() -> Error {
    Error::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "postgres closed the connection",
    ))
}

fn unbound(why: &str) -> Error {
    Error::Authentication(format!(
        "`channel_binding=require`, but the login cannot be bound to TLS: {why}"
    ))
}

fn unexpected(what: &str) -> Error {
    Error::Protocol(format!("unexpected {what}"))
}

fn server_error(body: &backend::ErrorResponseBody) -> Result<ServerError, Error> {
    let mut error = ServerError {
        code: String::new(),
        message: String::new(),
        detail: String::new(),
    };
    let mut fields = body.fields();
    while let Some(field) = fields.next()? {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' | b'H' if error.detail.is_empty() => error.detail = value,
            b'D' | b'H' => error.detail = format!("{}; {value}", error.detail),
            _ => {}
        }
    }
    Ok(error)
}

/// Now, in µs since 1970.
pub(super) fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
