//! A private server: a program with its data, and its process while it runs.

use anyhow::Result;

use super::process::{Escalation, Supervised};

/// How one kind of server is started and stopped.
pub trait Program {
    /// Stops in order.
    const STOP: &'static Escalation;
    /// Stops without writing pending data; the next start recovers.
    const STOP_AT_ONCE: &'static Escalation;

    /// Connection URL.
    fn url(&self) -> String;

    /// TCP port on 127.0.0.1.
    fn port(&self) -> u16;

    /// Starts a process and returns when the server answers.
    fn launch(&self) -> impl Future<Output = Result<Supervised>> + Send;
}

/// A private server.
///
/// Dropping it while it runs kills it; its data survive that as they survive a crash.
#[derive(Debug)]
pub struct PrivateServer<P> {
    // Dropped before the program, which holds the lock on the data.
    process: Option<Supervised>,
    program: P,
}

impl<P: Program> PrivateServer<P> {
    /// Starts the program.
    pub(super) async fn run(program: P) -> Result<Self> {
        let mut server = Self { process: None, program };
        server.restart().await?;
        Ok(server)
    }

    pub(super) fn program(&self) -> &P {
        &self.program
    }

    /// Connection URL.
    pub fn url(&self) -> String {
        self.program.url()
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.program.port()
    }

    /// Process id; `None` while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Supervised::pid)
    }

    /// Stops it in order: its data are on disk.
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.end(P::STOP).await
    }

    /// Stops it without writing pending data; the next start recovers.
    pub(super) async fn stop_at_once(&mut self) -> Result<()> {
        self.end(P::STOP_AT_ONCE).await
    }

    async fn end(&mut self, escalation: &Escalation) -> Result<()> {
        // Kept until it has exited: a cancelled stop can be followed by a harder one.
        if let Some(process) = &mut self.process {
            process.stop(escalation).await?;
        }
        self.process = None;
        Ok(())
    }

    /// Kills it, for tests of recovery.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            process.kill().await?;
        }
        self.process = None;
        Ok(())
    }

    /// Waits for an unexpected exit and returns the error to report; pending while it runs or is stopped.
    pub async fn failed(&mut self) -> anyhow::Error {
        match &mut self.process {
            Some(process) => process.end().await,
            None => std::future::pending().await,
        }
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], on the same port with the same data, and returns when
    /// it answers. Does nothing while it runs.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub async fn restart(&mut self) -> Result<()> {
        if self.process.is_none() {
            self.process = Some(self.program.launch().await?);
        }
        Ok(())
    }
}
