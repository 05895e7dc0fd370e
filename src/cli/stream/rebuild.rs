//! `posduif stream rebuild`: recreates the inboxes of a tenant from Postgres.
//!
//! Only the publisher writes these streams, so the request goes through the log, in one transaction: each user's inbox is
//! deleted, whatever its type, and recreated with a `reset`; so is `shared`; `changes` keeps its history unless it cannot
//! accept entries. The next generation of the tenant comes last. Rows are not written to inboxes: a device without a
//! usable cursor reads them from Postgres, page by page, and continues with its inbox without a gap.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::super::Confirm;
use super::super::output::{self, Render, Text, outln};
use super::super::progress::Progress;
use super::Context;
use crate::admin::published;
use crate::admin::stream_report::each_inbox;
use crate::admin::streams::{self, Found, Length};
use crate::admin::tenants::dropped_meanwhile;
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::postgres::tenants::{self, Rebuild as Requested};
use crate::redis::store::Error;

/// A concurrent entry may be refused during a rebuild; the rebuild is then requested again.
const ATTEMPTS: u32 = 3;

/// Problems that a failed rebuild reports.
const PROBLEMS_MAX: usize = 10;

#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The tenant
    #[arg(long)]
    tenant: String,
    #[command(flatten)]
    confirm: Confirm,
}

impl Rebuild {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let tenant = context.tenant(&self.tenant).await?;
        let name: Arc<str> = tenant.name.as_str().into();
        let devices = tenants::count_devices(&context.database, &tenant.name).await?;
        let started = Instant::now();
        let progress = Progress::new(context.global, "inspecting the streams", None);
        let unusable = unusable_changes(context, &name).await?;
        let orphans = orphans(context, &tenant).await?;
        self.confirm
            .check(|| dry_run(&tenant.name, devices, unusable.is_some()))?;
        let mut deleted: Vec<Target> = orphans.iter().map(|user| Target::Inbox(name.clone(), *user)).collect();
        deleted.extend(unusable.clone());
        let requested = rebuild(context, &tenant, &name, deleted, progress).await?;
        let took = started.elapsed();
        let rebuilt = Rebuilt {
            tenant: tenant.name,
            inboxes: requested.inboxes,
            removed: orphans,
            generation: requested.generation,
            devices,
            changes_lost: unusable.is_some(),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        output::print(context.global, &rebuilt)
    }
}

fn dry_run(tenant: &str, devices: i64, loses_changes: bool) -> String {
    let history = if loses_changes {
        ", and `changes`, which cannot accept entries, would lose its history and its consumer groups"
    } else {
        ""
    };
    format!(
        "each of the {devices} devices of tenant {tenant} would take a snapshot, undelivered messages without a row would \
         be lost{history}"
    )
}

/// Requests the rebuild until the streams match Postgres.
async fn rebuild(
    context: &Context<'_>,
    tenant: &Tenant,
    name: &Arc<str>,
    mut deleted: Vec<Target>,
    mut progress: Progress,
) -> Result<Requested> {
    let mut problems = Vec::new();
    for _ in 0..ATTEMPTS {
        let requested = tenants::rebuild(&context.database, &tenant.name, &deleted)
            .await?
            .with_context(|| dropped_meanwhile(&tenant.name))?;
        let inboxes = u64::try_from(requested.inboxes).unwrap_or(0);
        // One message per stream, and one for the tenant.
        let messages = inboxes + deleted.len() as u64 + 2;
        progress.turn_to("recreating inboxes", Some(messages));
        let report = |reached: published::Reached| progress.set(reached.ordinal);
        context.wait_until_published(requested.lsn, report).await?;
        progress.turn_to("comparing with Postgres", Some(inboxes));
        problems = verify(context, tenant, &requested, &mut progress).await?;
        if problems.is_empty() {
            return Ok(requested);
        }
        if let Some(target) = unusable_changes(context, name).await?
            && !deleted.contains(&target)
        {
            deleted.push(target);
        }
    }
    bail!(
        "after {ATTEMPTS} attempts the streams of tenant {} still differ from Postgres: {}; see the log of the engine",
        tenant.name,
        problems.join("; ")
    )
}

#[derive(Serialize)]
struct Rebuilt {
    tenant: String,
    inboxes: i64,
    /// Users whose inbox was removed, because Postgres does not have them.
    removed: Vec<Uuid>,
    generation: i64,
    devices: i64,
    changes_lost: bool,
    duration_ms: u64,
}

impl Render for Rebuilt {
    fn text(&self, out: &mut Text) {
        #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
        let seconds = self.duration_ms as f64 / 1000.0;
        outln!(
            out,
            "recreated {} inboxes of tenant {} in {seconds:.1} s; its {} devices take a snapshot at their next sync",
            self.inboxes,
            self.tenant,
            self.devices
        );
        if !self.removed.is_empty() {
            outln!(out, "removed {} inboxes of users that do not exist", self.removed.len());
        }
        if self.changes_lost {
            outln!(out, "`changes` was recreated: create its consumer groups again");
        }
    }
}

/// `changes`, if it cannot accept entries: it has the wrong type, or its last ID is ahead of the log.
async fn unusable_changes(context: &Context<'_>, name: &Arc<str>) -> Result<Option<Target>> {
    let target = Target::Changes(name.clone());
    let key = target.key(context.store.keys());
    let is_unusable = match streams::look(&context.store, &key, context.positions()).await? {
        Found::Missing => false,
        Found::WrongType(_) => true,
        Found::Stream(shape) => {
            // Read again: the stream may have grown since this command began.
            let is_ahead = match context.store.view().await {
                Ok(view) => shape.last_id > view.position,
                // The next epoch begins above all IDs.
                Err(Error::NoCheckpoint) => false,
                Err(error) => return Err(error.into()),
            };
            is_ahead || is_stopped(context, &target).await?
        }
    };
    Ok(is_unusable.then_some(target))
}

async fn is_stopped(context: &Context<'_>, target: &Target) -> Result<bool> {
    let stopped = streams::stopped(&context.store).await?;
    Ok(stopped.iter().any(|stopped| stopped.target == *target))
}

/// Users that have an inbox and do not exist in Postgres.
async fn orphans(context: &Context<'_>, tenant: &Tenant) -> Result<Vec<Uuid>> {
    let mut orphans = Vec::new();
    let users = streams::users_with_inboxes(&context.store, &tenant.name).await?;
    for page in users.chunks(streams::PAGE) {
        orphans.extend(tenants::unknown_users(&context.database, tenant, page).await?);
    }
    Ok(orphans)
}

/// How the streams of a tenant differ from what a rebuild leaves.
async fn verify(
    context: &Context<'_>,
    tenant: &Tenant,
    requested: &Requested,
    progress: &mut Progress,
) -> Result<Vec<String>> {
    let (name, keys): (Arc<str>, _) = (tenant.name.as_str().into(), context.store.keys());
    let mut problems = Vec::new();
    let generation = streams::meta(&context.store, &name).await?.generation;
    if generation.is_none_or(|generation| generation < requested.generation) {
        problems.push(format!(
            "the generation is {generation:?}, not {}",
            requested.generation
        ));
    }
    for stopped in streams::stopped(&context.store).await? {
        if *stopped.target.tenant() == name {
            problems.push(format!("{} is stopped ({})", stopped.target.stream(), stopped.cause));
        }
    }
    let own = [keys.changes(&name), keys.shared(&name)];
    for (key, length) in own.iter().zip(streams::lengths(&context.store, &own).await?) {
        problems.extend(problem(key, &length));
    }
    let mut seen = 0;
    each_inbox(&context.database, &context.store, tenant, |_, key, length, _| {
        problems.extend(problem(&key, &length));
        seen += 1;
        progress.set(seen);
    })
    .await?;
    problems.truncate(PROBLEMS_MAX);
    Ok(problems)
}

fn problem(key: &str, length: &Length) -> Option<String> {
    match length {
        Length::Entries(0) => Some(format!("{key} has no entry, not even a reset")),
        Length::Entries(_) => None,
        Length::Missing => Some(format!("{key} is missing")),
        Length::WrongType(kind) => Some(format!("{key} has the wrong type, {kind}")),
    }
}
