//! `/api/auth/reset`: another password for a user who has forgotten it.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::sessions::{check_passwords, named_tenant};
use crate::accounts::limits::Limit;
use crate::accounts::login;
use crate::accounts::names;
use crate::accounts::password_reset::Resets;
use crate::accounts::users::{self, NewPassword};
use crate::api::App;
use crate::api::request::Request;
use crate::core::tenant::is_valid_name;
use crate::feature;
use crate::http::error::{Code, Error};
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::postgres::audit::Actor;
use crate::postgres::tenants;

fn resets(app: &App) -> Result<&Resets, Error> {
    check_passwords(app)?;
    let text = "this server sends no mails: ask an operator for another password";
    app.resets.as_ref().ok_or_else(|| Error::new(Code::FORBIDDEN, text))
}

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
    let resets = resets(&app)?;
    let email = required("email", body.email)?;
    names::check_name("email", &email)?;
    let tenant = named_tenant(&app, &request, body.tenant.as_deref())?;
    if !is_valid_name(&tenant) {
        return Err(Error::invalid(
            "tenant",
            "must be a letter and up to 47 of a-z, 0-9 and _",
        ));
    }
    app.limits.take(Limit::Reset, request.address).await?;
    resets.request(tenant, email)?;
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
    let resets = resets(&app)?;
    let token = required("token", body.token)?;
    let password = required("password", body.password)?;
    let invalid = || Error::invalid("token", "is not valid, was used, or has expired: request another mail");
    let claim = resets.check(&token).ok_or_else(invalid)?;
    let tenant = tenants::find(&app.database, &claim.tenant).await?.ok_or_else(invalid)?;
    let active = login::active_in(&app.database, &tenant, claim.user).await?;
    let login = active
        .filter(|active| active.login.stamp == claim.stamp)
        .ok_or_else(invalid)?
        .login;
    let waiting = app.limits.wait_at(request.address)?;
    let by = Actor::user(claim.user, request.address);
    let new = NewPassword {
        by: &by,
        password: &password,
        username: &login.username,
        replaced: Some(claim.stamp),
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
