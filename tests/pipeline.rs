//! From a commit to the streams.

use posduif::domain::users::UserType;
use posduif::engine::Role;

use crate::support::World;

#[tokio::test]
async fn a_committed_row_is_in_the_tenants_log_and_in_its_recipients_inbox() {
    let world = World::new().await;
    let engine = world.engine(Role::Replicator).await;
    world.tenant("acme").await;
    let bob = world.user("acme", "bob", UserType::Web).await;
    let joe = world.user("acme", "joe", UserType::Mobile).await;

    let psql = world.psql().await;
    let insert =
        "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'hi') RETURNING id";
    let id: uuid::Uuid = psql.query_one(insert, &[&bob, &joe]).await.unwrap().get(0);
    world.published().await;

    let inbox = world.stream(&world.keys().inbox("acme", &joe.to_string())).await;
    let entry = inbox.last().unwrap();
    assert_eq!((entry.field("op"), entry.field("event")), ("insert", "new_message"));
    assert_eq!(entry.json("row")["id"], id.to_string());
    let changes = world.stream(&world.keys().changes("acme")).await;
    assert!(
        changes
            .iter()
            .any(|change| change.id == entry.id && change.field("event").is_empty())
    );
    engine.stop().await;
}
