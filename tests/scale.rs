//! Many streams at once, and their sockets: each is taken out of HTTP and belongs to its stream alone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use posduif::engine::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::{TIMEOUT, eventually};

/// Streams that are open at once.
const MANY: usize = 300;

/// What a client read so far, block by block.
struct Raw {
    stream: TcpStream,
    read: String,
}

impl Raw {
    async fn connect(address: &str, request: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Self {
            stream,
            read: String::new(),
        }
    }

    /// What comes up to this text, which must come; without it.
    async fn until(&mut self, end: &str) -> String {
        match self.until_or_end(end).await {
            Some(text) => text,
            None => panic!("the connection ended before {end:?}: {}", self.read),
        }
    }

    /// The same; `None` when the connection ends before.
    async fn until_or_end(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some((text, rest)) = self.read.split_once(end) {
                let (text, rest) = (text.to_owned(), rest.to_owned());
                self.read = rest;
                return Some(text);
            }
            let mut bytes = [0; 16 * 1024];
            let reading = tokio::time::timeout(TIMEOUT, self.stream.read(&mut bytes));
            match reading.await.unwrap_or_else(|_| panic!("{end:?} did not come")) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.read.push_str(std::str::from_utf8(&bytes[..count]).unwrap()),
            }
        }
    }

    /// The next event of this name, with its data.
    async fn event(&mut self, name: &str) -> (Option<String>, Value) {
        loop {
            let block = self.until("\n\n").await;
            if let Some(event) = parse(&block, name) {
                return event;
            }
        }
    }

    /// The connection's end; gives what came before it.
    async fn end(mut self) -> String {
        let mut rest = Vec::new();
        let reading = self.stream.read_to_end(&mut rest);
        let _reset = tokio::time::timeout(TIMEOUT, reading)
            .await
            .expect("the connection ends");
        self.read + std::str::from_utf8(&rest).unwrap()
    }
}

/// Id and data of a block that is an event of this name.
fn parse(block: &str, name: &str) -> Option<(Option<String>, Value)> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::to_owned)
    };
    (field("event: ")? == name).then(|| {
        let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
        (field("id: "), data)
    })
}

fn request(phone: &Api, method: &str, path: &str, more: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nX-Device-ID: {}\r\n{more}\r\n",
        phone.header("authorization"),
        phone.header("x-device-id")
    )
}

fn get(phone: &Api) -> String {
    request(phone, "GET", "/sse/mobile/phone", "")
}

#[tokio::test]
async fn upgraded_socket_and_http2_stream_receive_the_same_events() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut raw = Raw::connect(phone.address(), &get(&phone)).await;
    let head = raw.until("\r\n\r\n").await.to_lowercase();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("http/1.1 200 ok"));
    let headers: Vec<&str> = lines.collect();
    for expected in [
        "content-type: text/event-stream",
        "cache-control: no-cache, no-store, no-transform",
        "x-accel-buffering: no",
        "x-content-type-options: nosniff",
        "connection: close",
    ] {
        assert!(headers.contains(&expected), "{expected} is not in {headers:?}");
    }
    for name in ["x-request-id", "date"] {
        assert!(
            headers.iter().any(|line| line.starts_with(&format!("{name}: "))),
            "{name}"
        );
    }
    raw.event("hello").await;

    let stream = TcpStream::connect(phone.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let asked = Request::get(format!("http://{}/sse/mobile/phone", phone.address()))
        .header("authorization", phone.header("authorization"))
        .header("x-device-id", "phone")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let answer = sender.send_request(asked).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut body = answer.into_body();
    let mut text = String::new();
    let sent: HashSet<String> = office.insert(50).await.into_iter().collect();
    let (mut by_socket, mut by_stream) = (Vec::new(), Vec::new());
    for _ in &sent {
        by_socket.push(raw.event("message").await);
    }
    while by_stream.len() < sent.len() {
        let frame = tokio::time::timeout(TIMEOUT, body.frame()).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n") {
            by_stream.extend(parse(block, "message"));
            text = rest.to_owned();
        }
    }
    assert_eq!(by_socket, by_stream);
    let received: HashSet<String> = by_socket
        .iter()
        .map(|(_, data)| data["message_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(received, sent);
    office.close().await;
}

#[tokio::test]
async fn event_stream_after_pipelined_requests_ignores_client_bytes() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    // Three requests in one breath, the last of them for the stream.
    let health = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let requests = format!(
        "{health}{}{}",
        request(&phone, "HEAD", "/sse/mobile/phone", ""),
        get(&phone)
    );
    let mut raw = Raw::connect(phone.address(), &requests).await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    let after = raw.until("HTTP/1.1 200").await;
    assert_eq!(
        after, "OK",
        "the first answer's body ends where the second answer begins"
    );
    let head = raw.until("\r\n\r\n").await.to_lowercase();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let head = raw.until("\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 200 ok"), "a HEAD brings no body: {head}");
    raw.event("hello").await;

    // Behind the stream nothing is answered, and nothing does harm.
    raw.stream.write_all(health.as_bytes()).await.unwrap();
    raw.stream.write_all(&[0xff; 100_000]).await.unwrap();
    let message = office.send("still here?").await;
    assert_eq!(raw.event("message").await.1["message_id"], message);

    // Who closes the sending side has gone.
    raw.stream.shutdown().await.unwrap();
    assert!(!raw.end().await.contains("HTTP/1.1"));
    eventually("the stream has no subscriber any more", || async {
        (metric(&office.anybody, "posduif_subscribers").await == 0.0).then_some(())
    })
    .await;

    // HTTP/1.0 knows no chunks.
    let old = get(&phone).replace("HTTP/1.1", "HTTP/1.0");
    let mut raw = Raw::connect(phone.address(), &old).await;
    let head = raw.until("\r\n\r\n").await.to_lowercase();
    assert!(!head.contains("transfer-encoding"), "{head}");
    raw.event("hello").await;
    office.close().await;
}

#[tokio::test]
async fn slow_event_stream_is_closed_and_resumes_without_loss() {
    let office = Office::with(|config| {
        config.live.write_timeout_seconds = 1;
        config.live.queue_events_max = 16;
    })
    .await;
    let phone = office.phone("phone").await;
    // A small window, and nobody reads.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut stream = socket.connect(phone.address().parse().unwrap()).await.unwrap();
    stream.write_all(get(&phone).as_bytes()).await.unwrap();
    let mut raw = Raw {
        stream,
        read: String::new(),
    };
    raw.event("hello").await;
    let subscribers = || async { metric(&office.anybody, "posduif_subscribers").await };
    assert_eq!(subscribers().await, 1.0);
    // Sockets take several megabytes before they take no more.
    let sent = 400;
    for n in 0..sent {
        let data = json!({"n": n, "filler": "x".repeat(50_000)});
        office.world.emit("parcel", &json!([office.joe_id]), &data).await;
    }
    eventually("a reader that takes nothing is let go", || async {
        (subscribers().await == 0.0).then_some(())
    })
    .await;
    let mut received = Vec::new();
    let mut last = None;
    while let Some(block) = raw.until_or_end("\n\n").await {
        if let Some((id, data)) = parse(&block, "parcel") {
            received.push(data["data"]["n"].as_u64().unwrap());
            last = id;
        }
    }
    assert!(received.len() < sent, "what was written before it was cut is not all");
    let last = last.expect("an event came");
    let mut resumed = phone.with("last-event-id", &last).events("/sse/mobile/phone").await;
    while received.len() < sent {
        received.push(resumed.expect("parcel").await.data["data"]["n"].as_u64().unwrap());
    }
    assert_eq!(received, (0..sent as u64).collect::<Vec<_>>());
    office.close().await;
}

/// A value of the metrics.
async fn metric(anybody: &Api, name: &str) -> f64 {
    let text = String::from_utf8(anybody.admin().get("/metrics").await.body.to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
}

/// Many mobile users with a device each, whose token is its name.
async fn populate(office: &Office) {
    let many = MANY as i64;
    let psql = office.world.psql().await;
    for statement in [
        "INSERT INTO tenant_acme.users (id, username, user_type) \
         SELECT md5('user ' || n)::uuid, 'user ' || n, 'mobile' FROM generate_series(1, $1::bigint) n",
        "INSERT INTO tenant_acme.devices (device_id, user_id) \
         SELECT 'd' || n, md5('user ' || n)::uuid FROM generate_series(1, $1::bigint) n",
        "INSERT INTO posduif.devices (tenant, device_id, user_id, token_hash) \
         SELECT 'acme', 'd' || n, md5('user ' || n)::uuid, sha256(convert_to('token-' || n, 'UTF8')) \
         FROM generate_series(1, $1::bigint) n",
    ] {
        psql.execute(statement, &[&many]).await.unwrap();
    }
    office.world.published().await;
}

/// Sockets for all their streams, on which nothing is asked yet.
async fn connect_all(address: &str) -> Vec<Raw> {
    futures_util::future::join_all((0..MANY).map(|_| Raw::connect(address, ""))).await
}

/// Asks for all their streams at once, each behind its id if there is one.
async fn ask_all(sockets: &mut [Raw], behind: &[String]) {
    for (index, raw) in sockets.iter_mut().enumerate() {
        let n = index + 1;
        let resume = behind
            .get(index)
            .map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!(
            "GET /sse/mobile/d{n} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer token-{n}\r\nX-Device-ID: d{n}\r\n{resume}\r\n"
        );
        raw.stream.write_all(request.as_bytes()).await.unwrap();
    }
}

/// Waits until all of them have begun.
async fn begun_all(sockets: &mut [Raw]) {
    let beginning = sockets.iter_mut().map(|raw| async {
        let head = raw.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        raw.event("hello").await;
    });
    futures_util::future::join_all(beginning).await;
}

/// Most statements in such a time: of each of four kinds of questions one in 20 ms, and what the engine asks by itself.
fn statements_in(time: Duration) -> f64 {
    4.0 * (time.as_secs_f64() / 0.020 + 1.0) + 20.0 * time.as_secs_f64() + 30.0
}

#[tokio::test]
async fn many_streams_reconnect_together_with_few_statements() {
    let office = Office::with(|config| {
        config.live.heartbeat_seconds = 1;
        // On a busy machine the last of them may be connected long after the first.
        config.server.header_timeout_seconds = 60;
        config.postgres.lock_timeout_seconds = 60;
        config.postgres.query_timeout_seconds = 60;
    })
    .await;
    populate(&office).await;
    let address = office.anybody.address().to_owned();
    let taken = || async { metric(&office.anybody, "posduif_pool_connections_acquired_total").await };

    // None of these devices was seen before, and of each several things are asked. Postgres holds the first question back
    // until all have asked theirs, however slowly they come: so all others are asked together.
    let mut streams = connect_all(&address).await;
    let mut psql = office.world.psql().await;
    let lock = psql.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE posduif.devices").await.unwrap();
    ask_all(&mut streams, &[]).await;
    eventually("all have asked", || async {
        let asked = metric(&office.anybody, "posduif_device_cache_lookups_total{result=\"miss\"}").await;
        (asked >= MANY as f64).then_some(())
    })
    .await;
    let (before, released) = (taken().await, Instant::now());
    lock.commit().await.unwrap();
    begun_all(&mut streams).await;
    let (cold, bound) = (taken().await - before, statements_in(released.elapsed()));
    assert!(cold < bound, "{cold} times for {MANY} devices, and not {bound}");
    assert_eq!(metric(&office.anybody, "posduif_subscribers").await, MANY as f64);

    // A heartbeat each, then one event to all, and another to one of them.
    let mut streams = futures_util::future::join_all(streams.into_iter().map(|mut raw| async move {
        while raw.until("\n\n").await != ": heartbeat" {}
        raw
    }))
    .await;
    office
        .sql(
            "INSERT INTO tenant_acme.outbox (event, recipients, data) \
             VALUES ('announcement', '\"tenant\"', '1'), ('whisper', jsonb_build_array(md5('user 7')), '2')",
        )
        .await;
    let mut ids = Vec::new();
    for raw in &mut streams {
        let (id, data) = raw.event("announcement").await;
        assert_eq!(data["data"], 1);
        ids.push(id.expect("a durable event has an id"));
    }
    assert_eq!(streams[6].event("whisper").await.1["data"], 2);

    // They all go, something happens, and they all come back.
    drop(streams);
    office.world.emit("announcement", &json!("tenant"), &json!(3)).await;
    office.world.published().await;
    let mut streams = connect_all(&address).await;
    let (before, asked) = (taken().await, Instant::now());
    ask_all(&mut streams, &ids).await;
    begun_all(&mut streams).await;
    let (warm, bound) = (taken().await - before, statements_in(asked.elapsed()));
    assert!(warm < bound, "{warm} times for {MANY} devices, and not {bound}");
    for (number, raw) in streams.iter_mut().enumerate() {
        if number == 6 {
            assert_eq!(raw.event("whisper").await.1["data"], 2);
        }
        assert_eq!(raw.event("announcement").await.1["data"], 3);
    }

    // The server goes, and says so to each.
    let Office { world, engine, .. } = office;
    let saying = futures_util::future::join_all(streams.into_iter().map(|raw| raw.end()));
    let (_, words) = tokio::join!(engine.stop(), saying);
    for words in words {
        let bye = words.split("\n\n").find_map(|block| parse(block, "bye"));
        assert!(
            bye.is_some_and(|(_, data)| data["reconnect_ms"].as_u64().unwrap() > 0),
            "{words}"
        );
    }
    // And they go on at another.
    let other = world.engine(Role::All).await;
    let mut streams = connect_all(other.api().address()).await;
    ask_all(&mut streams, &ids).await;
    begun_all(&mut streams).await;
    other.stop().await;
}

#[tokio::test]
async fn event_streams_count_toward_the_connection_limit() {
    let office = Office::with(|config| config.server.connections_max = 3).await;
    let phone = office.phone("phone").await;
    // The clients of tests keep their connections, which are among the three.
    let address = phone.address().to_owned();
    let health = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (request, world) = (get(&phone), office.world);
    drop((phone, office.bob, office.anybody));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect(&address, &request).await;
        raw.event("hello").await;
        streams.push(raw);
    }
    let waiting = Raw::connect(&address, health).await;
    let answer = tokio::time::timeout(Duration::from_millis(300), waiting.stream.readable()).await;
    assert!(answer.is_err(), "a fourth connection is served");
    drop(streams.pop());
    assert!(waiting.end().await.ends_with("OK"));
    office.engine.stop().await;
    drop(world);
}
