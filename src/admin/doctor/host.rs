//! Checks of this machine, of the secrets, and of the engine at its URLs.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use crate::admin::doctor::{Check, Level};
use crate::admin::status::{EngineUrls, Readiness, failing_checks};
use crate::config::Config;
use crate::net::http;

/// Timeout of a request to the engine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(3);

/// File descriptors other than connections of clients and the pool: Redis, files, the listener, spares.
const OTHER_DESCRIPTORS: u64 = 100;

/// Checks this machine, and the engine as seen from it.
pub(crate) async fn examine(config: &Config, urls: &EngineUrls) -> Vec<Check> {
    let mut checks = vec![secret(config)];
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        checks.push(descriptors(config, soft, hard));
    }
    checks.extend(engine(urls).await);
    checks
}

fn secret(config: &Config) -> Check {
    match config.check_secrets() {
        Ok(()) => Check::ok("config.jwt_secret", "set"),
        Err(error) => Check::fail(
            "config.jwt_secret",
            format!("{error:#}"),
            "It signs all tokens; only `serve --role replicator` starts without. Store the new one with the other settings: \
             changing it invalidates all tokens and cursors",
        )
        .fix("export POSDUIF__AUTH__JWT_SECRET=$(openssl rand -hex 32)"),
    }
}

fn descriptors(config: &Config, soft: u64, hard: u64) -> Check {
    const NAME: &str = "host.file_descriptors";
    let others = config.postgres.pool_size as u64 + OTHER_DESCRIPTORS;
    let required = config.server.connections_max as u64 + others;
    let found = format!("{soft} in this shell");
    if soft >= required {
        return Check::ok(NAME, found);
    }
    let check = Check::warn(
        NAME,
        found,
        format!(
            "An engine needs {required} for `server.connections_max` clients; beyond the limit, connections are refused. A \
             service has its own limit (systemd: LimitNOFILE)"
        ),
    );
    if hard >= required {
        check.fix(format!("ulimit -n {required}"))
    } else {
        let most = soft.saturating_sub(others).max(1);
        check.fix(format!("export POSDUIF__SERVER__CONNECTIONS_MAX={most}"))
    }
}

async fn engine(urls: &EngineUrls) -> Vec<Check> {
    let health = health(&urls.public).await;
    if health.level != Level::Ok {
        return vec![health];
    }
    vec![health, ready(urls).await]
}

async fn health(url: &str) -> Check {
    const NAME: &str = "engine.public_url";
    match http::get(&format!("{url}/health"), ENGINE_TIMEOUT).await {
        Ok(response) if response.status == 200 && response.body.starts_with(b"OK") => Check::ok(NAME, url),
        Ok(response) => Check::fail(
            NAME,
            format!("{url}/health returned {}", response.status),
            "Another server answers at the public URL: check `server.public_url` (or POSDUIF_URL) and the proxy",
        ),
        Err(error) => Check::warn(
            NAME,
            format!("{url}: {error:#}"),
            "No engine is reachable at the public URL: start one, or check `server.public_url` (or POSDUIF_URL) and the \
             network",
        )
        .fix("posduif serve"),
    }
}

async fn ready(urls: &EngineUrls) -> Check {
    const NAME: &str = "engine.ready";
    match Readiness::of(urls).await {
        Ok((_, Readiness { ready: true, .. })) => Check::ok(NAME, "fresh"),
        Ok((_, Readiness { checks, .. })) => {
            let meaning = "Clients receive stale data; this shows more";
            Check::fail(NAME, failing_checks(&checks), meaning).fix("posduif status")
        }
        Err(error) => Check::warn(
            NAME,
            format!("{error:#}"),
            "The engine is alive, but does not report its readiness",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_fix_raises_the_limit_or_lowers_clients() {
        let config = Config::default();
        assert_eq!(descriptors(&config, 19_116, 19_116).level, Level::Ok);
        assert_eq!(descriptors(&config, 1024, 524_288).fix, ["ulimit -n 19116"]);
        assert_eq!(
            descriptors(&config, 1024, 1024).fix,
            ["export POSDUIF__SERVER__CONNECTIONS_MAX=908"]
        );
    }
}
