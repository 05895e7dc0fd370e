use super::section::{GIB, KIB, section};

section! {
    /// Presence of users and devices.
    pub struct Presence {
        /// Seconds after its last stream has closed at which a device or page is offline.
        pub grace_seconds: u64 = 10, 0..=60;
        /// Milliseconds over which changes are collected into one event.
        pub tick_ms: u64 = 1000, 100..=10_000;
        /// Maximum delay of changes under load in seconds; changes beyond it are not delivered individually.
        pub tick_seconds_max: u64 = 10, 1..=300;
        /// Maximum number of users in an event; beyond them the event only requests that clients fetch the state.
        pub entries_max: usize = 200, 10..=1000;
        /// Maximum bytes of events per second that a process sends over all its streams; each event counts 256 more.
        pub fanout_bytes_per_second: u64 = 8 * 1024 * 1024, 64 * KIB..=GIB;
        /// Seconds between two bulk writes of last seen times to Postgres.
        pub last_seen_interval_seconds: u64 = 60, 1..=3600;
    }
}
