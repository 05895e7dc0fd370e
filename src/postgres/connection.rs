//! A pooled connection, and the statements that it has prepared.
//!
//! A statement names its tenant's schema, so each tenant has statements of its own, and a connection that kept all of them
//! would hold tenants × statements in Postgres' memory. So a connection keeps those that it ran last, up to a bound, and
//! prepares one when it sees it for the second time: of a thousand tenants that rarely ask, none costs a preparation.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Statement};

use crate::net::postgres::Server;
use crate::postgres::Param;

/// Makes the pool's connections.
#[derive(Debug)]
pub struct Manager {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) server: Server,
    /// Most statements that a connection keeps.
    pub(crate) statements_max: usize,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<Connection, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(self.server.clone()).await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "a Postgres connection broke");
            }
        });
        Ok(Connection {
            client,
            task,
            statements: Mutex::new(Recent::new(self.statements_max)),
        })
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<tokio_postgres::Error> {
        if connection.client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        Ok(())
    }
}

/// A connection to Postgres.
#[derive(Debug)]
pub struct Connection {
    client: tokio_postgres::Client,
    task: JoinHandle<()>,
    statements: Mutex<Recent<Statement>>,
}

impl Connection {
    /// Runs a statement that comes often, prepared if it was here before.
    pub(crate) async fn query_often(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        // Not held while Postgres is asked.
        let seen = self.statements.lock().unwrap_or_else(PoisonError::into_inner).see(sql);
        let statement = match seen {
            Seen::First => None,
            Seen::Again => {
                let types: Vec<Type> = params.iter().map(|(_, ty)| ty.clone()).collect();
                let statement = self.client.prepare_typed(sql, &types).await?;
                let mut statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
                statements.keep(sql, statement.clone());
                Some(statement)
            }
            Seen::Kept(statement) => Some(statement),
        };
        let Some(statement) = statement else {
            return self.client.query_typed(sql, params).await;
        };
        let values: Vec<&(dyn ToSql + Sync)> = params.iter().map(|(value, _)| *value).collect();
        match self.client.query(&statement, &values).await {
            Err(error) if is_outdated(&error) => {
                self.statements
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .forget(sql);
                self.client.query_typed(sql, params).await
            }
            result => result,
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

/// Whether a prepared statement no longer fits: its table has changed, or a pooler between us and Postgres gave us
/// another session. Postgres says so before it does anything, so the statement can run in another way.
fn is_outdated(error: &tokio_postgres::Error) -> bool {
    let Some(refusal) = error.as_db_error() else {
        return false;
    };
    let code = refusal.code();
    *code == SqlState::INVALID_SQL_STATEMENT_NAME
        || (*code == SqlState::FEATURE_NOT_SUPPORTED && refusal.routine() == Some("RevalidateCachedQuery"))
}

/// Whether a statement was run here before.
#[derive(Debug, PartialEq, Eq)]
enum Seen<T> {
    /// Not lately.
    First,
    /// Yes, and nothing is kept of it.
    Again,
    /// Yes, and this is kept.
    Kept(T),
}

/// What was run last, up to a bound.
#[derive(Debug)]
struct Recent<T> {
    entries: HashMap<Box<str>, Entry<T>>,
    max: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry<T> {
    used: u64,
    kept: Option<T>,
}

impl<T: Clone> Recent<T> {
    fn new(max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            max,
            clock: 0,
        }
    }

    /// Notes that a statement runs; what was used least recently makes room for a new one.
    fn see(&mut self, sql: &str) -> Seen<T> {
        if self.max == 0 {
            return Seen::First;
        }
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(sql) {
            entry.used = self.clock;
            return match &entry.kept {
                Some(kept) => Seen::Kept(kept.clone()),
                None => Seen::Again,
            };
        }
        if self.entries.len() >= self.max {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(sql, _)| sql.clone()) {
                // Dropped, it is closed in Postgres as well.
                self.entries.remove(&oldest);
            }
        }
        let used = self.clock;
        self.entries.insert(sql.into(), Entry { used, kept: None });
        Seen::First
    }

    fn keep(&mut self, sql: &str, kept: T) {
        if let Some(entry) = self.entries.get_mut(sql) {
            entry.kept = Some(kept);
        }
    }

    fn forget(&mut self, sql: &str) {
        self.entries.remove(sql);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_used_last_are_kept() {
        let mut recent = Recent::new(2);
        assert_eq!(recent.see("a"), Seen::First);
        assert_eq!(recent.see("a"), Seen::Again);
        recent.keep("a", 1);
        assert_eq!(recent.see("b"), Seen::First);
        assert_eq!(recent.see("a"), Seen::Kept(1));
        // Makes room by the one used least recently.
        assert_eq!(recent.see("c"), Seen::First);
        assert_eq!(recent.see("a"), Seen::Kept(1));
        assert_eq!(recent.see("b"), Seen::First);
        assert_eq!(recent.entries.len(), 2);
        // What has gone meanwhile is not kept beyond the bound.
        recent.keep("c", 2);
        assert_eq!(recent.entries.len(), 2);
        recent.forget("a");
        assert_eq!(recent.see("a"), Seen::First);
    }

    #[test]
    fn a_bound_of_none_keeps_nothing() {
        let mut recent: Recent<u8> = Recent::new(0);
        assert_eq!(recent.see("a"), Seen::First);
        assert_eq!(recent.see("a"), Seen::First);
    }
}
