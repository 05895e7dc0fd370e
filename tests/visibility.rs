//! Live events of commits that Postgres does not show yet: a page hears of a row when it can read it.

use std::task::{Context, Poll, Waker};

use posduif::contract::notice::LiveEntry;
use posduif::core::position::StreamId;
use posduif::core::snapshot::Snapshot;
use posduif::engine::Role;
use posduif::live::feed::{Feed, FeedEvent, Opening};
use posduif::live::hub::Hub;
use posduif::live::tail::receive;
use posduif::live::visibility::{Extent, Look, Visibility};
use serde_json::Value;
use uuid::Uuid;

use crate::support::http::{Api, Events};
use crate::support::slow::Slow;

/// A page of Bob's, who is logged in.
struct Page {
    web: Api,
    path: String,
}

impl Page {
    async fn of(slow: &Slow) -> Self {
        let web = slow.stage.engine.as_ref().unwrap().api().log_in("acme", "bob").await;
        let path = format!("/sse/web/{}", slow.stage.bob);
        Self { web, path }
    }

    async fn open(&self) -> Events {
        self.web.events(&self.path).await
    }

    /// Whether a request for all messages shows one.
    async fn shows(&self, id: Uuid) -> bool {
        let list = self.web.get("/api/messages").await.expect(200);
        let messages: &Vec<Value> = list["messages"].as_array().unwrap();
        messages.iter().any(|message| message["id"] == id.to_string())
    }
}

#[tokio::test]
async fn page_event_of_an_invisible_commit_waits_until_it_is_shown() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let page = Page::of(&slow).await;
    let mut events = page.open().await;

    // GIVEN a commit that is published while SELECT does not show it, and a later one that it shows
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(joe, bob).await;
    let later = slow.stage.message(joe, bob, "later").await;
    // THEN the event of the later one passes
    let first = events.expect("new_message").await;
    assert_eq!(first.data["message_id"], later.to_string());
    assert!(!held.is_finished() && !page.shows(id).await);

    // WHEN it is shown THEN its event comes, and a request shows the row
    slow.hold(false).await;
    let second = events.expect("new_message").await;
    assert_eq!(second.data["message_id"], id.to_string());
    assert!(page.shows(id).await);
    assert_ne!(first.id, second.id);
    held.await.unwrap();
    slow.stage.stop().await;
}

#[tokio::test]
async fn page_opened_above_an_invisible_commit_gets_its_event() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let page = Page::of(&slow).await;
    let before = slow.stage.message(joe, bob, "before").await;
    // GIVEN a page that begins behind a commit that its first request does not show
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(joe, bob).await;
    let above = slow.stage.message(joe, bob, "above").await;
    slow.stage.world.published().await;
    let mut events = page.open().await;
    assert!(page.shows(before).await && page.shows(above).await && !page.shows(id).await);
    // WHEN it is shown THEN its event comes, and none of what the request showed
    slow.hold(false).await;
    let event = events.next().await.unwrap();
    assert_eq!(
        (event.name.as_str(), &event.data["message_id"]),
        ("new_message", &id.to_string().into())
    );
    assert!(page.shows(id).await);
    held.await.unwrap();
    slow.stage.stop().await;
}

#[tokio::test]
async fn page_resumed_while_a_commit_is_invisible_gets_its_event() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let page = Page::of(&slow).await;
    let mut events = page.open().await;
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(joe, bob).await;
    let later = slow.stage.message(joe, bob, "later").await;
    let last = events.expect("new_message").await;
    assert_eq!(last.data["message_id"], later.to_string());
    drop(events);

    // WHEN the page resumes from the last event that it got, twice
    let mut cursor = last.id.unwrap();
    for _ in 0..2 {
        let mut events = page.web.with("last-event-id", &cursor).events(&page.path).await;
        let again = events.expect("new_message").await;
        assert_eq!(again.data["message_id"], later.to_string());
        cursor = again.id.unwrap();
    }
    let mut events = page.web.with("last-event-id", &cursor).events(&page.path).await;
    assert!(!held.is_finished());
    slow.hold(false).await;
    // THEN the event of the commit comes at last
    let mut named = String::new();
    while named != id.to_string() {
        let event = events.expect("new_message").await;
        named = event.data["message_id"].as_str().unwrap().to_owned();
    }
    assert!(page.shows(id).await);
    held.await.unwrap();
    slow.stage.stop().await;
}

#[tokio::test]
async fn device_event_of_an_invisible_commit_is_sent_at_once() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let page = Page::of(&slow).await;
    let phone = page.web.enroll("phone", Some(&joe.to_string())).await.0;
    let mut events = phone.events("/sse/mobile/phone").await;
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(bob, joe).await;
    let event = events.expect("message").await;
    assert_eq!(event.data["message_id"], id.to_string());
    // The stream has its row.
    let (pages, _) = phone.sync(Some(&events.cursor)).await;
    assert_eq!(pages[0]["messages"][0]["id"], id.to_string());
    assert!(!held.is_finished());
    slow.hold(false).await;
    held.await.unwrap();
    slow.stage.stop().await;
}

#[tokio::test]
async fn event_that_is_shown_passes_none_that_the_same_snapshot_shows() {
    let slow = Slow::with(Role::All).await;
    let standing = slow.store.standing("acme", slow.stage.bob).await.unwrap();
    let (hub, visibility) = (Hub::new(16), Visibility::default());
    let look = |snapshot: &str| {
        let extent = Extent {
            epoch: standing.view.epoch,
            position: standing.view.position,
            window: Vec::new(),
        };
        Look::behind(extent, Snapshot::parse(snapshot).unwrap())
    };
    let opening = Opening {
        resume: None,
        replay_max: 10,
        visibility: visibility.clone(),
        is_page: true,
    };
    let subscription = hub.subscribe("acme", slow.stage.bob);
    let answer = async {
        visibility.wished().await;
        visibility.answer(visibility.take(), look("100:100:"));
    };
    let (feed, _) = tokio::join!(Feed::open(slow.store.clone(), subscription, opening), answer);
    let mut feed = feed.unwrap();
    let mut last = None;
    let mut arrive = |feed: &mut Feed, place: u64, xid: u32| {
        let id = StreamId {
            ms: standing.view.position.ms + place,
            seq: 1,
        };
        let entry = LiveEntry {
            previous: last,
            epoch: Some(standing.view.epoch),
            term: standing.view.term,
            heartbeat_ts: None,
            notices: format!(
                r#"[["{id}","acme","messages","{xid}",{xid},0,[["new_message","insert",["{}"]]]]]"#,
                slow.stage.bob
            ),
        };
        receive(&hub, id, &entry, &mut last);
        match feed.poll_signals(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(signals) => assert!(!feed.take(&signals)),
            Poll::Pending => panic!("the notice has not arrived"),
        }
    };
    // GIVEN a change that is held, and one that follows it
    arrive(&mut feed, 1, 100);
    assert!(feed.pop().is_none());
    arrive(&mut feed, 2, 101);
    // WHEN both are shown before the feed knows it of the first
    visibility.answer(visibility.take(), look("102:102:"));
    // THEN they keep their order, and a reader resumes at each
    let mut rows = Vec::new();
    while let Some((event, place)) = feed.pop() {
        let FeedEvent::Change(notice) = event else {
            panic!("{event:?}");
        };
        rows.push((notice.row_id.clone().unwrap(), place.position < notice.id));
    }
    assert_eq!(rows, [("100".to_owned(), true), ("101".to_owned(), false)]);
    slow.stage.stop().await;
}
