//! `posduif dev`: a complete system on this machine, in one process tree and one folder.
//!
//! Start order: data folder and its lock, Postgres and Redis, engine, demo tenant and its server, `ready:`. The shutdown order
//! is the reverse, so that the engine can publish and acknowledge its last batch. The engine is a child process: an engine
//! that is killed starts again at the same addresses.

mod settings;
mod signals;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::signals::StopSignals;
use super::Global;
use super::output::{self, Render, Text, outln};
use crate::config::{Config, Secret};
use crate::dev::demo::control::{self, Control};
use crate::dev::demo::service::{self, Parts};
use crate::dev::demo::{PASSWORD, data};
use crate::dev::engine::{self, EngineEnded, EngineProcess};
use crate::dev::state::StateSender;
use crate::dev::{Durability, Servers, ServersOptions, env_file};
use crate::postgres::Database;

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
        let folder = self.data.clone().unwrap_or_else(|| PathBuf::from(".posduif"));
        let global = &settings::without_own_file(global, &folder);
        let mut config = global.load()?;
        crate::telemetry::init(&config.log)?;
        let mut signals = StopSignals::listen()?;
        let options = private_servers(&folder, Durability::Full);
        let mut servers = tokio::select! {
            servers = Servers::start(&folder, &options) => servers?,
            // Started servers are killed when dropped.
            _ = signals.next() => return Ok(()),
        };
        settings::configure(&mut config, &servers, self.port);
        let outcome = Box::pin(serve(config, &mut servers, &mut signals, global)).await;
        let stopped = stop(&mut servers, &mut signals).await;
        if let Err(error) = &outcome
            && let Some(EngineEnded(code)) = error.downcast_ref()
        {
            // The engine has printed why.
            std::process::exit(*code);
        }
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

/// Runs the engine and the demo's server until a signal arrives or a part fails.
async fn serve(mut config: Config, servers: &mut Servers, signals: &mut StopSignals, global: &Global) -> Result<()> {
    let demo_listener = settings::set_addresses(&mut config)?;
    let demo_port = demo_listener.local_addr()?.port();
    settings::allow_demo(&mut config, demo_port);
    settings::open_console(&mut config)?;
    let prepared = async {
        let database = Database::connect(&config.postgres).await?;
        let has_tables = data::add_routing(&mut config, &database).await?;
        anyhow::Ok((database, has_tables))
    };
    let (database, has_tables) = tokio::select! {
        prepared = prepared => prepared?,
        error = servers.failed() => return Err(error),
        _ = signals.next() => return Ok(()),
    };
    let file = settings::write_file(servers.folder(), global.file().as_deref(), &config)?;
    let arguments = vec!["--config".into(), file.clone().into_os_string()];
    let mut engine = EngineProcess::new(arguments, settings::environment(&config));
    let mut redis_state = StateSender::new();
    if let Some(redis) = servers.redis() {
        redis_state.up(redis.pid());
    }
    let (control, mut requests) = Control::new(engine.state(), redis_state.subscribe());
    let stop_demo = CancellationToken::new();
    let work = {
        let (config, file, stop) = (&config, &file, stop_demo.clone());
        let stored = Data {
            folder: servers.folder().to_owned(),
            jwt_secret: servers.jwt_secret().clone(),
        };
        let private_postgres = servers
            .postgres()
            .map(|postgres| (postgres.port(), postgres.database().to_owned()));
        let has_private_redis = servers.redis().is_some();
        async move {
            engine::listening(control.engine.clone()).await?;
            let parts = Parts {
                port: demo_port,
                engine: settings::engine_url(config),
                admin: settings::admin_listener(config),
                prepared: data::prepare(&database, config, has_tables).await?,
                database,
                private_postgres,
                has_private_redis,
                control,
                stop: stop.clone(),
            };
            let server = service::server(demo_listener, parts).await?;
            announce(config, file, stored, demo_port, global)?;
            anyhow::Ok(AbortOnDropHandle::new(tokio::spawn(server.run(stop))))
        }
    };
    let mut work = std::pin::pin!(work);
    let mut demo = None;
    let outcome = loop {
        tokio::select! {
            started = &mut work, if demo.is_none() => match started {
                Ok(started) => demo = Some(started),
                Err(error) => break Err(error),
            },
            ended = engine.run() => break ended,
            error = servers.failed() => break Err(error),
            Some(request) = requests.recv() => {
                let answered = tokio::select! {
                    answered = answer(request, &engine, servers, &mut redis_state) => answered,
                    _ = signals.next() => break Ok(()),
                };
                if let Err(error) = answered {
                    break Err(error);
                }
            }
            _ = signals.next() => {
                tracing::info!("stopping the engine, Redis and Postgres; a second signal stops them at once");
                break Ok(());
            }
        }
    };
    stop_demo.cancel();
    let stopped = tokio::select! {
        stopped = engine.stop() => stopped,
        _ = signals.next() => engine.stop_at_once().await,
    };
    outcome.and(stopped)
}

/// Does what the demo's page requests.
async fn answer(
    request: control::Request,
    engine: &EngineProcess,
    servers: &mut Servers,
    redis_state: &mut StateSender,
) -> Result<()> {
    // The page may have gone.
    match request {
        control::Request::KillEngine(result) => drop(result.send(engine.kill())),
        control::Request::RestartRedis(result) => {
            let started = Instant::now();
            if let Some(redis) = servers.redis_mut() {
                redis_state.down();
                redis.stop().await?;
                redis.restart().await?;
                redis_state.up(redis.pid());
            }
            let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            result.send(took).ok();
        }
    }
    Ok(())
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

#[derive(Serialize)]
struct Ready {
    ready: String,
    admin: Option<String>,
    demo: String,
    env: PathBuf,
    data: PathBuf,
}

impl Render for Ready {
    fn text(&self, out: &mut Text) {
        outln!(out, "ready: {}", self.ready);
        if let Some(url) = &self.admin {
            outln!(out, "admin: {url}");
        }
        outln!(out, "demo:  {}", self.demo);
        let program = std::env::current_exe().map_or_else(|_| "posduif".to_owned(), |path| relative(&path));
        out.line(&next_steps(&self.demo, &program, &relative(&self.env)));
    }
}

/// What the data folder has.
struct Data {
    folder: PathBuf,
    jwt_secret: Secret,
}

/// Writes `dev.env` and prints that the system is ready.
fn announce(config: &Config, file: &Path, stored: Data, demo_port: u16, global: &Global) -> Result<()> {
    let Data { folder, jwt_secret } = stored;
    let ready = Ready {
        ready: settings::engine_url(config),
        admin: config.admin.url(),
        demo: settings::demo_url(demo_port),
        env: folder.join("dev.env"),
        data: folder,
    };
    let file = file.to_string_lossy();
    let mut variables = vec![
        ("POSDUIF_URL", &*ready.ready),
        ("POSDUIF_ADMIN_URL", ready.admin.as_deref().unwrap_or_default()),
        ("POSDUIF_DEMO_URL", &ready.demo),
        ("POSDUIF_CONFIG", &file),
        ("DATABASE_URL", config.postgres.url.expose()),
        ("REDIS_URL", config.redis.url.expose()),
    ];
    // Another one is in the configuration or in the environment of that shell, too.
    if config.auth.jwt_secret == jwt_secret {
        variables.push(("POSDUIF__AUTH__JWT_SECRET", jwt_secret.expose()));
    }
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

fn next_steps(url: &str, program: &str, env: &str) -> String {
    let demo = DEMO_STEP.replace("{program}", program);
    format!(
        r#"
Open {url} in a browser: two clients side by side, and what you do to them.

Or try, in another terminal:
  set -a; . '{env}'; set +a
{demo}  curl -s "$POSDUIF_URL/api/auth/login" -H 'Content-Type: application/json' \
       -d '{{"username":"bob","password":"{PASSWORD}"}}'
  psql "$DATABASE_URL" -c "INSERT INTO tenant_demo.messages (sender_id, recipient_id, content)
       SELECT b.id, j.id, 'from psql' FROM tenant_demo.users b, tenant_demo.users j
       WHERE b.username = 'bob' AND j.username = 'joe'"

Demo users, password {PASSWORD}: bob, jane (web), joe, sally (mobile). Ctrl-C stops everything."#
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
}
