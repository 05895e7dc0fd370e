//! What the public listener and the admin listener answer.

use std::io::ErrorKind;

use hyper::Method;
use posduif::config::Secret;
use posduif::engine::Role;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::command::posduif_says;
use crate::support::office::Office;
use crate::support::proxy::Proxy;
use crate::support::{TIMEOUT, World, eventually};

/// Whether a text has an LSN: hexadecimal digits on both sides of a slash.
fn has_lsn(text: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit() || ('A'..='F').contains(&c);
    let mut words = text.split(|c: char| !is_digit(c) && c != '/');
    words.any(|word| matches!(word.split_once('/'), Some((high, low)) if !high.is_empty() && !low.is_empty()))
}

#[test]
fn lsn_is_recognised() {
    assert!(has_lsn(r#"{"received":"0/19A0970"}"#) && has_lsn("A/0"));
    assert!(!has_lsn("application/json") && !has_lsn("/ready"));
}

#[tokio::test]
async fn public_readiness_names_failed_checks_only() {
    let (world, url) = (World::new().await, std::env::var("REDIS_URL").unwrap());
    let redis = Proxy::before(&url).await;
    let mut config = world.config.clone();
    config.redis.url = Secret::new(redis.url(&url));
    config.health.max_staleness_seconds = 2;
    let engine = world.engine_with(Role::All, config).await;
    world.tenant("acme").await;
    let (public, admin) = (engine.api(), engine.api().admin());
    let ready = eventually("the engine is ready", || async {
        let answer = public.get("/ready").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(ready.json(), json!({"ready": true, "failed": []}));
    let full = admin.get("/ready").await.expect(200);
    let published = full["checks"]["redis"]["published"].as_str().unwrap().to_owned();
    assert!(has_lsn(&full.to_string()), "{full}");

    redis.refuse();
    let failing = eventually("the checks fail", || async {
        let answer = public.get("/ready").await;
        let failed = answer.json()["failed"].as_array().unwrap().len();
        (answer.status == 503 && failed == 3).then_some(answer)
    })
    .await;
    assert_eq!(
        failing.json(),
        json!({"ready": false, "failed": ["redis", "replication", "freshness"]})
    );
    let full = eventually("the admin listener has the cause", || async {
        let answer = admin.get("/ready").await;
        let cause = answer.json()["checks"]["replication"]["detail"].clone();
        (answer.status == 503 && cause.is_string()).then(|| answer.json())
    })
    .await;
    let cause = full["checks"]["replication"]["detail"].as_str().unwrap();
    assert!(!cause.is_empty(), "{full}");
    for answer in [&ready, &failing] {
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!has_lsn(&text), "{text}");
        for secret in [
            "127.0.0.1",
            "localhost",
            "acme",
            &published,
            "SQLSTATE",
            "detail",
            "cannot",
        ] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
    engine.stop().await;
}

#[tokio::test]
async fn each_listener_serves_its_own_routes_only() {
    let office = Office::open().await;
    let (public, admin) = (office.anybody.undescribed(), office.anybody.admin());
    assert_eq!(public.get("/metrics").await.status, 404);
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(admin.get(path).await.status, 200, "{path}");
        assert_eq!(admin.send(Method::POST, path, None, "").await.status, 405, "{path}");
    }
    for (method, path) in [
        (Method::POST, "/api/auth/login"),
        (Method::GET, "/api/users"),
        (Method::GET, "/openapi.json"),
        (Method::GET, "/ws"),
    ] {
        assert_eq!(admin.send(method, path, None, "").await.status, 404, "{path}");
    }
    office.close().await;
}

/// Sends a request for `/health`.
async fn ask(stream: &mut TcpStream) {
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
}

/// Waits for the status of the response.
async fn status(stream: &mut TcpStream) -> String {
    let mut head = [0; 15];
    let read = tokio::time::timeout(TIMEOUT, stream.read_exact(&mut head)).await;
    read.expect("a response in time").unwrap();
    String::from_utf8(head.into()).unwrap()
}

#[tokio::test]
async fn admin_listener_answers_while_the_public_one_is_full() {
    let mut world = World::new().await;
    world.config.server.connections_max = 2;
    let engine = world.engine(Role::Api).await;
    let (public, admin) = (engine.api(), engine.api().admin());
    let connect = async || TcpStream::connect(public.address()).await.unwrap();
    let mut held = [connect().await, connect().await];
    for stream in &mut held {
        ask(stream).await;
        assert_eq!(status(stream).await, "HTTP/1.1 200 OK");
    }
    let mut third = connect().await;
    ask(&mut third).await;
    for path in ["/health", "/metrics"] {
        assert_eq!(admin.get(path).await.status, 200, "{path}");
    }
    let early = third.try_read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "the public listener was not full");
    drop(held);
    assert_eq!(status(&mut third).await, "HTTP/1.1 200 OK");
    drop(third);
    engine.stop().await;
}

#[tokio::test]
async fn admin_listener_can_be_disabled() {
    let mut world = World::new().await;
    world.config.admin.listen = "off".into();
    let engine = world.engine(Role::Api).await;
    let public = engine.api();
    assert_eq!(public.get("/health").await.status, 200);
    assert_eq!(public.undescribed().get("/metrics").await.status, 404);
    engine.stop().await;
}

#[tokio::test]
async fn status_of_the_admin_listener_has_details_and_the_public_one_names() {
    let office = Office::open().await;
    office.ready().await;
    let admin = office.anybody.admin();
    let url = |address: &str| format!("http://{address}");
    let status = async |arguments: String| {
        let report = posduif_says(&office.world, &format!("status --json {arguments}"))
            .await
            .json();
        report["engine"].clone()
    };
    let public = format!("--url {}", url(office.anybody.address()));
    let bare = status(public.clone()).await;
    assert_eq!((&bare["ready"], &bare["checks"]), (&json!(true), &json!({})));
    let full = status(format!("{public} --admin-url {}", url(admin.address()))).await;
    assert_eq!(full["url"], url(admin.address()));
    assert_eq!(full["checks"]["replication"]["state"], "streaming", "{full}");
    office.close().await;
}
