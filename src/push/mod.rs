//! Triggers pushes for devices that are away and have entries to sync.
//!
//! The engine that replicates does it. Candidates come from two sources: notices of the live tail ([`PushCandidates`]), and
//! a sweep of all devices, a page at a time, which finds what was missed. A notice for a group leads to its members, a page
//! of Postgres at a time. Examining candidates takes a statement for hundreds
//! of users and a few round trips to Redis. A script in Redis decides for each device ([`candidates`]): one entry until it
//! has synced.
//!
//! - `groups`: groups whose members are to be examined.
//! - `schedule`: users and groups to examine, and when.
//! - [`webhook`]: sends each entry to the operator's server.

pub mod candidates;
mod groups;
mod schedule;
pub mod webhook;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::candidates::{Decision, Device, PushCandidates, Streams, Terms};
use self::groups::GroupScans;
use self::schedule::Schedule;
use self::webhook::Webhook;
use crate::config::Config;
use crate::core::event;
use crate::core::tenant::Tenant;
use crate::live::hub::Hub;
use crate::live::presence::Presence;
use crate::postgres::tenants;
use crate::postgres::{Database, sql};
use crate::redis::store::Store;
use crate::sync::members;
use crate::sync::tables::Routing;
use crate::telemetry::metrics::Metrics;

/// How long candidates are collected, so that a burst is examined once.
const GATHER: Duration = Duration::from_millis(200);

/// Users or devices in one statement.
const PAGE: usize = 500;

/// Devices in one round trip of decisions.
const DECISIONS: usize = 50;

/// Pause before a look that failed is tried again.
const LOOK_RETRY: Duration = Duration::from_secs(2);

/// What waking needs.
#[derive(Debug)]
pub struct Waker {
    config: Arc<Config>,
    database: Database,
    store: Store,
    presence: Presence,
    candidates: Arc<PushCandidates>,
    metrics: Arc<Metrics>,
    webhook: Option<Arc<Webhook>>,
}

/// A look at all devices of tenants, as far as it has come.
#[derive(Debug, Default)]
struct Sweep {
    tenants: VecDeque<Tenant>,
    /// Behind this device of the first tenant.
    after: String,
}

impl Waker {
    /// Prepares waking; nothing is done before [`Waker::run`].
    ///
    /// # Errors
    /// When the webhook's authority cannot be read, or `redis.url` is malformed.
    pub fn new(
        config: Arc<Config>,
        database: Database,
        store: Store,
        hub: &Hub,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let webhook = Webhook::new(&config, store.clone(), metrics.clone())?;
        let candidates = Arc::new(PushCandidates::default());
        hub.add_listener(candidates.clone());
        Ok(Self {
            presence: Presence::new(&config, store.operations().clone())?,
            candidates,
            webhook: webhook.map(Arc::new),
            config,
            database,
            store,
            metrics,
        })
    }

    /// Triggers pushes while `is_leading` holds for the state, until `stop`.
    pub async fn run<S>(self, mut state: watch::Receiver<S>, is_leading: impl Fn(&S) -> bool, stop: CancellationToken) {
        let events: HashSet<String> = self.config.push.events.iter().cloned().collect();
        if events.is_empty() {
            return stop.cancelled().await;
        }
        let work = async {
            while state.wait_for(&is_leading).await.is_ok() {
                self.candidates
                    .listen(Some((events.clone(), self.config.push.candidates_max)));
                tokio::select! {
                    () = self.lead() => {}
                    ended = state.wait_for(|state| !is_leading(state)) => {
                        if ended.is_err() {
                            return;
                        }
                    }
                }
                self.candidates.listen(None);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
        self.candidates.listen(None);
    }

    /// Triggers pushes and sends them.
    async fn lead(&self) {
        match &self.webhook {
            None => self.watch_devices().await,
            Some(webhook) => {
                tokio::join!(self.watch_devices(), webhook.clone().deliver(&self.database));
            }
        }
    }

    async fn watch_devices(&self) {
        let settings = &self.config.push;
        let interval = Duration::from_secs(settings.sweep_interval_seconds);
        let mut schedule = Schedule::new(settings.candidates_max);
        let mut groups = GroupScans::new(settings.candidates_max);
        let mut sweep = Sweep::default();
        // Changes may have been missed before this engine led.
        let mut next_sweep = Instant::now();
        loop {
            let wake = if sweep.tenants.is_empty() {
                let due = schedule.next().into_iter().chain(groups.next());
                due.fold(next_sweep, Instant::min)
            } else {
                Instant::now()
            };
            tokio::select! {
                () = self.candidates.gathered() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep_until(wake) => {}
            }
            let gathered = self.candidates.take();
            let now = Instant::now();
            for (tenant, users) in gathered.users {
                for user in users {
                    schedule.put(&tenant, user, now);
                }
            }
            for (tenant, group) in gathered.groups {
                groups.put(&tenant, group, now);
            }
            sweep.add(gathered.tenants.iter().filter_map(|name| Tenant::named(name)));
            if gathered.is_gap || schedule.take_overflow() || groups.take_overflow() {
                next_sweep = next_sweep.min(now + LOOK_RETRY);
            }
            let result = async {
                if next_sweep <= now {
                    sweep.add(
                        tenants::list_of(&self.database, &self.config.lane)
                            .await
                            .context("cannot list the tenants")?,
                    );
                    next_sweep = now + interval;
                }
                self.look_at_due(&mut schedule, now).await?;
                self.look_at_members(&mut groups, &mut schedule).await?;
                self.go_on(&mut sweep, &mut schedule).await
            };
            if let Err(error) = result.await {
                tracing::warn!(cause = format!("{error:#}"), "push candidates not examined; retrying");
                tokio::time::sleep(LOOK_RETRY).await;
                // The sweep finds the users that were just removed from the schedule.
                next_sweep = next_sweep.min(Instant::now() + interval.min(LOOK_RETRY * 5));
            }
        }
    }

    /// Looks at users who are due.
    async fn look_at_due(&self, schedule: &mut Schedule<Uuid>, now: Instant) -> Result<()> {
        let mut by_tenant: HashMap<Arc<str>, Vec<Uuid>> = HashMap::new();
        for (tenant, user) in schedule.due(now) {
            by_tenant.entry(tenant).or_default().push(user);
        }
        for (name, users) in by_tenant {
            let Some(tenant) = Tenant::named(&name) else { continue };
            for users in users.chunks(PAGE) {
                self.look_at_users(&tenant, users, schedule).await?;
            }
        }
        Ok(())
    }

    async fn look_at_users(&self, tenant: &Tenant, users: &[Uuid], schedule: &mut Schedule<Uuid>) -> Result<()> {
        let sql = sql!("push/push_devices_of", tenant);
        let rows = self.database.query(&sql, &[(&users, Type::UUID_ARRAY)]).await;
        self.look_at(tenant, &devices(&rows?)?, schedule).await
    }

    /// Looks at the next members of a group that is due.
    async fn look_at_members(&self, groups: &mut GroupScans, schedule: &mut Schedule<Uuid>) -> Result<()> {
        let started = Instant::now();
        // After an error the sweep finds the members.
        let Some(scan) = groups.take(started) else {
            return Ok(());
        };
        let Some(tenant) = Tenant::named(&scan.tenant) else {
            return Ok(());
        };
        let routing = Routing::configured(&self.config);
        let page = members::page(&self.database, &tenant, &scan.group, routing, scan.after(), PAGE)
            .await
            .with_context(|| format!("cannot list the members of {} in tenant {}", scan.group, tenant.name))?;
        self.look_at_users(&tenant, &page.users, schedule).await?;
        groups.went_on(scan, page.after, started);
        Ok(())
    }

    /// Looks at the next page of a sweep.
    async fn go_on(&self, sweep: &mut Sweep, schedule: &mut Schedule<Uuid>) -> Result<()> {
        let Some(tenant) = sweep.tenants.front().cloned() else {
            return Ok(());
        };
        let sql = &sql!("push/push_devices", tenant);
        let rows = self
            .database
            .query(sql, &[(&sweep.after, Type::TEXT), (&(PAGE as i64), Type::INT8)])
            .await;
        let page = match rows {
            Ok(rows) => devices(&rows)?,
            Err(error) => {
                // A tenant that was dropped meanwhile must not stop the others.
                sweep.next_tenant();
                return Err(error).with_context(|| format!("cannot list the devices of tenant {}", tenant.name));
            }
        };
        match page.last() {
            Some(last) if page.len() == PAGE => sweep.after.clone_from(&last.device_id),
            _ => sweep.next_tenant(),
        }
        self.look_at(&tenant, &page, schedule).await
    }

    /// Decides of devices of one tenant, and when to look again.
    async fn look_at(&self, tenant: &Tenant, devices: &[Device], schedule: &mut Schedule<Uuid>) -> Result<()> {
        if devices.is_empty() {
            return Ok(());
        }
        let settings = &self.config.push;
        let after = Duration::from_secs(settings.offline_delay_seconds);
        let epoch = self.store.view().await?.epoch;
        let counts =
            |event: &str| !event.is_empty() && settings.events.iter().any(|wanted| wanted == "*" || wanted == event);
        let streams = Streams {
            shared: settings.events.iter().any(|event| event::is_for_tenants(event)),
            groups: settings.events.iter().any(|event| event::is_for_groups(event)),
        };
        let found = candidates::waiting(&self.store, &tenant.name, epoch, devices, counts, streams).await?;
        let waiting: Vec<_> = devices
            .iter()
            .zip(found)
            .filter_map(|(device, waiting)| Some((device, waiting?)))
            .collect();
        let terms = Terms {
            after,
            entries_max: settings.stream_entries_max,
            has_webhook: self.webhook.is_some(),
        };
        for part in waiting.chunks(DECISIONS) {
            // Asking takes away streams that are over.
            let users: Vec<Uuid> = part.iter().map(|(device, _)| device.user).collect();
            self.presence.of(&tenant.name, &users).await?;
            let decisions = candidates::trigger(&self.store, &tenant.name, epoch, part, terms).await?;
            for ((device, _), decision) in part.iter().zip(decisions) {
                match decision {
                    Decision::Triggered => {
                        self.metrics.push.triggered();
                        if let Some(webhook) = &self.webhook {
                            webhook.hint(&tenant.name);
                        }
                    }
                    Decision::Later => schedule.put(&tenant.name, device.user, Instant::now() + after),
                    Decision::In(wait) => schedule.put(&tenant.name, device.user, Instant::now() + wait),
                    Decision::Nothing => {}
                }
            }
        }
        Ok(())
    }
}

impl Sweep {
    fn add(&mut self, tenants: impl IntoIterator<Item = Tenant>) {
        for tenant in tenants {
            // The tenant that is being swept is queued again behind the others.
            let is_waiting = self
                .tenants
                .iter()
                .skip(usize::from(!self.after.is_empty()))
                .any(|known| *known == tenant);
            if !is_waiting {
                self.tenants.push_back(tenant);
            }
        }
    }

    fn next_tenant(&mut self) {
        self.tenants.pop_front();
        self.after.clear();
    }
}

fn devices(rows: &[tokio_postgres::Row]) -> Result<Vec<Device>> {
    rows.iter()
        .map(|row| {
            Ok(Device {
                device_id: row.try_get("device_id")?,
                user: row.try_get("user_id")?,
                enrolled_ts: row.try_get("enrolled_micros")?,
            })
        })
        .collect()
}
