//! What a script expects of a request.

use serde_json::{Map, Value};

use super::case::Expected;
use super::failure::{Failure, broken};
use super::history::uuid_of;
use super::outside::with_ids;
use super::stage::Inner;
use super::wire::{Record, Route};

/// What is expected of a request.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub route: Route,
    /// Counts since `watch` from 1; `None`: the last one.
    pub nth: Option<usize>,
    pub cursor: Option<Expected>,
    pub last_event_id: Option<Expected>,
    pub body: &'a Map<String, Value>,
    pub items: Option<&'a [Map<String, Value>]>,
}

/// # Errors
/// When there is no such request, or it is another one.
pub fn check(inner: &Inner, wanted: Wanted<'_>) -> Result<(), Failure> {
    let Wanted {
        route,
        nth,
        cursor,
        last_event_id,
        body,
        items,
    } = wanted;
    let found: Vec<&Record> = inner.log.since_watch(route).collect();
    let record = nth.map_or(found.last(), |nth| found.get(nth.saturating_sub(1)));
    let Some(record) = record else {
        return Err(broken(format!("no such request `{}` was sent", route.name())));
    };
    let is_as_expected = |expected: Option<Expected>, value: &Option<String>| match expected {
        Some(Expected::None) => value.is_none(),
        Some(Expected::Some) => value.is_some(),
        Some(Expected::Newest) => record.is_newest,
        None => true,
    };
    if !is_as_expected(cursor, &record.cursor) {
        return Err(broken(format!(
            "`{}`: the cursor is {:?}, but {cursor:?} was expected",
            record.line, record.cursor
        )));
    }
    if !is_as_expected(last_event_id, &record.last_event_id) {
        let is = &record.last_event_id;
        return Err(broken(format!(
            "`{}`: `Last-Event-ID` is {is:?}, but {last_event_id:?} was expected",
            record.line
        )));
    }
    check_part(&record.body, body, &record.line)?;
    let Some(items) = items else { return Ok(()) };
    let sent = record.body["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if sent.len() != items.len() {
        return Err(broken(format!(
            "{} items were sent, not {}: {}",
            sent.len(),
            items.len(),
            record.body
        )));
    }
    for (sent, item) in sent.iter().zip(items) {
        check_part(sent, item, "an item of the upload")?;
    }
    Ok(())
}

/// Whether an object has these fields; null stands for none.
fn check_part(value: &Value, part: &Map<String, Value>, what: &str) -> Result<(), Failure> {
    for (name, expected) in with_ids(part) {
        let expected = match name.as_str() {
            "id" => expected
                .as_str()
                .filter(|id| id.len() < 36)
                .map_or(expected.clone(), |id| uuid_of(id).into()),
            _ => expected,
        };
        let is = value.get(&name).unwrap_or(&Value::Null);
        if *is != expected {
            return Err(broken(format!("{what}: `{name}` is {is}, not {expected}, in {value}")));
        }
    }
    Ok(())
}
