//! HTTP/1.1 and HTTP/2 plumbing: requests, responses, errors, upgrades.

pub mod address;
pub mod error;
pub mod gzip;
pub mod precondition;
pub mod request;
pub mod response;
pub mod routes;
pub mod secure;
pub mod server;
pub mod upgrade;
pub mod wire;
