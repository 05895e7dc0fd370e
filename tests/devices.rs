//! Devices: whose they are, who sees them, and their end at every node.

use std::time::{Duration, Instant};

use posduif::domain::users::UserType;
use posduif::engine::Role;
use serde_json::{Value, json};

use crate::support::http::Api;
use crate::support::office::Office;

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
async fn everybody_sees_their_devices_and_web_users_those_of_mobile_users() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (tablet, _) = office.bob.enroll("tablet", Some(&office.joe_id.to_string())).await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let (sally, _) = office.bob.enroll("sallys", Some(&sally_id.to_string())).await;
    let (_, _) = office.bob.enroll("bobs", Some(&office.bob_id.to_string())).await;
    office.world.user("acme", "jane", UserType::Web).await;
    let jane = office.anybody.log_in("acme", "jane").await;

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
            "last_seen_at",
            "name",
            "presence",
            "public_key",
            "revoked_at",
            "user_id"
        ]
    );
    assert_eq!(mine[0]["user_id"], json!(office.joe_id));
    assert_eq!(names(&devices(&sally, "").await), ["sallys"]);
    assert!(
        devices(&sally, &format!("user_id={}", office.joe_id)).await.is_empty(),
        "joe's are not hers to see"
    );
    assert_eq!(names(&devices(&office.bob, "").await), ["bobs"]);
    assert_eq!(
        names(&devices(&jane, &format!("user_id={}", office.joe_id)).await),
        ["tablet", "phone"]
    );
    assert!(
        devices(&jane, &format!("user_id={}", office.bob_id)).await.is_empty(),
        "another web user's are not"
    );
    assert_eq!(names(&devices(&tablet, "limit=1&offset=1").await), ["phone"]);
    office.close().await;
}

#[tokio::test]
async fn a_device_is_renamed_by_its_user_only() {
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
        (&phone, "/api/devices/phone", json!({"name": "x".repeat(256)}), 400),
    ] {
        assert_eq!(who.patch(path, &body).await.status, status, "{path} {body}");
    }
    office.close().await;
}

#[tokio::test]
async fn revoking_a_device_ends_it_at_every_node_within_a_second() {
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
async fn nobody_revokes_what_is_not_theirs() {
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
async fn the_picture_of_an_enrollment_says_what_its_data_say() {
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
