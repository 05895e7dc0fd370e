//! Requests and event streams of the demo, as bob in a browser, over the HTTP client of the reference phone.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hyper::{Method, StatusCode, Uri};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{self, Instant};

use super::phone::{Answer, Event, EventSource as _, Events, Http, Network, Phone, Request};

/// Timeout of `/ready` after another request has failed.
const READY_TIMEOUT: Duration = Duration::from_secs(3);

/// Credentials of a request.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// None: before the login.
    Anonymous,
    /// A person in a browser, by access token.
    User { token: String },
}

impl Caller {
    fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Anonymous => Vec::new(),
            Self::User { token } => vec![("authorization", format!("Bearer {token}"))],
        }
    }
}

/// A client of one engine.
#[derive(Debug)]
pub(super) struct Api {
    base: String,
    pub(super) http: Http,
    timeout: Duration,
}

impl Api {
    /// A client of the engine at `url`, with a timeout for each response and each event.
    ///
    /// # Errors
    /// Unless the URL is one of plain HTTP.
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            bail!("{url} is not of the form http://host:port; the demo supports plain HTTP only");
        }
        let mut http = Http::new(url);
        http.timeout = timeout;
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            http,
            timeout,
        })
    }

    /// Sends a request and parses a successful response.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T> {
        let name = format!("{method} {path}");
        let Answer { status, body, .. } = self.send(caller, method, path, body).await?;
        if !status.is_success() {
            bail!("{name} returned {status}: {}", brief(&body));
        }
        T::deserialize(&body).with_context(|| format!("{name} returned {status}: {}", brief(&body)))
    }

    async fn send(&self, caller: &Caller, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let name = format!("{method} {path}");
        let request = Request {
            method,
            path: path.to_owned(),
            headers: caller.headers(),
            body,
        };
        let answer = self.http.exchange(request).await;
        answer.with_context(|| format!("{name}: no engine answers at {}; `posduif dev` starts one", self.base))
    }

    /// Opens bob's event stream and waits for its `hello`.
    pub(super) async fn listen(&self, caller: &Caller, path: &str) -> Result<EventStream> {
        let events = self.http.events(path.to_owned(), caller.headers()).await;
        let events = events.with_context(|| format!("GET {path}"))?;
        EventStream::start(events, self.timeout).await
    }

    /// Opens the phone's event stream after the last event that it has received, and waits for its `hello`.
    pub(super) async fn listen_as(&self, phone: &mut Phone) -> Result<EventStream> {
        let events = phone.listen(&self.http).await.context("the phone's event stream")?;
        EventStream::start(events, self.timeout).await
    }

    /// Queries `/ready` for the cause of another failure.
    pub(super) async fn readiness(&self) -> String {
        match time::timeout(
            READY_TIMEOUT,
            self.send(&Caller::Anonymous, Method::GET, "/ready", None),
        )
        .await
        {
            Ok(Ok(answer)) if answer.status == StatusCode::OK => {
                "/ready returned 200: Postgres, Redis and replication are ready".to_owned()
            }
            Ok(Ok(answer)) => format!("/ready returned {}: {}", answer.status, brief(&answer.body)),
            Ok(Err(error)) => format!("/ready failed: {error:#}"),
            Err(_) => format!(
                "/ready did not answer within {} s either: the engine or a server behind it hangs",
                READY_TIMEOUT.as_secs()
            ),
        }
    }
}

#[derive(Debug)]
pub(super) struct EventStream {
    events: Events,
    ready: VecDeque<Event>,
    timeout: Duration,
}

impl EventStream {
    async fn start(events: Events, timeout: Duration) -> Result<Self> {
        let mut stream = Self {
            events,
            ready: VecDeque::new(),
            timeout,
        };
        let is_hello = |event: &Event| (event.name == "hello").then_some(());
        stream.wait_for("its first event, hello", is_hello).await?;
        Ok(stream)
    }

    /// Waits for the first event that `pick` accepts; others are skipped.
    pub(super) async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        loop {
            while let Some(event) = self.ready.pop_front() {
                if let Some(found) = pick(&event) {
                    return Ok(found);
                }
            }
            let next = time::timeout_at(deadline, self.events.receive()).await;
            let next = next.map_err(|_| anyhow!("timed out after {} s waiting for {what}", self.timeout.as_secs()))?;
            self.ready.extend(next.with_context(|| format!("waiting for {what}"))?);
        }
    }
}

/// A body for an error text: code and message of an API error, else the JSON, truncated.
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

/// Percent-encodes a query value.
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
    use super::*;

    #[test]
    fn encode_escapes_reserved_bytes() {
        assert_eq!(encode("aZ09-._~"), "aZ09-._~");
        assert_eq!(encode("a+b/c=&ä"), "a%2Bb%2Fc%3D%26%C3%A4");
    }

    #[test]
    fn api_accepts_plain_http_only() {
        let timeout = Duration::from_secs(1);
        assert!(Api::new("http://127.0.0.1:8080/", timeout).is_ok());
        for url in ["https://example.com", "127.0.0.1:8080", "/x", ""] {
            assert!(Api::new(url, timeout).is_err(), "{url}");
        }
    }
}
