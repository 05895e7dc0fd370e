//! `posduif audit`: the audit log.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::Global;
use super::output::{self, OutputClosed, Render, Text, outln};
use super::table::or_nothing;
use crate::config::Config;
use crate::postgres::Database;
use crate::postgres::audit::{self, ACTIONS, Entry, Filter};

/// How many ids below the newest `tail` looks for entries of transactions that commit late, and the most entries of one
/// query.
const LOOK_BACK: i64 = 1000;

/// The context of an error of a query.
const UNREADABLE: &str = "cannot read the audit log; `posduif migrate up` creates its table";

#[derive(Debug, Args)]
pub(super) struct Audit {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List entries, newest first
    List {
        #[command(flatten)]
        selection: Selection,
        /// Only entries at or after this time (RFC 3339)
        #[arg(long, value_name = "TIME")]
        since: Option<DateTime<Utc>>,
        /// Maximum number of entries
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Follow new entries until Ctrl-C; with --json one object a line
    Tail {
        #[command(flatten)]
        selection: Selection,
        /// Start with the last N entries
        #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
        lines: u32,
        /// Seconds between two queries (0.1 to 3600)
        #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = super::watch::seconds)]
        interval: Duration,
        /// Stop after N entries
        #[arg(long, alias = "count", short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },
}

#[derive(Debug, Args)]
struct Selection {
    /// Only entries of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only acts of this actor: the id of a user, `cli`, `console` or `anonymous`
    #[arg(long)]
    actor: Option<String>,
    /// Only entries of this action
    #[arg(long, value_parser = PossibleValuesParser::new(ACTIONS))]
    action: Option<String>,
}

impl From<Selection> for Filter {
    fn from(selection: Selection) -> Self {
        Self {
            tenant: selection.tenant,
            actor: selection.actor,
            action: selection.action,
            ..Self::default()
        }
    }
}

impl Audit {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::List {
                selection,
                since,
                limit,
            } => {
                let filter = Filter {
                    since,
                    ..selection.into()
                };
                output::print(global, &list(&config, &filter, limit).await?)
            }
            Verb::Tail {
                selection,
                lines,
                interval,
                limit,
            } => {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut terminate = signal(SignalKind::terminate())?;
                let tail = Tail {
                    database: Database::connect(&config.postgres).await?,
                    filter: selection.into(),
                    seen: BTreeSet::new(),
                    left: limit,
                };
                tokio::select! {
                    ended = tail.run(global, lines as usize, interval) => ended,
                    _ = interrupt.recv() => Ok(()),
                    _ = terminate.recv() => Ok(()),
                }
            }
        }
    }
}

async fn list(config: &Config, filter: &Filter, limit: u32) -> Result<Entries> {
    let database = Database::connect(&config.postgres).await?;
    let found = audit::list(&database, filter, limit.into()).await;
    Ok(Entries(found.context(UNREADABLE)?))
}

/// Follows the log.
struct Tail {
    database: Database,
    filter: Filter,
    /// The ids of printed entries behind `filter.after`.
    seen: BTreeSet<i64>,
    left: Option<u64>,
}

impl Tail {
    /// Prints the last entries, then new ones. A query that fails later is printed; the next one may succeed.
    async fn run(mut self, global: &Global, lines: usize, period: Duration) -> Result<()> {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let entries = self.next().await?;
        if self.print(global, &entries[entries.len().saturating_sub(lines)..])? {
            return Ok(());
        }
        loop {
            ticks.tick().await;
            match self.next().await {
                Ok(entries) if self.print(global, &entries)? => return Ok(()),
                Ok(_) => {}
                Err(error) => output::warn(format_args!("{error:#}")),
            }
        }
    }

    /// The entries that were not seen before, oldest first.
    async fn next(&mut self) -> Result<Vec<Entry>> {
        let found = audit::list(&self.database, &self.filter, LOOK_BACK).await;
        let mut entries = found.context(UNREADABLE)?;
        entries.reverse();
        entries.retain(|entry| self.seen.insert(entry.id));
        if let Some(&newest) = self.seen.last() {
            self.filter.after = self.filter.after.max(newest - LOOK_BACK);
            self.seen = self.seen.split_off(&self.filter.after);
        }
        Ok(entries)
    }

    /// Prints entries. Returns whether there is nothing left to do.
    fn print(&mut self, global: &Global, entries: &[Entry]) -> Result<bool> {
        for entry in entries {
            match output::write(&output::frame(global, entry)?) {
                Err(error) if error.is::<OutputClosed>() => return Ok(true),
                written => written?,
            }
            if let Some(left) = &mut self.left {
                *left -= 1;
                if *left == 0 {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Entries(Vec<Entry>);

/// The detail of an entry as text; empty without one.
fn detail(entry: &Entry) -> String {
    match entry.detail.as_object() {
        Some(object) if object.is_empty() => String::new(),
        _ => entry.detail.to_string(),
    }
}

impl Render for Entries {
    fn text(&self, out: &mut Text) {
        let row = |entry: &Entry| {
            [
                entry.at.to_string(),
                or_nothing(entry.tenant.as_ref()),
                entry.actor.clone(),
                entry.action.clone(),
                or_nothing(entry.subject.as_ref()),
                or_nothing(entry.address),
                detail(entry),
            ]
        };
        let header = ["TIME", "TENANT", "ACTOR", "ACTION", "SUBJECT", "ADDRESS", "DETAIL"];
        out.table(header, self.0.iter().map(row));
    }
}

impl Render for Entry {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "{}  {}  {}  {}  {}  {}  {}",
            self.at,
            or_nothing(self.tenant.as_ref()),
            self.actor,
            self.action,
            or_nothing(self.subject.as_ref()),
            or_nothing(self.address),
            detail(self)
        );
    }
}
