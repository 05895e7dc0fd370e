//! Tickets: single-use credentials in the URL of a stream, because a browser's `EventSource` and `WebSocket` send no custom
//! headers.
//!
//! A ticket is 256 random bits, valid for one stream, once, within [`LIFETIME`]: a URL appears in logs and histories and must
//! be worthless there. Redis holds only its SHA-256, with its holder. One command removes it, so that of concurrent
//! requests with the same ticket one is admitted. The holder is checked again when the ticket is used: a session that ended
//! or a device that was revoked meanwhile is refused.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::accounts::devices::TokenHash;
use crate::accounts::random::random;
use crate::accounts::standing::StampProof;
use crate::accounts::users::UserType;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::redis::store::Store;

/// Validity of a ticket.
pub const LIFETIME: Duration = Duration::from_secs(30);

/// Characters of a ticket.
const TICKET_CHARS: usize = 43;

/// The stream of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    /// Server-sent events of a web user.
    Web(Uuid),
    /// Server-sent events of a device.
    Mobile(String),
    /// The holder's WebSocket.
    Socket,
}

impl fmt::Display for Stream {
    /// The stream's path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(user) => write!(f, "/sse/web/{user}"),
            Self::Mobile(device) => write!(f, "/sse/mobile/{device}"),
            Self::Socket => f.write_str("/ws"),
        }
    }
}

/// The stream and the holder of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub tenant: Tenant,
    pub stream: Stream,
    pub holder: Holder,
}

/// The holder of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user with an access token.
    User {
        user_id: Uuid,
        user_type: UserType,
        /// The session of the access token.
        session: Uuid,
        proof: StampProof,
        /// When the stream ends, in seconds since 1970, unless it ends with the session.
        expires_at: Option<i64>,
        /// The device that the session is bound to.
        device_id: Option<String>,
    },
    /// A device.
    Device {
        device_id: String,
        /// The hash of the presented token.
        token: Option<TokenHash>,
    },
}

/// A [`Grant`] as Redis holds it.
#[derive(Serialize, Deserialize)]
struct Stored {
    tenant: String,
    stream: String,
    #[serde(flatten)]
    holder: StoredHolder,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredHolder {
    User {
        user: Uuid,
        user_type: UserType,
        session: Uuid,
        #[serde(flatten)]
        proof: StoredProof,
        expires_at: Option<i64>,
        bound_to: Option<String>,
    },
    Device {
        device: String,
        token: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredProof {
    Stamp(Uuid),
    IssuedAt(i64),
}

/// Issues and redeems tickets. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Tickets {
    store: Store,
}

impl Tickets {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// A new ticket.
    pub async fn issue(&self, grant: &Grant) -> Result<String, Error> {
        let ticket = URL_SAFE_NO_PAD.encode(random::<32>()?);
        let holder = match &grant.holder {
            Holder::User {
                user_id,
                user_type,
                session,
                proof,
                expires_at,
                device_id,
            } => StoredHolder::User {
                user: *user_id,
                user_type: *user_type,
                session: *session,
                proof: match proof {
                    StampProof::Stamp(stamp) => StoredProof::Stamp(*stamp),
                    StampProof::IssuedAt(seconds) => StoredProof::IssuedAt(*seconds),
                },
                expires_at: *expires_at,
                bound_to: device_id.clone(),
            },
            Holder::Device { device_id, token } => StoredHolder::Device {
                device: device_id.clone(),
                token: token.map(TokenHash::text),
            },
        };
        let stored = Stored {
            tenant: grant.tenant.name.clone(),
            stream: grant.stream.to_string(),
            holder,
        };
        let stored = serde_json::to_string(&stored)
            .map_err(|error| Error::Internal(format!("serializing a ticket failed: {error}")))?;
        let mut pipe = redis::pipe();
        pipe.set_ex(self.key(&ticket), stored, LIFETIME.as_secs()).ignore();
        let () = self.store.query(&pipe).await?;
        Ok(ticket)
    }

    /// Redeems a ticket for a stream, which invalidates it in any case. `None` for a ticket that is unknown, used, expired, or
    /// of another stream.
    pub async fn take(&self, ticket: &str, stream: &Stream) -> Result<Option<Grant>, Error> {
        if ticket.len() != TICKET_CHARS {
            return Ok(None);
        }
        let mut pipe = redis::pipe();
        pipe.get_del(self.key(ticket));
        let (stored,): (Option<String>,) = self.store.query(&pipe).await?;
        let stored: Option<Stored> = stored.and_then(|stored| serde_json::from_str(&stored).ok());
        Ok(stored.and_then(|stored| stored.grant(stream)))
    }

    fn key(&self, ticket: &str) -> String {
        let digest = Sha256::new()
            .chain_update(b"posduif ticket\0")
            .chain_update(ticket)
            .finalize();
        self.store.keys().ticket(&URL_SAFE_NO_PAD.encode(digest))
    }
}

impl Stored {
    /// The grant, if it is for this stream.
    fn grant(self, stream: &Stream) -> Option<Grant> {
        if self.stream != stream.to_string() {
            return None;
        }
        let holder = match self.holder {
            StoredHolder::User {
                user,
                user_type,
                session,
                proof,
                expires_at,
                bound_to,
            } => Holder::User {
                user_id: user,
                user_type,
                session,
                proof: match proof {
                    StoredProof::Stamp(stamp) => StampProof::Stamp(stamp),
                    StoredProof::IssuedAt(seconds) => StampProof::IssuedAt(seconds),
                },
                expires_at,
                device_id: bound_to,
            },
            StoredHolder::Device { device, token } => Holder::Device {
                device_id: device,
                token: match token {
                    Some(text) => Some(TokenHash::parse(&text)?),
                    None => None,
                },
            },
        };
        Some(Grant {
            tenant: Tenant::named(&self.tenant)?,
            stream: stream.clone(),
            holder,
        })
    }
}
