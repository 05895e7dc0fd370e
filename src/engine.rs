//! Starts the parts of the engine and stops them in order.

use std::net::SocketAddr;

use anyhow::Result;

use crate::config::Config;

/// Which parts of the engine a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Replicator and API.
    All,
    /// HTTP only.
    Api,
    /// From the write-ahead log to Redis only.
    Replicator,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    address: Option<SocketAddr>,
}

impl Engine {
    /// Migrates, then starts the parts that the role names. Returns when the HTTP socket listens.
    ///
    /// # Errors
    /// When the settings, Postgres or Redis forbid a start.
    pub async fn start(_config: Config, _role: Role) -> Result<Self> {
        Ok(Self { address: None })
    }

    /// Where HTTP listens; `None` for a replicator.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Waits until a part has failed for good, which is never while all is well.
    ///
    /// # Errors
    /// The failure that ended the engine.
    pub async fn failed(&mut self) -> Result<()> {
        std::future::pending().await
    }

    /// Drains: no new requests, those under way finish, the last batch is published, then all connections close.
    pub async fn stop(self) {}
}
