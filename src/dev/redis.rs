//! One private Redis: append-only file, no eviction, a password.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::folder::{self, FolderLock};
use super::process::{self, Escalation, MaybeRunning, POLL, Supervised};
use crate::config::Secret;

/// How long a start may take; loading a large append-only file is the longest.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Writes what is left to the append-only file and ends.
const STOP: &Escalation = &[
    (Signal::SIGTERM, Duration::from_secs(20)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

const STOP_AT_ONCE: &Escalation = &[(Signal::SIGKILL, Duration::from_secs(5))];

/// Programs to look for: Valkey speaks the same protocol and is what some distributions ship.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];

/// What the streams rest on: nothing is evicted, and all but the last second survives a crash.
const SETTINGS: &[(&str, &str)] = &[
    ("bind", "127.0.0.1"),
    ("dir", "."),
    ("pidfile", "redis.pid"),
    ("appendonly", "yes"),
    ("appendfsync", "everysec"),
    ("maxmemory-policy", "noeviction"),
    // The append-only file is the memory; snapshots beside it would only cost forks.
    ("save", "\"\""),
    // A histogram of each command's time, kept for every single XADD, costs several per cent of them.
    ("latency-tracking", "no"),
];

/// How a private Redis is to run.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Password of the default user, letters and digits.
    pub password: Secret,
    /// Further lines of `redis.conf`, which win over the built-in ones: `("appendfsync", "always")`.
    pub settings: Vec<(String, String)>,
}

impl RedisOptions {
    /// A free port, a random password, no further settings.
    ///
    /// # Errors
    /// When there is no free port or the operating system gives no random bits.
    pub fn new() -> Result<Self> {
        Ok(Self {
            port: super::free_port()?,
            password: super::random_secret()?,
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

/// A Redis of one's own.
///
/// Dropping it while it runs kills it; its data survive that as they survive a crash.
#[derive(Debug)]
pub struct PrivateRedis {
    options: RedisOptions,
    program: &'static str,
    folder: PathBuf,
    log: PathBuf,
    process: MaybeRunning,
    _lock: FolderLock,
}

impl PrivateRedis {
    /// Stops a server that an earlier run left over in the folder, starts one there and returns when it answers. The
    /// log is `<folder>/redis.log`.
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
        let mut server = Self {
            options,
            program: find_program()?,
            log: folder.join("redis.log"),
            folder,
            process: MaybeRunning::default(),
            _lock: lock,
        };
        server.restart().await?;
        Ok(server)
    }

    /// Connection URL.
    pub fn url(&self) -> String {
        self.options.url()
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// Process id; `None` while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Stops it in order: what it holds is on disk.
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop(STOP).await
    }

    /// Stops it without writing what is left.
    pub(super) async fn stop_at_once(&mut self) -> Result<()> {
        self.process.stop(STOP_AT_ONCE).await
    }

    /// Kills it, for tests of what survives.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Waits until it ends by itself and gives the error to report; never returns while it runs or is stopped.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.process.failed().await
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], on the same port with the same data, and returns when
    /// it answers. Does nothing while it runs.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub async fn restart(&mut self) -> Result<()> {
        if self.process.is_running() {
            return Ok(());
        }
        // In a file, because arguments are visible to every user of the machine.
        folder::write_private(&self.folder.join("redis.conf"), &configuration(&self.options))?;
        let mut command = Command::new(self.program);
        command.arg("redis.conf").current_dir(&self.folder);
        let mut process = Supervised::spawn("Redis", command, &self.log)?;
        self.wait_until_ready(&mut process).await?;
        self.process.started(process);
        Ok(())
    }

    async fn wait_until_ready(&self, process: &mut Supervised) -> Result<()> {
        let client = redis::Client::open(self.url())?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(error) = process.ended()? {
                return Err(error);
            }
            let ping = async {
                let mut connection = client.get_multiplexed_async_connection().await?;
                redis::cmd("PING").query_async::<()>(&mut connection).await
            };
            // While it loads its data it answers LOADING, which is an error here.
            if let Ok(Ok(())) = timeout(Duration::from_secs(2), ping).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(anyhow!(
                    "Redis does not answer within {} s. The end of {}:\n{}",
                    START_PATIENCE.as_secs(),
                    self.log.display(),
                    process::tail(&self.log)
                ));
            }
            sleep(POLL).await;
        }
    }
}

/// The text of `redis.conf`; of two lines with the same name Redis takes the last.
fn configuration(options: &RedisOptions) -> String {
    let own = [
        ("port", options.port.to_string()),
        ("requirepass", options.password.expose().to_owned()),
    ];
    let mut text = String::from("# Written anew at each start.\n");
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

fn find_program() -> Result<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    PROGRAMS
        .into_iter()
        .find(|program| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
        .ok_or_else(|| {
            anyhow!(
                "no redis-server found on the PATH: install it (Debian, Ubuntu: apt-get install redis-server; Fedora: \
                 dnf install redis; macOS: brew install redis), or set REDIS_URL to use a server that runs"
            )
        })
}

/// Stops servers left over by an earlier run in this folder; used before the folder is started.
pub(super) async fn stop_stray_in(folder: &Path) -> Result<()> {
    if let Ok(folder) = folder.canonicalize() {
        // Whoever holds the lock supervises that server, which then is no stray.
        let _lock = FolderLock::take(&folder)?;
        return stop_stray(&folder).await;
    }
    // The folder was deleted, and the pid file with it. A Redis does not notice and would run on for good.
    for pid in process::working_in_deleted(folder) {
        if is_redis(&process::arguments(pid).await.join(" ")) {
            tracing::info!(pid, "stopping a Redis whose folder was deleted");
            process::stop_stray("Redis", pid, STOP_AT_ONCE).await?;
        }
    }
    Ok(())
}

/// Stops a server that runs in this folder without a supervisor.
async fn stop_stray(folder: &Path) -> Result<()> {
    let pid_file = folder.join("redis.pid");
    let Some(pid) = process::read_pid(&pid_file) else {
        return Ok(());
    };
    if process::is_alive(pid) && is_redis_in(pid, folder).await {
        tracing::info!(pid, folder = %folder.display(), "stopping a Redis that an earlier run left over");
        process::stop_stray("Redis", pid, STOP).await?;
    }
    // Redis overwrites a stale one.
    Ok(())
}

/// Whether the process is a Redis with this folder as its own.
///
/// Redis replaces its arguments by `redis-server 127.0.0.1:<port>`. The folder shows on Linux as the working folder;
/// elsewhere the port has to do, as the configuration in the folder names it.
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
    fn settings_of_the_caller_come_last_and_win() {
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
    fn a_title_names_the_port_as_a_whole() {
        let title = "redis-server 127.0.0.1:20001";
        assert!(listens_on(title, 20_001));
        assert!(!listens_on(title, 2000));
        assert!(!listens_on(title, 20_002));
    }
}
