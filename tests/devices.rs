//! Devices: ownership, visibility, and revocation at every node.

use std::time::{Duration, Instant};

use posduif::accounts::users::UserType;
use posduif::engine::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::{PASSWORD, eventually};

async fn devices(of: &Api, query: &str) -> Vec<Value> {
    let answer = of.get(&format!("/api/devices?{query}")).await.expect(200);
    answer["devices"].as_array().unwrap().clone()
}

fn names(devices: &[Value]) -> Vec<&str> {
    devices
        .iter()
        .map(|device| device["device_id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn devices_list_has_own_devices_and_for_admins_those_of_others() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (tablet, _) = office.bob.enroll("tablet", Some(&office.joe_id.to_string())).await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let (sally, _) = office.bob.enroll("sallys", Some(&sally_id.to_string())).await;
    let (_, _) = office.bob.enroll("bobs", Some(&office.bob_id.to_string())).await;

    let mine = devices(&phone, "").await;
    assert_eq!(names(&mine), ["tablet", "phone"], "the newest first");
    let fields: Vec<&String> = mine[0].as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        [
            "created_at",
            "device_id",
            "device_info",
            "device_type",
            "has_auth_key",
            "last_seen_at",
            "name",
            "presence",
            "public_key",
            "public_key_changed_at",
            "revoked_at",
            "token_renewed_at",
            "user_id"
        ]
    );
    assert_eq!(mine[0]["user_id"], json!(office.joe_id));
    assert_eq!(names(&devices(&sally, "").await), ["sallys"]);
    assert_eq!(names(&devices(&office.bob, "").await), ["bobs"]);
    assert_eq!(
        names(&devices(&office.bob, &format!("user_id={}", office.joe_id)).await),
        ["tablet", "phone"]
    );
    let nobody = format!("user_id={}", uuid::Uuid::new_v4());
    assert!(devices(&office.bob, &nobody).await.is_empty());
    assert_eq!(names(&devices(&tablet, "limit=1&offset=1").await), ["phone"]);
    office.close().await;
}

#[tokio::test]
async fn device_is_renamed_by_its_user_only() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let change = json!({"name": "Joe's phone", "public_key": "MCowBQYDK2VwAyEA"});
    let changed = phone.patch("/api/devices/phone", &change).await.expect(200);
    assert_eq!(
        (&changed["name"], &changed["public_key"]),
        (&change["name"], &change["public_key"])
    );
    let changed = phone
        .patch("/api/devices/phone", &json!({"name": "mine"}))
        .await
        .expect(200);
    assert_eq!(
        (&changed["name"], &changed["public_key"]),
        (&json!("mine"), &change["public_key"])
    );
    for (who, path, body, status) in [
        (&office.bob, "/api/devices/phone", json!({"name": "bob's"}), 403),
        (&phone, "/api/devices/absent", json!({"name": "x"}), 404),
        (&phone, "/api/devices/a%20b", json!({"name": "x"}), 404),
        (&phone, "/api/devices/phone", json!({"name": ""}), 400),
        (&phone, "/api/devices/phone", json!({"name": "a\u{0}"}), 400),
        (&phone, "/api/devices/phone", json!({"name": "a\u{1b}[2J"}), 400),
        (&phone, "/api/devices/phone", json!({"name": "a\nb"}), 400),
        (&phone, "/api/devices/phone", json!({"name": "a\u{9b}31m"}), 400),
        (&phone, "/api/devices/phone", json!({"name": "x".repeat(256)}), 400),
    ] {
        assert_eq!(who.patch(path, &body).await.status, status, "{path} {body}");
    }
    office.close().await;
}

#[tokio::test]
async fn device_info_with_control_characters_is_refused() {
    let office = Office::open().await;
    let enrollment = office.bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let mut completion = json!({"token": enrollment["token"], "device_id": "phone", "device_name": "Joe's phone"});
    for (field, bad) in [
        ("device_name", json!("na\u{1b}[2J\u{1b}]0;owned\u{7}me")),
        ("username", json!("na\u{1b}[2Jme")),
        ("device_info", json!({"model": "a\u{1b}[2J"})),
        ("device_info", json!({"a\u{7}": 1})),
        ("device_info", json!({"a": [{"b": "\u{9b}"}]})),
    ] {
        let mut body = completion.clone();
        body[field] = bad;
        let refused = office.anybody.post("/api/enrollment/complete", &body).await.expect(400);
        assert_eq!(refused["error"]["code"], "VALIDATION_ERROR", "{body}: {refused}");
        assert!(refused.to_string().contains(field), "{body}: {refused}");
    }
    let body = json!({
        "tenant": "acme", "username": "bob", "password": crate::support::PASSWORD,
        "device": {"id": "laptop", "name": "a\u{7}"},
    });
    office.anybody.post("/api/auth/login", &body).await.expect(400);
    completion["device_info"] = json!({"model": "Ä 1"});
    office
        .anybody
        .post("/api/enrollment/complete", &completion)
        .await
        .expect(201);
    office.close().await;
}

#[tokio::test]
async fn device_revocation_applies_at_every_node_within_a_second() {
    let office = Office::open().await;
    let second = office.world.engine(Role::Api).await;
    let phone = office.phone("phone").await;
    let there = phone.at(&second.api());
    there.get("/api/sync/status").await.expect(200);
    let mut here = phone.events("/sse/mobile/phone").await;
    let mut elsewhere = there.events("/sse/mobile/phone").await;
    let revoked = Instant::now();
    assert_eq!(office.bob.delete("/api/devices/phone").await.status, 204);
    for events in [&mut here, &mut elsewhere] {
        assert_eq!(events.rest().await.last().unwrap().name, "revoked");
    }
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
    for api in [&phone, &there] {
        assert_eq!(api.get("/api/sync/status").await.status, 401);
    }
    assert_eq!(office.bob.delete("/api/devices/phone").await.status, 404, "it was");
    let joes = format!("user_id={}", office.joe_id);
    assert!(devices(&office.bob, &joes).await.is_empty());
    assert_eq!(
        names(&devices(&office.bob, &format!("{joes}&status=revoked")).await),
        ["phone"]
    );
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn device_of_another_user_cannot_be_revoked() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let (sally, _) = office.bob.enroll("sallys", Some(&sally_id.to_string())).await;
    office.bob.enroll("bobs", Some(&office.bob_id.to_string())).await;
    office.world.user("acme", "jane", UserType::Web).await;
    let jane = office.anybody.log_in("acme", "jane").await;
    assert_eq!(sally.delete("/api/devices/phone").await.status, 403);
    assert_eq!(jane.delete("/api/devices/bobs").await.status, 403);
    assert_eq!(
        phone.delete("/api/devices/phone").await.status,
        204,
        "a device may end itself"
    );
    assert_eq!(phone.get("/api/devices").await.status, 401);
    office.close().await;
}

/// Reads the QR code in a picture whose dark modules are rectangles of one path.
fn read_code(svg: &str) -> String {
    let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
    let mut dark = std::collections::HashSet::new();
    let mut size = 0;
    for part in path.split('M').skip(1) {
        let number = |text: &str| text.parse::<usize>().unwrap();
        let (place, rest) = part.split_once('h').unwrap();
        let (left, top) = place.split_once(' ').unwrap();
        let (width, rest) = rest.split_once('v').unwrap();
        let height = rest.split_once('H').unwrap().0;
        for x in number(left)..number(left) + number(width) {
            for y in number(top)..number(top) + number(height) {
                dark.insert((x, y));
                size = size.max(x).max(y);
            }
        }
    }
    // With the quiet zone at the far sides, too.
    let side = size + 40;
    let mut picture =
        rqrr::PreparedImage::prepare_from_greyscale(side, side, |x, y| if dark.contains(&(x, y)) { 0 } else { 255 });
    picture.detect_grids()[0].decode().unwrap().1
}

#[tokio::test]
async fn enrollment_qr_code_holds_the_enrollment_data() {
    let office = Office::open().await;
    let created = office.bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let path = format!("/api/enrollment/{}/qr.svg", created["token"].as_str().unwrap());
    let picture = office.anybody.get(&path).await;
    assert_eq!(picture.status, 200);
    assert_eq!(picture.headers["content-type"], "image/svg+xml");
    let read: Value = serde_json::from_str(&read_code(std::str::from_utf8(&picture.body).unwrap())).unwrap();
    assert_eq!(read, created["qr_code_data"]);
    let absent = format!("/api/enrollment/{}/qr.svg", uuid::Uuid::new_v4());
    assert_eq!(office.anybody.get(&absent).await.status, 404);
    office.close().await;
}

/// Logs a user in with a device.
async fn log_in(office: &Office, user: &str, device: &Value) -> Answer {
    let body = json!({"username": user, "password": PASSWORD, "device": device});
    office.anybody.post("/api/auth/login", &body).await
}

fn as_user(office: &Office, answer: &Value) -> Api {
    let token = answer["token"].as_str().unwrap();
    office.anybody.with("authorization", &format!("Bearer {token}"))
}

async fn refresh(office: &Office, answer: &Value) -> Answer {
    let body = json!({"refresh_token": answer["refresh_token"]});
    office.anybody.post("/api/auth/refresh", &body).await
}

#[tokio::test]
async fn login_with_device_binds_the_session_to_it() {
    let office = Office::open().await;
    let laptop = json!({"id": "laptop", "name": "Bob's laptop", "type": "desktop", "public_key": "key one"});
    let first = log_in(&office, "bob", &laptop).await.expect(200);
    let registered = &first["device"];
    assert_eq!(
        (
            &registered["device_id"],
            &registered["is_new"],
            &registered["device_type"],
            &registered["name"],
            &registered["public_key"]
        ),
        (
            &json!("laptop"),
            &json!(true),
            &json!("desktop"),
            &json!("Bob's laptop"),
            &json!("key one")
        )
    );
    // Known by its id, whatever else is said; what is not said stays.
    let again = log_in(&office, "bob", &json!({"id": "laptop"})).await.expect(200);
    assert_eq!(
        (
            &again["device"]["is_new"],
            &again["device"]["public_key"],
            &again["device"]["public_key_changed_at"]
        ),
        (&json!(false), &json!("key one"), &Value::Null)
    );
    // One that has no id gets one, and says what it is by who logs in.
    let browser = log_in(&office, "bob", &json!({})).await.expect(200);
    assert_eq!(
        (&browser["device"]["is_new"], &browser["device"]["device_type"]),
        (&json!(true), &json!("browser"))
    );
    let given = browser["device"]["device_id"].as_str().unwrap().to_owned();
    let phone = log_in(&office, "joe", &json!({"name": "phone"})).await.expect(200);
    assert_eq!(phone["device"]["device_type"], "mobile");

    let bob = as_user(&office, &browser);
    let sessions = bob.get("/api/auth/sessions").await.expect(200);
    let of = |device: Value| -> Vec<bool> {
        let sessions = sessions["sessions"].as_array().unwrap().iter();
        let bound = sessions.filter(|session| session["device_id"] == device);
        bound.map(|session| session["current"].as_bool().unwrap()).collect()
    };
    assert_eq!(of(json!(given)), [true]);
    assert_eq!(of(json!("laptop")), [false, false]);
    assert_eq!(of(Value::Null), [false], "that of the login without a device");
    let mine = devices(&bob, "").await;
    assert_eq!(mine.len(), 2);
    assert!(mine.iter().all(|device| !device["last_seen_at"].is_null()));
    // What is written under the session is the device's, before and after a refresh.
    let state = json!({"state": "YQ==", "nonce": "YQ=="});
    let made = bob
        .with("if-none-match", "*")
        .put("/api/state/k", &state)
        .await
        .expect(201);
    assert_eq!(made["device_id"], json!(given));
    let later = as_user(&office, &refresh(&office, &browser).await.expect(200));
    let changed = later
        .with("if-match", "\"1\"")
        .put("/api/state/k", &state)
        .await
        .expect(200);
    assert_eq!(changed["device_id"], json!(given));
    office.close().await;
}

#[tokio::test]
async fn login_with_foreign_or_revoked_device_is_refused() {
    let office = Office::with(|config| config.auth.devices_max = 2).await;
    office.phone("phone").await;
    assert_refused(&log_in(&office, "bob", &json!({"id": "phone"})).await, 403, "FORBIDDEN");
    log_in(&office, "bob", &json!({"id": "one"})).await.expect(200);
    log_in(&office, "bob", &json!({"id": "two"})).await.expect(200);
    assert_refused(&log_in(&office, "bob", &json!({"id": "three"})).await, 409, "CONFLICT");
    log_in(&office, "bob", &json!({"id": "two"})).await.expect(200);
    assert_eq!(office.bob.delete("/api/devices/one").await.status, 204);
    assert_refused(&log_in(&office, "bob", &json!({"id": "one"})).await, 403, "FORBIDDEN");
    log_in(&office, "bob", &json!({"id": "three"})).await.expect(200);
    for bad in [
        json!("laptop"),
        json!({"id": "a b"}),
        json!({"id": ""}),
        json!({"id": "x".repeat(129)}),
        json!({"type": "toaster"}),
        json!({"name": ""}),
        json!({"name": "x".repeat(256)}),
        json!({"public_key": "x".repeat(16_385)}),
        json!({"public_key": "a\u{0}"}),
    ] {
        assert_refused(&log_in(&office, "bob", &bad).await, 400, "VALIDATION_ERROR");
    }
    // Nobody learns of devices by a wrong password.
    let wrong = json!({"username": "bob", "password": "wrong", "device": {"id": "phone"}});
    assert_refused(
        &office.anybody.post("/api/auth/login", &wrong).await,
        401,
        "UNAUTHORIZED",
    );
    assert_eq!(devices(&office.bob, "").await.len(), 2);
    office.close().await;
}

#[tokio::test]
async fn re_enrolled_device_loses_former_token_and_streams_at_every_node() {
    let office = Office::open().await;
    let second = office.world.engine(Role::Api).await;
    let former = office.phone("phone").await;
    let there = former.at(&second.api());
    let mut streams = [
        former.events("/sse/mobile/phone").await,
        there.events("/sse/mobile/phone").await,
    ];
    let again = office.phone("phone").await;
    for stream in &mut streams {
        assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    }
    assert_eq!(former.get("/api/sync/status").await.status, 401);
    eventually("the other node refuses it, too", || async {
        (there.get("/api/sync/status").await.status == 401).then_some(())
    })
    .await;
    assert_eq!(former.open("/sse/mobile/phone").await.unwrap_err().status, 401);
    again.events("/sse/mobile/phone").await;
    again.at(&second.api()).events("/sse/mobile/phone").await;
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn device_revoked_by_any_path_loses_sessions_and_streams_at_every_node() {
    let office = Office::open().await;
    let second = office.world.engine(Role::Api).await;
    let web = format!("/sse/web/{}", office.bob_id);
    for (device, by_api) in [("one", true), ("two", false)] {
        let answer = log_in(&office, "bob", &json!({"id": device})).await.expect(200);
        let bound = as_user(&office, &answer);
        let there = bound.at(&second.api());
        bound.get("/api/state").await.expect(200);
        there.get("/api/state").await.expect(200);
        let mut here = bound.events(&web).await;
        let mut elsewhere = there.events(&web).await;
        if by_api {
            assert_eq!(office.bob.delete(&format!("/api/devices/{device}")).await.status, 204);
        } else {
            office
                .sql("UPDATE tenant_acme.devices SET revoked_at = now() WHERE device_id = 'two'")
                .await;
        }
        for events in [&mut here, &mut elsewhere] {
            assert_eq!(events.rest().await.last().unwrap().name, "revoked", "{device}");
        }
        for api in [&bound, &there] {
            eventually("its access token is good for nothing", || async {
                (api.get("/api/state").await.status == 401).then_some(())
            })
            .await;
        }
        assert_refused(&refresh(&office, &answer).await, 401, "UNAUTHORIZED");
        let left = office.bob.get("/api/auth/sessions").await.expect(200);
        let left = left["sessions"].as_array().unwrap();
        assert!(left.iter().all(|session| session["device_id"] != device));
        assert!(!left.is_empty(), "others go on");
    }
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn account_devices_read_each_others_keys_and_see_changes() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let keyed = json!({"public_key": "phone's first"});
    phone.patch("/api/devices/phone", &keyed).await.expect(200);
    let laptop = log_in(
        &office,
        "joe",
        &json!({"id": "laptop", "type": "desktop", "public_key": "laptop's"}),
    )
    .await;
    let laptop = as_user(&office, &laptop.expect(200));
    let keys = async |of: &Api| -> Vec<(Value, Value, bool)> {
        let known = devices(of, "").await;
        let key = |device: &Value| {
            let changed = !device["public_key_changed_at"].is_null();
            (device["device_id"].clone(), device["public_key"].clone(), changed)
        };
        known.iter().map(key).collect()
    };
    let both = keys(&phone).await;
    assert_eq!(both[0], (json!("laptop"), json!("laptop's"), false));
    assert_eq!(both[1].1, "phone's first");
    assert_eq!(keys(&laptop).await, both);

    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    log_in(&office, "joe", &json!({"id": "laptop", "public_key": "another"}))
        .await
        .expect(200);
    let event = events.expect("change").await;
    assert_eq!(
        (&event.data["table"], &event.data["op"], &event.data["id"]),
        (&json!("devices"), &json!("update"), &json!("laptop"))
    );
    assert!(event.id.is_some());
    assert_eq!(keys(&laptop).await[0], (json!("laptop"), json!("another"), true));
    let batch = &phone.sync(Some(&cursor)).await.0[0];
    let change = &batch["changes"][0];
    assert_eq!((&change["table"], &change["id"]), (&json!("devices"), &json!("laptop")));
    assert_eq!(change["row"]["public_key"], "another");
    // A name is no key.
    let answer = log_in(&office, "joe", &json!({"id": "laptop", "name": "renamed"}))
        .await
        .expect(200);
    assert_eq!(answer["device"]["name"], "renamed");
    office.world.published().await;
    let (pages, _) = phone.sync(batch["cursor"].as_str()).await;
    assert!(pages[0]["changes"].as_array().unwrap().is_empty());
    office.close().await;
}

#[tokio::test]
async fn inbox_begins_with_the_first_device_of_its_user() {
    let office = Office::open().await;
    let ann = Uuid::new_v4();
    let user = format!("INSERT INTO tenant_acme.users (id, username, user_type) VALUES ('{ann}', 'ann', 'mobile')");
    office.sql(&user).await;
    let to_ann = json!({"recipient_id": ann, "content": "before"});
    office.bob.post("/api/messages", &to_ann).await.expect(201);
    office.world.published().await;
    let inbox = office.world.keys().inbox("acme", &ann.to_string());
    assert_eq!(office.world.ask_redis::<i64>(&["EXISTS", &inbox]).await, 0);

    let (phone, _) = office.bob.enroll("phone", Some(&ann.to_string())).await;
    office.world.published().await;
    assert_eq!(office.world.ask_redis::<i64>(&["EXISTS", &inbox]).await, 1);
    let (pages, cursor) = phone.sync(None).await;
    assert_eq!(pages[0]["messages"][0]["content"], "before");
    // A further device resets no other.
    office.bob.enroll("tablet", Some(&ann.to_string())).await;
    let to_ann = json!({"recipient_id": ann, "content": "after"});
    office.bob.post("/api/messages", &to_ann).await.expect(201);
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&cursor)).await;
    assert!(pages.iter().all(|page| page["reset"] != true), "{pages:?}");
    assert_eq!(pages[0]["messages"][0]["content"], "after");
    office.close().await;
}
