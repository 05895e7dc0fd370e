//! Items that clients send over a WebSocket; each gets a result.
//!
//! An item has the effect of a request, through the same functions: a device's items are those of an upload, a user's those
//! of `/api/messages`. A frame contains one item or a list of items; they are executed in order.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accounts::devices::DevicePrincipal;
use crate::accounts::users::UserType;
use crate::api::App;
use crate::api::auth::{Principal, WebPrincipal};
use crate::api::item_body::ItemBody;
use crate::api::messages::NewMessage;
use crate::api::rates::cost_of_bytes;
use crate::api::{messages as message_routes, presence as presence_routes, sync as sync_routes};
use crate::http::error::{Code, Error};
use crate::http::raw_json;
use crate::http::request::{required, uuid};
use crate::messages::groups::GroupOfMessage;
use crate::sync::outgoing::Items;

/// Longest id of an item that a result repeats, in characters.
const ID_CHARS_MAX: usize = 128;

/// A frame of a client.
#[derive(Debug, PartialEq)]
pub(crate) enum Frame {
    /// Continue after this cursor instead.
    Resume(String),
    Items(Vec<Value>),
    /// Respond with a pong of this id. Pages cannot send the protocol's own pings.
    Ping(Value),
}

/// Parses the text of a frame.
pub(crate) fn parse(text: &str, items_max: usize) -> Result<Frame, Error> {
    let invalid = |message: String| Error::new(Code::VALIDATION_ERROR, message);
    match raw_json::frame(text, raw_json::values_max(items_max))? {
        Value::Array(items) if (1..=items_max).contains(&items.len()) => Ok(Frame::Items(items)),
        Value::Array(_) => Err(invalid(format!("a list must have 1 to {items_max} items"))),
        Value::Object(mut fields) => match fields.remove("resume") {
            None => {
                let item = Value::Object(fields);
                Ok(match type_of(&item) {
                    "ping" => Frame::Ping(id_of(&item)),
                    _ => Frame::Items(vec![item]),
                })
            }
            Some(Value::String(cursor)) => Ok(Frame::Resume(cursor)),
            Some(_) => Err(invalid("resume: must be a cursor".into())),
        },
        _ => Err(invalid("a frame must be an object, or a list of objects".into())),
    }
}

/// Executes the items of a frame and returns their results in order. Like a request, it can be cancelled safely.
/// `bytes` are those of the frame.
pub(crate) async fn execute(app: Arc<App>, caller: Principal, items: Vec<Value>, bytes: usize) -> Vec<ItemBody> {
    let mut results = Vec::with_capacity(items.len());
    let cost = cost(&caller, items.len()).saturating_add(cost_of_bytes(bytes));
    app.rates.wait_for_principal(&caller, cost).await;
    match &caller {
        Principal::Web(user) => {
            for item in &items {
                let done = timed(&app, async {
                    match type_of(item) {
                        "presence" => presence(&app, &caller, item).await.map(Some),
                        _ => execute_for_user(&app, user, item).await,
                    }
                });
                let done = done.await;
                results.push(match done {
                    Ok(server) => ItemBody::applied(id_of(item), server),
                    Err(error) => ItemBody::failed(id_of(item), &error),
                });
            }
        }
        Principal::Device(device) => {
            let mut batch = Batch::default();
            for item in items {
                // Items with and without numbers are separate uploads.
                if batch.is_numbered() != (type_of(&item) == "item") {
                    batch.upload(&app, device, &mut results).await;
                }
                let Some(item) = batch.add(item) else { continue };
                batch.upload(&app, device, &mut results).await;
                let done = timed(&app, async {
                    match type_of(&item) {
                        "presence" => presence(&app, &caller, &item).await.map(Some),
                        _ => execute_for_device(&app, device, &item).await.map(|()| None),
                    }
                });
                results.push(match done.await {
                    Ok(server) => ItemBody::applied(id_of(&item), server),
                    Err(error) => ItemBody::failed(id_of(&item), &error),
                });
            }
            batch.upload(&app, device, &mut results).await;
        }
    }
    results
}

/// What the items of a frame cost: those of a device are one upload.
fn cost(caller: &Principal, items: usize) -> u32 {
    match caller {
        Principal::Web(_) => u32::try_from(2 * items).unwrap_or(u32::MAX),
        Principal::Device(_) => 5,
    }
}

/// Applies the timeout of requests.
async fn timed<T>(app: &App, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let timeout = Duration::from_secs(app.config.server.request_timeout_seconds);
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
        let message = format!("the item took longer than {} s", timeout.as_secs());
        Err(Error::new(Code::TIMEOUT, message))
    })
}

/// The item's id as it was sent, truncated; null if it is not valid.
fn id_of(item: &Value) -> Value {
    match &item["id"] {
        Value::String(id) => id.chars().take(ID_CHARS_MAX).collect::<String>().into(),
        Value::Number(id) => id.clone().into(),
        _ => Value::Null,
    }
}

/// An item as an upload has it. What only a frame has is no part of the item: a repeat may come in another frame, or in the
/// body of a request.
pub(crate) fn numbered(mut item: Value) -> Value {
    if let Value::Object(fields) = &mut item {
        for name in ["type", "acked_seq", "pending_count"] {
            fields.remove(name);
        }
    }
    item
}

/// The length of the device's own queue, which an item may report.
fn pending_of(item: &Value) -> Option<u32> {
    item["pending_count"].as_u64().and_then(|count| count.try_into().ok())
}

fn type_of(item: &Value) -> &str {
    item["type"].as_str().unwrap_or_default()
}

fn unknown(allowed: &str) -> Error {
    Error::invalid("type", format!("must be one of {allowed}"))
}

fn form<T: DeserializeOwned>(item: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(item).map_err(|error| Error::invalid(&error.path().to_string(), error.inner()))
}

/// Consecutive items of a device that are uploaded together.
#[derive(Default)]
struct Batch {
    /// The id of each item, and whether it is a message.
    ids: Vec<(Value, bool)>,
    messages: Vec<Value>,
    changes: Vec<Value>,
    /// Items with sequence numbers; a batch has no others beside them.
    numbered: Vec<Value>,
    acked_seq: Option<i64>,
    /// The length of the device's own queue, as last reported.
    pending: Option<u32>,
}

impl Batch {
    fn is_numbered(&self) -> bool {
        !self.numbered.is_empty()
    }

    /// Adds an item that is uploaded; returns any other.
    fn add(&mut self, item: Value) -> Option<Value> {
        let pending = pending_of(&item);
        match type_of(&item) {
            "item" => {
                self.ids.push((id_of(&item), true));
                self.acked_seq = item["acked_seq"].as_i64().or(self.acked_seq);
                self.numbered.push(numbered(item));
            }
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

    async fn upload(&mut self, app: &App, device: &DevicePrincipal, results: &mut Vec<ItemBody>) {
        let Self {
            ids,
            messages,
            changes,
            numbered,
            acked_seq,
            pending,
        } = std::mem::take(self);
        if ids.is_empty() {
            return;
        }
        let uploading = async {
            let items = match numbered.is_empty() {
                true => Items::Unnumbered {
                    messages: &messages,
                    changes: &changes,
                },
                false => sync_routes::numbered(&numbered, acked_seq)?,
            };
            let outgoing = &app.lane(&device.tenant.name).outgoing;
            Ok(outgoing.upload(device, items, pending).await?)
        };
        let uploaded = match timed(app, uploading).await {
            Ok(uploaded) => uploaded,
            Err(error) => return results.extend(ids.into_iter().map(|(id, _)| ItemBody::failed(id, &error))),
        };
        if !numbered.is_empty() {
            return results.extend(uploaded.results.into_iter().map(ItemBody::from));
        }
        let mut of_messages = uploaded.results;
        let mut of_changes = of_messages.split_off(messages.len()).into_iter();
        let mut of_messages = of_messages.into_iter();
        for (id, is_message) in ids {
            let result = if is_message {
                of_messages.next()
            } else {
                of_changes.next()
            };
            results.extend(result.map(|result| ItemBody::from(result).with_id(id)));
        }
    }
}

#[derive(Deserialize)]
struct Declaration {
    status: Option<String>,
}

/// Sets the presence of the device or session; returns the user's presence.
async fn presence(app: &App, caller: &Principal, item: &Value) -> Result<Value, Error> {
    presence_routes::declare_status(app, caller, form::<Declaration>(item)?.status).await
}

#[derive(Deserialize)]
struct Message {
    op: Option<String>,
    message_id: Option<String>,
    recipient_id: Option<String>,
    group: Option<GroupOfMessage>,
    content: Option<String>,
}

impl Message {
    fn id(self) -> Result<Uuid, Error> {
        uuid("message_id", &required("message_id", self.message_id)?)
    }
}

/// Executes an item of a user; returns the message after it.
async fn execute_for_user(app: &App, user: &WebPrincipal, item: &Value) -> Result<Option<Value>, Error> {
    let (messages, tenant, id) = (&app.messages, &user.tenant, user.user_id);
    let message = match type_of(item) {
        "message" => {
            let mut wanted: Message = form(item)?;
            match wanted.op.as_deref().unwrap_or("create") {
                "create" if user.user_type != UserType::Web => {
                    return Err(Error::new(Code::FORBIDDEN, "only web users may do this"));
                }
                "create" => {
                    let (recipient_id, group, content) = (wanted.recipient_id, wanted.group, wanted.content);
                    let new = NewMessage {
                        recipient_id,
                        group,
                        content,
                    };
                    message_routes::create_message(app, user, new).await?
                }
                "edit" => {
                    let content = message_routes::checked_content(app, wanted.content.take())?;
                    message_routes::edit_message(app, tenant, id, wanted.id()?, &content).await?
                }
                "delete" => {
                    messages.delete(tenant, id, wanted.id()?).await?;
                    return Ok(None);
                }
                _ => return Err(Error::invalid("op", "must be one of create, edit, delete")),
            }
        }
        "read" => messages.mark_read(tenant, id, form::<Message>(item)?.id()?).await?,
        "change" | "ack" => return Err(Error::new(Code::FORBIDDEN, "only devices may do this")),
        _ => return Err(unknown("message, read, presence")),
    };
    let message = serde_json::to_value(message);
    message
        .map(Some)
        .map_err(|error| Error::internal(format!("cannot serialize a message: {error}")))
}

#[derive(Deserialize)]
struct Acknowledgement {
    cursor: Option<String>,
}

/// Executes an item of a device that is not an upload.
async fn execute_for_device(app: &App, device: &DevicePrincipal, item: &Value) -> Result<(), Error> {
    match type_of(item) {
        "ack" => {
            let cursor = required("cursor", form::<Acknowledgement>(item)?.cursor)?;
            let incoming = &app.lane(&device.tenant.name).incoming;
            Ok(incoming.acknowledge(device, &cursor, pending_of(item)).await?)
        }
        // With an id it is part of an upload.
        "read" => Err(Error::invalid("message_id", "must be the id of a message")),
        _ => Err(unknown("message, change, read, ack, presence")),
    }
}
