//! Transactions that Postgres fails to send.
//!
//! A walsender prints each change into one buffer of at most 1 GiB: the old row and the new one, `bytea` as two digits a byte.
//! A change that does not fit fails, and would fail each time: the slot would stand still for all tenants. After a few attempts
//! the stream goes on behind the commit of that transaction, and the tenants whose tables it changed are resynced. In binary
//! form most such changes fit, so that the tables can be read from the log; otherwise all tenants are resynced.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use postgres_types::PgLsn;

use super::connection::{self, Connection, ServerError, StreamRequest};
use super::difference::CAUSE_LENGTH_MAX;
use super::end::{FailureCause, SessionEnd};
use super::frame::Frame;
use super::startup::{STATUS_INTERVAL, Upstream, stream_request};
use crate::config::Config;
use crate::contract::control::Command;
use crate::decode::pgoutput::{self, Head, Message};
use crate::postgres::{Database, tenants};
use crate::route::router::Router;

/// Longest message of which more than the first bytes are read.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// The way past a transaction.
pub(super) struct Pass<'a> {
    pub(super) config: &'a Config,
    pub(super) database: &'a Database,
    /// The names of all tenants.
    pub(super) tenants: Vec<Arc<str>>,
}

impl Pass<'_> {
    /// Resyncs the tenants whose tables the transaction changed. Returns where the stream goes on.
    pub(super) async fn resync(&self, commit_lsn: PgLsn, error: &ServerError) -> Result<PgLsn, SessionEnd> {
        let (tenants, from) = match self.examine(commit_lsn).await? {
            Some((tables, end_lsn)) => {
                let router = Router::configured(self.config);
                let is_touched = |tenant: &&Arc<str>| {
                    let mut tables = tables.iter();
                    tables.any(|(schema, table)| router.may_be(schema, table, tenant))
                };
                (self.tenants.iter().filter(is_touched).cloned().collect(), end_lsn)
            }
            // Its commit is left out as soon as the stream begins behind the first byte of its record.
            None => (
                self.tenants.clone(),
                PgLsn::from(u64::from(commit_lsn).saturating_add(1)),
            ),
        };
        tracing::error!(
            %commit_lsn, cause = %error, tenants = tenants.len(),
            "Postgres cannot send a transaction, which is left out; recreating the streams of its tenants"
        );
        self.record(&tenants, commit_lsn, error).await?;
        Ok(from)
    }

    /// A stream from there on.
    pub(super) async fn connect(&self, from: PgLsn) -> Result<Connection, SessionEnd> {
        self.stream(&stream_request(&self.config.replication, from)).await
    }

    async fn stream(&self, request: &StreamRequest<'_>) -> Result<Connection, SessionEnd> {
        let upstream = Upstream::parse(self.config)?;
        let mut stream = upstream.connect().await?;
        upstream.within(stream.start_replication(request)).await?;
        Ok(stream)
    }

    async fn record(&self, names: &[Arc<str>], commit_lsn: PgLsn, error: &ServerError) -> anyhow::Result<()> {
        let cause = format!(
            "Postgres cannot send the transaction that was committed at {commit_lsn}, whose changes are in no stream: {error}"
        );
        let cause: String = cause.chars().take(CAUSE_LENGTH_MAX).collect();
        let mut client = self.database.connect_dedicated().await?;
        let transaction = client.transaction().await?;
        let reports = names.iter().map(|tenant| Command::ReportTable {
            tenant: tenant.clone(),
            cause: cause.clone(),
        });
        let reports: Vec<Command> = reports.collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        tenants::resync_within(&transaction, &names).await?;
        tenants::send_all_within(&transaction, &reports).await?;
        transaction
            .commit()
            .await
            .context("cannot request the streams of tenants")
    }

    /// The tables that the transaction changed, by schema and name, and its end; `None` when it cannot be sent in binary form either.
    async fn examine(&self, commit_lsn: PgLsn) -> Result<Option<(BTreeSet<TableName>, PgLsn)>, SessionEnd> {
        let request = StreamRequest {
            is_binary: true,
            message_bytes_max: MESSAGE_BYTES_MAX,
            ..stream_request(&self.config.replication, commit_lsn)
        };
        let mut stream = self.stream(&request).await?;
        let mut examined = Examined::default();
        let mut ticks = tokio::time::interval(STATUS_INTERVAL);
        let end = loop {
            let frame = match stream.peek() {
                Ok(frame) => frame,
                Err(connection::Error::Server(error)) if error.is_undecodable() => break None,
                Err(error) => return Err(error.into()),
            };
            match frame {
                None => {
                    tokio::select! {
                        read = stream.progress(true) => { read?; }
                        _ = ticks.tick() => stream.queue_status(PgLsn::from(0), PgLsn::from(0), false),
                    }
                    continue;
                }
                Some(Frame::XLogData { payload, .. }) => {
                    if let Some(end) = examined.apply(commit_lsn, payload)? {
                        break Some(end);
                    }
                }
                Some(Frame::Oversized { head, .. }) => examined.touch(head)?,
                Some(Frame::Keepalive { .. }) => {}
            }
            stream.consume();
        };
        stream.close().await;
        Ok(end.map(|end| (examined.changed, end)))
    }
}

/// A schema and a table.
type TableName = (String, String);

/// What was read of a transaction.
#[derive(Debug, Default)]
struct Examined {
    /// The tables that were described, by OID.
    described: HashMap<u32, TableName>,
    changed: BTreeSet<TableName>,
}

impl Examined {
    /// Takes in a message; gives the end of the transaction with its last one.
    fn apply(&mut self, commit_lsn: PgLsn, payload: &[u8]) -> Result<Option<PgLsn>, SessionEnd> {
        if let Ok(Head::Row { .. }) = pgoutput::decode_head(payload) {
            self.touch(payload)?;
            return Ok(None);
        }
        match pgoutput::decode(payload).map_err(|error| SessionEnd::Fatal(error.into()))? {
            Message::Begin(begin) if begin.final_lsn != commit_lsn => {
                let error = anyhow!("the transaction that was committed at {commit_lsn} is not in the log any more");
                return Err(SessionEnd::Failed(FailureCause::Postgres, error));
            }
            Message::Commit(commit) => return Ok(Some(commit.end_lsn)),
            Message::Relation(relation) => {
                let name = (relation.namespace.to_owned(), relation.name.to_owned());
                self.described.insert(relation.oid, name);
            }
            Message::Truncate { relations, .. } => relations.into_iter().for_each(|oid| self.change(oid)),
            _ => {}
        }
        Ok(None)
    }

    /// Takes in the beginning of a message.
    fn touch(&mut self, head: &[u8]) -> Result<(), SessionEnd> {
        match pgoutput::decode_head(head).map_err(|error| SessionEnd::Fatal(error.into()))? {
            Head::Row { relation } => self.change(relation),
            Head::Logical { .. } => {}
        }
        Ok(())
    }

    fn change(&mut self, relation: u32) {
        self.changed.extend(self.described.get(&relation).cloned());
    }
}
