//! The phones of a story, and what their users did.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use uuid::Uuid;

use super::stage::Stage;
use super::story::Table;
use crate::phone::{Answer, Phone, Request, Trouble};
use crate::support::story::Pick;
use crate::support::unreliable::{Fate, Unreliable};

/// What a user did at a phone: the operation, the table, the row, and the text, which is like no other.
pub(super) type Deed = (String, String, String, Option<String>);

/// A row that the server sent, whatever the phone made of it.
#[derive(Debug, Clone)]
pub(super) struct Receipt {
    pub(super) user: Uuid,
    pub(super) table: String,
    pub(super) id: String,
    pub(super) row: Value,
    /// The last change that the phone had before.
    pub(super) behind: i64,
    /// Everybody was shaken since the story began: what was published before may come again.
    pub(super) is_shaken: bool,
    pub(super) path: String,
}

/// Up to which change a phone has everything, and how often everybody had been shaken then.
pub(super) type Reached = (i64, u64);

pub(super) struct Device {
    pub(super) phone: Phone,
    pub(super) file: PathBuf,
    pub(super) user: Uuid,
    batch_rows: usize,
    pub(super) network: Unreliable,
    pub(super) receipts: Arc<Mutex<Vec<Receipt>>>,
    pub(super) reached: Arc<Mutex<Reached>>,
    copy_reached: Option<Reached>,
    /// How often it went back to a copy.
    pub(super) restores: usize,
    /// What must have an outcome; and whether the phone went back to a copy of before, so that it may never have been sent.
    pub(super) deeds: BTreeMap<Deed, bool>,
    pub(super) refused: BTreeSet<Deed>,
}

fn text(table: &str, row: &Value) -> Option<String> {
    let column = if table == "messages" { "content" } else { "body" };
    row.get(column)?.as_str().map(str::to_owned)
}

fn waiting(phone: &Phone) -> BTreeSet<Deed> {
    let items = phone.waiting().unwrap().into_iter();
    let deed = |item: crate::phone::Item| (item.op, item.table.clone(), item.id, text(&item.table, &item.row));
    items.map(deed).collect()
}

/// The deed of an item of an upload.
pub(super) fn deed_of(item: &Value) -> Deed {
    let word = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let table = word("table");
    let text = text(&table, &item["row"]);
    (word("op"), table, word("id"), text)
}

impl Device {
    pub(super) fn new(stage: &Arc<Stage>, user: Uuid, batch_rows: usize) -> Self {
        let file = stage.folder.path().join(format!("{}.sqlite", Uuid::new_v4().simple()));
        let (receipts, reached) = (Arc::default(), Arc::default());
        let witness = witness(stage, user, &receipts, &reached);
        Self {
            phone: open(&file, batch_rows),
            file,
            user,
            batch_rows,
            network: Unreliable::new(stage.address.clone(), Some(Box::new(witness))),
            receipts,
            reached,
            copy_reached: None,
            restores: 0,
            deeds: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    pub(super) fn set_fates(&self, fates: &[Fate]) {
        *self.network.fates.lock().unwrap() = fates.iter().copied().collect();
    }

    /// What follows a request, however it ended: a phone that died starts again from its file.
    pub(super) fn outlive(&mut self, outcome: Result<(), Trouble>) -> Result<bool, String> {
        self.network.fates.lock().unwrap().clear();
        if self.network.has_died.swap(false, Ordering::Relaxed) {
            self.phone = open(&self.file, self.batch_rows);
        }
        match outcome {
            Ok(()) => Ok(true),
            Err(Trouble::Later { .. } | Trouble::Ended | Trouble::Unenrolled) => Ok(false),
            Err(trouble) => Err(format!("a phone met {trouble}")),
        }
    }

    pub(super) fn was_restored(&self) -> bool {
        self.restores > 0
    }

    /// The user does something at the phone.
    pub(super) fn act(&mut self, op: &str, table: Table, id: &str, row: Value) {
        let text = text(table.name(), &row);
        self.phone.queue(op, table.name(), id, row).unwrap();
        self.deeds
            .insert((op.to_owned(), table.name().to_owned(), id.to_owned(), text), false);
    }

    /// A row that the user sees; of messages mostly one of the user's own, which only the sender changes.
    pub(super) fn row(&self, table: Table, pick: Pick, is_own: bool) -> Option<String> {
        let user = self.user.to_string();
        let mut seen = self.phone.view(table.name()).unwrap();
        let own = |row: &Value| table != Table::Messages || row["sender_id"] == user.as_str();
        if is_own && !pick.0.is_multiple_of(8) && seen.values().any(own) {
            seen.retain(|_, row| own(row));
        }
        let seen: Vec<String> = seen.into_keys().collect();
        (!seen.is_empty()).then(|| pick.of(&seen).clone())
    }

    /// The groups that the phone knows, `list:1`.
    pub(super) fn groups(&self) -> BTreeSet<String> {
        let file = rusqlite::Connection::open(&self.file).unwrap();
        let mut query = file.prepare("SELECT name FROM groups").unwrap();
        let names = query.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    }

    pub(super) fn save(&mut self) {
        std::fs::copy(&self.file, self.file.with_extension("copy")).unwrap();
        self.copy_reached = Some(*self.reached.lock().unwrap());
    }

    pub(super) fn has_copy(&self) -> bool {
        self.copy_reached.is_some()
    }

    pub(super) fn note_refused(&mut self) {
        for item in self.phone.refused().unwrap() {
            let text = text(&item.table, &item.row);
            self.refused.insert((item.op, item.table, item.id, text));
        }
    }

    pub(super) fn go_back(&mut self) {
        self.note_refused();
        let before = waiting(&self.phone);
        std::fs::copy(self.file.with_extension("copy"), &self.file).unwrap();
        self.phone = open(&self.file, self.batch_rows);
        self.network.was_restored.store(true, Ordering::Relaxed);
        self.restores += 1;
        *self.reached.lock().unwrap() = self.copy_reached.unwrap_or_default();
        // What waited and is not in the copy is gone, as everybody would expect, unless it had arrived.
        for lost in before.difference(&waiting(&self.phone)) {
            if let Some(is_forgotten) = self.deeds.get_mut(lost) {
                *is_forgotten = true;
            }
        }
    }
}

fn open(file: &Path, batch_rows: usize) -> Phone {
    let mut phone = Phone::open(file).unwrap();
    // Small, so that batches end within what belongs together.
    phone.batch_rows = Some(batch_rows);
    phone.upload_items = 3;
    phone
}

/// Notes each row that the server sends to a user, also those of which the phone learns nothing.
fn witness(
    stage: &Arc<Stage>,
    user: Uuid,
    receipts: &Arc<Mutex<Vec<Receipt>>>,
    reached: &Arc<Mutex<Reached>>,
) -> impl Fn(&Request, &mut Answer) + Send + Sync + use<> {
    let (receipts, reached) = (receipts.clone(), reached.clone());
    let begun = stage.shocks.load(Ordering::SeqCst);
    let (shocks, fault): (Arc<AtomicU64>, _) = (stage.shocks.clone(), stage.fault);
    move |request, answer| {
        let (change, shaken) = *reached.lock().unwrap();
        let now = shocks.load(Ordering::SeqCst);
        // In another epoch streams begin earlier.
        let behind = if shaken == now { change } else { 0 };
        let note = |table: &str, row: &Value| {
            if let Some(id) = row.get("id").and_then(Value::as_str) {
                receipts.lock().unwrap().push(Receipt {
                    user,
                    table: table.to_owned(),
                    id: id.to_owned(),
                    row: row.clone(),
                    behind,
                    is_shaken: now != begun || now % 2 == 1,
                    path: request.path.clone(),
                });
            }
        };
        let list = |name: &str| answer.body[name].as_array().cloned().unwrap_or_default();
        for change in list("changes") {
            let row = match &change["row"] {
                // Ids of other kinds than text are in the change only as text.
                Value::Object(row) => {
                    let mut row = row.clone();
                    row.insert("id".to_owned(), change["id"].clone());
                    Value::Object(row)
                }
                _ => Value::Null,
            };
            note(change["table"].as_str().unwrap_or_default(), &row);
        }
        list("messages").iter().for_each(|row| note("messages", row));
        for result in list("results") {
            note(result["table"].as_str().unwrap_or("messages"), &result["server"]);
        }
        if let Some(fault) = &fault {
            fault.distort(&mut answer.body);
        }
    }
}
