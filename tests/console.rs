//! The admin API and the sessions of the console: who gets in, what is shown and changed, and what is seen under faults.

use std::collections::BTreeSet;
use std::time::Instant;

use hyper::Method;
use posduif::admin::access::AccessKey;
use posduif::api::routes;
use posduif::config::{Config, Secret};
use posduif::engine::Role;
use posduif::postgres::tenants;
use serde_json::{Value, json};

use crate::support::command::posduif_says;
use crate::support::http::{Answer, Api, Events};
use crate::support::office::Office;
use crate::support::proxy::Proxy;
use crate::support::scrape::Scrape;
use crate::support::{World, spec};

const TOKEN: &str = "a token of the admin API for tests";

fn with_token(config: &mut Config) {
    config.admin.token = Secret::new(TOKEN);
    config.admin.actions = true;
}

/// An office whose console may change something, and a client with the token.
async fn office() -> (Office, Api) {
    let office = Office::with(with_token).await;
    let operator = office.anybody.operator(TOKEN);
    (office, operator)
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp()).unwrap()
}

/// A client as a browser is one: without the token.
fn browser(office: &Office) -> Api {
    office.anybody.operator(TOKEN).without("authorization")
}

/// Opens a session; gives the answer.
async fn open(browser: &Api, opening: &Value) -> Answer {
    browser.post("/admin/api/session", opening).await
}

/// The code of a link to the engine of an office.
async fn link(office: &Office) -> String {
    let about = browser(office).get("/admin/api/about").await.expect(200);
    let key = AccessKey::of(&office.world.config).unwrap();
    key.link(about["engine"].as_str().unwrap(), now()).unwrap()
}

/// A browser with the cookie of a session, and the session.
async fn logged_in(office: &Office) -> (Api, Value) {
    let browser = browser(office);
    let opened = open(&browser, &json!({"link": link(office).await})).await;
    let cookie = opened.headers["set-cookie"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    (browser.with("cookie", &cookie), opened.expect(200))
}

/// Opens a stream of the console.
async fn watch(operator: &Api, path: &str) -> Events {
    operator
        .open(path)
        .await
        .unwrap_or_else(|answer| panic!("{path} answered {}", answer.status))
}

/// The next figures of a stream.
async fn figures(events: &mut Events) -> Value {
    events.expect("figures").await.data
}

/// Waits until the figures show a problem of this name; gives it.
async fn problem(events: &mut Events, name: &str) -> Value {
    loop {
        let found = figures(events).await;
        let problems = found["problems"].as_array().unwrap();
        if let Some(problem) = problems.iter().find(|problem| problem["name"] == name) {
            return problem.clone();
        }
    }
}

/// Waits until the figures show no problem.
async fn no_problem(events: &mut Events) {
    while figures(events).await["problems"] != json!([]) {}
}

#[tokio::test]
async fn openapi_of_the_admin_api_has_every_route() {
    let (office, operator) = office().await;
    let served = operator.get("/admin/openapi.json").await.expect(200);
    let described: BTreeSet<String> = served["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let of_api = |path: &str| path.starts_with("/admin/api/");
    let table = routes::admin_table().iter().filter(|route| of_api(route.path));
    let table: BTreeSet<String> = table.map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(described, table);
    assert!(routes::table().iter().all(|route| !route.path.starts_with("/admin")));
    office.close().await;
}

#[tokio::test]
async fn no_admin_route_answers_on_the_public_listener() {
    let (office, _) = office().await;
    let public = office
        .anybody
        .undescribed()
        .with("authorization", &format!("Bearer {TOKEN}"));
    for route in routes::admin_table()
        .iter()
        .filter(|route| route.path.starts_with("/admin") || route.path.starts_with("/console"))
    {
        let path = route.path.replace(['{', '}'], "");
        let status = public.send(route.method.clone(), &path, None, "").await.status;
        assert_eq!(status, 404, "{} {path}", route.method);
    }
    office.close().await;
}

#[tokio::test]
async fn admin_api_is_closed_without_session_or_token() {
    let (office, operator) = office().await;
    let stranger = browser(&office);
    let closed = routes::admin_table()
        .iter()
        .filter(|route| route.path.starts_with("/admin/api/"));
    let is_open = |path: &str, method: &Method| {
        path == "/admin/api/about" || (path == "/admin/api/session" && method == Method::POST)
    };
    for route in closed.filter(|route| !is_open(route.path, &route.method)) {
        let path = route.path.replace(['{', '}'], "");
        for client in [
            &stranger,
            &stranger.with("cookie", "__Host-posduif-console-1=AAAA"),
            &operator.with("authorization", "Bearer wrong"),
        ] {
            let answer = client.send(route.method.clone(), &path, None, "").await;
            assert_eq!(answer.status, 401, "{} {path}", route.method);
        }
    }
    office.close().await;
}

#[tokio::test]
async fn link_opens_one_session_and_is_refused_a_second_time() {
    let office = Office::open().await;
    let browser = browser(&office);
    let code = link(&office).await;
    let opened = open(&browser, &json!({"link": code})).await;
    let cookie = opened.headers["set-cookie"].to_str().unwrap().to_owned();
    for part in [
        "__Host-posduif-console-",
        "; Path=/",
        "; Secure",
        "; HttpOnly",
        "; SameSite=Strict",
    ] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.to_lowercase().contains("domain"), "{cookie}");
    opened.expect(200);
    for bad in [&*code, "", "x", &link(&office).await[1..]] {
        let refused = open(&browser, &json!({"link": bad})).await;
        assert_eq!(
            (refused.status.as_u16(), &*refused.code()),
            (401, "LINK_INVALID"),
            "{bad}"
        );
    }
    let old = AccessKey::of(&office.world.config).unwrap();
    let about = browser.get("/admin/api/about").await.expect(200);
    let old = old.link(about["engine"].as_str().unwrap(), now() - 61).unwrap();
    assert_eq!(open(&browser, &json!({"link": old})).await.code(), "LINK_INVALID");
    office.close().await;
}

#[tokio::test]
async fn printed_link_opens_the_console() {
    let office = Office::open().await;
    let admin = format!("http://{}", office.anybody.admin().address());
    let printed = posduif_says(&office.world, &format!("console --json --admin-url {admin}"))
        .await
        .json();
    let (page, code) = printed["url"].as_str().unwrap().split_once("#link=").unwrap();
    assert_eq!(page, format!("{admin}/console/"));
    open(&browser(&office), &json!({"link": code})).await.expect(200);
    let entries = crate::audit::entries(&office, "console_opened").await;
    assert_eq!((&*entries[0].actor, entries[0].address.is_some()), ("console", true));
    office.close().await;
}

#[tokio::test]
async fn cookie_is_worth_nothing_at_another_host_name_or_after_the_end() {
    let (office, _) = office().await;
    let (browser, session) = logged_in(&office).await;
    browser.get("/admin/api/session").await.expect(200);
    for host in ["evil.example", "evil.example:8081", "localhost"] {
        let stolen = browser.with("host", host);
        assert_eq!(stolen.get("/admin/api/session").await.status, 401, "{host}");
        assert_eq!(stolen.get("/admin/api/slots").await.status, 401, "{host}");
    }
    let csrf = session["csrf"].as_str().unwrap();
    assert_eq!(
        browser.delete("/admin/api/session").await.status,
        403,
        "without the token"
    );
    assert_eq!(
        browser
            .with("x-csrf-token", csrf)
            .delete("/admin/api/session")
            .await
            .status,
        204
    );
    assert_eq!(browser.get("/admin/api/session").await.status, 401);
    office.close().await;
}

#[tokio::test]
async fn session_outlives_a_restart_of_the_engine() {
    let office = Office::open().await;
    let (browser, _) = logged_in(&office).await;
    let second = office.world.engine(Role::Api).await;
    let there = second.api().operator(TOKEN).without("authorization");
    let host = browser.address().to_owned();
    let same = there.with("cookie", browser.header("cookie")).with("host", &host);
    same.get("/admin/api/session").await.expect(200);
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn page_of_another_site_can_neither_read_nor_change() {
    let (office, _) = office().await;
    let (browser, session) = logged_in(&office).await;
    let with_token = browser.with("x-csrf-token", session["csrf"].as_str().unwrap());
    let pause = "/admin/api/tenants/acme/pause";
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
    ] {
        let foreign = with_token.with(name, value);
        assert_eq!(foreign.get("/admin/api/slots").await.status, 403, "{name}: {value}");
        assert_eq!(
            foreign.post(pause, &json!({"confirm": "acme"})).await.status,
            403,
            "{name}: {value}"
        );
        let opening = browser.with(name, value);
        assert_eq!(
            open(&opening, &json!({"link": link(&office).await})).await.status,
            403,
            "{name}: {value}"
        );
    }
    for client in [&browser, &browser.with("x-csrf-token", "wrong")] {
        assert_eq!(client.post(pause, &json!({"confirm": "acme"})).await.status, 403);
    }
    let form = with_token
        .send(
            Method::POST,
            pause,
            Some("application/x-www-form-urlencoded"),
            "confirm=acme",
        )
        .await;
    assert_eq!(form.status, 415);
    with_token.post(pause, &json!({"confirm": "acme"})).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn console_without_actions_changes_nothing() {
    let office = Office::with(|config| config.admin.token = Secret::new(TOKEN)).await;
    let operator = office.anybody.operator(TOKEN);
    assert_eq!(operator.get("/admin/api/session").await.expect(200)["actions"], false);
    for path in ["tenants/acme/pause", "tenants/acme/resync", "slots/posduif/drop"] {
        let refused = operator
            .post(&format!("/admin/api/{path}"), &json!({"confirm": "acme"}))
            .await;
        assert_eq!(
            (refused.status.as_u16(), &*refused.code()),
            (403, "ACTIONS_DISABLED"),
            "{path}"
        );
    }
    office.close().await;
}

#[tokio::test]
async fn values_are_as_described() {
    let (office, operator) = office().await;
    let phone = office.phone("phone").await;
    office.send("hello").await;
    phone.sync(None).await;
    for path in [
        "about",
        "session",
        "status",
        "slots",
        "epochs?limit=5",
        "tenants",
        "tenants/acme",
        "tenants/acme/devices",
        "tenants/acme/devices?user=joe&all=true&limit=1",
        "tenants/acme/devices/phone",
        "tenants/acme/groups",
        "tenants/acme/quarantine",
        "tenants/acme/conflicts",
        "streams",
        "streams?tenant=acme",
        "audit?limit=3",
        "doctor",
        "config",
    ] {
        operator.get(&format!("/admin/api/{path}")).await.expect(200);
    }
    let devices = operator.get("/admin/api/tenants/acme/devices").await.expect(200);
    assert_eq!(
        (&devices["devices"][0]["device_id"], &devices["devices"][0]["username"]),
        (&json!("phone"), &json!("joe"))
    );
    let device = operator.get("/admin/api/tenants/acme/devices/phone").await.expect(200);
    let actions: Vec<&Value> = device["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["action"])
        .collect();
    assert!(actions.contains(&&json!("device_added")), "{device}");
    for path in ["tenants/nobody", "tenants/acme/devices/nobody", "tenants/Acme"] {
        assert_eq!(operator.get(&format!("/admin/api/{path}")).await.status, 404, "{path}");
    }
    for path in ["audit?limit=0", "audit?before=x", "epochs?limit=9999", "trace?user=x"] {
        assert_eq!(operator.get(&format!("/admin/api/{path}")).await.status, 400, "{path}");
    }
    let config = operator.get("/admin/api/config").await.expect(200).to_string();
    assert!(!config.contains(TOKEN) && !config.contains(office.world.config.auth.jwt_secret.expose()));
    office.close().await;
}

#[tokio::test]
async fn actions_need_the_name_and_are_audited() {
    let (office, operator) = office().await;
    let _phone = office.phone("phone").await;
    office
        .sql("SELECT pg_create_logical_replication_slot('abandoned_' || current_database(), 'pgoutput')")
        .await;
    let slot = format!(
        "abandoned_{}",
        office
            .world
            .psql()
            .await
            .query_one("SELECT current_database()::text", &[])
            .await
            .unwrap()
            .get::<_, String>(0)
    );
    for (path, name, action) in [
        ("tenants/acme/pause", "acme", "tenant_paused"),
        ("tenants/acme/resume", "acme", "tenant_resumed"),
        ("tenants/acme/resync", "acme", "tenant_resynced"),
        ("tenants/acme/devices/phone/resync", "phone", "user_resynced"),
        ("tenants/acme/devices/phone/revoke", "phone", "device_revoked"),
        (&*format!("slots/{slot}/drop"), &*slot, "slot_dropped"),
    ] {
        let path = format!("/admin/api/{path}");
        for wrong in [json!({"confirm": "other"}), json!({"confirm": ""})] {
            let refused = operator.post(&path, &wrong).await;
            assert_eq!(
                (refused.status.as_u16(), &*refused.code()),
                (400, "CONFIRM_MISMATCH"),
                "{path}"
            );
        }
        assert_eq!(operator.post(&path, &json!({})).await.status, 400, "{path}");
        operator.post(&path, &json!({"confirm": name})).await.expect(200);
        let entry = crate::audit::entries(&office, action).await.pop().unwrap();
        assert_eq!((&*entry.actor, entry.address.is_some()), ("console", true), "{action}");
    }
    let own = &office.world.config.replication.slot;
    let used = operator
        .post(&format!("/admin/api/slots/{own}/drop"), &json!({"confirm": own}))
        .await;
    assert_eq!((used.status.as_u16(), &*used.code()), (409, "CONFLICT"));
    let again = operator
        .post(
            "/admin/api/tenants/acme/devices/phone/revoke",
            &json!({"confirm": "phone"}),
        )
        .await;
    assert_eq!(again.status, 404);
    office.close().await;
}

#[tokio::test]
async fn conflict_is_resolved_by_the_operator() {
    let office = Office::with(|config| {
        with_token(config);
        config.sync.conflict_strategy = posduif::config::ConflictStrategy::Manual;
    })
    .await;
    let operator = office.anybody.operator(TOKEN);
    let phone = office.phone("phone").await;
    let message = uuid::Uuid::new_v4();
    let edit = |content: &str| json!({"id": message, "op": "edit", "content": content, "base_version": 1});
    let create = json!({"id": message, "recipient_id": office.bob_id, "content": "first"});
    phone.upload(&[create, edit("server's")]).await;
    phone.upload(&[edit("phone's")]).await;
    let listed = operator.get("/admin/api/tenants/acme/conflicts").await.expect(200);
    let conflict = &listed["conflicts"][0];
    assert_eq!(
        (&conflict["username"], &conflict["resolution"]),
        (&json!("joe"), &Value::Null),
        "{listed}"
    );
    assert_eq!(
        (&conflict["client"]["content"], &conflict["server"]["content"]),
        (&json!("phone's"), &json!("server's"))
    );
    let id = conflict["id"].as_str().unwrap();
    let path = format!("/admin/api/tenants/acme/conflicts/{id}/resolve");
    assert_eq!(
        operator.post(&path, &json!({"confirm": id})).await.status,
        400,
        "without a choice"
    );
    operator
        .post(&path, &json!({"confirm": id, "choose": "client"}))
        .await
        .expect(200);
    let listed = operator.get("/admin/api/tenants/acme/conflicts").await.expect(200);
    assert_eq!(listed["conflicts"][0]["resolution"], "client");
    assert_eq!(office.message(&message.to_string()).await["content"], "phone's");
    let entry = crate::audit::entries(&office, "conflict_resolved").await.pop().unwrap();
    assert_eq!((&*entry.actor, entry.subject.as_deref()), ("console", Some(id)));
    office.close().await;
}

#[tokio::test]
async fn figures_begin_with_the_past_and_follow_each_second() {
    let (office, operator) = office().await;
    let mut events = watch(&operator, "/admin/api/figures").await;
    let history = events.expect("history").await.data;
    let schemas = &spec::admin_document()["components"]["schemas"];
    spec::check_value(spec::admin_document(), "History", &schemas["History"], &history);
    office.send("hello").await;
    let mut first = figures(&mut events).await;
    while first["slots"].as_array().is_none_or(Vec::is_empty) || first["devices"].is_null() {
        first = figures(&mut events).await;
    }
    spec::check_value(spec::admin_document(), "Figures", &schemas["Figures"], &first);
    let second = figures(&mut events).await;
    assert!(second["at"].as_f64() > first["at"].as_f64());
    assert_eq!(
        second["row"].as_array().unwrap().len(),
        history["columns"].as_array().unwrap().len()
    );
    assert_eq!(
        (&second["verdict"]["level"], &second["ready"]),
        (&json!("ok"), &json!(true)),
        "{second}"
    );
    office.close().await;
}

#[tokio::test]
async fn stopped_redis_is_the_verdict_at_once_until_it_is_back() {
    let (mut world, url) = (World::new().await, std::env::var("REDIS_URL").unwrap());
    let redis = Proxy::before(&url).await;
    with_token(&mut world.config);
    world.config.redis.url = Secret::new(redis.url(&url));
    let office = Office::within(world, |_| {}).await;
    let mut events = watch(&office.anybody.operator(TOKEN), "/admin/api/figures").await;
    no_problem(&mut events).await;
    redis.refuse();
    let found = problem(&mut events, "redis").await;
    assert_eq!(
        (&found["level"], &found["command"]),
        (&json!("fail"), &json!("systemctl start redis-server"))
    );
    redis.resume();
    no_problem(&mut events).await;
    office.close().await;
}

#[tokio::test]
async fn abandoned_slot_and_paused_tenant_are_problems_whose_command_fixes_them() {
    let (office, operator) = office().await;
    let mut events = watch(&operator, "/admin/api/figures").await;
    no_problem(&mut events).await;
    let name: String = office
        .world
        .psql()
        .await
        .query_one("SELECT 'left_' || current_database()", &[])
        .await
        .unwrap()
        .get(0);
    office
        .sql(&format!(
            "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
        ))
        .await;
    let mut found = problem(&mut events, "slot").await;
    // Slots of tests that run beside this one may be there as well.
    while !found["command"].as_str().unwrap().contains(&name) {
        found = problem(&mut events, "slot").await;
    }
    assert_eq!(found["level"], "warn");
    let command = found["command"]
        .as_str()
        .unwrap()
        .strip_prefix("posduif ")
        .unwrap()
        .to_owned();
    posduif_says(&office.world, &command).await.text();
    let database = office.world.database().await;
    tenants::set_paused(&database, "acme", true, &posduif::postgres::audit::Actor::cli())
        .await
        .unwrap();
    let found = problem(&mut events, "paused").await;
    let command = found["command"]
        .as_str()
        .unwrap()
        .strip_prefix("posduif ")
        .unwrap()
        .to_owned();
    posduif_says(&office.world, &command).await.text();
    no_problem(&mut events).await;
    office.close().await;
}

#[tokio::test]
async fn quarantined_change_is_a_problem_until_it_is_retried_or_dropped() {
    let office = Office::with(|config| {
        with_token(config);
        config.routes = vec![serde_json::from_value(json!({"table": "orders", "to": ["owner_id"]})).unwrap()];
    })
    .await;
    let operator = office.anybody.operator(TOKEN);
    let mut events = watch(&operator, "/admin/api/figures").await;
    no_problem(&mut events).await;
    office
        .sql("CREATE TABLE tenant_acme.orders (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner_id text); \
              ALTER TABLE tenant_acme.orders REPLICA IDENTITY FULL; INSERT INTO tenant_acme.orders (owner_id) VALUES ('not an id')")
        .await;
    let found = problem(&mut events, "quarantine").await;
    assert_eq!(found["command"], "posduif stream quarantine retry --tenant acme --all");
    let listed = operator.get("/admin/api/tenants/acme/quarantine").await.expect(200);
    let entry = &listed["entries"][0];
    assert_eq!(
        (&listed["count"], &entry["table"], &entry["remedy"]["action"]),
        (&json!(1), &json!("orders"), &json!("write row"))
    );
    let id = entry["id"].as_str().unwrap();
    let retry = async |id: &str| {
        let path = format!("/admin/api/tenants/acme/quarantine/{id}/retry");
        operator.post(&path, &json!({"confirm": id})).await
    };
    // The row still names no user.
    let refused = retry(id).await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (409, "CONFLICT"));
    office.sql("UPDATE tenant_acme.orders SET owner_id = NULL").await;
    retry(id).await.expect(200);
    no_problem(&mut events).await;

    office
        .sql("INSERT INTO tenant_acme.orders (owner_id) VALUES ('not an id')")
        .await;
    problem(&mut events, "quarantine").await;
    let listed = operator.get("/admin/api/tenants/acme/quarantine").await.expect(200);
    let id = listed["entries"][0]["id"].as_str().unwrap();
    operator
        .post(
            &format!("/admin/api/tenants/acme/quarantine/{id}/drop"),
            &json!({"confirm": id}),
        )
        .await
        .expect(200);
    no_problem(&mut events).await;
    office.close().await;
}

#[tokio::test]
async fn device_that_does_not_sync_is_a_problem_whose_command_fixes_it() {
    let office = Office::with(|config| {
        with_token(config);
        config.health.device_behind_seconds = 1;
    })
    .await;
    let mut events = watch(&office.anybody.operator(TOKEN), "/admin/api/figures").await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    phone
        .post("/api/sync/ack", &json!({"cursor": cursor}))
        .await
        .expect(200);
    // A client that follows its stream, and for some reason does not sync.
    let mut live = phone.events("/sse/mobile/phone").await;
    office.send("hello").await;
    live.expect("message").await;
    let found = problem(&mut events, "device").await;
    assert_eq!(
        (&found["level"], &found["command"]),
        (
            &json!("warn"),
            &json!("posduif device resync phone --tenant acme --yes")
        )
    );
    let listed = office
        .anybody
        .operator(TOKEN)
        .get("/admin/api/tenants/acme/devices")
        .await;
    let behind = &listed.expect(200)["devices"][0]["behind"];
    assert_eq!((&behind["rows"], &behind["at_least"]), (&json!(1), &json!(false)));
    let command = found["command"].as_str().unwrap().strip_prefix("posduif ").unwrap();
    posduif_says(&office.world, command).await.text();
    live.expect("reset").await;
    let (_, cursor) = phone.sync(Some(&cursor)).await;
    phone
        .post("/api/sync/ack", &json!({"cursor": cursor}))
        .await
        .expect(200);
    no_problem(&mut events).await;
    office.close().await;
}

#[tokio::test]
async fn trace_shows_the_life_of_a_row() {
    let (office, operator) = office().await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    let mut live = phone.events("/sse/mobile/phone").await;
    let mut trace = watch(&operator, "/admin/api/trace?tenant=acme&table=messages").await;
    let id = office.send("hello").await;
    let change = trace.expect("change").await.data;
    let schemas = &spec::admin_document()["components"]["schemas"];
    spec::check_value(spec::admin_document(), "Change", &schemas["Change"], &change);
    assert_eq!((&change["op"], &change["row_id"]), (&json!("insert"), &json!(id)));
    live.expect("message").await;
    let (_, cursor) = phone.sync(Some(&cursor)).await;
    phone
        .post("/api/sync/ack", &json!({"cursor": cursor}))
        .await
        .expect(200);
    let mut steps = BTreeSet::new();
    while !["published", "durable", "notified", "delivered", "acknowledged"]
        .iter()
        .all(|step| steps.contains(*step))
    {
        let step = trace.expect("step").await.data;
        spec::check_value(spec::admin_document(), "Step", &schemas["Step"], &step);
        // The acknowledgement changes the message's status, which is a change of its own.
        if step["id"] != change["id"] {
            continue;
        }
        assert!(step["ms"].as_f64().unwrap() >= 0.0, "{step}");
        let is_reader = !matches!(step["step"].as_str().unwrap(), "published" | "durable");
        assert_eq!(
            step["device"],
            if is_reader { json!("phone") } else { Value::Null },
            "{step}"
        );
        steps.insert(step["step"].as_str().unwrap().to_owned());
    }
    office.close().await;
}

#[tokio::test]
async fn ten_watchers_cost_one_postgres_statement_a_second() {
    let (office, operator) = office().await;
    let mut watchers = Vec::new();
    for _ in 0..10 {
        watchers.push(watch(&operator, "/admin/api/figures").await);
    }
    let total = async || Scrape::of(&office.anybody).await.samples["posduif_pool_connections_acquired_total"];
    for watcher in &mut watchers {
        no_problem(watcher).await;
    }
    let (before, began) = (total().await, Instant::now());
    for _ in 0..6 {
        for watcher in &mut watchers {
            figures(watcher).await;
        }
    }
    let (after, seconds) = (total().await, began.elapsed().as_secs_f64());
    // Each statement takes a connection of the pool once; the heartbeat has one of its own. Other tasks of the engine run a
    // few.
    assert!(
        after - before <= seconds + 4.0,
        "{} statements in {seconds} s",
        after - before
    );
    office.close().await;
}
