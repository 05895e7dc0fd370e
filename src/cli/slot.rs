//! `posduif slot`: inspects and manages replication slots.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use postgres_types::PgLsn;
use serde::Serialize;

use super::output::{self, Render, Text, outln};
use super::table::{Cell, NOTHING, Tone, number_or_nothing, or_nothing};
use super::watch::{Repetition, seconds};
use super::{Confirm, Global, human};
use crate::admin::slot_report::{self, PastEpoch, Slot, SlotReport, SlotSnapshot, TimeLeft, Verdict};
use crate::config::Config;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, publication};
use crate::redis::store::Store;
use crate::replication::slot;

/// Epochs that `show` lists.
const EPOCHS: i64 = 5;

/// Timeout of the query for the age of the last published transaction; the age is optional.
const REDIS_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct SlotCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the slots of the server: retained WAL, time left, recommended action
    List {
        /// Seconds between the two samples that measure the WAL rate (0.1 to 3600)
        #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
        sample: Duration,
    },
    /// Show one slot, and the last epochs of the configured one
    Show {
        /// The slot [default: `replication.slot`]
        name: Option<String>,
        /// Seconds between the two samples that measure the WAL rate (0.1 to 3600)
        #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
        sample: Duration,
    },
    /// Create the publication and the slot, unless they exist
    Create {
        /// The slot [default: `replication.slot`]
        #[arg(value_parser = new_name)]
        name: Option<String>,
    },
    /// Move a slot forward; its reader never receives the skipped changes
    Advance {
        /// The slot
        name: String,
        /// Target LSN, such as 16/B374D848 [default: end of the log]
        #[arg(long, value_name = "LSN", value_parser = lsn)]
        to: Option<PgLsn>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Drop a slot without a reader; the WAL that it retained is lost
    Drop {
        /// The slot
        name: String,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// List the slots repeatedly
    Watch {
        #[command(flatten)]
        repetition: Repetition,
    },
}

impl SlotCommand {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        let ours = config.replication.slot.clone();
        match self.verb {
            Verb::List { sample } => {
                let (earlier, snapshot) = SlotSnapshot::take_two(&database, sample).await?;
                output::print(global, &SlotList::new(&config, &earlier, snapshot).await)
            }
            Verb::Show { name, sample } => {
                let (earlier, snapshot) = SlotSnapshot::take_two(&database, sample).await?;
                let list = SlotList::new(&config, &earlier, snapshot).await;
                output::print(global, &show(&database, list, &name.unwrap_or(ours)).await?)
            }
            Verb::Create { name } => output::print(global, &create(&config, &database, name.unwrap_or(ours)).await?),
            Verb::Advance { name, to, confirm } => {
                output::print(global, &advance(&config, &database, name, to, confirm).await?)
            }
            Verb::Drop { name, confirm } => output::print(global, &drop(&config, &database, name, confirm).await?),
            Verb::Watch { repetition } => {
                let mut earlier: Option<SlotSnapshot> = None;
                let read = async || {
                    let snapshot = SlotSnapshot::take(&database).await?;
                    // The first update has no rates.
                    let before = earlier.replace(snapshot.clone()).unwrap_or_else(|| snapshot.clone());
                    Ok(SlotList::new(&config, &before, snapshot).await)
                };
                repetition.run(global, read).await
            }
        }
    }
}

fn lsn(text: &str) -> Result<PgLsn, String> {
    text.parse()
        .map_err(|_| "not an LSN; an LSN is two hexadecimal numbers, such as 16/B374D848".to_owned())
}

/// Whether a text can name a slot (Postgres chapter 27.2.6).
fn new_name(text: &str) -> Result<String, String> {
    let is_name = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (1..=63)
        .contains(&text.len())
        .then_some(text)
        .filter(|text| text.bytes().all(is_name))
        .map(str::to_owned)
        .ok_or_else(|| "allowed are 1 to 63 of a-z, 0-9 and _".to_owned())
}

fn absent(name: &str) -> String {
    format!("there is no slot {name}; `posduif slot list` lists all")
}

/// All slots of the server.
#[derive(Serialize)]
#[serde(transparent)]
struct SlotList {
    reports: Vec<SlotReport>,
    #[serde(skip)]
    snapshot: SlotSnapshot,
}

impl SlotList {
    /// Reports on the slots, with the age of the last published transaction if Redis answers in time.
    async fn new(config: &Config, earlier: &SlotSnapshot, snapshot: SlotSnapshot) -> Self {
        let mut reports = snapshot.reports(earlier, &config.slots());
        let checkpoint = async { Store::new(&config.redis)?.checkpoint().await };
        if let Ok(Ok(Some(checkpoint))) = tokio::time::timeout(REDIS_TIMEOUT, checkpoint).await
            && let Some(age) = checkpoint.age()
        {
            let of_main = |report: &&mut SlotReport| report.slot.name == config.replication.slot;
            reports
                .iter_mut()
                .filter(of_main)
                .for_each(|report| report.set_published_age(age));
        }
        Self { reports, snapshot }
    }
}

impl Render for SlotList {
    fn text(&self, out: &mut Text) {
        if self.reports.is_empty() {
            outln!(
                out,
                "there is no replication slot; an engine creates one at its start, as does `posduif slot create`"
            );
            return;
        }
        let header = [
            "SLOT",
            "ACTIVE",
            "WAL STATUS",
            "RETAINED",
            "LOST IN",
            "CONFIRMED",
            "LAG",
            "FAILOVER",
            "VERDICT",
        ];
        out.table(header, self.reports.iter().map(row));
        let rate = self.reports.first().map_or(0.0, |report| report.wal_bytes_per_second);
        let limit = self.snapshot.keep_bytes.map_or_else(
            || "max_slot_wal_keep_size is not set: a slot without a reader fills the disk".to_owned(),
            |bytes| format!("max_slot_wal_keep_size is {}", human::bytes(bytes)),
        );
        out.blank();
        outln!(
            out,
            "* configured slot. WAL ends at {} and grows at {}; {limit}.",
            self.snapshot.wal_position,
            human::rate(rate)
        );
        for advice in self.reports.iter().filter_map(advice) {
            out.line(&advice);
        }
    }
}

fn row(report: &SlotReport) -> [Cell; 9] {
    let slot = &report.slot;
    let name = if report.is_ours {
        format!("{} *", slot.name)
    } else {
        slot.name.clone()
    };
    let lag = match (report.lag_bytes, report.lag_seconds) {
        (Some(bytes), Some(seconds)) => format!("{}, {}", human::bytes(bytes), human::duration(seconds)),
        (Some(bytes), None) => human::bytes(bytes),
        (None, _) => NOTHING.to_owned(),
    };
    let wal_tone = match slot.wal_status.as_deref() {
        Some("lost" | "unreserved") => Tone::Bad,
        _ => Tone::Plain,
    };
    [
        Cell::from(name),
        Cell::from(if slot.is_active { "yes" } else { "no" }),
        Cell::from(or_nothing(slot.wal_status.as_ref())).toned(wal_tone),
        number_or_nothing(report.retained_bytes.map(human::bytes)),
        Cell::number(time_left(report.left)),
        number_or_nothing(slot.confirmed),
        Cell::number(lag),
        Cell::from(failover(slot)),
        Cell::from(report.verdict.as_str()).toned(tone(report.verdict)),
    ]
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::InUse | Verdict::Synced => Tone::Good,
        Verdict::NoEngine | Verdict::SafeToDrop | Verdict::AskOwner => Tone::Warning,
        Verdict::Lost => Tone::Bad,
    }
}

fn time_left(left: TimeLeft) -> String {
    match left {
        TimeLeft::Seconds(seconds) => human::duration(seconds),
        TimeLeft::Lost => "lost".to_owned(),
        TimeLeft::KeepsUp => "keeps up".to_owned(),
        TimeLeft::NoWal | TimeLeft::Unbounded => "never".to_owned(),
    }
}

fn failover(slot: &Slot) -> &'static str {
    match (slot.is_failover, slot.is_synced) {
        (_, Some(true)) => "synced",
        (Some(true), _) => "yes",
        (Some(false), _) => "no",
        (None, _) => NOTHING,
    }
}

/// What to do about a slot, if anything.
fn advice(report: &SlotReport) -> Option<String> {
    let name = &report.slot.name;
    let command = report.command.as_deref().unwrap_or_default();
    match report.verdict {
        Verdict::Synced => None,
        Verdict::InUse => lagging_reader(report),
        Verdict::NoEngine => Some(format!("{name}: no engine reads it; {}: run `{command}`", cost(report))),
        Verdict::SafeToDrop => Some(abandoned(report, command)),
        Verdict::AskOwner => Some(foreign(report, command)),
        Verdict::Lost => Some(lost(report, command)),
    }
}

/// How much WAL a slot without a reader retains, and until when.
fn cost(report: &SlotReport) -> String {
    let retained = report
        .retained_bytes
        .map_or_else(|| "WAL".to_owned(), |bytes| format!("{} of WAL", human::bytes(bytes)));
    let end = match report.left {
        TimeLeft::Seconds(seconds) => format!(
            " and is lost in {} at {}",
            human::duration(seconds),
            human::rate(report.wal_bytes_per_second)
        ),
        TimeLeft::Unbounded => ", and more until the disk is full".to_owned(),
        TimeLeft::NoWal => " (no WAL is being written)".to_owned(),
        TimeLeft::KeepsUp | TimeLeft::Lost => String::new(),
    };
    format!("it retains {retained}{end}")
}

fn lagging_reader(report: &SlotReport) -> Option<String> {
    let TimeLeft::Seconds(seconds) = report.left else {
        return None;
    };
    Some(format!(
        "{}: its reader falls behind, and the slot is lost in {} at {}; run `posduif status` for the cause",
        report.slot.name,
        human::duration(seconds),
        human::rate(report.wal_bytes_per_second)
    ))
}

fn abandoned(report: &SlotReport, command: &str) -> String {
    let slot = &report.slot;
    let since = slot
        .inactive_seconds
        .map_or_else(String::new, |seconds| format!(" for {}", human::duration(seconds)));
    // A reader that is down for a moment looks the same.
    let reader = match slot.plugin.as_deref() {
        Some("pgoutput") | None => "its reader is".to_owned(),
        Some(plugin) => format!("its reader, which decodes with {plugin}, is"),
    };
    format!(
        "{}: abandoned, no reader{since}; {}: when {reader} decommissioned, run `{command}`",
        slot.name,
        cost(report)
    )
}

fn foreign(report: &SlotReport, command: &str) -> String {
    let slot = &report.slot;
    let owner = match (slot.is_logical, slot.database.as_deref()) {
        (true, Some(database)) => format!("of the database {database}"),
        _ => "physical, of a standby".to_owned(),
    };
    format!(
        "{}: of another system ({owner}) and not in use; {}: ask its owner before you run `{command}`",
        slot.name,
        cost(report)
    )
}

fn lost(report: &SlotReport, command: &str) -> String {
    let name = &report.slot.name;
    let reason = report
        .slot
        .invalidation
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    if report.is_ours {
        format!(
            "{name}: lost{reason}; the next engine recreates it and starts a new epoch: run `posduif serve`, or \
             `{command}` to remove it"
        )
    } else {
        format!("{name}: lost{reason}: run `{command}`")
    }
}

/// One slot, with its last epochs.
#[derive(Serialize)]
struct SlotDetail {
    #[serde(flatten)]
    report: SlotReport,
    epochs: Vec<PastEpoch>,
}

async fn show(database: &Database, list: SlotList, name: &str) -> Result<SlotDetail> {
    let mut reports = list.reports.into_iter();
    let report = reports
        .find(|report| report.slot.name == name)
        .with_context(|| absent(name))?;
    Ok(SlotDetail {
        // Slots of other systems have no epochs, nor has any before the first `migrate up`.
        epochs: slot_report::epochs(database, name, EPOCHS).await.unwrap_or_default(),
        report,
    })
}

impl Render for SlotDetail {
    fn text(&self, out: &mut Text) {
        let (report, slot) = (&self.report, &self.report.slot);
        let kind = slot_report::slot_kind(slot.is_logical);
        let kind = match &slot.plugin {
            Some(plugin) => format!("{kind}, {plugin}"),
            None => kind.to_owned(),
        };
        let inactive = slot.inactive_seconds.filter(|_| !slot.is_active);
        out.facts([
            ("slot", Cell::from(slot.name.clone())),
            (
                "owner",
                Cell::from(if report.is_ours {
                    "this system"
                } else {
                    "another system"
                }),
            ),
            ("kind", kind.into()),
            ("database", or_nothing(slot.database.as_ref()).into()),
            ("reader", or_nothing(slot.reader.as_ref()).into()),
            ("inactive for", or_nothing(inactive.map(human::duration)).into()),
            ("WAL status", or_nothing(slot.wal_status.as_ref()).into()),
            ("retains from", or_nothing(slot.restart).into()),
            ("retains", or_nothing(report.retained_bytes.map(human::bytes)).into()),
            (
                "may still grow by",
                or_nothing(slot.safe_bytes.map(human::bytes)).into(),
            ),
            (
                "lost in",
                format!(
                    "{}, at {}",
                    time_left(report.left),
                    human::rate(report.wal_bytes_per_second)
                )
                .into(),
            ),
            ("confirmed", or_nothing(slot.confirmed).into()),
            ("lag", or_nothing(report.lag_bytes.map(human::bytes)).into()),
            (
                "lag in time",
                or_nothing(report.lag_seconds.map(human::duration)).into(),
            ),
            ("failover", Cell::from(failover(slot))),
            (
                "verdict",
                Cell::from(report.verdict.as_str()).toned(tone(report.verdict)),
            ),
        ]);
        if let Some(advice) = advice(report) {
            out.blank();
            out.line(&advice);
        }
        if !self.epochs.is_empty() {
            out.blank();
            let row = |epoch: &PastEpoch| {
                [
                    Cell::number(epoch.number),
                    Cell::from(epoch.started_at.to_string()),
                    Cell::number(epoch.start_lsn),
                    Cell::from(epoch.reason.clone()),
                ]
            };
            out.table(["EPOCH", "STARTED", "AT", "REASON"], self.epochs.iter().map(row));
        }
    }
}

#[derive(Serialize)]
struct Created {
    name: String,
    created: bool,
    confirmed_lsn: String,
}

async fn create(config: &Config, database: &Database, name: String) -> Result<Created> {
    let (lsn, created) = match slot::state(database, &name).await? {
        Some(state) => (state.confirmed, false),
        None => {
            // A slot older than its publication can never decode.
            publication::ensure(database, &config.replication.publication).await?;
            (slot::create(database, &name).await?, true)
        }
    };
    Ok(Created {
        name,
        created,
        confirmed_lsn: lsn.to_string(),
    })
}

impl Render for Created {
    fn text(&self, out: &mut Text) {
        let Self {
            name, confirmed_lsn, ..
        } = self;
        if self.created {
            outln!(out, "created the slot {name} at {confirmed_lsn}");
        } else {
            outln!(out, "the slot {name} exists already, confirmed at {confirmed_lsn}");
        }
    }
}

/// An inactive slot, to be advanced or dropped.
async fn find_inactive(config: &Config, database: &Database, name: &str) -> Result<(SlotSnapshot, SlotReport)> {
    let snapshot = SlotSnapshot::take(database).await?;
    let mut reports = snapshot.reports(&snapshot, &config.slots()).into_iter();
    let report = reports
        .find(|report| report.slot.name == name)
        .with_context(|| absent(name))?;
    slot_report::refuse_in_use(&report.slot)?;
    Ok((snapshot, report))
}

/// The consequence when the configured slot no longer stands at the end of the last published transaction.
const NEW_EPOCH: &str =
    "the next engine starts a new epoch: every device of every tenant takes a snapshot, other readers receive a reset";

#[derive(Serialize)]
struct Advanced {
    name: String,
    from_lsn: String,
    confirmed_lsn: String,
    new_epoch: bool,
}

async fn advance(
    config: &Config,
    database: &Database,
    name: String,
    to: Option<PgLsn>,
    confirm: Confirm,
) -> Result<Advanced> {
    let (snapshot, report) = find_inactive(config, database, &name).await?;
    let slot = &report.slot;
    let confirmed = slot.confirmed.or(slot.restart).unwrap_or(PgLsn::from(0));
    let to = to.unwrap_or(snapshot.wal_position);
    if to <= confirmed {
        bail!(
            "the slot {name} stands at {confirmed} already; it only moves forward, to at most {}",
            snapshot.wal_position
        );
    }
    let skipped = human::bytes(u64::from(to).saturating_sub(confirmed.into()));
    let consequence = if report.is_ours {
        format!(": no stream receives them, and {NEW_EPOCH}")
    } else {
        String::new()
    };
    confirm.check(|| {
        format!(
            "all changes in {skipped} of WAL, from {confirmed} to {to}, would be lost to the reader of \
             {name}{consequence}"
        )
    })?;
    let end = slot_report::advance(database, slot, to).await?;
    Ok(Advanced {
        name,
        from_lsn: confirmed.to_string(),
        confirmed_lsn: end.to_string(),
        new_epoch: report.is_ours,
    })
}

impl Render for Advanced {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "moved the slot {} from {} to {}",
            self.name,
            self.from_lsn,
            self.confirmed_lsn
        );
        if self.new_epoch {
            outln!(out, "{NEW_EPOCH}");
        }
    }
}

#[derive(Serialize)]
struct Dropped {
    name: String,
    dropped: bool,
    freed_wal_bytes: Option<u64>,
    new_epoch: bool,
}

async fn drop(config: &Config, database: &Database, name: String, confirm: Confirm) -> Result<Dropped> {
    let (_, report) = find_inactive(config, database, &name).await?;
    let consequence = match (report.is_ours, report.slot.is_logical) {
        (true, _) => NEW_EPOCH,
        (false, true) => "its reader, if it still exists, must start over",
        (false, false) => "a standby that uses it may miss WAL and need to be rebuilt",
    };
    confirm.check(|| {
        format!(
            "the slot {name} and its position would be lost, which frees {} of WAL; {consequence}",
            human::bytes(report.retained_bytes.unwrap_or_default())
        )
    })?;
    slot_report::drop(database, &report, &Actor::cli()).await?;
    Ok(Dropped {
        name,
        dropped: true,
        freed_wal_bytes: report.retained_bytes,
        new_epoch: report.is_ours,
    })
}

impl Render for Dropped {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "dropped the slot {}; Postgres removes {} of WAL with its next checkpoints",
            self.name,
            human::bytes(self.freed_wal_bytes.unwrap_or_default())
        );
        if self.new_epoch {
            outln!(out, "{NEW_EPOCH}");
        }
    }
}
