//! Entries of an inbox, as Redis' reply to a range.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use posduif::contract::entry::Entry;

fuzz_target!(|bytes: &[u8]| {
    let reply = Bytes::copy_from_slice(bytes);
    for entry in Entry::parse_range(&reply).into_iter().flatten() {
        assert!(entry.bytes() >= 128);
        let _ = entry.row_id();
        for text in [&entry.row, &entry.old, &entry.unchanged].into_iter().flatten() {
            let _ = text.as_str();
        }
    }
});
