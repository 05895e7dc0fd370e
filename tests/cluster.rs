//! Redis Cluster: three primaries with a replica each. Lanes follow failovers and slots that are migrated.

use posduif::accounts::users::UserType;
use posduif::config::Secret;
use posduif::config::lane::Lane;
use posduif::dev::PrivateRedis;
use posduif::postgres::tenants;
use posduif::redis::cluster::slot_of;
use serde_json::json;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::support::held::Held;
use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::servers::{self, Own};
use crate::support::{World, eventually};

const PASSWORD: &str = "clusterpassword";
const NODES: usize = 6;
const EU: &str = "eu";

struct Cluster {
    nodes: Vec<Own<PrivateRedis>>,
}

/// Asks one node.
async fn ask<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> Result<T, redis::RedisError> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await
}

impl Cluster {
    /// Three primaries, and a replica of each.
    async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(
                servers::redis_with(|_, mut options| {
                    options.password = Secret::new(PASSWORD);
                    let bus = posduif::dev::free_port().unwrap().to_string();
                    let settings = [
                        ("cluster-enabled", "yes"),
                        ("cluster-config-file", "nodes.conf"),
                        ("cluster-node-timeout", "1500"),
                        ("cluster-port", &bus),
                        ("masterauth", PASSWORD),
                        ("appendfsync", "always"),
                    ];
                    settings
                        .into_iter()
                        .fold(options, |options, (name, value)| options.setting(name, value))
                })
                .await,
            );
        }
        let cluster = Self { nodes };
        let bounds = ["0 5460", "5461 10922", "10923 16383"];
        for (node, bounds) in cluster.urls().iter().zip(bounds) {
            let (first, last) = bounds.split_once(' ').unwrap();
            let _: String = ask(node, &["CLUSTER", "ADDSLOTSRANGE", first, last]).await.unwrap();
        }
        let first = &cluster.nodes[0];
        let (port, bus) = (first.server.port().to_string(), cluster.bus_port(0).await);
        for node in &cluster.urls()[1..] {
            let _: String = ask(node, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await.unwrap();
        }
        for place in 3..NODES {
            let primary = cluster.id(place - 3).await;
            eventually("the replica knows its primary", || async {
                ask::<String>(&cluster.url(place), &["CLUSTER", "REPLICATE", &primary])
                    .await
                    .ok()
            })
            .await;
        }
        eventually("the cluster is complete", || async {
            for url in cluster.urls() {
                let info: String = ask(&url, &["CLUSTER", "INFO"]).await.ok()?;
                if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:6") {
                    return None;
                }
            }
            for place in 3..NODES {
                let info: String = ask(&cluster.url(place), &["INFO", "replication"]).await.ok()?;
                if !info.contains("master_link_status:up") {
                    return None;
                }
            }
            Some(())
        })
        .await;
        cluster
    }

    fn url(&self, place: usize) -> String {
        self.nodes[place].server.url()
    }

    fn urls(&self) -> Vec<String> {
        (0..NODES).map(|place| self.url(place)).collect()
    }

    async fn id(&self, place: usize) -> String {
        ask(&self.url(place), &["CLUSTER", "MYID"]).await.unwrap()
    }

    async fn bus_port(&self, place: usize) -> String {
        let (_, port): (String, String) = ask(&self.url(place), &["CONFIG", "GET", "cluster-port"]).await.unwrap();
        port
    }

    /// The node that is the primary of a slot at the moment, as a node that lives says.
    async fn primary_of(&self, slot: u16) -> Option<usize> {
        for url in self.urls() {
            let Ok(slots) = ask::<Vec<redis::Value>>(&url, &["CLUSTER", "SLOTS"]).await else {
                continue;
            };
            for entry in slots {
                let parts: Vec<redis::Value> = redis::from_redis_value(entry).ok()?;
                let (first, last): (u16, u16) = (
                    redis::from_redis_value(parts[0].clone()).ok()?,
                    redis::from_redis_value(parts[1].clone()).ok()?,
                );
                if (first..=last).contains(&slot) {
                    let node: Vec<redis::Value> = redis::from_redis_value(parts[2].clone()).ok()?;
                    let port: u16 = redis::from_redis_value(node[1].clone()).ok()?;
                    return self.nodes.iter().position(|node| node.server.port() == port);
                }
            }
        }
        None
    }

    /// Moves a slot from its primary to another one, key by key, as `redis-cli --cluster reshard` does.
    async fn migrate(&self, slot: u16, to: usize) {
        let from = self.primary_of(slot).await.unwrap();
        let (slot, ids) = (slot.to_string(), [self.id(from).await, self.id(to).await]);
        let set = async |at: usize, words: &[&str]| {
            let words = [&["CLUSTER", "SETSLOT", &slot], words].concat();
            ask::<String>(&self.url(at), &words).await.unwrap();
        };
        set(to, &["IMPORTING", &ids[0]]).await;
        set(from, &["MIGRATING", &ids[1]]).await;
        let port = self.nodes[to].server.port().to_string();
        loop {
            let keys: Vec<String> = ask(&self.url(from), &["CLUSTER", "GETKEYSINSLOT", &slot, "1"])
                .await
                .unwrap();
            if keys.is_empty() {
                break;
            }
            let head = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "AUTH", PASSWORD, "KEYS"];
            let words: Vec<&str> = head.into_iter().chain(keys.iter().map(String::as_str)).collect();
            let _: String = ask(&self.url(from), &words).await.unwrap();
        }
        for at in [to, from] {
            set(at, &["NODE", &ids[1]]).await;
        }
    }
}

/// An office whose tenant `acme` is in the main lane of a cluster, and a tenant `globex` in another one.
struct Offices {
    office: Office,
    cluster: Cluster,
    carl: Api,
    dora: Api,
    dora_id: Uuid,
    joe: Api,
}

impl Offices {
    async fn open() -> Self {
        let cluster = Cluster::start().await;
        let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(0)).await;
        let office = Office::within(world, |config| {
            config.redis.cluster = true.into();
            config.redis.replicas_min = 1;
            config.lanes = vec![Lane {
                name: EU.to_owned(),
                ..Lane::default()
            }];
        })
        .await;
        let database = office.world.database().await;
        let replication = &office.world.config.replication;
        tenants::create(&database, replication, "globex", EU).await.unwrap();
        let dora_id = office.world.user("globex", "dora", UserType::Mobile).await;
        office.world.user("globex", "bob", UserType::Web).await;
        let carl = office.anybody.log_in("globex", "bob").await;
        let dora = carl.enroll("dora-1", Some(&dora_id.to_string())).await.0;
        eventually("the phone syncs", || async {
            (dora.get("/api/sync/incoming").await.status == 200).then_some(())
        })
        .await;
        let joe = office.phone("phone").await;
        Self {
            office,
            cluster,
            carl,
            dora,
            dora_id,
            joe,
        }
    }

    fn slot(&self, lane: &str) -> u16 {
        let world = self.office.world.in_lane(lane);
        slot_of(&world.config.redis.keys_prefix())
    }

    async fn epochs(&self) -> [Option<String>; 2] {
        let database = self.office.world.psql().await;
        let query = "SELECT string_agg(id, ' ' ORDER BY number) FROM posduif.epochs WHERE slot = $1";
        let mut found = [None, None];
        for (place, lane) in ["main", EU].into_iter().enumerate() {
            let slot = self.office.world.in_lane(lane).config.replication.slot.clone();
            found[place] = database.query_one(query, &[&slot]).await.unwrap().get(0);
        }
        found
    }

    /// Writes to both tenants by SQL until it is asked to stop; says when it has begun.
    async fn write_until(&self, begun: oneshot::Sender<()>, mut stop: oneshot::Receiver<()>) -> usize {
        let mut begun = Some(begun);
        let psql = self.office.world.psql().await;
        let to = [("tenant_acme", self.office.joe_id), ("tenant_globex", self.dora_id)];
        let mut count = 0;
        while stop.try_recv().is_err() {
            for (schema, user) in to {
                let insert = format!(
                    "INSERT INTO {schema}.messages (sender_id, recipient_id, content)
                     SELECT id, $1, 'message {count}' FROM {schema}.users WHERE username = 'bob'"
                );
                psql.execute(&insert, &[&user]).await.unwrap();
            }
            count += 1;
            if let Some(begun) = begun.take() {
                begun.send(()).unwrap();
            }
            tokio::task::yield_now().await;
        }
        count
    }

    /// Waits until both phones have what Postgres shows.
    async fn follow(&self, held: &mut [Held; 2]) {
        let phones = [(&self.joe, "tenant_acme"), (&self.dora, "tenant_globex")];
        for (held, (phone, schema)) in held.iter_mut().zip(phones) {
            held.follow(phone, &self.office.world, schema).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_of_a_cluster_follow_a_failover_without_an_epoch() {
    let mut offices = Offices::open().await;
    let mut held = [Held::default(), Held::default()];
    offices.follow(&mut held).await;
    let before = offices.epochs().await;
    let slot = offices.slot(EU);
    let primary = offices.cluster.primary_of(slot).await.unwrap();
    let mut events = offices.dora.events("/sse/mobile/dora-1").await;
    let ((stop, stopped), (begun, has_begun)) = (oneshot::channel(), oneshot::channel());
    // Killed while both tenants write.
    let mut killed = std::mem::take(&mut offices.cluster.nodes);
    let kill = async {
        killed[primary].server.kill().await.unwrap();
        killed
    };
    let (count, nodes) = tokio::join!(offices.write_until(begun, stopped), async {
        has_begun.await.unwrap();
        let nodes = kill.await;
        let survivors = Cluster { nodes };
        eventually("a replica takes over", || async {
            survivors.primary_of(slot).await.filter(|now| *now != primary)
        })
        .await;
        stop.send(()).unwrap();
        survivors.nodes
    });
    offices.cluster.nodes = nodes;
    assert!(count > 0);
    offices.follow(&mut held).await;
    assert_eq!([held[0].resets, held[1].resets], [1, 1], "the first snapshots");
    assert_eq!(offices.epochs().await, before);
    let body = json!({"recipient_id": offices.dora_id, "content": "live"});
    eventually("carl can write again", || async {
        (offices.carl.post("/api/messages", &body).await.status == 201).then_some(())
    })
    .await;
    let mut messages = 0;
    while messages < 1 {
        // The stream of before, or the one after it has ended.
        match events.next().await {
            Some(event) if event.name == "message" || event.name == "sync_required" => messages += 1,
            Some(_) => {}
            None => events = offices.dora.events("/sse/mobile/dora-1").await,
        }
    }
    offices.office.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_that_is_migrated_under_load_loses_nothing() {
    let offices = Offices::open().await;
    let mut held = [Held::default(), Held::default()];
    offices.follow(&mut held).await;
    let before = offices.epochs().await;
    for lane in [EU, "main"] {
        let slot = offices.slot(lane);
        let from = offices.cluster.primary_of(slot).await.unwrap();
        let ((stop, stopped), (begun, has_begun)) = (oneshot::channel(), oneshot::channel());
        let (count, ()) = tokio::join!(offices.write_until(begun, stopped), async {
            has_begun.await.unwrap();
            offices.cluster.migrate(slot, (from + 1) % 3).await;
            stop.send(()).unwrap();
        });
        assert!(count > 0);
        assert_eq!(offices.cluster.primary_of(slot).await, Some((from + 1) % 3));
        offices.follow(&mut held).await;
    }
    assert_eq!([held[0].resets, held[1].resets], [1, 1], "the first snapshots");
    assert_eq!(offices.epochs().await, before);
    offices.office.close().await;
}
