//! The snapshot hands over to the stream without a gap, also while Postgres ships commits that no snapshot sees yet.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use posduif::contract::control::Command;
use posduif::contract::stream_name::Target;
use posduif::core::position::StreamId;
use posduif::engine::Role;
use posduif::postgres::tenants;
use posduif::redis::read_position::ReadPosition;
use posduif::redis::reading::Read;
use posduif::redis::store::Store;
use posduif::sync::item::Item;
use posduif::sync::snapshot;
use posduif::sync::tables::Routing;
use postgres_types::PgLsn;
use uuid::Uuid;

use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::owner::Owner;
use crate::support::slow::{INSERT, Slow};
use crate::support::stage::Stage;
use crate::support::{TIMEOUT, World, eventually};

impl Slow {
    /// Takes a snapshot for Joe: the place at which the stream goes on, and the messages in it.
    async fn snapshot(&self) -> (ReadPosition, HashSet<Uuid>) {
        let joe = self.stage.joe;
        let routing = Routing {
            rules: &[],
            groups: self.store.groups(),
            providers: &[],
        };
        let beginning = snapshot::begin(&self.database, &self.store, &self.tenant, joe, routing)
            .await
            .unwrap();
        let place = beginning.place;
        let mut seen = HashSet::new();
        let scope = snapshot::Scope {
            database: &self.database,
            tenant: &self.tenant,
            user: joe,
            routing,
        };
        let mut next = Some(snapshot::phase_start(0));
        while let Some(start) = next {
            let page = snapshot::page(scope, start, 50, 1 << 20).await.unwrap();
            for item in &page.items {
                if let Item::Message(json) = item {
                    let message: serde_json::Value = serde_json::from_str(json.as_str()).unwrap();
                    seen.insert(message["id"].as_str().unwrap().parse().unwrap());
                }
            }
            next = page.next;
        }
        (place, seen)
    }

    /// The messages that the stream brings Joe behind a place.
    async fn behind(&self, mut place: ReadPosition) -> HashSet<Uuid> {
        let mut seen = HashSet::new();
        loop {
            let read = self.store.read("acme", self.stage.joe, place, 100).await.unwrap();
            let Read::Slice(slice) = read else {
                panic!("the stream breaks behind {place:?}");
            };
            for entry in slice.entries.iter().filter(|entry| entry.table.as_str() == "messages") {
                let row: serde_json::Value = serde_json::from_str(entry.row.as_ref().unwrap().as_str()).unwrap();
                seen.insert(row["id"].as_str().unwrap().parse().unwrap());
            }
            (place.position, place.term) = (slice.end, slice.view.term);
            if !slice.has_more {
                return seen;
            }
        }
    }
}

#[tokio::test]
async fn snapshot_blind_to_a_published_commit_leaves_it_to_the_stream() {
    let slow = Slow::new().await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let before = slow.stage.message(bob, joe, "before").await;
    slow.stage.world.published().await;
    let (_, seen) = slow.snapshot().await;
    assert_eq!(seen, HashSet::from([before]));

    // GIVEN a commit that is in the stream while SELECT does not see it
    slow.hold(true).await;
    let id = Uuid::new_v4();
    let session = slow.waiting_session().await;
    let held = tokio::spawn(async move { session.execute(INSERT, &[&id, &bob, &joe]).await.unwrap() });
    let key = slow.stage.world.keys().inbox("acme", &joe.to_string());
    let entry = eventually("the invisible commit is in the stream", || async {
        let entries = slow.stage.world.stream(&key).await;
        entries
            .into_iter()
            .find(|entry| entry.json("row")["id"] == id.to_string())
    })
    .await;
    // AND a later one that SELECT sees, so that the stream has gone on
    let later = slow.stage.message(bob, joe, "later").await;
    slow.stage.world.published().await;
    // AND is forgotten by the window, which a heartbeat has looked through
    eventually("the window has closed behind the invisible commit", || async {
        let window = slow.store.handoff("acme", joe).await.unwrap().window;
        window.iter().all(|noted| noted.first <= entry.id).then_some(())
    })
    .await;

    // WHEN a snapshot is taken
    let (place, seen) = slow.snapshot().await;

    // THEN the stream takes over below the commit that the snapshot lacks
    assert_eq!(seen, HashSet::from([before, later]));
    assert!(!held.is_finished());
    assert!(place.position < entry.id, "{place:?} is not below {}", entry.id);
    assert!(slow.behind(place).await.is_superset(&HashSet::from([id, later])));

    // WHEN the commit becomes visible
    slow.hold(false).await;
    held.await.unwrap();
    let (_, seen) = slow.snapshot().await;
    assert_eq!(seen, HashSet::from([before, id, later]));
    // THEN later snapshots begin behind it
    eventually("snapshots begin behind the commit", || async {
        (slow.snapshot().await.0.position >= entry.id).then_some(())
    })
    .await;
    slow.stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epoch_that_begins_under_an_invisible_commit_brings_it() {
    let slow = Slow::new().await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let world = &slow.stage.world;
    // GIVEN a commit that no SELECT sees, and that Redis has held on disk for long
    slow.hold(true).await;
    let id = Uuid::new_v4();
    let session = slow.waiting_session().await;
    let held = tokio::spawn(async move { session.execute(INSERT, &[&id, &bob, &joe]).await.unwrap() });
    let inbox = world.keys().inbox("acme", &joe.to_string());
    eventually("the invisible commit is in the stream", || async {
        let entries = world.stream(&inbox).await;
        entries
            .into_iter()
            .find(|entry| entry.json("row")["id"] == id.to_string())
    })
    .await;
    let api = slow.stage.engine.as_ref().unwrap().api();
    // The second round has the checkpoint on disk that allows to confirm the first.
    for _ in 0..2 {
        slow.stage.message(bob, joe, "later").await;
        world.published().await;
        let end: PgLsn = world.checkpoint().await["end_lsn"].parse().unwrap();
        eventually("it is durable", || async {
            let ready = api.admin().get("/ready").await.json();
            let durable: PgLsn = ready["checks"]["replication"]["durable"].as_str()?.parse().ok()?;
            (durable >= end).then_some(())
        })
        .await;
    }

    // WHEN Redis loses the checkpoint, and a device takes a snapshot in the new epoch
    let _: i64 = world.ask_redis(&["DEL", &world.keys().checkpoint()]).await;
    eventually("a new epoch", || async {
        let number = world.checkpoint().await.remove("number");
        (number.as_deref() == Some("2")).then_some(())
    })
    .await;
    world.published().await;
    let (place, seen) = slow.snapshot().await;
    assert!(!seen.contains(&id) && !held.is_finished());

    // THEN the stream brings it the commit
    slow.hold(false).await;
    held.await.unwrap();
    assert!(slow.behind(place).await.contains(&id), "lost behind {place:?}");
    slow.stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_and_stream_hold_every_commit_at_any_time() {
    let slow = Slow::new().await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    slow.hold(true).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for number in 0..4_u32 {
        let session = match number % 2 {
            0 => slow.waiting_session().await,
            _ => slow.stage.world.psql().await,
        };
        let done = done.clone();
        writers.push(tokio::spawn(async move {
            let mut committed = Vec::new();
            while !done.load(Ordering::Relaxed) {
                // Transactions of some length overlap, and their order of commit is not that of their ids.
                session.batch_execute("BEGIN").await.unwrap();
                let mut ids = Vec::new();
                for _ in 0..=rand(3) {
                    let id = Uuid::new_v4();
                    session.execute(INSERT, &[&id, &bob, &joe]).await.unwrap();
                    ids.push(id);
                    tokio::time::sleep(Duration::from_micros(rand(3000).into())).await;
                }
                if rand(5) == 0 {
                    session.batch_execute("ROLLBACK").await.unwrap();
                } else {
                    session.batch_execute("COMMIT").await.unwrap();
                    committed.extend(ids);
                }
            }
            committed
        }));
    }
    // Snapshots at all moments, while commits become visible in bursts.
    let mut taken = Vec::new();
    for round in 0..40 {
        taken.push(slow.snapshot().await);
        if round % 4 == 3 {
            slow.hold(false).await;
            slow.hold(true).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    slow.hold(false).await;
    let mut committed = HashSet::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }
    slow.stage.world.published().await;
    assert!(committed.len() > 100, "{} rows", committed.len());

    let mut handed_over = 0;
    for (place, snapshot) in taken {
        assert!(place.position > StreamId::ZERO);
        let stream = slow.behind(place).await;
        let together: HashSet<Uuid> = snapshot.union(&stream).copied().collect();
        let missing: Vec<&Uuid> = committed.difference(&together).collect();
        assert!(
            missing.is_empty(),
            "{} rows in neither part, behind {place:?}",
            missing.len()
        );
        assert!(together.is_subset(&committed), "a row that was rolled back is shown");
        handed_over += usize::from(!snapshot.is_empty() && !stream.is_subset(&snapshot));
    }
    assert!(handed_over > 10, "hardly any snapshot was taken while rows came");
    slow.stage.stop().await;
}

/// A device of Joe's that syncs.
struct Device {
    phone: Api,
    cursor: Option<String>,
    /// The messages that it has.
    messages: HashSet<Uuid>,
    snapshots: usize,
}

impl Device {
    async fn of(slow: &Slow) -> Self {
        let web = slow.stage.engine.as_ref().unwrap().api().log_in("acme", "bob").await;
        Self {
            phone: web.enroll("phone", Some(&slow.stage.joe.to_string())).await.0,
            cursor: None,
            messages: HashSet::new(),
            snapshots: 0,
        }
    }

    /// Gets so many batches.
    async fn sync(&mut self, batches: usize) {
        for _ in 0..batches {
            let from = self
                .cursor
                .take()
                .map_or(String::new(), |cursor| format!("?cursor={cursor}"));
            let batch = self.phone.get(&format!("/api/sync/incoming{from}")).await.expect(200);
            if batch["reset"] == true {
                self.snapshots += 1;
                self.messages.clear();
            }
            for message in batch["messages"].as_array().unwrap() {
                self.messages.insert(message["id"].as_str().unwrap().parse().unwrap());
            }
            self.cursor = Some(batch["cursor"].as_str().unwrap().to_owned());
        }
    }
}

#[tokio::test]
async fn device_with_an_incomplete_snapshot_is_notified_when_another_is_due() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let mut device = Device::of(&slow).await;
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(bob, joe).await;
    tenants::resync(&slow.database, "acme").await.unwrap();
    slow.stage.world.published().await;
    // GIVEN a device whose snapshot lacks what is not shown, and that connects only then, twice
    device.sync(2).await;
    assert_eq!(device.snapshots, 1);
    let mut events = device.phone.events("/sse/mobile/phone").await;
    slow.stage.message(bob, joe, "later").await;
    let place = events.expect("message").await.id.unwrap();
    device.sync(2).await;
    let mut resumed = device
        .phone
        .with("last-event-id", &place)
        .events("/sse/mobile/phone")
        .await;
    // WHEN the commit is shown THEN both are notified
    slow.hold(false).await;
    held.await.unwrap();
    events.expect("sync_required").await;
    resumed.expect("sync_required").await;
    device.sync(10).await;
    assert!(device.snapshots == 2 && device.messages.contains(&id));
    slow.stage.stop().await;
}

#[tokio::test]
async fn reset_above_an_invisible_commit_costs_one_snapshot() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let mut device = Device::of(&slow).await;
    let mut events = device.phone.events("/sse/mobile/phone").await;
    // GIVEN a commit that is in the stream while SELECT does not see it, and a reset of the tenant above it
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(bob, joe).await;
    tenants::resync(&slow.database, "acme").await.unwrap();
    slow.stage.world.published().await;
    events.expect("reset").await;
    events.expect("sync_required").await;
    let later = slow.stage.message(bob, joe, "later").await;
    slow.stage.world.published().await;

    // WHEN a device syncs for as long as the commit is invisible
    device.sync(10).await;
    // THEN it takes one snapshot, and has all that is committed
    assert!(!held.is_finished());
    assert_eq!((device.snapshots, &device.messages), (1, &HashSet::from([id, later])));

    // AND another when the commit is visible, since rows may have gone with the reset; then none
    slow.hold(false).await;
    held.await.unwrap();
    events.expect("sync_required").await;
    device.sync(10).await;
    assert_eq!((device.snapshots, &device.messages), (2, &HashSet::from([id, later])));
    // AND a later reset still takes effect
    tenants::resync(&slow.database, "acme").await.unwrap();
    slow.stage.world.published().await;
    device.sync(10).await;
    assert_eq!(device.snapshots, 3);
    slow.stage.stop().await;
}

#[tokio::test]
async fn truncate_above_an_invisible_commit_costs_one_snapshot() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let mut device = Device::of(&slow).await;
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(bob, joe).await;
    slow.stage.sql("TRUNCATE tenant_acme.encrypted_states").await;
    slow.stage.world.published().await;
    device.sync(10).await;
    assert!(!held.is_finished());
    assert_eq!((device.snapshots, &device.messages), (1, &HashSet::from([id])));
    // What preceded the table's end may be there still: the next snapshot decides.
    slow.hold(false).await;
    held.await.unwrap();
    device.sync(10).await;
    assert_eq!((device.snapshots, &device.messages), (2, &HashSet::from([id])));
    slow.stage.stop().await;
}

#[tokio::test]
async fn stream_recreated_above_an_invisible_commit_costs_two_snapshots() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let mut device = Device::of(&slow).await;
    device.sync(2).await;
    // GIVEN a commit that SELECT does not see, and that the inbox has lost since
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(bob, joe).await;
    let target = Target::Inbox("acme".into(), joe);
    tenants::send(&slow.database, &Command::RecreateStream(target))
        .await
        .unwrap();
    let later = slow.stage.message(bob, joe, "later").await;
    slow.stage.world.published().await;
    // WHEN the device syncs meanwhile THEN it takes one snapshot, with what is visible
    device.sync(10).await;
    assert!(!held.is_finished());
    assert_eq!((device.snapshots, &device.messages), (2, &HashSet::from([later])));
    // WHEN the commit is visible THEN it takes one that has it
    slow.hold(false).await;
    held.await.unwrap();
    device.sync(10).await;
    assert_eq!((device.snapshots, &device.messages), (3, &HashSet::from([id, later])));
    slow.stage.stop().await;
}

#[tokio::test]
async fn stream_created_above_an_invisible_commit_costs_two_snapshots() {
    let slow = Slow::with(Role::All).await;
    let (bob, joe) = (slow.stage.bob, slow.stage.joe);
    let mut device = Device::of(&slow).await;
    slow.hold(true).await;
    let (id, held) = slow.invisible_message(bob, joe).await;
    // GIVEN an inbox that was lost, and is created when a device asks for it
    let inbox = slow.stage.world.keys().inbox("acme", &joe.to_string());
    let _: i64 = slow.stage.world.ask_redis(&["DEL", &inbox]).await;
    device.sync(10).await;
    assert!(!held.is_finished());
    assert_eq!((device.snapshots, &device.messages), (1, &HashSet::new()));
    slow.hold(false).await;
    held.await.unwrap();
    device.sync(10).await;
    assert_eq!((device.snapshots, &device.messages), (2, &HashSet::from([id])));
    slow.stage.stop().await;
}

#[tokio::test]
async fn position_and_window_are_read_atomically() {
    let stage = Stage::new().await;
    let config = &stage.world.config.redis;
    let client = posduif::net::redis::client(config).unwrap();
    let mut monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.on_message::<String>();
    let store = Store::new(config).unwrap();
    store.handoff("acme", stage.joe).await.unwrap();
    // Redis tells what each connection asks: `<time> [<database> <address>] "<command>" ...`.
    let keys = stage.world.keys();
    let mut asked: HashMap<String, Vec<String>> = HashMap::new();
    let reads = format!("\"HGETALL\" \"{}\"", keys.window());
    let transaction = async {
        while let Some(line) = lines.next().await {
            let (head, command) = line.split_once("] ").unwrap();
            let (_, address) = head.rsplit_once(' ').unwrap();
            let commands = asked.entry(address.to_owned()).or_default();
            if command.starts_with("\"MULTI\"") {
                commands.clear();
            }
            commands.push(command.to_owned());
            // The publisher only writes to the window.
            if command.starts_with("\"EXEC\"") && commands.contains(&reads) {
                return commands.clone();
            }
        }
        panic!("the monitor has ended");
    };
    let of_handoff = tokio::time::timeout(TIMEOUT, transaction)
        .await
        .expect("the window is read within a transaction");
    assert!(of_handoff[0].starts_with("\"MULTI\""), "{of_handoff:?}");
    assert!(
        of_handoff.iter().any(|command| command.contains(&keys.checkpoint())),
        "{of_handoff:?}"
    );
    drop(lines);
    stage.stop().await;
}

/// A random number below a bound.
fn rand(bound: u32) -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).unwrap();
    u32::from_ne_bytes(bytes) % bound
}

#[tokio::test]
async fn window_stays_bounded_while_heartbeats_fail() {
    let mut world = World::new().await;
    let owner = Owner::of(&mut world).await;
    // Each row is a batch.
    let office = Office::within(world, |config| config.replication.batch_changes_max = 1).await;
    let heartbeats = async |verb: &str, word: &str| {
        let change = format!(
            "DO $$ DECLARE name regprocedure; BEGIN
                 FOR name IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
                     EXECUTE format('{verb} EXECUTE ON FUNCTION %s {word} PUBLIC', name);
                 END LOOP;
             END $$"
        );
        owner.admin.batch_execute(&change).await.unwrap();
    };
    heartbeats("REVOKE", "FROM").await;
    let ids = office.insert(1500).await;
    let keys = office.world.keys();
    let inbox = keys.inbox("acme", &office.joe_id.to_string());
    eventually("all rows are published", || async {
        let length: i64 = office.world.ask_redis(&["XLEN", &inbox]).await;
        (length > 1500).then_some(())
    })
    .await;
    let held: i64 = office.world.ask_redis(&["HLEN", &keys.window()]).await;
    assert!((900..=1001).contains(&held), "{held}");
    let (phone, _) = office.bob.enroll("phone", Some(&office.joe_id.to_string())).await;
    let (pages, _) = phone.sync(None).await;
    let messages: HashSet<&str> = pages
        .iter()
        .flat_map(|page| page["messages"].as_array().unwrap())
        .map(|message| message["id"].as_str().unwrap())
        .collect();
    assert_eq!(messages, ids.iter().map(String::as_str).collect());
    heartbeats("GRANT", "TO").await;
    eventually("a heartbeat closes the window", || async {
        let held: i64 = office.world.ask_redis(&["HLEN", &keys.window()]).await;
        (held == 0).then_some(())
    })
    .await;
    office.engine.stop().await;
    owner.remove().await;
}
