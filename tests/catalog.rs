//! What the log does not have: old rows without a full replica identity, and changes of tables that are in no log.

use std::collections::BTreeMap;

use posduif::config::Config;
use posduif::config::rule::{Rule, When};
use posduif::postgres::audit::Actor;
use posduif::postgres::{publication, tenants};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::owner::Owner;
use crate::support::scrape::Scrape;
use crate::support::{Entry, World};

const NOTES: &str = "CREATE TABLE tenant_acme.notes (id int, owner uuid, body text, day date, PRIMARY KEY (id, day)) \
                     PARTITION BY RANGE (day); \
                     CREATE TABLE tenant_acme.notes_01 PARTITION OF tenant_acme.notes \
                     FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');";

const FEBRUARY: &str = "CREATE TABLE tenant_acme.notes_02 PARTITION OF tenant_acme.notes \
                        FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')";

fn note_rule() -> Rule {
    Rule {
        table: "notes".into(),
        to: vec!["owner".into()],
        event: "note".into(),
        when: When::default(),
        ..Rule::default()
    }
}

fn watched(config: &mut Config) {
    config.routes = vec![note_rule()];
    config.replication.catalog_interval_seconds = 1;
}

fn unwatched(config: &mut Config) {
    config.routes = vec![note_rule()];
}

/// A database whose engine is no superuser, as on managed servers.
struct Managed {
    office: Office,
    owner: Owner,
}

impl Managed {
    async fn open(change: fn(&mut Config)) -> Self {
        let mut world = World::new().await;
        let owner = Owner::of(&mut world).await;
        let office = Office::within(world, change).await;
        Self { office, owner }
    }

    /// Runs statements, then publishes the tables that they made.
    async fn make(&self, statements: &str) {
        self.office.sql(statements).await;
        publish(&self.office).await;
    }

    async fn close(self) {
        let Self { office, owner } = self;
        office.engine.stop().await;
        owner.remove().await;
        drop(office.world);
    }
}

async fn publish(office: &Office) {
    let database = office.world.database().await;
    publication::sync(&database, &office.world.config.replication.publication)
        .await
        .unwrap();
    office.world.published().await;
}

/// A phone that stores the notes that it receives.
struct Phone {
    api: Api,
    cursor: Option<String>,
    notes: BTreeMap<String, Value>,
    snapshots: usize,
}

impl Phone {
    async fn new(office: &Office, device: &str, user: Uuid) -> Self {
        let api = office.bob.enroll(device, Some(&user.to_string())).await.0;
        let mut phone = Self {
            api,
            cursor: None,
            notes: BTreeMap::new(),
            snapshots: 0,
        };
        phone.sync().await;
        phone
    }

    async fn sync(&mut self) {
        let (pages, cursor) = self.api.sync(self.cursor.as_deref()).await;
        self.cursor = Some(cursor);
        for page in &pages {
            if page["reset"] == true {
                self.notes.clear();
                self.snapshots += 1;
            }
            for change in page["changes"].as_array().unwrap() {
                if change["table"] != "notes" {
                    continue;
                }
                let id = change["id"].as_str().unwrap().to_owned();
                if change["op"] == "delete" {
                    self.notes.remove(&id);
                } else {
                    self.notes.insert(id, change["row"].clone());
                }
            }
        }
    }

    /// Syncs until it holds what is expected.
    async fn holds(&mut self, what: &str, fits: impl Fn(&BTreeMap<String, Value>) -> bool) {
        let phone = Mutex::new(self);
        eventually(&format!("the phone holds {what}"), || async {
            let mut phone = phone.lock().await;
            phone.sync().await;
            fits(&phone.notes).then_some(())
        })
        .await;
    }

    async fn holds_ids(&mut self, ids: &[&str]) {
        self.holds(&format!("exactly {ids:?}"), |notes| notes.keys().eq(ids))
            .await;
    }
}

async fn quarantine(office: &Office) -> Vec<Entry> {
    office.world.published().await;
    office.world.stream(&office.world.keys().quarantine("acme")).await
}

/// Waits until the watch has seen a change of this kind.
async fn noticed(office: &Office, kind: &str) {
    let sample = format!("catalog_changes_total{{kind=\"{kind}\"}}");
    eventually("the change of the catalog is noticed", || async {
        (Scrape::of(&office.anybody).await.get(&sample) >= 1.0).then_some(())
    })
    .await;
}

/// Waits until the watch has seen the tables as they are now.
async fn recorded(office: &Office) {
    let psql = office.world.psql().await;
    let unknown = "SELECT FROM pg_class class JOIN pg_namespace schema ON schema.oid = class.relnamespace \
                   WHERE schema.nspname = 'tenant_acme' AND class.relkind IN ('r', 'p') \
                   AND NOT EXISTS (SELECT FROM posduif.tables known WHERE known.relation = class.oid)";
    eventually("the tables are recorded", || async {
        psql.query(unknown, &[]).await.unwrap().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn rows_of_a_partition_made_while_running_reach_every_phone() {
    let managed = Managed::open(watched).await;
    let office = &managed.office;
    let ann = office
        .world
        .user("acme", "ann", posduif::accounts::users::UserType::Mobile)
        .await;
    managed.make(NOTES).await;
    let (joe_id, mut joe) = (office.joe_id, Phone::new(office, "joe", office.joe_id).await);
    let mut anns = Phone::new(office, "ann", ann).await;
    recorded(office).await;
    office
        .sql(&format!(
            "{FEBRUARY}; INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', 'moves', '2026-02-02'), \
             (2, '{joe_id}', 'goes', '2026-02-02'), (3, '{joe_id}', 'stays', '2026-02-02');"
        ))
        .await;
    joe.holds_ids(&["1", "2", "3"]).await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.notes SET owner = '{ann}' WHERE id = 1; DELETE FROM tenant_acme.notes WHERE id = 2;"
        ))
        .await;
    joe.holds_ids(&["3"]).await;
    anns.holds_ids(&["1"]).await;
    eventually("the partition has the identity of old rows", || async {
        let identity = "SELECT relreplident = 'f' FROM pg_class WHERE oid = 'tenant_acme.notes_02'::regclass";
        let row = office.world.psql().await.query_one(identity, &[]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    managed.close().await;
}

#[tokio::test]
async fn delete_in_a_partition_without_old_rows_resets_the_tenant() {
    let managed = Managed::open(unwatched).await;
    let (office, joe_id) = (&managed.office, managed.office.joe_id);
    managed.make(NOTES).await;
    let mut joe = Phone::new(office, "joe", joe_id).await;
    office
        .sql(&format!(
            "{FEBRUARY}; INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', 'a', '2026-02-02'), \
             (2, '{joe_id}', 'b', '2026-02-02'), (3, '{joe_id}', 'c', '2026-02-02');"
        ))
        .await;
    joe.holds_ids(&["1", "2", "3"]).await;
    office.sql("DELETE FROM tenant_acme.notes WHERE id = 1").await;
    joe.holds_ids(&["2", "3"]).await;
    // The key changes: the log has the former key only.
    office.sql("UPDATE tenant_acme.notes SET id = 4 WHERE id = 2").await;
    joe.holds_ids(&["3", "4"]).await;
    // No old row at all.
    office
        .sql("UPDATE tenant_acme.notes SET owner = NULL WHERE id = 3")
        .await;
    joe.holds_ids(&["4"]).await;
    let quarantined = quarantine(office).await;
    assert_eq!(quarantined.len(), 1, "once for the table: {quarantined:?}");
    assert_eq!(
        (quarantined[0].field("kind"), quarantined[0].field("table")),
        ("table", "notes")
    );
    assert!(
        quarantined[0].field("cause").contains("REPLICA IDENTITY"),
        "{quarantined:?}"
    );
    let log = office.world.stream(&office.world.keys().changes("acme")).await;
    let old: Vec<Value> = log
        .iter()
        .filter(|entry| entry.field("table") == "notes" && ["update", "delete"].contains(&entry.field("op")))
        .map(|entry| entry.json("old"))
        .collect();
    let key = |id: i32| json!({"id": id, "day": "2026-02-02"});
    assert_eq!(old, [key(1), key(2), Value::Null], "nothing that the log does not have");
    managed.close().await;
}

#[tokio::test]
async fn whole_old_rows_of_a_partition_reset_nobody() {
    let office = Office::with(unwatched).await;
    office.sql(&format!("{NOTES}; {FEBRUARY}")).await;
    let joe_id = office.joe_id;
    let mut joe = Phone::new(&office, "joe", joe_id).await;
    let snapshots = joe.snapshots;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', NULL, '2026-02-02'), (2, '{joe_id}', 'b', '2026-01-02');
             UPDATE tenant_acme.notes SET body = 'c' WHERE id = 1; DELETE FROM tenant_acme.notes WHERE id = 2;
             UPDATE tenant_acme.notes SET day = '2026-01-05' WHERE id = 1;"
        ))
        .await;
    joe.holds("the moved note", |notes| {
        notes.len() == 1 && notes.get("1").is_some_and(|note| note["day"] == "2026-01-05")
    })
    .await;
    assert_eq!(joe.snapshots, snapshots);
    assert!(quarantine(&office).await.is_empty());
    office.close().await;
}

#[tokio::test]
async fn key_only_delete_of_a_message_resets_the_tenant() {
    let managed = Managed::open(unwatched).await;
    let office = &managed.office;
    let phone = office.phone("phone").await;
    let (first, second) = (office.send("first").await, office.send("second").await);
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    office
        .sql(&format!(
            "ALTER TABLE tenant_acme.messages REPLICA IDENTITY DEFAULT;
             DELETE FROM tenant_acme.messages WHERE id = '{first}'; DELETE FROM tenant_acme.messages WHERE id = '{second}'"
        ))
        .await;
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["reset"], true, "{pages:?}");
    let quarantined = quarantine(office).await;
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    assert_eq!(quarantined[0].field("kind"), "table");
    let log = office.world.stream(&office.world.keys().changes("acme")).await;
    let deleted = log.iter().rev().find(|entry| entry.field("op") == "delete").unwrap();
    assert_eq!(deleted.json("old"), json!({"id": second}));
    managed.close().await;
}

#[tokio::test]
async fn changed_identity_is_repaired_and_its_tenant_resynced() {
    let managed = Managed::open(watched).await;
    let office = &managed.office;
    recorded(office).await;
    office
        .sql("ALTER TABLE tenant_acme.messages REPLICA IDENTITY DEFAULT")
        .await;
    noticed(office, "identity").await;
    let identity = "SELECT relreplident = 'f' FROM pg_class WHERE oid = 'tenant_acme.messages'::regclass";
    let psql = office.world.psql().await;
    assert!(psql.query_one(identity, &[]).await.unwrap().get::<_, bool>(0));
    let quarantined = quarantine(office).await;
    assert!(quarantined[0].field("cause").contains("messages"), "{quarantined:?}");
    managed.close().await;
}

/// A phone with two notes, and what it holds after a statement that the log has nothing of.
async fn after(statement: &str, fits: impl Fn(&BTreeMap<String, Value>) -> bool) {
    let office = Office::with(watched).await;
    let joe_id = office.joe_id;
    office
        .sql(&format!(
            "{NOTES} INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', '10', '2026-01-02'), (2, '{joe_id}', '20', '2026-01-03')"
        ))
        .await;
    recorded(&office).await;
    let mut joe = Phone::new(&office, "joe", joe_id).await;
    joe.holds_ids(&["1", "2"]).await;
    office.sql(statement).await;
    joe.holds(statement, fits).await;
    let quarantined = quarantine(&office).await;
    assert!(
        quarantined.iter().any(|entry| entry.field("kind") == "table"),
        "{quarantined:?}"
    );
    office.close().await;
}

#[tokio::test]
async fn rewritten_column_reaches_phones() {
    let times_two = "ALTER TABLE tenant_acme.notes ALTER COLUMN body TYPE text USING (body::int * 2)::text";
    after(times_two, |notes| notes.values().any(|note| note["body"] == "40")).await;
}

#[tokio::test]
async fn added_column_with_volatile_default_reaches_phones() {
    let add = "ALTER TABLE tenant_acme.notes ADD COLUMN tag text NOT NULL DEFAULT md5(random()::text)";
    after(add, |notes| {
        !notes.is_empty() && notes.values().all(|note| note["tag"].is_string())
    })
    .await;
}

#[tokio::test]
async fn truncated_partition_leaves_phones() {
    after("TRUNCATE tenant_acme.notes_01", BTreeMap::is_empty).await;
}

#[tokio::test]
async fn change_before_the_first_look_at_a_tenant_reaches_phones() {
    // As after a restore of Postgres to a copy from before that look.
    let attach = "DELETE FROM posduif.tables WHERE tenant = 'acme';
         CREATE TABLE tenant_acme.notes_02 (LIKE tenant_acme.notes INCLUDING ALL);
         INSERT INTO tenant_acme.notes_02 SELECT 3, owner, 'attached', '2026-02-02' FROM tenant_acme.notes WHERE id = 1;
         ALTER TABLE tenant_acme.notes ATTACH PARTITION tenant_acme.notes_02 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')";
    after(attach, |notes| notes.contains_key("3")).await;
}

#[tokio::test]
async fn detached_partition_leaves_phones() {
    let detach = "ALTER TABLE tenant_acme.notes DETACH PARTITION tenant_acme.notes_01";
    after(detach, BTreeMap::is_empty).await;
}

#[tokio::test]
async fn dropped_table_leaves_phones() {
    after("DROP TABLE tenant_acme.notes", BTreeMap::is_empty).await;
}

#[tokio::test]
async fn attached_partition_with_rows_reaches_phones() {
    let attach = "CREATE TABLE tenant_acme.notes_02 (LIKE tenant_acme.notes INCLUDING ALL);
         INSERT INTO tenant_acme.notes_02 SELECT 3, owner, 'attached', '2026-02-02' FROM tenant_acme.notes WHERE id = 1;
         ALTER TABLE tenant_acme.notes ATTACH PARTITION tenant_acme.notes_02 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')";
    after(attach, |notes| notes.contains_key("3")).await;
}

#[tokio::test]
async fn table_taken_out_of_the_publication_returns_with_its_rows() {
    let managed = Managed::open(watched).await;
    let (office, joe_id) = (&managed.office, managed.office.joe_id);
    managed.make(NOTES).await;
    recorded(office).await;
    let mut joe = Phone::new(office, "joe", joe_id).await;
    let publication = &office.world.config.replication.publication;
    office
        .sql(&format!(
            "ALTER PUBLICATION {publication} DROP TABLE tenant_acme.notes;
             INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', 'unpublished', '2026-01-02')"
        ))
        .await;
    joe.holds_ids(&["1"]).await;
    office.sql("DELETE FROM tenant_acme.notes").await;
    joe.holds_ids(&[]).await;
    managed.close().await;
}

#[tokio::test]
async fn rows_of_a_renamed_schema_reach_nobody_until_it_returns() {
    let office = Office::with(watched).await;
    let joe_id = office.joe_id;
    office.sql(NOTES).await;
    recorded(&office).await;
    let insert =
        |schema: &str, id: i32| format!("INSERT INTO {schema}.notes VALUES ({id}, '{joe_id}', 'a', '2026-01-02')");
    office.sql(&insert("tenant_acme", 1)).await;
    office.sql("ALTER SCHEMA tenant_acme RENAME TO tenant_old").await;
    noticed(&office, "moved").await;
    office.sql(&insert("tenant_old", 2)).await;
    office.world.published().await;
    let inbox = office
        .world
        .stream(&office.world.keys().inbox("acme", &joe_id.to_string()))
        .await;
    let ids: Vec<Value> = inbox
        .iter()
        .filter(|entry| entry.field("event") == "note")
        .map(|entry| entry.json("row")["id"].clone())
        .collect();
    assert_eq!(ids, [json!(1)]);
    office.sql("ALTER SCHEMA tenant_old RENAME TO tenant_acme").await;
    let mut joe = Phone::new(&office, "joe", joe_id).await;
    joe.holds_ids(&["1", "2"]).await;
    office.sql(&insert("tenant_acme", 3)).await;
    joe.holds_ids(&["1", "2", "3"]).await;
    office.close().await;
}

#[tokio::test]
async fn rows_of_a_schema_that_had_another_name_for_a_moment_arrive() {
    let office = Office::with(unwatched).await;
    let joe_id = office.joe_id;
    office.sql(NOTES).await;
    let mut joe = Phone::new(&office, "joe", joe_id).await;
    let insert =
        |schema: &str, id: i32| format!("INSERT INTO {schema}.notes VALUES ({id}, '{joe_id}', 'a', '2026-01-02')");
    // The walsender sees the table for the first time while its schema has another name, and goes on to use that.
    let moment = format!(
        "BEGIN; ALTER SCHEMA tenant_acme RENAME TO tenant_old; {}; ALTER SCHEMA tenant_old RENAME TO tenant_acme; COMMIT",
        insert("tenant_old", 1)
    );
    office.sql(&moment).await;
    joe.holds_ids(&["1"]).await;
    office.sql(&insert("tenant_acme", 2)).await;
    joe.holds_ids(&["1", "2"]).await;
    office.close().await;
}

#[tokio::test]
async fn harmless_ddl_resyncs_nobody() {
    let office = Office::with(watched).await;
    let joe_id = office.joe_id;
    office
        .sql(&format!(
            "{NOTES} INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', 'a', '2026-01-02')"
        ))
        .await;
    recorded(&office).await;
    // The first look may have found rows in a partition.
    let quarantined = quarantine(&office).await;
    let mut joe = Phone::new(&office, "joe", joe_id).await;
    let snapshots = joe.snapshots;
    office
        .sql(&format!(
            "ALTER TABLE tenant_acme.notes ADD COLUMN tag text; CREATE INDEX ON tenant_acme.notes (body);
             ANALYZE tenant_acme.notes; {FEBRUARY}; CREATE TABLE tenant_acme.last (id int PRIMARY KEY)"
        ))
        .await;
    recorded(&office).await;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (2, '{joe_id}', 'b', '2026-02-02')"
        ))
        .await;
    joe.holds_ids(&["1", "2"]).await;
    assert_eq!(joe.snapshots, snapshots);
    assert_eq!(quarantine(&office).await.len(), quarantined.len());
    office.close().await;
}

#[tokio::test]
async fn table_of_another_owner_resyncs_its_tenant_once() {
    let managed = Managed::open(watched).await;
    let (office, joe_id) = (&managed.office, managed.office.joe_id);
    managed.make(NOTES).await;
    recorded(office).await;
    let mut joe = Phone::new(office, "joe", joe_id).await;
    managed
        .owner
        .admin
        .batch_execute(
            "ALTER TABLE tenant_acme.notes_01 OWNER TO CURRENT_USER;
             ALTER TABLE tenant_acme.notes_01 REPLICA IDENTITY DEFAULT",
        )
        .await
        .unwrap();
    noticed(office, "identity").await;
    eventually("the table is named", || async {
        let ready = office.anybody.admin().get("/ready").await.json();
        let unrepaired = &ready["checks"]["replication"]["unrepaired_tables"];
        (*unrepaired == json!(["tenant_acme.notes_01"])).then_some(())
    })
    .await;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (1, '{joe_id}', 'a', '2026-01-02')"
        ))
        .await;
    joe.holds_ids(&["1"]).await;
    office.sql("DELETE FROM tenant_acme.notes").await;
    joe.holds_ids(&[]).await;
    let identities = quarantine(office).await;
    let resyncs = identities
        .iter()
        .filter(|entry| entry.field("cause").contains("notes_01"));
    assert_eq!(resyncs.count(), 1, "{identities:?}");
    managed.close().await;
}

#[tokio::test]
async fn commands_sent_while_unpublished_take_effect() {
    let office = Office::with(watched).await;
    let phone = office.phone("phone").await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    let publication = &office.world.config.replication.publication;
    let database = office.world.database().await;
    // Locked, so that the watch comes after the command.
    let psql = office.world.psql().await;
    psql.batch_execute(&format!(
        "BEGIN; LOCK TABLE posduif.tables; ALTER PUBLICATION {publication} DROP TABLE posduif.commands"
    ))
    .await
    .unwrap();
    psql.batch_execute(
        "UPDATE posduif.tenants SET state = 'paused' WHERE name = 'acme';
         INSERT INTO posduif.commands (name, arguments) VALUES ('set_state', 'acme paused'); COMMIT",
    )
    .await
    .unwrap();
    eventually("the tenant is paused", || async {
        (phone.get("/api/sync/incoming").await.status.as_u16() == 503).then_some(())
    })
    .await;
    assert!(
        tenants::set_paused(&database, "acme", false, &Actor::cli())
            .await
            .unwrap()
    );
    office.world.published().await;
    let page = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(page["reset"], true, "what was commanded is unknown: {page}");
    office.close().await;
}
