//! `posduif stream quarantine`: changes that could not be routed or stored, and why.

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::Confirm;
use super::super::output::{self, Render, Text, outln};
use super::super::table::or_nothing;
use super::{Context, PUBLISH_TIMEOUT, Tenants, seconds};
use crate::admin::quarantine::{self, Remedy, Report as Entry, time};
use crate::admin::quarantine_retry::{Left, Retried, Retry};
use crate::contract::quarantine::QuarantineEntry;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::audit::Actor;
use crate::postgres::tenants;
use crate::redis::store::Error;

/// Default of `list --limit`.
const LIMIT: u32 = 20;

#[derive(Debug, Args)]
pub(super) struct Quarantine {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the newest quarantined changes of each tenant
    List {
        #[command(flatten)]
        tenants: Tenants,
        /// Maximum per tenant
        #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show one quarantined change with all its fields
    Show {
        /// The tenant
        #[arg(long)]
        tenant: String,
        /// The ID, as `list` shows it
        id: StreamId,
    },
    /// Deliver changes whose cause is fixed, and remove them from quarantine
    Retry {
        #[command(flatten)]
        selection: Selection,
        /// Recreate the streams of the tenant, which also settles what a row alone does not: each device takes a snapshot
        #[arg(long)]
        resync: bool,
        /// Apply `--resync`. Without it, print what would happen (dry run)
        #[arg(long)]
        yes: bool,
    },
    /// Remove changes from quarantine; they are never retried
    Drop {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Quarantined changes of one tenant.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "all"])))]
struct Selection {
    /// The tenant
    #[arg(long)]
    tenant: String,
    /// The IDs, as `list` shows them
    ids: Vec<StreamId>,
    /// All of the tenant
    #[arg(long)]
    all: bool,
}

impl Quarantine {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let default = Verb::List {
            tenants: Tenants::default(),
            limit: LIMIT,
        };
        match self.verb.unwrap_or(default) {
            Verb::List { tenants, limit } => list(context, &tenants, limit).await,
            Verb::Show { tenant, id } => output::print(context.global, &show(context, &tenant, id).await?),
            Verb::Retry { selection, resync, yes } => {
                let tenant = context.tenant(&selection.tenant).await?;
                let remedies = remedies(context, &selection).await?;
                let retried = if resync {
                    retry_by_resync(context, &tenant, remedies, Confirm { yes }).await?
                } else {
                    retry(context, &tenant).by_rows(remedies, &Actor::cli()).await?
                };
                output::print(context.global, &retried)?;
                check(&retried)
            }
            Verb::Drop { selection, confirm } => {
                output::print(context.global, &drop(context, selection, confirm).await?)
            }
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct EntryList {
    entries: Vec<Entry>,
    /// Tenants with older entries that are not listed, and their number.
    #[serde(skip)]
    more: Vec<(String, u64)>,
    /// Tenants whose quarantine has the wrong type.
    #[serde(skip)]
    errors: Vec<String>,
}

async fn list(context: &Context<'_>, tenants: &Tenants, limit: u32) -> Result<()> {
    let mut list = EntryList {
        entries: Vec::new(),
        more: Vec::new(),
        errors: Vec::new(),
    };
    for tenant in context.tenants(tenants).await? {
        let newest = match quarantine::newest(&context.store, &tenant.name, limit as usize).await {
            Ok(newest) => newest,
            // The other tenants are listed all the same.
            Err(error @ Error::WrongType { .. }) => {
                list.errors.push(format!("tenant {}: {error}", tenant.name));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let count = quarantine::count(&context.store, &tenant.name).await?;
        if let Some(rest @ 1..) = count.checked_sub(newest.len() as u64) {
            list.more.push((tenant.name.clone(), rest));
        }
        list.entries
            .extend(newest.into_iter().map(|entry| Entry::of(&tenant.name, entry)));
    }
    output::print(context.global, &list)?;
    if list.errors.is_empty() {
        return Ok(());
    }
    bail!("{}", list.errors.join("; "))
}

impl Render for EntryList {
    fn text(&self, out: &mut Text) {
        if self.entries.is_empty() {
            if self.errors.is_empty() {
                outln!(out, "the quarantine is empty");
            }
            return;
        }
        let row = |Entry {
                       tenant,
                       id,
                       position,
                       table,
                       cause,
                       entry,
                       ..
                   }: &Entry| {
            [
                tenant.clone(),
                id.clone(),
                or_nothing(time(entry).map(seconds)),
                or_nothing(position.as_ref()),
                or_nothing(table.as_ref()),
                cause.clone(),
            ]
        };
        let header = ["TENANT", "ID", "TIME", "POSITION", "TABLE", "CAUSE"];
        out.table(header, self.entries.iter().map(row));
        for (tenant, rest) in &self.more {
            outln!(out, "tenant {tenant} has {rest} older ones; use --limit to list more");
        }
    }
}

async fn find(context: &Context<'_>, tenant: &str, id: StreamId) -> Result<QuarantineEntry> {
    quarantine::one(&context.store, tenant, id).await?.with_context(|| {
        format!(
            "the quarantine of tenant {tenant} has no entry {id}; `posduif stream quarantine list --tenant {tenant}` lists \
             it"
        )
    })
}

/// A quarantined change with the fields of its entry, which win over those of [`Entry`].
#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip)]
    entry: Entry,
}

async fn show(context: &Context<'_>, tenant: &str, id: StreamId) -> Result<Detail> {
    context.tenant(tenant).await?;
    let entry = Entry::of(tenant, find(context, tenant, id).await?);
    let mut fields = Map::new();
    if let Value::Object(known) = serde_json::to_value(&entry)? {
        fields.extend(known);
    }
    for (name, text) in &entry.entry.fields {
        let is_json = matches!(name.as_str(), "row" | "old" | "unchanged");
        let parsed = is_json.then(|| serde_json::from_str(text).ok()).flatten();
        fields.insert(name.clone(), parsed.unwrap_or_else(|| Value::String(text.clone())));
    }
    Ok(Detail { fields, entry })
}

impl Render for Detail {
    fn text(&self, out: &mut Text) {
        let Entry {
            id,
            time,
            position,
            cause,
            entry,
            ..
        } = &self.entry;
        let head = [
            ("id", id.clone()),
            ("quarantined", or_nothing(time.as_ref())),
            ("position", or_nothing(position.as_ref())),
            ("cause", cause.clone()),
            ("settled by", quarantine::remedy(entry).to_string()),
        ];
        let fields = entry.fields.iter().map(|(name, value)| (name.as_str(), value.clone()));
        for (name, value) in head.into_iter().chain(fields) {
            outln!(out, "{name:<12} {}", output::printable(&value));
        }
    }
}

/// What settles each of the selected changes.
async fn remedies(context: &Context<'_>, selection: &Selection) -> Result<Vec<(StreamId, Remedy)>> {
    let mut remedies = Vec::with_capacity(selection.ids.len());
    for id in &selection.ids {
        remedies.push((*id, quarantine::remedy(&find(context, &selection.tenant, *id).await?)));
    }
    if selection.all {
        let visit = |entry: QuarantineEntry| remedies.push((entry.id, quarantine::remedy(&entry)));
        quarantine::each(&context.store, &selection.tenant, StreamId::ZERO, visit).await?;
    }
    Ok(remedies)
}

/// Fails if changes are left.
fn check(retried: &Retried) -> Result<()> {
    if retried.left.is_empty() {
        return Ok(());
    }
    bail!(
        "{} changes are left in the quarantine of tenant {}",
        retried.left.len(),
        retried.tenant
    )
}

impl Render for Retried {
    fn text(&self, out: &mut Text) {
        outln!(out, "settled {} changes of tenant {}", self.settled, self.tenant);
        for Left { id, reason } in &self.left {
            outln!(out, "left {id}: {reason}");
        }
    }
}

/// Recreates the tenant's streams, which settles all changes except messages.
async fn retry_by_resync(
    context: &Context<'_>,
    tenant: &Tenant,
    remedies: Vec<(StreamId, Remedy)>,
    confirm: Confirm,
) -> Result<Retried> {
    let devices = tenants::count_devices(&context.database, &tenant.name).await?;
    let settled = remedies.iter().filter(|(_, remedy)| *remedy != Remedy::Sender).count();
    confirm.check(|| {
        format!(
            "the {devices} devices of tenant {} would each take a snapshot, which settles {settled} changes",
            tenant.name,
        )
    })?;
    let retry = retry(context, tenant);
    retry.by_resync(remedies, &Actor::cli()).await
}

fn retry<'a>(context: &'a Context<'_>, tenant: &'a Tenant) -> Retry<'a> {
    Retry {
        config: &context.config,
        database: &context.database,
        store: &context.store,
        tenant,
        timeout: PUBLISH_TIMEOUT,
    }
}

#[derive(Serialize)]
struct Dropped {
    tenant: String,
    dropped: u64,
}

async fn drop(context: &Context<'_>, selection: Selection, confirm: Confirm) -> Result<Dropped> {
    let Selection { tenant, ids, all } = selection;
    context.tenant(&tenant).await?;
    let dropped = if all {
        drop_all(context, &tenant, confirm).await?
    } else {
        drop_some(context, &tenant, &ids, confirm).await?
    };
    if dropped > 0 {
        quarantine::record(&context.database, &tenant, "quarantine_dropped", dropped, &Actor::cli()).await;
    }
    Ok(Dropped { tenant, dropped })
}

fn confirm_drop(confirm: Confirm, count: u64) -> Result<()> {
    confirm.check(|| format!("{count} quarantined changes would be lost, and never retried"))
}

async fn drop_some(context: &Context<'_>, tenant: &str, ids: &[StreamId], confirm: Confirm) -> Result<u64> {
    for id in ids {
        find(context, tenant, *id).await?;
    }
    confirm_drop(confirm, ids.len() as u64)?;
    Ok(quarantine::forget(&context.store, tenant, ids).await?)
}

async fn drop_all(context: &Context<'_>, tenant: &str, confirm: Confirm) -> Result<u64> {
    let count = quarantine::count(&context.store, tenant).await?;
    let newest = quarantine::newest(&context.store, tenant, 1).await?;
    let Some(newest) = newest.first() else { return Ok(0) };
    confirm_drop(confirm, count)?;
    Ok(quarantine::forget_up_to(&context.store, tenant, newest.id).await?)
}

impl Render for Dropped {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "dropped {} changes from the quarantine of tenant {}",
            self.dropped,
            self.tenant
        );
    }
}
