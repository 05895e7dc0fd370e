//! An offline device: it catches up in pages, its statuses follow, and the state of its sync is visible.

use std::collections::HashSet;

use posduif::engine::Role;
use posduif::postgres::audit::Actor;
use posduif::postgres::tenants;
use serde_json::{Value, json};

use crate::support::http::Api;
use crate::support::office::{Office, ids};
use crate::support::{World, eventually};

/// A page behind a cursor: its messages' ids, the next cursor, and whether there is more.
async fn page(phone: &Api, cursor: &str, limit: usize) -> (Vec<String>, String, bool) {
    let path = format!("/api/sync/incoming?cursor={cursor}&limit={limit}");
    let page = phone.get(&path).await.expect(200);
    assert_eq!(page["reset"], false);
    let next = page["cursor"].as_str().unwrap().to_owned();
    (ids(&page["messages"]), next, page["has_more"] == true)
}

/// Pages until there is no more; gives all messages' ids and the last cursor.
async fn pages(phone: &Api, cursor: &str, limit: usize) -> (Vec<String>, String) {
    let (mut all, mut cursor) = (Vec::new(), cursor.to_owned());
    loop {
        let (ids, next, has_more) = page(phone, &cursor, limit).await;
        assert!(ids.len() <= limit);
        all.extend(ids);
        cursor = next;
        if !has_more {
            return (all, cursor);
        }
    }
}

async fn status(phone: &Api) -> Value {
    phone.get("/api/sync/status").await.expect(200)["sync_status"].clone()
}

/// The cursor of a phone that has all there is.
async fn caught_up(office: &Office, phone: &Api) -> String {
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    phone.sync(Some(&cursor)).await.1
}

async fn acknowledge(phone: &Api, cursor: &str) {
    phone
        .post("/api/sync/ack", &json!({"cursor": cursor}))
        .await
        .expect(200);
}

/// Waits until every message counts as synced.
async fn all_synced(world: &World) {
    let psql = world.psql().await;
    eventually("all statuses have moved on", || async {
        let query = "SELECT count(*) FROM tenant_acme.messages WHERE status <> 'synced'";
        let left: i64 = psql.query_one(query, &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn offline_phone_gets_backlog_once_in_pages_and_statuses_are_synced() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let mut sent = Vec::new();
    for _ in 0..5 {
        sent.extend(office.insert(1000).await);
    }
    office.world.published().await;
    let (got, here) = pages(&phone, &here, 300).await;
    assert_eq!(got.len(), sent.len());
    assert_eq!(got.iter().collect::<HashSet<_>>(), sent.iter().collect());
    acknowledge(&phone, &here).await;
    all_synced(&office.world).await;
    office.close().await;
}

#[tokio::test]
async fn inbox_smaller_than_one_transaction_forces_snapshot_without_loss() {
    let office = Office::with(|config| {
        config.streams.inbox_entries_max = 100;
        config.streams.trim_interval_seconds = 1;
    })
    .await;
    let phone = office.phone("phone").await;
    let here = caught_up(&office, &phone).await;
    let sent = office.insert(1000).await;
    let inbox = office.world.keys().inbox("acme", &office.joe_id.to_string());
    eventually("the inbox is cut within the transaction", || async {
        let entries = office.world.stream(&inbox).await;
        (entries.len() == 100 && entries[0].id.ms == entries[99].id.ms).then_some(())
    })
    .await;
    let (pages, here) = phone.sync(Some(&here)).await;
    assert_eq!(pages[0]["reset"], true);
    let got: HashSet<String> = pages.iter().flat_map(|page| ids(&page["messages"])).collect();
    assert_eq!(got, sent.into_iter().collect());
    // Behind it the stream goes on.
    let next = office.send("next").await;
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&here)).await;
    assert!(pages.iter().all(|page| page["reset"] == false));
    assert!(pages.iter().any(|page| ids(&page["messages"]).contains(&next)));
    office.close().await;
}

#[tokio::test]
async fn pending_statuses_of_a_stopped_node_are_written_by_the_next_node() {
    let office = Office::with(|config| config.streams.retention_after_ack_seconds = 0).await;
    let phone = office.phone("phone").await;
    let mut here = caught_up(&office, &phone).await;
    for _ in 0..5 {
        office.insert(1000).await;
    }
    office.world.published().await;
    for _ in 0..4 {
        let (_, next, has_more) = page(&phone, &here, 1000).await;
        assert!(has_more);
        here = next;
    }
    office.engine.stop().await;
    let engine = office.world.engine(Role::All).await;
    let phone = phone.at(&engine.api());
    let (_, here) = pages(&phone, &here, 1000).await;
    acknowledge(&phone, &here).await;
    all_synced(&office.world).await;
    engine.stop().await;
}

#[tokio::test]
async fn backlog_memory_is_bounded_by_page_size() {
    // The backlog is larger than an inbox may be by default.
    let office = Office::with(|config| config.streams.inbox_bytes_max = 1024 * 1024 * 1024).await;
    let node = office.world.process("api").await;
    let phone = office.phone("phone").await.at(&node.api());
    let here = caught_up(&office, &phone).await;
    let filler = "UPDATE tenant_acme.messages SET content = repeat(md5(id::text), 250) WHERE length(content) < 1000";
    for _ in 0..10 {
        office.insert(1000).await;
        office.sql(filler).await;
    }
    office.world.published().await;
    // What a connection costs once is there before.
    let (_, here, _) = page(&phone, &here, 100).await;
    let before = node.peak_memory_kib();
    let (got, _) = pages(&phone, &here, 1000).await;
    assert!(got.len() >= 9_000);
    // 80 MB of rows, and twice as much in the stream, in pages that end at 4 MiB, of which the next one is made ready.
    let grown = node.peak_memory_kib() - before;
    assert!(grown < 64 * 1024, "{grown} KiB");
    assert_eq!(node.terminate().await, Some(0));
    office.close().await;
}

/// What Postgres says of the phone's sync: status, whether there is an error, whether there was a sync.
async fn in_postgres(world: &World) -> Option<(String, bool, bool)> {
    let query = "SELECT sync_status, last_error IS NOT NULL, last_sync_timestamp IS NOT NULL \
                 FROM tenant_acme.sync_metadata WHERE device_id = 'phone'";
    let rows = world.psql().await.query(query, &[]).await.unwrap();
    rows.first().map(|row| (row.get(0), row.get(1), row.get(2)))
}

async fn postgres_says(world: &World, status: &str, has_error: bool) {
    eventually(&format!("sync_metadata says {status}"), || async {
        let expected = (status.to_owned(), has_error, true);
        (in_postgres(world).await? == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn device_is_syncing_from_first_partial_page_to_last_page() {
    let office = Office::with(|config| config.sync.metadata_interval_seconds = 1).await;
    let other = office.world.engine(Role::Api).await;
    let phone = office.phone("phone").await;
    let elsewhere = phone.at(&other.api());
    assert_eq!(status(&phone).await, "idle");
    office.insert(5).await;
    office.world.published().await;

    // A snapshot in pages.
    let first = phone.get("/api/sync/incoming?limit=2").await.expect(200);
    assert_eq!((&first["reset"], &first["has_more"]), (&json!(true), &json!(true)));
    assert_eq!(
        (status(&phone).await, status(&elsewhere).await),
        (json!("syncing"), json!("syncing"))
    );
    postgres_says(&office.world, "syncing", false).await;
    let (_, here) = phone.sync(first["cursor"].as_str()).await;
    assert_eq!(
        (status(&phone).await, status(&elsewhere).await),
        (json!("idle"), json!("idle"))
    );
    postgres_says(&office.world, "idle", false).await;

    // The stream in pages. An upload in between says nothing of what is still to come.
    office.insert(5).await;
    office.world.published().await;
    let (_, here, has_more) = page(&phone, &here, 2).await;
    assert!(has_more);
    phone
        .post("/api/sync/outgoing", &json!({"messages": []}))
        .await
        .expect(200);
    assert_eq!(status(&elsewhere).await, "syncing");
    postgres_says(&office.world, "syncing", false).await;
    pages(&phone, &here, 2).await;
    assert_eq!(status(&elsewhere).await, "idle");
    postgres_says(&office.world, "idle", false).await;
    other.stop().await;
    office.close().await;
}

#[tokio::test]
async fn failed_sync_shows_error_at_every_node_until_one_succeeds() {
    let office = Office::with(|config| config.sync.metadata_interval_seconds = 1).await;
    let other = office.world.engine(Role::Api).await;
    let phone = office.phone("phone").await;
    let elsewhere = phone.at(&other.api());
    let here = caught_up(&office, &phone).await;
    let database = office.world.database().await;
    tenants::set_paused(&database, "acme", true, &Actor::cli())
        .await
        .unwrap();
    office.world.published().await;
    let path = format!("/api/sync/incoming?cursor={here}");
    assert_eq!(phone.get(&path).await.status, 503);
    assert_eq!(
        (status(&phone).await, status(&elsewhere).await),
        (json!("error"), json!("error"))
    );
    postgres_says(&office.world, "error", true).await;
    // Written, and so forgotten by the node that saw it.
    assert_eq!(status(&phone).await, "error");

    tenants::set_paused(&database, "acme", false, &Actor::cli())
        .await
        .unwrap();
    office.world.published().await;
    elsewhere.get(&path).await.expect(200);
    assert_eq!(
        (status(&phone).await, status(&elsewhere).await),
        (json!("idle"), json!("idle"))
    );
    postgres_says(&office.world, "idle", false).await;

    // A cursor that is refused is the client's mistake.
    assert_eq!(phone.get("/api/sync/incoming?cursor=AAAA").await.status, 400);
    assert_eq!(status(&phone).await, "idle");
    other.stop().await;
    office.close().await;
}
