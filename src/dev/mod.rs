//! Private servers for one machine: a Postgres and a Redis in one folder.
//!
//! `posduif dev` runs on them, and so do the tests, which also stop, kill and restart them. The parts:
//!
//! - [`PrivatePostgres`], [`PrivateRedis`]: one server each: create its data, start, stop, kill, restart on the same port
//!   with the same data. Both are a [`PrivateServer`] with a [`Program`].
//! - [`Servers`]: both in one data folder, with a lock on the folder and stored ports and passwords.
//! - [`engine`]: the engine as a child process, which starts again after it was killed.
//! - [`demo`]: the demo's tenant, and the server of its page.
//! - [`env_file`]: `dev.env`, the connection URLs for a shell.
//!
//! Promises: a server listens on 127.0.0.1 only and requires a password; the terminal's Ctrl-C does not reach it, so that
//! its supervisor decides the order of a shutdown; an orphaned server is found by its pid file, verified to be the server
//! of that folder, and stopped before a new one starts.
//!
//! For development and tests: no backups, no replicas, no TLS.

mod allocate;
pub mod demo;
pub mod engine;
pub mod env_file;
mod folder;
mod postgres;
mod process;
mod redis;
mod server;
mod servers;
pub mod state;

pub use allocate::{free_port, random_secret};
pub use folder::write_private;
pub use postgres::{PostgresOptions, PrivatePostgres};
pub use redis::{PrivateRedis, RedisOptions};
pub use server::{PrivateServer, Program};
pub use servers::{Durability, Servers, ServersOptions};
