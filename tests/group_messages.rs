//! Messages to groups: who sends, edits and reads them, what reaches the members on each transport, and the marks of members.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use posduif::accounts::users::UserType;
use posduif::engine::Role;
use posduif::postgres::tenants;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::assert_refused;
use crate::groups;
use crate::phone::{Http, Phone};
use crate::push::{devices, pushed, quick};
use crate::support::folder::Folder;
use crate::support::http::Api;
use crate::support::office::{Office, id, ids};
use crate::support::{Entry, PASSWORD};

/// An office with lists, of which 1 has bob as a member.
async fn office() -> Office {
    let office = Office::with(groups::configure).await;
    office.sql(groups::TABLES).await;
    join(&office, 1, office.bob_id).await;
    office
}

async fn join(office: &Office, list: i64, user: Uuid) {
    let row = format!("INSERT INTO tenant_acme.list_members (list_id, user_id) VALUES ({list}, '{user}')");
    office.sql(&row).await;
    office.world.published().await;
}

async fn leave(office: &Office, list: i64, user: Uuid) {
    let of_user = format!("DELETE FROM tenant_acme.list_members WHERE (list_id, user_id) = ({list}, '{user}')");
    office.sql(&of_user).await;
    office.world.published().await;
}

fn list(id: i64) -> Value {
    json!({"name": "list", "id": id.to_string()})
}

async fn send(api: &Api, group: i64, content: &str) -> String {
    let body = json!({"group": list(group), "content": content});
    id(&api.post("/api/messages", &body).await.expect(201))
}

/// The reference client on a phone of its own.
struct Device {
    phone: Phone,
    http: Http,
    user: Uuid,
    _folder: Folder,
}

impl Device {
    async fn of(office: &Office, user: Uuid) -> Self {
        let folder = Folder::new();
        let mut phone = Phone::open(&folder.path().join("phone.db")).unwrap();
        let http = Http::new(&format!("http://{}", office.anybody.address()));
        let invitation = json!({"user_id": user});
        let token = office.bob.post("/api/enrollment/create", &invitation).await.expect(201)["token"].clone();
        phone.enroll(&http, token.as_str().unwrap()).await.unwrap();
        office.world.published().await;
        let mut device = Self {
            phone,
            http,
            user,
            _folder: folder,
        };
        device.sync().await;
        device
    }

    async fn sync(&mut self) {
        self.phone.sync(&self.http).await.unwrap();
    }

    fn send(&mut self, group: i64, content: &str) -> String {
        let row = json!({"group": list(group), "content": content});
        self.phone.create_row("messages", row).unwrap()
    }

    /// The contents that the user sees.
    fn contents(&self) -> Vec<String> {
        let rows = self.phone.view("messages").unwrap();
        let mut contents: Vec<String> = rows.values().map(content).collect();
        contents.sort();
        contents
    }

    /// The number of the user's mark in a list.
    fn mark(&self, list: i64) -> Option<i64> {
        let marks = self.phone.view("message_reads").unwrap();
        let list = list.to_string();
        let of_list = |mark: &&Value| mark["group_name"] == "list" && mark["group_id"] == list;
        marks.values().find(of_list)?["number"].as_i64()
    }

    fn api(&self, office: &Office) -> Api {
        let recall = |key: &str| self.phone.recall(key).unwrap().unwrap();
        office
            .anybody
            .with("x-device-id", &recall("device_id"))
            .with("authorization", &format!("Bearer {}", recall("device_token")))
    }

    fn device_id(&self) -> String {
        self.phone.recall("device_id").unwrap().unwrap()
    }
}

fn content(row: &Value) -> String {
    row["content"].as_str().unwrap().to_owned()
}

/// Syncs devices, and compares all that they have of each message with Postgres.
async fn compare(office: &Office, devices: &mut [&mut Device]) {
    let psql = office.world.psql().await;
    let query =
        "SELECT id::text, content, coalesce(group_id, ''), number, version, revision FROM tenant_acme.messages m
        WHERE deleted_at IS NULL AND ($1 IN (sender_id, recipient_id) OR group_name = 'list' AND group_id IN (
            SELECT list_id::text FROM tenant_acme.list_members WHERE user_id = $1 AND deleted_at IS NULL))";
    for device in devices {
        // The result of an upload lacks the number, which the next batch brings.
        device.sync().await;
        office.world.published().await;
        device.sync().await;
        let wanted: BTreeMap<String, Value> = psql
            .query(query, &[&device.user])
            .await
            .unwrap()
            .iter()
            .map(|row| {
                let (content, group): (String, String) = (row.get(1), row.get(2));
                // A receipt for the sender is no news for the recipient of a message between users.
                let revision: Option<i64> = Some(row.get(5)).filter(|_| !group.is_empty());
                let (number, version): (Option<i64>, i64) = (row.get(3), row.get(4));
                (row.get(0), json!([content, group, number, version, revision]))
            })
            .collect();
        let rows = device.phone.rows("messages").unwrap().into_iter();
        let held: BTreeMap<String, Value> = rows
            .map(|(id, row)| {
                let group = row["group"]["id"].as_str().unwrap_or_default();
                let revision = Some(&row["revision"]).filter(|_| !group.is_empty());
                let held = json!([row["content"], group, row["number"], row["version"], revision]);
                (id, held)
            })
            .collect();
        assert_eq!(held, wanted, "of {}", device.user);
    }
}

#[tokio::test]
async fn message_to_a_group_reaches_its_members_on_each_transport() {
    let office = office().await;
    let [sally_id, eve_id] = [
        office.world.user("acme", "sally", UserType::Mobile).await,
        office.world.user("acme", "eve", UserType::Mobile).await,
    ];
    for member in [office.joe_id, sally_id] {
        join(&office, 1, member).await;
    }
    let mut joe = Device::of(&office, office.joe_id).await;
    let mut sally = Device::of(&office, sally_id).await;
    let mut eve = Device::of(&office, eve_id).await;
    let mut stream = sally
        .api(&office)
        .events(&format!("/sse/mobile/{}", sally.device_id()))
        .await;
    let mut socket = joe.api(&office).socket("/ws").await;
    let mut page = office.bob.socket("/ws").await;
    let mut outsider = eve
        .api(&office)
        .events(&format!("/sse/mobile/{}", eve.device_id()))
        .await;

    let sent = send(&office.bob, 1, "from a page").await;
    for event in [stream.next().await.unwrap(), socket.next().await.unwrap()] {
        let expected = json!({"type": "new_message", "message_id": sent, "group": list(1)});
        assert_eq!((event.name.as_str(), event.data), ("message", expected));
    }
    let event = page.next().await.unwrap();
    let expected = json!({"type": "message_updated", "message_id": sent, "group": list(1)});
    assert_eq!(event.data, expected);

    // From a phone, over each of its ways, and from a page over a WebSocket.
    let uploaded = joe.send(1, "from a phone");
    joe.sync().await;
    let event = page.next().await.unwrap();
    let expected = json!({"type": "new_message", "message_id": uploaded, "group": list(1)});
    assert_eq!((event.name.as_str(), event.data), ("new_message", expected));
    let item = json!({"id": Uuid::new_v4(), "type": "message", "group": list(1), "content": "through a socket"});
    assert_eq!(socket.ask(&item).await["status"], "applied");
    let item = json!({"id": "c1", "type": "message", "group": list(1), "content": "from a page's socket"});
    let result = page.ask(&item).await;
    assert_eq!(
        (&result["status"], &result["server"]["group"]),
        (&json!("applied"), &list(1))
    );
    assert_eq!(result["server"].get("recipient_id"), None);
    compare(&office, &mut [&mut joe, &mut sally, &mut eve]).await;
    assert_eq!(sally.contents().len(), 4);

    // An edit and a deletion, and the numbers that a new member finds.
    let edit = json!({"content": "from a page, edited"});
    office
        .bob
        .patch(&format!("/api/messages/{sent}"), &edit)
        .await
        .expect(200);
    joe.phone.delete(&uploaded).unwrap();
    joe.sync().await;
    for name in ["message_updated", "message_deleted"] {
        stream.expect(name).await;
    }
    compare(&office, &mut [&mut joe, &mut sally, &mut eve]).await;
    join(&office, 1, eve_id).await;
    outsider.expect("group_joined").await;
    compare(&office, &mut [&mut eve]).await;
    assert_eq!(
        eve.contents(),
        ["from a page's socket", "from a page, edited", "through a socket"]
    );
    // A message between two users comes as it always did.
    let (batches, _) = sally.api(&office).sync(None).await;
    assert!(batches.iter().all(|batch| batch["messages"] == json!([])));
    office.close().await;
}

#[tokio::test]
async fn one_message_is_one_entry_for_all_members_and_one_for_the_sender() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    Device::of(&office, office.joe_id).await;
    send(&office.bob, 1, "hi").await;
    office.world.published().await;
    let keys = office.world.keys();
    let group = office
        .world
        .stream(&keys.group("acme", &"list:1".parse().unwrap()))
        .await;
    let of_messages = |entries: &[Entry]| {
        let of_messages = entries.iter().filter(|entry| entry.field("table") == "messages");
        of_messages
            .map(|entry| entry.field("event").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(of_messages(&group), ["new_message"]);
    let joe = office
        .world
        .stream(&keys.inbox("acme", &office.joe_id.to_string()))
        .await;
    assert_eq!(of_messages(&joe), [""; 0]);
    office.close().await;
}

#[tokio::test]
async fn who_is_no_member_neither_sends_nor_reads() {
    let office = office().await;
    let mut joe = Device::of(&office, office.joe_id).await;
    let sent = send(&office.bob, 1, "ours").await;
    let (phone, path) = (joe.api(&office), format!("/api/messages/{sent}"));
    for answer in [
        phone.get(&path).await,
        phone.get("/api/messages?group=list:1").await,
        phone.put(&format!("{path}/read"), &json!({})).await,
        phone.patch(&path, &json!({"content": "mine"})).await,
        phone.delete(&path).await,
        office
            .bob
            .post("/api/messages", &json!({"group": list(2), "content": "hi"}))
            .await,
    ] {
        assert_refused(&answer, 403, "FORBIDDEN");
    }
    // A number of the column's type, in another form.
    for id in ["01", "+1", "1.0", "99999999999999999999", "none"] {
        let body = json!({"group": {"name": "list", "id": id}, "content": "hi"});
        assert_eq!(office.bob.post("/api/messages", &body).await.status, 403, "{id}");
    }
    let codes = |answer: Value| -> Vec<Value> {
        let results = answer["results"].as_array().unwrap().iter();
        results.map(|result| result["code"].clone()).collect()
    };
    let items = [
        json!({"id": Uuid::new_v4(), "group": list(1), "content": "hi"}),
        json!({"id": sent, "op": "read"}),
        json!({"id": sent, "op": "edit", "content": "mine"}),
        json!({"id": sent, "group": list(1), "content": "ours"}),
    ];
    assert_eq!(codes(phone.upload(&items).await), ["FORBIDDEN"; 4]);
    let mut socket = phone.socket("/ws").await;
    let item = json!({"id": Uuid::new_v4(), "type": "message", "group": list(1), "content": "hi"});
    assert_eq!(socket.ask(&item).await["code"], "FORBIDDEN");

    // As a member, and then as one no more: what was committed before stands, and the user's own messages stay.
    join(&office, 1, office.joe_id).await;
    let mine = joe.send(1, "mine");
    joe.sync().await;
    compare(&office, &mut [&mut joe]).await;
    assert_eq!(joe.contents(), ["mine", "ours"]);
    leave(&office, 1, office.joe_id).await;
    compare(&office, &mut [&mut joe]).await;
    assert_eq!(joe.contents(), ["mine"]);
    joe.phone.edit(&mine, "edited").unwrap();
    joe.send(1, "late");
    joe.sync().await;
    let refused = joe.phone.refused().unwrap();
    let refused: Vec<_> = refused
        .iter()
        .map(|item| (item.op.as_str(), item.code.as_str()))
        .collect();
    assert_eq!(refused, [("edit", "FORBIDDEN"), ("create", "FORBIDDEN")]);
    let own = format!("/api/messages/{mine}");
    assert_eq!(phone.get(&own).await.expect(200)["content"], "mine");
    assert_eq!(phone.patch(&own, &json!({"content": "edited"})).await.status, 403);
    let conflict = json!({"id": mine, "group": list(1), "content": "another text"});
    assert_eq!(codes(phone.upload(&[conflict]).await), ["FORBIDDEN"]);
    send(&office.bob, 1, "secret").await;
    compare(&office, &mut [&mut joe]).await;
    // The sender may still withdraw it.
    joe.phone.delete(&mine).unwrap();
    joe.sync().await;
    compare(&office, &mut [&mut joe]).await;
    assert_eq!(joe.contents(), [""; 0]);
    office.close().await;
}

#[tokio::test]
async fn messages_come_with_the_join_and_with_a_snapshot() {
    let office = office().await;
    let mut joe = Device::of(&office, office.joe_id).await;
    office.send("between two").await;
    for number in 0..30 {
        send(&office.bob, 1, &format!("message {number}")).await;
    }
    join(&office, 2, office.bob_id).await;
    send(&office.bob, 2, "another list").await;
    joe.phone.batch_rows = Some(7);
    join(&office, 1, office.joe_id).await;
    compare(&office, &mut [&mut joe]).await;
    assert_eq!(joe.contents().len(), 31);
    tenants::resync(&office.world.database().await, "acme").await.unwrap();
    leave(&office, 1, office.joe_id).await;
    join(&office, 2, office.joe_id).await;
    let mine = joe.send(2, "mine");
    compare(&office, &mut [&mut joe]).await;
    assert_eq!(joe.contents(), ["another list", "between two", "mine"]);
    // The sender's own come with a snapshot, too, of a former member as well.
    leave(&office, 2, office.joe_id).await;
    tenants::resync(&office.world.database().await, "acme").await.unwrap();
    compare(&office, &mut [&mut joe]).await;
    assert_eq!(joe.contents(), ["between two", "mine"]);
    assert!(joe.phone.rows("messages").unwrap().contains_key(&mine));
    office.close().await;
}

#[tokio::test]
async fn message_moved_by_sql_changes_its_readers() {
    let office = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    join(&office, 1, office.joe_id).await;
    join(&office, 2, sally_id).await;
    let mut joe = Device::of(&office, office.joe_id).await;
    let mut sally = Device::of(&office, sally_id).await;
    let mut bob = Device::of(&office, office.bob_id).await;
    let sent = send(&office.bob, 1, "moves").await;
    let moves = [
        "group_id = '2'".to_owned(),
        format!("group_name = NULL, group_id = NULL, recipient_id = '{}'", office.joe_id),
        "group_name = 'list', group_id = '1', recipient_id = NULL".to_owned(),
        format!("group_name = NULL, group_id = NULL, recipient_id = '{sally_id}'"),
        "group_name = 'list', group_id = '2', recipient_id = NULL".to_owned(),
        "deleted_at = now()".to_owned(),
        "deleted_at = NULL, group_id = '1'".to_owned(),
    ];
    for to in moves {
        office
            .sql(&format!("UPDATE tenant_acme.messages SET {to} WHERE id = '{sent}'"))
            .await;
        compare(&office, &mut [&mut joe, &mut sally, &mut bob]).await;
    }
    assert_eq!((joe.contents().len(), sally.contents().len()), (1, 0));
    // Not to both, and not to neither.
    let psql = office.world.psql().await;
    for wrong in [
        "recipient_id = sender_id",
        "group_id = NULL",
        "group_name = NULL, group_id = NULL",
        "group_name = 'a list'",
        "group_id = 'a list'",
    ] {
        let update = format!("UPDATE tenant_acme.messages SET {wrong} WHERE id = '{sent}'");
        assert!(psql.batch_execute(&update).await.is_err(), "{wrong}");
    }
    office.close().await;
}

#[tokio::test]
async fn mark_moves_forward_only_and_reaches_the_members_other_devices() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    let mut phone = Device::of(&office, office.joe_id).await;
    let mut tablet = Device::of(&office, office.joe_id).await;
    let mut bob = Device::of(&office, office.bob_id).await;
    let mut sent = Vec::new();
    for number in 1..=3 {
        sent.push(send(&office.bob, 1, &format!("message {number}")).await);
    }
    compare(&office, &mut [&mut phone, &mut tablet]).await;
    let mut stream = tablet
        .api(&office)
        .events(&format!("/sse/mobile/{}", tablet.device_id()))
        .await;
    phone.phone.read(&sent[1]).unwrap();
    phone.sync().await;
    let event = stream.expect("group_read").await;
    assert_eq!(
        (
            &event.data["group_name"],
            &event.data["group_id"],
            &event.data["number"]
        ),
        (&json!("list"), &json!("1"), &json!(2))
    );
    office.world.published().await;
    tablet.sync().await;
    assert_eq!((tablet.mark(1), phone.mark(2)), (Some(2), None));

    // Back by no way; and what is read does not change, for any member.
    let api = tablet.api(&office);
    let item = |seq: i64, id: &str| json!({"seq": seq, "table": "messages", "op": "read", "id": id});
    let body = json!({"items": [item(1, &sent[0]), item(2, &sent[1]), item(3, &sent[2])], "acked_seq": 0});
    let answer = api.post("/api/sync/outgoing", &body).await.expect(200);
    let results: Vec<_> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["status"].clone())
        .collect();
    assert_eq!(results, ["duplicate", "duplicate", "applied"]);
    assert_eq!(answer["results"][2]["version"], 1);
    let read = api
        .put(&format!("/api/messages/{}/read", sent[0]), &json!({}))
        .await
        .expect(200);
    assert_eq!(
        (&read["read_at"], &read["revision"], &read["number"]),
        (&Value::Null, &json!(1), &json!(1))
    );
    compare(&office, &mut [&mut phone, &mut tablet, &mut bob]).await;
    assert_eq!((phone.mark(1), tablet.mark(1), bob.mark(1)), (Some(3), Some(3), None));
    // A snapshot has it.
    let mut new = Device::of(&office, office.joe_id).await;
    compare(&office, &mut [&mut new]).await;
    assert_eq!(new.mark(1), Some(3));
    office.close().await;
}

#[tokio::test]
async fn unread_counts_equal_those_of_postgres() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    join(&office, 2, office.joe_id).await;
    join(&office, 2, office.bob_id).await;
    let mut joe = Device::of(&office, office.joe_id).await;
    let api = joe.api(&office);
    office.send("between two").await;
    let counts = || async {
        let psql = office.world.psql().await;
        let query = "SELECT m.group_id, count(*) FROM tenant_acme.messages m
            JOIN tenant_acme.list_members l ON l.list_id::text = m.group_id AND l.user_id = $1
            LEFT JOIN tenant_acme.message_reads r ON (r.user_id, r.group_name, r.group_id) = ($1, m.group_name, m.group_id)
            WHERE m.sender_id <> $1 AND m.deleted_at IS NULL AND (r.number IS NULL OR m.number > r.number)
            GROUP BY 1 ORDER BY 1";
        let rows = psql.query(query, &[&office.joe_id]).await.unwrap();
        let of_group = |row: &tokio_postgres::Row| json!({"group": {"name": "list", "id": row.get::<_, String>(0)}, "unread_count": row.get::<_, i64>(1)});
        let wanted = json!({"unread_count": 1, "groups": rows.iter().map(of_group).collect::<Vec<_>>()});
        assert_eq!(api.get("/api/messages/unread-count").await.expect(200), wanted);
        wanted["groups"].as_array().unwrap().len()
    };
    assert_eq!(counts().await, 0);
    let mut sent = Vec::new();
    for number in 0..6 {
        sent.push(send(&office.bob, 1 + number % 2, "hi").await);
    }
    joe.send(1, "mine");
    joe.sync().await;
    assert_eq!(counts().await, 2);
    api.put(&format!("/api/messages/{}/read", sent[2]), &json!({}))
        .await
        .expect(200);
    office
        .bob
        .delete(&format!("/api/messages/{}", sent[1]))
        .await
        .expect(204);
    assert_eq!(counts().await, 2);
    api.put(&format!("/api/messages/{}/read", sent[5]), &json!({}))
        .await
        .expect(200);
    assert_eq!(counts().await, 1);
    leave(&office, 1, office.joe_id).await;
    assert_eq!(counts().await, 0);
    // Of very many only the first are counted.
    let insert = format!(
        "INSERT INTO tenant_acme.messages (sender_id, group_name, group_id, content)
         SELECT '{}', 'list', '2', 'n' FROM generate_series(1, 1100)",
        office.bob_id
    );
    office.sql(&insert).await;
    let answer = api.get("/api/messages/unread-count").await.expect(200);
    assert_eq!(answer["groups"], json!([{"group": list(2), "unread_count": 1000}]));
    office.close().await;
}

#[tokio::test]
async fn list_of_a_group_has_its_pages_in_the_order_of_numbers() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    let joe = Device::of(&office, office.joe_id).await.api(&office);
    // Written offline, it has an earlier time than those that arrived before it.
    let mut sent = Vec::new();
    for number in 1..=5 {
        let item = json!({"id": Uuid::new_v4(), "group": list(1), "content": format!("message {number}"),
            "created_at": format!("2024-01-0{}T00:00:00Z", 6 - number)});
        joe.upload(std::slice::from_ref(&item)).await;
        sent.insert(0, id(&item));
    }
    let page = |query: &str| {
        let path = format!("/api/messages?group=list:1&{query}");
        let bob = &office.bob;
        async move { bob.get(&path).await.expect(200) }
    };
    let first = page("limit=2").await;
    assert_eq!(
        (ids(&first["messages"]), &first["total"]),
        (sent[..2].to_vec(), &json!(5))
    );
    let next = page(&format!("limit=2&before={}", sent[1])).await;
    assert_eq!(
        (ids(&next["messages"]), &next["has_more"]),
        (sent[2..4].to_vec(), &json!(true))
    );
    let back = page(&format!("limit=3&after={}", sent[3])).await;
    assert_eq!(ids(&back["messages"]), sent[..3]);
    assert_eq!(ids(&page("limit=2&offset=4").await["messages"]), sent[4..]);
    let direct = office.send("between two").await;
    let foreign = office
        .bob
        .get(&format!("/api/messages?group=list:1&before={direct}"))
        .await;
    assert_eq!(foreign.status, 400);
    // The list of a user has the messages to groups that the user sent.
    let own = send(&office.bob, 1, "bob's").await;
    let all = office.bob.get("/api/messages").await.expect(200);
    assert_eq!(ids(&all["messages"]), [own, direct]);
    office.close().await;
}

#[tokio::test]
async fn conflict_of_a_message_to_a_group_is_kept_and_resolved_by_a_member() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    let mut phone = Device::of(&office, office.joe_id).await;
    let mut bob = Device::of(&office, office.bob_id).await;
    let mine = phone.send(1, "first");
    phone.sync().await;
    let api = phone.api(&office);
    let path = format!("/api/messages/{mine}");
    api.patch(&path, &json!({"content": "by request"})).await.expect(200);
    let late = json!({"id": mine, "op": "edit", "content": "late", "base_version": 1});
    let answer = api.upload(&[late]).await;
    let result = &answer["results"][0];
    assert_eq!(
        (&result["status"], &result["winner"]),
        (&json!("conflict"), &json!("mine"))
    );
    assert_eq!(
        (&result["server"]["group"], &result["server"]["number"]),
        (&list(1), &json!(1))
    );
    compare(&office, &mut [&mut phone, &mut bob]).await;
    assert_eq!(bob.contents(), ["late"]);
    office.close().await;
}

#[tokio::test]
async fn former_member_resolves_a_conflict_with_the_servers_version_only() {
    let office = Office::with(|config| {
        groups::configure(config);
        config.sync.conflict_strategy = posduif::config::ConflictStrategy::Manual;
    })
    .await;
    office.sql(groups::TABLES).await;
    join(&office, 1, office.joe_id).await;
    let mut phone = Device::of(&office, office.joe_id).await;
    let mine = phone.send(1, "first");
    phone.sync().await;
    let api = phone.api(&office);
    api.patch(&format!("/api/messages/{mine}"), &json!({"content": "second"}))
        .await
        .expect(200);
    let late = json!({"id": mine, "op": "edit", "content": "late", "base_version": 1});
    let answer = api.upload(&[late]).await;
    let conflict = answer["results"][0]["conflict_id"].as_str().unwrap().to_owned();
    leave(&office, 1, office.joe_id).await;
    let resolve = async |body: Value| api.post(&format!("/api/conflicts/{conflict}/resolve"), &body).await;
    assert_eq!(resolve(json!({"resolution": "client"})).await.status, 403);
    assert_eq!(
        resolve(json!({"resolution": "merged", "content": "x"})).await.status,
        403
    );
    resolve(json!({"resolution": "server"})).await.expect(200);
    assert_eq!(
        api.get(&format!("/api/messages/{mine}")).await.expect(200)["content"],
        "second"
    );
    office.close().await;
}

#[tokio::test]
async fn members_at_another_node_receive_and_send() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    let mut joe = Device::of(&office, office.joe_id).await;
    let other = office.world.engine(Role::Api).await;
    let bob = office.bob.at(&other.api());
    let mut page = bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let mut stream = joe
        .api(&office)
        .events(&format!("/sse/mobile/{}", joe.device_id()))
        .await;
    let sent = send(&bob, 1, "from the other node").await;
    assert_eq!(stream.expect("message").await.data["message_id"], sent.as_str());
    page.expect("message_updated").await;
    let reply = joe.send(1, "from this node");
    joe.sync().await;
    assert_eq!(page.expect("new_message").await.data["message_id"], reply.as_str());
    assert_eq!(
        bob.get(&format!("/api/messages/{reply}")).await.expect(200)["number"],
        2
    );
    // What a node has in its cache follows the memberships.
    leave(&office, 1, office.bob_id).await;
    assert_eq!(bob.get(&format!("/api/messages/{reply}")).await.status, 403);
    compare(&office, &mut [&mut joe]).await;
    other.stop().await;
    office.close().await;
}

#[tokio::test]
async fn numbers_follow_commits_and_none_below_a_mark_is_given_again() {
    let office = office().await;
    join(&office, 2, office.bob_id).await;
    let sends = (0..24).map(|number| {
        let bob = &office.bob;
        async move { send(bob, 1 + number % 2, "hi").await }
    });
    join_all(sends).await;
    let psql = office.world.psql().await;
    let numbers = |list: &'static str| {
        let psql = &psql;
        async move {
            let query = "SELECT number FROM tenant_acme.messages WHERE group_id = $1 ORDER BY number";
            let rows = psql.query(query, &[&list]).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>()
        }
    };
    for list in ["1", "2"] {
        assert_eq!(numbers(list).await, (1..=12).collect::<Vec<i64>>());
    }
    // A message waits for one of the same group that is not committed yet, and has the higher number.
    let mut first = office.world.psql().await;
    let open = first.transaction().await.unwrap();
    let insert = "INSERT INTO tenant_acme.messages (sender_id, group_name, group_id, content)
                  VALUES ($1, 'list', '1', 'uncommitted') RETURNING number";
    let number: i64 = open.query_one(insert, &[&office.bob_id]).await.unwrap().get(0);
    let bob = office.bob.clone();
    let waiting = tokio::spawn(async move { send(&bob, 1, "waits").await });
    crate::support::eventually("the other message waits", || async {
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database =
                     (SELECT oid FROM pg_database WHERE datname = current_database())";
        (psql.query_one(locks, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    send(&office.bob, 2, "another group does not").await;
    open.commit().await.unwrap();
    let later = waiting.await.unwrap();
    let later = office.message(&later).await;
    assert_eq!((number, &later["number"]), (13, &json!(14)));

    // The newest is read and removed: the next one is not read.
    let read = format!("/api/messages/{}/read", id(&later));
    office.bob.put(&read, &json!({})).await.expect(200);
    office
        .sql(&format!("DELETE FROM tenant_acme.messages WHERE id = '{}'", id(&later)))
        .await;
    let next = send(&office.bob, 1, "next").await;
    assert_eq!(office.message(&next).await["number"], 15);
    office.close().await;
}

#[tokio::test]
async fn uploads_to_the_same_groups_in_another_order_do_not_deadlock() {
    let office = office().await;
    let mut phones = Vec::new();
    for name in ["ann", "ben", "cem"] {
        let user = office.world.user("acme", name, UserType::Mobile).await;
        for list in 1..=3 {
            join(&office, list, user).await;
        }
        phones.push(Device::of(&office, user).await.api(&office));
    }
    let uploads = phones.iter().enumerate().map(|(number, phone)| async move {
        for _ in 0..8 {
            let order: [i64; 3] = [[1, 2, 3], [3, 2, 1], [2, 3, 1]][number];
            let items = order.map(|group| json!({"id": Uuid::new_v4(), "group": list(group), "content": "hi"}));
            assert_eq!(phone.upload(&items).await["synced_count"], 3);
        }
    });
    join_all(uploads).await;
    office.close().await;
}

#[tokio::test]
async fn members_that_are_not_to_be_found_refuse_messages_to_the_group_only() {
    let office = office().await;
    join(&office, 1, office.joe_id).await;
    let joe = Device::of(&office, office.joe_id).await.api(&office);
    office
        .sql("ALTER TABLE tenant_acme.list_members RENAME TO former_members")
        .await;
    let items = [
        json!({"id": Uuid::new_v4(), "group": list(1), "content": "to a group"}),
        json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "to bob"}),
    ];
    let answer = joe.upload(&items).await;
    assert_eq!(
        (&answer["results"][0]["code"], &answer["results"][1]["status"]),
        (&json!("FORBIDDEN"), &json!("applied"))
    );
    assert_eq!(
        joe.get("/api/messages/unread-count").await.expect(200)["groups"],
        json!([])
    );
    office.close().await;
}

#[tokio::test]
async fn erased_sender_leaves_no_content_in_a_group_and_no_mark() {
    let office = office().await;
    let sally_id = office.world.user("acme", "sally", UserType::Mobile).await;
    join(&office, 1, office.joe_id).await;
    join(&office, 1, sally_id).await;
    let mut joe = Device::of(&office, office.joe_id).await;
    let mut sally = Device::of(&office, sally_id).await;
    let secret = joe.send(1, "secret");
    let kept = send(&office.bob, 1, "kept").await;
    joe.sync().await;
    joe.api(&office)
        .put(&format!("/api/messages/{kept}/read"), &json!({}))
        .await
        .expect(200);
    compare(&office, &mut [&mut sally]).await;
    assert_eq!(sally.contents(), ["kept", "secret"]);
    let erase = format!("/api/users/{}/delete", office.joe_id);
    office.bob.post(&erase, &json!({"current": PASSWORD})).await.expect(204);
    compare(&office, &mut [&mut sally]).await;
    assert_eq!(sally.contents(), ["kept"]);
    let psql = office.world.psql().await;
    let query = "SELECT (SELECT content FROM tenant_acme.messages WHERE id::text = $1),
                        (SELECT count(*) FROM tenant_acme.message_reads)";
    let row = psql.query_one(query, &[&secret]).await.unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, i64>(1)), ("(deleted)".into(), 0));
    office.close().await;
}

#[tokio::test]
async fn message_to_a_group_wakes_its_offline_members() {
    let office = Office::with(|config| {
        quick(config);
        groups::configure(config);
    })
    .await;
    office.sql(groups::TABLES).await;
    join(&office, 1, office.bob_id).await;
    join(&office, 1, office.joe_id).await;
    let joe = Device::of(&office, office.joe_id).await;
    send(&office.bob, 1, "wake up").await;
    let push = pushed(&office.world, 1).await;
    assert_eq!(devices(&push), [joe.device_id()]);
    assert_eq!(push[0].field("event"), "new_message");
    office.close().await;
}
