//! Breaks of replication continuity, end to end: consumers receive a `reset`, devices a snapshot, later commits flow,
//! and what only looks like a break starts no epoch.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use posduif::config::Secret;
use posduif::core::position::StreamId;
use posduif::dev::{PrivatePostgres, PrivateRedis};
use posduif::engine::Role;
use posduif::redis::reading::Read;
use posduif::redis::store::{Error, Store};
use postgres_types::PgLsn;
use uuid::Uuid;

use crate::support::http::Api;
use crate::support::proxy::Proxy;
use crate::support::servers::{self, Own};
use crate::support::stage::Stage;
use crate::support::{Entry, World, connect, eventually};

/// A copy of a server's folder, made while the server does not run.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Puts a copy in the place of a server's folder.
fn restore(copy: &Path, to: &Path) {
    std::fs::remove_dir_all(to).unwrap();
    let status = Command::new("cp").arg("-a").arg(copy).arg(to).status().unwrap();
    assert!(status.success());
}

/// A Postgres of the test's own that can be set back.
struct Rewindable {
    postgres: Own<PrivatePostgres>,
}

impl Rewindable {
    async fn new() -> Self {
        Self {
            postgres: servers::postgres().await,
        }
    }

    async fn world(&self) -> World {
        World::on(&self.postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await
    }

    fn data(&self) -> PathBuf {
        self.postgres
            .folder()
            .join("postgres")
            .canonicalize()
            .unwrap()
            .join("data")
    }

    fn copy_path(&self) -> PathBuf {
        self.data().with_file_name("data.copy")
    }

    /// Copies all that is there now.
    async fn save(&mut self, stage: &mut Stage) {
        self.postgres.server.stop().await.unwrap();
        copy(&self.data(), &self.copy_path());
        self.start(stage).await;
    }

    /// Saves with one message in the copy and more behind it that a restore loses; gives that message, and what
    /// `changes` then holds.
    async fn save_with_message(&mut self, stage: &mut Stage) -> (Uuid, Vec<Entry>) {
        let kept = stage.message(stage.bob, stage.joe, "in the copy").await;
        stage.world.published().await;
        self.save(stage).await;
        for _ in 0..20 {
            stage.message(stage.bob, stage.joe, "lost").await;
        }
        (kept, stage.changes().await)
    }

    /// Goes back to the copy.
    async fn restore(&mut self, stage: &mut Stage) {
        self.postgres.server.stop().await.unwrap();
        restore(&self.copy_path(), &self.data());
        self.start(stage).await;
    }

    async fn start(&mut self, stage: &mut Stage) {
        self.postgres.server.restart().await.unwrap();
        stage.psql = stage.world.psql().await;
    }

    /// Starts as a standby would, and promotes.
    async fn promote(&mut self, stage: &mut Stage) {
        std::fs::write(self.data().join("standby.signal"), "").unwrap();
        self.start(stage).await;
        stage.sql("SELECT pg_promote()").await;
    }
}

async fn end_of_log(stage: &Stage) -> PgLsn {
    let end = "SELECT pg_current_wal_lsn()";
    stage.psql.query_one(end, &[]).await.unwrap().get(0)
}

async fn number(world: &World) -> String {
    world.checkpoint().await.remove("number").unwrap_or_default()
}

/// Waits until an epoch of this number has begun, and gives the cause.
async fn epoch_begins(stage: &Stage, wanted: &str) -> String {
    eventually("a new epoch", || async {
        (number(&stage.world).await == wanted).then_some(())
    })
    .await;
    let reason = "SELECT reason FROM posduif.epochs ORDER BY number DESC LIMIT 1";
    stage.psql.query_one(reason, &[]).await.unwrap().get(0)
}

/// Ids of the rows behind a stream's last `reset`, and the place of that.
#[track_caller]
fn behind_reset(entries: &[Entry]) -> (usize, Vec<String>) {
    let reset = entries.iter().rposition(|entry| entry.field("op") == "reset").unwrap();
    assert!(entries.windows(2).all(|pair| pair[0].id < pair[1].id));
    let rows = &entries[reset + 1..];
    let ids = rows
        .iter()
        .map(|entry| entry.json("row")["id"].as_str().unwrap_or_default().to_owned());
    (reset, ids.collect())
}

/// The streams hold what they held, a `reset`, and at their end these rows. Between the two, what had not been
/// acknowledged may come again.
async fn check_rows_behind_reset(stage: &Stage, before: &[Entry], rows: &[Uuid]) {
    let rows: Vec<String> = rows.iter().map(Uuid::to_string).collect();
    let changes = stage.changes().await;
    assert_eq!(changes[..before.len()], before[..]);
    let (reset, ids) = behind_reset(&changes);
    assert!(reset >= before.len(), "the reset is new");
    assert!(ids.ends_with(&rows), "{ids:?} do not end with {rows:?}");
    let (_, ids) = behind_reset(&stage.inbox(stage.joe).await);
    assert!(ids.ends_with(&rows), "{ids:?} do not end with {rows:?}");
}

/// Joe's phone, enrolled, with the cursor of its first sync.
async fn phone(stage: &Stage) -> (Api, String) {
    let bob = stage.engine.as_ref().unwrap().api().log_in("acme", "bob").await;
    let (phone, _) = bob.enroll("phone", Some(&stage.joe.to_string())).await;
    let (_, cursor) = phone.sync(None).await;
    (phone, cursor)
}

/// The API answers a sync again: it refuses for a while to decide about a cursor ahead of the streams.
async fn sync_answers(phone: &Api, cursor: &str) {
    eventually("the sync is answered", || async {
        let answer = phone.get(&format!("/api/sync/incoming?cursor={cursor}")).await;
        match answer.status.as_u16() {
            200 => Some(()),
            status => {
                assert_eq!(status, 503);
                assert!(answer.headers.contains_key("retry-after"));
                None
            }
        }
    })
    .await;
}

/// The phone takes a snapshot, and then has these messages.
async fn check_phone_resets(phone: &Api, cursor: &str, messages: &[Uuid]) {
    eventually("the engine is ready", || async {
        (phone.get("/ready").await.status == 200).then_some(())
    })
    .await;
    let (pages, _) = phone.sync(Some(cursor)).await;
    assert_eq!(pages[0]["reset"], true);
    let received = pages.iter().flat_map(|page| page["messages"].as_array().unwrap());
    let received: HashSet<String> = received
        .map(|message| message["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(received, messages.iter().map(Uuid::to_string).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_restored_from_older_copy_while_running_starts_epoch() {
    let mut server = Rewindable::new().await;
    let mut stage = Stage::on_with(server.world().await, Role::All).await;
    let (phone, cursor) = phone(&stage).await;
    let (kept, before) = server.save_with_message(&mut stage).await;
    assert_eq!(number(&stage.world).await, "1", "an orderly restart breaks nothing");
    server.restore(&mut stage).await;
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("older copy"), "{reason}");
    let after = stage.message(stage.bob, stage.joe, "after").await;
    check_rows_behind_reset(&stage, &before, &[after]).await;
    check_phone_resets(&phone, &cursor, &[kept, after]).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_older_copy_grown_past_the_old_end_starts_epoch() {
    let mut server = Rewindable::new().await;
    let mut stage = Stage::on_with(server.world().await, Role::All).await;
    let (phone, cursor) = phone(&stage).await;
    let (kept, before) = server.save_with_message(&mut stage).await;
    stage.engine.take().unwrap().stop().await;
    let top = end_of_log(&stage).await;
    server.restore(&mut stage).await;
    let mut rows = Vec::new();
    while end_of_log(&stage).await <= top {
        rows.push(stage.message(stage.bob, stage.joe, "new").await);
    }
    stage.engine = Some(stage.world.engine(Role::All).await);
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("older copy"), "{reason}");
    rows.push(stage.message(stage.bob, stage.joe, "after").await);
    check_rows_behind_reset(&stage, &before, &rows).await;
    rows.push(kept);
    let phone = phone.at(&stage.engine.as_ref().unwrap().api());
    check_phone_resets(&phone, &cursor, &rows).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_replacing_a_half_published_one_after_restore_is_published() {
    let mut server = Rewindable::new().await;
    let mut world = server.world().await;
    // A heartbeat behind the copy would be missed first.
    world.config.replication.heartbeat_interval_ms = 10_000;
    world.config.replication.batch_changes_max = 20;
    let (mut stage, engine) = Stage::with_process(world, "replicator").await;
    stage.message(stage.bob, stage.joe, "in the copy").await;
    let before = stage.changes().await;
    server.postgres.server.kill().await.unwrap();
    copy(&server.data(), &server.copy_path());
    server.start(&mut stage).await;
    let many = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, 'lost' FROM generate_series(1, 20000)";
    stage.psql.execute(many, &[&stage.bob, &stage.joe]).await.unwrap();
    eventually("a part of the transaction is published", || async {
        let open = stage.world.checkpoint().await.remove("open");
        open.filter(|open| !open.is_empty())
    })
    .await;
    engine.kill().await;
    assert_ne!(stage.world.checkpoint().await["open"], "");
    let top = end_of_log(&stage).await;
    server.postgres.server.kill().await.unwrap();
    restore(&server.copy_path(), &server.data());
    server.start(&mut stage).await;
    // Rows below the place where the lost transaction was committed, and rows above it.
    let mut rows = Vec::new();
    for _ in 0..5 {
        rows.push(stage.message(stage.bob, stage.joe, "below").await);
    }
    while end_of_log(&stage).await <= top {
        stage.sql("SELECT pg_switch_wal()").await;
        rows.push(stage.message(stage.bob, stage.joe, "at last above").await);
    }
    let engine = stage.world.process("replicator").await;
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("of which a part was published"), "{reason}");
    check_rows_behind_reset(&stage, &before, &rows).await;
    assert_eq!(engine.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_standby_starts_epoch_only_when_it_lacks_data() {
    let mut server = Rewindable::new().await;
    let mut stage = Stage::on_with(server.world().await, Role::Replicator).await;
    stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;
    // The engine gets all of it before the shutdown.
    server.postgres.server.stop().await.unwrap();
    copy(&server.data(), &server.copy_path());
    // It has all that the primary had.
    server.promote(&mut stage).await;
    stage.message(stage.bob, stage.joe, "on the second timeline").await;
    stage.world.published().await;
    stage.engine.take().unwrap().stop().await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    stage.message(stage.bob, stage.joe, "with another engine").await;
    let before = stage.changes().await;
    assert_eq!(number(&stage.world).await, "1");

    // It lagged.
    stage.engine.take().unwrap().stop().await;
    server.postgres.server.stop().await.unwrap();
    restore(&server.copy_path(), &server.data());
    std::fs::remove_dir_all(server.copy_path()).unwrap();
    server.promote(&mut stage).await;
    server.save(&mut stage).await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("older copy"), "{reason}");
    let row = stage.message(stage.bob, stage.joe, "after the lag").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;

    // It lagged and forked again: the timeline tells.
    for _ in 0..20 {
        stage.message(stage.bob, stage.joe, "lost").await;
    }
    let before = stage.changes().await;
    server.postgres.server.stop().await.unwrap();
    restore(&server.copy_path(), &server.data());
    server.promote(&mut stage).await;
    let reason = epoch_begins(&stage, "3").await;
    assert!(reason.contains("timeline 3 forked from timeline 2"), "{reason}");
    let row = stage.message(stage.bob, stage.joe, "after the fork").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;

    // Made by pg_basebackup, it has no slots.
    let before = stage.changes().await;
    server.postgres.server.stop().await.unwrap();
    for slot in std::fs::read_dir(server.data().join("pg_replslot")).unwrap() {
        std::fs::remove_dir_all(slot.unwrap().path()).unwrap();
    }
    server.promote(&mut stage).await;
    let reason = epoch_begins(&stage, "4").await;
    assert!(reason.contains("slot was missing"), "{reason}");
    let row = stage.message(stage.bob, stage.joe, "with another slot").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hosts_read_from_the_primary_and_follow_a_promotion() {
    let mut primary = servers::postgres().await;
    let redis = servers::redis().await;
    let world = World::on(&primary.server.url(), &redis.server.url()).await;
    let mut stage = Stage::on_with(world, Role::Replicator).await;
    stage
        .sql("SELECT pg_create_physical_replication_slot('standby', true)")
        .await;
    let standby = servers::standby_of(&mut primary, "standby", |options| options).await;
    stage.engine.take().unwrap().stop().await;
    let host = |url: &str| {
        let (_, host) = url.split_once('@').unwrap();
        host.split_once('/').unwrap().0.to_owned()
    };
    let url = stage.world.config.postgres.url.expose().to_owned();
    let hosts = format!("{},{}", host(&standby.server.url()), host(&url));
    let both = format!("{}?target_session_attrs=read-write", url.replace(&host(&url), &hosts));
    stage.world.config.postgres.url = Secret::new(both);
    stage.psql = stage.world.psql().await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let there = connect(&standby.server.url()).await;
    stage.message(stage.bob, stage.joe, "on the primary").await;
    let before = stage.changes().await;
    assert_eq!(number(&stage.world).await, "1", "no new epoch");

    let end: String = stage
        .psql
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    eventually("the standby has all of it", || async {
        let replayed = "SELECT FROM (SELECT) AS one WHERE pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        there.query_opt(replayed, &[&end]).await.unwrap()
    })
    .await;
    primary.server.kill().await.unwrap();
    there.execute("SELECT pg_promote()", &[]).await.unwrap();
    stage.psql = stage.world.psql().await;
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("slot was missing"), "{reason}");
    let row = stage.message(stage.bob, stage.joe, "on the new primary").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_to_standby_with_synced_slot_starts_no_epoch() {
    let mut primary = servers::postgres().await;
    // What is answered is durable, so that the slot moves on at once.
    let redis = servers::redis_with(|_, options| options.setting("appendfsync", "always")).await;
    let proxy = Proxy::before(&primary.server.url()).await;
    let world = World::on(&proxy.url(&primary.server.url()), &redis.server.url()).await;
    let mut stage = Stage::on_with(world, Role::Replicator).await;
    if stage.server_version().await < 170_000 {
        // Slots are not synchronized yet.
        return stage.stop().await;
    }
    stage
        .sql("SELECT pg_create_physical_replication_slot('standby', true)")
        .await;
    let standby = servers::standby_of(&mut primary, "standby", |options| {
        options
            .setting("sync_replication_slots", "on")
            .setting("hot_standby_feedback", "on")
    })
    .await;
    stage.psql = stage.world.psql().await;
    // The engine is sent only what the standby has.
    stage
        .sql("ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
        .await;
    stage.sql("SELECT pg_reload_conf()").await;
    stage.message(stage.bob, stage.joe, "on the primary").await;
    let there = connect(&standby.server.url()).await;
    let slot = stage.world.config.replication.slot.clone();
    eventually("the standby keeps a copy of the slot", || async {
        // A copy counts once the primary's slot has moved on beyond it, which it does behind such records.
        stage.sql("SELECT pg_log_standby_snapshot()").await;
        // Wakes who looks, which else sleeps ever longer.
        there.execute("SELECT pg_reload_conf()", &[]).await.unwrap();
        let synced = "SELECT FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary";
        there.query_opt(synced, &[&slot]).await.unwrap()
    })
    .await;
    // Some of these the standby may not have when the primary dies; then nobody has seen them.
    for _ in 0..200 {
        stage
            .message(stage.bob, stage.joe, "while the primary still lives")
            .await;
    }
    primary.server.kill().await.unwrap();
    there.execute("SELECT pg_promote()", &[]).await.unwrap();
    proxy.lead_to(&standby.server.url());
    proxy.cut();
    stage.psql = stage.world.psql().await;
    stage.message(stage.bob, stage.joe, "on the new primary").await;
    let changes = stage.changes().await;
    let inserted: Vec<_> = changes.iter().filter(|entry| entry.field("op") == "insert").collect();
    assert!(inserted.windows(2).all(|pair| pair[0].id < pair[1].id));
    let published: Vec<_> = inserted
        .iter()
        .filter(|entry| entry.field("table") == "messages")
        .map(|entry| entry.json("row")["id"].as_str().unwrap().to_owned())
        .collect();
    // One session wrote them, one after another.
    let committed = "SELECT id::text FROM tenant_acme.messages ORDER BY created_at";
    let committed: Vec<String> = stage
        .psql
        .query(committed, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(published, committed);
    assert_eq!(number(&stage.world).await, "1", "no new epoch");
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_cluster_starts_epoch() {
    let mut stage = Stage::new().await;
    stage.message(stage.bob, stage.joe, "before").await;
    let before = stage.changes().await;
    stage.engine.take().unwrap().stop().await;
    // What Redis holds comes from elsewhere.
    let () = redis::cmd("HSET")
        .arg(stage.world.keys().checkpoint())
        .arg("system_id")
        .arg("7000000000000000000")
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("another cluster"), "{reason}");
    let row = stage.message(stage.bob, stage.joe, "after").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;
    stage.stop().await;
}

/// Writes WAL until Postgres has given up the world's slot.
async fn lose_slot(stage: &Stage) {
    let slot = stage.world.config.replication.slot.clone();
    eventually("the slot is lost", || async {
        for statement in [
            "SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000))",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ] {
            stage.sql(statement).await;
        }
        let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
        let status: Option<String> = stage.psql.query_one(status, &[&slot]).await.unwrap().get(0);
        (status.as_deref() == Some("lost")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidated_slot_is_recreated_while_streaming_and_at_start() {
    let postgres = servers::postgres_with(|_, options| {
        options
            .setting("max_slot_wal_keep_size", "1MB")
            .setting("max_wal_size", "32MB")
    })
    .await;
    let world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    let proxy = Proxy::before(world.config.postgres.url.expose()).await;
    let mut config = world.config.clone();
    config.postgres.url = Secret::new(proxy.url(config.postgres.url.expose()));
    let engine = world.engine_with(Role::All, config.clone()).await;
    world.published().await;
    let mut stage = Stage::without_engine(world).await;
    stage.engine = Some(engine);
    let (phone, cursor) = phone(&stage).await;
    let before = stage.changes().await;
    proxy.stall();
    let mut rows = vec![stage.message(stage.bob, stage.joe, "in the lost log").await];
    lose_slot(&stage).await;
    proxy.resume();
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("slot"), "{reason}");
    rows.push(stage.message(stage.bob, stage.joe, "after").await);
    check_rows_behind_reset(&stage, &before, &rows[1..]).await;
    check_phone_resets(&phone, &cursor, &rows).await;

    let before = stage.changes().await;
    stage.engine.take().unwrap().stop().await;
    stage.message(stage.bob, stage.joe, "in the lost log").await;
    lose_slot(&stage).await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let reason = epoch_begins(&stage, "3").await;
    assert!(reason.contains("slot was missing"), "{reason}");
    let row = stage.message(stage.bob, stage.joe, "after").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restored_from_older_copy_starts_epoch() {
    let mut redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on_with(world, Role::All).await;
    let (phone, cursor) = phone(&stage).await;
    let mut rows = vec![stage.message(stage.bob, stage.joe, "in the copy").await];
    stage.world.published().await;
    let (data, saved) = (redis.folder().join("redis/appendonlydir"), redis.folder().join("saved"));
    redis.server.stop().await.unwrap();
    copy(&data, &saved);
    redis.server.restart().await.unwrap();
    let before = stage.changes().await;
    rows.push(stage.message(stage.bob, stage.joe, "not in the copy").await);
    // From here on Postgres does not send it again.
    let end = end_of_log(&stage).await;
    eventually("all is acknowledged", || async {
        let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
        let slot = &stage.world.config.replication.slot;
        let confirmed: PgLsn = stage.psql.query_one(confirmed, &[slot]).await.unwrap().get(0);
        (confirmed >= end).then_some(())
    })
    .await;
    redis.server.stop().await.unwrap();
    restore(&saved, &data);
    redis.server.restart().await.unwrap();
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("beyond the acknowledged"), "{reason}");
    rows.push(stage.message(stage.bob, stage.joe, "after").await);
    check_rows_behind_reset(&stage, &before, &rows[2..]).await;
    check_phone_resets(&phone, &cursor, &rows).await;
    stage.stop().await;
}

/// Both servers of a test that puts back copies of one moment.
struct BothRewindable {
    postgres: Rewindable,
    redis: Own<PrivateRedis>,
}

impl BothRewindable {
    async fn new() -> Self {
        Self {
            postgres: Rewindable::new().await,
            redis: servers::redis().await,
        }
    }

    async fn world(&self) -> World {
        World::on(&self.postgres.postgres.server.url(), &self.redis.server.url()).await
    }

    fn redis_paths(&self) -> (PathBuf, PathBuf) {
        let folder = self.redis.folder();
        (folder.join("redis/appendonlydir"), folder.join("saved"))
    }

    /// Copies both, while no engine runs.
    async fn save(&mut self, stage: &mut Stage) {
        self.postgres.save(stage).await;
        self.redis.server.stop().await.unwrap();
        let (data, saved) = self.redis_paths();
        copy(&data, &saved);
        self.redis.server.restart().await.unwrap();
    }

    /// Puts both copies back, while no engine runs.
    async fn restore(&mut self, stage: &mut Stage) {
        self.postgres.restore(stage).await;
        self.redis.server.stop().await.unwrap();
        let (data, saved) = self.redis_paths();
        restore(&saved, &data);
        self.redis.server.restart().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_copies_of_both_servers_reset_cursors_ahead_of_them() {
    let mut servers = BothRewindable::new().await;
    let mut stage = Stage::on_with(servers.world().await, Role::All).await;
    let kept = stage.message(stage.bob, stage.joe, "in the copies").await;
    stage.world.published().await;
    let (phone, old) = phone(&stage).await;
    stage.engine.take().unwrap().stop().await;
    servers.save(&mut stage).await;

    stage.engine = Some(stage.world.engine(Role::All).await);
    let phone = phone.at(&stage.engine.as_ref().unwrap().api());
    for _ in 0..100 {
        stage.message(stage.bob, stage.joe, "lost").await;
    }
    stage.world.published().await;
    let (_, ahead) = phone.sync(Some(&old)).await;
    stage.engine.take().unwrap().stop().await;
    servers.restore(&mut stage).await;

    stage.engine = Some(stage.world.engine(Role::All).await);
    let phone = phone.at(&stage.engine.as_ref().unwrap().api());
    let after = stage.message(stage.bob, stage.joe, "after").await;
    stage.world.published().await;
    assert_eq!(number(&stage.world).await, "1", "no server can tell");
    // A cursor of before the copies continues.
    let (pages, _) = phone.sync(Some(&old)).await;
    assert_eq!(pages[0]["reset"], false);
    sync_answers(&phone, &ahead).await;
    // What is published behind it makes a position of the lost history look like one of this history.
    let mut rows = vec![kept, after];
    for _ in 0..150 {
        rows.push(stage.message(stage.bob, stage.joe, "another history").await);
    }
    stage.world.published().await;
    let mut events = phone.with("last-event-id", &ahead).events("/sse/mobile/phone").await;
    events.expect("reset").await;
    drop(events);
    check_phone_resets(&phone, &ahead, &rows).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_checkpoint_and_older_postgres_together_start_epoch() {
    let mut server = Rewindable::new().await;
    let mut stage = Stage::on_with(server.world().await, Role::Replicator).await;
    server.save(&mut stage).await;
    for _ in 0..50 {
        stage.message(stage.bob, stage.joe, "lost").await;
    }
    let before = stage.changes().await;
    stage.engine.take().unwrap().stop().await;
    server.restore(&mut stage).await;
    let () = redis::cmd("DEL")
        .arg(stage.world.keys().checkpoint())
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    epoch_begins(&stage, "2").await;
    let row = stage.message(stage.bob, stage.joe, "after").await;
    check_rows_behind_reset(&stage, &before, &[row]).await;
    stage.stop().await;
}

#[tokio::test]
async fn broken_table_of_one_tenant_blocks_no_trim_and_no_epoch() {
    let mut world = World::new().await;
    world.config.streams.trim_interval_seconds = 1;
    world.config.streams.changes_entries_max = 100;
    let stage = Stage::on_with(world, Role::Replicator).await;
    // Looked at before the other.
    stage.world.tenant("aaa").await;
    stage.world.published().await;
    stage.sql("ALTER TABLE tenant_aaa.users RENAME TO people").await;
    for _ in 0..150 {
        stage.message(stage.bob, stage.joe, "too many").await;
    }
    let changes = stage.world.keys().changes("acme");
    eventually("the other tenant's stream is trimmed", || async {
        (stage.world.stream(&changes).await.len() == 100).then_some(())
    })
    .await;

    let _: u64 = stage.world.ask_redis(&["DEL", &stage.world.keys().checkpoint()]).await;
    epoch_begins(&stage, "2").await;
    let row = stage.message(stage.bob, stage.joe, "after").await;
    stage.world.published().await;
    // What was not acknowledged may come again before it, and then the `reset` is trimmed.
    let changes = stage.changes().await;
    let last = changes.last().unwrap().json("row");
    assert_eq!(last["id"].as_str(), Some(&*row.to_string()));
    let of_broken = stage.world.stream(&stage.world.keys().changes("aaa")).await;
    assert_eq!(of_broken.last().unwrap().field("op"), "reset");
    stage.stop().await;
}

#[tokio::test]
async fn epoch_break_survives_failed_restarts() {
    let stage = Stage::on_with(World::new().await, Role::All).await;
    let api = stage.engine.as_ref().unwrap().api();
    stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;
    assert_eq!(number(&stage.world).await, "1");
    let window = stage.world.keys().window();
    let _: String = stage.world.ask_redis(&["SET", &window, "no hash"]).await;
    stage
        .message(stage.bob, stage.joe, "in a transaction that Redis tears")
        .await;
    eventually("a start has failed", || async {
        let ready = api.admin().get("/ready").await.json();
        let detail = ready["checks"]["replication"]["detail"].to_string();
        detail.contains("Redis refused HGETALL").then_some(())
    })
    .await;
    let _: u64 = stage.world.ask_redis(&["DEL", &window]).await;
    let reason = epoch_begins(&stage, "2").await;
    assert!(reason.contains("transaction"), "{reason}");
    stage.stop().await;
}

#[tokio::test]
async fn reader_ahead_of_the_streams_waits_and_then_resets() {
    let stage = Stage::new().await;
    stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;
    let store = Store::new(&stage.world.config.redis).unwrap();
    let mut place = store.standing("acme", stage.joe).await.unwrap().place();
    // Its term is the current one, so nothing was set back as far as is recorded.
    place.position = StreamId {
        ms: place.position.ms + (1 << 40),
        seq: 1,
    };
    let first = store.read("acme", stage.joe, place, 1).await;
    assert!(matches!(first, Err(Error::NotReached)), "{first:?}");
    eventually("the grace period is over", || async {
        match store.read("acme", stage.joe, place, 1).await {
            Err(Error::NotReached) => None,
            Ok(Read::Broken(_)) => Some(()),
            other => panic!("{other:?}"),
        }
    })
    .await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_grow_beyond_what_a_lagging_redis_replica_has_lost() {
    let redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let mut stage = Stage::on(world).await;
    stage.message(stage.bob, stage.joe, "on both").await;
    stage.world.published().await;
    // GIVEN a replica that knows nothing after this moment
    let (checkpoint, live, changes) = {
        let keys = stage.world.keys();
        (keys.checkpoint(), keys.live(0), keys.changes("acme"))
    };
    let mut copies: Vec<(&String, Vec<u8>)> = Vec::new();
    for key in [&checkpoint, &live, &changes] {
        copies.push((key, stage.world.ask_redis(&["DUMP", key]).await));
    }
    let acknowledged: PgLsn = stage.world.checkpoint().await["acknowledged"].parse().unwrap();
    // AND a slot that was confirmed since, but not up to what services have read
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
    let slot = stage.world.config.replication.slot.clone();
    stage.message(stage.bob, stage.joe, "confirmed").await;
    eventually("the slot is confirmed", || async {
        let at: PgLsn = stage.psql.query_one(confirmed, &[&slot]).await.unwrap().get(0);
        (at > acknowledged).then_some(())
    })
    .await;
    stage.message(stage.bob, stage.joe, "read by a service").await;
    let read = stage.changes().await.last().unwrap().id;
    stage.engine.take().unwrap().stop().await;

    // WHEN the replica becomes the primary
    let mut connection = stage.world.redis().await;
    for (key, copy) in copies {
        let mut restore = redis::cmd("RESTORE");
        restore.arg(key).arg(0).arg(copy).arg("REPLACE");
        let () = restore.query_async(&mut connection).await.unwrap();
    }
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    epoch_begins(&stage, "2").await;
    stage.message(stage.bob, stage.joe, "new").await;

    // THEN the service, which passes over what is not greater, gets the `reset` and what follows it
    let changes = stage.changes().await;
    let (reset, behind) = behind_reset(&changes);
    assert!(changes[reset].id > read, "{} is not above {read}", changes[reset].id);
    assert!(!behind.is_empty());
    stage.stop().await;
}
