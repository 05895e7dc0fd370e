//! A device's incoming batch: acknowledge what it has received, then deliver what follows.
//!
//! [`Incoming::batch`] has four steps: resolve the cursor, flush the statuses of what it acknowledges, read the content
//! that follows, record the delivery.

mod completion;
mod pending;
mod trace;

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use postgres_types::Type;
use uuid::Uuid;

pub use self::pending::never_synced;
use super::cursor::{Cursor, CursorKey, InvalidCursor, Owner, PageStart};
use super::device_state::{self, DeliveredBatch, DeviceState, SyncStatus, Update};
use super::item::{self, Item};
use super::prefetch::{self, Prefetch};
use super::range::{self, Bounds, FIRST_ENTRIES, Range};
use super::report::Reports;
use super::snapshot::{self, Joined, Scope};
use super::statuses::Statuses;
use super::tables::Routing;
use crate::accounts::devices::DevicePrincipal;
use crate::accounts::loader::TenantLoader;
use crate::config::Provider;
use crate::config::rule::Rule;
use crate::contract::group::{GroupId, Membership};
use crate::contract::terms::Continuity;
use crate::core::position::StreamId;
use crate::core::time::{Timestamp, unix_micros};
use crate::feature;
use crate::live::visibility::Visibility;
use crate::messages::Message;
use crate::postgres::{Database, sql};
use crate::redis::read_position::ReadPosition;
use crate::redis::reading::Read;
use crate::redis::store::{self, Store};
use crate::telemetry::journal::{ReaderProgress, ReaderStep, Step, StepKind};
use crate::telemetry::metrics::{Metrics, Source};

/// Rows of a catch-up whose statuses are flushed within its requests; those of a longer one are flushed in the background.
const FLUSH_AT_ONCE_MAX: u64 = 1000;

/// Why there is no batch.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    InvalidCursor(#[from] InvalidCursor),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Feature(#[from] feature::Error),
    /// A snapshot cannot start.
    #[error("{0}")]
    Snapshot(String),
}

impl From<snapshot::Error> for Error {
    fn from(error: snapshot::Error) -> Self {
        match error {
            snapshot::Error::Store(error) => Self::Store(error),
            snapshot::Error::Feature(error) => Self::Feature(error),
            error @ (snapshot::Error::NoStreams
            | snapshot::Error::NotSeen
            | snapshot::Error::FormerPrimary
            | snapshot::Error::TooManyGroups) => Self::Snapshot(error.to_string()),
        }
    }
}

/// What a batch contains.
#[derive(Debug)]
pub struct Content {
    /// Rows in commit order; in a snapshot, in the order of its pages.
    pub items: Vec<Item>,
    /// More can be fetched immediately.
    pub has_more: bool,
    /// This is the first page of a snapshot, which replaces the device's data.
    pub reset: bool,
    /// This is a page of the snapshot of a group, which adds to the device's data.
    pub scope: Option<GroupId>,
    /// The published checkpoint.
    pub position: StreamId,
    pub source: Source,
}

/// A batch.
#[derive(Debug)]
pub struct Batch {
    pub content: Content,
    /// The cursor of the next request; `None` for a batch that moves nothing.
    pub cursor: Option<String>,
    /// Unique for the device.
    pub timestamp: Timestamp,
    /// The device's sync status after this batch.
    pub status: SyncStatus,
}

/// What a device requests.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub cursor: Option<&'a str>,
    /// For clients without cursors: the `sync_timestamp` of a batch that they have received.
    pub since: Option<(&'a str, DateTime<Utc>)>,
    /// Most rows.
    pub limit: usize,
    /// Bytes of rows at which the batch ends.
    pub bytes_max: usize,
    /// The length of the device's own queue, as it reports it.
    pub pending_outgoing: Option<u32>,
}

impl Request<'_> {
    fn bounds(&self) -> Bounds {
        Bounds {
            limit: self.limit,
            bytes_max: self.bytes_max,
        }
    }
}

/// How a device's sync stands.
#[derive(Debug)]
pub struct DeviceSync {
    pub last_sync: Option<Timestamp>,
    pub pending_outgoing: u32,
    pub pending_incoming: usize,
    pub status: SyncStatus,
}

/// Delivers batches.
#[derive(Debug, Clone)]
pub struct Incoming {
    pub database: Database,
    pub store: Store,
    pub cursors: CursorKey,
    /// Rules of the tables that appear under `changes`.
    pub rules: Arc<[Rule]>,
    /// Whose subjects the columns of rules may hold.
    pub providers: Arc<[Provider]>,
    pub prefetch: Prefetch,
    pub statuses: Statuses,
    pub reports: Reports,
    pub visibility: Visibility,
    pub metrics: Arc<Metrics>,
    /// See [`never_synced`].
    pub never_synced: TenantLoader<i64>,
}

/// A delivery in progress.
struct Delivery<'a> {
    device: &'a DevicePrincipal,
    request: Request<'a>,
    /// The device's state before the request.
    state: DeviceState,
    /// What the request changes of it.
    update: Update,
    /// The cursor to start after, and its text; `None` starts a snapshot.
    start: Option<(Cursor, String)>,
    following: Following,
}

/// What follows the start of a delivery in the streams.
enum Following {
    /// It was not read, since the start is not known, or inside a snapshot.
    NotRead,
    Range(Range),
    /// The streams do not reach back to the start.
    OutOfReach,
    Failed(store::Error),
}

impl From<Result<Option<Range>, store::Error>> for Following {
    fn from(read: Result<Option<Range>, store::Error>) -> Self {
        match read {
            Ok(Some(range)) => Self::Range(range),
            Ok(None) => Self::OutOfReach,
            Err(error) => Self::Failed(error),
        }
    }
}

/// What was read for a delivery.
struct Page {
    content: Content,
    /// The cursor after the content.
    next: Cursor,
    /// Messages in the content that wait for an acknowledgement.
    pending: Vec<Uuid>,
}

impl Incoming {
    /// Acknowledges what the request's cursor or timestamp covers, and delivers what follows.
    pub async fn batch(&self, device: &DevicePrincipal, request: Request<'_>) -> Result<Batch, Error> {
        let result = self.deliver(device, request).await;
        match &result {
            Ok(batch) => {
                let pending = request.pending_outgoing;
                self.reports.received(device, batch.status, pending).await;
            }
            Err(Error::InvalidCursor(_)) => {}
            Err(error) => self.reports.failed(device, error.to_string()).await,
        }
        result
    }

    async fn deliver(&self, device: &DevicePrincipal, request: Request<'_>) -> Result<Batch, Error> {
        let mut delivery = self.resolve(device, request).await?;
        if let (None, Some((_, since))) = (&delivery.start, request.since) {
            return self.messages_since(&delivery, since).await;
        }
        if self.is_history(&delivery).await? {
            self.flush(&mut delivery).await?;
        }
        let page = self.read(&mut delivery).await?;
        self.record(delivery, page).await
    }

    /// Acknowledges without reading.
    pub async fn acknowledge(
        &self,
        device: &DevicePrincipal,
        text: &str,
        pending_outgoing: Option<u32>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let tenant = &device.tenant.name;
        let cursor = self.decode(device, text)?;
        let (state, is_history) = tokio::join!(
            device_state::read(&self.store, tenant, &device.device_id),
            self.covers(cursor.place)
        );
        let state = state?;
        let mut update = if is_history? {
            self.flush_until(device, &state, &cursor, text).await?
        } else {
            Update::default()
        };
        update.last_sync_ms = Some(Utc::now().timestamp_millis());
        update.error = state.error.is_some().then(String::new);
        device_state::write(&self.store, tenant, &device.device_id, &update).await?;
        let now = state.updated(&update);
        if now.behind().is_some() {
            self.statuses.follow(device, now.catching_up == 0);
        }
        self.metrics.sync.acknowledged();
        tracing::info!(
            device = device.device_id,
            tenant,
            ms = started.elapsed().as_millis() as u64,
            "sync acknowledged"
        );
        self.reports.received(device, now.status(), pending_outgoing).await;
        Ok(())
    }

    /// How a device's sync stands.
    pub async fn status(&self, device: &DevicePrincipal) -> Result<DeviceSync, Error> {
        let state = device_state::read(&self.store, &device.tenant.name, &device.device_id).await?;
        let last_sync = state.last_sync_ms.and_then(DateTime::from_timestamp_millis);
        // While Redis fails, a failed sync is recorded in this process only.
        let has_failed = self.reports.metadata.has_failed(&device.tenant, &device.device_id);
        Ok(DeviceSync {
            last_sync: last_sync.map(Timestamp),
            pending_outgoing: state.pending_outgoing,
            pending_incoming: self.pending(device).await?,
            status: if has_failed { SyncStatus::Error } else { state.status() },
        })
    }

    fn decode(&self, device: &DevicePrincipal, text: &str) -> Result<Cursor, InvalidCursor> {
        self.cursors
            .decode(&device.tenant.name, Owner::Device(&device.device_id), text)
    }

    /// Resolves where the delivery starts. A `sync_timestamp` stands for the cursor that was delivered with it; one that
    /// was not delivered leaves the start open.
    async fn resolve<'a>(&self, device: &'a DevicePrincipal, request: Request<'a>) -> Result<Delivery<'a>, Error> {
        let requested = match request.cursor {
            Some(text) => Some((self.decode(device, text)?, text.to_owned())),
            None => None,
        };
        // The range depends on the cursor only, so it is read concurrently with the device's state.
        let (state, following) = tokio::join!(
            device_state::read(&self.store, &device.tenant.name, &device.device_id),
            async {
                match &requested {
                    Some((Cursor { place, page: None }, _)) => self.range(device, *place, request).await.into(),
                    _ => Following::NotRead,
                }
            }
        );
        let state = state?;
        let start = match (requested, request.since) {
            (None, Some((since, _))) => match state.given.iter().rev().find(|batch| batch.timestamp == since) {
                Some(batch) => Some((self.decode(device, &batch.cursor)?, batch.cursor.clone())),
                None => None,
            },
            (requested, _) => requested,
        };
        Ok(Delivery {
            device,
            request,
            state,
            update: Update::default(),
            start,
            following,
        })
    }

    /// Whether everything before the start is in the streams. What only a lost history contained must not count as
    /// acknowledged.
    async fn is_history(&self, delivery: &Delivery<'_>) -> Result<bool, store::Error> {
        match (&delivery.start, &delivery.following) {
            (Some((cursor, _)), Following::OutOfReach | Following::Failed(store::Error::NotReached)) => {
                self.covers(cursor.place).await
            }
            _ => Ok(true),
        }
    }

    /// Whether everything before a place is in the streams, or in those of an epoch that has ended.
    async fn covers(&self, place: ReadPosition) -> Result<bool, store::Error> {
        let (view, continuity) = self.store.verify(place).await?;
        Ok(view.epoch != place.epoch || continuity == Continuity::Valid)
    }

    /// Acknowledges everything before the start. Without Postgres the acknowledgement is postponed: rows are more
    /// important than their statuses.
    async fn flush(&self, delivery: &mut Delivery<'_>) -> Result<(), Error> {
        let Some((cursor, text)) = &delivery.start else {
            return Ok(());
        };
        match self.flush_until(delivery.device, &delivery.state, cursor, text).await {
            Ok(update) => {
                if update.acknowledged.is_some()
                    && let Some(at) = delivery.state.given.iter().position(|batch| batch.cursor == *text)
                {
                    let acknowledged = &mut delivery.state.given[..=at];
                    acknowledged.iter_mut().for_each(|batch| batch.pending.clear());
                }
                delivery.update = update;
                Ok(())
            }
            Err(Error::Feature(error)) => {
                tracing::warn!(
                    cause = crate::telemetry::chain(&error),
                    "acknowledgement postponed: Postgres failed"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Advances the device's acknowledged position to a cursor, and the statuses of what it covers if they are few.
    async fn flush_until(
        &self,
        device: &DevicePrincipal,
        state: &DeviceState,
        cursor: &Cursor,
        text: &str,
    ) -> Result<Update, Error> {
        if let Some(at) = state.given.iter().position(|batch| batch.cursor == text) {
            let pending = state.given[..=at].iter().flat_map(|batch| &batch.pending);
            let ids: Vec<Uuid> = pending.copied().collect();
            self.statuses.mark(device, &ids).await?;
        }
        let place = cursor.place;
        let before = state.acknowledged.filter(|(epoch, _)| *epoch == place.epoch);
        let before = before.map_or(StreamId::ZERO, |(_, position)| position);
        if cursor.page.is_some() || place.position <= before {
            return Ok(Update::default());
        }
        self.note(device, ReaderProgress::Acknowledged(before, place.position));
        let settled = match state.behind() {
            Some((settled, _)) => settled.min(before),
            None if state.catching_up > FLUSH_AT_ONCE_MAX => before,
            // One chunk; the rest is flushed in the background.
            None => self.statuses.flush(device, before, place.position).await?,
        };
        Ok(Update {
            acknowledged: Some((place.epoch, place.position)),
            settled: Some(settled),
            ..Update::default()
        })
    }

    /// Reads what follows the start.
    async fn read(&self, delivery: &mut Delivery<'_>) -> Result<Page, Error> {
        let (device, request) = (delivery.device, delivery.request);
        match &delivery.start {
            Some((Cursor { place, page: None }, _)) => {
                let range = match std::mem::replace(&mut delivery.following, Following::NotRead) {
                    Following::Range(range) => Some(range),
                    Following::OutOfReach => None,
                    Following::Failed(error) => return Err(error.into()),
                    Following::NotRead => self.range(device, *place, request).await?,
                };
                match range {
                    Some(range) if !self.is_due_again(device, *place).await => {
                        self.stream_page(device, *place, range, request).await
                    }
                    _ => self.snapshot_page(device, None, request).await,
                }
            }
            Some((
                Cursor {
                    place,
                    page: Some(page),
                },
                _,
            )) if snapshot::is_page(page, &self.rules) => {
                // If the stream has gone, this snapshot would end in another one.
                let resumed = match self.store.read(&device.tenant.name, device.user_id, *place, 1).await? {
                    Read::Slice(_) => Some((*place, page.clone())),
                    Read::Broken(_) => None,
                };
                self.snapshot_page(device, resumed, request).await
            }
            // No cursor, or one of a changed or removed rule, or of a list of encrypted state.
            _ => self.snapshot_page(device, None, request).await,
        }
    }

    /// Whether a device's snapshot lacked rows that Postgres shows by now. While Postgres does not answer, the device
    /// gets what the streams have.
    async fn is_due_again(&self, device: &DevicePrincipal, place: ReadPosition) -> bool {
        let due = snapshot::is_due_again(&self.database, &self.store, &device.tenant, device.user_id, place);
        Box::pin(due).await.unwrap_or_else(|error| {
            tracing::warn!(cause = crate::telemetry::chain(&error), "snapshot postponed");
            false
        })
    }

    /// The range of the streams after a place; `None` if they do not reach back to it.
    async fn range(
        &self,
        device: &DevicePrincipal,
        place: ReadPosition,
        request: Request<'_>,
    ) -> Result<Option<Range>, store::Error> {
        let (tenant, user) = (&device.tenant.name, device.user_id);
        let prefetched = self.prefetch.take(device, place, request.bounds());
        let count = if prefetched.is_some() {
            1
        } else {
            request.limit.min(FIRST_ENTRIES)
        };
        let first = self.store.read(tenant, user, place, count).await?;
        match prefetch::if_still_valid(&first, prefetched).await {
            Some(range) => Ok(Some(range)),
            None => range::gather(&self.store, tenant, user, place, first, request.bounds()).await,
        }
    }

    async fn stream_page(
        &self,
        device: &DevicePrincipal,
        start: ReadPosition,
        mut range: Range,
        request: Request<'_>,
    ) -> Result<Page, Error> {
        let mut completed = self.complete(device, &mut range, request.bytes_max).await?;
        let place = ReadPosition {
            position: range.end().unwrap_or(start.position),
            term: range.term,
            is_incomplete: range.is_incomplete,
            ..start
        };
        if range.has_more && range.joined.is_none() {
            self.prefetch.begin(&self.store, device, place, request.bounds());
        }
        trace::delivered(place.epoch, &range);
        self.note(device, ReaderProgress::Delivered(start.position, place.position));
        // What the group had before comes next, then the stream from here.
        let group = range.joined.as_ref();
        let page = group.and_then(|group| snapshot::group_start(group, &self.rules));
        let mut items = item::newest(range.versions);
        completed.fill(&mut items);
        Ok(Page {
            content: Content {
                items,
                has_more: range.has_more,
                reset: false,
                scope: None,
                position: range.published,
                source: Source::Stream,
            },
            next: Cursor { place, page },
            pending: Vec::new(),
        })
    }

    /// Notes a step for the console.
    fn note(&self, device: &DevicePrincipal, progress: ReaderProgress) {
        self.metrics.journal.note(|| Step {
            kind: StepKind::Reader(Arc::new(ReaderStep {
                tenant: device.tenant.name.clone(),
                user: device.user_id,
                device: Some(device.device_id.clone()),
                progress,
            })),
            at: unix_micros(),
        });
    }

    async fn snapshot_page(
        &self,
        device: &DevicePrincipal,
        resumed: Option<(ReadPosition, PageStart)>,
        request: Request<'_>,
    ) -> Result<Page, Error> {
        let is_first = resumed.is_none();
        let (database, store) = (&self.database, &self.store);
        let (tenant, user) = (&device.tenant, device.user_id);
        let mut joined: Vec<Item> = Vec::new();
        let (mut place, start) = match resumed {
            Some(resumed) => resumed,
            None => {
                let beginning = snapshot::begin(database, store, tenant, user, self.routing()).await?;
                let groups = beginning.members.groups.keys().cloned();
                joined.extend(groups.map(|group| Item::Membership(Membership::Join(group))));
                (beginning.place, snapshot::phase_start(0))
            }
        };
        let scope = Scope {
            database,
            tenant,
            user,
            routing: self.routing(),
        };
        let group = snapshot::group_of(&start).map(|(group, row)| (group, row.is_empty()));
        let membership = match &group {
            Some((group, true)) => snapshot::wait_for_membership(scope, store, &self.visibility, group, place).await?,
            _ => Joined::Whole,
        };
        if membership == Joined::Partly {
            // Rows of before the user joined, in a commit that Postgres does not show, are in no stream behind here.
            (place.is_incomplete, place.resets_covered) = (true, Some(place.reach()));
        }
        let mut page = match membership {
            Joined::Over => snapshot::Page::default(),
            Joined::Whole | Joined::Partly => snapshot::page(scope, start, request.limit, request.bytes_max).await?,
        };
        page.items.splice(0..0, joined);
        let view = self.store.view().await?;
        Ok(Page {
            content: Content {
                items: page.items,
                // After the last page the stream may contain more.
                has_more: page.next.is_some() || view.position > place.position,
                reset: is_first,
                scope: group.map(|(group, _)| group),
                position: view.published,
                source: Source::Snapshot,
            },
            next: Cursor { place, page: page.next },
            pending: page.pending,
        })
    }

    fn routing(&self) -> Routing<'_> {
        Routing {
            rules: &self.rules,
            groups: self.store.groups(),
            providers: &self.providers,
        }
    }

    /// Messages changed since a time that is no `sync_timestamp` of the device: acknowledges and records nothing.
    async fn messages_since(&self, delivery: &Delivery<'_>, since: DateTime<Utc>) -> Result<Batch, Error> {
        let (device, request) = (delivery.device, delivery.request);
        let standing = self.store.standing(&device.tenant.name, device.user_id).await?;
        if standing.is_paused {
            return Err(store::Error::Paused.into());
        }
        let limit = i64::try_from(request.limit.saturating_add(1)).unwrap_or(i64::MAX);
        let rows = self
            .database
            .query(
                &sql!("sync/messages_since", device.tenant),
                &[
                    (&device.user_id, Type::UUID),
                    (&since, Type::TIMESTAMPTZ),
                    (&limit, Type::INT8),
                ],
            )
            .await
            .map_err(feature::Error::from)?;
        let mut items = Vec::with_capacity(rows.len());
        for row in rows.iter().take(request.limit) {
            let message = Message::from_row(row)?;
            let json = serde_json::to_string(&message).map_err(|error| feature::Error::Internal(error.to_string()))?;
            items.push(Item::Message(json.into()));
        }
        Ok(Batch {
            content: Content {
                has_more: rows.len() > items.len(),
                items,
                reset: false,
                scope: None,
                position: standing.view.published,
                source: Source::Snapshot,
            },
            cursor: None,
            timestamp: Timestamp::now(),
            status: delivery.state.status(),
        })
    }

    /// Records the delivery in the device's state.
    async fn record(&self, delivery: Delivery<'_>, mut page: Page) -> Result<Batch, Error> {
        let (device, tenant) = (delivery.device, &delivery.device.tenant.name);
        let timestamp = unique_timestamp(&delivery.state.given);
        let cursor = self
            .cursors
            .encode(tenant, Owner::Device(&device.device_id), &page.next);
        let batch = DeliveredBatch {
            timestamp: rfc3339(timestamp),
            cursor: cursor.clone(),
            pending: std::mem::take(&mut page.pending),
        };
        let update = update_after(&delivery, &page, timestamp, batch);
        device_state::write(&self.store, tenant, &device.device_id, &update).await?;
        let now = delivery.state.updated(&update);
        let content = page.content;
        if now.behind().is_some() {
            self.statuses.follow(device, !content.has_more);
        }
        Ok(Batch {
            content,
            cursor: Some(cursor),
            timestamp,
            status: now.status(),
        })
    }
}

/// What changes in the state of a device that is given a page as a batch.
fn update_after(delivery: &Delivery<'_>, page: &Page, timestamp: Timestamp, batch: DeliveredBatch) -> Update {
    let Delivery {
        request, state, start, ..
    } = delivery;
    let Page { content, next, .. } = page;
    let mut update = delivery.update.clone();
    let position = (next.place.epoch, next.place.position);
    let is_other_epoch = state.acknowledged.is_none_or(|(epoch, _)| epoch != next.place.epoch);
    if content.source == Source::Snapshot && is_other_epoch {
        // Prevents trimming until the device has received the whole snapshot.
        update.acknowledged = Some(position);
        update.settled = Some(next.place.position);
    }
    let is_new = !content.items.is_empty() || start.as_ref().is_none_or(|(_, text)| *text != batch.cursor);
    if is_new || request.since.is_some() {
        update.given = Some(device_state::with_given(state.given.clone(), batch));
    }
    // The pages of a snapshot all carry its beginning; only the stream advances what push considers delivered.
    if next.page.is_none() {
        update.read = Some(position).filter(|_| state.read != Some(position));
    }
    update.last_sync_ms = Some(timestamp.0.timestamp_millis());
    let catching_up = if content.has_more {
        state.catching_up + (content.items.len() as u64).max(1)
    } else {
        0
    };
    update.catching_up = (catching_up != state.catching_up).then_some(catching_up);
    update.error = state.error.is_some().then(String::new);
    update
}

/// The current time, but later than any batch delivered to the device.
fn unique_timestamp(delivered: &[DeliveredBatch]) -> Timestamp {
    let now = Utc::now();
    let last = delivered
        .last()
        .and_then(|batch| DateTime::parse_from_rfc3339(&batch.timestamp).ok());
    match last {
        Some(last) if last >= now => Timestamp(last.with_timezone(&Utc) + chrono::Duration::microseconds(1)),
        _ => Timestamp(now),
    }
}

/// The timestamp as the API prints it.
fn rfc3339(timestamp: Timestamp) -> String {
    serde_json::to_value(timestamp)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_of_one_device_are_unique() {
        let future = "2999-01-01T00:00:00.000001Z";
        let delivered = DeliveredBatch {
            timestamp: future.into(),
            cursor: String::new(),
            pending: Vec::new(),
        };
        assert_eq!(rfc3339(unique_timestamp(&[delivered])), "2999-01-01T00:00:00.000002Z");
    }
}
