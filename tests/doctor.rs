//! `posduif doctor`: its findings on servers as distributions ship them, and that its fixes work.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use posduif::config::Secret;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::World;
use crate::support::command::{Ended, posduif, posduif_in, posduif_says, run};
use crate::support::eventually;
use crate::support::office::Office;
use crate::support::servers;

/// The checks by name.
fn by_name(report: &Value) -> BTreeMap<String, Value> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .map(|check| (check["name"].as_str().unwrap().to_owned(), check.clone()))
        .collect()
}

/// The report of a doctor, whatever its exit code.
fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr))
}

/// A shell on the servers, where `posduif` is this one.
struct Shell {
    postgres: String,
    redis: String,
    /// What an earlier fix has put into the surroundings.
    exports: String,
}

impl Shell {
    async fn run(&self, script: &str) -> Ended {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_posduif"));
        let path = format!(
            "{}:{}",
            program.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!("set -e\n{}\n{script}", self.exports)])
            .current_dir(std::env::temp_dir())
            .env("PATH", path)
            .env("DATABASE_URL", &self.postgres)
            .env("REDIS_URL", &self.redis)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        run(&mut command, &[]).await
    }
}

#[tokio::test]
async fn doctor_lists_wrong_settings_of_stock_servers_and_its_fixes_work() {
    let mut postgres = servers::postgres_with(|_, mut options| {
        options.is_stock = true;
        options
    })
    .await;
    // As redis-server ships but for the place, and with eviction, which many set.
    let redis = servers::redis_with(|_, options| {
        options
            .setting("appendonly", "no")
            .setting("latency-tracking", "yes")
            .setting("maxmemory-policy", "allkeys-lru")
    })
    .await;
    let mut shell = Shell {
        postgres: postgres.server.url(),
        redis: redis.server.url(),
        exports: "export POSDUIF__SERVER__CONNECTIONS_MAX=100 POSDUIF__SERVER__PUBLIC_URL=http://127.0.0.1:1"
            .to_owned(),
    };
    let ended = shell.run("posduif doctor --json").await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
    let found = report(&ended);
    assert_eq!(found["ok"], false);
    let checks = by_name(&found);
    for (name, level, is) in [
        ("postgres.wal_level", "fail", "replica"),
        ("postgres.max_slot_wal_keep_size", "warn", "-1, unlimited"),
        ("redis.appendonly", "fail", "no"),
        ("redis.maxmemory_policy", "fail", "allkeys-lru"),
        ("redis.latency_tracking", "warn", "yes"),
    ] {
        let check = &checks[name];
        assert_eq!(
            (&check["level"], &check["found"]),
            (&json!(level), &json!(is)),
            "{check}"
        );
        assert!(
            !check["fix"].as_array().unwrap().is_empty() && check["meaning"] != "",
            "{check}"
        );
    }
    assert_eq!(checks["config.jwt_secret"]["level"], "fail");
    assert!(
        checks["postgres.version"]["found"]
            .as_str()
            .unwrap()
            .starts_with("PostgreSQL ")
    );
    let printed = shell.run("posduif doctor").await.stdout;
    for text in [
        "fail  postgres.wal_level",
        "fix: psql \"$DATABASE_URL\" -c \"ALTER SYSTEM SET wal_level = 'logical'\"",
        "then: restart Postgres",
        "fix: redis-cli -u \"$REDIS_URL\" CONFIG SET appendonly yes",
        "fix: export POSDUIF__AUTH__JWT_SECRET=$(openssl rand -hex 32)",
    ] {
        assert!(printed.contains(text), "{text}: {printed}");
    }
    // No secret of a URL is printed.
    let password = postgres.server.url().split([':', '@']).nth(2).unwrap().to_owned();
    assert!(!printed.contains(&password) && !ended.stdout.contains(&password));

    for check in checks.values().filter(|check| check["name"] != "engine.public_url") {
        for fix in check["fix"].as_array().unwrap() {
            let fix = fix.as_str().unwrap();
            if fix.starts_with("export ") || fix.starts_with("ulimit ") {
                shell.exports.push_str(&format!("\n{fix}"));
            } else {
                let ended = shell.run(fix).await;
                let said = format!("{fix}: {}{}", ended.stdout, ended.stderr);
                assert!(ended.code == Some(0) && !said.contains("(error)"), "{said}");
            }
        }
    }
    postgres.server.stop().await.unwrap();
    postgres.server.restart().await.unwrap();
    let ended = shell.run("posduif doctor --json --failing").await;
    let left = report(&ended);
    assert_eq!((&left["ok"], &left["failed"]), (&json!(true), &json!(0)), "{left}");
    let names: Vec<String> = by_name(&left).into_keys().collect();
    assert_eq!(names, ["engine.public_url"], "only that no engine runs yet: {left}");
    assert_eq!(ended.code, Some(0));
}

#[tokio::test]
async fn doctor_beside_running_engine_checks_everything_and_passes() {
    let office = Office::open().await;
    let doctor = async |arguments: &[&str]| {
        let mut command = posduif_in(&office.world);
        command
            .env(
                "POSDUIF__SERVER__PUBLIC_URL",
                format!("http://{}", office.anybody.address()),
            )
            .env("POSDUIF__SERVER__CONNECTIONS_MAX", "100")
            .env(
                "POSDUIF__AUTH__JWT_SECRET",
                office.world.config.auth.jwt_secret.expose(),
            );
        run(&mut command, arguments).await
    };
    office.ready().await;
    let ended = doctor(&["doctor", "--json"]).await;
    let checks = by_name(&report(&ended));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    for name in [
        "config.jwt_secret",
        "engine.public_url",
        "engine.ready",
        "postgres.clock",
        "postgres.connection",
        "postgres.encoding",
        "postgres.max_connections",
        "postgres.max_replication_slots",
        "postgres.max_wal_senders",
        "postgres.primary",
        "postgres.publication",
        "postgres.replica_identity",
        "postgres.replication_login",
        "postgres.replication_right",
        "postgres.rights",
        "postgres.schemas",
        "postgres.slot",
        "postgres.tenants",
        "postgres.version",
        "postgres.wal_level",
        "redis.appendfsync",
        "redis.appendonly",
        "redis.checkpoint",
        "redis.clock",
        "redis.connection",
        "redis.file",
        "redis.latency_tracking",
        "redis.maxmemory_policy",
        "redis.memory",
        "redis.server",
        "redis.streams",
        "redis.version",
        "host.file_descriptors",
        "engine.proxies",
    ] {
        assert_eq!(checks[name]["level"], "ok", "{name}: {}", checks[name]);
    }
    office
        .sql("DROP EVENT TRIGGER posduif_full_identity; ALTER TABLE tenant_acme.messages REPLICA IDENTITY DEFAULT")
        .await;
    office
        .sql("SELECT pg_create_logical_replication_slot(current_database() || '_old', 'pgoutput')")
        .await;
    let ended = doctor(&["doctor", "--json", "--failing"]).await;
    assert_eq!(ended.code, Some(1));
    let found = report(&ended);
    let checks = by_name(&found);
    assert_eq!(
        checks["postgres.replica_identity"]["found"],
        "not as required for tenant_acme.messages"
    );
    assert_eq!(
        checks["postgres.replica_identity"]["fix"],
        json!(["posduif publication sync"])
    );
    // Slots of other tests are abandoned, too, in other databases: those are not ours to judge.
    let slot = &checks["postgres.other_slot"];
    let old = format!("{}_old", office.world.config.replication.slot);
    assert_eq!(slot["fix"], json!([format!("posduif slot drop {old} --yes")]));
    let mut fixes = posduif_says(&office.world, "publication sync").await.text();
    fixes.push_str(
        &posduif_says(&office.world, &format!("slot drop {old} --yes"))
            .await
            .text(),
    );
    assert!(fixes.contains("set REPLICA IDENTITY FULL on"), "{fixes}");
    assert_eq!(doctor(&["doctor"]).await.code, Some(0));
    office.close().await;
}

/// Of Postgres 18 on, where columns are virtual unless STORED is said.
#[tokio::test]
async fn doctor_refuses_replica_identity_full_with_virtual_columns() {
    let office = Office::open().await;
    let psql = office.world.psql().await;
    let version: i32 = psql
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .unwrap()
        .get(0);
    if version < 180_000 {
        return office.close().await;
    }
    office
        .sql(
            "CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, body text, size int GENERATED ALWAYS AS (length(body)));
             INSERT INTO tenant_acme.notes VALUES (1, 'a')",
        )
        .await;
    let notes = async || {
        let shown = posduif_says(&office.world, "publication show --json").await.json();
        let tables = shown["tables"].as_array().unwrap().clone();
        let notes = tables.into_iter().find(|table| table["table"] == "notes").unwrap();
        (shown["complete"].clone(), notes["replica_identity"].clone())
    };
    let judged = async || {
        let mut command = posduif_in(&office.world);
        let report = report(&run(command.args(["doctor", "--json"]), &[]).await);
        by_name(&report)["postgres.replica_identity"].clone()
    };
    assert_eq!(notes().await, (json!(true), json!("default")));
    assert_eq!(judged().await["level"], "ok", "{}", judged().await);

    // As a role that is no superuser leaves it: identified first, and the column comes later.
    office
        .sql("DROP EVENT TRIGGER posduif_full_identity; ALTER TABLE tenant_acme.notes REPLICA IDENTITY FULL")
        .await;
    assert!(
        psql.execute("UPDATE tenant_acme.notes SET body = 'bb'", &[])
            .await
            .is_err()
    );
    assert_eq!(notes().await, (json!(false), json!("full")));
    let wrong = judged().await;
    assert_eq!(wrong["found"], "not as required for tenant_acme.notes");
    assert_eq!(wrong["fix"], json!(["posduif publication sync"]));
    let mended = posduif_says(&office.world, "publication sync --json").await.json();
    assert_eq!(mended[0]["keyed"], json!(["notes"]), "{mended}");
    assert_eq!(notes().await, (json!(true), json!("default")));
    office.sql("UPDATE tenant_acme.notes SET body = 'bb'").await;
    office.close().await;
}

#[tokio::test]
async fn doctor_reports_unreachable_and_silent_servers_beside_other_findings() {
    // Takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    for (postgres, redis) in [
        (
            "postgres://u:hidden@127.0.0.1:1/d".to_owned(),
            "redis://:hidden@127.0.0.1:1/0".to_owned(),
        ),
        (
            format!("postgres://u:hidden@{silent}/d"),
            format!("redis://:hidden@{silent}/0"),
        ),
    ] {
        let began = Instant::now();
        let mut command = posduif();
        command
            .env("DATABASE_URL", postgres)
            .env("REDIS_URL", redis)
            .env("POSDUIF__POSTGRES__CONNECT_TIMEOUT_SECONDS", "1")
            .env("POSDUIF__REDIS__RESPONSE_TIMEOUT_SECONDS", "1")
            .env("RUST_BACKTRACE", "1");
        let ended = run(&mut command, &["doctor", "--json"]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let checks = by_name(&report(&ended));
        for name in ["postgres.connection", "redis.connection"] {
            assert_eq!(checks[name]["level"], "fail");
            assert!(
                checks[name]["found"].as_str().unwrap().contains("127.0.0.1"),
                "{}",
                checks[name]
            );
        }
        assert!(checks.contains_key("config.jwt_secret"));
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!all.contains("hidden") && !all.contains("backtrace"), "{all}");
    }
}

#[tokio::test]
async fn doctor_has_fixes_for_refused_login_missing_database_and_missing_role() {
    let world = World::new().await;
    let name = world.config.redis.prefix.clone();
    let psql = world.psql().await;
    psql.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'right'"))
        .await
        .unwrap();
    let url = world.config.postgres.url.expose();
    let (_, place) = url.rsplit_once('@').unwrap();
    let (host, _) = place.split_once('/').unwrap();
    for (login, found, fix) in [
        (
            format!("{name}:hidden@{place}"),
            "password authentication failed",
            format!("-U postgres -d postgres -c \"\\\\password {name}\""),
        ),
        (
            format!("{name}:right@{host}/{name}_none"),
            "does not exist (SQLSTATE 3D000)",
            format!("CREATE DATABASE {name}_none OWNER {name}"),
        ),
    ] {
        let mut command = posduif_in(&world);
        command.env("POSDUIF__POSTGRES__URL", format!("postgres://{login}"));
        let ended = run(&mut command, &["doctor", "--json"]).await;
        let check = &by_name(&report(&ended))["postgres.connection"];
        assert!(check["found"].as_str().unwrap().contains(found), "{check}");
        assert!(
            check["meaning"].as_str().unwrap().contains("Postgres is reachable"),
            "{check}"
        );
        assert!(check["fix"][0].as_str().unwrap().contains(&fix), "{fix}: {check}");
        assert!(!ended.stdout.contains("hidden"), "{check}");
    }
    psql.batch_execute(&format!("DROP ROLE {name}")).await.unwrap();
}

#[tokio::test]
async fn doctor_lists_missing_privileges_and_its_fixes_grant_them() {
    let mut world = World::new().await;
    let name = world.config.redis.prefix.clone();
    let admin = world.psql().await;
    admin
        .batch_execute(&format!(
            "CREATE ROLE {name} LOGIN PASSWORD 'secret'; ALTER DATABASE {name} OWNER TO {name}"
        ))
        .await
        .unwrap();
    let url = world.config.postgres.url.expose().to_owned();
    let (_, place) = url.rsplit_once('@').unwrap();
    world.config.postgres.url = Secret::new(format!("postgres://{name}:secret@{place}"));
    posduif_says(&world, "migrate up").await.text();
    posduif_says(&world, "tenant create acme").await.text();
    admin
        .batch_execute("CREATE TABLE tenant_acme.foreigns (id int PRIMARY KEY)")
        .await
        .unwrap();
    let judged = async || by_name(&report(&posduif_says(&world, "doctor --json").await));
    let checks = judged().await;
    let login = &checks["postgres.replication_login"];
    assert_eq!(login["level"], "fail");
    assert!(!login["meaning"].as_str().unwrap().contains("pg_hba"), "{login}");
    // The statement within the command, which names somebody who is a superuser elsewhere.
    let statement = |fix: &Value| fix.as_str().unwrap().split('"').nth(1).unwrap().to_owned();
    let mut statements = vec![statement(&login["fix"][0])];
    assert_eq!(statements[0], format!("ALTER ROLE {name} REPLICATION"));
    for check in ["postgres.publication", "postgres.replica_identity"] {
        let check = &checks[check];
        assert!(
            check["found"].as_str().unwrap().contains("tenant_acme.foreigns"),
            "{check}"
        );
        statements.push(statement(&check["fix"][0]));
        assert_eq!(
            statements.last().unwrap(),
            &format!("ALTER TABLE tenant_acme.foreigns OWNER TO {name}")
        );
        assert_eq!(check["fix"][1], "posduif publication sync");
    }
    admin.batch_execute(&statements.join(";")).await.unwrap();
    posduif_says(&world, "publication sync").await.text();
    let checks = judged().await;
    for check in ["replication_login", "publication", "replica_identity"] {
        let check = &checks[&format!("postgres.{check}")];
        assert_eq!(check["level"], "ok", "{check}");
    }
    admin
        .batch_execute(&format!("ALTER DATABASE {name} OWNER TO CURRENT_USER; REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}; DROP ROLE {name}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn doctor_fails_on_missing_or_stopped_streams_until_rebuilt() {
    let office = Office::open().await;
    office.ready().await;
    let keys = office.world.keys();
    let judged = async |name: &str| by_name(&report(&posduif_says(&office.world, "doctor --json").await))[name].clone();
    assert_eq!(judged("redis.streams").await["level"], "ok");
    let mend = async |found: &str| {
        let check = judged("redis.streams").await;
        assert_eq!((&check["level"], &check["found"]), (&json!("fail"), &json!(found)));
        let fixes = check["fix"].as_array().unwrap();
        for fix in fixes {
            let command = fix.as_str().unwrap().strip_prefix("posduif ").unwrap();
            posduif_says(&office.world, command).await.text();
        }
        assert!(!fixes.is_empty());
        office.world.published().await;
        let check = judged("redis.streams").await;
        assert_eq!(check["level"], "ok", "{check}");
    };
    for (key, name) in [(keys.shared("acme"), "shared"), (keys.changes("acme"), "changes")] {
        let _: i64 = office.world.ask_redis(&["DEL", &key]).await;
        mend(&format!("acme/{name} is missing")).await;
    }
    // The engine stops what takes no entries.
    let _: () = office
        .world
        .ask_redis(&["SET", &keys.changes("acme"), "a string"])
        .await;
    office.send("hello").await;
    eventually("the stream is stopped", || async {
        (!office.world.stopped_streams().await.is_empty()).then_some(())
    })
    .await;
    mend("acme/changes is a string, acme/changes is stopped").await;

    // Where nobody has published there need be none; where somebody has, it is another Redis.
    assert_eq!(judged("redis.checkpoint").await["level"], "ok");
    let mut command = posduif_in(&office.world);
    command.env("POSDUIF__REDIS__PREFIX", "elsewhere");
    let checks = by_name(&report(&run(&mut command, &["doctor", "--json"]).await));
    let check = &checks["redis.checkpoint"];
    assert_eq!(check["level"], "warn");
    assert!(
        check["found"]
            .as_str()
            .unwrap()
            .starts_with("none, but epoch 1 of slot"),
        "{check}"
    );
    assert!(check["meaning"].as_str().unwrap().contains("another Redis"), "{check}");
    office.close().await;
}

#[tokio::test]
async fn manual_and_completions_have_every_command() {
    let folder = std::env::temp_dir().join(format!("posduif-man-{}", uuid::Uuid::new_v4().simple()));
    let wrote = run(&mut posduif(), &["man", "--out", folder.to_str().unwrap()])
        .await
        .text();
    assert!(wrote.contains("wrote the manual pages"), "{wrote}");
    let page = |name: &str| std::fs::read_to_string(Path::new(&folder).join(name)).unwrap();
    assert!(page("posduif.1").contains("slot") && page("posduif-slot-drop.1").contains("yes"));
    let first = run(&mut posduif(), &["man"]).await.text();
    assert_eq!(first, page("posduif.1"));
    for (name, text) in [("posduif", first), ("posduif-slot-drop", page("posduif-slot-drop.1"))] {
        // Name, section, no date, what it belongs to.
        let head = format!(".TH {name} 1 \"\" \"posduif {}", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&head), "{text}");
    }
    // Each page that one refers to is there.
    for reference in page("posduif.1").lines().filter_map(|line| line.strip_suffix("(1)")) {
        page(&format!("{}.1", reference.replace('\\', "")));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    for (shell, expected) in [
        ("bash", "_posduif()"),
        ("zsh", "#compdef posduif"),
        ("fish", "complete -c posduif"),
    ] {
        let script = run(&mut posduif(), &["completions", shell]).await.text();
        assert!(script.contains(expected) && script.contains("doctor"), "{shell}");
        let file = std::env::temp_dir().join(format!("posduif-{}.{shell}", uuid::Uuid::new_v4().simple()));
        std::fs::write(&file, script).unwrap();
        // Only bash is everywhere.
        match tokio::process::Command::new(shell).arg("-n").arg(&file).output().await {
            Ok(judged) => assert!(judged.status.success(), "{shell}: {judged:?}"),
            Err(error) => assert_ne!(shell, "bash", "{error}"),
        }
        std::fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn doctor_warns_of_a_proxy_that_is_not_listed() {
    let office = Office::open().await;
    let judged =
        async || by_name(&report(&posduif_says(&office.world, "doctor --json").await))["engine.proxies"].clone();
    assert_eq!(judged().await["level"], "ok");
    office
        .anybody
        .with("x-forwarded-for", "203.0.113.7")
        .get("/health")
        .await;
    let check = eventually("the proxy is noted", || async {
        let check = judged().await;
        (check["level"] == "warn").then_some(check)
    })
    .await;
    let found = check["found"].as_str().unwrap();
    assert!(
        found.contains("127.0.0.1") && found.contains("server.trusted_proxies"),
        "{found}"
    );
    office.close().await;
}
