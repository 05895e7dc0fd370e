//! Writers that commit whatever happens: single rows, transactions of all sizes, updates, deletes, rollbacks,
//! savepoints, transactions over two tenants.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::random::Random;
use crate::support::try_connect;

/// A tenant with one web user, who sends, and two mobile users, who receive.
#[derive(Debug, Clone)]
pub(super) struct Office {
    pub(super) tenant: String,
    pub(super) sender: Uuid,
    pub(super) recipients: [Uuid; 2],
}

/// The offices so far.
pub(super) type Offices = Arc<Mutex<Vec<Office>>>;

pub(super) struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Writers {
    pub(super) fn start(url: &str, offices: &Offices, random: &mut Random, pause_ms: usize) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let mut writer = Writer {
                offices: offices.clone(),
                random: Random::new(random.next()),
                mine: Vec::new(),
                number: 0,
            };
            let (url, stop, committed) = (url.to_owned(), stop.clone(), committed.clone());
            tasks.spawn(async move {
                let mut psql = None;
                while !stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(writer.random.millis(1, 2 * pause_ms)).await;
                    let client = match psql.take() {
                        Some(client) => client,
                        None => match try_connect(&url).await {
                            Some(client) => client,
                            None => continue,
                        },
                    };
                    // What became of a transaction whose connection broke, the log tells.
                    let script = writer.script();
                    if tokio::time::timeout(Duration::from_secs(20), client.batch_execute(&script))
                        .await
                        .is_ok_and(|result| result.is_ok())
                    {
                        committed.fetch_add(1, Ordering::Relaxed);
                        psql = Some(client);
                    }
                }
            });
        }
        Self { tasks, stop, committed }
    }

    /// Scripts that were executed to their end.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    pub(super) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        self.committed.load(Ordering::Relaxed)
    }
}

struct Writer {
    offices: Offices,
    random: Random,
    /// Rows to update and delete, by tenant. Nobody else touches them, so that writers never wait for each other.
    mine: Vec<(String, Uuid)>,
    number: u64,
}

impl Writer {
    fn office(&mut self) -> Office {
        let offices = self.offices.lock().unwrap();
        let index = self.random.below(offices.len());
        offices[index].clone()
    }

    fn script(&mut self) -> String {
        let mut sql = String::new();
        match self.random.below(20) {
            0..8 => self.insert(&mut sql),
            8..11 => self.update(&mut sql),
            11 => self.delete(&mut sql),
            12 => {
                sql += "BEGIN; ";
                self.insert(&mut sql);
                sql += "SAVEPOINT one; ";
                self.insert_many(&mut sql, 20);
                sql += "ROLLBACK TO one; ";
                self.insert(&mut sql);
                sql += "SAVEPOINT two; ";
                self.update(&mut sql);
                sql += "RELEASE two; COMMIT";
            }
            13 => {
                sql += "BEGIN; ";
                self.insert_many(&mut sql, 30);
                sql += "ROLLBACK";
            }
            14..17 => {
                sql += "BEGIN; ";
                for _ in 0..2 + self.random.below(4) {
                    self.insert(&mut sql);
                    self.update(&mut sql);
                }
                sql += "COMMIT";
            }
            17 => sql += "SELECT pg_logical_emit_message(false, 'test', 'no transaction')",
            18 => self.insert_many(&mut sql, 40),
            // Several batches, so that faults strike inside of a transaction.
            _ if self.random.one_in(8) => self.insert_many(&mut sql, 600),
            _ => {
                sql += "BEGIN; ";
                self.insert_many(&mut sql, 15);
                self.delete(&mut sql);
                self.insert_many(&mut sql, 15);
                sql += "COMMIT";
            }
        }
        sql
    }

    fn insert(&mut self, sql: &mut String) {
        let office = self.office();
        let id = Uuid::new_v4();
        self.number += 1;
        let recipient = office.recipients[self.random.below(2)];
        let _ = write!(
            sql,
            "INSERT INTO tenant_{}.messages (id, sender_id, recipient_id, content) VALUES ('{id}', '{}', '{recipient}', \
             'number {}'); ",
            office.tenant, office.sender, self.number
        );
        // Rows of a transaction that is rolled back match nothing later, which does no harm.
        if self.mine.len() < 200 {
            self.mine.push((office.tenant, id));
        }
    }

    fn insert_many(&mut self, sql: &mut String, most: usize) {
        let office = self.office();
        let recipient = office.recipients[self.random.below(2)];
        let rows = most / 2 + self.random.below(most);
        let _ = write!(
            sql,
            "INSERT INTO tenant_{}.messages (sender_id, recipient_id, content) \
             SELECT '{}', '{recipient}', 'row ' || n FROM generate_series(1, {rows}) n; ",
            office.tenant, office.sender
        );
    }

    fn update(&mut self, sql: &mut String) {
        let Some((tenant, id)) = self.any_of_mine() else { return };
        self.number += 1;
        let _ = write!(
            sql,
            "UPDATE tenant_{tenant}.messages SET content = 'changed {}' WHERE id = '{id}'; ",
            self.number
        );
    }

    fn delete(&mut self, sql: &mut String) {
        let Some((tenant, id)) = self.any_of_mine() else { return };
        self.mine.retain(|(_, other)| *other != id);
        let _ = write!(sql, "DELETE FROM tenant_{tenant}.messages WHERE id = '{id}'; ");
    }

    fn any_of_mine(&mut self) -> Option<(String, Uuid)> {
        let count = self.mine.len();
        (count > 0).then(|| self.mine[self.random.below(count)].clone())
    }
}
