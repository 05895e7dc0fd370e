//! What the wire saw: all requests of a case, and what no case permits.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Requests of one driver command without an end.
const REQUESTS_MAX: usize = 60;

/// The routes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// `POST /api/enrollment/complete`
    Enrollment,
    /// `GET /api/enrollment/:token`
    Token,
    Incoming,
    Ack,
    Outgoing,
    /// `GET /sse/mobile/:device_id`
    Live,
    /// `POST /api/sse/ticket`
    Ticket,
    /// `GET /ws`
    Socket,
    /// Items in a frame of a WebSocket, which are an upload.
    Frame,
    Settings,
    /// Any other path.
    Other,
}

impl Route {
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrollment => "enrollment",
            Self::Token => "token",
            Self::Incoming => "incoming",
            Self::Ack => "ack",
            Self::Outgoing => "outgoing",
            Self::Live => "live",
            Self::Ticket => "ticket",
            Self::Socket => "socket",
            Self::Frame => "frame",
            Self::Settings => "settings",
            Self::Other => "other",
        }
    }

    /// Whether its answer is a stream.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Live | Self::Socket)
    }

    /// The route of the same effect: a frame of items is an upload.
    fn of_effect(self) -> Self {
        match self {
            Self::Frame => Self::Outgoing,
            route => route,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In flight, or its stream is open.
    Open,
    Status(u16),
    /// The client got no answer, or a part of it.
    Lost,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Record {
    pub route: Route,
    /// Method, path and query.
    pub line: String,
    pub device: Option<String>,
    pub token: Option<String>,
    pub cursor: Option<String>,
    /// Whether the cursor is that of the last batch.
    pub is_newest: bool,
    /// Whether its stream receives events.
    pub is_streaming: bool,
    pub last_event_id: Option<String>,
    pub body: Value,
    /// The driver command during which it arrived.
    pub command: u64,
    pub end: End,
}

/// Something that the protocol forbids in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The name of a heading of the specification.
    pub heading: &'static str,
    pub text: String,
}

/// The requests of a case in the order of their arrival.
#[derive(Debug, Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub violations: Vec<Violation>,
    /// Counts the commands of the driver.
    pub command: u64,
    /// Where counting began: see `watch`.
    pub watched: usize,
    /// Tokens that the server has refused, by the routes that know it and the command in which they did.
    refused: BTreeMap<String, (BTreeSet<Route>, u64)>,
    /// Routes whose last request failed, since anything was answered.
    failed: BTreeMap<Route, u64>,
}

impl Log {
    pub fn forbid(&mut self, heading: &'static str, text: impl Into<String>) {
        let violation = Violation {
            heading,
            text: text.into(),
        };
        if !self.violations.contains(&violation) {
            self.violations.push(violation);
        }
    }

    /// Notes a request, and checks what holds in every case. Returns its number.
    pub fn arrive(&mut self, record: Record) -> usize {
        let route = record.route;
        if let Some(token) = &record.token {
            if let Some((routes, command)) = self.refused.get(token)
                && (routes.contains(&route) || *command < self.command)
            {
                let text = format!("{} with a token that the server had refused with 401", record.line);
                self.forbid("states-and-events", text);
            }
            if record.line.contains(token.as_str()) {
                self.forbid(
                    "enrollment",
                    "the device token stands in an address, where logs and proxies keep it",
                );
            }
        }
        let is_syncing = |other: &Record| other.route == Route::Incoming && other.end == End::Open;
        if route == Route::Incoming && self.records.iter().any(is_syncing) {
            self.forbid("cursors", "two requests for batches were in flight at once");
        }
        if self.failed.get(&route.of_effect()) == Some(&self.command) {
            let text = format!(
                "{} was repeated without a delay after a request that failed",
                record.line
            );
            self.forbid("delays", text);
        }
        let in_command = self
            .records
            .iter()
            .rev()
            .take_while(|other| other.command == self.command);
        if in_command.count() > REQUESTS_MAX {
            self.forbid(
                "delays",
                format!(
                    "more than {REQUESTS_MAX} requests without a pause, the last one {}",
                    record.line
                ),
            );
        }
        if route.of_effect() == Route::Outgoing {
            self.check_items(&record);
        }
        self.records.push(record);
        self.records.len() - 1
    }

    fn check_items(&mut self, record: &Record) {
        let Some(items) = record.body.get("items").and_then(Value::as_array) else {
            return self.forbid("sequence-numbers", "an upload has no `items`");
        };
        let numbers: Vec<u64> = items.iter().map(|item| item["seq"].as_u64().unwrap_or(0)).collect();
        let is_counted = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1) && !numbers.contains(&0);
        if !is_counted {
            self.forbid(
                "sequence-numbers",
                format!("the items of an upload are numbered {numbers:?}"),
            );
        }
    }

    /// Notes how a request ended.
    pub fn end(&mut self, number: usize, end: End) {
        let Some(record) = self.records.get_mut(number) else {
            return;
        };
        record.end = end;
        let route = record.route;
        // The end of a stream is no answer.
        let is_answer = !record.is_streaming;
        match end {
            End::Status(401) => {
                if let Some(token) = record.token.clone() {
                    let refused = self.refused.entry(token).or_insert((BTreeSet::new(), self.command));
                    refused.0.insert(route);
                }
            }
            End::Status(429 | 500..) | End::Lost => {
                self.failed.insert(route.of_effect(), self.command);
            }
            End::Status(_) if is_answer => self.failed.clear(),
            End::Status(_) | End::Open => {}
        }
    }

    /// Notes that the client has gone before the answer, which is no failure of a request.
    pub fn gone(&mut self, number: usize) {
        if let Some(record) = self.records.get_mut(number) {
            record.end = End::Lost;
        }
    }

    /// Requests of a route since `watch`.
    pub fn since_watch(&self, route: Route) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .skip(self.watched)
            .filter(move |record| record.route == route)
    }

    /// How many of them are there: ended, or at least arrived; a stream must be open.
    pub fn arrived(&self, route: Route, is_done: bool) -> usize {
        let is_there =
            |record: &&Record| record.end != End::Open || !is_done && (!route.is_stream() || record.is_streaming);
        self.since_watch(route).filter(is_there).count()
    }

    pub fn lines(&self) -> Vec<String> {
        let shown = self.records.iter().map(|record| {
            let end = match record.end {
                End::Open => "open".to_owned(),
                End::Status(status) => status.to_string(),
                End::Lost => "no answer".to_owned(),
            };
            let body = if record.body.is_null() {
                String::new()
            } else {
                format!(" {}", record.body)
            };
            format!("[{}] {}{body} -> {end}", record.command, record.line)
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(route: Route, command: u64) -> Record {
        Record {
            route,
            line: format!("GET /{}", route.name()),
            device: None,
            token: Some("secret".to_owned()),
            cursor: None,
            is_newest: false,
            is_streaming: false,
            last_event_id: None,
            body: Value::Null,
            command,
            end: End::Open,
        }
    }

    fn headings(requests: &[(Route, End, u64)]) -> Vec<&'static str> {
        let mut log = Log::default();
        for (route, end, command) in requests {
            log.command = *command;
            let number = log.arrive(request(*route, *command));
            log.end(number, *end);
        }
        log.violations.iter().map(|violation| violation.heading).collect()
    }

    #[test]
    fn refused_token_is_not_sent_again() {
        use Route::{Incoming, Settings};
        let refused = End::Status(401);
        assert_eq!(
            headings(&[(Incoming, refused, 1), (Settings, refused, 1)]),
            [""; 0],
            "they were sent together"
        );
        assert_eq!(
            headings(&[(Incoming, refused, 1), (Incoming, refused, 1)]),
            ["states-and-events"]
        );
        assert_eq!(
            headings(&[(Incoming, refused, 1), (Settings, refused, 2)]),
            ["states-and-events"]
        );
    }

    #[test]
    fn failed_request_is_repeated_after_another_command_or_answer() {
        use Route::{Incoming, Outgoing};
        let (done, failed) = (End::Status(200), End::Status(503));
        assert_eq!(headings(&[(Incoming, failed, 1), (Incoming, done, 1)]), ["delays"]);
        assert_eq!(headings(&[(Incoming, End::Lost, 1), (Incoming, done, 1)]), ["delays"]);
        assert_eq!(headings(&[(Incoming, failed, 1), (Incoming, done, 2)]), [""; 0]);
        let mut log = Log::default();
        for (route, end) in [(Outgoing, failed), (Incoming, done), (Outgoing, done)] {
            let number = log.arrive(Record {
                body: json!({"items": []}),
                ..request(route, 0)
            });
            log.end(number, end);
        }
        assert_eq!(log.violations, []);
    }

    #[test]
    fn requests_for_batches_do_not_overlap() {
        assert_eq!(
            headings(&[(Route::Incoming, End::Open, 1), (Route::Incoming, End::Open, 1)]),
            ["cursors"]
        );
    }

    #[test]
    fn items_are_numbered_without_gaps() {
        let found = |body: Value| {
            let mut log = Log::default();
            log.arrive(Record {
                body,
                ..request(Route::Outgoing, 0)
            });
            log.violations.len()
        };
        assert_eq!(found(json!({"items": [{"seq": 4}, {"seq": 5}]})), 0);
        assert_eq!(found(json!({"items": [{"seq": 4}, {"seq": 6}]})), 1);
        assert_eq!(found(json!({"items": [{"seq": 4}, {"seq": 4}]})), 1);
        assert_eq!(found(json!({"items": [{"id": "a"}]})), 1);
    }
}
