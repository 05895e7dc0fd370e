//! Presence: who is connected right now.
//!
//! It is ephemeral and lives in one sorted set per tenant, which nothing durable depends on: a member
//! `<user>/<device>` counts as online until the time that is its score, so that a node that dies takes its readers'
//! presence with it. Every answer comes within [`PATIENCE`]; who asks must be able to go on without one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Pipeline, RedisResult};
use uuid::Uuid;

use super::hub::Member;
use crate::config;
use crate::keys::Keys;
use crate::telemetry::metrics::Operations;
use crate::transport;
use crate::transport::counted::Counted;

/// How long Redis may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Members that are written at once.
const REFRESHED_MAX: usize = 1000;

/// Redis did not answer, or not in time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It took longer than half a second.
    #[error("Redis does not answer")]
    Timeout,
    /// It answered with an error or could not be reached.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
}

/// Reads and writes presence. Cloning shares the connection.
#[derive(Clone)]
pub struct Presence {
    connection: Counted<ConnectionManager>,
    keys: Keys,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Presence {
    /// A connection of its own, made when it is first needed and again whenever it breaks. What is asked over it is
    /// counted there.
    ///
    /// # Errors
    /// When `redis.url` is malformed.
    pub fn connect(settings: &config::Redis, operations: Operations) -> anyhow::Result<Self> {
        let client = transport::redis::client(settings)
            .context("key `redis.url` is no connection URL of the form redis://user:password@host:port/database")?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = ConnectionManager::new_lazy_with_config(client, config)
            .context("cannot prepare the Redis connection for presence")?;
        Ok(Self {
            connection: Counted::new(connection, operations),
            keys: Keys::new(&settings.prefix),
        })
    }

    /// Counts a device, or a page, as online for so long from now on.
    ///
    /// # Errors
    /// When Redis does not do it.
    pub async fn touch(&self, tenant: &str, user: Uuid, device: &str, ttl: Duration) -> Result<(), Error> {
        let now = Utc::now().timestamp_millis();
        let until = now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let key = self.keys.presence(tenant);
        let mut commands = redis::pipe();
        commands.zadd(&key, format!("{user}/{device}"), until).ignore();
        // The dead leave nobody to remove them.
        commands.zrembyscore(&key, "-inf", format!("({now}")).ignore();
        self.run(&commands).await
    }

    /// Counts these as online for so long from now on.
    ///
    /// # Errors
    /// When Redis does not do it.
    pub async fn refresh(&self, members: &[&Member], ttl: Duration) -> Result<(), Error> {
        let now = Utc::now().timestamp_millis();
        let until = now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        for members in members.chunks(REFRESHED_MAX) {
            let mut by_tenant: HashMap<&str, Vec<(i64, String)>> = HashMap::new();
            for Member { tenant, user, name } in members {
                let of_tenant = by_tenant.entry(tenant).or_default();
                of_tenant.push((until, format!("{user}/{name}")));
            }
            let mut commands = redis::pipe();
            for (tenant, online) in &by_tenant {
                let key = self.keys.presence(tenant);
                commands.zadd_multiple(&key, online).ignore();
                // The dead leave nobody to remove them.
                commands.zrembyscore(&key, "-inf", format!("({now}")).ignore();
            }
            let () = self.run(&commands).await?;
        }
        Ok(())
    }

    /// Counts a device, or a page, as gone.
    ///
    /// # Errors
    /// When Redis does not do it.
    pub async fn leave(&self, tenant: &str, user: Uuid, device: &str) -> Result<(), Error> {
        let mut commands = redis::pipe();
        commands
            .zrem(self.keys.presence(tenant), format!("{user}/{device}"))
            .ignore();
        self.run(&commands).await
    }

    /// The tenant's users of whom a device or page is online.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn online(&self, tenant: &str) -> Result<HashSet<Uuid>, Error> {
        let mut commands = redis::pipe();
        commands.zrangebyscore(self.keys.presence(tenant), Utc::now().timestamp_millis(), "+inf");
        let (members,): (Vec<String>,) = self.run(&commands).await?;
        Ok(members
            .iter()
            .filter_map(|member| Uuid::try_parse(member.split('/').next()?).ok())
            .collect())
    }

    async fn run<T: redis::FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let mut connection = self.connection.clone();
        let answer: RedisResult<T> = tokio::time::timeout(PATIENCE, commands.query_async(&mut connection))
            .await
            .map_err(|_| Error::Timeout)?;
        Ok(answer?)
    }
}
