//! URLs of HTTP servers.

use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::Scheme;

/// The URL of something that HTTP serves, in the parts that a client needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// Whether the scheme is `https`.
    pub is_secure: bool,
    /// A name or an address, the latter without brackets.
    pub host: String,
    /// The scheme's own port unless the URL has one.
    pub port: u16,
    /// Host and port as in the header `Host`.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// A text that is not the URL of an HTTP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a URL of the form http://host:port or https://host:port")]
pub struct InvalidUrl;

impl FromStr for HttpUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let uri: Uri = text.parse().map_err(|_| InvalidUrl)?;
        let is_secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(InvalidUrl),
        };
        let authority = uri.authority().ok_or(InvalidUrl)?;
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(InvalidUrl);
        }
        let (_, without_user) = authority.as_str().rsplit_once('@').unwrap_or(("", authority.as_str()));
        Ok(Self {
            is_secure,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 }),
            authority: without_user.to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// Whether paths can be appended to a URL.
pub(super) fn is_base(text: &str) -> bool {
    text.parse::<HttpUrl>().is_ok() && !text.contains(['?', '#'])
}

/// Whether a text is an origin as browsers send it (RFC 6454, section 6.2), or `*`.
pub(super) fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text == "*"
        || host.is_some_and(|host| {
            !host.is_empty()
                && host.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b':' | b'[' | b']')
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_has_host_port_authority_and_path() {
        let url: HttpUrl = "https://push.example.com/a?b=c".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port), ("push.example.com", 443));
        assert_eq!(
            (url.authority.as_str(), url.path.as_str()),
            ("push.example.com", "/a?b=c")
        );
        let url: HttpUrl = "http://me:password@[::1]:8080".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 8080));
        assert_eq!((url.authority.as_str(), url.path.as_str()), ("[::1]:8080", "/"));
        for bad in ["", "push.example.com", "ftp://a/b", "https://", "http://:80/", "/a"] {
            assert_eq!(bad.parse::<HttpUrl>(), Err(InvalidUrl), "{bad:?}");
        }
    }
}
