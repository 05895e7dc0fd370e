//! Compiles rules to plans, one a table, and applies them to rows.

use std::sync::Arc;

use uuid::Uuid;

use super::messages;
use super::row::{NotAUserId, Row, Seen, user_id};
use super::rule::{ENCRYPTED_STATES, Operation, Rule, TENANT};
use crate::decode::relation::Relation;

/// Each tenant's schema is this and its name.
pub const SCHEMA_PREFIX: &str = "tenant_";

/// Who is to see a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Audience {
    /// One user.
    User(Uuid),
    /// Every user of the tenant.
    Tenant,
}

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
    pub birth_column: Option<usize>,
    /// Columns whose values live events tell.
    pub told_columns: Vec<usize>,
    routes: Vec<Route>,
    /// Why rows of this table cannot be routed.
    broken: Option<String>,
}

#[derive(Debug, Clone)]
enum Route {
    Messages(messages::Columns),
    Columns(ColumnsRoute),
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
    stored: bool,
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
            birth_column: None,
            told_columns: Rule::told_columns(&relation.table)
                .iter()
                .filter_map(|column| relation.column(column))
                .collect(),
            routes: Vec::new(),
            broken: None,
        };
        let built_in = |to: &str, event: &str, changed: &[&str]| Rule::built_in(&relation.table, to, event, changed);
        let result = match &*relation.table {
            "messages" => messages::Columns::of(relation)
                .map(|columns| plan.routes.push(Route::Messages(columns)))
                .map_err(|column| format!("table messages lacks the column {column}")),
            "users" => {
                plan.birth_column = relation.column("id");
                let visible = ["username", "user_type", "email", "disabled_at", "deleted_at"];
                plan.add(&built_in(TENANT, "change", &visible), relation, true)
                    .and_then(|()| {
                        plan.add(
                            &built_in("id", "device_changed", &["disabled_at", "deleted_at"]),
                            relation,
                            false,
                        )
                    })
                    // What API nodes remember of a user shows this too.
                    .and_then(|()| plan.add(&built_in("id", "user_seen", &["last_seen"]), relation, false))
            }
            ENCRYPTED_STATES => plan.add(&Rule::encrypted_states(), relation, true),
            "message_conflicts" => plan.add(&Rule::conflicts(), relation, true),
            "devices" => {
                let mut other_key = built_in("user_id", "change", &["public_key"]);
                other_key.when.op = vec![Operation::Update];
                // API nodes drop what they remember of a device that changed.
                let standing = built_in("user_id", "device_changed", &["user_id", "revoked_at", "created_at"]);
                plan.add(&standing, relation, false)
                    .and_then(|()| plan.add(&other_key, relation, true))
            }
            _ => Ok(()),
        };
        let own = self.rules.iter().filter(|rule| *rule.table == *relation.table);
        let result = own.fold(result, |result, rule| {
            result.and_then(|()| plan.add(rule, relation, true))
        });
        plan.broken = result.err();
        Some(plan)
    }
}

impl Plan {
    fn add(&mut self, rule: &Rule, relation: &Relation, stored: bool) -> Result<(), String> {
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
        self.routes.push(Route::Columns(ColumnsRoute {
            to,
            event: rule.event.clone(),
            operations: rule.when.op.clone(),
            changed,
            equals: rule
                .when
                .equals
                .iter()
                .map(|(column, text)| Ok((find(column)?, text.clone())))
                .collect::<Result<_, String>>()?,
            gone: relation.column(Rule::gone_column(&rule.table)),
            stored,
        }));
        Ok(())
    }

    /// Whether any rule covers the table.
    pub fn is_routed(&self) -> bool {
        !self.routes.is_empty() || self.broken.is_some()
    }

    /// Appends who sees a row.
    ///
    /// # Errors
    /// When a rule covers the table but the row names no valid recipient; nothing is appended then.
    pub fn route<'p>(&'p self, row: &Row<'_>, out: &mut Vec<Delivery<'p>>) -> Result<(), RouteError> {
        if let Some(broken) = &self.broken {
            return Err(RouteError::Rule(broken.clone()));
        }
        let start = out.len();
        for route in &self.routes {
            let result = match route {
                Route::Messages(columns) => columns.route(row, out).map_err(|cause| RouteError::Recipient {
                    column: "sender_id or recipient_id".into(),
                    cause,
                }),
                Route::Columns(route) => route.route(row, out),
            };
            if let Err(error) = result {
                out.truncate(start);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl ColumnsRoute {
    fn route<'p>(&'p self, row: &Row<'_>, out: &mut Vec<Delivery<'p>>) -> Result<(), RouteError> {
        if !self.operations.is_empty() && !self.operations.contains(&row.operation) {
            return Ok(());
        }
        // For its recipients a row appears, changes or disappears; moving in or out of the condition counts too.
        let old_fits = row.operation != Operation::Insert && self.fits(row, Row::before);
        let new_fits = row.operation != Operation::Delete && self.fits(row, Row::after);
        if row.operation == Operation::Update
            && old_fits
            && new_fits
            && !self.changed.is_empty()
            && !self.changed.iter().any(|column| row.has_changed(*column))
        {
            return Ok(());
        }
        let deliver = |audience, operation, out: &mut Vec<Delivery<'p>>| {
            out.push(Delivery {
                audience,
                operation,
                event: &self.event,
                stored: self.stored,
            });
        };
        match &self.to {
            Recipients::Tenant => match (old_fits, new_fits) {
                (false, false) => {}
                (false, true) => deliver(Audience::Tenant, Operation::Insert, out),
                (true, true) => deliver(Audience::Tenant, Operation::Update, out),
                (true, false) => deliver(Audience::Tenant, Operation::Delete, out),
            },
            Recipients::Columns(columns) => {
                let old = if old_fits {
                    self.users(columns, row, Row::before)?
                } else {
                    Vec::new()
                };
                let new = if new_fits {
                    self.users(columns, row, Row::after)?
                } else {
                    Vec::new()
                };
                for user in old.iter().filter(|user| !new.contains(user)) {
                    deliver(Audience::User(*user), Operation::Delete, out);
                }
                // Where the log does not have the old recipients, they count as those of the new row.
                let is_unknown = |(column, _): &(usize, String)| row.before(*column) == Seen::Unknown;
                let unknown = old_fits && columns.iter().any(is_unknown);
                for user in &new {
                    let known = unknown || old.contains(user);
                    let operation = if known { Operation::Update } else { Operation::Insert };
                    deliver(Audience::User(*user), operation, out);
                }
            }
        }
        Ok(())
    }

    fn fits<'a>(&self, row: &Row<'a>, side: fn(&Row<'a>, usize) -> Seen<'a>) -> bool {
        let equal = |(column, text): &(usize, String)| match side(row, *column) {
            Seen::Text(value) => value == text.as_bytes(),
            Seen::Null => false,
            Seen::Unknown => true,
        };
        self.equals.iter().all(equal) && !self.gone.is_some_and(|column| side(row, column).is_set())
    }

    fn users<'a>(
        &self,
        columns: &[(usize, String)],
        row: &Row<'a>,
        side: fn(&Row<'a>, usize) -> Seen<'a>,
    ) -> Result<Vec<Uuid>, RouteError> {
        let mut users = Vec::with_capacity(columns.len());
        for (column, name) in columns {
            let user = user_id(side(row, *column)).map_err(|cause| RouteError::Recipient {
                column: name.clone(),
                cause,
            })?;
            users.extend(user.filter(|user| !users.contains(user)));
        }
        Ok(users)
    }
}
