//! Items that are rows of the operator's own tables, by their form.

use serde_json::{Value, json};

use crate::config::rule::Rule;
use crate::feature::has_nul;
use crate::sync::outgoing::{Refusal, base_version, fields, operation};

/// Longest id of a row, in characters.
pub(crate) const ID_CHARS_MAX: usize = 128;

/// Checks an item and gives it as `upload_rows()` takes it.
pub(crate) fn parse(item: &Value, rules: &[Rule]) -> Result<Value, Refusal> {
    let fields = fields(item)?;
    let table = fields
        .get("table")
        .and_then(Value::as_str)
        .ok_or_else(|| Refusal::invalid("table: must be the name of a table"))?;
    let upload = rules
        .iter()
        .filter(|rule| rule.table == table)
        .find_map(|rule| rule.upload.as_ref())
        .ok_or_else(|| Refusal {
            code: "FORBIDDEN",
            message: "table: devices may not write here".into(),
        })?;
    let op = operation(fields, &["create", "edit", "delete"])?;
    let id = match fields.get("id") {
        Some(Value::String(id)) if !id.is_empty() && id.chars().count() <= ID_CHARS_MAX && !id.contains('\0') => {
            id.clone()
        }
        Some(Value::Number(id)) => id.to_string(),
        _ => {
            return Err(Refusal::invalid(format!(
                "id: must be a text of 1 to {ID_CHARS_MAX} characters, or a number"
            )));
        }
    };
    let row = match (op, fields.get("row")) {
        ("delete", _) => json!({}),
        (_, Some(Value::Object(row))) if op == "create" || !row.is_empty() => {
            if let Some(column) = row.keys().find(|column| !upload.columns.contains(column)) {
                return Err(Refusal::invalid(format!(
                    "row: the column {column:?} is not for devices to write; those are {}",
                    upload.columns.join(", ")
                )));
            }
            Value::Object(row.clone())
        }
        _ => {
            return Err(Refusal::invalid(
                "row: must be an object with the columns to be written, at least one for an edit",
            ));
        }
    };
    if has_nul(&row) {
        return Err(Refusal::invalid("row: must not contain the character NUL"));
    }
    Ok(json!({
        "table": table, "owner": upload.owner, "columns": upload.columns, "op": op, "id": id, "row": row,
        "base": base_version(fields)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<Rule> {
        serde_json::from_value(json!([
            {"table": "tasks", "to": ["owner_id"]},
            {"table": "tasks", "to": ["assignee_id"],
             "upload": {"owner": "owner_id", "columns": ["title", "done"]}},
            {"table": "notices", "to": ["tenant"]},
        ]))
        .unwrap()
    }

    fn code(item: Value) -> &'static str {
        match parse(&item, &rules()) {
            Ok(_) => "ok",
            Err(refusal) => refusal.code,
        }
    }

    #[test]
    fn an_item_is_passed_on_with_what_its_rule_says() {
        let item = json!({"table": "tasks", "id": 7, "row": {"title": "milk"}, "whatever": 1});
        assert_eq!(
            parse(&item, &rules()),
            Ok(json!({
                "table": "tasks", "owner": "owner_id", "columns": ["title", "done"], "op": "create", "id": "7",
                "row": {"title": "milk"}, "base": null,
            }))
        );
    }

    #[test]
    fn items_of_wrong_form_and_other_tables_are_refused() {
        let item = |key: &str, value: Value| {
            let mut item = json!({"table": "tasks", "op": "edit", "id": "a", "row": {"done": true}, "base_version": 3});
            item[key] = value;
            code(item)
        };
        assert_eq!(item("op", json!("edit")), "ok");
        assert_eq!(item("table", json!("notices")), "FORBIDDEN");
        assert_eq!(item("table", json!("pg_class")), "FORBIDDEN");
        assert_eq!(item("table", json!(1)), "VALIDATION_ERROR");
        assert_eq!(item("op", json!("read")), "VALIDATION_ERROR");
        assert_eq!(item("id", json!("")), "VALIDATION_ERROR");
        assert_eq!(item("id", json!("a".repeat(129))), "VALIDATION_ERROR");
        assert_eq!(item("id", json!("a\0")), "VALIDATION_ERROR");
        assert_eq!(item("id", json!([1])), "VALIDATION_ERROR");
        assert_eq!(item("row", json!({})), "VALIDATION_ERROR");
        assert_eq!(item("row", json!({"owner_id": "x"})), "VALIDATION_ERROR");
        assert_eq!(item("row", json!({"done": true, "id": "b"})), "VALIDATION_ERROR");
        assert_eq!(item("row", json!({"title": {"a": ["\0"]}})), "VALIDATION_ERROR");
        assert_eq!(item("row", json!([1])), "VALIDATION_ERROR");
        assert_eq!(item("base_version", json!("3")), "VALIDATION_ERROR");
        assert_eq!(code(json!({"table": "tasks", "op": "delete", "id": "a"})), "ok");
        assert_eq!(code(json!({"table": "tasks", "id": "a", "row": {}})), "ok");
        assert_eq!(code(json!("tasks")), "VALIDATION_ERROR");
    }
}
