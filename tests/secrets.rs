//! Secrets are in no log line, at any log level.

use posduif::accounts::users::UserType;
use serde_json::{Value, json};

use crate::support::http::Api;
use crate::support::{PASSWORD, World, eventually};

/// A text under a field.
fn text(answer: &Value, field: &str) -> String {
    answer[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} in {answer}"))
        .to_owned()
}

#[tokio::test]
async fn passwords_tokens_and_content_are_not_logged() {
    const WRONG: &str = "a wrong password that somebody typed";
    const TEXT: &str = "what bob has to say to joe";
    let mut world = World::new().await;
    // All that the engine itself has to tell.
    world.config.log.level = "info,posduif=trace".into();
    let log = std::env::temp_dir().join(format!("{}-secrets.log", world.config.redis.prefix));
    let process = world.process_with("all", &world.config, Some(&log)).await;
    world.tenant("acme").await;
    world.user("acme", "bob", UserType::Web).await;
    let joe = world.user("acme", "joe", UserType::Mobile).await;
    world.published().await;
    let anybody = process.api();
    let login = |password: &str| json!({"tenant": "acme", "username": "bob", "password": password});
    anybody.post("/api/auth/login", &login(WRONG)).await.expect(401);
    let session = anybody.post("/api/auth/login", &login(PASSWORD)).await.expect(200);
    let refresh = json!({"refresh_token": session["refresh_token"]});
    let refreshed = anybody.post("/api/auth/refresh", &refresh).await.expect(200);
    let bob = anybody.with("authorization", &format!("Bearer {}", text(&refreshed, "token")));
    let invited = bob
        .post("/api/enrollment/create", &json!({"user_id": joe}))
        .await
        .expect(201);
    let enrollment = text(&invited, "token");
    anybody.get(&format!("/api/enrollment/{enrollment}")).await.expect(200);
    let complete = json!({"token": enrollment, "device_id": "phone", "device_info": {"platform": "android"}});
    let enrolled = anybody.post("/api/enrollment/complete", &complete).await.expect(201);
    let device = text(&enrolled, "device_token");
    let phone = Api::new(anybody.address())
        .with("authorization", &format!("Bearer {device}"))
        .with("x-device-id", "phone");
    bob.post("/api/messages", &json!({"recipient_id": joe, "content": TEXT}))
        .await
        .expect(201);
    world.published().await;
    let (pages, _) = phone.sync(None).await;
    assert!(pages[0].to_string().contains(TEXT), "{pages:?}");
    // Errors that quote what they were given would be caught here.
    anybody
        .get(&format!("/api/enrollment/{enrollment}?x=%zz"))
        .await
        .expect(400);
    bob.with("authorization", &format!("Bearer {}x", text(&refreshed, "token")))
        .get("/api/messages")
        .await
        .expect(401);

    let lines = eventually("the log has the requests", || async {
        let lines = std::fs::read_to_string(&log).unwrap();
        (lines.contains("/api/sync/incoming") && lines.matches("request_id").count() >= 10).then_some(lines)
    })
    .await;
    let url = world.config.postgres.url.expose();
    let server_password = url
        .rsplit_once('@')
        .and_then(|(login, _)| login.rsplit_once(':'))
        .unwrap()
        .1;
    for (what, secret) in [
        ("a wrong password", WRONG.to_owned()),
        ("a password", PASSWORD.to_owned()),
        ("an access token", text(&session, "token")),
        ("a later access token", text(&refreshed, "token")),
        ("a refresh token", text(&session, "refresh_token")),
        ("a later refresh token", text(&refreshed, "refresh_token")),
        ("an enrollment's token", enrollment),
        ("a device's token", device),
        ("a message's text", TEXT.to_owned()),
        (
            "the key of access tokens",
            world.config.auth.jwt_secret.expose().to_owned(),
        ),
        ("Postgres' password", server_password.to_owned()),
    ] {
        assert!(secret.len() >= 8, "{what} is too short to be looked for");
        let line = lines.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "{what} is in the log");
    }
    assert_eq!(process.terminate().await, Some(0));
    std::fs::remove_file(&log).unwrap();
}
