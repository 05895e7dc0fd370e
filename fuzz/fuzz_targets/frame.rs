//! What the walsender puts into CopyData.
#![no_main]

use libfuzzer_sys::fuzz_target;
use posduif::decode::pgoutput;
use posduif::replication::frame::{self, Frame};

fuzz_target!(|bytes: &[u8]| {
    match frame::parse(bytes) {
        Ok(Frame::XLogData { payload, .. }) => assert_eq!(payload.len() + 25, bytes.len()),
        Ok(Frame::Keepalive { .. }) => assert_eq!(bytes.len(), 18),
        Err(error) => assert_eq!(error.length, bytes.len()),
        Ok(Frame::Oversized { .. }) => panic!("a whole frame is not oversized"),
    }
    if let Ok(Frame::Oversized { head, bytes: length }) = frame::parse_oversized(bytes, bytes.len()) {
        assert_eq!(head.len(), length);
        let _ = pgoutput::decode_head(head);
    }
});
