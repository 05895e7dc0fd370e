//! Checks of the streams in Redis: a checkpoint, and the streams of every tenant in Postgres.

use std::collections::{BTreeMap, BTreeSet};

use crate::admin::doctor::{Check, first_names};
use crate::admin::slot_report;
use crate::admin::streams::{self, Length};
use crate::config::Config;
use crate::postgres::{Database, tenants};
use crate::redis::info::Info;
use crate::redis::store::Store;

/// Tenants whose fixes are listed.
const FIXES_MAX: usize = 10;

/// Lengths and types of a tenant's keys.
#[derive(Debug)]
struct Keys {
    changes: Length,
    shared: Length,
    quarantine: Length,
    /// The hash of generation, state and trim points.
    meta: Length,
}

/// Checks the streams. Returns nothing if Postgres or Redis is unreachable, which other checks report.
pub(crate) async fn examine(config: &Config) -> Vec<Check> {
    let Ok(store) = Store::new(&config.redis) else {
        return Vec::new();
    };
    let (database, redis) = tokio::join!(Database::connect(&config.postgres), store.check());
    let (Ok(database), Ok(())) = (database, redis) else {
        return Vec::new();
    };
    let mut checks = match store.checkpoint().await {
        Ok(Some(checkpoint)) => {
            let epoch = format!("epoch {}", checkpoint.epoch.number);
            vec![
                Check::ok(CHECKPOINT, epoch),
                tenant_streams(&database, &store, config).await,
            ]
        }
        // Before the first publication there are no streams.
        Ok(None) => vec![no_checkpoint(&database, config).await],
        Err(error) => vec![Check::fail(
            CHECKPOINT,
            error.to_string(),
            "The position of publishing is unknown, and no engine continues",
        )],
    };
    checks.extend(budgets(&database, &store, config).await);
    // Engines note it in the main lane.
    if config.lane.is_main() {
        checks.extend(proxies(&store).await);
    }
    checks
}

/// Whether Redis has room for what tenants may use. Returns nothing if a server fails, which other checks report.
async fn budgets(database: &Database, store: &Store, config: &Config) -> Option<Check> {
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query_async(&mut store.connection())
        .await
        .ok()?;
    let limit = Info::parse(&info).number("maxmemory").unwrap_or_default();
    let exceeded = store.exceeded().await.ok()?;
    let tenants = tenants::list_of(database, &config.lane).await.ok()?.len() as u64;
    let budget = config.streams.tenant_bytes_max;
    Some(budget_check(tenants, budget, limit, exceeded.into_keys().collect()))
}

fn budget_check(tenants: u64, budget: u64, limit: u64, exceeded: Vec<String>) -> Check {
    let mib = |bytes: u64| format!("{} MiB", bytes / 1024 / 1024);
    if !exceeded.is_empty() {
        return Check::fail(
            BUDGETS,
            format!("{} beyond {}", first_names(exceeded), mib(budget)),
            "Streams of these tenants hold more than `streams.tenant_bytes_max` although they were cut, and their writes are \
             refused with 507",
        )
        .then("permit XTRIM to the engine's user, wait until the flood is over, or raise the budget");
    }
    let sum = tenants.saturating_mul(budget);
    if limit == 0 {
        return Check::ok(BUDGETS, format!("{} for all tenants, and Redis has no limit", mib(sum)));
    }
    let found = format!("{} for {tenants} tenants, and maxmemory is {}", mib(sum), mib(limit));
    if sum <= limit {
        return Check::ok(BUDGETS, found);
    }
    let meaning = if budget > limit {
        "One tenant may fill Redis, in which case publishing waits for all"
    } else {
        "The tenants together may fill Redis, in which case publishing waits for all"
    };
    Check::warn(BUDGETS, found, meaning)
        .then("lower `streams.tenant_bytes_max`, or raise maxmemory; several tenants seldom use theirs at once")
}

/// Whether an engine has met a proxy that it does not know. Returns nothing if Redis fails, which other checks report.
async fn proxies(store: &Store) -> Option<Check> {
    let mut pipe = redis::pipe();
    pipe.get(store.keys().unlisted_proxy());
    let (peer,): (Option<String>,) = store.query(&pipe).await.ok()?;
    Some(match peer {
        None => Check::ok(PROXIES, "no unlisted proxy in the last day"),
        Some(peer) => Check::warn(
            PROXIES,
            format!("{peer} sends X-Forwarded-For or Forwarded, and is not in server.trusted_proxies"),
            "All its clients count as one against the limits, and anybody can use up the limits of all",
        )
        .then("If it is your proxy, list it in `server.trusted_proxies`"),
    })
}

const CHECKPOINT: &str = "redis.checkpoint";
const STREAMS: &str = "redis.streams";
const BUDGETS: &str = "redis.budgets";
const PROXIES: &str = "engine.proxies";

/// A missing checkpoint is expected before the first epoch only.
async fn no_checkpoint(database: &Database, config: &Config) -> Check {
    let slot = &config.replication.slot;
    // A database without our tables has published nothing.
    let epochs = slot_report::epochs(database, slot, 1).await.unwrap_or_default();
    match epochs.first() {
        None => Check::ok(CHECKPOINT, "none: the first engine writes it"),
        Some(epoch) => Check::warn(
            CHECKPOINT,
            format!(
                "none, but epoch {} of slot {slot} began at {}",
                epoch.number, epoch.started_at
            ),
            "This is another Redis than the engine's, or it was emptied: check `redis.url` (or REDIS_URL) and \
             `redis.prefix` first. The next engine that starts here begins a new epoch: every device takes a snapshot",
        ),
    }
}

async fn tenant_streams(database: &Database, store: &Store, config: &Config) -> Check {
    match read_keys(database, store, config).await {
        Ok((keys, stopped)) => facts_checks(&keys, &stopped),
        Err(error) => Check::fail(STREAMS, format!("{error:#}"), "They cannot be read"),
    }
}

/// Streams that accept no entries, by tenant.
type Stopped = BTreeMap<String, BTreeSet<String>>;

async fn read_keys(
    database: &Database,
    store: &Store,
    config: &Config,
) -> anyhow::Result<(BTreeMap<String, Keys>, Stopped)> {
    let tenants = tenants::list_of(database, &config.lane).await?;
    let names = store.keys();
    let keys: Vec<String> = tenants
        .iter()
        .flat_map(|tenant| {
            let name = &tenant.name;
            [
                names.changes(name),
                names.shared(name),
                names.quarantine(name),
                names.meta(name),
            ]
        })
        .collect();
    let mut lengths = streams::lengths(store, &keys).await?.into_iter();
    let mut found = BTreeMap::new();
    for tenant in tenants {
        let (Some(changes), Some(shared), Some(quarantine), Some(meta)) =
            (lengths.next(), lengths.next(), lengths.next(), lengths.next())
        else {
            break;
        };
        let keys = Keys {
            changes,
            shared,
            quarantine,
            meta,
        };
        found.insert(tenant.name, keys);
    }
    let mut stopped = Stopped::new();
    for stream in streams::stopped(store).await? {
        let of = stopped.entry(stream.target.tenant().to_string()).or_default();
        of.insert(stream.target.stream());
    }
    Ok((found, stopped))
}

fn rebuild(tenant: &str) -> String {
    format!("posduif stream rebuild --tenant {tenant} --yes")
}

/// Problems with the streams of all tenants, and their fixes.
#[derive(Debug, Default)]
struct Problems {
    found: Vec<String>,
    fixes: Vec<String>,
    /// Tenants without any stream.
    unpublished: Vec<String>,
}

impl Problems {
    fn add_tenant(&mut self, tenant: &str, keys: &Keys, is_stopped: bool) {
        let streams = [("changes", &keys.changes), ("shared", &keys.shared)];
        if keys.meta == Length::Missing && streams.iter().all(|(_, length)| **length == Length::Missing) {
            self.unpublished.push(tenant.to_owned());
            return;
        }
        let mut needs_rebuild = is_stopped;
        for (stream, length) in streams {
            let state = match length {
                Length::Entries(_) => continue,
                Length::Missing => "missing".to_owned(),
                Length::WrongType(kind) => format!("a {kind}"),
            };
            self.found.push(format!("{tenant}/{stream} is {state}"));
            needs_rebuild = true;
        }
        if let Length::WrongType(kind) = &keys.quarantine {
            self.found.push(format!(
                "{tenant}/quarantine is a {kind}; `posduif tenant show {tenant}` shows the fix"
            ));
        }
        let has_meta = matches!(&keys.meta, Length::WrongType(kind) if kind == "hash");
        if !has_meta {
            self.found.push(format!("{tenant} has lost its generation"));
        }
        if needs_rebuild {
            self.fixes.push(rebuild(tenant));
        } else if !has_meta {
            self.fixes.push(format!("posduif tenant resync {tenant} --yes"));
        }
    }
}

/// Checks the streams of all tenants.
fn facts_checks(tenants: &BTreeMap<String, Keys>, stopped: &Stopped) -> Check {
    let mut problems = Problems::default();
    for (tenant, keys) in tenants {
        problems.add_tenant(tenant, keys, stopped.contains_key(tenant));
    }
    for (tenant, streams) in stopped {
        let stopped = streams.iter().map(|stream| format!("{tenant}/{stream} is stopped"));
        problems.found.extend(stopped);
    }
    if !problems.found.is_empty() {
        let mut check = Check::fail(
            STREAMS,
            first_names(problems.found),
            "Readers of these streams miss changes until the streams are recreated, with which each device of the tenant \
             takes a snapshot; `posduif stream list` shows more. An engine must run",
        );
        problems.fixes.truncate(FIXES_MAX);
        check.fix = problems.fixes;
        return check;
    }
    if problems.unpublished.is_empty() {
        return Check::ok(STREAMS, format!("all {} tenants have theirs", tenants.len()));
    }
    let fixes = problems.unpublished.iter().take(FIXES_MAX);
    let fixes = fixes.map(|tenant| rebuild(tenant)).collect();
    let mut check = Check::warn(
        STREAMS,
        format!("none of {}", first_names(problems.unpublished)),
        "No engine has published the tenant yet, or its keys were removed. With a running engine this recreates them: each \
         device of the tenant takes a snapshot",
    );
    check.fix = fixes;
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::doctor::Level;

    fn tenant(change: impl FnOnce(&mut Keys)) -> BTreeMap<String, Keys> {
        let mut keys = Keys {
            changes: Length::Entries(3),
            shared: Length::Entries(1),
            quarantine: Length::Missing,
            meta: Length::WrongType("hash".to_owned()),
        };
        change(&mut keys);
        BTreeMap::from([("acme".to_owned(), keys)])
    }

    #[test]
    fn budgets_beyond_maxmemory_are_a_warning() {
        let level = |tenants, budget, limit| budget_check(tenants, budget, limit, Vec::new()).level;
        assert_eq!(
            [level(9, 10, 0), level(9, 10, 90), level(10, 10, 90), level(1, 100, 90)],
            [Level::Ok, Level::Ok, Level::Warn, Level::Warn]
        );
        let check = budget_check(1, 10, 0, vec!["acme".to_owned()]);
        assert!(check.level == Level::Fail && check.found.contains("acme"), "{check:?}");
    }

    #[test]
    fn broken_streams_are_found_with_their_fix() {
        let none = Stopped::new();
        assert_eq!(facts_checks(&tenant(|_| ()), &none).level, Level::Ok);
        let rebuild = "posduif stream rebuild --tenant acme --yes";
        let wrong_type = || Length::WrongType("string".to_owned());
        for (found, fix, check) in [
            (
                "acme/shared is missing",
                rebuild,
                facts_checks(&tenant(|keys| keys.shared = Length::Missing), &none),
            ),
            (
                "acme/changes is a string",
                rebuild,
                facts_checks(&tenant(|keys| keys.changes = wrong_type()), &none),
            ),
            (
                "acme has lost its generation",
                "posduif tenant resync acme --yes",
                facts_checks(&tenant(|keys| keys.meta = wrong_type()), &none),
            ),
            (
                "acme/inbox:7 is stopped",
                rebuild,
                facts_checks(
                    &tenant(|_| ()),
                    &Stopped::from([("acme".to_owned(), BTreeSet::from(["inbox:7".to_owned()]))]),
                ),
            ),
        ] {
            assert_eq!(
                (check.level, &*check.found, &*check.fix),
                (Level::Fail, found, &[fix.to_owned()][..])
            );
        }
        let check = facts_checks(&tenant(|keys| keys.quarantine = wrong_type()), &none);
        assert!(
            check.level == Level::Fail && check.found.contains("quarantine is a string"),
            "{check:?}"
        );
        let unpublished = tenant(|keys| {
            (keys.changes, keys.shared, keys.meta) = (Length::Missing, Length::Missing, Length::Missing);
        });
        assert_eq!(facts_checks(&unpublished, &none).level, Level::Warn);
    }
}
