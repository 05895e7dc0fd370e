//! `posduif slot`: what the replication slots of the server cost, and what to do about each.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use postgres_types::PgLsn;
use serde_json::json;

use super::output::{self, outln};
use super::table::{Cell, NOTHING, Tone, facts, table};
use super::watch::{Repetition, seconds};
use super::{Global, human};
use crate::admin::slot_report::{self, Finding, Left, Look, Slot as Found, Verdict};
use crate::config::Config;
use crate::postgres::{Database, publication};
use crate::redis::store::Store;
use crate::replication::slot;

/// Epochs that `show` tells of.
const EPOCHS: i64 = 5;

/// How long Redis may take to tell how old the last published transaction is; without it that is not known.
const REDIS_PATIENCE: Duration = Duration::from_secs(1);

/// Arguments of `posduif slot`.
#[derive(Debug, Args)]
pub(super) struct Slot {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show every slot of the server: what it keeps, how long it has left, what to do
    List {
        /// Seconds between the two looks that tell how fast WAL is written (0.1 to 3600)
        #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
        sample: Duration,
    },
    /// Show all of one slot, and the last epochs of ours
    Show {
        /// The slot; without it `replication.slot`
        name: Option<String>,
        /// Seconds between the two looks that tell how fast WAL is written (0.1 to 3600)
        #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
        sample: Duration,
    },
    /// Make the slot, the publication first; one that exists stays as it is
    Create {
        /// The slot; without it `replication.slot`
        #[arg(value_parser = new_name)]
        name: Option<String>,
    },
    /// Move a slot forward past changes, which its reader never gets
    Advance {
        /// The slot
        name: String,
        /// Where to, an LSN such as 16/B374D848; without it the end of the log
        #[arg(long, value_name = "LSN", value_parser = lsn)]
        to: Option<PgLsn>,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
    /// Drop a slot that nobody reads from; what it kept is lost
    Drop {
        /// The slot
        name: String,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
    /// Show every slot again and again
    Watch {
        #[command(flatten)]
        repetition: Repetition,
    },
}

impl Slot {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        let ours = config.replication.slot.clone();
        match self.verb {
            Verb::List { sample } => {
                let (earlier, look) = Look::twice(&database, sample).await?;
                let found = findings(&config, &earlier, &look).await;
                if global.json {
                    return output::json(&found);
                }
                output::print(&overview(&look, &found))
            }
            Verb::Show { name, sample } => {
                let name = name.unwrap_or(ours);
                let (earlier, look) = Look::twice(&database, sample).await?;
                let mut found = findings(&config, &earlier, &look).await;
                found.retain(|finding| finding.slot.name == name);
                let finding = found.pop().with_context(|| absent(&name))?;
                show(global, &database, &finding).await
            }
            Verb::Create { name } => create(global, &config, &database, &name.unwrap_or(ours)).await,
            Verb::Advance { name, to, yes } => advance(global, &config, &database, &name, to, yes).await,
            Verb::Drop { name, yes } => drop(global, &config, &database, &name, yes).await,
            Verb::Watch { repetition } => watch(global, &config, &database, repetition).await,
        }
    }
}

fn lsn(text: &str) -> Result<PgLsn, String> {
    text.parse()
        .map_err(|_| "not an LSN; one is two hexadecimal numbers, such as 16/B374D848".to_owned())
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
    format!("there is no slot {name}; `posduif slot list` shows all")
}

/// What is to be said of each slot. Redis knows how old the last published transaction is, if it answers.
async fn findings(config: &Config, earlier: &Look, look: &Look) -> Vec<Finding> {
    let mut found = look.since(earlier, &config.replication.slot);
    let checkpoint = async { Store::new(&config.redis)?.checkpoint().await };
    if let Ok(Ok(Some(checkpoint))) = tokio::time::timeout(REDIS_PATIENCE, checkpoint).await
        && let Some(age) = checkpoint.age()
    {
        found.iter_mut().for_each(|finding| finding.published_before(age));
    }
    found
}

async fn watch(global: &Global, config: &Config, database: &Database, repetition: Repetition) -> Result<()> {
    let mut earlier: Option<Look> = None;
    let look = async || {
        let look = Look::take(database).await?;
        // Nothing to compare with yet: no rate is better than a wrong one.
        let found = findings(config, earlier.as_ref().unwrap_or(&look), &look).await;
        let text = if global.json {
            format!("{}\n", serde_json::to_string(&found)?)
        } else {
            overview(&look, &found)
        };
        earlier = Some(look);
        Ok(text)
    };
    repetition.draw(look).await
}

/// The table, what bounds it, and what to do.
fn overview(look: &Look, found: &[Finding]) -> String {
    if found.is_empty() {
        return "there is no replication slot; an engine makes its own, or `posduif slot create`\n".to_owned();
    }
    let rows = found.iter().map(|finding| {
        let slot = &finding.slot;
        let name = if finding.is_ours {
            format!("{} *", slot.name)
        } else {
            slot.name.clone()
        };
        let lag = match (finding.lag_bytes, finding.lag_seconds) {
            (Some(bytes), Some(seconds)) => format!("{}, {}", human::bytes(bytes), human::duration(seconds)),
            (Some(bytes), None) => human::bytes(bytes),
            (None, _) => NOTHING.to_owned(),
        };
        [
            Cell::from(name),
            Cell::from(if slot.is_active { "yes" } else { "no" }),
            Cell::from(slot.wal_status.as_deref().unwrap_or(NOTHING)).toned(match slot.wal_status.as_deref() {
                Some("lost" | "unreserved") => Tone::Bad,
                _ => Tone::Plain,
            }),
            Cell::number(finding.retained_bytes.map_or_else(|| NOTHING.to_owned(), human::bytes)),
            Cell::number(left(finding.left)),
            Cell::number(slot.confirmed.map_or_else(|| NOTHING.to_owned(), |lsn| lsn.to_string())),
            Cell::number(lag),
            Cell::from(failover(slot)),
            Cell::from(finding.verdict.as_str()).toned(tone(finding.verdict)),
        ]
    });
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
    let mut text = table(header, rows);
    let rate = found.first().map_or(0.0, |finding| finding.wal_bytes_per_second);
    let bound = look.keep_bytes.map_or_else(
        || "max_slot_wal_keep_size is not set: a slot without a reader fills the disk".to_owned(),
        |bound| format!("max_slot_wal_keep_size is {}", human::bytes(bound)),
    );
    text.push_str(&format!(
        "\n* this system's. WAL ends at {} and is written at {}; {bound}.\n",
        look.wal_position,
        human::rate(rate)
    ));
    for advice in found.iter().filter_map(advice) {
        text.push_str(&format!("{advice}\n"));
    }
    text
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::InUse | Verdict::Synced => Tone::Good,
        Verdict::NoEngine | Verdict::SafeToDrop | Verdict::AskOwner => Tone::Warning,
        Verdict::Lost => Tone::Bad,
    }
}

fn left(left: Left) -> String {
    match left {
        Left::Seconds(seconds) => human::duration(seconds),
        Left::Lost => "lost".to_owned(),
        Left::KeepsUp => "keeps up".to_owned(),
        Left::NoWal | Left::Unbounded => "never".to_owned(),
    }
}

fn failover(slot: &Found) -> &'static str {
    match (slot.is_failover, slot.is_synced) {
        (_, Some(true)) => "synced",
        (Some(true), _) => "yes",
        (Some(false), _) => "no",
        (None, _) => NOTHING,
    }
}

/// What to do about a slot, where something is to be done.
fn advice(finding: &Finding) -> Option<String> {
    let slot = &finding.slot;
    let name = &slot.name;
    let kept = finding
        .retained_bytes
        .map_or_else(|| "WAL".to_owned(), |bytes| format!("{} of WAL", human::bytes(bytes)));
    let rate = human::rate(finding.wal_bytes_per_second);
    let end = match finding.left {
        Left::Seconds(seconds) => format!(" and is lost in {} at {rate}", human::duration(seconds)),
        Left::Unbounded => " and will until the disk is full".to_owned(),
        Left::NoWal => " (none was written just now)".to_owned(),
        Left::KeepsUp | Left::Lost => String::new(),
    };
    let command = finding.command().unwrap_or_default();
    Some(match finding.verdict {
        Verdict::InUse => match finding.left {
            Left::Seconds(seconds) => format!(
                "{name}: its reader falls behind, and the slot is lost in {} at {rate}; `posduif status` tells why",
                human::duration(seconds)
            ),
            _ => return None,
        },
        Verdict::Synced => return None,
        Verdict::NoEngine => format!("{name}: no engine reads it; it keeps {kept}{end}: run `{command}`"),
        Verdict::SafeToDrop => {
            let already = slot.inactive_seconds.map_or_else(String::new, |seconds| {
                format!(" for {} already", human::duration(seconds))
            });
            // A reader that only pauses looks the same.
            let sure = match slot.plugin.as_deref() {
                Some("pgoutput") | None => "when its reader is gone for good".to_owned(),
                Some(plugin) => format!("when its reader, which decodes with {plugin}, is gone for good"),
            };
            format!("{name}: abandoned, nobody reads it{already}; it keeps {kept}{end}: {sure}, run `{command}`")
        }
        Verdict::AskOwner => format!(
            "{name}: not ours ({}) and not in use; it keeps {kept}{end}: ask its owner before you run `{command}`",
            match (slot.is_logical, slot.database.as_deref()) {
                (true, Some(database)) => format!("of the database {database}"),
                _ => "physical, a standby's".to_owned(),
            }
        ),
        Verdict::Lost if finding.is_ours => format!(
            "{name}: lost{}; the next engine makes it anew and begins a new epoch: run `posduif serve`, or `{command}` to \
             be rid of it",
            why_lost(slot)
        ),
        Verdict::Lost => format!("{name}: lost{}: run `{command}`", why_lost(slot)),
    })
}

fn why_lost(slot: &Found) -> String {
    slot.invalidation
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"))
}

async fn show(global: &Global, database: &Database, finding: &Finding) -> Result<()> {
    let slot = &finding.slot;
    // Whose epochs are not ours has none; before the first `migrate up` nobody has any.
    let epochs = slot_report::epochs(database, &slot.name, EPOCHS)
        .await
        .unwrap_or_default();
    if global.json {
        let mut shown = serde_json::to_value(finding)?;
        shown["epochs"] = serde_json::to_value(&epochs)?;
        return output::json(&shown);
    }
    let text = |value: Option<String>| value.unwrap_or_else(|| NOTHING.to_owned());
    let kind = if slot.is_logical { "logical" } else { "physical" };
    let seconds = |value: Option<f64>| text(value.map(human::duration));
    let mut shown = facts([
        ("slot", Cell::from(slot.name.clone())),
        (
            "whose",
            Cell::from(if finding.is_ours { "this system's" } else { "not ours" }),
        ),
        (
            "kind",
            text(
                slot.plugin
                    .as_ref()
                    .map(|plugin| format!("{kind}, {plugin}"))
                    .or(Some(kind.into())),
            )
            .into(),
        ),
        ("database", text(slot.database.clone()).into()),
        ("read by", text(slot.reader.as_ref().map(ToString::to_string)).into()),
        (
            "not read for",
            seconds(slot.inactive_seconds.filter(|_| !slot.is_active)).into(),
        ),
        ("WAL status", text(slot.wal_status.clone()).into()),
        ("keeps from", text(slot.restart.map(|lsn| lsn.to_string())).into()),
        ("keeps", text(finding.retained_bytes.map(human::bytes)).into()),
        ("may still grow by", text(slot.safe_bytes.map(human::bytes)).into()),
        (
            "lost in",
            format!(
                "{}, at {}",
                left(finding.left),
                human::rate(finding.wal_bytes_per_second)
            )
            .into(),
        ),
        ("confirmed", text(slot.confirmed.map(|lsn| lsn.to_string())).into()),
        ("lag", text(finding.lag_bytes.map(human::bytes)).into()),
        ("lag in time", seconds(finding.lag_seconds).into()),
        ("failover", Cell::from(failover(slot))),
        (
            "verdict",
            Cell::from(finding.verdict.as_str()).toned(tone(finding.verdict)),
        ),
    ]);
    if let Some(advice) = advice(finding) {
        shown.push_str(&format!("\n{advice}\n"));
    }
    if !epochs.is_empty() {
        let rows = epochs.into_iter().map(|epoch| {
            [
                Cell::number(epoch.number),
                Cell::from(epoch.started_at.to_string()),
                Cell::number(epoch.start_lsn),
                Cell::from(epoch.reason),
            ]
        });
        shown.push_str(&format!("\n{}", table(["EPOCH", "BEGAN", "AT", "REASON"], rows)));
    }
    output::print(&shown)
}

async fn create(global: &Global, config: &Config, database: &Database, name: &str) -> Result<()> {
    let (lsn, created) = match slot::state(database, name).await? {
        Some(state) => (state.confirmed, false),
        None => {
            // A slot that stands before its publication can never decode.
            publication::ensure(database, &config.replication.publication).await?;
            (slot::create(database, name).await?, true)
        }
    };
    if global.json {
        return outln!(
            "{}",
            json!({"name": name, "created": created, "confirmed_lsn": lsn.to_string()})
        );
    }
    if created {
        outln!("made the slot {name} at {lsn}")
    } else {
        outln!("the slot {name} exists already, confirmed at {lsn}")
    }
}

/// The slot, for one of the verbs that take something away.
async fn find(config: &Config, database: &Database, name: &str) -> Result<(Look, Finding)> {
    let look = Look::take(database).await?;
    let mut found = look.since(&look, &config.replication.slot);
    found.retain(|finding| finding.slot.name == name);
    let finding = found.pop().with_context(|| absent(name))?;
    slot_report::refuse_in_use(&finding.slot)?;
    Ok((look, finding))
}

/// What follows when our slot no longer stands where the last published transaction ends.
const NEW_EPOCH: &str = "the next engine begins a new epoch: every device of every tenant takes a snapshot, other \
                         readers get a reset";

async fn advance(
    global: &Global,
    config: &Config,
    database: &Database,
    name: &str,
    to: Option<PgLsn>,
    yes: bool,
) -> Result<()> {
    let (look, finding) = find(config, database, name).await?;
    let confirmed = finding
        .slot
        .confirmed
        .or(finding.slot.restart)
        .unwrap_or(PgLsn::from(0));
    let to = to.unwrap_or(look.wal_position);
    if to <= confirmed {
        bail!(
            "the slot {name} stands at {confirmed} already; it only moves forward, to at most {}",
            look.wal_position
        );
    }
    if !yes {
        let skipped = human::bytes(u64::from(to).saturating_sub(confirmed.into()));
        let lost =
            format!("all changes in {skipped} of WAL, from {confirmed} to {to}, would be lost to the reader of {name}");
        if finding.is_ours {
            bail!("{lost}: no stream gets them, and {NEW_EPOCH}; `--yes` does it");
        }
        bail!("{lost}; `--yes` does it");
    }
    let end = slot_report::advance(database, &finding.slot, to).await?;
    if global.json {
        return outln!(
            "{}",
            json!({
                "name": name, "from_lsn": confirmed.to_string(), "confirmed_lsn": end.to_string(),
                "new_epoch": finding.is_ours,
            })
        );
    }
    outln!("moved the slot {name} from {confirmed} to {end}")?;
    if finding.is_ours {
        outln!("{NEW_EPOCH}")?;
    }
    Ok(())
}

async fn drop(global: &Global, config: &Config, database: &Database, name: &str, yes: bool) -> Result<()> {
    let (_, finding) = find(config, database, name).await?;
    let kept = human::bytes(finding.retained_bytes.unwrap_or_default());
    if !yes {
        let consequence = match (finding.is_ours, finding.slot.is_logical) {
            (true, _) => NEW_EPOCH,
            (false, true) => "its reader, if there still is one, has to begin anew",
            (false, false) => "a standby that uses it may miss WAL and have to be made anew",
        };
        bail!(
            "the slot {name} and its place in the log would be lost, which frees {kept} of WAL; {consequence}; `--yes` does it"
        );
    }
    slot::drop(database, name).await?;
    if global.json {
        return outln!(
            "{}",
            json!({"name": name, "dropped": true, "freed_wal_bytes": finding.retained_bytes, "new_epoch": finding.is_ours})
        );
    }
    outln!("dropped the slot {name}; Postgres removes {kept} of WAL with its next checkpoints")?;
    if finding.is_ours {
        outln!("{NEW_EPOCH}")?;
    }
    Ok(())
}
