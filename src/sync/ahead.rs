//! Reading ahead: while a device that catches up takes a page in, Redis gathers the next.
//!
//! What is kept is only entries, which never change; whether history still reaches back to them is asked anew when they
//! are given. It is a guess about the next request: few are kept, not for long, and who takes none reads as always.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::deliver::store::{Error, Place, Read, Slice};

/// Stretches kept at once, each of about [`super::incoming::READ_BYTES`] at most.
const KEPT_MAX: usize = 16;

/// How long a stretch is kept for who does not come back.
const KEEP: Duration = Duration::from_secs(2);

/// Tenant and device.
type Key = (String, String);

/// What was read ahead, by device. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Ahead {
    kept: Arc<Mutex<HashMap<Key, (Place, Kept)>>>,
}

/// A stretch that is being read.
pub type Kept = oneshot::Receiver<Result<Read, Error>>;

impl Ahead {
    /// Reads what the device will ask for next, unless enough is kept already.
    pub fn begin(&self, key: Key, place: Place, reading: impl Future<Output = Result<Read, Error>> + Send + 'static) {
        let (done, kept) = oneshot::channel();
        {
            let mut all = self.lock();
            if all.len() >= KEPT_MAX && !all.contains_key(&key) {
                return;
            }
            all.insert(key.clone(), (place, kept));
        }
        let ahead = self.clone();
        tokio::spawn(async move {
            // Nobody waits when it was taken and its request has ended, or another took its place.
            let _unused = done.send(reading.await);
            tokio::time::sleep(KEEP).await;
            let mut all = ahead.lock();
            if all.get(&key).is_some_and(|(kept, _)| *kept == place) {
                all.remove(&key);
            }
        });
    }

    /// Takes what was read ahead for the device, if it begins at this place.
    pub fn take(&self, key: &Key, place: Place) -> Option<Kept> {
        let (kept, reading) = self.lock().remove(key)?;
        (kept == place).then_some(reading)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (Place, Kept)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first stretch of an answer: what was read ahead if history now still reaches back to it, else what was read now.
/// What reached the end when it was read is not used: more may have come since.
pub async fn first(now: Result<Read, Error>, kept: Option<Kept>) -> Result<Read, Error> {
    let (Ok(Read::Slice(fresh)), Some(kept)) = (&now, kept) else {
        return now;
    };
    match kept.await {
        Ok(Ok(Read::Slice(slice))) if slice.has_more => Ok(Read::Slice(Slice {
            view: fresh.view,
            ..slice
        })),
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;
    use crate::deliver::store::View;
    use crate::publish::checkpoint::EpochId;

    fn place(ms: u64) -> Place {
        Place {
            epoch: EpochId(1),
            generation: 0,
            position: StreamId { ms, seq: 1 },
        }
    }

    fn slice(end: u64, has_more: bool) -> Slice {
        Slice {
            entries: Vec::new(),
            end: StreamId { ms: end, seq: 1 },
            has_more,
            view: view(end),
        }
    }

    fn view(published: u64) -> View {
        View {
            epoch: EpochId(1),
            base: 0,
            position: StreamId { ms: published, seq: 1 },
            published: StreamId { ms: published, seq: 1 },
        }
    }

    fn key(device: &str) -> Key {
        ("acme".into(), device.into())
    }

    #[tokio::test]
    async fn what_was_read_ahead_is_given_once_and_only_where_it_was_asked_for() {
        let ahead = Ahead::default();
        for at in [1, 2] {
            ahead.begin(key("phone"), place(1), async { Ok(Read::Slice(slice(9, true))) });
            assert_eq!(ahead.take(&key("phone"), place(at)).is_some(), at == 1);
            assert!(ahead.take(&key("phone"), place(1)).is_none());
        }
    }

    #[tokio::test]
    async fn no_more_is_kept_than_the_bound() {
        let ahead = Ahead::default();
        for device in 0..KEPT_MAX + 5 {
            ahead.begin(key(&device.to_string()), place(1), async { Err(Error::NoCheckpoint) });
        }
        assert_eq!(ahead.lock().len(), KEPT_MAX);
    }

    #[tokio::test]
    async fn history_is_as_it_is_now_whatever_was_read_ahead() {
        let given = async |now: Result<Read, Error>, kept: Slice| {
            let (done, reading) = oneshot::channel();
            done.send(Ok(Read::Slice(kept))).expect("it waits");
            first(now, Some(reading)).await
        };
        let now = || Ok(Read::Slice(slice(3, true)));
        match given(now(), slice(9, true)).await {
            Ok(Read::Slice(given)) => assert_eq!((given.end.ms, given.view), (9, view(3))),
            other => panic!("{other:?}"),
        }
        // The end that was seen may be the end no more.
        match given(now(), slice(9, false)).await {
            Ok(Read::Slice(given)) => assert_eq!(given.end.ms, 3),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            given(Ok(Read::Broken(view(3))), slice(9, true)).await,
            Ok(Read::Broken(_))
        ));
        assert!(matches!(
            given(Err(Error::Paused), slice(9, true)).await,
            Err(Error::Paused)
        ));
    }
}
