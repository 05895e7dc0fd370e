//! `posduif demo`: a scripted conversation between bob, in a browser, and a phone that goes offline and returns.
//!
//! The demo runs against a real engine and checks every response and event, so it doubles as a smoke test: no message is
//! lost, duplicated or out of order, and at the end the phone's SQLite file equals the server. Each run enrolls a new
//! phone, so runs can be repeated and concurrent. The phone is the reference client `examples/phone.rs`.

mod api;
#[allow(clippy::print_stdout, reason = "its own command line prints")]
#[path = "../../examples/phone.rs"]
#[expect(dead_code, reason = "its command line is unused here")]
mod phone;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use hyper::Method;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::api::{Api, Caller, EventStream, encode};
use self::phone::{Answer, Event, Http, Lost, Message, Network, Phone, Request, Trouble};
use self::report::Report;
use super::Global;
use super::output::{self, OutputClosed};
use crate::dev::demo::{PASSWORD, TENANT};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Base URL of the engine
    #[arg(long, env = "POSDUIF_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Timeout of each response and each event, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Keep the phone's SQLite file and print its path
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let timeout = Duration::from_secs(self.timeout);
        let api = Api::new(&self.url, timeout)?;
        let file = PhoneFile::create(self.keep)?;
        let mut report = Report::new(global);
        let outcome = play(&api, &file.path, timeout, &mut report).await;
        if self.keep {
            output::warn(format_args!("the phone's SQLite file: {}", file.path.display()));
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if error.is::<OutputClosed>() => Err(error),
            Err(error) => bail!("{} failed: {error:#}\n{}", report.last_step(), api.readiness().await),
        }
    }
}

/// Bob, logged in.
struct Bob {
    id: String,
    caller: Caller,
}

#[derive(Deserialize)]
struct Login {
    token: String,
    user: LoginUser,
}

#[derive(Deserialize)]
struct LoginUser {
    id: String,
}

#[derive(Deserialize)]
struct Enrollment {
    token: String,
}

#[derive(Deserialize)]
struct EnrollmentDetails {
    tenant_id: String,
    valid: bool,
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Message>,
    total: usize,
}

/// The connection of the phone. It records the results of the last upload, and can lose its response.
struct Line<'a> {
    http: &'a Http,
    results: Mutex<Vec<UploadResult>>,
    loses_response: bool,
}

impl<'a> Line<'a> {
    fn new(api: &'a Api, loses_response: bool) -> Self {
        Self {
            http: &api.http,
            results: Mutex::default(),
            loses_response,
        }
    }

    /// Results of the last upload.
    fn results(&self) -> Vec<UploadResult> {
        self.results.lock().clone()
    }
}

/// Result of one uploaded item.
#[derive(Debug, Clone, Deserialize)]
struct UploadResult {
    id: String,
    status: String,
}

impl Network for Line<'_> {
    async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
        let answer = self.http.exchange(request).await?;
        let results = answer.body.get("results").map(Vec::<UploadResult>::deserialize);
        if let Some(Ok(found)) = results {
            *self.results.lock() = found;
        }
        if self.loses_response {
            return Err(Lost("the demo discarded the response".to_owned()));
        }
        Ok(answer)
    }
}

/// The state of the demo between steps.
struct Demonstration<'a, 'r> {
    api: &'a Api,
    report: &'a mut Report<'r>,
    bob: Bob,
    phone: Phone,
    phone_id: String,
    /// Messages that the phone has received an event about.
    received: BTreeSet<String>,
    timeout: Duration,
}

/// Runs all parts. Each step names what it demonstrates and fails with what it found instead.
async fn play(api: &Api, file: &Path, timeout: Duration, report: &mut Report<'_>) -> Result<()> {
    let mut demo = Demonstration::start(api, file, timeout, report).await?;
    let (mut phone_events, mut bob_events) = demo.open_streams().await?;
    let first = demo.deliver_at_once(&mut phone_events).await?;
    drop(phone_events);
    let (missed, replies) = demo.write_while_offline().await?;
    let mut phone_events = demo.catch_up(&missed).await?;
    demo.upload_twice(&replies, &mut bob_events).await?;
    demo.mark_read(&replies, &mut phone_events).await?;
    drop(phone_events);
    demo.conflict(&first, &replies).await?;
    demo.compare().await
}

impl<'a, 'r> Demonstration<'a, 'r> {
    /// Logs bob in and enrolls the phone.
    async fn start(api: &'a Api, file: &Path, timeout: Duration, report: &'a mut Report<'r>) -> Result<Self> {
        let bob = report.step("bob logs in", log_in(api)).await?;
        let create = async {
            let path = "/api/enrollment/create";
            let enrollment: Enrollment = api.call(&bob.caller, Method::POST, path, Some(json!({}))).await?;
            Ok((enrollment.token, String::new()))
        };
        let enrollment = report.step("bob creates an enrollment", create).await?;
        report
            .check("the phone reads the enrollment", read_enrollment(api, &enrollment))
            .await?;
        let name = "the phone enrolls and receives its token";
        let phone = report.step(name, enroll(api, &enrollment, file)).await?;
        Ok(Self {
            api,
            report,
            bob,
            phone_id: phone.recall("user_id")?.context("the phone has no user_id")?,
            phone,
            received: BTreeSet::new(),
            timeout,
        })
    }

    async fn open_streams(&mut self) -> Result<(EventStream, EventStream)> {
        let open = async { Ok((self.api.listen_as(&mut self.phone).await?, String::new())) };
        let phone_events = self.report.step("the phone opens its event stream", open).await?;
        let path = format!("/sse/web/{}", self.bob.id);
        let open = async { Ok((self.api.listen(&self.bob.caller, &path).await?, String::new())) };
        let bob_events = self.report.step("bob opens his event stream", open).await?;
        Ok((phone_events, bob_events))
    }

    /// Delivery to a connected phone.
    async fn deliver_at_once(&mut self, events: &mut EventStream) -> Result<Message> {
        let Self { api, bob, phone, .. } = self;
        let work = async {
            let message = send(api, bob, &self.phone_id, "Hello, phone").await?;
            wait_for_messages(events, phone, std::slice::from_ref(&message), &mut self.received).await?;
            Ok((message, "event: message".to_owned()))
        };
        let name = "bob writes a message; the phone receives an event at once";
        let message = self.report.step(name, work).await?;
        let work = sync_until_it_has(api, phone, std::slice::from_ref(&message));
        self.report.check("the phone syncs the message to SQLite", work).await?;
        Ok(message)
    }

    /// Both sides write while the phone is offline: three messages and two replies.
    async fn write_while_offline(&mut self) -> Result<(Vec<Message>, [String; 2])> {
        let Self { api, bob, phone, .. } = self;
        let work = async {
            let mut missed = Vec::new();
            for content in ["Are you there?", "Never mind", "Call me back"] {
                missed.push(send(api, bob, &self.phone_id, content).await?);
            }
            Ok((missed, String::new()))
        };
        let name = "the phone is offline; bob writes three messages";
        let missed = self.report.step(name, work).await?;
        let work = async {
            let replies = [
                phone.send(&bob.id, "Here I am")?,
                phone.send(&bob.id, "Was in a tunnel")?,
            ];
            Ok((replies, format!("outbox: {}", phone.waiting()?.len())))
        };
        let replies = self.report.step("the offline phone writes two replies", work).await?;
        Ok((missed, replies))
    }

    /// The phone resumes its event stream and syncs.
    async fn catch_up(&mut self, missed: &[Message]) -> Result<EventStream> {
        let Self { api, phone, .. } = self;
        let work = async {
            let last = phone.recall("last_event_id")?;
            ensure!(last.is_some(), "no event had an id to resume from");
            let mut events = api.listen_as(phone).await?;
            wait_for_messages(&mut events, phone, missed, &mut self.received).await?;
            Ok((events, "Last-Event-ID, no duplicates".to_owned()))
        };
        let name = "the phone returns and receives the missed events in order";
        let events = self.report.step(name, work).await?;
        let work = sync_until_it_has(api, phone, missed);
        self.report.check("the phone syncs the missed messages", work).await?;
        Ok(events)
    }

    /// Uploads are idempotent: an upload whose response is lost is repeated without effect.
    async fn upload_twice(&mut self, replies: &[String], bob_events: &mut EventStream) -> Result<()> {
        let Self { api, bob, phone, .. } = self;
        let work = async {
            let unread = unread_count(api, bob).await?;
            let line = Line::new(api, true);
            let outcome = phone.upload(&line).await;
            ensure!(
                matches!(outcome, Err(Trouble::Later { .. })),
                "the phone took a lost response for {outcome:?}"
            );
            all_are("applied", replies, &line.results())?;
            Ok((unread, format!("2 applied, outbox: {}", phone.waiting()?.len())))
        };
        let name = "the phone uploads its outbox; the response is lost";
        let unread = self.report.step(name, work).await?;
        let work = async {
            let count = wait_for_replies(bob_events, replies).await?;
            ensure!(
                count >= unread + 2,
                "the event has unread_count {count}, but {unread} were unread before the two replies"
            );
            Ok(format!("unread_count: {count}"))
        };
        let name = "bob receives both replies and his unread count";
        self.report.check(name, work).await?;
        let work = async {
            let line = Line::new(api, false);
            phone.upload(&line).await?;
            all_are("applied", replies, &line.results())?;
            Ok(format!("2 first results, outbox: {}", phone.waiting()?.len()))
        };
        let name = "the phone repeats the upload; nothing is applied twice";
        self.report.check(name, work).await
    }

    async fn mark_read(&mut self, replies: &[String; 2], phone_events: &mut EventStream) -> Result<()> {
        let Self { api, bob, phone, .. } = self;
        let [first, _] = replies;
        let work = async {
            read(api, bob, first).await?;
            wait_until_read(phone_events, phone, first).await?;
            phone.fetch(&api.http).await?;
            Ok("event: message_read".to_owned())
        };
        let name = "bob reads the first reply; the phone receives an event";
        self.report.check(name, work).await
    }

    /// Both sides change the second reply while the phone is offline.
    async fn conflict(&mut self, first: &Message, replies: &[String; 2]) -> Result<()> {
        let Self { api, bob, phone, .. } = self;
        let [_, second] = replies;
        let work = async {
            phone.edit(second, "Was in a long tunnel")?;
            Ok(format!("outbox: {}", phone.waiting()?.len()))
        };
        let name = "the phone, offline again, edits its second reply";
        self.report.check(name, work).await?;
        let work = async {
            read(api, bob, second).await?;
            edit_elsewhere(api, bob, &self.phone_id, second).await?;
            let path = format!("/api/messages/{}", first.id);
            let content = json!({"content": "Hello, dear phone"});
            let edited: Message = api.call(&bob.caller, Method::PATCH, &path, Some(content)).await?;
            ensure!(
                edited.version > first.version,
                "the edited message still has version {}",
                edited.version
            );
            Ok(format!("version {} -> {}", first.version, edited.version))
        };
        let name = "bob reads that reply and edits his message; the author edits the reply on another phone";
        self.report.check(name, work).await?;
        let work = async {
            let line = Line::new(api, false);
            phone.upload(&line).await?;
            all_are("conflict", std::slice::from_ref(second), &line.results())?;
            Ok(format!("1 conflict, outbox: {}", phone.waiting()?.len()))
        };
        let name = "the phone uploads the edit: a conflict";
        self.report.check(name, work).await?;
        let work = async {
            let mut events = api.listen_as(phone).await?;
            wait_until_read(&mut events, phone, second).await?;
            Ok("event: message_read".to_owned())
        };
        let name = "the phone resumes and receives that its reply was read";
        self.report.check(name, work).await
    }

    async fn compare(&mut self) -> Result<()> {
        let Self { api, bob, phone, .. } = self;
        let work = async {
            let count = compare(api, bob, phone, self.timeout).await?;
            ensure!(
                count == 6,
                "4 messages and 2 replies were written, but both sides have {count}"
            );
            Ok(format!("{count} messages equal"))
        };
        self.report
            .check("after a last sync, phone and server are equal", work)
            .await
    }
}

async fn log_in(api: &Api) -> Result<(Bob, String)> {
    let body = json!({"tenant": TENANT, "username": "bob", "password": PASSWORD});
    let login: Login = api
        .call(&Caller::Anonymous, Method::POST, "/api/auth/login", Some(body))
        .await?;
    let bob = Bob {
        id: login.user.id,
        caller: Caller::User { token: login.token },
    };
    Ok((bob, format!("tenant {TENANT}")))
}

async fn read_enrollment(api: &Api, token: &str) -> Result<String> {
    let path = format!("/api/enrollment/{}", encode(token));
    let details: EnrollmentDetails = api.call(&Caller::Anonymous, Method::GET, &path, None).await?;
    ensure!(details.valid, "the new enrollment is not valid");
    ensure!(
        details.tenant_id == TENANT,
        "the enrollment is for tenant {}, not {TENANT}",
        details.tenant_id
    );
    Ok("valid".to_owned())
}

async fn enroll(api: &Api, token: &str, file: &Path) -> Result<(Phone, String)> {
    let mut phone = Phone::open(file)?;
    // Small, to demonstrate paging.
    phone.batch_rows = Some(2);
    phone.enroll(&api.http, token).await?;
    let device = phone.recall("device_id")?.unwrap_or_default();
    Ok((phone, device))
}

/// Edits a message of the phone on another phone of its user, whose state is in memory only.
async fn edit_elsewhere(api: &Api, bob: &Bob, user_id: &str, message_id: &str) -> Result<()> {
    let body = json!({"user_id": user_id});
    let path = "/api/enrollment/create";
    let enrollment: Enrollment = api.call(&bob.caller, Method::POST, path, Some(body)).await?;
    let mut phone = Phone::open(Path::new(":memory:"))?;
    phone.enroll(&api.http, &enrollment.token).await?;
    phone.sync(&api.http).await?;
    phone.edit(message_id, "Was in a tunnel for an hour")?;
    let line = Line::new(api, false);
    phone.upload(&line).await?;
    all_are("applied", &[message_id.to_owned()], &line.results())
}

async fn send(api: &Api, bob: &Bob, recipient_id: &str, content: &str) -> Result<Message> {
    let body = json!({"recipient_id": recipient_id, "content": content});
    api.call(&bob.caller, Method::POST, "/api/messages", Some(body)).await
}

async fn read(api: &Api, bob: &Bob, message_id: &str) -> Result<()> {
    let path = format!("/api/messages/{message_id}/read");
    let _: Value = api.call(&bob.caller, Method::PUT, &path, None).await?;
    Ok(())
}

async fn unread_count(api: &Api, bob: &Bob) -> Result<u64> {
    let answer: Value = api
        .call(&bob.caller, Method::GET, "/api/messages/unread-count", None)
        .await?;
    answer
        .get("unread_count")
        .and_then(Value::as_u64)
        .context("GET /api/messages/unread-count returned no unread_count")
}

/// Waits until the phone has received events about exactly these messages, in this order, each once.
async fn wait_for_messages(
    events: &mut EventStream,
    phone: &Phone,
    wanted: &[Message],
    received: &mut BTreeSet<String>,
) -> Result<()> {
    for message in wanted {
        let what = format!("event `message` about \"{}\"", message.content);
        let with_message = |event: &Event| Some((message_of(event)?, event.clone()));
        let (id, event) = events.wait_for(&what, with_message).await?;
        phone.saw(&event)?;
        ensure!(
            received.insert(id.clone()),
            "the phone received two events about message {id}"
        );
        ensure!(
            id == message.id,
            "expected {what}, received an event about message {id}"
        );
    }
    Ok(())
}

fn message_of(event: &Event) -> Option<String> {
    if event.name != "message" {
        return None;
    }
    event.field("message_id")?.as_str().map(str::to_owned)
}

/// Waits until bob has received events about both replies; returns the unread count of the last one.
async fn wait_for_replies(events: &mut EventStream, replies: &[String]) -> Result<u64> {
    let mut count = None;
    for reply in replies {
        let what = format!("event `new_message` about {reply}");
        count = events
            .wait_for(&what, |event| {
                is_about(event, "new_message", reply)
                    .then(|| event.field("unread_count").and_then(|count| count.as_u64()))
            })
            .await?;
    }
    count.context("event `new_message` has no unread_count")
}

async fn wait_until_read(events: &mut EventStream, phone: &Phone, message_id: &str) -> Result<()> {
    let what = format!("event `message_read` about {message_id}");
    let read = |event: &Event| is_about(event, "message_read", message_id).then(|| event.clone());
    let event = events.wait_for(&what, read).await?;
    Ok(phone.saw(&event)?)
}

fn is_about(event: &Event, name: &str, message_id: &str) -> bool {
    event.name == name && event.field("message_id").is_some_and(|id| id == message_id)
}

async fn sync_until_it_has(api: &Api, phone: &mut Phone, wanted: &[Message]) -> Result<String> {
    let synced = phone.fetch(&api.http).await?;
    let kept = phone.messages()?;
    for message in wanted {
        let found = kept.get(&message.id).map(|kept| &kept.content);
        ensure!(
            found == Some(&message.content),
            "after the sync the phone has {found:?} for message {}, not \"{}\"",
            message.id,
            message.content
        );
    }
    Ok(format!("{} rows in {} batches", synced.rows, synced.batches))
}

/// Checks that the upload had this status for exactly these messages.
fn all_are(status: &str, messages: &[String], results: &[UploadResult]) -> Result<()> {
    let found: Vec<String> = results
        .iter()
        .map(|result| format!("{} {}", result.id, result.status))
        .collect();
    let expected: Vec<String> = messages.iter().map(|id| format!("{id} {status}")).collect();
    ensure!(
        found == expected,
        "the results of the upload are {found:?}, expected {expected:?}"
    );
    Ok(())
}

/// Syncs until the phone equals bob's view of the conversation; returns the number of messages. Repeats, because the
/// stream may be a moment behind the phone's own upload.
async fn compare(api: &Api, bob: &Bob, phone: &mut Phone, timeout: Duration) -> Result<usize> {
    let deadline = Instant::now() + timeout;
    loop {
        phone.sync(&api.http).await?;
        let kept = phone.messages()?;
        let user_id = phone.recall("user_id")?.unwrap_or_default();
        let seen = conversation(api, bob, &user_id).await?;
        let mut differences: Vec<String> = seen
            .values()
            .filter_map(|theirs| difference(theirs, kept.get(&theirs.id)))
            .collect();
        differences.extend(
            kept.keys()
                .filter(|id| !seen.contains_key(*id))
                .map(|id| format!("message {id} is on the phone only")),
        );
        if differences.is_empty() {
            return Ok(seen.len());
        }
        if Instant::now() > deadline {
            return Err(anyhow!(
                "phone and server still differ after {} s: {}",
                timeout.as_secs(),
                differences.join("; ")
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// All messages between bob and the phone's user, as bob sees them, by id: a page may repeat messages of the previous
/// one when a message arrives in between.
async fn conversation(api: &Api, bob: &Bob, user_id: &str) -> Result<BTreeMap<String, Message>> {
    let to_phone = pages(api, bob, user_id).await?;
    let to_bob = pages(api, bob, &bob.id).await?;
    Ok(to_phone
        .into_iter()
        .chain(to_bob.into_iter().filter(|message| message.sender_id == user_id))
        .map(|message| (message.id.clone(), message))
        .collect())
}

/// All pages of `GET /api/messages` for one recipient.
async fn pages(api: &Api, bob: &Bob, recipient_id: &str) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    loop {
        let path = format!(
            "/api/messages?recipient_id={}&limit=100&offset={}",
            encode(recipient_id),
            messages.len()
        );
        let page: Page = api.call(&bob.caller, Method::GET, &path, None).await?;
        let last = page.messages.is_empty();
        messages.extend(page.messages);
        if last || messages.len() >= page.total {
            return Ok(messages);
        }
    }
}

/// How the phone's row differs from the server's. `status` and `synced_at` are internal to the server.
fn difference(theirs: &Message, mine: Option<&Message>) -> Option<String> {
    let Some(mine) = mine else {
        return Some(format!("message {} is not on the phone", theirs.id));
    };
    let instant = |text: &Option<String>| {
        text.as_deref()
            .map(|text| chrono::DateTime::parse_from_rfc3339(text).map_err(|_| text.to_owned()))
    };
    let same = (&theirs.sender_id, &theirs.recipient_id, &theirs.content, theirs.version)
        == (&mine.sender_id, &mine.recipient_id, &mine.content, mine.version)
        && instant(&theirs.read_at) == instant(&mine.read_at);
    (!same).then(|| {
        let shown = |message: &Message| serde_json::to_string(message).unwrap_or_default();
        format!("the server has {}, the phone {}", shown(theirs), shown(mine))
    })
}

/// The phone's SQLite file; removed on drop unless it is to be kept.
struct PhoneFile {
    path: PathBuf,
    keep: bool,
}

impl PhoneFile {
    fn create(keep: bool) -> Result<Self> {
        let name = format!("posduif-demo-{}.sqlite", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        // SQLite would create it world-readable, and it holds the device token.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot create the phone's file {}", path.display()))?;
        Ok(Self { path, keep })
    }
}

impl Drop for PhoneFile {
    fn drop(&mut self) {
        if !self.keep {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(read_at: Option<&str>) -> Message {
        Message {
            id: "a".into(),
            sender_id: "b".into(),
            recipient_id: "c".into(),
            content: "d".into(),
            version: 1,
            revision: 1,
            created_at: "2026-01-01T00:00:00Z".into(),
            read_at: read_at.map(str::to_owned),
        }
    }

    #[test]
    fn equal_instants_in_other_form_are_no_difference() {
        let one = message(Some("2026-01-01T10:00:00.5Z"));
        let other = message(Some("2026-01-01T11:00:00.500000+01:00"));
        assert_eq!(difference(&one, Some(&other)), None);
        assert!(difference(&one, Some(&message(None))).is_some());
        assert!(difference(&one, None).is_some());
    }

    #[test]
    fn message_of_other_events_is_none() {
        let event = |name: &str, data: &str| Event {
            name: name.to_owned(),
            id: None,
            data: data.to_owned(),
        };
        assert_eq!(
            message_of(&event("message", r#"{"message_id":"m"}"#)),
            Some("m".to_owned())
        );
        assert_eq!(message_of(&event("sync_required", r#"{"pending_count":5}"#)), None);
        assert_eq!(message_of(&event("message", "no JSON")), None);
    }
}
