//! `docs/sync-protocol.md`, the specification that the cases test: its headings, and the rows of its tables.

use std::sync::OnceLock;

/// The text of the specification.
const TEXT: &str = include_str!("../../docs/sync-protocol.md");

/// Where readers find it.
pub const PATH: &str = "docs/sync-protocol.md";

/// A heading, as the ids of cases name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// Its words before the first comma, in lower case, with hyphens.
    pub name: String,
    /// The fragment of its address on a page of documentation.
    pub anchor: String,
    pub title: String,
}

/// A row of the tables of states and events, by the name of its test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub test: String,
    pub event: String,
    pub action: String,
}

/// All headings below the title.
pub fn headings() -> &'static [Heading] {
    static HEADINGS: OnceLock<Vec<Heading>> = OnceLock::new();
    HEADINGS.get_or_init(|| {
        let lines = TEXT.lines().filter(|line| line.starts_with("##"));
        lines
            .map(|line| line.trim_start_matches('#').trim())
            .map(|title| Heading {
                name: slug(title.split(',').next().unwrap_or_default()),
                anchor: slug(title),
                title: title.to_owned(),
            })
            .collect()
    })
}

/// The heading of a case's id, `heading/what-happens`.
pub fn heading_of(id: &str) -> Option<&'static Heading> {
    let name = id.split('/').next()?;
    headings().iter().find(|heading| heading.name == name)
}

/// The rows of all tables that name a test.
pub fn rows() -> &'static [Row] {
    static ROWS: OnceLock<Vec<Row>> = OnceLock::new();
    ROWS.get_or_init(|| TEXT.lines().filter_map(row).collect())
}

/// The row of a test.
pub fn row_of(test: &str) -> Option<&'static Row> {
    rows().iter().find(|row| row.test == test)
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
    let test = cells.last()?.strip_prefix('`')?.strip_suffix('`')?;
    test.contains("::").then(|| Row {
        test: test.to_owned(),
        event: cells.first().copied().unwrap_or_default().to_owned(),
        action: cells.get(1).copied().unwrap_or_default().to_owned(),
    })
}

/// The words of a title as a fragment of an address.
fn slug(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
    kept.flat_map(char::to_lowercase)
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_and_rows_of_the_specification_are_found() {
        let outbox = heading_of("the-outbox/applied").expect("a heading");
        assert_eq!(outbox.title, "The outbox, in every state with a token");
        assert_eq!(outbox.anchor, "the-outbox-in-every-state-with-a-token");
        assert_eq!(heading_of("the-cloud/applied"), None);
        let row = row_of("stream::deletes_remove_rows").expect("a row");
        assert!(row.event.starts_with("a batch with deletions"), "{row:?}");
        assert!(row.action.starts_with("deletes those rows"), "{row:?}");
        assert!(rows().len() > 70, "{} rows", rows().len());
    }
}
