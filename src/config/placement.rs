//! Where the rows of a rule or a group are: the schema of the table, and the tenant of each row.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::core::tenant::{Tenant, is_valid_name};

/// Most tenants in a map.
const TENANTS_MAX: usize = 10_000;

/// Longest prefix of tenants' names; a UUID fits behind it.
const PREFIX_BYTES_MAX: usize = 12;

/// The tenant of the rows of a table outside of the tenants' schemas: one for all rows, or one that a column names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantOf {
    /// The tenant of all rows.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub constant: String,
    /// The column that names the tenant of a row.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub column: String,
    /// Text that the name of the tenant has before the value: `org_` makes `org_7` of `7`. A UUID is written with `_` in place
    /// of `-`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Tenants by value of the column: other values name none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, String>,
}

impl TenantOf {
    /// The name of the tenant that a value of the column names, whether or not the tenant exists. No two values name one
    /// tenant.
    pub fn tenant_of<'a>(&'a self, value: &'a str) -> Option<Cow<'a, str>> {
        if !self.tenants.is_empty() {
            return self.tenants.get(value).map(|tenant| tenant.as_str().into());
        }
        let name: Cow<'_, str> = match self.prefix.as_str() {
            "" => value.into(),
            prefix if is_canonical_uuid(value) => format!("{prefix}{}", value.replace('-', "_")).into(),
            // The form that a UUID gets.
            _ if is_canonical_uuid(&value.replace('_', "-")) => return None,
            prefix => format!("{prefix}{value}").into(),
        };
        is_valid_name(&name).then_some(name)
    }

    /// The value of the column that names a tenant.
    pub fn value_of(&self, tenant: &str) -> Option<String> {
        if !self.tenants.is_empty() {
            let mut values = self.tenants.iter();
            return values.find(|(_, name)| *name == tenant).map(|(value, _)| value.clone());
        }
        let value = tenant.strip_prefix(self.prefix.as_str())?;
        let uuid = value.replace('_', "-");
        Some(match self.prefix.as_str() {
            "" => value.to_owned(),
            _ if is_canonical_uuid(&uuid) => uuid,
            _ => value.to_owned(),
        })
    }

    /// Whether some row may be the tenant's.
    pub fn may_be(&self, tenant: &str) -> bool {
        if self.column.is_empty() {
            return self.constant == tenant;
        }
        self.value_of(tenant).is_some()
    }

    /// The error says what is wrong with it.
    fn check(&self) -> Result<(), String> {
        let is_name = |key: &str, name: &str| {
            let text = || format!("{key} is {name:?}: allowed are a letter and up to 47 of a-z, 0-9 and _");
            if is_valid_name(name) { Ok(()) } else { Err(text()) }
        };
        match (self.constant.as_str(), self.column.as_str()) {
            ("", "") => return Err("tenant must have `column` or `constant`".into()),
            ("", column) if column.len() > 63 => return Err("tenant.column has more than 63 bytes".into()),
            ("", _) => {}
            (constant, "") => {
                is_name("tenant.constant", constant)?;
                if !self.prefix.is_empty() || !self.tenants.is_empty() {
                    return Err("tenant.prefix and tenant.tenants are for `column`".into());
                }
            }
            _ => return Err("tenant.column and tenant.constant exclude each other".into()),
        }
        if !self.prefix.is_empty() {
            is_name("tenant.prefix", &self.prefix)?;
            if self.prefix.len() > PREFIX_BYTES_MAX {
                return Err(format!("tenant.prefix has more than {PREFIX_BYTES_MAX} bytes"));
            }
            if !self.tenants.is_empty() {
                return Err("tenant.prefix and tenant.tenants exclude each other".into());
            }
        }
        if self.tenants.len() > TENANTS_MAX {
            return Err(format!("tenant.tenants has more than {TENANTS_MAX} values"));
        }
        let mut seen = BTreeSet::new();
        for (value, tenant) in &self.tenants {
            is_name(&format!("tenant.tenants.{value:?}"), tenant)?;
            if value.contains('\0') || !seen.insert(tenant) {
                return Err(format!(
                    "tenant.tenants has two values for {tenant:?}: a created row needs one"
                ));
            }
        }
        Ok(())
    }
}

fn is_canonical_uuid(text: &str) -> bool {
    Uuid::try_parse(text).is_ok_and(|id| *id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text)
}

/// The table of a rule or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement<'a> {
    pub table: &'a str,
    /// The schema and the tenants of a table that is not in each tenant's schema.
    pub outside: Option<(&'a str, &'a TenantOf)>,
}

/// Which rows of a table are a tenant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share<'a> {
    Whole,
    /// Those with this value, as text, in the column.
    Part {
        column: &'a str,
        value: String,
    },
}

impl<'a> Placement<'a> {
    /// The placement of a table by the keys `schema` and `tenant`.
    pub(super) fn of(table: &'a str, schema: Option<&'a String>, tenant: Option<&'a TenantOf>) -> Self {
        Self {
            table,
            outside: schema.map(String::as_str).zip(tenant),
        }
    }

    /// Whether it is this table.
    pub fn is(&self, schema: &str, table: &str) -> bool {
        self.table == table && self.outside.is_some_and(|(own, _)| own == schema)
    }

    /// The schema of a tenant's rows.
    pub fn schema<'t>(&self, tenant: &'t Tenant) -> &'t str
    where
        'a: 't,
    {
        self.outside.map_or(tenant.schema.as_str(), |(schema, _)| schema)
    }

    /// The rows of a tenant; `None` if the table has none of the tenant.
    pub fn share_of(&self, tenant: &str) -> Option<Share<'a>> {
        let Some((_, of)) = self.outside else {
            return Some(Share::Whole);
        };
        if of.column.is_empty() {
            return (of.constant == tenant).then_some(Share::Whole);
        }
        of.value_of(tenant).map(|value| Share::Part {
            column: &of.column,
            value,
        })
    }

    /// The column that names the tenant.
    pub fn tenant_column(&self) -> Option<&'a str> {
        let (_, of) = self.outside?;
        Some(of.column.as_str()).filter(|column| !column.is_empty())
    }
}

/// Checks the keys `schema` and `tenant`; the error says what is wrong with them.
pub(super) fn check(schema: Option<&String>, tenant: Option<&TenantOf>) -> Result<(), String> {
    match (schema, tenant) {
        (None, None) => Ok(()),
        (None, Some(_)) => {
            Err("tenant is for a table with `schema`: a table in each tenant's schema has its tenant".into())
        }
        (Some(schema), _) if schema.is_empty() || schema.len() > 63 || schema.contains('\0') => {
            Err(format!("schema is {schema:?}: allowed is a name of 1 to 63 bytes"))
        }
        (Some(schema), _) if is_reserved(schema) => Err(format!(
            "schema is {schema:?}: omit it for tables in the tenants' schemas; those of Posduif and Postgres are not delivered"
        )),
        (Some(_), None) => Err(
            "a table with `schema` needs `tenant`: {column: <the column that names it>} or {constant: <a tenant>}"
                .into(),
        ),
        (Some(_), Some(tenant)) => tenant.check(),
    }
}

fn is_reserved(schema: &str) -> bool {
    ["tenant_", "pg_"].iter().any(|prefix| schema.starts_with(prefix))
        || ["posduif", "information_schema"].contains(&schema)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{load, refusal};
    use super::*;

    fn by_prefix(prefix: &str) -> TenantOf {
        TenantOf {
            column: "org_id".into(),
            prefix: prefix.into(),
            ..TenantOf::default()
        }
    }

    #[test]
    fn value_names_one_tenant_and_a_tenant_one_value() {
        let mapped = TenantOf {
            column: "org_id".into(),
            tenants: [("1", "acme"), ("2", "globex")]
                .map(|(value, name)| (value.into(), name.into()))
                .into(),
            ..TenantOf::default()
        };
        let uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        for (of, value, tenant) in [
            (by_prefix(""), "acme", Some("acme")),
            (by_prefix(""), "7", None),
            (by_prefix(""), "Acme", None),
            (by_prefix("org_"), "7", Some("org_7")),
            (by_prefix("org_"), "-7", None),
            (
                by_prefix("org_"),
                uuid,
                Some("org_7c9e6679_7425_40de_944b_e07fc1f90ae7"),
            ),
            (by_prefix("org_"), "7c9e6679_7425_40de_944b_e07fc1f90ae7", None),
            (mapped.clone(), "1", Some("acme")),
            (mapped, "acme", None),
        ] {
            assert_eq!(of.tenant_of(value).as_deref(), tenant, "{value}");
            if let Some(tenant) = tenant {
                assert_eq!(of.value_of(tenant).as_deref(), Some(value));
                assert!(of.may_be(tenant));
            }
        }
        assert!(!by_prefix("org_").may_be("acme"));
    }

    #[test]
    fn placement_that_would_mix_tenants_is_refused_with_the_reason() {
        let rule = |keys: &str| format!("routes: [{{table: tasks, to: [owner], {keys}}}]");
        for (yaml, expected) in [
            (rule("schema: public"), "needs `tenant`"),
            (rule("tenant: {column: org}"), "for a table with `schema`"),
            (rule("schema: public, tenant: {}"), "`column` or `constant`"),
            (rule("schema: public, tenant: {column: org, constant: acme}"), "exclude each other"),
            (rule("schema: public, tenant: {constant: Acme}"), "tenant.constant is \"Acme\""),
            (rule("schema: public, tenant: {column: org, prefix: 7_}"), "tenant.prefix is \"7_\""),
            (rule("schema: public, tenant: {column: org, prefix: o, tenants: {a: b}}"), "exclude each other"),
            (rule("schema: public, tenant: {column: org, tenants: {a: acme, b: acme}}"), "two values for \"acme\""),
            (rule("schema: tenant_acme, tenant: {column: org}"), "omit it for tables in the tenants' schemas"),
            (rule("schema: posduif, tenant: {column: org}"), "are not delivered"),
            (
                rule("schema: public, tenant: {column: org}, upload: {owner: owner, columns: [org]}"),
                "upload.columns names \"org\"",
            ),
            (
                "routes: [{table: tasks, to: [a]}, {table: tasks, to: [b], schema: public, tenant: {column: org}}]".into(),
                "with another `schema` or `tenant`",
            ),
            (
                "{groups: {list: {table: tasks, id: a, user: b}}, routes: [{table: tasks, to: [b], schema: public, tenant: {constant: a}}]}".into(),
                "with another `schema` or `tenant`",
            ),
            (rule("subjects: https://id.example.com"), "`auth.providers`"),
            (rule("columns: [a], upload: {owner: owner, columns: [b]}"), "cannot read"),
            ("routes: [{table: t, to: [a], columns: [x]}, {table: t, to: [b]}]".into(), "the same list"),
        ] {
            let text = refusal(&yaml, &[]);
            assert!(text.contains("key `") && text.contains(expected), "{yaml}: {text}");
        }
        load(
            &rule("schema: public, tenant: {column: org, tenants: {7: acme}}, subjects: none"),
            &[],
        )
        .unwrap();
    }

    proptest! {
        #[test]
        fn no_two_values_name_one_tenant(prefix in "(|[a-z]{1,3}_)", value in "[-a-z0-9_]{1,40}") {
            let of = by_prefix(&prefix);
            if let Some(tenant) = of.tenant_of(&value) {
                prop_assert_eq!(of.value_of(&tenant), Some(value.clone()));
            }
        }
    }
}
