//! A pooled connection and its prepared statements.
//!
//! A statement names its tenant's schema, so a connection that kept all prepared statements would hold tenants × statements
//! in the memory of Postgres. A connection therefore keeps the statements that it ran last, up to a bound, and prepares a
//! statement when it runs for the second time: rarely used tenants cost no preparation.

use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use futures_util::TryStreamExt as _;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Statement};

use crate::net::postgres::Server;
use crate::postgres::{Param, sql};
use crate::telemetry;

/// Maximum time to cancel a statement.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the connections of the pool.
#[derive(Debug)]
pub struct Manager {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) server: Server,
    /// Most prepared statements of a connection.
    pub(crate) statements_max: usize,
    /// The timeline of the server that is published: connections to a former primary serve no longer.
    pub(crate) timeline: Arc<AtomicI32>,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<Connection, tokio_postgres::Error> {
        // On the heap: each statement may have to connect, and would have room for it in its future.
        let (client, connection) = Box::pin(self.config.connect(self.server.clone())).await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(cause = telemetry::chain(&error), "Postgres connection lost");
            }
        });
        let timeline = async {
            let rows = client.query_typed(&sql!("postgres/timeline"), &[]).await?;
            rows.first().map_or(Ok(0), |row| row.try_get("timeline"))
        };
        let timeline = Box::pin(timeline).await?;
        Ok(Connection {
            client,
            timeline,
            server: self.server.clone(),
            is_abandoned: AtomicBool::new(false),
            task,
            statements: Mutex::new(Recent::new(self.statements_max)),
        })
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<tokio_postgres::Error> {
        if connection.client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        if *connection.is_abandoned.get_mut() {
            return Err(RecycleError::message("a statement of the connection was abandoned"));
        }
        if connection.timeline < self.timeline.load(Ordering::Relaxed) {
            return Err(RecycleError::message("the connection leads to a former primary"));
        }
        Ok(())
    }
}

/// A connection to Postgres.
#[derive(Debug)]
pub struct Connection {
    client: tokio_postgres::Client,
    /// The timeline of its server, which a primary never changes; 0 of a standby.
    timeline: i32,
    /// How to reach the server for a cancellation.
    server: Server,
    /// The caller of a statement went away before its end: the connection must not serve another one.
    is_abandoned: AtomicBool,
    task: JoinHandle<()>,
    statements: Mutex<Recent<Statement>>,
}

impl Connection {
    /// Runs a statement. Cancels it when the future is dropped before its end.
    pub(crate) async fn query_typed(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        let running = Running(Some(self));
        let result = self.client.query_typed(sql, params).await;
        running.ended();
        result
    }

    /// Runs a statement and hands on its rows as they come, so that they are not all in memory, until `each` returns false. Returns
    /// whether all have come. Otherwise the statement is cancelled, and the connection serves no other one.
    pub(crate) async fn query_each(
        &self,
        sql: &str,
        params: &[Param<'_>],
        mut each: impl FnMut(Row) -> bool,
    ) -> Result<bool, tokio_postgres::Error> {
        let running = Running(Some(self));
        let params = params.iter().map(|(value, ty)| (*value, ty.clone()));
        let result = async {
            let mut rows = pin!(self.client.query_typed_raw(sql, params).await?);
            while let Some(row) = rows.try_next().await? {
                if !each(row) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let result = result.await;
        if !matches!(result, Ok(false)) {
            running.ended();
        }
        result
    }

    /// Cancels what runs, on a connection of its own, as the protocol requires. No caller waits for it.
    fn abandon(&self) {
        if self.is_abandoned.swap(true, Ordering::Relaxed) {
            return;
        }
        let (token, server) = (self.client.cancel_token(), self.server.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            match tokio::time::timeout(CANCEL_TIMEOUT, token.cancel_query(server)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(cause = telemetry::chain(&error), "cannot cancel an abandoned statement");
                }
                Err(_) => tracing::debug!("cannot cancel an abandoned statement: Postgres does not respond"),
            }
        });
    }

    /// Runs a frequent statement, prepared from its second time on.
    pub(crate) async fn query_often(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        let running = Running(Some(self));
        let result = self.prepare_and_query(sql, params).await;
        running.ended();
        result
    }

    async fn prepare_and_query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        // The lock is not held across a round trip.
        let found = self.statements.lock().lookup(sql);
        let statement = match found {
            Lookup::New => return self.client.query_typed(sql, params).await,
            Lookup::Unprepared => {
                let types: Vec<Type> = params.iter().map(|(_, ty)| ty.clone()).collect();
                let statement = self.client.prepare_typed(sql, &types).await?;
                self.statements.lock().set_prepared(sql, statement.clone());
                statement
            }
            Lookup::Prepared(statement) => statement,
        };
        let values: Vec<&(dyn ToSql + Sync)> = params.iter().map(|(value, _)| *value).collect();
        match self.client.query(&statement, &values).await {
            Err(error) if is_outdated(&error) => {
                self.statements.lock().remove(sql);
                self.client.query_typed(sql, params).await
            }
            result => result,
        }
    }
}

/// A statement in progress.
struct Running<'a>(Option<&'a Connection>);

impl Running<'_> {
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            connection.abandon();
        }
    }
}

impl Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut tokio_postgres::Client {
        &mut self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a prepared statement is invalid: its table has changed, or a connection pooler assigned another session. Postgres
/// reports this before it executes anything, so the statement can run unprepared.
fn is_outdated(error: &tokio_postgres::Error) -> bool {
    let Some(refusal) = error.as_db_error() else {
        return false;
    };
    let code = refusal.code();
    *code == SqlState::INVALID_SQL_STATEMENT_NAME
        || (*code == SqlState::FEATURE_NOT_SUPPORTED && refusal.routine() == Some("RevalidateCachedQuery"))
}

/// What a connection has recorded of a statement.
#[derive(Debug, PartialEq, Eq)]
enum Lookup<T> {
    /// It did not run here lately.
    New,
    /// It ran here and is not prepared.
    Unprepared,
    Prepared(T),
}

/// The statements that a connection ran last, up to a bound.
#[derive(Debug)]
struct Recent<T>(Option<LruCache<Box<str>, Option<T>>>);

impl<T: Clone> Recent<T> {
    /// With a bound of 0 nothing is prepared.
    fn new(max: usize) -> Self {
        Self(NonZeroUsize::new(max).map(LruCache::new))
    }

    /// Records that a statement runs. A new one evicts the least recently used one, which closes it in Postgres.
    fn lookup(&mut self, sql: &str) -> Lookup<T> {
        let Some(entries) = &mut self.0 else {
            return Lookup::New;
        };
        match entries.get(sql) {
            Some(Some(prepared)) => Lookup::Prepared(prepared.clone()),
            Some(None) => Lookup::Unprepared,
            None => {
                entries.put(sql.into(), None);
                Lookup::New
            }
        }
    }

    /// Keeps a prepared statement, unless its entry was evicted meanwhile.
    fn set_prepared(&mut self, sql: &str, prepared: T) {
        if let Some(entry) = self.0.as_mut().and_then(|entries| entries.peek_mut(sql)) {
            *entry = Some(prepared);
        }
    }

    fn remove(&mut self, sql: &str) {
        if let Some(entries) = &mut self.0 {
            entries.pop(sql);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_beyond_the_bound_evict_the_least_recent() {
        let mut recent = Recent::new(2);
        assert_eq!(recent.lookup("a"), Lookup::New);
        assert_eq!(recent.lookup("a"), Lookup::Unprepared);
        recent.set_prepared("a", 1);
        assert_eq!(recent.lookup("b"), Lookup::New);
        assert_eq!(recent.lookup("a"), Lookup::Prepared(1));
        assert_eq!(recent.lookup("c"), Lookup::New);
        assert_eq!(recent.lookup("a"), Lookup::Prepared(1));
        assert_eq!(recent.lookup("b"), Lookup::New);
        // `c` was evicted while it was prepared.
        recent.set_prepared("c", 2);
        assert_eq!(recent.lookup("c"), Lookup::New);
        recent.remove("c");
        assert_eq!(recent.lookup("c"), Lookup::New);
    }

    #[test]
    fn bound_of_zero_prepares_nothing() {
        let mut recent: Recent<u8> = Recent::new(0);
        assert_eq!(recent.lookup("a"), Lookup::New);
        assert_eq!(recent.lookup("a"), Lookup::New);
    }
}
