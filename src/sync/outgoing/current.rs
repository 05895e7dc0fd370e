//! The rows of results as they are now: of conflicts, of merged edits, and of results that come again.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{ItemResult, Items, Outcome};
use crate::accounts::devices::DevicePrincipal;
use crate::config::Config;
use crate::feature;
use crate::postgres::Database;
use crate::sync::tables::{self, Routing};

/// Marks stored results of applied items whose row is not any more as the items left it. The batches of the device may have
/// brought what others did since, so that it must not store the effect of the items. The device cannot always know: one that
/// was restored from a copy, in which an item was not sent yet, takes it for new.
///
/// What happens to the row later does not matter here. The device knows then that it has sent the items.
///
/// # Errors
/// When Postgres fails. The device sends the items again.
pub(super) async fn mark_overtaken(
    database: &Database,
    device: &DevicePrincipal,
    items: Items<'_>,
    results: &mut [ItemResult],
    config: &Config,
) -> Result<(), feature::Error> {
    let repeats = items.iter().map(|(item, _)| item).zip(results);
    let repeats = repeats.filter(|(_, result)| result.is_repeated && result.status == Outcome::Applied);
    let mut tables: HashMap<String, Vec<(&Value, &mut ItemResult)>> = HashMap::new();
    for (item, result) in repeats {
        if let Some(table) = result.table.clone() {
            tables.entry(table).or_default().push((item, result));
        }
    }
    for (table, mut repeats) in tables {
        let mut left: HashMap<String, Left> = HashMap::new();
        for (item, result) in &repeats {
            if let Some(id) = result.id.clone() {
                left.entry(id).or_default().add(item, result);
            }
        }
        let mut stands: HashMap<String, bool> = HashMap::new();
        let ids = left.keys().cloned().collect();
        let each = |id: String, row: Value| {
            let is_still = left.get(&id).is_some_and(|left| left.is_still(Some(&row)));
            stands.insert(id, is_still);
            true
        };
        read_rows(database, device, &table, ids, config, each).await?;
        for (_, result) in &mut repeats {
            let id = result.id.as_deref().unwrap_or_default();
            let is_away = || left.get(id).is_some_and(|left| left.is_still(None));
            result.is_overtaken = !stands.get(id).copied().unwrap_or_else(is_away);
        }
    }
    Ok(())
}

/// A row as the repeated items of an upload left it, all of one row together: the device stores their effects in turn.
#[derive(Debug, Default)]
struct Left {
    is_deleted: bool,
    /// Its `version`, for messages its `revision`, after the last item.
    number: Option<(&'static str, i64)>,
    columns: Map<String, Value>,
}

impl Left {
    fn add(&mut self, item: &Value, result: &ItemResult) {
        self.is_deleted = item["op"] == "delete";
        self.number = match result.is_message() {
            true => Some("revision").zip(result.revision),
            false => Some("version").zip(result.version),
        };
        let columns = item.get("row").and_then(Value::as_object).into_iter().flatten();
        self.columns
            .extend(columns.map(|(name, value)| (name.clone(), value.clone())));
    }

    /// Whether a row may be this one, or a later state of it that says so by its number.
    fn is_still(&self, row: Option<&Value>) -> bool {
        let row = row.filter(|row| row.get("deleted_at").is_none_or(Value::is_null));
        let Some(row) = row else {
            return self.is_deleted;
        };
        let now = |name| row.get(name).and_then(Value::as_i64);
        !self.is_deleted
            && match self.number.and_then(|(name, left)| Some((now(name)?, left))) {
                // A lower number is one of another row with the same id.
                Some((now, left)) => now >= left,
                None => self.columns.iter().all(|(name, value)| row.get(name) == Some(value)),
            }
    }
}

/// Adds the current rows to the conflicts and merged edits of own tables, as far as the user sees them, up to a number of bytes.
/// Those of conflicts may be left out: they come with the next incoming batch too. An edit that was merged has no version then:
/// it is a base only for a user who sees what others changed.
///
/// # Errors
/// When Postgres fails, and an edit was merged. The device sends the items again.
pub(super) async fn add_rows(
    database: &Database,
    device: &DevicePrincipal,
    results: &mut [ItemResult],
    config: &Config,
) -> Result<(), feature::Error> {
    let mut tables: HashMap<String, Vec<&mut ItemResult>> = HashMap::new();
    for result in results {
        let is_wanted = result.status == Outcome::Conflict || result.is_merged;
        if let Some(table) = result.table.clone().filter(|_| is_wanted && !result.is_message()) {
            tables.entry(table).or_default().push(result);
        }
    }
    let mut bytes = 0;
    for (table, results) in tables {
        let mut rows: HashMap<String, Value> = HashMap::new();
        let ids = results.iter().filter_map(|result| result.id.clone()).collect();
        let each = |id: String, row: Value| {
            bytes += row.to_string().len();
            rows.insert(id, row);
            bytes < config.sync.batch_bytes_max
        };
        let is_whole = match read_rows(database, device, &table, ids, config, each).await {
            Ok(is_whole) => is_whole,
            Err(error) if results.iter().any(|result| result.is_merged) => return Err(error),
            Err(error) => {
                tracing::warn!(
                    tenant = device.tenant.name,
                    table,
                    cause = crate::telemetry::chain(&error),
                    "cannot read the rows of conflicts; results are sent without them"
                );
                continue;
            }
        };
        for result in results {
            result.server = result.id.as_ref().and_then(|id| rows.get(id)).cloned();
            if result.is_merged && result.server.is_none() && !is_whole {
                result.version = None;
            }
        }
    }
    Ok(())
}

/// Reads the rows of one table with these ids that the user sees, until `each` returns false; returns whether all have come.
async fn read_rows(
    database: &Database,
    device: &DevicePrincipal,
    table: &str,
    ids: Vec<String>,
    config: &Config,
    mut each: impl FnMut(String, Value) -> bool,
) -> Result<bool, feature::Error> {
    let each = |row: tables::Row| match serde_json::from_slice(row.json.as_bytes()) {
        Ok(json) => each(row.id, json),
        Err(_) => true,
    };
    let routing = Routing::configured(config);
    tables::by_id(database, &device.tenant, device.user_id, routing, table, &ids, each).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn left(items: &[(Value, Option<i64>)]) -> Left {
        let mut left = Left::default();
        for (item, version) in items {
            let result = ItemResult {
                seq: None,
                table: Some("tasks".into()),
                id: Some("a".into()),
                status: Outcome::Applied,
                code: None,
                message: None,
                winner: None,
                conflict_id: None,
                version: *version,
                revision: None,
                server: None,
                is_repeated: true,
                is_merged: false,
                is_overtaken: false,
            };
            left.add(item, &result);
        }
        left
    }

    #[test]
    fn row_with_a_version_is_as_left_or_newer() {
        let left = left(&[(json!({"op": "edit", "row": {"title": "mine"}}), Some(2))]);
        assert!(left.is_still(Some(&json!({"title": "theirs", "version": 3}))));
        assert!(!left.is_still(Some(&json!({"title": "mine", "version": 1}))));
        assert!(!left.is_still(Some(
            &json!({"title": "mine", "version": 3, "deleted_at": "2026-01-01"})
        )));
        assert!(!left.is_still(None));
    }

    #[test]
    fn row_without_a_version_is_as_left_by_its_columns() {
        let chain = [
            (json!({"op": "create", "row": {"title": "one", "done": false}}), None),
            (json!({"op": "edit", "row": {"title": "two"}}), None),
        ];
        let left = left(&chain);
        assert!(left.is_still(Some(&json!({"title": "two", "done": false, "other": 1}))));
        assert!(!left.is_still(Some(&json!({"title": "one", "done": false}))));
        assert!(!left.is_still(Some(&json!({"title": "two"}))));
    }

    #[test]
    fn deleted_row_is_as_left_while_it_is_away() {
        let left = left(&[(json!({"op": "create"}), Some(1)), (json!({"op": "delete"}), None)]);
        assert!(left.is_still(None));
        assert!(!left.is_still(Some(&json!({"version": 1}))));
    }
}
