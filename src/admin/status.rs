//! The state of a whole system: engine, Postgres, Redis, freshness, lag, slot, tenants. A part that cannot be reached is
//! reported as such; the others are reported all the same.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Result, bail};
use postgres_types::PgLsn;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::admin::slot_report::{SlotReport, SlotSnapshot};
use crate::admin::streams::{self, Lengths};
use crate::config::Config;
use crate::contract::checkpoint::Checkpoint;
use crate::core::lane::{Lanes, MAIN};
use crate::net::http;
use crate::postgres::tenants::{self, Listed, TenantStats};
use crate::postgres::{Database, migrations, sql};
use crate::redis::info;
use crate::redis::store::Store;
use crate::telemetry;

/// Timeout of the request to the engine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(2);

/// The base URLs of a running engine.
#[derive(Debug, Clone)]
pub struct EngineUrls {
    pub public: String,
    /// That of the admin listener, if it is known.
    pub admin: Option<String>,
}

/// The report of `posduif status`.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    pub version: &'static str,
    pub engine: EngineStatus,
    #[serde(serialize_with = "reachable")]
    pub postgres: Result<PostgresStatus, String>,
    #[serde(serialize_with = "reachable")]
    pub redis: Result<RedisStatus, String>,
    pub freshness: Freshness,
    pub epoch: Option<EpochStatus>,
    pub lag_bytes: Lag,
    pub slot: Option<SlotReport>,
    pub tenants: Vec<TenantStatus>,
    /// The slots, to compute rates for the next report.
    #[serde(skip)]
    pub snapshot: Option<SlotSnapshot>,
}

#[derive(Debug, Serialize)]
pub struct EngineStatus {
    pub url: String,
    pub reachable: bool,
    pub ready: bool,
    /// The checks of `/ready`; those that fail, without details, if the public listener answered.
    pub checks: Value,
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct PostgresStatus {
    pub version: String,
    #[serde(serialize_with = "as_text")]
    pub wal_position: PgLsn,
    pub pending_migrations: usize,
}

#[derive(Debug, Serialize)]
pub struct RedisStatus {
    pub version: String,
    pub used_memory_bytes: u64,
    /// Streams that accept no entries, with the cause; `None` if that cannot be read.
    pub stopped_streams: Option<BTreeMap<String, String>>,
    /// Keys that cannot be read.
    #[serde(skip)]
    pub error: Option<String>,
}

/// Age of the last published transaction.
#[derive(Debug, Serialize)]
pub struct Freshness {
    pub age_seconds: Option<f64>,
    pub bound_seconds: u64,
    /// `None` if unknown.
    pub fresh: Option<bool>,
    /// Why it is unknown.
    #[serde(skip)]
    pub unknown: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct EpochStatus {
    pub id: String,
    pub number: i64,
    pub base: u64,
    pub position: String,
    pub published: String,
}

/// Bytes that each stage is behind the end of the log. An engine reports `received` and `durable`.
#[derive(Debug, Serialize)]
pub struct Lag {
    pub received: Option<u64>,
    pub published: Option<u64>,
    pub durable: Option<u64>,
    pub acknowledged: Option<u64>,
    pub confirmed: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct TenantStatus {
    pub name: String,
    pub state: String,
    pub users: Option<i64>,
    pub devices: Option<i64>,
    pub open_conflicts: Option<i64>,
    #[serde(flatten)]
    pub lengths: Lengths,
    /// Keys of the wrong type, or why its streams cannot be read.
    pub error: Option<String>,
}

impl StatusReport {
    /// Queries the engine, Postgres and Redis. Rates are computed since the `earlier` snapshot.
    pub async fn read(config: &Config, urls: &EngineUrls, earlier: Option<&SlotSnapshot>) -> Self {
        let (engine, postgres, store) = tokio::join!(
            EngineStatus::read(urls),
            PostgresFacts::read(config, earlier),
            connect_redis(config)
        );
        let names = |lane: &str| {
            let tenants = postgres.iter().flat_map(|postgres| &postgres.tenants);
            let of_lane = tenants.filter(|(listed, _)| listed.lane == lane);
            of_lane.map(|(listed, _)| listed.tenant.name.clone()).collect()
        };
        let mut redis = match store {
            Ok(store) => RedisFacts::read(&store, names(MAIN)).await,
            Err(error) => Err(error),
        };
        if let Ok(redis) = &mut redis {
            for (lane, config) in config.of_lanes().others() {
                if let Ok(store) = connect_redis(config).await {
                    redis.lengths.extend(read_lengths(&store, names(lane)).await);
                }
            }
        }
        Self::of(config, engine, text_of_error(postgres), text_of_error(redis))
    }

    fn of(
        config: &Config,
        engine: EngineStatus,
        postgres: Result<PostgresFacts, String>,
        redis: Result<RedisFacts, String>,
    ) -> Self {
        let checkpoint = match &redis {
            Ok(redis) => redis.checkpoint.clone(),
            Err(_) => Err(UNKNOWN_REDIS),
        };
        let known = checkpoint.as_ref().ok().and_then(Option::as_ref);
        let slot = postgres.as_ref().ok().and_then(|postgres| postgres.slot.clone());
        let end = postgres.as_ref().ok().map(|postgres| postgres.snapshot.wal_position);
        let lengths = redis.as_ref().ok().map(|redis| &redis.lengths);
        Self {
            version: telemetry::VERSION,
            freshness: Freshness::of(&checkpoint, config.health.max_staleness_seconds),
            epoch: known.map(EpochStatus::of),
            lag_bytes: Lag::of(&engine, known, end, slot.as_ref()),
            tenants: match &postgres {
                Ok(postgres) => postgres
                    .tenants
                    .iter()
                    .map(|tenant| TenantStatus::of(tenant, lengths))
                    .collect(),
                Err(_) => Vec::new(),
            },
            snapshot: postgres.as_ref().ok().map(|postgres| postgres.snapshot.clone()),
            slot,
            engine,
            postgres: postgres.map(|postgres| postgres.status),
            redis: redis.map(|redis| redis.status),
        }
    }

    /// Fails unless Postgres and Redis answered without errors.
    ///
    /// # Errors
    /// With the errors of both.
    pub fn check(&self) -> Result<()> {
        let redis = match &self.redis {
            Ok(redis) => redis.error.as_ref(),
            Err(error) => Some(error),
        };
        let errors: Vec<&str> = self
            .postgres
            .as_ref()
            .err()
            .into_iter()
            .chain(redis)
            .map(String::as_str)
            .collect();
        if errors.is_empty() {
            return Ok(());
        }
        bail!("{}", errors.join("; "))
    }
}

const UNKNOWN_REDIS: &str = "unknown: Redis is unreachable";
const UNKNOWN_CHECKPOINT: &str = "unknown: the checkpoint cannot be read";

fn text_of_error<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

/// The fields of a reachable server, or those of one that is not.
fn reachable<T: Serialize + HasError, S: Serializer>(
    status: &Result<T, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Reachable<'a, T> {
        reachable: bool,
        #[serde(flatten)]
        status: Option<&'a T>,
        error: Option<&'a str>,
    }
    let error = match status {
        Ok(status) => status.error(),
        Err(error) => Some(error.as_str()),
    };
    Reachable {
        reachable: status.is_ok(),
        status: status.as_ref().ok(),
        error,
    }
    .serialize(serializer)
}

trait HasError {
    fn error(&self) -> Option<&str>;
}

impl HasError for PostgresStatus {
    fn error(&self) -> Option<&str> {
        None
    }
}

impl HasError for RedisStatus {
    fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

impl EngineStatus {
    async fn read(urls: &EngineUrls) -> Self {
        match Readiness::of(urls).await {
            Ok((url, readiness)) => Self::reachable(url, readiness),
            Err(error) => Self {
                url: urls.public.clone(),
                reachable: false,
                ready: false,
                checks: Value::Null,
                error: Some(format!("{error:#}")),
            },
        }
    }

    fn reachable(url: &str, readiness: Readiness) -> Self {
        Self {
            url: url.to_owned(),
            reachable: true,
            ready: readiness.ready,
            checks: readiness.checks,
            error: None,
        }
    }

    /// The failing checks with their details.
    pub fn failing(&self) -> String {
        failing_checks(&self.checks)
    }

    fn lag(&self, stage: &str) -> Option<u64> {
        self.checks.get("replication")?.get("lag_bytes")?.get(stage)?.as_u64()
    }
}

/// The answer of `/ready`.
#[derive(Debug)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    /// By name; the failed ones only if the public listener answered.
    pub(crate) checks: Value,
}

impl Readiness {
    /// Queries the admin listener if it is known and answers, else the public one, and returns which one answered.
    pub(crate) async fn of(urls: &EngineUrls) -> Result<(&str, Self)> {
        if let Some(url) = &urls.admin
            && let Ok(readiness) = Self::of_admin(url).await
        {
            return Ok((url, readiness));
        }
        Ok((&urls.public, Self::of_public(&urls.public).await?))
    }

    /// Queries the admin listener.
    async fn of_admin(url: &str) -> Result<Self> {
        Self::read(url, |body| body["checks"].is_object().then(|| body["checks"].take())).await
    }

    /// Queries the public listener.
    async fn of_public(url: &str) -> Result<Self> {
        Self::read(url, |body| {
            let failed = body["failed"].as_array()?.iter().filter_map(Value::as_str);
            Some(failed.map(|name| (name.to_owned(), json!({"ok": false}))).collect())
        })
        .await
    }

    async fn read(url: &str, checks: impl FnOnce(&mut Value) -> Option<Value>) -> Result<Self> {
        let answer = http::get(&format!("{url}/ready"), ENGINE_TIMEOUT).await?;
        let mut body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let Some(checks) = checks(&mut body) else {
            bail!(
                "{url}/ready returned {}, which is not the answer of an engine",
                answer.status
            );
        };
        Ok(Self {
            ready: body["ready"] == true,
            checks,
        })
    }
}

/// The failing checks among the `checks` of `/ready`, with their details.
pub fn failing_checks(checks: &Value) -> String {
    let failing: Vec<String> = checks
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, check)| check["ok"] == false)
        .map(|(name, check)| format!("{name}: {}", check["detail"].as_str().unwrap_or("fails")))
        .collect();
    failing.join("; ")
}

#[derive(Debug)]
struct PostgresFacts {
    status: PostgresStatus,
    snapshot: SlotSnapshot,
    /// The configured slot.
    slot: Option<SlotReport>,
    /// Tenants with their counts; without counts if the schema has another version.
    tenants: Vec<(Listed, Option<TenantStats>)>,
}

impl PostgresFacts {
    async fn read(config: &Config, earlier: Option<&SlotSnapshot>) -> Result<Self> {
        let database = Database::connect(&config.postgres).await?;
        let row = database.query_opt(&sql!("admin/server_version"), &[]).await?;
        let snapshot = SlotSnapshot::take(&database).await?;
        let status = migrations::status(&database).await?;
        let has_tables = status.iter().any(|schema| schema.version != 0);
        let slots = snapshot.reports(earlier.unwrap_or(&snapshot), &config.slots());
        Ok(Self {
            status: PostgresStatus {
                version: row.map(|row| row.try_get("version")).transpose()?.unwrap_or_default(),
                wal_position: snapshot.wal_position,
                pending_migrations: status.iter().map(|schema| schema.pending.len()).sum(),
            },
            slot: slots
                .into_iter()
                .find(|report| report.is_ours && report.slot.name == config.replication.slot),
            tenants: if has_tables {
                read_tenants(&database).await?
            } else {
                Vec::new()
            },
            snapshot,
        })
    }
}

async fn read_tenants(database: &Database) -> Result<Vec<(Listed, Option<TenantStats>)>> {
    let mut found = Vec::new();
    for listed in tenants::directory(database).await? {
        // A schema of another version may lack what is counted.
        let stats = if listed.has_schema() {
            tenants::tenant_stats(database, &listed.tenant).await.ok().flatten()
        } else {
            None
        };
        found.push((listed, stats));
    }
    Ok(found)
}

/// All tenants, each with its numbers.
///
/// # Errors
/// When Postgres fails. What Redis does not answer is `None`.
pub async fn tenants(database: &Database, stores: &Lanes<Store>) -> Result<Vec<TenantStatus>> {
    let found = read_tenants(database).await?;
    let mut tenants = Vec::with_capacity(found.len());
    for (lane, store) in stores.iter() {
        let of_lane = || found.iter().filter(|(listed, _)| listed.lane == lane);
        let names = of_lane().map(|(listed, _)| listed.tenant.name.clone()).collect();
        // Once for all of them: each would wait for its own timeout.
        let lengths = match store.check().await {
            Ok(()) => Some(read_lengths(store, names).await),
            Err(_) => None,
        };
        tenants.extend(of_lane().map(|tenant| TenantStatus::of(tenant, lengths.as_ref())));
    }
    tenants.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tenants)
}

async fn read_lengths(store: &Store, tenants: Vec<String>) -> TenantLengths {
    let mut lengths = TenantLengths::new();
    for tenant in tenants {
        let found = streams::lengths_of(store, &tenant).await;
        lengths.insert(tenant, found.map_err(|error| error.to_string()));
    }
    lengths
}

/// Lengths of each tenant's streams.
type TenantLengths = HashMap<String, Result<Lengths, String>>;

#[derive(Debug)]
struct RedisFacts {
    status: RedisStatus,
    checkpoint: Result<Option<Checkpoint>, &'static str>,
    lengths: TenantLengths,
}

/// A store whose Redis answers.
///
/// # Errors
/// Names the address of Redis.
pub async fn connect_redis(config: &Config) -> Result<Store> {
    use anyhow::Context as _;

    let store = Store::new(&config.redis).context("key `redis.url`")?;
    store.check().await.with_context(|| {
        format!(
            "cannot use Redis at {}; check that it runs and `redis.url` (or REDIS_URL)",
            crate::net::redis::place(&config.redis)
        )
    })?;
    Ok(store)
}

impl RedisFacts {
    async fn read(store: &Store, tenants: Vec<String>) -> Result<Self> {
        let (version, used_memory_bytes) = info::version_and_memory(store).await?;
        let lengths = read_lengths(store, tenants).await;
        let (checkpoint, stopped) = (store.checkpoint().await, store.stopped().await);
        let errors = [
            checkpoint.as_ref().err().map(ToString::to_string),
            stopped.as_ref().err().map(ToString::to_string),
        ];
        let errors: Vec<String> = errors.into_iter().flatten().collect();
        Ok(Self {
            status: RedisStatus {
                version,
                used_memory_bytes,
                stopped_streams: stopped.ok(),
                error: (!errors.is_empty()).then(|| errors.join("; ")),
            },
            checkpoint: checkpoint.map_err(|_| UNKNOWN_CHECKPOINT),
            lengths,
        })
    }
}

impl Freshness {
    fn of(checkpoint: &Result<Option<Checkpoint>, &'static str>, bound_seconds: u64) -> Self {
        let age = checkpoint
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .and_then(Checkpoint::age);
        let is_fresh = age.is_some_and(|age| age <= Duration::from_secs(bound_seconds));
        Self {
            age_seconds: age.map(|age| age.as_secs_f64()),
            bound_seconds,
            fresh: checkpoint.is_ok().then_some(is_fresh),
            unknown: checkpoint.as_ref().err().copied(),
        }
    }
}

impl EpochStatus {
    fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            id: checkpoint.epoch.id.to_string(),
            number: checkpoint.epoch.number,
            base: checkpoint.epoch.base,
            position: checkpoint.position.to_string(),
            published: checkpoint.published.to_string(),
        }
    }
}

impl Lag {
    fn of(
        engine: &EngineStatus,
        checkpoint: Option<&Checkpoint>,
        end: Option<PgLsn>,
        slot: Option<&SlotReport>,
    ) -> Self {
        let behind = |position: PgLsn| Some(u64::from(end?).saturating_sub(position.into()));
        let published = |checkpoint: &Checkpoint| {
            checkpoint
                .transaction
                .map_or(checkpoint.acknowledged, |transaction| transaction.end_lsn)
        };
        Self {
            received: engine.lag("received"),
            published: checkpoint.map(published).and_then(behind),
            durable: engine.lag("durable"),
            acknowledged: checkpoint.and_then(|checkpoint| behind(checkpoint.acknowledged)),
            confirmed: slot.and_then(|report| report.lag_bytes),
        }
    }

    /// The stages in order.
    pub fn stages(&self) -> [(&'static str, Option<u64>); 5] {
        [
            ("received", self.received),
            ("published", self.published),
            ("durable", self.durable),
            ("acknowledged", self.acknowledged),
            ("confirmed", self.confirmed),
        ]
    }
}

impl TenantStatus {
    fn of((listed, stats): &(Listed, Option<TenantStats>), lengths: Option<&TenantLengths>) -> Self {
        let name = &listed.tenant.name;
        let missing = listed.check().err().map(|error| error.to_string());
        let (lengths, error) = match lengths.and_then(|lengths| lengths.get(name)) {
            Some(Ok(lengths)) => (lengths.clone(), lengths.error()),
            Some(Err(error)) => (Lengths::default(), Some(error.clone())),
            None => (Lengths::default(), None),
        };
        Self {
            name: name.clone(),
            state: listed.state.clone(),
            users: stats.as_ref().map(|stats| stats.web_users + stats.mobile_users),
            devices: stats.as_ref().map(|stats| stats.devices),
            open_conflicts: stats.as_ref().map(|stats| stats.open_conflicts),
            lengths,
            error: missing.or(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_checks_names_only_failures() {
        let checks = serde_json::json!({"redis": {"ok": false, "detail": "unavailable"}, "postgres": {"ok": true}});
        assert_eq!(failing_checks(&checks), "redis: unavailable");
        assert_eq!(failing_checks(&Value::Null), "");
    }
}
