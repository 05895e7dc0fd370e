//! All integration tests, in one binary. They need a Postgres and a Redis: `./scripts/test` starts both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod bad_input;
mod catchup;
mod cli;
mod decoder;
mod epochs;
mod faults;
mod freshness;
mod handoff;
mod insight;
mod live;
mod pipeline;
mod properties;
mod recovery;
mod refusals;
mod rules;
mod support;
mod sync;
mod takeover;
mod tenants;
mod tls;
mod values;
