//! All integration tests, in one binary. They need a Postgres and a Redis: `./scripts/test` starts both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod bad_input;
mod browser;
mod caches;
mod catchup;
mod cli;
mod commands;
mod conflicts;
mod decoder;
mod devices;
mod doctor;
mod epochs;
mod faults;
mod freshness;
mod handoff;
mod insight;
mod live;
mod model;
mod monitoring;
mod operators;
mod outages;
mod overlaps;
mod own_tables;
mod packaging;
mod pages;
#[path = "../examples/phone.rs"]
#[expect(dead_code, reason = "its command line and what only that uses")]
mod phone;
mod pipeline;
mod presence;
mod properties;
mod protocol;
mod push;
mod rate_limits;
mod recovery;
mod refusals;
mod rules;
mod scale;
mod secrets;
mod sessions;
mod slots;
mod state;
mod statements;
mod streams;
mod support;
mod sync;
mod takeover;
mod telemetry;
mod tenants;
mod tickets;
mod tls;
mod uploads;
mod values;
mod websocket;
mod wire;
