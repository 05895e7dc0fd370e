//! Rate limits: guessing is limited soon, and no user is locked out by another client.

use hyper::StatusCode;
use posduif::accounts::users::UserType;
use posduif::config::Config;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::PASSWORD;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;

/// An office that believes its clients where they come from.
async fn open(change: impl FnOnce(&mut Config)) -> Office {
    Office::with(|config| {
        config.server.trusted_proxies = vec![String::from("127.0.0.0/8").try_into().unwrap()];
        change(config);
    })
    .await
}

/// A client at an address.
fn at(office: &Office, address: &str) -> Api {
    office.anybody.with("x-forwarded-for", address)
}

async fn log_in(api: &Api, username: &str, password: &str) -> Answer {
    let body = json!({"tenant": "acme", "username": username, "password": password});
    api.post("/api/auth/login", &body).await
}

async fn guess(api: &Api, username: &str) -> StatusCode {
    log_in(api, username, "a guess").await.status
}

/// Refused until a time that the answer tells, within the window.
#[track_caller]
fn assert_limited(answer: &Answer, window_seconds: u64) {
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "RATE_LIMITED"));
    assert_eq!(answer.json()["error"]["retryable"], true);
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=window_seconds).contains(&wait), "{wait}");
}

#[tokio::test]
async fn wrong_passwords_are_limited_per_user_and_address() {
    let office = open(|config| {
        config.limits.login_user_address_max = 3;
        config.limits.window_seconds = 600;
    })
    .await;
    office.world.user("acme", "jane", UserType::Web).await;
    let thief = at(&office, "10.0.0.1");
    for _ in 0..3 {
        assert_eq!(guess(&thief, "bob").await, 401);
    }
    assert_limited(&log_in(&thief, "bob", "a guess").await, 600);
    // Not even the right one, however it is written.
    assert_limited(&log_in(&thief, "BOB", PASSWORD).await, 600);
    // Others at this address, and this user elsewhere, do not notice.
    log_in(&thief, "jane", PASSWORD).await.expect(200);
    log_in(&at(&office, "10.0.0.2"), "bob", PASSWORD).await.expect(200);
    // Who does not exist is treated the same.
    for _ in 0..3 {
        assert_eq!(guess(&thief, "nobody").await, 401);
    }
    assert_limited(&log_in(&thief, "nobody", "a guess").await, 600);
    // Another tenant's user of the same name is another user.
    let body = json!({"tenant": "elsewhere", "username": "bob", "password": "a guess"});
    assert_eq!(thief.post("/api/auth/login", &body).await.status, 401);
    office.close().await;
}

#[tokio::test]
async fn rate_limit_window_ends_at_retry_after() {
    let office = open(|config| config.limits.login_user_address_max = 1).await;
    let api = at(&office, "10.0.0.1");
    assert_eq!(guess(&api, "bob").await, 401);
    let answer = log_in(&api, "bob", PASSWORD).await;
    assert_limited(&answer, office.world.config.limits.window_seconds);
    let answered: i64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    // The counter is gone by then, which is made to be now.
    let mut redis = office.world.redis().await;
    let pattern = format!("{}*", office.world.keys().limit("login-user-address", ""));
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
    assert_eq!(keys.len(), 1);
    let left: i64 = redis::cmd("PTTL").arg(&keys[0]).query_async(&mut redis).await.unwrap();
    assert!(
        left > 0 && left <= answered * 1000,
        "{left} ms are left, Retry-After was {answered} s"
    );
    let _: i64 = redis::cmd("PEXPIRE")
        .arg(&keys[0])
        .arg(0)
        .query_async(&mut redis)
        .await
        .unwrap();
    log_in(&api, "bob", PASSWORD).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn successful_logins_are_not_limited() {
    let office = open(|config| {
        config.limits.login_user_address_max = 1;
        config.limits.login_user_max = 1;
        config.limits.login_address_max = 1;
    })
    .await;
    for _ in 0..5 {
        log_in(&at(&office, "10.0.0.1"), "bob", PASSWORD).await.expect(200);
    }
    office.close().await;
}

#[tokio::test]
async fn guesses_from_many_addresses_are_limited_without_locking_out_the_user() {
    let office = open(|config| config.limits.login_user_max = 4).await;
    let home = at(&office, "192.168.1.1");
    log_in(&home, "bob", PASSWORD).await.expect(200);
    for host in 1..=4 {
        assert_eq!(guess(&at(&office, &format!("10.0.0.{host}")), "bob").await, 401);
    }
    let stranger = at(&office, "10.0.0.5");
    assert_limited(&log_in(&stranger, "bob", "a guess").await, 900);
    assert_limited(&log_in(&stranger, "bob", PASSWORD).await, 900);
    log_in(&home, "bob", PASSWORD).await.expect(200);
    // Others are not meant.
    log_in(&stranger, "joe", PASSWORD).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn guesses_at_many_names_are_limited_without_locking_out_known_users() {
    let office = open(|config| config.limits.login_address_max = 4).await;
    let shared = at(&office, "10.0.0.1");
    log_in(&shared, "bob", PASSWORD).await.expect(200);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(guess(&shared, name).await, 401);
    }
    assert_limited(&log_in(&shared, "e", "a guess").await, 900);
    assert_limited(&log_in(&shared, "joe", PASSWORD).await, 900);
    log_in(&shared, "bob", PASSWORD).await.expect(200);
    log_in(&at(&office, "10.0.0.2"), "joe", PASSWORD).await.expect(200);
    // A subscriber of IPv6 is one client with all its addresses.
    for host in 1..=4 {
        assert_eq!(guess(&at(&office, &format!("2001:db8:0:1::{host}")), "x").await, 401);
    }
    assert_limited(&log_in(&at(&office, "2001:db8:0:1:ffff::1"), "y", "a guess").await, 900);
    assert_eq!(guess(&at(&office, "2001:db8:0:2::1"), "y").await, 401);
    office.close().await;
}

#[tokio::test]
async fn concurrent_guesses_are_limited_like_sequential_ones() {
    let office = open(|config| {
        config.limits.login_user_address_max = 5;
        config.auth.hash_concurrency = 1;
    })
    .await;
    let clients: Vec<Api> = (0..40).map(|_| Api::new(office.anybody.address())).collect();
    let guesses = clients.iter().map(|api| guess(api, "bob"));
    let answered = futures_util::future::join_all(guesses).await;
    assert_eq!(
        answered.iter().filter(|status| **status == 401).count(),
        5,
        "{answered:?}"
    );
    assert_eq!(
        answered.iter().filter(|status| **status == 429).count(),
        35,
        "{answered:?}"
    );
    office.close().await;
}

#[tokio::test]
async fn forwarded_address_from_untrusted_proxy_is_ignored() {
    let office = Office::with(|config| config.limits.login_user_address_max = 2).await;
    for host in 1..=2 {
        assert_eq!(guess(&at(&office, &format!("10.0.0.{host}")), "bob").await, 401);
    }
    assert_limited(&log_in(&at(&office, "10.0.0.3"), "bob", PASSWORD).await, 900);
    office.close().await;
}

#[tokio::test]
async fn registrations_refreshes_and_enrollments_are_limited_per_address() {
    let office = open(|config| {
        config.auth.registration_open = true;
        config.limits.register_address_max = 2;
        config.limits.refresh_address_max = 2;
        config.limits.enrollment_address_max = 2;
    })
    .await;
    let (here, there) = (at(&office, "10.0.0.1"), at(&office, "10.0.0.2"));
    let newcomer = |name: &str| json!({"username": name, "password": PASSWORD});
    for name in ["ann", "ben"] {
        here.post("/api/auth/register", &newcomer(name)).await.expect(201);
    }
    assert_limited(&here.post("/api/auth/register", &newcomer("carl")).await, 900);
    there.post("/api/auth/register", &newcomer("carl")).await.expect(201);

    let refresh =
        async |api: &Api, token: &Value| api.post("/api/auth/refresh", &json!({"refresh_token": token})).await;
    let mut good = log_in(&here, "bob", PASSWORD).await.expect(200);
    // Those that succeed are not counted.
    for _ in 0..4 {
        good = refresh(&here, &good["refresh_token"]).await.expect(200);
    }
    for _ in 0..2 {
        assert_eq!(refresh(&here, &json!("a guess")).await.status, 401);
    }
    assert_limited(&refresh(&here, &json!("a guess")).await, 900);
    assert_eq!(refresh(&there, &json!("a guess")).await.status, 401);
    refresh(&here, &good["refresh_token"]).await.expect(200);

    let created = office.bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let path = format!("/api/enrollment/{}", created["token"].as_str().unwrap());
    let complete = |token: &Value| json!({"token": token, "device_id": "phone"});
    for _ in 0..4 {
        here.get(&path).await.expect(200);
    }
    assert_eq!(
        here.get(&format!("/api/enrollment/{}", Uuid::new_v4())).await.status,
        404
    );
    let wrong = complete(&json!(Uuid::new_v4()));
    assert_eq!(here.post("/api/enrollment/complete", &wrong).await.status, 404);
    assert_limited(&here.get(&path).await, 900);
    let right = complete(&created["token"]);
    assert_limited(&here.post("/api/enrollment/complete", &right).await, 900);
    there.post("/api/enrollment/complete", &right).await.expect(201);
    office.close().await;
}

#[tokio::test]
async fn letters_that_fold_alike_and_the_email_share_a_counter() {
    let office = open(|config| config.limits.login_user_address_max = 2).await;
    office.world.user("acme", "alice", UserType::Web).await;
    office
        .sql("UPDATE tenant_acme.users SET email = 'ali@example.com' WHERE username = 'alice'")
        .await;
    let thief = at(&office, "10.0.0.1");
    let row = office
        .world
        .psql()
        .await
        .query_one("SELECT lower('alİce')", &[])
        .await
        .unwrap();
    let folded: String = row.get(0);
    assert_eq!(guess(&thief, "alice").await, 401);
    let other = if folded == "alice" { "alİce" } else { "ALICE" };
    assert_eq!(guess(&thief, other).await, 401);
    assert_limited(&log_in(&thief, "alice", PASSWORD).await, 900);
    assert_limited(&log_in(&thief, "ali@example.com", PASSWORD).await, 900);
    assert_limited(&log_in(&thief, other, PASSWORD).await, 900);
    office.close().await;
}

#[tokio::test]
async fn junk_refresh_tokens_lock_out_nobody() {
    let office = open(|config| config.limits.refresh_address_max = 2).await;
    let here = at(&office, "10.0.0.1");
    let bob = log_in(&here, "bob", PASSWORD).await.expect(200);
    let refresh = async |token: Value| here.post("/api/auth/refresh", &json!({"refresh_token": token})).await;
    for junk in ["x".to_owned(), "A".repeat(64)] {
        for _ in 0..2 {
            assert_eq!(refresh(json!(junk)).await.status, 401);
        }
        assert_limited(&refresh(json!(junk)).await, 900);
    }
    refresh(bob["refresh_token"].clone()).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn right_logins_are_limited_per_minute() {
    let office = open(|config| config.limits.login_attempts_max = 4).await;
    let here = at(&office, "10.0.0.1");
    for _ in 0..4 {
        log_in(&here, "bob", PASSWORD).await.expect(200);
    }
    assert_limited(&log_in(&here, "bob", PASSWORD).await, 60);
    log_in(&here, "joe", PASSWORD).await.expect(200);
    log_in(&at(&office, "10.0.0.2"), "bob", PASSWORD).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn logins_waiting_at_one_address_are_bounded() {
    let office = open(|config| {
        config.limits.login_waiting_max = 3;
        config.auth.hash_concurrency = 1;
    })
    .await;
    let here = at(&office, "10.0.0.1");
    let there = at(&office, "10.0.0.2");
    let many = (0..40).map(|_| log_in(&here, "bob", PASSWORD));
    let (answers, elsewhere) = tokio::join!(futures_util::future::join_all(many), log_in(&there, "joe", PASSWORD));
    elsewhere.expect(200);
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty() && refused.len() < 40, "{}", refused.len());
    assert!(refused.iter().all(|answer| answer.headers.contains_key("retry-after")));
    // Those that ended make room.
    log_in(&here, "bob", PASSWORD).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn window_that_became_full_doubles_the_next_one() {
    let office = open(|config| {
        config.limits.login_user_address_max = 2;
        config.limits.window_seconds = 20_000;
    })
    .await;
    let thief = at(&office, "10.0.0.1");
    let pattern = format!("{}*", office.world.keys().limit("login-user-address", ""));
    for seconds in [20_000, 40_000, 80_000, 86_400, 86_400] {
        for _ in 0..2 {
            assert_eq!(guess(&thief, "bob").await, 401);
        }
        let answer = log_in(&thief, "bob", "a guess").await;
        assert_limited(&answer, seconds);
        let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait > seconds - 100, "{wait} of {seconds}");
        // The window ends now.
        let keys: Vec<String> = office.world.ask_redis(&["KEYS", &pattern]).await;
        let _: i64 = office.world.ask_redis(&["DEL", &keys[0]]).await;
    }
    office.close().await;
}

#[tokio::test]
async fn logins_are_counted_by_result() {
    let office = open(|config| config.limits.login_user_address_max = 1).await;
    let here = at(&office, "10.0.0.1");
    assert_eq!(guess(&here, "bob").await, 401);
    assert_eq!(guess(&here, "bob").await, 429);
    log_in(&here, "joe", PASSWORD).await.expect(200);
    let text = String::from_utf8(office.anybody.admin().get("/metrics").await.body.to_vec()).unwrap();
    // The office itself has logged bob in.
    for (result, count) in [("granted", 2), ("refused", 1), ("limited", 1), ("failed", 0)] {
        let line = format!("posduif_logins_total{{result=\"{result}\"}} {count}");
        assert!(text.contains(&line), "{line}");
    }
    office.close().await;
}
