//! Every endpoint: the fields of its responses and its error codes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::BTreeSet;

use hyper::Method;
use posduif::accounts::users::{self, NewUser, Role, UserType};
use posduif::api::routes::{self, Access};
use posduif::config::DeviceAuth;
use posduif::engine::Role as EngineRole;
use posduif::http::error::Code;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::Answer;
use crate::support::office::{Office, id, ids};
use crate::support::{PASSWORD, eventually, spec};

/// The fields of an object, sorted.
#[track_caller]
pub(crate) fn fields(object: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Whether a value is a time as the API prints it.
#[track_caller]
pub(crate) fn assert_is_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    assert!(text.ends_with('Z'), "{text}");
    chrono::DateTime::parse_from_rfc3339(text).unwrap();
}

/// An error's status and code.
#[track_caller]
pub(crate) fn assert_refused(answer: &Answer, status: u16, code: &str) {
    let error = (answer.status.as_u16(), answer.code());
    assert_eq!((error.0, error.1.as_str()), (status, code), "{}", answer.json());
}

pub(crate) const MESSAGE: [&str; 11] = [
    "content",
    "created_at",
    "id",
    "read_at",
    "recipient_id",
    "revision",
    "sender_id",
    "status",
    "synced_at",
    "updated_at",
    "version",
];

#[tokio::test]
async fn login_accepts_name_or_email_and_tenant_in_body_header_or_config() {
    let office = Office::open().await;
    let database = office.world.database().await;
    let ann = NewUser {
        username: "Ann".into(),
        user_type: UserType::Web,
        role: Role::Member,
        email: Some("ann@example.com".into()),
        is_email_unverified: false,
        password: Some(PASSWORD.into()),
    };
    let ann_id = users::create(&database, &office.world.config.auth, "acme", ann)
        .await
        .unwrap();

    let in_body = json!({"username": "ann", "password": PASSWORD, "tenant": "acme"});
    let answer = office.anybody.post("/api/auth/login", &in_body).await.expect(200);
    assert_eq!(fields(&answer), ["expires_in", "refresh_token", "token", "user"]);
    assert_eq!(answer["expires_in"], 3600);
    assert_eq!(
        answer["user"],
        json!({"id": ann_id, "username": "Ann", "user_type": "web", "role": "member"})
    );
    assert_eq!(answer["token"].as_str().unwrap().split('.').count(), 3);

    let by_email = json!({"email": "ANN@example.com", "password": PASSWORD});
    let in_header = office.anybody.with("x-tenant", "acme");
    assert_eq!(
        in_header.post("/api/auth/login", &by_email).await.expect(200)["user"]["id"],
        json!(ann_id)
    );
    assert_eq!(
        office.anybody.post("/api/auth/login", &by_email).await.expect(200)["user"]["id"],
        json!(ann_id)
    );
    let email_as_name = json!({"username": "ann@example.com", "password": PASSWORD});
    office.anybody.post("/api/auth/login", &email_as_name).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn login_failures_all_return_the_same_error() {
    let office = Office::open().await;
    office.world.user("acme", "gone", UserType::Web).await;
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'gone'")
        .await;
    let mut errors = Vec::new();
    for body in [
        json!({"username": "bob", "password": "wrong"}),
        json!({"username": "nobody", "password": PASSWORD}),
        json!({"username": "gone", "password": PASSWORD}),
        json!({"username": "bob", "password": PASSWORD, "tenant": "elsewhere"}),
        json!({"username": "bob", "password": PASSWORD, "tenant": "no such name!"}),
        json!({"username": "bob\u{0}", "password": PASSWORD}),
        json!({"username": "bob", "password": format!("{PASSWORD}\u{0}")}),
        json!({"username": "bob", "password": "x".repeat(5000)}),
    ] {
        let answer = office.anybody.post("/api/auth/login", &body).await;
        assert_refused(&answer, 401, "UNAUTHORIZED");
        errors.push(answer.json()["error"]["message"].clone());
    }
    errors.dedup();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for body in [json!({"username": "bob"}), json!({"password": PASSWORD}), json!({})] {
        assert_refused(
            &office.anybody.post("/api/auth/login", &body).await,
            400,
            "VALIDATION_ERROR",
        );
    }
    office.close().await;
}

/// A token with these claims over those of a good one, signed with this world's key or another.
fn token(office: &Office, claims: &Value, secret: &str) -> String {
    // Those of bob's own token, whose session and stamp exist.
    let own = office.bob.header("authorization").split('.').nth(1).unwrap();
    let mut all: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(own).unwrap()).unwrap();
    for (name, value) in claims.as_object().unwrap() {
        all[name] = value.clone();
    }
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &all, &key).unwrap()
}

#[tokio::test]
async fn login_rehashes_password_when_cost_changed() {
    let office = Office::open().await;
    let psql = office.world.psql().await;
    let hash = async || -> String {
        let query = "SELECT password_hash FROM posduif.credentials WHERE user_id = $1";
        psql.query_one(query, &[&office.bob_id]).await.unwrap().get(0)
    };
    let before = hash().await;
    office.anybody.log_in("acme", "bob").await;
    assert_eq!(hash().await, before, "the cost is the same");
    let mut config = office.world.config.clone();
    config.auth.argon2_memory_kib += 1024;
    let cost = format!("m={}", config.auth.argon2_memory_kib);
    let second = office.world.engine_with(EngineRole::Api, config).await;
    let there = second.api();
    let wrong = json!({"tenant": "acme", "username": "bob", "password": "wrong horse"});
    there.post("/api/auth/login", &wrong).await.expect(401);
    assert_eq!(hash().await, before, "a wrong password changes nothing");
    there.log_in("acme", "bob").await;
    assert!(hash().await.contains(&cost), "{}", hash().await);
    // The former node checks it all the same.
    office.anybody.log_in("acme", "bob").await;
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn access_token_foreign_or_expired_is_refused() {
    let office = Office::open().await;
    let secret = office.world.config.auth.jwt_secret.expose();
    let now = chrono::Utc::now().timestamp();
    let with = |claims: Value, secret: &str| {
        let token = token(&office, &claims, secret);
        office.anybody.with("authorization", &format!("Bearer {token}"))
    };
    with(json!({}), secret).get("/api/messages").await.expect(200);
    for (claims, secret) in [
        (json!({}), "another secret of quite enough bytes"),
        (json!({"exp": now - 60}), secret),
        (json!({"exp": null}), secret),
        (json!({"nbf": now + 60}), secret),
        (json!({"iss": "somebody"}), secret),
        (json!({"aud": "somebody"}), secret),
        (json!({"sub": "bob"}), secret),
        (json!({"tenant": "no name\u{0}"}), secret),
        (json!({"user_type": "king"}), secret),
        (json!({"sid": null}), secret),
    ] {
        let answer = with(claims.clone(), secret).get("/api/messages").await;
        let is_expired = claims["exp"].is_i64() && secret == office.world.config.auth.jwt_secret.expose();
        assert_refused(&answer, 401, if is_expired { "TOKEN_EXPIRED" } else { "UNAUTHORIZED" });
        assert_eq!(answer.headers["www-authenticate"], "Bearer", "{claims}");
    }
    office.close().await;
}

#[tokio::test]
async fn users_list_has_mobile_users_with_device_and_presence() {
    let office = Office::open().await;
    let sally = office.world.user("acme", "sally_1", UserType::Mobile).await;
    let phone = office.phone("joes-phone").await;

    let list = office.bob.get("/api/users").await.expect(200);
    assert_eq!(fields(&list), ["has_more", "limit", "offset", "total", "users"]);
    let names: Vec<&str> = list["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["username"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["joe", "sally_1"]);
    let joe = &list["users"][0];
    assert_eq!(
        fields(joe),
        [
            "created_at",
            "device_id",
            "id",
            "last_seen",
            "online_status",
            "role",
            "user_type",
            "username"
        ]
    );
    assert_eq!(
        (&joe["device_id"], &joe["online_status"]),
        (&json!("joes-phone"), &json!(false))
    );
    assert_eq!(joe["user_type"], "mobile");
    assert_is_time(&joe["created_at"]);
    assert_eq!(list["users"][1]["device_id"], Value::Null);

    let events = phone.events("/sse/mobile/joes-phone").await;
    let one = office
        .bob
        .get(&format!("/api/users/{}", office.joe_id))
        .await
        .expect(200);
    assert_eq!((&one["username"], &one["online_status"]), (&json!("joe"), &json!(true)));
    for (query, found) in [
        ("filter=SALLY_", vec![sally]),
        ("filter=%25", vec![]),
        ("status=true", vec![office.joe_id]),
        ("status=false", vec![sally]),
        ("limit=1&offset=1", vec![sally]),
        ("offset=9", vec![]),
    ] {
        let list = office.bob.get(&format!("/api/users?{query}")).await.expect(200);
        let found: Vec<String> = found.iter().map(Uuid::to_string).collect();
        assert_eq!(ids(&list["users"]), found, "{query}");
    }
    drop(events);
    eventually("joe is offline", || async {
        let one = office
            .bob
            .get(&format!("/api/users/{}", office.joe_id))
            .await
            .expect(200);
        (one["online_status"] == false).then_some(())
    })
    .await;
    assert_refused(
        &office.bob.get(&format!("/api/users/{}", Uuid::new_v4())).await,
        404,
        "NOT_FOUND",
    );
    assert_refused(&office.bob.get("/api/users/joe").await, 404, "NOT_FOUND");
    assert_eq!(
        phone.get(&format!("/api/users/{}", office.bob_id)).await.expect(200)["username"],
        "bob"
    );
    office.close().await;
}

#[tokio::test]
async fn message_has_all_fields_from_creation_to_delete() {
    let office = Office::open().await;
    let phone = office.phone("joes-phone").await;
    let body = json!({"recipient_id": office.joe_id, "content": "Hello, this is a test message"});
    let created = office.bob.post("/api/messages", &body).await.expect(201);
    assert_eq!(fields(&created), MESSAGE);
    assert_eq!(created["sender_id"], json!(office.bob_id));
    assert_eq!(created["recipient_id"], json!(office.joe_id));
    assert_eq!(created["content"], "Hello, this is a test message");
    assert_eq!(
        (&created["status"], &created["version"]),
        (&json!("pending_sync"), &json!(1))
    );
    assert_eq!(
        (&created["synced_at"], &created["read_at"]),
        (&Value::Null, &Value::Null)
    );
    assert_is_time(&created["created_at"]);

    let path = format!("/api/messages/{}", id(&created));
    assert_eq!(office.bob.get(&path).await.expect(200), created);
    assert_eq!(phone.get(&path).await.expect(200), created);

    let edited = office
        .bob
        .patch(&path, &json!({"content": "Hello again"}))
        .await
        .expect(200);
    assert_eq!(fields(&edited), MESSAGE);
    assert_eq!(
        (&edited["content"], &edited["version"]),
        (&json!("Hello again"), &json!(2))
    );
    let same = office
        .bob
        .patch(&path, &json!({"content": "Hello again"}))
        .await
        .expect(200);
    assert_eq!(same, edited, "the same text is no change");
    assert_refused(&phone.patch(&path, &json!({"content": "mine"})).await, 403, "FORBIDDEN");

    assert_refused(
        &office.bob.put(&format!("{path}/read"), &json!({})).await,
        403,
        "FORBIDDEN",
    );
    let read = phone.put(&format!("{path}/read"), &json!({})).await.expect(200);
    assert_eq!(fields(&read), MESSAGE);
    assert_eq!((&read["id"], &read["status"]), (&created["id"], &json!("read")));
    assert_is_time(&read["read_at"]);
    assert_eq!(
        phone.put(&format!("{path}/read"), &json!({})).await.expect(200),
        read,
        "a repeat"
    );

    assert_refused(&phone.delete(&path).await, 403, "FORBIDDEN");
    let deleted = office.bob.delete(&path).await;
    assert_eq!((deleted.status.as_u16(), deleted.body.len()), (204, 0));
    for answer in [
        office.bob.delete(&path).await,
        office.bob.get(&path).await,
        office.bob.patch(&path, &json!({"content": "late"})).await,
        phone.put(&format!("{path}/read"), &json!({})).await,
    ] {
        assert_refused(&answer, 404, "NOT_FOUND");
    }
    assert_eq!(office.bob.get("/api/messages").await.expect(200)["total"], 0);
    office.close().await;
}

#[tokio::test]
async fn invalid_message_is_refused_with_its_code() {
    let office = Office::open().await;
    let jane = office.world.user("acme", "jane", UserType::Web).await;
    let to_joe = |content: Value| json!({"recipient_id": office.joe_id, "content": content});
    for (body, status, code) in [
        (to_joe(json!("")), 400, "EMPTY_MESSAGE"),
        (to_joe(json!(" \n\t")), 400, "EMPTY_MESSAGE"),
        (to_joe(Value::Null), 400, "EMPTY_MESSAGE"),
        (to_joe(json!("a\u{0}b")), 400, "VALIDATION_ERROR"),
        (to_joe(json!("x".repeat(10_001))), 400, "VALIDATION_ERROR"),
        (
            json!({"recipient_id": Uuid::new_v4(), "content": "hi"}),
            404,
            "INVALID_RECIPIENT",
        ),
        (json!({"recipient_id": "joe", "content": "hi"}), 400, "VALIDATION_ERROR"),
        (json!({"content": "hi"}), 400, "VALIDATION_ERROR"),
        (json!({"recipient_id": jane, "content": "hi"}), 403, "FORBIDDEN"),
        (
            json!({"recipient_id": office.bob_id, "content": "hi"}),
            403,
            "FORBIDDEN",
        ),
    ] {
        assert_refused(&office.bob.post("/api/messages", &body).await, status, code);
    }
    // Length counts characters, not bytes.
    office
        .bob
        .post("/api/messages", &to_joe(json!("ä".repeat(10_000))))
        .await
        .expect(201);
    let content = "quotes \" \\ and <b> & newline\nand \u{1F600}";
    let created = office
        .bob
        .post("/api/messages", &to_joe(json!(content)))
        .await
        .expect(201);
    assert_eq!(office.message(&id(&created)).await["content"], content);
    office.close().await;
}

#[tokio::test]
async fn disabled_user_with_valid_token_cannot_write() {
    let office = Office::open().await;
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'bob'")
        .await;
    let body = json!({"recipient_id": office.joe_id, "content": "hi"});
    assert_refused(&office.bob.post("/api/messages", &body).await, 401, "SESSION_ENDED");
    assert_refused(
        &office.bob.post("/api/enrollment/create", &json!({})).await,
        401,
        "SESSION_ENDED",
    );
    office.close().await;
}

#[tokio::test]
async fn messages_list_is_newest_first_filtered_and_paged() {
    let office = Office::open().await;
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    let phone = office.phone("joes-phone").await;
    let written = office.insert(5).await;
    let to_sally = json!({"recipient_id": sally, "content": "for sally"});
    let to_sally = id(&office.bob.post("/api/messages", &to_sally).await.expect(201));
    phone
        .put(&format!("/api/messages/{}/read", written[4]), &json!({}))
        .await
        .expect(200);
    let newest_first: Vec<String> = written.iter().rev().cloned().collect();

    let list = office.bob.get("/api/messages").await.expect(200);
    assert_eq!(fields(&list), ["has_more", "limit", "messages", "offset", "total"]);
    assert_eq!(
        (&list["total"], &list["limit"], &list["offset"]),
        (&json!(6), &json!(50), &json!(0))
    );
    assert_eq!(fields(&list["messages"][0]), MESSAGE);
    assert_eq!(ids(&list["messages"])[0], to_sally);
    assert_eq!(ids(&list["messages"])[1..], newest_first);
    for (query, found, total) in [
        (format!("recipient_id={sally}"), vec![to_sally.clone()], 1),
        ("status=read".into(), vec![written[4].clone()], 1),
        ("status=synced".into(), vec![], 0),
        (
            format!("recipient_id={}&limit=2&offset=1", office.joe_id),
            newest_first[1..3].to_vec(),
            5,
        ),
        ("offset=100".into(), vec![], 6),
        ("limit=1000&offset=9223372036854775807".into(), vec![], 6),
    ] {
        let list = office.bob.get(&format!("/api/messages?{query}")).await.expect(200);
        assert_eq!(
            (ids(&list["messages"]), &list["total"]),
            (found, &json!(total)),
            "{query}"
        );
    }
    assert_eq!(
        ids(&phone.get("/api/messages").await.expect(200)["messages"]),
        newest_first,
        "joe does not see sally's"
    );
    office.close().await;
}

#[tokio::test]
async fn unread_count_has_received_messages_only() {
    let office = Office::open().await;
    let phone = office.phone("joes-phone").await;
    let written = office.insert(3).await;
    assert_eq!(
        office.bob.get("/api/messages/unread-count").await.expect(200),
        json!({"unread_count": 0})
    );
    assert_eq!(
        phone.get("/api/messages/unread-count").await.expect(200),
        json!({"unread_count": 3})
    );
    phone
        .put(&format!("/api/messages/{}/read", written[0]), &json!({}))
        .await
        .expect(200);
    office.bob.delete(&format!("/api/messages/{}", written[1])).await;
    assert_eq!(
        phone.get("/api/messages/unread-count").await.expect(200),
        json!({"unread_count": 1})
    );
    office.close().await;
}

fn completion(token: &Value, device_id: &str) -> Value {
    json!({
        "token": token, "device_id": device_id,
        "device_info": {"platform": "android", "version": "13", "model": "Pixel 7", "app_version": "1.0.0"},
    })
}

async fn new_enrollment(office: &Office) -> Value {
    office.bob.post("/api/enrollment/create", &json!({})).await.expect(201)
}

#[tokio::test]
async fn enrollment_code_leads_to_a_device_that_can_sync() {
    let office = Office::with(|config| config.server.public_url = "https://sync.example.com/".into()).await;
    let created = office
        .bob
        .send(Method::POST, "/api/enrollment/create", None, "")
        .await
        .expect(201);
    assert_eq!(fields(&created), ["expires_at", "id", "qr_code_data", "token"]);
    let token = created["token"].as_str().unwrap();
    let url = format!("https://sync.example.com/api/enrollment/{token}");
    assert_eq!(
        created["qr_code_data"],
        json!({"enrollment_url": url, "token": token, "tenant_id": "acme"})
    );
    assert_is_time(&created["expires_at"]);

    let shown = office
        .anybody
        .get(&format!("/api/enrollment/{token}"))
        .await
        .expect(200);
    assert_eq!(
        shown,
        json!({
            "token": token, "tenant_id": "acme", "created_by": "bob", "expires_at": created["expires_at"],
            "used_at": null, "valid": true,
        })
    );

    let mut body = completion(&created["token"], "device_123");
    body["username"] = json!("mobile_user_1");
    body["device_name"] = json!("Pixel");
    body["public_key"] = json!("a key");
    let done = office.anybody.post("/api/enrollment/complete", &body).await.expect(201);
    assert_eq!(
        fields(&done),
        [
            "app_instructions_url",
            "device_id",
            "device_token",
            "tenant_id",
            "user_id",
            "username"
        ]
    );
    assert_eq!(
        (&done["device_id"], &done["tenant_id"]),
        (&json!("device_123"), &json!("acme"))
    );
    assert_eq!(done["username"], "mobile_user_1");
    assert_eq!(
        done["app_instructions_url"],
        "https://sync.example.com/api/app-instructions"
    );

    let device = office.anybody.with("x-device-id", "device_123").with(
        "authorization",
        &format!("Bearer {}", done["device_token"].as_str().unwrap()),
    );
    device.get("/api/sync/incoming").await.expect(200);
    let user = office
        .bob
        .get(&format!("/api/users/{}", done["user_id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(
        (&user["device_id"], &user["user_type"]),
        (&json!("device_123"), &json!("mobile"))
    );
    assert_refused(
        &office.anybody.get(&format!("/api/enrollment/{token}")).await,
        400,
        "ENROLLMENT_USED",
    );
    office.close().await;
}

#[tokio::test]
async fn enrollment_is_valid_for_one_device_until_expiry() {
    let office = Office::open().await;
    let used = new_enrollment(&office).await;
    office
        .anybody
        .post("/api/enrollment/complete", &completion(&used["token"], "one"))
        .await
        .expect(201);
    let second = office
        .anybody
        .post("/api/enrollment/complete", &completion(&used["token"], "two"))
        .await;
    assert_refused(&second, 400, "ENROLLMENT_USED");

    let late = new_enrollment(&office).await;
    office
        .sql("UPDATE tenant_acme.enrollments SET expires_at = now() - interval '1 second' WHERE used_at IS NULL")
        .await;
    let path = format!("/api/enrollment/{}", late["token"].as_str().unwrap());
    assert_refused(&office.anybody.get(&path).await, 400, "ENROLLMENT_EXPIRED");
    let answer = office
        .anybody
        .post("/api/enrollment/complete", &completion(&late["token"], "three"))
        .await;
    assert_refused(&answer, 400, "ENROLLMENT_EXPIRED");

    let unknown = json!(Uuid::new_v4());
    let path = format!("/api/enrollment/{}", unknown.as_str().unwrap());
    assert_refused(&office.anybody.get(&path).await, 404, "NOT_FOUND");
    let answer = office
        .anybody
        .post("/api/enrollment/complete", &completion(&unknown, "four"))
        .await;
    assert_refused(&answer, 404, "NOT_FOUND");
    assert_refused(&office.anybody.get("/api/enrollment/no-token").await, 404, "NOT_FOUND");
    let fresh = new_enrollment(&office).await;
    for bad in ["", "a b", "a/b", "ä", "a\u{0}", &"x".repeat(129)] {
        let answer = office
            .anybody
            .post("/api/enrollment/complete", &completion(&fresh["token"], bad))
            .await;
        assert_refused(&answer, 400, "VALIDATION_ERROR");
    }
    office.close().await;
}

#[tokio::test]
async fn enrollment_lost_response_can_be_repeated_until_first_use() {
    let office = Office::open().await;
    let enrollment = new_enrollment(&office).await;
    let body = completion(&enrollment["token"], "phone");
    let complete = || office.anybody.post("/api/enrollment/complete", &body);
    let with = |answer: &Value| {
        office.anybody.with("x-device-id", "phone").with(
            "authorization",
            &format!("Bearer {}", answer["device_token"].as_str().unwrap()),
        )
    };
    let lost = complete().await.expect(201);
    let again = complete().await.expect(201);
    assert_eq!(lost["user_id"], again["user_id"]);
    assert_ne!(lost["device_token"], again["device_token"]);
    assert_refused(&with(&lost).get("/api/sync/status").await, 401, "UNAUTHORIZED");
    with(&again).get("/api/sync/status").await.expect(200);
    assert_refused(&complete().await, 400, "ENROLLMENT_USED");

    let enrollment = new_enrollment(&office).await;
    let body = completion(&enrollment["token"], "other");
    office.anybody.post("/api/enrollment/complete", &body).await.expect(201);
    office
        .sql("UPDATE tenant_acme.enrollments SET used_at = used_at - interval '601 seconds' WHERE device_id = 'other'")
        .await;
    let late = office.anybody.post("/api/enrollment/complete", &body).await;
    assert_refused(&late, 400, "ENROLLMENT_USED");
    office.close().await;
}

#[tokio::test]
async fn enrollment_concurrent_completions_register_one_device() {
    let office = Office::open().await;
    let enrollment = new_enrollment(&office).await;
    let completions = (0..8).map(|n| {
        let body = completion(&enrollment["token"], &format!("phone-{n}"));
        let anybody = office.anybody.clone();
        async move { anybody.post("/api/enrollment/complete", &body).await.status.as_u16() }
    });
    let mut statuses = futures_util::future::join_all(completions).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 400, 400, 400, 400, 400, 400, 400]);
    office.close().await;
}

#[tokio::test]
async fn enrollment_taken_name_or_device_is_conflict_unless_it_names_the_user() {
    let office = Office::open().await;
    let jane = office.world.user("acme", "jane", UserType::Web).await;
    let enroll = |user: Option<Uuid>| {
        let body = user.map_or(json!({}), |user| json!({"user_id": user}));
        let bob = office.bob.clone();
        async move { bob.post("/api/enrollment/create", &body).await }
    };
    let joes = enroll(Some(office.joe_id)).await.expect(201);
    let first = office
        .anybody
        .post("/api/enrollment/complete", &completion(&joes["token"], "joes"))
        .await
        .expect(201);
    assert_eq!(
        (&first["user_id"], &first["username"]),
        (&json!(office.joe_id), &json!("joe"))
    );

    let fresh = new_enrollment(&office).await;
    let taken_device = completion(&fresh["token"], "joes");
    assert_refused(
        &office.anybody.post("/api/enrollment/complete", &taken_device).await,
        409,
        "CONFLICT",
    );
    let mut taken_name = completion(&fresh["token"], "another");
    taken_name["username"] = json!("JOE");
    assert_refused(
        &office.anybody.post("/api/enrollment/complete", &taken_name).await,
        409,
        "CONFLICT",
    );
    // Neither used the enrollment up, nor left a user behind.
    office
        .anybody
        .post("/api/enrollment/complete", &completion(&fresh["token"], "another"))
        .await
        .expect(201);
    assert_eq!(office.bob.get("/api/users").await.expect(200)["total"], 2);

    // Enrolling joe's own device again ends its former token.
    let device = |answer: &Value| {
        office.anybody.with("x-device-id", "joes").with(
            "authorization",
            &format!("Bearer {}", answer["device_token"].as_str().unwrap()),
        )
    };
    device(&first).get("/api/sync/status").await.expect(200);
    let enrollment = enroll(Some(office.joe_id)).await.expect(201);
    let mut body = completion(&enrollment["token"], "joes");
    body["username"] = json!("someone");
    assert_refused(
        &office.anybody.post("/api/enrollment/complete", &body).await,
        409,
        "CONFLICT",
    );
    body["username"] = json!("joe");
    let second = office.anybody.post("/api/enrollment/complete", &body).await.expect(201);
    assert_refused(&device(&first).get("/api/sync/status").await, 401, "UNAUTHORIZED");
    device(&second).get("/api/sync/status").await.expect(200);

    enroll(Some(jane)).await.expect(201);
    assert_refused(&enroll(Some(Uuid::new_v4())).await, 404, "NOT_FOUND");
    let own = enroll(Some(office.bob_id)).await.expect(201);
    let own = office
        .anybody
        .post("/api/enrollment/complete", &completion(&own["token"], "bobs"))
        .await
        .expect(201);
    assert_eq!(own["user_id"], json!(office.bob_id));
    office.close().await;
}

#[tokio::test]
async fn app_instructions_reflect_configuration() {
    let office = Office::with(|config| {
        config.server.public_url = "https://backend.example.com".into();
        config.sync.conflict_strategy = posduif::config::ConflictStrategy::Manual;
        config.sync.upload_items_max = 7;
        config.app.widgets.insert(
            "inbox".into(),
            posduif::config::Widget {
                kind: "remote_widget".into(),
                url: "https://cdn.example.com/widgets/inbox.json".into(),
                version: "1.0.0".into(),
            },
        );
    })
    .await;
    let phone = office.phone("phone").await;
    assert_eq!(
        phone.get("/api/app-instructions").await.expect(200),
        json!({
            "version": "1.0.0",
            "tenant_id": "acme",
            "api_base_url": "https://backend.example.com",
            "widgets": {"inbox": {
                "type": "remote_widget", "url": "https://cdn.example.com/widgets/inbox.json", "version": "1.0.0",
            }},
            "tables": [],
            "sync_config": {"batch_size": 100, "compression": true, "sync_interval_seconds": 300},
            "conflict_strategy": "manual",
            "limits": {
                "batch_size_max": 1000, "upload_items_max": 7, "upload_bytes_max": 8 * 1024 * 1024,
                "body_bytes_max": 1024 * 1024, "content_chars_max": 10_000, "state_bytes_max": 64 * 1024,
                "state_nonce_bytes_max": 64, "state_keys_max": 1000, "state_batch_items_max": 100,
                "state_batch_bytes_max": 8 * 1024 * 1024, "websocket_message_bytes_max": 256 * 1024,
                "websocket_items_max": 100, "streams_per_user_max": 200,
            },
        })
    );
    assert_refused(&office.anybody.get("/api/app-instructions").await, 401, "UNAUTHORIZED");
    office.close().await;
}

#[tokio::test]
async fn device_id_auth_needs_no_token_and_refuses_unknown_devices() {
    let office = Office::with(|config| config.auth.device_auth = DeviceAuth::Id).await;
    office.phone("phone").await;
    let by_id = office.anybody.with("x-device-id", "phone");
    assert_eq!(
        by_id.get("/api/app-instructions").await.expect(200)["tenant_id"],
        "acme"
    );
    by_id.get("/api/sync/incoming").await.expect(200);
    let stranger = office.anybody.with("x-device-id", "stranger");
    assert_refused(&stranger.get("/api/app-instructions").await, 404, "NOT_FOUND");
    let malformed = office.anybody.with("x-device-id", "no id!");
    assert_refused(&malformed.get("/api/app-instructions").await, 401, "UNAUTHORIZED");
    assert_refused(&office.anybody.get("/api/app-instructions").await, 401, "UNAUTHORIZED");
    let wrong = by_id.with("authorization", "Bearer wrong");
    assert_refused(&wrong.get("/api/app-instructions").await, 401, "UNAUTHORIZED");
    let elsewhere = by_id.with("x-tenant", "elsewhere");
    assert_refused(&elsewhere.get("/api/app-instructions").await, 404, "NOT_FOUND");
    office.close().await;
}

#[tokio::test]
async fn health_is_alive_and_readiness_reports_each_check() {
    let office = Office::open().await;
    let health = office.anybody.get("/health").await;
    assert_eq!((health.status.as_u16(), &health.body[..]), (200, &b"OK"[..]));
    assert!(
        health.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    let head = office.anybody.send(Method::HEAD, "/health", None, "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));

    let ready = office.ready().await;
    assert_eq!(fields(&ready), ["checks", "ready"]);
    assert_eq!(
        fields(&ready["checks"]),
        ["freshness", "postgres", "redis", "replication"]
    );
    for (name, check) in ready["checks"].as_object().unwrap() {
        assert_eq!(check["ok"], true, "{name}");
    }
    assert!(ready["checks"]["freshness"]["age_seconds"].as_f64().unwrap() < 10.0);
    office.close().await;
}

#[tokio::test]
async fn openapi_has_every_route_credential_and_error_code() {
    let office = Office::open().await;
    let served = office.anybody.get("/openapi.json").await.expect(200);
    assert_eq!(&served, spec::document());
    let mut described = BTreeSet::new();
    for (path, item) in served["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let security = operation.get("security").unwrap_or(&served["security"]);
            let admits = |scheme: &str| security.as_array().unwrap().iter().any(|way| way.get(scheme).is_some());
            let access = match (admits("accessToken"), admits("deviceToken")) {
                (false, false) => Access::Public,
                (true, false) => Access::Web,
                (false, true) => Access::Device,
                (true, true) => Access::Any,
            };
            described.insert(format!("{} {path} {access:?}", method.to_uppercase()));
        }
    }
    let table = routes::table().iter().map(|route| {
        // Of which type a user is, the token tells and not its scheme.
        let access = match route.access {
            Access::User => Access::Web,
            access => access,
        };
        format!("{} {} {access:?}", route.method, route.path)
    });
    assert_eq!(described, table.collect());
    let codes = served["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    let known: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(
        codes.iter().map(|code| code.as_str().unwrap()).collect::<Vec<_>>(),
        known
    );
    office.close().await;
}

/// Where below a schema an answer may hold what is not described. `within` holds references on the way here.
fn unsaid(schema: &Value, place: &str, is_closed: bool, within: &[&str], found: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        if !within.contains(&reference) {
            let target = spec::document().pointer(reference.trim_start_matches('#')).unwrap();
            unsaid(target, place, is_closed, &[within, &[reference]].concat(), found);
        }
        return;
    }
    let is =
        |name: &str| schema["type"] == name || schema["type"].as_array().is_some_and(|all| all.contains(&name.into()));
    let closes = |key: &str| schema.get(key).is_some_and(|value| *value != json!(true));
    let is_closed = is_closed || closes("additionalProperties") || closes("unevaluatedProperties");
    let is_any = ["type", "allOf", "anyOf", "oneOf", "enum", "const", "required"]
        .iter()
        .all(|key| schema.get(*key).is_none());
    if is_any || is("object") && !is_closed || is("array") && schema.get("items").is_none() {
        found.insert(place.to_owned());
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        unsaid(property, &format!("{place}.{name}"), false, within, found);
    }
    for key in ["additionalProperties", "items"] {
        if let Some(inner) = schema.get(key).filter(|inner| inner.is_object()) {
            unsaid(inner, &format!("{place}[]"), false, within, found);
        }
    }
    // Where the whole is closed, its parts need not be.
    for key in ["allOf", "anyOf", "oneOf"] {
        for part in schema[key].as_array().into_iter().flatten() {
            unsaid(part, place, is_closed, within, found);
        }
    }
}

#[test]
fn openapi_responses_list_all_fields_except_user_content() {
    let mut found = BTreeSet::new();
    for (path, item) in spec::document()["paths"].as_object().unwrap() {
        for (_, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            for response in operation["responses"].as_object().unwrap().values() {
                let response = match response["$ref"].as_str() {
                    Some(reference) => spec::document().pointer(reference.trim_start_matches('#')).unwrap(),
                    None => response,
                };
                let schema = &response["content"]["application/json"]["schema"];
                if !schema.is_null() {
                    unsaid(schema, path, false, &[], &mut found);
                }
            }
        }
    }
    // An error's details depend on its code, and rows and what apps say of themselves are not ours.
    found.retain(|place| !place.ends_with(".error.details"));
    let known = [
        "/api/app-instructions.widgets",
        "/api/auth/login.device.device_info",
        "/api/auth/refresh.device.device_info",
        "/api/auth/register.device.device_info",
        "/api/conflicts.conflicts[].client_version",
        "/api/conflicts.conflicts[].server_version",
        "/api/conflicts/{id}/resolve.client_version",
        "/api/conflicts/{id}/resolve.server_version",
        "/api/devices.devices[].device_info",
        "/api/devices/{id}.device_info",
        "/api/sync/incoming.changes[].row",
        "/api/sync/outgoing.results[].server",
        "/api/tables/{table}.rows[]",
        "/api/tables/{table}/{id}",
        "/openapi.json",
    ];
    assert_eq!(found, known.map(str::to_owned).into());
}

#[tokio::test]
async fn error_body_and_header_have_the_clients_request_id() {
    let office = Office::open().await;
    let answer = office.anybody.with("x-request-id", "trace-7").get("/nothing").await;
    assert_refused(&answer, 404, "NOT_FOUND");
    assert_eq!(answer.headers["x-request-id"], "trace-7");
    assert_eq!(
        answer.json()["error"],
        json!({
            "code": "NOT_FOUND", "message": answer.json()["error"]["message"], "details": {}, "retryable": false,
            "request_id": "trace-7",
        })
    );
    let forged = office.anybody.with("x-request-id", "a b{}").get("/nothing").await;
    let own = forged.headers["x-request-id"].to_str().unwrap().to_owned();
    Uuid::parse_str(&own).unwrap();
    assert_eq!(forged.json()["error"]["request_id"], own);
    office.close().await;
}
