//! Several rules for one table: a user reached by more than one of them receives each change once.

use std::collections::BTreeSet;

use posduif::accounts::users::UserType;
use posduif::config::Config;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Entry;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::stage::Stage;

const ORDERS: &str = "CREATE TABLE tenant_acme.orders (
    id text PRIMARY KEY, customer uuid, courier uuid, state text, deleted_at timestamptz)";

/// Two rules that name columns, each twice over, and one for everybody.
fn configure(config: &mut Config) {
    config.routes = serde_json::from_value(json!([
        {"table": "orders", "to": ["customer", "customer"], "event": "bought"},
        {"table": "orders", "to": ["courier", "customer"], "event": "carried", "when": {"changed": ["state"]}},
        {"table": "orders", "to": ["tenant"], "event": "offered", "when": {"equals": {"state": "open"}}},
    ]))
    .unwrap();
}

/// The changes of orders in a stream: operation, id and event.
fn delivered(entries: &[Entry]) -> Vec<(String, String, String)> {
    let orders = entries.iter().filter(|entry| entry.field("table") == "orders");
    orders
        .map(|entry| {
            let row = if entry.fields.contains_key("row") { "row" } else { "old" };
            let id = entry.json(row)["id"].as_str().unwrap().to_owned();
            (entry.field("op").to_owned(), id, entry.field("event").to_owned())
        })
        .collect()
}

fn expected(changes: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    let own = |(op, id, event): &(&str, &str, &str)| ((*op).to_owned(), (*id).to_owned(), (*event).to_owned());
    changes.iter().map(own).collect()
}

#[tokio::test]
async fn overlapping_rules_deliver_each_change_once() {
    let stage = Stage::with(configure).await;
    let (bob, joe, ann) = (stage.bob, stage.joe, stage.user("ann").await);
    stage.sql(ORDERS).await;
    for statement in [
        // The same user by both columns and both rules.
        format!("INSERT INTO tenant_acme.orders VALUES ('1', '{joe}', '{joe}', 'new')"),
        "UPDATE tenant_acme.orders SET state = 'packed'".to_owned(),
        // The second rule has nothing to say of this.
        "UPDATE tenant_acme.orders SET deleted_at = NULL".to_owned(),
        // Ann gets it by the second rule; Joe has it by the first one still.
        format!("UPDATE tenant_acme.orders SET courier = '{ann}'"),
        format!("UPDATE tenant_acme.orders SET customer = '{bob}', courier = '{bob}'"),
        // Into sight of all, and out of it again: for Bob it never goes.
        "UPDATE tenant_acme.orders SET state = 'open'".to_owned(),
        "UPDATE tenant_acme.orders SET state = 'closed'".to_owned(),
        "UPDATE tenant_acme.orders SET state = 'open', customer = NULL, courier = NULL".to_owned(),
        "DELETE FROM tenant_acme.orders".to_owned(),
    ] {
        stage.sql(&statement).await;
    }
    let inbox = async |user: Uuid| delivered(&stage.inbox(user).await);
    let joes = [
        ("insert", "1", "bought"),
        ("update", "1", "bought"),
        ("update", "1", "bought"),
        ("update", "1", "bought"),
        ("delete", "1", "bought"),
    ];
    assert_eq!(inbox(joe).await, expected(&joes));
    let anns = [("insert", "1", "carried"), ("delete", "1", "carried")];
    assert_eq!(inbox(ann).await, expected(&anns));
    // Where it is nothing else for him than for all, `shared` tells him too.
    let bobs = [
        ("insert", "1", "bought"),
        ("update", "1", "bought"),
        ("update", "1", "bought"),
        ("update", "1", "offered"),
    ];
    assert_eq!(inbox(bob).await, expected(&bobs));
    let all = [
        ("insert", "1", "offered"),
        ("delete", "1", "offered"),
        ("insert", "1", "offered"),
        ("delete", "1", "offered"),
    ];
    assert_eq!(delivered(&stage.shared().await), expected(&all));

    let changes = stage.changes().await;
    let ids: BTreeSet<_> = changes.iter().map(|entry| entry.id).collect();
    assert_eq!((delivered(&changes).len(), ids.len()), (9, changes.len()));
    check_nothing_is_wrong(&stage).await;
    stage.stop().await;
}

async fn check_nothing_is_wrong(stage: &Stage) {
    let keys = stage.world.keys();
    let mut redis = stage.world.redis().await;
    let stopped: Vec<String> = redis::cmd("HKEYS")
        .arg(keys.stopped())
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(stopped, Vec::<String>::new());
    assert_eq!(stage.world.stream(&keys.quarantine("acme")).await, []);
}

#[tokio::test]
async fn outbox_message_naming_a_user_twice_is_delivered_once() {
    let stage = Stage::new().await;
    let joe = stage.joe.to_string();
    for to in [
        json!([joe, joe]),
        json!([joe, joe.to_uppercase(), stage.joe.simple().to_string()]),
        json!([stage.bob, joe, stage.bob, joe]),
    ] {
        stage.world.emit("twice", &to, &json!(1)).await;
    }
    let messages = |inbox: &[Entry]| inbox.iter().filter(|entry| entry.field("event") == "twice").count();
    assert_eq!(messages(&stage.inbox(stage.joe).await), 3);
    assert_eq!(messages(&stage.inbox(stage.bob).await), 1);
    check_nothing_is_wrong(&stage).await;
    stage.stop().await;
}

/// What a sync brings of orders.
async fn synced(phone: &Api, cursor: &str) -> (Vec<Value>, String) {
    let (pages, cursor) = phone.sync(Some(cursor)).await;
    let changes = pages.iter().flat_map(|page| page["changes"].as_array().unwrap());
    let orders = changes.filter(|change| change["table"] == "orders");
    (orders.map(|order| json!([order["op"], order["id"]])).collect(), cursor)
}

#[tokio::test]
async fn shared_and_personal_rule_give_one_event_live_and_replayed() {
    let office = Office::with(configure).await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    let sally = office.bob.enroll("sallys", Some(&sally_id.to_string())).await.0;
    office.sql(ORDERS).await;
    // Acknowledged changes are not delivered again, so another device syncs.
    let (phone, tablet) = (office.phone("phone").await, office.phone("tablet").await);
    let (mut of_joe, mut of_sally) = (tablet.sync(None).await.1, sally.sync(None).await.1);
    let mut live = phone.events("/sse/mobile/phone").await;
    let mut sallys = sally.events("/sse/mobile/sallys").await;
    let start = live.cursor.clone();
    let joe = office.joe_id;
    let steps = [
        (
            format!("INSERT INTO tenant_acme.orders VALUES ('1', '{joe}', NULL, 'open')"),
            ("bought", "insert"),
            Some("insert"),
        ),
        (
            "UPDATE tenant_acme.orders SET state = 'closed'".to_owned(),
            ("bought", "update"),
            Some("delete"),
        ),
        (
            "UPDATE tenant_acme.orders SET state = 'again'".to_owned(),
            ("bought", "update"),
            None,
        ),
        (
            "UPDATE tenant_acme.orders SET state = 'open', customer = NULL".to_owned(),
            ("offered", "update"),
            Some("insert"),
        ),
    ];
    let mut seen = Vec::new();
    for (statement, (event, op), for_sally) in &steps {
        office.sql(statement).await;
        office.world.published().await;
        let received = live.next().await.unwrap();
        assert_eq!(
            (received.name.as_str(), &received.data["op"]),
            (*event, &json!(op)),
            "{statement}"
        );
        seen.push(received);
        if let Some(op) = for_sally {
            let event = sallys.next().await.unwrap();
            assert_eq!(
                (event.name.as_str(), &event.data["op"]),
                ("offered", &json!(op)),
                "{statement}"
            );
        }
        let orders;
        (orders, of_joe) = synced(&tablet, &of_joe).await;
        assert_eq!(orders, [json!([op, "1"])], "{statement}");
        let orders;
        (orders, of_sally) = synced(&sally, &of_sally).await;
        let expected: Vec<Value> = for_sally.iter().map(|op| json!([op, "1"])).collect();
        assert_eq!(orders, expected, "{statement}");
    }
    // A resumed stream delivers the same events again, and no others.
    let mut replayed = phone.events(&format!("/sse/mobile/phone?last_event_id={start}")).await;
    for event in &seen {
        assert_eq!(replayed.next().await.as_ref(), Some(event));
    }
    let message = office.send("the next").await;
    assert_eq!(replayed.expect("message").await.data["message_id"], message);
    office.close().await;
}

#[tokio::test]
async fn row_with_one_invalid_recipient_reaches_the_valid_ones() {
    let stage = Stage::with(|config| {
        config.routes = serde_json::from_value(json!([
            {"table": "orders", "to": ["customer", "courier"], "event": "order"},
            {"table": "orders", "to": ["absent"], "event": "never"},
            {"table": "orders", "to": ["witness"], "event": "witnessed"},
        ]))
        .unwrap();
    })
    .await;
    let (bob, joe, ann) = (stage.bob, stage.joe, stage.user("ann").await);
    stage
        .sql("CREATE TABLE tenant_acme.orders (id text PRIMARY KEY, customer text, courier text, witness uuid)")
        .await;
    for statement in [
        format!("INSERT INTO tenant_acme.orders VALUES ('1', '{joe}', 'somebody', '{ann}')"),
        // Joe loses it to nobody that there is.
        format!("UPDATE tenant_acme.orders SET customer = 'nobody', courier = '{bob}'"),
        // Mended: it is new to Joe.
        format!("UPDATE tenant_acme.orders SET customer = '{joe}'"),
        "DELETE FROM tenant_acme.orders".to_owned(),
    ] {
        stage.sql(&statement).await;
    }
    let inbox = async |user: Uuid| delivered(&stage.inbox(user).await);
    let joes = [
        ("insert", "1", "order"),
        ("delete", "1", "order"),
        ("insert", "1", "order"),
        ("delete", "1", "order"),
    ];
    assert_eq!(inbox(joe).await, expected(&joes));
    let bobs = [
        ("insert", "1", "order"),
        ("update", "1", "order"),
        ("delete", "1", "order"),
    ];
    assert_eq!(inbox(bob).await, expected(&bobs));
    assert_eq!(inbox(ann).await.len(), 4, "by a rule behind the one that does not fit");
    let quarantine = stage.world.stream(&stage.world.keys().quarantine("acme")).await;
    assert_eq!(
        quarantine.len(),
        4,
        "each says what is wrong with the rules, or the row"
    );
    stage.stop().await;
}
