//! Tries on scratch keys what an engine needs of Redis: what a product or an ACL permits shows only when it is done.

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

use super::durability::has_waitaof;
use crate::contract::keys::Keys;
use crate::redis::info::Info;

/// Lifetime of the scratch keys in milliseconds, if their removal is refused.
const LIFETIME_MS: u64 = 60_000;

/// Longest wait for the file, in milliseconds: with `everysec` it is synced about once a second.
const WAITAOF_MS: u64 = 2_000;

/// Whether the server does something; else its reply.
type Outcome = Result<(), String>;

/// What the server permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// `WATCH` of a key, then `MULTI` with an entry whose id is given, and another key, then `EXEC`.
    pub transaction: Outcome,
    /// `EVAL`.
    pub script: Outcome,
    /// `WAITAOF`.
    pub on_disk: OnDisk,
}

/// What `WAITAOF` says about a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnDisk {
    /// It is in the server's file.
    Confirmed,
    /// It is not yet there.
    Late,
    /// The reply of a server that refuses the command.
    Refused(String),
    /// The server is older than the command, or has no file.
    Unsupported,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            transaction: Ok(()),
            script: Ok(()),
            on_disk: OnDisk::Unsupported,
        }
    }
}

impl Probe {
    /// Tries everything. The connection must have no other user, since it watches a key.
    ///
    /// # Errors
    /// When the connection fails; a refusal is a part of the result.
    pub async fn run(connection: &mut MultiplexedConnection, keys: &Keys, info: &Info) -> Result<Self, RedisError> {
        let random = format!("{:016x}", getrandom::u64().map_err(std::io::Error::from)?);
        let [stream, mark] = keys.probe(&random);
        let transaction = outcome(transact(connection, &stream, &mark).await)?;
        let script = redis::cmd("EVAL")
            .arg("return redis.call('HGET', KEYS[1], 'n')")
            .arg(1)
            .arg(&mark)
            .query_async::<Value>(connection)
            .await;
        let script = outcome(script.map(drop))?;
        let on_disk = if info.get("aof_enabled") == "1" && has_waitaof(info) {
            let reply = redis::cmd("WAITAOF")
                .arg(&[1, 0, WAITAOF_MS])
                .query_async(connection)
                .await;
            match reply {
                Ok((synced, _)) if synced > 0_i64 => OnDisk::Confirmed,
                Ok::<(i64, i64), _>(_) => OnDisk::Late,
                Err(error) => OnDisk::Refused(refusal(error)?),
            }
        } else {
            OnDisk::Unsupported
        };
        // Where this is refused, they expire.
        let _: Result<Value, RedisError> = redis::cmd("UNLINK")
            .arg(&stream)
            .arg(&mark)
            .query_async(connection)
            .await;
        Ok(Self {
            transaction,
            script,
            on_disk,
        })
    }
}

/// A transaction as the publisher's.
async fn transact(connection: &mut MultiplexedConnection, stream: &str, mark: &str) -> Result<(), RedisError> {
    redis::cmd("WATCH").arg(mark).query_async::<()>(connection).await?;
    redis::pipe()
        .atomic()
        .cmd("XADD")
        .arg(&[stream, "1-1", "n", "1"])
        .cmd("HSET")
        .arg(&[mark, "n", "1"])
        .cmd("PEXPIRE")
        .arg(stream)
        .arg(LIFETIME_MS)
        .cmd("PEXPIRE")
        .arg(mark)
        .arg(LIFETIME_MS)
        .query_async::<(String, i64, i64, i64)>(connection)
        .await
        .map(drop)
}

/// The text of a server's reply, or the error of a connection that failed.
fn refusal(error: RedisError) -> Result<String, RedisError> {
    match error.code() {
        Some(_) => Ok(error.to_string()),
        None => Err(error),
    }
}

fn outcome(result: Result<(), RedisError>) -> Result<Outcome, RedisError> {
    match result {
        Ok(()) => Ok(Ok(())),
        Err(error) => Ok(Err(refusal(error)?)),
    }
}
