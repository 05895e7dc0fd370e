//! The API over HTTP/1.1.
//!
//! [`routes`] is the whole surface in one table; [`server`] carries a request through it: identify, route, admit, run,
//! answer, log, once for all. Handlers are plain functions from a [`request::Request`] to an answer or an
//! [`error::Error`], one file a resource. A client that goes away cancels its handler; that is safe, because every
//! change is one statement or one transaction.

pub mod app;
pub mod auth;
pub mod enrollment;
pub mod error;
pub mod health;
pub mod messages;
pub mod request;
pub mod response;
pub mod routes;
pub mod server;
pub mod sync;
pub mod users;

use std::sync::Arc;

use postgres_types::PgLsn;

use crate::change::StreamId;
use crate::config::Config;
use crate::database::Database;
use crate::deliver::presence::Presence;
use crate::domain::devices::Devices;
use crate::domain::password::Passwords;

/// What handlers work with; one for the whole process.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub config: Arc<Config>,
    /// Ordinary SQL.
    pub database: Database,
    /// Hashes and checks passwords.
    pub passwords: Passwords,
    /// Issues and checks access tokens.
    pub tokens: auth::Tokens,
    /// Checks device tokens.
    pub devices: Devices,
    /// Who is online.
    pub presence: Presence,
}

impl App {
    /// Makes the parts that only depend on settings and connections.
    ///
    /// # Errors
    /// When a setting is unusable; a missing token secret, for example.
    pub fn new(config: Arc<Config>, database: Database, presence: Presence) -> anyhow::Result<Self> {
        config.check_secrets()?;
        Ok(Self {
            passwords: Passwords::new(&config.auth)?,
            tokens: auth::Tokens::new(&config.auth),
            devices: Devices::new(database.clone(), &config),
            database,
            presence,
            config,
        })
    }

    /// The stream ID that stands for a place in the write-ahead log; `None` while no epoch is known.
    pub fn stream_id_of(&self, _lsn: PgLsn) -> Option<StreamId> {
        None
    }
}
