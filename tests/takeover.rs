//! Two engines: the second takes over when the first is killed or stalled, and a resumed first one does no harm.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use posduif::config::{Config, Secret};
use posduif::engine::Role;

use crate::support::oracle::outline;
use crate::support::proxy::Proxy;
use crate::support::stage::Stage;
use crate::support::{Process, World, eventually};

/// Messages, one a commit, and what the streams then hold compared with Postgres.
async fn write(stage: &Stage, count: usize) {
    for number in 0..count {
        stage.message(stage.bob, stage.joe, &format!("message {number}")).await;
    }
}

async fn check_streams(stage: &Stage) {
    let changes = outline(&stage.changes().await);
    assert_eq!(changes, stage.oracle.changes("acme", 0).await);
    let joe = stage.joe.to_string();
    let to_joe = stage
        .oracle
        .matching(0, |change| change.column("recipient_id") == joe)
        .await;
    assert_eq!(outline(&stage.inbox(stage.joe).await), to_joe);
    assert_eq!(stage.world.checkpoint().await["number"], "1", "no new epoch");
}

async fn writer(world: &World) -> String {
    world.checkpoint().await.remove("writer").unwrap_or_default()
}

/// Waits until another engine than this has published what is committed now, and gives the time that it took.
async fn taken_over(stage: &Stage, from: &str) -> Duration {
    let start = Instant::now();
    stage.message(stage.bob, stage.joe, "for the second").await;
    eventually("another engine writes", || async {
        (writer(&stage.world).await != from).then_some(())
    })
    .await;
    stage.world.published().await;
    start.elapsed()
}

/// The first engine, awake again, leaves the second one alone, and is there when the second one dies.
async fn check_waits_and_takes_over(stage: &Stage, mut first: Process, second: Process, writing: &str) {
    check_streams(stage).await;
    assert_eq!(writer(&stage.world).await, writing);
    assert!(!first.has_ended());
    second.kill().await;
    taken_over(stage, writing).await;
    check_streams(stage).await;
    assert_eq!(first.terminate().await, Some(0));
}

/// An engine that reaches Postgres through a proxy only.
async fn behind_proxy(world: &World) -> (Proxy, Config) {
    let proxy = Proxy::before(world.config.postgres.url.expose()).await;
    let mut config = world.config.clone();
    config.postgres.url = Secret::new(proxy.url(config.postgres.url.expose()));
    (proxy, config)
}

/// The time that a takeover may take beyond the promise, since the machine does other things too.
const BUSY: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_engine_takes_over_within_seconds_of_a_kill() {
    let (stage, first) = Stage::with_process(World::new().await, "replicator").await;
    let second = stage.world.process("replicator").await;
    write(&stage, 20).await;
    stage.world.published().await;
    let writing = writer(&stage.world).await;
    first.kill().await;
    let time = taken_over(&stage, &writing).await;
    assert!(time < Duration::from_secs(5) + BUSY, "{time:?}");
    write(&stage, 20).await;
    check_streams(&stage).await;
    assert_eq!(second.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_engine_takes_over_when_the_first_loses_postgres() {
    let world = World::new().await;
    let (proxy, config) = behind_proxy(&world).await;
    let first = world.process_with("replicator", &config, None).await;
    world.published().await;
    let stage = Stage::without_engine(world).await;
    write(&stage, 20).await;
    stage.world.published().await;
    let writing = writer(&stage.world).await;
    let second = stage.world.process("replicator").await;
    proxy.stall();
    let time = taken_over(&stage, &writing).await;
    assert!(time < Duration::from_secs(10) + BUSY, "{time:?}");
    write(&stage, 20).await;

    // What it had not read yet reaches the first one now; it finds the slot taken and waits.
    proxy.resume();
    let writing = writer(&stage.world).await;
    write(&stage, 20).await;
    check_waits_and_takes_over(&stage, first, second, &writing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_engine_does_no_harm_when_resumed_after_takeover() {
    let (stage, first) = Stage::with_process(World::new().await, "replicator").await;
    write(&stage, 20).await;
    stage.world.published().await;
    let writing = writer(&stage.world).await;
    let second = stage.world.process("replicator").await;
    first.signal(Signal::SIGSTOP);
    // These wait in the first one's socket and are published by the second.
    write(&stage, 50).await;
    let time = taken_over(&stage, &writing).await;
    assert!(time < Duration::from_secs(10) + BUSY, "{time:?}");
    let writing = writer(&stage.world).await;
    first.signal(Signal::SIGCONT);
    write(&stage, 50).await;
    check_waits_and_takes_over(&stage, first, second, &writing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_transaction_of_an_ended_engine_starts_one_epoch() {
    let mut stage = Stage::new().await;
    let (world, window) = (&stage.world, stage.world.keys().window());
    stage.message(stage.bob, stage.joe, "before").await;
    world.published().await;
    // GIVEN an engine of whose transaction Redis ran only parts, and that ends before it can begin an epoch
    let _: String = world.ask_redis(&["SET", &window, "of another program"]).await;
    stage.message(stage.bob, stage.joe, "torn").await;
    eventually("the tear is recorded", || async {
        let torn = world.checkpoint().await.remove("torn");
        torn.filter(|torn| torn.starts_with("1 "))
    })
    .await;
    stage.engine.take().unwrap().stop().await;
    let _: i64 = stage.world.ask_redis(&["DEL", &window]).await;
    assert_eq!(stage.world.checkpoint().await["number"], "1");

    // WHEN others take over THEN the first of them begins an epoch, and no other does
    for _ in 0..2 {
        stage.engine = Some(stage.world.engine(Role::Replicator).await);
        stage.message(stage.bob, stage.joe, "after").await;
        stage.world.published().await;
        stage.engine.take().unwrap().stop().await;
        let checkpoint = stage.world.checkpoint().await;
        assert_eq!((checkpoint["number"].as_str(), checkpoint["torn"].as_str()), ("2", ""));
    }
    let reason = "SELECT reason FROM posduif.epochs ORDER BY number DESC LIMIT 1";
    let reason: String = stage.psql.query_one(reason, &[]).await.unwrap().get(0);
    assert!(reason.contains("did not run a transaction atomically"), "{reason}");
}
