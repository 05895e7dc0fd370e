//! The limit of open file descriptors.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's soft limit of file descriptors to the hard limit and returns it. A shell usually sets 1,024,
/// which is a thousand clients.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
