//! `posduif device`: manages the devices of a tenant's users, which [`crate::accounts::devices`] reads, with the state of
//! their sync in Redis ([`crate::sync::device_state`]).

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::output::{self, Render, Text, outln};
use super::progress::Progress;
use super::table::{Cell, NOTHING, Tone, or_nothing};
use super::tenant::{RESYNC_TIMEOUT, later};
use super::user::{find_user, or_never};
use super::{Confirm, Global, known_tenant};
use crate::accounts::devices::{self, Filter};
use crate::admin::devices::SyncState;
use crate::admin::status::connect_redis;
use crate::admin::{self, published};
use crate::config::Config;
use crate::core::page::{Page, Start};
use crate::core::tenant::Tenant;
use crate::feature;
use crate::postgres::Database;
use crate::postgres::audit::Actor;
use crate::redis::store::Store;
use crate::sync::device_state;

/// Devices per query of a listing.
const PAGE: i64 = 1000;

#[derive(Debug, Args)]
pub(super) struct Device {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the devices of a tenant, newest first
    List {
        /// The tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
        /// Only devices of this user, by name or id
        #[arg(long)]
        user: Option<String>,
        /// Include revoked devices
        #[arg(long)]
        all: bool,
    },
    /// Show one device and the state of its sync
    Show {
        /// The id of the device
        device: String,
        /// The tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Let a device, and all others of its user, take a snapshot: when it is uncertain what they hold, or one is behind
    Resync {
        /// The id of the device
        device: String,
        /// The tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Revoke a device: its token and its event streams end at once; later uploads are refused
    Revoke {
        /// The id of the device
        device: String,
        /// The tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
}

impl Device {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::List { tenant, user, all } => output::print(global, &list(&config, tenant, user, all).await?),
            Verb::Show { device, tenant } => output::print(global, &show(&config, tenant, &device).await?),
            Verb::Resync {
                device,
                tenant,
                confirm,
            } => output::print(global, &resync(global, &config, tenant, &device, confirm).await?),
            Verb::Revoke {
                device,
                tenant,
                confirm,
            } => output::print(global, &revoke(&config, tenant, &device, confirm).await?),
        }
    }
}

async fn find(database: &Database, tenant: &Tenant, device_id: &str) -> Result<DeviceRecord> {
    match devices::get(database, tenant, None, device_id).await {
        Ok(device) => Ok(DeviceRecord::of(device)),
        Err(feature::Error::NotFound(_)) => bail!(
            "the tenant {name} has no device {device_id:?}; `posduif device list --tenant {name} --all` lists them",
            name = tenant.name
        ),
        Err(error) => Err(error.into()),
    }
}

/// A device, with the name of its user.
#[derive(Serialize)]
struct DeviceRecord {
    #[serde(flatten)]
    device: devices::Device,
    username: String,
}

impl DeviceRecord {
    fn of(device: devices::Device) -> Self {
        Self {
            username: device.username.clone(),
            device,
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct DeviceList(Vec<DeviceRecord>);

async fn list(config: &Config, tenant: Option<String>, user: Option<String>, all: bool) -> Result<DeviceList> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let user = match user {
        Some(name) => Some(find_user(&database, &tenant, &name).await?.id),
        None => None,
    };
    let mut found: Vec<DeviceRecord> = Vec::new();
    loop {
        // Continues before the last device, so that concurrent changes neither skip nor repeat one.
        let start = match found.last() {
            Some(last) => Start::Before(last.device.device_id.clone()),
            None => Start::Offset(0),
        };
        let filter = Filter {
            user,
            device_id: None,
            is_revoked: if all { None } else { Some(false) },
            page: Page { limit: PAGE, start },
        };
        let page = devices::list(&database, &tenant, &filter).await?;
        found.extend(page.rows.into_iter().map(DeviceRecord::of));
        if !page.has_more {
            return Ok(DeviceList(found));
        }
    }
}

impl Render for DeviceList {
    fn text(&self, out: &mut Text) {
        let row = |DeviceRecord { device, username }: &DeviceRecord| {
            let (state, tone) = match device.revoked_at {
                Some(_) => ("revoked", Tone::Faint),
                None => ("enrolled", Tone::Plain),
            };
            [
                Cell::from(device.device_id.clone()),
                Cell::from(username.clone()),
                Cell::from(device.device_type.clone()),
                Cell::from(device.name.clone().unwrap_or_else(|| NOTHING.to_owned())),
                Cell::from(state).toned(tone),
                Cell::from(or_never(device.last_seen_at)),
            ]
        };
        let header = ["DEVICE", "USER", "TYPE", "NAME", "STATE", "LAST SEEN"];
        out.table(header, self.0.iter().map(row));
    }
}

/// A device with the state of its sync.
#[derive(Serialize)]
struct DeviceDetail {
    #[serde(flatten)]
    record: DeviceRecord,
    sync: SyncState,
    #[serde(skip)]
    tenant: String,
}

async fn show(config: &Config, tenant: Option<String>, device_id: &str) -> Result<DeviceDetail> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let record = find(&database, &tenant, device_id).await?;
    let store = connect_redis(config).await?;
    let state = device_state::read(&store, &tenant.name, device_id)
        .await
        .context("cannot read the sync state of the device")?;
    Ok(DeviceDetail {
        record,
        sync: SyncState::of(state),
        tenant: tenant.name,
    })
}

impl Render for DeviceDetail {
    fn text(&self, out: &mut Text) {
        let (DeviceRecord { device, username }, sync) = (&self.record, &self.sync);
        let acknowledged = sync.acknowledged.as_ref().zip(sync.epoch.as_ref());
        out.facts([
            ("device", Cell::from(device.device_id.clone())),
            ("tenant", self.tenant.clone().into()),
            ("user", format!("{username} ({})", device.user_id).into()),
            ("name", or_nothing(device.name.as_ref()).into()),
            ("type", device.device_type.clone().into()),
            ("device info", device.device_info.to_string().into()),
            (
                "key for its token",
                if device.has_auth_key { "yes" } else { "no" }.into(),
            ),
            ("token renewed", or_nothing(device.token_renewed_at).into()),
            ("enrolled", device.created_at.to_string().into()),
            ("last seen", or_nothing(device.last_seen_at).into()),
            (
                "revoked",
                Cell::from(or_nothing(device.revoked_at)).toned(Tone::Warning),
            ),
            ("sync", sync.status.as_str().into()),
            ("last sync", or_nothing(sync.last_sync_at).into()),
            (
                "acknowledged",
                or_nothing(acknowledged.map(|(position, epoch)| format!("{position} of epoch {epoch}"))).into(),
            ),
            ("pending uploads", sync.pending_outgoing_count.to_string().into()),
            (
                "last error",
                Cell::from(or_nothing(sync.error.as_ref())).toned(Tone::Bad),
            ),
        ]);
    }
}

#[derive(Serialize)]
struct Resynced {
    device_id: String,
    user_id: Uuid,
    /// Whether an engine has published the request.
    published: bool,
    #[serde(skip)]
    username: String,
}

async fn resync(
    global: &Global,
    config: &Config,
    tenant: Option<String>,
    device_id: &str,
    confirm: Confirm,
) -> Result<Resynced> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let DeviceRecord { device, username } = find(&database, &tenant, device_id).await?;
    confirm.check(|| format!("each device of {username} would take a snapshot"))?;
    let config = super::in_lane(config, &database, &tenant.name).await?;
    let store = Store::new(&config.redis).context("key `redis.url`")?;
    let requested = admin::tenants::resync_user(&database, &tenant, device.user_id, &Actor::cli())
        .await
        .context("cannot request the resync")?;
    let _progress = Progress::new(global, "waiting for the engine", None);
    let published = published::wait(&store, requested, RESYNC_TIMEOUT, |_| {}).await.is_ok();
    Ok(Resynced {
        device_id: device.device_id,
        user_id: device.user_id,
        published,
        username,
    })
}

impl Render for Resynced {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "each device of {} takes a snapshot at its next sync{}",
            self.username,
            later(self.published)
        );
    }
}

#[derive(Serialize)]
struct Revoked {
    device_id: String,
    user_id: Uuid,
    revoked: bool,
    #[serde(skip)]
    username: String,
}

async fn revoke(config: &Config, tenant: Option<String>, device_id: &str, confirm: Confirm) -> Result<Revoked> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let DeviceRecord { device, username } = find(&database, &tenant, device_id).await?;
    let id = device.device_id;
    if let Some(time) = device.revoked_at {
        bail!("the device {id} of {username} was revoked at {time}");
    }
    confirm.check(|| {
        format!(
            "the device {id} of {username} would lose its token and what it has not uploaded; to return, it must be \
             enrolled again"
        )
    })?;
    devices::revoke(&database, &tenant, &id).await?;
    Ok(Revoked {
        device_id: id,
        user_id: device.user_id,
        revoked: true,
        username,
    })
}

impl Render for Revoked {
    fn text(&self, out: &mut Text) {
        outln!(out, "revoked the device {} of {}", self.device_id, self.username);
    }
}
