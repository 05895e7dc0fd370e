//! Uploads with sequence numbers: each item is applied exactly once, no edit is lost, and no device is in conflict with
//! itself. `tests/model.rs` checks the same with random histories.

use posduif::accounts::users::UserType;
use posduif::config::{Config, ConflictStrategy};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::{Answer, Api};
use crate::support::office::Office;

const TASKS: &str = "CREATE TABLE tenant_acme.tasks (
    id uuid PRIMARY KEY, owner_id uuid NOT NULL, title text NOT NULL, done boolean NOT NULL DEFAULT false,
    version bigint NOT NULL DEFAULT 1
)";

fn configure(config: &mut Config) {
    config.routes = serde_json::from_value(json!([{
        "table": "tasks", "to": ["owner_id"], "event": "task",
        "upload": {"owner": "owner_id", "columns": ["title", "done"]},
    }]))
    .unwrap();
}

async fn office(strategy: ConflictStrategy) -> Office {
    let office = Office::with(|config| {
        configure(config);
        config.sync.conflict_strategy = strategy;
    })
    .await;
    office.sql(TASKS).await;
    office
}

/// Numbers items from `first` on.
fn numbered(first: i64, items: &[Value]) -> Vec<Value> {
    (first..)
        .zip(items)
        .map(|(seq, item)| {
            let mut item = item.clone();
            item["seq"] = json!(seq);
            item
        })
        .collect()
}

async fn send(phone: &Api, items: &[Value], acked: i64) -> Answer {
    phone
        .post("/api/sync/outgoing", &json!({"items": items, "acked_seq": acked}))
        .await
}

async fn results(phone: &Api, items: &[Value]) -> Vec<Value> {
    let answer = send(phone, items, 0).await.expect(200);
    answer["results"].as_array().unwrap().clone()
}

fn statuses(results: &[Value]) -> Vec<&str> {
    results
        .iter()
        .map(|result| result["status"].as_str().unwrap())
        .collect()
}

fn message(office: &Office, id: Uuid, content: &str) -> Value {
    json!({"table": "messages", "op": "create", "id": id, "row": {"recipient_id": office.bob_id, "content": content}})
}

fn edit(id: Uuid, content: &str) -> Value {
    json!({"table": "messages", "op": "edit", "id": id, "row": {"content": content}})
}

fn task(op: &str, id: Uuid, title: &str) -> Value {
    json!({"table": "tasks", "op": op, "id": id, "row": {"title": title}})
}

fn based(mut item: Value, name: &str, base: i64) -> Value {
    item[name] = json!(base);
    item
}

#[tokio::test]
async fn second_offline_edit_never_overwrites_another_device() {
    let office = office(ConflictStrategy::Manual).await;
    let (one, two) = (office.phone("one").await, office.phone("two").await);
    let (note, todo) = (Uuid::new_v4(), Uuid::new_v4());
    results(
        &two,
        &numbered(1, &[message(&office, note, "first"), task("create", todo, "first")]),
    )
    .await;
    let theirs = [
        based(edit(note, "X of two"), "base_version", 1),
        based(task("edit", todo, "X of two"), "base_version", 1),
    ];
    assert_eq!(
        statuses(&results(&two, &numbered(3, &theirs)).await),
        ["applied", "applied"]
    );

    let mine = [
        based(edit(note, "A of one"), "base_version", 1),
        based(edit(note, "B of one"), "base_seq", 1),
        based(task("edit", todo, "A of one"), "base_version", 1),
        based(task("edit", todo, "B of one"), "base_seq", 3),
    ];
    let results = results(&one, &numbered(1, &mine)).await;
    assert_eq!(statuses(&results), ["conflict", "rejected", "conflict", "rejected"]);
    for result in [&results[1], &results[3]] {
        assert_eq!(result["code"], "DEPENDS_ON_FAILED");
    }
    assert_eq!(results[0]["winner"], "theirs");
    assert_eq!(results[0]["server"]["content"], "X of two");
    assert_eq!(results[2]["server"]["title"], "X of two");
    assert_eq!(office.message(&note.to_string()).await["content"], "X of two");
    let title: String = office
        .world
        .psql()
        .await
        .query_one("SELECT title FROM tenant_acme.tasks", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(title, "X of two");
    office.close().await;
}

#[tokio::test]
async fn repeated_upload_returns_its_first_results() {
    let office = office(ConflictStrategy::LastWriteWins).await;
    let phone = office.phone("phone").await;
    let id = Uuid::new_v4();
    results(&phone, &numbered(1, &[message(&office, id, "one")])).await;
    let edits = numbered(
        2,
        &[
            based(edit(id, "A"), "base_version", 1),
            based(edit(id, "B"), "base_seq", 2),
            json!({"table": "messages", "op": "edit", "id": id, "row": {"content": ""}, "base_seq": 3}),
        ],
    );
    let first = results(&phone, &edits).await;
    assert_eq!(statuses(&first), ["applied", "applied", "rejected"]);
    for _ in 0..3 {
        assert_eq!(results(&phone, &edits).await, first);
    }
    let stored = office.message(&id.to_string()).await;
    assert_eq!((&stored["content"], &stored["version"]), (&json!("B"), &json!(3)));
    assert_eq!(office.anybody.get("/health").await.status, 200);
    let conflicts: i64 = office
        .world
        .psql()
        .await
        .query_one("SELECT count(*) FROM tenant_acme.message_conflicts", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(conflicts, 0);
    office.close().await;
}

#[tokio::test]
async fn repeated_result_says_whether_its_row_is_as_the_item_left_it() {
    let office = office(ConflictStrategy::Manual).await;
    let phone = office.phone("one").await;
    let [kept, gone, todo, away] = [(); 4].map(|()| Uuid::new_v4());
    let items = numbered(
        1,
        &[
            message(&office, kept, "kept"),
            message(&office, gone, "gone"),
            task("create", todo, "one"),
            based(task("edit", todo, "two"), "base_seq", 3),
            task("create", away, "away"),
            based(json!({"table": "tasks", "op": "delete", "id": away}), "base_seq", 5),
        ],
    );
    let overtaken = |results: &[Value]| -> Vec<bool> {
        let results = results.iter();
        results.map(|result| result["overtaken"] == json!(true)).collect()
    };
    let first = results(&phone, &items).await;
    assert_eq!(statuses(&first), ["applied"; 6]);
    assert_eq!(overtaken(&first), [false; 6]);
    assert_eq!(results(&phone, &items).await, first, "all of it is as it was left");

    office
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{gone}'"))
        .await;
    office
        .sql("UPDATE tenant_acme.tasks SET title = 'three', version = 3")
        .await;
    let again = results(&phone, &items).await;
    assert_eq!(overtaken(&again), [false, true, false, false, false, false]);

    // Another user's, and made again.
    let bob = office.bob_id;
    office
        .sql(&format!("UPDATE tenant_acme.tasks SET owner_id = '{bob}'"))
        .await;
    let joe = office.joe_id;
    let made = format!("INSERT INTO tenant_acme.tasks (id, owner_id, title) VALUES ('{away}', '{joe}', 'again')");
    office.sql(&made).await;
    let again = results(&phone, &items).await;
    assert_eq!(overtaken(&again), [false, true, true, true, true, true]);
    assert_eq!(
        again.iter().map(|result| &result["version"]).collect::<Vec<_>>(),
        first.iter().map(|result| &result["version"]).collect::<Vec<_>>()
    );
    office.close().await;
}

#[tokio::test]
async fn deleted_message_stays_deleted_after_a_conflict() {
    let office = office(ConflictStrategy::LastWriteWins).await;
    let (one, two) = (office.phone("one").await, office.phone("two").await);
    let id = Uuid::new_v4();
    results(&two, &numbered(1, &[message(&office, id, "one")])).await;
    results(&two, &numbered(2, &[based(edit(id, "two"), "base_version", 1)])).await;
    let delete = json!({"table": "messages", "op": "delete", "id": id, "base_version": 1});
    let result = results(&one, &numbered(1, &[delete])).await.remove(0);
    assert_eq!(
        (&result["status"], &result["winner"]),
        (&json!("conflict"), &json!("mine"))
    );
    assert_eq!(result.get("server"), Some(&Value::Null), "the row is gone");
    assert!(result["conflict_id"].is_string(), "{result}");
    office.close().await;
}

#[tokio::test]
async fn repeated_conflict_does_not_show_a_row_of_others() {
    let office = office(ConflictStrategy::Manual).await;
    let phone = office.phone("phone").await;
    let id = Uuid::new_v4();
    results(&phone, &numbered(1, &[message(&office, id, "one")])).await;
    office.sql("UPDATE tenant_acme.messages SET content = 'other'").await;
    let late = numbered(2, &[based(edit(id, "late"), "base_version", 1)]);
    let shown = |results: Vec<Value>| results[0]["server"]["content"].clone();
    assert_eq!(shown(results(&phone, &late).await), "other");
    office.sql("UPDATE tenant_acme.messages SET content = 'newer'").await;
    assert_eq!(shown(results(&phone, &late).await), "newer", "the row as it is now");
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    office
        .sql(&format!("UPDATE tenant_acme.messages SET sender_id = '{sally}'"))
        .await;
    assert_eq!(shown(results(&phone, &late).await), Value::Null);
    office.close().await;
}

#[tokio::test]
async fn read_receipt_is_no_edit() {
    let office = office(ConflictStrategy::Manual).await;
    let phone = office.phone("phone").await;
    let id = Uuid::new_v4();
    results(&phone, &numbered(1, &[message(&office, id, "one")])).await;
    office
        .bob
        .put(&format!("/api/messages/{id}/read"), &json!({}))
        .await
        .expect(200);
    let read = office.message(&id.to_string()).await;
    assert_eq!((&read["version"], &read["status"]), (&json!(1), &json!("read")));
    assert!(read["revision"].as_i64() > Some(1), "{read}");
    let result = results(&phone, &numbered(2, &[based(edit(id, "two"), "base_version", 1)]))
        .await
        .remove(0);
    assert_eq!((&result["status"], &result["version"]), (&json!("applied"), &json!(2)));
    office.close().await;
}

#[tokio::test]
async fn wrong_sequence_is_refused_whole_and_names_the_next_number() {
    let office = office(ConflictStrategy::Manual).await;
    let phone = office.phone("phone").await;
    let id = Uuid::new_v4();
    let create = numbered(1, &[message(&office, id, "one")]);
    results(&phone, &create).await;
    let refused = |answer: Answer, code: &str| {
        let body = answer.expect(409);
        assert_eq!(
            (&body["error"]["code"], &body["error"]["details"]["expected"]),
            (&json!(code), &json!(2))
        );
    };
    refused(send(&phone, &numbered(3, &[edit(id, "x")]), 1).await, "SEQUENCE_GAP");
    refused(
        send(&phone, &numbered(1, &[message(&office, id, "another")]), 0).await,
        "DEVICE_RESTORED",
    );
    assert_eq!(office.message(&id.to_string()).await["content"], "one");
    for bad in [
        json!({"items": [{"table": "messages", "op": "read", "id": id}]}),
        json!({"items": [{"seq": 2, "table": "messages", "op": "read", "id": id}, {"seq": 4, "table": "messages", "op": "read", "id": id}]}),
        json!({"items": [{"seq": 0, "table": "messages", "op": "read", "id": id}]}),
        json!({"items": [], "messages": []}),
        json!({"items": [{"seq": 2}], "acked_seq": -1}),
    ] {
        let answer = phone.post("/api/sync/outgoing", &bad).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "VALIDATION_ERROR".to_owned()),
            "{bad}"
        );
    }
    // Without a base nothing is overwritten, unless the device says so.
    let items = [edit(id, "blind"), based(edit(id, "forced"), "force", 1)];
    let mut items = numbered(2, &items);
    items[1]["force"] = json!(true);
    let results = results(&phone, &items).await;
    assert_eq!(statuses(&results), ["rejected", "applied"]);
    assert_eq!(results[0]["code"], "VALIDATION_ERROR");
    office.close().await;
}

#[tokio::test]
async fn conflict_of_an_own_table_is_kept_and_listed() {
    let office = office(ConflictStrategy::LastWriteWins).await;
    let phone = office.phone("phone").await;
    let id = Uuid::new_v4();
    results(&phone, &numbered(1, &[task("create", id, "one")])).await;
    office
        .sql("UPDATE tenant_acme.tasks SET title = 'other', version = version + 1")
        .await;
    let result = results(
        &phone,
        &numbered(2, &[based(task("edit", id, "mine"), "base_version", 1)]),
    )
    .await
    .remove(0);
    assert_eq!(
        (&result["status"], &result["winner"]),
        (&json!("conflict"), &json!("theirs"))
    );
    assert_eq!(result["server"]["title"], "other");
    let listed = phone.get("/api/conflicts").await.expect(200);
    let conflict = &listed["conflicts"][0];
    assert_eq!(conflict["id"], result["conflict_id"]);
    assert_eq!((&conflict["table"], &conflict["row_id"]), (&json!("tasks"), &json!(id)));
    assert_eq!(conflict["client_version"]["row"]["title"], "mine");
    assert_eq!(conflict["server_version"]["title"], "other");
    let path = format!("/api/conflicts/{}/resolve", result["conflict_id"].as_str().unwrap());
    let refused = phone.post(&path, &json!({"resolution": "client"})).await;
    assert_eq!(refused.status, 409, "the device uploads another edit instead");
    let resolved = phone.post(&path, &json!({"resolution": "server"})).await.expect(200);
    assert_eq!(resolved["resolution"], "server");
    office.close().await;
}

/// An office whose tasks merge by column, a phone, and a task "one" of that phone which has been done since.
async fn merging_office() -> (Office, Api, Uuid) {
    let office = Office::with(|config| {
        configure(config);
        config.routes[0].upload.as_mut().unwrap().merge = Some(posduif::config::rule::Merge::Columns);
    })
    .await;
    office.sql(TASKS).await;
    let phone = office.phone("phone").await;
    let id = Uuid::new_v4();
    results(&phone, &numbered(1, &[task("create", id, "one")])).await;
    office
        .sql("UPDATE tenant_acme.tasks SET done = true, version = version + 1")
        .await;
    (office, phone, id)
}

#[tokio::test]
async fn edits_of_different_columns_merge_where_the_rule_says_so() {
    let (office, phone, id) = merging_office().await;
    let mut mine = based(task("edit", id, "mine"), "base_version", 1);
    mine["base_row"] = json!({"title": "one"});
    let mut late = based(task("edit", id, "late"), "base_version", 1);
    late["base_row"] = json!({"title": "one"});
    let results = results(&phone, &numbered(2, &[mine, late])).await;
    assert_eq!(statuses(&results), ["applied", "conflict"]);
    let row = office
        .world
        .psql()
        .await
        .query_one("SELECT title, done, version FROM tenant_acme.tasks", &[])
        .await
        .unwrap();
    assert_eq!(
        (row.get::<_, String>(0), row.get::<_, bool>(1), row.get::<_, i64>(2)),
        ("mine".to_owned(), true, 3)
    );
    office.close().await;
}

#[tokio::test]
async fn merged_edit_is_no_base_for_a_column_that_was_not_seen() {
    let (office, phone, id) = merging_office().await;
    let seen = |mut item: Value, row: Value| {
        item["base_row"] = row;
        item
    };
    let title = seen(
        based(task("edit", id, "mine"), "base_version", 1),
        json!({"title": "one"}),
    );
    let again = seen(
        based(task("edit", id, "again"), "base_seq", 2),
        json!({"title": "mine"}),
    );
    let done = json!({"table": "tasks", "op": "edit", "id": id, "row": {"done": false}, "base_seq": 3});
    let done = seen(done, json!({"done": false}));
    let mine = results(&phone, &numbered(2, &[title, again, done])).await;
    assert_eq!(statuses(&mine), ["applied", "applied", "conflict"]);
    office
        .sql("UPDATE tenant_acme.tasks SET title = 'theirs', version = version + 1")
        .await;
    let open = json!({"table": "tasks", "op": "edit", "id": id, "row": {"title": "mine, too"}, "base_version": 5});
    let open = seen(open, json!({"title": "again"}));
    assert_eq!(statuses(&results(&phone, &numbered(5, &[open])).await), ["conflict"]);
    office.close().await;
}

#[tokio::test]
async fn merged_edit_brings_the_row_and_is_no_base_for_a_deletion_without_it() {
    let (office, phone, id) = merging_office().await;
    let mut title = based(task("edit", id, "mine"), "base_version", 1);
    title["base_row"] = json!({"title": "one"});
    let delete = json!({"table": "tasks", "op": "delete", "id": id});
    let blind = numbered(2, &[title, based(delete.clone(), "base_seq", 2)]);
    let mine = results(&phone, &blind).await;
    assert_eq!(statuses(&mine), ["applied", "conflict"]);
    let row = json!({"id": id, "owner_id": office.joe_id, "title": "mine", "done": true, "version": 3});
    assert_eq!((&mine[0]["server"], &mine[0]["winner"]), (&row, &Value::Null));
    assert_eq!(results(&phone, &blind).await, mine, "a repeat has the same results");
    // The device has the row, and its user has seen what the others did.
    let seen = numbered(4, &[based(delete, "base_version", 3)]);
    assert_eq!(statuses(&results(&phone, &seen).await), ["applied"]);
    office.close().await;
}

/// A device that was restored from a backup sends again what it has created, under other numbers.
#[tokio::test]
async fn creation_that_comes_again_is_no_base_for_an_edit_that_was_not_seen() {
    let office = office(ConflictStrategy::LastWriteWins).await;
    let (one, two) = (office.phone("one").await, office.phone("two").await);
    let (note, todo) = (Uuid::new_v4(), Uuid::new_v4());
    let creations = [message(&office, note, "new"), task("create", todo, "new")];
    results(&one, &numbered(1, &creations)).await;
    let theirs = [
        based(edit(note, "of two"), "base_version", 1),
        based(task("edit", todo, "of two"), "base_version", 1),
    ];
    assert_eq!(
        statuses(&results(&two, &numbered(1, &theirs)).await),
        ["applied", "applied"]
    );
    let [created_note, created_todo] = creations;
    let mine = [
        created_note,
        based(edit(note, "of one"), "base_seq", 3),
        created_todo,
        based(task("edit", todo, "of one"), "base_seq", 5),
    ];
    let mine = results(&one, &numbered(3, &mine)).await;
    assert_eq!(statuses(&mine), ["duplicate", "conflict", "duplicate", "conflict"]);
    assert_eq!((&mine[0]["version"], &mine[2]["version"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&mine[1]["winner"], &mine[3]["winner"]),
        (&json!("mine"), &json!("theirs"))
    );

    // The same text by both is no base either, where the row has other columns.
    office
        .sql("UPDATE tenant_acme.tasks SET title = 'same', done = true, version = version + 1")
        .await;
    let done = json!({"table": "tasks", "op": "edit", "id": todo, "row": {"done": false}, "base_seq": 7});
    let mine = [based(task("edit", todo, "same"), "base_version", 2), done];
    let mine = results(&one, &numbered(7, &mine)).await;
    assert_eq!(statuses(&mine), ["duplicate", "conflict"]);
    assert_eq!(mine[0]["version"], 2);
    office.close().await;
}

#[tokio::test]
async fn receipts_and_edits_at_the_same_time_make_no_conflict() {
    let office = office(ConflictStrategy::Manual).await;
    let phone = office.phone("phone").await;
    let ids: Vec<Uuid> = (0..50).map(|_| Uuid::new_v4()).collect();
    let creates: Vec<Value> = ids.iter().map(|&id| message(&office, id, "one")).collect();
    results(&phone, &numbered(1, &creates)).await;
    let reads = async {
        for id in &ids {
            office
                .bob
                .put(&format!("/api/messages/{id}/read"), &json!({}))
                .await
                .expect(200);
        }
    };
    let edits = async {
        for (number, &id) in (51..).zip(&ids) {
            let item = based(edit(id, "two"), "base_version", 1);
            assert_eq!(
                statuses(&results(&phone, &numbered(number, &[item])).await),
                ["applied"]
            );
        }
    };
    tokio::join!(reads, edits);
    office.close().await;
}

#[tokio::test]
async fn receipt_storm_while_authors_edit_makes_no_conflict() {
    const MESSAGES: usize = 10_000;
    const UPLOAD: usize = 500;
    let office = office(ConflictStrategy::Manual).await;
    let author = office.phone("author").await;
    let ann = office.world.user("acme", "ann", UserType::Mobile).await;
    let reader = office.bob.enroll("reader", Some(&ann.to_string())).await.0;
    let ids: Vec<Uuid> = (0..MESSAGES).map(|_| Uuid::new_v4()).collect();
    let all = async |phone: &Api, first: usize, item: &dyn Fn(Uuid) -> Value| {
        for (number, ids) in ids.chunks(UPLOAD).enumerate() {
            let items: Vec<Value> = ids.iter().map(|&id| item(id)).collect();
            let first = i64::try_from(first + number * UPLOAD).unwrap();
            let results = results(phone, &numbered(first, &items)).await;
            assert!(
                statuses(&results).iter().all(|status| *status == "applied"),
                "{results:?}"
            );
        }
    };
    let create = |id: Uuid| json!({"table": "messages", "op": "create", "id": id, "row": {"recipient_id": ann, "content": "one"}});
    all(&author, 1, &create).await;
    let edit = |id: Uuid| based(edit(id, "two"), "base_version", 1);
    let read = |id: Uuid| json!({"table": "messages", "op": "read", "id": id});
    tokio::join!(all(&author, MESSAGES + 1, &edit), all(&reader, 1, &read));
    let counts = "SELECT count(*) FILTER (WHERE read_at IS NOT NULL AND version = 2 AND content = 'two'),
                         (SELECT count(*) FROM tenant_acme.message_conflicts) FROM tenant_acme.messages";
    let row = office.world.psql().await.query_one(counts, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (10_000, 0));
    office.close().await;
}
