//! Cells, tones, tables and lists of facts: the parts of [`super::output::Text`].

use std::fmt::Display;

use unicode_width::UnicodeWidthStr as _;

use super::output::printable;

/// The colour of a cell. The text carries the same information without colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Green.
    Good,
    /// Yellow.
    Warning,
    /// Red.
    Bad,
    /// Dimmed.
    Faint,
}

impl Tone {
    /// The text in this tone. Colours are those of ECMA-48.
    pub(super) fn paint(self, text: &str, has_colours: bool) -> String {
        let code = match self {
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
            Self::Faint => "2",
            Self::Plain => "",
        };
        if has_colours && !code.is_empty() && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A cell of a table. Its text is escaped, see [`printable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
    is_number: bool,
}

impl Cell {
    /// A number, a size or the like: right-aligned.
    pub(super) fn number(text: impl Display) -> Self {
        Self {
            text: printable(&text.to_string()),
            tone: Tone::Plain,
            is_number: true,
        }
    }

    #[must_use]
    pub(super) fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self {
            text: printable(&text),
            tone: Tone::Plain,
            is_number: false,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Stands for an absent value.
pub(super) const NOTHING: &str = "-";

/// The value, or [`NOTHING`].
pub(super) fn or_nothing(value: Option<impl Display>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

/// A right-aligned value, or [`NOTHING`].
pub(super) fn number_or_nothing(value: Option<impl Display>) -> Cell {
    Cell::number(or_nothing(value))
}

/// Names and values, one per line.
pub(super) fn facts<C: Into<Cell>>(facts: impl IntoIterator<Item = (&'static str, C)>, has_colours: bool) -> String {
    let facts: Vec<(&str, Cell)> = facts.into_iter().map(|(name, cell)| (name, cell.into())).collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    facts
        .iter()
        .map(|(name, cell)| format!("{name:<width$}  {}\n", cell.tone.paint(&cell.text, has_colours)))
        .collect()
}

/// A table: columns as wide as their widest cell, two spaces between them.
pub(super) fn table<const N: usize, C: Into<Cell>>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [C; N]>,
    has_colours: bool,
) -> String {
    let mut lines = vec![header.map(|name| Cell::from(name).toned(Tone::Faint))];
    lines.extend(rows.into_iter().map(|row| row.map(Into::into)));
    let (mut widths, mut is_number) = ([0; N], [false; N]);
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            widths[column] = widths[column].max(cell.text.width());
            is_number[column] |= cell.is_number;
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut written = String::new();
        for (column, cell) in line.iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.text.width());
            let painted = cell.tone.paint(&cell.text, has_colours);
            let (left, right) = if is_number[column] {
                (&*padding, "")
            } else {
                ("", &*padding)
            };
            written.push_str(&format!("{left}{painted}{right}  "));
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), "22".to_owned()]];
        assert_eq!(table(["NAME", "N"], rows, false), "NAME    N\na       1\nlonger  22\n");
    }

    #[test]
    fn columns_with_wide_and_combining_characters_are_aligned() {
        let rows = [["日本", "1"], ["e\u{301}", "2"], ["abcd", "3"]];
        assert_eq!(
            table(["N", "M"], rows, false),
            "N     M\n日本  1\ne\u{301}     2\nabcd  3\n"
        );
    }

    #[test]
    fn control_characters_in_a_cell_are_escaped() {
        assert_eq!(
            table(["N"], [["na\u{1b}[2J\nme"]], true),
            "\x1b[2mN\x1b[0m\nna\\u001b[2J\\nme\n"
        );
    }

    #[test]
    fn numbers_are_right_aligned_and_colours_have_no_width() {
        let rows = || {
            [
                [Cell::number(7), Cell::from("well").toned(Tone::Good)],
                [Cell::number("1.5 kB"), Cell::from("ill").toned(Tone::Bad)],
            ]
        };
        assert_eq!(
            table(["SIZE", "IS"], rows(), false),
            "  SIZE  IS\n     7  well\n1.5 kB  ill\n"
        );
        assert_eq!(
            table(["SIZE", "IS"], rows(), true),
            "  \x1b[2mSIZE\x1b[0m  \x1b[2mIS\x1b[0m\n     7  \x1b[32mwell\x1b[0m\n1.5 kB  \x1b[31mill\x1b[0m\n"
        );
    }
}
