//! What statements are called in metrics and traces: by their file in `sql/`.

use std::collections::HashMap;
use std::sync::LazyLock;

// FILES, which the build script makes of the folder.
include!(concat!(env!("OUT_DIR"), "/statements.rs"));

/// Names by the comment at the head of each file, which no other has and which names no schema.
static NAMES: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| FILES.iter().map(|(name, text)| (head(text), *name)).collect());

/// The name of a statement's file; `other` for one that is put together in code.
pub(crate) fn name(sql: &str) -> &'static str {
    NAMES.get(head(sql)).copied().unwrap_or("other")
}

/// The lines of comment at the beginning.
fn head(sql: &str) -> &str {
    let end = sql
        .split_inclusive('\n')
        .take_while(|line| line.starts_with("--"))
        .map(str::len)
        .sum();
    sql.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tenant::Tenant;

    #[test]
    fn each_statement_has_a_name_of_its_own_in_whatever_schema_it_runs() {
        let tenant = Tenant::named("acme").expect("a valid name");
        assert!(FILES.len() > 50);
        for (file, text) in FILES {
            assert!(!head(text).is_empty(), "sql/{file}.sql has no comment at its head");
            assert_eq!(
                name(&tenant.sql(text)),
                *file,
                "another file has the same comment at its head"
            );
        }
        assert_eq!(name("SELECT 1"), "other");
        assert_eq!(name(""), "other");
        assert_eq!(name("-- nothing like this\nSELECT 1"), "other");
    }
}
