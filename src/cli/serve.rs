//! `posduif serve`: runs the engine until Ctrl-C or SIGTERM.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Global;
use super::output::say;
use crate::engine::{Engine, Role};
use crate::http::server::raise_descriptor_limit;

/// Descriptors that are no client's: of pools, files and the like.
const DESCRIPTORS_BESIDE: u64 = 100;

/// Arguments of `posduif serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Which parts to run
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
}

impl Serve {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?;
        crate::telemetry::init(&config.log)?;
        match raise_descriptor_limit() {
            Ok(descriptors) if descriptors < config.server.connections_max as u64 + DESCRIPTORS_BESIDE => {
                tracing::warn!(
                    descriptors,
                    connections_max = config.server.connections_max,
                    "this process may hold fewer descriptors than `server.connections_max` needs: raise the limit (ulimit -n, \
                 LimitNOFILE) or lower the key"
                )
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the limit of descriptors stays as it is"),
        }
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let scheme = config.server.scheme();
        let mut engine = Engine::start(config, self.role).await?;
        // Whoever started it may not care to read on; it serves all the same.
        let _unread = say!("ready: {scheme}://{}", engine.address());
        let failed = tokio::select! {
            result = engine.failed() => Some(result),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        tracing::info!("stopping");
        engine.stop().await;
        failed.unwrap_or(Ok(()))
    }
}
