//! Tickets: an address that opens one stream, once, within a short time.

use futures_util::future::join_all;
use posduif::accounts::users::UserType;
use serde_json::json;

use crate::api::assert_refused;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;

async fn ticket_for(api: &Api, stream: &str) -> String {
    let answer = api
        .post("/api/sse/ticket", &json!({"stream": stream}))
        .await
        .expect(201);
    assert_eq!(answer["stream"], stream);
    answer["ticket"].as_str().unwrap().to_owned()
}

/// The answer to a stream that a ticket does not open.
async fn refused(office: &Office, stream: &str, ticket: &str) -> Answer {
    let path = format!("{stream}?ticket={ticket}");
    office.anybody.open(&path).await.expect_err("no stream")
}

#[tokio::test]
async fn ticket_opens_its_stream_once_and_resumes() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let web = format!("/sse/web/{}", office.bob_id);
    for (api, stream, event) in [
        (&office.bob, web.as_str(), "message_updated"),
        (&phone, "/sse/mobile/phone", "message"),
    ] {
        let ticket = ticket_for(api, stream).await;
        let path = format!("{stream}?ticket={ticket}");
        let begun = office.anybody.events(&path).await;
        assert_refused(&refused(&office, stream, &ticket).await, 401, "UNAUTHORIZED");
        let sent = office.send("hi").await;
        office.world.published().await;
        // As a page does whose stream broke: a new ticket, and the id in the address.
        let ticket = ticket_for(api, stream).await;
        let resume = format!("{stream}?ticket={ticket}&last_event_id={}", begun.cursor);
        let mut resumed = office.anybody.events(&resume).await;
        assert_eq!(resumed.expect(event).await.data["message_id"], json!(sent));
    }
    office.close().await;
}

#[tokio::test]
async fn ticket_without_stream_name_is_for_the_callers_own() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let joe = office.anybody.log_in("acme", "joe").await;
    for (api, stream) in [
        (&office.bob, format!("/sse/web/{}", office.bob_id)),
        (&phone, "/sse/mobile/phone".to_owned()),
        (&joe, "/ws".to_owned()),
    ] {
        let answer = api.post("/api/sse/ticket", &json!({})).await.expect(201);
        assert_eq!((&answer["stream"], &answer["expires_in"]), (&json!(stream), &json!(30)));
    }
    let nothing = office.bob.send(hyper::Method::POST, "/api/sse/ticket", None, "").await;
    assert_eq!(nothing.expect(201)["stream"], format!("/sse/web/{}", office.bob_id));
    office.close().await;
}

#[tokio::test]
async fn ticket_used_concurrently_admits_one() {
    let office = Office::open().await;
    let stream = format!("/sse/web/{}", office.bob_id);
    for _ in 0..5 {
        let path = format!("{stream}?ticket={}", ticket_for(&office.bob, &stream).await);
        // Each over a connection of its own.
        let clients: Vec<Api> = (0..20).map(|_| Api::new(office.anybody.address())).collect();
        let opened = join_all(clients.iter().map(|api| api.open(&path))).await;
        let (inside, outside): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        assert_eq!(inside.len(), 1);
        for answer in outside {
            assert_refused(&answer.unwrap_err(), 401, "UNAUTHORIZED");
        }
    }
    office.close().await;
}

#[tokio::test]
async fn ticket_for_another_stream_is_refused_and_consumed() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let other = office.phone("other").await;
    let jane = office.world.user("acme", "jane", UserType::Web).await;
    office.world.tenant("globex").await;
    let stranger_id = office.world.user("globex", "bob", UserType::Web).await;
    let stranger = office.anybody.log_in("globex", "bob").await;
    let (strange_phone, _) = stranger.enroll("phone-of-globex", None).await;
    let own = format!("/sse/web/{}", office.bob_id);
    let (others, strange) = (format!("/sse/web/{jane}"), format!("/sse/web/{stranger_id}"));
    for (api, granted, shown) in [
        (&office.bob, own.as_str(), others.as_str()),
        (&office.bob, own.as_str(), strange.as_str()),
        (&office.bob, own.as_str(), "/sse/mobile/phone"),
        (&office.bob, "/ws", own.as_str()),
        (&stranger, strange.as_str(), own.as_str()),
        (&strange_phone, "/sse/mobile/phone-of-globex", "/sse/mobile/phone"),
        (&phone, "/sse/mobile/phone", "/sse/mobile/other"),
        (&phone, "/ws", "/sse/mobile/phone"),
        (&other, "/sse/mobile/other", own.as_str()),
    ] {
        let ticket = ticket_for(api, granted).await;
        assert_refused(&refused(&office, shown, &ticket).await, 401, "UNAUTHORIZED");
        if granted != "/ws" {
            assert_refused(&refused(&office, granted, &ticket).await, 401, "UNAUTHORIZED");
        }
    }
    // And nobody gets one for what is not theirs.
    for (api, stream, status) in [
        (&office.bob, others.as_str(), 403),
        (&office.bob, strange.as_str(), 404),
        (&office.bob, "/sse/mobile/phone", 403),
        (&phone, "/sse/mobile/other", 403),
        (&phone, "/sse/mobile/phone-of-globex", 404),
        (&phone, own.as_str(), 403),
    ] {
        let answer = api.post("/api/sse/ticket", &json!({"stream": stream})).await;
        assert_eq!(answer.status.as_u16(), status, "{stream}");
    }
    office.close().await;
}

#[tokio::test]
async fn ticket_ends_with_its_session_or_device() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let web = format!("/sse/web/{}", office.bob_id);
    let tickets = [
        ticket_for(&office.bob, &web).await,
        ticket_for(&phone, "/sse/mobile/phone").await,
    ];
    assert_eq!(office.bob.post("/api/auth/logout", &json!({})).await.status, 204);
    // As an ended session is answered that comes by its access token: stop, and do not come back.
    assert_eq!(refused(&office, &web, &tickets[0]).await.status, 204);
    let again = office.bob.post("/api/sse/ticket", &json!({})).await;
    assert_refused(&again, 401, "SESSION_ENDED");
    let bob = office.anybody.log_in("acme", "bob").await;
    assert_eq!(bob.delete("/api/devices/phone").await.status, 204);
    assert_refused(
        &refused(&office, "/sse/mobile/phone", &tickets[1]).await,
        401,
        "UNAUTHORIZED",
    );

    // A device that was enrolled again has another token; tickets of the former one are refused like that token.
    let (phone, _) = bob.enroll("second", Some(&office.joe_id.to_string())).await;
    let ticket = ticket_for(&phone, "/sse/mobile/second").await;
    bob.enroll("second", Some(&office.joe_id.to_string())).await;
    assert_refused(
        &refused(&office, "/sse/mobile/second", &ticket).await,
        401,
        "UNAUTHORIZED",
    );
    office.close().await;
}

#[tokio::test]
async fn ticket_expires_and_is_not_stored_in_redis() {
    let office = Office::open().await;
    let stream = format!("/sse/web/{}", office.bob_id);
    let ticket = ticket_for(&office.bob, &stream).await;
    let mut redis = office.world.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{}:ticket:*", office.world.config.redis.prefix))
        .query_async(&mut redis)
        .await
        .unwrap();
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    let (value, ttl): (String, u64) = redis::pipe().get(key).pttl(key).query_async(&mut redis).await.unwrap();
    assert!((1..=30_000).contains(&ttl), "{ttl} ms");
    assert!(!key.contains(&ticket) && !value.contains(&ticket));
    let _: bool = redis::cmd("PEXPIRE")
        .arg(key)
        .arg(0)
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_refused(&refused(&office, &stream, &ticket).await, 401, "UNAUTHORIZED");
    for garbage in ["x", &"A".repeat(43), &"A".repeat(20_000), "%F0%9F%98%80", &ticket[1..]] {
        assert_refused(&refused(&office, &stream, garbage).await, 401, "UNAUTHORIZED");
    }
    office.close().await;
}

#[tokio::test]
async fn ticket_is_accepted_by_streams_only_and_not_logged() {
    let office = Office::open().await;
    let folder = std::env::temp_dir().join(&office.world.config.redis.prefix);
    std::fs::create_dir_all(&folder).unwrap();
    let log = folder.join("log");
    let mut config = office.world.config.clone();
    config.log.level = "trace".into();
    let process = office.world.process_with("api", &config, Some(&log)).await;
    let anybody = process.api();
    let stream = format!("/sse/web/{}", office.bob_id);
    let ticket = ticket_for(&office.bob, &stream).await;
    for path in ["/api/messages", "/api/users", "/api/auth/sessions", "/api/sync/status"] {
        assert_eq!(
            anybody.get(&format!("{path}?ticket={ticket}")).await.status,
            401,
            "{path}"
        );
    }
    // None of them has spent it.
    let events = anybody.events(&format!("{stream}?ticket={ticket}")).await;
    drop(events);
    let spent = anybody.open(&format!("{stream}?ticket={ticket}")).await.unwrap_err();
    assert_refused(&spent, 401, "UNAUTHORIZED");
    assert_eq!(process.terminate().await, Some(0));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("/sse/web/{user_id}"), "{log}");
    assert!(!log.contains(&ticket), "{log}");
    std::fs::remove_dir_all(&folder).unwrap();
    office.close().await;
}
