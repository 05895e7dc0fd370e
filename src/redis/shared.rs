//! The connection to Redis that a process shares: its commands are counted, and it is replaced when it stays silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, ServerError, Value};

use super::cluster;
use crate::config;
use crate::redis::error::has_code;
use crate::telemetry::metrics::Operations;
use crate::telemetry::traces;

/// Commands with a label of their own; metrics need a bounded set.
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

/// The error code of a write to a replica (Redis manual, replication).
const READ_ONLY: &str = "READONLY";

/// How long a connection is used at least before it is replaced: many commands time out at the same moment.
const RENEWAL: Duration = Duration::from_millis(100);

/// A connection that many tasks share, opened when it is first needed. What is sent at once is counted by its first command.
/// Cloning shares it.
#[derive(Clone)]
pub struct SharedConnection(Arc<Inner>);

struct Inner {
    config: config::Redis,
    /// Held while the node of a cluster is looked for, so that many requests look once.
    locating: tokio::sync::Mutex<()>,
    settings: ConnectionManagerConfig,
    current: ArcSwap<Current>,
    operations: Operations,
}

/// The connection, and since when it is in use.
struct Current {
    manager: ConnectionManager,
    since: Instant,
}

impl std::fmt::Debug for SharedConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedConnection").finish_non_exhaustive()
    }
}

impl SharedConnection {
    /// A connection with a timeout for connecting and for each reply.
    pub fn new(config: &config::Redis, timeout: Duration, operations: Operations) -> Result<Self, RedisError> {
        let settings = ConnectionManagerConfig::new()
            .set_response_timeout(Some(timeout))
            .set_connection_timeout(Some(timeout))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        let client = crate::net::redis::client(config)?;
        let manager = ConnectionManager::new_lazy_with_config(client, settings.clone())?;
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            locating: tokio::sync::Mutex::default(),
            settings,
            current: ArcSwap::from_pointee(Current {
                manager,
                since: Instant::now(),
            }),
            operations,
        })))
    }

    /// Replaces the connection, unless it is new. The manager reconnects by itself when a connection ends; a half-open one
    /// only stays silent, and one to a server that became a replica keeps working.
    pub fn renew(&self) {
        if self.0.current.load().since.elapsed() < RENEWAL {
            return;
        }
        let client = crate::net::redis::client(&self.0.config);
        let opened = client.and_then(|client| ConnectionManager::new_lazy_with_config(client, self.0.settings.clone()));
        match opened {
            Ok(manager) => self.0.current.store(Arc::new(Current {
                manager,
                since: Instant::now(),
            })),
            Err(error) => tracing::warn!(cause = crate::telemetry::chain(&error), "Redis connection not replaced"),
        }
    }

    fn manager(&self) -> ConnectionManager {
        self.0.current.load().manager.clone()
    }

    /// Looks for the node of a cluster that has the lane: before the first request, and after one was refused or lost. `since` is
    /// when that was sent.
    async fn locate(&self, since: Option<Instant>) -> Result<(), RedisError> {
        let cluster = &self.0.config.cluster;
        if !cluster.is_on() || (since.is_none() && cluster.node().is_some()) {
            return Ok(());
        }
        let _locating = self.0.locating.lock().await;
        // Another request has found it meanwhile.
        let is_newer = since.is_some_and(|since| self.0.current.load().since > since);
        if is_newer || (since.is_none() && cluster.node().is_some()) {
            return Ok(());
        }
        cluster::locate(&self.0.config).await?;
        let client = crate::net::redis::client(&self.0.config)?;
        let manager = ConnectionManager::new_lazy_with_config(client, self.0.settings.clone())?;
        self.0.current.store(Arc::new(Current {
            manager,
            since: Instant::now(),
        }));
        Ok(())
    }

    /// Sends and counts a request, and repeats it when a replica refused to write: nothing was written, and the address may
    /// lead to another server by now.
    async fn send(&self, request: Request<'_>) -> Result<Vec<Value>, RedisError> {
        let name = request.name();
        let mut is_repeated = false;
        loop {
            let started = Instant::now();
            self.locate(None).await?;
            let result = request.send(&mut self.manager()).await;
            let has = |code: &str| match &result {
                Ok(replies) => refusals(replies).any(|refusal| refusal.code() == code),
                Err(error) => has_code(error, code),
            };
            let failed = match &result {
                Ok(replies) => refusals(replies).next().map(|_| "refused"),
                Err(error) => Some(cause(error)),
            };
            // Nothing was done. Of a lost connection, or a slot that is being migrated, the caller must know whether it was.
            let (is_by_replica, has_moved) = (has(READ_ONLY), has(cluster::MOVED));
            self.0.operations.ended(name, started.elapsed(), failed);
            traces::operation_ended("redis", name, started, failed);
            if is_by_replica || result.as_ref().is_err_and(RedisError::is_timeout) {
                self.renew();
            }
            let is_in_doubt = |error: &RedisError| error.is_io_error() || cluster::is_elsewhere(error);
            if self.0.config.cluster.is_on() && (is_by_replica || has_moved || result.as_ref().is_err_and(is_in_doubt))
            {
                self.locate(Some(started)).await.ok();
            }
            if !(is_by_replica || has_moved) || is_repeated {
                return result;
            }
            is_repeated = true;
        }
    }
}

/// Commands that are sent at once.
#[derive(Clone, Copy)]
enum Request<'a> {
    One(&'a Cmd),
    /// The pipeline, and which of its replies are wanted.
    Many(&'a Pipeline, usize, usize),
}

impl Request<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::One(cmd) => name(cmd),
            Self::Many(pipeline, ..) => pipeline.cmd_iter().next().map_or("other", name),
        }
    }

    async fn send(self, connection: &mut ConnectionManager) -> Result<Vec<Value>, RedisError> {
        match self {
            Self::One(cmd) => Ok(vec![connection.req_packed_command(cmd).await?]),
            Self::Many(pipeline, offset, count) => connection.req_packed_commands(pipeline, offset, count).await,
        }
    }
}

impl ConnectionLike for SharedConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut replies = self.send(Request::One(cmd)).await?;
            Ok(replies.pop().unwrap_or(Value::Nil))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.send(Request::Many(pipeline, offset, count)))
    }

    fn get_db(&self) -> i64 {
        self.manager().get_db()
    }
}

/// The errors among replies: each command of a pipeline has its own, and so has each of a transaction.
fn refusals(replies: &[Value]) -> impl Iterator<Item = &ServerError> {
    let single = replies.iter().flat_map(|reply| match reply {
        Value::Array(replies) => replies.as_slice(),
        reply => std::slice::from_ref(reply),
    });
    single.filter_map(|reply| match reply {
        Value::ServerError(refusal) => Some(refusal),
        _ => None,
    })
}

/// The label of a failure in metrics.
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
    fn command_label_is_one_of_a_bounded_set() {
        assert_eq!(name(&redis::cmd("XRANGE")), "XRANGE");
        assert_eq!(name(&redis::cmd("hmget")), "HMGET");
        assert_eq!(name(&redis::cmd("MADEUP")), "other");
        assert_eq!(name(&Cmd::new()), "other");
        assert!(COMMANDS.is_sorted());
    }
}
