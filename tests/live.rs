//! Live events: delivered at once, resumed without loss, ended with a reason.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use posduif::accounts::devices;
use posduif::accounts::users::UserType;
use posduif::contract::notice::LiveEntry;
use posduif::core::position::StreamId;
use posduif::core::tenant::Tenant;
use posduif::engine::Role;
use posduif::live::feed::{Feed, FeedEvent, Opening};
use posduif::live::hub::Hub;
use posduif::live::tail::receive;
use posduif::live::visibility::Visibility;
use posduif::redis::store::Store;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::{Api, Event, Events};
use crate::support::office::{Office, id};
use crate::support::{TIMEOUT, eventually};

const MOBILE: &str = "/sse/mobile/phone";

/// The next `count` events of this name and the messages that they are about.
async fn messages(events: &mut Events, name: &str, count: usize) -> Vec<String> {
    let mut received = Vec::new();
    for _ in 0..count {
        received.push(about(&events.expect(name).await));
    }
    received
}

/// The message that an event is about.
#[track_caller]
fn about(event: &Event) -> String {
    event.data["message_id"].as_str().unwrap().to_owned()
}

async fn upload(phone: &Api, items: &[Value]) -> Value {
    phone
        .post("/api/sync/outgoing", &json!({"messages": items}))
        .await
        .expect(200)
}

#[tokio::test]
async fn event_stream_starts_with_retry_and_hello_and_has_heartbeats() {
    let office = Office::with(|config| {
        config.live.heartbeat_seconds = 1;
        config.live.retry_ms = 400;
    })
    .await;
    let phone = office.phone("phone").await;
    // Else the event of the new device may come first.
    office.world.published().await;
    let web = format!("/sse/web/{}", office.bob_id);
    let check = |api: Api, path: String| async move {
        let mut events = api.open(&format!("{path}?presence=false")).await.unwrap();
        let retry = events.block().await.unwrap();
        let retry: u64 = retry.strip_prefix("retry: ").unwrap().parse().unwrap();
        assert!((400..=800).contains(&retry), "{retry}");
        let hello = events.block().await.unwrap();
        assert!(hello.starts_with("event: hello\ndata: {"), "{hello}");
        assert!(!hello.contains("id: ") && hello.contains("\"cursor\":\""), "{hello}");
        assert_eq!(events.block().await.unwrap(), ": heartbeat");
    };
    tokio::join!(check(phone, MOBILE.to_owned()), check(office.bob.clone(), web));
    office.close().await;
}

#[tokio::test]
async fn event_stream_is_for_its_own_device_or_user_only() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let other = office.phone("other").await;
    let jane = office.world.user("acme", "jane", UserType::Web).await;
    let jane_web = office.anybody.log_in("acme", "jane").await;
    let own_web = format!("/sse/web/{}", office.bob_id);
    for (api, path, status, code) in [
        (&other, MOBILE.to_owned(), 403, "FORBIDDEN"),
        (&phone, "/sse/mobile/other".to_owned(), 403, "FORBIDDEN"),
        (&phone, "/sse/mobile/unknown".to_owned(), 404, "NOT_FOUND"),
        (&office.bob, MOBILE.to_owned(), 401, "UNAUTHORIZED"),
        (&office.bob, format!("/sse/web/{jane}"), 403, "FORBIDDEN"),
        (&jane_web, own_web.clone(), 403, "FORBIDDEN"),
        (&phone, own_web.clone(), 403, "FORBIDDEN"),
        (&office.anybody, MOBILE.to_owned(), 401, "UNAUTHORIZED"),
        (&office.anybody, own_web.clone(), 401, "UNAUTHORIZED"),
    ] {
        let refused = api.open(&path).await.unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code().as_str()),
            (status, code),
            "{path}"
        );
    }
    office.close().await;
}

#[tokio::test]
async fn phone_receives_each_message_of_its_user_and_later_changes() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    // Else the stream could begin before sally does.
    office.world.published().await;
    let mut events = phone.events(MOBILE).await;
    office
        .bob
        .post(
            "/api/messages",
            &json!({"recipient_id": sally, "content": "not for joe"}),
        )
        .await
        .expect(201);
    let message = office.send("hi").await;
    let path = format!("/api/messages/{message}");
    office
        .bob
        .patch(&path, &json!({"content": "hi again"}))
        .await
        .expect(200);
    phone.put(&format!("{path}/read"), &json!({})).await.expect(200);
    office.bob.delete(&path).await;
    let mut ids = HashSet::new();
    for (name, kind) in [
        ("message", "new_message"),
        ("message_updated", "message_updated"),
        ("message_read", "message_read"),
        ("message_deleted", "message_deleted"),
    ] {
        let event = events.next().await.unwrap();
        assert_eq!(
            (event.name.as_str(), &event.data),
            (name, &json!({"type": kind, "message_id": message}))
        );
        assert!(ids.insert(event.id.expect("a durable event has an id")));
    }
    office.close().await;
}

#[tokio::test]
async fn web_user_receives_new_messages_with_matching_unread_count() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let web = format!("/sse/web/{}", office.bob_id);
    let mut page = office.bob.events(&web).await;
    let mut replies = Vec::new();
    for n in 1..=3 {
        let reply = Uuid::new_v4();
        upload(
            &phone,
            &[json!({"id": reply, "recipient_id": office.bob_id, "content": format!("reply {n}")})],
        )
        .await;
        let event = page.expect("new_message").await;
        assert_eq!(
            event.data,
            json!({"type": "new_message", "message_id": reply, "unread_count": n})
        );
        replies.push(reply);
    }
    office
        .bob
        .put(&format!("/api/messages/{}/read", replies[0]), &json!({}))
        .await
        .expect(200);
    let event = page.expect("message_read").await;
    assert_eq!(event.data, json!({"type": "message_read", "message_id": replies[0]}));

    // Bob's own page is notified when the phone receives, changes or reads what he wrote.
    let sent = office.send("for joe").await;
    let (_, here) = {
        office.world.published().await;
        phone.sync(None).await
    };
    phone.post("/api/sync/ack", &json!({"cursor": here})).await.expect(200);
    assert_eq!(about(&page.expect("message_synced").await), sent);
    upload(&phone, &[json!({"id": sent, "op": "read"})]).await;
    assert_eq!(about(&page.expect("message_read").await), sent);
    upload(
        &phone,
        &[json!({"id": replies[1], "op": "edit", "content": "better", "base_version": 1})],
    )
    .await;
    assert_eq!(about(&page.expect("message_updated").await), replies[1].to_string());
    upload(&phone, &[json!({"id": replies[1], "op": "delete", "base_version": 2})]).await;
    assert_eq!(about(&page.expect("message_deleted").await), replies[1].to_string());

    // A replay recomputes the count: one reply is unread now.
    let resumed = office.bob.with("last-event-id", &page.cursor);
    let mut page = resumed.events(&web).await;
    assert_eq!(page.expect("new_message").await.data["unread_count"], 1);
    office.close().await;
}

#[tokio::test]
async fn phone_connecting_with_pending_changes_receives_sync_request() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    office.insert(5).await;
    office.world.published().await;
    let mut events = phone.events(MOBILE).await;
    let event = events.next().await.unwrap();
    assert_eq!(event.name, "sync_required");
    assert_eq!(event.data, json!({"type": "sync_required", "pending_count": 5}));
    let (_, here) = phone.sync(None).await;
    phone.sync(Some(&here)).await;
    let mut events = phone.events(MOBILE).await;
    let message = office.send("the first event after hello").await;
    let event = events.next().await.unwrap();
    assert_eq!((event.name.as_str(), about(&event)), ("message", message));
    office.close().await;
}

#[tokio::test]
async fn event_stream_resumes_from_any_id_in_any_form_exactly_once() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut events = phone.events(MOBILE).await;
    let sent = office.insert(4).await;
    let mut last = Vec::new();
    for message in &sent {
        let event = events.expect("message").await;
        assert_eq!(about(&event), *message);
        last.push(event.id.unwrap());
    }
    drop(events);
    let missed = office.insert(3).await;
    office.world.published().await;
    for (have, id) in last.iter().enumerate() {
        let expected: Vec<&String> = sent[have + 1..].iter().chain(&missed).collect();
        for (api, path) in [
            (phone.with("last-event-id", id), MOBILE.to_owned()),
            (phone.clone(), format!("{MOBILE}?last_event_id={id}")),
            (phone.clone(), format!("{MOBILE}?lastEventId={id}")),
        ] {
            let mut events = api.events(&path).await;
            assert_eq!(events.cursor, *id, "hello says where the replay begins");
            let received = messages(&mut events, "message", expected.len()).await;
            assert_eq!(received.iter().collect::<Vec<_>>(), expected);
        }
    }
    // The header wins: a browser sends it by itself when it reconnects to an address with an older id.
    let mut events = phone
        .with("last-event-id", &last[3])
        .events(&format!("{MOBILE}?lastEventId={}", last[0]))
        .await;
    assert_eq!(messages(&mut events, "message", 3).await, missed);
    let live = office.send("live after the replay").await;
    assert_eq!(messages(&mut events, "message", 1).await, [live]);
    office.close().await;
}

#[tokio::test]
async fn event_published_during_resume_is_delivered_once() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut events = phone.events(MOBILE).await;
    let mut expected = vec![office.send("first").await];
    let mut last = events.expect("message").await.id.unwrap();
    let mut received = vec![expected[0].clone()];
    for round in 0..10 {
        drop(events);
        let writing = async {
            let mut written = Vec::new();
            for n in 0..5 {
                written.push(office.send(&format!("round {round}, {n}")).await);
            }
            written
        };
        let resuming = phone.with("last-event-id", &last);
        let (written, resumed) = tokio::join!(writing, resuming.events(MOBILE));
        events = resumed;
        expected.extend(written);
        for _ in 0..5 {
            let event = events.expect("message").await;
            received.push(about(&event));
            last = event.id.unwrap();
        }
    }
    assert_eq!(received, expected);
    office.close().await;
}

#[tokio::test]
async fn event_received_during_replay_follows_it_once() {
    let office = Office::open().await;
    let store = Store::new(&office.world.config.redis).unwrap();
    let standing = store.standing("acme", office.joe_id).await.unwrap();
    let before = standing.place();
    let sent = office.send("in history").await;
    office.world.published().await;
    let inbox = office.world.keys().inbox("acme", &office.joe_id.to_string());
    let known = office.world.stream(&inbox).await.pop().unwrap().id;
    // Behind all that is published.
    let next = StreamId {
        ms: store.view().await.unwrap().position.ms + 1,
        seq: 1,
    };

    // By the live tail comes what is in history as well, and one more.
    let hub = Hub::new(16);
    let subscription = hub.subscribe("acme", office.joe_id);
    let (mut last, other): (Option<StreamId>, _) = (None, Uuid::new_v4().to_string());
    for (id, row) in [(known, &sent), (next, &other)] {
        let notices = json!([[
            id.to_string(),
            "acme",
            "messages",
            row,
            7,
            0,
            [["new_message", "insert", [office.joe_id]]]
        ]]);
        let entry = LiveEntry {
            previous: last,
            epoch: Some(before.epoch),
            term: before.term,
            heartbeat_ts: None,
            notices: notices.to_string(),
        };
        receive(&hub, id, &entry, &mut last);
    }
    let opening = Opening {
        resume: Some(before),
        replay_max: 100,
        visibility: Visibility::default(),
        is_page: false,
    };
    let mut feed = Feed::open(store, subscription, opening).await.unwrap();
    let mut received = Vec::new();
    while received.len() < 2 {
        while let Some((FeedEvent::Change(notice), _)) = feed.pop() {
            received.push(notice.row_id.clone().unwrap());
        }
        if received.len() < 2 {
            let waiting = std::future::poll_fn(|context| feed.poll_signals(context));
            let signals = tokio::time::timeout(TIMEOUT, waiting).await.expect("the hub's is kept");
            assert!(!feed.take(&signals), "there is no gap");
        }
    }
    assert_eq!(received, [sent, other]);
    assert_eq!(feed.pop(), None);
    office.close().await;
}

#[tokio::test]
async fn event_stream_resumes_after_engine_restart() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut events = phone.events(MOBILE).await;
    office.send("before").await;
    let last = events.expect("message").await.id.unwrap();
    let Office {
        world,
        engine,
        bob_id,
        joe_id,
        ..
    } = office;
    let (_, rest) = tokio::join!(engine.stop(), events.rest());
    let bye = rest.last().unwrap();
    assert_eq!((bye.name.as_str(), &bye.id), ("bye", &None));
    assert!(bye.data["reconnect_ms"].as_u64().unwrap() > 0);

    let psql = world.psql().await;
    let insert =
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'meanwhile') RETURNING id";
    let meanwhile: Uuid = psql.query_one(insert, &[&bob_id, &joe_id]).await.unwrap().get(0);
    let engine = world.engine(Role::All).await;
    world.published().await;
    let mut events = phone
        .at(&engine.api())
        .with("last-event-id", &last)
        .events(MOBILE)
        .await;
    assert_eq!(about(&events.expect("message").await), meanwhile.to_string());
    engine.stop().await;
}

#[tokio::test]
async fn revoked_device_loses_its_stream_and_its_next_request() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let other = office.phone("other").await;
    let mut events = phone.events(MOBILE).await;
    let mut others = other.events("/sse/mobile/other").await;
    // Another node does it: it shares nothing with the engine but Postgres.
    let database = office.world.database().await;
    let revoked = Instant::now();
    assert!(
        devices::revoke(&database, &Tenant::named("acme").unwrap(), "phone")
            .await
            .unwrap()
            .is_some()
    );
    let rest = events.rest().await;
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
    assert_eq!(rest.last().unwrap().name, "revoked");
    for path in ["/api/sync/incoming", "/api/sync/status", "/api/messages"] {
        assert_eq!(phone.get(path).await.status, 401, "{path}");
    }
    // Which tells an EventSource not to come back. A token that never was one is something else.
    assert_eq!(phone.open(MOBILE).await.unwrap_err().status, 204);
    let wrong = phone.with("authorization", "Bearer wrong");
    assert_eq!(wrong.open(MOBILE).await.unwrap_err().status, 401);
    // The user's other device goes on.
    let message = office.send("still there?").await;
    assert_eq!(messages(&mut others, "message", 1).await, [message]);
    other.get("/api/sync/incoming").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn disabled_user_receives_no_more_events() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut received = phone.events(MOBILE).await;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    phone.get("/api/sync/status").await.expect(200);
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username IN ('joe', 'bob')")
        .await;
    received.expect("revoked").await;
    page.expect("revoked").await;
    assert!(received.next().await.is_none() && page.next().await.is_none());
    assert_eq!(phone.get("/api/sync/status").await.status, 401);
    assert_eq!(phone.open(MOBILE).await.unwrap_err().status, 204);
    office.close().await;
}

#[tokio::test]
async fn burst_beyond_reader_queue_is_read_from_the_stream() {
    let office = Office::with(|config| config.live.queue_events_max = 16).await;
    let phone = office.phone("phone").await;
    let mut events = phone.events(MOBILE).await;
    let sent = office.insert(400).await;
    assert_eq!(messages(&mut events, "message", 400).await, sent);
    let live = office.send("behind the burst").await;
    assert_eq!(messages(&mut events, "message", 1).await, [live]);
    office.close().await;
}

#[tokio::test]
async fn replay_beyond_limit_is_truncated() {
    let office = Office::with(|config| config.live.replay_events_max = 5).await;
    let phone = office.phone("phone").await;
    office.world.published().await;
    let events = phone.events(MOBILE).await;
    let start = events.cursor.clone();
    drop(events);
    let five = office.insert(5).await;
    office.world.published().await;
    let mut events = phone.with("last-event-id", &start).events(MOBILE).await;
    assert_eq!(
        messages(&mut events, "message", 5).await,
        five,
        "so many are delivered one by one"
    );
    office.insert(1).await;
    office.world.published().await;
    let mut events = phone.with("last-event-id", &start).events(MOBILE).await;
    let mut summed_up = events.expect("sync_required").await;
    // The first may be about what waits, its id that of the beginning.
    if summed_up.id.as_ref() == Some(&start) {
        summed_up = events.expect("sync_required").await;
    }
    assert_eq!(summed_up.data, json!({"type": "sync_required", "pending_count": 6}));
    let live = office.send("live").await;
    let event = events.next().await.unwrap();
    assert_eq!((event.name.as_str(), about(&event)), ("message", live.clone()));
    // Its id is behind all that it sums up.
    let resumed = phone.with("last-event-id", summed_up.id.as_ref().unwrap());
    assert_eq!(messages(&mut resumed.events(MOBILE).await, "message", 1).await, [live]);
    office.close().await;
}

#[tokio::test]
async fn event_stream_with_trimmed_history_sends_reset_and_continues() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut events = phone.events(MOBILE).await;
    office.send("before").await;
    let last = events.expect("message").await.id.unwrap();
    drop(events);
    let inbox = office.world.keys().inbox("acme", &office.joe_id.to_string());
    let mut redis = office.world.redis().await;
    redis::cmd("DEL")
        .arg(inbox)
        .query_async::<()>(&mut redis)
        .await
        .unwrap();
    let mut events = phone.with("last-event-id", &last).events(MOBILE).await;
    let reset = events.expect("reset").await;
    assert_eq!(reset.data, json!({"type": "reset"}));
    assert!(reset.id.is_some());
    let asked = events.next().await.unwrap();
    assert_eq!((asked.name.as_str(), &asked.id), ("sync_required", &reset.id));
    let (pages, _) = phone.sync(None).await;
    assert_eq!(pages[0]["reset"], true);
    let live = office.send("after").await;
    assert_eq!(messages(&mut events, "message", 1).await, [live]);
    office.close().await;
}

#[tokio::test]
async fn truncated_table_sends_reset_to_every_reader() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    office.send("before").await;
    office.world.published().await;
    let (_, here) = phone.sync(None).await;
    let (_, here) = phone.sync(Some(&here)).await;
    let mut events = phone.events(MOBILE).await;
    office.sql("TRUNCATE tenant_acme.messages").await;
    events.expect("reset").await;
    assert_eq!(events.next().await.unwrap().name, "sync_required");
    let (pages, _) = phone.sync(Some(&here)).await;
    assert_eq!((&pages[0]["reset"], &pages[0]["messages"]), (&json!(true), &json!([])));
    let live = office.send("after").await;
    assert_eq!(messages(&mut events, "message", 1).await, [live]);
    office.close().await;
}

#[tokio::test]
async fn two_api_nodes_on_one_redis_both_deliver() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let one = office.world.engine(Role::Api).await;
    let two = office.world.process("api").await;
    let mut at_one = phone.at(&one.api()).events(MOBILE).await;
    let mut at_two = phone.at(&two.api()).events(MOBILE).await;
    let hello = json!({"recipient_id": office.joe_id, "content": "written at one"});
    let first = id(&office
        .bob
        .at(&one.api())
        .post("/api/messages", &hello)
        .await
        .expect(201));
    let second = office.send("written at the first engine").await;
    let expected = [first, second];
    assert_eq!(messages(&mut at_one, "message", 2).await, expected);
    let event = at_two.expect("message").await;
    assert_eq!(about(&event), expected[0]);
    // A cursor of one node is good at the other.
    let mut moved = phone
        .at(&one.api())
        .with("last-event-id", event.id.as_ref().unwrap())
        .events(MOBILE)
        .await;
    assert_eq!(messages(&mut moved, "message", 1).await, expected[1..]);
    // A node that dies takes its streams with it, and they go on at another.
    two.kill().await;
    assert_eq!(at_two.rest().await.len(), 1);
    office.close().await;
}

#[tokio::test]
async fn disconnected_client_leaves_no_subscription() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let presence = office.world.keys().presence("acme");
    let count = || async {
        // Reading the count removes expired entries.
        office.bob.get("/api/presence").await.expect(200);
        let mut redis = office.world.redis().await;
        redis::cmd("ZCARD")
            .arg(&presence)
            .query_async::<u64>(&mut redis)
            .await
            .unwrap()
    };
    let streams = [
        phone.events(MOBILE).await,
        office.bob.events(&format!("/sse/web/{}", office.bob_id)).await,
        office.bob.events(&format!("/sse/web/{}", office.bob_id)).await,
    ];
    eventually("all three are present", || async { (count().await == 3).then_some(()) }).await;
    drop(streams);
    eventually("nobody is present", || async { (count().await == 0).then_some(()) }).await;
    office.close().await;
}
