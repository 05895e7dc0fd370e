//! `posduif stream trim`: forgetting a stream's oldest entries by hand. The publisher does it, at a place in the log, and
//! notes the trim point first, so that whoever is behind it notices.

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args};
use serde_json::json;
use tokio_postgres::types::Type;

use super::super::output::{self, outln};
use super::place::Place;
use super::show::Named;
use super::{Bench, dash};
use crate::admin::groups;
use crate::admin::streams::{self, Found};
use crate::contract::control::{self, Command};
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::sql;
use crate::postgres::tenants;
use crate::replication::trim;

/// Entries that are counted before it says "more than".
const COUNT_MAX: u64 = 1_000_000;

/// Names that are listed before it says "and more".
const NAMED_MAX: usize = 10;

/// Arguments of `posduif stream trim`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("how").required(true).args(["before", "keep"])))]
pub(super) struct Trim {
    /// TENANT/changes, TENANT/shared, TENANT/inbox:USER (id or name), or a Redis key
    stream: String,
    /// Forget what lies before: a stream ID, a commit LSN, a time (RFC 3339) or how long ago (10m, 2h, 3d)
    #[arg(long, value_name = "PLACE")]
    before: Option<Place>,
    /// Keep so many of the newest entries
    #[arg(long, value_name = "N")]
    keep: Option<u64>,
    /// Do it: without this, only what would be lost is said
    #[arg(long)]
    yes: bool,
}

/// Who has not read what would go.
#[derive(Debug, Default)]
struct Losers {
    devices: Vec<String>,
    groups: Vec<String>,
}

impl Trim {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let (named, tenant) = Named::find(bench, &self.stream).await?;
        let (Named::Of(target), Some(tenant)) = (named, tenant) else {
            bail!(
                "only changes, shared and inboxes are trimmed by hand; `posduif stream quarantine drop` empties a \
                 quarantine, and the engine keeps the others short"
            );
        };
        let key = target.key(bench.store.keys());
        let shape = match streams::look(&bench.store, &key, bench.positions()).await? {
            Found::Stream(shape) => shape,
            Found::Missing => bail!("there is no stream {key}"),
            Found::WrongType(kind) => bail!(
                "{key} is no stream but a {kind}; `posduif stream rebuild --tenant {}` makes it one",
                tenant.name
            ),
        };
        let first_kept = self.first_kept(bench, &key, shape.length, shape.last_id).await?;
        let first_kept = first_kept.min(shape.last_id.next());
        let is_nothing = shape.first.is_none_or(|first| first.id >= first_kept);
        if is_nothing {
            if bench.global.json {
                return output::json(&json!({"stream": target.stream(), "tenant": tenant.name, "trimmed": 0}));
            }
            outln!("{key} has nothing before that; nothing to do")?;
            return Ok(());
        }
        let entries = streams::count(&bench.store, &key, StreamId::ZERO, Some(first_kept), COUNT_MAX).await?;
        let entries_text = if entries >= COUNT_MAX {
            format!("more than {COUNT_MAX}")
        } else {
            entries.to_string()
        };
        let losers = Losers::of(bench, &tenant, &target, first_kept).await?;
        if !self.yes {
            bail!(
                "{entries_text} of {} entries of {key}, all before {first_kept}, would be lost{}; `--yes` does it",
                shape.length,
                losers.text()
            );
        }
        let trim = Command::Trim(control::Trim {
            target: target.clone(),
            min_id: first_kept,
        });
        let place = tenants::send(&bench.database, &trim)
            .await
            .context("cannot ask for the trim")?;
        bench.done(place, |_| {}).await?;
        let trimmed = streams::trim_point(&bench.store, &target).await?;
        if trimmed.is_none_or(|trimmed| trimmed < first_kept) {
            bail!(
                "the trim was published, and the trim point of {key} is {}: is the engine that replicates older than \
                 this command?",
                dash(trimmed)
            );
        }
        if bench.global.json {
            return output::json(&json!({
                "tenant": tenant.name, "stream": target.stream(), "trimmed": entries,
                "trimmed_below": first_kept.to_string(), "devices": losers.devices, "groups": losers.groups,
            }));
        }
        outln!("trimmed {entries_text} entries of {key}, all before {first_kept}")?;
        Ok(())
    }

    async fn first_kept(&self, bench: &Bench<'_>, key: &str, length: u64, last: StreamId) -> Result<StreamId> {
        match (self.before, self.keep) {
            (Some(Place::Start), _) => bail!("nothing lies before the start"),
            (Some(Place::Now), _) | (None, Some(0)) => Ok(last.next()),
            (Some(place), _) => Ok(place.before(bench, key).await?.next()),
            (None, Some(keep)) => {
                let gone = trim::nth(&bench.store, key, length.saturating_sub(keep)).await?;
                Ok(gone.map_or(StreamId::ZERO, StreamId::next))
            }
            (None, None) => bail!("say what to keep: --before or --keep"),
        }
    }
}

impl Losers {
    async fn of(bench: &Bench<'_>, tenant: &Tenant, target: &Target, first_kept: StreamId) -> Result<Self> {
        let mut losers = Self::default();
        match target {
            Target::Changes(_) => {
                let groups = groups::list(&bench.store, &tenant.name).await?.unwrap_or_default();
                losers.groups = groups
                    .into_iter()
                    .filter(|group| {
                        let has_pending = group
                            .oldest_pending
                            .as_ref()
                            .is_some_and(|oldest| oldest.id < first_kept);
                        group.last_delivered.next() < first_kept || has_pending
                    })
                    .map(|group| group.name)
                    .collect();
            }
            Target::Inbox(_, user) => {
                let days = bench.config.streams.device_idle_days as f64;
                let rows = bench
                    .database
                    .query(
                        &sql!("admin/inbox_devices", tenant),
                        &[(user, Type::UUID), (&days, Type::FLOAT8)],
                    )
                    .await
                    .context("cannot list the user's devices")?;
                let devices = rows
                    .iter()
                    .filter(|row| !row.get::<_, bool>("is_revoked"))
                    .map(|row| row.get("device_id"))
                    .collect();
                losers.add_devices(bench, tenant, devices, first_kept).await?;
            }
            Target::Shared(_) => {
                let mut after = String::new();
                loop {
                    let page = streams::PAGE as i64;
                    let rows = bench
                        .database
                        .query(
                            &sql!("admin/device_ids", tenant),
                            &[(&after, Type::TEXT), (&page, Type::INT8)],
                        )
                        .await
                        .context("cannot list the tenant's devices")?;
                    let devices: Vec<String> = rows.iter().map(|row| row.get("device_id")).collect();
                    let is_last = devices.len() < streams::PAGE;
                    if let Some(last) = devices.last() {
                        after.clone_from(last);
                    }
                    losers.add_devices(bench, tenant, devices, first_kept).await?;
                    if is_last {
                        break;
                    }
                }
            }
        }
        Ok(losers)
    }

    /// Those of these devices that are behind. One that has no place begins with a snapshot anyway.
    async fn add_devices(
        &mut self,
        bench: &Bench<'_>,
        tenant: &Tenant,
        devices: Vec<String>,
        first_kept: StreamId,
    ) -> Result<()> {
        let places = streams::device_places(&bench.store, &tenant.name, &devices).await?;
        let behind = devices
            .into_iter()
            .zip(places)
            .filter(|(_, place)| place.is_some_and(|place| place.next() < first_kept));
        self.devices.extend(behind.map(|(device, _)| device));
        Ok(())
    }

    fn text(&self) -> String {
        let named = |names: &[String]| {
            let shown = names.len().min(NAMED_MAX);
            let more = if names.len() > shown { " and more" } else { "" };
            format!("{}{more}", names[..shown].join(", "))
        };
        let mut text = String::new();
        if !self.devices.is_empty() {
            text.push_str(&format!(
                "; {} devices that have not acknowledged all of that would take a snapshot ({})",
                self.devices.len(),
                named(&self.devices)
            ));
        }
        if !self.groups.is_empty() {
            text.push_str(&format!(
                "; {} consumer groups have not acknowledged all of that and would never get it ({})",
                self.groups.len(),
                named(&self.groups)
            ));
        }
        text
    }
}
