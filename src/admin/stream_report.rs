//! Reports on streams for their operator: all streams of all tenants, or one stream with its devices.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::users;
use crate::admin::streams::{self, Found, GroupTotals, Ids, Length, Mark, Meta, Stopped};
use crate::config;
use crate::contract::checkpoint::View;
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::postgres::{Database, sql};
use crate::redis::store::{Error, Store};

/// Bound of [`DeviceReport::behind`].
const BEHIND_MAX: u64 = 100_000;

/// Where streams are read from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    pub database: &'a Database,
    pub store: &'a Store,
    /// The checkpoint; `None` before an engine has published anything.
    pub view: Option<View>,
    /// The bounds of streams.
    pub settings: &'a config::Streams,
}

impl Sources<'_> {
    /// What the IDs of published streams are.
    pub fn positions(&self) -> Ids {
        Ids::Positions(self.view.map_or(0, |view| view.base))
    }
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamReport {
    pub stream: String,
    pub key: String,
    /// `stream`, `none`, or the wrong type of the key.
    #[serde(rename = "type")]
    pub kind: String,
    pub length: u64,
    pub first: Option<Mark>,
    pub last: Option<Mark>,
    pub memory_bytes: u64,
    /// The memory that the stream is trimmed to; `None` without a bound of its own.
    pub bytes_max: Option<u64>,
    /// Entries below this ID were trimmed.
    pub trimmed_below: Option<String>,
    /// Why the stream accepts no entries.
    pub stopped: Option<String>,
}

impl StreamReport {
    /// A stream that has no trim point and cannot stop.
    pub async fn read(sources: Sources<'_>, stream: &str, key: String, ids: Ids) -> Result<(Self, Found)> {
        let found = streams::look(sources.store, &key, ids).await?;
        let mut report = Self {
            stream: stream.to_owned(),
            key,
            kind: "none".to_owned(),
            length: 0,
            first: None,
            last: None,
            memory_bytes: 0,
            bytes_max: None,
            trimmed_below: None,
            stopped: None,
        };
        match &found {
            Found::Missing => {}
            Found::WrongType(kind) => report.kind.clone_from(kind),
            Found::Stream(shape) => {
                report.kind = "stream".to_owned();
                report.length = shape.length;
                report.first.clone_from(&shape.first);
                report.last.clone_from(&shape.last);
                report.memory_bytes = shape.memory_bytes;
            }
        }
        Ok((report, found))
    }

    /// A stream that the publisher writes.
    pub async fn read_target(sources: Sources<'_>, target: &Target, stopped: &[Stopped]) -> Result<(Self, Found)> {
        let key = target.key(sources.store.keys());
        let (mut report, found) = Self::read(sources, &target.stream(), key, sources.positions()).await?;
        report.bytes_max = Some(match target {
            Target::Changes(_) => sources.settings.changes_bytes_max,
            Target::Shared(_) => sources.settings.shared_bytes_max,
            Target::Group(..) => sources.settings.group_bytes_max,
            Target::Inbox(..) => sources.settings.inbox_bytes_max,
        });
        report.trimmed_below = match streams::trim_point(sources.store, target).await {
            Ok(point) => point.map(|id| id.to_string()),
            // The report on the tenant has this error.
            Err(Error::WrongType { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        report.stopped = stopped
            .iter()
            .find(|stopped| stopped.target == *target)
            .map(|stopped| stopped.cause.clone());
        Ok((report, found))
    }

    /// What is wrong with the stream, in a few words.
    pub fn problem(&self) -> Option<String> {
        match (&self.stopped, &*self.kind) {
            (Some(cause), _) => Some(format!("stopped: {cause}")),
            (None, "stream") => None,
            (None, "none") => Some("missing".to_owned()),
            (None, kind) => Some(format!("wrong type: {kind}")),
        }
    }
}

/// All streams of some tenants.
#[derive(Debug, Serialize)]
pub struct StreamList {
    pub epoch: Option<String>,
    /// The last entry that was written.
    pub position: Option<String>,
    pub live: StreamReport,
    pub tenants: Vec<TenantStreams>,
}

#[derive(Debug, Serialize)]
pub struct TenantStreams {
    pub tenant: String,
    pub state: Option<String>,
    pub generation: Option<i64>,
    /// Memory of all its streams.
    pub memory_bytes: u64,
    /// What they may take.
    pub budget_bytes: u64,
    /// They take more although they were cut: writes of the tenant are refused.
    pub exceeded: bool,
    pub changes: StreamReport,
    pub shared: StreamReport,
    pub groups: Groups,
    pub inboxes: Inboxes,
    pub push: StreamReport,
    pub quarantine: StreamReport,
    pub stopped: Vec<StoppedStream>,
    /// The wrong type of the hash with generation, state and trim points.
    pub error: Option<String>,
}

/// The streams of groups.
#[derive(Debug, Default, Serialize)]
pub struct Groups {
    #[serde(flatten)]
    pub totals: GroupTotals,
    /// The memory that each is trimmed to.
    pub bytes_max: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Inboxes {
    pub count: u64,
    /// Users whose inbox has the wrong type.
    pub unusable: u64,
    /// Entries of all inboxes.
    pub entries: u64,
    /// Memory of all inboxes.
    pub memory_bytes: u64,
    /// The memory that each is trimmed to.
    pub bytes_max: u64,
    pub longest: Option<LongestInbox>,
    pub largest: Option<LargestInbox>,
}

#[derive(Debug, Serialize)]
pub struct LongestInbox {
    pub user_id: Uuid,
    pub length: u64,
}

#[derive(Debug, Serialize)]
pub struct LargestInbox {
    pub user_id: Uuid,
    pub memory_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct StoppedStream {
    pub stream: String,
    pub cause: String,
}

impl StreamList {
    pub async fn read(sources: Sources<'_>, tenants: &[Tenant]) -> Result<Self> {
        let stopped = streams::stopped(sources.store).await?;
        let live = sources.store.keys().live(0);
        let (live, _) = StreamReport::read(sources, "live", live, sources.positions()).await?;
        let mut list = Self {
            epoch: sources.view.map(|view| view.epoch.to_string()),
            position: sources.view.map(|view| view.position.to_string()),
            live,
            tenants: Vec::with_capacity(tenants.len()),
        };
        let exceeded = sources.store.exceeded().await?;
        for tenant in tenants {
            let mut read = TenantStreams::read(sources, tenant, &stopped).await?;
            read.exceeded = exceeded.contains_key(&tenant.name);
            list.tenants.push(read);
        }
        Ok(list)
    }
}

impl TenantStreams {
    async fn read(sources: Sources<'_>, tenant: &Tenant, stopped: &[Stopped]) -> Result<Self> {
        let (name, keys): (Arc<str>, _) = (tenant.name.as_str().into(), sources.store.keys());
        let (meta, error) = match streams::meta(sources.store, &name).await {
            Ok(meta) => (meta, None),
            Err(error @ Error::WrongType { .. }) => (Meta::default(), Some(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let (changes, _) = StreamReport::read_target(sources, &Target::Changes(name.clone()), stopped).await?;
        let (shared, _) = StreamReport::read_target(sources, &Target::Shared(name.clone()), stopped).await?;
        let (push, _) = StreamReport::read(sources, "push", keys.push(&name), Ids::Clock).await?;
        let (quarantine, _) = StreamReport::read(sources, "quarantine", keys.quarantine(&name), Ids::Clock).await?;
        let stopped = stopped.iter().filter(|stopped| **stopped.target.tenant() == *name);
        let inboxes = Inboxes::read(sources, tenant).await?;
        let groups = streams::totals_of_groups(sources.store, &name).await?;
        let others = [&changes, &shared, &push, &quarantine].map(|stream| stream.memory_bytes);
        Ok(Self {
            memory_bytes: inboxes.memory_bytes + groups.memory_bytes + others.into_iter().sum::<u64>(),
            budget_bytes: sources.settings.tenant_bytes_max,
            exceeded: false,
            tenant: tenant.name.clone(),
            state: meta.state,
            generation: meta.generation,
            changes,
            shared,
            groups: Groups {
                bytes_max: sources.settings.group_bytes_max,
                totals: groups,
            },
            inboxes,
            push,
            quarantine,
            stopped: stopped
                .map(|stopped| StoppedStream {
                    stream: stopped.target.stream(),
                    cause: stopped.cause.clone(),
                })
                .collect(),
            error,
        })
    }
}

impl Inboxes {
    async fn read(sources: Sources<'_>, tenant: &Tenant) -> Result<Self> {
        let mut inboxes = Self {
            bytes_max: sources.settings.inbox_bytes_max,
            ..Self::default()
        };
        each_inbox(
            sources.database,
            sources.store,
            tenant,
            |user_id, _, length, memory_bytes| {
                let length = match length {
                    Length::Entries(length) => length,
                    // It is created when it is first read.
                    Length::Missing => return,
                    Length::WrongType(_) => {
                        inboxes.unusable += 1;
                        return;
                    }
                };
                inboxes.count += 1;
                inboxes.entries += length;
                if inboxes.longest.as_ref().is_none_or(|longest| longest.length < length) {
                    inboxes.longest = Some(LongestInbox { user_id, length });
                }
                inboxes.memory_bytes += memory_bytes;
                let largest = inboxes.largest.as_ref();
                if largest.is_none_or(|largest| largest.memory_bytes < memory_bytes) {
                    inboxes.largest = Some(LargestInbox { user_id, memory_bytes });
                }
            },
        )
        .await?;
        Ok(inboxes)
    }
}

/// Visits the inbox of each user that Postgres has: user, key, length and memory in bytes.
pub async fn each_inbox(
    database: &Database,
    store: &Store,
    tenant: &Tenant,
    mut visit: impl FnMut(Uuid, String, Length, u64),
) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let page = users::ids(database, tenant, after, streams::PAGE as i64).await?;
        let key = |user: &Uuid| store.keys().inbox(&tenant.name, &user.to_string());
        let keys: Vec<String> = page.iter().map(key).collect();
        let lengths = streams::lengths(store, &keys).await?;
        let memory = streams::memory(store, &keys).await?;
        for (((user, key), length), bytes) in page.iter().zip(keys).zip(lengths).zip(memory) {
            visit(*user, key, length, bytes);
        }
        match page.last() {
            Some(last) if page.len() == streams::PAGE => after = *last,
            _ => return Ok(()),
        }
    }
}

/// One stream in detail.
#[derive(Debug, Serialize)]
pub struct StreamDetail {
    pub tenant: Option<String>,
    #[serde(flatten)]
    pub stream: StreamReport,
    /// The newest ID that the stream ever had.
    pub last_id: Option<String>,
    /// The length that the stream is trimmed to.
    pub entries_max: Option<u64>,
    pub groups: u64,
    pub epoch: Option<String>,
    pub generation: Option<i64>,
    pub state: Option<String>,
    /// Of an inbox.
    pub user_id: Option<Uuid>,
    /// Of an inbox: the device that prevents further trimming.
    pub slowest_device: Option<String>,
    pub devices: Option<Vec<DeviceReport>>,
}

/// How far a device has read an inbox.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    pub device_id: String,
    pub name: Option<String>,
    /// The device has acknowledged everything up to here.
    pub position: Option<String>,
    /// Entries that the device has not acknowledged, counted up to 100,000.
    pub behind: Option<u64>,
    /// Whether the device prevents trimming of entries that it does not have.
    pub holds: bool,
    pub revoked: bool,
}

/// A device of an inbox's user, as Postgres has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxDevice {
    pub device_id: String,
    pub name: Option<String>,
    /// Seen within `idle_days` and not revoked.
    pub is_current: bool,
    pub is_revoked: bool,
}

/// The devices of a user.
pub async fn inbox_devices(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    idle_days: u64,
) -> Result<Vec<InboxDevice>> {
    let days = idle_days as f64;
    let rows = database
        .query(
            &sql!("admin/inbox_devices", tenant),
            &[(&user, Type::UUID), (&days, Type::FLOAT8)],
        )
        .await
        .with_context(|| format!("cannot list the devices of user {user}"))?;
    let device = |row: &tokio_postgres::Row| {
        Ok(InboxDevice {
            device_id: row.try_get("device_id")?,
            name: row.try_get("name")?,
            is_current: row.try_get("holds")?,
            is_revoked: row.try_get("is_revoked")?,
        })
    };
    rows.iter().map(device).collect()
}

/// How far each device of a user has read the user's inbox.
pub async fn device_reports(
    sources: Sources<'_>,
    tenant: &Tenant,
    user: Uuid,
    idle_days: u64,
    has_inbox: bool,
) -> Result<Vec<DeviceReport>> {
    let devices = inbox_devices(sources.database, tenant, user, idle_days).await?;
    let ids: Vec<String> = devices.iter().map(|device| device.device_id.clone()).collect();
    let positions = streams::device_places(sources.store, &tenant.name, &ids).await?;
    let key = sources.store.keys().inbox(&tenant.name, &user.to_string());
    let mut reports = Vec::with_capacity(devices.len());
    for (device, position) in devices.into_iter().zip(positions) {
        let behind = match position {
            Some(position) if has_inbox => {
                let behind = streams::count(sources.store, &key, position.next(), None, BEHIND_MAX).await?;
                Some(behind.min(BEHIND_MAX))
            }
            _ => None,
        };
        reports.push(DeviceReport {
            device_id: device.device_id,
            name: device.name,
            position: position.map(|position| position.to_string()),
            behind,
            // A device that never acknowledged begins with a snapshot and holds nothing back.
            holds: device.is_current && position.is_some(),
            revoked: device.is_revoked,
        });
    }
    Ok(reports)
}

/// The devices of a tenant, in pages: Postgres may have many.
pub async fn each_device_page(
    database: &Database,
    tenant: &Tenant,
    mut visit: impl AsyncFnMut(Vec<String>) -> Result<()>,
) -> Result<()> {
    let (mut after, page) = (String::new(), streams::PAGE as i64);
    loop {
        let rows = database
            .query(
                &sql!("admin/device_ids", tenant),
                &[(&after, Type::TEXT), (&page, Type::INT8)],
            )
            .await
            .context("cannot list the tenant's devices")?;
        let devices: Vec<String> = rows
            .iter()
            .map(|row| row.try_get("device_id"))
            .collect::<Result<_, _>>()?;
        let next = devices.last().filter(|_| devices.len() == streams::PAGE).cloned();
        visit(devices).await?;
        match next {
            Some(last) => after = last,
            None => return Ok(()),
        }
    }
}
