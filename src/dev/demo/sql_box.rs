//! Statements of the demo's page. Each runs in a session of its own, under a login that has no rights but those of
//! `sql/dev/demo_role.sql`: the page can neither become the superuser nor leave anything behind in a session.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

use super::data;
use crate::dev::allocate::random_hex;
use crate::postgres::{Database, sql};

const ROLE: &str = "posduif_demo";

/// Timeout of a whole request: the statement has 2 s.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Options of the session. They take precedence over those that the role may have set for itself.
const OPTIONS: &str = "-c statement_timeout=2000 -c lock_timeout=1000 -c idle_in_transaction_session_timeout=2000 \
                       -c search_path=tenant_demo -c TimeZone=UTC";

/// Rows of a result that are returned.
const ROWS_MAX: usize = 50;

/// Bytes of the values of a result that are returned.
const BYTES_MAX: usize = 64 * 1024;

/// Bytes that a session may send: a result of any size must not fill the memory.
const SESSION_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Runs statements.
#[derive(Debug)]
pub(super) struct SqlBox {
    /// The owner's connections.
    owner: Database,
    has_tables: bool,
    /// Where the private Postgres listens, and the login.
    login: Mutex<Config>,
    port: u16,
}

/// The result of a statement.
#[derive(Debug, Serialize)]
pub(super) struct Output {
    command: String,
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    truncated: bool,
    ms: f64,
}

/// Why a statement has no result.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) sqlstate: Option<String>,
}

impl SqlBox {
    /// Creates the role and gives it its rights.
    pub(super) async fn create(owner: Database, port: u16, database: &str, has_tables: bool) -> Result<Self> {
        let mut login = Config::new();
        login
            .user(ROLE)
            .dbname(database)
            .options(OPTIONS)
            .application_name("posduif demo");
        let new = Self {
            owner,
            has_tables,
            login: Mutex::new(login),
            port,
        };
        new.set_role().await.context("cannot create the role of the SQL box")?;
        Ok(new)
    }

    async fn set_role(&self) -> Result<()> {
        let tenant = data::tenant()?;
        let password = random_hex::<32>()?;
        let role = sql!("dev/demo_role", tenant).replace("{password}", &password);
        let mut client = self.owner.connect_dedicated().await?;
        let transaction = client.transaction().await?;
        // Their text has the password.
        transaction.batch_execute("SET LOCAL log_statement = 'none'").await?;
        transaction.batch_execute(&role).await?;
        if self.has_tables {
            transaction.batch_execute(&sql!("dev/demo_role_tables", tenant)).await?;
        }
        transaction.commit().await?;
        self.login.lock().password(password);
        Ok(())
    }

    /// Runs a statement and returns the first rows of its result, with the values as text.
    pub(super) async fn run(&self, statement: &str) -> Result<Output, Refusal> {
        match timeout(TIMEOUT, self.run_in_session(statement)).await {
            Ok(result) => result,
            Err(_) => {
                self.end_sessions().await;
                Err(Refusal::of(format!("no result within {} s", TIMEOUT.as_secs())))
            }
        }
    }

    async fn run_in_session(&self, statement: &str) -> Result<Output, Refusal> {
        let session = match self.connect().await {
            // A role may change its own password.
            Err(refusal) if refusal.sqlstate.as_deref() == Some(SqlState::INVALID_PASSWORD.code()) => {
                self.set_role()
                    .await
                    .map_err(|error| Refusal::of(format!("{error:#}")))?;
                self.connect().await
            }
            connected => connected,
        };
        let (client, _connection) = session?;
        let started = Instant::now();
        let mut output = execute(&client, statement)
            .await
            .map_err(|error| Refusal::of_error(&error))?;
        output.ms = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        Ok(output)
    }

    async fn connect(&self) -> Result<(Client, AbortOnDropHandle<()>), Refusal> {
        let login = self.login.lock().clone();
        let connecting = TcpStream::connect(("127.0.0.1", self.port));
        let stream = connecting
            .await
            .map_err(|error| Refusal::of(format!("Postgres does not answer: {error}")))?;
        // Only latency depends on it.
        stream.set_nodelay(true).ok();
        let (reader, writer) = stream.into_split();
        let stream = tokio::io::join(reader.take(SESSION_BYTES_MAX), writer);
        let connecting = login.connect_raw(stream, NoTls).await;
        let (client, connection) = connecting.map_err(|error| Refusal::of_error(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
        Ok((client, connection))
    }

    /// Ends sessions that outlast their statement's timeout.
    async fn end_sessions(&self) {
        let seconds = TIMEOUT.as_secs_f64() - 0.5;
        let ended = self
            .owner
            .query(&sql!("dev/demo_sessions_end"), &[(&seconds, Type::FLOAT8)])
            .await;
        if let Err(error) = ended {
            tracing::warn!(%error, "cannot end a session of the demo's SQL box");
        }
    }
}

/// Runs a statement: prepared, which Postgres refuses for several in one text, then by the simple protocol, whose values are
/// text.
async fn execute(client: &Client, statement: &str) -> Result<Output, tokio_postgres::Error> {
    drop(client.prepare(statement).await?);
    let messages = client.simple_query_raw(statement).await?;
    let mut messages = std::pin::pin!(messages);
    let mut output = Output {
        command: String::new(),
        columns: Vec::new(),
        rows: Vec::new(),
        truncated: false,
        ms: 0.0,
    };
    let mut bytes = 0;
    // To its end: an INSERT with many returned rows must complete.
    while let Some(message) = messages.try_next().await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                output.columns = columns.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                bytes += row_bytes(&row);
                output.truncated |= output.rows.len() == ROWS_MAX || bytes > BYTES_MAX;
                if !output.truncated {
                    let values = (0..row.len()).map(|index| row.get(index).map(str::to_owned));
                    output.rows.push(values.collect());
                }
            }
            SimpleQueryMessage::CommandComplete(count) => output.command = command_tag(statement, count),
            _ => {}
        }
    }
    Ok(output)
}

fn row_bytes(row: &SimpleQueryRow) -> usize {
    (0..row.len()).filter_map(|index| row.get(index)).map(str::len).sum()
}

/// What `psql` prints of a command: its word and the number of rows, which the driver has without the word.
fn command_tag(statement: &str, rows: u64) -> String {
    let words = top_level_words(statement);
    let is_command = |word: &&String| {
        matches!(
            word.as_str(),
            "SELECT" | "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "VALUES"
        )
    };
    let word = match words.first().map(String::as_str) {
        Some("WITH") => words.iter().find(is_command),
        _ => words.first(),
    };
    match word.map(String::as_str) {
        Some("INSERT") => format!("INSERT 0 {rows}"),
        Some("SELECT" | "VALUES" | "TABLE") => format!("SELECT {rows}"),
        Some(word @ ("UPDATE" | "DELETE" | "MERGE")) => format!("{word} {rows}"),
        Some(word) => word.to_owned(),
        None => String::new(),
    }
}

/// The words of a statement outside of parentheses, quotes and comments, in upper case.
fn top_level_words(statement: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = statement;
    let mut depth = 0_u32;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if matches!(first, '\'' | '"') {
            rest[1..].find(first).map_or(rest.len(), |end| end + 2)
        } else if first.is_alphabetic() || first == '_' {
            let is_end = |c: char| !(c.is_alphanumeric() || c == '_');
            let end = rest.find(is_end).unwrap_or(rest.len());
            if depth == 0 {
                words.push(rest[..end].to_uppercase());
            }
            end
        } else {
            match first {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    words
}

impl Refusal {
    fn of(message: String) -> Self {
        Self {
            message,
            sqlstate: None,
        }
    }

    fn of_error(error: &tokio_postgres::Error) -> Self {
        let Some(database) = error.as_db_error() else {
            if error.is_closed() {
                return Self::of(format!(
                    "the session ended: a result may have at most {} MiB",
                    SESSION_BYTES_MAX >> 20
                ));
            }
            return Self::of(crate::telemetry::chain(error));
        };
        let further = [database.detail(), database.hint()];
        let parts: Vec<&str> = std::iter::once(database.message())
            .chain(further.into_iter().flatten())
            .collect();
        Self {
            message: parts.join("\n"),
            sqlstate: Some(database.code().code().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_tag_is_that_of_the_statement() {
        for (statement, tag) in [
            ("insert into tasks values (1)", "INSERT 0 3"),
            ("-- SELECT\n UPDATE tasks SET title = 'INSERT'", "UPDATE 3"),
            ("/* x */ (SELECT 1)", ""),
            ("WITH a AS (INSERT INTO t SELECT 1) SELECT 1", "SELECT 3"),
            ("with \"select\" as (select ')') delete from t", "DELETE 3"),
            ("TABLE tasks", "SELECT 3"),
            ("begin", "BEGIN"),
            ("'unclosed", ""),
            ("", ""),
        ] {
            assert_eq!(command_tag(statement, 3), tag, "{statement}");
        }
    }
}
