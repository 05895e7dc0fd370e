//! Checks of Postgres: connection, settings and privileges. Slots, schemas and publication have files of their own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_postgres::error::SqlState;

use crate::admin::doctor::{Check, clock, schemas, skew, slots};
use crate::admin::slot_report::SlotSnapshot;
use crate::config::Config;
use crate::core::tenant::quote_identifier;
use crate::net::Address;
use crate::net::postgres::Server;
use crate::postgres::{Database, sql};
use crate::replication::connection::Connection;

/// The oldest supported version, as in `server_version_num`.
const VERSION_MIN: i32 = 140_000;

/// From this version on a superuser can publish whole schemas.
const VERSION_WHOLE_SCHEMAS: i32 = 150_000;

/// Connections of an engine outside its pool: replication, schema work, timeline history.
const OTHER_CONNECTIONS: usize = 4;

/// How to restart the server.
pub(super) const RESTART: &str =
    "restart Postgres (systemctl restart postgresql, pg_ctl restart, or the provider's console)";

/// Facts about the server and our role.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) version_number: i32,
    pub(super) encoding: String,
    pub(super) wal_level: String,
    pub(super) is_standby: bool,
    pub(super) slots_max: i32,
    pub(super) slots_used: i32,
    pub(super) senders_max: i32,
    pub(super) senders_used: i32,
    pub(super) connections_max: i32,
    pub(super) database: String,
    pub(super) role: String,
    pub(super) is_superuser: bool,
    pub(super) may_replicate: bool,
    pub(super) may_create: bool,
    /// Options of `psql` to reach the server as another role.
    pub(super) reach: String,
    /// How far the server's clock is ahead of ours.
    pub(super) skew_seconds: f64,
}

impl Facts {
    async fn read(database: &Database, url: &str) -> Result<Self> {
        let began = Instant::now();
        let row = database
            .query_opt(&sql!("admin/doctor"), &[])
            .await?
            .context("Postgres returned nothing about our role")?;
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

    /// A command that runs a statement as a superuser.
    pub(super) fn as_superuser(&self, statement: &str) -> String {
        if self.is_superuser {
            format!("psql \"$DATABASE_URL\" -c \"{statement}\"")
        } else {
            format!("psql {}-U postgres -d {} -c \"{statement}\"", self.reach, self.database)
        }
    }

    /// A command that runs a statement as our role, or as a superuser where ours may not.
    pub(super) fn command(&self, statement: &str, as_superuser: bool) -> String {
        let quoted = statement.replace('\'', "'\\''");
        if as_superuser && !self.is_superuser {
            format!("psql {}-U postgres -d {} -c '{quoted}'", self.reach, self.database)
        } else {
            format!("psql \"$DATABASE_URL\" -c '{quoted}'")
        }
    }

    /// A note, unless our role is a superuser, on how to run a fix that needs one.
    pub(super) fn elsewhere(&self, parameter: &str) -> String {
        if self.is_superuser {
            String::new()
        } else {
            format!(
                ". The role {} is not a superuser: run this as one (Debian's default server accepts it locally only, by \
                 `sudo -u postgres psql` without -h and -U); on a managed Postgres, set {parameter} in its console",
                self.role
            )
        }
    }
}

/// Options of `psql` for the first server of a URL.
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

/// An identifier in SQL within double quotes of a shell.
pub(super) fn shell_identifier(name: &str) -> String {
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

/// Checks Postgres.
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
                "Postgres accepts the login but answers no query",
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
    match SlotSnapshot::take(&database).await {
        Ok(snapshot) => checks.extend(slots::checks(&snapshot, &facts, &config.slots())),
        Err(error) => checks.push(Check::fail("postgres.slots", format!("{error:#}"), "")),
    }
    checks.extend(schemas::examine(&database, config, &facts).await);
    checks
}

/// The cause of a failed connection, by SQLSTATE, and its fix.
fn no_connection(error: &anyhow::Error, url: &str) -> Check {
    let text = format!("{error:#}");
    let code = error
        .downcast_ref::<crate::postgres::Error>()
        .and_then(crate::postgres::Error::code)
        .cloned();
    let server = Server::parse(url).ok();
    let named = server.as_ref().map(Server::config);
    let role = named.and_then(tokio_postgres::Config::get_user).unwrap_or("posduif");
    let database = named.and_then(tokio_postgres::Config::get_dbname).unwrap_or(role);
    let (meaning, fix) = match connection_problem(code, &text, role, database) {
        Some((meaning, statement)) => (
            meaning,
            format!("psql {}-U postgres -d postgres -c \"{statement}\"", reach(url)),
        ),
        None => (
            "Nothing works without Postgres, and nothing else of it can be checked".to_owned(),
            "pg_isready -d \"$DATABASE_URL\"".to_owned(),
        ),
    };
    Check::fail("postgres.connection", text, meaning).fix(fix)
}

/// The meaning of a refused connection, and the statement that fixes it.
fn connection_problem(code: Option<SqlState>, text: &str, role: &str, database: &str) -> Option<(String, String)> {
    let (role_name, database_name) = (shell_identifier(role), shell_identifier(database));
    Some(match code? {
        SqlState::INVALID_PASSWORD => (
            format!(
                "Postgres is reachable and rejects the password, or has no role {role}: set both in `postgres.url` (or \
                 DATABASE_URL). This sets another password"
            ),
            format!("\\\\password {role_name}"),
        ),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => unauthorized(text, role, database),
        SqlState::UNDEFINED_DATABASE => (
            format!(
                "Postgres is reachable and has no database {database}: name another in `postgres.url` (or DATABASE_URL), \
                 or create it"
            ),
            format!("CREATE DATABASE {database_name} OWNER {role_name}"),
        ),
        SqlState::INSUFFICIENT_PRIVILEGE => (
            format!("Postgres is reachable, but {role} lacks CONNECT on the database {database}"),
            format!("GRANT CONNECT ON DATABASE {database_name} TO {role_name}"),
        ),
        SqlState::TOO_MANY_CONNECTIONS => (
            "All connections of Postgres, of the role or of the database are in use. This lists their users".to_owned(),
            "SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC".to_owned(),
        ),
        _ => return None,
    })
}

/// SQLSTATE 28000 has three causes, which only the text distinguishes.
fn unauthorized(text: &str, role: &str, database: &str) -> (String, String) {
    let role_name = shell_identifier(role);
    if text.contains("does not exist") {
        (
            format!(
                "Postgres is reachable and has no role {role}: name another in `postgres.url` (or DATABASE_URL), or create \
                 it"
            ),
            format!("CREATE ROLE {role_name} LOGIN REPLICATION"),
        )
    } else if text.contains("not permitted to log in") {
        (
            format!("Postgres is reachable, but the role {role} may not log in"),
            format!("ALTER ROLE {role_name} LOGIN"),
        )
    } else {
        (
            format!(
                "Postgres is reachable, but pg_hba.conf does not allow this connection of {role}: it needs a line such as \
                 `host {database} {role} samenet scram-sha-256`. This prints the path of the file"
            ),
            "SHOW hba_file".to_owned(),
        )
    }
}

/// Checks settings and privileges.
pub(super) fn facts_checks(facts: &Facts, config: &Config) -> Vec<Check> {
    vec![
        version(facts),
        primary(facts),
        encoding(facts),
        wal_level(facts),
        replication_right(facts),
        rights(facts),
        connections(facts, config.postgres.pool_size),
    ]
}

fn version(facts: &Facts) -> Check {
    const NAME: &str = "postgres.version";
    let version = format!("PostgreSQL {}", facts.version);
    if facts.version_number < VERSION_MIN {
        Check::fail(NAME, version, "Version 14 or newer is required: upgrade Postgres")
    } else {
        Check::ok(NAME, version)
    }
}

fn primary(facts: &Facts) -> Check {
    const NAME: &str = "postgres.primary";
    if facts.is_standby {
        Check::fail(
            NAME,
            "a standby",
            "An engine writes heartbeats and creates its slot, which requires a primary: name the primary in `postgres.url`",
        )
    } else {
        Check::ok(NAME, "a primary")
    }
}

fn encoding(facts: &Facts) -> Check {
    const NAME: &str = "postgres.encoding";
    if facts.encoding == "UTF8" {
        return Check::ok(NAME, "UTF8");
    }
    let statement = "CREATE DATABASE posduif_utf8 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    Check::fail(
        NAME,
        facts.encoding.clone(),
        "Rows are converted to JSON, which is UTF-8: create a database with that encoding and move the data there",
    )
    .fix(facts.as_superuser(statement))
}

fn wal_level(facts: &Facts) -> Check {
    const NAME: &str = "postgres.wal_level";
    if facts.wal_level == "logical" {
        return Check::ok(NAME, "logical");
    }
    let meaning = format!(
        "Below `logical` the write-ahead log carries no rows, and nothing is delivered{}",
        facts.elsewhere(
            "logical replication (Amazon RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on; \
             Azure: wal_level = logical)"
        )
    );
    Check::fail(NAME, facts.wal_level.clone(), meaning)
        .fix(facts.as_superuser("ALTER SYSTEM SET wal_level = 'logical'"))
        .then(RESTART)
}

fn replication_right(facts: &Facts) -> Check {
    const NAME: &str = "postgres.replication_right";
    let role = &facts.role;
    if facts.may_replicate {
        return Check::ok(NAME, format!("{role} may replicate"));
    }
    Check::fail(
        NAME,
        format!("{role} may not replicate"),
        "Only a role with REPLICATION reads the log; on Amazon RDS, use GRANT rds_replication instead",
    )
    .fix(facts.as_superuser(&format!("ALTER ROLE {} REPLICATION", shell_identifier(role))))
}

fn rights(facts: &Facts) -> Check {
    const NAME: &str = "postgres.rights";
    let role = &facts.role;
    if facts.may_create {
        let how = if facts.is_superuser && facts.version_number >= VERSION_WHOLE_SCHEMAS {
            "publishes whole schemas: new tables are included automatically"
        } else {
            "publishes listed tables: new ones are added by `posduif migrate up` or the start of an engine"
        };
        return Check::ok(NAME, format!("{role} may create, and {how}"));
    }
    let statement = format!(
        "GRANT CREATE ON DATABASE {} TO {}",
        shell_identifier(&facts.database),
        shell_identifier(role)
    );
    Check::fail(
        NAME,
        format!("{role} may not CREATE in the database"),
        "The engine creates its schemas and its publication",
    )
    .fix(facts.as_superuser(&statement))
}

fn connections(facts: &Facts, pool_size: usize) -> Check {
    const NAME: &str = "postgres.max_connections";
    let required = pool_size + OTHER_CONNECTIONS;
    let available = usize::try_from(facts.connections_max).unwrap_or_default();
    let found = format!("{available} for ordinary roles");
    if available >= required {
        return Check::ok(NAME, found);
    }
    let meaning = format!(
        "One engine uses up to {required} connections (`postgres.pool_size` and {OTHER_CONNECTIONS} more){}",
        facts.elsewhere("max_connections")
    );
    Check::warn(NAME, found, meaning)
        .fix(facts.as_superuser(&format!("ALTER SYSTEM SET max_connections = {}", required + 20)))
        .then(RESTART)
}

/// Checks a replication connection, for which `pg_hba.conf` may have separate rules.
async fn replication_login(config: &Config, facts: &Facts) -> Check {
    let timeout = Duration::from_secs(config.postgres.connect_timeout_seconds);
    let attempt = async {
        let server = Server::parse(config.postgres.url.expose())?;
        let sender_timeout = Duration::from_secs(config.replication.wal_sender_timeout_seconds);
        let mut connection = Connection::connect(&server, timeout, sender_timeout).await?;
        let identity = connection.identify_system().await?;
        connection.close().await;
        Ok::<_, anyhow::Error>(identity)
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(Ok(identity)) => Check::ok(
            REPLICATION_LOGIN,
            format!("system {}, timeline {}", identity.system_id, identity.timeline),
        ),
        Ok(Err(error)) => refused_login(facts, format!("{error:#}")),
        Err(_) => refused_login(facts, format!("no answer within {} s", timeout.as_secs())),
    }
}

const REPLICATION_LOGIN: &str = "postgres.replication_login";

/// The cause of a refused replication connection.
fn refused_login(facts: &Facts, failure: String) -> Check {
    let role = &facts.role;
    if !facts.may_replicate && !failure.contains("pg_hba.conf") {
        let meaning = format!("The role {role} lacks the privilege to read the log");
        let statement = format!("ALTER ROLE {} REPLICATION", shell_identifier(role));
        return Check::fail(REPLICATION_LOGIN, failure, meaning).fix(facts.as_superuser(&statement));
    }
    let meaning = format!(
        "The log is read over a replication connection, which pg_hba.conf matches by the name of its database: it needs a \
         line such as `host {} {role} samenet scram-sha-256`. This prints the path of the file",
        facts.database
    );
    Check::fail(REPLICATION_LOGIN, failure, meaning).fix(facts.as_superuser("SHOW hba_file"))
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

    fn snapshot() -> SlotSnapshot {
        SlotSnapshot {
            at: Instant::now(),
            wal_position: 1000.into(),
            is_standby: false,
            keep_bytes: Some(1 << 30),
            idle_timeout_seconds: None,
            slots: Vec::new(),
        }
    }

    /// The failed checks and warnings.
    fn wrong(facts: &Facts, snapshot: &SlotSnapshot) -> Vec<Check> {
        let mut checks = facts_checks(facts, &Config::default());
        checks.extend(slots::checks(snapshot, facts, &["posduif".to_owned()]));
        checks.retain(|check| check.level != Level::Ok);
        checks
    }

    #[test]
    fn good_server_passes_all_checks() {
        assert_eq!(wrong(&facts(), &snapshot()), Vec::new());
    }

    #[test]
    fn each_wrong_setting_fails_one_check_with_its_fix() {
        let of = |change: fn(&mut Facts, &mut SlotSnapshot)| {
            let (mut facts, mut snapshot) = (facts(), snapshot());
            change(&mut facts, &mut snapshot);
            let wrong = wrong(&facts, &snapshot);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            (wrong[0].name, wrong[0].level, wrong[0].fix.join("; "))
        };
        for (name, level, fix, change) in [
            (
                "postgres.version",
                Level::Fail,
                "",
                (|facts, _| facts.version_number = 130_000) as fn(&mut Facts, &mut SlotSnapshot),
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
                |_, snapshot| snapshot.keep_bytes = None,
            ),
            (
                "postgres.idle_replication_slot_timeout",
                Level::Warn,
                "7d",
                |_, snapshot| snapshot.idle_timeout_seconds = Some(60.0),
            ),
        ] {
            let found = of(change);
            assert_eq!((found.0, found.1), (name, level));
            assert!(found.2.contains(fix), "{name}: {}", found.2);
        }
    }

    #[test]
    fn lost_configured_slot_fails() {
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
        let snapshot = SlotSnapshot {
            slots: vec![slot],
            ..snapshot()
        };
        let wrong = wrong(&facts(), &snapshot);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert_eq!((wrong[0].name, wrong[0].level), ("postgres.slot", Level::Fail));
        assert!(wrong[0].meaning.contains("new epoch"), "{wrong:?}");
    }

    #[test]
    fn refused_replication_login_fix_follows_its_cause() {
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
    fn identifiers_are_quoted_for_sql_and_shell() {
        assert_eq!(shell_identifier("posduif"), "posduif");
        assert_eq!(shell_identifier("Ann's $x"), r#"\"Ann's \$x\""#);
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
    fn fixes_without_superuser_name_another_role() {
        let managed = Facts {
            is_superuser: false,
            wal_level: "replica".to_owned(),
            ..facts()
        };
        let wrong = wrong(&managed, &snapshot());
        assert!(
            wrong[0].fix[0].starts_with("psql -h db -p 5432 -U postgres -d posduif -c "),
            "{wrong:?}"
        );
        assert!(wrong[0].meaning.contains("rds.logical_replication"), "{wrong:?}");
    }
}
