//! One private Postgres: its data, its process, its place when root may not run it where it was asked for.

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

use super::folder::{self, FolderLock};
use super::process::{self, Escalation, MaybeRunning, POLL, Supervised};
use crate::config::Secret;

/// Name of the superuser and of the database.
const NAME: &str = "posduif";

/// Where data goes that the unprivileged user cannot reach in the folder asked for.
const RELOCATED: &str = "/var/lib/posduif-dev";

/// How long a start may take; recovery after a crash with much to replay is the longest.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Fast shutdown (ends sessions, writes a checkpoint), immediate shutdown, the end.
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

/// What logical replication and a crowd of test connections need.
const NEEDED: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_replication_slots", "64"),
    ("max_wal_senders", "64"),
    ("max_connections", "200"),
];

/// What makes it private.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    // A socket path has at most 107 bytes, and the data folder may be longer.
    ("unix_socket_directories", ""),
    // The supervisor keeps the log; some distributions' defaults would move it elsewhere.
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
];

/// How a private Postgres is to run.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Password of the superuser `posduif`, letters and digits. Data keep the password they were made with, so that
    /// each start on the same data must give the same one.
    pub password: Secret,
    /// Further settings of `postgresql.conf`, which win over the built-in ones: `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
    /// Leaves what logical replication needs as Postgres has it by itself, for tests of what that leads to. Settings on
    /// the command line could not be changed by `ALTER SYSTEM`.
    pub is_stock: bool,
}

impl PostgresOptions {
    /// A free port, a random password, no further settings.
    ///
    /// # Errors
    /// When there is no free port or the operating system gives no random bits.
    pub fn new() -> Result<Self> {
        Ok(Self {
            port: super::free_port()?,
            password: super::random_secret()?,
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

/// A Postgres of one's own with `wal_level=logical`, the superuser `posduif` and an empty database `posduif`.
///
/// Dropping it while it runs kills it; its data survive that as they survive a crash.
#[derive(Debug)]
pub struct PrivatePostgres {
    options: PostgresOptions,
    account: Option<Account>,
    binaries: PathBuf,
    data: PathBuf,
    log: PathBuf,
    process: MaybeRunning,
    _lock: FolderLock,
}

impl PrivatePostgres {
    /// Makes the data if there are none yet, stops a server that an earlier run left over on them, starts one and
    /// returns when it answers. The log is `<folder>.log`.
    ///
    /// Postgres refuses to run as root. Root's is run by the owner of existing data, else by `postgres` or `nobody`;
    /// where that user cannot reach `folder`, the data go to a folder under `/var/lib/posduif-dev`, and `folder`
    /// becomes a link to it.
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
        let binaries = find_binaries(&data).await?;
        let mut server = Self {
            options,
            account,
            binaries,
            data,
            log: beside(folder, "log"),
            process: MaybeRunning::default(),
            _lock: lock,
        };
        if !exists(&server.data)? {
            server.make_data(&home).await?;
        }
        server.restart().await?;
        server.make_database().await?;
        Ok(server)
    }

    /// Connection URL of the superuser.
    pub fn url(&self) -> String {
        self.options.url()
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// Process id of the postmaster; `None` while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Stops it in order: sessions end, a checkpoint is written.
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop(STOP).await
    }

    /// Stops it without a checkpoint; the next start recovers.
    pub(super) async fn stop_at_once(&mut self) -> Result<()> {
        self.process.stop(STOP_AT_ONCE).await
    }

    /// Kills the postmaster, for tests of what survives. Its sessions notice and end by themselves shortly after.
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
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let mut process = Supervised::spawn("Postgres", self.server_command(), &self.log)?;
            match self.wait_until_ready(&mut process, deadline).await {
                Ok(()) => {
                    self.process.started(process);
                    return Ok(());
                }
                // Sessions of a killed postmaster need a moment to notice, and until then they hold its memory.
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

    /// One of Postgres' programs, to be run by the account.
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
                    "the data in {} were made with another password: restore it, or delete the folder to begin anew",
                    self.data.display()
                ),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| {
                        format!(
                            "Postgres does not answer within {} s. The end of {}:\n{}",
                            START_PATIENCE.as_secs(),
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

    /// Runs `initdb`. The data appear under their name only when complete, so an interrupted run leaves nothing that
    /// looks like data.
    async fn make_data(&self, home: &Path) -> Result<()> {
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
        let mut complaints = String::new();
        // Not every system has C.UTF-8; C sorts the same way and only lacks the classes of non-ASCII letters.
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
                    .with_context(|| format!("cannot make {}", self.data.display()));
            }
            complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            folder::remove_all(&partial)?;
        }
        bail!("initdb cannot make {}:\n{complaints}", self.data.display())
    }

    /// Makes the database unless an earlier start did.
    async fn make_database(&self) -> Result<()> {
        match self.connect(NAME).await {
            Ok(_client) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_DATABASE) => {}
            Err(error) => return Err(error).context("connecting to the private Postgres"),
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
    /// Who runs a server with its data in `folder`; `None` means whoever runs this program.
    fn for_server(folder: &Path) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        // Data made by another user than the one chosen today stay with theirs.
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
            if let Some(user) = User::from_name(name).with_context(|| format!("looking up the user {name}"))? {
                return Ok(Some(Self {
                    name: user.name,
                    uid: user.uid,
                    gid: user.gid,
                }));
            }
        }
        bail!("Postgres does not run as root, and there is neither a user postgres nor nobody: add one of them")
    }

    /// Makes a command run as this user, from a folder that everybody can enter.
    fn run(&self, command: &mut Command) {
        command
            .uid(self.uid.as_raw())
            .gid(self.gid.as_raw())
            .current_dir("/")
            .env_remove("HOME");
    }

    /// Gives a file or folder to this user.
    fn own(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .with_context(|| format!("cannot give {} to the user {}", path.display(), self.name))
    }

    /// Whether this user gets into the folder and may write there. Asked by trying, since besides permission bits
    /// access lists and mount options have a say.
    async fn reaches(&self, folder: &Path) -> Result<bool> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"cd -- "$1" 2>/dev/null && test -w ."#, "sh"]);
        command.arg(folder);
        self.run(&mut command);
        let status = command.kill_on_drop(true).status().await;
        Ok(status.context("cannot run /bin/sh")?.success())
    }

    /// The folder in which this user keeps the data for `folder`, and its lock.
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
                        "the user {} cannot reach its data in {}: let others pass through the folders above it \
                         (chmod o+x), or delete it to begin anew",
                        self.name,
                        folder.display()
                    );
                }
                std::fs::remove_dir(folder).with_context(|| format!("cannot replace {}", folder.display()))?;
            }
        }
        self.relocate(folder).await
    }

    /// Makes an empty home elsewhere and links to it from `folder`, which does not exist.
    async fn relocate(&self, folder: &Path) -> Result<(PathBuf, FolderLock)> {
        let base = Path::new(RELOCATED);
        folder::create_private(base)?;
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o711))
            .with_context(|| format!("cannot open {} to others", base.display()))?;
        let home = base.join(name_elsewhere(folder)?);
        folder::create_private(&home)?;
        let lock = FolderLock::take(&home)?;
        // Whoever deleted the folder wanted to be rid of its data; what was relocated would come back otherwise, with
        // a password that nobody remembers.
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

/// Removes the data of a Postgres that does not run, also where they were relocated.
pub(super) fn remove_data(folder: &Path) -> Result<()> {
    if let Ok(home) = std::fs::read_link(folder) {
        folder::remove_all(&home)?;
        return std::fs::remove_file(folder).with_context(|| format!("cannot remove {}", folder.display()));
    }
    folder::remove_all(folder)
}

/// The home of data that need no other user.
fn plain_home(folder: &Path) -> Result<(PathBuf, FolderLock)> {
    folder::create_private(folder)?;
    let home = folder
        .canonicalize()
        .with_context(|| format!("cannot enter {}", folder.display()))?;
    let lock = FolderLock::take(&home)?;
    Ok((home, lock))
}

/// A name for the relocated data of a folder: the same for the same absolute path.
fn name_elsewhere(folder: &Path) -> Result<String> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let absolute = parent
        .canonicalize()
        .with_context(|| format!("cannot enter {}", parent.display()))?
        .join(folder.file_name().unwrap_or_default());
    let digest = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// `<folder>.<suffix>`, beside the folder.
fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether the path is there; an error when that cannot be told, which must not be read as "no".
fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| {
        format!(
            "cannot look at {}: if another user made it, run as that user or choose another folder with --data",
            path.display()
        )
    })
}

/// Stops a server left over by an earlier run on the data of this folder; used before the folder is started.
pub(super) async fn stop_stray_in(folder: &Path) -> Result<()> {
    match folder.canonicalize() {
        Ok(home) => {
            // Whoever holds the lock supervises that server, which then is no stray.
            let _lock = FolderLock::take(&home)?;
            stop_stray(&home.join("data")).await
        }
        Err(_) => Ok(()),
    }
}

/// Stops a server that runs on these data without a supervisor.
async fn stop_stray(data: &Path) -> Result<()> {
    let pid_file = data.join("postmaster.pid");
    let Some(pid) = process::read_pid(&pid_file) else {
        return Ok(());
    };
    if !process::is_alive(pid) {
        // Postgres clears it away by itself, and checks first that no session of the dead server is left.
        return Ok(());
    }
    if is_postgres_on(&process::arguments(pid).await, data) {
        tracing::info!(pid, data = %data.display(), "stopping a Postgres that an earlier run left over");
        return process::stop_stray("Postgres", pid, STOP).await;
    }
    // Somebody else has got the number since; Postgres would take that process for a server and refuse to start.
    std::fs::remove_file(&pid_file).with_context(|| format!("cannot remove the stale {}", pid_file.display()))
}

/// Whether these are the arguments of a Postgres on these data. Where `ps` has split them at spaces, the path is
/// looked for in what follows `-D`.
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
                    "no PostgreSQL server found: install it (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf \
                     install postgresql-server; macOS: brew install postgresql), name the folder of `postgres` and \
                     `initdb` in POSDUIF_PG_BIN, or set DATABASE_URL to use a server that runs"
                )
            });
    }
    let version_file = data.join("PG_VERSION");
    let text = std::fs::read_to_string(&version_file)
        .with_context(|| format!("cannot read {}: not the data of a Postgres?", version_file.display()))?;
    let wanted = text.trim();
    found
        .into_iter()
        .find(|(version, _)| version.to_string() == wanted)
        .map(|(_, folder)| folder)
        .ok_or_else(|| {
            anyhow!(
                "the data in {} belong to PostgreSQL {wanted}, which was not found: install it, name its folder of \
                 programs in POSDUIF_PG_BIN, or delete the data to begin anew",
                data.display()
            )
        })
}

/// Folders that may hold Postgres' programs, best first.
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

/// Major version of the `postgres` in a folder; `None` when there is none that runs.
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
    fn only_a_postgres_on_the_very_data_is_one_of_ours() {
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
    fn versions_are_read_from_what_packagers_print() {
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("postgres (PostgreSQL) 17\n"), Some(17));
        assert_eq!(parse_version("psql: error"), None);
    }

    #[test]
    fn names_elsewhere_differ_by_absolute_path_only() {
        let temporary = std::env::temp_dir();
        let name = name_elsewhere(&temporary.join("a")).unwrap();
        assert_eq!(name, name_elsewhere(&temporary.join(".").join("a")).unwrap());
        assert_ne!(name, name_elsewhere(&temporary.join("b")).unwrap());
        assert_eq!(name.len(), 16);
    }
}
