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
    /// More is held than is kept here: one event for all of it is due.
    sum_up: Option<Truncated>,
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
        self.answer = None;
        if let Some(sum_up) = &mut self.sum_up {
            sum_up.until = sum_up.until.max(notice.id);
        } else if self.notices.len() >= notices_max {
            self.sum_up(notice.id);
        } else {
            self.notices.push(notice);
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
        let before = self.sum_up.unwrap_or(Truncated { from, until });
        self.sum_up = Some(Truncated {
            from: from.min(before.from),
            until: until.max(before.until),
        });
    }

    /// From where a reader must resume to get everything that is held; `place` if nothing before it is.
    pub(super) fn from(&self, place: StreamId) -> StreamId {
        let first = self.notices.iter().map(|notice| notice.id.previous()).min();
        let owed = self.sum_up.map(|sum_up| sum_up.from);
        first.into_iter().chain(owed).fold(place, StreamId::min)
    }

    /// Waits until some of it is shown.
    pub(super) fn poll_shown(&mut self, visibility: &Visibility, context: &mut Context<'_>) -> Poll<Released> {
        loop {
            let answer = self.answer.get_or_insert_with(|| {
                visibility.wish(match self.sum_up {
                    Some(Truncated { until, .. }) => Wish::All(self.epoch, until),
                    None => Wish::Any(
                        self.epoch,
                        self.notices.iter().map(|notice| published(notice)).collect(),
                    ),
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

    fn release(&mut self, look: &Look) -> Released {
        if self.sum_up.is_some() {
            self.sum_up = None;
            return Released {
                has_truncated: true,
                ..Released::default()
            };
        }
        let notices = self
            .notices
            .extract_if(.., |notice| look.shows(self.epoch, published(notice)));
        Released {
            notices: notices.collect(),
            has_truncated: false,
        }
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
    use super::*;
    use crate::core::snapshot::Snapshot;

    const EPOCH: EpochId = EpochId(1);

    fn at(ms: u64) -> StreamId {
        StreamId { ms, seq: 1 }
    }

    fn held(changes: &[(u64, u32)], notices_max: usize) -> Held {
        let mut held = Held::new(EPOCH);
        for (ms, xid) in changes {
            let notice = Notice {
                id: at(*ms),
                xid: *xid,
                ..Notice::default()
            };
            held.hold(Arc::new(notice), notices_max);
        }
        held
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
        let mut held = held(&[(4, 100), (6, 101), (7, 102), (8, 103)], 2);
        let sum_up = Truncated {
            from: at(4).previous(),
            until: at(8),
        };
        assert_eq!((held.sum_up, held.notices.len()), (Some(sum_up), 0));
        assert_eq!(held.from(at(9)), sum_up.from);
        assert!(held.release(&look("104:104:")).has_truncated && held.is_empty());
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
