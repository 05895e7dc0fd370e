//! `posduif client`: what developers of clients need of an installation.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Render, Text, outln};
use super::{Global, known_tenant};
use crate::admin::client_types::{ColumnType, TableType, client_types};
use crate::config::Config;
use crate::config::rule::Merge;

#[derive(Debug, Args)]
pub(super) struct Client {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the types of the rows of own tables in TypeScript, for @posduif/client
    Types {
        /// The tenant whose tables are read [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
    },
}

impl Client {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Types { tenant } => output::print(global, &types(&config, tenant).await?),
        }
    }
}

#[derive(Serialize)]
struct Types {
    tenant: String,
    tables: Vec<TableType>,
}

async fn types(config: &Config, tenant: Option<String>) -> Result<Types> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let (tables, absent): (Vec<_>, Vec<_>) = client_types(&database, &tenant, &config.routes)
        .await?
        .into_iter()
        .partition(|table| !table.columns.is_empty());
    if let Some(table) = absent.first() {
        output::warn(format_args!(
            "the tenant {} has no table {:?}, which a rule names; it is left out",
            tenant.name, table.name
        ));
    }
    if tables.is_empty() {
        bail!(
            "no rule in `routes` names a table of the tenant {}: add a rule, or name another tenant with --tenant",
            tenant.name
        );
    }
    Ok(Types {
        tenant: tenant.name,
        tables,
    })
}

impl Render for Types {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "// Rows of the tenant {}, by `posduif client types`. Run it again when a table changes.",
            self.tenant
        );
        outln!(out, "import {{ table }} from '@posduif/client'");
        for TableType { name, columns, .. } in &self.tables {
            out.blank();
            outln!(out, "export type {} = {{", row_type(name));
            for ColumnType {
                name,
                typescript,
                nullable,
            } in columns
            {
                let or_null = if *nullable { " | null" } else { "" };
                outln!(out, "  {}: {typescript}{or_null}", property(name));
            }
            outln!(out, "}}");
        }
        out.blank();
        outln!(out, "export const tables = {{");
        for TableType { name, merge, .. } in &self.tables {
            let options = match merge {
                Some(Merge::Columns) => "{ merge: 'columns' }",
                None => "",
            };
            outln!(out, "  {}: table<{}>({options}),", property(name), row_type(name));
        }
        outln!(out, "}}");
    }
}

/// `list_members` is `ListMembersRow`.
fn row_type(table: &str) -> String {
    let words = table
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    let mut name: String = words
        .flat_map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_uppercase().chain(letters).collect::<String>())
        })
        .collect();
    if !name.starts_with(char::is_alphabetic) {
        name.insert(0, 'T');
    }
    name + "Row"
}

/// A name as the name of a property.
fn property(name: &str) -> String {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    if name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit()) {
        return name.to_owned();
    }
    serde_json::Value::from(name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_typescript_names() {
        assert_eq!(row_type("tasks"), "TasksRow");
        assert_eq!(row_type("list_members"), "ListMembersRow");
        assert_eq!(row_type("2024 plan"), "T2024PlanRow");
        assert_eq!(property("due_at"), "due_at");
        assert_eq!(property("due at"), "\"due at\"");
        assert_eq!(property("2nd"), "\"2nd\"");
    }
}
