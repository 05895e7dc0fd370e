//! A private Postgres: its data, and where they go when root may not run it in the given folder.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use super::allocate;
use super::folder::{self, FolderLock};
use super::process::{self, Escalation, POLL, Supervised};
use super::server::{PrivateServer, Program};
use crate::config::Secret;

/// Name of the superuser and of the database.
const NAME: &str = "posduif";

/// Where data go that the unprivileged user cannot reach in the given folder.
const RELOCATED: &str = "/var/lib/posduif-dev";

/// Timeout of a start; recovery after a crash takes longest.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Fast shutdown (ends sessions, writes a checkpoint), immediate shutdown, SIGKILL.
const STOP: &Escalation = &[
    (Signal::SIGINT, Duration::from_secs(20)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Immediate shutdown: the next start recovers from the write-ahead log.
const STOP_AT_ONCE: &Escalation = &[
    (Signal::SIGQUIT, Duration::from_secs(2)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Settings for logical replication and many test connections.
const NEEDED: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_replication_slots", "64"),
    ("max_wal_senders", "64"),
    ("max_connections", "200"),
];

/// Settings that keep it private.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    // A socket path has at most 107 bytes, and the data folder may be longer.
    ("unix_socket_directories", ""),
    // The log goes to the supervisor; defaults of some distributions would redirect it.
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
];

#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Password of the superuser `posduif`, letters and digits. It is stored in the data: each start on the same data must
    /// use the same one.
    pub password: Secret,
    /// Further settings of `postgresql.conf`, which override the built-in ones: `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
    /// Keeps the defaults of Postgres for what logical replication needs, for tests. Settings on the command line could not
    /// be changed by `ALTER SYSTEM`.
    pub is_stock: bool,
}

impl PostgresOptions {
    /// A free port, a random password, no further settings.
    pub fn new() -> Result<Self> {
        Ok(Self {
            port: allocate::free_port()?,
            password: allocate::random_secret()?,
            settings: Vec::new(),
            is_stock: false,
        })
    }

    /// Adds a setting of `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connection URL of the superuser.
    pub(super) fn url(&self) -> String {
        self.url_of(NAME)
    }

    fn url_of(&self, database: &str) -> String {
        let (password, port) = (self.password.expose(), self.port);
        format!("postgres://{NAME}:{password}@127.0.0.1:{port}/{database}")
    }
}

/// A private Postgres with `wal_level=logical`, the superuser `posduif` and an empty database `posduif`.
pub type PrivatePostgres = PrivateServer<Postgres>;

/// The program and data of a private Postgres.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    account: Option<Account>,
    binaries: PathBuf,
    data: PathBuf,
    log: PathBuf,
    _lock: FolderLock,
}

impl PrivatePostgres {
    /// Creates the data if there are none, stops an orphaned server on them, starts a server and returns when it answers.
    /// The log is `<folder>.log`.
    ///
    /// Postgres refuses to run as root. For root, it runs as the owner of existing data, else as `postgres` or `nobody`;
    /// if that user cannot reach `folder`, the data go to a folder under `/var/lib/posduif-dev`, and `folder` becomes a
    /// link to it.
    ///
    /// # Errors
    /// When Postgres is not installed, another process uses the folder, or the server does not start: with the end of
    /// its log.
    pub async fn start(folder: &Path, options: PostgresOptions) -> Result<Self> {
        let account = Account::for_server(folder)?;
        let (home, lock) = match &account {
            None => plain_home(folder)?,
            Some(account) => account.home(folder).await?,
        };
        let data = home.join("data");
        stop_stray(&data).await?;
        let program = Postgres {
            options,
            account,
            binaries: find_binaries(&data).await?,
            data,
            log: with_suffix(folder, "log"),
            _lock: lock,
        };
        if !exists(&program.data)? {
            program.create_data(&home).await?;
        }
        let server = Self::run(program).await?;
        server.program().create_database().await?;
        Ok(server)
    }
}

impl PrivatePostgres {
    /// The name of the database.
    pub fn database(&self) -> &'static str {
        NAME
    }
}

impl Program for Postgres {
    const STOP: &'static Escalation = STOP;
    const STOP_AT_ONCE: &'static Escalation = STOP_AT_ONCE;

    fn url(&self) -> String {
        self.options.url()
    }

    fn port(&self) -> u16 {
        self.options.port
    }

    async fn launch(&self) -> Result<Supervised> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let mut process = Supervised::spawn("Postgres", self.server_command(), &self.log)?;
            match self.wait_until_ready(&mut process, deadline).await {
                Ok(()) => return Ok(process),
                // Sessions of a killed postmaster take a moment to exit, and hold its shared memory until then.
                Err(error)
                    if error.to_string().contains("pre-existing shared memory block")
                        && process.ended()?.is_some()
                        && Instant::now() + Duration::from_secs(45) < deadline =>
                {
                    sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    process.stop(STOP_AT_ONCE).await?;
                    return Err(error);
                }
            }
        }
    }
}

impl Postgres {
    fn server_command(&self) -> Command {
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data);
        command.args(["-p", &self.options.port.to_string()]);
        let further = self.options.settings.iter().map(|(name, value)| (&**name, &**value));
        let needed = if self.options.is_stock { &[] } else { NEEDED };
        for (name, value) in SETTINGS.iter().chain(needed).copied().chain(further) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
    }

    /// A program of Postgres, run as the account.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        if let Some(account) = &self.account {
            account.run(&mut command);
        }
        command
    }

    async fn wait_until_ready(&self, process: &mut Supervised, deadline: Instant) -> Result<()> {
        loop {
            if let Some(error) = process.ended()? {
                return Err(error);
            }
            match self.connect("postgres").await {
                Ok(_client) => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::INVALID_PASSWORD) => bail!(
                    "the data in {} were created with another password: restore it, or delete the folder to start over",
                    self.data.display()
                ),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| {
                        format!(
                            "Postgres does not answer within {} s. The end of {}:\n{}",
                            START_TIMEOUT.as_secs(),
                            self.log.display(),
                            process::tail(&self.log)
                        )
                    });
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.options.url_of(database), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs `initdb`. The data are renamed into place when complete, so that an interrupted run leaves no partial data.
    async fn create_data(&self, home: &Path) -> Result<()> {
        let partial = home.join("data.new");
        folder::remove_all(&partial)?;
        let password = home.join("password.new");
        folder::write_private(&password, self.options.password.expose())?;
        if let Some(account) = &self.account {
            account.own(&password)?;
        }
        let durable = !self
            .options
            .settings
            .iter()
            .any(|(name, value)| name == "fsync" && value == "off");
        let mut errors = String::new();
        // Some systems lack C.UTF-8; C sorts the same way and only lacks the classes of non-ASCII letters.
        for locale in ["C.UTF-8", "C"] {
            let mut command = self.command("initdb");
            command.arg("-D").arg(&partial).arg("--pwfile").arg(&password);
            command.args(["-U", NAME, "-E", "UTF8", "-A", "scram-sha-256", "--locale", locale]);
            if !durable {
                command.arg("--no-sync");
            }
            let output = command.kill_on_drop(true).output().await;
            let output = output.with_context(|| format!("cannot run {}/initdb", self.binaries.display()))?;
            if output.status.success() {
                std::fs::remove_file(&password).with_context(|| format!("cannot remove {}", password.display()))?;
                return std::fs::rename(&partial, &self.data)
                    .with_context(|| format!("cannot create {}", self.data.display()));
            }
            errors = String::from_utf8_lossy(&output.stderr).into_owned();
            folder::remove_all(&partial)?;
        }
        bail!("initdb cannot create {}:\n{errors}", self.data.display())
    }

    /// Creates the database unless an earlier start did.
    async fn create_database(&self) -> Result<()> {
        match self.connect(NAME).await {
            Ok(_client) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_DATABASE) => {}
            Err(error) => return Err(error).context("cannot connect to the private Postgres"),
        }
        let client = self.connect("postgres").await?;
        client.batch_execute(&format!("CREATE DATABASE {NAME}")).await?;
        Ok(())
    }
}

/// The unprivileged user that runs Postgres for root.
#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// The account that runs a server with its data in `folder`; `None` for our own.
    fn for_server(folder: &Path) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        // Existing data keep their owner.
        if let Ok(data) = std::fs::metadata(folder.join("data"))
            && data.uid() != 0
        {
            return Ok(Some(Self {
                name: format!("with id {}", data.uid()),
                uid: Uid::from_raw(data.uid()),
                gid: Gid::from_raw(data.gid()),
            }));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name).with_context(|| format!("cannot look up the user {name}"))? {
                return Ok(Some(Self {
                    name: user.name,
                    uid: user.uid,
                    gid: user.gid,
                }));
            }
        }
        bail!("Postgres does not run as root, and neither the user postgres nor nobody exists: create one of them")
    }

    /// Runs a command as this user, in a folder that all users can enter.
    fn run(&self, command: &mut Command) {
        command
            .uid(self.uid.as_raw())
            .gid(self.gid.as_raw())
            .current_dir("/")
            .env_remove("HOME");
    }

    /// Changes the owner of a file or folder to this user.
    fn own(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .with_context(|| format!("cannot change the owner of {} to {}", path.display(), self.name))
    }

    /// Whether this user can enter the folder and write to it. Tested by trying: access lists and mount options matter as
    /// well as permission bits.
    async fn reaches(&self, folder: &Path) -> Result<bool> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"cd -- "$1" 2>/dev/null && test -w ."#, "sh"]);
        command.arg(folder);
        self.run(&mut command);
        let status = command.kill_on_drop(true).status().await;
        Ok(status.context("cannot run /bin/sh")?.success())
    }

    /// The home of the data for `folder`, and its lock.
    async fn home(&self, folder: &Path) -> Result<(PathBuf, FolderLock)> {
        match std::fs::symlink_metadata(folder) {
            Ok(found) if found.is_symlink() => {
                if let Ok(home) = folder.canonicalize() {
                    let lock = FolderLock::take(&home)?;
                    return Ok((home, lock));
                }
                std::fs::remove_file(folder)
                    .with_context(|| format!("cannot remove the dangling link {}", folder.display()))?;
            }
            _ => {
                folder::create_private(folder)?;
                self.own(folder)?;
                if self.reaches(folder).await? {
                    return plain_home(folder);
                }
                if exists(&folder.join("data"))? {
                    bail!(
                        "the user {} cannot reach its data in {}: let others traverse the folders above it \
                         (chmod o+x), or delete it to start over",
                        self.name,
                        folder.display()
                    );
                }
                std::fs::remove_dir(folder).with_context(|| format!("cannot replace {}", folder.display()))?;
            }
        }
        self.relocate(folder).await
    }

    /// Creates an empty home elsewhere and links to it from `folder`, which does not exist.
    async fn relocate(&self, folder: &Path) -> Result<(PathBuf, FolderLock)> {
        let base = Path::new(RELOCATED);
        folder::create_private(base)?;
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o711))
            .with_context(|| format!("cannot let others traverse {}", base.display()))?;
        let home = base.join(relocated_name(folder)?);
        folder::create_private(&home)?;
        let lock = FolderLock::take(&home)?;
        // The folder was deleted, so its relocated data, with a lost password, must not return.
        stop_stray(&home.join("data")).await?;
        let entries = std::fs::read_dir(&home).with_context(|| format!("cannot list {}", home.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list {}", home.display()))?.path();
            if path.is_dir() {
                folder::remove_all(&path)?;
            } else {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        self.own(&home)?;
        if !self.reaches(&home).await? {
            bail!(
                "the user {} can reach neither {} nor {}: choose another folder with --data",
                self.name,
                folder.display(),
                home.display()
            );
        }
        symlink(&home, folder).with_context(|| format!("cannot link {} to {}", folder.display(), home.display()))?;
        Ok((home, lock))
    }
}

/// Removes the data of a stopped Postgres, relocated or not.
pub(super) fn remove_data(folder: &Path) -> Result<()> {
    if let Ok(home) = std::fs::read_link(folder) {
        folder::remove_all(&home)?;
        return std::fs::remove_file(folder).with_context(|| format!("cannot remove {}", folder.display()));
    }
    folder::remove_all(folder)
}

/// The home of data of our own user.
fn plain_home(folder: &Path) -> Result<(PathBuf, FolderLock)> {
    folder::create_private(folder)?;
    let home = folder
        .canonicalize()
        .with_context(|| format!("cannot enter {}", folder.display()))?;
    let lock = FolderLock::take(&home)?;
    Ok((home, lock))
}

/// A name for the relocated data of a folder, by its absolute path.
fn relocated_name(folder: &Path) -> Result<String> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let absolute = parent
        .canonicalize()
        .with_context(|| format!("cannot enter {}", parent.display()))?
        .join(folder.file_name().unwrap_or_default());
    let digest = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// `<folder>.<suffix>`.
fn with_suffix(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether the path exists. A failure to determine that is an error, not `false`.
fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| {
        format!(
            "cannot access {}: if another user created it, run as that user or choose another folder with --data",
            path.display()
        )
    })
}

/// Stops a server that an earlier run orphaned on the data of this folder.
pub(super) async fn stop_stray_in(folder: &Path) -> Result<()> {
    match folder.canonicalize() {
        Ok(home) => {
            // While another process holds the lock, it supervises the server.
            let _lock = FolderLock::take(&home)?;
            stop_stray(&home.join("data")).await
        }
        Err(_) => Ok(()),
    }
}

/// Stops an orphaned server on these data.
async fn stop_stray(data: &Path) -> Result<()> {
    let pid_file = data.join("postmaster.pid");
    let Some(pid) = process::read_pid(&pid_file) else {
        return Ok(());
    };
    if !process::is_alive(pid) {
        // Postgres removes the file after checking that no session of the dead server is left.
        return Ok(());
    }
    if is_postgres_on(&process::arguments(pid).await, data) {
        tracing::info!(pid, data = %data.display(), "stopping an orphaned Postgres");
        return process::stop_stray("Postgres", pid, STOP).await;
    }
    // The id was reused; Postgres would take that process for a server and refuse to start.
    std::fs::remove_file(&pid_file).with_context(|| format!("cannot remove the stale {}", pid_file.display()))
}

/// Whether these are the arguments of a Postgres on these data. `ps` splits arguments at spaces, so the path may be
/// several of them.
fn is_postgres_on(arguments: &[String], data: &Path) -> bool {
    let Some((program, rest)) = arguments.split_first() else {
        return false;
    };
    let named = Path::new(program).file_name().is_some_and(|name| name == "postgres");
    let Some(at) = rest.iter().position(|argument| argument == "-D") else {
        return false;
    };
    let after = &rest[at + 1..];
    let whole = after.first().is_some_and(|path| Path::new(path) == data);
    named && (whole || after.join(" ").starts_with(&format!("{} -p", data.display())))
}

/// The folder with `postgres` and `initdb`: of the version that made the data, or the newest installed.
async fn find_binaries(data: &Path) -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for folder in binary_folders().await {
        if folder.join("initdb").is_file()
            && let Some(version) = version_of(&folder).await
        {
            found.push((version, folder));
        }
    }
    if !exists(data)? {
        return found
            .into_iter()
            .max_by_key(|(version, _)| *version)
            .map(|(_, folder)| folder)
            .ok_or_else(|| {
                anyhow!(
                    "PostgreSQL server not found: install it (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf \
                     install postgresql-server; macOS: brew install postgresql), name the folder of `postgres` and \
                     `initdb` in POSDUIF_PG_BIN, or set DATABASE_URL to use a server that runs"
                )
            });
    }
    let version_file = data.join("PG_VERSION");
    let text = std::fs::read_to_string(&version_file).with_context(|| {
        format!(
            "cannot read {}: is it a data folder of Postgres?",
            version_file.display()
        )
    })?;
    let wanted = text.trim();
    found
        .into_iter()
        .find(|(version, _)| version.to_string() == wanted)
        .map(|(_, folder)| folder)
        .ok_or_else(|| {
            anyhow!(
                "the data in {} belong to PostgreSQL {wanted}, which was not found: install it, name its folder of \
                 programs in POSDUIF_PG_BIN, or delete the data to start over",
                data.display()
            )
        })
}

/// Folders that may hold the programs of Postgres, in order of preference.
async fn binary_folders() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("POSDUIF_PG_BIN").filter(|folder| !folder.is_empty()) {
        return vec![PathBuf::from(folder)];
    }
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output().await
        && output.status.success()
    {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    if let Some(path) = std::env::var_os("PATH") {
        folders.extend(std::env::split_paths(&path));
    }
    // Debian and Ubuntu, RHEL and Fedora (PGDG packages), Homebrew on Arm, Intel and Linux.
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql"),
    ] {
        let Ok(entries) = std::fs::read_dir(parent) else {
            continue;
        };
        folders.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| entry.path().join("bin")),
        );
    }
    folders
}

/// Major version of the `postgres` in a folder; `None` if it does not run.
async fn version_of(folder: &Path) -> Option<u32> {
    let run = Command::new(folder.join("postgres"))
        .arg("--version")
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(5), run).await.ok()?.ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(text: &str) -> Option<u32> {
    let number = text.strip_prefix("postgres (PostgreSQL) ")?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn is_postgres_on_matches_the_exact_data() {
        let data = Path::new("/x y/data");
        let program = "/usr/lib/postgresql/15/bin/postgres";
        assert!(is_postgres_on(&words(&[program, "-D", "/x y/data", "-p", "1"]), data));
        assert!(is_postgres_on(
            &words(&[program, "-D", "/x", "y/data", "-p", "1"]),
            data
        ));
        assert!(!is_postgres_on(&words(&[program, "-D", "/x y/data2", "-p", "1"]), data));
        assert!(!is_postgres_on(&words(&["vi", "-D", "/x y/data"]), data));
        assert!(!is_postgres_on(&words(&[program, "-D"]), data));
        assert!(!is_postgres_on(&[], data));
    }

    #[test]
    fn version_is_parsed_from_packaged_output() {
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("postgres (PostgreSQL) 17\n"), Some(17));
        assert_eq!(parse_version("psql: error"), None);
    }

    #[test]
    fn relocated_name_depends_on_the_absolute_path() {
        let temporary = std::env::temp_dir();
        let name = relocated_name(&temporary.join("a")).unwrap();
        assert_eq!(name, relocated_name(&temporary.join(".").join("a")).unwrap());
        assert_ne!(name, relocated_name(&temporary.join("b")).unwrap());
        assert_eq!(name.len(), 16);
    }
}
