//! The hash `device` of each device: what it received and acknowledged.
//!
//! `sync` writes it; trimming, push and the operator's commands read parts of it, `trigger.lua` also writes `pushed`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::core::position::{EpochId, StreamId};

/// Seconds after which the state of a device expires that never syncs again. `trigger.lua` contains the same number.
pub const LIFETIME_SECONDS: i64 = 400 * 86_400;

/// Longest text of a failure that is kept.
const ERROR_CHARS_MAX: usize = 500;

const EPOCH: &str = "epoch";
const ACK: &str = "ack";
const SETTLED: &str = "settled";
const READ: &str = "read";
const GIVEN: &str = "given";
const CATCHING_UP: &str = "catching_up";
const ERROR: &str = "error";
const LAST_SYNC: &str = "last_sync";
const PENDING: &str = "pending";
const PUSHED: &str = "pushed";

/// Names of its fields.
pub const FIELDS: [&str; 10] = [
    EPOCH,
    ACK,
    SETTLED,
    READ,
    GIVEN,
    CATCHING_UP,
    ERROR,
    LAST_SYNC,
    PENDING,
    PUSHED,
];

/// The fields of [`trim_point`].
pub const TRIM_FIELDS: [&str; 2] = [SETTLED, ACK];

/// Up to where a device needs no entries, from the values of [`TRIM_FIELDS`]: what it acknowledged and whose statuses
/// are up to date. `None` when it never acknowledged.
pub fn trim_point(values: &[Option<String>]) -> Option<StreamId> {
    values.iter().flatten().next()?.parse().ok()
}

/// The fields of [`Progress::parse`].
pub const PROGRESS_FIELDS: [&str; 4] = [EPOCH, ACK, READ, PUSHED];

/// How far a device is in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The last position that it acknowledged or received.
    pub has: Option<StreamId>,
    /// A push was triggered and it has not synced since.
    pub is_pushed: bool,
}

impl Progress {
    /// Reads the values of [`PROGRESS_FIELDS`]. `trigger.lua` decides the same.
    pub fn parse(values: &[Option<String>], epoch: EpochId) -> Self {
        let field = |index: usize| values.get(index).and_then(Option::as_deref);
        let acknowledged = position_of_epoch(field(0), field(1));
        let in_epoch =
            |place: Option<(EpochId, StreamId)>| place.filter(|(of, _)| *of == epoch).map(|(_, position)| position);
        let has = in_epoch(acknowledged).max(in_epoch(field(2).and_then(parse_position)));
        let is_pushed = field(3)
            .and_then(parse_position)
            .is_some_and(|(of, position)| has.is_none_or(|has| of == epoch && has < position));
        Self { has, is_pushed }
    }
}

fn position_of_epoch(epoch: Option<&str>, position: Option<&str>) -> Option<(EpochId, StreamId)> {
    Some((epoch?.parse().ok()?, position?.parse().ok()?))
}

/// `<epoch> <position>`.
fn parse_position(text: &str) -> Option<(EpochId, StreamId)> {
    let (epoch, position) = text.split_once(' ')?;
    position_of_epoch(Some(epoch), Some(position))
}

/// A batch that was delivered to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveredBatch {
    /// Its `sync_timestamp`, unique for the device.
    pub timestamp: String,
    pub cursor: String,
    /// Ids of messages in it that came from a snapshot and were `pending_sync`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Uuid>,
}

/// A device's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// It has everything up to this position of this epoch.
    pub acknowledged: Option<(EpochId, StreamId)>,
    /// Up to here the statuses of what it has are up to date; never beyond what it has.
    pub settled: Option<StreamId>,
    /// Everything up to this position of this epoch was sent; it may not have arrived.
    pub read: Option<(EpochId, StreamId)>,
    /// The last batches, newest last.
    pub given: Vec<DeliveredBatch>,
    /// Rows sent since it began to catch up; 0 when it is at the end.
    pub catching_up: u64,
    /// Why its last sync failed, if it did.
    pub error: Option<String>,
    /// When it last synced, ms since 1970.
    pub last_sync_ms: Option<i64>,
    /// What it last reported as waiting to be sent.
    pub pending_outgoing: u32,
}

impl DeviceState {
    /// Reads the hash. A field that is missing or malformed is empty.
    pub fn parse(fields: &HashMap<String, String>) -> Self {
        let field = |name: &str| fields.get(name).map(String::as_str);
        Self {
            acknowledged: position_of_epoch(field(EPOCH), field(ACK)),
            settled: field(SETTLED).and_then(|text| text.parse().ok()),
            read: field(READ).and_then(parse_position),
            given: field(GIVEN)
                .and_then(|json| serde_json::from_str(json).ok())
                .unwrap_or_default(),
            catching_up: field(CATCHING_UP)
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            error: field(ERROR).filter(|error| !error.is_empty()).map(str::to_owned),
            last_sync_ms: field(LAST_SYNC).and_then(|text| text.parse().ok()),
            pending_outgoing: field(PENDING).and_then(|text| text.parse().ok()).unwrap_or_default(),
        }
    }

    /// The range that it has and whose statuses are not up to date.
    pub fn behind(&self) -> Option<(StreamId, StreamId)> {
        let (_, acknowledged) = self.acknowledged?;
        self.settled
            .filter(|settled| *settled < acknowledged)
            .map(|settled| (settled, acknowledged))
    }

    /// The state after an update.
    #[must_use]
    pub fn updated(mut self, update: &Update) -> Self {
        self.acknowledged = update.acknowledged.or(self.acknowledged);
        self.settled = update.settled.or(self.settled);
        self.read = update.read.or(self.read);
        self.catching_up = update.catching_up.unwrap_or(self.catching_up);
        if let Some(error) = &update.error {
            self.error = Some(error.clone()).filter(|error| !error.is_empty());
        }
        if let Some(given) = &update.given {
            self.given.clone_from(given);
        }
        self.last_sync_ms = update.last_sync_ms.or(self.last_sync_ms);
        self.pending_outgoing = update.pending_outgoing.unwrap_or(self.pending_outgoing);
        self
    }

    /// The status of its sync.
    pub fn status(&self) -> SyncStatus {
        match self {
            Self { error: Some(_), .. } => SyncStatus::Error,
            Self { catching_up: 0, .. } => SyncStatus::Idle,
            _ => SyncStatus::Syncing,
        }
    }
}

/// The status of a device's sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncStatus {
    /// It is at the end of what there was.
    Idle,
    /// More is waiting, or it is in a snapshot.
    Syncing,
    /// Its last sync failed.
    Error,
}

impl SyncStatus {
    /// The text in Postgres.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Syncing => "syncing",
            Self::Error => "error",
        }
    }
}

/// What a request changes.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// A new acknowledged position.
    pub acknowledged: Option<(EpochId, StreamId)>,
    /// Up to where statuses are up to date.
    pub settled: Option<StreamId>,
    /// Up to where entries were sent.
    pub read: Option<(EpochId, StreamId)>,
    /// The whole list of delivered batches, oldest first.
    pub given: Option<Vec<DeliveredBatch>>,
    /// Rows sent since it began to catch up.
    pub catching_up: Option<u64>,
    /// Why its sync failed; an empty text when it did not.
    pub error: Option<String>,
    /// When it synced, ms since 1970.
    pub last_sync_ms: Option<i64>,
    /// What it reports as waiting.
    pub pending_outgoing: Option<u32>,
}

impl Update {
    /// The fields that change, and their texts.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields: Vec<(&str, String)> = Vec::new();
        if let Some((epoch, position)) = self.acknowledged {
            fields.push((EPOCH, epoch.to_string()));
            fields.push((ACK, position.to_string()));
        }
        if let Some(settled) = self.settled {
            fields.push((SETTLED, settled.to_string()));
        }
        if let Some((epoch, position)) = self.read {
            fields.push((READ, format!("{epoch} {position}")));
        }
        if let Some(rows) = self.catching_up {
            fields.push((CATCHING_UP, rows.to_string()));
        }
        if let Some(error) = &self.error {
            fields.push((ERROR, error.chars().take(ERROR_CHARS_MAX).collect()));
        }
        if let Some(given) = &self.given {
            fields.push((GIVEN, serde_json::to_string(given).unwrap_or_default()));
        }
        if let Some(time) = self.last_sync_ms {
            fields.push((LAST_SYNC, time.to_string()));
        }
        if let Some(pending) = self.pending_outgoing {
            fields.push((PENDING, pending.to_string()));
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn positions() -> impl Strategy<Value = Option<(EpochId, StreamId)>> {
        any::<Option<(u64, u64, u64)>>()
            .prop_map(|place| place.map(|(epoch, ms, seq)| (EpochId(epoch), StreamId { ms, seq })))
    }

    fn updates() -> impl Strategy<Value = Update> {
        let batch = any::<(String, String, Vec<u128>)>().prop_map(|(timestamp, cursor, pending)| DeliveredBatch {
            timestamp,
            cursor,
            pending: pending.into_iter().map(Uuid::from_u128).collect(),
        });
        let given = prop::option::of(proptest::collection::vec(batch, 0..4));
        let numbers = any::<(Option<u64>, Option<i64>, Option<u32>)>();
        (
            positions(),
            positions(),
            positions(),
            given,
            prop::option::of("[a-z]{0,20}"),
            numbers,
        )
            .prop_map(
                |(acknowledged, settled, read, given, error, (catching_up, last_sync_ms, pending_outgoing))| Update {
                    acknowledged,
                    settled: settled.map(|(_, position)| position),
                    read,
                    given,
                    catching_up,
                    error,
                    last_sync_ms,
                    pending_outgoing,
                },
            )
    }

    proptest! {
        #[test]
        fn device_state_reads_what_updates_wrote(updates in proptest::collection::vec(updates(), 0..4)) {
            let mut hash = HashMap::new();
            let mut state = DeviceState::default();
            for update in &updates {
                hash.extend(update.fields().into_iter().map(|(name, text)| (name.to_owned(), text)));
                state = state.updated(update);
            }
            prop_assert!(hash.keys().all(|name| FIELDS.contains(&name.as_str())));
            prop_assert_eq!(DeviceState::parse(&hash), state.clone());
            let values = TRIM_FIELDS.map(|name| hash.get(name).cloned());
            prop_assert_eq!(trim_point(&values), state.settled.or(state.acknowledged.map(|(_, position)| position)));
        }
    }

    fn state(fields: [&str; 4]) -> Vec<Option<String>> {
        fields
            .iter()
            .map(|text| (!text.is_empty()).then(|| (*text).to_owned()))
            .collect()
    }

    #[test]
    fn pushed_device_counts_as_synced_once_it_has_what_waited() {
        let epoch: EpochId = "00000000000000aa".parse().expect("an epoch");
        let at = |ms| Some(StreamId { ms, seq: 1 });
        for (fields, has, is_pushed) in [
            (["", "", "", ""], None, false),
            (["00000000000000aa", "5-1", "", ""], at(5), false),
            (["00000000000000aa", "5-1", "00000000000000aa 7-1", ""], at(7), false),
            (["00000000000000aa", "5-1", "", "00000000000000aa 7-1"], at(5), true),
            (["00000000000000aa", "7-1", "", "00000000000000aa 7-1"], at(7), false),
            (["", "", "00000000000000aa 10-1", "00000000000000aa 9-1"], at(10), false),
            (["", "", "", "00000000000000aa 9-1"], None, true),
            // Pushed in a former epoch.
            (["00000000000000bb", "5-1", "", "00000000000000bb 4-1"], None, true),
            (["00000000000000aa", "1-1", "", "00000000000000bb 9-1"], at(1), false),
        ] {
            assert_eq!(
                Progress::parse(&state(fields), epoch),
                Progress { has, is_pushed },
                "{fields:?}"
            );
        }
    }

    #[test]
    fn trigger_script_reads_the_fields_of_progress() {
        let script = super::super::lua::TRIGGER;
        let fields = PROGRESS_FIELDS.map(|name| format!("'{name}'")).join(", ");
        assert!(script.contains(&fields), "{fields}");
        assert!(script.contains(&LIFETIME_SECONDS.to_string()));
        assert!(script.contains(&format!("'{}'", super::super::meta::STATE)));
    }
}
