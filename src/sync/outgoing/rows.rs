//! Items that are rows of the operator's own tables.

use serde_json::{Value, json};

use super::ItemCode;
use super::form::{Refusal, base_version, fields, operation};
use crate::feature::has_nul;
use crate::sync::tables::Routing;

/// Longest id of a row, in characters.
pub(super) const ID_CHARS_MAX: usize = 128;

/// Checks an item and converts it to the form that `upload_items()` takes.
pub(super) fn parse(item: &Value, routing: Routing<'_>) -> Result<Value, Refusal> {
    let fields = fields(item)?;
    let table = fields
        .get("table")
        .and_then(Value::as_str)
        .ok_or_else(|| Refusal::invalid("table: must be the name of a table"))?;
    let upload = routing
        .rules
        .iter()
        .filter(|rule| rule.table == table)
        .find_map(|rule| rule.upload.as_ref())
        .ok_or_else(|| Refusal {
            code: ItemCode::Forbidden,
            message: "table: devices may not write to this table".into(),
        })?;
    let op = operation(fields, &["create", "edit", "delete"])?;
    let id = match fields.get("id") {
        Some(Value::String(id)) if !id.is_empty() && id.chars().count() <= ID_CHARS_MAX && !id.contains('\0') => {
            id.clone()
        }
        Some(Value::Number(id)) => id.to_string(),
        _ => {
            return Err(Refusal::invalid(format!(
                "id: must be a string of 1 to {ID_CHARS_MAX} characters, or a number"
            )));
        }
    };
    let row = match (op, fields.get("row")) {
        ("delete", _) => json!({}),
        (_, Some(Value::Object(row))) if op == "create" || !row.is_empty() => {
            if let Some(column) = row.keys().find(|column| !upload.columns.contains(column)) {
                return Err(Refusal::invalid(format!(
                    "row: devices may not write the column {column:?}; writable: {}",
                    upload.columns.join(", ")
                )));
            }
            Value::Object(row.clone())
        }
        _ => {
            return Err(Refusal::invalid(
                "row: must be an object of columns and values, not empty for an edit",
            ));
        }
    };
    if has_nul(&row) {
        return Err(Refusal::invalid("row: must not contain the character NUL"));
    }
    let base_row = match fields.get("base_row") {
        None | Some(Value::Null) => json!({}),
        Some(base @ Value::Object(columns)) if columns.keys().all(|column| upload.columns.contains(column)) => {
            base.clone()
        }
        Some(_) => {
            return Err(Refusal::invalid(
                "base_row: must be an object of writable columns and the values that the device read",
            ));
        }
    };
    if has_nul(&base_row) {
        return Err(Refusal::invalid("base_row: must not contain the character NUL"));
    }
    let by = upload.by.iter().filter_map(|(name, column)| {
        let group = routing.groups.get(name)?;
        Some(json!({"column": column, "members": group.table, "id": group.id, "user": group.user}))
    });
    Ok(json!({
        "table": table, "owner": upload.owner, "by": by.collect::<Vec<_>>(), "columns": upload.columns, "op": op, "id": id,
        "row": row, "base": base_version(fields)?, "base_row": base_row, "merge": upload.merge.is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::group::Groups;
    use crate::config::rule::Rule;

    fn rules() -> Vec<Rule> {
        serde_json::from_value(json!([
            {"table": "tasks", "to": ["owner_id"]},
            {"table": "tasks", "to": ["assignee_id"],
             "upload": {"owner": "owner_id", "columns": ["title", "done"]}},
            {"table": "notices", "to": ["tenant"]},
        ]))
        .unwrap()
    }

    fn routing<'a>(rules: &'a [Rule], groups: &'a Groups) -> Routing<'a> {
        Routing { rules, groups }
    }

    fn code(item: Value) -> Option<ItemCode> {
        parse(&item, routing(&rules(), &Groups::new()))
            .err()
            .map(|refusal| refusal.code)
    }

    #[test]
    fn item_is_completed_from_its_rule() {
        let item = json!({"table": "tasks", "id": 7, "row": {"title": "milk"}, "whatever": 1});
        assert_eq!(
            parse(&item, routing(&rules(), &Groups::new())),
            Ok(json!({
                "table": "tasks", "owner": "owner_id", "by": [], "columns": ["title", "done"], "op": "create", "id": "7",
                "row": {"title": "milk"}, "base": null, "base_row": {}, "merge": false,
            }))
        );
    }

    #[test]
    fn item_names_the_groups_whose_members_may_write() {
        let rules: Vec<Rule> = serde_json::from_value(json!([
            {"table": "tasks", "to": [{"list": "list_id"}], "upload": {"by": {"list": "list_id"}, "columns": ["title"]}},
        ]))
        .unwrap();
        let list = json!({"table": "list_members", "id": "list", "user": "member"});
        let groups: Groups = serde_json::from_value(json!({"list": list})).unwrap();
        let item = parse(
            &json!({"table": "tasks", "op": "delete", "id": 7}),
            routing(&rules, &groups),
        )
        .unwrap();
        assert_eq!(item["owner"], Value::Null);
        assert_eq!(
            item["by"],
            json!([{"column": "list_id", "members": "list_members", "id": "list", "user": "member"}])
        );
    }

    #[test]
    fn invalid_items_and_other_tables_are_refused() {
        let item = |key: &str, value: Value| {
            let mut item = json!({"table": "tasks", "op": "edit", "id": "a", "row": {"done": true}, "base_version": 3});
            item[key] = value;
            code(item)
        };
        assert_eq!(item("op", json!("edit")), None);
        assert_eq!(item("table", json!("notices")), Some(ItemCode::Forbidden));
        assert_eq!(item("table", json!("pg_class")), Some(ItemCode::Forbidden));
        assert_eq!(item("table", json!(1)), Some(ItemCode::Invalid));
        assert_eq!(item("op", json!("read")), Some(ItemCode::Invalid));
        assert_eq!(item("id", json!("")), Some(ItemCode::Invalid));
        assert_eq!(item("id", json!("a".repeat(129))), Some(ItemCode::Invalid));
        assert_eq!(item("id", json!("a\0")), Some(ItemCode::Invalid));
        assert_eq!(item("id", json!([1])), Some(ItemCode::Invalid));
        assert_eq!(item("row", json!({})), Some(ItemCode::Invalid));
        assert_eq!(item("row", json!({"owner_id": "x"})), Some(ItemCode::Invalid));
        assert_eq!(item("row", json!({"done": true, "id": "b"})), Some(ItemCode::Invalid));
        assert_eq!(item("row", json!({"title": {"a": ["\0"]}})), Some(ItemCode::Invalid));
        assert_eq!(item("row", json!([1])), Some(ItemCode::Invalid));
        assert_eq!(item("base_version", json!("3")), Some(ItemCode::Invalid));
        assert_eq!(code(json!({"table": "tasks", "op": "delete", "id": "a"})), None);
        assert_eq!(code(json!({"table": "tasks", "id": "a", "row": {}})), None);
        assert_eq!(code(json!("tasks")), Some(ItemCode::Invalid));
    }
}
