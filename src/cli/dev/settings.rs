//! What `posduif dev` decides for the engine: URLs of servers, addresses, the demo.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::cli::Global;
use crate::config::{Admin, Config, Secret};
use crate::dev::demo::TENANT;
use crate::dev::demo::events::AdminListener;
use crate::dev::{Servers, free_port, random_secret, write_private};
use crate::http::own_origin::OwnOrigin;

/// The configuration file in the data folder.
const FILE: &str = "dev.yaml";

/// Ports that are tried for a listener.
const PORTS_TRIED: usize = 100;

/// Points the settings at the private servers and sets defaults for development.
pub(super) fn configure(config: &mut Config, servers: &Servers, port: Option<u16>) {
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
        config.server.default_tenant = TENANT.to_owned();
    }
    if let Some(port) = port {
        config.server.port = port;
    }
}

/// Decides the ports, so that an engine that starts again listens at the same ones, and listens for the demo. The admin
/// listener and the demo take the next free ports after the API's.
pub(super) fn set_addresses(config: &mut Config) -> Result<TcpListener> {
    if config.server.port == 0 {
        config.server.port = free_port()?;
    }
    let mut used = config.server.port;
    match config.admin.address()? {
        Some(_) if config.admin.listen == Admin::default().listen => {
            used = next_free(used)?.1;
            config.admin.listen = loopback(used).to_string();
        }
        Some(address) if address.port() == 0 => {
            config.admin.listen = SocketAddr::new(address.ip(), free_port()?).to_string();
        }
        Some(address) => used = used.max(address.port()),
        None => {}
    }
    let (listener, _) = next_free(used)?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// The first free port of the loopback address after another one, with a listener that occupies it.
fn next_free(port: u16) -> Result<(std::net::TcpListener, u16)> {
    let listener = (port.saturating_add(1)..=u16::MAX)
        .take(PORTS_TRIED)
        .find_map(|port| std::net::TcpListener::bind(loopback(port)).ok());
    let listener = match listener {
        Some(listener) => listener,
        None => std::net::TcpListener::bind(loopback(free_port()?)).context("no free TCP port on 127.0.0.1")?,
    };
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Lets the demo's page call the API, and makes it the home of the server unless there is another one.
pub(super) fn allow_demo(config: &mut Config, port: u16) {
    let origins = &mut config.server.cors_origins;
    for origin in OwnOrigin::on_loopback(port).origins() {
        if !origins.iter().any(|known| *known == origin || known == "*") {
            origins.push(origin);
        }
    }
    if config.server.home_url.is_empty() {
        config.server.home_url = demo_url(port);
    }
}

pub(super) fn demo_url(port: u16) -> String {
    format!("http://{}/demo/", loopback(port))
}

/// Lets the demo's server use the admin API, and the console change something: both are for this machine only.
pub(super) fn open_console(config: &mut Config) -> Result<()> {
    if config.admin.token.expose().is_empty() {
        config.admin.token = random_secret()?;
    }
    config.admin.actions |= config
        .admin
        .address()?
        .is_some_and(|address| address.ip().is_loopback());
    Ok(())
}

/// Where processes of this machine reach the engine.
pub(super) fn engine_url(config: &Config) -> String {
    format!("{}://{}", config.server.scheme(), loopback(config.server.port))
}

/// The admin listener, if there is one.
pub(super) fn admin_listener(config: &Config) -> Option<AdminListener> {
    let url = config.admin.url()?;
    let token = config.admin.token.clone();
    Some(AdminListener { url, token })
}

/// The options without the file of [`write_file`], which a shell with our `dev.env` names.
pub(super) fn without_own_file(global: &Global, folder: &Path) -> Global {
    let own = folder.join(FILE).canonicalize().ok();
    let named = global.config.as_ref().and_then(|file| file.canonicalize().ok());
    let mut global = global.clone();
    if own.is_some() && own == named {
        global.config = None;
    }
    global
}

/// Writes the configuration file of the engine, and of commands in a shell with `dev.env`: what the given one has, with the
/// groups and routes of these settings.
pub(super) fn write_file(folder: &Path, given: Option<&Path>, config: &Config) -> Result<PathBuf> {
    let text = match given {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => String::new(),
    };
    let file = folder.join(FILE);
    write_private(&file, &merged(&text, config)?)?;
    Ok(file)
}

fn merged(text: &str, config: &Config) -> Result<String> {
    let mut tree: Map<String, Value> = match text.trim().is_empty() {
        true => Map::new(),
        // A file of comments is null.
        false => serde_saphyr::from_str::<Option<_>>(text)
            .context("not valid YAML")?
            .unwrap_or_default(),
    };
    tree.insert("groups".into(), json!(config.groups));
    tree.insert("routes".into(), json!(config.routes));
    // JSON is YAML.
    let tree = serde_json::to_string_pretty(&tree)?;
    Ok(format!("# Written by `posduif dev` at each start.\n{tree}\n"))
}

/// The settings that were decided here, as variables of the engine's environment.
pub(super) fn environment(config: &Config) -> Vec<(String, String)> {
    let Config { server, admin, .. } = config;
    [
        ("POSTGRES__URL", config.postgres.url.expose().to_owned()),
        ("REDIS__URL", config.redis.url.expose().to_owned()),
        ("AUTH__JWT_SECRET", config.auth.jwt_secret.expose().to_owned()),
        ("SERVER__PORT", server.port.to_string()),
        ("SERVER__DEFAULT_TENANT", server.default_tenant.clone()),
        ("SERVER__HOME_URL", server.home_url.clone()),
        ("SERVER__CORS_ORIGINS", json!(server.cors_origins).to_string()),
        ("ADMIN__LISTEN", admin.listen.clone()),
        ("ADMIN__TOKEN", admin.token.expose().to_owned()),
        ("ADMIN__ACTIONS", admin.actions.to_string()),
    ]
    .map(|(key, value)| (format!("POSDUIF__{key}"), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::{Durability, ServersOptions};

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

    #[test]
    fn engine_reads_the_settings_that_were_decided() {
        let demo = Config::from_sources(crate::dev::demo::ROUTING, []).unwrap();
        let mut config = Config {
            auth: crate::config::Auth {
                jwt_secret: Secret::new("a secret of at least thirty-two bytes"),
                ..demo.auth.clone()
            },
            ..demo
        };
        allow_demo(&mut config, 8082);
        config.server.port = 9000;
        config.admin.listen = "127.0.0.1:9001".into();
        open_console(&mut config).unwrap();
        let file = merged("# Nothing else.\nserver: {port: 1}\nroutes:\n", &config).unwrap();
        let read = Config::from_sources(&file, environment(&config)).unwrap();
        assert_eq!(read, config);
        assert_eq!(merged("# A comment.\n", &config).unwrap(), merged("", &config).unwrap());
        assert_eq!(read.server.home_url, "http://127.0.0.1:8082/demo/");
    }

    #[tokio::test]
    async fn addresses_follow_each_other_and_keep_what_is_set() {
        let mut config = Config::default();
        config.server.port = 0;
        let demo = set_addresses(&mut config).unwrap().local_addr().unwrap().port();
        let admin = config.admin.address().unwrap().unwrap().port();
        assert!(config.server.port < admin && admin < demo, "{config:?}");
        config.admin.listen = "off".into();
        set_addresses(&mut config).unwrap();
        assert_eq!(config.admin.listen, "off");
    }

    fn tempfolder() -> PathBuf {
        std::env::temp_dir().join(format!("posduif-dev-test-{}", std::process::id()))
    }
}
