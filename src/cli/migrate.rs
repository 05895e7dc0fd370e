//! `posduif migrate`.

use clap::Args;

use super::Global;

/// Arguments of `posduif migrate`.
#[derive(Debug, Args)]
pub(super) struct Migrate {}

impl Migrate {
    /// Runs the command.
    pub(super) async fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }
}
