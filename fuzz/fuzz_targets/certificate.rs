//! A server's certificate, of which the login's channel binding reads the hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use posduif::net::tls;

fuzz_target!(|bytes: &[u8]| {
    if let Some(hash) = tls::end_point(bytes) {
        assert!(matches!(hash.len(), 32 | 48 | 64));
    }
});
