//! `posduif stream list`: every tenant's streams at a glance.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::super::human;
use super::super::output::{self, outln};
use super::super::table::{Cell, NOTHING, Tone, print_table};
use super::{Bench, StreamView, Tenants, dash, mark};
use crate::accounts::users;
use crate::admin::streams::{self, Ids, Length, Meta, Stopped};
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::redis::store::Error;

/// Inboxes whose memory is asked for; that of all is taken from theirs.
const SAMPLE: usize = 100;

/// Arguments of `posduif stream list`.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    tenants: Tenants,
}

#[derive(Debug, Serialize)]
struct Overview {
    epoch: Option<String>,
    /// The last entry that was written.
    position: Option<String>,
    live: StreamView,
    tenants: Vec<TenantView>,
}

#[derive(Debug, Serialize)]
struct TenantView {
    tenant: String,
    state: Option<String>,
    generation: Option<i64>,
    changes: StreamView,
    shared: StreamView,
    inboxes: Inboxes,
    push: StreamView,
    quarantine: StreamView,
    stopped: Vec<StoppedView>,
    /// What else is in the place of the hash that has generation, state and trim points.
    error: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Inboxes {
    /// Inboxes that are there.
    count: u64,
    /// Users that have none, or something else in its place.
    missing: u64,
    /// Entries of all of them.
    entries: u64,
    /// Of all of them, from a sample.
    memory_bytes: u64,
    longest: Option<Longest>,
}

#[derive(Debug, Serialize)]
struct Longest {
    user_id: Uuid,
    length: u64,
}

#[derive(Debug, Serialize)]
struct StoppedView {
    stream: String,
    cause: String,
}

impl List {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let tenants = bench.tenants(&self.tenants).await?;
        let stopped = streams::stopped(&bench.store).await?;
        let keys = bench.store.keys();
        let (live, _) = StreamView::look(bench, "live", keys.live(0), bench.positions()).await?;
        let mut overview = Overview {
            epoch: bench.view.map(|view| view.epoch.to_string()),
            position: bench.view.map(|view| view.position.to_string()),
            live,
            tenants: Vec::with_capacity(tenants.len()),
        };
        for tenant in &tenants {
            overview.tenants.push(TenantView::look(bench, tenant, &stopped).await?);
        }
        if bench.global.json {
            return output::json(&overview);
        }
        overview.print()
    }
}

impl TenantView {
    async fn look(bench: &Bench<'_>, tenant: &Tenant, stopped: &[Stopped]) -> Result<Self> {
        let (name, keys): (Arc<str>, _) = (tenant.name.as_str().into(), bench.store.keys());
        let (meta, error) = match streams::meta(&bench.store, &name).await {
            Ok(meta) => (meta, None),
            Err(error @ Error::WrongType { .. }) => (Meta::default(), Some(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let (changes, _) = StreamView::look_at(bench, &Target::Changes(name.clone()), stopped).await?;
        let (shared, _) = StreamView::look_at(bench, &Target::Shared(name.clone()), stopped).await?;
        let (push, _) = StreamView::look(bench, "push", keys.push(&name), Ids::Clock).await?;
        let (quarantine, _) = StreamView::look(bench, "quarantine", keys.quarantine(&name), Ids::Clock).await?;
        Ok(Self {
            tenant: tenant.name.clone(),
            state: meta.state,
            generation: meta.generation,
            changes,
            shared,
            inboxes: Inboxes::look(bench, tenant).await?,
            push,
            quarantine,
            stopped: stopped
                .iter()
                .filter(|stopped| **stopped.target.tenant() == *name)
                .map(|stopped| StoppedView {
                    stream: stopped.target.stream(),
                    cause: stopped.cause.clone(),
                })
                .collect(),
            error,
        })
    }
}

impl Inboxes {
    async fn look(bench: &Bench<'_>, tenant: &Tenant) -> Result<Self> {
        let (mut inboxes, mut sample) = (Self::default(), Vec::new());
        let mut after = Uuid::nil();
        loop {
            let users = users::ids(&bench.database, tenant, after, streams::PAGE as i64).await?;
            let key = |user: &Uuid| bench.store.keys().inbox(&tenant.name, &user.to_string());
            let keys: Vec<String> = users.iter().map(key).collect();
            let lengths = streams::lengths(&bench.store, &keys).await?;
            for ((user, key), length) in users.iter().zip(keys).zip(lengths) {
                let Length::Entries(length) = length else {
                    inboxes.missing += 1;
                    continue;
                };
                inboxes.count += 1;
                inboxes.entries += length;
                if inboxes.longest.as_ref().is_none_or(|longest| longest.length < length) {
                    inboxes.longest = Some(Longest { user_id: *user, length });
                }
                if sample.len() < SAMPLE {
                    sample.push(key);
                }
            }
            match users.last() {
                Some(last) if users.len() == streams::PAGE => after = *last,
                _ => break,
            }
        }
        if !sample.is_empty() {
            let bytes = streams::memory(&bench.store, &sample).await?;
            inboxes.memory_bytes = bytes.saturating_mul(inboxes.count) / sample.len() as u64;
        }
        Ok(inboxes)
    }

    fn note(&self, tenant: &str) -> String {
        let longest = self.longest.as_ref().filter(|longest| longest.length > 0);
        let longest = longest.map(|longest| format!("longest: {} of user {}", longest.length, longest.user_id));
        let missing = (self.missing > 0).then(|| {
            format!(
                "{} users have none: `posduif stream rebuild --tenant {tenant}` makes them",
                self.missing
            )
        });
        let notes: Vec<String> = [longest, missing].into_iter().flatten().collect();
        notes.join("; ")
    }
}

fn inboxes_text(count: u64) -> String {
    match count {
        1 => "1 inbox".to_owned(),
        _ => format!("{count} inboxes"),
    }
}

impl Overview {
    fn print(&self) -> Result<()> {
        let row = |tenant: &str, view: &StreamView, note: String| {
            [
                Cell::from(tenant),
                view.stream.clone().into(),
                Cell::number(view.length),
                mark(view.first.as_ref()).into(),
                mark(view.last.as_ref()).into(),
                Cell::number(human::bytes(view.memory_bytes)),
                dash(view.trimmed_below.as_ref()).into(),
                // Only what is wrong is noted of these.
                Cell::from(note).toned(Tone::Bad),
            ]
        };
        let mut rows = Vec::new();
        for tenant in &self.tenants {
            let name = &tenant.tenant;
            let complaint = |view: &StreamView| view.complaint().unwrap_or_default();
            let state = tenant
                .state
                .as_deref()
                .filter(|state| *state != crate::core::tenant::ACTIVE);
            let note = [complaint(&tenant.changes), state.unwrap_or_default().to_owned()];
            let note: Vec<String> = note.into_iter().filter(|note| !note.is_empty()).collect();
            rows.push(row(name, &tenant.changes, note.join("; ")));
            rows.push(row(name, &tenant.shared, complaint(&tenant.shared)));
            rows.push([
                Cell::from(name.as_str()),
                inboxes_text(tenant.inboxes.count).into(),
                Cell::number(tenant.inboxes.entries),
                NOTHING.into(),
                NOTHING.into(),
                Cell::number(human::bytes(tenant.inboxes.memory_bytes)),
                NOTHING.into(),
                Cell::from(tenant.inboxes.note(name)).toned(if tenant.inboxes.missing > 0 {
                    Tone::Warning
                } else {
                    Tone::Plain
                }),
            ]);
            for view in [&tenant.push, &tenant.quarantine] {
                match view.kind.as_str() {
                    "none" => {}
                    "stream" if view.length == 0 => {}
                    _ => rows.push(row(name, view, complaint(view))),
                }
            }
        }
        rows.push(row("-", &self.live, String::new()));
        print_table(
            [
                "TENANT",
                "STREAM",
                "ENTRIES",
                "FIRST",
                "LAST",
                "MEMORY",
                "TRIMMED BELOW",
                "NOTE",
            ],
            rows,
        )?;
        if self.epoch.is_none() {
            outln!("no engine has published anything yet, or Redis was emptied")?;
        }
        for tenant in &self.tenants {
            if let Some(error) = &tenant.error {
                outln!("{}: {}", tenant.tenant, error)?;
            }
            for stopped in &tenant.stopped {
                outln!(
                    "{}/{} is stopped: {}; `posduif stream rebuild --tenant {}` makes it anew",
                    tenant.tenant,
                    stopped.stream,
                    stopped.cause,
                    tenant.tenant
                )?;
            }
        }
        Ok(())
    }
}
