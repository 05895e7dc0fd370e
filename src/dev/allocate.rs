//! What a new server needs: a free port and a password.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

use crate::config::Secret;

/// A random secret of 64 hexadecimal digits.
pub fn random_secret() -> Result<Secret> {
    Ok(Secret::new(random_hex::<32>()?))
}

/// `N` random bytes as hexadecimal digits.
pub(super) fn random_hex<const N: usize>() -> Result<String> {
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes).context("the operating system provides no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A free TCP port of 127.0.0.1.
///
/// The port is below the ephemeral range (32768 and up on Linux): from that range a client that retries while the server
/// is down could occupy the port itself, or connect to itself.
pub fn free_port() -> Result<u16> {
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

pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
