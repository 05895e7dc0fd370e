//! `posduif slot`: what slots retain and how to remove them, beside an engine that uses one.

use std::process::Stdio;

use nix::sys::signal::Signal;
use posduif::accounts::users::UserType;
use posduif::config::Secret;
use posduif::engine::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::command::{posduif_in, posduif_says};
use crate::support::servers::{self, Own};
use crate::support::{TIMEOUT, World, eventually, send_signal};

/// A Postgres where a slot may keep 64 MB of WAL, and a world on it.
async fn bounded() -> (World, Own<posduif::dev::PrivatePostgres>) {
    let postgres = servers::postgres_with(|_, options| {
        options
            .setting("max_slot_wal_keep_size", "64MB")
            .setting("min_wal_size", "32MB")
            .setting("max_wal_size", "64MB")
    })
    .await;
    let redis = std::env::var("REDIS_URL").expect("run ./scripts/test");
    (World::on(&postgres.server.url(), &redis).await, postgres)
}

/// Writes so many MB of WAL that no slot has a use for.
async fn write_wal(world: &World, megabytes: usize) {
    let psql = world.psql().await;
    for _ in 0..megabytes {
        let emit = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1024 * 1024))";
        psql.query_one(emit, &[]).await.unwrap();
    }
}

fn named<'a>(slots: &'a Value, name: &str) -> &'a Value {
    let slots = slots.as_array().unwrap();
    slots.iter().find(|slot| slot["name"] == name).unwrap()
}

#[tokio::test]
async fn abandoned_slot_is_listed_with_retained_wal_and_remedy() {
    let (world, _postgres) = bounded().await;
    let ours = world.config.replication.slot.clone();
    let engine = world.engine(Role::Replicator).await;
    world.published().await;
    let made = posduif_says(&world, "slot create abandoned --json").await.json();
    assert_eq!((&made["name"], &made["created"]), (&json!("abandoned"), &json!(true)));
    let again = posduif_says(&world, "slot create abandoned").await.text();
    assert!(again.contains("exists already"), "{again}");
    write_wal(&world, 8).await;

    let (listed, ()) = tokio::join!(
        posduif_says(&world, "slot list --sample 2 --json"),
        write_wal(&world, 4)
    );
    let listed = listed.json();
    let used = named(&listed, &ours);
    assert_eq!(
        (
            &used["ours"],
            &used["active"],
            &used["verdict"],
            &used["lost"],
            &used["command"]
        ),
        (
            &json!(true),
            &json!(true),
            &json!("in use"),
            &json!("keeps up"),
            &Value::Null
        )
    );
    assert_eq!(used["reader"]["application"], "posduif replicator");
    assert!(
        used["confirmed_lsn"].is_string() && used["lag_bytes"].is_u64() && used["lag_seconds"].is_f64(),
        "{used}"
    );
    let abandoned = named(&listed, "abandoned");
    assert_eq!(
        (&abandoned["active"], &abandoned["verdict"]),
        (&json!(false), &json!("safe to drop"))
    );
    assert_eq!(abandoned["command"], "posduif slot drop abandoned --yes");
    let (retained, safe) = (
        abandoned["retained_wal_bytes"].as_u64(),
        abandoned["safe_wal_bytes"].as_u64(),
    );
    assert!(retained.unwrap() > 8 << 20 && safe.unwrap() < 64 << 20, "{abandoned}");
    let rate = abandoned["wal_bytes_per_second"].as_f64().unwrap();
    let left = abandoned["lost_in_seconds"].as_f64().unwrap();
    #[expect(clippy::cast_precision_loss)]
    let expected = safe.unwrap() as f64 / rate;
    assert!(
        rate > 0.0 && (left - expected).abs() < 0.1 + expected / 100.0,
        "{abandoned}"
    );

    let (shown, ()) = tokio::join!(posduif_says(&world, "slot list"), write_wal(&world, 2));
    let shown = shown.text();
    for expected in [
        "SLOT",
        "abandoned",
        "safe to drop",
        "in use",
        "keeps up",
        "max_slot_wal_keep_size is 64.0 MB",
        "is lost in",
        "run `posduif slot drop abandoned --yes`",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no colours but on a terminal: {shown}");

    for verb in ["drop", "advance"] {
        let refused = posduif_says(&world, &format!("slot {verb} {ours} --yes"))
            .await
            .complaint(1);
        assert!(refused.contains("in use") && refused.contains("process"), "{refused}");
    }
    let asked = posduif_says(&world, "slot drop abandoned").await.complaint(1);
    assert!(
        asked.contains("would be lost") && asked.contains("MB of WAL") && asked.contains("--yes"),
        "{asked}"
    );
    let dropped = posduif_says(&world, "slot drop abandoned --yes --json").await.json();
    assert_eq!(
        (&dropped["dropped"], &dropped["new_epoch"]),
        (&json!(true), &json!(false))
    );
    let absent = posduif_says(&world, "slot show abandoned").await.complaint(1);
    assert!(absent.contains("no slot abandoned"), "{absent}");
    engine.stop().await;
}

#[tokio::test]
async fn lost_slot_shows_a_remedy_and_the_engine_recreates_its_own() {
    let (world, _postgres) = bounded().await;
    let ours = world.config.replication.slot.clone();
    let engine = world.engine(Role::Replicator).await;
    world.published().await;
    engine.stop().await;
    posduif_says(&world, "slot create other").await.text();
    write_wal(&world, 120).await;
    world.psql().await.batch_execute("CHECKPOINT").await.unwrap();
    let listed = posduif_says(&world, "slot list --sample 0.1 --json").await.json();
    for name in [&*ours, "other"] {
        let slot = named(&listed, name);
        assert_eq!(
            (
                &slot["wal_status"],
                &slot["verdict"],
                &slot["lost"],
                &slot["lost_in_seconds"]
            ),
            (&json!("lost"), &json!("lost"), &json!("lost"), &json!(0.0))
        );
        assert_eq!(slot["command"], format!("posduif slot drop {name} --yes"));
    }
    let shown = posduif_says(&world, "slot list --sample 0.1").await.text();
    // From 17 on Postgres says why it is lost.
    let why = match named(&listed, "other")["invalidation_reason"].as_str() {
        Some(reason) => format!(" ({reason})"),
        None => String::new(),
    };
    assert!(
        shown.contains(&format!("other: lost{why}: run `posduif slot drop other --yes`")),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("{ours}: lost{why}; the next engine recreates it")),
        "{shown}"
    );
    posduif_says(&world, "slot drop other --yes").await.text();
    let engine = world.engine(Role::Replicator).await;
    world.published().await;
    let shown = posduif_says(&world, "slot show --json --sample 0.1").await.json();
    assert_eq!(
        shown["epochs"][0]["reason"],
        "the replication slot was missing and has been recreated"
    );
    engine.stop().await;
}

#[tokio::test]
async fn slot_advance_or_drop_warns_of_and_starts_a_new_epoch() {
    let world = World::new().await;
    let ours = world.config.replication.slot.clone();
    let engine = world.engine(Role::Replicator).await;
    world.tenant("acme").await;
    world.published().await;
    engine.stop().await;
    world.user("acme", "missed", UserType::Mobile).await;
    let shown = posduif_says(&world, "slot show --sample 0.1").await.text();
    for expected in [
        &*ours,
        "this system",
        "no engine reads it",
        "posduif serve",
        "Redis holds no checkpoint",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let asked = posduif_says(&world, &format!("slot advance {ours}")).await.complaint(1);
    for expected in ["would be lost", "new epoch", "--yes"] {
        assert!(asked.contains(expected), "{expected}: {asked}");
    }
    let back = posduif_says(&world, &format!("slot advance {ours} --to 0/1 --yes"))
        .await
        .complaint(1);
    assert!(back.contains("only moves forward"), "{back}");
    let moved = posduif_says(&world, &format!("slot advance {ours} --yes --json"))
        .await
        .json();
    assert_eq!(moved["new_epoch"], true);
    let engine = world.engine(Role::Replicator).await;
    world.published().await;
    let epochs = posduif_says(&world, "slot show --json --sample 0.1").await.json();
    assert_eq!(epochs["epochs"][0]["number"], 2);
    let reason = epochs["epochs"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("beyond the acknowledged"), "{reason}");
    engine.stop().await;
    let asked = posduif_says(&world, &format!("slot drop {ours}")).await.complaint(1);
    assert!(asked.contains("new epoch") && asked.contains("--yes"), "{asked}");
    posduif_says(&world, &format!("slot drop {ours} --yes")).await.text();
    let made = posduif_says(&world, "slot create").await.text();
    assert!(made.contains(&format!("created the slot {ours}")), "{made}");
}

#[tokio::test]
async fn slot_create_makes_publication_first_and_watch_ends_at_ctrl_c() {
    let world = World::new().await;
    let ours = world.config.replication.slot.clone();
    posduif_says(&world, "slot create").await.text();
    let publication = &world.config.replication.publication;
    let found = world.psql().await;
    let found = found
        .query("SELECT FROM pg_publication WHERE pubname = $1", &[publication])
        .await;
    assert_eq!(found.unwrap().len(), 1);
    let twice = posduif_says(&world, "slot watch --interval 0.1 --count 2 --json")
        .await
        .text();
    let looks: Vec<Value> = twice.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), 2);
    assert!(
        looks
            .iter()
            .all(|look| named(look, &ours)["verdict"] == "no engine reads it"),
        "{twice}"
    );

    let mut watching = posduif_in(&world)
        .args(["slot", "watch", "--interval", "0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(TIMEOUT, lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(first.starts_with("SLOT"), "{first}");
    send_signal(watching.id().unwrap(), Signal::SIGINT);
    let ended = tokio::time::timeout(TIMEOUT, watching.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn closed_output_pipe_is_no_failure() {
    let world = World::new().await;
    posduif_says(&world, "slot create").await.text();
    for arguments in [
        &["slot", "watch", "--interval", "0.1"][..],
        &["slot", "list", "--sample", "0.1"],
        &["config", "show"],
    ] {
        let mut command = posduif_in(&world);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), &*complaint), (Some(0), ""), "{arguments:?}");
    }
}

/// A role as managed Postgres gives one: it may replicate and owns its database, and is no superuser.
async fn managed(world: &mut World) {
    let name = world.config.replication.slot.clone();
    let psql = world.psql().await;
    let statements = format!(
        "CREATE ROLE {name} LOGIN REPLICATION PASSWORD 'managed'; ALTER DATABASE {name} OWNER TO {name}; \
         GRANT CREATE ON SCHEMA public TO {name}"
    );
    psql.batch_execute(&statements).await.unwrap();
    let url = world.config.postgres.url.expose();
    let (_, place) = url.rsplit_once('@').unwrap();
    world.config.postgres.url = Secret::new(format!("postgres://{name}:managed@{place}"));
}

#[tokio::test]
async fn publication_sync_lists_and_adds_missing_tables() {
    let postgres = servers::postgres().await;
    let redis = std::env::var("REDIS_URL").expect("run ./scripts/test");
    let mut world = World::on(&postgres.server.url(), &redis).await;
    managed(&mut world).await;
    let early = posduif_says(&world, "publication show").await.complaint(1);
    assert!(early.contains("migrate up"), "{early}");
    posduif_says(&world, "migrate up").await.text();
    posduif_says(&world, "tenant create acme").await.text();
    let whole = posduif_says(&world, "publication show --json").await.json();
    assert_eq!(
        (&whole["exists"], &whole["complete"], &whole["whole_schemas"]),
        (&json!(true), &json!(true), &json!(false))
    );
    assert_eq!(whole["operations"], json!(["insert", "update", "delete", "truncate"]));
    assert_eq!(posduif_says(&world, "publication sync").await.text(), "nothing to do\n");
    let psql = world.psql().await;
    psql.batch_execute(
        "CREATE TABLE tenant_acme.orders (id int PRIMARY KEY); INSERT INTO tenant_acme.orders VALUES (1); \
         ALTER TABLE tenant_acme.messages REPLICA IDENTITY DEFAULT",
    )
    .await
    .unwrap();
    let lacking = posduif_says(&world, "publication show --json --missing").await.json();
    let row = |table: &str, published: bool, identity: &str| {
        json!({"tenant": "acme", "schema": "tenant_acme", "table": table, "published": published,
               "replica_identity": identity, "virtual_columns": false})
    };
    assert_eq!(
        lacking["tables"],
        json!([row("messages", true, "default"), row("orders", false, "default")])
    );
    assert_eq!(lacking["complete"], false);
    let shown = posduif_says(&world, "publication show").await.text();
    for expected in [
        "MISSING",
        "listed tables",
        "1 table missing, 2 tables without the required replica identity",
        "posduif publication sync",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let synced = posduif_says(&world, "publication sync --json").await.json();
    assert_eq!(
        synced,
        json!([{"tenant": "acme", "added": ["orders"], "identified": ["messages", "orders"], "keyed": [], "resynced": true}])
    );
    let whole = posduif_says(&world, "publication show --json --missing").await.json();
    assert_eq!((&whole["complete"], &whole["tables"]), (&json!(true), &json!([])));
}

#[tokio::test]
async fn slot_creation_waits_for_open_transactions_beyond_lock_timeout() {
    let postgres = servers::postgres().await;
    let redis = std::env::var("REDIS_URL").expect("run ./scripts/test");
    let mut world = World::on(&postgres.server.url(), &redis).await;
    world.config.postgres.lock_timeout_seconds = 1;
    let (writer, psql) = (world.psql().await, world.psql().await);
    writer
        .batch_execute("BEGIN; SELECT pg_current_xact_id()")
        .await
        .unwrap();
    let engine = world.engine(Role::Replicator).await;
    let api = engine.api();
    eventually("the slot has waited longer than statements wait for locks", || async {
        let waiting = "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_create_logical_replication_slot%'
                       AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '1.5 s'";
        psql.query_opt(waiting, &[]).await.unwrap()
    })
    .await;
    assert_eq!(api.get("/ready").await.status, 503);
    writer.batch_execute("COMMIT").await.unwrap();
    world.published().await;
    engine.stop().await;
}
