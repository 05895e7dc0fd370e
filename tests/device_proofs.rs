//! A device that has lost its token proves itself by its key: once, for itself, and as long as it may act.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use posduif::accounts::users::UserType;
use posduif::config::Secret;
use posduif::engine::Role;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
};
use serde_json::{Value, json};

use crate::api::assert_refused;
use crate::audit::entries;
use crate::support::command::posduif_says;
use crate::support::eventually;
use crate::support::http::{Answer, Api};
use crate::support::office::Office;

/// What precedes the point of a key in its SubjectPublicKeyInfo.
const SPKI_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The key pair of a device.
pub(crate) struct DeviceKey(EcdsaKeyPair);

impl DeviceKey {
    /// Whose signatures are those of browsers.
    pub(crate) fn generate() -> Self {
        Self::of(&ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn of(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap())
    }

    /// The public key as a request has it.
    pub(crate) fn public(&self) -> String {
        STANDARD.encode([SPKI_PREFIX, self.0.public_key().as_ref()].concat())
    }

    fn sign(&self, text: &str) -> String {
        let signature = self.0.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        STANDARD.encode(signature)
    }

    /// The proof of the device that a challenge was made for.
    fn proof(&self, challenge: &Value) -> Value {
        json!({
            "tenant": challenge["tenant_id"],
            "challenge": challenge["challenge"],
            "signature": self.sign(&text(challenge)),
        })
    }
}

/// What a device signs.
fn text(challenge: &Value) -> String {
    let part = |name: &str| challenge[name].as_str().unwrap();
    format!(
        "posduif-device-token:v1\n{}\n{}\n{}\n{}",
        part("audience"),
        part("tenant_id"),
        part("device_id"),
        part("challenge")
    )
}

/// An office whose nodes have one address.
async fn office() -> Office {
    Office::with(|config| config.server.public_url = "https://app.example.com".into()).await
}

/// The client of a device by the answer with its token.
fn device_of(office: &Office, answer: &Value) -> Api {
    let text = |name: &str| answer[name].as_str().unwrap();
    let device = office.anybody.with("x-device-id", text("device_id"));
    device.with("authorization", &format!("Bearer {}", text("device_token")))
}

/// Adds a device of joe's.
async fn add(office: &Office, id: &str, key: Option<&DeviceKey>) -> Api {
    let joe = office.anybody.log_in("acme", "joe").await;
    let body = json!({"name": id, "type": "mobile", "device_id": id, "auth_key": key.map(DeviceKey::public)});
    device_of(office, &joe.post("/api/devices", &body).await.expect(201))
}

async fn challenge_in(api: &Api, tenant: &str, device: &str) -> Value {
    let path = format!("/api/devices/{device}/challenge");
    api.post(&path, &json!({"tenant": tenant})).await.expect(201)
}

async fn challenge(api: &Api, device: &str) -> Value {
    challenge_in(api, "acme", device).await
}

async fn send(api: &Api, device: &str, proof: &Value) -> Answer {
    api.post(&format!("/api/devices/{device}/token"), proof).await
}

/// Proves a device with a challenge of its own.
async fn prove(api: &Api, device: &str, key: &DeviceKey) -> Answer {
    let challenge = challenge(api, device).await;
    send(api, device, &key.proof(&challenge)).await
}

#[tokio::test]
async fn proof_gives_a_token_and_ends_the_former_on_every_node() {
    let office = office().await;
    let second = office.world.engine(Role::Api).await;
    let there = second.api();
    let tablet = office.phone("tablet").await;
    let key = DeviceKey::of(&ECDSA_P256_SHA256_ASN1_SIGNING);
    let former = add(&office, "phone", Some(&key)).await;
    office.world.published().await;
    let (pages, tablets_cursor) = tablet.sync(None).await;
    assert!(
        !json!(pages).to_string().contains(&key.public()),
        "no stream has the key"
    );
    let (_, cursor) = former.sync(None).await;
    let mut streams = [
        former.events("/sse/mobile/phone").await,
        former.at(&there).events("/sse/mobile/phone").await,
    ];
    former.at(&there).get("/api/sync/status").await.expect(200);

    let challenge = challenge(&office.anybody, "phone").await;
    assert_eq!(
        (&challenge["audience"], &challenge["device_id"], &challenge["tenant_id"]),
        (&json!("https://app.example.com"), &json!("phone"), &json!("acme"))
    );
    let answer = send(&there, "phone", &key.proof(&challenge)).await.expect(201);
    assert_eq!(
        (&answer["device_id"], &answer["user_id"], &answer["tenant_id"]),
        (&json!("phone"), &json!(office.joe_id), &json!("acme"))
    );
    let phone = device_of(&office, &answer);
    phone.get("/api/sync/status").await.expect(200);
    phone.at(&there).get("/api/sync/status").await.expect(200);
    assert_eq!(former.at(&there).get("/api/sync/status").await.status, 401);
    for stream in &mut streams {
        assert_eq!(stream.rest().await.last().unwrap().name, "revoked");
    }
    eventually("the other node refuses the former token", || async {
        (former.get("/api/sync/status").await.status == 401).then_some(())
    })
    .await;

    // It is the same device, with its cursor, and no other device hears of it.
    let sent = office.send("while it had no token").await;
    office.world.published().await;
    let (pages, _) = phone.sync(Some(&cursor)).await;
    assert_eq!(pages[0]["messages"][0]["id"], json!(sent));
    let (pages, _) = tablet.sync(Some(&tablets_cursor)).await;
    assert_eq!(pages[0]["changes"], json!([]));
    let renewals = entries(&office, "device_token_renewed").await;
    assert_eq!(renewals.len(), 1);
    assert_eq!(renewals[0].actor, office.joe_id.to_string());
    assert_eq!(renewals[0].subject.as_deref(), Some("phone"));
    assert_eq!(renewals[0].detail, json!({"user_id": office.joe_id}));
    assert!(entries(&office, "device_proof_refused").await.is_empty());
    let listed = phone.get("/api/devices").await.expect(200)["devices"].clone();
    assert_eq!(
        (&listed[0]["device_id"], &listed[1]["device_id"]),
        (&json!("phone"), &json!("tablet"))
    );
    assert_eq!(
        (&listed[0]["has_auth_key"], &listed[1]["has_auth_key"]),
        (&json!(true), &json!(false))
    );
    assert!(listed[0]["token_renewed_at"].is_string() && listed[1]["token_renewed_at"].is_null());
    let shown = posduif_says(&office.world, "device show --tenant acme phone")
        .await
        .text();
    assert!(shown.contains("key for its token  yes\n"), "{shown}");
    let shown = posduif_says(&office.world, "device show --tenant acme --json phone")
        .await
        .json();
    assert_eq!(shown["has_auth_key"], true);
    let point = key.public()[36..].to_owned();
    assert!(!shown.to_string().contains(&point), "{shown}");
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn proof_works_once_and_a_lost_answer_costs_another_challenge() {
    let office = office().await;
    let second = office.world.engine(Role::Api).await;
    let there = second.api();
    let key = DeviceKey::generate();
    add(&office, "phone", Some(&key)).await;
    let unused = challenge(&there, "phone").await;
    let used = key.proof(&challenge(&office.anybody, "phone").await);
    let (one, two) = tokio::join!(send(&office.anybody, "phone", &used), send(&there, "phone", &used));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(
        statuses,
        [201, 409],
        "of two proofs at once by one challenge one is accepted"
    );
    let answer = if one.status == 201 { one } else { two }.json();
    for (api, proof) in [
        (&office.anybody, &used),
        (&there, &used),
        // The token that it was made for is no more.
        (&office.anybody, &key.proof(&unused)),
    ] {
        assert_refused(&send(api, "phone", proof).await, 409, "CONFLICT");
    }
    device_of(&office, &answer).get("/api/sync/status").await.expect(200);
    // Its answer was lost, and another challenge gives another token.
    let answer = prove(&there, "phone", &key).await.expect(201);
    device_of(&office, &answer).get("/api/sync/status").await.expect(200);
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn proof_for_another_device_tenant_server_or_purpose_is_refused() {
    let office = office().await;
    let mut elsewhere = office.world.config.clone();
    elsewhere.server.public_url = "https://other.example.com".into();
    let elsewhere = office.world.engine_with(Role::Api, elsewhere).await;
    let mut foreign = office.world.config.clone();
    foreign.auth.jwt_secret = Secret::new("another secret of another server, 48 bytes long.");
    let foreign = office.world.engine_with(Role::Api, foreign).await;
    office.world.tenant("globex").await;
    office.world.user("globex", "joe", UserType::Mobile).await;
    // One key for all, which no client should have.
    let key = DeviceKey::generate();
    let phone = add(&office, "phone", Some(&key)).await;
    add(&office, "tablet", Some(&key)).await;
    let stranger = office.anybody.log_in("globex", "joe").await;
    let body = json!({"name": "phone", "type": "mobile", "device_id": "phone", "auth_key": key.public()});
    stranger.post("/api/devices", &body).await.expect(201);

    let api = &office.anybody;
    let own = challenge(api, "phone").await;
    let good = key.proof(&own);
    // What was signed for one is sent to another.
    assert_refused(&send(api, "tablet", &good).await, 401, "UNAUTHORIZED");
    let mut moved = good.clone();
    moved["tenant"] = "globex".into();
    assert_refused(&send(api, "phone", &moved).await, 401, "UNAUTHORIZED");
    assert_refused(&send(&elsewhere.api(), "phone", &good).await, 401, "UNAUTHORIZED");
    // The right text with the challenge of another.
    for other in [
        challenge(api, "tablet").await,
        challenge_in(api, "globex", "phone").await,
        challenge(&foreign.api(), "phone").await,
        challenge(api, "unknown").await,
    ] {
        let mut mixed = own.clone();
        mixed["challenge"] = other["challenge"].clone();
        assert_refused(&send(api, "phone", &key.proof(&mixed)).await, 409, "CONFLICT");
    }
    // A challenge that was changed on its way, for example to last longer.
    let genuine = own["challenge"].as_str().unwrap();
    let mut later = own.clone();
    later["challenge"] = format!("B{}", &genuine[1..]).into();
    assert_refused(&send(api, "phone", &key.proof(&later)).await, 409, "CONFLICT");
    // Another text.
    let right = text(&own);
    for wrong in [
        genuine.to_owned(),
        right.replace("v1", "v2"),
        right.replace("https:", "http:"),
        format!("{right}\n"),
        right.replace('\n', "\r\n"),
        String::new(),
    ] {
        let mut proof = good.clone();
        proof["signature"] = key.sign(&wrong).into();
        assert_refused(&send(api, "phone", &proof).await, 401, "UNAUTHORIZED");
    }
    phone.get("/api/sync/status").await.expect(200);
    send(api, "phone", &good).await.expect(201);
    elsewhere.stop().await;
    foreign.stop().await;
    office.close().await;
}

#[tokio::test]
async fn client_without_the_key_cannot_tell_which_devices_exist() {
    let office = office().await;
    let (key, stranger) = (DeviceKey::generate(), DeviceKey::generate());
    add(&office, "phone", Some(&key)).await;
    add(&office, "keyless", None).await;
    add(&office, "revoked", Some(&key)).await;
    let joe = office.anybody.log_in("acme", "joe").await;
    joe.delete("/api/devices/revoked").await.expect(204);
    // The key with which signatures are checked where there is none: its private key is known.
    let mut one = [0; 32];
    one[31] = 1;
    let generator = "BGsX0fLhLEJH+Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU=";
    let generator = STANDARD.decode(generator).unwrap();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let decoy = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &one, &generator, &SystemRandom::new());
    let decoy = DeviceKey(decoy.unwrap());

    let api = &office.anybody;
    let mut answers = Vec::new();
    for (tenant, device) in [
        ("acme", "phone"),
        ("acme", "keyless"),
        ("acme", "revoked"),
        ("acme", "unknown"),
        ("nowhere", "phone"),
    ] {
        let challenge = challenge_in(api, tenant, device).await;
        assert_eq!(challenge["challenge"].as_str().unwrap().len(), 54, "{device}");
        assert_eq!(challenge["expires_in"], 120, "{device}");
        for key in [&stranger, &decoy] {
            let mut answer = send(api, device, &key.proof(&challenge)).await;
            answer.headers.remove("x-request-id");
            answer.headers.remove("date");
            let mut body = answer.json();
            body["error"]["request_id"] = Value::Null;
            answers.push((answer.status, answer.headers, body));
        }
    }
    assert_eq!(answers[0].0, 401);
    assert_eq!(answers[0].2["error"]["code"], "UNAUTHORIZED");
    for answer in &answers[1..] {
        assert_eq!(answer, &answers[0]);
    }
    let refused = entries(&office, "device_proof_refused").await;
    assert_eq!(refused.len(), 10);
    assert_eq!(
        (refused[0].actor.as_str(), refused[0].subject.as_deref()),
        ("anonymous", Some("phone"))
    );
    assert_eq!(refused[0].detail, json!({"skipped": 0}));
    assert_eq!(refused[9].tenant.as_deref(), Some("nowhere"));
    // Beyond the rate there are no more entries.
    assert_refused(&prove(api, "phone", &stranger).await, 401, "UNAUTHORIZED");
    assert_eq!(entries(&office, "device_proof_refused").await.len(), 10);
    // The holder of the key gets the reason.
    assert_refused(&prove(api, "revoked", &key).await, 401, "DEVICE_REVOKED");
    prove(api, "phone", &key).await.expect(201);
    office.close().await;
}

#[tokio::test]
async fn proof_is_good_exactly_as_long_as_a_token_would_be() {
    let office = office().await;
    let second = office.world.engine(Role::Api).await;
    let (here, there) = (&office.anybody, &second.api());
    let key = DeviceKey::generate();
    add(&office, "phone", Some(&key)).await;
    let early = key.proof(&challenge(here, "phone").await);
    // A new password, and all sessions ended: devices keep their tokens, and their keys.
    let joe = here.log_in("acme", "joe").await;
    joe.delete("/api/auth/sessions").await.expect(204);
    posduif_says(&office.world, "user disable --tenant acme joe")
        .await
        .text();
    for api in [here, there] {
        assert_refused(&send(api, "phone", &early).await, 401, "DEVICE_REVOKED");
    }
    posduif_says(&office.world, "user enable --tenant acme joe")
        .await
        .text();
    let answer = send(there, "phone", &early).await.expect(201);
    eventually("the token is good again", || async {
        let status = device_of(&office, &answer).get("/api/sync/status").await.status;
        (status == 200).then_some(())
    })
    .await;

    let early = key.proof(&challenge(here, "phone").await);
    office.bob.delete("/api/devices/phone").await.expect(204);
    for api in [here, there] {
        assert_refused(&send(api, "phone", &early).await, 401, "DEVICE_REVOKED");
        assert_refused(&prove(api, "phone", &key).await, 401, "DEVICE_REVOKED");
    }
    // Revoked by SQL in the tenant's schema only.
    add(&office, "tablet", Some(&key)).await;
    office
        .sql("UPDATE tenant_acme.devices SET revoked_at = now() WHERE device_id = 'tablet'")
        .await;
    assert_refused(&prove(here, "tablet", &key).await, 401, "DEVICE_REVOKED");

    add(&office, "laptop", Some(&key)).await;
    let early = key.proof(&challenge(here, "laptop").await);
    posduif_says(&office.world, "user erase --tenant acme --yes joe")
        .await
        .text();
    for api in [here, there] {
        assert_refused(&send(api, "laptop", &early).await, 401, "UNAUTHORIZED");
    }
    let psql = office.world.psql().await;
    let query = "SELECT count(*) FROM posduif.devices WHERE tenant = 'acme' AND auth_key IS NOT NULL";
    assert_eq!(psql.query_one(query, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(entries(&office, "device_token_renewed").await.len(), 1);
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn revocation_wins_against_proofs_at_the_same_time() {
    let office = office().await;
    let second = office.world.engine(Role::Api).await;
    let there = second.api();
    let key = DeviceKey::generate();
    for round in 0..8 {
        let id = format!("phone-{round}");
        add(&office, &id, Some(&key)).await;
        let proof = key.proof(&challenge(&office.anybody, &id).await);
        let path = format!("/api/devices/{id}");
        let (proven, revoked) = tokio::join!(send(&there, &id, &proof), office.bob.delete(&path));
        revoked.expect(204);
        if proven.status == 201 {
            let phone = device_of(&office, &proven.json());
            for api in [phone.clone(), phone.at(&there)] {
                eventually("its token is refused", || async {
                    (api.get("/api/sync/status").await.status == 401).then_some(())
                })
                .await;
            }
        } else {
            let refusal = (proven.status.as_u16(), proven.code());
            assert!(
                refusal == (401, "DEVICE_REVOKED".to_owned()) || refusal == (409, "CONFLICT".to_owned()),
                "{refusal:?}"
            );
        }
        assert_refused(&prove(&there, &id, &key).await, 401, "DEVICE_REVOKED");
    }
    second.stop().await;
    office.close().await;
}

#[tokio::test]
async fn device_added_again_has_no_former_key() {
    let office = office().await;
    let api = &office.anybody;
    let (lost, found) = (DeviceKey::generate(), DeviceKey::generate());
    add(&office, "phone", Some(&lost)).await;
    office.bob.delete("/api/devices/phone").await.expect(204);
    // Without a key, and with another one.
    add(&office, "phone", None).await;
    assert_refused(&prove(api, "phone", &lost).await, 401, "UNAUTHORIZED");
    add(&office, "phone", Some(&found)).await;
    assert_refused(&prove(api, "phone", &lost).await, 401, "UNAUTHORIZED");
    prove(api, "phone", &found).await.expect(201);
    // An enrollment by a code, which a thief completes first, and the device again.
    let created = office
        .bob
        .post("/api/enrollment/create", &json!({"user_id": office.joe_id}))
        .await
        .expect(201);
    let complete = async |key: &DeviceKey| {
        let body = json!({"token": created["token"], "device_id": "tablet", "auth_key": key.public()});
        api.post("/api/enrollment/complete", &body).await
    };
    complete(&lost).await.expect(201);
    complete(&found).await.expect(201);
    assert_refused(&prove(api, "tablet", &lost).await, 401, "UNAUTHORIZED");
    let tablet = prove(api, "tablet", &found).await.expect(201);
    // A proof uses the device, so that the enrollment cannot be repeated.
    assert_refused(&complete(&lost).await, 400, "ENROLLMENT_USED");
    device_of(&office, &tablet).get("/api/sync/status").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn key_is_checked_when_it_comes_and_changed_by_no_update() {
    let office = office().await;
    let key = DeviceKey::generate();
    let joe = office.anybody.log_in("acme", "joe").await;
    let mut damaged = STANDARD.decode(key.public()).unwrap();
    damaged[90] ^= 1;
    let enrollment = office
        .bob
        .post("/api/enrollment/create", &json!({"user_id": office.joe_id}))
        .await
        .expect(201);
    for bad in [
        json!(""),
        json!(7),
        json!({"kty": "EC"}),
        json!("a key"),
        json!(format!("-----BEGIN PUBLIC KEY-----\n{}", key.public())),
        json!(STANDARD.encode(damaged)),
        json!(key.public().repeat(100)),
    ] {
        let body = json!({"name": "x", "type": "mobile", "device_id": "phone", "auth_key": bad});
        assert_refused(&joe.post("/api/devices", &body).await, 400, "VALIDATION_ERROR");
        let body = json!({"token": enrollment["token"], "device_id": "phone", "auth_key": bad});
        let refused = office.anybody.post("/api/enrollment/complete", &body).await;
        assert_refused(&refused, 400, "VALIDATION_ERROR");
    }
    let listed = joe.get("/api/devices").await.expect(200);
    assert_eq!(listed["devices"], json!([]), "nothing was added");

    let phone = add(&office, "phone", Some(&key)).await;
    let thief = DeviceKey::generate();
    let change = json!({"name": "renamed", "auth_key": thief.public()});
    for api in [&phone, &joe] {
        api.patch("/api/devices/phone", &change).await.expect(200);
    }
    // Nor does a login with the device.
    let device = json!({"id": "phone", "auth_key": thief.public()});
    let login = json!({"tenant": "acme", "username": "joe", "password": crate::support::PASSWORD, "device": device});
    let answer = office.anybody.post("/api/auth/login", &login).await.expect(200);
    assert_eq!(answer["device"]["has_auth_key"], true);
    assert_refused(&prove(&office.anybody, "phone", &thief).await, 401, "UNAUTHORIZED");
    prove(&office.anybody, "phone", &key).await.expect(201);
    office.close().await;
}

#[tokio::test]
async fn device_returns_by_its_key_after_a_restored_backup() {
    let office = office().await;
    let key = DeviceKey::generate();
    add(&office, "phone", Some(&key)).await;
    let psql = office.world.psql().await;
    let query = "SELECT token_hash FROM posduif.devices WHERE device_id = 'phone'";
    let saved: Vec<u8> = psql.query_one(query, &[]).await.unwrap().get(0);
    let answer = prove(&office.anybody, "phone", &key).await.expect(201);
    let phone = device_of(&office, &answer);
    // The token was not used, so that no cache has it.
    let restore = "UPDATE posduif.devices SET token_hash = $1 WHERE device_id = 'phone'";
    assert_eq!(psql.execute(restore, &[&saved]).await.unwrap(), 1);
    assert_refused(&phone.get("/api/sync/status").await, 401, "UNAUTHORIZED");
    let answer = prove(&office.anybody, "phone", &key).await.expect(201);
    device_of(&office, &answer).get("/api/sync/status").await.expect(200);
    office.close().await;
}

#[tokio::test]
async fn proofs_of_a_device_are_limited_by_good_ones_only() {
    let office = office().await;
    let (key, stranger) = (DeviceKey::generate(), DeviceKey::generate());
    add(&office, "phone", Some(&key)).await;
    add(&office, "tablet", Some(&key)).await;
    let api = &office.anybody;
    for _ in 0..12 {
        assert_refused(&prove(api, "phone", &stranger).await, 401, "UNAUTHORIZED");
    }
    let used = key.proof(&challenge(api, "phone").await);
    send(api, "phone", &used).await.expect(201);
    for _ in 0..12 {
        assert_refused(&send(api, "phone", &used).await, 409, "CONFLICT");
    }
    let refused = loop {
        let answer = prove(api, "phone", &key).await;
        if answer.status != 201 {
            break answer;
        }
    };
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (429, "RATE_LIMITED")
    );
    assert!(refused.headers.contains_key("retry-after"));
    assert!(entries(&office, "device_token_renewed").await.len() >= 10);
    prove(api, "tablet", &key).await.expect(201);
    office.close().await;
}
