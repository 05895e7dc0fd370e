//! Faults that the model must find.

use serde_json::Value;

/// A fault in a function of the tenant's schema, or one of a phone that does not do what a batch says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// What is replaced by what, in which function.
    Function(&'static str, &'static str, &'static str),
    /// What a phone does not see of a batch.
    Phone(fn(&mut Value)),
}

pub(super) const FAULTS: [Fault; 7] = [
    Fault {
        name: "anybody is a member",
        kind: Kind::Function("is_member", "RETURN is_found;", "RETURN true;"),
    },
    Fault {
        name: "rows are put into any group",
        kind: Kind::Function("upload_row", "IF NOT coalesce(is_allowed, true) THEN", "IF false THEN"),
    },
    Fault {
        name: "rows of any group are written",
        kind: Kind::Function(
            "upload_row",
            "ELSIF NOT coalesce(is_own, false) THEN",
            "ELSIF false THEN",
        ),
    },
    Fault {
        name: "marks go back",
        kind: Kind::Function(
            "mark_read",
            "WHERE r.number < excluded.number",
            "WHERE r.number <> excluded.number",
        ),
    },
    Fault {
        name: "phone without leaves",
        kind: Kind::Phone(|batch| retain(batch, |change| change["op"] != "leave")),
    },
    Fault {
        name: "phone without rows of joined groups",
        kind: Kind::Phone(|batch| {
            if batch["scope"].is_string() {
                retain(batch, |_| false);
            }
        }),
    },
    Fault {
        name: "phone without audiences",
        kind: Kind::Phone(|batch| {
            for change in batch["changes"].as_array_mut().into_iter().flatten() {
                change.as_object_mut().map(|change| change.remove("via"));
            }
        }),
    },
];

fn retain(batch: &mut Value, keep: impl Fn(&Value) -> bool) {
    if let Some(changes) = batch["changes"].as_array_mut() {
        changes.retain(keep);
    }
}

impl Fault {
    pub(super) async fn seed(&self, psql: &tokio_postgres::Client, schema: &str) {
        let Kind::Function(function, from, to) = self.kind else {
            return;
        };
        let query =
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = $1::text::regnamespace AND proname = $2";
        let source: String = psql.query_one(query, &[&schema, &function]).await.unwrap().get(0);
        assert!(source.contains(from), "{}: {function} has no {from:?}", self.name);
        psql.batch_execute(&source.replace(from, to)).await.unwrap();
    }

    pub(super) fn distort(&self, batch: &mut Value) {
        if let Kind::Phone(distort) = self.kind {
            distort(batch);
        }
    }
}
