//! Ordinary SQL: the connection pool, its errors, and statements in a tenant's schema.
//!
//! Statements live in `sql/<feature>/*.sql`, one a file, and name a tenant's schema by the placeholder `{schema}`
//! ([`Statement::in_schema`]). They run as unnamed typed statements: one round trip each, planned for their values. Frequent
//! statements that find rows by a key are prepared, within a bound ([`connection`]). Only DDL, whose names cannot be
//! parameters, is composed in code, from quoted identifiers.
//!
//! Tenants share the connections ([`shares`]): one whose tables are locked leaves some to the others.
//!
//! Every session formats values as the replication connection does, in UTC, and has timeouts for statements, locks and idle
//! transactions. `search_path` is not set: each name is qualified.

pub mod audit;
pub mod connection;
mod error;
pub mod migrations;
pub mod publication;
pub mod shares;
pub mod statement;
pub mod tenants;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use connection::{Connection, Manager};
use deadpool::Runtime;
use deadpool::managed::{Hook, HookError, Object, Pool};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::config;
use crate::core::tenant::Tenant;
use crate::net::postgres::Server;
use crate::telemetry::metrics::Operations;
use crate::telemetry::traces;
pub use error::Error;
use shares::{Share, Shares};
pub use statement::Statement;
pub(crate) use statement::sql;

/// A pooled connection used within this time is not checked.
const TRUSTED: Duration = Duration::from_secs(1);

/// Timeout of the check of a pooled connection.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Time beyond `statement_timeout` after which the client gives a statement up: the server does not respond.
const STATEMENT_GRACE: Duration = Duration::from_secs(2);

/// A connection of the pool; dropping it returns it.
#[derive(Debug)]
pub struct Client {
    // Returned before the share.
    connection: Object<Manager>,
    _share: Option<Share>,
}

impl Deref for Client {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// A parameter and its type.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Usage of the pool, in connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// Open and free.
    pub idle: usize,
    /// In use, or being opened.
    pub in_use: usize,
    pub max: usize,
    /// Callers that wait for one.
    pub waiting: usize,
    /// Number of checkouts.
    pub taken: u64,
}

/// The pool of ordinary SQL connections. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Database {
    pool: Pool<Manager>,
    shares: Shares,
    config: tokio_postgres::Config,
    server: Server,
    connect_timeout: Duration,
    statement_timeout: Duration,
    operations: Operations,
    /// Time until a connection was available, opening and checking included.
    waits: Histogram,
    taken: Arc<AtomicU64>,
    timeline: Arc<AtomicI32>,
}

impl Database {
    /// Creates the pool and checks one connection. The other connections are opened on demand.
    pub async fn connect(settings: &config::Postgres) -> anyhow::Result<Self> {
        let server = Server::parse(settings.url.expose()).context("key `postgres.url`")?;
        let mut config = server.config().clone();
        let timeout = Duration::from_secs(settings.connect_timeout_seconds);
        let own = format!(
            "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=1 -c bytea_output=hex \
             -c client_min_messages=warning -c statement_timeout={query_ms} -c lock_timeout={lock_ms} \
             -c idle_in_transaction_session_timeout={query_ms}",
            query_ms = settings.query_timeout_seconds * 1000,
            lock_ms = settings.lock_timeout_seconds * 1000,
        );
        let options = match config.get_options() {
            Some(theirs) => format!("{own} {theirs}"),
            None => own,
        };
        config.options(options).connect_timeout(timeout);
        if config.get_application_name().is_none() {
            config.application_name("posduif");
        }
        let timeline = Arc::<AtomicI32>::default();
        let manager = Manager {
            config: config.clone(),
            server: server.clone(),
            statements_max: settings.prepared_statements_max,
            timeline: timeline.clone(),
        };
        let pool = Pool::builder(manager)
            .max_size(settings.pool_size)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .recycle_timeout(Some(timeout))
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::async_fn(|client: &mut Connection, metrics| {
                // A half-open connection looks idle.
                let is_trusted = metrics.last_used() < TRUSTED;
                Box::pin(async move {
                    if is_trusted {
                        return Ok(());
                    }
                    match tokio::time::timeout(CHECK_TIMEOUT, client.simple_query("")).await {
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(error)) => Err(HookError::Backend(error)),
                        Err(_) => Err(HookError::message("the connection does not respond")),
                    }
                })
            }))
            .build()
            .context("cannot create the Postgres connection pool")?;
        let statement_timeout = Duration::from_secs(settings.query_timeout_seconds) + STATEMENT_GRACE;
        let database = Self {
            pool,
            shares: Shares::new(settings.pool_size),
            config,
            server,
            connect_timeout: timeout,
            statement_timeout,
            operations: Operations::new("statement"),
            // 0.1 ms to 6.5 s.
            waits: Histogram::new(exponential_buckets(0.000_1, 4.0, 9)),
            taken: Arc::default(),
            timeline,
        };
        database.check().await.with_context(|| {
            format!(
                "cannot use Postgres at {}; check that it runs and `postgres.url` (or DATABASE_URL)",
                database.address()
            )
        })?;
        Ok(database)
    }

    /// Names the timeline of the server that is published. Connections to a server of an earlier one are replaced: after a
    /// failover, those to a former primary that still runs would go on.
    pub fn require_timeline(&self, timeline: i32) {
        self.timeline.store(timeline, Ordering::Relaxed);
    }

    /// A connection of the pool, within `postgres.connect_timeout_seconds`, for statements that need no tables of tenants.
    pub async fn get(&self) -> Result<Client, Error> {
        self.checkout(None).await
    }

    /// A connection of the pool for statements that need tables of a tenant, within twice that time.
    pub async fn get_for(&self, tenant: &Tenant) -> Result<Client, Error> {
        self.checkout(Some(&tenant.name)).await
    }

    async fn checkout(&self, tenant: Option<&str>) -> Result<Client, Error> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let client = async {
            let share = match tenant {
                Some(tenant) => Some(self.share(tenant).await?),
                None => None,
            };
            Ok(Client {
                connection: self.pool.get().await?,
                _share: share,
            })
        };
        let client = client.await;
        self.waits.observe(started.elapsed().as_secs_f64());
        client
    }

    async fn share(&self, tenant: &str) -> Result<Share, Error> {
        match tokio::time::timeout(self.connect_timeout, self.shares.take(tenant)).await {
            Ok(share) => Ok(share),
            Err(_) => {
                let seconds = self.connect_timeout.as_secs();
                let message =
                    format!("the statements of tenant {tenant} hold its share of the connections for {seconds} s");
                Err(Error::unavailable(message))
            }
        }
    }

    /// A connection outside of the pool and without timeouts, for work that holds session locks: dropping it releases them.
    pub async fn connect_dedicated(&self) -> Result<tokio_postgres::Client, Error> {
        // The timeout in `config` covers the socket only, not a server that accepts and does not respond.
        let connecting = Box::pin(self.config.connect(self.server.clone()));
        let connecting = tokio::time::timeout(self.connect_timeout, connecting);
        let (client, connection) = match connecting.await {
            Ok(connected) => connected.map_err(|error| match error.as_db_error() {
                Some(_) => Error::from(error),
                None => Error::of_connecting(&error),
            })?,
            Err(_) => {
                let seconds = self.connect_timeout.as_secs();
                return Err(Error::unavailable(format!("no connection within {seconds} s")));
            }
        };
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(cause = crate::telemetry::chain(&error), "Postgres connection lost");
            }
        });
        client
            .batch_execute(
                "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0",
            )
            .await?;
        Ok(client)
    }

    /// The time after which a statement of the pool has ended, at the latest.
    pub fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// Runs one statement in one round trip and returns all its rows.
    pub async fn query(&self, statement: &Statement, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        let client = self.checkout(statement.tenant()).await?;
        self.in_time(statement, client.query_typed(statement, params)).await
    }

    /// Like [`Database::query_opt`], for a frequent statement: connections keep it prepared. It must find its rows by a key,
    /// because Postgres may use a generic plan for it.
    pub async fn query_often(&self, statement: &Statement, params: &[Param<'_>]) -> Result<Option<Row>, Error> {
        let client = self.checkout(statement.tenant()).await?;
        let rows = self.in_time(statement, client.query_often(statement, params)).await?;
        Ok(rows.into_iter().next())
    }

    /// Runs one statement whose rows may be large, and hands them on as they come. When `each` returns false, it is cancelled,
    /// which costs its connection: a statement should not often have more rows than are wanted. Returns whether all have come.
    pub async fn query_each(
        &self,
        statement: &Statement,
        params: &[Param<'_>],
        each: impl FnMut(Row) -> bool,
    ) -> Result<bool, Error> {
        let client = self.checkout(statement.tenant()).await?;
        self.in_time(statement, client.query_each(statement, params, each))
            .await
    }

    async fn in_time<T>(
        &self,
        statement: &Statement,
        rows: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.statement_timeout, self.counted(statement, rows)).await {
            Ok(rows) => rows,
            Err(_) => {
                self.ended(statement, Instant::now() - self.statement_timeout, Some("timeout"));
                Err(Error::unavailable(format!(
                    "no answer within {} s",
                    self.statement_timeout.as_secs()
                )))
            }
        }
    }

    /// Records metrics and a span of a statement that runs on a connection of the caller.
    pub async fn counted<T>(
        &self,
        statement: &Statement,
        running: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let result = running.await.map_err(Error::from);
        let failed = result.as_ref().err().map(Error::kind);
        self.ended(statement, started, failed);
        result
    }

    /// Records a finished statement, successful or not.
    fn ended(&self, statement: &Statement, started: Instant, failed: Option<&'static str>) {
        let name = statement.name();
        self.operations.ended(name, started.elapsed(), failed);
        traces::operation_ended("postgresql", name, started, failed);
    }

    /// Counts and durations of the statements of this process.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Time until connections were available, in seconds.
    pub fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// Runs one statement in one round trip and returns its first row.
    pub async fn query_opt(&self, statement: &Statement, params: &[Param<'_>]) -> Result<Option<Row>, Error> {
        Ok(self.query(statement, params).await?.into_iter().next())
    }

    /// Checks that Postgres responds.
    pub async fn check(&self) -> Result<(), Error> {
        self.get().await?.simple_query("SELECT 1").await?;
        Ok(())
    }

    pub fn pool_use(&self) -> PoolUse {
        let status = self.pool.status();
        PoolUse {
            idle: status.available,
            in_use: status.size.saturating_sub(status.available),
            max: status.max_size,
            waiting: status.waiting + self.shares.waiting(),
            taken: self.taken.load(Ordering::Relaxed),
        }
    }

    /// Host, port and database, without the secrets of the URL.
    fn address(&self) -> String {
        let hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .map(|host| match host {
                tokio_postgres::config::Host::Tcp(name) => name.clone(),
                tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let ports: Vec<String> = self.config.get_ports().iter().map(u16::to_string).collect();
        format!(
            "{}:{} (database {}, user {})",
            hosts.join(","),
            if ports.is_empty() {
                "5432".to_owned()
            } else {
                ports.join(",")
            },
            self.config.get_dbname().unwrap_or("by default the user's name"),
            self.config.get_user().unwrap_or("by default the system's"),
        )
    }
}
