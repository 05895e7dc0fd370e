//! Keeps streams and tenants within their bounds, by what the [`ledger`](super::ledger) says of them.
//!
//! A round, and in between what is urgent, reads the sizes of the streams that may be beyond their bound, and counts the
//! tenants that may be beyond their budget. Its cost is in proportion to what was written since, not to the number of streams;
//! all streams are read once at the start of a session, since another engine may have written to them.
//!
//! The bounds take precedence over what devices have acknowledged: one that is behind takes a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::streams::{StreamInfoGroupsReply, StreamRangeReply};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::budget::{Plan, TenantUse, goal, kept};
use super::ledger::{Due, Ledger, Size};
use super::trim::{self, PAGE};
use crate::config::Config;
use crate::contract::budget::{Exceeded, TENANTS_MAX};
use crate::contract::lua;
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::{self, Database, tenants};
use crate::publish::batch::STREAM_BYTES;
use crate::publish::cut::{Cut, CutRequest, Keep};
use crate::redis::error::is_wrong_type;
use crate::redis::store::Store;
use crate::telemetry::metrics::Bound;

/// Steps in which a stream is cut at most before others have their turn.
const STEPS_MAX: usize = 64;

/// How long a cut may wait for the publisher before the stream is read again.
const CUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Most entries that one command removes, which blocks Redis meanwhile.
const REMOVED_MAX: u64 = 500_000;

/// Entries that are read at each end of a stream to estimate the rest.
const SAMPLED: &str = "32";

/// What Redis needs for a field and for an entry beside the values, about.
const FIELD_BYTES: u64 = 6;
const ENTRY_BYTES: u64 = 24;

/// Quarantine and pushes of a tenant may each hold this part of its budget.
const FIXED_PART: u64 = 16;

/// How long the list of tenants beyond their budget outlives the next two rounds.
const EXCEEDED_LIFETIME: Duration = Duration::from_secs(60);

/// Sends cuts to the publisher.
#[derive(Debug)]
pub struct Cuts {
    pub sender: mpsc::Sender<CutRequest>,
    pub ledger: Arc<Ledger>,
}

impl Cuts {
    /// Sends a cut.
    pub(super) async fn send(&self, cut: Cut) -> Result<()> {
        let request = CutRequest { cut, answer: None };
        Ok(self.sender.send(request).await?)
    }

    /// Sends a cut, and waits for what becomes of it, but not for long.
    async fn apply(&self, cut: Cut) -> Result<Applied> {
        let (answer, answered) = oneshot::channel();
        let answer = Some(answer);
        self.sender.send(CutRequest { cut, answer }).await?;
        Ok(match tokio::time::timeout(CUT_TIMEOUT, answered).await {
            Ok(Ok(Ok(removed))) if removed > 0 => Applied::Cut,
            Ok(Ok(_)) => Applied::Stuck,
            Ok(Err(_)) | Err(_) => Applied::Unknown,
        })
    }
}

/// What became of a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    Cut,
    /// Nothing could be removed, or an ACL forbids it.
    Stuck,
    /// Its session has ended, or Redis does not answer.
    Unknown,
}

/// What looks at bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    pub config: &'a Config,
    pub database: &'a Database,
    pub store: &'a Store,
    pub cuts: &'a Cuts,
}

impl Look<'_> {
    pub(super) fn ledger(&self) -> &Ledger {
        &self.cuts.ledger
    }

    /// Looks at what is urgent, or in a round at all that is due.
    pub(super) async fn run(&self, is_round: bool) -> Result<()> {
        // Another engine publishes, or none does.
        if self.ledger().writer().is_none() {
            return Ok(());
        }
        let due = self.ledger().take(is_round);
        let streams = due.streams.clone();
        let before = self.ledger().exceeded();
        let is_sweep = due.sweep;
        let result = self.due(due).await;
        if result.is_err() {
            streams.into_iter().for_each(|target| self.ledger().put_back(target));
            if is_sweep {
                self.ledger().put_back_sweep();
            }
        }
        let after = self.ledger().exceeded();
        let metrics = &self.ledger().metrics.replication;
        let largest = self.ledger().largest_tenant() as f64 / self.ledger().bounds.tenant as f64;
        metrics.budgets(largest, after.len());
        // A sweep that failed knows too little to replace what the engine before has said.
        let is_complete = result.is_ok() || !is_sweep;
        if is_complete && (before != after || is_sweep || is_round && !after.is_empty()) {
            self.announce(&after).await?;
        }
        result
    }

    async fn due(&self, due: Due) -> Result<()> {
        // They need no Postgres, and do not wait for the streams of whole tenants.
        for page in due.streams.chunks(PAGE) {
            self.read_and_cut(page, |_, _| {}).await?;
        }
        if due.sweep || !due.tenants.is_empty() {
            let tenants = tenants::list_of(self.database, &self.config.lane)
                .await
                .context("cannot list the tenants")?;
            self.ledger()
                .retain_tenants(|name| tenants.iter().any(|tenant| tenant.name == name));
            for tenant in &tenants {
                if !due.sweep && !due.tenants.iter().any(|name| **name == tenant.name) {
                    continue;
                }
                self.tenant(tenant).await?;
            }
        }
        Ok(())
    }

    /// Counts the streams of a tenant, and cuts those beyond their bounds, and the largest if the tenant is beyond its budget.
    async fn tenant(&self, tenant: &Tenant) -> Result<()> {
        let name: Arc<str> = tenant.name.as_str().into();
        let mark = self.ledger().mark_tenant(&name);
        let Some(tenant_use) = self.count_unless_broken(tenant, &name).await? else {
            return Ok(());
        };
        let budget = self.ledger().bounds.tenant;
        let mut used = tenant_use.used();
        if let Some(plan) = tenant_use.plan(budget) {
            tracing::warn!(
                tenant = tenant.name,
                used,
                budget,
                "streams of the tenant hold more than streams.tenant_bytes_max; cutting `changes`, then the largest"
            );
            used = used.saturating_sub(self.carry_out(&name, plan, Bound::Tenant).await?);
        }
        self.ledger().settle_tenant(&name, mark, used);
        Ok(())
    }

    /// Counts the streams of a tenant, and cuts those beyond their bounds; `None` if its tables are broken, which must not
    /// leave the others without bounds.
    pub(super) async fn count_unless_broken(
        &self,
        tenant: &Tenant,
        name: &Arc<str>,
    ) -> Result<Option<TenantUse<Target>>> {
        match self.count(tenant, name).await {
            Err(error) if error.downcast_ref().is_some_and(postgres::Error::is_object_error) => {
                tracing::error!(
                    tenant = tenant.name,
                    cause = format!("{error:#}"),
                    "streams of the tenant not counted"
                );
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    async fn count(&self, tenant: &Tenant, name: &Arc<str>) -> Result<TenantUse<Target>> {
        let budget = self.ledger().bounds.tenant;
        let mut tenant_use = TenantUse::default();
        self.each_stream(tenant, name, &mut tenant_use).await?;
        for key in [self.store.keys().quarantine(name), self.store.keys().push(name)] {
            tenant_use.add_fixed(self.bound_fixed(&key, budget / FIXED_PART).await?);
        }
        Ok(tenant_use)
    }

    /// Cuts streams of a tenant to the sizes of a plan; gives how many bytes that has freed.
    pub(super) async fn carry_out(&self, name: &Arc<str>, plan: Plan<Target>, reason: Bound) -> Result<u64> {
        let changes = plan.changes.map(|bytes| (Target::Changes(name.clone()), None, bytes));
        let level = plan.level;
        let streams = plan.streams.into_iter().rev();
        let streams = streams.map(|(target, bytes)| (target, Some(bytes), level));
        let mut freed = 0;
        for (target, known, bytes_max) in changes.into_iter().chain(streams) {
            let bound = self.ledger().bounds.of(&target);
            let before = match known {
                Some(bytes) => bytes,
                None => self.read_one(&target).await?.bytes,
            };
            let bound = Size {
                bytes: bytes_max,
                ..bound
            };
            let after = self.bring_down(&target, bound, bytes_max, reason).await?;
            freed += before.saturating_sub(after.bytes);
        }
        Ok(freed)
    }

    /// Visits the streams of a tenant, page by page.
    async fn each_stream(&self, tenant: &Tenant, name: &Arc<str>, tenant_use: &mut TenantUse<Target>) -> Result<()> {
        let mut add = |target: &Target, size: Size| match target {
            Target::Changes(_) => tenant_use.add_changes(size.bytes),
            _ => tenant_use.add(target.clone(), size.bytes),
        };
        let common = [Target::Changes(name.clone()), Target::Shared(name.clone())];
        self.read_and_cut(&common, &mut add).await?;
        if !self.config.groups.is_empty() {
            let mut cursor = "0".to_owned();
            loop {
                let (next, groups) = self.groups(name, &cursor).await?;
                self.read_and_cut(&groups, &mut add).await?;
                if next == "0" {
                    break;
                }
                cursor = next;
            }
        }
        let mut after = Uuid::nil();
        loop {
            let page = trim::inboxes(self.config, self.database, tenant, after).await?;
            let inboxes = page.iter().map(|(user, _)| Target::Inbox(name.clone(), *user));
            self.read_and_cut(&inboxes.collect::<Vec<_>>(), &mut add).await?;
            match page.last() {
                Some((user, _)) if page.len() == PAGE => after = *user,
                _ => return Ok(()),
            }
        }
    }

    /// A page of the groups of a tenant that have a stream, and the cursor of the next.
    async fn groups(&self, tenant: &Arc<str>, cursor: &str) -> Result<(String, Vec<Target>)> {
        let (next, names): (String, Vec<String>) = redis::cmd("SSCAN")
            .arg(self.store.keys().groups(tenant))
            .arg(cursor)
            .arg("COUNT")
            .arg(PAGE)
            .query_async(&mut self.store.connection())
            .await?;
        let groups = names.iter().filter_map(|name| name.parse().ok());
        Ok((next, groups.map(|group| Target::Group(tenant.clone(), group)).collect()))
    }

    /// Reads the sizes of some streams, and cuts those beyond their bound; gives each size afterwards.
    async fn read_and_cut(&self, targets: &[Target], mut visit: impl FnMut(&Target, Size)) -> Result<()> {
        let marks: Vec<_> = targets.iter().map(|target| self.ledger().mark(target)).collect();
        let sizes = self.read(targets).await?;
        for ((target, mark), size) in targets.iter().zip(marks).zip(sizes) {
            self.ledger().settle(target, mark, size);
            let Some(mut size) = size else { continue };
            let bound = self.ledger().bounds.of(target);
            if size.bytes > bound.bytes {
                size = self.bring_down(target, bound, goal(bound.bytes), Bound::Bytes).await?;
            } else if size.entries > bound.entries {
                size = self.bring_down(target, bound, bound.bytes, Bound::Entries).await?;
            }
            visit(target, size);
        }
        Ok(())
    }

    /// The sizes of some streams; `None` for one that does not exist, or a key that holds none.
    async fn read(&self, targets: &[Target]) -> Result<Vec<Option<Size>>> {
        let keys: Vec<String> = targets.iter().map(|target| target.key(self.store.keys())).collect();
        let sizes = sizes(self.store, &keys).await?;
        for (target, size) in targets.iter().zip(&sizes) {
            if size.is_err() {
                trim::warn_of_type(self.store, target);
            }
        }
        let mut sizes: Vec<_> = sizes.into_iter().map(|size| size.ok().flatten()).collect();
        for (target, size) in targets.iter().zip(&mut sizes) {
            if let (Target::Changes(_), Some(size)) = (target, size) {
                size.bytes = size.bytes.min(self.bytes_of_entries(target, *size).await?);
            }
        }
        Ok(sizes)
    }

    /// The bytes of the entries of a `changes` that has consumer groups. What they have not acknowledged is part of the size
    /// that Redis reports, several times what it takes, and no cut frees it.
    async fn bytes_of_entries(&self, target: &Target, size: Size) -> Result<u64> {
        let key = target.key(self.store.keys());
        let groups = redis::cmd("XINFO")
            .arg("GROUPS")
            .arg(&key)
            .query_async(&mut self.store.connection())
            .await;
        let groups: StreamInfoGroupsReply = match groups {
            Ok(groups) => groups,
            // An ACL may forbid it.
            Err(error) if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoPerm) => {
                return Ok(size.bytes);
            }
            Err(error) => return Err(error.into()),
        };
        if size.entries > 0 && groups.groups.iter().all(|group| group.pending == 0) {
            return Ok(size.bytes);
        }
        let mut sampled = Size::default();
        for [command, from, to] in [["XRANGE", "-", "+"], ["XREVRANGE", "+", "-"]] {
            let entries: StreamRangeReply = redis::cmd(command)
                .arg(&[&key, from, to])
                .arg(&["COUNT", SAMPLED])
                .query_async(&mut self.store.connection())
                .await?;
            for entry in &entries.ids {
                sampled.entries += 1;
                let values = entry.map.values().map(|value| match value {
                    redis::Value::BulkString(bytes) => bytes.len() as u64 + FIELD_BYTES,
                    _ => FIELD_BYTES,
                });
                sampled.bytes += values.sum::<u64>() + ENTRY_BYTES;
            }
        }
        let average = sampled.bytes.div_ceil(sampled.entries.max(1));
        Ok(STREAM_BYTES as u64 + size.entries.saturating_mul(average))
    }

    /// The size of a stream, nothing if there is none.
    async fn read_one(&self, target: &Target) -> Result<Size> {
        let size = self.read(std::slice::from_ref(target)).await?.pop();
        Ok(size.flatten().unwrap_or_default())
    }

    /// Cuts a stream step by step, until it holds no more than its bound; once it is beyond the bytes, no more than the goal.
    async fn bring_down(&self, target: &Target, bound: Size, goal: u64, reason: Bound) -> Result<Size> {
        let mut reached = bound.bytes;
        let mut last: Option<Size> = None;
        for _ in 0..STEPS_MAX {
            let mark = self.ledger().mark(target);
            let size = self.read_one(target).await?;
            self.ledger().settle(target, mark, Some(size));
            if size.bytes <= reached && size.entries <= bound.entries {
                return Ok(size);
            }
            if last.is_none() {
                self.ledger().metrics.replication.cut(reason);
            }
            last = Some(size);
            let mut keep = size.entries.min(bound.entries);
            if size.bytes > reached {
                reached = goal;
                keep = keep.min(kept(size.bytes, size.entries, goal));
            }
            let keep = match keep.max(size.entries.saturating_sub(REMOVED_MAX)) {
                0 => Keep::From(self.last_id(target).await?.next()),
                keep => Keep::Newest(keep),
            };
            let cut = Cut {
                target: target.clone(),
                keep,
            };
            match self.cuts.apply(cut).await? {
                Applied::Cut => {}
                Applied::Stuck => {
                    tracing::warn!(
                        stream = target.key(self.store.keys()),
                        bytes = size.bytes,
                        entries = size.entries,
                        "the stream is beyond its bound, and was not cut; the next round tries it again"
                    );
                    self.ledger().put_back_stuck(target);
                    return Ok(size);
                }
                Applied::Unknown => break,
            }
        }
        self.ledger().put_back(target.clone());
        Ok(last.unwrap_or_default())
    }

    /// The last entry of a stream.
    async fn last_id(&self, target: &Target) -> Result<StreamId> {
        let newest: StreamRangeReply = redis::cmd("XREVRANGE")
            .arg(target.key(self.store.keys()))
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut self.store.connection())
            .await?;
        let newest = newest.ids.first().and_then(|entry| entry.id.parse().ok());
        Ok(newest.unwrap_or(StreamId::ZERO))
    }

    /// Bounds a stream that has no trim point; gives what it holds afterwards.
    async fn bound_fixed(&self, key: &str, bytes_max: u64) -> Result<u64> {
        let keys = [key.to_owned()];
        let mut last = None;
        loop {
            let size = sizes(self.store, &keys).await?.pop().and_then(Result::ok).flatten();
            let size = size.unwrap_or_default();
            if size.bytes <= bytes_max || last.is_some_and(|entries| size.entries >= entries) {
                return Ok(size.bytes);
            }
            last = Some(size.entries);
            let keep = kept(size.bytes, size.entries, goal(bytes_max));
            tracing::warn!(
                key,
                bytes = size.bytes,
                bytes_max,
                keep,
                "cutting the stream of a tenant"
            );
            let () = redis::cmd("XTRIM")
                .arg(key)
                .arg("MAXLEN")
                .arg(keep)
                .query_async(&mut self.store.connection())
                .await?;
        }
    }

    /// Lets API nodes know which tenants are beyond their budget.
    async fn announce(&self, exceeded: &BTreeMap<Arc<str>, u64>) -> Result<()> {
        let Some(writer) = self.ledger().writer() else {
            return Ok(());
        };
        let round = Duration::from_secs(self.config.streams.trim_interval_seconds);
        let lifetime = 2 * round + EXCEEDED_LIFETIME;
        let mut script = redis::cmd("EVAL");
        script.arg(lua::EXCEEDED).arg(2);
        script
            .arg(self.store.keys().checkpoint())
            .arg(self.store.keys().exceeded());
        script.arg(&*writer).arg(lifetime.as_millis() as u64);
        let budget = self.ledger().bounds.tenant;
        for (tenant, used) in exceeded.iter().take(TENANTS_MAX) {
            let value = Exceeded { used: *used, budget };
            script.arg(&**tenant).arg(value.to_string());
            tracing::warn!(
                tenant = &**tenant,
                used,
                budget,
                "streams of the tenant hold more than streams.tenant_bytes_max although they were cut; its writes are refused"
            );
        }
        let () = script.query_async(&mut self.store.connection()).await?;
        Ok(())
    }
}

/// The sizes of keys: `None` for one that does not exist, an error for one that holds no stream.
///
/// All nodes of a stream are counted: a few of the oldest, which Redis would take by default, say nothing of a stream that
/// began with small entries.
async fn sizes(store: &Store, keys: &[String]) -> Result<Vec<Result<Option<Size>, redis::RedisError>>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for key in keys {
        pipe.cmd("XLEN").arg(key);
        pipe.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
    }
    // A key of the wrong type is an error of its own.
    let replies: Vec<redis::Value> = pipe.ignore_errors().query_async(&mut store.connection()).await?;
    let size = |pair: &[redis::Value]| -> Result<Option<Size>, redis::RedisError> {
        let [length, memory] = pair else { return Ok(None) };
        let entries: u64 = redis::from_redis_value(length.clone().extract_error()?)?;
        let bytes: Option<u64> = redis::from_redis_value(memory.clone().extract_error()?)?;
        Ok(bytes.map(|bytes| Size { bytes, entries }))
    };
    let sizes = replies.chunks(2).map(size);
    let sizes = sizes.map(|size| match size {
        Err(error) if !is_wrong_type(&error) => Err(error),
        size => Ok(size),
    });
    Ok(sizes.collect::<Result<_, _>>()?)
}
