//! `posduif dev`: everything on this machine, in one process tree and one folder.
//!
//! Order of the start: data folder and its lock, Postgres and Redis, engine, demo tenant, `ready:`. The stop goes the
//! other way round, so that the engine can still publish and acknowledge its last batch.

mod signals;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio_postgres::types::Type;

use self::signals::StopSignals;
use super::Global;
use super::output::outln;
use crate::accounts::users::{self, NewUser, UserType};
use crate::config::{Config, Secret};
use crate::core::tenant::Tenant;
use crate::dev::{Durability, Servers, ServersOptions, env_file};
use crate::engine::{Engine, Role};
use crate::postgres::tenants;
use crate::postgres::{Database, sql};

/// The tenant that is there from the beginning.
pub(super) const DEMO_TENANT: &str = "demo";

/// Password of the demo users.
pub(super) const DEMO_PASSWORD: &str = "posduif-demo";

/// Users of the demo tenant.
const DEMO_USERS: [(&str, UserType); 4] = [
    ("bob", UserType::Web),
    ("jane", UserType::Web),
    ("joe", UserType::Mobile),
    ("sally", UserType::Mobile),
];

/// Arguments of `posduif dev`.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// TCP port of the API, 0 for any free one [default: `server.port`, which is 8080 unless configured]
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
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        if self.servers_only {
            return self.run_with_servers(global).await;
        }
        let mut config = global.load()?;
        crate::telemetry::init(&config.log)?;
        let mut signals = StopSignals::listen()?;
        let folder = self.data.clone().unwrap_or_else(|| PathBuf::from(".posduif"));
        let options = wanted_servers(&folder, Durability::Full);
        let mut servers = tokio::select! {
            servers = Servers::start(&folder, &options) => servers?,
            // What had started is dropped, and so killed.
            _ = signals.next() => return Ok(()),
        };
        configure(&mut config, &servers, self.port);
        let outcome = serve(config, &mut servers, &mut signals, global.json).await;
        let stopped = stop(&mut servers, &mut signals).await;
        outcome.and(stopped)
    }

    /// Runs a command while private servers run; for the project's own scripts. Ends the process with the command's
    /// exit code.
    async fn run_with_servers(self, global: &Global) -> Result<()> {
        crate::telemetry::init(&global.load()?.log)?;
        let Some((program, arguments)) = self.command.split_first() else {
            bail!("no command given: posduif dev --servers-only -- COMMAND");
        };
        let mut signals = StopSignals::listen()?;
        let folder = self.data.as_deref().unwrap_or(Path::new(""));
        let options = wanted_servers(folder, Durability::Disposable);
        let start = async {
            match &self.data {
                Some(folder) => Servers::start(folder, &options).await,
                None => Servers::start_temporary(&options).await,
            }
        };
        let mut servers = tokio::select! {
            servers = start => servers?,
            _ = signals.next() => bail!("interrupted while the servers started"),
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
            // All is stopped and removed by now; the caller of a wrapper wants the command's own code.
            Some(code) => std::process::exit(code),
            None => bail!("{} was ended by a signal", program.display()),
        }
    }
}

/// Servers named by the environment are used instead of private ones.
fn wanted_servers(folder: &Path, durability: Durability) -> ServersOptions {
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

/// Points the settings at the private servers and fills in what a development system need not be told.
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

/// Runs the engine until a signal comes, which is the good end, or something fails.
async fn serve(config: Config, servers: &mut Servers, signals: &mut StopSignals, json: bool) -> Result<()> {
    let folder = servers.folder().to_owned();
    let mut engine = tokio::select! {
        engine = Engine::start(config.clone(), Role::All) => engine?,
        error = servers.failed() => return Err(error),
        _ = signals.next() => return Ok(()),
    };
    let work = async {
        prepare_demo(&config).await?;
        announce(&config, &folder, engine.address().port(), json)?;
        engine.failed().await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        error = servers.failed() => Err(error),
        _ = signals.next() => {
            tracing::info!("stopping the engine, then Redis, then Postgres; once more to stop at once");
            Ok(())
        }
    };
    tokio::select! {
        () = engine.stop() => outcome,
        _ = signals.next() => outcome,
    }
}

/// Stops the servers, in order unless a second signal came or comes.
async fn stop(servers: &mut Servers, signals: &mut StopSignals) -> Result<()> {
    if signals.count() < 2 {
        tokio::select! {
            stopped = servers.stop() => return stopped,
            () = signals.second() => {}
        }
    }
    servers.stop_at_once().await?;
    bail!("stopped at once by a second signal; the next start recovers")
}

/// Makes the demo tenant and the demo users that are missing.
async fn prepare_demo(config: &Config) -> Result<()> {
    let database = Database::connect(&config.postgres).await?;
    tenants::create(&database, &config.replication, DEMO_TENANT)
        .await
        .context("cannot make the demo tenant")?;
    let tenant = Tenant::named(DEMO_TENANT).context("the demo tenant's name cannot name a tenant")?;
    let names: Vec<&str> = DEMO_USERS.iter().map(|(name, _)| *name).collect();
    let statement = sql!("admin/demo_users_missing", tenant);
    // Looked at name by name, because an earlier run may have been killed between two users.
    for row in database.query(&statement, &[(&names, Type::TEXT_ARRAY)]).await? {
        let missing: &str = row.try_get(0)?;
        for (name, user_type) in DEMO_USERS.into_iter().filter(|(name, _)| *name == missing) {
            let user = NewUser {
                username: name.to_owned(),
                user_type,
                email: None,
                password: Some(DEMO_PASSWORD.to_owned()),
            };
            users::create(&database, &config.auth, DEMO_TENANT, user)
                .await
                .with_context(|| format!("cannot make the demo user {name}"))?;
        }
    }
    Ok(())
}

/// Writes `dev.env` and tells the terminal that all is ready.
fn announce(config: &Config, folder: &Path, port: u16, json: bool) -> Result<()> {
    let url = format!("http://127.0.0.1:{port}");
    let env = folder.join("dev.env");
    let variables = [
        ("POSDUIF_URL", &*url),
        ("DATABASE_URL", config.postgres.url.expose()),
        ("REDIS_URL", config.redis.url.expose()),
    ];
    env_file::write(&env, &variables)?;
    if json {
        let _unread = outln!("{}", serde_json::json!({"ready": url, "env": env, "data": folder}));
    } else {
        let _unread = outln!("ready: {url}");
        let program = std::env::current_exe().map_or_else(|_| "posduif".to_owned(), |path| shown(&path));
        let _unread = outln!("{}", what_next(&program, &shown(&env)));
    }
    Ok(())
}

/// The path as somebody in the working folder would write it.
fn shown(path: &Path) -> String {
    let relative = std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(|rest| format!("./{}", rest.display())));
    relative.unwrap_or_else(|| path.display().to_string())
}

fn what_next(program: &str, env: &str) -> String {
    format!(
        r#"
Try, in another terminal:
  set -a; . '{env}'; set +a
  '{program}' demo    # the whole story, with a SQLite file as the phone
  curl -s "$POSDUIF_URL/api/auth/login" -H 'Content-Type: application/json' \
       -d '{{"username":"bob","password":"{DEMO_PASSWORD}"}}'
  psql "$DATABASE_URL" -c "INSERT INTO tenant_demo.messages (sender_id, recipient_id, content)
       SELECT b.id, j.id, 'from psql' FROM tenant_demo.users b, tenant_demo.users j
       WHERE b.username = 'bob' AND j.username = 'joe'"

Demo users, password {DEMO_PASSWORD}: bob, jane (web), joe, sally (mobile). Ctrl-C stops everything."#
    )
}

/// Runs the command to its end, passing signals on; a server that fails ends it.
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
        // The terminal has sent its Ctrl-C to the command as well, and twice would be once too often.
        let sent_by_terminal = signal == Signal::SIGINT && std::io::IsTerminal::is_terminal(&std::io::stdin());
        if !sent_by_terminal && let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended in this moment, which the next round sees.
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// All leaves of a settings tree that a line of an environment file can hold, as `POSDUIF__SECTION__KEY`.
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
    fn the_example_environment_shows_every_setting_with_its_default() {
        let shown: BTreeMap<String, String> = include_str!("../../.env.example")
            .lines()
            .filter_map(|line| line.strip_prefix('#')?.split_once('='))
            .filter(|(name, _)| name.starts_with("POSDUIF__"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(shown, leaves(&Config::default()));
    }

    #[test]
    fn the_example_environment_is_read_without_complaint() {
        let variables = include_str!("../../.env.example")
            .lines()
            .filter(|line| !line.starts_with("# "))
            .filter_map(|line| line.trim_start_matches('#').split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Config::from_sources("", variables).unwrap();
    }

    #[test]
    fn private_servers_and_the_demo_tenant_only_fill_what_is_not_set() {
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
