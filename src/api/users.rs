//! `/api/users`: the mobile users of a tenant.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use uuid::Uuid;

use crate::accounts::erasure;
use crate::accounts::users::{self, Among, Filter, User, UserType};
use crate::api::App;
use crate::api::confirmation::{Confirmed, Means, Proof, confirm_caller};
use crate::api::request::Request;
use crate::feature;
use crate::http::error::{Code, Error};
use crate::http::query::PAGE_MAX;
use crate::http::response::{self, Response};
use crate::live::presence;
use crate::postgres::audit::Actor;

/// `GET /api/users?filter=&status=&limit=&offset=&before=&after=`.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let query = &request.query;
    let tenant = request.caller()?.tenant();
    let among = match query.parsed("status", "true or false")? {
        Some(true) => Some(Among::These(present(&app, &tenant.name).await)),
        Some(false) => Some(Among::Others(present(&app, &tenant.name).await)),
        None => None,
    };
    let filter = Filter {
        user_type: Some(UserType::Mobile),
        username: query.get("filter").map(str::to_owned),
        among,
        // Clients without paging expect all users.
        page: query.page(PAGE_MAX)?,
    };
    let mut found = app.users.list(tenant, &filter).await?;
    add_presence(&app, &tenant.name, &mut found.rows).await;
    response::page("users", &found, &filter.page)
}

/// `GET /api/users/:id`.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "user")?;
    let tenant = request.caller()?.tenant();
    let mut user = app.users.get(tenant, id).await?;
    add_presence(&app, &tenant.name, std::slice::from_mut(&mut user)).await;
    response::json(StatusCode::OK, &user)
}

#[derive(Deserialize)]
struct EraseBody {
    current: Option<String>,
    code: Option<String>,
}

/// `POST /api/account/delete`, since a `DELETE` should have no content (RFC 9110, section 9.3.5): deletes the caller's account, and what the caller wrote.
///
/// # Errors
/// 401 if the caller's own session was ended, 403 for a wrong password or code, 429 after too many.
pub async fn erase_own(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let own = request.user()?.user_id;
    erase_user(app, request, own).await
}

/// `POST /api/users/:id/delete`: the same for another user, by an admin.
///
/// # Errors
/// As for the own account, 403 for who is no admin, 404.
pub async fn erase(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "user")?;
    let caller = request.user()?;
    app.users.get(&caller.tenant, id).await?;
    if caller.user_id != id && !users::is_admin(&app.database, &caller.tenant, caller.user_id).await? {
        return Err(Error::new(Code::FORBIDDEN, "only an admin deletes another user"));
    }
    erase_user(app, request, id).await
}

async fn erase_user(app: Arc<App>, mut request: Request, id: Uuid) -> Result<Response, Error> {
    let body: EraseBody = request.json(app.config.server.body_bytes_max).await?;
    let proof = Proof {
        current: body.current,
        code: body.code,
    };
    let Confirmed { user: caller, .. } = confirm_caller(&app, &request, proof, Means::PasswordOrToken).await?;
    let (tenant, by) = (caller.tenant.clone(), Actor::user(caller.user_id, request.address));
    // It ends also when the client goes away.
    let erasing = tokio::spawn(async move {
        erasure::erase(&app.database, &tenant, id, &by).await?;
        if let Err(error) = app.sessions.end_all(&tenant, id, None).await {
            tracing::warn!(%error, user = %id, "cannot end the sessions of an erased user now; they are refused");
        }
        Ok::<_, feature::Error>(())
    });
    erasing
        .await
        .map_err(|error| Error::internal(format!("the erasure failed: {error}")))??;
    Ok(response::no_content())
}

/// The users who are online or away. Without Redis there are none.
async fn present(app: &App, tenant: &str) -> Vec<Uuid> {
    let present = app
        .lane(tenant)
        .presence
        .present(tenant)
        .await
        .unwrap_or_else(unavailable);
    present.entries.iter().map(|entry| entry.user).collect()
}

async fn add_presence(app: &App, tenant: &str, users: &mut [User]) {
    let ids: Vec<Uuid> = users.iter().map(|user| user.id).collect();
    let found = app
        .lane(tenant)
        .presence
        .of(tenant, &ids)
        .await
        .unwrap_or_else(unavailable);
    for user in users {
        if let Some(entry) = found.entries.iter().find(|entry| entry.user == user.id) {
            user.set_presence(entry);
        }
    }
}

fn unavailable(error: presence::Error) -> presence::List {
    tracing::warn!(
        cause = crate::telemetry::chain(&error),
        "presence unavailable; all users are shown as offline"
    );
    presence::List::default()
}
