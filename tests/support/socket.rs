//! A WebSocket client: the same events as a stream's, and items with their results.

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::Method;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::http::{Answer, Api, Event};
use super::{TIMEOUT, spec};

/// An open WebSocket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The cursor of its `hello`.
    pub(crate) cursor: String,
    /// Events that came before a result that was waited for.
    received: Vec<Event>,
    /// How it was closed.
    pub(crate) closed: Option<(u16, String)>,
}

impl Api {
    /// Opens a WebSocket and waits for its `hello`.
    pub(crate) async fn socket(&self, path: &str) -> Socket {
        match self.try_socket(path).await {
            Ok(socket) => socket,
            Err(answer) => panic!("{path} answered {}: {}", answer.status, answer.json()),
        }
    }

    /// Like [`Api::socket`], with the answer when it is refused.
    pub(crate) async fn try_socket(&self, path: &str) -> Result<Socket, Answer> {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        self.socket_over(stream, path).await
    }

    /// A WebSocket whose client takes only so many bytes that it does not read.
    pub(crate) async fn narrow_socket(&self, path: &str, bytes: u32) -> Socket {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        let stream = socket.connect(self.address().parse().unwrap()).await.unwrap();
        self.socket_over(stream, path).await.unwrap()
    }

    async fn socket_over(&self, stream: TcpStream, path: &str) -> Result<Socket, Answer> {
        let mut request = format!("ws://{}{path}", self.address()).into_client_request().unwrap();
        for (name, value) in self.headers() {
            let name: hyper::header::HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .insert(name, HeaderValue::from_str(value).unwrap());
        }
        let opening = tokio_tungstenite::client_async(request, stream);
        let stream = match tokio::time::timeout(TIMEOUT, opening).await.expect("no answer in time") {
            Ok((stream, _)) => stream,
            Err(Error::Http(response)) => {
                let (head, body) = response.into_parts();
                let answer = Answer::new(head.status, head.headers, body.unwrap_or_default());
                spec::check(&Method::GET, path, &answer);
                return Err(answer);
            }
            Err(error) => panic!("{path}: {error}"),
        };
        let mut socket = Socket {
            stream,
            cursor: String::new(),
            received: Vec::new(),
            closed: None,
        };
        let hello = socket.next().await.expect("a hello");
        assert_eq!((hello.name.as_str(), &hello.id), ("hello", &None));
        socket.cursor = hello.data["cursor"].as_str().unwrap().to_owned();
        Ok(socket)
    }
}

impl Socket {
    /// The next event; `None` when the socket was closed. Skips `presence`.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.next_of_all().await;
            if event.as_ref().is_none_or(|event| event.name != "presence") {
                return event;
            }
        }
    }

    /// The next event, `presence` too.
    pub(crate) async fn next_of_all(&mut self) -> Option<Event> {
        if !self.received.is_empty() {
            return Some(self.received.remove(0));
        }
        self.read().await
    }

    /// The next event of this name; others are passed over.
    pub(crate) async fn expect(&mut self, name: &str) -> Event {
        loop {
            let event = self.next_of_all().await;
            let event = event.unwrap_or_else(|| panic!("closed by {:?} before {name}", self.closed));
            if event.name == name {
                return event;
            }
        }
    }

    /// All events but `presence` until the socket is closed, and its close code; 1006 stands for none.
    pub(crate) async fn rest(&mut self) -> (Vec<Event>, u16) {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        (rest, self.closed.as_ref().map_or(1006, |(code, _)| *code))
    }

    /// Says something.
    pub(crate) async fn outln(&mut self, said: &Value) {
        self.send(Message::text(said.to_string())).await;
    }

    /// Sends a message as it is.
    pub(crate) async fn send(&mut self, message: Message) {
        self.stream.send(message).await.unwrap();
    }

    /// The next result. Events that come before it are kept for later calls.
    pub(crate) async fn result(&mut self) -> Value {
        loop {
            let event = self.read().await;
            let event = event.unwrap_or_else(|| panic!("closed by {:?} before a result", self.closed));
            if event.name == "result" {
                assert_eq!((&event.id, &event.data["type"]), (&None, &Value::from("result")));
                return event.data;
            }
            self.received.push(event);
        }
    }

    /// Says an item and gives its result.
    pub(crate) async fn ask(&mut self, item: &Value) -> Value {
        self.outln(item).await;
        self.result().await
    }

    /// The connection without the protocol.
    pub(crate) fn raw(&mut self) -> &mut TcpStream {
        self.stream.get_mut()
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            let next = tokio::time::timeout(TIMEOUT, self.stream.next());
            match next.await.expect("nothing came in time")? {
                Ok(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    let keys: Vec<&String> = frame.as_object().unwrap().keys().collect();
                    assert!(
                        keys.iter().all(|key| ["event", "id", "data"].contains(&key.as_str())),
                        "{frame}"
                    );
                    return Some(Event {
                        name: frame["event"].as_str().unwrap().to_owned(),
                        id: frame.get("id").map(|id| id.as_str().unwrap().to_owned()),
                        data: frame["data"].clone(),
                    });
                }
                Ok(Message::Close(Some(close))) => {
                    self.closed = Some((close.code.into(), close.reason.to_string()));
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}
