//! Entry point: parses the command line and runs it. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    posduif::cli::run(posduif::cli::Cli::parse()).await
}
