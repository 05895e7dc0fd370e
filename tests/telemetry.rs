//! Log lines, and traces for OpenTelemetry.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use posduif::accounts::users::UserType;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::http::Api;
use crate::support::{Process, World, eventually};

/// A folder of a test's own, for its log and its settings.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("posduif-telemetry-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The log's lines, each an object.
    fn lines(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.log()).unwrap();
        let whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    /// Waits for a line that fits.
    async fn line(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || async { self.lines().into_iter().find(|line| fits(line)) }).await
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An engine in a process of its own with a JSON log, further settings, and people of the tenant acme.
async fn engine(folder: &Folder, settings: &[(&str, &str)]) -> (World, Process) {
    engine_with_file(folder, settings, None).await
}

async fn engine_with_file(folder: &Folder, settings: &[(&str, &str)], file: Option<&Path>) -> (World, Process) {
    let mut world = World::new().await;
    world.config.replication.heartbeat_interval_ms = 100;
    let mut all = vec![("POSDUIF__LOG__FORMAT", "json")];
    all.extend(settings);
    let log = folder.log();
    let process = world.process_under("all", &world.config, Some(&log), &all, file).await;
    world.tenant("acme").await;
    for (name, user_type) in [("bob", UserType::Web), ("joe", UserType::Mobile)] {
        world.user("acme", name, user_type).await;
    }
    world.published().await;
    (world, process)
}

/// Joe's id, as bob reads it.
async fn joes_id(bob: &Api) -> String {
    let users = bob.get("/api/users").await.json();
    let mut users = users["users"].as_array().unwrap().iter();
    let joe = users.find(|user| user["username"] == "joe");
    joe.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn phone(bob: &Api, joe: &str) -> Api {
    let (phone, _) = bob.enroll("phone-1", Some(joe)).await;
    phone
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_log_line_has_caller_and_sync_counts_without_secrets() {
    let folder = Folder::new();
    let (world, process) = engine(&folder, &[("POSDUIF__LOG__LEVEL", "trace")]).await;
    let bob = process.api().log_in("acme", "bob").await;
    let joe = joes_id(&bob).await;
    let phone = phone(&bob, &joe).await;
    let message = json!({"recipient_id": joe, "content": "the content of a message"});
    bob.with("x-request-id", "my-request")
        .post("/api/messages", &message)
        .await
        .expect(201);
    world.published().await;
    phone
        .with("x-request-id", "my-sync")
        .get("/api/sync/incoming")
        .await
        .expect(200);
    let upload = json!({"messages": [{"id": "no id"}]});
    phone
        .with("x-request-id", "my-upload")
        .post("/api/sync/outgoing", &upload)
        .await
        .expect(200);

    let of = |id: &'static str, message: &'static str| {
        move |line: &Value| (line["request_id"] == id || line["span"]["request_id"] == id) && line["message"] == message
    };
    let line = folder.line("the request's line", of("my-request", "request")).await;
    assert_eq!(line["level"], "INFO");
    assert_eq!(
        (&line["method"], &line["path"], &line["status"]),
        (&json!("POST"), &json!("/api/messages"), &json!(201))
    );
    assert_eq!(line["tenant"], "acme");
    assert!(line["user"].is_string() && line["ms"].as_f64().unwrap() > 0.0 && line["bytes"].as_u64().unwrap() > 100);
    let line = folder.line("the sync's request", of("my-sync", "request")).await;
    assert_eq!((&line["device"], &line["user"]), (&json!("phone-1"), &json!(joe)));
    let line = folder.line("the sync", of("my-sync", "incoming sync")).await;
    assert_eq!((&line["source"], &line["reset"]), (&json!("snapshot"), &json!(true)));
    assert!(line["rows"].as_u64().unwrap() >= 1 && line["ms"].is_u64());
    let line = folder.line("the upload", of("my-upload", "outgoing sync")).await;
    assert_eq!(
        (&line["items"], &line["rejected"], &line["applied"]),
        (&json!(1), &json!(1), &json!(0))
    );
    for id in ["my-request", "my-sync", "my-upload"] {
        let lines = folder.lines();
        assert_eq!(lines.iter().filter(|line| of(id, "request")(line)).count(), 1);
    }

    let log = std::fs::read_to_string(folder.log()).unwrap();
    let token = |api: &Api| api.header("authorization").trim_start_matches("Bearer ").to_owned();
    let secrets = [
        token(&bob),
        token(&phone),
        crate::support::PASSWORD.to_owned(),
        world.config.auth.jwt_secret.expose().to_owned(),
        "the content of a message".to_owned(),
    ];
    for secret in &secrets {
        assert!(!log.contains(secret), "{secret} is in the log, even at the level trace");
    }
    let password = world
        .config
        .postgres
        .url
        .expose()
        .split([':', '@'])
        .nth(2)
        .unwrap()
        .to_owned();
    assert!(!log.contains(&password), "the database's password is in the log");
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_level_is_reloaded_at_sighup_and_kept_on_error() {
    let folder = Folder::new();
    let file = folder.0.join("config.yaml");
    let level = |level: &str| std::fs::write(&file, format!("log: {{level: \"{level}\"}}\n")).unwrap();
    level("info");
    let (_world, process) = engine_with_file(&folder, &[], Some(&file)).await;
    let probe = |id: &'static str| {
        let api = process.api().with("x-request-id", id);
        async move { assert_eq!(api.get("/health").await.status, 200) }
    };
    let said = |id: &str| folder.lines().iter().any(|line| line["request_id"] == id);

    probe("before").await;
    level("debug");
    process.signal(Signal::SIGHUP);
    let is_change = |line: &Value| line["message"] == "log level reloaded" && line["log_level"] == "debug";
    folder.line("the change", is_change).await;
    probe("after").await;
    folder
        .line("a line at debug", |line| line["request_id"] == "after")
        .await;
    assert!(!said("before"), "probes are lines at debug only");

    level("=,,=");
    process.signal(Signal::SIGHUP);
    let line = folder
        .line("the refusal", |line| line["message"] == "cannot reload the log level")
        .await;
    assert!(
        line["cause"].as_str().unwrap().contains("key `log.level` is \"=,,=\""),
        "{line}"
    );
    probe("still").await;
    folder
        .line("still at debug", |line| line["request_id"] == "still")
        .await;
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_log_has_all_causes_and_backtrace_when_enabled() {
    for (asked, folder) in [("0", Folder::new()), ("1", Folder::new())] {
        let (world, process) = engine(&folder, &[("RUST_BACKTRACE", asked)]).await;
        let bob = process.api().log_in("acme", "bob").await;
        // A mistake that Postgres finds, as if the schema were another version's.
        let psql = world.psql().await;
        psql.batch_execute("ALTER TABLE tenant_acme.users RENAME COLUMN username TO nickname")
            .await
            .unwrap();
        bob.with("x-request-id", "broken")
            .undescribed()
            .get("/api/users")
            .await
            .expect(500);
        let fits = |line: &Value| line["request_id"] == "broken" && line["message"] == "request";
        let line = folder.line("the error", fits).await;
        assert_eq!(
            (&line["level"], &line["code"]),
            (&json!("ERROR"), &json!("INTERNAL_ERROR"))
        );
        let cause = line["cause"].as_str().unwrap();
        assert!(
            cause.contains("Postgres refused a statement: ") && cause.contains("username"),
            "{cause}"
        );
        assert!(cause.contains("42703"), "{cause}");
        match asked {
            "0" => assert_eq!(line["backtrace"], Value::Null),
            _ => assert!(line["backtrace"].as_str().unwrap().contains("posduif::"), "{line}"),
        }
        process.kill().await;
    }
}

/// A collector of traces.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Listens, and gives its address.
    async fn listen() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let taking = collector.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let collector = taking.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    let (head, body) = loop {
                        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                            return;
                        }
                        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                            continue;
                        };
                        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
                        let length = head
                            .lines()
                            .find_map(|line| line.strip_prefix("content-length: "))
                            .unwrap();
                        let length: usize = length.parse().unwrap();
                        if bytes.len() >= end + 4 + length {
                            break (head, bytes[end + 4..].to_vec());
                        }
                    };
                    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
                    let resources = request
                        .resource_spans
                        .into_iter()
                        .flat_map(|resource| resource.scope_spans);
                    collector
                        .spans
                        .lock()
                        .unwrap()
                        .extend(resources.flat_map(|scope| scope.spans));
                    collector.heads.lock().unwrap().push(head);
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        (collector, endpoint)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found
        .and_then(|attribute| attribute.value.clone())
        .and_then(|value| value.value)
    {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{key} is {other:?} in {span:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_is_one_trace_from_commit_to_readers_across_processes() {
    let (collector, endpoint) = Collector::listen().await;
    let folders = [Folder::new(), Folder::new()];
    let settings = [
        ("POSDUIF__TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()),
        ("POSDUIF__TELEMETRY__OTLP_HEADERS", "x-key=hush"),
        ("POSDUIF__TELEMETRY__SAMPLE_RATIO", "1"),
        ("POSDUIF__TELEMETRY__EXPORT_INTERVAL_MS", "100"),
    ];
    let (world, process) = engine(&folders[0], &settings).await;
    // Another process delivers.
    let mut of_node = vec![
        ("POSDUIF__LOG__FORMAT", "json"),
        // Of others a `traceparent` is ignored.
        ("POSDUIF__SERVER__TRUSTED_PROXIES", "[127.0.0.1]"),
    ];
    of_node.extend(settings);
    let log = folders[1].log();
    let node = world
        .process_under("api", &world.config, Some(&log), &of_node, None)
        .await;
    let bob = node.api().log_in("acme", "bob").await;
    let joe = joes_id(&bob).await;
    let phone = phone(&bob, &joe).await;
    let batch = phone.get("/api/sync/incoming").await.json();
    let mut events = phone.events("/sse/mobile/phone-1").await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let message = json!({"recipient_id": joe, "content": "hello"});
    bob.with("traceparent", traceparent)
        .post("/api/messages", &message)
        .await
        .expect(201);
    events.expect("message").await;
    world.published().await;
    phone
        .get(&format!(
            "/api/sync/incoming?cursor={}",
            batch["cursor"].as_str().unwrap()
        ))
        .await
        .expect(200);

    let trace = eventually("publishing and both deliveries share a trace", || async {
        let mut traces: HashMap<Vec<u8>, Vec<Span>> = HashMap::new();
        for span in collector.spans() {
            traces.entry(span.trace_id.clone()).or_default().push(span);
        }
        traces.into_values().find(|spans| {
            let has = |name: &str, via: &str| {
                spans
                    .iter()
                    .any(|span| span.name == name && (via.is_empty() || attribute(span, "posduif.via") == via))
            };
            has("transaction", "") && has("publish", "") && has("deliver", "live") && has("deliver", "sync")
        })
    })
    .await;
    let root = trace.iter().find(|span| span.name == "transaction").unwrap();
    assert!(root.parent_span_id.is_empty());
    for span in trace.iter().filter(|span| span.name != "transaction") {
        assert_eq!(span.parent_span_id, root.span_id, "{}", span.name);
        assert!(
            span.start_time_unix_nano >= root.start_time_unix_nano,
            "{} begins before the commit",
            span.name
        );
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    let place = |span: &Span| {
        attribute(span, "posduif.position")
            .split('-')
            .next()
            .unwrap()
            .to_owned()
    };
    assert!(trace.iter().all(|span| place(span) == place(root)));
    assert!(trace.iter().filter(|span| span.name == "transaction").count() == 1);

    // The request goes on in the client's trace, with what it asked of Postgres.
    let of_client = eventually("the request's spans", || async {
        let wanted: Vec<u8> = (0..16)
            .map(|n| u8::from_str_radix(&traceparent[3 + 2 * n..5 + 2 * n], 16).unwrap())
            .collect();
        let spans: Vec<Span> = collector
            .spans()
            .into_iter()
            .filter(|span| span.trace_id == wanted)
            .collect();
        spans
            .iter()
            .any(|span| span.name == "POST /api/messages")
            .then_some(spans)
    })
    .await;
    let server = of_client.iter().find(|span| span.name == "POST /api/messages").unwrap();
    assert_eq!(server.parent_span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(attribute(server, "http.response.status_code"), "201");
    let statement = of_client
        .iter()
        .find(|span| span.name == "message_insert")
        .expect("a span of its statement");
    assert_eq!(statement.parent_span_id, server.span_id);
    let line = folders[1]
        .line("its line", |line| line["trace_id"] == traceparent[3..35])
        .await;
    assert_eq!(line["path"], "/api/messages");

    let head = collector.heads.lock().unwrap()[0].clone();
    assert!(
        head.starts_with("post /v1/traces ") && head.contains("x-key: hush"),
        "{head}"
    );
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    drop(events);
    assert_eq!(node.terminate().await, Some(0));
    assert_eq!(process.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_trace_collector_only_logs_a_warning() {
    let folder = Folder::new();
    let settings = [
        ("POSDUIF__TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ("POSDUIF__TELEMETRY__SAMPLE_RATIO", "1"),
        ("POSDUIF__TELEMETRY__EXPORT_INTERVAL_MS", "100"),
    ];
    let (_world, process) = engine(&folder, &settings).await;
    process.api().log_in("acme", "bob").await;
    folder
        .line("a warning", |line| line["message"] == "collector refuses spans")
        .await;
    assert_eq!(process.api().get("/health").await.status, 200);
    assert_eq!(process.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traceparent_of_a_stranger_is_ignored() {
    let folder = Folder::new();
    let settings = [
        ("POSDUIF__TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ("POSDUIF__TELEMETRY__SAMPLE_RATIO", "0"),
        // Another one is trusted.
        ("POSDUIF__SERVER__TRUSTED_PROXIES", "[10.0.0.1]"),
    ];
    let (_world, process) = engine(&folder, &settings).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let api = process.api().with("traceparent", traceparent);
    assert_eq!(api.get("/openapi.json").await.status, 200);
    let line = folder.line("its line", |line| line["path"] == "/openapi.json").await;
    assert_eq!(line["trace_id"], serde_json::Value::Null);
    assert_eq!(process.terminate().await, Some(0));
}
