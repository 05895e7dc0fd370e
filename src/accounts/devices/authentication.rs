//! Authentication of devices by their tokens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::cache::{BoundDevice, PrincipalCache, Proof};
use super::challenge::Challenges;
use super::device;
use super::id::check_device_id;
use super::revocation::VisibilityBarrier;
use super::token::TokenHash;
use crate::accounts::loader::{Found, Loader, TenantLoader};
use crate::accounts::users::{self, UserType, Users};
use crate::config::{self, DeviceAuth};
use crate::core::lane::Lanes;
use crate::core::rate::Rate;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::live::tail::Freshness;
use crate::postgres::{Database, sql, tenants};
use crate::telemetry::metrics::CacheUse;

/// Good proofs that a device may give at once and within a minute, in each process. Each one is an entry in the audit log.
const PROOFS_PER_MINUTE: u32 = 10;

const UNKNOWN: Error = Error::Unauthorized("unknown device, or not its token");

/// An authenticated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePrincipal {
    pub tenant: Tenant,
    pub device_id: String,
    /// The user of the device.
    pub user_id: Uuid,
    pub user_type: UserType,
    /// The hash of the presented token; `None` where the id was sufficient.
    pub token: Option<TokenHash>,
}

/// Authenticates devices. Cloning shares the cache.
#[derive(Debug, Clone)]
pub struct Devices {
    pub(super) database: Database,
    pub(super) users: Users,
    mode: DeviceAuth,
    default_tenant: String,
    pub(super) cache: Option<Arc<PrincipalCache>>,
    /// Queries Postgres for devices that are not cached.
    directory: Loader<Proof, Candidate>,
    /// Records first uses of tokens.
    first_uses: Loader<TokenHash, ()>,
    /// Loads the types of active users.
    types: TenantLoader<UserType>,
    /// Revocations arrive through the log: the cache is usable while the log is fresh.
    freshness: Lanes<watch::Receiver<Freshness>>,
    freshness_bound: Duration,
    pub(super) barrier: VisibilityBarrier,
    pub(super) challenges: Challenges,
    /// Good proofs of each tenant's device.
    pub(super) proofs: Rate<(String, String)>,
}

impl Devices {
    pub fn new(
        database: Database,
        users: Users,
        settings: &config::Config,
        freshness: Lanes<watch::Receiver<Freshness>>,
        uses: CacheUse,
    ) -> Self {
        let seconds = settings.auth.device_cache_seconds;
        let directory = {
            let database = database.clone();
            Loader::new(move |proofs| candidates(database.clone(), proofs))
        };
        let first_uses = {
            let database = database.clone();
            Loader::new(move |hashes| record_first_uses(database.clone(), hashes))
        };
        Self {
            directory,
            first_uses,
            types: users::types(database.clone()),
            barrier: VisibilityBarrier::new(database.clone()),
            challenges: Challenges::new(&settings.auth),
            proofs: Rate::per_minute(PROOFS_PER_MINUTE),
            database,
            users,
            mode: settings.auth.device_auth,
            default_tenant: settings.server.default_tenant.clone(),
            freshness,
            freshness_bound: Duration::from_secs(settings.health.max_staleness_seconds),
            cache: (seconds > 0).then(|| {
                Arc::new(PrincipalCache::new(
                    Duration::from_secs(seconds),
                    settings.server.connections_max,
                    uses,
                ))
            }),
        }
    }

    pub(in crate::accounts) fn database(&self) -> &Database {
        &self.database
    }

    /// Authenticates a device. Under `auth.device_auth: id` the tenant is the given one, else `server.default_tenant`, and
    /// the token is optional.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] for an unknown or revoked device, a wrong token, or a disabled user;
    /// [`Error::NotFound`] for an unknown device where ids are sufficient.
    pub async fn authenticate(
        &self,
        tenant: Option<&str>,
        device_id: &str,
        token: Option<&str>,
    ) -> Result<Arc<DevicePrincipal>, Error> {
        let hash = token.map(|token| TokenHash::of(token).ok_or(UNKNOWN)).transpose()?;
        self.check(tenant, device_id, hash).await
    }

    /// Authenticates a device again that was authenticated before, by the same token, without the cache.
    ///
    /// # Errors
    /// Like [`Devices::authenticate`].
    pub async fn check_again(&self, device: &DevicePrincipal) -> Result<Arc<DevicePrincipal>, Error> {
        self.invalidate(&device.tenant.name, device.user_id).await;
        self.check_hash(&device.tenant.name, &device.device_id, device.token)
            .await
    }

    /// Like [`Devices::authenticate`], by the hash of the token.
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
                DeviceAuth::Token => Err(Error::Unauthorized("a device token is required")),
                // Not cached: the tenant would have to be part of the key, and this mode is for closed networks.
                DeviceAuth::Id => self.by_id(tenant.unwrap_or(&self.default_tenant), device_id).await,
            };
        };
        let proof = Proof {
            hash,
            device_id: device_id.to_owned(),
        };
        if let Some(cache) = &self.cache
            && let Some(principal) = cache.get(&proof).await
            && self.is_fresh(&principal.tenant.name)
        {
            return Ok(principal);
        }
        // A change between here and the result must invalidate it.
        let sequence = self.sequence();
        let principal = self.by_token(&proof).await?.ok_or(UNKNOWN)?;
        if let Some(cache) = &self.cache {
            cache.insert(proof, principal.clone(), sequence).await;
        }
        Ok(principal)
    }

    /// Whether this is the token of the device, which may be revoked.
    pub async fn has_known(&self, device_id: &str, token: &str) -> Result<bool, Error> {
        let Some(hash) = TokenHash::of(token).filter(|_| check_device_id(device_id).is_ok()) else {
            return Ok(false);
        };
        let row = self
            .database
            .query_opt(
                &sql!("accounts/device_token_known"),
                &[(&hash.as_bytes(), Type::BYTEA), (&device_id, Type::TEXT)],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Checks the device to which a session of the user is bound.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when it is revoked.
    pub async fn check_bound(&self, tenant: &Tenant, user: Uuid, device_id: &str) -> Result<(), Error> {
        let device = BoundDevice {
            tenant: tenant.name.clone(),
            user,
            device_id: device_id.to_owned(),
        };
        if let Some(cache) = &self.cache
            && self.is_fresh(&tenant.name)
            && cache.is_bound(&device).await
        {
            return Ok(());
        }
        let sequence = self.sequence();
        let usable = device::usable(&self.database, tenant, user, &[device_id]).await?;
        if usable.is_empty() {
            return Err(Error::Unauthorized("the device of this session is revoked"));
        }
        if let Some(cache) = &self.cache {
            cache.insert_bound(device, sequence).await;
        }
        Ok(())
    }

    /// Whether the log delivers revocations of a tenant.
    fn is_fresh(&self, tenant: &str) -> bool {
        self.freshness.of(tenant).borrow().is_within(self.freshness_bound)
    }

    fn sequence(&self) -> u64 {
        self.cache.as_ref().map_or(0, |cache| cache.sequence())
    }

    /// The device that presents this proof, unless revoked or of a user who may not act.
    async fn by_token(&self, proof: &Proof) -> Result<Option<Arc<DevicePrincipal>>, Error> {
        let Some(candidate) = self.directory.load(proof.clone()).await? else {
            return Ok(None);
        };
        let Some(user_type) = self.types.load(&candidate.tenant, candidate.user_id).await? else {
            return Ok(None);
        };
        if candidate.is_first_use {
            self.first_uses.load(proof.hash).await?;
        }
        Ok(Some(Arc::new(DevicePrincipal {
            tenant: candidate.tenant,
            device_id: proof.device_id.clone(),
            user_id: candidate.user_id,
            user_type,
            token: Some(proof.hash),
        })))
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
        let user_id: Uuid = row.try_get("user_id")?;
        let user = self
            .database
            .query_often(&sql!("accounts/user_active_type", tenant), &[(&user_id, Type::UUID)])
            .await?
            .ok_or(UNKNOWN)?;
        Ok(Arc::new(DevicePrincipal {
            device_id: device_id.to_owned(),
            user_id,
            user_type: user.try_get::<_, &str>("user_type")?.parse()?,
            token: None,
            tenant,
        }))
    }
}

/// A device of the directory, before its user is checked.
#[derive(Debug, Clone)]
struct Candidate {
    tenant: Tenant,
    user_id: Uuid,
    is_first_use: bool,
}

/// Records the first use of these tokens.
async fn record_first_uses(database: Database, hashes: Vec<TokenHash>) -> Found<TokenHash, ()> {
    let keys: Vec<&[u8]> = hashes.iter().map(TokenHash::as_bytes).collect();
    database
        .query(&sql!("accounts/device_first_use"), &[(&keys, Type::BYTEA_ARRAY)])
        .await?;
    Ok(hashes.into_iter().map(|hash| (hash, ())).collect())
}

/// The devices that present these proofs, unless revoked.
async fn candidates(database: Database, proofs: Vec<Proof>) -> Found<Proof, Candidate> {
    let hashes: Vec<&[u8]> = proofs.iter().map(|proof| proof.hash.as_bytes()).collect();
    let ids: Vec<&str> = proofs.iter().map(|proof| proof.device_id.as_str()).collect();
    let rows = database
        .query(
            &sql!("accounts/devices_by_token"),
            &[(&hashes, Type::BYTEA_ARRAY), (&ids, Type::TEXT_ARRAY)],
        )
        .await?;
    let mut found = HashMap::new();
    for row in &rows {
        let (Some(tenant), Some(hash)) = (
            Tenant::named(row.try_get("tenant")?),
            TokenHash::from_bytes(row.try_get("token_hash")?),
        ) else {
            continue;
        };
        let proof = Proof {
            hash,
            device_id: row.try_get("device_id")?,
        };
        let candidate = Candidate {
            tenant,
            user_id: row.try_get("user_id")?,
            is_first_use: row.try_get("is_first_use")?,
        };
        found.insert(proof, candidate);
    }
    Ok(found)
}
