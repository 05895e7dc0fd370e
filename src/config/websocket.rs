use super::section::{KIB, MIB, section};

section! {
    /// Requests of clients over WebSockets. The section `live` holds for what is sent to them.
    pub struct WebSocket {
        /// Maximum size of a client's message in bytes, in one frame or several.
        pub message_bytes_max: usize = 256 * 1024, KIB..=16 * MIB;
        /// Maximum number of items in a message.
        pub items_max: usize = 100, 1..=1000;
    }
}
