//! Cases: data in `src/kit/cases`, one file for each level.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::protocol;
use super::wire::Route;

const FILES: [(Level, &str); 4] = [
    (Level::Reader, include_str!("cases/reader.yaml")),
    (Level::Writer, include_str!("cases/writer.yaml")),
    (Level::Live, include_str!("cases/live.yaml")),
    (Level::Secure, include_str!("cases/secure.yaml")),
];

/// What a client claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It keeps a copy of the user's rows.
    Reader,
    /// It uploads the user's changes.
    Writer,
    /// It follows a stream of events, and waits as long as it must.
    Live,
    /// It keeps users and credentials apart.
    Secure,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Reader, Self::Writer, Self::Live, Self::Secure];

    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Live => "live",
            Self::Secure => "secure",
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `heading/what-happens`.
    pub id: String,
    #[serde(skip, default = "Case::no_level")]
    pub level: Option<Level>,
    pub title: String,
    /// The rows of the protocol's tables that it tests, by the names of their tests.
    #[serde(default)]
    pub rows: Vec<String>,
    /// Features of the driver without which it cannot run.
    #[serde(default)]
    pub needs: Vec<Feature>,
    /// Rows of a batch.
    pub page: Option<usize>,
    /// Whether the case ends where the script does, without a last sync.
    #[serde(default)]
    pub ends_here: bool,
    pub steps: Vec<Step>,
    /// The steps as the file has them, for reports.
    #[serde(skip)]
    pub script: Vec<String>,
}

/// What a driver may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Its storage survives the end of the process.
    Restart,
    /// It makes changes.
    Write,
    /// It makes changes of messages.
    Messages,
    /// It keeps groups.
    Groups,
    /// It follows live events.
    Live,
    /// Its time is that of `advance`.
    Clock,
    /// The time of its heartbeats is, too.
    Silence,
    /// Live events come over a WebSocket, if the kit wants it.
    Websocket,
    /// Uploads go over that WebSocket while it is open.
    SocketUploads,
}

/// How events come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    #[default]
    Sse,
    Websocket,
}

impl Feature {
    pub const ALL: [Self; 9] = [
        Self::Restart,
        Self::Write,
        Self::Messages,
        Self::Groups,
        Self::Live,
        Self::Clock,
        Self::Silence,
        Self::Websocket,
        Self::SocketUploads,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Write => "write",
            Self::Messages => "messages",
            Self::Groups => "groups",
            Self::Live => "live",
            Self::Clock => "clock",
            Self::Silence => "silence",
            Self::Websocket => "websocket",
            Self::SocketUploads => "socket-uploads",
        }
    }
}

/// How a sync or an enrollment is expected to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It succeeds, at most after some repetitions.
    #[default]
    Ok,
    /// One attempt, however it ends.
    Once,
    /// One attempt, which does not succeed.
    Failed,
    /// It goes on while the next steps run.
    Running,
}

/// What `last` expects of the cursor or the last event id of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    None,
    Some,
    /// The cursor of the last batch.
    Newest,
}

fn alice() -> String {
    "alice".to_owned()
}

fn yes() -> bool {
    true
}

/// One step of a script. A step without parameters is its name alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    // What others do.
    /// A row is written; `silent`: without an entry in any stream.
    Put {
        table: String,
        id: String,
        #[serde(default)]
        row: Map<String, Value>,
        via: Option<Vec<String>>,
        #[serde(default = "alice")]
        by: String,
        #[serde(default)]
        silent: bool,
    },
    Remove {
        table: String,
        id: String,
        #[serde(default)]
        silent: bool,
    },
    Join {
        group: String,
    },
    Leave {
        group: String,
    },
    /// An outbox message of the app.
    Message {
        event: String,
    },

    // What the server does.
    /// Batches have so many rows from now on.
    Page {
        rows: usize,
    },
    /// The history is trimmed: former cursors get a `reset`.
    Trim {},
    /// Keeps a copy of the server, to which `restore` goes back.
    Mark {},
    Restore {},
    /// Batches stay behind the rows until `catch-up`.
    Lag {},
    /// The stream repeats a row as readers have it.
    Repeat {
        table: String,
        id: String,
    },
    /// What uploads write enters no stream.
    Quiet {},
    /// Batches get so many changes further, or to the end.
    CatchUp {
        changes: Option<usize>,
    },
    Fault(Fault),
    /// Delayed answers go.
    Release {},
    /// No request reaches the server.
    Offline {},
    Online {},
    /// The result of the next item of this row.
    Result {
        id: String,
        status: String,
        code: Option<String>,
        winner: Option<String>,
        /// Whether `server` is null.
        #[serde(default)]
        gone: bool,
        /// The row in `server`, whose version is that of the result.
        server: Option<Map<String, Value>>,
    },
    /// Uploads that are too large: of more items, or with an item of this row.
    TooLarge {
        items: Option<usize>,
        id: Option<String>,
    },
    /// Conflicts of messages are decided by hand.
    Manual {},
    /// All devices of the user are revoked; `silent`: streams are not notified.
    Revoke {
        #[serde(default = "alice")]
        user: String,
        #[serde(default)]
        silent: bool,
    },
    /// An event on all streams.
    Event {
        name: String,
        #[serde(default)]
        data: Map<String, Value>,
        /// Whether it has an id.
        #[serde(default)]
        id: bool,
    },
    /// All streams end; WebSockets with this code, or without a closing frame.
    Cut {
        code: Option<u16>,
    },
    /// A heartbeat on all streams.
    Heartbeat {},
    /// On open streams the server neither reads nor writes any more, and does not close them.
    HalfOpen {},
    /// The server does not know the ids of former events any more.
    ForgetEvents {},

    // What the user and the device do.
    Enroll {
        #[serde(default = "alice")]
        user: String,
        /// The address of the last enrollment again.
        #[serde(default)]
        again: bool,
        #[serde(default)]
        then: Outcome,
    },
    Sync {
        #[serde(default)]
        then: Outcome,
    },
    /// A sync that was running ends.
    Finish {
        #[serde(default)]
        then: Outcome,
    },
    Write {
        table: String,
        id: String,
        row: Map<String, Value>,
    },
    Edit {
        table: String,
        id: String,
        row: Map<String, Value>,
    },
    Delete {
        table: String,
        id: String,
    },
    Read {
        id: String,
    },
    Open {
        #[serde(default)]
        over: Transport,
    },
    Close {},
    /// The stream is open.
    Opened {},
    /// The process ends at once, and starts again on the same storage.
    Kill {},
    /// Kills at a random moment of a sync, so many times.
    KillOften {
        times: u32,
    },
    /// A copy of the storage, to which `load` goes back.
    Save {},
    Load {},
    Advance {
        ms: u64,
    },
    /// Time passes until a request of a route arrives, which must be within these bounds.
    AdvanceUntil {
        on: Route,
        least: u64,
        most: u64,
    },

    // What is expected.
    /// The rows are those that the user sees in the history.
    Same {},
    /// These rows are there, with these columns, and no others in the table.
    Rows {
        table: String,
        are: BTreeMap<String, Map<String, Value>>,
    },
    /// Changes without a result.
    Outbox {
        is: usize,
    },
    /// What was refused, and the user has not seen.
    Refused {
        codes: Vec<String>,
    },
    State {
        is: String,
    },
    /// Counting of requests begins here.
    Watch {},
    /// Waits until so many requests of a route have arrived since `watch`.
    Await {
        on: Route,
        #[serde(default = "one")]
        count: usize,
        /// Whether they must have ended.
        #[serde(default = "yes")]
        done: bool,
    },
    /// How many requests of a route have arrived since `watch`.
    Count {
        on: Route,
        #[serde(default)]
        least: usize,
        most: Option<usize>,
    },
    /// What the last request of a route had; `nth` counts since `watch` from 1.
    Last {
        on: Route,
        nth: Option<usize>,
        cursor: Option<Expected>,
        last_event_id: Option<Expected>,
        #[serde(default)]
        body: Map<String, Value>,
        items: Option<Vec<Map<String, Value>>>,
    },
}

fn one() -> usize {
    1
}

impl Step {
    fn needs(&self) -> Vec<Feature> {
        let of_table = |table: &str| match table {
            "messages" => vec![Feature::Write, Feature::Messages],
            _ => vec![Feature::Write],
        };
        match self {
            Self::Write { table, .. } | Self::Edit { table, .. } | Self::Delete { table, .. } => of_table(table),
            Self::Read { .. } => of_table("messages"),
            Self::Join { .. } | Self::Leave { .. } => vec![Feature::Groups],
            Self::Open {
                over: Transport::Websocket,
            } => vec![Feature::Live, Feature::Websocket],
            Self::Open { .. } | Self::Close {} | Self::Opened {} => vec![Feature::Live],
            Self::Kill {} | Self::KillOften { .. } | Self::Save {} | Self::Load {} => vec![Feature::Restart],
            Self::Advance { .. } | Self::AdvanceUntil { .. } => vec![Feature::Clock],
            _ => Vec::new(),
        }
    }
}

impl Case {
    fn no_level() -> Option<Level> {
        None
    }

    pub fn level(&self) -> Level {
        self.level.unwrap_or(Level::Reader)
    }

    /// The features without which a driver cannot run it: those that it names, and those that its steps need.
    pub fn needs(&self) -> BTreeSet<Feature> {
        let steps = self.steps.iter().flat_map(Step::needs);
        self.needs.iter().copied().chain(steps).collect()
    }
}

/// All cases, in the order of their levels.
///
/// # Errors
/// When a file of cases is wrong, which a test excludes.
pub fn all() -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for (level, text) in FILES {
        let file = format!("src/kit/cases/{}.yaml", level.name());
        for case in read(&file, level, text)? {
            let is_new = cases.iter().all(|other| other.id != case.id);
            ensure!(is_new, "{file}: the id {:?} is used twice", case.id);
            cases.push(case);
        }
    }
    Ok(cases)
}

/// The cases of one file.
///
/// # Errors
/// When it is not YAML, or a case is wrong.
pub fn read(file: &str, level: Level, text: &str) -> Result<Vec<Case>> {
    let options = serde_saphyr::options! { with_snippet: false };
    let values: Vec<Value> =
        serde_saphyr::from_str_with_options(text, options).with_context(|| format!("{file} has no list of cases"))?;
    values.into_iter().map(|value| case(file, level, value)).collect()
}

fn case(file: &str, level: Level, value: Value) -> Result<Case> {
    let id = value["id"].as_str().unwrap_or_default().to_owned();
    let script = value["steps"].as_array().into_iter().flatten().map(shown).collect();
    let case: Case =
        serde_path_to_error::deserialize(with_steps(value)).with_context(|| format!("{file}: the case {id:?}"))?;
    let spec = protocol::PATH;
    ensure!(
        protocol::heading_of(&id).is_some(),
        "{file}: {spec} has no heading of {id:?}"
    );
    for row in &case.rows {
        ensure!(
            protocol::row_of(row).is_some(),
            "{file}: {id}: {spec} has no row {row:?}"
        );
    }
    Ok(Case {
        level: Some(level),
        script,
        ..case
    })
}

/// A step as text.
fn shown(step: &Value) -> String {
    step.as_str().map_or_else(|| step.to_string(), str::to_owned)
}

/// A step without parameters may be its name alone.
fn with_steps(mut case: Value) -> Value {
    for step in case["steps"].as_array_mut().into_iter().flatten() {
        match step {
            Value::String(name) => *step = json!({ name.clone(): {} }),
            Value::Object(fields) => fields
                .values_mut()
                .filter(|value| value.is_null())
                .for_each(|value| *value = json!({})),
            _ => {}
        }
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that no driver can be seen to break, or that the scripted server cannot make.
    const UNSEEN: &[(&str, &str)] = &[(
        "groups::result_within_a_snapshot_keeps_no_former_audiences",
        "the row goes with the end of the snapshot either way",
    )];

    #[test]
    fn case_ids_begin_with_headings_of_the_specification() {
        let cases = all().expect("cases");
        assert!(cases.len() >= 30, "{} cases", cases.len());
        for level in Level::ALL {
            assert!(
                cases.iter().any(|case| case.level() == level),
                "no case of the level {}",
                level.name()
            );
        }
    }

    #[test]
    fn rows_of_the_specification_have_a_case_or_a_reason() {
        let cases = all().expect("cases");
        let tested: BTreeSet<&str> = cases
            .iter()
            .flat_map(|case| case.rows.iter().map(String::as_str))
            .collect();
        let excepted: BTreeSet<&str> = UNSEEN.iter().map(|(row, _)| *row).collect();
        let rows: BTreeSet<&str> = protocol::rows().iter().map(|row| row.test.as_str()).collect();
        let missing: Vec<_> = rows
            .iter()
            .filter(|row| !tested.contains(*row) && !excepted.contains(*row))
            .collect();
        assert!(missing.is_empty(), "no case tests {missing:#?}");
        let unneeded: Vec<_> = excepted
            .iter()
            .filter(|row| tested.contains(*row) || !rows.contains(*row))
            .collect();
        assert!(unneeded.is_empty(), "these have a case, or are no rows: {unneeded:#?}");
    }
}
