//! What the console shows: the values of [`crate::admin`], which the command line prints, too.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Console, unavailable};
use crate::accounts::{devices as accounts_devices, users};
use crate::admin::consumer_groups::{self, Group, Lag, Missed};
use crate::admin::devices::{self, Behind, SyncState};
use crate::admin::quarantine::{self, Remedy};
use crate::admin::slot_report::{self, SlotSnapshot};
use crate::admin::status::{self, StatusReport};
use crate::admin::stream_report::{Sources, StreamList};
use crate::admin::tenants::report;
use crate::admin::{conflicts, doctor};
use crate::api::request::Request;
use crate::core::page::{Page, Start};
use crate::core::tenant::Tenant;
use crate::http::error::Error;
use crate::http::response::{self, Response};
use crate::postgres::audit::{self, ACTIONS};
use crate::redis::store;

/// Most rows of a list.
const ROWS_MAX: i64 = 1000;

/// Entries of a device's history.
const HISTORY_ROWS: i64 = 50;

fn shown(value: &impl Serialize) -> Result<Response, Error> {
    response::json(StatusCode::OK, value)
}

fn limit(request: &Request, default: i64) -> Result<i64, Error> {
    request.query.number("limit", default, 1..=ROWS_MAX)
}

/// `GET /admin/api/status`: the whole system, as `posduif status --json` prints it.
pub async fn status(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    let report = Box::pin(StatusReport::read(&console.diagnostics.config, &console.urls, None)).await;
    shown(&report)
}

/// How far the two snapshots of slots are apart, from which rates are computed.
const SLOTS_APART: Duration = Duration::from_secs(1);

/// `GET /admin/api/slots`: the slots of the server, with the rates of one second.
pub async fn slots(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    let (earlier, snapshot) = SlotSnapshot::take_two(&console.diagnostics.database, SLOTS_APART)
        .await
        .map_err(|error| unavailable(&error))?;
    let slots = snapshot.reports(&earlier, &console.diagnostics.config.slots());
    shown(&json!({
        "slots": slots,
        "wal_position": snapshot.wal_position.to_string(),
        "keep_bytes": snapshot.keep_bytes,
    }))
}

/// `GET /admin/api/epochs`: the epochs of the slot, newest first.
pub async fn epochs(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let slot = &console.diagnostics.config.replication.slot;
    let epochs = slot_report::epochs(&console.diagnostics.database, slot, limit(&request, 50)?)
        .await
        .map_err(|error| unavailable(&error))?;
    shown(&json!({"epochs": epochs}))
}

/// `GET /admin/api/tenants`: all tenants, each with its numbers.
pub async fn tenants(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    let diagnostics = &console.diagnostics;
    let tenants = status::tenants(&diagnostics.database, &console.stores())
        .await
        .map_err(|error| unavailable(&error))?;
    shown(&json!({"tenants": tenants}))
}

/// `GET /admin/api/tenants/:tenant`: one tenant.
pub async fn tenant(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let diagnostics = &console.diagnostics;
    let report = report(
        &diagnostics.database,
        console.store(&tenant),
        &tenant,
        &diagnostics.config.streams,
    )
    .await
    .map_err(|error| unavailable(&error))?;
    shown(&report)
}

/// A device with the state of its sync.
#[derive(Serialize)]
struct DeviceRecord {
    #[serde(flatten)]
    device: accounts_devices::Device,
    username: String,
    /// `None` while Redis is unavailable.
    sync: Option<SyncState>,
    /// `None` while Redis is unavailable.
    behind: Option<Behind>,
}

async fn device_records(
    console: &Console,
    tenant: &Tenant,
    found: Vec<accounts_devices::Device>,
) -> Result<Vec<DeviceRecord>, Error> {
    let store = console.store(tenant);
    let ids: Vec<(Uuid, String)> = found
        .iter()
        .map(|device| (device.user_id, device.device_id.clone()))
        .collect();
    let states = devices::states(store, tenant, &ids).await;
    let behind = match &states {
        Ok(states) => devices::behind(store, tenant, &ids, states).await,
        Err(_) => Ok(Vec::new()),
    };
    let mut states = states.unwrap_or_default().into_iter();
    let mut behind = behind.unwrap_or_default().into_iter();
    let records = found.into_iter().map(|device| DeviceRecord {
        username: device.username.clone(),
        sync: states.next().map(SyncState::of),
        behind: behind.next(),
        device,
    });
    Ok(records.collect())
}

/// `GET /admin/api/tenants/:tenant/devices`: a page of devices, newest first.
pub async fn devices(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let database = &console.diagnostics.database;
    let user = match request.query.get("user") {
        Some(name) => Some(users::find(database, &tenant, name).await?.id),
        None => None,
    };
    let is_all = request.query.parsed("all", "true or false")?.unwrap_or(false);
    let filter = accounts_devices::Filter {
        user,
        device_id: None,
        is_revoked: if is_all { None } else { Some(false) },
        page: Page {
            limit: limit(&request, 50)?,
            start: match request.query.get("before") {
                Some(id) => Start::Before(id.to_owned()),
                None => Start::Offset(0),
            },
        },
    };
    let page = accounts_devices::list(database, &tenant, &filter).await?;
    let records = device_records(&console, &tenant, page.rows).await?;
    shown(&json!({"devices": records, "has_more": page.has_more}))
}

/// `GET /admin/api/tenants/:tenant/devices/:device`: one device and what happened to it.
pub async fn device(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let database = &console.diagnostics.database;
    let id = request.param("device");
    let found = accounts_devices::get(database, &tenant, None, id).await?;
    let record = device_records(&console, &tenant, vec![found]).await?.pop();
    let acts = audit::Filter {
        tenant: Some(tenant.name.clone()),
        subject: Some(id.to_owned()),
        ..audit::Filter::default()
    };
    let history = audit::list(database, &acts, HISTORY_ROWS).await?;
    let mut value =
        serde_json::to_value(record).map_err(|error| Error::internal(format!("cannot serialize a device: {error}")))?;
    value["history"] = json!(history);
    shown(&value)
}

/// `GET /admin/api/streams`: what Redis holds, of one tenant or all.
pub async fn streams(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let diagnostics = &console.diagnostics;
    let all = console.tenants_named(&request).await?;
    let mut found: Option<StreamList> = None;
    for (_, lane) in diagnostics.lanes.iter() {
        let is_here = |tenant: &&Tenant| std::ptr::eq(diagnostics.lanes.of(&tenant.name), lane);
        let tenants: Vec<Tenant> = all.iter().filter(is_here).cloned().collect();
        if found.is_some() && tenants.is_empty() {
            continue;
        }
        let view = match lane.store.view().await {
            Ok(view) => Some(view),
            Err(store::Error::NoCheckpoint) => None,
            Err(error) => return Err(error.into()),
        };
        let sources = Sources {
            database: &diagnostics.database,
            store: &lane.store,
            view,
            settings: &lane.config.streams,
        };
        let list = StreamList::read(sources, &tenants).await;
        let list = list.map_err(|error| unavailable(&error))?;
        match &mut found {
            // Epoch, position and live stream are of the main lane.
            Some(found) => found.tenants.extend(list.tenants),
            None => found = Some(list),
        }
    }
    shown(&found)
}

/// `GET /admin/api/tenants/:tenant/groups`: the consumer groups of its `changes`.
pub async fn groups(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let groups = consumer_groups::list(console.store(&tenant), &tenant.name).await?;
    let groups: Vec<Value> = groups.unwrap_or_default().iter().map(group_value).collect();
    shown(&json!({"groups": groups}))
}

fn group_value(group: &Group) -> Value {
    let (lag, is_at_least) = match group.lag {
        Lag::Entries(count) => (count, false),
        Lag::AtLeast(count) => (count, true),
    };
    json!({
        "name": group.name,
        "consumers": group.consumers,
        "pending": group.pending,
        "last_delivered": group.last_delivered.to_string(),
        "lag": lag,
        "lag_at_least": is_at_least,
        "missed": match group.missed {
            Missed::Nothing => json!("none"),
            Missed::Entries(count) => json!(count),
            Missed::Some => json!("some"),
        },
        "oldest_pending": group.oldest_pending.as_ref().map(|pending| json!({
            "id": pending.id.to_string(),
            "consumer": pending.consumer,
            "idle_ms": pending.idle_ms,
            "deliveries": pending.deliveries,
        })),
    })
}

/// `GET /admin/api/tenants/:tenant/quarantine`: the newest changes in quarantine.
pub async fn quarantine(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let most = usize::try_from(limit(&request, 100)?).unwrap_or_default();
    let store = console.store(&tenant);
    let (count, newest) = tokio::join!(
        quarantine::count(store, &tenant.name),
        quarantine::newest(store, &tenant.name, most)
    );
    let mut entries = Vec::new();
    for entry in newest? {
        let row_id = quarantine::row(&entry).map(|(_, id)| id);
        let remedy = match quarantine::remedy(&entry) {
            Remedy::Row { .. } => json!({"action": "write row", "why": "fix the cause, then write the row once more"}),
            Remedy::Resync(why) => json!({"action": "resync", "why": why}),
            Remedy::Sender => json!({"action": "sender", "why": "its sender must send a corrected message"}),
        };
        let fields: Map<String, Value> = entry
            .fields
            .iter()
            .map(|(name, text)| (name.clone(), Value::String(text.clone())))
            .collect();
        let mut value = serde_json::to_value(quarantine::Report::of(&tenant.name, entry))
            .map_err(|error| Error::internal(format!("cannot serialize an entry: {error}")))?;
        value["row_id"] = json!(row_id);
        value["remedy"] = remedy;
        value["fields"] = Value::Object(fields);
        entries.push(value);
    }
    shown(&json!({"count": count?, "entries": entries}))
}

/// `GET /admin/api/tenants/:tenant/conflicts`: the conflicts of all users, open ones first.
pub async fn conflicts(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let tenant = console.tenant(&request).await?;
    let limit = limit(&request, 100)?;
    let mut found = conflicts::list(&console.diagnostics.database, &tenant, limit + 1).await?;
    let has_more = i64::try_from(found.len()).is_ok_and(|count| count > limit);
    found.truncate(usize::try_from(limit).unwrap_or_default());
    shown(&json!({"conflicts": found, "has_more": has_more}))
}

/// `GET /admin/api/audit`: the audit log, newest first.
pub async fn audit(console: Arc<Console>, request: Request) -> Result<Response, Error> {
    let text = |name: &str| request.query.get(name).map(str::to_owned);
    let filter = audit::Filter {
        tenant: text("tenant"),
        actor: text("actor"),
        action: text("action"),
        before: request.query.parsed("before", "the id of an entry")?,
        ..audit::Filter::default()
    };
    let entries = audit::list(&console.diagnostics.database, &filter, limit(&request, 100)?).await?;
    shown(&json!({"entries": entries, "actions": ACTIONS.as_slice()}))
}

/// `GET /admin/api/doctor`: all checks, one request at a time.
pub async fn doctor(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    let _turn = console.doctor.lock().await;
    let checks = Box::pin(doctor::examine(&console.diagnostics.config, &console.urls)).await;
    shown(&json!({"checks": checks}))
}

/// `GET /admin/api/config`: the configuration; secrets are `***`.
pub async fn config(console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    shown(&json!({"config": &*console.diagnostics.config}))
}
