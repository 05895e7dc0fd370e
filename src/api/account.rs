//! `/api/account`: the caller's own account, and its address.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::confirmation::{Confirmed, Means, Proof, confirm_caller};
use super::sessions::{check_passwords, live_session_user};
use crate::accounts::mail::{self, Mails, Notice};
use crate::accounts::{login, user_names};
use crate::api::App;
use crate::api::admission::session_ended;
use crate::api::request::Request;
use crate::http::error::{Code, Error};
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::postgres::audit::Actor;
use crate::postgres::tenants;

/// Where a webhook sends mails, and users have passwords.
pub(super) fn mails(app: &App) -> Result<&Mails, Error> {
    check_passwords(app)?;
    let text = "this server sends no mails: ask an operator for another password or address";
    app.mails.as_ref().ok_or_else(|| Error::new(Code::FORBIDDEN, text))
}

/// `GET /api/account`.
///
/// # Errors
/// 401 if the caller's own session was ended.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let user = live_session_user(&app, &request).await?;
    let active = login::active(&app.database, &user.tenant, user.user_id).await?;
    let active = active.ok_or_else(session_ended)?;
    let login = &active.login;
    response::json(
        StatusCode::OK,
        &json!({
            "id": login.id,
            "username": login.username,
            "user_type": login.user_type,
            "role": login.role,
            "email": active.email,
            "email_verified": active.email.is_some() && active.email != active.unverified_email,
            "password": active.has_password(),
            "second_factor": active.recovery_codes.is_some(),
            "recovery_codes": active.recovery_codes,
        }),
    )
}

#[derive(Deserialize)]
struct AddressBody {
    email: Option<String>,
    current: Option<String>,
    code: Option<String>,
}

/// `POST /api/account/email`: sends a mail to an address, which becomes the caller's when its token comes back. The response
/// does not show whether another user has the address.
///
/// # Errors
/// 400 for what is no address, 403 for a wrong password or code and where there are no mails, 429 while too many mails wait.
pub async fn change_address(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: AddressBody = request.json(app.config.server.body_bytes_max).await?;
    let mails = mails(&app)?;
    let email = required("email", body.email)?;
    user_names::check_email(&email)?;
    let proof = Proof {
        current: body.current,
        code: body.code,
    };
    let Confirmed { login, .. } = confirm_caller(&app, &request, proof, Means::Password).await?;
    mails.request_verification(login.tenant, login.id, email)?;
    response::json(StatusCode::ACCEPTED, &json!({"status": "accepted"}))
}

#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
}

/// `POST /api/account/email/verify`: the reader of the mail sends its token.
///
/// # Errors
/// 400 for a token that is not valid, was used or has expired, 409 for an address that another user has.
pub async fn verify_address(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: TokenBody = request.json(app.config.server.body_bytes_max).await?;
    let mails = mails(&app)?;
    let token = required("token", body.token)?;
    let invalid = || Error::invalid("token", "is not valid, was used, or has expired: request another mail");
    let claim = mails.check_address(&token).ok_or_else(invalid)?;
    let tenant = tenants::find(&app.database, &claim.tenant).await?.ok_or_else(invalid)?;
    let by = Actor::user(claim.user, request.address);
    let verified = mail::verify_address(&app.database, &tenant, &claim, &by).await?;
    let verified = verified.ok_or_else(invalid)?;
    app.users.invalidate(&tenant.name, claim.user);
    if let Some(former) = verified.former {
        mails.notify(Notice::EmailChanged, tenant, claim.user, Some(former));
    }
    Ok(response::no_content())
}
