//! The connection URL of Redis, and the certificates of `rediss://`.

use std::io;
use std::time::Duration;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
};

use crate::config;
use crate::config::cluster::Node;
use crate::net::tls::{Connector, Roots, Trust};
use crate::net::{Address, BoxStream};

/// A client of the `redis` crate. It does not connect yet.
///
/// # Errors
/// When `redis.url` is malformed or a file cannot be read; the error names the key.
pub fn client(config: &config::Redis) -> Result<Client, RedisError> {
    // The crate uses the process's cryptography provider, which another part of the process may have installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let info = config.url.expose().into_connection_info()?;
    // An ACL that lists the commands of the engine refuses that of the name, and notes each refusal.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    let mut info = info.set_redis_settings(settings);
    if let Some(node) = config.cluster.node() {
        let (host, port) = Node::clone(&node);
        let address = match info.addr().clone() {
            ConnectionAddr::TcpTls {
                insecure, tls_params, ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure,
                tls_params,
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        info = info.set_addr(address);
    }
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Client::open(info);
    }
    let read = |key: &str, file: &str| {
        std::fs::read(file).map_err(|error| io::Error::new(error.kind(), format!("key `{key}`: {file}: {error}")))
    };
    let root_cert = match config.ca_file.as_str() {
        "" => None,
        file => Some(read("redis.ca_file", file)?),
    };
    let client_tls = match config.certificate_files() {
        None => None,
        Some(_) => Some(ClientTlsConfig {
            client_cert: read("redis.cert_file", &config.cert_file)?,
            client_key: read("redis.key_file", &config.key_file)?,
        }),
    };
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
}

/// The address in `redis.url`, without its secrets.
pub fn place(config: &config::Redis) -> String {
    let info = config.url.expose().into_connection_info();
    info.map_or_else(|_| "no address".to_owned(), |info| info.addr().to_string())
}

/// The host in `redis.url`, if it has one.
pub fn host(config: &config::Redis) -> Option<String> {
    let info = config.url.expose().into_connection_info().ok()?;
    match info.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => Some(host.clone()),
        _ => None,
    }
}

/// Opens a byte stream for a connection outside of the `redis` crate, to this node or to the server of `redis.url`; returns the
/// parameters of the login, too.
pub async fn open(
    config: &config::Redis,
    node: Option<&Node>,
    timeout: Duration,
) -> anyhow::Result<(BoxStream, RedisConnectionInfo)> {
    use anyhow::Context;

    let info = config
        .url
        .expose()
        .into_connection_info()
        .context("key `redis.url` is not a Redis URL")?;
    let at = |host: &String, port: u16| node.cloned().unwrap_or_else(|| (host.clone(), port));
    let (address, connector) = match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let (host, port) = at(host, *port);
            (Address::Tcp(host, port), None)
        }
        ConnectionAddr::Unix(path) => (Address::Unix(path.clone()), None),
        ConnectionAddr::TcpTls {
            host, port, insecure, ..
        } => {
            let roots = match config.ca_file.as_str() {
                "" => Roots::System,
                file => Roots::File(file.into()),
            };
            let trust = if *insecure {
                Trust::Anybody
            } else {
                Trust::ChainAndName(roots)
            };
            let connector = Connector::new(&trust, config.certificate_files().as_ref(), None)
                .context("TLS to Redis (keys `redis.ca_file`, `redis.cert_file`, `redis.key_file`)")?;
            let (host, port) = at(host, *port);
            (Address::Tcp(host.clone(), port), Some((connector, host)))
        }
        other => anyhow::bail!("key `redis.url`: {other} is not supported"),
    };
    let stream = crate::net::connect(&address, timeout).await.context("Redis")?;
    let stream: BoxStream = match connector {
        None => stream,
        Some((connector, host)) => {
            let handshake = tokio::time::timeout(timeout, connector.connect(&host, stream));
            match handshake.await {
                Ok(stream) => Box::new(stream.context("Redis")?),
                Err(_) => anyhow::bail!(
                    "no TLS handshake with Redis at {address} within {} s: is it a TLS port?",
                    timeout.as_secs()
                ),
            }
        }
    };
    Ok((stream, info.redis_settings().clone()))
}
