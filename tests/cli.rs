//! The command line: what it prints, its exit codes, and `dev` and `demo` from start to end.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posduif::dev::{PrivateRedis, RedisOptions};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::command::{posduif, posduif_in, run};
use crate::support::dev::{Dev, Folder};
use crate::support::office::Office;
use crate::support::{World, eventually};

#[tokio::test]
async fn migrate_goes_up_and_down_and_shows_each_schema() {
    let world = World::new().await;
    let migrate = |arguments: &'static str| async {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        run(posduif_in(&world).arg("migrate"), &arguments).await
    };
    let fresh = migrate("status --json").await.json();
    assert!(
        fresh.as_array().unwrap().iter().all(|schema| schema["version"] == 0),
        "{fresh}"
    );
    let complaint = run(posduif_in(&world).args(["tenant", "create", "acme"]), &[])
        .await
        .complaint(1);
    assert!(complaint.contains("migrate up"), "{complaint}");

    let complaint = run(posduif_in(&world).args(["tenant", "list"]), &[]).await.complaint(1);
    assert!(
        complaint.contains("migrate up") && complaint.matches("db error").count() == 1,
        "{complaint}"
    );

    let steps = migrate("up --json").await.json();
    assert_eq!(
        steps,
        json!([
            {"schema": "posduif", "migration": "0001_control", "direction": "up"},
            {"schema": "posduif", "migration": "0002_upload_ledger", "direction": "up"},
            {"schema": "posduif", "migration": "0003_tables", "direction": "up"},
            {"schema": "posduif", "migration": "0004_stamps", "direction": "up"},
            {"schema": "posduif", "migration": "0005_commands", "direction": "up"},
            {"schema": "posduif", "migration": "0006_audit", "direction": "up"},
            {"schema": "posduif", "migration": "0007_identities", "direction": "up"},
            {"schema": "posduif", "migration": "0008_outside_tables", "direction": "up"},
            {"schema": "posduif", "migration": "0009_second_factors", "direction": "up"},
            {"schema": "posduif", "migration": "0010_verified_addresses", "direction": "up"},
            {"schema": "posduif", "migration": "0011_device_keys", "direction": "up"},
            {"schema": "posduif", "migration": "0012_routing", "direction": "up"},
            {"schema": "posduif", "migration": "0013_lanes", "direction": "up"}
        ])
    );
    assert_eq!(migrate("up").await.text(), "nothing to do\n");
    run(posduif_in(&world).args(["tenant", "create", "acme"]), &[])
        .await
        .text();
    let clean = |version: i32| json!({"version": version, "dirty": false});
    assert_eq!(
        migrate("version --json").await.json(),
        json!({"posduif": clean(13), "tenant_acme": clean(20)})
    );

    let complaint = migrate("down").await.complaint(1);
    assert!(complaint.contains("--yes") && complaint.contains("lost"), "{complaint}");
    assert!(
        complaint.contains("0020_group_messages of tenant_acme, with the tables message_reads"),
        "{complaint}"
    );
    let complaint = migrate("down 99").await.complaint(1);
    for expected in [
        "0017_token_renewals of tenant_acme, with the columns devices.token_renewed_at",
        "0010_outbox of tenant_acme, with the tables outbox",
        "0009_roles of tenant_acme, with the columns users.role",
        "0006_state of tenant_acme, with the columns devices.public_key_changed_at",
        "0001_tenant of tenant_acme, with the tables encrypted_states",
        "users",
    ] {
        assert!(complaint.contains(expected), "{complaint}");
    }
    let complaint = migrate("down --schema posduif").await.complaint(1);
    assert!(
        complaint.contains("0013_lanes of posduif, with the columns tenants.lane"),
        "{complaint}"
    );
    let steps = migrate("down 1 --yes --json").await.json();
    assert_eq!(
        steps,
        json!([{"schema": "tenant_acme", "migration": "0020_group_messages", "direction": "down"}])
    );
    let status = migrate("status --json").await.json();
    assert_eq!(
        status[1],
        json!({"schema": "tenant_acme", "version": 19, "dirty": false, "pending": ["0020_group_messages"]})
    );
    assert!(migrate("status").await.text().contains("0020_group_messages"));
    assert_eq!(migrate("up").await.text(), "tenant_acme applied 0020_group_messages\n");
    let all = migrate("down 99 --yes").await.text();
    assert_eq!(
        all,
        "tenant_acme rolled back 0020_group_messages\n\
         tenant_acme rolled back 0019_rows_of_results\n\
         tenant_acme rolled back 0018_unseen_versions\n\
         tenant_acme rolled back 0017_token_renewals\n\
         tenant_acme rolled back 0016_upload_results\n\
         tenant_acme rolled back 0015_late_state_writes\n\
         tenant_acme rolled back 0014_conflicts_bound\n\
         tenant_acme rolled back 0013_uploads_of_active_users\n\
         tenant_acme rolled back 0012_outside_tables\n\
         tenant_acme rolled back 0011_conflicts\n\
         tenant_acme rolled back 0010_outbox\ntenant_acme rolled back 0009_roles\ntenant_acme rolled back 0008_upload_once\n\
         tenant_acme rolled back 0007_message_lists\n\
         tenant_acme rolled back 0006_state\n\
         tenant_acme rolled back 0005_conflict_pages\n\
         tenant_acme rolled back 0004_upload_rows\ntenant_acme rolled back 0003_conflicts\n\
         tenant_acme rolled back 0002_upload\ntenant_acme rolled back 0001_tenant\n"
    );
    assert_eq!(migrate("down").await.text(), "nothing to do\n");
    let complaint = migrate("down 99 --schema posduif --yes").await.complaint(1);
    assert!(complaint.contains("tenants"), "{complaint}");
    migrate("up").await.text();

    let forced = migrate("force 1 --schema tenant_acme --json").await.json();
    assert_eq!(forced, json!({"forced": ["tenant_acme"], "version": 1}));
    assert_eq!(migrate("version").await.text(), "posduif 13\ntenant_acme 1\n");
    migrate("force 99 --schema tenant_acme").await.complaint(1);
    migrate("force 2 --schema tenant_nobody").await.complaint(1);
    migrate("force 2 --schema tenant_acme").await.text();
    let psql = world.psql().await;
    psql.batch_execute("UPDATE posduif.schema_migrations SET dirty = true WHERE schema_name = 'tenant_acme'")
        .await
        .unwrap();
    let complaint = migrate("up").await.complaint(1);
    assert!(
        complaint.contains("dirty") && complaint.contains("force"),
        "{complaint}"
    );
}

#[tokio::test]
async fn tenant_and_user_create_and_list_work() {
    let world = World::new().await;
    let command = |arguments: &str| {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let mut command = posduif_in(&world);
        command.args(arguments);
        command
    };
    run(&mut command("migrate up"), &[]).await.text();
    assert_eq!(run(&mut command("tenant list --json"), &[]).await.json(), json!([]));
    let created = run(&mut command("tenant create acme --json"), &[]).await.json();
    assert_eq!(created, json!({"name": "acme", "created": true}));
    let again = run(&mut command("tenant create acme --json"), &[]).await.json();
    assert_eq!(again, json!({"name": "acme", "created": false}));
    let is_open = async || {
        let asked = "SELECT registration_open FROM posduif.tenants WHERE name = 'acme'";
        world
            .psql()
            .await
            .query_one(asked, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
    };
    assert!(!is_open().await);
    let opened = run(&mut command("tenant create acme --registration open --json"), &[]).await;
    assert_eq!(
        opened.json(),
        json!({"name": "acme", "created": false, "registration": "open"})
    );
    assert!(is_open().await);
    run(&mut command("tenant create acme"), &[]).await.text();
    assert!(is_open().await, "what is not named stays");
    let closed = run(&mut command("tenant create acme --registration closed"), &[])
        .await
        .text();
    assert_eq!(closed, "the tenant acme exists already; registration is closed\n");
    assert!(!is_open().await);
    let listed = run(&mut command("--json tenant list"), &[]).await.json();
    assert_eq!(
        listed,
        json!([{"name": "acme", "schema": "tenant_acme", "lane": "main", "state": "active"}])
    );
    assert_eq!(
        run(&mut command("tenant list"), &[]).await.text(),
        "TENANT  SCHEMA       LANE  STATE\nacme    tenant_acme  main  active\n"
    );
    let paused = run(&mut command("tenant pause acme"), &[]).await.text();
    assert_eq!(paused, "the tenant acme is paused\n");
    let resumed = run(&mut command("tenant resume acme --json"), &[]).await.json();
    assert_eq!(resumed, json!({"name": "acme", "state": "active"}));
    let asked = run(&mut command("tenant resync acme"), &[]).await;
    assert!(asked.complaint(1).contains("--yes"));
    let resynced = run(&mut command("tenant resync acme --yes --json"), &[]).await.json();
    assert_eq!(resynced, json!({"name": "acme", "devices": 0, "published": false}));
    for verb in ["pause", "resume", "resync"] {
        let refused = run(&mut command(&format!("tenant {verb} nowhere")), &[]).await;
        assert!(refused.complaint(1).contains("no tenant nowhere"));
    }
    for bad in ["ACME", "1a", "a-b", "x\u{e4}", "a;drop"] {
        let complaint = run(&mut command("tenant create"), &[bad]).await.complaint(2);
        assert!(complaint.contains("allowed are"), "{complaint}");
    }

    let bob = "user create --tenant acme --username bob --type web --role admin --password posduif-demo --json";
    let created = run(&mut command(bob), &[]).await.json();
    Uuid::parse_str(created["id"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&created["username"], &created["user_type"], &created["role"]),
        (&json!("bob"), &json!("web"), &json!("admin"))
    );
    let complaint = run(&mut command(bob), &[]).await.complaint(1);
    assert!(complaint.contains("taken"), "{complaint}");
    run(
        &mut command("user create --tenant acme --username joe --type mobile"),
        &[],
    )
    .await
    .text();
    let complaint = run(
        &mut command("user create --tenant acme --username ann --type web --password short"),
        &[],
    )
    .await
    .complaint(1);
    assert!(
        complaint.contains("at least 8 characters") && !complaint.contains("short"),
        "{complaint}"
    );
    let complaint = run(&mut command("user create --tenant acme --username ann --type web"), &[])
        .await
        .complaint(1);
    assert!(complaint.contains("password"), "{complaint}");
    let complaint = run(
        &mut command("user create --tenant nobody --username ann --type mobile"),
        &[],
    )
    .await
    .complaint(1);
    assert!(complaint.contains("tenant"), "{complaint}");
    let complaint = run(&mut command("user list"), &[]).await.complaint(2);
    assert!(complaint.contains("--tenant"), "{complaint}");

    let users = run(&mut command("user list --tenant acme --json"), &[]).await.json();
    let mut fields: Vec<&String> = users[0].as_object().unwrap().keys().collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "created_at",
            "device_id",
            "disabled_at",
            "id",
            "last_seen",
            "role",
            "user_type",
            "username"
        ]
    );
    let names: Vec<&Value> = users.as_array().unwrap().iter().map(|user| &user["username"]).collect();
    assert_eq!(names, ["bob", "joe"]);
    assert_eq!(
        (&users[0]["role"], &users[1]["role"]),
        (&json!("admin"), &json!("member"))
    );
    let mobile = run(&mut command("user list --tenant acme --type mobile"), &[])
        .await
        .text();
    assert!(
        mobile.starts_with("USERNAME") && mobile.contains("joe") && !mobile.contains("bob"),
        "{mobile}"
    );
}

#[tokio::test]
async fn config_check_and_show_omit_secrets() {
    let mut good = posduif();
    good.env("POSDUIF__AUTH__JWT_SECRET", "a very secret secret of 32 bytes!!")
        .env("POSDUIF__POSTGRES__URL", "postgres://u:hidden@h/d");
    let shown = run(good.args(["config", "show", "--json"]), &[]).await.json();
    assert_eq!(
        (&shown["auth"]["jwt_secret"], &shown["postgres"]["url"]),
        (&json!("***"), &json!("***"))
    );
    assert_eq!(shown["server"]["port"], 8080);
    let mut good = posduif();
    good.env("POSDUIF__POSTGRES__URL", "postgres://u:hidden@h/d");
    let shown = run(good.args(["config", "show"]), &[]).await.text();
    assert!(shown.contains("port: 8080") && !shown.contains("hidden"), "{shown}");
    let mut good = posduif();
    good.env("POSDUIF__AUTH__JWT_SECRET", "a very secret secret of 32 bytes!!");
    assert_eq!(
        run(&mut good, &["config", "check", "--json"]).await.json(),
        json!({"valid": true})
    );
    // Which needs none.
    run(&mut posduif(), &["config", "check", "--role", "replicator"])
        .await
        .text();
    for (name, value, expected) in [
        ("POSDUIF__SERVER__PROT", "1", "no such key"),
        ("POSDUIF__SERVER__PORT", "eighty", "server.port"),
        ("POSDUIF__LIVE__RETRY_MS", "1", "allowed is 100 to 60000"),
        ("POSDUIF__AUTH__DEVICE_AUTH", "trust", "token"),
        ("POSDUIF__SERVER__PUBLIC_URL", "foo", "server.public_url"),
        ("POSDUIF__SERVER__PUBLIC_URL", "https://", "server.public_url"),
        ("POSDUIF__SERVER__PUBLIC_URL", "https://a/?b", "server.public_url"),
    ] {
        let complaint = run(posduif().env(name, value), &["config", "check"]).await.complaint(1);
        assert!(complaint.contains(expected), "{complaint}");
    }
    let complaint = run(&mut posduif(), &["config", "check", "--config", "no-such-file.yaml"])
        .await
        .complaint(1);
    assert!(complaint.contains("no-such-file.yaml"), "{complaint}");
    // What `serve` refuses, before it asks anybody.
    let no_file = "/no/such/file.pem";
    for (settings, expected) in [
        (&[("POSDUIF__AUTH__JWT_SECRET", "")][..], "auth.jwt_secret"),
        (&[("POSDUIF__AUTH__JWT_SECRET", "short")], "auth.jwt_secret"),
        (&[("DATABASE_URL", "mysql://x")], "postgres.url"),
        (
            &[(
                "DATABASE_URL",
                "postgres://h/d?sslmode=verify-full&sslrootcert=/no/such/file.pem",
            )],
            no_file,
        ),
        (&[("REDIS_URL", "")], "redis.url"),
        (&[("REDIS_URL", "http://x")], "redis.url"),
        (
            &[("REDIS_URL", "rediss://h"), ("POSDUIF__REDIS__CA_FILE", no_file)],
            "redis.ca_file",
        ),
        (
            &[
                ("POSDUIF__SERVER__TLS_CERT_FILE", no_file),
                ("POSDUIF__SERVER__TLS_KEY_FILE", no_file),
            ],
            no_file,
        ),
        (
            &[
                ("POSDUIF__PUSH__WEBHOOK_URL", "https://h/"),
                (
                    "POSDUIF__PUSH__WEBHOOK_SECRET",
                    "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
                ),
                ("POSDUIF__PUSH__WEBHOOK_CA_FILE", no_file),
            ],
            "push.webhook_ca_file",
        ),
        (
            &[("POSDUIF__TELEMETRY__OTLP_ENDPOINT", "http:///traces")],
            "telemetry.otlp_endpoint",
        ),
    ] {
        let mut said = Vec::new();
        for arguments in [&["config", "check"][..], &["serve"]] {
            let mut command = posduif();
            command
                .env("POSDUIF__AUTH__JWT_SECRET", "a very secret secret of 32 bytes!!")
                .envs(settings.iter().copied());
            let complaint = run(&mut command, arguments).await.complaint(1);
            assert!(complaint.contains(expected), "{arguments:?}: {complaint}");
            said.push(complaint);
        }
        assert_eq!(said[0], said[1]);
    }
    for secret in ["", "tiny42", "please-change-me-please-change-me-please"] {
        let complaint = run(posduif().env("POSDUIF__AUTH__JWT_SECRET", secret), &["serve"])
            .await
            .complaint(1);
        assert!(
            complaint.contains("auth.jwt_secret") && (secret.is_empty() || !complaint.contains(secret)),
            "{complaint}"
        );
    }
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["serve", "--role", "king"],
        &["migrate"],
        &["migrate", "down", "0"],
        &["migrate", "down", "x"],
        &["migrate", "down", "--schema", "public", "--yes"],
        &["migrate", "force", "1"],
        &["tenant", "create"],
        &["tenant", "create", "Acme"],
        &["tenant", "create", ""],
        &["slot", "create", "Bad Name"],
        &["slot", "create", ""],
        &["stream", "show", ""],
        &["user", "list"],
        &["device", "list"],
        &["status", "--count", "2"],
        &["status", "--interval", "1"],
        &["man", "--json"],
        &["completions", "bash", "--json"],
        &["user", "create", "--tenant", "acme"],
        &["user", "list", "--type", "robot"],
        &["demo", "--timeout", "0"],
        &["dev", "--port", "70000"],
        &["--nonsense"],
    ] {
        let ended = run(&mut posduif(), arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert!(
            ended.stderr.contains("Usage") || ended.stderr.contains("--help"),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
    assert!(run(&mut posduif(), &["--help"]).await.text().contains("Usage: posduif"));
    assert!(run(&mut posduif(), &["--version"]).await.text().starts_with("posduif "));
}

#[tokio::test]
async fn unreachable_postgres_is_reported_plainly() {
    for arguments in [
        &["migrate", "up"][..],
        &["tenant", "list"],
        &["user", "list", "--tenant", "acme"],
        &["serve"],
    ] {
        let mut command = posduif();
        command
            .env("POSDUIF__AUTH__JWT_SECRET", "a very secret secret of 32 bytes!!")
            .env("POSDUIF__POSTGRES__URL", "postgres://nobody:hidden@127.0.0.1:1/nothing")
            .env("POSDUIF__LOG__LEVEL", "error")
            .env("RUST_BACKTRACE", "1");
        let complaint = run(&mut command, arguments).await.complaint(1);
        assert!(complaint.starts_with("posduif: "), "{complaint}");
        assert!(complaint.to_lowercase().contains("postgres"), "{complaint}");
        assert!(complaint.contains("127.0.0.1"), "{complaint}");
        assert!(!complaint.contains("hidden"), "{complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
    }
}

#[tokio::test]
async fn dev_runs_demo_and_restarts_with_its_data_after_stop_or_kill() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    let demo = run(posduif().env("POSDUIF_URL", &dev.url), &["demo", "--json"])
        .await
        .text();
    assert!(demo.lines().count() > 5, "{demo}");
    let log_in = json!({"username": "bob", "password": "posduif-demo"});
    let login = dev.api().post("/api/auth/login", &log_in).await.expect(200);
    let bob = dev
        .api()
        .with("authorization", &format!("Bearer {}", login["token"].as_str().unwrap()));
    let before = bob.get("/api/messages").await.expect(200)["total"].clone();
    assert!(before.as_u64().unwrap() > 0);

    let environment = std::fs::read_to_string(folder.0.join("dev.env")).unwrap();
    for name in [
        "POSDUIF_URL=",
        "POSDUIF_ADMIN_URL=http://127.0.0.1:",
        "POSDUIF_DEMO_URL=http://127.0.0.1:",
        "POSDUIF_CONFIG=/",
        "DATABASE_URL=",
        "REDIS_URL=",
    ] {
        assert!(environment.lines().any(|line| line.starts_with(name)), "{environment}");
    }
    // A second start in the same folder while the first runs is refused and harms nothing.
    let complaint = run(&mut posduif(), &["dev", "--port", "0", "--data", folder.path()]).await;
    assert_eq!(complaint.code, Some(1), "{}", complaint.stderr);
    assert!(complaint.stderr.contains("in use"), "{}", complaint.stderr);
    assert_eq!(dev.api().get("/health").await.status, 200);
    assert!(folder.processes().len() >= 3, "{:?}", folder.processes());
    dev.end(Signal::SIGINT).await;
    assert_eq!(folder.processes(), Vec::<String>::new());

    // The token of the first run is still good, and so is the data; also after a kill, which leaves the servers behind.
    let mut dev = Dev::start(&folder).await;
    let total = async |dev: &Dev| bob.at(&dev.api()).get("/api/messages").await.expect(200)["total"].clone();
    assert_eq!(total(&dev).await, before);
    dev.child.kill().await.unwrap();
    let dev = Dev::start(&folder).await;
    assert_eq!(total(&dev).await, before);
    dev.api().post("/api/auth/login", &log_in).await.expect(200);
    dev.end(Signal::SIGTERM).await;
    assert_eq!(folder.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn demo_reports_cause_when_redis_hangs() {
    let folder = Folder::new();
    let mut redis = PrivateRedis::start(&folder.0, RedisOptions::new().unwrap())
        .await
        .unwrap();
    let postgres = std::env::var("DATABASE_URL").expect("run ./scripts/test");
    let world = World::on(&postgres, &redis.url()).await;
    let office = Office::within(world, |config| {
        config.server.default_tenant = "demo".into();
        config.redis.response_timeout_seconds = 1;
    })
    .await;
    let world = &office.world;
    world.tenant("demo").await;
    let bob = "user create --tenant demo --username bob --type web --password posduif-demo";
    let arguments: Vec<&str> = bob.split(' ').collect();
    run(&mut posduif_in(world), &arguments).await.text();
    world.published().await;
    let pid = Pid::from_raw(redis.pid().unwrap().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    let url = format!("http://{}", office.anybody.address());
    let ended = run(posduif().env("POSDUIF_URL", url), &["demo", "--timeout", "3"]).await;
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.to_lowercase().contains("redis"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    // And the engine is well again without anybody's help.
    eventually("the engine is ready again", || async {
        (office.anybody.get("/ready").await.status == 200).then_some(())
    })
    .await;
    let Office { world, engine, .. } = office;
    engine.stop().await;
    drop(world);
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn demo_reports_missing_engine() {
    let ended = run(
        &mut posduif(),
        &["demo", "--url", "http://127.0.0.1:1", "--timeout", "2"],
    )
    .await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no engine answers"), "{}", ended.stderr);
}
