//! The connection to Redis that a process shares for all but streams and scripts of its own: counted, and made anew when it
//! leads nowhere.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, ServerError, Value};

use crate::config;
use crate::telemetry::metrics::Operations;
use crate::telemetry::traces;

/// Commands that are told apart; labels must be few, whatever is sent.
const COMMANDS: &[&str] = &[
    "DEL",
    "EVAL",
    "EXISTS",
    "GET",
    "HDEL",
    "HGET",
    "HGETALL",
    "HMGET",
    "HSET",
    "INCR",
    "INFO",
    "PING",
    "PUBLISH",
    "SADD",
    "SCAN",
    "SET",
    "SETEX",
    "SMEMBERS",
    "SREM",
    "UNLINK",
    "XACK",
    "XADD",
    "XDEL",
    "XGROUP",
    "XINFO",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREAD",
    "XREADGROUP",
    "XREVRANGE",
    "XTRIM",
    "ZADD",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZREM",
    "ZREMRANGEBYSCORE",
];

/// What a replica answers to who wants to write (Redis manual, replication).
const READ_ONLY: &str = "READONLY";

/// How long a connection is used at least before it is made anew, however many complain of it.
const RENEWAL: Duration = Duration::from_millis(100);

/// A connection that many share: made when it is first needed, and anew when it leads nowhere. What it is asked is counted by
/// the first command of what is sent at once. Cloning shares it.
#[derive(Clone)]
pub struct SharedConnection(Arc<Inner>);

struct Inner {
    client: redis::Client,
    settings: ConnectionManagerConfig,
    /// The connection, and since when it is in use.
    held: RwLock<(ConnectionManager, Instant)>,
    operations: Operations,
}

impl std::fmt::Debug for SharedConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedConnection").finish_non_exhaustive()
    }
}

impl SharedConnection {
    /// A connection over which an answer may take so long.
    ///
    /// # Errors
    /// When the URL is none of Redis', or a certificate cannot be read.
    pub fn new(config: &config::Redis, patience: Duration, operations: Operations) -> Result<Self, RedisError> {
        let settings = ConnectionManagerConfig::new()
            .set_response_timeout(Some(patience))
            .set_connection_timeout(Some(patience))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        let client = crate::net::redis::client(config)?;
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), settings.clone())?;
        Ok(Self(Arc::new(Inner {
            client,
            settings,
            held: RwLock::new((connection, Instant::now())),
            operations,
        })))
    }

    /// Makes the connection anew, unless it is. The manager does so by itself when it hears that a connection has ended; a
    /// half-open one is only silent, and one to a server that has become a replica goes on.
    pub fn renew(&self) {
        let mut held = self.0.held.write().unwrap_or_else(PoisonError::into_inner);
        if held.1.elapsed() < RENEWAL {
            return;
        }
        match ConnectionManager::new_lazy_with_config(self.0.client.clone(), self.0.settings.clone()) {
            Ok(connection) => *held = (connection, Instant::now()),
            Err(error) => tracing::warn!(
                cause = crate::telemetry::chain(&error),
                "cannot make another connection to Redis"
            ),
        }
    }

    fn manager(&self) -> ConnectionManager {
        let held = self.0.held.read().unwrap_or_else(PoisonError::into_inner);
        held.0.clone()
    }

    /// Asks, counts it, and asks once more when a replica has refused to write: nothing was written then, and the address
    /// may lead to another server by now.
    async fn ask(&self, question: Question<'_>) -> Result<Vec<Value>, RedisError> {
        let name = question.name();
        let mut is_repeated = false;
        loop {
            let started = Instant::now();
            let result = question.ask(&mut self.manager()).await;
            let is_by_replica = |refusal: &ServerError| refusal.code() == READ_ONLY;
            let (failed, is_by_replica) = match &result {
                Ok(answers) => (
                    refusals(answers).next().map(|_| "refused"),
                    refusals(answers).any(is_by_replica),
                ),
                Err(error) => {
                    let refusals = error.clone().into_server_errors();
                    let is_by_replica =
                        refusals.is_some_and(|all| all.iter().any(|(_, refusal)| is_by_replica(refusal)));
                    (Some(cause(error)), is_by_replica)
                }
            };
            self.0.operations.ended(name, started.elapsed(), failed);
            traces::asked("redis", name, started, failed);
            if is_by_replica || result.as_ref().is_err_and(RedisError::is_timeout) {
                self.renew();
            }
            if !is_by_replica || is_repeated {
                return result;
            }
            is_repeated = true;
        }
    }
}

/// What is sent at once.
#[derive(Clone, Copy)]
enum Question<'a> {
    One(&'a Cmd),
    /// The pipeline, and which of its answers are wanted.
    Many(&'a Pipeline, usize, usize),
}

impl Question<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::One(cmd) => name(cmd),
            Self::Many(pipeline, ..) => pipeline.cmd_iter().next().map_or("other", name),
        }
    }

    async fn ask(self, connection: &mut ConnectionManager) -> Result<Vec<Value>, RedisError> {
        match self {
            Self::One(cmd) => Ok(vec![connection.req_packed_command(cmd).await?]),
            Self::Many(pipeline, offset, count) => connection.req_packed_commands(pipeline, offset, count).await,
        }
    }
}

impl ConnectionLike for SharedConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut answers = self.ask(Question::One(cmd)).await?;
            Ok(answers.pop().unwrap_or(Value::Nil))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.ask(Question::Many(pipeline, offset, count)))
    }

    fn get_db(&self) -> i64 {
        self.manager().get_db()
    }
}

/// The refusals in answers: each command of a pipeline has its own, and so has each of a transaction.
fn refusals(answers: &[Value]) -> impl Iterator<Item = &ServerError> {
    let single = answers.iter().flat_map(|answer| match answer {
        Value::Array(answers) => answers.as_slice(),
        answer => std::slice::from_ref(answer),
    });
    single.filter_map(|answer| match answer {
        Value::ServerError(refusal) => Some(refusal),
        _ => None,
    })
}

/// A word for what went wrong.
pub(crate) fn cause(error: &RedisError) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() {
        "connection"
    } else {
        "refused"
    }
}

fn name(cmd: &Cmd) -> &'static str {
    let Some(Arg::Simple(word)) = cmd.args_iter().next() else {
        return "other";
    };
    COMMANDS
        .iter()
        .copied()
        .find(|name| name.as_bytes().eq_ignore_ascii_case(word))
        .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_names_that_are_known_beforehand() {
        assert_eq!(name(&redis::cmd("XRANGE")), "XRANGE");
        assert_eq!(name(&redis::cmd("hmget")), "HMGET");
        assert_eq!(name(&redis::cmd("MADEUP")), "other");
        assert_eq!(name(&Cmd::new()), "other");
        assert!(COMMANDS.is_sorted());
    }
}
