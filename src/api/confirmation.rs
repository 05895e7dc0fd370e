//! Whether the caller of a grave act is the user, and not merely a client with the access token: the one place that decides.

use std::net::IpAddr;

use chrono::Utc;
use uuid::Uuid;

use crate::accounts::login::{self, ActiveUser, Login};
use crate::accounts::standing::StampProof;
use crate::api::App;
use crate::api::admission::session_ended;
use crate::api::auth::{Principal, WebPrincipal};
use crate::api::request::Request;
use crate::api::sessions::{live_session_user, verifier};
use crate::core::tenant::Tenant;
use crate::http::error::{Code, Error};
use crate::http::request::required;

/// Age of a login here, or of another provider's token, up to which it shows that the user has just logged in.
const FRESH_SECONDS: i64 = 300;

/// What a request contains for it.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The password.
    pub(super) current: Option<String>,
    /// Of the second factor, where there is one.
    pub(super) code: Option<String>,
}

/// What is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// The password.
    Password,
    /// The password; of a user of another provider, a token that was issued a moment ago.
    PasswordOrToken,
    /// The same, or a login a moment ago.
    PasswordOrLogin,
}

/// A caller who is the user.
pub(super) struct Confirmed<'a> {
    pub(super) user: &'a WebPrincipal,
    /// With the security stamp as of when the proof was checked.
    pub(super) login: Login,
}

/// Confirms that the sender of an access token is the user. Where there is a second factor, a code is needed in any case,
/// unless the login itself was a moment ago.
///
/// # Errors
/// 401 if the caller's own session was ended, 403 for a wrong password, a missing or wrong code, and an older token, 429
/// after too many wrong ones.
pub(super) async fn confirm_caller<'a>(
    app: &App,
    request: &'a Request,
    proof: Proof,
    means: Means,
) -> Result<Confirmed<'a>, Error> {
    let user = live_session_user(app, request).await?;
    let active = active(app, &user.tenant, user.user_id).await?;
    if !active.standing.permits(user.session, user.proof) {
        return Err(session_ended());
    }
    if means != Means::Password
        && let StampProof::IssuedAt(at) = user.proof
    {
        if age(at) > FRESH_SECONDS {
            let text = format!("log in again: the token was issued more than {FRESH_SECONDS} s ago");
            return Err(Error::new(Code::FORBIDDEN, text));
        }
        let code = proof.code.as_deref();
        verifier(app).confirm_code(request.address, &active, code).await?;
        return Ok(Confirmed {
            user,
            login: active.login,
        });
    }
    if means == Means::PasswordOrLogin
        && proof.current.is_none()
        && proof.code.is_none()
        && let Some(at) = app.sessions.logged_in_at(user.session).await?
        && age(at.0.timestamp()) <= FRESH_SECONDS
    {
        return Ok(Confirmed {
            user,
            login: active.login,
        });
    }
    let login = confirm_password(app, request.address, &active, proof, means).await?;
    Ok(Confirmed { user, login })
}

/// Confirms that the sender of any credentials is the user: a device needs the password of its user.
///
/// # Errors
/// As [`confirm_caller`].
pub(super) async fn confirm_principal(app: &App, request: &Request, proof: Proof) -> Result<(), Error> {
    match request.caller()? {
        Principal::Web(_) => confirm_caller(app, request, proof, Means::PasswordOrLogin)
            .await
            .map(drop),
        Principal::Device(device) => {
            let active = active(app, &device.tenant, device.user_id).await?;
            let checking = confirm_password(app, request.address, &active, proof, Means::Password);
            checking.await.map(drop)
        }
    }
}

async fn confirm_password(
    app: &App,
    address: IpAddr,
    active: &ActiveUser,
    proof: Proof,
    means: Means,
) -> Result<Login, Error> {
    if !active.has_password() {
        let text = "this account has no password here: its provider of identities is in charge of it";
        return Err(Error::new(Code::FORBIDDEN, text));
    }
    let password = match (proof.current, means) {
        (None, Means::PasswordOrLogin) => {
            let text = format!(
                "current: the password is needed, and a code where there is a second factor, because the login was more \
                 than {FRESH_SECONDS} s ago"
            );
            return Err(Error::new(Code::FORBIDDEN, text).with("field", "current"));
        }
        (current, _) => required("current", current)?,
    };
    let code = proof.code.as_deref();
    Ok(verifier(app).confirm(address, active, &password, code).await?)
}

async fn active(app: &App, tenant: &Tenant, user: Uuid) -> Result<ActiveUser, Error> {
    let active = login::active(&app.database, tenant, user).await?;
    active.ok_or_else(session_ended)
}

/// Seconds since a time, which may be ahead of this machine's clock.
fn age(at: i64) -> i64 {
    Utc::now().timestamp() - at
}
