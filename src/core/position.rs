//! What flows from the write-ahead log to the clients: positions and the IDs that streams give them.

use std::fmt;
use std::str::FromStr;

use postgres_types::PgLsn;

/// Microseconds between the Unix epoch and Postgres' epoch, 2000-01-01; its wire formats count from the latter.
pub const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Where a change stands in the history of one server: the commit LSN of its transaction and its number in it.
///
/// The ordinal counts from 1, before any filtering or routing: inserts, updates, deletes, transactional messages and
/// each relation of a truncate. A change's own LSN is no key: rows of one `COPY` share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// `final_lsn` of the transaction's Begin message, equal to `commit_lsn` of its Commit.
    pub commit_lsn: PgLsn,
    /// The change's number within its transaction, from 1.
    pub ordinal: u64,
}

/// A Redis stream ID: `<commit LSN + epoch base>-<ordinal>`, both decimal.
///
/// Stream IDs are ordered like positions within one epoch, and the base keeps them growing across epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// First part; commit LSN plus the epoch's base.
    pub ms: u64,
    /// Second part; the ordinal. 0 is used by entries that stand before a transaction's first change.
    pub seq: u64,
}

impl StreamId {
    /// Before every entry.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };

    /// The ID of a position in an epoch with this base.
    pub fn of(position: Position, base: u64) -> Self {
        Self {
            ms: u64::from(position.commit_lsn).saturating_add(base),
            seq: position.ordinal,
        }
    }

    /// The next possible ID.
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self {
                ms: self.ms.saturating_add(1),
                seq: 0,
            },
        }
    }

    /// The previous possible ID; [`StreamId::ZERO`] stays.
    pub fn previous(self) -> Self {
        match self.seq.checked_sub(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None if self.ms == 0 => Self::ZERO,
            None => Self {
                ms: self.ms - 1,
                seq: u64::MAX,
            },
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// A text that is no stream ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stream ID of the form <number>-<number>: {0:?}")]
pub struct ParseStreamIdError(String);

impl FromStr for StreamId {
    type Err = ParseStreamIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (ms, seq) = text.split_once('-')?;
            Some(Self {
                ms: ms.parse().ok()?,
                seq: seq.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ParseStreamIdError(text.chars().take(64).collect()))
    }
}

/// The random identity of an epoch, 16 hexadecimal digits as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EpochId(pub u64);

impl EpochId {
    /// A new random identity.
    ///
    /// # Errors
    /// When the operating system gives no random bits.
    pub fn random() -> Result<Self, getrandom::Error> {
        getrandom::u64().map(Self)
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for EpochId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// The random identity of a term, one session of a publisher; 16 hexadecimal digits as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TermId(pub u64);

impl TermId {
    /// All sessions of versions that had no terms.
    pub const EARLIER_VERSIONS: Self = Self(0);

    /// A new random identity.
    ///
    /// # Errors
    /// When the operating system gives no random bits.
    pub fn random() -> Result<Self, getrandom::Error> {
        getrandom::u64().map(Self)
    }
}

impl fmt::Display for TermId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for TermId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids_print_and_parse_alike() {
        let id = StreamId {
            ms: 123_456_789,
            seq: 7,
        };
        assert_eq!(id.to_string(), "123456789-7");
        assert_eq!("123456789-7".parse(), Ok(id));
        for bad in ["", "1", "1-", "-1", "1-2-3", "a-b", "18446744073709551616-0"] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn next_and_previous_are_inverse_also_at_the_seams() {
        for id in [
            StreamId { ms: 5, seq: 0 },
            StreamId { ms: 5, seq: u64::MAX },
            StreamId { ms: 5, seq: 3 },
        ] {
            assert_eq!(id.next().previous(), id);
        }
        assert_eq!(StreamId::ZERO.previous(), StreamId::ZERO);
    }
}
