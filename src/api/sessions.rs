//! `/api/auth`: login, registration, and sessions.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accounts::devices::{self, DeviceInfo, DeviceType};
use crate::accounts::failed_logins::Reason;
use crate::accounts::login::{self, Credentials, Login, Verifier};
use crate::accounts::login_limits::Limit;
use crate::accounts::sessions::{Client, Granted, Owner, RefreshToken};
use crate::accounts::standing::StampProof;
use crate::accounts::user_names;
use crate::accounts::users::{self, NewPassword, NewUser, Role, UserType};
use crate::api::App;
use crate::api::admission::session_ended;
use crate::api::auth::WebPrincipal;
use crate::api::confirmation::{Confirmed, Means, Proof, confirm_caller};
use crate::api::error::unauthorized;
use crate::api::request::Request;
use crate::feature;
use crate::http::error::{Code, Error};
use crate::http::request::required;
use crate::http::response::{self, Response, json};
use crate::postgres::audit::{self, Act, Actor};
use crate::telemetry::metrics::LoginResult;

#[derive(Deserialize)]
struct LoginBody {
    tenant: Option<String>,
    username: Option<String>,
    email: Option<String>,
    password: Option<String>,
    code: Option<String>,
    device: Option<DeviceBody>,
}

/// The device of a login.
#[derive(Deserialize)]
struct DeviceBody {
    id: Option<String>,
    name: Option<String>,
    #[serde(rename = "type")]
    device_type: Option<DeviceType>,
    public_key: Option<String>,
}

impl From<DeviceBody> for DeviceInfo {
    fn from(body: DeviceBody) -> Self {
        Self {
            id: body.id,
            name: body.name,
            device_type: body.device_type,
            public_key: body.public_key,
        }
    }
}

/// The tenant of a body, of the header `X-Tenant`, or the default.
pub(super) fn named_tenant(app: &App, request: &Request, in_body: Option<&str>) -> Result<String, Error> {
    let named = in_body.or_else(|| request.header("x-tenant"));
    let tenant = named.unwrap_or(&app.config.server.default_tenant);
    if tenant.is_empty() {
        return Err(Error::invalid(
            "tenant",
            "is missing: set it here or in the header X-Tenant; this server has no default tenant",
        ));
    }
    Ok(tenant.to_owned())
}

/// `GET /api/auth/methods`: how users log in.
pub async fn methods(app: Arc<App>, _request: Request) -> Result<Response, Error> {
    let auth = &app.config.auth;
    let providers = auth.providers.iter();
    let providers: Vec<Value> = providers
        .map(|provider| json!({"issuer": provider.issuer, "audience": provider.audience}))
        .collect();
    let body = json!({
        "passwords": auth.passwords,
        "password_resets": app.mails.is_some(),
        "email_verification": app.mails.is_some(),
        "providers": providers,
    });
    json(StatusCode::OK, &body)
}

/// Refuses what belongs to logins with a password where there are none.
pub(super) fn check_passwords(app: &App) -> Result<(), Error> {
    if app.config.auth.passwords {
        return Ok(());
    }
    let text = "this server has no logins with a password: GET /api/auth/methods lists the providers of access tokens";
    Err(Error::new(Code::FORBIDDEN, text))
}

/// `POST /api/auth/login`, with a device or without.
///
/// # Errors
/// 401 with the same text for a wrong tenant, name and password, 403 for a missing or wrong code of the second factor, for a
/// revoked device or one of another user, and where there are no passwords, 409 for too many devices, 429 after too many
/// wrong passwords or codes.
pub async fn login(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: LoginBody = request.json(app.config.server.body_bytes_max).await?;
    let tenant = named_tenant(&app, &request, body.tenant.as_deref());
    let name = required("username", body.username.or(body.email))?;
    let password = required("password", body.password)?;
    for (field, text) in [("username", &name), ("password", &password)] {
        if text.is_empty() {
            return Err(Error::invalid(field, "must not be empty"));
        }
    }
    let device = named(body.device)?;
    let tenant = tenant?;
    let credentials = Credentials {
        tenant: &tenant,
        name: &name,
        password: &password,
        code: body.code.as_deref(),
    };
    let verified = verifier(&app).verify(request.address, credentials).await;
    app.metrics.http.login(match &verified {
        Ok(_) => LoginResult::Granted,
        Err(feature::Error::Unauthorized(_) | feature::Error::CodeInvalid) => LoginResult::Refused,
        Err(feature::Error::CodeRequired) => LoginResult::CodeRequired,
        Err(feature::Error::Limited(_) | feature::Error::Busy(_)) => LoginResult::Limited,
        Err(_) => LoginResult::Failed,
    });
    let reason = match &verified {
        Err(feature::Error::Unauthorized(_)) => Some(Reason::Refused),
        Err(feature::Error::CodeInvalid) => Some(Reason::WrongCode),
        Err(feature::Error::Limited(_) | feature::Error::Busy(_)) => Some(Reason::Limited),
        _ => None,
    };
    if let Some(reason) = reason {
        app.failed_logins.note(request.address, credentials, reason).await;
    }
    let login = verified?;
    log_in(&app, &request, StatusCode::OK, &login, device.as_ref()).await
}

/// `POST /api/auth/register`: creates a web user and logs them in.
///
/// # Errors
/// 403 if registration is closed or there are no passwords, 409 for a username in use, or an email where no mail verifies it, 429 after too many registrations.
pub async fn register(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: LoginBody = request.json(app.config.server.body_bytes_max).await?;
    let tenant = named_tenant(&app, &request, body.tenant.as_deref());
    let (username, email, unproven) = registered_names(&app, body.username, body.email)?;
    let new = NewUser {
        username,
        user_type: UserType::Web,
        role: Role::Member,
        email,
        is_email_unverified: true,
        password: Some(required("password", body.password)?),
    };
    user_names::check(&new)?;
    let device = named(body.device)?;
    let tenant = tenant?;
    // Fails without Redis, which the session needs, before the user is created.
    app.limits.take(Limit::Register, request.address).await?;
    let waiting = app.limits.wait_at(request.address)?;
    let open = users::open_to_all(&app.database, &tenant, app.config.auth.registration_open).await?;
    // The same error for an unknown tenant, which does not reveal whether it exists.
    let tenant = open.ok_or_else(|| Error::new(Code::FORBIDDEN, "registration is closed"))?;
    let by = Actor::anonymous(request.address);
    let id = users::insert(&app.database, &app.passwords, &tenant, &new, &by).await?;
    drop(waiting);
    let user = login::active_in(&app.database, &tenant, id).await?;
    let user = user.ok_or_else(|| unauthorized("the new user was disabled; ask an operator"))?;
    if let (Some(email), Some(mails)) = (unproven, &app.mails)
        && let Err(error) = mails.request_verification(tenant, id, email)
    {
        tracing::warn!(user = %id, %error, "no mail to verify the address of a new user, who may ask for another");
    }
    log_in(&app, &request, StatusCode::CREATED, &user.login, device.as_ref()).await
}

/// The username and email of a new user, and an address to verify first. Where mails can verify one, the user gets it by that:
/// a response must not show whether another user has it, and no client may occupy another's address.
fn registered_names(
    app: &App,
    username: Option<String>,
    email: Option<String>,
) -> Result<(String, Option<String>, Option<String>), Error> {
    if app.mails.is_none() {
        let username = required("username", username.or(email.clone()))?;
        // A username that is an email address is the email too.
        let email = email.or_else(|| username.contains('@').then(|| username.clone()));
        return Ok((username, email, None));
    }
    let username = required("username", username)?;
    if username.contains('@') {
        let text = "must not contain @: log in by the email when it is verified";
        return Err(Error::invalid("username", text));
    }
    if let Some(email) = &email {
        user_names::check_email(email)?;
    }
    Ok((username, None, email))
}

fn named(body: Option<DeviceBody>) -> Result<Option<DeviceInfo>, Error> {
    let device = body.map(DeviceInfo::from);
    if let Some(device) = &device {
        device.check()?;
    }
    Ok(device)
}

/// Opens a session for an authenticated user, with the device of the login.
async fn log_in(
    app: &App,
    request: &Request,
    status: StatusCode,
    login: &Login,
    device: Option<&DeviceInfo>,
) -> Result<Response, Error> {
    let device = match device {
        Some(named) => {
            let devices_max = app.config.auth.devices_max;
            let registering = app.devices.register(login, named, devices_max, request.address);
            Some(registering.await?)
        }
        None => None,
    };
    let device_id = device.as_ref().map(|device| &*device.device.device_id);
    let granted = app.sessions.open(login, device_id, &client(request)).await?;
    // The password may have changed while the session was opened: it has the former stamp then, and is of no use.
    if !app.sessions.confirm(login, granted.session).await? {
        return Err(unauthorized(login::WRONG));
    }
    let mut body = session_body(app, login, &granted, device_id)?;
    if let Some(device) = &device {
        body["device"] = json!(device);
    }
    json(status, &body)
}

#[derive(Deserialize)]
struct RefreshBody {
    refresh_token: Option<String>,
}

/// `POST /api/auth/refresh`.
///
/// # Errors
/// 401 for an invalid token, and for one of a disabled or deleted user; 403 where there are no passwords; 429 after too many tokens without a session.
/// Tokens of a session are never limited, and texts that are no tokens are counted apart. While Redis or Postgres is
/// unavailable, the token stays valid.
pub async fn refresh(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: RefreshBody = request.json(app.config.server.body_bytes_max).await?;
    let token = required("refresh_token", body.refresh_token)?;
    let invalid = || unauthorized("the refresh token is not valid; log in again");
    let Some(token) = RefreshToken::parse(&token) else {
        app.limits.take(Limit::MalformedRefresh, request.address).await?;
        return Err(invalid());
    };
    let Some(owner) = app.sessions.owner(token.session()).await? else {
        app.limits.take(Limit::Refresh, request.address).await?;
        return Err(invalid());
    };
    let (login, granted) = rotate(&app, &request, &token, &owner).await?.ok_or_else(invalid)?;
    let body = session_body(&app, &login, &granted, owner.device_id.as_deref())?;
    json(StatusCode::OK, &body)
}

/// The user and the new tokens of a refreshed session; `None` for an invalid token.
async fn rotate(
    app: &App,
    request: &Request,
    token: &RefreshToken,
    owner: &Owner,
) -> Result<Option<(Login, Granted)>, Error> {
    let (tenant, user) = (&owner.tenant, owner.user);
    // Before the token is taken, so that without Postgres it stays good.
    let Some(active) = login::active(&app.database, tenant, user).await? else {
        app.sessions.end_all(tenant, user, None).await?;
        return Ok(None);
    };
    if !active.standing.permits(token.session(), StampProof::Stamp(owner.stamp)) {
        app.sessions.end(user, &[token.session()]).await?;
        return Ok(None);
    }
    if let Some(device_id) = &owner.device_id
        && !devices::seen(&app.database, tenant, user, device_id).await?
    {
        app.sessions.end(user, &[token.session()]).await?;
        return Ok(None);
    }
    let login = active.login;
    let granted = app.sessions.rotate(token, &login, &client(request)).await?;
    Ok(granted.map(|granted| (login, granted)))
}

#[derive(Deserialize)]
struct PasswordBody {
    current: Option<String>,
    code: Option<String>,
    new: Option<String>,
}

/// `POST /api/auth/password`: sets a new password and ends the caller's other sessions.
///
/// # Errors
/// 400 for a password that is too short or easily guessed, 401 if the caller's own session was ended, 403 for a wrong
/// current password or code and where there are none, 409 if the password was changed meanwhile, 429 after too many wrong
/// ones.
pub async fn change_password(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: PasswordBody = request.json(app.config.server.body_bytes_max).await?;
    let proof = Proof {
        current: Some(required("current", body.current)?),
        code: body.code,
    };
    let new = required("new", body.new)?;
    let Confirmed { user, login } = confirm_caller(&app, &request, proof, Means::Password).await?;
    let waiting = app.limits.wait_at(request.address)?;
    let by = Actor::user(user.user_id, request.address);
    let password = NewPassword {
        by: &by,
        password: &new,
        username: &login.username,
        replaced: Some(login.stamp),
        kept: Some(user.session),
    };
    users::set_password(&app.database, &app.passwords, &user.tenant, user.user_id, password)
        .await
        .map_err(|error| match error {
            feature::Error::Invalid { message, .. } => Error::invalid("new", message),
            other => other.into(),
        })?;
    drop(waiting);
    app.sessions
        .end_all(&user.tenant, user.user_id, Some(user.session))
        .await?;
    Ok(response::no_content())
}

pub(super) fn verifier(app: &App) -> Verifier<'_> {
    Verifier {
        database: &app.database,
        passwords: &app.passwords,
        limits: &app.limits,
        factors: &app.factors,
    }
}

/// `POST /api/auth/logout`: ends the session of the access token. Idempotent.
pub async fn logout(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let user = request.user()?;
    app.sessions.end(user.user_id, &[user.session]).await?;
    Ok(response::no_content())
}

/// `GET /api/auth/sessions`: the sessions of the caller.
///
/// # Errors
/// 401 if the caller's own session was ended.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let user = live_session_user(&app, &request).await?;
    let sessions = app.sessions.list(&user.tenant, user.user_id).await?;
    let mut rows = Vec::with_capacity(sessions.len());
    for session in sessions {
        let mut row = json!(session);
        row["current"] = (session.id == user.session).into();
        rows.push(row);
    }
    json(StatusCode::OK, &json!({ "sessions": rows }))
}

/// `DELETE /api/auth/sessions`: ends the other sessions of the caller.
///
/// # Errors
/// 401 if the caller's own session was ended.
pub async fn end_others(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let user = live_session_user(&app, &request).await?;
    app.sessions
        .end_all(&user.tenant, user.user_id, Some(user.session))
        .await?;
    record(&app, &request, user, "sessions_ended", user.user_id).await;
    Ok(response::no_content())
}

/// Adds an entry to the audit log for an act of the caller.
async fn record(app: &App, request: &Request, user: &WebPrincipal, action: &'static str, subject: Uuid) {
    let act = Act {
        tenant: Some(&user.tenant.name),
        actor: &Actor::user(user.user_id, request.address),
        action,
        subject: Some(subject.to_string()),
        detail: json!({}),
    };
    audit::record(&app.database, act).await;
}

/// `DELETE /api/auth/sessions/:id`.
///
/// # Errors
/// 401 if the caller's own session was ended, 403 for a session of another user, 404.
pub async fn end(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "session")?;
    let user = live_session_user(&app, &request).await?;
    match app.sessions.owner(id).await? {
        Some(owner) if owner.tenant == user.tenant => {
            if owner.user != user.user_id {
                return Err(Error::new(Code::FORBIDDEN, "the session belongs to another user"));
            }
        }
        _ => return Err(Error::new(Code::NOT_FOUND, "session not found")),
    }
    app.sessions.end(user.user_id, &[id]).await?;
    record(&app, &request, user, "session_ended", id).await;
    Ok(response::no_content())
}

/// The caller, whose own session must not have been ended: the access token of an ended session may be stolen.
pub(super) async fn live_session_user<'a>(app: &App, request: &'a Request) -> Result<&'a WebPrincipal, Error> {
    let user = request.user()?;
    if !app.sessions.is_live_everywhere(&user.session_claim()).await? {
        return Err(session_ended());
    }
    Ok(user)
}

fn client(request: &Request) -> Client {
    Client {
        address: request.address,
        user_agent: request.header("user-agent").map(str::to_owned),
    }
}

/// The response to a login or a refresh.
fn session_body(app: &App, login: &Login, granted: &Granted, device_id: Option<&str>) -> Result<Value, Error> {
    Ok(json!({
        "token": app.tokens.issue(login, granted.session, device_id)?,
        "refresh_token": granted.refresh_token,
        "user": {"id": login.id, "username": login.username, "user_type": login.user_type, "role": login.role},
        "expires_in": app.config.auth.token_expiry_seconds,
    }))
}
