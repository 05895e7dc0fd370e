//! Who may add and manage devices: members their own, admins everybody's.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use posduif::accounts::users::UserType;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::command::posduif_says;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::{PASSWORD, eventually};

/// An office and its web user jane, a member.
async fn office() -> (Office, Api) {
    let office = Office::open().await;
    office.world.user("acme", "jane", UserType::Web).await;
    let jane = office.anybody.log_in("acme", "jane").await;
    (office, jane)
}

async fn create(by: &Api, user: Uuid) -> Answer {
    by.post("/api/enrollment/create", &json!({"user_id": user})).await
}

async fn complete(office: &Office, enrollment: &Value, device_id: &str) -> Answer {
    let body = json!({"token": enrollment["token"], "device_id": device_id});
    office.anybody.post("/api/enrollment/complete", &body).await
}

#[tokio::test]
async fn member_cannot_enroll_another_user() {
    let (office, jane) = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let phone = office.phone("phone").await;
    for (who, user) in [
        (&jane, office.joe_id),
        (&jane, office.bob_id),
        (&jane, Uuid::new_v4()),
        (&phone, sally_id),
        (&phone, office.bob_id),
    ] {
        assert_refused(&create(who, user).await, 403, "FORBIDDEN");
    }
    let open: i64 = count(&office, "enrollments WHERE used_at IS NULL").await;
    assert_eq!(open, 0, "nothing was created");
    office.close().await;
}

async fn count(office: &Office, what: &str) -> i64 {
    let query = format!("SELECT count(*) FROM tenant_acme.{what}");
    let psql = office.world.psql().await;
    psql.query_one(&query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn member_cannot_list_or_revoke_devices_of_others() {
    let (office, jane) = office().await;
    let phone = office.phone("phone").await;
    let others = format!("/api/devices?user_id={}", office.joe_id);
    assert_refused(&jane.get(&others).await, 403, "FORBIDDEN");
    assert_refused(&jane.delete("/api/devices/phone").await, 403, "FORBIDDEN");
    phone.get("/api/sync/status").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn enrollment_never_replaces_the_key_of_a_device() {
    let (office, _) = office().await;
    let phone = office.phone("phone").await;
    let key = json!({"public_key": "joe's"});
    phone.patch("/api/devices/phone", &key).await.expect(200);
    let again = create(&office.bob, office.joe_id).await.expect(201);
    let mut body = json!({"token": again["token"], "device_id": "phone", "public_key": "attacker's"});
    let refused = office.anybody.post("/api/enrollment/complete", &body).await;
    assert_refused(&refused, 409, "CONFLICT");
    // Its token did not end either.
    let devices = phone.get("/api/devices").await.expect(200);
    assert_eq!(devices["devices"][0]["public_key"], "joe's");
    // The key that is there may be repeated, or left out.
    body["public_key"] = "joe's".into();
    office.anybody.post("/api/enrollment/complete", &body).await.expect(201);
    let phone = office.phone("phone").await;
    let devices = phone.get("/api/devices").await.expect(200);
    assert_eq!(devices["devices"][0]["public_key"], "joe's");
    office.close().await;
}

#[tokio::test]
async fn enrollment_of_a_disabled_creator_is_refused() {
    let (office, _) = office().await;
    let kept = create(&office.bob, office.joe_id).await.expect(201);
    let used = create(&office.bob, office.joe_id).await.expect(201);
    complete(&office, &used, "first").await.expect(201);
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'bob'")
        .await;
    let path = format!("/api/enrollment/{}", kept["token"].as_str().unwrap());
    assert_refused(&office.anybody.get(&path).await, 404, "NOT_FOUND");
    assert_refused(&complete(&office, &kept, "rogue").await, 404, "NOT_FOUND");
    assert_refused(&complete(&office, &used, "first").await, 404, "NOT_FOUND");
    assert_eq!(count(&office, "enrollments").await, 1, "only the used one is kept");
    // Nor does it come back with its creator.
    office.sql("UPDATE tenant_acme.users SET disabled_at = NULL").await;
    assert_refused(&complete(&office, &kept, "rogue").await, 404, "NOT_FOUND");
    office.close().await;
}

#[tokio::test]
async fn enrollment_beyond_devices_max_is_refused() {
    let office = Office::with(|config| config.auth.devices_max = 2).await;
    let phone = office.phone("one").await;
    office.phone("two").await;
    let third = create(&office.bob, office.joe_id).await.expect(201);
    assert_refused(&complete(&office, &third, "three").await, 409, "CONFLICT");
    // A known device is no further one.
    office.phone("two").await;
    assert_eq!(phone.delete("/api/devices/two").await.status, 204);
    complete(&office, &third, "three").await.expect(201);
    let fourth = create(&office.bob, office.joe_id).await.expect(201);
    assert_refused(&complete(&office, &fourth, "two").await, 409, "CONFLICT");
    office.close().await;
}

#[tokio::test]
async fn enrollment_by_a_former_admin_is_refused() {
    let (office, _) = office().await;
    let open = create(&office.bob, office.joe_id).await.expect(201);
    let own = create(&office.bob, office.bob_id).await.expect(201);
    office
        .sql("UPDATE tenant_acme.users SET role = 'member' WHERE username = 'bob'")
        .await;
    assert_refused(&complete(&office, &open, "rogue").await, 404, "NOT_FOUND");
    complete(&office, &own, "bobs").await.expect(201);
    // The access token is that of an admin still.
    assert_refused(&create(&office.bob, office.joe_id).await, 403, "FORBIDDEN");
    office.close().await;
}

#[tokio::test]
async fn member_enrolls_own_devices_and_new_users() {
    let (office, jane) = office().await;
    let phone = office.phone("phone").await;
    // A phone adds another one of its user, and no user: that is for the web.
    let tablet = create(&phone, office.joe_id).await.expect(201);
    let added = complete(&office, &tablet, "tablet").await.expect(201);
    assert_eq!(added["user_id"], json!(office.joe_id));
    let refused = phone.post("/api/enrollment/create", &json!({})).await;
    assert_refused(&refused, 403, "FORBIDDEN");
    let fresh = jane.post("/api/enrollment/create", &json!({})).await.expect(201);
    let added = complete(&office, &fresh, "new").await.expect(201);
    assert_ne!(added["user_id"], json!(office.joe_id));
    office.close().await;
}

#[tokio::test]
async fn open_enrollments_are_listed_and_withdrawn_by_whom_they_belong_to() {
    let (office, jane) = office().await;
    let by_bob = create(&office.bob, office.joe_id).await.expect(201);
    let by_jane = jane.post("/api/enrollment/create", &json!({})).await.expect(201);
    let used = create(&office.bob, office.joe_id).await.expect(201);
    complete(&office, &used, "phone").await.expect(201);
    let listed = async |by: &Api| -> Vec<Value> {
        let page = by.get("/api/enrollment").await.expect(200);
        assert_eq!(page["total"], json!(page["enrollments"].as_array().unwrap().len()));
        page["enrollments"].as_array().unwrap().clone()
    };
    let all = listed(&office.bob).await;
    let ids: Vec<&Value> = all.iter().map(|enrollment| &enrollment["id"]).collect();
    assert_eq!(ids, [&by_jane["id"], &by_bob["id"]], "the newest first");
    assert_eq!(
        (&all[1]["created_by"], &all[1]["user_id"], &all[1]["username"]),
        (&json!("bob"), &json!(office.joe_id), &json!("joe"))
    );
    assert_eq!(listed(&jane).await, [all[0].clone()]);
    let before = format!("/api/enrollment?before={}&limit=1", by_jane["id"].as_str().unwrap());
    let page = office.bob.get(&before).await.expect(200);
    assert_eq!((&page["enrollments"][0], &page["has_more"]), (&all[1], &json!(false)));

    let path = |enrollment: &Value, by: &str| format!("/api/enrollment/{}", enrollment[by].as_str().unwrap());
    for by in ["id", "token"] {
        assert_refused(&jane.delete(&path(&by_bob, by)).await, 404, "NOT_FOUND");
        assert_refused(&office.bob.delete(&path(&used, by)).await, 404, "NOT_FOUND");
    }
    assert_eq!(office.bob.delete(&path(&by_jane, "id")).await.status, 204);
    assert_refused(&jane.delete(&path(&by_jane, "id")).await, 404, "NOT_FOUND");
    assert_eq!(office.bob.delete(&path(&by_bob, "token")).await.status, 204);
    for withdrawn in [&by_bob, &by_jane] {
        assert_refused(&complete(&office, withdrawn, "rogue").await, 404, "NOT_FOUND");
    }
    assert!(listed(&office.bob).await.is_empty());
    office.close().await;
}

#[tokio::test]
async fn admin_manages_the_devices_of_all_users() {
    let (office, jane) = office().await;
    let jane_id: Uuid = user_id(&office, "jane").await;
    jane.enroll("janes", Some(&jane_id.to_string())).await;
    let of_jane = office
        .bob
        .get(&format!("/api/devices?user_id={jane_id}"))
        .await
        .expect(200);
    assert_eq!(of_jane["devices"][0]["device_id"], "janes");
    assert_eq!(office.bob.delete("/api/devices/janes").await.status, 204);
    office.bob.enroll("another", Some(&jane_id.to_string())).await;
    office.close().await;
}

async fn user_id(office: &Office, username: &str) -> Uuid {
    let query = "SELECT id FROM tenant_acme.users WHERE username = $1";
    let psql = office.world.psql().await;
    psql.query_one(query, &[&username]).await.unwrap().get(0)
}

#[tokio::test]
async fn added_device_is_announced_to_all_devices_and_pages_of_the_user() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let body = json!({"token": create(&office.bob, office.joe_id).await.expect(201)["token"],
                      "device_id": "tablet", "device_name": "Tablet"});
    office.anybody.post("/api/enrollment/complete", &body).await.expect(201);
    let event = events.expect("device_added").await;
    assert!(event.id.is_some(), "it is durable");
    assert_eq!(
        (
            &event.data["device_id"],
            &event.data["name"],
            &event.data["device_type"]
        ),
        (&json!("tablet"), &json!("Tablet"), &json!("mobile"))
    );
    let change = &phone.sync(Some(&cursor)).await.0[0]["changes"][0];
    assert_eq!(
        (&change["table"], &change["op"], &change["id"]),
        (&json!("devices"), &json!("insert"), &json!("tablet"))
    );
    // The same device again, and a page.
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    office.phone("tablet").await;
    let event = events.expect("device_added").await;
    assert_eq!(event.data["op"], "update");
    let device = json!({"name": "Page", "type": "browser"});
    office.bob.post("/api/devices", &device).await.expect(201);
    assert_eq!(page.expect("device_added").await.data["name"], "Page");
    office.close().await;
}

#[tokio::test]
async fn page_adds_a_device_and_syncs_by_its_token() {
    let office = Office::with(|config| config.auth.devices_max = 2).await;
    let joe = office.anybody.log_in("acme", "joe").await;
    let page = json!({"name": "Page", "type": "browser", "public_key": "first", "device_id": "page"});
    let added = joe.post("/api/devices", &page).await.expect(201);
    assert_eq!(
        (&added["device_id"], &added["user_id"], &added["tenant_id"]),
        (&json!("page"), &json!(office.joe_id), &json!("acme"))
    );
    let as_device = |added: &Value| {
        let token = added["device_token"].as_str().unwrap();
        let device = office.anybody.with("authorization", &format!("Bearer {token}"));
        device.with("x-device-id", added["device_id"].as_str().unwrap())
    };
    let device = as_device(&added);
    let sent = office.send("to the page").await;
    office.world.published().await;
    let (pages, _) = device.sync(None).await;
    assert_eq!(pages[0]["messages"][0]["id"], json!(sent));
    // A device adds none, and no user takes over a device of another user or its key.
    assert_refused(&device.post("/api/devices", &page).await, 403, "FORBIDDEN");
    assert_refused(&office.bob.post("/api/devices", &page).await, 409, "CONFLICT");
    let mut again = page.clone();
    again["public_key"] = "second".into();
    assert_refused(&joe.post("/api/devices", &again).await, 409, "CONFLICT");
    // Again, the former token ends.
    let renewed = joe.post("/api/devices", &page).await.expect(201);
    assert_eq!(device.get("/api/sync/status").await.status, 401);
    as_device(&renewed).get("/api/sync/status").await.expect(200);
    let other = json!({"name": "Other", "type": "desktop"});
    joe.post("/api/devices", &other).await.expect(201);
    assert_refused(&joe.post("/api/devices", &other).await, 409, "CONFLICT");
    for bad in [
        json!({"type": "browser"}),
        json!({"name": "x"}),
        json!({"name": "", "type": "browser"}),
        json!({"name": "x", "type": "toaster"}),
        json!({"name": "x", "type": "browser", "device_id": "a b"}),
        json!({"name": "x", "type": "browser", "public_key": "a\u{0}"}),
    ] {
        assert_refused(&joe.post("/api/devices", &bad).await, 400, "VALIDATION_ERROR");
    }
    office.close().await;
}

#[tokio::test]
async fn role_is_shown_in_login_list_and_token() {
    let (office, jane) = office().await;
    for (name, role) in [("bob", "admin"), ("jane", "member")] {
        let body = json!({"tenant": "acme", "username": name, "password": PASSWORD});
        let answer = office.anybody.post("/api/auth/login", &body).await.expect(200);
        assert_eq!(answer["user"]["role"], role);
        let claims = answer["token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!(claims["role"], role);
    }
    let joe = format!("/api/users/{}", office.joe_id);
    assert_eq!(jane.get(&joe).await.expect(200)["role"], "member");
    let set = "user role --tenant acme --user joe admin";
    assert_eq!(
        posduif_says(&office.world, set).await.text(),
        "joe has the role admin\n"
    );
    assert_eq!(
        posduif_says(&office.world, set).await.text(),
        "joe had the role admin already\n"
    );
    eventually("the cache follows", || async {
        (jane.get(&joe).await.expect(200)["role"] == "admin").then_some(())
    })
    .await;
    office.close().await;
}
