//! `posduif demo`.

use clap::Args;

use super::Global;

/// Arguments of `posduif demo`.
#[derive(Debug, Args)]
pub(super) struct Demo {}

impl Demo {
    /// Runs the command.
    pub(super) async fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }
}
