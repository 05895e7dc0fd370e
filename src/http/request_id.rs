//! Request ids: the client's own, or a generated one.

use hyper::header::{HeaderMap, HeaderName};
use uuid::Uuid;

use super::request::header;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The value of `X-Request-ID` if it is 1 to 128 characters of a safe set, else a new UUID.
pub fn request_id(headers: &HeaderMap) -> String {
    header(headers, "x-request-id")
        .filter(|id| {
            (1..=128).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'))
        })
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_id_safe_value_is_kept() {
        let id_for = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, value.parse().expect("a header"));
            request_id(&headers)
        };
        assert_eq!(id_for("abc-1"), "abc-1");
        assert_ne!(id_for("a b"), "a b");
        assert_eq!(request_id(&HeaderMap::new()).len(), 36);
    }
}
