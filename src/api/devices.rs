//! `/api/devices`: the caller's devices and, for admins, those of all users.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::accounts::devices::{self, AuthKey, Device, DeviceType, Filter, NewDevice, Update};
use crate::accounts::users;
use crate::api::App;
use crate::api::auth::Principal;
use crate::api::request::Request;
use crate::http::error::{Code, Error};
use crate::http::query::PAGE_ROWS;
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::live::presence::List;
use crate::postgres::audit::Actor;

async fn is_admin(app: &App, caller: &Principal) -> Result<bool, Error> {
    Ok(users::is_admin(&app.database, caller.tenant(), caller.user_id()).await?)
}

/// `GET /api/devices?user_id=&status=&limit=&offset=&before=&after=`, newest first.
///
/// # Errors
/// 403 for another user unless the caller is an admin.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let query = &request.query;
    let caller = request.caller()?;
    // By default the caller's own devices.
    let user = query.parsed("user_id", "a UUID")?.unwrap_or_else(|| caller.user_id());
    let filter = Filter {
        user: Some(user),
        device_id: None,
        is_revoked: match query.get("status") {
            None | Some("active") => Some(false),
            Some("revoked") => Some(true),
            Some("all") => None,
            Some(_) => return Err(Error::invalid("status", "must be active, revoked or all")),
        },
        page: query.page(PAGE_ROWS)?,
    };
    if user != caller.user_id() && !is_admin(&app, caller).await? {
        return Err(Error::new(
            Code::FORBIDDEN,
            "only admins list the devices of other users",
        ));
    }
    let mut found = devices::list(&app.database, caller.tenant(), &filter).await?;
    add_presence(&app, caller, &mut found.rows).await;
    response::page("devices", &found, &filter.page)
}

#[derive(Deserialize)]
struct NewDeviceBody {
    name: Option<String>,
    #[serde(rename = "type")]
    device_type: Option<DeviceType>,
    public_key: Option<String>,
    auth_key: Option<String>,
    device_id: Option<String>,
}

/// `POST /api/devices`: adds a device to the caller's account, which then syncs by its token.
///
/// # Errors
/// 409 for another user's device, for a device with another public key, and for too many devices.
pub async fn add(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: NewDeviceBody = request.json(app.config.server.body_bytes_max).await?;
    let name = required("name", body.name)?;
    let device_type = required("type", body.device_type)?;
    let id = body.device_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    let user = request.user()?;
    let device = NewDevice {
        id: &id,
        name: Some(&name),
        device_type: Some(device_type),
        public_key: body.public_key.as_deref(),
        auth_key: body.auth_key.as_deref().map(AuthKey::parse).transpose()?,
        info: None,
    };
    let devices_max = app.config.auth.devices_max;
    let by = Actor::user(user.user_id, request.address);
    let token = app
        .devices
        .add(&user.tenant, user.user_id, &device, devices_max, &by)
        .await?;
    response::json(
        StatusCode::CREATED,
        &json!({
            "device_id": id,
            "device_token": token,
            "user_id": user.user_id,
            "tenant_id": user.tenant.name,
        }),
    )
}

#[derive(Deserialize)]
struct Description {
    name: Option<String>,
    public_key: Option<String>,
}

/// `PATCH /api/devices/:id` by its user.
///
/// # Errors
/// 400, 403 for a revoked device or one of another user, 404.
pub async fn update(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: Description = request.json(app.config.server.body_bytes_max).await?;
    if body.name.is_none() && body.public_key.is_none() {
        return Err(Error::invalid("name", "or public_key is required"));
    }
    let caller = request.caller()?;
    let id = request.param("id");
    devices::update(
        &app.database,
        caller.tenant(),
        caller.user_id(),
        id,
        Update {
            name: body.name.as_deref(),
            public_key: body.public_key.as_deref(),
        },
    )
    .await?;
    let mut device = devices::get(&app.database, caller.tenant(), Some(caller.user_id()), id).await?;
    add_presence(&app, caller, std::slice::from_mut(&mut device)).await;
    response::json(StatusCode::OK, &device)
}

/// Adds presence. Without Redis all devices are shown as offline.
async fn add_presence(app: &App, caller: &Principal, devices: &mut [Device]) {
    let mut users: Vec<Uuid> = devices.iter().map(|device| device.user_id).collect();
    users.sort_unstable();
    users.dedup();
    let found = app
        .lane(&caller.tenant().name)
        .presence
        .of(&caller.tenant().name, &users)
        .await;
    let found = found.unwrap_or_else(|error| {
        tracing::warn!(%error, "presence unavailable; all devices are shown as offline");
        List::default()
    });
    for device in devices {
        device.set_presence(found.entries.iter().find(|entry| entry.user == device.user_id));
    }
}

/// `DELETE /api/devices/:id`: ends its token, sessions and streams on every node.
///
/// # Errors
/// 403 for a device of another user unless the caller is an admin, 404 for a revoked one too.
pub async fn revoke(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let caller = request.caller()?;
    let id = request.param("id");
    let owner = if is_admin(&app, caller).await? {
        None
    } else {
        Some(caller.user_id())
    };
    devices::get(&app.database, caller.tenant(), owner, id).await?;
    let by = Actor::user(caller.user_id(), request.address);
    let user = app.devices.revoke(caller.tenant(), id, &by).await?;
    let user = user.ok_or(crate::feature::Error::NotFound("device"))?;
    if let Err(error) = app.sessions.end_of_device(caller.tenant(), user, id).await {
        tracing::warn!(%error, device = id, "cannot end the sessions of a revoked device now; they end with its change in the log");
    }
    Ok(response::no_content())
}
