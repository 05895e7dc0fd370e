use super::section::section;

section! {
    /// Readiness, and the warnings of the console.
    pub struct Health {
        /// Maximum age in seconds of the data that clients see; beyond it `/ready` responds with 503.
        pub max_staleness_seconds: u64 = 10, 2..=3600;
        /// Seconds that a connected device may be behind; beyond it the console shows a warning.
        pub device_behind_seconds: u64 = 60, 1..=86_400;
    }
}
