//! `posduif stream quarantine`: what could not be routed or stored, and why.

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use super::super::output::{self, say};
use super::super::table::print_table;
use super::{Bench, dash, printable, seconds};
use crate::change::StreamId;
use crate::deliver::quarantine::{self, Aside};
use crate::deliver::streams::{rfc3339, time_of_micros};

/// Arguments of `posduif stream quarantine`.
#[derive(Debug, Args)]
pub(super) struct Quarantine {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the newest of each tenant's quarantine
    List {
        /// Only this tenant's; may be given several times
        #[arg(long)]
        tenant: Vec<String>,
        /// At most so many of each tenant
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show one change with all that is known of it
    Show {
        /// The tenant
        #[arg(long)]
        tenant: String,
        /// Its ID, as `list` shows it
        id: StreamId,
    },
    /// Forget changes that are settled; nothing tries them again
    #[command(group(ArgGroup::new("which").required(true).args(["ids", "all"])))]
    Drop {
        /// The tenant
        #[arg(long)]
        tenant: String,
        /// Their IDs, as `list` shows them
        ids: Vec<StreamId>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
}

impl Quarantine {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let default = Verb::List {
            tenant: Vec::new(),
            limit: 20,
        };
        match self.verb.unwrap_or(default) {
            Verb::List { tenant, limit } => list(bench, &tenant, limit).await,
            Verb::Show { tenant, id } => show(bench, &tenant, id).await,
            Verb::Drop { tenant, ids, all, yes } => {
                bench.tenant(&tenant).await?;
                if all {
                    drop_all(bench, &tenant, yes).await
                } else {
                    drop_some(bench, &tenant, &ids, yes).await
                }
            }
        }
    }
}

fn table(aside: &Aside) -> Option<&String> {
    aside.fields.get("table").filter(|table| !table.is_empty())
}

/// When it was put aside.
fn time(aside: &Aside) -> Option<chrono::DateTime<chrono::Utc>> {
    i64::try_from(aside.id.ms)
        .ok()
        .and_then(|ms| time_of_micros(ms.checked_mul(1000)?))
}

fn to_json(tenant: &str, aside: &Aside) -> Value {
    json!({
        "tenant": tenant,
        "id": aside.id.to_string(),
        "time": time(aside).map(rfc3339),
        "position": aside.position.map(|position| position.to_string()),
        "table": table(aside),
        "cause": aside.cause,
    })
}

async fn list(bench: &Bench<'_>, named: &[String], limit: u32) -> Result<()> {
    let mut found = Vec::new();
    let mut more = Vec::new();
    for tenant in bench.tenants(named).await? {
        let newest = quarantine::newest(&bench.store, &tenant.name, limit as usize).await?;
        let count = quarantine::count(&bench.store, &tenant.name).await?;
        if let Some(rest) = count.checked_sub(newest.len() as u64).filter(|rest| *rest > 0) {
            more.push((tenant.name.clone(), rest));
        }
        found.extend(newest.into_iter().map(|aside| (tenant.name.clone(), aside)));
    }
    if bench.global.json {
        let asides: Vec<Value> = found.iter().map(|(tenant, aside)| to_json(tenant, aside)).collect();
        return output::json(&asides);
    }
    if found.is_empty() {
        say!("nothing is in quarantine")?;
        return Ok(());
    }
    print_table(
        ["TENANT", "ID", "TIME", "POSITION", "TABLE", "CAUSE"],
        found.into_iter().map(|(tenant, aside)| {
            [
                tenant,
                aside.id.to_string(),
                time(&aside).map_or_else(|| "-".to_owned(), seconds),
                dash(aside.position),
                printable(&dash(table(&aside))),
                printable(&aside.cause),
            ]
        }),
    )?;
    for (tenant, rest) in more {
        say!("tenant {tenant} has {rest} older ones; --limit shows more")?;
    }
    Ok(())
}

async fn one(bench: &Bench<'_>, tenant: &str, id: StreamId) -> Result<Aside> {
    quarantine::one(&bench.store, tenant, id).await?.with_context(|| {
        format!(
            "nothing with the ID {id} is in the quarantine of tenant {tenant}; `posduif stream quarantine` lists it"
        )
    })
}

async fn show(bench: &Bench<'_>, tenant: &str, id: StreamId) -> Result<()> {
    bench.tenant(tenant).await?;
    let aside = one(bench, tenant, id).await?;
    if bench.global.json {
        let mut value = to_json(tenant, &aside);
        for (name, text) in &aside.fields {
            let is_json = matches!(name.as_str(), "row" | "old" | "unchanged");
            let parsed = is_json.then(|| serde_json::from_str(text).ok()).flatten();
            value[name] = parsed.unwrap_or_else(|| Value::String(text.clone()));
        }
        return output::json(&value);
    }
    let head = [
        ("id", aside.id.to_string()),
        ("put aside", time(&aside).map_or_else(|| "-".to_owned(), rfc3339)),
        ("position", dash(aside.position)),
        ("cause", aside.cause.clone()),
    ];
    let fields = aside.fields.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in head.into_iter().chain(fields) {
        say!("{name:<12} {}", printable(&value))?;
    }
    Ok(())
}

async fn drop_some(bench: &Bench<'_>, tenant: &str, ids: &[StreamId], yes: bool) -> Result<()> {
    for id in ids {
        one(bench, tenant, *id).await?;
    }
    if !yes {
        bail!(
            "what is known of {} changes would be lost, and nothing tries them again; `--yes` does it",
            ids.len()
        );
    }
    let count = quarantine::forget(&bench.store, tenant, ids).await?;
    report(bench, tenant, count)
}

async fn drop_all(bench: &Bench<'_>, tenant: &str, yes: bool) -> Result<()> {
    let count = quarantine::count(&bench.store, tenant).await?;
    let newest = quarantine::newest(&bench.store, tenant, 1).await?;
    let Some(newest) = newest.first() else {
        return report(bench, tenant, 0);
    };
    if !yes {
        bail!("what is known of {count} changes would be lost, and nothing tries them again; `--yes` does it");
    }
    let count = quarantine::forget_up_to(&bench.store, tenant, newest.id).await?;
    report(bench, tenant, count)
}

fn report(bench: &Bench<'_>, tenant: &str, count: u64) -> Result<()> {
    if bench.global.json {
        return output::json(&json!({"tenant": tenant, "dropped": count}));
    }
    say!("dropped {count} changes from the quarantine of tenant {tenant}")?;
    Ok(())
}
