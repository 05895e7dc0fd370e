//! Logs and health: what the engine tells about itself.

pub mod logging;

pub use logging::init;
