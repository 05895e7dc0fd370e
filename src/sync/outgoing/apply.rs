//! Applying a batch in Postgres: checked items in, a result for each item out.

use futures_util::future;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{Json, Type};

use super::form::{sent_id, sent_table};
use super::{ItemCode, ItemResult, Items, Outcome, Uploaded, messages, rows};
use crate::accounts::devices::DevicePrincipal;
use crate::config::{Config, ConflictStrategy};
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::postgres::{self, Client, Database, Statement, sql};

/// Applies a batch in one round trip to Postgres: the messages in one transaction, then the rows in another.
///
/// # Errors
/// Only when Postgres fails.
pub(super) async fn apply(
    database: &Database,
    device: &DevicePrincipal,
    items: Items<'_>,
    config: &Config,
) -> Result<Uploaded, Error> {
    let mut batch = Batch::check(items, device, config);
    let replies = execute(database, device, &batch, config.sync.conflict_strategy).await?;
    batch.fill(items, &replies)?;
    let results: Option<Vec<ItemResult>> = batch.results.into_iter().collect();
    Ok(Uploaded {
        results: results.ok_or_else(|| Error::Internal("Postgres returned no result for an item".into()))?,
        lsn: replies.position.try_get("lsn")?,
        at: Timestamp(replies.position.try_get("now")?),
    })
}

/// A batch whose items were checked: refused items have a result, the others are parameters of the statements.
struct Batch {
    /// In the order of the items, messages first.
    results: Vec<Option<ItemResult>>,
    messages: messages::Batch,
    rows: Vec<Value>,
    /// The index in `results` of each row.
    row_indexes: Vec<usize>,
}

impl Batch {
    fn check(items: Items<'_>, device: &DevicePrincipal, config: &Config) -> Self {
        let mut batch = Self {
            results: Vec::with_capacity(items.messages.len() + items.changes.len()),
            messages: messages::Batch::default(),
            rows: Vec::new(),
            row_indexes: Vec::new(),
        };
        for item in items.messages {
            let index = batch.results.len();
            let parsed = messages::Item::parse(item, device.user_id, config.messages.content_chars_max);
            let parsed = parsed.map(|message| batch.messages.push(index, message));
            batch.results.push(parsed.err().map(|refusal| refusal.result(item)));
        }
        for item in items.changes {
            let index = batch.results.len();
            let parsed = rows::parse(item, &config.routes).map(|row| {
                batch.rows.push(row);
                batch.row_indexes.push(index);
            });
            batch.results.push(parsed.err().map(|refusal| refusal.result(item)));
        }
        batch
    }

    /// Fills in the results that Postgres returned.
    fn fill(&mut self, items: Items<'_>, replies: &Replies) -> Result<(), Error> {
        for row in &replies.messages {
            let index = item_index(row, &self.messages.indexes)?;
            let (status, code) = outcome(row)?;
            self.results[index] = Some(ItemResult {
                table: None,
                id: sent_id(&items.messages[index]),
                status,
                code,
                message: code.and_then(|code| explain(code, status, "message")),
                version: row.try_get("version")?,
                server: row.try_get("server")?,
            });
        }
        for row in &replies.rows {
            let index = item_index(row, &self.row_indexes)?;
            let (status, code) = outcome(row)?;
            let item = &items.changes[index - items.messages.len()];
            let message: Option<String> = row.try_get("message")?;
            self.results[index] = Some(ItemResult {
                table: sent_table(item),
                id: sent_id(item),
                status,
                code,
                message: message.or_else(|| explain(code?, status, "row")),
                version: row.try_get("version")?,
                server: None,
            });
        }
        Ok(())
    }
}

/// What Postgres returned.
struct Replies {
    messages: Vec<Row>,
    rows: Vec<Row>,
    position: Row,
}

/// Runs the statements of a batch, pipelined on one connection: each starts when the one before it has committed, without
/// a round trip in between. futures' `join` polls in order; tokio's does not guarantee that.
async fn execute(
    database: &Database,
    device: &DevicePrincipal,
    batch: &Batch,
    strategy: ConflictStrategy,
) -> Result<Replies, Error> {
    let strategy = match strategy {
        ConflictStrategy::LastWriteWins => "last_write_wins",
        ConflictStrategy::Manual => "manual",
    };
    let messages = &batch.messages;
    let upload_messages = &sql!("sync/upload_messages", device.tenant);
    let message_params: [postgres::Param<'_>; 9] = [
        (&device.user_id, Type::UUID),
        (&device.device_id, Type::TEXT),
        (&strategy, Type::TEXT),
        (&messages.ids, Type::UUID_ARRAY),
        (&messages.ops, Type::TEXT_ARRAY),
        (&messages.recipients, Type::UUID_ARRAY),
        (&messages.contents, Type::TEXT_ARRAY),
        (&messages.bases, Type::INT8_ARRAY),
        (&messages.times, Type::TIMESTAMPTZ_ARRAY),
    ];
    let upload_rows = &sql!("sync/upload_rows", device.tenant);
    let rows = Json(&batch.rows);
    let row_params: [postgres::Param<'_>; 3] = [
        (&device.user_id, Type::UUID),
        (&device.tenant.schema, Type::TEXT),
        (&rows, Type::JSONB),
    ];
    let client = database.get().await?;
    let (messages, rows, position) = future::join3(
        run(
            database,
            &client,
            !messages.ids.is_empty(),
            upload_messages,
            &message_params,
        ),
        run(database, &client, !batch.rows.is_empty(), upload_rows, &row_params),
        client.query_typed_one(&sql!("postgres/wal_position"), &[]),
    )
    .await;
    Ok(Replies {
        messages: messages?,
        rows: rows?,
        position: position?,
    })
}

/// Runs and counts a statement, unless there is nothing for it to do.
async fn run(
    database: &Database,
    client: &Client,
    is_needed: bool,
    statement: &Statement,
    params: &[postgres::Param<'_>],
) -> Result<Vec<Row>, postgres::Error> {
    if !is_needed {
        return Ok(Vec::new());
    }
    database.counted(statement, client.query_typed(statement, params)).await
}

/// The index of the item that a returned row belongs to.
fn item_index(row: &Row, indexes: &[usize]) -> Result<usize, Error> {
    let number: i32 = row.try_get("item")?;
    usize::try_from(number - 1)
        .ok()
        .and_then(|number| indexes.get(number))
        .copied()
        .ok_or_else(|| {
            Error::Internal(format!(
                "Postgres returned a result for item {number}, which was not sent"
            ))
        })
}

fn outcome(row: &Row) -> Result<(Outcome, Option<ItemCode>), Error> {
    let status: &str = row.try_get("status")?;
    let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == status);
    let outcome = outcome.ok_or_else(|| Error::Internal(format!("unknown status {status:?} of an uploaded item")))?;
    let code = row.try_get::<_, Option<&str>>("code")?.map(item_code).transpose()?;
    Ok((outcome, code))
}

/// The code that a function in Postgres returned.
fn item_code(code: &str) -> Result<ItemCode, Error> {
    Ok(match code {
        "VALIDATION_ERROR" => ItemCode::Invalid,
        "INVALID_RECIPIENT" => ItemCode::InvalidRecipient,
        "FORBIDDEN" => ItemCode::Forbidden,
        "NOT_FOUND" => ItemCode::NotFound,
        "CONFLICT" => ItemCode::Conflict,
        "SYNC_ERROR" => ItemCode::Unavailable,
        _ => return Err(Error::Internal(format!("unknown code {code:?} of an uploaded item"))),
    })
}

/// Explains a code that Postgres returned without a text.
fn explain(code: ItemCode, outcome: Outcome, noun: &str) -> Option<String> {
    Some(match (code, outcome) {
        (ItemCode::InvalidRecipient, _) => "the recipient does not exist".into(),
        (ItemCode::Forbidden, _) => "the device's user may not do this".into(),
        (ItemCode::NotFound, _) => format!("the {noun} does not exist or was deleted"),
        (ItemCode::Conflict, Outcome::Conflict) => format!("the {noun} has changed since this device read it"),
        (ItemCode::Conflict, _) => format!("the id is used by another {noun}"),
        _ => return None,
    })
}
