//! `/api/state`: encrypted state under keys, shared by all devices of a user.

use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::StatusCode;
use hyper::header::{IF_MATCH, IF_NONE_MATCH};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::App;
use crate::api::auth::Principal;
use crate::api::request::Request;
use crate::http::error::{Code, Error};
use crate::http::precondition::{self, Tags, tagged};
use crate::http::raw_json::RawItems;
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::state::{self, Condition, Opaque, Outcome, Owner, Refused, Write, Written, check_key};
use crate::sync::states::{self, Sources};
use crate::sync::tables::Routing;

/// Standard base64 (RFC 4648, section 4), with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `GET /api/state?cursor=&limit=`: changes since the cursor; without one, the current state.
///
/// # Errors
/// 400 `INVALID_CURSOR` for a cursor of another caller.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let settings = &app.config.sync;
    let caller = request.caller()?;
    let wanted = states::Request {
        tenant: caller.tenant(),
        user: caller.user_id(),
        owner: caller.cursor_owner(),
        cursor: request.query.get("cursor"),
        limit: request
            .query
            .number("limit", settings.batch_size, 1..=settings.batch_size_max)?,
        bytes_max: settings.batch_bytes_max,
    };
    let sources = Sources {
        database: &app.database,
        store: &app.lane(&caller.tenant().name).store,
        cursors: &app.cursors,
        routing: Routing::configured(&app.config),
    };
    response::json(StatusCode::OK, &states::page(sources, wanted).await?)
}

/// `GET /api/state/:key`.
///
/// # Errors
/// 404, 412 under `If-Match`. Under `If-None-Match` the response is 304 if the caller has this version.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let key = request.param("key");
    let if_match = precondition::tags(&request.headers, &IF_MATCH)?;
    let if_none_match = precondition::tags(&request.headers, &IF_NONE_MATCH)?;
    let state = state::get(&app.database, owner(request.caller()?), key).await?;
    let version = state.version;
    let wanted = if_match.as_ref().and_then(Tags::versions);
    if wanted.is_some_and(|versions| !versions.contains(&version)) {
        return Err(stale(key, Some(version), false));
    }
    let response = if if_none_match.is_some_and(|tags| tags.contains(version)) {
        response::not_modified()
    } else {
        response::json(StatusCode::OK, &state)?
    };
    Ok(tagged(response, version))
}

#[derive(Deserialize)]
struct EncryptedValue {
    state: Option<String>,
    nonce: Option<String>,
}

impl EncryptedValue {
    fn decode(self) -> Result<(Opaque, Opaque), Error> {
        Ok((decoded("state", self.state)?, decoded("nonce", self.nonce)?))
    }
}

/// The bytes of a field. The error does not contain them.
fn decoded(field: &str, text: Option<String>) -> Result<Opaque, Error> {
    let bytes = BASE64.decode(required(field, text)?);
    bytes.map(Opaque).map_err(|_| Error::invalid(field, "must be base64"))
}

/// `PUT /api/state/:key` with `If-Match`, or with `If-None-Match: *` for a new key. `If-Match` with the version of a deletion
/// recreates the key.
///
/// # Errors
/// 400, 409 for too many keys, 412 with the current version, 413, 428 without a condition.
pub async fn put(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let key = request.param("key").to_owned();
    check_key(&key)?;
    let body: EncryptedValue = request.json(app.config.state.body_bytes_max()).await?;
    let value = body.decode()?;
    let condition = match (
        precondition::tags(&request.headers, &IF_MATCH)?,
        precondition::tags(&request.headers, &IF_NONE_MATCH)?,
    ) {
        (Some(tags), None) => condition(&tags),
        (None, Some(Tags::Any)) => Condition::Absent,
        (None, Some(Tags::Of(_))) => {
            return Err(Error::invalid("If-None-Match", "must be * in a write"));
        }
        (Some(_), Some(_)) => return Err(Error::invalid("If-None-Match", "must not be combined with If-Match")),
        (None, None) => return Err(missing_condition()),
    };
    let write = Write {
        key,
        value: Some(value),
        condition,
    };
    let written = write_one(&app, &request, write).await?;
    let status = if written.is_first() {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(tagged(response::json(status, &written)?, written.version))
}

/// `DELETE /api/state/:key` with `If-Match`.
///
/// # Errors
/// 404, 412 with the current version, 428 without a condition.
pub async fn delete(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let key = request.param("key").to_owned();
    check_key(&key)?;
    let tags = precondition::tags(&request.headers, &IF_MATCH)?.ok_or_else(missing_condition)?;
    let write = Write {
        key,
        value: None,
        condition: condition(&tags),
    };
    write_one(&app, &request, write).await?;
    Ok(response::no_content())
}

fn condition(tags: &Tags) -> Condition {
    tags.versions().map_or(Condition::Present, Condition::Version)
}

async fn write_one(app: &App, request: &Request, write: Write) -> Result<Written, Error> {
    match write_all(app, request, vec![write]).await? {
        Outcome::Done(written) => written
            .into_iter()
            .next()
            .ok_or_else(|| Error::internal("a write of a state returned no row")),
        Outcome::Refused(refused) => Err(match refused.first() {
            Some(refused) if refused.is_absent => Error::new(Code::NOT_FOUND, "state not found"),
            Some(refused) => stale(&refused.key, refused.version, refused.deleted),
            None => Error::internal("a write of a state was refused without a reason"),
        }),
    }
}

async fn write_all(app: &App, request: &Request, writes: Vec<Write>) -> Result<Outcome, Error> {
    let caller = request.caller()?;
    // Deletes make room.
    if writes.iter().any(|write| write.value.is_some()) {
        app.budgets.check(&caller.tenant().name)?;
    }
    let settings = &app.config.state;
    Ok(state::write(&app.database, owner(caller), caller.device_id(), settings, writes).await?)
}

#[derive(Deserialize)]
struct Batch {
    items: Option<RawItems>,
}

#[derive(Deserialize)]
struct Item {
    key: Option<String>,
    op: Option<Op>,
    state: Option<String>,
    nonce: Option<String>,
    base_version: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Put,
    Delete,
}

impl Item {
    fn parse(self) -> Result<Write, Error> {
        let key = required("key", self.key)?;
        check_key(&key)?;
        let op = self.op.unwrap_or(Op::Put);
        let condition = match (self.base_version, op) {
            (None, _) => {
                return Err(Error::new(
                    Code::PRECONDITION_REQUIRED,
                    "base_version: is missing: send the version that the item is based on, or 0 for a new key",
                )
                .with("field", "base_version"));
            }
            (Some(0), Op::Put) => Condition::Absent,
            (Some(version @ 1..), _) => Condition::Version(vec![version]),
            (Some(_), Op::Put) => return Err(Error::invalid("base_version", "must be an integer of 0 or more")),
            (Some(_), Op::Delete) => return Err(Error::invalid("base_version", "must be an integer of 1 or more")),
        };
        let value = match op {
            Op::Put => {
                let (state, nonce) = (self.state, self.nonce);
                Some(EncryptedValue { state, nonce }.decode()?)
            }
            Op::Delete => None,
        };
        Ok(Write { key, value, condition })
    }
}

/// `POST /api/state/batch`: all of the items, or none.
///
/// # Errors
/// 400, 409 for too many keys, 412 with the items whose `base_version` is not the current version, 413, 428 for an item
/// without one.
pub async fn batch(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let settings = &app.config.state;
    let body: Batch = request.json(settings.batch_bytes_max).await?;
    app.rates.take_of_bytes(request.caller()?, request.memory.bytes())?;
    let items: Vec<Item> = required("items", body.items)?.parse("items", settings.batch_items_max)?;
    if items.is_empty() {
        return Err(Error::invalid("items", "must not be empty"));
    }
    let mut writes = Vec::with_capacity(items.len());
    let mut keys = HashSet::new();
    for (index, item) in items.into_iter().enumerate() {
        let write = item.parse().map_err(|error| error.with("index", index))?;
        if !keys.insert(write.key.clone()) {
            return Err(Error::invalid("key", "must not occur twice").with("index", index));
        }
        writes.push(write);
    }
    match write_all(&app, &request, writes).await? {
        Outcome::Done(written) => {
            let results: Vec<ItemResult<'_>> = written.iter().map(ItemResult::of).collect();
            response::json(StatusCode::OK, &json!({ "results": results }))
        }
        Outcome::Refused(refused) => Err(refused_batch(&refused)),
    }
}

#[derive(Serialize)]
struct ItemResult<'a> {
    status: &'static str,
    #[serde(flatten)]
    written: &'a Written,
}

impl<'a> ItemResult<'a> {
    fn of(written: &'a Written) -> Self {
        let status = if written.is_duplicate { "duplicate" } else { "applied" };
        Self { status, written }
    }
}

fn refused_batch(refused: &[Refused]) -> Error {
    let keys: Vec<String> = refused.iter().take(3).map(|item| format!("{:?}", item.key)).collect();
    let more = if refused.len() > keys.len() { ", …" } else { "" };
    Error::new(
        Code::PRECONDITION_FAILED,
        format!("version mismatch, no writes were applied: {}{more}", keys.join(", ")),
    )
    .with("failed", json!(refused))
}

fn owner(caller: &Principal) -> Owner<'_> {
    Owner {
        tenant: caller.tenant(),
        user: caller.user_id(),
    }
}

fn missing_condition() -> Error {
    Error::new(
        Code::PRECONDITION_REQUIRED,
        "If-Match is required: send the version you read, or If-None-Match: * to create",
    )
}

fn stale(key: &str, version: Option<i64>, deleted: bool) -> Error {
    let text = match (version, deleted) {
        (Some(version), false) => format!("the state is at version {version}"),
        (Some(version), true) => {
            format!("the state was deleted at version {version}; recreate with If-Match: \"{version}\"")
        }
        (None, _) => "the state does not exist".to_owned(),
    };
    Error::new(Code::PRECONDITION_FAILED, text)
        .with("key", key)
        .with("version", version)
        .with("deleted", deleted)
}
