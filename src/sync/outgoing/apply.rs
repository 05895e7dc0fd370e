//! Applying a batch in Postgres: checked items in, a result for each item out.

use futures_util::future;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use tokio_postgres::types::{Json, Type};

use super::form::{Refusal, fields, sent_id, sent_table};
use super::{Error, Fault, ItemCode, ItemResult, Items, MESSAGES, Outcome, Uploaded, Winner, messages, rows};
use crate::accounts::devices::DevicePrincipal;
use crate::config::{Config, ConflictStrategy};
use crate::core::time::Timestamp;
use crate::feature;
use crate::feature::viewer::Viewer;
use crate::postgres::{self, Database, sql};
use crate::sync::tables::Routing;

/// Applies a batch in one transaction and one round trip to Postgres.
///
/// # Errors
/// [`Error::OutOfSequence`] for a wrong sequence number, [`Error::Revoked`]; otherwise only when Postgres fails. Nothing is
/// applied then.
pub(super) async fn apply(
    database: &Database,
    device: &DevicePrincipal,
    items: Items<'_>,
    config: &Config,
) -> Result<Uploaded, Error> {
    let routing = Routing::configured(config);
    let author = Viewer::author(database, &device.tenant, device.user_id, routing).await?;
    let entries: Vec<Value> = items
        .iter()
        .map(|(item, is_row)| entry(item, is_row, items, &author, config))
        .collect();
    let lists = author.lists(&config.groups, &config.auth.providers);
    let strategy = config.sync.conflict_strategy;
    let (replies, position) = execute(database, device, items, (&entries, &lists), strategy).await?;
    if let Some(first) = replies.first()
        && first.try_get::<_, i32>("item")? == 0
    {
        return Err(refusal(first)?);
    }
    let results: Result<Vec<ItemResult>, feature::Error> = items
        .iter()
        .zip(&replies)
        .map(|((item, is_row), row)| result(item, is_row, items, row))
        .collect();
    let results = results?;
    if results.len() != entries.len() {
        let text = "Postgres returned no result for an uploaded item";
        return Err(feature::Error::Internal(text.into()).into());
    }
    Ok(Uploaded {
        results,
        lsn: position.try_get("lsn")?,
        at: Timestamp(position.try_get("now")?),
    })
}

/// An item in the form that `upload_items()` takes. An invalid one is passed on as refused, so that its result is stored
/// with its sequence number.
fn entry(item: &Value, is_row: bool, items: Items<'_>, author: &Viewer<'_>, config: &Config) -> Value {
    let checked = if is_row {
        rows::parse(item, Routing::configured(config), author)
    } else {
        messages::parse(item, items.is_numbered(), author.user, config)
    };
    let checked = checked.and_then(|mut entry| {
        if items.is_numbered() {
            add_base(fields(item)?, &mut entry)?;
        }
        Ok(entry)
    });
    checked.unwrap_or_else(|Refusal { code, message }| {
        let table = if is_row {
            sent_table(item)
        } else {
            Some(MESSAGES.to_owned())
        };
        json!({"refused": {"code": code.as_str(), "message": message}, "table": table, "id": sent_id(item)})
    })
}

/// Adds the base of a numbered item: the item that it stands on, or the wish to overwrite any version.
fn add_base(fields: &Map<String, Value>, entry: &mut Value) -> Result<(), Refusal> {
    if let Some(base) = fields.get("base_seq").filter(|base| !base.is_null()) {
        let own = fields.get("seq").and_then(Value::as_i64).unwrap_or_default();
        let base = base.as_i64().filter(|base| (1..own).contains(base));
        let base = base.ok_or_else(|| Refusal::invalid("base_seq: must be the sequence number of an earlier item"))?;
        if fields.get("base_version").is_some_and(|base| !base.is_null()) {
            return Err(Refusal::invalid("base_seq: is not allowed together with base_version"));
        }
        entry["base_seq"] = base.into();
    }
    match fields.get("force") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(force)) => entry["force"] = (*force).into(),
        Some(_) => return Err(Refusal::invalid("force: must be true or false")),
    }
    Ok(())
}

/// Runs the statement, and behind it on the same connection the query of the position, which so costs no round trip of its
/// own. futures' `join` polls in order; tokio's does not guarantee that.
async fn execute(
    database: &Database,
    device: &DevicePrincipal,
    items: Items<'_>,
    (entries, lists): (&[Value], &Value),
    strategy: ConflictStrategy,
) -> Result<(Vec<Row>, Row), feature::Error> {
    let strategy = match strategy {
        ConflictStrategy::LastWriteWins => "last_write_wins",
        ConflictStrategy::Manual => "manual",
    };
    let (first_seq, acked_seq, digests) = match items {
        Items::Numbered {
            items,
            first_seq,
            acked_seq,
        } => (Some(first_seq), Some(acked_seq), Some(digests(items))),
        Items::Unnumbered { .. } => (None, None, None),
    };
    let entries = Json(entries);
    let statement = sql!("sync/upload_items", device.tenant);
    let lists = Json(lists);
    let params: [postgres::Param<'_>; 10] = [
        (&device.user_id, Type::UUID),
        (&device.device_id, Type::TEXT),
        (&device.tenant.name, Type::TEXT),
        (&device.tenant.schema, Type::TEXT),
        (&strategy, Type::TEXT),
        (&entries, Type::JSONB),
        (&first_seq, Type::INT8),
        (&acked_seq, Type::INT8),
        (&digests, Type::BYTEA_ARRAY),
        (&lists, Type::JSONB),
    ];
    let client = database.get_for(&device.tenant).await?;
    let (replies, position) = future::join(
        async {
            // An upload without items reports the length of the device's queue, or acknowledges results.
            if items.is_empty() && !items.is_numbered() {
                return Ok(Vec::new());
            }
            database
                .counted(&statement, client.query_typed(&statement, &params))
                .await
        },
        client.query_typed_one(&sql!("postgres/wal_position"), &[]),
    )
    .await;
    Ok((replies?, position?))
}

/// The digest of each item, whatever the order of its fields: maps of `serde_json` are sorted.
fn digests(items: &[Value]) -> Vec<Vec<u8>> {
    let digest = |item: &Value| Sha256::digest(item.to_string().as_bytes()).to_vec();
    items.iter().map(digest).collect()
}

/// Why nothing of an upload was applied.
fn refusal(row: &Row) -> Result<Error, feature::Error> {
    let fault = match row.try_get("code")? {
        "DEVICE_REVOKED" => return Ok(Error::Revoked),
        "SEQUENCE_GAP" => Fault::Gap,
        "DEVICE_RESTORED" => Fault::Restored,
        code => return Err(feature::Error::Internal(format!("unknown fault {code:?} of an upload"))),
    };
    Ok(Error::OutOfSequence {
        fault,
        expected: row.try_get("expected")?,
    })
}

fn result(item: &Value, is_row: bool, items: Items<'_>, row: &Row) -> Result<ItemResult, feature::Error> {
    let (status, code) = outcome(row)?;
    let message: Option<String> = row.try_get("message")?;
    let (winner, is_merged) = match row.try_get::<_, Option<&str>>("winner")? {
        Some("mine") => (Some(Winner::Mine), false),
        Some("both") => (None, true),
        Some(_) => (Some(Winner::Theirs), false),
        None => (None, false),
    };
    Ok(ItemResult {
        seq: item.get("seq").and_then(Value::as_i64).filter(|_| items.is_numbered()),
        table: if is_row || items.is_numbered() {
            sent_table(item)
        } else {
            None
        },
        id: sent_id(item),
        status,
        code,
        message: message.or_else(|| explain(code?, status, if is_row { "row" } else { "message" })),
        winner,
        conflict_id: row.try_get("conflict_id")?,
        version: row.try_get("version")?,
        revision: row.try_get("revision")?,
        server: row.try_get("server")?,
        is_repeated: row.try_get("repeated")?,
        is_merged,
        is_overtaken: false,
    })
}

fn outcome(row: &Row) -> Result<(Outcome, Option<ItemCode>), feature::Error> {
    let status: &str = row.try_get("status")?;
    let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == status);
    let unknown = || feature::Error::Internal(format!("unknown status {status:?} of an uploaded item"));
    let code = row.try_get::<_, Option<&str>>("code")?.map(item_code).transpose()?;
    Ok((outcome.ok_or_else(unknown)?, code))
}

fn item_code(code: &str) -> Result<ItemCode, feature::Error> {
    let known = ItemCode::ALL.into_iter().find(|known| known.as_str() == code);
    known.ok_or_else(|| feature::Error::Internal(format!("unknown code {code:?} of an uploaded item")))
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

impl<'a> Items<'a> {
    pub(super) fn is_numbered(self) -> bool {
        matches!(self, Self::Numbered { .. })
    }

    /// Each item in its order, and whether it is a row of an own table.
    pub(super) fn iter(self) -> impl Iterator<Item = (&'a Value, bool)> {
        let (messages, rest, is_numbered) = match self {
            Self::Unnumbered { messages, changes } => (messages, changes, false),
            Self::Numbered { items, .. } => (&[][..], items, true),
        };
        let is_row = move |item: &Value| !is_numbered || item.get("table").and_then(Value::as_str) != Some(MESSAGES);
        let messages = messages.iter().map(|item| (item, false));
        messages.chain(rest.iter().map(move |item| (item, is_row(item))))
    }

    /// The number of its items.
    pub fn len(self) -> usize {
        match self {
            Self::Unnumbered { messages, changes } => messages.len() + changes.len(),
            Self::Numbered { items, .. } => items.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_does_not_depend_on_the_order_of_fields() {
        let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let one = [read(r#"{"seq":1,"row":{"a":1,"b":[2]}}"#)];
        let same = [read(r#"{"row":{"b":[2],"a":1},"seq":1}"#)];
        let other = [read(r#"{"seq":1,"row":{"a":1,"b":[3]}}"#)];
        assert_eq!(digests(&one), digests(&same));
        assert_ne!(digests(&one), digests(&other));
    }

    #[test]
    fn base_of_a_numbered_item_is_an_earlier_one() {
        let check = |item: Value| {
            let mut entry = json!({});
            let fields = item.as_object().cloned().unwrap_or_default();
            add_base(&fields, &mut entry).map(|()| entry)
        };
        assert_eq!(check(json!({"seq": 5, "base_seq": 4})), Ok(json!({"base_seq": 4})));
        assert_eq!(check(json!({"seq": 5, "force": true})), Ok(json!({"force": true})));
        assert_eq!(check(json!({"seq": 5, "base_seq": null, "force": null})), Ok(json!({})));
        for bad in [
            json!({"seq": 5, "base_seq": 5}),
            json!({"seq": 5, "base_seq": 0}),
            json!({"seq": 5, "base_seq": "4"}),
            json!({"seq": 5, "base_seq": 4, "base_version": 1}),
            json!({"seq": 5, "force": 1}),
        ] {
            assert!(check(bad.clone()).is_err(), "{bad}");
        }
    }
}
