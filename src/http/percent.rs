//! Percent-encoding (RFC 3986, section 2.1), strict: a malformed escape is an error and is not passed on literally.

use percent_encoding::percent_decode_str;

/// Decodes a text. `None` for a malformed escape, for bytes that are not UTF-8, and for NUL.
pub fn decode(text: &str) -> Option<String> {
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    (!decoded.contains('\0')).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decode_refuses_malformed_text() {
        assert_eq!(decode("a%20b%C3%A4").as_deref(), Some("a bä"));
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "a%00b", "%20%"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
