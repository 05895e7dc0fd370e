//! Routing: who sees which change, under which event. Pure: no IO, no clock.
//!
//! A [`rule::Rule`] is data. For each table of the stream the [`router::Router`] compiles the rules that fit into a
//! [`router::Plan`] once; each row then costs no lookup: its new and old values name the recipients.

pub mod messages;
pub mod outbox;
pub mod router;
pub mod row;
pub mod rule;
