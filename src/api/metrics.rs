//! `/metrics`: the counters of [`crate::telemetry::metrics`], and gauges of the current state, as OpenMetrics text.
//!
//! The gauges are here, not in `telemetry`, because they read the replicator, the live tail and the pool.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hyper::{Method, StatusCode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::api::health::Diagnostics;
use crate::api::lane::Lane;
use crate::api::request::Request;
use crate::core::lane::Lanes;
use crate::http::error::Error;
use crate::http::response::{self, Response};
use crate::replication::report::{Lag, ReplicationStatus, ReplicatorState};
use crate::replication::slot::SlotSample;
use crate::telemetry;
use crate::telemetry::metrics::{CONTENT_TYPE, Label, RequestLabels, registry};

/// A gauge for each value of a label.
type Gauges = Family<Label, Gauge<f64, AtomicU64>>;

/// `GET /metrics`. Queries neither Postgres nor Redis, so that it works during their outages.
pub async fn metrics(diagnostics: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    let text = diagnostics
        .metrics
        .render(&gauges(&diagnostics))
        .map_err(|error| Error::internal(format!("the metrics cannot be written: {error}")))?;
    Ok(response::with_type(StatusCode::OK, CONTENT_TYPE, text))
}

/// The gauges of the current state. Unknown values are omitted.
fn gauges(diagnostics: &Diagnostics) -> Registry {
    let mut now = registry();
    let main = diagnostics.lanes.main();
    let version: Family<[(&str, &str); 2], Gauge<f64, AtomicU64>> = Family::default();
    version
        .get_or_create(&[("version", env!("CARGO_PKG_VERSION")), ("commit", telemetry::COMMIT)])
        .set(1.0);
    now.register("build_info", "Version and commit of the program", version);
    if let Some(shown) = &main.replication {
        replication_gauges(&mut now, shown);
    }
    lane_gauges(&mut now, &diagnostics.lanes);
    if let Some(age) = main.hub.freshness().borrow().age() {
        now.register(
            "freshness_age_seconds",
            "Age of the data that clients see: time since the commit of the last heartbeat received",
            ConstGauge::new(age.as_secs_f64()),
        );
    }
    now.register(
        "subscribers",
        "Event streams and WebSockets connected to this process",
        ConstGauge::new(main.hub.subscribers() as f64),
    );
    now.register(
        "subscriber_queue_events",
        "Events queued for the slowest reader of this process; at live.queue_events_max it reads its streams instead",
        ConstGauge::new(main.hub.longest_queue() as f64),
    );
    now.register(
        "device_changes_waiting",
        "Changes of devices queued for their listeners, at most 1024",
        ConstGauge::new(main.hub.device_changes_waiting() as f64),
    );
    let waits = main.visibility.waits();
    now.register(
        "visibility_waiting",
        "Waits of readers for commits that are published and that Postgres does not show yet",
        ConstGauge::new(waits.count as f64),
    );
    now.register(
        "visibility_wait_seconds",
        "For how long there have been such waits without a break",
        ConstGauge::new(waits.since.map_or(0.0, |since| since.elapsed().as_secs_f64())),
    );
    now.register(
        "http_connections_max",
        "Maximum number of connections of clients (server.connections_max)",
        ConstGauge::new(diagnostics.config.server.connections_max as f64),
    );
    diagnostics.metrics.device_cache.register_size(&mut now);
    diagnostics.database.operations().register(
        &mut now,
        "database_query",
        [
            "Duration of statements, by the name of their file in sql/ (other: built in code)",
            "Failed statements, by cause: unavailable, constraint, statement (refused by Postgres), timeout",
        ],
    );
    main.store.operations().register(
        &mut now,
        "redis_command",
        [
            "Duration of commands to Redis, by the first command of a pipeline; those of the publisher are in batch_exec_seconds",
            "Failed commands to Redis, by cause: timeout, connection, refused",
        ],
    );
    let pool = diagnostics.database.pool_use();
    now.register(
        "pool_wait_seconds",
        "Time to acquire a connection from the pool, opening and checking it included",
        diagnostics.database.waits().clone(),
    );
    now.register(
        "pool_waiting",
        "Tasks that wait for a connection of the pool",
        ConstGauge::new(pool.waiting as f64),
    );
    now.register(
        "pool_connections",
        "Pooled Postgres connections of this process, by use",
        labelled("use", [("in_use", pool.in_use as f64), ("idle", pool.idle as f64)]),
    );
    now.register(
        "pool_connections_acquired",
        "Acquisitions of a pooled Postgres connection",
        ConstCounter::new(pool.taken),
    );
    now.register(
        "pool_connections_max",
        "Maximum number of pooled Postgres connections of this process (postgres.pool_size)",
        ConstGauge::new(pool.max as f64),
    );
    now
}

/// The gauges of the lanes beside the main one; those of the main one have names without `lane`.
fn lane_gauges(now: &mut Registry, lanes: &Lanes<Lane>) {
    type OfLanes = Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>;
    let (streaming, stopped, lag, retained, age) = <(OfLanes, OfLanes, OfLanes, OfLanes, OfLanes)>::default();
    let (mut has_replicator, mut has_age) = (false, false);
    for (name, lane) in lanes.others() {
        let label = || vec![("lane", name.to_owned())];
        if let Some(known) = lane.hub.freshness().borrow().age() {
            age.get_or_create(&label()).set(known.as_secs_f64());
            has_age = true;
        }
        let Some(shown) = &lane.replication else { continue };
        has_replicator = true;
        let is_streaming = shown.state.borrow().is_streaming();
        streaming.get_or_create(&label()).set(f64::from(u8::from(is_streaming)));
        if let ReplicatorState::Streaming { stopped_streams, .. } = *shown.state.borrow() {
            stopped.get_or_create(&label()).set(stopped_streams as f64);
        }
        if let Some(known) = shown.lag() {
            lag.get_or_create(&label()).set(known.published as f64);
        }
        let sample = shown.sample.borrow();
        if let Some(bytes) = sample.as_ref().and_then(SlotSample::retained_wal_bytes) {
            retained.get_or_create(&label()).set(bytes as f64);
        }
    }
    if has_age {
        now.register(
            "lane_freshness_age_seconds",
            "freshness_age_seconds of each lane beside the main one",
            age,
        );
    }
    if has_replicator {
        now.register(
            "lane_streaming",
            "1 while this process follows the log for a lane beside the main one",
            streaming,
        );
        now.register("lane_streams_stopped", "streams_stopped of each of them", stopped);
        now.register(
            "lane_lag_bytes",
            "Bytes of the write-ahead log that each of them has not published",
            lag,
        );
        now.register(
            "lane_retained_wal_bytes",
            "slot_retained_wal_bytes of the slot of each of them",
            retained,
        );
    }
}

fn replication_gauges(now: &mut Registry, shown: &ReplicationStatus) {
    let state = shown.state.borrow().clone();
    let is = |wanted: bool| f64::from(u8::from(wanted));
    now.register(
        "replication_state",
        "1 for the current state of the replicator, 0 for the others",
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
        replicas,
        ..
    } = state
    {
        now.register(
            "redis_replicas_acknowledged",
            "Replicas of Redis that acknowledge in time, where redis.replicas_min requires some",
            ConstGauge::new(replicas.unwrap_or(0) as f64),
        );
        now.register("epoch_number", "Number of the epoch", ConstGauge::new(number));
        now.register(
            "streams_stopped",
            "Stopped streams: entries are missing until the stream is reset",
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
        "Time since the last heartbeat that sampled the slot",
        ConstGauge::new(sample.at.elapsed().as_secs_f64()),
    );
    if let Some(bytes) = sample.retained_wal_bytes() {
        now.register(
            "slot_retained_wal_bytes",
            "Bytes of the write-ahead log that Postgres retains for the slot",
            ConstGauge::new(bytes as f64),
        );
    }
    if let Some(bytes) = sample.safe_wal_bytes {
        now.register(
            "slot_safe_wal_size_bytes",
            "Bytes of WAL until the slot may be lost (max_slot_wal_keep_size); absent without a limit",
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

/// The labels of a request. `route` is the pattern of its path, empty without a route.
pub(crate) fn request_labels(method: &Method, route: &'static str, status: StatusCode) -> RequestLabels {
    [
        ("method", method_name(method)),
        ("route", if route.is_empty() { "none" } else { route }),
        ("status", status_class(status)),
    ]
}

/// Clients may send any method, so unknown ones share a label.
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
    fn labels_stay_bounded_for_any_request() {
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
