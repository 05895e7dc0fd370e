//! Private servers for one machine: a Postgres and a Redis of one's own, in a folder of one's own.
//!
//! `posduif dev` runs on them, and so do the tests, which also stop, kill and restart them. The parts:
//!
//! - [`PrivatePostgres`], [`PrivateRedis`]: one server each: make its data, start, stop, kill, start again on the same
//!   port with the same data.
//! - [`Servers`]: both in one data folder, with a lock on the folder and a memory for ports and passwords.
//! - [`env_file`]: `dev.env`, which tells a shell how to reach them.
//!
//! Promises: a server listens on 127.0.0.1 only and wants a password; the terminal's Ctrl-C does not reach it, so that
//! whoever supervises decides the order of the stop; a server that outlived its supervisor is found by its pid file,
//! recognised as the server of that very folder, and stopped before a new one starts.
//!
//! This is for development and tests. It sets up no backups, no replicas and no TLS.

pub mod env_file;
mod folder;
mod postgres;
mod process;
mod redis;
mod servers;

pub use postgres::{PostgresOptions, PrivatePostgres};
pub use redis::{PrivateRedis, RedisOptions};
pub use servers::{Durability, Servers, ServersOptions};

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

use crate::config::Secret;

/// A random secret of 64 hexadecimal digits.
///
/// # Errors
/// When the operating system gives no random bits.
pub fn random_secret() -> Result<Secret> {
    Ok(Secret::new(random_hex::<32>()?))
}

/// `N` random bytes as hexadecimal digits.
fn random_hex<const N: usize>() -> Result<String> {
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes).context("the operating system gives no random bits")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A TCP port of 127.0.0.1 that nobody listens on.
///
/// It lies below the ports that the kernel hands to outgoing connections (32768 and up on Linux): from that range a
/// client that retries while the server is down can take the port itself, or even connect to itself.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    for _ in 0..200 {
        let mut bytes = [0_u8; 2];
        getrandom::fill(&mut bytes).context("the operating system gives no random bits")?;
        let port = FIRST + u16::from_ne_bytes(bytes) % COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!(
        "no free TCP port on 127.0.0.1 between {FIRST} and {}: stop something that listens there",
        FIRST + COUNT
    )
}

/// Whether a server could listen on the port now.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
