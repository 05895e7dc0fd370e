//! `/api/state`: encrypted state under keys, which all devices of a user share.

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
use crate::http::error::{Code, Error};
use crate::http::precondition::{self, Tags, tagged};
use crate::http::request::{Request, required};
use crate::http::response::{self, Response};
use crate::state::{self, Condition, Opaque, Outcome, Owner, Refused, Write, Written, check_key};
use crate::sync::states::{Question, Sources, page};

/// Standard base64 (RFC 4648, section 4), with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `GET /api/state?cursor=&limit=`: what changed since the cursor; without one, all that is there.
///
/// # Errors
/// 400 `INVALID_CURSOR` for a cursor that is not the caller's, 503 while Redis or, for a list, Postgres is away.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let settings = &app.config.sync;
    let caller = request.caller()?;
    let question = Question {
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
        store: &app.store,
        cursors: &app.cursors,
    };
    response::json(StatusCode::OK, &page(sources, question).await?)
}

/// `GET /api/state/:key`.
///
/// # Errors
/// 404, 412 under `If-Match`. 304 is the answer under `If-None-Match` when the caller has this version.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let key = request.param("key");
    let if_match = precondition::tags(&request, &IF_MATCH)?;
    let if_none_match = precondition::tags(&request, &IF_NONE_MATCH)?;
    let state = state::get(&app.database, owner(request.caller()?), key).await?;
    let version = state.version;
    let wanted = if_match.as_ref().and_then(Tags::versions);
    if wanted.is_some_and(|versions| !versions.contains(&version)) {
        return Err(stale(key, Some(version), false));
    }
    let response = match if_none_match.is_some_and(|tags| tags.contains(version)) {
        true => response::not_modified(),
        false => response::json(StatusCode::OK, &state)?,
    };
    Ok(tagged(response, version))
}

#[derive(Deserialize)]
struct Bytes {
    state: Option<String>,
    nonce: Option<String>,
}

impl Bytes {
    fn decode(self) -> Result<(Opaque, Opaque), Error> {
        Ok((decoded("state", self.state)?, decoded("nonce", self.nonce)?))
    }
}

/// The bytes of a body's field. What is wrong with them is not shown.
fn decoded(field: &str, text: Option<String>) -> Result<Opaque, Error> {
    let bytes = BASE64.decode(required(field, text)?);
    bytes.map(Opaque).map_err(|_| Error::invalid(field, "must be base64"))
}

/// `PUT /api/state/:key` with `If-Match`, or `If-None-Match: *` for a new one. The version of a deletion makes it anew.
///
/// # Errors
/// 400, 409 for too many keys, 412 with the current version, 413, 428 without a condition.
pub async fn put(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let key = request.param("key").to_owned();
    check_key(&key)?;
    let body: Bytes = request.json(app.config.state.body_bytes_max()).await?;
    let value = body.decode()?;
    let condition = match (
        precondition::tags(&request, &IF_MATCH)?,
        precondition::tags(&request, &IF_NONE_MATCH)?,
    ) {
        (Some(tags), None) => condition(&tags),
        (None, Some(Tags::Any)) => Condition::Absent,
        (None, Some(Tags::Of(_))) => {
            return Err(Error::invalid("If-None-Match", "must be * when something is written"));
        }
        (Some(_), Some(_)) => return Err(Error::invalid("If-None-Match", "belongs in the place of If-Match")),
        (None, None) => return Err(unconditional()),
    };
    let write = Write {
        key,
        value: Some(value),
        condition,
    };
    let written = write_one(&app, &request, write).await?;
    let status = match written.is_first() {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
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
    let tags = precondition::tags(&request, &IF_MATCH)?.ok_or_else(unconditional)?;
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
            .ok_or_else(|| Error::internal("a write of a state gave no row")),
        Outcome::Refused(refused) => Err(match refused.first() {
            Some(refused) if refused.is_absent => Error::new(Code::NotFound, "state not found"),
            Some(refused) => stale(&refused.key, refused.version, refused.deleted),
            None => Error::internal("a write of a state was refused without a reason"),
        }),
    }
}

async fn write_all(app: &App, request: &Request, writes: Vec<Write>) -> Result<Outcome, Error> {
    let caller = request.caller()?;
    let settings = &app.config.state;
    Ok(state::write(&app.database, owner(caller), caller.device_id(), settings, writes).await?)
}

#[derive(Deserialize)]
struct Batch {
    items: Option<Vec<Item>>,
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
                    Code::PreconditionRequired,
                    "base_version: is missing: the version that the item is made upon, 0 for a new key",
                )
                .with("field", "base_version"));
            }
            (Some(0), Op::Put) => Condition::Absent,
            (Some(version @ 1..), _) => Condition::Version(vec![version]),
            (Some(_), Op::Put) => return Err(Error::invalid("base_version", "must be a whole number from 0")),
            (Some(_), Op::Delete) => return Err(Error::invalid("base_version", "must be a whole number from 1")),
        };
        let value = match op {
            Op::Put => {
                let (state, nonce) = (self.state, self.nonce);
                Some(Bytes { state, nonce }.decode()?)
            }
            Op::Delete => None,
        };
        Ok(Write { key, value, condition })
    }
}

/// `POST /api/state/batch`: all of the items, or none.
///
/// # Errors
/// 400, 409 for too many keys, 412 with the items whose `base_version` is not the current one, 413, 428 for an item
/// without one.
pub async fn batch(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let settings = &app.config.state;
    let body: Batch = request.json(settings.batch_bytes_max).await?;
    let items = required("items", body.items)?;
    let items_max = settings.batch_items_max;
    if items.is_empty() {
        return Err(Error::invalid("items", "must not be empty"));
    }
    if items.len() > items_max {
        return Err(Error::new(
            Code::PayloadTooLarge,
            format!("items: must not be more than {items_max}"),
        )
        .with("field", "items")
        .with("items_max", items_max));
    }
    let mut writes = Vec::with_capacity(items.len());
    let mut keys = HashSet::new();
    for (index, item) in items.into_iter().enumerate() {
        let write = item.parse().map_err(|error| error.with("index", index))?;
        if !keys.insert(write.key.clone()) {
            return Err(Error::invalid("key", "must not come twice").with("index", index));
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
        let status = match written.is_duplicate {
            true => "duplicate",
            false => "applied",
        };
        Self { status, written }
    }
}

fn refused_batch(refused: &[Refused]) -> Error {
    let keys: Vec<String> = refused.iter().take(3).map(|item| format!("{:?}", item.key)).collect();
    let more = if refused.len() > keys.len() { ", …" } else { "" };
    Error::new(
        Code::PreconditionFailed,
        format!(
            "nothing was done: not at the versions that they were to be: {}{more}",
            keys.join(", ")
        ),
    )
    .with("failed", json!(refused))
}

fn owner(caller: &Principal) -> Owner<'_> {
    Owner {
        tenant: caller.tenant(),
        user: caller.user_id(),
    }
}

fn unconditional() -> Error {
    Error::new(
        Code::PreconditionRequired,
        "say what this is made upon: If-Match with the version in quotes, or, for a new key, If-None-Match: *",
    )
}

fn stale(key: &str, version: Option<i64>, deleted: bool) -> Error {
    let text = match (version, deleted) {
        (Some(version), false) => format!("the state is at version {version}"),
        (Some(version), true) => format!("the state was deleted, with version {version}: make it anew upon that"),
        (None, _) => "there is no such state".to_owned(),
    };
    Error::new(Code::PreconditionFailed, text)
        .with("key", key)
        .with("version", version)
        .with("deleted", deleted)
}
