//! Rates of requests: token buckets of addresses, users, devices and tenants.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use posduif::accounts::users::UserType;
use posduif::api::routes;
use posduif::config::Rates;
use serde_json::json;
use uuid::Uuid;

use crate::support::http::{Answer, Api};
use crate::support::office::Office;

/// Tokens of a bucket; one comes back in a second.
const BUCKET: u32 = 10;

/// Rates of which one is enabled.
fn only(enable: impl FnOnce(&mut Rates)) -> Rates {
    let mut rates = Rates {
        address_per_second: 0,
        user_per_second: 0,
        device_per_second: 0,
        tenant_per_second: 0,
        burst_seconds: BUCKET.into(),
    };
    enable(&mut rates);
    rates
}

/// Sends requests that cost one token each until one is refused, and returns that one.
async fn exhaust(api: &Api, path: &str) -> Answer {
    let began = Instant::now();
    for count in 0_u64.. {
        let answer = api.get(path).await;
        if answer.status == 429 {
            assert!(count > 1, "the bucket was empty");
            return answer;
        }
        // What came back meanwhile counts, too.
        assert!(
            count <= u64::from(BUCKET) + began.elapsed().as_secs() + 1,
            "{count} were admitted"
        );
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "the machine is too slow for this test"
        );
    }
    unreachable!()
}

/// Checks a refusal.
fn is_limited(answer: &Answer, by: &str) {
    assert_eq!(answer.code(), "RATE_LIMITED");
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(by), "{message}");
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=u64::from(BUCKET)).contains(&wait), "{wait}");
}

/// How often a rate was exceeded.
async fn limited(office: &Office, by: &str) -> u64 {
    let metrics = office.anybody.admin().get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    let name = format!("posduif_http_requests_limited_total{{by=\"{by}\"}} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&name))
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn upload_costs_by_its_bytes() {
    let office = Office::with(|config| {
        config.rates = only(|rates| {
            rates.device_per_second = 1;
            rates.burst_seconds = 60;
        });
    })
    .await;
    let phone = office.phone("phone").await;
    // 1.6 MB: 5 tokens for the route, and 48 for the bytes.
    let item = || json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "\u{1f54a}".repeat(10_000)});
    let upload = || json!({"messages": (0..40).map(|_| item()).collect::<Vec<_>>()});
    phone.post("/api/sync/outgoing", &upload()).await.expect(200);
    let refused = phone.post("/api/sync/outgoing", &upload()).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.code(), "RATE_LIMITED");
    let count = "SELECT count(*) FROM tenant_acme.messages";
    let row = office.world.psql().await.query_one(count, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 40, "nothing of the refused upload was written");
    office.close().await;
}

#[tokio::test]
async fn address_beyond_its_rate_is_refused_and_others_are_not() {
    let office = Office::with(|config| {
        config.server.trusted_proxies = vec![String::from("127.0.0.1").try_into().unwrap()];
        config.rates = only(|rates| rates.address_per_second = 1);
    })
    .await;
    let at = |address: &str| office.anybody.with("x-forwarded-for", address);
    let refused = exhaust(&at("2001:db8::1"), "/openapi.json").await;
    is_limited(&refused, "address");
    assert_eq!(limited(&office, "address").await, 1);
    // The same /64 is the same client; credentials are not checked before the rate.
    let neighbour = at("2001:db8::2").with("authorization", "Bearer junk.junk.junk");
    assert_eq!(neighbour.get("/api/users").await.status, 429);
    assert_eq!(at("2001:db8:0:1::1").get("/openapi.json").await.status, 200);
    for path in ["/health", "/ready"] {
        assert_ne!(at("2001:db8::1").get(path).await.status, 429, "{path}");
    }
    // A request that costs more is refused earlier.
    let other = at("203.0.113.1");
    let login = json!({"tenant": "acme", "username": "nobody", "password": "wrong"});
    for expected in [401, 401, 429] {
        assert_eq!(other.post("/api/auth/login", &login).await.status, expected);
    }
    office.close().await;
}

#[tokio::test]
async fn user_beyond_the_rate_is_refused_in_all_sessions_and_others_are_not() {
    let office = Office::with(|config| config.rates = only(|rates| rates.user_per_second = 1)).await;
    office.world.user("acme", "jane", UserType::Web).await;
    let jane = office.anybody.log_in("acme", "jane").await;
    let path = format!("/api/users/{}", office.joe_id);
    is_limited(&exhaust(&office.bob, &path).await, "user");
    let again = office.anybody.log_in("acme", "bob").await;
    assert_eq!(again.get("/api/users").await.status, 429);
    assert_eq!(jane.get(&path).await.status, 200);
    assert!(limited(&office, "user").await >= 2);
    office.close().await;
}

#[tokio::test]
async fn device_beyond_its_rate_is_refused_and_the_users_other_devices_are_not() {
    let office = Office::with(|config| config.rates = only(|rates| rates.device_per_second = 1)).await;
    let (phone, tablet) = (office.phone("phone").await, office.phone("tablet").await);
    is_limited(&exhaust(&phone, "/api/sync/status").await, "device");
    assert_eq!(tablet.get("/api/sync/status").await.status, 200);
    assert_eq!(limited(&office, "device").await, 1);
    office.close().await;
}

#[tokio::test]
async fn tenant_beyond_its_rate_is_refused_and_others_are_not() {
    let office = Office::with(|config| config.rates = only(|rates| rates.tenant_per_second = 1)).await;
    office.world.tenant("globex").await;
    office.world.user("globex", "bob", UserType::Web).await;
    office.world.user("acme", "jane", UserType::Web).await;
    let path = format!("/api/users/{}", office.joe_id);
    is_limited(&exhaust(&office.bob, &path).await, "tenant");
    let jane = office.anybody.log_in("acme", "jane").await;
    assert_eq!(jane.get("/api/users").await.status, 429);
    let other = office.anybody.log_in("globex", "bob").await;
    assert_eq!(other.get("/api/users").await.status, 200);
    office.close().await;
}

#[tokio::test]
async fn items_of_a_socket_beyond_the_rate_are_delayed() {
    let office = Office::with(|config| {
        config.rates = only(|rates| {
            rates.user_per_second = 10;
            rates.burst_seconds = 1;
        });
    })
    .await;
    let mut socket = office.bob.socket("/ws").await;
    let began = Instant::now();
    for id in 0..15 {
        let item = json!({"type": "presence", "id": id, "status": "away"});
        assert_eq!(socket.ask(&item).await["status"], "applied");
    }
    // 15 items of 2 tokens, of which a full bucket of 10 is there at first.
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
    assert!(limited(&office, "user").await >= 1);
    office.close().await;
}

#[test]
fn cost_of_every_route_is_documented() {
    let docs = include_str!("../docs/api.md");
    let (_, section) = docs.split_once("### Rates").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let mut documented = BTreeMap::new();
    for line in section.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, cost, names, _] = *cells.as_slice() else {
            continue;
        };
        let Ok(cost) = cost.parse::<u32>() else { continue };
        for name in names.split('`').skip(1).step_by(2) {
            assert_eq!(documented.insert(name.to_owned(), cost), None, "{name}");
        }
    }
    let limited = routes::table().iter().filter(|route| route.cost > 0);
    let known = limited.map(|route| (format!("{} {}", route.method, route.path), route.cost));
    assert_eq!(documented, known.collect());
}

#[tokio::test]
async fn junk_credentials_have_no_bucket_of_their_own() {
    let office = Office::with(|config| config.rates = only(|rates| rates.device_per_second = 1)).await;
    let phone = office.phone("phone").await;
    // A stranger who names the device does not use up its tokens.
    let stranger = office
        .anybody
        .with("x-device-id", "phone")
        .with("authorization", &format!("Bearer {}", Uuid::new_v4().simple()));
    for _ in 0..2 * BUCKET {
        assert_eq!(stranger.get("/api/sync/status").await.status, 401);
    }
    assert_eq!(phone.get("/api/sync/status").await.status, 200);
    office.close().await;
}
