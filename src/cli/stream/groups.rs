//! `posduif stream groups`: other services that read a tenant's `changes`, and how far each has come.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::output::{self, outln};
use super::super::table::{Cell, Tone, facts, print_table};
use super::place::Place;
use super::{Bench, Tenants, dash, duration, group_name};
use crate::admin::groups::{self, Created, Group, Lag, Missed};
use crate::admin::streams;
use crate::contract::stream_name::Target;

/// Pending entries that `show` lists.
const PENDING_MAX: usize = 20;

/// A group whose lag is beyond this part of what `changes` keeps is about to lose entries.
const NEAR_PERCENT: u64 = 80;

/// Arguments of `posduif stream groups`.
#[derive(Debug, Args)]
pub(super) struct Groups {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show all groups, with what is pending and how far each is behind
    List {
        #[command(flatten)]
        tenants: Tenants,
    },
    /// Make a group on a tenant's `changes`
    Create {
        /// The tenant
        #[arg(long)]
        tenant: String,
        /// The group
        #[arg(value_parser = group_name)]
        name: String,
        /// Its first entry: `start`, `now`, a stream ID, a commit LSN, a time (RFC 3339) or how long ago (10m, 2h, 3d)
        #[arg(long, default_value = "now", value_name = "PLACE")]
        from: Place,
    },
    /// Show one group: its consumers and its oldest pending entries
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Drop a group, and with it what it knows of pending entries
    Drop {
        #[command(flatten)]
        which: Which,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
}

/// Which group.
#[derive(Debug, Args)]
struct Which {
    /// The tenant
    #[arg(long)]
    tenant: String,
    /// The group
    name: String,
}

impl Groups {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let default = Verb::List {
            tenants: Tenants::default(),
        };
        match self.verb.unwrap_or(default) {
            Verb::List { tenants } => list(bench, &tenants).await,
            Verb::Create { tenant, name, from } => create(bench, &tenant, &name, from).await,
            Verb::Show { which } => show(bench, &which.tenant, &which.name).await,
            Verb::Drop { which, yes } => drop(bench, &which.tenant, &which.name, yes).await,
        }
    }
}

/// What an operator should know of a group.
fn verdict(bench: &Bench<'_>, group: &Group) -> (&'static str, String) {
    let most = bench.config.streams.changes_entries_max;
    let (Lag::Entries(lag) | Lag::AtLeast(lag)) = group.lag;
    match group.missed {
        Missed::Entries(count) => (
            "missed",
            format!("missed {count} entries that were trimmed before it had them"),
        ),
        Missed::Some => (
            "missed",
            "missed entries that were trimmed before it had them".to_owned(),
        ),
        Missed::Nothing if lag > most / 100 * NEAR_PERCENT => (
            "near",
            format!("about to miss entries: `changes` keeps {most} (streams.changes_entries_max)"),
        ),
        Missed::Nothing => ("ok", "ok".to_owned()),
    }
}

fn lag_text(lag: Lag) -> String {
    match lag {
        Lag::Entries(lag) => lag.to_string(),
        Lag::AtLeast(lag) => format!("{lag} or more"),
    }
}

fn to_json(bench: &Bench<'_>, tenant: &str, group: &Group) -> Value {
    let (Lag::Entries(lag) | Lag::AtLeast(lag)) = group.lag;
    json!({
        "tenant": tenant,
        "group": group.name,
        "consumers": group.consumers,
        "pending": group.pending,
        "oldest_pending": group.oldest_pending.as_ref().map(|oldest| json!({
            "id": oldest.id.to_string(), "consumer": oldest.consumer, "idle_ms": oldest.idle_ms,
            "deliveries": oldest.deliveries,
        })),
        "last_delivered_id": group.last_delivered.to_string(),
        "lag": lag,
        "lag_is_exact": matches!(group.lag, Lag::Entries(_)),
        "state": verdict(bench, group).0,
        "missed": match group.missed {
            Missed::Nothing => json!(0),
            Missed::Entries(count) => json!(count),
            Missed::Some => Value::Null,
        },
    })
}

async fn list(bench: &Bench<'_>, tenants: &Tenants) -> Result<()> {
    let mut found = Vec::new();
    for tenant in bench.tenants(tenants).await? {
        let groups = groups::list(&bench.store, &tenant.name).await?.unwrap_or_default();
        found.extend(groups.into_iter().map(|group| (tenant.name.clone(), group)));
    }
    if bench.global.json {
        let groups: Vec<Value> = found
            .iter()
            .map(|(tenant, group)| to_json(bench, tenant, group))
            .collect();
        return output::json(&groups);
    }
    let rows = found.into_iter().map(|(tenant, group)| {
        let (state, verdict) = verdict(bench, &group);
        let tone = match state {
            "missed" => Tone::Bad,
            "near" => Tone::Warning,
            _ => Tone::Good,
        };
        let oldest = group.oldest_pending.as_ref();
        [
            Cell::from(tenant),
            group.name.clone().into(),
            Cell::number(group.consumers),
            Cell::number(group.pending),
            Cell::number(dash(oldest.map(|oldest| duration(oldest.idle_ms)))),
            Cell::number(lag_text(group.lag)),
            group.last_delivered.to_string().into(),
            Cell::from(verdict).toned(tone),
        ]
    });
    print_table(
        [
            "TENANT",
            "GROUP",
            "CONSUMERS",
            "PENDING",
            "OLDEST",
            "LAG",
            "LAST DELIVERED",
            "STATE",
        ],
        rows,
    )
}

async fn one(bench: &Bench<'_>, tenant: &str, name: &str) -> Result<Group> {
    bench.tenant(tenant).await?;
    let groups = groups::list(&bench.store, tenant).await?.unwrap_or_default();
    groups.into_iter().find(|group| group.name == name).with_context(|| {
        format!(
            "`changes` of tenant {tenant} has no group {name}; `posduif stream groups list --tenant {tenant}` shows all"
        )
    })
}

async fn create(bench: &Bench<'_>, tenant: &str, name: &str, from: Place) -> Result<()> {
    bench.tenant(tenant).await?;
    let target = Target::Changes(tenant.into());
    let after = from.before(bench, &target.key(bench.store.keys())).await?;
    match groups::create(&bench.store, tenant, name, after).await? {
        Created::New => {}
        Created::Exists => bail!(
            "`changes` of tenant {tenant} has a group {name} already; `posduif stream groups show --tenant {tenant} \
             {name}` shows it"
        ),
        Created::NoStream => bail!(
            "tenant {tenant} has no stream `changes` yet: it comes when an engine replicates; `posduif stream list \
             --tenant {tenant}` shows what is there"
        ),
    }
    let trimmed = streams::trim_point(&bench.store, &target).await?;
    let is_cut = trimmed.is_some_and(|first_kept| after.next() < first_kept);
    if bench.global.json {
        return output::json(&json!({
            "tenant": tenant, "group": name, "after": after.to_string(), "trimmed_below": trimmed.map(|id| id.to_string()),
        }));
    }
    outln!("made the group {name} on {}", target.key(bench.store.keys()))?;
    if is_cut && let Some(first_kept) = trimmed {
        outln!("it begins with the oldest entry that there is: those below {first_kept} were trimmed")?;
    }
    Ok(())
}

async fn show(bench: &Bench<'_>, tenant: &str, name: &str) -> Result<()> {
    let group = one(bench, tenant, name).await?;
    let consumers = groups::consumers(&bench.store, tenant, name).await?;
    let pending = groups::pending(&bench.store, tenant, name, PENDING_MAX).await?;
    if bench.global.json {
        let mut value = to_json(bench, tenant, &group);
        value["consumers"] = consumers
            .iter()
            .map(
                |consumer| json!({"consumer": consumer.name, "pending": consumer.pending, "idle_ms": consumer.idle_ms}),
            )
            .collect();
        value["pending_entries"] = pending
            .iter()
            .map(|entry| {
                json!({
                    "id": entry.id.to_string(), "consumer": entry.consumer, "idle_ms": entry.idle_ms,
                    "deliveries": entry.deliveries,
                })
            })
            .collect();
        return output::json(&value);
    }
    output::print(&facts([
        ("stream", bench.store.keys().changes(tenant)),
        ("group", group.name.clone()),
        ("last delivered", group.last_delivered.to_string()),
        ("lag", lag_text(group.lag)),
        ("pending", group.pending.to_string()),
        ("state", verdict(bench, &group).1),
        (
            "kept",
            format!(
                "{} entries (streams.changes_entries_max), whether or not this group has them",
                bench.config.streams.changes_entries_max
            ),
        ),
    ]))?;
    if !consumers.is_empty() {
        outln!("")?;
        print_table(
            ["CONSUMER", "PENDING", "ASKED LAST"],
            consumers.into_iter().map(|consumer| {
                [
                    consumer.name,
                    consumer.pending.to_string(),
                    format!("{} ago", duration(consumer.idle_ms)),
                ]
            }),
        )?;
    }
    if !pending.is_empty() {
        outln!("")?;
        print_table(
            ["PENDING ENTRY", "CONSUMER", "GIVEN", "TIMES"],
            pending.into_iter().map(|entry| {
                [
                    entry.id.to_string(),
                    entry.consumer,
                    format!("{} ago", duration(entry.idle_ms)),
                    entry.deliveries.to_string(),
                ]
            }),
        )?;
    }
    Ok(())
}

async fn drop(bench: &Bench<'_>, tenant: &str, name: &str, yes: bool) -> Result<()> {
    let group = one(bench, tenant, name).await?;
    if !yes {
        bail!(
            "the place of group {name}, {}, would be lost, with {} pending entries of {} consumers and {} entries that \
             none was given yet; `--yes` does it",
            group.last_delivered,
            group.pending,
            group.consumers,
            lag_text(group.lag)
        );
    }
    let is_dropped = groups::drop(&bench.store, tenant, name).await?;
    if !is_dropped {
        bail!("the group {name} was dropped by somebody else just now");
    }
    if bench.global.json {
        return output::json(&json!({
            "tenant": tenant, "group": name, "dropped": true, "pending": group.pending,
        }));
    }
    outln!("dropped the group {name} of tenant {tenant}")?;
    Ok(())
}
