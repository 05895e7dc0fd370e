//! What became of a batch, by the replies of Redis. Pure: the connection reads the replies.
//!
//! [`Replies`] is a queue of the replies that Redis still owes, in the order of the commands on the wire. Each reply is
//! matched with the one at the front, so that none is interpreted by its number.

use std::collections::{HashMap, VecDeque};
use std::io;

use super::batch::{Batch, Purpose, WrittenTail};
use crate::contract::stream_name::Target;
use crate::core::resp::{Reply, RespError};

/// Fewest bytes of a reply to a command inside `MULTI`: `+QUEUED`, CR and LF. Errors are longer.
const QUEUED_BYTES: usize = 9;

/// A batch that Redis holds, except for what is listed.
#[derive(Debug)]
pub struct WrittenBatch {
    pub batch: Batch,
    /// Streams that do not exist: they must be recreated with a `reset` entry.
    pub missing: Vec<Target>,
    /// Streams that refused an entry, with the error.
    pub failed: Vec<(Target, String)>,
    /// Streams that had lost entries and now hold a `reset` entry.
    pub recreated: Vec<Target>,
    /// Other keys of tenants that are of the wrong type, with the error.
    pub wrong_type: Vec<(String, String)>,
    /// The live stream refused its entry; it must be recreated, which its readers notice.
    pub live_failed: Option<String>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Outcome {
    Written(WrittenBatch),
    /// Redis holds nothing of the batch and cannot take it now (OOM, READONLY, MISCONF, LOADING); try again later.
    Refused {
        batch: Batch,
        cause: String,
    },
    /// Redis holds nothing of the batch, because keys of tenants are not allowed (NOPERM), and only such keys.
    Denied {
        /// The batch without the commands for those keys.
        batch: Batch,
        /// Streams, with the error.
        streams: HashMap<Target, String>,
        /// Other keys, with the error.
        keys: HashMap<String, String>,
    },
}

/// Why the connection must not be used any more.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another engine became the writer, or another client wrote to the checkpoint. Redis holds nothing of the batch.
    #[error("another writer has taken over the checkpoint")]
    Fenced,
    /// Redis may hold parts of a batch, and it is unknown which: only a new epoch is safe.
    #[error("Redis did not run a transaction atomically: {0}")]
    TornTransaction(String),
    /// The socket or the protocol failed; whether Redis holds the batch is unknown until the checkpoint is read.
    #[error("connection to Redis lost")]
    Io(#[from] io::Error),
}

impl From<RespError> for PublishError {
    fn from(error: RespError) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// The code of an error reply, its first word. An `EXECABORT` that names the error behind it has the code of that one.
pub fn error_code(error: &str) -> &str {
    let error = error
        .strip_prefix("EXECABORT Transaction discarded because of: ")
        .unwrap_or(error);
    error.split_once(' ').map_or(error, |(code, _)| code)
}

/// A reply that Redis owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Multi,
    /// Replies to this many commands between `MULTI` and `EXEC`.
    Queued(usize),
    Exec,
    /// The reply to a cut behind `EXEC`.
    Cut,
    Discard,
    Watch,
    /// The checkpoint's writer, which ends an exchange.
    Writer,
}

/// The replies that Redis owes, and what those read so far say.
#[derive(Debug, Default)]
pub(super) struct Replies {
    expected: VecDeque<Expected>,
    /// Replies read to commands between `MULTI` and `EXEC`.
    queued: usize,
    refusals: Vec<(usize, String)>,
    result: Option<Reply>,
    cuts: Vec<Reply>,
}

/// All replies to one transaction, run or discarded, and to the guard of the next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    /// The commands that Redis refused to queue: their indexes and errors.
    pub(super) refusals: Vec<(usize, String)>,
    /// The reply to `EXEC`; `None` when the transaction was discarded.
    pub(super) result: Option<Reply>,
    /// The replies to the cuts.
    pub(super) cuts: Vec<Reply>,
    /// The checkpoint's writer as Redis holds it.
    pub(super) writer: Reply,
}

impl Replies {
    /// Expects the reply to `MULTI`.
    pub(super) fn expect_multi(&mut self) {
        self.expected.extend([Expected::Multi, Expected::Queued(0)]);
    }

    /// Expects replies to this many further commands of the transaction begun last.
    pub(super) fn expect_queued(&mut self, commands: usize) {
        if let Some(Expected::Queued(left)) = self.expected.back_mut() {
            *left += commands;
        } else {
            self.expected.push_back(Expected::Queued(commands));
        }
    }

    /// Expects the replies to `EXEC`, the cuts behind it, and the next guard.
    pub(super) fn expect_exec(&mut self, cuts: usize) {
        self.expected.push_back(Expected::Exec);
        self.expected.extend(std::iter::repeat_n(Expected::Cut, cuts));
        self.expected.extend([Expected::Watch, Expected::Writer]);
    }

    /// Expects the replies to `DISCARD` and the next guard.
    pub(super) fn expect_discard(&mut self) {
        self.expected
            .extend([Expected::Discard, Expected::Watch, Expected::Writer]);
    }

    /// Whether an exchange is under way. The begin of a transaction without its `EXEC` or `DISCARD` is none.
    pub(super) fn has_exchange(&self) -> bool {
        self.expected.contains(&Expected::Writer)
    }

    /// Bytes that must still arrive before the exchange under way can end, at least.
    pub(super) fn bytes_min(&self) -> usize {
        let queued = self.expected.iter().take(2).find_map(|expected| match expected {
            Expected::Queued(left) => Some(*left),
            _ => None,
        });
        match self.expected.front() {
            Some(Expected::Multi | Expected::Queued(_)) => queued.unwrap_or(0) * QUEUED_BYTES,
            _ => 0,
        }
    }

    /// Interprets the next reply; gives the exchange that it ends.
    pub(super) fn receive(&mut self, reply: Reply) -> Result<Option<Exchange>, PublishError> {
        // The most frequent reply by far.
        if let Some(Expected::Queued(left @ 1..)) = self.expected.front_mut() {
            *left -= 1;
            match reply {
                Reply::Queued => {}
                Reply::Error(text) => self.refusals.push((self.queued, text)),
                other => return Err(torn("a queued command", &other)),
            }
            self.queued += 1;
            return Ok(None);
        }
        if let Some(Expected::Queued(0)) = self.expected.front() {
            self.expected.pop_front();
        }
        match (self.expected.pop_front(), reply) {
            (Some(Expected::Multi), Reply::Status(_)) => {
                (self.queued, self.result) = (0, None);
                self.refusals.clear();
                self.cuts.clear();
            }
            // Without MULTI the commands that follow run one by one.
            (Some(Expected::Multi), other) => return Err(torn("MULTI", &other)),
            (Some(Expected::Exec), reply) => self.result = Some(reply),
            (Some(Expected::Cut), reply) => self.cuts.push(reply),
            (Some(Expected::Discard | Expected::Watch), Reply::Status(_)) => {}
            (Some(Expected::Discard), other) => return Err(torn("DISCARD", &other)),
            (Some(Expected::Watch), other) => {
                return Err(PublishError::Io(io::Error::other(format!(
                    "Redis answered WATCH with {other:?}"
                ))));
            }
            (Some(Expected::Writer), writer) => {
                return Ok(Some(Exchange {
                    refusals: std::mem::take(&mut self.refusals),
                    result: self.result.take(),
                    cuts: std::mem::take(&mut self.cuts),
                    writer,
                }));
            }
            (Some(Expected::Queued(_)) | None, other) => {
                return Err(PublishError::Io(io::Error::other(format!(
                    "unexpected reply {other:?}"
                ))));
            }
        }
        Ok(None)
    }
}

fn torn(command: &str, reply: &Reply) -> PublishError {
    PublishError::TornTransaction(format!("Redis answered {command} with {reply:?}"))
}

/// What became of a batch whose transaction was run.
pub(super) fn conclude(
    batch: Batch,
    written: &WrittenTail,
    exchange: Exchange,
    is_writer: bool,
) -> Result<Outcome, PublishError> {
    let Exchange { refusals, result, .. } = exchange;
    if let Some((_, cause)) = refusals.first() {
        if !matches!(&result, Some(Reply::Error(text)) if text.starts_with("EXECABORT")) {
            return Err(PublishError::TornTransaction(format!(
                "Redis refused a command ({cause}), but answered EXEC with {result:?}"
            )));
        }
        if !is_writer {
            return Err(PublishError::Fenced);
        }
        return Ok(refused_outcome(batch, refusals));
    }
    match result {
        Some(Reply::Array(results)) => {
            let outcome = written_outcome(batch, written, results)?;
            if is_writer {
                Ok(outcome)
            } else {
                Err(PublishError::Fenced)
            }
        }
        Some(Reply::Nil) => Err(PublishError::Fenced),
        // Redis may also refuse the whole transaction at EXEC (OOM, READONLY after a failover).
        Some(Reply::Error(cause)) if !cause.starts_with("ERR EXEC without MULTI") => {
            if is_writer {
                Ok(Outcome::Refused { batch, cause })
            } else {
                Err(PublishError::Fenced)
            }
        }
        other => Err(PublishError::TornTransaction(format!(
            "Redis answered EXEC with {other:?}"
        ))),
    }
}

/// What to do with a batch of which Redis refused commands. When an ACL forbids tenants' keys alone, the rest goes on
/// without them. Whatever else is refused is no tenant's fault: the whole batch waits.
fn refused_outcome(mut batch: Batch, refusals: Vec<(usize, String)>) -> Outcome {
    let (mut streams, mut keys) = (HashMap::new(), HashMap::new());
    for (index, cause) in refusals {
        let purpose = batch.purpose(index).filter(|_| error_code(&cause) == "NOPERM");
        match purpose {
            Some(
                Purpose::Entry(target)
                | Purpose::TrimPoint(target)
                | Purpose::Create(target)
                | Purpose::Recreate(target),
            ) => {
                streams.entry(target.clone()).or_insert(cause);
            }
            Some(Purpose::Tenant { key, .. }) => {
                keys.entry(key.clone()).or_insert(cause);
            }
            Some(Purpose::Other) | None => return Outcome::Refused { batch, cause },
        }
    }
    batch.remove(|purpose| match purpose {
        Purpose::Entry(target) | Purpose::TrimPoint(target) | Purpose::Create(target) | Purpose::Recreate(target) => {
            streams.contains_key(target)
        }
        Purpose::Tenant { key, .. } => keys.contains_key(key),
        Purpose::Other => false,
    });
    Outcome::Denied { batch, streams, keys }
}

/// What became of a batch whose commands Redis ran, by the reply to each.
fn written_outcome(batch: Batch, written: &WrittenTail, results: Vec<Reply>) -> Result<Outcome, PublishError> {
    let (mut missing, mut failed, mut live_failed) = (Vec::new(), Vec::new(), None);
    let (mut recreated, mut wrong_type) = (Vec::new(), Vec::new());
    for (index, result) in results.into_iter().enumerate() {
        match (batch.purpose(index), result) {
            (Some(Purpose::Entry(target)), Reply::Nil) if !missing.contains(target) => missing.push(target.clone()),
            (Some(Purpose::Entry(target) | Purpose::TrimPoint(target)), Reply::Error(text)) => {
                failed.push((target.clone(), text))
            }
            // Redis refuses a creation as too old when the stream exists and holds later entries: that is as good.
            (Some(Purpose::Create(target)), Reply::Error(text)) if error_code(&text) == "WRONGTYPE" => {
                failed.push((target.clone(), text));
            }
            (Some(Purpose::Recreate(target)), Reply::Error(text)) => failed.push((target.clone(), text)),
            (Some(Purpose::Recreate(target)), _) => recreated.push(target.clone()),
            (Some(Purpose::Tenant { key, .. }), Reply::Error(text)) => wrong_type.push((key.clone(), text)),
            (None, Reply::Error(text)) if written.live_index == Some(index) => live_failed = Some(text),
            (None | Some(Purpose::Other), Reply::Error(text)) => {
                return Err(PublishError::TornTransaction(format!(
                    "command {index} of a transaction failed: {text}"
                )));
            }
            _ => {}
        }
    }
    Ok(Outcome::Written(WrittenBatch {
        batch,
        missing,
        failed,
        recreated,
        wrong_type,
        live_failed,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::keys::Keys;
    use crate::core::position::StreamId;

    fn ok() -> Reply {
        Reply::Status("OK".into())
    }

    fn error(text: &str) -> Reply {
        Reply::Error(text.into())
    }

    fn writer() -> Reply {
        Reply::Bulk("me".into())
    }

    /// A transaction of this many commands, with its `EXEC`.
    fn sent(commands: usize) -> Replies {
        let mut replies = Replies::default();
        replies.expect_multi();
        replies.expect_queued(commands);
        replies.expect_exec(0);
        replies
    }

    /// Reads all of these; only the last may end the exchange.
    fn receive_all(replies: &mut Replies, all: Vec<Reply>) -> Result<Option<Exchange>, PublishError> {
        let last = all.len() - 1;
        for (index, reply) in all.into_iter().enumerate() {
            let ended = replies.receive(reply)?;
            if index == last {
                return Ok(ended);
            }
            assert_eq!(ended, None, "reply {index}");
        }
        Ok(None)
    }

    /// A batch with one entry and one command that must succeed.
    fn batch() -> (Batch, Target) {
        let changes = Target::Changes("acme".into());
        let mut batch = Batch::new(Keys::new("posduif"));
        batch.create_stream(changes.clone(), StreamId { ms: 1, seq: 1 }, 0);
        batch.other(&[b"PING"]);
        (batch, changes)
    }

    fn written(live_index: Option<usize>) -> WrittenTail {
        WrittenTail {
            commands: 3,
            live: StreamId::ZERO,
            live_index,
        }
    }

    fn executed(result: Reply, refusals: Vec<(usize, String)>) -> Exchange {
        Exchange {
            refusals,
            result: Some(result),
            cuts: Vec::new(),
            writer: writer(),
        }
    }

    #[test]
    fn exchange_ends_with_the_writer() {
        let mut replies = sent(2);
        let results = Reply::Array(vec![Reply::Integer(1), Reply::Nil]);
        let all = vec![ok(), Reply::Queued, Reply::Queued, results.clone(), ok()];
        assert_eq!(receive_all(&mut replies, all).unwrap(), None);
        assert!(replies.has_exchange());
        let ended = replies.receive(writer()).unwrap().unwrap();
        assert_eq!(ended, executed(results, Vec::new()));
        assert!(!replies.has_exchange() && replies.expected.is_empty());
    }

    #[test]
    fn transaction_without_commands_is_read() {
        let mut replies = sent(0);
        let all = vec![ok(), Reply::Array(Vec::new()), ok(), writer()];
        assert!(receive_all(&mut replies, all).unwrap().is_some());
    }

    #[test]
    fn refused_commands_and_replies_to_cuts_are_kept() {
        let mut replies = sent(3);
        let all = vec![
            ok(),
            Reply::Queued,
            error("OOM a"),
            error("OOM b"),
            error("EXECABORT x"),
            ok(),
            writer(),
        ];
        let ended = receive_all(&mut replies, all).unwrap().unwrap();
        assert_eq!(ended.refusals, [(1, "OOM a".into()), (2, "OOM b".into())]);
        let mut replies = Replies::default();
        replies.expect_multi();
        replies.expect_exec(2);
        let cut = || Reply::Integer(7);
        let all = vec![ok(), error("EXECABORT x"), cut(), cut(), ok(), writer()];
        let ended = receive_all(&mut replies, all).unwrap().unwrap();
        assert_eq!(ended.cuts, [cut(), cut()]);
    }

    #[test]
    fn prefix_continues_in_the_next_exchange() {
        let mut replies = sent(1);
        replies.expect_multi();
        replies.expect_queued(2);
        let all = vec![ok(), error("OOM"), error("EXECABORT x"), ok(), writer()];
        let first = receive_all(&mut replies, all).unwrap().unwrap();
        assert!(!first.refusals.is_empty());
        assert!(!replies.has_exchange(), "a prefix alone is no exchange");
        replies.expect_queued(1);
        replies.expect_exec(0);
        let results = Reply::Array(Vec::new());
        let all = vec![
            ok(),
            Reply::Queued,
            Reply::Queued,
            Reply::Queued,
            results.clone(),
            ok(),
            writer(),
        ];
        let second = receive_all(&mut replies, all).unwrap().unwrap();
        assert_eq!(
            second,
            executed(results, Vec::new()),
            "the first refusal is not carried over"
        );
    }

    #[test]
    fn discarded_prefix_has_no_result() {
        let mut replies = Replies::default();
        replies.expect_multi();
        replies.expect_queued(2);
        replies.expect_discard();
        let all = vec![ok(), Reply::Queued, error("OOM"), ok(), ok(), writer()];
        let ended = receive_all(&mut replies, all).unwrap().unwrap();
        assert_eq!(ended.result, None);
        assert!(!replies.has_exchange());
    }

    #[test]
    fn unexpected_replies_tear_the_transaction() {
        for all in [vec![error("ERR no")], vec![ok(), Reply::Integer(1)], vec![ok(), ok()]] {
            let failure = receive_all(&mut sent(1), all).unwrap_err();
            assert!(matches!(failure, PublishError::TornTransaction(_)), "{failure:?}");
        }
        let mut replies = Replies::default();
        replies.expect_multi();
        replies.expect_discard();
        let failure = receive_all(&mut replies, vec![ok(), error("ERR DISCARD without MULTI")]).unwrap_err();
        assert!(matches!(failure, PublishError::TornTransaction(_)));
        let all = vec![ok(), Reply::Queued, Reply::Array(Vec::new()), error("ERR WATCH")];
        assert!(matches!(
            receive_all(&mut sent(1), all).unwrap_err(),
            PublishError::Io(_)
        ));
    }

    #[test]
    fn bytes_are_counted_for_the_exchange_in_front_only() {
        let mut replies = sent(3);
        replies.expect_multi();
        replies.expect_queued(1000);
        assert_eq!(replies.bytes_min(), 3 * QUEUED_BYTES);
        receive_all(&mut replies, vec![ok(), Reply::Queued]).unwrap();
        assert_eq!(replies.bytes_min(), 2 * QUEUED_BYTES);
        receive_all(&mut replies, vec![Reply::Queued, Reply::Queued]).unwrap();
        assert_eq!(replies.bytes_min(), 0, "EXEC is awaited");
        replies.receive(Reply::Array(Vec::new())).unwrap();
        assert_eq!(replies.bytes_min(), 0);
    }

    #[test]
    fn error_code_is_the_first_word_or_that_of_the_abort() {
        assert_eq!(error_code("NOPERM no permissions"), "NOPERM");
        assert_eq!(error_code("OOM"), "OOM");
        let aborted =
            "EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.";
        assert_eq!(error_code(aborted), "READONLY");
        assert_eq!(
            error_code("EXECABORT Transaction discarded because of previous errors."),
            "EXECABORT"
        );
    }

    #[test]
    fn refused_command_refuses_the_batch_unless_only_tenants_keys_are() {
        let abort = || error("EXECABORT Transaction discarded because of previous errors.");
        let outcome = |refusals: &[(usize, &str)], result, is_writer| {
            let refusals = refusals.iter().map(|(index, text)| (*index, (*text).to_owned()));
            let exchange = executed(result, refusals.collect());
            conclude(batch().0, &written(None), exchange, is_writer)
        };
        assert!(matches!(
            outcome(&[(0, "OOM x")], abort(), true),
            Ok(Outcome::Refused { .. })
        ));
        assert!(matches!(
            outcome(&[(0, "OOM x")], abort(), false),
            Err(PublishError::Fenced)
        ));
        let denied = outcome(&[(0, "NOPERM x")], abort(), true).unwrap();
        let Outcome::Denied {
            batch: rest,
            streams,
            keys,
        } = denied
        else {
            panic!("{denied:?}");
        };
        assert_eq!((rest.command_count(), keys.len()), (1, 0));
        assert_eq!(streams, HashMap::from([(batch().1, "NOPERM x".to_owned())]));
        // What belongs to no tenant cannot be left out, whatever else is refused: in the batch, or behind it.
        for index in [1, 7] {
            assert!(matches!(
                outcome(&[(0, "NOPERM x"), (index, "NOPERM y")], abort(), true),
                Ok(Outcome::Refused { cause, .. }) if cause == "NOPERM y"
            ));
        }
        let executed = Reply::Array(Vec::new());
        assert!(matches!(
            outcome(&[(0, "OOM x")], executed, true),
            Err(PublishError::TornTransaction(_))
        ));
    }

    #[test]
    fn all_commands_of_a_denied_stream_are_removed_at_once() {
        let (mut batch, changes) = batch();
        let shared = Target::Shared("acme".into());
        for seq in 2..5 {
            let id = StreamId { ms: 1, seq };
            batch.create_stream(shared.clone(), id, 0);
            batch.recreate_stream(changes.clone(), id, 0);
        }
        let before = batch.commands().0.len();
        let refusals = vec![(0, "NOPERM x".to_owned())];
        let Outcome::Denied { batch, .. } = refused_outcome(batch, refusals) else {
            panic!("not denied");
        };
        let left: Vec<_> = (0..).map_while(|index| batch.purpose(index)).collect();
        let create = Purpose::Create(shared);
        assert_eq!(left, [&Purpose::Other, &create, &create, &create]);
        let commands = String::from_utf8_lossy(batch.commands().0).into_owned();
        assert!(commands.len() < before && !commands.contains(":changes"), "{commands}");
        assert_eq!(commands.matches("XADD").count(), 3);
    }

    #[test]
    fn exec_is_fenced_refused_or_torn() {
        let outcome = |result, is_writer| conclude(batch().0, &written(None), executed(result, Vec::new()), is_writer);
        assert!(matches!(outcome(Reply::Nil, true), Err(PublishError::Fenced)));
        assert!(matches!(outcome(error("OOM x"), true), Ok(Outcome::Refused { .. })));
        assert!(matches!(outcome(error("OOM x"), false), Err(PublishError::Fenced)));
        for result in [error("ERR EXEC without MULTI"), Reply::Integer(1)] {
            assert!(matches!(outcome(result, true), Err(PublishError::TornTransaction(_))));
        }
        let all_done = || Reply::Array(vec![Reply::Bulk("1-1".into()), ok(), Reply::Integer(0)]);
        assert!(matches!(outcome(all_done(), false), Err(PublishError::Fenced)));
        assert!(matches!(outcome(all_done(), true), Ok(Outcome::Written(_))));
    }

    #[test]
    fn failed_commands_are_reported_by_their_purpose() {
        let outcome = |results: Vec<Reply>| {
            let exchange = executed(Reply::Array(results), Vec::new());
            conclude(batch().0, &written(Some(2)), exchange, true)
        };
        let (_, changes) = batch();
        let too_old = error("ERR The ID specified in XADD is equal or smaller");
        let Ok(Outcome::Written(WrittenBatch {
            failed, live_failed, ..
        })) = outcome(vec![too_old, ok(), error("ERR live")])
        else {
            panic!("not written");
        };
        assert_eq!((failed, live_failed), (Vec::new(), Some("ERR live".into())));
        let Ok(Outcome::Written(WrittenBatch { failed, .. })) = outcome(vec![error("WRONGTYPE x"), ok(), ok()]) else {
            panic!("not written");
        };
        assert_eq!(failed, [(changes, "WRONGTYPE x".into())]);
        for results in [vec![ok(), error("ERR x"), ok()], vec![ok(), ok(), ok(), error("ERR x")]] {
            assert!(matches!(outcome(results), Err(PublishError::TornTransaction(_))));
        }
    }
}
