//! Rows that are large: what is read of them at once is bounded by bytes, however small they are in the log or in a request.

use std::collections::BTreeMap;

use posduif::config::Config;
use serde_json::{Value, json};

use crate::support::folder::Folder;
use crate::support::http::Api;
use crate::support::office::Office;

const KIB: usize = 1024;

/// Where batches end in these tests.
const BATCH_BYTES: usize = 64 * KIB;

fn routes() -> Value {
    json!([{
        "table": "papers", "to": ["owner_id"], "upload": {"owner": "owner_id", "columns": ["title"], "merge": "columns"},
    }])
}

fn configure(config: &mut Config) {
    config.routes = serde_json::from_value(routes()).unwrap();
    config.sync.batch_bytes_max = BATCH_BYTES;
}

/// An office with so many papers of joe's, each with a body of so many bytes that Postgres stores apart.
async fn office(papers: usize, bytes: usize) -> (Office, Api) {
    let office = Office::with(configure).await;
    office
        .sql(
            "CREATE TABLE tenant_acme.papers (
                 id int PRIMARY KEY, owner_id uuid NOT NULL, title text NOT NULL, body text NOT NULL,
                 version bigint NOT NULL DEFAULT 1
             );
             ALTER TABLE tenant_acme.papers ALTER body SET STORAGE EXTERNAL",
        )
        .await;
    let joe = office.joe_id;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.papers SELECT n, '{joe}', 'paper', repeat('x', {bytes}) FROM generate_series(1, {papers}) n"
        ))
        .await;
    let phone = office.phone("phone").await;
    (office, phone)
}

/// The titles of papers by id.
type Papers = BTreeMap<String, String>;

/// Syncs to the end; gives the papers that came, the most bytes of rows in one batch, and the last cursor.
async fn sync(phone: &Api, cursor: Option<&str>) -> (Papers, usize, String) {
    let (mut papers, mut bytes_max) = (Papers::new(), 0);
    let mut cursor = cursor.map(str::to_owned);
    loop {
        let from = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = phone
            .get(&format!("/api/sync/incoming?limit=1000{from}"))
            .await
            .expect(200);
        let mut bytes = 0;
        for change in page["changes"].as_array().unwrap() {
            if change["table"] == "papers" {
                let title = change["row"]["title"].as_str().unwrap().to_owned();
                papers.insert(change["id"].as_str().unwrap().to_owned(), title);
                bytes += change["row"].to_string().len();
            }
        }
        bytes_max = bytes_max.max(bytes);
        cursor = page["cursor"].as_str().map(str::to_owned);
        if page["has_more"] == false {
            return (papers, bytes_max, cursor.unwrap());
        }
    }
}

fn all(count: usize, title: &str) -> Papers {
    (1..=count).map(|id| (id.to_string(), title.to_owned())).collect()
}

#[tokio::test]
async fn batch_ends_where_rows_completed_from_postgres_have_its_bytes() {
    let (office, phone) = office(40, 10 * KIB).await;
    office.world.published().await;
    let (papers, bytes, cursor) = sync(&phone, None).await;
    assert_eq!(papers, all(40, "paper"));
    assert!(bytes < BATCH_BYTES + 11 * KIB, "{bytes}");
    // The log has the small columns of these changes only: of all in one commit, and of each in its own twice.
    for (statement, title) in [
        (
            "UPDATE tenant_acme.papers SET title = 'one', version = 2".to_owned(),
            "one",
        ),
        (
            (1..=40)
                .flat_map(|id| ["between", "two"].map(|title| (id, title)))
                .map(|(id, title)| format!("UPDATE tenant_acme.papers SET title = '{title}' WHERE id = {id}; COMMIT; "))
                .collect::<String>(),
            "two",
        ),
    ] {
        office.sql(&statement).await;
        office.world.published().await;
        let (papers, bytes, _) = sync(&phone, Some(&cursor)).await;
        assert_eq!(papers, all(40, title));
        assert!(bytes < BATCH_BYTES + 11 * KIB, "{bytes}");
    }
    office.close().await;
}

#[tokio::test]
async fn row_beyond_the_bytes_of_a_batch_comes_alone() {
    let (office, phone) = office(3, 2 * BATCH_BYTES).await;
    office.world.published().await;
    let (papers, _, cursor) = sync(&phone, None).await;
    assert_eq!(papers, all(3, "paper"));
    office.sql("UPDATE tenant_acme.papers SET title = 'one'").await;
    office.world.published().await;
    let (papers, bytes, _) = sync(&phone, Some(&cursor)).await;
    assert_eq!(papers, all(3, "one"));
    assert!(bytes < 2 * BATCH_BYTES + KIB, "{bytes}");
    office.close().await;
}

#[tokio::test]
async fn page_of_large_rows_ends_early() {
    let (office, phone) = office(40, 10 * KIB).await;
    let (mut seen, mut after) = (0, String::new());
    loop {
        let page = phone
            .get(&format!("/api/tables/papers?limit=40{after}"))
            .await
            .expect(200);
        let rows = page["rows"].as_array().unwrap();
        assert!((1..=7).contains(&rows.len()), "{}", rows.len());
        seen += rows.len();
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", rows.last().unwrap()["id"]);
    }
    assert_eq!(seen, 40);
    office.close().await;
}

#[tokio::test]
async fn results_have_rows_up_to_the_bytes_of_a_batch() {
    let (office, phone) = office(40, 10 * KIB).await;
    office.sql("UPDATE tenant_acme.papers SET version = 2").await;
    let edit = |id: i64, seen: &str| {
        let base_row = json!({"title": seen});
        json!({"seq": id, "table": "papers", "op": "edit", "id": id.to_string(), "row": {"title": "mine"},
               "base_version": 1, "base_row": base_row})
    };
    // Half of them are merged, half are conflicts.
    let items: Vec<Value> = (1..=40)
        .map(|id| edit(id, if id > 20 { "paper" } else { "other" }))
        .collect();
    let answer = phone
        .post("/api/sync/outgoing", &json!({"items": items}))
        .await
        .expect(200);
    let results = answer["results"].as_array().unwrap();
    let with_rows = results.iter().filter(|result| result["server"].is_object());
    assert!((1..=7).contains(&with_rows.clone().count()), "{}", with_rows.count());
    for result in &results[20..] {
        // Without the row, the version is no base.
        assert_eq!(result["status"], "applied");
        assert_eq!(result["server"].is_object(), result["version"] == 3, "{result}");
    }
    office.close().await;
}

/// The ids of all conflicts in one direction, from one on, in the order in which they come.
async fn walk(phone: &Api, direction: &str, from: Option<&String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    loop {
        let place = found.last().or(from).map(|id| format!("&{direction}={id}"));
        let page = phone
            .get(&format!("/api/conflicts?limit=20{}", place.unwrap_or_default()))
            .await
            .expect(200);
        let ids = page["conflicts"].as_array().unwrap().iter();
        let mut ids: Vec<String> = ids.map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        assert!(ids.len() <= 7, "{}", ids.len());
        // Each page is newest first.
        if direction == "after" {
            ids.reverse();
        }
        found.extend(ids);
        if page["has_more"] == false {
            return found;
        }
    }
}

#[tokio::test]
async fn list_of_conflicts_of_large_rows_ends_early_in_both_directions() {
    let (office, phone) = office(20, 10 * KIB).await;
    office.sql("UPDATE tenant_acme.papers SET version = 2").await;
    let edit = |id: i64| json!({"seq": id, "table": "papers", "op": "edit", "id": id.to_string(), "row": {"title": "mine"}, "base_version": 1});
    let items: Vec<Value> = (1..=20).map(edit).collect();
    phone
        .post("/api/sync/outgoing", &json!({"items": items}))
        .await
        .expect(200);
    let whole = phone.get("/api/conflicts?limit=20").await.expect(200);
    assert_eq!((&whole["total"], &whole["has_more"]), (&json!(20), &json!(true)));
    let down = walk(&phone, "before", None).await;
    assert_eq!(down.len(), 20);
    let mut up = walk(&phone, "after", down.last()).await;
    up.reverse();
    assert_eq!(up, down[..19]);
    office.close().await;
}

#[tokio::test]
async fn snapshot_of_large_rows_takes_little_memory() {
    let (office, _) = office(100, 1024 * KIB).await;
    let folder = Folder::new();
    let file = folder.write("routes.yaml", &json!({"routes": routes()}).to_string());
    let config = &office.world.config;
    let engine = office.world.process_under("api", config, None, &[], Some(&file)).await;
    let phone = office.phone("other").await.at(&engine.api());
    phone.get("/api/sync/status").await.expect(200);
    let before = engine.peak_memory_kib();
    let page = phone.get("/api/sync/incoming?limit=1000").await.expect(200);
    assert_eq!(page["changes"].as_array().unwrap().len(), 1);
    let grown = engine.peak_memory_kib() - before;
    assert!(grown < 32 * KIB as u64, "{grown} KiB");
    assert_eq!(engine.terminate().await, Some(0));
    office.close().await;
}
