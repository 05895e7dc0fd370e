//! `/ready` is 503 while clients see stale data, for any cause, responds at once nevertheless, and is 200 again when
//! the cause is gone.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use posduif::config::Secret;
use posduif::engine::Role;
use serde_json::Value;

use crate::support::http::Api;
use crate::support::proxy::Proxy;
use crate::support::{RunningEngine, World, eventually, send_signal, send_signal_to_family, servers};

/// The bound on the age of what clients see.
const BOUND: Duration = Duration::from_secs(2);

/// Within this time after the bound `/ready` must be red.
const GRACE: Duration = Duration::from_secs(2);

/// An engine with a small bound, behind proxies.
struct Watched {
    engine: RunningEngine,
    to_postgres: Proxy,
    to_redis: Proxy,
    world: World,
}

impl Watched {
    async fn new() -> Self {
        Self::on(World::new().await).await
    }

    async fn on(world: World) -> Self {
        let to_postgres = Proxy::before(world.config.postgres.url.expose()).await;
        let to_redis = Proxy::before(world.config.redis.url.expose()).await;
        let mut config = world.config.clone();
        config.postgres.url = Secret::new(to_postgres.url(config.postgres.url.expose()));
        config.redis.url = Secret::new(to_redis.url(config.redis.url.expose()));
        config.health.max_staleness_seconds = BOUND.as_secs();
        config.replication.idle_timeout_seconds = 3;
        config.redis.response_timeout_seconds = 2;
        let watched = Self {
            engine: world.engine_with(Role::All, config).await,
            to_postgres,
            to_redis,
            world,
        };
        watched.becomes_ready().await;
        watched
    }

    async fn becomes_ready(&self) {
        becomes_ready(&self.engine.api()).await;
    }

    async fn must_turn_red(&self) {
        must_turn_red(&self.engine.api()).await;
    }

    /// What was committed meanwhile is there, and no stream was reset.
    async fn goes_on(self) {
        self.becomes_ready().await;
        self.world.published().await;
        assert_eq!(self.world.checkpoint().await["number"], "1");
        self.engine.stop().await;
    }
}

async fn becomes_ready(api: &Api) {
    eventually("the engine is ready", || async {
        (api.get("/ready").await.status == 200).then_some(())
    })
    .await;
}

/// Nothing that is committed from now on reaches clients. Asks until well after the time by which `/ready` must be red;
/// gives its checks then.
async fn must_turn_red(api: &Api) -> Value {
    let start = Instant::now();
    let mut reds = 0;
    loop {
        let asked = Instant::now();
        let answer = api.admin().get("/ready").await;
        // A second for each server that does not answer, and a lot for a busy machine.
        assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
        let age = asked - start;
        if age > BOUND + GRACE {
            assert_eq!(answer.status, 503, "what clients see is {age:?} old at least");
            reds += 1;
            if reds == 3 {
                return answer.json()["checks"].clone();
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn node_is_not_ready_without_publisher_although_servers_respond() {
    let mut world = World::new().await;
    world.config.health.max_staleness_seconds = BOUND.as_secs();
    let publisher = world.engine(Role::Replicator).await;
    let node = world.engine(Role::Api).await;
    becomes_ready(&node.api()).await;
    publisher.stop().await;
    let checks = must_turn_red(&node.api()).await;
    for (name, check) in checks.as_object().unwrap() {
        assert_eq!(check["ok"], name != "freshness", "{name}: {check}");
    }
    let next = world.engine(Role::Replicator).await;
    becomes_ready(&node.api()).await;
    next.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_postgres_connection_makes_node_unready_until_it_resumes() {
    let watched = Watched::new().await;
    watched.to_postgres.stall();
    watched.must_turn_red().await;
    watched.to_postgres.resume();
    watched.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_redis_connection_makes_node_unready_until_it_resumes() {
    let watched = Watched::new().await;
    watched.to_redis.stall();
    watched.must_turn_red().await;
    watched.to_redis.resume();
    watched.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silently_dead_connections_are_replaced() {
    let watched = Watched::new().await;
    watched.to_postgres.abandon();
    watched.to_redis.abandon();
    watched.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_servers_make_node_unready_until_they_resume() {
    let (postgres, redis) = tokio::join!(servers::postgres(), servers::redis());
    let world = World::on(&postgres.server.url(), &redis.server.url()).await;
    let watched = Watched::on(world).await;
    let (postgres, redis) = (postgres.server.pid().unwrap(), redis.server.pid().unwrap());
    send_signal_to_family(postgres, Signal::SIGSTOP);
    watched.must_turn_red().await;
    send_signal_to_family(postgres, Signal::SIGCONT);
    watched.becomes_ready().await;
    send_signal(redis, Signal::SIGSTOP);
    watched.must_turn_red().await;
    send_signal(redis, Signal::SIGCONT);
    watched.goes_on().await;
}
