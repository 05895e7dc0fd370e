//! `GET /`: where a person who opens the server's address is sent, or what they read there.

use std::sync::Arc;

use hyper::StatusCode;

use crate::api::App;
use crate::api::request::Request;
use crate::http::error::Error;
use crate::http::response::{self, Response};

/// The page without `server.home_url`.
const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Posduif</title>\n<h1>Posduif ",
    env!("CARGO_PKG_VERSION"),
    "</h1>\n<p>This server syncs rows of Postgres to phones and pages, and applies their uploads.\n",
    "<p>Its API is described at <a href=\"/openapi.json\">/openapi.json</a>.\n</html>\n"
);

/// `GET /`.
pub async fn home(app: Arc<App>, _request: Request) -> Result<Response, Error> {
    let url = &app.config.server.home_url;
    if url.is_empty() {
        return Ok(response::with_type(StatusCode::OK, "text/html; charset=utf-8", PAGE));
    }
    response::see_other(url)
}
