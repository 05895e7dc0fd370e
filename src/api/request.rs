//! Requests as the API's handlers receive them.

use std::sync::Arc;

use super::auth::{Principal, WebPrincipal};
use super::error::unauthorized;
use crate::accounts::devices::DevicePrincipal;
use crate::http;
use crate::http::error::Error;

pub type Request = http::request::Request<Principal>;

impl Request {
    /// Who sends the request.
    ///
    /// # Errors
    /// 401 on a public route.
    pub fn caller(&self) -> Result<&Principal, Error> {
        self.principal
            .as_ref()
            .ok_or_else(|| unauthorized("credentials are required"))
    }

    /// The device that sends the request.
    ///
    /// # Errors
    /// 401 for any other caller.
    pub fn device(&self) -> Result<&Arc<DevicePrincipal>, Error> {
        match self.caller()? {
            Principal::Device(device) => Ok(device),
            Principal::Web(_) => Err(unauthorized("device credentials are required")),
        }
    }

    /// The user who sends the request with an access token.
    ///
    /// # Errors
    /// 401 for any other caller.
    pub fn user(&self) -> Result<&WebPrincipal, Error> {
        match self.caller()? {
            Principal::Web(user) => Ok(user),
            Principal::Device(_) => Err(unauthorized("an access token is required")),
        }
    }

    /// The id of the event after which a stream resumes. The header takes precedence: a browser sends it when it
    /// reconnects to an address that still contains an older id.
    pub fn resume(&self) -> Option<&str> {
        // A value that is not text is an invalid id, not an absent one: without an id the stream would skip events.
        let header = self.headers.get("last-event-id");
        header
            .map(|value| value.to_str().map_or("?", str::trim))
            .or_else(|| self.query.get("last_event_id"))
            .or_else(|| self.query.get("lastEventId"))
    }
}
