//! A connection of the `redis` crate that counts what it is asked.

use std::future::Future;
use std::time::Instant;

use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, Value};

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

/// A connection, and where its operations are counted: by the first command of what is sent at once. Cloning shares both.
#[derive(Debug, Clone)]
pub struct Counted<C> {
    connection: C,
    operations: Operations,
}

impl<C> Counted<C> {
    /// Counts what the connection is asked from now on.
    pub fn new(connection: C, operations: Operations) -> Self {
        Self { connection, operations }
    }
}

impl<C: ConnectionLike + Send> ConnectionLike for Counted<C> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let asking = self.connection.req_packed_command(cmd);
        Box::pin(counted(&self.operations, name(cmd), asking, |_| false))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let name = pipeline.cmd_iter().next().map_or("other", name);
        let asking = self.connection.req_packed_commands(pipeline, offset, count);
        // Each command has an answer of its own, which may be a refusal.
        let is_refused = |answers: &Vec<Value>| answers.iter().any(|answer| matches!(answer, Value::ServerError(_)));
        Box::pin(counted(&self.operations, name, asking, is_refused))
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

async fn counted<T>(
    operations: &Operations,
    name: &'static str,
    asking: impl Future<Output = Result<T, RedisError>>,
    is_refused: impl Fn(&T) -> bool,
) -> Result<T, RedisError> {
    let started = Instant::now();
    let result = asking.await;
    let failed = match &result {
        Ok(answer) => is_refused(answer).then_some("refused"),
        Err(error) => Some(cause(error)),
    };
    operations.ended(name, started.elapsed(), failed);
    traces::asked("redis", name, started, failed);
    result
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
