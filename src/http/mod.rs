//! HTTP/1.1 and HTTP/2 plumbing: listening, connections, upgrades, requests, responses, errors.
//!
//! [`server`] accepts connections and passes each request to a [`server::Service`]. Routes, admission and the request log
//! belong to that service; this folder knows none of them.

pub mod address;
pub mod assets;
pub mod connection;
pub mod cors;
pub mod descriptors;
pub mod error;
pub mod gzip;
mod heavy;
pub mod listener;
pub mod memory;
pub mod own_origin;
pub mod percent;
pub mod precondition;
pub mod progress;
pub mod protocol;
pub mod query;
pub mod raw_json;
pub mod request;
pub mod request_id;
pub mod response;
pub mod routes;
pub mod secure;
pub mod security_headers;
pub mod server;
pub mod upgrade;
pub mod websocket;
pub mod wire;
