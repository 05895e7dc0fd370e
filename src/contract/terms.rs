//! Terms: which session of a publisher wrote what a reader has received.
//!
//! Readers receive entries before Redis has them on disk, and before a standby has them. When servers are set back, a
//! reader's position can therefore be of a history that no server has any more. Each session of a publisher is a term. A
//! term has a random identity, the `writer` in the checkpoint, and a number. When the next session begins, the stream ID
//! at which the term ended is recorded in the same step. A position is stored with the term in which it was received. It
//! is valid only if that term is known and did not end before it, as with the leader epochs of Kafka (KIP-101, KIP-279).

use std::fmt;
use std::str::FromStr;

use super::checkpoint::View;
use crate::core::position::{StreamId, TermId};

/// Ended terms that are kept. A reader that missed more sessions gets a reset.
pub const KEPT_MAX: &str = "4096";

/// A term that has ended; in Redis a field of a hash, named by the term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedTerm {
    /// Counts terms of this Redis, from 1. Terms of lost histories may have the same number.
    pub number: u64,
    /// The stream ID of its last entry, at which the next term begins.
    pub end: StreamId,
}

impl fmt::Display for EndedTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.end)
    }
}

/// A text that is no ended term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an ended term of the form <number> <stream ID>")]
pub struct ParseEndedTermError;

impl FromStr for EndedTerm {
    type Err = ParseEndedTermError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (number, end) = text.split_once(' ')?;
            Some(Self {
                number: number.parse().ok()?,
                end: end.parse().ok()?,
            })
        };
        parse().ok_or(ParseEndedTermError)
    }
}

/// Whether everything up to a position is in the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// It is.
    Valid,
    /// The streams are not that far: this server lags, or was set back.
    NotReached,
    /// The term is unknown: it was lost, was dropped as too old, or this server lags.
    Unknown,
    /// The term ended before the position: servers were set back.
    Lost,
}

/// Checks a position of the current epoch that was received in a term, against what is recorded of that term.
pub fn verify(term: TermId, position: StreamId, view: &View, ended: Option<EndedTerm>) -> Continuity {
    match ended {
        _ if term == view.term && position <= view.position => Continuity::Valid,
        _ if term == view.term => Continuity::NotReached,
        Some(ended) if position <= ended.end => Continuity::Valid,
        Some(_) => Continuity::Lost,
        None if position > view.position => Continuity::NotReached,
        None => Continuity::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::core::position::EpochId;

    proptest! {
        #[test]
        fn ended_term_reads_as_written(number in any::<u64>(), ms in any::<u64>(), seq in any::<u64>()) {
            let ended = EndedTerm { number, end: StreamId { ms, seq } };
            prop_assert_eq!(ended.to_string().parse(), Ok(ended));
        }

        #[test]
        fn position_is_valid_only_if_all_before_it_is_history(steps in proptest::collection::vec(steps(), 1..60)) {
            let mut model = Model::default();
            let mut cursors: Vec<(TermId, StreamId, Vec<u64>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Session => model.begin_session(),
                    Step::Write(gap) => model.write(gap),
                    Step::Restore(index) => model.restore(index),
                    Step::Poll(index) => cursors.extend(model.poll(index)),
                }
                for (term, position, seen) in &cursors {
                    let is_history = model.now.seen_until(*position) == *seen && *position <= model.now.position;
                    let verdict = verify(*term, *position, &model.now.view(), model.now.ended.get(term).copied());
                    let is_known = *term == model.now.term || model.now.ended.contains_key(term);
                    prop_assert_eq!(verdict == Continuity::Valid, is_history && is_known, "{:?} {:?}", verdict, step);
                }
            }
        }
    }

    #[test]
    fn malformed_ended_terms_are_refused() {
        for text in ["", "1", "1 2", "x 1-1", "1 1-1 2"] {
            assert_eq!(text.parse::<EndedTerm>(), Err(ParseEndedTermError), "{text}");
        }
    }

    /// What happens to the servers.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A new session of a publisher.
        Session,
        /// The session writes an entry, so far behind the last one.
        Write(u64),
        /// The servers are set back to an earlier moment.
        Restore(prop::sample::Index),
        /// A reader receives entries up to one of them, or up to the checkpoint's position.
        Poll(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Session),
            4 => (1..3_u64).prop_map(Step::Write),
            1 => any::<prop::sample::Index>().prop_map(Step::Restore),
            2 => any::<prop::sample::Index>().prop_map(Step::Poll),
        ]
    }

    /// What Redis holds.
    #[derive(Debug, Clone, Default)]
    struct State {
        /// Entries, each with what makes it this one and no other at the same position.
        entries: Vec<(StreamId, u64)>,
        position: StreamId,
        term: TermId,
        number: u64,
        ended: HashMap<TermId, EndedTerm>,
        /// A session that was there before a restore does not write after it.
        has_session: bool,
    }

    impl State {
        fn view(&self) -> View {
            View {
                epoch: EpochId(1),
                base: 0,
                position: self.position,
                published: self.position,
                term: self.term,
                timeline: 1,
            }
        }

        fn seen_until(&self, position: StreamId) -> Vec<u64> {
            let until = self.entries.iter().take_while(|(id, _)| *id <= position);
            until.map(|(_, identity)| *identity).collect()
        }
    }

    #[derive(Debug, Default)]
    struct Model {
        now: State,
        states: Vec<State>,
        /// Makes entries and terms unique over all histories.
        count: u64,
    }

    impl Model {
        /// As the script `term.lua`.
        fn begin_session(&mut self) {
            self.count += 1;
            let ended = EndedTerm {
                number: self.now.number,
                end: self.now.position,
            };
            self.now.ended.insert(self.now.term, ended);
            self.now.term = TermId(self.count);
            self.now.number += 1;
            self.now.has_session = true;
            self.states.push(self.now.clone());
        }

        fn write(&mut self, gap: u64) {
            if !self.now.has_session {
                self.begin_session();
            }
            self.count += 1;
            self.now.position.ms += gap;
            self.now.entries.push((self.now.position, self.count));
            self.states.push(self.now.clone());
        }

        fn restore(&mut self, index: prop::sample::Index) {
            if !self.states.is_empty() {
                self.now = State {
                    has_session: false,
                    ..index.get(&self.states).clone()
                };
            }
        }

        fn poll(&self, index: prop::sample::Index) -> Option<(TermId, StreamId, Vec<u64>)> {
            let ids: Vec<StreamId> = self
                .now
                .entries
                .iter()
                .map(|(id, _)| *id)
                .chain([self.now.position])
                .collect();
            let position = ids[index.index(ids.len())];
            Some((self.now.term, position, self.now.seen_until(position)))
        }
    }
}
