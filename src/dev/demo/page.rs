//! The files of the page.

use crate::http::error::{Code, Error};
use crate::http::response::Response;

/// A file of the page, the index for the empty name. The page may connect to its own origin and to these others.
///
/// # Errors
/// 404 for any other name.
pub(super) fn respond(_name: &str, _connect_to: &[String]) -> Result<Response, Error> {
    Err(Error::new(
        Code::NOT_FOUND,
        "this program was built without its web pages",
    ))
}
