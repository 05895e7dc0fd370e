//! The replication slots of the server for its operator: what each costs, how long until it is lost, what to do.
//!
//! Every slot retains WAL, with or without a reader. Slots of other systems fill the same disk as the configured one.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postgres_types::{PgLsn, Type};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use serde_json::json;
use tokio_postgres::Row;

use crate::core::time::Timestamp;
use crate::postgres::audit::{self, Act, Actor};
use crate::postgres::{Database, sql};
use crate::replication::slot;

/// A reader this close to the end of the log keeps up, whatever it confirmed between two snapshots: it confirms in steps.
const KEEPS_UP_BYTES: u64 = 64 * 1024 * 1024;

/// The process that reads from a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// Process id of its walsender, or of the session that decodes.
    pub pid: i32,
    /// `application_name`; `None` if our role may not read it.
    pub application: Option<String>,
    /// Client address; `None` for a Unix socket, or if our role may not read it.
    pub address: Option<String>,
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if let Some(name) = self.application.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " of {name}")?;
        }
        match &self.address {
            Some(address) => write!(f, " from {address}"),
            None => Ok(()),
        }
    }
}

/// A slot, as in `pg_replication_slots` (Postgres chapter 54.19). Columns that are newer than the server are `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slot {
    pub name: String,
    /// Logical, or physical: for a standby or an archive.
    #[serde(rename = "slot_type", serialize_with = "slot_type")]
    pub is_logical: bool,
    pub plugin: Option<String>,
    pub database: Option<String>,
    /// Whether `database` is the one of our connection.
    #[serde(skip)]
    pub is_here: bool,
    #[serde(rename = "temporary")]
    pub is_temporary: bool,
    #[serde(rename = "active")]
    pub is_active: bool,
    pub reader: Option<Reader>,
    /// Postgres retains WAL from here on; `None` for a lost slot.
    #[serde(rename = "restart_lsn", serialize_with = "optional_lsn")]
    pub restart: Option<PgLsn>,
    /// `None` for physical slots.
    #[serde(rename = "confirmed_lsn", serialize_with = "optional_lsn")]
    pub confirmed: Option<PgLsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that can be written before the slot may be lost; `None` without `max_slot_wal_keep_size`.
    #[serde(rename = "safe_wal_bytes")]
    pub safe_bytes: Option<u64>,
    /// How far the reader is behind in time, as the walsender reports it.
    #[serde(skip)]
    pub lag_seconds: Option<f64>,
    #[serde(rename = "failover")]
    pub is_failover: Option<bool>,
    /// Whether it is a standby's copy of a failover slot.
    #[serde(rename = "synced")]
    pub is_synced: Option<bool>,
    /// How long the slot has had no reader.
    pub inactive_seconds: Option<f64>,
    #[serde(rename = "invalidation_reason")]
    pub invalidation: Option<String>,
}

fn slot_type<S: Serializer>(is_logical: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(slot_kind(*is_logical))
}

/// The value of `slot_type`.
pub fn slot_kind(is_logical: bool) -> &'static str {
    if is_logical { "logical" } else { "physical" }
}

impl Slot {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let safe: Option<i64> = row.try_get("safe_wal_size")?;
        let (application, address) = (row.try_get("application_name")?, row.try_get("address")?);
        Ok(Self {
            name: row.try_get("name")?,
            is_logical: row.try_get::<_, &str>("slot_type")? == "logical",
            plugin: row.try_get("plugin")?,
            database: row.try_get("database")?,
            is_here: row.try_get("is_here")?,
            is_temporary: row.try_get("temporary")?,
            is_active: row.try_get("active")?,
            reader: row.try_get::<_, Option<i32>>("active_pid")?.map(|pid| Reader {
                pid,
                application,
                address,
            }),
            restart: row.try_get("restart_lsn")?,
            confirmed: row.try_get("confirmed_flush_lsn")?,
            wal_status: row.try_get("wal_status")?,
            safe_bytes: safe.map(|safe| u64::try_from(safe).unwrap_or(0)),
            lag_seconds: row.try_get("lag_seconds")?,
            is_failover: row.try_get("failover")?,
            is_synced: row.try_get("synced")?,
            inactive_seconds: row.try_get("inactive_seconds")?,
            invalidation: row.try_get("invalidation_reason")?,
        })
    }

    /// Whether Postgres has removed WAL that the slot needs, or has invalidated it.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }
}

/// All slots at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotSnapshot {
    pub at: Instant,
    /// End of the log.
    pub wal_position: PgLsn,
    pub is_standby: bool,
    /// `max_slot_wal_keep_size`; `None` if unlimited.
    pub keep_bytes: Option<u64>,
    /// `idle_replication_slot_timeout`; `None` if disabled.
    pub idle_timeout_seconds: Option<f64>,
    /// Sorted by name.
    pub slots: Vec<Slot>,
}

impl SlotSnapshot {
    pub async fn take(database: &Database) -> Result<Self> {
        let rows = database
            .query(&sql!("admin/slot_snapshot"), &[])
            .await
            .context("cannot read the replication slots")?;
        let row = rows.first().context("Postgres returned no position of its log")?;
        let keep: Option<i64> = row.try_get("keep_bytes")?;
        Ok(Self {
            at: Instant::now(),
            wal_position: row.try_get("wal_position")?,
            is_standby: row.try_get("is_standby")?,
            keep_bytes: keep.and_then(|keep| u64::try_from(keep).ok()),
            idle_timeout_seconds: row.try_get("idle_timeout_seconds")?,
            slots: rows
                .iter()
                .filter(|row| !matches!(row.try_get::<_, Option<&str>>("name"), Ok(None)))
                .map(Slot::read)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Takes two snapshots, from which [`Self::reports`] computes rates.
    pub async fn take_two(database: &Database, apart: Duration) -> Result<(Self, Self)> {
        let earlier = Self::take(database).await?;
        tokio::time::sleep(apart).await;
        Ok((earlier, Self::take(database).await?))
    }

    /// A report on each slot, with rates since an earlier snapshot; `ours` are those of the lanes.
    pub fn reports(&self, earlier: &Self, ours: &[String]) -> Vec<SlotReport> {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64().max(0.001);
        let rate = bytes_between(earlier.wal_position, self.wal_position) / seconds;
        let report = |slot: &Slot| {
            let before = earlier.slots.iter().find(|before| before.name == slot.name);
            let confirmed_rate = match (before.and_then(|before| before.confirmed), slot.confirmed) {
                (Some(before), Some(now)) => bytes_between(before, now) / seconds,
                _ => 0.0,
            };
            self.report(slot, ours, rate, confirmed_rate)
        };
        self.slots.iter().map(report).collect()
    }

    fn report(&self, slot: &Slot, ours: &[String], wal_rate: f64, confirmed_rate: f64) -> SlotReport {
        let is_ours = slot.is_logical && ours.contains(&slot.name);
        let behind = |position: PgLsn| u64::from(self.wal_position).saturating_sub(position.into());
        let lag_bytes = slot.confirmed.or(slot.restart).map(behind);
        let verdict = verdict(slot, is_ours);
        SlotReport {
            is_ours,
            retained_bytes: slot.restart.map(behind),
            lag_bytes,
            lag_seconds: match lag_bytes {
                Some(0) => Some(0.0),
                _ => slot.lag_seconds,
            },
            wal_bytes_per_second: wal_rate,
            left: self.left(slot, lag_bytes, wal_rate, confirmed_rate),
            verdict,
            command: verdict.command(&slot.name),
            slot: slot.clone(),
        }
    }

    fn left(&self, slot: &Slot, lag_bytes: Option<u64>, wal_rate: f64, confirmed_rate: f64) -> TimeLeft {
        if slot.is_lost() {
            return TimeLeft::Lost;
        }
        if slot.is_active {
            let keeps_up = confirmed_rate >= wal_rate || lag_bytes.is_some_and(|lag| lag < KEEPS_UP_BYTES);
            // A slot beyond the limit may be lost at the next checkpoint, even if its reader keeps up.
            if keeps_up && slot.safe_bytes != Some(0) {
                return TimeLeft::KeepsUp;
            }
        }
        let growth = if slot.is_active {
            wal_rate - confirmed_rate
        } else {
            wal_rate
        };
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let by_size = slot.safe_bytes.map(|safe| match safe {
            0 => 0.0,
            safe if growth > 0.0 => safe as f64 / growth,
            _ => f64::INFINITY,
        });
        let by_time = match (self.idle_timeout_seconds, slot.inactive_seconds) {
            (Some(timeout), Some(inactive)) if !slot.is_active => Some((timeout - inactive).max(0.0)),
            _ => None,
        };
        match (by_size, by_time) {
            (None, None) => TimeLeft::Unbounded,
            (size, time) => {
                let least = size.unwrap_or(f64::INFINITY).min(time.unwrap_or(f64::INFINITY));
                if least.is_finite() {
                    TimeLeft::Seconds(least)
                } else {
                    TimeLeft::NoWal
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn bytes_between(from: PgLsn, to: PgLsn) -> f64 {
    u64::from(to).saturating_sub(from.into()) as f64
}

/// How long until a slot is lost at the present rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeLeft {
    Lost,
    /// The reader confirms as fast as WAL is written.
    KeepsUp,
    Seconds(f64),
    /// No WAL was written between the snapshots.
    NoWal,
    /// Without `max_slot_wal_keep_size` the slot retains WAL until the disk is full.
    Unbounded,
}

impl TimeLeft {
    /// `None` without an end in sight.
    pub fn seconds(self) -> Option<f64> {
        match self {
            Self::Lost => Some(0.0),
            Self::Seconds(seconds) => Some(seconds),
            Self::KeepsUp | Self::NoWal | Self::Unbounded => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::KeepsUp => "keeps up",
            Self::Seconds(_) => "limited",
            Self::NoWal => "no WAL is written",
            Self::Unbounded => "no bound",
        }
    }
}

/// Two fields, `lost` and `lost_in_seconds`, to be flattened.
impl Serialize for TimeLeft {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("TimeLeft", 2)?;
        fields.serialize_field("lost", self.as_str())?;
        fields.serialize_field(
            "lost_in_seconds",
            &self.seconds().map(|seconds| (seconds * 10.0).round() / 10.0),
        )?;
        fields.end()
    }
}

/// The recommended action on a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    InUse,
    /// The configured slot, without an engine that reads it.
    NoEngine,
    /// No reader, and not the configured slot: abandoned.
    SafeToDrop,
    /// No reader, and a standby's or of another database: ask the owner.
    AskOwner,
    /// A standby's copy of a slot of its primary.
    Synced,
    /// Postgres has removed WAL that it needs.
    Lost,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::NoEngine => "no engine reads it",
            Self::SafeToDrop => "safe to drop",
            Self::AskOwner => "ask its owner",
            Self::Synced => "synced",
            Self::Lost => "lost",
        }
    }

    fn command(self, slot: &str) -> Option<String> {
        match self {
            Self::InUse | Self::Synced => None,
            Self::NoEngine => Some("posduif serve".to_owned()),
            Self::SafeToDrop | Self::AskOwner | Self::Lost => Some(format!("posduif slot drop {slot} --yes")),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

fn verdict(slot: &Slot, is_ours: bool) -> Verdict {
    match slot {
        slot if slot.is_lost() => Verdict::Lost,
        slot if slot.is_active => Verdict::InUse,
        _ if is_ours => Verdict::NoEngine,
        slot if slot.is_synced == Some(true) => Verdict::Synced,
        slot if slot.is_logical && slot.is_here => Verdict::SafeToDrop,
        _ => Verdict::AskOwner,
    }
}

/// A slot with its cost and the recommended action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotReport {
    #[serde(flatten)]
    pub slot: Slot,
    /// Whether it is `replication.slot`, or that of another lane.
    #[serde(rename = "ours")]
    pub is_ours: bool,
    #[serde(rename = "retained_wal_bytes")]
    pub retained_bytes: Option<u64>,
    /// Bytes of WAL that the reader has not confirmed.
    pub lag_bytes: Option<u64>,
    /// How far the reader is behind in time, if known.
    pub lag_seconds: Option<f64>,
    /// WAL that the server wrote per second between the snapshots.
    #[serde(serialize_with = "rounded")]
    pub wal_bytes_per_second: f64,
    #[serde(flatten)]
    pub left: TimeLeft,
    pub verdict: Verdict,
    /// The command of the recommended action.
    pub command: Option<String>,
}

impl SlotReport {
    /// Sets the lag in time of the configured slot from the age of the last published transaction, if the walsender
    /// does not report it.
    pub fn set_published_age(&mut self, age: Duration) {
        if self.is_ours && self.lag_seconds.is_none() {
            self.lag_seconds = Some(age.as_secs_f64());
        }
    }
}

fn rounded<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.round())
}

fn optional_lsn<S: Serializer>(lsn: &Option<PgLsn>, serializer: S) -> Result<S::Ok, S::Error> {
    lsn.map(|lsn| lsn.to_string()).serialize(serializer)
}

/// An epoch of a slot, as recorded in `posduif.epochs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PastEpoch {
    /// Counts from 1.
    pub number: i64,
    pub id: String,
    /// Why the epoch began.
    pub reason: String,
    #[serde(serialize_with = "lsn_text")]
    pub start_lsn: PgLsn,
    pub started_at: Timestamp,
}

fn lsn_text<S: Serializer>(lsn: &PgLsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

/// The last epochs of a slot, newest first. Fails before the first `posduif migrate up`.
pub async fn epochs(database: &Database, slot: &str, count: i64) -> Result<Vec<PastEpoch>> {
    let rows = database
        .query(&sql!("admin/epoch_list"), &[(&slot, Type::TEXT), (&count, Type::INT8)])
        .await
        .context("cannot read posduif.epochs; `posduif migrate up` creates it")?;
    let epochs = rows.iter().map(|row| {
        Ok(PastEpoch {
            number: row.try_get("number")?,
            id: row.try_get("id")?,
            reason: row.try_get("reason")?,
            start_lsn: row.try_get("start_lsn")?,
            started_at: row.try_get("started_at")?,
        })
    });
    epochs.collect()
}

/// Refuses a slot that has a reader.
pub fn refuse_in_use(slot: &Slot) -> Result<()> {
    if !slot.is_active {
        return Ok(());
    }
    let reader = slot
        .reader
        .as_ref()
        .map_or_else(|| "another process".to_owned(), ToString::to_string);
    bail!(
        "the slot {} is in use: {reader} reads from it; stop the reader first",
        slot.name
    )
}

/// Drops an inactive slot, and records who did it.
///
/// # Errors
/// When Postgres refuses.
pub async fn drop(database: &Database, report: &SlotReport, by: &Actor) -> Result<()> {
    slot::drop(database, &report.slot.name).await?;
    let act = Act {
        tenant: None,
        actor: by,
        action: "slot_dropped",
        subject: Some(report.slot.name.clone()),
        detail: json!({"freed_wal_bytes": report.retained_bytes}),
    };
    audit::record(database, act).await;
    Ok(())
}

/// Moves an inactive slot forward and returns its new position. The reader never receives the changes in between.
pub async fn advance(database: &Database, slot: &Slot, to: PgLsn) -> Result<PgLsn> {
    // Postgres decodes everything in between, which may take longer than the statement timeout of the pool.
    let client = database.connect_dedicated().await?;
    let row = client
        .query_typed_one(
            &sql!("admin/slot_advance"),
            &[(&slot.name, Type::NAME), (&to, Type::PG_LSN)],
        )
        .await
        .map_err(crate::postgres::Error::from)
        .with_context(|| format!("cannot advance the slot {} to {to}", slot.name))?;
    Ok(row.try_get("end_lsn")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, is_active: bool) -> Slot {
        Slot {
            name: name.to_owned(),
            is_logical: true,
            plugin: Some("pgoutput".to_owned()),
            database: Some("posduif".to_owned()),
            is_here: true,
            is_temporary: false,
            is_active,
            reader: None,
            restart: Some(1_000.into()),
            confirmed: Some(2_000.into()),
            wal_status: Some("reserved".to_owned()),
            safe_bytes: Some(50_000),
            lag_seconds: None,
            is_failover: None,
            is_synced: None,
            inactive_seconds: None,
            invalidation: None,
        }
    }

    fn snapshot(wal_position: u64, slots: Vec<Slot>) -> SlotSnapshot {
        SlotSnapshot {
            at: Instant::now(),
            wal_position: wal_position.into(),
            is_standby: false,
            keep_bytes: Some(60_000),
            idle_timeout_seconds: None,
            slots,
        }
    }

    /// The report on one slot when 10,000 bytes of WAL are written in two seconds.
    fn report_on(slot: Slot, change: impl FnOnce(&mut SlotSnapshot)) -> SlotReport {
        let earlier = snapshot(10_000, vec![slot.clone()]);
        let mut later = snapshot(20_000, vec![slot]);
        later.at = earlier.at + Duration::from_secs(2);
        change(&mut later);
        later.reports(&earlier, &["posduif".to_owned()]).remove(0)
    }

    #[test]
    fn abandoned_slot_time_left_follows_wal_rate() {
        let report = report_on(slot("old", false), |_| ());
        assert_eq!(report.retained_bytes, Some(19_000));
        assert_eq!(report.lag_bytes, Some(18_000));
        assert_eq!(report.left, TimeLeft::Seconds(10.0));
        assert_eq!(report.verdict, Verdict::SafeToDrop);
        assert_eq!(report.command.as_deref(), Some("posduif slot drop old --yes"));
        let unbounded = Slot {
            safe_bytes: None,
            ..slot("old", false)
        };
        assert_eq!(report_on(unbounded, |_| ()).left, TimeLeft::Unbounded);
        assert_eq!(
            report_on(slot("old", false), |snapshot| snapshot.wal_position = 10_000.into()).left,
            TimeLeft::NoWal
        );
    }

    #[test]
    fn inactive_slot_idle_timeout_bounds_time_left() {
        let idle = Slot {
            inactive_seconds: Some(57.0),
            ..slot("old", false)
        };
        assert_eq!(
            report_on(idle, |snapshot| snapshot.idle_timeout_seconds = Some(60.0)).left,
            TimeLeft::Seconds(3.0)
        );
    }

    #[test]
    fn lagging_reader_differs_from_one_that_keeps_up() {
        assert_eq!(report_on(slot("posduif", true), |_| ()).left, TimeLeft::KeepsUp);
        let far = report_on(slot("posduif", true), |snapshot| {
            snapshot.wal_position = (KEEPS_UP_BYTES + 100_000).into();
        });
        assert!(matches!(far.left, TimeLeft::Seconds(_)), "{:?}", far.left);
        assert_eq!(far.verdict, Verdict::InUse);
        let beyond = Slot {
            safe_bytes: Some(0),
            ..slot("posduif", true)
        };
        assert_eq!(report_on(beyond, |_| ()).left, TimeLeft::Seconds(0.0));
    }

    #[test]
    fn only_abandoned_local_logical_slot_is_safe_to_drop() {
        let of = |change: fn(&mut Slot)| {
            let mut slot = slot("other", false);
            change(&mut slot);
            report_on(slot, |_| ()).verdict
        };
        assert_eq!(of(|slot| slot.name = "posduif".to_owned()), Verdict::NoEngine);
        assert_eq!(of(|slot| slot.is_here = false), Verdict::AskOwner);
        assert_eq!(of(|slot| slot.is_logical = false), Verdict::AskOwner);
        assert_eq!(of(|slot| slot.is_synced = Some(true)), Verdict::Synced);
        assert_eq!(of(|slot| slot.wal_status = Some("lost".to_owned())), Verdict::Lost);
        assert_eq!(
            of(|slot| slot.invalidation = Some("idle_timeout".to_owned())),
            Verdict::Lost
        );
    }

    #[test]
    fn active_slot_is_refused_with_its_reader() {
        let mut used = slot("posduif", true);
        used.reader = Some(Reader {
            pid: 7,
            application: Some("posduif".to_owned()),
            address: Some("10.0.0.1".to_owned()),
        });
        let refusal = refuse_in_use(&used).unwrap_err().to_string();
        assert!(refusal.contains("process 7 of posduif from 10.0.0.1"), "{refusal}");
        assert!(refuse_in_use(&slot("posduif", false)).is_ok());
    }
}
