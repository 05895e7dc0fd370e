//! The descriptions of the public and the admin API, against which every answer is checked that a test gets.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use hyper::Method;
use jsonschema::Validator;
use serde_json::{Value, json};

use super::http::Answer;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| posduif::api::openapi::document().unwrap());

static ADMIN_DOCUMENT: LazyLock<Value> = LazyLock::new(|| posduif::api::openapi::admin_document().unwrap());

/// Validators by where their schemas stand.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Validator>>> = LazyLock::new(Mutex::default);

/// The description.
pub(crate) fn document() -> &'static Value {
    &DOCUMENT
}

/// The description of the admin API.
pub(crate) fn admin_document() -> &'static Value {
    &ADMIN_DOCUMENT
}

/// The description that has a path.
fn document_of(path: &str) -> &'static Value {
    if path.starts_with("/admin/") {
        &ADMIN_DOCUMENT
    } else {
        &DOCUMENT
    }
}

/// What a reference in a description refers to, or the value itself.
fn resolved(document: &'static Value, value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// The path's pattern in the description; a literal path goes before one with parameters.
fn pattern(path: &str) -> Option<&'static str> {
    let path = path.split('?').next().unwrap();
    let paths = document_of(path)["paths"].as_object().unwrap();
    let fits = |pattern: &str| {
        pattern.split('/').count() == path.split('/').count()
            && pattern
                .split('/')
                .zip(path.split('/'))
                .all(|(a, b)| a == b || a.starts_with('{') && !b.is_empty())
    };
    let mut fitting: Vec<&'static String> = paths.keys().filter(|pattern| fits(pattern)).collect();
    fitting.sort_by_key(|pattern| pattern.contains('{'));
    fitting.first().map(|pattern| pattern.as_str())
}

/// Fails on a request to a webhook that does not match the description.
#[track_caller]
pub(crate) fn check_webhook(name: &str, headers: &HashMap<String, String>, body: &Value) {
    let operation = &DOCUMENT["webhooks"][name]["post"];
    assert!(
        !operation.is_null(),
        "docs/openapi.yaml does not know the webhook {name}"
    );
    for parameter in operation["parameters"].as_array().unwrap() {
        let name = parameter["name"].as_str().unwrap();
        let value = headers.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        warn_line(name, &parameter["schema"], &Value::from(value.as_str()));
    }
    let content = operation["requestBody"]["content"].as_object().unwrap();
    let schema = &content[&headers["content-type"]]["schema"];
    warn_line(name, schema, body);
}

/// Fails on a value that does not match its schema.
#[track_caller]
fn warn_line(place: &str, schema: &Value, value: &Value) {
    check_value(&DOCUMENT, place, schema, value);
}

/// Fails on a value that does not match a schema of a description.
#[track_caller]
pub(crate) fn check_value(document: &Value, place: &str, schema: &Value, value: &Value) {
    let mut validators = VALIDATORS.lock().unwrap();
    let validator = validators.entry(place.to_owned()).or_insert_with(|| {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [schema],
            "components": document["components"],
        });
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("the schema of {place}: {error}"))
    });
    let complaints: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(
        complaints.is_empty(),
        "{place} is not as its description says: {complaints:?}\n{value}"
    );
}

/// Fails on a response that the description does not list.
#[track_caller]
pub(crate) fn check(method: &Method, path: &str, answer: &Answer) {
    let Some(pattern) = pattern(path) else { return };
    let document = document_of(path);
    let operation = &document["paths"][pattern][method.as_str().to_lowercase()];
    let place = format!("{method} {pattern} {}", answer.status.as_u16());
    if operation.is_null() {
        // Other methods are 405, and HEAD is what GET is.
        return;
    }
    let known = &operation["responses"][answer.status.as_str()];
    assert!(
        !known.is_null(),
        "the description does not know {place}: {}",
        answer.json()
    );
    let known = resolved(document, known);
    let Some(content) = known["content"].as_object() else {
        assert!(answer.body.is_empty(), "{place} has a body");
        return;
    };
    let sent = answer.headers["content-type"].to_str().unwrap();
    let media = sent.split(';').next().unwrap();
    let known = content
        .get(media)
        .unwrap_or_else(|| panic!("the description does not know {media} of {place}"));
    if media != "application/json" || answer.headers.contains_key("content-encoding") {
        return;
    }
    check_value(document, &place, &known["schema"], &answer.json());
}
