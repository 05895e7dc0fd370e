//! The streams of a tenant to which changes are routed, and who reads which. The streams `push` and `quarantine` have files
//! of their own.

use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use uuid::Uuid;

use super::group::GroupId;
use super::keys::Keys;
use crate::config::group::USER;
use crate::config::rule::TENANT;
use crate::core::resp;

/// Who is to see a change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audience {
    /// One user.
    User(Uuid),
    /// The members of a group.
    Group(GroupId),
    /// Every user of the tenant.
    Tenant,
}

/// As clients read it beside a row: `user:<id>`, `<group>:<id>` or `tenant`.
impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "{USER}:{user}"),
            Self::Group(group) => group.fmt(f),
            Self::Tenant => f.write_str(TENANT),
        }
    }
}

/// A stream that belongs to a tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Every change of the tenant.
    Changes(Arc<str>),
    /// What all users of the tenant see.
    Shared(Arc<str>),
    /// What the members of a group see.
    Group(Arc<str>, GroupId),
    /// What one user sees.
    Inbox(Arc<str>, Uuid),
}

impl Target {
    /// What an audience within a tenant reads.
    pub fn of(tenant: &Arc<str>, audience: Audience) -> Self {
        match audience {
            Audience::User(user) => Self::Inbox(tenant.clone(), user),
            Audience::Group(group) => Self::Group(tenant.clone(), group),
            Audience::Tenant => Self::Shared(tenant.clone()),
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> &Arc<str> {
        match self {
            Self::Changes(tenant) | Self::Shared(tenant) | Self::Group(tenant, _) | Self::Inbox(tenant, _) => tenant,
        }
    }

    /// The Redis key.
    pub fn key(&self, keys: &Keys) -> String {
        match self {
            Self::Changes(tenant) => keys.changes(tenant),
            Self::Shared(tenant) => keys.shared(tenant),
            Self::Group(tenant, group) => keys.group(tenant, group),
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
            Self::Group(tenant, group) => resp::argument_of(out, &keys.group_parts(tenant, group)),
            Self::Changes(_) | Self::Shared(_) => resp::argument(out, self.key(keys).as_bytes()),
        }
    }

    /// As [`Keys::stopped`] names it.
    pub fn name(&self) -> String {
        match self {
            Self::Changes(tenant) => format!("changes {tenant}"),
            Self::Shared(tenant) => format!("shared {tenant}"),
            Self::Group(tenant, group) => format!("group {tenant} {group}"),
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
            ("group", Some(group)) => Some(Self::Group(tenant.into(), group.parse().ok()?)),
            ("inbox", Some(user)) => Some(Self::Inbox(tenant.into(), user.parse().ok()?)),
            _ => None,
        }
    }

    /// Its name within the tenant: `changes`, `shared`, `group:<group>:<id>` or `inbox:<user id>`.
    pub fn stream(&self) -> String {
        match self {
            Self::Changes(_) => "changes".into(),
            Self::Shared(_) => "shared".into(),
            Self::Group(_, group) => format!("group:{group}"),
            Self::Inbox(_, user) => format!("inbox:{user}"),
        }
    }

    /// Reads a [`Self::stream`] of a tenant.
    pub fn within(tenant: &Arc<str>, stream: &str) -> Option<Self> {
        match stream {
            "changes" => Some(Self::Changes(tenant.clone())),
            "shared" => Some(Self::Shared(tenant.clone())),
            _ => match stream.strip_prefix("group:") {
                Some(group) => Some(Self::Group(tenant.clone(), group.parse().ok()?)),
                None => Some(Self::Inbox(
                    tenant.clone(),
                    stream.strip_prefix("inbox:")?.parse().ok()?,
                )),
            },
        }
    }
}
