//! Routing: who sees which change, and as which event. Pure: no IO, no clock.
//!
//! A [`Rule`](crate::config::rule::Rule) is data. The [`router::Router`] compiles the rules of each table once into a [`router::Plan`];
//! routing a row then needs no lookup, since its new and old values name the recipients.

mod membership;
pub mod messages;
pub mod outbox;
pub mod router;
pub mod row;
pub mod tenancy;
