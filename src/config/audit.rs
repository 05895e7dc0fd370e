use super::section::section;

section! {
    /// The audit log.
    pub struct Audit {
        /// Days after which an entry is removed.
        pub retention_days: u64 = 400, 7..=36_500;
    }
}
