//! How far devices are behind, for their operator. [`crate::accounts::devices`] lists the devices themselves.

use std::collections::HashMap;

use redis::streams::StreamRangeReply;
use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::admin::streams::{PAGE, inbox};
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::core::time::{Timestamp, age_of};
use crate::postgres::{self, Database, sql};
use crate::redis::entries;
use crate::redis::store::{self, Store};
use crate::sync::device_state::{DeviceState, SyncStatus};

/// Entries of a stream that are counted; of more, only that there are more is known.
const COUNTED_MAX: usize = 20;

/// Recently seen devices that [`figures`] returns.
const RECENT_MAX: i64 = 20;

/// How far a device is behind the streams that its whole tenant, and its user, receive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Behind {
    /// Entries that it has not acknowledged; `None` for a device that begins with a snapshot.
    pub rows: Option<u64>,
    /// Whether there may be more.
    pub at_least: bool,
    /// Age of the oldest of them.
    pub seconds: Option<f64>,
}

/// The states of some devices' syncs.
///
/// # Errors
/// When Redis fails.
pub async fn states(
    store: &Store,
    tenant: &Tenant,
    devices: &[(Uuid, String)],
) -> Result<Vec<DeviceState>, store::Error> {
    let mut states = Vec::with_capacity(devices.len());
    for page in devices.chunks(PAGE) {
        let mut pipe = redis::pipe();
        for (_, device) in page {
            pipe.hgetall(store.keys().device(&tenant.name, device));
        }
        let fields: Vec<HashMap<String, String>> = store.query(&pipe).await?;
        states.extend(fields.iter().map(DeviceState::parse));
    }
    Ok(states)
}

/// How far each of some devices, whose states these are, is behind. The streams of groups are not counted.
///
/// # Errors
/// When Redis fails.
pub async fn behind(
    store: &Store,
    tenant: &Tenant,
    devices: &[(Uuid, String)],
    states: &[DeviceState],
) -> Result<Vec<Behind>, store::Error> {
    let epoch = match store.view().await {
        Ok(view) => Some(view.epoch),
        Err(store::Error::NoCheckpoint) => None,
        Err(error) => return Err(error),
    };
    // What was acknowledged in another epoch says nothing about this one.
    let place = |state: &DeviceState| {
        let (of, position) = state.acknowledged?;
        (Some(of) == epoch).then_some(position)
    };
    let places: Vec<Option<StreamId>> = states.iter().map(place).collect();
    let shared = Target::Shared(tenant.name.as_str().into()).key(store.keys());
    let mut pipe = redis::pipe();
    for ((user, _), place) in devices.iter().zip(&places) {
        let Some(place) = place else { continue };
        let inbox = inbox(&tenant.name, *user).key(store.keys());
        for key in [&inbox, &shared] {
            pipe.cmd("XRANGE")
                .arg(key)
                .arg(format!("({place}"))
                .arg("+")
                .arg("COUNT")
                .arg(COUNTED_MAX + 1);
        }
    }
    let mut replies = if places.iter().any(Option::is_some) {
        let replies: Vec<StreamRangeReply> = store.query(&pipe).await?;
        replies.into_iter()
    } else {
        Vec::new().into_iter()
    };
    Ok(places
        .iter()
        .map(|place| match place {
            None => Behind::default(),
            Some(_) => of_replies(replies.by_ref().take(2)),
        })
        .collect())
}

fn of_replies(replies: impl Iterator<Item = StreamRangeReply>) -> Behind {
    let (mut rows, mut oldest) = (0, None::<i64>);
    for reply in replies {
        rows += reply.ids.len();
        let first = reply.ids.first().and_then(entries::commit_ts);
        oldest = oldest.into_iter().chain(first).min();
    }
    Behind {
        rows: Some(rows.min(COUNTED_MAX) as u64),
        at_least: rows > COUNTED_MAX,
        seconds: Some(oldest.map_or(0.0, |ts| age_of(ts).as_secs_f64())),
    }
}

/// The state of a device's sync.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SyncState {
    pub status: SyncStatus,
    pub last_sync_at: Option<Timestamp>,
    pub acknowledged: Option<String>,
    pub epoch: Option<String>,
    pub pending_outgoing_count: u32,
    pub error: Option<String>,
}

impl SyncState {
    pub fn of(state: DeviceState) -> Self {
        let last_sync = state.last_sync_ms.and_then(chrono::DateTime::from_timestamp_millis);
        Self {
            status: state.status(),
            last_sync_at: last_sync.map(Timestamp),
            acknowledged: state.acknowledged.map(|(_, position)| position.to_string()),
            epoch: state.acknowledged.map(|(epoch, _)| epoch.to_string()),
            pending_outgoing_count: state.pending_outgoing,
            error: state.error,
        }
    }
}

/// How many devices a tenant has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFigures {
    pub enrolled: i64,
    /// Within a day.
    pub seen_1d: i64,
    /// Within two minutes.
    pub online: i64,
    /// Those seen last, with their users.
    pub recent: Vec<(Uuid, String)>,
}

/// Counts a tenant's devices.
///
/// # Errors
/// When Postgres fails.
pub async fn figures(database: &Database, tenant: &Tenant) -> Result<DeviceFigures, postgres::Error> {
    let row = database
        .query_opt(&sql!("admin/device_figures", tenant), &[(&RECENT_MAX, Type::INT8)])
        .await?;
    let Some(row) = row else {
        return Ok(DeviceFigures::default());
    };
    let (users, devices): (Vec<Uuid>, Vec<String>) = (row.try_get("users")?, row.try_get("devices")?);
    Ok(DeviceFigures {
        enrolled: row.try_get("enrolled")?,
        seen_1d: row.try_get("seen_1d")?,
        online: row.try_get("online")?,
        recent: users.into_iter().zip(devices).collect(),
    })
}
