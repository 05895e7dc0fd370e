//! What an engine needs of Redis: a single server that forgets nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::DateTime;

use crate::admin::doctor::{Check, clock, skew};
use crate::config;
use crate::net;
use crate::redis::info::Info;

/// The oldest version that works.
const VERSION_MIN: u32 = 7;

/// Part of `maxmemory` in use from which on it is worth a look.
const FULL: f64 = 0.8;

/// The freshness is measured by Postgres' clock; that of Redis only counts presence and sessions.
const SKEW_BOUND_SECONDS: u64 = 60;

/// What is known of a server.
#[derive(Debug, Clone, Default, PartialEq)]
struct Facts {
    /// The answer to `INFO`.
    info: HashMap<String, String>,
    /// What `CONFIG GET` gave; `None` when it was refused.
    settings: Option<HashMap<String, String>>,
    /// How far its clock is ahead of ours.
    skew_seconds: f64,
}

impl Facts {
    async fn read(config: &config::Redis) -> Result<Self> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        let client = net::redis::client(config).context("key `redis.url`")?;
        let settings = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
        let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
        let wanted = ["appendonly", "appendfsync", "maxmemory-policy", "latency-tracking"];
        // An ACL may refuse it.
        let settings = redis::cmd("CONFIG")
            .arg("GET")
            .arg(&wanted)
            .query_async(&mut connection)
            .await
            .ok();
        let began = Instant::now();
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let there = DateTime::from_timestamp_micros(seconds * 1_000_000 + micros).unwrap_or_default();
        let skew_seconds = skew(there, began);
        Ok(Self {
            info: Info::parse(&info).0,
            settings,
            skew_seconds,
        })
    }

    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.get(name).map(String::as_str)
    }
}

/// How a shell reaches Redis, without its secrets.
fn shell(config: &config::Redis) -> String {
    let url = config.url.expose();
    if url.starts_with("unix:") || url.starts_with("redis+unix:") {
        return format!("redis-cli -s {}", net::redis::place(config));
    }
    let mut command = "redis-cli -u \"$REDIS_URL\"".to_owned();
    for (option, file) in [
        ("--cacert", &config.ca_file),
        ("--cert", &config.cert_file),
        ("--key", &config.key_file),
    ] {
        if !file.is_empty() {
            command.push_str(&format!(" {option} '{file}'"));
        }
    }
    command
}

/// Looks at Redis.
pub(crate) async fn examine(config: &config::Redis) -> Vec<Check> {
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    let place = net::redis::place(config);
    let failure = match tokio::time::timeout(timeout, Facts::read(config)).await {
        Ok(Ok(facts)) => {
            let mut checks = vec![Check::ok("redis.connection", place)];
            checks.extend(facts_checks(&facts, &shell(config)));
            return checks;
        }
        Ok(Err(error)) => format!("{place}: {error:#}"),
        Err(_) => format!("{place}: no answer within {} s", timeout.as_secs()),
    };
    let check = Check::fail(
        "redis.connection",
        failure,
        "Nothing is delivered without Redis, and nothing else of it can be looked at; check `redis.url` (or REDIS_URL)",
    );
    vec![check.fix(format!("{} PING", shell(config)))]
}

/// Judges what is known.
fn facts_checks(facts: &Facts, shell: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    // A change lasts when Redis has a file to write it to.
    let set = |check: Check, name: &str, value: &str| {
        let check = check.fix(format!("{shell} CONFIG SET {name} {value}"));
        if facts.info("config_file").is_empty() {
            check.then("put the same into what starts Redis: it has no configuration file to keep it in")
        } else {
            check.fix(format!("{shell} CONFIG REWRITE"))
        }
    };
    let version = facts.info("redis_version");
    let major: Option<u32> = version.split('.').next().and_then(|major| major.parse().ok());
    let found = match facts.info("valkey_version") {
        "" => format!("Redis {version}"),
        valkey => format!("Valkey {valkey}"),
    };
    checks.push(if major.is_some_and(|major| major >= VERSION_MIN) {
        Check::ok("redis.version", found)
    } else {
        Check::fail("redis.version", found, "Needed is 7 or newer: upgrade it")
    });
    checks.push(match (facts.info("cluster_enabled"), facts.info("role")) {
        ("1", _) => Check::fail(
            "redis.server",
            "Redis Cluster",
            "A transaction of the engine spans keys of several slots: name a single server in `redis.url`",
        ),
        (_, "slave") => Check::fail(
            "redis.server",
            "a replica",
            "It takes no entries: name the primary in `redis.url`",
        ),
        _ => Check::ok("redis.server", "a single primary"),
    });
    let is_persistent = match facts.setting("appendonly") {
        Some(value) => value == "yes",
        None => facts.info("aof_enabled") == "1",
    };
    checks.push(if is_persistent {
        Check::ok("redis.appendonly", "yes")
    } else {
        let check = Check::fail(
            "redis.appendonly",
            "no",
            "A crash or restart of Redis loses the streams: a new epoch, and every device takes a snapshot",
        );
        set(check, "appendonly", "yes")
    });
    checks.push(match facts.setting("appendfsync") {
        Some("no") => {
            let check = Check::fail(
                "redis.appendfsync",
                "no",
                "Redis leaves it to the system when its file is on disk: a power cut loses entries that Postgres has forgotten",
            );
            set(check, "appendfsync", "everysec")
        }
        Some(value) => Check::ok("redis.appendfsync", value),
        None => Check::warn(
            "redis.appendfsync",
            "not known: CONFIG GET is refused",
            "The engine then waits as for `everysec`; allow it to our user",
        )
        .fix(format!("{shell} ACL SETUSER posduif '+config|get'")),
    });
    let policy = facts.info("maxmemory_policy");
    checks.push(if policy == "noeviction" {
        Check::ok("redis.maxmemory_policy", policy)
    } else {
        let check = Check::fail(
            "redis.maxmemory_policy",
            policy,
            "When memory is full, Redis throws streams away to go on: history is lost. With `noeviction` it refuses \
             entries, which wait in Postgres",
        );
        set(check, "maxmemory-policy", "noeviction")
    });
    let number = |name: &str| facts.info(name).parse::<f64>().unwrap_or_default();
    let (used, most) = (number("used_memory"), number("maxmemory"));
    let megabytes = |bytes: f64| format!("{:.0} MB", bytes / 1024.0 / 1024.0);
    checks.push(if most == 0.0 {
        Check::ok("redis.memory", format!("{} used, without a bound", megabytes(used)))
    } else {
        let found = format!("{} of {} used", megabytes(used), megabytes(most));
        if used < most * FULL {
            Check::ok("redis.memory", found)
        } else {
            let check = Check::warn(
                "redis.memory",
                found,
                "When it is full, entries wait in Postgres, which keeps WAL for them. Lower the bounds `streams.*_entries_max`, \
                 or give it more",
            );
            set(check, "maxmemory", &format!("{:.0}", most * 2.0))
        }
    });
    checks.push(match facts.info("aof_last_write_status") {
        "" | "ok" => Check::ok("redis.file", "written without errors"),
        status => Check::fail(
            "redis.file",
            format!("the last write: {status}"),
            "Redis cannot write its append-only file, and refuses entries: look at the room on its disk",
        )
        .fix("df -h"),
    });
    if let Some(tracking) = facts.setting("latency-tracking") {
        checks.push(if tracking == "no" {
            Check::ok("redis.latency_tracking", "no")
        } else {
            let check = Check::warn(
                "redis.latency_tracking",
                tracking,
                "A hint: without it each command is several per cent cheaper, and Redis' one thread is what binds",
            );
            set(check, "latency-tracking", "no")
        });
    }
    checks.push(clock("redis.clock", "Redis", facts.skew_seconds, SKEW_BOUND_SECONDS));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::doctor::Level;

    fn facts() -> Facts {
        let of = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        Facts {
            info: of(&[
                ("redis_version", "7.0.15"),
                ("config_file", "/etc/redis/redis.conf"),
                ("role", "master"),
                ("cluster_enabled", "0"),
                ("aof_enabled", "1"),
                ("aof_last_write_status", "ok"),
                ("maxmemory", "0"),
                ("maxmemory_policy", "noeviction"),
                ("used_memory", "1000000"),
            ]),
            settings: Some(of(&[
                ("appendonly", "yes"),
                ("appendfsync", "everysec"),
                ("maxmemory-policy", "noeviction"),
                ("latency-tracking", "no"),
            ])),
            skew_seconds: 0.0,
        }
    }

    fn wrong(facts: &Facts) -> Vec<Check> {
        let mut checks = facts_checks(facts, "redis-cli -u \"$REDIS_URL\"");
        checks.retain(|check| check.level != Level::Ok);
        checks
    }

    #[test]
    fn each_wrong_setting_is_named_with_its_fix() {
        assert_eq!(wrong(&facts()), Vec::new());
        for (place, name, value, check, fix) in [
            ("info", "redis_version", "6.2.1", "redis.version", ""),
            ("info", "cluster_enabled", "1", "redis.server", ""),
            ("info", "role", "slave", "redis.server", ""),
            (
                "info",
                "maxmemory_policy",
                "allkeys-lru",
                "redis.maxmemory_policy",
                "CONFIG SET maxmemory-policy noeviction",
            ),
            (
                "info",
                "maxmemory",
                "1100000",
                "redis.memory",
                "CONFIG SET maxmemory 2200000",
            ),
            ("info", "aof_last_write_status", "err", "redis.file", "df"),
            (
                "settings",
                "appendonly",
                "no",
                "redis.appendonly",
                "CONFIG SET appendonly yes",
            ),
            (
                "settings",
                "appendfsync",
                "no",
                "redis.appendfsync",
                "CONFIG SET appendfsync everysec",
            ),
            (
                "settings",
                "latency-tracking",
                "yes",
                "redis.latency_tracking",
                "CONFIG SET latency-tracking no",
            ),
        ] {
            let mut facts = facts();
            let map = match place {
                "info" => &mut facts.info,
                _ => facts.settings.as_mut().unwrap(),
            };
            map.insert(name.to_owned(), value.to_owned());
            let wrong = wrong(&facts);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert_eq!(wrong[0].name, check);
            assert!(wrong[0].fix.join("; ").contains(fix), "{wrong:?}");
        }
    }

    #[test]
    fn what_an_acl_hides_is_taken_from_elsewhere_or_said_to_be_unknown() {
        let mut hidden = facts();
        hidden.settings = None;
        let wrong: Vec<&str> = wrong(&hidden).iter().map(|check| check.name).collect();
        assert_eq!(wrong, ["redis.appendfsync"]);
    }

    #[test]
    fn a_change_lasts_only_with_a_configuration_file() {
        let mut facts = facts();
        facts
            .settings
            .as_mut()
            .unwrap()
            .insert("appendonly".to_owned(), "no".to_owned());
        assert!(wrong(&facts)[0].fix[1].ends_with("CONFIG REWRITE"));
        facts.info.remove("config_file");
        let check = &wrong(&facts)[0];
        assert!(check.fix.len() == 1 && check.then.is_some(), "{check:?}");
    }
}
