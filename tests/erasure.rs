//! Erasing accounts: nothing that the user wrote stays, and nothing that the user had is of any use.

use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::engine::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::command::posduif_says;
use crate::support::http::{Answer, Api};
use crate::support::office::{Office, id};
use crate::support::{PASSWORD, World, eventually};

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
async fn tables_with_secret(world: &World) -> Vec<String> {
    let psql = world.psql().await;
    let tables = psql
        .query(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
             WHERE schemaname IN ('tenant_acme', 'posduif') AND tablename <> 'audit'
             ORDER BY 1",
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
        tables_with_secret(&office.world).await,
        ["tenant_acme.devices", "tenant_acme.messages", "tenant_acme.users"]
    );

    assert_refused(&erase(&ann, ann_id, "wrong").await, 403, "FORBIDDEN");
    assert_refused(&erase(&ann, office.joe_id, PASSWORD).await, 403, "FORBIDDEN");
    let account = "/api/account/delete";
    assert_refused(&ann.post(account, &json!({})).await, 400, "VALIDATION_ERROR");
    let confirmed = json!({"current": PASSWORD});
    ann.post(account, &confirmed).await.expect(204);

    assert_eq!(tables_with_secret(&office.world).await, Vec::<String>::new());
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

/// Waits until a session waits for a lock with each of these statements, or parts of them.
async fn blocked(world: &World, statements: &[&str]) {
    let psql = world.psql().await;
    eventually(&format!("{statements:?} wait"), || async {
        let query =
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting = psql.query(query, &[]).await.unwrap();
        let is_waiting = |part: &&str| waiting.iter().any(|row| row.get::<_, &str>(0).contains(*part));
        statements.iter().all(is_waiting).then_some(())
    })
    .await;
}

/// What the statements of [`blocked`] have in common with those of the engine.
const INSERT: &str = ".messages (sender_id";
const UPLOAD: &str = ".upload_items(";
const ENROLL: &str = ".devices AS known";
const SET_PASSWORD: &str = "AS c (tenant, user_id, password_hash)";
const ERASE: &str = "FOR NO KEY UPDATE OF u";

/// Settings under which several requests may wait for locks, on a busy machine, too.
fn let_requests_wait(config: &mut Config) {
    config.postgres.pool_size = 8;
    config.postgres.lock_timeout_seconds = 60;
    config.postgres.query_timeout_seconds = 60;
}

/// A user with a name to be forgotten, and a browser that may upload.
async fn add_ann_with_browser(office: &Office) -> (Api, Api, Uuid) {
    let (ann, ann_id) = add_ann(office).await;
    let device = json!({"name": "browser", "type": "browser"});
    let added = ann.post("/api/devices", &device).await.expect(201);
    let text = |name: &str| added[name].as_str().unwrap().to_owned();
    let browser = office
        .anybody
        .with("x-device-id", &text("device_id"))
        .with("authorization", &format!("Bearer {}", text("device_token")));
    browser.sync(None).await;
    (ann, browser, ann_id)
}

async fn upload_to(browser: &Api, recipient: Uuid) -> Answer {
    let row = json!({"recipient_id": recipient, "content": SECRET});
    let item = json!({"seq": 1, "table": "messages", "id": Uuid::new_v4(), "row": row});
    let body = json!({"items": [item], "acked_seq": 0});
    browser.post("/api/sync/outgoing", &body).await
}

fn command_to_erase(user: Uuid) -> String {
    format!("user erase {user} --tenant acme --yes --json")
}

/// Erases a user while requests of the user wait with these statements for a transaction, which ends when the erasure waits,
/// too; gives what became of the requests.
async fn erase_behind<T>(
    world: &World,
    user: Uuid,
    (transaction, waiting): (&tokio_postgres::Client, &[&str]),
    requests: impl Future<Output = T>,
) -> T {
    let command = command_to_erase(user);
    let erasing = async {
        blocked(world, waiting).await;
        let releasing = async {
            blocked(world, &[ERASE]).await;
            transaction.batch_execute("ROLLBACK").await.unwrap();
        };
        tokio::join!(posduif_says(world, &command), releasing).0
    };
    let (erased, answers) = tokio::join!(erasing, requests);
    assert_eq!(
        erased.json(),
        json!({"id": user, "tenant": "acme", "username": SECRET, "erased": true})
    );
    answers
}

#[tokio::test]
async fn erasure_waits_for_running_requests_and_erases_what_they_wrote() {
    let office = Office::with(let_requests_wait).await;
    let world = &office.world;
    let (ann, browser, ann_id) = add_ann_with_browser(&office).await;
    // Keeps messages to joe from their end.
    let other = world.psql().await;
    let keep = format!(
        "BEGIN; SELECT FROM tenant_acme.users WHERE id = '{}' FOR UPDATE",
        office.joe_id
    );
    other.batch_execute(&keep).await.unwrap();
    let to_joe = json!({"recipient_id": office.joe_id, "content": SECRET});
    let requests = async { tokio::join!(ann.post("/api/messages", &to_joe), upload_to(&browser, office.joe_id)) };
    let (message, upload) = erase_behind(world, ann_id, (&other, &[INSERT, UPLOAD]), requests).await;
    message.expect(201);
    assert_eq!(upload.expect(200)["results"][0]["status"], "applied");
    assert_eq!(tables_with_secret(world).await, Vec::<String>::new());
    office.close().await;
}

#[tokio::test]
async fn password_that_is_set_during_an_erasure_is_refused() {
    let office = Office::with(let_requests_wait).await;
    let world = &office.world;
    let (_, ann_id) = add_ann(&office).await;
    // An erasure that has locked the user, and has not ended.
    let erasure = world.psql().await;
    let begin = format!(
        "BEGIN; UPDATE tenant_acme.users SET deleted_at = now(), username = 'deleted' WHERE id = '{ann_id}';
         DELETE FROM posduif.credentials WHERE user_id = '{ann_id}'"
    );
    erasure.batch_execute(&begin).await.unwrap();
    let command = format!("user passwd {SECRET} --tenant acme --password another-horse");
    let setting = posduif_says(world, &command);
    let ending = async {
        blocked(world, &[SET_PASSWORD]).await;
        erasure.batch_execute("COMMIT").await.unwrap();
    };
    let (said, ()) = tokio::join!(setting, ending);
    let complaint = said.complaint(1);
    assert!(complaint.contains("deleted"), "{complaint}");
    let credentials = format!("SELECT FROM posduif.credentials WHERE user_id = '{ann_id}'");
    assert!(world.psql().await.query(&credentials, &[]).await.unwrap().is_empty());
    office.close().await;
}

#[tokio::test]
async fn erasure_waits_for_a_running_enrollment_and_erases_the_device() {
    let office = Office::with(let_requests_wait).await;
    let world = &office.world;
    let (ann, ann_id) = add_ann(&office).await;
    let enrollment = json!({"user_id": ann_id});
    let enrollment = ann.post("/api/enrollment/create", &enrollment).await.expect(201);
    let completion = json!({"token": enrollment["token"], "device_id": "phone", "device_name": SECRET});
    // Keeps the enrollment, which has locked the user, from its end.
    let other = world.psql().await;
    let keep = format!(
        "BEGIN; INSERT INTO tenant_acme.devices (device_id, user_id) VALUES ('phone', '{}')",
        office.bob_id
    );
    other.batch_execute(&keep).await.unwrap();
    let enrolling = office.anybody.post("/api/enrollment/complete", &completion);
    let enrolled = erase_behind(world, ann_id, (&other, &[ENROLL]), enrolling).await;
    enrolled.expect(201);
    assert_eq!(tables_with_secret(world).await, Vec::<String>::new());
    office.close().await;
}

#[tokio::test]
async fn request_that_begins_before_the_erasure_commits_writes_nothing() {
    let office = Office::with(let_requests_wait).await;
    let world = &office.world;
    let (ann, browser, ann_id) = add_ann_with_browser(&office).await;
    let hold = world.psql().await;
    hold.batch_execute(
        "CREATE FUNCTION public.wait_for_release() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER wait_for_release AFTER UPDATE ON tenant_acme.users DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW WHEN (NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION public.wait_for_release();
         SELECT pg_advisory_lock(42)",
    )
    .await
    .unwrap();
    // Keeps messages to joe from their end until the erasure has ended.
    let other = world.psql().await;
    let command = command_to_erase(ann_id);
    let erasing = async {
        let erased = posduif_says(world, &command).await;
        other.batch_execute("COMMIT").await.unwrap();
        erased
    };
    let to_joe = json!({"recipient_id": office.joe_id, "content": SECRET});
    let writing = async {
        blocked(world, &["COMMIT"]).await;
        let keep = format!(
            "BEGIN; SELECT FROM tenant_acme.users WHERE id = '{}' FOR UPDATE",
            office.joe_id
        );
        other.batch_execute(&keep).await.unwrap();
        let releasing = async {
            blocked(world, &[INSERT, UPLOAD]).await;
            hold.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
        };
        tokio::join!(
            ann.post("/api/messages", &to_joe),
            upload_to(&browser, office.joe_id),
            releasing
        )
    };
    let (erased, (message, upload, ())) = tokio::join!(erasing, writing);
    erased.json();
    assert_eq!(tables_with_secret(world).await, Vec::<String>::new());
    assert_refused(&message, 401, "UNAUTHORIZED");
    assert_refused(&upload, 401, "DEVICE_REVOKED");
    office.close().await;
}

#[tokio::test]
async fn upload_with_a_remembered_token_is_refused_after_the_erasure() {
    let office = Office::open().await;
    let (_, browser, ann_id) = add_ann_with_browser(&office).await;
    let phone = office.phone("joes-phone").await;
    let Office {
        world,
        engine,
        joe_id,
        bob_id,
        ..
    } = office;
    // A node that remembers tokens as long as it takes until it hears of changes.
    let mut config = world.config.clone();
    config.health.max_staleness_seconds = 3600;
    let node = world.engine_with(Role::Api, config).await;
    let (browser, phone) = (browser.at(&node.api()), phone.at(&node.api()));
    let lookups = async || {
        let name = "posduif_database_query_seconds_count{statement=\"accounts/devices_by_token\"} ";
        let text = String::from_utf8(phone.admin().get("/metrics").await.body.to_vec()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))
    };
    let remembered = async || {
        for device in [&browser, &phone] {
            eventually("the node remembers the token", || async {
                let before = lookups().await;
                let is_allowed = device.get("/api/sync/incoming").await.status == 200;
                (is_allowed && lookups().await == before).then_some(())
            })
            .await;
        }
    };
    world.published().await;
    remembered().await;
    engine.stop().await;
    // Again, since the last changes before the end may have made the node forget them.
    remembered().await;
    posduif_says(&world, &command_to_erase(ann_id)).await.json();
    let revoke = "UPDATE tenant_acme.devices SET revoked_at = now() WHERE device_id = 'joes-phone'";
    world.psql().await.batch_execute(revoke).await.unwrap();
    let before = lookups().await;
    assert_refused(&upload_to(&browser, joe_id).await, 401, "DEVICE_REVOKED");
    assert_refused(&upload_to(&phone, bob_id).await, 401, "DEVICE_REVOKED");
    let page = browser.get("/api/sync/incoming").await;
    // A node may forget at any time; while it does not, reads go on.
    assert!(page.status == 200 || lookups().await != before, "{}", page.status);
    assert_eq!(tables_with_secret(&world).await, Vec::<String>::new());
    node.stop().await;
}

#[tokio::test]
async fn erasure_that_waits_too_long_changes_nothing_and_says_so() {
    let office = Office::with(|config| config.postgres.query_timeout_seconds = 1).await;
    let (_, ann_id) = add_ann(&office).await;
    let running = office.world.psql().await;
    let lock = format!("BEGIN; SELECT FROM tenant_acme.users WHERE id = '{ann_id}' FOR SHARE");
    running.batch_execute(&lock).await.unwrap();
    let refused = erase(&office.bob, ann_id, PASSWORD).await;
    assert_refused(&refused, 429, "RATE_LIMITED");
    let complaint = posduif_says(&office.world, &command_to_erase(ann_id))
        .await
        .complaint(1);
    assert!(complaint.contains("requests of this user"), "{complaint}");
    assert_eq!(tables_with_secret(&office.world).await, ["tenant_acme.users"]);
    running.batch_execute("ROLLBACK").await.unwrap();
    erase(&office.bob, ann_id, PASSWORD).await.expect(204);
    assert_eq!(tables_with_secret(&office.world).await, Vec::<String>::new());
    office.close().await;
}
