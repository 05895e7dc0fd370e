//! The streams of a tenant, and who reads which.

use std::sync::Arc;

use bytes::BytesMut;
use uuid::Uuid;

use super::keys::Keys;
use crate::core::resp;

/// Who is to see a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Audience {
    /// One user.
    User(Uuid),
    /// Every user of the tenant.
    Tenant,
}

/// A stream that belongs to a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every change of the tenant.
    Changes(Arc<str>),
    /// What all users of the tenant see.
    Shared(Arc<str>),
    /// What one user sees.
    Inbox(Arc<str>, Uuid),
}

impl Target {
    /// What an audience within a tenant reads.
    pub fn of(tenant: &Arc<str>, audience: Audience) -> Self {
        match audience {
            Audience::User(user) => Self::Inbox(tenant.clone(), user),
            Audience::Tenant => Self::Shared(tenant.clone()),
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> &Arc<str> {
        match self {
            Self::Changes(tenant) | Self::Shared(tenant) | Self::Inbox(tenant, _) => tenant,
        }
    }

    /// The Redis key.
    pub fn key(&self, keys: &Keys) -> String {
        match self {
            Self::Changes(tenant) => keys.changes(tenant),
            Self::Shared(tenant) => keys.shared(tenant),
            Self::Inbox(tenant, user) => keys.inbox(tenant, user.hyphenated().encode_lower(&mut Uuid::encode_buffer())),
        }
    }

    /// Appends the key as an argument, without an allocation: this happens for each entry.
    pub fn push_key(&self, keys: &Keys, out: &mut BytesMut) {
        let mut buffer = Uuid::encode_buffer();
        match self {
            Self::Inbox(tenant, user) => {
                let user = user.hyphenated().encode_lower(&mut buffer);
                resp::argument_of(out, &keys.inbox_parts(tenant, user));
            }
            Self::Changes(_) | Self::Shared(_) => resp::argument(out, self.key(keys).as_bytes()),
        }
    }

    /// As [`Keys::stopped`] names it.
    pub fn name(&self) -> String {
        match self {
            Self::Changes(tenant) => format!("changes {tenant}"),
            Self::Shared(tenant) => format!("shared {tenant}"),
            Self::Inbox(tenant, user) => format!("inbox {tenant} {user}"),
        }
    }

    /// Reads a [`Self::name`].
    pub fn parse(name: &str) -> Option<Self> {
        let mut words = name.split(' ');
        let (kind, tenant) = (words.next()?, words.next()?);
        match (kind, words.next()) {
            ("changes", None) => Some(Self::Changes(tenant.into())),
            ("shared", None) => Some(Self::Shared(tenant.into())),
            ("inbox", Some(user)) => Some(Self::Inbox(tenant.into(), user.parse().ok()?)),
            _ => None,
        }
    }

    /// Its name within the tenant: `changes`, `shared` or `inbox:<user id>`.
    pub fn stream(&self) -> String {
        match self {
            Self::Changes(_) => "changes".into(),
            Self::Shared(_) => "shared".into(),
            Self::Inbox(_, user) => format!("inbox:{user}"),
        }
    }

    /// Reads a [`Self::stream`] of a tenant.
    pub fn within(tenant: &Arc<str>, stream: &str) -> Option<Self> {
        match stream {
            "changes" => Some(Self::Changes(tenant.clone())),
            "shared" => Some(Self::Shared(tenant.clone())),
            _ => Some(Self::Inbox(
                tenant.clone(),
                stream.strip_prefix("inbox:")?.parse().ok()?,
            )),
        }
    }
}
