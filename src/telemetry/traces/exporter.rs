//! Export of spans: OTLP over HTTP in protobuf (OpenTelemetry Protocol Specification, "OTLP/HTTP").

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use opentelemetry_http::HttpClient;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dropped;
use crate::config;
use crate::telemetry;

/// Maximum number of spans per request.
const BATCH_MAX: usize = 512;

/// Maximum duration of a request to the collector.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Exports spans until `stop`, then those that still wait.
pub(super) fn run(
    settings: &config::Telemetry,
    client: impl HttpClient + 'static,
    mut spans: mpsc::Receiver<SpanData>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        // The URL is complete: the exporter appends no path.
        .with_endpoint(settings.traces_url())
        .with_timeout(TIMEOUT)
        .with_headers(settings.headers()?.into_iter().collect())
        .build()
        .context("key `telemetry.otlp_endpoint`")?;
    exporter.set_resource(
        &Resource::builder_empty()
            .with_service_name(settings.service_name.clone())
            .with_attribute(opentelemetry::KeyValue::new(
                "service.version",
                env!("CARGO_PKG_VERSION"),
            ))
            .with_attribute(opentelemetry::KeyValue::new("posduif.commit", telemetry::COMMIT))
            .build(),
    );
    let interval = Duration::from_millis(settings.export_interval_ms);
    Ok(async move {
        let mut failing = false;
        loop {
            let stopping = stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_none();
            loop {
                let mut batch = Vec::new();
                while batch.len() < BATCH_MAX
                    && let Ok(span) = spans.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() {
                    break;
                }
                let (count, lost) = (batch.len(), dropped());
                if lost > 0 {
                    tracing::warn!(lost, "spans dropped: queue full (telemetry.queue_spans_max)");
                }
                match exporter.export(batch).await {
                    Ok(()) => failing = false,
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, lost = count, "collector refuses spans");
                        }
                        // A retry would fill the queue with old spans and delay a stop.
                        break;
                    }
                }
            }
            if stopping {
                return;
            }
        }
    })
}
