//! Sessions: a login starts a session, refresh tokens extend it. Sessions are stored in Redis and expire.
//!
//! A session is a hash with a time to live; a set per user lists the user's sessions, and references to expired sessions are
//! removed when the list is read. Access tokens name their session but are verified without Redis. So that they end with
//! their session, each node caches the recently ended sessions: it receives them by Pub/Sub, reads them when it subscribes,
//! and uses the cached ones while Redis is unavailable. What ends all sessions of a user changes the security stamp, see
//! [`super::standing`], so that it ends those too that no list names.
//!
//! A refresh token consists of 128 constant bits, from whose digest the session's id is derived, and 256 bits that change
//! with every use; Redis holds only the SHA-256. A client that presents a wrong changing part has held a valid token before:
//! one of two clients has stolen it, and the session ends (RFC 9700, section 4.14.2). The response to a refresh may be lost,
//! though. A token's successor is therefore an HMAC of a random salt under the token itself: the same token presented again
//! within a short time finds the salt and yields the same successor. However many clients present it, there is one chain of
//! tokens, and the contents of Redis reveal none of them.

mod refresh_token;
mod watched;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::refresh_token::RefreshToken;
use self::watched::Watched;
pub use self::watched::{SessionClaim, Watch};
use crate::accounts::devices::{self, Devices};
use crate::accounts::login::Login;
use crate::accounts::random::random;
use crate::accounts::standing::{StampProof, Standing, Standings};
use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::{Timestamp, millis};
use crate::feature::Error;
use crate::live::tail::DeviceChange;
use crate::net;
use crate::postgres::Database;
use crate::redis::cluster;
use crate::redis::store::Store;

/// Most stored characters of a client's `User-Agent`.
const USER_AGENT_CHARS_MAX: usize = 256;

/// How much longer than an access token the mark of an ended session lives, because clocks differ.
const ENDED_MARGIN: Duration = Duration::from_secs(60);

/// Most sessions of a round trip.
const LOOK_MAX: usize = 1000;

/// Users whose sessions are checked at once.
const CHECKS_MAX: usize = 16;

/// Interval of the checks whether sessions with open streams still exist.
const EXISTENCE_INTERVAL: Duration = Duration::from_secs(3600);

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
/// hash and salt, milliseconds in which it may be presented again, address, user agent, stamp. Returns the salt of the
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
    'address', ARGV[7], 'user_agent', ARGV[8], 'stamp', ARGV[9])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('SADD', KEYS[2], ARGV[1])
  if redis.call('TTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
  return {ARGV[5], 0}
end
if session[2] == ARGV[3] and now - tonumber(session[3]) <= tonumber(ARGV[6]) then return {session[4], 0} end
redis.call('DEL', KEYS[1])
return {false, 1}";

/// The fields of a session that are read: those of [`Owner`], then what the API shows.
const SHOWN: [&str; 9] = [
    "tenant",
    "user",
    "device",
    "stamp",
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
    /// The security stamp of its login or last refresh.
    pub stamp: Uuid,
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
    standings: Standings,
}

impl Sessions {
    pub fn new(store: Store, standings: Standings, settings: &config::Config) -> Self {
        let auth = &settings.auth;
        let lifetimes = auth.providers.iter();
        let longest = lifetimes
            .map(|provider| provider.token_lifetime_seconds_max + provider.leeway_seconds)
            .fold(auth.token_expiry_seconds, u64::max);
        let ended_life = Duration::from_secs(longest) + ENDED_MARGIN;
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
            standings,
        }
    }

    /// Starts a session of a user whose password was verified, bound to the device of the login. Beyond
    /// `auth.sessions_max` the least recently used ones end.
    pub async fn open(&self, login: &Login, device_id: Option<&str>, client: &Client) -> Result<Granted, Error> {
        let (tenant, user) = (&login.tenant, login.id);
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
            .arg(("stamp", login.stamp.to_string()))
            .arg(("current", token.hash()))
            .arg(("created_at", now))
            .arg(("last_used_at", now))
            .arg(("expires_at", expires_at))
            .arg(("address", client.address.to_string()))
            .arg(("user_agent", client.user_agent()));
        let (count,): (usize,) = self.store.query(&pipe).await?;
        if count > self.sessions_max {
            self.end_oldest(tenant, user).await?;
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
            .arg(&SHOWN[..4]);
        let (fields,): (Vec<Option<String>>,) = self.store.query(&pipe).await?;
        Ok(parse_owner(&fields))
    }

    /// When the user logged in who has this session; `None` when it does not exist.
    pub async fn logged_in_at(&self, session: Uuid) -> Result<Option<Timestamp>, Error> {
        let mut pipe = redis::pipe();
        pipe.hget(self.store.keys().session(session), "created_at");
        let (text,): (Option<String>,) = self.store.query(&pipe).await?;
        Ok(text.as_deref().and_then(timestamp))
    }

    /// Exchanges a refresh token of this user for its successor. Within `auth.refresh_retry_seconds` a repetition returns the same
    /// successor, because the response may be lost. A token that was used before ends the session, on all nodes. `None`
    /// when the token is invalid.
    pub async fn rotate(&self, token: &RefreshToken, login: &Login, client: &Client) -> Result<Option<Granted>, Error> {
        let user = login.id;
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
            .arg(client.user_agent())
            .arg(login.stamp.to_string());
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
            let (Some(created_at), Some(last_used_at), Some(expires_at)) = (time(4), time(5), time(6)) else {
                continue;
            };
            let text = |index: usize| field(index).filter(|text| !text.is_empty()).map(str::to_owned);
            sessions.push(Session {
                id,
                created_at,
                last_used_at,
                expires_at,
                user_agent: text(7),
                address: text(8),
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
        let until = now.saturating_add(millis(self.ended_life));
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

    /// Ends all sessions of a user except `but`, also those that the list lacks: their stamp is no longer the user's.
    pub async fn end_all(&self, tenant: &Tenant, user: Uuid, but: Option<Uuid>) -> Result<(), Error> {
        self.standings.change(tenant, user, but).await?;
        let mut pipe = redis::pipe();
        let word = user_message(tenant, user);
        pipe.publish(self.store.keys().sessions_ended(), word).ignore();
        let () = self.store.query(&pipe).await?;
        self.end_outdated(tenant, user).await?;
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
    fn is_known_ended(&self, session: Uuid) -> bool {
        self.ended.contains_key(&session)
    }

    /// Whether the session goes on, as far as this node knows: it was not ended, the user may act, and the security stamp
    /// is still the user's.
    pub async fn is_live(&self, claim: &SessionClaim) -> Result<bool, Error> {
        if self.is_known_ended(claim.session) {
            return Ok(false);
        }
        let standing = self.standings.get(&claim.tenant, claim.user).await?;
        Ok(permits(standing.as_ref(), claim))
    }

    /// Like [`Sessions::is_live`], with what any node has written to Redis.
    pub async fn is_live_everywhere(&self, claim: &SessionClaim) -> Result<bool, Error> {
        Ok(!self.is_ended(claim.session).await? && self.is_live(claim).await?)
    }

    /// Like [`Sessions::is_live`], without the cached stamp.
    pub async fn is_live_now(&self, claim: &SessionClaim) -> Result<bool, Error> {
        let standing = self.standings.read(&claim.tenant, claim.user).await?;
        let is_permitted = permits(standing.as_ref(), claim);
        Ok(is_permitted && !self.is_known_ended(claim.session))
    }

    /// Ends a session that was opened for this login, if the password was changed or the user disabled meanwhile. Returns
    /// whether it goes on.
    pub async fn confirm(&self, login: &Login, session: Uuid) -> Result<bool, Error> {
        let claim = SessionClaim {
            tenant: login.tenant.clone(),
            user: login.id,
            session,
            proof: StampProof::Stamp(login.stamp),
        };
        let is_good = self.is_live_now(&claim).await?;
        if !is_good {
            self.end(login.id, &[session]).await?;
        }
        Ok(is_good)
    }

    /// Watches for the end of a session from now on; for earlier ends see [`Sessions::is_ended`].
    pub fn watch(&self, claim: SessionClaim) -> Watch {
        Watch::begin(&self.watched, claim)
    }

    /// The users who have open streams here.
    fn watched_users(&self) -> Vec<(Tenant, Uuid)> {
        self.watched.lock().users()
    }

    /// Ends the streams of a user whose stamp is no longer the user's.
    async fn end_outdated(&self, tenant: &Tenant, user: Uuid) -> Result<(), Error> {
        let watched = self.watched.lock().of_user(&(tenant.clone(), user));
        if watched.is_empty() {
            return Ok(());
        }
        let standing = self.standings.get(tenant, user).await?;
        for claim in watched {
            if !permits(standing.as_ref(), &claim) {
                self.set_ended(claim.session);
            }
        }
        Ok(())
    }

    /// Checks periodically whether sessions with open streams have ended, in case a Pub/Sub message was lost, and less
    /// often whether they have expired.
    pub async fn recheck(self, interval: Duration, stop: CancellationToken) {
        let work = async {
            let mut existed_at = Instant::now();
            loop {
                tokio::time::sleep(interval).await;
                let asks_existence = existed_at.elapsed() >= EXISTENCE_INTERVAL;
                if asks_existence {
                    existed_at = Instant::now();
                }
                if let Err(error) = self.recheck_watched(asks_existence).await {
                    tracing::debug!(%error, "check of ended sessions failed");
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn recheck_watched(&self, asks_existence: bool) -> Result<(), Error> {
        let watched: Vec<Uuid> = self.watched.lock().ids();
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
        if asks_existence {
            self.recheck_existence().await?;
        }
        futures_util::stream::iter(self.watched_users())
            .map(|(tenant, user)| async move { self.end_outdated(&tenant, user).await })
            .buffer_unordered(LOOK_MAX)
            .try_collect()
            .await
    }

    /// Ends the streams of sessions that have expired.
    async fn recheck_existence(&self) -> Result<(), Error> {
        let stored: Vec<Uuid> = self.watched.lock().stored_ids();
        for sessions in stored.chunks(LOOK_MAX) {
            let mut pipe = redis::pipe();
            for &session in sessions {
                pipe.exists(self.store.keys().session(session));
            }
            let exists: Vec<bool> = self.store.query(&pipe).await?;
            for (&session, _) in sessions.iter().zip(exists).filter(|(_, exists)| !exists) {
                self.set_ended(session);
            }
        }
        Ok(())
    }

    /// Caches the end of a session and signals its open streams.
    fn set_ended(&self, session: Uuid) {
        self.ended.insert(session, ());
        self.watched.lock().end(session);
    }

    /// Ends the sessions beyond `auth.sessions_max`, the least recently used ones.
    async fn end_oldest(&self, tenant: &Tenant, user: Uuid) -> Result<(), Error> {
        let sessions = self.list(tenant, user).await?;
        let oldest = sessions.get(self.sessions_max..).unwrap_or_default();
        let ids: Vec<Uuid> = oldest.iter().map(|session| session.id).collect();
        self.end(user, &ids).await
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
                self.standings.set_subscribed(false);
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
        cluster::locate(&self.redis).await?;
        let mut subscription = net::redis::client(&self.redis)?.get_async_pubsub().await?;
        subscription.subscribe(self.store.keys().sessions_ended()).await?;
        // After the subscription, so that no end is missed in between.
        self.standings.set_subscribed(true);
        self.catch_up().await?;
        self.recheck_watched(false).await?;
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            let Ok(text) = message.get_payload::<String>() else {
                continue;
            };
            if let Ok(session) = Uuid::try_parse(&text) {
                self.set_ended(session);
            } else if let Some((tenant, user)) = parse_user_message(&text) {
                self.standings.invalidate(&tenant, user);
                let here = self.clone();
                // A task of its own: the next message must not wait for Postgres.
                tokio::spawn(async move {
                    if let Err(error) = here.end_outdated(&tenant, user).await {
                        tracing::debug!(%error, %user, "check of a user's open streams failed");
                    }
                });
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

    /// Ends the sessions of disabled and deleted users and of revoked devices, as the log delivers the changes, until `stop`.
    /// When changes were missed, all users with open streams here are checked, and no cached stamp is used again.
    pub async fn follow_users(
        self,
        database: Database,
        devices: Devices,
        mut changes: broadcast::Receiver<DeviceChange>,
        stop: CancellationToken,
    ) {
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.recv() => change,
            };
            let Some(changed) = self.take_changes(first, &mut changes) else {
                return;
            };
            let checks =
                futures_util::stream::iter(changed).for_each_concurrent(CHECKS_MAX, |((tenant, user), xid)| {
                    let (database, devices, sessions) = (&database, &devices, &self);
                    async move {
                        if let Err(error) = sessions.check_user(database, devices, &tenant, user, xid).await {
                            tracing::debug!(%error, %user, "check of a changed user's sessions failed");
                        }
                    }
                });
            tokio::select! {
                () = stop.cancelled() => return,
                () = checks => {}
            }
        }
    }

    /// The users of a change and of those that wait behind it, each once, with the last transaction if it is known.
    /// Their stamps are no longer cached. `None` when no change will come.
    fn take_changes(
        &self,
        first: Result<DeviceChange, RecvError>,
        changes: &mut broadcast::Receiver<DeviceChange>,
    ) -> Option<HashMap<(Tenant, Uuid), Option<u32>>> {
        let mut changed = HashMap::new();
        let mut next = first;
        loop {
            match next {
                Ok(DeviceChange::One { tenant, user, xid }) => {
                    if let Some(tenant) = Tenant::named(&tenant) {
                        self.standings.invalidate(&tenant, user);
                        changed.insert((tenant, user), Some(xid));
                    }
                }
                // Any user may be among the missed changes.
                Ok(DeviceChange::Any) | Err(RecvError::Lagged(_)) => {
                    self.standings.invalidate_all();
                    for user in self.watched_users() {
                        changed.entry(user).or_insert(None);
                    }
                }
                Err(RecvError::Closed) => return None,
            }
            next = match changes.try_recv() {
                Ok(change) => Ok(change),
                Err(TryRecvError::Lagged(count)) => Err(RecvError::Lagged(count)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Some(changed),
            };
        }
    }

    async fn check_user(
        &self,
        database: &Database,
        devices: &Devices,
        tenant: &Tenant,
        user: Uuid,
        xid: Option<u32>,
    ) -> Result<(), Error> {
        if let Some(xid) = xid {
            devices.await_visible(xid).await;
            // What was read between the log's delivery and the commit's visibility is the old state.
            self.standings.invalidate(tenant, user);
        }
        self.end_outdated(tenant, user).await?;
        // Most changes are of devices, and most users with devices have no session.
        let sessions = self.list(tenant, user).await?;
        if sessions.is_empty() {
            return Ok(());
        }
        if self.standings.get(tenant, user).await?.is_none() {
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

/// The Pub/Sub message of a user whose stamp has changed.
fn user_message(tenant: &Tenant, user: Uuid) -> String {
    format!("{}/{user}", tenant.name)
}

fn parse_user_message(text: &str) -> Option<(Tenant, Uuid)> {
    let (tenant, user) = text.split_once('/')?;
    Some((Tenant::named(tenant)?, Uuid::try_parse(user).ok()?))
}

/// Reads the first four of [`SHOWN`].
fn parse_owner(fields: &[Option<String>]) -> Option<Owner> {
    let field = |index: usize| fields.get(index).and_then(Option::as_deref);
    Some(Owner {
        tenant: Tenant::named(field(0)?)?,
        user: Uuid::try_parse(field(1)?).ok()?,
        device_id: field(2).filter(|device| !device.is_empty()).map(str::to_owned),
        stamp: Uuid::try_parse(field(3)?).ok()?,
    })
}

/// A time in milliseconds since 1970.
fn timestamp(text: &str) -> Option<Timestamp> {
    DateTime::<Utc>::from_timestamp_millis(text.parse().ok()?).map(Timestamp)
}

/// Whether the user of a session may act, with the stamp that the session has.
fn permits(standing: Option<&Standing>, claim: &SessionClaim) -> bool {
    standing.is_some_and(|standing| standing.permits(claim.session, claim.proof))
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
