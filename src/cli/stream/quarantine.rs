//! `posduif stream quarantine`: what could not be routed or stored, and why.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use super::super::output::{self, outln, printable};
use super::super::table::print_table;
use super::{Bench, Tenants, dash, seconds};
use crate::admin::quarantine::{self, Remedy};
use crate::admin::streams::{rfc3339, time_of_micros};
use crate::contract::quarantine::{QuarantineEntry, QuarantineKind};
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::tenants;
use crate::redis::store::Error;

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
        #[command(flatten)]
        tenants: Tenants,
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
    /// Deliver changes whose cause is mended, and forget them
    Retry {
        #[command(flatten)]
        which: Which,
        /// Begin the tenant's streams anew, which settles also what a row alone does not: each device takes a snapshot
        #[arg(long)]
        resync: bool,
        /// Do it: without this, a resync only says what would happen
        #[arg(long)]
        yes: bool,
    },
    /// Forget changes that are settled; nothing tries them again
    Drop {
        #[command(flatten)]
        which: Which,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
}

/// Which changes.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "all"])))]
struct Which {
    /// The tenant
    #[arg(long)]
    tenant: String,
    /// Their IDs, as `list` shows them
    ids: Vec<StreamId>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Quarantine {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let default = Verb::List {
            tenants: Tenants::default(),
            limit: 20,
        };
        match self.verb.unwrap_or(default) {
            Verb::List { tenants, limit } => list(bench, &tenants, limit).await,
            Verb::Show { tenant, id } => show(bench, &tenant, id).await,
            Verb::Retry { which, resync, yes } => {
                let tenant = bench.tenant(&which.tenant).await?;
                let asides = remedies(bench, &which).await?;
                if resync {
                    retry_by_resync(bench, &tenant, asides, yes).await
                } else {
                    retry(bench, &tenant, asides).await
                }
            }
            Verb::Drop { which, yes } => {
                bench.tenant(&which.tenant).await?;
                if which.all {
                    drop_all(bench, &which.tenant, yes).await
                } else {
                    drop_some(bench, &which.tenant, &which.ids, yes).await
                }
            }
        }
    }
}

fn table(aside: &QuarantineEntry) -> Option<&str> {
    aside.table().filter(|table| !table.is_empty())
}

/// When it was put aside.
fn time(aside: &QuarantineEntry) -> Option<chrono::DateTime<chrono::Utc>> {
    i64::try_from(aside.id.ms)
        .ok()
        .and_then(|ms| time_of_micros(ms.checked_mul(1000)?))
}

fn to_json(tenant: &str, aside: &QuarantineEntry) -> Value {
    json!({
        "tenant": tenant,
        "id": aside.id.to_string(),
        "time": time(aside).map(rfc3339),
        "position": aside.position.map(|position| position.to_string()),
        "table": table(aside),
        "kind": aside.kind.map(QuarantineKind::as_str),
        "cause": aside.cause,
        "settled_by": remedy_word(&quarantine::remedy(aside)),
    })
}

async fn list(bench: &Bench<'_>, tenants: &Tenants, limit: u32) -> Result<()> {
    let mut found = Vec::new();
    let (mut more, mut wrong) = (Vec::new(), Vec::new());
    for tenant in bench.tenants(tenants).await? {
        let newest = match quarantine::newest(&bench.store, &tenant.name, limit as usize).await {
            Ok(newest) => newest,
            // Those of other tenants are shown all the same.
            Err(error @ Error::WrongType { .. }) => {
                wrong.push(format!("tenant {}: {error}", tenant.name));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let count = quarantine::count(&bench.store, &tenant.name).await?;
        if let Some(rest) = count.checked_sub(newest.len() as u64).filter(|rest| *rest > 0) {
            more.push((tenant.name.clone(), rest));
        }
        found.extend(newest.into_iter().map(|aside| (tenant.name.clone(), aside)));
    }
    if bench.global.json {
        let asides: Vec<Value> = found.iter().map(|(tenant, aside)| to_json(tenant, aside)).collect();
        output::json(&asides)?;
    } else if !found.is_empty() {
        print(found)?;
        for (tenant, rest) in more {
            outln!("tenant {tenant} has {rest} older ones; --limit shows more")?;
        }
    } else if wrong.is_empty() {
        outln!("nothing is in quarantine")?;
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("; "))
}

fn print(found: Vec<(String, QuarantineEntry)>) -> Result<()> {
    print_table(
        ["TENANT", "ID", "TIME", "POSITION", "TABLE", "CAUSE"],
        found.into_iter().map(|(tenant, aside)| {
            [
                tenant,
                aside.id.to_string(),
                time(&aside).map_or_else(|| "-".to_owned(), seconds),
                dash(aside.position),
                dash(table(&aside)),
                aside.cause.clone(),
            ]
        }),
    )
}

async fn one(bench: &Bench<'_>, tenant: &str, id: StreamId) -> Result<QuarantineEntry> {
    quarantine::one(&bench.store, tenant, id).await?.with_context(|| {
        format!(
            "nothing with the ID {id} is in the quarantine of tenant {tenant}; `posduif stream quarantine list --tenant {tenant}` \
             lists it"
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
        ("settled by", remedy_text(&quarantine::remedy(&aside))),
    ];
    let fields = aside.fields.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in head.into_iter().chain(fields) {
        outln!("{name:<12} {}", printable(&value))?;
    }
    Ok(())
}

fn remedy_word(remedy: &Remedy) -> &'static str {
    match remedy {
        Remedy::Row { .. } => "retry",
        Remedy::Resync(_) => "resync",
        Remedy::Sender => "sender",
    }
}

fn remedy_text(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Row { .. } => "`retry`, which writes the row once more, when its cause is mended".to_owned(),
        Remedy::Resync(reason) => format!("`retry --resync` only: {reason}"),
        Remedy::Sender => "who sent the message: send it anew as it should be, and drop this".to_owned(),
    }
}

/// What settles each of these changes.
async fn remedies(bench: &Bench<'_>, which: &Which) -> Result<Vec<(StreamId, Remedy)>> {
    let mut remedies = Vec::with_capacity(which.ids.len());
    for id in &which.ids {
        remedies.push((*id, quarantine::remedy(&one(bench, &which.tenant, *id).await?)));
    }
    if which.all {
        let see = |aside: QuarantineEntry| remedies.push((aside.id, quarantine::remedy(&aside)));
        quarantine::each(&bench.store, &which.tenant, StreamId::ZERO, see).await?;
    }
    Ok(remedies)
}

/// Writes the rows once more, so that the log carries them as they are now to all who see them now.
async fn retry(bench: &Bench<'_>, tenant: &Tenant, asides: Vec<(StreamId, Remedy)>) -> Result<()> {
    let newest = quarantine::newest(&bench.store, &tenant.name, 1).await?;
    let newest = newest.first().map_or(StreamId::ZERO, |newest| newest.id);
    let mut left: BTreeMap<StreamId, String> = BTreeMap::new();
    let mut rows: BTreeMap<(String, String), Vec<StreamId>> = BTreeMap::new();
    for (id, remedy) in asides {
        match remedy {
            Remedy::Row { table, id: row } => rows.entry((table, row)).or_default().push(id),
            other => {
                left.insert(id, remedy_text(&other));
            }
        }
    }
    let mut last = None;
    for ((table, row), ids) in &rows {
        match tenants::touch_rows(&bench.database, tenant, table, row).await {
            Ok(Some(place)) => last = Some(place),
            // What nobody was told of, nobody need forget.
            Ok(None) => {}
            Err(error) => left.extend(ids.iter().map(|id| (*id, format!("{error:#}")))),
        }
    }
    if let Some(place) = last {
        bench.done(place, |_| {}).await?;
    }
    // One that was put aside again says what the first one says.
    let (mut again, mut causes) = (Vec::new(), BTreeMap::new());
    let see = |aside: QuarantineEntry| {
        if let Some(row) = quarantine::row(&aside).filter(|row| rows.contains_key(row)) {
            again.push(aside.id);
            causes.insert(row, aside.cause);
        }
    };
    quarantine::each(&bench.store, &tenant.name, newest, see).await?;
    for (row, cause) in causes {
        let ids = rows.get(&row).into_iter().flatten();
        left.extend(ids.map(|id| (*id, format!("its cause is not mended: {cause}"))));
    }
    let done = rows.into_values().flatten().filter(|id| !left.contains_key(id));
    let done: Vec<StreamId> = done.collect();
    quarantine::forget(&bench.store, &tenant.name, &[again, done.clone()].concat()).await?;
    report_retry(bench, tenant, done.len(), left)
}

/// Begins the tenant's streams anew, which settles all but messages.
async fn retry_by_resync(bench: &Bench<'_>, tenant: &Tenant, asides: Vec<(StreamId, Remedy)>, yes: bool) -> Result<()> {
    let (mut settled, mut left) = (Vec::new(), BTreeMap::new());
    for (id, remedy) in asides {
        match remedy {
            Remedy::Row { .. } | Remedy::Resync(_) => settled.push(id),
            Remedy::Sender => {
                left.insert(id, remedy_text(&remedy));
            }
        }
    }
    if !yes {
        let devices = tenants::count_devices(&bench.database, &tenant.name).await?;
        bail!(
            "the {devices} devices of tenant {} would each take a snapshot, which settles {} changes; `--yes` does it",
            tenant.name,
            settled.len()
        );
    }
    if !settled.is_empty() {
        let place = tenants::resync(&bench.database, &tenant.name)
            .await?
            .with_context(|| format!("the tenant {} was dropped by somebody else just now", tenant.name))?;
        bench.done(place, |_| {}).await?;
        quarantine::forget(&bench.store, &tenant.name, &settled).await?;
    }
    report_retry(bench, tenant, settled.len(), left)
}

fn report_retry(bench: &Bench<'_>, tenant: &Tenant, settled: usize, left: BTreeMap<StreamId, String>) -> Result<()> {
    if bench.global.json {
        let left: Vec<Value> = left
            .iter()
            .map(|(id, reason)| json!({"id": id.to_string(), "reason": reason}))
            .collect();
        output::json(&json!({"tenant": tenant.name, "settled": settled, "left": left}))?;
    } else {
        outln!("settled {settled} changes of tenant {}", tenant.name)?;
        for (id, reason) in &left {
            outln!("left {id}: {reason}")?;
        }
    }
    if !left.is_empty() {
        bail!(
            "{} changes are left in the quarantine of tenant {}",
            left.len(),
            tenant.name
        );
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
    outln!("dropped {count} changes from the quarantine of tenant {tenant}")?;
    Ok(())
}
