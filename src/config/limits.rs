use super::section::section;

section! {
    /// Rate limits of authentication. All are counted in Redis in windows of the same length. An IPv6 client is counted by
    /// its /64.
    pub struct Limits {
        /// Length of a window in seconds.
        pub window_seconds: u64 = 900, 1..=86_400;
        /// Failed logins of a user from one address.
        pub login_user_address_max: u64 = 10, 1..=1_000_000;
        /// Failed logins of a user from all addresses except those where that user has logged in before.
        pub login_user_max: u64 = 100, 1..=1_000_000;
        /// Failed logins from one address; users who have logged in there before are exempt.
        pub login_address_max: u64 = 200, 1..=1_000_000;
        /// Registrations from one address, successful or not.
        pub register_address_max: u64 = 100, 1..=1_000_000;
        /// Failed refreshes from one address.
        pub refresh_address_max: u64 = 1000, 1..=1_000_000;
        /// Failed requests for an enrollment, or for its completion, from one address.
        pub enrollment_address_max: u64 = 1000, 1..=1_000_000;
    }
}
