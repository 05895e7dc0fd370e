//! Signals that request a shutdown.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

/// Counts SIGINT, SIGTERM and SIGHUP.
pub(super) struct StopSignals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: Option<unix::Signal>,
    count: u32,
}

impl StopSignals {
    /// Installs the handlers. Without them a signal would end the process and orphan the servers.
    pub(super) fn listen() -> Result<Self> {
        let listen = |kind| unix::signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            // Ignored under nohup; a handler would undo that.
            hangup: if hangup_is_ignored() {
                None
            } else {
                Some(listen(SignalKind::hangup())?)
            },
            count: 0,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let signal = tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = hangup => Signal::SIGHUP,
        };
        self.count += 1;
        signal
    }

    /// Waits for the second signal.
    pub(super) async fn second(&mut self) {
        while self.count < 2 {
            self.next().await;
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Whether the mask of ignored signals in `/proc/<pid>/status` has SIGHUP: number 1, the lowest bit.
fn ignores_hangup(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_hangup_is_read_from_the_mask() {
        assert!(ignores_hangup("Name:\tsh\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("Name:\tsh\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup("Name:\tsh\n"));
    }
}
