//! `/api/messages`: messages that the caller sent or received.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::api::App;
use crate::api::auth::WebPrincipal;
use crate::api::request::Request;
use crate::core::tenant::Tenant;
use crate::http::error::{Code, Error};
use crate::http::query::PAGE_ROWS;
use crate::http::request::{required, uuid};
use crate::http::response::{self, Response};
use crate::messages::groups::GroupOfMessage;
use crate::messages::{self, Filter, Message, Status};

#[derive(Deserialize)]
pub(crate) struct NewMessage {
    pub(crate) recipient_id: Option<String>,
    pub(crate) group: Option<GroupOfMessage>,
    pub(crate) content: Option<String>,
}

/// `POST /api/messages`: from a web user to a mobile user, or to a group.
///
/// # Errors
/// 403 if the recipient is a web user, or the sender no member of the group, 404 if it does not exist, 507 while the tenant
/// is beyond its budget.
pub async fn create(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: NewMessage = request.json(app.config.server.body_bytes_max).await?;
    let message = create_message(&app, request.user()?, body).await?;
    response::json(StatusCode::CREATED, &message)
}

/// Creates a message of a web user, for requests and WebSocket items.
pub(crate) async fn create_message(app: &App, sender: &WebPrincipal, message: NewMessage) -> Result<Message, Error> {
    let (messages, tenant, user) = (&app.messages, &sender.tenant, sender.user_id);
    if let Some(group) = message.group {
        if message.recipient_id.is_some() {
            return Err(Error::invalid("group", "is not allowed together with recipient_id"));
        }
        let group = group.checked(&app.config.groups)?;
        let content = checked_content(app, message.content)?;
        app.budgets.check(&tenant.name)?;
        return Ok(messages.create_in_group(tenant, user, &group, &content).await?);
    }
    let recipient = uuid("recipient_id", &required("recipient_id", message.recipient_id)?)?;
    let content = checked_content(app, message.content)?;
    app.budgets.check(&tenant.name)?;
    Ok(messages.create(tenant, user, recipient, &content).await?)
}

/// `GET /api/messages?recipient_id=&status=&group=&limit=&offset=&before=&after=`, newest first.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let query = &request.query;
    let filter = Filter {
        recipient: query.parsed("recipient_id", "a UUID")?,
        group: query
            .get("group")
            .map(|text| text.parse::<GroupOfMessage>()?.checked(&app.config.groups))
            .transpose()?,
        status: query
            .get("status")
            .map(|text| {
                Status::parse(text).ok_or_else(|| Error::invalid("status", "must be pending_sync, synced or read"))
            })
            .transpose()?,
        page: query.page(PAGE_ROWS)?,
    };
    if filter.group.is_some() && (filter.recipient.is_some() || filter.status.is_some()) {
        return Err(Error::invalid(
            "group",
            "is not allowed together with recipient_id or status",
        ));
    }
    let caller = request.caller()?;
    let found = app.messages.list(caller.tenant(), caller.user_id(), &filter).await?;
    response::page("messages", &found, &filter.page)
}

/// `GET /api/messages/unread-count`: of the messages to the caller, and in each group of the caller.
pub async fn unread_count(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let caller = request.caller()?;
    let (tenant, user) = (caller.tenant(), caller.user_id());
    let mut body = json!({"unread_count": app.messages.unread_count(tenant, user).await?});
    if let Some(groups) = app.messages.unread_in_groups(tenant, user).await? {
        body["groups"] = json!(groups);
    }
    response::json(StatusCode::OK, &body)
}

/// `GET /api/messages/:id`.
///
/// # Errors
/// 403 for a message of other users, 404.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let caller = request.caller()?;
    let message = app.messages.get(caller.tenant(), caller.user_id(), id).await?;
    response::json(StatusCode::OK, &message)
}

#[derive(Deserialize)]
struct Edit {
    content: Option<String>,
}

/// `PATCH /api/messages/:id` by its sender.
pub async fn edit(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let body: Edit = request.json(app.config.server.body_bytes_max).await?;
    let content = checked_content(&app, body.content)?;
    let caller = request.caller()?;
    let message = edit_message(&app, caller.tenant(), caller.user_id(), id, &content).await?;
    response::json(StatusCode::OK, &message)
}

/// Edits a message of the author, for requests and WebSocket items.
pub(crate) async fn edit_message(
    app: &App,
    tenant: &Tenant,
    author: Uuid,
    id: Uuid,
    content: &str,
) -> Result<Message, Error> {
    app.budgets.check(&tenant.name)?;
    Ok(app.messages.edit(tenant, author, id, content).await?)
}

/// `PUT /api/messages/:id/read` by its recipient, or a member of its group. Idempotent.
pub async fn mark_read(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let caller = request.caller()?;
    let message = app.messages.mark_read(caller.tenant(), caller.user_id(), id).await?;
    response::json(StatusCode::OK, &message)
}

/// `DELETE /api/messages/:id` by its sender: deletes the message for both users.
///
/// # Errors
/// 404 for a deleted message too.
pub async fn delete(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let caller = request.caller()?;
    app.messages.delete(caller.tenant(), caller.user_id(), id).await?;
    Ok(response::no_content())
}

/// The content of a body, validated.
pub(crate) fn checked_content(app: &App, content: Option<String>) -> Result<String, Error> {
    let content = content.ok_or_else(|| Error::new(Code::EMPTY_MESSAGE, "a message needs content"))?;
    messages::check_content(&content, app.config.messages.content_chars_max)?;
    Ok(content)
}
