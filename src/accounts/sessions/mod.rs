//! Sessions: a login starts a session, refresh tokens extend it. Sessions are stored in Redis and expire.
//!
//! A session is a hash with a time to live; a set per user lists the user's sessions, and references to expired sessions are
//! removed when the list is read. Access tokens name their session but are verified without Redis. So that they end with
//! their session, each node caches the recently ended sessions: it receives them by Pub/Sub, reads them when it subscribes,
//! and uses the cached ones while Redis is unavailable.
//!
//! A refresh token consists of 128 constant bits, from whose digest the session's id is derived, and 256 bits that change
//! with every use; Redis holds only the SHA-256. A client that presents a wrong changing part has held a valid token before:
//! one of two clients has stolen it, and the session ends (RFC 9700, section 4.14.2). The response to a refresh may be lost,
//! though. A token's successor is therefore an HMAC of a random salt under the token itself: the same token presented again
//! within a short time finds the salt and yields the same successor. However many clients present it, there is one chain of
//! tokens, and the contents of Redis reveal none of them.

mod refresh_token;

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use uuid::Uuid;

pub use self::refresh_token::RefreshToken;
use self::refresh_token::random;
use crate::accounts::devices::{self, Devices};
use crate::accounts::users;
use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::live::tail::DeviceChange;
use crate::net;
use crate::postgres::Database;
use crate::redis::store::Store;

/// Most stored characters of a client's `User-Agent`.
const USER_AGENT_CHARS_MAX: usize = 256;

/// How much longer than an access token the mark of an ended session lives, because clocks differ.
const ENDED_MARGIN: Duration = Duration::from_secs(60);

/// Most sessions of a round trip.
const LOOK_MAX: usize = 1000;

/// Pause before a lost subscription is established again.
const RETRY: Duration = Duration::from_secs(1);

/// Stores a session and adds it to the list. Keys: session, list. Arguments: id, lifetime in seconds, fields and values.
/// Returns the length of the list.
const OPEN: &str = "\
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
if redis.call('TTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
return redis.call('SCARD', KEYS[2])";

/// Exchanges a refresh token. Keys: session, list. Arguments: id, lifetime in seconds, the token's hash, its successor's
/// hash and salt, milliseconds in which it may be presented again, address, user agent. Returns the salt of the
/// successor, or false when the session does not exist, or was deleted because the token is an old one.
const ROTATE: &str = "\
local session = redis.call('HMGET', KEYS[1], 'current', 'previous', 'rotated_at', 'salt')
if not session[1] then return {false, 0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if session[1] == ARGV[3] then
  local text = string.format('%.0f', now)
  redis.call('HSET', KEYS[1], 'current', ARGV[4], 'previous', ARGV[3], 'salt', ARGV[5], 'rotated_at', text,
    'last_used_at', text, 'expires_at', string.format('%.0f', now + ARGV[2] * 1000),
    'address', ARGV[7], 'user_agent', ARGV[8])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('SADD', KEYS[2], ARGV[1])
  if redis.call('TTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
  return {ARGV[5], 0}
end
if session[2] == ARGV[3] and now - tonumber(session[3]) <= tonumber(ARGV[6]) then return {session[4], 0} end
redis.call('DEL', KEYS[1])
return {false, 1}";

/// The fields of a session that the API shows.
const SHOWN: [&str; 8] = [
    "tenant",
    "user",
    "device",
    "created_at",
    "last_used_at",
    "expires_at",
    "user_agent",
    "address",
];

/// A session as the API shows one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// The claim `sid` of access tokens.
    pub id: Uuid,
    /// Time of the login.
    pub created_at: Timestamp,
    /// Time of the last refresh, or of the login.
    pub last_used_at: Timestamp,
    /// The end, unless it is refreshed.
    pub expires_at: Timestamp,
    /// At the last use.
    pub user_agent: Option<String>,
    /// At the last use.
    pub address: Option<String>,
    /// The user's device to which it is bound, if the login had one.
    pub device_id: Option<String>,
}

/// The owner of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub tenant: Tenant,
    pub user: Uuid,
    /// The user's device to which it is bound.
    pub device_id: Option<String>,
}

/// The client of a login or refresh.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: IpAddr,
    pub user_agent: Option<String>,
}

impl Client {
    fn user_agent(&self) -> String {
        let text = self.user_agent.as_deref().unwrap_or_default();
        text.chars()
            .filter(|c| !c.is_control())
            .take(USER_AGENT_CHARS_MAX)
            .collect()
    }
}

/// The result of a login or refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub session: Uuid,
    /// Only its hash is stored.
    pub refresh_token: String,
}

/// Open streams by session.
type Watched = Arc<Mutex<HashMap<Uuid, (CancellationToken, usize)>>>;

/// Signals the end of a session; dropping it stops the watch.
#[derive(Debug)]
pub struct Watch {
    session: Uuid,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    watched: Watched,
}

impl Watch {
    /// The session's id.
    pub fn session(&self) -> Uuid {
        self.session
    }

    /// Ready when the session has ended.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.ended.as_mut().poll(context)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.watched.lock();
        if let Some((_, count)) = watched.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.session);
            }
        }
    }
}

/// Stores sessions. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    redis: config::Redis,
    lifetime_seconds: u64,
    retry_ms: u64,
    sessions_max: usize,
    /// How long an ended session is cached: as long as its access tokens are valid.
    ended_life: Duration,
    /// Ended sessions, as far as this node has received them.
    ended: Cache<Uuid, ()>,
    ended_max: u64,
    watched: Watched,
}

impl Sessions {
    pub fn new(store: Store, settings: &config::Config) -> Self {
        let auth = &settings.auth;
        let ended_life = Duration::from_secs(auth.token_expiry_seconds) + ENDED_MARGIN;
        let ended_max = settings.cache.entries_max;
        Self {
            store,
            redis: settings.redis.clone(),
            lifetime_seconds: auth.session_expiry_seconds,
            retry_ms: auth.refresh_retry_seconds * 1000,
            sessions_max: auth.sessions_max,
            ended_life,
            // Beyond the bound the least recently used ones are evicted: their tokens expire.
            ended: Cache::builder()
                .max_capacity(ended_max)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(ended_life)
                .build(),
            ended_max,
            watched: Watched::default(),
        }
    }

    /// Starts a session of an authenticated user, bound to the device of the login. Beyond `auth.sessions_max` the least
    /// recently used ones are removed and can no longer be refreshed.
    pub async fn open(
        &self,
        tenant: &Tenant,
        user: Uuid,
        device_id: Option<&str>,
        client: &Client,
    ) -> Result<Granted, Error> {
        let token = RefreshToken::new()?;
        let id = token.session();
        let now = Utc::now().timestamp_millis();
        let expires_at = now.saturating_add(i64::try_from(self.lifetime_seconds * 1000).unwrap_or(i64::MAX));
        let keys = self.store.keys();
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(OPEN)
            .arg(2)
            .arg(keys.session(id))
            .arg(keys.account_sessions(user))
            .arg(id.to_string())
            .arg(self.lifetime_seconds)
            .arg(("tenant", &tenant.name))
            .arg(("user", user.to_string()))
            .arg(("device", device_id.unwrap_or_default()))
            .arg(("current", token.hash()))
            .arg(("created_at", now))
            .arg(("last_used_at", now))
            .arg(("expires_at", expires_at))
            .arg(("address", client.address.to_string()))
            .arg(("user_agent", client.user_agent()));
        let (count,): (usize,) = self.store.query(&pipe).await?;
        if count > self.sessions_max {
            self.remove_oldest(tenant, user).await?;
        }
        Ok(Granted {
            session: id,
            refresh_token: token.text(),
        })
    }

    /// The owner of a session, if it exists.
    pub async fn owner(&self, session: Uuid) -> Result<Option<Owner>, Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET")
            .arg(self.store.keys().session(session))
            .arg(&SHOWN[..3]);
        let (fields,): (Vec<Option<String>>,) = self.store.query(&pipe).await?;
        Ok(parse_owner(&fields))
    }

    /// Exchanges a refresh token of this user for its successor. Within `auth.refresh_retry_seconds` a repetition returns the same
    /// successor, because the response may be lost. A token that was used before ends the session, on all nodes. `None`
    /// when the token is invalid.
    pub async fn rotate(&self, token: &RefreshToken, user: Uuid, client: &Client) -> Result<Option<Granted>, Error> {
        let salt = URL_SAFE_NO_PAD.encode(random::<32>()?);
        let id = token.session();
        let keys = self.store.keys();
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(ROTATE)
            .arg(2)
            .arg(keys.session(id))
            .arg(keys.account_sessions(user))
            .arg(id.to_string())
            .arg(self.lifetime_seconds)
            .arg(token.hash())
            .arg(token.successor(salt.as_bytes()).hash())
            .arg(&salt)
            .arg(self.retry_ms)
            .arg(client.address.to_string())
            .arg(client.user_agent());
        let ((salt, is_reuse),): ((Option<String>, bool),) = self.store.query(&pipe).await?;
        if is_reuse {
            tracing::warn!(session = %id, %user, "session ended: refresh token used twice");
            self.end(user, &[id]).await?;
        }
        Ok(salt.map(|salt| Granted {
            session: id,
            refresh_token: token.successor(salt.as_bytes()).text(),
        }))
    }

    /// A user's sessions, most recently used first.
    pub async fn list(&self, tenant: &Tenant, user: Uuid) -> Result<Vec<Session>, Error> {
        let keys = self.store.keys();
        let mut pipe = redis::pipe();
        pipe.smembers(keys.account_sessions(user));
        let (members,): (Vec<String>,) = self.store.query(&pipe).await?;
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Option<Uuid>> = members.iter().map(|member| Uuid::try_parse(member).ok()).collect();
        let mut pipe = redis::pipe();
        for id in &ids {
            pipe.cmd("HMGET").arg(keys.session(id.unwrap_or_default())).arg(&SHOWN);
        }
        let found: Vec<Vec<Option<String>>> = self.store.query(&pipe).await?;
        let mut sessions = Vec::new();
        let mut stale = Vec::new();
        for ((member, id), fields) in members.iter().zip(ids).zip(found) {
            let field = |index: usize| fields.get(index).and_then(Option::as_deref);
            let time = |index: usize| field(index).and_then(timestamp);
            let (Some(id), Some(owner)) = (id, parse_owner(&fields)) else {
                stale.push(member);
                continue;
            };
            // Another tenant may have the same user id, when its schema is a copy for example.
            if (&owner.tenant, owner.user) != (tenant, user) {
                continue;
            }
            let (Some(created_at), Some(last_used_at), Some(expires_at)) = (time(3), time(4), time(5)) else {
                continue;
            };
            let text = |index: usize| field(index).filter(|text| !text.is_empty()).map(str::to_owned);
            sessions.push(Session {
                id,
                created_at,
                last_used_at,
                expires_at,
                user_agent: text(6),
                address: text(7),
                device_id: owner.device_id,
            });
        }
        if !stale.is_empty() {
            let mut pipe = redis::pipe();
            pipe.srem(keys.account_sessions(user), stale).ignore();
            let () = self.store.query(&pipe).await?;
        }
        sessions.sort_by_key(|session| std::cmp::Reverse((session.last_used_at, session.id)));
        Ok(sessions)
    }

    /// Ends sessions of a user: they cannot be refreshed, and their access tokens and open streams end, on this node
    /// immediately and on other nodes shortly after.
    pub async fn end(&self, user: Uuid, sessions: &[Uuid]) -> Result<(), Error> {
        if sessions.is_empty() {
            return Ok(());
        }
        let keys = self.store.keys();
        let mut pipe = redis::pipe();
        pipe.atomic();
        let now = Utc::now().timestamp_millis();
        let until = now.saturating_add(i64::try_from(self.ended_life.as_millis()).unwrap_or(i64::MAX));
        pipe.zrembyscore(keys.ended_sessions(), "-inf", now).ignore();
        for &session in sessions {
            pipe.del(keys.session(session)).ignore();
            pipe.zadd(keys.ended_sessions(), session.to_string(), until).ignore();
            pipe.srem(keys.account_sessions(user), session.to_string()).ignore();
            pipe.publish(keys.sessions_ended(), session.to_string()).ignore();
        }
        let life = i64::try_from(self.ended_life.as_secs()).unwrap_or(i64::MAX);
        pipe.expire(keys.ended_sessions(), life).ignore();
        let () = self.store.query(&pipe).await?;
        sessions.iter().for_each(|&session| self.set_ended(session));
        Ok(())
    }

    /// Ends all sessions of a user except `but`.
    pub async fn end_all(&self, tenant: &Tenant, user: Uuid, but: Option<Uuid>) -> Result<(), Error> {
        let sessions = self.list(tenant, user).await?;
        let ids = sessions.iter().map(|session| session.id);
        let others: Vec<Uuid> = ids.filter(|&id| Some(id) != but).collect();
        self.end(user, &others).await
    }

    /// Ends the sessions of a user that are bound to a device.
    pub async fn end_of_device(&self, tenant: &Tenant, user: Uuid, device_id: &str) -> Result<(), Error> {
        let sessions = self.list(tenant, user).await?;
        let bound = sessions
            .iter()
            .filter(|session| session.device_id.as_deref() == Some(device_id));
        let ids: Vec<Uuid> = bound.map(|session| session.id).collect();
        self.end(user, &ids).await
    }

    /// Whether the session was ended while its access tokens may still be valid.
    pub async fn is_ended(&self, session: Uuid) -> Result<bool, Error> {
        let mut pipe = redis::pipe();
        pipe.zscore(self.store.keys().ended_sessions(), session.to_string());
        let (until,): (Option<f64>,) = self.store.query(&pipe).await?;
        Ok(until.is_some())
    }

    /// Whether this node has received the end of the session, without a query to Redis. The end on another node arrives with a
    /// short delay, or when Redis is available again.
    pub fn is_known_ended(&self, session: Uuid) -> bool {
        self.ended.contains_key(&session)
    }

    /// Watches for the end of a session from now on; for earlier ends see [`Sessions::is_ended`].
    pub fn watch(&self, session: Uuid) -> Watch {
        let mut watched = self.watched.lock();
        let (ended, count) = watched.entry(session).or_default();
        *count += 1;
        Watch {
            session,
            ended: Box::pin(ended.clone().cancelled_owned()),
            watched: self.watched.clone(),
        }
    }

    /// Checks periodically whether sessions with open streams have ended, in case a Pub/Sub message was lost.
    pub async fn recheck(self, interval: Duration, stop: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(interval).await;
                if let Err(error) = self.recheck_watched().await {
                    tracing::debug!(%error, "check of ended sessions failed");
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn recheck_watched(&self) -> Result<(), Error> {
        let watched: Vec<Uuid> = self.watched.lock().keys().copied().collect();
        for sessions in watched.chunks(LOOK_MAX) {
            let mut pipe = redis::pipe();
            for &session in sessions {
                pipe.zscore(self.store.keys().ended_sessions(), session.to_string());
            }
            let ended: Vec<Option<f64>> = self.store.query(&pipe).await?;
            for (&session, _) in sessions.iter().zip(ended).filter(|(_, until)| until.is_some()) {
                self.set_ended(session);
            }
        }
        Ok(())
    }

    /// Caches the end of a session and signals its open streams.
    fn set_ended(&self, session: Uuid) {
        self.ended.insert(session, ());
        let watched = self.watched.lock();
        if let Some((ended, _)) = watched.get(&session) {
            ended.cancel();
        }
    }

    async fn remove_oldest(&self, tenant: &Tenant, user: Uuid) -> Result<(), Error> {
        let sessions = self.list(tenant, user).await?;
        let Some(oldest) = sessions.get(self.sessions_max..).filter(|oldest| !oldest.is_empty()) else {
            return Ok(());
        };
        let keys = self.store.keys();
        let mut pipe = redis::pipe();
        for session in oldest {
            pipe.del(keys.session(session.id)).ignore();
            pipe.srem(keys.account_sessions(user), session.id.to_string()).ignore();
        }
        Ok(self.store.query(&pipe).await?)
    }

    /// Receives the sessions that other nodes end until `stop`. It catches up after each interruption of the subscription.
    pub async fn follow_ends(self, stop: CancellationToken) {
        let work = async {
            let mut logged = None;
            loop {
                let error = self
                    .receive_ends()
                    .await
                    .err()
                    .map(|error| crate::telemetry::chain(&error));
                // Meanwhile access tokens of sessions that other nodes end are accepted.
                match error {
                    Some(cause) if logged.as_ref() != Some(&cause) => {
                        tracing::warn!(cause, "subscription to ended sessions lost");
                        logged = Some(cause);
                    }
                    Some(_) => {}
                    None => logged = None,
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn receive_ends(&self) -> Result<(), Error> {
        let mut subscription = net::redis::client(&self.redis)?.get_async_pubsub().await?;
        subscription.subscribe(self.store.keys().sessions_ended()).await?;
        // After the subscription, so that no end is missed in between.
        self.catch_up().await?;
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            let id = message.get_payload::<String>().ok();
            if let Some(session) = id.and_then(|id| Uuid::try_parse(&id).ok()) {
                self.set_ended(session);
            }
        }
        Ok(())
    }

    /// Reads all recently ended sessions.
    async fn catch_up(&self) -> Result<(), Error> {
        let (mut count, now) = (0, Utc::now().timestamp_millis());
        loop {
            let mut pipe = redis::pipe();
            // In descending order: expiry does not shift the offsets.
            pipe.cmd("ZRANGE")
                .arg(self.store.keys().ended_sessions())
                .arg("+inf")
                .arg(now)
                .arg(&["BYSCORE", "REV", "LIMIT", &count.to_string(), &LOOK_MAX.to_string()]);
            let (page,): (Vec<String>,) = self.store.query(&pipe).await?;
            for session in page.iter().filter_map(|id| Uuid::try_parse(id).ok()) {
                self.set_ended(session);
            }
            count += page.len() as u64;
            if page.len() < LOOK_MAX || count >= self.ended_max {
                return Ok(());
            }
        }
    }

    /// Ends the sessions of disabled and deleted users and of revoked devices, as the log delivers the changes, until `stop`. A
    /// missed session ends at its refresh.
    pub async fn follow_users(
        self,
        database: Database,
        devices: Devices,
        mut changes: broadcast::Receiver<DeviceChange>,
        stop: CancellationToken,
    ) {
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.recv() => change,
            };
            let (tenant, user, xid) = match change {
                Ok(DeviceChange::One { tenant, user, xid }) => (tenant, user, xid),
                Ok(DeviceChange::Any) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let Some(tenant) = Tenant::named(&tenant) else { continue };
            if let Err(error) = self.end_if_gone(&database, &devices, &tenant, user, xid).await {
                tracing::debug!(%error, %user, "check of a changed user's sessions failed");
            }
        }
    }

    async fn end_if_gone(
        &self,
        database: &Database,
        devices: &Devices,
        tenant: &Tenant,
        user: Uuid,
        xid: u32,
    ) -> Result<(), Error> {
        // Most changes are of devices, and most users with devices have no session.
        let sessions = self.list(tenant, user).await?;
        if sessions.is_empty() {
            return Ok(());
        }
        devices.await_visible(xid).await;
        if !users::is_active(database, tenant, user).await? {
            return self.end_all(tenant, user, None).await;
        }
        let bound: Vec<&str> = sessions
            .iter()
            .filter_map(|session| session.device_id.as_deref())
            .collect();
        if bound.is_empty() {
            return Ok(());
        }
        let usable = devices::usable(database, tenant, user, &bound).await?;
        let is_over = |session: &&Session| session.device_id.as_ref().is_some_and(|id| !usable.contains(id));
        let over: Vec<Uuid> = sessions.iter().filter(is_over).map(|session| session.id).collect();
        self.end(user, &over).await
    }
}

/// Reads the first three of [`SHOWN`].
fn parse_owner(fields: &[Option<String>]) -> Option<Owner> {
    let field = |index: usize| fields.get(index).and_then(Option::as_deref);
    Some(Owner {
        tenant: Tenant::named(field(0)?)?,
        user: Uuid::try_parse(field(1)?).ok()?,
        device_id: field(2).filter(|device| !device.is_empty()).map(str::to_owned),
    })
}

/// A time in milliseconds since 1970.
fn timestamp(text: &str) -> Option<Timestamp> {
    DateTime::<Utc>::from_timestamp_millis(text.parse().ok()?).map(Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_agent_is_stored_short_and_without_control_characters() {
        let client = Client {
            address: IpAddr::from([127, 0, 0, 1]),
            user_agent: Some(format!("a\tb{}", "ü".repeat(1000))),
        };
        let kept = client.user_agent();
        assert!(kept.starts_with("abü"));
        assert_eq!(kept.chars().count(), USER_AGENT_CHARS_MAX);
    }
}
