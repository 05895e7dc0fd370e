//! `posduif serve`.

use clap::Args;

use super::Global;

/// Arguments of `posduif serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {}

impl Serve {
    /// Runs the command.
    pub(super) async fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }
}
