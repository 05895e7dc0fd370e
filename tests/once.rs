//! Uploads with sequence numbers: each item is applied exactly once, nobody's edit is lost, and no device is in conflict with
//! itself, whatever answers are lost, repeated or delivered late.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use posduif::accounts::users::UserType;
use posduif::config::{Config, ConflictStrategy};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::random::Random;

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

#[tokio::test]
async fn edits_of_different_columns_merge_where_the_rule_says_so() {
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

// ---------------------------------------------------------------------------------------------------------------- model

/// Stories of the model test, half of them under each strategy, unless `POSDUIF_ONCE_CASES` says otherwise.
const CASES: usize = 1000;

/// Stories that run at the same time.
const WORKERS: usize = 8;

/// What a device shows of a row: the content, and the version that the server gave it.
#[derive(Debug, Clone, PartialEq)]
struct View {
    content: String,
    version: i64,
}

/// An edit that waits for its upload.
#[derive(Debug, Clone)]
struct Waiting {
    item: Value,
    row: usize,
    /// What the device showed when the user made the edit.
    seen: String,
    wrote: Option<String>,
}

/// A device of the story: its store, and how it talks.
#[derive(Debug, Clone, Default)]
struct Device {
    next_seq: i64,
    acked: i64,
    outbox: Vec<Waiting>,
    views: HashMap<usize, View>,
}

/// What a story knows about an edit that the server said it applied.
#[derive(Debug, Clone)]
struct Applied {
    seen: String,
    wrote: String,
    forced: bool,
}

struct Story<'a> {
    office: &'a Office,
    psql: &'a tokio_postgres::Client,
    random: Random,
    number: usize,
    phones: Vec<Api>,
    devices: Vec<Device>,
    backups: Vec<Option<Device>>,
    /// A request that comes once more, late.
    late: Vec<Option<Value>>,
    rows: Vec<(bool, Uuid)>,
    texts: usize,
    applied: Vec<Applied>,
    /// Edits that were in conflict: their content must be found in a conflict that is kept.
    contested: Vec<String>,
    violations: Vec<String>,
}

/// Users of the model: joe has three devices, sally two.
const OWNERS: [usize; 5] = [0, 0, 0, 1, 1];

impl Story<'_> {
    fn text(&mut self) -> String {
        self.texts += 1;
        format!("s{}t{}", self.number, self.texts)
    }

    fn shown(&self, device: usize, row: usize) -> Option<String> {
        let device = &self.devices[device];
        let own = device.outbox.iter().rev().find(|waiting| waiting.row == row);
        match own {
            Some(own) => own.wrote.clone(),
            None => device.views.get(&row).map(|view| view.content.clone()),
        }
    }

    fn push(&mut self, device: usize, row: usize, op: &str, wrote: Option<String>) {
        let (is_message, id) = self.rows[row];
        let seen = self.shown(device, row).unwrap_or_default();
        let state = &mut self.devices[device];
        state.next_seq += 1;
        let mut item = json!({
            "seq": state.next_seq, "table": if is_message { "messages" } else { "tasks" }, "op": op, "id": id,
        });
        if let Some(text) = &wrote {
            item["row"] = if is_message {
                json!({"content": text})
            } else {
                json!({"title": text})
            };
        }
        let own = state
            .outbox
            .iter()
            .rev()
            .find(|waiting| waiting.row == row && waiting.item["op"] != "read");
        if let Some(own) = own {
            item["base_seq"] = own.item["seq"].clone();
        } else if let Some(view) = state.views.get(&row) {
            item["base_version"] = json!(view.version);
        }
        state.outbox.push(Waiting { item, row, seen, wrote });
    }

    /// The device takes what Postgres has, as a sync would bring it; own edits that wait stay on top.
    async fn fetch(&mut self, device: usize) {
        for row in 0..self.rows.len() {
            let (is_message, id) = self.rows[row];
            let statement = if is_message {
                "SELECT content, version FROM tenant_acme.messages WHERE id = $1 AND deleted_at IS NULL"
            } else {
                "SELECT title, version FROM tenant_acme.tasks WHERE id = $1"
            };
            match self.psql.query_opt(statement, &[&id]).await.unwrap() {
                Some(found) => {
                    let view = View {
                        content: found.get(0),
                        version: found.get(1),
                    };
                    self.devices[device].views.insert(row, view);
                }
                None => {
                    self.devices[device].views.remove(&row);
                }
            }
        }
    }

    fn request(&mut self, device: usize, items: usize) -> Value {
        let state = &self.devices[device];
        let items: Vec<&Value> = state.outbox.iter().take(items).map(|waiting| &waiting.item).collect();
        json!({"items": items, "acked_seq": state.acked})
    }

    async fn upload(&mut self, device: usize) {
        let count = self.devices[device].outbox.len();
        if count == 0 {
            return;
        }
        let part = if self.random.one_in(4) {
            1 + self.random.below(count)
        } else {
            count
        };
        let request = self.request(device, part);
        // Answers that are lost: the same request comes again, and it must mean the same.
        let losses = if self.random.one_in(2) { self.random.below(5) } else { 0 };
        let mut first: Option<Value> = None;
        for attempt in 0..=losses {
            let answer = self.phones[device].post("/api/sync/outgoing", &request).await;
            if let Some(late) = self.late[device].take().filter(|_| self.random.one_in(2)) {
                self.phones[device].post("/api/sync/outgoing", &late).await;
            }
            if answer.status == 409 {
                let body = answer.json();
                self.renumber(device, body["error"]["details"]["expected"].as_i64().unwrap());
                return;
            }
            let results = answer.expect(200)["results"].clone();
            let outline = |results: &Value| -> Vec<(Value, Value)> {
                let results = results.as_array().unwrap().iter();
                results
                    .map(|result| (result["status"].clone(), result["version"].clone()))
                    .collect()
            };
            match &first {
                Some(first) if outline(first) != outline(&results) => {
                    self.violations
                        .push(format!("a repeat was answered {results} instead of {first}"));
                }
                Some(_) => {}
                None => first = Some(results),
            }
            if attempt == losses {
                self.take(device, part, &first.clone().unwrap_or_default());
            }
            // Another device works in between.
            if self.random.one_in(3) {
                self.interfere(device).await;
            }
        }
        if self.random.one_in(3) {
            self.late[device] = Some(request);
        }
    }

    /// Somebody at `psql` changes a row, or reads one.
    async fn interfere(&mut self, _device: usize) {
        let row = self.random.below(self.rows.len());
        let (is_message, id) = self.rows[row];
        if is_message && self.random.one_in(2) {
            let statement =
                "UPDATE tenant_acme.messages SET read_at = now(), status = 'read' WHERE id = $1 AND read_at IS NULL";
            self.psql.execute(statement, &[&id]).await.unwrap();
            return;
        }
        let text = self.text();
        let statement = if is_message {
            "UPDATE tenant_acme.messages SET content = $2 WHERE id = $1 AND deleted_at IS NULL"
        } else {
            "UPDATE tenant_acme.tasks SET title = $2, version = version + 1 WHERE id = $1"
        };
        self.psql.execute(statement, &[&id, &text]).await.unwrap();
    }

    fn take(&mut self, device: usize, count: usize, results: &Value) {
        let results = results.as_array().cloned().unwrap_or_default();
        let waiting: Vec<Waiting> = self.devices[device].outbox.drain(..count).collect();
        for (waiting, result) in waiting.into_iter().zip(results) {
            let state = &mut self.devices[device];
            state.acked = waiting.item["seq"].as_i64().unwrap();
            let status = result["status"].as_str().unwrap_or_default();
            let op = waiting.item["op"].as_str().unwrap_or_default();
            match status {
                "applied" | "conflict" if op == "edit" && (status == "applied" || result["winner"] == "mine") => {
                    let wrote = waiting.wrote.clone().unwrap_or_default();
                    state.views.insert(
                        waiting.row,
                        View {
                            content: wrote.clone(),
                            version: result["version"].as_i64().unwrap(),
                        },
                    );
                    self.applied.push(Applied {
                        seen: waiting.seen,
                        wrote,
                        forced: status == "conflict",
                    });
                }
                "applied" | "duplicate" if op == "create" => {
                    let view = View {
                        content: waiting.wrote.clone().unwrap_or_default(),
                        version: result["version"].as_i64().unwrap(),
                    };
                    state.views.insert(waiting.row, view);
                }
                "conflict" => {
                    let server = &result["server"];
                    let column = if self.rows[waiting.row].0 { "content" } else { "title" };
                    match server[column].as_str() {
                        Some(content) => {
                            let view = View {
                                content: content.to_owned(),
                                version: result["version"].as_i64().unwrap(),
                            };
                            state.views.insert(waiting.row, view);
                        }
                        None => {
                            state.views.remove(&waiting.row);
                        }
                    }
                    if op == "edit" {
                        self.contested.push(waiting.wrote.unwrap_or_default());
                    }
                }
                "retry" => self.violations.push(format!("an item was answered {result}")),
                _ => {}
            }
            if op == "read" && status == "conflict" {
                self.violations.push("a receipt was in conflict".to_owned());
            }
        }
    }

    /// The device came back from a backup: what waits gets new numbers, and stands on what the device shows.
    fn renumber(&mut self, device: usize, expected: i64) {
        let state = &mut self.devices[device];
        let mut renamed: HashMap<i64, i64> = HashMap::new();
        for (seq, waiting) in (expected..).zip(&mut state.outbox) {
            let old = waiting.item["seq"].as_i64().unwrap();
            renamed.insert(old, seq);
            waiting.item["seq"] = json!(seq);
            if let Some(base) = waiting.item["base_seq"].as_i64() {
                match renamed.get(&base) {
                    Some(base) => waiting.item["base_seq"] = json!(base),
                    None => {
                        waiting.item.as_object_mut().unwrap().remove("base_seq");
                        if let Some(view) = state.views.get(&waiting.row) {
                            waiting.item["base_version"] = json!(view.version);
                        }
                    }
                }
            }
        }
        state.next_seq = expected - 1 + state.outbox.len() as i64;
        state.acked = expected - 1;
    }

    async fn run(&mut self) {
        // Each owner has a message and a task, made by the first device.
        for (first, owner) in [(0, 0), (3, 1)] {
            for is_message in [true, false] {
                let id = Uuid::new_v4();
                self.rows.push((is_message, id));
                let row = self.rows.len() - 1;
                let text = self.text();
                self.push(first, row, "create", Some(text));
                if is_message {
                    let bob = self.office.bob_id;
                    self.devices[first].outbox.last_mut().unwrap().item["row"]["recipient_id"] = json!(bob);
                }
                let _ = owner;
            }
        }
        for device in [0, 3] {
            let count = self.devices[device].outbox.len();
            let request = self.request(device, count);
            let answer = self.phones[device]
                .post("/api/sync/outgoing", &request)
                .await
                .expect(200);
            self.take(device, count, &answer["results"]);
        }
        for device in 0..OWNERS.len() {
            self.fetch(device).await;
        }
        for _ in 0..12 + self.random.below(12) {
            let device = self.random.below(OWNERS.len());
            match self.random.below(12) {
                0..4 => {
                    let mine: Vec<usize> = if OWNERS[device] == 0 { vec![0, 1] } else { vec![2, 3] };
                    let row = mine[self.random.below(2)];
                    for _ in 0..1 + self.random.below(5) {
                        if self.shown(device, row).is_none() {
                            break;
                        }
                        let text = self.text();
                        self.push(device, row, "edit", Some(text));
                    }
                }
                4 if self.random.one_in(6) => {
                    let row = if OWNERS[device] == 0 { 0 } else { 2 };
                    if self.shown(device, row).is_some() {
                        self.push(device, row, "delete", None);
                    }
                }
                4..8 => self.upload(device).await,
                8 => self.fetch(device).await,
                9 => self.interfere(device).await,
                10 => self.backups[device] = Some(self.devices[device].clone()),
                _ => {
                    if let Some(backup) = self.backups[device].take() {
                        // The user does something else than before.
                        self.devices[device] = backup;
                        let row = if OWNERS[device] == 0 { 1 } else { 3 };
                        if self.shown(device, row).is_some() {
                            let text = self.text();
                            self.push(device, row, "edit", Some(text));
                        }
                    }
                }
            }
        }
        for device in 0..OWNERS.len() {
            for _ in 0..4 {
                self.upload(device).await;
            }
        }
        self.check().await;
    }

    /// Compares what devices were answered with what Postgres saw.
    async fn check(&mut self) {
        let prefix = format!("s{}t", self.number);
        let rows = self
            .psql
            .query(
                "SELECT old_text, new_text FROM public.texts WHERE starts_with(coalesce(new_text, old_text), $1)",
                &[&prefix],
            )
            .await
            .unwrap();
        let history: Vec<(Option<String>, Option<String>)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let mut applied = self.applied.clone();
        applied.sort_by(|a, b| a.wrote.cmp(&b.wrote));
        applied.dedup_by(|a, b| a.wrote == b.wrote);
        let mut violations = Vec::new();
        for edit in &applied {
            let found: Vec<_> = history
                .iter()
                .filter(|(_, new)| new.as_deref() == Some(edit.wrote.as_str()))
                .collect();
            if found.len() != 1 {
                violations.push(format!("{:?} was applied {} times", edit.wrote, found.len()));
            }
            if let Some((old, _)) = found.first()
                && !edit.forced
                && old.as_deref() != Some(edit.seen.as_str())
            {
                violations.push(format!(
                    "{:?} overwrote {old:?}, its device saw {:?}",
                    edit.wrote, edit.seen
                ));
            }
        }
        for (_, new) in &history {
            let count = history.iter().filter(|(_, other)| other == new).count();
            if count > 1 {
                violations.push(format!("{new:?} was written {count} times"));
            }
        }
        let kept = self
            .psql
            .query(
                "SELECT coalesce(client_version ->> 'content', client_version -> 'row' ->> 'title'),
                        coalesce(server_version ->> 'content', server_version ->> 'title'), device_id
                 FROM tenant_acme.message_conflicts",
                &[],
            )
            .await
            .unwrap();
        let kept: Vec<(Option<String>, Option<String>)> = kept.iter().map(|row| (row.get(0), row.get(1))).collect();
        for text in &self.contested {
            if !kept.iter().any(|(client, _)| client.as_deref() == Some(text.as_str())) {
                violations.push(format!("the contested {text:?} was not kept"));
            }
        }
        for edit in applied.iter().filter(|edit| edit.forced) {
            if !kept
                .iter()
                .any(|(client, _)| client.as_deref() == Some(edit.wrote.as_str()))
            {
                violations.push(format!("{:?} won a conflict that was not kept", edit.wrote));
            }
        }
        self.violations.extend(violations);
    }
}

/// An office with the phones of the model, and a history of all texts outside of the published schemas.
async fn stage(strategy: ConflictStrategy) -> Office {
    let office = office(strategy).await;
    office
        .sql(
            "CREATE TABLE public.texts (old_text text, new_text text);
             CREATE FUNCTION public.note_message() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF TG_OP = 'INSERT' OR NEW.content IS DISTINCT FROM OLD.content THEN
                     INSERT INTO public.texts VALUES (CASE WHEN TG_OP = 'UPDATE' THEN OLD.content END, NEW.content);
                 END IF;
                 RETURN NULL;
             END $$;
             CREATE FUNCTION public.note_task() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF TG_OP = 'INSERT' OR NEW.title IS DISTINCT FROM OLD.title THEN
                     INSERT INTO public.texts VALUES (CASE WHEN TG_OP = 'UPDATE' THEN OLD.title END, NEW.title);
                 END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON tenant_acme.messages
                 FOR EACH ROW EXECUTE FUNCTION public.note_message();
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON tenant_acme.tasks
                 FOR EACH ROW EXECUTE FUNCTION public.note_task();",
        )
        .await;
    office.world.user("acme", "sally", UserType::Mobile).await;
    office
}

/// Runs stories until one breaks a promise; gives the first violation.
async fn stories(office: &Office, seed: u64, cases: usize) -> Option<String> {
    let sally: Uuid = office
        .world
        .psql()
        .await
        .query_one("SELECT id FROM tenant_acme.users WHERE username = 'sally'", &[])
        .await
        .unwrap()
        .get(0);
    let next = Arc::new(AtomicUsize::new(0));
    let worker = |worker: usize| {
        let next = next.clone();
        async move {
            let psql = office.world.psql().await;
            let mut phones = Vec::new();
            for (device, owner) in OWNERS.iter().enumerate() {
                let user = if *owner == 0 { office.joe_id } else { sally };
                let id = format!("w{worker}d{device}");
                phones.push(office.bob.enroll(&id, Some(&user.to_string())).await.0);
            }
            let mut last_seq = vec![0; OWNERS.len()];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= cases {
                    return None;
                }
                let devices = last_seq.iter().map(|&seq| Device {
                    next_seq: seq,
                    acked: seq,
                    ..Device::default()
                });
                let mut story = Story {
                    office,
                    psql: &psql,
                    random: Random::new(seed.wrapping_add(number as u64)),
                    number,
                    phones: phones.clone(),
                    devices: devices.collect(),
                    backups: vec![None; OWNERS.len()],
                    late: vec![None; OWNERS.len()],
                    rows: Vec::new(),
                    texts: 0,
                    applied: Vec::new(),
                    contested: Vec::new(),
                    violations: Vec::new(),
                };
                story.run().await;
                if let Some(violation) = story.violations.first() {
                    return Some(format!("story {number} of seed {seed}: {violation}"));
                }
                for (device, seq) in last_seq.iter_mut().enumerate() {
                    let row = psql
                        .query_opt(
                            "SELECT last_seq FROM posduif.upload_devices WHERE tenant = 'acme' AND device_id = $1",
                            &[&format!("w{worker}d{device}")],
                        )
                        .await
                        .unwrap();
                    *seq = row.map_or(0, |row| row.get(0));
                }
            }
        }
    };
    let found = futures_util::future::join_all((0..WORKERS).map(worker)).await;
    found.into_iter().flatten().next()
}

fn cases() -> usize {
    std::env::var("POSDUIF_ONCE_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(CASES)
}

#[tokio::test]
async fn uploads_apply_once_and_lose_nothing_under_manual_resolution() {
    let office = stage(ConflictStrategy::Manual).await;
    assert_eq!(stories(&office, 1, cases() / 2).await, None);
    office.close().await;
}

#[tokio::test]
async fn uploads_apply_once_and_lose_nothing_under_last_write_wins() {
    let office = stage(ConflictStrategy::LastWriteWins).await;
    assert_eq!(stories(&office, 1_000_000, cases() / 2).await, None);
    office.close().await;
}

/// Faults for the functions in the tenant's schema: what is replaced by what.
const FAULTS: [(&str, &str, &str, &str); 7] = [
    (
        "guessed base",
        "upload_items",
        "base := (basis ->> 'version')::bigint",
        "base := NULL; entry := entry || '{\"force\": true}'",
    ),
    (
        "failed base ignored",
        "upload_items",
        "outcome.code := 'DEPENDS_ON_FAILED'",
        "outcome.status := NULL",
    ),
    (
        "repeat applied again",
        "upload_items",
        "known := least(expected - first_seq, cardinality(digests))",
        "known := 0; DELETE FROM posduif.upload_results",
    ),
    (
        "results forgotten",
        "upload_items",
        "greatest(least(acked_seq, last_seq - kept_items), last_seq - kept_items_max)",
        "last_seq",
    ),
    (
        "conflict not kept",
        "upload_message",
        "RETURNING c.id INTO outcome.conflict_id;",
        "RETURNING c.id INTO outcome.conflict_id; DELETE FROM tenant_acme.message_conflicts;",
    ),
    (
        "old base accepted",
        "upload_row",
        "base < outcome.version AND NOT is_mergeable",
        "false",
    ),
    (
        "digest not compared",
        "upload_items",
        "IS DISTINCT FROM digests[n]",
        "IS NULL",
    ),
];

#[tokio::test]
async fn model_of_uploads_finds_each_seeded_fault() {
    let check = |(name, function, from, to): (&'static str, &'static str, &'static str, &'static str)| async move {
        let office = stage(ConflictStrategy::Manual).await;
        let psql = office.world.psql().await;
        let source: String = psql
            .query_one("SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'tenant_acme'::regnamespace AND proname = $1", &[&function])
            .await
            .unwrap()
            .get(0);
        assert!(source.contains(from), "{name}: the function {function} has no {from:?}");
        psql.batch_execute(&source.replace(from, to)).await.unwrap();
        let found = stories(&office, 7, 400).await;
        office.close().await;
        (name, found)
    };
    for pair in FAULTS.chunks(2) {
        for (name, found) in futures_util::future::join_all(pair.iter().copied().map(check)).await {
            assert!(found.is_some(), "the model does not find: {name}");
        }
    }
}
