//! A page in a real browser: Chromium's own `EventSource` and `WebSocket`, used as docs/clients.md describes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::support::office::Office;
use crate::support::proxy::Proxy;

/// How long a browser may take for a step: it starts on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Names of browsers' programs.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Posduif</title>
<script src="/client.js"></script>
<script>
  const report = (by, name, data) => fetch('/report', { method: 'POST', body: JSON.stringify({ by, name, data }) });
  window.onerror = (message) => report('page', 'error', { message });
  window.onunhandledrejection = ({ reason }) => report('page', 'error', { message: String(reason) });
  (async () => {
    const { base, token, user, recipient } = await (await fetch('/settings.json')).json();
    const streams = [['source', bySource, `/sse/web/${user}`], ['socket', bySocket, '/ws']];
    for (const [by, open, path] of streams) {
      let hasWritten = false;
      const onEvent = (name, data, socket) => {
        report(by, name, data);
        if (socket && !hasWritten) {
          hasWritten = true;
          const item = { id: 'from the page', type: 'message', recipient_id: recipient, content: 'written by a page' };
          socket.send(JSON.stringify(item));
        }
      };
      follow({ base, path, token: async () => token, open, onEvent }).then(() => report(by, 'over', {}));
    }
  })();
</script>
"#;

/// The code that the documentation shows.
fn client() -> String {
    let page = include_str!("../docs/clients.md");
    let blocks = page.split("```js\n").skip(1);
    let blocks: Vec<&str> = blocks.map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty(), "docs/clients.md shows no code");
    blocks.concat()
}

/// The browser to use; `None` where it is said that there is none.
fn program() -> Option<PathBuf> {
    match std::env::var("POSDUIF_BROWSER") {
        Ok(none) if none == "none" => return None,
        Ok(program) if !program.is_empty() => return Some(program.into()),
        _ => {}
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).flat_map(|folder| PROGRAMS.map(|name| folder.join(name)));
    let found = places.into_iter().find(|place| place.is_file());
    Some(found.unwrap_or_else(|| {
        panic!(
            "no browser: none of {} is in the PATH. Install Chromium (scripts/setup --tests does), name a \
             browser's program by POSDUIF_BROWSER, or leave this test out by POSDUIF_BROWSER=none",
            PROGRAMS.join(", ")
        )
    }))
}

/// A browser that shows a page until it is dropped.
struct Browser {
    child: Child,
    folder: PathBuf,
}

impl Browser {
    fn open(program: &PathBuf, url: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("posduif-browser-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        // It is to show this page and to do nothing else; as root it has no sandbox.
        let child = Command::new(program)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--no-default-browser-check",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-extensions",
                "--no-proxy-server",
            ])
            .arg(format!("--user-data-dir={}", folder.display()))
            .arg(url)
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self { child, folder }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All of its processes.
        if let Some(pid) = self.child.id() {
            let _gone = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        let _still_written = std::fs::remove_dir_all(&self.folder);
    }
}

/// Serves the page and gives what it reports.
fn serve(listener: TcpListener, settings: Value) -> mpsc::UnboundedReceiver<Value> {
    let (report, reports) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (report, settings) = (report.clone(), settings.to_string());
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (report, settings) = (report.clone(), settings.clone());
                async move {
                    let (kind, text) = match (request.method(), request.uri().path()) {
                        (&Method::GET, "/") => ("text/html", PAGE.to_owned()),
                        (&Method::GET, "/client.js") => ("text/javascript", client()),
                        (&Method::GET, "/settings.json") => ("application/json", settings),
                        (&Method::POST, "/report") => {
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let _over = report.send(serde_json::from_slice(&body).unwrap());
                            ("text/plain", String::new())
                        }
                        _ => ("text/plain", String::new()),
                    };
                    let response = Response::builder().header("content-type", kind);
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(text))).unwrap())
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    reports
}

/// What the page reported, each until somebody asks for it.
struct Reports {
    reports: mpsc::UnboundedReceiver<Value>,
    early: Vec<Value>,
}

impl Reports {
    /// The data of the next event of this name in one of the page's streams.
    async fn next(&mut self, by: &str, name: &str) -> Value {
        // A page that connects again and again reports, too.
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let known = self
                .early
                .iter()
                .position(|report| report["by"] == by && report["name"] == name);
            if let Some(index) = known {
                return self.early.remove(index)["data"].take();
            }
            let report = tokio::time::timeout_at(deadline, self.reports.recv()).await;
            let report = report.unwrap_or_else(|_| panic!("no {name} by {by}; there were {:?}", self.early));
            let report = report.unwrap();
            assert_ne!(report["name"], "error", "{report}");
            self.early.push(report);
        }
    }

    /// The ids of the next messages in one of the page's streams.
    async fn messages(&mut self, by: &str, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let event = self.next(by, "new_message").await;
            ids.push(event["message_id"].as_str().unwrap().to_owned());
        }
        ids
    }
}

#[tokio::test]
async fn chromium_event_source_and_websocket_receive_by_ticket_and_reconnect() {
    let Some(program) = program() else {
        eprintln!("left out, since POSDUIF_BROWSER is none");
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let allowed = origin.clone();
    let office = Office::with(|config| config.server.cors_origins = vec![allowed]).await;
    // Between the page and the engine, so that the network can fail.
    let engine = format!("http://{}", office.anybody.address());
    let way = Proxy::before(&engine).await;
    let settings = json!({
        "base": way.url(&engine),
        "token": office.bob.header("authorization").strip_prefix("Bearer ").unwrap(),
        "user": office.bob_id,
        "recipient": office.joe_id,
    });
    let mut reports = Reports {
        reports: serve(listener, settings),
        early: Vec::new(),
    };
    let browser = Browser::open(&program, &origin);
    for by in ["source", "socket"] {
        assert!(reports.next(by, "hello").await["cursor"].is_string());
    }
    // What the page writes is applied, and delivered to its other stream.
    let result = reports.next("socket", "result").await;
    assert_eq!(
        (&result["id"], &result["status"]),
        (&json!("from the page"), &json!("applied"))
    );
    let written = &result["server"]["id"];
    assert_eq!(
        office.message(written.as_str().unwrap()).await["content"],
        "written by a page"
    );
    assert_eq!(&reports.next("source", "message_updated").await["message_id"], written);

    // Rows of somebody else's.
    let psql = office.world.psql().await;
    let insert = async |count: i32| -> Vec<String> {
        let statement = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
                         SELECT $1, $2, 'from psql' FROM generate_series(1, $3) RETURNING id";
        let rows = psql.query(statement, &[&office.joe_id, &office.bob_id, &count]).await;
        rows.unwrap()
            .iter()
            .map(|row| row.get::<_, Uuid>(0).to_string())
            .collect()
    };
    let sent = insert(3).await;
    for by in ["source", "socket"] {
        assert_eq!(reports.messages(by, 3).await, sent, "{by}");
    }
    // The network fails, and comes back. By a new ticket and the last id nothing is missed, and nothing comes twice.
    way.refuse();
    let missed = insert(2).await;
    office.world.published().await;
    way.resume();
    let live = insert(1).await;
    for by in ["source", "socket"] {
        reports.next(by, "hello").await;
        assert_eq!(
            reports.messages(by, 3).await,
            [missed.as_slice(), &live].concat(),
            "{by}"
        );
    }
    assert_eq!(office.bob.post("/api/auth/logout", &json!({})).await.status, 204);
    for by in ["source", "socket"] {
        reports.next(by, "revoked").await;
        reports.next(by, "over").await;
    }
    let twice: Vec<&Value> = reports
        .early
        .iter()
        .filter(|report| report["name"] == "new_message")
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
    drop(browser);
    office.close().await;
}
