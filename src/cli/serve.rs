//! `posduif serve`: runs the engine until Ctrl-C or SIGTERM. SIGHUP reloads `log.level`.

use std::io;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::output::{self, Render, Text, outln};
use super::{Global, notify};
use crate::engine::{self, Engine, Role};
use crate::http::descriptors::raise_descriptor_limit;
use crate::telemetry::Logging;

/// How long a shutdown waits for the export of the last spans.
const TRACES_TIMEOUT: Duration = Duration::from_secs(2);

/// File descriptors of pools, files and the like.
const OTHER_DESCRIPTORS: u64 = 100;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Which parts to run
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
    /// End when the standard input closes, which `posduif dev` keeps open as long as it lives
    #[arg(long, hide = true)]
    supervised: bool,
}

impl Serve {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?;
        let logging = crate::telemetry::init(&config.log)?;
        if self.supervised {
            end_with_supervisor()?;
        }
        let stop_traces = CancellationToken::new();
        let traces = engine::trace_client(&config.telemetry)?
            .map(|client| crate::telemetry::traces::init(&config.telemetry, client, stop_traces.clone()))
            .transpose()?;
        let mut hangup = signal(SignalKind::hangup())?;
        raise_descriptors(config.server.connections_max);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let scheme = config.server.scheme();
        let mut engine = tokio::select! {
            engine = Engine::start(config, self.role) => engine?,
            // No part runs yet; an open migration rolls back.
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        let ready = Ready {
            ready: true,
            url: format!("{scheme}://{}", engine.address()),
            admin_url: engine.admin_address().map(|address| format!("http://{address}")),
        };
        // The engine serves even if its standard output is closed.
        output::write(&output::frame(global, &ready)?).ok();
        notify::send(notify::READY);
        let failed = loop {
            tokio::select! {
                result = engine.failed() => break Some(result),
                _ = interrupt.recv() => break None,
                _ = terminate.recv() => break None,
                _ = hangup.recv() => reload_level(global, &logging),
            }
        };
        tracing::info!("stopping");
        notify::send(notify::STOPPING);
        engine.stop().await;
        stop_traces.cancel();
        if let Some(traces) = traces {
            // The collector may be unreachable.
            let _ = tokio::time::timeout(TRACES_TIMEOUT, traces).await;
        }
        failed.unwrap_or(Ok(()))
    }
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    url: String,
    admin_url: Option<String>,
}

impl Render for Ready {
    fn text(&self, out: &mut Text) {
        outln!(out, "ready: {}", self.url);
        if let Some(url) = &self.admin_url {
            outln!(out, "admin: {url}");
        }
    }
}

/// Ends the process when the standard input closes. It does not drain: a supervisor that is killed takes its engine with it,
/// and what the engine had not published stays in the log.
fn end_with_supervisor() -> io::Result<()> {
    let watch = || {
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        tracing::warn!("the supervisor has ended, and the engine ends with it");
        std::process::exit(1);
    };
    std::thread::Builder::new()
        .name("supervisor".into())
        .spawn(watch)
        .map(drop)
}

/// Raises the limit of file descriptors as far as allowed.
fn raise_descriptors(connections_max: usize) {
    match raise_descriptor_limit() {
        Ok(descriptors) if descriptors < connections_max as u64 + OTHER_DESCRIPTORS => {
            tracing::warn!(
                descriptors,
                connections_max,
                "file descriptor limit is below server.connections_max: raise it (ulimit -n, LimitNOFILE) or lower the key"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the file descriptor limit"),
    }
}

/// Reloads the settings and applies `log.level`; invalid settings change nothing.
fn reload_level(global: &Global, logging: &Logging) {
    let changed = global
        .load()
        .and_then(|config| logging.set_level(&config.log.level).map(|()| config.log.level));
    match changed {
        // At `warn`, so that common filters pass it.
        Ok(level) => tracing::warn!(log_level = level, "log level reloaded"),
        Err(error) => tracing::error!(cause = format!("{error:#}"), "cannot reload the log level"),
    }
}
