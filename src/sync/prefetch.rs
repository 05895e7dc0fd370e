//! Prefetching: while a device that catches up processes a batch, the next range is gathered.
//!
//! A prefetched range contains only versions of rows, which never change; whether the streams still reach back to it is
//! checked when it is delivered. It is a guess about the next request: few ranges are kept, for a short time, and a device
//! whose range was dropped reads the streams.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::range::{self, Bounds, FIRST_ENTRIES, Range};
use crate::accounts::devices::DevicePrincipal;
use crate::redis::read_position::ReadPosition;
use crate::redis::reading::Read;
use crate::redis::store::{Error, Store};

/// Ranges kept at once, each within the bounds of a batch.
const RANGES_MAX: usize = 8;

/// How long a range is kept for a device that does not return.
const LIFETIME: Duration = Duration::from_secs(2);

/// Tenant and device.
type Key = (String, String);

/// The start and the bounds of a range, and its receiver.
type Entry = (ReadPosition, Bounds, Prefetched);

/// A range that is being gathered.
pub type Prefetched = oneshot::Receiver<Result<Option<Range>, Error>>;

/// Prefetched ranges by device. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Prefetch {
    ranges: Arc<Mutex<HashMap<Key, Entry>>>,
}

impl Prefetch {
    /// Gathers the range that the device will request next, unless too many are kept.
    pub fn begin(&self, store: &Store, device: &DevicePrincipal, place: ReadPosition, bounds: Bounds) {
        let (store, tenant, user) = (store.clone(), device.tenant.name.clone(), device.user_id);
        self.keep(key(device), place, bounds, async move {
            let first = store
                .read(&tenant, user, place, bounds.limit.min(FIRST_ENTRIES))
                .await?;
            range::gather(&store, &tenant, user, place, first, bounds).await
        });
    }

    fn keep(
        &self,
        key: Key,
        place: ReadPosition,
        bounds: Bounds,
        gathering: impl Future<Output = Result<Option<Range>, Error>> + Send + 'static,
    ) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut ranges = self.ranges.lock();
            if ranges.len() >= RANGES_MAX && !ranges.contains_key(&key) {
                return;
            }
            ranges.insert(key.clone(), (place, bounds, receiver));
        }
        let prefetch = self.clone();
        tokio::spawn(async move {
            // The receiver is gone if its request ended or another range replaced it.
            sender.send(gathering.await).ok();
            tokio::time::sleep(LIFETIME).await;
            let mut ranges = prefetch.ranges.lock();
            if ranges.get(&key).is_some_and(|(start, ..)| *start == place) {
                ranges.remove(&key);
            }
        });
    }

    /// Takes the device's range if it has this start and these bounds.
    pub fn take(&self, device: &DevicePrincipal, place: ReadPosition, bounds: Bounds) -> Option<Prefetched> {
        let (start, within, range) = self.ranges.lock().remove(&key(device))?;
        ((start, within) == (place, bounds)).then_some(range)
    }
}

fn key(device: &DevicePrincipal) -> Key {
    (device.tenant.name.clone(), device.device_id.clone())
}

/// The prefetched range if the streams, as read now, still reach back to it. A range that reached the end of the streams is
/// not used: more may have been added since. Neither is one of another term: servers may have been set back since.
pub async fn if_still_valid(now: &Read, prefetched: Option<Prefetched>) -> Option<Range> {
    let (Read::Slice(now), Some(prefetched)) = (now, prefetched) else {
        return None;
    };
    let range = prefetched.await.ok()?.ok()??;
    (range.has_more && range.term == now.view.term).then_some(Range {
        published: now.view.published,
        ..range
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::accounts::users::UserType;
    use crate::contract::checkpoint::View;
    use crate::core::position::EpochId;
    use crate::core::position::{StreamId, TermId};
    use crate::core::tenant::Tenant;
    use crate::redis::reading::Slice;

    const BOUNDS: Bounds = Bounds {
        limit: 10,
        bytes_max: 1000,
    };

    fn device(name: &str) -> DevicePrincipal {
        DevicePrincipal {
            tenant: Tenant {
                name: "acme".into(),
                schema: "tenant_acme".into(),
            },
            device_id: name.into(),
            user_id: Uuid::nil(),
            user_type: UserType::Mobile,
            token: None,
        }
    }

    fn id(ms: u64) -> StreamId {
        StreamId { ms, seq: 1 }
    }

    fn place(ms: u64) -> ReadPosition {
        ReadPosition {
            epoch: EpochId(1),
            generation: 0,
            term: TermId(1),
            position: id(ms),
            resets_covered: None,
            is_incomplete: false,
        }
    }

    fn range(published: u64, has_more: bool) -> Range {
        Range {
            versions: Vec::new(),
            has_more,
            joined: None,
            term: TermId(1),
            is_incomplete: false,
            published: id(published),
        }
    }

    #[tokio::test]
    async fn prefetched_range_is_taken_once_by_the_exact_request() {
        let prefetch = Prefetch::default();
        let phone = device("phone");
        let other = Bounds { limit: 9, ..BOUNDS };
        for (at, bounds, is_taken) in [(1, BOUNDS, true), (2, BOUNDS, false), (1, other, false)] {
            prefetch.keep(key(&phone), place(1), BOUNDS, async { Ok(Some(range(9, true))) });
            assert!(prefetch.take(&device("another"), place(1), BOUNDS).is_none());
            assert_eq!(prefetch.take(&phone, place(at), bounds).is_some(), is_taken);
            assert!(prefetch.take(&phone, place(1), BOUNDS).is_none());
        }
    }

    #[tokio::test]
    async fn prefetch_keeps_a_bounded_number_of_ranges() {
        let prefetch = Prefetch::default();
        for number in 0..RANGES_MAX + 5 {
            let key = key(&device(&number.to_string()));
            prefetch.keep(key, place(1), BOUNDS, async { Err(Error::NoCheckpoint) });
        }
        assert_eq!(prefetch.ranges.lock().len(), RANGES_MAX);
    }

    #[tokio::test]
    async fn prefetched_range_is_checked_against_the_current_streams() {
        let view = View {
            epoch: EpochId(1),
            base: 0,
            position: id(20),
            published: id(20),
            term: TermId(1),
            timeline: 1,
        };
        let there = Read::Slice(Slice {
            members: Arc::default(),
            entries: Vec::new(),
            end: id(1),
            has_more: true,
            is_incomplete: false,
            view,
        });
        let published = async |now: &Read, prefetched: Range| {
            let (sender, receiver) = oneshot::channel();
            sender.send(Ok(Some(prefetched))).expect("a receiver");
            if_still_valid(now, Some(receiver)).await.map(|range| range.published)
        };
        assert_eq!(published(&there, range(9, true)).await, Some(id(20)));
        // The end of the streams may have moved.
        assert_eq!(published(&there, range(9, false)).await, None);
        let other_term = Range {
            term: TermId(2),
            ..range(9, true)
        };
        assert_eq!(published(&there, other_term).await, None);
        assert_eq!(published(&Read::Broken(view), range(9, true)).await, None);
    }
}
