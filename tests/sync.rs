//! Incoming sync: a snapshot, then the stream, each row until it is acknowledged and not after.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read as _;

use flate2::read::GzDecoder;
use posduif::accounts::users::UserType;
use posduif::config::rule::Rule;
use posduif::core::position::StreamId;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::eventually;
use crate::support::http::Api;
use crate::support::office::{Office, id, ids};

/// One batch behind a cursor, or the first.
async fn batch(phone: &Api, cursor: Option<&str>, query: &str) -> Value {
    let cursor = cursor.map_or(String::new(), |cursor| format!("cursor={cursor}&"));
    phone
        .get(&format!("/api/sync/incoming?{cursor}{query}"))
        .await
        .expect(200)
}

#[track_caller]
fn cursor(batch: &Value) -> String {
    batch["cursor"].as_str().unwrap().to_owned()
}

/// Whether a batch brings no row.
fn is_empty(batch: &Value) -> bool {
    ["messages", "users", "changes"]
        .iter()
        .all(|list| batch[list] == json!([]))
}

/// The cursor of a phone that has all there is.
async fn caught_up(office: &Office, phone: &Api) -> String {
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    phone.sync(Some(&cursor)).await.1
}

#[tokio::test]
async fn first_sync_is_a_snapshot_followed_by_the_stream() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let before = office.insert(3).await;
    let mine = Uuid::new_v4();
    let upload = json!({"messages": [{"id": mine, "recipient_id": office.bob_id, "content": "from the phone"}]});
    phone.post("/api/sync/outgoing", &upload).await.expect(200);
    let deleted = office.send("taken back before the first sync").await;
    office.bob.delete(&format!("/api/messages/{deleted}")).await;
    office.world.published().await;

    let first = batch(&phone, None, "").await;
    let mut fields: Vec<&String> = first.as_object().unwrap().keys().collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "changes",
            "compressed",
            "cursor",
            "has_more",
            "messages",
            "position",
            "reset",
            "sync_timestamp",
            "users"
        ]
    );
    assert_eq!((&first["reset"], &first["compressed"]), (&json!(true), &json!(false)));
    let mut expected = before.clone();
    expected.push(mine.to_string());
    assert_eq!(ids(&first["messages"]), expected, "received oldest first, then sent");
    assert_eq!(first["messages"][0], office.message(&before[0]).await);
    let names: HashSet<&str> = first["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["username"].as_str().unwrap())
        .collect();
    assert_eq!(names, HashSet::from(["bob", "joe"]));

    // The acknowledgement of the snapshot.
    let (pages, here) = phone.sync(Some(&cursor(&first))).await;
    assert!(pages.iter().all(|page| page["reset"] == false));
    let after = office.send("after the snapshot").await;
    office.world.published().await;
    let next = batch(&phone, Some(&here), "").await;
    assert_eq!((ids(&next["messages"]), &next["reset"]), (vec![after], &json!(false)));
    assert_eq!(next["has_more"], false);
    assert!(is_empty(&batch(&phone, Some(&cursor(&next)), "").await));
    office.close().await;
}

#[tokio::test]
async fn snapshot_and_stream_are_complete_at_any_page_size() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut expected = office.insert(7).await;
    office.world.published().await;
    let mut here = String::new();
    for limit in [1, 2, 3, 100] {
        let mut messages = Vec::new();
        let mut users = Vec::new();
        let mut resets = 0;
        let mut next = None;
        loop {
            let page = batch(&phone, next.as_deref(), &format!("limit={limit}")).await;
            let rows = page["messages"].as_array().unwrap().len() + page["users"].as_array().unwrap().len();
            assert!(rows <= limit, "{rows} rows in a page of {limit}");
            messages.extend(ids(&page["messages"]));
            users.extend(ids(&page["users"]));
            resets += u32::from(page["reset"] == true);
            next = Some(cursor(&page));
            if page["has_more"] == false {
                break;
            }
        }
        assert_eq!(
            (messages.clone(), users.len(), resets),
            (expected.clone(), 2, 1),
            "limit {limit}"
        );
        here = next.unwrap();
    }

    let mut sent = Vec::new();
    for n in 0..3 {
        sent.push(office.send(&format!("alone {n}")).await);
    }
    sent.extend(office.insert(4).await);
    expected.extend(sent.iter().cloned());
    office.world.published().await;
    for limit in [1, 2, 3, 100] {
        let mut messages = Vec::new();
        let mut next = here.clone();
        loop {
            let page = batch(&phone, Some(&next), &format!("limit={limit}")).await;
            assert!(page["messages"].as_array().unwrap().len() <= limit);
            messages.extend(ids(&page["messages"]));
            next = cursor(&page);
            if page["has_more"] == false {
                break;
            }
        }
        assert_eq!(messages, sent, "limit {limit}");
    }
    office.close().await;
}

#[tokio::test]
async fn batch_has_the_newest_version_of_each_row_once() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let edited = office.send("one").await;
    let other = office.send("other").await;
    for text in ["two", "three"] {
        office
            .bob
            .patch(&format!("/api/messages/{edited}"), &json!({"content": text}))
            .await
            .expect(200);
    }
    office.world.published().await;
    let next = batch(&phone, Some(&here), "").await;
    assert_eq!(ids(&next["messages"]), [other, edited.clone()]);
    assert_eq!(
        (&next["messages"][1]["content"], &next["messages"][1]["version"]),
        (&json!("three"), &json!(3))
    );
    assert_eq!(next["messages"][1], office.message(&edited).await);
    office.close().await;
}

#[tokio::test]
async fn row_deleted_or_moved_away_arrives_as_delete() {
    let office = Office::open().await;
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    let phone = office.phone("phone").await;
    let sallys = office.bob.enroll("sallys", Some(&sally.to_string())).await.0;
    let [taken_back, deleted, moved] = [
        office.send("secret 1").await,
        office.send("secret 2").await,
        office.send("moved").await,
    ];
    let here = caught_up(&office, &phone).await;
    let sallys_here = caught_up(&office, &sallys).await;

    office.bob.delete(&format!("/api/messages/{taken_back}")).await;
    office
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{deleted}'"))
        .await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.messages SET recipient_id = '{sally}' WHERE id = '{moved}'"
        ))
        .await;
    office.world.published().await;

    let next = batch(&phone, Some(&here), "").await;
    assert_eq!(next["messages"], json!([]));
    let gone = |id: &str| json!({"table": "messages", "op": "delete", "id": id, "row": null});
    assert_eq!(
        next["changes"],
        json!([gone(&taken_back), gone(&deleted), gone(&moved)])
    );
    assert!(!next.to_string().contains("secret"), "{next}");
    let theirs = batch(&sallys, Some(&sallys_here), "").await;
    assert_eq!(
        (ids(&theirs["messages"]), &theirs["changes"]),
        (vec![moved], &json!([]))
    );
    office.close().await;
}

#[tokio::test]
async fn row_deleted_and_recreated_arrives_as_delete_then_insert() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let id = office.send("the first life").await;
    let edit = json!({"content": "its second version"});
    office
        .bob
        .patch(&format!("/api/messages/{id}"), &edit)
        .await
        .expect(200);
    let here = caught_up(&office, &phone).await;
    // Its versions restart at 1, so a phone that holds the higher one must receive the delete.
    let (bob, joe) = (office.bob_id, office.joe_id);
    office
        .sql(&format!(
            "BEGIN; DELETE FROM tenant_acme.messages WHERE id = '{id}';
             INSERT INTO tenant_acme.messages (id, sender_id, recipient_id, content)
                 VALUES ('{id}', '{bob}', '{joe}', 'the second life'); COMMIT"
        ))
        .await;
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&here)).await;
    let contents = |page: &Value| (ids(&page["changes"]), ids(&page["messages"]));
    assert_eq!(contents(&pages[0]), (vec![id.clone()], vec![]));
    assert_eq!(contents(&pages[1]), (vec![], vec![id]));
    assert_eq!(pages[1]["messages"][0]["version"], 1);
    office.close().await;
}

#[tokio::test]
async fn user_changes_are_delivered_to_every_user() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    let here = caught_up(&office, &phone).await;
    let anna = office.world.user("acme", "anna", UserType::Web).await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.users SET username = 'hannah' WHERE id = '{anna}'"
        ))
        .await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.users SET deleted_at = now() WHERE id = '{sally}'"
        ))
        .await;
    office.world.published().await;
    let next = batch(&phone, Some(&here), "").await;
    assert_eq!(ids(&next["users"]), [anna.to_string()]);
    let mut fields: Vec<&String> = next["users"][0].as_object().unwrap().keys().collect();
    fields.sort_unstable();
    assert_eq!(fields, ["created_at", "id", "updated_at", "user_type", "username"]);
    assert_eq!(next["users"][0]["username"], "hannah");
    assert_eq!(
        next["changes"],
        json!([{"table": "users", "op": "delete", "id": sally, "row": null}])
    );
    office.close().await;
}

#[tokio::test]
async fn own_table_rows_arrive_as_changes_and_as_events() {
    let rule: Rule = serde_json::from_value(json!({"table": "notes", "to": ["owner"], "event": "note"})).unwrap();
    let office = Office::with(|config| config.routes = vec![rule]).await;
    office.sql("CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, owner uuid, body text); ALTER TABLE tenant_acme.notes REPLICA IDENTITY FULL").await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (1, '{}', 'buy milk'), (2, NULL, 'nobody''s')",
            office.joe_id
        ))
        .await;
    let event = events.expect("note").await;
    assert_eq!(
        event.data,
        json!({"type": "note", "table": "notes", "op": "insert", "id": "1"})
    );
    let next = batch(&phone, Some(&here), "").await;
    let row = json!({"id": 1, "owner": office.joe_id, "body": "buy milk"});
    assert_eq!(
        next["changes"],
        json!([{"table": "notes", "op": "insert", "id": "1", "row": row}])
    );
    office.close().await;
}

#[tokio::test]
async fn sync_with_cursor_acknowledges_and_notifies_the_sender() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut bobs_page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let in_snapshot = office.send("in the snapshot").await;
    office.world.published().await;
    let (_, here) = phone.sync(None).await;
    let (_, here) = phone.sync(Some(&here)).await;
    let event = bobs_page.expect("message_synced").await;
    assert_eq!(event.data, json!({"type": "message_synced", "message_id": in_snapshot}));
    assert!(event.id.is_some());

    let in_stream = office.send("in the stream").await;
    office.world.published().await;
    let next = batch(&phone, Some(&here), "").await;
    assert_eq!(next["messages"][0]["status"], "pending_sync");
    assert_eq!(
        office.message(&in_stream).await["status"],
        "pending_sync",
        "given is not yet got"
    );
    let acknowledged = phone
        .post("/api/sync/ack", &json!({"cursor": next["cursor"]}))
        .await
        .expect(200);
    assert_eq!(acknowledged["acknowledged"], true);
    let message = office.message(&in_stream).await;
    assert_eq!((&message["status"], &message["version"]), (&json!("synced"), &json!(1)));
    assert!(message["synced_at"].is_string());
    assert_eq!(bobs_page.expect("message_synced").await.data["message_id"], in_stream);

    // The server's bookkeeping is no news for the recipient.
    office.world.published().await;
    assert!(is_empty(&batch(&phone, Some(&cursor(&next)), "").await));
    office.close().await;
}

#[tokio::test]
async fn lost_batch_is_sent_again_and_an_acknowledged_row_is_not() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut here = caught_up(&office, &phone).await;
    let mut seen: HashMap<(String, i64), u32> = HashMap::new();
    let mut written = Vec::new();
    for round in 0..6 {
        written.push(office.send(&format!("round {round}")).await);
        if round % 2 == 1 {
            office
                .bob
                .patch(
                    &format!("/api/messages/{}", written[round - 1]),
                    &json!({"content": "changed"}),
                )
                .await
                .expect(200);
        }
        office.world.published().await;
        let lost = batch(&phone, Some(&here), "").await;
        let again = batch(&phone, Some(&here), "").await;
        assert_eq!(
            (&lost["messages"], &lost["cursor"]),
            (&again["messages"], &again["cursor"])
        );
        for message in again["messages"].as_array().unwrap() {
            *seen
                .entry((id(message), message["version"].as_i64().unwrap()))
                .or_default() += 1;
        }
        here = cursor(&again);
    }
    assert!(is_empty(&batch(&phone, Some(&here), "").await));
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    assert!(written.iter().all(|id| seen.contains_key(&(id.clone(), 1))));
    assert_eq!(seen.keys().filter(|(_, version)| *version == 2).count(), 3);
    office.close().await;
}

#[tokio::test]
async fn snapshot_with_lost_response_is_repeated() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let written = office.insert(5).await;
    office.world.published().await;
    let first = batch(&phone, None, "limit=3").await;
    let again = batch(&phone, None, "limit=3").await;
    assert_eq!(
        (&first["messages"], &again["reset"]),
        (&again["messages"], &json!(true))
    );
    assert_eq!(office.message(&written[0]).await["status"], "pending_sync");
    let page = batch(&phone, Some(&cursor(&again)), "limit=3").await;
    let repeat = batch(&phone, Some(&cursor(&again)), "limit=3").await;
    assert_eq!(page["messages"], repeat["messages"]);
    assert_eq!(ids(&page["messages"])[..2], written[3..]);
    assert_eq!(office.message(&written[0]).await["status"], "synced");
    assert_eq!(office.message(&written[4]).await["status"], "pending_sync");
    office.close().await;
}

#[tokio::test]
async fn sync_timestamp_of_a_batch_acknowledges_and_other_times_only_re_read() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let [first, second] = [office.send("one").await, office.send("two").await];
    office.world.published().await;
    let since = |time: &str| format!("since={}", time.replace('+', "%2B"));

    let snapshot = batch(&phone, None, "").await;
    let given = snapshot["sync_timestamp"].as_str().unwrap().to_owned();
    for other in ["1970-01-01T00:00:00Z", "2024-01-15T10:45:00+02:00"] {
        let read = batch(&phone, None, &since(other)).await;
        assert_eq!(ids(&read["messages"]), [first.clone(), second.clone()]);
        assert_eq!((&read["cursor"], &read["reset"]), (&Value::Null, &json!(false)));
    }
    assert!(is_empty(&batch(&phone, None, &since("2999-01-01T00:00:00Z")).await));
    assert_eq!(office.message(&first).await["status"], "pending_sync");

    let third = office.send("three").await;
    office.world.published().await;
    let next = batch(&phone, None, &since(&given)).await;
    assert_eq!(office.message(&first).await["status"], "synced");
    assert_eq!(ids(&next["messages"]), [&*third]);
    assert_eq!(office.message(&third).await["status"], "pending_sync");
    // The answer was lost: the same timestamp once more.
    assert_eq!(ids(&batch(&phone, None, &since(&given)).await["messages"]), [&*third]);
    let end = batch(&phone, None, &since(next["sync_timestamp"].as_str().unwrap())).await;
    assert!(is_empty(&end));
    assert_eq!(office.message(&third).await["status"], "synced");
    // Polling on by timestamps goes on indefinitely.
    let mut given = end["sync_timestamp"].as_str().unwrap().to_owned();
    for n in 0..6 {
        let sent = office.send(&format!("later {n}")).await;
        office.world.published().await;
        let next = batch(&phone, None, &since(&given)).await;
        assert_eq!(ids(&next["messages"]), [sent]);
        given = next["sync_timestamp"].as_str().unwrap().to_owned();
    }
    office.close().await;
}

#[tokio::test]
async fn mangled_or_foreign_cursor_is_refused_without_effect() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let other = office.phone("other").await;
    office.world.tenant("globex").await;
    office.world.user("globex", "bob", UserType::Web).await;
    let strange_bob = office.anybody.log_in("globex", "bob").await;
    let (namesake, _) = strange_bob.enroll("phone", None).await;
    let waiting = office.send("waits").await;
    office.world.published().await;
    let own = cursor(&batch(&phone, None, "").await);
    let foreign = [
        cursor(&batch(&other, None, "").await),
        cursor(&batch(&namesake, None, "").await),
    ];
    let web = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await.cursor;
    let middle = own.len() / 2;
    let mut flipped = own.clone().into_bytes();
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    let bad = [
        &foreign[0],
        &foreign[1],
        &web,
        &flipped,
        &own[1..],
        &own[..own.len() - 1],
        "0-0",
        "x",
        &own.repeat(2),
    ];
    let before = phone.get("/api/sync/status").await.expect(200)["sync_status"].clone();
    assert_ne!(before, "error");
    // What is no text is no id either: taken for none, the stream would begin behind what was missed.
    let answer = phone.with("last-event-id", "\u{e4}").get("/sse/mobile/phone").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (400, "INVALID_CURSOR")
    );
    for bad in bad {
        for answer in [
            phone.get(&format!("/api/sync/incoming?cursor={bad}")).await,
            phone.post("/api/sync/ack", &json!({"cursor": bad})).await,
            phone.get(&format!("/sse/mobile/phone?last_event_id={bad}")).await,
        ] {
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (400, "INVALID_CURSOR"),
                "{bad}"
            );
            assert_eq!(answer.json().as_object().unwrap().len(), 1, "nothing but the error");
        }
    }
    assert_eq!(office.message(&waiting).await["status"], "pending_sync");
    assert_eq!(phone.get("/api/sync/status").await.expect(200)["sync_status"], before);
    batch(&phone, Some(&own), "").await;
    assert_eq!(office.message(&waiting).await["status"], "synced");
    office.close().await;
}

/// What a phone holds after it has taken all of these pages: a row by its id.
fn apply(held: &mut BTreeMap<String, Value>, pages: &[Value]) {
    for page in pages {
        if page["reset"] == true {
            held.clear();
        }
        for message in page["messages"].as_array().unwrap() {
            held.insert(id(message), message.clone());
        }
        for change in page["changes"].as_array().unwrap() {
            // Of the phone itself.
            if change["table"] == "devices" {
                continue;
            }
            assert_eq!(
                (&change["table"], &change["op"]),
                (&json!("messages"), &json!("delete"))
            );
            held.remove(&id(change));
        }
    }
}

/// What Postgres says that joe's phone must hold: text and version by id.
async fn oracle(office: &Office) -> BTreeMap<String, (String, i64)> {
    let query = "SELECT id::text, content, version FROM tenant_acme.messages \
                 WHERE $1 IN (recipient_id, sender_id) AND deleted_at IS NULL";
    let rows = office.world.psql().await.query(query, &[&office.joe_id]).await.unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

fn texts(held: &BTreeMap<String, Value>) -> BTreeMap<String, (String, i64)> {
    held.iter()
        .map(|(id, row)| {
            (
                id.clone(),
                (
                    row["content"].as_str().unwrap().to_owned(),
                    row["version"].as_i64().unwrap(),
                ),
            )
        })
        .collect()
}

#[tokio::test]
async fn phone_with_lost_or_trimmed_stream_resnapshots_and_converges() {
    let office = Office::with(|config| {
        config.streams.inbox_entries_max = 20;
        config.streams.trim_interval_seconds = 1;
    })
    .await;
    let phone = office.phone("phone").await;
    let (world, joe) = (&office.world, office.joe_id);
    let inbox = world.keys().inbox("acme", &joe.to_string());
    let mut redis = world.redis().await;
    let mut held = BTreeMap::new();
    office.insert(3).await;
    world.published().await;
    let (pages, mut here) = phone.sync(None).await;
    apply(&mut held, &pages);
    for loss in [
        "the inbox",
        "the tenant's meta",
        "the shared stream",
        "nothing",
        "what is beyond the bound",
    ] {
        match loss {
            "the inbox" => redis::cmd("DEL")
                .arg(&inbox)
                .query_async::<()>(&mut redis)
                .await
                .unwrap(),
            "the tenant's meta" => redis::cmd("DEL")
                .arg(world.keys().meta("acme"))
                .query_async::<()>(&mut redis)
                .await
                .unwrap(),
            "the shared stream" => redis::cmd("DEL")
                .arg(world.keys().shared("acme"))
                .query_async::<()>(&mut redis)
                .await
                .unwrap(),
            "nothing" => {}
            _ => {
                office.insert(60).await;
                world.published().await;
                eventually("the inbox is trimmed", || async {
                    let mut redis = world.redis().await;
                    let length: u64 = redis::cmd("XLEN").arg(&inbox).query_async(&mut redis).await.unwrap();
                    (length <= 20).then_some(())
                })
                .await;
            }
        }
        office.send(loss).await;
        world.published().await;
        let (pages, next) = phone.sync(Some(&here)).await;
        assert_eq!(pages[0]["reset"], json!(loss != "nothing"), "after losing {loss}");
        apply(&mut held, &pages);
        here = next;
        assert_eq!(texts(&held), oracle(&office).await, "after losing {loss}");
        let last = office.send("goes on by the stream").await;
        world.published().await;
        let (pages, next) = phone.sync(Some(&here)).await;
        assert!(pages.iter().all(|page| page["reset"] == false), "after losing {loss}");
        assert_eq!(ids(&pages[0]["messages"]), [last], "after losing {loss}");
        apply(&mut held, &pages);
        here = next;
    }
    office.close().await;
}

#[tokio::test]
async fn two_phones_of_one_user_progress_independently() {
    let office = Office::open().await;
    let (fast, slow) = (office.phone("fast").await, office.phone("slow").await);
    let mut fast_here = caught_up(&office, &fast).await;
    let slow_here = caught_up(&office, &slow).await;
    let mut sent = Vec::new();
    for n in 0..3 {
        sent.push(office.send(&format!("message {n}")).await);
        office.world.published().await;
        let (pages, here) = fast.sync(Some(&fast_here)).await;
        assert_eq!(ids(&pages[0]["messages"]), sent[n..]);
        fast_here = here;
    }
    fast.post("/api/sync/ack", &json!({"cursor": fast_here}))
        .await
        .expect(200);
    assert_eq!(
        office.message(&sent[2]).await["status"],
        "synced",
        "one phone of the two has it"
    );
    assert_eq!(
        slow.get("/api/sync/status").await.expect(200)["pending_incoming_count"],
        3
    );
    assert_eq!(ids(&batch(&slow, Some(&slow_here), "").await["messages"]), sent);
    assert!(is_empty(&batch(&fast, Some(&fast_here), "").await));

    // What one phone sends, the other shows.
    let mine = Uuid::new_v4();
    let upload = json!({"messages": [{"id": mine, "recipient_id": office.bob_id, "content": "from the fast one"}]});
    fast.post("/api/sync/outgoing", &upload).await.expect(200);
    office.world.published().await;
    assert!(ids(&batch(&slow, Some(&slow_here), "").await["messages"]).contains(&mine.to_string()));
    office.close().await;
}

#[tokio::test]
async fn inbox_is_trimmed_to_the_slowest_phone() {
    let office = Office::with(|config| {
        config.streams.trim_interval_seconds = 1;
        config.streams.retention_after_ack_seconds = 0;
    })
    .await;
    let (fast, slow) = (office.phone("fast").await, office.phone("slow").await);
    let mut fast_here = caught_up(&office, &fast).await;
    let mut slow_here = caught_up(&office, &slow).await;
    let mut sent = Vec::new();
    for n in 0..3 {
        sent.push(office.send(&format!("message {n}")).await);
        office.world.published().await;
        (_, fast_here) = fast.sync(Some(&fast_here)).await;
        if n == 0 {
            (_, slow_here) = slow.sync(Some(&slow_here)).await;
        }
    }
    for (phone, here) in [(&fast, &fast_here), (&slow, &slow_here)] {
        phone.post("/api/sync/ack", &json!({"cursor": here})).await.expect(200);
    }
    let inbox = office.world.keys().inbox("acme", &office.joe_id.to_string());
    let kept = eventually("what both have is gone", || async {
        let entries = office.world.stream(&inbox).await;
        let of_messages = entries.iter().filter(|entry| entry.field("table") == "messages");
        let kept: Vec<String> = of_messages.map(|entry| id(&entry.json("row"))).collect();
        (!kept.contains(&sent[0])).then_some(kept)
    })
    .await;
    assert_eq!(kept, sent[1..]);
    let (pages, _) = slow.sync(Some(&slow_here)).await;
    assert_eq!(pages[0]["reset"], false);
    assert_eq!(ids(&pages[0]["messages"]), sent[1..]);
    office.close().await;
}

#[tokio::test]
async fn large_batch_is_compressed_when_accepted() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let path = format!("/api/sync/incoming?cursor={here}");
    let small = phone.with("accept-encoding", "gzip").get(&path).await;
    assert!(!small.headers.contains_key("content-encoding"));
    assert_eq!(small.expect(200)["compressed"], false);

    office.send(&"long text ".repeat(500)).await;
    office.world.published().await;
    for accepted in ["gzip", "br, gzip;q=0.5", "*"] {
        let answer = phone.with("accept-encoding", accepted).get(&path).await;
        assert_eq!(answer.headers["content-encoding"], "gzip", "{accepted}");
        assert_eq!(answer.headers["vary"], "accept-encoding");
        assert!(answer.body.len() < 1000);
        let mut plain = String::new();
        GzDecoder::new(&answer.body[..]).read_to_string(&mut plain).unwrap();
        let plain: Value = serde_json::from_str(&plain).unwrap();
        assert_eq!((&plain["compressed"], ids(&plain["messages"]).len()), (&json!(true), 1));
    }
    for refused in ["br", "gzip;q=0", "identity"] {
        let answer = phone.with("accept-encoding", refused).get(&path).await;
        assert!(!answer.headers.contains_key("content-encoding"), "{refused}");
        assert_eq!(answer.expect(200)["compressed"], false);
    }
    assert_eq!(phone.get(&path).await.expect(200)["compressed"], false);
    office.close().await;
}

#[tokio::test]
async fn sync_status_counts_pending_items_of_both_directions() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let status = || async { phone.get("/api/sync/status").await.expect(200) };
    office.insert(2).await;
    office.world.published().await;
    assert_eq!(
        status().await,
        json!({
            "device_id": "phone", "last_sync_timestamp": null, "pending_outgoing_count": 0,
            "pending_incoming_count": 2, "sync_status": "idle",
        })
    );
    let here = caught_up(&office, &phone).await;
    let after = status().await;
    assert_eq!(
        (&after["pending_incoming_count"], &after["sync_status"]),
        (&json!(0), &json!("idle"))
    );
    assert!(after["last_sync_timestamp"].is_string());
    let sent = office.insert(3).await;
    office
        .bob
        .patch(&format!("/api/messages/{}", sent[0]), &json!({"content": "edited"}))
        .await
        .expect(200);
    office.world.published().await;
    assert_eq!(status().await["pending_incoming_count"], 3);

    phone
        .post("/api/sync/outgoing", &json!({"messages": [], "pending_count": 7}))
        .await
        .expect(200);
    assert_eq!(status().await["pending_outgoing_count"], 7);
    let reporting = |count: &str| phone.with("x-pending-outgoing", count);
    reporting("6")
        .post("/api/sync/outgoing", &json!({"messages": []}))
        .await
        .expect(200);
    assert_eq!(status().await["pending_outgoing_count"], 6);
    let next = batch(&reporting("5"), Some(&here), "").await;
    assert_eq!(status().await["pending_outgoing_count"], 5);
    reporting("4")
        .post("/api/sync/ack", &json!({"cursor": next["cursor"]}))
        .await
        .expect(200);
    assert_eq!(status().await["pending_outgoing_count"], 4);
    assert_eq!(status().await["pending_incoming_count"], 0);
    office.close().await;
}

#[tokio::test]
async fn batch_at_or_after_an_upload_position_has_the_upload() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut here = caught_up(&office, &phone).await;
    for n in 0..5 {
        let mine = Uuid::new_v4();
        let upload =
            json!({"messages": [{"id": mine, "recipient_id": office.bob_id, "content": format!("upload {n}")}]});
        let uploaded = phone.post("/api/sync/outgoing", &upload).await.expect(200);
        let position = |answer: &Value| answer["position"].as_str().unwrap().parse::<StreamId>().unwrap();
        let mut seen = Vec::new();
        loop {
            let next = batch(&phone, Some(&here), "").await;
            seen.extend(ids(&next["messages"]));
            here = cursor(&next);
            if position(&next) >= position(&uploaded) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(seen, [mine.to_string()], "the confirmation that the phone waits for");
    }
    office.close().await;
}

#[tokio::test]
async fn idle_poll_sends_no_statement_to_postgres() {
    let office = Office::with(|config| {
        config.sync.metadata_interval_seconds = 3600;
        config.streams.trim_interval_seconds = 3600;
        config.auth.device_cache_seconds = 300;
    })
    .await;
    // What was checked of a device is trusted while the log is fresh.
    office.ready().await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let psql = office.world.psql().await;
    let now = async || {
        let row = psql.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap();
        row.get::<_, String>(0)
    };
    // Statements since a time on any connection to this database, the heartbeat's apart.
    let statements = async |since: &str| {
        let query = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                     AND backend_type = 'client backend' AND query_start > $1::text::timestamptz \
                     AND query NOT LIKE '%pg_logical_emit_message%'";
        let rows = psql.query(query, &[&since]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    // The enrollment itself has to be looked at, once.
    eventually("the new device is known", || async {
        let since = now().await;
        phone.get("/api/sync/status").await.expect(200);
        statements(&since).await.is_empty().then_some(())
    })
    .await;
    let since = now().await;
    for _ in 0..40 {
        assert!(is_empty(&batch(&phone, Some(&here), "").await));
        phone.post("/api/sync/ack", &json!({"cursor": here})).await.expect(200);
        phone.get("/api/sync/status").await.expect(200);
        assert_eq!(statements(&since).await, Vec::<String>::new());
    }
    // The probe does see a statement.
    office.send("hi").await;
    assert_ne!(statements(&since).await, Vec::<String>::new());
    office.close().await;
}

#[tokio::test]
async fn row_inserted_by_sql_is_an_event_and_in_the_next_batch() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let sent = office.insert(1).await;
    let event = events.expect("message").await;
    assert_eq!(event.data, json!({"type": "new_message", "message_id": sent[0]}));
    let next = batch(&phone, Some(&here), "").await;
    assert_eq!(
        (ids(&next["messages"]), &next["messages"][0]["content"]),
        (sent, &json!("message 1"))
    );
    // One cursor everywhere: the event's id is the batch's.
    assert!(is_empty(&batch(&phone, event.id.as_deref(), "").await));
    office.close().await;
}

#[tokio::test]
async fn catch_up_of_two_thousand_messages_equals_postgres() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut held = BTreeMap::new();
    let first = office.insert(100).await;
    office.world.published().await;
    let (pages, here) = phone.sync(None).await;
    apply(&mut held, &pages);

    office.insert(1700).await;
    let own = "UPDATE tenant_acme.messages SET content = content || ' again' WHERE hashtext(id::text) % 3 = 0;
               DELETE FROM tenant_acme.messages WHERE hashtext(id::text) % 7 = 0;
               UPDATE tenant_acme.messages SET deleted_at = now() WHERE hashtext(id::text) % 11 = 0;";
    office.sql(own).await;
    office.insert(300).await;
    office
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{}'", first[0]))
        .await;
    office.world.published().await;
    let mut seen = HashSet::new();
    let mut pages = 0;
    let mut next = here;
    loop {
        let page = batch(&phone, Some(&next), "limit=150").await;
        pages += 1;
        assert_eq!(page["reset"], false);
        for message in page["messages"].as_array().unwrap() {
            assert!(
                seen.insert((id(message), message["version"].as_i64())),
                "twice: {message}"
            );
        }
        apply(&mut held, std::slice::from_ref(&page));
        next = cursor(&page);
        if page["has_more"] == false {
            break;
        }
    }
    assert!(pages >= 10, "{pages} pages");
    let expected = oracle(&office).await;
    assert!(expected.len() > 1000 && expected.len() < 2100);
    assert_eq!(texts(&held), expected);
    // A phone that comes new has the same.
    let mut fresh = BTreeMap::new();
    apply(&mut fresh, &office.phone("new").await.sync(None).await.0);
    assert_eq!(texts(&fresh), expected);
    office.close().await;
}
