//! What the benchmarks share: servers of their own with a tenant, an engine as a process, and what the kernel says of it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use posduif::accounts::users::{self, NewUser, UserType};
use posduif::config::{Config, Secret};
use posduif::contract::keys::Keys;
use posduif::dev::{PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions};
use posduif::postgres::{Database, migrations, tenants};
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_postgres::NoTls;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

/// The tenant.
pub(crate) const TENANT: &str = "bench";

/// Of every user who logs in.
pub(crate) const PASSWORD: &str = "correct horse";

/// Postgres and Redis that nobody else uses, with a tenant and nobody in it.
pub(crate) struct Servers {
    pub(crate) postgres: PrivatePostgres,
    pub(crate) redis: PrivateRedis,
    pub(crate) config: Config,
    // Last, so that it is removed last.
    pub(crate) folder: Folder,
}

impl Servers {
    #[allow(dead_code, reason = "one benchmark needs settings of its own")]
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more settings of Postgres.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let mut options = PostgresOptions::new()
            .unwrap()
            .setting("shared_buffers", "512MB")
            .setting("max_wal_size", "32GB")
            .setting("checkpoint_timeout", "1h")
            .setting("unix_socket_directories", folder.0.to_str().unwrap());
        for (name, value) in settings {
            options = options.setting(name, value);
        }
        let postgres = PrivatePostgres::start(&folder.0.join("postgres"), options)
            .await
            .unwrap();
        // A rewrite of the append-only file would fall into some rounds and not into others.
        let options = RedisOptions::new().unwrap().setting("auto-aof-rewrite-percentage", "0");
        let redis = PrivateRedis::start(&folder.0.join("redis"), options).await.unwrap();
        let mut config = Config::default();
        config.postgres.url = Secret::new(postgres.url());
        config.redis.url = Secret::new(redis.url());
        let database = Database::connect(&config.postgres).await.unwrap();
        migrations::up(&database, &config.replication).await.unwrap();
        tenants::create(&database, &config.replication, TENANT, posduif::core::lane::MAIN)
            .await
            .unwrap();
        Self {
            postgres,
            redis,
            config,
            folder,
        }
    }

    /// An ordinary connection to Postgres.
    pub(crate) async fn connect_sql(&self) -> tokio_postgres::Client {
        let (sql, connection) = tokio_postgres::connect(&self.postgres.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        sql
    }

    /// A user who can log in.
    #[allow(dead_code, reason = "not every benchmark has somebody log in")]
    pub(crate) async fn user(&self, name: &str, user_type: UserType) -> Uuid {
        let database = Database::connect(&self.config.postgres).await.unwrap();
        let user = NewUser {
            username: name.into(),
            user_type,
            // Enrolls the devices of the others.
            role: users::Role::Admin,
            email: None,
            is_email_unverified: false,
            password: Some(PASSWORD.into()),
        };
        users::create(&database, &self.config.auth, TENANT, user).await.unwrap()
    }

    /// A connection to Redis that waits for a busy machine.
    #[allow(dead_code, reason = "not every benchmark looks into Redis")]
    pub(crate) async fn connect_redis(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.redis.url()).unwrap();
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(60)))
            .set_response_timeout(Some(Duration::from_secs(60)));
        let connecting = client.get_multiplexed_async_connection_with_config(&patient);
        connecting.await.unwrap()
    }

    /// Waits until all that is committed now has been published.
    #[allow(dead_code, reason = "not every benchmark waits for it")]
    pub(crate) async fn published(&self, sql: &tokio_postgres::Client) {
        let emit = "SELECT pg_logical_emit_message(true, 'bench', '')";
        let target: PgLsn = sql.query_one(emit, &[]).await.unwrap().get(0);
        let mut redis = self.connect_redis().await;
        let key = Keys::new(&self.config.redis.prefix).checkpoint();
        loop {
            let end: Option<String> = redis::cmd("HGET")
                .arg(&key)
                .arg("end_lsn")
                .query_async(&mut redis)
                .await
                .unwrap();
            if end.is_some_and(|end| end.parse::<PgLsn>().unwrap() > target) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An engine in all roles under these settings beside the usual ones, and where it serves.
    #[allow(dead_code, reason = "one benchmark asks nothing over HTTP")]
    pub(crate) async fn serve(&self, settings: &[(&str, String)]) -> (Child, String) {
        let mut engine = self
            .engine("all")
            .env("POSDUIF__AUTH__JWT_SECRET", "a secret that only this run knows")
            .envs(settings.iter().map(|(key, value)| (key, value)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(engine.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("the engine starts");
        let address = line.strip_prefix("ready: http://").unwrap().to_owned();
        (engine, address)
    }

    /// How an engine in this role is started; its log goes to a file in the folder.
    pub(crate) fn engine(&self, role: &str) -> Command {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.0.join("engine.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_posduif"));
        command
            .args(["serve", "--role", role])
            .current_dir(&self.folder.0)
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("POSDUIF__POSTGRES__URL", self.config.postgres.url.expose())
            .env("POSDUIF__REDIS__URL", self.config.redis.url.expose())
            .env("POSDUIF__SERVER__PORT", "0")
            .env("POSDUIF__ADMIN__LISTEN", "127.0.0.1:0")
            .env("POSDUIF__RATES__ADDRESS_PER_SECOND", "0")
            .env("POSDUIF__RATES__USER_PER_SECOND", "0")
            .env("POSDUIF__RATES__DEVICE_PER_SECOND", "0")
            .env("POSDUIF__RATES__TENANT_PER_SECOND", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .kill_on_drop(true);
        command
    }
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Process {
    pub(crate) cpu: Duration,
    pub(crate) peak_kib: u64,
    pub(crate) resident_kib: u64,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Self {
        let mut process = Self::default();
        process.look(pid);
        process
    }

    /// Looks again; keeps what was seen when the process has gone.
    pub(crate) fn look(&mut self, pid: u32) {
        if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            let fields: Vec<&str> = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace()
                .collect();
            let ticks: u64 = [11, 12]
                .iter()
                .map(|index| fields[*index].parse::<u64>().unwrap())
                .sum();
            // USER_HZ is 100 on every Linux that matters.
            self.cpu = Duration::from_millis(ticks * 10);
        }
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
            let kib = |name: &str| -> Option<u64> {
                let text = status.lines().find_map(|line| line.strip_prefix(name))?;
                text.trim().trim_end_matches(" kB").parse().ok()
            };
            self.peak_kib = kib("VmHWM:").unwrap_or(self.peak_kib);
            self.resident_kib = kib("VmRSS:").unwrap_or(self.resident_kib);
        }
    }
}

pub(crate) async fn stop(engine: &mut Child) {
    engine.kill().await.unwrap();
}

/// A folder that goes with the run.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    fn new() -> Self {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let path = std::env::temp_dir().join(format!("posduif-bench-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o711).create(&path).unwrap();
        // Postgres, run by another user, makes its socket here.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o1777)).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The median of some values, and their range.
#[allow(dead_code, reason = "not every benchmark repeats its runs")]
pub(crate) fn spread(values: &mut [f64], decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    match &*values {
        [] => "-".into(),
        [first, .., last] => format!(
            "{:.decimals$} ({first:.decimals$} to {last:.decimals$})",
            values[values.len() / 2]
        ),
        [one] => format!("{one:.decimals$}"),
    }
}
