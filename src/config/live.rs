use super::section::section;

section! {
    /// Live events, by SSE and WebSocket.
    pub struct Live {
        /// Seconds between heartbeats.
        pub heartbeat_seconds: u64 = 15, 1..=300;
        /// Recommended milliseconds before a client reconnects; up to as much again is added at random.
        pub retry_ms: u64 = 1000, 100..=60_000;
        /// Seconds without progress in writing to a reader after which it is disconnected; it resumes without loss.
        pub write_timeout_seconds: u64 = 20, 1..=300;
        /// Maximum number of events queued for a slow reader; one with more reads its streams instead.
        pub queue_events_max: usize = 256, 16..=100_000;
        /// Maximum number of events replayed individually after a resume; beyond them the reader receives one
        /// `sync_required`.
        pub replay_events_max: usize = 1000, 1..=100_000;
        /// Maximum number of event streams and WebSockets of a user at once in one process.
        pub streams_per_user_max: usize = 200, 1..=1_000_000;
    }
}
