//! `posduif stream show`: one stream in detail.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::super::human;
use super::super::output::{self, Render, Text, usage_error};
use super::super::table::{Cell, number_or_nothing, or_nothing};
use super::{Context, mark};
use crate::admin::stream_report::{DeviceReport, StreamDetail, StreamReport, device_reports};
use crate::admin::streams::{self, Found, Ids};
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;

#[derive(Debug, Args)]
pub(super) struct Show {
    /// `live`, a Redis key, or TENANT/changes, TENANT/shared, TENANT/push, TENANT/quarantine, TENANT/inbox:USER (id or
    /// name)
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    stream: String,
}

/// A stream named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamName {
    /// Notices for API nodes.
    Live,
    Quarantine(Arc<str>),
    /// Push candidates.
    Push(Arc<str>),
    /// A stream that the publisher writes.
    Published(Target),
}

impl StreamName {
    /// Parses a name and finds its tenant.
    pub(super) async fn find(context: &Context<'_>, text: &str) -> Result<(Self, Option<Tenant>)> {
        let prefix = format!("{}:", context.config.redis.keys_prefix());
        if text == "live" || text == context.store.keys().live(0) {
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
        let tenant = context.tenant(tenant).await?;
        let name: Arc<str> = tenant.name.as_str().into();
        let stream = match stream {
            "changes" => Self::Published(Target::Changes(name)),
            "shared" => Self::Published(Target::Shared(name)),
            "push" => Self::Push(name),
            "quarantine" => Self::Quarantine(name),
            _ => match stream.strip_prefix("inbox:").or_else(|| stream.strip_prefix("inbox/")) {
                Some(user) => Self::Published(Target::Inbox(name, context.user(&tenant, user).await?)),
                None => usage_error!(
                    "tenant {} has no stream {stream:?}: it has changes, shared, push, quarantine and inbox:USER",
                    tenant.name
                ),
            },
        };
        Ok((stream, Some(tenant)))
    }

    async fn read(&self, context: &Context<'_>) -> Result<(StreamReport, Found)> {
        let (sources, keys) = (context.sources(), context.store.keys());
        match self {
            Self::Live => StreamReport::read(sources, "live", keys.live(0), sources.positions()).await,
            Self::Push(tenant) => StreamReport::read(sources, "push", keys.push(tenant), Ids::Clock).await,
            Self::Quarantine(tenant) => {
                StreamReport::read(sources, "quarantine", keys.quarantine(tenant), Ids::Clock).await
            }
            Self::Published(target) => {
                let stopped = streams::stopped(&context.store).await?;
                StreamReport::read_target(sources, target, &stopped).await
            }
        }
    }

    fn entries_max(&self, context: &Context<'_>) -> Option<u64> {
        let limits = &context.config.streams;
        match self {
            Self::Live => Some(limits.live_entries_max),
            Self::Published(Target::Changes(_)) => Some(limits.changes_entries_max),
            Self::Published(Target::Shared(_)) => Some(limits.shared_entries_max),
            Self::Published(Target::Group(..)) => Some(limits.group_entries_max),
            Self::Published(Target::Inbox(..)) => Some(limits.inbox_entries_max),
            Self::Push(_) | Self::Quarantine(_) => None,
        }
    }
}

impl Show {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let (name, tenant) = StreamName::find(context, &self.stream).await?;
        output::print(context.global, &read(context, &name, tenant.as_ref()).await?)
    }
}

async fn read(context: &Context<'_>, name: &StreamName, tenant: Option<&Tenant>) -> Result<StreamDetail> {
    let (stream, found) = name.read(context).await?;
    let meta = match tenant {
        Some(tenant) => Some(streams::meta(&context.store, &tenant.name).await?),
        None => None,
    };
    let shape = match &found {
        Found::Stream(shape) => Some(shape),
        Found::Missing | Found::WrongType(_) => None,
    };
    let (user_id, devices) = match (name, tenant) {
        (StreamName::Published(Target::Inbox(_, user)), Some(tenant)) => {
            let idle_days = context.config.streams.device_idle_days;
            let devices = device_reports(context.sources(), tenant, *user, idle_days, shape.is_some()).await?;
            (Some(*user), Some(devices))
        }
        _ => (None, None),
    };
    Ok(StreamDetail {
        tenant: tenant.map(|tenant| tenant.name.clone()),
        stream,
        last_id: shape.map(|shape| shape.last_id.to_string()),
        entries_max: name.entries_max(context),
        groups: shape.map_or(0, |shape| shape.groups),
        epoch: context.view.map(|view| view.epoch.to_string()),
        generation: meta.as_ref().and_then(|meta| meta.generation),
        state: meta.and_then(|meta| meta.state),
        user_id,
        slowest_device: devices.as_deref().and_then(slowest),
        devices,
    })
}

/// The device that prevents further trimming.
fn slowest(devices: &[DeviceReport]) -> Option<String> {
    devices
        .iter()
        .filter(|device| device.holds)
        .filter_map(|device| Some((device.position.as_ref()?.parse::<StreamId>().ok()?, device)))
        .min_by_key(|(position, _)| *position)
        .map(|(_, device)| device.device_id.clone())
}

impl Render for StreamDetail {
    fn text(&self, out: &mut Text) {
        let stream = &self.stream;
        let entries = match self.entries_max {
            Some(most) => format!("{} (at most {most})", stream.length),
            None => stream.length.to_string(),
        };
        let lsn = |mark: &Option<streams::Mark>| mark.as_ref().and_then(|mark| mark.commit_lsn);
        let commits = lsn(&stream.first).zip(lsn(&stream.last));
        let optional = |is_shown: bool, name, value: String| is_shown.then_some((name, value));
        let lines = [
            Some(("key", stream.key.clone())),
            Some(("type", stream.kind.clone())),
            Some(("entries", entries)),
            Some(("first", mark(stream.first.as_ref()))),
            Some(("last", mark(stream.last.as_ref()))),
            commits.map(|(first, last)| ("commits", format!("{first} to {last}"))),
            Some(("last ID", or_nothing(self.last_id.as_ref()))),
            Some(("memory", human::bytes(stream.memory_bytes))),
            Some(("trimmed below", or_nothing(stream.trimmed_below.as_ref()))),
            Some(("consumer groups", self.groups.to_string())),
            Some(("epoch", or_nothing(self.epoch.as_ref()))),
            optional(self.tenant.is_some(), "generation", or_nothing(self.generation)),
            optional(self.tenant.is_some(), "state", or_nothing(self.state.as_ref())),
            stream.stopped.clone().map(|cause| ("stopped", cause)),
            optional(self.devices.is_some(), "held by", self.held_by()),
        ];
        out.facts(lines.into_iter().flatten());
        if let Some(devices) = self.devices.as_ref().filter(|devices| !devices.is_empty()) {
            out.blank();
            let header = ["DEVICE", "NAME", "ACKNOWLEDGED", "BEHIND", "HOLDS TRIMMING"];
            out.table(header, devices.iter().map(device_row));
        }
    }
}

impl StreamDetail {
    fn held_by(&self) -> String {
        let slowest = self.slowest_device.clone();
        slowest.unwrap_or_else(|| "none: trimmed at the maximum length only".to_owned())
    }
}

fn device_row(device: &DeviceReport) -> [Cell; 5] {
    let holds = match (device.revoked, device.holds) {
        (true, _) => "no: revoked",
        (_, true) => "yes",
        (_, false) => "no",
    };
    [
        Cell::from(device.device_id.clone()),
        or_nothing(device.name.as_ref()).into(),
        or_nothing(device.position.as_ref()).into(),
        number_or_nothing(device.behind),
        holds.into(),
    ]
}
