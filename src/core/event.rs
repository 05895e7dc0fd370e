//! Names of live events. Rules of the configuration and the outbox add names of their own.

pub const NEW_MESSAGE: &str = "new_message";
pub const MESSAGE_UPDATED: &str = "message_updated";
pub const MESSAGE_READ: &str = "message_read";
pub const MESSAGE_SYNCED: &str = "message_synced";
pub const MESSAGE_DELETED: &str = "message_deleted";
pub const STATE_CHANGED: &str = "state_changed";
pub const CONFLICT: &str = "conflict";

/// The user has read messages of a group, on one of their devices or pages.
pub const GROUP_READ: &str = "group_read";
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

/// Events of built-in rules that go to single users only. No stream of several users holds them.
const PERSONAL: [&str; 5] = [MESSAGE_READ, MESSAGE_SYNCED, STATE_CHANGED, CONFLICT, GROUP_READ];

/// Events about messages that go to their groups, too.
const OF_MESSAGES: [&str; 3] = [NEW_MESSAGE, MESSAGE_UPDATED, MESSAGE_DELETED];

/// Whether the stream of all users of a tenant can hold an event.
pub fn is_for_tenants(event: &str) -> bool {
    is_for_groups(event) && !OF_MESSAGES.contains(&event)
}

/// Whether the streams of groups can hold an event.
pub fn is_for_groups(event: &str) -> bool {
    !PERSONAL.contains(&event)
}

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
