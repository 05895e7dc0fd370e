//! Starts the parts of the engine and stops them in order. Listeners between parts are registered here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::accounts::last_seen;
use crate::accounts::login_limits::Limits;
use crate::accounts::mail::{self, Mails};
use crate::api::console::Console;
use crate::api::health::{Diagnostics, Probe};
use crate::api::lane::Lane;
use crate::api::service::{AdminService, Service};
use crate::api::{App, Parts};
use crate::config::{self, Config};
use crate::core::lane::{Lanes, MAIN};
use crate::http::listener;
use crate::http::secure::Acceptor;
use crate::http::server::Server;
use crate::live::hub::Hub;
use crate::live::tail;
use crate::live::visibility::Visibility;
use crate::net;
use crate::oidc::Providers;
use crate::postgres::{Database, audit, migrations, publication, tenants};
use crate::push::Waker;
use crate::push::webhook::Webhook;
use crate::redis::store::Store;
use crate::replication::bounds::Cuts;
use crate::replication::end::FailureCause;
use crate::replication::epoch::Break;
use crate::replication::outside::{Failures, Outside};
use crate::replication::report::{ReplicationStatus, ReplicatorState, Report};
use crate::replication::{catalog, difference, replicator, trim};
use crate::route::router::Router;
use crate::sync::outgoing::{ItemCode, Outcome};
use crate::sync::{tables, visibility};
use crate::telemetry::metrics::{Labels, Metrics};
use crate::telemetry::traces;

/// Trims that may wait in the queue to the publisher.
const TRIMS_MAX: usize = 256;

/// How often a process looks in which lane each tenant is.
const PLACES_INTERVAL: Duration = Duration::from_secs(1);

/// Which parts of the engine a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Replicator and API.
    All,
    /// HTTP only.
    Api,
    /// Replicator only; HTTP serves health, readiness and metrics.
    Replicator,
}

impl Role {
    fn replicates(self) -> bool {
        matches!(self, Self::All | Self::Replicator)
    }

    fn serves_api(self) -> bool {
        matches!(self, Self::All | Self::Api)
    }
}

/// Checks the parts of the settings that need no other process: URLs, files, and the secret where the role requires it.
///
/// # Errors
/// Names the key, and why an engine of this role cannot start with it.
pub fn check(config: &Config, role: Role) -> Result<()> {
    if role.serves_api() {
        config.check_secrets()?;
        Providers::new(config, metrics(role).auth.clone())?;
        mail::sender(&config.mail)?;
    }
    net::postgres::Server::parse(config.postgres.url.expose()).context("key `postgres.url`")?;
    let stores = stores(&config.of_lanes())?;
    config.server.certificate_files().map(Acceptor::new).transpose()?;
    if role.replicates() {
        Webhook::new(config, stores.main().clone(), metrics(role))?;
    }
    if let Some(client) = trace_client(&config.telemetry)? {
        traces::check(&config.telemetry, client)?;
    }
    Ok(())
}

/// A store for each lane.
fn stores(configs: &Lanes<Config>) -> Result<Lanes<Store>> {
    configs.try_map(|name, config| {
        let store = Store::with_groups(&config.redis, config.groups.clone());
        store.with_context(|| match name {
            MAIN => "key `redis.url`".to_owned(),
            name => format!("key `lanes`: `redis_url` of {name}"),
        })
    })
}

/// Reads where the tenants are.
///
/// # Errors
/// When one is in a lane that the configuration lacks: its devices would receive nothing.
async fn place_tenants<T>(database: &Database, lanes: &Lanes<T>) -> Result<Vec<(String, Arc<str>)>> {
    let places = tenants::in_other_lanes(database).await.context(tenants::UNREADABLE)?;
    if let Some((tenant, lane)) = places.iter().find(|(_, lane)| lanes.named(lane).is_none()) {
        bail!(
            "the tenant {tenant} is in the lane {lane}, which the configuration lacks: add it to `lanes`, or move the \
             tenant with `posduif tenant move {tenant} {MAIN}`"
        );
    }
    Ok(lanes.places().set(places))
}

/// Looks where the tenants are, until `stop`. The readers of one that was moved connect again.
async fn follow_moves(diagnostics: Arc<Diagnostics>, stop: CancellationToken) {
    let following = async {
        let mut logged = String::new();
        loop {
            tokio::time::sleep(PLACES_INTERVAL).await;
            match place_tenants(&diagnostics.database, &diagnostics.lanes).await {
                Ok(moved) => {
                    logged.clear();
                    for (tenant, lane) in moved {
                        tracing::info!(tenant, %lane, "tenant has left a lane; its readers connect again");
                        if let Some(lane) = diagnostics.lanes.named(&lane) {
                            lane.hub.close_tenant(&tenant);
                        }
                    }
                }
                Err(error) => {
                    let cause = format!("{error:#}");
                    if cause != logged {
                        tracing::error!(cause, "lanes of tenants not known; trying again");
                        logged = cause;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = stop.cancelled() => {}
    }
}

/// The client of the collector that `telemetry.otlp_endpoint` names, if any.
///
/// # Errors
/// When the endpoint is malformed, or the authorities of the system cannot be read.
pub fn trace_client(settings: &config::Telemetry) -> Result<Option<net::http::Client>> {
    if !settings.is_enabled() {
        return Ok(None);
    }
    let client = net::http::Client::new(settings.collector()?, net::tls::Roots::System, traces::TIMEOUT);
    client.context("TLS to the collector of traces").map(Some)
}

fn metrics(role: Role) -> Arc<Metrics> {
    let labels = Labels {
        restart_causes: FailureCause::ALL.map(FailureCause::as_str).into(),
        epoch_reasons: Break::KINDS.into(),
        catalog_kinds: difference::Kind::ALL.map(difference::Kind::as_str).into(),
        upload_results: Outcome::ALL.map(Outcome::as_str).into(),
        upload_codes: ItemCode::ALL.map(ItemCode::as_str).into(),
    };
    Arc::new(Metrics::new(role.replicates(), &labels))
}

/// Warns of tables with uploads in which two users may have rows of the same id.
async fn warn_of_shared_ids(database: &Database, config: &Config) -> Result<()> {
    let tables = tables::without_unique_id(database, &config.routes).await;
    for (schema, table) in tables.context("cannot read the tables with uploads")? {
        tracing::warn!(
            schema,
            table,
            "devices upload into a table whose `id` is not unique; see `posduif doctor`"
        );
    }
    Ok(())
}

/// The admin listener before it serves.
#[derive(Debug)]
struct AdminListener {
    listener: TcpListener,
    settings: config::Server,
}

impl AdminListener {
    async fn listen(config: &Config) -> Result<Option<Self>> {
        let Some(address) = config.admin.address()? else {
            return Ok(None);
        };
        let settings = config.admin.server(address, &config.server);
        let listener = listener::listen(&settings, "`admin.listen`").await?;
        Ok(Some(Self { listener, settings }))
    }
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    parts: JoinSet<Result<()>>,
    stop_serving: CancellationToken,
    stop_replicating: CancellationToken,
    /// Ends the replication's thread, after all other parts: it may hold pooled connections that they use.
    release: DropGuard,
}

impl Engine {
    /// Migrates, then starts the parts that the role names. Returns when the HTTP socket listens.
    pub async fn start(config: Config, role: Role) -> Result<Self> {
        check(&config, role)?;
        let config = Arc::new(config);
        let database = Database::connect(&config.postgres).await?;
        migrations::up(&database, &config.replication)
            .await
            .context("cannot migrate the schemas")?;
        publication::ensure(&database, &config.replication.publication).await?;
        let outside = Outside {
            database: &database,
            publication: &config.replication.publication,
            router: &Router::configured(&config),
        };
        // The next look at the catalogs tries again.
        if let Err(error) = outside.publish(&mut Failures::default()).await {
            tracing::error!(cause = format!("{error:#}"), "tables of rules not published");
        }

        if role.serves_api() {
            warn_of_shared_ids(&database, &config).await?;
        }

        let configs = config.of_lanes();
        let stores = stores(&configs)?;
        place_tenants(&database, &stores).await?;
        // Before anything runs, so that an occupied port leaves no work half done.
        let listener = listener::listen(&config.server, "`server.host` and `server.port`").await?;
        let admin = AdminListener::listen(&config).await?;
        let metrics = metrics(role);
        let mut engine = Self {
            address: listener.local_addr()?,
            admin_address: admin.as_ref().map(|admin| admin.listener.local_addr()).transpose()?,
            parts: JoinSet::new(),
            stop_serving: CancellationToken::new(),
            stop_replicating: CancellationToken::new(),
            release: CancellationToken::new().drop_guard(),
        };
        let replication = role
            .replicates()
            .then(|| engine.replicate(&configs, &database, &stores, &metrics));
        // With port 0, only the listener knows the port for URLs.
        let port = engine.address.port();
        let lanes = stores.map(|name, store| {
            let mut config = configs.named(name).unwrap_or(configs.main()).clone();
            config.server.port = port;
            Lane {
                hub: Hub::new(config.live.queue_events_max),
                visibility: Visibility::default(),
                replication: replication.as_ref().and_then(|status| status.named(name)).cloned(),
                config: Arc::new(config),
                store: store.clone(),
            }
        });
        for (_, lane) in lanes.iter() {
            if let Some(status) = &lane.replication {
                let (config, store) = (lane.config.clone(), lane.store.clone());
                engine.start_push(
                    Waker::new(config, database.clone(), store, &lane.hub, metrics.clone())?,
                    status,
                );
            }
        }
        let diagnostics = Diagnostics {
            config: lanes.main().config.clone(),
            lanes,
            database,
            metrics,
            probe: Probe::default(),
        };
        engine.start_pruning(&diagnostics);
        engine.serve(listener, admin, diagnostics, role.serves_api())?;
        Ok(engine)
    }

    /// Starts a replicator for each lane, and one watch of the catalogs for all.
    fn replicate(
        &mut self,
        configs: &Lanes<Config>,
        database: &Database,
        stores: &Lanes<Store>,
        metrics: &Arc<Metrics>,
    ) -> Lanes<ReplicationStatus> {
        let stop = self.stop_replicating.clone();
        let (moved, moves) = watch::channel(0);
        let reports = configs.map(|name, config| {
            // The families have no label for the lane.
            let metrics = match name {
                MAIN => metrics.clone(),
                _ => self::metrics(Role::Replicator),
            };
            let (report, status) = Report::new(metrics, &config.streams);
            (Arc::new(report), status)
        });
        for ((name, (report, _)), (_, store)) in reports.iter().zip(stores.iter()) {
            let config = Arc::new(configs.named(name).unwrap_or(configs.main()).clone());
            let (sender, due) = mpsc::channel(TRIMS_MAX);
            let cuts = Cuts {
                sender,
                ledger: report.ledger.clone(),
            };
            let replicating = {
                let (config, database, stop) = (config.clone(), database.clone(), stop.clone());
                let (report, moves) = (report.clone(), moves.clone());
                async move { replicator::run(&config, &database, due, moves, &report, stop).await }
            };
            let thread = match name {
                MAIN => "replication".to_owned(),
                name => format!("replication-{name}"),
            };
            self.parts
                .spawn(on_own_thread(thread, replicating, self.release.token().clone()));
            let trimming = trim::run(config, database.clone(), store.clone(), cuts, stop.clone());
            self.parts.spawn(async move {
                trimming.await;
                Ok(())
            });
        }
        let (config, database) = (configs.main().clone(), database.clone());
        if config.replication.catalog_interval_seconds == 0 {
            return reports.map(|_, (_, status)| status.clone());
        }
        let watched = reports.map(|_, (report, _)| report.clone());
        self.parts.spawn(async move {
            Box::pin(catalog::run(&config, database, &watched, moved, stop)).await;
            Ok(())
        });
        reports.map(|_, (_, status)| status.clone())
    }

    /// Every role does it: it is idempotent, and rare.
    fn start_pruning(&mut self, diagnostics: &Diagnostics) {
        let days = diagnostics.config.audit.retention_days;
        let pruning = audit::run_pruning(diagnostics.database.clone(), days, self.stop_serving.clone());
        self.parts.spawn(async move {
            pruning.await;
            Ok(())
        });
    }

    fn start_push(&mut self, waker: Waker, status: &ReplicationStatus) {
        let waking = waker.run(
            status.state.clone(),
            ReplicatorState::is_streaming,
            self.stop_replicating.clone(),
        );
        self.parts.spawn(async move {
            waking.await;
            Ok(())
        });
    }

    fn serve(
        &mut self,
        listener: TcpListener,
        admin: Option<AdminListener>,
        diagnostics: Diagnostics,
        with_api: bool,
    ) -> Result<()> {
        let diagnostics = Arc::new(diagnostics);
        let stop = self.stop_serving.clone();
        if diagnostics.lanes.has_others() {
            let following = follow_moves(diagnostics.clone(), stop.clone());
            self.parts.spawn(async move {
                following.await;
                Ok(())
            });
        }
        // Freshness depends on the tail, so it runs in every role.
        for (_, lane) in diagnostics.lanes.iter() {
            let redis = lane.config.redis.clone();
            let tail = tail::run(redis, lane.store.clone(), lane.hub.clone(), stop.clone());
            self.parts.spawn(async move {
                tail.await;
                Ok(())
            });
        }
        let app = with_api.then(|| self.start_api(&diagnostics)).transpose()?;
        let metrics = diagnostics.metrics.clone();
        if let Some(AdminListener { listener, settings }) = admin {
            let url = format!("http://{}", listener.local_addr()?);
            let console = Arc::new(Console::new(diagnostics.clone(), url, stop.clone())?);
            let sampling = console.sample();
            self.parts.spawn(async move {
                sampling.await;
                Ok(())
            });
            let service = AdminService::new(diagnostics.clone(), console)?;
            let (metrics, stop) = (metrics.clone(), stop.clone());
            // To be registered where it is served.
            let listener = listener.into_std()?;
            let serving = async move {
                let listener = TcpListener::from_std(listener)?;
                let server = Server::new(listener, settings, metrics, service)?;
                server.run(stop).await.context("the admin listener failed")
            };
            self.parts
                .spawn(on_own_thread("admin".to_owned(), serving, self.release.token().clone()));
        }
        let settings = diagnostics.config.server.clone();
        let server = Server::new(listener, settings, metrics, Service::new(diagnostics, app)?)?;
        self.parts
            .spawn(async move { server.run(stop).await.context("the HTTP server failed") });
        Ok(())
    }

    fn start_api(&mut self, diagnostics: &Diagnostics) -> Result<Arc<App>> {
        let stop = self.stop_serving.clone();
        let limits = Limits::new(diagnostics.lanes.main().store.clone(), &diagnostics.config);
        let (database, counted) = (diagnostics.database.clone(), diagnostics.metrics.mail.clone());
        let (mails, mailer) = Mails::new(&diagnostics.config, database, limits, counted)?.unzip();
        let app = Arc::new(App::new(
            diagnostics.config.clone(),
            &diagnostics.lanes,
            Parts {
                mails,
                database: diagnostics.database.clone(),
                metrics: diagnostics.metrics.clone(),
                stop: stop.clone(),
            },
        )?);
        for (name, lane) in diagnostics.lanes.iter() {
            self.start_lane(&app, name, lane);
        }
        let interval = Duration::from_secs(diagnostics.config.sync.metadata_interval_seconds);
        let metadata = app
            .metadata
            .clone()
            .run(diagnostics.database.clone(), interval, stop.clone());
        let hearing = app.sessions.clone().follow_ends(stop.clone());
        let heartbeat = Duration::from_secs(diagnostics.config.live.heartbeat_seconds);
        let looking = app.sessions.clone().recheck(heartbeat, stop.clone());
        let mailing = {
            let stop = stop.clone();
            async move {
                if let Some(mailer) = mailer {
                    mailer.run(stop).await;
                }
            }
        };
        let factors = app.factors.clone();
        let resealing = async move {
            if let Err(error) = factors.reseal().await {
                let cause = crate::telemetry::chain(&error);
                tracing::warn!(
                    cause,
                    "secrets of second factors not encrypted again; the next start tries it"
                );
            }
        };
        let with_providers = app.clone();
        let reading_keys = async move { with_providers.providers.run(stop).await };
        self.parts.spawn(async move {
            tokio::join!(metadata, hearing, looking, mailing, resealing, reading_keys);
            Ok(())
        });
        Ok(app)
    }

    /// Starts what the API does for the tenants of a lane.
    fn start_lane(&mut self, app: &Arc<App>, name: &str, lane: &Lane) {
        let stop = self.stop_serving.clone();
        let (app, name, config) = (app.clone(), name.to_owned(), lane.config.clone());
        self.parts.spawn(async move {
            let Some(lane) = app.lanes.named(&name) else {
                return Err(anyhow!("the lane {name} has no parts"));
            };
            let (hub, store, database) = (&lane.hub, lane.store.clone(), app.database.clone());
            let forgetting = app.devices.clone().follow(hub.device_changes(), stop.clone());
            let (changes, devices) = (hub.device_changes(), app.devices.clone());
            let ending = app
                .sessions
                .clone()
                .follow_users(database.clone(), devices, changes, stop.clone());
            let heartbeat = Duration::from_secs(config.live.heartbeat_seconds);
            let beating = hub.clone().beat(heartbeat, stop.clone());
            let looking_for_pages =
                visibility::run(database.clone(), store.clone(), lane.visibility.clone(), stop.clone());
            let reading_budgets = app.budgets.clone().run(&name, store, stop.clone());
            let presence = lane.presence.clone().run(config.clone(), stop.clone());
            let last_seen = last_seen::run(lane.presence.clone(), database, config, stop);
            tokio::join!(
                forgetting,
                ending,
                beating,
                looking_for_pages,
                reading_budgets,
                presence,
                last_seen
            );
            Ok(())
        });
    }

    /// Where HTTP listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin listener listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Waits until a part has failed permanently; pending as long as none has.
    ///
    /// # Errors
    /// The failure.
    pub async fn failed(&mut self) -> Result<()> {
        match self.parts.join_next().await {
            Some(Ok(Ok(()))) => Err(anyhow!("a part of the engine ended unexpectedly")),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(anyhow!(error).context("a part of the engine panicked")),
            None => std::future::pending().await,
        }
    }

    /// Drains: accepts no new requests, finishes those in progress, publishes the last batch, then closes all
    /// connections.
    pub async fn stop(mut self) {
        self.stop_serving.cancel();
        self.stop_replicating.cancel();
        while let Some(result) = self.parts.join_next().await {
            if let Ok(Err(error)) = result {
                tracing::error!(
                    cause = format!("{error:#}"),
                    "a part of the engine failed during the stop"
                );
            }
        }
    }
}

/// Futures of unoptimised builds are larger than the default stack of a thread allows.
const STACK_BYTES: usize = 8 * 1024 * 1024;

/// Runs work on a dedicated thread. Replication wakes on each read and each reply, and moving between threads costs more than
/// the work itself; the admin listener answers while other threads are busy. The thread runs until `release`, or until the
/// future is dropped.
async fn on_own_thread(
    name: String,
    work: impl Future<Output = Result<()>> + Send + 'static,
    release: CancellationToken,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, result) = oneshot::channel();
    let abandoned = CancellationToken::new();
    let _guard = abandoned.clone().drop_guard();
    std::thread::Builder::new()
        .name(name.clone())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    result = work => {
                        let _ = done.send(result);
                        release.cancelled().await;
                    }
                    () = abandoned.cancelled() => {}
                }
            });
        })
        .with_context(|| format!("cannot start the thread {name}"))?;
    result.await.with_context(|| format!("the thread {name} panicked"))?
}
