//! Error codes of Redis. A code is the first word of an error; texts differ between versions, codes do not.

use redis::RedisError;

/// The key holds another type.
pub const WRONG_TYPE: &str = "WRONGTYPE";

/// Whether Redis answered one of the commands with this code.
pub fn has_code(error: &RedisError, code: &str) -> bool {
    error.code() == Some(code)
        || error
            .clone()
            .into_server_errors()
            .is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == code))
}

/// Whether a key holds another type than the command expects.
pub fn is_wrong_type(error: &RedisError) -> bool {
    has_code(error, WRONG_TYPE)
}

/// Whether a key is missing. These errors have no code of their own (`ERR no such key`).
pub fn is_missing_key(error: &RedisError) -> bool {
    let text = error.to_string();
    text.contains("no such key") || text.contains("requires the key to exist")
}
