//! A device's incoming batch: acknowledge what it has, then give what follows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use postgres_types::Type;
use uuid::Uuid;

use super::cursor::{Cursor, CursorKey, InvalidCursor, Owner};
use super::device_state::{self, DeliveredBatch, DeviceState, SyncStatus, Update};
use super::item::{self, Change, Item};
use super::prefetch::{self, Prefetch};
use super::snapshot::{self, Scope};
use super::statuses::Statuses;
use super::stretch::{self, Bounds, FIRST_ENTRIES, Range};
use super::tables;
use crate::accounts::devices::DevicePrincipal;
use crate::accounts::loader::{Found, Loader};
use crate::config::rule::Rule;
use crate::core::position::EpochId;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature;
use crate::messages::Message;
use crate::postgres::{Database, sql};
use crate::redis::store::{self, Place, Read, Store};
use crate::telemetry::metrics::Source;
use crate::telemetry::traces;

/// Rows of a catch-up whose statuses move on within its requests; those of more follow behind it.
const SETTLE_AT_ONCE_MAX: u64 = 1000;

/// Entries beyond which what waits is no longer counted exactly.
const PENDING_MAX: usize = 1000;

/// Why there is no batch.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cursor is not this device's.
    #[error(transparent)]
    InvalidCursor(#[from] InvalidCursor),
    /// Redis failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Postgres failed.
    #[error(transparent)]
    Domain(#[from] feature::Error),
    /// A snapshot could not begin.
    #[error("{0}")]
    Snapshot(String),
}

impl From<snapshot::Error> for Error {
    fn from(error: snapshot::Error) -> Self {
        match error {
            snapshot::Error::Store(error) => Self::Store(error),
            snapshot::Error::Domain(error) => Self::Domain(error),
            error @ snapshot::Error::NoStreams => Self::Snapshot(error.to_string()),
        }
    }
}

/// A batch.
#[derive(Debug)]
pub struct Batch {
    /// Rows in commit order, within a snapshot in the order of its pages.
    pub items: Vec<Item>,
    /// What to ask with next time; `None` when this only re-read.
    pub cursor: Option<String>,
    /// There is more to fetch at once.
    pub has_more: bool,
    /// What the device holds is to be replaced: this is the first page of a snapshot.
    pub reset: bool,
    /// The published checkpoint.
    pub position: StreamId,
    /// When it was made; unique for the device.
    pub timestamp: Timestamp,
    /// How the device's sync stands with it.
    pub status: SyncStatus,
    /// Where the rows come from.
    pub source: Source,
}

/// What a device asks for.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Its cursor.
    pub cursor: Option<&'a str>,
    /// The `sync_timestamp` of an answer that it has, for clients that know no cursor.
    pub since: Option<(&'a str, DateTime<Utc>)>,
    /// Most rows.
    pub limit: usize,
    /// Bytes of rows at which the batch ends.
    pub bytes_max: usize,
}

impl Question<'_> {
    fn bounds(&self) -> Bounds {
        Bounds {
            limit: self.limit,
            bytes_max: self.bytes_max,
        }
    }
}

/// Counts messages that wait for users of whom no device has acknowledged anything.
pub fn never_synced(database: Database) -> Loader<(Tenant, Uuid), i64> {
    Loader::by_tenant(database, pending_counts)
}

async fn pending_counts(database: Database, tenant: Tenant, users: Vec<Uuid>) -> Found<Uuid, i64> {
    let statement = sql!("sync/messages_pending_counts", tenant);
    let rows = database.query(&statement, &[(&users, Type::UUID_ARRAY)]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("recipient_id")?, row.try_get("count")?)))
        .collect()
}

/// Makes batches.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Ordinary SQL.
    pub database: Database,
    /// The streams.
    pub store: Store,
    /// Makes and checks cursors.
    pub cursors: CursorKey,
    /// Rules of tables that are shown under `changes`.
    pub rules: Arc<[Rule]>,
    /// What is read before it is asked for.
    pub prefetch: Prefetch,
    /// Moves statuses on behind acknowledgements.
    pub statuses: Statuses,
    /// Counts what waits for users whose devices have never synced; see [`never_synced`].
    pub never_synced: Loader<(Tenant, Uuid), i64>,
}

impl Incoming {
    /// Acknowledges what the question's cursor or timestamp says, and gives what follows.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn batch(&self, device: &DevicePrincipal, question: Question<'_>) -> Result<Batch, Error> {
        let owner = Owner::Device(&device.device_id);
        let tenant = &device.tenant.name;
        let decode = |text: &str| self.cursors.decode(tenant, owner, text);
        let asked = question.cursor.map(decode).transpose()?;
        // Which rows follow depends on the cursor only, so they are read together with the device's state.
        let (state, stretch) = tokio::join!(device_state::read(&self.store, tenant, &device.device_id), async {
            match &asked {
                Some(Cursor { place, page: None }) => Some(self.stretch(device, *place, question).await),
                _ => None,
            }
        });
        let state = state?;
        // An acknowledgement by timestamp is one by the cursor that came with it.
        let cursor_text = match (question.cursor, question.since) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some((since, at))) => match state.given.iter().rev().find(|given| given.timestamp == since) {
                Some(given) => Some(given.cursor.clone()),
                None => {
                    return Ok(Batch {
                        status: state.status(),
                        ..self.re_read(device, at, question).await?
                    });
                }
            },
            (None, None) => None,
        };
        let cursor = match (asked, &cursor_text) {
            (None, Some(text)) => Some(decode(text)?),
            (asked, _) => asked,
        };
        let mut update = Update::default();
        let mut given = state.given.clone();
        if let (Some(cursor), Some(text)) = (&cursor, &cursor_text) {
            // Rows are worth more than their status: when Postgres is away, what is acknowledged waits for later.
            match self.flush(device, &state, cursor, text).await {
                Ok(settled) => {
                    if settled.acknowledged.is_some()
                        && let Some(at) = given.iter().position(|given| given.cursor == *text)
                    {
                        given[..=at].iter_mut().for_each(|given| given.pending.clear());
                    }
                    update = settled;
                }
                Err(Error::Domain(error)) => tracing::warn!(
                    cause = crate::telemetry::chain(&error),
                    "an acknowledgement waits for Postgres"
                ),
                Err(error) => return Err(error),
            }
        }
        let mut answer = self.answer(device, cursor, stretch, question).await?;
        if answer.is_pin
            && state
                .acknowledged
                .is_none_or(|(epoch, _)| epoch != answer.cursor.place.epoch)
        {
            // Holds back trimming until the device has come through its snapshot.
            let place = answer.cursor.place;
            (update.acknowledged, update.settled) = (Some((place.epoch, place.position)), Some(place.position));
        }
        let timestamp = unique_timestamp(&given);
        let text = self.cursors.encode(tenant, owner, &answer.cursor);
        let is_news = !answer.items.is_empty() || cursor_text.as_ref() != Some(&text);
        if is_news || question.since.is_some() {
            let new = DeliveredBatch {
                timestamp: rfc3339(timestamp),
                cursor: text.clone(),
                pending: std::mem::take(&mut answer.pending),
            };
            update.given = Some(device_state::with_given(given, new));
        }
        // For who wakes devices: this one has been here. The pages of a snapshot all bear its beginning.
        if answer.cursor.page.is_none() {
            let place = (answer.cursor.place.epoch, answer.cursor.place.position);
            update.read = Some(place).filter(|_| state.read != Some(place));
        }
        update.last_sync_ms = Some(timestamp.0.timestamp_millis());
        let catching_up = match answer.has_more {
            true => state.catching_up + (answer.items.len() as u64).max(1),
            false => 0,
        };
        update.catching_up = (catching_up != state.catching_up).then_some(catching_up);
        update.error = state.error.is_some().then(String::new);
        device_state::write(&self.store, tenant, &device.device_id, &update).await?;
        let now = state.updated(&update);
        if now.behind().is_some() {
            self.statuses.follow(device, !answer.has_more);
        }
        Ok(Batch {
            items: answer.items,
            cursor: Some(text),
            has_more: answer.has_more,
            reset: answer.reset,
            position: answer.position,
            timestamp,
            status: now.status(),
            source: answer.source,
        })
    }

    /// Acknowledges without reading.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn acknowledge(&self, device: &DevicePrincipal, text: &str) -> Result<SyncStatus, Error> {
        let tenant = &device.tenant.name;
        let cursor = self.cursors.decode(tenant, Owner::Device(&device.device_id), text)?;
        let state = device_state::read(&self.store, tenant, &device.device_id).await?;
        let mut update = self.flush(device, &state, &cursor, text).await?;
        update.last_sync_ms = Some(Utc::now().timestamp_millis());
        update.error = state.error.is_some().then(String::new);
        device_state::write(&self.store, tenant, &device.device_id, &update).await?;
        let now = state.updated(&update);
        if now.behind().is_some() {
            self.statuses.follow(device, now.catching_up == 0);
        }
        Ok(now.status())
    }

    /// Rows of what waits for a device, counted up to a bound.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pending(&self, device: &DevicePrincipal) -> Result<usize, Error> {
        let tenant = &device.tenant;
        let state = device_state::read(&self.store, &tenant.name, &device.device_id).await?;
        let Some((epoch, acknowledged)) = state.acknowledged else {
            let count = self.never_synced.load((tenant.clone(), device.user_id)).await?;
            let count = count.unwrap_or(0);
            return Ok(usize::try_from(count).unwrap_or(0));
        };
        let handoff = self.store.handoff(&tenant.name, device.user_id).await?;
        let mut place = Place {
            epoch,
            generation: handoff.generation,
            position: acknowledged,
        };
        let mut rows = HashSet::new();
        let mut looked = 0;
        while looked < PENDING_MAX {
            let slice = match self
                .store
                .read(&tenant.name, device.user_id, place, FIRST_ENTRIES)
                .await
            {
                Ok(Read::Slice(slice)) => slice,
                // A snapshot waits: at least one thing to do.
                Ok(Read::Broken(_)) => return Ok(rows.len().max(1)),
                // What waits cannot be had.
                Err(store::Error::Paused) => return Ok(0),
                Err(store::Error::Stopped) => return Ok(rows.len().max(1)),
                Err(error) => return Err(error.into()),
            };
            looked += slice.entries.len();
            rows.extend(slice.entries.iter().map(|entry| (entry.table.clone(), entry.row_id())));
            if !slice.has_more {
                break;
            }
            place.position = slice.end;
        }
        Ok(rows.len())
    }

    /// Moves the device's place on, and the statuses of what it acknowledges where they are not many.
    async fn flush(
        &self,
        device: &DevicePrincipal,
        state: &DeviceState,
        cursor: &Cursor,
        text: &str,
    ) -> Result<Update, Error> {
        if let Some(at) = state.given.iter().position(|given| given.cursor == text) {
            let ids: Vec<Uuid> = state.given[..=at]
                .iter()
                .flat_map(|given| &given.pending)
                .copied()
                .collect();
            self.statuses.mark(device, &ids).await?;
        }
        let place = cursor.place;
        let before = state.acknowledged.filter(|(epoch, _)| *epoch == place.epoch);
        let before = before.map_or(StreamId::ZERO, |(_, position)| position);
        if cursor.page.is_some() || place.position <= before {
            return Ok(Update::default());
        }
        let settled = match state.behind() {
            Some((settled, _)) => settled.min(before),
            None if state.catching_up > SETTLE_AT_ONCE_MAX => before,
            // Of more than one piece the rest follows.
            None => self.statuses.flush(device, before, place.position).await?,
        };
        Ok(Update {
            acknowledged: Some((place.epoch, place.position)),
            settled: Some(settled),
            ..Update::default()
        })
    }

    async fn answer(
        &self,
        device: &DevicePrincipal,
        cursor: Option<Cursor>,
        stretch: Option<Result<Option<Range>, store::Error>>,
        question: Question<'_>,
    ) -> Result<Answer, Error> {
        match cursor {
            Some(Cursor { place, page: None }) => {
                let stretch = match stretch {
                    Some(stretch) => stretch?,
                    None => self.stretch(device, place, question).await?,
                };
                match stretch {
                    Some(stretch) => self.stream(device, place, stretch, question).await,
                    None => self.snapshot(device, None, question).await,
                }
            }
            Some(Cursor {
                place,
                page: Some(page),
            }) if snapshot::is_phase(page.phase, &self.rules) => {
                // A snapshot whose stream has gone meanwhile would end in another one.
                match self.store.read(&device.tenant.name, device.user_id, place, 1).await? {
                    Read::Slice(_) => self.snapshot(device, Some((place, page)), question).await,
                    Read::Broken(_) => self.snapshot(device, None, question).await,
                }
            }
            // None, or one of a rule that has gone, or of a list of encrypted state.
            _ => self.snapshot(device, None, question).await,
        }
    }

    /// What follows in the stream; `None` when history does not reach back.
    async fn stretch(
        &self,
        device: &DevicePrincipal,
        place: Place,
        question: Question<'_>,
    ) -> Result<Option<Range>, store::Error> {
        let (tenant, user) = (&device.tenant.name, device.user_id);
        let kept = self.prefetch.take(device, place, question.bounds());
        let count = if kept.is_some() {
            1
        } else {
            question.limit.min(FIRST_ENTRIES)
        };
        let now = self.store.read(tenant, user, place, count).await?;
        match prefetch::still_there(&now, kept).await {
            Some(stretch) => Ok(Some(stretch)),
            None => stretch::gather(&self.store, tenant, user, place, now, question.bounds()).await,
        }
    }

    async fn stream(
        &self,
        device: &DevicePrincipal,
        start: Place,
        stretch: Range,
        question: Question<'_>,
    ) -> Result<Answer, Error> {
        let place = Place {
            position: stretch.end().unwrap_or(start.position),
            ..start
        };
        if stretch.has_more {
            self.prefetch.begin(&self.store, device, place, question.bounds());
        }
        trace(place.epoch, &stretch);
        let mut items = item::newest(stretch.versions);
        self.complete(device, &mut items).await?;
        Ok(Answer {
            items,
            pending: Vec::new(),
            cursor: Cursor { place, page: None },
            has_more: stretch.has_more,
            reset: false,
            is_pin: false,
            position: stretch.published,
            source: Source::Stream,
        })
    }

    /// Reads whole rows where the log left columns out. A row that has gone meanwhile is left out: its end follows.
    async fn complete(&self, device: &DevicePrincipal, items: &mut Vec<Item>) -> Result<(), Error> {
        let mut wanted: HashMap<String, Vec<String>> = HashMap::new();
        for item in items.iter() {
            if let Item::Change(Change {
                is_partial: true,
                table,
                id: Some(id),
                ..
            }) = item
            {
                wanted.entry(table.to_string()).or_default().push(id.to_string());
            }
        }
        for (table, ids) in wanted {
            let rows = tables::by_id(&self.database, &device.tenant, &table, &ids).await?;
            let mut rows: HashMap<String, _> = rows.into_iter().map(|row| (row.id, row.json)).collect();
            for item in items.iter_mut() {
                if let Item::Change(change) = item
                    && change.is_partial
                    && change.table.as_str() == table
                    && let Some(json) = change.id.as_ref().and_then(|id| rows.remove(id.as_str()))
                {
                    change.row = Some(json);
                    change.is_partial = false;
                }
            }
        }
        items.retain(|item| !matches!(item, Item::Change(Change { is_partial: true, .. })));
        Ok(())
    }

    async fn snapshot(
        &self,
        device: &DevicePrincipal,
        resumed: Option<(Place, super::cursor::PageStart)>,
        question: Question<'_>,
    ) -> Result<Answer, Error> {
        let is_first = resumed.is_none();
        let (place, start) = match resumed {
            Some(resumed) => resumed,
            None => {
                let place = snapshot::begin(&self.database, &self.store, &device.tenant, device.user_id).await?;
                (place, snapshot::phase_start(0))
            }
        };
        let scope = Scope {
            database: &self.database,
            tenant: &device.tenant,
            user: device.user_id,
            rules: &self.rules,
        };
        let page = snapshot::page(scope, start, question.limit, question.bytes_max).await?;
        let view = self.store.view().await?;
        // After the last page the stream may hold more, and asking costs little.
        let has_more = page.next.is_some() || view.position > place.position;
        Ok(Answer {
            items: page.items,
            pending: page.pending,
            cursor: Cursor { place, page: page.next },
            has_more,
            reset: is_first,
            is_pin: true,
            position: view.published,
            source: Source::Snapshot,
        })
    }

    /// Messages changed since a time that is nobody's `sync_timestamp`: neither acknowledges nor moves anything.
    async fn re_read(
        &self,
        device: &DevicePrincipal,
        since: DateTime<Utc>,
        question: Question<'_>,
    ) -> Result<Batch, Error> {
        let handoff = self.store.handoff(&device.tenant.name, device.user_id).await?;
        if handoff.is_paused {
            return Err(store::Error::Paused.into());
        }
        let view = handoff.view;
        let limit = i64::try_from(question.limit.saturating_add(1)).unwrap_or(i64::MAX);
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
        for row in rows.iter().take(question.limit) {
            let message = Message::from_row(row)?;
            let json = serde_json::to_string(&message).map_err(|error| feature::Error::Internal(error.to_string()))?;
            items.push(Item::Message(json.into()));
        }
        Ok(Batch {
            has_more: rows.len() > items.len(),
            items,
            cursor: None,
            reset: false,
            position: view.published,
            timestamp: Timestamp::now(),
            status: SyncStatus::Idle,
            source: Source::Snapshot,
        })
    }
}

/// Transactions of one batch that are told of in their traces, at most.
const TRACED_MAX: usize = 100;

/// Tells that a device is given these transactions, where their traces are sampled.
fn trace(epoch: EpochId, stretch: &Range) {
    if !traces::is_on() {
        return;
    }
    let mut places: Vec<StreamId> = stretch.versions.iter().map(|version| version.place).collect();
    places.dedup_by_key(|place| place.ms);
    let sampled = places
        .into_iter()
        .filter_map(|place| traces::Transaction::of(epoch, place));
    for transaction in sampled.take(TRACED_MAX) {
        transaction.delivered("sync", "batch");
    }
}

struct Answer {
    items: Vec<Item>,
    pending: Vec<Uuid>,
    cursor: Cursor,
    has_more: bool,
    reset: bool,
    /// The cursor's place must not be trimmed away, though it acknowledges nothing.
    is_pin: bool,
    position: StreamId,
    source: Source,
}

/// Now, and later than any answer that the device was given.
fn unique_timestamp(given: &[DeliveredBatch]) -> Timestamp {
    let now = Utc::now();
    let last = given
        .last()
        .and_then(|given| DateTime::parse_from_rfc3339(&given.timestamp).ok());
    match last {
        Some(last) if last >= now => Timestamp(last.with_timezone(&Utc) + chrono::Duration::microseconds(1)),
        _ => Timestamp(now),
    }
}

/// As the API prints it.
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
    fn timestamps_of_one_device_never_repeat() {
        let future = "2999-01-01T00:00:00.000001Z";
        let given = DeliveredBatch {
            timestamp: future.into(),
            cursor: String::new(),
            pending: Vec::new(),
        };
        assert_eq!(rfc3339(unique_timestamp(&[given])), "2999-01-01T00:00:00.000002Z");
    }
}
