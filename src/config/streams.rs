use super::section::{GIB, MIB, section};

section! {
    /// How much history the streams keep.
    pub struct Streams {
        /// Maximum number of entries in a user's inbox; a device behind them receives a snapshot.
        pub inbox_entries_max: u64 = 50_000, 100..=100_000_000;
        /// Maximum number of entries in a tenant's shared stream.
        pub shared_entries_max: u64 = 50_000, 100..=100_000_000;
        /// Maximum number of entries in a group's stream; a device behind them receives a snapshot.
        pub group_entries_max: u64 = 10_000, 100..=100_000_000;
        /// Maximum number of entries in a tenant's stream of all changes.
        pub changes_entries_max: u64 = 1_000_000, 100..=1_000_000_000;
        /// Maximum number of bytes of Redis' memory in a user's inbox; a device behind them receives a snapshot.
        pub inbox_bytes_max: u64 = 64 * MIB, MIB..=1024 * GIB;
        /// Maximum number of bytes in a tenant's shared stream.
        pub shared_bytes_max: u64 = 256 * MIB, MIB..=1024 * GIB;
        /// Maximum number of bytes in a group's stream; a device behind them receives a snapshot.
        pub group_bytes_max: u64 = 256 * MIB, MIB..=1024 * GIB;
        /// Maximum number of bytes in a tenant's stream of all changes.
        pub changes_bytes_max: u64 = GIB, MIB..=1024 * GIB;
        /// Budget of a tenant: maximum number of bytes in all its streams. Beyond it `changes` is cut first, then the largest
        /// streams.
        pub tenant_bytes_max: u64 = 2 * GIB, MIB..=1024 * GIB;
        /// Maximum number of entries in a live stream, one per batch.
        pub live_entries_max: u64 = 10_000, 100..=1_000_000;
        /// Seconds that an entry is retained after all devices have acknowledged it, for live readers that resume.
        pub retention_after_ack_seconds: u64 = 600, 0..=604_800;
        /// Seconds between two trim passes.
        pub trim_interval_seconds: u64 = 10, 1..=3600;
        /// Days of inactivity after which a device no longer holds back trimming.
        pub device_idle_days: u64 = 30, 1..=3650;
    }
}
