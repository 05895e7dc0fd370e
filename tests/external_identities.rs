//! Access tokens of other providers: what is accepted, what is refused, who their users are, and what a provider that is
//! away, slow or hostile changes.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use futures_util::future::join_all;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jsonwebtoken::Algorithm;
use posduif::config::{self, Texts};
use posduif::core::subject::Subject;
use posduif::core::tenant::Tenant;
use posduif::engine::{self, Role};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

use crate::api::assert_refused;
use crate::audit::entries;
use crate::support::command::{posduif_in, posduif_says, run};
use crate::support::eventually;
use crate::support::http::{Answer, Api};
use crate::support::office::{Office, ids};
use crate::support::provider::{Provider, Reply, SigningKey, jwks, with};

/// A provider with one key, and an office that accepts its tokens.
async fn office_of(key: &SigningKey, change: impl FnOnce(&mut config::Provider)) -> (Provider, Office) {
    let provider = Provider::start(&[key]).await;
    let office = office_with(&provider, change).await;
    (provider, office)
}

async fn office_with(provider: &Provider, change: impl FnOnce(&mut config::Provider)) -> Office {
    let mut settings = provider.settings();
    change(&mut settings);
    Office::with(|config| config.auth.providers = vec![settings]).await
}

fn user_id(tenant: &str, subject: &str) -> Uuid {
    let tenant = Tenant::named(tenant).unwrap();
    Subject::new("", subject).unwrap().user_id(&tenant)
}

/// What any user may request.
async fn ask(api: &Api) -> Answer {
    api.get("/api/messages").await
}

#[tokio::test]
async fn first_token_creates_the_user_who_acts_like_any_other() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let claims = with(
        provider.claims("auth0|7"),
        json!({"name": "Ann", "email": "ann@example.com", "email_verified": true}),
    );
    let ann = office.anybody.bearing(&key.sign(&claims));
    let message = json!({"recipient_id": office.joe_id, "content": "hi"});
    let sent = ann.post("/api/messages", &message).await.expect(201);
    let id = user_id("acme", "auth0|7");
    assert_eq!(sent["sender_id"], json!(id));
    let row = office
        .world
        .psql()
        .await
        .query_one(
            "SELECT username, email, user_type, role FROM tenant_acme.users WHERE id = $1",
            &[&id],
        )
        .await
        .unwrap();
    let texts = [0, 1, 2, 3].map(|index| row.get::<_, String>(index));
    assert_eq!(texts, ["Ann", "ann@example.com", "web", "member"]);
    let created = entries(&office, "user_created").await.pop().unwrap();
    assert_eq!((created.actor, created.subject), (id.to_string(), Some(id.to_string())));
    assert_eq!(created.detail["issuer"], provider.issuer);
    assert_eq!(created.detail["subject"], "auth0|7");

    // Streams and tickets.
    let path = format!("/sse/web/{id}");
    ann.events(&path).await;
    let ticket = ann.post("/api/sse/ticket", &json!({})).await.expect(201);
    let by_ticket = format!("{path}?ticket={}", ticket["ticket"].as_str().unwrap());
    office.anybody.events(&by_ticket).await;
    ann.socket("/ws").await;
    // Sessions of the provider are not listed here, and there is no password.
    assert_eq!(ann.get("/api/auth/sessions").await.expect(200), json!({"sessions": []}));
    let change = json!({"current": "anything", "new": "another horse"});
    assert_refused(&ann.post("/api/auth/password", &change).await, 403, "FORBIDDEN");
    let login = json!({"tenant": "acme", "username": "Ann", "password": ""});
    assert_eq!(office.anybody.post("/api/auth/login", &login).await.status, 400);
    let login = json!({"tenant": "acme", "username": "Ann", "password": "anything"});
    assert_refused(
        &office.anybody.post("/api/auth/login", &login).await,
        401,
        "UNAUTHORIZED",
    );
    assert_eq!(provider.requests(), 1);
    office.close().await;
}

#[tokio::test]
async fn device_of_an_external_user_syncs_by_its_own_token() {
    let key = SigningKey::new("k", Algorithm::EdDSA);
    let (provider, office) = office_of(&key, |settings| settings.user_type = config::NewUserType::Mobile).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    let device = json!({"name": "Phone", "type": "mobile"});
    let added = ann.post("/api/devices", &device).await.expect(201);
    let id = user_id("acme", "ann");
    assert_eq!(added["user_id"], json!(id));
    let phone = office
        .anybody
        .bearing(added["device_token"].as_str().unwrap())
        .with("x-device-id", added["device_id"].as_str().unwrap());
    let message = json!({"recipient_id": id, "content": "hello ann"});
    office.bob.post("/api/messages", &message).await.expect(201);
    let (pages, _) = phone.sync(None).await;
    assert_eq!(pages[0]["messages"][0]["content"], "hello ann");
    // A device's routes need its own token.
    let refused = ann.get("/api/sync/incoming").await;
    assert_refused(&refused, 401, "UNAUTHORIZED");
    office.close().await;
}

#[tokio::test]
async fn every_accepted_algorithm_verifies() {
    let keys = [
        ("rsa", Algorithm::RS256),
        ("p256", Algorithm::ES256),
        ("p384", Algorithm::ES384),
        ("ed", Algorithm::EdDSA),
    ]
    .map(|(kid, algorithm)| SigningKey::new(kid, algorithm));
    let provider = Provider::start(&keys.iter().collect::<Vec<_>>()).await;
    let office = office_with(&provider, |settings| {
        settings.algorithms.push(config::SignatureAlgorithm::ES384);
    })
    .await;
    for key in &keys {
        let token = key.sign(&provider.claims(&key.kid));
        ask(&office.anybody.bearing(&token)).await.expect(200);
    }
    office.close().await;
}

/// A token whose signature is an HMAC with the text of a public key.
fn signed_with_public_key(key: &SigningKey, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "HS256", "kid": key.kid})), part(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

#[tokio::test]
async fn forged_foreign_and_untimely_tokens_are_refused() {
    let key = SigningKey::new("k", Algorithm::RS256);
    let thief = SigningKey::new("k", Algorithm::RS256);
    let unlisted = SigningKey::new("384", Algorithm::ES384);
    let provider = Provider::start(&[&key, &unlisted]).await;
    let office = office_with(&provider, |settings| settings.token_bytes_max = 4096).await;
    let claims = provider.claims("ann");
    let now = Utc::now().timestamp();
    let changed = |changes: Value| key.sign(&with(claims.clone(), changes));
    let good = key.sign(&claims);
    let parts: Vec<&str> = good.split('.').collect();
    let header = |changes: Value| with(json!({"alg": "RS256", "kid": "k"}), changes);
    let other_claims = URL_SAFE_NO_PAD.encode(with(claims.clone(), json!({"sub": "bob"})).to_string());
    let n = key.jwk["n"].as_str().unwrap();
    let bad = [
        ("another issuer", changed(json!({"iss": "https://id.example.com/"}))),
        ("no issuer", changed(json!({"iss": null}))),
        ("a list of issuers", changed(json!({"iss": [provider.issuer]}))),
        ("another audience", changed(json!({"aud": "other"}))),
        ("no audience", changed(json!({"aud": null}))),
        ("expired", changed(json!({"iat": now - 100, "exp": now - 31}))),
        ("no exp", changed(json!({"exp": null}))),
        ("exp as text", changed(json!({"exp": (now + 60).to_string()}))),
        ("not yet valid", changed(json!({"nbf": now + 60}))),
        ("nbf as text", changed(json!({"nbf": "now"}))),
        ("no iat", changed(json!({"iat": null}))),
        ("iat in the future", changed(json!({"iat": now + 60}))),
        ("valid for too long", changed(json!({"exp": now + 86_402}))),
        ("valid indefinitely", changed(json!({"exp": i64::MAX}))),
        ("too long", changed(json!({"padding": "x".repeat(4096)}))),
        ("another key under its kid", thief.sign(&claims)),
        ("an algorithm that is not accepted", unlisted.sign(&claims)),
        (
            "an algorithm of another key type",
            key.sign_with(&header(json!({"alg": "ES256"})), &claims),
        ),
        (
            "another algorithm of the key",
            key.sign_with(&header(json!({"alg": "PS256"})), &claims),
        ),
        ("an unknown key", key.sign_with(&header(json!({"kid": "x"})), &claims)),
        (
            "critical extensions",
            key.sign_with(&header(json!({"crit": ["b64"], "b64": false})), &claims),
        ),
        ("alg none", key.sign_with(&header(json!({"alg": "none"})), &claims)),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("other claims", format!("{}.{other_claims}.{}", parts[0], parts[2])),
        ("four parts", format!("{good}.x")),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        (
            "a modulus as secret",
            signed_with_public_key(&key, &claims, n.as_bytes()),
        ),
        (
            "a key as secret",
            signed_with_public_key(&key, &claims, key.jwk.to_string().as_bytes()),
        ),
        (
            "an own issuer under HS256",
            signed_with_public_key(&key, &with(claims.clone(), json!({"iss": "posduif"})), n.as_bytes()),
        ),
    ];
    for (what, token) in bad {
        let answer = ask(&office.anybody.bearing(&token)).await;
        let code = if what == "expired" {
            "TOKEN_EXPIRED"
        } else {
            "UNAUTHORIZED"
        };
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (401, code),
            "{what}: {}",
            answer.json()
        );
    }
    // No user was created, and no stranger made the provider work.
    assert_eq!(entries(&office, "user_created").await.len(), 2);
    assert_eq!(provider.requests(), 1);
    let now = Utc::now().timestamp();
    for (what, token) in [
        (
            "expired within the leeway",
            changed(json!({"iat": now - 100, "exp": now - 20})),
        ),
        (
            "valid within the leeway",
            changed(json!({"nbf": now + 20, "iat": now + 20})),
        ),
        (
            "one of several audiences",
            changed(json!({"aud": ["other", "posduif"]})),
        ),
        (
            "the only key of its type",
            key.sign_with(&header(json!({"kid": null})), &claims),
        ),
    ] {
        let answer = ask(&office.anybody.bearing(&token)).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.json());
    }
    office.close().await;
}

#[tokio::test]
async fn flood_of_unknown_keys_asks_the_provider_at_most_once() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let provider = Provider::replying(Reply::Late(jwks(&[&key]))).await;
    let office = office_with(&provider, |settings| settings.jwks_cooldown_seconds = 3600).await;
    let flood = async |count: usize| {
        let tokens = (0..count).map(|number| {
            let header = json!({"alg": "ES256", "kid": format!("junk {number}")});
            key.sign_with(&header, &provider.claims("ann"))
        });
        let requests = tokens.map(|token| {
            let api = office.anybody.bearing(&token);
            async move { ask(&api).await.status.as_u16() }
        });
        join_all(requests).await
    };
    // While the first read is in progress, and after it.
    let answers = tokio::join!(flood(100), async {
        eventually("the provider is asked", || async {
            (provider.requests() == 1).then_some(())
        })
        .await;
        ask(&office.bob).await.expect(200);
        provider.release();
    });
    assert!(answers.0.iter().all(|status| *status == 401), "{:?}", answers.0);
    assert!(flood(1000).await.iter().all(|status| *status == 401));
    assert_eq!(provider.requests(), 1);
    ask(&office.anybody.bearing(&key.sign(&provider.claims("ann"))))
        .await
        .expect(200);
    office.close().await;
}

#[tokio::test]
async fn rotated_keys_are_read_when_a_token_names_one() {
    let [old, new] = ["old", "new"].map(|kid| SigningKey::new(kid, Algorithm::ES256));
    let (provider, office) = office_of(&old, |settings| {
        settings.jwks_cooldown_seconds = 1;
        settings.jwks_refresh_seconds = 86_400;
    })
    .await;
    let by_old = office.anybody.bearing(&old.sign(&provider.claims("ann")));
    let by_new = office.anybody.bearing(&new.sign(&provider.claims("ann")));
    ask(&by_old).await.expect(200);
    provider.rotate(&[&old, &new]);
    eventually("the new key is known", || async {
        (ask(&by_new).await.status == 200).then_some(())
    })
    .await;
    ask(&by_old).await.expect(200);
    // A withdrawn key ends the tokens that were verified with it.
    provider.rotate(&[&new]);
    let stranger = old.sign_with(&json!({"alg": "ES256", "kid": "x"}), &provider.claims("ann"));
    let stranger = office.anybody.bearing(&stranger);
    eventually("the old key is withdrawn", || async {
        assert_refused(&ask(&stranger).await, 401, "UNAUTHORIZED");
        (ask(&by_old).await.status == 401).then_some(())
    })
    .await;
    ask(&by_new).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn two_keys_under_one_kid_are_both_tried() {
    let [one, two] = [(); 2].map(|()| SigningKey::new("same", Algorithm::ES256));
    let provider = Provider::start(&[&one, &two]).await;
    let office = office_with(&provider, |_| {}).await;
    for key in [&one, &two] {
        let api = office.anybody.bearing(&key.sign(&provider.claims("ann")));
        ask(&api).await.expect(200);
    }
    office.close().await;
}

#[tokio::test]
async fn cached_keys_are_used_while_the_provider_is_away() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| {
        settings.jwks_refresh_seconds = 1;
        settings.jwks_cooldown_seconds = 1;
    })
    .await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    ask(&ann).await.expect(200);
    provider.reply(Reply::Status(500));
    let before = provider.requests();
    eventually("a read has failed", || async {
        (provider.requests() >= before + 2).then_some(())
    })
    .await;
    ask(&ann).await.expect(200);
    ask(&office.anybody.bearing(&key.sign(&provider.claims("eve"))))
        .await
        .expect(200);
    // The key may exist by now.
    let unknown = key.sign_with(&json!({"alg": "ES256", "kid": "x"}), &provider.claims("ann"));
    let unknown = office.anybody.bearing(&unknown);
    eventually("an unknown key is not known to be none", || async {
        let answer = ask(&unknown).await;
        (answer.code() == "PROVIDER_UNAVAILABLE").then(|| assert!(answer.headers.contains_key("retry-after")))
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn stale_keys_end_verified_tokens_until_the_provider_is_back() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| {
        settings.jwks_refresh_seconds = 1;
        settings.jwks_cooldown_seconds = 1;
        settings.jwks_stale_seconds = 1;
    })
    .await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    eventually("the token is accepted", || async {
        (ask(&ann).await.status == 200).then_some(())
    })
    .await;
    provider.reply(Reply::Status(500));
    eventually("the keys are stale", || async {
        (ask(&ann).await.code() == "PROVIDER_UNAVAILABLE").then_some(())
    })
    .await;
    provider.rotate(&[&key]);
    eventually("the token is accepted again", || async {
        (ask(&ann).await.status == 200).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn provider_without_usable_keys_gives_503_until_it_has_some() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let large = format!("{{\"keys\": [], \"padding\": \"{}\"}}", "x".repeat(300_000));
    for reply in [
        Reply::Status(500),
        Reply::Status(302),
        Reply::Body("<html>".into()),
        Reply::Body("{}".into()),
        Reply::Body(large),
    ] {
        let provider = Provider::replying(reply).await;
        let office = office_with(&provider, |settings| settings.jwks_cooldown_seconds = 1).await;
        let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
        let answer = ask(&ann).await;
        assert_refused(&answer, 503, "PROVIDER_UNAVAILABLE");
        assert_eq!(answer.json()["error"]["retryable"], true);
        provider.rotate(&[&key]);
        eventually("the provider is back", || async {
            (ask(&ann).await.status == 200).then_some(())
        })
        .await;
        office.close().await;
    }
}

#[tokio::test]
async fn slow_provider_holds_up_only_its_own_tokens() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let provider = Provider::replying(Reply::Late(jwks(&[&key]))).await;
    let office = office_with(&provider, |settings| settings.jwks_timeout_seconds = 30).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    let (answer, ()) = tokio::join!(ask(&ann), async {
        for _ in 0..20 {
            ask(&office.bob).await.expect(200);
        }
        office.anybody.log_in("acme", "bob").await;
        provider.release();
    });
    answer.expect(200);
    office.close().await;
}

#[tokio::test]
async fn provider_that_never_responds_is_given_up_in_time() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let provider = Provider::replying(Reply::Late(json!({}))).await;
    let office = office_with(&provider, |settings| settings.jwks_timeout_seconds = 1).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    assert_refused(&ask(&ann).await, 503, "PROVIDER_UNAVAILABLE");
    office.close().await;
}

#[tokio::test]
async fn keys_of_a_file_verify_and_a_wrong_file_stops_the_start() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let provider = Provider::start(&[]).await;
    let path = std::env::temp_dir().join(format!("posduif-keys-{}.json", Uuid::new_v4().simple()));
    std::fs::write(&path, jwks(&[&key]).to_string()).unwrap();
    let office = office_with(&provider, |settings| settings.jwks = path.to_str().unwrap().into()).await;
    ask(&office.anybody.bearing(&key.sign(&provider.claims("ann"))))
        .await
        .expect(200);
    assert_eq!(provider.requests(), 0);
    for content in ["", "{}", "{\"keys\": []}"] {
        std::fs::write(&path, content).unwrap();
        let error = format!("{:#}", engine::check(&office.world.config, Role::Api).unwrap_err());
        assert!(
            error.contains("`auth.providers[0]`") && error.contains("posduif-keys-"),
            "{error}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    let error = format!("{:#}", engine::check(&office.world.config, Role::Api).unwrap_err());
    assert!(error.contains("cannot read"), "{error}");
    office.close().await;
}

#[tokio::test]
async fn tenant_comes_from_the_claim_and_unknown_ones_are_refused_alike() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| {
        settings.tenant.clear();
        settings.claims.tenant = Texts::from(&["org", "id"][..]);
        let tenants = [("org_1", "acme"), ("org_2", "globex"), ("org_3", "missing")];
        settings.tenants = tenants
            .map(|(value, tenant)| (value.to_owned(), tenant.to_owned()))
            .into();
    })
    .await;
    office.world.tenant("globex").await;
    let of = |org: Value| {
        let claims = with(provider.claims("ann"), json!({"org": {"id": org}}));
        office.anybody.bearing(&key.sign(&claims))
    };
    let mut users = BTreeSet::new();
    for (org, tenant) in [("org_1", "acme"), ("org_2", "globex")] {
        let api = of(json!(org));
        let added = api
            .post("/api/devices", &json!({"name": "A", "type": "browser"}))
            .await
            .expect(201);
        assert_eq!(added["tenant_id"], tenant);
        users.insert(added["user_id"].to_string());
        ask(&api.with("x-tenant", tenant)).await.expect(200);
        assert_refused(&ask(&api.with("x-tenant", "other")).await, 403, "FORBIDDEN");
    }
    assert_eq!(users.len(), 2);
    let mut messages = BTreeSet::new();
    for bad in [
        json!("org_3"),
        json!("acme"),
        json!("org_4"),
        json!(null),
        json!(["org_1"]),
    ] {
        let answer = ask(&of(bad)).await;
        assert_refused(&answer, 403, "FORBIDDEN");
        messages.insert(answer.json()["error"]["message"].to_string());
    }
    // The response does not reveal which tenants exist.
    assert_eq!(messages.len(), 1);
    let refused = entries(&office, "identity_refused").await;
    let reasons: Vec<&str> = refused
        .iter()
        .filter_map(|entry| entry.detail["reason"].as_str())
        .collect();
    assert_eq!(
        reasons,
        [
            "unknown_tenant",
            "tenant_claim",
            "tenant_claim",
            "tenant_claim",
            "tenant_claim"
        ]
    );
    assert_eq!(refused[0].tenant.as_deref(), Some("missing"));
    assert_eq!(
        (&refused[0].actor, refused[0].subject.as_deref()),
        (&"anonymous".to_owned(), Some("ann"))
    );
    assert!(
        refused
            .iter()
            .all(|entry| entry.detail["issuer"] == json!(provider.issuer))
    );
    office.close().await;
}

#[tokio::test]
async fn role_follows_the_newest_token_and_no_older_one() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| {
        settings.claims.role = Texts::from(&["app", "roles"][..]);
        settings.admin_roles = vec!["owner".into()];
    })
    .await;
    let now = Utc::now().timestamp();
    let token = |age: i64, roles: Value| {
        let claims = with(
            provider.claims("ann"),
            json!({"iat": now - age, "app": {"roles": roles}}),
        );
        office.anybody.bearing(&key.sign(&claims))
    };
    // Only admins list the devices of others.
    let others = format!("/api/devices?user_id={}", office.joe_id);
    let status = async |api: &Api| api.get(&others).await.status.as_u16();
    let oldest = token(30, json!(["owner"]));
    assert_eq!(status(&oldest).await, 200);
    let newer = token(20, json!(["reader"]));
    assert_eq!(status(&newer).await, 403);
    assert_eq!(status(&oldest).await, 403);
    let newest = token(10, json!("owner"));
    assert_eq!(status(&newest).await, 200);
    assert_eq!(status(&newer).await, 200);
    let changes = entries(&office, "role_changed").await;
    let roles: Vec<&str> = changes
        .iter()
        .filter_map(|entry| entry.detail["role"].as_str())
        .collect();
    assert_eq!(roles, ["member", "admin"]);
    assert_eq!(changes[0].detail["issuer"], provider.issuer);
    assert_refused(&ask(&token(5, json!({"owner": true}))).await, 403, "FORBIDDEN");
    let refused = entries(&office, "identity_refused").await;
    assert_eq!(refused[0].detail["reason"], "role_claim");
    office.close().await;
}

#[tokio::test]
async fn user_who_does_not_exist_is_created_only_where_allowed() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| settings.provision = false).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("42")));
    assert_refused(&ask(&ann).await, 403, "FORBIDDEN");
    let refused = entries(&office, "identity_refused").await;
    assert_eq!(
        (refused.len(), &refused[0].detail["reason"]),
        (1, &json!("not_provisioned"))
    );
    assert_eq!(refused[0].subject.as_deref(), Some("42"));
    // The app creates the user.
    let id = user_id("acme", "42");
    let row = format!("INSERT INTO tenant_acme.users (id, username, user_type) VALUES ('{id}', 'ann', 'web')");
    office.sql(&row).await;
    eventually("the user is linked", || async {
        (ask(&ann).await.status == 200).then_some(())
    })
    .await;
    let linked = entries(&office, "identity_linked").await;
    assert_eq!((linked.len(), &linked[0].detail["subject"]), (1, &json!("42")));
    office.close().await;
}

#[tokio::test]
async fn token_never_takes_over_a_user_who_has_a_password_or_a_device() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    office.bob.enroll("phone", None).await;
    let psql = office.world.psql().await;
    let enrolled: Uuid = psql
        .query_one("SELECT user_id FROM tenant_acme.devices WHERE device_id = 'phone'", &[])
        .await
        .unwrap()
        .get(0);
    for id in [office.bob_id, office.joe_id, enrolled] {
        let thief = office.anybody.bearing(&key.sign(&provider.claims(&id.to_string())));
        assert_refused(&ask(&thief).await, 403, "FORBIDDEN");
    }
    let refused = entries(&office, "identity_refused").await;
    assert!(
        refused.iter().all(|entry| entry.detail["reason"] == "other_user"),
        "{refused:?}"
    );
    assert_eq!(refused.len(), 3);
    ask(&office.bob).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn providers_of_one_tenant_cannot_identify_each_others_users() {
    let [one, two] = ["one", "two"].map(|kid| SigningKey::new(kid, Algorithm::ES256));
    let first = Provider::start(&[&one]).await;
    let second = Provider::start(&[&two]).await;
    let settings = vec![
        first.settings(),
        config::Provider {
            subject_prefix: "kc:".into(),
            ..second.settings()
        },
    ];
    let office = Office::with(|config| config.auth.providers.clone_from(&settings)).await;
    let uuid = Uuid::new_v4().to_string();
    let device = json!({"name": "A", "type": "browser"});
    let mut users = BTreeSet::new();
    for (key, provider) in [(&one, &first), (&two, &second)] {
        for subject in ["42", &uuid] {
            let api = office.anybody.bearing(&key.sign(&provider.claims(subject)));
            let added = api.post("/api/devices", &device).await.expect(201);
            users.insert(added["user_id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(users.len(), 4);
    assert!(users.contains(&uuid) && users.contains(&user_id("acme", "kc:42").to_string()));
    // Neither by a subject that looks like one of the other, nor with the other's key.
    for token in [
        one.sign(&first.claims("kc:42")),
        two.sign(&first.claims("42")),
        one.sign(&second.claims("42")),
    ] {
        let status = ask(&office.anybody.bearing(&token)).await.status.as_u16();
        assert!(matches!(status, 401 | 403), "{status}");
    }
    // Nor after the settings changed.
    let successor = config::Provider {
        subject_prefix: String::new(),
        ..second.settings()
    };
    let mut config = office.world.config.clone();
    config.auth.providers = vec![successor];
    let node = office.world.engine_with(Role::Api, config).await;
    for subject in ["42", &uuid] {
        let api = node.api().bearing(&two.sign(&second.claims(subject)));
        assert_refused(&ask(&api).await, 403, "FORBIDDEN");
    }
    let refused = entries(&office, "identity_refused").await;
    let reasons: Vec<&str> = refused
        .iter()
        .filter_map(|entry| entry.detail["reason"].as_str())
        .collect();
    assert_eq!(reasons, ["subject_prefix", "other_identity", "other_identity"]);
    node.stop().await;
    office.close().await;
}

#[tokio::test]
async fn concurrent_first_tokens_create_one_user() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let second = office.world.engine(Role::Api).await;
    let nodes = [office.anybody.clone(), office.anybody.at(&second.api())];
    let requests = (0..20).map(|number| {
        // Each token is another one.
        let claims = with(provider.claims("ann"), json!({"jti": number, "name": "ann"}));
        let api = nodes[number % 2].bearing(&key.sign(&claims));
        async move { ask(&api).await.status.as_u16() }
    });
    assert_eq!(join_all(requests).await, [200; 20]);
    let created = entries(&office, "user_created").await;
    let of_provider = created.iter().filter(|entry| entry.detail["issuer"].is_string());
    assert_eq!(of_provider.count(), 1);
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn taken_name_or_email_does_not_keep_a_user_out() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let psql = office.world.psql().await;
    let names = async |subject: &str, changes: Value| {
        let token = key.sign(&with(provider.claims(subject), changes));
        ask(&office.anybody.bearing(&token)).await.expect(200);
        let row = psql
            .query_one(
                "SELECT username, email FROM tenant_acme.users WHERE id = $1",
                &[&user_id("acme", subject)],
            )
            .await
            .unwrap();
        (row.get::<_, String>(0), row.get::<_, Option<String>>(1))
    };
    let verified = |name: &str| json!({"name": name, "email": "ann@example.com", "email_verified": true});
    assert_eq!(
        names("1", verified("Ann")).await,
        ("Ann".into(), Some("ann@example.com".into()))
    );
    let short = user_id("acme", "2").simple().to_string()[..8].to_owned();
    assert_eq!(names("2", verified("BOB")).await, ("2".into(), None));
    assert_eq!(
        names("3", json!({"name": "Eve", "email": "eve@example.com"})).await,
        ("Eve".into(), None)
    );
    assert_eq!(
        names("4", json!({"name": "victim@example.com"})).await,
        ("4".into(), None)
    );
    assert_eq!(names("5", json!({"name": "x".repeat(300)})).await, ("5".into(), None));
    let taken = "INSERT INTO tenant_acme.users (username, user_type) VALUES ('6', 'web')";
    office.sql(taken).await;
    let (name, _) = names("6", json!({"name": "bob"})).await;
    assert!(name.starts_with("bob (") && !name.contains(&short), "{name}");
    office.close().await;
}

#[tokio::test]
async fn disabled_user_is_refused_at_once_and_needs_a_newer_token_later() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let second = office.world.engine(Role::Api).await;
    let token = key.sign(&with(provider.claims("ann"), json!({"name": "ann"})));
    let nodes = [office.anybody.clone(), office.anybody.at(&second.api())].map(|node| node.bearing(&token));
    let path = format!("/sse/web/{}", user_id("acme", "ann"));
    ask(&nodes[0]).await.expect(200);
    let mut streams = [nodes[0].events(&path).await, nodes[1].events(&path).await];
    let mut socket = nodes[1].socket("/ws").await;
    let ticket = nodes[0].post("/api/sse/ticket", &json!({})).await.expect(201);
    posduif_says(&office.world, "user disable ann --tenant acme")
        .await
        .text();
    for stream in &mut streams {
        assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    }
    assert_eq!(socket.rest().await.1, 4401);
    for node in &nodes {
        eventually("the token is refused", || async {
            (ask(node).await.code() == "SESSION_ENDED").then_some(())
        })
        .await;
        assert_eq!(node.open(&path).await.unwrap_err().status, 204);
        assert_refused(&node.try_socket("/ws").await.unwrap_err(), 401, "SESSION_ENDED");
    }
    let by_ticket = format!("{path}?ticket={}", ticket["ticket"].as_str().unwrap());
    assert_eq!(office.anybody.open(&by_ticket).await.unwrap_err().status, 204);
    posduif_says(&office.world, "user enable ann --tenant acme")
        .await
        .text();
    let later = Utc::now().timestamp() + 5;
    let fresh = key.sign(&with(provider.claims("ann"), json!({"iat": later})));
    for node in &nodes {
        eventually("a newer token is accepted", || async {
            (ask(&node.bearing(&fresh)).await.status == 200).then_some(())
        })
        .await;
        assert_refused(&ask(node).await, 401, "SESSION_ENDED");
    }
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn fresh_token_takes_the_place_of_the_password_of_an_erasure() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let account = "/api/account/delete";
    let age = |seconds: i64| with(provider.claims("ann"), json!({"iat": Utc::now().timestamp() - seconds}));
    let old = office.anybody.bearing(&key.sign(&age(400)));
    ask(&old).await.expect(200);
    assert_refused(&old.post(account, &json!({})).await, 403, "FORBIDDEN");
    let fresh = office.anybody.bearing(&key.sign(&age(0)));
    fresh.post(account, &json!({})).await.expect(204);
    let later = office.anybody.bearing(&key.sign(&age(-5)));
    for api in [fresh, later] {
        eventually("the token is refused", || async {
            (ask(&api).await.code() == "SESSION_ENDED").then_some(())
        })
        .await;
    }
    office.close().await;
}

#[tokio::test]
async fn deleted_user_is_not_created_again() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    ask(&ann).await.expect(200);
    let id = user_id("acme", "ann");
    let erase = format!("user erase {id} --tenant acme --yes --json");
    assert_eq!(posduif_says(&office.world, &erase).await.json()["erased"], true);
    // Who the user was for the provider is forgotten, too.
    let psql = office.world.psql().await;
    let identities = psql.query("SELECT FROM posduif.identities", &[]).await.unwrap();
    assert!(identities.is_empty());
    let later = with(provider.claims("ann"), json!({"iat": Utc::now().timestamp() + 5}));
    for api in [ann, office.anybody.bearing(&key.sign(&later))] {
        eventually("the token is refused", || async {
            (ask(&api).await.code() == "SESSION_ENDED").then_some(())
        })
        .await;
    }
    office.close().await;
}

#[tokio::test]
async fn end_of_all_sessions_ends_older_tokens_but_the_callers() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let second = office.world.engine(Role::Api).await;
    let numbered = |number: u8| key.sign(&with(provider.claims("ann"), json!({"jti": number})));
    let (own, other) = (
        office.anybody.bearing(&numbered(1)),
        office.anybody.at(&second.api()).bearing(&numbered(2)),
    );
    let path = format!("/sse/web/{}", user_id("acme", "ann"));
    let mut stream = other.events(&path).await;
    let mut own_stream = own.events(&path).await;
    assert_eq!(own.delete("/api/auth/sessions").await.status, 204);
    assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    assert_refused(&ask(&other).await, 401, "SESSION_ENDED");
    assert_refused(&other.delete("/api/auth/sessions").await, 401, "SESSION_ENDED");
    for node in [&own, &other] {
        ask(&own.at(node)).await.expect(200);
    }
    let later = with(provider.claims("ann"), json!({"iat": Utc::now().timestamp() + 5}));
    ask(&office.anybody.bearing(&key.sign(&later))).await.expect(200);
    let message = json!({"recipient_id": office.joe_id, "content": "hi"});
    let sent = own.post("/api/messages", &message).await.expect(201);
    let id = sent["id"].as_str().unwrap();
    office
        .sql(&format!(
            "UPDATE tenant_acme.messages SET status = 'read', read_at = now() WHERE id = '{id}'"
        ))
        .await;
    own_stream.expect("message_read").await;
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn logout_ends_the_token_whatever_its_signature() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let (header, claims) = (json!({"alg": "ES256", "kid": "k"}), provider.claims("ann"));
    // Signatures of ECDSA are not unique.
    let [one, two] = [(); 2].map(|()| key.sign_with(&header, &claims));
    let other = office
        .anybody
        .bearing(&key.sign(&with(claims, json!({"jti": "other"}))));
    let ann = office.anybody.bearing(&one);
    assert_eq!(ann.post("/api/auth/logout", &json!({})).await.status, 204);
    for token in [one, two] {
        assert_refused(&ask(&office.anybody.bearing(&token)).await, 401, "SESSION_ENDED");
    }
    ask(&other).await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn streams_of_a_token_end_when_it_expires() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| settings.leeway_seconds = 0).await;
    let now = Utc::now().timestamp();
    let ann = office
        .anybody
        .bearing(&key.sign(&with(provider.claims("ann"), json!({"exp": now + 6}))));
    let path = format!("/sse/web/{}", user_id("acme", "ann"));
    ask(&ann).await.expect(200);
    let ticket = ann.post("/api/sse/ticket", &json!({})).await.expect(201);
    let by_ticket = format!("{path}?ticket={}", ticket["ticket"].as_str().unwrap());
    let mut streams = [ann.events(&path).await, office.anybody.events(&by_ticket).await];
    let mut socket = ann.socket("/ws").await;
    for stream in &mut streams {
        assert_eq!(stream.rest().await.last().unwrap().name, "bye");
    }
    assert_eq!(socket.rest().await.0.last().unwrap().name, "bye");
    assert!(Utc::now().timestamp() >= now + 6);
    assert_refused(&ask(&ann).await, 401, "TOKEN_EXPIRED");
    assert_refused(&ann.open(&path).await.unwrap_err(), 401, "TOKEN_EXPIRED");
    office.close().await;
}

#[tokio::test]
async fn server_without_passwords_accepts_tokens_of_providers_and_devices_only() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let login = json!({"tenant": "acme", "username": "bob", "password": crate::support::PASSWORD});
    let granted = office.anybody.post("/api/auth/login", &login).await.expect(200);
    let methods = office.anybody.get("/api/auth/methods").await.expect(200);
    let listed = json!([{"issuer": provider.issuer, "audience": ["posduif"]}]);
    assert_eq!(
        methods,
        json!({"passwords": true, "password_resets": false, "email_verification": false, "providers": listed})
    );
    let phone = office.phone("phone").await;

    let mut config = office.world.config.clone();
    config.auth.passwords = false;
    config.auth.registration_open = true;
    let node = office.world.engine_with(Role::Api, config).await;
    let anybody = node.api();
    let methods = anybody.get("/api/auth/methods").await.expect(200);
    assert_eq!(
        methods,
        json!({"passwords": false, "password_resets": false, "email_verification": false, "providers": listed})
    );
    let register = json!({"tenant": "acme", "username": "eve", "password": "another horse"});
    let refresh = json!({"refresh_token": granted["refresh_token"]});
    for (path, body) in [
        ("/api/auth/login", &login),
        ("/api/auth/register", &register),
        ("/api/auth/refresh", &refresh),
    ] {
        assert_refused(&anybody.post(path, body).await, 403, "FORBIDDEN");
    }
    ask(&anybody.bearing(&key.sign(&provider.claims("ann"))))
        .await
        .expect(200);
    phone.at(&anybody).get("/api/sync/status").await.expect(200);
    node.stop().await;
    office.close().await;
}

#[tokio::test]
async fn verifications_of_an_address_are_limited() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let provider = Provider::start(&[&key]).await;
    let settings = provider.settings();
    let office = Office::with(|config| {
        config.auth.providers = vec![settings];
        config.rates.address_per_second = 10;
        config.rates.burst_seconds = 60;
    })
    .await;
    let good = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    ask(&good).await.expect(200);
    let mut refused = 0;
    // 600 tokens, of which a request with another signature takes 3 + 5.
    for number in 0..200 {
        let claims = with(provider.claims("ann"), json!({"jti": number}));
        let token = key.sign(&claims);
        let forged = format!("{}x", &token[..token.len() - 1]);
        let answer = ask(&office.anybody.bearing(&forged)).await;
        match answer.status.as_u16() {
            401 => {}
            429 => refused += 1,
            other => panic!("{other}: {}", answer.json()),
        }
    }
    assert!(refused > 50, "{refused}");
    office.close().await;
}

#[tokio::test]
async fn metrics_count_tokens_and_reads_of_keys() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("ann")));
    ask(&ann).await.expect(200);
    ask(&ann).await.expect(200);
    let other = key.sign(&with(provider.claims("ann"), json!({"aud": "other"})));
    assert_refused(&ask(&office.anybody.bearing(&other)).await, 401, "UNAUTHORIZED");
    let metrics = office.anybody.admin().get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for line in [
        "posduif_external_tokens_total{result=\"accepted\"} 2",
        "posduif_external_tokens_total{result=\"refused\"} 1",
        "posduif_external_tokens_total{result=\"unavailable\"} 0",
        "posduif_provider_key_reads_total{result=\"read\"} 1",
        "posduif_provider_key_reads_total{result=\"failed\"} 0",
    ] {
        assert!(text.contains(line), "{line}");
    }
    office.close().await;
}

#[tokio::test]
async fn text_ids_of_an_app_are_recipients_of_messages_by_their_uuid() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |settings| settings.user_type = config::NewUserType::Mobile).await;
    let ann = office.anybody.bearing(&key.sign(&provider.claims("1001")));
    ask(&ann).await.expect(200);
    // As SQL computes it, for rows that hold the app's own ids.
    let psql = office.world.psql().await;
    psql.batch_execute("CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\"")
        .await
        .unwrap();
    let sql = "SELECT uuid_generate_v5('677258bb-7819-4414-933f-0685a64026e1', 'acme/' || $1)";
    let id: Uuid = psql.query_one(sql, &[&"1001"]).await.unwrap().get(0);
    assert_eq!(id, user_id("acme", "1001"));
    let message = json!({"recipient_id": id, "content": "hi"});
    office.bob.post("/api/messages", &message).await.expect(201);
    let listed = ann.get("/api/messages").await.expect(200);
    assert_eq!(ids(&listed["messages"]).len(), 1);
    office.close().await;
}

#[tokio::test]
async fn doctor_checks_keys_and_clocks_of_providers() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (provider, office) = office_of(&key, |_| {}).await;
    let examine = async || {
        let providers = serde_json::to_string(&office.world.config.auth.providers).unwrap();
        let mut command = posduif_in(&office.world);
        let ended = run(
            command.env("POSDUIF__AUTH__PROVIDERS", providers),
            &["doctor", "--json"],
        )
        .await;
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let of = |name: &str| {
            checks
                .iter()
                .find(|check| check["name"] == name)
                .cloned()
                .unwrap_or_default()
        };
        (of("auth.provider_keys"), of("auth.provider_clock"))
    };
    let (keys, clock) = examine().await;
    assert_eq!(
        (&keys["level"], &clock["level"]),
        (&json!("ok"), &json!("ok")),
        "{keys} {clock}"
    );
    assert!(
        keys["found"].as_str().unwrap().ends_with("1 usable, 0 ignored"),
        "{keys}"
    );
    provider.set_clock(-20);
    assert_eq!(examine().await.1["level"], "warn");
    provider.set_clock(60);
    assert_eq!(examine().await.1["level"], "fail");
    let unfit = SigningKey::new("k", Algorithm::ES384);
    for reply in [
        Reply::Status(500),
        Reply::Keys(json!({"keys": []})),
        Reply::Keys(jwks(&[&unfit])),
    ] {
        provider.reply(reply);
        let keys = examine().await.0;
        assert_eq!(keys["level"], "fail", "{keys}");
        assert!(keys["found"].as_str().unwrap().contains(&provider.issuer), "{keys}");
    }
    office.close().await;
}
