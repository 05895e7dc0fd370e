//! Converts a column's text, in the format that the session's settings fix, to JSON.
//!
//! Booleans, integers within ±2^53 and floats become JSON values, `numeric` and larger integers strings, `json` and
//! `jsonb` stay verbatim, `bytea` becomes base64, timestamps RFC 3339, arrays JSON arrays; all other types become
//! strings in the format of Postgres. A text that is malformed for its type becomes a string, so that nothing is lost.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

pub use crate::core::json::write_string;

/// Integers beyond this do not survive JSON readers that use doubles (RFC 8259, section 6).
const INTEGER_MAX: i64 = 1 << 53;

/// Deepest nesting of arrays; Postgres' own limit is 6 (MAXDIM).
const ARRAY_DEPTH_MAX: usize = 8;

/// How values of a type are converted to JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `t` and `f`.
    Bool,
    /// Any integer type.
    Integer,
    /// `real` and `double precision`.
    Float,
    /// `json` and `jsonb`.
    Json,
    /// `bytea` in hex form.
    Bytes,
    /// `timestamp with time zone` in UTC.
    TimestampTz,
    /// `timestamp without time zone`.
    Timestamp,
    /// All other types: a string.
    Text,
    /// Arrays of these kinds.
    BoolArray,
    /// Array of integers.
    IntegerArray,
    /// Array of floats.
    FloatArray,
    /// Array of `json` or `jsonb`.
    JsonArray,
    /// Array of `bytea`.
    BytesArray,
    /// Array of `timestamp with time zone`.
    TimestampTzArray,
    /// Array of `timestamp without time zone`.
    TimestampArray,
    /// Array of anything else.
    TextArray,
}

impl Kind {
    /// The kind of a built-in type by OID (`pg_type.dat`); types that are not built in are texts.
    pub fn of_type(oid: u32) -> Self {
        match oid {
            16 => Self::Bool,
            20 | 21 | 23 | 26 => Self::Integer,
            700 | 701 => Self::Float,
            114 | 3802 => Self::Json,
            17 => Self::Bytes,
            1184 => Self::TimestampTz,
            1114 => Self::Timestamp,
            1000 => Self::BoolArray,
            1016 | 1005 | 1007 | 1028 => Self::IntegerArray,
            1021 | 1022 => Self::FloatArray,
            199 | 3807 => Self::JsonArray,
            1001 => Self::BytesArray,
            1185 => Self::TimestampTzArray,
            1115 => Self::TimestampArray,
            // char[], name[], text[], varchar[], bpchar[], numeric[], uuid[], date[], time[], timetz[], interval[],
            // inet[], cidr[], macaddr[], macaddr8[], money[], xml[], bit[], varbit[], tid[], xid[], xid8[], pg_lsn[],
            // range and multirange arrays, tsvector[], tsquery[], jsonpath[].
            1002 | 1003 | 1009 | 1015 | 1014 | 1231 | 2951 | 1182 | 1183 | 1270 | 1187 | 1041 | 651 | 1040 | 775
            | 791 | 143 | 1561 | 1563 | 1010 | 1011 | 271 | 3221 | 3905 | 3907 | 3909 | 3911 | 3913 | 3927 | 6150
            | 6151 | 6152 | 6153 | 6155 | 6157 | 3643 | 3645 | 4073 => Self::TextArray,
            _ => Self::Text,
        }
    }

    /// The kind of a built-in type by name, where it is not the text that other types are.
    pub fn of_built_in(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Self::Bool,
            "int8" | "int2" | "int4" | "oid" => Self::Integer,
            "float4" | "float8" => Self::Float,
            "json" | "jsonb" => Self::Json,
            "bytea" => Self::Bytes,
            "timestamptz" => Self::TimestampTz,
            "timestamp" => Self::Timestamp,
            "_bool" => Self::BoolArray,
            "_int8" | "_int2" | "_int4" | "_oid" => Self::IntegerArray,
            "_float4" | "_float8" => Self::FloatArray,
            "_json" | "_jsonb" => Self::JsonArray,
            "_bytea" => Self::BytesArray,
            "_timestamptz" => Self::TimestampTzArray,
            "_timestamp" => Self::TimestampArray,
            _ => return None,
        })
    }

    fn element(self) -> Option<Self> {
        Some(match self {
            Self::BoolArray => Self::Bool,
            Self::IntegerArray => Self::Integer,
            Self::FloatArray => Self::Float,
            Self::JsonArray => Self::Json,
            Self::BytesArray => Self::Bytes,
            Self::TimestampTzArray => Self::TimestampTz,
            Self::TimestampArray => Self::Timestamp,
            Self::TextArray => Self::Text,
            _ => return None,
        })
    }
}

/// A value that is not text in UTF-8, as can come from a database with encoding `SQL_ASCII`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("value is not UTF-8: the database's encoding must be UTF8")]
pub struct NotUtf8;

/// Appends one value as JSON.
///
/// # Errors
/// When the bytes are not UTF-8; nothing is appended then.
pub fn write_json(kind: Kind, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NotUtf8> {
    let text = std::str::from_utf8(bytes).map_err(|_| NotUtf8)?;
    write_text(kind, text, out);
    Ok(())
}

/// Appends one value, known to be UTF-8, as JSON.
pub fn write_text(kind: Kind, text: &str, out: &mut Vec<u8>) {
    match kind {
        Kind::Bool if text == "t" => out.extend_from_slice(b"true"),
        Kind::Bool if text == "f" => out.extend_from_slice(b"false"),
        Kind::Integer if is_safe_integer(text) => out.extend_from_slice(text.as_bytes()),
        Kind::Float if is_json_number(text) => out.extend_from_slice(text.as_bytes()),
        Kind::Json if is_json(text) => out.extend_from_slice(text.as_bytes()),
        Kind::Bytes if write_base64(text, out) => {}
        Kind::TimestampTz if write_timestamp(text, true, out) => {}
        Kind::Timestamp if write_timestamp(text, false, out) => {}
        _ => match kind.element() {
            Some(element) => {
                let start = out.len();
                if !ArrayReader::new(text).write(element, out) {
                    out.truncate(start);
                    write_string(text, out);
                }
            }
            None => write_string(text, out),
        },
    }
}

fn is_safe_integer(text: &str) -> bool {
    // Fewer than 16 digits, as most integers have, need no parsing.
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_padded = digits.len() > 1 && digits.starts_with('0');
    if digits.is_empty() || is_padded || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    digits.len() < 16
        || text
            .parse::<i64>()
            .is_ok_and(|value| (-INTEGER_MAX..=INTEGER_MAX).contains(&value))
}

/// Whether a float of Postgres is also a JSON number (RFC 8259, section 6); `NaN` and `Infinity` are not.
fn is_json_number(text: &str) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let Some((b'e' | b'E', exponent)) = rest.split_first() {
        let exponent = match exponent.split_first() {
            Some((b'+' | b'-', exponent)) => exponent,
            _ => exponent,
        };
        let count = digits(exponent);
        if count == 0 {
            return false;
        }
        rest = &exponent[count..];
    }
    rest.is_empty()
}

/// Whether a text is JSON. Postgres has validated it, but a single invalid value would make the whole row unreadable.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn write_base64(text: &str, out: &mut Vec<u8>) -> bool {
    let Some(hex) = text.strip_prefix("\\x") else {
        return false;
    };
    let hex = hex.as_bytes();
    if hex.len() % 2 != 0 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return false;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => byte - b'A' + 10,
    };
    out.push(b'"');
    // 384 bytes make 512 letters without padding, so chunks can be joined.
    let mut chunk = [0_u8; 384];
    let mut letters = [0_u8; 512];
    for part in hex.chunks(2 * chunk.len()) {
        let bytes = &mut chunk[..part.len() / 2];
        for (byte, pair) in bytes.iter_mut().zip(part.chunks_exact(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        match BASE64.encode_slice(&*bytes, &mut letters) {
            Ok(length) => out.extend_from_slice(&letters[..length]),
            Err(_) => unreachable!("384 bytes always fit 512 letters"),
        }
    }
    out.push(b'"');
    true
}

/// `2026-01-02 03:04:05.678+00` becomes `2026-01-02T03:04:05.678Z`. Infinities and years before 1 or after 9999 are
/// outside RFC 3339 and keep the format of Postgres.
fn write_timestamp(text: &str, with_zone: bool, out: &mut Vec<u8>) -> bool {
    const FORM: &[u8; 19] = b"0000-00-00 00:00:00";
    let time = if with_zone {
        text.strip_suffix("+00")
    } else {
        Some(text)
    };
    let Some(time) = time.map(str::as_bytes) else {
        return false;
    };
    let Some((seconds, fraction)) = time.split_first_chunk::<19>() else {
        return false;
    };
    let fits = |(byte, form): (&u8, &u8)| {
        if *form == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == form
        }
    };
    let is_fraction = match fraction.split_first() {
        None => true,
        Some((point, digits)) => *point == b'.' && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
    };
    if !seconds.iter().zip(FORM).all(fits) || !is_fraction {
        return false;
    }
    out.push(b'"');
    out.extend_from_slice(&time[..10]);
    out.push(b'T');
    out.extend_from_slice(&time[11..]);
    if with_zone {
        out.push(b'Z');
    }
    out.push(b'"');
    true
}

/// Reads an array literal (Postgres chapter 8.15.6) and writes JSON.
struct ArrayReader<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> ArrayReader<'a> {
    fn new(text: &'a str) -> Self {
        // `[2:3]={1,2}` gives bounds that differ from 1; JSON arrays have none.
        let offset = if text.starts_with('[') {
            text.find('=').map_or(text.len(), |at| at + 1)
        } else {
            0
        };
        Self { text, offset }
    }

    /// False when the text is no array literal; the caller then removes what was written.
    fn write(mut self, element: Kind, out: &mut Vec<u8>) -> bool {
        self.array(element, 0, out) && self.offset == self.text.len()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.offset).copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.offset += usize::from(found);
        found
    }

    fn array(&mut self, element: Kind, depth: usize, out: &mut Vec<u8>) -> bool {
        if depth >= ARRAY_DEPTH_MAX || !self.accept(b'{') {
            return false;
        }
        out.push(b'[');
        if self.accept(b'}') {
            out.push(b']');
            return true;
        }
        loop {
            let written = match self.peek() {
                Some(b'{') => self.array(element, depth + 1, out),
                Some(b'"') => self.quoted(element, out),
                _ => self.bare(element, out),
            };
            if !written {
                return false;
            }
            if self.accept(b',') {
                out.push(b',');
            } else if self.accept(b'}') {
                out.push(b']');
                return true;
            } else {
                return false;
            }
        }
    }

    fn bare(&mut self, element: Kind, out: &mut Vec<u8>) -> bool {
        let rest = &self.text[self.offset..];
        let Some(length) = rest.find([',', '}']) else {
            return false;
        };
        let text = &rest[..length];
        self.offset += length;
        match text {
            "" => return false,
            "NULL" => out.extend_from_slice(b"null"),
            _ => write_text(element, text, out),
        }
        true
    }

    fn quoted(&mut self, element: Kind, out: &mut Vec<u8>) -> bool {
        self.offset += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.offset..];
            let Some(at) = rest.find(['"', '\\']) else { return false };
            text.push_str(&rest[..at]);
            self.offset += at + 1;
            if rest.as_bytes()[at] == b'"' {
                write_text(element, &text, out);
                return true;
            }
            let Some(escaped) = self.text[self.offset..].chars().next() else {
                return false;
            };
            text.push(escaped);
            self.offset += escaped.len_utf8();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(kind: Kind, text: &str) -> String {
        let mut out = Vec::new();
        write_json(kind, text.as_bytes(), &mut out).unwrap();
        let json = String::from_utf8(out).unwrap();
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
        json
    }

    #[test]
    fn scalars_become_json_of_their_type() {
        for (kind, text, expected) in [
            (Kind::Bool, "t", "true"),
            (Kind::Bool, "f", "false"),
            (Kind::Integer, "-42", "-42"),
            (Kind::Integer, "9007199254740992", "9007199254740992"),
            (Kind::Integer, "9007199254740993", "\"9007199254740993\""),
            (Kind::Integer, "-9223372036854775808", "\"-9223372036854775808\""),
            (Kind::Integer, "00", "\"00\""),
            (Kind::Float, "1.5e-07", "1.5e-07"),
            (Kind::Float, "NaN", "\"NaN\""),
            (Kind::Float, "-Infinity", "\"-Infinity\""),
            (Kind::Text, "12.50", "\"12.50\""),
            (Kind::Text, "a\"b\\c\n\u{1}é", "\"a\\\"b\\\\c\\n\\u0001é\""),
            (Kind::Json, r#"{"a": [1, null]}"#, r#"{"a": [1, null]}"#),
            (Kind::Bytes, "\\x00ff10", "\"AP8Q\""),
            (Kind::Bytes, "\\x", "\"\""),
            (
                Kind::TimestampTz,
                "2026-01-02 03:04:05.678+00",
                "\"2026-01-02T03:04:05.678Z\"",
            ),
            (Kind::Timestamp, "2026-01-02 03:04:05", "\"2026-01-02T03:04:05\""),
            (Kind::TimestampTz, "infinity", "\"infinity\""),
            (
                Kind::TimestampTz,
                "0044-03-15 12:00:00+00 BC",
                "\"0044-03-15 12:00:00+00 BC\"",
            ),
            (
                Kind::TimestampTz,
                "12026-01-02 03:04:05+00",
                "\"12026-01-02 03:04:05+00\"",
            ),
        ] {
            assert_eq!(json(kind, text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_values_become_strings() {
        for (kind, text) in [
            (Kind::Float, "1."),
            (Kind::Float, "1..5"),
            (Kind::Float, "01"),
            (Kind::Float, "1e"),
            (Kind::Float, "1e+-5"),
            (Kind::Json, ""),
            (Kind::Json, "{"),
            (Kind::Json, "1 2"),
            (Kind::Timestamp, "2026-01-02 03:04:05\""),
            (Kind::Timestamp, "2026-01-02 03:04:05."),
            (Kind::Timestamp, "2026\"01-02 03:04:05"),
            (Kind::TimestampTz, "2026-01-02 03:04:05\n+00"),
        ] {
            let mut expected = Vec::new();
            write_string(text, &mut expected);
            assert_eq!(json(kind, text).as_bytes(), expected);
        }
        assert_eq!(json(Kind::JsonArray, "{1,x}"), r#"[1,"x"]"#);
        assert_eq!(json(Kind::FloatArray, "{-0,1.5e+300,--1}"), r#"[-0,1.5e+300,"--1"]"#);
    }

    #[test]
    fn array_literals_become_json_arrays() {
        for (kind, text, expected) in [
            (Kind::IntegerArray, "{1,NULL,3}", "[1,null,3]"),
            (Kind::IntegerArray, "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
            (Kind::IntegerArray, "[0:1]={5,6}", "[5,6]"),
            (
                Kind::TextArray,
                r#"{a,"b,c","d\"e","NULL",""}"#,
                r#"["a","b,c","d\"e","NULL",""]"#,
            ),
            (Kind::BoolArray, "{t,f}", "[true,false]"),
            (Kind::JsonArray, r#"{"{\"a\": 1}"}"#, r#"[{"a": 1}]"#),
            (Kind::BytesArray, r#"{"\\x00ff"}"#, r#"["AP8="]"#),
            (
                Kind::TimestampTzArray,
                r#"{"2026-01-02 03:04:05+00"}"#,
                r#"["2026-01-02T03:04:05Z"]"#,
            ),
            (Kind::TextArray, "{}", "[]"),
        ] {
            assert_eq!(json(kind, text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_array_literals_become_strings() {
        for text in [
            "",
            "{",
            "{1,",
            "{1}}",
            "{,}",
            "{\"a",
            "{\"a\\",
            "(1,2)",
            "{{{{{{{{{{1}}}}}}}}}}",
        ] {
            assert_eq!(json(Kind::IntegerArray, text), serde_json::to_string(text).unwrap());
        }
    }
}
