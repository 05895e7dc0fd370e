//! Tables of an existing application, in a schema of its own with the rows of all tenants: what each tenant's devices receive
//! and may write, and what happens where the log does not have whose a row was.

use std::collections::{BTreeMap, BTreeSet};

use posduif::accounts::users::UserType;
use posduif::admin::doctor;
use posduif::admin::status::EngineUrls;
use posduif::config::Config;
use posduif::engine::Role;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::support::command::{posduif_in, run};
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::owner::Owner;
use crate::support::random::Random;
use crate::support::scrape::Scrape;
use crate::support::{Entry, World, eventually};

/// The application's tables, which are older than Posduif. The lists of two organisations may have the same id.
const APP: &str = "
CREATE TABLE public.lists (org_id bigint NOT NULL, id text NOT NULL, title text NOT NULL, PRIMARY KEY (org_id, id));
CREATE TABLE public.list_members (
    org_id bigint NOT NULL, list_id text NOT NULL, user_id uuid NOT NULL, PRIMARY KEY (org_id, list_id, user_id)
);
CREATE TABLE public.tasks (
    id bigint PRIMARY KEY, org_id bigint, list_id text, assignee_id uuid, title text NOT NULL,
    version bigint NOT NULL DEFAULT 1
);";

fn tenants() -> Value {
    json!({"column": "org_id", "tenants": {"1": "acme", "2": "globex"}})
}

fn configure(config: &mut Config) {
    config.groups = serde_json::from_value(json!({
        "list": {"schema": "public", "table": "list_members", "tenant": tenants(), "id": "list_id", "user": "user_id"},
    }))
    .unwrap();
    config.routes = serde_json::from_value(json!([
        {"schema": "public", "table": "lists", "tenant": tenants(), "to": [{"list": "id"}], "event": "list_changed"},
        {"schema": "public", "table": "tasks", "tenant": tenants(), "to": [{"list": "list_id"}, "assignee_id"],
         "event": "task_changed",
         "upload": {"owner": "assignee_id", "by": {"list": "list_id"}, "columns": ["list_id", "title"]}},
    ]))
    .unwrap();
}

fn watched(config: &mut Config) {
    configure(config);
    config.replication.catalog_interval_seconds = 1;
}

/// The organisations `acme` (1) with joe, and `globex` (2) with gina. Bob is the admin of both.
struct Orgs {
    office: Office,
    globex: Api,
    gina_id: Uuid,
}

impl Orgs {
    async fn open() -> Self {
        Self::with(configure).await
    }

    async fn with(change: fn(&mut Config)) -> Self {
        let world = World::new().await;
        world.psql().await.batch_execute(APP).await.unwrap();
        Self::within(world, change).await
    }

    async fn within(world: World, change: fn(&mut Config)) -> Self {
        let office = Office::within(world, change).await;
        office.world.tenant("globex").await;
        office.world.user("globex", "bob", UserType::Web).await;
        let gina_id = office.world.user("globex", "gina", UserType::Mobile).await;
        office.world.published().await;
        let globex = office.anybody.log_in("globex", "bob").await;
        Self {
            office,
            globex,
            gina_id,
        }
    }

    async fn joe(&self, device: &str) -> Device {
        let joe = self.office.joe_id;
        Device::new(self.office.bob.enroll(device, Some(&joe.to_string())).await.0, joe).await
    }

    async fn gina(&self, device: &str) -> Device {
        let gina = self.gina_id;
        Device::new(self.globex.enroll(device, Some(&gina.to_string())).await.0, gina).await
    }

    async fn sql(&self, statement: &str) {
        self.office.sql(statement).await;
    }

    async fn close(self) {
        self.office.close().await;
    }

    async fn quarantine(&self, tenant: &str) -> Vec<Entry> {
        let world = &self.office.world;
        world.published().await;
        world.stream(&world.keys().quarantine(tenant)).await
    }
}

/// A table and the id of a row.
type Key = (String, String);

/// A device that keeps rows by whom they are seen.
struct Device {
    api: Api,
    user: Uuid,
    cursor: Option<String>,
    rows: BTreeMap<Key, (Value, Option<Vec<String>>)>,
    groups: BTreeSet<String>,
    snapshots: usize,
    /// All bodies of its batches, as text.
    seen: String,
}

impl Device {
    async fn new(api: Api, user: Uuid) -> Self {
        let mut device = Self {
            api,
            user,
            cursor: None,
            rows: BTreeMap::new(),
            groups: BTreeSet::new(),
            snapshots: 0,
            seen: String::new(),
        };
        device.sync().await;
        device
    }

    async fn sync(&mut self) {
        let (pages, cursor) = self.api.sync(self.cursor.as_deref()).await;
        self.cursor = Some(cursor);
        for page in pages {
            self.seen += &page.to_string();
            if page["reset"] == true {
                self.rows.clear();
                self.groups.clear();
                self.snapshots += 1;
            }
            for change in page["changes"].as_array().unwrap() {
                self.apply(change);
            }
        }
    }

    fn apply(&mut self, change: &Value) {
        let text = |name: &str| change[name].as_str().unwrap_or_default().to_owned();
        let (key, group) = ((text("table"), text("id")), format!("{}:{}", text("group"), text("id")));
        match text("op").as_str() {
            "join" => drop(self.groups.insert(group)),
            "leave" => {
                self.groups.remove(&group);
                let rows = std::mem::take(&mut self.rows);
                self.rows = rows
                    .into_iter()
                    .filter(|(_, (_, via))| self.sees(via.as_ref()))
                    .collect();
            }
            "insert" | "update" if ["lists", "tasks", "contacts"].contains(&key.0.as_str()) => {
                let via: Option<Vec<String>> = serde_json::from_value(change["via"].clone()).unwrap();
                if self.sees(via.as_ref()) {
                    self.rows.insert(key, (change["row"].clone(), via));
                } else {
                    self.rows.remove(&key);
                }
            }
            "delete" => drop(self.rows.remove(&key)),
            _ => {}
        }
    }

    fn sees(&self, via: Option<&Vec<String>>) -> bool {
        let own = format!("user:{}", self.user);
        let is_mine = |audience: &String| *audience == own || audience == "tenant" || self.groups.contains(audience);
        via.is_none_or(|via| via.iter().any(is_mine))
    }

    /// The titles of its rows, by table and id.
    fn titles(&self) -> Vec<&str> {
        self.rows
            .values()
            .map(|(row, _)| row["title"].as_str().unwrap_or("?"))
            .collect()
    }

    /// Syncs what is published now; gives the titles.
    async fn synced(&mut self, office: &Office) -> Vec<&str> {
        office.world.published().await;
        self.sync().await;
        self.titles()
    }

    /// Syncs until the titles are these.
    async fn holds(&mut self, titles: &[&str]) {
        let device = Mutex::new(self);
        eventually(&format!("the device holds exactly {titles:?}"), || async {
            let mut device = device.lock().await;
            device.sync().await;
            (device.titles() == titles).then_some(())
        })
        .await;
    }

    /// Uploads an item; gives status and code.
    async fn upload(&self, item: Value) -> (String, Value) {
        let answer = self
            .api
            .post("/api/sync/outgoing", &json!({"changes": [item]}))
            .await
            .expect(200);
        let result = &answer["results"][0];
        (result["status"].as_str().unwrap().to_owned(), result["code"].clone())
    }
}

/// Id, organisation, list, assignee and title.
type Task = (i64, Option<i64>, String, Option<String>, String);

fn task(op: &str, id: i64, row: Value, base: Option<i64>) -> Value {
    json!({"table": "tasks", "op": op, "id": id, "row": row, "base_version": base})
}

#[tokio::test]
async fn rows_of_each_tenant_reach_its_own_users_only() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    // Globex names joe's id, which no user of its own has.
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'joe before'), (2, 2, NULL, '{gina}', 'gina before'),
             (3, 2, NULL, '{joe}', 'not joe'), (4, 1, NULL, '{gina}', 'not gina'), (5, 3, NULL, '{joe}', 'nobody')"
    ))
    .await;
    orgs.office.world.published().await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    assert_eq!(
        (joes.titles(), ginas.titles()),
        (vec!["joe before"], vec!["gina before"])
    );
    let mut events = joes.api.events("/sse/mobile/joes").await;
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (6, 2, NULL, '{joe}', 'not joe'), (7, 2, NULL, '{gina}', 'gina after');
         UPDATE tasks SET title = 'gina changed' WHERE id = 2; UPDATE tasks SET title = 'not joe 2' WHERE id = 3;
         INSERT INTO tasks VALUES (8, 1, NULL, '{joe}', 'joe after')"
    ))
    .await;
    let event = events.expect("task_changed").await;
    assert_eq!((&event.data["id"], &event.data["op"]), (&json!("8"), &json!("insert")));
    assert_eq!(joes.synced(&orgs.office).await, ["joe before", "joe after"]);
    assert_eq!(ginas.synced(&orgs.office).await, ["gina changed", "gina after"]);
    assert_eq!((joes.snapshots, ginas.snapshots), (1, 1));
    for (device, others) in [
        (&joes, ["gina", "not joe", "nobody"]),
        (&ginas, ["joe b", "joe a", "not gina"]),
    ] {
        for other in others {
            assert!(!device.seen.contains(other), "{other} in {}", device.seen);
        }
    }
    // Pages read the same.
    let titles = |page: &Value| -> Vec<String> {
        let rows = page["rows"].as_array().unwrap().iter();
        rows.map(|row| row["title"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        titles(&joes.api.get("/api/tables/tasks").await.expect(200)),
        ["joe before", "joe after"]
    );
    joes.api.get("/api/tables/tasks/8").await.expect(200);
    for other in [2, 3, 4, 5, 6, 7] {
        joes.api.get(&format!("/api/tables/tasks/{other}")).await.expect(404);
    }
    // Each tenant's log has its own rows.
    let world = &orgs.office.world;
    for (tenant, org) in [("acme", 1), ("globex", 2)] {
        let changes = world.stream(&world.keys().changes(tenant)).await;
        let tasks = changes.iter().filter(|entry| entry.field("table") == "tasks");
        assert!(tasks.clone().count() > 1);
        for entry in tasks {
            assert_eq!(entry.json("row")["org_id"], org, "{entry:?}");
        }
    }
    orgs.close().await;
}

#[tokio::test]
async fn row_that_moves_is_deleted_for_the_old_tenant_and_new_for_the_other() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    // A long title stays out of the log's new row when it does not change.
    orgs.sql(&format!(
        "ALTER TABLE tasks ALTER title SET STORAGE EXTERNAL;
         INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', repeat('x', 9000)), (2, 1, NULL, '{gina}', 'both')"
    ))
    .await;
    assert_eq!(joes.synced(&orgs.office).await, ["x".repeat(9000)]);
    orgs.sql(&format!(
        "UPDATE tasks SET org_id = 2, assignee_id = '{gina}' WHERE id = 1; UPDATE tasks SET org_id = 2 WHERE id = 2"
    ))
    .await;
    assert_eq!(joes.synced(&orgs.office).await, [""; 0]);
    assert_eq!(ginas.synced(&orgs.office).await, ["x".repeat(9000).as_str(), "both"]);
    // No stream of the old tenant has the row as it is for the new one.
    let world = &orgs.office.world;
    let changes = world.stream(&world.keys().changes("acme")).await;
    let last = changes.iter().rfind(|entry| entry.field("table") == "tasks").unwrap();
    assert_eq!(
        (last.field("op"), last.json("row"), &last.json("old")["org_id"]),
        ("delete", Value::Null, &json!(1))
    );
    let changes = world.stream(&world.keys().changes("globex")).await;
    let last = changes.iter().rfind(|entry| entry.field("table") == "tasks").unwrap();
    assert_eq!(
        (last.field("op"), last.json("old"), &last.json("row")["org_id"]),
        ("insert", Value::Null, &json!(2))
    );
    // Out of all tenants, and back.
    orgs.sql("UPDATE tasks SET org_id = NULL WHERE id = 1; UPDATE tasks SET org_id = 9 WHERE id = 2")
        .await;
    assert_eq!(ginas.synced(&orgs.office).await, [""; 0]);
    orgs.sql("UPDATE tasks SET org_id = 2 WHERE id = 2; DELETE FROM tasks WHERE id = 1")
        .await;
    assert_eq!(ginas.synced(&orgs.office).await, ["both"]);
    assert_eq!((joes.snapshots, ginas.snapshots), (1, 1));
    orgs.close().await;
}

#[tokio::test]
async fn groups_of_two_tenants_with_one_id_are_kept_apart() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    orgs.sql("INSERT INTO lists VALUES (1, 'todo', 'acme''s'), (2, 'todo', 'globex''')")
        .await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    let join = |org: i64, user: Uuid| format!("INSERT INTO list_members VALUES ({org}, 'todo', '{user}')");
    // Joe's id as a member at globex gives nothing at acme.
    orgs.sql(&join(2, joe)).await;
    assert_eq!(joes.synced(&orgs.office).await, [""; 0]);
    orgs.sql(&format!("{}; {}", join(1, joe), join(2, gina))).await;
    orgs.sql("INSERT INTO tasks VALUES (1, 1, 'todo', NULL, 'acme task'), (2, 2, 'todo', NULL, 'globex task')")
        .await;
    assert_eq!(joes.synced(&orgs.office).await, ["acme's", "acme task"]);
    assert_eq!(ginas.synced(&orgs.office).await, ["globex'", "globex task"]);
    assert_eq!(
        (joes.snapshots, ginas.snapshots),
        (1, 1),
        "what was there comes with the join"
    );
    // A task moves between the organisations and stays in the list of that id.
    orgs.sql("UPDATE tasks SET org_id = 2 WHERE id = 1").await;
    assert_eq!(joes.synced(&orgs.office).await, ["acme's"]);
    assert_eq!(
        ginas.synced(&orgs.office).await,
        ["globex'", "acme task", "globex task"]
    );
    // So does a membership.
    orgs.sql(&format!("DELETE FROM list_members WHERE user_id = '{joe}' AND org_id = 2; UPDATE list_members SET org_id = 2 WHERE user_id = '{joe}'"))
        .await;
    assert_eq!(joes.synced(&orgs.office).await, [""; 0]);
    assert!(joes.groups.is_empty());
    // Another snapshot is the same.
    for (device, mut former) in [(orgs.joe("joes2").await, joes), (orgs.gina("ginas2").await, ginas)] {
        former.sync().await;
        assert_eq!((device.titles(), &device.groups), (former.titles(), &former.groups));
        for (other, own) in [("acme's", 1), ("globex'", 2)] {
            assert!(!device.seen.contains(other) || former.seen.contains(other), "{own}");
        }
    }
    orgs.close().await;
}

#[tokio::test]
async fn device_cannot_touch_rows_of_another_tenant() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    // Globex has a row that names joe's id, a list of the id of joe's own, and joe's id among its members.
    orgs.sql(&format!(
        "INSERT INTO list_members VALUES (1, 'todo', '{joe}'), (2, 'todo', '{gina}'), (2, 'secret', '{joe}');
         INSERT INTO tasks VALUES (1, 1, 'todo', NULL, 'ours'), (2, 2, 'todo', '{gina}', 'theirs'),
             (3, 2, 'secret', '{joe}', 'theirs, too'), (4, NULL, 'todo', '{joe}', 'nobody''s');
         UPDATE tasks SET version = 5 WHERE id <> 1"
    ))
    .await;
    let joes = orgs.joe("joes").await;
    let ok = || ("applied".to_owned(), Value::Null);
    let refused = |code: &str| ("rejected".to_owned(), json!(code));
    for other in [2, 3, 4] {
        for op in ["edit", "delete", "create"] {
            let got = joes.upload(task(op, other, json!({"title": "mine"}), None)).await;
            let expected = match op {
                "edit" => refused("NOT_FOUND"),
                // As a row that is gone.
                "delete" => ("duplicate".to_owned(), Value::Null),
                // The id is taken; of what, the result does not say.
                _ => refused("CONFLICT"),
            };
            assert_eq!(got, expected, "{op} {other}");
        }
        let stale = joes
            .upload(task("edit", other, json!({"title": "mine"}), Some(1)))
            .await;
        assert_eq!(stale, refused("NOT_FOUND"), "and no conflict, which would show the row");
    }
    // The tenant is no column of the device's.
    for forged in [
        json!({"title": "x", "org_id": 2}),
        json!({"title": "x", "assignee_id": gina}),
    ] {
        assert_eq!(
            joes.upload(task("create", 10, forged.clone(), None)).await,
            refused("VALIDATION_ERROR")
        );
        assert_eq!(
            joes.upload(task("edit", 1, forged, Some(1))).await,
            refused("VALIDATION_ERROR")
        );
    }
    // Membership of another tenant's list gives nothing, membership of the own one what it gives.
    assert_eq!(
        joes.upload(task("create", 11, json!({"title": "x", "list_id": "secret"}), None))
            .await,
        refused("FORBIDDEN")
    );
    assert_eq!(
        joes.upload(task("edit", 1, json!({"list_id": "secret"}), Some(1)))
            .await,
        refused("FORBIDDEN")
    );
    assert_eq!(
        joes.upload(task("create", 12, json!({"title": "new", "list_id": "todo"}), None))
            .await,
        ok()
    );
    assert_eq!(
        joes.upload(task("edit", 1, json!({"title": "edited"}), Some(1))).await,
        ok()
    );
    // What a trigger would make another tenant's is refused.
    orgs.sql(
        "CREATE FUNCTION public.stray() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.org_id := 2; RETURN NEW; END $$;
         CREATE TRIGGER stray BEFORE INSERT OR UPDATE ON tasks FOR EACH ROW WHEN (NEW.title = 'stray')
         EXECUTE FUNCTION public.stray()",
    )
    .await;
    for stray in [
        task("create", 13, json!({"title": "stray"}), None),
        task("edit", 1, json!({"title": "stray"}), Some(2)),
    ] {
        assert_eq!(joes.upload(stray).await, refused("FORBIDDEN"));
    }
    let rows = "SELECT id, org_id, list_id, assignee_id::text, title FROM tasks ORDER BY id";
    let rows = orgs.office.world.psql().await.query(rows, &[]).await.unwrap();
    let rows: Vec<Task> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)))
        .collect();
    let (joe, gina) = (Some(joe.to_string()), Some(gina.to_string()));
    let row = |id, org, list: &str, user: &Option<String>, title: &str| {
        (id, org, list.to_owned(), user.clone(), title.to_owned())
    };
    assert_eq!(
        rows,
        [
            row(1, Some(1), "todo", &None, "edited"),
            row(2, Some(2), "todo", &gina, "theirs"),
            row(3, Some(2), "secret", &joe, "theirs, too"),
            row(4, None, "todo", &joe, "nobody's"),
            row(12, Some(1), "todo", &joe, "new"),
        ]
    );
    orgs.close().await;
}

#[tokio::test]
async fn change_without_the_old_tenant_resyncs_each_tenant_it_may_concern() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    orgs.office.world.tenant("initech").await;
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a'), (2, 1, NULL, '{joe}', 'b'), (3, 2, NULL, '{gina}', 'c')"
    ))
    .await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    let generation = async |tenant: &str| {
        let world = &orgs.office.world;
        let shared = world.stream(&world.keys().shared(tenant)).await;
        shared.iter().filter(|entry| entry.field("event") == "reset").count()
    };
    // The key alone: whose row it was is unknown.
    orgs.sql("ALTER TABLE tasks REPLICA IDENTITY DEFAULT; DELETE FROM tasks WHERE id = 1")
        .await;
    assert_eq!(joes.synced(&orgs.office).await, ["b"]);
    assert_eq!(ginas.synced(&orgs.office).await, ["c"]);
    assert_eq!((joes.snapshots, ginas.snapshots), (2, 2));
    assert_eq!(
        generation("initech").await,
        0,
        "no value of the column names this tenant"
    );
    let quarantined = orgs.quarantine("globex").await;
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    assert_eq!(
        (quarantined[0].field("kind"), quarantined[0].field("table")),
        ("table", "tasks")
    );
    assert!(
        quarantined[0].field("cause").contains("REPLICA IDENTITY"),
        "{quarantined:?}"
    );
    assert!(
        !quarantined[0].fields.contains_key("old"),
        "it may be another tenant's: {quarantined:?}"
    );
    // With the tenant in the identity, only that one.
    orgs.sql(
        "ALTER TABLE tasks ALTER org_id SET NOT NULL; CREATE UNIQUE INDEX tasks_of_org ON tasks (org_id, id);
         ALTER TABLE tasks REPLICA IDENTITY USING INDEX tasks_of_org",
    )
    .await;
    orgs.sql("DELETE FROM tasks WHERE id = 2").await;
    assert_eq!(joes.synced(&orgs.office).await, [""; 0]);
    orgs.sql(&format!("UPDATE tasks SET assignee_id = '{joe}' WHERE id = 3"))
        .await;
    assert_eq!(ginas.synced(&orgs.office).await, [""; 0]);
    joes.sync().await;
    assert_eq!((joes.snapshots, ginas.snapshots), (3, 3));
    orgs.close().await;
}

#[tokio::test]
async fn renamed_column_of_the_tenant_takes_the_rows_away_once() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a'), (3, 2, NULL, '{gina}', 'c')"
    ))
    .await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    orgs.sql("ALTER TABLE tasks RENAME org_id TO organisation").await;
    for title in ["b", "c", "d"] {
        orgs.sql(&format!("UPDATE tasks SET title = '{title}'")).await;
        assert_eq!(joes.synced(&orgs.office).await, [""; 0]);
        assert_eq!(ginas.synced(&orgs.office).await, [""; 0]);
    }
    assert_eq!((joes.snapshots, ginas.snapshots), (2, 2));
    joes.api.get("/api/tables/tasks/1").await.expect(404);
    let edit = task("edit", 1, json!({"title": "x"}), Some(1));
    assert_eq!(
        joes.upload(edit).await.0,
        "retry",
        "the operator corrects that, not the device"
    );
    let quarantined = orgs.quarantine("acme").await;
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    assert_eq!(quarantined[0].field("kind"), "rule");
    orgs.close().await;
}

#[tokio::test]
async fn truncated_table_resyncs_its_tenants() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a'), (3, 2, NULL, '{gina}', 'c')"
    ))
    .await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    orgs.sql(&format!(
        "TRUNCATE tasks; INSERT INTO tasks VALUES (4, 1, NULL, '{joe}', 'd')"
    ))
    .await;
    assert_eq!(joes.synced(&orgs.office).await, ["d"]);
    assert_eq!(ginas.synced(&orgs.office).await, [""; 0]);
    let world = &orgs.office.world;
    for tenant in ["acme", "globex"] {
        let changes = world.stream(&world.keys().changes(tenant)).await;
        assert!(changes.iter().any(|entry| entry.field("op") == "truncate"), "{tenant}");
    }
    orgs.close().await;
}

/// What devices of both organisations hold after a statement that is not in the log.
async fn after(statement: &str, kind: &str, titles: &[&str]) {
    let orgs = Orgs::with(watched).await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', '10'), (3, 2, NULL, '{gina}', '10')"
    ))
    .await;
    recorded(&orgs, "tasks", true).await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    joes.holds(&["10"]).await;
    ginas.holds(&["10"]).await;
    orgs.sql(statement).await;
    let sample = format!("catalog_changes_total{{kind=\"{kind}\"}}");
    eventually("the change is noticed", || async {
        (Scrape::of(&orgs.office.anybody).await.get(&sample) >= 1.0).then_some(())
    })
    .await;
    joes.holds(titles).await;
    ginas.holds(titles).await;
    for tenant in ["acme", "globex"] {
        let quarantined = orgs.quarantine(tenant).await;
        assert!(
            quarantined
                .iter()
                .any(|entry| entry.field("cause").contains("public.tasks")),
            "{quarantined:?}"
        );
    }
    orgs.close().await;
}

#[tokio::test]
async fn renamed_column_reaches_the_devices_of_each_tenant() {
    after(
        "ALTER TABLE tasks RENAME title TO name; ALTER TABLE tasks ADD title text DEFAULT 'new'",
        "columns",
        &["new"],
    )
    .await;
}

#[tokio::test]
async fn rewritten_table_reaches_the_devices_of_each_tenant() {
    after(
        "ALTER TABLE tasks ALTER title TYPE text USING title || '!'",
        "rewrite",
        &["10!"],
    )
    .await;
}

#[tokio::test]
async fn dropped_table_leaves_the_devices_of_each_tenant() {
    after("DROP TABLE tasks", "dropped", &[]).await;
}

#[tokio::test]
async fn renamed_table_leaves_the_devices_of_each_tenant() {
    after("ALTER TABLE tasks RENAME TO former_tasks", "moved", &[]).await;
}

#[tokio::test]
async fn lost_identity_of_a_table_outside_is_repaired() {
    after("ALTER TABLE tasks REPLICA IDENTITY NOTHING", "identity", &["10"]).await;
}

#[tokio::test]
async fn detached_partition_of_a_table_outside_leaves_its_devices() {
    let world = World::new().await;
    let psql = world.psql().await;
    let partitioned = APP.replace("id bigint PRIMARY KEY, org_id bigint", "id bigint, org_id bigint");
    psql.batch_execute(&partitioned.replace("DEFAULT 1\n)", "DEFAULT 1\n) PARTITION BY LIST (org_id)"))
        .await
        .unwrap();
    // Partitions may be in another schema.
    psql.batch_execute("CREATE SCHEMA parts; CREATE TABLE parts.acme PARTITION OF tasks FOR VALUES IN (1); CREATE TABLE parts.rest PARTITION OF tasks DEFAULT")
        .await
        .unwrap();
    let orgs = Orgs::within(world, watched).await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a'), (3, 2, NULL, '{gina}', 'c'), (4, 2, NULL, '{gina}', 'd')"
    ))
    .await;
    joes.holds(&["a"]).await;
    ginas.holds(&["c", "d"]).await;
    orgs.sql(&format!(
        "DELETE FROM tasks WHERE id = 3; UPDATE tasks SET org_id = 1, assignee_id = '{joe}' WHERE id = 4"
    ))
    .await;
    joes.holds(&["a", "d"]).await;
    ginas.holds(&[]).await;
    orgs.sql("ALTER TABLE tasks DETACH PARTITION parts.acme").await;
    joes.holds(&[]).await;
    orgs.sql("ALTER TABLE tasks ATTACH PARTITION parts.acme FOR VALUES IN (1)")
        .await;
    joes.holds(&["a", "d"]).await;
    orgs.close().await;
}

#[tokio::test]
async fn rule_for_a_table_with_rows_shows_them_to_devices_that_are_there() {
    let orgs = Orgs::with(|_| {}).await;
    let joe = orgs.office.joe_id;
    orgs.sql(&format!("INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'old')"))
        .await;
    let mut joes = orgs.joe("joes").await;
    assert_eq!(joes.synced(&orgs.office).await, [""; 0]);
    let Orgs { mut office, .. } = orgs;
    office.engine.stop().await;
    // Without groups, whose memberships would lead to a snapshot, too.
    office.world.config.routes = serde_json::from_value(json!([
        {"schema": "public", "table": "tasks", "tenant": tenants(), "to": ["assignee_id"], "event": "task_changed"},
    ]))
    .unwrap();
    // As a superuser may have done before the engine has the rule.
    let publication = office.world.config.replication.publication.clone();
    let psql = office.world.psql().await;
    psql.batch_execute(&format!(
        "ALTER TABLE tasks REPLICA IDENTITY FULL; ALTER PUBLICATION {publication} ADD TABLE tasks"
    ))
    .await
    .unwrap();
    let engine = office.world.engine(Role::All).await;
    joes.api = joes.api.at(&engine.api());
    joes.holds(&["old"]).await;
    engine.stop().await;
}

/// A rule for `tasks` alone, without groups, whose memberships would lead to a snapshot, too. The first look is at the start.
fn tasks_alone(config: &mut Config) {
    config.routes = serde_json::from_value(json!([
        {"schema": "public", "table": "tasks", "tenant": tenants(), "to": ["assignee_id"], "event": "task_changed"},
    ]))
    .unwrap();
    config.replication.catalog_interval_seconds = 3600;
}

#[tokio::test]
async fn rule_of_a_waiting_engine_counts_from_its_takeover_on() {
    let orgs = Orgs::with(|config| config.replication.catalog_interval_seconds = 3600).await;
    let joe = orgs.office.joe_id;
    orgs.sql(&format!("INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'old')"))
        .await;
    let mut joes = orgs.joe("joes").await;
    let Orgs { mut office, .. } = orgs;
    tasks_alone(&mut office.world.config);
    // What publishes the table does not deliver it yet.
    let synced = run(&mut routed(&office.world), &["publication", "sync"]).await.text();
    assert!(synced.contains("added public.tasks to the publication"), "{synced}");
    let waiting = office.world.engine(Role::All).await;
    assert_eq!(joes.synced(&office).await, [""; 0]);
    office.sql("UPDATE tasks SET title = 'new'").await;
    assert_eq!(joes.synced(&office).await, [""; 0]);
    let before = joes.snapshots;
    office.engine.stop().await;
    joes.api = joes.api.at(&waiting.api());
    joes.holds(&["new"]).await;
    assert_eq!((before, joes.snapshots), (1, 2));
    waiting.stop().await;
}

#[tokio::test]
async fn rule_that_returns_brings_what_changed_without_it() {
    let orgs = Orgs::with(tasks_alone).await;
    let joe = orgs.office.joe_id;
    orgs.sql(&format!("INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a')"))
        .await;
    let mut joes = orgs.joe("joes").await;
    joes.holds(&["a"]).await;
    let Orgs { mut office, .. } = orgs;
    let with_rule = office.world.config.clone();
    office.world.config.routes.clear();
    let without = office.world.engine(Role::All).await;
    office.engine.stop().await;
    office.world.published().await;
    joes.api = joes.api.at(&without.api());
    let with = office.world.engine_with(Role::All, with_rule).await;
    office.world.published().await;
    joes.sync().await;
    office
        .world
        .psql()
        .await
        .batch_execute("UPDATE tasks SET title = 'b'")
        .await
        .unwrap();
    office.world.published().await;
    joes.sync().await;
    without.stop().await;
    joes.api = joes.api.at(&with.api());
    joes.holds(&["b"]).await;
    with.stop().await;
}

#[tokio::test]
async fn repair_by_the_command_leads_to_a_snapshot_of_the_next_session() {
    for lost in [
        "ALTER PUBLICATION {} DROP TABLE tasks",
        "ALTER TABLE tasks REPLICA IDENTITY NOTHING",
    ] {
        let orgs = Orgs::with(tasks_alone).await;
        let joe = orgs.office.joe_id;
        orgs.sql(&format!("INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a')"))
            .await;
        let mut joes = orgs.joe("joes").await;
        assert_eq!(joes.synced(&orgs.office).await, ["a"]);
        let Orgs { office, .. } = orgs;
        office
            .sql(&lost.replace("{}", &office.world.config.replication.publication))
            .await;
        run(&mut routed(&office.world), &["publication", "sync"]).await.text();
        assert_eq!(joes.synced(&office).await, ["a"]);
        office.engine.stop().await;
        let engine = office.world.engine(Role::All).await;
        joes.api = joes.api.at(&engine.api());
        let device = Mutex::new(&mut joes);
        eventually("the device takes a snapshot", || async {
            let mut device = device.lock().await;
            device.sync().await;
            (device.snapshots == 2).then_some(())
        })
        .await;
        engine.stop().await;
    }
}

/// Waits until the engine has recorded a table as covered, or not.
async fn recorded(orgs: &Orgs, table: &str, is_covered: bool) {
    let psql = orgs.office.world.psql().await;
    let known = "SELECT FROM posduif.outside_tables WHERE name = $1 AND is_covered = $2";
    eventually("the table is recorded", || async {
        (!psql.query(known, &[&table, &is_covered]).await.unwrap().is_empty()).then_some(())
    })
    .await;
}

/// The organisations with a task `10` of joe, and his device.
async fn with_a_task() -> (Orgs, Device) {
    let orgs = Orgs::with(watched).await;
    let joe = orgs.office.joe_id;
    orgs.sql(&format!("INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', '10')"))
        .await;
    recorded(&orgs, "tasks", true).await;
    let mut joes = orgs.joe("joes").await;
    joes.holds(&["10"]).await;
    (orgs, joes)
}

#[tokio::test]
async fn table_with_a_long_writer_does_not_delay_another() {
    let (orgs, mut joes) = with_a_task().await;
    let publication = &orgs.office.world.config.replication.publication;
    let writer = orgs.office.world.psql().await;
    writer
        .batch_execute("BEGIN; INSERT INTO lists VALUES (1, 'todo', 'a')")
        .await
        .unwrap();
    orgs.sql(&format!(
        "ALTER PUBLICATION {publication} DROP TABLE lists; ALTER TABLE tasks ALTER title TYPE text USING title || '!'"
    ))
    .await;
    joes.holds(&["10!"]).await;
    let published = "SELECT FROM pg_publication_tables WHERE pubname = $1 AND tablename = 'lists'";
    assert!(writer.query(published, &[publication]).await.unwrap().is_empty());
    let complaint = run(&mut routed(&orgs.office.world), &["publication", "sync"])
        .await
        .complaint(1);
    assert!(complaint.contains("not published: public.lists: "), "{complaint}");
    writer.batch_execute("COMMIT").await.unwrap();
    eventually("the other table is published, too", || async {
        (!writer.query(published, &[publication]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    // What was written while it was not published.
    let joe = orgs.office.joe_id;
    orgs.sql(&format!("INSERT INTO list_members VALUES (1, 'todo', '{joe}')"))
        .await;
    joes.holds(&["a", "10!"]).await;
    orgs.close().await;
}

#[tokio::test]
async fn table_locked_by_its_application_does_not_delay_another() {
    let (orgs, _) = with_a_task().await;
    let Orgs { office, .. } = orgs;
    office.engine.stop().await;
    let psql = office.world.psql().await;
    psql.batch_execute("ALTER TABLE lists ADD note text; ALTER TABLE tasks ALTER title TYPE text USING title || '!'")
        .await
        .unwrap();
    psql.batch_execute("BEGIN; LOCK TABLE lists").await.unwrap();
    let engine = office.world.engine(Role::All).await;
    let reported = async |table: &str| {
        eventually(&format!("{table} is reported"), || async {
            office.world.published().await;
            let entries = office.world.stream(&office.world.keys().quarantine("acme")).await;
            entries.iter().find(|entry| entry.field("cause").contains(table))?;
            Some(())
        })
        .await;
    };
    reported("public.tasks").await;
    psql.batch_execute("ALTER TABLE lists DROP note; COMMIT").await.unwrap();
    engine.stop().await;
}

#[tokio::test]
async fn repair_stays_while_the_snapshots_are_not_requested() {
    let (orgs, mut joes) = with_a_task().await;
    let other = orgs.office.world.psql().await;
    other
        .batch_execute("BEGIN; SELECT FROM posduif.tenants FOR UPDATE")
        .await
        .unwrap();
    orgs.sql("ALTER TABLE tasks REPLICA IDENTITY NOTHING").await;
    let identity = "SELECT FROM pg_class WHERE oid = 'public.tasks'::regclass AND relreplident = 'f'";
    eventually("the identity is repaired", || async {
        (!other.query(identity, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    other.batch_execute("COMMIT").await.unwrap();
    let device = Mutex::new(&mut joes);
    eventually("the device takes a snapshot", || async {
        let mut device = device.lock().await;
        device.sync().await;
        (device.snapshots == 2).then_some(())
    })
    .await;
    orgs.close().await;
}

#[tokio::test]
async fn table_is_published_once_the_role_is_a_member_of_its_owner() {
    let mut world = World::new().await;
    world.psql().await.batch_execute(APP).await.unwrap();
    let owner = Owner::of(&mut world).await;
    let prefix = world.config.redis.prefix.clone();
    owner
        .admin
        .batch_execute(&format!(
            "CREATE ROLE {prefix}_app; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {prefix}_role;
             ALTER TABLE lists OWNER TO {prefix}_app; ALTER TABLE list_members OWNER TO {prefix}_app;
             ALTER TABLE tasks OWNER TO {prefix}_app"
        ))
        .await
        .unwrap();
    let orgs = Orgs::within(world, watched).await;
    let joe = orgs.office.joe_id;
    let admin = async |statement: &str| owner.admin.batch_execute(statement).await.unwrap();
    admin(&format!("INSERT INTO public.tasks VALUES (1, 1, NULL, '{joe}', 'old')")).await;
    recorded(&orgs, "tasks", false).await;
    let mut joes = orgs.joe("joes").await;
    joes.holds(&["old"]).await;
    admin("UPDATE public.tasks SET title = 'unseen'").await;
    for _ in 0..2 {
        let synced = run(&mut routed(&orgs.office.world), &["publication", "sync"])
            .await
            .text();
        assert!(synced.contains("public.tasks belongs to another role"), "{synced}");
    }
    admin(&format!("GRANT {prefix}_app TO {prefix}_role")).await;
    joes.holds(&["unseen"]).await;
    admin("UPDATE public.tasks SET title = 'seen'").await;
    joes.holds(&["seen"]).await;
    let Orgs { office, .. } = orgs;
    office.engine.stop().await;
    admin(&format!(
        "REASSIGN OWNED BY {prefix}_app TO CURRENT_USER; DROP OWNED BY {prefix}_app; DROP ROLE {prefix}_app"
    ))
    .await;
    owner.remove().await;
    drop(office.world);
}

#[tokio::test]
async fn row_of_no_tenant_is_not_delivered_and_counted() {
    let orgs = Orgs::open().await;
    let joe = orgs.office.joe_id;
    let mut joes = orgs.joe("joes").await;
    orgs.sql(&format!(
        "INSERT INTO tasks VALUES (1, 7, NULL, '{joe}', 'unknown'), (2, NULL, NULL, '{joe}', 'none'), (3, 1, NULL, '{joe}', 'ours')"
    ))
    .await;
    assert_eq!(joes.synced(&orgs.office).await, ["ours"]);
    eventually("the rows are counted", || async {
        let count = Scrape::of(&orgs.office.anybody)
            .await
            .get("changes_without_tenant_total");
        (count >= 2.0).then(|| assert_eq!(count, 2.0))
    })
    .await;
    assert!(orgs.quarantine("acme").await.is_empty());
    orgs.close().await;
}

#[tokio::test]
async fn table_of_a_constant_tenant_is_delivered_to_that_tenant_only() {
    fn constant(config: &mut Config) {
        config.routes = serde_json::from_value(json!([
            {"schema": "crm", "table": "contacts", "tenant": {"constant": "acme"}, "to": ["tenant"],
             "upload": {"owner": "owner", "columns": ["title"]}},
        ]))
        .unwrap();
    }
    let world = World::new().await;
    let psql = world.psql().await;
    psql.batch_execute("CREATE SCHEMA crm; CREATE TABLE crm.contacts (id text PRIMARY KEY, owner uuid, title text)")
        .await
        .unwrap();
    let orgs = Orgs::within(world, constant).await;
    orgs.sql("INSERT INTO crm.contacts VALUES ('a', NULL, 'before')").await;
    let (mut joes, mut ginas) = (orgs.joe("joes").await, orgs.gina("ginas").await);
    orgs.sql("INSERT INTO crm.contacts VALUES ('b', NULL, 'after')").await;
    let create = json!({"table": "contacts", "op": "create", "id": "c", "row": {"title": "mine"}});
    assert_eq!(joes.upload(create.clone()).await.0, "applied");
    assert_eq!(ginas.upload(create).await.1, "FORBIDDEN");
    assert_eq!(joes.synced(&orgs.office).await, ["before", "after", "mine"]);
    assert_eq!(ginas.synced(&orgs.office).await, [""; 0]);
    orgs.globex.get("/api/tables/contacts").await.expect(404);
    let tables = ginas.api.get("/api/app-instructions").await.expect(200);
    assert_eq!(tables["tables"], json!([]));
    orgs.close().await;
}

#[tokio::test]
async fn table_of_another_owner_is_published_by_the_statements_for_it() {
    let mut world = World::new().await;
    world.psql().await.batch_execute(APP).await.unwrap();
    let owner = Owner::of(&mut world).await;
    let role = format!("{}_role", world.config.redis.prefix);
    owner
        .admin
        .batch_execute(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        .await
        .unwrap();
    let orgs = Orgs::within(world, watched).await;
    let joe = orgs.office.joe_id;
    let insert = format!("INSERT INTO public.tasks VALUES (1, 1, NULL, '{joe}', 'old')");
    owner.admin.batch_execute(&insert).await.unwrap();
    let mut joes = orgs.joe("joes").await;
    joes.holds(&["old"]).await;
    let publication = orgs.office.world.config.replication.publication.clone();
    let published = async || {
        let found = "SELECT count(*) FROM pg_publication_tables WHERE pubname = $1 AND schemaname = 'public'";
        owner
            .admin
            .query_one(found, &[&publication])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    run(&mut routed(&orgs.office.world), &["publication", "sync"])
        .await
        .text();
    assert_eq!(published().await, 0);
    // The doctor prints what a superuser has to run.
    let nowhere = EngineUrls {
        public: "http://127.0.0.1:1".into(),
        admin: None,
    };
    let routes = async || {
        let checks = doctor::examine(&orgs.office.world.config, &nowhere).await;
        let check = checks
            .into_iter()
            .find(|check| check.name == "postgres.routes")
            .unwrap();
        (check.level, check.fix)
    };
    let (level, fix) = routes().await;
    assert_eq!(level, doctor::Level::Fail);
    for table in ["lists", "list_members", "tasks"] {
        for part in [
            format!("ALTER TABLE \"public\".\"{table}\" REPLICA IDENTITY FULL"),
            format!("ALTER PUBLICATION \"{publication}\" ADD TABLE \"public\".\"{table}\""),
        ] {
            assert!(
                fix.iter().any(|fix| fix.contains(&part) && fix.contains("-U postgres")),
                "{part}: {fix:?}"
            );
        }
    }
    owner
        .admin
        .batch_execute("UPDATE public.tasks SET title = 'unseen'")
        .await
        .unwrap();
    for table in ["lists", "list_members", "tasks"] {
        owner
            .admin
            .batch_execute(&format!(
                "ALTER TABLE public.{table} REPLICA IDENTITY FULL; ALTER PUBLICATION {publication} ADD TABLE public.{table}"
            ))
            .await
            .unwrap();
    }
    joes.holds(&["unseen"]).await;
    owner
        .admin
        .batch_execute("UPDATE public.tasks SET title = 'seen'")
        .await
        .unwrap();
    joes.holds(&["seen"]).await;
    let Orgs { office, .. } = orgs;
    office.engine.stop().await;
    owner.remove().await;
    drop(office.world);
}

/// What Postgres shows a user of an organisation: tables, ids and titles.
async fn truth(orgs: &Orgs, org: i64, user: Uuid) -> BTreeSet<(String, String, String)> {
    let query = "
        WITH mine AS (SELECT list_id FROM list_members WHERE (org_id, user_id) = ($1, $2))
        SELECT 'lists', id, title FROM lists WHERE org_id = $1 AND id IN (TABLE mine)
        UNION ALL
        SELECT 'tasks', id::text, title FROM tasks WHERE org_id = $1 AND (list_id IN (TABLE mine) OR assignee_id = $2)";
    let rows = orgs
        .office
        .world
        .psql()
        .await
        .query(query, &[&org, &user])
        .await
        .unwrap();
    rows.iter()
        .map(|row| (row.get::<_, &str>(0).to_owned(), row.get(1), row.get(2)))
        .collect()
}

/// A random commit of the application, in which rows and memberships come, change, move between organisations, and go.
fn commit(random: &mut Random, users: &[Uuid]) -> String {
    let mut statements = Vec::new();
    for _ in 0..=random.below(4) {
        let (org, other, list) = (1 + random.below(3), 1 + random.below(3), ["a", "b"][random.below(2)]);
        let (task, user) = (1 + random.below(8), users[random.below(users.len())]);
        let title = format!("'text {}'", random.next() % 100_000);
        let assignee = if random.one_in(2) {
            format!("'{user}'")
        } else {
            "NULL".into()
        };
        let within = if random.one_in(8) {
            "NULL".to_owned()
        } else {
            org.to_string()
        };
        statements.push(match random.below(8) {
            0 | 1 => format!("INSERT INTO list_members VALUES ({org}, '{list}', '{user}') ON CONFLICT DO NOTHING"),
            2 => format!("DELETE FROM list_members WHERE (org_id, list_id, user_id) = ({org}, '{list}', '{user}')"),
            3 => format!(
                "UPDATE list_members SET org_id = {other} WHERE (org_id, list_id, user_id) = ({org}, '{list}', '{user}')
                 AND NOT EXISTS (SELECT FROM list_members o WHERE (o.org_id, o.list_id, o.user_id) = ({other}, '{list}', '{user}'))"
            ),
            4 => format!("INSERT INTO lists VALUES ({org}, '{list}', {title}) ON CONFLICT (org_id, id) DO UPDATE SET title = {title}"),
            5 | 6 => format!(
                "INSERT INTO tasks VALUES ({task}, {within}, '{list}', {assignee}, {title})
                 ON CONFLICT (id) DO UPDATE SET org_id = {within}, list_id = '{list}', assignee_id = {assignee}, title = {title}"
            ),
            _ => format!("DELETE FROM tasks WHERE id = {task}"),
        });
    }
    let end = if random.one_in(8) { "ROLLBACK" } else { "COMMIT" };
    format!("BEGIN; {}; {end}", statements.join("; "))
}

#[tokio::test]
async fn devices_of_each_tenant_equal_postgres_after_any_history() {
    let seed = std::env::var("POSDUIF_OUTSIDE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let rounds = std::env::var("POSDUIF_OUTSIDE_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let mut random = Random::new(seed.unwrap_or(7));
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    let mut devices = vec![
        (1, orgs.joe("a").await),
        (1, orgs.joe("b").await),
        (2, orgs.gina("c").await),
    ];
    for round in 0..rounds.unwrap_or(60) {
        for _ in 0..random.below(4) {
            let statement = commit(&mut random, &[joe, gina]);
            orgs.sql(&statement).await;
        }
        if random.one_in(20) {
            orgs.sql("TRUNCATE tasks").await;
        }
        // Some sync before all is published.
        for (_, device) in &mut devices {
            if random.one_in(3) {
                device.sync().await;
            }
        }
        orgs.office.world.published().await;
        for (org, device) in &mut devices {
            device.sync().await;
            let shown: BTreeSet<(String, String, String)> = device
                .rows
                .iter()
                .map(|((table, id), (row, _))| (table.clone(), id.clone(), row["title"].as_str().unwrap().to_owned()))
                .collect();
            assert_eq!(
                shown,
                truth(&orgs, *org, device.user).await,
                "round {round}, organisation {org}"
            );
        }
    }
    orgs.close().await;
}

/// The application with users whose ids are numbers, which are the subjects of a provider.
mod numbers {
    use jsonwebtoken::Algorithm;
    use posduif::config;
    use posduif::core::subject::Subject;
    use posduif::core::tenant::Tenant;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::{APP, Device, task, tenants};
    use crate::support::World;
    use crate::support::http::Api;
    use crate::support::office::Office;
    use crate::support::provider::{Provider, SigningKey, with};

    fn routing(config: &mut config::Config, prefix: &str, issuer: Option<&str>) {
        let tenant = tenants();
        config.groups = serde_json::from_value(json!({
            "list": {"schema": "public", "table": "list_members", "tenant": tenant, "id": "list_id", "user": "user_id",
                     "subjects": issuer},
        }))
        .unwrap();
        config.routes = serde_json::from_value(json!([
            {"schema": "public", "table": "tasks", "tenant": tenant, "to": [{"list": "list_id"}, "assignee_id"],
             "event": "task_changed", "subjects": issuer,
             "upload": {"owner": "assignee_id", "by": {"list": "list_id"}, "columns": ["list_id", "title"]}},
        ]))
        .unwrap();
        config.auth.providers[0].subject_prefix = prefix.to_owned();
    }

    struct App {
        provider: Provider,
        key: SigningKey,
        office: Office,
        prefix: &'static str,
    }

    impl App {
        async fn open(prefix: &'static str, is_explicit: bool) -> Self {
            let key = SigningKey::new("k", Algorithm::ES256);
            let provider = Provider::start(&[&key]).await;
            let world = World::new().await;
            let app = APP
                .replace("user_id uuid", "user_id bigint")
                .replace("assignee_id uuid", "assignee_id bigint");
            world.psql().await.batch_execute(&app).await.unwrap();
            let settings = config::Provider {
                tenant: String::new(),
                tenants: [("1", "acme"), ("2", "globex")]
                    .map(|(value, name)| (value.into(), name.into()))
                    .into(),
                claims: config::Claims {
                    tenant: "org".into(),
                    ..config::Claims::default()
                },
                ..provider.settings()
            };
            let issuer = is_explicit.then(|| provider.issuer.clone());
            let office = Office::within(world, |config| {
                config.auth.providers = vec![settings];
                routing(config, prefix, issuer.as_deref());
            })
            .await;
            office.world.tenant("globex").await;
            office.world.published().await;
            Self {
                provider,
                key,
                office,
                prefix,
            }
        }

        fn user_id(&self, tenant: &str, subject: i64) -> Uuid {
            let subject = Subject::new(self.prefix, &subject.to_string()).unwrap();
            subject.user_id(&Tenant::named(tenant).unwrap())
        }

        fn bearer(&self, subject: i64, org: i64) -> Api {
            let claims = with(
                self.provider.claims(&subject.to_string()),
                json!({"org": org.to_string()}),
            );
            self.office.anybody.bearing(&self.key.sign(&claims))
        }

        async fn phone(&self, subject: i64, org: i64) -> Device {
            let body = json!({"name": "Phone", "type": "mobile"});
            let added = self.bearer(subject, org).post("/api/devices", &body).await.expect(201);
            let api = self
                .office
                .anybody
                .bearing(added["device_token"].as_str().unwrap())
                .with("x-device-id", added["device_id"].as_str().unwrap());
            let user = added["user_id"].as_str().unwrap().parse().unwrap();
            Device::new(api, user).await
        }
    }

    async fn check(prefix: &'static str, is_explicit: bool) {
        let app = App::open(prefix, is_explicit).await;
        let office = &app.office;
        // The same number is another user in each organisation.
        office
            .sql(
                "INSERT INTO tasks VALUES (1, 1, NULL, 7, 'acme 7'), (2, 2, NULL, 7, 'globex 7'), (3, 1, NULL, 8, 'acme 8');
                 INSERT INTO list_members VALUES (1, 'todo', 7), (2, 'todo', 9);
                 INSERT INTO tasks VALUES (4, 1, 'todo', NULL, 'acme todo'), (5, 2, 'todo', NULL, 'globex todo')",
            )
            .await;
        office.world.published().await;
        let (mut ann, mut gus) = (app.phone(7, 1).await, app.phone(7, 2).await);
        assert_eq!((ann.user, gus.user), (app.user_id("acme", 7), app.user_id("globex", 7)));
        assert_eq!(
            (ann.titles(), gus.titles()),
            (vec!["acme 7", "acme todo"], vec!["globex 7"])
        );
        office
            .sql(
                "INSERT INTO tasks VALUES (6, 1, NULL, 7, 'acme new'); UPDATE tasks SET assignee_id = 7 WHERE id = 3;
                 INSERT INTO list_members VALUES (2, 'todo', 7); UPDATE tasks SET assignee_id = NULL WHERE id = 1",
            )
            .await;
        assert_eq!(ann.synced(office).await, ["acme 8", "acme todo", "acme new"]);
        assert_eq!(gus.synced(office).await, ["globex 7", "globex todo"]);
        assert_eq!((ann.snapshots, gus.snapshots), (1, 1));
        // Pages, and another snapshot, agree.
        let page = app.bearer(7, 1).get("/api/tables/tasks").await.expect(200);
        assert_eq!(page["rows"].as_array().unwrap().len(), 3);
        let mut second = app.phone(7, 1).await;
        assert_eq!(second.synced(office).await, ann.titles());
        // A created row has the author's number as its owner.
        let new = task("create", 20, json!({"title": "mine"}), None);
        assert_eq!(ann.upload(new).await, ("applied".to_owned(), Value::Null));
        let edit = |id: i64| task("edit", id, json!({"title": "edited"}), Some(1));
        assert_eq!(ann.upload(edit(3)).await, ("applied".to_owned(), Value::Null));
        assert_eq!(ann.upload(edit(4)).await, ("applied".to_owned(), Value::Null));
        assert_eq!(ann.upload(edit(1)).await.1, "FORBIDDEN");
        assert_eq!(ann.upload(edit(2)).await.1, "NOT_FOUND");
        assert_eq!(gus.upload(edit(4)).await.1, "NOT_FOUND");
        let psql = office.world.psql().await;
        let row = psql
            .query_one("SELECT assignee_id, org_id FROM tasks WHERE id = 20", &[])
            .await
            .unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (7, 1));
        app.office.close().await;
    }

    #[tokio::test]
    async fn users_named_by_number_receive_and_write_their_rows() {
        check("", false).await;
    }

    #[tokio::test]
    async fn users_of_a_named_provider_with_a_prefix_receive_their_rows() {
        check("kc:", true).await;
    }

    #[tokio::test]
    async fn user_without_a_subject_owns_no_rows_of_subjects() {
        let app = App::open("kc:", true).await;
        let phone = app.office.phone("joes").await;
        let joe = Device::new(phone, app.office.joe_id).await;
        let new = task("create", 20, json!({"title": "mine"}), None);
        assert_eq!(joe.upload(new).await, ("rejected".to_owned(), json!("FORBIDDEN")));
        app.office.close().await;
    }
}

#[tokio::test]
async fn ids_that_only_postgres_makes_refuse_creations_with_the_reason() {
    let world = World::new().await;
    let app = APP.replace(
        "id bigint PRIMARY KEY, org_id",
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, org_id",
    );
    world.psql().await.batch_execute(&app).await.unwrap();
    let orgs = Orgs::within(world, configure).await;
    let joe = orgs.office.joe_id;
    orgs.sql(&format!(
        "INSERT INTO tasks (org_id, assignee_id, title) VALUES (1, '{joe}', 'a')"
    ))
    .await;
    let joes = orgs.joe("joes").await;
    let item = task("create", 7, json!({"title": "mine"}), None);
    let answer = joes
        .api
        .post("/api/sync/outgoing", &json!({"changes": [item]}))
        .await
        .expect(200);
    let result = &answer["results"][0];
    assert_eq!(
        (&result["status"], &result["code"]),
        (&json!("rejected"), &json!("VALIDATION_ERROR"))
    );
    assert!(
        result["message"].as_str().unwrap().contains("GENERATED ALWAYS"),
        "{result}"
    );
    assert_eq!(
        joes.upload(task("edit", 1, json!({"title": "b"}), Some(1))).await.0,
        "applied"
    );
    orgs.close().await;
}

#[tokio::test]
async fn column_outside_of_the_list_leaves_in_nothing() {
    fn listed(config: &mut Config) {
        configure(config);
        for rule in &mut config.routes {
            if rule.table == "tasks" {
                rule.columns = ["title", "version", "list_id"].map(str::to_owned).to_vec();
            }
        }
    }
    const HIDDEN: &str = "hidden-7c1e";
    let orgs = Orgs::with(listed).await;
    let joe = orgs.office.joe_id;
    orgs.sql(&format!(
        "ALTER TABLE tasks ADD note text NOT NULL DEFAULT '{HIDDEN}';
         INSERT INTO tasks VALUES (1, 1, NULL, '{joe}', 'a'), (2, 1, 'todo', NULL, 'b')"
    ))
    .await;
    let mut joes = orgs.joe("joes").await;
    let mut events = joes.api.events("/sse/mobile/joes").await;
    orgs.sql(&format!(
        "INSERT INTO list_members VALUES (1, 'todo', '{joe}'); UPDATE tasks SET note = note || '2'"
    ))
    .await;
    let event = events.expect("task_changed").await;
    assert!(!event.data.to_string().contains(HIDDEN), "{event:?}");
    orgs.sql(&format!("INSERT INTO tasks VALUES (3, 1, NULL, '{joe}', 'c'); DELETE FROM tasks WHERE id = 3; UPDATE tasks SET id = 4 WHERE id = 1"))
        .await;
    assert_eq!(joes.synced(&orgs.office).await, ["b", "a"]);
    let names = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let expected = ["id", "list_id", "title", "version"];
    for (row, _) in joes.rows.values() {
        assert_eq!(names(row), expected);
    }
    let page = joes.api.get("/api/tables/tasks").await.expect(200);
    assert_eq!(names(&page["rows"][0]), expected);
    assert_eq!(names(&joes.api.get("/api/tables/tasks/4").await.expect(200)), expected);
    let tables = joes.api.get("/api/app-instructions").await.expect(200);
    let tasks = tables["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["name"] == "tasks")
        .unwrap();
    assert_eq!(tasks["columns"].as_array().unwrap().len(), 4);
    // A conflict shows the row in the result, and is a row of its own.
    orgs.sql("UPDATE tasks SET version = 5 WHERE id = 4").await;
    let item = task("edit", 4, json!({"title": "mine"}), Some(1));
    let answer = joes
        .api
        .post("/api/sync/outgoing", &json!({"changes": [item]}))
        .await
        .expect(200);
    assert_eq!(names(&answer["results"][0]["server"]), expected);
    let conflicts = joes.api.get("/api/conflicts").await.expect(200);
    assert_eq!(names(&conflicts["conflicts"][0]["server_version"]), expected);
    let forged = task("edit", 4, json!({"note": "x"}), Some(5));
    assert_eq!(joes.upload(forged).await.1, "VALIDATION_ERROR");
    joes.synced(&orgs.office).await;
    for answer in [&page, &answer, &conflicts, &tables] {
        assert!(!answer.to_string().contains(HIDDEN), "{answer}");
    }
    assert!(
        !joes.seen.contains(HIDDEN) && !joes.seen.contains("\"org_id\""),
        "{}",
        joes.seen
    );
    // The streams of users and groups do not have it either; the log of the tenant, for other services, does.
    let (world, keys) = (&orgs.office.world, orgs.office.world.keys());
    let group = "list:todo".parse().unwrap();
    for (key, has_it) in [
        (keys.inbox("acme", &joe.to_string()), false),
        (keys.group("acme", &group), false),
        (keys.changes("acme"), true),
    ] {
        let tasks: Vec<Entry> = world
            .stream(&key)
            .await
            .into_iter()
            .filter(|entry| entry.field("table") == "tasks")
            .collect();
        assert!(!tasks.is_empty(), "{key}");
        let found = tasks
            .iter()
            .any(|entry| entry.fields.values().any(|value| value.contains(HIDDEN)));
        assert_eq!(found, has_it, "{key}");
    }
    orgs.close().await;
}

/// The program with the rules and groups of a world, too.
fn routed(world: &World) -> Command {
    let mut command = posduif_in(world);
    command
        .env("POSDUIF__ROUTES", json!(world.config.routes).to_string())
        .env("POSDUIF__GROUPS", json!(world.config.groups).to_string());
    command
}

#[tokio::test]
async fn routes_check_reports_what_prevents_delivery_and_its_fixes_work() {
    let mut world = World::new().await;
    // Without keys, indexes and privileges, and of another owner.
    world
        .psql()
        .await
        .batch_execute(
            "CREATE TABLE public.lists (id text, org_id bigint, title text);
             CREATE TABLE public.list_members (org_id bigint NOT NULL, list_id text NOT NULL, user_id uuid NOT NULL);
             CREATE TABLE public.tasks (
                 id bigint NOT NULL, org_id bigint, list_id text, assignee_id uuid, title text, version bigint DEFAULT 1
             );
             INSERT INTO public.tasks VALUES (1, 9, NULL, NULL, 'a'), (2, NULL, NULL, NULL, 'b'), (3, 1, NULL, NULL, 'c')",
        )
        .await
        .unwrap();
    let owner = Owner::of(&mut world).await;
    let orgs = Orgs::within(world, configure).await;
    let check = async || {
        let ended = run(&mut routed(&orgs.office.world), &["routes", "check", "--json"]).await;
        (
            ended.code,
            serde_json::from_str::<Value>(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr)),
        )
    };
    let (code, report) = check().await;
    assert_eq!((code, &report["ok"]), (Some(1), &json!(false)));
    let tasks = report["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["table"] == "tasks")
        .unwrap();
    assert_eq!(
        (
            &tasks["schema"],
            &tasks["rows_of"],
            &tasks["named_by"],
            &tasks["published"]
        ),
        (
            &json!("public"),
            &json!("by column org_id"),
            &json!(["routes[1]"]),
            &json!(false)
        )
    );
    let texts = tasks["findings"].to_string();
    for part in [
        "replica identity is default",
        "lacks it",
        "the same id",
        "lacks SELECT",
        "begins with assignee_id",
    ] {
        assert!(texts.contains(part), "{part}: {texts}");
    }
    // Each fix is a statement; the tables' owner is a superuser here.
    for _ in 0..2 {
        let (_, report) = check().await;
        for table in report["tables"].as_array().unwrap() {
            for fix in table["findings"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|finding| finding["fix"].as_array().unwrap())
            {
                owner.admin.batch_execute(fix.as_str().unwrap()).await.unwrap();
            }
        }
    }
    let (code, report) = check().await;
    assert_eq!(code, Some(0), "{report}");
    let tasks = report["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["table"] == "tasks")
        .unwrap();
    let findings = tasks["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{tasks}");
    let text = findings[0]["text"].as_str().unwrap();
    assert!(
        text.contains("2 rows") && text.contains("NULL") && text.contains("\"9\""),
        "{text}"
    );
    let text = run(&mut routed(&orgs.office.world), &["routes", "check"]).await.text();
    assert!(
        text.contains("ok    public.list_members (groups.list), rows by column org_id"),
        "{text}"
    );
    // A missing column fails.
    owner
        .admin
        .batch_execute("ALTER TABLE public.tasks RENAME assignee_id TO assignee")
        .await
        .unwrap();
    let (code, report) = check().await;
    assert_eq!(code, Some(1));
    assert!(
        report
            .to_string()
            .contains("names the column assignee_id, which does not exist"),
        "{report}"
    );
    let Orgs { office, .. } = orgs;
    office.engine.stop().await;
    owner.remove().await;
    drop(office.world);
}

#[tokio::test]
async fn routes_explain_says_who_sees_a_row_and_why_not() {
    let orgs = Orgs::open().await;
    let (joe, gina) = (orgs.office.joe_id, orgs.gina_id);
    orgs.sql(&format!(
        "INSERT INTO list_members VALUES (1, 'todo', '{joe}');
         INSERT INTO tasks VALUES (1, 1, 'todo', '{gina}', 'a'), (2, 2, NULL, '{gina}', 'b'), (3, 1, 'empty', NULL, 'c')"
    ))
    .await;
    let explain = async |tenant: &str, table: &str, id: &str| {
        run(
            &mut routed(&orgs.office.world),
            &[
                "routes", "explain", "--json", "--tenant", tenant, "--table", table, "--id", id,
            ],
        )
        .await
        .json()
    };
    let seen = explain("acme", "tasks", "1").await;
    assert_eq!((&seen["seen"], &seen["reasons"]), (&json!(true), &json!([])));
    let rule = &seen["rules"][0];
    assert_eq!((&rule["rule"], &rule["shows"]), (&json!("routes[1]"), &json!(true)));
    assert_eq!(
        rule["audiences"],
        json!([
            {"column": "list_id", "value": "todo", "kind": "list", "note": null,
             "users": [{"id": joe, "username": "joe", "is_inactive": false}]},
            {"column": "assignee_id", "value": gina, "kind": "user", "note": null,
             "users": [{"id": gina, "username": null, "is_inactive": false}]},
        ])
    );
    let unseen = explain("acme", "tasks", "3").await;
    assert_eq!(unseen["seen"], json!(false));
    assert_eq!(
        unseen["rules"][0]["audiences"][0]["note"],
        json!("the group has no members")
    );
    for (tenant, table, id, reason) in [
        ("acme", "tasks", "2", "not of tenant acme: its column names \"2\""),
        ("acme", "tasks", "9", "no such row"),
        ("acme", "tasks", "nonsense", "no such row"),
        ("acme", "nothing", "1", "no rule"),
        ("acme", "users", "1", "built in"),
    ] {
        let explained = explain(tenant, table, id).await;
        assert_eq!(explained["seen"], json!(false));
        assert!(
            explained["reasons"].to_string().contains(&reason.replace('"', "\\\"")),
            "{explained}"
        );
    }
    assert_eq!(explain("globex", "tasks", "2").await["seen"], json!(true));
    orgs.close().await;
}
