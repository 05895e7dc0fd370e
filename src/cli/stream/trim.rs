//! `posduif stream trim`: trims the oldest entries of a stream. The publisher does it, at a position in the log, and
//! records the trim point first, so that readers behind it detect the gap.

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args};
use serde::Serialize;

use super::super::Confirm;
use super::super::output::{self, Render, Text, outln};
use super::super::table::or_nothing;
use super::Context;
use super::position::StreamPosition;
use super::show::StreamName;
use crate::admin::consumer_groups::{self, Group};
use crate::admin::stream_report::{each_device_page, inbox_devices};
use crate::admin::streams::{self, Found, Shape};
use crate::contract::control::{self, Command};
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::tenants;
use crate::replication::trim;

/// Entries are counted up to this number.
const COUNT_MAX: u64 = 1_000_000;

/// Names that the dry run lists.
const NAMED_MAX: usize = 10;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("how").required(true).args(["before", "keep"])))]
pub(super) struct Trim {
    /// TENANT/changes, TENANT/shared, TENANT/inbox:USER (id or name), or a Redis key
    stream: String,
    /// Trim entries before a stream ID, a commit LSN, a time (RFC 3339) or a duration ago (10m, 2h, 3d)
    #[arg(long, value_name = "POSITION")]
    before: Option<StreamPosition>,
    /// Keep the newest N entries
    #[arg(long, value_name = "N")]
    keep: Option<u64>,
    #[command(flatten)]
    confirm: Confirm,
}

/// Readers that have not acknowledged the trimmed entries.
#[derive(Debug, Default)]
struct Affected {
    devices: Vec<String>,
    groups: Vec<String>,
}

impl Trim {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let (name, tenant) = StreamName::find(context, &self.stream).await?;
        let (StreamName::Published(target), Some(tenant)) = (name, tenant) else {
            bail!(
                "only changes, shared and inboxes can be trimmed; `posduif stream quarantine drop` empties a quarantine, \
                 and the engine trims the other streams"
            );
        };
        let key = target.key(context.store.keys());
        let shape = match streams::look(&context.store, &key, context.positions()).await? {
            Found::Stream(shape) => shape,
            Found::Missing => bail!("there is no stream {key}"),
            Found::WrongType(kind) => bail!(
                "{key} has the wrong type, {kind}; `posduif stream rebuild --tenant {}` recreates it",
                tenant.name
            ),
        };
        let first_kept = self.first_kept(context, &key, &shape).await?.min(shape.last_id.next());
        if shape.first.as_ref().is_none_or(|first| first.id >= first_kept) {
            return output::print(context.global, &NothingToTrim::new(&tenant, &target, key));
        }
        let trimmed = self.trim(context, &tenant, target, &shape, first_kept).await?;
        output::print(context.global, &trimmed)
    }

    async fn trim(
        self,
        context: &Context<'_>,
        tenant: &Tenant,
        target: Target,
        shape: &Shape,
        first_kept: StreamId,
    ) -> Result<Trimmed> {
        let key = target.key(context.store.keys());
        let entries = streams::count(&context.store, &key, StreamId::ZERO, Some(first_kept), COUNT_MAX).await?;
        let affected = Affected::of(context, tenant, &target, first_kept).await?;
        self.confirm.check(|| {
            format!(
                "{} of {} entries of {key}, all before {first_kept}, would be lost{}",
                count_text(entries),
                shape.length,
                affected.text()
            )
        })?;
        let request = Command::Trim(control::Trim {
            target: target.clone(),
            min_id: first_kept,
        });
        let position = tenants::send(&context.database, &request)
            .await
            .context("cannot request the trim")?;
        context.wait_until_published(position, |_| {}).await?;
        let trim_point = streams::trim_point(&context.store, &target).await?;
        if trim_point.is_none_or(|point| point < first_kept) {
            bail!(
                "the trim was published, but the trim point of {key} is {}: is the engine that replicates older than this \
                 command?",
                or_nothing(trim_point)
            );
        }
        Ok(Trimmed {
            tenant: tenant.name.clone(),
            stream: target.stream(),
            trimmed: entries,
            trimmed_below: first_kept.to_string(),
            devices: affected.devices,
            groups: affected.groups,
            key,
        })
    }

    async fn first_kept(&self, context: &Context<'_>, key: &str, shape: &Shape) -> Result<StreamId> {
        match (self.before, self.keep) {
            (Some(StreamPosition::Start), _) => bail!("no entry precedes `start`"),
            (Some(StreamPosition::Now), _) | (None, Some(0)) => Ok(shape.last_id.next()),
            (Some(position), _) => Ok(position.before(context, key).await?.next()),
            (None, Some(keep)) => {
                let last_trimmed = trim::nth(&context.store, key, shape.length.saturating_sub(keep)).await?;
                Ok(last_trimmed.map_or(StreamId::ZERO, StreamId::next))
            }
            (None, None) => bail!("`--before` or `--keep` is required"),
        }
    }
}

#[derive(Serialize)]
struct NothingToTrim {
    tenant: String,
    stream: String,
    trimmed: u64,
    #[serde(skip)]
    key: String,
}

impl NothingToTrim {
    fn new(tenant: &Tenant, target: &Target, key: String) -> Self {
        Self {
            tenant: tenant.name.clone(),
            stream: target.stream(),
            trimmed: 0,
            key,
        }
    }
}

impl Render for NothingToTrim {
    fn text(&self, out: &mut Text) {
        outln!(out, "{} has no older entries; nothing to do", self.key);
    }
}

#[derive(Serialize)]
struct Trimmed {
    tenant: String,
    stream: String,
    trimmed: u64,
    trimmed_below: String,
    devices: Vec<String>,
    groups: Vec<String>,
    #[serde(skip)]
    key: String,
}

impl Render for Trimmed {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "trimmed {} entries of {}, all before {}",
            count_text(self.trimmed),
            self.key,
            self.trimmed_below
        );
    }
}

fn count_text(entries: u64) -> String {
    if entries >= COUNT_MAX {
        format!("more than {COUNT_MAX}")
    } else {
        entries.to_string()
    }
}

impl Affected {
    async fn of(context: &Context<'_>, tenant: &Tenant, target: &Target, first_kept: StreamId) -> Result<Self> {
        let mut affected = Self::default();
        match target {
            Target::Changes(_) => {
                let groups = consumer_groups::list(&context.store, &tenant.name)
                    .await?
                    .unwrap_or_default();
                let is_affected = |group: &Group| {
                    let oldest = group.oldest_pending.as_ref();
                    group.last_delivered.next() < first_kept || oldest.is_some_and(|oldest| oldest.id < first_kept)
                };
                affected.groups = groups.into_iter().filter(is_affected).map(|group| group.name).collect();
            }
            Target::Inbox(_, user) => {
                let idle_days = context.config.streams.device_idle_days;
                let devices = inbox_devices(&context.database, tenant, *user, idle_days).await?;
                let devices = devices.into_iter().filter(|device| !device.is_revoked);
                let devices = devices.map(|device| device.device_id).collect();
                affected.add_devices(context, tenant, devices, first_kept).await?;
            }
            // Any device may be of a member.
            Target::Shared(_) | Target::Group(..) => {
                let visit = async |devices| affected.add_devices(context, tenant, devices, first_kept).await;
                each_device_page(&context.database, tenant, visit).await?;
            }
        }
        Ok(affected)
    }

    /// Adds those of these devices that are behind. A device without a position begins with a snapshot in any case.
    async fn add_devices(
        &mut self,
        context: &Context<'_>,
        tenant: &Tenant,
        devices: Vec<String>,
        first_kept: StreamId,
    ) -> Result<()> {
        let positions = streams::device_places(&context.store, &tenant.name, &devices).await?;
        let behind = devices
            .into_iter()
            .zip(positions)
            .filter(|(_, position)| position.is_some_and(|position| position.next() < first_kept));
        self.devices.extend(behind.map(|(device, _)| device));
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.devices.is_empty() {
            text.push_str(&format!(
                "; {} devices that have not acknowledged them would take a snapshot ({})",
                self.devices.len(),
                first_names(&self.devices)
            ));
        }
        if !self.groups.is_empty() {
            text.push_str(&format!(
                "; {} consumer groups have not acknowledged them and would miss them ({})",
                self.groups.len(),
                first_names(&self.groups)
            ));
        }
        text
    }
}

fn first_names(names: &[String]) -> String {
    let shown = names.len().min(NAMED_MAX);
    let more = if names.len() > shown { " and more" } else { "" };
    format!("{}{more}", names[..shown].join(", "))
}
