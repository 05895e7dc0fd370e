//! Connections to the API: HTTP/1.1 and HTTP/2, with and without TLS, from pages of other origins, by slow clients.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use posduif::engine::Role;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::folder::Folder;
use crate::support::office::Office;
use crate::support::{TIMEOUT, World, eventually};
use crate::tls::Authority;

/// Certificate and key where the server looks for them.
fn install(folder: &Path, authority: &Authority, name: &str) {
    let (certificate, key) = authority.issue(&["localhost", name], "server");
    // The key last: in between, the two do not fit.
    std::fs::write(folder.join("server.crt"), certificate).unwrap();
    std::fs::write(folder.join("server.key"), key).unwrap();
}

/// An encrypted connection, by a client that takes one of these protocols.
async fn connect(address: &str, authority: &Authority, alpn: &[&str]) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(posduif::net::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())
}

/// What an answer said.
struct PushCandidates {
    status: StatusCode,
    version: Version,
    headers: HeaderMap,
    body: Bytes,
}

async fn ask_http2<S>(stream: S, scheme: &str, path: &str) -> PushCandidates
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("{scheme}://localhost{path}"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    heard(sender.send_request(request).await.unwrap()).await
}

async fn ask_http1<S>(stream: S, path: &str) -> PushCandidates
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .unwrap();
    heard(sender.send_request(request).await.unwrap()).await
}

async fn heard(response: hyper::Response<hyper::body::Incoming>) -> PushCandidates {
    let (head, body) = response.into_parts();
    PushCandidates {
        status: head.status,
        version: head.version,
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

#[tokio::test]
async fn http2_prior_knowledge_is_accepted() {
    let office = Office::open().await;
    let stream = TcpStream::connect(office.anybody.address()).await.unwrap();
    let answer = ask_http2(stream, "http", "/health").await;
    assert_eq!(
        (answer.status, answer.version, &answer.body[..]),
        (StatusCode::OK, Version::HTTP_2, &b"OK"[..])
    );
    // A request of HTTP/1 whose method begins like the preface of HTTP/2, in pieces.
    let mut stream = TcpStream::connect(office.anybody.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in [
        "P",
        "U",
        "T /api/messages/x/read HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 401"), "{text}");
    office.close().await;
}

#[tokio::test]
async fn http2_client_receives_events_until_server_shutdown() {
    let office = Office::open().await;
    let stream = TcpStream::connect(office.anybody.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get(format!("http://localhost/sse/web/{}", office.bob_id))
        .header("authorization", office.bob.header("authorization"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut text = String::new();
    while !text.contains("event: hello") {
        text += std::str::from_utf8(body.frame().await.unwrap().unwrap().data_ref().unwrap()).unwrap();
    }
    office.close().await;
    while let Some(Ok(frame)) = body.frame().await {
        text += std::str::from_utf8(frame.data_ref().unwrap_or(&Bytes::new())).unwrap();
    }
    assert!(text.contains("event: bye"), "{text}");
    drop(sender);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn websocket_opens_over_tls_and_not_over_http2() {
    let office = Office::open().await;
    let token = office.bob.header("authorization");
    let stream = TcpStream::connect(office.anybody.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://localhost/ws").header("authorization", token);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let refused = heard(sender.send_request(request).await.unwrap()).await;
    assert_eq!(
        (refused.status, refused.version),
        (StatusCode::UPGRADE_REQUIRED, Version::HTTP_2)
    );

    let folder = Folder::new();
    let authority = Authority::new("authority");
    install(folder.path(), &authority, "example");
    let mut config = office.world.config.clone();
    config.server.tls_cert_file = folder.path().join("server.crt").display().to_string();
    config.server.tls_key_file = folder.path().join("server.key").display().to_string();
    let secure = office.world.engine_with(Role::Api, config).await;
    let stream = connect(secure.api().address(), &authority, &["http/1.1"])
        .await
        .unwrap();
    let mut request = "wss://localhost/ws".into_client_request().unwrap();
    request.headers_mut().insert("authorization", token.parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    // Larger than what TLS encrypts at once.
    let content = "x".repeat(9_000);
    let item = json!({"type": "message", "recipient_id": office.joe_id, "content": content});
    socket
        .send(Message::text(json!([item, item, item]).to_string()))
        .await
        .unwrap();
    let mut names = Vec::new();
    while names.iter().filter(|name| *name == "result").count() < 3 {
        let text = socket.next().await.unwrap().unwrap().into_text().unwrap();
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["event"] == "result" {
            assert_eq!(frame["data"]["server"]["content"], json!(content));
        }
        names.push(frame["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(names[0], "hello");
    let closing = async {
        let mut code = None;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(close) = message {
                code = close.map(|close| u16::from(close.code));
            }
        }
        code
    };
    let (_, code) = tokio::join!(secure.stop(), closing);
    assert_eq!(code, Some(1012));
    office.close().await;
}

#[tokio::test]
async fn https_reloads_a_renewed_certificate_without_restart() {
    let folder = Folder::new();
    let (old, new) = (Authority::new("old authority"), Authority::new("new authority"));
    install(folder.path(), &old, "old.example");
    let mut world = World::new().await;
    world.config.server.tls_cert_file = folder.path().join("server.crt").display().to_string();
    world.config.server.tls_key_file = folder.path().join("server.key").display().to_string();
    let engine = world.engine(Role::All).await;
    let api = engine.api();
    let address = api.address();
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let stream = connect(address, &old, alpn).await.unwrap();
        let answer = match version {
            Version::HTTP_2 => ask_http2(stream, "https", "/health").await,
            _ => ask_http1(stream, "/health").await,
        };
        assert_eq!((answer.status, answer.version), (StatusCode::OK, version), "{alpn:?}");
        assert_eq!(answer.headers["strict-transport-security"], "max-age=31536000");
    }
    // Who does not encrypt gets nothing.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");

    assert!(connect(address, &new, &[]).await.is_err());
    install(folder.path(), &new, "new.example");
    eventually("the new certificate is in force", || async {
        connect(address, &new, &[]).await.ok()
    })
    .await;
    // Half a renewal leaves what is in force.
    std::fs::write(folder.path().join("server.crt"), "no certificate").unwrap();
    assert_eq!(
        ask_http1(connect(address, &new, &[]).await.unwrap(), "/health")
            .await
            .status,
        200
    );
    engine.stop().await;
}

/// Reads on until the text holds this.
async fn read_until<S: tokio::io::AsyncRead + Unpin>(stream: &mut S, text: &mut String, wanted: &str) {
    let reading = async {
        while !text.contains(wanted) {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "the stream ended before {wanted}: {text}");
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
    };
    let read = tokio::time::timeout(TIMEOUT, reading).await;
    read.unwrap_or_else(|_| panic!("{wanted} did not come"));
}

#[tokio::test]
async fn event_stream_over_https_receives_events_and_ends() {
    let folder = Folder::new();
    let authority = Authority::new("authority");
    install(folder.path(), &authority, "www.example");
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut config = office.world.config.clone();
    config.server.tls_cert_file = folder.path().join("server.crt").display().to_string();
    config.server.tls_key_file = folder.path().join("server.key").display().to_string();
    let secure = office.world.engine_with(Role::Api, config).await;
    let mut stream = connect(secure.api().address(), &authority, &["http/1.1"])
        .await
        .unwrap();
    let request = format!(
        "GET /sse/mobile/phone HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nX-Device-ID: phone\r\n\r\n",
        phone.header("authorization")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    read_until(&mut stream, &mut text, "event: hello").await;
    let message = office.send("nobody else reads this").await;
    read_until(&mut stream, &mut text, &message).await;
    let ending = async {
        let mut rest = Vec::new();
        // An end without its alert (RFC 8446, section 6.1) would be an error here.
        stream.read_to_end(&mut rest).await.unwrap();
        String::from_utf8(rest).unwrap()
    };
    let (_, rest) = tokio::join!(secure.stop(), ending);
    assert!(rest.contains("event: bye"), "{rest}");
    office.close().await;
}

#[tokio::test]
async fn cors_allows_configured_origins_only() {
    let office = Office::with(|config| config.server.cors_origins = vec!["https://app.example.com".into()]).await;
    let preflight = |origin: &str| {
        office
            .anybody
            .with("origin", origin)
            .with("access-control-request-method", "PATCH")
            .with(
                "access-control-request-headers",
                "authorization,content-type,x-device-id,last-event-id",
            )
    };
    let answer = preflight("https://app.example.com")
        .send(Method::OPTIONS, "/api/messages/x", None, "")
        .await;
    assert_eq!(answer.status, 200);
    let header = |name: &str| answer.headers[name].to_str().unwrap().to_lowercase();
    assert_eq!(header("access-control-allow-origin"), "https://app.example.com");
    assert!(header("access-control-allow-methods").contains("patch"));
    for name in ["authorization", "content-type", "x-device-id", "last-event-id"] {
        assert!(header("access-control-allow-headers").contains(name), "{name}");
    }
    assert!(header("vary").contains("origin"));
    let answer = preflight("https://evil.example.com")
        .send(Method::OPTIONS, "/api/messages/x", None, "")
        .await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    let answer = office
        .bob
        .with("origin", "https://app.example.com")
        .get("/api/messages")
        .await;
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.com");
    assert!(
        answer.headers["access-control-expose-headers"]
            .to_str()
            .unwrap()
            .to_lowercase()
            .contains("retry-after")
    );
    office.close().await;

    let closed = Office::open().await;
    let answer = closed
        .bob
        .with("origin", "https://app.example.com")
        .get("/api/messages")
        .await;
    assert!(
        !answer.headers.contains_key("access-control-allow-origin"),
        "by default there are none"
    );
    assert_eq!(
        closed
            .anybody
            .send(Method::OPTIONS, "/api/messages", None, "")
            .await
            .status,
        405
    );
    closed.close().await;
}

#[tokio::test]
async fn every_response_has_security_headers() {
    let office = Office::open().await;
    for path in ["/health", "/api/messages", "/nothing", "/openapi.json"] {
        let answer = office.anybody.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.headers[name], value, "{path}");
        }
        assert!(
            !answer.headers.contains_key("strict-transport-security"),
            "this is plain HTTP"
        );
    }
    office.close().await;
}

#[tokio::test]
async fn silent_connection_is_closed() {
    let office = Office::with(|config| config.server.header_timeout_seconds = 1).await;
    for first in ["", "P", "GET /health HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(office.anybody.address()).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let ended = tokio::time::timeout(crate::support::TIMEOUT, stream.read_to_end(&mut bytes)).await;
        assert!(ended.is_ok(), "{first:?} held its connection");
    }
    office.close().await;
}
