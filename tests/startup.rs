//! What a start costs in a database with many tenants.

use std::time::Instant;

use posduif::engine::Role;
use posduif::postgres::migrations;

use crate::support::{World, eventually_within, servers};

/// Tenants of the measurement, unless `POSDUIF_TENANTS` says otherwise.
const TENANTS: i32 = 10_000;

/// The number of the next transaction.
async fn next_transaction(psql: &tokio_postgres::Client) -> i64 {
    let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    psql.query_one(next, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn start_with_complete_tenants_changes_none_of_them() {
    let server = servers::postgres().await;
    let world = World::on(&server.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    let (database, settings) = (world.database().await, world.config.replication.clone());
    let psql = world.psql().await;
    migrations::up(&database, &settings).await.unwrap();
    for number in 0..20 {
        world.tenant(&format!("office{number}")).await;
    }
    // WHEN nothing is to do THEN no tenant has a transaction
    let before = next_transaction(&psql).await;
    assert!(migrations::up(&database, &settings).await.unwrap().is_empty());
    let transactions = next_transaction(&psql).await - before;
    assert!(transactions < 10, "{transactions} transactions");

    // WHEN one lacks an identity, one its publication, one a migration THEN these three are completed
    let publication = &settings.publication;
    let spoil = format!(
        "ALTER EVENT TRIGGER posduif_full_identity DISABLE; \
         ALTER TABLE tenant_office3.messages REPLICA IDENTITY DEFAULT; \
         ALTER EVENT TRIGGER posduif_full_identity ENABLE; \
         ALTER PUBLICATION {publication} DROP TABLES IN SCHEMA tenant_office4"
    );
    psql.batch_execute(&spoil).await.unwrap();
    let target = migrations::Target::parse("tenant_office5").unwrap();
    let down = migrations::down(&database, &target, 1, |_, _| {}).await.unwrap();
    let mut seen = 0;
    let up = migrations::up_with_progress(&database, &settings, |_, total| seen = total)
        .await
        .unwrap();
    assert_eq!(seen, 4, "the control schema and three tenants");
    let of = |steps: &[migrations::Step]| -> Vec<_> {
        steps.iter().map(|step| (step.schema.clone(), step.migration)).collect()
    };
    assert_eq!(of(&up), of(&down));
    let complete = "SELECT (SELECT relreplident = 'f' FROM pg_class WHERE oid = 'tenant_office3.messages'::regclass) \
                    AND EXISTS (SELECT FROM pg_publication_tables WHERE schemaname = 'tenant_office4')";
    assert!(psql.query_one(complete, &[]).await.unwrap().get::<_, bool>(0));
}

/// Measures the start of an engine with many tenants, which a template makes:
/// `POSDUIF_TENANTS=2000 cargo nextest run --run-ignored all --no-capture engine_with_many_tenants_is_measured`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "creating the tenants takes minutes"]
async fn engine_with_many_tenants_is_measured() {
    let count = std::env::var("POSDUIF_TENANTS").map_or(TENANTS, |text| text.parse().unwrap());
    let server = servers::postgres_with(|_, options| options.setting("max_locks_per_transaction", "10000")).await;
    let redis = servers::redis().await;
    let world = World::on(&server.server.url(), &redis.server.url()).await;
    let engine = world.engine(Role::All).await;
    world.published().await;
    world.tenant("template").await;
    engine.stop().await;
    let psql = world.psql().await;
    let start = Instant::now();
    for first in (0..count).step_by(100) {
        let make = format!(
            "DO $$ DECLARE number int; made record; BEGIN
                 FOR number IN {first}..{last} LOOP
                     EXECUTE format('CREATE SCHEMA tenant_t%s', number);
                     FOR made IN SELECT relname FROM pg_class WHERE relkind = 'r'
                         AND relnamespace = 'tenant_template'::regnamespace LOOP
                         EXECUTE format('CREATE TABLE tenant_t%s.%I (LIKE tenant_template.%I INCLUDING ALL)',
                                        number, made.relname, made.relname);
                         EXECUTE format('ALTER TABLE tenant_t%s.%I REPLICA IDENTITY FULL', number, made.relname);
                     END LOOP;
                     EXECUTE format('ALTER PUBLICATION {publication} ADD TABLES IN SCHEMA tenant_t%s', number);
                     INSERT INTO posduif.tenants (name, schema_name) VALUES ('t' || number, 'tenant_t' || number);
                     INSERT INTO posduif.schema_migrations (schema_name, version, dirty)
                         SELECT 'tenant_t' || number, version, false FROM posduif.schema_migrations
                         WHERE schema_name = 'tenant_template';
                 END LOOP;
             END $$",
            last = (first + 100).min(count) - 1,
            publication = world.config.replication.publication,
        );
        psql.batch_execute(&make).await.unwrap();
    }
    println!("{count} tenants made in {:.1} s", start.elapsed().as_secs_f64());
    // A replicator goes on beside the process of the API.
    let mut replicator = None;
    for role in [Role::Replicator, Role::Api, Role::Api] {
        let start = Instant::now();
        let engine = world.engine(role).await;
        println!("{role:?}: listens after {:.2} s", start.elapsed().as_secs_f64());
        let api = engine.api();
        eventually_within(std::time::Duration::from_secs(600), "ready", || async {
            (api.get("/ready").await.status == 200).then_some(())
        })
        .await;
        println!("{role:?}: ready after {:.2} s", start.elapsed().as_secs_f64());
        match role {
            Role::Replicator => replicator = Some(engine),
            _ => engine.stop().await,
        }
    }
    replicator.unwrap().stop().await;
}
