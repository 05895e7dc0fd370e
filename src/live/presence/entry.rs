//! The presence of a user, as Redis holds it.

use serde::Serialize;
use uuid::Uuid;

/// Redis did not answer, or not in time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It took longer than half a second.
    #[error("Redis does not answer")]
    Timeout,
    /// It answered with an error or could not be reached.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// What it holds is not what was written.
    #[error("presence in Redis is not as it was written")]
    Malformed,
}

impl Error {
    /// Whether Redis responded that a script failed.
    pub(super) fn is_of_script(&self) -> bool {
        matches!(self, Self::Redis(error) if error.code().is_some())
    }
}

/// Whether a user, device or session is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Here.
    Online,
    /// Connected, and has declared that it is not in use.
    Away,
    /// Not connected.
    Offline,
}

impl Status {
    /// The word in Redis and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Away => "away",
            Self::Offline => "offline",
        }
    }

    /// The status of this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Online, Self::Away, Self::Offline]
            .into_iter()
            .find(|status| status.as_str() == text)
    }

    /// Whether it is online or away.
    pub fn is_present(self) -> bool {
        self != Self::Offline
    }
}

/// Where a user is: what may have several streams and one status of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A device.
    Device(String),
    /// The pages of one web session.
    Session(Uuid),
}

impl Place {
    /// As Redis knows it. No device's id has an `@`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Device(id) => id.clone(),
            Self::Session(id) => format!("@{id}"),
        }
    }

    pub(super) fn device_of(name: &str) -> Option<&str> {
        (!name.starts_with('@')).then_some(name)
    }
}

/// How a user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The user.
    pub user: Uuid,
    /// The user's status, folded over devices and sessions.
    pub status: Status,
    /// When the last stream of who is offline was seen, ms since 1970.
    pub seen_ms: i64,
    /// The devices that are here, each with what it says of itself.
    pub devices: Vec<(String, Status)>,
}

impl Entry {
    pub(super) fn parse(user: &str, record: &str) -> Option<Self> {
        let mut words = record.split(' ');
        let (status, seen) = (words.next()?, words.next()?);
        let devices = words.filter_map(|word| {
            let mut parts = word.split('/');
            let (place, status) = (parts.next()?, parts.next()?);
            Some((Place::device_of(place)?.to_owned(), Status::parse(status)?))
        });
        Some(Self {
            user: Uuid::try_parse(user).ok()?,
            status: Status::parse(status)?,
            seen_ms: seen.parse().ok()?,
            devices: devices.collect(),
        })
    }
}
