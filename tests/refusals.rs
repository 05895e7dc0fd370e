//! A Redis that refuses all writes for a while, or some of them: nothing is dropped, the engine reports the cause, and
//! its memory stays flat.

use futures_util::StreamExt as _;
use posduif::accounts::users::UserType;
use posduif::engine::Role;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use uuid::Uuid;

use crate::support::office::Office;
use crate::support::oracle::outline;
use crate::support::servers;
use crate::support::stage::Stage;
use crate::support::{TIMEOUT, World, eventually};

async fn redis_command(redis: &MultiplexedConnection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let _: redis::Value = command.query_async(&mut redis.clone()).await.unwrap();
}

/// How often Redis has refused a command with this word.
async fn refusals(redis: &MultiplexedConnection, word: &str) -> u64 {
    let mut info = redis::cmd("INFO");
    let info: String = info.arg("errorstats").query_async(&mut redis.clone()).await.unwrap();
    let start = format!("errorstat_{word}:count=");
    let count = info.lines().find_map(|line| line.strip_prefix(&start));
    count.map_or(0, |count| count.trim().parse().unwrap())
}

/// Waits until `/ready` is red for this reason.
async fn ready_says(stage: &Stage, word: &str) {
    let api = stage.engine.as_ref().unwrap().api();
    eventually("the engine says what is wrong", || async {
        let answer = api.admin().get("/ready").await;
        let cause = answer.json()["checks"]["replication"]["detail"].to_string();
        (answer.status == 503 && cause.contains(word)).then_some(())
    })
    .await;
}

async fn check_complete(stage: &Stage) {
    let changes = outline(&stage.changes().await);
    assert_eq!(changes, stage.oracle.changes("acme", 0).await);
    assert_eq!(stage.world.checkpoint().await["number"], "1", "no new epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_read_only_or_loading_redis_is_retried_and_reported() {
    let mut redis = servers::redis_with(|_, options| options.setting("key-load-delay", "500")).await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on_with(world, Role::All).await;
    let connection = stage.world.redis().await;
    for (begin, end, word) in [
        (
            ["CONFIG", "SET", "maxmemory", "1"],
            ["CONFIG", "SET", "maxmemory", "0"],
            "OOM",
        ),
        // A replica of nobody who answers.
        (
            ["REPLICAOF", "127.0.0.1", "1", ""],
            ["REPLICAOF", "NO", "ONE", ""],
            "READONLY",
        ),
    ] {
        let words = |words: [&'static str; 4]| words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>();
        redis_command(&connection, &words(begin)).await;
        for _ in 0..10 {
            stage.message(stage.bob, stage.joe, "while Redis takes nothing").await;
        }
        ready_says(&stage, word).await;
        redis_command(&connection, &words(end)).await;
        check_complete(&stage).await;
    }

    // Enough commands that Redis looks up from its loading now and then.
    let many = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, 'x' FROM generate_series(1, 2000)";
    stage.psql.execute(many, &[&stage.bob, &stage.joe]).await.unwrap();
    stage.world.published().await;
    redis.server.kill().await.unwrap();
    let (restarted, ()) = tokio::join!(redis.server.restart(), ready_says(&stage, "LOADING"));
    restarted.unwrap();
    check_complete(&stage).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_batch_discards_its_sent_prefix_and_is_sent_again() {
    let redis = servers::redis().await;
    let mut world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    // Many batches a transaction, each large enough that the next one goes ahead.
    world.config.replication.batch_changes_max = 50;
    let stage = Stage::on_with(world, Role::Replicator).await;
    let connection = stage.world.redis().await;
    let many = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, repeat(md5(n::text), 60) FROM generate_series(1, 1000) n";
    for _ in 0..5 {
        let before = stage.world.checkpoint().await["position"].clone();
        stage.psql.execute(many, &[&stage.bob, &stage.joe]).await.unwrap();
        eventually("the transaction is under way", || async {
            (stage.world.checkpoint().await["position"] != before).then_some(())
        })
        .await;
        redis_command(&connection, &["CONFIG", "SET", "maxmemory", "1"]).await;
        stage.psql.execute(many, &[&stage.bob, &stage.joe]).await.unwrap();
        redis_command(&connection, &["CONFIG", "SET", "maxmemory", "0"]).await;
    }
    check_complete(&stage).await;
    assert!(refusals(&connection, "OOM").await > 0, "Redis was never full");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_forbidden_by_acl_stops_alone_and_is_recreated_when_allowed() {
    let redis = servers::redis().await;
    let mut world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let admin = world.redis().await;
    let prefix = world.config.redis.prefix.clone();
    redis_command(
        &admin,
        &["ACL", "SETUSER", "engine", "on", ">secret", "~*", "&*", "+@all"],
    )
    .await;
    let url = world.config.redis.url.expose().to_owned();
    let place = url.rsplit_once('@').unwrap().1;
    let mut config = world.config.clone();
    config.redis.url = posduif::config::Secret::new(format!("redis://engine:secret@{place}"));
    std::mem::swap(&mut world.config, &mut config);
    let mut stage = Stage::on_with(world, Role::Replicator).await;
    stage.world.tenant("other").await;
    let ann = stage.world.user("other", "ann", UserType::Web).await;
    let ben = stage.world.user("other", "ben", UserType::Mobile).await;
    let to_ben = async |stage: &Stage, content: &str| {
        let insert = format!(
            "INSERT INTO tenant_other.messages (sender_id, recipient_id, content) VALUES ('{ann}', '{ben}', '{content}')"
        );
        stage.sql(&insert).await;
    };
    // All other streams may be read to check them: by a user who may everything.
    stage.world.config.redis.url = config.redis.url.clone();
    to_ben(&stage, "before").await;
    stage.world.published().await;

    // All but the one stream.
    let mut allowed = vec!["ACL", "SETUSER", "engine", "resetkeys"];
    let patterns: Vec<String> = ["checkpoint", "window", "stopped", "live:*", "{acme}:*"]
        .into_iter()
        .chain([
            "{other}:inbox:*",
            "{other}:shared",
            "{other}:meta",
            "{other}:quarantine",
        ])
        .map(|pattern| format!("~{prefix}:{pattern}"))
        .collect();
    allowed.extend(patterns.iter().map(String::as_str));
    redis_command(&admin, &allowed).await;
    for _ in 0..5 {
        to_ben(&stage, "forbidden").await;
        stage.message(stage.bob, stage.joe, "to another tenant").await;
    }
    check_complete(&stage).await;
    let keys = stage.world.keys();
    let messages = |entries: &[crate::support::Entry]| {
        let contents = entries.iter().map(|entry| match entry.field("op") {
            "insert" if entry.field("table") == "messages" => entry.json("row")["content"].as_str().unwrap().to_owned(),
            op => op.to_owned(),
        });
        contents.collect::<Vec<String>>()
    };
    let inbox = stage.world.stream(&keys.inbox("other", &ben.to_string())).await;
    assert_eq!(messages(&inbox).len(), 7, "the reset and six messages");
    let changes = messages(&stage.world.stream(&keys.changes("other")).await);
    assert_eq!(changes.last().unwrap(), "before");
    let quarantine = stage.world.stream(&keys.quarantine("other")).await;
    let quarantine: Vec<&str> = quarantine.iter().map(|entry| entry.field("cause")).collect();
    assert_eq!(quarantine.len(), 1);
    assert!(quarantine[0].contains("NOPERM"), "{quarantine:?}");

    // Allowed again, it goes on with the next session, and says that something is missing.
    redis_command(&admin, &["ACL", "SETUSER", "engine", "~*"]).await;
    stage.engine.take().unwrap().stop().await;
    std::mem::swap(&mut stage.world.config, &mut config);
    config.redis.prefix.clone_from(&prefix);
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    to_ben(&stage, "after").await;
    stage.world.published().await;
    let changes = messages(&stage.world.stream(&keys.changes("other")).await);
    assert_eq!(changes[changes.len() - 3..], ["before", "reset", "after"]);
    check_complete(&stage).await;
    stage.stop().await;
}

/// Keys of a world that an engine's user may use, but for those that end like this.
fn patterns_without(prefix: &str, forbidden: &str) -> Vec<String> {
    ["checkpoint", "window", "stopped", "aof", "live:*"]
        .into_iter()
        .chain([
            "{acme}:changes",
            "{acme}:shared",
            "{acme}:meta",
            "{acme}:quarantine",
            "{acme}:inbox:*",
        ])
        .filter(|pattern| *pattern != forbidden)
        .map(|pattern| format!("~{prefix}:{pattern}"))
        .collect()
}

/// A stage whose engine logs in to a Redis of the test's own as `engine`, who may do everything at first.
async fn stage_of_restricted_engine(redis_url: &str) -> Stage {
    let mut world = World::on(&std::env::var("DATABASE_URL").unwrap(), redis_url).await;
    // No heartbeat comes before the rows of the test.
    world.config.replication.heartbeat_interval_ms = 60_000;
    let permissions = ["on", ">secret", "~*", "&*", "+@all"];
    redis_command(
        &world.redis().await,
        &[&["ACL", "SETUSER", "engine"][..], &permissions].concat(),
    )
    .await;
    let place = redis_url.rsplit_once('@').unwrap().1;
    let mut config = world.config.clone();
    config.redis.url = posduif::config::Secret::new(format!("redis://engine:secret@{place}"));
    let engine = world.engine_with(Role::All, config).await;
    world.published().await;
    let mut stage = Stage::without_engine(world).await;
    stage.engine = Some(engine);
    stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_entry_is_marked_in_the_exec_that_passes_it() {
    let redis = servers::redis().await;
    let stage = stage_of_restricted_engine(&redis.server.url()).await;
    let admin = stage.world.redis().await;
    let keys = stage.world.keys();
    let client = posduif::net::redis::client(&stage.world.config.redis).unwrap();
    let mut monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.on_message::<String>();
    let patterns = patterns_without(&stage.world.config.redis.prefix, "{acme}:inbox:*");
    let mut words = vec!["ACL", "SETUSER", "engine", "resetkeys"];
    words.extend(patterns.iter().map(String::as_str));
    redis_command(&admin, &words).await;
    stage.message(stage.bob, stage.joe, "forbidden").await;

    // Redis tells what each connection asks: `<time> [<database> <address>] "<command>" ...`.
    let (change, mark) = (
        format!("\"XADD\" \"{}\"", keys.changes("acme")),
        format!("\"HSET\" \"{}\"", keys.stopped()),
    );
    let transaction = async {
        let mut commands = Vec::new();
        while let Some(line) = lines.next().await {
            let (_, command) = line.split_once("] ").unwrap();
            if command.starts_with("\"MULTI\"") {
                commands.clear();
            }
            commands.push(command.to_owned());
            let is_it = |command: &String| command.starts_with(&change) && command.contains("forbidden");
            if command.starts_with("\"EXEC\"") && commands.iter().any(is_it) {
                return commands;
            }
        }
        panic!("the monitor has ended");
    };
    let commands = tokio::time::timeout(TIMEOUT, transaction)
        .await
        .expect("the change is published");
    assert!(
        commands.iter().any(|command| command.starts_with(&mark)),
        "the stop mark is in the same EXEC: {commands:#?}"
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acl_without_the_checkpoint_is_waited_for_and_drops_nothing() {
    let redis = servers::redis().await;
    let stage = stage_of_restricted_engine(&redis.server.url()).await;
    let admin = stage.world.redis().await;
    redis_command(&admin, &["ACL", "SETUSER", "engine", "resetkeys"]).await;
    let many = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, 'x' FROM generate_series(1, 400)";
    stage.psql.execute(many, &[&stage.bob, &stage.joe]).await.unwrap();
    ready_says(&stage, "NOPERM").await;
    redis_command(&admin, &["ACL", "SETUSER", "engine", "~*"]).await;
    check_complete(&stage).await;
    assert!(stage.world.stopped_streams().await.is_empty());
    let quarantine = stage.world.keys().quarantine("acme");
    assert!(stage.world.stream(&quarantine).await.is_empty());
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_redis_refuses_or_is_down() {
    let mut redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let (stage, engine) = Stage::with_process(world, "replicator").await;
    stage.message(stage.bob, stage.joe, "warm").await;
    stage.world.published().await;
    let connection = stage.world.redis().await;
    let backlog = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                   SELECT $1, $2, repeat(md5(n::text), 100) FROM generate_series(1, 10000) n";
    let before = engine.resident_memory_kib();
    redis_command(&connection, &["CONFIG", "SET", "maxmemory", "1"]).await;
    stage.psql.execute(backlog, &[&stage.bob, &stage.joe]).await.unwrap();
    let refused = refusals(&connection, "OOM").await;
    eventually("Redis has refused a batch again and again", || async {
        (refusals(&connection, "OOM").await > refused + 4).then_some(())
    })
    .await;
    let full = engine.resident_memory_kib();
    redis.server.kill().await.unwrap();
    stage.psql.execute(backlog, &[&stage.bob, &stage.joe]).await.unwrap();
    let away = engine.resident_memory_kib();
    redis.server.restart().await.unwrap();
    check_complete(&stage).await;
    let peak = engine.peak_memory_kib();
    // Two batches with their buffers; the backlog is 32 MB twice, and as commands twice that.
    assert!(
        peak < before + 24 * 1024,
        "{before} KiB before, {full} while Redis was full, {away} while it was away, {peak} at most"
    );
    assert_eq!(engine.terminate().await, Some(0));
}

/// What the docs say suffices for an engine, with this prefix in place of theirs.
fn documented_permissions(prefix: &str) -> Vec<String> {
    let docs = include_str!("../docs/operations.md");
    let line = docs.lines().find_map(|line| line.strip_prefix("user posduif "));
    let words = line
        .expect("an ACL that suffices")
        .replace("posduif:*", &format!("{prefix}:*"));
    words.split(' ').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documented_redis_permissions_are_sufficient() {
    let redis = servers::redis().await;
    let mut world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let admin = world.redis().await;
    let permissions = documented_permissions(&world.config.redis.prefix);
    let mut words = vec!["ACL", "SETUSER", "posduif"];
    words.extend(permissions.iter().map(String::as_str));
    // Older servers do not have the command, and refuse the line.
    let known: Vec<redis::Value> = redis::cmd("COMMAND")
        .arg(&["INFO", "waitaof"])
        .query_async(&mut admin.clone())
        .await
        .unwrap();
    if known != [redis::Value::Nil] {
        words.push("+waitaof");
    }
    redis_command(&admin, &words).await;
    let place = redis.server.url().rsplit_once('@').unwrap().1.to_owned();
    world.config.redis.url = posduif::config::Secret::new(format!("redis://posduif:PASSWORD@{place}"));
    let office = Office::within(world, |config| {
        crate::groups::configure(config);
        config.streams.trim_interval_seconds = 1;
        config.streams.retention_after_ack_seconds = 0;
        config.presence.last_seen_interval_seconds = 1;
        config.presence.grace_seconds = 0;
        config.live.heartbeat_seconds = 1;
        config.push.offline_delay_seconds = 1;
    })
    .await;
    let second = office.world.engine(Role::Api).await;

    let phone = office.phone("phone").await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let mut socket = phone.socket("/ws").await;
    socket
        .ask(&json!({"type": "presence", "id": 1, "status": "away"}))
        .await;
    let (_, cursor) = phone.sync(None).await;
    office.send("hi").await;
    events.expect("message").await;
    let (_, cursor) = phone.sync(Some(&cursor)).await;
    phone
        .post("/api/sync/ack", &json!({"cursor": cursor}))
        .await
        .expect(200);
    phone.get("/api/sync/status").await.expect(200);
    let item = json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "back"});
    phone.upload(&[item]).await;
    phone
        .with("if-none-match", "*")
        .put("/api/state/key", &json!({"state": "AA==", "nonce": "AAAAAAAAAAAAAAAA"}))
        .await;
    office.bob.get("/api/presence").await.expect(200);
    let stream = "/sse/mobile/phone";
    let ticket = phone
        .post("/api/sse/ticket", &json!({"stream": stream}))
        .await
        .expect(201);
    let ticket = ticket["ticket"].as_str().unwrap();
    office.anybody.events(&format!("{stream}?ticket={ticket}")).await;
    // Away, it is woken.
    drop((events, socket));
    office.send("to a phone that is away").await;
    let pushes = office.world.keys().push("acme");
    eventually("the phone is woken", || async {
        let mut length = redis::cmd("XLEN");
        let length: u64 = length.arg(&pushes).query_async(&mut admin.clone()).await.unwrap();
        (length > 0).then_some(())
    })
    .await;
    phone.sync(Some(&cursor)).await;

    // Guessing, refreshing, and ends of sessions that the other node must hear of.
    let login = json!({"tenant": "acme", "username": "bob", "password": "a guess"});
    assert_eq!(office.anybody.post("/api/auth/login", &login).await.status, 401);
    let login = json!({"tenant": "acme", "username": "bob", "password": crate::support::PASSWORD});
    let session = office.anybody.post("/api/auth/login", &login).await.expect(200);
    let refresh = json!({"refresh_token": session["refresh_token"]});
    let session = office.anybody.post("/api/auth/refresh", &refresh).await.expect(200);
    let token = format!("Bearer {}", session["token"].as_str().unwrap());
    let here = office.anybody.with("authorization", &token);
    let there = here.at(&second.api());
    here.get("/api/auth/sessions").await.expect(200);
    there.get("/api/users").await.expect(200);
    assert_eq!(here.post("/api/auth/logout", &json!({})).await.status, 204);
    eventually("the other node has heard of the end", || async {
        (there.get("/api/users").await.status == 401).then_some(())
    })
    .await;
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'bob'")
        .await;
    eventually("the disabled user is refused", || async {
        (office.bob.get("/api/users").await.status == 401).then_some(())
    })
    .await;

    second.stop().await;
    let mut log = redis::cmd("ACL");
    let denied: Vec<redis::Value> = log.arg("LOG").query_async(&mut admin.clone()).await.unwrap();
    assert!(denied.is_empty(), "{denied:?}");
    office.close().await;
}
