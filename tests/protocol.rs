//! The sync protocol, cell by cell: each test is a line of the table in `docs/sync-protocol.md`, played by the
//! reference phone against a real engine. Modules are states, or what happens in any of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use hyper::StatusCode;
use posduif::config::{Config, ConflictStrategy};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::phone::{
    Answer, Backoff, Event, EventParser, Events, Http, Live, Lost, Network, Phone, Request, State, Trouble,
};
use crate::support::office::Office;
use crate::support::proxy::Proxy;

/// What becomes of one request.
enum Play {
    /// The engine answers.
    Real,
    /// The request never arrives.
    LoseRequest,
    /// The engine does it, and the answer is lost.
    LoseAnswer,
    /// Somebody else answers.
    Say(Answer),
}

/// The line between a phone and the engine.
struct Line {
    http: Http,
    plays: Mutex<VecDeque<Play>>,
    asked: Mutex<Vec<Request>>,
}

impl Line {
    fn to(office: &Office) -> Self {
        Self {
            http: Http::new(&format!("http://{}", office.anybody.address())),
            plays: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// What becomes of the next requests; those behind them are answered.
    fn play(&self, plays: impl IntoIterator<Item = Play>) {
        self.plays.lock().unwrap().extend(plays);
    }

    /// Methods and paths of the requests since the last call.
    fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked
            .iter()
            .map(|request| format!("{} {}", request.method, request.path))
            .collect()
    }

    /// The items of each upload since the last call.
    fn uploaded(&self) -> Vec<Vec<Value>> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let bodies = asked.into_iter().filter(|request| request.path.contains("outgoing"));
        bodies
            .map(|request| request.body.unwrap()["items"].as_array().unwrap().clone())
            .collect()
    }
}

impl Network for Line {
    async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
        self.asked.lock().unwrap().push(request.clone());
        let play = self.plays.lock().unwrap().pop_front().unwrap_or(Play::Real);
        match play {
            Play::Real => self.http.exchange(request).await,
            Play::LoseRequest => Err(Lost("the request was lost".into())),
            Play::LoseAnswer => {
                self.http.exchange(request).await?;
                Err(Lost("the answer was lost".into()))
            }
            Play::Say(answer) => Ok(answer),
        }
    }
}

fn says(status: u16, code: &str, retry_after: Option<u64>) -> Play {
    Play::Say(Answer {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: retry_after.map(Duration::from_secs),
        body: json!({"error": {"code": code, "message": "for people"}}),
    })
}

/// An office, a phone of joe's, and the line between them.
struct Scene {
    phone: Phone,
    line: Line,
    file: PathBuf,
    office: Office,
}

impl Scene {
    /// The phone is new.
    async fn unenrolled() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let office = Office::with(change).await;
        let file = std::env::temp_dir().join(format!("posduif-phone-{}.sqlite", Uuid::new_v4().simple()));
        Self {
            phone: Phone::open(&file).unwrap(),
            line: Line::to(&office),
            file,
            office,
        }
    }

    /// The phone has its token and nothing else.
    async fn fresh() -> Self {
        let mut scene = Self::unenrolled().await;
        scene.enroll().await.unwrap();
        scene.line.asked();
        scene
    }

    /// The phone is in the middle of its first snapshot: it has one row of six.
    async fn snapshot() -> Self {
        let mut scene = Self::fresh().await;
        scene.office.insert(4).await;
        scene.office.world.published().await;
        scene.phone.batch_rows = Some(1);
        scene.line.play([Play::Real, Play::LoseRequest]);
        assert!(is_later(&scene.sync().await));
        scene.line.asked();
        scene.check(State::Snapshot, &["message 1"]);
        scene
    }

    /// The phone has all there is: one message.
    async fn stream() -> Self {
        let mut scene = Self::fresh().await;
        scene.catch_up().await;
        scene
    }

    async fn stream_under(change: impl FnOnce(&mut Config)) -> Self {
        let mut scene = Self::with(change).await;
        scene.enroll().await.unwrap();
        scene.catch_up().await;
        scene
    }

    async fn catch_up(&mut self) {
        self.office.insert(1).await;
        self.office.world.published().await;
        self.sync().await.unwrap();
        self.line.asked();
        self.check(State::Stream, &["message 1"]);
    }

    /// What a QR code for a device of joe's, or of somebody else's, holds.
    async fn invitation(&self, user: Uuid) -> String {
        let body = json!({"user_id": user});
        let created = self.office.bob.post("/api/enrollment/create", &body).await.expect(201);
        created["token"].as_str().unwrap().to_owned()
    }

    async fn enroll(&mut self) -> Result<(), Trouble> {
        let invitation = self.invitation(self.office.joe_id).await;
        self.phone.enroll(&self.line, &invitation).await
    }

    async fn sync(&mut self) -> Result<(), Trouble> {
        self.phone.sync(&self.line).await.map(drop)
    }

    /// Syncs with these outcomes of its requests, the last of which postpones it; checks where the phone stands then.
    async fn sync_later(&mut self, plays: impl IntoIterator<Item = Play>, state: State, texts: &[&str]) {
        self.line.play(plays);
        assert!(is_later(&self.sync().await));
        self.check(state, texts);
    }

    /// Syncs to the end of the stream, where the phone holds these messages.
    async fn finish(mut self, texts: &[&str]) {
        self.sync().await.unwrap();
        self.check(State::Stream, texts);
        self.close().await;
    }

    /// The changes in the outbox: sequence number, base by own item, base by version.
    fn bases(&self) -> Vec<(i64, Option<i64>, Option<i64>)> {
        let waiting = self.phone.waiting().unwrap().into_iter();
        waiting
            .map(|item| (item.seq, item.base_seq, item.base_version))
            .collect()
    }

    /// Bob writes, and it is published.
    async fn bob_writes(&self, content: &str) -> String {
        let id = self.office.send(content).await;
        self.office.world.published().await;
        id
    }

    /// Copies the phone's file, as a backup does.
    fn save(&self) {
        std::fs::copy(&self.file, self.file.with_extension("copy")).unwrap();
    }

    /// The copy takes the file's place.
    fn restore(&mut self) {
        std::fs::rename(self.file.with_extension("copy"), &self.file).unwrap();
        self.die();
    }

    /// The phone dies and starts again from its file.
    fn die(&mut self) {
        self.phone = Phone::open(&self.file).unwrap();
    }

    fn memory(&self, key: &str) -> Option<String> {
        self.phone.recall(key).unwrap()
    }

    /// The operator ends the device.
    async fn revoke(&self) {
        self.office
            .sql("UPDATE tenant_acme.devices SET revoked_at = now()")
            .await;
        self.office.sql("UPDATE posduif.devices SET revoked_at = now()").await;
    }

    /// The user writes to bob; gives the message's id.
    #[track_caller]
    fn write(&mut self, text: &str) -> String {
        self.phone.send(&self.office.bob_id.to_string(), text).unwrap()
    }

    #[track_caller]
    fn check(&self, state: State, texts: &[&str]) {
        assert_eq!(self.phone.state().unwrap(), state);
        let messages: BTreeSet<String> = self
            .phone
            .messages()
            .unwrap()
            .into_values()
            .map(|message| message.content)
            .collect();
        assert_eq!(messages, texts.iter().map(|text| (*text).to_owned()).collect());
    }

    /// A message of joe's that both sides have; gives its id.
    async fn shared_message(&mut self) -> String {
        let id = self.phone.send(&self.office.bob_id.to_string(), "mine").unwrap();
        self.sync().await.unwrap();
        self.office.world.published().await;
        self.sync().await.unwrap();
        self.line.asked();
        id
    }

    /// What waits in the outbox.
    fn waiting(&self) -> Vec<String> {
        self.phone.waiting().unwrap().into_iter().map(|item| item.op).collect()
    }

    async fn close(self) {
        let _gone = std::fs::remove_file(&self.file);
        self.office.close().await;
    }
}

fn is_later(outcome: &Result<(), Trouble>) -> bool {
    matches!(outcome, Err(Trouble::Later { .. }))
}

/// Begins a new history for the tenant, so that every cursor ends.
async fn resync(office: &Office) {
    let database = office.world.database().await;
    posduif::postgres::tenants::resync(&database, "acme").await.unwrap();
    office.world.published().await;
}

mod unenrolled {
    use super::*;

    #[tokio::test]
    async fn enrollment_response_stores_token_and_user() {
        let mut scene = Scene::unenrolled().await;
        scene.enroll().await.unwrap();
        scene.check(State::Fresh, &[]);
        assert_eq!(scene.memory("user_id"), Some(scene.office.joe_id.to_string()));
        scene.close().await;
    }

    #[tokio::test]
    async fn missing_response_repeats_enrollment() {
        let mut scene = Scene::unenrolled().await;
        let invitation = scene.invitation(scene.office.joe_id).await;
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.enroll(&scene.line, &invitation).await));
        scene.check(State::Unenrolled, &[]);
        let device_id = scene.memory("device_id");
        scene.die();
        scene.phone.enroll(&scene.line, &invitation).await.unwrap();
        assert_eq!(
            scene.memory("device_id"),
            device_id,
            "only the same device may ask again"
        );
        scene.sync().await.unwrap();
        scene.close().await;
    }

    #[tokio::test]
    async fn refused_enrollment_needs_a_new_one() {
        let mut scene = Scene::unenrolled().await;
        let outcome = scene.phone.enroll(&scene.line, &Uuid::new_v4().to_string()).await;
        assert!(matches!(outcome, Err(Trouble::Refused { code, .. }) if code == "NOT_FOUND"));
        scene.check(State::Unenrolled, &[]);
        scene.close().await;
    }

    #[tokio::test]
    async fn same_user_keeps_rows_cursor_and_outbox() {
        let mut scene = Scene::stream().await;
        scene.write("unsent");
        let cursor = scene.memory("cursor");
        scene.revoke().await;
        scene.office.world.published().await;
        scene.line.play([says(401, "UNAUTHORIZED", None)]);
        assert!(matches!(scene.sync().await, Err(Trouble::Ended)));
        scene.check(State::Unenrolled, &["message 1", "unsent"]);
        scene.enroll().await.unwrap();
        assert_eq!((scene.memory("cursor"), scene.waiting().len()), (cursor, 1));
        scene.check(State::Stream, &["message 1", "unsent"]);
        scene.sync().await.unwrap();
        assert!(scene.waiting().is_empty());
        scene.close().await;
    }

    #[tokio::test]
    async fn other_user_deletes_rows_cursor_and_outbox() {
        let mut scene = Scene::stream().await;
        scene.write("joe's secret");
        let sally = scene
            .office
            .world
            .user("acme", "sally", posduif::accounts::users::UserType::Mobile)
            .await;
        let invitation = scene.invitation(sally).await;
        // The device id is always joe's; the phone takes another.
        let joes = scene.memory("device_id");
        scene.phone.enroll(&scene.line, &invitation).await.unwrap();
        assert_ne!(scene.memory("device_id"), joes);
        scene.check(State::Fresh, &[]);
        assert!(scene.waiting().is_empty());
        scene.finish(&[]).await;
    }

    #[tokio::test]
    async fn sync_without_token_sends_nothing() {
        let mut scene = Scene::unenrolled().await;
        assert!(matches!(scene.sync().await, Err(Trouble::Unenrolled)));
        assert!(scene.line.asked().is_empty());
        scene.close().await;
    }

    #[tokio::test]
    async fn user_write_goes_to_outbox() {
        let mut scene = Scene::unenrolled().await;
        scene.write("before all");
        scene.check(State::Unenrolled, &["before all"]);
        scene.enroll().await.unwrap();
        scene.sync().await.unwrap();
        scene.check(State::Stream, &["before all"]);
        assert!(scene.waiting().is_empty());
        scene.close().await;
    }
}

mod fresh {
    use super::*;

    #[tokio::test]
    async fn complete_snapshot_is_stored() {
        let mut scene = Scene::fresh().await;
        scene.office.insert(2).await;
        scene.office.world.published().await;
        scene.sync().await.unwrap();
        scene.check(State::Stream, &["message 1", "message 2"]);
        assert_eq!(scene.phone.rows("users").unwrap().len(), 2);
        let asked = scene.line.asked();
        assert_eq!(asked.first().unwrap(), "GET /api/sync/incoming?");
        assert_eq!(asked.last().unwrap(), "POST /api/sync/ack");
        scene.close().await;
    }

    #[tokio::test]
    async fn first_snapshot_page_is_stored_with_cursor() {
        // Which is how every scene of a snapshot begins.
        let scene = Scene::snapshot().await;
        assert!(scene.memory("cursor").is_some());
        scene.close().await;
    }

    #[tokio::test]
    async fn missing_response_repeats_request() {
        let mut scene = Scene::fresh().await;
        for loss in [Play::LoseRequest, Play::LoseAnswer] {
            scene.sync_later([loss], State::Fresh, &[]).await;
        }
        scene.catch_up().await;
        scene.close().await;
    }

    #[tokio::test]
    async fn retry_after_delays_request() {
        let mut scene = Scene::fresh().await;
        scene.line.play([says(503, "SYNC_ERROR", Some(2))]);
        let outcome = scene.sync().await;
        assert!(matches!(outcome, Err(Trouble::Later { after, .. }) if after == Some(Duration::from_secs(2))));
        scene.check(State::Fresh, &[]);
        scene.close().await;
    }

    #[tokio::test]
    async fn ended_token_is_deleted() {
        let mut scene = Scene::fresh().await;
        scene.line.play([says(401, "UNAUTHORIZED", None)]);
        assert!(matches!(scene.sync().await, Err(Trouble::Ended)));
        scene.check(State::Unenrolled, &[]);
        scene.close().await;
    }

    #[tokio::test]
    async fn user_write_goes_to_outbox() {
        let mut scene = Scene::fresh().await;
        let id = scene.write("first of all");
        scene.phone.upload(&scene.line).await.unwrap();
        scene.check(State::Fresh, &["first of all"]);
        assert_eq!(scene.office.message(&id).await["content"], "first of all");
        scene.close().await;
    }
}

mod snapshot {
    use super::*;

    const ALL: [&str; 4] = ["message 1", "message 2", "message 3", "message 4"];

    #[tokio::test]
    async fn page_is_stored_with_cursor() {
        let mut scene = Scene::snapshot().await;
        scene
            .sync_later([Play::Real, Play::LoseRequest], State::Snapshot, &ALL[..2])
            .await;
        scene.close().await;
    }

    #[tokio::test]
    async fn last_page_deletes_unmentioned_rows() {
        let scene = Scene::snapshot().await;
        scene.finish(&ALL).await;
    }

    #[tokio::test]
    async fn missing_response_repeats_request() {
        let mut scene = Scene::snapshot().await;
        scene.sync_later([Play::LoseAnswer], State::Snapshot, &ALL[..1]).await;
        scene.finish(&ALL).await;
    }

    #[tokio::test]
    async fn new_snapshot_keeps_old_rows_until_its_end() {
        let mut scene = Scene::snapshot().await;
        resync(&scene.office).await;
        scene
            .office
            .sql("DELETE FROM tenant_acme.messages WHERE content = 'message 1'")
            .await;
        scene.office.world.published().await;
        scene.line.play([Play::Real, Play::LoseRequest]);
        assert!(is_later(&scene.sync().await));
        // The first snapshot's row is of before, and stays until the second one's end.
        scene.check(State::Snapshot, &ALL[..2]);
        scene.finish(&ALL[1..]).await;

        // Nor does a result keep a row that is gone, if its item was sent before.
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "edited").unwrap();
        let lost = [Play::LoseAnswer, Play::LoseRequest];
        scene.sync_later(lost, State::Stream, &["message 1", "edited"]).await;
        resync(&scene.office).await;
        let delete = format!("DELETE FROM tenant_acme.messages WHERE id = '{id}'");
        scene.office.sql(&delete).await;
        scene.office.world.published().await;
        scene.phone.batch_rows = Some(1);
        let page = [Play::LoseRequest, Play::Real, Play::LoseRequest];
        scene.sync_later(page, State::Snapshot, &["message 1", "edited"]).await;
        scene.finish(&["message 1"]).await;
    }

    #[tokio::test]
    async fn refused_cursor_is_deleted() {
        let mut scene = Scene::snapshot().await;
        scene
            .sync_later(
                [says(400, "INVALID_CURSOR", None), Play::LoseRequest],
                State::Fresh,
                &ALL[..1],
            )
            .await;
        scene.finish(&ALL).await;
    }

    #[tokio::test]
    async fn ended_token_is_deleted() {
        let mut scene = Scene::snapshot().await;
        scene.line.play([says(401, "UNAUTHORIZED", None)]);
        assert!(matches!(scene.sync().await, Err(Trouble::Ended)));
        scene.check(State::Unenrolled, &ALL[..1]);
        scene.enroll().await.unwrap();
        scene.check(State::Snapshot, &ALL[..1]);
        scene.finish(&ALL).await;
    }

    #[tokio::test]
    async fn retry_after_delays_request() {
        let mut scene = Scene::snapshot().await;
        scene.line.play([says(429, "RATE_LIMITED", Some(7))]);
        let outcome = scene.sync().await;
        assert!(matches!(outcome, Err(Trouble::Later { after, .. }) if after == Some(Duration::from_secs(7))));
        scene.check(State::Snapshot, &ALL[..1]);
        scene.close().await;
    }

    #[tokio::test]
    async fn killed_device_continues_from_stored_cursor() {
        let mut scene = Scene::snapshot().await;
        let cursor = scene.memory("cursor").unwrap();
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.sync().await));
        scene.die();
        scene.line.asked();
        scene.sync().await.unwrap();
        assert_eq!(scene.line.asked()[0], format!("GET /api/sync/incoming?cursor={cursor}"));
        scene.check(State::Stream, &ALL);
        scene.close().await;
    }

    #[tokio::test]
    async fn user_write_goes_to_outbox() {
        let mut scene = Scene::snapshot().await;
        let bob = scene.office.bob_id.to_string();
        scene.phone.send(&bob, "unsent").unwrap();
        scene.phone.fetch(&scene.line).await.unwrap();
        // The snapshot knows nothing of it, and it is still there.
        let mut expected = ALL.to_vec();
        expected.push("unsent");
        scene.check(State::Stream, &expected);
        assert_eq!(scene.waiting(), ["create"]);
        scene.close().await;
    }
}

mod stream {
    use super::*;

    #[tokio::test]
    async fn rows_are_stored_and_acknowledged() {
        let mut scene = Scene::stream().await;
        let id = scene.bob_writes("one").await;
        scene.sync().await.unwrap();
        scene.check(State::Stream, &["message 1", "one"]);
        assert_eq!(
            scene.office.message(&id).await["status"],
            "synced",
            "it was acknowledged"
        );
        let edit = json!({"content": "two"});
        scene
            .office
            .bob
            .patch(&format!("/api/messages/{id}"), &edit)
            .await
            .expect(200);
        scene.office.world.published().await;
        scene.finish(&["message 1", "two"]).await;
    }

    #[tokio::test]
    async fn deletes_remove_rows() {
        let mut scene = Scene::stream().await;
        let id = scene.bob_writes("one").await;
        scene.sync().await.unwrap();
        scene.office.bob.delete(&format!("/api/messages/{id}")).await;
        scene.office.world.published().await;
        scene.finish(&["message 1"]).await;
    }

    #[tokio::test]
    async fn empty_batch_stores_cursor() {
        let mut scene = Scene::stream().await;
        scene.sync().await.unwrap();
        scene.line.asked();
        let cursor = scene.memory("cursor").unwrap();
        scene.sync().await.unwrap();
        assert_eq!(
            scene.line.asked(),
            [format!("GET /api/sync/incoming?cursor={cursor}")],
            "nothing is there to acknowledge"
        );
        scene.close().await;
    }

    #[tokio::test]
    async fn missing_response_repeats_request() {
        let mut scene = Scene::stream().await;
        let id = scene.bob_writes("one").await;
        for _ in 0..2 {
            scene
                .sync_later([Play::LoseAnswer], State::Stream, &["message 1"])
                .await;
        }
        assert_eq!(scene.office.message(&id).await["status"], "pending_sync");
        scene.finish(&["message 1", "one"]).await;
    }

    #[tokio::test]
    async fn reset_starts_snapshot() {
        let mut scene = Scene::stream().await;
        scene.office.insert(2).await;
        scene
            .office
            .sql("DELETE FROM tenant_acme.messages WHERE content = 'message 1'")
            .await;
        scene.bob_writes("new").await;
        resync(&scene.office).await;
        scene.phone.batch_rows = Some(1);
        scene.line.play([Play::Real, Play::LoseRequest]);
        assert!(is_later(&scene.sync().await));
        // What the user had stays until all of the new is there.
        scene.check(State::Snapshot, &["message 1", "message 2"]);
        scene.finish(&["message 2", "new"]).await;
    }

    #[tokio::test]
    async fn refused_cursor_is_deleted() {
        let mut scene = Scene::stream().await;
        let bob = scene.office.bob_id.to_string();
        scene.phone.send(&bob, "unsent").unwrap();
        // Another device's cursor, as after a phone's data were moved to a new one.
        let other = scene.office.phone("other").await.sync(None).await.1;
        rusqlite::Connection::open(&scene.file)
            .unwrap()
            .execute("UPDATE memory SET value = ?1 WHERE key = 'cursor'", [other])
            .unwrap();
        scene
            .line
            .play([says(503, "DATABASE_ERROR", None), Play::Real, Play::LoseRequest]);
        assert!(is_later(&scene.sync().await));
        scene.check(State::Fresh, &["message 1", "unsent"]);
        scene.sync().await.unwrap();
        scene.check(State::Stream, &["message 1", "unsent"]);
        assert!(scene.waiting().is_empty());
        scene.close().await;
    }

    #[tokio::test]
    async fn ended_token_is_deleted() {
        let mut scene = Scene::stream().await;
        let bob = scene.office.bob_id.to_string();
        scene.phone.send(&bob, "unsent").unwrap();
        scene.revoke().await;
        scene.office.world.published().await;
        crate::support::eventually("the revocation is seen", || async {
            let headers = [("x-device-id", "device_id"), ("authorization", "device_token")];
            let [id, token] = headers.map(|(_, key)| scene.memory(key).unwrap());
            let device = scene
                .office
                .anybody
                .with("x-device-id", &id)
                .with("authorization", &format!("Bearer {token}"));
            (device.get("/api/sync/status").await.status == 401).then_some(())
        })
        .await;
        assert!(matches!(scene.sync().await, Err(Trouble::Ended)));
        scene.check(State::Unenrolled, &["message 1", "unsent"]);
        assert_eq!(scene.waiting(), ["create"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn retry_after_delays_request() {
        let mut scene = Scene::stream().await;
        let cursor = scene.memory("cursor");
        scene.line.play([says(503, "REDIS_ERROR", Some(2))]);
        let outcome = scene.sync().await;
        assert!(matches!(outcome, Err(Trouble::Later { after, .. }) if after == Some(Duration::from_secs(2))));
        assert_eq!(scene.memory("cursor"), cursor);
        scene.check(State::Stream, &["message 1"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn killed_device_continues_from_stored_cursor() {
        let mut scene = Scene::stream().await;
        scene.bob_writes("one").await;
        let cursor = scene.memory("cursor").unwrap();
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.sync().await));
        scene.die();
        scene.line.asked();
        scene.sync().await.unwrap();
        assert_eq!(scene.line.asked()[0], format!("GET /api/sync/incoming?cursor={cursor}"));
        scene.check(State::Stream, &["message 1", "one"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn restored_older_copy_catches_up_or_resets() {
        let mut scene = Scene::stream().await;
        scene.save();
        let one = scene.bob_writes("one").await;
        scene.sync().await.unwrap();
        scene.office.bob.delete(&format!("/api/messages/{one}")).await;
        scene.bob_writes("two").await;
        scene.sync().await.unwrap();
        scene.check(State::Stream, &["message 1", "two"]);
        scene.restore();
        scene.check(State::Stream, &["message 1"]);
        scene.finish(&["message 1", "two"]).await;
    }

    #[tokio::test]
    async fn user_actions_go_to_outbox_with_seen_base() {
        let mut scene = Scene::stream().await;
        let shared = scene.shared_message().await;
        let bob = scene.office.bob_id.to_string();
        let theirs = scene
            .phone
            .messages()
            .unwrap()
            .into_keys()
            .find(|id| *id != shared)
            .unwrap();
        let mine = scene.phone.send(&bob, "one").unwrap();
        scene.phone.edit(&mine, "two").unwrap();
        scene.phone.edit(&mine, "three").unwrap();
        scene.phone.read(&theirs).unwrap();
        let gone = scene.phone.send(&bob, "never mind").unwrap();
        scene.phone.delete(&gone).unwrap();
        scene.phone.edit(&shared, "mine again").unwrap();
        scene.phone.delete(&shared).unwrap();
        scene.check(State::Stream, &["message 1", "three"]);
        let expected = [
            (2, None, None),
            (3, Some(2), None),
            (4, Some(3), None),
            (5, None, None),
            (6, None, None),
            (7, Some(6), None),
            (8, None, Some(1)),
            (9, Some(8), None),
        ];
        assert_eq!(scene.bases(), expected, "each is based on what the user saw");
        scene.die();
        let ops = ["create", "edit", "edit", "read", "create", "delete", "edit", "delete"];
        assert_eq!(scene.waiting(), ops);
        scene.sync().await.unwrap();
        scene.check(State::Stream, &["message 1", "three"]);
        let message = scene.office.message(&mine).await;
        assert_eq!((&message["content"], &message["version"]), (&json!("three"), &json!(3)));
        assert_eq!(scene.office.message(&theirs).await["status"], "read");
        assert_eq!(scene.office.bob.get(&format!("/api/messages/{gone}")).await.status, 404);
        scene.close().await;
    }
}

mod outbox {
    use super::*;

    impl Scene {
        /// Another device of joe's, or somebody at `psql`, changes a message.
        async fn change_elsewhere(&self, id: &str) {
            let change = format!("UPDATE tenant_acme.messages SET content = 'theirs' WHERE id = '{id}'");
            self.office.sql(&change).await;
            self.office.world.published().await;
        }

        /// What Postgres holds of a message.
        async fn stands(&self, id: &str) -> String {
            self.office.message(id).await["content"].as_str().unwrap().to_owned()
        }

        async fn count(&self, table: &str) -> i64 {
            let query = format!("SELECT count(*) FROM tenant_acme.{table}");
            self.office
                .world
                .psql()
                .await
                .query_one(&query, &[])
                .await
                .unwrap()
                .get(0)
        }
    }

    #[tokio::test]
    async fn applied_item_is_removed() {
        let mut scene = Scene::stream().await;
        let id = scene.write("mine");
        scene.phone.upload(&scene.line).await.unwrap();
        assert!(scene.waiting().is_empty());
        // At once, before it comes by the stream.
        scene.check(State::Stream, &["message 1", "mine"]);
        assert_eq!(scene.phone.messages().unwrap()[&id].version, 1);
        scene.phone.delete(&id).unwrap();
        assert_eq!(scene.bases(), [(2, None, Some(1))], "numbers go on");
        scene.phone.upload(&scene.line).await.unwrap();
        scene.check(State::Stream, &["message 1"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn first_result_of_a_repeated_item_leaves_newer_rows() {
        let mut scene = Scene::stream().await;
        let (edited, deleted) = (scene.write("mine"), scene.write("gone soon"));
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        scene.change_elsewhere(&edited).await;
        let delete = format!("UPDATE tenant_acme.messages SET deleted_at = now() WHERE id = '{deleted}'");
        scene.office.sql(&delete).await;
        scene.office.world.published().await;
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.check(State::Stream, &["message 1", "mine", "gone soon"]);
        scene.phone.upload(&scene.line).await.unwrap();
        let uploads = scene.line.uploaded();
        assert_eq!(
            (uploads.len(), &uploads[0]),
            (2, &uploads[1]),
            "the same items with the same numbers"
        );
        // Both were applied, and what others did since is what counts.
        scene.check(State::Stream, &["message 1", "theirs"]);
        scene.finish(&["message 1", "theirs"]).await;
    }

    #[tokio::test]
    async fn merged_edit_stores_the_row_of_the_server() {
        let mut scene = Scene::stream().await;
        let cursor = scene.memory("cursor");
        let say = |body: Value| {
            Play::Say(Answer {
                status: StatusCode::OK,
                retry_after: None,
                body,
            })
        };
        let row = |title: &str, done: bool, version: i64| json!({"id": "t", "title": title, "done": done, "version": version});
        scene.line.play([say(json!({
            "messages": [], "users": [], "cursor": cursor, "has_more": false, "reset": false,
            "changes": [{"op": "insert", "table": "tasks", "id": "t", "row": row("one", false, 1)}],
        }))]);
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.phone.edit_row("tasks", "t", json!({"title": "mine"})).unwrap();
        let result = json!({"seq": 1, "status": "applied", "version": 3, "server": row("mine", true, 3)});
        scene.line.play([say(json!({"results": [result]}))]);
        scene.phone.upload(&scene.line).await.unwrap();
        assert_eq!(scene.phone.rows("tasks").unwrap()["t"], row("mine", true, 3));
        scene.phone.delete_row("tasks", "t").unwrap();
        assert_eq!(scene.bases(), [(2, None, Some(3))]);
        scene.close().await;
    }

    #[tokio::test]
    async fn overtaken_result_leaves_the_row_to_the_batches() {
        let mut scene = Scene::stream().await;
        let id = scene.write("mine");
        scene.save();
        scene.sync().await.unwrap();
        let delete = format!("DELETE FROM tenant_acme.messages WHERE id = '{id}'");
        scene.office.sql(&delete).await;
        scene.office.world.published().await;
        // The copy knows of no attempt, and a snapshot has nothing of the message.
        scene.restore();
        resync(&scene.office).await;
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.check(State::Stream, &["message 1", "mine"]);
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        scene.phone.upload(&scene.line).await.unwrap();
        assert_eq!(scene.waiting(), Vec::<String>::new());
        scene.check(State::Stream, &["message 1"]);
        scene.finish(&["message 1"]).await;
    }

    #[tokio::test]
    async fn first_result_of_a_repeated_item_replaces_an_older_row() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "a").unwrap();
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        // A batch of before the edit was published.
        let batch = json!({
            "messages": [], "users": [], "changes": [], "cursor": scene.memory("cursor"), "has_more": false,
            "reset": false,
        });
        scene.line.play([Play::Say(Answer {
            status: StatusCode::OK,
            retry_after: None,
            body: batch,
        })]);
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        // What the user sees, and changes next, is their own edit.
        scene.check(State::Stream, &["message 1", "a"]);
        scene.phone.edit(&id, "b").unwrap();
        assert_eq!(scene.bases(), [(3, None, Some(2))]);
        scene.phone.upload(&scene.line).await.unwrap();
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("b", 0)
        );
        scene.close().await;
    }

    #[tokio::test]
    async fn batches_behind_a_stored_result_leave_its_row() {
        let mut scene = Scene::stream().await;
        let say = |body: Value| {
            Play::Say(Answer {
                status: StatusCode::OK,
                retry_after: None,
                body,
            })
        };
        let cursor = scene.memory("cursor");
        let batch = |changes: Value| {
            say(json!({
                "messages": [], "users": [], "changes": changes, "cursor": cursor, "has_more": false, "reset": false,
            }))
        };
        let tasks = |op: &str, versions: [(&str, i64); 2]| -> Value {
            versions
                .iter()
                .map(|(id, version)| {
                    let row = json!({"id": id, "title": format!("version {version}"), "version": version});
                    json!({"op": op, "table": "tasks", "id": id, "row": row})
                })
                .collect()
        };
        let titles = |scene: &Scene| -> Vec<(String, Value)> {
            let rows = scene.phone.view("tasks").unwrap();
            rows.into_iter().map(|(id, row)| (id, row["title"].clone())).collect()
        };
        scene.line.play([batch(tasks("insert", [("a", 1), ("b", 1)]))]);
        scene.phone.fetch(&scene.line).await.unwrap();
        scene
            .phone
            .edit_row("tasks", "a", json!({"title": "version 3"}))
            .unwrap();
        scene.phone.delete_row("tasks", "b").unwrap();
        let result = |seq: i64| json!({"seq": seq, "status": "applied", "version": 3});
        scene.line.play([say(json!({"results": [result(1), result(2)]}))]);
        scene.phone.upload(&scene.line).await.unwrap();
        // The stream is still at what came before both.
        scene.line.play([batch(tasks("update", [("a", 2), ("b", 2)]))]);
        scene.phone.fetch(&scene.line).await.unwrap();
        assert_eq!(titles(&scene), [("a".to_owned(), json!("version 3"))]);
        scene.phone.edit_row("tasks", "a", json!({"title": "mine"})).unwrap();
        assert_eq!(scene.bases(), [(3, None, Some(3))], "its base is the own change");
        scene.phone.delete_row("tasks", "a").unwrap();
        // It reaches them, and from then on the last row that comes counts again, whatever its number.
        for version in [3, 2] {
            scene
                .line
                .play([batch(tasks("update", [("a", version), ("b", version)]))]);
            scene.phone.fetch(&scene.line).await.unwrap();
        }
        let rows = scene.phone.rows("tasks").unwrap();
        assert_eq!((&rows["a"]["version"], &rows["b"]["version"]), (&json!(2), &json!(2)));
        scene.close().await;
    }

    #[tokio::test]
    async fn rows_of_own_tables_compare_by_version_only() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene
            .lists_sql(
                "ALTER TABLE tasks ADD COLUMN revision bigint NOT NULL DEFAULT 1;
                 INSERT INTO tasks (id, list_id, title, version) VALUES ('a', '1', 'first', 5)",
            )
            .await;
        scene.sync().await.unwrap();
        scene.phone.edit_row("tasks", "a", json!({"title": "mine"})).unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        let title = |scene: &Scene| scene.phone.view("tasks").unwrap()["a"]["title"].clone();
        assert_eq!(title(&scene), "mine");
        scene
            .lists_sql("UPDATE tasks SET title = 'theirs', version = version + 1")
            .await;
        scene.sync().await.unwrap();
        assert_eq!(title(&scene), "theirs");
        scene.close().await;
    }

    #[tokio::test]
    async fn deleted_row_stays_away_until_batches_reach_its_deletion() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        let before = scene.phone.rows("messages").unwrap()[&id].clone();
        scene.phone.delete(&id).unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        let batch = json!({
            "messages": [before], "users": [], "changes": [], "cursor": scene.memory("cursor"), "has_more": false,
            "reset": false,
        });
        scene.line.play([Play::Say(Answer {
            status: StatusCode::OK,
            retry_after: None,
            body: batch,
        })]);
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.check(State::Stream, &["message 1"]);
        scene.office.world.published().await;
        scene.finish(&["message 1"]).await;
    }

    #[tokio::test]
    async fn first_result_of_a_repeated_item_is_shown_at_once() {
        let mut scene = Scene::stream().await;
        let id = scene.write("mine");
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        assert_eq!(scene.waiting(), ["create"]);
        scene.phone.upload(&scene.line).await.unwrap();
        assert!(scene.waiting().is_empty());
        scene.check(State::Stream, &["message 1", "mine"]);
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("messages").await),
            ("mine", 2)
        );
        scene.close().await;
    }

    #[tokio::test]
    async fn duplicate_item_is_removed() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.change_elsewhere(&id).await;
        // The other device wrote the same.
        scene.phone.edit(&id, "theirs").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        assert!(scene.waiting().is_empty() && scene.phone.refused().unwrap().is_empty());
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("theirs", 0)
        );
        scene.finish(&["message 1", "theirs"]).await;
    }

    #[tokio::test]
    async fn several_edits_of_one_row_are_applied_in_order() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        for text in ["a", "b", "c", "d", "e"] {
            scene.phone.edit(&id, text).unwrap();
        }
        let chain = [
            (2, None, Some(1)),
            (3, Some(2), None),
            (4, Some(3), None),
            (5, Some(4), None),
            (6, Some(5), None),
        ];
        assert_eq!(scene.bases(), chain);
        scene.phone.upload(&scene.line).await.unwrap();
        let message = scene.office.message(&id).await;
        assert_eq!((&message["content"], &message["version"]), (&json!("e"), &json!(6)));
        assert_eq!(
            scene.count("message_conflicts").await,
            0,
            "none is in conflict with another"
        );
        scene.check(State::Stream, &["message 1", "e"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn edit_after_a_lost_response_stands_on_the_unanswered_one() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "a").unwrap();
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        scene.office.world.published().await;
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.phone.edit(&id, "b").unwrap();
        assert_eq!(scene.bases(), [(2, None, Some(1)), (3, Some(2), None)]);
        scene.phone.upload(&scene.line).await.unwrap();
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("b", 0)
        );
        scene.check(State::Stream, &["message 1", "b"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn edits_after_a_lost_conflict_are_rejected() {
        let mut scene = Scene::stream_under(|config| config.sync.conflict_strategy = ConflictStrategy::Manual).await;
        let id = scene.shared_message().await;
        scene.change_elsewhere(&id).await;
        scene.phone.edit(&id, "a").unwrap();
        scene.phone.edit(&id, "b").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        // The other device's text stands, the first edit is kept as a conflict, and the user learns of the second.
        scene.check(State::Stream, &["message 1", "theirs"]);
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("theirs", 1)
        );
        let refused = scene.phone.refused().unwrap();
        assert_eq!((refused.len(), &refused[0].row["content"]), (1, &json!("b")));
        scene.close().await;
    }

    #[tokio::test]
    async fn edits_after_a_won_conflict_are_applied() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.change_elsewhere(&id).await;
        scene.phone.edit(&id, "a").unwrap();
        scene.phone.edit(&id, "b").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("b", 1)
        );
        scene.check(State::Stream, &["message 1", "b"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn stored_results_are_acknowledged() {
        let mut scene = Scene::stream().await;
        let acked = |scene: &Scene| -> Vec<Value> {
            let asked = std::mem::take(&mut *scene.line.asked.lock().unwrap()).into_iter();
            let uploads = asked.filter(|request| request.path.contains("outgoing"));
            uploads
                .map(|request| request.body.unwrap()["acked_seq"].clone())
                .collect()
        };
        scene.write("one");
        scene.write("two");
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        scene.phone.upload(&scene.line).await.unwrap();
        scene.write("three");
        scene.phone.upload(&scene.line).await.unwrap();
        assert_eq!(acked(&scene), [json!(0), json!(0), json!(2)]);
        scene.close().await;
    }

    #[tokio::test]
    async fn conflict_under_last_write_wins_stores_own_version() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.change_elsewhere(&id).await;
        scene.phone.edit(&id, "mine again").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        assert!(scene.waiting().is_empty());
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("mine again", 1)
        );
        scene.check(State::Stream, &["message 1", "mine again"]);
        scene.office.world.published().await;
        scene.finish(&["message 1", "mine again"]).await;
    }

    #[tokio::test]
    async fn conflict_under_manual_stores_other_version() {
        let mut scene = Scene::stream_under(|config| config.sync.conflict_strategy = ConflictStrategy::Manual).await;
        let id = scene.shared_message().await;
        scene.change_elsewhere(&id).await;
        scene.phone.edit(&id, "mine again").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        assert!(scene.waiting().is_empty());
        // The phone shows what stands; its own version is kept at the server.
        scene.check(State::Stream, &["message 1", "theirs"]);
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("theirs", 1)
        );
        scene.close().await;
    }

    #[tokio::test]
    async fn conflict_of_a_delete_removes_the_row() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.change_elsewhere(&id).await;
        scene.phone.delete(&id).unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        // Deleted all the same, with the other text kept.
        scene.check(State::Stream, &["message 1"]);
        assert_eq!(scene.office.bob.get(&format!("/api/messages/{id}")).await.status, 404);
        assert_eq!(scene.count("message_conflicts").await, 1);
        scene.office.world.published().await;
        scene.finish(&["message 1"]).await;
    }

    #[tokio::test]
    async fn result_about_a_deleted_row_does_not_hide_the_next_with_its_id() {
        for is_sent_before in [true, false] {
            let mut scene = Scene::stream().await;
            let id = scene.shared_message().await;
            scene.change_elsewhere(&id).await;
            scene.phone.edit(&id, "mine").unwrap();
            if is_sent_before {
                scene.line.play([Play::LoseAnswer]);
                assert!(is_later(&scene.phone.upload(&scene.line).await));
            }
            let delete = format!("DELETE FROM tenant_acme.messages WHERE id = '{id}'");
            scene.office.sql(&delete).await;
            scene.office.world.published().await;
            scene.phone.fetch(&scene.line).await.unwrap();
            scene.phone.upload(&scene.line).await.unwrap();
            assert_eq!(scene.waiting(), Vec::<String>::new());
            // Its numbers start again, below those of the deleted one.
            let insert = format!(
                "INSERT INTO tenant_acme.messages (id, sender_id, recipient_id, content)
                 VALUES ('{id}', '{}', '{}', 'made again')",
                scene.office.bob_id, scene.office.joe_id
            );
            scene.office.sql(&insert).await;
            scene.office.world.published().await;
            scene.phone.fetch(&scene.line).await.unwrap();
            scene.check(State::Stream, &["message 1", "made again"]);
            scene.close().await;
        }
    }

    #[tokio::test]
    async fn rejected_item_leaves_the_queue() {
        let mut scene = Scene::stream().await;
        let nobody = Uuid::new_v4().to_string();
        scene.phone.send(&nobody, "to nobody").unwrap();
        scene.write("to bob");
        scene.sync().await.unwrap();
        // One bad item holds up no other, and the user learns of it.
        scene.check(State::Stream, &["message 1", "to bob"]);
        let refused = scene.phone.refused().unwrap();
        assert_eq!((refused.len(), &refused[0].row["content"]), (1, &json!("to nobody")));
        assert!(refused[0].reason.contains("recipient"));
        scene.line.asked();
        scene.sync().await.unwrap();
        assert!(scene.line.uploaded().is_empty(), "it is not tried again");
        scene.close().await;
    }

    #[tokio::test]
    async fn retry_item_and_those_behind_it_stay() {
        let mut scene = Scene::stream().await;
        let (first, second) = (scene.write("one"), scene.write("two"));
        scene.write("three");
        let result = |seq: i64, status: &str| json!({"seq": seq, "status": status, "version": 1, "revision": 1});
        // The last one would be `applied` on a server that does not stop, and a newer one may have other statuses.
        for status in ["retry", "postponed"] {
            let results = json!([result(1, status), result(2, status), result(3, "applied")]);
            scene.line.play([Play::Say(Answer {
                status: StatusCode::OK,
                retry_after: None,
                body: json!({"results": results}),
            })]);
            assert!(is_later(&scene.phone.upload(&scene.line).await));
            assert_eq!(scene.bases(), [(1, None, None), (2, None, None), (3, None, None)]);
        }
        scene.sync().await.unwrap();
        assert_eq!(
            (
                scene.stands(&first).await.as_str(),
                scene.stands(&second).await.as_str()
            ),
            ("one", "two")
        );
        scene.close().await;
    }

    #[tokio::test]
    async fn oversized_upload_is_halved() {
        let mut scene = Scene::stream_under(|config| config.sync.upload_items_max = 3).await;
        let bob = scene.office.bob_id.to_string();
        for number in 0..10 {
            scene.phone.send(&bob, &format!("number {number}")).unwrap();
        }
        scene.phone.upload(&scene.line).await.unwrap();
        let sizes: Vec<usize> = scene.line.uploaded().iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 5, 2, 2, 2, 2, 2]);
        assert!(scene.waiting().is_empty());
        assert_eq!(scene.count("messages").await, 11);
        scene.close().await;
    }

    #[tokio::test]
    async fn oversized_single_item_is_rejected() {
        let mut scene = Scene::stream_under(|config| config.sync.upload_bytes_max = 64 * 1024).await;
        let bob = scene.office.bob_id.to_string();
        let id = scene.shared_message().await;
        scene.phone.edit(&id, &"long ".repeat(20_000)).unwrap();
        scene.phone.edit(&id, "shorter").unwrap();
        scene.phone.send(&bob, "short").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        // The server never had its number, and what stood on it has its base.
        let refused = scene.phone.refused().unwrap();
        assert_eq!((refused.len(), refused[0].op.as_str()), (1, "edit"));
        let last = scene.line.uploaded().pop().unwrap();
        let sent: Vec<(&Value, &Value)> = last.iter().map(|item| (&item["seq"], &item["base_version"])).collect();
        assert_eq!(sent, [(&json!(2), &json!(1)), (&json!(3), &Value::Null)]);
        scene.check(State::Stream, &["message 1", "short", "shorter"]);
        assert_eq!(scene.stands(&id).await, "shorter");
        scene.close().await;
    }

    #[tokio::test]
    async fn sequence_gap_renumbers_the_outbox() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "a").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        scene.phone.edit(&id, "b").unwrap();
        scene.phone.edit(&id, "c").unwrap();
        assert_eq!(scene.bases(), [(3, None, Some(2)), (4, Some(3), None)]);
        // The server was restored from a backup of before it had seen this device.
        scene.office.sql("DELETE FROM posduif.upload_devices").await;
        scene.phone.upload(&scene.line).await.unwrap();
        let numbers = scene.line.uploaded();
        let numbers: Vec<&Value> = numbers.iter().map(|items| &items[0]["seq"]).collect();
        assert_eq!(numbers, [2, 3, 1]);
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("c", 0)
        );
        scene.check(State::Fresh, &["message 1", "c"]);
        scene.finish(&["message 1", "c"]).await;
    }

    #[tokio::test]
    async fn restored_device_gets_the_results_of_repeats_first() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "a").unwrap();
        scene.phone.edit(&id, "b").unwrap();
        scene.save();
        scene.phone.upload(&scene.line).await.unwrap();
        scene.write("lost with the phone");
        scene.sync().await.unwrap();
        scene.restore();
        scene.line.asked();
        scene.phone.edit(&id, "c").unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        let uploads = scene.line.uploaded();
        let numbers = |items: &Vec<Value>| items.iter().map(|item| item["seq"].as_i64().unwrap()).collect();
        let numbers: Vec<Vec<i64>> = uploads.iter().map(numbers).collect();
        assert_eq!(numbers, [vec![2, 3, 4], vec![2], vec![3], vec![4], vec![5]]);
        // The first two were applied once, and the third stands on what the server made of them.
        let message = scene.office.message(&id).await;
        assert_eq!((&message["content"], &message["version"]), (&json!("c"), &json!(4)));
        assert_eq!(scene.count("message_conflicts").await, 0);
        scene.office.world.published().await;
        scene.finish(&["message 1", "c", "lost with the phone"]).await;
    }

    #[tokio::test]
    async fn restored_device_renumbers_the_outbox() {
        let mut scene = Scene::stream_under(|config| config.sync.conflict_strategy = ConflictStrategy::Manual).await;
        let id = scene.shared_message().await;
        scene.save();
        scene.phone.edit(&id, "before the loss").unwrap();
        scene.sync().await.unwrap();
        scene.restore();
        scene.phone.edit(&id, "after it").unwrap();
        let other = scene.write("unsent");
        scene.phone.upload(&scene.line).await.unwrap();
        // The user has not seen the first edit again: neither of the two is lost.
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("before the loss", 1)
        );
        assert_eq!(scene.stands(&other).await, "unsent");
        scene.check(State::Fresh, &["message 1", "before the loss", "unsent"]);
        scene.office.world.published().await;
        scene.finish(&["message 1", "before the loss", "unsent"]).await;
    }

    #[tokio::test]
    async fn renumbered_edit_keeps_the_version_of_its_base() {
        let mut scene = Scene::stream_under(|config| {
            config.sync.conflict_strategy = ConflictStrategy::Manual;
            config.sync.upload_items_max = 1;
        })
        .await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "a").unwrap();
        scene.phone.edit(&id, "b").unwrap();
        // Both are too many; the first one is applied, and the connection is lost.
        scene.line.play([Play::Real, Play::Real, Play::LoseRequest]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        assert_eq!(scene.bases(), [(3, Some(2), Some(2))]);
        scene.change_elsewhere(&id).await;
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.office.sql("DELETE FROM posduif.upload_devices").await;
        scene.phone.upload(&scene.line).await.unwrap();
        // The row has a newer version on the phone, which the user had not seen when they wrote.
        assert_eq!(
            (scene.stands(&id).await.as_str(), scene.count("message_conflicts").await),
            ("theirs", 1)
        );
        scene.close().await;
    }

    #[tokio::test]
    async fn missing_response_keeps_items_and_fetches() {
        let mut scene = Scene::stream().await;
        scene.write("mine");
        scene.bob_writes("one").await;
        scene.line.play([says(503, "DATABASE_ERROR", Some(2))]);
        assert!(is_later(&scene.sync().await));
        // What can be fetched is fetched.
        assert_eq!(scene.waiting(), ["create"]);
        scene.check(State::Stream, &["message 1", "mine", "one"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn killed_device_sends_unanswered_items_again() {
        let mut scene = Scene::stream().await;
        let id = scene.shared_message().await;
        scene.phone.edit(&id, "two").unwrap();
        scene.phone.edit(&id, "three").unwrap();
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        scene.die();
        scene.sync().await.unwrap();
        assert!(scene.waiting().is_empty());
        assert_eq!(scene.stands(&id).await, "three");
        scene.office.world.published().await;
        scene.finish(&["message 1", "three"]).await;
    }

    #[tokio::test]
    async fn ended_token_is_deleted() {
        let mut scene = Scene::stream().await;
        scene.write("mine");
        scene.line.play([says(401, "UNAUTHORIZED", None)]);
        assert!(matches!(scene.phone.upload(&scene.line).await, Err(Trouble::Ended)));
        scene.check(State::Unenrolled, &["message 1", "mine"]);
        assert_eq!(scene.waiting(), ["create"]);
        scene.close().await;
    }
}

mod groups {
    use super::*;

    impl Scene {
        /// Joe's phone follows lists, which have tasks.
        pub(super) async fn lists() -> Self {
            let mut scene = Self::with(|config| {
                config.groups = serde_json::from_value(json!({
                    "list": {"table": "list_members", "id": "list_id", "user": "user_id"},
                }))
                .unwrap();
                config.routes = serde_json::from_value(json!([
                    {"table": "tasks", "to": [{"list": "list_id"}, {"list": "also_in"}, "assignee_id"],
                     "upload": {"by": {"list": "list_id"}, "columns": ["list_id", "title"]}},
                    {"table": "notes", "to": [{"list": "list_id"}],
                     "upload": {"by": {"list": "list_id"}, "columns": ["list_id", "title"]}},
                ]))
                .unwrap();
            })
            .await;
            scene
                .lists_sql(
                    "CREATE TABLE list_members (id bigint GENERATED ALWAYS AS IDENTITY, list_id text, user_id uuid);
                     CREATE TABLE tasks (id text PRIMARY KEY, list_id text, assignee_id uuid, title text,
                                         version bigint NOT NULL DEFAULT 1, also_in text);
                     CREATE TABLE notes (id text PRIMARY KEY, list_id text, title text);
                     ALTER TABLE list_members REPLICA IDENTITY FULL; ALTER TABLE tasks REPLICA IDENTITY FULL;
                     ALTER TABLE notes REPLICA IDENTITY FULL;",
                )
                .await;
            scene.enroll().await.unwrap();
            scene.sync().await.unwrap();
            scene
        }

        /// Runs statements on the tenant's tables, and waits until they are published.
        pub(super) async fn lists_sql(&self, statements: &str) {
            self.office
                .sql(&format!("SET search_path = tenant_acme; {statements}"))
                .await;
            self.office.world.published().await;
        }

        pub(super) async fn joins(&self, list: &str) {
            let joe = self.office.joe_id;
            self.lists_sql(&format!(
                "INSERT INTO list_members (list_id, user_id) VALUES ('{list}', '{joe}')"
            ))
            .await;
        }

        async fn leaves(&self, list: &str) {
            self.lists_sql(&format!("DELETE FROM list_members WHERE list_id = '{list}'"))
                .await;
        }

        /// The ids of the tasks that joe sees.
        fn tasks(&self) -> Vec<String> {
            self.phone.view("tasks").unwrap().into_keys().collect()
        }
    }

    #[tokio::test]
    async fn join_brings_rows_of_before() {
        let mut scene = Scene::lists().await;
        scene.lists_sql("INSERT INTO tasks VALUES ('a', '1'), ('b', '2')").await;
        scene.joins("1").await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["a"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn rows_after_the_join_follow_the_snapshot_of_the_group() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene.lists_sql("INSERT INTO tasks VALUES ('a', '1')").await;
        scene.line.play([Play::Real, Play::LoseAnswer]);
        assert!(is_later(&scene.sync().await));
        scene
            .lists_sql("INSERT INTO tasks VALUES ('b', '1'); DELETE FROM tasks WHERE id = 'a'")
            .await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["b"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn row_that_left_the_group_before_the_join_goes_with_the_others() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene
            .lists_sql("INSERT INTO tasks (id, list_id, also_in) VALUES ('a', '1', '2'), ('b', '1', '2')")
            .await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["a", "b"]);
        // Only the entries of list 1 say that the row left list 2, and they are not read after the membership has ended.
        scene.lists_sql("UPDATE tasks SET also_in = NULL WHERE id = 'a'").await;
        scene.joins("2").await;
        scene.leaves("1").await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["b"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn result_within_a_snapshot_keeps_no_former_audiences() {
        let mut scene = Scene::lists().await;
        let joe = scene.office.joe_id;
        scene.joins("1").await;
        scene.joins("3").await;
        scene
            .lists_sql(&format!(
                "INSERT INTO tasks VALUES ('a', '1', '{joe}'), ('b', '1', NULL)"
            ))
            .await;
        scene.sync().await.unwrap();
        // Of this the phone hears by the snapshot only.
        scene
            .lists_sql("UPDATE tasks SET list_id = '3', assignee_id = NULL WHERE id = 'a'")
            .await;
        resync(&scene.office).await;
        scene.phone.batch_rows = Some(1);
        scene.line.play([Play::Real, Play::LoseRequest]);
        assert!(is_later(&scene.phone.fetch(&scene.line).await.map(drop)));
        assert_eq!(scene.phone.state().unwrap(), State::Snapshot);
        scene.phone.edit_row("tasks", "a", json!({"title": "mine"})).unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        assert!(scene.waiting().is_empty() && scene.phone.refused().unwrap().is_empty());
        assert_eq!(scene.tasks(), ["a", "b"], "the user sees the own change");
        // No page brings the row any more.
        scene.leaves("3").await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["b"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn leave_removes_rows_seen_by_that_group_only() {
        let mut scene = Scene::lists().await;
        let joe = scene.office.joe_id;
        scene.joins("1").await;
        scene
            .lists_sql(&format!(
                "INSERT INTO tasks VALUES ('a', '1', '{joe}'), ('b', '1', NULL)"
            ))
            .await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["a", "b"]);
        scene.leaves("1").await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["a"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn row_that_no_audience_of_the_device_sees_is_not_kept() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene.lists_sql("INSERT INTO tasks VALUES ('a', '1')").await;
        scene.sync().await.unwrap();
        let change = |via: &str| json!({"table": "tasks", "op": "update", "id": "a", "row": {"id": "a"}, "via": [via]});
        for (via, kept) in [("list:1", 1), ("list:2", 0)] {
            let batch = json!({
                "messages": [], "users": [], "changes": [change(via)], "cursor": scene.memory("cursor"),
                "has_more": false, "reset": false,
            });
            scene.line.play([Play::Say(Answer {
                status: StatusCode::OK,
                retry_after: None,
                body: batch,
            })]);
            scene.phone.fetch(&scene.line).await.unwrap();
            assert_eq!(scene.tasks().len(), kept, "{via}");
        }
        scene.close().await;
    }

    #[tokio::test]
    async fn reset_forgets_groups_until_the_snapshot_names_them() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene.joins("2").await;
        scene.lists_sql("INSERT INTO tasks VALUES ('a', '1'), ('b', '2')").await;
        scene.sync().await.unwrap();
        resync(&scene.office).await;
        scene.leaves("1").await;
        scene.sync().await.unwrap();
        assert_eq!(scene.tasks(), ["b"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn leave_removes_rows_that_only_results_have_brought() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene.sync().await.unwrap();
        // Results of notes have no version.
        for table in ["tasks", "notes"] {
            let row = json!({"title": "mine", "list_id": "1"});
            scene.phone.create_row(table, row).unwrap();
        }
        scene.phone.upload(&scene.line).await.unwrap();
        let rows = |scene: &Scene| ["tasks", "notes"].map(|table| scene.phone.view(table).unwrap().len());
        assert_eq!(rows(&scene), [1, 1]);
        scene.leaves("1").await;
        scene.sync().await.unwrap();
        assert_eq!(rows(&scene), [0, 0]);
        scene.close().await;
    }

    #[tokio::test]
    async fn result_of_a_repeat_after_the_leave_brings_no_row() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene.sync().await.unwrap();
        let row = json!({"title": "mine", "list_id": "1"});
        scene.phone.create_row("tasks", row).unwrap();
        scene.line.play([Play::LoseAnswer]);
        assert!(is_later(&scene.phone.upload(&scene.line).await));
        scene.leaves("1").await;
        scene.phone.fetch(&scene.line).await.unwrap();
        scene.sync().await.unwrap();
        assert!(scene.waiting().is_empty(), "the repeat has its result");
        assert_eq!(scene.tasks(), [""; 0]);
        scene.close().await;
    }

    #[tokio::test]
    async fn leave_keeps_rows_that_a_snapshot_has_brought() {
        let mut scene = Scene::lists().await;
        scene.joins("1").await;
        scene.bob_writes("hello").await;
        scene.sync().await.unwrap();
        let id = scene.write("mine");
        let row = json!({"title": "mine", "list_id": "1"});
        let task = scene.phone.create_row("tasks", row).unwrap();
        scene.phone.upload(&scene.line).await.unwrap();
        let joe = scene.office.joe_id;
        scene
            .lists_sql(&format!("UPDATE tasks SET assignee_id = '{joe}'"))
            .await;
        resync(&scene.office).await;
        scene.sync().await.unwrap();
        scene.leaves("1").await;
        scene.sync().await.unwrap();
        assert!(scene.phone.messages().unwrap().contains_key(&id));
        assert_eq!(scene.tasks(), [task]);
        scene.close().await;
    }
}

mod events {
    use super::*;

    /// Lets the phone watch until `enough` holds for an event.
    async fn watch(scene: &mut Scene, http: &Http, mut enough: impl FnMut(&Phone, &Event) -> bool) {
        let (done, mut is_done) = tokio::sync::mpsc::channel(1);
        let (_user, mut wishes) = tokio::sync::mpsc::channel(1);
        let on_event = |phone: &Phone, event: &Event| {
            if enough(phone, event) {
                let _enough = done.try_send(());
            }
        };
        tokio::select! {
            outcome = scene.phone.watch(http, &mut wishes, on_event) => panic!("the phone stopped watching: {outcome:?}"),
            heard = tokio::time::timeout(crate::support::TIMEOUT, is_done.recv()) => { heard.expect("the event arrives"); }
        }
    }

    /// A network whose delays do not end; it reports how long they would be.
    struct Sleepless {
        http: Http,
        slept: tokio::sync::mpsc::UnboundedSender<Duration>,
    }

    impl Network for Sleepless {
        async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
            self.http.exchange(request).await
        }
    }

    impl Live for Sleepless {
        type Events = Events;

        async fn events(&self, path: String, headers: Vec<(&'static str, String)>) -> Result<Events, Trouble> {
            self.http.events(path, headers).await
        }

        fn pause(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
            self.slept.send(duration).unwrap();
            std::future::pending()
        }
    }

    fn has(phone: &Phone, text: &str) -> bool {
        phone
            .messages()
            .unwrap()
            .values()
            .any(|message| message.content == text)
    }

    #[tokio::test]
    async fn event_triggers_one_sync() {
        let mut scene = Scene::stream().await;
        let http = scene.line.http.clone();
        let (bob, joe) = (scene.office.bob.clone(), scene.office.joe_id);
        let mut written = None;
        watch(&mut scene, &http, |phone, event| {
            if event.name == "hello" {
                // Only now, so that it comes by an event.
                let bob = bob.clone();
                written = Some(tokio::spawn(async move {
                    bob.post("/api/messages", &json!({"recipient_id": joe, "content": "one"}))
                        .await
                        .expect(201);
                }));
            }
            event.name == "message" && has(phone, "one")
        })
        .await;
        assert!(written.is_some());
        assert!(scene.memory("last_event_id").is_some());
        scene.close().await;
    }

    #[tokio::test]
    async fn opened_stream_triggers_one_sync() {
        let mut scene = Scene::fresh().await;
        scene.bob_writes("before it listened").await;
        let http = scene.line.http.clone();
        watch(&mut scene, &http, |phone, _| has(phone, "before it listened")).await;
        scene.close().await;
    }

    #[tokio::test]
    async fn broken_stream_resumes_by_last_event_id() {
        let mut scene = Scene::stream().await;
        let address = format!("http://{}", scene.office.anybody.address());
        let proxy = Proxy::before(&address).await;
        let http = Http::new(&proxy.url(&address));
        scene.bob_writes("one").await;
        let mut hellos = 0;
        watch(&mut scene, &http, |phone, event| {
            hellos += usize::from(event.name == "hello");
            if hellos == 1 && has(phone, "one") {
                proxy.cut();
            }
            hellos == 2
        })
        .await;
        scene.close().await;
    }

    #[tokio::test]
    async fn bye_reconnects_after_given_delay() {
        let scene = Scene::stream_under(|config| config.live.retry_ms = 300).await;
        let (slept, mut sleeps) = tokio::sync::mpsc::unbounded_channel();
        let live = Sleepless {
            http: scene.line.http.clone(),
            slept,
        };
        let Scene {
            office,
            mut phone,
            file,
            ..
        } = scene;
        let (listening, is_listening) = tokio::sync::oneshot::channel();
        let mut listening = Some(listening);
        let mut pause = Duration::MAX;
        let on_event = |_: &Phone, event: &Event| {
            if let (true, Some(listening)) = (event.name == "hello", listening.take()) {
                listening.send(()).unwrap();
            }
        };
        let (_user, mut wishes) = tokio::sync::mpsc::channel(1);
        tokio::select! {
            outcome = phone.watch(&live, &mut wishes, on_event) => panic!("the phone stopped watching: {outcome:?}"),
            () = async {
                is_listening.await.unwrap();
                office.close().await;
                // Those of silence and of the interval are longer.
                while pause > Duration::from_secs(10) {
                    let next = tokio::time::timeout(crate::support::TIMEOUT, sleeps.recv()).await;
                    pause = next.expect("the phone waits").unwrap();
                }
            } => {}
        }
        assert!((300..=600).contains(&pause.as_millis()), "{pause:?}");
        let _gone = std::fs::remove_file(file);
    }

    #[tokio::test]
    async fn reset_event_triggers_sync() {
        let mut scene = Scene::stream().await;
        let http = scene.line.http.clone();
        scene.office.sql("DELETE FROM tenant_acme.messages").await;
        let database = scene.office.world.database().await;
        let mut begun = None;
        watch(&mut scene, &http, |phone, event| {
            if event.name == "hello" {
                let database = database.clone();
                begun = Some(tokio::spawn(async move {
                    posduif::postgres::tenants::resync(&database, "acme").await.unwrap();
                }));
            }
            event.name == "reset" && phone.state().unwrap() == State::Stream
        })
        .await;
        scene.check(State::Stream, &[]);
        scene.close().await;
    }

    #[tokio::test]
    async fn revoked_event_deletes_token() {
        let mut scene = Scene::stream().await;
        let http = scene.line.http.clone();
        let psql = scene.office.world.psql().await;
        let (listening, is_listening) = tokio::sync::oneshot::channel();
        let mut listening = Some(listening);
        let on_event = |_: &Phone, event: &Event| {
            if let (true, Some(listening)) = (event.name == "hello", listening.take()) {
                listening.send(()).unwrap();
            }
        };
        let (_user, mut wishes) = tokio::sync::mpsc::channel(1);
        let (outcome, ()) = tokio::join!(scene.phone.watch(&http, &mut wishes, on_event), async {
            is_listening.await.unwrap();
            psql.batch_execute(
                "UPDATE posduif.devices SET revoked_at = now(); UPDATE tenant_acme.devices SET revoked_at = now()",
            )
            .await
            .unwrap();
        });
        assert!(matches!(outcome, Err(Trouble::Ended)), "{outcome:?}");
        scene.check(State::Unenrolled, &["message 1"]);
        scene.close().await;
    }

    #[tokio::test]
    async fn refused_last_event_id_is_deleted() {
        let mut scene = Scene::stream().await;
        rusqlite::Connection::open(&scene.file)
            .unwrap()
            .execute("INSERT INTO memory VALUES ('last_event_id', 'of another server')", [])
            .unwrap();
        let http = scene.line.http.clone();
        watch(&mut scene, &http, |_, event| event.name == "hello").await;
        assert_eq!(scene.memory("last_event_id"), None);
        scene.check(State::Stream, &["message 1"]);
        scene.close().await;
    }
}

/// Lines of the table, by the test that each names.
fn lines_of_the_table() -> BTreeMap<String, String> {
    let text = include_str!("../docs/sync-protocol.md");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("::"));
    rows.map(|line| {
        let test = line
            .split('|')
            .map(str::trim)
            .find(|cell| cell.starts_with('`') && cell.contains("::"));
        (test.unwrap().trim_matches('`').to_owned(), line.to_owned())
    })
    .collect()
}

#[test]
fn protocol_table_and_tests_match() {
    let mut tests = BTreeSet::new();
    let mut module = "";
    let mut is_test = false;
    for line in include_str!("protocol.rs").lines() {
        if let Some(name) = line.strip_prefix("mod ") {
            module = name.trim_end_matches(" {");
        }
        let name = line
            .trim_start()
            .strip_prefix("async fn ")
            .and_then(|rest| rest.split('(').next());
        if let (true, Some(name)) = (is_test, name) {
            tests.insert(format!("{module}::{name}"));
        }
        is_test = line.trim() == "#[tokio::test]";
    }
    let lines: BTreeSet<String> = lines_of_the_table().into_keys().collect();
    assert_eq!(tests, lines);
}

#[test]
fn event_parser_reads_chunks_of_any_size() {
    let text = "retry: 1000\n\n: a comment\n\nid: c1\nevent: message\ndata: {\"a\":1}\n\ndata: ä\r\ndata:\r\ndata:  ü\r\n\r\n\
                event: presence\n\nid: 2\ndata: not whole\n";
    let event = |name: &str, id: Option<&str>, data: &str| Event {
        name: name.to_owned(),
        id: id.map(str::to_owned),
        data: data.to_owned(),
    };
    for size in 1..=text.len() {
        let mut parser = EventParser::default();
        text.as_bytes().chunks(size).for_each(|piece| parser.push(piece));
        let expected = [
            event("message", Some("c1"), "{\"a\":1}"),
            event("message", None, "ä\n\n ü"),
        ];
        assert_eq!(parser.take(), expected, "in pieces of {size}");
    }
}

#[test]
fn backoff_grows_to_a_bound_and_respects_retry_after() {
    let mut backoff = Backoff::default();
    for least in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        let pause = backoff.next(None);
        assert!(
            (least..=2 * least).contains(&pause.as_secs()),
            "{pause:?}, at least {least} s"
        );
    }
    assert!(Backoff::default().next(Some(Duration::from_secs(30))) >= Duration::from_secs(30));
}
