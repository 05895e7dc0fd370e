//! Properties for any input: routing and array literals.

use std::collections::HashSet;

use posduif::config::group::Groups;
use posduif::config::rule::{Recipient, Rule, When};
use posduif::contract::stream_name::Audience;
use posduif::core::operation::Operation;
use posduif::decode::pgoutput::{Cell, Old, ReplicaIdentity, Tuple};
use posduif::decode::relation::{Column, Relation};
use posduif::decode::value::{Kind, write_json};
use posduif::route::router::{Delivery, Plan, RouteError, Router};
use posduif::route::row::Row;
use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

/// A column's value: few of them, so that rows often have the same.
type Content = Option<String>;

/// A change: the row before and after.
#[derive(Debug, Clone)]
enum Change {
    Insert(Vec<Content>),
    Update(Vec<Content>, Vec<Content>),
    Delete(Vec<Content>),
}

impl Change {
    fn before(&self) -> Option<&Vec<Content>> {
        match self {
            Self::Insert(_) => None,
            Self::Update(old, _) | Self::Delete(old) => Some(old),
        }
    }

    fn after(&self) -> Option<&Vec<Content>> {
        match self {
            Self::Delete(_) => None,
            Self::Insert(new) | Self::Update(_, new) => Some(new),
        }
    }

    fn operation(&self) -> Operation {
        match self {
            Self::Insert(_) => Operation::Insert,
            Self::Update(..) => Operation::Update,
            Self::Delete(_) => Operation::Delete,
        }
    }
}

fn relation(table: &str, columns: &[&str]) -> Relation {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        is_key: true,
        kind: Kind::Text,
        json_key: Vec::new(),
    };
    Relation {
        oid: 1,
        schema: "tenant_acme".into(),
        table: table.into(),
        replica_identity: ReplicaIdentity::Full,
        columns: columns.iter().map(column).collect(),
    }
}

fn tuple(row: &[Content]) -> Tuple<'_> {
    row.iter()
        .map(|content| match content {
            Some(text) => Cell::Text(text.as_bytes()),
            None => Cell::Null,
        })
        .collect()
}

/// Routes a change as the WAL shows it under REPLICA IDENTITY FULL.
fn route<'p>(plan: &'p Plan, change: &Change) -> Vec<Delivery<'p>> {
    let (deliveries, result) = try_route(plan, change);
    result.unwrap();
    deliveries
}

fn try_route<'p>(plan: &'p Plan, change: &Change) -> (Vec<Delivery<'p>>, Result<(), RouteError>) {
    let old = change.before().map(|row| Old::Full(tuple(row)));
    let new = change.after().map(|row| tuple(row));
    let row = match (&old, &new) {
        (None, Some(new)) => Row::inserted(new),
        (Some(old), Some(new)) => Row::updated(Some(old), new),
        (Some(old), None) => Row::deleted(old),
        (None, None) => unreachable!("a change has a side"),
    };
    let mut deliveries = Vec::new();
    let result = plan.route("acme", &row, &mut deliveries);
    (deliveries, result)
}

fn users(row: Option<&Vec<Content>>, columns: &[usize]) -> HashSet<Uuid> {
    let ids = columns.iter().filter_map(|column| row?[*column].as_deref());
    ids.filter_map(|text| text.parse().ok()).collect()
}

/// Checks that each user who no longer sees the row receives one delete, each user who sees it now at most one change with
/// the right operation, and no other user anything.
fn check_audiences(
    deliveries: &[Delivery<'_>],
    before: &HashSet<Uuid>,
    after: &HashSet<Uuid>,
    must_tell: bool,
) -> Result<(), TestCaseError> {
    let delivered: Vec<(Uuid, Operation)> = deliveries
        .iter()
        .map(|delivery| match delivery.audience {
            Audience::User(user) => (user, delivery.operation),
            Audience::Group(_) | Audience::Tenant => panic!("no rule sends it to a group or to all"),
        })
        .collect();
    for user in before.union(after) {
        let operations: Vec<Operation> = delivered
            .iter()
            .filter(|(of, _)| of == user)
            .map(|(_, op)| *op)
            .collect();
        if !after.contains(user) {
            prop_assert_eq!(operations, [Operation::Delete]);
        } else if must_tell || !operations.is_empty() {
            prop_assert_eq!(operations.len(), 1);
            prop_assert_ne!(operations[0], Operation::Delete);
        }
    }
    for (user, _) in delivered {
        prop_assert!(before.contains(&user) || after.contains(&user));
    }
    Ok(())
}

fn user() -> impl Strategy<Value = String> {
    (1_u128..5).prop_map(|n| Uuid::from_u128(n).to_string())
}

/// A recipient who can be no user.
const NOBODY: &str = "nobody";

fn recipient() -> impl Strategy<Value = String> {
    prop_oneof![9 => user(), 1 => Just(NOBODY.to_owned())]
}

const TICKET: [&str; 5] = ["a", "b", "state", "title", "deleted_at"];

/// Rules for tickets, but for the names of their events.
fn ticket_rules() -> impl Strategy<Value = Rule> {
    let to = proptest::sample::select(vec![
        vec!["a"],
        vec!["b"],
        vec!["a", "b"],
        vec!["a", "a"],
        vec!["tenant"],
    ]);
    let operations = [Operation::Insert, Operation::Update, Operation::Delete];
    let op = prop_oneof![2 => Just(Vec::new()), 1 => proptest::sample::subsequence(operations.to_vec(), 1..3)];
    (to, op, any::<bool>(), any::<bool>()).prop_map(|(to, op, is_conditional, watches_title)| Rule {
        table: "tickets".into(),
        to: to.into_iter().map(Recipient::from).collect(),
        event: String::new(),
        when: When {
            op,
            changed: watches_title.then(|| "title".to_owned()).into_iter().collect(),
            equals: is_conditional
                .then(|| ("state".to_owned(), "open".to_owned()))
                .into_iter()
                .collect(),
        },
        ..Rule::default()
    })
}

fn some_of(texts: &'static [&'static str]) -> impl Strategy<Value = Content> {
    proptest::option::of(proptest::sample::select(texts).prop_map(str::to_owned))
}

fn changes(row: impl Strategy<Value = Vec<Content>> + Clone + 'static) -> impl Strategy<Value = Change> {
    prop_oneof![
        row.clone().prop_map(Change::Insert),
        row.clone().prop_map(Change::Delete),
        (row.clone(), row.clone()).prop_map(|(old, new)| Change::Update(old, new)),
        // Most updates change one column.
        (row.clone(), row, any::<proptest::sample::Index>()).prop_map(|(old, other, index)| {
            let mut new = old.clone();
            let index = index.index(new.len());
            new[index].clone_from(&other[index]);
            Change::Update(old, new)
        }),
    ]
}

const MESSAGE: [&str; 8] = [
    "id",
    "sender_id",
    "recipient_id",
    "content",
    "status",
    "synced_at",
    "read_at",
    "deleted_at",
];

fn message_rows() -> impl Strategy<Value = Vec<Content>> + Clone {
    let columns = (
        user(),
        user(),
        some_of(&["a", "b"]),
        some_of(&["pending_sync", "synced", "read"]),
        some_of(&["1", "2"]),
        some_of(&["1"]),
        some_of(&["1"]),
    );
    let row = columns.prop_map(|(sender, recipient, content, status, synced, read, deleted)| {
        let id = Some("m".to_owned());
        vec![
            id,
            Some(sender),
            Some(recipient),
            content,
            status,
            synced,
            read,
            deleted,
        ]
    });
    row.boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn message_reaches_exactly_old_and_new_viewers(change in changes(message_rows())) {
        let router = Router::new(Vec::new(), Groups::new());
        let plan = router.plan(&relation("messages", &MESSAGE)).unwrap();
        let deliveries = route(&plan, &change);
        let visible = |row: Option<&Vec<Content>>| match row {
            Some(row) if row[7].is_none() => users(Some(row), &[1, 2]),
            _ => HashSet::new(),
        };
        let (before, after) = (visible(change.before()), visible(change.after()));
        let (old, new) = (change.before(), change.after());
        let differs = |column: usize| match (old, new) {
            (Some(old), Some(new)) => old[column] != new[column],
            _ => true,
        };
        let only_bookkeeping = !before.is_empty() && !after.is_empty()
            && (0..8).all(|column| !differs(column) || column == 4 || column == 5);
        let is_noop = (0..8).all(|column| !differs(column));
        check_audiences(&deliveries, &before, &after, !only_bookkeeping)?;
        if is_noop {
            prop_assert_eq!(deliveries.len(), 0);
        }
        if only_bookkeeping {
            let recipient: Uuid = new.unwrap()[2].as_ref().unwrap().parse().unwrap();
            let delivered: Vec<Audience> = deliveries.iter().map(|delivery| delivery.audience.clone()).collect();
            prop_assert!(!delivered.contains(&Audience::User(recipient)));
        }
        // A user who did not see it before receives a new message when it is addressed to them.
        if let (Some(old), Some(new)) = (old, new) && !before.is_empty() && !after.is_empty() && old[2] != new[2] {
            let recipient: Uuid = new[2].as_ref().unwrap().parse().unwrap();
            let mine = deliveries.iter().find(|delivery| delivery.audience == Audience::User(recipient)).unwrap();
            prop_assert_eq!((mine.operation, mine.event), (Operation::Insert, "new_message"));
        }
    }

    #[test]
    fn row_under_any_rules_reaches_exactly_old_and_new_viewers_once(
        change in changes((
            proptest::option::of(recipient()),
            proptest::option::of(recipient()),
            some_of(&["open", "closed"]),
            some_of(&["a", "b"]),
            some_of(&["1"]),
        ).prop_map(|(a, b, state, title, deleted)| vec![a, b, state, title, deleted]).boxed()),
        rules in proptest::collection::vec(ticket_rules(), 1..5),
    ) {
        let named = rules.iter().enumerate().map(|(at, rule)| Rule { event: format!("event{at}"), ..rule.clone() });
        let rules: Vec<Rule> = named.collect();
        let router = Router::new(rules.clone(), Groups::new());
        let plan = router.plan(&relation("tickets", &TICKET)).unwrap();
        let (deliveries, result) = try_route(&plan, &change);
        let audiences: HashSet<Audience> = deliveries.iter().map(|delivery| delivery.audience.clone()).collect();
        prop_assert_eq!(audiences.len(), deliveries.len(), "each audience once: {:?}", deliveries);

        let shows = |rule: &Rule, row: Option<&Vec<Content>>| row.is_some_and(|row| {
            row[4].is_none() && rule.when.equals.iter().all(|(_, state)| row[2].as_ref() == Some(state))
        });
        let columns = |rule: &Rule| -> Vec<usize> {
            rule.to.iter().filter_map(|to| TICKET.iter().position(|column| *column == to.column())).collect()
        };
        let sees = |rule: &Rule, row: Option<&Vec<Content>>, user: Uuid| {
            shows(rule, row) && (rule.is_for_tenant() || users(row, &columns(rule)).contains(&user))
        };
        // Everybody who may be named, and somebody who never is.
        for user in (1_u128..6).map(Uuid::from_u128) {
            let sides: Vec<(&Rule, bool, bool)> = rules
                .iter()
                .map(|rule| (rule, sees(rule, change.before(), user), sees(rule, change.after(), user)))
                .collect();
            let tells = |(rule, before, after): &&(&Rule, bool, bool)| {
                let is_watched = match (change.before(), change.after()) {
                    (Some(old), Some(new)) => rule.when.changed.is_empty()
                        || old[3] != new[3] || columns(rule).iter().any(|column| old[*column] != new[*column]),
                    _ => true,
                };
                (rule.when.op.is_empty() || rule.when.op.contains(&change.operation()))
                    && (before != after || *before && is_watched)
            };
            let telling: Vec<&(&Rule, bool, bool)> = sides.iter().filter(tells).collect();
            let still = telling.iter().find(|(_, _, after)| *after).or(telling.first());
            let expected = still.map(|(rule, ..)| {
                let saw = sides.iter().any(|(_, before, _)| *before);
                let operation = match (saw, sides.iter().any(|(_, _, after)| *after)) {
                    (false, _) => Operation::Insert,
                    (true, true) => Operation::Update,
                    (true, false) => Operation::Delete,
                };
                (operation, rule.event.as_str())
            });
            let own = deliveries.iter().find(|delivery| delivery.audience == Audience::User(user));
            let all = deliveries.iter().find(|delivery| delivery.audience == Audience::Tenant);
            let delivered = own.or(all).map(|delivery| (delivery.operation, delivery.event));
            prop_assert_eq!(delivered, expected, "{} of {:?}", user, deliveries);
            prop_assert!(own.is_none_or(|own| all.is_none_or(|all| (own.operation, own.event) != (all.operation, all.event))));
        }
        let is_misnamed = change.after().is_some_and(|row| rules.iter().any(|rule| {
            shows(rule, Some(row)) && columns(rule).iter().any(|column| row[*column].as_deref() == Some(NOBODY))
        }));
        prop_assert_eq!(result.is_err(), is_misnamed);
    }

    #[test]
    fn array_literal_becomes_the_printed_array(
        array in proptest::collection::vec(proptest::option::of(".{0,6}|[{}\",\\\\ ]{0,4}|(?i)null"), 0..5),
        rows in 1_usize..4,
    ) {
        let element = |text: &Option<String>| text.clone().map_or(Value::Null, Value::String);
        let flat = Value::Array(array.iter().map(element).collect());
        prop_assert_eq!(read(Kind::TextArray, &literal(&array)), flat.clone());
        if !array.is_empty() {
            let nested = format!("{{{}}}", vec![literal(&array); rows].join(","));
            prop_assert_eq!(read(Kind::TextArray, &nested), Value::Array(vec![flat; rows]));
        }
    }

    #[test]
    fn any_text_of_any_type_becomes_valid_json(text in ".{0,40}|[{}\",\\\\ntfNUL0-9.eE+-]{0,20}") {
        for kind in [
            Kind::Bool, Kind::Integer, Kind::Float, Kind::Bytes, Kind::TimestampTz, Kind::Timestamp, Kind::Text,
            Kind::BoolArray, Kind::IntegerArray, Kind::BytesArray, Kind::TimestampTzArray, Kind::TimestampArray,
            Kind::TextArray,
        ] {
            let mut json = Vec::new();
            write_json(kind, text.as_bytes(), &mut json).unwrap();
            // Floats come from Postgres, which prints numbers that JSON knows; other texts may look like them.
            if kind != Kind::Float {
                let value = serde_json::from_slice::<Value>(&json);
                prop_assert!(value.is_ok(), "{:?} {:?}", kind, String::from_utf8_lossy(&json));
            }
        }
    }

    #[test]
    fn float_keeps_the_printed_number(bits in any::<u64>(), short in any::<u32>()) {
        for value in [f64::from_bits(bits), f64::from(f32::from_bits(short))] {
            // As Postgres prints it: shortest form, with an exponent of at least two digits.
            let text = if value.is_nan() { "NaN".to_owned() } else { format!("{value:e}") };
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, ""));
            let printed = match exponent.parse::<i32>() {
                Ok(exponent) => format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
                Err(_) => mantissa.to_owned(),
            };
            let mut json = Vec::new();
            write_json(Kind::Float, printed.as_bytes(), &mut json).unwrap();
            match serde_json::from_slice(&json).unwrap() {
                Value::Number(_) => prop_assert_eq!(printed.as_bytes(), json),
                other => prop_assert!(!value.is_finite(), "{} became {}", printed, other),
            }
        }
    }
}

fn read(kind: Kind, text: &str) -> Value {
    let mut json = Vec::new();
    write_json(kind, text.as_bytes(), &mut json).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// An array as `array_out` prints it (Postgres chapter 8.15.6).
fn literal(array: &[Option<String>]) -> String {
    let element = |text: &Option<String>| match text {
        None => "NULL".to_owned(),
        Some(text) => {
            let is_plain = !text.is_empty()
                && !text.eq_ignore_ascii_case("null")
                && !text.contains(|c: char| matches!(c, '{' | '}' | '"' | ',' | '\\') || c.is_whitespace());
            match is_plain {
                true => text.clone(),
                false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            }
        }
    };
    format!("{{{}}}", array.iter().map(element).collect::<Vec<_>>().join(","))
}
