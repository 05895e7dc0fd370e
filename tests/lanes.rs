//! Lanes: a Redis of its own for some tenants, which stops no others when it fails, and moves between them.

use posduif::accounts::users::UserType;
use posduif::config::Config;
use posduif::config::Secret;
use posduif::config::lane::Lane;
use posduif::contract::keys::Keys;
use posduif::dev::PrivateRedis;
use posduif::engine::{Engine, Role};
use posduif::postgres::tenants;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::command::{posduif_in, run};
use crate::support::held::Held;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::servers::{self, Own};
use crate::support::{World, eventually};

const EU: &str = "eu";

fn lane(redis_url: &str) -> Lane {
    Lane {
        name: EU.to_owned(),
        redis_url: Secret::new(redis_url),
        ..Lane::default()
    }
}

/// An office whose tenant `acme` is in the main lane, and a tenant `globex` in the lane `eu`, which has a Redis of its own.
struct Offices {
    office: Office,
    redis: Own<PrivateRedis>,
    /// Web user and phone of `globex`.
    carl: Api,
    dora: Api,
    dora_id: Uuid,
    bob_id: Uuid,
}

impl Offices {
    async fn open() -> Self {
        Self::within(World::new().await, |_| {}).await
    }

    async fn within(world: World, change: impl FnOnce(&mut Config)) -> Self {
        let redis = servers::redis().await;
        let url = redis.server.url();
        let office = Office::within(world, |config| {
            config.lanes = vec![lane(&url)];
            change(config);
        })
        .await;
        let database = office.world.database().await;
        let replication = &office.world.config.replication;
        tenants::create(&database, replication, "globex", EU).await.unwrap();
        let dora_id = office.world.user("globex", "dora", UserType::Mobile).await;
        let bob_id = office.world.user("globex", "bob", UserType::Web).await;
        let eu = Self::eu(&office.world);
        eu.published().await;
        // A process learns within a second of a tenant that another one has made.
        let carl = office.anybody.log_in("globex", "bob").await;
        let dora = carl.enroll("dora-1", Some(&dora_id.to_string())).await.0;
        eu.published().await;
        eventually("the phone syncs", || async {
            (dora.get("/api/sync/incoming").await.status == 200).then_some(())
        })
        .await;
        Self {
            office,
            redis,
            carl,
            dora,
            dora_id,
            bob_id,
        }
    }

    /// The world as the lane sees it.
    fn eu(world: &World) -> World {
        world.in_lane(EU)
    }

    async fn send_to_dora(&self, content: &str) {
        let body = json!({"recipient_id": self.dora_id, "content": content});
        self.carl.post("/api/messages", &body).await.expect(201);
    }

    async fn close(self) {
        self.office.close().await;
    }
}

async fn keys_of(redis: &mut redis::aio::MultiplexedConnection, tenant: &str) -> Vec<String> {
    let pattern = format!("*{{{tenant}}}*");
    redis::cmd("KEYS").arg(pattern).query_async(redis).await.unwrap()
}

#[tokio::test]
async fn tenants_of_two_lanes_sync_through_their_own_redis() {
    let offices = Offices::open().await;
    let Offices { office, dora, .. } = &offices;
    let eu = Offices::eu(&office.world);
    let joe = office.phone("phone").await;
    let (mut of_joe, mut of_dora) = (
        joe.events("/sse/mobile/phone").await,
        dora.events("/sse/mobile/dora-1").await,
    );
    offices.send_to_dora("to dora").await;
    office.send("to joe").await;
    of_dora.expect("message").await;
    of_joe.expect("message").await;
    Held::default().follow(dora, &office.world, "tenant_globex").await;
    Held::default().follow(&joe, &office.world, "tenant_acme").await;
    let upload = json!({"seq": 1, "id": Uuid::new_v4(), "op": "create", "table": "messages",
                        "row": {"recipient_id": offices.bob_id, "content": "back"}});
    let answer = dora
        .post("/api/sync/outgoing", &json!({"items": [upload]}))
        .await
        .expect(200);
    assert_eq!(answer["results"][0]["status"], "applied", "{answer}");
    // Each lane has the keys of its tenants only.
    let (mut main, mut other) = (office.world.redis().await, eu.redis().await);
    let prefix = &office.world.config.redis.prefix;
    for (redis, tenant, is_there) in [(&mut main, "globex", false), (&mut other, "acme", false)] {
        let found = keys_of(redis, tenant).await;
        let ours = found.iter().filter(|key| key.starts_with(prefix.as_str())).count();
        assert_eq!(ours > 0, is_there, "{found:?}");
    }
    let changes = eu.stream(&eu.keys().changes("globex")).await;
    assert!(
        changes.iter().any(|entry| entry.field("table") == "messages"),
        "{changes:?}"
    );
    // Each lane has an epoch of its own.
    let epochs = [office.world.checkpoint().await, eu.checkpoint().await].map(|mut fields| fields.remove("epoch"));
    assert_ne!(epochs[0], epochs[1]);
    assert!(epochs.iter().all(Option::is_some));
    offices.close().await;
}

#[tokio::test]
async fn dead_lane_stops_only_its_tenants_and_catches_up() {
    let mut offices = Offices::open().await;
    let joe = offices.office.phone("phone").await;
    let (mut of_joe, mut of_dora) = (Held::default(), Held::default());
    offices.send_to_dora("before").await;
    of_dora
        .follow(&offices.dora, &offices.office.world, "tenant_globex")
        .await;
    let epoch = async |office: &Office| Offices::eu(&office.world).checkpoint().await.remove("epoch");
    let before = epoch(&offices.office).await;
    offices.redis.server.kill().await.unwrap();
    let office = &offices.office;
    let mut events = joe.events("/sse/mobile/phone").await;
    for n in 0..20 {
        office.send(&format!("message {n}")).await;
        events.expect("message").await;
        offices.send_to_dora(&format!("meanwhile {n}")).await;
    }
    of_joe.follow(&joe, &office.world, "tenant_acme").await;
    assert_eq!(of_joe.resets, 1, "its first snapshot");
    let ready = eventually("the lane is seen to fail", || async {
        let ready = office.anybody.admin().get("/ready").await.expect(200);
        (ready["lanes"][EU]["ok"] == false).then_some(ready)
    })
    .await;
    assert_eq!(ready["ready"], true, "{ready}");
    assert!(!of_dora.take(&offices.dora).await, "nothing can be read there");
    offices.redis.server.restart().await.unwrap();
    of_dora
        .follow(&offices.dora, &offices.office.world, "tenant_globex")
        .await;
    assert_eq!(of_dora.resets, 1, "its first snapshot");
    assert_eq!(epoch(&offices.office).await, before);
    offices.close().await;
}

#[tokio::test]
async fn lane_that_lost_its_redis_begins_an_epoch_of_its_own() {
    let offices = Offices::open().await;
    let world = &offices.office.world;
    let eu = Offices::eu(world);
    let joe = offices.office.phone("phone").await;
    let (mut of_joe, mut of_dora) = (Held::default(), Held::default());
    offices.send_to_dora("before").await;
    offices.office.send("before").await;
    of_dora.follow(&offices.dora, world, "tenant_globex").await;
    of_joe.follow(&joe, world, "tenant_acme").await;
    let epoch = async |world: &World| world.checkpoint().await.remove("epoch");
    let (main, other) = (epoch(world).await, epoch(&eu).await);
    let _: String = eu.ask_redis(&["FLUSHALL"]).await;
    offices.send_to_dora("after").await;
    offices.office.send("after").await;
    eventually("the lane has another epoch", || async {
        let now = epoch(&eu).await;
        (now.is_some() && now != other).then_some(())
    })
    .await;
    of_dora.follow(&offices.dora, world, "tenant_globex").await;
    of_joe.follow(&joe, world, "tenant_acme").await;
    assert_eq!((of_joe.resets, of_dora.resets), (1, 2));
    assert_eq!(epoch(world).await, main);
    offices.close().await;
}

#[tokio::test]
async fn moved_tenant_loses_nothing_and_its_devices_reset_once() {
    let offices = Offices::open().await;
    let Offices { office, dora, .. } = &offices;
    let world = &office.world;
    let (eu, database) = (Offices::eu(world), world.database().await);
    let joe = office.phone("phone").await;
    let (mut of_joe, mut of_dora) = (Held::default(), Held::default());
    for (tenant, to) in [("globex", "main"), ("globex", EU), ("acme", EU), ("acme", "main")] {
        let (phone, path, held, schema) = match tenant {
            "acme" => (&joe, "/sse/mobile/phone", &mut of_joe, "tenant_acme"),
            _ => (dora, "/sse/mobile/dora-1", &mut of_dora, "tenant_globex"),
        };
        held.follow(phone, world, schema).await;
        let resets = held.resets;
        let mut events = phone.events(path).await;
        let writing = async {
            for n in 0..30 {
                match tenant {
                    "acme" => drop(office.send(&format!("to {to} {n}")).await),
                    _ => offices.send_to_dora(&format!("to {to} {n}")).await,
                }
            }
        };
        let moving = async {
            tenants::move_to(&database, tenant, to).await.unwrap().unwrap();
        };
        tokio::join!(writing, moving);
        // The open stream ends, so that its reader connects to the other lane.
        let _rest = events.rest().await;
        held.follow(phone, world, schema).await;
        assert_eq!(held.resets, resets + 1, "{tenant} to {to}");
        let mut events = phone.events(path).await;
        match tenant {
            "acme" => drop(office.send("live").await),
            _ => offices.send_to_dora("live").await,
        }
        events.expect("message").await;
        held.follow(phone, world, schema).await;
    }
    // What the tenants had in the lanes that they left is gone.
    let keys = |world: &World, tenant: &str| Keys::changes(&world.keys(), tenant);
    let left: (i64, i64) = (
        world.ask_redis(&["EXISTS", &keys(world, "globex")]).await,
        eu.ask_redis(&["EXISTS", &keys(&eu, "acme")]).await,
    );
    assert_eq!(left, (0, 0));
    offices.close().await;
}

#[tokio::test]
async fn engine_without_the_lane_of_a_tenant_does_not_start() {
    let offices = Offices::open().await;
    let mut config = offices.office.world.config.clone();
    config.lanes.clear();
    let refused = Engine::start(config, Role::Api).await.unwrap_err();
    let text = format!("{refused:#}");
    assert!(text.contains("the tenant globex is in the lane eu"), "{text}");
    assert!(text.contains("posduif tenant move globex main"), "{text}");
    offices.close().await;
}

#[tokio::test]
async fn lanes_on_one_redis_keep_their_keys_apart() {
    let world = World::new().await;
    let office = Office::within(world, |config| config.lanes = vec![lane("")]).await;
    let database = office.world.database().await;
    tenants::create(&database, &office.world.config.replication, "globex", EU)
        .await
        .unwrap();
    office.world.user("globex", "bob", UserType::Web).await;
    let eu = Offices::eu(&office.world);
    eu.published().await;
    let prefix = format!("{}:{{{EU}}}:", office.world.config.redis.prefix);
    assert!(eu.keys().changes("globex").starts_with(&prefix));
    assert!(!eu.stream(&eu.keys().changes("globex")).await.is_empty());
    assert!(
        office
            .world
            .stream(&office.world.keys().changes("globex"))
            .await
            .is_empty()
    );
    office.close().await;
}

#[tokio::test]
async fn operators_list_lanes_and_move_tenants() {
    let mut offices = Offices::open().await;
    let Offices { office, redis, .. } = &mut offices;
    let world = &office.world;
    let lanes = json!([{"name": EU, "redis_url": redis.server.url()}]).to_string();
    let posduif = |arguments: &'static [&'static str]| {
        let mut command = posduif_in(world);
        command.env("POSDUIF__LANES", &lanes);
        async move { run(&mut command, arguments).await }
    };
    let lanes = posduif(&["lane", "list", "--json"]).await.json();
    assert_eq!(
        (&lanes[0]["name"], &lanes[0]["tenants"]),
        (&json!("main"), &json!(1)),
        "{lanes}"
    );
    assert_eq!(
        (&lanes[1]["name"], &lanes[1]["tenants"]),
        (&json!(EU), &json!(1)),
        "{lanes}"
    );
    assert_eq!(lanes[1]["problem"], Value::Null, "{lanes}");
    let list = posduif(&["tenant", "list", "--json"]).await.json();
    assert_eq!((&list[1]["name"], &list[1]["lane"]), (&json!("globex"), &json!(EU)));
    let streams = posduif(&["stream", "list", "--tenant", "globex"]).await;
    assert!(streams.complaint(1).contains("add `--lane eu`"));
    let streams = posduif(&["stream", "list", "--lane", "eu", "--tenant", "globex", "--json"])
        .await
        .json();
    assert_eq!(streams["tenants"][0]["tenant"], "globex", "{streams}");
    let unknown = posduif(&["tenant", "create", "late", "--lane", "none"]).await;
    assert!(unknown.complaint(1).contains("there is no lane none"));
    let moved = posduif(&["tenant", "move", "globex", "main", "--yes", "--json"])
        .await
        .json();
    assert_eq!(
        (&moved["published"], &moved["removed"]),
        (&json!(true), &json!(true)),
        "{moved}"
    );
    let eu = Offices::eu(world);
    assert_eq!(keys_of(&mut eu.redis().await, "globex").await, Vec::<String>::new());
    redis.server.kill().await.unwrap();
    let lanes = posduif(&["lane", "list", "--json"]).await.json();
    assert!(lanes[1]["problem"].as_str().is_some(), "{lanes}");
    assert_eq!(lanes[1]["tenants"], 0, "{lanes}");
    offices.close().await;
}

#[tokio::test]
async fn table_of_all_tenants_has_rows_for_each_lane() {
    const NOTES: &str =
        "CREATE TABLE public.notes (id bigint PRIMARY KEY, org text, user_id uuid, title text NOT NULL)";
    let world = World::new().await;
    world.psql().await.batch_execute(NOTES).await.unwrap();
    let offices = Offices::within(world, |config| {
        config.routes = serde_json::from_value(json!([
            {"schema": "public", "table": "notes", "tenant": {"column": "org"}, "to": ["user_id"], "event": "note"},
        ]))
        .unwrap();
    })
    .await;
    let Offices { office, dora, .. } = &offices;
    let joe = office.phone("phone").await;
    let (joe_id, dora_id) = (office.joe_id, offices.dora_id);
    let notes = async |phone: &Api, cursor: Option<String>| {
        let (pages, cursor) = phone.sync(cursor.as_deref()).await;
        let changes = pages.iter().flat_map(|page| page["changes"].as_array().unwrap());
        let notes = changes.filter(|change| change["table"] == "notes");
        let notes =
            notes.map(|change| format!("{} {}", change["op"].as_str().unwrap(), change["id"].as_str().unwrap()));
        (notes.collect::<Vec<_>>(), Some(cursor))
    };
    let ((_, of_joe), (_, of_dora)) = (notes(&joe, None).await, notes(dora, None).await);
    office
        .sql(&format!(
            "INSERT INTO public.notes VALUES (1, 'acme', '{joe_id}', 'a'), (2, 'globex', '{dora_id}', 'b')"
        ))
        .await;
    let published = async || {
        office.world.published().await;
        Offices::eu(&office.world).published().await;
    };
    published().await;
    let ((for_joe, of_joe), (for_dora, of_dora)) = (notes(&joe, of_joe).await, notes(dora, of_dora).await);
    assert_eq!(
        (for_joe, for_dora),
        (vec!["insert 1".to_owned()], vec!["insert 2".to_owned()])
    );
    office
        .sql(&format!(
            "UPDATE public.notes SET org = 'globex', user_id = '{dora_id}' WHERE id = 1"
        ))
        .await;
    published().await;
    let ((for_joe, _), (for_dora, _)) = (notes(&joe, of_joe).await, notes(dora, of_dora).await);
    assert_eq!(
        (for_joe, for_dora),
        (vec!["delete 1".to_owned()], vec!["insert 1".to_owned()])
    );
    // A row of another lane's tenant is not one of no tenant.
    let metrics = office.anybody.admin().get("/metrics").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(metrics.contains("posduif_changes_without_tenant_total 0"), "{metrics}");
    offices.close().await;
}
