//! Rules that change: devices that took their snapshot by others hold, after their next sync, what the new ones show.

use posduif::config::Config;
use posduif::engine::Role;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::http::Api;
use crate::support::office::Office;

const NOTES: &str =
    "CREATE TABLE tenant_acme.notes (id int PRIMARY KEY, owner_id uuid, helper_id uuid, title text, secret text)";

fn routes(rules: Value) -> impl FnOnce(&mut Config) {
    move |config| config.routes = serde_json::from_value(rules).unwrap()
}

/// A device and what it holds of the table.
struct Device {
    api: Api,
    cursor: Option<String>,
    rows: std::collections::BTreeMap<String, Value>,
    resets: usize,
}

impl Device {
    fn new(api: Api) -> Self {
        Self {
            api,
            cursor: None,
            rows: std::collections::BTreeMap::new(),
            resets: 0,
        }
    }

    async fn sync(&mut self) {
        let (pages, cursor) = self.api.sync(self.cursor.as_deref()).await;
        for page in pages {
            if page["reset"] == true {
                self.rows.clear();
                self.resets += 1;
            }
            for change in page["changes"].as_array().unwrap() {
                let id = change["id"].as_str().unwrap().to_owned();
                match (change["table"].as_str(), change["op"].as_str()) {
                    (Some("notes"), Some("delete")) => drop(self.rows.remove(&id)),
                    (Some("notes"), _) => drop(self.rows.insert(id, change["row"].clone())),
                    _ => {}
                }
            }
        }
        self.cursor = Some(cursor);
    }

    fn titles(&self) -> Vec<&str> {
        self.rows.values().map(|row| row["title"].as_str().unwrap()).collect()
    }
}

/// An office with these rules and the table, and the devices of joe and of the helper sally.
async fn office(rules: Value) -> (Office, Device, Device) {
    let office = Office::with(routes(rules)).await;
    let sally = office
        .world
        .user("acme", "sally", posduif::accounts::users::UserType::Mobile)
        .await;
    office.sql(NOTES).await;
    let joe = office.joe_id;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.notes VALUES (1, '{joe}', '{sally}', 'one', 'hidden'), (2, '{joe}', NULL, 'two', 'hidden')"
        ))
        .await;
    office.world.published().await;
    let joes = Device::new(office.phone("joes").await);
    let sallys = Device::new(office.bob.enroll("sallys", Some(&sally.to_string())).await.0);
    (office, joes, sallys)
}

/// Waits until an engine that has just started has published what it asked for when it took the slot over.
async fn published(office: &Office) {
    let admin = office.engine.api().admin();
    eventually("the engine streams", || async {
        let ready = admin.get("/ready").await.json();
        (ready["checks"]["replication"]["state"] == "streaming").then_some(())
    })
    .await;
    office.world.published().await;
}

/// Restarts the engine with other rules, and syncs the devices.
async fn restart(office: &mut Office, rules: Value, devices: [&mut Device; 2]) {
    routes(rules)(&mut office.world.config);
    let engine = office.world.engine(Role::All).await;
    let former = std::mem::replace(&mut office.engine, engine);
    former.stop().await;
    published(office).await;
    for device in devices {
        device.api = device.api.at(&office.engine.api());
        device.sync().await;
    }
}

fn owners() -> Value {
    json!({"table": "notes", "to": ["owner_id"]})
}

#[tokio::test]
async fn rule_that_is_new_wider_narrower_or_gone_counts_for_rows_of_before() {
    let (mut office, mut joes, mut sallys) = office(json!([])).await;
    joes.sync().await;
    sallys.sync().await;
    assert_eq!((joes.titles(), sallys.titles()), (vec![], vec![]));

    restart(&mut office, json!([owners()]), [&mut joes, &mut sallys]).await;
    assert_eq!((joes.titles(), sallys.titles()), (vec!["one", "two"], vec![]));

    let both = json!({"table": "notes", "to": ["owner_id", "helper_id"], "columns": ["title"]});
    restart(&mut office, json!([both]), [&mut joes, &mut sallys]).await;
    assert_eq!((joes.titles(), sallys.titles()), (vec!["one", "two"], vec!["one"]));
    assert!(joes.rows["1"].get("secret").is_none(), "{:?}", joes.rows["1"]);

    let some = json!({"table": "notes", "to": ["owner_id"], "when": {"equals": {"title": "two"}}});
    restart(&mut office, json!([some]), [&mut joes, &mut sallys]).await;
    assert_eq!((joes.titles(), sallys.titles()), (vec!["two"], vec![]));

    restart(&mut office, json!([]), [&mut joes, &mut sallys]).await;
    assert_eq!((joes.titles(), sallys.titles()), (vec![], vec![]));
    assert_eq!((joes.resets, sallys.resets), (5, 5));
    let quarantined = office.world.stream(&office.world.keys().quarantine("acme")).await;
    assert_eq!(quarantined.len(), 4);
    assert!(quarantined.iter().all(|entry| entry.field("kind") == "table"));
    office.close().await;
}

#[tokio::test]
async fn rows_that_end_while_their_rule_goes_leave_the_devices() {
    let (mut office, mut joes, mut sallys) = office(json!([owners()])).await;
    joes.sync().await;
    sallys.sync().await;
    assert_eq!((joes.titles(), sallys.titles()), (vec!["one", "two"], vec![]));
    // No engine reads this by the former rule, and the table has no rows when the rule goes.
    routes(json!([]))(&mut office.world.config);
    office.engine = {
        let (world, engine) = (&office.world, office.engine);
        engine.stop().await;
        let psql = world.psql().await;
        psql.batch_execute("TRUNCATE tenant_acme.notes").await.unwrap();
        world.engine(Role::All).await
    };
    published(&office).await;
    joes.api = joes.api.at(&office.engine.api());
    joes.sync().await;
    assert_eq!((joes.titles(), joes.resets), (vec![], 2));
    office.close().await;
}

#[tokio::test]
async fn unchanged_rules_and_tables_without_rows_lead_to_no_snapshot() {
    let (mut office, mut joes, mut sallys) = office(json!([owners()])).await;
    office
        .sql("CREATE TABLE tenant_acme.empty (id int PRIMARY KEY, owner_id uuid)")
        .await;
    joes.sync().await;
    sallys.sync().await;
    let mut loud = owners();
    loud["event"] = json!("note");
    restart(&mut office, json!([loud]), [&mut joes, &mut sallys]).await;
    let empty = json!({"table": "empty", "to": ["owner_id"]});
    let absent = json!({"table": "absent", "to": ["owner_id"]});
    restart(&mut office, json!([owners(), empty, absent]), [&mut joes, &mut sallys]).await;
    assert_eq!((joes.titles(), joes.resets), (vec!["one", "two"], 1));
    assert_eq!((sallys.titles(), sallys.resets), (vec![], 1));
    office.close().await;
}
