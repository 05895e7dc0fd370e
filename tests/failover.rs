//! A failover of Postgres that one node has not noticed: its connections lead to the former primary, which still runs.

use posduif::config::Secret;
use posduif::engine::Role;

use crate::support::proxy::{Proxy, host_and_port};
use crate::support::servers;
use crate::support::stage::Stage;
use crate::support::{World, connect, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_comes_from_the_new_primary_while_the_former_one_runs() {
    let mut primary = servers::postgres().await;
    let redis = servers::redis().await;
    let world = World::on(&primary.server.url(), &redis.server.url()).await;
    let mut stage = Stage::on_with(world, Role::Replicator).await;
    stage
        .sql("SELECT pg_create_physical_replication_slot('standby', true)")
        .await;
    let standby = servers::standby_of(&mut primary, "standby", |options| options).await;
    stage.psql = stage.world.psql().await;
    // GIVEN a node with connections to the primary
    let url = stage.world.config.postgres.url.expose().to_owned();
    let proxy = Proxy::before(&url).await;
    let mut config = stage.world.config.clone();
    config.postgres.url = Secret::new(proxy.url(&url));
    let node = stage.world.engine_with(Role::Api, config).await;
    let web = node.api().log_in("acme", "bob").await;
    let phone = web.enroll("phone", Some(&stage.joe.to_string())).await.0;
    let before = stage.message(stage.bob, stage.joe, "before").await;
    stage.world.published().await;
    let (_, cursor) = phone.sync(None).await;

    // WHEN a standby is promoted while the primary runs on, and the node's address leads to it
    let end: String = stage
        .psql
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    stage.engine.take().unwrap().stop().await;
    let there = connect(&standby.server.url()).await;
    eventually("the standby has all of it", || async {
        let replayed = "SELECT FROM (SELECT) AS one WHERE pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        there.query_opt(replayed, &[&end]).await.unwrap()
    })
    .await;
    there.execute("SELECT pg_promote()", &[]).await.unwrap();
    let there = standby.server.url();
    proxy.lead_to(&there);
    let url = url.replace(host_and_port(&url), host_and_port(&there));
    stage.world.config.postgres.url = Secret::new(url);
    stage.psql = stage.world.psql().await;
    stage.engine = Some(stage.world.engine(Role::Replicator).await);
    let after = stage.message(stage.bob, stage.joe, "after").await;
    stage.world.published().await;

    // THEN a device gets all that is committed there
    let (pages, cursor) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["reset"], true);
    let messages = pages.iter().flat_map(|page| page["messages"].as_array().unwrap());
    let mut messages: Vec<&str> = messages.map(|message| message["content"].as_str().unwrap()).collect();
    messages.sort_unstable();
    assert_eq!(messages, ["after", "before"], "{before} {after}");
    // And so does the node's next statement for anything else.
    let last = stage.message(stage.bob, stage.joe, "last").await;
    stage.world.published().await;
    let (pages, _) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["messages"][0]["id"], last.to_string());
    let list = web.get("/api/messages").await.expect(200);
    assert_eq!(list["messages"].as_array().unwrap().len(), 3);
    node.stop().await;
    stage.stop().await;
}
