//! What must be true at the end of a story.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::case::Case;
use super::device::{Deed, Receipt, deed_of};
use super::stage::{has, rules};
use crate::phone::{State, Trouble};
use crate::support::TIMEOUT;

/// A value as text; null is nothing.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What distinguishes a state of a row from others: its text, and who is to see it. Of Postgres, or as a device gets it.
fn outline(table: &str, row: &Value) -> Option<String> {
    let columns: &[&str] = match table {
        "lists" => &["title"],
        "tasks" => &["body", "list_id", "team", "assignee", "scope"],
        "notes" => &["body", "list_id", "owner", "helper"],
        "messages" => &["content", "sender_id", "recipient_id"],
        _ => return None,
    };
    let mut texts: Vec<String> = columns.iter().map(|column| plain(&row[column])).collect();
    if table == "messages" {
        texts.push(group_of(row).unwrap_or_default());
    }
    Some(texts.join(" | "))
}

/// The group of a message, in either form.
fn group_of(row: &Value) -> Option<String> {
    let [name, id] = match &row["group"] {
        Value::Object(group) => [&group["name"], &group["id"]],
        _ => [&row["group_name"], &row["group_id"]],
    };
    (!name.is_null()).then(|| format!("{}:{}", plain(name), plain(id)))
}

/// The groups that see a row.
fn groups_of(table: &str, row: &Value) -> Vec<String> {
    let list = |column: &str| (!row[column].is_null()).then(|| format!("list:{}", plain(&row[column])));
    let team = (!row["team"].is_null()).then(|| format!("team:{}", plain(&row["team"])));
    match table {
        "lists" => list("id").into_iter().collect(),
        "tasks" => list("list_id").into_iter().chain(team).collect(),
        "notes" => list("list_id").into_iter().collect(),
        _ => group_of(row).into_iter().collect(),
    }
}

/// The users who see a row beside the members of its groups; and whether all do.
fn users_of(table: &str, row: &Value, in_force: u8) -> (Vec<String>, bool) {
    let columns: &[(&str, bool)] = match table {
        "tasks" => &[("assignee", !has(in_force, rules::NO_ASSIGNEES))],
        "notes" => &[("owner", true), ("helper", has(in_force, rules::HELPERS))],
        "messages" => &[("sender_id", true), ("recipient_id", true)],
        _ => &[],
    };
    let users = columns
        .iter()
        .filter(|(_, counts)| *counts)
        .map(|(column, _)| plain(&row[column]));
    let is_for_all = table == "tasks" && row["scope"] == "all" && !has(in_force, rules::NONE_FOR_ALL);
    (users.collect(), is_for_all)
}

/// A change that a trigger noted.
struct Noted {
    number: i64,
    table: String,
    old: Value,
    new: Value,
}

/// Whose memberships there are: a group and a user.
#[derive(Default)]
struct Members(HashSet<(String, String)>);

impl Members {
    fn follow(&mut self, noted: &Noted) {
        let (kind, group, user) = match noted.table.as_str() {
            "list_members" => ("list", "list_id", "user_id"),
            _ => ("team", "team", "member"),
        };
        let name = |row: &Value| (format!("{kind}:{}", plain(&row[group])), plain(&row[user]));
        if noted.old.is_null() && noted.new.is_null() {
            self.0.retain(|(group, _)| !group.starts_with(kind));
        }
        self.0.remove(&name(&noted.old));
        if !noted.new.is_null() && noted.new["deleted_at"].is_null() {
            self.0.insert(name(&noted.new));
        }
    }

    fn has(&self, group: &str, user: &str) -> bool {
        self.0.contains(&(group.to_owned(), user.to_owned()))
    }
}

/// A row, and a user.
type Seen = (String, String, String);

/// What users saw, and until when.
#[derive(Default)]
struct SeenRows {
    rows: HashMap<(String, String), Value>,
    members: Members,
    /// What is seen now.
    open: HashMap<Seen, String>,
    /// The change by which each ended that was seen.
    ended: HashMap<(Seen, String), i64>,
    /// The groups of each state of a row, and all memberships there ever were.
    groups: HashMap<(String, String, String), Vec<String>>,
    ever: HashSet<(String, String)>,
}

impl SeenRows {
    fn follow(&mut self, noted: &Noted, users: &[String], in_force: u8) {
        let id = |row: &Value| (noted.table.clone(), plain(&row["id"]));
        let mut touched: Vec<(String, String)> = Vec::new();
        match noted.table.as_str() {
            "list_members" | "team_members" => {
                self.members.follow(noted);
                self.ever.extend(self.members.0.iter().cloned());
                touched.extend(self.rows.keys().cloned());
            }
            _ if noted.old.is_null() && noted.new.is_null() => {
                touched.extend(self.rows.keys().filter(|(table, _)| *table == noted.table).cloned());
                self.rows.retain(|(table, _), _| *table != noted.table);
            }
            _ => {
                for row in [&noted.old, &noted.new].into_iter().filter(|row| !row.is_null()) {
                    self.rows.remove(&id(row));
                    touched.push(id(row));
                }
                if !noted.new.is_null() && noted.new["deleted_at"].is_null() {
                    self.rows.insert(id(&noted.new), noted.new.clone());
                }
            }
        }
        for (table, id) in touched {
            let row = self.rows.get(&(table.clone(), id.clone()));
            let outline = row.and_then(|row| outline(&table, row));
            if let Some((row, outline)) = row.zip(outline.clone()) {
                let state = (table.clone(), id.clone(), outline);
                self.groups.insert(state, groups_of(&table, row));
            }
            let seen = row.map(|row| (groups_of(&table, row), users_of(&table, row, in_force)));
            for user in users {
                let sees = seen.as_ref().is_some_and(|(groups, (readers, is_for_all))| {
                    *is_for_all || readers.contains(user) || groups.iter().any(|group| self.members.has(group, user))
                });
                let now = outline.clone().filter(|_| sees);
                let seen_row = (table.clone(), id.clone(), user.clone());
                let before = match now.clone() {
                    Some(now) => self.open.insert(seen_row.clone(), now),
                    None => self.open.remove(&seen_row),
                };
                if let Some(before) = before.filter(|before| Some(before) != now.as_ref()) {
                    self.ended.insert((seen_row, before), noted.number);
                }
            }
        }
    }

    /// Whether a user saw what came, at some time behind a change.
    fn allow(&self, receipt: &Receipt) -> bool {
        let Some(outline) = outline(&receipt.table, &receipt.row) else {
            return true;
        };
        let (table, id, user) = (receipt.table.clone(), receipt.id.clone(), receipt.user.to_string());
        let seen_row = (table.clone(), id.clone(), user.clone());
        let was_seen = self.open.get(&seen_row) == Some(&outline)
            || self
                .ended
                .get(&(seen_row, outline.clone()))
                .is_some_and(|ended| *ended > receipt.behind);
        // A new epoch begins before what is known of memberships: a member reads what the group had before the user joined it.
        was_seen
            || receipt.is_shaken
                && self.groups.get(&(table, id, outline)).is_none_or(|groups| {
                    groups
                        .iter()
                        .any(|group| self.ever.contains(&(group.clone(), user.clone())))
                })
    }
}

/// Whether a change of a row, which a phone's user made, was one that the user may make.
fn may_write(noted: &Noted, user: &str, members: &Members, in_force: u8) -> bool {
    let (table, old, new) = (noted.table.as_str(), &noted.old, &noted.new);
    let is_mine = |row: &Value| {
        let is_member = groups_of(table, row).iter().any(|group| members.has(group, user));
        let is_own = match table {
            "notes" => row["owner"] == user,
            "messages" => row["sender_id"] == user && (is_member || group_of(row).is_none()),
            _ => false,
        };
        is_own || is_member && table != "messages"
    };
    let before = groups_of(table, old);
    let added = groups_of(table, new)
        .into_iter()
        .filter(|group| !before.contains(group));
    let may_add = added.into_iter().all(|group| members.has(&group, user));
    let is_written = table != "notes" || !has(in_force, rules::NO_NOTES);
    is_written && may_add && is_mine(if old.is_null() { new } else { old })
}

impl Case<'_> {
    /// Every phone syncs to the end; then all must be equal.
    pub(super) async fn end(&mut self) -> Result<(), String> {
        self.set_paused(false).await?;
        let since = Instant::now();
        for index in 0..self.devices.len() {
            loop {
                let device = &mut self.devices[index];
                device.set_fates(&[]);
                match device.phone.upload(&device.network).await {
                    Ok(()) => break,
                    Err(Trouble::Ended | Trouble::Unenrolled) => self.enroll(index).await?,
                    Err(Trouble::Later { .. }) if since.elapsed() < TIMEOUT => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(trouble) => return Err(format!("phone {index} cannot upload: {trouble}")),
                }
            }
        }
        // What shakes everybody may come between; a replay then tells old things again before it tells the new.
        loop {
            let shocks = self.stage.shocks.load(Ordering::SeqCst);
            self.publish().await?;
            match self.compare().await {
                Ok(()) => break,
                Err(_)
                    if since.elapsed() < TIMEOUT
                        && (shocks % 2 == 1 || shocks != self.stage.shocks.load(Ordering::SeqCst)) =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(difference) => return Err(difference),
            }
        }
        self.check_history().await
    }

    async fn compare(&mut self) -> Result<(), String> {
        let since = Instant::now();
        for index in 0..self.devices.len() {
            loop {
                let device = &mut self.devices[index];
                if index > 1 {
                    device.phone.batch_rows = Some(50);
                }
                match device.phone.fetch(&device.network).await {
                    Ok(_) => break,
                    // One that went back may have a token of before.
                    Err(Trouble::Ended | Trouble::Unenrolled) => self.enroll(index).await?,
                    Err(Trouble::Later { .. }) if since.elapsed() < TIMEOUT => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(trouble) => return Err(format!("phone {index} cannot fetch: {trouble}")),
                }
            }
            let (device, phone) = (&self.devices[index], &self.devices[index].phone);
            if phone.state().unwrap() != State::Stream || !phone.waiting().unwrap().is_empty() {
                let (state, waiting) = (phone.state(), phone.waiting());
                return Err(format!("phone {index} is {state:?} and has {waiting:?} waiting"));
            }
            for (table, query) in self.truth() {
                let rows = self.stage.psql.query(&query, &[&device.user]).await;
                let rows = rows.map_err(|error| format!("{query}: {error:?}"))?;
                let wanted: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                let held: BTreeMap<String, String> = if table == "groups" {
                    device
                        .groups()
                        .into_iter()
                        .map(|group| (group, String::new()))
                        .collect()
                } else {
                    let rows = phone.rows(table).unwrap().into_iter();
                    rows.map(|(id, row)| (id, shown(table, &row))).collect()
                };
                if held != wanted {
                    return Err(difference(index, table, &held, &wanted));
                }
            }
        }
        Ok(())
    }

    /// What Postgres shows to a user of each table, as text that [`shown`] makes of a phone's rows.
    fn truth(&self) -> Vec<(&'static str, String)> {
        let (s, in_force) = (&self.tenant.schema, self.stage.rules_now());
        let lists = format!("(SELECT list_id FROM {s}.list_members WHERE user_id = $1 AND deleted_at IS NULL)");
        let teams = format!("(SELECT team FROM {s}.team_members WHERE member = $1)");
        let or = |condition: &str, counts: bool| {
            if counts {
                format!(" OR {condition}")
            } else {
                String::new()
            }
        };
        let (assignee, all, helper) = (
            or("assignee = $1", !has(in_force, rules::NO_ASSIGNEES)),
            or("scope = 'all'", !has(in_force, rules::NONE_FOR_ALL)),
            or("helper = $1", has(in_force, rules::HELPERS)),
        );
        let has_notes = !has(in_force, rules::NO_NOTES);
        vec![
            (
                "groups",
                format!("SELECT 'list:' || list_id, '' FROM {lists} l UNION ALL SELECT 'team:' || team, '' FROM {teams} t"),
            ),
            (
                "lists",
                format!("SELECT id::text, title FROM {s}.lists WHERE deleted_at IS NULL AND id IN {lists}"),
            ),
            (
                "tasks",
                format!(
                    "SELECT id::text, concat_ws(' | ', body, coalesce(list_id::text, ''), coalesce(team, ''),
                         coalesce(assignee::text, ''), coalesce(scope, ''), version) FROM {s}.tasks
                     WHERE deleted_at IS NULL AND (list_id IN {lists} OR team IN {teams}{assignee}{all})"
                ),
            ),
            (
                "notes",
                format!(
                    "SELECT id::text, concat_ws(' | ', body, coalesce(list_id::text, ''), coalesce(owner::text, ''),
                         coalesce(helper::text, '')) FROM {s}.notes
                     WHERE {has_notes} AND (list_id IN {lists} OR owner = $1{helper})"
                ),
            ),
            (
                "messages",
                format!(
                    "SELECT id::text, concat_ws(' | ', content, sender_id, coalesce(recipient_id::text, ''),
                         coalesce(group_name || ':' || group_id, ''), coalesce(number::text, ''), version) FROM {s}.messages
                     WHERE deleted_at IS NULL AND ($1 IN (sender_id, recipient_id)
                         OR group_name = 'list' AND group_id IN (SELECT list_id::text FROM {lists} l)
                         OR group_name = 'team' AND group_id IN {teams})"
                ),
            ),
            (
                "message_reads",
                format!(
                    "SELECT id::text, concat_ws(' | ', group_name, group_id, number) FROM {s}.message_reads
                     WHERE user_id = $1"
                ),
            ),
            (
                "users",
                format!("SELECT id::text, username FROM {s}.users WHERE $1::uuid IS NOT NULL AND deleted_at IS NULL"),
            ),
            (
                "message_conflicts",
                format!("SELECT id::text, '' FROM {s}.message_conflicts WHERE resolved_at IS NULL AND user_id = $1"),
            ),
        ]
    }

    /// All that was received was visible, all that was written was allowed, and all that users did has one outcome.
    async fn check_history(&mut self) -> Result<(), String> {
        for (index, device) in self.devices.iter_mut().enumerate() {
            if let Some(violation) = device.network.violations.lock().unwrap().first() {
                return Err(format!("phone {index}: {violation}"));
            }
            device.note_refused();
        }
        let query = "SELECT number, tbl, coalesce(old, 'null'), coalesce(new, 'null') FROM public.history
                     WHERE space = $1 ORDER BY number";
        let rows = self.stage.psql.query(query, &[&self.tenant.schema]).await;
        let history = rows.map_err(|error| error.to_string())?;
        let users: Vec<String> = self.users.iter().map(Uuid::to_string).collect();
        let in_force = {
            let all = self.stage.rules.lock().unwrap();
            let of_story = &all[self.rules_from..];
            let any = |bit: u8| of_story.iter().any(|rules| has(*rules, bit));
            let every = |bit: u8| of_story.iter().all(|rules| has(*rules, bit));
            let widened = [rules::HELPERS].into_iter().filter(|bit| any(*bit));
            let narrowed = [rules::NO_NOTES, rules::NO_ASSIGNEES, rules::NONE_FOR_ALL];
            let narrowed = narrowed.into_iter().filter(|bit| every(*bit));
            widened.chain(narrowed).fold(0, |bits, bit| bits | bit)
        };
        let authors = self.authors();
        let mut seen_rows = SeenRows::default();
        // How often each text was written.
        let mut written: HashMap<String, usize> = HashMap::new();
        let mut removed: BTreeSet<String> = BTreeSet::new();
        for row in &history {
            let noted = Noted {
                number: row.get(0),
                table: row.get(1),
                old: row.get(2),
                new: row.get(3),
            };
            let text = |row: &Value| row["content"].as_str().or(row["body"].as_str()).map(str::to_owned);
            let (before, after) = (text(&noted.old), text(&noted.new));
            if let Some(after) = after.filter(|after| Some(after) != before.as_ref()) {
                if let Some((user, deed)) = authors.get(after.as_str())
                    && !may_write(&noted, &user.to_string(), &seen_rows.members, in_force)
                {
                    return Err(format!(
                        "{user} wrote {deed:?}, and was not allowed to: {} to {}",
                        noted.old, noted.new
                    ));
                }
                *written.entry(after).or_default() += 1;
            }
            if noted.table == "message_reads"
                && noted.old["number"].as_i64() >= noted.new["number"].as_i64()
                && !noted.new.is_null()
            {
                return Err(format!("a mark went from {} to {}", noted.old, noted.new));
            }
            if noted.new.is_null() || !noted.new["deleted_at"].is_null() {
                removed.insert(plain(&noted.old["id"]));
            }
            seen_rows.follow(&noted, &users, in_force);
        }
        for (index, device) in self.devices.iter().enumerate() {
            let receipts = device.receipts.lock().unwrap();
            self.stage
                .tallies
                .lock()
                .unwrap()
                .entry("rows received".into())
                .and_modify(|n| *n += receipts.len() as u64)
                .or_default();
            if let Some(receipt) = receipts.iter().find(|receipt| !seen_rows.allow(receipt)) {
                let path = &receipt.path;
                return Err(format!(
                    "phone {index} received by {path} what its user did not see: {receipt:?}"
                ));
            }
        }
        let rows = seen_rows
            .open
            .keys()
            .chain(seen_rows.ended.keys().map(|(seen_row, _)| seen_row));
        let bobs = rows.filter(|(_, _, user)| *user == users[0]);
        let bobs: HashSet<(String, String)> = bobs.map(|(table, id, _)| (table.clone(), id.clone())).collect();
        let page = self.page.as_ref().filter(|_| !self.is_shaken());
        if let Some(event) = page.and_then(|page| page.foreign(&bobs)) {
            return Err(format!(
                "the page received an event about what its user never saw: {event:?}"
            ));
        }
        let kept = self.conflicts().await?;
        for index in 0..self.devices.len() {
            self.check_outcomes(index, &written, &removed, &kept)?;
        }
        Ok(())
    }

    /// The texts of changes that are kept as conflicts.
    async fn conflicts(&self) -> Result<HashSet<String>, String> {
        let query = format!(
            "SELECT coalesce(client_version ->> 'content', client_version -> 'row' ->> 'body', '')
             FROM {}.message_conflicts",
            self.tenant.schema
        );
        let rows = self.stage.psql.query(&query, &[]).await;
        Ok(rows
            .map_err(|error| error.to_string())?
            .iter()
            .map(|row| row.get(0))
            .collect())
    }

    fn check_outcomes(
        &self,
        index: usize,
        written: &HashMap<String, usize>,
        removed: &BTreeSet<String>,
        kept: &HashSet<String>,
    ) -> Result<(), String> {
        let device = &self.devices[index];
        let is_uncertain = device.network.is_uncertain.load(Ordering::Relaxed);
        let mut outcomes: HashMap<Deed, Vec<Value>> = HashMap::new();
        for (item, result) in device.network.results.lock().unwrap().iter() {
            let item: Value = serde_json::from_str(item).unwrap();
            outcomes.entry(deed_of(&item)).or_default().push(result.clone());
        }
        for (deed, is_forgotten) in &device.deeds {
            let found = outcomes.get(deed).map_or(&[][..], Vec::as_slice);
            let wrong = |what: &str| Err(format!("phone {index}: {deed:?} {what}: {found:?}"));
            for result in found {
                self.stage
                    .tally(&format!("{} {}", plain(&result["status"]), plain(&result["code"])));
            }
            if found.is_empty() && !is_forgotten && !is_uncertain {
                return wrong("has no outcome");
            }
            let (_, _, id, text) = deed;
            let Some(text) = text else {
                let is_done = found.iter().any(|result| result["status"] == "applied");
                if deed.0 == "delete" && is_done && !removed.contains(id) {
                    return wrong("was applied, and the row is there");
                }
                continue;
            };
            if found.len() > 1 && !device.was_restored() {
                return wrong("has several outcomes");
            }
            let is_applied = |result: &&Value| {
                result["status"] == "applied" || result["status"] == "conflict" && result["winner"] == "mine"
            };
            let applied = found.iter().filter(is_applied).count();
            let times = written.get(text).copied().unwrap_or_default();
            if times != applied && (!is_uncertain || times > found.len() + 1) {
                return wrong(&format!("was written {times} times"));
            }
            for result in found {
                let is_refused = result["status"] == "rejected" && !device.was_restored();
                if is_refused && !device.refused.contains(deed) {
                    return wrong("was rejected, and the user does not know");
                }
                if result["status"] == "conflict" && !kept.contains(text) && !removed.contains(id) {
                    return wrong("was in conflict, and is not kept");
                }
            }
        }
        Ok(())
    }
}

/// A row of a phone, as [`Case::truth`] has it.
fn shown(table: &str, row: &Value) -> String {
    let outline = outline(table, row).unwrap_or_default();
    match table {
        "tasks" => format!("{outline} | {}", plain(&row["version"])),
        "messages" => format!("{outline} | {} | {}", plain(&row["number"]), plain(&row["version"])),
        "message_reads" => ["group_name", "group_id", "number"]
            .map(|name| plain(&row[name]))
            .join(" | "),
        "users" => plain(&row["username"]),
        _ => outline,
    }
}

/// How what a phone holds differs from what it should.
fn difference(phone: usize, table: &str, held: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> String {
    let mut text = format!("phone {phone} and Postgres differ in {table}:");
    for id in held.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
        let (held, wanted) = (held.get(id), wanted.get(id));
        if held != wanted {
            write!(text, "\n  {id}: phone {held:?}\n      Postgres {wanted:?}").unwrap();
        }
    }
    text
}
