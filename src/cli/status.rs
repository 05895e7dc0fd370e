//! `posduif status`: one look at everything. What cannot be asked is said in its place; the rest is shown all the same.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use postgres_types::PgLsn;
use serde::Serialize;
use serde_json::{Value, json};

use super::table::{Cell, NOTHING, Tone, facts, table};
use super::watch::Repetition;
use super::{Global, human, output};
use crate::admin::slot_report::{Finding, Look};
use crate::admin::streams::{self, Lengths};
use crate::config::Config;
use crate::contract::checkpoint::Checkpoint;
use crate::net::http;
use crate::postgres::sql;
use crate::postgres::tenants::{self, Listed, TenantStats};
use crate::postgres::{Database, migrations};
use crate::redis::info;
use crate::redis::store::Store;
use crate::telemetry;

/// How long an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `posduif status`.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Base URL of the engine; without it `server.public_url`
    #[arg(long, env = "POSDUIF_URL")]
    url: Option<String>,
    /// Look again and again, in place on a terminal, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    repetition: Repetition,
}

/// What is known of Postgres.
#[derive(Debug)]
struct Postgres {
    version: String,
    look: Look,
    slots: Vec<Finding>,
    /// Migrations that are missing.
    pending: usize,
    /// Tenants, and what each has; nothing when its schema has another version.
    tenants: Vec<(Listed, Option<TenantStats>)>,
}

/// What is known of Redis.
#[derive(Debug)]
struct Redis {
    version: String,
    memory_bytes: u64,
    checkpoint: Result<Option<Checkpoint>, String>,
    stopped: Result<BTreeMap<String, String>, String>,
    /// Of each tenant.
    lengths: HashMap<String, Result<Lengths, String>>,
}

/// A tenant as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: String,
    users: Option<i64>,
    devices: Option<i64>,
    open_conflicts: Option<i64>,
    #[serde(flatten)]
    lengths: Lengths,
    /// What else is in the place of its streams, or why nothing is known of them.
    error: Option<String>,
}

/// One look.
#[derive(Debug)]
struct Whole {
    url: String,
    engine: Result<Value, String>,
    postgres: Result<Postgres, String>,
    redis: Result<Redis, String>,
    bound_seconds: u64,
}

impl Status {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let url = super::engine_url(self.url, &config);
        if !self.watch {
            if self.repetition.is_given() {
                output::usage_error!("`--interval` and `--count` are for `--watch`");
            }
            let whole = Whole::look(&config, &url, None).await;
            if global.json {
                output::json(&whole.json())?;
            } else {
                output::print(&whole.text())?;
            }
            return whole.check();
        }
        let mut earlier: Option<Look> = None;
        let look = async || {
            let whole = Whole::look(&config, &url, earlier.as_ref()).await;
            let text = if global.json {
                format!("{}\n", whole.json())
            } else {
                whole.text()
            };
            if let Ok(postgres) = whole.postgres {
                earlier = Some(postgres.look);
            }
            Ok(text)
        };
        self.repetition.draw(look).await
    }
}

impl Postgres {
    async fn ask(config: &Config, earlier: Option<&Look>) -> Result<Self> {
        let database = Database::connect(&config.postgres).await?;
        let row = database.query_opt(&sql!("admin/server_version"), &[]).await?;
        let look = Look::take(&database).await?;
        let status = migrations::status(&database).await?;
        let is_fresh = status.iter().all(|schema| schema.version == 0);
        let mut found = Vec::new();
        if !is_fresh {
            for listed in tenants::directory(&database).await? {
                // A schema that another version made may lack what is counted.
                let tenant_stats = match listed.has_schema() {
                    true => tenants::tenant_stats(&database, &listed.tenant).await.ok().flatten(),
                    false => None,
                };
                found.push((listed, tenant_stats));
            }
        }
        Ok(Self {
            version: row.map_or_else(String::new, |row| row.get("version")),
            slots: look.since(earlier.unwrap_or(&look), &config.replication.slot),
            look,
            pending: status.iter().map(|schema| schema.pending.len()).sum(),
            tenants: found,
        })
    }
}

impl Redis {
    async fn ask(store: &Store, tenants: &[String]) -> Result<Self> {
        let (version, memory_bytes) = info::version_and_memory(store).await?;
        let mut lengths = HashMap::new();
        for tenant in tenants {
            let known = streams::lengths_of(store, tenant).await;
            lengths.insert(tenant.clone(), known.map_err(|error| error.to_string()));
        }
        Ok(Self {
            version,
            memory_bytes,
            checkpoint: store.checkpoint().await.map_err(|error| error.to_string()),
            stopped: store.stopped().await.map_err(|error| error.to_string()),
            lengths,
        })
    }

    /// What it answers, but not as it should.
    fn error(&self) -> Option<String> {
        let errors = [self.checkpoint.as_ref().err(), self.stopped.as_ref().err()];
        let errors: Vec<&str> = errors.into_iter().flatten().map(String::as_str).collect();
        (!errors.is_empty()).then(|| errors.join("; "))
    }
}

impl Whole {
    async fn look(config: &Config, url: &str, earlier: Option<&Look>) -> Self {
        let ready = format!("{url}/ready");
        let engine = async {
            let answer = http::get(&ready, PATIENCE)
                .await
                .map_err(|error| format!("{error:#}"))?;
            serde_json::from_slice::<Value>(&answer.body)
                .ok()
                .filter(|body| body["checks"].is_object())
                .ok_or_else(|| format!("{url}/ready answers {} and not as an engine does", answer.status))
        };
        let postgres = async {
            Postgres::ask(config, earlier)
                .await
                .map_err(|error| format!("{error:#}"))
        };
        let store = async { super::redis(config).await.map_err(|error| format!("{error:#}")) };
        let (engine, postgres, store) = tokio::join!(engine, postgres, store);
        let names: Vec<String> = match &postgres {
            Ok(postgres) => postgres
                .tenants
                .iter()
                .map(|(listed, _)| listed.tenant.name.clone())
                .collect(),
            Err(_) => Vec::new(),
        };
        let redis = match store {
            Ok(store) => Redis::ask(&store, &names).await.map_err(|error| format!("{error:#}")),
            Err(error) => Err(error),
        };
        Self {
            url: url.to_owned(),
            engine,
            postgres,
            redis,
            bound_seconds: config.health.max_staleness_seconds,
        }
    }

    /// Fails when Postgres or Redis did not answer as it should.
    fn check(&self) -> Result<()> {
        let redis = match &self.redis {
            Ok(redis) => redis.error(),
            Err(error) => Some(error.clone()),
        };
        let errors: Vec<String> = self.postgres.as_ref().err().cloned().into_iter().chain(redis).collect();
        if errors.is_empty() {
            return Ok(());
        }
        bail!("{}", errors.join("; "))
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        self.redis.as_ref().ok()?.checkpoint.as_ref().ok()?.as_ref()
    }

    /// Why nobody knows how far publishing has come.
    fn unknown(&self) -> Option<&str> {
        match &self.redis {
            Ok(redis) => redis
                .checkpoint
                .as_ref()
                .err()
                .map(|_| "unknown: the checkpoint cannot be read"),
            Err(_) => Some("unknown: Redis cannot be asked"),
        }
    }

    /// Age of the last transaction that is published, in seconds, and whether that is fresh.
    fn age(&self) -> Option<(f64, bool)> {
        let age = self.checkpoint()?.age()?;
        Some((age.as_secs_f64(), age <= Duration::from_secs(self.bound_seconds)))
    }

    fn slot(&self) -> Option<&Finding> {
        self.postgres
            .as_ref()
            .ok()?
            .slots
            .iter()
            .find(|finding| finding.is_ours)
    }

    /// How far each stage is behind the end of the log, in bytes. An engine knows the first and the third; the others
    /// can be seen from outside.
    fn lags(&self) -> [(&'static str, Option<u64>); 5] {
        let end = self.postgres.as_ref().ok().map(|postgres| postgres.look.wal_position);
        let behind = |place: Option<PgLsn>| Some(u64::from(end?).saturating_sub(place?.into()));
        let said = |stage: &str| {
            let checks = self.engine.as_ref().ok()?.get("checks")?;
            checks.get("replication")?.get("lag_bytes")?.get(stage)?.as_u64()
        };
        let checkpoint = self.checkpoint();
        let published = checkpoint.map(|checkpoint| {
            checkpoint
                .transaction
                .map_or(checkpoint.acknowledged, |transaction| transaction.end_lsn)
        });
        [
            ("received", said("received")),
            ("published", behind(published)),
            ("durable", said("durable")),
            (
                "acknowledged",
                behind(checkpoint.map(|checkpoint| checkpoint.acknowledged)),
            ),
            ("confirmed", self.slot().and_then(|finding| finding.lag_bytes)),
        ]
    }

    fn rows(&self) -> Vec<Row> {
        let Ok(postgres) = &self.postgres else {
            return Vec::new();
        };
        let row = |(listed, tenant_stats): &(Listed, Option<TenantStats>)| {
            let name = &listed.tenant.name;
            let missing = listed.check().err().map(|error| error.to_string());
            let (lengths, error) = match self.redis.as_ref().ok().and_then(|redis| redis.lengths.get(name)) {
                Some(Ok(lengths)) => (lengths.clone(), lengths.error()),
                Some(Err(error)) => (Lengths::default(), Some(error.clone())),
                None => (Lengths::default(), None),
            };
            Row {
                name: name.clone(),
                state: listed.state.clone(),
                users: tenant_stats.as_ref().map(|has| has.web_users + has.mobile_users),
                devices: tenant_stats.as_ref().map(|has| has.devices),
                open_conflicts: tenant_stats.as_ref().map(|has| has.open_conflicts),
                lengths,
                error: missing.or(error),
            }
        };
        postgres.tenants.iter().map(row).collect()
    }

    fn json(&self) -> Value {
        let engine = match &self.engine {
            Ok(answer) => {
                json!({"url": self.url, "reachable": true, "ready": answer["ready"], "checks": answer["checks"], "error": null})
            }
            Err(error) => json!({"url": self.url, "reachable": false, "ready": false, "checks": null, "error": error}),
        };
        let postgres = match &self.postgres {
            Ok(postgres) => json!({
                "reachable": true, "version": postgres.version, "wal_position": postgres.look.wal_position.to_string(),
                "pending_migrations": postgres.pending, "error": null,
            }),
            Err(error) => json!({"reachable": false, "error": error}),
        };
        let redis = match &self.redis {
            Ok(redis) => json!({
                "reachable": true, "version": redis.version, "used_memory_bytes": redis.memory_bytes,
                "stopped_streams": redis.stopped.as_ref().ok(), "error": redis.error(),
            }),
            Err(error) => json!({"reachable": false, "error": error}),
        };
        let age = self.age();
        let lags: serde_json::Map<String, Value> = self
            .lags()
            .into_iter()
            .map(|(stage, bytes)| (stage.to_owned(), bytes.into()))
            .collect();
        json!({
            "version": telemetry::VERSION,
            "engine": engine,
            "postgres": postgres,
            "redis": redis,
            "freshness": {
                "age_seconds": age.map(|(age, _)| age),
                "bound_seconds": self.bound_seconds,
                "fresh": self.unknown().is_none().then(|| age.is_some_and(|(_, is_fresh)| is_fresh)),
            },
            "epoch": self.checkpoint().map(|checkpoint| json!({
                "id": checkpoint.epoch.id.to_string(), "number": checkpoint.epoch.number, "base": checkpoint.epoch.base,
                "position": checkpoint.position.to_string(), "published": checkpoint.published.to_string(),
            })),
            "lag_bytes": lags,
            "slot": self.slot(),
            "tenants": self.rows(),
        })
    }

    fn text(&self) -> String {
        let bad = |error: &str| Cell::from(error).toned(Tone::Bad);
        let engine = match &self.engine {
            Ok(answer) if answer["ready"] == true => Cell::from(format!("ready at {}", self.url)).toned(Tone::Good),
            Ok(answer) => {
                let checks = answer["checks"].as_object().into_iter().flatten();
                let failing: Vec<String> = checks
                    .filter(|(_, check)| check["ok"] == false)
                    .map(|(name, check)| format!("{name}: {}", check["detail"].as_str().unwrap_or("fails")))
                    .collect();
                bad(&format!("not ready at {}: {}", self.url, failing.join("; ")))
            }
            Err(error) => Cell::from(format!("none answers: {error}")).toned(Tone::Warning),
        };
        let postgres = match &self.postgres {
            Ok(postgres) => {
                let pending = match postgres.pending {
                    0 => String::new(),
                    pending => format!(", {} missing", human::count(pending, "migration")),
                };
                Cell::from(format!(
                    "{}, log ends at {}{pending}",
                    postgres.version, postgres.look.wal_position
                ))
            }
            Err(error) => bad(error),
        };
        let redis = match &self.redis {
            Ok(redis) => {
                let is = format!("{}, {} used", redis.version, human::bytes(redis.memory_bytes));
                match redis.error() {
                    Some(error) => bad(&format!("{is}; {error}")),
                    None => is.into(),
                }
            }
            Err(error) => bad(error),
        };
        let fresh = match self.age() {
            Some((age, true)) => Cell::from(format!("{} old", human::duration(age))).toned(Tone::Good),
            Some((age, false)) => bad(&format!(
                "{} old; allowed are {} s",
                human::duration(age),
                self.bound_seconds
            )),
            None => Cell::from(self.unknown().unwrap_or("nothing is published yet")).toned(Tone::Warning),
        };
        let epoch = self.checkpoint().map_or_else(
            || self.unknown().unwrap_or(NOTHING).to_owned(),
            |checkpoint| format!("{} ({})", checkpoint.epoch.number, checkpoint.epoch.id),
        );
        let lags: Vec<String> = self
            .lags()
            .into_iter()
            .filter_map(|(stage, bytes)| Some(format!("{stage} {}", human::bytes(bytes?))))
            .collect();
        let unseen = match &self.postgres {
            Ok(_) => NOTHING,
            Err(_) => "unknown: Postgres cannot be asked",
        };
        let slot = self.slot().map_or_else(
            || unseen.to_owned(),
            |finding| {
                let kept = finding.retained_bytes.map_or_else(|| NOTHING.to_owned(), human::bytes);
                format!(
                    "{}: {}, keeps {kept} of WAL",
                    finding.slot.name,
                    finding.verdict.as_str()
                )
            },
        );
        let mut text = facts([
            ("posduif", Cell::from(telemetry::VERSION)),
            ("engine", engine),
            ("Postgres", postgres),
            ("Redis", redis),
            ("published", fresh),
            ("epoch", epoch.into()),
            (
                "behind the log",
                if lags.is_empty() {
                    unseen.to_owned()
                } else {
                    lags.join(", ")
                }
                .into(),
            ),
            ("slot", slot.into()),
        ]);
        if let Ok(redis) = &self.redis {
            for (stream, cause) in redis.stopped.iter().flatten() {
                text.push_str(&format!("stopped: {stream}: {cause}\n"));
            }
        }
        let rows = self.rows();
        if !rows.is_empty() {
            let number =
                |value: Option<i64>| Cell::number(value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string()));
            let length = |length: Option<u64>| {
                Cell::number(length.map_or_else(|| NOTHING.to_owned(), |length| length.to_string()))
            };
            let wrong = rows.iter().filter_map(|row| Some((&row.name, row.error.as_ref()?)));
            let wrong: String = wrong.map(|(name, error)| format!("{name}: {error}\n")).collect();
            let rows = rows.iter().map(|row| {
                let tone = match row.state.as_str() {
                    crate::core::tenant::PAUSED => Tone::Warning,
                    crate::core::tenant::ACTIVE => Tone::Plain,
                    _ => Tone::Bad,
                };
                let has_quarantine = row.lengths.quarantine.is_some_and(|count| count > 0);
                [
                    Cell::from(row.name.clone()),
                    Cell::from(row.state.clone()).toned(tone),
                    number(row.users),
                    number(row.devices),
                    number(row.open_conflicts),
                    length(row.lengths.quarantine).toned(if has_quarantine { Tone::Warning } else { Tone::Plain }),
                    length(row.lengths.changes),
                    length(row.lengths.shared),
                ]
            });
            let header = [
                "TENANT",
                "STATE",
                "USERS",
                "DEVICES",
                "CONFLICTS",
                "QUARANTINE",
                "CHANGES",
                "SHARED",
            ];
            text.push_str(&format!("\n{}{wrong}", table(header, rows)));
        }
        text
    }
}
