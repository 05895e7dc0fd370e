//! The client's side of the HTTP API.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode, Uri, body::Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::events::EventStream;

/// How long `/ready` may take to say why something else failed.
const READY_PATIENCE: Duration = Duration::from_secs(3);

/// As whom a request is made.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Before logging in or enrolling.
    Nobody,
    /// A person in a browser, by access token.
    User {
        /// What logging in gave.
        token: String,
    },
    /// A device, by the token that enrolling gave.
    Device {
        /// The id that the device chose for itself.
        id: String,
        /// What enrolling gave; the server keeps a digest only.
        token: String,
    },
}

/// An answer with its JSON body.
#[derive(Debug)]
pub(super) struct Reply {
    /// HTTP status.
    pub(super) status: StatusCode,
    /// The body; null when it is no JSON.
    pub(super) body: Value,
}

impl Reply {
    /// The code of the error envelope, if there is one.
    pub(super) fn error_code(&self) -> Option<&str> {
        self.body.pointer("/error/code")?.as_str()
    }
}

/// An engine's API.
#[derive(Debug)]
pub(super) struct Api {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
    patience: Duration,
}

impl Api {
    /// The API at a base URL; no answer may take longer than `patience`.
    pub(super) fn new(url: &str, patience: Duration) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            bail!("{url} is not of the form http://host:port, which is all that the demo speaks");
        }
        let mut connector = HttpConnector::new();
        // The steps' latencies are to be the engine's, not those of small packets that wait for an acknowledgement.
        connector.set_nodelay(true);
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
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
        let reply = self.send(caller, method.clone(), path, body).await?;
        if !reply.status.is_success() {
            bail!("{method} {path} answered {}: {}", reply.status, brief(&reply.body));
        }
        let Reply { status, body } = reply;
        T::deserialize(&body).with_context(|| format!("{method} {path} answered {status} with {}", brief(&body)))
    }

    /// Makes a request, whatever the answer.
    pub(super) async fn send(&self, caller: &Caller, method: Method, path: &str, body: Option<Value>) -> Result<Reply> {
        let exchange = async {
            let response = self.request(caller, method.clone(), path, body, None).await?;
            let status = response.status();
            let bytes = response
                .into_body()
                .collect()
                .await
                .context("the answer broke off")?
                .to_bytes();
            anyhow::Ok(Reply {
                status,
                body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            })
        };
        match timeout(self.patience, exchange).await {
            Ok(reply) => reply.with_context(|| format!("{method} {path}")),
            Err(_) => bail!("waited {} s for the answer to {method} {path}", self.patience.as_secs()),
        }
    }

    /// Opens a stream of events and waits for its `hello`.
    pub(super) async fn events(&self, caller: &Caller, path: &str, last_event_id: Option<&str>) -> Result<EventStream> {
        let request = self.request(caller, Method::GET, path, None, last_event_id);
        let response = timeout(self.patience, request)
            .await
            .map_err(|_| anyhow!("waited {} s for {path} to open", self.patience.as_secs()))?
            .with_context(|| format!("GET {path}"))?;
        let status = response.status();
        if status != StatusCode::OK {
            bail!("GET {path} answered {status}, not a stream of events");
        }
        let mut events = EventStream::new(path, response.into_body(), self.patience);
        events
            .wait_for("its first event, hello", |event| (event.name == "hello").then_some(()))
            .await?;
        Ok(events)
    }

    async fn request(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        body: Option<Value>,
        last_event_id: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        request = match caller {
            Caller::Nobody => request,
            Caller::User { token } => request.header(AUTHORIZATION, format!("Bearer {token}")),
            Caller::Device { id, token } => request
                .header("X-Device-ID", id)
                .header(AUTHORIZATION, format!("Bearer {token}")),
        };
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request
            .header(ACCEPT, "application/json, text/event-stream")
            .body(Full::new(body))
            .context("malformed request")?;
        let response = self.client.request(request).await;
        response.with_context(|| format!("no engine answers at {}; `posduif dev` starts one", self.base))
    }

    /// Asks `/ready` why something else failed.
    pub(super) async fn readiness(&self) -> String {
        let exchange = async {
            let response = self.request(&Caller::Nobody, Method::GET, "/ready", None, None).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null)))
        };
        match timeout(READY_PATIENCE, exchange).await {
            Ok(Ok((StatusCode::OK, _))) => {
                "/ready answers 200: Postgres, Redis and the replication look well".to_owned()
            }
            Ok(Ok((status, body))) => format!("/ready answers {status}: {}", failing_checks(&body)),
            Ok(Err(error)) => format!("/ready cannot be asked: {error:#}"),
            Err(_) => format!(
                "/ready does not answer within {} s either: the engine hangs, or what it asks does",
                READY_PATIENCE.as_secs()
            ),
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
