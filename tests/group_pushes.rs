//! Push for groups: what is new in a group wakes its members that are offline, and no other device.

use std::collections::BTreeSet;

use posduif::accounts::users::UserType;
use posduif::config::group::Groups;
use posduif::contract::group::GroupId;
use posduif::core::tenant::Tenant;
use posduif::engine::Role;
use posduif::sync::members;
use posduif::sync::tables::Routing;
use serde_json::json;
use uuid::Uuid;

use crate::groups;
use crate::push::{devices, pushed, quick, send, witness};
use crate::support::http::Api;
use crate::support::office::Office;

/// An office with lists and tasks, whose changes count.
async fn office() -> Office {
    let office = Office::with(|config| {
        quick(config);
        groups::configure(config);
        config.push.events = ["task_changed", "new_message"].map(str::to_owned).into();
    })
    .await;
    office.sql(groups::TABLES).await;
    office
}

/// A user with a phone that has all there is, a member of a list.
async fn member(office: &Office, name: &str, list: i64) -> (Api, Uuid) {
    let user = office.world.user("acme", name, UserType::Mobile).await;
    let api = office.bob.enroll(name, Some(&user.to_string())).await.0;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.list_members (list_id, user_id) VALUES ({list}, '{user}')"
        ))
        .await;
    office.world.published().await;
    sync(&api).await;
    (api, user)
}

async fn sync(api: &Api) {
    let (_, cursor) = api.sync(None).await;
    api.sync(Some(&cursor)).await;
}

async fn add_task(office: &Office, id: i64) {
    let statement = format!("INSERT INTO tenant_acme.tasks (id, list_id, title) VALUES ({id}, 1, 'task')");
    office.sql(&statement).await;
    office.world.published().await;
}

#[tokio::test]
async fn change_of_a_group_wakes_its_offline_members() {
    let office = office().await;
    let (ann, ann_id) = member(&office, "ann", 1).await;
    let (ben, _) = member(&office, "ben", 1).await;
    let (_, eve_id) = member(&office, "eve", 2).await;
    add_task(&office, 1).await;
    let first = pushed(&office.world, 2).await;
    assert_eq!(BTreeSet::from_iter(devices(&first)), ["ann", "ben"].into());
    for push in &first {
        assert_eq!((push.field("event"), push.field("pending")), ("task_changed", "1"));
    }
    // Each device once until it has synced.
    sync(&ann).await;
    add_task(&office, 2).await;
    assert_eq!(devices(&pushed(&office.world, 3).await[2..]), ["ann"]);
    send(&office, eve_id).await;
    let eve = pushed(&office.world, 4).await.remove(3);
    assert_eq!((eve.field("device_id"), eve.field("event")), ("eve", "new_message"));
    assert_eq!(eve.field("pending"), "1");

    // No former member.
    sync(&ann).await;
    sync(&ben).await;
    office
        .sql(&format!(
            "DELETE FROM tenant_acme.list_members WHERE user_id = '{ann_id}'"
        ))
        .await;
    add_task(&office, 3).await;
    assert_eq!(devices(&pushed(&office.world, 5).await[4..]), ["ben"]);
    send(&office, ann_id).await;
    let ann = pushed(&office.world, 6).await.remove(5);
    assert_eq!((ann.field("device_id"), ann.field("pending")), ("ann", "1"));

    // No member that has a stream, before it is closed.
    sync(&ben).await;
    let stream = ben.events("/sse/mobile/ben").await;
    add_task(&office, 4).await;
    send(&office, witness(&office, "witness").await).await;
    assert_eq!(devices(&pushed(&office.world, 7).await[6..]), ["witness"]);
    drop(stream);
    assert_eq!(devices(&pushed(&office.world, 8).await[7..]), ["ben"]);
    office.close().await;
}

#[tokio::test]
async fn lost_push_for_a_group_is_found_without_a_notice() {
    let office = office().await;
    member(&office, "ann", 1).await;
    add_task(&office, 1).await;
    assert_eq!(devices(&pushed(&office.world, 1).await), ["ann"]);
    let Office { world, engine, .. } = office;
    engine.stop().await;
    let (push, device) = (world.keys().push("acme"), world.keys().device("acme", "ann"));
    let _: i64 = world.ask_redis(&["DEL", &push]).await;
    let _: i64 = world.ask_redis(&["HDEL", &device, "pushed"]).await;
    let engine = world.engine(Role::Replicator).await;
    assert_eq!(devices(&pushed(&world, 1).await), ["ann"]);
    engine.stop().await;
}

#[tokio::test]
async fn members_of_a_group_are_read_in_pages() {
    const MEMBERS: usize = 120;
    let office = Office::open().await;
    let world = &office.world;
    let kinds = ["uuid", "text", "varchar(40)", "tenant_acme.member"];
    let psql = world.psql().await;
    psql.batch_execute("CREATE DOMAIN tenant_acme.member AS uuid")
        .await
        .unwrap();
    let mut groups = json!({});
    for (n, kind) in kinds.iter().enumerate() {
        groups[format!("list{n}")] = json!({"table": format!("members{n}"), "id": "list_id", "user": "user_id"});
        psql.batch_execute(&format!(
            "CREATE TABLE tenant_acme.members{n} (list_id bigint, user_id {kind}, deleted_at timestamptz);
             INSERT INTO tenant_acme.members{n} (list_id, user_id)
             SELECT list, gen_random_uuid()::text::{kind} FROM generate_series(1, {MEMBERS}), generate_series(1, 2) list;
             INSERT INTO tenant_acme.members{n} VALUES (1, NULL, NULL), (1, gen_random_uuid()::text::{kind}, now())"
        ))
        .await
        .unwrap();
    }
    let groups: Groups = serde_json::from_value(groups).unwrap();
    let (database, tenant) = (world.database().await, Tenant::named("acme").unwrap());
    let routing = Routing {
        rules: &[],
        groups: &groups,
        providers: &[],
    };
    for (n, kind) in kinds.iter().enumerate() {
        let group: GroupId = format!("list{n}:1").parse().unwrap();
        let (mut users, mut after, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let page = members::page(&database, &tenant, &group, routing, after.as_deref(), 50)
                .await
                .unwrap();
            users.extend(page.users);
            pages += 1;
            after = page.after;
            if after.is_none() {
                break;
            }
        }
        users.sort_unstable();
        let all = format!(
            "SELECT user_id::text::uuid FROM tenant_acme.members{n}
             WHERE list_id = 1 AND user_id IS NOT NULL AND deleted_at IS NULL"
        );
        let rows = psql.query(&all, &[]).await.unwrap();
        let mut expected: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        expected.sort_unstable();
        assert_eq!((users, pages), (expected, 3), "{kind}");
    }
    // What no configuration or table has.
    for unknown in ["room:1", "list0:x"] {
        let page = members::page(&database, &tenant, &unknown.parse().unwrap(), routing, None, 50)
            .await
            .unwrap();
        assert!(page.users.is_empty() && page.after.is_none());
    }
    office.close().await;
}
