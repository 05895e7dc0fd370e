//! The standard output, whose reader may go away at any time: `posduif ... | head -1`.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

/// Nobody reads the output any more. That ends a command, and is no failure of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(super) struct NobodyReads;

/// Prints a line to the standard output, as `println!` does, and gives [`NobodyReads`] where that panics.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::output::print(&format!("{}\n", format_args!($($text)*)))
    };
}
pub(super) use say;

/// Prints a text as it is.
///
/// # Errors
/// [`NobodyReads`], or why it cannot be written: a full disk, say.
pub(super) fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(NobodyReads.into()),
        written => written.context("cannot write to the standard output"),
    }
}

/// Prints a value as JSON for people and programs.
///
/// # Errors
/// See [`print()`].
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Tells what went wrong. When nobody reads that either, nothing is left to be done.
pub(super) fn complain(text: fmt::Arguments<'_>) {
    let _unread = writeln!(io::stderr(), "posduif: {text}");
}

/// Says something beside the output, to whoever looks on.
pub(super) fn remark(text: fmt::Arguments<'_>) {
    let _unread = writeln!(io::stderr(), "{text}");
}

/// Whether somebody looks at the output: it may be drawn again in place.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether it may have colours: on a terminal that knows them, and where <https://no-color.org> does not forbid it.
pub(super) fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}
