//! Security headers of every response.

use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};

const ALWAYS: [(HeaderName, &str); 4] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CACHE_CONTROL, "no-store"),
    // A response that is opened as a page loads nothing and cannot be framed.
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    // Paths may contain an enrollment token.
    (REFERRER_POLICY, "no-referrer"),
];

/// Adds the headers that the handler has not set.
pub fn add(headers: &mut HeaderMap, is_https: bool) {
    let https = is_https.then_some((STRICT_TRANSPORT_SECURITY, "max-age=31536000"));
    for (name, value) in ALWAYS.into_iter().chain(https) {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
