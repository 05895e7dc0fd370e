//! The operator's console on the admin listener: its page, and the API under `/admin/api` that programs may use too.
//!
//! [`session`] decides who may use it, [`values`] shows what [`crate::admin`] reads, [`actions`] changes something, [`streams`]
//! follows figures and changes.

pub mod actions;
pub mod session;
pub mod streams;
pub mod values;

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::health::Diagnostics;
use super::request::Request;
use crate::admin::access::{AccessKey, Door};
use crate::admin::figures::{Figures, Inputs};
use crate::admin::status::EngineUrls;
use crate::core::lane::Lanes;
use crate::core::tenant::Tenant;
use crate::feature::cache;
use crate::http::assets::Page;
use crate::http::error::{Code, Error};
use crate::http::response::{self, Response};
use crate::messages::Messages;
use crate::postgres::audit::Actor;
use crate::postgres::tenants;
use crate::redis::store::Store;

/// Streams of figures and changes that are open at once.
const STREAMS_MAX: usize = 64;

/// Bytes of a body.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The state of the console.
#[derive(Debug)]
pub struct Console {
    diagnostics: Arc<Diagnostics>,
    /// Identity of this process.
    engine: Arc<str>,
    door: Door,
    figures: Figures,
    /// Where this engine answers.
    urls: EngineUrls,
    messages: Messages,
    /// One `doctor` at a time.
    doctor: Mutex<()>,
    streams: Arc<Semaphore>,
    /// Ends streams when the server stops.
    stop: CancellationToken,
}

impl Console {
    /// # Errors
    /// When the operating system has no random bits.
    pub fn new(diagnostics: Arc<Diagnostics>, admin_url: String, stop: CancellationToken) -> anyhow::Result<Self> {
        let mut id = [0; 12];
        getrandom::fill(&mut id).context("no random bits")?;
        let engine: Arc<str> = BASE64.encode(id).into();
        let key = match AccessKey::of(&diagnostics.config) {
            Some(key) => key,
            // Without `auth.jwt_secret` (a replicator), sessions begin by `admin.token` and end with the process.
            None => AccessKey::random().context("no random bits")?,
        };
        // Unused by reads that must see the newest version.
        let never = cache::Settings::new(
            &diagnostics.config.cache,
            Arc::new(|_: &str| false),
            diagnostics.metrics.clone(),
        );
        Ok(Self {
            door: Door::new(key, &engine),
            engine,
            figures: Figures::default(),
            urls: EngineUrls {
                public: diagnostics.config.public_url(),
                admin: Some(admin_url),
            },
            messages: Messages::new(diagnostics.database.clone(), &never, &diagnostics.config),
            doctor: Mutex::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            diagnostics,
            stop,
        })
    }

    /// Samples figures until the server stops.
    pub fn sample(&self) -> impl Future<Output = ()> + Send + 'static {
        let diagnostics = &self.diagnostics;
        let inputs = Inputs {
            config: diagnostics.config.clone(),
            database: diagnostics.database.clone(),
            store: diagnostics.lanes.main().store.clone(),
            hub: diagnostics.lanes.main().hub.clone(),
            replication: diagnostics.lanes.main().replication.clone(),
            metrics: diagnostics.metrics.clone(),
            engine: self.engine.clone(),
        };
        self.figures.clone().run(inputs, self.stop.clone())
    }

    /// The store of a tenant's lane.
    fn store(&self, tenant: &Tenant) -> &Store {
        &self.diagnostics.lanes.of(&tenant.name).store
    }

    /// The store of each lane.
    fn stores(&self) -> Lanes<Store> {
        self.diagnostics.lanes.map(|_, lane| lane.store.clone())
    }

    /// The tenant in the path.
    ///
    /// # Errors
    /// 404 if there is none of this name.
    async fn tenant(&self, request: &Request) -> Result<Tenant, Error> {
        let listed = tenants::registered(&self.diagnostics.database, request.param("tenant")).await?;
        let listed = listed.ok_or_else(|| Error::new(Code::NOT_FOUND, "tenant not found"))?;
        listed.check().map_err(|error| unavailable(&error))?;
        Ok(listed.tenant)
    }

    /// The tenant that the parameter `tenant` names, or all.
    ///
    /// # Errors
    /// 404 if there is none of this name.
    async fn tenants_named(&self, request: &Request) -> Result<Vec<Tenant>, Error> {
        let database = &self.diagnostics.database;
        let Some(name) = request.query.get("tenant") else {
            return Ok(tenants::list(database).await?);
        };
        let listed = tenants::registered(database, name).await?;
        let listed = listed.ok_or_else(|| Error::new(Code::NOT_FOUND, "tenant not found"))?;
        Ok(vec![listed.tenant])
    }
}

/// An operator at an address.
fn operator(address: IpAddr) -> Actor {
    Actor::console(address)
}

/// 503 with the cause: operators may see it.
fn unavailable(error: &anyhow::Error) -> Error {
    Error::new(Code::UNAVAILABLE, format!("{error:#}"))
}

/// `GET /`: the console.
pub async fn home(_console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    let mut response = response::no_content();
    *response.status_mut() = StatusCode::SEE_OTHER;
    response
        .headers_mut()
        .insert(LOCATION, HeaderValue::from_static("/console/"));
    Ok(response)
}

/// `GET /console/` and its files.
///
/// # Errors
/// 404 for a file that the page does not have.
pub async fn page(_console: Arc<Console>, request: Request) -> Result<Response, Error> {
    Page::Console.respond(request.param("file"), &request.headers, &[])
}
