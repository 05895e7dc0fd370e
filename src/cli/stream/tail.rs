//! `posduif stream tail`: changes as they are published.

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
use super::place::Place;
use super::{Bench, Tenants};
use crate::admin::streams;
use crate::admin::tail::{self, Change, Column, Seen};
use crate::contract::entry::Text;
use crate::contract::stream_name::Target;
use crate::core::backoff::Backoff;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::postgres::tenants;

/// Between two looks for new tenants.
const TENANTS: Duration = Duration::from_secs(1);

/// First and longest wait while Redis is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Streams that are named when following begins; of more the number is told.
const NAMED_MAX: usize = 8;

/// A value in a line for people has at most so many characters.
const VALUE_MAX: usize = 60;

/// Arguments of `posduif stream tail`.
#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    tenants: Tenants,
    /// Only of this table; may be given several times
    #[arg(long)]
    table: Vec<String>,
    /// Only these operations, separated by commas
    #[arg(long, value_parser = operation(), value_delimiter = ',')]
    op: Vec<Operation>,
    /// What this user sees (id or name): inbox and shared stream, instead of all changes
    #[arg(long)]
    user: Option<String>,
    /// Where to begin: `now`, `start`, a stream ID, a commit LSN, a time (RFC 3339) or how long ago (90s, 10m, 2h, 3d)
    #[arg(long, default_value = "now", value_name = "PLACE")]
    from: Place,
    /// End after so many
    #[arg(long, alias = "count", short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Show values whole
    #[arg(long)]
    full: bool,
}

/// Reads one of [`Operation::ALL`].
fn operation() -> impl TypedValueParser<Value = Operation> {
    PossibleValuesParser::new(Operation::ALL.map(Operation::as_str)).map(|text| Operation::parse(text.as_bytes()))
}

/// Which changes are shown.
struct Filter {
    tables: Vec<String>,
    ops: Vec<Operation>,
    since: Option<DateTime<Utc>>,
}

impl Filter {
    fn takes(&self, change: &Change) -> bool {
        let is_of_table =
            self.tables.is_empty() || self.tables.iter().any(|table| table == change.entry.table.as_str());
        let is_op = self.ops.is_empty() || self.ops.contains(&change.entry.op);
        // Transactions that committed side by side may stand in another order than their times.
        let is_late = match (self.since, change.time()) {
            (Some(since), Some(time)) => time >= since,
            _ => true,
        };
        // A break in history matters to whoever looks on, whatever for.
        (is_of_table || change.entry.op == Operation::Reset) && is_op && is_late
    }
}

/// Why following ended.
enum End {
    /// As many as were asked for.
    Enough,
    /// Nobody reads any more.
    Closed,
}

impl Tail {
    pub(super) async fn run(self, bench: &Bench<'_>) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut following = Following::begin(self, bench).await?;
        tokio::select! {
            result = following.run() => match result {
                Ok(End::Enough | End::Closed) => Ok(()),
                Err(error) => Err(error),
            },
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    }
}

struct Following<'a> {
    bench: &'a Bench<'a>,
    tail: tail::Tail,
    filter: Filter,
    printer: Printer,
    left: Option<u64>,
    /// Tenants that come and go are followed.
    follows_all: bool,
    looked_at: Instant,
}

impl<'a> Following<'a> {
    async fn begin(command: Tail, bench: &'a Bench<'a>) -> Result<Self> {
        let tail = tail::Tail::new(&bench.config.redis).context("key `redis.url`")?;
        let mut following = Self {
            bench,
            tail,
            filter: Filter {
                tables: command.table,
                ops: command.op,
                since: command.from.time(),
            },
            printer: Printer::new(bench.global.json, command.full),
            left: command.limit,
            follows_all: command.tenants.named.is_empty() && command.user.is_none(),
            looked_at: Instant::now(),
        };
        let targets: Vec<Target> = match &command.user {
            Some(user) => {
                let name = match command.tenants.named.as_slice() {
                    [name] => name,
                    [] if !bench.config.server.default_tenant.is_empty() => &bench.config.server.default_tenant,
                    _ => usage_error!("`--user` wants one `--tenant`, whose user it is"),
                };
                let tenant = bench.tenant(name).await?;
                let user = bench.user(&tenant, user).await?;
                vec![
                    streams::inbox(&tenant.name, user),
                    Target::Shared(tenant.name.as_str().into()),
                ]
            }
            None => {
                let tenants = bench.tenants(&command.tenants).await?.into_iter();
                tenants.map(|tenant| Target::Changes(tenant.name.into())).collect()
            }
        };
        let mut names: Vec<String> = Vec::new();
        for target in targets {
            let after = command.from.before(bench, &target.key(bench.store.keys())).await?;
            names.push(format!("{}/{}", target.tenant(), target.stream()));
            following.tail.follow(target, after);
        }
        if !bench.global.json {
            let what = match names.as_slice() {
                [] => "every tenant that comes".to_owned(),
                names if names.len() > NAMED_MAX => format!("{} streams", names.len()),
                names => names.join(", "),
            };
            output::remark(format_args!("following {what}; Ctrl-C ends it"));
        }
        Ok(following)
    }

    async fn run(&mut self) -> Result<End> {
        let mut backoff = Backoff::new(AWAY.0, AWAY.1);
        let mut is_away = false;
        loop {
            match self.tail.next().await {
                Ok(seen) => {
                    if is_away {
                        output::warn_line(format_args!("Redis is back; going on where it was left"));
                        is_away = false;
                    }
                    backoff.reset();
                    if let Some(end) = self.show(seen)? {
                        return Ok(end);
                    }
                }
                Err(error) => {
                    if !is_away {
                        output::warn_line(format_args!("Redis does not answer: {error}; waiting until it is back"));
                        is_away = true;
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            }
            self.look_for_tenants().await;
        }
    }

    /// Tenants that are new are followed from their beginning, those that are dropped no longer.
    async fn look_for_tenants(&mut self) {
        if !self.follows_all || self.looked_at.elapsed() < TENANTS {
            return;
        }
        self.looked_at = Instant::now();
        // Without Postgres there are no new ones either, and what is followed goes on.
        let Ok(tenants) = tenants::list(&self.bench.database).await else {
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

    /// Shows what was seen; tells when that was the last.
    fn show(&mut self, seen: Vec<Seen>) -> Result<Option<End>> {
        let result = self.try_show(seen);
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(End::Closed)),
            result => result.context("cannot write"),
        }
    }

    fn try_show(&mut self, seen: Vec<Seen>) -> io::Result<Option<End>> {
        for seen in seen {
            match &seen {
                Seen::Change(change) if self.filter.takes(change) => {
                    self.printer.change(change)?;
                    if let Some(left) = &mut self.left {
                        *left -= 1;
                        if *left == 0 {
                            self.printer.out.flush()?;
                            return Ok(Some(End::Enough));
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
                    "anew",
                    target,
                    None,
                    "the stream was made anew and is shown from its beginning",
                )?,
                Seen::WrongType(target, kind) => self.printer.note(
                    "wrong_type",
                    target,
                    None,
                    &format!(
                        "a {kind} is in the stream's place; `posduif stream rebuild --tenant {}` clears it away",
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
    /// Columns that the change is about.
    changed: Vec<&'a str>,
    row: Option<Box<RawValue>>,
    old: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unchanged: Option<Box<RawValue>>,
}

/// What is no change, as a line of JSON.
#[derive(Serialize)]
struct NoteLine<'a> {
    tenant: &'a str,
    stream: String,
    op: &'a str,
    /// First entry that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<String>,
    note: &'a str,
}

struct Printer {
    out: io::BufWriter<io::Stdout>,
    json: bool,
    full: bool,
    colours: bool,
    /// Tenants, for the width of their column.
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
            (Operation::Reset, _) => line.push_str("history begins anew here: readers take a snapshot"),
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
        let told: Vec<String> = columns
            .iter()
            // Its id stands before it already, and of a whole row only what there is matters.
            .filter(|column| column.name != "id" && !is_void(column))
            .map(|column| self.column(column))
            .collect();
        if !told.is_empty() {
            line.push_str("  ");
            line.push_str(&told.join(", "));
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

/// A column without a value, of a row that has come or gone.
fn is_void(column: &Column<'_>) -> bool {
    matches!((column.old, column.new), (None, Some("null")) | (Some("null"), None))
}

fn colour(op: Operation) -> &'static str {
    match op {
        Operation::Insert => "32",
        Operation::Update => "33",
        Operation::Delete | Operation::Truncate => "31",
        Operation::Message => "36",
        Operation::Reset | Operation::Other => "35",
    }
}

/// JSON whose whitespace may hold ends of lines, on one line: within strings they are written otherwise.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

fn raw(json: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(one_line(json)).ok()
}
