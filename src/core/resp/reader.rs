//! Reads replies in place, without a value for each part: ranges of streams are large.

use std::io;

use bytes::Bytes;
use memchr::memchr;

/// How far a reply was looked at, so that each of its bytes is looked at once, however it is cut.
pub struct Extent {
    pub at: usize,
    /// Values that are still to come.
    pub left: u64,
}

impl Extent {
    /// Goes on; true when all is there.
    pub fn advance(&mut self, bytes: &[u8]) -> io::Result<bool> {
        while self.left > 0 {
            let Some((tag, number, start)) = head(bytes, self.at)? else {
                return Ok(false);
            };
            let mut end = start;
            match (tag, usize::try_from(number)) {
                (b'$', Ok(length)) => end = start.saturating_add(length).saturating_add(2),
                (b'*', Ok(count)) => self.left = self.left.saturating_add(count as u64),
                _ => {}
            }
            if end > bytes.len() {
                return Ok(false);
            }
            self.at = end;
            self.left -= 1;
        }
        Ok(true)
    }
}

pub fn malformed(what: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("reply from Redis is not understood: {what}"),
    )
}

/// The line that begins at a place: its tag, its number (0 of one that has none), and where the next begins.
fn head(bytes: &[u8], at: usize) -> io::Result<Option<(u8, i64, usize)>> {
    let Some((&tag, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let (length, number) = match tag {
        b'$' | b'*' | b':' => number(rest)?,
        b'+' | b'-' => (memchr(b'\r', rest).unwrap_or(rest.len()), 0),
        _ => return Err(malformed("unknown type")),
    };
    Ok((length + 1 < rest.len()).then_some((tag, number, at + length + 3)))
}

/// The number at the beginning, and how many bytes it takes. In replies of many short strings this is most of the work.
fn number(bytes: &[u8]) -> io::Result<(usize, i64)> {
    let is_negative = bytes.first() == Some(&b'-');
    let (mut at, mut number) = (usize::from(is_negative), 0_i64);
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        let longer = number.checked_mul(10);
        let longer = longer.and_then(|number| number.checked_add(i64::from(digit - b'0')));
        number = longer.ok_or_else(|| malformed("too large a number"))?;
        at += 1;
    }
    match bytes.get(at) {
        None | Some(b'\r') => Ok((at, if is_negative { -number } else { number })),
        Some(_) => Err(malformed("not a number")),
    }
}

/// A value of a reply; the elements of an array follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// An array of so many values.
    Array(usize),
    /// A string of any kind.
    Text(&'a [u8]),
    /// An integer.
    Integer(i64),
    /// Nothing.
    Nil,
}

/// Goes through the values of a whole reply.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next value.
    ///
    /// # Errors
    /// When it is an error, or there is none.
    pub fn next_value(&mut self) -> io::Result<Value<'a>> {
        let (tag, number, start) = head(self.bytes, self.at)?.ok_or_else(|| malformed("cut short"))?;
        let line = &self.bytes[self.at + 1..start - 2];
        self.at = start;
        match (tag, usize::try_from(number)) {
            (b'+', _) => Ok(Value::Text(line)),
            (b'-', _) => Err(io::Error::other(String::from_utf8_lossy(line).into_owned())),
            (b':', _) => Ok(Value::Integer(number)),
            (b'*', Ok(count)) => Ok(Value::Array(count)),
            (b'$', Ok(length)) => {
                let text = self.bytes.get(start..start + length);
                self.at = start + length + 2;
                text.map(Value::Text).ok_or_else(|| malformed("cut short"))
            }
            _ => Ok(Value::Nil),
        }
    }

    /// The length of the array that must come.
    ///
    /// # Errors
    /// Like [`Reader::next_value`]; also when something else comes.
    pub fn array(&mut self) -> io::Result<usize> {
        match self.next_value()? {
            Value::Array(count) => Ok(count),
            _ => Err(malformed("no array where one must be")),
        }
    }

    /// The string that must come.
    ///
    /// # Errors
    /// Like [`Reader::next_value`]; also when something else comes.
    pub fn text(&mut self) -> io::Result<&'a [u8]> {
        match self.next_value()? {
            Value::Text(text) => Ok(text),
            _ => Err(malformed("no string where one must be")),
        }
    }

    /// An array of strings, of which some may be missing.
    ///
    /// # Errors
    /// Like [`Reader::next_value`]; also when something else comes.
    pub fn texts(&mut self) -> io::Result<Vec<Option<String>>> {
        let count = self.array()?;
        let text = |reader: &mut Self| match reader.next_value()? {
            Value::Text(text) => Ok(String::from_utf8(text.to_vec()).ok()),
            Value::Nil => Ok(None),
            _ => Err(malformed("no string where one must be")),
        };
        (0..count.min(self.bytes.len())).map(|_| text(self)).collect()
    }

    /// The integer that must come.
    ///
    /// # Errors
    /// Like [`Reader::next_value`]; also when something else comes.
    pub fn integer(&mut self) -> io::Result<i64> {
        match self.next_value()? {
            Value::Integer(number) => Ok(number),
            _ => Err(malformed("no integer where one must be")),
        }
    }
}

/// The replies to the commands of a transaction, behind those to `MULTI` and to each of them.
///
/// # Errors
/// When one of them was refused, or the transaction was.
pub fn transaction(bytes: &Bytes, commands: usize) -> io::Result<Reader<'_>> {
    let mut reader = Reader::new(bytes);
    for _ in 0..=commands {
        reader.text()?;
    }
    if reader.array()? != commands {
        return Err(malformed("a transaction of another length"));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENTRY: &[u8] = b"+OK\r\n*2\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*4\r\n$2\r\nop\r\n$6\r\ninsert\r\n$3\r\nrow\r\n$4\r\n{\r\n}\r\n*-1\r\n$-1\r\n:-7\r\n";

    #[test]
    fn a_reply_is_found_whole_however_it_is_cut() {
        for cut in 0..ENTRY.len() {
            let mut extent = Extent { at: 0, left: 4 };
            assert!(!extent.advance(&ENTRY[..cut]).unwrap(), "{cut}");
            assert!(extent.advance(ENTRY).unwrap(), "{cut}");
            assert_eq!(extent.at, ENTRY.len());
        }
    }

    #[test]
    fn integers_are_read_to_their_ends_and_larger_ones_refused() {
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
    fn the_values_of_a_reply_come_in_their_order() {
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
    fn a_refusal_is_an_error_with_the_words_of_redis() {
        let refused = Bytes::from_static(b"+OK\r\n-LOADING the dataset\r\n-EXECABORT\r\n");
        let error = transaction(&refused, 1).err().unwrap();
        assert_eq!(error.to_string(), "LOADING the dataset");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extent { at: 0, left: 3 }.advance(&bytes);
            let mut reader = Reader::new(&bytes);
            while reader.next_value().is_ok() {}
        }
    }
}
