//! Conflicts: both versions are kept, all streams of their user receive them, and the user resolves each once.

use posduif::config::ConflictStrategy;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::{Answer, Api};
use crate::support::office::{Office, id};

/// An office where conflicts wait for somebody, and joe's phone with its cursor.
async fn office() -> (Office, Api, String) {
    let office = Office::with(|config| config.sync.conflict_strategy = ConflictStrategy::Manual).await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    (office, phone, cursor)
}

fn edit(message: &str, content: &str, base: i64) -> Value {
    json!({"id": message, "op": "edit", "content": content, "base_version": base})
}

/// A message of joe's that now says `server's` in version 2, and upon whose first version the phone then did this.
async fn contested(office: &Office, phone: &Api, change: Value) -> String {
    let message = Uuid::new_v4().to_string();
    let create = json!({"id": message, "recipient_id": office.bob_id, "content": "first"});
    phone.upload(&[create, edit(&message, "server's", 1)]).await;
    let mut change = change;
    change["id"] = json!(message);
    let answer = phone.upload(&[change]).await;
    assert_eq!(answer["results"][0]["status"], "conflict", "{answer}");
    message
}

async fn conflicts(of: &Api, query: &str) -> Vec<Value> {
    let answer = of.get(&format!("/api/conflicts?{query}")).await.expect(200);
    answer["conflicts"].as_array().unwrap().clone()
}

async fn resolve(by: &Api, conflict: &Value, decision: Value) -> Answer {
    by.post(&format!("/api/conflicts/{}/resolve", id(conflict)), &decision)
        .await
}

#[tokio::test]
async fn conflict_is_listed_with_both_versions_and_sent_to_devices() {
    let (office, phone, cursor) = office().await;
    let other = office.phone("other").await;
    let (_, others_cursor) = other.sync(None).await;
    let mut events = other.events("/sse/mobile/other").await;
    let message = contested(&office, &phone, edit("", "phone's", 1)).await;

    let listed = conflicts(&phone, "").await;
    assert_eq!(listed.len(), 1);
    let conflict = &listed[0];
    assert_eq!(conflict["message_id"], json!(message));
    assert_eq!(conflict["device_id"], "phone");
    assert_eq!(
        (&conflict["base_version"], &conflict["strategy"]),
        (&json!(1), &json!("manual"))
    );
    assert_eq!(conflict["client_version"]["content"], "phone's");
    assert_eq!(conflict["client_version"]["op"], "edit");
    assert_eq!(conflict["server_version"]["content"], "server's");
    assert_eq!(conflict["message"], conflict["server_version"]);
    assert_eq!(
        (&conflict["resolution"], &conflict["resolved_at"]),
        (&Value::Null, &Value::Null)
    );
    assert!(conflicts(&office.bob, "").await.is_empty(), "it is joe's");

    let event = events.expect("conflict").await;
    assert_eq!(
        event.data,
        json!({"type": "conflict", "table": "message_conflicts", "op": "insert", "id": conflict["id"]})
    );
    for (device, cursor) in [(&phone, &cursor), (&other, &others_cursor)] {
        let batch = device
            .get(&format!("/api/sync/incoming?cursor={cursor}"))
            .await
            .expect(200);
        let changes = batch["changes"].as_array().unwrap();
        let change = changes
            .iter()
            .find(|change| change["table"] == "message_conflicts")
            .unwrap();
        assert_eq!(
            (&change["table"], &change["id"]),
            (&json!("message_conflicts"), &conflict["id"])
        );
        assert_eq!(change["row"]["client_version"]["content"], "phone's");
    }
    let fresh = office.phone("fresh").await;
    let snapshot = fresh.get("/api/sync/incoming").await.expect(200);
    assert_eq!(snapshot["changes"][0]["id"], conflict["id"], "a snapshot has it too");
    office.close().await;
}

#[tokio::test]
async fn conflict_resolution_sets_the_chosen_text() {
    let (office, phone, cursor) = office().await;
    for (decision, content) in [
        (json!({"resolution": "client"}), "phone's"),
        (json!({"resolution": "server"}), "server's"),
        (json!({"resolution": "merged", "content": "both's"}), "both's"),
    ] {
        let message = contested(&office, &phone, edit("", "phone's", 1)).await;
        let conflict = conflicts(&phone, "").await.remove(0);
        let resolved = resolve(&phone, &conflict, decision.clone()).await.expect(200);
        assert_eq!(resolved["resolution"], decision["resolution"]);
        assert_eq!(resolved["resolved_by"], json!(office.joe_id));
        assert_eq!(resolved["message"]["content"], content);
        let stored = office.message(&message).await;
        assert_eq!(stored["content"], content);
        let version = if content == "server's" { 2 } else { 3 };
        assert_eq!(stored["version"], version, "{decision}");

        let again = resolve(&phone, &conflict, decision.clone()).await.expect(200);
        assert_eq!(again, resolved, "a repeat changes nothing");
        let other = if content == "server's" { "client" } else { "server" };
        let refused = resolve(&phone, &conflict, json!({"resolution": other})).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "CONFLICT"));
    }
    assert!(conflicts(&phone, "status=open").await.is_empty());
    assert_eq!(conflicts(&phone, "status=resolved").await.len(), 3);
    assert_eq!(conflicts(&phone, "status=all&limit=2").await.len(), 2);
    office.world.published().await;
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    let left: Vec<&Value> = batch["changes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|change| change["table"] == "message_conflicts")
        .map(|change| &change["op"])
        .collect();
    assert_eq!(left, ["delete"; 3], "a resolved conflict leaves the devices");
    office.close().await;
}

#[tokio::test]
async fn conflict_resolution_delivers_message_to_sender_and_recipient() {
    let (office, phone, _) = office().await;
    let message = contested(&office, &phone, edit("", "phone's", 1)).await;
    office.world.published().await;
    let mut at_web = office.bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    let mut at_phone = phone.events("/sse/mobile/phone").await;
    let conflict = conflicts(&phone, "").await.remove(0);
    resolve(&phone, &conflict, json!({"resolution": "client"}))
        .await
        .expect(200);
    for events in [&mut at_web, &mut at_phone] {
        let event = events.expect("message_updated").await;
        assert_eq!(event.data["message_id"], json!(message));
    }
    office.close().await;
}

#[tokio::test]
async fn conflict_delete_can_win_and_deleted_message_closes_conflict() {
    let (office, phone, _) = office().await;
    let delete = json!({"op": "delete", "base_version": 1});
    let message = contested(&office, &phone, delete.clone()).await;
    assert_eq!(office.message(&message).await["content"], "server's");
    let conflict = conflicts(&phone, "").await.remove(0);
    let resolved = resolve(&phone, &conflict, json!({"resolution": "client"}))
        .await
        .expect(200);
    assert_eq!(
        (&resolved["resolution"], &resolved["message"]),
        (&json!("client"), &Value::Null)
    );
    assert_eq!(office.bob.get(&format!("/api/messages/{message}")).await.status, 404);

    for end in [
        "UPDATE tenant_acme.messages SET deleted_at = now()",
        "DELETE FROM tenant_acme.messages",
    ] {
        contested(&office, &phone, edit("", "phone's", 1)).await;
        let conflict = conflicts(&phone, "").await.remove(0);
        office
            .sql(&format!(
                "{end} WHERE id = '{}'",
                conflict["message_id"].as_str().unwrap()
            ))
            .await;
        assert!(conflicts(&phone, "").await.is_empty(), "{end}");
        let refused = resolve(&phone, &conflict, json!({"resolution": "client"})).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "CONFLICT"));
    }
    office.close().await;
}

#[tokio::test]
async fn conflict_resolution_of_stale_version_returns_the_current_one() {
    let (office, phone, _) = office().await;
    let message = contested(&office, &phone, edit("", "phone's", 1)).await;
    let conflict = conflicts(&phone, "").await.remove(0);
    phone.upload(&[edit(&message, "newer", 2)]).await;
    let refused = resolve(&phone, &conflict, json!({"resolution": "client"})).await;
    assert_eq!(refused.status, 409);
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("base_version 3"),
        "{:?}",
        refused.json()
    );
    assert_eq!(office.message(&message).await["content"], "newer");
    assert_eq!(conflicts(&phone, "").await[0]["message"]["content"], "newer");
    resolve(&phone, &conflict, json!({"resolution": "client", "base_version": 3}))
        .await
        .expect(200);
    assert_eq!(office.message(&message).await["content"], "phone's");
    office.close().await;
}

#[tokio::test]
async fn conflict_is_private_and_invalid_resolutions_are_explained() {
    let (office, phone, _) = office().await;
    contested(&office, &phone, edit("", "phone's", 1)).await;
    let conflict = conflicts(&phone, "").await.remove(0);
    let refused = resolve(&office.bob, &conflict, json!({"resolution": "server"})).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "FORBIDDEN"));
    for decision in [
        json!({}),
        json!({"resolution": "coin"}),
        json!({"resolution": "client", "content": "x"}),
        json!({"resolution": "merged"}),
        json!({"resolution": "merged", "content": " "}),
        json!({"resolution": "merged", "content": "a\u{0}"}),
        json!({"resolution": "server", "base_version": "1"}),
    ] {
        let refused = resolve(&phone, &conflict, decision.clone()).await;
        assert_eq!(refused.status, 400, "{decision}");
    }
    assert_eq!(phone.get("/api/conflicts?status=nonsense").await.status, 400);
    assert_eq!(conflicts(&phone, "").await.len(), 1, "it is still open");
    office.close().await;
}

#[tokio::test]
async fn conflict_under_last_write_wins_is_recorded_as_resolved() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    contested(&office, &phone, edit("", "phone's", 1)).await;
    assert!(conflicts(&phone, "").await.is_empty());
    let record = conflicts(&phone, "status=resolved").await.remove(0);
    assert_eq!(
        (&record["resolution"], &record["strategy"]),
        (&json!("client"), &json!("last_write_wins"))
    );
    assert_eq!(
        (&record["resolved_by"], &record["message"]["content"]),
        (&Value::Null, &json!("phone's"))
    );
    office.world.published().await;
    let batch = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(batch["changes"], json!([]));
    office.close().await;
}

#[tokio::test]
async fn role_with_rights_on_messages_only_deletes_one_and_closes_its_conflict() {
    let (office, phone, _) = office().await;
    let message = contested(&office, &phone, edit("", "phone's", 1)).await;
    let role = format!("writer_{}", Uuid::new_v4().simple());
    office
        .sql(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA tenant_acme TO {role}; \
             GRANT SELECT, DELETE ON tenant_acme.messages TO {role}; SET ROLE {role}; \
             DELETE FROM tenant_acme.messages WHERE id = '{message}'; RESET ROLE; \
             DROP OWNED BY {role}; DROP ROLE {role}"
        ))
        .await;
    assert!(conflicts(&phone, "").await.is_empty());
    office.close().await;
}

#[tokio::test]
async fn resolved_conflicts_of_one_message_are_bounded_and_open_ones_stay() {
    let (office, phone, _) = office().await;
    let message = contested(&office, &phone, edit("", "number 0", 1)).await;
    for n in 1..60 {
        phone.upload(&[edit(&message, &format!("number {n}"), 1)]).await;
    }
    let kept = async || {
        let query = "SELECT client_version ->> 'content' FROM tenant_acme.message_conflicts ORDER BY created_at";
        let rows = office.world.psql().await.query(query, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let numbers = |from: usize, to: usize| (from..to).map(|n| format!("number {n}")).collect::<Vec<_>>();
    assert_eq!(kept().await, numbers(0, 60));
    let resolve = "UPDATE tenant_acme.message_conflicts SET resolved_at = now(), resolution = 'server'
                   WHERE client_version ->> 'content' <> 'number 0'";
    office.sql(resolve).await;
    phone.upload(&[edit(&message, "number 60", 1)]).await;
    assert_eq!(kept().await, [numbers(0, 1), numbers(11, 61)].concat());
    office.close().await;
}
