//! Reads replies in place, without an allocation for each part: ranges of streams are large.

use bytes::Bytes;
use memchr::memchr;

use super::RespError;

/// How far a reply was examined, so that each of its bytes is examined once, however it is cut.
#[derive(Debug)]
pub struct Extent {
    at: usize,
    /// Values that are still to come.
    left: u64,
}

impl Extent {
    /// So many values, none of them examined.
    pub fn new(values: u64) -> Self {
        Self { at: 0, left: values }
    }

    /// Where the values that are complete end.
    pub fn end(&self) -> usize {
        self.at
    }

    /// Examines what was added; true when all values are complete.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<bool, RespError> {
        while self.left > 0 {
            let Some((tag, number, start)) = head(bytes, self.at)? else {
                return Ok(false);
            };
            let mut end = start;
            match (tag, usize::try_from(number)) {
                (b'$', Ok(length)) => {
                    end = start.saturating_add(length).saturating_add(2);
                    match bytes.get(end - 2..end) {
                        None => return Ok(false),
                        Some(b"\r\n") => {}
                        // A wrong length makes all that follows unreadable.
                        Some(_) => return Err(RespError::Malformed("a bulk string exceeds its length")),
                    }
                }
                (b'*', Ok(count)) => self.left = self.left.saturating_add(count as u64),
                _ => {}
            }
            self.at = end;
            self.left -= 1;
        }
        Ok(true)
    }
}

/// The line at a position: its tag, its number (0 where the tag has none), and where the next line begins.
fn head(bytes: &[u8], at: usize) -> Result<Option<(u8, i64, usize)>, RespError> {
    let Some((&tag, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let (length, number) = match tag {
        b'$' | b'*' | b':' => number(rest)?,
        b'+' | b'-' => (memchr(b'\r', rest).unwrap_or(rest.len()), 0),
        _ => return Err(RespError::Malformed("unknown type")),
    };
    if number < -1 && tag != b':' {
        return Err(RespError::Malformed("negative length"));
    }
    Ok((length + 1 < rest.len()).then_some((tag, number, at + length + 3)))
}

/// The number at the beginning, and how many bytes it takes. In replies of many short strings this is most of the work.
fn number(bytes: &[u8]) -> Result<(usize, i64), RespError> {
    let is_negative = bytes.first() == Some(&b'-');
    let (mut at, mut number) = (usize::from(is_negative), 0_i64);
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        let longer = number.checked_mul(10);
        let longer = longer.and_then(|number| number.checked_add(i64::from(digit - b'0')));
        number = longer.ok_or(RespError::Malformed("a number is too large"))?;
        at += 1;
    }
    match bytes.get(at) {
        None | Some(b'\r') => Ok((at, if is_negative { -number } else { number })),
        Some(_) => Err(RespError::Malformed("not a number")),
    }
}

/// A value of a reply; the elements of an array follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// An array of so many values.
    Array(usize),
    /// A simple string.
    Status(&'a [u8]),
    /// A bulk string.
    Text(&'a [u8]),
    /// An integer.
    Integer(i64),
    /// A missing string or array.
    Nil,
}

/// Iterates over the values of a complete reply.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first value.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next value; a reply that is an error is [`RespError::Refused`].
    pub fn next_value(&mut self) -> Result<Value<'a>, RespError> {
        let (tag, number, start) = head(self.bytes, self.at)?.ok_or(RespError::Malformed("cut short"))?;
        let line = &self.bytes[self.at + 1..start - 2];
        self.at = start;
        match (tag, usize::try_from(number)) {
            (b'+', _) => Ok(Value::Status(line)),
            (b'-', _) => Err(RespError::Refused(String::from_utf8_lossy(line).into_owned())),
            (b':', _) => Ok(Value::Integer(number)),
            (b'*', Ok(count)) => Ok(Value::Array(count)),
            (b'$', Ok(length)) => {
                let text = self.bytes.get(start..start + length);
                self.at = start + length + 2;
                text.map(Value::Text).ok_or(RespError::Malformed("cut short"))
            }
            _ => Ok(Value::Nil),
        }
    }

    /// The length of an array, which must be next.
    pub fn array(&mut self) -> Result<usize, RespError> {
        match self.next_value()? {
            Value::Array(count) => Ok(count),
            _ => Err(RespError::Malformed("an array was expected")),
        }
    }

    /// A string, which must be next.
    pub fn text(&mut self) -> Result<&'a [u8], RespError> {
        match self.next_value()? {
            Value::Text(text) | Value::Status(text) => Ok(text),
            _ => Err(RespError::Malformed("a string was expected")),
        }
    }

    /// An array of strings and nils, which must be next.
    pub fn texts(&mut self) -> Result<Vec<Option<String>>, RespError> {
        let count = self.array()?;
        let text = |reader: &mut Self| match reader.next_value()? {
            Value::Text(text) | Value::Status(text) => Ok(String::from_utf8(text.to_vec()).ok()),
            Value::Nil => Ok(None),
            _ => Err(RespError::Malformed("a string was expected")),
        };
        (0..count.min(self.bytes.len())).map(|_| text(self)).collect()
    }

    /// An integer, which must be next.
    pub fn integer(&mut self) -> Result<i64, RespError> {
        match self.next_value()? {
            Value::Integer(number) => Ok(number),
            _ => Err(RespError::Malformed("an integer was expected")),
        }
    }
}

/// The replies to the commands of a transaction, behind those to `MULTI` and to each of them.
pub fn transaction(bytes: &Bytes, commands: usize) -> Result<Reader<'_>, RespError> {
    let mut reader = Reader::new(bytes);
    for _ in 0..=commands {
        reader.text()?;
    }
    if reader.array()? != commands {
        return Err(RespError::Malformed("a transaction of another length"));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENTRY: &[u8] = b"+OK\r\n*2\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*4\r\n$2\r\nop\r\n$6\r\ninsert\r\n$3\r\nrow\r\n$4\r\n{\r\n}\r\n*-1\r\n$-1\r\n:-7\r\n";

    #[test]
    fn extent_ends_with_the_reply_however_it_is_cut() {
        for cut in 0..ENTRY.len() {
            let mut extent = Extent::new(4);
            assert!(!extent.advance(&ENTRY[..cut]).unwrap(), "{cut}");
            assert!(extent.advance(ENTRY).unwrap(), "{cut}");
            assert_eq!(extent.end(), ENTRY.len());
        }
    }

    #[test]
    fn integers_parse_up_to_the_limits_of_i64() {
        let read = |text: &str| {
            Reader::new(format!(":{text}\r\n").as_bytes()).next_value().ok() == text.parse().ok().map(Value::Integer)
        };
        for text in [
            "0",
            "-1",
            "999999999999999999",
            "9223372036854775807",
            "-9223372036854775807",
        ] {
            assert!(read(text), "{text}");
        }
        for text in ["9223372036854775808", "9999999999999999999", "99999999999999999999999"] {
            assert!(
                Reader::new(format!(":{text}\r\n").as_bytes()).next_value().is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn reader_returns_values_in_order() {
        let mut reader = Reader::new(ENTRY);
        assert_eq!(reader.text().unwrap(), b"OK");
        assert_eq!(
            (
                reader.array().unwrap(),
                reader.array().unwrap(),
                reader.array().unwrap()
            ),
            (2, 1, 2)
        );
        assert_eq!(reader.text().unwrap(), b"1-1");
        let fields = reader.texts().unwrap();
        assert_eq!(
            fields.iter().flatten().collect::<Vec<_>>(),
            ["op", "insert", "row", "{\r\n}"]
        );
        assert_eq!(
            (reader.next_value().unwrap(), reader.next_value().unwrap()),
            (Value::Nil, Value::Nil)
        );
        assert_eq!(reader.integer().unwrap(), -7);
        assert!(reader.next_value().is_err());
    }

    #[test]
    fn refused_command_is_an_error_with_the_text_of_redis() {
        let refused = Bytes::from_static(b"+OK\r\n-LOADING the dataset\r\n-EXECABORT\r\n");
        let error = transaction(&refused, 1).err().unwrap();
        assert_eq!(error.to_string(), "LOADING the dataset");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extent::new(3).advance(&bytes);
            let mut reader = Reader::new(&bytes);
            while reader.next_value().is_ok() {}
        }
    }
}
