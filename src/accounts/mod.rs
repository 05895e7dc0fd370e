//! Users, devices, enrollment, sessions, tickets and limits.

pub mod caches;
pub mod devices;
pub mod enrollment;
pub mod limits;
pub mod loader;
pub mod password;
pub mod sessions;
pub mod tickets;
pub mod users;
