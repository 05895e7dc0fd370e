//! Rows that are shared by membership: what members receive, from when to when, and what they may write.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::contract::members::{GROUPS_MAX, Members};
use posduif::engine::Role;
use posduif::postgres::tenants;
use posduif::redis::reading::Read;
use posduif::redis::store::Store;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::TIMEOUT;
use crate::support::command::posduif_says;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::random::Random;

pub(crate) const TABLES: &str = "
CREATE TABLE tenant_acme.lists (id bigint PRIMARY KEY, title text NOT NULL, deleted_at timestamptz);
CREATE TABLE tenant_acme.list_members (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, list_id bigint NOT NULL, user_id uuid NOT NULL,
    deleted_at timestamptz, UNIQUE (list_id, user_id)
);
CREATE TABLE tenant_acme.tasks (
    id bigint PRIMARY KEY, list_id bigint, assignee_id uuid, title text NOT NULL, version bigint NOT NULL DEFAULT 1
);
ALTER TABLE tenant_acme.lists REPLICA IDENTITY FULL;
ALTER TABLE tenant_acme.list_members REPLICA IDENTITY FULL;
ALTER TABLE tenant_acme.tasks REPLICA IDENTITY FULL;";

pub(crate) fn configure(config: &mut Config) {
    config.groups = serde_json::from_value(json!({
        "list": {"table": "list_members", "id": "list_id", "user": "user_id"},
    }))
    .unwrap();
    config.routes = serde_json::from_value(json!([
        {"table": "lists", "to": [{"list": "id"}], "event": "list_changed"},
        {"table": "tasks", "to": [{"list": "list_id"}, "assignee_id"], "event": "task_changed",
         "upload": {"by": {"list": "list_id"}, "columns": ["list_id", "title", "assignee_id"]}},
    ]))
    .unwrap();
}

/// An office with lists and tasks.
async fn office() -> Office {
    let office = Office::with(configure).await;
    office.sql(TABLES).await;
    office
}

/// A device that keeps rows by whom they are seen, as docs/sync-protocol.md says.
pub(crate) struct Device {
    pub(crate) api: Api,
    user: Uuid,
    cursor: Option<String>,
    /// By table and id: the row, by whom it is seen, and whether it is older than the snapshot that comes.
    rows: BTreeMap<(String, String), (Value, Vec<String>, bool)>,
    groups: BTreeSet<String>,
    /// What the batches were: `reset`, and the groups of which they brought the rows.
    log: Vec<String>,
}

impl Device {
    async fn of(office: &Office, name: &str, user: Uuid) -> Self {
        Self::new(&office.bob, name, user).await
    }

    /// One that a web user enrolls.
    pub(crate) async fn new(web: &Api, name: &str, user: Uuid) -> Self {
        Self {
            api: web.enroll(name, Some(&user.to_string())).await.0,
            user,
            cursor: None,
            rows: BTreeMap::new(),
            groups: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    fn sees(&self, via: &[String]) -> bool {
        let own = format!("user:{}", self.user);
        via.iter()
            .any(|audience| *audience == own || audience == "tenant" || self.groups.contains(audience))
    }

    async fn page(&mut self, limit: usize) -> bool {
        self.try_page(limit).await.expect("a batch")
    }

    /// Takes a batch; whether there is more. `None` when the server has none now.
    pub(crate) async fn try_page(&mut self, limit: usize) -> Option<bool> {
        let cursor = self
            .cursor
            .as_ref()
            .map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let answer = self.api.get(&format!("/api/sync/incoming?limit={limit}{cursor}")).await;
        if answer.status == 503 {
            return None;
        }
        let batch = answer.expect(200);
        if batch["reset"] == true {
            self.log.push("reset".into());
            self.rows.values_mut().for_each(|row| row.2 = true);
            self.groups.clear();
        }
        self.log.extend(batch["scope"].as_str().map(str::to_owned));
        for change in batch["changes"].as_array().unwrap() {
            let text = |name: &str| change[name].as_str().unwrap_or_default().to_owned();
            let group = format!("{}:{}", text("group"), text("id"));
            let key = (text("table"), text("id"));
            match text("op").as_str() {
                "join" if self.groups.insert(group.clone()) && batch["reset"] != true => {
                    let audiences = self.rows.values_mut().map(|row| &mut row.1);
                    audiences.for_each(|via| via.retain(|audience| *audience != group));
                }
                "leave" => {
                    self.groups.remove(&group);
                    let rows = std::mem::take(&mut self.rows);
                    self.rows = rows.into_iter().filter(|(_, (_, via, _))| self.sees(via)).collect();
                }
                "insert" | "update" if ["lists", "tasks"].contains(&key.0.as_str()) => {
                    let via: Vec<String> = serde_json::from_value(change["via"].clone()).unwrap();
                    if self.sees(&via) {
                        self.rows.insert(key, (change["row"].clone(), via, false));
                    } else {
                        self.rows.remove(&key);
                    }
                }
                "delete" => {
                    self.rows.remove(&key);
                }
                _ => {}
            }
        }
        self.cursor = batch["cursor"].as_str().map(str::to_owned);
        let has_more = batch["has_more"] == true;
        if !has_more {
            self.rows.retain(|_, row| !row.2);
        }
        Some(has_more)
    }

    /// What the user sees: table, id and title.
    fn shown(&self) -> BTreeSet<(String, String, String)> {
        let rows = self.rows.iter();
        rows.map(|((table, id), (row, ..))| (table.clone(), id.clone(), row["title"].as_str().unwrap().to_owned()))
            .collect()
    }

    /// Of how many groups the user is a member.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Syncs to the end.
    pub(crate) async fn sync(&mut self) {
        while self.page(100).await {}
    }

    /// The titles that the user sees, in the order of tables and ids.
    pub(crate) fn titles(&self) -> Vec<String> {
        let titles = self
            .rows
            .values()
            .map(|(row, ..)| row["title"].as_str().unwrap().to_owned());
        titles.collect()
    }

    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

async fn join(office: &Office, list: i64, user: Uuid) {
    let row = format!("INSERT INTO tenant_acme.list_members (list_id, user_id) VALUES ({list}, '{user}')");
    office.sql(&row).await;
}

async fn leave(office: &Office, list: i64, user: Uuid) {
    office
        .sql(&format!(
            "DELETE FROM tenant_acme.list_members WHERE (list_id, user_id) = ({list}, '{user}')"
        ))
        .await;
}

async fn write(office: &Office, statement: &str) {
    office.sql(&format!("SET search_path = tenant_acme; {statement}")).await;
}

#[tokio::test]
async fn members_receive_rows_from_join_to_leave() {
    let office = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    let mut sally = Device::of(&office, "sallys", sally_id).await;
    write(
        &office,
        "INSERT INTO lists VALUES (1, 'garden'), (2, 'cellar');
         INSERT INTO tasks VALUES (1, 1, NULL, 'dig'), (2, 2, NULL, 'sweep')",
    )
    .await;
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    sally.sync().await;
    assert_eq!(
        (joe.titles(), sally.titles()),
        (vec!["garden".into(), "dig".into()], vec![])
    );
    assert_eq!(
        (joe.take_log(), sally.take_log()),
        (vec!["reset".to_owned()], vec!["reset".to_owned()])
    );

    // A member receives what is written, and one who joins what was there before.
    write(&office, "INSERT INTO tasks VALUES (3, 1, NULL, 'plant')").await;
    join(&office, 1, sally_id).await;
    write(&office, "UPDATE tasks SET title = 'dig deeper' WHERE id = 1").await;
    office.world.published().await;
    joe.sync().await;
    sally.sync().await;
    let garden = ["garden", "dig deeper", "plant"].map(str::to_owned).to_vec();
    assert_eq!((joe.titles(), sally.titles()), (garden.clone(), garden.clone()));
    assert_eq!((joe.take_log(), sally.take_log()), (vec![], vec!["list:1".to_owned()]));

    // One who leaves loses the rows, and nothing of later arrives.
    leave(&office, 1, office.joe_id).await;
    write(&office, "INSERT INTO tasks VALUES (4, 1, NULL, 'secret')").await;
    office.world.published().await;
    joe.sync().await;
    sally.sync().await;
    assert_eq!(joe.titles(), [""; 0]);
    assert_eq!(sally.titles().last().map(String::as_str), Some("secret"));

    // A row that moves to another list is gone for those who see that list not.
    join(&office, 2, office.joe_id).await;
    write(&office, "UPDATE tasks SET list_id = 2 WHERE id = 3").await;
    office.world.published().await;
    joe.sync().await;
    sally.sync().await;
    assert_eq!(joe.titles(), ["cellar", "sweep", "plant"]);
    assert_eq!(sally.titles(), ["garden", "dig deeper", "secret"]);

    // A row that is seen in two ways stays until the last of them ends.
    write(
        &office,
        &format!("UPDATE tasks SET assignee_id = '{}' WHERE id = 3", office.joe_id),
    )
    .await;
    office.world.published().await;
    joe.sync().await;
    leave(&office, 2, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    assert_eq!(joe.titles(), ["plant"]);
    write(&office, "UPDATE tasks SET assignee_id = NULL WHERE id = 3").await;
    office.world.published().await;
    joe.sync().await;
    assert_eq!(joe.titles(), [""; 0]);
    assert_eq!(joe.take_log(), ["list:2"]);
    office.close().await;
}

#[tokio::test]
async fn row_that_left_a_group_before_the_join_is_not_sent() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    write(&office, "INSERT INTO tasks VALUES (1, 1, NULL, 'ours')").await;
    office.world.published().await;
    joe.sync().await;
    // The task is in list 2 for a while, of which joe becomes a member later.
    write(&office, "UPDATE tasks SET list_id = 2, title = 'theirs' WHERE id = 1").await;
    write(&office, "UPDATE tasks SET list_id = 3 WHERE id = 1").await;
    join(&office, 2, office.joe_id).await;
    office.world.published().await;
    let (pages, _) = joe.api.sync(joe.cursor.as_deref()).await;
    let changes = pages.iter().flat_map(|page| page["changes"].as_array().unwrap());
    let tasks: Vec<_> = changes
        .filter(|change| change["table"] == "tasks")
        .map(|change| (change["op"].clone(), change["row"].clone()))
        .collect();
    assert_eq!(tasks, [(json!("delete"), Value::Null)]);
    office.close().await;
}

#[tokio::test]
async fn one_commit_adds_one_entry_however_many_members_there_are() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    for number in 0..5 {
        let user = office
            .world
            .user("acme", &format!("member{number}"), UserType::Mobile)
            .await;
        join(&office, 1, user).await;
    }
    office.world.published().await;
    joe.sync().await;
    write(&office, "INSERT INTO tasks VALUES (1, 1, NULL, 'dig')").await;
    office.world.published().await;
    let keys = office.world.keys();
    let group = "list:1".parse().unwrap();
    let entries = office.world.stream(&keys.group("acme", &group)).await;
    let tasks = entries.iter().filter(|entry| entry.field("op") == "insert").count();
    assert_eq!(tasks, 1);
    let inbox = office
        .world
        .stream(&keys.inbox("acme", &office.joe_id.to_string()))
        .await;
    assert!(
        inbox
            .iter()
            .all(|entry| entry.field("op") != "insert" || entry.field("table") != "tasks")
    );
    joe.sync().await;
    assert_eq!(joe.titles(), ["dig"]);
    office.close().await;
}

#[tokio::test]
async fn devices_recover_from_lost_streams_and_memberships() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    write(&office, "INSERT INTO lists VALUES (1, 'garden')").await;
    office.world.published().await;
    joe.sync().await;
    assert_eq!(joe.take_log(), ["reset"]);
    let keys = office.world.keys();
    let (stream, members) = (
        keys.group("acme", &"list:1".parse().unwrap()),
        keys.members("acme", &office.joe_id.to_string()),
    );
    for (number, key) in [stream, members].into_iter().enumerate() {
        let () = office.world.ask_redis(&["DEL", &key]).await;
        write(
            &office,
            &format!("INSERT INTO tasks VALUES ({number}, 1, NULL, 'task {number}')"),
        )
        .await;
        office.world.published().await;
        joe.sync().await;
        assert_eq!(
            (joe.take_log(), joe.titles().len()),
            (vec!["reset".to_owned()], number + 2)
        );
        // From then on the stream has it all again.
        write(&office, &format!("UPDATE lists SET title = 'garden {number}'")).await;
        office.world.published().await;
        joe.sync().await;
        assert_eq!(
            (joe.take_log(), &joe.titles()[0]),
            (vec![], &format!("garden {number}"))
        );
    }
    let database = office.world.database().await;
    tenants::resync(&database, "acme").await.unwrap();
    leave(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    assert_eq!((joe.take_log(), joe.titles().len()), (vec!["reset".to_owned()], 0));
    office.close().await;
}

#[tokio::test]
async fn truncated_table_of_members_ends_all_memberships() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    write(&office, "INSERT INTO lists VALUES (1, 'garden')").await;
    office.world.published().await;
    joe.sync().await;
    write(&office, "TRUNCATE list_members").await;
    write(&office, "INSERT INTO tasks VALUES (1, 1, NULL, 'secret')").await;
    office.world.published().await;
    joe.sync().await;
    assert_eq!(joe.titles(), [""; 0]);
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    assert_eq!(joe.titles(), ["garden", "secret"]);
    office.close().await;
}

#[tokio::test]
async fn truncated_table_of_members_ends_live_events() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    let mut events = joe.api.events("/sse/mobile/joes").await;
    write(&office, "TRUNCATE list_members").await;
    events.expect("reset").await;
    events.expect("sync_required").await;
    let bell = json!({"rings": 1});
    office.world.emit("bell", &json!({"list": "1"}), &bell).await;
    office.send("hello").await;
    assert_eq!(events.next().await.map(|event| event.name).as_deref(), Some("message"));
    // Who joins again receives it again, without another connection.
    join(&office, 1, office.joe_id).await;
    events.expect("group_joined").await;
    office.world.emit("bell", &json!({"list": "1"}), &bell).await;
    events.expect("bell").await;
    office.close().await;
}

#[tokio::test]
async fn connected_member_receives_events_of_the_group_in_a_new_epoch() {
    let office = office().await;
    let (phone, page) = (
        Device::of(&office, "joes", office.joe_id).await,
        format!("/sse/web/{}", office.bob_id),
    );
    join(&office, 1, office.joe_id).await;
    join(&office, 1, office.bob_id).await;
    office.world.published().await;
    let mut readers = [
        phone.api.events("/sse/mobile/joes").await,
        office.bob.events(&page).await,
    ];
    let _: i64 = office
        .world
        .ask_redis(&["DEL", &office.world.keys().checkpoint()])
        .await;
    for events in &mut readers {
        events.expect("reset").await;
    }
    // No device has taken a snapshot, and none has connected again.
    write(&office, "INSERT INTO tasks VALUES (1, 1, NULL, 'dig')").await;
    for events in &mut readers {
        assert_eq!(events.expect("task_changed").await.data["id"], "1");
    }
    office.close().await;
}

#[tokio::test]
async fn membership_that_moves_is_announced_as_left_and_joined() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    let mut events = joe.api.events("/sse/mobile/joes").await;
    let before = events.cursor.clone();
    write(&office, "UPDATE list_members SET list_id = 2").await;
    let mut again = None;
    for _ in 0..2 {
        let events = again.as_mut().unwrap_or(&mut events);
        let [left, joined] = ["group_left", "group_joined"];
        assert_eq!(events.expect(left).await.data["id"], "1");
        assert_eq!(events.expect(joined).await.data["id"], "2");
        // The same for a reader who was away.
        let late = joe.api.with("last-event-id", &before).events("/sse/mobile/joes").await;
        again = Some(late);
    }
    write(
        &office,
        "INSERT INTO tasks VALUES (1, 1, NULL, 'theirs'), (2, 2, NULL, 'ours')",
    )
    .await;
    assert_eq!(events.expect("task_changed").await.data["id"], "2");
    office.close().await;
}

#[tokio::test]
async fn large_group_arrives_in_pages() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    joe.sync().await;
    write(
        &office,
        "INSERT INTO lists VALUES (1, 'list'); INSERT INTO tasks SELECT n, 1, NULL, 'task' FROM generate_series(1, 45) n",
    )
    .await;
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.take_log();
    let mut pages = 0;
    while joe.page(10).await {
        pages += 1;
        // What happens meanwhile is not lost.
        write(
            &office,
            &format!("UPDATE tasks SET title = 'changed' WHERE id = {}", 46 - pages),
        )
        .await;
        write(&office, &format!("DELETE FROM tasks WHERE id = {pages}")).await;
    }
    office.world.published().await;
    joe.sync().await;
    let (found, changed) = (
        joe.titles(),
        joe.titles().iter().filter(|title| *title == "changed").count(),
    );
    assert!(pages >= 5, "{pages} pages");
    assert_eq!((found.len(), changed), (46 - pages, pages));
    assert!(joe.take_log().iter().all(|page| page == "list:1"));
    office.close().await;
}

#[tokio::test]
async fn members_write_rows_of_their_groups_only() {
    let office = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    join(&office, 2, office.joe_id).await;
    join(&office, 3, sally_id).await;
    write(
        &office,
        "INSERT INTO tasks VALUES (1, 1, NULL, 'ours'), (3, 3, NULL, 'theirs')",
    )
    .await;
    let mut seq = 0;
    let mut upload = async |op: &str, id: i64, row: Value, base: Option<i64>| {
        seq += 1;
        let item = json!({"seq": seq, "table": "tasks", "op": op, "id": id, "row": row, "base_version": base});
        let body = json!({"items": [item], "acked_seq": seq - 1});
        let answer = joe.api.post("/api/sync/outgoing", &body).await.expect(200);
        let result = &answer["results"][0];
        (
            result["status"].as_str().unwrap().to_owned(),
            result["code"].clone(),
            result["version"].clone(),
        )
    };
    let applied = |version: Value| ("applied".to_owned(), Value::Null, version);
    let forbidden = || ("rejected".to_owned(), json!("FORBIDDEN"), Value::Null);
    assert_eq!(
        upload("create", 10, json!({"title": "new", "list_id": 1}), None).await,
        applied(json!(1))
    );
    assert_eq!(
        upload("edit", 1, json!({"title": "edited"}), Some(1)).await,
        applied(json!(2))
    );
    assert_eq!(
        upload("edit", 1, json!({"list_id": 2}), Some(2)).await,
        applied(json!(3))
    );
    // Not into or out of another's list, and not without one.
    assert_eq!(
        upload("create", 11, json!({"title": "spam", "list_id": 3}), None).await,
        forbidden()
    );
    assert_eq!(
        upload("create", 12, json!({"title": "without a list"}), None).await,
        forbidden()
    );
    assert_eq!(upload("edit", 1, json!({"list_id": 3}), Some(3)).await, forbidden());
    assert_eq!(upload("edit", 3, json!({"title": "mine"}), Some(1)).await, forbidden());
    assert_eq!(upload("delete", 3, json!({}), Some(1)).await, forbidden());
    leave(&office, 2, office.joe_id).await;
    assert_eq!(upload("delete", 1, json!({}), Some(3)).await, forbidden());
    assert_eq!(upload("delete", 10, json!({}), Some(1)).await, applied(Value::Null));
    let psql = office.world.psql().await;
    let rows = psql
        .query("SELECT id, title FROM tenant_acme.tasks ORDER BY id", &[])
        .await
        .unwrap();
    let rows: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [(1, "edited".into()), (3, "theirs".into())]);
    office.close().await;
}

#[tokio::test]
async fn connected_members_receive_events_until_they_leave() {
    let office = office().await;
    let joe = Device::of(&office, "joes", office.joe_id).await;
    let mut events = joe.api.events("/sse/mobile/joes").await;
    join(&office, 1, office.joe_id).await;
    let joined = events.expect("group_joined").await;
    assert_eq!(
        (&joined.data["group"], &joined.data["id"]),
        (&json!("list"), &json!("1"))
    );
    write(&office, "INSERT INTO tasks VALUES (1, 1, NULL, 'dig')").await;
    assert_eq!(events.expect("task_changed").await.data["id"], "1");
    leave(&office, 1, office.joe_id).await;
    events.expect("group_left").await;
    // The next event is one of another kind.
    write(&office, "INSERT INTO tasks VALUES (2, 1, NULL, 'secret')").await;
    office.send("hello").await;
    assert_eq!(events.next().await.map(|event| event.name).as_deref(), Some("message"));
    drop(events);

    // A member who connects receives what follows, and on another connection what was missed.
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    let mut events = joe.api.events("/sse/mobile/joes").await;
    let place = events.cursor.clone();
    write(&office, "UPDATE tasks SET title = 'dig more' WHERE id = 1").await;
    assert_eq!(events.expect("task_changed").await.data["op"], "update");
    drop(events);
    let mut again = joe.api.with("last-event-id", &place).events("/sse/mobile/joes").await;
    assert_eq!(again.expect("task_changed").await.data["id"], "1");
    office.close().await;
}

#[tokio::test]
async fn outbox_messages_reach_the_members_of_a_group() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    join(&office, 1, office.joe_id).await;
    office.world.published().await;
    joe.sync().await;
    let mut events = joe.api.events("/sse/mobile/joes").await;
    office
        .world
        .emit("bell", &json!({"list": "2"}), &json!({"rings": 1}))
        .await;
    office
        .world
        .emit("bell", &json!({"list": "1"}), &json!({"rings": 2}))
        .await;
    assert_eq!(events.expect("bell").await.data["data"]["rings"], 2);
    office.close().await;
}

#[tokio::test]
async fn pages_read_rows_of_their_lists() {
    let office = office().await;
    join(&office, 1, office.bob_id).await;
    write(
        &office,
        "INSERT INTO tasks VALUES (1, 1, NULL, 'ours'), (2, 2, NULL, 'theirs')",
    )
    .await;
    let page = office.bob.get("/api/tables/tasks").await.expect(200);
    let titles: Vec<&str> = page["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["title"].as_str())
        .collect();
    assert_eq!(titles, ["ours"]);
    office.bob.get("/api/tables/tasks/1").await.expect(200);
    office.bob.get("/api/tables/tasks/2").await.expect(404);
    office.close().await;
}

/// A member is removed while rows are written, and while two nodes serve polls and live streams.
#[tokio::test]
async fn user_of_too_many_groups_is_refused_until_memberships_end() {
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    joe.sync().await;
    let key = office.world.keys().members("acme", &office.joe_id.to_string());
    let join_all = async |from: usize, to: usize| {
        let rows = format!(
            "INSERT INTO list_members (list_id, user_id) SELECT n, '{}' FROM generate_series({from}, {to}) n",
            office.joe_id
        );
        write(&office, &rows).await;
        office.world.published().await;
    };
    let groups = async || {
        let fields: HashMap<String, String> = office.world.ask_redis(&["HGETALL", &key]).await;
        Members::parse(&fields).groups.len()
    };
    join_all(1, GROUPS_MAX).await;
    assert_eq!(groups().await, GROUPS_MAX);
    joe.page(10).await;
    // One more than allowed, and as many as a client likes.
    let path = format!("/api/sync/incoming?cursor={}", joe.cursor.as_ref().unwrap());
    for (from, to) in [(GROUPS_MAX + 1, GROUPS_MAX + 1), (GROUPS_MAX + 2, 3 * GROUPS_MAX)] {
        join_all(from, to).await;
        assert!(groups().await <= GROUPS_MAX);
        assert_refused(&joe.api.get(&path).await, 503, "SYNC_ERROR");
    }
    write(&office, "DELETE FROM list_members WHERE list_id > 3").await;
    office.world.published().await;
    assert!(groups().await <= GROUPS_MAX);
    joe.take_log();
    joe.sync().await;
    assert_eq!((joe.take_log(), joe.groups.len()), (vec!["reset".to_owned()], 3));

    // A hash of too many, which an earlier version has written, is not used.
    let names: Vec<String> = (0..=GROUPS_MAX).map(|n| format!("list:other{n}")).collect();
    let fields = names.iter().flat_map(|name| [name.as_str(), "1-1"]);
    let words: Vec<&str> = ["HSET", &key].into_iter().chain(fields).collect();
    let _: i64 = office.world.ask_redis(&words).await;
    joe.sync().await;
    assert_eq!((joe.take_log(), joe.groups.len()), (vec!["reset".to_owned()], 3));
    office.close().await;
}

#[tokio::test]
async fn reads_of_many_groups_have_no_more_entries_than_their_limit() {
    const LIMIT: usize = 20;
    let office = office().await;
    let mut joe = Device::of(&office, "joes", office.joe_id).await;
    let rows = format!(
        "INSERT INTO list_members (list_id, user_id) SELECT n, '{}' FROM generate_series(1, 50) n",
        office.joe_id
    );
    write(&office, &rows).await;
    office.world.published().await;
    joe.sync().await;
    let store = Store::with_groups(&office.world.config.redis, office.world.config.groups.clone()).unwrap();
    let mut place = store.standing("acme", office.joe_id).await.unwrap().place();
    // Some lists have one task, and one has as many as all others.
    write(
        &office,
        "INSERT INTO tasks SELECT n, CASE n % 2 WHEN 0 THEN 7 ELSE n % 50 + 1 END, NULL, n FROM generate_series(1, 200) n;
         INSERT INTO tasks SELECT n, n - 200, NULL, n FROM generate_series(201, 250) n",
    )
    .await;
    office.world.published().await;
    let (mut found, mut last): (Vec<u64>, u64) = (Vec::new(), 250);
    while found.len() < 300 {
        if last < 300 {
            let (first, next) = (last + 1, last + 10);
            let rows =
                format!("INSERT INTO tasks SELECT n, n % 50 + 1, NULL, n FROM generate_series({first}, {next}) n");
            write(&office, &rows).await;
            last = next;
        }
        let Read::Slice(slice) = store.read("acme", office.joe_id, place, LIMIT).await.unwrap() else {
            panic!("the streams reach back");
        };
        assert!(slice.entries.len() <= LIMIT, "{}", slice.entries.len());
        let rows = slice.entries.iter().filter_map(|entry| entry.row.as_ref());
        found.extend(rows.map(|row| {
            let row: Value = serde_json::from_slice(row.as_bytes()).unwrap();
            row["id"].as_u64().unwrap()
        }));
        assert_eq!(found, (1..=found.len() as u64).collect::<Vec<u64>>());
        if !slice.has_more && last == 300 {
            office.world.published().await;
        }
        place.position = slice.end;
    }
    let path = office.world.keys().group("acme", &"list:7".parse().unwrap());
    let before = joe.cursor.clone();
    while joe.page(LIMIT).await {}
    assert_eq!(joe.titles().len(), 300);
    assert_eq!(joe.shown(), truth(&office, office.joe_id).await);
    assert_eq!(joe.take_log(), ["reset"]);
    // One of the streams is lost.
    let () = office.world.ask_redis(&["DEL", &path]).await;
    joe.cursor = before;
    joe.sync().await;
    assert_eq!(joe.take_log(), ["reset"]);
    assert_eq!(joe.shown(), truth(&office, office.joe_id).await);
    office.close().await;
}

#[tokio::test]
async fn removed_member_receives_nothing_of_later_commits() {
    const ROUNDS: i64 = 60;
    let office = office().await;
    let other = office.world.engine(Role::Api).await;
    let joe = Device::of(&office, "joes", office.joe_id).await;
    let done = CancellationToken::new();
    let mut readers = tokio::task::JoinSet::new();
    for api in [joe.api.clone(), joe.api.at(&other.api())] {
        let (polling, stop) = (api.clone(), done.clone());
        readers.spawn(async move {
            let (mut seen, mut cursor) = (BTreeSet::new(), None::<String>);
            loop {
                let is_last = stop.is_cancelled();
                let (pages, next) = polling.sync(cursor.as_deref()).await;
                let changes = pages.iter().flat_map(|page| page["changes"].as_array().unwrap());
                let tasks = changes.filter(|change| change["table"] == "tasks" && change["op"] != "delete");
                seen.extend(tasks.map(|change| change["id"].as_str().unwrap().parse::<i64>().unwrap()));
                cursor = Some(next);
                if is_last {
                    return seen;
                }
            }
        });
        let (mut events, stop) = (api.events("/sse/mobile/joes").await, done.clone());
        readers.spawn(async move {
            let mut seen = BTreeSet::new();
            loop {
                tokio::select! {
                    event = events.next() => {
                        let event = event.expect("an open stream");
                        if event.name == "task_changed" {
                            seen.insert(event.data["id"].as_str().unwrap().parse().unwrap());
                        }
                    }
                    () = stop.cancelled() => return seen,
                }
            }
        });
    }
    for list in 1..=ROUNDS {
        join(&office, list, office.joe_id).await;
        write(
            &office,
            &format!("INSERT INTO tasks VALUES ({}, {list}, NULL, 'ours')", 2 * list),
        )
        .await;
        leave(&office, list, office.joe_id).await;
        write(
            &office,
            &format!("INSERT INTO tasks VALUES ({}, {list}, NULL, 'secret')", 2 * list + 1),
        )
        .await;
    }
    office.world.published().await;
    done.cancel();
    let mut received = 0;
    while let Some(seen) = readers.join_next().await {
        let seen: BTreeSet<i64> = seen.unwrap();
        let secret: Vec<&i64> = seen.iter().filter(|id| *id % 2 == 1).collect();
        assert!(secret.is_empty(), "received {secret:?}");
        received += seen.len();
    }
    assert!(received > 0, "the readers raced with nothing");
    other.stop().await;
    office.close().await;
}

/// What Postgres shows a user: table, id and title.
async fn truth(office: &Office, user: Uuid) -> BTreeSet<(String, String, String)> {
    let query = "
        WITH mine AS (SELECT list_id FROM tenant_acme.list_members WHERE user_id = $1 AND deleted_at IS NULL)
        SELECT 'lists', id::text, title FROM tenant_acme.lists WHERE deleted_at IS NULL AND id IN (TABLE mine)
        UNION ALL
        SELECT 'tasks', id::text, title FROM tenant_acme.tasks WHERE list_id IN (TABLE mine) OR assignee_id = $1";
    let rows = office.world.psql().await.query(query, &[&user]).await.unwrap();
    rows.iter()
        .map(|row| (row.get::<_, &str>(0).to_owned(), row.get(1), row.get(2)))
        .collect()
}

/// Random commits by SQL, in which users join, leave and return, and rows come, move and go.
async fn commit(random: &mut Random, office: &Office, users: &[Uuid]) {
    let mut statements = Vec::new();
    for _ in 0..=random.below(4) {
        let (list, task) = (1 + random.below(4), 1 + random.below(8));
        let user = users[random.below(users.len())];
        let assignee = if random.one_in(3) {
            format!("'{user}'")
        } else {
            "NULL".into()
        };
        let title = format!("'text {}'", random.next() % 100_000);
        statements.push(match random.below(11) {
            0 | 1 => format!("INSERT INTO list_members (list_id, user_id) VALUES ({list}, '{user}') ON CONFLICT (list_id, user_id) DO UPDATE SET deleted_at = NULL"),
            2 => format!("DELETE FROM list_members WHERE (list_id, user_id) = ({list}, '{user}')"),
            3 => format!("UPDATE list_members SET deleted_at = now() WHERE (list_id, user_id) = ({list}, '{user}')"),
            4 => format!("UPDATE list_members SET list_id = {list} WHERE user_id = '{user}' AND list_id = {} AND NOT EXISTS (SELECT FROM list_members o WHERE (o.list_id, o.user_id) = ({list}, '{user}'))", 1 + random.below(4)),
            5 => format!("INSERT INTO lists VALUES ({list}, {title}) ON CONFLICT (id) DO UPDATE SET title = excluded.title, deleted_at = NULL"),
            6 => format!("UPDATE lists SET deleted_at = now() WHERE id = {list}"),
            7 | 8 => format!("INSERT INTO tasks VALUES ({task}, {list}, {assignee}, {title}) ON CONFLICT (id) DO UPDATE SET list_id = {list}, title = excluded.title"),
            9 => format!("UPDATE tasks SET assignee_id = {assignee}, title = {title} WHERE id = {task}"),
            _ => format!("DELETE FROM tasks WHERE id = {task}"),
        });
    }
    let end = if random.one_in(8) { "ROLLBACK" } else { "COMMIT" };
    write(office, &format!("BEGIN; {}; {end}", statements.join("; "))).await;
}

#[tokio::test]
async fn devices_equal_postgres_after_any_history() {
    let seed = std::env::var("POSDUIF_GROUPS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(11);
    let rounds = std::env::var("POSDUIF_GROUPS_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(150);
    let mut random = Random::new(seed);
    let mut office = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let users = [office.joe_id, sally_id];
    let mut devices = Vec::new();
    for (name, user) in [("a", users[0]), ("b", users[0]), ("c", users[1])] {
        devices.push(Device::of(&office, name, user).await);
    }
    let (keys, database) = (office.world.keys(), office.world.database().await);
    for round in 0..rounds {
        for _ in 0..random.below(4) {
            commit(&mut random, &office, &users).await;
        }
        let user = users[random.below(users.len())].to_string();
        let list = format!("list:{}", 1 + random.below(4)).parse().unwrap();
        let lost = match random.below(40) {
            0 => Some(keys.members("acme", &user)),
            1 => Some(keys.group("acme", &list)),
            2 => Some(keys.inbox("acme", &user)),
            3 => Some(keys.meta("acme")),
            4 => Some(keys.checkpoint()),
            5 => {
                tenants::resync(&database, "acme").await.unwrap();
                None
            }
            6 => {
                write(&office, "TRUNCATE list_members").await;
                None
            }
            7 => {
                office.engine = {
                    let (world, engine) = (&office.world, office.engine);
                    engine.stop().await;
                    world.engine(Role::All).await
                };
                let address = office.engine.api();
                devices
                    .iter_mut()
                    .for_each(|device| device.api = device.api.at(&address));
                None
            }
            _ => None,
        };
        if let Some(key) = lost {
            let () = office.world.ask_redis(&["DEL", &key]).await;
        }
        // Some sync in part, before all is published.
        for device in &mut devices {
            let pages = random.below(3);
            let limit = 1 + random.below(5);
            for _ in 0..pages {
                device.try_page(limit).await;
            }
        }
        if random.one_in(4) || round + 1 == rounds {
            office.world.published().await;
            for device in &mut devices {
                let truth = truth(&office, device.user).await;
                // After a new epoch some requests are to be repeated.
                let converged = tokio::time::timeout(TIMEOUT, async {
                    while device.shown() != truth {
                        while device.try_page(1 + random.below(9)).await == Some(true) {}
                    }
                });
                if converged.await.is_err() {
                    panic!(
                        "seed {seed}, round {round}: {:?} instead of {truth:?}; {:?}",
                        device.shown(),
                        device.groups
                    );
                }
            }
        }
    }
    office.close().await;
}

#[tokio::test]
async fn operators_see_streams_of_groups_and_rebuild_them() {
    let office = office().await;
    let ann = office.world.user("acme", "ann", UserType::Mobile).await;
    let mut phone = Device::of(&office, "phone", ann).await;
    join(&office, 1, ann).await;
    join(&office, 2, ann).await;
    phone.sync().await;
    write(&office, "INSERT INTO lists VALUES (1, 'one'), (2, 'two')").await;
    write(
        &office,
        &format!("UPDATE lists SET title = '{}' WHERE id = 2", "x".repeat(20_000)),
    )
    .await;
    office.world.published().await;
    let list = posduif_says(&office.world, "stream list --json").await.json();
    let groups = &list["tenants"][0]["groups"];
    // Each began with a reset.
    assert_eq!(
        (&groups["count"], &groups["entries"]),
        (&json!(2), &json!(5)),
        "{groups}"
    );
    assert_eq!(
        (&groups["largest"]["group"], &groups["largest"]["entries"]),
        (&json!("list:2"), &json!(3))
    );
    assert!(groups["memory_bytes"].as_u64() > groups["largest"]["memory_bytes"].as_u64());
    let text = posduif_says(&office.world, "stream list").await.text();
    assert!(text.contains("2 groups") && text.contains("of list:2"), "{text}");
    let shown = posduif_says(&office.world, "tenant show acme --json").await.json();
    assert_eq!(shown["streams"]["groups"]["largest"], groups["largest"]);
    let text = posduif_says(&office.world, "tenant show acme").await.text();
    assert!(text.contains("the largest is list:2"), "{text}");

    phone.sync().await;
    let titles = phone.titles();
    phone.take_log();
    posduif_says(&office.world, "stream rebuild --tenant acme --yes")
        .await
        .text();
    phone.sync().await;
    assert_eq!((phone.take_log(), phone.titles()), (vec!["reset".to_owned()], titles));
    write(&office, "UPDATE lists SET title = 'three' WHERE id = 1").await;
    office.world.published().await;
    phone.sync().await;
    assert!(phone.take_log().is_empty() && phone.titles().contains(&"three".to_owned()));
    office.close().await;
}

#[tokio::test]
async fn memberships_of_a_dropped_tenant_are_not_those_of_the_next() {
    let office = office().await;
    let joe = office.joe_id;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.lists VALUES (42, 'of the former tenant'); \
             INSERT INTO tenant_acme.list_members (list_id, user_id) VALUES (42, '{joe}')"
        ))
        .await;
    let mut phone = Device::of(&office, "phone", joe).await;
    office.world.published().await;
    while phone.page(100).await {}
    assert!(phone.groups.contains("list:42"));

    // WHEN the next tenant of this name has the same user, as from a backup, who is a member of no list
    let database = office.world.database().await;
    tenants::drop(&database, "acme").await.unwrap();
    office.world.tenant("acme").await;
    office.world.user("acme", "bob", UserType::Web).await;
    office.sql(TABLES).await;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.users (id, username, user_type) VALUES ('{joe}', 'joe', 'mobile'); \
             INSERT INTO tenant_acme.lists VALUES (42, 'of the next tenant')"
        ))
        .await;
    office.world.published().await;
    let bob = office.anybody.log_in("acme", "bob").await;
    let mut phone = Device::new(&bob, "phone", joe).await;
    while phone.page(100).await {}
    office
        .sql("INSERT INTO tenant_acme.tasks VALUES (1, 42, NULL, 'of the next tenant')")
        .await;
    office.world.published().await;
    while phone.page(100).await {}
    // THEN the user receives nothing of it
    assert!(phone.groups.is_empty(), "{:?}", phone.groups);
    assert!(phone.rows.is_empty(), "{:?}", phone.rows);
    office.close().await;
}
