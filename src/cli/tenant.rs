//! `posduif tenant`.

use clap::Args;

use super::Global;

/// Arguments of `posduif tenant`.
#[derive(Debug, Args)]
pub(super) struct Tenant {}

impl Tenant {
    /// Runs the command.
    pub(super) async fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }
}
