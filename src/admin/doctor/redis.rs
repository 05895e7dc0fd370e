//! Checks of Redis: a single, persistent server that evicts nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::DateTime;

use crate::admin::doctor::{Check, clock, skew};
use crate::config;
use crate::contract::keys::Keys;
use crate::net;
use crate::publish::probe::{OnDisk, Probe};
use crate::redis::cluster;
use crate::redis::info::Info;

/// The oldest supported version.
const VERSION_MIN: u32 = 7;

/// Part of `maxmemory` in use that is a warning.
const NEARLY_FULL: f64 = 0.8;

/// Replicas acknowledge each second; one that is silent for longer hangs.
const REPLICA_LAG_MAX_SECONDS: u64 = 10;

/// Freshness is measured by the clock of Postgres; that of Redis only matters for presence and sessions.
const SKEW_BOUND_SECONDS: u64 = 60;

#[derive(Debug, Clone, Default, PartialEq)]
struct Facts {
    /// Fields of `INFO`.
    info: HashMap<String, String>,
    /// Settings by `CONFIG GET`; `None` if it was refused.
    settings: Option<HashMap<String, String>>,
    /// How far the server's clock is ahead of ours.
    skew_seconds: f64,
    /// `redis.cluster`.
    is_cluster: bool,
    /// `redis.replicas_min`.
    replicas_min: u64,
    /// What the server permits.
    probe: Probe,
}

impl Facts {
    async fn read(config: &config::Redis) -> Result<Self> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        cluster::locate(config).await?;
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
        let info = Info::parse(&info);
        let probe = Probe::run(&mut connection, &Keys::new(&config.keys_prefix()), &info).await?;
        Ok(Self {
            info: info.0,
            settings,
            skew_seconds,
            is_cluster: config.cluster.is_on(),
            replicas_min: config.replicas_min,
            probe,
        })
    }

    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.get(name).map(String::as_str)
    }
}

/// The `redis-cli` command for a shell, without secrets.
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

/// Checks Redis.
pub(crate) async fn examine(config: &config::Redis) -> Vec<Check> {
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    let address = net::redis::place(config);
    let failure = match tokio::time::timeout(timeout, Facts::read(config)).await {
        Ok(Ok(facts)) => {
            let mut checks = vec![Check::ok("redis.connection", address)];
            checks.extend(facts_checks(&facts, &shell(config)));
            return checks;
        }
        Ok(Err(error)) => format!("{address}: {error:#}"),
        Err(_) => format!("{address}: no answer within {} s", timeout.as_secs()),
    };
    let check = Check::fail(
        "redis.connection",
        failure,
        "Nothing is delivered without Redis, and nothing else of it can be checked; check `redis.url` (or REDIS_URL)",
    );
    vec![check.fix(format!("{} PING", shell(config)))]
}

/// Checks the facts.
fn facts_checks(facts: &Facts, shell: &str) -> Vec<Check> {
    let checks = [
        Some(version(facts)),
        Some(server(facts)),
        Some(transactions(facts)),
        Some(scripts(facts)),
        Some(appendonly(facts, shell)),
        Some(appendfsync(facts, shell)),
        Some(maxmemory_policy(facts, shell)),
        Some(memory(facts, shell)),
        Some(file(facts)),
        replicas(facts, shell),
        Some(durability(facts)),
        latency_tracking(facts, shell),
        Some(clock("redis.clock", "Redis", facts.skew_seconds, SKEW_BOUND_SECONDS)),
    ];
    checks.into_iter().flatten().collect()
}

/// Adds the commands that set a parameter, and persist it if Redis has a configuration file.
fn set(check: Check, facts: &Facts, shell: &str, name: &str, value: &str) -> Check {
    let check = check.fix(format!("{shell} CONFIG SET {name} {value}"));
    if facts.info("config_file").is_empty() {
        check.then("set the same where Redis is started: it has no configuration file")
    } else {
        check.fix(format!("{shell} CONFIG REWRITE"))
    }
}

fn version(facts: &Facts) -> Check {
    const NAME: &str = "redis.version";
    let version = facts.info("redis_version");
    let major: Option<u32> = version.split('.').next().and_then(|major| major.parse().ok());
    let found = match facts.info("valkey_version") {
        "" => format!("Redis {version}"),
        valkey => format!("Valkey {valkey}"),
    };
    if major.is_some_and(|major| major >= VERSION_MIN) {
        Check::ok(NAME, found)
    } else {
        Check::fail(NAME, found, "Version 7 or newer is required: upgrade Redis")
    }
}

fn server(facts: &Facts) -> Check {
    const NAME: &str = "redis.server";
    let is_cluster = facts.info("cluster_enabled") == "1";
    match (is_cluster, facts.info("role")) {
        (true, _) if !facts.is_cluster => Check::fail(
            NAME,
            "a node of a cluster",
            "Keys of the engine would be in several slots: set `redis.cluster`, or name a single server in `redis.url`",
        ),
        (false, _) if facts.is_cluster => Check::fail(
            NAME,
            "no node of a cluster",
            "`redis.cluster` says that it is one: name a node of the cluster in `redis.url`, or remove the setting",
        ),
        (_, "slave") => Check::fail(
            NAME,
            "a replica",
            "A replica accepts no entries: name the primary in `redis.url`",
        ),
        (true, _) => Check::ok(NAME, "the primary of the lane in a cluster"),
        (false, _) => Check::ok(NAME, "a single primary"),
    }
}

/// Redis Cluster behind a proxy, for example, shows only here.
fn transactions(facts: &Facts) -> Check {
    const NAME: &str = "redis.transactions";
    match &facts.probe.transaction {
        Ok(()) => Check::ok(NAME, "guarded, with ids of our choice"),
        Err(cause) => Check::fail(
            NAME,
            cause,
            "The engine writes each batch in a transaction that watches another key, with the ids of its entries: a server \
             that refuses this cannot serve",
        )
        .then("use another server, or permit WATCH, MULTI, EXEC, XADD, HSET, PEXPIRE and UNLINK to the user"),
    }
}

fn scripts(facts: &Facts) -> Check {
    const NAME: &str = "redis.scripts";
    match &facts.probe.script {
        Ok(()) => Check::ok(NAME, "run"),
        Err(cause) => Check::fail(
            NAME,
            cause,
            "Without EVAL the engine cannot create or trim streams, and presence fails",
        )
        .then("permit EVAL to the user, or switch the server's scripting on"),
    }
}

/// Whether the server has an append-only file; `None` if it does not say so, as managed servers.
fn has_file(facts: &Facts) -> Option<bool> {
    match facts.setting("appendonly") {
        Some(value) => Some(value == "yes"),
        None if facts.info("aof_enabled") == "1" => Some(true),
        None if facts.settings.is_none() => None,
        None => Some(false),
    }
}

fn appendonly(facts: &Facts, shell: &str) -> Check {
    const NAME: &str = "redis.appendonly";
    match has_file(facts) {
        Some(true) => Check::ok(NAME, "yes"),
        None => Check::warn(
            NAME,
            "unknown: CONFIG GET is refused, and INFO shows no append-only file",
            "If the provider keeps no log of its own, a failure of Redis loses the streams: a new epoch, and every device \
             takes a snapshot",
        )
        .then("read what the provider promises, or require replicas with `redis.replicas_min`"),
        Some(false) => {
            let meaning = "A crash or restart of Redis loses the streams: a new epoch, and every device takes a snapshot";
            set(Check::fail(NAME, "no", meaning), facts, shell, "appendonly", "yes")
        }
    }
}

/// How far an entry has come when its position is confirmed to Postgres. What is wrong is said by other checks.
fn durability(facts: &Facts) -> Check {
    const NAME: &str = "redis.durability";
    let place = match (has_file(facts), &facts.probe.on_disk) {
        (Some(true), OnDisk::Confirmed) => "on disk, as WAITAOF confirms",
        (Some(true), OnDisk::Refused(_) | OnDisk::Late | OnDisk::Unsupported) => "on disk, as INFO persistence shows",
        (Some(false), _) => "in memory only",
        (None, _) => "the provider's word",
    };
    let mut found = place.to_owned();
    if facts.replicas_min > 0 {
        found.push_str(&format!("; on {} replicas", facts.replicas_min));
    }
    match &facts.probe.on_disk {
        OnDisk::Refused(cause) => Check::warn(
            NAME,
            format!("{found}; WAITAOF: {cause}"),
            "Positions are confirmed to Postgres later than they could be",
        )
        .then("permit WAITAOF to the user"),
        OnDisk::Late => Check::warn(
            NAME,
            format!("{found}; WAITAOF did not confirm a write within 2 s"),
            "The disk of Redis is slow: Postgres retains its log for longer",
        ),
        OnDisk::Confirmed | OnDisk::Unsupported => Check::ok(NAME, found),
    }
}

fn appendfsync(facts: &Facts, shell: &str) -> Check {
    const NAME: &str = "redis.appendfsync";
    match facts.setting("appendfsync") {
        Some("no") => {
            let meaning = "The operating system decides when the file is on disk: a power failure loses entries that \
                           Postgres no longer retains";
            set(
                Check::fail(NAME, "no", meaning),
                facts,
                shell,
                "appendfsync",
                "everysec",
            )
        }
        Some(value) => Check::ok(NAME, value),
        None => Check::warn(
            NAME,
            "unknown: CONFIG GET is refused",
            "The engine then waits as for `everysec`; allow the command to its user",
        )
        .fix(format!("{shell} ACL SETUSER posduif '+config|get'")),
    }
}

fn maxmemory_policy(facts: &Facts, shell: &str) -> Check {
    const NAME: &str = "redis.maxmemory_policy";
    let policy = facts.info("maxmemory_policy");
    if policy == "noeviction" {
        return Check::ok(NAME, policy);
    }
    let meaning = "When memory is full, Redis evicts streams: history is lost. With `noeviction` it refuses entries, which \
                   wait in Postgres";
    let check = Check::fail(NAME, policy, meaning);
    set(check, facts, shell, "maxmemory-policy", "noeviction")
}

fn memory(facts: &Facts, shell: &str) -> Check {
    const NAME: &str = "redis.memory";
    let number = |name: &str| facts.info(name).parse::<f64>().unwrap_or_default();
    let (used, most) = (number("used_memory"), number("maxmemory"));
    let megabytes = |bytes: f64| format!("{:.0} MB", bytes / 1024.0 / 1024.0);
    if most == 0.0 {
        return Check::ok(NAME, format!("{} used, unlimited", megabytes(used)));
    }
    let found = format!("{} of {} used", megabytes(used), megabytes(most));
    if used < most * NEARLY_FULL {
        return Check::ok(NAME, found);
    }
    let meaning = "When memory is full, entries wait in Postgres, which retains WAL for them. Lower \
                   `streams.*_entries_max`, or raise the limit";
    let check = Check::warn(NAME, found, meaning);
    set(check, facts, shell, "maxmemory", &format!("{:.0}", most * 2.0))
}

fn file(facts: &Facts) -> Check {
    const NAME: &str = "redis.file";
    match facts.info("aof_last_write_status") {
        "" | "ok" => Check::ok(NAME, "written without errors"),
        status => Check::fail(
            NAME,
            format!("the last write: {status}"),
            "Redis cannot write its append-only file, and refuses entries: check the space on its disk",
        )
        .fix("df -h"),
    }
}

/// `None` if none are required.
fn replicas(facts: &Facts, shell: &str) -> Option<Check> {
    const NAME: &str = "redis.replicas";
    let required = facts.replicas_min;
    if required == 0 {
        return None;
    }
    // slave0:ip=10.0.0.2,port=6379,state=online,offset=1234,lag=1
    let replicas = (0_u64..).map_while(|number| facts.info.get(&format!("slave{number}")));
    let acknowledges = |replica: &&String| {
        let field = |name: &str| replica.split(',').find_map(|field| field.strip_prefix(name));
        let lag = field("lag=").and_then(|lag| lag.parse().ok());
        field("state=") == Some("online") && lag.is_some_and(|lag: u64| lag <= REPLICA_LAG_MAX_SECONDS)
    };
    let found = replicas.filter(acknowledges).count() as u64;
    let text = format!("{found} of {required}");
    if found >= required {
        return Some(Check::ok(NAME, text));
    }
    let meaning = "Fewer replicas acknowledge than `redis.replicas_min` requires: changes are published, but Postgres \
                   retains its log. Start the replicas, or lower the key";
    Some(Check::fail(NAME, text, meaning).fix(format!("{shell} INFO replication")))
}

/// `None` if Redis does not have the setting, or CONFIG GET is refused.
fn latency_tracking(facts: &Facts, shell: &str) -> Option<Check> {
    const NAME: &str = "redis.latency_tracking";
    let tracking = facts.setting("latency-tracking")?;
    if tracking == "no" {
        return Some(Check::ok(NAME, "no"));
    }
    let meaning = "Performance: without it each command is several per cent cheaper, and the one thread of Redis is the \
                   bottleneck";
    Some(set(
        Check::warn(NAME, tracking, meaning),
        facts,
        shell,
        "latency-tracking",
        "no",
    ))
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
            is_cluster: false,
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
            replicas_min: 0,
            probe: Probe::default(),
        }
    }

    fn wrong(facts: &Facts) -> Vec<Check> {
        let mut checks = facts_checks(facts, "redis-cli -u \"$REDIS_URL\"");
        checks.retain(|check| check.level != Level::Ok);
        checks
    }

    #[test]
    fn each_wrong_setting_fails_one_check_with_its_fix() {
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
    fn required_replicas_must_be_online_and_acknowledge() {
        let mut facts = facts();
        facts.replicas_min = 2;
        let mut replica = |number: usize, state: &str, lag: u64| {
            let text = format!("ip=10.0.0.{number},port=6379,state={state},offset=9,lag={lag}");
            facts.info.insert(format!("slave{number}"), text);
            let wrong = wrong(&facts);
            let found = wrong.first().map(|check| (check.name, check.found.clone()));
            found.unwrap_or(("", String::new()))
        };
        let short = ("redis.replicas", "1 of 2".to_owned());
        assert_eq!(replica(0, "online", 1), short);
        assert_eq!(replica(1, "wait_bgsave", 0), short);
        assert_eq!(replica(2, "online", 60), short);
        assert_eq!(replica(3, "online", 0).0, "");
    }

    #[test]
    fn settings_hidden_by_acl_are_inferred_or_unknown() {
        let mut hidden = facts();
        hidden.settings = None;
        let names = |facts: &Facts| wrong(facts).iter().map(|check| check.name).collect::<Vec<_>>();
        assert_eq!(names(&hidden), ["redis.appendfsync"]);
        assert_eq!(durability(&hidden).found, "on disk, as INFO persistence shows");
        hidden.info.remove("aof_enabled");
        assert_eq!(names(&hidden), ["redis.appendonly", "redis.appendfsync"]);
        assert_eq!(durability(&hidden).found, "the provider's word");
    }

    #[test]
    fn refused_commands_fail_the_check_that_needs_them() {
        let refused = || Err("NOPERM".to_owned());
        for (probe, check) in [
            (
                Probe {
                    transaction: refused(),
                    ..Probe::default()
                },
                "redis.transactions",
            ),
            (
                Probe {
                    script: refused(),
                    ..Probe::default()
                },
                "redis.scripts",
            ),
            (
                Probe {
                    on_disk: OnDisk::Refused("NOPERM".into()),
                    ..Probe::default()
                },
                "redis.durability",
            ),
        ] {
            let facts = Facts { probe, ..facts() };
            let wrong = wrong(&facts);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(wrong[0].name == check && wrong[0].found.contains("NOPERM"), "{wrong:?}");
        }
    }

    #[test]
    fn durability_names_where_confirmed_entries_are() {
        let mut facts = facts();
        assert_eq!(durability(&facts).found, "on disk, as INFO persistence shows");
        facts.probe.on_disk = OnDisk::Confirmed;
        facts.replicas_min = 2;
        assert_eq!(durability(&facts).found, "on disk, as WAITAOF confirms; on 2 replicas");
        let settings = facts.settings.as_mut().unwrap();
        settings.insert("appendonly".to_owned(), "no".to_owned());
        assert_eq!(durability(&facts).found, "in memory only; on 2 replicas");
    }

    #[test]
    fn fix_is_persisted_only_with_a_configuration_file() {
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
