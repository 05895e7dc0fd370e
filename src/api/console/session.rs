//! Who may use the console: a session, which a link of `posduif console` or `admin.token` opens, or that token itself.
//!
//! The cookie has the prefix `__Host-` (RFC 6265bis, section 4.1.3.2): it is Secure, for one host, and no subdomain can set it.
//! Browsers keep such a cookie over plain HTTP for localhost only, which the admin listener needs.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderValue, ORIGIN, SET_COOKIE};
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq as _;

use super::{BODY_BYTES_MAX, Console, operator};
use crate::admin::access::{SESSION_SECONDS, Session};
use crate::api::error::unauthorized;
use crate::api::request::Request;
use crate::core::time::{Timestamp, unix_micros};
use crate::http::error::{Code, Error};
use crate::http::request::header;
use crate::http::response::{self, Response};
use crate::postgres::audit::{self, Act};
use crate::telemetry;

/// Name of the cookie; the port follows, since browsers send a cookie to all ports of its host.
const SESSION_COOKIE: &str = "__Host-posduif-console";

fn cookie_name(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => format!("{SESSION_COOKIE}-{port}"),
        _ => SESSION_COOKIE.to_owned(),
    }
}

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// A session, or `admin.token`.
    Session,
    /// The same, and of a session its CSRF token.
    Change,
    /// The same, and `admin.actions`.
    Action,
}

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Caller {
    Session(Session),
    /// A program with `admin.token`.
    Token,
}

impl Console {
    /// Checks that a request may use a route.
    ///
    /// # Errors
    /// 401 without a session, 403 for a request that another site caused, and for a change without the CSRF token.
    pub fn admit(&self, need: Need, headers: &HeaderMap) -> Result<(), Error> {
        if need == Need::Nothing {
            return Ok(());
        }
        let caller = self.caller(headers)?;
        if need == Need::Session {
            return Ok(());
        }
        if need == Need::Action {
            self.check_actions()?;
        }
        if let Caller::Session(session) = caller {
            let token = header(headers, "x-csrf-token").unwrap_or_default();
            let is_right: bool = token.as_bytes().ct_eq(session.csrf.as_bytes()).into();
            if !is_right {
                return Err(Error::new(
                    Code::FORBIDDEN,
                    "the header X-CSRF-Token is missing or wrong: send `csrf` of GET /admin/api/session",
                ));
            }
        }
        Ok(())
    }

    /// Checks that the console may change something.
    ///
    /// # Errors
    /// 403 where `admin.actions` is off.
    fn check_actions(&self) -> Result<(), Error> {
        if self.diagnostics.config.admin.actions {
            return Ok(());
        }
        Err(Error::new(
            Code::ACTIONS_DISABLED,
            "this engine's console only shows: set `admin.actions` to change something here, or use the command line",
        ))
    }

    fn caller(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        if let Some(token) = header(headers, "authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            return if self.is_token(token) {
                Ok(Caller::Token)
            } else {
                Err(Error::new(Code::TOKEN_INVALID, "this is not `admin.token`"))
            };
        }
        if headers.contains_key(AUTHORIZATION) {
            return Err(unauthorized("the header Authorization must be `Bearer <admin.token>`"));
        }
        check_site(headers)?;
        let session = host(headers).and_then(|host| self.door.check(cookie(headers, host)?, host, now()));
        session
            .map(Caller::Session)
            .ok_or_else(|| unauthorized("a session is required: open the link that `posduif console` prints"))
    }

    fn is_token(&self, text: &str) -> bool {
        let token = self.diagnostics.config.admin.token.expose().as_bytes();
        !token.is_empty() && text.as_bytes().ct_eq(token).into()
    }

    fn describe(&self, session: Option<&Session>) -> serde_json::Value {
        let expires_at = session
            .and_then(|session| i64::try_from(session.expires_at).ok())
            .and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0))
            .map(Timestamp);
        json!({
            "version": telemetry::VERSION,
            "engine": &*self.engine,
            "actions": self.diagnostics.config.admin.actions,
            "csrf": session.map(|session| &session.csrf),
            "expires_at": expires_at,
        })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(unix_micros() / 1_000_000).unwrap_or_default()
}

/// The name that the client uses for this server.
fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(HOST)?.to_str().ok().filter(|host| !host.is_empty())
}

fn cookie<'a>(headers: &'a HeaderMap, host: &str) -> Option<&'a str> {
    let wanted = cookie_name(host);
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == wanted).then_some(value)
    })
}

/// Refuses what the page of another site has caused. Browsers name the site of a request's origin in these headers (Fetch
/// Metadata; RFC 6454, section 7), and other clients send neither.
fn check_site(headers: &HeaderMap) -> Result<(), Error> {
    let is_foreign_site = header(headers, "sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let is_foreign_origin = headers.get(ORIGIN).is_some_and(|origin| {
        let own = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        own.map(|(_, authority)| authority) != host(headers)
    });
    if is_foreign_site || is_foreign_origin {
        return Err(Error::new(Code::FORBIDDEN, "a page of another site sent this request"));
    }
    Ok(())
}

/// How a session begins: one of the two.
#[derive(Debug, Deserialize)]
struct Opening {
    link: Option<String>,
    token: Option<String>,
}

/// `GET /admin/api/about`: which engine this is.
pub async fn about(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    response::json(
        StatusCode::OK,
        &json!({"version": telemetry::VERSION, "engine": &*console.engine}),
    )
}

/// `POST /admin/api/session`: opens a session.
///
/// # Errors
/// 401 for a link that is used, too old or another engine's, and for a wrong token.
pub async fn open(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    check_site(&request.headers)?;
    let opening: Opening = request.json(BODY_BYTES_MAX).await?;
    let Some(host) = host(&request.headers) else {
        return Err(Error::new(
            Code::VALIDATION_ERROR,
            "the request must have one header Host",
        ));
    };
    let (opened, by) = match (&opening.link, &opening.token) {
        (Some(link), None) => (console.door.open(link, host, now()), "link"),
        (None, Some(token)) if console.is_token(token) => (console.door.session(host, now()).map(Some), "token"),
        (None, Some(_)) => return Err(Error::new(Code::TOKEN_INVALID, "this is not `admin.token`")),
        _ => {
            return Err(Error::invalid(
                "link",
                "is missing: the body must have `link` or `token`",
            ));
        }
    };
    let opened = opened.map_err(|error| Error::internal(format!("no random bits: {error}")))?;
    let session = opened.ok_or_else(|| {
        Error::new(
            Code::LINK_INVALID,
            "this link was used, is older than a minute, or is for another engine: `posduif console` prints a new one",
        )
    })?;
    let act = Act {
        tenant: None,
        actor: &operator(request.address),
        action: "console_opened",
        subject: None,
        detail: json!({"by": by}),
    };
    audit::record(&console.diagnostics.database, act).await;
    let mut response = response::json(StatusCode::OK, &console.describe(Some(&session)))?;
    set_cookie(&mut response, host, &session.cookie, SESSION_SECONDS)?;
    Ok(response)
}

/// `GET /admin/api/session`: the session of the request.
pub async fn show(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let session = match console.caller(&request.headers)? {
        Caller::Session(session) => Some(session),
        Caller::Token => None,
    };
    response::json(StatusCode::OK, &console.describe(session.as_ref()))
}

/// `DELETE /admin/api/session`: ends the session.
pub async fn end(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    if let Caller::Session(session) = console.caller(&request.headers)? {
        console.door.end(&session, now());
    }
    let mut response = response::no_content();
    if let Some(host) = host(&request.headers) {
        set_cookie(&mut response, host, "", 0)?;
    }
    Ok(response)
}

/// `POST /admin/api/link`: a link that opens one session, for who has the token already.
pub async fn link(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let code = console
        .door
        .link(now())
        .map_err(|error| Error::internal(format!("no random bits: {error}")))?;
    let host = host(&request.headers).unwrap_or_default();
    response::json(
        StatusCode::OK,
        &json!({"url": format!("http://{host}/console/#link={code}")}),
    )
}

fn set_cookie(response: &mut Response, host: &str, value: &str, seconds: u64) -> Result<(), Error> {
    let name = cookie_name(host);
    let cookie = format!("{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Strict");
    let cookie =
        HeaderValue::try_from(cookie).map_err(|error| Error::internal(format!("a cookie cannot be sent: {error}")))?;
    response.headers_mut().insert(SET_COOKIE, cookie);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn requests_of_other_sites_are_refused() {
        let own = ("host", "localhost:8081");
        for allowed in [
            &[own][..],
            &[
                own,
                ("sec-fetch-site", "same-origin"),
                ("origin", "http://localhost:8081"),
            ],
            &[own, ("sec-fetch-site", "none")],
        ] {
            assert!(check_site(&headers(allowed)).is_ok(), "{allowed:?}");
        }
        for refused in [
            &[own, ("sec-fetch-site", "cross-site")][..],
            &[own, ("sec-fetch-site", "same-site")],
            &[own, ("origin", "http://evil.example")],
            &[own, ("origin", "null")],
            &[own, ("origin", "http://localhost:9999")],
            &[("origin", "http://localhost:8081")],
        ] {
            assert!(check_site(&headers(refused)).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn cookie_is_found_among_others() {
        let found = |value: &str, host: &str| cookie(&headers(&[("cookie", value)]), host).map(str::to_owned);
        assert_eq!(
            found("a=1; __Host-posduif-console-81=x; b=2", "localhost:81"),
            Some("x".to_owned())
        );
        assert_eq!(found("__Host-posduif-console-81=x", "localhost:82"), None);
        assert_eq!(
            found("__Host-posduif-console=x", "console.example"),
            Some("x".to_owned())
        );
        assert_eq!(found("posduif-console=x", "console.example"), None);
        assert_eq!(found("", "localhost:81"), None);
    }
}
