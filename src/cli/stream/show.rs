//! `posduif stream show`: one stream in detail.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::human;
use super::super::output::{self, outln, usage_error};
use super::super::table::{Cell, facts, print_table};
use super::{Bench, StreamView, dash, mark};
use crate::admin::streams::{self, Found, Ids};
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::sql;

/// Entries that a device is counted to be behind.
const BEHIND_MAX: u64 = 100_000;

/// Arguments of `posduif stream show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// `live`, a Redis key, or TENANT/changes, TENANT/shared, TENANT/push, TENANT/quarantine, TENANT/inbox:USER (id or
    /// name)
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    stream: String,
}

/// A stream that somebody named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// Notices for API nodes.
    Live,
    /// What could not be routed or stored.
    Quarantine(Arc<str>),
    /// For gateways that push.
    Push(Arc<str>),
    /// One that the publisher writes.
    Of(Target),
}

impl Named {
    /// Finds what a text names, and the tenant that it belongs to.
    pub(super) async fn find(bench: &Bench<'_>, text: &str) -> Result<(Self, Option<Tenant>)> {
        let prefix = format!("{}:", bench.config.redis.prefix);
        if text == "live" || text == bench.store.keys().live(0) {
            return Ok((Self::Live, None));
        }
        let key = text
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_prefix('{')?.split_once("}:"));
        let Some((tenant, stream)) = key.or_else(|| text.split_once('/')) else {
            usage_error!(
                "{text:?} names no stream: write `live`, acme/changes, acme/shared, acme/push, acme/quarantine, \
                 acme/inbox:ann, or a key that begins with {prefix}"
            );
        };
        let tenant = bench.tenant(tenant).await?;
        let name: Arc<str> = tenant.name.as_str().into();
        let named = match stream {
            "changes" => Self::Of(Target::Changes(name)),
            "shared" => Self::Of(Target::Shared(name)),
            "push" => Self::Push(name),
            "quarantine" => Self::Quarantine(name),
            _ => match stream.strip_prefix("inbox:").or_else(|| stream.strip_prefix("inbox/")) {
                Some(user) => Self::Of(Target::Inbox(name, bench.user(&tenant, user).await?)),
                None => usage_error!(
                    "tenant {} has no stream {stream:?}: it has changes, shared, push, quarantine and inbox:USER",
                    tenant.name
                ),
            },
        };
        Ok((named, Some(tenant)))
    }
}

#[derive(Debug, Serialize)]
struct Detail {
    tenant: Option<String>,
    #[serde(flatten)]
    view: StreamView,
    /// The newest ID that it ever had.
    last_id: Option<String>,
    /// It is cut back to so many entries.
    entries_max: Option<u64>,
    groups: u64,
    epoch: Option<String>,
    generation: Option<i64>,
    state: Option<String>,
    /// Of an inbox.
    user_id: Option<Uuid>,
    /// Of an inbox: the device that keeps it from being trimmed further.
    slowest_device: Option<String>,
    devices: Option<Vec<Device>>,
}

#[derive(Debug, Serialize)]
struct Device {
    device_id: String,
    name: Option<String>,
    /// All up to here it has, and trimming may forget.
    position: Option<String>,
    /// Entries that it does not have yet, counted up to 100,000.
    behind: Option<u64>,
    /// It keeps entries that it does not have from being trimmed.
    holds: bool,
    revoked: bool,
}

impl Show {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let (named, tenant) = Named::find(bench, &self.stream).await?;
        let keys = bench.store.keys();
        let stopped = streams::stopped(&bench.store).await?;
        let (view, found) = match &named {
            Named::Live => StreamView::look(bench, "live", keys.live(0), bench.positions()).await?,
            Named::Push(tenant) => StreamView::look(bench, "push", keys.push(tenant), Ids::Clock).await?,
            Named::Quarantine(tenant) => {
                StreamView::look(bench, "quarantine", keys.quarantine(tenant), Ids::Clock).await?
            }
            Named::Of(target) => StreamView::look_at(bench, target, &stopped).await?,
        };
        let limits = &bench.config.streams;
        let meta = match &tenant {
            Some(tenant) => Some(streams::meta(&bench.store, &tenant.name).await?),
            None => None,
        };
        let mut detail = Detail {
            tenant: tenant.as_ref().map(|tenant| tenant.name.clone()),
            last_id: None,
            entries_max: match &named {
                Named::Live => Some(limits.live_entries_max),
                Named::Of(Target::Changes(_)) => Some(limits.changes_entries_max),
                Named::Of(Target::Shared(_)) => Some(limits.shared_entries_max),
                Named::Of(Target::Inbox(..)) => Some(limits.inbox_entries_max),
                Named::Push(_) | Named::Quarantine(_) => None,
            },
            groups: 0,
            epoch: bench.view.map(|view| view.epoch.to_string()),
            generation: meta.as_ref().and_then(|meta| meta.generation),
            state: meta.and_then(|meta| meta.state),
            user_id: None,
            slowest_device: None,
            devices: None,
            view,
        };
        if let Found::Stream(shape) = &found {
            detail.last_id = Some(shape.last_id.to_string());
            detail.groups = shape.groups;
        }
        if let (Named::Of(Target::Inbox(_, user)), Some(tenant)) = (&named, &tenant) {
            let devices = devices(bench, tenant, *user, matches!(found, Found::Stream(_))).await?;
            let holding = devices.iter().filter(|device| device.holds);
            let slowest =
                holding.filter_map(|device| Some((device.position.as_ref()?.parse::<StreamId>().ok()?, device)));
            detail.user_id = Some(*user);
            detail.slowest_device = slowest
                .min_by_key(|(position, _)| *position)
                .map(|(_, device)| device.device_id.clone());
            detail.devices = Some(devices);
        }
        if bench.global.json {
            return output::json(&detail);
        }
        detail.print()
    }
}

async fn devices(bench: &Bench<'_>, tenant: &Tenant, user: Uuid, has_inbox: bool) -> Result<Vec<Device>> {
    let days = bench.config.streams.device_idle_days as f64;
    let rows = bench
        .database
        .query(
            &sql!("admin/inbox_devices", tenant),
            &[(&user, Type::UUID), (&days, Type::FLOAT8)],
        )
        .await
        .with_context(|| format!("cannot list the devices of user {user}"))?;
    let ids: Vec<String> = rows.iter().map(|row| row.get("device_id")).collect();
    let places = streams::device_places(&bench.store, &tenant.name, &ids).await?;
    let key = bench.store.keys().inbox(&tenant.name, &user.to_string());
    let mut devices = Vec::with_capacity(rows.len());
    for (row, place) in rows.iter().zip(places) {
        let behind = match place {
            Some(place) if has_inbox => Some(
                streams::count(&bench.store, &key, place.next(), None, BEHIND_MAX)
                    .await?
                    .min(BEHIND_MAX),
            ),
            _ => None,
        };
        devices.push(Device {
            device_id: row.get("device_id"),
            name: row.get("name"),
            position: place.map(|place| place.to_string()),
            behind,
            // One that never acknowledged begins with a snapshot and holds nothing back.
            holds: row.get::<_, bool>("holds") && place.is_some(),
            revoked: row.get("is_revoked"),
        });
    }
    Ok(devices)
}

impl Detail {
    fn print(&self) -> Result<()> {
        let view = &self.view;
        let entries = match self.entries_max {
            Some(most) => format!("{} (at most {most})", view.length),
            None => view.length.to_string(),
        };
        let mut lines = vec![
            ("key", view.key.clone()),
            ("type", view.kind.clone()),
            ("entries", entries),
            ("first", mark(view.first.as_ref())),
            ("last", mark(view.last.as_ref())),
            ("last ID", dash(self.last_id.as_ref())),
            ("memory", human::bytes(view.memory_bytes)),
            ("trimmed below", dash(view.trimmed_below.as_ref())),
            ("consumer groups", self.groups.to_string()),
            ("epoch", dash(self.epoch.as_ref())),
        ];
        let lsn = |mark: &Option<streams::Mark>| mark.as_ref().and_then(|mark| mark.commit_lsn);
        if let (Some(first), Some(last)) = (lsn(&view.first), lsn(&view.last)) {
            lines.insert(5, ("commits", format!("{first} to {last}")));
        }
        if self.tenant.is_some() {
            lines.push(("generation", dash(self.generation)));
            lines.push(("state", dash(self.state.as_ref())));
        }
        if let Some(cause) = &view.stopped {
            lines.push(("stopped", cause.clone()));
        }
        if self.devices.is_some() {
            let slowest = match &self.slowest_device {
                Some(device) => device.clone(),
                None => "none: only the bound trims it".to_owned(),
            };
            lines.push(("held by", slowest));
        }
        output::print(&facts(lines))?;
        if let Some(devices) = self.devices.as_ref().filter(|devices| !devices.is_empty()) {
            outln!("")?;
            print_table(
                ["DEVICE", "NAME", "HAS ALL UP TO", "BEHIND", "HOLDS TRIMMING"],
                devices.iter().map(|device| {
                    [
                        Cell::from(device.device_id.clone()),
                        dash(device.name.as_ref()).into(),
                        dash(device.position.as_ref()).into(),
                        Cell::number(dash(device.behind)),
                        match (device.revoked, device.holds) {
                            (true, _) => "no: revoked",
                            (_, true) => "yes",
                            (_, false) => "no",
                        }
                        .into(),
                    ]
                }),
            )?;
        }
        Ok(())
    }
}
