//! Devices as principals: who a device token speaks for.
//!
//! The directory `posduif.devices` holds the SHA-256 of each token. A checked token is trusted for
//! `auth.device_cache_seconds`, so that a poll costs no statement; whoever revokes a device or disables a user calls
//! [`Devices::invalidate`], and other nodes follow by the log.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, broadcast, watch};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::accounts::loader::Loader;
use crate::accounts::users::{self, Login, UserType};
use crate::config::{self, DeviceAuth};
use crate::core::page::{Page, Rows};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{self, Error, check_line, check_text};
use crate::live::presence::{Entry, Status};
use crate::live::tail::{DeviceChange, Freshness};
use crate::postgres::tenants;
use crate::postgres::{Database, sql};
use crate::telemetry::metrics::CacheUse;

/// How often a change that the log told of is looked for in Postgres.
const VISIBLE_POLL: Duration = Duration::from_millis(10);

/// How long a look counts for what it has shown.
const SEEN_LIFETIME: Duration = Duration::from_secs(1);

/// How long it is looked for; then the cache's own time is the bound.
const VISIBLE_WAIT: Duration = Duration::from_secs(2);

/// Most principals that are remembered, unless twice as many connections as there may be are more.
const CACHE_ENTRIES: u64 = 100_000;

/// Longest device token that is looked at; ours have 43 characters.
const TOKEN_BYTES_MAX: usize = 512;

const OTHERS: Error = Error::Forbidden("this device is another user's, or revoked");

const UNKNOWN: Error = Error::Unauthorized("unknown device, or not its token");

/// A device that proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePrincipal {
    /// Its tenant.
    pub tenant: Tenant,
    /// Its id.
    pub device_id: String,
    /// The user whose device it is.
    pub user_id: Uuid,
    /// What that user is.
    pub user_type: UserType,
    /// The hash of the token that it showed; `None` where its id alone was enough.
    pub token: Option<TokenHash>,
}

/// SHA-256 of a device token, which has too many random bits to be found by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash as text, in base64url.
    pub fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads a text; `None` for one that is no hash.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// What a device showed: the hash of its token, and its id.
type Proof = (TokenHash, String);

/// A device that a session is bound to: tenant, user and its id.
type Bound = (String, Uuid, String);

/// What was checked, and what has changed since.
#[derive(Debug)]
struct PrincipalCache {
    /// Each with the number of the last change when it was checked.
    principals: Cache<Proof, (Arc<DevicePrincipal>, u64)>,
    /// Devices that sessions are bound to and that may be used, likewise.
    bound: Cache<Bound, u64>,
    /// The last change of each tenant's user, remembered for longer than a principal.
    changes: Cache<(String, Uuid), u64>,
    /// Counts changes.
    sequence: AtomicU64,
    /// How often it helps.
    uses: CacheUse,
}

impl PrincipalCache {
    fn new(lifetime: Duration, connections_max: usize, uses: CacheUse) -> Self {
        let principals: Cache<Proof, (Arc<DevicePrincipal>, u64)> = Cache::builder()
            .max_capacity(CACHE_ENTRIES.max(2 * connections_max as u64))
            .time_to_live(lifetime)
            .build();
        let counted = principals.clone();
        uses.measured_by(move || counted.entry_count());
        Self {
            principals,
            uses,
            bound: Cache::builder()
                .max_capacity(CACHE_ENTRIES)
                .time_to_live(lifetime)
                .build(),
            changes: Cache::builder().time_to_live(2 * lifetime).build(),
            sequence: AtomicU64::new(0),
        }
    }

    async fn get(&self, proof: &Proof) -> Option<Arc<DevicePrincipal>> {
        let known = self.find(proof).await;
        self.uses.asked(known.is_some());
        known
    }

    async fn find(&self, proof: &Proof) -> Option<Arc<DevicePrincipal>> {
        let (principal, checked) = self.principals.get(proof).await?;
        let is_current = self.is_current(&principal.tenant.name, principal.user_id, checked);
        is_current.await.then_some(principal)
    }

    async fn is_bound(&self, bound: &Bound) -> bool {
        match self.bound.get(bound).await {
            Some(checked) => self.is_current(&bound.0, bound.1, checked).await,
            None => false,
        }
    }

    /// Whether nothing of the user's has changed since the check with this number.
    async fn is_current(&self, tenant: &str, user: Uuid, checked: u64) -> bool {
        let changed = self.changes.get(&(tenant.to_owned(), user)).await;
        changed.is_none_or(|changed| changed <= checked)
    }
}

/// Checks devices. Cloning shares the cache.
#[derive(Debug, Clone)]
pub struct Devices {
    database: Database,
    mode: DeviceAuth,
    default_tenant: String,
    cache: Option<Arc<PrincipalCache>>,
    /// Asks Postgres for those that are not in the cache.
    loader: Loader<Proof, Arc<DevicePrincipal>>,
    /// Revocations come by the log, so the cache is as good as the log is fresh.
    freshness: watch::Receiver<Freshness>,
    freshness_bound: Duration,
    /// The last look at what Postgres shows, and when: one transaction may have changed many devices.
    seen: Arc<Mutex<Option<(Instant, Snapshot)>>>,
}

impl Devices {
    /// Takes mode and cache time from the settings.
    pub fn new(
        database: Database,
        settings: &config::Config,
        freshness: watch::Receiver<Freshness>,
        uses: CacheUse,
    ) -> Self {
        let seconds = settings.auth.device_cache_seconds;
        let loader = {
            let database = database.clone();
            Loader::new(move |proofs| by_tokens(database.clone(), proofs))
        };
        Self {
            loader,
            database,
            mode: settings.auth.device_auth,
            default_tenant: settings.server.default_tenant.clone(),
            freshness,
            freshness_bound: Duration::from_secs(settings.health.freshness_bound_seconds),
            seen: Arc::default(),
            cache: (seconds > 0).then(|| {
                Arc::new(PrincipalCache::new(
                    Duration::from_secs(seconds),
                    settings.server.connections_max,
                    uses,
                ))
            }),
        }
    }

    /// Forgets devices as the log says that they changed, on whichever node that was done, until `stop`.
    pub async fn follow(self, mut changes: broadcast::Receiver<DeviceChange>, stop: CancellationToken) {
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.recv() => change,
            };
            match change {
                Ok(DeviceChange::One { tenant, user, xid }) => {
                    self.invalidate(&tenant, user).await;
                    if self.cache.is_some() {
                        // Whoever asked before the commit could be seen was remembered as it was before.
                        self.await_visible(xid).await;
                        self.invalidate(&tenant, user).await;
                    }
                }
                // What was missed, or came too fast to follow, could be anybody's.
                Ok(DeviceChange::Any) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    if let Some(cache) = &self.cache {
                        cache.principals.invalidate_all();
                        cache.bound.invalidate_all();
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Whether checks that begin from now on see what this transaction did: the log can tell of a commit before
    /// Postgres shows it.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn sees(&self, xid: u32) -> Result<bool, Error> {
        let mut seen = self.seen.lock().await;
        if let Some((at, snapshot)) = &*seen {
            let is_seen = snapshot.sees_all(xid, xid);
            // What is visible stays so; but after a restore the same ids come again.
            let lifetime = if is_seen { SEEN_LIFETIME } else { VISIBLE_POLL };
            if at.elapsed() < lifetime {
                return Ok(is_seen);
            }
        }
        let row = self
            .database
            .query_opt(&sql!("postgres/current_snapshot"), &[])
            .await?
            .ok_or_else(|| Error::Internal("pg_current_snapshot() gave no row".into()))?;
        let Some(snapshot) = Snapshot::parse(row.try_get("snapshot")?) else {
            return Ok(true);
        };
        let is_seen = snapshot.sees_all(xid, xid);
        *seen = Some((Instant::now(), snapshot));
        Ok(is_seen)
    }

    /// Waits until [`Devices::sees`] what a transaction did, for a while: what is not visible by then is found out
    /// otherwise, later.
    pub(crate) async fn await_visible(&self, xid: u32) {
        let wait = async {
            while !matches!(self.sees(xid).await, Ok(true)) {
                tokio::time::sleep(VISIBLE_POLL).await;
            }
        };
        if tokio::time::timeout(VISIBLE_WAIT, wait).await.is_err() {
            tracing::debug!(xid, "a change of a user is not visible yet");
        }
    }

    /// Who this device is. Under `auth.device_auth: id` the tenant is the hinted one, else `server.default_tenant`, and
    /// a token is checked only if there is one.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] for an unknown or revoked device, a wrong token, or a disabled user;
    /// [`Error::NotFound`] for an unknown device where ids alone are enough.
    pub async fn authenticate(
        &self,
        tenant: Option<&str>,
        device_id: &str,
        token: Option<&str>,
    ) -> Result<Arc<DevicePrincipal>, Error> {
        if token.is_some_and(|token| token.len() > TOKEN_BYTES_MAX) {
            return Err(UNKNOWN);
        }
        let hash = token.map(|token| TokenHash(hash_token(token)));
        self.check(tenant, device_id, hash).await
    }

    /// Who this device is now, which proved before who it was: by the same token, which must still be its own.
    ///
    /// # Errors
    /// Like [`Devices::authenticate`].
    pub async fn check_again(&self, device: &DevicePrincipal) -> Result<Arc<DevicePrincipal>, Error> {
        self.check_hash(&device.tenant.name, &device.device_id, device.token)
            .await
    }

    /// Like [`Devices::authenticate`], of a device whose token only the hash is known of.
    ///
    /// # Errors
    /// Like [`Devices::authenticate`], and [`Error::Unauthorized`] for a device of another tenant.
    pub async fn check_hash(
        &self,
        tenant: &str,
        device_id: &str,
        hash: Option<TokenHash>,
    ) -> Result<Arc<DevicePrincipal>, Error> {
        let device = self.check(Some(tenant), device_id, hash).await?;
        if device.tenant.name != tenant {
            return Err(UNKNOWN);
        }
        Ok(device)
    }

    async fn check(
        &self,
        tenant: Option<&str>,
        device_id: &str,
        hash: Option<TokenHash>,
    ) -> Result<Arc<DevicePrincipal>, Error> {
        if check_device_id(device_id).is_err() {
            return Err(UNKNOWN);
        }
        let Some(hash) = hash else {
            return match self.mode {
                DeviceAuth::Token => Err(Error::Unauthorized("a device token is needed")),
                // Not remembered: the hint would have to be part of the proof, and this is for closed networks.
                DeviceAuth::Id => self.by_id(tenant.unwrap_or(&self.default_tenant), device_id).await,
            };
        };
        let proof = (hash, device_id.to_owned());
        if let Some(cache) = self.fresh_cache()
            && let Some(known) = cache.get(&proof).await
        {
            return Ok(known);
        }
        // A change that comes between here and the answer must not be covered by it.
        let sequence = self.sequence();
        let principal = self.loader.load(proof.clone()).await?.ok_or(UNKNOWN)?;
        if let Some(cache) = &self.cache {
            cache.principals.insert(proof, (principal.clone(), sequence)).await;
        }
        Ok(principal)
    }

    /// Whether this token is, or was until its revocation, the device's own.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn has_known(&self, device_id: &str, token: &str) -> Result<bool, Error> {
        if check_device_id(device_id).is_err() || token.len() > TOKEN_BYTES_MAX {
            return Ok(false);
        }
        let hash = hash_token(token);
        let row = self
            .database
            .query_opt(
                &sql!("accounts/device_token_known"),
                &[(&hash.as_slice(), Type::BYTEA), (&device_id, Type::TEXT)],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Whether the device that a session of the user's is bound to may still be used.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] for a revoked one, and when Postgres cannot be asked.
    pub async fn check_bound(&self, tenant: &Tenant, user: Uuid, device_id: &str) -> Result<(), Error> {
        let bound = (tenant.name.clone(), user, device_id.to_owned());
        if let Some(cache) = self.fresh_cache()
            && cache.is_bound(&bound).await
        {
            return Ok(());
        }
        let sequence = self.sequence();
        if usable(&self.database, tenant, user, &[device_id]).await?.is_empty() {
            return Err(Error::Unauthorized("the device of this session is revoked"));
        }
        if let Some(cache) = &self.cache {
            cache.bound.insert(bound, sequence).await;
        }
        Ok(())
    }

    /// What was checked, if there is a cache and the log would have told of changes.
    fn fresh_cache(&self) -> Option<&PrincipalCache> {
        let age = self.freshness.borrow().age();
        let is_fresh = age.is_some_and(|age| age <= self.freshness_bound);
        self.cache.as_deref().filter(|_| is_fresh)
    }

    /// The number of the last change.
    fn sequence(&self) -> u64 {
        self.cache
            .as_ref()
            .map_or(0, |cache| cache.sequence.load(Ordering::SeqCst))
    }

    /// Forgets what was checked for the devices of a user.
    pub async fn invalidate(&self, tenant: &str, user: Uuid) {
        if let Some(cache) = &self.cache {
            let change = cache.sequence.fetch_add(1, Ordering::SeqCst) + 1;
            cache.changes.insert((tenant.to_owned(), user), change).await;
        }
    }

    /// Revokes a device: its token ends now here, and on other nodes when the log tells them. Gives its user, or `None`
    /// when there is no such device, or it was revoked before.
    ///
    /// # Errors
    /// When Postgres does not do it.
    pub async fn revoke(&self, tenant: &Tenant, device_id: &str) -> Result<Option<Uuid>, Error> {
        let user = revoke(&self.database, tenant, device_id).await?;
        if let Some(user) = user {
            self.invalidate(&tenant.name, user).await;
        }
        Ok(user)
    }

    async fn by_id(&self, tenant: &str, device_id: &str) -> Result<Arc<DevicePrincipal>, Error> {
        const NONE: Error = Error::NotFound("device");
        let tenant = tenants::find(&self.database, tenant).await?.ok_or(NONE)?;
        let row = self
            .database
            .query_opt(
                &sql!("accounts/device_by_id"),
                &[(&tenant.name, Type::TEXT), (&device_id, Type::TEXT)],
            )
            .await?
            .ok_or(NONE)?;
        Ok(Arc::new(
            self.principal(tenant, device_id, row.try_get("user_id")?, None).await?,
        ))
    }

    async fn principal(
        &self,
        tenant: Tenant,
        device_id: &str,
        user_id: Uuid,
        token: Option<TokenHash>,
    ) -> Result<DevicePrincipal, Error> {
        let user = self
            .database
            .query_often(&sql!("accounts/user_active_type", tenant), &[(&user_id, Type::UUID)])
            .await?
            .ok_or(UNKNOWN)?;
        Ok(DevicePrincipal {
            device_id: device_id.to_owned(),
            user_id,
            user_type: user.try_get::<_, &str>("user_type")?.parse()?,
            token,
            tenant,
        })
    }
}

/// Who these devices are.
async fn by_tokens(database: Database, proofs: Vec<Proof>) -> Result<HashMap<Proof, Arc<DevicePrincipal>>, Error> {
    let hashes: Vec<&[u8]> = proofs.iter().map(|(hash, _)| hash.0.as_slice()).collect();
    let ids: Vec<&str> = proofs.iter().map(|(_, id)| id.as_str()).collect();
    let rows = database
        .query(
            &sql!("accounts/devices_by_token"),
            &[(&hashes, Type::BYTEA_ARRAY), (&ids, Type::TEXT_ARRAY)],
        )
        .await?;
    let mut by_tenant: HashMap<Tenant, Vec<(TokenHash, String, Uuid)>> = HashMap::new();
    let mut first_uses: Vec<TokenHash> = Vec::new();
    for row in &rows {
        let (Some(tenant), Ok(hash)) = (
            Tenant::named(row.try_get("tenant")?),
            row.try_get::<_, &[u8]>("token_hash")?.try_into(),
        ) else {
            continue;
        };
        let hash = TokenHash(hash);
        let device = (hash, row.try_get("device_id")?, row.try_get("user_id")?);
        by_tenant.entry(tenant).or_default().push(device);
        if row.try_get("is_first_use")? {
            first_uses.push(hash);
        }
    }
    let mut found = HashMap::new();
    for (tenant, devices) in by_tenant {
        let users: Vec<Uuid> = devices.iter().map(|(.., user)| *user).collect();
        let types = users::active_types(&database, &tenant, &users).await?;
        for (hash, device_id, user_id) in devices {
            let Some(&user_type) = types.get(&user_id) else {
                continue;
            };
            let principal = DevicePrincipal {
                tenant: tenant.clone(),
                device_id: device_id.clone(),
                user_id,
                user_type,
                token: Some(hash),
            };
            found.insert((hash, device_id), Arc::new(principal));
        }
    }
    // Only of those who are let in.
    let admitted: HashSet<TokenHash> = found.keys().map(|(hash, _)| *hash).collect();
    first_uses.retain(|hash| admitted.contains(hash));
    if !first_uses.is_empty() {
        let hashes: Vec<&[u8]> = first_uses.iter().map(|hash| hash.0.as_slice()).collect();
        database
            .query(&sql!("accounts/device_first_use"), &[(&hashes, Type::BYTEA_ARRAY)])
            .await?;
    }
    Ok(found)
}

/// Revokes a device; engines learn of it by the log. Gives whose it was, `None` when there is no such device, or it was
/// revoked before.
///
/// # Errors
/// When Postgres does not do it.
pub async fn revoke(database: &Database, tenant: &Tenant, device_id: &str) -> Result<Option<Uuid>, Error> {
    if check_device_id(device_id).is_err() {
        return Ok(None);
    }
    let row = database
        .query_opt(
            &sql!("accounts/device_revoke", tenant),
            &[(&tenant.name, Type::TEXT), (&device_id, Type::TEXT)],
        )
        .await?;
    Ok(row.map(|row| row.try_get("user_id")).transpose()?)
}

/// A device as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// Its id.
    pub device_id: String,
    /// Whose it is.
    pub user_id: Uuid,
    /// Their username, which the API tells elsewhere.
    #[serde(skip)]
    pub username: String,
    /// What its user calls it.
    pub name: Option<String>,
    /// `mobile`, `desktop` or `browser`.
    pub device_type: String,
    /// Its public key for end-to-end encryption, in the form that the app gave it.
    pub public_key: Option<String>,
    /// When that became another one than it was; none while it is the first.
    pub public_key_changed_at: Option<Timestamp>,
    /// What the app said of itself.
    pub device_info: Value,
    /// When it was enrolled.
    pub created_at: Timestamp,
    /// When it last synced, or had a stream, some seconds behind.
    pub last_seen_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Whether it is here, where that was asked. Comes from presence, not from the row; see [`Device::set_presence`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<Status>,
}

impl Device {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            device_id: row.try_get("device_id")?,
            user_id: row.try_get("user_id")?,
            username: row.try_get("username")?,
            name: row.try_get("name")?,
            device_type: row.try_get("device_type")?,
            public_key: row.try_get("public_key")?,
            public_key_changed_at: row.try_get("public_key_changed_at")?,
            device_info: row.try_get("device_info")?,
            created_at: row.try_get("created_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
            revoked_at: row.try_get("revoked_at")?,
            presence: None,
        })
    }

    /// Takes over what presence knows of its user, if it does: a device that is here is seen at this moment.
    pub fn set_presence(&mut self, entry: Option<&Entry>) {
        let here = entry.and_then(|entry| entry.devices.iter().find(|(id, _)| *id == self.device_id));
        self.presence = Some(here.map_or(Status::Offline, |(_, status)| *status));
        if here.is_some() {
            self.last_seen_at = Some(Timestamp::now());
        }
    }
}

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceType {
    /// A phone or tablet.
    Mobile,
    /// A computer's app.
    Desktop,
    /// A browser.
    Browser,
}

impl DeviceType {
    /// The word in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mobile => "mobile",
            Self::Desktop => "desktop",
            Self::Browser => "browser",
        }
    }

    /// What somebody of this type likely logs in with.
    fn of(user_type: UserType) -> Self {
        match user_type {
            UserType::Web => Self::Browser,
            UserType::Mobile => Self::Mobile,
        }
    }
}

/// A device as a login names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its id; a new one is given to a device that has none.
    pub id: Option<String>,
    /// What its user calls it.
    pub name: Option<String>,
    /// What it is.
    pub device_type: Option<DeviceType>,
    /// Its public key.
    pub public_key: Option<String>,
}

impl Named {
    /// Checks what is said of the device.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self) -> Result<(), Error> {
        if let Some(id) = &self.id {
            check_device_id(id)?;
        }
        check_description(("name", self.name.as_deref()), self.public_key.as_deref())
    }
}

/// A device that a user has logged in with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegisteredDevice {
    /// The device.
    #[serde(flatten)]
    pub device: Device,
    /// Whether it was not known before.
    pub is_new: bool,
}

/// The device that a user logs in with: one of theirs, or a new one. What is said of a known one replaces what was known.
///
/// # Errors
/// [`Error::Forbidden`] for another user's or a revoked one, [`Error::Conflict`] when the user has `devices_max` already.
pub async fn welcome(
    database: &Database,
    login: &Login,
    named: &Named,
    devices_max: usize,
) -> Result<RegisteredDevice, Error> {
    let tenant = &login.tenant;
    let made_up;
    let id = match &named.id {
        Some(id) => id,
        None => {
            made_up = Uuid::new_v4().to_string();
            &made_up
        }
    };
    let most = i64::try_from(devices_max).unwrap_or(i64::MAX);
    // Of two logins that name the same new device at once, the second finds it the second time.
    for _ in 0..2 {
        let row = database
            .query_opt(
                &sql!("accounts/device_login", tenant),
                &[
                    (&login.id, Type::UUID),
                    (id, Type::TEXT),
                    (&named.name, Type::TEXT),
                    (&named.device_type.map(DeviceType::as_str), Type::TEXT),
                    (&named.public_key, Type::TEXT),
                    (&DeviceType::of(login.user_type).as_str(), Type::TEXT),
                    (&most, Type::INT8),
                ],
            )
            .await?;
        if let Some(row) = row {
            return Ok(RegisteredDevice {
                device: Device::from_row(&row)?,
                is_new: row.try_get("is_new")?,
            });
        }
        if !exists(database, tenant, id).await? {
            return Err(Error::Conflict(format!(
                "this user has {devices_max} devices: revoke one that is no longer used"
            )));
        }
    }
    Err(OTHERS)
}

/// Notes that a device of a user was seen; false when there is none, or it is revoked.
///
/// # Errors
/// When Postgres does not do it.
pub async fn seen(database: &Database, tenant: &Tenant, user: Uuid, device_id: &str) -> Result<bool, Error> {
    let statement = sql!("accounts/device_seen", tenant);
    let row = database
        .query_opt(&statement, &[(&user, Type::UUID), (&device_id, Type::TEXT)])
        .await?;
    Ok(row.is_some())
}

/// Those of some devices that are a user's and may be used.
///
/// # Errors
/// When Postgres cannot be asked.
pub(crate) async fn usable(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    device_ids: &[&str],
) -> Result<HashSet<String>, Error> {
    let statement = sql!("accounts/devices_usable", tenant);
    let rows = database
        .query(&statement, &[(&user, Type::UUID), (&device_ids, Type::TEXT_ARRAY)])
        .await?;
    Ok(rows
        .iter()
        .map(|row| row.try_get("device_id"))
        .collect::<Result<_, _>>()?)
}

/// Who asks for devices: everybody sees their own, web users also those of mobile users, whom they enroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Viewer {
    /// The user.
    pub user_id: Uuid,
    /// What they are.
    pub user_type: UserType,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Only this user's.
    pub user: Option<Uuid>,
    /// Only this one.
    pub device_id: Option<&'a str>,
    /// Only revoked ones, or only others.
    pub is_revoked: Option<bool>,
    /// Which part of the list.
    pub page: Page,
}

/// A page of devices, newest first by `(created_at, device_id)`; of all the tenant's when the operator asks, who is no user.
///
/// # Errors
/// [`Error::Invalid`] when the page is beside no device that the viewer may see; when Postgres cannot be asked.
pub async fn list(
    database: &Database,
    tenant: &Tenant,
    viewer: Option<Viewer>,
    filter: &Filter<'_>,
) -> Result<Rows<Device>, Error> {
    let page = &filter.page;
    let (place, is_after) = (page.place().map(|(_, id)| id), page.is_after());
    let rows = database
        .query(
            &sql!("accounts/device_list", tenant),
            &[
                (&viewer.map(|viewer| viewer.user_id), Type::UUID),
                (&viewer.map(|viewer| viewer.user_type.as_str()), Type::TEXT),
                (&filter.user, Type::UUID),
                (&filter.device_id, Type::TEXT),
                (&filter.is_revoked, Type::BOOL),
                (&page.rows_max(), Type::INT8),
                (&page.offset(), Type::INT8),
                (&place, Type::TEXT),
                (&is_after, Type::BOOL),
            ],
        )
        .await?;
    feature::read_page(&rows, page, is_after, Device::from_row)
}

/// One device.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Forbidden`] when it is not the viewer's to see.
pub async fn get(database: &Database, tenant: &Tenant, viewer: Viewer, device_id: &str) -> Result<Device, Error> {
    let one = Filter {
        user: None,
        device_id: Some(device_id),
        is_revoked: None,
        page: Page::first(1),
    };
    // What Postgres cannot store, nobody has.
    if check_device_id(device_id).is_err() {
        return Err(Error::NotFound("device"));
    }
    let mut devices = list(database, tenant, Some(viewer), &one).await?.rows;
    match devices.pop() {
        Some(device) => Ok(device),
        None => Err(absent_or_anothers(database, tenant, device_id).await?),
    }
}

/// Why somebody has no such device.
async fn absent_or_anothers(database: &Database, tenant: &Tenant, device_id: &str) -> Result<Error, Error> {
    Ok(match exists(database, tenant, device_id).await? {
        true => OTHERS,
        false => Error::NotFound("device"),
    })
}

/// Changes what the user's device is called, and its key; `None` leaves a value as it is.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`] for another user's, or a revoked one, [`Error::Invalid`].
pub async fn update(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    device_id: &str,
    name: Option<&str>,
    public_key: Option<&str>,
) -> Result<(), Error> {
    check_description(("name", name), public_key)?;
    if check_device_id(device_id).is_err() {
        return Err(Error::NotFound("device"));
    }
    let updated = database
        .query_opt(
            &sql!("accounts/device_update", tenant),
            &[
                (&user, Type::UUID),
                (&device_id, Type::TEXT),
                (&name, Type::TEXT),
                (&public_key, Type::TEXT),
            ],
        )
        .await?;
    match updated {
        Some(_) => Ok(()),
        None => Err(absent_or_anothers(database, tenant, device_id).await?),
    }
}

/// Checks what a device says of itself.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn check_description(
    (field, name): (&'static str, Option<&str>),
    public_key: Option<&str>,
) -> Result<(), Error> {
    if let Some(name) = name {
        check_line(field, name, 255)?;
    }
    if let Some(key) = public_key {
        check_text("public_key", key, 16_384)?;
    }
    Ok(())
}

/// Whether the tenant has such a device, revoked or not.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn exists(database: &Database, tenant: &Tenant, device_id: &str) -> Result<bool, Error> {
    let statement = sql!("accounts/device_exists", tenant);
    Ok(database
        .query_opt(&statement, &[(&device_id, Type::TEXT)])
        .await?
        .is_some())
}

/// Checks the form of a device id: 1 to 128 of letters, digits, `.`, `_`, `:` and `-`.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_device_id(device_id: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    if (1..=128).contains(&device_id.len()) && device_id.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Error::invalid(
            "device_id",
            "must be 1 to 128 of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`",
        ))
    }
}

/// A fresh device token: 256 random bits, as text.
pub(crate) fn new_token() -> Result<String, Error> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).map_err(|error| Error::Internal(format!("no random bits: {error}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bits))
}

/// What the directory keeps of a token.
pub(crate) fn hash_token(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_are_checked() {
        for good in ["a", "device_123", "A.b:c-d", &"x".repeat(128)] {
            assert!(check_device_id(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "a\0", &"x".repeat(129)] {
            assert!(check_device_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_random_and_fit_a_header() {
        let (one, two) = (new_token().expect("a token"), new_token().expect("a token"));
        assert_ne!(one, two);
        assert_eq!(one.len(), 43);
        assert!(!one.contains('.'), "a dot is what tells access tokens apart");
    }
}
