//! Items that are rows of the operator's own tables.

use serde_json::{Map, Value, json};

use super::ItemCode;
use super::form::{Refusal, base_version, fields, operation};
use crate::feature::has_nul;
use crate::feature::viewer::Viewer;
use crate::sync::tables::Routing;

/// Longest id of a row, in characters.
pub(super) const ID_CHARS_MAX: usize = 128;

/// Checks an item and converts it to the form that `upload_items()` takes.
pub(super) fn parse(item: &Value, routing: Routing<'_>, author: &Viewer<'_>) -> Result<Value, Refusal> {
    let fields = fields(item)?;
    let table = fields
        .get("table")
        .and_then(Value::as_str)
        .ok_or_else(|| Refusal::invalid("table: must be the name of a table"))?;
    let forbidden = || Refusal {
        code: ItemCode::Forbidden,
        message: "table: devices may not write to this table".into(),
    };
    let mut rules = routing.rules.iter().filter(|rule| rule.table == table);
    let rule = rules.find(|rule| rule.upload.is_some()).ok_or_else(forbidden)?;
    let upload = rule.upload.as_ref().ok_or_else(forbidden)?;
    let mut entry = author.placed(rule.placement()).ok_or_else(forbidden)?;
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
    let mut by = Vec::new();
    for (name, column) in &upload.by {
        // A group without rows of the tenant has no members.
        let Some(group) = routing.groups.get(name) else {
            continue;
        };
        let Some(mut entry) = author.list(group, routing.providers) else {
            continue;
        };
        entry.insert("column".into(), column.as_str().into());
        by.push(Value::Object(entry));
    }
    entry.extend(members(json!({
        "table": table, "owner": upload.owner, "by": by, "columns": upload.columns, "op": op, "id": id, "row": row,
        "base": base_version(fields)?, "base_row": base_row, "merge": upload.merge.is_some(),
        "authors": author.values(&routing.names(rule.subjects.as_ref())),
    })));
    if !rule.columns.is_empty() {
        entry.insert("visible".into(), rule.columns.clone().into());
    }
    Ok(Value::Object(entry))
}

fn members(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::group::Groups;
    use crate::config::rule::Rule;
    use crate::core::tenant::Tenant;
    use uuid::Uuid;

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
        Routing {
            rules,
            groups,
            providers: &[],
        }
    }

    const AUTHOR: &str = "00000000-0000-0000-0000-000000000007";

    fn parse(item: &Value, routing: Routing<'_>) -> Result<Value, Refusal> {
        let tenant = Tenant::named("acme").unwrap();
        super::parse(item, routing, &Viewer::with_id(&tenant, Uuid::from_u128(7)))
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
                "row": {"title": "milk"}, "base": null, "base_row": {}, "merge": false, "authors": [AUTHOR],
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
            json!([{
                "column": "list_id", "members": "list_members", "id": "list", "user": "member", "authors": [AUTHOR],
            }])
        );
    }

    #[test]
    fn item_of_a_table_outside_names_the_tenant_of_the_device_only() {
        let place = |tenant: Value| {
            json!({"table": "tasks", "to": ["owner"], "schema": "public", "tenant": tenant,
            "upload": {"owner": "owner", "columns": ["title"]}})
        };
        let item = json!({"table": "tasks", "id": 7, "row": {"title": "milk"}});
        let parsed = |tenant: Value| {
            let rules: Vec<Rule> = serde_json::from_value(json!([place(tenant)])).unwrap();
            parse(&item, routing(&rules, &Groups::new()))
        };
        let entry = parsed(json!({"column": "org_id", "tenants": {"1": "acme", "2": "globex"}})).unwrap();
        assert_eq!(
            (&entry["schema"], &entry["tenant"]),
            (&json!("public"), &json!({"column": "org_id", "value": "1"}))
        );
        for other in [
            json!({"constant": "globex"}),
            json!({"column": "org_id", "tenants": {"2": "globex"}}),
        ] {
            assert_eq!(parsed(other).unwrap_err().code, ItemCode::Forbidden);
        }
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
