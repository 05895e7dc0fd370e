//! Traces for OpenTelemetry, enabled by `telemetry.otlp_endpoint`.
//!
//! **A transaction is a trace, from its commit to its readers.** Trace ID and root span ID are digests of the epoch and the
//! transaction's position. The replicator and every delivering node thus compute the same IDs and the same sampling
//! decision, without any data in the entries:
//!
//! ```text
//! transaction  commit in Postgres ────────────▶ reply of EXEC      replicator
//!   publish                          batch sent ▶ reply of EXEC    replicator
//!   deliver                                         sent to a reader         each node
//! ```
//!
//! Requests are traces of their own or continue the client's (`traceparent`, W3C Trace Context), with a span for each
//! statement and each command to Redis.
//!
//! Spans go through one bounded queue to a task that exports them. When the collector is slow or unavailable, spans are
//! dropped and counted in the log; the engine never waits for it. The SDK's tracer generates IDs and start times itself, so
//! spans are built here and only exported by the SDK.

mod exporter;

pub use self::exporter::TIMEOUT;

use std::borrow::Cow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::HttpClient;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::core::position::{EpochId, StreamId};

/// Maximum size of a `traceparent`; version 00 has 55 bytes, later versions may be longer.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// The traces of the process; empty without a collector.
static TRACES: OnceLock<Traces> = OnceLock::new();

tokio::task_local! {
    /// The current request, if its trace is sampled.
    static REQUEST: Place;
}

#[derive(Debug)]
struct Traces {
    spans: mpsc::Sender<SpanData>,
    /// Spans dropped because the queue was full.
    dropped: AtomicU64,
    /// Traces whose 63-bit number is below are sampled.
    threshold: u64,
    scope: InstrumentationScope,
}

/// A span and its trace.
#[derive(Debug, Clone, Copy)]
struct Place {
    trace: TraceId,
    span: SpanId,
}

/// Starts to export spans to the collector that `client` reaches, until `stop`; spans that wait by then are exported. Returns
/// the task to wait for.
///
/// # Errors
/// When the settings are invalid, or this is not the first call in the process.
pub fn init(
    settings: &config::Telemetry,
    client: impl HttpClient + 'static,
    stop: CancellationToken,
) -> Result<JoinHandle<()>> {
    let (spans, waiting) = mpsc::channel(settings.queue_spans_max);
    let exporting = exporter::run(settings, client, waiting, stop)?;
    let traces = Traces {
        spans,
        dropped: AtomicU64::new(0),
        // The ratio is between 0 and 1.
        threshold: (settings.sample_ratio * (1_u64 << 63) as f64) as u64,
        scope: InstrumentationScope::builder("posduif")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    };
    TRACES
        .set(traces)
        .map_err(|_| anyhow::anyhow!("traces are already initialized"))?;
    Ok(tokio::spawn(exporting))
}

/// Checks the settings as [`init`] does, without exporting anything.
pub fn check(settings: &config::Telemetry, client: impl HttpClient + 'static) -> Result<()> {
    let (_, waiting) = mpsc::channel(1);
    exporter::run(settings, client, waiting, CancellationToken::new()).map(drop)
}

/// Whether spans are exported.
pub fn is_enabled() -> bool {
    TRACES.get().is_some()
}

/// The number of spans dropped since the last call.
fn dropped() -> u64 {
    TRACES
        .get()
        .map_or(0, |traces| traces.dropped.swap(0, Ordering::Relaxed))
}

impl Traces {
    /// The decision of OpenTelemetry's `TraceIdRatioBased`.
    fn samples(&self, trace: TraceId) -> bool {
        let bytes = trace.to_bytes();
        let low = u64::from_be_bytes(*bytes.last_chunk().unwrap_or(&[0; 8]));
        low >> 1 < self.threshold
    }

    fn send(&self, place: Place, parent: Option<(SpanId, bool)>, span: Span) {
        let (parent_span_id, parent_span_is_remote) = parent.unwrap_or((SpanId::INVALID, false));
        let data = SpanData {
            span_context: SpanContext::new(
                place.trace,
                place.span,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id,
            parent_span_is_remote,
            span_kind: span.kind,
            name: span.name,
            start_time: span.start,
            end_time: span.end.max(span.start),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.status,
            instrumentation_scope: self.scope.clone(),
        };
        if self.spans.try_send(data).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Span {
    name: Cow<'static, str>,
    kind: SpanKind,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<KeyValue>,
    status: Status,
}

/// A transaction whose trace is sampled.
#[derive(Debug, Clone, Copy)]
pub struct Transaction {
    place: Place,
    position: StreamId,
}

impl Transaction {
    /// The transaction of a change at this position, if its trace is sampled.
    pub fn of(epoch: EpochId, position: StreamId) -> Option<Self> {
        let traces = TRACES.get()?;
        let place = place_of(epoch, position.ms);
        traces.samples(place.trace).then_some(Self { place, position })
    }

    /// The transaction was published by a batch with these times of sending and of the reply.
    pub fn published(&self, commit_ts: i64, sent: SystemTime, answered: SystemTime, changes: usize) {
        let Some(traces) = TRACES.get() else { return };
        let committed = UNIX_EPOCH + Duration::from_micros(commit_ts.unsigned_abs());
        let whole = Span {
            name: "transaction".into(),
            kind: SpanKind::Internal,
            start: committed,
            end: answered,
            attributes: vec![self.position()],
            status: Status::Unset,
        };
        traces.send(self.place, None, whole);
        let publish = Span {
            name: "publish".into(),
            kind: SpanKind::Producer,
            start: sent,
            end: answered,
            attributes: vec![
                KeyValue::new("messaging.system", "redis"),
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new(
                    "messaging.batch.message_count",
                    i64::try_from(changes).unwrap_or(i64::MAX),
                ),
                self.position(),
            ],
            status: Status::Unset,
        };
        self.child(traces, false, publish);
    }

    /// A change of the transaction is sent to a reader now, as a live event, from history or in a batch: `via`.
    pub fn delivered(&self, via: &'static str, event: &str) {
        let Some(traces) = TRACES.get() else { return };
        let now = SystemTime::now();
        let deliver = Span {
            name: "deliver".into(),
            kind: SpanKind::Consumer,
            start: now,
            end: now,
            attributes: vec![
                KeyValue::new("messaging.system", "redis"),
                KeyValue::new("messaging.operation.type", "receive"),
                KeyValue::new("posduif.via", via),
                KeyValue::new("posduif.event", event.to_owned()),
                self.position(),
            ],
            status: Status::Unset,
        };
        self.child(traces, true, deliver);
    }

    fn child(&self, traces: &Traces, is_elsewhere: bool, span: Span) {
        let place = Place {
            span: random_span(),
            ..self.place
        };
        traces.send(place, Some((self.place.span, is_elsewhere)), span);
    }

    fn position(&self) -> KeyValue {
        KeyValue::new("posduif.position", self.position.to_string())
    }
}

/// Trace and root span of a transaction.
fn place_of(epoch: EpochId, transaction: u64) -> Place {
    let mut digest = Sha256::new();
    digest.update(b"posduif transaction");
    digest.update(epoch.0.to_be_bytes());
    digest.update(transaction.to_be_bytes());
    let digest = digest.finalize();
    let (trace, rest) = digest.split_first_chunk().unwrap_or((&[0; 16], &[]));
    Place {
        trace: TraceId::from_bytes(*trace),
        span: SpanId::from_bytes(*rest.first_chunk().unwrap_or(&[0; 8])),
    }
}

/// A request whose trace is sampled.
#[derive(Debug)]
pub struct Request {
    place: Place,
    parent: Option<(SpanId, bool)>,
    start: SystemTime,
}

impl Request {
    /// A request that starts now. The sampling decision of a `traceparent` applies to the request.
    pub fn begin(traceparent: Option<&str>) -> Option<Self> {
        let traces = TRACES.get()?;
        let (trace, parent) = match traceparent.and_then(parse_traceparent) {
            Some((_, false)) => return None,
            Some((place, true)) => (place.trace, Some((place.span, true))),
            None => {
                let trace = TraceId::from_bytes(uuid::Uuid::new_v4().into_bytes());
                if !traces.samples(trace) {
                    return None;
                }
                (trace, None)
            }
        };
        Some(Self {
            place: Place {
                trace,
                span: random_span(),
            },
            parent,
            start: SystemTime::now(),
        })
    }

    /// The trace ID, for the log.
    pub fn trace_id(&self) -> String {
        self.place.trace.to_string()
    }

    /// Runs the request's handler; its operations on Postgres and Redis become spans of the trace.
    pub async fn within<T>(request: Option<&Self>, answering: impl Future<Output = T>) -> T {
        match request {
            Some(request) => REQUEST.scope(request.place, answering).await,
            None => answering.await,
        }
    }

    /// The request was answered.
    pub fn answered(self, method: &str, route: &'static str, status: u16, id: &str) {
        let Some(traces) = TRACES.get() else { return };
        let span = Span {
            name: format!("{method} {route}").into(),
            kind: SpanKind::Server,
            start: self.start,
            end: SystemTime::now(),
            attributes: vec![
                KeyValue::new("http.request.method", method.to_owned()),
                KeyValue::new("http.route", route),
                KeyValue::new("http.response.status_code", i64::from(status)),
                KeyValue::new("posduif.request_id", id.to_owned()),
            ],
            status: if status >= 500 {
                Status::error("")
            } else {
                Status::Unset
            },
        };
        traces.send(self.place, self.parent, span);
    }
}

/// An operation on another server ended while a request was handled: a statement or a command of this name.
pub(crate) fn operation_ended(
    system: &'static str,
    name: &'static str,
    started: Instant,
    failed: Option<&'static str>,
) {
    let (Some(traces), Ok(request)) = (TRACES.get(), REQUEST.try_with(|place| *place)) else {
        return;
    };
    let end = SystemTime::now();
    let span = Span {
        name: name.into(),
        kind: SpanKind::Client,
        start: end - started.elapsed(),
        end,
        attributes: vec![
            KeyValue::new("db.system.name", system),
            KeyValue::new("db.operation.name", name),
        ],
        status: failed.map_or(Status::Unset, Status::error),
    };
    let place = Place {
        span: random_span(),
        ..request
    };
    traces.send(place, Some((request.span, false)), span);
}

/// Trace, span and the sampling decision (W3C Trace Context, section 3.2).
fn parse_traceparent(text: &str) -> Option<(Place, bool)> {
    if text.len() > TRACEPARENT_BYTES_MAX {
        return None;
    }
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_valid = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    // Later versions may append fields, version 00 may not, and ff is invalid.
    if !is_valid || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let place = Place {
        trace: TraceId::from_hex(trace).ok().filter(|id| *id != TraceId::INVALID)?,
        span: SpanId::from_hex(span).ok().filter(|id| *id != SpanId::INVALID)?,
    };
    Some((place, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

fn random_span() -> SpanId {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    SpanId::from_bytes(high.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_has_the_same_trace_on_every_node() {
        let id = |epoch, ms| place_of(EpochId(epoch), ms);
        assert_eq!(id(1, 7).trace, id(1, 7).trace);
        assert_eq!(id(1, 7).span, id(1, 7).span);
        assert_ne!(id(1, 7).trace, id(1, 8).trace);
        assert_ne!(id(1, 7).trace, id(2, 7).trace);
        // The value must not change: nodes of different versions must agree.
        assert_eq!(id(1, 7).trace.to_string(), "b773075d5988de0fda477bdf967ea092");
    }

    #[test]
    fn malformed_traceparent_is_ignored() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (place, is_sampled) = parse_traceparent(good).expect("valid");
        assert!(is_sampled);
        assert_eq!(place.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(place.span.to_string(), "00f067aa0ba902b7");
        let (_, is_sampled) = parse_traceparent(&good.replace("-01", "-00")).expect("valid");
        assert!(!is_sampled);
        assert!(parse_traceparent(&format!("{}-more", good.replacen("00", "cc", 1))).is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473ä-00f067aa0ba902b7-01",
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
        assert!(parse_traceparent(&"0".repeat(10_000)).is_none());
    }
}
