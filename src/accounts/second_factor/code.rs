//! What a user types as a code: one of the authenticator app, or a recovery code.

use sha2::{Digest, Sha256};
use totp_rs::{Builder, Secret, Totp};

use crate::accounts::random::random;
use crate::feature::Error;

/// Bytes of a secret: as many as RFC 4226 recommends.
pub(super) const SECRET_BYTES: usize = 20;

/// Seconds of a time step. Authenticator apps assume it, and SHA-1, and six digits.
pub(super) const STEP_SECONDS: u64 = 30;

/// Digits of a code.
const DIGITS: u8 = 6;

/// Steps before and after the current one whose codes are accepted: clocks differ, and typing takes time (RFC 6238,
/// section 5.2).
const SKEW: u16 = 1;

/// Recovery codes of a user.
const RECOVERY_CODES: usize = 10;

/// Random bytes of a recovery code: so many that its SHA-256 does not reveal it.
const RECOVERY_BYTES: usize = 10;

/// Characters of a recovery code without hyphens.
const RECOVERY_CHARS: usize = 16;

/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 64;

/// A code as a user types it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Code {
    /// Six digits.
    App(String),
    /// The SHA-256 of a recovery code.
    Recovery([u8; 32]),
}

impl Code {
    /// Spaces and hyphens do not matter, nor does the case. `None` for what can be neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let letters: String = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
        if letters.len() == usize::from(DIGITS) && letters.bytes().all(|c| c.is_ascii_digit()) {
            return Some(Self::App(letters));
        }
        let is_code = letters.len() == RECOVERY_CHARS && letters.bytes().all(|c| c.is_ascii_alphanumeric());
        is_code.then(|| Self::Recovery(recovery_hash(&letters)))
    }
}

/// The codes of a secret.
pub(super) fn totp(secret: &[u8]) -> Result<Totp, Error> {
    Builder::new()
        .with_secret(Secret::new(secret.into()))
        .with_digits(DIGITS)
        .with_skew(SKEW)
        .with_step_duration(STEP_SECONDS)
        .build()
        .map_err(|error| Error::Internal(format!("the secret of a second factor is malformed: {error}")))
}

/// The time step of a code that is valid now.
pub(super) fn step(secret: &[u8], code: &str, now: u64) -> Result<Option<i64>, Error> {
    Ok(totp(secret)?.check(code, now).and_then(|step| i64::try_from(step).ok()))
}

/// New recovery codes as they are shown, and their hashes.
pub(super) fn recovery_codes() -> Result<(Vec<String>, Vec<Vec<u8>>), Error> {
    let mut codes = Vec::with_capacity(RECOVERY_CODES);
    let mut hashes = Vec::with_capacity(RECOVERY_CODES);
    for _ in 0..RECOVERY_CODES {
        let letters = base32(&random::<RECOVERY_BYTES>()?).to_ascii_lowercase();
        hashes.push(recovery_hash(&letters).to_vec());
        let groups: Vec<&str> = (0..RECOVERY_CHARS)
            .step_by(4)
            .filter_map(|at| letters.get(at..at + 4))
            .collect();
        codes.push(groups.join("-"));
    }
    Ok((codes, hashes))
}

/// As authenticator apps read a secret.
pub(super) fn base32(bytes: &[u8]) -> String {
    Secret::new(bytes.into()).to_base32()
}

fn recovery_hash(letters: &str) -> [u8; 32] {
    Sha256::digest(letters.to_ascii_lowercase()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_are_those_of_the_rfc() {
        // RFC 6238, appendix B, SHA-1: the last six of eight digits.
        let secret = b"12345678901234567890";
        for (time, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_234_567_890, "005924"),
            (20_000_000_000, "353130"),
        ] {
            let own = time / STEP_SECONDS;
            let found = |now| step(secret, code, now).expect("checked");
            assert_eq!(found(time), i64::try_from(own).ok(), "{code}");
            assert_eq!(found(time + STEP_SECONDS), i64::try_from(own).ok(), "a step later");
            assert_eq!(found(time + 2 * STEP_SECONDS), None, "two steps later");
        }
    }

    #[test]
    fn recovery_code_is_recognized_as_it_is_typed() {
        let (codes, hashes) = recovery_codes().expect("codes");
        assert_eq!((codes.len(), hashes.len()), (RECOVERY_CODES, RECOVERY_CODES));
        for (code, hash) in codes.iter().zip(&hashes) {
            for typed in [
                code.clone(),
                code.to_uppercase(),
                code.replace('-', " "),
                code.replace('-', ""),
            ] {
                let Some(Code::Recovery(found)) = Code::parse(&typed) else {
                    unreachable!("{typed} is a recovery code")
                };
                assert_eq!(&found[..], &hash[..]);
            }
        }
        assert_eq!(Code::parse("123 456"), Some(Code::App("123456".into())));
        for bad in ["", "12345", "1234567", "١٢٣٤٥٦", "abcd-efgh", "é", &"1".repeat(65)] {
            assert_eq!(Code::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_code_or_none(text in ".{0,100}") {
            if let Some(Code::App(code)) = Code::parse(&text) {
                prop_assert!(step(&[7; SECRET_BYTES], &code, 0).is_ok());
            }
        }
    }
}
