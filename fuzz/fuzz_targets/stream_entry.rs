//! Entries of an inbox, as Redis' reply to a range.
#![no_main]

use libfuzzer_sys::fuzz_target;
use posduif::deliver::entry::Entry;
use redis::FromRedisValue;
use redis::streams::StreamRangeReply;

fuzz_target!(|bytes: &[u8]| {
    let Ok(reply) = redis::parse_redis_value(bytes) else {
        return;
    };
    let Ok(range) = StreamRangeReply::from_redis_value(reply) else {
        return;
    };
    for raw in range.ids {
        let text = raw.id.clone();
        if let Some(entry) = Entry::parse(raw) {
            assert_eq!(text.parse(), Ok(entry.id));
            assert!(entry.bytes() >= 128);
            let _ = entry.row_id();
        }
    }
});
