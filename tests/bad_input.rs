//! No request makes the API fail: every bad input against every route of the table.
//!
//! Each bad request must get a 4xx with the error envelope, over a connection that stays usable, and no response may
//! contain what another tenant or another user wrote. Every such text contains [`SECRET`].

use std::collections::BTreeSet;

use bytes::Bytes;
use hyper::Method;
use posduif::accounts::users::UserType;
use posduif::api::routes::{self, Access};
use posduif::config::Secret;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::device_proofs::DeviceKey;
use crate::support::http::{Answer, Api};
use crate::support::office::{Office, id};
use crate::support::receiver;

/// In every text that the callers of these tests must never see.
const SECRET: &str = "quartz";

/// Keys of encrypted state: of another user, and of another tenant's.
const OTHERS_KEY: &str = "quartz-diary";
const STRANGE_KEY: &str = "quartz-ledger";

/// What a request body's field takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Text,
    Number,
    List,
    Object,
}

/// A line of the table, with what a bad request needs to know.
struct Line {
    method: &'static str,
    path: &'static str,
    access: Access,
    /// The body's fields; empty when the route takes no body.
    fields: &'static [(&'static str, Takes)],
    /// Values of the query that are refused.
    bad_queries: &'static [&'static str],
}

const fn line(method: &'static str, path: &'static str, access: Access) -> Line {
    Line {
        method,
        path,
        access,
        fields: &[],
        bad_queries: &[],
    }
}

const PAGING: &[&str] = &[
    "limit=0",
    "limit=-1",
    "limit=1001",
    "limit=ten",
    "limit=1e3",
    "limit=99999999999999999999999",
    "offset=-1",
    "offset=x",
    "offset=9223372036854775808",
    "before=nonsense",
    "after=00000000-0000-4000-8000-000000000000",
];

const PRESENCE: &[&str] = &["limit=0", "limit=1001", "offset=-1", "user_id=joe", "user_id=,"];

const CREDENTIALS: &[(&str, Takes)] = &[
    ("tenant", Takes::Text),
    ("username", Takes::Text),
    ("email", Takes::Text),
    ("password", Takes::Text),
    ("code", Takes::Text),
    ("device", Takes::Object),
];

/// What shows that the caller is the user.
const PROOF: &[(&str, Takes)] = &[("current", Takes::Text), ("code", Takes::Text)];

const RESUME: &[&str] = &[
    "last_event_id=nonsense",
    "lastEventId=nonsense",
    "last_event_id=AAAA",
    "presence=maybe",
];

/// Every route there is.
const LINES: &[Line] = &[
    line("GET", "/api/auth/methods", Access::Public),
    Line {
        fields: CREDENTIALS,
        ..line("POST", "/api/auth/login", Access::Public)
    },
    Line {
        fields: CREDENTIALS,
        ..line("POST", "/api/auth/register", Access::Public)
    },
    Line {
        fields: &[("refresh_token", Takes::Text)],
        ..line("POST", "/api/auth/refresh", Access::Public)
    },
    line("POST", "/api/auth/logout", Access::User),
    Line {
        fields: &[("current", Takes::Text), ("code", Takes::Text), ("new", Takes::Text)],
        ..line("POST", "/api/auth/password", Access::User)
    },
    Line {
        fields: PROOF,
        ..line("POST", "/api/auth/second-factor", Access::User)
    },
    Line {
        fields: &[("code", Takes::Text)],
        ..line("POST", "/api/auth/second-factor/confirm", Access::User)
    },
    Line {
        fields: PROOF,
        ..line("POST", "/api/auth/second-factor/delete", Access::User)
    },
    Line {
        fields: PROOF,
        ..line("POST", "/api/auth/second-factor/recovery-codes", Access::User)
    },
    Line {
        fields: PROOF,
        ..line("POST", "/api/users/{id}/second-factor/delete", Access::User)
    },
    Line {
        fields: &[("email", Takes::Text), ("tenant", Takes::Text)],
        ..line("POST", "/api/auth/reset", Access::Public)
    },
    Line {
        fields: &[("token", Takes::Text), ("password", Takes::Text)],
        ..line("POST", "/api/auth/reset/complete", Access::Public)
    },
    line("GET", "/api/auth/sessions", Access::User),
    line("DELETE", "/api/auth/sessions", Access::User),
    line("DELETE", "/api/auth/sessions/{id}", Access::User),
    Line {
        bad_queries: &[
            "status=maybe",
            "status=1",
            "limit=0",
            "limit=-1",
            "limit=1001",
            "limit=x",
            "offset=-1",
            "offset=1e9",
        ],
        ..line("GET", "/api/users", Access::Web)
    },
    line("GET", "/api/users/{id}", Access::Any),
    Line {
        fields: PROOF,
        ..line("POST", "/api/users/{id}/delete", Access::User)
    },
    line("GET", "/api/account", Access::User),
    Line {
        fields: &[("email", Takes::Text), ("current", Takes::Text), ("code", Takes::Text)],
        ..line("POST", "/api/account/email", Access::User)
    },
    Line {
        fields: &[("token", Takes::Text)],
        ..line("POST", "/api/account/email/verify", Access::Public)
    },
    Line {
        fields: PROOF,
        ..line("POST", "/api/account/delete", Access::User)
    },
    Line {
        fields: &[("recipient_id", Takes::Text), ("content", Takes::Text)],
        ..line("POST", "/api/messages", Access::Web)
    },
    Line {
        bad_queries: PAGING,
        ..line("GET", "/api/messages", Access::Any)
    },
    line("GET", "/api/messages/unread-count", Access::Any),
    line("GET", "/api/messages/{id}", Access::Any),
    Line {
        fields: &[("content", Takes::Text)],
        ..line("PATCH", "/api/messages/{id}", Access::Any)
    },
    line("DELETE", "/api/messages/{id}", Access::Any),
    line("PUT", "/api/messages/{id}/read", Access::Any),
    Line {
        fields: &[
            ("user_id", Takes::Text),
            ("current", Takes::Text),
            ("code", Takes::Text),
        ],
        ..line("POST", "/api/enrollment/create", Access::Any)
    },
    Line {
        fields: &[
            ("token", Takes::Text),
            ("device_id", Takes::Text),
            ("username", Takes::Text),
            ("device_name", Takes::Text),
            ("public_key", Takes::Text),
            ("auth_key", Takes::Text),
            ("device_info", Takes::Object),
        ],
        ..line("POST", "/api/enrollment/complete", Access::Public)
    },
    Line {
        bad_queries: &["limit=0", "limit=1001", "offset=-1", "before=1", "after=%20"],
        ..line("GET", "/api/enrollment", Access::Any)
    },
    line("GET", "/api/enrollment/{token}", Access::Public),
    line("DELETE", "/api/enrollment/{token}", Access::Any),
    line("GET", "/api/enrollment/{token}/qr.svg", Access::Public),
    Line {
        bad_queries: &[
            "limit=0",
            "limit=1001",
            "offset=-1",
            "status=gone",
            "user_id=1",
            "before=nobody",
            "after=%20",
        ],
        ..line("GET", "/api/devices", Access::Any)
    },
    Line {
        fields: &[
            ("name", Takes::Text),
            ("type", Takes::Text),
            ("public_key", Takes::Text),
            ("auth_key", Takes::Text),
            ("device_id", Takes::Text),
        ],
        ..line("POST", "/api/devices", Access::User)
    },
    Line {
        fields: &[("name", Takes::Text), ("public_key", Takes::Text)],
        ..line("PATCH", "/api/devices/{id}", Access::Any)
    },
    line("DELETE", "/api/devices/{id}", Access::Any),
    Line {
        fields: &[("tenant", Takes::Text)],
        ..line("POST", "/api/devices/{id}/challenge", Access::Public)
    },
    Line {
        fields: &[
            ("tenant", Takes::Text),
            ("challenge", Takes::Text),
            ("signature", Takes::Text),
        ],
        ..line("POST", "/api/devices/{id}/token", Access::Public)
    },
    Line {
        bad_queries: PRESENCE,
        ..line("GET", "/api/presence", Access::Any)
    },
    Line {
        fields: &[("status", Takes::Text)],
        ..line("PUT", "/api/presence", Access::Any)
    },
    line("GET", "/api/app-instructions", Access::Device),
    Line {
        bad_queries: &[
            "limit=0",
            "limit=-1",
            "limit=1001",
            "limit=x",
            "cursor=nonsense",
            "cursor=AAAA",
            "cursor=%00",
            "since=yesterday",
            "since=0",
            "since=2024-01-15",
            "since=99999-01-01T00:00:00Z",
        ],
        ..line("GET", "/api/sync/incoming", Access::Device)
    },
    Line {
        fields: &[("cursor", Takes::Text)],
        ..line("POST", "/api/sync/ack", Access::Device)
    },
    Line {
        fields: &[
            ("messages", Takes::List),
            ("changes", Takes::List),
            ("pending_count", Takes::Number),
        ],
        ..line("POST", "/api/sync/outgoing", Access::Device)
    },
    line("GET", "/api/sync/status", Access::Device),
    Line {
        bad_queries: &["limit=0", "limit=1001", "offset=-1", "offset=1", "before=1&after=2"],
        ..line("GET", "/api/tables/{table}", Access::Any)
    },
    line("GET", "/api/tables/{table}/{id}", Access::Any),
    Line {
        bad_queries: &[
            "limit=0",
            "limit=1001",
            "limit=x",
            "cursor=nonsense",
            "cursor=AAAA",
            "cursor=%00",
        ],
        ..line("GET", "/api/state", Access::Any)
    },
    Line {
        fields: &[("items", Takes::List)],
        ..line("POST", "/api/state/batch", Access::Any)
    },
    line("GET", "/api/state/{key}", Access::Any),
    Line {
        fields: &[("state", Takes::Text), ("nonce", Takes::Text)],
        ..line("PUT", "/api/state/{key}", Access::Any)
    },
    line("DELETE", "/api/state/{key}", Access::Any),
    Line {
        bad_queries: &[
            "limit=0",
            "limit=1001",
            "offset=-1",
            "status=closed",
            "before=1",
            "after=00000000-0000-4000-8000-000000000000",
        ],
        ..line("GET", "/api/conflicts", Access::Any)
    },
    Line {
        fields: &[
            ("resolution", Takes::Text),
            ("content", Takes::Text),
            ("base_version", Takes::Number),
        ],
        ..line("POST", "/api/conflicts/{id}/resolve", Access::Any)
    },
    Line {
        fields: &[("stream", Takes::Text)],
        ..line("POST", "/api/sse/ticket", Access::Any)
    },
    Line {
        bad_queries: RESUME,
        ..line("GET", "/sse/mobile/{device_id}", Access::Device)
    },
    Line {
        bad_queries: RESUME,
        ..line("GET", "/sse/web/{user_id}", Access::Web)
    },
    line("GET", "/ws", Access::Any),
    line("GET", "/openapi.json", Access::Public),
    line("GET", "/", Access::Public),
    line("GET", "/health", Access::Public),
    line("GET", "/ready", Access::Public),
];

impl Line {
    fn method(&self) -> Method {
        Method::from_bytes(self.method.as_bytes()).unwrap()
    }

    fn takes_body(&self) -> bool {
        !self.fields.is_empty()
    }

    /// The path with its parameter filled in.
    fn path_with(&self, parameter: &str) -> String {
        match (self.path.split_once('{'), self.path.split_once('}')) {
            (Some((before, _)), Some((_, after))) => format!("{before}{parameter}{after}"),
            _ => self.path.to_owned(),
        }
    }
}

/// An office with a second tenant and with people who have secrets from bob and joe.
struct Scene {
    office: Office,
    /// Joe's phone.
    phone: Api,
    /// The other tenant's web user and phone, and a token of an enrollment there.
    stranger: Api,
    strange_phone: Api,
    /// A message from bob to joe.
    own_message: String,
    /// A message between others of the same tenant.
    others_message: String,
    /// Ids of the other tenant: a user, a message, a device.
    strange_user: Uuid,
    strange_message: String,
    strange_device: &'static str,
    /// Another user of the same tenant, with a device.
    jane_id: Uuid,
    /// Conflicts that are another tenant's, and jane's.
    strange_conflict: String,
    others_conflict: String,
    /// Sessions: of that user, and of the other tenant's.
    others_session: String,
    strange_session: String,
    /// Bob in a session that he may leave.
    leaver: Api,
}

/// The id of the session that this client has.
async fn session_of(api: &Api) -> String {
    let sessions = api.get("/api/auth/sessions").await.expect(200);
    id(&sessions["sessions"][0])
}

impl Scene {
    async fn set() -> Self {
        let office = Office::with(|config| {
            config.server.body_bytes_max = 8192;
            // Nothing listens there.
            config.mail.webhook_url = "http://127.0.0.1:1/hook".into();
            config.mail.webhook_secret = Secret::new(receiver::SECRET);
            config.limits.reset_address_max = 1_000_000;
        })
        .await;
        office.ready().await;
        let phone = office.phone("phone").await;
        // Of the same tenant, and somebody else's.
        office.bob.enroll("other-phone", None).await;
        let own_message = office.send("between us").await;
        let jane_id = office.world.user("acme", "jane", UserType::Web).await;
        let sally = office.world.user("acme", "sally", UserType::Mobile).await;
        let jane = office.anybody.log_in("acme", "jane").await;
        let write = |to: Uuid| json!({"recipient_id": to, "content": format!("{SECRET} for your eyes only")});
        let others_message = id(&jane.post("/api/messages", &write(sally)).await.expect(201));

        office.world.tenant("globex").await;
        let strange_user = office.world.user("globex", "quartz_web", UserType::Web).await;
        let strange_joe = office.world.user("globex", "quartz_joe", UserType::Mobile).await;
        let stranger = office.anybody.log_in("globex", "quartz_web").await;
        office
            .sql("UPDATE tenant_globex.users SET role = 'admin' WHERE username = 'quartz_web'")
            .await;
        let strange_device = "globex-phone";
        let (strange_phone, _) = stranger.enroll(strange_device, Some(&strange_joe.to_string())).await;
        let strange_message = id(&stranger.post("/api/messages", &write(strange_joe)).await.expect(201));
        jane.enroll("janes", Some(&jane_id.to_string())).await;
        let psql = office.world.psql().await;
        let conflict = async |tenant: &str, message: &str, user: Uuid| -> String {
            let insert = format!(
                "INSERT INTO tenant_{tenant}.message_conflicts
                     (message_id, user_id, base_version, client_version, server_version, strategy)
                 VALUES ('{message}', '{user}', 1, $1, $1, 'manual') RETURNING id"
            );
            let version = json!({"op": "edit", "content": SECRET, "version": 1});
            psql.query_one(&insert, &[&version])
                .await
                .unwrap()
                .get::<_, Uuid>(0)
                .to_string()
        };
        let strange_conflict = conflict("globex", &strange_message, strange_user).await;
        let others_conflict = conflict("acme", &others_message, jane_id).await;
        for (api, key) in [(&jane, OTHERS_KEY), (&stranger, STRANGE_KEY)] {
            let state = json!({"state": "YQ==", "nonce": "YQ=="});
            let path = format!("/api/state/{key}");
            api.with("if-none-match", "*").put(&path, &state).await.expect(201);
        }
        let (others_session, strange_session) = (session_of(&jane).await, session_of(&stranger).await);
        let leaver = office.anybody.log_in("acme", "bob").await;
        Self {
            leaver,
            strange_conflict,
            others_conflict,
            others_session,
            strange_session,
            phone,
            stranger,
            strange_phone,
            own_message,
            others_message,
            strange_user,
            strange_message,
            strange_device,
            jane_id,
            office,
        }
    }

    /// Good credentials for a line.
    fn good(&self, line: &Line) -> &Api {
        if line.path == "/api/auth/logout" {
            return &self.leaver;
        }
        match line.access {
            Access::Public => &self.office.anybody,
            Access::Web | Access::User | Access::Any => &self.office.bob,
            Access::Device => &self.phone,
        }
    }

    /// A path that good credentials may use.
    fn good_path(&self, line: &Line) -> String {
        match line.path {
            "/sse/mobile/{device_id}" => line.path_with("phone"),
            "/sse/web/{user_id}" => line.path_with(&self.office.bob_id.to_string()),
            path if path.starts_with("/api/users/") => line.path_with(&self.office.joe_id.to_string()),
            path if path.starts_with("/api/messages/") => line.path_with(&self.own_message),
            _ => line.path_with(&Uuid::new_v4().to_string()),
        }
    }

    /// A body that good credentials may send.
    fn good_body(&self, line: &Line) -> Value {
        match line.path {
            "/api/auth/register" => {
                json!({"tenant": "acme", "username": "new", "email": "new@example.com", "password": "short"})
            }
            "/api/auth/refresh" => json!({"refresh_token": "x".repeat(64)}),
            "/api/auth/login" => json!({"tenant": "acme", "username": "bob", "password": "wrong, so nothing happens"}),
            "/api/auth/password" => json!({"current": "wrong, so nothing happens", "new": "another horse"}),
            "/api/auth/reset" => json!({"tenant": "acme", "email": "nobody@example.com"}),
            "/api/auth/reset/complete" => json!({"token": "x".repeat(150), "password": "another horse"}),
            "/api/users/{id}/delete"
            | "/api/users/{id}/second-factor/delete"
            | "/api/account/delete"
            | "/api/auth/second-factor"
            | "/api/auth/second-factor/recovery-codes"
            | "/api/auth/second-factor/delete" => json!({"current": "wrong, so nothing happens", "code": "123456"}),
            "/api/account/email" => {
                json!({"email": "new@example.com", "current": "wrong, so nothing happens", "code": "123456"})
            }
            "/api/account/email/verify" => json!({"token": "x".repeat(150)}),
            "/api/auth/second-factor/confirm" => json!({"code": "123456"}),
            "/api/messages" => json!({"recipient_id": self.office.joe_id, "content": "hi"}),
            "/api/messages/{id}" => json!({"content": "hi again"}),
            "/api/enrollment/create" => json!({"user_id": self.office.joe_id}),
            "/api/enrollment/complete" => json!({
                "token": Uuid::new_v4(), "device_id": "new", "username": "new", "device_name": "new",
                "public_key": "new", "auth_key": DeviceKey::generate().public(), "device_info": {"platform": "android"},
            }),
            "/api/presence" => json!({"status": "away"}),
            "/api/devices" => json!({
                "name": "new", "type": "browser", "public_key": "new", "auth_key": DeviceKey::generate().public(),
                "device_id": "new",
            }),
            "/api/devices/{id}/challenge" => json!({"tenant": "acme"}),
            "/api/devices/{id}/token" => {
                json!({"tenant": "acme", "challenge": "A".repeat(54), "signature": format!("{}==", "A".repeat(86))})
            }
            "/api/devices/{id}" => json!({"name": "new", "public_key": "new"}),
            "/api/conflicts/{id}/resolve" => json!({"resolution": "merged", "content": "both", "base_version": 1}),
            "/api/state/batch" => {
                json!({"items": [{"key": "theme", "state": "YQ==", "nonce": "YQ==", "base_version": 7}]})
            }
            "/api/state/{key}" => json!({"state": "YQ==", "nonce": "YQ=="}),
            "/api/sync/ack" => json!({"cursor": "a cursor"}),
            "/api/sse/ticket" => json!({"stream": "/ws"}),
            "/api/sync/outgoing" => json!({"messages": [], "changes": [], "pending_count": 0}),
            path => panic!("{path} takes no body"),
        }
    }
}

/// What went wrong, all of it.
#[derive(Default)]
struct Findings {
    found: Vec<String>,
    asked: usize,
}

/// A request's body and its type.
type Sent<'a> = (Option<&'a str>, Bytes);

const NOTHING: Sent<'static> = (None, Bytes::new());

impl Findings {
    /// Sends a bad request, which must be refused with one of these statuses (any of the client's faults when empty).
    async fn refused(&mut self, what: &str, api: &Api, line: &Line, path: &str, sent: Sent<'_>, statuses: &[u16]) {
        self.asked += 1;
        let name = format!("{} {path}: {what}", line.method);
        let answer = match api.try_send(line.method(), path, sent.0, sent.1).await {
            Ok(answer) => answer,
            Err(error) => return self.found.push(format!("{name}: {error}")),
        };
        let status = answer.status.as_u16();
        let is_expected = if statuses.is_empty() {
            (400..500).contains(&status)
        } else {
            statuses.contains(&status)
        };
        if !is_expected {
            self.found
                .push(format!("{name}: {status}, not {statuses:?}: {}", show(&answer)));
        } else if let Some(flaw) = envelope_flaw(&answer) {
            self.found.push(format!("{name}: {flaw}: {}", show(&answer)));
        }
        self.leaks_nothing(&name, &answer);
    }

    /// Sends a request that may be good or bad, but must not fail.
    async fn harmless(&mut self, what: &str, api: &Api, line: &Line, path: &str, sent: Sent<'_>) {
        self.asked += 1;
        let name = format!("{} {path}: {what}", line.method);
        match api.try_send(line.method(), path, sent.0, sent.1).await {
            Ok(answer) => {
                if answer.status.is_server_error() {
                    self.found.push(format!("{name}: {}", show(&answer)));
                }
                self.leaks_nothing(&name, &answer);
            }
            Err(error) => self.found.push(format!("{name}: {error}")),
        }
    }

    fn leaks_nothing(&mut self, name: &str, answer: &Answer) {
        if String::from_utf8_lossy(&answer.body).contains(SECRET) {
            self.found.push(format!("{name}: tells a secret: {}", show(answer)));
        }
    }

    #[track_caller]
    fn report(self, asked_min: usize) {
        assert!(
            self.found.is_empty(),
            "{} of {}:\n{}",
            self.found.len(),
            self.asked,
            self.found.join("\n")
        );
        assert!(self.asked >= asked_min, "only {} requests were made", self.asked);
    }
}

fn show(answer: &Answer) -> String {
    let body = String::from_utf8_lossy(&answer.body);
    format!("{} {}", answer.status, body.chars().take(300).collect::<String>())
}

/// What the answer lacks of the envelope.
fn envelope_flaw(answer: &Answer) -> Option<&'static str> {
    let body = answer.json();
    let error = &body["error"];
    let is_text = |name: &str| error[name].as_str().is_some_and(|text| !text.is_empty());
    if !is_text("code") || !is_text("message") {
        return Some("no code or no message");
    }
    if !error["details"].is_object() || error["retryable"] != false {
        return Some("no details, or retryable");
    }
    if error["request_id"].as_str() != answer.headers.get("x-request-id").and_then(|id| id.to_str().ok()) {
        return Some("no request_id, or not the header's");
    }
    (answer.headers["content-type"] != "application/json").then_some("no JSON")
}

fn json_body(value: &Value) -> Sent<'static> {
    (Some("application/json"), Bytes::from(value.to_string()))
}

#[test]
fn bad_input_walk_covers_every_route() {
    let table = routes::table().iter();
    let table: BTreeSet<String> = table
        .map(|r| format!("{} {} {:?}", r.method, r.path, r.access))
        .collect();
    let known: BTreeSet<String> = LINES
        .iter()
        .map(|l| format!("{} {} {:?}", l.method, l.path, l.access))
        .collect();
    assert_eq!(known, table, "tell the walk of bad input what each route takes");
}

#[tokio::test]
async fn routes_refuse_missing_bad_or_wrong_kind_of_credentials() {
    let scene = Scene::set().await;
    let office = &scene.office;
    let other_phone = office.bob.enroll("another-phone", None).await.0;
    let mobile_user = office.anybody.log_in("acme", "joe").await;
    let mut findings = Findings::default();
    for line in LINES.iter().filter(|line| line.access != Access::Public) {
        let path = scene.good_path(line);
        let body = if line.takes_body() {
            json_body(&scene.good_body(line))
        } else {
            NOTHING
        };
        let mut bad: Vec<(&str, Api, &[u16])> = vec![
            ("no token", office.anybody.clone(), &[401]),
            (
                "a device id without its token",
                office.anybody.with("x-device-id", "phone"),
                &[401],
            ),
            (
                "another device's token",
                other_phone.with("x-device-id", "phone"),
                &[401],
            ),
            ("an unknown device", scene.phone.with("x-device-id", "unknown"), &[401]),
            (
                "a malformed device id",
                scene.phone.with("x-device-id", "a b/../c"),
                &[401],
            ),
            (
                "an overlong device id",
                scene.phone.with("x-device-id", &"x".repeat(4000)),
                &[401],
            ),
            (
                "a token without its device id",
                scene.phone.without("x-device-id"),
                &[401],
            ),
            (
                "another tenant's device id",
                scene.phone.with("x-device-id", scene.strange_device),
                &[401],
            ),
        ];
        for garbage in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "Bearer a.b.c",
            "Bearer ..",
            "Basic Ym9iOmJvYg==",
            "\u{e4}",
        ] {
            bad.push(("a garbage token", office.anybody.with("authorization", garbage), &[401]));
            bad.push(("a garbage token", scene.phone.with("authorization", garbage), &[401]));
        }
        let long = format!("Bearer {}", "x".repeat(20_000));
        bad.push(("an overlong token", scene.phone.with("authorization", &long), &[401]));
        let token = office.bob.header("authorization");
        let (cut, _) = token.rsplit_once('.').unwrap();
        bad.push((
            "a token without its signature",
            office.anybody.with("authorization", &format!("{cut}.")),
            &[401],
        ));
        match line.access {
            Access::Web => {
                bad.push(("a device's token", scene.phone.clone(), &[403]));
                bad.push(("a mobile user's access token", mobile_user.clone(), &[403]));
            }
            Access::User => bad.push(("a device's token", scene.phone.clone(), &[403])),
            Access::Device => {
                bad.push(("an access token", office.bob.clone(), &[401]));
                bad.push((
                    "an access token and a device id",
                    office.bob.with("x-device-id", "phone"),
                    &[401],
                ));
            }
            Access::Any | Access::Public => {}
        }
        for (what, api, statuses) in bad {
            findings.refused(what, &api, line, &path, body.clone(), statuses).await;
        }
    }
    findings.report(17 * 25);
    scene.office.close().await;
}

#[tokio::test]
async fn bad_paths_and_queries_are_4xx_and_foreign_rows_unreachable() {
    let scene = Scene::set().await;
    let office = &scene.office;
    let mut findings = Findings::default();
    for line in LINES {
        let api = scene.good(line);
        let good = scene.good_path(line);
        let body = if line.takes_body() {
            json_body(&scene.good_body(line))
        } else {
            NOTHING
        };
        for bad in ["%", "a=%zz", "%ff=1", "a=%00", "a=b&c=%f", "a=%c3%28"] {
            let path = format!("{good}?{bad}");
            findings
                .refused("a malformed query", api, line, &path, body.clone(), &[400])
                .await;
        }
        for bad in line.bad_queries {
            let path = format!("{good}?{bad}");
            findings
                .refused("a bad value", api, line, &path, body.clone(), &[400])
                .await;
        }
        findings
            .refused("a slash too many", api, line, &format!("{good}/"), body.clone(), &[404])
            .await;
        let ignored = format!("{good}?unknown=1&{}=1", "x".repeat(5000));
        if !line.path.starts_with("/sse/") {
            findings
                .harmless("an unknown parameter", api, line, &ignored, body.clone())
                .await;
        }
        if !line.path.contains('{') {
            continue;
        }
        for bad in ["%", "%2", "%zz", "%ff", "%00", "a%00b", "%c3%28"] {
            findings
                .refused(
                    "bad percent-encoding",
                    api,
                    line,
                    &line.path_with(bad),
                    body.clone(),
                    &[400],
                )
                .await;
        }
        if line.path == "/api/state/{key}" {
            // A key is whatever its user makes of it, so what others have is just not there.
            let statuses: &[u16] = if line.method == "GET" { &[404] } else { &[428] };
            for key in [OTHERS_KEY, STRANGE_KEY] {
                for api in [&office.bob, &scene.phone] {
                    let path = line.path_with(key);
                    findings
                        .refused("somebody else's key", api, line, &path, body.clone(), statuses)
                        .await;
                }
            }
            let long = line.path_with(&"x".repeat(256));
            findings
                .refused("an overlong key", api, line, &long, body.clone(), &[400])
                .await;
            continue;
        }
        if line.path == "/api/devices/{id}/challenge" {
            // A challenge does not show whether there is a device.
            continue;
        }
        // Nor does the refusal of a proof.
        let absent: &[u16] = if line.path == "/api/devices/{id}/token" {
            &[401, 404]
        } else {
            &[404]
        };
        let long = "x".repeat(20_000);
        let unknown = Uuid::new_v4().to_string();
        for bad in [
            "1",
            "-1",
            "null",
            "..",
            "%2e%2e",
            "%2F",
            "'%20OR%201=1--",
            "{id}",
            "%F0%9F%98%80",
            &long,
            &unknown,
        ] {
            findings
                .refused("no such thing", api, line, &line.path_with(bad), body.clone(), absent)
                .await;
        }
        let (strange, others) = match line.path {
            "/sse/mobile/{device_id}" => (scene.strange_device.to_owned(), Some("other-phone".to_owned())),
            "/sse/web/{user_id}" => (scene.strange_user.to_string(), Some(scene.jane_id.to_string())),
            path if path.starts_with("/api/auth/sessions/") => {
                (scene.strange_session.clone(), Some(scene.others_session.clone()))
            }
            path if path.starts_with("/api/users/") => (scene.strange_user.to_string(), None),
            path if path.starts_with("/api/messages/") => {
                (scene.strange_message.clone(), Some(scene.others_message.clone()))
            }
            // Bob is an admin of his own tenant.
            "/api/devices/{id}" | "/api/devices/{id}/token" => (scene.strange_device.to_owned(), None),
            "/api/conflicts/{id}/resolve" => (scene.strange_conflict.clone(), Some(scene.others_conflict.clone())),
            _ => continue,
        };
        findings
            .refused(
                "another tenant's",
                api,
                line,
                &line.path_with(&strange),
                body.clone(),
                absent,
            )
            .await;
        if let Some(others) = others {
            findings
                .refused(
                    "another user's",
                    api,
                    line,
                    &line.path_with(&others),
                    body.clone(),
                    &[403],
                )
                .await;
            if line.access == Access::Any {
                let path = line.path_with(&others);
                findings
                    .refused("another user's", &scene.phone, line, &path, body.clone(), &[403])
                    .await;
            }
        }
        if line.access == Access::Any {
            let path = line.path_with(&strange);
            findings
                .refused("another tenant's", &scene.phone, line, &path, body.clone(), &[404])
                .await;
        }
    }
    // A filter on what is not one's own finds nothing.
    let line = LINES
        .iter()
        .find(|line| (line.method, line.path) == ("GET", "/api/messages"))
        .unwrap();
    for foreign in [scene.strange_user, scene.jane_id] {
        findings
            .harmless(
                "another's id",
                &office.bob,
                line,
                &format!("/api/messages?recipient_id={foreign}"),
                NOTHING,
            )
            .await;
    }
    let users = office.bob.get(&format!("/api/users?filter={SECRET}")).await.expect(200);
    assert_eq!(users["total"], 0);
    // What they may see themselves is there.
    assert!(String::from_utf8_lossy(&scene.stranger.get("/api/state").await.body).contains(SECRET));
    assert!(!String::from_utf8_lossy(&office.bob.get("/api/state").await.body).contains(SECRET));
    assert!(String::from_utf8_lossy(&scene.stranger.get("/api/messages").await.body).contains(SECRET));
    assert!(String::from_utf8_lossy(&scene.strange_phone.get("/api/sync/incoming").await.body).contains(SECRET));
    assert!(!String::from_utf8_lossy(&scene.phone.get("/api/sync/incoming").await.body).contains(SECRET));
    findings.report(22 * 7);
    scene.office.close().await;
}

/// Values that are none of what a field takes.
fn wrong_values(takes: Takes) -> Vec<Value> {
    let values = [
        (json!("text"), Some(Takes::Text)),
        (json!(true), None),
        (json!(-1), None),
        (json!(1.5), None),
        (json!(u64::MAX), None),
        (json!(1.0e300), None),
        (json!([]), Some(Takes::List)),
        (json!(["text"]), Some(Takes::List)),
        (json!({}), Some(Takes::Object)),
        (json!({"text": "text"}), Some(Takes::Object)),
    ];
    values
        .into_iter()
        .filter(|(_, fits)| *fits != Some(takes))
        .map(|(value, _)| value)
        .collect()
}

#[tokio::test]
async fn bad_bodies_are_4xx() {
    let scene = Scene::set().await;
    let mut findings = Findings::default();
    let mut taking_bodies = 0;
    for line in LINES.iter().filter(|line| line.takes_body()) {
        taking_bodies += 1;
        let (api, path, good) = (scene.good(line), scene.good_path(line), scene.good_body(line));
        let typed = |bytes: &[u8]| (Some("application/json"), Bytes::copy_from_slice(bytes));
        let may_be_empty = matches!(
            line.path,
            "/api/enrollment/create" | "/api/sse/ticket" | "/api/devices/{id}/challenge"
        );
        if !may_be_empty {
            findings.refused("no body", api, line, &path, NOTHING, &[400]).await;
            findings
                .refused("an empty body", api, line, &path, typed(b""), &[400])
                .await;
            findings
                .refused("no field", api, line, &path, typed(b"{}"), &[400])
                .await;
        }
        let deep = "[".repeat(4000);
        for malformed in [
            &b"{"[..],
            b"nonsense",
            b"[]",
            b"[{}]",
            b"null",
            b"1",
            b"\"text\"",
            b"{} {}",
            b"{\"a\": \"\xff\xfe\"}",
            b"\xef\xbb\xbf{}",
            b"\0",
            b"\x1f\x8b\x08\x00",
            deep.as_bytes(),
        ] {
            findings
                .refused("malformed JSON", api, line, &path, typed(malformed), &[400])
                .await;
        }
        // What is JSON and no value all the same, where somebody looks at it.
        let (field, _) = line.fields[0];
        for value in ["1e999", "\"\\ud800\"", "\"\\q\"", "00", "truth"] {
            let body = format!("{{\"{field}\": {value}}}");
            findings
                .refused("no value", api, line, &path, typed(body.as_bytes()), &[400])
                .await;
        }
        let json = good.to_string();
        for wrong in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "json",
            "\u{e4}",
        ] {
            let sent = (Some(wrong), Bytes::from(json.clone()));
            findings
                .refused("a wrong content type", api, line, &path, sent, &[415])
                .await;
        }
        let (coded, statuses): (_, &[u16]) = if line.path == "/api/sync/outgoing" {
            (api.with("content-encoding", "gzip"), &[400])
        } else {
            (api.with("content-encoding", "gzip"), &[415])
        };
        findings
            .refused("no gzip", &coded, line, &path, typed(json.as_bytes()), statuses)
            .await;
        let coded = api.with("content-encoding", "br");
        findings
            .refused("a wrong encoding", &coded, line, &path, typed(json.as_bytes()), &[415])
            .await;

        for (field, takes) in line.fields {
            for wrong in wrong_values(*takes) {
                let mut body = good.clone();
                body[field] = wrong;
                let what = format!("{field} is {}", body[field]);
                findings
                    .refused(&what, api, line, &path, json_body(&body), &[400])
                    .await;
            }
            if *takes != Takes::Text {
                continue;
            }
            for bad in ["\u{0}", "a\u{0}b"] {
                let mut body = good.clone();
                body[field] = json!(bad);
                let what = format!("NUL in {field}");
                findings.refused(&what, api, line, &path, json_body(&body), &[]).await;
            }
            let mut body = good.clone();
            body[field] = json!("x".repeat(7000));
            findings
                .harmless(&format!("{field} is long"), api, line, &path, json_body(&body))
                .await;
            let mut body = good.clone();
            body[field] = json!("");
            findings
                .refused(&format!("{field} is empty"), api, line, &path, json_body(&body), &[])
                .await;
        }
    }
    assert_eq!(taking_bodies, 30);
    // Rows of others, named in a body.
    let foreign = [
        (
            "/api/messages",
            json!({"recipient_id": scene.strange_user, "content": "hi"}),
            &[404][..],
        ),
        ("/api/enrollment/create", json!({"user_id": scene.strange_user}), &[404]),
        (
            "/api/sse/ticket",
            json!({"stream": format!("/sse/web/{}", scene.strange_user)}),
            &[404],
        ),
        (
            "/api/sse/ticket",
            json!({"stream": format!("/sse/web/{}", scene.jane_id)}),
            &[403],
        ),
        (
            "/api/sse/ticket",
            json!({"stream": format!("/sse/mobile/{}", scene.strange_device)}),
            &[404],
        ),
        ("/api/sse/ticket", json!({"stream": "/sse/mobile/phone"}), &[403]),
        ("/api/sse/ticket", json!({"stream": "/sse/mobile/%00"}), &[400]),
        ("/api/sse/ticket", json!({"stream": "/api/messages"}), &[400]),
    ];
    for (path, body, statuses) in foreign {
        let line = LINES
            .iter()
            .find(|line| (line.method, line.path) == ("POST", path))
            .unwrap();
        findings
            .refused(
                "a foreign id",
                &scene.office.bob,
                line,
                path,
                json_body(&body),
                statuses,
            )
            .await;
    }
    let mut nul_within = scene.good_body(
        LINES
            .iter()
            .find(|line| line.path == "/api/enrollment/complete")
            .unwrap(),
    );
    for info in [
        json!({"a": "\u{0}"}),
        json!({"\u{0}": 1}),
        json!({"a": [{"b": ["\u{0}"]}]}),
    ] {
        nul_within["device_info"] = info;
        let line = LINES
            .iter()
            .find(|line| line.path == "/api/enrollment/complete")
            .unwrap();
        findings
            .refused(
                "NUL",
                &scene.office.anybody,
                line,
                line.path,
                json_body(&nul_within),
                &[400],
            )
            .await;
    }
    let huge = scene.phone.with("x-pending-outgoing", "99999999999999999999");
    let line = LINES.iter().find(|line| line.path == "/api/sync/incoming").unwrap();
    findings
        .refused("a huge count", &huge, line, line.path, NOTHING, &[400])
        .await;
    findings.report(400);
    scene.office.close().await;
}

#[tokio::test]
async fn upload_cannot_change_messages_of_other_tenants_or_users() {
    let scene = Scene::set().await;
    let item = |op: &str, id: &str| json!({"id": id, "op": op, "recipient_id": scene.office.bob_id, "content": "forged", "base_version": 1});
    let mut items = Vec::new();
    for op in ["edit", "delete", "read"] {
        items.push((item(op, &scene.strange_message), "NOT_FOUND"));
        items.push((item(op, &scene.others_message), "FORBIDDEN"));
    }
    items.push((item("create", &scene.others_message), "FORBIDDEN"));
    let mut to_stranger = item("create", &Uuid::new_v4().to_string());
    to_stranger["recipient_id"] = json!(scene.strange_user);
    items.push((to_stranger, "INVALID_RECIPIENT"));
    let sent: Vec<&Value> = items.iter().map(|(item, _)| item).collect();
    let answer = scene.phone.post("/api/sync/outgoing", &json!({"messages": sent})).await;
    assert!(
        !String::from_utf8_lossy(&answer.body).contains(SECRET),
        "{}",
        show(&answer)
    );
    for (result, (item, code)) in answer.expect(200)["results"].as_array().unwrap().iter().zip(&items) {
        assert_eq!(
            (&result["status"], &result["code"]),
            (&json!("rejected"), &json!(code)),
            "{item}"
        );
    }
    let theirs = scene
        .stranger
        .get(&format!("/api/messages/{}", scene.strange_message))
        .await
        .expect(200);
    assert!(theirs["content"].as_str().unwrap().contains(SECRET));
    // An id that another tenant has used is free in this one.
    let mut same_id = item("create", &scene.strange_message);
    same_id["content"] = json!("ours");
    let answer = scene
        .phone
        .post("/api/sync/outgoing", &json!({"messages": [same_id]}))
        .await
        .expect(200);
    assert_eq!(answer["results"][0]["status"], "applied");
    let theirs = scene
        .stranger
        .get(&format!("/api/messages/{}", scene.strange_message))
        .await
        .expect(200);
    assert!(theirs["content"].as_str().unwrap().contains(SECRET));
    scene.office.close().await;
}

#[tokio::test]
async fn oversized_body_is_refused_and_unread_body_is_harmless() {
    let scene = Scene::set().await;
    let mut findings = Findings::default();
    let large = Bytes::from(format!("{{\"padding\": \"{}\"}}", "x".repeat(12 * 1024 * 1024)));
    let mut refused = 0;
    for line in LINES.iter().filter(|line| !line.path.starts_with("/sse/")) {
        let (api, path) = (scene.good(line), scene.good_path(line));
        let sent = (Some("application/json"), large.clone());
        if line.takes_body() {
            refused += 1;
            findings
                .refused("too large a body", api, line, &path, sent.clone(), &[413])
                .await;
        } else {
            findings
                .harmless("a large body that nobody wants", api, line, &path, sent.clone())
                .await;
        }
        if line.access != Access::Public {
            findings
                .refused(
                    "a large body of nobody's",
                    &scene.office.anybody,
                    line,
                    &path,
                    sent,
                    &[401],
                )
                .await;
        }
    }
    assert_eq!(refused, 30);
    findings.report(30);
    scene.office.close().await;
}

#[tokio::test]
async fn wrong_method_is_405_with_allow_header() {
    let office = Office::open().await;
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];
    let paths: BTreeSet<&str> = LINES.iter().map(|line| line.path).collect();
    let mut findings = Findings::default();
    for path in paths {
        let allowed: BTreeSet<&str> = LINES
            .iter()
            .filter(|line| line.path == path)
            .map(|line| line.method)
            .collect();
        for method in methods.iter().filter(|method| !allowed.contains(*method)) {
            // A path of words can also be one with a parameter.
            let asked = path.replace("{id}", &office.bob_id.to_string()).replace(['{', '}'], "");
            let answer = office
                .bob
                .send(Method::from_bytes(method.as_bytes()).unwrap(), &asked, None, "")
                .await;
            let listed: BTreeSet<&str> = match answer.headers.get("allow") {
                Some(allow) => allow
                    .to_str()
                    .unwrap()
                    .split(", ")
                    .filter(|method| *method != "HEAD")
                    .collect(),
                None => BTreeSet::new(),
            };
            findings.asked += 1;
            if answer.status != 405 || answer.code() != "METHOD_NOT_ALLOWED" || listed != allowed {
                findings
                    .found
                    .push(format!("{method} {path}: allow {listed:?}: {}", show(&answer)));
            }
        }
    }
    for path in [
        "/api",
        "/api/",
        "//",
        "/api/message",
        "/API/messages",
        "/sse",
        "/sse/mobile",
        "/favicon.ico",
    ] {
        let line = line("GET", "/", Access::Public);
        findings
            .refused("nothing there", &office.bob, &line, path, NOTHING, &[404])
            .await;
    }
    findings.report(100);
    office.close().await;
}
