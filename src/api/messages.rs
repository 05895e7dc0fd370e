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
use crate::messages::{self, Filter, Message, Status};

#[derive(Deserialize)]
struct NewMessage {
    recipient_id: Option<String>,
    content: Option<String>,
}

/// `POST /api/messages`: from a web user to a mobile user.
///
/// # Errors
/// 403 if the recipient is a web user, 404 if it does not exist, 507 while the tenant is beyond its budget.
pub async fn create(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: NewMessage = request.json(app.config.server.body_bytes_max).await?;
    let message = create_message(&app, request.user()?, body.recipient_id, body.content).await?;
    response::json(StatusCode::CREATED, &message)
}

/// Creates a message of a web user, for requests and WebSocket items.
pub(crate) async fn create_message(
    app: &App,
    sender: &WebPrincipal,
    recipient_id: Option<String>,
    content: Option<String>,
) -> Result<Message, Error> {
    let recipient = uuid("recipient_id", &required("recipient_id", recipient_id)?)?;
    let content = checked_content(app, content)?;
    app.budgets.check(&sender.tenant.name)?;
    let messages = &app.messages;
    let created = messages.create(&sender.tenant, sender.user_id, recipient, &content);
    Ok(created.await?)
}

/// `GET /api/messages?recipient_id=&status=&limit=&offset=&before=&after=`, newest first.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let query = &request.query;
    let filter = Filter {
        recipient: query.parsed("recipient_id", "a UUID")?,
        status: query
            .get("status")
            .map(|text| {
                Status::parse(text).ok_or_else(|| Error::invalid("status", "must be pending_sync, synced or read"))
            })
            .transpose()?,
        page: query.page(PAGE_ROWS)?,
    };
    let caller = request.caller()?;
    let found = app.messages.list(caller.tenant(), caller.user_id(), &filter).await?;
    response::page("messages", &found, &filter.page)
}

/// `GET /api/messages/unread-count`.
pub async fn unread_count(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let caller = request.caller()?;
    let count = app.messages.unread_count(caller.tenant(), caller.user_id()).await?;
    response::json(StatusCode::OK, &json!({"unread_count": count}))
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

/// `PUT /api/messages/:id/read` by its recipient. Idempotent.
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
