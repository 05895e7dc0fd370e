//! A WebSocket that brings events and takes uploads and acknowledgements (docs/api.md, `GET /ws`).

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request as Opening;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::phone::{Answer, Event, Lost, Request, Trouble};

type Connection = WebSocketStream<TcpStream>;

/// The code with which a server closes the connection of a device that was revoked.
const REVOKED: u16 = 4401;

/// Messages that wait for the phone.
const MESSAGES_MAX: usize = 1000;

/// A frame of items, and who waits for the results.
struct Upload {
    text: String,
    count: usize,
    results: oneshot::Sender<Vec<Value>>,
}

/// Where uploads go while a WebSocket is open.
#[derive(Debug, Default)]
pub(crate) struct Socket(Mutex<Option<mpsc::Sender<Upload>>>);

/// The events of an open WebSocket.
pub(crate) struct SocketEvents {
    received: mpsc::Receiver<Result<Vec<Event>, Trouble>>,
    task: tokio::task::JoinHandle<()>,
}

impl Socket {
    /// Opens a WebSocket.
    pub(crate) async fn open(
        &self,
        address: &str,
        headers: Vec<(&'static str, String)>,
    ) -> Result<SocketEvents, Trouble> {
        let opening = opening(address, headers).map_err(Trouble::later)?;
        let authority = opening
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str())
            .to_owned();
        let stream = TcpStream::connect(authority).await.map_err(Trouble::later)?;
        let connection = match tokio_tungstenite::client_async(opening, stream).await {
            Ok((connection, _)) => connection,
            Err(Error::Http(answer)) => return Err(refusal(&answer)),
            Err(error) => return Err(Trouble::later(error)),
        };
        let (events, received) = mpsc::channel(MESSAGES_MAX);
        let (sender, uploads) = mpsc::channel(1);
        *self.0.lock() = Some(sender);
        let task = tokio::spawn(serve(connection, uploads, events));
        Ok(SocketEvents { received, task })
    }

    /// Sends an upload or an acknowledgement; `None`: it is another request, or there is no WebSocket.
    pub(crate) async fn exchange(&self, request: &Request) -> Option<Result<Answer, Lost>> {
        let items = items(request)?;
        let sender = self.0.lock().clone()?;
        let (results, answered) = oneshot::channel();
        let upload = Upload {
            text: Value::from(items.clone()).to_string(),
            count: items.len(),
            results,
        };
        // It has been closed: without it, requests go by HTTP.
        sender.send(upload).await.ok()?;
        let answer = answered.await.map(answer);
        Some(answer.map_err(|_| Lost("the WebSocket was closed before the results".to_owned())))
    }
}

impl SocketEvents {
    pub(crate) async fn receive(&mut self) -> Result<Vec<Event>, Trouble> {
        let received = self.received.recv().await;
        received.unwrap_or_else(|| Err(Trouble::later("the WebSocket has ended")))
    }
}

impl Drop for SocketEvents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The request that opens a WebSocket.
fn opening(address: &str, headers: Vec<(&'static str, String)>) -> Result<Opening, Error> {
    let id = headers.iter().find(|(name, _)| *name == "last-event-id");
    let query = id.map_or_else(String::new, |(_, id)| format!("?last_event_id={id}"));
    let url = format!("{}/ws{query}", address.replacen("http", "ws", 1));
    let mut opening = url.into_client_request()?;
    for (name, value) in headers {
        if name != "last-event-id" {
            let value = HeaderValue::from_str(&value).map_err(|error| Error::HttpFormat(error.into()))?;
            opening.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    Ok(opening)
}

/// What an answer that is no WebSocket means.
fn refusal(answer: &hyper::Response<Option<Vec<u8>>>) -> Trouble {
    let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap_or_default();
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    let status = answer.status();
    let after = answer
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if status == StatusCode::UNAUTHORIZED {
        Trouble::Ended
    } else if status == StatusCode::TOO_MANY_REQUESTS || !status.is_client_error() {
        Trouble::Later {
            cause: status.to_string(),
            after: after.map(std::time::Duration::from_secs),
        }
    } else {
        Trouble::Refused {
            code: text("code"),
            message: text("message"),
            expected: None,
        }
    }
}

/// The items of a request that may go over a WebSocket.
fn items(request: &Request) -> Option<Vec<Value>> {
    let body = request.body.as_ref()?;
    match request.path.as_str() {
        "/api/sync/ack" => Some(vec![json!({"id": "ack", "type": "ack", "cursor": body["cursor"]})]),
        "/api/sync/outgoing" => {
            let mut items = body["items"].as_array()?.clone();
            for item in &mut items {
                item["type"] = "item".into();
                item["acked_seq"] = body["acked_seq"].clone();
                item["pending_count"] = body["pending_count"].clone();
            }
            Some(items)
        }
        _ => None,
    }
}

/// Results as the response to an upload.
fn answer(results: Vec<Value>) -> Answer {
    let refused = results.iter().find(|result| !result["expected"].is_null());
    let (status, body) = match refused {
        Some(result) => {
            let details = json!({"expected": result["expected"]});
            let error = json!({"code": result["code"], "message": result["message"], "details": details});
            (StatusCode::CONFLICT, json!({"error": error}))
        }
        None => (StatusCode::OK, json!({"results": results})),
    };
    Answer {
        status,
        retry_after: None,
        body,
    }
}

/// Serves one connection until it ends, or the phone drops its events.
async fn serve(
    mut connection: Connection,
    mut uploads: mpsc::Receiver<Upload>,
    events: mpsc::Sender<Result<Vec<Event>, Trouble>>,
) {
    let mut waiting: Option<(Vec<Value>, Upload)> = None;
    let end = loop {
        tokio::select! {
            Some(upload) = uploads.recv(), if waiting.is_none() => {
                if let Err(error) = connection.send(Message::text(upload.text.clone())).await {
                    break Trouble::later(error);
                }
                waiting = Some((Vec::new(), upload));
            }
            message = connection.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap_or_default();
                    if frame["event"] == "result" {
                        let Some((mut results, upload)) = waiting.take() else { continue };
                        results.push(frame["data"].clone());
                        if results.len() < upload.count {
                            waiting = Some((results, upload));
                        } else {
                            upload.results.send(results).ok();
                        }
                        continue;
                    }
                    let Some(event) = event(&frame) else { continue };
                    if events.send(Ok(vec![event])).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == REVOKED => break Trouble::Ended,
                // A heartbeat, or what is none of ours.
                Some(Ok(Message::Ping(_))) => {
                    if events.send(Ok(Vec::new())).await.is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break Trouble::later(error),
                None => break Trouble::later("the server closed the WebSocket"),
            },
        }
    };
    // Requests go by HTTP from now on, and those without results are lost.
    drop((uploads, waiting));
    events.send(Err(end)).await.ok();
}

fn event(frame: &Value) -> Option<Event> {
    Some(Event {
        name: frame["event"].as_str()?.to_owned(),
        id: frame["id"].as_str().map(str::to_owned),
        data: frame["data"].to_string(),
    })
}
