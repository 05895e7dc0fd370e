//! Live events over WebSockets, and the items that clients send.

use std::time::Duration;

use hyper::header::HeaderMap;
use posduif::accounts::users::UserType;
use posduif::config::ConflictStrategy;
use posduif::engine::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::support::http::{Answer, Api, Event};
use crate::support::office::{Office, id};
use crate::support::socket::Socket;
use crate::support::{TIMEOUT, eventually};

const MOBILE: &str = "/sse/mobile/phone";

/// The message that an event is about.
#[track_caller]
fn about(event: &Event) -> String {
    event.data["message_id"].as_str().unwrap().to_owned()
}

/// The next `count` events of this name and the messages that they are about.
async fn messages(socket: &mut Socket, name: &str, count: usize) -> Vec<String> {
    let mut received = Vec::new();
    for _ in 0..count {
        received.push(about(&socket.expect(name).await));
    }
    received
}

/// What became of an item, and why.
fn outcome(result: &Value) -> (&str, &str) {
    (
        result["status"].as_str().unwrap(),
        result["code"].as_str().unwrap_or_default(),
    )
}

#[tokio::test]
async fn websocket_and_event_stream_deliver_the_same_events_and_ids() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let web = format!("/sse/web/{}", office.bob_id);
    // An event of the added device.
    office.world.published().await;
    let (mut stream, mut socket) = (phone.events(MOBILE).await, phone.socket("/ws").await);
    let (mut page_stream, mut page_socket) = (office.bob.events(&web).await, office.bob.socket("/ws").await);
    let message = office.send("hi").await;
    let path = format!("/api/messages/{message}");
    phone.put(&format!("{path}/read"), &json!({})).await.expect(200);
    office.bob.delete(&path).await;
    for name in ["message", "message_read", "message_deleted"] {
        let event = socket.next().await.unwrap();
        assert_eq!(event.name, name);
        assert!(event.id.is_some());
        assert_eq!(event, stream.next().await.unwrap());
    }
    for name in ["message_updated", "message_read", "message_deleted"] {
        let event = page_socket.next().await.unwrap();
        assert_eq!(event.name, name);
        assert_eq!(event, page_stream.next().await.unwrap());
    }
    // A mobile user who has logged in receives events like a web user.
    let mut joes = office.anybody.log_in("acme", "joe").await.socket("/ws").await;
    let message = office.send("hi").await;
    let event = joes.next().await.unwrap();
    assert_eq!(
        (event.name.as_str(), event.data),
        (
            "new_message",
            json!({"type": "new_message", "message_id": message, "unread_count": 1})
        )
    );
    office.close().await;
}

#[tokio::test]
async fn event_id_of_one_transport_resumes_the_other_across_a_restart() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut received = Vec::new();
    let mut sent = vec![office.send("before").await];
    // Both begin behind it.
    office.world.published().await;
    let mut stream = phone.events(MOBILE).await;
    let mut socket = phone.socket("/ws").await;
    // Acknowledged events are not delivered again.
    let (_, cursor) = phone.sync(None).await;
    assert_eq!(
        outcome(&socket.ask(&json!({"type": "ack", "cursor": cursor})).await).0,
        "applied"
    );
    sent.clear();
    sent.push(office.send("live").await);
    let event = stream.expect("message").await;
    received.push(about(&event));
    let mut last = event.id.unwrap();
    let first = last.clone();

    let Office {
        mut engine,
        world,
        bob_id,
        joe_id,
        ..
    } = office;
    let psql = world.psql().await;
    for round in 0..4 {
        let (_, (rest, code)) = tokio::join!(engine.stop(), socket.rest());
        let bye = rest.last().unwrap();
        assert_eq!((bye.name.as_str(), &bye.id), ("bye", &None));
        assert!(bye.data["reconnect_ms"].as_u64().unwrap() > 0);
        assert_eq!(code, 1012);
        let insert = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
                      SELECT $1, $2, 'meanwhile ' || n FROM generate_series(1, 3) n RETURNING id";
        let rows = psql.query(insert, &[&bob_id, &joe_id]).await.unwrap();
        sent.extend(rows.iter().map(|row| row.get::<_, Uuid>(0).to_string()));
        engine = world.engine(Role::All).await;
        world.published().await;
        let phone = phone.at(&engine.api());
        // One goes on where the other ended, one message at a time.
        if round % 2 == 0 {
            socket = phone.socket(&format!("/ws?last_event_id={last}")).await;
            assert_eq!(socket.cursor, last);
            let event = socket.expect("message").await;
            received.push(about(&event));
            last = event.id.unwrap();
            let mut stream = phone.with("last-event-id", &last).events(MOBILE).await;
            for _ in 0..2 {
                let event = stream.expect("message").await;
                received.push(about(&event));
                last = event.id.unwrap();
            }
        } else {
            let mut stream = phone.with("last-event-id", &last).events(MOBILE).await;
            let event = stream.expect("message").await;
            received.push(about(&event));
            last = event.id.unwrap();
            socket = phone.socket("/ws").await;
            socket.outln(&json!({"resume": last})).await;
            let hello = socket.expect("hello").await;
            assert_eq!(hello.data["cursor"], json!(last));
            for _ in 0..2 {
                let event = socket.expect("message").await;
                received.push(about(&event));
                last = event.id.unwrap();
            }
        }
    }
    assert_eq!(received, sent);
    // Events acknowledged meanwhile are not delivered again by either transport, however old the id.
    let phone = phone.at(&engine.api());
    let (_, cursor) = phone.sync(None).await;
    assert_eq!(
        outcome(&socket.ask(&json!({"type": "ack", "cursor": cursor})).await).0,
        "applied"
    );
    let mut socket = phone.socket(&format!("/ws?last_event_id={first}")).await;
    let mut stream = phone.with("last-event-id", &first).events(MOBILE).await;
    let insert =
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'last') RETURNING id";
    let live: Uuid = psql.query_one(insert, &[&bob_id, &joe_id]).await.unwrap().get(0);
    assert_eq!(about(&socket.expect("message").await), live.to_string());
    assert_eq!(about(&stream.expect("message").await), live.to_string());
    engine.stop().await;
}

#[tokio::test]
async fn websocket_invalid_or_unauthorized_handshake_is_refused_with_reason() {
    let office = Office::with(|config| config.server.cors_origins = vec!["https://app.example.com".into()]).await;
    let phone = office.phone("phone").await;
    let plain = office.bob.get("/ws").await;
    assert_eq!(plain.headers["upgrade"], "websocket");
    assert_eq!(plain.headers["sec-websocket-version"], "13");
    assert_refused(&plain, 426, "UPGRADE_REQUIRED");
    let head = office.bob.send(hyper::Method::HEAD, "/ws", None, "").await;
    assert_eq!(head.status, 426);
    for (api, path, status, code) in [
        (&office.anybody, "/ws", 401, "UNAUTHORIZED"),
        (&office.anybody, "/ws?ticket=nonsense", 401, "UNAUTHORIZED"),
        (&phone, "/ws?last_event_id=nonsense", 400, "INVALID_CURSOR"),
        (&phone.with("origin", "https://evil.example"), "/ws", 403, "FORBIDDEN"),
        (&phone.with("origin", "null"), "/ws", 403, "FORBIDDEN"),
    ] {
        assert_refused(&api.try_socket(path).await.unwrap_err(), status, code);
    }
    let own = format!("http://{}", office.anybody.address());
    for origin in ["https://app.example.com", &own] {
        phone.with("origin", origin).socket("/ws").await;
    }
    let upgrade = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (name, bad, status) in [
        ("connection", "close", 426),
        ("upgrade", "h2c", 426),
        ("sec-websocket-version", "8", 426),
        ("sec-websocket-key", "short", 400),
        ("sec-websocket-key", "", 400),
    ] {
        let mut request = format!(
            "GET /ws HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n",
            office.bob.header("authorization")
        );
        for (known, good) in upgrade {
            let value = if known == name { bad } else { good };
            request += &format!("{known}: {value}\r\n");
        }
        let answer = exchange(&office.anybody, &format!("{request}\r\n")).await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {bad}");
    }
    // An ended session has nothing to come back for.
    let gone = office.anybody.log_in("acme", "bob").await;
    assert_eq!(gone.post("/api/auth/logout", &json!({})).await.status, 204);
    assert_refused(&gone.try_socket("/ws").await.unwrap_err(), 401, "SESSION_ENDED");
    office.close().await;
}

/// Sends bytes over a connection of its own and reads the head of the answer.
async fn exchange(api: &Api, request: &str) -> Answer {
    let mut stream = TcpStream::connect(api.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = tokio::time::timeout(TIMEOUT, stream.read_buf(&mut bytes))
            .await
            .unwrap();
        assert!(read.unwrap() > 0, "the connection ended");
    }
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    Answer::new(status, HeaderMap::new(), "")
}

#[tokio::test]
async fn ticket_opens_a_websocket_once() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    for (api, name) in [(&office.bob, "message_updated"), (&phone, "message")] {
        let answer = api.post("/api/sse/ticket", &json!({"stream": "/ws"})).await.expect(201);
        let path = format!("/ws?ticket={}", answer["ticket"].as_str().unwrap());
        let mut socket = office.anybody.socket(&path).await;
        assert_refused(
            &office.anybody.try_socket(&path).await.unwrap_err(),
            401,
            "UNAUTHORIZED",
        );
        let message = office.send("hi").await;
        assert_eq!(about(&socket.expect(name).await), message);
    }
    office.close().await;
}

#[tokio::test]
async fn websocket_user_creates_reads_edits_and_deletes() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let jane = office.world.user("acme", "jane", UserType::Web).await;
    let mut page = office.bob.socket("/ws").await;
    let mut events = phone.events(MOBILE).await;
    let write = json!({"id": "c1", "type": "message", "recipient_id": office.joe_id, "content": "hi"});
    let written = page.ask(&write).await;
    assert_eq!((&written["id"], outcome(&written)), (&json!("c1"), ("applied", "")));
    let message = id(&written["server"]);
    assert_eq!(written["server"], office.message(&message).await);
    assert_eq!(about(&events.expect("message").await), message);

    let edit = json!({"id": 7, "type": "message", "op": "edit", "message_id": message, "content": "better"});
    let edited = page.ask(&edit).await;
    assert_eq!((&edited["id"], &edited["version"]), (&json!(7), &json!(2)));
    let reply = Uuid::new_v4();
    phone
        .upload(&[json!({"id": reply, "recipient_id": office.bob_id, "content": "reply"})])
        .await;
    let read = page.ask(&json!({"id": "r", "type": "read", "message_id": reply})).await;
    assert!(read["server"]["read_at"].is_string(), "{read}");
    let delete = json!({"id": "d", "type": "message", "op": "delete", "message_id": message});
    assert_eq!(outcome(&page.ask(&delete).await), ("applied", ""));

    let others = Uuid::new_v4();
    for (item, code) in [
        (delete, "NOT_FOUND"),
        (
            json!({"type": "message", "recipient_id": office.joe_id, "content": " "}),
            "EMPTY_MESSAGE",
        ),
        (
            json!({"type": "message", "recipient_id": office.joe_id}),
            "EMPTY_MESSAGE",
        ),
        (
            json!({"type": "message", "recipient_id": others, "content": "hi"}),
            "INVALID_RECIPIENT",
        ),
        (
            json!({"type": "message", "recipient_id": jane, "content": "hi"}),
            "FORBIDDEN",
        ),
        (
            json!({"type": "message", "recipient_id": "joe", "content": "hi"}),
            "VALIDATION_ERROR",
        ),
        (
            json!({"type": "message", "recipient_id": office.joe_id, "content": 1}),
            "VALIDATION_ERROR",
        ),
        (
            json!({"type": "message", "op": "drop", "message_id": others}),
            "VALIDATION_ERROR",
        ),
        (
            json!({"type": "message", "op": "edit", "message_id": reply, "content": "hi"}),
            "FORBIDDEN",
        ),
        (json!({"type": "read", "message_id": others}), "NOT_FOUND"),
        (json!({"type": "read"}), "VALIDATION_ERROR"),
        (json!({"type": "ack", "cursor": page.cursor}), "FORBIDDEN"),
        (json!({"type": "change", "table": "tasks"}), "FORBIDDEN"),
        (json!({"type": "nonsense"}), "VALIDATION_ERROR"),
        (json!({}), "VALIDATION_ERROR"),
    ] {
        let result = page.ask(&item).await;
        assert_eq!(outcome(&result), ("rejected", code), "{item}: {result}");
        assert!(!result["message"].as_str().unwrap().is_empty());
    }
    // Mobile users write by their devices, as over HTTP.
    let mut joes = office.anybody.log_in("acme", "joe").await.socket("/ws").await;
    let write = json!({"type": "message", "recipient_id": office.bob_id, "content": "hi"});
    assert_eq!(outcome(&joes.ask(&write).await), ("rejected", "FORBIDDEN"));
    office.close().await;
}

#[tokio::test]
async fn websocket_device_upload_equals_http_upload() {
    let office = Office::with(|config| {
        config.sync.conflict_strategy = ConflictStrategy::Manual;
        config.routes = serde_json::from_value(json!([{
            "table": "tasks", "to": ["owner_id"], "event": "task",
            "upload": {"owner": "owner_id", "columns": ["title"]},
        }]))
        .unwrap();
    })
    .await;
    office
        .sql(
            "CREATE TABLE tenant_acme.tasks (id uuid PRIMARY KEY, owner_id uuid NOT NULL, title text NOT NULL,
             version bigint NOT NULL DEFAULT 1)",
        )
        .await;
    let phone = office.phone("phone").await;
    let mut page = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let mut socket = phone.socket("/ws").await;
    let message = Uuid::new_v4();
    let create = json!({"type": "message", "id": message, "recipient_id": office.bob_id, "content": "from the phone"});
    let created = socket.ask(&create).await;
    assert_eq!((&created["id"], outcome(&created)), (&json!(message), ("applied", "")));
    assert_eq!(about(&page.expect("new_message").await), message.to_string());
    // Its answer was lost, say.
    assert_eq!(outcome(&socket.ask(&create).await).0, "duplicate");
    // As an upload by HTTP would be.
    assert_eq!(
        phone.upload(std::slice::from_ref(&create)).await["results"][0]["status"],
        "duplicate"
    );
    let edit = |content: &str, base: i64| json!({"type": "message", "op": "edit", "id": message, "content": content, "base_version": base});
    let edited = socket.ask(&edit("second", 1)).await;
    assert_eq!((outcome(&edited).0, &edited["version"]), ("applied", &json!(2)));
    let contested = socket.ask(&edit("third", 1)).await;
    assert_eq!(outcome(&contested), ("conflict", "CONFLICT"));
    assert_eq!(contested["server"]["content"], "second");

    // A list: one result each, in order, whatever the others become.
    let from_bob = office.send("for joe").await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let task = Uuid::new_v4();
    let list = json!([
        {"type": "read", "message_id": from_bob},
        {"type": "change", "table": "tasks", "id": task, "row": {"title": "by the socket"}},
        {"type": "message", "id": "no uuid", "content": "hi"},
        {"id": "a", "type": "ack", "cursor": cursor, "pending_count": 7},
        {"id": "b", "type": "read", "message_id": Uuid::new_v4()},
        {"id": "c", "type": "read"},
        {"id": "d", "type": "ack", "cursor": "nonsense"},
        {"id": "e", "type": "presents"},
        {"type": "change", "table": "tasks", "id": task, "op": "edit", "row": {"title": "again"}, "base_version": 1},
        7,
    ]);
    socket.outln(&list).await;
    for (id, status, code) in [
        (json!(from_bob), "applied", ""),
        (json!(task), "applied", ""),
        (json!("no uuid"), "rejected", "VALIDATION_ERROR"),
        (json!("a"), "applied", ""),
        (json!("b"), "rejected", "NOT_FOUND"),
        (json!("c"), "rejected", "VALIDATION_ERROR"),
        (json!("d"), "rejected", "INVALID_CURSOR"),
        (json!("e"), "rejected", "VALIDATION_ERROR"),
        (json!(task), "applied", ""),
        (Value::Null, "rejected", "VALIDATION_ERROR"),
    ] {
        let result = socket.result().await;
        assert_eq!((&result["id"], outcome(&result)), (&id, (status, code)), "{result}");
    }
    assert_eq!(office.message(&from_bob).await["status"], "read");
    let status = phone.get("/api/sync/status").await.expect(200);
    assert!(status["last_sync_timestamp"].is_string(), "{status}");
    assert_eq!(status["pending_outgoing_count"], 7);
    office.close().await;
}

#[tokio::test]
async fn websocket_pipelined_items_apply_in_frame_order() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut socket = phone.socket("/ws").await;
    let message = Uuid::new_v4();
    socket
        .outln(&json!({"type": "message", "id": message, "recipient_id": office.bob_id, "content": "0"}))
        .await;
    for n in 1..100 {
        let edit = json!({"type": "message", "op": "edit", "id": message, "content": n.to_string(), "base_version": n});
        socket.outln(&edit).await;
    }
    for n in 0..100 {
        let result = socket.result().await;
        assert_eq!((outcome(&result), &result["version"]), (("applied", ""), &json!(n + 1)));
    }
    assert_eq!(office.message(&message.to_string()).await["content"], "99");
    office.close().await;
}

#[tokio::test]
async fn websocket_items_out_of_sequence_come_again_by_the_expected_number() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut socket = phone.socket("/ws").await;
    let item = |seq: u64, content: &str| {
        json!({"type": "item", "seq": seq, "table": "messages", "op": "create", "id": Uuid::new_v4(),
               "row": {"recipient_id": office.bob_id, "content": content}})
    };
    let gap = [item(3, "third"), item(4, "fourth")];
    socket.outln(&json!(gap)).await;
    for _ in &gap {
        let result = socket.result().await;
        assert_eq!(
            (outcome(&result), &result["expected"]),
            (("retry", "SEQUENCE_GAP"), &json!(1))
        );
    }
    let first = item(1, "first");
    socket.outln(&first).await;
    assert_eq!(outcome(&socket.result().await), ("applied", ""));
    // Another item under a number that was used, as a device sends that was restored.
    socket.outln(&item(1, "another")).await;
    let result = socket.result().await;
    assert_eq!(
        (outcome(&result), &result["expected"]),
        (("retry", "DEVICE_RESTORED"), &json!(2))
    );
    office.close().await;
}

#[tokio::test]
async fn websocket_item_has_one_result_however_it_is_repeated() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut socket = phone.socket("/ws").await;
    let item = json!({"seq": 1, "table": "messages", "op": "create", "id": Uuid::new_v4(),
                      "row": {"recipient_id": office.bob_id, "content": "once"}});
    let in_frame = |acked_seq: Value, pending: Value| {
        let mut item = item.clone();
        item["type"] = "item".into();
        item["acked_seq"] = acked_seq;
        item["pending_count"] = pending;
        item
    };
    socket.outln(&in_frame(json!(0), json!(2))).await;
    let first = socket.result().await;
    assert_eq!(outcome(&first), ("applied", ""));
    socket.outln(&in_frame(Value::Null, json!(1))).await;
    assert_eq!(socket.result().await["version"], first["version"]);
    let upload = json!({"items": [item], "acked_seq": 0});
    let repeated = phone.post("/api/sync/outgoing", &upload).await.expect(200);
    assert_eq!(
        (&repeated["results"][0]["status"], &repeated["results"][0]["version"]),
        (&json!("applied"), &first["version"])
    );
    office.close().await;
}

#[tokio::test]
async fn websocket_resumes_after_the_clients_cursor() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let begun = phone.events(MOBILE).await.cursor;
    let sent = office.insert(3).await;
    office.world.published().await;
    let other = office.phone("other").await.socket("/ws").await.cursor;
    let mut socket = phone.socket("/ws").await;
    for bad in [json!("nonsense"), json!(other)] {
        socket.outln(&json!({"resume": bad})).await;
        assert_eq!(outcome(&socket.result().await), ("rejected", "INVALID_CURSOR"));
    }
    socket.outln(&json!({"resume": 7})).await;
    assert_eq!(outcome(&socket.result().await), ("rejected", "VALIDATION_ERROR"));
    for _ in 0..2 {
        socket.outln(&json!({"resume": begun})).await;
        assert_eq!(socket.expect("hello").await.data["cursor"], json!(begun));
        assert_eq!(messages(&mut socket, "message", 3).await, sent);
    }
    let live = office.send("live").await;
    assert_eq!(messages(&mut socket, "message", 1).await, [live]);
    office.close().await;
}

#[tokio::test]
async fn websocket_garbage_gets_an_error_or_closes_its_own_socket_only() {
    let office = Office::with(|config| {
        config.websocket.message_bytes_max = 4096;
        config.websocket.items_max = 3;
    })
    .await;
    let phone = office.phone("phone").await;
    let mut socket = phone.socket("/ws").await;
    let deep = "[".repeat(4000);
    for text in [
        "",
        "{",
        "nonsense",
        "null",
        "7",
        "\"text\"",
        "[]",
        "{\"a\": 1} x",
        "{\"a\": 1e999}",
        "\u{feff}{}",
        &deep,
    ] {
        socket.send(Message::text(text)).await;
        let result = socket.result().await;
        assert_eq!(
            (&result["id"], outcome(&result)),
            (&Value::Null, ("rejected", "VALIDATION_ERROR")),
            "{text}"
        );
    }
    socket.outln(&json!([{}, {}, {}, {}])).await;
    assert_eq!(outcome(&socket.result().await), ("rejected", "VALIDATION_ERROR"));
    socket.send(Message::binary(b"{\"type\": \"ack\"}".to_vec())).await;
    assert_eq!(outcome(&socket.result().await), ("rejected", "VALIDATION_ERROR"));
    // An item in three frames, with another's ping in between.
    let text = json!({"id": "ä".repeat(500), "type": "nonsense"}).to_string();
    let (first, second) = text.as_bytes().split_at(200);
    let (second, third) = second.split_at(200);
    let part =
        |bytes: &[u8], code, is_last| Message::Frame(Frame::message(bytes.to_vec(), OpCode::Data(code), is_last));
    socket.send(part(first, Data::Text, false)).await;
    socket.send(part(second, Data::Continue, false)).await;
    socket.send(Message::Ping(b"in between".to_vec().into())).await;
    socket.send(part(third, Data::Continue, true)).await;
    assert_eq!(socket.result().await["id"], json!("ä".repeat(128)));
    let pong = json!({"type": "ping", "id": "there?"});
    socket.outln(&pong).await;
    assert_eq!(
        socket.expect("pong").await.data,
        json!({"type": "pong", "id": "there?"})
    );

    let message = office.send("still there").await;
    assert_eq!(about(&socket.expect("message").await), message);
    let large = "x".repeat(5000);
    for (what, bytes, code) in [
        ("a reserved bit", vec![0xC1, 0x80, 0, 0, 0, 0], 1002),
        ("an unknown kind", vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        ("no mask", vec![0x81, 0x02, b'{', b'}'], 1002),
        ("a fragmented ping", vec![0x09, 0x80, 0, 0, 0, 0], 1002),
        (
            "a large ping",
            [vec![0x89, 0xFE, 0x01, 0x00, 0, 0, 0, 0], vec![0; 256]].concat(),
            1002,
        ),
        ("nothing to continue", vec![0x80, 0x80, 0, 0, 0, 0], 1002),
        ("no UTF-8", vec![0x81, 0x82, 0, 0, 0, 0, 0xFF, 0xFE], 1007),
        (
            "a huge length",
            vec![0x81, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0],
            1009,
        ),
        (
            "a negative length",
            vec![0x81, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0],
            1009,
        ),
        (
            "too large a message",
            [&[0x81, 0xFE, 0x13, 0x88, 0, 0, 0, 0][..], large.as_bytes()].concat(),
            1009,
        ),
    ] {
        let mut bad = phone.socket("/ws").await;
        bad.raw().write_all(&bytes).await.unwrap();
        let (_, closed) = bad.rest().await;
        assert_eq!(closed, code, "{what}: {:?}", bad.closed);
    }
    // In many small frames.
    let mut bad = phone.socket("/ws").await;
    bad.send(part(&[b'x'; 1000], Data::Text, false)).await;
    for _ in 0..5 {
        bad.send(part(&[b'x'; 1000], Data::Continue, false)).await;
    }
    assert_eq!(bad.rest().await.1, 1009);
    // Cut in the middle of a frame, and without a word.
    let mut cut = phone.socket("/ws").await;
    cut.raw().write_all(&[0x81, 0xFE, 0x10]).await.unwrap();
    drop(cut);

    let message = office.send("still there").await;
    assert_eq!(about(&socket.expect("message").await), message);
    office.close().await;
}

#[tokio::test]
async fn websocket_without_pong_is_closed_and_with_pong_stays() {
    let office = Office::with(|config| config.live.heartbeat_seconds = 1).await;
    let phone = office.phone("phone").await;
    let mut there = phone.socket("/ws").await;
    let mut away = phone.socket("/ws?presence=false").await;
    // Bytes are read, and nothing is answered.
    let mut bytes = Vec::new();
    let read = away.raw().read_to_end(&mut bytes);
    let answering = async {
        loop {
            there.next().await;
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(TIMEOUT, read) => {
            ended.expect("it is closed").unwrap();
        }
        () = answering => {}
    }
    assert!(bytes.starts_with(&[0x89, 0x00]), "a ping: {bytes:?}");
    let [0x88, length, high, low, reason @ ..] = &bytes[bytes.len() - 22..] else {
        panic!("no closing frame: {bytes:?}")
    };
    assert_eq!(
        (usize::from(*length), u16::from_be_bytes([*high, *low])),
        (reason.len() + 2, 1011)
    );
    let message = office.send("hi").await;
    assert_eq!(about(&there.expect("message").await), message);
    office.close().await;
}

#[tokio::test]
async fn websocket_of_a_revoked_client_is_notified_and_closed() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let other = office.phone("other").await;
    let bob = office.anybody.log_in("acme", "bob").await;
    let mut of_phone = phone.socket("/ws").await;
    let mut of_other = other.socket("/ws").await;
    let mut of_bob = bob.socket("/ws").await;
    assert_eq!(office.bob.delete("/api/devices/phone").await.status, 204);
    assert_eq!(bob.post("/api/auth/logout", &json!({})).await.status, 204);
    for socket in [&mut of_phone, &mut of_bob] {
        let (rest, code) = socket.rest().await;
        let last = rest.last().unwrap();
        assert_eq!((last.name.as_str(), &last.id, code), ("revoked", &None, 4401));
    }
    for (api, code) in [(&phone, "DEVICE_REVOKED"), (&bob, "SESSION_ENDED")] {
        assert_refused(&api.try_socket("/ws").await.unwrap_err(), 401, code);
    }
    let message = office.send("still there?").await;
    assert_eq!(about(&of_other.expect("message").await), message);
    office
        .sql("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'joe'")
        .await;
    assert_eq!(of_other.rest().await.1, 4401);
    office.close().await;
}

#[tokio::test]
async fn websocket_close_is_acknowledged_and_leaves_no_subscription() {
    let office = Office::open().await;
    let subscribers = || async {
        let metrics = office.anybody.admin().get("/metrics").await;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let line = text.lines().find(|line| line.starts_with("posduif_subscribers "));
        line.unwrap().split(' ').nth(1).unwrap().parse::<f64>().unwrap()
    };
    let mut polite = office.bob.socket("/ws").await;
    let rude = office.bob.socket("/ws").await;
    assert_eq!(subscribers().await, 2.0);
    polite.send(Message::Close(None)).await;
    polite.rest().await;
    drop(rude);
    eventually("nobody is left", || async {
        (subscribers().await == 0.0).then_some(())
    })
    .await;
    office.close().await;
}

/// More of them than fit the buffers between a server and a client that does not read, and all that may wait here.
const NOTES: usize = 150;

#[tokio::test]
async fn slow_websocket_is_closed_and_resumes_without_loss() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    // Its user gets an event of the new phone.
    office.world.published().await;
    let mut slow = phone.narrow_socket("/ws", 4096).await;
    for n in 0..NOTES {
        let note = json!({"n": n, "padding": "x".repeat(60_000)});
        office.world.emit("note", &json!([office.joe_id]), &note).await;
    }
    office.world.published().await;
    // The engine waits for it for 20 s; what has come until then is read afterwards.
    let cut = eventually_cut(&office).await;
    assert!(cut, "a slow client was not cut");
    let (mut received, code) = slow.rest().await;
    assert_eq!(code, 1006);
    assert!(received.len() < NOTES, "nothing was too much");
    let last = received
        .last()
        .and_then(|event| event.id.clone())
        .unwrap_or(slow.cursor.clone());
    let mut resumed = phone.socket(&format!("/ws?last_event_id={last}")).await;
    while received.len() < NOTES {
        received.push(resumed.expect("note").await);
    }
    let numbers: Vec<u64> = received
        .iter()
        .map(|event| event.data["data"]["n"].as_u64().unwrap_or_else(|| panic!("{event:?}")))
        .collect();
    assert_eq!(numbers, (0..NOTES as u64).collect::<Vec<_>>());
    office.close().await;
}

/// Waits, longer than for other things, until nobody is connected any more.
async fn eventually_cut(office: &Office) -> bool {
    let is_cut = async {
        loop {
            let metrics = office.anybody.admin().get("/metrics").await;
            if String::from_utf8_lossy(&metrics.body).contains("posduif_subscribers 0") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * TIMEOUT, is_cut).await.is_ok()
}
