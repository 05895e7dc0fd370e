//! Second factors of logins: codes of an authenticator app, each accepted once, and what an attacker might try.

use std::collections::HashSet;

use chrono::Utc;
use futures_util::future::join_all;
use posduif::accounts::users::UserType;
use posduif::config::{Config, Secret};
use posduif::engine::Role;
use serde_json::{Value, json};
use totp_rs::Builder;
use uuid::Uuid;

use crate::api::assert_refused;
use crate::audit::entries;
use crate::support::command::posduif_says;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::receiver::{self, Receiver};
use crate::support::{PASSWORD, eventually};

const FACTOR: &str = "/api/auth/second-factor";
const CONFIRM: &str = "/api/auth/second-factor/confirm";
const DELETE: &str = "/api/auth/second-factor/delete";

/// The code of an authenticator app, so many steps ahead of now.
fn code(secret: &str, ahead: u64) -> String {
    let secret = totp_rs::Secret::try_from_base32(secret).unwrap();
    let app = Builder::new().with_secret(secret).build().unwrap();
    let now = u64::try_from(Utc::now().timestamp()).unwrap();
    app.generate(now + 30 * ahead).to_string()
}

/// Codes that are wrong, and remain so for a while.
fn wrong_codes(secret: &str, count: usize) -> Vec<String> {
    let right: HashSet<String> = (0..30).map(|ahead| code(secret, ahead)).collect();
    let before = totp_before(secret);
    (0..)
        .map(|number| format!("{number:06}"))
        .filter(|code| !right.contains(code) && !before.contains(code))
        .take(count)
        .collect()
}

fn totp_before(secret: &str) -> HashSet<String> {
    let secret = totp_rs::Secret::try_from_base32(secret).unwrap();
    let app = Builder::new().with_secret(secret).build().unwrap();
    let now = u64::try_from(Utc::now().timestamp()).unwrap();
    (0..3).map(|back| app.generate(now - 30 * back).to_string()).collect()
}

async fn log_in(api: &Api, username: &str, code: Option<&str>) -> Answer {
    let mut body = json!({"tenant": "acme", "username": username, "password": PASSWORD});
    if let Some(code) = code {
        body["code"] = json!(code);
    }
    api.post("/api/auth/login", &body).await
}

fn bearing(api: &Api, login: &Value) -> Api {
    api.with("authorization", &format!("Bearer {}", login["token"].as_str().unwrap()))
}

/// A user with a second factor.
struct Guarded {
    id: Uuid,
    secret: String,
    recovery: Vec<String>,
    /// The session that has added it.
    session: Api,
}

/// Adds a second factor to a user. Its next code is that of the next time step.
async fn guard(office: &Office, username: &str, id: Uuid) -> Guarded {
    let session = office.anybody.log_in("acme", username).await;
    let begun = session.post(FACTOR, &json!({"current": PASSWORD})).await.expect(201);
    let secret = begun["secret"].as_str().unwrap().to_owned();
    let confirmed = session
        .post(CONFIRM, &json!({"code": code(&secret, 0)}))
        .await
        .expect(200);
    let codes = confirmed["recovery_codes"].as_array().unwrap();
    Guarded {
        id,
        recovery: codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect(),
        secret,
        session,
    }
}

/// An office with ann, a member who has a second factor.
async fn office_with_ann(change: impl FnOnce(&mut Config)) -> (Office, Guarded) {
    let office = Office::with(change).await;
    let id = office.world.user("acme", "ann", UserType::Web).await;
    let ann = guard(&office, "ann", id).await;
    (office, ann)
}

/// Makes the user's codes of now and later new again, as time would.
async fn forget_used_codes(office: &Office, user: Uuid) {
    office
        .sql(&format!(
            "UPDATE posduif.second_factors SET last_step = 0 WHERE user_id = '{user}'"
        ))
        .await;
}

async fn factors(office: &Office, user: Uuid) -> i64 {
    let psql = office.world.psql().await;
    let query = "SELECT count(*) FROM posduif.second_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL";
    psql.query_one(query, &[&user]).await.unwrap().get(0)
}

/// Both engines trust addresses that a proxy names.
fn behind_a_proxy(config: &mut Config) {
    config.server.trusted_proxies = vec![String::from("127.0.0.0/8").try_into().unwrap()];
}

#[tokio::test]
async fn login_needs_a_code_once_the_factor_is_confirmed() {
    let office = Office::open().await;
    let id = office.world.user("acme", "ann", UserType::Web).await;
    let other = office.anybody.log_in("acme", "ann").await;
    let ann = office.anybody.log_in("acme", "ann").await;
    let wrong = ann.post(FACTOR, &json!({"current": "not the password"})).await;
    assert_refused(&wrong, 403, "FORBIDDEN");
    assert_refused(&ann.post(CONFIRM, &json!({"code": "123456"})).await, 409, "CONFLICT");
    let begun = ann.post(FACTOR, &json!({"current": PASSWORD})).await.expect(201);
    let secret = begun["secret"].as_str().unwrap();
    let uri = begun["otpauth_uri"].as_str().unwrap();
    assert!(uri.starts_with("otpauth://totp/posduif:ann?"), "{uri}");
    assert!(uri.contains(&format!("secret={secret}&issuer=posduif&")), "{uri}");

    // A secret that no code has confirmed changes nothing.
    log_in(&office.anybody, "ann", None).await.expect(200);
    let wrong = &wrong_codes(secret, 1)[0];
    assert_refused(&ann.post(CONFIRM, &json!({"code": wrong})).await, 403, "CODE_INVALID");
    assert_eq!(factors(&office, id).await, 0);
    let first = code(secret, 0);
    let confirmed = ann.post(CONFIRM, &json!({"code": first})).await.expect(200);
    assert_eq!(confirmed["recovery_codes"].as_array().unwrap().len(), 10);
    ann.get("/api/messages").await.expect(200);
    assert_refused(&other.get("/api/auth/sessions").await, 401, "SESSION_ENDED");

    assert_refused(&log_in(&office.anybody, "ann", None).await, 403, "CODE_REQUIRED");
    assert_refused(&log_in(&office.anybody, "ann", Some("")).await, 403, "CODE_REQUIRED");
    // The first code was used up by the confirmation.
    for used in [&first, wrong] {
        assert_refused(&log_in(&office.anybody, "ann", Some(used)).await, 403, "CODE_INVALID");
    }
    let next = code(secret, 1);
    let body = json!({"tenant": "acme", "username": "ann", "password": "wrong", "code": next});
    assert_refused(
        &office.anybody.post("/api/auth/login", &body).await,
        401,
        "UNAUTHORIZED",
    );
    let spaced = format!("{} {}", &next[..3], &next[3..]);
    log_in(&office.anybody, "ann", Some(&spaced)).await.expect(200);
    assert_refused(&log_in(&office.anybody, "ann", Some(&next)).await, 403, "CODE_INVALID");

    let again = ann
        .post(
            FACTOR,
            &json!({"current": PASSWORD, "code": confirmed["recovery_codes"][0]}),
        )
        .await;
    assert_refused(&again, 409, "CONFLICT");
    let psql = office.world.psql().await;
    let row = psql
        .query_one("SELECT secret FROM posduif.second_factors", &[])
        .await
        .unwrap();
    let plain = totp_rs::Secret::try_from_base32(secret).unwrap();
    let stored: Vec<u8> = row.get(0);
    assert!(
        !stored.windows(20).any(|part| part == plain.as_bytes()),
        "stored as it is"
    );
    assert_eq!(entries(&office, "second_factor_added").await.len(), 1);
    let failed = entries(&office, "login_failed").await;
    assert!(failed.iter().any(|entry| entry.detail["reason"] == "wrong_code"));
    office.close().await;
}

#[tokio::test]
async fn code_is_accepted_once_by_two_engines_in_parallel() {
    let (office, ann) = office_with_ann(|_| {}).await;
    let second = office.world.engine(Role::Api).await;
    let there = second.api();
    for text in [code(&ann.secret, 1), ann.recovery[0].clone()] {
        let logins = (0..12).map(|number| {
            let node = if number % 2 == 0 { &office.anybody } else { &there };
            log_in(node, "ann", Some(&text))
        });
        let answers = join_all(logins).await;
        let granted = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(granted, 1, "{text}");
        for refused in answers.iter().filter(|answer| answer.status != 200) {
            assert_refused(refused, 403, "CODE_INVALID");
        }
    }
    // An earlier code than the last one is of no use either.
    let earlier = log_in(&office.anybody, "ann", Some(&code(&ann.secret, 0))).await;
    assert_refused(&earlier, 403, "CODE_INVALID");
    let used = entries(&office, "recovery_code_used").await;
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].detail, json!({"remaining": 9}));
    let shouted = ann.recovery[1].to_uppercase().replace('-', "");
    log_in(&there, "ann", Some(&shouted)).await.expect(200);
    assert_refused(&log_in(&there, "ann", Some(&shouted)).await, 403, "CODE_INVALID");
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn guessing_of_codes_is_bounded_over_addresses_and_engines() {
    let (office, ann) = office_with_ann(|config| {
        behind_a_proxy(config);
        config.limits.code_user_max = 6;
        config.limits.login_user_address_max = 3;
    })
    .await;
    let second = office.world.engine(Role::Api).await;
    let home = office.anybody.with("x-forwarded-for", "198.51.100.7");
    log_in(&home, "ann", Some(&code(&ann.secret, 1))).await.expect(200);
    let wrong = wrong_codes(&ann.secret, 40);
    let guesses = wrong.iter().enumerate().map(|(number, guess)| {
        let node = if number % 2 == 0 {
            office.anybody.clone()
        } else {
            second.api()
        };
        let thief = node.with("x-forwarded-for", &format!("203.0.113.{}", number % 20 + 1));
        async move { log_in(&thief, "ann", Some(guess)).await }
    });
    let answers = join_all(guesses).await;
    let tried = answers.iter().filter(|answer| answer.code() == "CODE_INVALID").count();
    assert_eq!(tried, 6, "as many as the limit allows");
    assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 403 | 429)));
    // The right code does not help at another address, and its user is not locked out at home.
    forget_used_codes(&office, ann.id).await;
    let right = code(&ann.secret, 0);
    let elsewhere = office.anybody.with("x-forwarded-for", "192.0.2.1");
    assert_refused(&log_in(&elsewhere, "ann", Some(&right)).await, 429, "RATE_LIMITED");
    log_in(&home, "ann", Some(&right)).await.expect(200);
    // At home as well, so many in a row are the last.
    for guess in &wrong[..3] {
        assert_refused(&log_in(&home, "ann", Some(guess)).await, 403, "CODE_INVALID");
    }
    assert_refused(&log_in(&home, "ann", Some(&wrong[4])).await, 429, "RATE_LIMITED");
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn password_alone_does_not_make_an_address_known() {
    let (office, ann) = office_with_ann(|config| {
        behind_a_proxy(config);
        config.limits.code_user_max = 2;
        config.limits.login_user_max = 2;
    })
    .await;
    let thief = office.anybody.with("x-forwarded-for", "203.0.113.1");
    assert_refused(&log_in(&thief, "ann", None).await, 403, "CODE_REQUIRED");
    for guess in wrong_codes(&ann.secret, 2) {
        assert_refused(&log_in(&thief, "ann", Some(&guess)).await, 403, "CODE_INVALID");
    }
    let last = log_in(&thief, "ann", Some(&wrong_codes(&ann.secret, 1)[0])).await;
    assert_refused(&last, 429, "RATE_LIMITED");
    // Wrong passwords from elsewhere close the thief's address, too: the mark of a login is not there.
    for number in 0..2 {
        let address = format!("198.51.100.{number}");
        let body = json!({"tenant": "acme", "username": "ann", "password": "wrong"});
        let elsewhere = office.anybody.with("x-forwarded-for", &address);
        assert_refused(&elsewhere.post("/api/auth/login", &body).await, 401, "UNAUTHORIZED");
    }
    assert_refused(&log_in(&thief, "ann", None).await, 429, "RATE_LIMITED");
    office.close().await;
}

#[tokio::test]
async fn login_in_progress_ends_when_a_factor_is_added() {
    let office = Office::open().await;
    office.world.user("acme", "ann", UserType::Web).await;
    let session = office.anybody.log_in("acme", "ann").await;
    let begun = session.post(FACTOR, &json!({"current": PASSWORD})).await.expect(201);
    let secret = begun["secret"].as_str().unwrap();
    // The login of a device locks its user after the password was checked, and waits there.
    let mut blocker = office.world.psql().await;
    let transaction = blocker.transaction().await.unwrap();
    let lock = "SELECT FROM tenant_acme.users WHERE username = 'ann' FOR UPDATE";
    transaction.query(lock, &[]).await.unwrap();
    let api = office.anybody.clone();
    let login = tokio::spawn(async move {
        let body = json!({"tenant": "acme", "username": "ann", "password": PASSWORD,
                          "device": {"id": "laptop", "type": "desktop"}});
        api.post("/api/auth/login", &body).await
    });
    let watcher = office.world.psql().await;
    eventually("the login waits for its device", || async {
        let query = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = watcher.query_one(query, &[]).await.unwrap().get(0);
        (waiting > 0).then_some(())
    })
    .await;
    session
        .post(CONFIRM, &json!({"code": code(secret, 0)}))
        .await
        .expect(200);
    transaction.rollback().await.unwrap();
    assert_refused(&login.await.unwrap(), 401, "UNAUTHORIZED");
    office.close().await;
}

#[tokio::test]
async fn stolen_session_needs_password_and_code_for_grave_acts() {
    let (office, ann) = office_with_ann(|_| {}).await;
    let new = "another long password";
    let acts = [
        (DELETE, json!({})),
        ("/api/auth/password", json!({"new": new})),
        ("/api/account/delete", json!({})),
        (FACTOR, json!({})),
    ];
    for (path, body) in &acts {
        let with = |current: &str, code: Option<&str>| {
            let mut body = body.clone();
            body["current"] = json!(current);
            if let Some(code) = code {
                body["code"] = json!(code);
            }
            body
        };
        let bare = ann.session.post(path, body).await;
        assert_refused(&bare, 400, "VALIDATION_ERROR");
        assert_refused(&ann.session.post(path, &with("wrong", None)).await, 403, "FORBIDDEN");
        assert_refused(
            &ann.session.post(path, &with(PASSWORD, None)).await,
            403,
            "CODE_REQUIRED",
        );
        let wrong = &wrong_codes(&ann.secret, 1)[0];
        let refused = ann.session.post(path, &with(PASSWORD, Some(wrong))).await;
        assert_refused(&refused, 403, "CODE_INVALID");
        // A right code is of no use without the password, and is not used up by that.
        let refused = ann
            .session
            .post(path, &with("wrong", Some(&code(&ann.secret, 1))))
            .await;
        assert_refused(&refused, 403, "FORBIDDEN");
    }
    assert_eq!(factors(&office, ann.id).await, 1);
    // The code that the thief saw at the confirmation was used up.
    let used = json!({"current": PASSWORD, "code": code(&ann.secret, 0)});
    assert_refused(&ann.session.post(DELETE, &used).await, 403, "CODE_INVALID");

    let other = log_in(&office.anybody, "ann", Some(&ann.recovery[0])).await.expect(200);
    let other = bearing(&office.anybody, &other);
    let body = json!({"current": PASSWORD, "code": code(&ann.secret, 1)});
    ann.session.post(DELETE, &body).await.expect(204);
    assert_eq!(factors(&office, ann.id).await, 0);
    assert_refused(&other.get("/api/auth/sessions").await, 401, "SESSION_ENDED");
    assert_refused(&ann.session.post(DELETE, &body).await, 404, "NOT_FOUND");
    log_in(&office.anybody, "ann", None).await.expect(200);
    assert_eq!(entries(&office, "second_factor_removed").await.len(), 1);

    // A new password needs both, and keeps the factor; an erasure takes it away.
    let eve = office.world.user("acme", "eve", UserType::Web).await;
    let eve = guard(&office, "eve", eve).await;
    let change = json!({"current": PASSWORD, "new": new, "code": code(&eve.secret, 1)});
    eve.session.post("/api/auth/password", &change).await.expect(204);
    assert_eq!(factors(&office, eve.id).await, 1);
    let erase = json!({"current": new, "code": eve.recovery[3]});
    eve.session.post("/api/account/delete", &erase).await.expect(204);
    assert_eq!(factors(&office, eve.id).await, 0);
    office.close().await;
}

#[tokio::test]
async fn enrollment_for_another_user_needs_a_login_a_moment_ago() {
    let office = Office::open().await;
    let create = |body: Value| {
        let bob = office.bob.clone();
        async move { bob.post("/api/enrollment/create", &body).await }
    };
    create(json!({"user_id": office.joe_id})).await.expect(201);
    let sessions = office.bob.get("/api/auth/sessions").await.expect(200);
    let session = Uuid::try_parse(sessions["sessions"][0]["id"].as_str().unwrap()).unwrap();
    let key = office.world.keys().session(session);
    let old = (Utc::now().timestamp_millis() - 301_000).to_string();
    office.world.ask_redis::<i64>(&["HSET", &key, "created_at", &old]).await;
    assert_refused(&create(json!({"user_id": office.joe_id})).await, 403, "FORBIDDEN");
    let wrong = json!({"user_id": office.joe_id, "current": "wrong"});
    assert_refused(&create(wrong).await, 403, "FORBIDDEN");
    let proven = json!({"user_id": office.joe_id, "current": PASSWORD});
    create(proven.clone()).await.expect(201);
    // An own device, or one for a new user, is no other user's.
    create(json!({"user_id": office.bob_id})).await.expect(201);
    create(json!({})).await.expect(201);
    // A device has no login: its user shows the password.
    let (laptop, _) = office.bob.enroll("bobs-laptop", Some(&office.bob_id.to_string())).await;
    let by_device = |body: Value| {
        let laptop = laptop.clone();
        async move { laptop.post("/api/enrollment/create", &body).await }
    };
    let bare = by_device(json!({"user_id": office.joe_id})).await;
    assert_refused(&bare, 400, "VALIDATION_ERROR");
    by_device(proven).await.expect(201);
    office.close().await;
}

#[tokio::test]
async fn reset_of_the_password_keeps_the_factor() {
    let receiver = Receiver::start(&[]).await;
    let (office, ann) = office_with_ann(|config| {
        config.mail.webhook_url = format!("http://{}/hook", receiver.address);
        config.mail.webhook_secret = Secret::new(receiver::SECRET);
    })
    .await;
    crate::password_reset::set_address(&office, "ann", "ann@example.com").await;
    let body = json!({"tenant": "acme", "email": "ann@example.com"});
    office.anybody.post("/api/auth/reset", &body).await.expect(202);
    let token = receiver.received(1).await[0].json()["data"]["token"].clone();
    let body = json!({"token": token, "password": "another long password"});
    office.anybody.post("/api/auth/reset/complete", &body).await.expect(204);
    assert_eq!(factors(&office, ann.id).await, 1);
    let login = |code: Option<String>| {
        let mut body = json!({"tenant": "acme", "username": "ann", "password": "another long password"});
        if let Some(code) = code {
            body["code"] = json!(code);
        }
        let anybody = office.anybody.clone();
        async move { anybody.post("/api/auth/login", &body).await }
    };
    assert_refused(&login(None).await, 403, "CODE_REQUIRED");
    login(Some(code(&ann.secret, 1))).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn change_of_the_factor_is_mailed_to_a_verified_address() {
    let receiver = Receiver::start(&[]).await;
    let office = Office::with(|config| {
        config.mail.webhook_url = format!("http://{}/hook", receiver.address);
        config.mail.webhook_secret = Secret::new(receiver::SECRET);
    })
    .await;
    let eve_id = office.world.user("acme", "eve", UserType::Web).await;
    crate::password_reset::set_address(&office, "eve", "eve@example.com").await;
    let unverified =
        format!("UPDATE posduif.credentials SET unverified_email = 'eve@example.com' WHERE user_id = '{eve_id}'");
    office.sql(&unverified).await;
    guard(&office, "eve", eve_id).await;
    let ann_id = office.world.user("acme", "ann", UserType::Web).await;
    crate::password_reset::set_address(&office, "ann", "ann@example.com").await;
    let ann = guard(&office, "ann", ann_id).await;
    let mails = receiver.received(1).await;
    let path = format!("/api/users/{}/second-factor/delete", ann.id);
    office.bob.post(&path, &json!({"current": PASSWORD})).await.expect(204);
    let mails = [mails, receiver.received(2).await.split_off(1)].concat();
    let shown: Vec<(String, String)> = mails
        .iter()
        .map(|mail| {
            let mail = mail.json();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&mail["type"]), text(&mail["data"]["email"]))
        })
        .collect();
    let expected = ["account.second_factor_added", "account.second_factor_removed"]
        .map(|kind| (kind.to_owned(), "ann@example.com".to_owned()));
    assert_eq!(shown, expected);
    office.close().await;
}

#[tokio::test]
async fn renewed_recovery_codes_replace_the_former_ones() {
    let (office, ann) = office_with_ann(|_| {}).await;
    let path = "/api/auth/second-factor/recovery-codes";
    let proof = |code: Option<&str>| json!({"current": PASSWORD, "code": code});
    assert_refused(&ann.session.post(path, &proof(None)).await, 403, "CODE_REQUIRED");
    assert_refused(
        &ann.session.post(path, &json!({"current": "wrong"})).await,
        403,
        "FORBIDDEN",
    );
    assert_refused(
        &office.bob.post(path, &json!({"current": PASSWORD})).await,
        404,
        "NOT_FOUND",
    );
    let body = proof(Some(&code(&ann.secret, 1)));
    let renewed = ann.session.post(path, &body).await.expect(200);
    let codes: Vec<&str> = renewed["recovery_codes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap())
        .collect();
    assert_eq!(codes.len(), ann.recovery.len());
    let former = log_in(&office.anybody, "ann", Some(&ann.recovery[0])).await;
    assert_refused(&former, 403, "CODE_INVALID");
    log_in(&office.anybody, "ann", Some(codes[0])).await.expect(200);
    // The session goes on.
    ann.session.get("/api/auth/sessions").await.expect(200);
    assert_eq!(entries(&office, "recovery_codes_renewed").await.len(), 1);
    office.close().await;
}

#[tokio::test]
async fn admin_removes_the_factor_of_a_member_only() {
    let (office, ann) = office_with_ann(|_| {}).await;
    let path = |id: Uuid| format!("/api/users/{id}/second-factor/delete");
    let proof = json!({"current": PASSWORD});
    let eve_id = office.world.user("acme", "eve", UserType::Web).await;
    let eve = office.anybody.log_in("acme", "eve").await;
    assert_refused(&eve.post(&path(ann.id), &proof).await, 403, "FORBIDDEN");
    assert_refused(
        &office.bob.post(&path(ann.id), &json!({"current": "wrong"})).await,
        403,
        "FORBIDDEN",
    );
    assert_refused(&office.bob.post(&path(eve_id), &proof).await, 404, "NOT_FOUND");
    assert_refused(&office.bob.post(&path(Uuid::new_v4()), &proof).await, 404, "NOT_FOUND");
    office.bob.post(&path(ann.id), &proof).await.expect(204);
    assert_refused(&ann.session.get("/api/auth/sessions").await, 401, "SESSION_ENDED");
    log_in(&office.anybody, "ann", None).await.expect(200);
    let removed = entries(&office, "second_factor_removed").await.pop().unwrap();
    assert_eq!(removed.actor, office.bob_id.to_string());
    assert_eq!(removed.subject, Some(ann.id.to_string()));

    // Not that of an admin, the own one included: the password and a code do that.
    let bob = guard(&office, "bob", office.bob_id).await;
    let proof = json!({"current": PASSWORD, "code": code(&bob.secret, 1)});
    assert_refused(&bob.session.post(&path(office.bob_id), &proof).await, 403, "FORBIDDEN");
    office
        .sql("UPDATE tenant_acme.users SET role = 'admin' WHERE username = 'eve'")
        .await;
    assert_refused(
        &eve.post(&path(office.bob_id), &json!({"current": PASSWORD})).await,
        403,
        "FORBIDDEN",
    );
    let said = posduif_says(&office.world, "user remove-second-factor bob --tenant acme")
        .await
        .text();
    assert!(said.contains("removed the second factor of bob"), "{said}");
    assert_refused(&bob.session.get("/api/auth/sessions").await, 401, "SESSION_ENDED");
    log_in(&office.anybody, "bob", None).await.expect(200);
    let said = posduif_says(&office.world, "user remove-second-factor bob --tenant acme")
        .await
        .text();
    assert!(said.contains("bob has no second factor"), "{said}");
    office.close().await;
}

#[tokio::test]
async fn new_token_secret_keeps_factors_and_encrypts_them_again() {
    let (office, ann) = office_with_ann(|_| {}).await;
    let former = office.world.config.auth.jwt_secret.clone();
    let mut config = office.world.config.clone();
    config.auth.jwt_secret = Secret::new("0f1e2d3c4b5a69788796a5b4c3d2e1f00123456789abcdef");
    let without = config.clone();
    config.auth.jwt_previous_secrets = vec![former];
    let stored = async || {
        let psql = office.world.psql().await;
        let row = psql
            .query_one("SELECT secret FROM posduif.second_factors", &[])
            .await
            .unwrap();
        row.get::<_, Vec<u8>>(0)
    };
    let before = stored().await;
    let second = office.world.engine_with(Role::Api, config).await;
    eventually("the secret is encrypted again", || async {
        (stored().await != before).then_some(())
    })
    .await;
    log_in(&second.api(), "ann", Some(&code(&ann.secret, 1)))
        .await
        .expect(200);
    second.stop().await;
    let third = office.world.engine_with(Role::Api, without).await;
    forget_used_codes(&office, ann.id).await;
    log_in(&third.api(), "ann", Some(&code(&ann.secret, 0)))
        .await
        .expect(200);
    // Where the key is missing, a recovery code still is one, and a code is an error of the server.
    let lost = log_in(&office.anybody, "ann", Some(&code(&ann.secret, 1))).await;
    assert_refused(&lost, 500, "INTERNAL_ERROR");
    log_in(&office.anybody, "ann", Some(&ann.recovery[0])).await.expect(200);
    third.stop().await;
    office.close().await;
}
