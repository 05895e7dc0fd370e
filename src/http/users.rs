//! `/api/users`: the mobile users whom web users write to.

use std::collections::HashSet;
use std::sync::Arc;

use hyper::StatusCode;
use uuid::Uuid;

use super::App;
use super::error::Error;
use super::request::{PAGE_MAX, Request};
use super::response::{self, Response};
use crate::domain::users::{self, Filter, UserType};

/// `GET /api/users?filter=&status=&limit=&offset=&before=&after=`.
///
/// # Errors
/// 400 for a bad parameter.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let query = &request.query;
    let filter = Filter {
        user_type: Some(UserType::Mobile),
        username: query.get("filter").map(str::to_owned),
        online: query.parsed("status", "true or false")?,
        // The seed's clients know no pages.
        page: query.page(PAGE_MAX)?,
    };
    let tenant = request.caller()?.tenant();
    let online = online(&app, &tenant.name).await;
    let found = users::list(&app.database, tenant, &filter, &online).await?;
    response::page("users", &found, &filter.page)
}

/// `GET /api/users/:id`.
///
/// # Errors
/// 404.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "user")?;
    let tenant = request.caller()?.tenant();
    let online = online(&app, &tenant.name).await;
    let user = app.caches.user(tenant, id, &online).await?;
    response::json(StatusCode::OK, &user)
}

/// Who is online; nobody when Redis does not say, because users exist without it.
async fn online(app: &App, tenant: &str) -> HashSet<Uuid> {
    app.presence.online(tenant).await.unwrap_or_else(|error| {
        tracing::warn!(
            cause = crate::telemetry::chain(&error),
            tenant,
            "presence is unknown, everybody shows as offline"
        );
        HashSet::new()
    })
}
