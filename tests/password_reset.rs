//! Forgotten passwords: a mail by a webhook, whose token sets another one, once.

use posduif::accounts::users::UserType;
use posduif::config::{Config, Secret};
use serde_json::{Value, json};

use crate::api::assert_refused;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::receiver::{Delivery, Receiver, Reply, SECRET};
use crate::support::{PASSWORD, eventually};

const EMAIL: &str = "ann@example.com";
const NEW: &str = "another long password";

fn configure(receiver: &Receiver, config: &mut Config) {
    config.mail.webhook_url = format!("http://{}/hook", receiver.address);
    config.mail.webhook_secret = Secret::new(SECRET);
}

/// An office with ann, who has an email.
async fn office_with_ann(receiver: &Receiver) -> Office {
    let office = Office::with(|config| configure(receiver, config)).await;
    office.world.user("acme", "ann", UserType::Web).await;
    set_address(&office, "ann", EMAIL).await;
    office
}

/// Gives a user an address.
pub(crate) async fn set_address(office: &Office, username: &str, email: &str) {
    let update = format!("UPDATE tenant_acme.users SET email = '{email}' WHERE username = '{username}'");
    office.sql(&update).await;
}

async fn request(api: &Api, email: &str) -> Answer {
    api.post("/api/auth/reset", &json!({"tenant": "acme", "email": email}))
        .await
}

async fn complete(api: &Api, token: &Value, password: &str) -> Answer {
    let body = json!({"token": token, "password": password});
    api.post("/api/auth/reset/complete", &body).await
}

async fn log_in(api: &Api, password: &str) -> Answer {
    let body = json!({"tenant": "acme", "username": "ann", "password": password});
    api.post("/api/auth/login", &body).await
}

/// The tokens of the mails that were sent, when there are so many.
async fn tokens(receiver: &Receiver, count: usize) -> Vec<Value> {
    let mails = receiver.received(count).await;
    mails.iter().map(|mail| mail.json()["data"]["token"].clone()).collect()
}

#[tokio::test]
async fn token_of_a_mail_sets_the_password_once_and_ends_sessions() {
    let receiver = Receiver::start(&[Reply::Status(503)]).await;
    let office = office_with_ann(&receiver).await;
    let methods = office.anybody.get("/api/auth/methods").await.expect(200);
    assert_eq!(methods["password_resets"], true);
    let session = log_in(&office.anybody, PASSWORD).await.expect(200);
    let ann = office.anybody.with(
        "authorization",
        &format!("Bearer {}", session["token"].as_str().unwrap()),
    );

    let accepted = request(&office.anybody, "ANN@example.com").await.expect(202);
    assert_eq!(accepted, json!({"status": "accepted"}));
    // Refused at first, the mail comes again under the same id.
    let mails = receiver.received(2).await;
    let ids: Vec<&String> = mails.iter().map(|mail| &mail.headers["webhook-id"]).collect();
    assert_eq!((ids[0], &mails[0].body), (ids[1], &mails[1].body));
    let mail = mails[1].json();
    assert_eq!(mail["type"], "account.password_reset");
    assert_eq!(
        (&mail["data"]["username"], &mail["data"]["email"]),
        (&json!("ann"), &json!(EMAIL))
    );
    let token = &mail["data"]["token"];

    assert_refused(
        &complete(&office.anybody, token, "short").await,
        400,
        "VALIDATION_ERROR",
    );
    assert_refused(
        &complete(&office.anybody, &json!("AAAA"), NEW).await,
        400,
        "VALIDATION_ERROR",
    );
    complete(&office.anybody, token, NEW).await.expect(204);
    let again = complete(&office.anybody, token, "yet another password").await;
    assert_refused(&again, 400, "VALIDATION_ERROR");
    assert_refused(&log_in(&office.anybody, PASSWORD).await, 401, "UNAUTHORIZED");
    log_in(&office.anybody, NEW).await.expect(200);
    eventually("the former session is refused", || async {
        (ann.get("/api/messages").await.status == 401).then_some(())
    })
    .await;
    let entry = crate::audit::entries(&office, "password_changed").await.pop().unwrap();
    assert_eq!(Some(entry.actor), entry.subject);
    office.close().await;
}

#[tokio::test]
async fn answer_is_the_same_for_whom_there_is_no_mail() {
    let receiver = Receiver::start(&[]).await;
    let office = office_with_ann(&receiver).await;
    office
        .sql("UPDATE tenant_acme.users SET email = 'joe@example.com' WHERE username = 'joe'")
        .await;
    office
        .sql("UPDATE posduif.credentials SET password_hash = NULL WHERE user_id IN (SELECT id FROM tenant_acme.users WHERE username = 'joe')")
        .await;
    for email in ["no-one@example.com", "joe@example.com", "ann"] {
        assert_eq!(
            request(&office.anybody, email).await.expect(202),
            json!({"status": "accepted"})
        );
    }
    let elsewhere = json!({"tenant": "nothing", "email": EMAIL});
    office.anybody.post("/api/auth/reset", &elsewhere).await.expect(202);
    // Requests are served in order, so that all mails of those before have been sent.
    request(&office.anybody, EMAIL).await.expect(202);
    let mails = receiver.received(1).await;
    assert_eq!(mails.len(), 1);
    assert_eq!(mails[0].json()["data"]["email"], EMAIL);
    office.close().await;
}

#[tokio::test]
async fn token_is_worthless_after_any_other_change() {
    let receiver = Receiver::start(&[]).await;
    let office = office_with_ann(&receiver).await;
    let session = log_in(&office.anybody, PASSWORD).await.expect(200);
    let ann = office.anybody.with(
        "authorization",
        &format!("Bearer {}", session["token"].as_str().unwrap()),
    );
    request(&office.anybody, EMAIL).await.expect(202);
    request(&office.anybody, EMAIL).await.expect(202);
    let tokens = tokens(&receiver, 2).await;
    complete(&office.anybody, &tokens[1], NEW).await.expect(204);
    let first = complete(&office.anybody, &tokens[0], "yet another password").await;
    assert_refused(&first, 400, "VALIDATION_ERROR");
    assert_eq!(ann.get("/api/messages").await.status, 401);
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'ann'")
        .await;
    assert_refused(
        &complete(&office.anybody, &tokens[1], NEW).await,
        400,
        "VALIDATION_ERROR",
    );
    office.close().await;
}

#[tokio::test]
async fn requests_of_an_address_and_mails_to_a_user_are_bounded() {
    let receiver = Receiver::start(&[]).await;
    let office = Office::with(|config| {
        configure(&receiver, config);
        config.mail.user_max = 2;
        config.limits.reset_address_max = 5;
    })
    .await;
    for name in ["ann", "eve"] {
        office.world.user("acme", name, UserType::Web).await;
        let email = format!("UPDATE tenant_acme.users SET email = '{name}@example.com' WHERE username = '{name}'");
        office.sql(&email).await;
    }
    for email in [EMAIL, EMAIL, EMAIL, EMAIL, "eve@example.com"] {
        request(&office.anybody, email).await.expect(202);
    }
    assert_refused(&request(&office.anybody, EMAIL).await, 429, "RATE_LIMITED");
    let mails = receiver.received(3).await;
    let mut receivers: Vec<Value> = mails
        .iter()
        .map(|mail| mail.json()["data"]["username"].clone())
        .collect();
    receivers.sort_by_key(Value::to_string);
    assert_eq!(receivers, ["ann", "ann", "eve"]);
    office.close().await;
}

/// Adds a web user with an address.
async fn add_user(office: &Office, tenant: &str, name: &str) {
    office.world.user(tenant, name, UserType::Web).await;
    let email = format!("UPDATE tenant_{tenant}.users SET email = '{name}@example.com' WHERE username = '{name}'");
    office.sql(&email).await;
}

async fn request_in(api: &Api, tenant: &str, name: &str) {
    let body = json!({"tenant": tenant, "email": format!("{name}@example.com")});
    api.post("/api/auth/reset", &body).await.expect(202);
}

/// Who the mails are to that the webhook received, when there are so many.
async fn recipients(receiver: &Receiver, count: usize) -> Vec<String> {
    let mails = receiver.received(count).await;
    let name = |mail: &Delivery| mail.json()["data"]["username"].as_str().unwrap().to_owned();
    mails.iter().map(name).collect()
}

#[tokio::test]
async fn mails_that_the_webhook_postpones_do_not_delay_others() {
    let receiver = Receiver::start(&[Reply::Later(600); 4]).await;
    let office = Office::with(|config| configure(&receiver, config)).await;
    office.world.tenant("globex").await;
    let refused = ["a", "b", "c", "d"];
    for name in refused {
        add_user(&office, "acme", name).await;
        request_in(&office.anybody, "acme", name).await;
    }
    receiver.received(4).await;
    add_user(&office, "globex", "eve").await;
    request_in(&office.anybody, "globex", "eve").await;
    assert_eq!(recipients(&receiver, 5).await[4], "eve");
    office.close().await;
}

#[tokio::test]
async fn mail_that_the_webhook_refuses_for_good_is_not_repeated() {
    let receiver = Receiver::start(&[Reply::Status(422), Reply::Status(503), Reply::Status(408)]).await;
    let office = office_with_ann(&receiver).await;
    add_user(&office, "acme", "eve").await;
    request(&office.anybody, EMAIL).await.expect(202);
    receiver.received(1).await;
    request_in(&office.anybody, "acme", "eve").await;
    // The second delay is longer than the first: a repeat to ann would come before.
    assert_eq!(recipients(&receiver, 4).await, ["ann", "eve", "eve", "eve"]);
    office.close().await;
}

#[tokio::test]
async fn server_without_a_webhook_for_mails_says_so() {
    let office = Office::open().await;
    assert_refused(&request(&office.anybody, EMAIL).await, 403, "FORBIDDEN");
    let token = json!("AAAA");
    assert_refused(&complete(&office.anybody, &token, NEW).await, 403, "FORBIDDEN");
    office.close().await;
}
