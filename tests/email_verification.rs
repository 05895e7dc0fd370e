//! Addresses of accounts: a mail verifies each, and no response shows whether another user has one.

use posduif::accounts::users::UserType;
use posduif::config::{Config, Secret};
use posduif::engine::Role;
use serde_json::{Value, json};

use crate::api::assert_refused;
use crate::password_reset::set_address;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;
use crate::support::receiver::{self, Delivery, Receiver, Reply};
use crate::support::scrape::Scrape;
use crate::support::{PASSWORD, eventually};

const ADDRESS: &str = "/api/account/email";
const VERIFY: &str = "/api/account/email/verify";

fn configure(receiver: &Receiver, config: &mut Config) {
    config.mail.webhook_url = format!("http://{}/hook", receiver.address);
    config.mail.webhook_secret = Secret::new(receiver::SECRET);
    config.auth.registration_open = true;
    config.limits.reset_address_max = 1_000_000;
}

async fn register(api: &Api, username: &str, email: &str) -> Answer {
    let body = json!({"tenant": "acme", "username": username, "email": email, "password": PASSWORD});
    api.post("/api/auth/register", &body).await
}

async fn log_in(api: &Api, name: &str) -> Answer {
    let body = json!({"tenant": "acme", "username": name, "password": PASSWORD});
    api.post("/api/auth/login", &body).await
}

async fn verify(api: &Api, token: &Value) -> Answer {
    api.post(VERIFY, &json!({"token": token})).await
}

async fn request_reset(api: &Api, email: &str) {
    let body = json!({"tenant": "acme", "email": email});
    api.post("/api/auth/reset", &body).await.expect(202);
}

fn bearing(api: &Api, login: &Value) -> Api {
    api.with("authorization", &format!("Bearer {}", login["token"].as_str().unwrap()))
}

fn token(mail: &Delivery) -> Value {
    mail.json()["data"]["token"].clone()
}

#[tokio::test]
async fn registration_attaches_the_address_by_its_mail_only() {
    let receiver = Receiver::start(&[]).await;
    let office = Office::with(|config| configure(&receiver, config)).await;
    let methods = office.anybody.get("/api/auth/methods").await.expect(200);
    assert_eq!(methods["email_verification"], true);
    let ann = register(&office.anybody, "ann", "Ann@example.com").await.expect(201);
    let ann = bearing(&office.anybody, &ann);
    let account = ann.get("/api/account").await.expect(200);
    assert_eq!(
        (&account["username"], &account["email"], &account["email_verified"]),
        (&json!("ann"), &Value::Null, &json!(false))
    );
    assert_refused(&log_in(&office.anybody, "ann@example.com").await, 401, "UNAUTHORIZED");

    let mail = receiver.received(1).await.remove(0);
    assert_eq!(mail.json()["type"], "account.email_verification");
    assert_eq!(mail.json()["data"]["email"], "Ann@example.com");
    // It is no token for another password.
    let reset = json!({"token": token(&mail), "password": "another long password"});
    let refused = office.anybody.post("/api/auth/reset/complete", &reset).await;
    assert_refused(&refused, 400, "VALIDATION_ERROR");
    verify(&office.anybody, &token(&mail)).await.expect(204);
    let account = ann.get("/api/account").await.expect(200);
    assert_eq!(
        (&account["email"], &account["email_verified"]),
        (&json!("Ann@example.com"), &json!(true))
    );
    log_in(&office.anybody, "ann@example.com").await.expect(200);
    assert_refused(&verify(&office.anybody, &token(&mail)).await, 400, "VALIDATION_ERROR");
    let entry = crate::audit::entries(&office, "email_verified").await.pop().unwrap();
    assert_eq!(Some(entry.actor), entry.subject);

    // A name that is an address would show, or occupy, the address of another user.
    let named = register(&office.anybody, "eve@example.com", "eve@example.com").await;
    assert_refused(&named, 400, "VALIDATION_ERROR");
    assert_refused(
        &register(&office.anybody, "eve", "no address").await,
        400,
        "VALIDATION_ERROR",
    );
    office.close().await;
}

#[tokio::test]
async fn no_response_shows_whether_an_address_is_taken() {
    let receiver = Receiver::start(&[]).await;
    let office = Office::with(|config| configure(&receiver, config)).await;
    set_address(&office, "bob", "bob@example.com").await;
    let taken = register(&office.anybody, "ann", "BOB@example.com").await.expect(201);
    let free = register(&office.anybody, "eve", "eve@example.com").await.expect(201);
    let fields = |answer: &Value| crate::api::fields(answer).join(" ");
    assert_eq!(fields(&taken), fields(&free));
    let ann = bearing(&office.anybody, &taken);
    for email in ["bob@example.com", "free@example.com"] {
        let body = json!({"email": email, "current": PASSWORD});
        assert_eq!(
            ann.post(ADDRESS, &body).await.expect(202),
            json!({"status": "accepted"})
        );
    }
    // The reader of the mails may know: the address is the reader's.
    let mails = receiver.received(4).await;
    let mut answers = Vec::new();
    for mail in &mails {
        if mail.json()["data"]["email"]
            .as_str()
            .unwrap()
            .eq_ignore_ascii_case("bob@example.com")
        {
            answers.push(verify(&office.anybody, &token(mail)).await);
        }
    }
    assert_eq!(answers.len(), 2);
    for answer in &answers {
        assert_refused(answer, 409, "CONFLICT");
    }
    assert_eq!(ann.get("/api/account").await.expect(200)["email"], Value::Null);
    // It is bob's as before.
    log_in(&office.anybody, "bob@example.com").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn reset_goes_to_verified_addresses_only() {
    let receiver = Receiver::start(&[]).await;
    let lenient = Receiver::start(&[]).await;
    let office = Office::with(|config| config.auth.registration_open = true).await;
    // Where no mail verifies addresses, a registration just gives one.
    let ann = register(&office.anybody, "ann", "ann@example.com").await.expect(201);
    assert_refused(
        &register(&office.anybody, "eve", "ann@example.com").await,
        409,
        "CONFLICT",
    );
    let engine = async |receiver: &Receiver, verified_only: bool| {
        let mut config = office.world.config.clone();
        configure(receiver, &mut config);
        config.mail.verified_only = verified_only;
        office.world.engine_with(Role::Api, config).await
    };
    let strict = engine(&receiver, true).await;
    let other = engine(&lenient, false).await;
    let api = strict.api();
    set_address(&office, "bob", "bob@example.com").await;
    let ann = bearing(&api, &ann);
    assert_eq!(ann.get("/api/account").await.expect(200)["email_verified"], false);
    request_reset(&api, "ann@example.com").await;
    request_reset(&other.api(), "ann@example.com").await;
    assert_eq!(lenient.received(1).await[0].json()["data"]["username"], "ann");
    // What an operator has given counts.
    request_reset(&api, "bob@example.com").await;
    assert_eq!(receiver.received(1).await[0].json()["data"]["username"], "bob");
    let body = json!({"email": "ann@example.com", "current": PASSWORD});
    ann.post(ADDRESS, &body).await.expect(202);
    let mails = receiver.received(2).await;
    verify(&api, &token(&mails[1])).await.expect(204);
    request_reset(&api, "ann@example.com").await;
    let mails = receiver.received(3).await;
    assert_eq!(mails.len(), 3);
    assert_eq!(
        (&mails[2].json()["type"], &mails[2].json()["data"]["username"]),
        (&json!("account.password_reset"), &json!("ann"))
    );
    strict.stop().await;
    other.stop().await;
    office.close().await;
}

#[tokio::test]
async fn mails_to_a_former_address_are_worthless() {
    let receiver = Receiver::start(&[]).await;
    let office = Office::with(|config| {
        configure(&receiver, config);
        config.mail.user_max = 100;
    })
    .await;
    office.world.user("acme", "ann", UserType::Web).await;
    set_address(&office, "ann", "old@example.com").await;
    let ann = bearing(&office.anybody, &log_in(&office.anybody, "ann").await.expect(200));
    for (current, status) in [(None, 400), (Some("wrong"), 403)] {
        let body = json!({"email": "new@example.com", "current": current});
        assert_eq!(ann.post(ADDRESS, &body).await.status, status);
    }
    let next = async |email: &str, count: usize| {
        let body = json!({"email": email, "current": PASSWORD});
        ann.post(ADDRESS, &body).await.expect(202);
        token(&receiver.received(count).await[count - 1])
    };
    request_reset(&office.anybody, "old@example.com").await;
    let reset = token(&receiver.received(1).await[0]);
    let first = next("first@example.com", 2).await;
    let second = next("second@example.com", 3).await;
    assert_refused(&verify(&office.anybody, &reset).await, 400, "VALIDATION_ERROR");
    verify(&office.anybody, &second).await.expect(204);
    // The former address gets a notice, without a token and without the new one.
    let notice = receiver.received(4).await[3].json();
    assert_eq!(
        (&notice["type"], &notice["data"]["email"], &notice["data"]["token"]),
        (&json!("account.email_changed"), &json!("old@example.com"), &Value::Null)
    );
    assert!(!notice.to_string().contains("second@"), "{notice}");
    assert_refused(&verify(&office.anybody, &first).await, 400, "VALIDATION_ERROR");
    let body = json!({"token": reset, "password": "another long password"});
    let refused = office.anybody.post("/api/auth/reset/complete", &body).await;
    assert_refused(&refused, 400, "VALIDATION_ERROR");

    // What a thief has begun ends with the password.
    let third = next("thief@example.com", 5).await;
    let change = json!({"current": PASSWORD, "new": "another long password"});
    ann.post("/api/auth/password", &change).await.expect(204);
    assert_refused(&verify(&office.anybody, &third).await, 400, "VALIDATION_ERROR");
    assert_eq!(ann.get("/api/account").await.expect(200)["email"], "second@example.com");
    office.close().await;
}

#[tokio::test]
async fn mails_to_one_address_are_bounded_over_accounts() {
    let receiver = Receiver::start(&[]).await;
    let office = Office::with(|config| {
        configure(&receiver, config);
        config.mail.user_max = 2;
    })
    .await;
    for number in 0..5 {
        // One address under any spelling.
        let email = if number % 2 == 0 {
            "victim@example.com"
        } else {
            "Victim@Example.com"
        };
        register(&office.anybody, &format!("thief-{number}"), email)
            .await
            .expect(201);
    }
    let ann = register(&office.anybody, "ann", "ann@example.com").await.expect(201);
    let ann = bearing(&office.anybody, &ann);
    // Nor does one user send mails to many addresses.
    for number in 0..4 {
        let body = json!({"email": format!("someone-{number}@example.com"), "current": PASSWORD});
        ann.post(ADDRESS, &body).await.expect(202);
    }
    let count = |part: &str| {
        let mails = receiver.deliveries.lock().unwrap();
        let addresses = mails
            .iter()
            .map(|mail| mail.json()["data"]["email"].to_string().to_lowercase());
        addresses.filter(|address| address.contains(part)).count()
    };
    eventually("the mails within the limits were sent", || async {
        (count("victim") >= 2 && count("ann@") + count("someone") >= 2).then_some(())
    })
    .await;
    // A few are sent at once; those before have ended when another one after all of them has come.
    register(&office.anybody, "eve", "eve@example.com").await.expect(201);
    eventually("a later mail was sent", || async { (count("eve@") == 1).then_some(()) }).await;
    assert_eq!((count("victim"), count("ann@") + count("someone")), (2, 2));
    office.close().await;
}

#[tokio::test]
async fn metric_counts_mails_that_were_sent_retried_and_given_up() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Status(204), Reply::Status(410)]).await;
    let office = Office::with(|config| configure(&receiver, config)).await;
    set_address(&office, "bob", "bob@example.com").await;
    request_reset(&office.anybody, "bob@example.com").await;
    receiver.received(2).await;
    request_reset(&office.anybody, "bob@example.com").await;
    receiver.received(3).await;
    eventually("the mails are counted", || async {
        let scrape = Scrape::of(&office.anybody).await;
        let count = |result: &str| scrape.get(&format!("mails_total{{result=\"{result}\"}}"));
        (["sent", "retried", "failed"].map(count) == [1.0, 1.0, 1.0]).then_some(())
    })
    .await;
    office.close().await;
}
