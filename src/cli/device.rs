//! `posduif device`: a tenant's devices.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{self, outln};
use super::table::{Cell, NOTHING, Tone, facts};
use super::{Global, known_tenant};
use crate::accounts::devices::{self, Device as Found, Filter};
use crate::accounts::users;
use crate::config::Config;
use crate::core::page::{Page, Start};
use crate::core::tenant::Tenant;
use crate::postgres::Database;
use crate::sync::device_state;

/// Devices that one listing asks for at a time.
const PAGE: i64 = 1000;

/// Arguments of `posduif device`.
#[derive(Debug, Args)]
pub(super) struct Device {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a tenant's devices, newest first
    List {
        /// The tenant; without it `server.default_tenant`
        #[arg(long)]
        tenant: Option<String>,
        /// Only this user's, by name or id
        #[arg(long)]
        user: Option<String>,
        /// Revoked ones too
        #[arg(long)]
        all: bool,
    },
    /// Show all of one device, and how its sync stands
    Show {
        /// The device's id
        device: String,
        /// The tenant; without it `server.default_tenant`
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Revoke a device: its token and its streams end at once, and what it has not uploaded is refused
    Revoke {
        /// The device's id
        device: String,
        /// The tenant; without it `server.default_tenant`
        #[arg(long)]
        tenant: Option<String>,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
}

impl Device {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::List { tenant, user, all } => list(global, &config, tenant, user, all).await,
            Verb::Show { device, tenant } => {
                let (database, tenant) = known_tenant(&config, tenant).await?;
                let found = find(&database, &tenant, &device).await?;
                show(global, &config, &tenant, &found).await
            }
            Verb::Revoke { device, tenant, yes } => {
                let (database, tenant) = known_tenant(&config, tenant).await?;
                let found = find(&database, &tenant, &device).await?;
                revoke(global, &database, &tenant, &found, yes).await
            }
        }
    }
}

async fn find(database: &Database, tenant: &Tenant, device_id: &str) -> Result<Found> {
    let absent = || {
        format!(
            "the tenant {name} has no device {device_id:?}; `posduif device list --tenant {name} --all` shows them",
            name = tenant.name
        )
    };
    if devices::check_device_id(device_id).is_err() {
        bail!(absent());
    }
    let filter = Filter {
        user: None,
        device_id: Some(device_id),
        is_revoked: None,
        page: Page::first(1),
    };
    let mut found = devices::list(database, tenant, None, &filter).await?.rows;
    found.pop().with_context(absent)
}

fn as_json(device: &Found) -> Result<Value> {
    let mut shown = serde_json::to_value(device)?;
    shown["username"] = device.username.clone().into();
    Ok(shown)
}

async fn list(global: &Global, config: &Config, tenant: Option<String>, user: Option<String>, all: bool) -> Result<()> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let user = match user {
        Some(name) => {
            let account = users::find(&database, &tenant, &name).await.with_context(|| {
                format!(
                    "the tenant {} has no user {name:?}; `posduif user list` shows them",
                    tenant.name
                )
            })?;
            Some(account.id)
        }
        None => None,
    };
    let mut found: Vec<Found> = Vec::new();
    loop {
        // Beside the last one, so that none is missed or comes twice while devices come and go.
        let start = match found.last() {
            Some(last) => Start::Before(last.device_id.clone()),
            None => Start::Offset(0),
        };
        let filter = Filter {
            user,
            device_id: None,
            is_revoked: if all { None } else { Some(false) },
            page: Page { limit: PAGE, start },
        };
        let page = devices::list(&database, &tenant, None, &filter).await?;
        found.extend(page.rows);
        if !page.has_more {
            break;
        }
    }
    if global.json {
        let rows: Vec<Value> = found.iter().map(as_json).collect::<Result<_>>()?;
        return output::json(&rows);
    }
    let rows = found.into_iter().map(|device| {
        let (state, tone) = match device.revoked_at {
            Some(_) => ("revoked", Tone::Faint),
            None => ("enrolled", Tone::Plain),
        };
        [
            Cell::from(device.device_id),
            Cell::from(device.username),
            Cell::from(device.device_type),
            Cell::from(device.name.unwrap_or_else(|| NOTHING.to_owned())),
            Cell::from(state).toned(tone),
            Cell::from(
                device
                    .last_seen_at
                    .map_or_else(|| "never".to_owned(), |time| time.to_string()),
            ),
        ]
    });
    super::print_table(["DEVICE", "USER", "TYPE", "NAME", "STATE", "LAST SEEN"], rows)
}

async fn show(global: &Global, config: &Config, tenant: &Tenant, device: &Found) -> Result<()> {
    let store = super::redis(config).await?;
    let state = device_state::read(&store, &tenant.name, &device.device_id)
        .await
        .context("cannot read how the device's sync stands")?;
    let last_sync = state.last_sync_ms.and_then(chrono::DateTime::from_timestamp_millis);
    let last_sync = last_sync.map(crate::core::time::Timestamp);
    let acknowledged = state
        .acknowledged
        .map(|(epoch, position)| (epoch.to_string(), position.to_string()));
    if global.json {
        let mut shown = as_json(device)?;
        shown["sync"] = json!({
            "status": state.status(),
            "last_sync_at": last_sync,
            "acknowledged": acknowledged.as_ref().map(|(_, position)| position),
            "epoch": acknowledged.as_ref().map(|(epoch, _)| epoch),
            "pending_outgoing_count": state.pending_outgoing,
            "error": state.error,
        });
        return output::json(&shown);
    }
    let text = |value: Option<String>| value.unwrap_or_else(|| NOTHING.to_owned());
    output::print(&facts([
        ("device", Cell::from(device.device_id.clone())),
        ("tenant", tenant.name.clone().into()),
        ("user", format!("{} ({})", device.username, device.user_id).into()),
        ("name", text(device.name.clone()).into()),
        ("type", device.device_type.clone().into()),
        ("app says", device.device_info.to_string().into()),
        ("enrolled", device.created_at.to_string().into()),
        (
            "last seen",
            text(device.last_seen_at.map(|time| time.to_string())).into(),
        ),
        (
            "revoked",
            Cell::from(text(device.revoked_at.map(|time| time.to_string()))).toned(Tone::Warning),
        ),
        ("sync", state.status().as_str().into()),
        ("last sync", text(last_sync.map(|time| time.to_string())).into()),
        (
            "acknowledged",
            text(acknowledged.map(|(epoch, position)| format!("{position} of epoch {epoch}"))).into(),
        ),
        ("waiting to upload", state.pending_outgoing.to_string().into()),
        ("last error", Cell::from(text(state.error)).toned(Tone::Bad)),
    ]))
}

async fn revoke(global: &Global, database: &Database, tenant: &Tenant, device: &Found, yes: bool) -> Result<()> {
    let id = &device.device_id;
    if let Some(time) = device.revoked_at {
        bail!("the device {id} of {} was revoked at {time}", device.username);
    }
    if !yes {
        bail!(
            "the device {id} of {} would lose its token and what it has not uploaded yet; to come back it must be \
             enrolled anew; `--yes` does it",
            device.username
        );
    }
    devices::revoke(database, tenant, id).await?;
    if global.json {
        return outln!(
            "{}",
            json!({"device_id": id, "user_id": device.user_id, "revoked": true})
        );
    }
    outln!("revoked the device {id} of {}", device.username)
}
