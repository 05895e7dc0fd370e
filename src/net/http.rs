//! The HTTP client: for other engines, for the webhook, for identity providers and for the collector of traces.
//!
//! `telemetry` must not import `net`, so [`Client`] implements the exporter's own trait, [`HttpClient`], and `engine` hands
//! one over.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::http::response::Parts;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use tokio_util::task::AbortOnDropHandle;

use crate::config::HttpUrl;
use crate::net::tls::{Connector, Roots, Trust};
use crate::net::{Address, BoxStream};

/// Maximum size of a response body, unless a client has another one.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// An open connection: its handle and the task that drives it.
type Connection = (SendRequest<Full<Bytes>>, AbortOnDropHandle<()>);

/// A response whose body arrives as long as this value lives.
#[derive(Debug)]
pub struct OpenResponse {
    pub head: Parts,
    pub body: Incoming,
    _connection: Connection,
}

/// A client of one server. Each request has its own connection, since requests are rare: every few seconds at most. A
/// server of HTTPS must prove its name.
#[derive(Debug)]
pub struct Client {
    url: HttpUrl,
    connector: Option<Connector>,
    timeout: Duration,
    body_bytes_max: usize,
}

impl Client {
    /// # Errors
    /// When the server is one of HTTPS and the authorities cannot be read.
    pub fn new(url: HttpUrl, roots: Roots, timeout: Duration) -> Result<Self> {
        let connector = url
            .is_secure
            .then(|| Connector::new(&Trust::ChainAndName(roots), None, Some(b"http/1.1")))
            .transpose()?;
        Ok(Self {
            url,
            connector,
            timeout,
            body_bytes_max: BODY_BYTES_MAX,
        })
    }

    /// The same client with another maximum size of a response body.
    #[must_use]
    pub fn with_body_bytes_max(mut self, bytes_max: usize) -> Self {
        self.body_bytes_max = bytes_max;
        self
    }

    /// Sends a request to the server and returns the whole response. The request's URI is a path and query; an absolute one
    /// is reduced to these.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        self.in_time(async {
            let (head, body, _connection) = self.exchange(request).await?;
            let body = Limited::new(body, self.body_bytes_max).collect().await;
            match body {
                Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
                Err(error) => bail!("the response of {} is incomplete: {error}", self.url.authority),
            }
        })
        .await
    }

    /// Sends a request and returns the head of the response. The body is not read.
    pub async fn send_for_head(&self, request: Request<Bytes>) -> Result<Parts> {
        self.in_time(async {
            let (head, _, _connection) = self.exchange(request).await?;
            Ok(head)
        })
        .await
    }

    /// Sends a request and returns the response while its body arrives, for streams. The timeout applies to the head only.
    pub async fn open(&self, request: Request<Bytes>) -> Result<OpenResponse> {
        self.in_time(async {
            let (head, body, connection) = self.exchange(request).await?;
            Ok(OpenResponse {
                head,
                body,
                _connection: connection,
            })
        })
        .await
    }

    async fn in_time<T>(&self, exchange: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(result) => result,
            Err(_) => bail!(
                "no response from {} within {} s",
                self.url.authority,
                self.timeout.as_secs()
            ),
        }
    }

    /// Returns the response; its body arrives until the connection is dropped.
    async fn exchange(&self, mut request: Request<Bytes>) -> Result<(Parts, Incoming, Connection)> {
        let url = &self.url;
        let address = Address::Tcp(url.host.clone(), url.port);
        let mut stream: BoxStream = crate::net::connect(&address, self.timeout).await?;
        if let Some(connector) = &self.connector {
            stream = Box::new(connector.connect(&url.host, stream).await?);
        }
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // An error of the connection is the result of the request, too.
        let connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse()?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::try_from(&url.authority)?);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let response = sender.send_request(request.map(Full::new)).await;
        let (head, body) = response
            .with_context(|| format!("{} sent no valid HTTP response", url.authority))?
            .into_parts();
        Ok((head, body, (sender, connection)))
    }
}

impl HttpClient for Client {
    // The expansion of `async_trait` for an async function.
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let response = self.send(request).await;
            response.map_err(|error| HttpError::from(format!("{error:#}")))
        })
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// `GET url`. A server of HTTPS must prove its name by an authority of the system.
///
/// # Errors
/// When the URL is malformed, no response arrives in time, or its body is larger than 1 MiB.
pub async fn get(url: &str, timeout: Duration) -> Result<Answer> {
    let target: HttpUrl = url.parse().with_context(|| format!("{url:?}"))?;
    let request = Request::get(&target.path).body(Bytes::new())?;
    let response = Client::new(target, Roots::System, timeout)?.send(request).await?;
    Ok(Answer {
        status: response.status().as_u16(),
        body: response.into_body(),
    })
}
