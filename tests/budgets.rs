//! Bounds in bytes of streams and tenants: what a flood may fill, what is cut, and when writes are refused.

use std::collections::BTreeMap;

use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::core::position::StreamId;
use posduif::engine::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::command::posduif_in;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::stage::Stage;
use crate::support::{World, eventually, servers};

const MIB: u64 = 1024 * 1024;

/// Bounds at a small scale.
fn small(config: &mut Config) {
    let streams = &mut config.streams;
    streams.trim_interval_seconds = 1;
    streams.inbox_bytes_max = MIB;
    streams.shared_bytes_max = MIB;
    streams.changes_bytes_max = 2 * MIB;
    streams.tenant_bytes_max = 3 * MIB;
}

/// A text of the most characters that a message may have, each of four bytes.
fn large(n: usize) -> String {
    let mut text = "\u{1f54a}".repeat(9_990);
    text.push_str(&n.to_string());
    text
}

/// What a key takes in Redis.
async fn bytes(world: &World, key: &str) -> u64 {
    let bytes: Option<u64> = world.ask_redis(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).await;
    bytes.unwrap_or(0)
}

/// What the streams of a tenant take in Redis.
async fn held(world: &World, tenant: &str, users: &[Uuid]) -> u64 {
    let keys = world.keys();
    let inboxes = users.iter().map(|user| keys.inbox(tenant, &user.to_string()));
    let mut sum = 0;
    for key in inboxes.chain([keys.changes(tenant), keys.shared(tenant), keys.quarantine(tenant)]) {
        sum += bytes(world, &key).await;
    }
    sum
}

/// Applies batches to what a device holds: the contents of messages by their ids.
fn apply(held: &mut BTreeMap<String, String>, pages: &[Value]) {
    for page in pages {
        if page["reset"] == true {
            held.clear();
        }
        for row in page["messages"].as_array().unwrap() {
            let id = row["id"].as_str().unwrap().to_owned();
            match row["deleted_at"].is_null() {
                true => held.insert(id, row["content"].as_str().unwrap_or_default().to_owned()),
                false => held.remove(&id),
            };
        }
    }
}

/// Edits of a message with the base of its first version: each is a conflict, kept with both versions.
fn edits(message: &str, from: usize) -> Vec<Value> {
    let edit = |n| json!({"id": message, "op": "edit", "content": large(n), "base_version": 1});
    (from..from + 20).map(edit).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_one_device_leaves_redis_and_other_tenants_alone() {
    let office = Office::with(small).await;
    let world = &office.world;
    world.tenant("other").await;
    let ann = world.user("other", "ann", UserType::Web).await;
    let ben = world.user("other", "ben", UserType::Mobile).await;
    let (flooder, second) = (office.phone("flooder").await, office.phone("second").await);
    let users = [office.joe_id, office.bob_id];
    let before = office.send("before the flood").await;
    world.published().await;
    let mut copy = BTreeMap::new();
    let (pages, here) = second.sync(None).await;
    apply(&mut copy, &pages);
    assert_eq!(copy.keys().collect::<Vec<_>>(), [&before]);

    // WHEN a device sends 160 edits of one message, each of 40 kB, which are 50 MB in Redis
    let message = Uuid::new_v4().to_string();
    let create = json!({"id": message, "recipient_id": office.bob_id, "content": "short"});
    flooder.upload(&[create]).await;
    for round in 0..8 {
        flooder.upload(&edits(&message, 20 * round)).await;
        let other = format!(
            "INSERT INTO tenant_other.messages (sender_id, recipient_id, content) VALUES ('{ann}', '{ben}', '{round}')"
        );
        office.sql(&other).await;
        world.published().await;
        // THEN its tenant is back within its budget
        eventually("the tenant is within its budget", || async {
            (held(world, "acme", &users).await <= 3 * MIB).then_some(())
        })
        .await;
    }
    // AND each stream within its bound
    let keys = world.keys();
    for user in users {
        let inbox = keys.inbox("acme", &user.to_string());
        eventually("the inbox is within its bound", || async {
            (bytes(world, &inbox).await <= MIB).then_some(())
        })
        .await;
    }
    eventually("`changes` is within its bound", || async {
        (bytes(world, &keys.changes("acme")).await <= 2 * MIB).then_some(())
    })
    .await;
    // AND consumers of `changes` find its trim point
    let point: String = world.ask_redis(&["HGET", &keys.meta("acme"), "trim:changes"]).await;
    let point: StreamId = point.parse().unwrap();
    let changes = world.stream(&keys.changes("acme")).await;
    assert!(changes.iter().all(|entry| entry.id >= point), "{point}");
    // AND the rows of the other tenant are all there
    let inbox = world.stream(&keys.inbox("other", &ben.to_string())).await;
    let contents = inbox.iter().filter(|entry| entry.field("op") == "insert");
    let contents: Vec<Value> = contents.map(|entry| entry.json("row")["content"].clone()).collect();
    assert_eq!(contents, (0..8).map(|n| json!(n.to_string())).collect::<Vec<_>>());
    // AND the user's other device takes a snapshot, and has what Postgres has
    let (pages, here) = second.sync(Some(&here)).await;
    assert_eq!(pages[0]["reset"], true);
    copy.clear();
    apply(&mut copy, &pages);
    assert_eq!(copy.len(), 2);
    assert_eq!(copy[&message], large(159));
    let last = office.send("after the flood").await;
    world.published().await;
    let (pages, _) = second.sync(Some(&here)).await;
    assert_eq!(pages[0]["reset"], false);
    apply(&mut copy, &pages);
    assert_eq!(copy[&last], "after the flood");
    office.close().await;
}

/// The messages of the tenant, as Postgres has them.
async fn messages(world: &World) -> i64 {
    let count = "SELECT count(*) FROM tenant_acme.messages WHERE deleted_at IS NULL";
    world.psql().await.query_one(count, &[]).await.unwrap().get(0)
}

/// Waits until a message of bob's is answered like this.
async fn answered(office: &Office, bob: &Api, status: u16) -> Value {
    eventually("bob's message is answered otherwise", || async {
        let body = json!({"recipient_id": office.joe_id, "content": "is there room?"});
        let answer = bob.post("/api/messages", &body).await;
        (answer.status == status).then(|| answer.json())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenant_that_cannot_be_cut_is_refused_until_it_can() {
    let redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let live = format!("(~{}:live:* +xtrim)", world.config.redis.prefix);
    let office = Office::within(world, small).await;
    let (phone, bob) = (office.phone("phone").await, &office.bob);
    let kept = office.send("to be deleted").await;
    phone.sync(None).await;
    let mut socket = phone.socket("/ws").await;

    // WHEN a tenant floods Redis, which permits no trims
    let () = office
        .world
        .ask_redis(&["ACL", "SETUSER", "default", "-xtrim", &live])
        .await;
    let fill = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, repeat(md5(n::text), 300) FROM generate_series(1, 300) n";
    let psql = office.world.psql().await;
    psql.execute(fill, &[&office.bob_id, &office.joe_id]).await.unwrap();
    office.world.published().await;

    // THEN its messages and uploads are refused, and nothing of them is written
    let refused = answered(&office, bob, 507).await;
    let count = messages(&office.world).await;
    let error = &refused["error"];
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("QUOTA_EXCEEDED"), &json!(true))
    );
    assert_eq!(error["details"]["budget"], 3 * MIB);
    assert!(error["details"]["used"].as_u64().unwrap() > 3 * MIB, "{error}");
    let item = || json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "too much"});
    let upload = json!({"messages": [item()]});
    assert_eq!(phone.post("/api/sync/outgoing", &upload).await.code(), "QUOTA_EXCEEDED");
    let edit = json!({"content": "longer"});
    assert_eq!(
        bob.patch(&format!("/api/messages/{kept}"), &edit).await.code(),
        "QUOTA_EXCEEDED"
    );
    let state = json!({"state": "AA==", "nonce": "AAAAAAAAAAAAAAAA"});
    let put = phone.with("if-none-match", "*").put("/api/state/key", &state).await;
    assert_eq!(put.code(), "QUOTA_EXCEEDED");
    let mut item = item();
    item["type"] = json!("message");
    let result = socket.ask(&item).await;
    assert_eq!(
        (&result["status"], &result["code"]),
        (&json!("retry"), &json!("QUOTA_EXCEEDED"))
    );
    assert_eq!(result["budget"], 3 * MIB, "{result}");
    assert_eq!(messages(&office.world).await, count);
    // AND what needs no room is accepted
    phone
        .post("/api/sync/outgoing", &json!({"messages": []}))
        .await
        .expect(200);
    assert_eq!(bob.delete(&format!("/api/messages/{kept}")).await.status, 204);
    phone.sync(None).await;
    // AND its operator sees it
    let list = posduif_in(&office.world)
        .args(["stream", "list", "--json"])
        .output()
        .await
        .unwrap();
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let acme = &list["tenants"][0];
    assert_eq!(
        (&acme["exceeded"], &acme["budget_bytes"]),
        (&json!(true), &json!(3 * MIB))
    );
    assert!(acme["memory_bytes"].as_u64().unwrap() > 3 * MIB, "{acme}");
    let metrics = office.anybody.admin().get("/metrics").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(metrics.contains("posduif_tenants_beyond_budget 1"), "{metrics}");

    // AND another engine goes on refusing
    let Office {
        world, engine, joe_id, ..
    } = office;
    engine.stop().await;
    let engine = world.engine(Role::All).await;
    let bob = engine.api().log_in("acme", "bob").await;
    let ask = async || {
        let body = json!({"recipient_id": joe_id, "content": "is there room?"});
        bob.post("/api/messages", &body).await.status
    };
    eventually("the next engine refuses", || async {
        (ask().await == 507).then_some(())
    })
    .await;

    // WHEN trims are permitted THEN the tenant is cut, and its messages are accepted
    let () = world.ask_redis(&["ACL", "SETUSER", "default", "+xtrim"]).await;
    eventually("the tenant may write", || async { (ask().await == 201).then_some(()) }).await;
    let exceeded: u64 = world.ask_redis(&["EXISTS", &world.keys().exceeded()]).await;
    assert_eq!(exceeded, 0);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_redis_is_freed_by_cutting_the_tenant_that_filled_it() {
    let redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let office = Office::within(world, |config| config.replication.batch_bytes_max = 256 * 1024).await;
    let world = &office.world;
    world.tenant("other").await;
    let ann = world.user("other", "ann", UserType::Web).await;
    let ben = world.user("other", "ben", UserType::Mobile).await;
    let phone = office.phone("phone").await;
    let (_, here) = phone.sync(None).await;
    let insert = |content: &str| {
        format!(
            "INSERT INTO tenant_other.messages (sender_id, recipient_id, content) VALUES ('{ann}', '{ben}', '{content}')"
        )
    };
    office.sql(&insert("before")).await;
    world.published().await;

    // GIVEN a Redis without room for what one tenant writes, even if its `changes` had nothing
    let info: String = world.ask_redis(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    let limit = used.unwrap().trim().parse::<u64>().unwrap() + 2 * MIB;
    let () = world
        .ask_redis(&["CONFIG", "SET", "maxmemory", &limit.to_string()])
        .await;
    let (joe, bob) = (office.joe_id, office.bob_id);
    let flood = format!(
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
         SELECT '{bob}', '{joe}', repeat(md5(n::text), 300) FROM generate_series(1, 800) n"
    );
    office.sql(&flood).await;
    office.sql(&insert("behind")).await;

    // THEN the rows of both arrive, and no client has raised the limit
    world.published().await;
    let keys = world.keys();
    let inbox = world.stream(&keys.inbox("other", &ben.to_string())).await;
    let contents = inbox.iter().filter(|entry| entry.field("op") == "insert");
    let contents: Vec<Value> = contents.map(|entry| entry.json("row")["content"].clone()).collect();
    assert_eq!(contents, ["before", "behind"]);
    // AND the other tenant keeps its history
    let changes = world.stream(&keys.changes("other")).await;
    let messages = changes.iter().filter(|entry| entry.field("table") == "messages");
    assert_eq!(messages.count(), 2);
    // AND the phone of the tenant that was cut has what Postgres has
    let mut copy = BTreeMap::new();
    let (mut at, mut resets) = (Some(here), 0);
    while copy.len() < 800 {
        // A device's own position takes memory, too.
        let cursor = at.as_ref().map_or(String::new(), |at| format!("?cursor={at}"));
        let page = eventually("the phone gets a page", || async {
            let answer = phone.get(&format!("/api/sync/incoming{cursor}")).await;
            (answer.status == 200).then(|| answer.json())
        })
        .await;
        resets += usize::from(page["reset"] == true);
        apply(&mut copy, std::slice::from_ref(&page));
        at = page["cursor"].as_str().map(str::to_owned);
    }
    assert!(resets > 0, "its inbox was cut");
    office.close().await;
}

#[tokio::test]
async fn idle_streams_beyond_lowered_bounds_are_cut_after_a_restart() {
    let mut stage = Stage::new().await;
    let fill = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, repeat(md5(n::text), 300) FROM generate_series(1, 300) n";
    stage.psql.execute(fill, &[&stage.bob, &stage.joe]).await.unwrap();
    stage.world.published().await;
    let inbox = stage.world.keys().inbox("acme", &stage.joe.to_string());
    assert!(bytes(&stage.world, &inbox).await > 2 * MIB);
    stage.engine.take().unwrap().stop().await;
    small(&mut stage.world.config);
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let users = [stage.bob, stage.joe];
    eventually("the tenant is within its bounds", || async {
        let is_within = bytes(&stage.world, &inbox).await <= MIB && held(&stage.world, "acme", &users).await <= 3 * MIB;
        is_within.then_some(())
    })
    .await;
    assert!(!stage.inbox(stage.joe).await.is_empty(), "no more than needed is cut");
    stage.stop().await;
}

#[tokio::test]
async fn flood_behind_small_entries_is_seen() {
    // Redis guesses the size of a stream from its oldest nodes, unless it is asked to count all.
    let stage = Stage::with(small).await;
    let fill = async |count: i32, times: i32| {
        let fill = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                    SELECT $1, $2, repeat(md5(n::text), $4) FROM generate_series(1, $3) n";
        stage
            .psql
            .execute(fill, &[&stage.bob, &stage.joe, &count, &times])
            .await
            .unwrap();
        stage.world.published().await;
    };
    fill(500, 1).await;
    let inbox = stage.world.keys().inbox("acme", &stage.joe.to_string());
    eventually("the small entries were looked at", || async {
        stage.world.published().await;
        (bytes(&stage.world, &inbox).await > 100_000).then_some(())
    })
    .await;
    fill(120, 300).await;
    eventually("the inbox is within its bound", || async {
        (bytes(&stage.world, &inbox).await <= MIB).then_some(())
    })
    .await;
    let left = stage.inbox(stage.joe).await;
    assert!(left.len() > 60, "{} entries are left", left.len());
    stage.stop().await;
}

#[tokio::test]
async fn quarantine_is_bounded_by_a_part_of_the_budget() {
    let stage = Stage::with(small).await;
    let quarantine = stage.world.keys().quarantine("acme");
    let text = "x".repeat(40_000);
    for _ in 0..20 {
        let _: String = stage
            .world
            .ask_redis(&["XADD", &quarantine, "*", "kind", "test", "cause", &text])
            .await;
    }
    stage
        .message(stage.bob, stage.joe, "a tenant is counted when it has grown")
        .await;
    let fill = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, repeat(md5(n::text), 300) FROM generate_series(1, 60) n";
    stage.psql.execute(fill, &[&stage.bob, &stage.joe]).await.unwrap();
    eventually("the quarantine is cut", || async {
        (bytes(&stage.world, &quarantine).await <= 3 * MIB / 16).then_some(())
    })
    .await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_a_consumer_does_not_acknowledge_cost_no_history() {
    let office = Office::with(|config| {
        small(config);
        config.streams.inbox_entries_max = 100;
        config.streams.tenant_bytes_max = 16 * MIB;
    })
    .await;
    let (world, joe, bob) = (&office.world, office.joe_id, office.bob_id);
    office.phone("phone").await;
    world.published().await;
    let changes = world.keys().changes("acme");
    let write = async |rows: u32| {
        let insert = format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
             SELECT '{bob}', '{joe}', 'a row' FROM generate_series(1, {rows})"
        );
        office.sql(&insert).await;
        world.published().await;
    };
    // Inboxes are cut to a number of entries in rounds only, which look at `changes`, too.
    let round = async || {
        let inbox = world.keys().inbox("acme", &joe.to_string());
        eventually("a round has cut the inbox", || async {
            (world.ask_redis::<u64>(&["XLEN", &inbox]).await <= 100).then_some(())
        })
        .await;
    };
    let _: String = world.ask_redis(&["XGROUP", "CREATE", &changes, "service", "0"]).await;
    // GIVEN a service that reads and does not acknowledge, so that Redis reports more than the bound of the stream
    write(3200).await;
    let read = [
        "XREADGROUP",
        "GROUP",
        "service",
        "one",
        "COUNT",
        "10000",
        "STREAMS",
        &changes,
        ">",
    ];
    let _: redis::Value = world.ask_redis(&read).await;
    assert!(bytes(world, &changes).await > 2 * MIB);
    // WHEN rows are written and rounds look at their bounds
    for _ in 0..3 {
        write(110).await;
        round().await;
    }
    // THEN the service finds its history
    assert!(world.ask_redis::<u64>(&["XLEN", &changes]).await >= 3530);
    office.close().await;
}

#[tokio::test]
async fn inbox_goes_with_the_row_of_its_user() {
    let office = Office::open().await;
    let world = &office.world;
    let ann = world.user("acme", "ann", UserType::Mobile).await;
    world.published().await;
    let inbox = world.keys().inbox("acme", &ann.to_string());
    assert_eq!(world.ask_redis::<u64>(&["EXISTS", &inbox]).await, 1);
    office
        .sql(&format!("DELETE FROM tenant_acme.users WHERE id = '{ann}'"))
        .await;
    world.published().await;
    assert_eq!(world.ask_redis::<u64>(&["EXISTS", &inbox]).await, 0);
    office.close().await;
}
