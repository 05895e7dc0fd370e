//! Push: an offline device with pending changes is woken once until it has synced, through a webhook.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use posduif::accounts::users::UserType;
use posduif::config::{CertificateFiles, Config, Secret};
use posduif::engine::Role;
use posduif::http::secure::Acceptor;
use posduif::live::presence::{Place, Presence};
use posduif::postgres::audit::Actor;
use posduif::push::candidates;
use posduif::redis::store::Store;
use posduif::telemetry::metrics::Operations;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use uuid::Uuid;

use crate::support::office::Office;
use crate::support::receiver::{Delivery, Receiver, Reply, SECRET};
use crate::support::{Entry, World, eventually, spec};
use crate::tls::Authority;

/// The entries of a tenant's stream `push`.
async fn pushes(world: &World, tenant: &str) -> Vec<Entry> {
    world.stream(&world.keys().push(tenant)).await
}

/// Waits until there are so many.
pub(crate) async fn pushed(world: &World, count: usize) -> Vec<Entry> {
    eventually(&format!("{count} devices were woken"), || async {
        let pushes = pushes(world, "acme").await;
        assert!(pushes.len() <= count, "{pushes:?}");
        (pushes.len() == count).then_some(pushes)
    })
    .await
}

/// Settings under which a receiver gets the webhook soon.
fn configure(receiver: &Receiver, config: &mut Config) {
    quick(config);
    config.push.webhook_url = format!("http://{}/hook", receiver.address);
    configure_sending(config);
}

fn configure_sending(config: &mut Config) {
    config.push.webhook_secret = Secret::new(SECRET);
    config.push.webhook_timeout_seconds = 1;
}

pub(crate) fn quick(config: &mut Config) {
    config.push.offline_delay_seconds = 1;
    config.presence.grace_seconds = 0;
    config.live.heartbeat_seconds = 1;
}

/// Another user with a phone, for whom a message shows that what came before it was looked at.
pub(crate) async fn witness(office: &Office, device_id: &str) -> Uuid {
    let user = office.world.user("acme", device_id, UserType::Mobile).await;
    office.bob.enroll(device_id, Some(&user.to_string())).await;
    user
}

pub(crate) async fn send(office: &Office, user: Uuid) {
    let body = json!({"recipient_id": user, "content": "hi"});
    office.bob.post("/api/messages", &body).await.expect(201);
}

pub(crate) fn devices(pushes: &[Entry]) -> Vec<&str> {
    pushes.iter().map(|entry| entry.field("device_id")).collect()
}

#[tokio::test]
async fn offline_phone_is_woken_once_per_sync_by_any_bursts_and_engines() {
    let mut office = Office::with(quick).await;
    let phone = office.phone("phone").await;
    let (_, cursor) = phone.sync(None).await;
    office.insert(50).await;
    let first = pushed(&office.world, 1).await.remove(0);
    assert_eq!(first.field("device_id"), "phone");
    assert_eq!(first.field("user_id"), office.joe_id.to_string());
    assert_eq!((first.field("event"), first.field("pending")), ("new_message", "50"));
    assert!(!format!("{first:?}").contains("message 1"), "{first:?}");
    for burst in 0..3 {
        office.insert(20).await;
        send(&office, witness(&office, &format!("witness-{burst}")).await).await;
        let pushes = pushed(&office.world, 2 + burst).await;
        assert_eq!(devices(&pushes).iter().filter(|device| **device == "phone").count(), 1);
    }
    // Another engine takes over, and looks at all devices.
    let engine = office.world.engine(Role::All).await;
    let (anybody, bob) = (engine.api(), office.bob.at(&engine.api()));
    let first_engine = std::mem::replace(&mut office.engine, engine);
    first_engine.stop().await;
    (office.anybody, office.bob) = (anybody, bob);
    let phone = phone.at(&office.bob);
    office.insert(20).await;
    send(&office, witness(&office, "witness-3").await).await;
    let pushes = pushed(&office.world, 5).await;
    assert_eq!(devices(&pushes).iter().filter(|device| **device == "phone").count(), 1);

    // A page is not all of it.
    let page = phone
        .get(&format!("/api/sync/incoming?cursor={cursor}&limit=10"))
        .await
        .expect(200);
    assert_eq!(page["has_more"], true);
    let (_, cursor) = phone.sync(page["cursor"].as_str()).await;
    office.insert(5).await;
    let pushes = pushed(&office.world, 6).await;
    assert_eq!(devices(&pushes[5..]), ["phone"]);
    // What it was given and has not acknowledged wakes nobody again.
    phone.sync(Some(&cursor)).await;
    send(&office, witness(&office, "witness-4").await).await;
    let pushes = pushed(&office.world, 7).await;
    assert_eq!(devices(&pushes[6..]), ["witness-4"]);
    office.close().await;
}

#[tokio::test]
async fn device_with_stream_is_woken_only_after_it_closes_unsynced() {
    let office = Office::with(quick).await;
    let phone = office.phone("phone").await;
    let stream = phone.events("/sse/mobile/phone").await;
    send(&office, office.joe_id).await;
    send(&office, witness(&office, "witness").await).await;
    let pushes = pushed(&office.world, 1).await;
    assert_eq!(devices(&pushes), ["witness"]);
    drop(stream);
    let pushes = pushed(&office.world, 2).await;
    assert_eq!(devices(&pushes[1..]), ["phone"]);
    office.close().await;
}

#[tokio::test]
async fn recently_connected_device_gets_grace_before_push() {
    let office = Office::with(|config| {
        quick(config);
        config.push.offline_delay_seconds = 4;
    })
    .await;
    let phone = office.phone("phone").await;
    phone.sync(None).await;
    drop(phone.events("/sse/mobile/phone").await);
    eventually("joe is offline", || async {
        let joe = office
            .bob
            .get(&format!("/api/users/{}", office.joe_id))
            .await
            .expect(200);
        (joe["online_status"] == false).then_some(())
    })
    .await;
    let gone = chrono::Utc::now();
    send(&office, office.joe_id).await;
    send(&office, witness(&office, "witness").await).await;
    assert_eq!(devices(&pushed(&office.world, 1).await), ["witness"]);
    let pushes = pushed(&office.world, 2).await;
    assert_eq!(devices(&pushes[1..]), ["phone"]);
    let waited = pushes[1].id.ms as i64 - gone.timestamp_millis();
    assert!(waited >= 2000, "woken after {waited} ms");
    office.close().await;
}

#[tokio::test]
async fn push_skips_paused_tenants_revoked_devices_and_disabled_users() {
    let office = Office::with(quick).await;
    let (one, revoked) = (office.phone("one").await, office.phone("revoked").await);
    let disabled = witness(&office, "disabled").await;
    one.sync(None).await;
    revoked.sync(None).await;
    office.bob.delete("/api/devices/revoked").await;
    office
        .sql(&format!(
            "UPDATE tenant_acme.users SET disabled_at = now() WHERE id = '{disabled}'"
        ))
        .await;
    let database = office.world.database().await;
    posduif::postgres::tenants::set_paused(&database, "acme", true, &Actor::cli())
        .await
        .unwrap();
    office.world.published().await;
    office.insert(3).await;
    let insert = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'hi')";
    let psql = office.world.psql().await;
    psql.execute(insert, &[&office.bob_id, &disabled]).await.unwrap();
    // The other tenant's phone shows that these were looked at.
    office.world.tenant("beta").await;
    let eve = office.world.user("beta", "eve", UserType::Web).await;
    let ken = office.world.user("beta", "ken", UserType::Mobile).await;
    office.world.published().await;
    let eves = office.anybody.log_in("beta", "eve").await;
    office
        .sql("UPDATE tenant_beta.users SET role = 'admin' WHERE username = 'eve'")
        .await;
    eves.enroll("kens", Some(&ken.to_string())).await;
    let insert = "INSERT INTO tenant_beta.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'hi')";
    psql.execute(insert, &[&eve, &ken]).await.unwrap();
    eventually("ken's phone is woken", || async {
        (pushes(&office.world, "beta").await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(pushes(&office.world, "acme").await, []);
    posduif::postgres::tenants::set_paused(&database, "acme", false, &Actor::cli())
        .await
        .unwrap();
    assert_eq!(devices(&pushed(&office.world, 1).await), ["one"]);
    send(&office, witness(&office, "witness").await).await;
    assert_eq!(devices(&pushed(&office.world, 2).await), ["one", "witness"]);
    office.close().await;
}

#[tokio::test]
async fn push_covers_changes_of_downtime_for_configured_events_only() {
    let office = Office::with(quick).await;
    let phone = office.phone("phone").await;
    let message = office.send("read me").await;
    let (_, cursor) = phone.sync(None).await;
    phone.sync(Some(&cursor)).await;
    phone
        .put(&format!("/api/messages/{message}/read"), &json!({}))
        .await
        .expect(200);
    office.world.published().await;
    let Office {
        world,
        engine,
        bob_id,
        joe_id,
        ..
    } = office;
    engine.stop().await;
    // Nobody tells this one: an engine finds it when it has published it, or when it looks at all devices.
    let sally = world.user("acme", "sally", UserType::Mobile).await;
    let psql = world.psql().await;
    let device = "INSERT INTO tenant_acme.devices (device_id, user_id, created_at) VALUES ('sallys', $1, now() - interval '1 hour')";
    psql.execute(device, &[&sally]).await.unwrap();
    let insert = "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content) VALUES ($1, $2, 'hi')";
    psql.execute(insert, &[&bob_id, &sally]).await.unwrap();
    let engine = world.engine(Role::Replicator).await;
    // Joe's phone has only the word that its message was read.
    assert_eq!(devices(&pushed(&world, 1).await), ["sallys"]);
    engine.stop().await;
    // A trigger that is lost with its mark is found without any notice.
    let mut redis = world.redis().await;
    let keys = world.keys();
    let _: u64 = redis::cmd("DEL")
        .arg(&[keys.push("acme"), keys.device("acme", "sallys")])
        .query_async(&mut redis)
        .await
        .unwrap();
    psql.execute(
        "UPDATE tenant_acme.users SET email = 'j@example.com' WHERE id = $1",
        &[&joe_id],
    )
    .await
    .unwrap();
    let engine = world.engine(Role::Replicator).await;
    assert_eq!(devices(&pushed(&world, 1).await), ["sallys"]);
    engine.stop().await;
}

/// What is due at the webhook.
async fn due(world: &World) -> u64 {
    let mut redis = world.redis().await;
    let key = world.keys().push_due("acme");
    redis::cmd("ZCARD").arg(key).query_async(&mut redis).await.unwrap()
}

/// A Python with the public library; `None` where it is said that there is none.
fn python() -> Option<PathBuf> {
    match std::env::var("POSDUIF_STANDARDWEBHOOKS") {
        Ok(none) if none == "none" => return None,
        Ok(program) if !program.is_empty() => return Some(program.into()),
        _ => {}
    }
    // Tenant the folder in which the engine's program was built.
    let target = Path::new(env!("CARGO_BIN_EXE_posduif"))
        .parent()
        .unwrap()
        .parent()
        .unwrap();
    let python = target.join("standardwebhooks/bin/python3");
    assert!(
        python.exists(),
        "{} is missing: run scripts/standardwebhooks, name a Python that has the library by POSDUIF_STANDARDWEBHOOKS, or \
         leave this out by POSDUIF_STANDARDWEBHOOKS=none",
        python.display()
    );
    Some(python)
}

/// Lets the public library verify a request.
async fn verify(python: &Path, delivery: &Delivery, secret: &str) -> Result<(), String> {
    let program = "import json, sys\n\
                   from standardwebhooks.webhooks import Webhook\n\
                   headers = json.loads(sys.argv[1])\n\
                   Webhook(sys.argv[2]).verify(sys.stdin.buffer.read(), headers)\n";
    let mut child = Command::new(python)
        .args(["-c", program, &json!(delivery.headers).to_string(), secret])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&delivery.body).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[tokio::test]
async fn webhook_retry_is_re_signed_with_the_same_body() {
    let receiver = Receiver::start(&[Reply::Status(500), Reply::Redirect]).await;
    let office = Office::with(|config| {
        configure(&receiver, config);
        config.push.webhook_previous_secrets = vec![Secret::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")];
    })
    .await;
    office.phone("phone").await;
    let content = "nobody but joe may read this";
    office.send(content).await;
    let deliveries = receiver.received(3).await;
    let entry = pushed(&office.world, 1).await.remove(0);
    eventually("nothing is due", || async {
        (due(&office.world).await == 0).then_some(())
    })
    .await;
    assert_eq!(receiver.deliveries.lock().unwrap().len(), 3);
    for each in &deliveries {
        assert_eq!(each.headers["webhook-id"], entry.field("id"));
        assert_eq!(each.body, deliveries[0].body);
        assert_eq!(each.headers["content-type"], "application/json");
        spec::check_webhook("device.waiting", &each.headers, &each.json());
        assert_eq!(each.headers["webhook-signature"].split(' ').count(), 2);
    }
    let body = deliveries[2].json();
    assert_eq!(
        body["data"],
        json!({"tenant": "acme", "user_id": office.joe_id, "device_id": "phone", "event": "new_message", "pending": 1})
    );
    assert_eq!(body["type"], "device.waiting");
    assert!(!body.to_string().contains("nobody"), "{body}");
    if let Some(python) = python() {
        verify(&python, &deliveries[2], SECRET).await.unwrap();
        verify(&python, &deliveries[2], "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
            .await
            .unwrap();
        verify(&python, &deliveries[2], "whsec_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB")
            .await
            .unwrap_err();
        let mut forged = deliveries[2].clone();
        forged.body = Bytes::from(forged.json().to_string().replace("phone", "other"));
        verify(&python, &forged, SECRET).await.unwrap_err();
    }
    let metrics = office.anybody.admin().get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body);
    for line in [
        "posduif_push_triggers_total 1",
        "posduif_push_webhooks_total{outcome=\"taken\"} 1",
        "posduif_push_webhooks_total{outcome=\"refused\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    office.close().await;
}

#[tokio::test]
async fn push_candidate_that_syncs_before_the_decision_is_not_woken() {
    // Nobody else decides.
    let office = Office::with(|config| config.push.events.clear()).await;
    let phone = office.phone("phone").await;
    office.phone("tablet").await;
    office.send("hi").await;
    office.world.published().await;
    let store = Store::new(&office.world.config.redis).unwrap();
    let epoch = store.view().await.unwrap().epoch;
    let devices = ["phone", "tablet"].map(|id| candidates::Device {
        device_id: id.to_owned(),
        user: office.joe_id,
        enrolled_ts: 0,
    });
    let counts = |event: &str| event == "new_message";
    let streams = candidates::Streams {
        shared: false,
        groups: false,
    };
    let found = candidates::waiting(&store, "acme", epoch, &devices, counts, streams)
        .await
        .unwrap();
    let waiting: Vec<_> = devices.iter().zip(found.into_iter().map(Option::unwrap)).collect();
    let (_, here) = phone.sync(None).await;
    phone.post("/api/sync/ack", &json!({"cursor": here})).await.expect(200);
    let terms = candidates::Terms {
        after: Duration::ZERO,
        entries_max: 10,
        has_webhook: false,
    };
    let decisions = candidates::trigger(&store, "acme", epoch, &waiting, terms)
        .await
        .unwrap();
    assert_eq!(
        decisions,
        [candidates::Decision::Nothing, candidates::Decision::Triggered]
    );
    assert_eq!(pushed(&office.world, 1).await[0].field("device_id"), "tablet");
    office.close().await;
}

#[tokio::test]
async fn unfinished_push_is_sent_by_another_engine_with_the_same_id() {
    let receiver = Receiver::start(&[Reply::Silence]).await;
    let office = Office::with(|config| configure(&receiver, config)).await;
    office.phone("phone").await;
    office.send("hi").await;
    let first = receiver.received(1).await.remove(0);
    let Office { world, engine, .. } = office;
    // As it dies: nothing is said any more.
    drop(engine);
    let other = world.engine(Role::Replicator).await;
    let deliveries = receiver.received(2).await;
    assert_eq!(deliveries[1].headers["webhook-id"], first.headers["webhook-id"]);
    assert_eq!(deliveries[1].body, first.body);
    eventually("nothing is due", || async { (due(&world).await == 0).then_some(()) }).await;
    assert_eq!(pushes(&world, "acme").await.len(), 1);
    other.stop().await;
}

#[tokio::test]
async fn webhook_gone_stops_delivery_and_failing_delivery_is_bounded() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Status(429), Reply::Status(410)]).await;
    let office = Office::with(|config| {
        configure(&receiver, config);
        config.push.webhook_attempts_max = 2;
    })
    .await;
    office.phone("phone").await;
    office.send("hi").await;
    receiver.received(2).await;
    eventually("it is given up", || async {
        (due(&office.world).await == 0).then_some(())
    })
    .await;
    send(&office, witness(&office, "one").await).await;
    receiver.received(3).await;
    send(&office, witness(&office, "two").await).await;
    pushed(&office.world, 3).await;
    eventually("nothing is due", || async {
        (due(&office.world).await == 0).then_some(())
    })
    .await;
    assert_eq!(receiver.deliveries.lock().unwrap().len(), 3);
    office.close().await;
}

#[tokio::test]
async fn burst_to_many_users_wakes_each_device_once() {
    const USERS: usize = 600;
    let office = Office::with(quick).await;
    let psql = office.world.psql().await;
    psql.batch_execute(&format!(
        "WITH users AS (
             INSERT INTO tenant_acme.users (username, user_type)
             SELECT 'many-' || n, 'mobile' FROM generate_series(1, {USERS}) n RETURNING id
         )
         INSERT INTO tenant_acme.devices (device_id, user_id) SELECT 'phone-' || id, id FROM users"
    ))
    .await
    .unwrap();
    office.world.published().await;
    // One of them is here.
    let here = "SELECT id FROM tenant_acme.users WHERE username = 'many-1'";
    let here: Uuid = psql.query_one(here, &[]).await.unwrap().get(0);
    let presence = Presence::new(&office.world.config, Operations::new("command")).unwrap();
    let place = Place::Device(format!("phone-{here}"));
    presence
        .declare("acme", here, &place, posduif::live::presence::Status::Online)
        .await
        .unwrap();
    for _ in 0..3 {
        psql.execute(
            "INSERT INTO tenant_acme.messages (sender_id, recipient_id, content)
             SELECT $1, id, 'hi' FROM tenant_acme.users WHERE username LIKE 'many-%'",
            &[&office.bob_id],
        )
        .await
        .unwrap();
    }
    let pushes = eventually("all but one are woken", || async {
        let pushes = pushes(&office.world, "acme").await;
        (pushes.len() >= USERS - 1).then_some(pushes)
    })
    .await;
    let mut woken = devices(&pushes);
    woken.sort_unstable();
    woken.dedup();
    assert_eq!((woken.len(), pushes.len()), (USERS - 1, USERS - 1));
    assert!(!woken.contains(&format!("phone-{here}").as_str()));
    tokio::time::timeout(Duration::from_secs(20), office.close())
        .await
        .unwrap();
}

#[tokio::test]
async fn configured_events_of_any_rule_wake_their_recipients() {
    let office = Office::with(|config| {
        quick(config);
        let personal = ["message_updated", "message_read", "message_synced", "message_deleted"];
        let others = ["state_changed", "conflict", "task", "nudge", "news"];
        config.push.events = personal.into_iter().chain(others).map(str::to_owned).collect();
        config.routes = serde_json::from_value(json!([
            {"table": "tasks", "to": ["owner"], "event": "task"},
            {"table": "news", "to": ["tenant"], "event": "news"},
        ]))
        .unwrap();
    })
    .await;
    office
        .sql(
            "CREATE TABLE tenant_acme.tasks (id int PRIMARY KEY, owner uuid);
             CREATE TABLE tenant_acme.news (id int PRIMARY KEY)",
        )
        .await;
    let message = |from: &str, to: &str, change: &str| {
        format!(
            "INSERT INTO tenant_acme.messages (id, sender_id, recipient_id, content)
             VALUES (gen_random_uuid(), '{from}', '{to}', 'hi');
             UPDATE tenant_acme.messages SET {change} WHERE '{to}' = recipient_id AND '{from}' = sender_id"
        )
    };
    let bob = office.bob_id.to_string();
    // Each a user with a phone of its own, and what happens to them in one transaction.
    let mut wanted = Vec::new();
    for event in [
        "message_updated",
        "message_read",
        "message_synced",
        "message_deleted",
        "state_changed",
        "conflict",
        "task",
        "nudge",
        "new_message",
    ] {
        let user = witness(&office, event).await.to_string();
        let statement = match event {
            "message_updated" => message(&bob, &user, "content = 'edited'"),
            "message_read" => message(&user, &bob, "read_at = now(), status = 'read'"),
            "message_synced" => message(&user, &bob, "synced_at = now(), status = 'synced'"),
            "message_deleted" => message(&bob, &user, "deleted_at = now()"),
            "state_changed" => format!(
                "INSERT INTO tenant_acme.encrypted_states (user_id, key, state, nonce) VALUES ('{user}', 'k', 's', 'n')"
            ),
            "conflict" => format!(
                "INSERT INTO tenant_acme.message_conflicts
                     (message_id, user_id, base_version, client_version, server_version, strategy)
                 VALUES (gen_random_uuid(), '{user}', 1, '{{}}', '{{}}', 'manual')"
            ),
            "task" => format!("INSERT INTO tenant_acme.tasks VALUES (1, '{user}')"),
            "nudge" => {
                let recipients = json!([user]);
                format!("INSERT INTO tenant_acme.outbox (event, recipients) VALUES ('nudge', '{recipients}')")
            }
            // Not named here.
            _ => message(&bob, &user, "content = content"),
        };
        office.sql(&statement).await;
        wanted.push(event);
    }
    let outline = |pushes: &[Entry]| {
        let pair = |entry: &Entry| (entry.field("device_id").to_owned(), entry.field("event").to_owned());
        let mut pairs: Vec<_> = pushes.iter().map(pair).collect();
        pairs.sort();
        pairs
    };
    let last = wanted.pop().unwrap();
    let mut expected: Vec<(String, String)> = wanted.iter().map(|event| ((*event).into(), (*event).into())).collect();
    expected.sort();
    assert_eq!(outline(&pushed(&office.world, expected.len()).await), expected);
    // What goes to all wakes those who were not woken yet.
    office.sql("INSERT INTO tenant_acme.news VALUES (1)").await;
    expected.push((last.into(), "news".into()));
    expected.sort();
    assert_eq!(outline(&pushed(&office.world, expected.len()).await), expected);
    office.close().await;
}

#[tokio::test]
async fn own_write_wakes_only_the_users_other_devices() {
    let office = Office::with(|config| {
        quick(config);
        // Not those of the added devices.
        config.push.events = ["new_message", "message_updated", "state_changed"]
            .map(str::to_owned)
            .into();
    })
    .await;
    let phone = office.phone("phone").await;
    office.phone("tablet").await;
    office.world.published().await;
    let (_, cursor) = phone.sync(None).await;
    phone.sync(Some(&cursor)).await;
    let item = json!({"id": Uuid::new_v4(), "recipient_id": office.bob_id, "content": "by the phone"});
    phone.upload(&[item]).await;
    let state = json!({"state": "c2VjcmV0", "nonce": "MTIgYnl0ZXM="});
    phone
        .with("if-none-match", "*")
        .put("/api/state/settings", &state)
        .await
        .expect(201);
    assert_eq!(devices(&pushed(&office.world, 1).await), ["tablet"]);
    // The phone was looked at along with it; what somebody else does wakes it.
    office.send("hi").await;
    assert_eq!(devices(&pushed(&office.world, 2).await), ["tablet", "phone"]);
    office.close().await;
}

#[tokio::test]
async fn webhook_over_https_verifies_the_configured_authority() {
    let folder = std::env::temp_dir().join(format!("posduif-webhook-{}", Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let authority = Authority::new("the receiver's authority");
    let (certificate, key) = authority.issue(&["localhost"], "receiver");
    let file = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let ca = file("ca.crt", &authority.pem).to_str().unwrap().to_owned();
    let other_ca = file("other.crt", &Authority::new("somebody else").pem);
    let files = CertificateFiles {
        certificate: file("receiver.crt", &certificate),
        key: file("receiver.key", &key),
    };
    let receiver = Receiver::start_with(&[], Some(Acceptor::new(files).unwrap())).await;
    let port = receiver.address.rsplit(':').next().unwrap().to_owned();
    let at = |host: &str, ca: &str| {
        let (url, ca) = (format!("https://{host}:{port}/hook"), ca.to_owned());
        move |config: &mut Config| {
            quick(config);
            config.push.webhook_url = url;
            config.push.webhook_ca_file = ca;
            configure_sending(config);
        }
    };
    // The system's authorities, another one, and the right one for another name.
    let office = Office::with(at("localhost", "")).await;
    office.phone("phone").await;
    office.send("hi").await;
    let refused = async |api: &crate::support::http::Api| {
        eventually("the webhook was not taken", || async {
            let metrics = api.admin().get("/metrics").await;
            let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
            let line = "posduif_push_webhooks_total{outcome=\"refused\"} ";
            let count = metrics.lines().find_map(|text| text.strip_prefix(line)).unwrap_or("0");
            (count != "0").then_some(())
        })
        .await;
    };
    refused(&office.anybody).await;
    let Office { world, engine, .. } = office;
    engine.stop().await;
    for change in [at("localhost", other_ca.to_str().unwrap()), at("127.0.0.1", &ca)] {
        let mut config = world.config.clone();
        change(&mut config);
        let engine = world.engine_with(Role::Replicator, config).await;
        refused(&engine.api().undescribed()).await;
        engine.stop().await;
    }
    assert!(receiver.deliveries.lock().unwrap().is_empty());
    let mut config = world.config.clone();
    at("localhost", &ca)(&mut config);
    let engine = world.engine_with(Role::Replicator, config).await;
    let delivery = receiver.received(1).await.remove(0);
    assert_eq!(
        delivery.headers["webhook-id"],
        pushed(&world, 1).await.remove(0).field("id")
    );
    spec::check_webhook("device.waiting", &delivery.headers, &delivery.json());
    engine.stop().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What a hostile receiver does with a connection.
async fn misbehave(how: usize, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _bytes = stream.read(&mut request).await?;
    match how {
        // A head without an end.
        0 => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                stream.write_all(b"x-more: and more of it\r\n").await?;
            }
        }
        // An answer that never ends, byte by byte.
        1 => loop {
            stream.write_all(b"H").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        },
        // No answer at all.
        2 => Ok(()),
        // Something else than HTTP.
        3 => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await,
        // Provisional answers without an end.
        4 => loop {
            stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        // Taken, with a body that nobody has asked for.
        _ => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
                .await?;
            loop {
                stream.write_all(&[b'x'; 65_536]).await?;
            }
        }
    }
}

#[tokio::test]
async fn webhook_response_is_bounded_in_time_and_bytes() {
    const HOSTILE: usize = 6;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ended = Arc::new(Mutex::new(Vec::new()));
    let noted = ended.clone();
    let taken = Arc::new(Mutex::new(0));
    let counted = taken.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (noted, counted) = (noted.clone(), counted.clone());
            tokio::spawn(async move {
                if number < HOSTILE {
                    // An end by the client's hand is an error here.
                    let _ended = misbehave(number, stream).await;
                    noted.lock().unwrap().push(number);
                } else {
                    let mut request = [0; 4096];
                    let _bytes = stream.read(&mut request).await.unwrap();
                    *counted.lock().unwrap() += 1;
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    let office = Office::with(|config| {
        quick(config);
        config.push.webhook_url = format!("http://{address}/hook");
        configure_sending(config);
    })
    .await;
    let users: Vec<String> = (1..=HOSTILE).map(|number| format!("phone-{number}")).collect();
    for name in &users {
        let user = witness(&office, name).await;
        send(&office, user).await;
    }
    pushed(&office.world, HOSTILE).await;
    eventually("the client has ended each of them", || async {
        let mut ended = ended.lock().unwrap().clone();
        ended.sort_unstable();
        (ended == (0..HOSTILE).collect::<Vec<_>>()).then_some(())
    })
    .await;
    eventually("nothing is due", || async {
        (due(&office.world).await == 0).then_some(())
    })
    .await;
    // The last was taken by its first answer, all others by their second.
    assert_eq!(*taken.lock().unwrap(), HOSTILE - 1);
    office.close().await;
}
