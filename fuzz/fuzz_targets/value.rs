//! A column's text as JSON: valid, whatever the type and the text. The first byte chooses the type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use posduif::decode::value::{self, Kind};
use serde_json::Value;

const KINDS: [Kind; 16] = [
    Kind::Bool,
    Kind::Integer,
    Kind::Float,
    Kind::Json,
    Kind::Bytes,
    Kind::TimestampTz,
    Kind::Timestamp,
    Kind::Text,
    Kind::BoolArray,
    Kind::IntegerArray,
    Kind::FloatArray,
    Kind::JsonArray,
    Kind::BytesArray,
    Kind::TimestampTzArray,
    Kind::TimestampArray,
    Kind::TextArray,
];

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, text)) = bytes.split_first() else {
        return;
    };
    let kind = KINDS[usize::from(choice) % KINDS.len()];
    let mut out = b"before".to_vec();
    let written = value::write_json(kind, text, &mut out);
    assert!(out.starts_with(b"before"));
    let json = &out[6..];
    match (std::str::from_utf8(text), written) {
        (Err(_), Err(_)) => assert!(json.is_empty()),
        (Ok(text), Ok(())) => {
            let judged = serde_json::from_slice::<serde::de::IgnoredAny>(json);
            assert!(judged.is_ok(), "{kind:?}: {judged:?}");
            if kind == Kind::Text {
                assert_eq!(serde_json::from_slice::<Value>(json).ok(), Some(Value::from(text)));
            }
        }
        (text, written) => panic!("{text:?}: {written:?}"),
    }
});
