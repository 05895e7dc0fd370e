//! `posduif status`: the state of the whole system.

use anyhow::Result;
use clap::Args;

use super::output::{self, Render, Text, outln};
use super::table::{Cell, NOTHING, Tone, number_or_nothing, or_nothing};
use super::watch::Repetition;
use super::{EngineAddress, Global, human};
use crate::admin::status::{EngineStatus, Freshness, PostgresStatus, RedisStatus, StatusReport, TenantStatus};
use crate::core::tenant::{ACTIVE, PAUSED};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    engine: EngineAddress,
    /// Update until Ctrl-C, in place on a terminal
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    repetition: Repetition,
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let urls = self.engine.urls(&config);
        if !self.watch {
            if self.repetition.is_given() {
                output::usage_error!("`--interval` and `--count` require `--watch`");
            }
            let report = StatusReport::read(&config, &urls, None).await;
            output::print(global, &report)?;
            return report.check();
        }
        let mut earlier = None;
        let read = async || {
            let report = StatusReport::read(&config, &urls, earlier.as_ref()).await;
            earlier = report.snapshot.clone().or(earlier.take());
            Ok(report)
        };
        self.repetition.run(global, read).await
    }
}

fn bad(error: &str) -> Cell {
    Cell::from(error).toned(Tone::Bad)
}

impl Render for StatusReport {
    fn text(&self, out: &mut Text) {
        out.facts([
            ("posduif", Cell::from(self.version)),
            ("engine", engine(&self.engine)),
            (
                "Postgres",
                self.postgres.as_ref().map_or_else(|error| bad(error), postgres),
            ),
            ("Redis", self.redis.as_ref().map_or_else(|error| bad(error), redis)),
            ("published", freshness(&self.freshness)),
            ("epoch", self.epoch_text().into()),
            ("lag", self.lag_text().into()),
            ("slot", self.slot_text().into()),
        ]);
        let stopped = self
            .redis
            .as_ref()
            .ok()
            .and_then(|redis| redis.stopped_streams.as_ref());
        for (stream, cause) in stopped.into_iter().flatten() {
            outln!(out, "stopped: {stream}: {cause}");
        }
        if !self.tenants.is_empty() {
            out.blank();
            tenants(&self.tenants, out);
        }
    }
}

impl StatusReport {
    fn epoch_text(&self) -> String {
        match &self.epoch {
            Some(epoch) => format!("{} ({})", epoch.number, epoch.id),
            None => self.freshness.unknown.unwrap_or(NOTHING).to_owned(),
        }
    }

    fn lag_text(&self) -> String {
        let stages = self.lag_bytes.stages().into_iter();
        let known: Vec<String> = stages
            .filter_map(|(stage, bytes)| Some(format!("{stage} {}", human::bytes(bytes?))))
            .collect();
        if known.is_empty() {
            self.without_postgres().to_owned()
        } else {
            known.join(", ")
        }
    }

    fn slot_text(&self) -> String {
        let Some(report) = &self.slot else {
            return self.without_postgres().to_owned();
        };
        let retained = or_nothing(report.retained_bytes.map(human::bytes));
        format!(
            "{}: {}, retains {retained} of WAL",
            report.slot.name,
            report.verdict.as_str()
        )
    }

    /// Stands for a fact that comes from Postgres and is absent.
    fn without_postgres(&self) -> &'static str {
        match &self.postgres {
            Ok(_) => NOTHING,
            Err(_) => "unknown: Postgres is unreachable",
        }
    }
}

fn engine(engine: &EngineStatus) -> Cell {
    match &engine.error {
        Some(error) => Cell::from(format!("unreachable: {error}")).toned(Tone::Warning),
        None if engine.ready => Cell::from(format!("ready at {}", engine.url)).toned(Tone::Good),
        None => bad(&format!("not ready at {}: {}", engine.url, engine.failing())),
    }
}

fn postgres(postgres: &PostgresStatus) -> Cell {
    let pending = match postgres.pending_migrations {
        0 => String::new(),
        pending => format!(", {} pending", human::count(pending, "migration")),
    };
    Cell::from(format!(
        "{}, WAL ends at {}{pending}",
        postgres.version, postgres.wal_position
    ))
}

fn redis(redis: &RedisStatus) -> Cell {
    let facts = format!("{}, {} used", redis.version, human::bytes(redis.used_memory_bytes));
    match &redis.error {
        Some(error) => bad(&format!("{facts}; {error}")),
        None => facts.into(),
    }
}

fn freshness(freshness: &Freshness) -> Cell {
    let age = freshness.age_seconds.map(human::duration);
    match (age, freshness.fresh) {
        (Some(age), Some(true)) => Cell::from(format!("{age} ago")).toned(Tone::Good),
        (Some(age), _) => bad(&format!("{age} ago; the limit is {} s", freshness.bound_seconds)),
        (None, _) => Cell::from(freshness.unknown.unwrap_or("nothing is published yet")).toned(Tone::Warning),
    }
}

fn tenants(tenants: &[TenantStatus], out: &mut Text) {
    let row = |tenant: &TenantStatus| {
        let state_tone = match tenant.state.as_str() {
            PAUSED => Tone::Warning,
            ACTIVE => Tone::Plain,
            _ => Tone::Bad,
        };
        let quarantine = tenant.lengths.quarantine;
        let quarantine_tone = if quarantine.is_some_and(|count| count > 0) {
            Tone::Warning
        } else {
            Tone::Plain
        };
        [
            Cell::from(tenant.name.clone()),
            Cell::from(tenant.state.clone()).toned(state_tone),
            number_or_nothing(tenant.users),
            number_or_nothing(tenant.devices),
            number_or_nothing(tenant.open_conflicts),
            number_or_nothing(quarantine).toned(quarantine_tone),
            number_or_nothing(tenant.lengths.changes),
            number_or_nothing(tenant.lengths.shared),
        ]
    };
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
    out.table(header, tenants.iter().map(row));
    for tenant in tenants {
        if let Some(error) = &tenant.error {
            outln!(out, "{}: {error}", tenant.name);
        }
    }
}
