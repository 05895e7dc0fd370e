//! `/api/auth/reset`: another password for a user who has forgotten it.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::account::mails;
use super::sessions::named_tenant;
use crate::accounts::login;
use crate::accounts::login_limits::Limit;
use crate::accounts::mail;
use crate::accounts::user_names;
use crate::accounts::users::{self, NewPassword};
use crate::api::App;
use crate::api::request::Request;
use crate::core::tenant::is_valid_name;
use crate::feature;
use crate::http::error::Error;
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::postgres::audit::Actor;
use crate::postgres::tenants;

#[derive(Deserialize)]
struct ResetBody {
    tenant: Option<String>,
    email: Option<String>,
}

/// `POST /api/auth/reset`: sends a mail with a token, if a user has the email.
///
/// # Errors
/// 403 where there are no mails or no passwords, 429 after too many requests from the address, and while too many mails wait.
pub async fn request(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: ResetBody = request.json(app.config.server.body_bytes_max).await?;
    let mails = mails(&app)?;
    let email = required("email", body.email)?;
    user_names::check_name("email", &email)?;
    let tenant = named_tenant(&app, &request, body.tenant.as_deref())?;
    if !is_valid_name(&tenant) {
        return Err(Error::invalid(
            "tenant",
            "must be a letter and up to 47 of a-z, 0-9 and _",
        ));
    }
    app.limits.take(Limit::Reset, request.address).await?;
    mails.request_reset(tenant, email)?;
    response::json(StatusCode::ACCEPTED, &json!({"status": "accepted"}))
}

#[derive(Deserialize)]
struct CompleteBody {
    token: Option<String>,
    password: Option<String>,
}

/// `POST /api/auth/reset/complete`: sets the password, and ends all sessions of the user.
///
/// # Errors
/// 400 for a token that is not valid, was used or has expired, and for a password that is too short or easily guessed.
pub async fn complete(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: CompleteBody = request.json(app.config.server.body_bytes_max).await?;
    let mails = mails(&app)?;
    let token = required("token", body.token)?;
    let password = required("password", body.password)?;
    let invalid = || Error::invalid("token", "is not valid, was used, or has expired: request another mail");
    let claim = mails.check_reset(&token).ok_or_else(invalid)?;
    let tenant = tenants::find(&app.database, &claim.tenant).await?.ok_or_else(invalid)?;
    let active = login::active_in(&app.database, &tenant, claim.user).await?;
    let login = active
        .filter(|active| mail::reset_stamp(active.login.stamp, active.email_stamp) == claim.stamp)
        .ok_or_else(invalid)?
        .login;
    let waiting = app.limits.wait_at(request.address)?;
    let by = Actor::user(claim.user, request.address);
    let new = NewPassword {
        by: &by,
        password: &password,
        username: &login.username,
        replaced: Some(login.stamp),
        kept: None,
    };
    users::set_password(&app.database, &app.passwords, &tenant, claim.user, new)
        .await
        .map_err(|error| match error {
            feature::Error::Invalid { message, .. } => Error::invalid("password", message),
            feature::Error::Conflict(_) => invalid(),
            other => other.into(),
        })?;
    drop(waiting);
    app.sessions.end_all(&tenant, claim.user, None).await?;
    Ok(response::no_content())
}
