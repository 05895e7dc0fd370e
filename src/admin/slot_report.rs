//! All slots of the server as its operator sees them: what each costs, how long it has left, and what to do about it.
//!
//! Every slot keeps WAL for its reader, whether or not one is there. Ours is one of them; the others are somebody
//! else's, or were ours under another name, and fill the same disk.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postgres_types::{PgLsn, Type};
use serde::{Serialize, Serializer};
use tokio_postgres::Row;

use crate::core::time::Timestamp;
use crate::postgres::{Database, sql};

/// A reader that is this close to the end of the log keeps up, whatever it confirmed while we looked: it confirms in steps.
const KEEPS_UP_BYTES: u64 = 64 * 1024 * 1024;

/// Who reads from a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// Process id of its walsender, or of the session that decodes.
    pub pid: i32,
    /// What it calls itself; `None` when we may not know.
    pub application: Option<String>,
    /// Where it connects from; `None` for a Unix socket, and when we may not know.
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

/// A slot as `pg_replication_slots` has it (Postgres chapter 54.19).
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Its name, unique within the server.
    pub name: String,
    /// Whether it decodes changes; else it is physical, for a standby or an archive.
    pub is_logical: bool,
    /// What it decodes with.
    pub plugin: Option<String>,
    /// The database that it decodes.
    pub database: Option<String>,
    /// Whether that is the one that we are connected to.
    pub is_here: bool,
    /// Whether it goes with the session that made it.
    pub is_temporary: bool,
    /// Whether somebody reads from it.
    pub is_active: bool,
    /// Who does.
    pub reader: Option<Reader>,
    /// From where on Postgres keeps WAL for it; `None` for a lost one.
    pub restart: Option<PgLsn>,
    /// What its reader has confirmed; `None` for physical ones.
    pub confirmed: Option<PgLsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that can be written before it may be lost; `None` when there is no bound.
    pub safe_bytes: Option<u64>,
    /// How far its reader is behind in time, as far as the walsender knows.
    pub lag_seconds: Option<f64>,
    /// Whether standbys are to keep up with it; `None` before Postgres 17.
    pub is_failover: Option<bool>,
    /// Whether it is such a standby's copy; `None` before Postgres 17.
    pub is_synced: Option<bool>,
    /// For how long nobody has read from it; `None` before Postgres 17.
    pub inactive_seconds: Option<f64>,
    /// Why it is of no use any more; `None` before Postgres 17.
    pub invalidation: Option<String>,
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

    /// Whether Postgres has removed WAL that it needs, or made it useless otherwise.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }
}

/// All slots at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// When this was.
    pub at: Instant,
    /// Where the log ended.
    pub wal_position: PgLsn,
    /// Whether the server is a standby.
    pub is_standby: bool,
    /// `max_slot_wal_keep_size`; `None` when there is no bound.
    pub keep_bytes: Option<u64>,
    /// `idle_replication_slot_timeout`, after which Postgres gives up a slot without a reader; `None` when there is none.
    pub idle_timeout_seconds: Option<f64>,
    /// The slots by name.
    pub slots: Vec<Slot>,
}

impl Look {
    /// Looks at all slots.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn take(database: &Database) -> Result<Self> {
        let read = async {
            let surroundings = database.query_opt(&sql!("admin/slot_context"), &[]).await?;
            let slots = database.query(&sql!("admin/slot_list"), &[]).await?;
            Ok::<_, crate::postgres::Error>((surroundings, slots))
        };
        let (surroundings, slots) = read.await.context("cannot read the replication slots")?;
        let row = surroundings.context("Postgres says nothing of its log")?;
        let keep: Option<i64> = row.try_get("keep_bytes")?;
        Ok(Self {
            at: Instant::now(),
            wal_position: row.try_get("wal_position")?,
            is_standby: row.try_get("is_standby")?,
            keep_bytes: keep.and_then(|keep| u64::try_from(keep).ok()),
            idle_timeout_seconds: row.try_get("idle_timeout_seconds")?,
            slots: slots.iter().map(Slot::read).collect::<Result<_, _>>()?,
        })
    }

    /// Looks twice, some time apart, so that the rates are known.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn twice(database: &Database, apart: Duration) -> Result<(Self, Self)> {
        let earlier = Self::take(database).await?;
        tokio::time::sleep(apart).await;
        Ok((earlier, Self::take(database).await?))
    }

    /// What is to be said of each slot, compared with an earlier look; `ours` is `replication.slot`.
    pub fn since(&self, earlier: &Self, ours: &str) -> Vec<Finding> {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64().max(0.001);
        let rate = bytes_between(earlier.wal_position, self.wal_position) / seconds;
        let find = |slot: &Slot| {
            let before = earlier.slots.iter().find(|before| before.name == slot.name);
            let confirmed_rate = match (before.and_then(|before| before.confirmed), slot.confirmed) {
                (Some(before), Some(now)) => bytes_between(before, now) / seconds,
                _ => 0.0,
            };
            self.find(slot, ours, rate, confirmed_rate)
        };
        self.slots.iter().map(find).collect()
    }

    fn find(&self, slot: &Slot, ours: &str, wal_rate: f64, confirmed_rate: f64) -> Finding {
        let is_ours = slot.name == ours && slot.is_logical;
        let behind = |place: PgLsn| u64::from(self.wal_position).saturating_sub(place.into());
        let lag_bytes = slot.confirmed.or(slot.restart).map(behind);
        let left = self.left(slot, lag_bytes, wal_rate, confirmed_rate);
        Finding {
            is_ours,
            retained_bytes: slot.restart.map(behind),
            lag_bytes,
            lag_seconds: match lag_bytes {
                Some(0) => Some(0.0),
                _ => slot.lag_seconds,
            },
            wal_bytes_per_second: wal_rate,
            left,
            verdict: verdict(slot, is_ours),
            slot: slot.clone(),
        }
    }

    fn left(&self, slot: &Slot, lag_bytes: Option<u64>, wal_rate: f64, confirmed_rate: f64) -> Left {
        if slot.is_lost() {
            return Left::Lost;
        }
        if slot.is_active {
            let keeps_up = confirmed_rate >= wal_rate || lag_bytes.is_some_and(|lag| lag < KEEPS_UP_BYTES);
            // Beyond the bound already, even one that keeps up may be lost with the next checkpoint.
            if keeps_up && slot.safe_bytes != Some(0) {
                return Left::KeepsUp;
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
            (None, None) => Left::Unbounded,
            (size, time) => {
                let least = size.unwrap_or(f64::INFINITY).min(time.unwrap_or(f64::INFINITY));
                if least.is_finite() {
                    Left::Seconds(least)
                } else {
                    Left::NoWal
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
pub enum Left {
    /// It is lost.
    Lost,
    /// Its reader confirms as fast as WAL is written.
    KeepsUp,
    /// So long.
    Seconds(f64),
    /// No WAL was written while we looked.
    NoWal,
    /// Never: without `max_slot_wal_keep_size` it keeps WAL until the disk is full.
    Unbounded,
}

impl Left {
    /// The seconds; `None` when there is no end in sight.
    pub fn seconds(self) -> Option<f64> {
        match self {
            Self::Lost => Some(0.0),
            Self::Seconds(seconds) => Some(seconds),
            Self::KeepsUp | Self::NoWal | Self::Unbounded => None,
        }
    }

    /// A word for it.
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

/// What is to be done about a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody reads from it.
    InUse,
    /// Ours, and no engine reads from it.
    NoEngine,
    /// Nobody reads from it, and it is not the configured one: abandoned.
    SafeToDrop,
    /// Nobody reads from it, and its owner must be asked: a standby's, or of another database.
    AskOwner,
    /// A standby's copy of a slot of its primary, which keeps it.
    Synced,
    /// Postgres has removed WAL that it needs.
    Lost,
}

impl Verdict {
    /// In words.
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

/// A slot and what is to be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The slot.
    pub slot: Slot,
    /// Whether it is the configured one.
    pub is_ours: bool,
    /// Bytes of WAL that Postgres keeps for it.
    pub retained_bytes: Option<u64>,
    /// Bytes of WAL that its reader has not confirmed.
    pub lag_bytes: Option<u64>,
    /// How far its reader is behind in time, where somebody knows.
    pub lag_seconds: Option<f64>,
    /// How much WAL the server wrote a second while we looked.
    pub wal_bytes_per_second: f64,
    /// How long it has left.
    pub left: Left,
    /// What is to be done.
    pub verdict: Verdict,
}

impl Finding {
    /// The command that goes with the verdict.
    pub fn command(&self) -> Option<String> {
        match self.verdict {
            Verdict::InUse | Verdict::Synced => None,
            Verdict::NoEngine => Some("posduif serve".to_owned()),
            Verdict::SafeToDrop | Verdict::AskOwner | Verdict::Lost => {
                Some(format!("posduif slot drop {} --yes", self.slot.name))
            }
        }
    }

    /// Notes how old the last published transaction is, which for our slot is known from Redis also while the walsender
    /// does not tell.
    pub fn published_before(&mut self, age: Duration) {
        if self.is_ours && self.lag_seconds.is_none() {
            self.lag_seconds = Some(age.as_secs_f64());
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            name: &'a str,
            ours: bool,
            slot_type: &'static str,
            plugin: Option<&'a str>,
            database: Option<&'a str>,
            temporary: bool,
            active: bool,
            reader: Option<&'a Reader>,
            wal_status: Option<&'a str>,
            invalidation_reason: Option<&'a str>,
            retained_wal_bytes: Option<u64>,
            safe_wal_bytes: Option<u64>,
            wal_bytes_per_second: f64,
            lost_in_seconds: Option<f64>,
            lost: &'static str,
            confirmed_lsn: Option<String>,
            restart_lsn: Option<String>,
            lag_bytes: Option<u64>,
            lag_seconds: Option<f64>,
            inactive_seconds: Option<f64>,
            failover: Option<bool>,
            synced: Option<bool>,
            verdict: &'static str,
            command: Option<String>,
        }
        let slot = &self.slot;
        Shown {
            name: &slot.name,
            ours: self.is_ours,
            slot_type: if slot.is_logical { "logical" } else { "physical" },
            plugin: slot.plugin.as_deref(),
            database: slot.database.as_deref(),
            temporary: slot.is_temporary,
            active: slot.is_active,
            reader: slot.reader.as_ref(),
            wal_status: slot.wal_status.as_deref(),
            invalidation_reason: slot.invalidation.as_deref(),
            retained_wal_bytes: self.retained_bytes,
            safe_wal_bytes: slot.safe_bytes,
            wal_bytes_per_second: self.wal_bytes_per_second.round(),
            lost_in_seconds: self.left.seconds().map(|seconds| (seconds * 10.0).round() / 10.0),
            lost: self.left.as_str(),
            confirmed_lsn: slot.confirmed.map(|lsn| lsn.to_string()),
            restart_lsn: slot.restart.map(|lsn| lsn.to_string()),
            lag_bytes: self.lag_bytes,
            lag_seconds: self.lag_seconds,
            inactive_seconds: slot.inactive_seconds,
            failover: slot.is_failover,
            synced: slot.is_synced,
            verdict: self.verdict.as_str(),
            command: self.command(),
        }
        .serialize(serializer)
    }
}

/// An epoch of a slot, as Postgres remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PastEpoch {
    /// Counts from 1.
    pub number: i64,
    /// Its random identity.
    pub id: String,
    /// Why it began.
    pub reason: String,
    /// Where it began.
    #[serde(serialize_with = "lsn_text")]
    pub start_lsn: PgLsn,
    /// When it began.
    pub started_at: Timestamp,
}

fn lsn_text<S: Serializer>(lsn: &PgLsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

/// The last epochs of a slot, newest first.
///
/// # Errors
/// When Postgres cannot be asked, or has no control schema yet.
pub async fn epochs(database: &Database, slot: &str, count: i64) -> Result<Vec<PastEpoch>> {
    let rows = database
        .query(&sql!("admin/epoch_list"), &[(&slot, Type::TEXT), (&count, Type::INT8)])
        .await
        .context("cannot read posduif.epochs; `posduif migrate up` makes it")?;
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

/// Refuses a slot that somebody reads from: to drop or to move it would take it from under them.
///
/// # Errors
/// Names the reader.
pub fn refuse_in_use(slot: &Slot) -> Result<()> {
    if !slot.is_active {
        return Ok(());
    }
    let reader = slot
        .reader
        .as_ref()
        .map_or_else(|| "somebody".to_owned(), ToString::to_string);
    bail!(
        "the slot {} is in use: {reader} reads from it; stop that first",
        slot.name
    )
}

/// Moves an inactive slot forward, by default to the end of the log. What lies before is lost to its reader. Gives where
/// it stands then.
///
/// # Errors
/// When it is in use, stands there already, or Postgres refuses.
pub async fn advance(database: &Database, slot: &Slot, to: PgLsn) -> Result<PgLsn> {
    // Postgres decodes all that lies between, which may take longer than a statement is given.
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

    fn look(wal_position: u64, slots: Vec<Slot>) -> Look {
        Look {
            at: Instant::now(),
            wal_position: wal_position.into(),
            is_standby: false,
            keep_bytes: Some(60_000),
            idle_timeout_seconds: None,
            slots,
        }
    }

    /// What is found of one slot when 10,000 bytes of WAL were written in two seconds.
    fn found(slot: Slot, change: impl FnOnce(&mut Look)) -> Finding {
        let earlier = look(10_000, vec![slot.clone()]);
        let mut later = look(20_000, vec![slot]);
        later.at = earlier.at + Duration::from_secs(2);
        change(&mut later);
        later.since(&earlier, "posduif").remove(0)
    }

    #[test]
    fn an_abandoned_slot_is_lost_when_the_bound_is_reached_at_the_present_rate() {
        let finding = found(slot("old", false), |_| ());
        assert_eq!(finding.retained_bytes, Some(19_000));
        assert_eq!(finding.lag_bytes, Some(18_000));
        assert_eq!(finding.left, Left::Seconds(10.0));
        assert_eq!(finding.verdict, Verdict::SafeToDrop);
        assert_eq!(finding.command().as_deref(), Some("posduif slot drop old --yes"));
        let unbounded = Slot {
            safe_bytes: None,
            ..slot("old", false)
        };
        assert_eq!(found(unbounded, |_| ()).left, Left::Unbounded);
        assert_eq!(
            found(slot("old", false), |look| look.wal_position = 10_000.into()).left,
            Left::NoWal
        );
    }

    #[test]
    fn a_slot_without_a_reader_may_be_given_up_for_that_before_its_bound_is_reached() {
        let idle = Slot {
            inactive_seconds: Some(57.0),
            ..slot("old", false)
        };
        assert_eq!(
            found(idle, |look| look.idle_timeout_seconds = Some(60.0)).left,
            Left::Seconds(3.0)
        );
    }

    #[test]
    fn a_reader_that_falls_behind_is_told_from_one_that_keeps_up() {
        assert_eq!(found(slot("posduif", true), |_| ()).left, Left::KeepsUp);
        let far = found(slot("posduif", true), |look| {
            look.wal_position = (KEEPS_UP_BYTES + 100_000).into();
        });
        assert!(matches!(far.left, Left::Seconds(_)), "{:?}", far.left);
        assert_eq!(far.verdict, Verdict::InUse);
        let beyond = Slot {
            safe_bytes: Some(0),
            ..slot("posduif", true)
        };
        assert_eq!(found(beyond, |_| ()).left, Left::Seconds(0.0));
    }

    #[test]
    fn only_what_is_surely_abandoned_is_safe_to_drop() {
        let of = |change: fn(&mut Slot)| {
            let mut slot = slot("other", false);
            change(&mut slot);
            found(slot, |_| ()).verdict
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
    fn a_slot_that_is_read_is_left_alone() {
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
