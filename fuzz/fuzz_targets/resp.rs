//! Replies of Redis. They are the same however the bytes are cut.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use posduif::core::resp::{self, Reply};

/// All replies, and whether an error ended them.
fn replies(buffer: &mut BytesMut, found: &mut Vec<Reply>) -> bool {
    loop {
        match resp::parse(buffer) {
            Ok(Some(reply)) => found.push(reply),
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut whole = Vec::new();
    let failed = replies(&mut BytesMut::from(bytes), &mut whole);
    let (mut pieces, mut buffer) = (Vec::new(), BytesMut::new());
    let mut piecewise_failed = false;
    // Parsing an unfinished reply restarts at its beginning, so long inputs are cut coarsely.
    for piece in bytes.chunks(1 + bytes.len() / 64) {
        buffer.extend_from_slice(piece);
        piecewise_failed = replies(&mut buffer, &mut pieces);
        if piecewise_failed {
            break;
        }
    }
    assert_eq!((whole, failed), (pieces, piecewise_failed));
});
