//! The standard output, whose reader may go away at any time: `posduif ... | head -1`.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

/// Nobody reads the output any more. That ends a command, and is no failure of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(super) struct NobodyReads;

/// The command cannot be meant so; it ends with 2, as what clap refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongUsage(pub(super) String);

/// Ends a function with [`WrongUsage`], as `bail!` does.
macro_rules! usage_error {
    ($($text:tt)*) => {
        return Err($crate::cli::output::WrongUsage(format!($($text)*)).into())
    };
}
pub(super) use usage_error;

/// Prints a line to the standard output, as `println!` does, and gives [`NobodyReads`] where that panics. Control
/// characters are shown as what they are, see [`printable`].
macro_rules! outln {
    ($($text:tt)*) => {
        $crate::cli::output::line(&format!($($text)*))
    };
}
pub(super) use outln;

/// A text from others, safe to print: control characters, by which it could speak to the terminal, are shown as what
/// they are, in the manner of JSON, so that JSON stays what it is.
pub(super) fn printable(text: &str) -> String {
    escaped(text, char::is_control)
}

/// The same of a text that may have several lines.
pub(super) fn printable_lines(text: &str) -> String {
    escaped(text, |c| c.is_control() && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    shown
}

/// Prints a line; see [`outln!`].
///
/// # Errors
/// See [`print()`].
pub(super) fn line(text: &str) -> Result<()> {
    print(&format!("{}\n", printable_lines(text)))
}

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
    line(&serde_json::to_string_pretty(value)?)
}

/// Tells what went wrong. When nobody reads that either, nothing is left to be done.
pub(super) fn warn_line(text: fmt::Arguments<'_>) {
    let _unread = writeln!(io::stderr(), "posduif: {}", printable_lines(&text.to_string()));
}

/// Says something beside the output, to whoever looks on.
pub(super) fn remark(text: fmt::Arguments<'_>) {
    let _unread = writeln!(io::stderr(), "{}", printable_lines(&text.to_string()));
}

/// Whether somebody looks at the output: it may be drawn again in place.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns and rows of the terminal that the output is; 80 and 24 where it does not say.
pub(super) fn terminal_size() -> (usize, usize) {
    let (rows, columns) = console::Term::stdout().size();
    (columns.into(), rows.into())
}

/// Whether it may have colours: on a terminal that knows them, and where <https://no-color.org> does not forbid it.
pub(super) fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_speak_to_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\u{9b}c\n"), "a\\u001b[31mb\\u009bc\\n");
        assert_eq!(printable("ä \"x\""), "ä \"x\"");
        assert_eq!(printable_lines("a\r\n\tb\u{7}"), "a\\r\n\tb\\u0007");
    }

    #[test]
    fn escaped_json_says_what_it_said() {
        let text = "\u{7f}\u{9b}31m\u{1b}ä";
        let shown = printable_lines(&serde_json::to_string(text).expect("a text"));
        assert!(!shown.contains(char::is_control), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
    }
}
