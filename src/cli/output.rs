//! Output of commands. A command builds one value; [`print()`] prints it as text ([`Render`]) or as JSON ([`Serialize`]).
//!
//! The reader of the standard output may go away at any time: `posduif ... | head -1`.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

use super::Global;
use super::table::{Cell, Tone, facts, table};

/// The reader of the standard output is gone. This ends a command without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("standard output closed (broken pipe)")]
pub(super) struct OutputClosed;

/// Wrong usage that clap cannot detect. The command exits with 2, as for usage errors of clap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct UsageError(pub(super) String);

/// Returns a [`UsageError`], as `bail!` does.
macro_rules! usage_error {
    ($($text:tt)*) => {
        return Err($crate::cli::output::UsageError(format!($($text)*)).into())
    };
}
pub(super) use usage_error;

/// Appends a line to a [`Text`].
macro_rules! outln {
    ($out:expr, $($text:tt)*) => {
        $out.line(&format!($($text)*))
    };
}
pub(super) use outln;

/// A value with a text form for people. Its JSON form is [`Serialize`].
pub(super) trait Render: Serialize {
    fn text(&self, out: &mut Text);
}

impl<T: Render> Render for &T {
    fn text(&self, out: &mut Text) {
        (*self).text(out);
    }
}

/// The text form of a value, composed of lines, facts and tables.
#[derive(Debug, Default)]
pub(super) struct Text {
    text: String,
    has_colours: bool,
}

impl Text {
    /// Appends a line. Control characters are escaped, see [`printable`].
    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(&printable_lines(line));
        self.text.push('\n');
    }

    /// Appends an empty line.
    pub(super) fn blank(&mut self) {
        self.text.push('\n');
    }

    /// Appends names and values, one per line.
    pub(super) fn facts<C: Into<Cell>>(&mut self, lines: impl IntoIterator<Item = (&'static str, C)>) {
        self.text.push_str(&facts(lines, self.has_colours));
    }

    /// Appends a table.
    pub(super) fn table<const N: usize, C: Into<Cell>>(
        &mut self,
        header: [&str; N],
        rows: impl IntoIterator<Item = [C; N]>,
    ) {
        self.text.push_str(&table(header, rows, self.has_colours));
    }

    /// Appends a line that begins with a toned word.
    pub(super) fn toned_line(&mut self, tone: Tone, word: &str, rest: &str) {
        self.text.push_str(&tone.paint(word, self.has_colours));
        self.line(rest);
    }
}

/// The text form of a value, coloured where the output may be.
pub(super) fn text_of(value: &impl Render) -> String {
    let mut out = Text {
        text: String::new(),
        has_colours: has_colours(),
    };
    value.text(&mut out);
    out.text
}

/// Prints a value: JSON with `--json`, else text.
///
/// # Errors
/// See [`write()`].
pub(super) fn print(global: &Global, value: &impl Render) -> Result<()> {
    if global.json {
        write(&(printable_lines(&serde_json::to_string_pretty(value)?) + "\n"))
    } else {
        write(&text_of(value))
    }
}

/// The value as one of a sequence: a line of JSON with `--json`, else text.
pub(super) fn frame(global: &Global, value: &impl Render) -> Result<String> {
    Ok(if global.json {
        printable_lines(&serde_json::to_string(value)?) + "\n"
    } else {
        text_of(value)
    })
}

/// Escapes control characters in untrusted text, so that it cannot control the terminal. The escapes are those of JSON,
/// so that JSON stays valid.
pub(super) fn printable(text: &str) -> String {
    escaped(text, char::is_control)
}

/// As [`printable`], for text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    escaped(text, |c| c.is_control() && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    escaped
}

/// Writes a text to the standard output as it is.
///
/// # Errors
/// [`OutputClosed`], or a failure to write, such as a full disk.
pub(super) fn write(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.context("cannot write to the standard output"),
    }
}

/// Prints an error or a warning to stderr. A closed stderr is ignored.
pub(super) fn warn(text: fmt::Arguments<'_>) {
    writeln!(io::stderr(), "posduif: {}", printable_lines(&text.to_string())).ok();
}

/// Prints progress or a hint to stderr. A closed stderr is ignored.
pub(super) fn info(text: fmt::Arguments<'_>) {
    writeln!(io::stderr(), "{}", printable_lines(&text.to_string())).ok();
}

/// Whether the output is a terminal, which can be redrawn in place.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns and rows of the terminal; 80 and 24 if it does not report them.
pub(super) fn terminal_size() -> (usize, usize) {
    let (rows, columns) = console::Term::stdout().size();
    (columns.into(), rows.into())
}

/// Whether the output may have colours: on a terminal that supports them, unless `NO_COLOR` is set
/// (<https://no-color.org>).
pub(super) fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[31mb\u{9b}c\n"), "a\\u001b[31mb\\u009bc\\n");
        assert_eq!(printable("ä \"x\""), "ä \"x\"");
        assert_eq!(printable_lines("a\r\n\tb\u{7}"), "a\\r\n\tb\\u0007");
    }

    #[test]
    fn escaped_json_parses_to_the_same_value() {
        let text = "\u{7f}\u{9b}31m\u{1b}ä";
        let shown = printable_lines(&serde_json::to_string(text).expect("a text"));
        assert!(!shown.contains(char::is_control), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
    }
}
