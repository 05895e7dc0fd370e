//! Sending spans: OTLP over HTTP in protobuf (OpenTelemetry Protocol Specification, "OTLP/HTTP").

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dropped;
use crate::config;
use crate::net::tls::{Connector, Roots, Trust};
use crate::net::{self, Address, BoxStream};
use crate::telemetry;

/// Most spans in one request.
const BATCH_MAX: usize = 512;

/// How long the collector may take for one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What the collector is sent, until `stop`, and then what waits.
pub(super) fn run(
    settings: &config::Telemetry,
    mut spans: mpsc::Receiver<SpanData>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new(&settings.otlp_endpoint)?)
        // The signal's own path: the endpoint is used as it is given.
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
                    tracing::warn!(
                        lost,
                        "spans were dropped: more came than telemetry.queue_spans_max holds"
                    );
                }
                match exporter.export(batch).await {
                    Ok(()) => failing = false,
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, lost = count, "the collector of traces takes no spans");
                        }
                        // Waiting for it would fill the queue with old spans; a stop does not wait either.
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

/// An HTTP client on the engine's own transport, so that no second TLS comes in. A connection a request: there is one every
/// `telemetry.export_interval_ms`.
struct Client {
    address: Address,
    host: String,
    connector: Option<Connector>,
}

impl Client {
    fn new(endpoint: &str) -> Result<Self> {
        let uri: Uri = endpoint.parse().context("key `telemetry.otlp_endpoint` is no URL")?;
        let (Some(host), Some(scheme)) = (uri.host(), uri.scheme_str()) else {
            bail!("key `telemetry.otlp_endpoint` must be a URL such as http://127.0.0.1:4318");
        };
        let (port, connector) = match scheme {
            "http" => (80, None),
            "https" => {
                let trust = Trust::ChainAndName(Roots::System);
                (
                    443,
                    Some(Connector::new(&trust, None, None).context("TLS to the collector of traces")?),
                )
            }
            _ => {
                return Err(anyhow!(
                    "key `telemetry.otlp_endpoint` must begin with http:// or https://"
                ));
            }
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            address: Address::Tcp(host.clone(), uri.port_u16().unwrap_or(port)),
            host,
            connector,
        })
    }

    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let stream = net::connect(&self.address, TIMEOUT).await?;
        let stream: BoxStream = match &self.connector {
            None => stream,
            Some(connector) => Box::new(connector.connect(&self.host, stream).await?),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        if let Some(authority) = authority {
            request.headers_mut().insert(HOST, HeaderValue::try_from(authority)?);
        }
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse()?;
        let (head, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl HttpClient for Client {
    // What the attribute `async_trait` makes of an async function.
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            match tokio::time::timeout(TIMEOUT, self.send(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}
