//! The key by which a device proves itself: ECDSA over P-256 with SHA-256.
//!
//! WebCrypto has this algorithm in every browser, with private keys that no script can read, and so has the secure hardware
//! of phones. There is one algorithm, so that a request cannot choose a weaker one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::feature::Error;

/// What precedes the point in a SubjectPublicKeyInfo (RFC 5480) of P-256.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Bytes of an uncompressed point, which begins with 4.
const POINT_BYTES: usize = 65;

const SPKI_BYTES: usize = SPKI_PREFIX.len() + POINT_BYTES;

/// Longest text of a key or a signature that is decoded.
const TEXT_CHARS_MAX: usize = 512;

/// Bytes of a signature as WebCrypto makes it: both numbers, one after the other.
const FIXED_BYTES: usize = 64;

/// Most bytes of a signature in DER, as phones make it.
const DER_BYTES_MAX: usize = 72;

/// The generator of P-256, whose private key is 1.
const GENERATOR: [u8; POINT_BYTES] = [
    0x04, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40, 0xf2, 0x77, 0x03,
    0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f, 0xe3, 0x42, 0xe2, 0xfe,
    0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce,
    0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
];

/// The public key of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthKey([u8; POINT_BYTES]);

impl AuthKey {
    /// What a signature is checked with where a device has no key, so that the check takes the same time. Any client can sign
    /// with its private key.
    pub(super) const DECOY: Self = Self(GENERATOR);

    /// Reads the key of a request: SubjectPublicKeyInfo in DER, in base64.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything but an uncompressed point on the curve.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |message: &str| Err(Error::invalid("auth_key", message));
        if text.starts_with("-----") {
            return invalid("is PEM: send the base64 between its first and its last line, without line breaks");
        }
        let Some(bytes) = decode(text) else {
            return invalid("must be base64 of a public key in the form SubjectPublicKeyInfo (DER), 124 characters");
        };
        if bytes.len() == POINT_BYTES {
            return invalid("is a point without its algorithm: send the form SubjectPublicKeyInfo (DER)");
        }
        let Some(key) = Self::from_spki(&bytes) else {
            return invalid(
                "must be a key of ECDSA over P-256 with an uncompressed point, in the form SubjectPublicKeyInfo (DER)",
            );
        };
        if !key.is_on_curve()? {
            return invalid("is no point of the curve P-256: the key was damaged on its way");
        }
        Ok(key)
    }

    /// Reads a stored key; `None` for anything else than [`AuthKey::spki`].
    pub(super) fn from_spki(bytes: &[u8]) -> Option<Self> {
        let point = bytes.strip_prefix(&SPKI_PREFIX)?;
        let point: [u8; POINT_BYTES] = point.try_into().ok()?;
        (point.first() == Some(&4)).then_some(Self(point))
    }

    /// The key as it is stored.
    pub(in crate::accounts) fn spki(&self) -> [u8; SPKI_BYTES] {
        let mut spki = [0; SPKI_BYTES];
        let (prefix, point) = spki.split_at_mut(SPKI_PREFIX.len());
        prefix.copy_from_slice(&SPKI_PREFIX);
        point.copy_from_slice(&self.0);
        spki
    }

    /// An agreement with the point fails if it is not on the curve; signatures would fail later, without a reason.
    fn is_on_curve(&self) -> Result<bool, Error> {
        let secret = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
            .map_err(|_| Error::Internal("no random bits".into()))?;
        let point = agreement::UnparsedPublicKey::new(&ECDH_P256, self.0);
        Ok(agreement::agree_ephemeral(secret, &point, |_| ()).is_ok())
    }

    /// Whether the holder of the private key has signed the text.
    pub(super) fn has_signed(&self, text: &[u8], signature: &Signature) -> bool {
        let bytes = signature.0.as_slice();
        let is_fixed = bytes.len() == FIXED_BYTES
            && UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.0)
                .verify(text, bytes)
                .is_ok();
        // Few signatures in DER are that short.
        is_fixed
            || UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.0)
                .verify(text, bytes)
                .is_ok()
    }
}

/// A signature, in either of the two usual forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// Reads the signature of a request, in base64.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what cannot be one.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bytes = decode(text).filter(|bytes| {
            let is_der = bytes.first() == Some(&0x30) && bytes.len() <= DER_BYTES_MAX;
            bytes.len() == FIXED_BYTES || is_der
        });
        bytes.map(Self).ok_or_else(|| {
            let text = "must be base64 of a signature by ECDSA over P-256 with SHA-256: 64 bytes, or DER";
            Error::invalid("signature", text)
        })
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > TEXT_CHARS_MAX {
        return None;
    }
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key, a text, and its signatures in both forms, by another program.
    const KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+vLCP6fVBKUl6Lpma5UeykbZ16LBYy2UmWlirMXrWhAHVvLQbxTfgI6/TzI7lUZW+SHA41ZTa4lyiRSSkDbw8A==";
    const TEXT: &[u8] = b"posduif-device-token:v1\n\
        https://app.example.com\n\
        acme\n\
        phone-1\n\
        AAAAAGlowiABT4oK6Iu7Gn6Iiiv_rhtdo6Hb5TZ4bD_bDMOqqyuzDw";
    const DER: &str =
        "MEQCIDRsok1qKu6NK+YMNFrYRJSjQV3jRs36XF4UDgUFClG8AiBaZHUStJ+4Tear5haslTRJxeezlcMj92LZi2H4EpXIeA==";
    const FIXED: &str = "NGyiTWoq7o0r5gw0WthElKNBXeNGzfpcXhQOBQUKUbxaZHUStJ+4Tear5haslTRJxeezlcMj92LZi2H4EpXIeA==";

    #[test]
    fn example_of_the_manual_is_the_one_that_is_verified_here() {
        let manual = include_str!("../../../docs/api.md");
        let text = std::str::from_utf8(TEXT).expect("UTF-8");
        let (lines, challenge) = text.rsplit_once('\n').expect("lines");
        assert!(manual.contains(&format!("text       {}\\n<challenge>\n", lines.replace('\n', "\\n"))));
        assert!(manual.contains(&format!("\"challenge\": \"{challenge}\"")));
        for part in [KEY, DER, FIXED] {
            assert!(manual.contains(&format!("  {part}\n")), "{part}");
        }
    }

    fn key() -> AuthKey {
        AuthKey::parse(KEY).expect("a key")
    }

    #[test]
    fn key_is_stored_as_it_came() {
        assert_eq!(STANDARD.encode(key().spki()), KEY);
        assert_eq!(AuthKey::from_spki(&key().spki()), Some(key()));
        assert!(AuthKey::DECOY.is_on_curve().expect("a check"));
    }

    #[test]
    fn signature_is_accepted_in_both_forms_and_for_its_text_only() {
        for text in [DER, FIXED] {
            let signature = Signature::parse(text).expect("a signature");
            assert!(key().has_signed(TEXT, &signature), "{text}");
            assert!(!key().has_signed(b"another text", &signature), "{text}");
            assert!(!AuthKey::DECOY.has_signed(TEXT, &signature), "{text}");
        }
    }

    #[test]
    fn key_of_another_form_or_curve_is_refused() {
        let spki = key().spki();
        let with = |index: usize, value: u8| {
            let mut bytes = spki;
            bytes[index] = value;
            STANDARD.encode(bytes)
        };
        let point = STANDARD.encode(&spki[SPKI_PREFIX.len()..]);
        let compressed = STANDARD.encode([&spki[..SPKI_PREFIX.len()], &[2], &spki[27..59]].concat());
        let long = [spki.as_slice(), &[0]].concat();
        for (bad, why) in [
            (String::new(), "SubjectPublicKeyInfo"),
            ("a\0".to_owned(), "base64"),
            (KEY.trim_end_matches('=').to_owned(), "base64"),
            (KEY.replace(['+', '/'], "-"), "base64"),
            ("A".repeat(1_000_000), "base64"),
            (format!("-----BEGIN PUBLIC KEY-----\n{KEY}"), "PEM"),
            (point, "without its algorithm"),
            (compressed, "uncompressed"),
            (STANDARD.encode(long), "uncompressed"),
            // Another curve; a point that is compressed, or not on the curve, or zero.
            (with(22, 0x08), "P-256"),
            (with(26, 0x02), "uncompressed"),
            (with(90, spki[90] ^ 1), "no point"),
            (
                STANDARD.encode([SPKI_PREFIX.as_slice(), &[4], &[0; 64]].concat()),
                "no point",
            ),
            // Ed25519.
            (
                STANDARD.encode(
                    [
                        &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00],
                        &[7; 32][..],
                    ]
                    .concat(),
                ),
                "P-256",
            ),
        ] {
            let error = AuthKey::parse(&bad).expect_err(&bad).to_string();
            assert!(error.contains("auth_key") && error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn text_that_is_no_signature_is_refused() {
        let zeros = |count: usize| STANDARD.encode(vec![0; count]);
        for bad in [
            "",
            "a\0",
            "AAAA",
            &zeros(63),
            &zeros(65),
            &zeros(72),
            &"A".repeat(1_000_000),
        ] {
            assert!(Signature::parse(bad).is_err(), "{bad}");
        }
        let long = STANDARD.encode([&[0x30][..], &[0; 72]].concat());
        assert!(Signature::parse(&long).is_err());
        let zero = Signature::parse(&zeros(64)).expect("a form of a signature");
        assert!(!key().has_signed(TEXT, &zero), "r and s must not be zero");
    }
}
