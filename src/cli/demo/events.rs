//! The client's side of server-sent events.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// What `event:` said, `message` when it said nothing.
    pub(super) name: String,
    /// The lines of `data:`, joined by line feeds.
    pub(super) data: String,
}

impl Event {
    /// A field of the data, which the server writes as a JSON object.
    pub(super) fn field(&self, name: &str) -> Option<Value> {
        serde_json::from_str::<Value>(&self.data).ok()?.get(name).cloned()
    }

    /// Whether it is this event about this message.
    pub(super) fn is(&self, name: &str, message_id: &str) -> bool {
        self.name == name && self.field("message_id").is_some_and(|id| id == message_id)
    }
}

/// An open stream of events.
#[derive(Debug)]
pub(super) struct EventStream {
    path: String,
    body: Incoming,
    parser: Parser,
    patience: Duration,
}

impl EventStream {
    /// Reads events from the body of an answer.
    pub(super) fn new(path: &str, body: Incoming, patience: Duration) -> Self {
        Self {
            path: path.to_owned(),
            body,
            parser: Parser::default(),
            patience,
        }
    }

    /// The cursor to resume from: the last `id` that came with a whole event.
    pub(super) fn last_event_id(&self) -> Option<&str> {
        self.parser.last_event_id.as_deref()
    }

    /// Waits for the first event that `pick` makes something of; others are passed over.
    pub(super) async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + self.patience;
        loop {
            let next = timeout_at(deadline, self.next()).await;
            let event =
                next.map_err(|_| anyhow!("waited {} s on {} for {what}", self.patience.as_secs(), self.path))?;
            if let Some(found) = pick(&event.with_context(|| format!("waiting for {what}"))?) {
                return Ok(found);
            }
        }
    }

    async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(event);
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.with_context(|| format!("{} broke", self.path))?;
                    if let Some(bytes) = frame.data_ref() {
                        self.parser.push(bytes);
                    }
                }
                None => bail!("the server ended {}", self.path),
            }
        }
    }
}

/// Bytes to events, as the HTML standard defines the format; only a lone carriage return as a line end, which no
/// server sends, is left out.
#[derive(Debug, Default)]
struct Parser {
    /// Bytes after the last whole line.
    rest: Vec<u8>,
    /// Lines of the event that is not whole yet.
    name: String,
    data: Option<String>,
    id: Option<String>,
    ready: std::collections::VecDeque<Event>,
    last_event_id: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\r', '\n']));
        }
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // A line that starts with a colon is a comment: the heartbeat. `retry` only matters to a client that
            // reconnects by itself, and the demo goes on and off line as its story has it.
            _ => {}
        }
    }

    /// An empty line ends an event. One without data is none, but its `id` counts.
    fn dispatch(&mut self) {
        let name = std::mem::take(&mut self.name);
        if let Some(id) = self.id.take() {
            self.last_event_id = Some(id);
        }
        if let Some(data) = self.data.take() {
            self.ready.push_back(Event {
                name: if name.is_empty() { "message".to_owned() } else { name },
                data,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events in a text, whose bytes arrive in pieces of every size.
    fn check(text: &str, events: &[(&str, &str)], last_event_id: Option<&str>) {
        for size in 1..=text.len() {
            let mut parser = Parser::default();
            for piece in text.as_bytes().chunks(size) {
                parser.push(piece);
            }
            let found: Vec<Event> = std::iter::from_fn(|| parser.next()).collect();
            let expected: Vec<Event> = events
                .iter()
                .map(|(name, data)| Event {
                    name: (*name).to_owned(),
                    data: (*data).to_owned(),
                })
                .collect();
            assert_eq!(found, expected, "in pieces of {size}");
            assert_eq!(parser.last_event_id.as_deref(), last_event_id, "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_has_a_name_an_id_and_data() {
        check(
            "retry: 1000\nid: c1\nevent: new_message\ndata: {\"a\":1}\n\n",
            &[("new_message", "{\"a\":1}")],
            Some("c1"),
        );
    }

    #[test]
    fn lines_of_data_are_joined_and_characters_kept_whole() {
        check("data: ä\r\ndata:\r\ndata:  ü\r\n\r\n", &[("message", "ä\n\n ü")], None);
    }

    #[test]
    fn comments_are_no_events_and_an_event_without_id_keeps_the_last() {
        check(
            ": beat\n\nid: 1\ndata: x\n\n:\nevent: presence\ndata: y\n\n",
            &[("message", "x"), ("presence", "y")],
            Some("1"),
        );
    }

    #[test]
    fn what_is_not_whole_is_no_event_and_no_cursor() {
        check("id: 1\ndata: x\n\nid: 2\ndata: y\n", &[("message", "x")], Some("1"));
    }
}
