//! `posduif stream tail`: follows changes as they are published.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::signal::unix::{SignalKind, signal};

use super::super::output::{self, printable, usage_error};
use super::position::StreamPosition;
use super::{Context, Tenants};
use crate::admin::streams;
use crate::admin::tail::{self, Change, Column, Seen};
use crate::contract::entry::Text;
use crate::contract::stream_name::Target;
use crate::core::backoff::Backoff;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::postgres::tenants;

/// Interval of the query for new tenants.
const TENANTS_INTERVAL: Duration = Duration::from_secs(1);

/// First and longest delay between attempts while Redis is unreachable.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Streams that the first line names; of more it prints the number.
const NAMED_MAX: usize = 8;

/// Characters of a value in a line of text, without `--full`.
const VALUE_MAX: usize = 60;

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    tenants: Tenants,
    /// Only this table; may be repeated
    #[arg(long)]
    table: Vec<String>,
    /// Only these operations, separated by commas
    #[arg(long, value_parser = operation(), value_delimiter = ',')]
    op: Vec<Operation>,
    /// Only what this user sees (id or name): inbox and shared stream, instead of `changes`
    #[arg(long)]
    user: Option<String>,
    /// Start position: `now`, `start`, a stream ID, a commit LSN, a time (RFC 3339) or a duration ago (90s, 10m, 2h, 3d)
    #[arg(long, default_value = "now", value_name = "POSITION")]
    from: StreamPosition,
    /// Stop after N changes
    #[arg(long, alias = "count", short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Do not truncate values
    #[arg(long)]
    full: bool,
}

/// Reads one of [`Operation::ALL`].
fn operation() -> impl TypedValueParser<Value = Operation> {
    PossibleValuesParser::new(Operation::ALL.map(Operation::as_str)).map(|text| Operation::parse(text.as_bytes()))
}

struct Filter {
    tables: Vec<String>,
    ops: Vec<Operation>,
    since: Option<DateTime<Utc>>,
}

impl Filter {
    fn matches(&self, change: &Change) -> bool {
        let is_of_table =
            self.tables.is_empty() || self.tables.iter().any(|table| table == change.entry.table.as_str());
        let is_op = self.ops.is_empty() || self.ops.contains(&change.entry.op);
        // The order of concurrent commits may differ from that of their times.
        let is_late = match (self.since, change.time()) {
            (Some(since), Some(time)) => time >= since,
            _ => true,
        };
        // A reset concerns every reader, whatever the tables.
        (is_of_table || change.entry.op == Operation::Reset) && is_op && is_late
    }
}

/// Why tailing ended.
enum End {
    /// At `--limit`.
    Limit,
    /// The output is closed.
    Closed,
}

impl Tail {
    pub(super) async fn run(self, context: &Context<'_>) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut printing = TailPrinter::start(self, context).await?;
        tokio::select! {
            result = printing.run() => match result {
                Ok(End::Limit | End::Closed) => Ok(()),
                Err(error) => Err(error),
            },
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    }
}

struct TailPrinter<'a> {
    context: &'a Context<'a>,
    tail: tail::Tail,
    filter: Filter,
    printer: Printer,
    left: Option<u64>,
    /// Whether to follow tenants that are created later.
    follows_all: bool,
    tenants_read_at: Instant,
}

impl<'a> TailPrinter<'a> {
    async fn start(command: Tail, context: &'a Context<'a>) -> Result<Self> {
        let tail = tail::Tail::new(&context.config.redis).context("key `redis.url`")?;
        let mut printing = Self {
            context,
            tail,
            filter: Filter {
                tables: command.table,
                ops: command.op,
                since: command.from.time(),
            },
            printer: Printer::new(context.global.json, command.full),
            left: command.limit,
            follows_all: command.tenants.named.is_empty() && command.user.is_none(),
            tenants_read_at: Instant::now(),
        };
        let targets: Vec<Target> = match &command.user {
            Some(user) => {
                let name = match command.tenants.named.as_slice() {
                    [name] => name,
                    [] if !context.config.server.default_tenant.is_empty() => &context.config.server.default_tenant,
                    _ => usage_error!("`--user` requires exactly one `--tenant`"),
                };
                let tenant = context.tenant(name).await?;
                let user = context.user(&tenant, user).await?;
                vec![
                    streams::inbox(&tenant.name, user),
                    Target::Shared(tenant.name.as_str().into()),
                ]
            }
            None => {
                let tenants = context.tenants(&command.tenants).await?.into_iter();
                tenants.map(|tenant| Target::Changes(tenant.name.into())).collect()
            }
        };
        let mut names: Vec<String> = Vec::new();
        for target in targets {
            let after = command.from.before(context, &target.key(context.store.keys())).await?;
            names.push(format!("{}/{}", target.tenant(), target.stream()));
            printing.tail.follow(target, after);
        }
        if !context.global.json {
            let what = match names.as_slice() {
                [] => "future tenants".to_owned(),
                names if names.len() > NAMED_MAX => format!("{} streams", names.len()),
                names => names.join(", "),
            };
            output::info(format_args!("following {what}; press Ctrl-C to stop"));
        }
        Ok(printing)
    }

    async fn run(&mut self) -> Result<End> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut is_unreachable = false;
        loop {
            match self.tail.next().await {
                Ok(events) => {
                    if is_unreachable {
                        output::warn(format_args!("Redis is reachable again; continuing"));
                        is_unreachable = false;
                    }
                    backoff.reset();
                    if let Some(end) = self.print(events)? {
                        return Ok(end);
                    }
                }
                Err(error) => {
                    if !is_unreachable {
                        output::warn(format_args!("Redis is unreachable: {error}; retrying"));
                        is_unreachable = true;
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            }
            self.update_tenants().await;
        }
    }

    /// Follows new tenants from the start of their streams, and no longer follows dropped ones.
    async fn update_tenants(&mut self) {
        if !self.follows_all || self.tenants_read_at.elapsed() < TENANTS_INTERVAL {
            return;
        }
        self.tenants_read_at = Instant::now();
        // No tenants are created while Postgres is unreachable.
        let Ok(tenants) = tenants::list_of(&self.context.database, &self.context.config.lane).await else {
            return;
        };
        let targets: Vec<Target> = tenants
            .into_iter()
            .map(|tenant| Target::Changes(tenant.name.into()))
            .collect();
        self.tail.retain(|target| targets.contains(target));
        for target in targets {
            if !self.tail.follows(&target) {
                self.tail.follow(target, StreamId::ZERO);
            }
        }
    }

    /// Prints events; returns why tailing ends, if it does.
    fn print(&mut self, events: Vec<Seen>) -> Result<Option<End>> {
        let result = self.try_print(events);
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(End::Closed)),
            result => result.context("cannot write to the standard output"),
        }
    }

    fn try_print(&mut self, events: Vec<Seen>) -> io::Result<Option<End>> {
        for event in events {
            match &event {
                Seen::Change(change) if self.filter.matches(change) => {
                    self.printer.change(change)?;
                    if let Some(left) = &mut self.left {
                        *left -= 1;
                        if *left == 0 {
                            self.printer.out.flush()?;
                            return Ok(Some(End::Limit));
                        }
                    }
                }
                Seen::Change(_) => {}
                Seen::Gap(target, first_kept) => self.printer.note(
                    "gap",
                    target,
                    Some(*first_kept),
                    &format!("entries below {first_kept} were trimmed and cannot be shown"),
                )?,
                Seen::Recreated(target) => self.printer.note(
                    "recreated",
                    target,
                    None,
                    "the stream was recreated; continuing from its start",
                )?,
                Seen::WrongType(target, kind) => self.printer.note(
                    "wrong_type",
                    target,
                    None,
                    &format!(
                        "the key has the wrong type, {kind}; `posduif stream rebuild --tenant {}` recreates the stream",
                        target.tenant()
                    ),
                )?,
            }
        }
        self.printer.out.flush()?;
        Ok(None)
    }
}

/// A change as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    tenant: &'a str,
    stream: String,
    id: String,
    time: Option<String>,
    op: &'a str,
    schema: Option<&'a str>,
    table: Option<&'a str>,
    row_id: Option<String>,
    xid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    /// Names of the changed columns.
    changed: Vec<&'a str>,
    row: Option<Box<RawValue>>,
    old: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unchanged: Option<Box<RawValue>>,
}

/// An event other than a change, as a line of JSON.
#[derive(Serialize)]
struct NoteLine<'a> {
    tenant: &'a str,
    stream: String,
    op: &'a str,
    /// The first entry kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<String>,
    note: &'a str,
}

struct Printer {
    out: io::BufWriter<io::Stdout>,
    json: bool,
    full: bool,
    colours: bool,
    /// Width of the tenant column.
    width: usize,
}

impl Printer {
    fn new(json: bool, full: bool) -> Self {
        Self {
            out: io::BufWriter::new(io::stdout()),
            json,
            full,
            colours: !json && output::has_colours(),
            width: 0,
        }
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        let entry = &change.entry;
        if self.json {
            return self.json_line(&Line {
                tenant: change.target.tenant(),
                stream: change.target.stream(),
                id: entry.id.to_string(),
                time: change.time().map(streams::rfc3339),
                op: entry.op.as_str(),
                schema: Some(entry.schema.as_str()).filter(|text| !text.is_empty()),
                table: Some(entry.table.as_str()).filter(|text| !text.is_empty()),
                row_id: change.row_id(),
                xid: entry.xid,
                event: entry.event.as_ref().map(Text::as_str),
                changed: change.columns().iter().map(|column| column.name).collect(),
                row: entry.row.as_ref().map(Text::as_str).and_then(raw),
                old: entry.old.as_ref().map(Text::as_str).and_then(raw),
                unchanged: entry.unchanged.as_ref().map(Text::as_str).and_then(raw),
            });
        }
        let time = change.time().map_or_else(
            || "-".to_owned(),
            |time| time.to_rfc3339_opts(SecondsFormat::Millis, true),
        );
        let tenant = change.target.tenant().clone();
        self.width = self.width.max(tenant.len());
        let width = self.width;
        let op = self.paint(colour(entry.op), &format!("{:<8}", entry.op.as_str()));
        let time = self.paint("2", &time);
        let mut line = format!("{time}  {tenant:<width$}  {op}  ");
        match (entry.op, change.row_id()) {
            (Operation::Reset, _) => line.push_str("readers take a snapshot"),
            (_, Some(id)) => {
                line.push_str(&printable(entry.table.as_str()));
                line.push(' ');
                line.push_str(&printable(&id));
            }
            (_, None) => line.push_str(&printable(entry.table.as_str())),
        }
        if let Some(event) = &entry.event
            && entry.op != Operation::Reset
        {
            line.push_str(&format!(" ({})", printable(event.as_str())));
        }
        let columns = change.columns();
        let values: Vec<String> = columns
            .iter()
            // The id is printed already, and nulls of an inserted or deleted row are noise.
            .filter(|column| column.name != "id" && !is_null(column))
            .map(|column| self.column(column))
            .collect();
        if !values.is_empty() {
            line.push_str("  ");
            line.push_str(&values.join(", "));
        }
        if let (Operation::Message, Some(data)) = (entry.op, &entry.row) {
            line.push_str("  ");
            line.push_str(&self.value(data.as_str()));
        }
        writeln!(self.out, "{line}")
    }

    fn column(&self, column: &Column<'_>) -> String {
        let name = self.paint("1", &printable(column.name));
        match (column.old, column.new) {
            (Some(old), Some(new)) => format!("{name} {} -> {}", self.value(old), self.value(new)),
            (None, Some(value)) | (Some(value), None) => format!("{name} {}", self.value(value)),
            (None, None) => name,
        }
    }

    fn value(&self, json: &str) -> String {
        let text = printable(&one_line(json));
        if self.full || text.chars().count() <= VALUE_MAX {
            return text;
        }
        let cut: String = text.chars().take(VALUE_MAX).collect();
        format!("{cut}…")
    }

    fn note(&mut self, op: &str, target: &Target, first: Option<StreamId>, note: &str) -> io::Result<()> {
        if self.json {
            return self.json_line(&NoteLine {
                tenant: target.tenant(),
                stream: target.stream(),
                op,
                first: first.map(|first| first.to_string()),
                note,
            });
        }
        let line = self.paint("33", &format!("-- {}/{}: {note}", target.tenant(), target.stream()));
        writeln!(self.out, "{line}")
    }

    fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A null of an inserted or deleted row.
fn is_null(column: &Column<'_>) -> bool {
    matches!((column.old, column.new), (None, Some("null")) | (Some("null"), None))
}

fn colour(op: Operation) -> &'static str {
    match op {
        Operation::Insert => "32",
        Operation::Update => "33",
        Operation::Delete | Operation::Truncate => "31",
        Operation::Message | Operation::Member => "36",
        Operation::Reset | Operation::Other => "35",
    }
}

/// JSON on one line. Line breaks within strings are escaped, so only whitespace is replaced.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

fn raw(json: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(one_line(json)).ok()
}
