//! What the demo asks the engine, as bob in a browser, and how it listens: by the reference phone's HTTP.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hyper::{Method, StatusCode, Uri};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::phone::{Answer, Event, Events, Http, Network, Phone, Request};

/// How long `/ready` may take to say why something else failed.
const READY_PATIENCE: Duration = Duration::from_secs(3);

/// As whom a request is made.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Before logging in.
    Nobody,
    /// A person in a browser, by access token.
    User {
        /// What logging in gave.
        token: String,
    },
}

impl Caller {
    fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Nobody => Vec::new(),
            Self::User { token } => vec![("authorization", format!("Bearer {token}"))],
        }
    }
}

/// A client of one engine.
#[derive(Debug)]
pub(super) struct Api {
    base: String,
    pub(super) http: Http,
    patience: Duration,
}

impl Api {
    /// A client of the engine at `url`, which waits `patience` for each answer and each event.
    ///
    /// # Errors
    /// When the URL is none of plain HTTP.
    pub(super) fn new(url: &str, patience: Duration) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            bail!("{url} is not of the form http://host:port, which is all that the demo speaks");
        }
        let mut http = Http::new(url);
        http.patience = patience;
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            http,
            patience,
        })
    }

    /// Makes a request and reads a success as `T`.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T> {
        let asked = format!("{method} {path}");
        let Answer { status, body, .. } = self.send(caller, method, path, body).await?;
        if !status.is_success() {
            bail!("{asked} answered {status}: {}", brief(&body));
        }
        T::deserialize(&body).with_context(|| format!("{asked} answered {status} with {}", brief(&body)))
    }

    async fn send(&self, caller: &Caller, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let asked = format!("{method} {path}");
        let request = Request {
            method,
            path: path.to_owned(),
            headers: caller.headers(),
            body,
        };
        let answer = self.http.exchange(request).await;
        answer.with_context(|| format!("{asked}: no engine answers at {}; `posduif dev` starts one", self.base))
    }

    /// Opens bob's stream of events and waits for its `hello`.
    pub(super) async fn listen(&self, caller: &Caller, path: &str) -> Result<EventStream> {
        let events = self.http.events(path.to_owned(), caller.headers()).await;
        let events = events.with_context(|| format!("GET {path}"))?;
        EventStream::begin(events, self.patience).await
    }

    /// Opens the phone's stream of events behind the last one that it has seen, and waits for its `hello`.
    pub(super) async fn listen_as(&self, phone: &mut Phone) -> Result<EventStream> {
        let events = phone.listen(&self.http).await.context("the phone's event stream")?;
        EventStream::begin(events, self.patience).await
    }

    /// Asks `/ready` why something else failed.
    pub(super) async fn readiness(&self) -> String {
        match timeout(READY_PATIENCE, self.send(&Caller::Nobody, Method::GET, "/ready", None)).await {
            Ok(Ok(answer)) if answer.status == StatusCode::OK => {
                "/ready answers 200: Postgres, Redis and the replication look well".to_owned()
            }
            Ok(Ok(answer)) => format!("/ready answers {}: {}", answer.status, failing_checks(&answer.body)),
            Ok(Err(error)) => format!("/ready cannot be asked: {error:#}"),
            Err(_) => format!(
                "/ready does not answer within {} s either: the engine hangs, or what it asks does",
                READY_PATIENCE.as_secs()
            ),
        }
    }
}

/// A stream of events, one after the other.
#[derive(Debug)]
pub(super) struct EventStream {
    events: Events,
    ready: VecDeque<Event>,
    patience: Duration,
}

impl EventStream {
    async fn begin(events: Events, patience: Duration) -> Result<Self> {
        let mut stream = Self {
            events,
            ready: VecDeque::new(),
            patience,
        };
        let is_hello = |event: &Event| (event.name == "hello").then_some(());
        stream.wait_for("its first event, hello", is_hello).await?;
        Ok(stream)
    }

    /// Waits for the first event that `pick` makes something of; others are passed over.
    pub(super) async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + self.patience;
        loop {
            while let Some(event) = self.ready.pop_front() {
                if let Some(found) = pick(&event) {
                    return Ok(found);
                }
            }
            let next = timeout_at(deadline, self.events.next()).await;
            let next = next.map_err(|_| anyhow!("waited {} s for {what}", self.patience.as_secs()))?;
            self.ready.extend(next.with_context(|| format!("waiting for {what}"))?);
        }
    }
}

/// The checks of a `/ready` answer that are not well, or all of it when none stands out.
fn failing_checks(body: &Value) -> String {
    let failing: Vec<String> = match body.get("checks").unwrap_or(body) {
        Value::Object(checks) => checks
            .iter()
            .filter(|(_, check)| fails(check))
            .map(|(name, check)| format!("{name}: {}", brief(check)))
            .collect(),
        Value::Array(checks) => checks.iter().filter(|check| fails(check)).map(brief).collect(),
        _ => Vec::new(),
    };
    if failing.is_empty() {
        brief(body)
    } else {
        failing.join("; ")
    }
}

fn fails(check: &Value) -> bool {
    check.get("ok").is_some_and(|ok| ok == false)
        || check
            .get("status")
            .and_then(Value::as_str)
            .is_some_and(|status| !matches!(status, "ok" | "pass" | "up"))
}

/// A body for an error text: the envelope's code and message, else the JSON, cut when long.
fn brief(body: &Value) -> String {
    const CHARACTERS: usize = 400;
    if let Some(error) = body.get("error").filter(|error| error.is_object()) {
        let part = |name| error.get(name).and_then(Value::as_str).unwrap_or_default();
        return format!("{}: {}", part("code"), part("message"));
    }
    let text = body.to_string();
    match text.char_indices().nth(CHARACTERS) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

/// A text as a value in a query string.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_failing_checks_are_named() {
        let body = json!({"status": "stale", "checks": {
            "postgres": {"ok": true},
            "redis": {"ok": false, "message": "no answer within 5 s"},
        }});
        assert_eq!(
            failing_checks(&body),
            r#"redis: {"message":"no answer within 5 s","ok":false}"#
        );
        assert_eq!(failing_checks(&json!({"why": "?"})), r#"{"why":"?"}"#);
    }

    #[test]
    fn a_cursor_survives_the_query_string() {
        assert_eq!(encode("aZ09-._~"), "aZ09-._~");
        assert_eq!(encode("a+b/c=&ä"), "a%2Bb%2Fc%3D%26%C3%A4");
    }

    #[test]
    fn only_plain_http_is_spoken() {
        let patience = Duration::from_secs(1);
        assert!(Api::new("http://127.0.0.1:8080/", patience).is_ok());
        for url in ["https://example.com", "127.0.0.1:8080", "/x", ""] {
            assert!(Api::new(url, patience).is_err(), "{url}");
        }
    }
}
