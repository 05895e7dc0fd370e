//! Sessions: what a login begins and what its refresh tokens continue. They live in Redis and end by themselves.
//!
//! A session is a hash with a time to live; a set per user lists its sessions, and references to those that have
//! expired are removed whenever somebody looks. Access tokens name their session but are checked without Redis. So that
//! they end with it all the same, each node remembers the sessions that were ended lately: it hears of them by Pub/Sub,
//! reads them when it subscribes, and goes by what it knows while Redis is away.
//!
//! A refresh token is 128 bits that stay, from whose digest the session's id is made, and 256 bits that change with
//! every use; Redis holds the SHA-256 only. So whoever shows a token of a session with the wrong changing part has
//! once held a right one: the token was stolen, or its thief is late, and the session ends (RFC 9700, section 4.14.2).
//! The answer to a refresh may get lost on its way, though. A token's successor is therefore an HMAC of a fresh
//! random salt under the token itself: the same token shown again at once finds the salt and gets the same successor,
//! so that however many show it there is one chain, and Redis alone gives away neither.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use hmac::{Hmac, KeyInit, Mac};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use uuid::Uuid;

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

/// Characters that are kept of a client's `User-Agent`.
const USER_AGENT_CHARS_MAX: usize = 256;

/// How much longer than any access token the mark of an ended session lives; clocks differ.
const ENDED_MARGIN: Duration = Duration::from_secs(60);

/// Sessions that are looked at in one round trip.
const LOOK_MAX: usize = 1000;

/// Pause before a lost subscription is made anew.
const RETRY: Duration = Duration::from_secs(1);

/// Begins a session and lists it. Keys: session, list. Arguments: id, lifetime in seconds, fields and values. Gives how
/// many the list names.
const OPEN: &str = "\
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
if redis.call('TTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
return redis.call('SCARD', KEYS[2])";

/// Takes a refresh token. Keys: session, list. Arguments: id, lifetime in seconds, the token's hash, its successor's
/// hash and salt, milliseconds in which it may be shown again, address, user agent. Gives the salt of the successor,
/// or nothing when the session does not exist, or has just ended because the token is an old one.
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

/// Fields that are shown.
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
    /// Its id, which access tokens bear as `sid`.
    pub id: Uuid,
    /// When its user logged in.
    pub created_at: Timestamp,
    /// When it was last refreshed, or begun.
    pub last_used_at: Timestamp,
    /// When it ends unless it is refreshed.
    pub expires_at: Timestamp,
    /// What the client called itself then.
    pub user_agent: Option<String>,
    /// Where it was then.
    pub address: Option<String>,
    /// The user's device that it is bound to, if its login named one.
    pub device_id: Option<String>,
}

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The tenant.
    pub tenant: Tenant,
    /// The user.
    pub user: Uuid,
    /// The user's device that it is bound to.
    pub device_id: Option<String>,
}

/// Where a login or a refresh comes from.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// What it calls itself.
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

/// What a login or a refresh gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The session's id.
    pub session: Uuid,
    /// Its refresh token. It cannot be read again.
    pub refresh_token: String,
}

/// A refresh token that has the form of one.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken {
    /// Stays for the whole session.
    family: [u8; 16],
    /// Changes with every use.
    secret: [u8; 32],
}

impl std::fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RefreshToken").field(&self.session()).finish()
    }
}

impl RefreshToken {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            family: random()?,
            secret: random()?,
        })
    }

    /// Reads a token; `None` for a text that is none.
    pub fn parse(text: &str) -> Option<Self> {
        // Of this length only: a megabyte need not be decoded to be refused.
        if text.len() != 64 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (family, secret) = bytes.split_first_chunk()?;
        Some(Self {
            family: *family,
            secret: secret.try_into().ok()?,
        })
    }

    /// The session that it is of.
    pub fn session(&self) -> Uuid {
        let digest = Sha256::new()
            .chain_update(b"posduif session\0")
            .chain_update(self.family)
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        uuid::Builder::from_random_bytes(id).into_uuid()
    }

    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode([&self.family[..], &self.secret[..]].concat())
    }

    fn hash(&self) -> String {
        let digest = Sha256::new()
            .chain_update(self.family)
            .chain_update(self.secret)
            .finalize();
        URL_SAFE_NO_PAD.encode(digest)
    }

    fn successor(&self, salt: &[u8]) -> Self {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(b"posduif refresh\0");
        mac.update(salt);
        Self {
            family: self.family,
            secret: mac.finalize().into_bytes().into(),
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bits = [0; N];
    getrandom::fill(&mut bits).map_err(|error| Error::Internal(format!("no random bits: {error}")))?;
    Ok(bits)
}

/// Streams that are open under sessions, by session.
type Watched = Arc<Mutex<HashMap<Uuid, (CancellationToken, usize)>>>;

/// Tells when a session ends; dropping it stops watching.
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

    /// Ready when the session was ended.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.ended.as_mut().poll(context)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = watched.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.session);
            }
        }
    }
}

/// Keeps sessions. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    redis: config::Redis,
    lifetime_seconds: u64,
    retry_ms: u64,
    sessions_max: usize,
    /// How long an ended session is remembered: as long as access tokens of it live.
    ended_life: Duration,
    /// Sessions that this node knows to be ended.
    ended: Cache<Uuid, ()>,
    ended_max: u64,
    watched: Watched,
}

impl Sessions {
    /// Takes times and bounds from the settings.
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
            // Beyond the bound those that were looked at least recently are forgotten: their tokens expire.
            ended: Cache::builder()
                .max_capacity(ended_max)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(ended_life)
                .build(),
            ended_max,
            watched: Watched::default(),
        }
    }

    /// Begins a session of a user who has just proved who they are, bound to the device that they named. Of too many,
    /// those that were used least recently are forgotten: they cannot be refreshed any more.
    ///
    /// # Errors
    /// [`Error::Redis`].
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
            self.forget_oldest(tenant, user).await?;
        }
        Ok(Granted {
            session: id,
            refresh_token: token.text(),
        })
    }

    /// Whose session a refresh token is of, whether or not it is the right one of them; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn owner(&self, session: Uuid) -> Result<Option<Owner>, Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET")
            .arg(self.store.keys().session(session))
            .arg(&SHOWN[..3]);
        let (fields,): (Vec<Option<String>>,) = self.store.query(&pipe).await?;
        Ok(parse_owner(&fields))
    }

    /// Takes a refresh token of this user and gives its successor, once or, while the answer may have got lost, several
    /// times the same one. A token that was used before ends the session, on all nodes. `None` when the token is good
    /// for nothing.
    ///
    /// # Errors
    /// [`Error::Redis`].
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
            tracing::warn!(session = %id, %user, "a refresh token was used again: its session is ended");
            self.end(user, &[id]).await?;
        }
        Ok(salt.map(|salt| Granted {
            session: id,
            refresh_token: token.successor(salt.as_bytes()).text(),
        }))
    }

    /// A user's sessions, the one that was used last first.
    ///
    /// # Errors
    /// [`Error::Redis`].
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
            // The same user id may be another tenant's too, whose schema was copied say.
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

    /// Ends sessions of a user: they cannot be refreshed, and their access tokens and the streams that are open under them
    /// end, on this node now and on others in a moment.
    ///
    /// # Errors
    /// [`Error::Redis`].
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
        sessions.iter().for_each(|&session| self.tell(session));
        Ok(())
    }

    /// Ends all sessions of a user, or all but one.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn end_all(&self, tenant: &Tenant, user: Uuid, but: Option<Uuid>) -> Result<(), Error> {
        let sessions = self.list(tenant, user).await?;
        let ids = sessions.iter().map(|session| session.id);
        let others: Vec<Uuid> = ids.filter(|&id| Some(id) != but).collect();
        self.end(user, &others).await
    }

    /// Ends the sessions of a user that are bound to a device.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn end_of_device(&self, tenant: &Tenant, user: Uuid, device_id: &str) -> Result<(), Error> {
        let sessions = self.list(tenant, user).await?;
        let bound = sessions
            .iter()
            .filter(|session| session.device_id.as_deref() == Some(device_id));
        let ids: Vec<Uuid> = bound.map(|session| session.id).collect();
        self.end(user, &ids).await
    }

    /// Whether the session was ended before its time, as far as access tokens of it may still live.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn is_ended(&self, session: Uuid) -> Result<bool, Error> {
        let mut pipe = redis::pipe();
        pipe.zscore(self.store.keys().ended_sessions(), session.to_string());
        let (until,): (Option<f64>,) = self.store.query(&pipe).await?;
        Ok(until.is_some())
    }

    /// Whether this node knows that the session was ended. Costs nothing, and holds without Redis; what was ended a moment
    /// ago on another node, or while Redis is away, is not known yet.
    pub fn is_known_ended(&self, session: Uuid) -> bool {
        self.ended.contains_key(&session)
    }

    /// Watches for a session's end from now on. What was before is for [`Sessions::is_ended`] to tell.
    pub fn watch(&self, session: Uuid) -> Watch {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, count) = watched.entry(session).or_default();
        *count += 1;
        Watch {
            session,
            ended: Box::pin(ended.clone().cancelled_owned()),
            watched: self.watched.clone(),
        }
    }

    /// Looks again and again whether sessions with streams here were ended, in case that the word of it was lost.
    pub async fn recheck(self, interval: Duration, stop: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(interval).await;
                if let Err(error) = self.recheck_watched().await {
                    tracing::debug!(%error, "ended sessions are looked for later");
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn recheck_watched(&self) -> Result<(), Error> {
        let watched: Vec<Uuid> = self
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect();
        for sessions in watched.chunks(LOOK_MAX) {
            let mut pipe = redis::pipe();
            for &session in sessions {
                pipe.zscore(self.store.keys().ended_sessions(), session.to_string());
            }
            let ended: Vec<Option<f64>> = self.store.query(&pipe).await?;
            for (&session, _) in sessions.iter().zip(ended).filter(|(_, until)| until.is_some()) {
                self.tell(session);
            }
        }
        Ok(())
    }

    /// Remembers that a session was ended, and tells the streams that are open under it.
    fn tell(&self, session: Uuid) {
        self.ended.insert(session, ());
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((ended, _)) = watched.get(&session) {
            ended.cancel();
        }
    }

    async fn forget_oldest(&self, tenant: &Tenant, user: Uuid) -> Result<(), Error> {
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

    /// Learns of sessions that other nodes end, and have ended, until `stop`. What is missed while Redis is away, it finds
    /// out as soon as it is back.
    pub async fn follow_ends(self, stop: CancellationToken) {
        let work = async {
            let mut told = None;
            loop {
                let error = self
                    .hear_ends()
                    .await
                    .err()
                    .map(|error| crate::telemetry::chain(&error));
                // Access tokens of sessions that were ended elsewhere are taken meanwhile.
                match error {
                    Some(cause) if told.as_ref() != Some(&cause) => {
                        tracing::warn!(cause, "no word of sessions that other nodes end; trying again");
                        told = Some(cause);
                    }
                    Some(_) => {}
                    None => told = None,
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn hear_ends(&self) -> Result<(), Error> {
        let mut subscription = net::redis::client(&self.redis)?.get_async_pubsub().await?;
        subscription.subscribe(self.store.keys().sessions_ended()).await?;
        // Subscribed first: what is ended in between is heard.
        self.catch_up().await?;
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            let id = message.get_payload::<String>().ok();
            if let Some(session) = id.and_then(|id| Uuid::try_parse(&id).ok()) {
                self.tell(session);
            }
        }
        Ok(())
    }

    /// Learns of all sessions that were ended lately.
    async fn catch_up(&self) -> Result<(), Error> {
        let (mut known, now) = (0, Utc::now().timestamp_millis());
        loop {
            let mut pipe = redis::pipe();
            // From the newest on: what expires meanwhile moves no place.
            pipe.cmd("ZRANGE")
                .arg(self.store.keys().ended_sessions())
                .arg("+inf")
                .arg(now)
                .arg(&["BYSCORE", "REV", "LIMIT", &known.to_string(), &LOOK_MAX.to_string()]);
            let (page,): (Vec<String>,) = self.store.query(&pipe).await?;
            for session in page.iter().filter_map(|id| Uuid::try_parse(id).ok()) {
                self.tell(session);
            }
            known += page.len() as u64;
            if page.len() < LOOK_MAX || known >= self.ended_max {
                return Ok(());
            }
        }
    }

    /// Ends the sessions of users whom the log says to be disabled or deleted, and of devices that are revoked, until
    /// `stop`. A session that is missed ends when it is refreshed.
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
                tracing::debug!(%error, %user, "sessions of a changed user are looked at when they are refreshed");
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

/// Reads the first three of what is shown.
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
    fn a_refresh_token_is_read_as_it_was_written_and_nothing_else_is() {
        let token = RefreshToken::new().expect("random bits");
        let text = token.text();
        assert_eq!(text.len(), 64);
        assert_eq!(RefreshToken::parse(&text), Some(token.clone()));
        for bad in ["", &text[1..], &format!("{text}A"), &"=".repeat(64), &"ä".repeat(32)] {
            assert_eq!(RefreshToken::parse(bad), None, "{bad}");
        }
        assert!(!format!("{token:?}").contains(&text));
    }

    #[test]
    fn a_successor_is_of_the_same_session_and_follows_from_token_and_salt_alone() {
        let token = RefreshToken::new().expect("random bits");
        let next = token.successor(b"salt");
        assert_eq!(next, token.successor(b"salt"));
        assert_eq!(next.session(), token.session());
        assert_ne!(next.hash(), token.hash());
        assert_ne!(next, token.successor(b"other salt"));
        assert_ne!(next, RefreshToken::new().expect("random bits").successor(b"salt"));
    }

    #[test]
    fn what_a_client_calls_itself_is_kept_short_and_clean() {
        let client = Client {
            address: IpAddr::from([127, 0, 0, 1]),
            user_agent: Some(format!("a\tb{}", "ü".repeat(1000))),
        };
        let kept = client.user_agent();
        assert!(kept.starts_with("abü"));
        assert_eq!(kept.chars().count(), USER_AGENT_CHARS_MAX);
    }
}
