//! A tenant's name, schema and state.

/// A tenant's state while it is delivered.
pub const ACTIVE: &str = "active";

/// A tenant's state while it is published but not delivered.
pub const PAUSED: &str = "paused";

/// The state of a tenant that is registered, while the schema that held its tables is gone.
pub const SCHEMA_MISSING: &str = "schema missing";

/// A tenant's name and schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// What people and tokens call it, for example `demo`.
    pub name: String,
    /// The schema that holds its tables, for example `tenant_demo`.
    pub schema: String,
}

impl Tenant {
    /// The tenant of this name, whether or not it exists; `None` when no tenant can have this name.
    pub fn named(name: &str) -> Option<Self> {
        is_valid_name(name).then(|| Self {
            name: name.to_owned(),
            schema: format!("tenant_{name}"),
        })
    }

    /// A statement with `{schema}` replaced by this tenant's schema, quoted.
    pub fn sql(&self, statement: &str) -> String {
        statement.replace("{schema}", &quote_identifier(&self.schema))
    }
}

/// Whether a text can name a tenant: a letter, then up to 47 of a-z, 0-9 and _.
pub fn is_valid_name(name: &str) -> bool {
    is_word(name, 48)
}

/// Whether a text is a letter and behind it a-z, 0-9 and _, up to this length.
pub(super) fn is_word(text: &str, length_max: usize) -> bool {
    let mut bytes = text.bytes();
    matches!(bytes.next(), Some(b'a'..=b'z'))
        && text.len() <= length_max
        && bytes.all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// The word for a tenant's state, in Postgres, in the log and in Redis.
pub fn state_name(paused: bool) -> &'static str {
    if paused { PAUSED } else { ACTIVE }
}

/// Puts a name into double quotes, so that it is an identifier whatever it holds.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tenants() {
        for good in ["a", "demo", "a_1", &"x".repeat(48)] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "1a", "_a", "A", "a-b", "a b", "a\0", "ä", &"x".repeat(49)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn statements_name_the_quoted_schema() {
        let tenant = Tenant::named("demo").expect("a valid name");
        assert_eq!(
            tenant.sql("SELECT FROM {schema}.users"),
            "SELECT FROM \"tenant_demo\".users"
        );
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier("tenant_a"), "\"tenant_a\"");
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
    }
}
