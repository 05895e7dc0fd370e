//! One story.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::Method;
use posduif::contract::group::GroupId;
use posduif::postgres::audit::Actor;
use posduif::postgres::tenants;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::device::{Deed, Device, Reached};
use super::page::Page;
use super::stage::{Stage, Tenant};
use super::story::{Change, Op, Place, Table};
use crate::phone::Trouble;
use crate::support::http::Api;
use crate::support::story::Pick;
use crate::support::{PASSWORD, TIMEOUT};

/// Lists have the numbers from 1 on, teams have names.
pub(super) const LISTS: usize = 4;
pub(super) const TEAMS: [&str; 2] = ["red", "blue"];

pub(super) struct Case<'a> {
    pub(super) stage: &'a Arc<Stage>,
    pub(super) tenant: &'a Tenant,
    bob: Api,
    /// Bob, joe, sally and eve.
    pub(super) users: Vec<Uuid>,
    /// One of each, and another one of joe's.
    pub(super) devices: Vec<Device>,
    pub(super) page: Option<Page>,
    pub(super) rows: BTreeMap<Table, Vec<Uuid>>,
    /// Up to which change everything was published when the story last waited for that.
    published: Reached,
    is_paused: bool,
    /// How often everybody had been shaken when the story began.
    begun: u64,
    /// Where the rules that were in force during the story begin.
    pub(super) rules_from: usize,
}

/// A group: the list of a number, or a team.
#[derive(Debug, Clone, Copy)]
enum Group {
    List(usize),
    Team(&'static str),
}

impl Group {
    fn of(pick: Pick) -> Self {
        match pick.index(LISTS + TEAMS.len()) {
            list if list < LISTS => Self::List(list + 1),
            team => Self::Team(TEAMS[team - LISTS]),
        }
    }

    fn id(self) -> GroupId {
        self.to_string().parse().unwrap()
    }

    /// The table of the members, the column of the group, and that of the user.
    fn table(self) -> [&'static str; 3] {
        match self {
            Self::List(_) => ["list_members", "list_id", "user_id"],
            Self::Team(_) => ["team_members", "team", "member"],
        }
    }

    /// As a value in SQL.
    fn value(self) -> String {
        match self {
            Self::List(list) => list.to_string(),
            Self::Team(team) => format!("'{team}'"),
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::List(list) => write!(f, "list:{list}"),
            Self::Team(team) => write!(f, "team:{team}"),
        }
    }
}

impl<'a> Case<'a> {
    pub(super) async fn new(stage: &'a Arc<Stage>, tenant: &'a Tenant) -> Result<Self, String> {
        let rules_from = stage.rules.lock().unwrap().len() - 1;
        let mut users = vec![tenant.bob];
        let schema = &tenant.schema;
        let insert = format!("INSERT INTO {schema}.users (username, user_type) VALUES ($1, 'mobile') RETURNING id");
        for name in ["joe", "sally", "eve"] {
            let name = format!("{name} {}", stage.text());
            let row = stage.psql.query_one(&insert, &[&name]).await;
            users.push(row.map_err(|error| error.to_string())?.get(0));
        }
        let mut case = Self {
            stage,
            tenant,
            bob: stage.api().with("authorization", &format!("Bearer {}", tenant.token)),
            users,
            devices: Vec::new(),
            page: None,
            rows: Table::ALL.map(|table| (table, Vec::new())).into(),
            published: (0, 0),
            is_paused: false,
            begun: stage.shocks.load(Ordering::SeqCst),
            rules_from,
        };
        // Of the story before.
        case.publish().await?;
        case.page = Some(Page::open(&case));
        for (owner, batch_rows) in [(0, 5), (1, 1), (1, 4), (2, 2), (3, 3)] {
            case.devices.push(Device::new(stage, case.users[owner], batch_rows));
            case.enroll(case.devices.len() - 1).await?;
        }
        // Something to be at odds about from the start.
        let [bob, joe, sally, eve] = [0, 1, 2, 3].map(|user| case.users[user]);
        let mut first = format!(
            "INSERT INTO {schema}.lists VALUES (1, 'list 1'), (2, 'list 2');
             INSERT INTO {schema}.list_members VALUES
                 (1, '{bob}'), (1, '{joe}'), (1, '{sally}'), (2, '{joe}'), (3, '{eve}'), (1, '{eve}');
             INSERT INTO {schema}.team_members VALUES ('red', '{joe}'), ('red', '{eve}'), ('blue', '{sally}');"
        );
        for (table, columns) in [
            (Table::Tasks, "list_id, body"),
            (Table::Tasks, "team, body"),
            (Table::Notes, "list_id, body"),
            (Table::Messages, "group_name, group_id, sender_id, content"),
        ] {
            let (id, text) = (case.new_row(table), stage.text());
            let values = match columns.split(", ").count() {
                2 if columns.starts_with("team") => format!("'red', '{text}'"),
                2 => format!("1, '{text}'"),
                _ => format!("'list', '1', '{joe}', '{text}'"),
            };
            let name = table.name();
            first.push_str(&format!(
                "INSERT INTO {schema}.{name} (id, {columns}) VALUES ('{id}', {values});"
            ));
        }
        case.batch(&first).await?;
        // Some know of it.
        for device in &mut case.devices[1..=3] {
            let batch_rows = device.phone.batch_rows.replace(50);
            let outcome = device.phone.fetch(&device.network).await.map(drop);
            device.phone.batch_rows = batch_rows;
            device.outlive(outcome)?;
        }
        Ok(case)
    }

    fn new_row(&mut self, table: Table) -> Uuid {
        let id = Uuid::new_v4();
        self.rows.get_mut(&table).unwrap().push(id);
        id
    }

    pub(super) async fn enroll(&mut self, device: usize) -> Result<(), String> {
        let since = Instant::now();
        let mut body = json!({"user_id": self.devices[device].user});
        loop {
            let created = self.by_bob(Method::POST, "/api/enrollment/create", &body).await?;
            // A long run outlives the time in which the login is a proof.
            body["current"] = json!(PASSWORD);
            let device = &mut self.devices[device];
            if let Some(token) = created.as_ref().and_then(|created| created["token"].as_str()) {
                match device.phone.enroll(&device.network, token).await {
                    Ok(()) => return Ok(()),
                    Err(Trouble::Later { .. }) => {}
                    Err(trouble) => return Err(format!("enrolling: {trouble}")),
                }
            }
            if since.elapsed() > TIMEOUT {
                return Err("enrolling takes too long".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A request of bob's, which may go without an answer.
    async fn by_bob(&self, method: Method, path: &str, body: &Value) -> Result<Option<Value>, String> {
        let bob = self.bob.at(&self.stage.api());
        let answer = bob.try_send(method, path, Some("application/json"), body.to_string());
        match answer.await {
            Ok(answer) if answer.status == 204 => Ok(None),
            Ok(answer) if answer.status.is_success() => Ok(Some(answer.json())),
            Ok(answer) if matches!(answer.status.as_u16(), 403 | 404 | 503) => Ok(None),
            Ok(answer) => Err(format!("{path} answered bob {}: {}", answer.status, answer.json())),
            Err(_) => Ok(None),
        }
    }

    /// Statements of another client, `psql`, in one transaction.
    async fn batch(&self, statements: &str) -> Result<(), String> {
        loop {
            match self.stage.psql.batch_execute(statements).await {
                Ok(()) => return Ok(()),
                // Locked in another order than by the engine's own writes; of the two Postgres has chosen this one.
                Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => self.stage.tally("deadlocks"),
                Err(error) => return Err(format!("{statements}: {:?}", error.as_db_error())),
            }
        }
    }

    fn user(&self, pick: Pick) -> Uuid {
        *pick.of(&self.users)
    }

    /// The columns and values in SQL by which a row is seen.
    fn place(&self, table: Table, place: Place) -> Vec<(&'static str, String)> {
        let null = || "NULL".to_owned();
        let list = (1 + place.list.index(LISTS)).to_string();
        let team = format!("'{}'", place.team.of(&TEAMS));
        let user = format!("'{}'", self.user(place.user));
        let how = place.how.index(8);
        match table {
            Table::Tasks => {
                let (list, team, user, all) =
                    (|| list.clone(), || team.clone(), || user.clone(), || "'all'".to_owned());
                let [list_id, team, assignee, scope] = match how {
                    0 | 1 => [list(), null(), null(), null()],
                    2 => [null(), team(), null(), null()],
                    3 => [list(), team(), null(), null()],
                    4 => [list(), null(), user(), null()],
                    5 => [null(), null(), user(), null()],
                    6 => [null(), null(), null(), all()],
                    _ => [list(), null(), null(), all()],
                };
                vec![
                    ("list_id", list_id),
                    ("team", team),
                    ("assignee", assignee),
                    ("scope", scope),
                ]
            }
            Table::Notes => {
                let [list_id, owner, helper] = match how {
                    0..3 => [list, null(), null()],
                    3 => [null(), user, null()],
                    4 | 5 => [list, user, null()],
                    6 => [list, null(), user],
                    _ => [null(), null(), user],
                };
                vec![("list_id", list_id), ("owner", owner), ("helper", helper)]
            }
            Table::Messages => {
                let [name, id, recipient] = match how {
                    0..5 => ["'list'".to_owned(), format!("'{list}'"), null()],
                    5 => ["'team'".to_owned(), team, null()],
                    _ => [null(), null(), user],
                };
                vec![("group_name", name), ("group_id", id), ("recipient_id", recipient)]
            }
        }
    }

    fn insert(&self, table: Table, id: Uuid, place: Place, text: &str) -> String {
        let mut columns = self.place(table, place);
        if table == Table::Messages {
            columns.push(("sender_id", format!("'{}'", self.user(place.team))));
        }
        columns.push((table.text(), format!("'{text}'")));
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
        let (schema, name) = (&self.tenant.schema, table.name());
        format!(
            "INSERT INTO {schema}.{name} (id, {}) VALUES ('{id}', {}) ON CONFLICT DO NOTHING; ",
            names.join(", "),
            values.join(", ")
        )
    }

    /// A change as SQL.
    fn sql(&mut self, change: &Change) -> String {
        let (s, text) = (&self.tenant.schema, self.stage.text());
        let member = |group: Pick, user: Pick| {
            let ([table, group_column, user_column], value) = (Group::of(group).table(), Group::of(group).value());
            let user = self.user(user);
            (
                format!("{s}.{table}"),
                format!("{group_column} = {value} AND {user_column} = '{user}'"),
                format!("({group_column}, {user_column}) VALUES ({value}, '{user}')"),
            )
        };
        match change {
            Change::Join { group, user } => {
                let (table, _, values) = member(*group, *user);
                match Group::of(*group) {
                    Group::List(_) => format!(
                        "INSERT INTO {table} {values} ON CONFLICT (list_id, user_id) DO UPDATE SET deleted_at = NULL; "
                    ),
                    Group::Team(_) => format!("INSERT INTO {table} {values} ON CONFLICT DO NOTHING; "),
                }
            }
            Change::Leave { group, user } => {
                let (table, condition, _) = member(*group, *user);
                format!("DELETE FROM {table} WHERE {condition}; ")
            }
            Change::SoftLeave { group, user } => {
                let (table, condition, _) = member(*group, *user);
                match Group::of(*group) {
                    Group::List(_) => format!("UPDATE {table} SET deleted_at = now() WHERE {condition}; "),
                    Group::Team(_) => format!("DELETE FROM {table} WHERE {condition}; "),
                }
            }
            Change::MoveMember { group, user, to } => {
                let (table, condition, _) = member(*group, *user);
                let (from, to) = (Group::of(*group), Group::of(*to));
                let [_, column, user_column] = from.table();
                let to = match (from, to) {
                    (Group::List(_), Group::List(_)) | (Group::Team(_), Group::Team(_)) => to.value(),
                    _ => return String::new(),
                };
                let user = self.user(*user);
                format!(
                    "UPDATE {table} SET {column} = {to} WHERE {condition} AND NOT EXISTS
                     (SELECT FROM {table} WHERE {column} = {to} AND {user_column} = '{user}'); "
                )
            }
            Change::GiveMember { group, user, to } => {
                let (table, condition, _) = member(*group, *user);
                let (value, to) = (Group::of(*group).value(), self.user(*to));
                let [_, column, user_column] = Group::of(*group).table();
                format!(
                    "UPDATE {table} SET {user_column} = '{to}' WHERE {condition} AND NOT EXISTS
                     (SELECT FROM {table} WHERE {column} = {value} AND {user_column} = '{to}'); "
                )
            }
            Change::Rejoin { group, user } => {
                let (table, condition, values) = member(*group, *user);
                format!("DELETE FROM {table} WHERE {condition}; INSERT INTO {table} {values}; ")
            }
            Change::TruncateMembers { kind } => {
                format!("TRUNCATE {s}.{}; ", kind.of(&["list_members", "team_members"]))
            }
            Change::List { list, is_gone } => {
                let list = 1 + list.index(LISTS);
                match is_gone {
                    true => format!("UPDATE {s}.lists SET deleted_at = now() WHERE id = {list}; "),
                    false => format!(
                        "INSERT INTO {s}.lists VALUES ({list}, '{text}')
                         ON CONFLICT (id) DO UPDATE SET title = excluded.title, deleted_at = NULL; "
                    ),
                }
            }
            Change::New { table, place } => {
                let id = self.new_row(*table);
                self.insert(*table, id, *place, &text)
            }
            Change::TruncateNotes => format!("TRUNCATE {s}.notes; "),
            Change::Edit { table, row }
            | Change::Put { table, row, .. }
            | Change::Delete { table, row }
            | Change::SoftDelete { table, row, .. }
            | Change::Again { table, row, .. }
            | Change::Rename { table, row } => {
                let rows = &self.rows[table];
                if rows.is_empty() {
                    return String::new();
                }
                let (id, name, column) = (*row.of(rows), table.name(), table.text());
                match change {
                    Change::Put { place, .. } => {
                        let columns = self.place(*table, *place);
                        let set: Vec<String> = columns
                            .iter()
                            .map(|(name, value)| format!("{name} = {value}"))
                            .collect();
                        format!("UPDATE {s}.{name} SET {} WHERE id = '{id}'; ", set.join(", "))
                    }
                    Change::Delete { .. } => format!("DELETE FROM {s}.{name} WHERE id = '{id}'; "),
                    Change::SoftDelete { is_back, .. } if *table != Table::Notes => {
                        let time = if *is_back { "NULL" } else { "now()" };
                        format!("UPDATE {s}.{name} SET deleted_at = {time} WHERE id = '{id}'; ")
                    }
                    Change::Again { place, .. } => {
                        let insert = self.insert(*table, id, *place, &text);
                        format!("DELETE FROM {s}.{name} WHERE id = '{id}'; {insert}")
                    }
                    Change::Rename { .. } if *table != Table::Messages => {
                        let new = self.new_row(*table);
                        format!("UPDATE {s}.{name} SET id = '{new}' WHERE id = '{id}'; ")
                    }
                    _ => format!("UPDATE {s}.{name} SET {column} = '{text}' WHERE id = '{id}'; "),
                }
            }
        }
    }

    pub(super) async fn commit(&mut self, changes: &[Change], commits: bool) -> Result<(), String> {
        let statements: String = changes.iter().map(|change| self.sql(change)).collect();
        if commits {
            return self.batch(&statements).await;
        }
        let block = format!("DO $$ BEGIN {statements} RAISE 'changed my mind'; END $$");
        assert!(self.stage.psql.batch_execute(&block).await.is_err());
        Ok(())
    }

    pub(super) async fn happen(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Commit { changes, commits } => self.commit(changes, *commits).await?,
            Op::Absence { group, user, changes } => {
                let (group, user) = (*group, *user);
                self.commit(&[Change::Leave { group, user }], true).await?;
                for change in changes {
                    self.commit(std::slice::from_ref(change), true).await?;
                }
                self.commit(&[Change::Join { group, user }], true).await?;
            }
            Op::BobSends { place } => {
                let group = Group::of(place.list);
                let mut body = json!({"content": self.stage.text()});
                match place.how.index(4) {
                    0 => body["recipient_id"] = json!(self.users[1 + place.user.index(3)]),
                    _ => body["group"] = named(group),
                }
                if let Some(sent) = self.by_bob(Method::POST, "/api/messages", &body).await? {
                    let id = sent["id"].as_str().unwrap().parse().unwrap();
                    self.rows.get_mut(&Table::Messages).unwrap().push(id);
                }
            }
            Op::BobEdits { row } | Op::BobDeletes { row } | Op::BobReads { row } => {
                let id = *row.of(&self.rows[&Table::Messages]);
                let (method, path) = match op {
                    Op::BobEdits { .. } => (Method::PATCH, format!("/api/messages/{id}")),
                    Op::BobDeletes { .. } => (Method::DELETE, format!("/api/messages/{id}")),
                    _ => (Method::PUT, format!("/api/messages/{id}/read")),
                };
                let body = json!({"content": self.stage.text()});
                self.by_bob(method, &path, &body).await?;
            }
            Op::PhoneAdds { phone, table, place } => drop(self.add(*phone, *table, *place)),
            Op::PhoneEdits {
                phone,
                table,
                row,
                times,
            } => {
                let device = phone.of_mut(&mut self.devices);
                if let Some(id) = device.row(*table, *row, true) {
                    for _ in 0..*times {
                        device.act("edit", *table, &id, json!({table.text(): self.stage.text()}));
                    }
                }
            }
            Op::PhonePuts {
                phone,
                table,
                row,
                place,
            } => {
                let mut columns = self.columns(*phone, *table, *place);
                if *table == Table::Messages {
                    columns = json!({"content": columns["content"]});
                }
                let device = phone.of_mut(&mut self.devices);
                if let Some(id) = device.row(*table, *row, true) {
                    device.act("edit", *table, &id, columns);
                }
            }
            Op::PhoneDeletes { phone, table, row } => {
                let device = phone.of_mut(&mut self.devices);
                if let Some(id) = device.row(*table, *row, true) {
                    device.act("delete", *table, &id, json!({}));
                }
            }
            Op::PhoneReads { phone, row } => {
                let device = phone.of_mut(&mut self.devices);
                // Older ones behind newer ones, too.
                for row in [*row, Pick(row.0.wrapping_add(1)), Pick(row.0.wrapping_add(2))] {
                    if let Some(id) = device.row(Table::Messages, row, false) {
                        device.act("read", Table::Messages, &id, json!({}));
                    }
                }
            }
            Op::Quarrel {
                table,
                row,
                times,
                fates,
            } => {
                let mut chosen: Option<String> = None;
                for device in &mut self.devices[1..=2] {
                    let outcome = device.phone.fetch(&device.network).await.map(drop);
                    device.outlive(outcome)?;
                    let id = chosen.clone().or_else(|| device.row(*table, *row, true));
                    for _ in 0..*times {
                        let seen = id
                            .as_ref()
                            .filter(|id| device.phone.view(table.name()).unwrap().contains_key(*id));
                        if let Some(id) = seen {
                            device.act("edit", *table, id, json!({table.text(): self.stage.text()}));
                        }
                    }
                    chosen = id;
                }
                for device in &mut self.devices[1..=2] {
                    device.set_fates(fates);
                    let outcome = device.phone.upload(&device.network).await;
                    device.outlive(outcome)?;
                }
            }
            Op::Lapse {
                phone,
                deed: (table, act, row, place),
                changes,
                fates,
            } => self.lapse((*phone, *table, *act, *row, *place), changes, fates).await?,
            Op::Relapse {
                phone,
                deed: (table, act, row, place),
                changes,
            } => self.relapse((*phone, *table, *act, *row, *place), changes).await?,
            Op::Sync { phone, fates } => {
                let device = phone.of_mut(&mut self.devices);
                device.set_fates(fates);
                let outcome = device.phone.sync(&device.network).await.map(drop);
                let is_done = device.outlive(outcome)?;
                self.note_reached(*phone, is_done);
            }
            Op::Upload { phone, fates } => {
                let device = phone.of_mut(&mut self.devices);
                device.set_fates(fates);
                let outcome = device.phone.upload(&device.network).await;
                device.outlive(outcome)?;
            }
            Op::Fetch { phone, fates } => {
                let device = phone.of_mut(&mut self.devices);
                device.set_fates(fates);
                let outcome = device.phone.fetch(&device.network).await.map(drop);
                let is_done = device.outlive(outcome)?;
                self.note_reached(*phone, is_done);
            }
            Op::Slowly { phone, changes } => {
                use crate::support::unreliable::Fate::{LoseRequest, Pass};
                for change in changes {
                    let device = phone.of_mut(&mut self.devices);
                    device.set_fates(&[Pass, LoseRequest]);
                    let outcome = device.phone.fetch(&device.network).await.map(drop);
                    device.outlive(outcome)?;
                    self.commit(std::slice::from_ref(change), true).await?;
                    if phone.0.is_multiple_of(2) {
                        self.stage.published().await;
                    }
                }
            }
            Op::Late { phone } => {
                let device = phone.of_mut(&mut self.devices);
                let request = device.network.lingering.lock().unwrap().pop_front();
                if let Some(request) = request {
                    let _nobody_listens = device.network.send(request).await;
                    self.stage.tally("requests that came late");
                }
            }
            Op::Save { phone } => phone.of_mut(&mut self.devices).save(),
            Op::GoBack { phone } => {
                let mut copied: Vec<&mut Device> = self.devices.iter_mut().filter(|device| device.has_copy()).collect();
                if !copied.is_empty() {
                    phone.of_mut(&mut copied).go_back();
                    self.stage.tally("phones restored");
                }
            }
            Op::Publish => self.publish().await?,
            Op::Trim { stream, keep } => self.trim(*stream, *keep).await,
            Op::Lose { what, which } => {
                let (keys, tenant) = (self.stage.world.keys(), &self.tenant.name);
                let user = self.user(*which).to_string();
                let key = match what.index(8) {
                    0..3 => keys.group(tenant, &Group::of(*which).id()),
                    3 | 4 => keys.members(tenant, &user),
                    5 => keys.inbox(tenant, &user),
                    6 => keys.shared(tenant),
                    _ => keys.meta(tenant),
                };
                self.stage.forget(&key).await;
                self.stage.tally("keys lost");
            }
            Op::Resync => {
                let resync = tenants::resync(&self.stage.database, &self.tenant.name).await;
                resync.map_err(|error| error.to_string())?;
                self.stage.tally("tenants resynced");
            }
            Op::Pause => self.set_paused(!self.is_paused).await?,
            Op::BreakHistory => self.stage.break_history().await,
            Op::Restart { rules } => self.stage.restart(*rules).await,
        }
        Ok(())
    }

    pub(super) async fn set_paused(&mut self, is_paused: bool) -> Result<(), String> {
        if is_paused != self.is_paused {
            let by = Actor::cli();
            let set = tenants::set_paused(&self.stage.database, &self.tenant.name, is_paused, &by);
            set.await.map_err(|error| error.to_string())?;
            self.is_paused = is_paused;
            self.stage.tally("tenants paused or resumed");
        }
        Ok(())
    }

    /// Waits until all that is committed now has been published.
    pub(super) async fn publish(&mut self) -> Result<(), String> {
        let shocks = self.stage.shocks.load(Ordering::SeqCst);
        let query = "SELECT coalesce(max(number), 0) FROM public.history WHERE space = $1";
        let row = self.stage.psql.query_one(query, &[&self.tenant.schema]).await;
        let last: i64 = row.map_err(|error| error.to_string())?.get(0);
        self.stage.published().await;
        self.published = (last, shocks);
        Ok(())
    }

    /// Whether everybody was shaken since the story began.
    pub(super) fn is_shaken(&self) -> bool {
        let now = self.stage.shocks.load(Ordering::SeqCst);
        now != self.begun || now % 2 == 1
    }

    fn note_reached(&mut self, phone: Pick, is_done: bool) {
        let device = phone.of_mut(&mut self.devices);
        if is_done && !self.is_paused && self.published.1 == self.stage.shocks.load(Ordering::SeqCst) {
            *device.reached.lock().unwrap() = self.published;
        }
    }

    /// What a user writes at a phone into a row, to be seen by mostly the user's own groups.
    pub(super) fn columns(&self, phone: Pick, table: Table, place: Place) -> Value {
        let groups = phone.of(&self.devices).groups();
        let own = |kind: &str| -> Vec<String> {
            let names = groups.iter().filter_map(|name| name.strip_prefix(kind));
            names.map(str::to_owned).collect()
        };
        let (lists, teams) = (own("list:"), own("team:"));
        let list = if lists.is_empty() || place.list.0.is_multiple_of(8) {
            1 + place.list.index(LISTS)
        } else {
            place.list.of(&lists).parse().unwrap()
        };
        let team = if teams.is_empty() || place.team.0.is_multiple_of(8) {
            (*place.team.of(&TEAMS)).to_owned()
        } else {
            place.team.of(&teams).clone()
        };
        let (text, user) = (self.stage.text(), self.user(place.user));
        match (table, place.how.index(6)) {
            (Table::Tasks, 0..3) => json!({"body": text, "list_id": list}),
            (Table::Tasks, 3) => json!({"body": text, "list_id": null, "team": team}),
            (Table::Tasks, 4) => json!({"body": text, "list_id": list, "assignee": user}),
            (Table::Tasks, _) => json!({"body": text, "list_id": list, "team": team}),
            (Table::Notes, 0..3) => json!({"body": text, "list_id": list}),
            (Table::Notes, 3) => json!({"body": text, "list_id": null}),
            (Table::Notes, _) => json!({"body": text, "list_id": list, "helper": user}),
            (Table::Messages, 0..4) => json!({"content": text, "group": {"name": "list", "id": list.to_string()}}),
            (Table::Messages, 4) => json!({"content": text, "group": {"name": "team", "id": team}}),
            (Table::Messages, _) => json!({"content": text, "recipient_id": user}),
        }
    }

    pub(super) fn add(&mut self, phone: Pick, table: Table, place: Place) -> String {
        let row = self.columns(phone, table, place);
        let id = self.new_row(table).to_string();
        phone.of_mut(&mut self.devices).act("create", table, &id, row);
        id
    }

    /// Trims a stream as the publisher does: the note of it and the deed in one transaction.
    async fn trim(&self, stream: Pick, keep: u8) {
        let (keys, tenant) = (self.stage.world.keys(), &self.tenant.name);
        let (key, name) = match stream.index(self.users.len() + LISTS + TEAMS.len()) {
            user if user < self.users.len() => {
                let user = self.users[user].to_string();
                (keys.inbox(tenant, &user), format!("inbox:{user}"))
            }
            group => {
                let group = Group::of(Pick((group - self.users.len()) as u8)).id();
                (keys.group(tenant, &group), format!("group:{group}"))
            }
        };
        let mut redis = self.stage.redis.clone();
        let mut last = redis::cmd("XREVRANGE");
        last.arg(&key).arg("+").arg("-").arg("COUNT").arg(keep + 1);
        let last: redis::streams::StreamRangeReply = last.query_async(&mut redis).await.unwrap();
        let Some(first) = last.ids.get(usize::from(keep)) else {
            return;
        };
        let mut pipe = redis::pipe();
        pipe.atomic()
            .hset(keys.meta(tenant), format!("trim:{name}"), &first.id)
            .ignore()
            .cmd("XTRIM")
            .arg(&key)
            .arg("MINID")
            .arg(&first.id)
            .ignore();
        let () = pipe.query_async(&mut redis).await.unwrap();
        self.stage.tally("streams trimmed");
    }

    /// All that was done at phones, and by whom.
    pub(super) fn authors(&self) -> BTreeMap<&str, (Uuid, &Deed)> {
        let deeds = self
            .devices
            .iter()
            .flat_map(|device| device.deeds.keys().map(|deed| (device.user, deed)));
        deeds
            .filter_map(|(user, deed)| Some((deed.3.as_deref()?, (user, deed))))
            .collect()
    }

    pub(super) async fn clean_up(self) -> Result<(), String> {
        let (schema, users) = (&self.tenant.schema, &self.users[1..]);
        let users: Vec<String> = users.iter().map(|user| format!("'{user}'")).collect();
        self.batch(&format!(
            "DELETE FROM {schema}.messages; DELETE FROM {schema}.tasks; DELETE FROM {schema}.notes; DELETE FROM {schema}.lists;
             DELETE FROM {schema}.list_members; DELETE FROM {schema}.team_members; DELETE FROM {schema}.message_reads;
             DELETE FROM {schema}.message_conflicts;
             DELETE FROM {schema}.users WHERE id IN ({}); DELETE FROM public.history WHERE space = '{schema}'",
            users.join(", ")
        ))
        .await?;
        for device in &self.devices {
            let _gone = (
                std::fs::remove_file(&device.file),
                std::fs::remove_file(device.file.with_extension("copy")),
            );
        }
        Ok(())
    }
}

/// A group as the API names it.
fn named(group: Group) -> Value {
    match group {
        Group::List(list) => json!({"name": "list", "id": list.to_string()}),
        Group::Team(team) => json!({"name": "team", "id": team}),
    }
}
