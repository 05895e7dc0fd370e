//! The cursor: one opaque, authenticated text for batches, SSE ids and WebSocket.
//!
//! It is bound to the tenant and to the device (or the web user), so that a cursor copied to another phone is refused
//! instead of skipping rows there.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::core::position::{EpochId, StreamId, TermId};
use crate::redis::read_position::ReadPosition;

/// Incremented when the layout changes.
const VERSION: u8 = 4;

/// Cursors behind a complete snapshot that ignore resets.
const VERSION_COMPLETE: u8 = 3;

/// Cursors that ignore no resets. They are still written, since earlier versions accept them.
const VERSION_WITHOUT_RESETS: u8 = 2;

/// Cursors without a term; they are accepted as of the term of all earlier versions, but continue no snapshot of a table.
const VERSION_WITHOUT_TERM: u8 = 1;

/// The authentication code is truncated to 128 bits (RFC 2104, section 5).
const TAG_BYTES: usize = 16;

const STREAM_BYTES: usize = 1 + 1 + 8 + 8 + 8 + 8 + 8 + 8 + 8;

/// Without the id, which follows.
const PAGE_BYTES: usize = 1 + 8 + 8;

/// Longest id of a row after which a page can start.
pub const ID_BYTES_MAX: usize = 512;

/// Where the next page of a snapshot starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageStart {
    /// The kind of rows.
    pub phase: u8,
    /// The rule, where the rows are of a rule's table; else 0.
    pub rule: u64,
    /// After the row of this time, µs since 1970, where rows are ordered by time …
    pub created_at: i64,
    /// … and this id.
    pub id: String,
}

/// A reader's place, and its progress in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Where the stream continues, after the snapshot if there is one.
    pub place: ReadPosition,
    /// The snapshot's next page.
    pub page: Option<PageStart>,
}

/// The owner of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    Device(&'a str),
    User(Uuid),
}

/// A text that is not a cursor of this owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor: discard it, keep the outbox and start without a cursor")]
pub struct InvalidCursor;

/// Encodes and decodes cursors.
#[derive(Clone)]
pub struct CursorKey {
    mac: Hmac<Sha256>,
    /// Of previous secrets: accepted, never written.
    previous: Vec<Hmac<Sha256>>,
}

impl std::fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CursorKey")
    }
}

impl CursorKey {
    /// Derives the key from the secret of access tokens.
    pub fn derive(secret: &str) -> Self {
        // HMAC accepts keys of any length (RFC 2104, section 3), so this cannot fail.
        let mac = |key: &[u8]| {
            <Hmac<Sha256> as KeyInit>::new_from_slice(key)
                .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
        };
        let mut derivation = mac(secret.as_bytes());
        derivation.update(b"posduif cursor");
        Self {
            mac: mac(&derivation.finalize().into_bytes()),
            previous: Vec::new(),
        }
    }

    /// Also accepts cursors of a previous secret, so that a rotation of secrets does not cause snapshots.
    #[must_use]
    pub fn or_previous(mut self, secret: &str) -> Self {
        self.previous.push(Self::derive(secret).mac);
        self
    }

    fn tag(mac: &Hmac<Sha256>, tenant: &str, owner: Owner<'_>, payload: &[u8]) -> [u8; TAG_BYTES] {
        let mut mac = mac.clone();
        // Lengths separate the parts.
        mac.update(&(tenant.len() as u64).to_be_bytes());
        mac.update(tenant.as_bytes());
        match owner {
            Owner::Device(device) => {
                mac.update(b"d");
                mac.update(&(device.len() as u64).to_be_bytes());
                mac.update(device.as_bytes());
            }
            Owner::User(user) => {
                mac.update(b"u");
                mac.update(user.as_bytes());
            }
        }
        mac.update(payload);
        let full = mac.finalize().into_bytes();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&full[..TAG_BYTES]);
        tag
    }

    pub fn encode(&self, tenant: &str, owner: Owner<'_>, cursor: &Cursor) -> String {
        let mut bytes = Vec::with_capacity(STREAM_BYTES + TAG_BYTES);
        let (position, is_incomplete) = (cursor.place.position, cursor.place.is_incomplete);
        // Behind that position there is nothing to ignore.
        let resets_covered = cursor.place.resets_covered;
        let resets_covered = resets_covered.filter(|covered| is_incomplete || *covered > position);
        bytes.push(match resets_covered {
            Some(_) if is_incomplete => VERSION,
            Some(_) => VERSION_COMPLETE,
            None => VERSION_WITHOUT_RESETS,
        });
        bytes.push(u8::from(cursor.page.is_some()));
        bytes.extend_from_slice(&cursor.place.epoch.0.to_be_bytes());
        bytes.extend_from_slice(&cursor.place.generation.to_be_bytes());
        bytes.extend_from_slice(&cursor.place.term.0.to_be_bytes());
        for position in std::iter::once(cursor.place.position).chain(resets_covered) {
            bytes.extend_from_slice(&position.ms.to_be_bytes());
            bytes.extend_from_slice(&position.seq.to_be_bytes());
        }
        if let Some(page) = &cursor.page {
            bytes.push(page.phase);
            bytes.extend_from_slice(&page.rule.to_be_bytes());
            bytes.extend_from_slice(&page.created_at.to_be_bytes());
            bytes.extend_from_slice(page.id.as_bytes());
        }
        let tag = Self::tag(&self.mac, tenant, owner, &bytes);
        bytes.extend_from_slice(&tag);
        BASE64.encode(bytes)
    }

    /// # Errors
    /// For a malformed text, and for a cursor of another device, user or tenant.
    pub fn decode(&self, tenant: &str, owner: Owner<'_>, text: &str) -> Result<Cursor, InvalidCursor> {
        if text.len() > 2 * (STREAM_BYTES + PAGE_BYTES + ID_BYTES_MAX + TAG_BYTES) {
            return Err(InvalidCursor);
        }
        let bytes = BASE64.decode(text).map_err(|_| InvalidCursor)?;
        let length = bytes.len().checked_sub(TAG_BYTES).ok_or(InvalidCursor)?;
        let (payload, tag) = bytes.split_at(length);
        let is_ours = |mac| bool::from(Self::tag(mac, tenant, owner, payload).ct_eq(tag));
        if !std::iter::once(&self.mac).chain(&self.previous).any(is_ours) {
            return Err(InvalidCursor);
        }
        let mut fields = Fields(payload);
        let version = fields.byte()?;
        let (has_term, has_resets) = match version {
            VERSION | VERSION_COMPLETE => (true, true),
            VERSION_WITHOUT_RESETS => (true, false),
            VERSION_WITHOUT_TERM => (false, false),
            _ => return Err(InvalidCursor),
        };
        let has_page = match fields.byte()? {
            0 => false,
            1 => true,
            _ => return Err(InvalidCursor),
        };
        let place = ReadPosition {
            epoch: EpochId(fields.number()?),
            generation: fields.number()?.cast_signed(),
            term: if has_term {
                TermId(fields.number()?)
            } else {
                TermId::EARLIER_VERSIONS
            },
            position: fields.id()?,
            resets_covered: if has_resets { Some(fields.id()?) } else { None },
            is_incomplete: version == VERSION,
        };
        let page = if has_page {
            Some(PageStart {
                phase: fields.byte()?,
                rule: if has_term { fields.number()? } else { 0 },
                created_at: fields.number()?.cast_signed(),
                id: String::from_utf8(std::mem::take(&mut fields.0).to_vec()).map_err(|_| InvalidCursor)?,
            })
        } else {
            None
        };
        if !fields.0.is_empty() {
            return Err(InvalidCursor);
        }
        Ok(Cursor { place, page })
    }
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Result<u8, InvalidCursor> {
        let (byte, rest) = self.0.split_first().ok_or(InvalidCursor)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn id(&mut self) -> Result<StreamId, InvalidCursor> {
        Ok(StreamId {
            ms: self.number()?,
            seq: self.number()?,
        })
    }

    fn number(&mut self) -> Result<u64, InvalidCursor> {
        let (number, rest) = self.0.split_first_chunk().ok_or(InvalidCursor)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursors() -> impl Strategy<Value = Cursor> {
        let page = (any::<u8>(), any::<u64>(), any::<i64>(), ".{0,40}");
        let page = page.prop_map(|(phase, rule, created_at, id)| PageStart {
            phase,
            rule,
            created_at,
            id,
        });
        let id = || any::<(u64, u64)>().prop_map(|(ms, seq)| StreamId { ms, seq });
        let place = (
            any::<(u64, i64, u64)>(),
            id(),
            proptest::option::of((id(), any::<bool>())),
        );
        let place = place.prop_map(|((epoch, generation, term), position, covered)| ReadPosition {
            epoch: EpochId(epoch),
            generation,
            term: TermId(term),
            position,
            resets_covered: covered
                .filter(|(covered, is_incomplete)| *is_incomplete || *covered > position)
                .map(|(covered, _)| covered),
            is_incomplete: covered.is_some_and(|(_, is_incomplete)| is_incomplete),
        });
        (place, proptest::option::of(page)).prop_map(|(place, page)| Cursor { place, page })
    }

    /// As versions without terms wrote them.
    fn encode_without_term(key: &CursorKey, cursor: &Cursor) -> String {
        let place = cursor.place;
        let mut bytes = vec![VERSION_WITHOUT_TERM, u8::from(cursor.page.is_some())];
        for number in [
            place.epoch.0,
            place.generation.cast_unsigned(),
            place.position.ms,
            place.position.seq,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        if let Some(page) = &cursor.page {
            bytes.push(page.phase);
            bytes.extend_from_slice(&page.created_at.to_be_bytes());
            bytes.extend_from_slice(page.id.as_bytes());
        }
        let tag = CursorKey::tag(&key.mac, "demo", Owner::Device("d1"), &bytes);
        bytes.extend_from_slice(&tag);
        BASE64.encode(bytes)
    }

    proptest! {
        #[test]
        fn cursor_round_trips(cursor in cursors()) {
            let key = CursorKey::derive("secret");
            let text = key.encode("demo", Owner::Device("d1"), &cursor);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(key.decode("demo", Owner::Device("d1"), &text), Ok(cursor));
        }

        #[test]
        fn cursor_of_an_earlier_version_has_no_term(mut cursor in cursors()) {
            let key = CursorKey::derive("secret");
            let text = encode_without_term(&key, &cursor);
            cursor.place.term = TermId::EARLIER_VERSIONS;
            (cursor.place.resets_covered, cursor.place.is_incomplete) = (None, false);
            if let Some(page) = &mut cursor.page {
                page.rule = 0;
            }
            prop_assert_eq!(key.decode("demo", Owner::Device("d1"), &text), Ok(cursor));
        }

        #[test]
        fn cursor_behind_the_resets_is_one_of_the_earlier_version(mut cursor in cursors(), covered in any::<u64>()) {
            let key = CursorKey::derive("secret");
            (cursor.place.resets_covered, cursor.place.is_incomplete) = (None, false);
            let text = key.encode("demo", Owner::Device("d1"), &cursor);
            prop_assert_eq!(BASE64.decode(&text).unwrap()[0], VERSION_WITHOUT_RESETS);
            let mut behind = cursor;
            let covered = StreamId { ms: covered, seq: 0 }.min(behind.place.position);
            behind.place.resets_covered = Some(covered);
            prop_assert_eq!(key.encode("demo", Owner::Device("d1"), &behind), text);
        }

        #[test]
        fn cursor_is_bound_to_its_owner_and_bytes(cursor in cursors(), at in any::<prop::sample::Index>()) {
            let key = CursorKey::derive("secret");
            let text = key.encode("demo", Owner::Device("d1"), &cursor);
            prop_assert!(key.decode("demo", Owner::Device("d2"), &text).is_err());
            prop_assert!(key.decode("demo2", Owner::Device("d1"), &text).is_err());
            prop_assert!(key.decode("demo", Owner::User(Uuid::nil()), &text).is_err());
            prop_assert!(CursorKey::derive("other").decode("demo", Owner::Device("d1"), &text).is_err());
            let changed = CursorKey::derive("other").or_previous("secret");
            prop_assert!(changed.decode("demo", Owner::Device("d1"), &text).is_ok());
            let mut bytes = BASE64.decode(&text).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert!(key.decode("demo", Owner::Device("d1"), &BASE64.encode(bytes)).is_err());
        }

        #[test]
        fn decode_never_panics(text in ".{0,200}") {
            prop_assert!(CursorKey::derive("secret").decode("demo", Owner::Device("d1"), &text).is_err());
        }
    }
}
