//! Requests, and reading what they bring: parameters, query and body, each with the error that says what is wrong.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
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
use crate::accounts::devices::DevicePrincipal;
use crate::api::auth::{Principal, WebPrincipal};
use crate::core::page::{Page, Start};
use crate::telemetry::metrics::Metrics;

/// Most rows in one page of a list.
pub const PAGE_MAX: i64 = 1000;

/// Rows in a page whose size nobody names.
pub const PAGE_ROWS: i64 = 50;

/// A refused body is read on so far, so that the client sees the answer instead of a reset connection.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// And so long.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// A request that has found its route.
#[derive(Debug)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its query.
    pub query: Query,
    /// Where it comes from; see [`super::address`].
    pub address: IpAddr,
    /// Who sends it; `None` on public routes.
    pub principal: Option<Principal>,
    /// Its id, which the answer and the log bear too.
    pub id: String,
    /// The path's parameters, decoded.
    pub params: Vec<(String, String)>,
    pub body: Option<Incoming>,
    /// Where inflating is counted.
    pub metrics: Arc<Metrics>,
}

impl Request {
    /// Who sends it.
    ///
    /// # Errors
    /// 401 on a public route.
    pub fn caller(&self) -> Result<&Principal, Error> {
        self.principal
            .as_ref()
            .ok_or_else(|| Error::new(Code::Unauthorized, "credentials are needed"))
    }

    /// The device that sends it.
    ///
    /// # Errors
    /// 401 when no device does.
    pub fn device(&self) -> Result<&Arc<DevicePrincipal>, Error> {
        match self.caller()? {
            Principal::Device(device) => Ok(device),
            Principal::Web(_) => Err(Error::new(Code::Unauthorized, "a device's credentials are needed")),
        }
    }

    /// The user with an access token who sends it.
    ///
    /// # Errors
    /// 401 when no such user does.
    pub fn user(&self) -> Result<&WebPrincipal, Error> {
        match self.caller()? {
            Principal::Web(user) => Ok(user),
            Principal::Device(_) => Err(Error::new(Code::Unauthorized, "an access token is needed")),
        }
    }

    /// A parameter of the path.
    pub fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// A parameter of the path that is the id of something. What is no UUID is nobody's id.
    ///
    /// # Errors
    /// 404 with the name of the thing.
    pub fn param_id(&self, name: &str, thing: &str) -> Result<Uuid, Error> {
        Uuid::try_parse(self.param(name)).map_err(|_| Error::new(Code::NotFound, format!("{thing} not found")))
    }

    /// A header's text, if it is there and is text.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The id of the event behind which a stream is to go on. The header goes first: a browser sends it by itself when it
    /// reconnects to an address with an older id.
    pub fn resume(&self) -> Option<&str> {
        // One that is no text is no id either. Taken as absent, the stream would begin behind what was missed.
        let header = self.headers.get("last-event-id");
        header
            .map(|value| value.to_str().map_or("?", str::trim))
            .or_else(|| self.query.get("last_event_id"))
            .or_else(|| self.query.get("lastEventId"))
    }

    /// The body, which must be JSON of this form. Unknown fields are tolerated.
    ///
    /// # Errors
    /// 413, 415, or 400 with the field.
    pub async fn json<T: DeserializeOwned>(&mut self, bytes_max: usize) -> Result<T, Error> {
        parse(&self.body(bytes_max, false).await?)
    }

    /// Like [`Request::json`], with the default for no body at all.
    ///
    /// # Errors
    /// Like [`Request::json`].
    pub async fn json_or_default<T: DeserializeOwned + Default>(&mut self, bytes_max: usize) -> Result<T, Error> {
        // Many clients name no type, or a form's, when they send nothing.
        if self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream) {
            return Ok(T::default());
        }
        let bytes = self.body(bytes_max, false).await?;
        if bytes.is_empty() {
            Ok(T::default())
        } else {
            parse(&bytes)
        }
    }

    /// Like [`Request::json`], where the body may be compressed with gzip; the bound is for what it inflates to.
    ///
    /// # Errors
    /// Like [`Request::json`].
    pub async fn json_inflated<T: DeserializeOwned>(&mut self, bytes_max: usize) -> Result<T, Error> {
        parse(&self.body(bytes_max, true).await?)
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
                return Err(unsupported("this endpoint takes no compressed body"));
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
                Error::new(Code::ValidationError, "the body ended early or was malformed").caused_by(&error)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > bytes_max {
                drain(body, &self.headers).await;
                return Err(too_large(bytes_max));
            }
            bytes.extend_from_slice(&data);
        }
        if gzip {
            return self.inflate(bytes.freeze(), bytes_max).await;
        }
        Ok(bytes.freeze())
    }

    async fn inflate(&self, packed: Bytes, bytes_max: usize) -> Result<Bytes, Error> {
        let packed_bytes = packed.len();
        let inflated = gzip::inflate(packed, bytes_max, &self.metrics).await?;
        let inflated = inflated
            .map_err(|error| Error::new(Code::ValidationError, "the body is no valid gzip").caused_by(&error))?;
        tracing::info!(
            request_id = self.id,
            plain_bytes = inflated.bytes.len(),
            packed_bytes,
            gzip_ms = inflated.took.as_millis() as u64,
            "inflated"
        );
        if inflated.bytes.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        Ok(inflated.bytes.into())
    }

    /// Checks what the body says it is.
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
    Error::new(Code::UnsupportedMediaType, message)
}

fn too_large(bytes_max: usize) -> Error {
    Error::new(
        Code::PayloadTooLarge,
        format!("the body must not be larger than {bytes_max} bytes"),
    )
    .with("bytes_max", bytes_max)
}

/// Reads a refused body to its end, within bounds. A client that waits for `100 Continue` has sent nothing yet.
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
    // Whatever is left then, the connection closes.
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, read).await;
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::new(Code::ValidationError, "a JSON body is needed"));
    }
    // All of it, because the parser does not look into fields that nobody asked for.
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::new(Code::ValidationError, format!("the body is not UTF-8: {error}")))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        // The path of a syntax error is wherever the parser was; of a root of the wrong type it is a dot.
        if error.is_data() && field != "." {
            Error::invalid(&field, error)
        } else {
            Error::new(
                Code::ValidationError,
                format!("the body is not the JSON that is needed: {error}"),
            )
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Error::new(Code::ValidationError, format!("more than JSON in the body: {error}")))?;
    Ok(value)
}

/// The UUID in a body's field.
///
/// # Errors
/// 400 with the field.
pub fn uuid(field: &str, text: &str) -> Result<Uuid, Error> {
    Uuid::try_parse(text).map_err(|_| Error::invalid(field, "must be a UUID"))
}

/// A body's field that must be there.
///
/// # Errors
/// 400 with the field.
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::invalid(field, "is missing"))
}

/// A header's text, if it is there and is text.
pub fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(HeaderName::from_static(name))?.to_str().ok().map(str::trim)
}

/// The decoded pairs of a query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query string, without its question mark.
    ///
    /// # Errors
    /// 400 for bad percent-encoding and NUL characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        text.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let decoded = |text: &str| percent_decode(&text.replace('+', " "));
                match (decoded(key), decoded(value)) {
                    (Some(key), Some(value)) => Ok((key, value)),
                    _ => Err(Error::new(
                        Code::ValidationError,
                        "the query string has bad percent-encoding or characters that cannot be",
                    )),
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The first value of a key; an empty one counts as none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// A value read as some type.
    ///
    /// # Errors
    /// 400 with the key and what is allowed.
    pub fn parsed<T: FromStr>(&self, key: &str, allowed: &str) -> Result<Option<T>, Error> {
        self.get(key)
            .map(|text| {
                text.parse()
                    .map_err(|_| Error::invalid(key, format!("must be {allowed}")))
            })
            .transpose()
    }

    /// The page that `limit` (1 to 1,000) and one of `offset`, `before` and `after` name.
    ///
    /// # Errors
    /// 400 with the key and the bounds.
    pub fn page(&self, limit: i64) -> Result<Page, Error> {
        let offset = self.number("offset", 0, 0..=i64::MAX)?;
        let start = match (self.get("before"), self.get("after")) {
            (None, None) => Start::Offset(offset),
            (Some(_), Some(_)) => return Err(Error::invalid("before", "and after exclude each other")),
            (_, _) if self.get("offset").is_some() => {
                return Err(Error::invalid("offset", "excludes before and after"));
            }
            (Some(id), None) => Start::Before(id.to_owned()),
            (None, Some(id)) => Start::After(id.to_owned()),
        };
        Ok(Page {
            limit: self.number("limit", limit, 1..=PAGE_MAX)?,
            start,
        })
    }

    /// A whole number within bounds.
    ///
    /// # Errors
    /// 400 with the key and the bounds.
    pub fn number<T>(&self, key: &str, default: T, bounds: RangeInclusive<T>) -> Result<T, Error>
    where
        T: FromStr + PartialOrd + Display,
    {
        let allowed = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        match self.parsed(key, &allowed)? {
            None => Ok(default),
            Some(number) if bounds.contains(&number) => Ok(number),
            Some(_) => Err(Error::invalid(key, format!("must be {allowed}"))),
        }
    }
}

/// Undoes percent-encoding. `None` for a malformed escape, for what is no UTF-8, and for NUL.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {

    use serde::Deserialize;

    use super::*;

    #[test]
    fn percent_encoding_is_undone_or_refused() {
        assert_eq!(percent_decode("a%20b%C3%A4").as_deref(), Some("a bä"));
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "a%00b"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn queries_are_read_with_bounds() {
        let query = Query::parse("limit=7&filter=a+b%2B&empty=&flag&limit=8").expect("a query");
        assert_eq!(query.get("filter"), Some("a b+"));
        assert_eq!(query.get("empty"), None);
        assert_eq!(query.number("limit", 50, 1..=1000).expect("a number"), 7);
        assert_eq!(query.number("offset", 50, 1..=1000).expect("a number"), 50);
        for bad in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=-1",
            "limit=99999999999999999999",
        ] {
            let query = Query::parse(bad).expect("a query");
            assert!(query.number("limit", 50, 1..=1000).is_err(), "{bad}");
        }
        assert!(Query::parse("a=%").is_err());
    }

    #[test]
    fn json_errors_name_the_field() {
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
            assert_eq!(parse::<Form>(bad).expect_err("bad JSON").code, Code::ValidationError);
        }
    }
}
