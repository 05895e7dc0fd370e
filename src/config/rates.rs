use super::section::section;

section! {
    /// Rates of requests, as token buckets in the memory of each process. A request takes the tokens that its route costs
    /// (docs/api.md) from each bucket; without them it gets 429 with `Retry-After`. 0 disables a rate.
    pub struct Rates {
        /// Tokens a second of an address (IPv6: one /64).
        pub address_per_second: u32 = 500, 0..=1_000_000;
        /// Tokens a second of a user, over all sessions and devices.
        pub user_per_second: u32 = 100, 0..=1_000_000;
        /// Tokens a second of a device.
        pub device_per_second: u32 = 50, 0..=1_000_000;
        /// Tokens a second of a tenant.
        pub tenant_per_second: u32 = 5000, 0..=10_000_000;
        /// Seconds in which an empty bucket becomes full: a bucket has the tokens of so many seconds.
        pub burst_seconds: u64 = 20, 1..=3600;
    }
}
