//! `posduif dev`: the engine as its child, and the server of its demo.

use std::time::Duration;

use hyper::Method;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::dev::{Dev, Folder};
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::{TIMEOUT, eventually};

async fn run_sql(dev: &Dev, statement: &str) -> Answer {
    dev.demo().post("/demo/api/sql", &json!({"sql": statement})).await
}

/// The SQLSTATE of a statement that must be refused.
async fn refusal(dev: &Dev, statement: &str) -> String {
    let answer = run_sql(dev, statement).await;
    assert_eq!(answer.code(), "SQL_ERROR", "{statement}: {:?}", answer.json());
    let refusal = answer.expect(400);
    refusal["error"]["sqlstate"].as_str().unwrap_or_default().to_owned()
}

async fn new_engine(dev: &Dev, old: i32) -> i32 {
    eventually("another engine serves at the same address", || async {
        let pid = dev.engine_pid().filter(|pid| *pid != old)?;
        let answer = dev.api().try_send(Method::GET, "/health", None, "").await.ok()?;
        (answer.status == 200).then_some(pid)
    })
    .await
}

#[tokio::test]
async fn killed_engine_is_replaced_at_the_same_address() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    let log_in = json!({"username": "bob", "password": "posduif-demo"});
    let bob = dev.api().post("/api/auth/login", &log_in).await.expect(200);
    let bob = dev
        .api()
        .with("authorization", &format!("Bearer {}", bob["token"].as_str().unwrap()));
    let tasks = async |bob: &Api| bob.get("/api/tables/tasks").await.expect(200)["rows"].clone();
    let before = tasks(&bob).await;
    assert_eq!(before.as_array().unwrap().len(), 3, "{before}");

    // By an operator, and by the demo's page.
    let first = dev.engine_pid().unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let second = new_engine(&dev, first).await;
    assert_eq!(tasks(&bob).await, before);
    let killed = dev.demo().post("/demo/api/engine/kill", &json!({})).await.expect(200);
    assert_eq!(killed, json!({"pid": second}));
    new_engine(&dev, second).await;
    assert_eq!(tasks(&bob).await, before);
    dev.end(Signal::SIGTERM).await;
    assert_eq!(folder.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn engine_ends_with_a_dev_that_is_killed() {
    let folder = Folder::new();
    let mut dev = Dev::start(&folder).await;
    let engine = Pid::from_raw(dev.engine_pid().unwrap());
    dev.child.kill().await.unwrap();
    eventually("the engine has ended", || async {
        let status = std::fs::read_to_string(format!("/proc/{engine}/status")).unwrap_or_default();
        (kill(engine, None) == Err(Errno::ESRCH) || status.contains("State:\tZ")).then_some(())
    })
    .await;
    // Postgres and Redis of the killed one are found and stopped.
    Dev::start(&folder).await.end(Signal::SIGTERM).await;
    assert_eq!(folder.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn engine_error_ends_dev_with_its_exit_code() {
    let folder = Folder::new();
    let mut command = crate::support::command::posduif();
    command.env("POSDUIF__AUTH__JWT_SECRET", "short");
    let arguments = ["dev", "--port", "0", "--data", folder.path()];
    let complaint = crate::support::command::run(&mut command, &arguments).await;
    assert_eq!(complaint.code, Some(1), "{}", complaint.stderr);
    let stated = complaint.stderr.matches("posduif: ").count();
    assert!(
        complaint.stderr.contains("auth.jwt_secret") && stated == 1,
        "{}",
        complaint.stderr
    );
    assert_eq!(folder.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn sql_box_does_what_the_demo_needs_and_nothing_else() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    let inserted = run_sql(
        &dev,
        "INSERT INTO tasks (list_id, title) SELECT id, 'Eggs' FROM lists RETURNING title, done",
    )
    .await
    .expect(200);
    assert_eq!(inserted["command"], "INSERT 0 1");
    assert_eq!(inserted["columns"], json!(["title", "done"]));
    assert_eq!(inserted["rows"], json!([["Eggs", "f"]]));
    let many = run_sql(&dev, "SELECT generate_series(1, 1000)").await.expect(200);
    assert_eq!(many["command"], "SELECT 1000");
    assert_eq!(many["truncated"], true);
    assert_eq!(many["rows"].as_array().unwrap().len(), 50);
    for readable in ["messages", "users", "message_conflicts", "list_members"] {
        run_sql(&dev, &format!("SELECT * FROM {readable}")).await.expect(200);
    }

    for (statement, sqlstate) in [
        ("SELECT * FROM posduif.tenants", "42501"),
        ("SELECT * FROM devices", "42501"),
        ("UPDATE users SET username = 'x'", "42501"),
        ("COPY tasks TO PROGRAM 'id'", "42501"),
        ("SELECT pg_read_file('/etc/passwd')", "42501"),
        ("SELECT pg_logical_emit_message(true, 'posduif:x', '{}')", "42501"),
        ("SELECT lo_create(0)", "42501"),
        ("CREATE TABLE tenant_demo.mine (id int)", "42501"),
        ("CREATE TABLE public.mine (id int)", "42501"),
        ("CREATE TEMP TABLE mine (id int)", "42501"),
        ("ALTER TABLE tasks ADD COLUMN x int", "42501"),
        ("DROP TABLE tasks", "42501"),
        ("SET ROLE posduif", "42501"),
        ("SET SESSION AUTHORIZATION posduif", "42501"),
        ("ALTER ROLE posduif_demo SUPERUSER", "42501"),
        ("ALTER SYSTEM SET fsync = off", "42501"),
        ("SELECT 1; SELECT 2", "42601"),
        ("COMMIT; SELECT 1", "42601"),
        ("SELECT pg_sleep(10)", "57014"),
        // Its result would fill the memory.
        ("SELECT repeat('x', 50000000)", ""),
        // It catches its cancellation.
        (
            "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(9); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
            "",
        ),
    ] {
        assert_eq!(refusal(&dev, statement).await, sqlstate, "{statement}");
    }
    // What a role may change of itself does not last.
    for own in [
        "ALTER ROLE posduif_demo PASSWORD 'another'",
        "ALTER ROLE posduif_demo SET statement_timeout = 0",
    ] {
        run_sql(&dev, own).await.expect(200);
    }
    let settings = run_sql(&dev, "SELECT session_user, current_setting('statement_timeout')").await;
    assert_eq!(settings.expect(200)["rows"], json!([["posduif_demo", "2s"]]));
    dev.end(Signal::SIGTERM).await;
}

#[tokio::test]
async fn truth_has_exactly_the_rows_of_a_member() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    let setup = dev.demo().get("/demo/api/setup").await.expect(200);
    assert_eq!(setup["features"], json!({"sql": true, "kill": true, "redis": true}));
    assert_eq!(setup["list"]["name"], "Groceries");
    for statement in [
        "INSERT INTO lists (name) VALUES ('Others')",
        "INSERT INTO tasks (list_id, title) SELECT id, 'of another list' FROM lists WHERE name = 'Others'",
        "UPDATE tasks SET deleted_at = now() WHERE title = 'Bread'",
        "INSERT INTO messages (sender_id, recipient_id, content)
         SELECT b.id, j.id, 'to joe' FROM users b, users j WHERE b.username = 'bob' AND j.username = 'joe'",
    ] {
        run_sql(&dev, statement).await.expect(200);
    }
    let truth = async |user: &str| {
        let id = setup["users"][user].as_str().unwrap();
        let truth = dev.demo().get(&format!("/demo/api/truth?user={id}")).await.expect(200);
        let texts = |list: &str, field: &str| -> Vec<Value> {
            truth[list]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row[field].clone())
                .collect()
        };
        json!([
            texts("lists", "name"),
            texts("tasks", "title"),
            texts("messages", "content")
        ])
    };
    let shared = json!([["Groceries"], ["Milk", "Apples"], ["to joe"]]);
    assert_eq!(truth("joe").await, shared);
    assert_eq!(truth("bob").await, shared);
    assert_eq!(truth("jane").await, json!([[], [], []]));

    // Who leaves the list sees none of it any more; a restart does not add the member or the task again.
    run_sql(
        &dev,
        "DELETE FROM list_members USING users WHERE users.id = user_id AND username = 'joe'",
    )
    .await
    .expect(200);
    assert_eq!(truth("joe").await, json!([[], [], ["to joe"]]));
    let ms = dev.demo().post("/demo/api/redis/restart", &json!({})).await.expect(200);
    assert!(ms["ms"].is_u64(), "{ms}");
    dev.end(Signal::SIGTERM).await;
    let dev = Dev::start(&folder).await;
    let joe = setup["users"]["joe"].as_str().unwrap();
    let truth = dev.demo().get(&format!("/demo/api/truth?user={joe}")).await.expect(200);
    assert_eq!(truth["tasks"], json!([]));
    dev.end(Signal::SIGTERM).await;
}

#[tokio::test]
async fn demo_refuses_foreign_hosts_and_pages() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    let page = dev.demo();
    let statement = json!({"sql": "SELECT 1"});
    page.post("/demo/api/sql", &statement).await.expect(200);
    let own_site = page.with("sec-fetch-site", "same-origin");
    own_site.post("/demo/api/sql", &statement).await.expect(200);

    for path in ["/", "/demo/", "/demo/api/setup", "/demo/api/events", "/nothing"] {
        let answer = page.with("host", "evil.example").get(path).await;
        assert_eq!(answer.code(), "MISDIRECTED_REQUEST", "{path}");
        assert_eq!(answer.status, 421);
    }
    for (what, sender) in [
        ("another origin", page.with("origin", "http://evil.example")),
        ("another port", page.with("origin", "http://127.0.0.1:1")),
        ("no origin", page.without("origin")),
        ("an opaque origin", page.with("origin", "null")),
        ("another site", page.with("sec-fetch-site", "cross-site")),
        ("another subdomain", page.with("sec-fetch-site", "same-site")),
    ] {
        for path in ["sql", "engine/kill", "redis/restart", "console-link"] {
            let answer = sender.post(&format!("/demo/api/{path}"), &statement).await;
            assert_eq!(answer.code(), "FOREIGN_ORIGIN", "{what}: {path}");
            assert_eq!(answer.status, 403);
        }
    }
    let answer = page.with("sec-fetch-site", "cross-site").get("/demo/api/setup").await;
    assert_eq!(answer.status, 403);
    let form = page
        .send(Method::POST, "/demo/api/sql", Some("text/plain"), statement.to_string())
        .await;
    assert_eq!(form.status, 415);
    let large = json!({"sql": "x".repeat(64 * 1024)});
    assert_eq!(page.post("/demo/api/sql", &large).await.status, 413);
    let root = page.get("/").await;
    assert_eq!(
        (root.status.as_u16(), &root.headers["location"]),
        (303, &"/demo/".parse().unwrap())
    );
    for header in ["x-content-type-options", "referrer-policy", "content-security-policy"] {
        assert!(root.headers.contains_key(header), "{header}");
    }
    dev.end(Signal::SIGTERM).await;
}

#[tokio::test]
async fn event_stream_outlives_the_engine() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    let mut events = dev.demo().open("/demo/api/events").await.unwrap();
    let mut next = async |name: &str| events.expect(name).await.data;
    let first = next("engine").await;
    assert_eq!((&first["state"], &first["down_ms"]), (&json!("up"), &Value::Null));
    let killed = dev.demo().post("/demo/api/engine/kill", &json!({})).await.expect(200);
    assert_eq!(killed["pid"], first["pid"]);
    assert_eq!(next("engine").await["state"], "down");
    let second = next("engine").await;
    assert_eq!(second["state"], "up");
    assert!(second["pid"] != first["pid"] && second["down_ms"].is_u64(), "{second}");
    // The trace of the new engine comes through, as do links to its console.
    let traced = async {
        loop {
            run_sql(&dev, "UPDATE tasks SET done = NOT done WHERE title = 'Milk'")
                .await
                .expect(200);
            let change = tokio::time::timeout(Duration::from_millis(500), next("change")).await;
            // The first engine may have been killed before it published the demo's rows.
            if let Ok(change) = change
                && change["op"] == "update"
            {
                return change;
            }
        }
    };
    let change = tokio::time::timeout(TIMEOUT, traced).await.expect("a change in time");
    assert_eq!(change["table"], "tasks");
    let link = dev.demo().post("/demo/api/console-link", &json!({})).await.expect(200);
    assert!(link["url"].as_str().unwrap().contains("/console/#link="), "{link}");
    // An open stream does not delay the end.
    dev.end(Signal::SIGTERM).await;
}

#[tokio::test]
async fn root_of_the_api_redirects_or_says_what_it_is() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    for method in [Method::GET, Method::HEAD] {
        let root = dev.api().send(method, "/", None, "").await;
        assert_eq!(root.status, 303);
        assert!(root.headers["location"].to_str().unwrap().ends_with("/demo/"));
    }
    // The page of the demo calls the API.
    let page = dev.demo();
    let origin = page.header("origin");
    let answer = dev.api().with("origin", origin).get("/health").await;
    assert_eq!(answer.headers["access-control-allow-origin"], origin);
    dev.end(Signal::SIGTERM).await;

    let office = Office::open().await;
    let page = office.anybody.get("/").await;
    assert_eq!(
        (page.status.as_u16(), &page.headers["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(
        text.contains(env!("CARGO_PKG_VERSION")) && text.contains("/openapi.json"),
        "{text}"
    );
    assert!(!text.contains("<script"), "{text}");
    let head = office.anybody.send(Method::HEAD, "/", None, "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    office.close().await;
}

#[tokio::test]
async fn demo_leaves_tables_of_the_same_names_alone() {
    let folder = Folder::new();
    let dev = Dev::start(&folder).await;
    for statement in [
        "CREATE SCHEMA tenant_other",
        "CREATE TABLE tenant_other.tasks (id int PRIMARY KEY)",
    ] {
        dev.sql(&folder, statement).await;
    }
    dev.end(Signal::SIGTERM).await;
    let dev = Dev::start(&folder).await;
    let setup = dev.demo().get("/demo/api/setup").await.expect(200);
    assert_eq!(setup["list"], Value::Null);
    let file = std::fs::read_to_string(folder.0.join("dev.yaml")).unwrap();
    assert!(!file.contains("tasks"), "{file}");
    run_sql(&dev, "SELECT * FROM messages").await.expect(200);
    dev.end(Signal::SIGTERM).await;
}
