//! `posduif user`.

use clap::Args;

use super::Global;

/// Arguments of `posduif user`.
#[derive(Debug, Args)]
pub(super) struct User {}

impl User {
    /// Runs the command.
    pub(super) async fn run(self, _global: &Global) -> anyhow::Result<()> {
        anyhow::bail!("not built yet")
    }
}
