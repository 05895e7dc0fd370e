use super::section::section;

section! {
    /// Readiness.
    pub struct Health {
        /// Maximum age in seconds of the data that clients see; beyond it `/ready` responds with 503.
        pub max_staleness_seconds: u64 = 10, 2..=3600;
    }
}
