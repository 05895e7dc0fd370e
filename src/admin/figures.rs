//! Figures for the console, once a second, and those of the last 15 minutes.
//!
//! What this process knows by itself is sampled all the time, and costs next to nothing. Servers are queried only while there
//! are watchers, however many: Redis once a second, Postgres with one statement a second.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::admin::devices::{self, DeviceFigures};
use crate::admin::slot_report::{SlotReport, SlotSnapshot};
use crate::admin::verdict::{Facts, Replicator, SlowDevice, Verdict};
use crate::config::Config;
use crate::contract::stream_name::Target;
use crate::core::tenant::{PAUSED, Tenant};
use crate::core::time::{Timestamp, unix_micros};
use crate::live::hub::Hub;
use crate::postgres::Database;
use crate::postgres::tenants::{self, Listed};
use crate::redis::info::Info;
use crate::redis::store::Store;
use crate::replication::report::{ReplicationStatus, ReplicatorState};
use crate::telemetry::VERSION;
use crate::telemetry::metrics::Metrics;

/// Seconds that are kept.
const SECONDS_KEPT: usize = 900;

const INTERVAL: Duration = Duration::from_secs(1);

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long the figures of a tenant, and the list of tenants, are used.
const TENANT_LIFETIME: Duration = Duration::from_secs(10);

/// Figures that wait for a slow watcher; a slower one misses some.
const WAITING_MAX: usize = 16;

/// Tenants whose quarantine is counted.
const TENANTS_MAX: usize = 10_000;

/// Declares the columns of a [`Row`] with their names.
macro_rules! columns {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Names of the columns of a row.
        const COLUMNS: [&str; [$(stringify!($name)),*].len()] = [$(stringify!($name)),*];

        /// One second; unknown figures are `None`.
        #[derive(Debug, Clone, Copy, Default)]
        struct Row {
            $($(#[doc = $doc])* $name: Option<f64>,)*
        }

        impl Serialize for Row {
            /// As an array, in the order of [`COLUMNS`].
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                [$(self.$name),*].serialize(serializer)
            }
        }
    };
}

columns! {
    /// When, in seconds since 1970.
    at,
    /// How old what clients see is.
    age_seconds,
    received_bytes,
    published_bytes,
    durable_bytes,
    acknowledged_bytes,
    rows_per_second,
    commit_to_stream_p50_ms,
    commit_to_stream_p99_ms,
    /// WAL that Postgres keeps for the slot.
    retained_bytes,
    streams_open,
    uploads_applied,
    uploads_duplicate,
    uploads_conflict,
    uploads_rejected,
    requests_per_second,
}

/// What figures are read from.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub config: Arc<Config>,
    pub database: Database,
    pub store: Store,
    pub hub: Hub,
    /// The state of this process's replicator; `None` without one.
    pub replication: Option<ReplicationStatus>,
    pub metrics: Arc<Metrics>,
    /// Identity of this process.
    pub engine: Arc<str>,
}

/// The figures of a process. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Figures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rows: Mutex<VecDeque<Row>>,
    watchers: broadcast::Sender<Arc<str>>,
    /// A watcher has begun.
    begun: Notify,
}

impl Default for Figures {
    fn default() -> Self {
        Self(Arc::new(Shared {
            rows: Mutex::default(),
            watchers: broadcast::Sender::new(WAITING_MAX),
            begun: Notify::new(),
        }))
    }
}

/// The figures of past seconds, oldest first.
#[derive(Debug, Serialize)]
struct History<'a> {
    columns: &'a [&'static str],
    seconds: u64,
    rows: &'a VecDeque<Row>,
}

impl Figures {
    /// The history as JSON, and what follows: an object a second, as JSON.
    pub fn watch(&self) -> (String, broadcast::Receiver<Arc<str>>) {
        // Under the lock, so that no row is missed or doubled.
        let rows = self.0.rows.lock();
        let history = History {
            columns: &COLUMNS,
            seconds: INTERVAL.as_secs(),
            rows: &rows,
        };
        let history = serde_json::to_string(&history).unwrap_or_default();
        // Of more watchers, each would have the servers asked once more a second.
        let is_first = self.0.watchers.receiver_count() == 0;
        let following = self.0.watchers.subscribe();
        drop(rows);
        if is_first {
            self.0.begun.notify_one();
        }
        (history, following)
    }

    /// Samples until `stop`.
    pub async fn run(self, inputs: Inputs, stop: CancellationToken) {
        let work = async {
            let mut sampler = Sampler::new(inputs);
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut row = Row::default();
            loop {
                let is_tick = tokio::select! {
                    _ = ticks.tick() => true,
                    // The first watcher need not wait for the next second.
                    () = self.0.begun.notified() => false,
                };
                let is_watched = self.0.watchers.receiver_count() > 0;
                if is_watched {
                    sampler.ask_servers().await;
                } else {
                    sampler.servers = Servers::default();
                }
                if is_tick {
                    row = sampler.row();
                    self.keep(row);
                }
                if is_watched {
                    let shown = sampler.shown(&row).to_string();
                    // It fails only when the last watcher has just left.
                    let _ = self.0.watchers.send(shown.into());
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    fn keep(&self, row: Row) {
        let mut rows = self.0.rows.lock();
        if rows.len() >= SECONDS_KEPT {
            rows.pop_front();
        }
        rows.push_back(row);
    }
}

/// Counters at the last sample.
#[derive(Debug, Default)]
struct Totals {
    rows: u64,
    requests: u64,
    uploads: [u64; 4],
}

/// What servers have answered.
#[derive(Debug, Default)]
struct Servers {
    postgres: Option<String>,
    redis: Option<String>,
    snapshot: Option<SlotSnapshot>,
    slots: Vec<SlotReport>,
    memory: Option<[u64; 2]>,
    stopped: Vec<String>,
    quarantined: Vec<(String, u64)>,
    directory: Option<(Instant, Vec<Listed>)>,
    tenants: HashMap<String, TenantFigures>,
    turn: u64,
}

/// Whether a server was asked in this second.
enum Asked {
    Yes,
    No,
}

#[derive(Debug)]
struct TenantFigures {
    at: Instant,
    devices: DeviceFigures,
    slow: Vec<SlowDevice>,
}

struct Sampler {
    inputs: Inputs,
    before: Totals,
    sampled_at: Instant,
    servers: Servers,
    /// The replicator's state, and since when, µs since 1970.
    state: (&'static str, i64),
    /// The epoch's number, and when it was first seen here.
    epoch: Option<(i64, Timestamp)>,
}

impl Sampler {
    fn new(inputs: Inputs) -> Self {
        Self {
            inputs,
            before: Totals::default(),
            sampled_at: Instant::now(),
            servers: Servers::default(),
            state: ("", unix_micros()),
            epoch: None,
        }
    }

    /// Reads what this process knows.
    fn row(&mut self) -> Row {
        let Inputs { metrics, hub, .. } = &self.inputs;
        let now = Totals {
            rows: metrics.replication.changes(),
            requests: metrics.http.requests_answered(),
            uploads: UPLOADS.map(|result| metrics.sync.upload_items(result)),
        };
        let seconds = self.sampled_at.elapsed().as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| Some(rounded(now.saturating_sub(before) as f64 / seconds));
        let mut latencies = metrics.journal.take_latencies();
        latencies.sort_by(f32::total_cmp);
        let [p50, p99] = [0.5, 0.99].map(|share| quantile(&latencies, share));
        let lag = self.inputs.replication.as_ref().and_then(ReplicationStatus::lag);
        let behind = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
        let retained = self.inputs.replication.as_ref().and_then(|replication| {
            let sample = replication.sample.borrow();
            sample.as_ref().and_then(|sample| sample.retained_wal_bytes())
        });
        let uploads = |result: usize| rate(now.uploads[result], self.before.uploads[result]);
        let row = Row {
            at: Some(rounded(unix_micros() as f64 / 1e6)),
            age_seconds: hub.freshness().borrow().age().map(|age| rounded(age.as_secs_f64())),
            received_bytes: behind(lag.map(|lag| lag.received)),
            published_bytes: behind(lag.map(|lag| lag.published)),
            durable_bytes: behind(lag.map(|lag| lag.durable)),
            acknowledged_bytes: behind(lag.map(|lag| lag.acknowledged)),
            rows_per_second: self
                .inputs
                .replication
                .as_ref()
                .and_then(|_| rate(now.rows, self.before.rows)),
            commit_to_stream_p50_ms: p50,
            commit_to_stream_p99_ms: p99,
            retained_bytes: behind(retained),
            streams_open: Some(hub.subscribers() as f64),
            uploads_applied: uploads(0),
            uploads_duplicate: uploads(1),
            uploads_conflict: uploads(2),
            uploads_rejected: uploads(3),
            requests_per_second: rate(now.requests, self.before.requests),
        };
        self.before = now;
        self.sampled_at = Instant::now();
        self.follow_state();
        row
    }

    fn follow_state(&mut self) {
        let Some(replication) = &self.inputs.replication else {
            return;
        };
        let state = replication.state.borrow();
        let name = state_name(&state);
        if self.state.0 != name {
            self.state = (name, unix_micros());
        }
        if let ReplicatorState::Streaming { number, .. } = &*state
            && self.epoch.is_none_or(|(known, _)| known != *number)
        {
            self.epoch = Some((*number, Timestamp::now()));
        }
    }

    /// Asks Redis and Postgres.
    async fn ask_servers(&mut self) {
        self.servers.turn += 1;
        self.servers.redis = self.ask_redis().await;
        let postgres = tokio::time::timeout(TIMEOUT, self.ask_postgres()).await;
        let problem = match postgres {
            Ok(Ok(Asked::Yes)) => None,
            // What the last statement has shown stays.
            Ok(Ok(Asked::No)) => return,
            Ok(Err(error)) => {
                tracing::debug!(cause = format!("{error:#}"), "figures: Postgres failed");
                Some("it does not answer".to_owned())
            }
            Err(_) => Some(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        if problem.is_some() {
            self.servers.slots.clear();
            self.servers.snapshot = None;
        }
        self.servers.postgres = problem;
    }

    async fn ask_redis(&mut self) -> Option<String> {
        let store = &self.inputs.store;
        let names: Vec<String> = match &self.servers.directory {
            Some((_, listed)) => listed
                .iter()
                .take(TENANTS_MAX)
                .map(|listed| listed.tenant.name.clone())
                .collect(),
            None => Vec::new(),
        };
        let answered = tokio::time::timeout(TIMEOUT, read_redis(store, &names)).await;
        match answered {
            Ok(Ok((memory, lengths, stopped))) => {
                self.servers.memory = Some(memory);
                self.servers.quarantined = names
                    .into_iter()
                    .zip(lengths)
                    .filter(|(_, length)| *length > 0)
                    .collect();
                self.servers.stopped = stopped;
                None
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "figures: Redis failed");
                self.servers.memory = None;
                Some("it does not answer".to_owned())
            }
            Err(_) => {
                self.servers.memory = None;
                Some(format!("no answer within {} s", TIMEOUT.as_secs()))
            }
        }
    }

    /// The slots in every other second; in between the tenants, one after the other.
    async fn ask_postgres(&mut self) -> anyhow::Result<Asked> {
        let database = &self.inputs.database;
        let servers = &mut self.servers;
        if servers.turn % 2 == 1 {
            let snapshot = SlotSnapshot::take(database).await?;
            let earlier = servers.snapshot.as_ref().unwrap_or(&snapshot);
            servers.slots = snapshot.reports(earlier, &self.inputs.config.slots());
            servers.snapshot = Some(snapshot);
            return Ok(Asked::Yes);
        }
        let is_old = |at: &Instant| at.elapsed() > TENANT_LIFETIME;
        let listed = match &servers.directory {
            Some((at, listed)) if !is_old(at) => listed,
            _ => {
                let listed = tenants::directory(database).await?;
                servers
                    .tenants
                    .retain(|name, _| listed.iter().any(|listed| listed.tenant.name == *name));
                servers.directory = Some((Instant::now(), listed));
                return Ok(Asked::Yes);
            }
        };
        let due = listed.iter().find(|listed| {
            let known = servers.tenants.get(&listed.tenant.name);
            listed.has_schema() && known.is_none_or(|known| is_old(&known.at))
        });
        let Some(tenant) = due.map(|listed| listed.tenant.clone()) else {
            return Ok(Asked::No);
        };
        let devices = devices::figures(database, &tenant).await?;
        let slow = slow_devices(&self.inputs, &tenant, &devices).await;
        let at = Instant::now();
        servers.tenants.insert(tenant.name, TenantFigures { at, devices, slow });
        Ok(Asked::Yes)
    }

    fn facts(&self, row: &Row) -> Facts {
        let servers = &self.servers;
        let replication = self.inputs.replication.as_ref();
        let directory = servers.directory.iter().flat_map(|(_, listed)| listed);
        Facts {
            age_seconds: row.age_seconds,
            bound_seconds: self.inputs.config.health.max_staleness_seconds,
            postgres: servers.postgres.clone(),
            redis: servers.redis.clone(),
            replicator: replication.map_or(Replicator::Absent, |status| replicator(&status.state.borrow())),
            slots: servers.slots.clone(),
            stopped: servers.stopped.clone(),
            quarantined: servers.quarantined.clone(),
            paused: directory
                .filter(|listed| listed.state == PAUSED)
                .map(|listed| listed.tenant.name.clone())
                .collect(),
            uncovered: replication
                .map(|status| status.uncovered.borrow().clone())
                .unwrap_or_default(),
            slow_devices: servers
                .tenants
                .values()
                .flat_map(|tenant| tenant.slow.clone())
                .collect(),
        }
    }

    /// What watchers get.
    fn shown(&self, row: &Row) -> Value {
        let facts = self.facts(row);
        let problems = facts.problems();
        let servers = &self.servers;
        let sum =
            |of: fn(&DeviceFigures) -> i64| servers.tenants.values().map(|tenant| of(&tenant.devices)).sum::<i64>();
        let listed = servers.directory.as_ref().map(|(_, listed)| listed.len());
        json!({
            "at": row.at,
            "engine": &*self.inputs.engine,
            "version": VERSION,
            "row": row,
            "verdict": facts.verdict(&problems),
            "problems": problems,
            "bound_seconds": facts.bound_seconds,
            "ready": !problems.iter().any(is_unready),
            "replication": {
                "state": if self.inputs.replication.is_some() { self.state.0 } else { "absent" },
                "since": rounded(self.state.1 as f64 / 1e6),
                "here": self.inputs.replication.is_some(),
                "problem": match &facts.replicator {
                    Replicator::Streaming { problem } => problem.clone(),
                    Replicator::Failed(cause) => Some(cause.clone()),
                    _ => None,
                },
            },
            "epoch": self.epoch.map(|(number, since)| json!({"number": number, "since": since})),
            "slots": servers.slots,
            "redis": servers.memory.map(|[used, max]| json!({"used_memory_bytes": used, "maxmemory_bytes": max})),
            "devices": (!servers.tenants.is_empty()).then(|| json!({
                "online": sum(|devices| devices.online),
                "seen_24h": sum(|devices| devices.seen_1d),
                "enrolled": sum(|devices| devices.enrolled),
            })),
            "streams_open": row.streams_open,
            "rejections": self.inputs.metrics.sync.rejections().collect::<BTreeMap<_, _>>(),
            "tenants": listed.map(|total| json!({
                "total": total, "paused": facts.paused.len(), "quarantined": facts.quarantined.len(),
            })),
        })
    }
}

/// Whether clients see stale data, or none.
fn is_unready(problem: &Verdict) -> bool {
    matches!(problem.name, "postgres" | "redis" | "replication" | "freshness")
}

/// Results of uploaded items.
const UPLOADS: [&str; 4] = ["applied", "duplicate", "conflict", "rejected"];

fn state_name(state: &ReplicatorState) -> &'static str {
    match state {
        ReplicatorState::Starting => "starting",
        ReplicatorState::Waiting => "waiting",
        ReplicatorState::Streaming { .. } => "streaming",
        ReplicatorState::Failed(_) => "failed",
    }
}

fn replicator(state: &ReplicatorState) -> Replicator {
    match state {
        ReplicatorState::Starting => Replicator::Starting,
        ReplicatorState::Waiting => Replicator::Waiting,
        ReplicatorState::Streaming { problem, .. } => Replicator::Streaming {
            problem: problem.clone(),
        },
        ReplicatorState::Failed(cause) => Replicator::Failed(cause.clone()),
    }
}

/// Used memory and its bound (0: none), the lengths of the quarantines, and the tenants with stopped streams.
async fn read_redis(
    store: &Store,
    tenants: &[String],
) -> Result<([u64; 2], Vec<u64>, Vec<String>), crate::redis::store::Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("memory");
    let (memory,): (String,) = store.query(&pipe).await?;
    let memory = Info::parse(&memory);
    let bytes = ["used_memory", "maxmemory"].map(|name| memory.number(name).unwrap_or_default());
    let mut lengths = Vec::new();
    if !tenants.is_empty() {
        let mut pipe = redis::pipe();
        for tenant in tenants {
            pipe.cmd("XLEN").arg(store.keys().quarantine(tenant));
        }
        lengths = store.query(&pipe).await?;
    }
    let stopped = store.stopped().await?;
    let mut of: Vec<String> = stopped
        .keys()
        .filter_map(|name| Some(Target::parse(name)?.tenant().to_string()))
        .collect();
    of.sort_unstable();
    of.dedup();
    Ok((bytes, lengths, of))
}

/// Those recently seen devices of a tenant that are far behind. Unknown without Redis.
async fn slow_devices(inputs: &Inputs, tenant: &Tenant, devices: &DeviceFigures) -> Vec<SlowDevice> {
    let store = &inputs.store;
    #[expect(clippy::cast_precision_loss, reason = "at most 86,400")]
    let bound = inputs.config.health.device_behind_seconds as f64;
    let behind = async {
        let states = devices::states(store, tenant, &devices.recent).await?;
        devices::behind(store, tenant, &devices.recent, &states).await
    };
    let Ok(behind) = behind.await else {
        return Vec::new();
    };
    let behind = devices.recent.iter().zip(behind);
    behind
        .filter_map(|((_, device), behind)| {
            let seconds = behind.seconds.filter(|seconds| *seconds > bound)?;
            Some(SlowDevice {
                tenant: tenant.name.clone(),
                device: device.clone(),
                seconds,
            })
        })
        .collect()
}

/// A quantile of sorted seconds, in ms.
fn quantile(sorted: &[f32], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let index = (share * last as f64).round() as usize;
    sorted.get(index).map(|seconds| rounded(f64::from(*seconds) * 1000.0))
}

/// To three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at: f64) -> Row {
        Row {
            at: Some(at),
            ..Row::default()
        }
    }

    #[test]
    fn figures_keep_15_minutes() {
        let figures = Figures::default();
        for at in 0..1000 {
            figures.keep(row(f64::from(at)));
        }
        let (history, _) = figures.watch();
        let history: Value = serde_json::from_str(&history).expect("JSON");
        let rows = history["rows"].as_array().expect("rows");
        assert_eq!(
            (rows.len(), &rows[0][0], &rows[899][0]),
            (900, &json!(100.0), &json!(999.0))
        );
        assert_eq!(
            history["columns"].as_array().expect("columns").len(),
            rows[0].as_array().expect("a row").len()
        );
    }

    #[test]
    fn quantile_of_nothing_is_unknown() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[0.001], 0.99), Some(1.0));
        assert_eq!(quantile(&[0.001, 0.002, 0.003], 0.5), Some(2.0));
    }
}
