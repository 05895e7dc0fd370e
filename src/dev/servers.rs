//! A private Postgres and a private Redis in one data folder.
//!
//! ```text
//! <folder>/servers.json    ports, passwords, token secret; mode 0600
//! <folder>/postgres/       Postgres' data, or a link to where root's unprivileged user can reach them
//! <folder>/postgres.log
//! <folder>/redis/          append-only file, redis.log
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::allocate::{free_port, is_free, random_secret};
use super::folder::{self, FolderLock};
use super::postgres::{self, PostgresOptions, PrivatePostgres};
use super::redis::{PrivateRedis, RedisOptions};
use crate::config::Secret;

/// WAL that a slot may retain.
const WAL_KEPT_MAX: &str = "4GB";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A commit is on disk.
    Full,
    /// A commit survives a killed process but not a machine that loses power; for disposable data.
    Disposable,
}

#[derive(Debug, Clone)]
pub struct ServersOptions {
    pub postgres: bool,
    pub redis: bool,
    pub durability: Durability,
}

/// The servers of one data folder; the folder is locked as long as this value lives.
///
/// Dropping it kills what runs; [`Self::stop`] stops it in order.
#[derive(Debug)]
pub struct Servers {
    postgres: Option<PrivatePostgres>,
    redis: Option<PrivateRedis>,
    jwt_secret: Secret,
    folder: PathBuf,
    _lock: FolderLock,
    // After the servers: fields are dropped in this order.
    temporary: Option<TemporaryFolder>,
}

impl Servers {
    /// Starts the servers in a folder, which is created if missing; a second start reuses the data of the first.
    ///
    /// # Errors
    /// When another process uses the folder, or a server is not installed or does not start.
    pub async fn start(folder: &Path, options: &ServersOptions) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the data folder {}", folder.display()))?;
        let folder = folder
            .canonicalize()
            .with_context(|| format!("cannot enter the data folder {}", folder.display()))?;
        Self::start_in(folder, options).await
    }

    /// Starts the servers in a new folder, which [`Self::stop`] removes.
    ///
    /// # Errors
    /// When a server is not installed or does not start.
    pub async fn start_temporary(options: &ServersOptions) -> Result<Self> {
        let temporary = TemporaryFolder(folder::create_temporary()?);
        let folder = temporary
            .0
            .canonicalize()
            .with_context(|| format!("cannot enter {}", temporary.0.display()))?;
        let mut servers = Self::start_in(folder, options).await?;
        servers.temporary = Some(temporary);
        Ok(servers)
    }

    async fn start_in(folder: PathBuf, options: &ServersOptions) -> Result<Self> {
        let lock = FolderLock::take(&folder)?;
        let memory_file = folder.join("servers.json");
        let mut memory = Memory::read_or_new(&memory_file)?;
        let (postgres_folder, redis_folder) = (folder.join("postgres"), folder.join("redis"));
        // Before ports are checked: an orphaned server still holds its own.
        postgres::stop_stray_in(&postgres_folder).await?;
        super::redis::stop_stray_in(&redis_folder).await?;
        memory.replace_taken_ports()?;
        memory.write(&memory_file)?;

        let start_postgres = async {
            if !options.postgres {
                return Ok(None);
            }
            let mut settings = memory.postgres_options();
            settings = match options.durability {
                Durability::Disposable => settings.setting("fsync", "off").setting("full_page_writes", "off"),
                // Without an engine its slot would retain WAL until the disk is full.
                Durability::Full => settings.setting("max_slot_wal_keep_size", WAL_KEPT_MAX),
            };
            PrivatePostgres::start(&postgres_folder, settings).await.map(Some)
        };
        let start_redis = async {
            if !options.redis {
                return Ok(None);
            }
            PrivateRedis::start(&redis_folder, memory.redis_options())
                .await
                .map(Some)
        };
        let (postgres, redis) = tokio::try_join!(start_postgres, start_redis)?;
        Ok(Self {
            postgres,
            redis,
            jwt_secret: Secret::new(&memory.jwt_secret),
            folder,
            _lock: lock,
            temporary: None,
        })
    }

    /// Whether a URL is that of a private server of this folder, running or not.
    ///
    /// A shell that has sourced `dev.env` names it in `DATABASE_URL` or `REDIS_URL`, which must not prevent its start.
    pub fn owns(folder: &Path, url: &str) -> bool {
        std::fs::read_to_string(folder.join("servers.json"))
            .ok()
            .and_then(|text| serde_json::from_str::<Memory>(&text).ok())
            .is_some_and(|memory| url == memory.postgres_options().url() || url == memory.redis_options().url())
    }

    /// The private Postgres, if started.
    pub fn postgres(&self) -> Option<&PrivatePostgres> {
        self.postgres.as_ref()
    }

    /// The private Redis, if started.
    pub fn redis(&self) -> Option<&PrivateRedis> {
        self.redis.as_ref()
    }

    /// As [`Self::postgres`], to stop, kill and restart it.
    pub fn postgres_mut(&mut self) -> Option<&mut PrivatePostgres> {
        self.postgres.as_mut()
    }

    /// As [`Self::redis`], to stop, kill and restart it.
    pub fn redis_mut(&mut self) -> Option<&mut PrivateRedis> {
        self.redis.as_mut()
    }

    /// A token secret, stored in the folder.
    pub fn jwt_secret(&self) -> &Secret {
        &self.jwt_secret
    }

    /// The data folder, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits for an unexpected exit of a server and returns the error to report, with the end of its log.
    pub async fn failed(&mut self) -> anyhow::Error {
        let postgres = async {
            match &mut self.postgres {
                Some(server) => server.failed().await,
                None => std::future::pending().await,
            }
        };
        let redis = async {
            match &mut self.redis {
                Some(server) => server.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = postgres => error,
            error = redis => error,
        }
    }

    /// Stops Redis, then Postgres, and removes a temporary folder. May be dropped and called again, or followed by
    /// [`Self::stop_at_once`].
    ///
    /// # Errors
    /// When a server does not end or a temporary folder cannot be removed.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(server) = &mut self.redis {
            server.stop().await?;
        }
        if let Some(server) = &mut self.postgres {
            server.stop().await?;
        }
        self.remove_temporary()
    }

    /// Stops both without waiting for what they could still write; the next start recovers.
    ///
    /// # Errors
    /// When a server does not end or a temporary folder cannot be removed.
    pub async fn stop_at_once(&mut self) -> Result<()> {
        if let Some(server) = &mut self.redis {
            server.stop_at_once().await?;
        }
        if let Some(server) = &mut self.postgres {
            server.stop_at_once().await?;
        }
        self.remove_temporary()
    }

    fn remove_temporary(&mut self) -> Result<()> {
        match self.temporary.take() {
            Some(temporary) => remove(&temporary.0),
            None => Ok(()),
        }
    }
}

/// A folder that is removed with the servers, even if a start is interrupted or a test panics.
#[derive(Debug)]
struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Killed servers and their children take a moment to exit, and may write until then.
        for _ in 0..50 {
            if remove(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(super::process::POLL);
        }
    }
}

/// Removes a folder of servers that do not run.
fn remove(folder: &Path) -> Result<()> {
    postgres::remove_data(&folder.join("postgres"))?;
    folder::remove_all(folder)
}

/// Stored in a data folder: the same at each start.
#[derive(Serialize, Deserialize)]
struct Memory {
    postgres_port: u16,
    postgres_password: String,
    redis_port: u16,
    redis_password: String,
    jwt_secret: String,
}

impl Memory {
    fn read_or_new(file: &Path) -> Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => serde_json::from_str(&text).with_context(|| {
                format!(
                    "{} is damaged: restore it, or delete its folder to start over",
                    file.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secret = || random_secret().map(|secret| secret.expose().to_owned());
                Ok(Self {
                    postgres_port: free_port()?,
                    postgres_password: secret()?,
                    redis_port: free_port()?,
                    redis_password: secret()?,
                    jwt_secret: secret()?,
                })
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn replace_taken_ports(&mut self) -> Result<()> {
        if !is_free(self.postgres_port) {
            self.postgres_port = free_port()?;
        }
        while !is_free(self.redis_port) || self.redis_port == self.postgres_port {
            self.redis_port = free_port()?;
        }
        Ok(())
    }

    fn postgres_options(&self) -> PostgresOptions {
        PostgresOptions {
            port: self.postgres_port,
            password: Secret::new(&self.postgres_password),
            settings: Vec::new(),
            is_stock: false,
        }
    }

    fn redis_options(&self) -> RedisOptions {
        RedisOptions {
            port: self.redis_port,
            password: Secret::new(&self.redis_password),
            settings: Vec::new(),
        }
    }

    fn write(&self, file: &Path) -> Result<()> {
        folder::write_private(file, &format!("{}\n", serde_json::to_string_pretty(self)?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn memory_survives_restart_except_taken_ports() {
        let folder = folder::create_temporary().unwrap();
        let file = folder.join("servers.json");
        let first = Memory::read_or_new(&file).unwrap();
        first.write(&file).unwrap();
        let mut second = Memory::read_or_new(&file).unwrap();
        assert_eq!(second.postgres_password, first.postgres_password);
        assert_eq!(second.jwt_secret, first.jwt_secret);

        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, second.redis_port)).unwrap();
        second.replace_taken_ports().unwrap();
        assert_eq!(second.postgres_port, first.postgres_port);
        assert_ne!(second.redis_port, first.redis_port);
        folder::remove_all(&folder).unwrap();
    }

    #[test]
    fn damaged_memory_error_names_the_file() {
        let folder = folder::create_temporary().unwrap();
        let file = folder.join("servers.json");
        std::fs::write(&file, "{").unwrap();
        let error = Memory::read_or_new(&file).err().unwrap().to_string();
        assert!(error.contains("servers.json"), "{error}");
        folder::remove_all(&folder).unwrap();
    }

    #[tokio::test]
    async fn killed_servers_restart_on_their_ports_with_their_data() {
        let options = ServersOptions {
            postgres: true,
            redis: true,
            durability: Durability::Disposable,
        };
        let mut servers = Servers::start_temporary(&options).await.unwrap();
        let folder = servers.folder().to_owned();

        let postgres = servers.postgres_mut().unwrap();
        let url = postgres.url();
        run_sql(&url, "CREATE TABLE kept AS SELECT 1").await;
        postgres.kill().await.unwrap();
        assert_eq!(postgres.pid(), None);
        postgres.restart().await.unwrap();
        assert_eq!(postgres.url(), url);
        run_sql(&url, "SELECT * FROM kept").await;

        let redis = servers.redis_mut().unwrap();
        let pid = redis.pid();
        redis.stop().await.unwrap();
        redis.restart().await.unwrap();
        assert!(redis.pid().is_some() && redis.pid() != pid);

        let refusal = Servers::start(&folder, &options).await.unwrap_err().to_string();
        assert!(refusal.contains("in use by another running posduif"), "{refusal}");

        servers.stop().await.unwrap();
        assert!(!folder.exists());
    }

    async fn run_sql(url: &str, statement: &str) {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(statement).await.unwrap();
    }
}
