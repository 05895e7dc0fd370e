//! Uploads: a result for each item, whether requests are lost, repeated, invalid or too large.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::api::{MESSAGE, assert_is_time, assert_refused, fields};
use crate::support::http::Api;
use crate::support::office::Office;

#[tokio::test]
async fn upload_has_a_result_per_item_and_can_be_repeated() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mine = Uuid::new_v4();
    let item = json!({
        "id": mine, "sender_id": office.joe_id, "recipient_id": office.bob_id, "content": "Reply message",
        "status": "pending_sync", "created_at": "2024-01-15T10:50:00Z",
    });
    let answer = phone.upload(std::slice::from_ref(&item)).await;
    assert_eq!(
        fields(&answer),
        [
            "failed_count",
            "failed_messages",
            "position",
            "results",
            "sync_timestamp",
            "synced_count"
        ]
    );
    assert_eq!(
        (&answer["synced_count"], &answer["failed_count"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(answer["failed_messages"], json!([]));
    assert_eq!(
        answer["results"],
        json!([{"id": mine, "status": "applied", "version": 1, "revision": 1}])
    );
    assert_is_time(&answer["sync_timestamp"]);
    assert!(answer["position"].as_str().unwrap().contains('-'), "{answer}");

    let stored = office.message(&mine.to_string()).await;
    assert_eq!(
        (&stored["status"], &stored["created_at"]),
        (&json!("synced"), &json!("2024-01-15T10:50:00Z"))
    );
    let again = phone.upload(&[item]).await;
    assert_eq!(
        (&again["results"][0]["status"], &again["synced_count"]),
        (&json!("duplicate"), &json!(1))
    );
    assert_eq!(phone.upload(&[]).await["results"], json!([]));
    office.close().await;
}

#[tokio::test]
async fn upload_edits_deletes_and_reads_and_stale_bases_conflict() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mine = Uuid::new_v4();
    let create = json!({"id": mine, "recipient_id": office.bob_id, "content": "one"});
    let edit = |content: &str, base: i64| json!({"id": mine, "op": "edit", "content": content, "base_version": base});
    phone.upload(&[create]).await;
    let edited = phone.upload(&[edit("two", 1)]).await;
    assert_eq!(
        edited["results"],
        json!([{"id": mine, "status": "applied", "version": 2, "revision": 2}])
    );
    assert_eq!(
        phone.upload(&[edit("two", 1)]).await["results"][0]["status"],
        "duplicate"
    );

    let conflict = phone.upload(&[edit("three", 1)]).await;
    let result = &conflict["results"][0];
    assert_eq!(
        (&result["status"], &result["code"]),
        (&json!("conflict"), &json!("CONFLICT"))
    );
    assert_eq!(fields(&result["server"]), MESSAGE);
    assert_eq!(
        office.message(&mine.to_string()).await["content"],
        "three",
        "the last write wins"
    );

    let theirs = office.send("for joe").await;
    let read = json!({"id": theirs, "op": "read"});
    let not_mine = json!({"id": theirs, "op": "edit", "content": "forged"});
    let deleted = json!({"id": mine, "op": "delete", "base_version": 3});
    let answer = phone.upload(&[read, not_mine, deleted]).await;
    let statuses: Vec<&str> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["applied", "rejected", "applied"]);
    assert_eq!(
        (&answer["synced_count"], &answer["failed_count"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(answer["failed_messages"][0]["message_id"], json!(theirs));
    assert_eq!(answer["results"][1]["code"], "FORBIDDEN");
    assert_eq!(office.message(&theirs).await["status"], "read");
    assert_eq!(office.message(&theirs).await["content"], "for joe");
    assert_refused(
        &office.bob.get(&format!("/api/messages/{mine}")).await,
        404,
        "NOT_FOUND",
    );
    office.close().await;
}

#[tokio::test]
async fn upload_conflict_under_manual_resolution_keeps_the_servers_version() {
    let office = Office::with(|config| config.sync.conflict_strategy = posduif::config::ConflictStrategy::Manual).await;
    let phone = office.phone("phone").await;
    let mine = Uuid::new_v4();
    phone
        .upload(&[json!({"id": mine, "recipient_id": office.bob_id, "content": "one"})])
        .await;
    phone
        .upload(&[json!({"id": mine, "op": "edit", "content": "two", "base_version": 1})])
        .await;
    let answer = phone
        .upload(&[json!({"id": mine, "op": "edit", "content": "three", "base_version": 1})])
        .await;
    assert_eq!(answer["results"][0]["status"], "conflict");
    assert_eq!(answer["results"][0]["server"]["content"], "two");
    assert_eq!(answer["failed_count"], 1);
    assert_eq!(office.message(&mine.to_string()).await["content"], "two");
    office.close().await;
}

#[tokio::test]
async fn upload_bad_item_blocks_no_other_item() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let item = |key: &str, value: Value| {
        let mut item = json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "hi"});
        item[key] = value;
        item
    };
    let bad = [
        (json!(7), "VALIDATION_ERROR"),
        (json!(null), "VALIDATION_ERROR"),
        (item("id", json!("nonsense")), "VALIDATION_ERROR"),
        (item("id", json!(["a"])), "VALIDATION_ERROR"),
        (item("op", json!("drop table")), "VALIDATION_ERROR"),
        (item("content", json!("")), "EMPTY_MESSAGE"),
        (item("content", json!("a\u{0}b")), "VALIDATION_ERROR"),
        (item("content", json!("x".repeat(10_001))), "VALIDATION_ERROR"),
        (item("recipient_id", json!(Uuid::new_v4())), "INVALID_RECIPIENT"),
        (item("sender_id", json!(office.bob_id)), "FORBIDDEN"),
        (item("base_version", json!(-1)), "VALIDATION_ERROR"),
        (item("base_version", json!(1.0e300)), "VALIDATION_ERROR"),
        (item("created_at", json!("now")), "VALIDATION_ERROR"),
        (json!({"id": Uuid::new_v4(), "op": "read"}), "NOT_FOUND"),
        (json!({"id": Uuid::new_v4(), "op": "delete"}), "NOT_FOUND"),
    ];
    let mut items: Vec<Value> = bad.iter().map(|(item, _)| item.clone()).collect();
    let good = item("content", json!("the only good one"));
    items.insert(7, good.clone());
    let answer = phone.upload(&items).await;
    assert_eq!(answer["results"].as_array().unwrap().len(), items.len());
    assert_eq!(
        (&answer["synced_count"], &answer["failed_count"]),
        (&json!(1), &json!(bad.len()))
    );
    let mut results = answer["results"].as_array().unwrap().clone();
    let applied = results.remove(7);
    assert_eq!((&applied["id"], &applied["status"]), (&good["id"], &json!("applied")));
    for (result, (item, code)) in results.iter().zip(&bad) {
        assert_eq!(
            (&result["status"], &result["code"]),
            (&json!("rejected"), &json!(code)),
            "{item}"
        );
    }
    office.close().await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn compressed_upload_is_accepted_and_gzip_bomb_is_too_large() {
    let office = Office::open().await;
    let phone = office.phone("phone").await.with("content-encoding", "gzip");
    let item = json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "packed"});
    let body = json!({"messages": [item], "compressed": true}).to_string();
    let send = |bytes: Vec<u8>| phone.send(Method::POST, "/api/sync/outgoing", Some("application/json"), bytes);
    let answer = send(gzip(body.as_bytes())).await.expect(200);
    assert_eq!(answer["results"][0]["status"], "applied");

    let bomb = gzip(&vec![b' '; 64 * 1024 * 1024]);
    assert!(bomb.len() < 100_000);
    assert_refused(&send(bomb).await, 413, "PAYLOAD_TOO_LARGE");
    assert_refused(&send(body.into_bytes()).await, 400, "VALIDATION_ERROR");
    let mut torn = gzip(b"{\"messages\": []}");
    torn.truncate(torn.len() - 6);
    assert_refused(&send(torn).await, 400, "VALIDATION_ERROR");
    let brotli = office.phone("other").await.with("content-encoding", "br");
    let answer = brotli
        .send(Method::POST, "/api/sync/outgoing", Some("application/json"), "x")
        .await;
    assert_refused(&answer, 415, "UNSUPPORTED_MEDIA_TYPE");

    let plain = phone.without("content-encoding");
    let many: Vec<Value> = (0..1001).map(|_| json!({})).collect();
    let answer = plain.post("/api/sync/outgoing", &json!({"messages": many})).await;
    assert_refused(&answer, 413, "PAYLOAD_TOO_LARGE");
    let large = format!("{{\"messages\": [], \"padding\": \"{}\"}}", "x".repeat(9 * 1024 * 1024));
    let answer = plain
        .send(Method::POST, "/api/sync/outgoing", Some("application/json"), large)
        .await;
    assert_refused(&answer, 413, "PAYLOAD_TOO_LARGE");
    office.close().await;
}

#[tokio::test]
async fn gzip_bombs_keep_memory_flat_and_shutdown_orderly() {
    let office = Office::open().await;
    let engine = office.world.process("api").await;
    let phone = office
        .phone("phone")
        .await
        .at(&engine.api())
        .with("content-encoding", "gzip");
    phone.get("/api/sync/status").await.expect(200);
    let before = engine.peak_memory_kib();
    // A gigabyte together.
    let bomb = gzip(&vec![b' '; 128 * 1024 * 1024]);
    for _ in 0..8 {
        let answer = phone
            .send(
                Method::POST,
                "/api/sync/outgoing",
                Some("application/json"),
                bomb.clone(),
            )
            .await;
        assert_refused(&answer, 413, "PAYLOAD_TOO_LARGE");
    }
    let grown = engine.peak_memory_kib() - before;
    assert!(grown < 64 * 1024, "{grown} KiB");
    assert_eq!(engine.terminate().await, Some(0));
    office.close().await;
}

/// The status of each result, counted.
fn outcomes(answer: &Value) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for result in answer["results"].as_array().unwrap() {
        *counts.entry(result["status"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// Sends a body of which only a part arrives, or all of it without waiting for the answer; then the phone is gone.
async fn cut_off(phone: &Api, body: &str, sent: usize) {
    let mut stream = TcpStream::connect(phone.address()).await.unwrap();
    let head = format!(
        "POST /api/sync/outgoing HTTP/1.1\r\nhost: x\r\nx-device-id: {}\r\nauthorization: {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        phone.header("x-device-id"),
        phone.header("authorization"),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..sent]).await.unwrap();
    stream.shutdown().await.unwrap();
    // Whether the server says something or not, the phone does not hear it.
    let _ = stream.read(&mut [0; 1]).await;
}

#[tokio::test]
async fn thousand_items_repeated_and_interrupted_apply_once() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let psql = office.world.psql().await;
    let rows = async || -> i64 {
        let count = "SELECT count(*) FROM tenant_acme.messages WHERE sender_id = $1";
        psql.query_one(count, &[&office.joe_id]).await.unwrap().get(0)
    };
    let item = |n: usize| json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": format!("item {n}")});
    let items: Vec<Value> = (0..1000).map(item).collect();
    let body = json!({"messages": items}).to_string();
    assert_eq!(outcomes(&phone.upload(&items).await), [("applied".to_owned(), 1000)]);
    cut_off(&phone, &body, body.len() / 2).await;
    assert_eq!(outcomes(&phone.upload(&items).await), [("duplicate".to_owned(), 1000)]);
    assert_eq!(rows().await, 1000);

    // Cut off the first time already: in the middle nothing is done, behind the last byte it may be.
    let items: Vec<Value> = (0..1000).map(item).collect();
    let body = json!({"messages": items}).to_string();
    cut_off(&phone, &body, body.len() / 2).await;
    assert_eq!(rows().await, 1000);
    cut_off(&phone, &body, body.len()).await;
    let answer = phone.upload(&items).await;
    assert_eq!(
        (&answer["synced_count"], &answer["failed_count"]),
        (&json!(1000), &json!(0))
    );
    assert_eq!(rows().await, 2000);
    office.close().await;
}

#[tokio::test]
async fn thousand_items_with_three_bad_ones_apply_the_rest() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut items: Vec<Value> = (0..1000)
        .map(|n| json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": format!("item {n}")}))
        .collect();
    items[1]["content"] = json!("");
    items[500]["recipient_id"] = json!(Uuid::new_v4());
    items[999]["sender_id"] = json!(office.bob_id);
    let answer = phone.upload(&items).await;
    assert_eq!(
        outcomes(&answer),
        [("applied".to_owned(), 997), ("rejected".to_owned(), 3)]
    );
    let codes = [1, 500, 999].map(|n| answer["results"][n]["code"].as_str().unwrap());
    assert_eq!(codes, ["EMPTY_MESSAGE", "INVALID_RECIPIENT", "FORBIDDEN"]);
    let failed = answer["failed_messages"].as_array().unwrap();
    assert_eq!(failed.len(), 3);
    for (failed, n) in failed.iter().zip([1, 500, 999]) {
        assert_eq!(failed["message_id"], items[n]["id"]);
        assert!(failed["error"].as_str().is_some_and(|error| !error.is_empty()));
    }
    office.close().await;
}
