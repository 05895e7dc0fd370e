//! The conformance kit: does a client keep to `docs/sync-protocol.md`?
//!
//! [`case`] has the cases, data in `src/kit/cases`. [`script`] runs one of them: a [`driver`] controls the client, which
//! talks to a scripted [`server`] on loopback. The server is that of [`crate::http`] over a [`history`] in memory, with a
//! [`fault`] seam in front of its requests and of the frames of its [`socket`]; it needs neither Postgres nor Redis. [`wire`] checks what no case permits, the script the rest.
//! [`report`] names the heading of the [`protocol`] that was broken. `docs/conformance.md` is the manual.

pub mod case;
pub mod driver;
pub mod event;
pub mod failure;
pub mod fault;
pub mod history;
pub mod outside;
pub mod protocol;
pub mod report;
pub mod requests;
pub mod script;
pub mod server;
pub mod socket;
pub mod stage;
pub mod uploads;
pub mod wire;
