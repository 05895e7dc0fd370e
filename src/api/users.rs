//! `/api/users`: the mobile users whom web users write to.

use std::sync::Arc;

use hyper::StatusCode;
use uuid::Uuid;

use crate::accounts::users::{Among, Filter, User, UserType};
use crate::api::App;
use crate::http::error::Error;
use crate::http::request::{PAGE_MAX, Request};
use crate::http::response::{self, Response};
use crate::live::presence;

/// `GET /api/users?filter=&status=&limit=&offset=&before=&after=`.
///
/// # Errors
/// 400 for a bad parameter.
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
        // The seed's clients know no pages.
        page: query.page(PAGE_MAX)?,
    };
    let mut found = app.users.list(tenant, &filter).await?;
    add_presence(&app, &tenant.name, &mut found.rows).await;
    response::page("users", &found, &filter.page)
}

/// `GET /api/users/:id`.
///
/// # Errors
/// 404.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "user")?;
    let tenant = request.caller()?.tenant();
    let mut user = app.users.get(tenant, id).await?;
    add_presence(&app, &tenant.name, std::slice::from_mut(&mut user)).await;
    response::json(StatusCode::OK, &user)
}

/// Who is online or away; nobody when Redis does not say, because users exist without it.
async fn present(app: &App, tenant: &str) -> Vec<Uuid> {
    let present = app.presence.present(tenant).await.unwrap_or_else(unknown);
    present.entries.iter().map(|entry| entry.user).collect()
}

async fn add_presence(app: &App, tenant: &str, users: &mut [User]) {
    let ids: Vec<Uuid> = users.iter().map(|user| user.id).collect();
    let found = app.presence.of(tenant, &ids).await.unwrap_or_else(unknown);
    for user in users {
        if let Some(entry) = found.entries.iter().find(|entry| entry.user == user.id) {
            user.set_presence(entry);
        }
    }
}

fn unknown(error: presence::Error) -> presence::List {
    tracing::warn!(
        cause = crate::telemetry::chain(&error),
        "presence is unknown, everybody shows as offline"
    );
    presence::List::default()
}
