//! Security stamps: after a new password, a disabling or the end of all sessions, nothing older is of any use.

use futures_util::future::join_all;
use posduif::accounts::users::UserType;
use posduif::engine::Role;
use serde_json::{Value, json};

use crate::api::assert_refused;
use crate::support::command::{posduif_in, posduif_says, run};
use crate::support::http::{Answer, Api};
use crate::support::office::{Office, ids};
use crate::support::{PASSWORD, eventually};

async fn log_in(api: &Api, username: &str) -> Answer {
    let body = json!({"tenant": "acme", "username": username, "password": PASSWORD});
    api.post("/api/auth/login", &body).await
}

fn as_user(api: &Api, login: &Value) -> Api {
    let token = login["token"].as_str().unwrap();
    api.with("authorization", &format!("Bearer {token}"))
}

/// Tries whatever a login's answer could be good for, at each node.
async fn assert_worthless(nodes: &[Api], login: &Value) {
    let path = format!("/sse/web/{}", login["user"]["id"].as_str().unwrap());
    for node in nodes {
        let api = as_user(node, login);
        eventually("the access token is refused", || async {
            (api.get("/api/messages").await.status == 401).then_some(())
        })
        .await;
        for answer in [
            api.get("/api/users").await,
            api.get("/api/auth/sessions").await,
            api.delete("/api/auth/sessions").await,
            api.delete("/api/devices/any").await,
            api.post("/api/sse/ticket", &json!({})).await,
            node.post("/api/auth/refresh", &json!({"refresh_token": login["refresh_token"]}))
                .await,
        ] {
            assert_eq!(answer.status, 401, "{}", answer.json());
        }
        assert_eq!(api.open(&path).await.unwrap_err().status, 204);
    }
}

/// Logs ann in very often at two nodes, with a right password, while a command takes effect; gives what was granted.
async fn logins_during(office: &Office, nodes: &[Api], command: &[&str], stdin: &[(&str, &str)]) -> Vec<Value> {
    let mut logins = tokio::task::JoinSet::new();
    for number in 0..150 {
        let node = Api::new(nodes[number % nodes.len()].address());
        logins.spawn(async move { log_in(&node, "ann").await });
    }
    let mut answers = vec![logins.join_next().await.unwrap().unwrap()];
    run(posduif_in(&office.world).envs(stdin.iter().copied()), command)
        .await
        .text();
    answers.extend(logins.join_all().await);
    assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 200 | 401)));
    let granted = answers.into_iter().filter(|answer| answer.status == 200);
    granted.map(|answer| answer.json()).collect()
}

async fn race(office: &Office, command: &[&str], stdin: &[(&str, &str)]) {
    office.world.user("acme", "ann", UserType::Web).await;
    let second = office.world.engine(Role::Api).await;
    let nodes = [office.anybody.clone(), office.anybody.at(&second.api())];
    let granted = logins_during(office, &nodes, command, stdin).await;
    assert!(!granted.is_empty());
    join_all(granted.iter().map(|login| assert_worthless(&nodes, login))).await;
    second.stop().await;
}

#[tokio::test]
async fn logins_in_flight_during_a_password_change_are_worthless() {
    let office = Office::with(|config| config.auth.hash_concurrency = 1).await;
    let command = ["user", "passwd", "ann", "--tenant", "acme"];
    race(&office, &command, &[("POSDUIF_PASSWORD", "another horse")]).await;
    office.close().await;
}

#[tokio::test]
async fn logins_in_flight_during_a_disabling_are_worthless() {
    let office = Office::with(|config| config.auth.hash_concurrency = 1).await;
    let command = ["user", "disable", "ann", "--tenant", "acme"];
    race(&office, &command, &[]).await;
    // Not even when the user may act again.
    posduif_says(&office.world, "user enable ann --tenant acme")
        .await
        .text();
    log_in(&office.anybody, "ann").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn session_pushed_out_by_logins_ends_with_token_and_stream() {
    let office = Office::with(|config| config.auth.sessions_max = 2).await;
    office.world.user("acme", "ann", UserType::Web).await;
    let second = office.world.engine(Role::Api).await;
    let nodes = [office.anybody.clone(), office.anybody.at(&second.api())];
    let oldest = log_in(&office.anybody, "ann").await.expect(200);
    let path = format!("/sse/web/{}", oldest["user"]["id"].as_str().unwrap());
    let mut streams = [
        as_user(&nodes[0], &oldest).events(&path).await,
        as_user(&nodes[1], &oldest).events(&path).await,
    ];
    let mut last = Value::Null;
    for _ in 0..2 {
        last = log_in(&office.anybody, "ann").await.expect(200);
    }
    for stream in &mut streams {
        assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    }
    assert_worthless(&nodes, &oldest).await;
    let listed = as_user(&office.anybody, &last).get("/api/auth/sessions").await;
    assert_eq!(ids(&listed.expect(200)["sessions"]).len(), 2);
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn session_missing_in_the_list_ends_with_all_others() {
    let office = Office::open().await;
    let hidden = log_in(&office.anybody, "bob").await.expect(200);
    let index = office.world.keys().account_sessions(office.bob_id);
    let api = as_user(&office.anybody, &hidden);
    let mut stream = api.events(&format!("/sse/web/{}", office.bob_id)).await;
    let own = log_in(&office.anybody, "bob").await.expect(200);
    let _: i64 = office.world.ask_redis(&["DEL", &index]).await;
    let own_api = as_user(&office.anybody, &own);
    assert_eq!(own_api.delete("/api/auth/sessions").await.status, 204);
    assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    assert_worthless(std::slice::from_ref(&office.anybody), &hidden).await;
    // The caller's own session goes on, with its tokens and after a refresh.
    own_api.get("/api/messages").await.expect(200);
    let body = json!({"refresh_token": own["refresh_token"]});
    let fresh = office.anybody.post("/api/auth/refresh", &body).await.expect(200);
    as_user(&office.anybody, &fresh).get("/api/messages").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn disabling_that_falls_into_a_gap_ends_tokens_and_streams() {
    let office = Office::with(|config| config.live.heartbeat_seconds = 60).await;
    let node = office.world.engine(Role::Api).await;
    let bob = office.bob.at(&node.api());
    let mut stream = bob.events(&format!("/sse/web/{}", office.bob_id)).await;
    bob.get("/api/users").await.expect(200);
    let world = office.world;
    office.engine.stop().await;
    // No engine publishes this.
    world
        .psql()
        .await
        .batch_execute("UPDATE tenant_acme.users SET disabled_at = now() WHERE username = 'bob'")
        .await
        .unwrap();
    let live = world.keys().live(0);
    let fields = ["XADD", &live, "*", "previous", "1-1", "changes", "[]"];
    let _: String = world.ask_redis(&fields).await;
    assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    eventually("the access token is refused", || async {
        (bob.get("/api/users").await.status == 401).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn token_of_a_dropped_tenant_is_refused_by_its_successor() {
    let office = Office::open().await;
    office.world.tenant("globex").await;
    office.world.user("globex", "eve", UserType::Web).await;
    let eve = office.anybody.log_in("globex", "eve").await;
    eve.get("/api/users").await.expect(200);
    office
        .sql("DROP SCHEMA tenant_globex CASCADE; DELETE FROM posduif.tenants WHERE name = 'globex'")
        .await;
    office.world.tenant("globex").await;
    eventually("the token is refused", || async {
        (eve.get("/api/users").await.status == 401).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn password_change_ends_all_other_sessions_everywhere() {
    let office = Office::open().await;
    let second = office.world.engine(Role::Api).await;
    let nodes = [office.anybody.clone(), office.anybody.at(&second.api())];
    let thief = log_in(&nodes[1], "bob").await.expect(200);
    let path = format!("/sse/web/{}", office.bob_id);
    let thief_api = as_user(&nodes[1], &thief);
    let mut stream = thief_api.events(&path).await;
    let ticket = thief_api.post("/api/sse/ticket", &json!({})).await.expect(201);
    let own = log_in(&nodes[0], "bob").await.expect(200);
    let owner = as_user(&nodes[0], &own);
    let mut own_stream = owner.events(&path).await;
    let change = async |current: &str, new: &str| {
        let body = json!({"current": current, "new": new});
        owner.post("/api/auth/password", &body).await
    };
    assert_refused(&change("a guess", "another horse").await, 403, "FORBIDDEN");
    for bad in ["short", "12345678", "password123", "qwertyuiop"] {
        assert_refused(&change(PASSWORD, bad).await, 400, "VALIDATION_ERROR");
    }
    assert_eq!(change(PASSWORD, "another horse").await.status, 204);
    assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    assert_worthless(&nodes, &thief).await;
    let with_ticket = format!("{path}?ticket={}", ticket["ticket"].as_str().unwrap());
    assert_eq!(nodes[1].open(&with_ticket).await.unwrap_err().status, 204);
    assert_refused(&log_in(&nodes[0], "bob").await, 401, "UNAUTHORIZED");
    // The session that made the change goes on at both nodes.
    for node in &nodes {
        as_user(node, &own).get("/api/messages").await.expect(200);
    }
    let body = json!({"refresh_token": own["refresh_token"]});
    let fresh = nodes[1].post("/api/auth/refresh", &body).await.expect(200);
    as_user(&nodes[1], &fresh).get("/api/messages").await.expect(200);
    let sent = office.insert(1).await;
    let psql = office.world.psql().await;
    let read = "UPDATE tenant_acme.messages SET status = 'read', read_at = now() WHERE id = $1";
    psql.execute(read, &[&sent[0].parse::<uuid::Uuid>().unwrap()])
        .await
        .unwrap();
    own_stream.expect("message_read").await;
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn password_equal_to_the_username_or_common_is_refused() {
    let office = Office::with(|config| config.auth.registration_open = true).await;
    for (username, password) in [
        ("margarethe", "margarethe"),
        ("margarethe", "MARGARETHE"),
        ("margarethe", "password1"),
        ("margarethe", "11111111"),
        ("margarethe@example.com", "margarethe"),
    ] {
        let body = json!({"username": username, "password": password});
        let answer = office.anybody.post("/api/auth/register", &body).await;
        assert_refused(&answer, 400, "VALIDATION_ERROR");
        assert_eq!(answer.json()["error"]["details"]["field"], "password");
    }
    office.close().await;
}
