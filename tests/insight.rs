//! What the engine reports about itself at its admin listener: `/metrics`, and the slot in `/ready`, in every role.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hyper::Method;
use posduif::config::Secret;
use posduif::engine::Role;
use serde_json::Value;

use crate::support::http::Api;
use crate::support::office::Office;
use crate::support::proxy::Proxy;
use crate::support::scrape::Scrape;
use crate::support::stage::Stage;
use crate::support::{TIMEOUT, World, eventually, servers};

/// What `/ready` says of the replicator.
async fn replication(api: &Api) -> Value {
    api.admin().get("/ready").await.json()["checks"]["replication"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_valid_and_follow_writes_and_requests() {
    let office = Office::open().await;
    let phone = office.phone("phone-1").await;
    office.ready().await;
    let before = Scrape::of(&office.anybody).await;
    assert!(before.types.len() > 25, "{:?}", before.types.keys());
    assert_eq!(before.get("replication_state{state=\"streaming\"}"), 1.0);
    assert_eq!(before.get("replication_state{state=\"failed\"}"), 0.0);
    assert_eq!(before.get("epoch_number"), 1.0);
    assert_eq!(before.get("epochs_begun_total{reason=\"no_checkpoint\"}"), 1.0);
    assert_eq!(before.get("slot_wal_status{status=\"reserved\"}"), 1.0);
    assert!(before.get("freshness_age_seconds") < TIMEOUT.as_secs_f64());
    assert_eq!(
        before.get("pool_connections_max"),
        office.world.config.postgres.pool_size as f64
    );
    assert_eq!(before.get("subscribers"), 0.0);

    let mut events = phone.events("/sse/mobile/phone-1").await;
    office.insert(10).await;
    office.world.published().await;
    events.expect("message").await;
    phone.get("/nothing/jane/secret").await;
    phone
        .send(Method::from_bytes(b"BREW").unwrap(), "/health", None, "")
        .await;
    let increase = |now: &Scrape, sample: &str| {
        let before = before.samples.get(&format!("posduif_{sample}"));
        now.get(sample) - before.copied().unwrap_or_default()
    };
    let now = eventually("what was read is counted", || async {
        let now = Scrape::of(&office.anybody).await;
        (increase(&now, "changes_total") >= 10.0).then_some(now)
    })
    .await;
    assert!(increase(&now, "transactions_total") >= 1.0);
    assert!(increase(&now, "batches_total") >= 1.0);
    // Ten messages: the tenant's stream and two inboxes.
    assert!(increase(&now, "entries_total") >= 30.0);
    assert_eq!(now.get("batch_exec_seconds_count"), now.get("batches_total"));
    assert!(now.get("batch_changes_sum") >= 10.0 && now.get("batch_bytes_sum") > 1000.0);
    assert_eq!(now.get("subscribers"), 1.0);
    assert_eq!(increase(&now, "live_events_total{event=\"hello\"}"), 1.0);
    assert!(increase(&now, "live_events_total{event=\"message\"}") >= 1.0);
    let requests = |rest: &str| format!("http_requests_total{{{rest}}}");
    let stream = r#"method="GET",route="/sse/mobile/{device_id}",status="2xx""#;
    assert_eq!(increase(&now, &requests(stream)), 1.0);
    assert_eq!(
        now.get(&format!("http_request_duration_seconds_count{{{stream}}}")),
        1.0
    );
    assert_eq!(
        increase(&now, &requests(r#"method="GET",route="none",status="4xx""#)),
        1.0
    );
    assert_eq!(
        increase(&now, &requests(r#"method="other",route="none",status="4xx""#)),
        1.0
    );
    let text = format!("{:?}", now.samples);
    for secret in ["jane", "acme", "phone-1", &office.joe_id.to_string()] {
        assert!(!text.contains(secret), "{secret} is a label");
    }

    drop(events);
    eventually("the stream's end is seen", || async {
        let now = Scrape::of(&office.anybody).await;
        (now.get("subscribers") == 0.0).then_some(())
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn gzip_metrics_count_bytes_and_time() {
    let office = Office::open().await;
    let phone = office.phone("phone").await;
    let before = Scrape::of(&office.anybody).await;
    for direction in ["answer", "upload"] {
        assert_eq!(
            before.get(&format!("gzip_seconds_count{{direction=\"{direction}\"}}")),
            0.0
        );
    }
    office.send(&"long text ".repeat(500)).await;
    office.world.published().await;
    let answer = phone.with("accept-encoding", "gzip").get("/api/sync/incoming").await;
    assert_eq!(answer.headers["content-encoding"], "gzip");
    let mut plain = Vec::new();
    GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();

    let upload = format!("{{\"messages\": []{}}}", " ".repeat(10_000));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(upload.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let packing = phone.with("content-encoding", "gzip");
    let uploaded = packing.send(
        Method::POST,
        "/api/sync/outgoing",
        Some("application/json"),
        packed.clone(),
    );
    uploaded.await.expect(200);

    let now = Scrape::of(&office.anybody).await;
    for (direction, plain, packed) in [
        ("answer", plain.len(), answer.body.len()),
        ("upload", upload.len(), packed.len()),
    ] {
        let get = |name: &str| now.get(&format!("gzip_{name}{{direction=\"{direction}\"}}"));
        assert_eq!(
            (get("plain_bytes_total"), get("compressed_bytes_total")),
            (plain as f64, packed as f64)
        );
        assert_eq!(get("seconds_count"), 1.0);
        assert!(get("seconds_sum") > 0.0);
    }
    office.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_position_reaches_end_of_wal() {
    let stage = Stage::on_with(World::new().await, Role::All).await;
    let api = stage.engine.as_ref().unwrap().api();
    stage.message(stage.bob, stage.joe, "hello").await;
    stage.world.published().await;
    eventually("all stages reach the end of the log", || async {
        let replication = replication(&api).await;
        let stages = ["received", "published", "durable", "acknowledged"];
        let lags = stages.map(|stage| replication["lag_bytes"][stage].as_u64());
        let [received, published, durable, acknowledged] = lags;
        assert!(received <= published && published <= durable && durable <= acknowledged);
        // Others write on this server as well; a few seconds of their log remain.
        acknowledged.filter(|lag| *lag < 64 * 1024 * 1024)
    })
    .await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_wal_metric_grows_with_a_held_engine_and_falls_again() {
    let postgres = servers::postgres_with(|_, options| options.setting("max_slot_wal_keep_size", "64MB")).await;
    let mut world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    world.config.replication.heartbeat_interval_ms = 100;
    let proxy = Proxy::before(world.config.redis.url.expose()).await;
    let mut config = world.config.clone();
    config.redis.url = Secret::new(proxy.url(config.redis.url.expose()));
    let engine = world.engine_with(Role::All, config).await;
    let api = engine.api();
    world.published().await;
    let retained = |replication: &Value| replication["retained_wal_bytes"].as_u64();
    let first = eventually("the slot is looked at", || async {
        let replication = replication(&api).await;
        retained(&replication).map(|_| replication)
    })
    .await;
    assert_eq!(first["wal_status"], "reserved");
    assert!(first["safe_wal_size_bytes"].as_u64().unwrap() > 32 * 1024 * 1024);
    assert!(first["sample_age_seconds"].as_f64().unwrap() < TIMEOUT.as_secs_f64());

    // Redis hangs: what is written now can neither be published nor acknowledged.
    proxy.stall();
    let psql = world.psql().await;
    psql.batch_execute(
        "CREATE TABLE public.noise AS SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 20000) n",
    )
    .await
    .unwrap();
    let held = eventually("20 MB are held back", || async {
        let now = replication(&api).await;
        (retained(&now)? > retained(&first)? + 16_000_000).then_some(now)
    })
    .await;
    let safe = |replication: &Value| replication["safe_wal_size_bytes"].as_u64().unwrap();
    assert!(safe(&held) + 16_000_000 < safe(&first), "{held}");
    assert!(held["lag_bytes"]["acknowledged"].as_u64().unwrap() > 16_000_000);
    let scrape = Scrape::of(&api).await;
    assert!(scrape.get("slot_retained_wal_bytes") > 16e6);
    assert!(scrape.get("replication_lag_bytes{stage=\"published\"}") > 16e6);
    assert!(scrape.get("slot_safe_wal_size_bytes") + 16e6 < safe(&first) as f64);

    proxy.resume();
    eventually("nothing is held back any more", || async {
        // Postgres moves `restart_lsn` when it logs which transactions run, which is every 15 s, or at a checkpoint.
        psql.batch_execute("CHECKPOINT").await.unwrap();
        let now = replication(&api).await;
        (retained(&now)? < 1_000_000).then_some(())
    })
    .await;
    let scrape = Scrape::of(&api).await;
    assert!(scrape.get("replication_lag_bytes{stage=\"acknowledged\"}") < 1e6);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_about_to_be_lost_is_warned_about_once() {
    let postgres = servers::postgres_with(|_, options| options.setting("max_slot_wal_keep_size", "32MB")).await;
    let mut world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    world.config.replication.heartbeat_interval_ms = 100;
    let proxy = Proxy::before(world.config.redis.url.expose()).await;
    let mut config = world.config.clone();
    config.redis.url = Secret::new(proxy.url(config.redis.url.expose()));
    let log = postgres.folder().join("engine.log");
    let mut process = world.process_with("replicator", &config, Some(&log)).await;
    let api = process.announced().await;
    world.published().await;
    let lines = || {
        let log = std::fs::read_to_string(&log).unwrap();
        let lines = log
            .lines()
            .filter(|line| line.contains("replication slot is about to be lost"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(), [""; 0]);
    proxy.stall();
    let psql = world.psql().await;
    psql.batch_execute(
        "CREATE TABLE public.noise AS SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 50000) n",
    )
    .await
    .unwrap();
    let warnings = eventually("the log warns", || async {
        Some(lines()).filter(|lines| !lines.is_empty())
    })
    .await;
    assert!(warnings[0].contains(&world.config.replication.slot), "{warnings:?}");
    assert!(warnings[0].contains("max_slot_wal_keep_size"), "{warnings:?}");
    // It is looked at again and again, and said no more.
    eventually("it was looked at again", || async {
        let replication = replication(&api).await;
        (replication["wal_status"] == "unreserved" && replication["safe_wal_size_bytes"] == 0).then_some(())
    })
    .await;
    assert_eq!(lines().len(), 1);
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_refusals_and_session_ends_are_counted_by_cause() {
    let mut redis = servers::redis().await;
    let world = World::on(&std::env::var("DATABASE_URL").unwrap(), &redis.server.url()).await;
    let stage = Stage::on_with(world, Role::All).await;
    let api = stage.engine.as_ref().unwrap().api();
    let before = Scrape::of(&api).await;
    for kind in ["OOM", "READONLY", "LOADING", "MISCONF", "NOPERM", "other"] {
        assert_eq!(before.get(&format!("redis_refusals_total{{kind=\"{kind}\"}}")), 0.0);
    }
    assert_eq!(before.get("session_restarts_total{cause=\"redis\"}"), 0.0);
    let set = async |maxmemory: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg(&["SET", "maxmemory", maxmemory]);
        let _: String = command.query_async(&mut stage.world.redis().await).await.unwrap();
    };
    set("1").await;
    stage.message(stage.bob, stage.joe, "while Redis is full").await;
    eventually("refusals are counted", || async {
        let now = Scrape::of(&api).await;
        (now.get("redis_refusals_total{kind=\"OOM\"}") >= 2.0).then_some(())
    })
    .await;
    set("0").await;
    stage.world.published().await;
    redis.server.kill().await.unwrap();
    eventually("the end of the session is counted", || async {
        let now = Scrape::of(&api).await;
        (now.get("session_restarts_total{cause=\"redis\"}") >= 1.0).then_some(())
    })
    .await;
    redis.server.restart().await.unwrap();
    stage.world.published().await;
    let now = Scrape::of(&api).await;
    assert_eq!(now.get("session_restarts_total{cause=\"postgres\"}"), 0.0);
    assert_eq!(now.get("redis_refusals_total{kind=\"other\"}"), 0.0);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_stream_is_counted() {
    let stage = Stage::on_with(World::new().await, Role::All).await;
    let api = stage.engine.as_ref().unwrap().api();
    let inbox = stage.world.keys().inbox("acme", &stage.joe.to_string());
    let mut redis = stage.world.redis().await;
    let _: () = redis::pipe()
        .atomic()
        .cmd("DEL")
        .arg(&inbox)
        .ignore()
        .cmd("SET")
        .arg(&inbox)
        .arg("no stream")
        .ignore()
        .query_async(&mut redis)
        .await
        .unwrap();
    stage.message(stage.bob, stage.joe, "to nowhere").await;
    eventually("the stream is counted as stopped", || async {
        let now = Scrape::of(&api).await;
        (now.get("streams_stopped") == 1.0 && now.get("changes_quarantined_total") >= 1.0).then_some(())
    })
    .await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicate_only_process_serves_health_and_metrics_only() {
    let world = World::new().await;
    let mut process = world.process("replicator").await;
    let api = process.announced().await;
    assert_eq!(api.get("/health").await.status, 200);
    let ready = eventually("it is ready", || async {
        let answer = api.admin().get("/ready").await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert!(ready["checks"]["freshness"]["age_seconds"].as_f64().unwrap() < TIMEOUT.as_secs_f64());
    assert_eq!(ready["checks"]["replication"]["state"], "streaming");
    let scrape = Scrape::of(&api).await;
    assert_eq!(scrape.get("replication_state{state=\"streaming\"}"), 1.0);
    for (method, path) in [
        (Method::GET, "/api/users"),
        (Method::POST, "/api/auth/login"),
        (Method::GET, "/sse/mobile/phone-1"),
        (Method::GET, "/"),
    ] {
        assert_eq!(
            api.undescribed().send(method, path, None, "").await.status,
            404,
            "{path}"
        );
    }
    assert_eq!(api.admin().send(Method::POST, "/metrics", None, "").await.status, 405);
    assert_eq!(process.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_waiting_for_the_slot_reports_freshness_without_lag() {
    let world = World::new().await;
    let (mut first, mut second) = (world.process("replicator").await, world.process("replicator").await);
    let apis = [first.announced().await, second.announced().await];
    let waiting = eventually("one streams, the other waits, both are ready", || async {
        let mut waiting = None;
        for api in &apis {
            let answer = api.admin().get("/ready").await;
            if answer.status != 200 {
                return None;
            }
            if answer.json()["checks"]["replication"]["state"] == "waiting for the slot" {
                waiting = Some(api.clone());
            }
        }
        waiting
    })
    .await;
    let state = eventually("it has looked at the slot", || async {
        let state = replication(&waiting).await;
        state["retained_wal_bytes"].is_u64().then_some(state)
    })
    .await;
    assert_eq!(state["lag_bytes"], Value::Null);
    let scrape = Scrape::of(&waiting).await;
    assert_eq!(scrape.get("replication_state{state=\"waiting\"}"), 1.0);
    assert!(scrape.get("freshness_age_seconds") < TIMEOUT.as_secs_f64());
    assert!(!scrape.types.contains_key("posduif_replication_lag_bytes"));
    assert_eq!(first.terminate().await, Some(0));
    assert_eq!(second.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn occupied_port_is_named_in_the_error() {
    let world = World::new().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = taken.local_addr().unwrap();
    let mut public = world.config.clone();
    public.server.port = place.port();
    let mut admin = world.config.clone();
    admin.admin.listen = place.to_string();
    for (config, key) in [(public, "server.port"), (admin, "admin.listen")] {
        let error = posduif::engine::Engine::start(config, Role::Replicator)
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(&place.to_string()) && text.contains(key), "{text}");
    }
}

#[tokio::test]
async fn slot_has_failover_flag_where_the_server_supports_it() {
    let stage = Stage::new().await;
    let ask = "SELECT to_jsonb(slot) ->> 'failover' FROM pg_replication_slots slot WHERE slot_name = $1";
    let row = stage.psql.query_one(ask, &[&stage.world.config.replication.slot]).await;
    let failover: Option<String> = row.unwrap().get(0);
    let expected = (stage.server_version().await >= 170_000).then_some("true");
    assert_eq!(failover.as_deref(), expected);
    stage.stop().await;
}
