//! A small client of the API: requests with JSON, and event streams.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::{PASSWORD, TIMEOUT, spec};

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// An answer that came on another way.
    pub(crate) fn new(status: StatusCode, headers: HeaderMap, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers,
            body: body.into(),
        }
    }

    async fn read(response: hyper::Response<Incoming>) -> Result<Self, String> {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(TIMEOUT, body.collect())
            .await
            .map_err(|_| format!("the answer did not end within {TIMEOUT:?}"))?
            .map_err(|error| format!("the answer broke off: {error:?}"))?;
        Ok(Self {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    /// The body as JSON, null when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The error code of the envelope.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The body as JSON of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }
}

/// A client with the credentials of one user or device, or none.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
    admin_address: Option<String>,
    headers: Vec<(String, String)>,
    /// Whether its responses must match the API's description.
    is_described: bool,
}

impl Api {
    /// A client without credentials.
    pub(crate) fn new(address: &str) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            address: address.to_owned(),
            admin_address: None,
            headers: Vec::new(),
            is_described: true,
        }
    }

    /// The same client, which knows where the admin listener is.
    pub(crate) fn with_admin(mut self, address: Option<String>) -> Self {
        self.admin_address = address;
        self
    }

    /// A client of the admin listener.
    pub(crate) fn admin(&self) -> Self {
        let mut admin = Self::new(self.admin_address.as_ref().expect("an admin listener"));
        admin.is_described = false;
        admin
    }

    /// A client of the admin API with `admin.token`, whose responses must match its description.
    pub(crate) fn operator(&self, token: &str) -> Self {
        let mut operator = self.admin();
        operator.is_described = true;
        operator.with("authorization", &format!("Bearer {token}"))
    }

    /// The same client of a process that serves less than the API.
    pub(crate) fn undescribed(&self) -> Self {
        let mut other = self.clone();
        other.is_described = false;
        other
    }

    /// The same client with one more header on each request.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut with = self.clone();
        with.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        with.headers.push((name.to_owned(), value.to_owned()));
        with
    }

    /// The same client without a header.
    pub(crate) fn without(&self, name: &str) -> Self {
        let mut without = self.clone();
        without.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        without
    }

    /// A header that each request bears.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        &found.unwrap_or_else(|| panic!("this client has no header {name}")).1
    }

    /// The headers that each request bears.
    pub(crate) fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The same credentials at another engine.
    pub(crate) fn at(&self, other: &Self) -> Self {
        let mut there = self.clone();
        there.address.clone_from(&other.address);
        there.admin_address.clone_from(&other.admin_address);
        there
    }

    /// Logs a user in.
    pub(crate) async fn log_in(&self, tenant: &str, username: &str) -> Self {
        let body = json!({"tenant": tenant, "username": username, "password": PASSWORD});
        let answer = self.post("/api/auth/login", &body).await.expect(200);
        self.with(
            "authorization",
            &format!("Bearer {}", answer["token"].as_str().unwrap()),
        )
    }

    /// Enrolls a new device by way of this web user, for an existing user or a new one; gives the device's client and
    /// its answer.
    pub(crate) async fn enroll(&self, device_id: &str, user: Option<&str>) -> (Self, Value) {
        let body = user.map_or(json!({}), |user| json!({"user_id": user}));
        let created = self.post("/api/enrollment/create", &body).await.expect(201);
        let complete = json!({
            "token": created["token"],
            "device_id": device_id,
            "device_info": {"platform": "android", "version": "13", "model": "Pixel 7", "app_version": "1.0.0"},
        });
        let answer = Self::new(&self.address)
            .post("/api/enrollment/complete", &complete)
            .await
            .expect(201);
        let token = answer["device_token"].as_str().unwrap();
        let device = Self::new(&self.address)
            .with("authorization", &format!("Bearer {token}"))
            .with("x-device-id", device_id);
        (device, answer)
    }

    /// Sends a request with any body.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Answer {
        let answer = self.try_send(method, path, content_type, body).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Like [`Api::send`], with what happened to the connection instead of a panic.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let response = self.begin(method.clone(), path, content_type, body).await?;
        let answer = Answer::read(response).await?;
        if self.is_described {
            spec::check(&method, path, &answer);
        }
        Ok(answer)
    }

    async fn begin(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<hyper::Response<Incoming>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        // As bytes, because a bad client may send any.
        for (name, value) in &self.headers {
            request = request.header(name, value.as_bytes());
        }
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type.as_bytes());
        }
        let request = request.body(Full::new(body.into())).unwrap();
        tokio::time::timeout(TIMEOUT, self.client.request(request))
            .await
            .map_err(|_| format!("no answer within {TIMEOUT:?}"))?
            .map_err(|error| format!("the connection broke: {error:?}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some("application/json"), body.to_string())
            .await
    }

    /// What a phone uploads as messages, and the answer.
    pub(crate) async fn upload(&self, items: &[Value]) -> Value {
        self.post("/api/sync/outgoing", &json!({"messages": items}))
            .await
            .expect(200)
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, Some("application/json"), body.to_string())
            .await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, Some("application/json"), body.to_string())
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None, "").await
    }

    /// Opens an event stream and waits for its `hello`.
    pub(crate) async fn events(&self, path: &str) -> Events {
        let mut events = match self.open(path).await {
            Ok(events) => events,
            Err(answer) => panic!("{path} answered {}: {}", answer.status, answer.json()),
        };
        let hello = events.next().await.expect("a hello");
        assert_eq!(hello.name, "hello");
        events.cursor = hello.data["cursor"].as_str().unwrap().to_owned();
        events
    }

    /// Opens an event stream and reads nothing of it; gives the answer when it is refused.
    pub(crate) async fn open(&self, path: &str) -> Result<Events, Answer> {
        let response = self.begin(Method::GET, path, None, "").await.unwrap();
        if response.status() != StatusCode::OK {
            return Err(Answer::read(response).await.unwrap());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        Ok(Events {
            body: response.into_body(),
            buffer: String::new(),
            cursor: String::new(),
        })
    }

    /// A device's whole sync: pages until there is no more; gives all pages and the last cursor.
    pub(crate) async fn sync(&self, cursor: Option<&str>) -> (Vec<Value>, String) {
        let mut pages = Vec::new();
        let mut cursor = cursor.map(str::to_owned);
        loop {
            let path = match &cursor {
                Some(cursor) => format!("/api/sync/incoming?cursor={cursor}"),
                None => "/api/sync/incoming".to_owned(),
            };
            let page = self.get(&path).await.expect(200);
            cursor = Some(page["cursor"].as_str().unwrap().to_owned());
            let has_more = page["has_more"] == true;
            pages.push(page);
            if !has_more {
                return (pages, cursor.unwrap());
            }
        }
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

/// An open event stream.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    buffer: String,
    /// The cursor of its `hello`.
    pub(crate) cursor: String,
}

impl Events {
    /// The next event; `None` when the stream has ended. Skips comments, `retry` and `presence`.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.next_of_all().await;
            if event.as_ref().is_none_or(|event| event.name != "presence") {
                return event;
            }
        }
    }

    /// The next event, `presence` too.
    pub(crate) async fn next_of_all(&mut self) -> Option<Event> {
        tokio::time::timeout(TIMEOUT, self.read())
            .await
            .expect("no event came in time")
    }

    /// The next event of this name; others are passed over.
    pub(crate) async fn expect(&mut self, name: &str) -> Event {
        loop {
            let event = self
                .next_of_all()
                .await
                .unwrap_or_else(|| panic!("the stream ended before {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// The rest of the stream to its end, which must come in time.
    pub(crate) async fn rest(&mut self) -> Vec<Event> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        rest
    }

    /// The next block of lines as it is, be it an event, a comment or `retry`.
    pub(crate) async fn block(&mut self) -> Option<String> {
        tokio::time::timeout(TIMEOUT, self.read_block())
            .await
            .expect("nothing came in time")
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            let block = self.read_block().await?;
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
            };
            if let Some(name) = field("event") {
                let data = field("data").unwrap_or_default();
                return Some(Event {
                    name,
                    id: field("id"),
                    data: serde_json::from_str(&data).unwrap(),
                });
            }
        }
    }

    async fn read_block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                return Some(block);
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
    }
}
