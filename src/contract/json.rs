//! Looking into a row's JSON without taking it apart: rows go to clients as the log gave them, and of most only a few
//! columns matter here.

use memchr::memchr2;

/// Goes over the members of an object, each as its name and its value, both as they are written. Ends where the text is
/// no JSON, which rows of a stream never are.
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
}

/// The members of an object, as [`Members`] says.
pub fn members(object: &[u8]) -> Members<'_> {
    let mut members = Members { text: object, at: 0 };
    members.at = members.skip_space(0);
    members
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text;
        if !matches!(bytes.get(self.at)?, b'{' | b',') {
            return None;
        }
        let name = self.skip_space(self.at + 1);
        let name_end = string_end(bytes, name)?;
        let colon = self.skip_space(name_end);
        if bytes.get(colon) != Some(&b':') {
            return None;
        }
        let value = self.skip_space(colon + 1);
        let value_end = value_end(bytes, value)?;
        self.at = self.skip_space(value_end);
        Some((self.text.get(name + 1..name_end - 1)?, self.text.get(value..value_end)?))
    }
}

impl Members<'_> {
    fn skip_space(&self, at: usize) -> usize {
        skip_space(self.text, at)
    }
}

/// Goes over the elements of an array as they are written. Ends where the text is no JSON.
pub struct Elements<'a> {
    text: &'a [u8],
    at: usize,
}

/// The elements of an array, as [`Elements`] says.
pub fn elements(array: &[u8]) -> Elements<'_> {
    Elements {
        text: array,
        at: skip_space(array, 0),
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        if !matches!(self.text.get(self.at)?, b'[' | b',') {
            return None;
        }
        let value = skip_space(self.text, self.at + 1);
        let value_end = value_end(self.text, value)?;
        self.at = skip_space(self.text, value_end);
        self.text.get(value..value_end)
    }
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// Where the string that begins at a place ends.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let mut at = start + 1;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Where the value that begins at a place ends.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    match bytes.get(start)? {
        b'"' => string_end(bytes, start),
        b'{' | b'[' => {
            let (mut at, mut depth) = (start, 0_usize);
            loop {
                match bytes.get(at)? {
                    b'"' => {
                        at = string_end(bytes, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let rest = &bytes[start..];
            let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
            let length = rest.iter().position(is_end)?;
            (length > 0).then_some(start + length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn members_are_what_a_parser_finds(
            object in proptest::collection::btree_map(any::<String>(), values(), 0..8), pretty in any::<bool>()
        ) {
            let object = Value::from(object.into_iter().collect::<Map<_, _>>());
            let text = if pretty { serde_json::to_string_pretty(&object).unwrap() } else { object.to_string() };
            let found: Map<String, Value> = members(text.as_bytes())
                .map(|(name, value)| {
                    let name = serde_json::from_slice(&[b"\"", name, b"\""].concat()).unwrap();
                    (name, serde_json::from_slice(value).unwrap())
                })
                .collect();
            prop_assert_eq!(Value::from(found), object);
        }

        #[test]
        fn elements_are_what_a_parser_finds(array in proptest::collection::vec(values(), 0..8), pretty in any::<bool>()) {
            let array = Value::from(array);
            let text = if pretty { serde_json::to_string_pretty(&array).unwrap() } else { array.to_string() };
            let found: Vec<Value> = elements(text.as_bytes()).map(|value| serde_json::from_slice(value).unwrap()).collect();
            prop_assert_eq!(Value::from(found), array);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), nearly in "[{}\\[\\]\",:a\\\\ 0-9]{0,40}") {
            let _ = members(text.as_bytes()).count();
            let _ = members(nearly.as_bytes()).count();
            let _ = elements(text.as_bytes()).count();
            let _ = elements(nearly.as_bytes()).count();
        }
    }
}
