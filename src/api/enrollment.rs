//! `/api/enrollment`: enrolling a phone as a device.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use qrcode::QrCode;
use qrcode::render::svg;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::accounts::devices::AuthKey;
use crate::accounts::enrollment::{self, Completion};
use crate::accounts::login_limits::Limit;
use crate::accounts::users;
use crate::api::auth::Principal;
use crate::api::confirmation::{Proof, confirm_principal};
use crate::api::request::Request;
use crate::api::{App, OPTIONAL_TIMEOUT};
use crate::feature;
use crate::feature::has_control;
use crate::http::error::Error;
use crate::http::query::PAGE_ROWS;
use crate::http::raw_json::RawTree;
use crate::http::request::{required, uuid};
use crate::http::response::{self, Response};
use crate::postgres::audit::Actor;

#[derive(Default, Deserialize)]
struct NewEnrollment {
    user_id: Option<String>,
    current: Option<String>,
    code: Option<String>,
}

/// `POST /api/enrollment/create`; the body is optional.
///
/// # Errors
/// 403 for another user unless the caller is an admin who has logged in a moment ago or sends the password, 404 if the user
/// does not exist.
pub async fn create(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: NewEnrollment = request.json_or_default(app.config.server.body_bytes_max).await?;
    let user_id = body.user_id.map(|text| uuid("user_id", &text)).transpose()?;
    let caller = request.caller()?;
    let is_others = user_id.is_some_and(|user| user != caller.user_id());
    // Whose enrollment it is not gets no device by it. Who is no admin is refused below.
    if is_others && users::is_admin(&app.database, caller.tenant(), caller.user_id()).await? {
        let proof = Proof {
            current: body.current,
            code: body.code,
        };
        confirm_principal(&app, &request, proof).await?;
    }
    let lifetime = Duration::from_secs(app.config.enrollment.expiry_seconds);
    let created = enrollment::create(
        &app.database,
        caller.tenant(),
        caller.user_id(),
        user_id,
        lifetime,
        request.address,
    )
    .await?;
    response::json(
        StatusCode::CREATED,
        &json!({
            "id": created.id,
            "token": created.token,
            "qr_code_data": qr_code_data(&app, created.token, &caller.tenant().name),
            "expires_at": created.expires_at,
        }),
    )
}

/// `GET /api/enrollment?limit=&offset=&before=&after=`: the open enrollments of the caller, for admins all, newest first.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let (caller, page) = (request.caller()?, request.query.page(PAGE_ROWS)?);
    let creator = creator(&app, caller).await?;
    let found = enrollment::list(&app.database, caller.tenant(), creator, &page).await?;
    response::page("enrollments", &found, &page)
}

/// `DELETE /api/enrollment/:token`, which may be the id as well.
///
/// # Errors
/// 404 for one that is used, withdrawn or, unless the caller is an admin, another user's.
pub async fn withdraw(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("token", "enrollment")?;
    let caller = request.caller()?;
    let creator = creator(&app, caller).await?;
    let by = Actor::user(caller.user_id(), request.address);
    enrollment::withdraw(&app.database, caller.tenant(), creator, id, &by).await?;
    Ok(response::no_content())
}

/// Whose enrollments the caller manages: `None` is all users'.
async fn creator(app: &App, caller: &Principal) -> Result<Option<Uuid>, Error> {
    let is_admin = users::is_admin(&app.database, caller.tenant(), caller.user_id()).await?;
    Ok((!is_admin).then(|| caller.user_id()))
}

/// The data of the QR code.
fn qr_code_data(app: &App, token: Uuid, tenant: &str) -> Value {
    json!({
        "enrollment_url": format!("{}/api/enrollment/{token}", app.config.public_url()),
        "token": token,
        "tenant_id": tenant,
    })
}

/// `GET /api/enrollment/:token/qr.svg`: the QR code of the `qr_code_data` that `create` returned.
pub async fn picture(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let token = request.param_id("token", "enrollment")?;
    let details = limited(&app, request.address, enrollment::get(&app.database, token)).await?;
    let data = qr_code_data(&app, token, &details.tenant).to_string();
    let code = QrCode::new(data)
        .map_err(|error| Error::internal(format!("cannot encode the QR code of an enrollment: {error}")))?;
    let picture = code.render::<svg::Color<'_>>().min_dimensions(256, 256).build();
    Ok(response::with_type(StatusCode::OK, "image/svg+xml", picture))
}

/// `GET /api/enrollment/:token`.
///
/// # Errors
/// 404 for an unknown token, 400 `ENROLLMENT_USED` or `ENROLLMENT_EXPIRED`, 429 after too many of those.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let token = request.param_id("token", "enrollment")?;
    let details = limited(&app, request.address, enrollment::get(&app.database, token)).await?;
    response::json(
        StatusCode::OK,
        &json!({
            "token": token,
            "tenant_id": details.tenant,
            "created_by": details.created_by,
            "expires_at": details.expires_at,
            // A used or expired token is an error.
            "used_at": null,
            "valid": true,
        }),
    )
}

/// Longest `device_info` in bytes of JSON.
const DEVICE_INFO_BYTES_MAX: usize = 8 * 1024;

/// Most values of a `device_info`, keys and nested values included.
const DEVICE_INFO_VALUES_MAX: usize = 500;

#[derive(Deserialize)]
struct CompletionBody {
    token: Option<String>,
    device_id: Option<String>,
    username: Option<String>,
    device_name: Option<String>,
    public_key: Option<String>,
    auth_key: Option<String>,
    device_info: Option<RawTree>,
}

/// `POST /api/enrollment/complete`: creates the device.
///
/// # Errors
/// 400 for a used or expired token, 404 for an unknown one, 429 after too many of those, 409 for a username or device id
/// in use.
pub async fn complete(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let address = request.address;
    // Before the body, which any client may send.
    check_limit(&app, address).await?;
    let body: CompletionBody = request.json(app.config.server.body_bytes_max).await?;
    let token = uuid("token", &required("token", body.token)?)?;
    let device_info: Map<String, Value> = match body.device_info {
        Some(info) => info.parse("device_info", DEVICE_INFO_BYTES_MAX, DEVICE_INFO_VALUES_MAX)?,
        None => Map::new(),
    };
    let device_info = Value::Object(device_info);
    if has_control(&device_info) {
        return Err(Error::invalid("device_info", "must not contain control characters"));
    }
    let completion = Completion {
        token,
        device_id: required("device_id", body.device_id)?,
        username: body.username,
        device_name: body.device_name,
        public_key: body.public_key,
        auth_key: body.auth_key.as_deref().map(AuthKey::parse).transpose()?,
        device_info,
    };
    let completing = enrollment::complete(
        &app.devices,
        &app.config.enrollment,
        app.config.auth.devices_max,
        &completion,
        address,
    );
    let enrolled = counted(&app, address, completing).await?;
    response::json(
        StatusCode::CREATED,
        &json!({
            "user_id": enrolled.user_id,
            "username": enrolled.username,
            "device_id": enrolled.device_id,
            "device_token": enrolled.device_token,
            "tenant_id": enrolled.tenant.name,
            "app_instructions_url": format!("{}/api/app-instructions", app.config.public_url()),
        }),
    )
}

/// Limits requests with invalid tokens. Tokens are random, so this limits load, not guessing; without Redis there is no
/// limit.
async fn limited<T>(
    app: &App,
    address: IpAddr,
    work: impl Future<Output = Result<T, feature::Error>>,
) -> Result<T, Error> {
    check_limit(app, address).await?;
    counted(app, address, work).await
}

/// Checks the limit of an address.
async fn check_limit(app: &App, address: IpAddr) -> Result<(), Error> {
    let checking = app.limits.check_address(Limit::Enrollment, address);
    match tokio::time::timeout(OPTIONAL_TIMEOUT, checking).await {
        Ok(Err(error @ feature::Error::Limited(_))) => return Err(error.into()),
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => tracing::warn!("enrollment is not rate-limited: Redis does not respond"),
    }
    Ok(())
}

/// Counts a request with an invalid token.
async fn counted<T>(
    app: &App,
    address: IpAddr,
    work: impl Future<Output = Result<T, feature::Error>>,
) -> Result<T, Error> {
    use feature::Error::{EnrollmentExpired, EnrollmentUsed, Invalid, NotFound};

    let result = work.await;
    if let Err(NotFound(_) | Invalid { .. } | EnrollmentUsed | EnrollmentExpired) = &result {
        let counting = app.limits.count_address(Limit::Enrollment, address);
        tokio::time::timeout(OPTIONAL_TIMEOUT, counting).await.ok();
    }
    Ok(result?)
}
