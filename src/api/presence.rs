//! `/api/presence`: which users are present, and the presence of a device or web session. All users of a tenant see each
//! other, because they can write to each other; no user sees another tenant.

use std::sync::Arc;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::App;
use crate::api::auth::Principal;
use crate::api::request::Request;
use crate::core::time::Timestamp;
use crate::feature;
use crate::http::error::Error;
use crate::http::query::PAGE_MAX;
use crate::http::request::{required, uuid};
use crate::http::response::{self, Response};
use crate::live::presence::{Entry, Place, Status};

/// Most users that one request may list.
const USERS_MAX: usize = 100;

/// A user's presence as JSON.
#[derive(Serialize)]
struct PresenceBody {
    user_id: Uuid,
    status: Status,
    last_seen: Option<Timestamp>,
}

impl PresenceBody {
    fn of(entry: &Entry) -> Self {
        let seen = chrono::DateTime::from_timestamp_millis(entry.seen_ms).map(Timestamp);
        Self {
            user_id: entry.user,
            status: entry.status,
            last_seen: seen.filter(|_| !entry.status.is_present()),
        }
    }
}

/// `GET /api/presence?user_id=&limit=&offset=`: present users, and those who left within the hour.
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
            if ids.len() > USERS_MAX {
                return Err(Error::invalid(
                    "user_id",
                    format!("must not list more than {USERS_MAX} users"),
                ));
            }
            let mut list = app.lane(tenant).presence.of(tenant, &ids).await?;
            list.total = i64::try_from(list.entries.len()).unwrap_or(i64::MAX);
            list
        }
        None => app.lane(tenant).presence.page(tenant, limit, offset).await?,
    };
    let rows: Vec<PresenceBody> = list.entries.iter().map(PresenceBody::of).collect();
    let end = offset.saturating_add(i64::try_from(rows.len()).unwrap_or(i64::MAX));
    let has_more = request.query.get("user_id").is_none() && end < list.total;
    response::json(
        StatusCode::OK,
        &json!({"presence": rows, "version": list.version, "total": list.total, "limit": limit,
                "offset": offset, "has_more": has_more}),
    )
}

#[derive(Deserialize)]
struct Declaration {
    status: Option<String>,
}

/// `PUT /api/presence`: sets a device, or the pages of a web session, online or away.
pub async fn declare(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: Declaration = request.json(app.config.server.body_bytes_max).await?;
    response::json(
        StatusCode::OK,
        &declare_status(&app, request.caller()?, body.status).await?,
    )
}

/// Sets the presence of a caller, for requests and WebSocket items; returns that of its user.
///
/// # Errors
/// 400 for another status, 429 beyond the rate of a user.
pub(crate) async fn declare_status(app: &App, caller: &Principal, status: Option<String>) -> Result<Value, Error> {
    let status = required("status", status)?;
    let status = Status::parse(&status)
        .filter(|status| status.is_present())
        .ok_or_else(|| Error::invalid("status", "must be online or away"))?;
    let place = match caller {
        Principal::Device(device) => Place::Device(device.device_id.clone()),
        Principal::Web(user) => Place::Session(user.session),
    };
    let (tenant, user) = (&caller.tenant().name, caller.user_id());
    app.declarations
        .take((tenant.as_str().into(), user))
        .map_err(feature::Error::Limited)?;
    let folded = app.lane(tenant).presence.declare(tenant, user, &place, status).await?;
    Ok(json!({"user_id": user, "status": folded, "own_status": status}))
}
