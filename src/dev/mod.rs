//! Private servers for one machine: a Postgres and a Redis in one folder.
//!
//! `posduif dev` runs on them, and so do the tests, which also stop, kill and restart them. The parts:
//!
//! - [`PrivatePostgres`], [`PrivateRedis`]: one server each: create its data, start, stop, kill, restart on the same port
//!   with the same data. Both are a [`PrivateServer`] with a [`Program`].
//! - [`Servers`]: both in one data folder, with a lock on the folder and stored ports and passwords.
//! - [`env_file`]: `dev.env`, the connection URLs for a shell.
//!
//! Promises: a server listens on 127.0.0.1 only and requires a password; the terminal's Ctrl-C does not reach it, so that
//! its supervisor decides the order of a shutdown; an orphaned server is found by its pid file, verified to be the server
//! of that folder, and stopped before a new one starts.
//!
//! For development and tests: no backups, no replicas, no TLS.

pub mod env_file;
mod folder;
mod postgres;
mod process;
mod redis;
mod server;
mod servers;

pub use postgres::{PostgresOptions, PrivatePostgres};
pub use redis::{PrivateRedis, RedisOptions};
pub use server::{PrivateServer, Program};
pub use servers::{Durability, Servers, ServersOptions};

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

use crate::config::Secret;

/// A random secret of 64 hexadecimal digits.
pub fn random_secret() -> Result<Secret> {
    Ok(Secret::new(random_hex::<32>()?))
}

/// `N` random bytes as hexadecimal digits.
fn random_hex<const N: usize>() -> Result<String> {
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes).context("the operating system provides no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A free TCP port of 127.0.0.1.
///
/// The port is below the ephemeral range (32768 and up on Linux): from that range a client that retries while the server
/// is down could occupy the port itself, or connect to itself.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    for _ in 0..200 {
        let mut bytes = [0_u8; 2];
        getrandom::fill(&mut bytes).context("the operating system provides no random bytes")?;
        let port = FIRST + u16::from_ne_bytes(bytes) % COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!(
        "no free TCP port on 127.0.0.1 between {FIRST} and {}: stop a process that listens there",
        FIRST + COUNT
    )
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
