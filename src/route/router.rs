//! Compiles the rules into one plan per table, and applies plans to rows.

use std::sync::Arc;

use super::membership;
use super::messages;
use super::row::{ColumnValue, NotAUserId, Row, named_user};
use super::tenancy::Tenancy;
use crate::config::Config;
use crate::config::group::{Group, Groups};
use crate::config::placement::Placement;
use crate::config::rule::{ENCRYPTED_STATES, MESSAGE_READS, MESSAGES, Recipient, Rule, TENANT, user_names};
use crate::contract::entry::{live_columns, removal_columns};
use crate::contract::group::{GroupId, InvalidId, Membership};
use crate::contract::stream_name::Audience;
use crate::core::event;
use crate::core::operation::Operation;
use crate::core::subject::UserNames;
use crate::decode::relation::Relation;

/// A tenant's schema is this prefix and its name.
pub const SCHEMA_PREFIX: &str = "tenant_";

/// Tables with built-in rules.
const BUILT_IN: [&str; 6] = [
    MESSAGES,
    MESSAGE_READS,
    "users",
    ENCRYPTED_STATES,
    "message_conflicts",
    "devices",
];

/// One change for one audience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery<'p> {
    pub audience: Audience,
    /// What happened from their point of view: a row that moved to another user is deleted for the previous one.
    pub operation: Operation,
    /// Name of the live event.
    pub event: &'p str,
    /// Stored in the audience's stream; otherwise only live.
    pub stored: bool,
    /// What the change says about the user's own memberships.
    pub memberships: Vec<Membership>,
}

impl<'p> Delivery<'p> {
    /// A delivery that is stored in a stream.
    pub fn stored(audience: Audience, operation: Operation, event: &'p str) -> Self {
        Self {
            audience,
            operation,
            event,
            stored: true,
            memberships: Vec::new(),
        }
    }
}

/// A row that cannot be routed completely, although a rule covers its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A recipient column holds no user id.
    #[error("column {column}: {cause}")]
    Recipient { column: String, cause: NotAUserId },
    /// A column holds no id of a group.
    #[error("column {column}: {cause}")]
    Group { column: String, cause: InvalidId },
    /// A rule does not fit its table.
    #[error("{0}")]
    Rule(String),
}

/// All rules, built-in and configured.
#[derive(Debug, Clone)]
pub struct Router {
    rules: Vec<(Rule, UserNames)>,
    groups: Vec<(String, Group, UserNames)>,
}

/// The rules of one table, compiled.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whose rows the table has.
    pub tenancy: Tenancy,
    /// The column that identifies a row to clients, `id` where there is one.
    pub id_column: Option<usize>,
    /// In `devices`, the column with the user who gets an inbox by an insert. Other users get one when they first read it: an
    /// empty stream takes 4 KiB.
    pub inbox_column: Option<usize>,
    /// In `users`, the column with the user whose inbox goes with a deleted row.
    pub user_column: Option<usize>,
    /// Which columns devices receive; `None` for all.
    pub delivered: Option<Vec<bool>>,
    /// Columns whose values live events deliver.
    pub live_columns: Vec<usize>,
    /// Columns that readers need when the row is deleted.
    pub removal_columns: Vec<usize>,
    /// The built-in rule for messages, where this is their table.
    messages: Option<messages::Columns>,
    /// Rules whose deliveries are stored: each user gets a change once, however many rules match.
    stored: Vec<ColumnsRoute>,
    /// Rules whose deliveries are only live; each rule sends its own event.
    live_only: Vec<ColumnsRoute>,
    /// The table lists the members of a group.
    members: Option<membership::Columns>,
    /// Some rule sends rows to a group, so that entries name all audiences of the row.
    names_audiences: bool,
    /// Why a rule cannot route rows of this table.
    broken: Option<String>,
}

/// A rule compiled for a table.
#[derive(Debug, Clone)]
struct ColumnsRoute {
    to: Recipients,
    event: String,
    operations: Vec<Operation>,
    changed: Vec<usize>,
    equals: Vec<(usize, String)>,
    /// A value in this column hides the row, as if it were deleted.
    gone: Option<usize>,
}

#[derive(Debug, Clone)]
enum Recipients {
    Tenant,
    Columns(Vec<RecipientColumn>),
}

/// A column that names recipients.
#[derive(Debug, Clone)]
struct RecipientColumn {
    index: usize,
    name: String,
    /// The column holds the id of such a group; else it names a user.
    group: Option<Arc<str>>,
    names: UserNames,
}

impl RecipientColumn {
    /// Whom a value names, if anybody.
    fn audience(&self, tenant: &str, value: ColumnValue<'_>) -> Result<Option<Audience>, RouteError> {
        let column = || self.name.clone();
        match (&self.group, value) {
            (None, value) => named_user(&self.names, tenant, value)
                .map(|user| user.map(Audience::User))
                .map_err(|cause| RouteError::Recipient {
                    column: column(),
                    cause,
                }),
            (Some(group), ColumnValue::Text(id)) => GroupId::new(group, id)
                .map(|group| Some(Audience::Group(group)))
                .map_err(|cause| RouteError::Group {
                    column: column(),
                    cause,
                }),
            (Some(_), ColumnValue::Null | ColumnValue::Unknown) => Ok(None),
        }
    }
}

impl Router {
    /// A router with the built-in rules and these, whose columns hold ids of users.
    pub fn new(rules: Vec<Rule>, groups: Groups) -> Self {
        let ids = UserNames::default;
        Self {
            rules: rules.into_iter().map(|rule| (rule, ids())).collect(),
            groups: groups.into_iter().map(|(name, group)| (name, group, ids())).collect(),
        }
    }

    /// A router with the built-in rules and the configured ones.
    pub fn configured(config: &Config) -> Self {
        let names = |subjects| user_names(subjects, &config.auth.providers);
        let rules = config.routes.iter();
        let groups = config.groups.iter();
        Self {
            rules: rules
                .map(|rule| (rule.clone(), names(rule.subjects.as_ref())))
                .collect(),
            groups: groups
                .map(|(name, group)| (name.clone(), group.clone(), names(group.subjects.as_ref())))
                .collect(),
        }
    }

    /// Whether groups are configured.
    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Where the rows of rules and groups are.
    fn placements(&self) -> impl Iterator<Item = Placement<'_>> {
        let rules = self.rules.iter().map(|(rule, _)| rule.placement());
        rules.chain(self.groups.iter().map(|(_, group, _)| group.placement()))
    }

    /// Whether any rule covers tables of this name in tenants' schemas, or a group has it as its table.
    pub fn covers(&self, table: &str) -> bool {
        let is_there = |place: Placement<'_>| place.outside.is_none() && place.table == table;
        BUILT_IN.contains(&table) || self.placements().any(is_there)
    }

    /// The tables outside of tenants' schemas that rules and groups name, by schema and name, each once.
    pub fn outside(&self) -> Vec<(&str, &str)> {
        let places = self.placements();
        let mut tables: Vec<_> = places
            .filter_map(|place| Some((place.outside?.0, place.table)))
            .collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Whether some row of a table may be a tenant's.
    pub fn may_be(&self, schema: &str, table: &str, tenant: &str) -> bool {
        match schema.strip_prefix(SCHEMA_PREFIX) {
            Some(own) => own == tenant,
            None => self
                .placements()
                .any(|place| place.is(schema, table) && place.share_of(tenant).is_some()),
        }
    }

    /// Whose rows a table has; `None` if no rule or group names a table that is in no tenant's schema.
    fn tenancy(&self, relation: &Relation) -> Option<Tenancy> {
        if let Some(tenant) = relation.schema.strip_prefix(SCHEMA_PREFIX) {
            return Some(Tenancy::Whole(tenant.into()));
        }
        let mut places = self.placements();
        let place = places.find(|place| place.is(&relation.schema, &relation.table))?;
        place.outside.map(|(_, of)| Tenancy::outside(of, relation))
    }

    /// The plan for a table, `None` when it belongs to no tenant.
    pub fn plan(&self, relation: &Relation) -> Option<Plan> {
        let tenancy = self.tenancy(relation)?;
        let is_outside = !relation.schema.starts_with(SCHEMA_PREFIX);
        let is_this = |place: Placement<'_>| match is_outside {
            true => place.is(&relation.schema, &relation.table),
            false => place.outside.is_none() && *place.table == *relation.table,
        };
        let columns = |names: &[&str]| names.iter().filter_map(|name| relation.column(name)).collect();
        let mut plan = Plan {
            tenancy,
            id_column: relation
                .column("id")
                .or_else(|| relation.columns.iter().position(|column| column.is_key)),
            inbox_column: None,
            user_column: None,
            delivered: None,
            live_columns: columns(live_columns(&relation.table)),
            removal_columns: columns(removal_columns(&relation.table)),
            messages: None,
            stored: Vec::new(),
            live_only: Vec::new(),
            members: None,
            names_audiences: false,
            broken: None,
        };
        let built_in = |to: &str, event: &str, changed: &[&str]| Rule::built_in(&relation.table, to, event, changed);
        match &*relation.table {
            // What only has the name of one of Posduif's.
            _ if is_outside => {}
            MESSAGES => match messages::Columns::of(relation) {
                Ok(columns) => plan.messages = Some(columns),
                Err(column) => plan.broken = Some(format!("table messages lacks the column {column}")),
            },
            "users" => {
                let visible = ["username", "user_type", "role", "email", "disabled_at", "deleted_at"];
                plan.user_column = relation.column("id");
                plan.store(&built_in(TENANT, event::CHANGE, &visible), relation);
                let access = built_in("id", event::DEVICE_CHANGED, &["disabled_at", "deleted_at"]);
                plan.deliver_live(&access, relation);
                // API nodes cache this column with the user.
                plan.deliver_live(&built_in("id", event::USER_SEEN, &["last_seen"]), relation);
            }
            ENCRYPTED_STATES => plan.store(&Rule::encrypted_states(), relation),
            "message_conflicts" => plan.store(&Rule::conflicts(), relation),
            MESSAGE_READS => plan.store(&Rule::message_reads(), relation),
            "devices" => {
                plan.inbox_column = relation.column("user_id");
                // API nodes drop a device that changed from their caches.
                let access = built_in(
                    "user_id",
                    event::DEVICE_CHANGED,
                    &["user_id", "revoked_at", "created_at", "token_renewed_at"],
                );
                plan.deliver_live(&access, relation);
                // A device that is added again gets another `created_at`.
                let mut added = built_in("user_id", event::DEVICE_ADDED, &["created_at"]);
                added.when.op = vec![Operation::Insert, Operation::Update];
                plan.store(&added, relation);
                let mut other_key = built_in("user_id", event::CHANGE, &["public_key"]);
                other_key.when.op = vec![Operation::Update];
                plan.store(&other_key, relation);
            }
            _ => {}
        }
        for (rule, names) in self.rules.iter().filter(|(rule, _)| is_this(rule.placement())) {
            plan.names_audiences |= rule.to.iter().any(|to| to.group().is_some());
            let route = plan.compile(rule, names, relation);
            plan.stored.extend(route);
            if !rule.columns.is_empty() {
                let mask = relation.columns.iter().map(|column| rule.delivers(&column.name));
                plan.delivered = Some(mask.collect());
            }
        }
        if let Some((name, group, names)) = self.groups.iter().find(|(_, group, _)| is_this(group.placement())) {
            match membership::Columns::compile(name, group, names, relation) {
                Ok(columns) => plan.members = Some(columns),
                Err(cause) => plan.broken = plan.broken.or(Some(cause)),
            }
        }
        Some(plan)
    }
}

impl Plan {
    fn store(&mut self, rule: &Rule, relation: &Relation) {
        let route = self.compile(rule, &UserNames::Ids, relation);
        self.stored.extend(route);
    }

    fn deliver_live(&mut self, rule: &Rule, relation: &Relation) {
        let route = self.compile(rule, &UserNames::Ids, relation);
        self.live_only.extend(route);
    }

    /// Compiles a rule for this table; records the first that does not fit.
    fn compile(&mut self, rule: &Rule, names: &UserNames, relation: &Relation) -> Option<ColumnsRoute> {
        match ColumnsRoute::compile(rule, names, relation) {
            Ok(route) => Some(route),
            Err(cause) => {
                self.broken.get_or_insert(cause);
                None
            }
        }
    }

    /// Whether any rule covers the table.
    pub fn is_routed(&self) -> bool {
        self.messages.is_some()
            || self.members.is_some()
            || !self.stored.is_empty()
            || !self.live_only.is_empty()
            || self.broken.is_some()
    }

    /// Whether the table lists the members of a group.
    pub fn lists_members(&self) -> bool {
        self.members.is_some()
    }

    /// The group to which a message goes, by who sees it.
    pub fn group_of_message<'a>(&self, audiences: &'a [Audience]) -> Option<&'a GroupId> {
        match audiences.first() {
            Some(Audience::Group(group)) if self.messages.is_some() => Some(group),
            _ => None,
        }
    }

    /// Who sees a row after the change, where a rule sends rows of this table to groups.
    pub fn audiences(&self, tenant: &str, row: &Row<'_>) -> Option<Vec<Audience>> {
        if let Some(columns) = &self.messages {
            return columns.audiences(row);
        }
        if !self.names_audiences {
            return None;
        }
        let mut audiences: Vec<Audience> = Vec::new();
        for route in &self.stored {
            let named = match route.visibility(tenant, row).after {
                Viewers::WholeTenant => vec![Audience::Tenant],
                Viewers::Some(named) => named,
            };
            for audience in named {
                if !audiences.contains(&audience) {
                    audiences.push(audience);
                }
            }
        }
        Some(audiences)
    }

    /// Appends the deliveries of a tenant's changed row. A user has at most one that is stored, and so has the tenant; where the
    /// user's own differs from the tenant's, it precedes that.
    ///
    /// # Errors
    /// When a rule does not fit the table, or a recipient column holds no user id. Deliveries by other rules and
    /// columns are appended nevertheless, as a snapshot would show the row to these users.
    pub fn route<'p>(&'p self, tenant: &str, row: &Row<'_>, out: &mut Vec<Delivery<'p>>) -> Result<(), RouteError> {
        let mut result = match &self.broken {
            Some(broken) => Err(RouteError::Rule(broken.clone())),
            None => Ok(()),
        };
        if let Some(columns) = &self.messages {
            let start = out.len();
            if let Err(cause) = columns.route(row, out) {
                out.truncate(start);
                result = Err(cause);
            }
        }
        for route in &self.live_only {
            let visibility = route.visibility(tenant, row);
            deliver(std::slice::from_ref(&visibility), false, out);
            result = result.and(visibility.check);
        }
        match &self.stored[..] {
            [] => {}
            // Nearly every table has one rule at most, which costs no allocation.
            [route] => {
                let visibility = route.visibility(tenant, row);
                deliver(std::slice::from_ref(&visibility), true, out);
                result = result.and(visibility.check);
            }
            routes => {
                let mut visibilities: Vec<_> = routes.iter().map(|route| route.visibility(tenant, row)).collect();
                if self.names_audiences && change_of_audiences(&visibilities) {
                    // All who see the row must learn by whom it is seen, since a client keeps it by that.
                    visibilities
                        .iter_mut()
                        .for_each(|visibility| visibility.is_watched = true);
                }
                deliver(&visibilities, true, out);
                for visibility in visibilities {
                    result = result.and(visibility.check);
                }
            }
        }
        if let Some(columns) = &self.members {
            result = result.and(columns.route(tenant, row, out));
        }
        result
    }
}

/// Who sees a row by one rule, before and after a change.
struct Visibility<'p> {
    before: Viewers,
    after: Viewers,
    /// The rule covers the operation.
    covers_operation: bool,
    /// The change is of interest to those who see the row before and after.
    is_watched: bool,
    event: &'p str,
    /// An error for a recipient column of the new row that holds no user id. Those of the old row were reported when it
    /// was written.
    check: Result<(), RouteError>,
}

/// How a change moves a row into or out of an audience's view.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transition {
    Unseen,
    Appears,
    Stays,
    Disappears,
}

impl Transition {
    fn of(is_visible_before: bool, is_visible_after: bool) -> Self {
        match (is_visible_before, is_visible_after) {
            (false, false) => Self::Unseen,
            (false, true) => Self::Appears,
            (true, true) => Self::Stays,
            (true, false) => Self::Disappears,
        }
    }

    /// The change as the audience sees it.
    fn operation(self) -> Option<Operation> {
        match self {
            Self::Unseen => None,
            Self::Appears => Some(Operation::Insert),
            Self::Stays => Some(Operation::Update),
            Self::Disappears => Some(Operation::Delete),
        }
    }
}

impl Visibility<'_> {
    /// Whether the rule by itself sends its event to an audience.
    fn sends_to(&self, audience: &Audience) -> bool {
        let transition = Transition::of(self.before.include(audience), self.after.include(audience));
        self.covers_operation
            && match transition {
                Transition::Unseen => false,
                Transition::Appears | Transition::Disappears => true,
                Transition::Stays => self.is_watched,
            }
    }
}

enum Viewers {
    WholeTenant,
    Some(Vec<Audience>),
}

impl Viewers {
    const NONE: Self = Self::Some(Vec::new());

    /// The audiences other than the tenant.
    fn named(&self) -> &[Audience] {
        match self {
            Self::WholeTenant => &[],
            Self::Some(named) => named,
        }
    }

    fn include(&self, audience: &Audience) -> bool {
        match self {
            Self::WholeTenant => true,
            Self::Some(named) => named.contains(audience),
        }
    }
}

/// The delivery of a change to one audience by several rules. A row is visible as long as one rule shows it, and the
/// event is that of the first rule that sends one and still shows the row, or else of the first that sends one.
fn delivery<'p>(rules: &[Visibility<'p>], audience: &Audience, stored: bool) -> Option<Delivery<'p>> {
    let before = rules.iter().any(|rule| rule.before.include(audience));
    let after = rules.iter().any(|rule| rule.after.include(audience));
    let operation = Transition::of(before, after).operation()?;
    let mut senders = rules.iter().filter(|rule| rule.sends_to(audience));
    let first = senders.clone().next()?;
    let sender = senders.find(|rule| rule.after.include(audience)).unwrap_or(first);
    Some(Delivery {
        audience: audience.clone(),
        operation,
        event: sender.event,
        stored,
        memberships: Vec::new(),
    })
}

/// Whether other audiences see the row than before.
fn change_of_audiences(rules: &[Visibility<'_>]) -> bool {
    let named = rules
        .iter()
        .flat_map(|rule| rule.before.named().iter().chain(rule.after.named()));
    named.chain([&Audience::Tenant]).any(|audience| {
        let before = rules.iter().any(|rule| rule.before.include(audience));
        before != rules.iter().any(|rule| rule.after.include(audience))
    })
}

/// Appends the deliveries of a change to all audiences of these rules. One whose delivery equals the tenant's gets only
/// that.
fn deliver<'p>(rules: &[Visibility<'p>], stored: bool, out: &mut Vec<Delivery<'p>>) {
    let common = delivery(rules, &Audience::Tenant, stored);
    let equals_common = |own: &Delivery<'p>| {
        let common = common.as_ref();
        common.is_some_and(|common| (common.operation, common.event) == (own.operation, own.event))
    };
    let before = rules.iter().flat_map(|rule| rule.before.named());
    let after = rules.iter().flat_map(|rule| rule.after.named());
    let start = out.len();
    for audience in before.chain(after) {
        if !out[start..].iter().any(|other| other.audience == *audience) {
            out.extend(delivery(rules, audience, stored).filter(|own| !equals_common(own)));
        }
    }
    out.extend(common);
}

impl ColumnsRoute {
    fn compile(rule: &Rule, names: &UserNames, relation: &Relation) -> Result<Self, String> {
        let find = |column: &str| {
            let missing = || {
                format!(
                    "the rule for table {} names column {column}, which does not exist",
                    rule.table
                )
            };
            relation.column(column).ok_or_else(missing)
        };
        let mut changed: Vec<usize> = rule
            .when
            .changed
            .iter()
            .map(|column| find(column))
            .collect::<Result<_, _>>()?;
        let to = if rule.is_for_tenant() {
            Recipients::Tenant
        } else {
            let column = |to: &Recipient| {
                Ok(RecipientColumn {
                    index: find(to.column())?,
                    name: to.column().to_owned(),
                    group: to.group().map(|(group, _)| group.as_str().into()),
                    names: names.clone(),
                })
            };
            let columns = rule.to.iter().map(column).collect::<Result<Vec<_>, String>>()?;
            // Those who lose or get a row must receive that, whatever else is watched.
            if !changed.is_empty() {
                changed.extend(columns.iter().map(|column| column.index));
            }
            Recipients::Columns(columns)
        };
        let equals = rule.when.equals.iter();
        Ok(Self {
            to,
            event: rule.event.clone(),
            operations: rule.when.op.clone(),
            changed,
            equals: equals
                .map(|(column, text)| Ok((find(column)?, text.clone())))
                .collect::<Result<_, String>>()?,
            gone: relation.column(Rule::gone_column(&rule.table)),
        })
    }

    /// Who sees a row by this rule. A row that begins or ceases to match the condition appears or disappears. A
    /// recipient that is no user id is skipped and reported.
    fn visibility(&self, tenant: &str, row: &Row<'_>) -> Visibility<'_> {
        let old_matches = row.has_before() && self.matches(|column| row.before(column));
        let new_matches = row.has_after() && self.matches(|column| row.after(column));
        let (after, check) = if new_matches {
            self.viewers(tenant, |column| row.after(column))
        } else {
            (Viewers::NONE, Ok(()))
        };
        let mut before = if old_matches {
            self.viewers(tenant, |column| row.before(column)).0
        } else {
            Viewers::NONE
        };
        // Where the log lacks the old recipients, the new ones count as such.
        if let (Recipients::Columns(columns), Viewers::Some(old)) = (&self.to, &mut before)
            && old_matches
            && columns
                .iter()
                .any(|column| row.before(column.index) == ColumnValue::Unknown)
        {
            old.extend_from_slice(after.named());
        }
        Visibility {
            before,
            after,
            covers_operation: self.operations.is_empty() || self.operations.contains(&row.operation),
            is_watched: self.changed.is_empty() || self.changed.iter().any(|column| row.has_changed(*column)),
            event: &self.event,
            check,
        }
    }

    /// Whether a row with these values is visible at all.
    fn matches<'a>(&self, value: impl Fn(usize) -> ColumnValue<'a>) -> bool {
        let equal = |(column, text): &(usize, String)| match value(*column) {
            ColumnValue::Text(value) => value == text.as_bytes(),
            ColumnValue::Null => false,
            ColumnValue::Unknown => true,
        };
        self.equals.iter().all(equal) && !self.gone.is_some_and(|column| value(column).is_set())
    }

    /// The recipients that these values name, and an error for the first that is no id.
    fn viewers<'a>(&self, tenant: &str, value: impl Fn(usize) -> ColumnValue<'a>) -> (Viewers, Result<(), RouteError>) {
        let Recipients::Columns(columns) = &self.to else {
            return (Viewers::WholeTenant, Ok(()));
        };
        let (mut named, mut check) = (Vec::new(), Ok(()));
        for column in columns {
            match column.audience(tenant, value(column.index)) {
                Ok(audience) => named.extend(audience.filter(|audience| !named.contains(audience))),
                Err(cause) => check = check.and(Err(cause)),
            }
        }
        (Viewers::Some(named), check)
    }
}
