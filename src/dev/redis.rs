//! A private Redis: append-only file, no eviction, a password.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::allocate;
use super::folder::{self, FolderLock};
use super::process::{self, Escalation, POLL, Supervised};
use super::server::{PrivateServer, Program};
use crate::config::Secret;

/// Timeout of a start; loading a large append-only file takes longest.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// SIGTERM writes pending data to the append-only file.
const STOP: &Escalation = &[
    (Signal::SIGTERM, Duration::from_secs(20)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

const STOP_AT_ONCE: &Escalation = &[(Signal::SIGKILL, Duration::from_secs(5))];

/// Programs, in order of preference. Some distributions ship Valkey, which has the same protocol.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];

/// Nothing is evicted, and all but the last second survives a crash.
const SETTINGS: &[(&str, &str)] = &[
    ("bind", "127.0.0.1"),
    ("dir", "."),
    ("pidfile", "redis.pid"),
    ("appendonly", "yes"),
    ("appendfsync", "everysec"),
    ("maxmemory-policy", "noeviction"),
    // The append-only file suffices; snapshots would only cost forks.
    ("save", "\"\""),
    // A latency histogram costs several per cent of each XADD.
    ("latency-tracking", "no"),
];

#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Password of the default user, letters and digits.
    pub password: Secret,
    /// Further lines of `redis.conf`, which override the built-in ones: `("appendfsync", "always")`.
    pub settings: Vec<(String, String)>,
}

impl RedisOptions {
    /// A free port, a random password, no further settings.
    pub fn new() -> Result<Self> {
        Ok(Self {
            port: allocate::free_port()?,
            password: allocate::random_secret()?,
            settings: Vec::new(),
        })
    }

    /// Adds a line of `redis.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connection URL.
    pub(super) fn url(&self) -> String {
        let (password, port) = (self.password.expose(), self.port);
        format!("redis://default:{password}@127.0.0.1:{port}/0")
    }
}

/// A private Redis.
pub type PrivateRedis = PrivateServer<Redis>;

/// The program and data of a private Redis.
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    program: OsString,
    folder: PathBuf,
    log: PathBuf,
    _lock: FolderLock,
}

impl PrivateRedis {
    /// Stops an orphaned server in the folder, starts a server there and returns when it answers. The log is
    /// `<folder>/redis.log`.
    ///
    /// # Errors
    /// When Redis is not installed, another process uses the folder, or the server does not start: with the end of
    /// its log.
    pub async fn start(folder: &Path, options: RedisOptions) -> Result<Self> {
        folder::create_private(folder)?;
        let folder = folder
            .canonicalize()
            .with_context(|| format!("cannot enter {}", folder.display()))?;
        let lock = FolderLock::take(&folder)?;
        stop_stray(&folder).await?;
        Self::run(Redis {
            options,
            program: find_program()?,
            log: folder.join("redis.log"),
            folder,
            _lock: lock,
        })
        .await
    }
}

impl Program for Redis {
    const STOP: &'static Escalation = STOP;
    const STOP_AT_ONCE: &'static Escalation = STOP_AT_ONCE;

    fn url(&self) -> String {
        self.options.url()
    }

    fn port(&self) -> u16 {
        self.options.port
    }

    async fn launch(&self) -> Result<Supervised> {
        // In a file, because arguments are visible to every user of the machine.
        folder::write_private(&self.folder.join("redis.conf"), &configuration(&self.options))?;
        let mut command = Command::new(&self.program);
        command.arg("redis.conf").current_dir(&self.folder);
        let mut process = Supervised::spawn("Redis", command, &self.log)?;
        self.wait_until_ready(&mut process).await?;
        Ok(process)
    }
}

impl Redis {
    async fn wait_until_ready(&self, process: &mut Supervised) -> Result<()> {
        let client = redis::Client::open(self.url())?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(error) = process.ended()? {
                return Err(error);
            }
            let ping = async {
                let mut connection = client.get_multiplexed_async_connection().await?;
                redis::cmd("PING").query_async::<()>(&mut connection).await
            };
            // LOADING is an error here.
            if let Ok(Ok(())) = timeout(Duration::from_secs(2), ping).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(anyhow!(
                    "Redis does not answer within {} s. The end of {}:\n{}",
                    START_TIMEOUT.as_secs(),
                    self.log.display(),
                    process::tail(&self.log)
                ));
            }
            sleep(POLL).await;
        }
    }
}

/// The text of `redis.conf`; of two lines with the same name the last one applies.
fn configuration(options: &RedisOptions) -> String {
    let own = [
        ("port", options.port.to_string()),
        ("requirepass", options.password.expose().to_owned()),
    ];
    let mut text = String::from("# Rewritten at each start.\n");
    for (name, value) in SETTINGS {
        text.push_str(&format!("{name} {value}\n"));
    }
    for (name, value) in &own {
        text.push_str(&format!("{name} {value}\n"));
    }
    for (name, value) in &options.settings {
        text.push_str(&format!("{name} {value}\n"));
    }
    text
}

/// The program to start: that which `POSDUIF_REDIS_BIN` names, else one on the `PATH`.
fn find_program() -> Result<OsString> {
    if let Some(program) = std::env::var_os("POSDUIF_REDIS_BIN").filter(|program| !program.is_empty()) {
        // An orphaned server is found by this name.
        let is_known = program.to_str().is_some_and(is_redis);
        return if is_known && Path::new(&program).is_file() {
            Ok(program)
        } else {
            Err(anyhow!(
                "POSDUIF_REDIS_BIN is {program:?}: it must be the path of a program named redis-server or valkey-server"
            ))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    PROGRAMS
        .into_iter()
        .find(|program| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
        .map(OsString::from)
        .ok_or_else(|| {
            anyhow!(
                "redis-server not found on the PATH: install it (Debian, Ubuntu: apt-get install redis-server; Fedora: \
                 dnf install redis; macOS: brew install redis), name a program in POSDUIF_REDIS_BIN, or set REDIS_URL to \
                 use a server that runs"
            )
        })
}

/// Stops servers that an earlier run orphaned in this folder.
pub(super) async fn stop_stray_in(folder: &Path) -> Result<()> {
    if let Ok(folder) = folder.canonicalize() {
        // While another process holds the lock, it supervises the server.
        let _lock = FolderLock::take(&folder)?;
        return stop_stray(&folder).await;
    }
    // The folder was deleted with its pid file. Redis does not notice and runs indefinitely.
    for pid in process::working_in_deleted(folder) {
        if is_redis(&process::arguments(pid).await.join(" ")) {
            tracing::info!(pid, "stopping an orphaned Redis whose folder was deleted");
            process::stop_stray("Redis", pid, STOP_AT_ONCE).await?;
        }
    }
    Ok(())
}

/// Stops an orphaned server in this folder.
async fn stop_stray(folder: &Path) -> Result<()> {
    let pid_file = folder.join("redis.pid");
    let Some(pid) = process::read_pid(&pid_file) else {
        return Ok(());
    };
    if process::is_alive(pid) && is_redis_in(pid, folder).await {
        tracing::info!(pid, folder = %folder.display(), "stopping an orphaned Redis");
        process::stop_stray("Redis", pid, STOP).await?;
    }
    // Redis overwrites a stale one.
    Ok(())
}

/// Whether the process is a Redis that runs in this folder.
///
/// Redis replaces its arguments by `redis-server 127.0.0.1:<port>`. On Linux the working folder is compared, elsewhere the
/// port with the one in the configuration.
async fn is_redis_in(pid: u32, folder: &Path) -> bool {
    let arguments = process::arguments(pid).await.join(" ");
    if !is_redis(&arguments) {
        return false;
    }
    match std::fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(working_folder) => working_folder == folder,
        Err(_) => std::fs::read_to_string(folder.join("redis.conf"))
            .ok()
            .and_then(|text| port_of(&text))
            .is_some_and(|port| listens_on(&arguments, port)),
    }
}

/// Whether a process's arguments are those of a Redis.
fn is_redis(arguments: &str) -> bool {
    let program = arguments.split_whitespace().next().unwrap_or_default();
    PROGRAMS.iter().any(|name| program.ends_with(name))
}

/// The port in a `redis.conf`.
fn port_of(configuration: &str) -> Option<u16> {
    let value = configuration
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("port "))?;
    value.trim().parse().ok()
}

/// Whether a Redis's title says that it listens on this port.
fn listens_on(title: &str, port: u16) -> bool {
    title.split_whitespace().any(|word| word.ends_with(&format!(":{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_caller_override_defaults() {
        let options = RedisOptions {
            port: 20_001,
            password: Secret::new("p"),
            settings: Vec::new(),
        };
        let text = configuration(&options.setting("appendfsync", "always").setting("port", "20002"));
        assert!(text.contains("requirepass p\n"), "{text}");
        assert!(text.ends_with("appendfsync always\nport 20002\n"), "{text}");
        assert_eq!(port_of(&text), Some(20_002));
    }

    #[test]
    fn listens_on_matches_the_whole_port() {
        let title = "redis-server 127.0.0.1:20001";
        assert!(listens_on(title, 20_001));
        assert!(!listens_on(title, 2000));
        assert!(!listens_on(title, 20_002));
    }
}
