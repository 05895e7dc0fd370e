//! `posduif dev`.

use clap::Args;

use super::Global;

/// Arguments of `posduif dev`.
#[derive(Debug, Args)]
pub(super) struct Dev {}

impl Dev {
    /// Runs the command.
    pub(super) async fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }
}
