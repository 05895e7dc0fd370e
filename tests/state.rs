//! Encrypted state: versions and preconditions, lost responses, batches, changes by cursor, and secrecy.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use posduif::accounts::users::UserType;
use posduif::postgres::tenants;
use serde_json::{Value, json};

use crate::api::assert_refused;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::random::Random;
use crate::support::{PASSWORD, World, eventually};

/// A client of joe's that has logged in with a device of this id.
async fn device(office: &Office, id: &str) -> Api {
    device_of(office, "joe", id).await
}

async fn device_of(office: &Office, user: &str, id: &str) -> Api {
    let body = json!({"username": user, "password": PASSWORD, "device": {"id": id, "type": "desktop"}});
    let answer = office.anybody.post("/api/auth/login", &body).await.expect(200);
    let token = answer["token"].as_str().unwrap();
    office.anybody.with("authorization", &format!("Bearer {token}"))
}

/// A body whose bytes are these, with a nonce that follows from them.
fn body(bytes: &str) -> Value {
    let nonce = format!("nonce of {}", bytes.len());
    json!({"state": STANDARD.encode(bytes), "nonce": STANDARD.encode(nonce)})
}

fn at(api: &Api, version: i64) -> Api {
    api.with("if-match", &format!("\"{version}\""))
}

async fn create(api: &Api, key: &str, bytes: &str) -> Answer {
    api.with("if-none-match", "*")
        .put(&format!("/api/state/{key}"), &body(bytes))
        .await
}

async fn put(api: &Api, key: &str, base: i64, bytes: &str) -> Answer {
    at(api, base).put(&format!("/api/state/{key}"), &body(bytes)).await
}

async fn delete(api: &Api, key: &str, base: i64) -> Answer {
    at(api, base).delete(&format!("/api/state/{key}")).await
}

/// That a write was refused for the key being at this version.
#[track_caller]
fn assert_stale(answer: &Answer, version: impl Into<Value>, deleted: bool) {
    assert_refused(answer, 412, "PRECONDITION_FAILED");
    let details = &answer.json()["error"]["details"];
    assert_eq!(
        (&details["version"], &details["deleted"]),
        (&version.into(), &json!(deleted))
    );
}

fn tag(answer: &Answer) -> &str {
    answer.headers["etag"].to_str().unwrap()
}

/// All that follows a cursor, or all there is, with the cursor behind it and whether it was a list of what is there.
async fn read(api: &Api, cursor: Option<&str>, limit: usize) -> (Vec<Value>, String, bool) {
    let mut states = Vec::new();
    let mut cursor = cursor.map(str::to_owned);
    let mut reset = false;
    loop {
        let path = match &cursor {
            Some(cursor) => format!("/api/state?limit={limit}&cursor={cursor}"),
            None => format!("/api/state?limit={limit}"),
        };
        let page = api.get(&path).await.expect(200);
        let rows = page["states"].as_array().unwrap();
        assert!(rows.len() <= limit);
        if page["reset"] == true {
            states.clear();
            reset = true;
        }
        states.extend(rows.iter().cloned());
        cursor = Some(page["cursor"].as_str().unwrap().to_owned());
        if page["has_more"] == false {
            return (states, cursor.unwrap(), reset);
        }
    }
}

fn shown(states: &[Value]) -> Vec<(&str, &str, i64)> {
    states
        .iter()
        .map(|row| {
            (
                row["kind"].as_str().unwrap(),
                row["key"].as_str().unwrap(),
                row["version"].as_i64().unwrap(),
            )
        })
        .collect()
}

#[tokio::test]
async fn state_create_read_update_delete_keep_versions_growing() {
    let office = Office::open().await;
    let laptop = device(&office, "laptop").await;
    let made = create(&laptop, "settings", "one").await;
    assert_eq!((made.status.as_u16(), tag(&made)), (201, "\"1\""));
    let made = made.json();
    assert_eq!(
        (&made["key"], &made["version"], &made["device_id"]),
        (&json!("settings"), &json!(1), &json!("laptop"))
    );
    let read = laptop.get("/api/state/settings").await;
    assert_eq!((read.status.as_u16(), tag(&read)), (200, "\"1\""));
    let (read, sent) = (read.json(), body("one"));
    assert_eq!((&read["state"], &read["nonce"]), (&sent["state"], &sent["nonce"]));
    assert_eq!(read["created_at"], made["created_at"]);

    let changed = put(&laptop, "settings", 1, "two").await;
    assert_eq!((changed.status.as_u16(), tag(&changed)), (200, "\"2\""));
    let known = laptop
        .with("if-none-match", "\"1\", W/\"2\"")
        .get("/api/state/settings")
        .await;
    assert_eq!((known.status.as_u16(), tag(&known)), (304, "\"2\""));
    let other = laptop.with("if-none-match", "\"1\"").get("/api/state/settings").await;
    assert_eq!(other.expect(200)["version"], 2);
    assert_stale(&at(&laptop, 1).get("/api/state/settings").await, 2, false);
    at(&laptop, 2).get("/api/state/settings").await.expect(200);

    assert_eq!(delete(&laptop, "settings", 2).await.status, 204);
    assert_eq!(laptop.get("/api/state/settings").await.status, 404);
    assert_stale(&put(&laptop, "settings", 2, "three").await, 3, true);
    assert_stale(
        &laptop
            .with("if-match", "*")
            .put("/api/state/settings", &body("three"))
            .await,
        3,
        true,
    );
    let recreated = create(&laptop, "settings", "three").await.expect(201);
    assert_eq!(recreated["version"], 4);
    assert_ne!(recreated["created_at"], made["created_at"]);
    // Who knows of the deletion may also write upon that.
    assert_eq!(delete(&laptop, "settings", 4).await.status, 204);
    assert_eq!(delete(&laptop, "settings", 5).await.status, 404);
    assert_eq!(put(&laptop, "settings", 5, "four").await.expect(201)["version"], 6);
    office.close().await;
}

#[tokio::test]
async fn state_edited_by_two_devices_conflicts_once_and_converges() {
    let office = Office::open().await;
    let (laptop, phone) = (device(&office, "laptop").await, office.phone("phone").await);
    create(&laptop, "notes", "base").await.expect(201);
    for round in 0..10 {
        let base = 2 * round + 1;
        let (of_laptop, of_phone) = (format!("laptop {round}"), format!("phone {round}"));
        let (one, other) = tokio::join!(
            put(&laptop, "notes", base, &of_laptop),
            put(&phone, "notes", base, &of_phone),
        );
        let (winner, loser, again) = if one.status == 200 {
            (one, other, &phone)
        } else {
            (other, one, &laptop)
        };
        assert_eq!(winner.expect(200)["version"], base + 1);
        assert_stale(&loser, base + 1, false);
        // The loser reads what won and writes upon that.
        let current = again.get("/api/state/notes").await.expect(200);
        let merged = put(again, "notes", current["version"].as_i64().unwrap(), "both").await;
        assert_eq!(merged.expect(200)["version"], base + 2);
    }
    let (at_laptop, at_phone) = tokio::join!(laptop.get("/api/state/notes"), phone.get("/api/state/notes"));
    assert_eq!(at_laptop.expect(200), at_phone.expect(200));
    office.close().await;
}

#[tokio::test]
async fn state_write_repeated_after_lost_response_applies_once() {
    let office = Office::open().await;
    let (laptop, phone) = (device(&office, "laptop").await, office.phone("phone").await);
    let many = async |sent: &(dyn Fn(Api) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>> + Sync)| {
        // Of clients of their own, so that they run side by side.
        let clients = (0..8).map(|_| laptop.at(&Api::new(office.anybody.address())));
        let answers = join_all(clients.map(sent)).await;
        let first = answers[0].json();
        for answer in answers {
            assert!(answer.status.is_success(), "{}", answer.json());
            assert_eq!(answer.json(), first);
        }
        first
    };
    let made = many(&|api| Box::pin(async move { create(&api, "k", "one").await })).await;
    assert_eq!(made["version"], 1);
    let changed = many(&|api| Box::pin(async move { put(&api, "k", 1, "two").await })).await;
    assert_eq!(changed["version"], 2);
    assert_eq!(put(&laptop, "k", 1, "two").await.expect(200), changed);

    // What another device sends is another write, and so is other bytes or another nonce.
    assert_stale(&put(&phone, "k", 1, "two").await, 2, false);
    assert_stale(&put(&laptop, "k", 1, "TWO").await, 2, false);
    let mut other_nonce = body("two");
    other_nonce["nonce"] = json!(STANDARD.encode("another"));
    assert_stale(&at(&laptop, 1).put("/api/state/k", &other_nonce).await, 2, false);
    assert_stale(&create(&phone, "k", "two").await, 2, false);

    // Once somebody has built upon it, the repeat comes too late.
    put(&phone, "k", 2, "three").await.expect(200);
    assert_stale(&put(&laptop, "k", 1, "two").await, 3, false);

    // Nor is it a repeat when the bytes have come back by another write of its own.
    create(&laptop, "swing", "to").await.expect(201);
    put(&laptop, "swing", 1, "fro").await.expect(200);
    let third = put(&laptop, "swing", 2, "to").await.expect(200);
    assert_eq!(put(&laptop, "swing", 2, "to").await.expect(200), third);
    assert_stale(&put(&laptop, "swing", 1, "to").await, 3, false);

    many(&|api| Box::pin(async move { delete(&api, "k", 3).await })).await;
    assert_stale(&put(&laptop, "k", 3, "x").await, 4, true);
    assert_refused(&delete(&phone, "k", 3).await, 404, "NOT_FOUND");
    create(&phone, "k", "four").await.expect(201);
    assert_stale(&delete(&laptop, "k", 3).await, 5, false);

    // A new key that another device has deleted meanwhile does not come back by a repeat.
    create(&laptop, "brief", "x").await.expect(201);
    assert_eq!(delete(&phone, "brief", 1).await.status, 204);
    assert_stale(&create(&laptop, "brief", "x").await, 2, true);
    assert_eq!(put(&laptop, "brief", 2, "x").await.expect(201)["version"], 3);
    assert_eq!(delete(&laptop, "brief", 3).await.status, 204);
    assert_eq!(create(&laptop, "brief", "y").await.expect(201)["version"], 5);
    assert_eq!(delete(&laptop, "brief", 5).await.status, 204);

    // Pages without a device are one writer, as far as anybody can tell.
    let page = office.anybody.log_in("acme", "joe").await;
    put(&page, "k", 5, "five").await.expect(200);
    assert_eq!(put(&page, "k", 5, "five").await.expect(200)["device_id"], Value::Null);
    // What is not published when a list begins comes again behind it.
    office.world.published().await;
    let (states, ..) = read(&page, None, 100).await;
    let mut there = shown(&states);
    there.sort_unstable();
    assert_eq!(there, [("create", "k", 6), ("create", "swing", 3)]);
    office.close().await;
}

#[tokio::test]
async fn state_created_by_a_late_request_does_not_return_after_its_deletion() {
    let office = Office::open().await;
    let laptop = device(&office, "laptop").await;
    create(&laptop, "brief", "x").await.expect(201);
    assert_eq!(delete(&laptop, "brief", 1).await.status, 204);
    // The request whose connection broke, and which was repeated, is done only now.
    assert_stale(&create(&laptop, "brief", "x").await, 2, true);
    assert_eq!(laptop.get("/api/state/brief").await.status, 404);
    // The same bytes, on purpose.
    assert_eq!(put(&laptop, "brief", 2, "x").await.expect(201)["version"], 3);
    office.close().await;
}

#[tokio::test]
async fn state_write_without_precondition_is_refused() {
    let office = Office::with(|config| {
        config.state.bytes_max = 100;
        config.state.nonce_bytes_max = 24;
        config.state.keys_max = 3;
    })
    .await;
    let joe = device(&office, "laptop").await;
    let path = "/api/state/k";
    let good = body("x");
    assert_refused(&joe.put(path, &good).await, 428, "PRECONDITION_REQUIRED");
    assert_refused(&joe.delete(path).await, 428, "PRECONDITION_REQUIRED");
    assert_stale(&at(&joe, 1).put(path, &good).await, Value::Null, true);
    assert_stale(&joe.with("if-match", "*").put(path, &good).await, Value::Null, true);
    assert_refused(&at(&joe, 1).delete(path).await, 404, "NOT_FOUND");
    create(&joe, "k", "x").await.expect(201);

    for (header, value, status) in [
        ("if-match", "1", 400),
        ("if-match", "\"1", 400),
        ("if-match", "", 400),
        ("if-none-match", "\"1\"", 400),
        ("if-match", "W/\"1\"", 412),
        ("if-match", "\"0\"", 412),
        ("if-match", "\"01\"", 412),
        ("if-match", "\"a tag\"", 400),
        ("if-match", "\"other\"", 412),
        ("if-match", "\"9223372036854775807\"", 412),
        ("if-none-match", "*", 412),
    ] {
        let answer = joe.with(header, value).put(path, &body("y")).await;
        assert_eq!(answer.status, status, "{header}: {value}: {}", answer.json());
    }
    let both = at(&joe, 1).with("if-none-match", "*").put(path, &good).await;
    assert_refused(&both, 400, "VALIDATION_ERROR");
    // One of several, and whatever there is.
    let listed = joe.with("if-match", "\"7\", \"1\"").put(path, &body("y")).await;
    assert_eq!(listed.expect(200)["version"], 2);
    let any = joe.with("if-match", "*").put(path, &body("z")).await;
    assert_eq!(any.expect(200)["version"], 3);

    let nonce = STANDARD.encode("n");
    for (bad, status, code) in [
        (json!({"nonce": nonce}), 400, "VALIDATION_ERROR"),
        (json!({"state": "YQ=="}), 400, "VALIDATION_ERROR"),
        (json!({"state": "YQ==", "nonce": ""}), 400, "VALIDATION_ERROR"),
        (json!({"state": "not base64!", "nonce": nonce}), 400, "VALIDATION_ERROR"),
        (
            json!({"state": STANDARD.encode([0; 101]), "nonce": nonce}),
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            json!({"state": "YQ==", "nonce": STANDARD.encode([0; 25])}),
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            json!({"state": "a".repeat(100_000), "nonce": nonce}),
            413,
            "PAYLOAD_TOO_LARGE",
        ),
    ] {
        assert_refused(&at(&joe, 3).put(path, &bad).await, status, code);
    }
    let unpadded = json!({"state": "YQ", "nonce": "YWI"});
    at(&joe, 3).put(path, &unpadded).await.expect(200);
    assert_eq!(joe.get(path).await.expect(200)["state"], "YQ==");
    let text = at(&joe, 4)
        .send(hyper::Method::PUT, path, Some("text/plain"), "x")
        .await;
    assert_refused(&text, 415, "UNSUPPORTED_MEDIA_TYPE");

    // Keys are free as long as they are short and not too many.
    let strange = "a%20%2F%F0%9F%98%80%22";
    create(&joe, strange, "x").await.expect(201);
    assert_eq!(
        joe.get(&format!("/api/state/{strange}")).await.expect(200)["key"],
        "a /😀\""
    );
    let long = "%C3%BC".repeat(255);
    create(&joe, &long, "x").await.expect(201);
    assert_refused(&create(&joe, &"x".repeat(256), "x").await, 400, "VALIDATION_ERROR");
    assert_refused(&create(&joe, "one-too-many", "x").await, 409, "CONFLICT");
    put(&joe, &long, 1, "y").await.expect(200);
    assert_eq!(delete(&joe, &long, 2).await.status, 204);
    create(&joe, "one-too-many", "x").await.expect(201);
    office.close().await;
}

#[tokio::test]
async fn state_batch_is_atomic() {
    let office = Office::with(|config| {
        config.state.keys_max = 4;
        config.state.batch_items_max = 3;
    })
    .await;
    let joe = device(&office, "laptop").await;
    let item = |key: &str, base: i64, bytes: &str| {
        let mut item = body(bytes);
        item["key"] = json!(key);
        item["base_version"] = json!(base);
        item
    };
    let gone = |key: &str, base: i64| json!({"key": key, "op": "delete", "base_version": base});
    let send = async |items: &[Value]| joe.post("/api/state/batch", &json!({"items": items})).await;
    let versions = |answer: Value| -> Vec<(String, i64)> {
        let results = answer["results"].as_array().unwrap();
        let result = |row: &Value| {
            (
                row["status"].as_str().unwrap().to_owned(),
                row["version"].as_i64().unwrap(),
            )
        };
        results.iter().map(result).collect()
    };
    let done = |of: &[(&str, i64)]| -> Vec<(String, i64)> { of.iter().map(|(s, v)| ((*s).to_owned(), *v)).collect() };

    let first = [item("a", 0, "a1"), item("b", 0, "b1"), item("c", 0, "c1")];
    let answer = versions(send(&first).await.expect(200));
    assert_eq!(answer, done(&[("applied", 1), ("applied", 1), ("applied", 1)]));
    // The answer got lost.
    let answer = versions(send(&first).await.expect(200));
    assert_eq!(answer, done(&[("duplicate", 1), ("duplicate", 1), ("duplicate", 1)]));

    let second = [item("a", 1, "a2"), item("b", 7, "b2"), gone("d", 1)];
    let refused = send(&second).await;
    assert_refused(&refused, 412, "PRECONDITION_FAILED");
    assert_eq!(
        refused.json()["error"]["details"]["failed"],
        json!([
            {"index": 1, "key": "b", "version": 1, "deleted": false},
            {"index": 2, "key": "d", "version": null, "deleted": true},
        ])
    );
    let (states, ..) = read(&joe, None, 100).await;
    let unchanged: BTreeSet<_> = shown(&states).into_iter().collect();
    assert_eq!(
        unchanged,
        [("create", "a", 1), ("create", "b", 1), ("create", "c", 1)].into()
    );

    let third = [item("a", 1, "a2"), gone("b", 1), item("d", 0, "d1")];
    let answer = versions(send(&third).await.expect(200));
    assert_eq!(answer, done(&[("applied", 2), ("applied", 2), ("applied", 1)]));
    assert_eq!(joe.get("/api/state/b").await.status, 404);
    // Some done before, some not: each counts for itself.
    let answer = versions(send(&[item("a", 1, "a2"), item("c", 1, "c2")]).await.expect(200));
    assert_eq!(answer, done(&[("duplicate", 2), ("applied", 2)]));

    let full = send(&[item("c", 2, "c3"), item("e", 0, "e"), item("f", 0, "f")]).await;
    assert_refused(&full, 409, "CONFLICT");
    assert_eq!(joe.get("/api/state/c").await.expect(200)["version"], 2);
    // What goes makes room for what comes.
    send(&[gone("c", 2), item("e", 0, "e"), item("f", 0, "f")])
        .await
        .expect(200);

    for (items, status, code) in [
        (vec![], 400, "VALIDATION_ERROR"),
        (vec![item("a", 2, "x"), item("a", 2, "y")], 400, "VALIDATION_ERROR"),
        (vec![item("batch", 0, "x")], 400, "VALIDATION_ERROR"),
        (vec![gone("a", 0)], 400, "VALIDATION_ERROR"),
        (vec![item("a", -1, "x")], 400, "VALIDATION_ERROR"),
        (
            vec![json!({"key": "a", "state": "YQ==", "nonce": "YQ=="})],
            428,
            "PRECONDITION_REQUIRED",
        ),
        (vec![gone("a", 1); 4], 413, "PAYLOAD_TOO_LARGE"),
    ] {
        assert_refused(&send(&items).await, status, code);
    }
    office.close().await;
}

#[tokio::test]
async fn state_batches_that_overlap_neither_deadlock_nor_interleave() {
    let office = Office::open().await;
    let devices = join_all((0..4).map(async |n| device(&office, &format!("device-{n}")).await)).await;
    let items = |order: &[&str], versions: &BTreeMap<String, i64>, by: usize, round: usize| -> Vec<Value> {
        let item = |key: &&str| {
            let mut item = body(&format!("{by}.{round}"));
            item["key"] = json!(key);
            item["base_version"] = json!(versions.get(*key).copied().unwrap_or(0));
            item
        };
        order.iter().map(item).collect()
    };
    let work = devices.iter().enumerate().map(async |(by, api)| {
        // Each in an order of its own.
        let mut order = vec!["a", "b", "c", "d"];
        order.rotate_left(by);
        let mut versions: BTreeMap<String, i64> = BTreeMap::new();
        for round in 0..15 {
            loop {
                let sent = json!({"items": items(&order, &versions, by, round)});
                let answer = api.post("/api/state/batch", &sent).await;
                match answer.status.as_u16() {
                    200 => {
                        for row in answer.json()["results"].as_array().unwrap() {
                            versions.insert(row["key"].as_str().unwrap().into(), row["version"].as_i64().unwrap());
                        }
                        break;
                    }
                    412 => {
                        for row in answer.json()["error"]["details"]["failed"].as_array().unwrap() {
                            versions.insert(
                                row["key"].as_str().unwrap().into(),
                                row["version"].as_i64().unwrap_or(0),
                            );
                        }
                    }
                    _ => panic!("{}", answer.json()),
                }
            }
        }
    });
    join_all(work).await;
    let mut seen = BTreeSet::new();
    for key in ["a", "b", "c", "d"] {
        let state = devices[0].get(&format!("/api/state/{key}")).await.expect(200);
        assert_eq!(state["version"], 60, "each batch counts once for {key}");
        seen.insert(state["state"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 1, "all of them are of one batch");
    office.close().await;
}

#[tokio::test]
async fn state_changes_by_cursor_are_in_commit_order_with_device_and_kind() {
    let office = Office::open().await;
    let (laptop, phone) = (device(&office, "laptop").await, office.phone("phone").await);
    for n in 0..5 {
        create(&laptop, &format!("old-{n}"), "x").await.expect(201);
    }
    delete(&laptop, "old-4", 1).await;
    office.world.published().await;
    let (states, cursor, reset) = read(&laptop, None, 2).await;
    let keys: BTreeSet<_> = states.iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["old-0", "old-1", "old-2", "old-3"].into());
    assert!(
        reset
            && states
                .iter()
                .all(|row| row["kind"] == "create" && row["sequence"].is_null())
    );

    create(&phone, "new", "one").await.expect(201);
    office.send("something else in the inbox").await;
    put(&laptop, "new", 1, "two").await.expect(200);
    delete(&phone, "old-0", 1).await;
    create(&phone, "old-0", "again").await.expect(201);
    office
        .sql("UPDATE tenant_acme.encrypted_states SET nonce = 'psql' WHERE key = 'new'")
        .await;
    office.world.published().await;
    let (changes, end, reset) = read(&laptop, Some(&cursor), 2).await;
    assert!(!reset);
    assert_eq!(
        shown(&changes),
        [
            ("create", "new", 1),
            ("update", "new", 2),
            ("delete", "old-0", 2),
            ("create", "old-0", 3),
            ("update", "new", 3),
        ]
    );
    let devices: Vec<&Value> = changes.iter().map(|row| &row["device_id"]).collect();
    assert_eq!(
        devices,
        [
            &json!("phone"),
            &json!("laptop"),
            &json!("phone"),
            &json!("phone"),
            &Value::Null
        ]
    );
    let sequences: Vec<(u64, u64)> = changes
        .iter()
        .map(|row| {
            let (ms, seq) = row["sequence"].as_str().unwrap().split_once('-').unwrap();
            (ms.parse().unwrap(), seq.parse().unwrap())
        })
        .collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    assert_eq!(changes[0]["state"], body("one")["state"]);
    assert_eq!(
        (&changes[2]["state"], &changes[2]["nonce"]),
        (&Value::Null, &Value::Null)
    );
    assert!(changes[2]["updated_at"].is_string());
    assert!(read(&laptop, Some(&end), 2).await.0.is_empty());

    // A cursor is its owner's, and reading state acknowledges nothing of a device's sync.
    let (_, of_phone, _) = read(&phone, None, 100).await;
    assert_refused(
        &laptop.get(&format!("/api/state?cursor={of_phone}")).await,
        400,
        "INVALID_CURSOR",
    );
    let message = phone.sync(None).await.0[0]["messages"][0]["status"].clone();
    assert_eq!(message, "pending_sync");

    // A list under way that is taken for a snapshot's page begins a snapshot instead of skipping one.
    let page = phone.get("/api/state?limit=1").await.expect(200);
    let path = format!("/api/sync/incoming?cursor={}", page["cursor"].as_str().unwrap());
    let batch = phone.get(&path).await.expect(200);
    assert_eq!(
        (&batch["reset"], batch["messages"].as_array().unwrap().len()),
        (&json!(true), 1)
    );

    // A new epoch restarts the list, also in its middle.
    let database = office.world.database().await;
    tenants::resync(&database, "acme").await.unwrap();
    let recreated = eventually("the streams are recreated", || async {
        let answer = laptop.get(&format!("/api/state?cursor={end}")).await.expect(200);
        (answer["reset"] == true).then_some(answer)
    })
    .await;
    assert_eq!(recreated["states"].as_array().unwrap().len(), 5);
    let path = format!("/api/state?limit=1&cursor={}", page["cursor"].as_str().unwrap());
    assert_eq!(phone.get(&path).await.expect(200)["reset"], true);
    office.close().await;
}

#[tokio::test]
async fn state_change_reaches_all_streams_of_the_user_with_its_device() {
    let office = Office::open().await;
    let laptop = device_of(&office, "bob", "laptop").await;
    office.bob.enroll("bobs", Some(&office.bob_id.to_string())).await;
    let (phone, _) = office.bob.enroll("bobs-phone", Some(&office.bob_id.to_string())).await;
    office.world.user("acme", "jane", UserType::Web).await;
    let jane = device_of(&office, "jane", "janes").await;
    let web = format!("/sse/web/{}", office.bob_id);
    let mut page = laptop.events(&web).await;
    let mut mobile = phone.events("/sse/mobile/bobs-phone").await;
    let begun = page.cursor.clone();

    create(&jane, "settings", "of nobody's concern").await.expect(201);
    create(&laptop, "settings", "one").await.expect(201);
    put(&phone, "settings", 1, "two").await.expect(200);
    delete(&laptop, "settings", 2).await;
    let heard = async |events: &mut crate::support::http::Events| {
        let mut heard = Vec::new();
        for _ in 0..3 {
            let event = events.expect("state_changed").await;
            assert!(event.id.is_some());
            let text = event.data.to_string();
            assert!(!text.contains(body("one")["state"].as_str().unwrap()), "{text}");
            heard.push(event.data);
        }
        heard
    };
    let (at_page, at_phone) = tokio::join!(heard(&mut page), heard(&mut mobile));
    assert_eq!(at_page, at_phone);
    for (data, (kind, op, version, device)) in at_page.iter().zip([
        ("create", "insert", 1, "laptop"),
        ("update", "update", 2, "bobs-phone"),
        ("delete", "delete", 3, "laptop"),
    ]) {
        let id = &data["id"];
        assert_eq!(
            data,
            &json!({
                "type": "state_changed", "table": "encrypted_states", "op": op, "id": id, "key": "settings",
                "version": version, "device_id": device, "kind": kind,
            })
        );
    }
    // Who comes back later hears just the same.
    let mut again = laptop.with("last-event-id", &begun).events(&web).await;
    assert_eq!(heard(&mut again).await, at_page);
    office.close().await;
}

#[tokio::test]
async fn device_sync_delivers_current_and_deleted_states() {
    let office = Office::open().await;
    let (laptop, phone) = (device(&office, "laptop").await, office.phone("phone").await);
    create(&laptop, "kept", "one").await.expect(201);
    create(&laptop, "gone", "one").await.expect(201);
    office.world.published().await;
    let (pages, cursor) = phone.sync(None).await;
    let rows = |pages: &[Value]| -> Vec<Value> {
        let changes = pages
            .iter()
            .flat_map(|page| page["changes"].as_array().unwrap().clone());
        changes.filter(|change| change["table"] == "encrypted_states").collect()
    };
    let there = rows(&pages);
    let find = |key: &str| there.iter().find(|change| change["row"]["key"] == key).unwrap();
    assert_eq!(there.len(), 2);
    assert_eq!(find("kept")["row"]["state"], body("one")["state"]);
    assert_eq!(find("kept")["row"]["nonce"], body("one")["nonce"]);
    assert_eq!(find("kept")["row"]["device_id"], "laptop");
    put(&laptop, "kept", 1, "two").await.expect(200);
    delete(&laptop, "gone", 1).await;
    office.world.published().await;
    let changed = rows(&phone.sync(Some(&cursor)).await.0);
    assert_eq!(
        (
            &changed[0]["op"],
            &changed[0]["row"]["version"],
            &changed[0]["row"]["state"]
        ),
        (&json!("update"), &json!(2), &body("two")["state"])
    );
    assert_eq!(
        (&changed[1]["op"], &changed[1]["row"], &changed[1]["id"]),
        (&json!("delete"), &Value::Null, &find("gone")["id"])
    );
    office.close().await;
}

#[tokio::test]
async fn state_versions_are_not_reused_after_a_key_is_purged() {
    let office = Office::with(|config| config.state.keys_max = 2).await;
    let joe = device(&office, "laptop").await;
    create(&joe, "first", "x").await.expect(201);
    put(&joe, "first", 1, "y").await.expect(200);
    delete(&joe, "first", 2).await;
    for n in 0..4 {
        let version = create(&joe, &format!("k{n}"), "x").await.expect(201)["version"]
            .as_i64()
            .unwrap();
        assert_eq!(delete(&joe, &format!("k{n}"), version).await.status, 204);
    }
    let psql = office.world.psql().await;
    let count = "SELECT count(*) FROM tenant_acme.encrypted_states";
    assert_eq!(
        psql.query_one(count, &[]).await.unwrap().get::<_, i64>(0),
        2,
        "traces are bounded"
    );
    let recreated = create(&joe, "first", "z").await.expect(201);
    assert!(recreated["version"].as_i64().unwrap() > 3, "{recreated}");
    // By psql, too, a change is a new version.
    let version = recreated["version"].as_i64().unwrap();
    office
        .sql("UPDATE tenant_acme.encrypted_states SET state = 'psql' WHERE key = 'first'")
        .await;
    assert_stale(&put(&joe, "first", version, "w").await, version + 1, false);
    office.close().await;
}

#[tokio::test]
async fn state_of_other_users_is_unreachable_and_disabled_users_cannot_write() {
    let office = Office::open().await;
    let joe = device(&office, "laptop").await;
    create(&joe, "k", "joes").await.expect(201);
    office.world.tenant("globex").await;
    office.world.user("globex", "joe", UserType::Mobile).await;
    let stranger = office.anybody.log_in("globex", "joe").await;
    for api in [&office.bob, &stranger] {
        assert_eq!(api.get("/api/state/k").await.status, 404);
        assert_eq!(read(api, None, 10).await.0, [] as [Value; 0]);
        assert_stale(&put(api, "k", 1, "theirs").await, Value::Null, true);
        assert_eq!(delete(api, "k", 1).await.status, 404);
        assert_eq!(
            create(api, "k", "theirs").await.expect(201)["version"],
            1,
            "a key of their own"
        );
    }
    assert_eq!(
        joe.get("/api/state/k").await.expect(200)["state"],
        body("joes")["state"]
    );

    let phone = office.phone("phone").await;
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'joe'")
        .await;
    assert_eq!(put(&joe, "k", 1, "late").await.status, 401);
    assert_eq!(put(&phone, "k", 1, "late").await.status, 401);
    office.close().await;
}

/// A one-time pad, as far as these tests care.
fn encrypt(plain: &str, pad: u8) -> Vec<u8> {
    plain
        .bytes()
        .zip(0_u8..)
        .map(|(byte, n)| byte ^ pad ^ n.wrapping_mul(97) ^ 0x80)
        .collect()
}

#[tokio::test]
async fn state_content_is_not_in_events_or_logs() {
    let mut world = World::new().await;
    world.config.replication.heartbeat_interval_ms = 100;
    let folder = tempfile_folder();
    let log = folder.join("engine.log");
    let mut config = world.config.clone();
    config.log.level = "trace".into();
    let process = world.process_with("all", &config, Some(&log)).await;
    world.tenant("acme").await;
    // An epoch that begins later would not know the inbox.
    world.published().await;
    world.user("acme", "joe", UserType::Mobile).await;
    world.published().await;
    let joe = process.api().log_in("acme", "joe").await;

    let plain = "quartz: the plain text that nobody but its user may read";
    let cipher = STANDARD.encode(encrypt(plain, 7));
    let nonce = STANDARD.encode(b"a nonce of 24 bytes long");
    let sent = json!({"state": cipher, "nonce": nonce});
    let mut answers = Vec::new();
    for (header, value) in [
        ("if-none-match", "*"),
        ("if-match", "\"1\""),
        ("if-match", "\"9\""),
        ("if-match", "nonsense"),
        ("x-unconditional", "1"),
    ] {
        answers.push(joe.with(header, value).put("/api/state/k", &sent).await);
    }
    let broken = json!({"state": format!("{cipher}!"), "nonce": nonce});
    answers.push(joe.with("if-match", "\"2\"").put("/api/state/k", &broken).await);
    let cut = format!("{{\"state\": \"{cipher}\", \"nonce\": \"{nonce}\"");
    let method = hyper::Method::PUT;
    answers.push(joe.send(method, "/api/state/k", Some("application/json"), cut).await);
    let item = json!({"key": "k", "state": cipher, "nonce": nonce, "base_version": 9});
    answers.push(joe.post("/api/state/batch", &json!({"items": [item]})).await);
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    assert_eq!(statuses, [201, 200, 412, 400, 428, 400, 400, 412]);
    for answer in &answers {
        let text = String::from_utf8_lossy(&answer.body);
        assert!(
            !text.contains("quartz") && !text.contains(&cipher) && !text.contains(&nonce),
            "{text}"
        );
    }
    joe.get("/api/state/k").await.expect(200);
    world.published().await;
    read(&joe, None, 10).await;

    // All that Redis holds of this world.
    let mut redis = world.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{}:*", world.config.redis.prefix))
        .query_async(&mut redis)
        .await
        .unwrap();
    let mut holding = Vec::new();
    for key in keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut redis).await.unwrap();
        assert!(!contains(&dump, b"quartz"), "{key}");
        if kind == "stream" {
            let entries = world.stream(&key).await;
            let text = format!("{entries:?}");
            assert!(!text.contains("quartz"), "{key}");
            if text.contains(&cipher) {
                holding.push(key);
            }
        }
    }
    holding.sort();
    let joe_id = world.psql().await;
    let row = joe_id.query_one("SELECT id FROM tenant_acme.users", &[]).await.unwrap();
    let inbox = world.keys().inbox("acme", &row.get::<_, uuid::Uuid>(0).to_string());
    assert_eq!(
        holding,
        [world.keys().changes("acme"), inbox],
        "the user's own, and all changes"
    );

    drop(process);
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.contains("/api/state/{key}"), "the log is there");
    for secret in ["quartz", &*cipher, &*nonce, "a nonce of 24"] {
        assert!(!lines.contains(secret), "the log holds {secret}");
    }
    // As Postgres prints bytes, and as Rust does.
    let bytes = encrypt(plain, 7);
    let hex: String = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let listed = format!("{:?}", &bytes[..8]);
    for secret in [&*hex, listed.trim_end_matches(']')] {
        assert!(!lines.contains(secret), "the log holds {secret}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn tempfile_folder() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("posduif-state-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// How many edits a story has that says nothing else.
const EDITS: usize = 1000;

const KEYS: [&str; 6] = ["settings", "drafts", "contacts", "theme", "read marks", "ä/ö"];

/// What a device holds of a key: its version, and what it says unless it was deleted.
type Known = (i64, Option<Content>);

/// What a state says: how often each device has changed it since it was made, and which edit was the last.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Content {
    counts: BTreeMap<String, u64>,
    last: String,
}

/// XORs with a stream that follows from the users' common key and the nonce.
fn crypt(bytes: &[u8], nonce: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let block = |n: u64| {
        Sha256::new()
            .chain_update(b"the key")
            .chain_update(nonce)
            .chain_update(n.to_be_bytes())
    };
    let stream = (0_u64..).flat_map(|n| block(n).finalize());
    bytes.iter().zip(stream).map(|(byte, pad)| byte ^ pad).collect()
}

fn sealed(content: &Content, random: &mut Random) -> Value {
    let nonce = random.next().to_be_bytes();
    let plain = serde_json::to_vec(content).unwrap();
    json!({"state": STANDARD.encode(crypt(&plain, &nonce)), "nonce": STANDARD.encode(nonce)})
}

fn opened(row: &Value) -> Option<Content> {
    let bytes = |name: &str| STANDARD.decode(row[name].as_str()?).ok();
    let plain = crypt(&bytes("state")?, &bytes("nonce")?);
    Some(serde_json::from_slice(&plain).unwrap())
}

/// One of the devices of a story.
struct Editor {
    api: Api,
    name: String,
    random: Random,
    known: BTreeMap<String, Known>,
    cursor: String,
    /// Edits that stand, as far as the device knows.
    done: u64,
    conflicts: u64,
    lost: u64,
}

impl Editor {
    /// Takes in what has changed; gives the changes.
    async fn catch_up(&mut self) -> Vec<Value> {
        let (changes, cursor, reset) = read(&self.api, Some(&self.cursor), 50).await;
        assert!(!reset, "history reaches back");
        self.cursor = cursor;
        for change in &changes {
            let key = change["key"].as_str().unwrap().to_owned();
            let version = change["version"].as_i64().unwrap();
            let (before, _) = self.known.get(&key).cloned().unwrap_or_default();
            // Its own changes it knows already.
            if version > before {
                assert!(version == before + 1 || change["device_id"] != self.name, "{change}");
                self.known.insert(key, (version, opened(change)));
            }
        }
        changes
    }

    /// Sends a write until its answer is heard. Gives it, and whether one before it may have been done.
    async fn send(&mut self, key: &str, base: i64, body: Option<&Value>) -> (Answer, bool) {
        let path = format!(
            "/api/state/{}",
            key.replace(' ', "%20")
                .replace('/', "%2F")
                .replace('ä', "%C3%A4")
                .replace('ö', "%C3%B6")
        );
        let api = match base {
            0 => self.api.with("if-none-match", "*"),
            base => at(&self.api, base),
        };
        let send = async || match body {
            Some(body) => api.put(&path, body).await,
            None => api.delete(&path).await,
        };
        let mut may_be_done = false;
        loop {
            match self.random.below(10) {
                // The answer is lost.
                0..2 => drop(send().await),
                // The connection is, at some moment.
                2 => {
                    let timeout = std::time::Duration::from_micros(self.random.below(4000) as u64);
                    let _lost = tokio::time::timeout(timeout, send()).await;
                }
                _ => return (send().await, may_be_done),
            }
            may_be_done = true;
            self.lost += 1;
        }
    }

    /// Changes or deletes a key as it is known here, once; false when somebody else came first.
    async fn edit(&mut self, number: u64) -> bool {
        let key = KEYS[self.random.below(KEYS.len())];
        let (base, content) = self.known.get(key).cloned().unwrap_or_default();
        let is_there = content.is_some();
        let deletes = is_there && self.random.one_in(8);
        let mut content = content.unwrap_or_default();
        *content.counts.entry(self.name.clone()).or_default() += 1;
        content.last = format!("{} {number}", self.name);
        let body = (!deletes).then(|| sealed(&content, &mut self.random));
        let (answer, may_be_done) = self.send(key, base, body.as_ref()).await;
        let status = answer.status.as_u16();
        if matches!(status, 200 | 201 | 204) {
            let version = match status {
                204 => base + 1,
                _ => answer.json()["version"].as_i64().unwrap(),
            };
            // A recreated key may have been created and deleted by others in between.
            assert!(
                version == base + 1 || (!is_there && version > base),
                "{key} {base} {version}"
            );
            self.known.insert(key.to_owned(), (version, body.map(|_| content)));
            self.done += 1;
            return true;
        }
        assert!(matches!(status, 412 | 404), "{}", answer.json());
        // What happened meanwhile comes by the cursor; it may take a moment.
        let current = answer.json()["error"]["details"]["version"]
            .as_i64()
            .unwrap_or(base + 1);
        let mut since: Vec<Value> = Vec::new();
        let started = std::time::Instant::now();
        while self.known.get(key).is_none_or(|(version, _)| *version < current) {
            assert!(
                started.elapsed() < crate::support::TIMEOUT,
                "the change comes by the cursor"
            );
            since.extend(self.catch_up().await);
        }
        since.retain(|change| change["key"] == key && change["version"].as_i64().unwrap() > base);
        let is_own = |change: &&Value| change["device_id"] == self.name;
        assert!(
            !since.iter().all(|change| is_own(&change)),
            "a conflict with oneself: {since:?}"
        );
        self.conflicts += 1;
        // If one of those whose answers were lost was done, that is among what happened.
        let was_done = since.iter().filter(is_own).count();
        assert!(was_done <= usize::from(may_be_done), "{since:?}");
        self.done += was_done as u64;
        was_done > 0
    }
}

/// One story: `POSDUIF_STATE_EDITS=10000 POSDUIF_STATE_SEED=7` tells a longer one, or another.
#[tokio::test]
async fn state_devices_with_lost_responses_converge_without_lost_updates() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let edits = number("POSDUIF_STATE_EDITS").unwrap_or(EDITS as u64);
    let seed = number("POSDUIF_STATE_SEED").unwrap_or(1);
    println!("{edits} edits of the seed {seed}");
    let office = Office::open().await;
    let mut apis = vec![office.phone("phone").await, office.phone("tablet").await];
    for id in ["laptop", "browser", "watch"] {
        apis.push(device(&office, id).await.at(&Api::new(office.anybody.address())));
    }
    let names = ["phone", "tablet", "laptop", "browser", "watch"];
    let (_, beginning, _) = read(&apis[2], None, 100).await;
    let mut editors = Vec::new();
    for (n, (api, name)) in apis.into_iter().zip(names).enumerate() {
        let (there, cursor, _) = read(&api, None, 100).await;
        assert!(there.is_empty());
        editors.push(Editor {
            api,
            name: name.to_owned(),
            random: Random::new(seed * 1000 + n as u64),
            known: BTreeMap::new(),
            cursor,
            done: 0,
            conflicts: 0,
            lost: 0,
        });
    }
    let share = edits / editors.len() as u64;
    let work = editors.into_iter().map(|mut editor| {
        tokio::spawn(async move {
            for number in 0..share {
                if editor.random.one_in(4) {
                    editor.catch_up().await;
                }
                while !editor.edit(number).await {}
            }
            editor
        })
    });
    let mut editors: Vec<Editor> = join_all(work).await.into_iter().map(Result::unwrap).collect();
    office.world.published().await;
    for editor in &mut editors {
        editor.catch_up().await;
        assert_eq!(editor.done, share);
    }
    let sum = |of: fn(&Editor) -> u64| editors.iter().map(of).sum::<u64>();
    println!(
        "{} conflicts, {} answers lost",
        sum(|editor| editor.conflicts),
        sum(|editor| editor.lost)
    );
    assert!(
        sum(|editor| editor.conflicts) > 0 && sum(|editor| editor.lost) > 0,
        "nothing was contested or lost"
    );

    // All hold the same, and the server too.
    for editor in &editors {
        assert_eq!(editor.known, editors[0].known, "{}", editor.name);
    }
    let (there, ..) = read(&editors[2].api, None, 100).await;
    let there: BTreeMap<String, Known> = there
        .iter()
        .map(|row| {
            (
                row["key"].as_str().unwrap().to_owned(),
                (row["version"].as_i64().unwrap(), opened(row)),
            )
        })
        .collect();
    let mut held = editors[0].known.clone();
    held.retain(|_, (_, content)| content.is_some());
    assert_eq!(there, held);

    // Each change was based on the one before it and added what its device did, nothing else.
    let (log, ..) = read(&editors[2].api, Some(&beginning), 1000).await;
    let mut states: BTreeMap<&str, Known> = BTreeMap::new();
    let mut by_device: BTreeMap<&str, u64> = BTreeMap::new();
    for change in &log {
        let (key, device) = (change["key"].as_str().unwrap(), change["device_id"].as_str().unwrap());
        let (version, before) = states.get(key).cloned().unwrap_or_default();
        assert_eq!(change["version"], version + 1, "{change}");
        let content = opened(change);
        match (&before, &content) {
            (Some(_), None) => assert_eq!(change["kind"], "delete"),
            (before, Some(content)) => {
                assert_eq!(change["kind"], if before.is_some() { "update" } else { "create" });
                let mut counts = before.clone().unwrap_or_default().counts;
                *counts.entry(device.to_owned()).or_default() += 1;
                assert_eq!(content.counts, counts, "{change}");
            }
            (None, None) => panic!("{change}"),
        }
        states.insert(key, (version + 1, content));
        *by_device.entry(device).or_default() += 1;
    }
    assert_eq!(by_device, names.iter().map(|name| (*name, share)).collect());
    drop(editors);
    office.close().await;
}
