//! The request log: one line, one trace and one count for each request.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use hyper::Method;
use hyper::body::{Body as _, Incoming};

use super::auth::Principal;
use super::metrics::request_labels;
use crate::config::Network;
use crate::http::address;
use crate::http::error::Error;
use crate::http::request::header;
use crate::http::request_id::request_id;
use crate::http::response::Response;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// What is recorded of a request.
pub(crate) struct RequestRecord {
    started: Instant,
    method: Method,
    peer: SocketAddr,
    client: IpAddr,
    pub(crate) id: String,
    pub(crate) trace: Option<traces::Request>,
    pub(crate) target: Target,
}

/// What routing and admission find out about a request.
#[derive(Default)]
pub(crate) struct Target {
    /// The pattern of the path, never the path itself: that may contain an enrollment token.
    pub(crate) pattern: &'static str,
    pub(crate) principal: Option<Principal>,
}

/// What is logged of an error.
pub(crate) struct Failure {
    code: &'static str,
    cause: Option<Box<str>>,
    backtrace: Option<String>,
}

impl Failure {
    /// Moves what only the log shows out of an error.
    pub(crate) fn of(error: &mut Error) -> Self {
        Self {
            code: error.code.as_str(),
            cause: error.cause.take(),
            backtrace: error.backtrace.take().map(|backtrace| backtrace.to_string()),
        }
    }
}

impl RequestRecord {
    /// A `traceparent` counts from a trusted proxy only: it decides whether the request is sampled.
    pub(crate) fn begin(request: &hyper::Request<Incoming>, peer: SocketAddr, trusted: &[Network]) -> Self {
        let is_trusted = trusted.iter().any(|network| network.contains(peer.ip()));
        let traceparent = header(request.headers(), "traceparent").filter(|_| is_trusted);
        Self {
            started: Instant::now(),
            method: request.method().clone(),
            peer,
            client: address::client(peer.ip(), request.headers(), trusted),
            id: request_id(request.headers()),
            trace: traces::Request::begin(traceparent),
            target: Target::default(),
        }
    }

    /// Counts, traces and logs the response.
    pub(crate) fn finish(self, metrics: &Metrics, response: &Response, failure: Option<&Failure>) {
        let Self {
            started,
            method,
            peer,
            client,
            id,
            trace,
            target: Target { pattern, principal },
        } = self;
        let (status, took) = (response.status().as_u16(), started.elapsed());
        let labels = request_labels(&method, pattern, response.status());
        metrics.http.answered(labels, took);
        let trace_id = trace.as_ref().map(traces::Request::trace_id);
        if let Some(trace) = trace {
            let [(_, method), (_, route), _] = labels;
            trace.answered(method, route, status, &id);
        }
        let principal = principal.as_ref();
        let device = match principal {
            Some(Principal::Device(device)) => Some(&*device.device_id),
            _ => None,
        };
        // A macro, because the level of an event is a constant of its call site.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    %method,
                    path = pattern,
                    status,
                    ms = took.as_secs_f64() * 1000.0,
                    bytes = response.body().size_hint().exact(),
                    tenant = principal.map(|principal| &*principal.tenant().name),
                    user = principal.map(|principal| principal.user_id().to_string()),
                    device,
                    request_id = id,
                    trace_id,
                    %peer,
                    %client,
                    code = failure.map(|failure| failure.code),
                    cause = failure.and_then(|failure| failure.cause.as_deref()),
                    backtrace = failure.and_then(|failure| failure.backtrace.as_deref()),
                    "request"
                )
            };
        }
        match (failure, pattern) {
            (Some(_), _) if status >= 500 => line!(error),
            // Probes arrive every few seconds.
            (None, "/health" | "/ready" | "/metrics") => line!(debug),
            _ => line!(info),
        }
    }
}
