//! `posduif routes`: checks rules and groups against the database, and explains who sees a row.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::output::{self, Render, Text, outln};
use super::table::Tone;
use super::{Global, find_tenant, human, known_tenant};
use crate::admin::level::Level;
use crate::admin::routes::{self, Audience, Explanation, Report, TableReport};
use crate::postgres::Database;

#[derive(Debug, Args)]
pub(super) struct Routes {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what each rule and group matches, and what prevents its rows from being delivered or written
    Check {
        /// Only the tables of this tenant's schema, and those outside of tenants' schemas
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Show who sees a row now, by which rule and why
    Explain {
        /// Tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
        /// Table as clients name it
        #[arg(long)]
        table: String,
        /// Value of the row's column `id`
        #[arg(long, allow_hyphen_values = true)]
        id: String,
    },
}

impl Routes {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Check { tenant } => {
                let database = Database::connect(&config.postgres).await?;
                if let Some(name) = &tenant {
                    find_tenant(&database, name).await?;
                }
                let report = routes::check(&database, &config, tenant.as_deref(), true).await?;
                output::print(global, &report)?;
                if !report.ok {
                    bail!(
                        "{} cannot be delivered or written as configured",
                        human::count(report.failed, "table")
                    );
                }
                Ok(())
            }
            Verb::Explain { tenant, table, id } => {
                let (database, tenant) = known_tenant(&config, tenant).await?;
                let explanation = Box::pin(routes::explain(&database, &config, &tenant, &table, &id)).await?;
                output::print(global, &explanation)
            }
        }
    }
}

fn tone(level: Level) -> Tone {
    match level {
        Level::Ok => Tone::Good,
        Level::Warn => Tone::Warning,
        Level::Fail => Tone::Bad,
    }
}

impl Render for Report {
    fn text(&self, out: &mut Text) {
        if self.tables.is_empty() {
            outln!(
                out,
                "the configuration has no rules and no groups, or there is no tenant"
            );
            return;
        }
        for table in &self.tables {
            table_text(table, out);
        }
        outln!(
            out,
            "{}: {} failed, {}",
            human::count(self.tables.len(), "table"),
            self.failed,
            human::count(self.warned, "warning")
        );
    }
}

fn table_text(table: &TableReport, out: &mut Text) {
    let level = table.level();
    let name = format!("{}.{}", table.schema, table.table);
    out.toned_line(
        tone(level),
        &format!("{:<4}", level.as_str()),
        &format!("  {name} ({}), rows {}", table.named_by.join(", "), table.rows_of),
    );
    if let Some(identity) = &table.replica_identity {
        let to = if table.to.is_empty() {
            "no users".to_owned()
        } else {
            table.to.join(", ")
        };
        let published = if table.published { "published" } else { "not published" };
        outln!(out, "      to {to}; {published}, replica identity {identity}");
        let delivered = table.columns.iter().filter(|column| column.delivered);
        let delivered: Vec<String> = delivered
            .map(|column| format!("{} {}", column.name, column.type_name))
            .collect();
        if !delivered.is_empty() {
            outln!(out, "      devices receive {}", delivered.join(", "));
        }
    }
    for finding in &table.findings {
        outln!(out, "      {}: {}.", finding.level.as_str(), finding.text);
        for fix in &finding.fix {
            let role = if finding.by_owner {
                " (as the owner or a superuser)"
            } else {
                ""
            };
            outln!(out, "      fix{role}: {fix};");
        }
    }
}

impl Render for Explanation {
    fn text(&self, out: &mut Text) {
        let Self { tenant, table, id, .. } = self;
        let verdict = if self.seen { "is seen" } else { "is seen by no user" };
        outln!(out, "row {id} of {table}, tenant {tenant}, {verdict}");
        for reason in &self.reasons {
            outln!(out, "  {reason}");
        }
        for rule in &self.rules {
            let shows = if rule.shows { "shows it" } else { "does not show it" };
            outln!(out, "{} (event {}) {shows}", rule.rule, rule.event);
            for note in &rule.notes {
                outln!(out, "  {note}");
            }
            for audience in &rule.audiences {
                outln!(out, "  {}", audience_text(audience));
            }
        }
    }
}

fn audience_text(audience: &Audience) -> String {
    let Some(column) = &audience.column else {
        return "all users of the tenant".to_owned();
    };
    let value = audience.value.as_deref().unwrap_or("NULL");
    let users: Vec<String> = audience
        .users
        .iter()
        .flatten()
        .map(|user| match (&user.username, user.is_inactive) {
            (Some(name), false) => name.clone(),
            (Some(name), true) => format!("{name}, who is disabled or deleted"),
            (None, _) => format!("{}, who is no user of the tenant", user.id),
        })
        .collect();
    let kind = if audience.kind == "user" {
        String::new()
    } else {
        format!(" ({})", audience.kind)
    };
    let note = audience.note.iter().map(String::as_str);
    let parts: Vec<&str> = users.iter().map(String::as_str).chain(note).collect();
    format!("{column} = {value}{kind}: {}", parts.join(", "))
}
