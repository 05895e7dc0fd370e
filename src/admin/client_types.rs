//! The types of the rows of own tables as TypeScript clients see them.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::types::Type;

use crate::config::rule::{Merge, Rule};
use crate::core::tenant::{Tenant, quote_identifier};
use crate::decode::value::Kind;
use crate::postgres::{self, Database, sql};

/// An own table that a rule delivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableType {
    pub name: String,
    /// How the server merges edits of its rows, which the client has to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// Empty if the tenant does not have the table.
    pub columns: Vec<ColumnType>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnType {
    pub name: String,
    /// Of its values in JSON, as TypeScript writes it.
    #[serde(rename = "type")]
    pub typescript: String,
    pub nullable: bool,
}

/// The tables of the rules, by name, each with the columns that devices of a tenant receive.
///
/// # Errors
/// When Postgres fails.
pub async fn client_types(
    database: &Database,
    tenant: &Tenant,
    rules: &[Rule],
) -> Result<Vec<TableType>, postgres::Error> {
    let rules = rules
        .iter()
        .filter(|rule| rule.placement().share_of(&tenant.name).is_some());
    let merges: BTreeMap<&str, Merge> = rules
        .clone()
        .filter_map(|rule| Some((rule.table.as_str(), rule.upload.as_ref()?.merge?)))
        .collect();
    let rules: BTreeMap<&str, &Rule> = rules.map(|rule| (rule.table.as_str(), rule)).collect();
    let mut tables = Vec::with_capacity(rules.len());
    for (name, rule) in rules {
        let schema = quote_identifier(rule.placement().schema(tenant));
        let qualified = format!("{schema}.{}", quote_identifier(name));
        let rows = database
            .query(&sql!("admin/client_columns"), &[(&qualified, Type::TEXT)])
            .await?;
        let columns = rows.iter().map(|row| {
            let labels: Option<Vec<String>> = row.try_get("labels")?;
            Ok(ColumnType {
                name: row.try_get("name")?,
                typescript: typescript(row.try_get("type_oid")?, row.try_get("built_in")?, labels.as_deref()),
                nullable: row.try_get("is_nullable")?,
            })
        });
        tables.push(TableType {
            name: name.to_owned(),
            merge: merges.get(name).copied(),
            columns: columns
                .filter(|column| column.as_ref().map_or(true, |column| rule.delivers(&column.name)))
                .collect::<Result<_, postgres::Error>>()?,
        });
    }
    Ok(tables)
}

/// The type of a column's values, see "Row values" in docs/api.md. `built_in` is the name of a type of Postgres itself.
fn typescript(oid: u32, built_in: Option<&str>, labels: Option<&[String]>) -> String {
    if let Some(labels) = labels {
        let labels: Vec<String> = labels.iter().map(|label| quoted(label)).collect();
        return labels.join(" | ");
    }
    let kind = match Kind::of_type(oid) {
        Kind::Text => built_in.and_then(Kind::of_built_in).unwrap_or(Kind::Text),
        kind => kind,
    };
    let is_large = matches!(built_in, Some("int8" | "_int8"));
    match kind {
        Kind::Bool => "boolean",
        // Beyond 2^53 they are strings.
        Kind::Integer if is_large => "number | string",
        Kind::Integer | Kind::Float => "number",
        Kind::Json => "unknown",
        Kind::Bytes | Kind::TimestampTz | Kind::Timestamp | Kind::Text => "string",
        Kind::BoolArray => "(boolean | null)[]",
        Kind::IntegerArray if is_large => "(number | string | null)[]",
        Kind::IntegerArray | Kind::FloatArray => "(number | null)[]",
        Kind::JsonArray => "unknown[]",
        Kind::BytesArray | Kind::TimestampTzArray | Kind::TimestampArray | Kind::TextArray => "(string | null)[]",
    }
    .to_owned()
}

/// A string literal.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_of_the_json_of_rows() {
        for (oid, built_in, expected) in [
            (16, "bool", "boolean"),
            (23, "int4", "number"),
            (20, "int8", "number | string"),
            (1700, "numeric", "string"),
            (3802, "jsonb", "unknown"),
            (1184, "timestamptz", "string"),
            (2950, "uuid", "string"),
            (1016, "_int8", "(number | string | null)[]"),
            (1009, "_text", "(string | null)[]"),
            // A domain over an integer.
            (90_000, "int4", "number"),
        ] {
            assert_eq!(typescript(oid, Some(built_in), None), expected, "{built_in}");
        }
        assert_eq!(typescript(90_001, None, None), "string");
        let labels = ["low".to_owned(), "say \"high\"".to_owned()];
        assert_eq!(typescript(90_002, None, Some(&labels)), r#""low" | "say \"high\"""#);
    }
}
