use super::section::section;

section! {
    /// Rate limits of authentication. They are counted in Redis in windows of the same length. An IPv6 client is counted by
    /// its /64. A window of failed logins that became full doubles the next one, up to a day.
    pub struct Limits {
        /// Length of a window in seconds.
        pub window_seconds: u64 = 900, 1..=86_400;
        /// Failed logins of a user from one address.
        pub login_user_address_max: u64 = 10, 1..=1_000_000;
        /// Failed logins of a user from all addresses except those where that user has logged in before.
        pub login_user_max: u64 = 100, 1..=1_000_000;
        /// Wrong codes of a user's second factor from all addresses except those where that user has given a right one.
        pub code_user_max: u64 = 20, 1..=1_000_000;
        /// Failed logins from one address; users who have logged in there before are exempt.
        pub login_address_max: u64 = 200, 1..=1_000_000;
        /// Logins of a user from one address within a minute, successful or not.
        pub login_attempts_max: u64 = 30, 1..=1_000_000;
        /// Logins from one address that may wait for the check of their password at once, in each process.
        pub login_waiting_max: usize = 3, 1..=100_000;
        /// Registrations from one address, successful or not.
        pub register_address_max: u64 = 100, 1..=1_000_000;
        /// Refreshes without a session from one address; those with one are not limited.
        pub refresh_address_max: u64 = 1000, 1..=1_000_000;
        /// Failed requests for an enrollment, or for its completion, from one address.
        pub enrollment_address_max: u64 = 1000, 1..=1_000_000;
        /// Requests to reset a password from one address.
        pub reset_address_max: u64 = 20, 1..=1_000_000;
    }
}
