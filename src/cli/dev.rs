//! `posduif dev`: a complete system on this machine, in one process tree and one folder.
//!
//! Start order: data folder and its lock, Postgres and Redis, engine, demo tenant, `ready:`. The shutdown order is the
//! reverse, so that the engine can publish and acknowledge its last batch.

mod signals;

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::process::Command;
use tokio_postgres::types::Type;

use self::signals::StopSignals;
use super::Global;
use super::output::{self, Render, Text, outln};
use crate::accounts::users::{self, NewUser, UserType};
use crate::config::{Admin, Config, Secret};
use crate::core::tenant::Tenant;
use crate::dev::{Durability, Servers, ServersOptions, env_file};
use crate::engine::{Engine, Role};
use crate::postgres::tenants;
use crate::postgres::{Database, sql};

pub(super) const DEMO_TENANT: &str = "demo";

pub(super) const DEMO_PASSWORD: &str = "posduif-demo";

/// Users of the demo tenant.
const DEMO_USERS: [(&str, UserType, users::Role); 4] = [
    ("bob", UserType::Web, users::Role::Admin),
    ("jane", UserType::Web, users::Role::Member),
    ("joe", UserType::Mobile, users::Role::Member),
    ("sally", UserType::Mobile, users::Role::Member),
];

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// TCP port of the API; 0 for any free port [default: `server.port`]. The admin listener takes the next free one, unless
    /// `admin.listen` is set
    #[arg(long)]
    port: Option<u16>,
    /// Folder for the data of Postgres and Redis [default: .posduif]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Start no engine: run a command with DATABASE_URL and REDIS_URL of private servers, then stop them
    #[arg(long, hide = true, requires = "command")]
    servers_only: bool,
    /// The command for --servers-only
    #[arg(last = true, hide = true, requires = "servers_only", value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Dev {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        if self.servers_only {
            return self.run_with_servers(global).await;
        }
        let mut config = global.load()?;
        crate::telemetry::init(&config.log)?;
        let mut signals = StopSignals::listen()?;
        let folder = self.data.clone().unwrap_or_else(|| PathBuf::from(".posduif"));
        let options = private_servers(&folder, Durability::Full);
        let mut servers = tokio::select! {
            servers = Servers::start(&folder, &options) => servers?,
            // Started servers are killed when dropped.
            _ = signals.next() => return Ok(()),
        };
        configure(&mut config, &servers, self.port);
        let outcome = serve(config, &mut servers, &mut signals, global).await;
        let stopped = stop(&mut servers, &mut signals).await;
        outcome.and(stopped)
    }

    /// Runs a command while private servers run, for scripts and tests. Exits with the exit code of the command.
    async fn run_with_servers(self, global: &Global) -> Result<()> {
        crate::telemetry::init(&global.load()?.log)?;
        let Some((program, arguments)) = self.command.split_first() else {
            bail!("the command is missing: posduif dev --servers-only -- COMMAND");
        };
        let mut signals = StopSignals::listen()?;
        let folder = self.data.as_deref().unwrap_or(Path::new(""));
        let options = private_servers(folder, Durability::Disposable);
        let start = async {
            match &self.data {
                Some(folder) => Servers::start(folder, &options).await,
                None => Servers::start_temporary(&options).await,
            }
        };
        let mut servers = tokio::select! {
            servers = start => servers?,
            _ = signals.next() => bail!("interrupted during the start of the servers"),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(postgres) = servers.postgres() {
            command.env("DATABASE_URL", postgres.url());
        }
        if let Some(redis) = servers.redis() {
            command.env("REDIS_URL", redis.url());
        }
        let ended = run_command(command, &mut servers, &mut signals).await;
        stop(&mut servers, &mut signals).await?;
        match ended?.code() {
            Some(0) => Ok(()),
            // Everything is stopped and removed; the caller expects the exit code of the command.
            Some(code) => std::process::exit(code),
            None => bail!("{} was ended by a signal", program.display()),
        }
    }
}

/// The private servers to start: those that the environment does not name.
fn private_servers(folder: &Path, durability: Durability) -> ServersOptions {
    let named = |names: [&str; 2]| {
        names
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .any(|url| !url.is_empty() && !Servers::owns(folder, &url))
    };
    ServersOptions {
        postgres: !named(["DATABASE_URL", "POSDUIF__POSTGRES__URL"]),
        redis: !named(["REDIS_URL", "POSDUIF__REDIS__URL"]),
        durability,
    }
}

/// Points the settings at the private servers and sets defaults for development.
fn configure(config: &mut Config, servers: &Servers, port: Option<u16>) {
    if let Some(postgres) = servers.postgres() {
        config.postgres.url = Secret::new(postgres.url());
    }
    if let Some(redis) = servers.redis() {
        config.redis.url = Secret::new(redis.url());
    }
    if config.auth.jwt_secret.expose().is_empty() {
        config.auth.jwt_secret = servers.jwt_secret().clone();
    }
    if config.server.default_tenant.is_empty() {
        config.server.default_tenant = DEMO_TENANT.to_owned();
    }
    if let Some(port) = port {
        config.server.port = port;
    }
}

/// Runs the engine until a signal arrives or a part fails.
async fn serve(mut config: Config, servers: &mut Servers, signals: &mut StopSignals, global: &Global) -> Result<()> {
    let folder = servers.folder().to_owned();
    if config.admin == Admin::default() {
        config.admin.listen = admin_address(config.server.port).to_string();
    }
    let mut engine = tokio::select! {
        engine = Engine::start(config.clone(), Role::All) => engine?,
        error = servers.failed() => return Err(error),
        _ = signals.next() => return Ok(()),
    };
    let work = async {
        prepare_demo(&config).await?;
        announce(&config, &folder, &engine, global)?;
        engine.failed().await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        error = servers.failed() => Err(error),
        _ = signals.next() => {
            tracing::info!("stopping the engine, Redis and Postgres; a second signal stops them at once");
            Ok(())
        }
    };
    tokio::select! {
        () = engine.stop() => outcome,
        _ = signals.next() => outcome,
    }
}

/// Ports that are tried for the admin listener.
const PORTS_TRIED: usize = 100;

/// The first free port of the loopback address after the API's; port 0 stands for any.
fn admin_address(port: u16) -> SocketAddr {
    let following = (port != 0).then(|| port.saturating_add(1)..=u16::MAX);
    following
        .into_iter()
        .flatten()
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .take(PORTS_TRIED)
        .find(|address| TcpListener::bind(address).is_ok())
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// Stops the servers, in order unless there is a second signal.
async fn stop(servers: &mut Servers, signals: &mut StopSignals) -> Result<()> {
    if signals.count() < 2 {
        tokio::select! {
            stopped = servers.stop() => return stopped,
            () = signals.second() => {}
        }
    }
    servers.stop_at_once().await?;
    bail!("stopped at once by a second signal; the next start performs recovery")
}

/// Creates the demo tenant and missing demo users.
async fn prepare_demo(config: &Config) -> Result<()> {
    let database = Database::connect(&config.postgres).await?;
    tenants::create(&database, &config.replication, DEMO_TENANT)
        .await
        .context("cannot create the demo tenant")?;
    let tenant = Tenant::named(DEMO_TENANT).context("invalid name of the demo tenant")?;
    let names: Vec<&str> = DEMO_USERS.iter().map(|(name, ..)| *name).collect();
    let statement = &sql!("admin/demo_users_missing", tenant);
    // Checked one by one: an earlier run may have been killed between two users.
    for row in database.query(statement, &[(&names, Type::TEXT_ARRAY)]).await? {
        let missing: &str = row.try_get(0)?;
        for (name, user_type, role) in DEMO_USERS.into_iter().filter(|(name, ..)| *name == missing) {
            let user = NewUser {
                username: name.to_owned(),
                user_type,
                role,
                email: None,
                password: Some(DEMO_PASSWORD.to_owned()),
            };
            users::create(&database, &config.auth, DEMO_TENANT, user)
                .await
                .with_context(|| format!("cannot create the demo user {name}"))?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Ready {
    ready: String,
    admin: Option<String>,
    env: PathBuf,
    data: PathBuf,
}

impl Render for Ready {
    fn text(&self, out: &mut Text) {
        outln!(out, "ready: {}", self.ready);
        if let Some(url) = &self.admin {
            outln!(out, "admin: {url}");
        }
        let program = std::env::current_exe().map_or_else(|_| "posduif".to_owned(), |path| relative(&path));
        out.line(&next_steps(&program, &relative(&self.env)));
    }
}

/// Writes `dev.env` and prints that the system is ready.
fn announce(config: &Config, folder: &Path, engine: &Engine, global: &Global) -> Result<()> {
    let ready = Ready {
        ready: format!("http://127.0.0.1:{}", engine.address().port()),
        admin: engine.admin_address().map(|address| format!("http://{address}")),
        env: folder.join("dev.env"),
        data: folder.to_owned(),
    };
    let variables = [
        ("POSDUIF_URL", &*ready.ready),
        ("POSDUIF_ADMIN_URL", ready.admin.as_deref().unwrap_or_default()),
        ("DATABASE_URL", config.postgres.url.expose()),
        ("REDIS_URL", config.redis.url.expose()),
    ];
    env_file::write(&ready.env, &variables)?;
    // The system runs even if its standard output is closed.
    output::write(&output::frame(global, &ready)?).ok();
    Ok(())
}

/// The path, relative to the working folder if it is inside.
fn relative(path: &Path) -> String {
    let relative = std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(|rest| format!("./{}", rest.display())));
    relative.unwrap_or_else(|| path.display().to_string())
}

#[cfg(feature = "demo")]
const DEMO_STEP: &str = "  '{program}' demo    # a scripted conversation, with a SQLite file as the phone\n";
#[cfg(not(feature = "demo"))]
const DEMO_STEP: &str = "";

fn next_steps(program: &str, env: &str) -> String {
    let demo = DEMO_STEP.replace("{program}", program);
    format!(
        r#"
Try, in another terminal:
  set -a; . '{env}'; set +a
{demo}  curl -s "$POSDUIF_URL/api/auth/login" -H 'Content-Type: application/json' \
       -d '{{"username":"bob","password":"{DEMO_PASSWORD}"}}'
  psql "$DATABASE_URL" -c "INSERT INTO tenant_demo.messages (sender_id, recipient_id, content)
       SELECT b.id, j.id, 'from psql' FROM tenant_demo.users b, tenant_demo.users j
       WHERE b.username = 'bob' AND j.username = 'joe'"

Demo users, password {DEMO_PASSWORD}: bob, jane (web), joe, sally (mobile). Ctrl-C stops everything."#
    )
}

/// Runs the command to its end and forwards signals. Fails if a server fails.
async fn run_command(mut command: Command, servers: &mut Servers, signals: &mut StopSignals) -> Result<ExitStatus> {
    let program = command.as_std().get_program().to_owned();
    let mut child = command
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    loop {
        let signal = tokio::select! {
            status = child.wait() => return status.context("waiting for the command"),
            error = servers.failed() => return Err(error),
            signal = signals.next() => signal,
        };
        // The terminal has sent its Ctrl-C to the command as well.
        let sent_by_terminal = signal == Signal::SIGINT && std::io::IsTerminal::is_terminal(&std::io::stdin());
        if !sent_by_terminal && let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // The command may have just ended.
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// All scalar settings except secrets, as `POSDUIF__SECTION__KEY`.
    fn leaves(config: &Config) -> BTreeMap<String, String> {
        let tree = serde_json::to_value(config).unwrap();
        let mut found = BTreeMap::new();
        for (section, keys) in tree.as_object().unwrap() {
            for (key, value) in keys.as_object().into_iter().flatten() {
                let secret = matches!(key.as_str(), "url" | "jwt_secret");
                if !secret && !value.is_object() {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    found.insert(format!("POSDUIF__{section}__{key}").to_uppercase(), text);
                }
            }
        }
        found
    }

    #[test]
    fn example_environment_has_every_setting_with_its_default() {
        let shown: BTreeMap<String, String> = include_str!("../../.env.example")
            .lines()
            .filter_map(|line| line.strip_prefix('#')?.split_once('='))
            .filter(|(name, _)| name.starts_with("POSDUIF__"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(shown, leaves(&Config::default()));
    }

    #[test]
    fn example_environment_is_valid() {
        let variables = include_str!("../../.env.example")
            .lines()
            .filter(|line| !line.starts_with("# "))
            .filter_map(|line| line.trim_start_matches('#').split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Config::from_sources("", variables).unwrap();
    }

    #[test]
    fn configure_keeps_settings_that_are_set() {
        let folder = tempfolder();
        let mut config = Config::default();
        config.server.default_tenant = "acme".into();
        config.auth.jwt_secret = Secret::new("mine");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let none = ServersOptions {
            postgres: false,
            redis: false,
            durability: Durability::Disposable,
        };
        let servers = runtime.block_on(Servers::start(&folder, &none)).unwrap();
        let before = config.clone();
        configure(&mut config, &servers, None);
        assert_eq!(config, before);
        configure(&mut config, &servers, Some(0));
        assert_eq!(config.server.port, 0);
        drop(servers);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    fn tempfolder() -> PathBuf {
        std::env::temp_dir().join(format!("posduif-dev-test-{}", std::process::id()))
    }
}
