//! Pages before and after a row: under concurrent writes each row that was there comes once and in order.

use posduif::accounts::users::UserType;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::Api;
use crate::support::office::{Office, id, ids};

/// One page: its rows, and whether there are more.
async fn page(of: &Api, list: &str, query: &str) -> (Vec<Value>, bool) {
    let answer = of.get(&format!("/api/{list}?{query}")).await.expect(200);
    (answer[list].as_array().unwrap().clone(), answer["has_more"] == true)
}

/// The ids of a whole list by offset, in pages of three.
async fn all(of: &Api, list: &str, query: &str) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let path = format!("/api/{list}?limit=3&offset={}&{query}", found.len());
        let answer = of.get(&path).await.expect(200);
        found.extend(ids(&answer[list]));
        let has_more = answer["has_more"].as_bool().unwrap();
        assert_eq!(
            has_more,
            found.len() < answer["total"].as_u64().unwrap() as usize,
            "{path}: {answer}"
        );
        if !has_more {
            return found;
        }
    }
}

/// A list from behind its first row to its end, in pages of two; `between` is done between two pages.
async fn walk(of: &Api, list: &str, query: &str, direction: &str, from: &str, between: impl AsyncFn()) -> Vec<String> {
    let (mut found, mut last) = (Vec::new(), from.to_owned());
    loop {
        let (rows, has_more) = page(of, list, &format!("limit=2&{direction}={last}&{query}")).await;
        assert!(rows.len() == 2 || !has_more, "a page that is not full is the last");
        // Rows stand in the list's order, so that going up the list the first is the farthest.
        let is_upwards = (direction == "after") != (list == "users");
        let farthest = if is_upwards { rows.first() } else { rows.last() };
        last = farthest.map_or(last, id);
        let page = rows.iter().map(id);
        if is_upwards {
            found = page.chain(found).collect();
        } else {
            found.extend(page);
        }
        if !has_more {
            return found;
        }
        between().await;
    }
}

#[tokio::test]
async fn message_pages_stay_stable_under_concurrent_writes() {
    let office = Office::open().await;
    // Many of one moment, so that only their ids order them; and some that came, not only sent ones.
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content, created_at)
             SELECT CASE WHEN n % 3 = 0 THEN '{joe}'::uuid ELSE '{bob}' END,
                    CASE WHEN n % 3 = 0 THEN '{bob}'::uuid ELSE '{joe}' END, n,
                    '2024-01-15T10:00:00Z'::timestamptz + n / 4 * interval '1 second'
             FROM generate_series(1, 13) n",
            joe = office.joe_id,
            bob = office.bob_id
        ))
        .await;
    let before = all(&office.bob, "messages", "").await;
    assert_eq!(before.len(), 13);
    let walked = walk(&office.bob, "messages", "", "before", &before[0], async || {
        office.send("written between two pages").await;
    })
    .await;
    assert_eq!(walked, before[1..]);
    // The pages by offset have shifted meanwhile.
    assert_ne!(all(&office.bob, "messages", "").await[..13], before[..]);

    // And up again, from the oldest: what came meanwhile is at the end.
    let now = all(&office.bob, "messages", "").await;
    let (oldest, others) = now.split_last().unwrap();
    let walked = walk(&office.bob, "messages", "", "after", oldest, async || {}).await;
    assert_eq!(walked, others);

    // A row is a place also when it is deleted, or does not pass the filter.
    let middle = &before[6];
    let filter = format!("recipient_id={}", office.bob_id);
    let expected: Vec<String> = {
        let came = all(&office.bob, "messages", &filter).await;
        came.into_iter().filter(|id| before[7..].contains(id)).collect()
    };
    assert!(!expected.is_empty());
    office
        .sql(&format!(
            "UPDATE tenant_acme.messages SET deleted_at = now() WHERE id = '{middle}'"
        ))
        .await;
    assert_eq!(
        walk(&office.bob, "messages", &filter, "before", middle, async || {}).await,
        expected
    );
    office.close().await;
}

#[tokio::test]
async fn page_anchor_must_be_a_row_of_the_list() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let mine = office.send("mine").await;
    office.world.user("acme", "jane", UserType::Web).await;
    let jane = office.anybody.log_in("acme", "jane").await;
    let refused = async |of: &Api, query: &str, field: &str| {
        let answer = of.get(&format!("/api/messages?{query}")).await;
        let code = (answer.status.as_u16(), answer.code());
        assert_eq!(code, (400, "VALIDATION_ERROR".into()), "{query}");
        assert_eq!(answer.json()["error"]["details"]["field"], field, "{query}");
    };
    for (direction, query) in [("before", "before="), ("after", "after=")] {
        refused(&office.bob, &format!("{query}nonsense"), direction).await;
        refused(&office.bob, &format!("{query}{}", Uuid::new_v4()), direction).await;
        // Others' messages are no place, as if there were none.
        refused(&jane, &format!("{query}{mine}"), direction).await;
    }
    refused(&office.bob, &format!("before={mine}&after={mine}"), "before").await;
    refused(&office.bob, &format!("before={mine}&offset=1"), "offset").await;

    // The recipient may use it as an anchor, too.
    let later = office.send("later").await;
    assert_eq!(
        page(&phone, "messages", &format!("after={mine}")).await.0[0]["id"],
        json!(later)
    );
    let answer = phone.get(&format!("/api/messages?after={later}")).await.expect(200);
    assert_eq!(answer, json!({"messages": [], "limit": 50, "has_more": false}));
    office.close().await;
}

#[tokio::test]
async fn users_devices_and_conflicts_are_paged_alike() {
    let office = Office::open().await;
    for name in ["Anna", "anton", "Berta", "zoe", "Zacharias"] {
        office.world.user("acme", name, UserType::Mobile).await;
    }
    let users = all(&office.bob, "users", "").await;
    assert_eq!(users.len(), 6);
    let walked = walk(&office.bob, "users", "", "after", &users[0], async || {}).await;
    assert_eq!(walked, users[1..]);
    let walked = walk(&office.bob, "users", "", "before", &users[5], async || {}).await;
    assert_eq!(walked, users[..5]);
    // A web user is a place between them, though not shown.
    let behind = walk(
        &office.bob,
        "users",
        "",
        "after",
        &office.bob_id.to_string(),
        async || {},
    )
    .await;
    assert_eq!(behind, users[3..]);

    for number in 0..4 {
        office.phone(&format!("phone-{number}")).await;
    }
    // Two of one moment.
    office
        .sql("UPDATE tenant_acme.devices SET created_at = '2024-01-15' WHERE device_id IN ('phone-1', 'phone-2')")
        .await;
    let names = |rows: Vec<Value>| -> Vec<String> {
        let name = |row: &Value| row["device_id"].as_str().unwrap().to_owned();
        rows.iter().map(name).collect()
    };
    let user = format!("user_id={}", office.joe_id);
    let devices = office.bob.get(&format!("/api/devices?{user}")).await.expect(200);
    let devices = names(devices["devices"].as_array().unwrap().clone());
    assert_eq!(devices, ["phone-3", "phone-0", "phone-1", "phone-2"]);
    for (at, device) in devices.iter().enumerate() {
        let (older, _) = page(&office.bob, "devices", &format!("before={device}&{user}")).await;
        assert_eq!(names(older), devices[at + 1..]);
        let (newer, _) = page(&office.bob, "devices", &format!("after={device}&{user}")).await;
        assert_eq!(names(newer), devices[..at]);
    }
    let (two, has_more) = page(&office.bob, "devices", &format!("limit=2&after=phone-2&{user}")).await;
    assert_eq!((names(two), has_more), (devices[1..3].to_vec(), true));

    office
        .sql(&format!(
            "INSERT INTO tenant_acme.message_conflicts
                 (message_id, user_id, base_version, client_version, server_version, strategy, created_at)
             SELECT gen_random_uuid(), '{}', 1, '{{}}', '{{}}', 'manual', '2024-01-15'::timestamptz + n / 2 * interval '1 s'
             FROM generate_series(1, 5) n",
            office.bob_id
        ))
        .await;
    let conflicts = all(&office.bob, "conflicts", "").await;
    assert_eq!(conflicts.len(), 5);
    let walked = walk(&office.bob, "conflicts", "", "before", &conflicts[0], async || {}).await;
    assert_eq!(walked, conflicts[1..]);
    let walked = walk(
        &office.bob,
        "conflicts",
        "status=all",
        "after",
        &conflicts[4],
        async || {},
    )
    .await;
    assert_eq!(walked, conflicts[..4]);
    office.close().await;
}

/// What Postgres does for a page of bob's messages.
async fn plan(office: &Office, [offset, place, is_counted]: [&str; 3]) -> String {
    let statement = include_str!("../sql/messages/message_list.sql").replace("{schema}", "tenant_acme");
    let user = format!("'{}'::uuid", office.bob_id);
    let values = [user.as_str(), "NULL", "NULL", "51", offset, place, "false", is_counted];
    let statement = (1..=8).rev().fold(statement, |text, number| {
        text.replace(&format!("${number}"), values[number - 1])
    });
    let psql = office.world.psql().await;
    let rows = psql.query(&format!("EXPLAIN (ANALYZE) {statement}"), &[]).await;
    let lines: Vec<String> = rows.unwrap().iter().map(|row| row.get(0)).collect();
    lines.join("\n")
}

/// Most rows that a step of a plan has seen.
fn rows_seen(plan: &str) -> f64 {
    let steps = plan.lines().filter_map(|line| line.split_once("actual time="));
    let rows = steps.map(|(_, actual)| -> f64 {
        let count = actual.split("rows=").nth(1).unwrap();
        count.split(' ').next().unwrap().parse().unwrap()
    });
    rows.fold(0.0, f64::max)
}

#[tokio::test]
async fn page_at_any_depth_reads_only_its_own_rows() {
    let office = Office::open().await;
    let sent = office.insert(5_000).await;
    // Most of the table is others'.
    let jane = office.world.user("acme", "jane", UserType::Web).await;
    let sally = office.world.user("acme", "sally", UserType::Mobile).await;
    office
        .sql(&format!(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
             SELECT '{jane}', '{sally}', repeat('others write, too ', 10) FROM generate_series(1, 20000)"
        ))
        .await;
    // So that the visibility map is there, as it is some time after each change.
    office.sql("VACUUM (ANALYZE) tenant_acme.messages").await;
    let place = format!("'{}'::uuid", sent[1000]);
    for (name, values) in [
        ("the first", ["0", "NULL", "false"]),
        ("beside a message", ["0", &place, "false"]),
    ] {
        let plan = plan(&office, values).await;
        assert!(
            plan.contains("Index Only Scan Backward using messages_sender"),
            "{name}: {plan}"
        );
        assert!(!plan.contains("Seq Scan on messages"), "{name}: {plan}");
        // No step sees more rows than the page has, and one.
        assert!(rows_seen(&plan) <= 51.0, "{name}: {plan}");
    }
    // Far pages, and the count, read the index and no row beyond the page.
    let plan = plan(&office, ["2500", "NULL", "true"]).await;
    assert!(plan.contains("Index Only Scan using messages_recipient"), "{plan}");
    let lookup = plan
        .lines()
        .filter(|line| line.contains("Index Scan using messages_pkey"));
    assert!(lookup.clone().count() > 0, "{plan}");
    assert!(
        !plan.contains("Seq Scan on messages") && !plan.contains("Bitmap Heap Scan"),
        "{plan}"
    );
    office.close().await;
}
