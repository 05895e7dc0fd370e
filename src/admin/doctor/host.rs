//! This machine, the settings that are secrets, and whether an engine is reached where clients look for it.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use serde_json::Value;

use crate::admin::doctor::Check;
use crate::config::Config;
use crate::net::http;

/// How long an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Descriptors of an engine beside clients' connections and the pool: Redis, files, the listener, spares.
const DESCRIPTORS_BESIDE: u64 = 100;

/// Looks at this machine, and from it at the engine.
pub(crate) async fn examine(config: &Config, url: &str) -> Vec<Check> {
    let mut checks = vec![secret(config)];
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        checks.push(descriptors(config, soft, hard));
    }
    checks.extend(engine(url).await);
    checks
}

fn secret(config: &Config) -> Check {
    match config.check_secrets() {
        Ok(()) => Check::ok("config.jwt_secret", "set"),
        Err(error) => Check::fail(
            "config.jwt_secret",
            format!("{error:#}"),
            "Whoever knows or guesses it makes tokens of everybody; only `serve --role replicator` starts without. Keep the \
             new one with the other settings: another one ends all tokens and cursors",
        )
        .fix("export POSDUIF__AUTH__JWT_SECRET=$(openssl rand -hex 32)"),
    }
}

fn descriptors(config: &Config, soft: u64, hard: u64) -> Check {
    const NAME: &str = "host.file_descriptors";
    let beside = config.postgres.pool_size as u64 + DESCRIPTORS_BESIDE;
    let wanted = config.server.connections_max as u64 + beside;
    let found = format!("{soft} in this shell");
    if soft >= wanted {
        return Check::ok(NAME, found);
    }
    let check = Check::warn(
        NAME,
        found,
        format!(
            "An engine needs {wanted} for `server.connections_max` clients; beyond the limit no connection is taken. A \
             service has a limit of its own (systemd: LimitNOFILE)"
        ),
    );
    if hard >= wanted {
        check.fix(format!("ulimit -n {wanted}"))
    } else {
        let most = soft.saturating_sub(beside).max(1);
        check.fix(format!("export POSDUIF__SERVER__CONNECTIONS_MAX={most}"))
    }
}

async fn engine(url: &str) -> Vec<Check> {
    const URL: &str = "engine.public_url";
    let health = match http::get(&format!("{url}/health"), PATIENCE).await {
        Ok(answer) if answer.status == 200 && answer.body.starts_with(b"OK") => Check::ok(URL, url),
        Ok(answer) => Check::fail(
            URL,
            format!("{url}/health answers {}", answer.status),
            "Something else answers where clients look for the engine: check `server.public_url` (or POSDUIF_URL) and the proxy",
        ),
        Err(error) => Check::warn(
            URL,
            format!("{url}: {error:#}"),
            "No engine is reached where clients look for it: start one, or check `server.public_url` (or POSDUIF_URL) and the way there",
        )
        .fix("posduif serve"),
    };
    if health.level != crate::admin::doctor::Level::Ok {
        return vec![health];
    }
    let ready = match http::get(&format!("{url}/ready"), PATIENCE).await {
        Ok(answer) if answer.status == 200 => Check::ok("engine.ready", "what clients see is fresh"),
        // A proxy may keep it from the outside, as it should.
        Ok(answer) if answer.status != 503 => Check::ok("engine.ready", "not shown at the public URL"),
        Ok(answer) => Check::fail(
            "engine.ready",
            failing(&answer.body),
            "What clients see is not fresh; this tells more",
        )
        .fix("posduif status"),
        Err(error) => Check::warn(
            "engine.ready",
            format!("{error:#}"),
            "The engine lives and does not say how",
        ),
    };
    vec![health, ready]
}

/// The checks of a `/ready` answer that fail, in words.
fn failing(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let checks = body["checks"].as_object().into_iter().flatten();
    let failing: Vec<String> = checks
        .filter(|(_, check)| check["ok"] == false)
        .map(|(name, check)| format!("{name}: {}", check["detail"].as_str().unwrap_or("fails")))
        .collect();
    failing.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::doctor::Level;

    #[test]
    fn a_limit_that_can_be_raised_is_raised_and_else_fewer_clients_are_taken() {
        let config = Config::default();
        assert_eq!(descriptors(&config, 19_116, 19_116).level, Level::Ok);
        assert_eq!(descriptors(&config, 1024, 524_288).fix, ["ulimit -n 19116"]);
        assert_eq!(
            descriptors(&config, 1024, 1024).fix,
            ["export POSDUIF__SERVER__CONNECTIONS_MAX=908"]
        );
    }

    #[test]
    fn only_what_fails_is_named() {
        let body = br#"{"ready": false, "checks": {"redis": {"ok": false, "detail": "unavailable"}, "postgres": {"ok": true}}}"#;
        assert_eq!(failing(body), "redis: unavailable");
        assert_eq!(failing(b"nonsense"), "");
    }
}
