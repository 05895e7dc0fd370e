//! `/api/presence`: who is here, and what a device or a web session says of itself. Everybody of a tenant sees everybody
//! of it, as they can write to each other; nobody sees another tenant's.

use std::sync::Arc;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::App;
use crate::api::auth::Principal;
use crate::core::time::Timestamp;
use crate::http::error::{Code, Error};
use crate::http::request::{PAGE_MAX, Request, required, uuid};
use crate::http::response::{self, Response};
use crate::live::presence::{self, Entry, Place, Status};

/// Most users that one request may name.
const NAMED_MAX: usize = 100;

/// A user's presence as the API shows it.
#[derive(Serialize)]
struct Shown {
    user_id: Uuid,
    status: Status,
    last_seen: Option<Timestamp>,
}

impl Shown {
    fn of(entry: &Entry) -> Self {
        let seen = chrono::DateTime::from_timestamp_millis(entry.seen_ms).map(Timestamp);
        Self {
            user_id: entry.user,
            status: entry.status,
            last_seen: seen.filter(|_| !entry.status.is_present()),
        }
    }
}

/// `GET /api/presence?user_id=&limit=&offset=`: who is here, and who went within the hour.
///
/// # Errors
/// 400 for a bad parameter, 503 while Redis is away.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let tenant = &request.caller()?.tenant().name;
    let limit = request.query.number("limit", PAGE_MAX, 1..=PAGE_MAX)?;
    let offset = request.query.number("offset", 0, 0..=i64::MAX)?;
    let list = match request.query.get("user_id").filter(|text| !text.is_empty()) {
        Some(named) => {
            let ids: Vec<Uuid> = named
                .split(',')
                .map(|id| uuid("user_id", id))
                .collect::<Result<_, _>>()?;
            if ids.len() > NAMED_MAX {
                return Err(Error::invalid(
                    "user_id",
                    format!("must name no more than {NAMED_MAX} users"),
                ));
            }
            let mut list = app.presence.of(tenant, &ids).await.map_err(unavailable)?;
            list.total = i64::try_from(list.entries.len()).unwrap_or(i64::MAX);
            list
        }
        None => app.presence.page(tenant, limit, offset).await.map_err(unavailable)?,
    };
    let shown: Vec<Shown> = list.entries.iter().map(Shown::of).collect();
    response::json(
        StatusCode::OK,
        &json!({"presence": shown, "version": list.version, "total": list.total, "limit": limit,
                "offset": offset}),
    )
}

#[derive(Deserialize)]
struct Said {
    status: Option<String>,
}

/// `PUT /api/presence`: a device, or the pages of a web session, say that they are online or away.
///
/// # Errors
/// 400 for another status, 503 while Redis is away.
pub async fn declare(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let said: Said = request.json(app.config.server.body_bytes_max).await?;
    response::json(StatusCode::OK, &take(&app, request.caller()?, said.status).await?)
}

/// Takes what a caller says of itself, on whichever way; gives what its user is with that.
///
/// # Errors
/// As [`declare`].
pub(crate) async fn take(app: &App, caller: &Principal, status: Option<String>) -> Result<Value, Error> {
    let status = required("status", status)?;
    let status = Status::parse(&status)
        .filter(|status| status.is_present())
        .ok_or_else(|| Error::invalid("status", "must be online or away"))?;
    let place = match caller {
        Principal::Device(device) => Place::Device(device.device_id.clone()),
        Principal::Web(user) => Place::Session(user.session),
    };
    let (tenant, user) = (&caller.tenant().name, caller.user_id());
    let folded = app
        .presence
        .declare(tenant, user, &place, status)
        .await
        .map_err(unavailable)?;
    Ok(json!({"user_id": user, "status": folded, "own_status": status}))
}

fn unavailable(error: presence::Error) -> Error {
    tracing::warn!(%error, "presence is not to be had");
    Error::new(Code::RedisError, "Redis is unavailable; try again in a moment")
}
