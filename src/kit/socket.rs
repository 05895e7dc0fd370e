//! The WebSocket of the scripted server: events, and items of the device through the fault seam.
//!
//! As in `src/api/live/websocket`, frames of the device are carried out one after the other, and tungstenite implements the
//! protocol.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketContext};
use tungstenite::{Error as Fault, Message};

use super::event::{Frame, LiveEvent, REVOKED};
use super::fault::{self, Action};
use super::stage::Stage;
use super::wire::{End, Record, Route};
use crate::api::item_body::ItemBody;
use crate::api::live::websocket::items;
use crate::http::error::Error;
use crate::http::websocket::Ends;
use crate::http::wire::Wire;

/// Items of one frame.
const ITEMS_MAX: usize = 100;

/// Messages of the client that wait during a delay.
const MESSAGES_MAX: usize = 100;

/// How long a client may take to answer the closing frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    /// It breaks, as when the network is lost.
    Cut,
    Close(u16),
}

struct Socket {
    stage: Arc<Stage>,
    /// The request that opened it.
    caller: Record,
    wire: Wire,
    out: BytesMut,
    protocol: WebSocketContext,
    /// Messages that came during a delay.
    early: VecDeque<Message>,
}

/// Serves one WebSocket until the case or the client ends it.
pub async fn serve(
    stage: Arc<Stage>,
    caller: Record,
    hello: &LiveEvent,
    wire: Wire,
    out: BytesMut,
    mut frames: mpsc::Receiver<Frame>,
) {
    let mut socket = Socket {
        stage,
        caller,
        wire,
        out,
        protocol: WebSocketContext::new(Role::Server, None),
        early: VecDeque::new(),
    };
    socket.send(&hello.to_frame());
    loop {
        if !fault::write(&mut socket.wire, &mut socket.out).await {
            return;
        }
        let next = tokio::select! {
            frame = frames.recv() => match frame {
                Some(Frame::Event(event)) => {
                    socket.send(&event.to_frame());
                    Next::Continue
                }
                Some(Frame::Heartbeat) => {
                    socket.buffer(Message::Ping(Vec::new().into()));
                    Next::Continue
                }
                Some(Frame::HalfOpen) => {
                    fault::half_open(&mut frames).await;
                    Next::Cut
                }
                Some(Frame::End(Some(code))) => Next::Close(code),
                Some(Frame::End(None)) | None => Next::Cut,
            },
            message = socket.read() => match message {
                Ok(Message::Text(text)) => socket.receive(&text).await,
                // tungstenite answers pings and closing frames.
                Ok(_) => Next::Continue,
                Err(_) => return,
            },
        };
        match next {
            Next::Continue => {}
            Next::Cut => return,
            Next::Close(code) => return socket.close(code).await,
        }
    }
}

impl Socket {
    /// Reads a message. It may be cancelled: what was read of a message is kept.
    async fn read(&mut self) -> Result<Message, Fault> {
        if let Some(message) = self.early.pop_front() {
            return Ok(message);
        }
        self.receive_message().await
    }

    /// Ready when the client has closed the connection; what it sends is kept.
    async fn gone(&mut self) {
        while self.early.len() < MESSAGES_MAX {
            match self.receive_message().await {
                Ok(message) => self.early.push_back(message),
                Err(_) => return,
            }
        }
        std::future::pending().await
    }

    async fn receive_message(&mut self) -> Result<Message, Fault> {
        std::future::poll_fn(|context| {
            let mut ends = Ends {
                from: Some((&mut self.wire, context)),
                to: &mut self.out,
            };
            match self.protocol.read(&mut ends) {
                Err(Fault::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                read => Poll::Ready(read),
            }
        })
        .await
    }

    fn buffer(&mut self, message: Message) {
        let mut ends = Ends {
            from: None,
            to: &mut self.out,
        };
        self.protocol.write(&mut ends, message).ok();
        self.protocol.flush(&mut ends).ok();
    }

    fn send(&mut self, frame: &Value) {
        self.buffer(Message::text(frame.to_string()));
    }

    fn send_result(&mut self, result: &Value) {
        let mut data = result.clone();
        data["type"] = "result".into();
        self.send(&json!({"event": "result", "data": data}));
    }

    /// Sends a closing frame, and waits for that of the client.
    async fn close(mut self, code: u16) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: "".into(),
        };
        self.buffer(Message::Close(Some(frame)));
        if fault::write(&mut self.wire, &mut self.out).await {
            let closed = async { while self.receive_message().await.is_ok() {} };
            tokio::time::timeout(CLOSE_TIMEOUT, closed).await.ok();
        }
    }

    /// Carries out a frame of the client.
    async fn receive(&mut self, text: &str) -> Next {
        match items::parse(text, ITEMS_MAX) {
            Ok(items::Frame::Ping(id)) => self.send(&json!({"event": "pong", "data": {"type": "pong", "id": id}})),
            Ok(items::Frame::Resume(id)) => {
                let resumed = Record {
                    last_event_id: Some(id),
                    ..self.caller.clone()
                };
                match self.stage.open(&resumed) {
                    Ok(Some(hello)) => self.send(&hello.to_frame()),
                    Ok(None) => return Next::Close(REVOKED),
                    Err(error) => self.send_result(&failed(Value::Null, &error)),
                }
            }
            Ok(items::Frame::Items(items)) => {
                // As in an upload, those with and without numbers are apart.
                for items in items.chunk_by(|one, other| is_numbered(one) == is_numbered(other)) {
                    let next = if items.iter().all(is_numbered) {
                        self.upload(items).await
                    } else {
                        for item in items {
                            let result = self.carry_out(item);
                            self.send_result(&result);
                        }
                        Next::Continue
                    };
                    if next != Next::Continue {
                        return next;
                    }
                }
            }
            Err(error) => self.send_result(&failed(Value::Null, &error)),
        }
        Next::Continue
    }

    /// An item that is no upload.
    fn carry_out(&self, item: &Value) -> Value {
        let id = item["id"].clone();
        let done = match item["type"].as_str() {
            Some("presence") => Ok(()),
            Some("ack") => {
                let record = self.record(Route::Ack, "WebSocket: ack", json!({"cursor": item["cursor"]}));
                let number = self.stage.arrive(record.clone());
                let done = self.stage.acknowledge(&record).map(|_| ());
                let status = done
                    .as_ref()
                    .map_or_else(|error| error.code.status().as_u16(), |()| 200);
                self.stage.end(number, End::Status(status));
                done
            }
            _ => Err(Error::invalid("type", "must be one of item, ack, presence")),
        };
        match done {
            Ok(()) => json!(ItemBody::applied(id, None)),
            Err(error) => failed(id, &error),
        }
    }

    /// Numbered items: one upload, through the fault seam.
    async fn upload(&mut self, items: &[Value]) -> Next {
        let acked = items.iter().rev().find_map(|item| item["acked_seq"].as_u64());
        let numbered: Vec<Value> = items.iter().cloned().map(items::numbered).collect();
        let body = json!({"items": numbered, "acked_seq": acked.unwrap_or(0)});
        let record = self.record(Route::Frame, "WebSocket: items", body);
        let number = self.stage.arrive(record.clone());
        let fault = self.stage.take_fault(Route::Frame);
        let action = fault.as_ref().map(|fault| fault.action);
        if action == Some(Action::DropRequest) {
            self.stage.end(number, End::Lost);
            return Next::Cut;
        }
        let refusal = fault
            .filter(|fault| fault.action == Action::Refuse)
            .map(|fault| fault.refusal());
        let mut done = refusal.map_or_else(|| self.stage.upload(&record), Err);
        if action == Some(Action::Duplicate) {
            done = self.stage.upload(&record);
        }
        let (status, results) = match done {
            Ok(body) => (200, body["results"].as_array().cloned().unwrap_or_default()),
            Err(error) => {
                let refused = items.iter().map(|item| failed(item["id"].clone(), &error));
                (error.code.status().as_u16(), refused.collect())
            }
        };
        match action {
            Some(Action::DropAnswer | Action::Truncate | Action::Garble) => {
                self.stage.end(number, End::Lost);
                if action == Some(Action::Garble) {
                    self.buffer(Message::text(
                        "<html><body>Please log in to this network.</body></html>",
                    ));
                } else if action == Some(Action::Truncate) {
                    results.iter().for_each(|result| self.send_result(result));
                    self.out.truncate(self.out.len() / 2);
                }
                fault::write(&mut self.wire, &mut self.out).await;
                return Next::Cut;
            }
            Some(Action::Delay) => {
                let released = tokio::time::timeout(fault::DELAY_MAX, self.stage.hold().released());
                tokio::select! {
                    _ = released => {}
                    () = self.gone() => {
                        self.stage.with(|inner| inner.log.gone(number));
                        return Next::Cut;
                    }
                }
            }
            _ => {}
        }
        self.stage.end(number, End::Status(status));
        results.iter().for_each(|result| self.send_result(result));
        Next::Continue
    }

    fn record(&self, route: Route, line: &str, body: Value) -> Record {
        Record {
            route,
            line: line.to_owned(),
            last_event_id: None,
            body,
            ..self.caller.clone()
        }
    }
}

fn is_numbered(item: &Value) -> bool {
    item["type"] == "item"
}

fn failed(id: Value, error: &Error) -> Value {
    json!(ItemBody::failed(id, error))
}
