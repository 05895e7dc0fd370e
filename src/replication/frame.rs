//! The frames of a replication stream inside CopyData (Postgres chapter 55.4, "Streaming Replication Protocol").

use bytes::{BufMut, BytesMut};
use postgres_types::PgLsn;

use crate::core::position::POSTGRES_EPOCH_MICROS;

/// A message from the walsender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One pgoutput message.
    XLogData {
        /// The start of the WAL data: a change's own LSN, which is no position.
        start: PgLsn,
        /// Current end of WAL on the server.
        server_end: PgLsn,
        payload: &'a [u8],
    },
    /// One pgoutput message that is too large to be read.
    Oversized {
        /// Its first bytes.
        head: &'a [u8],
        /// Its length.
        bytes: usize,
    },
    Keepalive {
        /// Current end of WAL on the server.
        server_end: PgLsn,
        /// A status update is due at once, or the server ends the connection.
        reply_requested: bool,
    },
}

/// CopyData content that is no known frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown replication frame with tag {tag:#04x} and {length} bytes")]
pub struct FrameError {
    /// First byte, 0 when there was none.
    pub tag: u8,
    /// Length of the content in bytes.
    pub length: usize,
}

/// Parses the content of one CopyData message.
pub fn parse(content: &[u8]) -> Result<Frame<'_>, FrameError> {
    let error = FrameError {
        tag: content.first().copied().unwrap_or(0),
        length: content.len(),
    };
    let u64_at = |offset: usize| -> Result<u64, FrameError> {
        let bytes = content.get(offset..offset + 8).ok_or(error)?;
        bytes.try_into().map(u64::from_be_bytes).map_err(|_| error)
    };
    match content.first() {
        Some(b'w') => Ok(Frame::XLogData {
            start: u64_at(1)?.into(),
            server_end: u64_at(9)?.into(),
            payload: content.get(XLOG_DATA_HEADER..).ok_or(error)?,
        }),
        Some(b'k') if content.len() == 18 => Ok(Frame::Keepalive {
            server_end: u64_at(1)?.into(),
            reply_requested: content[17] != 0,
        }),
        _ => Err(error),
    }
}

/// Bytes before the pgoutput message in the content of XLogData.
const XLOG_DATA_HEADER: usize = 25;

/// Bytes of the content that [`parse_oversized`] needs.
pub const HEAD_BYTES: usize = XLOG_DATA_HEADER + 16;

/// Parses the first [`HEAD_BYTES`] of a content of so many bytes.
pub fn parse_oversized(content: &[u8], bytes: usize) -> Result<Frame<'_>, FrameError> {
    match (content.first(), content.get(XLOG_DATA_HEADER..)) {
        (Some(b'w'), Some(head)) => Ok(Frame::Oversized {
            head,
            bytes: bytes.saturating_sub(XLOG_DATA_HEADER),
        }),
        (tag, _) => Err(FrameError {
            tag: tag.copied().unwrap_or(0),
            length: bytes,
        }),
    }
}

/// Appends a Standby status update, as a whole CopyData message.
///
/// `flushed` becomes the confirmed position of a logical slot; `received` only appears in `pg_stat_replication`. When a
/// reply is requested, the server sends a keepalive as soon as it reads the update.
pub fn write_status(received: PgLsn, flushed: PgLsn, unix_micros: i64, reply_requested: bool, out: &mut BytesMut) {
    const LENGTH: u32 = 4 + 1 + 8 + 8 + 8 + 8 + 1;
    out.put_u8(b'd');
    out.put_u32(LENGTH);
    out.put_u8(b'r');
    out.put_u64(received.into());
    out.put_u64(flushed.into());
    out.put_u64(flushed.into());
    out.put_i64(unix_micros.saturating_sub(POSTGRES_EPOCH_MICROS));
    out.put_u8(reply_requested.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_update_is_one_copy_data_message() {
        let mut out = BytesMut::new();
        write_status(0x20.into(), 0x10.into(), POSTGRES_EPOCH_MICROS + 5, true, &mut out);
        assert_eq!(out.len(), 39);
        assert_eq!(&out[..6], b"d\x00\x00\x00\x26r");
        assert_eq!(out[13], 0x20);
        assert_eq!(out[21], 0x10);
        assert_eq!((out[37], out[38]), (5, 1));
    }

    #[test]
    fn frames_of_wrong_length_or_tag_are_errors() {
        for bad in [&b""[..], b"w", b"wxxxxxxxxxxxxxxxxxxxxxxx", b"k", &[b'k'; 19], b"z1234"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let mut keepalive = [0_u8; 18];
        keepalive[0] = b'k';
        keepalive[8] = 7;
        keepalive[17] = 1;
        assert_eq!(
            parse(&keepalive),
            Ok(Frame::Keepalive {
                server_end: 7.into(),
                reply_requested: true
            })
        );
    }
}
