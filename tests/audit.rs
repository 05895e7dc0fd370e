//! The audit log: each act has an entry, from the same transaction where there is one; the table is append-only.

use std::collections::BTreeSet;

use hyper::Method;
use nix::sys::signal::Signal;
use posduif::config::Config;
use posduif::postgres::audit::{self, ACTIONS, Actor, Entry, Filter};
use posduif::postgres::tenants;
use serde_json::{Value, json};

use crate::support::command::{posduif_in, posduif_says, run};
use crate::support::office::Office;
use crate::support::running::Running;
use crate::support::{PASSWORD, eventually};

/// The entries of an action, oldest first.
pub(crate) async fn entries(office: &Office, action: &str) -> Vec<Entry> {
    let filter = Filter {
        action: Some(action.to_owned()),
        ..Filter::default()
    };
    let database = office.world.database().await;
    let mut found = audit::list(&database, &filter, 1000).await.unwrap();
    found.reverse();
    found
}

/// The newest entry of an action.
async fn newest(office: &Office, action: &str) -> Entry {
    entries(office, action)
        .await
        .pop()
        .unwrap_or_else(|| panic!("no {action}"))
}

fn behind_a_proxy(config: &mut Config) {
    config.server.trusted_proxies = vec![String::from("127.0.0.1").try_into().unwrap()];
    config.auth.registration_open = true;
}

#[tokio::test]
async fn acts_over_http_are_recorded_with_actor_and_client_address() {
    let office = Office::with(behind_a_proxy).await;
    let bob = office.bob.with("x-forwarded-for", "203.0.113.9");
    let bob_id = office.bob_id.to_string();
    let is_of = |entry: &Entry, actor: &str| {
        assert_eq!(entry.actor, actor, "{entry:?}");
        assert_eq!(entry.tenant.as_deref(), Some("acme"), "{entry:?}");
        assert_eq!(entry.address, Some("203.0.113.9".parse().unwrap()), "{entry:?}");
    };

    let created = bob
        .post("/api/enrollment/create", &json!({"user_id": office.joe_id}))
        .await
        .expect(201);
    let entry = newest(&office, "enrollment_created").await;
    is_of(&entry, &bob_id);
    assert_eq!(entry.subject.as_deref(), created["id"].as_str());
    assert_eq!(entry.detail, json!({"user_id": office.joe_id}));
    let anybody = office.anybody.with("x-forwarded-for", "203.0.113.9");
    let completion = json!({"token": created["token"], "device_id": "phone-1"});
    anybody.post("/api/enrollment/complete", &completion).await.expect(201);
    let entry = newest(&office, "enrollment_completed").await;
    is_of(&entry, &office.joe_id.to_string());
    assert_eq!(entry.detail, json!({"device_id": "phone-1"}));
    let entry = newest(&office, "device_added").await;
    is_of(&entry, &office.joe_id.to_string());
    assert_eq!(entry.subject.as_deref(), Some("phone-1"));
    bob.send(Method::DELETE, "/api/devices/phone-1", None, "")
        .await
        .expect(204);
    let entry = newest(&office, "device_revoked").await;
    is_of(&entry, &bob_id);
    assert_eq!(entry.detail, json!({"user_id": office.joe_id}));

    let created = bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let path = format!("/api/enrollment/{}", created["token"].as_str().unwrap());
    bob.send(Method::DELETE, &path, None, "").await.expect(204);
    is_of(&newest(&office, "enrollment_withdrawn").await, &bob_id);

    let body = json!({"tenant": "acme", "username": "ann", "password": "plain horse battery"});
    let ann = anybody.post("/api/auth/register", &body).await.expect(201);
    let entry = newest(&office, "user_created").await;
    is_of(&entry, "anonymous");
    assert_eq!(entry.subject.as_deref(), ann["user"]["id"].as_str());
    assert_eq!(
        entry.detail,
        json!({"username": "ann", "user_type": "web", "role": "member"})
    );

    let login = json!({"tenant": "acme", "username": "bob", "password": PASSWORD, "device": {"id": "page-1"}});
    anybody.post("/api/auth/login", &login).await.expect(200);
    let entry = newest(&office, "device_added").await;
    is_of(&entry, &bob_id);
    assert_eq!(entry.subject.as_deref(), Some("page-1"));
    // The device is known, so that a second login adds none.
    anybody.post("/api/auth/login", &login).await.expect(200);
    assert_eq!(entries(&office, "device_added").await.len(), 2);

    let sessions = bob.get("/api/auth/sessions").await.expect(200);
    let mut others = sessions["sessions"].as_array().unwrap().iter();
    let other = others.find(|session| session["current"] == false).unwrap();
    let other = other["id"].as_str().unwrap();
    let path = format!("/api/auth/sessions/{other}");
    bob.send(Method::DELETE, &path, None, "").await.expect(204);
    let entry = newest(&office, "session_ended").await;
    is_of(&entry, &bob_id);
    assert_eq!(entry.subject.as_deref(), Some(other));
    bob.send(Method::DELETE, "/api/auth/sessions", None, "")
        .await
        .expect(204);
    is_of(&newest(&office, "sessions_ended").await, &bob_id);
    let change = json!({"current": PASSWORD, "new": "another correct horse"});
    bob.post("/api/auth/password", &change).await.expect(204);
    is_of(&newest(&office, "password_changed").await, &bob_id);
    office.close().await;
}

#[tokio::test]
async fn refused_acts_leave_no_entry() {
    let office = Office::open().await;
    office
        .world
        .user("acme", "jane", posduif::accounts::users::UserType::Web)
        .await;
    let jane = office.anybody.log_in("acme", "jane").await;
    office.phone("phone-1").await;
    let database = office.world.database().await;
    let all = async || audit::list(&database, &Filter::default(), 1000).await.unwrap();
    let before = all().await;
    for (method, path, body, status) in [
        (Method::DELETE, "/api/devices/phone-1", None, 403),
        (Method::DELETE, "/api/devices/none", None, 404),
        (
            Method::POST,
            "/api/enrollment/create",
            Some(json!({"user_id": office.joe_id})),
            403,
        ),
        (
            Method::POST,
            "/api/devices",
            Some(json!({"name": "Mine", "type": "browser", "device_id": "phone-1"})),
            409,
        ),
        (
            Method::POST,
            "/api/auth/password",
            Some(json!({"current": "wrong", "new": "another correct horse"})),
            403,
        ),
    ] {
        let content_type = body.is_some().then_some("application/json");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        jane.send(method, path, content_type, body).await.expect(status);
    }
    assert_eq!(all().await, before);
    office.close().await;
}

#[tokio::test]
async fn failed_logins_are_recorded_within_a_rate_and_counted() {
    let office = Office::with(behind_a_proxy).await;
    let here = office.anybody.with("x-forwarded-for", "198.51.100.7");
    let fail = async |name: &str| {
        let body = json!({"tenant": "acme", "username": name, "password": "wrong"});
        here.post("/api/auth/login", &body).await.expect(401);
    };
    fail("bob").await;
    let entry = newest(&office, "login_failed").await;
    assert_eq!(
        (&*entry.actor, entry.tenant.as_deref(), entry.subject.as_deref()),
        ("anonymous", Some("acme"), Some("bob"))
    );
    assert_eq!(entry.address, Some("198.51.100.7".parse().unwrap()));
    assert_eq!(entry.detail, json!({"reason": "refused", "skipped": 0}));
    fail("b\u{1b}[31mob").await;
    let entry = newest(&office, "login_failed").await;
    assert_eq!(entry.subject.as_deref(), Some("b\\u{1b}[31mob"));
    for _ in 0..15 {
        fail("nobody").await;
    }
    // One more may come back while this runs on a slow machine.
    let count = entries(&office, "login_failed").await.len();
    assert!((10..=13).contains(&count), "{count}");
    // Another address has entries of its own, and its first tells how many have none.
    let there = office.anybody.with("x-forwarded-for", "198.51.100.8");
    let body = json!({"tenant": "no tenant", "username": "bob", "password": "wrong"});
    there.post("/api/auth/login", &body).await.expect(401);
    let entry = newest(&office, "login_failed").await;
    assert_eq!(entry.tenant, None, "an impossible name is not recorded");
    let skipped = entries(&office, "login_failed").await;
    let skipped: u64 = skipped
        .iter()
        .map(|entry| entry.detail["skipped"].as_u64().unwrap())
        .sum();
    assert_eq!(skipped as usize + count, 17);
    office.close().await;
}

#[tokio::test]
async fn acts_of_the_command_line_are_recorded() {
    let office = Office::open().await;
    let says = async |words: &str| posduif_says(&office.world, words).await.text();
    says("tenant create globex --registration open").await;
    says("tenant create globex --registration closed").await;
    says("user create --tenant globex --username homer --type web --password springfield-7G").await;
    says("user passwd homer --tenant globex --password springfield-8H").await;
    says("user role --tenant globex --user homer admin").await;
    says("user disable homer --tenant globex").await;
    says("user disable homer --tenant globex").await;
    says("user enable homer --tenant globex").await;
    says("tenant pause globex").await;
    says("tenant resume globex").await;
    says("tenant resync globex --yes").await;
    says("tenant drop globex --yes").await;
    let listed = posduif_says(&office.world, "audit list --tenant globex --json")
        .await
        .json();
    let listed = listed.as_array().unwrap().clone();
    let actions: Vec<&str> = listed
        .iter()
        .rev()
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "tenant_created",
            "registration_opened",
            "registration_closed",
            "user_created",
            "password_changed",
            "role_changed",
            "user_disabled",
            "user_enabled",
            "tenant_paused",
            "tenant_resumed",
            "tenant_resynced",
            "tenant_dropped",
        ]
    );
    for entry in &listed {
        assert_eq!(
            (&entry["actor"], &entry["address"]),
            (&json!("cli"), &Value::Null),
            "{entry}"
        );
        let action = entry["action"].as_str().unwrap();
        assert!(ACTIONS.contains(&action), "{action}");
    }
    let text = says("audit list --tenant globex --action user_disabled").await;
    assert!(text.starts_with("TIME") && text.lines().count() == 2, "{text}");
    let none = says("audit list --since 2999-01-01T00:00:00Z --json").await;
    assert_eq!(none.trim(), "[]");
    office.close().await;
}

#[tokio::test]
async fn audit_tail_prints_old_and_new_entries_as_lines() {
    let office = Office::open().await;
    let database = office.world.database().await;
    let mut tail = Running::start(
        &office.world,
        "audit tail --json --lines 1 --interval 0.1 --action tenant_paused",
    );
    // Entries of another action are passed over.
    tenants::set_paused(&database, "acme", true, &Actor::cli())
        .await
        .unwrap();
    let first = tail.json().await;
    tenants::set_paused(&database, "acme", false, &Actor::cli())
        .await
        .unwrap();
    tenants::set_paused(&database, "acme", true, &Actor::cli())
        .await
        .unwrap();
    let second = tail.json().await;
    for entry in [&first, &second] {
        assert_eq!(
            (&entry["action"], &entry["tenant"]),
            (&json!("tenant_paused"), &json!("acme"))
        );
    }
    assert!(first["id"].as_i64() < second["id"].as_i64());
    assert_eq!(tail.end(Signal::SIGINT).await, Some(0));
    office.close().await;
}

#[tokio::test]
async fn audit_tail_has_entries_that_commit_out_of_order() {
    let office = Office::open().await;
    let insert = "INSERT INTO posduif.audit (actor, action, subject) VALUES ('test', 'tenant_paused', $1)";
    let (mut late, soon) = (office.world.psql().await, office.world.psql().await);
    let late = late.transaction().await.unwrap();
    late.execute(insert, &[&"late"]).await.unwrap();
    soon.execute(insert, &[&"soon"]).await.unwrap();
    let mut tail = Running::start(&office.world, "audit tail --json --interval 0.1 --actor test --limit 2");
    assert_eq!(tail.json().await["subject"], "soon");
    late.commit().await.unwrap();
    assert_eq!(tail.json().await["subject"], "late");
    assert_eq!(tail.ended().await, Some(0));
    office.close().await;
}

#[tokio::test]
async fn audit_table_is_append_only_and_pruned_by_age() {
    let office = Office::open().await;
    let psql = office.world.psql().await;
    for statement in [
        "UPDATE posduif.audit SET actor = 'nobody'",
        "DELETE FROM posduif.audit",
        "TRUNCATE posduif.audit",
    ] {
        let refused = psql.batch_execute(statement).await.unwrap_err();
        let refused = refused.as_db_error().unwrap();
        assert!(refused.message().contains("append-only"), "{statement}: {refused}");
    }
    let database = office.world.database().await;
    let count = async || audit::list(&database, &Filter::default(), 1000).await.unwrap().len();
    let before = count().await;
    let old = "INSERT INTO posduif.audit (at, actor, action) \
               SELECT now() - days * interval '1 day', 'test', 'tenant_paused' FROM unnest(ARRAY[5, 8, 30, 500]) days";
    psql.batch_execute(old).await.unwrap();
    assert_eq!(audit::prune(&database, 400).await.unwrap(), 1);
    assert_eq!(audit::prune(&database, 7).await.unwrap(), 2);
    assert_eq!(audit::prune(&database, 7).await.unwrap(), 0);
    assert_eq!(count().await, before + 1);
    // It is in no publication, so that it costs replication nothing.
    let published = "SELECT FROM pg_publication_tables WHERE schemaname = 'posduif' AND tablename = 'audit'";
    assert!(psql.query(published, &[]).await.unwrap().is_empty());
    office.close().await;
}

#[tokio::test]
async fn engine_removes_old_entries_at_start() {
    let office = Office::open().await;
    let psql = office.world.psql().await;
    let old =
        "INSERT INTO posduif.audit (at, actor, action) VALUES (now() - interval '900 days', 'test', 'tenant_paused')";
    psql.batch_execute(old).await.unwrap();
    let second = office.world.engine(posduif::engine::Role::Api).await;
    eventually("the entry is removed", || async {
        let left = "SELECT FROM posduif.audit WHERE actor = 'test'";
        psql.query(left, &[]).await.unwrap().is_empty().then_some(())
    })
    .await;
    second.stop().await;
    office.close().await;
}

#[test]
fn every_action_is_documented_once() {
    let docs = include_str!("../docs/operations.md");
    let (_, section) = docs.split_once("## Audit log").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut documented = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cell = line.split('|').nth(1).unwrap();
        documented.extend(cell.split('`').skip(1).step_by(2));
    }
    let set: BTreeSet<&str> = documented.iter().copied().collect();
    assert_eq!(set.len(), documented.len(), "{documented:?}");
    assert_eq!(set, ACTIONS.into_iter().collect());
}

#[tokio::test]
async fn unknown_action_is_wrong_usage() {
    let office = Office::open().await;
    let mut command = posduif_in(&office.world);
    let complaint = run(&mut command, &["audit", "list", "--action", "nothing"])
        .await
        .complaint(2);
    assert!(complaint.contains("login_failed"), "{complaint}");
    office.close().await;
}
