//! From a commit to the streams: positions, audiences, creation of streams, the checkpoint.

use futures_util::SinkExt;
use posduif::accounts::users::UserType;
use posduif::core::position::StreamId;
use posduif::core::snapshot::Snapshot;
use posduif::engine::Role;
use postgres_types::PgLsn;
use serde_json::Value;
use uuid::Uuid;

use crate::support::oracle::outline;
use crate::support::stage::Stage;
use crate::support::{Entry, World, eventually, servers};

#[tokio::test]
async fn committed_row_is_in_tenant_log_and_recipient_inbox() {
    let world = World::new().await;
    let engine = world.engine(Role::Replicator).await;
    // What is committed before the slot is there is in no stream.
    world.published().await;
    world.tenant("acme").await;
    let bob = world.user("acme", "bob", UserType::Web).await;
    let joe = world.user("acme", "joe", UserType::Mobile).await;

    let psql = world.psql().await;
    let insert =
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'hi') RETURNING id";
    let id: uuid::Uuid = psql.query_one(insert, &[&bob, &joe]).await.unwrap().get(0);
    world.published().await;

    let inbox = world.stream(&world.keys().inbox("acme", &joe.to_string())).await;
    let entry = inbox.last().unwrap();
    assert_eq!((entry.field("op"), entry.field("event")), ("insert", "new_message"));
    assert_eq!(entry.json("row")["id"], id.to_string());
    let changes = world.stream(&world.keys().changes("acme")).await;
    assert!(
        changes
            .iter()
            .any(|change| change.id == entry.id && change.field("event").is_empty())
    );
    engine.stop().await;
}

#[tokio::test]
async fn stream_id_is_commit_lsn_and_ordinal_of_postgres() {
    let stage = Stage::new().await;
    let (bob, joe) = (stage.bob, stage.joe);
    let publication = &stage.world.config.replication.publication;
    stage
        .sql(&format!(
            "CREATE TABLE tenant_acme.notes (id text PRIMARY KEY);
             CREATE TABLE tenant_acme.drafts (id text PRIMARY KEY);
             CREATE TABLE public.elsewhere (id text PRIMARY KEY);
             ALTER PUBLICATION {publication} ADD TABLE public.elsewhere"
        ))
        .await;
    let message = |id: u8| {
        format!(
            "INSERT INTO tenant_acme.messages (id, sender_id, recipient_id, content)
             VALUES ('00000000-0000-0000-0000-0000000000{id:02x}', '{bob}', '{joe}', 'n');"
        )
    };

    // GIVEN a transaction in which a routed row, an unrouted one, another schema's, messages of both kinds and a
    // savepoint that is rolled back stand side by side
    let mixed = format!(
        "BEGIN;
         INSERT INTO tenant_acme.notes VALUES ('a'), ('b');
         SELECT pg_logical_emit_message(true, 'app', 'counts');
         SELECT pg_logical_emit_message(false, 'app', 'does not count');
         INSERT INTO public.elsewhere VALUES ('counts, but is nobody''s');
         {}
         SAVEPOINT s; {} INSERT INTO tenant_acme.notes VALUES ('undone'); ROLLBACK TO s;
         UPDATE tenant_acme.notes SET id = 'c' WHERE id = 'b';
         DELETE FROM tenant_acme.notes WHERE id = 'a';
         {}
         COMMIT",
        message(1),
        message(2),
        message(3)
    );
    stage.sql(&mixed).await;
    // AND two whose changes alternate in the log, the later one committing first
    let other = stage.world.psql().await;
    stage.sql("BEGIN; INSERT INTO tenant_acme.notes VALUES ('d')").await;
    let first = format!("BEGIN; INSERT INTO tenant_acme.notes VALUES ('e'); {}", message(4));
    other.batch_execute(&first).await.unwrap();
    stage.sql(&message(5)).await;
    let last = "INSERT INTO tenant_acme.notes VALUES ('f'); COMMIT";
    other.batch_execute(last).await.unwrap();
    stage.sql("INSERT INTO tenant_acme.notes VALUES ('g'); COMMIT").await;
    // AND one that empties two tables and goes on
    let emptied =
        "BEGIN; TRUNCATE tenant_acme.notes, tenant_acme.drafts; INSERT INTO tenant_acme.drafts VALUES ('h'); COMMIT";
    stage.sql(emptied).await;

    // THEN the streams hold what a second slot tells, at the places that it tells
    let changes = outline(&stage.changes().await);
    assert_eq!(changes, stage.oracle.changes("acme", 0).await);
    let place = |id: &str| changes.iter().find(|change| change.3 == id).unwrap().0;
    let first = place("a");
    assert_eq!(first.seq, 1);
    let with_ordinal = |seq| StreamId { ms: first.ms, seq };
    assert_eq!(place("b"), with_ordinal(2));
    assert_eq!(place("00000000-0000-0000-0000-000000000001"), with_ordinal(5));
    assert_eq!(place("c"), with_ordinal(6));
    assert_eq!(place("00000000-0000-0000-0000-000000000003"), with_ordinal(8));
    assert!(place("f") < place("d"), "commit order, not order of writing");
    assert_eq!((place("d").seq, place("g").seq), (1, 3));
    let truncated: Vec<_> = changes.iter().filter(|change| change.1 == "truncate").collect();
    assert_eq!(truncated.len(), 2);
    assert_eq!((truncated[0].0.seq, truncated[1].0.seq, place("h").seq), (1, 2, 3));

    // AND an inbox holds its part of them at the same places
    let messages = stage.oracle.matching(0, |change| change.table == "messages").await;
    assert_eq!(messages.len(), 4);
    assert_eq!(outline(&stage.inbox(joe).await), messages);
    stage.stop().await;
}

/// The changes of a message in a stream: operation and event.
fn changes_of(entries: &[Entry], message: Uuid) -> Vec<(String, String)> {
    let is_of = |entry: &&Entry| {
        [entry.json("row"), entry.json("old")]
            .iter()
            .any(|row| row["id"] == message.to_string())
    };
    let pair = |entry: &Entry| (entry.field("op").to_owned(), entry.field("event").to_owned());
    entries.iter().filter(is_of).map(pair).collect()
}

/// Checks the number of changes of a message that each user received, and the last one.
async fn check(stage: &Stage, message: Uuid, expected: &[(Uuid, usize, &str, &str)]) {
    for (user, count, op, event) in expected {
        let changes = changes_of(&stage.inbox(*user).await, message);
        assert_eq!(changes.len(), *count, "{changes:?}");
        if let Some(last) = changes.last() {
            assert_eq!((last.0.as_str(), last.1.as_str()), (*op, *event), "{changes:?}");
        }
    }
}

#[tokio::test]
async fn message_change_reaches_exactly_its_viewers() {
    let stage = Stage::new().await;
    let (bob, joe, ann) = (stage.bob, stage.joe, stage.user("ann").await);
    let id = stage.message(bob, joe, "hi").await;
    let change = async |set: &str| {
        let update = format!("UPDATE tenant_acme.messages SET {set} WHERE id = '{id}'");
        stage.sql(&update).await;
    };
    let sent = [
        (bob, 1, "insert", "message_updated"),
        (joe, 1, "insert", "new_message"),
        (ann, 0, "", ""),
    ];
    check(&stage, id, &sent).await;

    // The server's own notes go to the sender only.
    change("status = 'synced', synced_at = now()").await;
    check(
        &stage,
        id,
        &[
            (bob, 2, "update", "message_synced"),
            (joe, 1, "insert", "new_message"),
            (ann, 0, "", ""),
        ],
    )
    .await;

    change("content = 'hello'").await;
    check(
        &stage,
        id,
        &[
            (bob, 3, "update", "message_updated"),
            (joe, 2, "update", "message_updated"),
            (ann, 0, "", ""),
        ],
    )
    .await;

    change("status = 'read', read_at = now()").await;
    check(
        &stage,
        id,
        &[
            (bob, 4, "update", "message_read"),
            (joe, 3, "update", "message_read"),
            (ann, 0, "", ""),
        ],
    )
    .await;

    // A user who loses a message receives a delete; a user who gets it, an insert.
    change(&format!("recipient_id = '{ann}'")).await;
    check(
        &stage,
        id,
        &[
            (bob, 5, "update", "message_updated"),
            (joe, 4, "delete", "message_deleted"),
            (ann, 1, "insert", "new_message"),
        ],
    )
    .await;

    // An update that changes nothing tells nobody anything.
    change("content = content").await;
    check(
        &stage,
        id,
        &[(bob, 5, "update", "message_updated"), (ann, 1, "insert", "new_message")],
    )
    .await;

    change("deleted_at = now()").await;
    check(
        &stage,
        id,
        &[
            (bob, 6, "delete", "message_deleted"),
            (joe, 4, "delete", "message_deleted"),
            (ann, 2, "delete", "message_deleted"),
        ],
    )
    .await;

    // What nobody sees any more can change without anybody's notice, and vanish too, or come back.
    change("content = 'unseen'").await;
    check(
        &stage,
        id,
        &[
            (bob, 6, "delete", "message_deleted"),
            (ann, 2, "delete", "message_deleted"),
        ],
    )
    .await;
    change("deleted_at = NULL").await;
    check(
        &stage,
        id,
        &[(bob, 7, "insert", "message_updated"), (ann, 3, "insert", "new_message")],
    )
    .await;

    stage
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{id}'"))
        .await;
    check(
        &stage,
        id,
        &[
            (bob, 8, "delete", "message_deleted"),
            (joe, 4, "delete", "message_deleted"),
            (ann, 4, "delete", "message_deleted"),
        ],
    )
    .await;
    let changes = stage.changes().await;
    assert_eq!(changes_of(&changes, id).len(), 10, "the tenant's log has every change");
    stage.stop().await;
}

#[tokio::test]
async fn soft_deleted_row_when_deleted_sends_no_second_event() {
    let stage = Stage::new().await;
    let id = stage.message(stage.bob, stage.joe, "hi").await;
    stage
        .sql(&format!(
            "UPDATE tenant_acme.messages SET deleted_at = now() WHERE id = '{id}'"
        ))
        .await;
    let before = changes_of(&stage.inbox(stage.joe).await, id);
    assert_eq!(before.last().unwrap().0, "delete");
    stage
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{id}'"))
        .await;
    assert_eq!(changes_of(&stage.inbox(stage.joe).await, id), before);

    // Nor is one that comes deleted already, as a restored table may bring it.
    let insert = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content, deleted_at)
                  VALUES ($1, $2, 'gone', now()) RETURNING id";
    let gone: Uuid = stage
        .psql
        .query_one(insert, &[&stage.bob, &stage.joe])
        .await
        .unwrap()
        .get(0);
    for user in [stage.bob, stage.joe] {
        assert!(changes_of(&stage.inbox(user).await, gone).is_empty());
    }
    stage.stop().await;
}

#[tokio::test]
async fn reply_reaches_web_user_and_phones_of_sender() {
    let stage = Stage::new().await;
    let asked = stage.message(stage.bob, stage.joe, "where are you?").await;
    let answer = stage.message(stage.joe, stage.bob, "here").await;
    let own = stage.message(stage.joe, stage.joe, "to myself").await;
    check(&stage, asked, &[(stage.joe, 1, "insert", "new_message")]).await;
    let expected = [
        (stage.bob, 1, "insert", "new_message"),
        (stage.joe, 1, "insert", "message_updated"),
    ];
    check(&stage, answer, &expected).await;
    check(
        &stage,
        own,
        &[(stage.joe, 1, "insert", "new_message"), (stage.bob, 0, "", "")],
    )
    .await;
    stage.stop().await;
}

#[tokio::test]
async fn new_user_is_announced_to_all() {
    let stage = Stage::new().await;
    let ann = stage.user("ann").await;
    let heard = |shared: &[Entry]| -> Vec<(StreamId, String, String)> {
        let of_ann = shared.iter().filter(|entry| {
            [entry.json("row"), entry.json("old")]
                .iter()
                .any(|row| row["id"] == ann.to_string())
        });
        of_ann
            .map(|entry| (entry.id, entry.field("op").to_owned(), entry.field("event").to_owned()))
            .collect()
    };
    let shared = stage.shared().await;
    let [(_, op, event)] = &heard(&shared)[..] else {
        panic!("{shared:?}");
    };
    assert_eq!((op.as_str(), event.as_str()), ("insert", "change"));

    // What users do not see of each other is no news; what they see is.
    stage
        .sql(&format!(
            "UPDATE tenant_acme.users SET last_seen = now() WHERE id = '{ann}'"
        ))
        .await;
    assert_eq!(stage.shared().await, shared);
    stage
        .sql(&format!(
            "UPDATE tenant_acme.users SET username = 'anna' WHERE id = '{ann}'"
        ))
        .await;
    stage
        .sql(&format!(
            "UPDATE tenant_acme.users SET deleted_at = now() WHERE id = '{ann}'"
        ))
        .await;
    let ops: Vec<String> = heard(&stage.shared().await).into_iter().map(|(_, op, _)| op).collect();
    assert_eq!(ops, ["insert", "update", "delete"]);

    // No secret is in any stream.
    let text = format!("{:?} {:?}", stage.changes().await, stage.shared().await);
    assert!(!text.contains("argon2"), "{text}");
    stage.stop().await;
}

#[tokio::test]
async fn tenant_created_while_running_has_streams_with_its_own_rows_only() {
    let stage = Stage::new().await;
    let world = &stage.world;
    stage.message(stage.bob, stage.joe, "before").await;
    world.tenant("beta").await;
    let eve = world.user("beta", "eve", UserType::Mobile).await;
    let insert = format!(
        "INSERT INTO tenant_beta.messages (sender_id, recipient_id, content) VALUES ('{eve}', '{eve}', 'beta only')"
    );
    stage.sql(&insert).await;
    stage.message(stage.bob, stage.joe, "after").await;

    let acme = outline(&stage.changes().await);
    assert_eq!(acme, stage.oracle.changes("acme", 0).await);
    let beta = world.stream(&world.keys().changes("beta")).await;
    assert_eq!(beta[0].field("op"), "reset");
    assert_eq!(outline(&beta), stage.oracle.changes("beta", 0).await);
    assert_eq!(outline(&beta).iter().filter(|change| change.2 == "messages").count(), 1);
    let inbox = world.stream(&world.keys().inbox("beta", &eve.to_string())).await;
    assert_eq!(outline(&inbox).len(), 1);
    let acme_text = format!("{:?} {:?}", stage.changes().await, stage.inbox(stage.joe).await);
    assert!(!acme_text.contains("beta only"));
    stage.stop().await;
}

#[tokio::test]
async fn column_added_or_dropped_while_streaming_applies_from_the_next_row() {
    let stage = Stage::new().await;
    stage
        .sql("CREATE TABLE tenant_acme.notes (id text PRIMARY KEY, body text); INSERT INTO tenant_acme.notes VALUES ('a', 'x')")
        .await;
    stage
        .sql("ALTER TABLE tenant_acme.notes ADD COLUMN stars int DEFAULT 3; INSERT INTO tenant_acme.notes VALUES ('b', 'y', 5)")
        .await;
    stage
        .sql("ALTER TABLE tenant_acme.notes DROP COLUMN body; UPDATE tenant_acme.notes SET stars = 4 WHERE id = 'a'")
        .await;
    let rows: Vec<Value> = stage
        .changes()
        .await
        .iter()
        .filter(|entry| entry.field("table") == "notes")
        .map(|entry| entry.json("row"))
        .collect();
    assert_eq!(
        rows,
        [
            serde_json::json!({"id": "a", "body": "x"}),
            serde_json::json!({"id": "b", "body": "y", "stars": 5}),
            serde_json::json!({"id": "a", "stars": 4}),
        ]
    );
    stage.stop().await;
}

#[tokio::test]
async fn rows_of_one_copy_have_distinct_positions() {
    let stage = Stage::new().await;
    let copy = "COPY tenant_acme.messages (sender_id, recipient_id, content) FROM STDIN";
    let sink = stage.psql.copy_in(copy).await.unwrap();
    let mut sink = std::pin::pin!(sink);
    let lines: String = (0..500)
        .map(|n| format!("{}\t{}\tcopied {n}\n", stage.bob, stage.joe))
        .collect();
    sink.send(bytes::Bytes::from(lines)).await.unwrap();
    sink.close().await.unwrap();
    let inbox = stage.inbox(stage.joe).await;
    let copied: Vec<&Entry> = inbox
        .iter()
        .filter(|entry| entry.field("table") == "messages")
        .collect();
    assert_eq!(copied.len(), 500);
    for (n, entry) in copied.iter().enumerate() {
        assert_eq!(
            entry.id,
            StreamId {
                ms: copied[0].id.ms,
                seq: n as u64 + 1
            }
        );
        assert_eq!(entry.json("row")["content"], format!("copied {n}"));
    }
    assert_eq!(outline(&stage.changes().await), stage.oracle.changes("acme", 0).await);
    stage.stop().await;
}

#[tokio::test]
async fn small_transaction_follows_a_large_one_without_delay_or_reconnect() {
    let stage = Stage::new().await;
    let redis = stage.world.redis().await;
    let writer = || async {
        let key = stage.world.keys().checkpoint();
        let writer: String = redis::cmd("HGET")
            .arg(&key)
            .arg("writer")
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        writer
    };
    // Each session takes the checkpoint under a name of its own. One that waited for more bytes than come, of Postgres or of
    // Redis, would be given up after some seconds, and another would follow.
    let before = writer().await;
    for rows in [1, 5000, 1, 5000, 1] {
        let insert = format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) \
             SELECT '{}', '{}', 'row ' || n FROM generate_series(1, {rows}) n",
            stage.bob, stage.joe
        );
        stage.sql(&insert).await;
        stage.world.published().await;
    }
    assert_eq!(writer().await, before);
    stage.stop().await;
}

#[tokio::test]
async fn truncated_table_resets_every_user() {
    let stage = Stage::new().await;
    stage.message(stage.bob, stage.joe, "hi").await;
    stage.sql("TRUNCATE tenant_acme.messages").await;
    let last = stage.shared().await.pop().unwrap();
    assert_eq!(
        (last.field("op"), last.field("event"), last.field("table")),
        ("truncate", "reset", "messages")
    );
    assert_eq!(stage.changes().await.pop().unwrap().field("op"), "truncate");
    stage.stop().await;
}

#[tokio::test]
async fn lost_stream_is_recreated_with_reset() {
    let stage = Stage::new().await;
    let keys = stage.world.keys();
    let (changes, shared) = (keys.changes("acme"), keys.shared("acme"));
    stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;
    let mut redis = stage.world.redis().await;
    let _: i64 = redis::cmd("DEL")
        .arg(&[&changes, &shared])
        .query_async(&mut redis)
        .await
        .unwrap();

    let ann = stage.user("ann").await;
    let recreated = eventually("the streams are recreated", || async {
        let (changes, shared) = (stage.world.stream(&changes).await, stage.world.stream(&shared).await);
        Some((changes.first()?.clone(), shared.first()?.clone()))
    })
    .await;
    assert_eq!((recreated.0.field("op"), recreated.1.field("op")), ("reset", "reset"));
    let after = stage.message(ann, stage.joe, "after").await;
    stage
        .sql(&format!(
            "UPDATE tenant_acme.users SET username = 'anna' WHERE id = '{ann}'"
        ))
        .await;
    let (changes, shared) = (stage.changes().await, stage.shared().await);
    assert!(changes.iter().any(|entry| entry.json("row")["id"] == after.to_string()));
    assert_eq!(shared.last().unwrap().json("row")["username"], "anna");
    stage.stop().await;
}

#[tokio::test]
async fn checkpoint_holds_last_published_commit_lsn() {
    let stage = Stage::new().await;
    stage.message(stage.bob, stage.joe, "hi").await;
    stage.world.published().await;
    let checkpoint = stage.world.checkpoint().await;
    let names = [
        "epoch",
        "base",
        "writer",
        "position",
        "published",
        "lsn",
        "end_lsn",
        "xid",
        "commit_ts",
        "acknowledged",
        "run_id",
    ];
    for name in names {
        assert!(!checkpoint[name].is_empty(), "{name}");
    }
    let lsn = |name: &str| checkpoint[name].parse::<PgLsn>().unwrap();
    assert!(lsn("acknowledged") <= lsn("end_lsn"));

    let transactions = stage.oracle.transactions().await;
    let named = |transaction: &&crate::support::oracle::Transaction| transaction.commit.commit_lsn == lsn("lsn");
    let transaction = transactions.iter().find(named).unwrap();
    let published = StreamId {
        ms: lsn("lsn").into(),
        seq: transaction.last_ordinal,
    };
    assert_eq!(checkpoint["published"], published.to_string());
    assert!(checkpoint["position"].parse::<StreamId>().unwrap() >= published);
    assert_eq!(lsn("end_lsn"), transaction.commit.end_lsn);
    assert_eq!(checkpoint["xid"], transaction.begin.xid.to_string());
    assert_eq!(checkpoint["commit_ts"], transaction.begin.commit_ts.to_string());
    let run_id: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    assert!(run_id.contains(&format!("run_id:{}", checkpoint["run_id"])));
    stage.stop().await;
}

#[tokio::test]
async fn heartbeats_advance_the_slot_of_an_idle_database() {
    // A Redis to which nobody else writes, so that the disk is not what this waits for.
    let redis = servers::redis().await;
    let stage = Stage::on(World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await).await;
    let confirmed = async || {
        let confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1::text::name";
        let row = stage
            .psql
            .query_one(confirmed, &[&stage.world.config.replication.slot])
            .await
            .unwrap();
        row.get::<_, String>(0).parse::<PgLsn>().unwrap()
    };
    let row = stage
        .psql
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await
        .unwrap();
    let now: PgLsn = row.get::<_, String>(0).parse().unwrap();
    let reached = eventually("the slot passes what was the end of the log", || async {
        Some(confirmed().await).filter(|confirmed| *confirmed > now)
    })
    .await;
    // Postgres receives only positions that the checkpoint holds already.
    let checkpoint = stage.world.checkpoint().await;
    assert!(reached <= checkpoint["acknowledged"].parse().unwrap());
    assert!(checkpoint["acknowledged"].parse::<PgLsn>().unwrap() <= checkpoint["end_lsn"].parse().unwrap());
    stage.stop().await;
}

#[tokio::test]
async fn window_drops_transaction_once_every_snapshot_sees_it() {
    // Heartbeats bring snapshots; more of them make the test shorter.
    let stage = Stage::with(|config| config.replication.heartbeat_interval_ms = 100).await;
    let window = async || -> Vec<(u32, u32)> {
        let key = stage.world.keys().window();
        let fields: std::collections::HashMap<String, String> = redis::cmd("HGETALL")
            .arg(key)
            .query_async(&mut stage.world.redis().await)
            .await
            .unwrap();
        let range = |text: &String| {
            text.split_once('-')
                .map(|(low, high)| (low.parse().unwrap(), high.parse().unwrap()))
        };
        fields.values().filter_map(range).collect()
    };
    // An older transaction keeps snapshots from seeing that nothing below is under way.
    let other = stage.world.psql().await;
    other.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    stage.message(stage.bob, stage.joe, "hi").await;
    stage.world.published().await;
    eventually("all transactions have left the window", || async {
        window().await.is_empty().then_some(())
    })
    .await;
    let row = stage
        .psql
        .query_one("SELECT pg_current_snapshot()::text", &[])
        .await
        .unwrap();
    let snapshot = Snapshot::parse(row.get(0)).unwrap();
    assert!(
        snapshot.xmin < snapshot.xmax,
        "the older transaction is still under way"
    );
    other.batch_execute("COMMIT").await.unwrap();
    stage.stop().await;
}

#[tokio::test]
async fn idle_engine_updates_freshness_without_writing_rows() {
    let stage = Stage::with(|config| config.replication.heartbeat_interval_ms = 100).await;
    let before = stage.changes().await;
    let live = stage.world.keys().live(0);
    let heartbeats = async || {
        let entries = stage.world.stream(&live).await;
        entries
            .iter()
            .filter(|entry| !entry.field("heartbeat").is_empty())
            .count()
    };
    let seen = heartbeats().await;
    eventually("three more heartbeats have come", || async {
        (heartbeats().await >= seen + 3).then_some(())
    })
    .await;
    assert_eq!(stage.changes().await, before);
    stage.stop().await;
}
