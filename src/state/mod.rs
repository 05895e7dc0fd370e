//! Encrypted state: opaque bytes under a user's keys, which all devices of the user share.
//!
//! Devices encrypt; the server stores bytes and a nonce, and never reads or logs them. Each write of a key creates a new
//! version. Versions never repeat, not even after the key was deleted. A write has a [`Condition`], so that of two devices
//! that change the same version one succeeds and the other receives the conflict. The response to a write may be lost: the
//! same write by the same device, based on the version before its own, is recognized and applied once.
//!
//! One statement decides, the function `write_states()` of the tenant's schema; its rules are in
//! `migrations/tenant/0006_state.up.sql`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{Error, check_text};
use crate::postgres::{Database, sql};

/// Longest key in characters.
pub const KEY_CHARS_MAX: usize = 255;

/// Not allowed as a key: `/api/state/batch` is a route.
const RESERVED: &str = "batch";

/// Bytes that are serialized in base64 (RFC 4648, section 4) and never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Opaque(pub Vec<u8>);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Opaque {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

/// A state as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    pub key: String,
    /// The encrypted bytes.
    pub state: Opaque,
    pub nonce: Opaque,
    /// Increases with each write of the key.
    pub version: i64,
    /// The device that wrote this version; null for a page without a device and for SQL clients.
    pub device_id: Option<String>,
    /// Creation of the key, or recreation after its deletion.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl State {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            key: row.try_get("key")?,
            state: Opaque(row.try_get("state")?),
            nonce: Opaque(row.try_get("nonce")?),
            version: row.try_get("version")?,
            device_id: row.try_get("device_id")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

/// The owner of states.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub tenant: &'a Tenant,
    pub user: Uuid,
}

/// A user's state under a key.
///
/// # Errors
/// [`Error::NotFound`], also when it was deleted; [`Error::Invalid`] for an invalid key.
pub async fn get(database: &Database, owner: Owner<'_>, key: &str) -> Result<State, Error> {
    check_key(key)?;
    let statement = sql!("state/state_get", owner.tenant);
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&owner.user, Type::UUID), (&key, Type::TEXT)];
    let row = database.query_opt(&statement, &parameters).await?;
    State::from_row(&row.ok_or(Error::NotFound("state"))?)
}

/// A page of a user's states by the ids of their rows, after this one; each with its id.
pub async fn page(database: &Database, owner: Owner<'_>, after: Uuid, limit: i64) -> Result<Vec<(Uuid, State)>, Error> {
    let statement = sql!("state/state_list", owner.tenant);
    let rows = database
        .query(
            &statement,
            &[(&owner.user, Type::UUID), (&after, Type::UUID), (&limit, Type::INT8)],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, State::from_row(row)?)))
        .collect()
}

/// The condition of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key must not exist.
    Absent,
    /// The key must exist, at any version.
    Present,
    /// One of these must be the current version, which for a deleted key is that of the deletion. An empty list never holds.
    Version(Vec<i64>),
}

impl Condition {
    /// As the parameter of `write_states()`.
    fn to_base(&self) -> Option<String> {
        let versions: Vec<String> = match self {
            Self::Absent => vec!["0".into()],
            Self::Present => return None,
            Self::Version(versions) => versions.iter().map(i64::to_string).collect(),
        };
        Some(format!("{{{}}}", versions.join(",")))
    }
}

/// A write of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    /// The encrypted bytes and their nonce; `None` deletes the key.
    pub value: Option<(Opaque, Opaque)>,
    pub condition: Condition,
}

/// A key after a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    pub key: String,
    pub version: i64,
    /// The device that wrote that version.
    pub device_id: Option<String>,
    /// Creation of the key, or recreation after its deletion.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Whether the same write was applied before.
    #[serde(skip)]
    pub is_duplicate: bool,
}

impl Written {
    /// Whether this version is the first one of the key, or the first one since it was deleted.
    pub fn is_first(&self) -> bool {
        self.created_at == self.updated_at
    }
}

/// A write whose condition does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its index among the writes.
    pub index: usize,
    pub key: String,
    /// The current version of the key, also when it is deleted; null when it never existed.
    pub version: Option<i64>,
    /// Whether the key does not exist, or was deleted.
    pub deleted: bool,
    /// Whether the key's absence is the only reason.
    #[serde(skip)]
    pub is_absent: bool,
}

/// The outcome of writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All are applied, now or before.
    Done(Vec<Written>),
    /// None is applied: the conditions of these do not hold.
    Refused(Vec<Refused>),
}

/// Applies writes of a user's states, all or none, by a device or a page without one.
///
/// # Errors
/// [`Error::Invalid`] for an invalid key, [`Error::TooLarge`], [`Error::Conflict`] when the user would have too many keys,
/// [`Error::Unauthorized`] for a disabled user or a revoked device.
pub async fn write(
    database: &Database,
    owner: Owner<'_>,
    device: Option<&str>,
    settings: &config::State,
    writes: Vec<Write>,
) -> Result<Outcome, Error> {
    for write in &writes {
        check(write, settings)?;
    }
    let bases: Vec<Option<String>> = writes.iter().map(|write| write.condition.to_base()).collect();
    let (mut keys, mut states, mut nonces) = (Vec::new(), Vec::new(), Vec::new());
    for write in writes {
        keys.push(write.key);
        let (state, nonce) = write.value.map(|(state, nonce)| (state.0, nonce.0)).unzip();
        states.push(state);
        nonces.push(nonce);
    }
    let keys_max = i64::try_from(settings.keys_max).unwrap_or(i64::MAX);
    let rows = database
        .query(
            &sql!("state/state_write", owner.tenant),
            &[
                (&owner.user, Type::UUID),
                (&device, Type::TEXT),
                (&keys, Type::TEXT_ARRAY),
                (&states, Type::BYTEA_ARRAY),
                (&nonces, Type::BYTEA_ARRAY),
                (&bases, Type::TEXT_ARRAY),
                (&keys_max, Type::INT8),
            ],
        )
        .await?;
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    let mut is_full = false;
    for (index, (row, key)) in rows.iter().zip(keys).enumerate() {
        let outcome: &str = row.try_get("outcome")?;
        match outcome {
            "inactive" => return Err(Error::Unauthorized("this user is disabled or deleted")),
            "revoked" => return Err(Error::Unauthorized("this device is revoked")),
            "full" => is_full = true,
            "absent" | "stale" => refused.push(Refused {
                index,
                key,
                version: row.try_get("version")?,
                deleted: row.try_get("is_deleted")?,
                is_absent: outcome == "absent",
            }),
            _ if refused.is_empty() => {
                // After the refusal of another item the row may not exist.
                if let Some(version) = row.try_get("version")? {
                    done.push(Written {
                        key,
                        version,
                        device_id: row.try_get("device_id")?,
                        created_at: row.try_get("created_at")?,
                        updated_at: row.try_get("updated_at")?,
                        is_duplicate: outcome == "duplicate",
                    });
                }
            }
            _ => {}
        }
    }
    if is_full {
        return Err(Error::Conflict(format!(
            "this user would have more than {keys_max} keys: delete some"
        )));
    }
    Ok(if refused.is_empty() {
        Outcome::Done(done)
    } else {
        Outcome::Refused(refused)
    })
}

/// Checks a key.
pub fn check_key(key: &str) -> Result<(), Error> {
    check_text("key", key, KEY_CHARS_MAX)?;
    if key == RESERVED {
        return Err(Error::invalid(
            "key",
            format!("must not be {RESERVED:?}, which is a route"),
        ));
    }
    Ok(())
}

fn check(write: &Write, settings: &config::State) -> Result<(), Error> {
    check_key(&write.key)?;
    let Some((state, nonce)) = &write.value else {
        return Ok(());
    };
    if nonce.0.is_empty() {
        return Err(Error::invalid("nonce", "must not be empty"));
    }
    for (field, bytes, bytes_max) in [
        ("state", state, settings.bytes_max),
        ("nonce", nonce, settings.nonce_bytes_max),
    ] {
        if bytes.0.len() > bytes_max {
            return Err(Error::TooLarge { field, bytes_max });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: &str, state: usize, nonce: usize) -> Write {
        Write {
            key: key.into(),
            value: Some((Opaque(vec![0; state]), Opaque(vec![0; nonce]))),
            condition: Condition::Absent,
        }
    }

    #[test]
    fn write_must_have_a_valid_key_and_bounded_sizes() {
        let settings = config::State {
            bytes_max: 4,
            nonce_bytes_max: 2,
            ..config::State::default()
        };
        let check = |write: Write| check(&write, &settings).map_err(|error| error.to_string());
        assert!(check(write("ä", 4, 2)).is_ok());
        assert!(check(write(&"ü".repeat(255), 0, 1)).is_ok());
        for bad in [
            write("", 1, 1),
            write("a\0", 1, 1),
            write(&"x".repeat(256), 1, 1),
            write("batch", 1, 1),
            write("a", 5, 1),
            write("a", 1, 3),
            write("a", 1, 0),
        ] {
            assert!(check(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn condition_is_passed_to_postgres_as_an_array() {
        assert_eq!(Condition::Absent.to_base().as_deref(), Some("{0}"));
        assert_eq!(Condition::Present.to_base(), None);
        assert_eq!(Condition::Version(vec![1, 22]).to_base().as_deref(), Some("{1,22}"));
        assert_eq!(Condition::Version(vec![]).to_base().as_deref(), Some("{}"));
    }

    #[test]
    fn opaque_bytes_are_not_printed() {
        let shown = format!("{:?}", Opaque(b"secret".to_vec()));
        assert_eq!(shown, "6 bytes");
    }
}
