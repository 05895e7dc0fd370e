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

use crate::core::position::{EpochId, StreamId};
use crate::redis::store::ReadPosition;

/// Incremented when the layout changes; older cursors are refused and their devices get a snapshot.
const VERSION: u8 = 1;

/// The authentication code is truncated to 128 bits (RFC 2104, section 5).
const TAG_BYTES: usize = 16;

const STREAM_BYTES: usize = 1 + 1 + 8 + 8 + 8 + 8;

/// Without the id, which follows.
const PAGE_BYTES: usize = 1 + 8;

/// Longest id of a row after which a page can start.
pub const ID_BYTES_MAX: usize = 512;

/// Where the next page of a snapshot starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageStart {
    /// The kind of rows.
    pub phase: u8,
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
        bytes.push(VERSION);
        bytes.push(u8::from(cursor.page.is_some()));
        bytes.extend_from_slice(&cursor.place.epoch.0.to_be_bytes());
        bytes.extend_from_slice(&cursor.place.generation.to_be_bytes());
        bytes.extend_from_slice(&cursor.place.position.ms.to_be_bytes());
        bytes.extend_from_slice(&cursor.place.position.seq.to_be_bytes());
        if let Some(page) = &cursor.page {
            bytes.push(page.phase);
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
        let has_page = match (payload.first(), payload.get(1), length) {
            (Some(&VERSION), Some(0), STREAM_BYTES) => false,
            (Some(&VERSION), Some(1), length) if length >= STREAM_BYTES + PAGE_BYTES => true,
            _ => return Err(InvalidCursor),
        };
        let number = |offset: usize| -> Result<u64, InvalidCursor> {
            let bytes = payload.get(offset..offset + 8).ok_or(InvalidCursor)?;
            bytes.try_into().map(u64::from_be_bytes).map_err(|_| InvalidCursor)
        };
        let page = if has_page {
            Some(PageStart {
                phase: payload[STREAM_BYTES],
                created_at: number(STREAM_BYTES + 1)?.cast_signed(),
                id: String::from_utf8(payload[STREAM_BYTES + PAGE_BYTES..].to_vec()).map_err(|_| InvalidCursor)?,
            })
        } else {
            None
        };
        Ok(Cursor {
            place: ReadPosition {
                epoch: EpochId(number(2)?),
                generation: number(10)?.cast_signed(),
                position: StreamId {
                    ms: number(18)?,
                    seq: number(26)?,
                },
            },
            page,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursors() -> impl Strategy<Value = Cursor> {
        let page = proptest::option::of((any::<u8>(), any::<i64>(), ".{0,40}"));
        (any::<u64>(), any::<i64>(), any::<u64>(), any::<u64>(), page).prop_map(|(epoch, generation, ms, seq, page)| {
            Cursor {
                place: ReadPosition {
                    epoch: EpochId(epoch),
                    generation,
                    position: StreamId { ms, seq },
                },
                page: page.map(|(phase, created_at, id)| PageStart { phase, created_at, id }),
            }
        })
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
