//! What an operator changes by the console. Each request repeats the name of the thing, as typed by the operator, and each
//! change is in the audit log.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{BODY_BYTES_MAX, Console, operator, unavailable};
use crate::accounts::devices;
use crate::admin::quarantine::Remedy;
use crate::admin::quarantine_retry::Retry;
use crate::admin::slot_report::{self, SlotSnapshot};
use crate::admin::{self, conflicts, quarantine};
use crate::api::request::Request;
use crate::contract::quarantine::QuarantineEntry;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::http::error::{Code, Error};
use crate::http::response::{self, Response};
use crate::messages::conflicts::{Resolution, resolve};
use crate::postgres::audit::{self, Act, Actor};
use crate::postgres::tenants;

/// How long a retry waits for an engine that publishes.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
struct Confirmation {
    /// The name of the thing.
    confirm: String,
    /// Of a conflict: `server` or `client`.
    choose: Option<Choice>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Choice {
    Server,
    Client,
}

impl Choice {
    fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// Checks that a request names the thing.
async fn confirmed(request: &mut Request, name: &str) -> Result<(Option<Choice>, Actor), Error> {
    let Confirmation { confirm, choose } = request.json(BODY_BYTES_MAX).await?;
    if confirm != name {
        return Err(Error::new(
            Code::CONFIRM_MISMATCH,
            format!("confirm: must be {name:?}, the name of what is changed"),
        ));
    }
    Ok((choose, operator(request.address)))
}

fn done(sentence: String) -> Result<Response, Error> {
    response::json(StatusCode::OK, &json!({"done": sentence}))
}

fn not_found(thing: &str) -> Error {
    Error::new(Code::NOT_FOUND, format!("{thing} not found"))
}

/// `POST /admin/api/slots/:slot/drop`.
///
/// # Errors
/// 404, or 409 for a slot that has a reader.
pub async fn drop_slot(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let name = request.param("slot").to_owned();
    let (_, actor) = confirmed(&mut request, &name).await?;
    let database = &console.diagnostics.database;
    let snapshot = SlotSnapshot::take(database)
        .await
        .map_err(|error| unavailable(&error))?;
    let reports = snapshot.reports(&snapshot, &console.diagnostics.config.slots());
    let report = reports
        .into_iter()
        .find(|report| report.slot.name == name)
        .ok_or_else(|| not_found("slot"))?;
    slot_report::refuse_in_use(&report.slot).map_err(|error| Error::new(Code::CONFLICT, error.to_string()))?;
    slot_report::drop(database, &report, &actor)
        .await
        .map_err(|error| unavailable(&error))?;
    done(format!("dropped the slot {name}"))
}

/// `POST /admin/api/tenants/:tenant/pause`.
pub async fn pause(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    set_paused(&console, request, true).await
}

/// `POST /admin/api/tenants/:tenant/resume`.
pub async fn resume(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    set_paused(&console, request, false).await
}

async fn set_paused(console: &Console, mut request: Request, paused: bool) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?.name;
    let (_, actor) = confirmed(&mut request, &tenant).await?;
    if !tenants::set_paused(&console.diagnostics.database, &tenant, paused, &actor).await? {
        return Err(not_found("tenant"));
    }
    let state = crate::core::tenant::state_name(paused);
    done(format!("the tenant {tenant} is {state}"))
}

/// `POST /admin/api/tenants/:tenant/resync`.
pub async fn resync(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?.name;
    let (_, actor) = confirmed(&mut request, &tenant).await?;
    let database = &console.diagnostics.database;
    let requested = admin::tenants::resync(database, &tenant, &actor).await?;
    requested.ok_or_else(|| not_found("tenant"))?;
    done(format!("each device of the tenant {tenant} takes a snapshot"))
}

/// `POST /admin/api/tenants/:tenant/devices/:device/revoke`.
pub async fn revoke(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let device = request.param("device").to_owned();
    let (_, actor) = confirmed(&mut request, &device).await?;
    let revoked = devices::revoke_by(&actor, &console.diagnostics.database, &tenant, &device).await?;
    revoked.ok_or_else(|| not_found("device"))?;
    done(format!("revoked the device {device}"))
}

/// `POST /admin/api/tenants/:tenant/devices/:device/resync`.
pub async fn resync_device(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let device = request.param("device").to_owned();
    let (_, actor) = confirmed(&mut request, &device).await?;
    let database = &console.diagnostics.database;
    let found = devices::get(database, &tenant, None, &device).await?;
    admin::tenants::resync_user(database, &tenant, found.user_id, &actor).await?;
    done(format!("each device of {} takes a snapshot", found.username))
}

/// The quarantined change that a request names and confirms.
async fn quarantined(console: &Console, request: &mut Request) -> Result<(Tenant, QuarantineEntry, Actor), Error> {
    let tenant = console.tenant(request).await?;
    let id = request.param("id").to_owned();
    let (_, actor) = confirmed(request, &id).await?;
    let parsed: StreamId = id.parse().map_err(|_| not_found("entry"))?;
    let entry = quarantine::one(console.store(&tenant), &tenant.name, parsed).await?;
    Ok((tenant, entry.ok_or_else(|| not_found("entry"))?, actor))
}

/// `POST /admin/api/tenants/:tenant/quarantine/:id/drop`.
pub async fn drop_quarantined(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let (tenant, entry, actor) = quarantined(&console, &mut request).await?;
    let (database, store) = (&console.diagnostics.database, console.store(&tenant));
    // First, so that none is lost without a trace.
    quarantine::record(database, &tenant.name, "quarantine_dropped", 1, &actor).await;
    quarantine::forget(store, &tenant.name, &[entry.id]).await?;
    done(format!("removed {} from quarantine", entry.id))
}

/// `POST /admin/api/tenants/:tenant/quarantine/:id/retry`.
///
/// # Errors
/// 404, or 409 if the change stays in quarantine, with the reason.
pub async fn retry_quarantined(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let (tenant, entry, actor) = quarantined(&console, &mut request).await?;
    let remedy = quarantine::remedy(&entry);
    let retry = Retry {
        config: &console.diagnostics.config,
        database: &console.diagnostics.database,
        store: console.store(&tenant),
        tenant: &tenant,
        timeout: RETRY_TIMEOUT,
    };
    let remedies = vec![(entry.id, remedy.clone())];
    let retried = match remedy {
        Remedy::Resync(_) => retry.by_resync(remedies, &actor).await,
        Remedy::Row { .. } | Remedy::Sender => retry.by_rows(remedies, &actor).await,
    };
    let retried = retried.map_err(|error| unavailable(&error))?;
    match retried.left.into_iter().next() {
        Some(left) => Err(Error::new(
            Code::CONFLICT,
            format!("the change stays in quarantine: {}", left.reason),
        )),
        None => done(format!("delivered {} and removed it from quarantine", entry.id)),
    }
}

/// `POST /admin/api/tenants/:tenant/conflicts/:id/resolve`.
///
/// # Errors
/// 404, or 409 if it was resolved in another way, or the row has changed since.
pub async fn resolve_conflict(console: Arc<Console>, mut request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let id = request.param_id("id", "conflict")?;
    let (choose, actor) = confirmed(&mut request, &id.to_string()).await?;
    let resolution = match choose {
        Some(Choice::Server) => Resolution::Server,
        Some(Choice::Client) => Resolution::Client,
        None => return Err(Error::invalid("choose", "must be server or client")),
    };
    let database = &console.diagnostics.database;
    let user = conflicts::user_of(database, &tenant, id).await?;
    let user = user.ok_or_else(|| not_found("conflict"))?;
    resolve(&console.messages, &tenant, user, id, &resolution, None).await?;
    let act = Act {
        tenant: Some(&tenant.name),
        actor: &actor,
        action: "conflict_resolved",
        subject: Some(id.to_string()),
        detail: json!({"user_id": user, "resolution": choose.map(Choice::as_str)}),
    };
    audit::record(database, act).await;
    done(format!("resolved the conflict {id}"))
}
