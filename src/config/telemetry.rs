use anyhow::{Context, Result, bail};

use super::secret::Secret;
use super::section::section;
use super::url::HttpUrl;

section! {
    /// Traces for OpenTelemetry.
    pub struct Telemetry {
        /// Endpoint of a collector for OTLP over HTTP, for example `http://127.0.0.1:4318`; empty disables traces.
        pub otlp_endpoint: String = String::new();
        /// Headers for the collector, `name=value` separated by commas, for example an API key.
        pub otlp_headers: Secret = Secret::new("");
        /// Name of this system in traces.
        pub service_name: String = "posduif".into();
        /// Fraction of the traces that is sampled, 0 to 1. A trusted proxy that sends `traceparent` decides for
        /// its request.
        pub sample_ratio: f64 = 0.01;
        /// Maximum number of spans that wait to be exported; further spans are dropped.
        pub queue_spans_max: usize = 8192, 64..=1_000_000;
        /// Milliseconds between two exports.
        pub export_interval_ms: u64 = 2000, 100..=60_000;
    }
}

impl Telemetry {
    /// Whether traces are exported.
    pub fn is_enabled(&self) -> bool {
        !self.otlp_endpoint.is_empty()
    }

    /// Where spans are sent: the endpoint, with the protocol's path for traces unless the endpoint has a path.
    pub fn traces_url(&self) -> String {
        let endpoint = self.otlp_endpoint.trim_end_matches('/');
        match endpoint.split_once("://") {
            Some((_, place)) if place.contains('/') => endpoint.to_owned(),
            _ => format!("{endpoint}/v1/traces"),
        }
    }

    /// The collector's server.
    pub fn collector(&self) -> Result<HttpUrl> {
        self.otlp_endpoint.parse().with_context(|| {
            format!(
                "key `telemetry.otlp_endpoint` is \"{}\": must be a URL such as http://127.0.0.1:4318, or empty",
                self.otlp_endpoint
            )
        })
    }

    /// The headers for the collector, by name.
    pub fn headers(&self) -> Result<Vec<(String, String)>> {
        let pairs = self
            .otlp_headers
            .expose()
            .split(',')
            .filter(|pair| !pair.trim().is_empty());
        pairs
            .map(|pair| {
                let (name, value) = pair
                    .split_once('=')
                    .context("key `telemetry.otlp_headers` must be of the form name=value, separated by commas")?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            bail!(
                "key `telemetry.sample_ratio` is {}: allowed is 0 to 1",
                self.sample_ratio
            );
        }
        if self.is_enabled() {
            self.collector()?;
        }
        self.headers().map(drop)
    }
}
