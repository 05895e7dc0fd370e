//! Statements: the text of a file of `sql/`, and the file's name for metrics and traces.

use std::borrow::Cow;
use std::ops::Deref;

use crate::core::tenant::Tenant;

/// The statement of a file of `sql/`, named by its path without the extension: `sql!("replication/heartbeat")`. With a
/// tenant, `{schema}` is the tenant's schema: `sql!("accounts/user_get", tenant)`.
macro_rules! sql {
    ($path:literal) => {
        $crate::postgres::statement::Statement::of_file(
            $path,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/", $path, ".sql")),
        )
    };
    ($path:literal, $tenant:expr) => {
        sql!($path).in_schema(&$tenant)
    };
}

pub(crate) use sql;

/// A statement, its name, and the tenant whose tables it needs. It dereferences to its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    name: &'static str,
    text: Cow<'static, str>,
    tenant: Option<String>,
}

impl Statement {
    /// The statement of a file; the macro `sql!` embeds the text.
    pub const fn of_file(path: &'static str, text: &'static str) -> Self {
        Self {
            name: file_name(path),
            text: Cow::Borrowed(text),
            tenant: None,
        }
    }

    /// A statement composed at run time. All of them share the name `other`.
    pub fn composed(text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: "other",
            text: text.into(),
            tenant: None,
        }
    }

    /// The statement in a tenant's schema. The substitution costs one allocation, less than a cache of tenants ×
    /// statements would.
    #[must_use]
    pub fn in_schema(self, tenant: &Tenant) -> Self {
        Self {
            name: self.name,
            text: tenant.sql(&self.text).into(),
            tenant: Some(tenant.name.clone()),
        }
    }

    /// The statement as one that needs tables of a tenant: it takes one of the tenant's connections.
    #[must_use]
    pub fn for_tenant(self, tenant: &Tenant) -> Self {
        Self {
            tenant: Some(tenant.name.clone()),
            ..self
        }
    }

    /// The tenant whose tables it needs.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The file's name without folder and extension, the label of metrics and traces.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl Deref for Statement {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// What follows the last slash.
const fn file_name(path: &str) -> &str {
    let mut start = path.len();
    while start > 0 && path.as_bytes()[start - 1] != b'/' {
        start -= 1;
    }
    path.split_at(start).1
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn statement_of_file_has_its_name_in_any_schema() {
        let tenant = Tenant::named("acme").expect("a valid name");
        let statement = sql!("accounts/user_get", tenant);
        assert_eq!(statement.name(), "user_get");
        assert!(statement.contains("\"tenant_acme\".users"));
        assert_eq!(Statement::composed("SELECT 1").name(), "other");
        assert_eq!(file_name("flat"), "flat");
    }

    #[test]
    fn files_of_sql_have_distinct_names_and_a_comment() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
        let mut names = HashSet::new();
        for folder in fs::read_dir(root).expect("the folder sql") {
            for file in fs::read_dir(folder.expect("an entry").path()).expect("a folder of sql") {
                let path = file.expect("an entry").path();
                let text = fs::read_to_string(&path).expect("a text");
                assert!(text.starts_with("-- "), "{} has no comment at its head", path.display());
                let name = path.file_stem().expect("a name").to_owned();
                assert!(
                    names.insert(name),
                    "{} shares its name with another file",
                    path.display()
                );
            }
        }
        assert!(names.len() > 50);
    }
}
