//! Requests and their connections, compression, logins, and what live connections send and receive.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::label::{Label, Labels, create};

/// Labels of a request: its method, its route's pattern, and the class of its status.
pub type RequestLabels = [(&'static str, &'static str); 3];

/// Metrics of the HTTP server.
#[derive(Debug)]
pub struct Http {
    requests: Family<RequestLabels, Counter>,
    /// All of them, for the console.
    answered: Counter,
    request_seconds: Family<RequestLabels, Histogram, fn() -> Histogram>,
    live_events: Family<Label, Counter>,
    websocket_items: Family<Label, Counter>,
    connections: Gauge,
    connections_refused: Counter,
    logins: Family<Label, Counter>,
    limited: Family<Label, Counter>,
}

/// How a login ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginResult {
    /// The password was right.
    Granted,
    /// The tenant, name, password or code was wrong.
    Refused,
    /// The password was right, and a code of the second factor is needed.
    CodeRequired,
    /// Too many attempts.
    Limited,
    /// Postgres or Redis was unavailable.
    Failed,
}

impl LoginResult {
    const ALL: [Self; 5] = [
        Self::Granted,
        Self::Refused,
        Self::CodeRequired,
        Self::Limited,
        Self::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::CodeRequired => "code_required",
            Self::Limited => "limited",
            Self::Failed => "failed",
        }
    }
}

/// Whose rate a request exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedBy {
    Address,
    User,
    Device,
    Tenant,
    /// Its tenant's budget of bytes, which is no rate.
    Budget,
}

impl LimitedBy {
    const ALL: [Self; 5] = [Self::Address, Self::User, Self::Device, Self::Tenant, Self::Budget];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::User => "user",
            Self::Device => "device",
            Self::Tenant => "tenant",
            Self::Budget => "budget",
        }
    }
}

/// Counts a connection until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Http {
    pub(super) fn new(labels: &Labels) -> Self {
        let new = Self {
            requests: Family::default(),
            answered: Counter::default(),
            request_seconds: Family::new_with_constructor(|| {
                Histogram::new([
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
                ])
            }),
            live_events: Family::default(),
            websocket_items: Family::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            logins: Family::default(),
            limited: Family::default(),
        };
        create(&new.limited, "by", &LimitedBy::ALL.map(LimitedBy::as_str));
        create(&new.logins, "result", &LoginResult::ALL.map(LoginResult::as_str));
        create(&new.websocket_items, "status", &labels.upload_results);
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_requests",
            "Requests, by method, pattern of the path and class of the status",
            self.requests.clone(),
        );
        registry.register(
            "http_request_duration_seconds",
            "Time until the response began, which for an event stream is not its end",
            self.request_seconds.clone(),
        );
        registry.register(
            "live_events",
            "Events written to event streams and WebSockets, by name (change for the events of own rules)",
            self.live_events.clone(),
        );
        registry.register(
            "websocket_items",
            "Items received over WebSockets, by result",
            self.websocket_items.clone(),
        );
        registry.register(
            "http_connections",
            "Open connections of clients, event streams included",
            self.connections.clone(),
        );
        registry.register(
            "http_connections_refused",
            "Connections closed at once because their address had server.connections_per_address_max",
            self.connections_refused.clone(),
        );
        registry.register(
            "http_requests_limited",
            "Requests refused, and items of WebSockets delayed or refused, by the rate (section rates) or budget exceeded",
            self.limited.clone(),
        );
        registry.register("logins", "Logins with a password, by result", self.logins.clone());
    }

    /// A request was answered.
    pub fn answered(&self, labels: RequestLabels, took: Duration) {
        self.answered.inc();
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Requests answered so far.
    pub fn requests_answered(&self) -> u64 {
        self.answered.get()
    }

    /// A client connected.
    pub fn connected(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// A connection was closed at once.
    pub fn refused(&self) {
        self.connections_refused.inc();
    }

    /// A login was answered.
    pub fn login(&self, result: LoginResult) {
        self.logins.get_or_create(&[("result", result.as_str())]).inc();
    }

    /// A request exceeded a rate.
    pub fn limited(&self, by: LimitedBy) {
        self.limited.get_or_create(&[("by", by.as_str())]).inc();
    }

    /// An event was written to an event stream.
    pub fn event_written(&self, name: &'static str) {
        self.live_events.get_or_create(&[("event", name)]).inc();
    }

    /// An item received over a WebSocket was answered.
    pub fn item_answered(&self, status: &'static str) {
        self.websocket_items.get_or_create(&[("status", status)]).inc();
    }
}

/// Compressed bodies, by direction.
#[derive(Debug)]
pub struct Gzip {
    plain_bytes: Family<Label, Counter>,
    compressed_bytes: Family<Label, Counter>,
    seconds: Family<Label, Histogram, fn() -> Histogram>,
}

/// The direction of a compressed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A response, compressed here.
    Answer,
    /// An upload, decompressed here.
    Upload,
}

impl Direction {
    fn label(self) -> Label {
        match self {
            Self::Answer => [("direction", "answer")],
            Self::Upload => [("direction", "upload")],
        }
    }
}

impl Gzip {
    pub(super) fn new() -> Self {
        let new = Self {
            plain_bytes: Family::default(),
            compressed_bytes: Family::default(),
            // 0.1 ms to 1.6 s.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_1, 2.0, 15))),
        };
        for direction in [Direction::Answer, Direction::Upload] {
            drop(new.plain_bytes.get_or_create(&direction.label()));
            drop(new.compressed_bytes.get_or_create(&direction.label()));
            drop(new.seconds.get_or_create(&direction.label()));
        }
        new
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "gzip_plain_bytes",
            "Bytes of responses before compression and of uploads after decompression",
            self.plain_bytes.clone(),
        );
        registry.register(
            "gzip_compressed_bytes",
            "Bytes of the same responses and uploads on the wire",
            self.compressed_bytes.clone(),
        );
        registry.register(
            "gzip_seconds",
            "Time to compress a response or to decompress an upload",
            self.seconds.clone(),
        );
    }

    /// A body was compressed or decompressed.
    pub fn add(&self, direction: Direction, plain_bytes: usize, compressed_bytes: usize, took: Duration) {
        let label = direction.label();
        self.plain_bytes.get_or_create(&label).inc_by(plain_bytes as u64);
        self.compressed_bytes
            .get_or_create(&label)
            .inc_by(compressed_bytes as u64);
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
    }
}
