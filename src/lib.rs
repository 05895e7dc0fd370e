//! Posduif: a row committed in Postgres is the event.
//!
//! Whoever writes a row (the API, a migration, somebody's `psql`), the write-ahead log carries it, in commit order,
//! to Redis Streams, and SSE, WebSocket and the device's next sync batch are three ways to read the same stream with the
//! same cursor:
//!
//! ```text
//!  any writer ─▶ Postgres ─WAL─▶ replication ─▶ decode ─▶ route ─▶ publish ─▶ Redis ─▶ deliver ─▶ sync · http
//!                    ▲               └───────── acknowledge(LSN) ◀────┘                              │
//!                    └───────────────── database ◀── domain: messages, uploads, acks ◀──────────────┘
//! ```
//!
//! Modules in reading order:
//!
//! - [`change`]: what flows: [`change::Position`], [`change::StreamId`]; [`keys`]: the names of all Redis keys.
//! - [`replication`]: the replication connection, its frames, the slot, epochs, and the loop that ties the stages.
//! - [`decode`]: pgoutput bytes to messages, column texts to JSON.
//! - [`route`]: rules: who sees which change, under which event.
//! - [`publish`]: batches, the guarded `MULTI`/`EXEC`, the checkpoint, progress and durability.
//! - [`deliver`]: reading the streams: ranges, the live tail and its fan-out, presence, the streams `push`, trimming.
//! - [`sync`]: cursors, incoming batches (snapshot, then stream).
//! - [`domain`]: users, devices, enrollment, messages, encrypted state, uploads: rows and rules.
//! - [`push`]: waking devices that are away: when to look, and the webhook.
//! - [`database`]: pool, tenants, migrations, publication; queries come from `sql/`.
//! - [`http`]: the API.
//! - [`doctor`]: what of all this is not as it should be, and what mends it.
//! - [`transport`]: byte streams to servers.
//! - [`engine`]: starts the parts, stops them in order; [`config`]: every setting; [`telemetry`]: logs and counters.
//! - [`cli`]: the command line, one file a noun; [`dev`]: `posduif dev`'s own Postgres and Redis.
//!
//! Invariants:
//!
//! - acknowledged ≤ durable ≤ published ≤ received, and none goes back within one `START_REPLICATION`.
//! - Only [`replication`] speaks the replication protocol, only [`publish`] and [`deliver`] speak Redis Streams, only
//!   [`http`] knows status codes.
//! - [`decode`], [`route`] and [`publish::progress`] do no IO.
//! - Every queue has a bound, named in [`config`].
//! - What cannot be decoded stops the engine; what cannot be routed or stored goes to the tenant's quarantine.

pub mod accounts;
pub mod admin;
pub mod api;
pub mod cli;
pub mod config;
pub mod contract;
pub mod core;
pub mod decode;
pub mod dev;
pub mod engine;
pub mod feature;
pub mod http;
pub mod live;
pub mod messages;
pub mod net;
pub mod postgres;
pub mod publish;
pub mod push;
pub mod redis;
pub mod replication;
pub mod route;
pub mod state;
pub mod sync;
pub mod telemetry;
