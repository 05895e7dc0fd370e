//! Starts the parts of the engine and stops them in order.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::database::{Database, migrations, publication};
use crate::replication::replicator;
use crate::replication::session::State;

/// Trims that may wait for the publisher.
const TRIMS_MAX: usize = 256;

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

impl Role {
    fn replicates(self) -> bool {
        matches!(self, Self::All | Self::Replicator)
    }

    fn serves(self) -> bool {
        matches!(self, Self::All | Self::Api)
    }
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    address: Option<SocketAddr>,
    parts: JoinSet<Result<()>>,
    stop: CancellationToken,
}

impl Engine {
    /// Migrates, then starts the parts that the role names. Returns when the HTTP socket listens.
    ///
    /// # Errors
    /// When the settings, Postgres or Redis forbid a start.
    pub async fn start(config: Config, role: Role) -> Result<Self> {
        if role.serves() {
            config.check_secrets()?;
        }
        let config = Arc::new(config);
        let database = Database::connect(&config.postgres).await?;
        migrations::up(&database, &config.replication)
            .await
            .context("cannot migrate the schemas")?;
        publication::ensure(&database, &config.replication.publication).await?;

        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();
        let (state, _) = watch::channel(State::Starting);
        if role.replicates() {
            let (_trims, due) = mpsc::channel(TRIMS_MAX);
            let (config, database, stop) = (config.clone(), database.clone(), stop.clone());
            parts.spawn(async move { replicator::run(&config, &database, due, &state, stop).await });
        }
        Ok(Self {
            address: None,
            parts,
            stop,
        })
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
        match self.parts.join_next().await {
            Some(Ok(Ok(()))) => Err(anyhow!("a part of the engine ended by itself")),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(anyhow!(error).context("a part of the engine died")),
            None => std::future::pending().await,
        }
    }

    /// Drains: no new requests, those under way finish, the last batch is published, then all connections close.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(result) = self.parts.join_next().await {
            if let Ok(Err(error)) = result {
                tracing::error!(
                    cause = format!("{error:#}"),
                    "a part of the engine failed while it stopped"
                );
            }
        }
    }
}
