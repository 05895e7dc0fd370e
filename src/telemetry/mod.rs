//! Logs, metrics, traces, and the journal of the console.

pub mod journal;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod traces;

pub use logging::{Logging, backtrace, chain, init};

/// The commit of the program, with `-modified` if files differed from it; empty if unknown.
pub const COMMIT: &str = env!("POSDUIF_COMMIT");

/// Version and commit, as printed by `posduif --version`.
pub const VERSION: &str = env!("POSDUIF_VERSION");
