//! Control messages: logical decoding messages by which commands reach the engine at a position in the WAL.
//!
//! The message's prefix names the command, its content are words separated by spaces, the tenant first. Contents that
//! depend on rows (a tenant's next generation, the ids of all users) are assembled by the SQL statement that reads these.

use std::sync::Arc;

use uuid::Uuid;

use super::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::{ACTIVE, PAUSED, is_valid_name, state_name};

/// Prefix of [`Command::CreateTenant`]: `<tenant> [<generation> [<state>]]`.
pub const TENANT_PREFIX: &str = "posduif.tenant";

/// Prefix of [`Command::SetState`]: `<tenant> <state>`.
pub const STATE_PREFIX: &str = "posduif.state";

/// Prefix of [`Command::DropTenant`]: `<tenant>`.
pub const DROPPED_PREFIX: &str = "posduif.dropped";

/// Prefix of [`Command::CreateInbox`]: `<tenant> <user id>`.
const INBOX_PREFIX: &str = "posduif.inbox";

/// Prefix of [`Command::RecreateStream`]: `<tenant> <stream>`, the stream as [`Target::stream`] names it; with a third
/// word `gone`, of [`Command::RemoveStream`].
pub const STREAM_PREFIX: &str = "posduif.stream";

/// Prefix of [`Command::Trim`]: `<tenant> <stream> <first ID that is kept>`.
const TRIM_PREFIX: &str = "posduif.trim";

/// Prefix of [`Command::Retry`]: `<tenant>`.
const RETRY_PREFIX: &str = "posduif.retry";

/// Prefix of [`Command::ReportTable`]: `<tenant> <cause>`.
const TABLE_PREFIX: &str = "posduif.table";

/// The third word of [`Command::RemoveStream`].
const GONE: &str = "gone";

/// Trimming a stream up to but not including an ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trim {
    pub target: Target,
    /// First entry that is kept.
    pub min_id: StreamId,
}

/// A command to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Creates a tenant's streams, or recreates them with the next generation.
    CreateTenant {
        tenant: Arc<str>,
        generation: i64,
        is_paused: bool,
    },
    /// Pauses or resumes a tenant's delivery.
    SetState {
        tenant: Arc<str>,
        is_paused: bool,
    },
    /// Ends a tenant's streams.
    DropTenant {
        tenant: Arc<str>,
    },
    /// Creates an inbox that is missing.
    CreateInbox {
        tenant: Arc<str>,
        user: Uuid,
    },
    /// Removes a stream and creates it again.
    RecreateStream(Target),
    /// Removes a stream.
    RemoveStream(Target),
    Trim(Trim),
    /// The rows of a tenant that follow in the transaction are delivered as if they were new.
    Retry {
        tenant: Arc<str>,
    },
    /// Tables of a tenant changed outside of the log.
    ReportTable {
        tenant: Arc<str>,
        /// The tables and what happened.
        cause: String,
    },
}

impl Command {
    /// Prefix and content of the message.
    pub fn encode(&self) -> (&'static str, String) {
        let stream = |target: &Target| format!("{} {}", target.tenant(), target.stream());
        match self {
            Self::CreateTenant {
                tenant,
                generation,
                is_paused,
            } => (
                TENANT_PREFIX,
                format!("{tenant} {generation} {}", state_name(*is_paused)),
            ),
            Self::SetState { tenant, is_paused } => (STATE_PREFIX, format!("{tenant} {}", state_name(*is_paused))),
            Self::DropTenant { tenant } => (DROPPED_PREFIX, tenant.to_string()),
            Self::CreateInbox { tenant, user } => (INBOX_PREFIX, format!("{tenant} {user}")),
            Self::RecreateStream(target) => (STREAM_PREFIX, stream(target)),
            Self::RemoveStream(target) => (STREAM_PREFIX, format!("{} {GONE}", stream(target))),
            Self::Trim(trim) => (TRIM_PREFIX, format!("{} {}", stream(&trim.target), trim.min_id)),
            Self::Retry { tenant } => (RETRY_PREFIX, tenant.to_string()),
            Self::ReportTable { tenant, cause } => (TABLE_PREFIX, format!("{tenant} {cause}")),
        }
    }

    /// Reads a message; `None` when it is no command, or a malformed one. Any client of Postgres can write messages, so
    /// the tenant need not exist.
    pub fn parse(prefix: &str, content: &[u8]) -> Option<Self> {
        if !prefix.starts_with("posduif.") {
            return None;
        }
        let content = std::str::from_utf8(content).ok()?;
        let mut words = content.split(' ');
        let tenant: Arc<str> = words.next().filter(|name| is_valid_name(name))?.into();
        match prefix {
            TENANT_PREFIX => Some(Self::CreateTenant {
                tenant,
                generation: words.next().map_or(Ok(1), str::parse).ok()?,
                is_paused: words.next().unwrap_or(ACTIVE) == PAUSED,
            }),
            STATE_PREFIX => Some(Self::SetState {
                tenant,
                is_paused: words.next().unwrap_or(ACTIVE) == PAUSED,
            }),
            DROPPED_PREFIX => Some(Self::DropTenant { tenant }),
            INBOX_PREFIX => Some(Self::CreateInbox {
                tenant,
                user: words.next()?.parse().ok()?,
            }),
            STREAM_PREFIX => {
                let target = Target::within(&tenant, words.next()?)?;
                Some(if words.next() == Some(GONE) {
                    Self::RemoveStream(target)
                } else {
                    Self::RecreateStream(target)
                })
            }
            TRIM_PREFIX => Some(Self::Trim(Trim {
                target: Target::within(&tenant, words.next()?)?,
                min_id: words.next()?.parse().ok()?,
            })),
            RETRY_PREFIX => Some(Self::Retry { tenant }),
            TABLE_PREFIX => Some(Self::ReportTable {
                tenant,
                cause: content.split_once(' ')?.1.to_owned(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commands() -> impl Strategy<Value = Command> {
        let tenant = || "[a-z][a-z0-9_]{0,20}".prop_map(Arc::<str>::from);
        let target = || {
            (tenant(), 0..3, any::<u128>()).prop_map(|(tenant, kind, user)| match kind {
                0 => Target::Changes(tenant),
                1 => Target::Shared(tenant),
                _ => Target::Inbox(tenant, Uuid::from_u128(user)),
            })
        };
        prop_oneof![
            (tenant(), any::<i64>(), any::<bool>()).prop_map(|(tenant, generation, is_paused)| Command::CreateTenant {
                tenant,
                generation,
                is_paused
            }),
            (tenant(), any::<bool>()).prop_map(|(tenant, is_paused)| Command::SetState { tenant, is_paused }),
            tenant().prop_map(|tenant| Command::DropTenant { tenant }),
            (tenant(), any::<u128>()).prop_map(|(tenant, user)| Command::CreateInbox {
                tenant,
                user: Uuid::from_u128(user)
            }),
            target().prop_map(Command::RecreateStream),
            target().prop_map(Command::RemoveStream),
            (target(), any::<(u64, u64)>()).prop_map(|(target, (ms, seq))| Command::Trim(Trim {
                target,
                min_id: StreamId { ms, seq }
            })),
            tenant().prop_map(|tenant| Command::Retry { tenant }),
            (tenant(), any::<String>()).prop_map(|(tenant, cause)| Command::ReportTable { tenant, cause }),
        ]
    }

    proptest! {
        #[test]
        fn command_reads_as_written(command in commands()) {
            let (prefix, content) = command.encode();
            prop_assert_eq!(Command::parse(prefix, content.as_bytes()), Some(command));
        }

        #[test]
        fn no_message_makes_the_parser_panic(prefix in "posduif\\.[a-z]{0,8}", content in any::<Vec<u8>>()) {
            let _ = Command::parse(&prefix, &content);
        }
    }

    #[test]
    fn contents_assembled_by_sql_are_commands() {
        let user = Uuid::from_u128(7);
        let tenant: Arc<str> = "acme".into();
        let created = |generation| Command::CreateTenant {
            tenant: tenant.clone(),
            generation,
            is_paused: false,
        };
        assert_eq!(Command::parse(TENANT_PREFIX, b"acme"), Some(created(1)));
        assert_eq!(Command::parse(TENANT_PREFIX, b"acme 3 active"), Some(created(3)));
        assert_eq!(
            Command::parse(STREAM_PREFIX, format!("acme inbox:{user}").as_bytes()),
            Some(Command::RecreateStream(Target::Inbox(tenant.clone(), user)))
        );
        assert_eq!(Command::parse(STREAM_PREFIX, b"acme inbox:me"), None);
        assert_eq!(Command::parse("posduif:order", b"acme"), None);
    }
}
