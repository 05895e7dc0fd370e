//! `posduif stream groups`: other services that read the `changes` of a tenant, and how far each has read.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::super::Confirm;
use super::super::output::{self, Render, Text, outln, usage_error};
use super::super::table::{Cell, Tone, number_or_nothing, or_nothing};
use super::position::StreamPosition;
use super::{Context, Tenants, duration};
use crate::admin::consumer_groups::{self, Consumer, Group, Lag, Missed, Pending};
use crate::admin::streams;
use crate::contract::stream_name::Target;

/// Pending entries that `show` lists.
const PENDING_MAX: usize = 20;

/// A group whose lag is beyond this part of the length of `changes` is about to miss entries.
const NEAR_PERCENT: u64 = 80;

#[derive(Debug, Args)]
pub(super) struct Groups {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List all groups: pending entries, lag, state
    List {
        #[command(flatten)]
        tenants: Tenants,
    },
    /// Create a group on the `changes` of a tenant
    Create {
        #[command(flatten)]
        group: GroupName,
        /// First entry: `start`, `now`, a stream ID, a commit LSN, a time (RFC 3339) or a duration ago (10m, 2h, 3d)
        #[arg(long, default_value = "now", value_name = "POSITION")]
        from: StreamPosition,
    },
    /// Show one group with its consumers and oldest pending entries
    Show {
        #[command(flatten)]
        group: GroupName,
    },
    /// Drop a group with its position and its pending entries
    Drop {
        #[command(flatten)]
        group: GroupName,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Args)]
struct GroupName {
    /// The tenant
    #[arg(long)]
    tenant: String,
    /// The group
    name: String,
}

/// Whether a new group can have this name: terminals and Redis commands show it unchanged. Other clients may have created
/// groups with other names.
fn is_valid_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

impl Groups {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let default = Verb::List {
            tenants: Tenants::default(),
        };
        let global = context.global;
        match self.verb.unwrap_or(default) {
            Verb::List { tenants } => output::print(global, &list(context, &tenants).await?),
            Verb::Create { group, from } => output::print(global, &create(context, group, from).await?),
            Verb::Show { group } => output::print(global, &show(context, group).await?),
            Verb::Drop { group, confirm } => output::print(global, &drop(context, group, confirm).await?),
        }
    }
}

/// How a group keeps up with the trimming of `changes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// About to miss entries.
    Near,
    Missed,
}

#[derive(Serialize)]
struct GroupReport {
    tenant: String,
    group: String,
    /// `None` where the consumers are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    consumers: Option<u64>,
    pending: u64,
    oldest_pending: Option<PendingEntry>,
    last_delivered_id: String,
    lag: u64,
    lag_is_exact: bool,
    state: State,
    /// Trimmed before they were delivered; `None` if some, of unknown number.
    missed: Option<u64>,
    #[serde(skip)]
    entries_max: u64,
}

#[derive(Serialize)]
struct PendingEntry {
    id: String,
    consumer: String,
    idle_ms: u64,
    deliveries: u64,
}

impl PendingEntry {
    fn of(pending: Pending) -> Self {
        Self {
            id: pending.id.to_string(),
            consumer: pending.consumer,
            idle_ms: pending.idle_ms,
            deliveries: pending.deliveries,
        }
    }
}

impl GroupReport {
    fn of(context: &Context<'_>, tenant: &str, group: Group) -> Self {
        let entries_max = context.config.streams.changes_entries_max;
        let (Lag::Entries(lag) | Lag::AtLeast(lag)) = group.lag;
        Self {
            tenant: tenant.to_owned(),
            group: group.name,
            consumers: Some(group.consumers),
            pending: group.pending,
            oldest_pending: group.oldest_pending.map(PendingEntry::of),
            last_delivered_id: group.last_delivered.to_string(),
            lag,
            lag_is_exact: matches!(group.lag, Lag::Entries(_)),
            state: match group.missed {
                Missed::Entries(_) | Missed::Some => State::Missed,
                Missed::Nothing if lag > entries_max / 100 * NEAR_PERCENT => State::Near,
                Missed::Nothing => State::Ok,
            },
            missed: match group.missed {
                Missed::Nothing => Some(0),
                Missed::Entries(count) => Some(count),
                Missed::Some => None,
            },
            entries_max,
        }
    }

    fn state_text(&self) -> String {
        match (self.state, self.missed) {
            (State::Ok, _) => "ok".to_owned(),
            (State::Near, _) => format!(
                "about to miss entries: `changes` keeps {} (streams.changes_entries_max)",
                self.entries_max
            ),
            (State::Missed, Some(count)) => format!("missed {count} entries, trimmed before delivery"),
            (State::Missed, None) => "missed entries, trimmed before delivery".to_owned(),
        }
    }

    fn lag_text(&self) -> String {
        let more = if self.lag_is_exact { "" } else { " or more" };
        format!("{}{more}", self.lag)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct GroupList(Vec<GroupReport>);

async fn list(context: &Context<'_>, tenants: &Tenants) -> Result<GroupList> {
    let mut found = Vec::new();
    for tenant in context.tenants(tenants).await? {
        let groups = consumer_groups::list(&context.store, &tenant.name)
            .await?
            .unwrap_or_default();
        let report = |group| GroupReport::of(context, &tenant.name, group);
        found.extend(groups.into_iter().map(report));
    }
    Ok(GroupList(found))
}

impl Render for GroupList {
    fn text(&self, out: &mut Text) {
        let row = |group: &GroupReport| {
            let tone = match group.state {
                State::Missed => Tone::Bad,
                State::Near => Tone::Warning,
                State::Ok => Tone::Good,
            };
            let oldest = group.oldest_pending.as_ref();
            [
                Cell::from(group.tenant.clone()),
                group.group.clone().into(),
                number_or_nothing(group.consumers),
                Cell::number(group.pending),
                number_or_nothing(oldest.map(|oldest| duration(oldest.idle_ms))),
                Cell::number(group.lag_text()),
                group.last_delivered_id.clone().into(),
                Cell::from(group.state_text()).toned(tone),
            ]
        };
        let header = [
            "TENANT",
            "GROUP",
            "CONSUMERS",
            "PENDING",
            "OLDEST",
            "LAG",
            "LAST DELIVERED",
            "STATE",
        ];
        out.table(header, self.0.iter().map(row));
    }
}

async fn find(context: &Context<'_>, GroupName { tenant, name }: &GroupName) -> Result<GroupReport> {
    context.tenant(tenant).await?;
    let groups = consumer_groups::list(&context.store, tenant).await?.unwrap_or_default();
    let group = groups.into_iter().find(|group| group.name == *name).with_context(|| {
        format!(
            "`changes` of tenant {tenant} has no group {name}; `posduif stream groups list --tenant {tenant}` lists all"
        )
    })?;
    Ok(GroupReport::of(context, tenant, group))
}

#[derive(Serialize)]
struct Created {
    tenant: String,
    group: String,
    after: String,
    trimmed_below: Option<String>,
    #[serde(skip)]
    key: String,
    /// Whether the group begins later than requested.
    #[serde(skip)]
    is_cut: bool,
}

async fn create(context: &Context<'_>, group: GroupName, from: StreamPosition) -> Result<Created> {
    let GroupName { tenant, name } = group;
    if !is_valid_name(&name) {
        usage_error!("invalid group name {name:?}: allowed are 1 to 128 visible ASCII characters without spaces");
    }
    context.tenant(&tenant).await?;
    let target = Target::Changes(tenant.as_str().into());
    let key = target.key(context.store.keys());
    let after = from.before(context, &key).await?;
    match consumer_groups::create(&context.store, &tenant, &name, after).await? {
        consumer_groups::Created::New => {}
        consumer_groups::Created::Exists => bail!(
            "`changes` of tenant {tenant} has a group {name} already; `posduif stream groups show --tenant {tenant} \
             {name}` shows it"
        ),
        consumer_groups::Created::NoStream => bail!(
            "tenant {tenant} has no stream `changes` yet: an engine creates it when it replicates; `posduif stream list \
             --tenant {tenant}` lists its streams"
        ),
    }
    let trimmed = streams::trim_point(&context.store, &target).await?;
    Ok(Created {
        tenant,
        group: name,
        after: after.to_string(),
        trimmed_below: trimmed.map(|id| id.to_string()),
        key,
        is_cut: trimmed.is_some_and(|first_kept| after.next() < first_kept),
    })
}

impl Render for Created {
    fn text(&self, out: &mut Text) {
        outln!(out, "created the group {} on {}", self.group, self.key);
        if let Some(first_kept) = self.trimmed_below.as_ref().filter(|_| self.is_cut) {
            outln!(
                out,
                "it begins with the oldest entry: those below {first_kept} were trimmed"
            );
        }
    }
}

/// A group with its consumers and oldest pending entries.
#[derive(Serialize)]
struct GroupDetail {
    #[serde(flatten)]
    report: GroupReport,
    consumers: Vec<ConsumerReport>,
    pending_entries: Vec<PendingEntry>,
    #[serde(skip)]
    key: String,
}

#[derive(Serialize)]
struct ConsumerReport {
    consumer: String,
    pending: u64,
    idle_ms: u64,
}

impl ConsumerReport {
    fn of(consumer: Consumer) -> Self {
        Self {
            consumer: consumer.name,
            pending: consumer.pending,
            idle_ms: consumer.idle_ms,
        }
    }
}

async fn show(context: &Context<'_>, group: GroupName) -> Result<GroupDetail> {
    let report = find(context, &group).await?;
    let GroupName { tenant, name } = &group;
    let consumers = consumer_groups::consumers(&context.store, tenant, name).await?;
    let pending = consumer_groups::pending(&context.store, tenant, name, PENDING_MAX).await?;
    Ok(GroupDetail {
        report: GroupReport {
            consumers: None,
            ..report
        },
        consumers: consumers.into_iter().map(ConsumerReport::of).collect(),
        pending_entries: pending.into_iter().map(PendingEntry::of).collect(),
        key: context.store.keys().changes(tenant),
    })
}

impl Render for GroupDetail {
    fn text(&self, out: &mut Text) {
        let report = &self.report;
        out.facts([
            ("stream", self.key.clone()),
            ("group", report.group.clone()),
            ("last delivered", report.last_delivered_id.clone()),
            ("lag", report.lag_text()),
            ("pending", report.pending.to_string()),
            ("state", report.state_text()),
            (
                "kept",
                format!(
                    "{} entries (streams.changes_entries_max), delivered to this group or not",
                    report.entries_max
                ),
            ),
        ]);
        if !self.consumers.is_empty() {
            out.blank();
            let row = |consumer: &ConsumerReport| {
                [
                    consumer.consumer.clone(),
                    consumer.pending.to_string(),
                    format!("{} ago", duration(consumer.idle_ms)),
                ]
            };
            out.table(["CONSUMER", "PENDING", "LAST ACTIVE"], self.consumers.iter().map(row));
        }
        if !self.pending_entries.is_empty() {
            out.blank();
            let row = |entry: &PendingEntry| {
                [
                    entry.id.clone(),
                    entry.consumer.clone(),
                    format!("{} ago", duration(entry.idle_ms)),
                    entry.deliveries.to_string(),
                ]
            };
            let header = ["PENDING ENTRY", "CONSUMER", "DELIVERED", "TIMES"];
            out.table(header, self.pending_entries.iter().map(row));
        }
    }
}

#[derive(Serialize)]
struct Dropped {
    tenant: String,
    group: String,
    dropped: bool,
    pending: u64,
}

async fn drop(context: &Context<'_>, group: GroupName, confirm: Confirm) -> Result<Dropped> {
    let report = find(context, &group).await?;
    let GroupName { tenant, name } = group;
    confirm.check(|| {
        format!(
            "the position of group {name}, {}, would be lost, with {} pending entries of {} consumers and {} undelivered \
             entries",
            report.last_delivered_id,
            report.pending,
            or_nothing(report.consumers),
            report.lag_text()
        )
    })?;
    if !consumer_groups::drop(&context.store, &tenant, &name).await? {
        bail!("the group {name} was dropped by another process meanwhile");
    }
    Ok(Dropped {
        tenant,
        group: name,
        dropped: true,
        pending: report.pending,
    })
}

impl Render for Dropped {
    fn text(&self, out: &mut Text) {
        outln!(out, "dropped the group {} of tenant {}", self.group, self.tenant);
    }
}
