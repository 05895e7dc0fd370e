//! `/metrics`: what the engine counts, and how things stand at this moment, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hyper::{Method, StatusCode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::api::health::Diagnostics;
use crate::http::error::Error;
use crate::http::request::Request;
use crate::http::response::{self, Response};
use crate::replication::report::{Lag, ReplicationStatus, ReplicatorState};
use crate::replication::slot::SlotSample;
use crate::telemetry;
use crate::telemetry::metrics::{Label, RequestLabels, registry};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A gauge for each value of a label.
type Gauges = Family<Label, Gauge<f64, AtomicU64>>;

/// `GET /metrics`. Asks neither Postgres nor Redis, so that it answers when they do not.
///
/// # Errors
/// None in practice: the text can always be written.
pub async fn metrics(vitals: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    let text = vitals
        .metrics
        .render(&gauges(&vitals))
        .map_err(|error| Error::internal(format!("the metrics cannot be written: {error}")))?;
    Ok(response::with_type(StatusCode::OK, CONTENT_TYPE, text))
}

/// How things stand. What is not known now is left out.
fn gauges(vitals: &Diagnostics) -> Registry {
    let mut now = registry();
    let version: Family<[(&str, &str); 2], Gauge<f64, AtomicU64>> = Family::default();
    version
        .get_or_create(&[("version", env!("CARGO_PKG_VERSION")), ("commit", telemetry::COMMIT)])
        .set(1.0);
    now.register(
        "build_info",
        "The version that runs, and the commit it was built from",
        version,
    );
    if let Some(shown) = &vitals.replication {
        replication_gauges(&mut now, shown);
    }
    if let Some(age) = vitals.hub.freshness().borrow().age() {
        now.register(
            "freshness_age_seconds",
            "Age of what clients can see: since the commit of the last heartbeat that came through",
            ConstGauge::new(age.as_secs_f64()),
        );
    }
    now.register(
        "subscribers",
        "Event streams and WebSockets connected to this process",
        ConstGauge::new(vitals.hub.subscribers() as f64),
    );
    now.register(
        "subscriber_queue_events",
        "Events that wait for the slowest event stream here; at sse.queue_events_max it reads its streams instead",
        ConstGauge::new(vitals.hub.longest_queue() as f64),
    );
    now.register(
        "device_changes_waiting",
        "Changes of devices that wait for whoever follows them, at most 1024",
        ConstGauge::new(vitals.hub.device_changes_waiting() as f64),
    );
    now.register(
        "http_connections_max",
        "Most connections of clients at once (server.connections_max)",
        ConstGauge::new(vitals.config.server.connections_max as f64),
    );
    vitals.metrics.cache.register_size(&mut now);
    vitals.database.operations().register(
        &mut now,
        "database_query",
        [
            "Time of statements, by the name of their file in sql/ (other: put together in code)",
            "Statements that failed, by cause: unavailable, constraint, statement (refused as such), timeout",
        ],
    );
    vitals.store.operations().register(
        &mut now,
        "redis_command",
        [
            "Time of commands to Redis, by the first of what is sent at once; the publisher's are in batch_exec_seconds",
            "Commands to Redis that failed, by cause: timeout, connection, refused",
        ],
    );
    let pool = vitals.database.pool_use();
    now.register(
        "pool_wait_seconds",
        "Time until the pool gave a connection, its making and checking included",
        vitals.database.waits().clone(),
    );
    now.register(
        "pool_waiting",
        "Who waits for a connection out of the pool",
        ConstGauge::new(pool.waiting as f64),
    );
    now.register(
        "pool_connections",
        "Ordinary Postgres connections of this process, by use",
        labelled("use", [("in_use", pool.in_use as f64), ("idle", pool.idle as f64)]),
    );
    now.register(
        "pool_connections_taken",
        "Times that work took one of the ordinary Postgres connections",
        ConstCounter::new(pool.taken),
    );
    now.register(
        "pool_connections_max",
        "Most ordinary Postgres connections of this process (postgres.pool_size)",
        ConstGauge::new(pool.max as f64),
    );
    now
}

fn replication_gauges(now: &mut Registry, shown: &ReplicationStatus) {
    let state = shown.state.borrow().clone();
    let is = |wanted: bool| f64::from(u8::from(wanted));
    now.register(
        "replication_state",
        "1 for what the replicator does now, 0 for the others",
        labelled(
            "state",
            [
                ("starting", is(matches!(state, ReplicatorState::Starting))),
                ("waiting", is(matches!(state, ReplicatorState::Waiting))),
                ("streaming", is(matches!(state, ReplicatorState::Streaming { .. }))),
                ("failed", is(matches!(state, ReplicatorState::Failed(_)))),
            ],
        ),
    );
    if let ReplicatorState::Streaming {
        number,
        stopped_streams,
        ..
    } = state
    {
        now.register("epoch_number", "Number of the epoch", ConstGauge::new(number));
        now.register(
            "streams_stopped",
            "Streams that take no entries and have a hole until they are born anew",
            ConstGauge::new(stopped_streams as f64),
        );
    }
    if let Some(lag) = shown.lag() {
        let Lag {
            received,
            published,
            durable,
            acknowledged,
        } = lag;
        now.register(
            "replication_lag_bytes",
            "Bytes of the write-ahead log between its end at the last heartbeat and a stage",
            labelled(
                "stage",
                [
                    ("received", received as f64),
                    ("published", published as f64),
                    ("durable", durable as f64),
                    ("acknowledged", acknowledged as f64),
                ],
            ),
        );
    }
    if let Some(sample) = &*shown.sample.borrow() {
        slot_gauges(now, sample);
    }
}

fn slot_gauges(now: &mut Registry, sample: &SlotSample) {
    now.register(
        "slot_sample_age_seconds",
        "Time since a heartbeat looked at the slot last",
        ConstGauge::new(sample.at.elapsed().as_secs_f64()),
    );
    if let Some(bytes) = sample.retained_wal_bytes() {
        now.register(
            "slot_retained_wal_bytes",
            "Bytes of the write-ahead log that Postgres keeps for the slot",
            ConstGauge::new(bytes as f64),
        );
    }
    if let Some(bytes) = sample.safe_wal_bytes {
        now.register(
            "slot_safe_wal_size_bytes",
            "Bytes that can be written before the slot may be lost (max_slot_wal_keep_size); absent without a bound",
            ConstGauge::new(bytes as f64),
        );
    }
    if let Some(status) = &sample.wal_status {
        let is = |word: &'static str| (word, f64::from(u8::from(status == word)));
        now.register(
            "slot_wal_status",
            "1 for the slot's wal_status, 0 for the others",
            labelled("status", ["reserved", "extended", "unreserved", "lost"].map(is)),
        );
    }
}

fn labelled<const N: usize>(label: &'static str, values: [(&'static str, f64); N]) -> Gauges {
    let gauges = Gauges::default();
    for (value, number) in values {
        gauges.get_or_create(&[(label, value)]).set(number);
    }
    gauges
}

/// What a request is counted under. `route` is the pattern of its path, empty when there is nothing.
pub(crate) fn request_labels(method: &Method, route: &'static str, status: StatusCode) -> RequestLabels {
    [
        ("method", method_name(method)),
        ("route", if route.is_empty() { "none" } else { route }),
        ("status", status_class(status)),
    ]
}

/// A client may make up methods without end.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_few_whatever_clients_send() {
        for method in ["MADE", "UP", "METHODS"] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(
                request_labels(&method, "", StatusCode::NOT_FOUND),
                [("method", "other"), ("route", "none"), ("status", "4xx")]
            );
        }
        assert_eq!(
            request_labels(&Method::PATCH, "/api/messages/{id}", StatusCode::NO_CONTENT),
            [("method", "PATCH"), ("route", "/api/messages/{id}"), ("status", "2xx")]
        );
    }
}
