//! JSON whose size is checked before it becomes a tree: seven bytes, `{"":0},`, become several hundred.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{Code, Error};

/// Most values of an item on average, keys and nested values included.
const ITEM_VALUES_MAX: usize = 200;

/// Values that a few items may always have.
const VALUES_MIN: usize = 10_000;

/// Most values of so many items.
pub fn values_max(items_max: usize) -> usize {
    items_max.saturating_mul(ITEM_VALUES_MAX).max(VALUES_MIN)
}

/// An array in a body, as text.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct RawItems(Box<RawValue>);

impl RawItems {
    /// Parses the items one by one, and stops at the first beyond the bound.
    ///
    /// # Errors
    /// 413 for more than `items_max` items, or for more values in them than so many items may have; 400 for anything but an
    /// array of items of the expected form.
    pub fn parse<T: DeserializeOwned>(&self, field: &str, items_max: usize) -> Result<Vec<T>, Error> {
        let text = self.0.get();
        check_values(field, text, values_max(items_max)).map_err(|error| error.with("field", field))?;
        let is_beyond = Cell::new(false);
        let counting = Counting {
            items_max,
            is_beyond: &is_beyond,
            item: PhantomData,
        };
        let items = serde_json::Deserializer::from_str(text).deserialize_seq(counting);
        items.map_err(|error| {
            if is_beyond.get() {
                Error::new(
                    Code::PAYLOAD_TOO_LARGE,
                    format!("{field}: must not exceed {items_max} items"),
                )
                .with("field", field)
                .with("items_max", items_max)
            } else {
                Error::invalid(field, error)
            }
        })
    }
}

/// Any JSON in a body, as text.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct RawTree(Box<RawValue>);

impl RawTree {
    /// Parses the value.
    ///
    /// # Errors
    /// 400 beyond so many bytes or values.
    pub fn parse<T: DeserializeOwned>(&self, field: &str, bytes_max: usize, values_max: usize) -> Result<T, Error> {
        let text = self.0.get();
        if text.len() > bytes_max {
            return Err(Error::invalid(
                field,
                format!("must not be longer than {bytes_max} bytes"),
            ));
        }
        if values_of(text) > values_max {
            return Err(Error::invalid(
                field,
                format!("must not have more than {values_max} JSON values"),
            ));
        }
        serde_json::from_str(text).map_err(|error| Error::invalid(field, error))
    }
}

/// Parses the JSON of a frame.
///
/// # Errors
/// 413 for more than so many values, 400 for malformed JSON.
pub fn frame(text: &str, values_max: usize) -> Result<Value, Error> {
    check_values("the frame", text, values_max)?;
    serde_json::from_str(text)
        .map_err(|error| Error::new(Code::VALIDATION_ERROR, format!("the frame is not valid JSON: {error}")))
}

fn check_values(what: &str, text: &str, values_max: usize) -> Result<(), Error> {
    if values_of(text) <= values_max {
        return Ok(());
    }
    Err(Error::new(
        Code::PAYLOAD_TOO_LARGE,
        format!("{what}: must not have more than {values_max} JSON values"),
    )
    .with("values_max", values_max))
}

/// An upper bound of the values in a JSON text, keys included: one more than the marks that begin or separate values.
fn values_of(text: &str) -> usize {
    let mut count = 1;
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'[' | b'{' | b',' | b':' if !is_text => count += 1,
            _ => {}
        }
    }
    count
}

/// Collects items up to a bound.
struct Counting<'a, T> {
    items_max: usize,
    is_beyond: &'a Cell<bool>,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Counting<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            if items.len() == self.items_max {
                self.is_beyond.set(true);
                return Err(A::Error::custom("too many items"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Result<Vec<Value>, Code> {
        let items: RawItems = serde_json::from_str(text).expect("JSON");
        items.parse("items", 2).map_err(|error| error.code)
    }

    #[test]
    fn items_are_counted_before_they_are_parsed() {
        assert_eq!(items("[]"), Ok(vec![]));
        assert_eq!(
            items(r#"[1, {"a": 2}]"#),
            Ok(vec![1.into(), serde_json::json!({"a": 2})])
        );
        assert_eq!(items("[1, 2, 3]"), Err(Code::PAYLOAD_TOO_LARGE));
        assert_eq!(
            items(&format!("[[{}1]]", "1,".repeat(20_000))),
            Err(Code::PAYLOAD_TOO_LARGE)
        );
        for bad in ["1", "{}", "\"a\"", "null"] {
            assert_eq!(items(bad), Err(Code::VALIDATION_ERROR), "{bad}");
        }
    }

    #[test]
    fn values_in_texts_are_not_counted() {
        assert_eq!(values_of(r#""[,,,{:""#), 1);
        assert_eq!(values_of(r#"["\"[,,", "\\", 1]"#), 4);
        assert_eq!(values_of(r#"{"a": [1, {"b": 2}]}"#), 7);
    }
}
