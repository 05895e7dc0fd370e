//! The engine as a child process: `posduif serve` of this program, which starts again after a signal has ended it.
//!
//! It listens at fixed addresses, so that clients find it there again. Its log goes where ours goes. It reads the standard
//! input, a pipe that closes with this process, and ends then.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::process::{self, Escalation};
use super::state::{Phase, ServerState, StateSender};

/// Timeout of a start, migrations included.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The engine finishes requests within `server.shutdown_grace_seconds`, 10 by default, and publishes its last batch.
const STOP: &Escalation = &[
    (Signal::SIGTERM, Duration::from_secs(30)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

const STOP_AT_ONCE: &Escalation = &[(Signal::SIGKILL, Duration::from_secs(5))];

/// Starts in a row that may end before the engine listens.
const FAILED_STARTS_MAX: u32 = 5;

/// The engine has ended with an error, which its own standard error shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has ended with exit code {0}")]
pub struct EngineEnded(pub i32);

/// A supervised engine.
///
/// Dropping it kills the process; [`Self::stop`] stops it in order.
#[derive(Debug)]
pub struct EngineProcess {
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    process: Option<Running>,
    failed_starts: u32,
    state: StateSender,
}

#[derive(Debug)]
struct Running {
    child: Child,
    pid: u32,
    /// Its first line says that the engine listens; `None` after it.
    output: Option<Lines<BufReader<ChildStdout>>>,
    /// The engine ends when this closes.
    _lifeline: Option<ChildStdin>,
}

impl EngineProcess {
    /// An engine that [`Self::run`] starts with these arguments before `serve`, and with these variables in addition to
    /// those of this process.
    pub fn new(arguments: Vec<OsString>, environment: Vec<(String, String)>) -> Self {
        Self {
            arguments,
            environment,
            process: None,
            failed_starts: 0,
            state: StateSender::new(),
        }
    }

    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.subscribe()
    }

    /// Starts the engine, and again whenever a signal has ended it or it has stopped without an error. Returns when it
    /// ends with an error. Cancel safe.
    pub async fn run(&mut self) -> Result<()> {
        loop {
            let running = match &mut self.process {
                Some(running) => running,
                none => none.insert(start(&self.arguments, &self.environment)?),
            };
            let ready = async {
                match &mut running.output {
                    Some(output) => output.next_line().await,
                    None => std::future::pending().await,
                }
            };
            let status = tokio::select! {
                line = ready => {
                    running.output = None;
                    // Without a line it has ended, or is about to.
                    if line.context("cannot read the output of the engine")?.is_some() {
                        self.failed_starts = 0;
                        self.state.up(Some(running.pid));
                    }
                    continue;
                }
                status = running.child.wait() => status.context("cannot wait for the engine")?,
            };
            let pid = running.pid;
            self.process = None;
            let was_up = self.state.subscribe().borrow().state == Phase::Up;
            self.state.down();
            self.check_end(pid, status, was_up)?;
        }
    }

    /// Whether to start it again.
    fn check_end(&mut self, pid: u32, status: ExitStatus, was_up: bool) -> Result<()> {
        if let Some(code) = status.code().filter(|code| *code != 0) {
            bail!(EngineEnded(code));
        }
        if !was_up {
            self.failed_starts += 1;
            if self.failed_starts >= FAILED_STARTS_MAX {
                bail!("the engine ended {FAILED_STARTS_MAX} times before it listened, at last with {status}");
            }
        }
        tracing::warn!(pid, %status, "the engine has ended; it starts again");
        Ok(())
    }

    /// Kills it and returns its process id; `None` while it does not run. [`Self::run`] starts it again.
    pub fn kill(&self) -> Option<u32> {
        let pid = self.process.as_ref()?.child.id()?;
        process::send(pid, Signal::SIGKILL);
        Some(pid)
    }

    /// Stops it in order. May be dropped, and followed by [`Self::stop_at_once`].
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.end(STOP).await
    }

    /// Stops it without finishing what is in progress.
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub async fn stop_at_once(&mut self) -> Result<()> {
        self.end(STOP_AT_ONCE).await
    }

    async fn end(&mut self, escalation: &Escalation) -> Result<()> {
        if let Some(running) = &mut self.process {
            process::stop("the engine", &mut running.child, escalation).await?;
            self.state.down();
        }
        self.process = None;
        Ok(())
    }
}

/// Waits until the engine listens for the first time.
///
/// # Errors
/// When it does not within two minutes.
pub async fn listening(mut state: watch::Receiver<ServerState>) -> Result<()> {
    let up = state.wait_for(|state| state.state == Phase::Up);
    let Ok(up) = timeout(START_TIMEOUT, up).await else {
        bail!("the engine does not listen within {} s", START_TIMEOUT.as_secs());
    };
    up.context("the supervisor of the engine has ended").map(drop)
}

fn start(arguments: &[OsString], environment: &[(String, String)]) -> Result<Running> {
    let program = std::env::current_exe().context("cannot find the program of the engine")?;
    // It may have been replaced by a build since this process started.
    let link = cfg!(target_os = "linux").then(|| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(link.as_ref().unwrap_or(&program));
    command
        .arg0(&program)
        .args(arguments)
        .args(["serve", "--supervised"])
        // The engine's notifications would reach a service manager as ours.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // The terminal's Ctrl-C does not reach it.
        .process_group(0)
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|known| replaces(known, environment)) {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().context("cannot start the engine")?;
    Ok(Running {
        pid: child.id().context("the engine has no process id")?,
        output: child.stdout.take().map(|output| BufReader::new(output).lines()),
        // Waiting for the child would close it.
        _lifeline: child.stdin.take(),
        child,
    })
}

/// Whether a variable sets one of these keys in another way: in lower case, or by a file. Two are refused.
fn replaces(known: &str, environment: &[(String, String)]) -> bool {
    let known = known.to_ascii_uppercase();
    let known = known.strip_suffix("__FILE").unwrap_or(&known);
    environment.iter().any(|(name, _)| name == known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_same_key_are_replaced() {
        let environment = [("POSDUIF__AUTH__JWT_SECRET".to_owned(), "x".to_owned())];
        for known in [
            "POSDUIF__AUTH__JWT_SECRET",
            "POSDUIF__auth__jwt_secret",
            "POSDUIF__AUTH__JWT_SECRET__FILE",
        ] {
            assert!(replaces(known, &environment), "{known}");
        }
        assert!(!replaces("POSDUIF__AUTH__JWT_SECRETS", &environment));
        assert!(!replaces("PATH", &environment));
    }
}
