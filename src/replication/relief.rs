//! What is cut when Redis is full.
//!
//! Redis refuses entries, and what was due to be trimmed has freed nothing. Then the tenant whose streams hold most loses a
//! part of them, `changes` before the largest others: services find the trim point, and devices that were behind it take a
//! snapshot. While that is not enough, Redis refuses the next batch, too, and this is repeated. The other tenants keep their
//! history.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::bounds::Look;
use super::budget::TenantUse;
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::postgres::tenants;
use crate::redis::info::Info;
use crate::telemetry::metrics::Bound;

/// The part of a tenant's streams that is cut at once.
const PART: u64 = 4;

/// Where all streams together hold less than this part of what Redis may use, something else fills it: other data, or a batch
/// for which there is no room.
const HELD_PART: u64 = 64;

/// The tenant that holds most, and what all that were counted hold.
struct Heaviest<'a> {
    tenant: &'a Tenant,
    tenant_use: TenantUse<Target>,
    held: u64,
}

impl Look<'_> {
    /// Cuts a part of what the heaviest tenant holds, or of the next one if nothing of that can be cut.
    pub(super) async fn relieve(&self) -> Result<()> {
        let tenants = tenants::list_of(self.database, &self.config.lane)
            .await
            .context("cannot list the tenants")?;
        let mut stuck: HashSet<&str> = HashSet::new();
        while self.ledger().is_full() {
            let [used, limit] = self.memory().await?;
            let excess = used.saturating_sub(limit);
            let needed = excess.max(limit / HELD_PART);
            let Some(heaviest) = self.heaviest(&tenants, &stuck, needed).await? else {
                tracing::error!(
                    used,
                    limit,
                    "Redis is full, and no stream has anything left to cut; raise maxmemory"
                );
                return Ok(());
            };
            let Heaviest {
                tenant,
                tenant_use,
                held,
            } = heaviest;
            // To cut what cannot be enough would only lose history.
            if needed > held {
                tracing::error!(
                    used,
                    limit,
                    held,
                    "Redis is full, and the streams hold too little of it to make room; raise maxmemory"
                );
                return Ok(());
            }
            // Redis may have accepted the batch while the streams were counted.
            if !self.ledger().is_full() {
                return Ok(());
            }
            let part = tenant_use.cuttable() / PART;
            tracing::warn!(
                tenant = tenant.name,
                used,
                limit,
                held = tenant_use.cuttable(),
                "Redis is full; cutting the streams of the tenant that holds most: `changes`, then the largest"
            );
            let name: Arc<str> = tenant.name.as_str().into();
            let plan = tenant_use.plan_to_free(excess.max(part).max(1));
            if self.carry_out(&name, plan, Bound::Memory).await? > 0 {
                return Ok(());
            }
            stuck.insert(&tenant.name);
        }
        Ok(())
    }

    /// What Redis uses, and what it may use.
    async fn memory(&self) -> Result<[u64; 2]> {
        let info: String = redis::cmd("INFO")
            .arg("memory")
            .query_async(&mut self.store.connection())
            .await?;
        let info = Info::parse(&info);
        Ok(["used_memory", "maxmemory"].map(|field| info.number(field).unwrap_or_default()))
    }

    /// The tenant whose streams hold most, beside these. Tenants are counted from the one that may hold most downwards, until
    /// no other can hold as much; all of them, if one tenant's streams cannot be enough.
    async fn heaviest<'a>(
        &self,
        tenants: &'a [Tenant],
        stuck: &HashSet<&str>,
        needed: u64,
    ) -> Result<Option<Heaviest<'a>>> {
        let candidates = tenants.iter().filter(|tenant| !stuck.contains(&*tenant.name));
        let mut candidates: Vec<(u64, &Tenant)> = candidates
            .map(|tenant| (self.ledger().used_at_most(&tenant.name), tenant))
            .collect();
        candidates.sort_by_key(|(at_most, _)| Reverse(*at_most));
        let mut heaviest: Option<Heaviest<'a>> = None;
        let mut held = 0;
        for (at_most, tenant) in candidates {
            let most = heaviest.as_ref().map_or(0, |heaviest| heaviest.tenant_use.cuttable());
            if most > 0 && most >= at_most.max(needed) {
                break;
            }
            let name: Arc<str> = tenant.name.as_str().into();
            let Some(tenant_use) = self.count_unless_broken(tenant, &name).await? else {
                continue;
            };
            held += tenant_use.cuttable();
            if tenant_use.cuttable() > most {
                heaviest = Some(Heaviest {
                    tenant,
                    tenant_use,
                    held: 0,
                });
            }
        }
        Ok(heaviest.map(|heaviest| Heaviest { held, ..heaviest }))
    }
}
