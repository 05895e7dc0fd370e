//! What Redis should hold, by what Postgres has: a checkpoint, and the streams of every tenant.

use std::collections::{BTreeMap, BTreeSet};

use crate::admin::doctor::Check;
use crate::admin::slot_report;
use crate::admin::streams::{self, Length};
use crate::config::Config;
use crate::postgres::{Database, tenants};
use crate::redis::store::Store;

/// Of how many tenants the commands are named.
const FIXES_MAX: usize = 10;

/// What is in the places of a tenant's keys.
#[derive(Debug)]
struct Keys {
    changes: Length,
    shared: Length,
    quarantine: Length,
    /// The hash of its generation and state.
    meta: Length,
}

/// Looks at what Redis holds. Nothing is said when Postgres or Redis is away, which is said elsewhere.
pub(crate) async fn examine(config: &Config) -> Vec<Check> {
    let Ok(store) = Store::new(&config.redis) else {
        return Vec::new();
    };
    let (database, redis) = tokio::join!(Database::connect(&config.postgres), store.check());
    let (Ok(database), Ok(())) = (database, redis) else {
        return Vec::new();
    };
    let mut checks = Vec::new();
    let has_checkpoint = match store.checkpoint().await {
        Ok(Some(checkpoint)) => {
            let epoch = checkpoint.epoch.number;
            checks.push(Check::ok("redis.checkpoint", format!("epoch {epoch}")));
            true
        }
        Ok(None) => {
            checks.push(no_checkpoint(&database, config).await);
            false
        }
        Err(error) => {
            checks.push(Check::fail(
                "redis.checkpoint",
                error.to_string(),
                "Nothing tells how far publishing has come, so that no engine goes on",
            ));
            false
        }
    };
    // Before anything was published there are none.
    if has_checkpoint {
        checks.push(match tenants_streams(&database, &store).await {
            Ok((keys, stopped)) => facts_checks(&keys, &stopped),
            Err(error) => Check::fail("redis.streams", format!("{error:#}"), "They cannot be looked at"),
        });
    }
    checks
}

/// Judges that there is no checkpoint, by whether there was ever an epoch.
async fn no_checkpoint(database: &Database, config: &Config) -> Check {
    const NAME: &str = "redis.checkpoint";
    let slot = &config.replication.slot;
    // Of a database without our tables nobody has published anything.
    let epochs = slot_report::epochs(database, slot, 1).await.unwrap_or_default();
    match epochs.first() {
        None => Check::ok(NAME, "none: the first engine writes it"),
        Some(epoch) => Check::warn(
            NAME,
            format!(
                "none, though epoch {} of slot {slot} began at {}",
                epoch.number, epoch.started_at
            ),
            "This is another Redis than the engine's, or it was emptied: check `redis.url` (or REDIS_URL) and \
             `redis.prefix` first. The next engine that starts here begins a new epoch: every device takes a snapshot",
        ),
    }
}

type Stopped = BTreeMap<String, BTreeSet<String>>;

async fn tenants_streams(database: &Database, store: &Store) -> anyhow::Result<(BTreeMap<String, Keys>, Stopped)> {
    let tenants = tenants::list(database).await?;
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

/// What begins a tenant's streams anew.
fn rebuild(tenant: &str) -> String {
    format!("posduif stream rebuild --tenant {tenant} --yes")
}

/// Judges the streams of all tenants.
fn facts_checks(found: &BTreeMap<String, Keys>, stopped: &Stopped) -> Check {
    const NAME: &str = "redis.streams";
    let (mut wrong, mut fixes, mut unborn) = (Vec::new(), Vec::new(), Vec::new());
    for (tenant, keys) in found {
        let streams = [("changes", &keys.changes), ("shared", &keys.shared)];
        if keys.meta == Length::Missing && streams.iter().all(|(_, length)| **length == Length::Missing) {
            unborn.push(tenant.clone());
            continue;
        }
        let mut is_rebuilt = stopped.contains_key(tenant);
        for (stream, length) in streams {
            let is = match length {
                Length::Entries(_) => continue,
                Length::Missing => "missing".to_owned(),
                Length::WrongType(kind) => format!("a {kind}"),
            };
            wrong.push(format!("{tenant}/{stream} is {is}"));
            is_rebuilt = true;
        }
        if let Length::WrongType(kind) = &keys.quarantine {
            wrong.push(format!(
                "{tenant}/quarantine is a {kind}, which `posduif tenant show {tenant}` says more of"
            ));
        }
        match &keys.meta {
            Length::WrongType(kind) if kind == "hash" => {}
            // A rebuild makes it, too.
            _ => {
                wrong.push(format!("{tenant} has lost its generation"));
                if !is_rebuilt {
                    fixes.push(format!("posduif tenant resync {tenant} --yes"));
                }
            }
        }
        if is_rebuilt {
            fixes.push(rebuild(tenant));
        }
    }
    for (tenant, streams) in stopped {
        wrong.extend(streams.iter().map(|stream| format!("{tenant}/{stream} is stopped")));
    }
    fixes.truncate(FIXES_MAX);
    if !wrong.is_empty() {
        let check = Check::fail(
            NAME,
            crate::admin::doctor::some_of(wrong),
            "Who reads these streams misses changes until they begin anew, with which each device of the tenant takes a \
             snapshot; `posduif stream list` says more. An engine must run",
        );
        return Check { fix: fixes, ..check };
    }
    if unborn.is_empty() {
        return Check::ok(NAME, format!("those of all {} tenants are there", found.len()));
    }
    let check = Check::warn(
        NAME,
        format!("none of {}", crate::admin::doctor::some_of(unborn.clone())),
        "No engine has published the tenant yet, or somebody has removed its keys. With a running engine this makes them \
         anew: each device of the tenant takes a snapshot",
    );
    Check {
        fix: unborn.iter().take(FIXES_MAX).map(|tenant| rebuild(tenant)).collect(),
        ..check
    }
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
    fn what_is_missing_spoilt_or_stopped_is_named_with_what_makes_it_anew() {
        let none = Stopped::new();
        assert_eq!(facts_checks(&tenant(|_| ()), &none).level, Level::Ok);
        let rebuild = "posduif stream rebuild --tenant acme --yes";
        let spoilt = || Length::WrongType("string".to_owned());
        for (found, fix, check) in [
            (
                "acme/shared is missing",
                rebuild,
                facts_checks(&tenant(|keys| keys.shared = Length::Missing), &none),
            ),
            (
                "acme/changes is a string",
                rebuild,
                facts_checks(&tenant(|keys| keys.changes = spoilt()), &none),
            ),
            (
                "acme has lost its generation",
                "posduif tenant resync acme --yes",
                facts_checks(&tenant(|keys| keys.meta = spoilt()), &none),
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
        let check = facts_checks(&tenant(|keys| keys.quarantine = spoilt()), &none);
        assert!(
            check.level == Level::Fail && check.found.contains("quarantine is a string"),
            "{check:?}"
        );
        let unborn = tenant(|keys| {
            (keys.changes, keys.shared, keys.meta) = (Length::Missing, Length::Missing, Length::Missing);
        });
        assert_eq!(facts_checks(&unborn, &none).level, Level::Warn);
    }
}
