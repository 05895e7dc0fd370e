//! Whether the sessions and access tokens of a user are still good: the user may act, and the security stamp is theirs.
//!
//! `posduif.credentials` holds the stamp of each user. A new password, disabling, enabling and the end of all sessions
//! change it. Sessions, access tokens and tickets carry the stamp that the login has seen, so that whatever was granted
//! before a change is refused after it, wherever it is kept. The session that makes the change goes on.
//!
//! Tokens of other providers carry no stamp: they are refused if they were issued before its last change.
//!
//! Each node caches stamps. The change of one arrives by Pub/Sub, that of a user through the log; while either is
//! interrupted, the cache is not used.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use tokio::sync::watch;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::loader::{Found, TenantLoader};
use crate::accounts::users::UserType;
use crate::config;
use crate::core::lane::Lanes;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::live::tail::Freshness;
use crate::postgres::{Database, sql, tenants};

/// Longest use of a cached stamp: what neither way carries, such as a tenant that was dropped by SQL, is noticed after it.
const LIFETIME_MAX: Duration = Duration::from_secs(10);

/// What a token shows of its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StampProof {
    /// The stamp that the login has seen.
    Stamp(Uuid),
    /// The time of issue of another provider's token, in seconds since 1970.
    IssuedAt(i64),
}

/// The identity of a user at another provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
    /// `iat` of the newest token whose role was applied.
    pub claims_at: i64,
}

/// The stamp of a user who may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub user_type: UserType,
    /// Which provider identifies the user, if one does.
    pub identity: Option<Arc<Identity>>,
    stamp: Uuid,
    /// When the stamp was changed, if ever.
    stamped_at: Option<DateTime<Utc>>,
    /// The session that has changed the stamp and goes on.
    kept_session: Option<Uuid>,
}

impl Standing {
    pub(super) fn from_row(row: &Row) -> Result<Self, Error> {
        let issuer: Option<String> = row.try_get("issuer")?;
        let identity = match issuer {
            Some(issuer) => Some(Arc::new(Identity {
                issuer,
                subject: row.try_get("subject")?,
                claims_at: row.try_get("claims_at")?,
            })),
            None => None,
        };
        Ok(Self {
            user_type: row.try_get::<_, &str>("user_type")?.parse()?,
            identity,
            stamp: row.try_get("stamp")?,
            stamped_at: row.try_get("stamped_at")?,
            kept_session: row.try_get("kept_session")?,
        })
    }

    /// Whether a session with this stamp, or a token that was issued then, goes on. Times of issue have whole seconds: a token
    /// from the second of a change counts as one from before it.
    pub fn permits(&self, session: Uuid, proof: StampProof) -> bool {
        let is_current = match proof {
            StampProof::Stamp(stamp) => stamp == self.stamp,
            StampProof::IssuedAt(seconds) => self.stamped_at.is_none_or(|at| seconds > at.timestamp()),
        };
        is_current || self.kept_session == Some(session)
    }
}

/// Looks up standings. Cloning shares the cache.
#[derive(Debug, Clone)]
pub struct Standings(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: Database,
    loader: TenantLoader<Standing>,
    cache: Option<Cache<(Tenant, Uuid), Standing>>,
    /// Counts invalidations: a result that was read before one is not kept.
    invalidations: AtomicU64,
    /// Whether changes of stamps arrive.
    is_subscribed: AtomicBool,
    freshness: Lanes<watch::Receiver<Freshness>>,
    freshness_bound: Duration,
}

impl Standings {
    pub fn new(database: Database, settings: &config::Config, freshness: Lanes<watch::Receiver<Freshness>>) -> Self {
        let seconds = settings.auth.device_cache_seconds;
        Self(Arc::new(Shared {
            loader: TenantLoader::new(database.clone(), fetch),
            database,
            cache: (seconds > 0).then(|| {
                Cache::builder()
                    .max_capacity(settings.cache.entries_max)
                    .time_to_live(Duration::from_secs(seconds).min(LIFETIME_MAX))
                    .build()
            }),
            invalidations: AtomicU64::new(0),
            is_subscribed: AtomicBool::new(false),
            freshness,
            freshness_bound: Duration::from_secs(settings.health.max_staleness_seconds),
        }))
    }

    /// The standing of a user; `None` for one who may not act.
    pub async fn get(&self, tenant: &Tenant, user: Uuid) -> Result<Option<Standing>, Error> {
        let key = (tenant.clone(), user);
        let cache = self.0.fresh_cache(tenant);
        if let Some(standing) = cache.and_then(|cache| cache.get(&key)) {
            return Ok(Some(standing));
        }
        let before = self.0.invalidations.load(Ordering::SeqCst);
        let standing = self.read(tenant, user).await?;
        if let (Some(cache), Some(standing)) = (cache, &standing) {
            cache.insert(key.clone(), standing.clone());
            // After the insertion, so that an invalidation meanwhile is not missed.
            if self.0.invalidations.load(Ordering::SeqCst) != before {
                cache.invalidate(&key);
            }
        }
        Ok(standing)
    }

    /// Like [`Standings::get`], without the cache.
    pub async fn read(&self, tenant: &Tenant, user: Uuid) -> Result<Option<Standing>, Error> {
        self.0.loader.load(tenant, user).await
    }

    /// Changes the stamp of a user: only this session goes on.
    pub(super) async fn change(&self, tenant: &Tenant, user: Uuid, kept: Option<Uuid>) -> Result<(), Error> {
        self.0
            .database
            .query(
                &sql!("accounts/stamp_change"),
                &[(&tenant.name, Type::TEXT), (&user, Type::UUID), (&kept, Type::UUID)],
            )
            .await?;
        self.invalidate(tenant, user);
        Ok(())
    }

    /// The standing of this user has changed.
    pub(super) fn invalidate(&self, tenant: &Tenant, user: Uuid) {
        self.0.invalidations.fetch_add(1, Ordering::SeqCst);
        if let Some(cache) = &self.0.cache {
            cache.invalidate(&(tenant.clone(), user));
        }
    }

    /// Any standing may have changed.
    pub(super) fn invalidate_all(&self) {
        self.0.invalidations.fetch_add(1, Ordering::SeqCst);
        if let Some(cache) = &self.0.cache {
            cache.invalidate_all();
        }
    }

    /// Changes of stamps arrive from now on, or no longer.
    pub(super) fn set_subscribed(&self, is_subscribed: bool) {
        self.0.is_subscribed.store(is_subscribed, Ordering::SeqCst);
        self.invalidate_all();
    }
}

impl Shared {
    /// The cache, while all changes arrive.
    fn fresh_cache(&self, tenant: &Tenant) -> Option<&Cache<(Tenant, Uuid), Standing>> {
        let is_fresh = self.freshness.of(&tenant.name).borrow().is_within(self.freshness_bound);
        let cache = self.cache.as_ref();
        cache.filter(|_| is_fresh && self.is_subscribed.load(Ordering::SeqCst))
    }
}

async fn fetch(database: Database, tenant: Tenant, users: Vec<Uuid>) -> Found<Uuid, Standing> {
    // A token may outlive its tenant.
    if tenants::find(&database, &tenant.name).await?.is_none() {
        return Ok(HashMap::new());
    }
    let rows = database
        .query(
            &sql!("accounts/standings", tenant),
            &[(&tenant.name, Type::TEXT), (&users, Type::UUID_ARRAY)],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, Standing::from_row(row)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_token_from_the_second_of_a_stamp_or_before_is_refused() {
        let kept = Uuid::from_u128(8);
        let mut standing = Standing {
            user_type: UserType::Web,
            identity: None,
            stamp: Uuid::from_u128(7),
            stamped_at: None,
            kept_session: Some(kept),
        };
        let permits =
            |standing: &Standing, seconds| standing.permits(Uuid::from_u128(9), StampProof::IssuedAt(seconds));
        assert!(permits(&standing, 0));
        standing.stamped_at = DateTime::from_timestamp_millis(1_000_700);
        assert_eq!(
            [999, 1000, 1001].map(|seconds| permits(&standing, seconds)),
            [false, false, true]
        );
        assert!(standing.permits(kept, StampProof::IssuedAt(999)));
        assert!(standing.permits(Uuid::nil(), StampProof::Stamp(Uuid::from_u128(7))));
        assert!(!standing.permits(Uuid::nil(), StampProof::Stamp(Uuid::nil())));
    }
}
