//! The operator's own rules, and changes that cannot be routed by them.

use posduif::config::Config;
use posduif::config::rule::{Recipient, Rule, When};
use posduif::contract::control::{Command, Trim};
use posduif::contract::lua;
use posduif::contract::stream_name::Target;
use posduif::core::operation::Operation;
use posduif::core::position::StreamId;
use posduif::engine::Role;
use posduif::postgres::audit::Actor;
use posduif::postgres::tenants;
use uuid::Uuid;

use crate::support::stage::Stage;
use crate::support::{Entry, World};

fn rule(table: &str, to: &[&str], when: When) -> Rule {
    Rule {
        table: table.into(),
        to: to.iter().map(|column| Recipient::from(*column)).collect(),
        event: format!("{table}_changed"),
        when,
        ..Rule::default()
    }
}

fn delivered(entries: &[Entry], table: &str) -> Vec<(String, String)> {
    let of_table = entries.iter().filter(|entry| entry.field("table") == table);
    of_table
        .map(|entry| {
            let row = if entry.fields.contains_key("row") { "row" } else { "old" };
            let id = entry.json(row)["id"].as_str().unwrap().to_owned();
            assert_eq!(entry.field("event"), format!("{table}_changed"));
            (entry.field("op").to_owned(), id)
        })
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(op, id)| ((*op).to_owned(), (*id).to_owned()))
        .collect()
}

#[tokio::test]
async fn own_table_rule_delivers_to_users_in_its_columns() {
    let own = |config: &mut Config| {
        config.routes = vec![rule("orders", &["customer", "courier"], When::default())];
    };
    let stage = Stage::with(own).await;
    let (bob, joe, ann) = (stage.bob, stage.joe, stage.user("ann").await);
    stage
        .sql("CREATE TABLE tenant_acme.orders (id text PRIMARY KEY, customer uuid, courier uuid, state text)")
        .await;
    stage
        .sql(&format!(
            "INSERT INTO tenant_acme.orders VALUES ('1', '{bob}', NULL, 'new')"
        ))
        .await;
    stage
        .sql(&format!("UPDATE tenant_acme.orders SET courier = '{joe}'"))
        .await;
    stage.sql("UPDATE tenant_acme.orders SET state = 'packed'").await;
    stage
        .sql(&format!("UPDATE tenant_acme.orders SET courier = '{ann}'"))
        .await;
    stage.sql("UPDATE tenant_acme.orders SET courier = customer").await;
    stage.sql("DELETE FROM tenant_acme.orders").await;

    let inbox = async |user: Uuid| delivered(&stage.inbox(user).await, "orders");
    let by_bob = [
        ("insert", "1"),
        ("update", "1"),
        ("update", "1"),
        ("update", "1"),
        ("update", "1"),
        ("delete", "1"),
    ];
    assert_eq!(inbox(bob).await, pairs(&by_bob));
    assert_eq!(
        inbox(joe).await,
        pairs(&[("insert", "1"), ("update", "1"), ("delete", "1")])
    );
    assert_eq!(inbox(ann).await, pairs(&[("insert", "1"), ("delete", "1")]));
    stage.stop().await;
}

#[tokio::test]
async fn row_given_its_first_recipient_is_an_insert_for_that_user() {
    let own = |config: &mut Config| config.routes = vec![rule("tasks", &["assignee"], When::default())];
    let stage = Stage::with(own).await;
    let joe = stage.joe;
    stage
        .sql("CREATE TABLE tenant_acme.tasks (id text PRIMARY KEY, assignee uuid)")
        .await;
    stage.sql("INSERT INTO tenant_acme.tasks VALUES ('1', NULL)").await;
    stage
        .sql(&format!("UPDATE tenant_acme.tasks SET assignee = '{joe}'"))
        .await;
    stage.sql("UPDATE tenant_acme.tasks SET assignee = NULL").await;
    assert_eq!(
        delivered(&stage.inbox(joe).await, "tasks"),
        pairs(&[("insert", "1"), ("delete", "1")])
    );
    stage.stop().await;
}

#[tokio::test]
async fn conditional_rule_delivers_rows_that_enter_and_leave_it() {
    let own = |config: &mut Config| {
        let published = When {
            equals: [("state".to_owned(), "published".to_owned())].into(),
            ..When::default()
        };
        let noted = When {
            changed: vec!["title".into()],
            ..When::default()
        };
        let only_new = When {
            op: vec![Operation::Insert],
            ..When::default()
        };
        config.routes = vec![
            rule("articles", &["tenant"], published),
            rule("notes", &["owner"], noted),
            rule("alarms", &["owner"], only_new),
        ];
    };
    let stage = Stage::with(own).await;
    let (bob, joe) = (stage.bob, stage.joe);
    stage
        .sql(&format!(
            "CREATE TABLE tenant_acme.articles (id text PRIMARY KEY, state text, title text, deleted_at timestamptz);
             CREATE TABLE tenant_acme.notes (id text PRIMARY KEY, owner uuid, title text, views int);
             CREATE TABLE tenant_acme.alarms (id text PRIMARY KEY, owner uuid, seen boolean);
             INSERT INTO tenant_acme.articles VALUES ('draft', 'draft'), ('out', 'published');
             UPDATE tenant_acme.articles SET title = 'x';
             UPDATE tenant_acme.articles SET state = 'published' WHERE id = 'draft';
             UPDATE tenant_acme.articles SET state = 'withdrawn' WHERE id = 'out';
             UPDATE tenant_acme.articles SET deleted_at = now() WHERE id = 'draft';
             DELETE FROM tenant_acme.articles;
             INSERT INTO tenant_acme.notes VALUES ('n', '{bob}', 'a', 0);
             UPDATE tenant_acme.notes SET views = 1;
             UPDATE tenant_acme.notes SET title = 'b';
             UPDATE tenant_acme.notes SET owner = '{joe}';
             INSERT INTO tenant_acme.alarms VALUES ('a', '{joe}', false);
             UPDATE tenant_acme.alarms SET seen = true;
             DELETE FROM tenant_acme.alarms"
        ))
        .await;
    let shared = delivered(&stage.shared().await, "articles");
    let expected = [
        ("insert", "out"),
        ("update", "out"),
        ("insert", "draft"),
        ("delete", "out"),
        ("delete", "draft"),
    ];
    assert_eq!(shared, pairs(&expected));
    // A user who loses a row receives a delete, also when the owner column is not among those watched.
    assert_eq!(
        delivered(&stage.inbox(bob).await, "notes"),
        pairs(&[("insert", "n"), ("update", "n"), ("delete", "n")])
    );
    assert_eq!(delivered(&stage.inbox(joe).await, "notes"), pairs(&[("insert", "n")]));
    assert_eq!(delivered(&stage.inbox(joe).await, "alarms"), pairs(&[("insert", "a")]));
    stage.stop().await;
}

#[tokio::test]
async fn unroutable_change_is_quarantined_and_replication_continues() {
    let own = |config: &mut Config| {
        config.routes = vec![
            rule("orders", &["customer"], When::default()),
            rule("misfits", &["nobody"], When::default()),
        ];
    };
    let stage = Stage::with(own).await;
    let world = &stage.world;
    world.tenant("beta").await;
    let eve = world
        .user("beta", "eve", posduif::accounts::users::UserType::Mobile)
        .await;
    let joe = stage.joe;
    let create = "CREATE TABLE {schema}.orders (id text PRIMARY KEY, customer text)";
    for schema in ["tenant_acme", "tenant_beta"] {
        stage.sql(&create.replace("{schema}", schema)).await;
    }
    stage
        .sql("CREATE TABLE tenant_acme.misfits (id text PRIMARY KEY)")
        .await;
    stage
        .sql(&format!(
            "BEGIN;
             INSERT INTO tenant_acme.orders VALUES ('1', 'somebody');
             INSERT INTO tenant_acme.orders VALUES ('2', '{joe}');
             INSERT INTO tenant_acme.misfits VALUES ('3');
             INSERT INTO tenant_beta.orders VALUES ('4', '{eve}');
             COMMIT"
        ))
        .await;
    assert_eq!(delivered(&stage.inbox(joe).await, "orders"), pairs(&[("insert", "2")]));
    let beta = world.stream(&world.keys().inbox("beta", &eve.to_string())).await;
    assert_eq!(delivered(&beta, "orders"), pairs(&[("insert", "4")]));
    assert!(world.stream(&world.keys().quarantine("beta")).await.is_empty());

    let quarantine = world.stream(&world.keys().quarantine("acme")).await;
    let changes = stage.changes().await;
    let place = |id: &str| {
        let entry = changes.iter().find(|entry| entry.json("row")["id"] == id).unwrap();
        entry.id.to_string()
    };
    assert_eq!(quarantine.len(), 2);
    for (entry, id, cause) in [(&quarantine[0], "1", "somebody"), (&quarantine[1], "3", "nobody")] {
        assert_eq!(entry.json("row")["id"], id);
        assert_eq!(entry.field("position"), place(id), "the tenant's log has it too");
        assert!(entry.field("cause").contains(cause), "{}", entry.field("cause"));
    }
    stage.stop().await;
}

#[tokio::test]
async fn stream_key_of_wrong_type_stops_alone() {
    let stage = Stage::new().await;
    let key = stage.world.keys().inbox("acme", &stage.joe.to_string());
    stage.world.published().await;
    let mut redis = stage.world.redis().await;
    let _: i64 = redis::cmd("DEL").arg(&key).query_async(&mut redis).await.unwrap();
    let _: () = redis::cmd("SET")
        .arg(&key)
        .arg("not a stream")
        .query_async(&mut redis)
        .await
        .unwrap();
    let first = stage.message(stage.bob, stage.joe, "lost to Joe's stream").await;
    let second = stage.message(stage.bob, stage.joe, "too").await;
    let sent: Vec<Entry> = stage.inbox(stage.bob).await;
    for id in [first, second] {
        assert!(sent.iter().any(|entry| entry.json("row")["id"] == id.to_string()));
    }
    let quarantine = stage.world.stream(&stage.world.keys().quarantine("acme")).await;
    assert!(
        quarantine.iter().any(|entry| entry.field("cause").contains(&key)),
        "{quarantine:?}"
    );
    stage.stop().await;
}

#[tokio::test]
async fn quarantine_or_meta_key_of_wrong_type_starts_no_epoch() {
    let own = |config: &mut Config| config.routes = vec![rule("orders", &["customer"], When::default())];
    let stage = Stage::with(own).await;
    let (world, keys) = (&stage.world, stage.world.keys());
    world.tenant("beta").await;
    world.published().await;
    let mut redis = world.redis().await;
    for key in [keys.quarantine("acme"), keys.meta("acme")] {
        let _: i64 = redis::cmd("DEL").arg(&key).query_async(&mut redis).await.unwrap();
        let set = redis::cmd("SET")
            .arg(&key)
            .arg("somebody's")
            .query_async(&mut redis)
            .await;
        let () = set.unwrap();
    }
    stage
        .sql(
            "CREATE TABLE tenant_acme.orders (id text PRIMARY KEY, customer text);
             INSERT INTO tenant_acme.orders VALUES ('1', 'somebody')",
        )
        .await;
    let database = world.database().await;
    tenants::set_paused(&database, "acme", false, &Actor::cli())
        .await
        .unwrap();
    let trim = Trim {
        target: Target::Inbox("acme".into(), stage.joe),
        min_id: StreamId { ms: 1, seq: 1 },
    };
    tenants::send(&database, &Command::Trim(trim)).await.unwrap();
    let message = stage.message(stage.bob, stage.joe, "goes on").await;
    let inbox = stage.inbox(stage.joe).await;
    assert_eq!(inbox.last().unwrap().json("row")["id"], message.to_string());
    assert_eq!(world.checkpoint().await["number"], "1", "no new epoch");
    let beta = world.stream(&keys.changes("beta")).await;
    assert_eq!(
        beta.iter().map(|entry| entry.field("op")).collect::<Vec<_>>(),
        ["reset"]
    );

    // A resync mends what is the tenant's.
    tenants::resync(&database, "acme").await.unwrap();
    world.published().await;
    let generation: Option<i64> = redis::cmd("HGET")
        .arg(keys.meta("acme"))
        .arg("generation")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(generation, Some(2));
    stage.stop().await;
}

#[tokio::test]
async fn repeated_entry_below_a_reset_does_not_stop_the_stream_again() {
    let world = World::new().await;
    let key = world.keys().inbox("acme", "joe");
    for words in [
        ["XADD", &key, "1-0", "op", "reset"],
        ["XADD", &key, "5-0", "op", "insert"],
        ["XADD", &key, "9-0", "op", "reset"],
    ] {
        let _: String = world.ask_redis(&words).await;
    }
    let add = async |id: &str| -> Result<String, redis::RedisError> {
        let mut command = redis::cmd("EVAL");
        command
            .arg(lua::RECHECK)
            .arg(1)
            .arg(&key)
            .arg(id)
            .arg("op")
            .arg("insert");
        command.query_async(&mut world.redis().await).await
    };
    // There already; in the hole that the reset shows; new.
    for id in ["5-0", "7-0", "12-0"] {
        assert_eq!(add(id).await.unwrap(), id);
    }
    let entries = world.stream(&key).await;
    assert_eq!(
        entries.iter().map(|entry| entry.id.ms).collect::<Vec<_>>(),
        [1, 5, 9, 12]
    );
    assert!(add("11-0").await.is_err(), "no reset shows this hole");
}

#[tokio::test]
async fn stopped_stream_that_cannot_be_recreated_stays_stopped_over_restarts() {
    let mut stage = Stage::new().await;
    stage.world.published().await;
    let key = stage.world.keys().inbox("acme", &stage.joe.to_string());
    // Somebody's own entry, some megabytes of log ahead.
    let position: StreamId = stage.world.checkpoint().await["position"].parse().unwrap();
    let prefetch = StreamId {
        ms: position.ms + 8 * 1024 * 1024,
        seq: 1,
    };
    let add = ["XADD", &key, &prefetch.to_string(), "a", "b"];
    let _: String = stage.world.ask_redis(&add).await;
    stage.message(stage.bob, stage.joe, "refused").await;
    stage.world.published().await;
    assert_eq!(
        stage.world.stopped_streams().await,
        [format!("inbox acme {}", stage.joe)]
    );
    stage.engine.take().unwrap().stop().await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    stage.world.published().await;
    // Until the log has come beyond it.
    stage
        .sql("CREATE TABLE public.much AS SELECT repeat(md5(n::text), 20) FROM generate_series(1, 20000) n")
        .await;
    let message = stage.message(stage.bob, stage.joe, "behind the hole").await;
    let inbox = stage.inbox(stage.joe).await;
    let is_there = |entry: &Entry| entry.json("row")["id"] == message.to_string();
    let resets = inbox
        .iter()
        .skip(1)
        .filter(|entry| entry.field("op") == "reset")
        .count();
    assert!(
        !inbox.iter().any(is_there) || resets > 0,
        "a hole that nobody can see: {inbox:?}"
    );
    assert_eq!(stage.world.stopped_streams().await.len() + resets, 1);
    stage.engine.take().unwrap().stop().await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let inbox = stage.inbox(stage.joe).await;
    let resets = inbox
        .iter()
        .skip(1)
        .filter(|entry| entry.field("op") == "reset")
        .count();
    assert_eq!(
        (stage.world.stopped_streams().await.len(), resets),
        (0, 1),
        "it is recreated now"
    );
    stage.stop().await;
}
