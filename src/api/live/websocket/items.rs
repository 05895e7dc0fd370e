//! What clients say over a WebSocket: items, each of which gets a result.
//!
//! An item does what a request does, by the same functions: a device's are those of an upload, a user's those of
//! `/api/messages`. A frame holds one item or a list of them; they are carried out in order.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accounts::devices::DevicePrincipal;
use crate::accounts::users::UserType;
use crate::api::App;
use crate::api::auth::{Principal, WebPrincipal};
use crate::api::{messages as requests, presence as requests_of_presence, sync};
use crate::http::error::{Code, Error};
use crate::http::request::{required, uuid};
use crate::sync::outgoing::{ItemResult, Items, Outcome};

/// Longest id of an item that its result repeats, in characters.
const ID_CHARS_MAX: usize = 128;

/// What a frame says.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    /// Go on behind this cursor instead.
    Resume(String),
    /// Do this, in this order.
    Items(Vec<Value>),
    /// Say that you are there, with this id. Pages cannot send the protocol's own pings.
    Ping(Value),
}

/// Reads a frame's text.
///
/// # Errors
/// 400 for what cannot be read.
pub(crate) fn read(text: &str, items_max: usize) -> Result<Said, Error> {
    let refused = |message: String| Error::new(Code::ValidationError, message);
    let said: Value = serde_json::from_str(text)
        .map_err(|error| refused(format!("the frame is not the JSON that is needed: {error}")))?;
    match said {
        Value::Array(items) if (1..=items_max).contains(&items.len()) => Ok(Said::Items(items)),
        Value::Array(_) => Err(refused(format!("a list must have 1 to {items_max} items"))),
        Value::Object(mut fields) => match fields.remove("resume") {
            None => {
                let item = Value::Object(fields);
                Ok(match type_of(&item) {
                    "ping" => Said::Ping(id_of(&item)),
                    _ => Said::Items(vec![item]),
                })
            }
            Some(Value::String(cursor)) => Ok(Said::Resume(cursor)),
            Some(_) => Err(refused("resume: must be a cursor".into())),
        },
        _ => Err(refused("a frame must be an object, or a list of objects".into())),
    }
}

/// What became of an item, or of a frame that is none.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Answer {
    #[serde(rename = "type")]
    kind: &'static str,
    /// The item's id as it was sent.
    id: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    pub(crate) status: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Value>,
}

impl Answer {
    fn applied(id: Value, server: Option<Value>) -> Self {
        Self {
            kind: "result",
            id,
            table: None,
            status: Outcome::Applied,
            code: None,
            message: None,
            version: server.as_ref().and_then(|row| row["version"].as_i64()),
            server,
        }
    }

    fn of_upload(id: Value, result: ItemResult) -> Self {
        Self {
            kind: "result",
            id,
            table: result.table,
            status: result.status,
            code: result.code,
            message: result.message,
            version: result.version,
            server: result.server,
        }
    }

    /// An item that an error kept from being done.
    pub(crate) fn refused(id: Value, error: &Error) -> Self {
        if let Some(cause) = &error.cause {
            tracing::error!(code = error.code.as_str(), cause, "an item of a WebSocket");
        }
        Self {
            kind: "result",
            id,
            table: None,
            status: if error.code.is_retryable() {
                Outcome::Retry
            } else {
                Outcome::Rejected
            },
            code: Some(error.code.as_str().to_owned()),
            message: Some(error.message.clone()),
            version: None,
            server: None,
        }
    }
}

/// Carries out a frame's items; each gets its answer, in their order. Safe to cancel, as a request is.
pub(crate) async fn carry_out(app: Arc<App>, caller: Principal, items: Vec<Value>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    match &caller {
        Principal::Web(user) => {
            for item in &items {
                let done = timed(&app, async {
                    match type_of(item) {
                        "presence" => presence(&app, &caller, item).await.map(Some),
                        _ => by_user(&app, user, item).await,
                    }
                });
                let done = done.await;
                answers.push(match done {
                    Ok(server) => Answer::applied(id_of(item), server),
                    Err(error) => Answer::refused(id_of(item), &error),
                });
            }
        }
        Principal::Device(device) => {
            let mut batch = Batch::default();
            for item in items {
                let Some(item) = batch.take(item) else { continue };
                batch.upload(&app, device, &mut answers).await;
                let done = timed(&app, async {
                    match type_of(&item) {
                        "presence" => presence(&app, &caller, &item).await.map(Some),
                        _ => by_device(&app, device, &item).await.map(|()| None),
                    }
                });
                answers.push(match done.await {
                    Ok(server) => Answer::applied(id_of(&item), server),
                    Err(error) => Answer::refused(id_of(&item), &error),
                });
            }
            batch.upload(&app, device, &mut answers).await;
        }
    }
    answers
}

/// The bound that a request has, too.
async fn timed<T>(app: &App, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let bound = Duration::from_secs(app.config.server.request_timeout_seconds);
    tokio::time::timeout(bound, work).await.unwrap_or_else(|_| {
        let message = format!("the item took longer than {} s", bound.as_secs());
        Err(Error::new(Code::Timeout, message))
    })
}

/// The item's id as it was sent, cut to a sensible length; null when it is none.
fn id_of(item: &Value) -> Value {
    match &item["id"] {
        Value::String(id) => id.chars().take(ID_CHARS_MAX).collect::<String>().into(),
        Value::Number(id) => id.clone().into(),
        _ => Value::Null,
    }
}

/// What a device says, beside an item, of how much waits in its own queue.
fn pending_of(item: &Value) -> Option<u32> {
    item["pending_count"].as_u64().and_then(|count| count.try_into().ok())
}

/// What an item wants.
fn type_of(item: &Value) -> &str {
    item["type"].as_str().unwrap_or_default()
}

fn unknown(allowed: &str) -> Error {
    Error::invalid("type", format!("must be one of {allowed}"))
}

fn form<T: DeserializeOwned>(item: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(item).map_err(|error| Error::invalid(&error.path().to_string(), error.inner()))
}

/// Items of a device that are uploaded together.
#[derive(Default)]
struct Batch {
    /// Ids as their senders know them, each with whether the item is of the messages.
    ids: Vec<(Value, bool)>,
    messages: Vec<Value>,
    changes: Vec<Value>,
    /// What the device says of its own queue, last.
    pending: Option<u32>,
}

impl Batch {
    /// Takes an item that is uploaded; gives back any other.
    fn take(&mut self, item: Value) -> Option<Value> {
        let pending = pending_of(&item);
        match type_of(&item) {
            "message" => {
                self.ids.push((id_of(&item), true));
                self.messages.push(item);
            }
            "read" if item["message_id"].is_string() => {
                let message = &item["message_id"];
                let id = match id_of(&item) {
                    Value::Null => id_of(&json!({"id": message})),
                    id => id,
                };
                self.messages.push(json!({"id": message, "op": "read"}));
                self.ids.push((id, true));
            }
            "change" => {
                self.ids.push((id_of(&item), false));
                self.changes.push(item);
            }
            _ => return Some(item),
        }
        self.pending = pending.or(self.pending);
        None
    }

    async fn upload(&mut self, app: &App, device: &DevicePrincipal, answers: &mut Vec<Answer>) {
        let Self {
            ids,
            messages,
            changes,
            pending,
        } = std::mem::take(self);
        if ids.is_empty() {
            return;
        }
        let items = Items {
            messages: &messages,
            changes: &changes,
        };
        let uploaded = match timed(app, sync::upload(app, device, items, pending)).await {
            Ok(uploaded) => uploaded,
            Err(error) => return answers.extend(ids.into_iter().map(|(id, _)| Answer::refused(id, &error))),
        };
        let mut of_messages = uploaded.results;
        let mut of_changes = of_messages.split_off(messages.len()).into_iter();
        let mut of_messages = of_messages.into_iter();
        for (id, is_message) in ids {
            let result = if is_message {
                of_messages.next()
            } else {
                of_changes.next()
            };
            answers.extend(result.map(|result| Answer::of_upload(id, result)));
        }
    }
}

#[derive(Deserialize)]
struct Declaration {
    status: Option<String>,
}

/// Says that the device, or the session's pages, are online or away; gives what the user is with that.
async fn presence(app: &App, caller: &Principal, item: &Value) -> Result<Value, Error> {
    requests_of_presence::take(app, caller, form::<Declaration>(item)?.status).await
}

#[derive(Deserialize)]
struct Message {
    op: Option<String>,
    message_id: Option<String>,
    recipient_id: Option<String>,
    content: Option<String>,
}

impl Message {
    fn id(self) -> Result<Uuid, Error> {
        uuid("message_id", &required("message_id", self.message_id)?)
    }
}

/// Does what a user wants; gives the message as it is now.
async fn by_user(app: &App, user: &WebPrincipal, item: &Value) -> Result<Option<Value>, Error> {
    let (messages, tenant, id) = (&app.messages, &user.tenant, user.user_id);
    let message = match type_of(item) {
        "message" => {
            let mut wanted: Message = form(item)?;
            match wanted.op.as_deref().unwrap_or("create") {
                "create" if user.user_type != UserType::Web => {
                    return Err(Error::new(Code::Forbidden, "this is for web users"));
                }
                "create" => requests::write(app, user, wanted.recipient_id, wanted.content).await?,
                "edit" => {
                    let content = requests::checked_content(app, wanted.content.take())?;
                    messages.edit(tenant, id, wanted.id()?, &content).await?
                }
                "delete" => {
                    messages.delete(tenant, id, wanted.id()?).await?;
                    return Ok(None);
                }
                _ => return Err(Error::invalid("op", "must be one of create, edit, delete")),
            }
        }
        "read" => messages.mark_read(tenant, id, form::<Message>(item)?.id()?).await?,
        "change" | "ack" => return Err(Error::new(Code::Forbidden, "this is for devices")),
        _ => return Err(unknown("message, read, presence")),
    };
    let message = serde_json::to_value(message);
    message
        .map(Some)
        .map_err(|error| Error::internal(format!("a message is no JSON: {error}")))
}

#[derive(Deserialize)]
struct Acknowledgement {
    cursor: Option<String>,
}

/// Does what a device wants that is no upload.
async fn by_device(app: &App, device: &DevicePrincipal, item: &Value) -> Result<(), Error> {
    match type_of(item) {
        "ack" => {
            let cursor = required("cursor", form::<Acknowledgement>(item)?.cursor)?;
            sync::take_acknowledgement(app, device, &cursor, pending_of(item)).await
        }
        // With an id it would be an upload.
        "read" => Err(Error::invalid("message_id", "must be the id of a message")),
        _ => Err(unknown("message, change, read, ack, presence")),
    }
}
