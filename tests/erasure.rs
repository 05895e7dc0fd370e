//! Erasing accounts: nothing that the user wrote stays, and nothing that the user had is of any use.

use posduif::accounts::users::UserType;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::command::posduif_says;
use crate::support::http::{Answer, Api};
use crate::support::office::{Office, id};
use crate::support::{PASSWORD, eventually};

/// What must be nowhere afterwards.
const SECRET: &str = "orchid-4711";

/// A web user with a name to be forgotten.
async fn add_ann(office: &Office) -> (Api, Uuid) {
    let ann_id = office.world.user("acme", SECRET, UserType::Web).await;
    (office.anybody.log_in("acme", SECRET).await, ann_id)
}

async fn erase(api: &Api, user: Uuid, password: &str) -> Answer {
    api.post(&format!("/api/users/{user}/delete"), &json!({"current": password}))
        .await
}

/// The tables that have the secret in a row.
async fn tables_with_secret(office: &Office) -> Vec<String> {
    let psql = office.world.psql().await;
    let tables = psql
        .query(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
             WHERE schemaname IN ('tenant_acme', 'posduif') AND tablename <> 'audit'",
            &[],
        )
        .await
        .unwrap();
    assert!(tables.len() > 15, "{}", tables.len());
    let mut found = Vec::new();
    for table in tables {
        let name: String = table.get(0);
        let statement = format!("SELECT FROM {name} AS t WHERE t::text LIKE '%{SECRET}%'");
        if !psql.query(&statement, &[]).await.unwrap().is_empty() {
            found.push(name);
        }
    }
    found
}

#[tokio::test]
async fn erased_user_is_in_no_table_and_has_no_access() {
    let office = Office::open().await;
    let (ann, ann_id) = add_ann(&office).await;
    let phone = office.phone("joes-phone").await;
    let to_joe = json!({"recipient_id": office.joe_id, "content": SECRET});
    let sent = id(&ann.post("/api/messages", &to_joe).await.expect(201));
    let withdrawn = id(&ann.post("/api/messages", &to_joe).await.expect(201));
    ann.delete(&format!("/api/messages/{withdrawn}")).await.expect(204);
    let device = json!({"name": SECRET, "type": "browser", "public_key": SECRET});
    let added = ann.post("/api/devices", &device).await.expect(201);
    let browser = office
        .anybody
        .with("x-device-id", added["device_id"].as_str().unwrap())
        .with(
            "authorization",
            &format!("Bearer {}", added["device_token"].as_str().unwrap()),
        );
    browser.sync(None).await;
    let mut live = ann.events(&format!("/sse/web/{ann_id}")).await;
    let (_, cursor) = phone.sync(None).await;
    assert_eq!(
        tables_with_secret(&office).await,
        ["tenant_acme.devices", "tenant_acme.messages", "tenant_acme.users"]
    );

    assert_refused(&erase(&ann, ann_id, "wrong").await, 403, "FORBIDDEN");
    assert_refused(&erase(&ann, office.joe_id, PASSWORD).await, 403, "FORBIDDEN");
    let account = "/api/account/delete";
    assert_refused(&ann.post(account, &json!({})).await, 400, "VALIDATION_ERROR");
    let confirmed = json!({"current": PASSWORD});
    ann.post(account, &confirmed).await.expect(204);

    assert_eq!(tables_with_secret(&office).await, Vec::<String>::new());
    live.expect("revoked").await;
    eventually("the access token is refused", || async {
        (ann.get("/api/messages").await.status == 401).then_some(())
    })
    .await;
    assert_eq!(browser.get("/api/sync/incoming").await.status, 401);
    let login = json!({"tenant": "acme", "username": SECRET, "password": PASSWORD});
    assert_refused(
        &office.anybody.post("/api/auth/login", &login).await,
        401,
        "UNAUTHORIZED",
    );
    // Devices that had the message lose it.
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&cursor)).await;
    let changes: Vec<&Value> = pages
        .iter()
        .flat_map(|page| page["changes"].as_array().unwrap())
        .collect();
    let is_deleted = |change: &&&Value| change["id"] == json!(sent) && change["op"] == "delete";
    assert!(changes.iter().any(|change| is_deleted(&change)), "{changes:?}");
    let keys = office.world.keys();
    let inbox = office.world.stream(&keys.inbox("acme", &ann_id.to_string())).await;
    assert!(inbox.is_empty(), "{inbox:?}");
    let entry = crate::audit::entries(&office, "user_erased").await.pop().unwrap();
    assert_eq!(
        (entry.actor, entry.subject),
        (ann_id.to_string(), Some(ann_id.to_string()))
    );
    assert_refused(&erase(&office.bob, ann_id, PASSWORD).await, 404, "NOT_FOUND");
    office.close().await;
}

#[tokio::test]
async fn admin_erases_a_user_of_a_phone() {
    let office = Office::open().await;
    let phone = office.phone("joes-phone").await;
    phone.sync(None).await;
    let state = json!({"state": "AAAA", "nonce": "AAAAAAAAAAAAAAAA"});
    let creating = phone.with("if-none-match", "*");
    assert!(creating.put("/api/state/notes", &state).await.status.is_success());
    let mut live = phone.events("/sse/mobile/joes-phone").await;
    erase(&office.bob, office.joe_id, PASSWORD).await.expect(204);
    live.expect("revoked").await;
    eventually("the phone is refused", || async {
        (phone.get("/api/sync/incoming").await.status == 401).then_some(())
    })
    .await;
    let psql = office.world.psql().await;
    let states = psql
        .query("SELECT FROM tenant_acme.encrypted_states", &[])
        .await
        .unwrap();
    assert!(states.is_empty());
    // The name is free again.
    office.world.user("acme", "joe", UserType::Mobile).await;
    office.close().await;
}

#[tokio::test]
async fn request_that_was_running_leaves_nothing_behind() {
    let office = Office::open().await;
    let (_, ann_id) = add_ann(&office).await;
    let running = office.world.psql().await;
    let insert = format!(
        "BEGIN; INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ('{ann_id}', '{}', '{SECRET}')",
        office.joe_id
    );
    running.batch_execute(&insert).await.unwrap();
    let command = format!("user erase {ann_id} --tenant acme --yes --json");
    let erasing = posduif_says(&office.world, &command);
    let committing = async {
        eventually("the user is deleted", || async {
            let deleted = format!("SELECT FROM tenant_acme.users WHERE id = '{ann_id}' AND deleted_at IS NOT NULL");
            let found = office.world.psql().await.query(&deleted, &[]).await.unwrap();
            (!found.is_empty()).then_some(())
        })
        .await;
        running.batch_execute("COMMIT").await.unwrap();
    };
    let (erased, ()) = tokio::join!(erasing, committing);
    assert_eq!(
        erased.json(),
        json!({"id": ann_id, "tenant": "acme", "username": SECRET, "erased": true})
    );
    assert_eq!(tables_with_secret(&office).await, Vec::<String>::new());
    office.close().await;
}
