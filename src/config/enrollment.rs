use super::section::section;

section! {
    /// Enrollment of devices.
    pub struct Enrollment {
        /// Seconds until an enrollment token expires.
        pub expiry_seconds: u64 = 900, 60..=2_592_000;
        /// Seconds in which the same device may repeat the completion after a lost response.
        pub retry_seconds: u64 = 600, 0..=3600;
    }
}
