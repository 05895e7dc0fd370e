//! `/api/users`: the mobile users of a tenant.

use std::sync::Arc;

use hyper::StatusCode;
use uuid::Uuid;

use crate::accounts::users::{Among, Filter, User, UserType};
use crate::api::App;
use crate::api::request::Request;
use crate::http::error::Error;
use crate::http::query::PAGE_MAX;
use crate::http::response::{self, Response};
use crate::live::presence;

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

/// The users who are online or away. Without Redis there are none.
async fn present(app: &App, tenant: &str) -> Vec<Uuid> {
    let present = app.presence.present(tenant).await.unwrap_or_else(unavailable);
    present.entries.iter().map(|entry| entry.user).collect()
}

async fn add_presence(app: &App, tenant: &str, users: &mut [User]) {
    let ids: Vec<Uuid> = users.iter().map(|user| user.id).collect();
    let found = app.presence.of(tenant, &ids).await.unwrap_or_else(unavailable);
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
