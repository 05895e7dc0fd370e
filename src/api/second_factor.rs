//! `/api/auth/second-factor`: codes of an authenticator app for logins.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::confirmation::{Confirmed, Means, Proof, confirm_caller};
use super::sessions::{check_passwords, live_session_user};
use crate::accounts::login;
use crate::accounts::mail::Notice;
use crate::accounts::second_factor;
use crate::accounts::users;
use crate::api::App;
use crate::api::admission::session_ended;
use crate::api::request::Request;
use crate::core::tenant::Tenant;
use crate::feature;
use crate::http::error::{Code, Error};
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::postgres::audit::Actor;

#[derive(Deserialize)]
struct ProofBody {
    current: Option<String>,
    code: Option<String>,
}

impl From<ProofBody> for Proof {
    fn from(body: ProofBody) -> Self {
        Self {
            current: body.current,
            code: body.code,
        }
    }
}

/// `POST /api/auth/second-factor`: a new secret, which counts once a code has confirmed it.
///
/// # Errors
/// 403 for a wrong password, for an account without one, and where there are no passwords, 409 for an account that has a
/// second factor.
pub async fn begin(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: ProofBody = request.json(app.config.server.body_bytes_max).await?;
    let Confirmed { login, .. } = confirm_caller(&app, &request, body.into(), Means::Password).await?;
    let pending = app.factors.begin(&login).await?;
    response::json(
        StatusCode::CREATED,
        &json!({
            "secret": pending.secret,
            "otpauth_uri": pending.otpauth_uri,
            "expires_at": pending.expires_at,
        }),
    )
}

#[derive(Deserialize)]
struct CodeBody {
    code: Option<String>,
}

/// `POST /api/auth/second-factor/confirm`: from now on logins need a code. Ends the caller's other sessions.
///
/// # Errors
/// 401 if the caller's own session was ended, 403 for a wrong code, 409 when no secret waits for one, 429 after too many.
pub async fn confirm(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: CodeBody = request.json(app.config.server.body_bytes_max).await?;
    let code = required("code", body.code)?;
    let user = live_session_user(&app, &request).await?;
    // The stamp of this moment, so that a password that is set meanwhile wins.
    let active = login::active(&app.database, &user.tenant, user.user_id).await?;
    let active = active
        .filter(|active| active.standing.permits(user.session, user.proof))
        .ok_or_else(session_ended)?;
    let (tenant, id, address) = (&user.tenant, user.user_id, request.address);
    let attempt = app.limits.take_code(&tenant.name, id, address).await?;
    let by = Actor::user(id, address);
    let confirmed = app.factors.confirm(&active.login, &code, user.session, &by).await?;
    let codes = confirmed.ok_or(feature::Error::CodeInvalid)?;
    app.limits.right_code(attempt).await?;
    notify(&app, Notice::SecondFactorAdded, tenant, id);
    app.sessions.end_all(tenant, id, Some(user.session)).await?;
    response::json(StatusCode::OK, &json!({ "recovery_codes": codes }))
}

/// `POST /api/auth/second-factor/recovery-codes`: new recovery codes; the former ones are no longer accepted.
///
/// # Errors
/// 403 for a wrong password or code, 404 without a second factor.
pub async fn renew_recovery_codes(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: ProofBody = request.json(app.config.server.body_bytes_max).await?;
    let Confirmed { user, login } = confirm_caller(&app, &request, body.into(), Means::Password).await?;
    let by = Actor::user(user.user_id, request.address);
    let codes = app.factors.renew_recovery_codes(&login, &by).await?.ok_or_else(none)?;
    notify(&app, Notice::RecoveryCodesRenewed, &user.tenant, user.user_id);
    response::json(StatusCode::OK, &json!({ "recovery_codes": codes }))
}

/// `POST /api/auth/second-factor/delete`, since a `DELETE` should have no content (RFC 9110, section 9.3.5): removes the
/// caller's second factor, and ends the other sessions.
///
/// # Errors
/// 403 for a wrong password or code, 404 without a second factor.
pub async fn remove_own(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    check_passwords(&app)?;
    let body: ProofBody = request.json(app.config.server.body_bytes_max).await?;
    let Confirmed { user, login } = confirm_caller(&app, &request, body.into(), Means::Password).await?;
    let (tenant, id, kept) = (&user.tenant, user.user_id, Some(user.session));
    let by = Actor::user(id, request.address);
    let removing = second_factor::remove(&app.database, tenant, id, Some(login.stamp), kept, &by);
    if !removing.await? {
        return Err(none());
    }
    notify(&app, Notice::SecondFactorRemoved, tenant, id);
    app.sessions.end_all(tenant, id, kept).await?;
    Ok(response::no_content())
}

/// `POST /api/users/:id/second-factor/delete`: removes the second factor of a member, by an admin, and ends the member's
/// sessions.
///
/// # Errors
/// As for the own account, 403 for who is no admin and for the second factor of an admin, 404.
pub async fn remove(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: ProofBody = request.json(app.config.server.body_bytes_max).await?;
    let id = request.param_id("id", "user")?;
    let caller = request.user()?;
    app.users.get(&caller.tenant, id).await?;
    if !users::is_admin(&app.database, &caller.tenant, caller.user_id).await? {
        let text = "only an admin removes the second factor of another user";
        return Err(Error::new(Code::FORBIDDEN, text));
    }
    // An admin whose account was taken over must not open those of the others.
    if users::is_admin(&app.database, &caller.tenant, id).await? {
        let text = "an admin's second factor is removed by the admin, or by an operator with `posduif user remove-second-factor`";
        return Err(Error::new(Code::FORBIDDEN, text));
    }
    let Confirmed { user, .. } = confirm_caller(&app, &request, body.into(), Means::PasswordOrToken).await?;
    let by = Actor::user(user.user_id, request.address);
    if !second_factor::remove(&app.database, &user.tenant, id, None, None, &by).await? {
        return Err(none());
    }
    notify(&app, Notice::SecondFactorRemoved, &user.tenant, id);
    app.sessions.end_all(&user.tenant, id, None).await?;
    Ok(response::no_content())
}

/// A mail to the user, where there are mails and an address: the session, or the admin, may be a thief.
fn notify(app: &App, notice: Notice, tenant: &Tenant, user: Uuid) {
    if let Some(mails) = &app.mails {
        mails.notify(notice, tenant.clone(), user, None);
    }
}

fn none() -> Error {
    Error::new(Code::NOT_FOUND, "this account has no second factor")
}
