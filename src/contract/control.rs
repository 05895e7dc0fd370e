//! Commands to the engine: rows of `posduif.commands`, which reach it at a position in the WAL.
//!
//! The row names the command, its arguments are words separated by spaces, the tenant first. Arguments that depend on rows
//! (a tenant's next generation, the ids of all users) are assembled by the SQL statement that reads these.

use std::sync::Arc;

use uuid::Uuid;

use super::group::GroupId;
use super::stream_name::Target;
use crate::core::lane;
use crate::core::position::StreamId;
use crate::core::tenant::{ACTIVE, PAUSED, is_valid_name, state_name};

/// The table in the schema `posduif`.
pub const TABLE: &str = "commands";

/// Name of [`Command::CreateTenant`]: `<tenant> [<generation> [<state> [<lane>]]]`.
pub const CREATE_TENANT: &str = "create_tenant";

/// Name of [`Command::SetState`]: `<tenant> <state>`.
pub const SET_STATE: &str = "set_state";

/// Name of [`Command::DropTenant`]: `<tenant>`.
pub const DROP_TENANT: &str = "drop_tenant";

/// Name of [`Command::CreateInbox`]: `<tenant> <user id>`.
const CREATE_INBOX: &str = "create_inbox";

/// Name of [`Command::CreateGroup`]: `<tenant> <group>:<id>`.
const CREATE_GROUP: &str = "create_group";

/// Name of [`Command::RecreateStream`]: `<tenant> <stream>`, the stream as [`Target::stream`] names it.
pub const RECREATE_STREAM: &str = "recreate_stream";

/// Name of [`Command::RemoveStream`]: `<tenant> <stream>`.
const REMOVE_STREAM: &str = "remove_stream";

/// Name of [`Command::Trim`]: `<tenant> <stream> <first ID that is kept>`.
const TRIM: &str = "trim";

/// Name of [`Command::Retry`]: `<tenant>`.
const RETRY: &str = "retry";

/// Name of [`Command::ReportTable`]: `<tenant> <cause>`.
const REPORT_TABLE: &str = "report_table";

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
        /// The lane that has them; any other one removes what it has of the tenant.
        lane: Arc<str>,
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
    /// Creates the stream of a group that is missing.
    CreateGroup {
        tenant: Arc<str>,
        group: GroupId,
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
    /// Name and arguments.
    pub fn encode(&self) -> (&'static str, String) {
        let stream = |target: &Target| format!("{} {}", target.tenant(), target.stream());
        match self {
            Self::CreateTenant {
                tenant,
                generation,
                is_paused,
                lane,
            } => (
                CREATE_TENANT,
                format!("{tenant} {generation} {} {lane}", state_name(*is_paused)),
            ),
            Self::SetState { tenant, is_paused } => (SET_STATE, format!("{tenant} {}", state_name(*is_paused))),
            Self::DropTenant { tenant } => (DROP_TENANT, tenant.to_string()),
            Self::CreateInbox { tenant, user } => (CREATE_INBOX, format!("{tenant} {user}")),
            Self::CreateGroup { tenant, group } => (CREATE_GROUP, format!("{tenant} {group}")),
            Self::RecreateStream(target) => (RECREATE_STREAM, stream(target)),
            Self::RemoveStream(target) => (REMOVE_STREAM, stream(target)),
            Self::Trim(trim) => (TRIM, format!("{} {}", stream(&trim.target), trim.min_id)),
            Self::Retry { tenant } => (RETRY, tenant.to_string()),
            Self::ReportTable { tenant, cause } => (REPORT_TABLE, format!("{tenant} {cause}")),
        }
    }

    /// Reads a row; `None` when it is malformed, or a command of another release. The tenant need not exist.
    pub fn parse(name: &str, arguments: &str) -> Option<Self> {
        let mut words = arguments.split(' ');
        let tenant: Arc<str> = words.next().filter(|name| is_valid_name(name))?.into();
        match name {
            CREATE_TENANT => Some(Self::CreateTenant {
                tenant,
                generation: words.next().map_or(Ok(1), str::parse).ok()?,
                is_paused: words.next().unwrap_or(ACTIVE) == PAUSED,
                lane: words.next().unwrap_or(lane::MAIN).into(),
            }),
            SET_STATE => Some(Self::SetState {
                tenant,
                is_paused: words.next().unwrap_or(ACTIVE) == PAUSED,
            }),
            DROP_TENANT => Some(Self::DropTenant { tenant }),
            CREATE_INBOX => Some(Self::CreateInbox {
                tenant,
                user: words.next()?.parse().ok()?,
            }),
            CREATE_GROUP => Some(Self::CreateGroup {
                tenant,
                group: words.next()?.parse().ok()?,
            }),
            RECREATE_STREAM => Target::within(&tenant, words.next()?).map(Self::RecreateStream),
            REMOVE_STREAM => Target::within(&tenant, words.next()?).map(Self::RemoveStream),
            TRIM => Some(Self::Trim(Trim {
                target: Target::within(&tenant, words.next()?)?,
                min_id: words.next()?.parse().ok()?,
            })),
            RETRY => Some(Self::Retry { tenant }),
            REPORT_TABLE => Some(Self::ReportTable {
                tenant,
                cause: arguments.split_once(' ')?.1.to_owned(),
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
                2 => Target::Group(tenant, "list:a:42".parse().unwrap()),
                _ => Target::Inbox(tenant, Uuid::from_u128(user)),
            })
        };
        prop_oneof![
            (tenant(), any::<i64>(), any::<bool>(), tenant()).prop_map(|(tenant, generation, is_paused, lane)| {
                Command::CreateTenant {
                    tenant,
                    generation,
                    is_paused,
                    lane,
                }
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
            let (name, arguments) = command.encode();
            prop_assert_eq!(Command::parse(name, &arguments), Some(command));
        }

        #[test]
        fn no_row_makes_the_parser_panic(command in commands(), arguments in any::<String>()) {
            let _ = Command::parse(command.encode().0, &arguments);
        }
    }

    #[test]
    fn contents_assembled_by_sql_are_commands() {
        let user = Uuid::from_u128(7);
        let tenant: Arc<str> = "acme".into();
        let created = |generation, lane: &str| Command::CreateTenant {
            tenant: tenant.clone(),
            generation,
            is_paused: false,
            lane: lane.into(),
        };
        assert_eq!(Command::parse(CREATE_TENANT, "acme"), Some(created(1, "main")));
        assert_eq!(Command::parse(CREATE_TENANT, "acme 3 active"), Some(created(3, "main")));
        assert_eq!(
            Command::parse(CREATE_TENANT, "acme 3 active eu"),
            Some(created(3, "eu"))
        );
        assert_eq!(
            Command::parse(RECREATE_STREAM, &format!("acme inbox:{user}")),
            Some(Command::RecreateStream(Target::Inbox(tenant.clone(), user)))
        );
        assert_eq!(Command::parse(RECREATE_STREAM, "acme inbox:me"), None);
        assert_eq!(Command::parse("order", "acme"), None);
    }
}
