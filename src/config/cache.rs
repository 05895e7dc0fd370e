use super::section::{GIB, KIB, section};

section! {
    /// Cache of API processes for rows of Postgres: unread counts, messages, users. The change stream invalidates it.
    pub struct Cache {
        /// Maximum age of an entry in seconds, in case an invalidation is lost; 0 disables the cache.
        pub ttl_seconds: u64 = 60, 0..=3600;
        /// Maximum number of counts of each kind, and of users, per process.
        pub entries_max: u64 = 100_000, 100..=10_000_000;
        /// Maximum bytes of messages per process.
        pub messages_bytes_max: u64 = 16 * 1024 * 1024, 64 * KIB..=4 * GIB;
    }
}
