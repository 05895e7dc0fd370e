//! Tables outside of the tenants' schemas that rules and groups name: their publication, and what the log does not have of them.
//!
//! Any process may [publish](Outside::publish) them: it sets their replica identity and adds them to the publication, where its
//! role may, each in a transaction of its own, since that locks the table of an application.
//!
//! Only the session that holds the slot [examines](Outside::examine) them, before it publishes anything, and then with each look
//! at the catalogs. As [`super::catalog`] does for the tables of tenants, an examination compares the catalogs with the recorded
//! state in one transaction: it resyncs the tenants whose devices may hold other rows than Postgres, and records what it found.
//! It locks no table. A table that is recorded as present is one whose changes the holder of the slot routes; of one that is
//! not, they pass without entries, and so its tenants are resynced when a rule names it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postgres_types::Type;
use tokio_postgres::{Client, Row, Transaction};

use super::difference::{self, Difference, Kind, Table, cause, is_locked};
use crate::contract::control::Command;
use crate::core::backoff::Backoff;
use crate::core::tenant::quote_identifier;
use crate::postgres::{Database, Param, publication, sql, tenants};
use crate::route::router::Router;

/// Delays before a table is published that could not be: first and longest. While an attempt waits for its lock, the
/// application waits, too.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// After so many locked tables, the others wait for the next attempt.
const LOCKED_MAX: usize = 3;

/// The tables that the rules of a router name.
#[derive(Debug, Clone, Copy)]
pub struct Outside<'a> {
    pub database: &'a Database,
    pub publication: &'a str,
    pub router: &'a Router,
}

/// What [`Outside::publish`] did.
#[derive(Debug, Default)]
pub struct Published {
    /// Tables that were added to the publication.
    pub added: Vec<String>,
    /// Tables and partitions whose replica identity was set, with the identity.
    pub identified: Vec<(String, &'static str)>,
    /// Tables and partitions that need one of both, which only their owner may do.
    pub others: Vec<String>,
    /// Tables and partitions for which it failed, with the cause.
    pub failed: Vec<(String, String)>,
}

/// The tables that could not be published. An unchanged failure is logged once.
#[derive(Debug, Default)]
pub struct Failures {
    /// By the name of the table.
    tables: HashMap<String, Failure>,
    /// How long attempts have waited for locks that were not free.
    waited: Duration,
}

#[derive(Debug)]
struct Failure {
    cause: String,
    /// When it is tried again.
    at: Instant,
    backoff: Backoff,
}

impl Failures {
    /// When a table was to be tried again; `None` if it was not tried.
    fn due(&self, table: &str) -> Option<Instant> {
        self.tables.get(table).map(|failure| failure.at)
    }

    /// How long attempts have waited for locks since the last call.
    pub(super) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    fn add(&mut self, table: &str, error: &anyhow::Error) -> String {
        let cause = format!("{error:#}");
        let failure = self.tables.entry(table.to_owned()).or_insert_with(|| Failure {
            cause: String::new(),
            at: Instant::now(),
            backoff: Backoff::new(RETRY.0, RETRY.1),
        });
        failure.at = Instant::now() + failure.backoff.next();
        if failure.cause != cause {
            failure.cause.clone_from(&cause);
            if is_locked(error) {
                tracing::warn!(
                    table,
                    cause,
                    "table of a rule is in use and not published yet; trying again"
                );
            } else {
                tracing::error!(
                    table,
                    cause,
                    "table of a rule not published; `posduif routes check` has the fix"
                );
            }
        }
        cause
    }
}

/// What [`Outside::examine`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What happened to tables.
    pub kinds: Vec<Kind>,
}

impl Changes {
    /// Whether a table left the rules or returned, or a schema was renamed.
    pub fn has_moved(&self) -> bool {
        self.kinds.contains(&Kind::Moved)
    }
}

impl Outside<'_> {
    /// Sets the replica identities of tables and adds them to the publication, where this role may. Tables that failed before
    /// wait until they are due.
    ///
    /// # Errors
    /// When Postgres cannot be reached; a table that fails does not prevent the others.
    pub async fn publish(&self, failures: &mut Failures) -> Result<Published> {
        let tables = publication::outside_coverage(self.database, self.publication, &self.router.outside()).await?;
        let lacking = tables
            .into_iter()
            .filter(|table| !table.published || !table.is_identified());
        let (ours, others): (Vec<_>, Vec<_>) = lacking.partition(|table| table.is_ours);
        let mut published = Published {
            others: others.iter().map(publication::Table::qualified).collect(),
            ..Published::default()
        };
        let names: HashSet<String> = ours.iter().map(publication::Table::qualified).collect();
        failures.tables.retain(|name, _| names.contains(name));
        let now = Instant::now();
        let mut due: Vec<_> = ours
            .iter()
            .map(|table| (failures.due(&table.qualified()), table))
            .filter(|(at, _)| at.is_none_or(|at| at <= now))
            .collect();
        // So that each gets its turn.
        due.sort_by_key(|(at, _)| *at);
        if due.is_empty() {
            return Ok(published);
        }
        let mut client = self.database.connect_dedicated().await?;
        let mut locked = 0;
        for (_, table) in due {
            let name = table.qualified();
            if locked == LOCKED_MAX {
                published
                    .failed
                    .push((name, "not tried, because others are locked".to_owned()));
                continue;
            }
            let started = Instant::now();
            match self.publish_one(&mut client, table).await {
                Ok(()) => {
                    failures.tables.remove(&name);
                    if !table.is_identified() {
                        published.identified.push((name.clone(), table.required_identity()));
                    }
                    if !table.published {
                        published.added.push(name);
                    }
                }
                Err(error) if client.is_closed() => return Err(error),
                Err(error) => {
                    if is_locked(&error) {
                        locked += 1;
                        failures.waited += started.elapsed();
                    }
                    let cause = failures.add(&name, &error);
                    published.failed.push((name, cause));
                }
            }
        }
        Ok(published)
    }

    async fn publish_one(&self, client: &mut Client, table: &publication::Table) -> Result<()> {
        let transaction = difference::begin(client).await?;
        publication::publish_outside(&transaction, self.publication, table).await?;
        // What was lacking meanwhile is found by the next examination.
        let (schema, name) = (&table.schema, &table.table);
        mark(&transaction, (schema, name), &table.replica_identity, table.published).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Records that this session routes no other tables. What it cannot route passes from now on without entries.
    ///
    /// # Errors
    /// When Postgres cannot be reached: the session must not publish anything then.
    pub async fn forget_unrouted(&self) -> Result<()> {
        let places = Places::of(self.router);
        self.database
            .query(
                &sql!("replication/outside_unrouted"),
                &[(&places.schemas, Type::TEXT_ARRAY), (&places.tables, Type::TEXT_ARRAY)],
            )
            .await
            .context("cannot record which tables outside of tenants' schemas have rules")?;
        Ok(())
    }

    /// [Examines](Self::examine) the tables, and before that [publishes](Self::publish) those that lack it.
    ///
    /// # Errors
    /// See there.
    pub async fn look(&self, failures: &mut Failures) -> Result<Changes> {
        let tables = self.differences().await?;
        if tables.iter().any(Examined::is_repairable)
            && let Err(error) = self.publish(failures).await
        {
            tracing::warn!(
                cause = format!("{error:#}"),
                "tables of rules not published; trying again"
            );
        }
        self.examine_differing(&tables).await
    }

    /// Compares the tables with their recorded state; only for the holder of the slot. Those that this role could repair are
    /// left for the look that does.
    ///
    /// # Errors
    /// When Postgres cannot be reached, or other work on schemas does not end; nothing is changed then.
    pub async fn examine(&self) -> Result<Changes> {
        self.examine_differing(&self.differences().await?).await
    }

    /// The tables that differ.
    async fn differences(&self) -> Result<Vec<Examined>> {
        let rows = self
            .database
            .query(
                &sql!("replication/outside_differences"),
                &Places::of(self.router).params(&self.publication, &false),
            )
            .await
            .context("cannot compare the tables of rules with the catalogs; `posduif migrate up` creates the table with their state")?;
        rows.iter().map(Examined::read).collect()
    }

    async fn examine_differing(&self, tables: &[Examined]) -> Result<Changes> {
        if tables.is_empty() {
            return Ok(Changes::default());
        }
        let mut client = self.database.connect_dedicated().await?;
        let transaction = difference::begin(&mut client).await?;
        let rows = transaction
            .query_typed(
                &sql!("replication/outside_differences"),
                &Places::of(self.router).params(&self.publication, &true),
            )
            .await?;
        let mut tables = rows.iter().map(Examined::read).collect::<Result<Vec<_>>>()?;
        tables.retain(|table| {
            if table.is_locked {
                tracing::warn!(
                    table = table.name(),
                    "table of a rule is locked; the next look examines it"
                );
            }
            !table.is_locked
        });
        let changed: Vec<(&Examined, Kind)> = tables.iter().filter_map(|table| Some((table, table.kind()?))).collect();
        let resynced = self.resync(&transaction, &changed).await?;
        for table in &tables {
            record(&transaction, table).await?;
        }
        transaction.commit().await?;
        for (table, kind) in &changed {
            let (table, kind) = (table.name(), kind.as_str());
            // Without tenants there is no device that could lack a row.
            if resynced > 0 {
                tracing::warn!(
                    table,
                    kind,
                    tenants = resynced,
                    "table of a rule changed outside of the log; streams of its tenants recreated"
                );
            }
        }
        let others: Vec<String> = tables
            .iter()
            .filter(|table| table.difference.present.is_some() && !table.difference.is_covered() && !table.is_ours)
            .map(Examined::name)
            .collect();
        if !others.is_empty() {
            tracing::error!(
                tables = others.join(", "),
                "tables of rules belong to another role: not published, or without the replica identity; `posduif routes \
                 check` has the statements for their owner"
            );
        }
        Ok(Changes {
            kinds: changed.into_iter().map(|(_, kind)| kind).collect(),
        })
    }

    /// Resyncs the tenants that may have rows of these tables; gives their number.
    async fn resync(&self, transaction: &Transaction<'_>, changed: &[(&Examined, Kind)]) -> Result<usize> {
        if changed.is_empty() {
            return Ok(0);
        }
        let tenants = tenants::list(self.database).await?;
        let (mut names, mut reports) = (Vec::new(), Vec::new());
        for tenant in &tenants {
            let mut causes: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
            for (table, kind) in changed {
                let mut roots = table.difference.roots();
                if roots.any(|root| self.router.may_be(&table.root_schema, root, &tenant.name)) {
                    causes.entry(*kind).or_default().insert(table.name());
                }
            }
            if !causes.is_empty() {
                names.push(tenant.name.as_str());
            }
            reports.extend(causes.into_iter().map(|(kind, tables)| Command::ReportTable {
                tenant: tenant.name.as_str().into(),
                cause: cause(kind, &tables.iter().map(String::as_str).collect()),
            }));
        }
        tenants::resync_within(transaction, &names).await?;
        tenants::send_all_within(transaction, &reports).await?;
        Ok(names.len())
    }
}

/// A table as the catalogs have it, with its recorded state.
#[derive(Debug)]
struct Examined {
    schema: String,
    root_schema: String,
    difference: Difference,
    is_ours: bool,
    /// Whether the publication names it or its root.
    is_listed: bool,
    /// Another transaction locks it, so that its size cannot be read.
    is_locked: bool,
}

impl Examined {
    fn read(row: &Row) -> Result<Self> {
        let flag = |column| Ok::<_, tokio_postgres::Error>(row.try_get::<_, Option<bool>>(column)?.unwrap_or(false));
        Ok(Self {
            schema: row.try_get("schema")?,
            root_schema: row.try_get("root_schema")?,
            difference: Difference::read(row)?,
            is_ours: flag("is_ours")?,
            is_listed: flag("is_listed")?,
            is_locked: row.try_get("is_locked")?,
        })
    }

    /// Whether this role can make it covered.
    fn is_repairable(&self) -> bool {
        let lacks_something = !self.is_listed || !self.difference.is_identified;
        self.difference.present.is_some() && self.is_ours && lacks_something
    }

    /// What happened, when readers may hold other rows than Postgres. A repair that is due leads to a resync itself.
    fn kind(&self) -> Option<Kind> {
        if self.is_repairable() {
            return None;
        }
        let difference = &self.difference;
        match (&difference.present, &difference.known) {
            (Some(table), None) if table.parent == 0 => difference.has_pages.then_some(Kind::Rule),
            (Some(_), None) => difference.has_pages.then_some(Kind::Partition),
            // Its identity was lost, and set again since.
            (Some(table), Some(known)) if table.identity != known.identity => {
                difference.kind().or(Some(Kind::Identity))
            }
            _ => difference.kind(),
        }
    }

    fn name(&self) -> String {
        format!("{}.{}", self.schema, self.difference.name())
    }
}

/// The named tables as arrays.
struct Places<'r> {
    schemas: Vec<&'r str>,
    tables: Vec<&'r str>,
}

impl<'r> Places<'r> {
    fn of(router: &'r Router) -> Self {
        let (schemas, tables) = router.outside().into_iter().unzip();
        Self { schemas, tables }
    }

    fn params<'p>(&'p self, publication: &'p &'p str, is_deep: &'p bool) -> [Param<'p>; 4] {
        [
            (publication, Type::TEXT),
            (&self.schemas, Type::TEXT_ARRAY),
            (&self.tables, Type::TEXT_ARRAY),
            (is_deep, Type::BOOL),
        ]
    }
}

/// Records of a known table that it lacked something, and else leaves it as it was known.
async fn mark(
    transaction: &Transaction<'_>,
    (schema, name): (&str, &str),
    identity: &str,
    is_listed: bool,
) -> Result<()> {
    let name = format!("{}.{}", quote_identifier(schema), quote_identifier(name));
    let params: [Param<'_>; 3] = [(&name, Type::TEXT), (&identity, Type::TEXT), (&is_listed, Type::BOOL)];
    transaction
        .query_typed(&sql!("replication/outside_mark"), &params)
        .await?;
    Ok(())
}

/// Records a table as it was read.
async fn record(transaction: &Transaction<'_>, table: &Examined) -> Result<()> {
    let relation = &table.difference.relation;
    let Some(Table {
        name,
        root,
        parent,
        filenode,
        identity,
        is_published,
        columns,
    }) = &table.difference.present
    else {
        transaction
            .query_typed(&sql!("replication/outside_forget"), &[(relation, Type::OID)])
            .await?;
        return Ok(());
    };
    if table.is_repairable() && table.difference.known.is_some() {
        return mark(transaction, (&table.schema, name), identity, table.is_listed).await;
    }
    let is_covered = table.difference.is_covered();
    let params: [Param<'_>; 11] = [
        (relation, Type::OID),
        (&table.schema, Type::TEXT),
        (name, Type::TEXT),
        (&table.root_schema, Type::TEXT),
        (root, Type::TEXT),
        (parent, Type::OID),
        (filenode, Type::OID),
        (identity, Type::TEXT),
        (is_published, Type::BOOL),
        (columns, Type::TEXT_ARRAY),
        (&is_covered, Type::BOOL),
    ];
    transaction
        .query_typed(&sql!("replication/outside_record"), &params)
        .await?;
    Ok(())
}
