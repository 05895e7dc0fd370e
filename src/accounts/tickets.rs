//! Tickets: what lets a page open a stream by its address alone, because a browser's `EventSource` and `WebSocket` send
//! no header of the page's choice.
//!
//! A ticket is 256 random bits that are good for one stream, once, for [`LIFETIME`]: an address ends up in logs and
//! histories, and must be worth nothing there. Redis holds the SHA-256 of it only, with who got it. Taking it out is
//! one command, so that of many who show it at once one gets in. Whoever got it must still be who they were: a session
//! that was ended since, or a device that was revoked, is looked at anew.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::accounts::devices::TokenHash;
use crate::accounts::users::UserType;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::redis::store::Store;

/// How long a ticket is good.
pub const LIFETIME: Duration = Duration::from_secs(30);

/// Characters of a ticket.
const TICKET_CHARS: usize = 43;

/// A stream that a ticket can be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    /// Server-sent events of a web user.
    Web(Uuid),
    /// Server-sent events of a device.
    Mobile(String),
    /// The WebSocket of whoever opens it.
    Socket,
}

impl fmt::Display for Stream {
    /// As the path at which it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(user) => write!(f, "/sse/web/{user}"),
            Self::Mobile(device) => write!(f, "/sse/mobile/{device}"),
            Self::Socket => f.write_str("/ws"),
        }
    }
}

/// Who got a ticket, and for which stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Their tenant.
    pub tenant: Tenant,
    /// The stream.
    pub stream: Stream,
    /// They.
    pub holder: Holder,
}

/// Who got a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user with an access token.
    User {
        /// Their id.
        user_id: Uuid,
        /// What they are.
        user_type: UserType,
        /// The session of the access token.
        session: Uuid,
        /// The device that the session is bound to.
        device_id: Option<String>,
    },
    /// A device.
    Device {
        /// Its id.
        device_id: String,
        /// What it showed, beside the id.
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
        bound_to: Option<String>,
    },
    Device {
        device: String,
        token: Option<String>,
    },
}

/// Issues and takes tickets. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Tickets {
    store: Store,
}

impl Tickets {
    /// Tickets in this Redis.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// A new ticket.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn issue(&self, grant: &Grant) -> Result<String, Error> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(|error| Error::Internal(format!("no random bits: {error}")))?;
        let ticket = URL_SAFE_NO_PAD.encode(bits);
        let holder = match &grant.holder {
            Holder::User {
                user_id,
                user_type,
                session,
                device_id,
            } => StoredHolder::User {
                user: *user_id,
                user_type: *user_type,
                session: *session,
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
        let stored =
            serde_json::to_string(&stored).map_err(|error| Error::Internal(format!("a ticket is no JSON: {error}")))?;
        let mut pipe = redis::pipe();
        pipe.set_ex(self.key(&ticket), stored, LIFETIME.as_secs()).ignore();
        let () = self.store.query(&pipe).await?;
        Ok(ticket)
    }

    /// Takes a ticket that is shown for a stream; whatever comes of it, it is spent. `None` for one that is unknown, was
    /// used, has expired, or is another stream's.
    ///
    /// # Errors
    /// [`Error::Redis`].
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
    /// What was granted, if it was for this stream.
    fn grant(self, stream: &Stream) -> Option<Grant> {
        if self.stream != stream.to_string() {
            return None;
        }
        let holder = match self.holder {
            StoredHolder::User {
                user,
                user_type,
                session,
                bound_to,
            } => Holder::User {
                user_id: user,
                user_type,
                session,
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
