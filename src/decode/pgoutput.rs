//! pgoutput, protocol version 1 (Postgres chapter 55.9, "Logical Replication Message Formats").
//!
//! Decoding borrows from the frame and copies nothing. Unknown content is an error: to skip it would lose data, so the
//! engine stops.

use std::fmt;

use postgres_types::PgLsn;

use crate::core::position::POSTGRES_EPOCH_MICROS;

/// Most columns a relation or tuple can have; Postgres' own limit is 1,600.
const COLUMNS_MAX: u16 = 2048;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; only committed ones are sent.
    Begin(Begin),
    /// A transaction ends.
    Commit(Commit),
    /// The following changes came from another server.
    Origin {
        /// Commit LSN on the origin server.
        commit_lsn: PgLsn,
        /// Name of the origin.
        name: &'a str,
    },
    /// Describes a table, sent before its first row and after each change of it.
    Relation(Relation<'a>),
    /// Describes a type that is not built in, sent before the relation that uses it.
    Type {
        oid: u32,
        namespace: &'a str,
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// OID of the table.
        relation: u32,
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// OID of the table.
        relation: u32,
        /// The part of the old row that the replica identity keeps; `None` when the identity's columns did not change.
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    /// A removed row.
    Delete {
        /// OID of the table.
        relation: u32,
        /// The part of the row that the replica identity keeps.
        old: Old<'a>,
    },
    /// Emptied tables.
    Truncate {
        /// OIDs of the tables.
        relations: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    /// Written by `pg_logical_emit_message`.
    Logical {
        /// Part of a transaction, or on its own.
        transactional: bool,
        /// Its own LSN; no position.
        lsn: PgLsn,
        prefix: &'a str,
        content: &'a [u8],
    },
}

/// Begin of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// LSN of the commit record, equal to the later [`Commit::commit_lsn`].
    pub final_lsn: PgLsn,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
    /// Transaction id, without its epoch.
    pub xid: u32,
}

/// Commit of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// LSN of the commit record.
    pub commit_lsn: PgLsn,
    /// First LSN behind the transaction: the position to confirm.
    pub end_lsn: PgLsn,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
}

/// The part of an old row that the WAL keeps (Postgres: `ALTER TABLE ... REPLICA IDENTITY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key's columns.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// An index's columns.
    Index,
}

/// A table's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    pub oid: u32,
    /// Empty means `pg_catalog`.
    pub namespace: &'a str,
    pub name: &'a str,
    pub replica_identity: ReplicaIdentity,
    /// Columns in the order of tuples.
    pub columns: Vec<RelationColumn<'a>>,
}

/// A column's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity.
    pub is_key: bool,
    pub name: &'a str,
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
}

/// A row: one cell per column.
pub type Tuple<'a> = Vec<Cell<'a>>;

/// One column's value as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that did not change; the WAL left it out.
    Unchanged,
    /// The output of the type's output function.
    Text(&'a [u8]),
    /// The output of the type's send function; only with the option `binary`.
    Binary(&'a [u8]),
}

/// The old row of an update or delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Old<'a> {
    /// Only the identity's columns are set, the others are NULL.
    Key(Tuple<'a>),
    /// All columns (replica identity full).
    Full(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// The cells, whichever of them are meaningful.
    pub fn tuple(&self) -> &Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// Bytes that are no pgoutput message of version 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct DecodeError {
    /// Tag of the message, 0 when there was none.
    pub tag: u8,
    /// Byte offset in the message.
    pub offset: usize,
    pub cause: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = char::from(self.tag).escape_default();
        write!(f, "pgoutput message '{tag}', byte {}: {}", self.offset, self.cause)
    }
}

/// Decodes one message, which must fill the bytes exactly.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader { bytes, offset: 0 };
    let message = reader.message()?;
    if reader.offset != bytes.len() {
        return Err(reader.error("message too long"));
    }
    Ok(message)
}

/// What the first bytes of a message show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// An insert, update or delete.
    Row {
        /// OID of the table.
        relation: u32,
    },
    /// Written by `pg_logical_emit_message`.
    Logical { transactional: bool },
}

/// Decodes the beginning of a message whose rest is unknown.
///
/// # Errors
/// When it is of another kind, or less than 5 bytes long.
pub fn decode_head(bytes: &[u8]) -> Result<Head, DecodeError> {
    let mut reader = Reader { bytes, offset: 0 };
    match reader.u8()? {
        b'I' | b'U' | b'D' => Ok(Head::Row {
            relation: reader.u32()?,
        }),
        b'M' => Ok(Head::Logical {
            transactional: reader.u8()? & 1 != 0,
        }),
        _ => Err(reader.error("message too large")),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, cause: &'static str) -> DecodeError {
        DecodeError {
            tag: self.bytes.first().copied().unwrap_or(0),
            offset: self.offset,
            cause,
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let taken = self
            .offset
            .checked_add(length)
            .and_then(|end| self.bytes.get(self.offset..end))
            .ok_or_else(|| self.error("message too short"))?;
        self.offset += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<PgLsn, DecodeError> {
        self.array().map(|bytes| PgLsn::from(u64::from_be_bytes(bytes)))
    }

    /// Microseconds since 1970.
    fn timestamp(&mut self) -> Result<i64, DecodeError> {
        self.array()
            .map(|bytes| i64::from_be_bytes(bytes).saturating_add(POSTGRES_EPOCH_MICROS))
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(|| self.error("unterminated text"))?;
        let text = std::str::from_utf8(&rest[..length]).map_err(|_| self.error("text is not UTF-8"))?;
        self.offset += length + 1;
        Ok(text)
    }

    fn message(&mut self) -> Result<Message<'a>, DecodeError> {
        Ok(match self.u8()? {
            b'B' => Message::Begin(Begin {
                final_lsn: self.lsn()?,
                commit_ts: self.timestamp()?,
                xid: self.u32()?,
            }),
            b'C' => {
                if self.u8()? != 0 {
                    return Err(self.error("unknown commit flags"));
                }
                Message::Commit(Commit {
                    commit_lsn: self.lsn()?,
                    end_lsn: self.lsn()?,
                    commit_ts: self.timestamp()?,
                })
            }
            b'O' => Message::Origin {
                commit_lsn: self.lsn()?,
                name: self.text()?,
            },
            b'R' => Message::Relation(self.relation()?),
            b'Y' => Message::Type {
                oid: self.u32()?,
                namespace: self.text()?,
                name: self.text()?,
            },
            b'I' => {
                let relation = self.u32()?;
                if self.u8()? != b'N' {
                    return Err(self.error("insert without a new row"));
                }
                Message::Insert {
                    relation,
                    new: self.tuple()?,
                }
            }
            b'U' => {
                let relation = self.u32()?;
                let mut part = self.u8()?;
                let old = match part {
                    b'K' | b'O' => {
                        let tuple = self.tuple()?;
                        let old = if part == b'K' {
                            Old::Key(tuple)
                        } else {
                            Old::Full(tuple)
                        };
                        part = self.u8()?;
                        Some(old)
                    }
                    _ => None,
                };
                if part != b'N' {
                    return Err(self.error("update without a new row"));
                }
                Message::Update {
                    relation,
                    old,
                    new: self.tuple()?,
                }
            }
            b'D' => {
                let relation = self.u32()?;
                let old = match self.u8()? {
                    b'K' => Old::Key(self.tuple()?),
                    b'O' => Old::Full(self.tuple()?),
                    _ => return Err(self.error("delete without an old row")),
                };
                Message::Delete { relation, old }
            }
            b'T' => {
                let count = self.u32()? as usize;
                let flags = self.u8()?;
                if flags & !3 != 0 {
                    return Err(self.error("unknown truncate flags"));
                }
                if count > (self.bytes.len() - self.offset) / 4 {
                    return Err(self.error("message too short"));
                }
                let relations = (0..count).map(|_| self.u32()).collect::<Result<_, _>>()?;
                Message::Truncate {
                    relations,
                    cascade: flags & 1 != 0,
                    restart_identity: flags & 2 != 0,
                }
            }
            b'M' => {
                let flags = self.u8()?;
                if flags > 1 {
                    return Err(self.error("unknown message flags"));
                }
                let lsn = self.lsn()?;
                let prefix = self.text()?;
                let length = self.u32()? as usize;
                Message::Logical {
                    transactional: flags == 1,
                    lsn,
                    prefix,
                    content: self.take(length)?,
                }
            }
            _ => {
                self.offset = 0;
                return Err(self.error("unknown message"));
            }
        })
    }

    fn relation(&mut self) -> Result<Relation<'a>, DecodeError> {
        let oid = self.u32()?;
        let namespace = self.text()?;
        let name = self.text()?;
        let replica_identity = match self.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err(self.error("unknown replica identity")),
        };
        let count = self.columns()?;
        let mut columns = Vec::with_capacity(count.into());
        for _ in 0..count {
            columns.push(RelationColumn {
                is_key: self.u8()? & 1 != 0,
                name: self.text()?,
                type_oid: self.u32()?,
                type_modifier: self.i32()?,
            });
        }
        Ok(Relation {
            oid,
            namespace,
            name,
            replica_identity,
            columns,
        })
    }

    fn columns(&mut self) -> Result<u16, DecodeError> {
        let count = self.u16()?;
        if count > COLUMNS_MAX {
            return Err(self.error("too many columns"));
        }
        Ok(count)
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.columns()?;
        let mut tuple = Vec::with_capacity(count.into());
        for _ in 0..count {
            let cell = match self.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => Cell::Text(self.value()?),
                b'b' => Cell::Binary(self.value()?),
                _ => return Err(self.error("unknown kind of column value")),
            };
            tuple.push(cell);
        }
        Ok(tuple)
    }

    fn value(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_names_table_or_kind() {
        for tag in *b"IUD" {
            let head = [tag, 0, 0, 1, 2, b'N', 0];
            assert_eq!(decode_head(&head), Ok(Head::Row { relation: 258 }));
            assert!(decode_head(&head[..4]).is_err());
        }
        assert_eq!(decode_head(b"M\x01rest"), Ok(Head::Logical { transactional: true }));
        assert_eq!(decode_head(b"M\x00rest"), Ok(Head::Logical { transactional: false }));
        assert!(decode_head(b"R1234").is_err() && decode_head(b"").is_err());
    }
}
