//! Whether Postgres shows what is published.
//!
//! The log can report a commit before `SELECT` shows it: for a moment always, and for as long as the commit waits for a
//! synchronous standby. A device reads rows from the streams, which have them. A page reads them by request, so it is
//! given an event only when a statement that begins then shows the change. [`crate::sync::visibility`] answers what
//! readers ask here, with one look at Postgres for all that ask at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::contract::window::WindowEntry;
use crate::core::position::{EpochId, StreamId};
use crate::core::snapshot::Snapshot;

/// How long a snapshot is reused. What is visible stays visible, but after a failover transaction ids are used again.
const SNAPSHOT_LIFETIME: Duration = Duration::from_secs(1);

/// So many wishes wait before it is checked who still waits.
const WISHES_MIN: usize = 64;

/// How long a reader waits for a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The place of a change and its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub id: StreamId,
    pub xid: u32,
}

/// What was published, as Redis has it.
#[derive(Debug, Clone)]
pub struct Extent {
    pub epoch: EpochId,
    pub position: StreamId,
    pub window: Vec<WindowEntry>,
}

/// What a statement that begins now shows.
#[derive(Debug, Clone)]
pub struct Look {
    snapshot: Snapshot,
    /// What was published before the snapshot was taken; its window has what the snapshot does not see.
    extent: Option<Extent>,
}

impl Look {
    /// Of a snapshot alone.
    pub fn of(snapshot: Snapshot) -> Self {
        let extent = None;
        Self { snapshot, extent }
    }

    /// The same, of the snapshot alone.
    fn without_extent(&self) -> Self {
        Self::of(self.snapshot.clone())
    }

    /// Of a snapshot, and of what was published before it was taken.
    pub fn behind(mut extent: Extent, snapshot: Snapshot) -> Self {
        extent.window.retain(|entry| !entry.is_seen_by(&snapshot));
        let extent = Some(extent);
        Self { snapshot, extent }
    }

    /// Whether a change of an epoch is shown. A transaction that the snapshot does not name may be older than half of all
    /// transaction ids, or of a server that was set back: it is not shown only while it is in the window.
    pub fn shows(&self, epoch: EpochId, change: Published) -> bool {
        let Published { id, xid } = change;
        // Without an id it is of no transaction.
        xid == 0
            || self.snapshot.sees_all(xid, xid)
            || self.extent.as_ref().is_some_and(|extent| {
                let is_in = |entry: &WindowEntry| entry.first <= id && entry.contains(xid);
                extent.epoch != epoch || (id <= extent.position && !extent.window.iter().any(is_in))
            })
    }

    /// Up to where everything of an epoch is shown.
    pub fn position(&self, epoch: EpochId) -> Option<StreamId> {
        let extent = self.extent.as_ref().filter(|extent| extent.epoch == epoch)?;
        let unseen = extent.window.iter().map(|entry| entry.first.previous());
        Some(unseen.fold(extent.position, StreamId::min))
    }

    /// Whether everything of an epoch up to a place is shown. What has ended is shown by what follows.
    pub fn shows_all(&self, epoch: EpochId, until: StreamId) -> bool {
        let is_of_another = self.extent.as_ref().is_some_and(|extent| extent.epoch != epoch);
        is_of_another || self.position(epoch).is_some_and(|position| position >= until)
    }
}

/// What a reader waits for.
#[derive(Debug, Clone)]
pub enum Wish {
    /// What is shown, with all that is published.
    Latest,
    /// One of these changes is shown, or everything up to a place.
    Shown {
        epoch: EpochId,
        changes: Vec<Published>,
        until: Option<StreamId>,
    },
}

impl Wish {
    /// Whether a look fulfils it. It must be later than the wish.
    fn is_fulfilled_by(&self, look: &Look) -> bool {
        match self {
            Self::Latest => look.extent.is_some(),
            Self::Shown { epoch, changes, until } => {
                changes.iter().any(|change| look.shows(*epoch, *change))
                    || until.is_some_and(|until| look.shows_all(*epoch, until))
            }
        }
    }

    fn is_latest(&self) -> bool {
        matches!(self, Self::Latest)
    }
}

/// Resolves with the look that fulfils a wish; fails when there will be none.
pub type Answer = oneshot::Receiver<Arc<Look>>;

/// What Postgres did not show at the last look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    /// Wishes that it left open.
    pub count: usize,
    /// Since when there have been some.
    pub since: Option<Instant>,
}

impl Waits {
    fn note(&mut self, left: &[(Wish, oneshot::Sender<Arc<Look>>)]) {
        self.count = left.iter().filter(|(_, sender)| !sender.is_closed()).count();
        self.since = match self.count {
            0 => None,
            _ => self.since.or_else(|| Some(Instant::now())),
        };
    }
}

#[derive(Debug, Default)]
struct Wishes {
    waiting: Vec<(Wish, oneshot::Sender<Arc<Look>>)>,
    /// Length at which wishes that no reader waits for are removed.
    cleared_at: usize,
    latest: Option<(Instant, Arc<Look>)>,
    waits: Waits,
}

/// What readers wait for. Cloning shares it. Each reader has one wish at a time; those that another one replaced are removed
/// before they are more than the others.
#[derive(Debug, Clone, Default)]
pub struct Visibility(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    wished: Notify,
}

impl Visibility {
    /// What is known to be shown, without asking.
    pub fn known(&self) -> Option<Arc<Look>> {
        let wishes = self.0.wishes.lock();
        let (at, look) = wishes.latest.as_ref()?;
        (at.elapsed() < SNAPSHOT_LIFETIME).then(|| look.clone())
    }

    /// Who waits for how long.
    pub fn waits(&self) -> Waits {
        self.0.wishes.lock().waits
    }

    /// Waits for a wish.
    pub fn wish(&self, wish: Wish) -> Answer {
        let (sender, answer) = oneshot::channel();
        let mut wishes = self.0.wishes.lock();
        if wishes.waiting.len() >= wishes.cleared_at {
            wishes.waiting.retain(|(_, sender)| !sender.is_closed());
            wishes.cleared_at = WISHES_MIN.max(2 * wishes.waiting.len());
        }
        wishes.waiting.push((wish, sender));
        drop(wishes);
        self.0.wished.notify_one();
        answer
    }

    /// What is shown now of all that is published; `None` when Postgres or Redis does not answer.
    pub async fn look(&self) -> Option<Arc<Look>> {
        let look = self.wish(Wish::Latest);
        tokio::time::timeout(LOOK_TIMEOUT, look).await.ok()?.ok()
    }

    /// Waits until a reader wishes something.
    pub async fn wished(&self) {
        self.0.wished.notified().await;
    }

    /// The wishes of readers that still wait. They are given back to [`Visibility::answer`].
    pub fn take(&self) -> Taken {
        let mut waiting = std::mem::take(&mut self.0.wishes.lock().waiting);
        waiting.retain(|(_, sender)| !sender.is_closed());
        if waiting.is_empty() {
            self.0.wishes.lock().waits = Waits::default();
        }
        Taken(waiting)
    }

    /// Answers those of the wishes that a later look fulfils, and keeps the others. Returns whether any are left.
    pub fn answer(&self, taken: Taken, look: Look) -> bool {
        let look = Arc::new(look);
        let mut left = Vec::new();
        // Before the answers, for readers that get the same change meanwhile.
        self.0.wishes.lock().latest = Some((Instant::now(), Arc::new(look.without_extent())));
        for (wish, sender) in taken.0 {
            if wish.is_fulfilled_by(&look) {
                sender.send(look.clone()).ok();
            } else {
                left.push((wish, sender));
            }
        }
        let has_left = !left.is_empty();
        let mut wishes = self.0.wishes.lock();
        wishes.waits.note(&left);
        wishes.waiting.append(&mut left);
        has_left
    }

    /// Keeps wishes that could not be answered, except looks, whose readers do not wait longer.
    pub fn keep(&self, mut taken: Taken) {
        taken.0.retain(|(wish, _)| !wish.is_latest());
        let mut wishes = self.0.wishes.lock();
        wishes.waits.note(&taken.0);
        wishes.waiting.append(&mut taken.0);
    }
}

/// Wishes that are being answered.
#[derive(Debug)]
pub struct Taken(Vec<(Wish, oneshot::Sender<Arc<Look>>)>);

impl Taken {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some are about all that is published.
    pub fn has_looks(&self) -> bool {
        self.0.iter().any(|(wish, _)| wish.is_latest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: EpochId = EpochId(1);

    fn at(ms: u64) -> StreamId {
        StreamId { ms, seq: 1 }
    }

    fn change(ms: u64, xid: u32) -> Published {
        Published { id: at(ms), xid }
    }

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).expect("a snapshot")
    }

    fn look_with(window: &[(u64, u32)], text: &str) -> Look {
        let window = window.iter().map(|(first, xid)| WindowEntry::new(at(*first), *xid));
        let extent = Extent {
            epoch: EPOCH,
            position: at(9),
            window: window.collect(),
        };
        Look::behind(extent, snapshot(text))
    }

    #[test]
    fn change_is_not_shown_while_the_window_has_its_transaction() {
        let look = look_with(&[(4, 100), (6, 101)], "100:102:100");
        assert!(!look.shows(EPOCH, change(4, 100)) && look.shows(EPOCH, change(6, 101)));
        assert_eq!(look.position(EPOCH), Some(at(4).previous()));
        // One so old that its id lies ahead again, and one that the window cannot have yet.
        assert!(look.shows(EPOCH, change(3, 500)));
        assert!(!look.shows(EPOCH, change(10, 500)));
        // A server that was set back may never show the transaction.
        assert!(look.shows(EpochId(2), change(4, 100)));
        assert_eq!(look.position(EpochId(2)), None);
        assert!(look.shows(EPOCH, change(4, 0)));
    }

    fn any(changes: Vec<Published>) -> Wish {
        Wish::Shown {
            epoch: EPOCH,
            changes,
            until: None,
        }
    }

    fn all_until(until: StreamId) -> Wish {
        Wish::Shown {
            epoch: EPOCH,
            changes: Vec::new(),
            until: Some(until),
        }
    }

    #[test]
    fn wishes_that_were_replaced_do_not_gather_while_no_look_ends() {
        let visibility = Visibility::default();
        let kept: Vec<Answer> = (0..100).map(|_| visibility.wish(all_until(at(6)))).collect();
        for _ in 0..10_000 {
            drop(visibility.wish(any(vec![change(4, 100)])));
        }
        assert!(visibility.0.wishes.lock().waiting.len() <= 2 * kept.len());
    }

    #[tokio::test]
    async fn wish_is_answered_by_the_first_sight_that_fulfils_it() {
        let visibility = Visibility::default();
        let mut early = visibility.wish(any(vec![change(4, 100), change(6, 101)]));
        let mut all = visibility.wish(all_until(at(6)));
        let mut look = visibility.wish(Wish::Latest);
        drop(visibility.wish(any(vec![change(4, 100)])));

        let taken = visibility.take();
        assert!(taken.has_looks());
        assert!(visibility.answer(taken, look_with(&[(4, 100), (6, 101)], "100:102:100,101")));
        assert!(early.try_recv().is_err() && all.try_recv().is_err());
        assert!(look.try_recv().is_ok());
        let waits = visibility.waits();
        assert!(waits.count == 2 && waits.since.is_some());
        let knows = |xid| visibility.known().is_some_and(|look| look.shows(EPOCH, change(6, xid)));
        assert!(!knows(101));

        // A snapshot alone shows the change, but not that nothing else is missing.
        assert!(visibility.answer(visibility.take(), Look::of(snapshot("100:102:100"))));
        assert!(knows(101) && !knows(100));
        assert!(early.try_recv().is_ok() && all.try_recv().is_err());

        assert!(!visibility.answer(visibility.take(), look_with(&[(4, 100)], "102:102:")));
        assert!(all.try_recv().is_ok());
        let waits = visibility.waits();
        assert!(waits.count == 0 && waits.since.is_none());
    }

    #[tokio::test]
    async fn look_ends_when_nothing_answers() {
        let visibility = Visibility::default();
        let mut all = visibility.wish(all_until(at(6)));
        let look = visibility.wish(Wish::Latest);
        visibility.keep(visibility.take());
        assert!(look.await.is_err());
        assert!(matches!(all.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        let taken = visibility.take();
        assert!(!taken.is_empty() && !taken.has_looks());
    }
}
