//! Control messages: logical decoding messages by which commands reach the engine at a place in the log.

use super::stream_name::Target;
use crate::core::position::StreamId;

/// Prefix of the message by which a tenant's streams are created, or begin anew: `<tenant>`, and then its generation
/// and state where they are not the first ones.
pub const TENANT_PREFIX: &str = "posduif.tenant";

/// Prefix of the message by which a tenant's delivery is paused or goes on: `<tenant> <state>`.
pub const STATE_PREFIX: &str = "posduif.state";

/// Prefix of the message by which a tenant's streams end: `<tenant>`.
pub const DROPPED_PREFIX: &str = "posduif.dropped";

/// Prefix of the message by which a lost inbox is created anew: `<tenant> <user id>`.
pub const INBOX_PREFIX: &str = "posduif.inbox";

/// Prefix of the message by which one stream begins anew: `<tenant> <stream>`, the stream as
/// [`Target::stream`] names it; with a third word `gone` it is only removed.
pub const STREAM_PREFIX: &str = "posduif.stream";

/// Prefix of the message by which a stream is trimmed: `<tenant> <stream> <first ID that stays>`.
pub const TRIM_PREFIX: &str = "posduif.trim";

/// Prefix of the message behind which a transaction's rows of a tenant are told as if they were new: `<tenant>`.
pub const RETRY_PREFIX: &str = "posduif.retry";

/// Trimming a stream up to but not including an ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trim {
    /// The stream.
    pub target: Target,
    /// First entry that stays.
    pub min_id: StreamId,
}
