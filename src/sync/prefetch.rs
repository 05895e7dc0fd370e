//! Reading ahead: while a device that catches up takes a page in, the next is made ready.
//!
//! What is kept is only versions of rows, which never change; whether history still reaches back to them is asked anew
//! when they are given. It is a guess about the next request: few are kept, not for long, and who takes none reads as
//! always.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::stretch::{self, Bounds, FIRST_ENTRIES, Range};
use crate::accounts::devices::DevicePrincipal;
use crate::redis::store::{Error, Place, Read, Store};

/// Stretches kept at once, each within the bounds of a batch.
const KEPT_MAX: usize = 8;

/// How long a stretch is kept for who does not come back.
const KEEP: Duration = Duration::from_secs(2);

/// Tenant and device.
type Key = (String, String);

/// What was asked ahead, and where it comes.
type Asked = (Place, Bounds, Prefetched);

/// A stretch that is being gathered.
pub type Prefetched = oneshot::Receiver<Result<Option<Range>, Error>>;

/// What was gathered ahead, by device. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Prefetch {
    kept: Arc<Mutex<HashMap<Key, Asked>>>,
}

impl Prefetch {
    /// Gathers what the device will ask for next, unless enough is kept already.
    pub fn begin(&self, store: &Store, device: &DevicePrincipal, place: Place, bounds: Bounds) {
        let (store, tenant, user) = (store.clone(), device.tenant.name.clone(), device.user_id);
        self.keep(key(device), place, bounds, async move {
            let first = store
                .read(&tenant, user, place, bounds.limit.min(FIRST_ENTRIES))
                .await?;
            stretch::gather(&store, &tenant, user, place, first, bounds).await
        });
    }

    fn keep(
        &self,
        key: Key,
        place: Place,
        bounds: Bounds,
        gathering: impl Future<Output = Result<Option<Range>, Error>> + Send + 'static,
    ) {
        let (done, kept) = oneshot::channel();
        {
            let mut all = self.lock();
            if all.len() >= KEPT_MAX && !all.contains_key(&key) {
                return;
            }
            all.insert(key.clone(), (place, bounds, kept));
        }
        let prefetch = self.clone();
        tokio::spawn(async move {
            // Nobody waits when it was taken and its request has ended, or another took its place.
            let _unused = done.send(gathering.await);
            tokio::time::sleep(KEEP).await;
            let mut all = prefetch.lock();
            if all.get(&key).is_some_and(|(kept, ..)| *kept == place) {
                all.remove(&key);
            }
        });
    }

    /// Takes what was gathered ahead for the device, if it is just what the device asks for.
    pub fn take(&self, device: &DevicePrincipal, place: Place, bounds: Bounds) -> Option<Prefetched> {
        let (at, within, kept) = self.lock().remove(&key(device))?;
        ((at, within) == (place, bounds)).then_some(kept)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Asked>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(device: &DevicePrincipal) -> Key {
    (device.tenant.name.clone(), device.device_id.clone())
}

/// What was gathered ahead, if history now still reaches back to it. What came to the end when it was gathered is not
/// used: more may have come since.
pub async fn still_there(now: &Read, kept: Option<Prefetched>) -> Option<Range> {
    let (Read::Slice(now), Some(kept)) = (now, kept) else {
        return None;
    };
    let stretch = kept.await.ok()?.ok()??;
    stretch.has_more.then_some(Range {
        published: now.view.published,
        ..stretch
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::accounts::users::UserType;
    use crate::core::position::EpochId;
    use crate::core::position::StreamId;
    use crate::core::tenant::Tenant;
    use crate::redis::store::{Slice, View};

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

    fn place(ms: u64) -> Place {
        Place {
            epoch: EpochId(1),
            generation: 0,
            position: id(ms),
        }
    }

    fn stretch(published: u64, has_more: bool) -> Range {
        Range {
            versions: Vec::new(),
            has_more,
            published: id(published),
        }
    }

    #[tokio::test]
    async fn what_was_gathered_ahead_is_given_once_and_only_to_who_asks_for_just_that() {
        let prefetch = Prefetch::default();
        let phone = device("phone");
        let other = Bounds { limit: 9, ..BOUNDS };
        for (at, bounds, is_given) in [(1, BOUNDS, true), (2, BOUNDS, false), (1, other, false)] {
            prefetch.keep(key(&phone), place(1), BOUNDS, async { Ok(Some(stretch(9, true))) });
            assert!(prefetch.take(&device("another"), place(1), BOUNDS).is_none());
            assert_eq!(prefetch.take(&phone, place(at), bounds).is_some(), is_given);
            assert!(prefetch.take(&phone, place(1), BOUNDS).is_none());
        }
    }

    #[tokio::test]
    async fn no_more_is_kept_than_the_bound() {
        let prefetch = Prefetch::default();
        for number in 0..KEPT_MAX + 5 {
            let key = key(&device(&number.to_string()));
            prefetch.keep(key, place(1), BOUNDS, async { Err(Error::NoCheckpoint) });
        }
        assert_eq!(prefetch.lock().len(), KEPT_MAX);
    }

    #[tokio::test]
    async fn history_is_as_it_is_now_whatever_was_gathered_ahead() {
        let view = View {
            epoch: EpochId(1),
            base: 0,
            position: id(20),
            published: id(20),
        };
        let there = Read::Slice(Slice {
            entries: Vec::new(),
            end: id(1),
            has_more: true,
            view,
        });
        let given = async |now: &Read, kept: Range| {
            let (done, gathering) = oneshot::channel();
            done.send(Ok(Some(kept))).expect("it waits");
            still_there(now, Some(gathering)).await.map(|given| given.published)
        };
        assert_eq!(given(&there, stretch(9, true)).await, Some(id(20)));
        // The end that was seen may be the end no more.
        assert_eq!(given(&there, stretch(9, false)).await, None);
        assert_eq!(given(&Read::Broken(view), stretch(9, true)).await, None);
    }
}
