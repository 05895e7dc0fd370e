//! Values without IO that all parts use: positions, tenants, subjects, times, pages, RESP, JSON, backoff, lanes, and bounds
//! for each key.

pub mod backoff;
pub mod digest;
pub mod event;
pub mod json;
pub mod lane;
pub mod operation;
pub mod page;
pub mod position;
pub mod rate;
pub mod resp;
pub mod slots;
pub mod snapshot;
pub mod subject;
pub mod tenant;
pub mod time;
