//! Changes that are too large to be sent or to be read.

use std::time::Duration;

use posduif::accounts::users::UserType;
use posduif::config::rule::{Rule, When};
use serde_json::json;

use crate::support::eventually_within;
use crate::support::office::Office;
use crate::support::stage::Stage;

#[tokio::test]
async fn change_beyond_row_bytes_max_is_quarantined_and_resets_its_readers() {
    let office = Office::with(|config| {
        config.replication.row_bytes_max = 1024 * 1024;
        config.routes = vec![Rule {
            table: "notes".into(),
            to: vec!["owner".into()],
            event: "note".into(),
            when: When::default(),
            ..Rule::default()
        }];
    })
    .await;
    office
        .sql("CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, owner uuid, body text)")
        .await;
    let phone = office.phone("phone").await;
    let joe = &office.joe_id;
    office
        .sql(&format!("INSERT INTO tenant_acme.notes VALUES (1, '{joe}', 'small')"))
        .await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let large = "repeat(md5('x'), 65536)";
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (2, '{joe}', {large});
             BEGIN; DELETE FROM tenant_acme.notes WHERE id = 2; UPDATE tenant_acme.notes SET body = 'smaller'; COMMIT"
        ))
        .await;
    office.world.published().await;
    let quarantine = office.world.stream(&office.world.keys().quarantine("acme")).await;
    assert_eq!(quarantine.len(), 2, "the insert and the delete: {quarantine:?}");
    for entry in &quarantine {
        let cause = entry.field("cause");
        assert!(
            cause.contains("2097") && cause.contains("replication.row_bytes_max"),
            "{cause}"
        );
    }
    let (pages, cursor) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["reset"], true);
    let rows: Vec<_> = pages
        .iter()
        .flat_map(|page| page["changes"].as_array().unwrap())
        .filter(|change| change["table"] == "notes")
        .map(|change| &change["row"]["body"])
        .collect();
    assert_eq!(rows, [&json!("smaller")]);
    // What follows is delivered as ever.
    let message = office.send("behind it").await;
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["messages"][0]["id"], message);
    office.close().await;
}

/// Postgres prints a change into a buffer of at most 1 GiB; this one has twice 300 MiB, with two digits a byte.
#[tokio::test]
async fn change_that_postgres_cannot_send_costs_its_tenant_a_resync() {
    // Less than Postgres takes to print it, on most machines.
    let mut stage = Stage::with(|config| config.replication.idle_timeout_seconds = 2).await;
    stage.world.tenant("other").await;
    let (ann, ben) = (
        stage.world.user("other", "ann", UserType::Web).await,
        stage.world.user("other", "ben", UserType::Mobile).await,
    );
    stage
        .sql("CREATE TABLE tenant_acme.blobs (id int PRIMARY KEY, blob bytea)")
        .await;
    stage.world.published().await;
    stage.engine.take().unwrap().stop().await;
    let engine = stage.world.process("replicator").await;
    let keys = stage.world.keys();
    let generation =
        async |tenant: &str| -> String { stage.world.ask_redis(&["HGET", &keys.meta(tenant), "generation"]).await };
    let before = (generation("acme").await, generation("other").await);

    stage
        .sql("INSERT INTO tenant_acme.blobs SELECT 1, convert_to(repeat('x', 300 * 1024 * 1024), 'UTF8')")
        .await;
    stage.sql("UPDATE tenant_acme.blobs SET blob = blob || '\\x00'").await;
    stage.message(stage.bob, stage.joe, "behind it").await;
    stage
        .sql(&format!(
            "INSERT INTO tenant_other.messages (sender_id, recipient_id, content) VALUES ('{ann}', '{ben}', 'hi')"
        ))
        .await;
    let inbox = keys.inbox("other", &ben.to_string());
    // Postgres prints 600 MB several times.
    let timeout = Duration::from_secs(90);
    eventually_within(timeout, "another tenant's row arrives", || async {
        let entries = stage.world.stream(&inbox).await;
        entries
            .iter()
            .any(|entry| entry.field("table") == "messages")
            .then_some(())
    })
    .await;
    eventually_within(timeout, "the tenant is resynced", || async {
        (generation("acme").await != before.0).then_some(())
    })
    .await;
    assert_eq!(generation("other").await, before.1);
    stage.world.published().await;
    let causes: Vec<String> = stage
        .world
        .stream(&keys.quarantine("acme"))
        .await
        .iter()
        .map(|entry| entry.field("cause").to_owned())
        .collect();
    assert_eq!(causes.len(), 2, "{causes:?}");
    assert!(causes[0].contains("replication.row_bytes_max"), "{causes:?}");
    assert!(causes[1].contains("Postgres cannot send the transaction"), "{causes:?}");
    assert_eq!(stage.world.checkpoint().await["number"], "1", "no new epoch");
    let peak = engine.peak_memory_kib();
    assert!(peak < 256 * 1024, "{peak} KiB");

    // Once it is confirmed, another engine does not meet it again.
    let slot = stage.world.config.replication.slot.clone();
    let end: String = stage
        .psql
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    eventually_within(timeout, "the slot is beyond it", || async {
        let confirmed =
            "SELECT FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn >= $2::text::pg_lsn";
        stage.psql.query_opt(confirmed, &[&slot, &end]).await.unwrap()
    })
    .await;
    engine.kill().await;
    stage.engine = Some(stage.world.engine(posduif::engine::Role::Replicator).await);
    stage.message(stage.bob, stage.joe, "with another engine").await;
    stage.world.published().await;
    assert_eq!(stage.world.stream(&keys.quarantine("acme")).await.len(), 2);
    stage.stop().await;
}
