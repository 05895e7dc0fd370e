//! Logs and counters: what the engine tells about itself.

pub mod logging;
pub mod metrics;

pub use logging::init;
