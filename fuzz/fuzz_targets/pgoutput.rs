//! One pgoutput message. What is understood is understood in whole: neither a shorter nor a longer one is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use posduif::decode::pgoutput;
use posduif::decode::pgoutput::Message;
use posduif::decode::relation::Types;

fuzz_target!(|bytes: &[u8]| {
    match pgoutput::decode(bytes) {
        Ok(message) => {
            if let Message::Relation(relation) = &message {
                let known = Types::default().relation(relation);
                assert_eq!(known.columns.len(), relation.columns.len());
            }
            assert!(pgoutput::decode(&bytes[..bytes.len() - 1]).is_err());
            let longer = [bytes, b"\0"].concat();
            assert!(pgoutput::decode(&longer).is_err());
        }
        Err(error) => {
            assert!(error.offset <= bytes.len());
            let _ = error.to_string();
        }
    }
});
