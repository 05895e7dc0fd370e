//! Values without IO that all parts use: positions, tenants, times, pages, RESP, backoff.

pub mod backoff;
pub mod page;
pub mod position;
pub mod resp;
pub mod snapshot;
pub mod tenant;
pub mod time;
