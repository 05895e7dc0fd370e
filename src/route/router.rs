//! Compiles the rules into one plan per table, and applies plans to rows.

use std::sync::Arc;

use uuid::Uuid;

use super::messages;
use super::row::{ColumnValue, NotAUserId, Row, user_id};
use crate::config::rule::{ENCRYPTED_STATES, Rule, TENANT};
use crate::contract::entry::live_columns;
use crate::contract::stream_name::Audience;
use crate::core::operation::Operation;
use crate::decode::relation::Relation;

/// A tenant's schema is this prefix and its name.
pub const SCHEMA_PREFIX: &str = "tenant_";

/// Tables with built-in rules.
const BUILT_IN: [&str; 5] = ["messages", "users", ENCRYPTED_STATES, "message_conflicts", "devices"];

/// One change for one audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'p> {
    pub audience: Audience,
    /// What happened from their point of view: a row that moved to another user is deleted for the previous one.
    pub operation: Operation,
    /// Name of the live event.
    pub event: &'p str,
    /// Stored in the inbox or the shared stream; otherwise only live.
    pub stored: bool,
}

impl<'p> Delivery<'p> {
    /// A delivery that is stored in a stream.
    pub fn stored(audience: Audience, operation: Operation, event: &'p str) -> Self {
        Self {
            audience,
            operation,
            event,
            stored: true,
        }
    }
}

/// A row that cannot be routed completely, although a rule covers its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A recipient column holds no user id.
    #[error("column {column}: {cause}")]
    Recipient { column: String, cause: NotAUserId },
    /// A rule does not fit its table.
    #[error("{0}")]
    Rule(String),
}

/// All rules, built-in and configured.
#[derive(Debug, Clone)]
pub struct Router {
    rules: Vec<Rule>,
}

/// The rules of one table, compiled.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The tenant whose schema holds the table.
    pub tenant: Arc<str>,
    /// The column that identifies a row to clients, `id` where there is one.
    pub id_column: Option<usize>,
    /// In `users`, the column with the id of the user that an insert creates.
    pub creation_column: Option<usize>,
    /// Columns whose values live events deliver.
    pub live_columns: Vec<usize>,
    /// The built-in rule for messages, where this is their table.
    messages: Option<messages::Columns>,
    /// Rules whose deliveries are stored: each user gets a change once, however many rules match.
    stored: Vec<ColumnsRoute>,
    /// Rules whose deliveries are only live; each rule sends its own event.
    live_only: Vec<ColumnsRoute>,
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
    Columns(Vec<(usize, String)>),
}

impl Router {
    /// A router with the built-in rules and the configured ones.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// Whether any rule covers tables of this name.
    pub fn covers(&self, table: &str) -> bool {
        BUILT_IN.contains(&table) || self.rules.iter().any(|rule| *rule.table == *table)
    }

    /// The plan for a table, `None` when it belongs to no tenant.
    pub fn plan(&self, relation: &Relation) -> Option<Plan> {
        let tenant = relation.schema.strip_prefix(SCHEMA_PREFIX)?;
        let mut plan = Plan {
            tenant: tenant.into(),
            id_column: relation
                .column("id")
                .or_else(|| relation.columns.iter().position(|column| column.is_key)),
            creation_column: None,
            live_columns: live_columns(&relation.table)
                .iter()
                .filter_map(|column| relation.column(column))
                .collect(),
            messages: None,
            stored: Vec::new(),
            live_only: Vec::new(),
            broken: None,
        };
        let built_in = |to: &str, event: &str, changed: &[&str]| Rule::built_in(&relation.table, to, event, changed);
        match &*relation.table {
            "messages" => match messages::Columns::of(relation) {
                Ok(columns) => plan.messages = Some(columns),
                Err(column) => plan.broken = Some(format!("table messages lacks the column {column}")),
            },
            "users" => {
                plan.creation_column = relation.column("id");
                let visible = ["username", "user_type", "role", "email", "disabled_at", "deleted_at"];
                plan.store(&built_in(TENANT, "change", &visible), relation);
                let access = built_in("id", "device_changed", &["disabled_at", "deleted_at"]);
                plan.deliver_live(&access, relation);
                // API nodes cache this column with the user.
                plan.deliver_live(&built_in("id", "user_seen", &["last_seen"]), relation);
            }
            ENCRYPTED_STATES => plan.store(&Rule::encrypted_states(), relation),
            "message_conflicts" => plan.store(&Rule::conflicts(), relation),
            "devices" => {
                // API nodes drop a device that changed from their caches.
                let access = built_in("user_id", "device_changed", &["user_id", "revoked_at", "created_at"]);
                plan.deliver_live(&access, relation);
                // A device that is added again gets another `created_at`.
                let mut added = built_in("user_id", "device_added", &["created_at"]);
                added.when.op = vec![Operation::Insert, Operation::Update];
                plan.store(&added, relation);
                let mut other_key = built_in("user_id", "change", &["public_key"]);
                other_key.when.op = vec![Operation::Update];
                plan.store(&other_key, relation);
            }
            _ => {}
        }
        for rule in self.rules.iter().filter(|rule| *rule.table == *relation.table) {
            plan.store(rule, relation);
        }
        Some(plan)
    }
}

impl Plan {
    fn store(&mut self, rule: &Rule, relation: &Relation) {
        let route = self.compile(rule, relation);
        self.stored.extend(route);
    }

    fn deliver_live(&mut self, rule: &Rule, relation: &Relation) {
        let route = self.compile(rule, relation);
        self.live_only.extend(route);
    }

    /// Compiles a rule for this table; records the first that does not fit.
    fn compile(&mut self, rule: &Rule, relation: &Relation) -> Option<ColumnsRoute> {
        match ColumnsRoute::compile(rule, relation) {
            Ok(route) => Some(route),
            Err(cause) => {
                self.broken.get_or_insert(cause);
                None
            }
        }
    }

    /// Whether any rule covers the table.
    pub fn is_routed(&self) -> bool {
        self.messages.is_some() || !self.stored.is_empty() || !self.live_only.is_empty() || self.broken.is_some()
    }

    /// Appends the deliveries of a changed row. A user has at most one that is stored, and so has the tenant; where the
    /// user's own differs from the tenant's, it precedes that.
    ///
    /// # Errors
    /// When a rule does not fit the table, or a recipient column holds no user id. Deliveries by other rules and
    /// columns are appended nevertheless, as a snapshot would show the row to these users.
    pub fn route<'p>(&'p self, row: &Row<'_>, out: &mut Vec<Delivery<'p>>) -> Result<(), RouteError> {
        let mut result = match &self.broken {
            Some(broken) => Err(RouteError::Rule(broken.clone())),
            None => Ok(()),
        };
        if let Some(columns) = &self.messages {
            let start = out.len();
            if let Err(cause) = columns.route(row, out) {
                out.truncate(start);
                result = Err(RouteError::Recipient {
                    column: "sender_id or recipient_id".into(),
                    cause,
                });
            }
        }
        for route in &self.live_only {
            let visibility = route.visibility(row);
            deliver(std::slice::from_ref(&visibility), false, out);
            result = result.and(visibility.check);
        }
        match &self.stored[..] {
            [] => {}
            // Nearly every table has one rule at most, which costs no allocation.
            [route] => {
                let visibility = route.visibility(row);
                deliver(std::slice::from_ref(&visibility), true, out);
                result = result.and(visibility.check);
            }
            routes => {
                let visibilities: Vec<_> = routes.iter().map(|route| route.visibility(row)).collect();
                deliver(&visibilities, true, out);
                for visibility in visibilities {
                    result = result.and(visibility.check);
                }
            }
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
    fn sends_to(&self, audience: Audience) -> bool {
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
    Users(Vec<Uuid>),
}

impl Viewers {
    const NONE: Self = Self::Users(Vec::new());

    fn users(&self) -> &[Uuid] {
        match self {
            Self::WholeTenant => &[],
            Self::Users(users) => users,
        }
    }

    fn include(&self, audience: Audience) -> bool {
        match (self, audience) {
            (Self::WholeTenant, _) => true,
            (Self::Users(users), Audience::User(user)) => users.contains(&user),
            (Self::Users(_), Audience::Tenant) => false,
        }
    }
}

/// The delivery of a change to one audience by several rules. A row is visible as long as one rule shows it, and the
/// event is that of the first rule that sends one and still shows the row, or else of the first that sends one.
fn delivery<'p>(rules: &[Visibility<'p>], audience: Audience, stored: bool) -> Option<Delivery<'p>> {
    let before = rules.iter().any(|rule| rule.before.include(audience));
    let after = rules.iter().any(|rule| rule.after.include(audience));
    let operation = Transition::of(before, after).operation()?;
    let mut senders = rules.iter().filter(|rule| rule.sends_to(audience));
    let first = senders.clone().next()?;
    let sender = senders.find(|rule| rule.after.include(audience)).unwrap_or(first);
    Some(Delivery {
        audience,
        operation,
        event: sender.event,
        stored,
    })
}

/// Appends the deliveries of a change to all audiences of these rules. A user whose delivery equals the tenant's gets
/// only that.
fn deliver<'p>(rules: &[Visibility<'p>], stored: bool, out: &mut Vec<Delivery<'p>>) {
    let common = delivery(rules, Audience::Tenant, stored);
    let equals_common = |own: &Delivery<'p>| {
        common.is_some_and(|common| (common.operation, common.event) == (own.operation, own.event))
    };
    let before = rules.iter().flat_map(|rule| rule.before.users());
    let after = rules.iter().flat_map(|rule| rule.after.users());
    let start = out.len();
    for user in before.chain(after) {
        let audience = Audience::User(*user);
        if !out[start..].iter().any(|other| other.audience == audience) {
            out.extend(delivery(rules, audience, stored).filter(|own| !equals_common(own)));
        }
    }
    out.extend(common);
}

impl ColumnsRoute {
    fn compile(rule: &Rule, relation: &Relation) -> Result<Self, String> {
        let find = |column: &String| {
            let missing = || {
                format!(
                    "the rule for table {} names column {column}, which does not exist",
                    rule.table
                )
            };
            relation.column(column).ok_or_else(missing)
        };
        let mut changed: Vec<usize> = rule.when.changed.iter().map(find).collect::<Result<_, _>>()?;
        let to = if rule.to == [TENANT] {
            Recipients::Tenant
        } else {
            let columns = rule.to.iter().map(|column| Ok((find(column)?, column.clone())));
            let columns = columns.collect::<Result<Vec<_>, String>>()?;
            // Users who lose or get a row must receive that, whatever else is watched.
            if !changed.is_empty() {
                changed.extend(columns.iter().map(|(column, _)| *column));
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
    fn visibility(&self, row: &Row<'_>) -> Visibility<'_> {
        let old_matches = row.operation != Operation::Insert && self.matches(|column| row.before(column));
        let new_matches = row.operation != Operation::Delete && self.matches(|column| row.after(column));
        let (after, check) = if new_matches {
            self.viewers(|column| row.after(column))
        } else {
            (Viewers::NONE, Ok(()))
        };
        let mut before = if old_matches {
            self.viewers(|column| row.before(column)).0
        } else {
            Viewers::NONE
        };
        // Where the log lacks the old recipients, the new ones count as such.
        if let (Recipients::Columns(columns), Viewers::Users(old)) = (&self.to, &mut before)
            && old_matches
            && columns
                .iter()
                .any(|(column, _)| row.before(*column) == ColumnValue::Unknown)
        {
            old.extend(after.users());
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

    /// The recipients that these values name, and an error for the first that is no user id.
    fn viewers<'a>(&self, value: impl Fn(usize) -> ColumnValue<'a>) -> (Viewers, Result<(), RouteError>) {
        let Recipients::Columns(columns) = &self.to else {
            return (Viewers::WholeTenant, Ok(()));
        };
        let (mut users, mut check) = (Vec::new(), Ok(()));
        for (column, name) in columns {
            match user_id(value(*column)) {
                Ok(user) => users.extend(user.filter(|user| !users.contains(user))),
                Err(cause) => {
                    let column = name.clone();
                    check = check.and(Err(RouteError::Recipient { column, cause }));
                }
            }
        }
        (Viewers::Users(users), check)
    }
}
