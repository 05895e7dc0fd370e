//! No loss, no duplicate, no reordering after a kill of the engine, Redis or Postgres.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posduif::accounts::users::UserType;
use posduif::config::Secret;
use posduif::core::position::StreamId;
use posduif::engine::Role;
use posduif::replication::slot;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::oracle::outline;
use crate::support::proxy::Proxy;
use crate::support::stage::Stage;
use crate::support::{Entry, World, eventually, eventually_within, servers};

const INSERT: &str = "INSERT INTO tenant_acme.messages (id, sender_id, recipient_id, content) VALUES ($1, $2, $3, 'x') ON CONFLICT DO NOTHING";

/// Writers that commit single rows, each by itself, until they have written so many.
struct Writers {
    tasks: JoinSet<()>,
    committed: Arc<AtomicUsize>,
}

impl Writers {
    /// Four writers of messages from Bob to Joe. A writer that loses its connection makes another and repeats the row.
    async fn start(stage: &Stage, rows: usize) -> Self {
        let committed = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (bob, joe) = (stage.bob, stage.joe);
            let committed = committed.clone();
            let url = stage.world.config.postgres.url.expose().to_owned();
            tasks.spawn(async move {
                let mut session = None;
                for _ in 0..rows / 4 {
                    let id = Uuid::new_v4();
                    loop {
                        let (client, insert) = match session.take() {
                            Some(session) => session,
                            None => match prepare(&url).await {
                                Some(session) => session,
                                None => {
                                    tokio::time::sleep(Duration::from_millis(20)).await;
                                    continue;
                                }
                            },
                        };
                        if client.execute(&insert, &[&id, &bob, &joe]).await.is_ok() {
                            session = Some((client, insert));
                            committed.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                    }
                }
            });
        }
        Self { tasks, committed }
    }

    /// Waits until this many rows are committed.
    async fn reach(&self, rows: usize) {
        eventually("the writers have written", || async {
            (self.committed.load(Ordering::Relaxed) >= rows).then_some(())
        })
        .await;
    }

    /// Waits until all is written.
    async fn finish(self) {
        self.tasks.join_all().await;
    }
}

async fn prepare(url: &str) -> Option<(tokio_postgres::Client, tokio_postgres::Statement)> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    let insert = client.prepare(INSERT).await.ok()?;
    Some((client, insert))
}

/// Compares both streams with what Postgres tells, and gives the number of messages in them.
async fn check_all_there_once_in_order(stage: &Stage) -> usize {
    let base = stage.world.checkpoint().await["base"].parse().unwrap();
    let changes = outline(&stage.changes().await);
    let mut inbox = outline(&stage.inbox(stage.joe).await);
    // The phone itself was added before.
    inbox.retain(|(_, _, table, _)| table == "messages");
    let expected = stage.oracle.changes("acme", base).await;
    assert_same(&changes, &expected);
    let joe = stage.joe.to_string();
    let to_joe = stage
        .oracle
        .matching(base, |change| change.column("recipient_id") == joe)
        .await;
    assert_same(&inbox, &to_joe);
    let rows: i64 = stage
        .world
        .psql()
        .await
        .query_one("SELECT count(*) FROM tenant_acme.messages", &[])
        .await
        .unwrap()
        .get(0);
    let inserted: HashSet<&String> = to_joe
        .iter()
        .filter(|change| change.1 == "insert")
        .map(|change| &change.3)
        .collect();
    assert_eq!(usize::try_from(rows).unwrap(), inserted.len());
    inserted.len()
}

/// Like `assert_eq`, but shows the first difference only.
#[track_caller]
fn assert_same<T: PartialEq + std::fmt::Debug>(found: &[T], expected: &[T]) {
    let at = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected);
    let at = at.unwrap_or(found.len().min(expected.len()));
    assert!(
        found == expected,
        "{} found, {} expected; at {at}: found {:?}, expected {:?}",
        found.len(),
        expected.len(),
        found.get(at),
        expected.get(at)
    );
}

fn resets(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| entry.field("op") == "reset").count()
}

/// The current epoch's id; an engine that has just started may still have to begin its first.
async fn epoch(world: &World) -> String {
    eventually("there is an epoch", || async {
        world.checkpoint().await.remove("epoch")
    })
    .await
}

/// Lets users without a device count as readers, whose inboxes a new epoch resets.
const SEEN: &str = "UPDATE tenant_acme.users SET last_seen = now()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_kills_cause_no_loss_duplicate_or_reordering() {
    let (stage, mut engine) = Stage::with_process(World::new().await, "all").await;
    let bob = engine.api().log_in("acme", "bob").await;
    let (phone, enrolled) = bob.enroll("phone", Some(&stage.joe.to_string())).await;
    let (_, cursor) = phone.sync(None).await;
    let first = epoch(&stage.world).await;
    let writers = Writers::start(&stage, 10_000).await;
    for rows in [1500, 4000, 6500, 9000] {
        writers.reach(rows).await;
        engine.kill().await;
        engine = stage.world.process("all").await;
    }
    writers.finish().await;
    assert_eq!(check_all_there_once_in_order(&stage).await, 10_000);
    assert_eq!(epoch(&stage.world).await, first);

    // The phone, which knows nothing of all this, goes on where it was.
    let token = format!("Bearer {}", enrolled["device_token"].as_str().unwrap());
    let phone = engine.api().with("x-device-id", "phone").with("authorization", &token);
    let (pages, _) = phone.sync(Some(&cursor)).await;
    let messages = pages.iter().flat_map(|page| page["messages"].as_array().unwrap());
    let received: Vec<String> = messages
        .map(|message| message["id"].as_str().unwrap().to_owned())
        .collect();
    let inbox = outline(&stage.inbox(stage.joe).await);
    let inserted: Vec<String> = inbox
        .into_iter()
        .filter(|change| change.1 == "insert" && change.2 == "messages")
        .map(|change| change.3)
        .collect();
    assert_same(&received, &inserted);
    assert!(pages.iter().all(|page| page["reset"] != true));
    assert_eq!(engine.terminate().await, Some(0));
}

#[tokio::test]
async fn clean_restart_publishes_nothing_twice() {
    let (stage, mut engine) = Stage::with_process(World::new().await, "replicator").await;
    for round in 1..=3 {
        let writers = Writers::start(&stage, 200).await;
        writers.reach(100).await;
        assert_eq!(engine.terminate().await, Some(0));
        writers.finish().await;
        engine = stage.world.process("replicator").await;
        assert_eq!(check_all_there_once_in_order(&stage).await, 200 * round);
    }
    assert_eq!(resets(&stage.changes().await), 1);
    assert_eq!(engine.terminate().await, Some(0));
}

#[tokio::test]
async fn second_engine_waits_for_the_slot_and_takes_over_after_a_kill() {
    let (stage, first) = Stage::with_process(World::new().await, "replicator").await;
    stage.message(stage.bob, stage.joe, "by the first").await;
    stage.world.published().await;
    let writer = stage.world.checkpoint().await["writer"].clone();
    let second = stage.world.process("replicator").await;
    // Its heartbeats begin before it asks for the slot.
    eventually("the second engine runs", || async {
        let beating = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()
                         AND query LIKE '%pg_current_snapshot()%pg_logical_emit_message(%'";
        (stage.psql.query_one(beating, &[]).await.unwrap().get::<_, i64>(0) >= 2).then_some(())
    })
    .await;
    stage.message(stage.bob, stage.joe, "while the second waits").await;
    check_all_there_once_in_order(&stage).await;
    assert_eq!(stage.world.checkpoint().await["writer"], writer);

    first.kill().await;
    stage.message(stage.bob, stage.joe, "by the second").await;
    assert_eq!(check_all_there_once_in_order(&stage).await, 3);
    assert_ne!(stage.world.checkpoint().await["writer"], writer);
    assert_eq!(second.terminate().await, Some(0));
}

#[tokio::test]
async fn flushed_redis_under_running_engine_resets_every_reader() {
    let stage = Stage::on_with(World::new().await, Role::All).await;
    let bob = stage.engine.as_ref().unwrap().api().log_in("acme", "bob").await;
    let (phone, _) = bob.enroll("phone", Some(&stage.joe.to_string())).await;
    let lost = stage.message(stage.bob, stage.joe, "lost to the streams").await;
    stage.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let before = stage.world.checkpoint().await;
    let mut redis = stage.world.redis().await;
    let pattern = format!("{}:*", stage.world.config.redis.prefix);
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("DEL").arg(keys).query_async(&mut redis).await.unwrap();

    let after = eventually("a new epoch", || async {
        let checkpoint = stage.world.checkpoint().await;
        checkpoint
            .get("epoch")
            .is_some_and(|epoch| *epoch != before["epoch"])
            .then_some(checkpoint)
    })
    .await;
    let number = |checkpoint: &std::collections::HashMap<String, String>| checkpoint["number"].parse::<i64>().unwrap();
    assert_eq!(number(&after), number(&before) + 1);
    let id = stage.message(stage.bob, stage.joe, "after").await;
    let streams = [
        stage.changes().await,
        stage.shared().await,
        stage.inbox(stage.joe).await,
        stage.inbox(stage.bob).await,
    ];
    for stream in &streams {
        assert_eq!(stream[0].field("op"), "reset");
    }
    for stream in [&streams[0], &streams[2], &streams[3]] {
        assert_eq!(stream.last().unwrap().json("row")["id"], id.to_string());
    }
    // Postgres still has what the streams lost.
    let (pages, _) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["reset"], true);
    let messages = pages[0]["messages"].as_array().unwrap();
    let received: HashSet<&str> = messages.iter().map(|message| message["id"].as_str().unwrap()).collect();
    assert_eq!(received, HashSet::from([&*lost.to_string(), &*id.to_string()]));
    stage.stop().await;
}

#[tokio::test]
async fn dropped_slot_causes_reset_and_ids_keep_growing() {
    let mut stage = Stage::new().await;
    let world = &stage.world;
    stage.sql(SEEN).await;
    stage.message(stage.bob, stage.joe, "before").await;
    let before = [
        stage.changes().await,
        stage.shared().await,
        stage.inbox(stage.joe).await,
    ];
    let first = epoch(world).await;
    stage.engine.take().unwrap().stop().await;
    let unseen = stage.message(stage.bob, stage.joe, "while nobody looks").await;
    slot::drop(&world.database().await, &world.config.replication.slot)
        .await
        .unwrap();

    stage.engine = Some(world.engine(Role::Replicator).await);
    eventually("a new epoch", || async { (epoch(world).await != first).then_some(()) }).await;
    let id = stage.message(stage.bob, stage.joe, "after").await;
    let after = [
        stage.changes().await,
        stage.shared().await,
        stage.inbox(stage.joe).await,
    ];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after[..before.len()], before[..], "what was there stays");
        let reset = &after[before.len()];
        assert_eq!(reset.field("op"), "reset");
        assert!(reset.id > before.last().unwrap().id);
    }
    assert_eq!(after[2].last().unwrap().json("row")["id"], id.to_string());
    // What nobody saw comes with the snapshot that the reset asks for.
    assert!(
        !after[2]
            .iter()
            .any(|entry| entry.json("row")["id"] == unseen.to_string())
    );
    stage.stop().await;
}

#[tokio::test]
async fn lost_checkpoint_causes_reset_after_existing_entries() {
    let stage = Stage::new().await;
    stage.sql(SEEN).await;
    let first = epoch(&stage.world).await;
    for _ in 0..20 {
        stage.message(stage.bob, stage.joe, "x").await;
    }
    let before = stage.inbox(stage.joe).await;
    let key = stage.world.keys().checkpoint();
    let _: i64 = redis::cmd("DEL")
        .arg(key)
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    eventually("a new epoch", || async {
        let checkpoint = stage.world.checkpoint().await;
        checkpoint
            .get("epoch")
            .is_some_and(|epoch| *epoch != first)
            .then_some(())
    })
    .await;
    let id = stage.message(stage.bob, stage.joe, "after").await;
    let after = stage.inbox(stage.joe).await;
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after[before.len()].field("op"), "reset");
    assert_eq!(after.last().unwrap().json("row")["id"], id.to_string());
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoint_writer_fences_the_engine_which_restarts_without_loss() {
    let stage = Stage::new().await;
    let first = epoch(&stage.world).await;
    let writers = Writers::start(&stage, 1000).await;
    let key = stage.world.keys().checkpoint();
    let mut redis = stage.world.redis().await;
    for rows in [100, 300, 500] {
        writers.reach(rows).await;
        let _: i64 = redis::cmd("HSET")
            .arg(&key)
            .arg("writer")
            .arg("a zombie")
            .query_async(&mut redis)
            .await
            .unwrap();
        eventually("the engine has claimed the checkpoint again", || async {
            (stage.world.checkpoint().await["writer"] != "a zombie").then_some(())
        })
        .await;
    }
    writers.finish().await;
    assert_eq!(check_all_there_once_in_order(&stage).await, 1000);
    assert_eq!(epoch(&stage.world).await, first);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_redis_matches_postgres() {
    let mut redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on(world).await;
    let first = epoch(&stage.world).await;
    let writers = Writers::start(&stage, 2000).await;
    for rows in [500, 1200] {
        writers.reach(rows).await;
        redis.server.kill().await.unwrap();
        redis.server.restart().await.unwrap();
    }
    writers.finish().await;
    assert_eq!(check_all_there_once_in_order(&stage).await, 2000);
    assert_eq!(epoch(&stage.world).await, first);
    stage.stop().await;
}

#[tokio::test]
async fn entries_not_on_disk_at_redis_power_loss_are_republished() {
    let mut redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on(world).await;
    stage.message(stage.bob, stage.joe, "on disk").await;
    stage.world.published().await;
    let first = epoch(&stage.world).await;
    let log = append_only_file(redis.folder());
    let on_disk = std::fs::metadata(&log).unwrap().len();
    // Positions become durable seconds after they were published, so none of these is yet.
    for _ in 0..100 {
        stage.message(stage.bob, stage.joe, "in memory only").await;
    }
    stage.world.published().await;
    redis.server.kill().await.unwrap();
    assert!(std::fs::metadata(&log).unwrap().len() > on_disk);
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(on_disk).unwrap();
    redis.server.restart().await.unwrap();

    assert_eq!(check_all_there_once_in_order(&stage).await, 101);
    assert_eq!(
        epoch(&stage.world).await,
        first,
        "nothing that was acknowledged is lost, so no epoch begins"
    );
    stage.stop().await;
}

/// The part of the append-only file that Redis writes to.
fn append_only_file(folder: &std::path::Path) -> PathBuf {
    let folder = folder.join("redis/appendonlydir");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_written = |path: &PathBuf| path.to_str().unwrap().ends_with(".incr.aof");
    files.filter(is_written).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_postgres_causes_no_reset() {
    let mut postgres = servers::postgres().await;
    let world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    let stage = Stage::on(world).await;
    let first = epoch(&stage.world).await;
    let writers = Writers::start(&stage, 2000).await;
    writers.reach(700).await;
    postgres.server.kill().await.unwrap();
    postgres.server.restart().await.unwrap();
    writers.finish().await;
    assert_eq!(check_all_there_once_in_order(&stage).await, 2000);
    assert_eq!(epoch(&stage.world).await, first);
    assert_eq!(resets(&stage.changes().await), 1);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporarily_full_redis_loses_nothing() {
    let redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on(world).await;
    let mut connection = stage.world.redis().await;
    let first = epoch(&stage.world).await;
    let writers = Writers::start(&stage, 1000).await;
    writers.reach(300).await;
    let limit = async |bytes: &str, redis: &mut redis::aio::MultiplexedConnection| {
        let _: () = redis::cmd("CONFIG")
            .arg("SET")
            .arg("maxmemory")
            .arg(bytes)
            .query_async(redis)
            .await
            .unwrap();
    };
    limit("1", &mut connection).await;
    let refusals = async || -> u64 {
        let info: String = redis::cmd("INFO")
            .arg("errorstats")
            .query_async(&mut connection.clone())
            .await
            .unwrap();
        let count = info.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
        count.map_or(0, |count| count.trim().parse().unwrap())
    };
    eventually("Redis has refused a batch", || async {
        (refusals().await > 0).then_some(())
    })
    .await;
    let stuck = stage.world.checkpoint().await["position"].clone();
    // Rows go on being committed meanwhile.
    writers.finish().await;
    stage.message(stage.bob, stage.joe, "the last").await;
    assert_eq!(stage.world.checkpoint().await["position"], stuck);
    limit("0", &mut connection).await;

    assert_eq!(check_all_there_once_in_order(&stage).await, 1001);
    assert_eq!(epoch(&stage.world).await, first);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_redis_is_freed_by_cutting_the_heaviest_changes() {
    let redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on(world).await;
    stage.world.tenant("other").await;
    let ann = stage.world.user("other", "ann", UserType::Web).await;
    let ben = stage.world.user("other", "ben", UserType::Mobile).await;
    let fill = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $1, repeat(md5(n::text), 100) FROM generate_series(1, $2::bigint) n";
    stage.psql.execute(fill, &[&stage.joe, &2000_i64]).await.unwrap();
    stage.world.published().await;
    let first = epoch(&stage.world).await;

    // WHEN Redis has room for next to nothing, and one tenant goes on writing
    let info: String = stage.world.ask_redis(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    let limit = used.unwrap().trim().parse::<u64>().unwrap() + 100_000;
    let () = stage
        .world
        .ask_redis(&["CONFIG", "SET", "maxmemory", &limit.to_string()])
        .await;
    stage.psql.execute(fill, &[&stage.joe, &600_i64]).await.unwrap();
    let insert = format!(
        "INSERT INTO tenant_other.messages (sender_id, recipient_id, content) VALUES ('{ann}', '{ben}', 'small')"
    );
    stage.sql(&insert).await;

    // THEN the rows of both arrive, and no client has raised the limit
    stage.world.published().await;
    let keys = stage.world.keys();
    let inbox = stage.world.stream(&keys.inbox("other", &ben.to_string())).await;
    assert_eq!(inbox.last().unwrap().json("row")["content"], "small");
    let joes = stage.inbox(stage.joe).await;
    assert_eq!(joes.iter().filter(|entry| entry.field("op") == "insert").count(), 2600);
    // AND the heaviest tenant's `changes` are cut, which its trim point says
    let changes = stage.changes().await;
    assert!(changes.len() < 2600, "{} entries", changes.len());
    let trim_point: String = stage
        .world
        .ask_redis(&["HGET", &keys.meta("acme"), "trim:changes"])
        .await;
    assert_eq!(trim_point, changes[0].id.to_string());
    let others = stage.world.stream(&keys.changes("other")).await;
    assert_eq!(others[0].field("op"), "reset", "the other tenant keeps all it has");
    assert_eq!(epoch(&stage.world).await, first);

    // AND an engine that starts on a full Redis becomes the writer
    let () = stage.world.ask_redis(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let mut stage = stage;
    stage.engine.take().unwrap().stop().await;
    let writer = stage.world.checkpoint().await["writer"].clone();
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    eventually("the new engine is the writer", || async {
        (stage.world.checkpoint().await["writer"] != writer).then_some(())
    })
    .await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entry_failed_in_an_unread_exec_reaches_the_inbox() {
    let world = World::new().await;
    let proxy = Proxy::before(world.config.redis.url.expose()).await;
    let mut config = world.config.clone();
    config.redis.url = Secret::new(proxy.url(config.redis.url.expose()));
    let engine = world.process_with("replicator", &config, None).await;
    world.published().await;
    let mut stage = Stage::without_engine(world).await;
    stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;

    // GIVEN an inbox that takes no entry while one is published, and an engine that dies before it reads the reply
    let inbox = stage.world.keys().inbox("acme", &stage.joe.to_string());
    let aside = format!("{inbox}:aside");
    let () = stage.world.ask_redis(&["RENAME", &inbox, &aside]).await;
    let () = stage.world.ask_redis(&["SET", &inbox, "x"]).await;
    proxy.mute_at("the one that failed");
    stage.message(stage.bob, stage.joe, "the one that failed").await;
    let changes = stage.world.keys().changes("acme");
    eventually("the change is published", || async {
        let entries = stage.world.stream(&changes).await;
        (entries.last()?.json("row")["content"] == "the one that failed").then_some(())
    })
    .await;
    engine.kill().await;

    // WHEN the inbox is as it was, and the next engine goes on
    let () = stage.world.ask_redis(&["DEL", &inbox]).await;
    let () = stage.world.ask_redis(&["RENAME", &aside, &inbox]).await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    stage.message(stage.bob, stage.joe, "after").await;

    // THEN nothing is missing, nothing is doubled
    assert_eq!(check_all_there_once_in_order(&stage).await, 3);
    assert_eq!(resets(&stage.changes().await), 1);
    assert!(stage.world.stopped_streams().await.is_empty());
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_loses_its_append_only_file_is_still_acknowledged() {
    let redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on(world).await;
    let () = stage.world.ask_redis(&["CONFIG", "SET", "appendonly", "no"]).await;
    for wanted in ["no", "yes"] {
        let () = stage.world.ask_redis(&["CONFIG", "SET", "appendonly", wanted]).await;
        stage.message(stage.bob, stage.joe, "a row").await;
        let end: postgres_types::PgLsn = stage
            .psql
            .query_one("SELECT pg_current_wal_lsn()", &[])
            .await
            .unwrap()
            .get(0);
        let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
        eventually("the slot is confirmed behind the row", || async {
            let row = stage
                .psql
                .query_one(confirmed, &[&stage.world.config.replication.slot])
                .await;
            let at: postgres_types::PgLsn = row.unwrap().get(0);
            (at >= end).then_some(())
        })
        .await;
    }
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_unrouted_transaction_is_skipped_while_postgres_is_silent() {
    let postgres = servers::postgres().await;
    let mut world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    // Much less than Postgres needs for it.
    world.config.replication.idle_timeout_seconds = 4;
    world.config.replication.wal_sender_timeout_seconds = 4;
    let stage = Stage::on_with(world, Role::All).await;
    let api = stage.engine.as_ref().unwrap().api();
    stage
        .sql("CREATE TABLE public.big AS SELECT n FROM generate_series(1, 3000000) n")
        .await;
    stage.message(stage.bob, stage.joe, "behind it").await;
    let inbox = stage.world.keys().inbox("acme", &stage.joe.to_string());
    eventually_within(Duration::from_secs(90), "the message behind it arrives", || async {
        let entries = stage.world.stream(&inbox).await;
        entries.iter().any(|entry| entry.field("op") == "insert").then_some(())
    })
    .await;
    stage.world.published().await;
    stage.world.published().await;
    check_all_there_once_in_order(&stage).await;
    let metrics = String::from_utf8(api.admin().get("/metrics").await.body.to_vec()).unwrap();
    let interrupted = "posduif_session_restarts_total{cause=\"postgres\"} 0";
    assert!(metrics.contains(interrupted), "{metrics}");
    stage.stop().await;
}

#[tokio::test]
async fn large_transaction_keeps_memory_flat() {
    const ROWS: i64 = 200_000;
    let (stage, engine) = Stage::with_process(World::new().await, "replicator").await;
    let insert = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                  SELECT $1, $1, 'message ' || n FROM generate_series(1, $2::bigint) n";
    let key = stage.world.keys().changes("acme");
    stage.world.published().await;
    let redis = stage.world.redis().await;
    let before: i64 = redis::cmd("XLEN")
        .arg(&key)
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    // WrongType keys are not what this is about.
    stage.sql("SET session_replication_role = replica").await;
    stage.psql.execute(insert, &[&stage.joe, &ROWS]).await.unwrap();
    let length = async || -> i64 {
        redis::cmd("XLEN")
            .arg(&key)
            .query_async(&mut redis.clone())
            .await
            .unwrap()
    };
    for part in 1..=10 {
        let wanted = before + ROWS * part / 10;
        eventually("the next part is in the stream", || async {
            (length().await >= wanted).then_some(())
        })
        .await;
    }
    stage.world.published().await;
    let after = length().await;
    assert_eq!(after - before, ROWS);
    let last: redis::streams::StreamRangeReply = redis::cmd("XREVRANGE")
        .arg(&key)
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1)
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    let last: StreamId = last.ids[0].id.parse().unwrap();
    assert_eq!(i64::try_from(last.seq), Ok(ROWS));
    let peak = engine.peak_memory_kib();
    assert!(peak < 64 * 1024, "{peak} KiB");
    assert_eq!(engine.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_killed_inside_large_transactions_resumes_in_place() {
    let mut world = World::new().await;
    // Some hundred batches a transaction.
    world.config.replication.batch_changes_max = 50;
    let (stage, mut engine) = Stage::with_process(world, "replicator").await;
    let first = epoch(&stage.world).await;
    let many = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
                SELECT $1, $2, 'message ' || n FROM generate_series(1, 10000) n";
    for _ in 0..3 {
        stage.psql.execute(many, &[&stage.bob, &stage.joe]).await.unwrap();
        eventually("a part of it is published", || async {
            let open = stage.world.checkpoint().await.remove("open");
            open.filter(|open| !open.is_empty())
        })
        .await;
        engine.kill().await;
        engine = stage.world.process("replicator").await;
    }
    stage.world.published().await;
    let changes = outline(&stage.changes().await);
    assert_eq!(changes, stage.oracle.changes("acme", 0).await);
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(
        inbox.iter().filter(|entry| entry.field("op") == "insert").count(),
        30_000
    );
    assert_eq!(epoch(&stage.world).await, first);
    assert_eq!(engine.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transaction_is_positioned_at_its_commit() {
    let postgres = servers::postgres_with(|_, options| options.setting("max_prepared_transactions", "4")).await;
    let world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    let mut stage = Stage::on(world).await;
    let (bob, joe) = (stage.bob, stage.joe);
    let insert = |content: &str| {
        format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ('{bob}', '{joe}', '{content}')"
        )
    };
    for (name, content) in [
        ("one", "prepared"),
        ("two", "rolled back"),
        ("three", "prepared before a restart"),
    ] {
        let script = format!("BEGIN; {}; PREPARE TRANSACTION '{name}'", insert(content));
        stage.sql(&script).await;
    }
    stage.message(bob, joe, "first").await;
    stage.world.published().await;
    stage.sql("COMMIT PREPARED 'one'; ").await;
    stage.sql("ROLLBACK PREPARED 'two'").await;
    stage.message(bob, joe, "third").await;
    stage.world.published().await;
    stage.engine.take().unwrap().stop().await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    stage.message(bob, joe, "fourth").await;
    stage.sql("COMMIT PREPARED 'three'").await;
    let changes = stage.changes().await;
    let messages = changes.iter().filter(|entry| entry.field("table") == "messages");
    let contents: Vec<String> = messages
        .map(|entry| entry.json("row")["content"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        contents,
        ["first", "prepared", "third", "fourth", "prepared before a restart"]
    );
    assert_eq!(outline(&changes), stage.oracle.changes("acme", 0).await);
    stage.stop().await;
}
