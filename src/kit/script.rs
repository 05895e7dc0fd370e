//! Runs the script of one case with a driver against the scripted server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::case::{Case, Feature, Outcome, Step};
use super::driver::{Driver, Introduction, Pending};
use super::failure::{Failure, broken};
use super::history::{TABLES, uuid_of};
use super::outside::{outside, with_ids};
use super::requests::{self, Wanted};
use super::server::{self, Listening};
use super::stage::{Inner, Stage};
use super::wire::Route;

/// Attempts of a sync that ends well.
const ATTEMPTS: u32 = 8;

/// How long a request may take to arrive.
const AWAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest time from the begin of a sync to a kill at random, in microseconds.
const KILL_MICROS: u64 = 25_000;

/// How long a device may take to show another state, and the pause between two looks.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);
const STATE_PAUSE: Duration = Duration::from_millis(10);

/// Time passes in pieces of this length at most; `advance-until` takes so many.
const PIECE_MS: u64 = 500;
const PIECES: u64 = 100;

/// Columns of messages that are bookkeeping of the server.
const BOOKKEEPING: [&str; 2] = ["status", "synced_at"];

/// Lines of the wire that a report shows.
const WIRE_LINES: usize = 24;

/// What a case ended with.
#[derive(Debug)]
pub struct Ended {
    pub introduction: Introduction,
    /// `None`: features are missing.
    pub result: Option<Result<(), Failure>>,
    /// The steps that were done, and what the wire saw.
    pub transcript: Vec<String>,
}

/// A folder of its own for the storage of a driver.
struct Folder(PathBuf);

impl Folder {
    fn create() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("posduif-kit-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs a case. The driver is started for it alone.
///
/// # Errors
/// When the kit cannot listen or write its files.
pub async fn run(case: &Case, command: &str, seed: u64) -> anyhow::Result<Ended> {
    let stage = Stage::new(seed);
    if let Some(page) = case.page {
        stage.with(|inner| inner.page = page);
    }
    let folder = Folder::create()?;
    let mut script = Script {
        listening: server::start(stage.clone()).await?,
        stage,
        command,
        seed,
        random: seed,
        folder: folder.0.clone(),
        driver: None,
        introduction: Introduction::default(),
        running: None,
        invitation: None,
        user: "alice".to_owned(),
        transcript: Vec::new(),
    };
    let result = script.run(case).await;
    if let Some(driver) = script.driver.take() {
        match result {
            Some(Err(_)) => driver.kill().await,
            _ => driver.stop().await,
        }
    }
    let wire = script.stage.read(|inner| inner.log.lines());
    let skipped = wire.len().saturating_sub(WIRE_LINES);
    script.transcript.push("wire:".to_owned());
    script.transcript.extend(wire.into_iter().skip(skipped));
    Ok(Ended {
        introduction: script.introduction,
        result,
        transcript: script.transcript,
    })
}

struct Script<'a> {
    listening: Listening,
    stage: Arc<Stage>,
    command: &'a str,
    seed: u64,
    random: u64,
    folder: PathBuf,
    driver: Option<Driver>,
    introduction: Introduction,
    /// A sync that goes on.
    running: Option<Pending>,
    /// The token of the last enrollment.
    invitation: Option<String>,
    /// The user who was enrolled last.
    user: String,
    transcript: Vec<String>,
}

type Done = Result<(), Failure>;

impl Script<'_> {
    /// `None` if the driver lacks a feature.
    async fn run(&mut self, case: &Case) -> Option<Done> {
        if let Err(failure) = self.start().await {
            return Some(Err(failure));
        }
        if !case.needs().iter().all(|feature| self.introduction.has(*feature)) {
            return None;
        }
        for (step, text) in case.steps.iter().zip(&case.script) {
            self.transcript.push(format!("step: {text}"));
            let mut done = Box::pin(self.step(step)).await;
            if done.is_ok() {
                done = self.stage.read(check_violations);
            }
            if done.is_err() {
                return Some(done);
            }
        }
        if case.ends_here {
            return Some(Ok(()));
        }
        self.transcript.push("step: a last sync without faults".to_owned());
        Some(self.settle().await)
    }

    /// Without faults, a device ends with the rows of the history and an empty outbox.
    async fn settle(&mut self) -> Done {
        self.stage.with(|inner| {
            inner.faults.clear();
            inner.is_offline = false;
            inner.history.hold(false);
            inner.uploads.items_max = None;
        });
        self.stage.release();
        if let Some(pending) = self.running.take() {
            self.finish(&pending).await?;
        }
        self.sync(Outcome::Ok).await?;
        self.check_same().await?;
        self.check_outbox(0).await?;
        self.stage.read(check_violations)
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    async fn start(&mut self) -> Done {
        let store = self.store();
        std::fs::create_dir_all(&store).map_err(|error| Failure::Kit(format!("{}: {error}", store.display())))?;
        let mut driver = Driver::start(self.command)?;
        let introduction = driver.init(&self.listening.url, &store, self.seed).await;
        self.driver = Some(driver);
        self.introduction = introduction?;
        self.idle().await
    }

    async fn kill(&mut self) {
        self.running = None;
        if let Some(driver) = self.driver.take() {
            driver.kill().await;
        }
        self.next_command();
    }

    /// From here on, a repetition is one that the user or the time asks for.
    fn next_command(&self) {
        self.stage.with(|inner| inner.log.command += 1);
    }

    fn driver(&mut self) -> Result<&mut Driver, Failure> {
        self.driver
            .as_mut()
            .ok_or_else(|| Failure::Kit("the driver does not run".to_owned()))
    }

    /// Waits for an answer; a violation on the wire ends the case, and with it a client that does not stop by itself.
    async fn finish(&mut self, pending: &Pending) -> Result<Value, Failure> {
        let stage = self.stage.clone();
        let mut changes = stage.watch();
        let driver = self.driver()?;
        let answer = driver.finish(pending);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return Ok(answer?),
                _ = changes.changed() => stage.read(check_violations)?,
            }
        }
    }

    async fn call(&mut self, name: &str, command: Value) -> Result<Value, Failure> {
        let pending = self.driver()?.begin(name, command).await?;
        self.finish(&pending).await
    }

    /// Waits until the client has done what is due, unless an answer is delayed.
    async fn idle(&mut self) -> Done {
        if self.running.is_some() {
            return Ok(());
        }
        let stage = self.stage.clone();
        let mut changes = stage.watch();
        let pending = self.driver()?.begin("wait", json!({"for": "idle"})).await?;
        let answer = self.finish(&pending);
        tokio::pin!(answer);
        loop {
            changes.mark_unchanged();
            if stage.read(|inner| inner.held > 0) {
                return Ok(());
            }
            tokio::select! {
                answer = &mut answer => return answer.map(|_| ()),
                _ = changes.changed() => {}
            }
        }
    }

    async fn step(&mut self, step: &Step) -> Done {
        match step {
            Step::Enroll { user, again, then } => self.enroll(user, *again, *then).await,
            Step::Sync { then } => self.sync(*then).await,
            Step::Finish { then } => {
                let Some(pending) = self.running.take() else {
                    return Ok(());
                };
                let answer = self.finish(&pending).await?;
                self.idle().await?;
                expect(&answer, *then, "the sync")
            }
            Step::Write { table, id, row } => self.change("write", table, id, Some(row)).await,
            Step::Edit { table, id, row } => self.change("edit", table, id, Some(row)).await,
            Step::Delete { table, id } => self.change("delete", table, id, None).await,
            Step::Read { id } => self.change("read", "messages", id, None).await,
            Step::Open { over } => self.plain("open", json!({"over": over})).await,
            Step::Close {} => self.plain("close", json!({})).await,
            Step::Advance { ms } => self.advance(*ms).await,
            Step::AdvanceUntil { on, least, most } => self.advance_until(*on, *least, *most).await,
            Step::Kill {} => {
                self.kill().await;
                self.start().await
            }
            Step::KillOften { times } => self.kill_often(*times).await,
            Step::Save {} => self.copy("store", "copy").await,
            Step::Load {} => {
                self.stage.with(|inner| inner.has_gone_back = true);
                self.copy("copy", "store").await
            }
            Step::Same {} => self.check_same().await,
            Step::Rows { table, are } => self.check_rows(table, are).await,
            Step::Outbox { is } => self.check_outbox(*is).await,
            Step::Refused { codes } => self.check_refused(codes).await,
            Step::State { is } => self.check_status("state", is).await,
            Step::Opened {} => {
                self.check_status("live", "open").await?;
                self.idle().await
            }
            Step::Cut { code } => {
                self.stage.with(|inner| inner.end_streams(*code));
                self.next_command();
                // Without a clock the device may have opened another one already.
                if self.introduction.has(Feature::Clock) {
                    self.check_status("live", "closed").await?;
                    self.idle().await?;
                }
                Ok(())
            }
            Step::Await { on, count, done } => self.wait_for(*on, *count, *done).await,
            Step::Count { on, least, most } => {
                let count = self.stage.read(|inner| inner.log.since_watch(*on).count());
                if count < *least || most.is_some_and(|most| count > most) {
                    let wanted = most.map_or_else(|| format!("at least {least}"), |most| format!("{least} to {most}"));
                    return Err(broken(format!(
                        "{count} requests `{}` were sent, not {wanted}",
                        on.name()
                    )));
                }
                Ok(())
            }
            Step::Last {
                on,
                nth,
                cursor,
                last_event_id,
                body,
                items,
            } => {
                let wanted = Wanted {
                    route: *on,
                    nth: *nth,
                    cursor: *cursor,
                    last_event_id: *last_event_id,
                    body,
                    items: items.as_deref(),
                };
                self.stage.read(|inner| requests::check(inner, wanted))
            }
            Step::Revoke { .. } | Step::Event { .. } | Step::Heartbeat {} | Step::HalfOpen {} => {
                self.stage.with(|inner| outside(inner, step));
                self.next_command();
                Ok(())
            }
            Step::Release {} => self.release().await,
            outside_step => self
                .stage
                .with(|inner| outside(inner, outside_step))
                .map_or(Ok(()), Err),
        }
    }

    async fn plain(&mut self, name: &str, command: Value) -> Done {
        self.next_command();
        let answer = self.call(name, command).await?;
        expect(&answer, Outcome::Ok, name)?;
        self.idle().await
    }

    async fn enroll(&mut self, user: &str, again: bool, then: Outcome) -> Done {
        let token = match (&self.invitation, again) {
            (Some(token), true) => token.clone(),
            _ => self.stage.with(|inner| inner.invite(user)),
        };
        self.invitation = Some(token.clone());
        self.user = user.to_owned();
        let url = format!("{}/api/enrollment/{token}", self.listening.url);
        let mut answer = Value::Null;
        for _ in 0..if then == Outcome::Ok { ATTEMPTS } else { 1 } {
            self.next_command();
            answer = self.call("enroll", json!({"url": url})).await?;
            self.idle().await?;
            if answer["ok"] == true {
                break;
            }
        }
        expect(&answer, then, "the enrollment")
    }

    async fn sync(&mut self, then: Outcome) -> Done {
        let mut answer = Value::Null;
        for _ in 0..if then == Outcome::Ok { ATTEMPTS } else { 1 } {
            self.next_command();
            if then == Outcome::Running {
                self.running = Some(self.driver()?.begin("sync", json!({})).await?);
                return Ok(());
            }
            answer = self.call("sync", json!({})).await?;
            self.idle().await?;
            if answer["ok"] == true {
                break;
            }
        }
        expect(&answer, then, "the sync")
    }

    async fn change(&mut self, name: &str, table: &str, id: &str, row: Option<&Map<String, Value>>) -> Done {
        let mut command = json!({"table": table, "id": uuid_of(id)});
        if let Some(row) = row {
            command["row"] = Value::Object(with_ids(row));
        }
        self.plain(name, command).await
    }

    /// Kills the process at random moments of syncs that have something to store.
    async fn kill_often(&mut self, times: u32) -> Done {
        for round in 0..times {
            self.stage.with(|inner| {
                for row in 0..5 {
                    let key = ("tasks".to_owned(), uuid_of(&format!("{round}k{row}")));
                    inner
                        .history
                        .put(key, json!({"title": format!("{round}")}), None, &["alice"], false);
                }
            });
            self.sync(Outcome::Running).await?;
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            tokio::time::sleep(Duration::from_micros((self.random >> 33) % KILL_MICROS)).await;
            self.kill().await;
            self.start().await?;
        }
        Ok(())
    }

    /// Ends the process, replaces one folder by the other, and starts again.
    async fn copy(&mut self, from: &str, to: &str) -> Done {
        self.kill().await;
        let (from, to) = (self.folder.join(from), self.folder.join(to));
        let copied = std::fs::remove_dir_all(&to)
            .or_else(absent)
            .and_then(|()| copy_folder(&from, &to));
        copied.map_err(|error| Failure::Kit(format!("cannot copy the storage of the driver: {error}")))?;
        self.start().await
    }

    async fn wait_for(&mut self, route: Route, count: usize, is_done: bool) -> Done {
        let stage = self.stage.clone();
        let mut changes = stage.watch();
        let arrived = async {
            loop {
                changes.mark_unchanged();
                let found = stage.read(|inner| inner.log.arrived(route, is_done));
                if found >= count {
                    return;
                }
                changes.changed().await.ok();
            }
        };
        if tokio::time::timeout(AWAIT_TIMEOUT, arrived).await.is_err() {
            return Err(broken(format!("no {count} requests `{}` were sent", route.name())));
        }
        self.stage.read(check_violations)?;
        if is_done { self.idle().await } else { Ok(()) }
    }

    /// Lets time pass in pieces, so that a request and its repetition are distinguished.
    async fn advance(&mut self, ms: u64) -> Done {
        let mut left = ms;
        while left > 0 {
            let piece = left.min(PIECE_MS);
            self.plain("advance", json!({"ms": piece})).await?;
            left -= piece;
        }
        Ok(())
    }

    async fn advance_until(&mut self, route: Route, least: u64, most: u64) -> Done {
        let count = |inner: &Inner| inner.log.records.iter().filter(|record| record.route == route).count();
        let before = self.stage.read(count);
        let piece = (most / PIECES).clamp(1, PIECE_MS);
        let mut passed = 0;
        while passed < most + piece {
            self.plain("advance", json!({"ms": piece})).await?;
            passed += piece;
            if self.stage.read(count) == before {
                continue;
            }
            if passed < least {
                let name = route.name();
                return Err(broken(format!(
                    "a request `{name}` was sent after {passed} ms, not after {least} to {most} ms"
                )));
            }
            return Ok(());
        }
        Err(broken(format!(
            "no request `{}` was sent within {most} ms",
            route.name()
        )))
    }

    /// Lets the delayed answer go, as soon as there is one.
    async fn release(&mut self) -> Done {
        let stage = self.stage.clone();
        let mut changes = stage.watch();
        let held = async {
            changes.mark_unchanged();
            while stage.read(|inner| inner.held == 0) {
                changes.changed().await.ok();
            }
        };
        if tokio::time::timeout(AWAIT_TIMEOUT, held).await.is_err() {
            return Err(broken("no request was sent whose answer could be delayed"));
        }
        self.stage.release();
        Ok(())
    }

    async fn rows(&mut self, table: &str) -> Result<BTreeMap<String, Map<String, Value>>, Failure> {
        let answer = self.call("rows", json!({"table": table})).await?;
        let Some(rows) = answer["rows"].as_array() else {
            return Err(broken(format!("the driver answered `rows` with {answer}")));
        };
        let rows = rows.iter().filter_map(|row| {
            let columns = row.as_object()?.clone();
            Some((columns.get("id")?.as_str()?.to_owned(), columns))
        });
        Ok(rows.collect())
    }

    async fn check_same(&mut self) -> Done {
        let user = self.user.clone();
        let expected = self.stage.read(|inner| inner.history.rows_of(&user));
        for table in TABLES {
            let mut found = self.rows(table).await?;
            for ((_, id), row) in expected.iter().filter(|((name, _), _)| name == table) {
                let Some(columns) = found.remove(id) else {
                    return Err(broken(format!("the device lacks the row {id} of {table}: {row}")));
                };
                let Value::Object(row) = row else { continue };
                let names = row
                    .keys()
                    .chain(columns.keys())
                    .filter(|name| !BOOKKEEPING.contains(&name.as_str()));
                for name in names {
                    let (is, should_be) = (columns.get(name), row.get(name));
                    if is != should_be {
                        let shown = |value: Option<&Value>| value.map_or("missing".to_owned(), Value::to_string);
                        let (is, should_be) = (shown(is), shown(should_be));
                        let text = format!(
                            "{name:?} of the row {id} of {table} is {is} on the device, and {should_be} in the history"
                        );
                        return Err(broken(text));
                    }
                }
            }
            if let Some(id) = found.keys().next() {
                return Err(broken(format!(
                    "the device has the row {id} of {table}, which its user does not see"
                )));
            }
        }
        Ok(())
    }

    async fn check_rows(&mut self, table: &str, are: &BTreeMap<String, Map<String, Value>>) -> Done {
        let mut found = self.rows(table).await?;
        for (name, columns) in are {
            let id = uuid_of(name);
            let Some(row) = found.remove(&id) else {
                return Err(broken(format!("the device lacks the row {id} ({name}) of {table}")));
            };
            for (column, value) in with_ids(columns) {
                if row.get(&column) != Some(&value) {
                    let is = row.get(&column).map_or("missing".to_owned(), Value::to_string);
                    return Err(broken(format!(
                        "{column:?} of the row {id} ({name}) of {table} is {is}, not {value}"
                    )));
                }
            }
        }
        match found.keys().next() {
            Some(id) => Err(broken(format!(
                "the device has the row {id} of {table}, which should not be there"
            ))),
            None => Ok(()),
        }
    }

    async fn outbox(&mut self, name: &str) -> Result<Vec<Value>, Failure> {
        let answer = self.call("outbox", json!({})).await?;
        let items = answer[name].as_array().cloned();
        items.ok_or_else(|| {
            broken(format!(
                "the driver answered `outbox` with {answer}, which has no list `{name}`"
            ))
        })
    }

    async fn check_outbox(&mut self, count: usize) -> Done {
        if !self.introduction.has(Feature::Write) {
            return Ok(());
        }
        let waiting = self.outbox("waiting").await?;
        if waiting.len() == count {
            return Ok(());
        }
        Err(broken(format!(
            "the outbox has {} changes, not {count}: {}",
            waiting.len(),
            Value::Array(waiting)
        )))
    }

    /// A part of the status, which may follow from an event that is on its way.
    async fn check_status(&mut self, name: &str, is: &str) -> Done {
        let deadline = tokio::time::Instant::now() + STATE_TIMEOUT;
        loop {
            let answer = self.call("status", json!({})).await?;
            if answer[name] == is {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(broken(format!(
                    "the state of the device is {}, not {is:?}",
                    answer["state"]
                )));
            }
            tokio::time::sleep(STATE_PAUSE).await;
        }
    }

    async fn check_refused(&mut self, codes: &[String]) -> Done {
        let refused = self.outbox("refused").await?;
        let found: Vec<&str> = refused
            .iter()
            .map(|item| item["code"].as_str().unwrap_or_default())
            .collect();
        if found == codes {
            return Ok(());
        }
        Err(broken(format!(
            "the user can see the refusals {found:?}, not {codes:?}"
        )))
    }
}

/// What no case permits.
fn check_violations(inner: &Inner) -> Done {
    match inner.log.violations.first() {
        None => Ok(()),
        Some(found) => Err(Failure::Broken {
            heading: Some(found.heading),
            text: found.text.clone(),
        }),
    }
}

fn expect(answer: &Value, then: Outcome, what: &str) -> Done {
    let is_ok = answer["ok"] == true;
    match then {
        Outcome::Ok if !is_ok => Err(broken(format!("{what} did not succeed: {answer}"))),
        Outcome::Failed if is_ok => Err(broken(format!(
            "{what} succeeded, although the server refused it or did not answer"
        ))),
        _ => Ok(()),
    }
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for found in std::fs::read_dir(from)? {
        let found = found?;
        let target = to.join(found.file_name());
        if found.file_type()?.is_dir() {
            copy_folder(&found.path(), &target)?;
        } else {
            std::fs::copy(found.path(), target)?;
        }
    }
    Ok(())
}
