//! What each stream must hold, from a second slot that is read bit by bit, so that neither WAL nor memory piles up.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use posduif::contract::keys::Keys;
use posduif::core::position::StreamId;
use postgres_types::PgLsn;
use tokio::sync::watch;

use crate::support::oracle::{Change, Oracle, Transaction};
use crate::support::{Entry, World, try_connect};

/// Changes taken from the slot at once.
const CHANGES: i32 = 5000;

/// An entry, as small as will do for the comparison of millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    id: StreamId,
    /// Of operation, table, row and content.
    hash: u64,
}

impl Mark {
    fn new(id: StreamId, op: &str, table: &str, row: &str, content: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (op, table, row, content).hash(&mut hasher);
        let hash = hasher.finish();
        Self { id, hash }
    }
}

/// The marks of each stream.
pub(super) struct Truth {
    pub(super) streams: BTreeMap<String, Vec<Mark>>,
    pub(super) transactions: u64,
    pub(super) rows: u64,
    end: PgLsn,
}

impl Truth {
    /// Follows the slot until it has come to what is sent.
    pub(super) async fn follow(
        oracle: Oracle,
        url: String,
        keys: Keys,
        mut until: watch::Receiver<Option<PgLsn>>,
    ) -> Self {
        let mut truth = Self {
            streams: BTreeMap::new(),
            transactions: 0,
            rows: 0,
            end: PgLsn::from(0),
        };
        let mut psql = None;
        loop {
            if until.borrow_and_update().is_some_and(|target| truth.end > target) {
                return truth;
            }
            let client = match psql.take() {
                Some(client) => client,
                None => match try_connect(&url).await {
                    Some(client) => client,
                    None => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            // Postgres may be killed or stopped at any moment; then the same is asked again.
            let Ok(transactions) = oracle.peek(&client, Some(CHANGES)).await else {
                continue;
            };
            for transaction in &transactions {
                truth.take(transaction, &keys);
            }
            if transactions.is_empty() || oracle.forget(&client, truth.end).await.is_ok() {
                psql = Some(client);
            }
            let _ = tokio::time::timeout(Duration::from_millis(300), until.changed()).await;
        }
    }

    fn take(&mut self, transaction: &Transaction, keys: &Keys) {
        // After a crash of Postgres the slot goes back a little.
        if transaction.commit.end_lsn <= self.end {
            return;
        }
        self.end = transaction.commit.end_lsn;
        self.transactions += 1;
        for change in &transaction.changes {
            self.rows += 1;
            let Some(tenant) = change.schema.strip_prefix("tenant_") else {
                continue;
            };
            let content = change.column("content");
            let recipient = change.column("recipient_id");
            if !recipient.is_empty() {
                // Readers get the id of a deleted row only.
                let content = if change.op == "delete" { "" } else { content };
                let inbox = self.streams.entry(keys.inbox(tenant, recipient)).or_default();
                inbox.push(mark_of(change, content));
            }
            let changes = self.streams.entry(keys.changes(tenant)).or_default();
            changes.push(mark_of(change, content));
        }
    }
}

fn mark_of(change: &Change, content: &str) -> Mark {
    let id = StreamId::of(change.position, 0);
    Mark::new(id, change.op, &change.table, change.column("id"), content)
}

/// What is wrong with a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deviation {
    pub(super) lost: usize,
    /// There twice, or never committed.
    pub(super) doubled: usize,
    pub(super) out_of_order: usize,
    /// Creations but for the first.
    pub(super) resets: usize,
}

/// Compares a stream in Redis with the truth, and gives the number of its entries too.
pub(super) async fn compare(world: &World, key: &str, expected: &[Mark]) -> (usize, Deviation) {
    let mut found = Vec::with_capacity(expected.len());
    let mut births = 0_usize;
    let mut redis = world.redis().await;
    let mut from = StreamId::ZERO;
    loop {
        let page: Vec<Entry> = World::range(&mut redis, key, from, 2000).await;
        let Some(last) = page.last() else { break };
        from = last.id.next();
        for entry in &page {
            if entry.field("op") == "reset" {
                births += 1;
                continue;
            }
            let row = entry.json(if entry.fields.contains_key("row") { "row" } else { "old" });
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            found.push(Mark::new(
                entry.id,
                entry.field("op"),
                entry.field("table"),
                &text("id"),
                &text("content"),
            ));
        }
    }
    let mut deviation = Deviation {
        resets: births.saturating_sub(1),
        ..Deviation::default()
    };
    if found != expected {
        let mut balance: HashMap<u64, isize> = HashMap::new();
        expected
            .iter()
            .for_each(|mark| *balance.entry(mark.hash).or_default() -= 1);
        found
            .iter()
            .for_each(|mark| *balance.entry(mark.hash).or_default() += 1);
        let sum = |sign: isize| balance.values().map(|value| (value * sign).max(0).unsigned_abs()).sum();
        (deviation.doubled, deviation.lost) = (sum(1), sum(-1));
        deviation.out_of_order = found.windows(2).filter(|pair| pair[1].id <= pair[0].id).count();
        if (deviation.lost, deviation.doubled) == (0, 0) {
            deviation.out_of_order += found
                .iter()
                .zip(expected)
                .filter(|(found, wanted)| found != wanted)
                .count();
        }
    }
    (found.len(), deviation)
}
