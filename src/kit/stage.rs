//! The state of a case, shared by the scripted server and the script: the history, devices, cursors, faults, the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::event::{Frame, LiveEvent, REVOKED};
use super::fault::{Action, Fault};
use super::history::{Change, Cursor, History, Place, user_id};
use super::server;
use super::uploads::{Refusal, Uploads};
use super::wire::{End, Log, Record, Route};
use crate::http::error::{Code, Error};

/// Rows of a batch, unless the case says otherwise.
const BATCH_ROWS: usize = 100;

#[derive(Debug, Clone)]
struct Registered {
    user: String,
    token: String,
    is_revoked: bool,
}

#[derive(Debug, Clone)]
struct Invitation {
    user: String,
    used_by: Option<String>,
}

#[derive(Debug, Clone)]
struct Issued {
    device: String,
    cursor: Cursor,
    is_event: bool,
}

#[derive(Debug)]
struct Stream {
    device: String,
    sender: mpsc::Sender<Frame>,
}

/// What a case changes and looks at.
#[derive(Debug)]
pub struct Inner {
    pub history: History,
    pub uploads: Uploads,
    /// A copy to which the server can be restored.
    pub copy: Option<(History, Uploads)>,
    pub log: Log,
    pub faults: Vec<Fault>,
    pub page: usize,
    pub items_max: usize,
    pub is_offline: bool,
    /// The server, or the storage of the device, went back: numbers may be refused once.
    pub has_gone_back: bool,
    /// Delayed answers that wait.
    pub held: usize,
    devices: BTreeMap<String, Registered>,
    /// Devices by token; tokens of before stay out.
    tokens: BTreeMap<String, String>,
    invitations: BTreeMap<String, Invitation>,
    issued: BTreeMap<String, Issued>,
    refused_cursors: BTreeSet<String>,
    /// The cursor of the last batch.
    newest: Option<String>,
    streams: Vec<Stream>,
    /// Those that are half open.
    half_open: Vec<Stream>,
    /// Devices and their tokens, by ticket.
    tickets: BTreeMap<String, (String, String)>,
    random: u64,
}

#[derive(Debug)]
pub struct Stage {
    inner: Mutex<Inner>,
    /// Counts what happens on the wire.
    changes: watch::Sender<u64>,
    /// Counts releases of delayed answers.
    releases: watch::Sender<u64>,
}

/// A delayed answer.
#[derive(Debug)]
pub struct Held {
    stage: Arc<Stage>,
    releases: watch::Receiver<u64>,
}

impl Held {
    pub async fn released(mut self) {
        self.releases.changed().await.ok();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stage.with(|inner| inner.held -= 1);
    }
}

impl Stage {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                history: History::new(&["alice", "bob"]),
                uploads: Uploads::default(),
                copy: None,
                log: Log::default(),
                faults: Vec::new(),
                page: BATCH_ROWS,
                items_max: 1000,
                is_offline: false,
                has_gone_back: false,
                held: 0,
                devices: BTreeMap::new(),
                tokens: BTreeMap::new(),
                invitations: BTreeMap::new(),
                issued: BTreeMap::new(),
                refused_cursors: BTreeSet::new(),
                newest: None,
                streams: Vec::new(),
                half_open: Vec::new(),
                tickets: BTreeMap::new(),
                random: seed,
            }),
            changes: watch::Sender::new(0),
            releases: watch::Sender::new(0),
        })
    }

    /// Reads or changes the state, and sends the live events of what has changed.
    pub fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let done = work(&mut inner);
        inner.send_news();
        drop(inner);
        self.changes.send_modify(|count| *count += 1);
        done
    }

    pub fn read<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.inner.lock())
    }

    /// Notified of whatever happens on the wire.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn is_offline(&self) -> bool {
        self.read(|inner| inner.is_offline)
    }

    pub fn arrive(&self, record: Record) -> usize {
        self.with(|inner| {
            let command = inner.log.command;
            let is_newest = record.cursor.is_some() && record.cursor == inner.newest;
            inner.log.arrive(Record {
                command,
                is_newest,
                ..record
            })
        })
    }

    pub fn end(&self, number: usize, end: End) {
        self.with(|inner| inner.log.end(number, end));
    }

    /// The fault of the next request of a route.
    pub fn take_fault(&self, route: Route) -> Option<Fault> {
        self.with(|inner| {
            let fault = inner
                .faults
                .iter_mut()
                .find(|fault| fault.on == route && fault.times > 0)?;
            if fault.skip > 0 {
                fault.skip -= 1;
                return None;
            }
            fault.times -= 1;
            let taken = fault.clone();
            if taken.action == Action::Refuse && taken.code.as_deref() == Some("INVALID_CURSOR") {
                let last = inner.log.records.iter().rev().find(|record| record.route == route);
                let cursor = last.and_then(|record| record.cursor.clone());
                inner.refused_cursors.extend(cursor);
            }
            inner.has_gone_back |= taken.expected.is_some();
            Some(taken)
        })
    }

    pub fn hold(self: &Arc<Self>) -> Held {
        let releases = self.releases.subscribe();
        self.with(|inner| inner.held += 1);
        Held {
            stage: self.clone(),
            releases,
        }
    }

    /// Lets all delayed answers go.
    pub fn release(&self) {
        self.releases.send_modify(|count| *count += 1);
    }

    /// `POST /api/enrollment/complete`.
    pub fn complete(&self, body: &Value) -> Result<Value, Error> {
        let text = |name: &'static str| {
            body[name]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| Error::invalid(name, "must be a text"))
        };
        let (invitation, device) = (text("token")?, text("device_id")?);
        self.with(|inner| inner.complete(&invitation, &device))
    }

    /// `GET /api/enrollment/:token`.
    pub fn invitation(&self, token: &str) -> Result<Value, Error> {
        self.with(|inner| {
            inner.usable(token, None)?;
            Ok(json!({"created_by": "bob", "tenant_id": "kit", "token": token, "used_at": null, "valid": true}))
        })
    }

    /// `GET /api/sync/incoming`.
    pub fn batch(&self, record: &Record, limit: Option<usize>) -> Result<Value, Error> {
        self.with(|inner| {
            let (device, user) = inner.authenticate(record)?;
            let cursor = inner.cursor_of(&device, record.cursor.as_deref())?;
            let rows = inner.page.min(limit.unwrap_or(inner.page)).max(1);
            let batch = inner.history.batch(&user, cursor.as_ref(), rows);
            let mut body = batch.body;
            let next = inner.issue(&device, batch.next, false);
            inner.newest = Some(next.clone());
            body["cursor"] = next.into();
            body["position"] = "1-0".into();
            body["sync_timestamp"] = inner.history.now().into();
            Ok(body)
        })
    }

    /// `POST /api/sync/ack`.
    pub fn acknowledge(&self, record: &Record) -> Result<Value, Error> {
        self.with(|inner| {
            let (device, _) = inner.authenticate(record)?;
            inner.cursor_of(&device, record.body["cursor"].as_str())?;
            Ok(json!({"acknowledged": true}))
        })
    }

    /// `POST /api/sync/outgoing`.
    pub fn upload(&self, record: &Record) -> Result<Value, Error> {
        self.with(|inner| {
            let (device, user) = inner.authenticate(record)?;
            let acked = record.body["acked_seq"].as_u64().unwrap_or(0);
            let answered = inner.uploads.answered(&device);
            if acked > answered && !inner.has_gone_back && inner.devices.len() == 1 {
                let text = format!("`acked_seq` is {acked}, but only {answered} items have a result");
                inner.log.forbid("sequence-numbers", text);
            }
            let Inner { uploads, history, .. } = inner;
            let refused = match uploads.apply(history, &device, &user, &record.body) {
                Ok(body) => return Ok(body),
                Err(refused) => refused,
            };
            let numbers = |code, text: &str, expected| Error::new(code, text).with("expected", expected);
            let (what, error) = match refused {
                Refusal::TooLarge => return Err(Error::new(Code::PAYLOAD_TOO_LARGE, "the upload is too large")),
                Refusal::Invalid(text) => ("an item without a number", Error::new(Code::VALIDATION_ERROR, text)),
                Refusal::Gap { expected } => (
                    "a gap before the first item",
                    numbers(Code::SEQUENCE_GAP, "the numbers skip some", expected),
                ),
                Refusal::Restored { expected } => (
                    "a number that stood for another item before",
                    numbers(
                        Code::DEVICE_RESTORED,
                        "a number has another content than before",
                        expected,
                    ),
                ),
            };
            if !inner.has_gone_back && inner.devices.len() == 1 {
                inner.log.forbid("sequence-numbers", format!("an upload had {what}"));
            }
            Err(error)
        })
    }

    /// `GET /api/app-instructions`.
    pub fn settings(&self, record: &Record) -> Result<Value, Error> {
        self.with(|inner| {
            inner.authenticate(record)?;
            Ok(server::settings(inner.items_max))
        })
    }

    /// `POST /api/sse/ticket`.
    pub fn issue_ticket(&self, record: &Record) -> Result<Value, Error> {
        self.with(|inner| {
            let (device, _) = inner.authenticate(record)?;
            let stream = record.body["stream"].as_str().unwrap_or("/ws");
            if stream != "/ws" {
                return Err(Error::invalid(
                    "stream",
                    "must be /ws: another stream takes the token in a header",
                ));
            }
            let ticket = inner.text();
            let token = record.token.clone().unwrap_or_default();
            inner.tickets.insert(ticket.clone(), (device, token));
            Ok(json!({"ticket": ticket, "stream": stream, "expires_in": 30}))
        })
    }

    /// The device of a ticket and its token, once.
    pub fn take_ticket(&self, ticket: &str) -> Option<(String, String)> {
        self.with(|inner| inner.tickets.remove(ticket))
    }

    /// The event with which a stream begins; `None` if the device was revoked.
    pub fn open(&self, record: &Record) -> Result<Option<LiveEvent>, Error> {
        self.with(|inner| {
            let (device, user) = match inner.authenticate(record) {
                Err(error) if error.code == Code::DEVICE_REVOKED => return Ok(None),
                found => found?,
            };
            let end = Place::Stream(inner.history.end_of(&user));
            let cursor = inner.history.cursor(end);
            let begins = inner.issue(&device, cursor, true);
            if let Some(id) = &record.last_event_id
                && inner.issued.get(id).is_none_or(|issued| issued.device != device)
            {
                if !inner.refused_cursors.contains(id) {
                    inner
                        .log
                        .forbid("live-events", "`Last-Event-ID` is an id that the server has not given");
                }
                return Err(Error::new(Code::INVALID_CURSOR, "the id belongs to no reader"));
            }
            Ok(Some(LiveEvent::new("hello", None, &json!({"cursor": begins}))))
        })
    }

    pub fn add_stream(&self, record: &Record, number: usize, sender: mpsc::Sender<Frame>) {
        let device = record.device.clone().unwrap_or_default();
        self.with(|inner| {
            inner.streams.push(Stream { device, sender });
            if let Some(record) = inner.log.records.get_mut(number) {
                record.is_streaming = true;
            }
        });
    }
}

impl Inner {
    /// A random text, as a token or a cursor.
    fn text(&mut self) -> String {
        let mut bytes = [0; 24];
        for part in bytes.chunks_mut(8) {
            // SplitMix64 by Sebastiano Vigna.
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// An enrollment of a user; returns its token.
    pub fn invite(&mut self, user: &str) -> String {
        let token = self.text();
        let invitation = Invitation {
            user: user.to_owned(),
            used_by: None,
        };
        self.invitations.insert(token.clone(), invitation);
        token
    }

    fn usable(&self, token: &str, device: Option<&str>) -> Result<String, Error> {
        let found = self.invitations.get(token);
        let found = found.ok_or_else(|| Error::new(Code::NOT_FOUND, "the enrollment does not exist"))?;
        if found.used_by.is_some() && found.used_by.as_deref() != device {
            return Err(Error::new(Code::ENROLLMENT_USED, "the enrollment was used"));
        }
        Ok(found.user.clone())
    }

    fn complete(&mut self, invitation: &str, device: &str) -> Result<Value, Error> {
        let user = self.usable(invitation, Some(device))?;
        if self.devices.get(device).is_some_and(|known| known.user != user) {
            return Err(Error::new(Code::CONFLICT, "the device id is another user's"));
        }
        let token = self.text();
        if let Some(invitation) = self.invitations.get_mut(invitation) {
            invitation.used_by = Some(device.to_owned());
        }
        if let Some(former) = self.devices.get(device) {
            self.tokens.remove(&former.token);
        }
        self.tokens.insert(token.clone(), device.to_owned());
        let registered = Registered {
            user: user.clone(),
            token: token.clone(),
            is_revoked: false,
        };
        self.devices.insert(device.to_owned(), registered);
        Ok(json!({
            "device_id": device, "device_token": token, "tenant_id": "kit", "user_id": user_id(&user), "username": user,
            "app_instructions_url": "",
        }))
    }

    /// The device of a request and its user.
    fn authenticate(&mut self, record: &Record) -> Result<(String, String), Error> {
        let Some(token) = &record.token else {
            self.log
                .forbid("states-and-events", format!("{} was sent without a token", record.line));
            return Err(Error::new(Code::UNAUTHORIZED, "credentials are missing"));
        };
        let device = self
            .tokens
            .get(token)
            .filter(|device| record.device.as_ref() == Some(device));
        let unknown = || Error::new(Code::UNAUTHORIZED, "the credentials are wrong or no longer valid");
        let device = device.cloned().ok_or_else(unknown)?;
        let registered = self.devices.get(&device).ok_or_else(unknown)?;
        if registered.is_revoked {
            return Err(Error::new(Code::DEVICE_REVOKED, "the device was revoked"));
        }
        Ok((device, registered.user.clone()))
    }

    fn issue(&mut self, device: &str, cursor: Cursor, is_event: bool) -> String {
        let text = self.text();
        let issued = Issued {
            device: device.to_owned(),
            cursor,
            is_event,
        };
        self.issued.insert(text.clone(), issued);
        text
    }

    /// The cursor of a text.
    ///
    /// # Errors
    /// 400 for one that is not the device's. A device never sends such a one, nor the id of an event.
    fn cursor_of(&mut self, device: &str, text: Option<&str>) -> Result<Option<Cursor>, Error> {
        let Some(text) = text else { return Ok(None) };
        if self.refused_cursors.contains(text) {
            self.log.forbid(
                "states-and-events",
                "a cursor was sent again that the server had refused",
            );
        }
        match self.issued.get(text) {
            Some(issued) if issued.device == device => {
                let cursor = issued.cursor.clone();
                if issued.is_event {
                    self.log
                        .forbid("cursors", "the id of a live event was sent as the cursor of a sync");
                }
                Ok(Some(cursor))
            }
            Some(_) => {
                self.log.forbid("enrollment", "the cursor of a former device was sent");
                Err(Error::new(Code::INVALID_CURSOR, "the cursor belongs to another reader"))
            }
            None => {
                self.log
                    .forbid("cursors", "a cursor was sent that the server has not given");
                Err(Error::new(Code::INVALID_CURSOR, "the cursor is malformed"))
            }
        }
    }

    /// Whether a text is an id of a live event.
    pub fn is_event_id(&self, text: &str) -> bool {
        self.issued.get(text).is_some_and(|issued| issued.is_event)
    }

    /// Revokes all devices of a user. Streams end with `revoked`, unless it is silent.
    pub fn revoke(&mut self, user: &str, is_silent: bool) {
        let devices = self.devices.iter_mut().filter(|(_, device)| device.user == user);
        let revoked: BTreeSet<String> = devices
            .map(|(id, device)| {
                device.is_revoked = true;
                id.clone()
            })
            .collect();
        if is_silent {
            return;
        }
        let event = LiveEvent::new("revoked", None, &json!({}));
        for stream in self.streams.iter().filter(|stream| revoked.contains(&stream.device)) {
            stream.sender.try_send(Frame::Event(event.clone())).ok();
            stream.sender.try_send(Frame::End(Some(REVOKED))).ok();
        }
        self.streams.retain(|stream| !revoked.contains(&stream.device));
    }

    /// Sends an event to all streams; those with a place have an id.
    pub fn send_event(&mut self, name: &str, data: &Value, has_id: bool) {
        let streams: Vec<(String, mpsc::Sender<Frame>)> = self
            .streams
            .iter()
            .map(|stream| (stream.device.clone(), stream.sender.clone()))
            .collect();
        for (device, sender) in streams {
            let user = self
                .devices
                .get(&device)
                .map(|device| device.user.clone())
                .unwrap_or_default();
            let cursor = self.history.cursor(Place::Stream(self.history.end_of(&user)));
            let id = has_id.then(|| self.issue(&device, cursor, true));
            sender.try_send(Frame::Event(LiveEvent::new(name, id, data))).ok();
        }
    }

    /// Closes all streams; WebSockets with this code.
    pub fn end_streams(&mut self, code: Option<u16>) {
        for stream in self.streams.drain(..).chain(self.half_open.drain(..)) {
            stream.sender.try_send(Frame::End(code)).ok();
        }
    }

    /// Sends a heartbeat on all streams.
    pub fn send_heartbeat(&mut self) {
        for stream in &self.streams {
            stream.sender.try_send(Frame::Heartbeat).ok();
        }
    }

    /// Lets all streams be, without closing them.
    pub fn leave_streams_half_open(&mut self) {
        for stream in self.streams.drain(..) {
            stream.sender.try_send(Frame::HalfOpen).ok();
            self.half_open.push(stream);
        }
    }

    /// Lets the next streams refuse every id of before.
    pub fn forget_event_ids(&mut self) {
        let ids: Vec<String> = self
            .issued
            .iter()
            .filter(|(_, issued)| issued.is_event)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &ids {
            self.issued.remove(id);
        }
        self.refused_cursors.extend(ids);
    }

    fn send_news(&mut self) {
        for (user, place, change) in self.history.take_news() {
            let (name, data) = match change {
                Change::Row((table, id), _) if table == "messages" => {
                    ("message".to_owned(), json!({"type": "new_message", "message_id": id}))
                }
                Change::Gone((table, id)) if table == "messages" => {
                    ("message_deleted".to_owned(), json!({"message_id": id}))
                }
                Change::Row((table, id), _) => ("change".to_owned(), json!({"table": table, "op": "update", "id": id})),
                Change::Gone((table, id)) => ("change".to_owned(), json!({"table": table, "op": "delete", "id": id})),
                Change::Join(group) => ("group_joined".to_owned(), json!({"group": group})),
                Change::Leave(group) => ("group_left".to_owned(), json!({"group": group})),
                Change::Message(event, data) => (event, json!({"data": data})),
            };
            let streams: Vec<(String, mpsc::Sender<Frame>)> = self
                .streams
                .iter()
                .map(|stream| (stream.device.clone(), stream.sender.clone()))
                .collect();
            for (device, sender) in streams {
                if self.devices.get(&device).is_some_and(|device| device.user == user) {
                    let cursor = self.history.cursor(Place::Stream(place));
                    let id = self.issue(&device, cursor, true);
                    sender
                        .try_send(Frame::Event(LiveEvent::new(&name, Some(id), &data)))
                        .ok();
                }
            }
        }
    }
}
