//! The demo of `posduif dev`: a tenant with users and a shared list, and a page that shows two clients side by side.
//!
//! The page's server runs in this process and survives what the page does to the engine. It listens on the loopback address
//! and serves only pages of its own:
//!
//! - [`data`]: the tenant, its users, tables and rows; [`ROUTING`], which the engine needs for them.
//! - [`service`]: the routes below `/demo/`.
//! - [`sql_box`]: statements of the page, under a role that may not do more than the page needs.
//! - [`events`]: what happens to the servers and to changes, as one stream of events.
//! - [`control`]: what the page may do to the servers; the supervisor does it.

pub mod control;
pub mod data;
pub mod events;
pub mod service;
mod sql_box;

/// The demo's tenant.
pub const TENANT: &str = "demo";

/// The password of all its users.
pub const PASSWORD: &str = "posduif-demo";

/// Groups and routes of its tables.
pub const ROUTING: &str = include_str!("../../../config/demo.yaml");
