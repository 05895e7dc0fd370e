use super::section::{KIB, MIB, section};

section! {
    /// Encrypted state.
    pub struct State {
        /// Maximum size of an encrypted state in bytes, before base64.
        pub bytes_max: usize = 64 * 1024, 1..=16 * MIB;
        /// Maximum size of a nonce in bytes.
        pub nonce_bytes_max: usize = 64, 1..=KIB;
        /// Maximum number of keys of a user; as many deleted keys are retained.
        pub keys_max: usize = 1000, 1..=100_000;
        /// Maximum number of items in a batch.
        pub batch_items_max: usize = 100, 1..=1000;
        /// Maximum size of the body of a batch in bytes.
        pub batch_bytes_max: usize = 8 * 1024 * 1024, 64 * KIB..=64 * MIB;
    }
}

impl State {
    /// Bytes of a body that holds one state and its nonce in base64.
    pub fn body_bytes_max(&self) -> usize {
        // Four characters for three bytes, and room for names, quotes and spaces.
        (self.bytes_max + self.nonce_bytes_max) * 4 / 3 + 4096
    }
}
