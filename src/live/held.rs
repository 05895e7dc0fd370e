//! Events that a page does not receive yet, because Postgres does not show their changes. Each page has its own
//! ([`super::feed`]); [`super::visibility`] queries Postgres for all of them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::tail::Notice;
use super::visibility::{Answer, Look, Published, Visibility, Wish};
use crate::core::position::{EpochId, StreamId};

/// What one page waits for. Events of other changes pass it: a change that depends on one that is not shown is not shown
/// either, so that the events of one row keep their order.
#[derive(Debug)]
pub(super) struct Held {
    epoch: EpochId,
    /// In the order of their places.
    notices: Vec<Arc<Notice>>,
    /// One event for all of these is due, since more was held than is kept here.
    sum_up: Option<Truncated>,
    /// The same, of what came since: the reader must not wait for this to get that.
    later: Option<Truncated>,
    answer: Option<Answer>,
}

/// Changes that one event stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Truncated {
    /// They begin behind this place …
    pub(super) from: StreamId,
    /// … and it is due when everything up to here is shown.
    pub(super) until: StreamId,
}

/// What of it is shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) notices: Vec<Arc<Notice>>,
    pub(super) has_truncated: bool,
}

impl Held {
    pub(super) fn new(epoch: EpochId) -> Self {
        Self {
            epoch,
            notices: Vec::new(),
            sum_up: None,
            later: None,
            answer: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.notices.is_empty() && self.sum_up.is_none()
    }

    pub(super) fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Holds a change. Beyond so many, one event will stand for all.
    pub(super) fn hold(&mut self, notice: Arc<Notice>, notices_max: usize) {
        if let Some(later) = &mut self.later {
            later.until = later.until.max(notice.id);
        } else if self.notices.len() < notices_max {
            self.notices.push(notice);
            self.answer = None;
        } else if self.sum_up.is_some() {
            let held = self.notices.drain(..).map(|notice| notice.id);
            let from = held.fold(notice.id, StreamId::min).previous();
            let until = notice.id;
            self.later = Some(Truncated { from, until });
            self.answer = None;
        } else {
            self.sum_up(notice.id);
        }
    }

    /// Lets one event stand for everything that is held, and for changes up to a place.
    pub(super) fn sum_up(&mut self, until: StreamId) {
        let from = self.from(until);
        self.owe(Truncated { from, until });
    }

    /// Lets one event stand for these changes, and for everything that is held.
    pub(super) fn owe(&mut self, changes: Truncated) {
        self.answer = None;
        let held = self.notices.drain(..).map(|notice| notice.id);
        let (from, until) = held.fold((changes.from, changes.until), |(from, until), id| {
            (from.min(id.previous()), until.max(id))
        });
        let before = [self.sum_up, self.later.take()].into_iter().flatten();
        self.sum_up = Some(before.fold(Truncated { from, until }, |all, one| Truncated {
            from: all.from.min(one.from),
            until: all.until.max(one.until),
        }));
    }

    /// From where a reader must resume to get everything that is held; `place` if nothing before it is.
    pub(super) fn from(&self, place: StreamId) -> StreamId {
        let first = self.notices.iter().map(|notice| notice.id.previous()).min();
        let owed = [self.sum_up, self.later].into_iter().flatten();
        let owed = owed.map(|changes| changes.from);
        first.into_iter().chain(owed).fold(place, StreamId::min)
    }

    /// Waits until some of it is shown.
    pub(super) fn poll_shown(&mut self, visibility: &Visibility, context: &mut Context<'_>) -> Poll<Released> {
        loop {
            let answer = self.answer.get_or_insert_with(|| {
                visibility.wish(Wish::Shown {
                    epoch: self.epoch,
                    changes: self.notices.iter().map(|notice| published(notice)).collect(),
                    until: self.sum_up.map(|changes| changes.until),
                })
            });
            let Poll::Ready(look) = Pin::new(answer).poll(context) else {
                return Poll::Pending;
            };
            self.answer = None;
            if let Ok(look) = look {
                return Poll::Ready(self.release(&look));
            }
        }
    }

    /// Takes out what a look shows.
    pub(super) fn release(&mut self, look: &Look) -> Released {
        let epoch = self.epoch;
        let has_truncated = self.sum_up.is_some_and(|changes| look.shows_all(epoch, changes.until));
        if has_truncated {
            self.sum_up = self.later.take();
        }
        let shown = |notice: &mut Arc<Notice>| look.shows(epoch, published(notice));
        let notices: Vec<_> = self.notices.extract_if(.., shown).collect();
        if has_truncated || !notices.is_empty() {
            self.answer = None;
        }
        Released { notices, has_truncated }
    }
}

/// The place and the transaction of a change.
pub(super) fn published(notice: &Notice) -> Published {
    Published {
        id: notice.id,
        xid: notice.xid,
    }
}

#[cfg(test)]
mod tests {
    use super::super::visibility::Extent;
    use super::*;
    use crate::core::snapshot::Snapshot;

    const EPOCH: EpochId = EpochId(1);

    fn at(ms: u64) -> StreamId {
        StreamId { ms, seq: 1 }
    }

    fn notice(ms: u64, xid: u32) -> Arc<Notice> {
        Arc::new(Notice {
            id: at(ms),
            xid,
            ..Notice::default()
        })
    }

    fn held(changes: &[(u64, u32)], notices_max: usize) -> Held {
        let mut held = Held::new(EPOCH);
        for (ms, xid) in changes {
            held.hold(notice(*ms, *xid), notices_max);
        }
        held
    }

    /// A look that shows everything up to a place.
    fn look_at(ms: u64, text: &str) -> Look {
        let extent = Extent {
            epoch: EPOCH,
            position: at(ms),
            window: Vec::new(),
        };
        Look::behind(extent, Snapshot::parse(text).expect("a snapshot"))
    }

    fn look(text: &str) -> Look {
        Look::of(Snapshot::parse(text).expect("a snapshot"))
    }

    #[test]
    fn what_is_shown_is_released_and_a_reader_resumes_below_the_rest() {
        let mut held = held(&[(4, 100), (6, 101), (7, 100)], 10);
        assert_eq!(held.from(at(9)), at(4).previous());
        let released = held.release(&look("100:102:101"));
        let ids: Vec<u64> = released.notices.iter().map(|notice| notice.id.ms).collect();
        assert_eq!((ids, held.from(at(9))), (vec![4, 7], at(6).previous()));
        held.release(&look("102:102:"));
        assert!(held.is_empty());
        assert_eq!(held.from(at(9)), at(9));
    }

    #[test]
    fn one_event_stands_for_more_than_is_kept() {
        let mut held = held(&[(4, 100), (6, 101), (7, 102)], 2);
        let sum_up = Truncated {
            from: at(4).previous(),
            until: at(7),
        };
        assert_eq!((held.sum_up, held.notices.len()), (Some(sum_up), 0));
        assert_eq!(held.from(at(9)), sum_up.from);
        // A snapshot alone does not say that nothing else is missing.
        assert!(!held.release(&look("104:104:")).has_truncated);
        assert!(held.release(&look_at(7, "104:104:")).has_truncated && held.is_empty());
    }

    #[test]
    fn what_comes_behind_one_event_for_many_does_not_delay_it() {
        let mut held = held(&[(4, 100), (6, 101), (7, 102)], 2);
        for (ms, xid) in [(8, 103), (9, 104)] {
            held.hold(notice(ms, xid), 2);
        }
        // One that is shown passes those that are not.
        let released = held.release(&look("103:105:104"));
        assert_eq!((released.notices.len(), released.has_truncated), (1, false));
        held.hold(notice(10, 105), 2);
        held.hold(notice(11, 106), 2);
        let released = held.release(&look_at(7, "103:104:"));
        assert_eq!((released.notices.len(), released.has_truncated), (0, true));
        assert_eq!(held.from(at(12)), at(9).previous());
        assert!(held.release(&look_at(11, "107:107:")).has_truncated && held.is_empty());
    }

    #[test]
    fn one_event_stands_for_all_that_is_held_when_more_is_owed() {
        let mut held = held(&[(4, 100), (6, 101)], 10);
        held.owe(Truncated {
            from: at(5),
            until: at(5),
        });
        held.owe(Truncated {
            from: at(2),
            until: at(3),
        });
        held.sum_up(at(9));
        let sum_up = Truncated {
            from: at(2),
            until: at(9),
        };
        assert_eq!((held.sum_up, held.notices.len()), (Some(sum_up), 0));
    }
}
