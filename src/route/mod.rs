//! Routing: who sees which change, under which event. Pure: no IO, no clock.

pub mod rule;
