//! Compiles rules to plans, one a table, and applies them to rows.

use crate::contract::stream_name::Audience;
use std::sync::Arc;

use uuid::Uuid;

use super::messages;
use super::row::{ColumnValue, NotAUserId, Row, user_id};
use super::rule::{ENCRYPTED_STATES, Operation, Rule, TENANT};
use crate::decode::relation::Relation;

/// Each tenant's schema is this and its name.
pub const SCHEMA_PREFIX: &str = "tenant_";

/// One change for one audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'p> {
    /// Who sees it.
    pub audience: Audience,
    /// What it is for them: a row that moved to somebody else is a delete for the one who had it.
    pub operation: Operation,
    /// Name of the live event.
    pub event: &'p str,
    /// Stored in the inbox or the shared stream; otherwise only live.
    pub stored: bool,
}

impl<'p> Delivery<'p> {
    /// A delivery that a stream keeps.
    pub fn stored(audience: Audience, operation: Operation, event: &'p str) -> Self {
        Self {
            audience,
            operation,
            event,
            stored: true,
        }
    }
}

/// A row that has no route although a rule covers its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A recipient column holds no user id.
    #[error("column {column}: {cause}")]
    Recipient {
        /// The column.
        column: String,
        /// What it holds.
        cause: NotAUserId,
    },
    /// A rule does not fit its table.
    #[error("{0}")]
    Rule(String),
}

/// All rules, built-in and the operator's.
#[derive(Debug, Clone)]
pub struct Router {
    rules: Vec<Rule>,
}

/// What a table's rows mean for whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The tenant whose schema holds the table.
    pub tenant: Arc<str>,
    /// The column that identifies a row to clients, `id` where there is one.
    pub id_column: Option<usize>,
    /// The column that makes an insert the birth of a user, in `users`.
    pub creation_column: Option<usize>,
    /// Columns whose values live events deliver.
    pub live_columns: Vec<usize>,
    /// The built-in rule for messages, where this is their table.
    messages: Option<messages::Columns>,
    /// Rules whose deliveries streams keep: each user is told a change once, however many of them say so.
    stored: Vec<ColumnsRoute>,
    /// Rules whose deliveries are only live, each an event of its own.
    fleeting: Vec<ColumnsRoute>,
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
    /// A set value means that the row is as good as deleted.
    gone: Option<usize>,
}

#[derive(Debug, Clone)]
enum Recipients {
    Tenant,
    Columns(Vec<(usize, String)>),
}

impl Router {
    /// A router with the built-in rules and these.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
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
            live_columns: Rule::live_columns(&relation.table)
                .iter()
                .filter_map(|column| relation.column(column))
                .collect(),
            messages: None,
            stored: Vec::new(),
            fleeting: Vec::new(),
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
                let visible = ["username", "user_type", "email", "disabled_at", "deleted_at"];
                plan.store(&built_in(TENANT, "change", &visible), relation);
                let standing = built_in("id", "device_changed", &["disabled_at", "deleted_at"]);
                plan.only_deliver(&standing, relation);
                // What API nodes remember of a user shows this too.
                plan.only_deliver(&built_in("id", "user_seen", &["last_seen"]), relation);
            }
            ENCRYPTED_STATES => plan.store(&Rule::encrypted_states(), relation),
            "message_conflicts" => plan.store(&Rule::conflicts(), relation),
            "devices" => {
                // API nodes drop what they remember of a device that changed.
                let standing = built_in("user_id", "device_changed", &["user_id", "revoked_at", "created_at"]);
                plan.only_deliver(&standing, relation);
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

    fn only_deliver(&mut self, rule: &Rule, relation: &Relation) {
        let route = self.compile(rule, relation);
        self.fleeting.extend(route);
    }

    /// The rule for this table; the first that does not fit is noted.
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
        self.messages.is_some() || !self.stored.is_empty() || !self.fleeting.is_empty() || self.broken.is_some()
    }

    /// Appends who sees a row. A user has at most one delivery that is stored, and so has the tenant; where a user's own
    /// differs from the tenant's, it goes before that.
    ///
    /// # Errors
    /// When a rule does not fit the table, or the row names somebody who cannot be a user. Who sees it by other rules and
    /// columns is appended nevertheless, as a snapshot would show it to them.
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
        let mut visibility = |route: &'p ColumnsRoute| route.visibility(row, &mut result);
        for route in &self.fleeting {
            deliver(&[visibility(route)], false, out);
        }
        match &self.stored[..] {
            [] => {}
            // As nearly every table has it.
            [route] => deliver(&[visibility(route)], true, out),
            routes => deliver(&routes.iter().map(visibility).collect::<Vec<_>>(), true, out),
        }
        result
    }
}

/// Who sees a row by one rule.
struct Visibility<'p> {
    before: Viewers,
    after: Viewers,
    /// Whether the rule tells of the operation at all.
    is_told: bool,
    /// Whether it tells those who see the row before and after.
    is_change_told: bool,
    event: &'p str,
}

enum Viewers {
    Everybody,
    These(Vec<Uuid>),
}

impl Viewers {
    const NOBODY: Self = Self::These(Vec::new());

    fn users(&self) -> &[Uuid] {
        match self {
            Self::Everybody => &[],
            Self::These(users) => users,
        }
    }

    fn include(&self, audience: Audience) -> bool {
        match (self, audience) {
            (Self::Everybody, _) => true,
            (Self::These(users), Audience::User(user)) => users.contains(&user),
            (Self::These(_), Audience::Tenant) => false,
        }
    }
}

/// Appends what an audience is told of a row that it sees by these rules: a row is somebody's as long as one of them says
/// so, and the event is that of the first by which it still is.
fn deliver<'p>(sights: &[Visibility<'p>], stored: bool, out: &mut Vec<Delivery<'p>>) {
    let delivery = |audience| {
        let saw = sights.iter().any(|visibility| visibility.before.include(audience));
        let sees = sights.iter().any(|visibility| visibility.after.include(audience));
        let operation = match (saw, sees) {
            (false, false) => return None,
            (false, true) => Operation::Insert,
            (true, true) => Operation::Update,
            (true, false) => Operation::Delete,
        };
        let is_telling = |visibility: &&Visibility<'p>| {
            let (before, after) = (visibility.before.include(audience), visibility.after.include(audience));
            visibility.is_told && (before != after || before && visibility.is_change_told)
        };
        let mut telling = sights.iter().filter(is_telling);
        let first = telling.next()?;
        let still = |visibility: &&Visibility<'p>| visibility.after.include(audience);
        let teller = std::iter::once(first).chain(telling).find(still).unwrap_or(first);
        Some(Delivery {
            audience,
            operation,
            event: teller.event,
            stored,
        })
    };
    let common = delivery(Audience::Tenant);
    let is_common = |own: &Delivery<'p>| {
        common.is_some_and(|common| (common.operation, common.event) == (own.operation, own.event))
    };
    let before = sights.iter().flat_map(|visibility| visibility.before.users());
    let after = sights.iter().flat_map(|visibility| visibility.after.users());
    let start = out.len();
    for user in before.chain(after) {
        let audience = Audience::User(*user);
        if !out[start..].iter().any(|other| other.audience == audience) {
            out.extend(delivery(audience).filter(|own| !is_common(own)));
        }
    }
    out.extend(common);
}

impl ColumnsRoute {
    fn compile(rule: &Rule, relation: &Relation) -> Result<Self, String> {
        let find = |column: &String| {
            let missing = || {
                format!(
                    "the rule for table {} names column {column}, which it lacks",
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
            // Whoever loses a row or gets one must learn it, whatever else is watched.
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

    /// Who sees a row by this rule. Moving in or out of the condition counts as coming and going. A recipient that is no
    /// user is passed over, and of the new row noted in `result`: of the old one that was done when it came.
    fn visibility(&self, row: &Row<'_>, result: &mut Result<(), RouteError>) -> Visibility<'_> {
        let old_fits = row.operation != Operation::Insert && self.fits(row, Row::before);
        let new_fits = row.operation != Operation::Delete && self.fits(row, Row::after);
        let is_change_told = self.changed.is_empty() || self.changed.iter().any(|column| row.has_changed(*column));
        let (before, after) = match &self.to {
            Recipients::Tenant => {
                let seers = |fits| if fits { Viewers::Everybody } else { Viewers::NOBODY };
                (seers(old_fits), seers(new_fits))
            }
            Recipients::Columns(columns) => {
                let (mut old, mut new) = (Vec::new(), Vec::new());
                if old_fits {
                    users(columns, row, Row::before, &mut old, &mut Ok(()));
                }
                if new_fits {
                    users(columns, row, Row::after, &mut new, result);
                }
                // Where the log does not have the old recipients, they count as those of the new row.
                let is_unknown = |(column, _): &(usize, String)| row.before(*column) == ColumnValue::Unknown;
                if old_fits && columns.iter().any(is_unknown) {
                    old.extend(&new);
                }
                (Viewers::These(old), Viewers::These(new))
            }
        };
        Visibility {
            before,
            after,
            is_told: self.operations.is_empty() || self.operations.contains(&row.operation),
            is_change_told,
            event: &self.event,
        }
    }

    fn fits<'a>(&self, row: &Row<'a>, side: fn(&Row<'a>, usize) -> ColumnValue<'a>) -> bool {
        let equal = |(column, text): &(usize, String)| match side(row, *column) {
            ColumnValue::Text(value) => value == text.as_bytes(),
            ColumnValue::Null => false,
            ColumnValue::Unknown => true,
        };
        self.equals.iter().all(equal) && !self.gone.is_some_and(|column| side(row, column).is_set())
    }
}

/// Adds the users that one side of a row names, and notes the first that is none.
fn users<'a>(
    columns: &[(usize, String)],
    row: &Row<'a>,
    side: fn(&Row<'a>, usize) -> ColumnValue<'a>,
    users: &mut Vec<Uuid>,
    result: &mut Result<(), RouteError>,
) {
    for (column, name) in columns {
        match user_id(side(row, *column)) {
            Ok(user) => users.extend(user.filter(|user| !users.contains(user))),
            Err(cause) => {
                if result.is_ok() {
                    *result = Err(RouteError::Recipient {
                        column: name.clone(),
                        cause,
                    });
                }
            }
        }
    }
}
