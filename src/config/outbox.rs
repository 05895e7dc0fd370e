use super::section::section;

section! {
    /// Events that SQL writes for clients.
    pub struct Outbox {
        /// Whether logical decoding messages with the prefix `posduif:` are published like rows of a tenant's table
        /// `outbox`. Any role that may log in to the database can write them, for any tenant.
        pub logical_messages: bool = false;
    }
}
