//! `posduif serve`: runs the engine until Ctrl-C or SIGTERM. SIGHUP reads `log.level` anew.

use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::output::outln;
use super::{Global, notify};
use crate::engine::{self, Engine, Role};
use crate::http::descriptors::raise_descriptor_limit;
use crate::telemetry::Logging;

/// How long a stop waits until the collector of traces has the last spans.
const TRACES_WAIT: Duration = Duration::from_secs(2);

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
        let logging = crate::telemetry::init(&config.log)?;
        let stop_traces = CancellationToken::new();
        let traces = engine::trace_client(&config.telemetry)?
            .map(|client| crate::telemetry::traces::init(&config.telemetry, client, stop_traces.clone()))
            .transpose()?;
        let mut hangup = signal(SignalKind::hangup())?;
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
        let mut engine = tokio::select! {
            engine = Engine::start(config, self.role) => engine?,
            // Nothing runs yet; a migration that is under way rolls back.
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        // Whoever started it may not care to read on; it serves all the same.
        let url = format!("{scheme}://{}", engine.address());
        let _unread = if global.json {
            outln!("{}", serde_json::json!({"ready": true, "url": url}))
        } else {
            outln!("ready: {url}")
        };
        notify::tell(notify::READY);
        let failed = loop {
            tokio::select! {
                result = engine.failed() => break Some(result),
                _ = interrupt.recv() => break None,
                _ = terminate.recv() => break None,
                _ = hangup.recv() => change_level(global, &logging),
            }
        };
        tracing::info!("stopping");
        notify::tell(notify::STOPPING);
        engine.stop().await;
        stop_traces.cancel();
        if let Some(traces) = traces {
            // The collector may be away.
            let _ = tokio::time::timeout(TRACES_WAIT, traces).await;
        }
        failed.unwrap_or(Ok(()))
    }
}

/// Reads the settings anew and takes `log.level` from them; nothing else changes. A mistake in them changes nothing.
fn change_level(global: &Global, logging: &Logging) {
    let changed = global
        .load()
        .and_then(|config| logging.set_level(&config.log.level).map(|()| config.log.level));
    match changed {
        // At a level that every sensible filter lets through.
        Ok(level) => tracing::warn!(now = level, "log.level was read anew"),
        Err(error) => tracing::error!(cause = format!("{error:#}"), "log.level stays as it was"),
    }
}
