//! Posduif: a row committed in Postgres is the event.
//!
//! Any writer of a row (the API, a migration, `psql`) puts it into the write-ahead log. Posduif reads the log in commit order,
//! routes each change to the users who may see it, and writes it to Redis Streams. SSE, WebSocket and the next sync batch of a
//! device read the same stream with the same cursor:
//!
//! ```text
//!  any writer ─▶ Postgres ─WAL─▶ replication ─▶ decode ─▶ route ─▶ publish ─▶ Redis ─▶ live · sync ─▶ api ─▶ device
//!                    ▲               └───────── acknowledge(LSN) ◀────┘                                  │
//!                    └──────────────── postgres ◀── accounts · messages · state · sync ◀── api ◀─────────┘
//! ```
//!
//! # Folders in reading order
//!
//! Values and formats, which the rest is made of:
//!
//! - [`core`]: values without IO: positions, tenants' names, times, pages, the RESP codec.
//! - [`config`]: every setting with its default, bounds and unit.
//! - [`telemetry`]: logs, traces, counters and histograms (`src/telemetry/metrics/`, one file for each group), and the journal
//!   of the console. Gauges of the current state are in `src/api/metrics.rs`, which may read every part.
//! - [`net`]: TCP, Unix sockets and TLS to servers, the HTTP client, signed requests to webhooks.
//! - [`contract`]: every format in Redis, both directions in one file: keys, names of streams, entries, the checkpoint, the
//!   window, quarantine, commands, Lua scripts. A new key or stream begins in `src/contract/keys.rs` and
//!   `src/contract/catalog.rs`; one to which changes of rows are routed in `src/contract/stream_name.rs`, too.
//! - [`redis`]: connections to Redis, and reads of streams.
//! - [`postgres`]: the pool, statements (`sql/`), migrations, the publication, tenants, the audit log.
//!
//! From the log to the streams:
//!
//! - [`replication`]: the replication connection, its frames, the slot, epochs, trimming, and the session that ties the stages.
//! - [`decode`]: from pgoutput's bytes to messages, from column texts to JSON.
//! - [`route`]: rules: which users see a change, and under which event.
//! - [`publish`]: batches, the guarded `MULTI`/`EXEC`, progress and durability.
//!
//! From the streams to devices, and back:
//!
//! - [`live`]: the tail of the live stream, its fan-out to readers, presence.
//! - [`feature`]: what features share: the error of a request, pages, checks of input.
//! - [`oidc`]: access tokens of other providers: keys, signatures, claims.
//! - [`accounts`]: users, devices (`src/accounts/devices/device.rs` lists them, for the API and the command line), enrollment,
//!   sessions, tickets, limits on guessing, and the cache of all of them.
//! - [`messages`]: messages, and conflicts between their versions.
//! - [`state`]: encrypted state of a user's devices.
//! - [`sync`]: batches: incoming (snapshot, then stream) with cursors and acknowledgements; outgoing uploads with the results of
//!   their items (`src/sync/outgoing`; their JSON is in `src/api/item_body.rs`).
//! - [`push`]: waking offline devices: candidates, the schedule, and the webhook with its retries (`src/push/webhook.rs`).
//!
//! The surfaces:
//!
//! - [`admin`]: what operators see and do: streams, consumer groups, quarantine, slots, how far devices are behind, `doctor`,
//!   figures with their verdict.
//! - [`http`]: HTTP plumbing: server, upgrade, request, response, error. It has no route and no feature.
//! - [`api`]: one thin file for each group of routes: parse, call a feature, render; SSE and WebSocket in `src/api/live`;
//!   the rates of requests; the routes of the admin listener, with the console in `src/api/console`.
//! - [`engine`]: starts the parts in order, registers listeners between them, stops them in order.
//! - [`dev`]: the private Postgres and Redis of `posduif dev` and of the tests; the engine as a child process; the demo and
//!   its server.
//! - [`kit`]: the conformance kit: cases in YAML, a scripted server over a history in memory, drivers of clients.
//! - [`cli`]: the command line, one file or folder for each noun, declared in `src/cli/mod.rs`. A command prints what [`admin`]
//!   or a feature returns.
//!
//! # What spans folders
//!
//! | subject | files |
//! |---|---|
//! | messages to groups | `src/messages/groups.rs`, `src/route/messages.rs`, `src/sync/item.rs`; functions in `migrations/tenant/0020_group_messages.up.sql` |
//! | groups: users who share rows | `src/config/group.rs`; the id, and the most groups of a user, in `src/contract/group.rs` and `src/contract/members.rs`; `src/route/membership.rs`, `src/sync/members.rs`, `src/live/hub.rs` |
//! | consumer groups of Redis | `src/admin/consumer_groups.rs`, `src/cli/stream/groups.rs` |
//! | results of uploads | decided by functions in `migrations/tenant/` (the newest that replaces one is in force); read in `src/sync/outgoing/apply.rs`, their JSON in `src/api/item_body.rs` and `docs/openapi.yaml` |
//! | events of live streams | names in `src/core/event.rs`; events of rows: `src/route/router.rs` and `src/route/messages.rs`; of the server: `src/api/live/event.rs` |
//! | audit log | statements in `sql/` insert with what they change; actions, filters and the rest in `src/postgres/audit.rs` |
//! | bounds of input | fixed ones beside the check (`src/feature/check.rs`, `src/accounts/user_names.rs`, `src/accounts/devices/device.rs`) and in `docs/openapi.yaml`; those that are settings in the section of their subject |
//! | quarantine | kinds in `src/contract/quarantine.rs`; reasons in `src/route/router.rs` and `src/replication/pipeline/rows.rs`; what settles an entry in `src/admin/quarantine.rs` |
//! | webhooks | settings in `src/config/webhook.rs`, requests in `src/net/webhook.rs`; retries in `src/push/webhook.rs` (devices) and `src/accounts/mail/retries.rs` (mails) |
//! | metrics | `src/telemetry/metrics/`, gauges in `src/api/metrics.rs`; docs, dashboard and alerts are compared by tests |
//!
//! # Arrows
//!
//! A folder may import the folders of its row, and each folder below `telemetry` may import the first three, too. A lower folder
//! notifies an upper one through a listener that `engine` or `api` registers. `tests/tidy.rs` reads this table and every import.
//!
//! | folder | may import |
//! |---|---|
//! | `core` | nothing |
//! | `config` | `core` |
//! | `telemetry` | `core`, `config` |
//! | `net` | nothing |
//! | `contract` | nothing |
//! | `redis` | `net`, `contract` |
//! | `postgres` | `net`, `contract` |
//! | `decode` | nothing |
//! | `route` | `decode`, `contract` |
//! | `publish` | `redis`, `contract`, `route`, `decode`, `net` |
//! | `replication` | `decode`, `route`, `publish`, `postgres`, `contract`, `net`, `redis` |
//! | `live` | `redis`, `contract`, `net` |
//! | `feature` | `postgres`, `redis` |
//! | `oidc` | `net` |
//! | `accounts` | `oidc`, `feature`, `postgres`, `redis`, `contract`, `live`, `net` |
//! | `messages` | `accounts`, `feature`, `postgres`, `redis`, `contract`, `live` |
//! | `state` | `accounts`, `feature`, `postgres`, `redis`, `contract`, `live` |
//! | `sync` | `feature`, `accounts`, `messages`, `state`, `live`, `postgres`, `redis`, `contract`, `route`, `decode` |
//! | `push` | `sync`, `live`, `redis`, `postgres`, `contract`, `net` |
//! | `admin` | everything above |
//! | `http` | `net` |
//! | `api` | `http`, `admin`, `oidc`, `accounts`, `messages`, `state`, `sync`, `live`, `feature`, `postgres`, `redis`, `contract`, `replication` |
//! | `engine` | everything above |
//! | `dev` | everything above |
//! | `kit` | `http`, `api` |
//! | `cli` | everything above |
//!
//! # Invariants
//!
//! `tests/tidy.rs` checks those that files can show, and lists what does not keep to them yet:
//!
//! - Only [`replication`] sends `START_REPLICATION`.
//! - Only [`contract`] names the fields of a stream's entry. Only [`publish`] and [`redis`] add entries, beside the scripts of
//!   [`contract`]: that of `push` adds to the stream of that name.
//! - Only [`redis`] and [`publish`] open connections to Redis.
//! - Only [`http`] and [`api`] name HTTP status codes, beside clients of other servers.
//! - [`core`], [`contract`], [`decode`], [`route`] and [`publish::progress`] do no IO.
//! - Every queue has a bound.
//!
//! The other tests check the rest:
//!
//! - acknowledged ≤ durable ≤ published ≤ received, and none decreases within one `START_REPLICATION`.
//! - A change that cannot be decoded stops the engine; a change that cannot be routed or stored goes to the quarantine of its
//!   tenant.

// A large future takes stack at each level of awaiting, and memory in each task.
#![warn(clippy::large_futures)]

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
pub mod kit;
pub mod live;
pub mod messages;
pub mod net;
pub mod oidc;
pub mod postgres;
pub mod publish;
pub mod push;
pub mod redis;
pub mod replication;
pub mod route;
pub mod state;
pub mod sync;
pub mod telemetry;
