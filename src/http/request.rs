//! Requests and their parts: parameters, query, headers and body, each with an error that names what is wrong.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::error::{Code, Error};
use super::gzip;
use super::heavy;
use super::memory::Share;
use super::query::Query;
use super::routes::Params;
use crate::telemetry::metrics::Metrics;

/// A refused body is drained up to this size, so that the client reads the response instead of a connection reset.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A refused body is drained for this long at most.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a body that is parsed in place; a longer one would delay the other requests of its thread.
const PARSE_BYTES: usize = 64 * 1024;

/// A routed request; `P` is who sends it, as the service identifies them.
#[derive(Debug)]
pub struct Request<P> {
    pub method: Method,
    pub headers: HeaderMap,
    pub query: Query,
    /// The client's address; see [`super::address`].
    pub address: IpAddr,
    /// `None` on public routes.
    pub principal: Option<P>,
    /// The request id, which the response and the log contain too.
    pub id: String,
    pub params: Params,
    pub body: Option<Incoming>,
    /// The memory that its body takes, until the request ends.
    pub memory: Share,
    /// Counts inflated bodies.
    pub metrics: Arc<Metrics>,
}

impl<P> Request<P> {
    /// A parameter of the path.
    pub fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// A parameter of the path that is the id of a `thing`.
    ///
    /// # Errors
    /// 404 for a text that is not a UUID: nothing has such an id.
    pub fn param_id(&self, name: &str, thing: &str) -> Result<Uuid, Error> {
        Uuid::try_parse(self.param(name)).map_err(|_| Error::new(Code::NOT_FOUND, format!("{thing} not found")))
    }

    /// A header's value, trimmed; `None` if it is absent or not text.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body, which must be JSON of this form. Unknown fields are ignored.
    ///
    /// # Errors
    /// 413, 415, or 400 with the field.
    pub async fn json<T: DeserializeOwned + Send + 'static>(&mut self, bytes_max: usize) -> Result<T, Error> {
        parse_off_runtime(self.address, self.body(bytes_max, false).await?).await
    }

    /// Like [`Request::json`], with the default for an absent body.
    pub async fn json_or_default<T>(&mut self, bytes_max: usize) -> Result<T, Error>
    where
        T: DeserializeOwned + Default + Send + 'static,
    {
        // Without a body, many clients send no Content-Type, or that of a form.
        if self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream) {
            return Ok(T::default());
        }
        let bytes = self.body(bytes_max, false).await?;
        if bytes.is_empty() {
            Ok(T::default())
        } else {
            parse_off_runtime(self.address, bytes).await
        }
    }

    /// Like [`Request::json`], where the body may be compressed with gzip; the limit applies to the inflated size.
    pub async fn json_inflated<T>(&mut self, bytes_max: usize) -> Result<T, Error>
    where
        T: DeserializeOwned + Send + 'static,
    {
        parse_off_runtime(self.address, self.body(bytes_max, true).await?).await
    }

    async fn body(&mut self, bytes_max: usize, inflate: bool) -> Result<Bytes, Error> {
        let Some(mut body) = self.body.take() else {
            return Ok(Bytes::new());
        };
        let gzip = match (self.check_type(&body), inflate) {
            (Ok(Encoding::Identity), _) => false,
            (Ok(Encoding::Gzip), true) => true,
            (Ok(Encoding::Gzip), false) => {
                drain(body, &self.headers).await;
                return Err(unsupported("this endpoint does not accept a compressed body"));
            }
            (Err(error), _) => {
                drain(body, &self.headers).await;
                return Err(error);
            }
        };
        let announced = body.size_hint().lower();
        if announced > bytes_max as u64 {
            drain(body, &self.headers).await;
            return Err(too_large(bytes_max));
        }
        let mut bytes = BytesMut::with_capacity((announced as usize).min(64 * 1024));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Error::new(Code::VALIDATION_ERROR, "the body is incomplete or malformed").caused_by(&error)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > bytes_max {
                drain(body, &self.headers).await;
                return Err(too_large(bytes_max));
            }
            if let Err(error) = self.memory.take(data.len()) {
                drain(body, &self.headers).await;
                return Err(error);
            }
            bytes.extend_from_slice(&data);
        }
        if gzip {
            return self.inflate(bytes.freeze(), bytes_max).await;
        }
        Ok(bytes.freeze())
    }

    async fn inflate(&mut self, compressed: Bytes, bytes_max: usize) -> Result<Bytes, Error> {
        let compressed_bytes = compressed.len();
        let turn = heavy::turn(self.address).await?;
        // Its size is unknown before. One that waits holds its compressed bytes only.
        self.memory.take(bytes_max)?;
        let inflated = gzip::inflate(compressed, bytes_max, turn, &self.metrics).await?;
        let inflated = inflated
            .map_err(|error| Error::new(Code::VALIDATION_ERROR, "the body is not valid gzip").caused_by(&error))?;
        tracing::info!(
            request_id = self.id,
            plain_bytes = inflated.bytes.len(),
            compressed_bytes,
            gzip_ms = inflated.took.as_millis() as u64,
            "body inflated"
        );
        if inflated.bytes.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        self.memory
            .give_back(compressed_bytes + bytes_max - inflated.bytes.len());
        Ok(inflated.bytes.into())
    }

    /// Checks Content-Type and Content-Encoding.
    fn check_type(&self, body: &Incoming) -> Result<Encoding, Error> {
        if body.is_end_stream() {
            return Ok(Encoding::Identity);
        }
        if let Some(value) = self.headers.get(CONTENT_TYPE) {
            let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            let essence = essence.trim().to_ascii_lowercase();
            if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
                return Err(unsupported("Content-Type must be application/json"));
            }
        }
        match self.headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
            None => Ok(Encoding::Identity),
            Some(value) if value.eq_ignore_ascii_case(b"identity") => Ok(Encoding::Identity),
            Some(value) if value.eq_ignore_ascii_case(b"gzip") || value.eq_ignore_ascii_case(b"x-gzip") => {
                Ok(Encoding::Gzip)
            }
            Some(_) => Err(unsupported("Content-Encoding must be gzip or identity")),
        }
    }
}

enum Encoding {
    Identity,
    Gzip,
}

fn unsupported(message: &str) -> Error {
    Error::new(Code::UNSUPPORTED_MEDIA_TYPE, message)
}

fn too_large(bytes_max: usize) -> Error {
    Error::new(
        Code::PAYLOAD_TOO_LARGE,
        format!("the body must not be larger than {bytes_max} bytes"),
    )
    .with("bytes_max", bytes_max)
}

/// Reads a refused body to its end, within limits. A client that waits for `100 Continue` has not sent anything yet.
pub async fn drain(mut body: Incoming, headers: &HeaderMap) {
    if headers.contains_key(EXPECT) || body.size_hint().lower() > DRAIN_BYTES_MAX as u64 {
        return;
    }
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    // A longer body is cut off by closing the connection.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
}

/// Parses a body; a long one outside the async runtime, a few at once.
async fn parse_off_runtime<T: DeserializeOwned + Send + 'static>(client: IpAddr, bytes: Bytes) -> Result<T, Error> {
    if bytes.len() <= PARSE_BYTES {
        return parse(&bytes);
    }
    heavy::run(heavy::turn(client).await?, move || parse(&bytes)).await?
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::new(
            Code::VALIDATION_ERROR,
            "the body is missing: it must be JSON",
        ));
    }
    // Checked as a whole, because the parser skips unknown fields.
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::new(Code::VALIDATION_ERROR, format!("the body is not UTF-8: {error}")))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        // A syntax error has an arbitrary path; a root of the wrong type has the path ".".
        if error.is_data() && field != "." {
            Error::invalid(&field, error)
        } else {
            Error::new(
                Code::VALIDATION_ERROR,
                format!("the body is not valid JSON of the expected form: {error}"),
            )
        }
    })?;
    deserializer.end().map_err(|error| {
        Error::new(
            Code::VALIDATION_ERROR,
            format!("the body continues after its JSON: {error}"),
        )
    })?;
    Ok(value)
}

/// Parses the UUID in a field.
pub fn uuid(field: &str, text: &str) -> Result<Uuid, Error> {
    Uuid::try_parse(text).map_err(|_| Error::invalid(field, "must be a UUID"))
}

/// The value of a required field.
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::invalid(field, "is missing"))
}

/// A header's value, trimmed; `None` if it is absent or not text.
pub fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(HeaderName::from_static(name))?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn json_error_names_the_field() {
        #[derive(Debug, Deserialize)]
        struct Form {
            #[allow(dead_code)]
            name: Option<String>,
        }
        assert!(parse::<Form>(br#"{"name": "a", "other": 1}"#).is_ok());
        let error = parse::<Form>(br#"{"name": 1}"#).expect_err("a number is no name");
        assert_eq!(error.details["field"], "name");
        for bad in [
            &b""[..],
            b"{",
            b"[]",
            b"1",
            b"{} x",
            b"{\"name\": \"\xff\"}",
            b"{\"other\": \"\xff\"}",
            b"{\"name\": 1e999}",
        ] {
            assert_eq!(parse::<Form>(bad).expect_err("bad JSON").code, Code::VALIDATION_ERROR);
        }
    }
}
