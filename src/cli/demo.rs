//! `posduif demo`: a story in which bob, in a browser, and a phone write to each other while the phone comes and goes.
//!
//! It runs against a real engine and checks everything it sees, so it doubles as a smoke test: nothing lost, nothing
//! told twice, nothing out of order, and at the end the phone's SQLite file says what the server says. Each run
//! enrolls a new phone, so it can run again and again, also several at once. The phone is the reference phone itself.

mod api;
#[allow(clippy::print_stdout, reason = "what its own command line prints")]
#[path = "../../examples/phone.rs"]
#[expect(dead_code, reason = "its command line and what only that uses")]
mod phone;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::api::{Api, Caller, EventStream, encode};
use self::phone::{Answer, Event, Http, Lost, Message, Network, Phone, Request, Trouble};
use self::report::Report;
use super::Global;
use super::dev::{DEMO_PASSWORD, DEMO_TENANT};
use super::output::{self, NobodyReads};

/// Arguments of `posduif demo`.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Base URL of the engine
    #[arg(long, env = "POSDUIF_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Longest that an answer or an event may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Keep the phone's SQLite file and say where it is
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let patience = Duration::from_secs(self.timeout);
        let api = Api::new(&self.url, patience)?;
        let file = PhoneFile::create(self.keep)?;
        let mut report = Report::new(global.json);
        let outcome = play(&api, &file.path, patience, &mut report).await;
        if self.keep {
            output::warn_line(format_args!("the phone's SQLite file: {}", file.path.display()));
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if error.is::<NobodyReads>() => Err(error),
            Err(error) => bail!("{} failed: {error:#}\n{}", report.place(), api.readiness().await),
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

/// The way from the phone to the engine. It tells what became of the last upload, and can lose its answer.
struct Line<'a> {
    http: &'a Http,
    results: Mutex<Vec<Outcome>>,
    loses_answer: bool,
}

impl<'a> Line<'a> {
    fn new(api: &'a Api, loses_answer: bool) -> Self {
        Self {
            http: &api.http,
            results: Mutex::default(),
            loses_answer,
        }
    }

    /// What became of the items of the last upload.
    fn results(&self) -> Vec<Outcome> {
        self.results.lock().map(|results| results.clone()).unwrap_or_default()
    }
}

/// What became of one uploaded item.
#[derive(Debug, Clone, Deserialize)]
struct Outcome {
    id: String,
    status: String,
}

impl Network for Line<'_> {
    async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
        let answer = self.http.exchange(request).await?;
        let results = answer.body.get("results").map(Vec::<Outcome>::deserialize);
        if let (Some(Ok(found)), Ok(mut results)) = (results, self.results.lock()) {
            *results = found;
        }
        if self.loses_answer {
            return Err(Lost("the demo lost the answer".to_owned()));
        }
        Ok(answer)
    }
}

/// The story. Every step names what it shows; every check says what it found instead.
async fn play(api: &Api, file: &Path, patience: Duration, report: &mut Report) -> Result<()> {
    let bob = report.step("bob logs in", log_in(api)).await?;
    let enrollment = report
        .step("bob creates an enrollment", async {
            let path = "/api/enrollment/create";
            let enrollment: Enrollment = api.call(&bob.caller, Method::POST, path, Some(json!({}))).await?;
            Ok((enrollment.token, String::new()))
        })
        .await?;
    report
        .step("the phone reads the enrollment", read_enrollment(api, &enrollment))
        .await?;
    let mut phone = report
        .step(
            "the phone enrolls and gets its own token",
            enroll(api, &enrollment, file),
        )
        .await?;
    let phone_id = phone.recall("user_id")?.context("the phone does not know its user")?;

    let mut told = BTreeSet::new();
    let mut phone_events = report
        .step("the phone opens its event stream", async {
            Ok((api.listen_as(&mut phone).await?, String::new()))
        })
        .await?;
    let web = format!("/sse/web/{}", bob.id);
    let mut bob_events = report
        .step("bob opens his event stream", async {
            Ok((api.listen(&bob.caller, &web).await?, String::new()))
        })
        .await?;

    let first = report
        .step("bob writes a message; the phone is told at once", async {
            let message = send(api, &bob, &phone_id, "Hello, phone").await?;
            wait_for_messages(&mut phone_events, &phone, std::slice::from_ref(&message), &mut told).await?;
            Ok((message, "event: message".to_owned()))
        })
        .await?;
    report
        .step(
            "the phone syncs and has it in SQLite",
            sync_until_it_has(api, &mut phone, std::slice::from_ref(&first)),
        )
        .await?;

    drop(phone_events);
    let missed = report
        .step("the phone is off line; bob writes three more", async {
            let mut missed = Vec::new();
            for content in ["Are you there?", "Never mind", "Call me back"] {
                missed.push(send(api, &bob, &phone_id, content).await?);
            }
            Ok((missed, String::new()))
        })
        .await?;
    let replies = report
        .step("the phone, still off line, writes two replies", async {
            let replies = [
                phone.send(&bob.id, "Here I am")?,
                phone.send(&bob.id, "Was in a tunnel")?,
            ];
            Ok((replies, format!("outbox: {}", phone.waiting()?.len())))
        })
        .await?;

    let mut phone_events = report
        .step("the phone is back and is told what it missed, in order", async {
            let last = phone.recall("last_event_id")?;
            ensure!(last.is_some(), "no event so far had an id to resume from");
            let mut events = api.listen_as(&mut phone).await?;
            wait_for_messages(&mut events, &phone, &missed, &mut told).await?;
            Ok((events, "Last-Event-ID, no message twice".to_owned()))
        })
        .await?;
    report
        .step("it syncs what it missed", sync_until_it_has(api, &mut phone, &missed))
        .await?;
    let unread = report
        .step("it uploads its outbox, and the answer is lost", async {
            let unread = unread_count(api, &bob).await?;
            let line = Line::new(api, true);
            let outcome = phone.upload(&line).await;
            ensure!(
                matches!(outcome, Err(Trouble::Later { .. })),
                "the phone took a lost answer for {outcome:?}"
            );
            all_are("applied", &replies, &line.results())?;
            Ok((unread, format!("2 applied, outbox: {}", phone.waiting()?.len())))
        })
        .await?;
    report
        .step("bob is told of both, with his unread count", async {
            let count = wait_for_replies(&mut bob_events, &replies).await?;
            ensure!(
                count >= unread + 2,
                "the event says unread_count {count}, but {unread} were unread before the two replies"
            );
            Ok(((), format!("unread_count: {count}")))
        })
        .await?;
    report
        .step("without an answer, it uploads the same again", async {
            let line = Line::new(api, false);
            phone.upload(&line).await?;
            all_are("duplicate", &replies, &line.results())?;
            Ok(((), format!("2 duplicate, outbox: {}", phone.waiting()?.len())))
        })
        .await?;

    let [first_reply, second_reply] = &replies;
    report
        .step("bob reads the first reply; the phone is told", async {
            read(api, &bob, first_reply).await?;
            wait_until_read(&mut phone_events, &phone, first_reply).await?;
            phone.fetch(&api.http).await?;
            Ok(((), "event: message_read".to_owned()))
        })
        .await?;

    drop(phone_events);
    report
        .step("off line again, the phone edits its second reply", async {
            phone.edit(second_reply, "Was in a long tunnel")?;
            Ok(((), format!("outbox: {}", phone.waiting()?.len())))
        })
        .await?;
    report
        .step("meanwhile bob reads it, and edits his own first message", async {
            read(api, &bob, second_reply).await?;
            let path = format!("/api/messages/{}", first.id);
            let edited: Message = api
                .call(
                    &bob.caller,
                    Method::PATCH,
                    &path,
                    Some(json!({"content": "Hello, dear phone"})),
                )
                .await?;
            ensure!(
                edited.version > first.version,
                "the edited message still has version {}",
                edited.version
            );
            Ok(((), format!("version {} became {}", first.version, edited.version)))
        })
        .await?;
    report
        .step("the phone uploads the edit: both sides changed the message", async {
            let line = Line::new(api, false);
            phone.upload(&line).await?;
            all_are("conflict", std::slice::from_ref(second_reply), &line.results())?;
            Ok(((), format!("1 conflict, outbox: {}", phone.waiting()?.len())))
        })
        .await?;
    report
        .step("it resumes and is told that its reply was read", async {
            let mut events = api.listen_as(&mut phone).await?;
            wait_until_read(&mut events, &phone, second_reply).await?;
            Ok(((), "event: message_read".to_owned()))
        })
        .await?;
    report
        .step("after a last sync, phone and server say the same", async {
            let count = compare(api, &bob, &mut phone, patience).await?;
            ensure!(
                count == 6,
                "4 messages and 2 replies were written, and both sides have {count}"
            );
            Ok(((), format!("{count} messages equal")))
        })
        .await
}

async fn log_in(api: &Api) -> Result<(Bob, String)> {
    let body = json!({"tenant": DEMO_TENANT, "username": "bob", "password": DEMO_PASSWORD});
    let login: Login = api
        .call(&Caller::Nobody, Method::POST, "/api/auth/login", Some(body))
        .await?;
    let bob = Bob {
        id: login.user.id,
        caller: Caller::User { token: login.token },
    };
    Ok((bob, format!("tenant {DEMO_TENANT}")))
}

async fn read_enrollment(api: &Api, token: &str) -> Result<((), String)> {
    let path = format!("/api/enrollment/{}", encode(token));
    let details: EnrollmentDetails = api.call(&Caller::Nobody, Method::GET, &path, None).await?;
    ensure!(details.valid, "the enrollment, just made, is not valid");
    ensure!(
        details.tenant_id == DEMO_TENANT,
        "the enrollment is for tenant {}, not {DEMO_TENANT}",
        details.tenant_id
    );
    Ok(((), "valid".to_owned()))
}

async fn enroll(api: &Api, token: &str, file: &Path) -> Result<(Phone, String)> {
    let mut phone = Phone::open(file)?;
    // Few, so that the demo shows paging.
    phone.batch_rows = Some(2);
    phone.enroll(&api.http, token).await?;
    let device = phone.recall("device_id")?.unwrap_or_default();
    Ok((phone, device))
}

async fn send(api: &Api, bob: &Bob, recipient_id: &str, content: &str) -> Result<Message> {
    let body = json!({"recipient_id": recipient_id, "content": content});
    api.call(&bob.caller, Method::POST, "/api/messages", Some(body)).await
}

async fn read(api: &Api, bob: &Bob, message_id: &str) -> Result<()> {
    let path = format!("/api/messages/{message_id}/read");
    let _read: Value = api.call(&bob.caller, Method::PUT, &path, None).await?;
    Ok(())
}

async fn unread_count(api: &Api, bob: &Bob) -> Result<u64> {
    let answer: Value = api
        .call(&bob.caller, Method::GET, "/api/messages/unread-count", None)
        .await?;
    answer
        .get("unread_count")
        .and_then(Value::as_u64)
        .context("GET /api/messages/unread-count gave no unread_count")
}

/// Waits until the phone was told of exactly these messages, in this order, each for the first time.
async fn wait_for_messages(
    events: &mut EventStream,
    phone: &Phone,
    wanted: &[Message],
    told: &mut BTreeSet<String>,
) -> Result<()> {
    for message in wanted {
        let what = format!("event `message` about \"{}\"", message.content);
        let told_of = |event: &Event| Some((message_of(event)?, event.clone()));
        let (id, event) = events.wait_for(&what, told_of).await?;
        phone.saw(&event)?;
        ensure!(told.insert(id.clone()), "the phone was told of message {id} twice");
        ensure!(
            id == message.id,
            "waited for {what}, and was told of message {id} before it"
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

/// Waits until bob was told of both replies and gives the unread count of the last event.
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

/// Whether it is this event about this message.
fn is_about(event: &Event, name: &str, message_id: &str) -> bool {
    event.name == name && event.field("message_id").is_some_and(|id| id == message_id)
}

async fn sync_until_it_has(api: &Api, phone: &mut Phone, wanted: &[Message]) -> Result<((), String)> {
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
    Ok(((), format!("{} rows in {} batches", synced.rows, synced.batches)))
}

/// Checks that the server answered with this status, and for these messages.
fn all_are(status: &str, messages: &[String], results: &[Outcome]) -> Result<()> {
    let found: Vec<String> = results
        .iter()
        .map(|result| format!("{} {}", result.id, result.status))
        .collect();
    let expected: Vec<String> = messages.iter().map(|id| format!("{id} {status}")).collect();
    ensure!(
        found == expected,
        "the upload was answered by {found:?}, not {expected:?}"
    );
    Ok(())
}

/// Syncs until the phone has what bob sees of their conversation, and gives the number of messages. The stream may be
/// a moment behind the phone's own upload, hence "until".
async fn compare(api: &Api, bob: &Bob, phone: &mut Phone, patience: Duration) -> Result<usize> {
    let deadline = Instant::now() + patience;
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
                "waited {} s for phone and server to agree: {}",
                patience.as_secs(),
                differences.join("; ")
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// All messages between bob and the phone's user, as bob sees them, by id: a page may repeat what the one before it
/// had, when somebody writes to bob in between.
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

/// How the phone's row differs from the server's. `status` and `synced_at` are the server's bookkeeping, which a
/// recipient never gets.
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

/// The phone's SQLite file; removed in the end unless it is to be kept.
struct PhoneFile {
    path: PathBuf,
    keep: bool,
}

impl PhoneFile {
    fn create(keep: bool) -> Result<Self> {
        let name = format!("posduif-demo-{}.sqlite", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        // SQLite would make it readable by all, and it holds the device's token.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot make the phone's file {}", path.display()))?;
        Ok(Self { path, keep })
    }
}

impl Drop for PhoneFile {
    fn drop(&mut self) {
        if !self.keep {
            // A leftover in the folder of temporary files is no reason to fail.
            let _removed = std::fs::remove_file(&self.path);
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
            created_at: "2026-01-01T00:00:00Z".into(),
            read_at: read_at.map(str::to_owned),
        }
    }

    #[test]
    fn the_same_instant_in_another_form_is_no_difference() {
        let one = message(Some("2026-01-01T10:00:00.5Z"));
        let other = message(Some("2026-01-01T11:00:00.500000+01:00"));
        assert_eq!(difference(&one, Some(&other)), None);
        assert!(difference(&one, Some(&message(None))).is_some());
        assert!(difference(&one, None).is_some());
    }

    #[test]
    fn an_event_about_something_else_is_no_message() {
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
