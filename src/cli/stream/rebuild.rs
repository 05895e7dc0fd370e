//! `posduif stream rebuild`: a tenant's inboxes anew from what Postgres holds.
//!
//! The publisher alone writes these streams, so it is asked by way of the log, in one transaction: each user's inbox goes,
//! whatever is in its place, and comes back empty with a `reset`; so does `shared`; `changes` keeps its history unless it
//! cannot take entries any more. The tenant's next generation comes last. Rows are not put into inboxes: a device without
//! a usable cursor reads them from Postgres, page by page, and goes on with its inbox without a gap.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::super::output::{self, outln};
use super::super::progress::Progress;
use super::Bench;
use crate::accounts::users;
use crate::admin::streams::{self, Found, Length};
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::postgres::tenants::{self, Rebuild as Asked};
use crate::redis::store::Error;

/// How often it is asked for what did not come out right: an entry that was on its way may have been refused in between.
const ATTEMPTS: u32 = 3;

/// Arguments of `posduif stream rebuild`.
#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The tenant
    #[arg(long)]
    tenant: String,
    /// Do it: without this, only what would happen is said
    #[arg(long)]
    yes: bool,
}

impl Rebuild {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let tenant = bench.tenant(&self.tenant).await?;
        let name: Arc<str> = tenant.name.as_str().into();
        let devices = tenants::count_devices(&bench.database, &tenant.name).await?;
        let begun = Instant::now();
        let mut progress = Progress::new(bench.global, "looking at the streams", None);
        let unusable = unusable_changes(bench, &name).await?;
        let orphans = orphans(bench, &tenant).await?;
        if !self.yes {
            drop(progress);
            let history = if unusable.is_some() {
                ", and the history in its `changes`, which cannot take entries any more, would be lost with its \
                 consumer groups"
            } else {
                ""
            };
            bail!(
                "each of the {devices} devices of tenant {} would take a snapshot, messages without a row that they \
                 have not got yet would be lost{history}; `--yes` does it",
                tenant.name
            );
        }
        let mut gone: Vec<Target> = orphans.iter().map(|user| Target::Inbox(name.clone(), *user)).collect();
        gone.extend(unusable.clone());
        let mut wrong = Vec::new();
        for _ in 0..ATTEMPTS {
            let asked = tenants::rebuild(&bench.database, &tenant.name, &gone)
                .await?
                .with_context(|| format!("the tenant {} was dropped by somebody else just now", tenant.name))?;
            let inboxes = u64::try_from(asked.inboxes).unwrap_or(0);
            // One message for each stream, and one for the tenant.
            let messages = inboxes + gone.len() as u64 + 2;
            progress.turn_to("making inboxes", Some(messages));
            bench.done(asked.lsn, |reached| progress.set(reached.ordinal)).await?;
            progress.turn_to("comparing with Postgres", Some(inboxes));
            wrong = verify(bench, &tenant, &asked, &mut progress).await?;
            if wrong.is_empty() {
                drop(progress);
                return report(bench, &tenant, &asked, devices, &orphans, unusable.is_some(), begun);
            }
            if let Some(target) = unusable_changes(bench, &name).await?
                && !gone.contains(&target)
            {
                gone.push(target);
            }
        }
        drop(progress);
        bail!(
            "after {ATTEMPTS} attempts this is still wrong with tenant {}: {}; see the engine's log",
            tenant.name,
            wrong.join("; ")
        )
    }
}

fn report(
    bench: &Bench<'_>,
    tenant: &Tenant,
    asked: &Asked,
    devices: i64,
    orphans: &[Uuid],
    lost_changes: bool,
    begun: Instant,
) -> Result<()> {
    let took = begun.elapsed();
    if bench.global.json {
        return output::json(&json!({
            "tenant": tenant.name, "inboxes": asked.inboxes, "removed": orphans, "generation": asked.generation,
            "devices": devices, "changes_lost": lost_changes,
            "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }));
    }
    outln!(
        "made {} inboxes of tenant {} anew in {:.1} s; its {devices} devices take a snapshot with their next sync",
        asked.inboxes,
        tenant.name,
        took.as_secs_f64()
    )?;
    if !orphans.is_empty() {
        outln!("removed {} inboxes of users that Postgres does not have", orphans.len())?;
    }
    if lost_changes {
        outln!("`changes` began anew, too: make its consumer groups again")?;
    }
    Ok(())
}

/// `changes`, when it can take no entries: something else is in its place, or it was written ahead of the log.
async fn unusable_changes(bench: &Bench<'_>, name: &Arc<str>) -> Result<Option<Target>> {
    let target = Target::Changes(name.clone());
    let is_stopped = || async {
        let stopped = streams::stopped(&bench.store).await?;
        anyhow::Ok(stopped.iter().any(|stopped| stopped.target == target))
    };
    let key = target.key(bench.store.keys());
    let is_unusable = match streams::look(&bench.store, &key, bench.positions()).await? {
        Found::Missing => false,
        Found::WrongType(_) => true,
        Found::Stream(shape) => {
            // Asked anew: the stream may have grown since this command began.
            let is_ahead = match bench.store.view().await {
                Ok(view) => shape.last_id > view.position,
                // Nothing tells, and the epoch that begins next lies above whatever there is.
                Err(Error::NoCheckpoint) => false,
                Err(error) => return Err(error.into()),
            };
            is_ahead || is_stopped().await?
        }
    };
    Ok(is_unusable.then_some(target))
}

/// Users with an inbox whom Postgres does not have.
async fn orphans(bench: &Bench<'_>, tenant: &Tenant) -> Result<Vec<Uuid>> {
    let mut orphans = Vec::new();
    for page in streams::users_with_inboxes(&bench.store, &tenant.name)
        .await?
        .chunks(streams::PAGE)
    {
        orphans.extend(tenants::unknown_users(&bench.database, tenant, page).await?);
    }
    Ok(orphans)
}

/// What is not as Postgres would have it.
async fn verify(bench: &Bench<'_>, tenant: &Tenant, asked: &Asked, progress: &mut Progress) -> Result<Vec<String>> {
    let (name, keys): (Arc<str>, _) = (tenant.name.as_str().into(), bench.store.keys());
    let mut wrong = Vec::new();
    let meta = streams::meta(&bench.store, &name).await?;
    if meta.generation.is_none_or(|generation| generation < asked.generation) {
        wrong.push(format!(
            "the generation is {:?} and not {}",
            meta.generation, asked.generation
        ));
    }
    for stopped in streams::stopped(&bench.store).await? {
        if *stopped.target.tenant() == name {
            wrong.push(format!("{} is stopped ({})", stopped.target.stream(), stopped.cause));
        }
    }
    let own = [keys.changes(&name), keys.shared(&name)];
    let mut look = async |keys: &[String]| -> Result<()> {
        for (key, length) in keys.iter().zip(streams::lengths(&bench.store, keys).await?) {
            match length {
                Length::Entries(0) => wrong.push(format!("{key} has no entry, not even its first")),
                Length::Entries(_) => {}
                Length::Missing => wrong.push(format!("{key} is missing")),
                Length::WrongType(kind) => wrong.push(format!("{key} is a {kind}")),
            }
        }
        Ok(())
    };
    look(&own).await?;
    let (mut after, mut seen) = (Uuid::nil(), 0);
    loop {
        let users = users::ids(&bench.database, tenant, after, streams::PAGE as i64).await?;
        let inboxes: Vec<String> = users.iter().map(|user| keys.inbox(&name, &user.to_string())).collect();
        look(&inboxes).await?;
        seen += users.len() as u64;
        progress.set(seen);
        match users.last() {
            Some(last) if users.len() == streams::PAGE => after = *last,
            _ => break,
        }
    }
    wrong.truncate(10);
    Ok(wrong)
}
