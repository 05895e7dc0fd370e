//! The files of the web pages, which the program contains. `scripts/web` builds them, `build.rs` lists them.
//!
//! Only `index.html` has a fixed name; the name of every other file has a hash of its content, so it never changes.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, VARY, X_FRAME_OPTIONS,
};

use super::error::{Code, Error};
use super::gzip;
use super::response::{self, Response};

/// The files: path and content.
static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/web.rs"));

/// The files that are smaller when compressed, compressed at the first request.
static COMPRESSED: LazyLock<HashMap<&str, Bytes>> = LazyLock::new(|| {
    let compressed = FILES.iter().filter_map(|(path, content)| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).ok()?;
        let bytes = encoder.finish().ok()?;
        (bytes.len() < content.len()).then(|| (*path, bytes.into()))
    });
    compressed.collect()
});

/// The directives of a page's policy beside `connect-src`: no other host, no inline script, no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'";

/// A page: a folder of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    Console,
    Demo,
}

impl Page {
    fn folder(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Demo => "demo",
        }
    }

    /// Whether the program contains the page.
    pub fn is_built(self) -> bool {
        self.find("index.html").is_some()
    }

    fn find(self, name: &str) -> Option<(&'static str, &'static [u8])> {
        FILES
            .iter()
            .find(|(path, _)| path.strip_prefix(self.folder()).and_then(|rest| rest.strip_prefix('/')) == Some(name))
            .copied()
    }

    /// A file of the page, the index for the empty name, compressed if the request accepts that. The page may connect to its
    /// own origin and to these others.
    ///
    /// # Errors
    /// 404 for any other name, and when the program was built without the pages.
    pub fn respond(self, name: &str, request: &HeaderMap, connect_to: &[String]) -> Result<Response, Error> {
        let is_index = name.is_empty() || name == "index.html";
        let Some((path, content)) = self.find(if is_index { "index.html" } else { name }) else {
            return Err(if self.is_built() {
                Error::new(Code::NOT_FOUND, "no resource at this path")
            } else {
                Error::new(
                    Code::NOT_FOUND,
                    "this program was built without its web pages (--no-default-features)",
                )
            });
        };
        let compressed = gzip::is_accepted(request).then(|| COMPRESSED.get(path)).flatten();
        let body = compressed.map_or_else(|| Bytes::from_static(content), Bytes::clone);
        let mut response = response::with_type(StatusCode::OK, content_type(path), body);
        if compressed.is_some() {
            let encoding = HeaderValue::from_static("gzip");
            response.headers_mut().insert(CONTENT_ENCODING, encoding);
        }
        let connect = connect_to
            .iter()
            .fold(String::from("'self'"), |all, one| all + " " + one);
        let policy = format!("{POLICY}; connect-src {connect}");
        let policy = HeaderValue::try_from(policy)
            .map_err(|error| Error::internal(format!("a policy of a page cannot be sent: {error}")))?;
        let caching = if is_index {
            "no-store"
        } else {
            "public, max-age=31536000, immutable"
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(caching));
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("same-origin"));
        }
        Ok(response)
    }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(all(test, feature = "web"))]
mod tests {
    use super::*;

    #[test]
    fn index_is_served_with_a_strict_policy_and_files_as_immutable() {
        for page in [Page::Console, Page::Demo] {
            assert!(page.is_built());
            let index = page
                .respond("", &HeaderMap::new(), &["http://127.0.0.1:1".to_owned()])
                .expect("an index");
            let policy = index.headers()[CONTENT_SECURITY_POLICY].to_str().expect("text");
            assert!(policy.ends_with("connect-src 'self' http://127.0.0.1:1"), "{policy}");
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(index.headers()[CACHE_CONTROL], "no-store");
            let folder = format!("{}/", page.folder());
            for (path, _) in FILES.iter().filter(|(path, _)| !path.ends_with("index.html")) {
                let Some(name) = path.strip_prefix(&folder) else {
                    continue;
                };
                let file = page.respond(name, &HeaderMap::new(), &[]).expect("a file");
                assert!(
                    file.headers()[CACHE_CONTROL]
                        .to_str()
                        .expect("text")
                        .contains("immutable")
                );
            }
            for name in ["nothing.js", "../console/index.html", "/index.html", "index.html/"] {
                assert!(page.respond(name, &HeaderMap::new(), &[]).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn files_are_compressed_for_who_accepts_that() {
        let mut headers = HeaderMap::new();
        headers.insert("accept-encoding", HeaderValue::from_static("br, gzip"));
        for page in [Page::Console, Page::Demo] {
            let plain = page.respond("", &HeaderMap::new(), &[]).expect("an index");
            assert!(!plain.headers().contains_key(CONTENT_ENCODING));
            let compressed = page.respond("", &headers, &[]).expect("an index");
            assert_eq!(compressed.headers()[CONTENT_ENCODING], "gzip");
            assert_eq!(compressed.headers()[VARY], "accept-encoding");
        }
    }
}
