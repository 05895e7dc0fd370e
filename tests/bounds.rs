//! Bounds before work: what strangers, devices and users may make the engine hold, and for how long.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use posduif::accounts::users::UserType;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::scrape::Scrape;
use crate::support::{TIMEOUT, eventually};

const JSON: Option<&str> = Some("application/json");

/// As many empty objects as fit in so many bytes; each becomes a tree that is a hundred times as large.
fn empty_objects(bytes: usize) -> String {
    vec!["{\"\":0}"; bytes / 7].join(",")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn upload_of_a_million_values_is_refused_in_little_memory() {
    let office = Office::open().await;
    let engine = office.world.process("api").await;
    let phone = office.phone("phone").await.at(&engine.api());
    let packed = phone.with("content-encoding", "gzip");
    phone.get("/api/sync/status").await.expect(200);
    let before = engine.peak_memory_kib();
    let objects = empty_objects(8 * 1024 * 1024 - 100);
    for body in [
        format!("{{\"changes\":[{objects}]}}"),
        format!("{{\"messages\":[{objects}]}}"),
        // One item.
        format!("{{\"messages\":[],\"changes\":[{{\"table\":\"tasks\",\"id\":1,\"row\":{{\"a\":[{objects}]}}}}]}}"),
    ] {
        let body = gzip(body.as_bytes());
        assert!(body.len() < 20_000);
        let answer = packed.send(Method::POST, "/api/sync/outgoing", JSON, body).await;
        assert_refused(&answer, 413, "PAYLOAD_TOO_LARGE");
    }
    let grown = engine.peak_memory_kib() - before;
    assert!(grown < 64 * 1024, "{grown} KiB");
    assert_eq!(engine.terminate().await, Some(0));
    office.close().await;
}

#[tokio::test]
async fn bodies_of_many_values_take_little_memory() {
    let office = Office::open().await;
    let engine = office.world.process("api").await;
    let anybody = engine.api();
    let phone = office.phone("phone").await.at(&anybody);
    phone.get("/api/sync/status").await.expect(200);
    let before = engine.peak_memory_kib();
    let objects = empty_objects(1024 * 1024 - 200);
    let created = office.bob.post("/api/enrollment/create", &json!({})).await.expect(201);
    let token = created["token"].as_str().unwrap();
    let info = format!("{{\"token\":\"{token}\",\"device_id\":\"d\",\"device_info\":{{\"a\":[{objects}]}}}}");
    let answer = anybody.send(Method::POST, "/api/enrollment/complete", JSON, info).await;
    assert_refused(&answer, 400, "VALIDATION_ERROR");
    let items = format!("{{\"items\":[{objects}]}}");
    let answer = phone.send(Method::POST, "/api/state/batch", JSON, items).await;
    assert_refused(&answer, 413, "PAYLOAD_TOO_LARGE");
    let mut socket = phone.socket("/ws").await;
    let frame = format!("{{\"type\":\"change\",\"row\":[{}]}}", empty_objects(250_000));
    socket.send(tokio_tungstenite::tungstenite::Message::text(frame)).await;
    assert_eq!(socket.result().await["code"], "PAYLOAD_TOO_LARGE");
    let grown = engine.peak_memory_kib() - before;
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert_eq!(engine.terminate().await, Some(0));
    office.close().await;
}

/// Reads until the other side closes.
async fn assert_is_closed(mut stream: TcpStream, what: &str) {
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut bytes)).await;
    assert!(ended.is_ok(), "{what} held its connection");
}

#[tokio::test]
async fn http2_client_that_does_not_go_on_is_closed() {
    let office = Office::with(|config| config.server.header_timeout_seconds = 1).await;
    for sent in ["PRI ", "PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(office.anybody.address()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        assert_is_closed(stream, sent).await;
    }
    office.close().await;
}

type Http2 = (
    hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    tokio::task::JoinHandle<hyper::Result<()>>,
);

/// An HTTP/2 connection with this window for each answer.
async fn http2(api: &Api, window: u32) -> Http2 {
    let stream = TcpStream::connect(api.address()).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

fn get(api: &Api, path: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::get(format!("http://{}{path}", api.address()));
    for (name, value) in api.headers() {
        request = request.header(name, value);
    }
    request.body(Empty::new()).unwrap()
}

async fn assert_ends(connection: tokio::task::JoinHandle<hyper::Result<()>>, what: &str) {
    let ended = tokio::time::timeout(TIMEOUT, connection).await;
    assert!(ended.is_ok(), "{what} held its connection");
}

#[tokio::test]
async fn idle_http2_connection_is_closed_and_event_stream_is_not() {
    let office = Office::with(|config| config.server.header_timeout_seconds = 1).await;
    let phone = office.phone("phone").await;
    let (mut streaming, _connection) = http2(&office.anybody, 1 << 20).await;
    let mut stream = streaming
        .send_request(get(&phone, "/sse/mobile/phone"))
        .await
        .unwrap()
        .into_body();
    let (silent, connection) = http2(&office.anybody, 1 << 20).await;
    assert_ends(connection, "a connection without requests").await;
    drop(silent);
    let (mut idle, connection) = http2(&office.anybody, 1 << 20).await;
    let answer = idle.send_request(get(&office.anybody, "/health")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "OK");
    assert_ends(connection, "an idle connection").await;
    drop(idle);

    let message = office.send("still here?").await;
    let mut received = String::new();
    while !received.contains(&message) {
        let frame = tokio::time::timeout(TIMEOUT, stream.frame()).await.unwrap();
        let data = frame.expect("the stream goes on").unwrap().into_data().unwrap();
        received.push_str(&String::from_utf8_lossy(&data));
    }
    office.close().await;
}

#[tokio::test]
async fn clients_that_read_no_answers_are_closed() {
    let office = Office::with(|config| config.server.write_timeout_seconds = 1).await;
    let connections = || async { Scrape::of(&office.anybody).await.get("http_connections") };
    let (mut sender, connection) = http2(&office.anybody, 100).await;
    let answer = sender
        .send_request(get(&office.anybody, "/openapi.json"))
        .await
        .unwrap();
    assert_ends(connection, "an HTTP/2 client").await;
    drop((answer, sender));

    // Those of the tests' own client, once the other has gone.
    eventually("one connection is left", || async {
        (connections().await == 1.0).then_some(())
    })
    .await;
    let before = connections().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut stream = socket.connect(office.anybody.address().parse().unwrap()).await.unwrap();
    let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.repeat(400).as_bytes()).await.unwrap();
    assert!(connections().await > before);
    eventually("a client that reads nothing is let go", || async {
        (connections().await <= before).then_some(())
    })
    .await;
    drop(stream);
    office.close().await;
}

#[tokio::test]
async fn http1_request_needs_one_host() {
    let office = Office::open().await;
    for (head, status) in [
        ("GET /health HTTP/1.1\r\nhost: a\r\n", "200"),
        ("GET /health HTTP/1.0\r\n", "200"),
        ("GET /health HTTP/1.1\r\n", "400"),
        ("GET /health HTTP/1.1\r\nhost: a\r\nhost: a\r\n", "400"),
        ("GET /health HTTP/1.1\r\nhost: a\r\nHost: b\r\n", "400"),
        ("GET /health HTTP/1.0\r\nhost: a\r\nHost: b\r\n", "400"),
    ] {
        let mut stream = TcpStream::connect(office.anybody.address()).await.unwrap();
        let request = format!("{head}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(&format!(" {status} ")), "{head:?}: {answer}");
    }
    office.close().await;
}

/// Sessions that wait for a lock.
async fn waiting(psql: &tokio_postgres::Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    psql.query_one(sql, &[]).await.unwrap().get(0)
}

/// Holds what uploads of messages to bob lock, until the client is dropped.
async fn locked(office: &Office) -> tokio_postgres::Client {
    let holder = office.world.psql().await;
    holder
        .batch_execute("BEGIN; LOCK TABLE tenant_acme.messages IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    holder
}

fn message(office: &Office) -> Value {
    json!({"messages": [{"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "waits"}]})
}

#[tokio::test]
async fn uploads_of_one_user_leave_the_pool_to_others() {
    let office = Office::with(|config| {
        config.postgres.pool_size = 4;
        config.postgres.lock_timeout_seconds = 60;
    })
    .await;
    let phone = office.phone("phone").await;
    phone.get("/api/sync/status").await.expect(200);
    let psql = office.world.psql().await;
    let holder = locked(&office).await;
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let (phone, body) = (phone.clone(), message(&office));
        uploads.spawn(async move { phone.post("/api/sync/outgoing", &body).await });
    }
    // Those beyond the queue are refused, and only these return.
    let refused = tokio::time::timeout(TIMEOUT, uploads.join_next()).await;
    let refused = refused.expect("an answer while the lock is held").unwrap().unwrap();
    assert_refused(&refused, 429, "RATE_LIMITED");
    assert!(refused.headers.contains_key("retry-after"));
    assert!(waiting(&psql).await <= 2);
    // Another user works on, while the lock is still held.
    office
        .bob
        .get(&format!("/api/users/{}", office.joe_id))
        .await
        .expect(200);
    office.bob.get("/api/devices").await.expect(200);
    drop(holder);
    let mut applied = 0;
    while let Some(answer) = uploads.join_next().await {
        let answer = answer.unwrap();
        match answer.status.as_u16() {
            200 => applied += 1,
            status => assert_eq!(status, 429),
        }
    }
    assert!(applied >= 2, "{applied}");
    office.close().await;
}

#[tokio::test]
async fn locked_table_of_one_tenant_leaves_the_pool_to_others() {
    let office = Office::with(|config| {
        config.postgres.pool_size = 8;
        config.postgres.lock_timeout_seconds = 60;
        config.postgres.query_timeout_seconds = 60;
    })
    .await;
    let world = &office.world;
    world.tenant("other").await;
    let other_bob_id = world.user("other", "bob", UserType::Web).await;
    let ben = world.user("other", "ben", UserType::Mobile).await.to_string();
    let mut phones = vec![office.phone("phone-0").await];
    for n in 1..5 {
        let user = world.user("acme", &format!("user-{n}"), UserType::Mobile).await;
        let (phone, _) = office.bob.enroll(&format!("phone-{n}"), Some(&user.to_string())).await;
        phones.push(phone);
    }
    let other_bob = office.anybody.log_in("other", "bob").await;
    let (other_phone, _) = other_bob.enroll("other-phone", Some(&ben)).await;
    world.published().await;
    let psql = world.psql().await;
    let holder = locked(&office).await;
    let mut requests = tokio::task::JoinSet::new();
    for phone in &phones {
        for _ in 0..2 {
            let (phone, body) = (phone.clone(), message(&office));
            requests.spawn(async move { phone.post("/api/sync/outgoing", &body).await });
        }
    }
    eventually("uploads of the tenant hold what they can get", || async {
        (waiting(&psql).await >= 3).then_some(())
    })
    .await;
    for _ in 0..16 {
        let bob = office.bob.clone();
        requests.spawn(async move { bob.get("/api/messages").await });
    }
    eventually("the tenant holds its share of the pool", || async {
        (waiting(&psql).await >= 6).then_some(())
    })
    .await;
    // The other tenant reads, writes and uploads.
    other_bob.get("/api/messages").await.expect(200);
    let sent = json!({"recipient_id": ben, "content": "goes on"});
    other_bob.post("/api/messages", &sent).await.expect(201);
    let item = json!({"id": Uuid::new_v4(), "recipient_id": other_bob_id, "content": "goes on, too"});
    let uploaded = other_phone
        .post("/api/sync/outgoing", &json!({"messages": [item]}))
        .await;
    assert_eq!(uploaded.expect(200)["synced_count"], 1);
    assert_eq!(waiting(&psql).await, 6);
    requests.abort_all();
    drop(holder);
    office.close().await;
}

#[tokio::test]
async fn statement_of_a_client_that_left_is_cancelled() {
    let office = Office::with(|config| {
        config.postgres.lock_timeout_seconds = 60;
        config.postgres.query_timeout_seconds = 60;
    })
    .await;
    let phone = office.phone("phone").await;
    phone.get("/api/sync/status").await.expect(200);
    let psql = office.world.psql().await;
    let holder = locked(&office).await;
    let body = message(&office);
    let upload = {
        let phone = phone.clone();
        tokio::spawn(async move { phone.post("/api/sync/outgoing", &body).await })
    };
    eventually("the upload waits for the lock", || async {
        (waiting(&psql).await > 0).then_some(())
    })
    .await;
    upload.abort();
    eventually("its statement ends, although the lock is held", || async {
        (waiting(&psql).await == 0).then_some(())
    })
    .await;
    drop(holder);
    phone.post("/api/sync/outgoing", &message(&office)).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn presence_of_a_user_keeps_the_newest_places() {
    let office = Office::open().await;
    let presence = posduif::live::presence::Presence::new(
        &office.world.config,
        posduif::telemetry::metrics::Operations::new("command"),
    )
    .unwrap();
    let declare = |n: u32| {
        let place = posduif::live::presence::Place::Device(format!("place-{n}"));
        let presence = &presence;
        let joe = office.joe_id;
        async move {
            let status = posduif::live::presence::Status::Away;
            presence.declare("acme", joe, &place, status).await.unwrap()
        }
    };
    for n in 0..250 {
        declare(n).await;
    }
    let list = presence.of("acme", &[office.joe_id]).await.unwrap();
    let devices = &list.entries[0].devices;
    assert_eq!(devices.len(), 200);
    let has = |n: u32| devices.iter().any(|(id, _)| *id == format!("place-{n}"));
    assert!(has(249) && has(50) && !has(49) && !has(0));
    office.close().await;
}

#[tokio::test]
async fn connections_of_one_address_are_bounded_and_others_are_closed() {
    let office = Office::with(|config| config.server.connections_per_address_max = 4).await;
    // The clients of tests keep theirs.
    let mut held = Vec::new();
    loop {
        let mut stream = TcpStream::connect(office.anybody.address()).await.unwrap();
        let request = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut byte = [0; 1];
        let is_served = stream.write_all(request).await.is_ok() && matches!(stream.read(&mut byte).await, Ok(1));
        if !is_served {
            break;
        }
        held.push(stream);
        assert!(held.len() <= 4, "a connection beyond the bound is served");
    }
    drop(held);
    eventually("there is room again", || async {
        let answer = office.anybody.try_send(Method::GET, "/health", None, "").await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn streams_of_one_user_are_bounded_until_one_ends() {
    let office = Office::with(|config| config.live.streams_per_user_max = 2).await;
    let phone = office.phone("phone").await;
    let first = phone.events("/sse/mobile/phone").await;
    let second = phone.socket("/ws").await;
    assert_refused(&phone.get("/sse/mobile/phone").await, 429, "RATE_LIMITED");
    let refused = phone.try_socket("/ws").await.expect_err("one too many");
    assert_refused(&refused, 429, "RATE_LIMITED");
    let _bob = office.bob.socket("/ws").await;
    drop(first);
    eventually("a slot is free again", || async { phone.try_socket("/ws").await.ok() }).await;
    drop(second);
    office.close().await;
}

#[tokio::test]
async fn bodies_in_memory_are_bounded_together() {
    let office = Office::with(|config| {
        config.server.body_memory_bytes_max = 16 * 1024 * 1024;
        config.server.body_bytes_max = 12 * 1024 * 1024;
    })
    .await;
    // Ten megabytes of a body that does not end.
    let mut slow = TcpStream::connect(office.anybody.address()).await.unwrap();
    let head = "POST /api/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                content-length: 11000000\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&vec![b' '; 10_000_000]).await.unwrap();
    let body = vec![b' '; 9_000_000];
    let send = || office.anybody.send(Method::POST, "/api/auth/login", JSON, body.clone());
    let refused = eventually("a body beyond the bound is refused", || async {
        let answer = send().await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_refused(&refused, 503, "OVERLOADED");
    assert!(refused.headers.contains_key("retry-after"));
    drop(slow);
    eventually("there is room again", || async {
        (send().await.status == 400).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn presence_declarations_of_a_user_are_rate_limited() {
    let office = Office::open().await;
    let away = json!({"status": "away"});
    let declare = || office.bob.put("/api/presence", &away);
    let mut refused = None;
    for _ in 0..1000 {
        let answer = declare().await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("the rate is bounded");
    assert_refused(&refused, 429, "RATE_LIMITED");
    assert!(refused.headers.contains_key("retry-after"));
    let phone = office.phone("phone").await;
    phone.put("/api/presence", &away).await.expect(200);
    office.close().await;
}
