//! The cache of an API process equals Postgres, with any writer, and is never older than what a client has received.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use posduif::accounts::users::{UserType, Users};
use posduif::core::tenant::Tenant;
use posduif::engine::Role;
use posduif::feature::cache::Settings;
use posduif::live::gate::TailGate;
use posduif::live::tail::{ChangeListener as _, Freshness};
use posduif::redis::read_position::ReadPosition;
use posduif::redis::reading::Read;
use posduif::redis::store::Store;
use posduif::telemetry::metrics::{Labels, Metrics};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::http::Api;
use crate::support::office::{Office, ids};
use crate::support::proxy::Proxy;

async fn unread(of: &Api) -> i64 {
    of.get("/api/messages/unread-count").await.expect(200)["unread_count"]
        .as_i64()
        .unwrap()
}

/// How often memory answered.
async fn hits(of: &Api, kind: &str) -> u64 {
    let name = format!("posduif_cache_lookups_total{{cache=\"{kind}\",result=\"hit\"}} ");
    let text = String::from_utf8(of.admin().get("/metrics").await.body.to_vec()).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

/// Asks until memory answers, so that what follows is about what is remembered.
async fn remembered(of: &Api, kind: &str, path: &str) -> Value {
    let before = hits(of, kind).await;
    eventually(&format!("{path} is remembered"), || async {
        let answer = of.get(path).await.expect(200);
        (hits(of, kind).await > before).then_some(answer)
    })
    .await
}

#[tokio::test]
async fn cached_row_changed_by_sql_is_seen() {
    let office = Office::open().await;
    office.ready().await;
    let jane_id = office.world.user("acme", "jane", UserType::Web).await;
    let write = |from: Uuid, to: Uuid| {
        format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ('{from}', '{to}', 'hello')"
        )
    };
    // Counts: a message comes, another is read, deleted, given to somebody else.
    let count = "/api/messages/unread-count";
    let expect = async |wanted: i64| {
        eventually(&format!("{wanted} are unread"), || async {
            (unread(&office.bob).await == wanted).then_some(())
        })
        .await;
        assert_eq!(
            remembered(&office.bob, "unread_count", count).await["unread_count"],
            wanted
        );
    };
    expect(0).await;
    for number in 1..=4 {
        office.sql(&write(office.joe_id, office.bob_id)).await;
        expect(number).await;
    }
    let one = "WHERE id = (SELECT id FROM tenant_acme.messages WHERE read_at IS NULL AND deleted_at IS NULL \
               ORDER BY created_at LIMIT 1)";
    office
        .sql(&format!("UPDATE tenant_acme.messages SET read_at = now() {one}"))
        .await;
    expect(3).await;
    office
        .sql(&format!("UPDATE tenant_acme.messages SET deleted_at = now() {one}"))
        .await;
    expect(2).await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.messages SET recipient_id = '{jane_id}' {one}"
        ))
        .await;
    expect(1).await;
    office.sql("TRUNCATE tenant_acme.messages").await;
    expect(0).await;

    // A message: its text, its status, its end.
    let message = office.send("first").await;
    let path = format!("/api/messages/{message}");
    let shows = async |field: &str, wanted: &str| {
        eventually(&format!("{field} is {wanted}"), || async {
            (office.message(&message).await[field] == wanted).then_some(())
        })
        .await;
        assert_eq!(remembered(&office.bob, "message", &path).await[field], wanted);
    };
    shows("content", "first").await;
    for (set, field, wanted) in [
        ("content = 'second'", "content", "second"),
        ("status = 'synced', synced_at = now()", "status", "synced"),
        ("read_at = now(), status = 'read'", "status", "read"),
    ] {
        office
            .sql(&format!("UPDATE tenant_acme.messages SET {set} WHERE id = '{message}'"))
            .await;
        shows(field, wanted).await;
    }
    office
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{message}'"))
        .await;
    eventually("the message is gone", || async {
        (office.bob.get(&path).await.status == 404).then_some(())
    })
    .await;

    // A user: name, device, when it was seen, its end.
    let path = format!("/api/users/{}", office.joe_id);
    let shows = async |field: &str, wanted: Value| {
        eventually(&format!("{field} is {wanted}"), || async {
            (office.bob.get(&path).await.expect(200)[field] == wanted).then_some(())
        })
        .await;
        assert_eq!(remembered(&office.bob, "user", &path).await[field], wanted);
    };
    shows("device_id", Value::Null).await;
    office.phone("phone").await;
    shows("device_id", json!("phone")).await;
    for (statement, field, wanted) in [
        (
            "users SET username = 'joseph' WHERE username = 'joe'",
            "username",
            json!("joseph"),
        ),
        (
            "users SET last_seen = '2024-01-15T10:30:00Z' WHERE username = 'joseph'",
            "last_seen",
            json!("2024-01-15T10:30:00Z"),
        ),
        (
            "devices SET revoked_at = now() WHERE device_id = 'phone'",
            "device_id",
            Value::Null,
        ),
    ] {
        office.sql(&format!("UPDATE tenant_acme.{statement}")).await;
        shows(field, wanted).await;
    }
    office
        .sql("UPDATE tenant_acme.users SET deleted_at = now() WHERE username = 'joseph'")
        .await;
    eventually("the user is gone", || async {
        (office.bob.get(&path).await.status == 404).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn message_count_equals_postgres_for_any_writer() {
    let office = Office::open().await;
    office.ready().await;
    let phone = office.phone("phone").await;
    let total = async |of: &Api, query: &str| {
        let answer = of.get(&format!("/api/messages?limit=2{query}")).await.expect(200);
        answer["total"].as_i64().unwrap()
    };
    let remembers = async |wanted: i64| {
        eventually(&format!("bob has {wanted}"), || async {
            (total(&office.bob, "").await == wanted).then_some(())
        })
        .await;
        let page = remembered(&office.bob, "messages_total", "/api/messages?limit=2").await;
        assert_eq!(page["total"], wanted);
        assert_eq!(page["messages"].as_array().unwrap().len() as i64, wanted.min(2));
        // Beyond the end it is as long.
        let page = office.bob.get("/api/messages?offset=1000").await.expect(200);
        assert_eq!((&page["total"], &page["messages"]), (&json!(wanted), &json!([])));
    };
    remembers(0).await;
    // Past the API.
    let ids = office.insert(5).await;
    remembers(5).await;
    let write = format!(
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ('{}', '{}', 'a reply')",
        office.joe_id, office.bob_id
    );
    office.sql(&write).await;
    remembers(6).await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.messages SET deleted_at = now() WHERE id = '{}'",
            ids[0]
        ))
        .await;
    remembers(5).await;

    // What somebody writes here, they and the other side see at once, remembered or not.
    assert_eq!(total(&phone, "").await, 5);
    let sent = office.send("one more").await;
    assert_eq!((total(&office.bob, "").await, total(&phone, "").await), (6, 6));
    let item = json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "by the phone"});
    phone.upload(&[item]).await;
    assert_eq!(total(&phone, "").await, 7);
    remembers(7).await;
    assert_eq!(office.bob.delete(&format!("/api/messages/{sent}")).await.status, 204);
    assert_eq!((total(&office.bob, "").await, total(&phone, "").await), (6, 6));

    // Part of the list is counted each time.
    let (to_joe, to_bob) = (office.joe_id, office.bob_id);
    assert_eq!(total(&office.bob, &format!("&recipient_id={to_joe}")).await, 4);
    assert_eq!(total(&office.bob, &format!("&recipient_id={to_bob}")).await, 2);
    office
        .sql("UPDATE tenant_acme.messages SET status = 'read', read_at = now() WHERE content = 'a reply'")
        .await;
    assert_eq!(total(&office.bob, "&status=read").await, 1);
    office.sql("TRUNCATE tenant_acme.messages").await;
    remembers(0).await;
    office.close().await;
}

#[tokio::test]
async fn user_count_equals_postgres_for_any_writer() {
    let office = Office::open().await;
    office.ready().await;
    let remembers = async |wanted: i64| {
        eventually(&format!("there are {wanted}"), || async {
            let page = office.bob.get("/api/users?limit=1").await.expect(200);
            (page["total"] == wanted).then_some(())
        })
        .await;
        let page = remembered(&office.bob, "users_total", "/api/users?limit=1").await;
        assert_eq!(
            (page["total"].as_i64().unwrap(), ids(&page["users"]).len()),
            (wanted, 1)
        );
    };
    remembers(1).await;
    // That somebody was seen is no reason to count, a new one is.
    office.sql("UPDATE tenant_acme.users SET last_seen = now()").await;
    remembers(1).await;
    office
        .sql("INSERT INTO tenant_acme.users (username, user_type) SELECT 'm' || n, 'mobile' FROM generate_series(1, 3) n")
        .await;
    remembers(4).await;
    office
        .sql("UPDATE tenant_acme.users SET deleted_at = now() WHERE username = 'm1'")
        .await;
    remembers(3).await;
    // Here it shows at once.
    let (_, new) = office.bob.enroll("a-new-users", None).await;
    let page = office.bob.get("/api/users").await.expect(200);
    assert_eq!(page["total"], 4);
    assert!(ids(&page["users"]).contains(&new["user_id"].as_str().unwrap().to_owned()));
    office
        .sql(&format!(
            "UPDATE tenant_acme.users SET user_type = 'web' WHERE id = '{}'",
            new["user_id"].as_str().unwrap()
        ))
        .await;
    remembers(3).await;
    let filtered = office.bob.get("/api/users?filter=M2").await.expect(200);
    assert_eq!(filtered["total"], 1);
    office.close().await;
}

#[tokio::test]
async fn client_reads_its_own_writes_and_received_events() {
    let office = Office::open().await;
    office.ready().await;
    let phone = office.phone("phone").await;
    let (_, mut cursor) = phone.sync(None).await;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    // While history begins nothing is kept; from here on memory is in use.
    remembered(&office.bob, "unread_count", "/api/messages/unread-count").await;
    let before = hits(&office.bob, "unread_count").await;
    for number in 1..=20 {
        // Written by the phone, sent to the page with its count; what the page reads after that is no older.
        let message = Uuid::new_v4().to_string();
        let item = json!({"id": message, "recipient_id": office.bob_id, "content": format!("{number}")});
        phone.upload(&[item]).await;
        let event = page.expect("new_message").await;
        assert_eq!(event.data["unread_count"], number);
        assert_eq!(unread(&office.bob).await, number);
        assert_eq!(unread(&office.bob).await, number);

        // Edited, and read here at once.
        let sent = office.send("first").await;
        let path = format!("/api/messages/{sent}");
        assert_eq!(office.bob.get(&path).await.expect(200)["content"], "first");
        office.bob.patch(&path, &json!({"content": "second"})).await.expect(200);
        assert_eq!(office.bob.get(&path).await.expect(200)["content"], "second");
        // Synced by the phone, whose acknowledgement was answered.
        office.world.published().await;
        let (pages, next) = phone.sync(Some(&cursor)).await;
        assert!(
            pages.iter().any(|page| ids(&page["messages"]).contains(&sent)),
            "{pages:?}"
        );
        cursor = next;
        phone
            .post("/api/sync/ack", &json!({"cursor": cursor}))
            .await
            .expect(200);
        assert_eq!(phone.get(&path).await.expect(200)["status"], "synced");
        let read = phone.put(&format!("{path}/read"), &json!({})).await.expect(200);
        assert_eq!(read["status"], "read");
        assert_eq!(phone.get(&path).await.expect(200)["status"], "read");
        assert_eq!(unread(&phone).await, 0);
        assert_eq!(office.bob.delete(&path).await.status, 204);
        assert_eq!(office.bob.get(&path).await.status, 404);
    }
    assert!(hits(&office.bob, "unread_count").await > before);
    office.close().await;
}

#[tokio::test]
async fn cache_equals_postgres_after_concurrent_changes() {
    let office = Office::open().await;
    office.ready().await;
    let second = office.world.engine(Role::Api).await;
    office.phone("phone").await;
    let ids = office.insert(40).await;
    let writers = (0..4_usize).map(|writer| {
        let (ids, joe, bob) = (ids.clone(), office.joe_id, office.bob_id);
        let world = &office.world;
        async move {
            let psql = world.psql().await;
            for step in 0..50_usize {
                let message = &ids[(writer * 13 + step * 7) % ids.len()];
                let statement = match (writer + step) % 5 {
                    0 => format!("UPDATE tenant_acme.messages SET content = 'by {writer} {step}' WHERE id = '{message}'"),
                    1 => format!("UPDATE tenant_acme.messages SET read_at = now(), status = 'read' WHERE id = '{message}'"),
                    2 => format!("UPDATE tenant_acme.messages SET read_at = NULL WHERE id = '{message}'"),
                    3 => format!("UPDATE tenant_acme.messages SET status = 'synced' WHERE id = '{message}'"),
                    _ => format!(
                        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ('{joe}', '{bob}', 'new')"
                    ),
                };
                psql.batch_execute(&statement).await.unwrap();
            }
        }
    });
    let apis = [office.bob.clone(), office.bob.at(&second.api())];
    // While history begins nothing is kept; from here on memory is in use.
    for api in &apis {
        remembered(api, "message", &format!("/api/messages/{}", ids[0])).await;
    }
    let readers = apis.clone().map(|api| {
        let ids = ids.clone();
        async move {
            for round in 0..8 {
                for message in ids.iter().skip(round % 3).step_by(3) {
                    api.get(&format!("/api/messages/{message}")).await.expect(200);
                    unread(&api).await;
                }
            }
        }
    });
    tokio::join!(
        futures_util::future::join_all(writers),
        futures_util::future::join_all(readers)
    );
    office.world.published().await;
    let psql = office.world.psql().await;
    let query = "SELECT count(*) FROM tenant_acme.messages WHERE recipient_id = $1 AND read_at IS NULL";
    let count: i64 = psql.query_one(query, &[&office.bob_id]).await.unwrap().get(0);
    for api in &apis {
        eventually("the count is right", || async {
            (unread(api).await == count).then_some(())
        })
        .await;
        for message in &ids {
            let query = "SELECT content, status, version FROM tenant_acme.messages WHERE id = $1";
            let row = psql
                .query_one(query, &[&Uuid::parse_str(message).unwrap()])
                .await
                .unwrap();
            let wanted = (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, i64>(2));
            eventually(&format!("{message} is {wanted:?}"), || async {
                let shown = api.get(&format!("/api/messages/{message}")).await.expect(200);
                let same = shown["content"] == wanted.0 && shown["status"] == wanted.1 && shown["version"] == wanted.2;
                same.then_some(())
            })
            .await;
        }
    }
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn cache_is_bypassed_without_live_tail_and_correct_afterwards() {
    let office = Office::open().await;
    office.ready().await;
    let proxy = Proxy::before(office.world.config.redis.url.expose()).await;
    let mut config = office.world.config.clone();
    config.redis.url = posduif::config::Secret::new(proxy.url(config.redis.url.expose()));
    let second = office.world.engine_with(Role::Api, config).await;
    let there = office.bob.at(&second.api());
    assert_eq!(
        remembered(&there, "unread_count", "/api/messages/unread-count").await["unread_count"],
        0
    );

    proxy.refuse();
    proxy.cut();
    let write = format!(
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ('{}', '{}', 'hello')",
        office.joe_id, office.bob_id
    );
    // The end of a connection shows at once, and from then on every answer is Postgres'.
    eventually("memory is not asked any more", || async {
        let before = hits(&there, "unread_count").await;
        unread(&there).await;
        (hits(&there, "unread_count").await == before).then_some(())
    })
    .await;
    for number in 1..=3 {
        office.sql(&write).await;
        assert_eq!(unread(&there).await, number);
    }
    proxy.resume();
    office.sql(&write).await;
    eventually("the tail has caught up", || async {
        (unread(&there).await == 4).then_some(())
    })
    .await;
    assert_eq!(
        remembered(&there, "unread_count", "/api/messages/unread-count").await["unread_count"],
        4
    );
    office.sql(&write).await;
    eventually("the tail goes on", || async {
        (unread(&there).await == 5).then_some(())
    })
    .await;
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn cache_is_unused_while_a_reader_is_ahead_of_the_live_tail() {
    let office = Office::open().await;
    let config = office.world.config.clone();
    // A node of the test's own, whose tail stands where the test says.
    let store = Store::new(&config.redis).unwrap();
    let view = store.view().await.unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut tail = Freshness {
        heartbeat_ts: now.as_micros() as i64,
        received_at: Some(Instant::now()),
        epoch: Some(view.epoch),
        position: view.position,
        is_connected: true,
    };
    let (followed, freshness) = watch::channel(tail);
    let database = office.world.database().await;
    let gate = TailGate::new(freshness, Duration::from_secs(600), store.clone());
    let is_open = gate.clone();
    let settings = Settings::new(
        &config.cache,
        Arc::new(move |_: &str| is_open.is_open()),
        Arc::new(Metrics::new(false, &Labels::default())),
    );
    let users = Users::new(database, &settings);
    let tenant = Tenant::named("acme").unwrap();
    let name = async || users.get(&tenant, office.joe_id).await.unwrap().username;
    let rename = async |name: &str| {
        let statement = format!(
            "UPDATE tenant_acme.users SET username = '{name}' WHERE id = '{}'",
            office.joe_id
        );
        office.sql(&statement).await;
        office.world.published().await;
    };
    assert_eq!(name().await, "joe");
    // The tail has not delivered it, and no client here has received it.
    rename("joseph").await;
    assert_eq!(name().await, "joe", "it is remembered");

    // Somebody is handed the change out of the stream.
    let standing = store.standing("acme", office.joe_id).await.unwrap();
    let place = ReadPosition {
        epoch: view.epoch,
        generation: standing.generation,
        term: view.term,
        position: view.position,
        resets_covered: None,
        is_incomplete: false,
    };
    let read = store.read("acme", office.joe_id, place, 1000).await.unwrap();
    let Read::Slice(slice) = read else { panic!("{read:?}") };
    let notified = slice.entries.last().unwrap().id;
    assert!(notified > tail.position);
    assert_eq!(name().await, "joseph");
    rename("jo").await;
    assert_eq!(name().await, "jo", "nothing was learned meanwhile");

    // The tail tells of both, and gets there.
    users.lost();
    gate.lost();
    tail.position = store.view().await.unwrap().position;
    followed.send_replace(tail);
    assert_eq!(name().await, "jo");
    office.close().await;
}

#[tokio::test]
async fn cache_entry_without_stream_events_expires() {
    let office = Office::with(|config| config.cache.ttl_seconds = 2).await;
    office.ready().await;
    let path = format!("/api/users/{}", office.joe_id);
    remembered(&office.bob, "user", &path).await;
    // A change that is no news to anybody, so that no notice is sent of it, stands for what the stream could miss.
    office
        .sql("UPDATE tenant_acme.users SET created_at = '2024-01-15T10:30:00Z' WHERE username = 'joe'")
        .await;
    eventually("the change is seen", || async {
        let user = office.bob.get(&path).await.expect(200);
        (user["created_at"] == "2024-01-15T10:30:00Z").then_some(())
    })
    .await;
    office.close().await;
}
