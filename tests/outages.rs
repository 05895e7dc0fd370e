//! The API during an outage of Postgres or Redis: requests that need neither succeed, all others fail in time, and
//! everything recovers without a restart.

use std::cell::Cell;

use hyper::Method;
use nix::sys::signal::Signal;
use posduif::config::Config;
use posduif::config::Secret;
use posduif::dev::{PrivatePostgres, PrivateRedis, RedisOptions};
use posduif::engine::Role;
use postgres_types::PgLsn;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::Api;
use crate::support::office::{Office, id, ids};
use crate::support::proxy::{Proxy, host_and_port};
use crate::support::servers::{self, Own};
use crate::support::{World, eventually, send_signal};

/// An office on servers of its own, with joe's phone.
async fn office(change: impl FnOnce(&mut Config)) -> (Office, Api, Own<PrivatePostgres>, Own<PrivateRedis>) {
    let (postgres, redis) = tokio::join!(servers::postgres(), servers::redis());
    let world = World::on(&postgres.server.url(), &redis.server.url()).await;
    let office = Office::within(world, change).await;
    let phone = office.phone("phone").await;
    (office, phone, postgres, redis)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_outage_is_reported_streams_stay_open_and_all_recovers() {
    let (office, phone, mut postgres, _redis) = office(|_| {}).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let first = office.send("before").await;
    assert_eq!(events.expect("message").await.data["message_id"], json!(first));
    let (_, cursor) = phone.sync(None).await;
    postgres.server.kill().await.unwrap();

    let message = json!({"recipient_id": office.joe_id, "content": "meanwhile"});
    let login = json!({"tenant": "acme", "username": "bob", "password": crate::support::PASSWORD});
    let upload = json!({"messages": [{"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "meanwhile"}]});
    for (who, method, path, body) in [
        (&office.bob, Method::GET, "/api/messages".to_owned(), None),
        (&office.bob, Method::GET, "/api/users".to_owned(), None),
        (&office.bob, Method::GET, "/api/devices".to_owned(), None),
        (&office.bob, Method::GET, "/api/conflicts".to_owned(), None),
        (&office.bob, Method::GET, format!("/api/messages/{first}"), None),
        (&office.bob, Method::POST, "/api/messages".to_owned(), Some(&message)),
        (
            &office.bob,
            Method::POST,
            "/api/enrollment/create".to_owned(),
            Some(&json!({})),
        ),
        (
            &office.anybody,
            Method::POST,
            "/api/auth/login".to_owned(),
            Some(&login),
        ),
        (&phone, Method::POST, "/api/sync/outgoing".to_owned(), Some(&upload)),
    ] {
        let what = format!("{method} {path}");
        let (kind, body) = body.map_or((None, String::new()), |body| {
            (Some("application/json"), body.to_string())
        });
        // Sessions of Postgres outlive it by moments.
        let answer = eventually("Postgres is gone", || async {
            let answer = who.send(method.clone(), &path, kind, body.clone()).await;
            (answer.status.as_u16() >= 400).then_some(answer)
        })
        .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (503, "DATABASE_ERROR"),
            "{what}"
        );
        assert_eq!(answer.json()["error"]["retryable"], true, "{what}");
        assert!(answer.headers.contains_key("retry-after"), "{what}");
        assert!(
            !answer.json().to_string().contains("onnection refused"),
            "no inner workings: {}",
            answer.json()
        );
    }

    postgres.server.restart().await.unwrap();
    let second = eventually("the API writes again", || async {
        let answer = office.bob.post("/api/messages", &message).await;
        (answer.status == 201).then(|| id(&answer.json()))
    })
    .await;
    // On the streams that were open all the while.
    assert_eq!(events.expect("message").await.data["message_id"], json!(second));
    let reply = json!({"messages": [{"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "reply"}]});
    phone.post("/api/sync/outgoing", &reply).await.expect(200);
    assert_eq!(
        page.expect("new_message").await.data["message_id"],
        reply["messages"][0]["id"]
    );
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert!(
        batch["messages"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["id"] == json!(second))
    );
    assert_eq!(batch["reset"], false);
    office.ready().await;
    office.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_outage_requests_with_token_succeed_and_nothing_is_lost() {
    let (office, phone, _postgres, mut redis) = office(|_| {}).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let (_, cursor) = phone.sync(None).await;
    // Another login than the office's, whose refresh token nobody has used.
    let login = json!({"tenant": "acme", "username": "bob", "password": crate::support::PASSWORD});
    let session = office.anybody.post("/api/auth/login", &login).await.expect(200);
    // While it syncs its file, Redis keeps for up to 2 s to itself what comes, and the kill would take that.
    eventually("Redis has written the session to its file", || async {
        let info: String = office.world.ask_redis(&["INFO", "persistence"]).await;
        info.contains("aof_buffer_length:0\r\n").then_some(())
    })
    .await;
    redis.server.kill().await.unwrap();

    let message = office.send("while Redis was away").await;
    office
        .bob
        .patch(&format!("/api/messages/{message}"), &json!({"content": "edited"}))
        .await
        .expect(200);
    for path in [
        "/api/messages",
        "/api/messages/unread-count",
        "/api/users",
        "/api/devices",
        "/api/conflicts",
    ] {
        office.bob.get(path).await.expect(200);
    }
    let reply = json!({"messages": [{"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "reply"}]});
    let uploaded = phone.post("/api/sync/outgoing", &reply).await.expect(200);
    assert_eq!(
        (&uploaded["results"][0]["status"], &uploaded["position"]),
        (&json!("applied"), &json!(null))
    );
    for (who, path, body) in [
        (&office.anybody, "/api/auth/login", &login),
        (
            &office.anybody,
            "/api/auth/refresh",
            &json!({"refresh_token": session["refresh_token"]}),
        ),
        (&phone, "/api/sync/ack", &json!({"cursor": cursor})),
    ] {
        let answer = who.post(path, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (503, "REDIS_ERROR"),
            "{path}"
        );
        assert!(answer.headers.contains_key("retry-after"), "{path}");
    }
    let answer = phone.get("/api/sync/incoming").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "REDIS_ERROR"));

    redis.server.restart().await.unwrap();
    let event = events.expect("message").await;
    assert_eq!(event.data["message_id"], json!(message));
    office.world.published().await;
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    let contents: Vec<_> = batch["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["content"])
        .collect();
    assert!(
        contents.contains(&&json!("edited")) && contents.contains(&&json!("reply")),
        "{contents:?}"
    );
    let refresh = json!({"refresh_token": session["refresh_token"]});
    office.anybody.post("/api/auth/refresh", &refresh).await.expect(200);
    office.anybody.post("/api/auth/login", &login).await.expect(200);
    office.ready().await;
    office.close().await;
}

/// A Redis, and another that follows it.
async fn redis_and_replica() -> (Own<PrivateRedis>, Own<PrivateRedis>) {
    redis_and_replica_that_sync("everysec").await
}

/// The same under this `appendfsync`.
async fn redis_and_replica_that_sync(policy: &str) -> (Own<PrivateRedis>, Own<PrivateRedis>) {
    let password = "both";
    let of_pair = |options: RedisOptions| {
        let options = RedisOptions {
            password: Secret::new(password),
            ..options
        };
        options.setting("masterauth", password).setting("appendfsync", policy)
    };
    let first = servers::redis_with(|_, options| of_pair(options)).await;
    let follow = format!("127.0.0.1 {}", first.server.port());
    let second = servers::redis_with(|_, options| of_pair(options).setting("replicaof", &follow)).await;
    (first, second)
}

/// Sends a command to a server.
async fn ask(server: &Own<PrivateRedis>, words: &[&str]) {
    let client = redis::Client::open(server.server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    let _: String = command.arg(&words[1..]).query_async(&mut connection).await.unwrap();
}

async fn replica_follows(world: &World) {
    eventually("the second server follows the first", || async {
        let info: String = world.ask_redis(&["INFO", "replication"]).await;
        info.contains("state=online").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_failover_is_followed_while_the_old_primary_still_responds() {
    let (first, second) = redis_and_replica().await;
    let proxy = Proxy::before(&first.server.url()).await;
    let url = std::env::var("DATABASE_URL").unwrap();
    let world = World::on(&url, &proxy.url(&first.server.url())).await;
    let office = Office::within(world, |_| {}).await;
    let phone = office.phone("phone").await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let before = office.send("before").await;
    assert_eq!(events.expect("message").await.data["message_id"], json!(before));
    let (_, cursor) = phone.sync(None).await;
    let checkpoint = office.world.checkpoint().await;
    replica_follows(&office.world).await;

    // Redis lets the second catch up, and makes it the primary and itself its replica; nobody's connection ends.
    let _: String = office.world.ask_redis(&["FAILOVER"]).await;
    let meanwhile = office.send("meanwhile").await;
    eventually("the first has become a replica", || async {
        let info: String = office.world.ask_redis(&["INFO", "replication"]).await;
        info.contains("role:slave").then_some(())
    })
    .await;
    proxy.lead_to(&second.server.url());

    assert_eq!(events.expect("message").await.data["message_id"], json!(meanwhile));
    let after = office.send("after").await;
    assert_eq!(events.expect("message").await.data["message_id"], json!(after));
    office.world.published().await;
    assert_eq!(
        office.world.checkpoint().await["epoch"],
        checkpoint["epoch"],
        "no new epoch"
    );
    let (pages, cursor) = phone.sync(Some(&cursor)).await;
    assert_eq!(
        (&pages[0]["reset"], ids(&pages[0]["messages"])),
        (&json!(false), vec![meanwhile, after.clone()])
    );
    // What writes to Redis comes to the new primary by itself.
    let body = json!({"cursor": cursor});
    phone.post("/api/sync/ack", &body).await.expect(200);
    office.anybody.log_in("acme", "bob").await;
    phone.put("/api/presence", &json!({"status": "away"})).await.expect(200);
    assert_eq!(office.message(&after).await["status"], "synced");
    office.ready().await;
    office.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_stale_redis_reconnect_to_the_resolved_address() {
    let (first, second) = redis_and_replica().await;
    let (for_one, for_two) = (
        Proxy::before(&first.server.url()).await,
        Proxy::before(&first.server.url()).await,
    );
    let url = std::env::var("DATABASE_URL").unwrap();
    let world = World::on(&url, &for_one.url(&first.server.url())).await;
    let office = Office::within(world, |_| {}).await;
    let phone = office.phone("phone").await;
    replica_follows(&office.world).await;
    let mut config = office.world.config.clone();
    config.redis.url = Secret::new(for_two.url(&first.server.url()));
    let two = office.world.engine_with(Role::Api, config).await;
    let (phone, there) = (phone.at(&two.api()), two.api());
    let ready = async |status: u16| {
        eventually(&format!("/ready answers {status}"), || async {
            (there.get("/ready").await.status == status).then_some(())
        })
        .await;
    };
    ready(200).await;
    let mut events = phone.events("/sse/mobile/phone").await;

    // The second is made the primary, and the first, which hears nothing of it, is left alone with one node's readers.
    for_one.lead_to(&second.server.url());
    let _: String = office.world.ask_redis(&["REPLICAOF", "NO", "ONE"]).await;
    for_one.cut();
    for_two.lead_to(&second.server.url());
    let message = office.send("to the second").await;
    ready(503).await;
    ready(200).await;
    assert_eq!(events.expect("message").await.data["message_id"], json!(message));
    let (pages, _) = phone.sync(None).await;
    assert!(ids(&pages[0]["messages"]).contains(&message), "{pages:?}");
    two.stop().await;
    office.close().await;
}

/// Where publishing stands, by the admin listener.
struct Stands {
    published: PgLsn,
    acknowledged: PgLsn,
    replicas: Value,
}

async fn stands(office: &Office) -> Stands {
    let ready = office.anybody.admin().get("/ready").await.json();
    let replication = &ready["checks"]["replication"];
    let lsn = |name: &str| {
        replication[name]
            .as_str()
            .map_or(0.into(), |text| text.parse().unwrap())
    };
    Stands {
        published: lsn("published"),
        acknowledged: lsn("acknowledged"),
        replicas: replication["replicas"].clone(),
    }
}

/// Waits until Postgres may forget all that is published now.
async fn acknowledged(office: &Office) {
    let published = stands(office).await.published;
    eventually("what is published is acknowledged", || async {
        (stands(office).await.acknowledged >= published).then_some(())
    })
    .await;
}

/// Publishing goes on while the replica does not acknowledge, and nothing more is acknowledged; gives up to where it is.
async fn acknowledged_meanwhile(office: &Office) -> PgLsn {
    let before = eventually("the replica does not acknowledge", || async {
        let now = stands(office).await;
        (now.replicas == 0).then_some(now)
    })
    .await;
    let last = Cell::new((before.published, 0));
    eventually("publishing goes on", || async {
        let (published, times) = last.get();
        let now = stands(office).await.published;
        if now > published {
            last.set((now, times + 1));
        }
        (times >= 10).then_some(())
    })
    .await;
    assert_eq!(stands(office).await.acknowledged, before.acknowledged);
    before.acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledging_waits_for_the_required_replica() {
    // The disk delays nothing, so only the replica can.
    let (first, second) = redis_and_replica_that_sync("always").await;
    let url = std::env::var("DATABASE_URL").unwrap();
    let world = World::on(&url, &first.server.url()).await;
    let office = Office::within(world, |config| config.redis.replicas_min = 1).await;
    replica_follows(&office.world).await;
    acknowledged(&office).await;
    assert_eq!(stands(&office).await.replicas, 1);

    let replica = second.server.pid().unwrap();
    send_signal(replica, Signal::SIGSTOP);
    let before = acknowledged_meanwhile(&office).await;
    office.send("while the replica hangs").await;
    office.world.published().await;

    send_signal(replica, Signal::SIGCONT);
    acknowledged(&office).await;
    let after = stands(&office).await;
    assert!(after.acknowledged > before);
    assert_eq!(after.replicas, 1);
    office.ready().await;
    office.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_to_the_required_replica_loses_nothing_and_starts_no_epoch() {
    let (mut first, second) = redis_and_replica_that_sync("always").await;
    let link = Proxy::before(&first.server.url()).await;
    let proxy = Proxy::before(&first.server.url()).await;
    let url = std::env::var("DATABASE_URL").unwrap();
    let world = World::on(&url, &proxy.url(&first.server.url())).await;
    let office = Office::within(world, |config| config.redis.replicas_min = 1).await;
    let through = link.url(&first.server.url());
    let (host, port) = host_and_port(&through).split_once(':').unwrap();
    ask(&second, &["REPLICAOF", host, port]).await;
    replica_follows(&office.world).await;
    let mut sent = vec![office.send("before").await];
    acknowledged(&office).await;
    let checkpoint = office.world.checkpoint().await;

    // The replica lags, and the primary dies.
    link.stall();
    for number in 0..20 {
        sent.push(office.send(&format!("while the replica lags {number}")).await);
    }
    office.world.published().await;
    acknowledged_meanwhile(&office).await;
    first.server.kill().await.unwrap();
    ask(&second, &["REPLICAOF", "NO", "ONE"]).await;
    proxy.lead_to(&second.server.url());
    proxy.cut();

    sent.push(office.send("to the new primary").await);
    office.world.published().await;
    assert_eq!(
        office.world.checkpoint().await["epoch"],
        checkpoint["epoch"],
        "no new epoch"
    );
    let inbox = office.world.keys().inbox("acme", &office.joe_id.to_string());
    let entries = office.world.stream(&inbox).await;
    let inserted = entries.iter().filter(|entry| entry.field("op") == "insert");
    let inserted: Vec<String> = inserted
        .map(|entry| entry.json("row")["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(inserted, sent);
    office.close().await;
}
