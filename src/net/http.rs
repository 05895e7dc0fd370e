//! One question to an engine over HTTP or HTTPS, for the commands that look whether and how it runs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;

use crate::net::tls::{Connector, Roots, Trust};
use crate::net::{Address, BoxStream};

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Bytes,
}

/// `GET url`, all of it within this time. A server of HTTPS must prove its name by an authority of the system.
///
/// # Errors
/// When the URL is none of HTTP, nobody answers there in time, or the answer is larger than 1 MiB.
pub async fn get(url: &str, timeout: Duration) -> Result<Answer> {
    match tokio::time::timeout(timeout, exchange(url, timeout)).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer from {url} within {} s", timeout.as_secs()),
    }
}

async fn exchange(url: &str, timeout: Duration) -> Result<Answer> {
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
    let is_secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => bail!("{url:?} is neither of http:// nor of https://"),
    };
    let authority = uri
        .authority()
        .with_context(|| format!("{url:?} names no host"))?
        .as_str()
        .to_owned();
    // An IPv6 address stands in brackets.
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let stream = crate::net::connect(&Address::Tcp(host.clone(), port), timeout).await?;
    let stream: BoxStream = if is_secure {
        let connector = Connector::new(&Trust::ChainAndName(Roots::System), None, Some(b"http/1.1"))?;
        Box::new(connector.connect(&host, stream).await?)
    } else {
        stream
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header("host", authority)
        .header("connection", "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await;
    let response = response.with_context(|| format!("what listens at {url} does not speak HTTP"))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    match body {
        Ok(body) => Ok(Answer {
            status,
            body: body.to_bytes(),
        }),
        Err(error) => bail!("the answer of {url} broke off: {error}"),
    }
}
