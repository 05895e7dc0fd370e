//! Tables as Postgres describes them, and conditions on their columns.

use postgres_types::Type;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::config::placement::{Placement, Share};
use crate::core::tenant::{Tenant, quote_identifier};
use crate::decode::relation::Types;
use crate::decode::value::Kind;
use crate::feature;
use crate::postgres::{Database, Param, sql};

/// Rows that are read at once of a table whose size Postgres has not counted.
const UNCOUNTED_ROWS: usize = 100;

/// Parameters of a composed statement, each a text, list of texts or number.
#[derive(Default)]
pub(super) struct Parameters {
    values: Vec<(Box<dyn ToSql + Send + Sync>, Type)>,
}

impl Parameters {
    /// Adds one; gives what stands for it in the statement.
    pub(super) fn add(&mut self, value: impl ToSql + Send + Sync + 'static, kind: Type) -> String {
        self.values.push((Box::new(value), kind));
        format!("${}", self.values.len())
    }

    pub(super) fn text(&mut self, text: impl Into<String>) -> String {
        self.add(text.into(), Type::TEXT)
    }

    pub(super) fn as_params(&self) -> Vec<Param<'_>> {
        let values = self.values.iter();
        values
            .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
            .collect()
    }
}

#[derive(Debug)]
pub(super) struct Table {
    /// Qualified and quoted.
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    /// The column that names the tenant, and its value for this one.
    pub(super) tenant: Option<(String, String)>,
    /// About how many bytes a row has on disk, if Postgres has counted.
    row_bytes: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) type_oid: u32,
    pub(super) type_name: String,
    pub(super) kind: Kind,
}

impl Table {
    /// A tenant's share of a table; `None` if no row can be the tenant's. A table that does not exist has no columns.
    pub(super) async fn read(
        database: &Database,
        tenant: &Tenant,
        placement: Placement<'_>,
    ) -> Result<Option<Self>, feature::Error> {
        let Some(share) = placement.share_of(&tenant.name) else {
            return Ok(None);
        };
        let schema = quote_identifier(placement.schema(tenant));
        let name = format!("{schema}.{}", quote_identifier(placement.table));
        let (columns, row_bytes) = read_columns(database, &name).await?;
        let tenant = match share {
            Share::Whole => None,
            Share::Part { column, value } => Some((column.to_owned(), value)),
        };
        Ok(Some(Self {
            name,
            columns,
            tenant,
            row_bytes,
        }))
    }

    /// The same of a table whose rows have an `id`.
    pub(super) async fn with_id(
        database: &Database,
        tenant: &Tenant,
        placement: Placement<'_>,
    ) -> Result<Option<Self>, feature::Error> {
        let table = Self::read(database, tenant, placement).await?;
        Ok(table.filter(|table| table.column("id").is_some()))
    }

    /// About how many rows have so many bytes.
    pub(super) fn rows_of(&self, bytes: usize) -> usize {
        self.row_bytes.map_or(UNCOUNTED_ROWS, |row| bytes / row.max(1)).max(1)
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The condition under which a row is the tenant's; `None` if the table does not have the column that says so.
    pub(super) fn is_of_tenant(&self, alias: &str, parameters: &mut Parameters) -> Option<String> {
        match &self.tenant {
            None => Some("true".to_owned()),
            Some((column, value)) => Some(self.column(column)?.equals(alias, value, parameters)),
        }
    }
}

impl Column {
    /// The condition that it has a value, by the value's text. A comparison in the column's own type can use an index.
    pub(super) fn equals(&self, alias: &str, value: &str, parameters: &mut Parameters) -> String {
        const NEVER: &str = "false";
        let column = format!("{alias}.{}", quote_identifier(&self.name));
        match Type::from_oid(self.type_oid) {
            Some(Type::INT2 | Type::INT4 | Type::INT8) => match value.parse::<i64>() {
                Ok(number) if number.to_string() == value => {
                    format!("{column} = {}::text::int8", parameters.text(value))
                }
                _ => NEVER.to_owned(),
            },
            Some(Type::UUID) => match Uuid::try_parse(value) {
                Ok(id) if id.to_string() == value => format!("{column} = {}::text::uuid", parameters.text(value)),
                _ => NEVER.to_owned(),
            },
            Some(Type::TEXT | Type::VARCHAR) => format!("{column} = {}::text", parameters.text(value)),
            _ => format!("{column}::text = {}::text", parameters.text(value)),
        }
    }

    /// The condition that it has one of these values.
    pub(super) fn is_one_of(&self, alias: &str, values: &[String], parameters: &mut Parameters) -> String {
        let conditions: Vec<String> = values
            .iter()
            .map(|value| self.equals(alias, value, parameters))
            .collect();
        match conditions.as_slice() {
            [] => "false".to_owned(),
            conditions => format!("({})", conditions.join(" OR ")),
        }
    }
}

async fn read_columns(database: &Database, name: &str) -> Result<(Vec<Column>, Option<usize>), feature::Error> {
    let rows = database
        .query(&sql!("sync/table_columns"), &[(&name, Type::TEXT)])
        .await?;
    let mut types = Types::default();
    let mut columns = Vec::with_capacity(rows.len());
    let row_bytes = rows
        .first()
        .map(|row| row.try_get::<_, Option<i64>>("row_bytes"))
        .transpose()?;
    for row in &rows {
        let type_oid: u32 = row.try_get("type_oid")?;
        // Built-in types are identified by their OID.
        if Kind::of_type(type_oid) == Kind::Text {
            types.insert(type_oid, row.try_get("namespace")?, row.try_get("type_name")?);
        }
        columns.push(Column {
            name: row.try_get("name")?,
            type_oid,
            type_name: row.try_get("type_name")?,
            kind: types.kind(type_oid),
        });
    }
    let row_bytes = row_bytes.flatten().and_then(|bytes| usize::try_from(bytes).ok());
    Ok((columns, row_bytes))
}
