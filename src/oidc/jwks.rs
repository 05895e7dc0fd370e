//! Public keys of a provider (JWK Set, RFC 7517), and which algorithm each may verify.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::SignatureAlgorithm;

/// Most keys of a provider; further ones are ignored.
const KEYS_MAX: usize = 100;

/// Most keys of one `kid` that are tried.
pub(super) const CANDIDATES_MAX: usize = 4;

/// Bits of the modulus of an RSA key: fewer are weak (NIST SP 800-131A), more cost too much per token.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// What a key can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum KeyType {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyType {
    fn can_verify(self, algorithm: SignatureAlgorithm) -> bool {
        use SignatureAlgorithm as A;
        match algorithm {
            A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512 => self == Self::Rsa,
            A::ES256 => self == Self::P256,
            A::ES384 => self == Self::P384,
            A::EdDsa => self == Self::Ed25519,
        }
    }
}

/// The same algorithm as jsonwebtoken names it.
pub(super) fn library_algorithm(algorithm: SignatureAlgorithm) -> Algorithm {
    use SignatureAlgorithm as A;
    match algorithm {
        A::RS256 => Algorithm::RS256,
        A::RS384 => Algorithm::RS384,
        A::RS512 => Algorithm::RS512,
        A::PS256 => Algorithm::PS256,
        A::PS384 => Algorithm::PS384,
        A::PS512 => Algorithm::PS512,
        A::ES256 => Algorithm::ES256,
        A::ES384 => Algorithm::ES384,
        A::EdDsa => Algorithm::EdDSA,
    }
}

/// What a key is, for comparisons.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Content {
    kid: Option<String>,
    key_type: KeyType,
    /// The only algorithm that the provider uses it for, if it names one.
    algorithm: Option<SignatureAlgorithm>,
    /// Its numbers in base64.
    numbers: [Option<String>; 4],
}

/// A key that verifies signatures.
#[derive(Clone)]
pub(super) struct Key {
    content: Content,
    pub(super) decoding: DecodingKey,
}

impl Key {
    fn can_verify(&self, algorithm: SignatureAlgorithm) -> bool {
        let Content {
            key_type,
            algorithm: own,
            ..
        } = &self.content;
        key_type.can_verify(algorithm) && own.is_none_or(|own| own == algorithm)
    }
}

/// The keys of a provider.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Keys that cannot be used: for encryption, of another type, too weak, malformed.
    ignored: usize,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kids: Vec<_> = self.keys.iter().map(|key| &key.content.kid).collect();
        f.debug_struct("KeySet").field("kids", &kids).finish_non_exhaustive()
    }
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        // Some providers change the order with each response.
        let sorted = |set: &Self| {
            let mut contents: Vec<_> = set.keys.iter().map(|key| key.content.clone()).collect();
            contents.sort();
            contents
        };
        sorted(self) == sorted(other)
    }
}

/// Not a JWK Set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JWK Set: a JSON object with an array `keys`")]
pub struct NotAJwkSet;

impl KeySet {
    /// Reads a JWK Set. A key that cannot be used does not keep the others from being used.
    pub fn parse(json: &[u8]) -> Result<Self, NotAJwkSet> {
        #[derive(Deserialize)]
        struct Set<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let set: Set<'_> = serde_json::from_slice(json).map_err(|_| NotAJwkSet)?;
        let total = set.keys.len();
        let keys: Vec<Key> = set
            .keys
            .iter()
            .take(KEYS_MAX)
            .filter_map(|key| parse_key(key))
            .collect();
        Ok(Self {
            ignored: total - keys.len(),
            keys,
        })
    }

    /// The number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The number of keys that cannot be used.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// Whether one of the keys verifies signatures of an algorithm.
    pub fn has_key_for(&self, algorithm: SignatureAlgorithm) -> bool {
        self.keys.iter().any(|key| key.can_verify(algorithm))
    }

    /// The keys that may have signed a token with this header; empty if none is known. A token without a `kid` must leave no
    /// choice.
    pub(super) fn candidates(&self, kid: Option<&str>, algorithm: SignatureAlgorithm) -> Vec<&Key> {
        let fitting = self.keys.iter().filter(|key| key.can_verify(algorithm));
        match kid {
            Some(kid) => fitting
                .filter(|key| key.content.kid.as_deref() == Some(kid))
                .take(CANDIDATES_MAX)
                .collect(),
            None => {
                let keys: Vec<_> = fitting.take(2).collect();
                if keys.len() == 1 { keys } else { Vec::new() }
            }
        }
    }
}

/// A JWK as far as it matters here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// `None` for a key that cannot be used.
fn parse_key(json: &RawValue) -> Option<Key> {
    let jwk: Jwk = serde_json::from_str(json.get()).ok()?;
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    if jwk.key_ops.is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return None;
    }
    let algorithm: Option<SignatureAlgorithm> = match jwk.alg {
        Some(name) => Some(serde_json::from_value(name.into()).ok()?),
        None => None,
    };
    let (key_type, decoding) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => (KeyType::Rsa, rsa(jwk.n.as_deref()?, jwk.e.as_deref()?)?),
        ("EC", Some("P-256")) => (KeyType::P256, elliptic(jwk.x.as_deref()?, jwk.y.as_deref()?, 32)?),
        ("EC", Some("P-384")) => (KeyType::P384, elliptic(jwk.x.as_deref()?, jwk.y.as_deref()?, 48)?),
        ("OKP", Some("Ed25519")) => {
            let x = jwk.x.as_deref()?;
            (decode(x)?.len() == 32).then_some(())?;
            (KeyType::Ed25519, DecodingKey::from_ed_components(x).ok()?)
        }
        _ => return None,
    };
    if algorithm.is_some_and(|algorithm| !key_type.can_verify(algorithm)) {
        return None;
    }
    Some(Key {
        content: Content {
            kid: jwk.kid,
            key_type,
            algorithm,
            numbers: [jwk.n, jwk.e, jwk.x, jwk.y],
        },
        decoding,
    })
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn rsa(n: &str, e: &str) -> Option<DecodingKey> {
    let (modulus, exponent) = (decode(n)?, decode(e)?);
    let modulus: &[u8] = &modulus[modulus.iter().position(|byte| *byte != 0)?..];
    let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
    // With an exponent of 1 any text is its own signature.
    let exponent_value = exponent.iter().try_fold(0_u64, |value, byte| {
        value.checked_mul(256)?.checked_add(u64::from(*byte))
    })?;
    let is_strong = RSA_BITS.contains(&bits) && (3..1 << 33).contains(&exponent_value) && exponent_value % 2 == 1;
    is_strong.then(|| DecodingKey::from_rsa_raw_components(modulus, &exponent))
}

/// A point of a curve whose coordinates have so many bytes. Whether it is on the curve is checked with each signature.
fn elliptic(x: &str, y: &str, bytes: usize) -> Option<DecodingKey> {
    let has_length = decode(x)?.len() == bytes && decode(y)?.len() == bytes;
    has_length.then(|| DecodingKey::from_ec_components(x, y).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn text(bytes: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![0xc5; bytes])
    }

    fn rsa_key() -> Value {
        json!({"kty": "RSA", "kid": "r", "n": text(256), "e": "AQAB"})
    }

    fn p256() -> Value {
        json!({"kty": "EC", "kid": "e", "crv": "P-256", "x": text(32), "y": text(32)})
    }

    fn with(mut key: Value, changes: Value) -> Value {
        for (name, value) in changes.as_object().expect("an object") {
            key[name] = value.clone();
        }
        key
    }

    fn set(keys: &[Value]) -> KeySet {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a set")
    }

    fn usable(key: Value) -> bool {
        set(&[key]).len() == 1
    }

    #[test]
    fn keys_of_the_supported_types_are_usable() {
        let okp = json!({"kty": "OKP", "crv": "Ed25519", "x": text(32)});
        let p384 = json!({"kty": "EC", "crv": "P-384", "x": text(48), "y": text(48)});
        for key in [
            rsa_key(),
            p256(),
            p384,
            okp.clone(),
            with(okp, json!({"use": "sig", "key_ops": ["verify"]})),
        ] {
            assert!(usable(key.clone()), "{key}");
        }
        for algorithm in ["RS256", "RS512", "PS256"] {
            assert!(usable(with(rsa_key(), json!({"alg": algorithm}))), "{algorithm}");
        }
    }

    #[test]
    fn weak_foreign_and_encrypting_keys_are_ignored() {
        for changes in [
            json!({"use": "enc"}),
            json!({"use": "other"}),
            json!({"key_ops": ["encrypt"]}),
            json!({"alg": "RSA-OAEP"}),
            json!({"alg": "HS256"}),
            json!({"alg": "none"}),
            json!({"alg": "ES256"}),
            json!({"n": text(128)}),
            json!({"n": text(255)}),
            json!({"n": text(513)}),
            json!({"n": ""}),
            json!({"n": "AAAA"}),
            json!({"n": "not base64!"}),
            json!({"e": "AQ"}),
            json!({"e": "Ag"}),
            json!({"e": ""}),
            json!({"e": text(9)}),
            json!({"kty": "oct", "k": text(32)}),
            json!({"kty": "rsa"}),
            json!({"kty": null}),
            json!({"kid": 7}),
        ] {
            assert!(!usable(with(rsa_key(), changes.clone())), "{changes}");
        }
        for changes in [
            json!({"crv": "P-521"}),
            json!({"crv": "secp256k1"}),
            json!({"crv": "P-384"}),
            json!({"x": text(31)}),
            json!({"y": null}),
            json!({"alg": "ES384"}),
            json!({"alg": "RS256"}),
        ] {
            assert!(!usable(with(p256(), changes.clone())), "{changes}");
        }
    }

    #[test]
    fn unusable_keys_do_not_hide_the_others() {
        let keys = set(&[json!(1), json!({"kty": "future"}), rsa_key(), json!(null), p256()]);
        assert_eq!((keys.len(), keys.ignored()), (2, 3));
    }

    #[test]
    fn algorithm_is_bound_to_the_type_and_the_alg_of_the_key() {
        let keys = set(&[with(rsa_key(), json!({"alg": "PS256"})), p256()]);
        let found = |kid, algorithm| keys.candidates(Some(kid), algorithm).len();
        assert_eq!(found("r", SignatureAlgorithm::PS256), 1);
        assert_eq!(found("r", SignatureAlgorithm::RS256), 0);
        assert_eq!(found("e", SignatureAlgorithm::ES256), 1);
        assert_eq!(found("e", SignatureAlgorithm::ES384), 0);
        assert_eq!(found("e", SignatureAlgorithm::EdDsa), 0);
    }

    #[test]
    fn key_without_kid_in_the_token_must_be_the_only_one() {
        let one = set(&[rsa_key(), p256()]);
        assert_eq!(one.candidates(None, SignatureAlgorithm::RS256).len(), 1);
        let two = set(&[rsa_key(), with(rsa_key(), json!({"kid": "s"}))]);
        assert_eq!(two.candidates(None, SignatureAlgorithm::RS256).len(), 0);
        assert_eq!(two.candidates(Some("s"), SignatureAlgorithm::RS256).len(), 1);
    }

    #[test]
    fn keys_and_candidates_of_one_kid_are_bounded() {
        let keys = set(&vec![rsa_key(); 1000]);
        assert_eq!((keys.len(), keys.ignored()), (KEYS_MAX, 1000 - KEYS_MAX));
        let candidates = keys.candidates(Some("r"), SignatureAlgorithm::RS256);
        assert_eq!(candidates.len(), CANDIDATES_MAX);
    }

    #[test]
    fn set_equals_one_with_the_same_keys_in_another_order() {
        let two = with(rsa_key(), json!({"kid": "s"}));
        let one = set(&[rsa_key(), two.clone()]);
        let spaced = r#"{"keys": [ %2, %1 ], "more": 1}"#;
        let text = spaced
            .replace("%1", &rsa_key().to_string())
            .replace("%2", &two.to_string());
        assert_eq!(KeySet::parse(text.as_bytes()).expect("a set"), one);
        for other in [
            set(&[rsa_key()]),
            set(&[rsa_key(), rsa_key()]),
            set(&[two.clone(), two]),
        ] {
            assert_ne!(other, one);
        }
        let changed = with(rsa_key(), json!({"e": "Aw"}));
        assert_ne!(set(&[changed]), set(&[rsa_key()]));
    }

    #[test]
    fn other_documents_are_no_set() {
        for bad in ["", "{}", "[]", "null", r#"{"keys": {}}"#, r#"{"keys": [1}"#, "<html>"] {
            assert_eq!(KeySet::parse(bad.as_bytes()), Err(NotAJwkSet), "{bad}");
        }
        assert!(KeySet::parse(br#"{"keys": []}"#).expect("a set").is_empty());
    }

    proptest! {
        #[test]
        fn parsing_any_document_does_not_panic(
            kty in "RSA|EC|OKP|oct", crv in "P-256|P-384|Ed25519|x", n in "[A-Za-z0-9_-]{0,700}", e in "[A-Za-z0-9_-]{0,16}",
            x in "[A-Za-z0-9_=-]{0,70}", junk in ".{0,60}",
        ) {
            let key = json!({"kty": kty, "crv": crv, "n": n, "e": e, "x": x, "y": x, "kid": junk});
            prop_assert!(set(&[key]).len() <= 1);
            let _ = KeySet::parse(junk.as_bytes());
        }
    }
}
