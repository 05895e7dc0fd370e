//! Logs and counters: what the engine tells about itself.

pub mod logging;
pub mod metrics;
pub mod process;
pub mod traces;

pub use logging::{Logging, backtrace, chain, init};

/// The commit that the program was built from, with `-modified` where files differed from it; empty when nobody said.
pub const COMMIT: &str = env!("POSDUIF_COMMIT");

/// Version and commit, as `posduif --version` tells them.
pub const VERSION: &str = env!("POSDUIF_VERSION");
