//! What tests share: a world for each test, made of a database, a slot and a Redis prefix of its own.

pub(crate) mod command;
pub(crate) mod dev;
pub(crate) mod folder;
pub(crate) mod held;
pub(crate) mod http;
pub(crate) mod office;
pub(crate) mod oracle;
pub(crate) mod owner;
pub(crate) mod provider;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod receiver;
pub(crate) mod running;
pub(crate) mod scrape;
pub(crate) mod servers;
pub(crate) mod slow;
pub(crate) mod socket;
pub(crate) mod spec;
pub(crate) mod stage;
pub(crate) mod story;
pub(crate) mod unreliable;

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use posduif::accounts::users::{self, NewUser, UserType};
use posduif::config::{Config, Rates, Secret};
use posduif::contract::control::Command as EngineCommand;
use posduif::contract::keys::Keys;
use posduif::core::position::StreamId;
use posduif::engine::{Engine, Role};
use posduif::net::postgres::Server;
use posduif::postgres::{Database, tenants};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

use self::http::Api;

/// How long a test waits for anything before it fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// The password of every user that tests make.
pub(crate) const PASSWORD: &str = "correct horse";

fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run ./scripts/test"))
}

/// A database, a slot, a publication and a Redis prefix of one's own. Dropping it removes them.
pub(crate) struct World {
    pub(crate) config: Config,
    name: String,
    admin_url: String,
    /// Not another one's view of a lane.
    is_whole: bool,
}

impl World {
    /// A new, empty world.
    pub(crate) async fn new() -> Self {
        Self::on(&server("DATABASE_URL"), &server("REDIS_URL")).await
    }

    /// A world on servers of the test's own.
    pub(crate) async fn on(database_url: &str, redis_url: &str) -> Self {
        let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..16]);
        let admin = connect(database_url).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (address, parameters) = match database_url.split_once('?') {
            Some((address, parameters)) => (address, format!("?{parameters}")),
            None => (database_url, String::new()),
        };
        let (base, _) = address.rsplit_once('/').unwrap();
        let mut config = Config::default();
        config.postgres.url = Secret::new(format!("{base}/{name}{parameters}"));
        config.postgres.pool_size = 4;
        config.redis.url = Secret::new(redis_url);
        config.redis.prefix = name.clone();
        config.replication.slot = name.clone();
        config.replication.publication = name.clone();
        // Its resyncs would come at any time; tests of it enable it.
        config.replication.catalog_interval_seconds = 0;
        config.server.port = 0;
        config.admin.listen = "127.0.0.1:0".into();
        config.server.default_tenant = "acme".into();
        // Who has gone is to be gone soon.
        config.presence.grace_seconds = 1;
        config.presence.tick_ms = 200;
        config.auth.jwt_secret = Secret::new("a secret that only this test world knows");
        // The cheapest hash that the bounds allow: tests log in often.
        config.auth.argon2_memory_kib = 8192;
        config.auth.argon2_iterations = 1;
        // All of them come from one address.
        let limits = &mut config.limits;
        limits.login_user_address_max = 1_000_000;
        limits.login_user_max = 1_000_000;
        limits.code_user_max = 1_000_000;
        limits.login_address_max = 1_000_000;
        limits.login_attempts_max = 1_000_000;
        limits.login_waiting_max = 100_000;
        limits.register_address_max = 1_000_000;
        limits.refresh_address_max = 1_000_000;
        limits.enrollment_address_max = 1_000_000;
        // Nor do they wait for each other.
        config.rates = Rates {
            address_per_second: 0,
            user_per_second: 0,
            device_per_second: 0,
            tenant_per_second: 0,
            ..Rates::default()
        };
        Self {
            config,
            name,
            admin_url: database_url.to_owned(),
            is_whole: true,
        }
    }

    /// The world as one of its lanes sees it.
    pub(crate) fn in_lane(&self, lane: &str) -> Self {
        Self {
            config: self.config.of_lanes().named(lane).unwrap().clone(),
            name: self.name.clone(),
            admin_url: self.admin_url.clone(),
            is_whole: false,
        }
    }

    /// Ordinary SQL as the engine does it.
    pub(crate) async fn database(&self) -> Database {
        Database::connect(&self.config.postgres).await.unwrap()
    }

    /// A connection of another client: `psql`, another application.
    pub(crate) async fn psql(&self) -> tokio_postgres::Client {
        connect(self.config.postgres.url.expose()).await
    }

    /// A connection to Redis.
    pub(crate) async fn redis(&self) -> MultiplexedConnection {
        posduif::redis::cluster::locate(&self.config.redis).await.unwrap();
        let client = posduif::net::redis::client(&self.config.redis).unwrap();
        // Whole streams are read at once, on a machine that is busy.
        let settings = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        let connecting = client.get_multiplexed_async_connection_with_config(&settings);
        connecting.await.unwrap()
    }

    /// The reply of Redis to a command of another client.
    pub(crate) async fn ask_redis<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.redis().await).await.unwrap()
    }

    /// Names of the streams that take no entries.
    pub(crate) async fn stopped_streams(&self) -> Vec<String> {
        self.ask_redis(&["HKEYS", &self.keys().stopped()]).await
    }

    /// Names of this world's keys.
    pub(crate) fn keys(&self) -> Keys {
        Keys::new(&self.config.redis.keys_prefix())
    }

    /// An engine within the test.
    pub(crate) async fn engine(&self, role: Role) -> RunningEngine {
        self.engine_with(role, self.config.clone()).await
    }

    /// An engine within the test that reaches the world by other settings, for example through a proxy.
    pub(crate) async fn engine_with(&self, role: Role, config: Config) -> RunningEngine {
        let engine = Engine::start(config, role).await.unwrap();
        RunningEngine { engine: Some(engine) }
    }

    /// An engine in a process of its own, which can be killed.
    pub(crate) async fn process(&self, role: &str) -> Process {
        self.process_with(role, &self.config, None).await
    }

    /// An engine in a process of its own that sees the world by other settings. Its log can go to a file.
    pub(crate) async fn process_with(&self, role: &str, config: &Config, log: Option<&Path>) -> Process {
        self.process_under(role, config, log, &[], None).await
    }

    /// The same with further variables of the environment, and with a configuration file.
    pub(crate) async fn process_under(
        &self,
        role: &str,
        config: &Config,
        log: Option<&Path>,
        variables: &[(&str, &str)],
        file: Option<&Path>,
    ) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_posduif"));
        let errors = log.map_or(Stdio::inherit(), |path| {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            file.unwrap().into()
        });
        command
            .args(["serve", "--role", role])
            .current_dir(std::env::temp_dir())
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .envs(command::variables(config))
            .env("POSDUIF__SERVER__PORT", "0")
            .env("POSDUIF__LOG__LEVEL", &config.log.level)
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .envs(variables.iter().copied());
        if let Some(file) = file {
            // The environment wins over the file.
            command.arg("--config").arg(file).env_remove("POSDUIF__LOG__LEVEL");
        }
        let child = command.spawn().unwrap();
        let mut process = Process {
            child,
            address: None,
            admin_address: None,
        };
        // One that only replicates may be struck by faults while it starts, too, and is used without its address.
        if role != "replicator" {
            process.announced().await;
        }
        process
    }

    /// A tenant; an engine or `migrate` must have made the control schema.
    pub(crate) async fn tenant(&self, name: &str) {
        let database = self.database().await;
        tenants::create(&database, &self.config.replication, name, posduif::core::lane::MAIN)
            .await
            .unwrap();
    }

    /// A user of a tenant with [`PASSWORD`].
    pub(crate) async fn user(&self, tenant: &str, username: &str, user_type: UserType) -> Uuid {
        let database = self.database().await;
        // As in the demo, bob is the admin.
        let role = if username == "bob" {
            users::Role::Admin
        } else {
            users::Role::Member
        };
        let user = NewUser {
            username: username.to_owned(),
            user_type,
            role,
            email: None,
            is_email_unverified: false,
            password: Some(PASSWORD.to_owned()),
        };
        let user = users::create(&database, &self.config.auth, tenant, user).await.unwrap();
        self.inbox(tenant, user).await;
        user
    }

    /// Lets the engine create the inbox of a user who has no device yet, so that a test can look into it.
    pub(crate) async fn inbox(&self, tenant: &str, user: Uuid) {
        let tenant = tenant.into();
        let create = EngineCommand::CreateInbox { tenant, user };
        tenants::send(&self.database().await, &create).await.unwrap();
    }

    /// Adds an event to the outbox of the tenant `acme`.
    pub(crate) async fn emit(&self, event: &str, recipients: &Value, data: &Value) {
        let insert =
            "INSERT INTO tenant_acme.outbox (event, recipients, data) VALUES ($1, $2::text::jsonb, $3::text::jsonb)";
        let (recipients, data) = (recipients.to_string(), data.to_string());
        let psql = self.psql().await;
        psql.execute(insert, &[&event, &recipients, &data]).await.unwrap();
    }

    /// Waits until all that is committed now has been published.
    pub(crate) async fn published(&self) {
        // A commit of the test's own, so that the test need not wait for the next heartbeat.
        let emit = "SELECT pg_logical_emit_message(true, 'test', '')::text";
        let row = self.psql().await.query_one(emit, &[]).await.unwrap();
        let target: postgres_types::PgLsn = row.get::<_, String>(0).parse().unwrap();
        let key = self.keys().checkpoint();
        let redis = self.redis().await;
        eventually("the checkpoint reaches the end of the log", || {
            let (mut redis, key) = (redis.clone(), key.clone());
            async move {
                let end: Option<String> = redis::cmd("HGET")
                    .arg(&key)
                    .arg("end_lsn")
                    .query_async(&mut redis)
                    .await
                    .unwrap();
                end.and_then(|end| end.parse::<postgres_types::PgLsn>().ok())
                    .filter(|end| *end > target)
            }
        })
        .await;
    }

    /// All fields of the checkpoint.
    pub(crate) async fn checkpoint(&self) -> HashMap<String, String> {
        let mut redis = self.redis().await;
        let key = self.keys().checkpoint();
        redis::cmd("HGETALL").arg(key).query_async(&mut redis).await.unwrap()
    }

    /// All entries of a stream.
    pub(crate) async fn stream(&self, key: &str) -> Vec<Entry> {
        Self::range(&mut self.redis().await, key, StreamId::ZERO, usize::MAX >> 1).await
    }

    /// Entries of a stream from an ID on, up to so many.
    pub(crate) async fn range(
        redis: &mut MultiplexedConnection,
        key: &str,
        from: StreamId,
        count: usize,
    ) -> Vec<Entry> {
        let reply: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
            .arg(key)
            .arg(from.to_string())
            .arg("+")
            .arg("COUNT")
            .arg(count)
            .query_async(redis)
            .await
            .unwrap();
        reply
            .ids
            .into_iter()
            .map(|raw| {
                let fields = raw.map.into_iter();
                let fields = fields.map(|(name, value)| (name, redis::from_redis_value(value).unwrap()));
                Entry::new(raw.id.parse().unwrap(), fields.collect())
            })
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.is_whole {
            return;
        }
        let (url, name, redis) = (self.admin_url.clone(), self.name.clone(), self.config.redis.clone());
        // A test may end anywhere, also by a panic inside a runtime, so the clean-up brings its own.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let clean = async {
                    let admin = try_connect(&url).await?;
                    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
                    let drop_slot = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                                     WHERE database = $1 AND NOT active";
                    for _ in 0..50 {
                        admin.execute(end, &[&name]).await.ok()?;
                        let _ = admin.execute(drop_slot, &[&name]).await;
                        if admin
                            .batch_execute(&format!("DROP DATABASE IF EXISTS {name}"))
                            .await
                            .is_ok()
                        {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    let client = posduif::net::redis::client(&redis).ok()?;
                    let mut redis = client.get_multiplexed_async_connection().await.ok()?;
                    let keys: Vec<String> = redis::cmd("KEYS")
                        .arg(format!("{name}:*"))
                        .query_async(&mut redis)
                        .await
                        .ok()?;
                    if !keys.is_empty() {
                        let _: i64 = redis::cmd("UNLINK").arg(keys).query_async(&mut redis).await.ok()?;
                    }
                    Some(())
                };
                let _ = tokio::time::timeout(Duration::from_secs(5), clean).await;
            });
        });
        let _ = cleaning.join();
    }
}

/// An entry of a stream with its fields; where it has a `head`, the parts of that under the names of docs/redis.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: StreamId,
    pub(crate) fields: HashMap<String, String>,
}

impl Entry {
    pub(crate) fn new(id: StreamId, mut fields: HashMap<String, String>) -> Self {
        if let Some(head) = fields.remove("head") {
            let head: Vec<serde_json::Value> = serde_json::from_str(&head).unwrap();
            let text = |value: &serde_json::Value| match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let names = ["op", "event", "table", "ts", "xid"].map(str::to_owned);
            fields.extend(names.into_iter().zip(head.iter().map(text)));
            let members = head.get(5).and_then(serde_json::Value::as_object);
            fields.extend(
                members
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.clone(), text(value))),
            );
        }
        Self { id, fields }
    }

    /// A field, empty when absent.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// A field that holds JSON, null when absent.
    pub(crate) fn json(&self, name: &str) -> serde_json::Value {
        self.fields
            .get(name)
            .map_or(serde_json::Value::Null, |json| serde_json::from_str(json).unwrap())
    }
}

/// An engine within the test; dropping it without [`RunningEngine::stop`] abandons its tasks.
pub(crate) struct RunningEngine {
    engine: Option<Engine>,
}

impl RunningEngine {
    /// A client of its API.
    pub(crate) fn api(&self) -> Api {
        let engine = self.engine.as_ref().unwrap();
        let admin = engine.admin_address().map(|address| address.to_string());
        Api::new(&engine.address().to_string()).with_admin(admin)
    }

    /// Stops it as Ctrl-C does.
    pub(crate) async fn stop(mut self) {
        tokio::time::timeout(TIMEOUT, self.engine.take().unwrap().stop())
            .await
            .unwrap();
    }
}

/// An engine in a process of its own.
pub(crate) struct Process {
    child: Child,
    address: Option<String>,
    admin_address: Option<String>,
}

impl Process {
    /// A client of its API.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.address.as_ref().unwrap()).with_admin(self.admin_address.clone())
    }

    /// Waits until it listens, and returns its address.
    pub(crate) async fn announced(&mut self) -> Api {
        if let Some(output) = self.child.stdout.take() {
            let mut lines = BufReader::new(output).lines();
            let mut address = async |prefix: &str| {
                let line = tokio::time::timeout(TIMEOUT, lines.next_line()).await.unwrap();
                let line = line.unwrap().unwrap();
                line.strip_prefix(prefix).unwrap().to_owned()
            };
            self.address = Some(address("ready: http://").await);
            self.admin_address = Some(address("admin: http://").await);
        }
        self.api()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Ends it as a power cut would.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it by SIGTERM and gives its exit code.
    pub(crate) async fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        tokio::time::timeout(TIMEOUT, self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .code()
    }

    /// The most memory that it has used so far, in KiB.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    /// The memory that it uses now, in KiB.
    pub(crate) fn resident_memory_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    fn memory_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Sends a signal to a process that the test has started.
pub(crate) fn send_signal(pid: u32, signal: Signal) {
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
}

/// Sends a signal to a process and to its children, as Postgres' sessions are.
pub(crate) fn send_signal_to_family(pid: u32, signal: Signal) {
    send_signal(pid, signal);
    let parent = format!(" {pid} ");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may contain anything; behind it come the state and the parent.
        let rest = stat.rsplit(')').next().unwrap_or_default();
        if rest.get(2..).is_some_and(|rest| rest.starts_with(&parent)) {
            send_signal(child, signal);
        }
    }
}

pub(crate) async fn try_connect(url: &str) -> Option<tokio_postgres::Client> {
    let server = Server::parse(url).ok()?;
    let (client, connection) = server.config().connect(server.clone()).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    try_connect(url)
        .await
        .unwrap_or_else(|| panic!("cannot connect to Postgres"))
}

/// Polls until there is a result; panics with `what` after the timeout.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl FnMut() -> F) -> T {
    eventually_within(TIMEOUT, what, ask).await
}

/// [`eventually`] with another timeout.
pub(crate) async fn eventually_within<T, F: Future<Output = Option<T>>>(
    timeout: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < timeout, "waited {timeout:?} until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
