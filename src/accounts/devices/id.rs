//! The form of device ids.

use crate::feature::Error;

/// Checks the form of a device id: 1 to 128 of letters, digits, `.`, `_`, `:` and `-`.
pub fn check_device_id(device_id: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    if (1..=128).contains(&device_id.len()) && device_id.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Error::invalid(
            "device_id",
            "must be 1 to 128 of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_id_allows_only_its_characters_and_length() {
        for good in ["a", "device_123", "A.b:c-d", &"x".repeat(128)] {
            assert!(check_device_id(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "a\0", &"x".repeat(129)] {
            assert!(check_device_id(bad).is_err(), "{bad}");
        }
    }
}
