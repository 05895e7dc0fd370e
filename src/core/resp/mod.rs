//! RESP2, the Redis wire format: encoding commands and parsing replies.
//!
//! The publisher speaks it by itself for three reasons: every reply of a transaction must be seen, the connection must
//! never reconnect behind our back (that would leave a hole), and at hundreds of thousands of commands a second the
//! encoding is what the engine spends its time on.

mod reader;

pub use self::reader::{Extent, Reader, Value, malformed, transaction};

use bytes::{Buf, Bytes, BytesMut};

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

/// Bytes that are no RESP2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reply from Redis is not understood: {0}")]
pub struct RespError(&'static str);

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
pub fn argument_of(out: &mut BytesMut, parts: &[&str]) {
    header(out, b'$', parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
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
///
/// # Errors
/// When the bytes are no RESP2.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<Reply>, RespError> {
    // Look for the end first, so that an incomplete reply allocates nothing however often it is looked at.
    let Some(length) = complete(buffer, 0, 0)? else {
        return Ok(None);
    };
    let mut bytes = buffer.split_to(length).freeze();
    take(&mut bytes).map(Some)
}

/// Where the reply that begins at `start` ends, if all of it is there.
fn complete(bytes: &[u8], start: usize, depth: usize) -> Result<Option<usize>, RespError> {
    if depth > DEPTH_MAX {
        return Err(RespError("nested too deeply"));
    }
    let Some(line) = find_line(bytes, start) else {
        return Ok(None);
    };
    let mut end = start + line + 2;
    let Some((tag, rest)) = bytes[start..start + line].split_first() else {
        return Err(RespError("empty line"));
    };
    match tag {
        b'+' | b'-' | b':' => Ok(Some(end)),
        b'$' => match number(rest)? {
            -1 => Ok(Some(end)),
            length => {
                let length = usize::try_from(length).map_err(|_| RespError("negative length"))?;
                end = end.checked_add(length + 2).ok_or(RespError("length too large"))?;
                match bytes.get(end - 2..end) {
                    None => Ok(None),
                    Some(b"\r\n") => Ok(Some(end)),
                    // Whoever disagrees about a length disagrees about all that follows.
                    Some(_) => Err(RespError("a bulk string is longer than it says")),
                }
            }
        },
        b'*' => match number(rest)? {
            -1 => Ok(Some(end)),
            count => {
                let count = usize::try_from(count).map_err(|_| RespError("negative count"))?;
                for _ in 0..count {
                    match complete(bytes, end, depth + 1)? {
                        Some(next) => end = next,
                        None => return Ok(None),
                    }
                }
                Ok(Some(end))
            }
        },
        _ => Err(RespError("unknown type")),
    }
}

/// Length of the line that begins at `start`, without its CR LF.
fn find_line(bytes: &[u8], start: usize) -> Option<usize> {
    let rest = bytes.get(start..)?;
    // Replies' first lines are short; Redis' own error texts stay below 64 KiB.
    rest.windows(2).position(|pair| pair == b"\r\n")
}

fn number(digits: &[u8]) -> Result<i64, RespError> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(RespError("not a number"))
}

/// Takes a reply that is known to be complete.
fn take(bytes: &mut Bytes) -> Result<Reply, RespError> {
    let line = find_line(bytes, 0).ok_or(RespError("cut short"))?;
    let head = bytes.split_to(line);
    bytes.advance(2);
    let rest = head.slice(1..);
    Ok(match head[0] {
        b'+' if &rest[..] == b"QUEUED" => Reply::Queued,
        b'+' => Reply::Status(rest),
        b'-' => Reply::Error(String::from_utf8_lossy(&rest).into_owned()),
        b':' => Reply::Integer(number(&rest)?),
        tag => match (tag, usize::try_from(number(&rest)?)) {
            (_, Err(_)) => Reply::Nil,
            (b'$', Ok(length)) => {
                let content = bytes.split_to(length);
                bytes.advance(2);
                Reply::Bulk(content)
            }
            // Each element takes bytes that are there, so the capacity is bounded by what was received.
            (_, Ok(count)) => Reply::Array((0..count).map(|_| take(bytes)).collect::<Result<_, _>>()?),
        },
    })
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
    fn replies_of_a_transaction_are_read_one_by_one() {
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
    fn nonsense_is_an_error_and_not_a_wait() {
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
        fn a_reply_is_read_the_same_however_the_bytes_are_cut(reply in replies(), cut in any::<prop::sample::Index>()) {
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
