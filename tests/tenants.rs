//! Whole tenants: outbox messages, pause, resync, stopped streams, DDL while streaming.

use std::time::Duration;

use posduif::accounts::users::UserType;
use posduif::admin::published;
use posduif::config::Config;
use posduif::config::lane::LaneName;
use posduif::config::rule::{Rule, When};
use posduif::engine::Role;
use posduif::postgres::audit::Actor;
use posduif::postgres::{migrations, tenants};
use posduif::redis::store::Store;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::office::{Office, ids};
use crate::support::owner::Owner;
use crate::support::stage::Stage;
use crate::support::{Entry, World, eventually};

/// Writes a logical decoding message.
async fn emit(psql: &tokio_postgres::Client, prefix: &str, content: &str) {
    let emit = "SELECT pg_logical_emit_message(true, $1, $2::text)";
    psql.execute(emit, &[&prefix, &content]).await.unwrap();
}

fn of_op<'a>(entries: &'a [Entry], op: &'a str) -> Vec<&'a Entry> {
    entries.iter().filter(|entry| entry.field("op") == op).collect()
}

#[tokio::test]
async fn outbox_message_reaches_its_users_at_commit() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    let mut mobile = phone.events("/sse/mobile/phone").await;
    let mut web = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let psql = office.world.psql().await;
    let insert = format!(
        "INSERT INTO tenant_acme.outbox (event, recipients, data) VALUES ('order_lost', '[\"{}\"]', '{{\"order\": 7}}')",
        office.joe_id
    );
    psql.batch_execute(&format!("BEGIN; {insert}; ROLLBACK")).await.unwrap();
    psql.batch_execute(&insert.replace("lost", "shipped")).await.unwrap();
    office.world.emit("news", &json!("tenant"), &json!("hello")).await;
    let kept = "SELECT count(*) FROM tenant_acme.outbox";
    assert_eq!(psql.query_one(kept, &[]).await.unwrap().get::<_, i64>(0), 0);

    let shipped = mobile.expect("order_shipped").await;
    assert_eq!(
        (&shipped.data["op"], &shipped.data["data"]),
        (&json!("message"), &json!({"order": 7}))
    );
    assert!(shipped.id.is_some(), "{shipped:?}");
    assert_eq!(mobile.expect("news").await.data["data"], "hello");
    assert_eq!(web.expect("news").await.data["data"], "hello");

    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    let delivered: Vec<_> = batch["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (&change["table"], &change["op"], &change["row"]))
        .collect();
    assert_eq!(
        delivered,
        [
            (&json!("posduif:order_shipped"), &json!("message"), &json!({"order": 7})),
            (&json!("posduif:news"), &json!("message"), &json!("hello")),
        ]
    );
    // Two of them are two, however alike.
    assert_ne!(batch["changes"][0]["id"], batch["changes"][1]["id"]);
    office.close().await;
}

#[tokio::test]
async fn resumed_stream_delivers_outbox_message_content() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mut events = phone.events("/sse/mobile/phone").await;
    office.send("before").await;
    let last = events.expect("message").await.id.unwrap();
    drop(events);
    office.world.emit("ping", &json!([office.joe_id]), &json!([1, 2])).await;
    office.world.published().await;
    let mut events = phone.with("last-event-id", &last).events("/sse/mobile/phone").await;
    assert_eq!(events.expect("ping").await.data["data"], json!([1, 2]));
    office.close().await;
}

#[tokio::test]
async fn outbox_row_that_reaches_no_user_is_refused_by_postgres() {
    let stage = Stage::new().await;
    for (event, recipients, data) in [
        ("x", json!("joe"), json!(1)),
        ("x", json!(["joe"]), json!(1)),
        ("x", json!({"joe": 1}), json!(1)),
        ("x", json!({"list": "1", "team": "1"}), json!(1)),
        ("x", json!({}), json!(1)),
        ("group_joined", json!("tenant"), json!(1)),
        ("x", json!(vec![stage.joe; 1001]), json!(1)),
        ("X", json!("tenant"), json!(1)),
        ("reset", json!("tenant"), json!(1)),
        ("x", json!("tenant"), json!("x".repeat(70_000))),
    ] {
        let insert =
            "INSERT INTO tenant_acme.outbox (event, recipients, data) VALUES ($1, $2::text::jsonb, $3::text::jsonb)";
        let (recipients, data) = (recipients.to_string(), data.to_string());
        let refused = stage.psql.execute(insert, &[&event, &recipients, &data]).await;
        assert!(refused.is_err(), "{event} {recipients:.80}");
    }
    stage.stop().await;
}

#[tokio::test]
async fn role_of_a_tenant_writes_its_outbox_and_commands_nothing() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    stage
        .sql(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA tenant_acme TO {role}; GRANT INSERT ON tenant_acme.outbox TO {role}"
        ))
        .await;
    let generation = || async {
        let meta = stage.world.keys().meta("acme");
        stage.world.ask_redis::<String>(&["HGET", &meta, "generation"]).await
    };
    let before = generation().await;
    let psql = stage.world.psql().await;
    psql.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
    let insert = format!(
        "INSERT INTO tenant_acme.outbox (event, recipients) VALUES ('ping', '[\"{}\"]')",
        stage.joe
    );
    psql.batch_execute(&insert).await.unwrap();
    let command = "INSERT INTO posduif.commands (name, arguments) VALUES ('drop_tenant', 'acme')";
    assert!(psql.batch_execute(command).await.is_err());
    let stranger = Uuid::new_v4();
    for (prefix, content) in [
        ("create_inbox", format!("acme {stranger}")),
        ("posduif.inbox", format!("acme {stranger}")),
        ("drop_tenant", "acme".to_owned()),
        ("posduif.dropped", "acme".to_owned()),
        ("posduif.tenant", "acme 99 paused".to_owned()),
        ("posduif.state", "acme paused".to_owned()),
        ("posduif:ping", json!({"tenant": "acme", "to": [stage.joe]}).to_string()),
    ] {
        emit(&psql, prefix, &content).await;
    }
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(
        of_op(&inbox, "message").len(),
        1,
        "the row's, and not the message's: {inbox:?}"
    );
    assert_eq!(generation().await, before);
    let key = stage.world.keys().inbox("acme", &stranger.to_string());
    let exists: i64 = stage.world.ask_redis(&["EXISTS", &key]).await;
    assert_eq!(exists, 0);
    stage.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    stage.stop().await;
}

#[tokio::test]
async fn commands_for_unknown_tenants_make_no_key() {
    let stage = Stage::new().await;
    let (stranger, tenant) = (Uuid::new_v4(), "nowhere");
    for (name, arguments) in [
        ("create_inbox", format!("{tenant} {stranger}")),
        ("set_state", format!("{tenant} paused")),
        ("recreate_stream", format!("{tenant} shared")),
        ("trim", format!("{tenant} shared 1-0")),
        ("report_table", format!("{tenant} x")),
        ("retry", tenant.to_owned()),
        ("no_such_command", tenant.to_owned()),
        ("create_tenant", "No Name".to_owned()),
    ] {
        let insert = "INSERT INTO posduif.commands (name, arguments) VALUES ($1, $2)";
        stage.psql.execute(insert, &[&name, &arguments]).await.unwrap();
    }
    stage.world.published().await;
    let keys: Vec<String> = stage
        .world
        .ask_redis(&["KEYS", &format!("{}:*nowhere*", stage.world.config.redis.prefix)])
        .await;
    assert!(keys.is_empty(), "{keys:?}");
    stage.stop().await;
}

#[tokio::test]
async fn invalid_outbox_message_is_quarantined_and_unknown_tenant_makes_no_key() {
    let stage = Stage::with(|config| config.outbox.logical_messages = true).await;
    for (prefix, content) in [
        ("posduif:x", json!({"tenant": "acme", "to": "joe"})),
        ("posduif:x", json!({"tenant": "nowhere", "to": [stage.joe]})),
        ("posduif:x", json!("nonsense")),
        ("posduif:y", json!({"tenant": "acme", "to": [stage.joe, Uuid::nil()]})),
    ] {
        emit(&stage.psql, prefix, &content.to_string()).await;
    }
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(of_op(&inbox, "message").len(), 1);
    assert_eq!(of_op(&inbox, "message")[0].field("event"), "y");
    let log = stage.changes().await;
    assert_eq!(of_op(&log, "message")[0].field("table"), "posduif:y");
    let quarantine = stage.world.stream(&stage.world.keys().quarantine("acme")).await;
    assert_eq!(quarantine.len(), 1, "{quarantine:?}");
    assert!(
        quarantine[0].field("cause").contains("list of user ids"),
        "{quarantine:?}"
    );
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{}:*nowhere*", stage.world.config.redis.prefix))
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    assert!(keys.is_empty(), "{keys:?}");
    stage.stop().await;
}

#[tokio::test]
async fn paused_tenant_receives_everything_once_after_resume() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let database = office.world.database().await;
    assert!(
        tenants::set_paused(&database, "acme", true, &Actor::cli())
            .await
            .unwrap()
    );
    assert!(
        !tenants::set_paused(&database, "nowhere", true, &Actor::cli())
            .await
            .unwrap()
    );
    office.world.published().await;

    let message = office.send("while paused").await;
    office.world.published().await;
    for path in [
        "/api/sync/incoming".to_owned(),
        format!("/api/sync/incoming?cursor={cursor}"),
    ] {
        let refused = phone.get(&path).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code().as_str()),
            (503, "TENANT_PAUSED"),
            "{path}"
        );
    }
    // A stream that comes now waits as well, and a restarted engine still knows.
    office.engine.stop().await;
    let engine = office.world.engine(Role::All).await;
    let phone = phone.at(&engine.api());
    assert_eq!(phone.get("/api/sync/incoming").await.status.as_u16(), 503);
    assert!(events.rest().await.iter().all(|event| event.name != "message"));
    let mut events = phone.events("/sse/mobile/phone").await;
    let during = phone.post("/api/sync/outgoing", &json!({"messages": []})).await;
    assert_eq!(during.status.as_u16(), 200, "uploads are taken meanwhile");

    tenants::set_paused(&database, "acme", false, &Actor::cli())
        .await
        .unwrap();
    events.expect("sync_required").await;
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(ids(&batch["messages"]), [message]);
    engine.stop().await;
}

#[tokio::test]
async fn resync_forces_snapshots_and_resets_other_readers() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let message = office.send("kept").await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let database = office.world.database().await;
    assert!(tenants::resync(&database, "acme").await.unwrap().is_some());
    office.world.published().await;
    let answer = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(
        (&answer["reset"], ids(&answer["messages"])),
        (&json!(true), vec![message])
    );
    let log = office.world.stream(&office.world.keys().changes("acme")).await;
    assert_eq!(of_op(&log, "reset").len(), 2, "one at the tenant's creation, one now");
    office.close().await;
}

#[tokio::test]
async fn stopped_stream_is_recreated_with_reset_once_writable() {
    let mut stage = Stage::new().await;
    stage.world.published().await;
    let key = stage.world.keys().inbox("acme", &stage.joe.to_string());
    // Somebody's own entry, far ahead: all that follow are refused as too old.
    let add = ["XADD", &key, "18446744073709551614-1", "a", "b"];
    let _: String = stage.world.ask_redis(&add).await;
    stage.message(stage.bob, stage.joe, "refused").await;
    stage.world.published().await;
    assert_eq!(
        stage.world.stopped_streams().await,
        [format!("inbox acme {}", stage.joe)]
    );

    // Repaired by hand while the engine is away: the hole must not go unnoticed.
    stage.engine.take().unwrap().stop().await;
    let _: i64 = stage.world.ask_redis(&["XDEL", &key, "18446744073709551614-1"]).await;
    let _: i64 = stage.world.ask_redis(&["DEL", &key]).await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let second = stage.message(stage.bob, stage.joe, "taken").await;
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(
        inbox.iter().map(|entry| entry.field("op")).collect::<Vec<_>>(),
        ["reset", "insert"]
    );
    assert_eq!(inbox[1].json("row")["id"], second.to_string());
    let stopped: i64 = stage.world.ask_redis(&["EXISTS", &stage.world.keys().stopped()]).await;
    assert_eq!(stopped, 0);
    stage.stop().await;
}

#[tokio::test]
async fn readers_of_a_stopped_stream_receive_503_or_reset() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let key = office.world.keys().inbox("acme", &office.joe_id.to_string());
    let before = office.send("taken").await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let add = ["XADD", &key, "18446744073709551614-1", "a", "b"];
    let _: String = office.world.ask_redis(&add).await;
    // Somebody else's entry moves no reader.
    let (_, same) = phone.sync(Some(&cursor)).await;
    let refused = office.send("refused").await;
    office.world.published().await;
    let answer = phone
        .get(&format!("/api/sync/incoming?cursor={same}"))
        .await
        .expect(503);
    assert_eq!(answer["error"]["code"], "SYNC_ERROR");
    let mut live = phone.events(&format!("/sse/mobile/phone?last_event_id={same}")).await;
    live.expect("reset").await;

    tenants::resync(&office.world.database().await, "acme").await.unwrap();
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&same)).await;
    assert_eq!(pages[0]["reset"], true);
    let messages: Vec<String> = pages.iter().flat_map(|page| ids(&page["messages"])).collect();
    assert!(
        messages.contains(&before) && messages.contains(&refused),
        "{messages:?}"
    );
    office.close().await;
}

#[tokio::test]
async fn resync_clears_the_cause_of_a_stopped_stream() {
    let stage = Stage::new().await;
    stage.world.published().await;
    let key = stage.world.keys().inbox("acme", &stage.joe.to_string());
    let mut redis = stage.world.redis().await;
    let _: () = redis::cmd("SET")
        .arg(&key)
        .arg("not a stream")
        .query_async(&mut redis)
        .await
        .unwrap();
    stage.message(stage.bob, stage.joe, "refused").await;
    stage.world.published().await;
    tenants::resync(&stage.world.database().await, "acme").await.unwrap();
    let message = stage.message(stage.bob, stage.joe, "taken").await;
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(
        inbox.iter().map(|entry| entry.field("op")).collect::<Vec<_>>(),
        ["reset", "insert"]
    );
    assert_eq!(inbox[1].json("row")["id"], message.to_string());
    stage.stop().await;
}

fn note_rule() -> Rule {
    Rule {
        table: "notes".into(),
        to: vec!["owner".into()],
        event: "note".into(),
        when: When::default(),
        ..Rule::default()
    }
}

#[tokio::test]
async fn tables_and_columns_can_be_renamed_and_dropped_while_streaming() {
    let stage = Stage::with(|config: &mut Config| config.routes = vec![note_rule()]).await;
    let joe = stage.joe;
    stage
        .sql("CREATE TABLE tenant_acme.drafts (id int PRIMARY KEY, owner uuid, body text, extra text)")
        .await;
    stage
        .sql(&format!("INSERT INTO tenant_acme.drafts VALUES (1, '{joe}', 'a', 'x')"))
        .await;
    // From here on the rule covers it.
    stage.sql("ALTER TABLE tenant_acme.drafts RENAME TO notes").await;
    stage
        .sql(&format!("INSERT INTO tenant_acme.notes VALUES (2, '{joe}', 'b', 'y')"))
        .await;
    stage
        .sql("ALTER TABLE tenant_acme.notes RENAME COLUMN body TO content")
        .await;
    stage.sql("ALTER TABLE tenant_acme.notes DROP COLUMN extra, ADD COLUMN size bigint GENERATED ALWAYS AS (length(content)) STORED").await;
    stage
        .sql(&format!("INSERT INTO tenant_acme.notes VALUES (3, '{joe}', 'ccc')"))
        .await;
    stage.sql("UPDATE tenant_acme.notes SET id = 4 WHERE id = 3").await;
    stage.sql("DROP TABLE tenant_acme.notes").await;
    stage.sql("CREATE TABLE tenant_acme.notes (owner uuid, n int)").await;
    stage
        .sql(&format!("INSERT INTO tenant_acme.notes VALUES ('{joe}', 5)"))
        .await;

    // Stored generated columns are published from Postgres 18 on.
    let size = (stage.server_version().await >= 180_000).then_some(3);
    let with_size = |mut row: Value| {
        if let Some(size) = size {
            row["size"] = size.into();
        }
        row
    };
    let rows: Vec<_> = stage
        .changes()
        .await
        .iter()
        .filter(|entry| entry.field("op") != "reset" && ["drafts", "notes"].contains(&entry.field("table")))
        .map(|entry| entry.json("row"))
        .collect();
    assert_eq!(
        rows,
        [
            json!({"id": 1, "owner": joe, "body": "a", "extra": "x"}),
            json!({"id": 2, "owner": joe, "body": "b", "extra": "y"}),
            with_size(json!({"id": 3, "owner": joe, "content": "ccc"})),
            with_size(json!({"id": 4, "owner": joe, "content": "ccc"})),
            json!({"owner": joe, "n": 5}),
        ]
    );
    let delivered: Vec<_> = stage
        .inbox(joe)
        .await
        .iter()
        .filter(|entry| entry.field("event") == "note")
        .map(|entry| entry.field("op").to_owned())
        .collect();
    assert_eq!(delivered, ["insert", "insert", "update", "insert"]);
    stage.stop().await;
}

/// Of Postgres 18 on, where columns are virtual unless STORED is said.
#[tokio::test]
async fn table_with_virtual_columns_stays_writable_and_replicates() {
    let stage = Stage::with(|config: &mut Config| config.routes = vec![note_rule()]).await;
    if stage.server_version().await < 180_000 {
        return stage.stop().await;
    }
    let joe = stage.joe;
    stage
        .sql(&format!(
            "CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, owner uuid, body text);
             INSERT INTO tenant_acme.notes VALUES (1, '{joe}', 'a');
             ALTER TABLE tenant_acme.notes ADD COLUMN size int GENERATED ALWAYS AS (length(body)) VIRTUAL;
             UPDATE tenant_acme.notes SET body = 'bb';
             DELETE FROM tenant_acme.notes"
        ))
        .await;
    let delivered: Vec<_> = stage
        .changes()
        .await
        .iter()
        .filter(|entry| entry.field("table") == "notes")
        .map(|entry| (entry.field("op").to_owned(), entry.json("row"), entry.json("old")))
        .collect();
    let row = |body: &str| json!({"id": 1, "owner": joe, "body": body});
    assert_eq!(
        delivered,
        [
            ("insert".to_owned(), row("a"), Value::Null),
            ("update".to_owned(), row("bb"), Value::Null),
            // The key only: whose row it was, nobody can tell.
            ("delete".to_owned(), Value::Null, json!({"id": 1})),
        ]
    );
    stage.stop().await;
}

#[tokio::test]
async fn partitioned_table_is_one_table_for_rows_of_any_partition() {
    let stage = Stage::with(|config: &mut Config| config.routes = vec![note_rule()]).await;
    let joe = stage.joe;
    stage
        .sql(
            "CREATE TABLE tenant_acme.notes (id int, owner uuid, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE tenant_acme.notes_2025 PARTITION OF tenant_acme.notes FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
             CREATE TABLE tenant_acme.notes_2026 PARTITION OF tenant_acme.notes FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');",
        )
        .await;
    stage
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (1, '{joe}', '2025-05-05'), (2, '{joe}', '2026-05-05')"
        ))
        .await;
    // Postgres moves the row: a delete in one partition, an insert in the other.
    stage
        .sql("UPDATE tenant_acme.notes SET day = '2026-01-01' WHERE id = 1")
        .await;
    let delivered: Vec<_> = stage
        .inbox(joe)
        .await
        .iter()
        .filter(|entry| entry.field("event") == "note")
        .map(|entry| {
            let row = if entry.field("op") == "delete" { "old" } else { "row" };
            (
                entry.field("table").to_owned(),
                entry.field("op").to_owned(),
                entry.json(row)["id"].clone(),
            )
        })
        .collect();
    let expected = [("insert", 1), ("insert", 2), ("delete", 1), ("insert", 1)];
    assert_eq!(
        delivered,
        expected.map(|(op, id)| ("notes".to_owned(), op.to_owned(), json!(id)))
    );
    stage.stop().await;
}

#[tokio::test]
async fn replica_identities_deliver_logged_columns_and_none_forbids_updates() {
    let stage = Stage::new().await;
    // The event trigger would give these FULL again, so it is put to sleep, as a server without it would be.
    stage.sql("ALTER EVENT TRIGGER posduif_full_identity DISABLE").await;
    stage
        .sql(
            "CREATE TABLE tenant_acme.by_key (id int PRIMARY KEY, a text);
             CREATE TABLE tenant_acme.by_index (id int NOT NULL, a text);
             CREATE UNIQUE INDEX by_index_id ON tenant_acme.by_index (id);
             ALTER TABLE tenant_acme.by_index REPLICA IDENTITY USING INDEX by_index_id;
             CREATE TABLE tenant_acme.nothing (id int, a text);
             ALTER TABLE tenant_acme.nothing REPLICA IDENTITY NOTHING;",
        )
        .await;
    for table in ["by_key", "by_index"] {
        stage
            .sql(&format!("INSERT INTO tenant_acme.{table} VALUES (1, 'x')"))
            .await;
        stage.sql(&format!("UPDATE tenant_acme.{table} SET a = 'y'")).await;
        stage.sql(&format!("UPDATE tenant_acme.{table} SET id = 2")).await;
        stage.sql(&format!("DELETE FROM tenant_acme.{table}")).await;
    }
    stage.sql("INSERT INTO tenant_acme.nothing VALUES (1, 'x')").await;
    let refused = stage.psql.execute("UPDATE tenant_acme.nothing SET a = 'y'", &[]).await;
    assert!(
        refused
            .unwrap_err()
            .as_db_error()
            .unwrap()
            .message()
            .contains("replica identity")
    );

    let log = stage.changes().await;
    for table in ["by_key", "by_index"] {
        let delivered: Vec<_> = log
            .iter()
            .filter(|entry| entry.field("table") == table)
            .map(|entry| (entry.field("op"), entry.json("row"), entry.json("old")))
            .collect();
        assert_eq!(
            delivered,
            [
                ("insert", json!({"id": 1, "a": "x"}), json!(null)),
                ("update", json!({"id": 1, "a": "y"}), json!(null)),
                ("update", json!({"id": 2, "a": "y"}), json!({"id": 1})),
                ("delete", json!(null), json!({"id": 2})),
            ],
            "{table}"
        );
    }
    assert_eq!(log.iter().filter(|entry| entry.field("table") == "nothing").count(), 1);
    stage.stop().await;
}

#[tokio::test]
async fn ten_megabyte_value_arrives_whole_and_replication_continues() {
    let stage = Stage::new().await;
    stage
        .sql("CREATE TABLE tenant_acme.files (id int PRIMARY KEY, content text, raw bytea)")
        .await;
    stage.sql("INSERT INTO tenant_acme.files SELECT 1, string_agg(md5(n::text), ''), decode(repeat('00ff', 500000), 'hex') FROM generate_series(1, 327680) n").await;
    stage
        .sql("INSERT INTO tenant_acme.files VALUES (2, 'small', NULL)")
        .await;
    let rows: Vec<_> = stage
        .changes()
        .await
        .iter()
        .filter(|entry| entry.field("table") == "files")
        .map(|entry| entry.json("row"))
        .collect();
    let expected: String = stage
        .psql
        .query_one("SELECT md5(content) FROM tenant_acme.files WHERE id = 1", &[])
        .await
        .unwrap()
        .get(0);
    let content = rows[0]["content"].as_str().unwrap();
    assert_eq!(content.len(), 10_485_760);
    let again: String = stage
        .psql
        .query_one("SELECT md5($1::text)", &[&content])
        .await
        .unwrap()
        .get(0);
    assert_eq!(again, expected);
    assert_eq!(rows[0]["raw"].as_str().unwrap().len(), 1_333_336);
    assert_eq!(rows[1], json!({"id": 2, "content": "small", "raw": null}));
    stage.stop().await;
}

#[tokio::test]
async fn tenants_created_under_load_get_their_own_rows_only() {
    let stage = Stage::new().await;
    let names = ["beta", "gamma", "delta"];
    for name in names {
        stage.world.tenant(name).await;
        let user = stage.world.user(name, "joe", UserType::Mobile).await;
        stage.message(stage.bob, stage.joe, "to acme").await;
        stage
            .sql(&format!("INSERT INTO tenant_{name}.messages (sender_id, recipient_id, content) VALUES ('{user}', '{user}', 'to {name}')"))
            .await;
    }
    stage.world.published().await;
    for name in names {
        let log = stage.world.stream(&stage.world.keys().changes(name)).await;
        let contents: Vec<_> = log
            .iter()
            .filter(|entry| entry.field("table") == "messages")
            .map(|entry| entry.json("row")["content"].clone())
            .collect();
        assert_eq!(contents, [json!(format!("to {name}"))]);
    }
    tokio::time::timeout(Duration::from_secs(10), stage.stop())
        .await
        .unwrap();
}

#[tokio::test]
async fn late_table_with_rows_resets_the_tenant_without_superuser() {
    let mut world = World::new().await;
    let owner = Owner::of(&mut world).await;
    let stage = Stage::on_with(world, Role::All).await;
    stage.message(stage.bob, stage.joe, "published").await;
    assert_eq!(
        of_op(&stage.changes().await, "insert")
            .iter()
            .filter(|entry| entry.field("table") == "messages")
            .count(),
        1
    );

    stage
        .sql("CREATE TABLE tenant_acme.empty (id int); CREATE TABLE tenant_acme.full (id int)")
        .await;
    migrate(&stage).await;
    let resets = of_op(&stage.changes().await, "reset").len();
    stage
        .sql("CREATE TABLE tenant_acme.late (id int); INSERT INTO tenant_acme.late VALUES (1)")
        .await;
    migrate(&stage).await;
    stage
        .sql("INSERT INTO tenant_acme.late VALUES (2); UPDATE tenant_acme.late SET id = 3 WHERE id = 1")
        .await;
    let log = stage.changes().await;
    assert_eq!(
        (resets, of_op(&log, "reset").len()),
        (1, 2),
        "only the table with rows says so"
    );
    let delivered: Vec<_> = log
        .iter()
        .filter(|entry| entry.field("table") == "late")
        .map(|entry| entry.json("row")["id"].clone())
        .collect();
    assert_eq!(delivered, [json!(2), json!(3)]);

    let Stage { engine, world, .. } = stage;
    engine.unwrap().stop().await;
    owner.remove().await;
    drop(world);
}

async fn migrate(stage: &Stage) {
    let database = stage.world.database().await;
    migrations::up(&database, &stage.world.config.replication)
        .await
        .unwrap();
}

#[tokio::test]
async fn tenant_created_again_at_once_has_nothing_of_the_former_one() {
    let stage = Stage::with(|config| config.outbox.logical_messages = true).await;
    emit(
        &stage.psql,
        "posduif:x",
        &json!({"tenant": "acme", "to": "joe"}).to_string(),
    )
    .await;
    stage.world.published().await;
    let keys = stage.world.keys();
    assert_eq!(stage.world.stream(&keys.quarantine("acme")).await.len(), 1);
    let database = stage.world.database().await;
    let dropped = tenants::drop(&database, "acme").await.unwrap().unwrap();
    stage.world.tenant("acme").await;
    let ann = stage.world.user("acme", "ann", UserType::Mobile).await;
    let store = Store::new(&stage.world.config.redis).unwrap();
    let removed = published::remove_tenant(
        &database,
        (&store, &LaneName::default()),
        "acme",
        dropped,
        Duration::from_secs(20),
        |_| {},
    )
    .await;
    assert_eq!(removed.unwrap(), 0, "the keys are of the present tenant");
    stage.world.published().await;
    assert_eq!(stage.world.stream(&keys.quarantine("acme")).await.len(), 0);
    let log = stage.world.stream(&keys.changes("acme")).await;
    assert_eq!(
        (of_op(&log, "reset").len(), of_op(&log, "insert").len()),
        (1, 1),
        "{log:?}"
    );
    let inbox: i64 = stage
        .world
        .ask_redis(&["EXISTS", &keys.inbox("acme", &ann.to_string())])
        .await;
    assert_eq!(inbox, 1);
    stage.stop().await;
}

#[tokio::test]
async fn dropped_tenant_leaves_no_keys_and_others_continue() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    phone.sync(None).await;
    office.world.tenant("beta").await;
    let ann = office.world.user("beta", "ann", UserType::Mobile).await;
    let mut events = phone.events("/sse/mobile/phone").await;
    let database = office.world.database().await;
    let dropped = tenants::drop(&database, "acme").await.unwrap().unwrap();
    assert_eq!(tenants::drop(&database, "acme").await.unwrap(), None);
    let store = Store::new(&office.world.config.redis).unwrap();
    assert!(
        published::remove_tenant(
            &database,
            (&store, &LaneName::default()),
            "acme",
            dropped,
            Duration::from_secs(20),
            |_| {}
        )
        .await
        .unwrap()
            > 0
    );
    events.expect("revoked").await;
    assert_eq!(phone.get("/api/sync/incoming").await.status.as_u16(), 401);

    let note = "INSERT INTO tenant_beta.messages (sender_id, recipient_id, content) VALUES ($1, $1, 'x')";
    office.world.psql().await.execute(note, &[&ann]).await.unwrap();
    office.world.published().await;
    let inbox = office
        .world
        .stream(&office.world.keys().inbox("beta", &ann.to_string()))
        .await;
    assert_eq!(of_op(&inbox, "insert").len(), 1);
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(office.world.keys().of_tenant("acme"))
        .query_async(&mut office.world.redis().await)
        .await
        .unwrap();
    assert!(keys.is_empty(), "{keys:?}");

    // One of the same name begins from nothing, also for an engine that starts only now.
    office.world.tenant("acme").await;
    office.engine.stop().await;
    let engine = office.world.engine(Role::Replicator).await;
    office.world.user("acme", "joe", UserType::Mobile).await;
    office.world.published().await;
    let log = office.world.stream(&office.world.keys().changes("acme")).await;
    assert_eq!(
        log.iter().map(|entry| entry.field("op")).collect::<Vec<_>>(),
        ["reset", "insert"]
    );
    engine.stop().await;
}

#[tokio::test]
async fn schema_dropped_or_renamed_by_hand_affects_its_tenant_only() {
    let mut stage = Stage::new().await;
    for name in ["beta", "gamma"] {
        stage.world.tenant(name).await;
    }
    stage
        .sql("DROP SCHEMA tenant_beta CASCADE; ALTER SCHEMA tenant_gamma RENAME TO tenant_delta")
        .await;
    stage
        .sql("INSERT INTO tenant_delta.users (username, user_type) VALUES ('nobody', 'mobile')")
        .await;
    stage.message(stage.bob, stage.joe, "first").await;
    stage.world.published().await;
    // A new epoch walks through all tenants.
    stage.engine.take().unwrap().stop().await;
    let _: i64 = redis::cmd("DEL")
        .arg(stage.world.keys().checkpoint())
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let message = stage.message(stage.bob, stage.joe, "second").await;
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(inbox.last().unwrap().json("row")["id"], message.to_string());
    assert!(
        stage
            .world
            .stream(&stage.world.keys().changes("delta"))
            .await
            .is_empty()
    );
    stage.stop().await;
}

#[tokio::test]
async fn stream_over_its_bound_is_trimmed_at_any_growth_rate() {
    let stage = Stage::with(|config: &mut Config| {
        config.streams.changes_entries_max = 100;
        config.streams.trim_interval_seconds = 1;
    })
    .await;
    stage
        .sql("CREATE TABLE tenant_acme.many (id int); INSERT INTO tenant_acme.many SELECT generate_series(1, 10000)")
        .await;
    eventually("the stream is as long as allowed", || async {
        (stage.changes().await.len() == 100).then_some(())
    })
    .await;
    let meta: Option<String> = redis::cmd("HGET")
        .arg(stage.world.keys().meta("acme"))
        .arg("trim:changes")
        .query_async(&mut stage.world.redis().await)
        .await
        .unwrap();
    assert_eq!(meta.unwrap(), stage.changes().await[0].id.to_string());
    stage.stop().await;
}
