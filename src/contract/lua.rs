//! The Lua scripts that Redis runs.

/// Moves a stream's trim point on and trims, on a full Redis, too.
pub const TRIM: &str = concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/ids.lua"),
    include_str!("lua/trim.lua")
);

/// Replaces the list of tenants beyond their budget.
pub const EXCEEDED: &str = include_str!("lua/exceeded.lua");

/// Begins a term of a new writer.
pub const TERM: &str = include_str!("lua/term.lua");

/// Records that Redis ran only parts of a transaction.
pub const TORN: &str = include_str!("lua/torn.lua");

/// Adds an entry unless the stream holds it.
pub const RECHECK: &str = concat!(include_str!("lua/ids.lua"), include_str!("lua/recheck.lua"));

/// Creates an inbox unless there is one.
pub const CREATE_INBOX: &str = concat!(include_str!("lua/create.lua"), include_str!("lua/create_inbox.lua"));

/// Creates the stream of a group unless there is one.
pub const CREATE_GROUP: &str = concat!(include_str!("lua/create.lua"), include_str!("lua/create_group.lua"));

/// Replaces a tenant's meta hash.
pub const RESET_META: &str = include_str!("lua/reset_meta.lua");

/// Removes keys of a tenant that was dropped, unless there is one of its name again.
pub const REMOVE_KEYS: &str = include_str!("lua/remove_keys.lua");

/// Records that a user joined a group.
pub const JOIN_GROUP: &str = concat!(
    include_str!("lua/create.lua"),
    include_str!("lua/remember.lua"),
    include_str!("lua/too_many.lua"),
    include_str!("lua/join_group.lua")
);

/// Records that a user left a group.
pub const LEAVE_GROUP: &str = concat!(
    include_str!("lua/remember.lua"),
    include_str!("lua/too_many.lua"),
    include_str!("lua/leave_group.lua")
);

/// From here on the publisher keeps a user's memberships.
pub const MARK_MEMBERS: &str = concat!(
    include_str!("lua/ids.lua"),
    include_str!("lua/too_many.lua"),
    include_str!("lua/mark_members.lua")
);

/// Adds the memberships from Postgres.
pub const ADD_MEMBERS: &str = concat!(include_str!("lua/too_many.lua"), include_str!("lua/add_members.lua"));

/// Tells which streams have entries, without the entries.
pub const HEADS: &str = include_str!("lua/heads.lua");

/// Decides whether a device that is away is pushed to.
pub const TRIGGER: &str = concat!(include_str!("lua/ids.lua"), include_str!("lua/trigger.lua"));

/// Claims entries of `push` that are due at the webhook.
pub const CLAIM: &str = include_str!("lua/claim.lua");

/// A script of presence: what all of them share, then its own part.
macro_rules! presence {
    ($name:literal) => {
        concat!(
            include_str!("lua/shared.lua"),
            include_str!(concat!("lua/", $name, ".lua"))
        )
    };
}

/// Counts streams as open for a while.
pub const PRESENCE_HOLD: &str = presence!("hold");

/// Counts streams as open for no longer than the grace period.
pub const PRESENCE_LEAVE: &str = presence!("leave");

/// Sets the status that a device or session declares.
pub const PRESENCE_DECLARE: &str = presence!("declare");

/// Lists users and their presence.
pub const PRESENCE_LIST: &str = presence!("list");

/// Returns what changed after a version.
pub const PRESENCE_POLL: &str = presence!("poll");

/// Returns when devices were last seen, as far as Postgres lacks it.
pub const PRESENCE_CARRY: &str = presence!("carry");
