//! Sessions: a login starts one, a refresh continues it, a logout ends it.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use posduif::accounts::users::UserType;
use posduif::engine::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::http::{Answer, Api};
use crate::support::office::{Office, id, ids};
use crate::support::proxy::Proxy;
use crate::support::{PASSWORD, World, eventually};

/// A login's answer, which a refresh gives too.
async fn log_in(office: &Office, username: &str) -> Value {
    let body = json!({"username": username, "password": PASSWORD});
    office.anybody.post("/api/auth/login", &body).await.expect(200)
}

fn as_user(office: &Office, answer: &Value) -> Api {
    let token = answer["token"].as_str().unwrap();
    office.anybody.with("authorization", &format!("Bearer {token}"))
}

async fn refresh(api: &Api, token: &Value) -> Answer {
    api.post("/api/auth/refresh", &json!({"refresh_token": token})).await
}

/// That the refresh token of an answer is good for nothing.
async fn assert_spent(office: &Office, answer: &Value) {
    let refused = refresh(&office.anybody, &answer["refresh_token"]).await;
    assert_refused(&refused, 401, "UNAUTHORIZED");
}

/// The session that an access token names.
fn session_of(answer: &Value) -> String {
    use base64::Engine as _;
    let claims = answer["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["sid"].as_str().unwrap().to_owned()
}

/// Redis, as somebody else sees it.
async fn ask<T: redis::FromRedisValue>(office: &Office, command: &[&str]) -> T {
    let mut redis = office.world.redis().await;
    redis::cmd(command[0])
        .arg(&command[1..])
        .query_async(&mut redis)
        .await
        .unwrap()
}

fn session_key(office: &Office, session: &str) -> String {
    office.world.keys().session(session.parse().unwrap())
}

/// Makes a session's last refresh lie so far back that it cannot be repeated.
async fn let_retry_end(office: &Office, session: &str) {
    let key = session_key(office, session);
    let _: i64 = ask(office, &["HINCRBY", &key, "rotated_at", "-31000"]).await;
}

#[tokio::test]
async fn refresh_continues_the_session_of_the_login() {
    let office = Office::open().await;
    let first = log_in(&office, "bob").await;
    let second = refresh(&office.anybody, &first["refresh_token"]).await.expect(200);
    assert_eq!(
        second.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["expires_in", "refresh_token", "token", "user"]
    );
    assert_eq!(second["user"], first["user"]);
    assert_eq!(session_of(&second), session_of(&first));
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    let third = refresh(&office.anybody, &second["refresh_token"]).await.expect(200);
    as_user(&office, &third).get("/api/messages").await.expect(200);
    // A former access token holds for as long as it says.
    as_user(&office, &first).get("/api/messages").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn mobile_user_with_password_has_an_ordinary_session() {
    let office = Office::open().await;
    let joe = log_in(&office, "joe").await;
    let joe = refresh(&office.anybody, &joe["refresh_token"]).await.expect(200);
    assert_eq!(joe["user"]["user_type"], "mobile");
    let api = as_user(&office, &joe);
    assert_eq!(
        ids(&api.get("/api/auth/sessions").await.expect(200)["sessions"]),
        [session_of(&joe)]
    );
    assert_eq!(api.post("/api/auth/logout", &json!({})).await.status, 204);
    assert_spent(&office, &joe).await;
    office.close().await;
}

#[tokio::test]
async fn refresh_repeated_after_lost_response_gives_the_same_result() {
    let office = Office::open().await;
    let first = log_in(&office, "bob").await;
    let lost = refresh(&office.anybody, &first["refresh_token"]).await.expect(200);
    let again = refresh(&office.anybody, &first["refresh_token"]).await.expect(200);
    assert_eq!(again["refresh_token"], lost["refresh_token"]);
    // Once the successor is in use, nothing was lost.
    let next = refresh(&office.anybody, &again["refresh_token"]).await.expect(200);
    assert_spent(&office, &first).await;
    assert_spent(&office, &next).await;
    office.close().await;
}

#[tokio::test]
async fn reused_refresh_token_ends_its_session_only() {
    let office = Office::open().await;
    let other = log_in(&office, "bob").await;
    let first = log_in(&office, "bob").await;
    let second = refresh(&office.anybody, &first["refresh_token"]).await.expect(200);
    let_retry_end(&office, &session_of(&first)).await;
    assert_spent(&office, &first).await;
    assert_spent(&office, &second).await;
    let sessions = as_user(&office, &other).get("/api/auth/sessions").await.expect(200);
    assert!(!ids(&sessions["sessions"]).contains(&session_of(&first)));
    refresh(&office.anybody, &other["refresh_token"]).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn concurrent_refreshes_of_one_token_make_one_chain() {
    let office = Office::open().await;
    let mut token = log_in(&office, "bob").await["refresh_token"].clone();
    for _ in 0..5 {
        let clients: Vec<Api> = (0..12).map(|_| Api::new(office.anybody.address())).collect();
        let answers = join_all(clients.iter().map(|api| refresh(api, &token))).await;
        let successors: BTreeSet<String> = answers
            .into_iter()
            .map(|answer| answer.expect(200)["refresh_token"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(successors.len(), 1, "{successors:?}");
        token = json!(successors.first());
    }
    office.close().await;
}

#[tokio::test]
async fn invalid_refresh_token_ends_no_session() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let office = Office::open().await;
    let bob = log_in(&office, "bob").await;
    let session = session_of(&bob);
    let mut guess = session.parse::<Uuid>().unwrap().as_bytes().to_vec();
    guess.extend([7; 32]);
    for bad in [
        json!(session),
        json!(URL_SAFE_NO_PAD.encode(guess)),
        json!(bob["token"]),
        json!("x".repeat(64)),
        json!("ä".repeat(32)),
        json!(""),
    ] {
        assert_refused(&refresh(&office.anybody, &bad).await, 401, "UNAUTHORIZED");
    }
    refresh(&office.anybody, &bob["refresh_token"]).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn session_keys_in_redis_hold_no_token_and_expire() {
    let office = Office::open().await;
    let first = log_in(&office, "bob").await;
    let second = refresh(&office.anybody, &first["refresh_token"]).await.expect(200);
    let (key, index) = (
        session_key(&office, &session_of(&first)),
        office.world.keys().account_sessions(office.bob_id),
    );
    let stored: Vec<String> = ask(&office, &["HGETALL", &key]).await;
    for secret in [&first, &second].map(|answer| answer["refresh_token"].as_str().unwrap()) {
        assert!(stored.iter().all(|text| !text.contains(&secret[22..])), "{stored:?}");
    }
    let lifetime = office.world.config.auth.session_expiry_seconds as i64;
    for key in [key, index] {
        let ttl: i64 = ask(&office, &["TTL", &key]).await;
        assert!(ttl > 0 && ttl <= lifetime, "{key} lives {ttl} s");
    }
    office.close().await;
}

#[tokio::test]
async fn sessions_list_has_clients_and_marks_the_current_one() {
    let office = Office::with(|config| {
        config.server.trusted_proxies = vec![String::from("127.0.0.1").try_into().unwrap()];
    })
    .await;
    let body = json!({"username": "bob", "password": PASSWORD});
    let elsewhere = office
        .anybody
        .with("user-agent", "Netscape/4")
        .with("x-forwarded-for", "10.9.8.7");
    let other = elsewhere.post("/api/auth/login", &body).await.expect(200);
    let mine = office.bob.get("/api/auth/sessions").await.expect(200);
    let sessions = mine["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    assert_eq!(
        sessions[0].as_object().unwrap().keys().collect::<Vec<_>>(),
        [
            "address",
            "created_at",
            "current",
            "device_id",
            "expires_at",
            "id",
            "last_used_at",
            "user_agent"
        ]
    );
    assert_eq!(sessions[0]["id"], json!(session_of(&other)));
    assert_eq!(
        (
            &sessions[0]["user_agent"],
            &sessions[0]["address"],
            &sessions[0]["current"]
        ),
        (&json!("Netscape/4"), &json!("10.9.8.7"), &json!(false))
    );
    assert_eq!(
        (
            &sessions[1]["user_agent"],
            &sessions[1]["address"],
            &sessions[1]["current"]
        ),
        (&Value::Null, &json!("127.0.0.1"), &json!(true))
    );
    office.close().await;
}

#[tokio::test]
async fn expired_session_is_removed_from_the_list_on_read() {
    let office = Office::open().await;
    let gone = session_of(&log_in(&office, "bob").await);
    let index = office.world.keys().account_sessions(office.bob_id);
    let _: i64 = ask(&office, &["DEL", &session_key(&office, &gone)]).await;
    assert!(ask::<bool>(&office, &["SISMEMBER", &index, &gone]).await);
    let sessions = office.bob.get("/api/auth/sessions").await.expect(200);
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
    assert!(!ask::<bool>(&office, &["SISMEMBER", &index, &gone]).await);
    office.close().await;
}

#[tokio::test]
async fn sessions_per_user_are_limited() {
    let office = Office::with(|config| config.auth.sessions_max = 3).await;
    let mut logins = Vec::new();
    for _ in 0..4 {
        logins.push(log_in(&office, "joe").await);
    }
    let api = as_user(&office, &logins[3]);
    let sessions = api.get("/api/auth/sessions").await.expect(200);
    let kept: BTreeSet<String> = ids(&sessions["sessions"]).into_iter().collect();
    assert_eq!(kept.len(), 3);
    assert!(kept.contains(&session_of(&logins[3])), "the newest is among them");
    office.close().await;
}

#[tokio::test]
async fn one_session_or_all_others_can_be_ended() {
    let office = Office::open().await;
    let logins = [log_in(&office, "bob").await, log_in(&office, "bob").await];
    let path = format!("/api/auth/sessions/{}", session_of(&logins[0]));
    assert_eq!(office.bob.delete(&path).await.status, 204);
    assert_refused(
        &refresh(&office.anybody, &logins[0]["refresh_token"]).await,
        401,
        "UNAUTHORIZED",
    );
    assert_refused(&office.bob.delete(&path).await, 404, "NOT_FOUND");
    // With the access token that is left, nobody ends the others.
    let ended = as_user(&office, &logins[0]);
    assert_refused(&ended.delete("/api/auth/sessions").await, 401, "SESSION_ENDED");
    assert_refused(&ended.get("/api/auth/sessions").await, 401, "SESSION_ENDED");

    let jane_id = office.world.user("acme", "jane", UserType::Web).await;
    assert_ne!(jane_id, office.bob_id);
    let jane = log_in(&office, "jane").await;
    let last = log_in(&office, "bob").await;
    let api = as_user(&office, &last);
    assert_eq!(api.delete("/api/auth/sessions").await.status, 204);
    let left = api.get("/api/auth/sessions").await.expect(200);
    assert_eq!(ids(&left["sessions"]), [session_of(&last)]);
    assert_refused(
        &refresh(&office.anybody, &logins[1]["refresh_token"]).await,
        401,
        "UNAUTHORIZED",
    );
    refresh(&office.anybody, &last["refresh_token"]).await.expect(200);
    refresh(&office.anybody, &jane["refresh_token"]).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn sessions_are_isolated_between_tenants_with_equal_user_ids() {
    let office = Office::open().await;
    office.world.tenant("globex").await;
    // As when a tenant is made from a copy of another.
    office
        .sql(
            "INSERT INTO tenant_globex.users (id, username, user_type) \
             SELECT id, username, user_type FROM tenant_acme.users WHERE username = 'bob'; \
             INSERT INTO posduif.credentials (tenant, user_id, password_hash) \
             SELECT 'globex', user_id, password_hash FROM posduif.credentials WHERE tenant = 'acme'",
        )
        .await;
    let ours = log_in(&office, "bob").await;
    let theirs = office.anybody.log_in("globex", "bob").await;
    let list = theirs.get("/api/auth/sessions").await.expect(200);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1);
    let path = format!("/api/auth/sessions/{}", session_of(&ours));
    assert_refused(&theirs.delete(&path).await, 404, "NOT_FOUND");
    assert_eq!(theirs.delete("/api/auth/sessions").await.status, 204);
    refresh(&office.anybody, &ours["refresh_token"]).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn ended_session_closes_its_own_streams_on_every_node() {
    // Nodes look for themselves once a heartbeat, which is too late here: the word of it must reach them.
    let office = Office::with(|config| config.live.heartbeat_seconds = 60).await;
    let second = office.world.engine(Role::Api).await;
    let login = log_in(&office, "bob").await;
    let here = as_user(&office, &login);
    let there = here.at(&second.api());
    let path = format!("/sse/web/{}", office.bob_id);
    let mut ended = [here.events(&path).await, there.events(&path).await];
    let mut kept = office.bob.events(&path).await;
    assert_eq!(here.post("/api/auth/logout", &json!({})).await.status, 204);
    for stream in &mut ended {
        assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    }
    // 204 tells a browser to stop trying.
    for api in [&here, &there] {
        assert_eq!(api.open(&path).await.unwrap_err().status, 204);
        assert_eq!(api.post("/api/auth/logout", &json!({})).await.status, 204);
    }
    office.phone("phone").await;
    let message = office.send("still there").await;
    let psql = office.world.psql().await;
    let read = "UPDATE tenant_acme.messages SET status = 'read', read_at = now() WHERE id = $1";
    psql.execute(read, &[&message.parse::<Uuid>().unwrap()]).await.unwrap();
    assert_eq!(kept.expect("message_read").await.data["message_id"], json!(message));
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn stream_that_missed_its_sessions_end_closes_at_a_heartbeat() {
    let office = Office::with(|config| config.live.heartbeat_seconds = 1).await;
    let login = log_in(&office, "bob").await;
    let mut stream = as_user(&office, &login)
        .events(&format!("/sse/web/{}", office.bob_id))
        .await;
    // Another node ends the session, and the word of it is lost.
    let until = (chrono::Utc::now().timestamp_millis() + 60_000).to_string();
    let ended = office.world.keys().ended_sessions();
    let _: i64 = ask(&office, &["ZADD", &ended, &until, &session_of(&login)]).await;
    assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    office.close().await;
}

#[tokio::test]
async fn access_token_of_an_ended_session_is_refused_on_every_node() {
    let office = Office::open().await;
    let second = office.world.engine(Role::Api).await;
    let here = as_user(&office, &log_in(&office, "bob").await);
    let there = here.at(&second.api());
    for api in [&here, &there] {
        api.get("/api/messages").await.expect(200);
    }
    assert_eq!(here.post("/api/auth/logout", &json!({})).await.status, 204);
    let write = json!({"recipient_id": office.joe_id, "content": "too late"});
    for answer in [
        here.get("/api/messages").await,
        here.get("/api/users").await,
        here.post("/api/messages", &write).await,
        here.post("/api/sse/ticket", &json!({})).await,
    ] {
        assert_refused(&answer, 401, "SESSION_ENDED");
    }
    let refused = async |api: &Api| {
        eventually("the token is refused", || async {
            (api.get("/api/messages").await.status == 401).then_some(())
        })
        .await;
    };
    refused(&there).await;
    // One that starts later has it from Redis.
    let third = office.world.engine(Role::Api).await;
    refused(&here.at(&third.api())).await;
    // The user's other session goes on everywhere.
    for api in [&office.bob, &office.bob.at(&second.api()), &office.bob.at(&third.api())] {
        api.get("/api/messages").await.expect(200);
    }
    // A user who is disabled by SQL has no session, and so no token.
    office.world.user("acme", "ann", UserType::Web).await;
    let ann = as_user(&office, &log_in(&office, "ann").await);
    ann.get("/api/messages").await.expect(200);
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'ann'")
        .await;
    refused(&ann).await;
    refused(&ann.at(&third.api())).await;
    second.stop().await;
    third.stop().await;
    office.close().await;
}

#[tokio::test]
async fn token_of_one_kind_is_refused_for_another() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let login = log_in(&office, "bob").await;
    let ticket = office.bob.post("/api/sse/ticket", &json!({})).await.expect(201);
    let created = office.bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let device_token = phone
        .header("authorization")
        .strip_prefix("Bearer ")
        .unwrap()
        .to_owned();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let access = text(&login["token"]);
    let others = [
        text(&login["refresh_token"]),
        text(&ticket["ticket"]),
        text(&created["token"]),
    ];
    for token in others.iter().chain([&device_token]) {
        let bearer = format!("Bearer {token}");
        let user = office.anybody.with("authorization", &bearer);
        for path in ["/api/messages", "/api/users", "/api/auth/sessions", "/api/devices"] {
            assert_refused(&user.get(path).await, 401, "UNAUTHORIZED");
        }
    }
    for token in others.iter().chain([&access]) {
        let device = phone.with("authorization", &format!("Bearer {token}"));
        assert_refused(&device.get("/api/sync/status").await, 401, "UNAUTHORIZED");
        assert_eq!(device.open("/sse/mobile/phone").await.unwrap_err().status, 401);
    }
    for token in [&access, &device_token, &others[1], &others[2]] {
        let answer = refresh(&office.anybody, &json!(token)).await;
        assert_refused(&answer, 401, "UNAUTHORIZED");
    }
    for token in [&access, &device_token, &others[0], &others[2]] {
        let path = format!("/sse/web/{}?ticket={token}", office.bob_id);
        assert_eq!(office.anybody.open(&path).await.unwrap_err().status, 401);
    }
    // All that was for nothing, and nothing was spent by it.
    refresh(&office.anybody, &login["refresh_token"]).await.expect(200);
    phone.get("/api/sync/status").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn disabled_or_deleted_user_loses_all_sessions() {
    let office = Office::open().await;
    for (username, statement) in [
        (
            "ann",
            "UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'ann'",
        ),
        (
            "ben",
            "UPDATE tenant_acme.users SET deleted_at = now() WHERE username = 'ben'",
        ),
    ] {
        let user = office.world.user("acme", username, UserType::Web).await;
        let login = log_in(&office, username).await;
        office.sql(statement).await;
        assert_spent(&office, &login).await;
        let index = office.world.keys().account_sessions(user);
        assert!(!ask::<bool>(&office, &["EXISTS", &index]).await);
        assert!(!ask::<bool>(&office, &["EXISTS", &session_key(&office, &session_of(&login))]).await);
    }
    // Also when nobody refreshes.
    let user = office.world.user("acme", "carl", UserType::Web).await;
    log_in(&office, "carl").await;
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'carl'")
        .await;
    let index = office.world.keys().account_sessions(user);
    eventually("the sessions of the disabled user are gone", || async {
        (!ask::<bool>(&office, &["EXISTS", &index]).await).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn user_of_a_dropped_tenant_is_refused() {
    let office = Office::open().await;
    office.world.tenant("globex").await;
    office.world.user("globex", "eve", UserType::Web).await;
    let body = json!({"tenant": "globex", "username": "eve", "password": PASSWORD});
    let eve = office.anybody.post("/api/auth/login", &body).await.expect(200);
    office
        .sql("DROP SCHEMA tenant_globex CASCADE; DELETE FROM posduif.tenants WHERE name = 'globex'")
        .await;
    assert_spent(&office, &eve).await;
    office.close().await;
}

#[tokio::test]
async fn redis_outage_keeps_requests_working_and_session_routes_return_503() {
    let mut world = World::new().await;
    let proxy = Proxy::before(world.config.redis.url.expose()).await;
    let direct = world.config.redis.url.clone();
    world.config.redis.url = posduif::config::Secret::new(proxy.url(direct.expose()));
    world.config.redis.response_timeout_seconds = 1;
    let mut office = Office::within(world, |_| {}).await;
    let login = log_in(&office, "bob").await;
    let enrollment = office.bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let ended = as_user(&office, &log_in(&office, "bob").await);
    assert_eq!(ended.post("/api/auth/logout", &json!({})).await.status, 204);
    proxy.refuse();
    let body = json!({"username": "bob", "password": PASSWORD});
    let bob = as_user(&office, &login);
    for answer in [
        office.anybody.post("/api/auth/login", &body).await,
        refresh(&office.anybody, &login["refresh_token"]).await,
        bob.get("/api/auth/sessions").await,
        bob.delete("/api/auth/sessions").await,
        bob.post("/api/auth/logout", &json!({})).await,
    ] {
        assert_refused(&answer, 503, "REDIS_ERROR");
        assert!(answer.headers.contains_key("retry-after"));
    }
    office.send("written all the same").await;
    assert_refused(&ended.get("/api/messages").await, 401, "SESSION_ENDED");
    let path = format!("/api/enrollment/{}", enrollment["token"].as_str().unwrap());
    office.anybody.get(&path).await.expect(200);
    proxy.resume();
    eventually("the refresh token is taken again", || async {
        let answer = refresh(&office.anybody, &login["refresh_token"]).await;
        (answer.status == 200).then_some(())
    })
    .await;
    office.world.config.redis.url = direct;
    office.close().await;
}

#[tokio::test]
async fn open_registration_logs_the_new_user_in() {
    let office = Office::open().await;
    let register = async |body: Value| office.anybody.post("/api/auth/register", &body).await;
    let ann = json!({"username": "Ann", "email": "ann@example.com", "password": PASSWORD});
    assert_refused(&register(ann.clone()).await, 403, "FORBIDDEN");
    office
        .sql("UPDATE posduif.tenants SET registration_open = true WHERE name = 'acme'")
        .await;
    let answer = register(ann.clone()).await.expect(201);
    assert_eq!(
        answer.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["expires_in", "refresh_token", "token", "user"]
    );
    assert_eq!(
        (&answer["user"]["username"], &answer["user"]["user_type"]),
        (&json!("Ann"), &json!("web"))
    );
    as_user(&office, &answer).get("/api/messages").await.expect(200);
    refresh(&office.anybody, &answer["refresh_token"]).await.expect(200);
    log_in(&office, "ann@example.com").await;

    assert_refused(&register(ann).await, 409, "CONFLICT");
    let same_name = json!({"username": "ANN", "password": PASSWORD});
    assert_refused(&register(same_name).await, 409, "CONFLICT");
    let same_email = json!({"username": "ann2", "email": "Ann@Example.com", "password": PASSWORD});
    assert_refused(&register(same_email).await, 409, "CONFLICT");
    // The email alone is a name, too.
    let ben = register(json!({"email": "ben@example.com", "password": PASSWORD}))
        .await
        .expect(201);
    assert_eq!(ben["user"]["username"], "ben@example.com");
    for bad in [
        json!({"username": "carl", "password": "short"}),
        json!({"username": "carl"}),
        json!({"password": PASSWORD}),
        json!({"username": " carl", "password": PASSWORD}),
        json!({"username": "carl", "email": "no address", "password": PASSWORD}),
    ] {
        assert_refused(&register(bad).await, 400, "VALIDATION_ERROR");
    }
    for elsewhere in ["nowhere", "No Name!"] {
        let body = json!({"tenant": elsewhere, "username": "carl", "password": PASSWORD});
        assert_refused(&register(body).await, 403, "FORBIDDEN");
    }
    office.close().await;
}

#[tokio::test]
async fn registration_can_be_opened_for_all_tenants() {
    let office = Office::with(|config| config.auth.registration_open = true).await;
    let body = json!({"tenant": "acme", "username": "ann", "password": PASSWORD});
    let ann = office.anybody.post("/api/auth/register", &body).await.expect(201);
    let id = id(&ann["user"]);
    // Who registers becomes a row like any other, and has a stream.
    let api = as_user(&office, &ann);
    api.events(&format!("/sse/web/{id}")).await;
    office.close().await;
}

#[tokio::test]
async fn tokens_of_a_previous_secret_are_valid_while_it_is_configured() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    let mut config = office.world.config.clone();
    let former = std::mem::replace(
        &mut config.auth.jwt_secret,
        posduif::config::Secret::new("another secret, of the day after that one"),
    );
    let login = log_in(&office, "bob").await;
    let without = office.world.engine_with(Role::Api, config.clone()).await;
    config.auth.jwt_previous_secrets = vec![former];
    let with = office.world.engine_with(Role::Api, config).await;
    let bob = as_user(&office, &login);
    assert_refused(&bob.at(&without.api()).get("/api/messages").await, 401, "UNAUTHORIZED");
    bob.at(&with.api()).get("/api/messages").await.expect(200);
    // No device resynchronizes for that.
    let path = format!("/api/sync/incoming?cursor={cursor}");
    assert_refused(&phone.at(&without.api()).get(&path).await, 400, "INVALID_CURSOR");
    assert_eq!(phone.at(&with.api()).get(&path).await.expect(200)["reset"], false);
    // Refresh tokens know nothing of it.
    let fresh = refresh(&without.api(), &login["refresh_token"]).await.expect(200);
    as_user(&office, &fresh)
        .at(&with.api())
        .get("/api/messages")
        .await
        .expect(200);
    without.stop().await;
    with.stop().await;
    office.close().await;
}
