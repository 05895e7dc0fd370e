//! `posduif stream list`: the streams of every tenant.

use anyhow::Result;
use clap::Args;

use super::super::human;
use super::super::output::{self, Render, Text, outln};
use super::super::table::{Cell, NOTHING, Tone, or_nothing};
use super::{Context, Tenants, mark};
use crate::admin::stream_report::{Groups, Inboxes, StreamList, StreamReport, TenantStreams};

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    tenants: Tenants,
}

impl List {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let tenants = context.tenants(&self.tenants).await?;
        output::print(context.global, &StreamList::read(context.sources(), &tenants).await?)
    }
}

impl Render for StreamList {
    fn text(&self, out: &mut Text) {
        let mut rows: Vec<[Cell; 9]> = self.tenants.iter().flat_map(tenant_rows).collect();
        rows.push(stream_row(NOTHING, &self.live, String::new()));
        let header = [
            "TENANT",
            "STREAM",
            "ENTRIES",
            "FIRST",
            "LAST",
            "MEMORY",
            "AT MOST",
            "TRIMMED BELOW",
            "NOTE",
        ];
        out.table(header, rows);
        if self.epoch.is_none() {
            outln!(out, "no engine has published anything yet, or Redis was emptied");
        }
        for tenant in &self.tenants {
            let name = &tenant.tenant;
            if let Some(error) = &tenant.error {
                outln!(out, "{name}: {error}");
            }
            for stopped in &tenant.stopped {
                outln!(
                    out,
                    "{name}/{} is stopped: {}; `posduif stream rebuild --tenant {name}` recreates it",
                    stopped.stream,
                    stopped.cause
                );
            }
        }
    }
}

fn tenant_rows(tenant: &TenantStreams) -> Vec<[Cell; 9]> {
    let name = &tenant.tenant;
    let problem = |stream: &StreamReport| stream.problem().unwrap_or_default();
    let state = tenant
        .state
        .clone()
        .filter(|state| state != crate::core::tenant::ACTIVE);
    let note: Vec<String> = tenant.changes.problem().into_iter().chain(state).collect();
    let mut rows = vec![
        stream_row(name, &tenant.changes, note.join("; ")),
        stream_row(name, &tenant.shared, problem(&tenant.shared)),
        inboxes_row(name, &tenant.inboxes),
    ];
    if tenant.groups.totals.count + tenant.groups.totals.unusable > 0 {
        rows.push(groups_row(name, &tenant.groups));
    }
    let beyond = match tenant.exceeded {
        true => "beyond its budget: writes are refused",
        false => "",
    };
    let all = [
        Cell::from(&**name),
        "all streams".into(),
        NOTHING.into(),
        NOTHING.into(),
        NOTHING.into(),
        Cell::number(human::bytes(tenant.memory_bytes)),
        Cell::number(human::bytes(tenant.budget_bytes)),
        NOTHING.into(),
        Cell::from(beyond).toned(Tone::Bad),
    ];
    for stream in [&tenant.push, &tenant.quarantine] {
        match stream.kind.as_str() {
            "none" => {}
            "stream" if stream.length == 0 => {}
            _ => rows.push(stream_row(name, stream, problem(stream))),
        }
    }
    rows.push(all);
    rows
}

/// The note is a problem.
fn stream_row(tenant: &str, stream: &StreamReport, note: String) -> [Cell; 9] {
    [
        Cell::from(tenant),
        stream.stream.clone().into(),
        Cell::number(stream.length),
        mark(stream.first.as_ref()).into(),
        mark(stream.last.as_ref()).into(),
        Cell::number(human::bytes(stream.memory_bytes)),
        Cell::number(or_nothing(stream.bytes_max.map(human::bytes))),
        or_nothing(stream.trimmed_below.as_ref()).into(),
        Cell::from(note).toned(Tone::Bad),
    ]
}

fn inboxes_row(tenant: &str, inboxes: &Inboxes) -> [Cell; 9] {
    let count = match inboxes.count {
        1 => "1 inbox".to_owned(),
        count => format!("{count} inboxes"),
    };
    let tone = if inboxes.unusable > 0 {
        Tone::Warning
    } else {
        Tone::Plain
    };
    [
        Cell::from(tenant),
        count.into(),
        Cell::number(inboxes.entries),
        NOTHING.into(),
        NOTHING.into(),
        Cell::number(human::bytes(inboxes.memory_bytes)),
        Cell::number(format!("{} each", human::bytes(inboxes.bytes_max))),
        NOTHING.into(),
        Cell::from(inboxes_note(tenant, inboxes)).toned(tone),
    ]
}

fn groups_row(tenant: &str, groups: &Groups) -> [Cell; 9] {
    let totals = &groups.totals;
    let count = match totals.count {
        1 => "1 group".to_owned(),
        count => format!("{count} groups"),
    };
    let largest = totals.largest.as_ref();
    let largest =
        largest.map(|largest| format!("largest: {} of {}", human::bytes(largest.memory_bytes), largest.group));
    let unusable = (totals.unusable > 0).then(|| format!("streams of the wrong type: {}", totals.unusable));
    let notes: Vec<String> = largest.into_iter().chain(unusable).collect();
    let tone = if totals.unusable > 0 {
        Tone::Warning
    } else {
        Tone::Plain
    };
    [
        Cell::from(tenant),
        count.into(),
        Cell::number(totals.entries),
        NOTHING.into(),
        NOTHING.into(),
        Cell::number(human::bytes(totals.memory_bytes)),
        Cell::number(format!("{} each", human::bytes(groups.bytes_max))),
        NOTHING.into(),
        Cell::from(notes.join("; ")).toned(tone),
    ]
}

fn inboxes_note(tenant: &str, inboxes: &Inboxes) -> String {
    let longest = inboxes.longest.as_ref().filter(|longest| longest.length > 0);
    let longest = longest.map(|longest| format!("longest: {} of user {}", longest.length, longest.user_id));
    let largest = inboxes
        .largest
        .as_ref()
        .filter(|largest| largest.memory_bytes > inboxes.bytes_max / 2);
    let largest = largest.map(|largest| {
        format!(
            "largest: {} of user {}",
            human::bytes(largest.memory_bytes),
            largest.user_id
        )
    });
    let unusable = (inboxes.unusable > 0).then(|| {
        format!(
            "inboxes of the wrong type: {}; `posduif stream rebuild --tenant {tenant}` recreates them",
            inboxes.unusable
        )
    });
    let notes: Vec<String> = [longest, largest, unusable].into_iter().flatten().collect();
    notes.join("; ")
}
