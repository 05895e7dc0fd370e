//! Conditional requests (RFC 9110, section 13): entity tags of `If-Match` and `If-None-Match`.
//!
//! The entity tag of a resource is its version in quotes, a strong tag. Other tags are valid, but match no version.

use hyper::header::{ETAG, HeaderMap, HeaderName, HeaderValue};

use super::error::Error;
use super::response::Response;

/// The entity tags of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any version.
    Any,
    Of(Vec<Tag>),
}

/// An entity tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// `W/`.
    pub is_weak: bool,
    /// `None` for a tag that this server does not issue.
    pub version: Option<i64>,
}

impl Tags {
    /// The versions of these tags by strong comparison (RFC 9110, section 8.8.3.2); `None` for `*`.
    pub fn versions(&self) -> Option<Vec<i64>> {
        match self {
            Self::Any => None,
            Self::Of(tags) => {
                let strong = tags.iter().filter(|tag| !tag.is_weak);
                Some(strong.filter_map(|tag| tag.version).collect())
            }
        }
    }

    /// Whether a version matches by weak comparison.
    pub fn contains(&self, version: i64) -> bool {
        match self {
            Self::Any => true,
            Self::Of(tags) => tags.iter().any(|tag| tag.version == Some(version)),
        }
    }
}

/// The tags of a header; `None` if it is absent.
///
/// # Errors
/// 400 for a value that is neither `*` nor a list of entity tags.
pub fn tags(headers: &HeaderMap, header: &HeaderName) -> Result<Option<Tags>, Error> {
    let malformed = || {
        let name = match header.as_str() {
            "if-match" => "If-Match",
            _ => "If-None-Match",
        };
        Error::invalid(name, "must be * or a list of entity tags in quotes, such as \"3\"")
    };
    let mut lines = Vec::new();
    for value in headers.get_all(header) {
        lines.push(value.to_str().map_err(|_| malformed())?);
    }
    if lines.is_empty() {
        return Ok(None);
    }
    parse(&lines.join(",")).map(Some).ok_or_else(malformed)
}

fn parse(text: &str) -> Option<Tags> {
    let mut rest = text.trim();
    if rest == "*" {
        return Some(Tags::Any);
    }
    let mut tags = Vec::new();
    loop {
        // A list may have empty elements (RFC 9110, section 5.6.1.2).
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let unprefixed = rest.strip_prefix("W/");
        let (opaque, behind) = unprefixed.unwrap_or(rest).strip_prefix('"')?.split_once('"')?;
        if opaque.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return None;
        }
        tags.push(Tag {
            is_weak: unprefixed.is_some(),
            version: version(opaque),
        });
        rest = behind.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
    (!tags.is_empty()).then_some(Tags::Of(tags))
}

/// The version in a tag that this server issues.
fn version(opaque: &str) -> Option<i64> {
    let version: i64 = opaque.parse().ok()?;
    (version > 0 && version.to_string() == opaque).then_some(version)
}

/// The response with the entity tag of a version.
#[must_use]
pub fn tagged(mut response: Response, version: i64) -> Response {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strong(version: i64) -> Tag {
        Tag {
            is_weak: false,
            version: Some(version),
        }
    }

    #[test]
    fn tags_parse_by_rfc_9110() {
        let weak = Tag {
            is_weak: true,
            version: Some(2),
        };
        let unknown = Tag {
            is_weak: false,
            version: None,
        };
        for (text, tags) in [
            ("*", Tags::Any),
            (" * ", Tags::Any),
            ("\"1\"", Tags::Of(vec![strong(1)])),
            ("\"1\", W/\"2\" ,\"x,y\"", Tags::Of(vec![strong(1), weak, unknown])),
            (",\"1\",,", Tags::Of(vec![strong(1)])),
            ("\"\"", Tags::Of(vec![unknown])),
            ("\"01\"", Tags::Of(vec![unknown])),
            ("\"+1\"", Tags::Of(vec![unknown])),
            ("\"0\"", Tags::Of(vec![unknown])),
            ("\"99999999999999999999\"", Tags::Of(vec![unknown])),
        ] {
            assert_eq!(parse(text), Some(tags), "{text}");
        }
        for bad in [
            "",
            ",",
            "1",
            "\"1",
            "1\"",
            "\"1\"\"2\"",
            "w/\"1\"",
            "W/1",
            "*, \"1\"",
            "\"a b\"",
            "\"1\" x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn weak_tags_match_weakly_only() {
        let tags = parse("W/\"2\", \"3\"").expect("tags");
        assert!(tags.contains(2) && tags.contains(3) && !tags.contains(1));
        assert_eq!(tags.versions(), Some(vec![3]));
        assert_eq!(Tags::Any.versions(), None);
    }

    proptest! {
        #[test]
        fn tag_list_round_trips(
            versions in proptest::collection::vec(1..=i64::MAX, 1..6), spaces in " {0,2}", after in "[ \t]{0,2}"
        ) {
            let text: Vec<String> = versions.iter().map(|version| format!("{spaces}\"{version}\"{after}")).collect();
            let tags = versions.into_iter().map(strong).collect();
            prop_assert_eq!(parse(&text.join(",")), Some(Tags::Of(tags)));
        }

        #[test]
        fn parse_never_panics(text in any::<String>(), nearly in "[W/\"*, 0-9a]{0,30}") {
            let _ = parse(&text);
            let _ = parse(&nearly);
        }
    }
}
