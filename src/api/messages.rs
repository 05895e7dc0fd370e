//! `/api/messages`: what the caller sent and got.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::api::App;
use crate::api::auth::WebPrincipal;
use crate::http::error::{Code, Error};
use crate::http::request::{PAGE_ROWS, Request, required, uuid};
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
/// 400, 403 to a web user, 404 to nobody.
pub async fn create(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: NewMessage = request.json(app.config.server.body_bytes_max).await?;
    let message = write(&app, request.user()?, body.recipient_id, body.content).await?;
    response::json(StatusCode::CREATED, &message)
}

/// Writes a message of a web user's, on whichever way it came.
///
/// # Errors
/// As [`create`].
pub(crate) async fn write(
    app: &App,
    sender: &WebPrincipal,
    recipient_id: Option<String>,
    content: Option<String>,
) -> Result<Message, Error> {
    let recipient = uuid("recipient_id", &required("recipient_id", recipient_id)?)?;
    let content = checked_content(app, content)?;
    let messages = &app.messages;
    let created = messages.create(&sender.tenant, sender.user_id, recipient, &content);
    Ok(created.await?)
}

/// `GET /api/messages?recipient_id=&status=&limit=&offset=&before=&after=`, newest first.
///
/// # Errors
/// 400 for a bad parameter.
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
///
/// # Errors
/// 503.
pub async fn unread_count(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let caller = request.caller()?;
    let count = app.messages.unread_count(caller.tenant(), caller.user_id()).await?;
    response::json(StatusCode::OK, &json!({"unread_count": count}))
}

/// `GET /api/messages/:id`.
///
/// # Errors
/// 403 when it is others', 404.
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
///
/// # Errors
/// 400, 403, 404.
pub async fn edit(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let body: Edit = request.json(app.config.server.body_bytes_max).await?;
    let content = checked_content(&app, body.content)?;
    let caller = request.caller()?;
    let message = app
        .messages
        .edit(caller.tenant(), caller.user_id(), id, &content)
        .await?;
    response::json(StatusCode::OK, &message)
}

/// `PUT /api/messages/:id/read` by its recipient. A repeat answers the same.
///
/// # Errors
/// 403, 404.
pub async fn mark_read(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let caller = request.caller()?;
    let message = app.messages.mark_read(caller.tenant(), caller.user_id(), id).await?;
    response::json(StatusCode::OK, &message)
}

/// `DELETE /api/messages/:id` by its sender: for both sides.
///
/// # Errors
/// 403, 404, also for the second time.
pub async fn delete(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "message")?;
    let caller = request.caller()?;
    app.messages.delete(caller.tenant(), caller.user_id(), id).await?;
    Ok(response::no_content())
}

/// The content of a body, checked.
pub(crate) fn checked_content(app: &App, content: Option<String>) -> Result<String, Error> {
    let content = content.ok_or_else(|| Error::new(Code::EmptyMessage, "a message needs content"))?;
    messages::check_content(&content, app.config.messages.content_chars_max)?;
    Ok(content)
}
