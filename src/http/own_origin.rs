//! Requests to a server on the loopback address, which every page in a browser of this machine can reach: only pages of the
//! server itself may use it.

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};

use super::error::{Code, Error};
use super::request::header;

/// The request names another host, as after DNS rebinding.
const MISDIRECTED_REQUEST: Code = Code::new("MISDIRECTED_REQUEST", StatusCode::MISDIRECTED_REQUEST);

/// A page of another origin sent the request.
const FOREIGN_ORIGIN: Code = Code::new("FOREIGN_ORIGIN", StatusCode::FORBIDDEN);

/// Where a browser says from which site a request comes (Fetch Metadata).
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The authorities under which a server on a port of the loopback address is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnOrigin {
    authorities: [String; 2],
}

impl OwnOrigin {
    pub fn on_loopback(port: u16) -> Self {
        Self {
            authorities: ["127.0.0.1", "localhost"].map(|host| format!("{host}:{port}")),
        }
    }

    /// The origins of its pages.
    pub fn origins(&self) -> impl Iterator<Item = String> {
        self.authorities.iter().map(|authority| format!("http://{authority}"))
    }

    /// Checks that a request names this server: a name of another site can lead to the loopback address.
    ///
    /// # Errors
    /// 421 `MISDIRECTED_REQUEST`.
    pub fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok(),
            // HTTP/2 has `:authority` instead.
            (None, None) => uri.authority().map(|authority| authority.as_str()),
            (_, Some(_)) => None,
        };
        if host.is_some_and(|host| self.authorities.iter().any(|own| own == host)) {
            return Ok(());
        }
        let own = self.authorities.join(" or ");
        Err(Error::new(
            MISDIRECTED_REQUEST,
            format!("the header Host must be {own}"),
        ))
    }

    /// Checks that no page of another origin sent a request.
    ///
    /// # Errors
    /// 403 `FOREIGN_ORIGIN`.
    pub fn check_sender(&self, headers: &HeaderMap) -> Result<(), Error> {
        let is_own_site = match header(headers, SEC_FETCH_SITE) {
            // `none`: a person typed the address.
            Some(site) => matches!(site, "same-origin" | "none"),
            None => !headers.contains_key(HeaderName::from_static(SEC_FETCH_SITE)),
        };
        let is_own_origin = match headers.get(ORIGIN) {
            Some(origin) => origin
                .to_str()
                .is_ok_and(|origin| self.origins().any(|own| own == origin)),
            None => true,
        };
        if is_own_site && is_own_origin {
            return Ok(());
        }
        Err(foreign())
    }

    /// As [`Self::check_sender`], for a request that changes something: its sender must name its origin.
    ///
    /// # Errors
    /// 403 `FOREIGN_ORIGIN`.
    pub fn check_change(&self, headers: &HeaderMap) -> Result<(), Error> {
        self.check_sender(headers)?;
        if headers.contains_key(ORIGIN) && header(headers, SEC_FETCH_SITE) != Some("none") {
            return Ok(());
        }
        Err(foreign())
    }
}

fn foreign() -> Error {
    Error::new(
        FOREIGN_ORIGIN,
        "only pages of this server may send this request: the header Origin must be this server's",
    )
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn own_host_is_one_header_with_the_own_port() {
        let own = OwnOrigin::on_loopback(8082);
        let path = Uri::from_static("/demo/");
        let is_own = |pairs: &[_]| own.check_host(&path, &headers(pairs)).is_ok();
        assert!(is_own(&[("host", "127.0.0.1:8082")]));
        assert!(is_own(&[("host", "localhost:8082")]));
        for foreign in [
            "127.0.0.1",
            "127.0.0.1:8083",
            "evil.example:8082",
            "localhost.evil:8082",
            "",
        ] {
            assert!(!is_own(&[("host", foreign)]), "{foreign}");
        }
        assert!(!is_own(&[("host", "localhost:8082"), ("host", "evil.example")]));
        assert!(!is_own(&[]));
        let absolute = Uri::from_static("http://localhost:8082/demo/");
        assert!(own.check_host(&absolute, &HeaderMap::new()).is_ok());
    }

    #[test]
    fn foreign_senders_are_refused() {
        let own = OwnOrigin::on_loopback(8082);
        let origin = ("origin", "http://127.0.0.1:8082");
        let same = ("sec-fetch-site", "same-origin");
        for (pairs, reads, changes) in [
            (&[][..], true, false),
            (&[origin], true, true),
            (&[origin, same], true, true),
            (&[("origin", "http://localhost:8082")], true, true),
            (&[("sec-fetch-site", "none")], true, false),
            (&[origin, ("sec-fetch-site", "cross-site")], false, false),
            (&[origin, ("sec-fetch-site", "same-site")], false, false),
            (&[("origin", "http://127.0.0.1:8080"), same], false, false),
            (&[("origin", "null")], false, false),
        ] {
            let headers = headers(pairs);
            assert_eq!(own.check_sender(&headers).is_ok(), reads, "{pairs:?}");
            assert_eq!(own.check_change(&headers).is_ok(), changes, "{pairs:?}");
        }
    }
}
