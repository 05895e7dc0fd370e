//! Names of live events. Rules of the configuration and the outbox add names of their own.

pub const NEW_MESSAGE: &str = "new_message";
pub const MESSAGE_UPDATED: &str = "message_updated";
pub const MESSAGE_READ: &str = "message_read";
pub const MESSAGE_SYNCED: &str = "message_synced";
pub const MESSAGE_DELETED: &str = "message_deleted";
pub const STATE_CHANGED: &str = "state_changed";
pub const CONFLICT: &str = "conflict";
pub const DEVICE_ADDED: &str = "device_added";

/// The user joined a group.
pub const GROUP_JOINED: &str = "group_joined";
/// The user left a group.
pub const GROUP_LEFT: &str = "group_left";

/// A change that needs no name of its own; the kind under which metrics count events of rules.
pub const CHANGE: &str = "change";

/// For API nodes, which cache devices and users.
pub const DEVICE_CHANGED: &str = "device_changed";
/// For API nodes, which cache when a user was last seen.
pub const USER_SEEN: &str = "user_seen";
/// For API nodes: what comes waits in the streams.
pub const TENANT_PAUSED: &str = "tenant_paused";
/// For API nodes: what has waited must be read from the streams.
pub const TENANT_RESUMED: &str = "tenant_resumed";

/// Events that go to single users by built-in rules. The shared stream holds none of them.
pub const PERSONAL: [&str; 7] = [
    NEW_MESSAGE,
    MESSAGE_UPDATED,
    MESSAGE_READ,
    MESSAGE_SYNCED,
    MESSAGE_DELETED,
    STATE_CHANGED,
    CONFLICT,
];

/// Events that the server itself sends, so that no writer of the outbox may.
pub const RESERVED: [&str; 12] = [
    "bye",
    DEVICE_ADDED,
    DEVICE_CHANGED,
    GROUP_JOINED,
    GROUP_LEFT,
    "hello",
    "presence",
    "reset",
    "revoked",
    "sync_required",
    TENANT_PAUSED,
    TENANT_RESUMED,
];

/// Whether an event is for API nodes only. No stream contains it.
pub fn is_internal(event: &str) -> bool {
    matches!(event, DEVICE_CHANGED | USER_SEEN | TENANT_PAUSED | TENANT_RESUMED)
}
