//! Presence: equal at every node, and cheap at any rate of connects and disconnects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posduif::accounts::last_seen;
use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::engine::Role;
use posduif::live::presence::{Place, Presence, Status};
use posduif::telemetry::metrics::Operations;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::http::{Api, Events};
use crate::support::office::Office;
use crate::support::{World, eventually};

/// What a node says of everybody.
async fn statuses(api: &Api) -> BTreeMap<String, String> {
    let list = api.get("/api/presence").await.expect(200);
    list["presence"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (text(&entry["user_id"]), text(&entry["status"])))
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Waits until a node says this of a user.
async fn becomes(api: &Api, user: Uuid, status: &str) {
    eventually(&format!("{user} is {status}"), || async {
        (statuses(api).await.get(&user.to_string())? == status).then_some(())
    })
    .await;
}

/// Waits until a stream delivers this status of a user.
async fn receives(events: &mut Events, user: Uuid, status: &str) -> Value {
    loop {
        let event = events.expect("presence").await;
        assert_eq!(event.id, None, "presence is in no stream");
        let users = event.data["users"].as_array().cloned().unwrap_or_default();
        if let Some(entry) = users
            .iter()
            .find(|entry| entry["user_id"] == json!(user) && entry["status"] == status)
        {
            return entry.clone();
        }
    }
}

/// A process of presence alone.
struct Node {
    presence: Presence,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(world: &World) -> Self {
        let presence = Presence::new(&world.config, Operations::new("command")).unwrap();
        let stop = CancellationToken::new();
        let config = Arc::new(world.config.clone());
        let database = world.database().await;
        let last_seen = last_seen::run(presence.clone(), database, config.clone(), stop.clone());
        let running = presence.clone().run(config, stop.clone());
        Self {
            presence,
            running: tokio::spawn(async move {
                tokio::join!(running, last_seen);
            }),
            stop,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

#[tokio::test]
async fn presence_is_equal_on_two_nodes_and_sent_to_their_readers() {
    let office = Office::open().await;
    let two = office.world.engine(Role::Api).await;
    let (bob_one, bob_two) = (office.bob.clone(), office.bob.at(&two.api()));
    let web = format!("/sse/web/{}", office.bob_id);
    let mut page_one = bob_one.events(&web).await;
    let whole = page_one.expect("presence").await;
    assert_eq!((&whole.data["snapshot"], &whole.id), (&json!(true), &None));
    receives(&mut bob_two.events(&web).await, office.bob_id, "online").await;

    let phone = office.phone("phone").await;
    let stream = phone.events("/sse/mobile/phone").await;
    let entry = receives(&mut page_one, office.joe_id, "online").await;
    assert_eq!(entry["last_seen"], Value::Null);
    for node in [&bob_one, &bob_two] {
        becomes(node, office.joe_id, "online").await;
    }
    // A page at the other node begins with the whole.
    let mut page_two = bob_two.events(&web).await;
    receives(&mut page_two, office.joe_id, "online").await;

    let said = phone
        .at(&two.api())
        .put("/api/presence", &json!({"status": "away"}))
        .await;
    assert_eq!(said.expect(200)["status"], "away");
    receives(&mut page_one, office.joe_id, "away").await;
    receives(&mut page_two, office.joe_id, "away").await;
    for node in [&bob_one, &bob_two] {
        becomes(node, office.joe_id, "away").await;
        let joe = node.get(&format!("/api/users/{}", office.joe_id)).await.expect(200);
        assert_eq!(joe["online_status"], true);
    }
    let before = chrono::Utc::now();
    drop(stream);
    let entry = receives(&mut page_one, office.joe_id, "offline").await;
    receives(&mut page_two, office.joe_id, "offline").await;
    let seen: chrono::DateTime<chrono::Utc> = text(&entry["last_seen"]).parse().unwrap();
    assert!((seen - before).num_seconds().abs() < 10, "{seen}, not about {before}");
    for node in [&bob_one, &bob_two] {
        let joe = node.get(&format!("/api/users/{}", office.joe_id)).await.expect(200);
        assert_eq!(
            (&joe["online_status"], &joe["last_seen"]),
            (&json!(false), &entry["last_seen"])
        );
        assert_eq!(statuses(node).await, statuses(&bob_one).await);
    }
    two.stop().await;
    office.close().await;
}

#[tokio::test]
async fn presence_disconnect_within_grace_sends_no_event() {
    let office = Office::with(|config| config.presence.grace_seconds = 3).await;
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    let phone = office.phone("phone").await;
    let sallys = office.bob.enroll("sallys", Some(&sally.to_string())).await.0;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let first = phone.events("/sse/mobile/phone").await;
    receives(&mut page, office.joe_id, "online").await;
    let streams = office.world.keys().presence("acme");
    let of_joe = || async {
        let mut redis = office.world.redis().await;
        let all: Vec<String> = redis::cmd("ZRANGE")
            .arg(&streams)
            .arg(&[0, -1])
            .query_async(&mut redis)
            .await
            .unwrap();
        all.iter()
            .filter(|stream| stream.starts_with(&office.joe_id.to_string()))
            .count()
    };
    drop(first);
    // Away for a moment, then here again while the first stream still counts.
    let _second = phone.events("/sse/mobile/phone").await;
    assert_eq!(of_joe().await, 2);
    eventually("the first stream is over", || async {
        (of_joe().await == 1).then_some(())
    })
    .await;
    let _sally = sallys.events("/sse/mobile/sallys").await;
    loop {
        let event = page.expect("presence").await;
        let users: Vec<String> = event.data["users"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| text(&entry["user_id"]))
            .collect();
        assert!(!users.contains(&office.joe_id.to_string()), "{}", event.data);
        if users.contains(&sally.to_string()) {
            break;
        }
    }
    office.close().await;
}

#[tokio::test]
async fn presence_of_user_is_the_best_of_its_connections() {
    let office = Office::open().await;
    let (one, two) = (office.phone("one").await, office.phone("two").await);
    let first = one.events("/sse/mobile/one").await;
    let _second = two.events("/sse/mobile/two").await;
    let outln = |phone: &Api, status: &str| {
        let (phone, body) = (phone.clone(), json!({"status": status}));
        async move { phone.put("/api/presence", &body).await.expect(200) }
    };
    let said = outln(&one, "away").await;
    assert_eq!(
        said,
        json!({"user_id": office.joe_id, "status": "online", "own_status": "away"})
    );
    let list = office
        .bob
        .get(&format!("/api/devices?user_id={}", office.joe_id))
        .await
        .expect(200);
    let of = |id: &str| {
        let mut devices = list["devices"].as_array().unwrap().iter();
        devices.find(|device| device["device_id"] == id).unwrap()["presence"].clone()
    };
    assert_eq!((of("one"), of("two")), (json!("away"), json!("online")));
    assert_eq!(outln(&two, "away").await["status"], "away");
    assert_eq!(outln(&one, "online").await["status"], "online");
    drop(first);
    becomes(&office.bob, office.joe_id, "away").await;
    // Who has no stream counts for a while by saying so, the pages of a session as one.
    assert_eq!(outln(&one, "online").await["status"], "online");
    assert_eq!(outln(&office.bob, "away").await["status"], "away");
    let _page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    becomes(&office.bob, office.bob_id, "away").await;
    // Another session of the same user has its own.
    let elsewhere = office.anybody.log_in("acme", "bob").await;
    let _other = elsewhere.events(&format!("/sse/web/{}", office.bob_id)).await;
    becomes(&office.bob, office.bob_id, "online").await;

    let named = format!("/api/presence?user_id={},{}", office.joe_id, Uuid::new_v4());
    let list = office.bob.get(&named).await.expect(200);
    assert_eq!(
        (&list["total"], &list["presence"][0]["user_id"]),
        (&json!(1), &json!(office.joe_id))
    );
    let beyond = format!("/api/presence?limit=50&offset={}", i64::MAX - 1);
    let beyond = office.bob.get(&beyond).await.expect(200);
    assert_eq!(beyond["presence"], json!([]));
    let page = office.bob.get("/api/presence?limit=1&offset=1").await.expect(200);
    assert_eq!(
        (&page["total"], page["presence"].as_array().unwrap().len()),
        (&json!(2), 1)
    );
    for bad in [json!({"status": "offline"}), json!({"status": "busy"}), json!({})] {
        assert_eq!(one.put("/api/presence", &bad).await.status, 400, "{bad}");
    }
    for bad in ["user_id=joe", "limit=0", "limit=1001", "offset=-1"] {
        assert_eq!(
            office.bob.get(&format!("/api/presence?{bad}")).await.status,
            400,
            "{bad}"
        );
    }
    assert_eq!(office.anybody.get("/api/presence").await.status, 401);
    office.close().await;
}

#[tokio::test]
async fn presence_of_other_tenants_is_hidden() {
    let office = Office::open().await;
    office.world.tenant("beta").await;
    office.world.user("beta", "eve", UserType::Web).await;
    office.world.published().await;
    let eve = office.anybody.log_in("beta", "eve").await;
    let eve_id = text(&eve.get("/api/auth/sessions").await.expect(200)["sessions"][0]["id"]);
    assert!(!eve_id.is_empty());
    let phone = office.phone("phone").await;
    let _stream = phone.events("/sse/mobile/phone").await;
    becomes(&office.bob, office.joe_id, "online").await;
    assert_eq!(statuses(&eve).await, BTreeMap::new());
    let named = eve
        .get(&format!("/api/presence?user_id={}", office.joe_id))
        .await
        .expect(200);
    assert_eq!(named["presence"], json!([]));
    // Even a user of the same id in another tenant is another.
    let database = office.world.database().await;
    let row = "SELECT id FROM tenant_beta.users WHERE username = 'eve'";
    let eve_id: Uuid = database
        .query(&posduif::postgres::Statement::composed(row), &[])
        .await
        .unwrap()[0]
        .get(0);
    let mut page = eve.events(&format!("/sse/web/{eve_id}")).await;
    let whole = page.expect("presence").await;
    let users = whole.data["users"].as_array().unwrap();
    assert!(
        users.iter().all(|entry| entry["user_id"] == json!(eve_id)),
        "{}",
        whole.data
    );
    office.close().await;
}

#[tokio::test]
async fn presence_opt_out_stream_receives_no_presence() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    // The new device is an event too.
    office.world.published().await;
    let mut quiet = phone.events("/sse/mobile/phone?presence=false").await;
    becomes(&office.bob, office.joe_id, "online").await;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    receives(&mut page, office.bob_id, "online").await;
    let message = office.send("hi").await;
    let event = quiet.next_of_all().await.unwrap();
    assert_eq!(
        (event.name.as_str(), &event.data["message_id"]),
        ("message", &json!(message))
    );
    let bad = phone.open("/sse/mobile/phone?presence=maybe").await.unwrap_err();
    assert_eq!(bad.status, 400);
    office.close().await;
}

#[tokio::test]
async fn websocket_sends_and_receives_presence() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut socket = phone.socket("/ws").await;
    let whole = socket.expect("presence").await;
    assert_eq!((&whole.data["snapshot"], &whole.id), (&json!(true), &None));
    let said = socket
        .ask(&json!({"type": "presence", "id": 7, "status": "away"}))
        .await;
    assert_eq!((&said["status"], &said["id"]), (&json!("applied"), &json!(7)));
    assert_eq!(said["server"]["status"], "away");
    becomes(&office.bob, office.joe_id, "away").await;
    let said = socket.ask(&json!({"type": "presence", "status": "gone"})).await;
    assert_eq!(
        (&said["status"], &said["code"]),
        (&json!("rejected"), &json!("VALIDATION_ERROR"))
    );
    drop(socket);
    becomes(&office.bob, office.joe_id, "offline").await;
    assert!(phone.try_socket("/ws?presence=maybe").await.is_err());
    office.close().await;
}

#[tokio::test]
async fn presence_of_a_dead_nodes_readers_expires() {
    let office = Office::with(|config| config.live.heartbeat_seconds = 1).await;
    let two = office.world.process("api").await;
    let phone = office.phone("phone").await.at(&two.api());
    let _stream = phone.events("/sse/mobile/phone").await;
    becomes(&office.bob, office.joe_id, "online").await;
    two.kill().await;
    becomes(&office.bob, office.joe_id, "offline").await;
    office.close().await;
}

#[tokio::test]
async fn presence_of_an_open_stream_is_renewed() {
    let office = Office::with(|config| config.live.heartbeat_seconds = 1).await;
    let phone = office.phone("phone").await;
    let _stream = phone.events("/sse/mobile/phone").await;
    becomes(&office.bob, office.joe_id, "online").await;
    // When it is over unless somebody holds it.
    let over = async || {
        let mut redis = office.world.redis().await;
        let streams: Vec<(String, f64)> = redis::cmd("ZRANGE")
            .arg(office.world.keys().presence("acme"))
            .arg(&["0", "-1", "WITHSCORES"])
            .query_async(&mut redis)
            .await
            .unwrap();
        assert_eq!(streams.len(), 1, "{streams:?}");
        streams[0].1
    };
    for _ in 0..3 {
        let before = over().await;
        eventually("the stream is held again", || async {
            (over().await > before).then_some(())
        })
        .await;
    }
    office.close().await;
}

#[tokio::test]
async fn presence_lost_by_redis_is_restored_without_offline_event() {
    let office = Office::with(|config| config.live.heartbeat_seconds = 1).await;
    let phone = office.phone("phone").await;
    let _stream = phone.events("/sse/mobile/phone").await;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    receives(&mut page, office.joe_id, "online").await;
    let mut redis = office.world.redis().await;
    let keys = office.world.keys();
    let mut lost = vec![keys.presence("acme")];
    lost.extend(["users", "changed", "gone", "seen", "unwritten"].map(|part| keys.presence_part("acme", part)));
    let _: u64 = redis::cmd("DEL").arg(&lost).query_async(&mut redis).await.unwrap();
    becomes(&office.bob, office.joe_id, "online").await;
    // The page receives the whole again.
    let whole = loop {
        let event = page.expect("presence").await;
        if event.data["snapshot"] == true {
            break event;
        }
    };
    let users = whole.data["users"].as_array().unwrap();
    assert_eq!(users.len(), 2, "{}", whole.data);
    office.close().await;
}

#[tokio::test]
async fn last_seen_writes_are_throttled_and_not_streamed() {
    const FLAPS: usize = 1000;
    let office = Office::with(|config| {
        config.presence.grace_seconds = 0;
        config.presence.last_seen_interval_seconds = 1;
    })
    .await;
    office.phone("phone").await;
    office.world.published().await;
    let keys = office.world.keys();
    let writes = || async {
        office.world.published().await;
        let entries = office.world.stream(&keys.changes("acme")).await;
        let of_joe = entries.into_iter().filter(|entry| {
            matches!(entry.field("table"), "users" | "devices")
                && entry.field("op") == "update"
                && entry.field("row").contains(&office.joe_id.to_string())
        });
        of_joe.count()
    };
    let before = writes().await;
    let streams = [keys.shared("acme"), keys.inbox("acme", &office.joe_id.to_string())];
    let mut lengths = Vec::new();
    for stream in &streams {
        lengths.push(office.world.stream(stream).await.len());
    }
    let node = Node::start(&office.world).await;
    let started = Instant::now();
    for _ in 0..FLAPS {
        let here = node
            .presence
            .enter("acme", office.joe_id, &Place::Device("phone".into()));
        here.seen().await;
    }
    becomes(&office.bob, office.joe_id, "offline").await;
    let seen = eventually("the last time is in Postgres", || async {
        let joe = office
            .bob
            .get(&format!("/api/users/{}", office.joe_id))
            .await
            .expect(200);
        let sql =
            "SELECT last_seen, (SELECT last_seen_at FROM tenant_acme.devices) FROM tenant_acme.users WHERE id = $1";
        let row = office
            .world
            .psql()
            .await
            .query_one(sql, &[&office.joe_id])
            .await
            .unwrap();
        let in_row: Option<chrono::DateTime<chrono::Utc>> = row.get(0);
        let of_device: Option<chrono::DateTime<chrono::Utc>> = row.get(1);
        let shown: chrono::DateTime<chrono::Utc> = joe["last_seen"].as_str()?.parse().ok()?;
        (in_row == Some(shown) && of_device == in_row).then_some(shown)
    })
    .await;
    assert!((chrono::Utc::now() - seen).num_seconds() < 20);
    let rounds = started.elapsed().as_secs() as usize + 2;
    let after = writes().await;
    // One row of the user and one of the device a round.
    assert!(after - before <= 2 * rounds, "{} rows in {rounds} s", after - before);
    for (stream, length) in streams.iter().zip(lengths) {
        assert_eq!(office.world.stream(stream).await.len(), length, "{stream}");
    }
    node.stop().await;
    office.close().await;
}

#[tokio::test]
async fn presence_of_many_users_connecting_at_once_is_batched() {
    const USERS: usize = 3000;
    let mut world = World::new().await;
    let change = |config: &mut Config| {
        config.presence.tick_ms = 100;
        config.presence.tick_seconds_max = 1;
        config.presence.entries_max = 50;
        config.presence.fanout_bytes_per_second = 1024 * 1024;
    };
    change(&mut world.config);
    let node = Node::start(&world).await;
    let (events, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let readers: Vec<_> = (0..USERS)
        .map(|_| {
            let mut watcher = node.presence.watch("acme");
            let (events, bytes) = (events.clone(), bytes.clone());
            tokio::spawn(async move {
                loop {
                    let event = watcher.next().await;
                    events.fetch_add(1, Ordering::Relaxed);
                    bytes.fetch_add(event.len(), Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut here = Vec::new();
    for user in 0..USERS {
        here.push(node.presence.enter(
            "acme",
            Uuid::from_u128(user as u128),
            &Place::Device(format!("phone-{user}")),
        ));
    }
    eventually("all are here", || async {
        // It waits for Redis half a second and no longer.
        let list = node.presence.present("acme").await.ok()?;
        (list.entries.len() == USERS).then_some(())
    })
    .await;
    eventually("a new reader receives a truncated event", || async {
        let event = node.presence.watch("acme").next().await;
        (&*event == r#"{"type":"presence","truncated":true}"#).then_some(())
    })
    .await;
    drop(here.split_off(1));
    eventually("all but one have gone", || async {
        let list = node.presence.present("acme").await.ok()?;
        (list.entries.len() == 1).then_some(())
    })
    .await;
    // With few users present, events list them again.
    let whole = eventually("the whole is sent", || async {
        let event: Value = serde_json::from_str(&node.presence.watch("acme").next().await).unwrap();
        event["users"].as_array().map(|users| users.len())
    })
    .await;
    assert_eq!(whole, 1);
    let seconds = started.elapsed().as_secs_f64() + 1.0;
    let (events, bytes) = (events.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    // Each reader's first event comes on top of the changes; sent one by one they would be 18 million.
    let sent = (bytes + 256 * events) as f64 - (USERS * (256 + 50 * 100)) as f64;
    assert!(
        sent <= 2.0 * 1024.0 * 1024.0 * seconds,
        "{events} events, {bytes} bytes in {seconds} s"
    );
    node.stop().await;
}

#[tokio::test]
async fn presence_change_between_polls_is_sent_once_with_shared_text() {
    let world = World::new().await;
    let node = Node::start(&world).await;
    let (mut one, mut two) = (node.presence.watch("acme"), node.presence.watch("acme"));
    let (first, second) = (one.next().await, two.next().await);
    assert!(Arc::ptr_eq(&first, &second), "{first} {second}");
    let user = Uuid::from_u128(7);
    let place = Place::Device("phone".into());
    let here = node.presence.enter("acme", user, &place);
    here.seen().await;
    let mut known = Status::Online;
    for status in [Status::Away, Status::Online, Status::Away] {
        known = node.presence.declare("acme", user, &place, status).await.unwrap();
    }
    assert_eq!(known, Status::Away);
    let parse = |event: &str| -> Value { serde_json::from_str(event).unwrap() };
    loop {
        let (first, second) = (one.next().await, two.next().await);
        assert!(Arc::ptr_eq(&first, &second), "{first} {second}");
        let data = parse(&first);
        assert_eq!(data["users"].as_array().unwrap().len(), 1, "{data}");
        if data["users"][0]["status"] == "away" {
            break;
        }
    }
    let silence = tokio::time::timeout(Duration::from_millis(10), one.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    node.stop().await;
}
