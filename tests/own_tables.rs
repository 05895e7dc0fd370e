//! Rows of the operator's own tables, written by devices: permissions, results, and their delivery.

use posduif::accounts::users::{self, NewUser, UserType};
use posduif::admin::doctor;
use posduif::admin::status::EngineUrls;
use posduif::config::Config;
use posduif::engine::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::World;
use crate::support::command::posduif_says;
use crate::support::folder::Folder;
use crate::support::http::Api;
use crate::support::office::Office;

const TASKS: &str = "CREATE TABLE tenant_acme.tasks (
    id uuid PRIMARY KEY, owner_id uuid NOT NULL, assignee_id uuid, title text NOT NULL CHECK (title <> 'forbidden'),
    done boolean NOT NULL DEFAULT false, due timestamptz, price numeric(10, 2), tags text[], photo bytea, detail jsonb,
    code text UNIQUE, version bigint NOT NULL DEFAULT 1, deleted_at timestamptz
)";

fn configure(config: &mut Config) {
    config.routes = serde_json::from_value(json!([{
        "table": "tasks", "to": ["owner_id", "assignee_id"], "event": "task",
        "upload": {
            "owner": "owner_id",
            "columns": ["assignee_id", "title", "done", "due", "price", "tags", "photo", "detail", "code"],
        },
    }, {
        "table": "notes", "to": ["owner"], "upload": {"owner": "owner", "columns": ["body"]},
    }, {
        "table": "absent", "to": ["owner"], "upload": {"owner": "owner", "columns": ["body"]},
    }, {
        "table": "readings", "to": ["tenant"],
    }]))
    .unwrap();
}

/// An office with the table `tasks`, and joe's phone.
async fn office() -> (Office, Api) {
    let office = Office::with(configure).await;
    office.sql(TASKS).await;
    let phone = office.phone("phone").await;
    (office, phone)
}

async fn upload(phone: &Api, changes: &[Value]) -> Vec<Value> {
    let answer = phone
        .post("/api/sync/outgoing", &json!({"changes": changes}))
        .await
        .expect(200);
    answer["results"].as_array().unwrap().clone()
}

/// Uploads one change; gives its status, code and version.
async fn one(phone: &Api, change: Value) -> (String, Value, Value) {
    let result = upload(phone, &[change]).await.remove(0);
    (
        result["status"].as_str().unwrap().to_owned(),
        result["code"].clone(),
        result["version"].clone(),
    )
}

fn task(op: &str, id: Uuid, row: Value, base: Option<i64>) -> Value {
    json!({"table": "tasks", "op": op, "id": id, "row": row, "base_version": base})
}

fn done(version: i64) -> (String, Value, Value) {
    ("applied".into(), Value::Null, json!(version))
}

#[tokio::test]
async fn uploaded_row_reaches_every_user_of_its_rule() {
    let (office, phone) = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let sally = office.bob.enroll("sallys", Some(&sally_id.to_string())).await.0;
    let (_, cursor) = sally.sync(None).await;
    let id = Uuid::new_v4();
    let row = json!({
        "title": "buy milk", "assignee_id": sally_id, "due": "2030-01-02T03:04:05Z", "price": "12.50",
        "tags": ["a", "b,c"], "photo": "AAEC/w==", "detail": {"deep": [1, null, "x"]},
    });
    let answer = phone
        .post(
            "/api/sync/outgoing",
            &json!({"changes": [task("create", id, row.clone(), None)]}),
        )
        .await
        .expect(200);
    assert_eq!(
        answer["results"],
        json!([{"table": "tasks", "id": id, "status": "applied", "version": 1}])
    );
    assert_eq!(
        (&answer["synced_count"], &answer["failed_count"]),
        (&json!(1), &json!(0))
    );

    office.world.published().await;
    let from_stream = format!("/api/sync/incoming?cursor={cursor}");
    for (device, path) in [(&sally, from_stream.as_str()), (&phone, "/api/sync/incoming")] {
        let batch = device.get(path).await.expect(200);
        let change = batch["changes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|change| change["table"] == "tasks")
            .unwrap();
        assert_eq!(change["id"], json!(id));
        for (column, value) in row.as_object().unwrap() {
            assert_eq!(&change["row"][column], value, "{column}");
        }
        assert_eq!(change["row"]["owner_id"], json!(office.joe_id));
        assert_eq!(change["row"]["done"], false, "what was not sent has its default");
    }
    office.close().await;
}

#[tokio::test]
async fn page_reads_the_rows_that_its_rules_show() {
    let (office, phone) = office().await;
    // Four of five are bob's to see, and one of those is deleted.
    let ids: Vec<Uuid> = (1..=5).map(Uuid::from_u128).collect();
    for (number, id) in ids.iter().enumerate() {
        let assignee = (number != 2).then_some(office.bob_id);
        let row = json!({"title": format!("task {number}"), "assignee_id": assignee, "price": "1.50", "tags": ["a"]});
        assert_eq!(one(&phone, task("create", *id, row, None)).await, done(1));
    }
    office
        .sql(&format!(
            "UPDATE tenant_acme.tasks SET deleted_at = now() WHERE id = '{}'",
            ids[4]
        ))
        .await;
    let list = async |query: &str| office.bob.get(&format!("/api/tables/tasks?{query}")).await.expect(200);
    let shown = |page: &Value| -> (Vec<String>, bool) {
        (
            crate::support::office::ids(&page["rows"]),
            page["has_more"].as_bool().unwrap(),
        )
    };
    let text = |number: usize| ids[number].to_string();
    let all = list("").await;
    assert_eq!(shown(&all), (vec![text(0), text(1), text(3)], false));
    assert_eq!(shown(&list("limit=2").await), (vec![text(0), text(1)], true));
    let after = list(&format!("limit=2&after={}", ids[1])).await;
    assert_eq!(shown(&after), (vec![text(3)], false));
    let before = list(&format!("limit=1&before={}", ids[3])).await;
    assert_eq!(shown(&before), (vec![text(1)], true));
    // Whether the row of the place is there, or visible, does not matter.
    let behind_hidden = list(&format!("after={}", ids[2])).await;
    assert_eq!(shown(&behind_hidden), (vec![text(3)], false));

    let row = office
        .bob
        .get(&format!("/api/tables/tasks/{}", ids[0]))
        .await
        .expect(200);
    assert_eq!(row, all["rows"][0]);
    assert_eq!(
        (&row["price"], &row["tags"], &row["done"]),
        (&json!("1.50"), &json!(["a"]), &json!(false))
    );
    for hidden in [
        format!("tasks/{}", ids[2]),
        format!("tasks/{}", ids[4]),
        "tasks/none".into(),
    ] {
        assert_eq!(
            office.bob.get(&format!("/api/tables/{hidden}")).await.status,
            404,
            "{hidden}"
        );
    }
    // Neither tables without a rule nor those that the tenant does not have.
    for table in ["users", "messages", "absent", "pg_class"] {
        assert_eq!(
            office.bob.get(&format!("/api/tables/{table}")).await.status,
            404,
            "{table}"
        );
        let path = format!("/api/tables/{table}/{}", office.joe_id);
        assert_eq!(office.bob.get(&path).await.status, 404, "{path}");
    }
    assert_eq!(office.anybody.get("/api/tables/tasks").await.status, 401);
    office.close().await;
}

#[tokio::test]
async fn app_instructions_describe_the_tables() {
    let (office, phone) = office().await;
    office
        .sql("CREATE TABLE tenant_acme.readings (id bigint PRIMARY KEY, level real[])")
        .await;
    let instructions = phone.get("/api/app-instructions").await.expect(200);
    let tables = instructions["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 2, "those that are there: {tables:?}");
    assert_eq!(
        (&tables[0]["name"], &tables[0]["columns"][0]),
        (&json!("tasks"), &json!({"name": "id", "type": "uuid"}))
    );
    assert_eq!(tables[0]["writable"].as_array().unwrap().len(), 9);
    assert_eq!(
        tables[1],
        json!({
            "name": "readings", "writable": [],
            "columns": [{"name": "id", "type": "int8"}, {"name": "level", "type": "_float4"}],
        })
    );
    office.close().await;
}

#[tokio::test]
async fn own_table_row_is_changed_by_its_owner_only_and_repeats_are_idempotent() {
    let (office, phone) = office().await;
    let id = Uuid::new_v4();
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let sally = office.bob.enroll("sallys", Some(&sally_id.to_string())).await.0;
    let create = task("create", id, json!({"title": "one", "assignee_id": sally_id}), None);
    assert_eq!(one(&phone, create.clone()).await, done(1));
    assert_eq!(one(&phone, create.clone()).await.0, "duplicate");
    let edit = task("edit", id, json!({"done": true}), Some(1));
    assert_eq!(one(&sally, edit.clone()).await.1, "FORBIDDEN");
    assert_eq!(one(&phone, edit.clone()).await, done(2));
    assert_eq!(one(&phone, edit).await, ("duplicate".into(), Value::Null, json!(2)));
    assert_eq!(
        one(&phone, create).await.0,
        "duplicate",
        "a repeated create never overwrites what came after it"
    );
    let delete = task("delete", id, Value::Null, None);
    assert_eq!(one(&sally, delete.clone()).await.1, "FORBIDDEN");
    assert_eq!(one(&phone, delete.clone()).await, done(3));
    assert_eq!(one(&phone, delete).await.0, "duplicate");
    assert_eq!(
        one(&phone, task("edit", id, json!({"done": false}), None)).await.1,
        "NOT_FOUND"
    );
    assert_eq!(
        one(&phone, task("edit", Uuid::new_v4(), json!({"done": false}), None))
            .await
            .1,
        "NOT_FOUND"
    );
    let psql = office.world.psql().await;
    let count: i64 = psql
        .query_one(
            "SELECT count(*) FROM tenant_acme.tasks WHERE deleted_at IS NOT NULL",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(count, 1);
    office.close().await;
}

#[tokio::test]
async fn own_table_stale_base_version_is_conflict_with_current_row() {
    let (office, phone) = office().await;
    let id = Uuid::new_v4();
    one(&phone, task("create", id, json!({"title": "one", "price": "1"}), None)).await;
    office
        .sql("UPDATE tenant_acme.tasks SET title = 'somebody''s', version = version + 1")
        .await;
    for change in [
        task("edit", id, json!({"title": "phone's"}), Some(1)),
        task("delete", id, Value::Null, Some(1)),
    ] {
        let result = upload(&phone, &[change]).await.remove(0);
        assert_eq!(
            (&result["status"], &result["code"], &result["version"]),
            (&json!("conflict"), &json!("CONFLICT"), &json!(2))
        );
        assert_eq!(
            (&result["server"]["title"], &result["server"]["price"]),
            (&json!("somebody's"), &json!("1.00"))
        );
    }
    // The same id with other content, while the first one is as it was made.
    let fresh = Uuid::new_v4();
    one(&phone, task("create", fresh, json!({"title": "one"}), None)).await;
    assert_eq!(
        one(&phone, task("create", fresh, json!({"title": "two"}), None))
            .await
            .0,
        "conflict"
    );
    assert_eq!(
        one(&phone, task("edit", id, json!({"title": "phone's"}), Some(2))).await,
        done(3)
    );
    office.close().await;
}

#[tokio::test]
async fn own_table_conflict_shows_no_row_of_another_user() {
    let (office, phone) = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    // Ids that are unique within each owner only.
    office
        .sql(&format!(
            "CREATE TABLE tenant_acme.notes (owner uuid, id text, body text, version bigint NOT NULL, PRIMARY KEY (owner, id));
             INSERT INTO tenant_acme.notes VALUES ('{}', 'theme', 'joe''s', 2), ('{sally_id}', 'theme', 'sally''s', 2)",
            office.joe_id
        ))
        .await;
    let edit = json!({"table": "notes", "op": "edit", "id": "theme", "row": {"body": "new"}, "base_version": 1});
    let result = upload(&phone, &[edit]).await.remove(0);
    assert_eq!(
        (&result["status"], &result["server"]["body"]),
        (&json!("conflict"), &json!("joe's")),
        "{result}"
    );
    office.close().await;
}

#[tokio::test]
async fn doctor_fails_for_an_upload_table_without_unique_id() {
    let (office, _) = office().await;
    let ids = async || {
        let nowhere = EngineUrls {
            public: "http://127.0.0.1:1".into(),
            admin: None,
        };
        let checks = doctor::examine(&office.world.config, &nowhere).await;
        let ids = checks
            .into_iter()
            .find(|check| check.name == "postgres.upload_ids")
            .unwrap();
        (ids.level, ids.found, ids.fix)
    };
    assert_eq!(
        ids().await.0,
        doctor::Level::Ok,
        "the table that is there has a primary key"
    );
    office
        .sql("CREATE TABLE tenant_acme.notes (owner uuid, id text, body text, PRIMARY KEY (owner, id))")
        .await;
    // Neither makes ids unique among all rows.
    office
        .sql("CREATE UNIQUE INDEX ON tenant_acme.notes (id) WHERE body IS NOT NULL; CREATE INDEX ON tenant_acme.notes (id)")
        .await;
    let (level, found, fix) = ids().await;
    assert_eq!(
        (level, found.as_str()),
        (doctor::Level::Fail, "not unique in tenant_acme.notes")
    );
    assert_eq!(fix.len(), 1);
    office.sql(fix[0].split('\'').nth(1).unwrap()).await;
    assert_eq!(ids().await.0, doctor::Level::Ok);
    office.close().await;
}

#[tokio::test]
async fn own_table_row_refused_by_postgres_fails_that_item_only() {
    let (office, phone) = office().await;
    office
        .sql("CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, owner uuid, body text)")
        .await;
    let new = |row: Value| task("create", Uuid::new_v4(), row, None);
    let bad = [
        (new(json!({"title": "forbidden"})), "rejected", "VALIDATION_ERROR"),
        (new(json!({"title": null})), "rejected", "VALIDATION_ERROR"),
        (new(json!({})), "rejected", "VALIDATION_ERROR"),
        (
            new(json!({"title": "a", "price": "twelve"})),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (
            new(json!({"title": "a", "due": "someday"})),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (
            new(json!({"title": "a", "photo": "no base64!"})),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (
            new(json!({"title": "a", "tags": {"not": "a list"}})),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (new(json!({"title": "a", "version": 9})), "rejected", "VALIDATION_ERROR"),
        (new(json!({"title": "a", "code": "taken"})), "rejected", "CONFLICT"),
        (
            json!({"table": "tasks", "id": "no uuid", "row": {"title": "a"}}),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (
            json!({"table": "notes", "id": 1, "row": {"body": "a"}, "base_version": 1}),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (
            json!({"table": "notes", "id": 99_999_999_999_i64, "row": {"body": "a"}}),
            "rejected",
            "VALIDATION_ERROR",
        ),
        (
            json!({"table": "absent", "id": 1, "row": {"body": "a"}}),
            "retry",
            "SYNC_ERROR",
        ),
        (
            json!({"table": "readings", "id": 1, "row": {"body": "a"}}),
            "rejected",
            "FORBIDDEN",
        ),
        (
            json!({"table": "messages", "id": 1, "row": {"content": "a"}}),
            "rejected",
            "FORBIDDEN",
        ),
        (json!("nonsense"), "rejected", "VALIDATION_ERROR"),
    ];
    assert_eq!(
        one(&phone, new(json!({"title": "first", "code": "taken"}))).await,
        done(1)
    );
    let mut changes: Vec<Value> = bad.iter().map(|(change, ..)| change.clone()).collect();
    changes.push(new(json!({"title": "good"})));
    changes.push(json!({"table": "notes", "id": 7, "row": {"body": "number"}}));
    let message = json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "with them"});
    let answer = phone
        .post(
            "/api/sync/outgoing",
            &json!({"messages": [message], "changes": changes}),
        )
        .await
        .expect(200);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), bad.len() + 3);
    assert_eq!(
        (&results[0]["status"], results[0].get("table")),
        (&json!("applied"), None)
    );
    for (result, (change, status, code)) in results[1..].iter().zip(&bad) {
        assert_eq!(
            (&result["status"], &result["code"]),
            (&json!(status), &json!(code)),
            "{change} {result}"
        );
        assert!(
            result["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{result}"
        );
    }
    for good in &results[bad.len() + 1..] {
        assert_eq!(good["status"], "applied", "{good}");
    }
    assert_eq!(answer["failed_count"], json!(bad.len()));
    // A table without `deleted_at` loses the row itself.
    assert_eq!(
        one(&phone, json!({"table": "notes", "op": "delete", "id": 7})).await.0,
        "applied"
    );
    assert_eq!(
        one(&phone, json!({"table": "notes", "op": "delete", "id": 7})).await.0,
        "duplicate"
    );
    office.close().await;
}

#[tokio::test]
async fn own_table_trigger_error_is_returned_as_rejection() {
    let (office, phone) = office().await;
    office
        .sql(
            "CREATE FUNCTION tenant_acme.object() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'tasks are closed on Sundays'; END $$;
             CREATE TRIGGER object BEFORE INSERT ON tenant_acme.tasks FOR EACH ROW EXECUTE FUNCTION tenant_acme.object()",
        )
        .await;
    let result = upload(&phone, &[task("create", Uuid::new_v4(), json!({"title": "a"}), None)])
        .await
        .remove(0);
    assert_eq!(
        (&result["status"], &result["message"]),
        (&json!("rejected"), &json!("tasks are closed on Sundays"))
    );
    office.close().await;
}

#[tokio::test]
async fn row_with_changed_id_is_deleted_under_the_old_id() {
    let (office, phone) = office().await;
    office
        .sql("CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, owner uuid, body text)")
        .await;
    let (_, mut cursor) = phone.sync(None).await;
    let joe = office.joe_id;
    // Of one transaction, so that no page may end between the two halves of a change.
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes SELECT n, '{joe}', 'note' FROM generate_series(1, 30) n;
             UPDATE tenant_acme.notes SET id = id + 100"
        ))
        .await;
    office.world.published().await;
    let mut held = std::collections::BTreeSet::new();
    loop {
        let page = phone
            .get(&format!("/api/sync/incoming?limit=7&cursor={cursor}"))
            .await
            .expect(200);
        assert_eq!(page["reset"], false);
        for change in page["changes"].as_array().unwrap() {
            let id = change["id"].as_str().unwrap().to_owned();
            if change["op"] == "delete" {
                held.remove(&id);
            } else {
                held.insert(id);
            }
        }
        cursor = page["cursor"].as_str().unwrap().to_owned();
        if page["has_more"] == false {
            break;
        }
    }
    let expected: std::collections::BTreeSet<String> = (101..=130).map(|id| id.to_string()).collect();
    assert_eq!(held, expected);
    office.close().await;
}

/// The text of `docs/own-tables.md`, carried out: its configuration, then its commands one after the other.
#[tokio::test]
async fn documented_own_table_example_works_unchanged() {
    const TEXT: &str = include_str!("../docs/own-tables.md");
    let blocks = |language: &str| -> String {
        let mut parts = TEXT.split("```");
        let mut found = String::new();
        while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
            found += block.strip_prefix(&format!("{language}\n")).unwrap_or_default();
        }
        found
    };
    let mut world = World::new().await;
    world.config.routes = Config::from_sources(&blocks("yaml"), []).unwrap().routes;
    assert_eq!(world.config.routes.len(), 1);
    let engine = world.engine(Role::All).await;
    world.tenant("demo").await;
    let database = world.database().await;
    for (name, user_type, role) in [
        ("bob", UserType::Web, users::Role::Admin),
        ("joe", UserType::Mobile, users::Role::Member),
    ] {
        let user = NewUser {
            username: name.to_owned(),
            user_type,
            role,
            email: None,
            is_email_unverified: false,
            password: Some("posduif-demo".to_owned()),
        };
        users::create(&database, &world.config.auth, "demo", user)
            .await
            .unwrap();
    }
    world.published().await;
    let script = format!("set -euo pipefail\n{}", blocks("sh"));
    let output = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .env("POSDUIF_URL", format!("http://{}", engine.api().address()))
        .env("DATABASE_URL", world.config.postgres.url.expose())
        .current_dir(std::env::temp_dir())
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{complaint}");
    assert_eq!(printed, blocks("text"), "{complaint}");
    engine.stop().await;
}

#[tokio::test]
async fn types_for_clients_are_those_of_the_columns() {
    let office = Office::with(|config| {
        configure(config);
        config.routes[1].upload.as_mut().unwrap().merge = Some(posduif::config::rule::Merge::Columns);
        config.routes.extend(
            serde_json::from_value::<Vec<_>>(json!([
                {"table": "plans", "to": ["tenant"], "schema": "public", "tenant": {"column": "org"}, "columns": ["title"]},
                {"table": "others", "to": ["tenant"], "schema": "public", "tenant": {"constant": "globex"}},
            ]))
            .unwrap(),
        );
    })
    .await;
    office
        .sql("CREATE TABLE public.plans (id bigint PRIMARY KEY, org text NOT NULL, title text NOT NULL, secret text)")
        .await;
    office
        .sql("CREATE TYPE tenant_acme.mood AS ENUM ('calm', 'in \"love\"'); CREATE DOMAIN tenant_acme.cents AS bigint NOT NULL")
        .await;
    office
        .sql(
            "CREATE TABLE tenant_acme.notes (id uuid PRIMARY KEY, owner uuid NOT NULL, body text, mood tenant_acme.mood,
             price tenant_acme.cents, stars integer[], detail jsonb, \"due at\" timestamptz)",
        )
        .await;
    // Lists are not in the environment.
    let folder = Folder::new();
    let routes = json!({"routes": office.world.config.routes}).to_string();
    let file = folder.write("routes.yaml", &routes);
    let command = format!("client types --tenant acme --config {}", file.display());
    let ended = posduif_says(&office.world, &command).await;
    assert!(ended.stderr.contains("no table \"absent\""), "{}", ended.stderr);
    assert_eq!(
        ended.text(),
        r#"// Rows of the tenant acme, by `posduif client types`. Run it again when a table changes.
import { table } from '@posduif/client'

export type NotesRow = {
  id: string
  owner: string
  body: string | null
  mood: "calm" | "in \"love\"" | null
  price: number | string
  stars: (number | null)[] | null
  detail: unknown | null
  "due at": string | null
}

export type PlansRow = {
  id: number | string
  title: string
}

export const tables = {
  notes: table<NotesRow>({ merge: 'columns' }),
  plans: table<PlansRow>(),
}
"#
    );
    let listed = posduif_says(&office.world, &format!("{command} --json")).await.json();
    assert_eq!(
        listed["tables"][0]["columns"][2],
        json!({"name": "body", "type": "string", "nullable": true})
    );
    office.close().await;
}
