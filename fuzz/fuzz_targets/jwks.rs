//! The keys of an identity provider, and the form of a token: neither may cost more than its size.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use posduif::config::{Config, SignatureAlgorithm};
use posduif::oidc::{KeySet, Providers};
use posduif::telemetry::metrics::{Labels, Metrics};

/// A provider whose keys are never read here.
static PROVIDERS: LazyLock<Providers> = LazyLock::new(|| {
    let yaml = "auth: {providers: [{issuer: i, audience: a, jwks: 'http://127.0.0.1:1/keys', tenant: acme}]}";
    let config = Config::from_sources(yaml, []).expect("a configuration");
    let metrics = Metrics::new(false, &Labels::default());
    Providers::new(&config, metrics.auth.clone()).expect("providers")
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(keys) = KeySet::parse(bytes) {
        assert!(keys.len() <= 100);
        let algorithms = [
            SignatureAlgorithm::RS256,
            SignatureAlgorithm::ES256,
            SignatureAlgorithm::ES384,
            SignatureAlgorithm::EdDsa,
        ];
        // Each usable key verifies one of these, unless it names another algorithm.
        assert!(!keys.is_empty() || !algorithms.iter().any(|algorithm| keys.has_key_for(*algorithm)));
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = PROVIDERS.accept(&text);
    assert!(PROVIDERS.known(&text).is_none());
});
