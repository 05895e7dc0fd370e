//! Checks of input.

use serde_json::Value;

use super::Error;

/// Checks a text: not empty, not longer than `chars_max`, and free of NUL, which Postgres cannot store.
///
/// # Errors
/// [`Error::Invalid`] with the field.
pub fn check_text(field: &'static str, text: &str, chars_max: usize) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if text.contains('\0') {
        return Err(Error::invalid(field, "must not contain the character NUL"));
    }
    if text.chars().count() > chars_max {
        return Err(Error::invalid(
            field,
            format!("must not be longer than {chars_max} characters"),
        ));
    }
    Ok(())
}

/// Checks a short text for lists: as [`check_text`], and free of control characters, which a terminal could interpret.
///
/// # Errors
/// [`Error::Invalid`] with the field.
pub fn check_line(field: &'static str, text: &str, chars_max: usize) -> Result<(), Error> {
    check_text(field, text, chars_max)?;
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

/// Whether a text in the value contains a control character, including NUL. The parser bounds the depth of a value.
pub fn has_control(value: &Value) -> bool {
    has_character(value, char::is_control)
}

/// Whether a text in the value contains NUL, which Postgres cannot store. The parser bounds the depth of a value.
pub fn has_nul(value: &Value) -> bool {
    has_character(value, |c| c == '\0')
}

fn has_character(value: &Value, matches: fn(char) -> bool) -> bool {
    match value {
        Value::String(text) => text.contains(matches),
        Value::Array(items) => items.iter().any(|item| has_character(item, matches)),
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key.contains(matches) || has_character(value, matches)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_must_be_nonempty_bounded_and_free_of_nul() {
        assert!(check_text("f", "ä", 1).is_ok());
        for bad in ["", "a\0", "ab"] {
            assert!(check_text("f", bad, 1).is_err(), "{bad:?}");
        }
    }
}
