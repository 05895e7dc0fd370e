//! The oracle of what was committed: a second slot of the same publication, read by SQL and never confirmed.

use std::collections::HashMap;

use posduif::core::position::{Position, StreamId};
use posduif::decode::pgoutput::{self, Begin, Cell, Commit, Message, Tuple};
use postgres_types::PgLsn;

use super::{Entry, World, connect};

/// The second slot.
pub(crate) struct Oracle {
    url: String,
    slot: String,
    publication: String,
}

/// A committed transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) begin: Begin,
    pub(crate) commit: Commit,
    /// How many changes and messages it has: the last one's ordinal.
    pub(crate) last_ordinal: u64,
    pub(crate) changes: Vec<Change>,
}

/// A change of a row, or a truncated table.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) position: Position,
    pub(crate) op: &'static str,
    pub(crate) schema: String,
    pub(crate) table: String,
    /// The new row, or the old one of a delete; only columns whose value the log has.
    pub(crate) row: HashMap<String, Option<String>>,
}

/// The identity of a stream's entry: ID, operation, table and the row's `id`.
pub(crate) type Outline = (StreamId, String, String, String);

impl Oracle {
    /// Begins to watch. The publication must exist.
    pub(crate) async fn new(world: &World) -> Self {
        let oracle = Self {
            url: world.config.postgres.url.expose().to_owned(),
            slot: format!("{}_oracle", world.config.replication.slot),
            publication: world.config.replication.publication.clone(),
        };
        let create = "SELECT pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
        connect(&oracle.url)
            .await
            .execute(create, &[&oracle.slot])
            .await
            .unwrap();
        oracle
    }

    /// All transactions since it began to watch, in commit order.
    pub(crate) async fn transactions(&self) -> Vec<Transaction> {
        self.peek(&connect(&self.url).await, None).await.unwrap()
    }

    /// The next transactions, about as many as have this number of changes.
    pub(crate) async fn peek(
        &self,
        psql: &tokio_postgres::Client,
        changes: Option<i32>,
    ) -> Result<Vec<Transaction>, tokio_postgres::Error> {
        let peek = "SELECT data FROM pg_logical_slot_peek_binary_changes($1::text::name, NULL, $3, \
                    'proto_version', '1', 'publication_names', $2, 'messages', 'true')";
        let rows = psql.query(peek, &[&self.slot, &self.publication, &changes]).await?;
        let mut relations: HashMap<u32, (String, String, Vec<String>)> = HashMap::new();
        let mut transactions = Vec::new();
        let mut open: Option<(Begin, u64, Vec<Change>)> = None;
        for row in &rows {
            let mut change = |oid: u32, op, tuple: &Tuple<'_>| {
                let (begin, ordinal, changes) = open.as_mut().unwrap();
                *ordinal += 1;
                let (schema, table, columns) = &relations[&oid];
                let text = |cell: &Cell<'_>| match cell {
                    Cell::Null => Some(None),
                    Cell::Text(text) => Some(Some(String::from_utf8(text.to_vec()).unwrap())),
                    Cell::Unchanged | Cell::Binary(_) => None,
                };
                changes.push(Change {
                    position: Position {
                        commit_lsn: begin.final_lsn,
                        ordinal: *ordinal,
                    },
                    op,
                    schema: schema.clone(),
                    table: table.clone(),
                    row: columns
                        .iter()
                        .zip(tuple)
                        .filter_map(|(column, cell)| Some((column.clone(), text(cell)?)))
                        .collect(),
                });
            };
            match pgoutput::decode(row.get(0)).unwrap() {
                Message::Begin(begin) => open = Some((begin, 0, Vec::new())),
                Message::Commit(commit) => {
                    let (begin, last_ordinal, changes) = open.take().unwrap();
                    transactions.push(Transaction {
                        begin,
                        commit,
                        last_ordinal,
                        changes,
                    });
                }
                Message::Relation(relation) => {
                    let columns = relation.columns.iter().map(|column| column.name.to_owned()).collect();
                    let description = (relation.namespace.to_owned(), relation.name.to_owned(), columns);
                    relations.insert(relation.oid, description);
                }
                Message::Insert { relation, new } => change(relation, "insert", &new),
                Message::Update { relation, new, .. } => change(relation, "update", &new),
                Message::Delete { relation, old } => change(relation, "delete", old.tuple()),
                Message::Truncate { relations, .. } => {
                    relations.iter().for_each(|oid| change(*oid, "truncate", &Vec::new()));
                }
                Message::Logical {
                    transactional: true, ..
                } => open.as_mut().unwrap().1 += 1,
                Message::Logical { .. } | Message::Origin { .. } | Message::Type { .. } => {}
            }
        }
        Ok(transactions)
    }

    /// Forgets transactions up to this end.
    pub(crate) async fn forget(&self, psql: &tokio_postgres::Client, end: PgLsn) -> Result<(), tokio_postgres::Error> {
        let advance = "SELECT pg_replication_slot_advance($1::text::name, $2)";
        psql.execute(advance, &[&self.slot, &end]).await.map(|_| ())
    }

    /// What a tenant's stream of all changes must hold beside resets, in an epoch with this base.
    pub(crate) async fn changes(&self, tenant: &str, base: u64) -> Vec<Outline> {
        self.matching(base, |change| change.schema == format!("tenant_{tenant}"))
            .await
    }

    /// What changes that fit must look like in a stream.
    pub(crate) async fn matching(&self, base: u64, fits: impl Fn(&Change) -> bool) -> Vec<Outline> {
        let transactions = self.transactions().await;
        let changes = transactions.iter().flat_map(|transaction| &transaction.changes);
        changes
            .filter(|change| fits(change))
            .map(|change| {
                let id = change.row.get("id").cloned().flatten().unwrap_or_default();
                let (op, table) = (change.op.to_owned(), change.table.clone());
                (StreamId::of(change.position, base), op, table, id)
            })
            .collect()
    }
}

impl Change {
    /// A column's value, empty when it is NULL or the log does not have it.
    pub(crate) fn column(&self, name: &str) -> &str {
        self.row.get(name).and_then(Option::as_deref).unwrap_or_default()
    }
}

/// Entries in the form of the oracle, without resets.
pub(crate) fn outline(entries: &[Entry]) -> Vec<Outline> {
    let changes = entries.iter().filter(|entry| entry.field("op") != "reset");
    changes
        .map(|entry| {
            let row = if entry.fields.contains_key("row") { "row" } else { "old" };
            let id = entry.json(row)["id"].as_str().unwrap_or_default().to_owned();
            (
                entry.id,
                entry.field("op").to_owned(),
                entry.field("table").to_owned(),
                id,
            )
        })
        .collect()
}
