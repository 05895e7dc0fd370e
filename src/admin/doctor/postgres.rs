//! What an engine needs of Postgres: settings, rights, room for slots, a publication that has everything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::admin::doctor::{Check, clock, skew, some_of};
use crate::admin::slot_report::{Left, Look, Verdict};
use crate::config::Config;
use crate::core::tenant::quote_identifier;
use crate::net::Address;
use crate::net::postgres::Server;
use crate::postgres::migrations;
use crate::postgres::publication::{self, Coverage};
use crate::postgres::tenants::{self, Listed};
use crate::postgres::{Database, sql};
use crate::replication::connection::Connection;

/// The oldest version that works, as `server_version_num` has it.
const VERSION_MIN: i32 = 140_000;

/// Connections of an engine beside its pool: replication, schema work, a timeline's history.
const CONNECTIONS_BESIDE: usize = 4;

/// Walsenders that an engine takes: one streams, one more asks for a timeline's history now and then.
const SENDERS: i32 = 2;

/// A slot without a reader that is given up sooner than this does not survive a quiet weekend without an engine.
const IDLE_SECONDS_MIN: f64 = 86_400.0;

/// What a restart is called.
const RESTART: &str = "restart Postgres (systemctl restart postgresql, pg_ctl restart, or by the provider)";

/// What is known of a server and of our role.
#[derive(Debug, Clone, PartialEq)]
struct Facts {
    version: String,
    version_number: i32,
    encoding: String,
    wal_level: String,
    is_standby: bool,
    slots_max: i32,
    slots_used: i32,
    senders_max: i32,
    senders_used: i32,
    connections_max: i32,
    database: String,
    role: String,
    is_superuser: bool,
    may_replicate: bool,
    may_create: bool,
    /// How a shell reaches the server as somebody else: options of `psql`.
    reach: String,
    /// How far its clock is ahead of ours.
    skew_seconds: f64,
}

impl Facts {
    async fn read(database: &Database, url: &str) -> Result<Self> {
        let began = Instant::now();
        let row = database
            .query_opt(&sql!("admin/doctor"), &[])
            .await?
            .context("Postgres says nothing of our role")?;
        let skew_seconds = skew(row.try_get("now")?, began);
        Ok(Self {
            version: row.try_get("version")?,
            version_number: row.try_get("version_number")?,
            encoding: row.try_get("encoding")?,
            wal_level: row.try_get("wal_level")?,
            is_standby: row.try_get("is_standby")?,
            slots_max: row.try_get("slots_max")?,
            slots_used: row.try_get("slots_used")?,
            senders_max: row.try_get("senders_max")?,
            senders_used: row.try_get("senders_used")?,
            connections_max: row.try_get("connections_max")?,
            database: row.try_get("database")?,
            role: row.try_get("role")?,
            is_superuser: row.try_get("is_superuser")?,
            may_replicate: row.try_get("may_replicate")?,
            may_create: row.try_get("may_create")?,
            reach: reach(url),
            skew_seconds,
        })
    }

    /// A command that runs a statement as somebody who may change settings.
    fn as_superuser(&self, statement: &str) -> String {
        if self.is_superuser {
            format!("psql \"$DATABASE_URL\" -c \"{statement}\"")
        } else {
            format!("psql {}-U postgres -d {} -c \"{statement}\"", self.reach, self.database)
        }
    }

    /// What is to be said when only a superuser can do it, and we are none.
    fn elsewhere(&self, parameter: &str) -> String {
        if self.is_superuser {
            String::new()
        } else {
            format!(
                ". The role {} is no superuser: run this as one (Debian's own server knows it on its machine only, as \
                 `sudo -u postgres psql` without -h and -U); of a managed Postgres, set {parameter} in its console",
                self.role
            )
        }
    }
}

/// The options of `psql` for the server that a URL names first.
fn reach(url: &str) -> String {
    let address = Server::parse(url)
        .ok()
        .and_then(|server| server.addresses().into_iter().next());
    match address {
        Some((Address::Tcp(host, port), _)) => format!("-h {host} -p {port} "),
        Some((Address::Unix(socket), _)) => match (socket.parent(), socket.extension()) {
            (Some(folder), Some(port)) => format!("-h {} -p {} ", folder.display(), port.display()),
            _ => String::new(),
        },
        None => String::new(),
    }
}

/// A name as SQL within a shell's double quotes has it.
fn word(name: &str) -> String {
    let is_plain = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if is_plain && !name.is_empty() {
        return name.to_owned();
    }
    let mut escaped = String::new();
    for c in quote_identifier(name).chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Looks at Postgres.
pub(crate) async fn examine(config: &Config) -> Vec<Check> {
    let database = match Database::connect(&config.postgres).await {
        Ok(database) => database,
        Err(error) => return vec![no_connection(&error, config.postgres.url.expose())],
    };
    let facts = match Facts::read(&database, config.postgres.url.expose()).await {
        Ok(facts) => facts,
        Err(error) => {
            return vec![Check::fail(
                "postgres.connection",
                format!("{error:#}"),
                "Postgres takes the login and answers no questions",
            )];
        }
    };
    let mut checks = vec![Check::ok(
        "postgres.connection",
        format!("{} as {}", facts.database, facts.role),
    )];
    checks.extend(facts_checks(&facts, config));
    checks.push(clock(
        "postgres.clock",
        "Postgres",
        facts.skew_seconds,
        config.health.max_staleness_seconds,
    ));
    checks.push(replication_login(config, &facts).await);
    match Look::take(&database).await {
        Ok(look) => checks.extend(slot_checks(&look, &facts, &config.replication.slot)),
        Err(error) => checks.push(Check::fail("postgres.slots", format!("{error:#}"), "")),
    }
    checks.extend(schemas(&database, config, &facts).await);
    checks
}

/// Why there is no connection, and what mends that: by what Postgres says where it is there.
fn no_connection(error: &anyhow::Error, url: &str) -> Check {
    let text = format!("{error:#}");
    let code = error
        .downcast_ref::<crate::postgres::Error>()
        .and_then(crate::postgres::Error::code)
        .map(tokio_postgres::error::SqlState::code);
    let server = Server::parse(url).ok();
    let named = server.as_ref().map(Server::config);
    let role = named.and_then(tokio_postgres::Config::get_user).unwrap_or("posduif");
    let database = named.and_then(tokio_postgres::Config::get_dbname).unwrap_or(role);
    let superuser = |command: &str| format!("psql {}-U postgres -d postgres -c \"{command}\"", reach(url));
    let (means, fix) = match code {
        Some("28P01") => (
            format!(
                "Postgres is there and refuses the password, or knows no role {role}: put the right ones into \
                 `postgres.url` (or DATABASE_URL). This sets another password"
            ),
            superuser(&format!("\\\\password {}", word(role))),
        ),
        Some("28000") if text.contains("does not exist") => (
            format!(
                "Postgres is there and knows no role {role}: name another in `postgres.url` (or DATABASE_URL), or make it"
            ),
            superuser(&format!("CREATE ROLE {} LOGIN REPLICATION", word(role))),
        ),
        Some("28000") if text.contains("not permitted to log in") => (
            format!("Postgres is there, and the role {role} may not log in"),
            superuser(&format!("ALTER ROLE {} LOGIN", word(role))),
        ),
        Some("28000") => (
            format!(
                "Postgres is there and lets {role} in from nowhere like this: pg_hba.conf needs a line such as `host \
                 {database} {role} samenet scram-sha-256`. This says where the file is"
            ),
            superuser("SHOW hba_file"),
        ),
        Some("3D000") => (
            format!(
                "Postgres is there and has no database {database}: name another in `postgres.url` (or DATABASE_URL), or \
                 make it"
            ),
            superuser(&format!("CREATE DATABASE {} OWNER {}", word(database), word(role))),
        ),
        Some("42501") => (
            format!("Postgres is there, and {role} may not connect to the database {database}"),
            superuser(&format!(
                "GRANT CONNECT ON DATABASE {} TO {}",
                word(database),
                word(role)
            )),
        ),
        Some("53300") => (
            "All connections of Postgres, of the role or of the database are taken. This says by whom".to_owned(),
            superuser("SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC"),
        ),
        _ => (
            "Nothing works without Postgres, and nothing else of it can be looked at".to_owned(),
            "pg_isready -d \"$DATABASE_URL\"".to_owned(),
        ),
    };
    Check::fail("postgres.connection", text, means).fix(fix)
}

/// Judges settings and rights.
fn facts_checks(facts: &Facts, config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let version = format!("PostgreSQL {}", facts.version);
    checks.push(if facts.version_number < VERSION_MIN {
        Check::fail("postgres.version", version, "Needed is 14 or newer: upgrade it")
    } else {
        Check::ok("postgres.version", version)
    });
    checks.push(if facts.is_standby {
        Check::fail(
            "postgres.primary",
            "a standby",
            "An engine writes heartbeats and makes its slot, which only a primary takes: name the primary in `postgres.url`",
        )
    } else {
        Check::ok("postgres.primary", "a primary")
    });
    checks.push(if facts.encoding == "UTF8" {
        Check::ok("postgres.encoding", "UTF8")
    } else {
        Check::fail(
            "postgres.encoding",
            facts.encoding.clone(),
            "Rows become JSON, which is UTF-8: make a database of that encoding and move the data there",
        )
        .fix(facts.as_superuser(
            "CREATE DATABASE posduif_utf8 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        ))
    });
    checks.push(if facts.wal_level == "logical" {
        Check::ok("postgres.wal_level", "logical")
    } else {
        Check::fail(
            "postgres.wal_level",
            facts.wal_level.clone(),
            format!(
                "The write-ahead log carries no rows below `logical`, so that nothing reaches anybody{}",
                facts.elsewhere(
                    "logical replication (Amazon RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = \
                     on; Azure: wal_level = logical)"
                )
            ),
        )
        .fix(facts.as_superuser("ALTER SYSTEM SET wal_level = 'logical'"))
        .then(RESTART)
    });
    checks.push(if facts.may_replicate {
        Check::ok("postgres.replication_right", format!("{} may replicate", facts.role))
    } else {
        Check::fail(
            "postgres.replication_right",
            format!("{} may not replicate", facts.role),
            "Only a role with REPLICATION reads the log; on Amazon RDS it is GRANT rds_replication instead",
        )
        .fix(facts.as_superuser(&format!("ALTER ROLE {} REPLICATION", word(&facts.role))))
    });
    checks.push(if facts.may_create {
        let how = if facts.is_superuser && facts.version_number >= 150_000 {
            "publishes whole schemas: new tables join by themselves"
        } else {
            "publishes a list of tables: new ones join with `posduif migrate up` or an engine's start"
        };
        Check::ok("postgres.rights", format!("{} may create, and {how}", facts.role))
    } else {
        Check::fail(
            "postgres.rights",
            format!("{} may not CREATE in the database", facts.role),
            "The engine makes its schemas and its publication",
        )
        .fix(facts.as_superuser(&format!(
            "GRANT CREATE ON DATABASE {} TO {}",
            word(&facts.database),
            word(&facts.role)
        )))
    });
    let wanted = config.postgres.pool_size + CONNECTIONS_BESIDE;
    let room = usize::try_from(facts.connections_max).unwrap_or_default();
    let found = format!("{room} for ordinary roles");
    checks.push(if room >= wanted {
        Check::ok("postgres.max_connections", found)
    } else {
        Check::warn(
            "postgres.max_connections",
            found,
            format!(
                "One engine takes up to {wanted} connections (`postgres.pool_size` and {CONNECTIONS_BESIDE} more){}",
                facts.elsewhere("max_connections")
            ),
        )
        .fix(facts.as_superuser(&format!("ALTER SYSTEM SET max_connections = {}", wanted + 20)))
        .then(RESTART)
    });
    checks
}

/// Whether the log can be asked for: a connection of its own kind, for which `pg_hba.conf` may have other rules.
async fn replication_login(config: &Config, facts: &Facts) -> Check {
    const NAME: &str = "postgres.replication_login";
    let timeout = Duration::from_secs(config.postgres.connect_timeout_seconds);
    let attempt = async {
        let server = Server::parse(config.postgres.url.expose())?;
        let patience = Duration::from_secs(config.replication.wal_sender_timeout_seconds);
        let mut connection = Connection::connect(&server, timeout, patience).await?;
        let identity = connection.identify_system().await?;
        connection.close().await;
        Ok::<_, anyhow::Error>(identity)
    };
    let failure = match tokio::time::timeout(timeout, attempt).await {
        Ok(Ok(identity)) => {
            return Check::ok(
                NAME,
                format!("system {}, timeline {}", identity.system_id, identity.timeline),
            );
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer within {} s", timeout.as_secs()),
    };
    refused_login(facts, failure)
}

/// Judges why a replication connection was refused.
fn refused_login(facts: &Facts, failure: String) -> Check {
    const NAME: &str = "postgres.replication_login";
    if !facts.may_replicate && !failure.contains("pg_hba.conf") {
        let meaning = format!("The role {} lacks the right to read the log", facts.role);
        let fix = format!("ALTER ROLE {} REPLICATION", word(&facts.role));
        return Check::fail(NAME, failure, meaning).fix(facts.as_superuser(&fix));
    }
    let meaning = format!(
        "The log is read over a replication connection, which is let in by its database's name: pg_hba.conf needs a line \
         such as `host {} {} samenet scram-sha-256`. This says where the file is",
        facts.database, facts.role
    );
    Check::fail(NAME, failure, meaning).fix(facts.as_superuser("SHOW hba_file"))
}

/// Judges the room for slots, ours and those that fill the disk.
fn slot_checks(look: &Look, facts: &Facts, ours: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    let found = look.since(look, ours);
    let own = found.iter().find(|finding| finding.is_ours);
    let free = facts.slots_max - facts.slots_used;
    let text = format!("{} of {} in use", facts.slots_used, facts.slots_max);
    checks.push(if free > 0 || own.is_some() {
        Check::ok("postgres.max_replication_slots", text)
    } else {
        Check::fail(
            "postgres.max_replication_slots",
            text,
            format!(
                "No slot is left for this engine; `posduif slot list` shows who has them{}",
                facts.elsewhere("max_replication_slots")
            ),
        )
        .fix(facts.as_superuser(&format!(
            "ALTER SYSTEM SET max_replication_slots = {}",
            facts.slots_max + 5
        )))
        .then(RESTART)
    });
    let is_read = own.is_some_and(|finding| finding.slot.is_active);
    let wanted = if is_read { SENDERS - 1 } else { SENDERS };
    let text = format!("{} of {} in use", facts.senders_used, facts.senders_max);
    checks.push(if facts.senders_max - facts.senders_used >= wanted {
        Check::ok("postgres.max_wal_senders", text)
    } else {
        Check::fail(
            "postgres.max_wal_senders",
            text,
            format!(
                "An engine takes one walsender, and another for a moment after a failover{}",
                facts.elsewhere("max_wal_senders")
            ),
        )
        .fix(facts.as_superuser(&format!("ALTER SYSTEM SET max_wal_senders = {}", facts.senders_max + 5)))
        .then(RESTART)
    });
    checks.push(match look.keep_bytes {
        Some(bytes) => Check::ok("postgres.max_slot_wal_keep_size", format!("{} MB", bytes >> 20)),
        None => Check::warn(
            "postgres.max_slot_wal_keep_size",
            "-1, which is no bound",
            format!(
                "A slot that nobody reads keeps WAL until the disk is full and Postgres stops. With a bound the slot is \
                 lost instead, which costs a new epoch. Choose what the disk can spare{}",
                facts.elsewhere("max_slot_wal_keep_size")
            ),
        )
        .fix(facts.as_superuser("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'"))
        .fix(facts.as_superuser("SELECT pg_reload_conf()")),
    });
    checks.push(match look.idle_timeout_seconds {
        Some(seconds) if seconds < IDLE_SECONDS_MIN => Check::warn(
            "postgres.idle_replication_slot_timeout",
            format!("{seconds} s"),
            format!(
                "Our slot is given up when no engine has read it for so long, which costs a new epoch{}",
                facts.elsewhere("idle_replication_slot_timeout")
            ),
        )
        .fix(facts.as_superuser("ALTER SYSTEM SET idle_replication_slot_timeout = '7d'"))
        .fix(facts.as_superuser("SELECT pg_reload_conf()")),
        Some(seconds) => Check::ok("postgres.idle_replication_slot_timeout", format!("{seconds} s")),
        None => Check::ok("postgres.idle_replication_slot_timeout", "none"),
    });
    checks.push(match own {
        None => Check::ok("postgres.slot", format!("{ours} is made by the first engine")),
        Some(finding) if finding.slot.plugin.as_deref() != Some("pgoutput") => Check::fail(
            "postgres.slot",
            format!(
                "{ours} decodes with {}",
                finding.slot.plugin.as_deref().unwrap_or("nothing")
            ),
            "It is somebody else's: set `replication.slot` to another name",
        )
        .fix(format!("export POSDUIF__REPLICATION__SLOT={ours}_engine")),
        Some(finding) => match (finding.verdict, finding.left) {
            (Verdict::Lost, _) => Check::fail(
                "postgres.slot",
                format!("{ours} is lost"),
                "Postgres has removed WAL that it needed, so that nothing is published from it any more. The next engine \
                 makes it anew and begins a new epoch: every device takes a snapshot",
            )
            .fix("posduif serve"),
            (Verdict::InUse, Left::Seconds(_)) => Check::warn(
                "postgres.slot",
                format!("{ours} is read, and about to be lost all the same"),
                "Its reader does not confirm what it reads; this tells why",
            )
            .fix("posduif status"),
            (Verdict::InUse, _) => Check::ok("postgres.slot", format!("{ours} is read")),
            _ => Check::warn(
                "postgres.slot",
                format!("{ours} is there, and no engine reads it"),
                "It keeps WAL for an engine; start one, or drop it for good",
            )
            .fix("posduif serve"),
        },
    });
    let others = found.iter().filter(|finding| !finding.is_ours);
    checks.extend(others.filter_map(|finding| {
        let name = &finding.slot.name;
        let (is, means) = match finding.verdict {
            Verdict::SafeToDrop => ("abandoned", "Nobody reads it, and it keeps WAL for ever"),
            Verdict::Lost => ("lost", "It is of no use to anybody"),
            Verdict::AskOwner => return None,
            Verdict::InUse | Verdict::NoEngine | Verdict::Synced => return None,
        };
        let kept = finding.retained_bytes.unwrap_or_default() >> 20;
        let check = Check::warn(
            "postgres.other_slot",
            format!("{name} is {is}, {kept} MB of WAL"),
            means,
        );
        Some(check.fix(finding.command()?))
    }));
    checks
}

/// Schemas, publication and replica identities.
async fn schemas(database: &Database, config: &Config, facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    let is_fresh = match migrations::status(database).await {
        Ok(status) => {
            let pending: usize = status.iter().map(|schema| schema.pending.len()).sum();
            let dirty = status.iter().find(|schema| schema.dirty);
            let is_fresh = status.iter().all(|schema| schema.version == 0);
            checks.push(match dirty {
                Some(schema) => Check::fail(
                    "postgres.schemas",
                    format!("{} is marked dirty", schema.schema),
                    "Another tool failed half-way: repair the schema, then write down which version is true",
                )
                .fix(format!(
                    "posduif migrate force {} --schema {}",
                    schema.version, schema.schema
                )),
                None if is_fresh => Check::ok("postgres.schemas", "made by the first engine, or `posduif migrate up`"),
                None if pending > 0 => Check::warn(
                    "postgres.schemas",
                    format!("{pending} migrations are missing"),
                    "The next start of an engine applies them, too",
                )
                .fix("posduif migrate up"),
                None => Check::ok("postgres.schemas", format!("{} are up to date", status.len())),
            });
            is_fresh
        }
        Err(error) => {
            checks.push(Check::fail(
                "postgres.schemas",
                format!("{error:#}"),
                "Their versions cannot be read",
            ));
            return checks;
        }
    };
    if is_fresh {
        return checks;
    }
    checks.push(tenants(database).await);
    match publication::coverage(database, &config.replication.publication).await {
        Ok(coverage) => checks.extend(coverage_checks(&coverage, &config.replication.publication, facts)),
        Err(error) => checks.push(Check::fail(
            "postgres.publication",
            format!("{error:#}"),
            "It cannot be read",
        )),
    }
    checks
}

/// Whether each registered tenant has its schema, and that its tables.
async fn tenants(database: &Database) -> Check {
    const NAME: &str = "postgres.tenants";
    let look = async {
        let directory = tenants::directory(database).await?;
        let tables = tenants::missing_tables(database, None).await?;
        Ok::<_, crate::postgres::Error>((directory, tables))
    };
    let (directory, tables) = match look.await {
        Ok(found) => found,
        Err(error) => return Check::fail(NAME, format!("{error:#}"), "They cannot be read"),
    };
    let gone: Vec<&Listed> = directory.iter().filter(|listed| !listed.has_schema()).collect();
    if gone.is_empty() && tables.is_empty() {
        return Check::ok(NAME, format!("all {} have their schema and tables", directory.len()));
    }
    let schemas = gone.iter().map(|listed| format!("the schema {}", listed.tenant.schema));
    let missing: Vec<String> = schemas.chain(tables).collect();
    let or = gone.first().map_or_else(String::new, |listed| {
        let name = &listed.tenant.name;
        format!(
            ". A tenant that is to begin empty is forgotten with its devices and credentials by `posduif tenant drop {name} \
             --yes`, and made anew by `posduif tenant create {name}`"
        )
    });
    Check::fail(
        NAME,
        format!("missing: {}", some_of(missing)),
        format!(
            "Somebody has dropped or renamed it, and nobody of the tenant can work: bring it back from a backup{or}"
        ),
    )
}

/// Judges what is published.
fn coverage_checks(coverage: &Coverage, name: &str, facts: &Facts) -> Vec<Check> {
    let place = |table: &publication::Table| format!("{}.{}", table.schema, table.table);
    // Only its owner changes a table, and adds it.
    let owned = |check: Check, tables: Vec<&publication::Table>| {
        let mut wrong_type = tables.into_iter().filter(|table| !table.is_ours).peekable();
        if wrong_type.peek().is_none() {
            return check;
        }
        let mut check = Check {
            meaning: format!(
                "{}. A table of another owner is to be {}'s first",
                check.meaning, facts.role
            ),
            ..check
        };
        for table in wrong_type {
            check = check.fix(facts.as_superuser(&format!(
                "ALTER TABLE {}.{} OWNER TO {}",
                word(&table.schema),
                word(&table.table),
                word(&facts.role)
            )));
        }
        check
    };
    let missing: Vec<String> = coverage.missing().map(place).collect();
    let unidentified: Vec<String> = coverage.unidentified().map(place).collect();
    let total = coverage.tables.len();
    let publication = if !coverage.exists {
        Check::warn(
            "postgres.publication",
            format!("{name} is missing"),
            "The next engine makes it, too",
        )
        .fix("posduif publication sync")
    } else if coverage.operations.len() < 4 || !coverage.via_partition_root {
        Check::fail(
            "postgres.publication",
            format!("{name} publishes {} only", coverage.operations.join(", ")),
            "Somebody has changed it: changes are lost, or come under a partition's name",
        )
        .fix(format!(
            "psql \"$DATABASE_URL\" -c 'ALTER PUBLICATION {} SET (publish = '\\''insert, update, delete, truncate'\\'', \
             publish_via_partition_root = true)'",
            quote_identifier(name)
        ))
    } else if missing.is_empty() {
        Check::ok("postgres.publication", format!("{name} has all {total} tables"))
    } else {
        let check = Check::fail(
            "postgres.publication",
            format!("{name} lacks {}", some_of(missing)),
            "No stream hears of what is written there. When such a table has rows, its tenant's streams begin anew with this",
        );
        owned(check, coverage.missing().collect()).fix("posduif publication sync")
    };
    let identity = if unidentified.is_empty() {
        let keyed = coverage.tables.iter().filter(|table| table.virtual_columns).count();
        let found = match keyed {
            0 => format!("full for all {total} tables"),
            _ => format!(
                "full for {} tables, of the primary key for {keyed} with virtual columns",
                total - keyed
            ),
        };
        Check::ok("postgres.replica_identity", found)
    } else {
        let check = Check::fail(
            "postgres.replica_identity",
            format!("not as it should be for {}", some_of(unidentified)),
            "The log lacks old rows, so that who may no longer see a row is not told, or an UPDATE fails",
        );
        owned(check, coverage.unidentified().collect()).fix("posduif publication sync")
    };
    vec![publication, identity]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::doctor::Level;
    use crate::admin::slot_report::Slot;

    fn facts() -> Facts {
        Facts {
            version: "15.18".to_owned(),
            version_number: 150_018,
            encoding: "UTF8".to_owned(),
            wal_level: "logical".to_owned(),
            is_standby: false,
            slots_max: 10,
            slots_used: 0,
            senders_max: 10,
            senders_used: 0,
            connections_max: 97,
            database: "posduif".to_owned(),
            role: "posduif".to_owned(),
            is_superuser: true,
            may_replicate: true,
            may_create: true,
            reach: "-h db -p 5432 ".to_owned(),
            skew_seconds: 0.0,
        }
    }

    fn look() -> Look {
        Look {
            at: Instant::now(),
            wal_position: 1000.into(),
            is_standby: false,
            keep_bytes: Some(1 << 30),
            idle_timeout_seconds: None,
            slots: Vec::new(),
        }
    }

    /// The checks that are not well, with the whole of each.
    fn wrong(facts: &Facts, look: &Look) -> Vec<Check> {
        let mut checks = facts_checks(facts, &Config::default());
        checks.extend(slot_checks(look, facts, "posduif"));
        checks.retain(|check| check.level != Level::Ok);
        checks
    }

    #[test]
    fn a_good_server_has_nothing_wrong() {
        assert_eq!(wrong(&facts(), &look()), Vec::new());
    }

    #[test]
    fn each_wrong_setting_is_named_with_its_fix() {
        let of = |change: fn(&mut Facts, &mut Look)| {
            let (mut facts, mut look) = (facts(), look());
            change(&mut facts, &mut look);
            let wrong = wrong(&facts, &look);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            (wrong[0].name, wrong[0].level, wrong[0].fix.join("; "))
        };
        for (name, level, fix, change) in [
            (
                "postgres.version",
                Level::Fail,
                "",
                (|facts, _| facts.version_number = 130_000) as fn(&mut Facts, &mut Look),
            ),
            ("postgres.primary", Level::Fail, "", |facts, _| facts.is_standby = true),
            ("postgres.encoding", Level::Fail, "ENCODING 'UTF8'", |facts, _| {
                facts.encoding = "LATIN1".to_owned()
            }),
            (
                "postgres.wal_level",
                Level::Fail,
                "wal_level = 'logical'",
                |facts, _| facts.wal_level = "replica".to_owned(),
            ),
            (
                "postgres.replication_right",
                Level::Fail,
                "ALTER ROLE posduif REPLICATION",
                |facts, _| facts.may_replicate = false,
            ),
            (
                "postgres.rights",
                Level::Fail,
                "GRANT CREATE ON DATABASE",
                |facts, _| facts.may_create = false,
            ),
            (
                "postgres.max_connections",
                Level::Warn,
                "max_connections = 40",
                |facts, _| facts.connections_max = 10,
            ),
            (
                "postgres.max_replication_slots",
                Level::Fail,
                "max_replication_slots = 15",
                |facts, _| facts.slots_used = 10,
            ),
            (
                "postgres.max_wal_senders",
                Level::Fail,
                "max_wal_senders = 15",
                |facts, _| facts.senders_used = 9,
            ),
            (
                "postgres.max_slot_wal_keep_size",
                Level::Warn,
                "pg_reload_conf",
                |_, look| look.keep_bytes = None,
            ),
            (
                "postgres.idle_replication_slot_timeout",
                Level::Warn,
                "7d",
                |_, look| look.idle_timeout_seconds = Some(60.0),
            ),
        ] {
            let found = of(change);
            assert_eq!((found.0, found.1), (name, level));
            assert!(found.2.contains(fix), "{name}: {}", found.2);
        }
    }

    #[test]
    fn a_lost_slot_of_ours_is_a_failure() {
        let slot = Slot {
            name: "posduif".to_owned(),
            is_logical: true,
            plugin: Some("pgoutput".to_owned()),
            database: Some("posduif".to_owned()),
            is_here: true,
            is_temporary: false,
            is_active: false,
            reader: None,
            restart: None,
            confirmed: Some(500.into()),
            wal_status: Some("lost".to_owned()),
            safe_bytes: None,
            lag_seconds: None,
            is_failover: None,
            is_synced: None,
            inactive_seconds: None,
            invalidation: None,
        };
        let look = Look {
            slots: vec![slot],
            ..look()
        };
        let wrong = wrong(&facts(), &look);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert_eq!((wrong[0].name, wrong[0].level), ("postgres.slot", Level::Fail));
        assert!(wrong[0].meaning.contains("new epoch"), "{wrong:?}");
    }

    #[test]
    fn a_refused_replication_login_is_mended_where_it_was_refused() {
        let mut facts = facts();
        let hba = refused_login(&facts, "no pg_hba.conf entry for replication connection".to_owned());
        assert!(hba.fix[0].contains("SHOW hba_file"), "{hba:?}");
        facts.may_replicate = false;
        let right = refused_login(
            &facts,
            "must be superuser or replication role to start walsender".to_owned(),
        );
        assert!(right.fix[0].contains("ALTER ROLE posduif REPLICATION"), "{right:?}");
        assert!(!right.meaning.contains("pg_hba.conf"), "{right:?}");
    }

    #[test]
    fn names_reach_postgres_through_a_shell_as_they_are() {
        assert_eq!(word("posduif"), "posduif");
        assert_eq!(word("Ann's $x"), r#"\"Ann's \$x\""#);
        assert_eq!(
            reach("postgres://u:p@db.example.com:6000/d"),
            "-h db.example.com -p 6000 "
        );
        assert_eq!(
            reach("postgres:///d?host=/run/postgresql"),
            "-h /run/postgresql -p 5432 "
        );
    }

    #[test]
    fn without_a_superuser_fixes_are_for_somebody_else() {
        let managed = Facts {
            is_superuser: false,
            wal_level: "replica".to_owned(),
            ..facts()
        };
        let wrong = wrong(&managed, &look());
        assert!(
            wrong[0].fix[0].starts_with("psql -h db -p 5432 -U postgres -d posduif -c "),
            "{wrong:?}"
        );
        assert!(wrong[0].meaning.contains("rds.logical_replication"), "{wrong:?}");
    }
}
