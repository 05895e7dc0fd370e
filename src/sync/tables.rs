//! Rows of the operator's own tables, read from Postgres in the form of the stream.
//!
//! The rule that routes a table's changes also determines which rows a user sees. Values are printed by Postgres' output
//! functions and converted to JSON by the same code as those of the log.

use std::collections::HashSet;

use bytes::Bytes;
use postgres_types::Type;
use serde::Serialize;
use uuid::Uuid;

use super::described::{Parameters, Table};
use super::members::{MemberTables, member_tables};
use crate::config::group::{Group, Groups};
use crate::config::placement::Placement;
use crate::config::rule::{Recipient, Rule, user_names};
use crate::config::{Config, Provider};
use crate::contract::entry::Text;
use crate::contract::group::GroupId;
use crate::contract::stream_name::Audience;
use crate::core::page::{Page, Rows, Start};
use crate::core::subject::UserNames;
use crate::core::tenant::{Tenant, quote_identifier};
use crate::decode::value;
use crate::feature;
use crate::feature::viewer::Viewer;
use crate::postgres::{Database, Statement, sql};

/// OIDs below are of types that Postgres brings.
pub(super) const FIRST_USER_OID: u32 = 16_384;

/// Who sees which rows: the rules, and the groups that they name.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    pub rules: &'a [Rule],
    pub groups: &'a Groups,
    /// Whose subjects columns may hold.
    pub providers: &'a [Provider],
}

#[derive(Debug)]
pub struct Row {
    /// The column `id`, as text.
    pub id: String,
    /// The whole row as JSON.
    pub json: Text,
    /// The audiences that see it as a JSON array, where a rule sends rows of the table to groups.
    pub via: Option<Text>,
}

impl<'a> Viewer<'a> {
    /// The author of uploads.
    pub(super) async fn author(
        database: &Database,
        tenant: &'a Tenant,
        user: Uuid,
        routing: Routing<'_>,
    ) -> Result<Self, feature::Error> {
        let rules = routing.rules.iter().filter(|rule| rule.upload.is_some());
        let subjects = rules.map(|rule| &rule.subjects);
        let subjects = subjects.chain(routing.groups.values().map(|group| &group.subjects));
        let names = subjects.map(|subjects| routing.names(subjects.as_ref()));
        Self::of(database, tenant, user, names).await
    }
}

/// The form of a table, from which an app can create its own.
#[derive(Debug, PartialEq, Serialize)]
pub struct TableForm {
    /// The name under `changes`.
    pub name: String,
    /// In Postgres' order.
    pub columns: Vec<ColumnForm>,
    /// Columns that devices may write.
    pub writable: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct ColumnForm {
    pub name: String,
    /// Postgres' name of its type: `uuid`, `int8`, `_text` for an array of texts.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// The tables of these rules that exist in the tenant, each once.
pub async fn forms(database: &Database, tenant: &Tenant, rules: &[Rule]) -> Result<Vec<TableForm>, feature::Error> {
    let mut forms: Vec<TableForm> = Vec::new();
    for rule in rules {
        let writable = rule.upload.iter().flat_map(|upload| upload.columns.iter().cloned());
        if let Some(known) = forms.iter_mut().find(|form| form.name == rule.table) {
            known.writable.extend(writable);
        } else if let Some(table) = Table::with_id(database, tenant, rule.placement()).await? {
            let delivered = table.columns.into_iter().filter(|column| rule.delivers(&column.name));
            let columns = delivered.map(|column| ColumnForm {
                name: column.name,
                type_name: column.type_name,
            });
            forms.push(TableForm {
                name: rule.table.clone(),
                columns: columns.collect(),
                writable: writable.collect(),
            });
        }
    }
    Ok(forms)
}

/// The next rows that a user sees by a rule, in the order of their ids as text. A table that does not exist in the tenant, or
/// lacks `id` or a column of the rule, has none.
pub async fn visible(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    selection: Selection<'_>,
    after: &str,
    bounds: Bounds,
) -> Result<Part, feature::Error> {
    let Selection { rule, group } = selection;
    let Some(table) = Table::with_id(database, tenant, rule.placement()).await? else {
        return Ok(Part::default());
    };
    let view = View::of(database, tenant, user, routing, vec![rule]).await?;
    let mut parameters = Parameters::default();
    let bounds = Bounds {
        rows_max: bounds.rows_max.min(table.rows_of(bounds.bytes_max)),
        ..bounds
    };
    let rows_max = i64::try_from(bounds.rows_max).unwrap_or(i64::MAX);
    let (after, limit) = (parameters.text(after), parameters.add(rows_max, Type::INT8));
    let sees = match group {
        Some(group) => table.condition_of_group(rule, group, &view, &mut parameters),
        None => table.condition(rule, &view, &mut parameters),
    };
    let Some(sees) = sees else {
        return Ok(Part::default());
    };
    let statement = format!(
        "{} WHERE {sees} AND t.id::text COLLATE \"C\" > {after} ORDER BY t.id::text COLLATE \"C\" LIMIT {limit}",
        table.select(),
    );
    let view = View {
        rules: routing.of(&rule.table),
        ..view
    };
    let mut part = Part::default();
    let is_whole = table
        .read_rows(database, statement, &parameters, &view, |row| part.add(row, bounds))
        .await?;
    part.is_cut = !is_whole || part.rows.len() >= bounds.rows_max;
    Ok(part)
}

/// How much is read at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub rows_max: usize,
    /// Bytes of rows at which no further one is read.
    pub bytes_max: usize,
}

/// Rows that were read within [`Bounds`].
#[derive(Debug, Default)]
pub struct Part {
    pub rows: Vec<Row>,
    /// There may be more.
    pub is_cut: bool,
    bytes: usize,
}

impl Part {
    /// Keeps a row, and returns whether another one may come. Behind the last one that the statement has, none does: it need
    /// not be cancelled.
    fn add(&mut self, row: Row, bounds: Bounds) -> bool {
        self.bytes += row.json.as_bytes().len();
        self.rows.push(row);
        self.bytes < bounds.bytes_max || self.rows.len() >= bounds.rows_max
    }
}

/// Rows that a user sees by a rule: all of them, or those of one group.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    pub rule: &'a Rule,
    pub group: Option<&'a GroupId>,
}

impl<'a> Routing<'a> {
    /// That of the configuration.
    pub fn configured(config: &'a Config) -> Self {
        Self {
            rules: &config.routes,
            groups: &config.groups,
            providers: &config.auth.providers,
        }
    }

    /// How the columns of a rule name users. Those of Posduif's own tables have ids.
    pub(super) fn names_of(self, rule: &Rule) -> UserNames {
        match Rule::has_built_in(&rule.table) {
            true => UserNames::Ids,
            false => self.names(rule.subjects.as_ref()),
        }
    }

    /// How the columns of a rule or a group name users.
    pub(super) fn names(self, subjects: Option<&String>) -> UserNames {
        user_names(subjects, self.providers)
    }

    /// The rules of a table.
    fn of(self, table: &str) -> Vec<&'a Rule> {
        self.rules.iter().filter(|rule| rule.table == table).collect()
    }
}

/// A page of the rows that a user sees by the rules of a table, in the order of their ids as text. It ends early at
/// `bytes_max` bytes. `None` if no rule names the table, or the tenant does not have it.
pub async fn page(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    table: &str,
    page: &Page,
    bytes_max: usize,
) -> Result<Option<Rows<Row>>, feature::Error> {
    let rules = routing.of(table);
    let Some(first) = rules.first() else {
        return Ok(None);
    };
    let Some(described) = Table::with_id(database, tenant, first.placement()).await? else {
        return Ok(None);
    };
    let view = View::of(database, tenant, user, routing, rules).await?;
    let mut parameters = Parameters::default();
    let place = parameters.add(page.place().map(|(_, id)| id.to_owned()), Type::TEXT);
    let limit = parameters.add(page.rows_max(), Type::INT8);
    let sees: Vec<String> = view
        .rules
        .iter()
        .filter_map(|rule| described.condition(rule, &view, &mut parameters))
        .collect();
    let mut found = Rows {
        rows: Vec::new(),
        total: None,
        has_more: false,
    };
    if !sees.is_empty() {
        let is_upwards = matches!(page.start, Start::Before(_));
        let (beyond, order) = if is_upwards { ("<", "DESC") } else { (">", "ASC") };
        let id = "t.id::text COLLATE \"C\"";
        let statement = format!(
            "{} WHERE ({}) AND ({place}::text IS NULL OR {id} {beyond} {place}) ORDER BY {id} {order} LIMIT {limit}",
            described.select(),
            sees.join(" OR ")
        );
        let bounds = Bounds {
            rows_max: usize::try_from(page.rows_max()).unwrap_or(usize::MAX),
            bytes_max,
        };
        let mut part = Part::default();
        let is_whole = described
            .read_rows(database, statement, &parameters, &view, |row| part.add(row, bounds))
            .await?;
        found.rows = part.rows;
        let is_beyond = found.rows.len() as u64 > page.limit.unsigned_abs();
        if is_beyond {
            found.rows.pop();
        }
        found.has_more = is_beyond || !is_whole;
        if is_upwards {
            found.rows.reverse();
        }
    }
    Ok(Some(found))
}

/// Hands on those of the rows with these ids that a user sees by the rules of the table, among them the built-in ones, until
/// `each` returns false. Returns whether all have come.
pub async fn by_id(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    table: &str,
    ids: &[String],
    each: impl FnMut(Row) -> bool,
) -> Result<bool, feature::Error> {
    let own = routing.of(table);
    let placement = own
        .first()
        .map_or(Placement { table, outside: None }, |rule| rule.placement());
    let Some(described) = Table::with_id(database, tenant, placement).await? else {
        return Ok(true);
    };
    let view = View::of(database, tenant, user, routing, own).await?;
    let mut parameters = Parameters::default();
    let ids = parameters.add(ids.to_vec(), Type::TEXT_ARRAY);
    let built_in = Rule::all_built_in();
    let rules = built_in
        .iter()
        .filter(|rule| rule.table == table)
        .chain(view.rules.iter().copied());
    let sees = rules.filter_map(|rule| described.condition(rule, &view, &mut parameters));
    let sees: Vec<String> = sees.collect();
    if sees.is_empty() {
        return Ok(true);
    }
    let statement = format!(
        "{} WHERE t.id::text = ANY({ids}) AND ({})",
        described.select(),
        sees.join(" OR ")
    );
    described.read_rows(database, statement, &parameters, &view, each).await
}

/// The rules of a table for a user, with what they need to be applied.
struct View<'a> {
    viewer: Viewer<'a>,
    routing: Routing<'a>,
    rules: Vec<&'a Rule>,
    members: MemberTables,
}

impl<'a> View<'a> {
    async fn of(
        database: &Database,
        tenant: &'a Tenant,
        user: Uuid,
        routing: Routing<'a>,
        rules: Vec<&'a Rule>,
    ) -> Result<Self, feature::Error> {
        let members = member_tables(database, tenant, rules.iter().copied(), routing).await?;
        let groups = members.keys().filter_map(|name| routing.groups.get(name));
        let of_rules = rules.iter().map(|rule| routing.names_of(rule));
        let names = of_rules.chain(groups.map(|group| routing.names(group.subjects.as_ref())));
        Ok(Self {
            viewer: Viewer::of(database, tenant, user, names).await?,
            routing,
            rules,
            members,
        })
    }
}

/// The tables in tenants' schemas into which devices upload by these rules, and in which ids are not unique: two users may have
/// rows of the same id.
pub async fn without_unique_id(database: &Database, rules: &[Rule]) -> Result<Vec<(String, String)>, feature::Error> {
    let uploads = rules.iter().filter(|rule| rule.upload.is_some());
    let uploads = uploads.filter(|rule| rule.placement().outside.is_none());
    let names: Vec<&str> = uploads.map(|rule| rule.table.as_str()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rows = database
        .query(&sql!("sync/tables_without_unique_id"), &[(&names, Type::TEXT_ARRAY)])
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("schema")?, row.try_get("table")?)))
        .collect()
}

/// A table in which a group and a member may stand twice.
#[derive(Debug, PartialEq)]
pub struct AmbiguousMembers {
    pub schema: String,
    pub table: String,
    /// The columns with the group and the member.
    pub columns: [String; 2],
}

/// The tables in tenants' schemas with memberships in which a group and a member may stand twice: the end of one row would end the
/// membership, although the other row is there.
pub async fn ambiguous_members(database: &Database, groups: &Groups) -> Result<Vec<AmbiguousMembers>, feature::Error> {
    let of_tenants = || groups.values().filter(|group| group.placement().outside.is_none());
    let column = |get: fn(&Group) -> &String| -> Vec<&str> { of_tenants().map(|group| get(group).as_str()).collect() };
    let (tables, ids, users) = (
        column(|group| &group.table),
        column(|group| &group.id),
        column(|group| &group.user),
    );
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let rows = database
        .query(
            &sql!("sync/tables_without_unique_members"),
            &[
                (&tables, Type::TEXT_ARRAY),
                (&ids, Type::TEXT_ARRAY),
                (&users, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let found = rows.iter().map(|row| {
        Ok(AmbiguousMembers {
            schema: row.try_get("schema")?,
            table: row.try_get("table")?,
            columns: [row.try_get("id_column")?, row.try_get("user_column")?],
        })
    });
    found.collect()
}

/// Who sees a row with these values that is not deleted, as [`crate::route`] finds it for a change: a JSON array.
fn audiences<'v>(view: &View<'_>, value: impl Fn(&str) -> Option<&'v str>) -> Text {
    let mut found: Vec<String> = Vec::new();
    let shows = |rule: &&&Rule| {
        let mut equals = rule.when.equals.iter();
        equals.all(|(column, text)| value(column) == Some(text.as_str()))
    };
    for rule in view.rules.iter().filter(shows) {
        let names = view.routing.names_of(rule);
        if rule.is_for_tenant() {
            found.push(Audience::Tenant.to_string());
            continue;
        }
        for recipient in &rule.to {
            let Some(text) = value(recipient.column()) else {
                continue;
            };
            // Ids that are none are in quarantine.
            let audience = match recipient.group() {
                Some((group, _)) => GroupId::new(&group.as_str().into(), text.as_bytes())
                    .ok()
                    .map(Audience::Group),
                None => names
                    .user_id(&view.viewer.tenant.name, text.as_bytes())
                    .map(Audience::User),
            };
            found.extend(audience.map(|audience| audience.to_string()));
        }
    }
    let mut seen = HashSet::new();
    found.retain(|audience| seen.insert(audience.clone()));
    serde_json::Value::from(found).to_string().into()
}

/// An expression that prints a column by its type's output function; a cast to text differs for some types.
pub(super) fn printed(column: &str) -> String {
    let column = quote_identifier(column);
    format!("CASE WHEN t.{column} IS NOT NULL THEN format('%s', t.{column}) END")
}

impl Table {
    /// The condition under which a user sees a row by a rule. `None` if the table lacks a column of the rule or the one that
    /// names the tenant, or the tenant the table of a group.
    fn condition(&self, rule: &Rule, view: &View<'_>, parameters: &mut Parameters) -> Option<String> {
        let mut conditions = vec![self.is_of_tenant("t", parameters)?];
        if !rule.is_for_tenant() {
            let values = view.viewer.values(&view.routing.names_of(rule));
            let mut recipients = Vec::new();
            for recipient in &rule.to {
                let column = self.column(recipient.column())?;
                recipients.push(match recipient.group() {
                    Some((group, _)) => view.members.get(group)?.includes(column, &view.viewer, parameters)?,
                    None => column.is_one_of("t", &values, parameters),
                });
            }
            conditions.push(format!("({})", recipients.join(" OR ")));
        }
        conditions.extend(self.conditions_of_rows(rule, parameters)?);
        Some(format!("({})", conditions.join(" AND ")))
    }

    /// The same for the rows of one group, of which the user must be a member.
    fn condition_of_group(
        &self,
        rule: &Rule,
        group: &GroupId,
        view: &View<'_>,
        parameters: &mut Parameters,
    ) -> Option<String> {
        let (id, table) = (parameters.text(group.id()), view.members.get(group.name())?);
        let mut recipients = Vec::new();
        let of_group = rule.to.iter().filter_map(Recipient::group);
        for (_, column) in of_group.filter(|(name, _)| *name == group.name()) {
            let column = self.column(column)?;
            let name = quote_identifier(&column.name);
            recipients.push(match column.type_oid {
                // The id was printed from a value of this type, so it is one, and an index serves.
                oid if oid == table.id.type_oid && oid < FIRST_USER_OID => {
                    format!("t.{name} = {id}::text::{}", quote_identifier(&column.type_name))
                }
                _ => format!("t.{name}::text = {id}"),
            });
        }
        if recipients.is_empty() {
            return None;
        }
        let mut conditions = vec![
            self.is_of_tenant("t", parameters)?,
            format!("({})", recipients.join(" OR ")),
            table.has(&id, &view.viewer, parameters)?,
        ];
        conditions.extend(self.conditions_of_rows(rule, parameters)?);
        Some(format!("({})", conditions.join(" AND ")))
    }

    /// What a rule demands of a row for all readers.
    fn conditions_of_rows(&self, rule: &Rule, parameters: &mut Parameters) -> Option<Vec<String>> {
        let mut conditions = Vec::new();
        for (column, text) in &rule.when.equals {
            let column = self.column(column)?;
            conditions.push(format!(
                "{} = {}",
                printed(&column.name),
                parameters.text(text.as_str())
            ));
        }
        let gone = Rule::gone_column(&rule.table);
        if self.column(gone).is_some() {
            conditions.push(format!("t.{gone} IS NULL"));
        }
        Some(conditions)
    }

    fn select(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| printed(&column.name)).collect();
        format!("SELECT t.id::text, {} FROM {} AS t", columns.join(", "), self.name)
    }

    /// Hands on rows as they come, because they may be large, until `each` returns false. Returns whether all have come.
    async fn read_rows(
        &self,
        database: &Database,
        statement: String,
        parameters: &Parameters,
        view: &View<'_>,
        mut each: impl FnMut(Row) -> bool,
    ) -> Result<bool, feature::Error> {
        let mut recipients = view.rules.iter().flat_map(|rule| &rule.to);
        let names_audiences = recipients.any(|to| to.group().is_some());
        let mut failed = None;
        let is_whole = database
            .query_each(
                &Statement::composed(statement).for_tenant(view.viewer.tenant),
                &parameters.as_params(),
                |row| match self.to_row(&row, view, names_audiences) {
                    Ok(row) => each(row),
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                },
            )
            .await?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(is_whole),
        }
    }

    fn to_row(
        &self,
        row: &tokio_postgres::Row,
        view: &View<'_>,
        names_audiences: bool,
    ) -> Result<Row, tokio_postgres::Error> {
        let mut json = vec![b'{'];
        for (index, column) in self.columns.iter().enumerate() {
            if !view.rules.iter().all(|rule| rule.delivers(&column.name)) {
                continue;
            }
            if json.len() > 1 {
                json.push(b',');
            }
            value::write_string(&column.name, &mut json);
            json.push(b':');
            match row.try_get::<_, Option<&str>>(index + 1)? {
                Some(text) => value::write_text(column.kind, text, &mut json),
                None => json.extend_from_slice(b"null"),
            }
        }
        json.push(b'}');
        let value = |name: &str| {
            let index = self.columns.iter().position(|column| column.name == name)?;
            row.try_get::<_, Option<&str>>(index + 1).ok().flatten()
        };
        Ok(Row {
            id: row.try_get(0)?,
            json: Bytes::from(json).into(),
            via: names_audiences.then(|| audiences(view, value)),
        })
    }
}
