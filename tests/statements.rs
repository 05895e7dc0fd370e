//! Prepared statements: bounded per connection for any number of tenants, and never stale.

use posduif::core::tenant::Tenant;
use posduif::postgres::{Database, Statement};
use tokio_postgres::types::Type;

use crate::support::World;

/// Most statements that the connection may keep.
const MAX: usize = 10;

const STATEMENT: &str = "SELECT * FROM {schema}.numbers WHERE id = $1";

/// A pool of one connection, so that its session can be looked into.
async fn one_connection(world: &World) -> Database {
    let mut settings = world.config.postgres.clone();
    settings.pool_size = 1;
    settings.prepared_statements_max = MAX;
    Database::connect(&settings).await.unwrap()
}

/// What the session has prepared.
async fn prepared(database: &Database) -> usize {
    let query = "SELECT count(*) AS count FROM pg_prepared_statements";
    let row = database
        .query_opt(&Statement::composed(query), &[])
        .await
        .unwrap()
        .unwrap();
    usize::try_from(row.get::<_, i64>("count")).unwrap()
}

async fn ask(database: &Database, tenant: &str) -> usize {
    let tenant = Tenant::named(tenant).unwrap();
    let row = database
        .query_often(
            &Statement::composed(STATEMENT).in_schema(&tenant),
            &[(&7_i32, Type::INT4)],
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.get::<_, i32>("id"), 7);
    row.len()
}

#[tokio::test]
async fn prepared_statements_stay_bounded_over_a_thousand_tenants() {
    let world = World::new().await;
    world
        .psql()
        .await
        .batch_execute(
            "DO $$ BEGIN FOR n IN 1..1000 LOOP
                 EXECUTE format('CREATE SCHEMA tenant_t%s', n);
                 EXECUTE format('CREATE VIEW tenant_t%s.numbers AS SELECT 7 AS id', n);
             END LOOP; END $$",
        )
        .await
        .unwrap();
    let database = one_connection(&world).await;
    for number in 1..=1000 {
        ask(&database, &format!("t{number}")).await;
    }
    assert_eq!(
        prepared(&database).await,
        0,
        "what comes once is not worth a preparation"
    );
    for number in 1..=1000 {
        // Some tenants are busier than others.
        for _ in 0..3 {
            ask(&database, &format!("t{number}")).await;
            ask(&database, "t1").await;
        }
        if number % 100 == 0 {
            let count = prepared(&database).await;
            assert!((1..=MAX).contains(&count), "{count}");
        }
    }
}

#[tokio::test]
async fn prepared_statement_is_prepared_again_after_table_or_session_change() {
    let world = World::new().await;
    let psql = world.psql().await;
    psql.batch_execute(
        "CREATE SCHEMA tenant_t; CREATE TABLE tenant_t.numbers (id int); INSERT INTO tenant_t.numbers VALUES (7)",
    )
    .await
    .unwrap();
    let database = one_connection(&world).await;
    for _ in 0..3 {
        assert_eq!(ask(&database, "t").await, 1);
    }
    assert_eq!(prepared(&database).await, 1);
    psql.batch_execute("ALTER TABLE tenant_t.numbers ADD COLUMN more text")
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&database, "t").await, 2);
    }
    assert_eq!(prepared(&database).await, 1);
    // As a pooler does between two clients.
    database
        .get()
        .await
        .unwrap()
        .batch_execute("DEALLOCATE ALL")
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&database, "t").await, 2);
    }
    assert_eq!(prepared(&database).await, 1);
}

#[tokio::test]
async fn lock_timeout_is_reported_as_retryable() {
    let world = World::new().await;
    let psql = world.psql().await;
    psql.batch_execute("CREATE TABLE waits (id int)").await.unwrap();
    psql.batch_execute("BEGIN; LOCK TABLE waits").await.unwrap();
    let mut settings = world.config.postgres.clone();
    settings.lock_timeout_seconds = 1;
    let database = Database::connect(&settings).await.unwrap();
    let error = database
        .query(&Statement::composed("SELECT * FROM waits"), &[])
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("lock"), "{error}");
    psql.batch_execute("ROLLBACK").await.unwrap();
    database
        .query(&Statement::composed("SELECT * FROM waits"), &[])
        .await
        .unwrap();
}
