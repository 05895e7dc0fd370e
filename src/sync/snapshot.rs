//! A snapshot from Postgres, and the place where the stream takes over.
//!
//! A walsender can send a commit that `SELECT` does not see yet, so "read the position, then the tables" can miss a row.
//! Here the position and the window of recently published transactions are read first, then Postgres' snapshot; the
//! stream starts before every published transaction that the snapshot does not see. Transactions published after the
//! position was read follow it anyway. Later pages only see more, and a row seen twice is the same row.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres_types::{PgLsn, Type};
use uuid::Uuid;

use super::cursor::{ID_BYTES_MAX, PageStart};
use super::item::{self, Change, Item};
use super::members;
use super::tables::{self, Bounds, Routing, Selection};
use crate::config::rule::{MESSAGES, Recipient, Rule};
use crate::contract::checkpoint::View;
use crate::contract::control::Command;
use crate::contract::entry::Text;
use crate::contract::group::{GroupId, Membership};
use crate::contract::members::{GROUPS_MAX, Members};
use crate::contract::membership_log::CHANGES_MAX;
use crate::core::digest;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature;
use crate::live::visibility::{Look, Published, Visibility, Wish};
use crate::messages::{Message, Status};
use crate::postgres::{Database, sql, tenants};
use crate::redis::read_position::ReadPosition;
use crate::redis::standing::{Handoff, MembershipHandoff, Missing};
use crate::redis::store::{self, Store};

/// How long to wait for the replicator to create a missing stream.
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the snapshot of a group waits for commits before the user joined. After that, another snapshot is due.
const EARLIER_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval of checking for it.
const CREATE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] crate::redis::store::Error),
    #[error(transparent)]
    Feature(#[from] feature::Error),
    /// The user's streams are missing.
    #[error("the replicator did not create the user's streams within {} s", CREATE_TIMEOUT.as_secs())]
    NoStreams,
    /// Postgres does not show the user's memberships.
    #[error(
        "Postgres did not show the user's memberships within {} s; their commit waits for a synchronous standby",
        CREATE_TIMEOUT.as_secs()
    )]
    NotSeen,
    /// Postgres lacks what is published.
    #[error(
        "Postgres lacks what is published: `postgres.url` leads to a former primary, or to a copy that was restored"
    )]
    FormerPrimary,
    /// The user is in too many groups.
    #[error("the user is a member of more than {GROUPS_MAX} groups; end memberships until there are fewer")]
    TooManyGroups,
}

impl From<crate::postgres::Error> for Error {
    fn from(error: crate::postgres::Error) -> Self {
        Self::Feature(error.into())
    }
}

/// Kinds of rows in the order of pages.
const RECEIVED: u8 = 0;
const SENT: u8 = 1;
const USERS: u8 = 2;
/// The rules' tables, in the order of [`ordered`].
const TABLES: u8 = 3;
/// Not a phase of a whole snapshot: the rows of one group, which the user joined. `id` is the group, a space, and the row.
const GROUP: u8 = 4;
/// Not a phase of a device's snapshot, but a list of a user's encrypted state; see [`super::states`].
pub const STATES: u8 = u8::MAX;

/// A page of a snapshot.
#[derive(Debug, Default)]
pub struct Page {
    pub items: Vec<Item>,
    /// Messages in it that wait for an acknowledgement.
    pub pending: Vec<Uuid>,
    /// The start of the next page; `None` when the stream takes over.
    pub next: Option<PageStart>,
}

/// The start of a phase; a snapshot starts with phase 0.
pub fn phase_start(phase: u8) -> PageStart {
    PageStart {
        phase,
        rule: 0,
        created_at: i64::MIN,
        id: String::new(),
    }
}

/// Whether snapshots under these rules have this page.
pub fn is_page(start: &PageStart, rules: &[Rule]) -> bool {
    match start.phase {
        RECEIVED | SENT | USERS => true,
        TABLES | GROUP => rules.iter().any(|rule| digest(rule) == start.rule),
        _ => false,
    }
}

/// Identifies a rule by the rows that it selects.
fn digest(rule: &Rule) -> u64 {
    let selection = (&rule.table, &rule.to, &rule.when);
    let selection = match (rule.placement().outside, &rule.subjects) {
        (None, None) => serde_json::to_vec(&selection),
        placed => serde_json::to_vec(&(selection, placed)),
    };
    digest::short(selection.unwrap_or_default())
}

/// The start of the snapshot of a group; `None` if no rule sends rows to it.
pub fn group_start(group: &GroupId, rules: &[Rule]) -> Option<PageStart> {
    let rules = ordered(rules);
    let (digest, _) = rules.iter().find(|(_, rule)| sends_to(rule, group))?;
    Some(start_of_group(group, *digest, ""))
}

/// The group of a page, and the row after which it starts; `None` for pages of a whole snapshot.
pub fn group_of(start: &PageStart) -> Option<(GroupId, &str)> {
    let (group, row) = start.id.split_once(' ').filter(|_| start.phase == GROUP)?;
    Some((group.parse().ok()?, row))
}

fn start_of_group(group: &GroupId, rule: u64, row: &str) -> PageStart {
    PageStart {
        rule,
        id: format!("{group} {row}"),
        ..phase_start(GROUP)
    }
}

fn sends_to(rule: &Rule, group: &GroupId) -> bool {
    let mut groups = rule.to.iter().filter_map(Recipient::group);
    groups.any(|(name, _)| name == group.name())
}

/// Rules in the order of pages. It does not depend on the configuration's order, which may change between two pages.
fn ordered(rules: &[Rule]) -> Vec<(u64, &Rule)> {
    let mut ordered: Vec<(u64, &Rule)> = rules.iter().map(|rule| (digest(rule), rule)).collect();
    ordered.sort_by_key(|(digest, rule)| (&rule.table, *digest));
    ordered
}

/// The start of what follows a kind of rows; `None` when the stream takes over.
fn following(start: &PageStart, rules: &[(u64, &Rule)]) -> Option<PageStart> {
    if let Some((group, _)) = group_of(start) {
        let at = rules.iter().position(|(digest, _)| *digest == start.rule)?;
        let mut rest = rules.iter().skip(at + 1);
        let (digest, _) = rest.find(|(_, rule)| sends_to(rule, &group))?;
        return Some(start_of_group(&group, *digest, ""));
    }
    let next = match start.phase {
        RECEIVED | SENT => return Some(phase_start(start.phase + 1)),
        USERS => 0,
        _ => rules.iter().position(|(digest, _)| *digest == start.rule)? + 1,
    };
    rules.get(next).map(|(digest, _)| PageStart {
        rule: *digest,
        ..phase_start(TABLES)
    })
}

/// The user and the tables of a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub database: &'a Database,
    pub tenant: &'a Tenant,
    pub user: Uuid,
    /// Rules of the tables without a phase of their own, and the groups that they name.
    pub routing: Routing<'a>,
}

/// Where a snapshot begins.
#[derive(Debug)]
pub struct Beginning {
    /// From here the stream goes on behind it.
    pub place: ReadPosition,
    /// The user's memberships.
    pub members: Arc<Members>,
}

/// Begins a snapshot.
///
/// # Errors
/// See [`Error`].
pub async fn begin(
    database: &Database,
    store: &Store,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
) -> Result<Beginning, Error> {
    let handoff = ensure_streams(database, store, tenant, user, routing).await?;
    let standing = handoff.standing.clone();
    if standing.is_paused {
        return Err(store::Error::Paused.into());
    }
    let (position, published) = (seen(database, &handoff).await?, standing.view.position);
    let mut place = standing.place();
    if position < published {
        // Where the streams do not reach back so far, the stream goes on later, and rows are missing until another
        // snapshot: the place itself would lead to one, for as long as a commit is not seen.
        let kept = store.kept_behind(&tenant.name, user, &standing.members).await?;
        let known = standing.members.since.unwrap_or(StreamId::ZERO);
        let floor = kept.max(known).min(published);
        place = ReadPosition {
            position: position.max(floor),
            resets_covered: Some(published),
            is_incomplete: position < floor,
            ..place
        };
    }
    Ok(Beginning {
        place,
        members: standing.members,
    })
}

/// Whether a snapshot lacked rows that Postgres shows by now, so that another one is due.
pub async fn is_due_again(
    database: &Database,
    store: &Store,
    tenant: &Tenant,
    user: Uuid,
    place: ReadPosition,
) -> Result<bool, Error> {
    let (true, Some(until)) = (place.is_incomplete, place.resets_covered) else {
        return Ok(false);
    };
    let handoff = store.handoff(&tenant.name, user).await?;
    Ok(handoff.standing.view.epoch == place.epoch && seen(database, &handoff).await? >= until)
}

/// What is known of a membership when the snapshot of its group is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// Postgres shows it, and everything before it.
    Whole,
    /// Postgres shows it, but not everything before it.
    Partly,
    /// It has ended, or began again later.
    Over,
}

/// Waits until Postgres shows the membership that began at a place: its commit, and for a moment the commits before it.
pub async fn wait_for_membership(
    scope: Scope<'_>,
    store: &Store,
    visibility: &Visibility,
    group: &GroupId,
    place: ReadPosition,
) -> Result<Joined, Error> {
    let Scope {
        database, tenant, user, ..
    } = scope;
    let (joined, epoch) = (place.position, place.epoch);
    let handoff = store.handoff(&tenant.name, user).await?;
    if seen(database, &handoff).await? >= joined {
        return Ok(Joined::Whole);
    }
    if handoff
        .standing
        .members
        .groups
        .get(group)
        .is_none_or(|since| *since > joined)
    {
        return Ok(Joined::Over);
    }
    let entries = store.inbox(&tenant.name, user, joined.previous(), joined, 1).await?;
    let change = entries.first().and_then(|entry| {
        Some(Published {
            id: joined,
            xid: entry.xid?,
        })
    });
    let shown = |changes: Vec<Published>| Wish::Shown {
        epoch,
        changes,
        until: Some(joined),
    };
    let Some(look) = granted(visibility, shown(change.into_iter().collect()), CREATE_TIMEOUT).await else {
        return Err(Error::NotSeen);
    };
    if look.shows_all(epoch, joined) || granted(visibility, shown(Vec::new()), EARLIER_TIMEOUT).await.is_some() {
        return Ok(Joined::Whole);
    }
    Ok(Joined::Partly)
}

async fn granted(visibility: &Visibility, wish: Wish, timeout: Duration) -> Option<Arc<Look>> {
    tokio::time::timeout(timeout, visibility.wish(wish)).await.ok()?.ok()
}

async fn pause(deadline: Instant) -> Result<(), Error> {
    if Instant::now() >= deadline {
        return Err(Error::NotSeen);
    }
    tokio::time::sleep(CREATE_POLL_INTERVAL).await;
    Ok(())
}

/// Up to where a statement that begins now sees everything that was published before.
async fn seen(database: &Database, handoff: &Handoff) -> Result<StreamId, Error> {
    Ok(seen_by(database, handoff).await?.0)
}

/// The same, and the snapshot of that statement.
async fn seen_by(database: &Database, handoff: &Handoff) -> Result<(StreamId, Snapshot), Error> {
    let snapshot = behind(database, &handoff.standing.view).await?;
    let unseen = handoff.window.iter().filter(|entry| !entry.is_seen_by(&snapshot));
    let published = handoff.standing.view.position;
    let position = unseen.map(|entry| entry.first.previous()).min();
    Ok((position.map_or(published, |position| position.min(published)), snapshot))
}

/// The snapshot of a statement that begins now.
pub(super) async fn current(database: &Database) -> Result<Snapshot, Error> {
    let row = database.query_opt(&sql!("postgres/current_snapshot"), &[]).await?;
    let snapshot = row.and_then(|row| Snapshot::parse(row.try_get("snapshot").ok()?));
    Ok(snapshot.ok_or_else(|| feature::Error::Internal("cannot parse pg_current_snapshot()".into()))?)
}

/// The snapshot of a statement that begins now, on a server that has all that is published.
pub(super) async fn behind(database: &Database, view: &View) -> Result<Snapshot, Error> {
    database.require_timeline(view.timeline);
    let row = database.query_opt(&sql!("postgres/snapshot_and_timeline"), &[]).await?;
    let row = row.ok_or_else(|| feature::Error::Internal("pg_current_snapshot() returned no row".into()))?;
    let column = |error: tokio_postgres::Error| feature::Error::Internal(error.to_string());
    let (lsn, timeline): (PgLsn, i32) = (
        row.try_get("lsn").map_err(column)?,
        row.try_get("timeline").map_err(column)?,
    );
    // What it lacks is in the streams before the place where they would go on.
    if timeline < view.timeline || lsn < view.lsn() {
        return Err(Error::FormerPrimary);
    }
    Ok(Snapshot::from_row(&row).map_err(column)?)
}

/// Reads the handoff. Missing streams are requested from the replicator through the log, and missing memberships are read.
pub async fn ensure_streams(
    database: &Database,
    store: &Store,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
) -> Result<Handoff, Error> {
    let deadline = Instant::now() + CREATE_TIMEOUT;
    let mut requested = HashSet::new();
    let mut has_requested_own = false;
    loop {
        let handoff = store.handoff(&tenant.name, user).await?;
        let standing = &handoff.standing;
        if !standing.missing.any() {
            return Ok(handoff);
        }
        if Instant::now() >= deadline {
            return Err(Error::NoStreams);
        }
        if standing.missing.tenant || standing.missing.inbox {
            if !std::mem::replace(&mut has_requested_own, true) {
                request_own(database, tenant, user, standing.missing).await?;
            }
        } else if standing.lacks_members {
            load_members(database, store, tenant, user, routing, deadline).await?;
            continue;
        } else {
            for group in &standing.missing_groups {
                if requested.insert(group.clone()) {
                    let tenant = tenant.name.as_str().into();
                    let group = group.clone();
                    tenants::send(database, &Command::CreateGroup { tenant, group }).await?;
                }
            }
        }
        tokio::time::sleep(CREATE_POLL_INTERVAL).await;
    }
}

/// Requests the streams that a user has without groups.
async fn request_own(database: &Database, tenant: &Tenant, user: Uuid, missing: Missing) -> Result<(), Error> {
    tracing::warn!(tenant = tenant.name, %user, ?missing, "streams missing; requesting them from the replicator");
    if missing.tenant {
        // The meta hash with the trim points is lost, so all cursors of the tenant must become invalid.
        tenants::resync(database, &tenant.name).await?;
    }
    if missing.inbox {
        let tenant = tenant.name.as_str().into();
        tenants::send(database, &Command::CreateInbox { tenant, user }).await?;
    }
    Ok(())
}

/// Reads a user's memberships, which the publisher keeps from then on. Where it ends without them, something has changed
/// meanwhile, and it begins again.
async fn load_members(
    database: &Database,
    store: &Store,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    deadline: Instant,
) -> Result<(), Error> {
    let Some(mark) = store.mark_members(&tenant.name, user).await? else {
        return pause(deadline).await;
    };
    loop {
        let MembershipHandoff {
            handoff,
            log,
            reset_xid,
        } = store.membership_handoff(&tenant.name, user).await?;
        let standing = &handoff.standing;
        let is_marked = standing.members.marked == Some(mark) && standing.members.epoch == Some(standing.view.epoch);
        if !is_marked || standing.view.position < mark {
            return pause(deadline).await;
        }
        let (since, snapshot) = seen_by(database, &handoff).await?;
        let since = since.min(mark);
        // A reset is no change of one membership.
        let reset_is_shown = || reset_xid.is_some_and(|xid| snapshot.sees_all(xid, xid));
        let is_known = log.is_complete_behind(since) && (standing.groups_reset <= since || reset_is_shown());
        if since < mark && !is_known {
            pause(deadline).await?;
            continue;
        }
        let groups = members::groups_of(database, tenant, user, routing, GROUPS_MAX + CHANGES_MAX + 1).await?;
        let mut groups: BTreeMap<GroupId, StreamId> = groups.into_iter().map(|group| (group, since)).collect();
        // Of what is published up to the mark, the log has what Postgres may not show.
        for change in log.of(user, since, mark) {
            match &change.membership {
                Membership::Join(group) => groups.insert(group.clone(), change.id),
                Membership::Leave(group) => groups.remove(group),
            };
        }
        if groups.len() > GROUPS_MAX {
            return Err(Error::TooManyGroups);
        }
        return Ok(store.add_members(&tenant.name, user, (mark, since), &groups).await?);
    }
}

/// Reads a page of at most `limit` rows and about `bytes_max` bytes.
pub async fn page(scope: Scope<'_>, start: PageStart, limit: usize, bytes_max: usize) -> Result<Page, Error> {
    let rules = ordered(scope.routing.rules);
    let mut page = Page {
        items: Vec::new(),
        pending: Vec::new(),
        next: None,
    };
    let mut bytes = 0;
    let mut next = Some(start);
    while let Some(mut start) = next {
        let read = page.items.len();
        // Most of what may fit by the size of those before, so that seldom more is read than is wanted.
        let expected = match read {
            0 => limit,
            _ => (bytes_max - bytes) / (bytes / read).max(1) / 8 * 7,
        };
        let bounds = Bounds {
            rows_max: expected.min(limit - read).max(1),
            bytes_max: bytes_max - bytes,
        };
        let after = following(&start, &rules);
        let (rows, is_cut) = rows(scope, &rules, &start, bounds).await?;
        for row in rows {
            let id = group_of(&row.next).map_or(row.next.id.len(), |(_, id)| id.len());
            if id > ID_BYTES_MAX {
                return Err(feature::Error::Internal("the id of a row is too long for a cursor".into()).into());
            }
            bytes += row.item.bytes();
            page.items.push(row.item);
            page.pending.extend(row.pending);
            start = row.next;
            if bytes >= bytes_max {
                page.next = Some(start);
                return Ok(page);
            }
        }
        if page.items.len() >= limit {
            page.next = if is_cut { Some(start) } else { after };
            return Ok(page);
        }
        next = if is_cut { Some(start) } else { after };
    }
    Ok(page)
}

struct SnapshotRow {
    item: Item,
    pending: Option<Uuid>,
    next: PageStart,
}

async fn rows(
    scope: Scope<'_>,
    rules: &[(u64, &Rule)],
    start: &PageStart,
    bounds: Bounds,
) -> Result<(Vec<SnapshotRow>, bool), Error> {
    let limit = i64::try_from(bounds.rows_max).unwrap_or(i64::MAX);
    let statement = match start.phase {
        RECEIVED => sql!("sync/snapshot_received"),
        SENT => sql!("sync/snapshot_sent"),
        USERS => sql!("sync/snapshot_users"),
        _ => match rules.iter().find(|(digest, _)| *digest == start.rule) {
            Some((_, rule)) => return table_rows(scope, rule, start, bounds).await,
            None => return Ok((Vec::new(), false)),
        },
    };
    let after = Uuid::parse_str(&start.id).unwrap_or(Uuid::nil());
    let rows = scope
        .database
        .query(
            &statement.in_schema(scope.tenant),
            &[
                (&scope.user, Type::UUID),
                (&start.created_at, Type::INT8),
                (&after, Type::UUID),
                (&limit, Type::INT8),
            ],
        )
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let (item, pending) = if start.phase == USERS {
            (Item::User(to_json(&UserView::from_row(row)?)?), None)
        } else {
            let message = Message::from_row(row)?;
            let is_pending = start.phase == RECEIVED && message.status == Status::PendingSync;
            let json = to_json(&message)?;
            let item = match &message.group {
                None => Item::Message(json),
                Some(group) => Item::Change(Change {
                    table: MESSAGES.to_owned().into(),
                    op: Operation::Insert.as_str(),
                    id: Some(message.id.to_string().into()),
                    row: Some(json),
                    is_partial: false,
                    via: Some(item::audiences(&group.name, &group.id, &message.sender_id.to_string())),
                }),
            };
            (item, is_pending.then_some(message.id))
        };
        found.push(SnapshotRow {
            item,
            pending,
            next: PageStart {
                phase: start.phase,
                rule: 0,
                created_at: row.try_get("created_at_micros").map_err(feature::Error::from)?,
                id: row.try_get::<_, Uuid>("id").map_err(feature::Error::from)?.to_string(),
            },
        });
    }
    let is_cut = found.len() >= bounds.rows_max;
    Ok((found, is_cut))
}

/// A user as other users see them.
#[derive(serde::Serialize)]
struct UserView<'a> {
    id: Uuid,
    username: &'a str,
    user_type: &'a str,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl<'a> UserView<'a> {
    fn from_row(row: &'a tokio_postgres::Row) -> Result<Self, feature::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            user_type: row.try_get("user_type")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

async fn table_rows(
    scope: Scope<'_>,
    rule: &Rule,
    start: &PageStart,
    bounds: Bounds,
) -> Result<(Vec<SnapshotRow>, bool), Error> {
    let of_group = group_of(start);
    let (group, after) = of_group
        .as_ref()
        .map_or((None, start.id.as_str()), |(group, row)| (Some(group), *row));
    let selection = Selection { rule, group };
    let (database, tenant, user) = (scope.database, scope.tenant, scope.user);
    let part = tables::visible(database, tenant, user, scope.routing, selection, after, bounds).await?;
    let row = |row: tables::Row| {
        let (json, via) = item::shown(&rule.table, row.json, row.via);
        SnapshotRow {
            item: Item::Change(Change {
                table: rule.table.clone().into(),
                op: Operation::Insert.as_str(),
                id: Some(row.id.clone().into()),
                row: Some(json),
                is_partial: false,
                via,
            }),
            pending: None,
            next: match group {
                Some(group) => start_of_group(group, start.rule, &row.id),
                None => PageStart {
                    id: row.id,
                    ..start.clone()
                },
            },
        }
    };
    Ok((part.rows.into_iter().map(row).collect(), part.is_cut))
}

fn to_json(value: &impl serde::Serialize) -> Result<Text, feature::Error> {
    serde_json::to_string(value)
        .map(Text::from)
        .map_err(|error| feature::Error::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_rules_in_the_configuration_does_not_change_pages() {
        let rules = ["b", "a", "c", "a"].map(|table| Rule::built_in(table, "user_id", "change", &[]));
        let mut rules = rules.to_vec();
        rules[3].to = vec!["tenant".into()];
        let pages = |rules: &[Rule]| {
            let mut pages = Vec::new();
            let mut next = Some(phase_start(0));
            while let Some(start) = next {
                assert!(is_page(&start, rules));
                next = following(&start, &ordered(rules));
                pages.push(start);
            }
            pages
        };
        let before = pages(&rules);
        assert_eq!(before.len(), usize::from(TABLES) + rules.len());
        rules.reverse();
        rules[0].event = "renamed".into();
        assert_eq!(pages(&rules), before);
        // What another rule selects is not continued.
        let removed = rules.remove(1);
        assert!(!is_page(
            &PageStart {
                rule: digest(&removed),
                ..phase_start(TABLES)
            },
            &rules
        ));
    }
}
