//! The life of rows as it happens: committed, published, durable, then for each reader notified, delivered, acknowledged.
//!
//! The changes come from the streams `changes`, the steps from the journal of this process: those of other processes are not
//! seen.

use std::collections::VecDeque;
use std::sync::Arc;

use postgres_types::PgLsn;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::admin::streams;
use crate::admin::tail::{Change, Seen, Tail};
use crate::config::Config;
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::redis::store::{Error, Store};
use crate::telemetry::journal::{Journal, Step, StepKind, StepReceiver};

/// Changes whose further steps are shown.
const CHANGES_MAX: usize = 1000;

/// Steps that are kept for changes that come after them.
const EARLY_MAX: usize = 1000;

/// Which changes are shown; `None` is any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub table: Option<String>,
    /// `insert`, `update`, `delete` or another name of an operation.
    pub op: Option<String>,
    /// The id of a row.
    pub row: Option<String>,
    /// Steps of this user only.
    pub user: Option<Uuid>,
}

/// What is shown: the name of an event, and its JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    pub event: &'static str,
    pub data: Value,
}

/// A change that was shown.
#[derive(Debug)]
struct Recent {
    id: StreamId,
    tenant: Arc<str>,
    /// Its transaction.
    commit: PgLsn,
    /// µs since 1970.
    commit_ts: Option<i64>,
    is_published: bool,
    is_durable: bool,
}

impl Recent {
    /// What a step means for the change, if anything.
    fn step(&mut self, step: &Step) -> Option<Shown> {
        let (name, reader) = match &step.kind {
            StepKind::Published(end) if !self.is_published && *end > self.commit => {
                self.is_published = true;
                ("published", None)
            }
            StepKind::Durable(end) if !self.is_durable && *end > self.commit => {
                self.is_durable = true;
                ("durable", None)
            }
            StepKind::Reader(reader) if reader.tenant == *self.tenant && reader.progress.covers(self.id) => {
                (reader.progress.as_str(), Some(reader))
            }
            _ => return None,
        };
        Some(Shown {
            event: "step",
            data: json!({
                "id": self.id.to_string(),
                "step": name,
                "device": reader.and_then(|reader| reader.device.as_deref()),
                "user": reader.map(|reader| reader.user),
                // The clocks of two machines may differ.
                "ms": self.commit_ts.map(|commit_ts| (step.at - commit_ts).max(0) as f64 / 1000.0),
            }),
        })
    }
}

/// Follows changes for one reader.
#[derive(Debug)]
pub struct Trace {
    tail: Tail,
    filter: Filter,
    store: Store,
    /// Of the epoch: it makes LSNs of IDs.
    base: u64,
    steps: StepReceiver,
    recent: VecDeque<Recent>,
    /// Steps that may have come before their change.
    early: VecDeque<Step>,
}

impl Trace {
    /// Follows the changes of these tenants from now on.
    ///
    /// # Errors
    /// When Redis fails.
    pub async fn begin(
        config: &Config,
        store: &Store,
        journal: &Journal,
        tenants: &[Tenant],
        filter: Filter,
    ) -> Result<Self, Error> {
        let steps = journal.follow();
        let mut tail = Tail::new(&config.redis)?;
        for tenant in tenants {
            let target = Target::Changes(tenant.name.as_str().into());
            let newest = streams::newest(store, &target.key(store.keys())).await?;
            tail.follow(target, newest);
        }
        Ok(Self {
            tail,
            filter,
            base: base(store).await?,
            store: store.clone(),
            steps,
            recent: VecDeque::new(),
            early: VecDeque::new(),
        })
    }

    /// What comes next; empty if nothing came within a second. May be dropped and called again.
    ///
    /// # Errors
    /// When Redis fails; the next call reconnects.
    pub async fn next(&mut self) -> Result<Vec<Shown>, Error> {
        loop {
            let shown = tokio::select! {
                // Steps first, so that a change finds those that came before it.
                biased;
                step = self.steps.next() => match step {
                    Some(step) => self.on_step(step),
                    None => vec![gap(None)],
                },
                seen = self.tail.next() => {
                    let seen = seen?;
                    if seen.is_empty() {
                        return Ok(Vec::new());
                    }
                    if seen.iter().any(|seen| !matches!(seen, Seen::Change(_))) {
                        // A new epoch may have another base.
                        self.base = base(&self.store).await?;
                    }
                    seen.into_iter().flat_map(|seen| self.on_seen(seen)).collect()
                }
            };
            if !shown.is_empty() {
                return Ok(shown);
            }
        }
    }

    fn on_step(&mut self, step: Step) -> Vec<Shown> {
        if let StepKind::Reader(reader) = &step.kind
            && self.filter.user.is_some_and(|user| user != reader.user)
        {
            return Vec::new();
        }
        let shown = self.recent.iter_mut().filter_map(|recent| recent.step(&step)).collect();
        keep(&mut self.early, step, EARLY_MAX);
        shown
    }

    fn on_seen(&mut self, seen: Seen) -> Vec<Shown> {
        match seen {
            Seen::Change(change) => self.on_change(&change),
            Seen::Gap(target, _) | Seen::Recreated(target) | Seen::WrongType(target, _) => {
                vec![gap(Some(&target))]
            }
        }
    }

    fn on_change(&mut self, change: &Change) -> Vec<Shown> {
        let entry = &change.entry;
        let (table, op, row_id) = (entry.table.as_str(), entry.op.as_str(), change.row_id());
        let is_other = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_some_and(|wanted| Some(wanted) != found)
        };
        if is_other(&self.filter.table, Some(table))
            || is_other(&self.filter.op, Some(op))
            || is_other(&self.filter.row, row_id.as_deref())
        {
            return Vec::new();
        }
        let mut recent = Recent {
            id: entry.id,
            tenant: change.target.tenant().clone(),
            commit: PgLsn::from(entry.id.ms.saturating_sub(self.base)),
            commit_ts: entry.commit_ts,
            is_published: false,
            is_durable: false,
        };
        let columns: Vec<&str> = change.columns().iter().map(|column| column.name).collect();
        let mut shown = vec![Shown {
            event: "change",
            data: json!({
                "id": recent.id.to_string(),
                "tenant": &*recent.tenant,
                "table": table,
                "op": op,
                "row_id": row_id,
                "commit_lsn": recent.commit.to_string(),
                "committed_at": entry.commit_ts.map(|ts| ts as f64 / 1000.0),
                "xid": entry.xid,
                "columns": columns,
            }),
        }];
        shown.extend(self.early.iter().filter_map(|step| recent.step(step)));
        keep(&mut self.recent, recent, CHANGES_MAX);
        shown
    }
}

async fn base(store: &Store) -> Result<u64, Error> {
    match store.view().await {
        Ok(view) => Ok(view.base),
        Err(Error::NoCheckpoint) => Ok(0),
        Err(error) => Err(error),
    }
}

fn gap(target: Option<&Target>) -> Shown {
    Shown {
        event: "gap",
        data: json!({
            "tenant": target.map(|target| target.tenant().to_string()),
            "stream": target.map(Target::stream),
        }),
    }
}

/// Adds one, and drops the oldest of more than `most`.
fn keep<T>(queue: &mut VecDeque<T>, one: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(one);
}
