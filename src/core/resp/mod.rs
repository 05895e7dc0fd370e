//! RESP2, the Redis wire format: encoding commands and parsing replies.
//!
//! The publisher does not use a client library for three reasons: it must examine every reply of a transaction, the
//! connection must never reconnect by itself (that would leave a hole), and at hundreds of thousands of commands a second
//! encoding takes most of the engine's time. Readers of ranges keep a reply in one piece of memory ([`Reader`]).

mod reader;

use std::io;

use bytes::{Bytes, BytesMut};

pub use self::reader::{Extent, Reader, Value, transaction};

/// Deepest nesting of arrays in a reply; ours have one level.
const DEPTH_MAX: usize = 4;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+QUEUED`, the most frequent one.
    Queued,
    /// Any other simple string.
    Status(Bytes),
    /// An error with its text.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A bulk string.
    Bulk(Bytes),
    /// A missing bulk string or array.
    Nil,
    /// An array.
    Array(Vec<Reply>),
}

/// Why a reply has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// Bytes that are no RESP2, or another reply than expected.
    #[error("malformed reply from Redis: {0}")]
    Malformed(&'static str),
    /// The reply is an error, with this text.
    #[error("{0}")]
    Refused(String),
}

impl From<RespError> for io::Error {
    fn from(error: RespError) -> Self {
        let kind = match error {
            RespError::Malformed(_) => io::ErrorKind::InvalidData,
            RespError::Refused(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Appends the head of a command with this many arguments.
pub fn begin(out: &mut BytesMut, arguments: usize) {
    header(out, b'*', arguments);
}

/// Appends one argument.
pub fn argument(out: &mut BytesMut, bytes: &[u8]) {
    header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends one argument that is given in parts.
pub fn argument_of<P: AsRef<[u8]>>(out: &mut BytesMut, parts: &[P]) {
    header(out, b'$', parts.iter().map(|part| part.as_ref().len()).sum());
    parts.iter().for_each(|part| out.extend_from_slice(part.as_ref()));
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole command.
pub fn command(out: &mut BytesMut, arguments: &[&[u8]]) {
    begin(out, arguments.len());
    for bytes in arguments {
        argument(out, bytes);
    }
}

fn header(out: &mut BytesMut, tag: u8, number: usize) {
    out.extend_from_slice(&[tag]);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Takes one complete reply from the front of a buffer; `Ok(None)` means that more bytes are needed.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<Reply>, RespError> {
    // The end is found first, so that an incomplete reply allocates nothing.
    let mut extent = Extent::new(1);
    if !extent.advance(buffer)? {
        return Ok(None);
    }
    let bytes = buffer.split_to(extent.end()).freeze();
    Reply::read(&mut Reader::new(&bytes), &bytes, 0).map(Some)
}

impl Reply {
    /// Reads one value of a reply that is complete.
    fn read(reader: &mut Reader<'_>, bytes: &Bytes, depth: usize) -> Result<Self, RespError> {
        if depth > DEPTH_MAX {
            return Err(RespError::Malformed("nested too deeply"));
        }
        Ok(match reader.next_value() {
            Ok(Value::Status(b"QUEUED")) => Self::Queued,
            Ok(Value::Status(text)) => Self::Status(bytes.slice_ref(text)),
            Ok(Value::Text(text)) => Self::Bulk(bytes.slice_ref(text)),
            Ok(Value::Integer(number)) => Self::Integer(number),
            Ok(Value::Nil) => Self::Nil,
            // Each element takes bytes that are there, so the capacity is bounded by what was received.
            Ok(Value::Array(count)) => Self::Array(
                (0..count)
                    .map(|_| Self::read(reader, bytes, depth + 1))
                    .collect::<Result<_, _>>()?,
            ),
            Err(RespError::Refused(text)) => Self::Error(text),
            Err(error) => return Err(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = BytesMut::new();
        command(&mut out, &[b"SET", b"k", b""]);
        assert_eq!(&out[..], b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    #[test]
    fn transaction_replies_parse_one_by_one() {
        let mut bytes =
            BytesMut::from(&b"+OK\r\n+QUEUED\r\n-OOM not now\r\n*3\r\n$3\r\n1-1\r\n$-1\r\n:7\r\n*-1\r\n"[..]);
        let mut replies = Vec::new();
        while let Some(reply) = parse(&mut bytes).unwrap() {
            replies.push(reply);
        }
        assert_eq!(
            replies,
            [
                Reply::Status("OK".into()),
                Reply::Queued,
                Reply::Error("OOM not now".into()),
                Reply::Array(vec![Reply::Bulk("1-1".into()), Reply::Nil, Reply::Integer(7)]),
                Reply::Nil,
            ]
        );
        assert!(bytes.is_empty());
    }

    #[test]
    fn malformed_bytes_are_an_error_at_once() {
        for bad in [
            "?\r\n",
            "\r\n",
            "$x\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
            "$-7\r\n",
            "$1\r\nabc",
        ] {
            assert!(parse(&mut BytesMut::from(bad)).is_err(), "{bad}");
        }
    }

    fn encode(reply: &Reply, out: &mut Vec<u8>) {
        match reply {
            Reply::Queued => out.extend(b"+QUEUED\r\n"),
            Reply::Status(text) => out.extend([b"+", &text[..], b"\r\n"].concat()),
            Reply::Error(text) => out.extend(format!("-{text}\r\n").bytes()),
            Reply::Integer(value) => out.extend(format!(":{value}\r\n").bytes()),
            Reply::Nil => out.extend(b"$-1\r\n"),
            Reply::Bulk(bytes) => {
                out.extend(format!("${}\r\n", bytes.len()).bytes());
                out.extend([&bytes[..], b"\r\n"].concat());
            }
            Reply::Array(replies) => {
                out.extend(format!("*{}\r\n", replies.len()).bytes());
                replies.iter().for_each(|reply| encode(reply, out));
            }
        }
    }

    fn replies() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::Queued),
            Just(Reply::Nil),
            "[a-z ]{0,20}".prop_map(|text| Reply::Status(text.into_bytes().into())),
            "[A-Z ]{1,20}".prop_map(Reply::Error),
            any::<i64>().prop_map(Reply::Integer),
            proptest::collection::vec(any::<u8>(), 0..50).prop_map(|bytes| Reply::Bulk(bytes.into())),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            proptest::collection::vec(inner, 0..5).prop_map(Reply::Array)
        })
    }

    proptest! {
        #[test]
        fn reply_parses_the_same_however_it_is_cut(reply in replies(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            encode(&reply, &mut bytes);
            let cut = cut.index(bytes.len());
            let mut buffer = BytesMut::from(&bytes[..cut]);
            prop_assert_eq!(parse(&mut buffer).unwrap(), None);
            buffer.extend_from_slice(&bytes[cut..]);
            prop_assert_eq!(parse(&mut buffer).unwrap(), Some(reply));
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = parse(&mut buffer) {}
        }
    }
}
