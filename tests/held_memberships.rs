//! Memberships that are published while Postgres does not show them yet, and others meanwhile.

use posduif::contract::membership_log::CHANGES_MAX;
use posduif::engine::Role;
use posduif::postgres::tenants;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::groups::{self, Device};
use crate::support::eventually;
use crate::support::http::Api;
use crate::support::slow::Slow;

struct Team {
    slow: Slow,
    web: Api,
}

impl Team {
    /// Two lists with a task each, and commits that are not shown from now on.
    async fn with_held_commits() -> Self {
        Self::of(Slow::configured(Role::All, groups::configure).await).await
    }

    async fn of(slow: Slow) -> Self {
        slow.stage.sql(groups::TABLES).await;
        let rows = "INSERT INTO tenant_acme.lists (id, title) VALUES (1, 'one'), (2, 'two');
                    INSERT INTO tenant_acme.tasks (id, list_id, title) VALUES (10, 1, 'first'), (20, 2, 'second')";
        slow.stage.sql(rows).await;
        slow.stage.world.published().await;
        slow.hold(true).await;
        let web = slow.stage.engine.as_ref().unwrap().api().log_in("acme", "bob").await;
        Self { slow, web }
    }

    fn joe(&self) -> Uuid {
        self.slow.stage.joe
    }

    /// A new device of joe's.
    async fn device(&self) -> Device {
        Device::new(&self.web, "phone", self.joe()).await
    }

    /// Commits what is shown at once.
    async fn commit(&self, statements: &str) {
        self.slow.stage.sql(statements).await;
        self.slow.stage.world.published().await;
    }

    fn joins(&self, list: i64) -> String {
        let joe = self.joe();
        format!("INSERT INTO tenant_acme.list_members (list_id, user_id) VALUES ({list}, '{joe}')")
    }

    async fn task(&self, id: i64, list: i64, title: &str) {
        let task = format!("INSERT INTO tenant_acme.tasks (id, list_id, title) VALUES ({id}, {list}, '{title}')");
        self.commit(&task).await;
    }

    /// Lets a commit be shown.
    async fn show(&self, held: JoinHandle<()>) {
        self.slow.hold(false).await;
        held.await.unwrap();
    }

    /// The device has nothing, and gets nothing of what is committed to list 1 from now on.
    async fn gets_nothing(&self, device: &mut Device) {
        device.sync().await;
        self.task(11, 1, "later").await;
        device.sync().await;
        assert!(device.titles().is_empty(), "{:?}", device.titles());
    }

    async fn close(self) {
        self.slow.stage.stop().await;
    }
}

#[tokio::test]
async fn new_device_syncs_while_another_commit_is_not_shown() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    let task = "INSERT INTO tenant_acme.tasks (id, list_id, title) VALUES (11, 1, 'hidden')";
    let held = team.slow.invisible(task).await;
    let mut device = team.device().await;
    device.sync().await;
    assert!(!held.is_finished());
    assert_eq!(device.titles(), ["one", "first"]);
    team.task(12, 1, "later").await;
    device.sync().await;
    assert_eq!(device.titles(), ["one", "first", "later"]);
    team.show(held).await;
    device.sync().await;
    assert_eq!(device.titles(), ["one", "first", "hidden", "later"]);
    team.close().await;
}

#[tokio::test]
async fn removal_that_is_not_shown_ends_what_a_new_device_receives() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    // GIVEN the inbox, which has the end of the membership
    team.device().await.sync().await;
    let held = team.slow.invisible("DELETE FROM tenant_acme.list_members").await;
    let reset = team.slow.stage.world.keys().members("acme", &team.joe().to_string());
    let _: i64 = team.slow.stage.world.ask_redis(&["DEL", &reset]).await;
    let mut device = Device::new(&team.web, "tablet", team.joe()).await;
    device.sync().await;
    team.task(11, 1, "later").await;
    device.sync().await;
    assert!(!held.is_finished());
    assert!(device.titles().is_empty(), "{:?}", device.titles());
    team.show(held).await;
    device.sync().await;
    assert!(device.titles().is_empty(), "{:?}", device.titles());
    team.close().await;
}

#[tokio::test]
async fn membership_that_is_not_shown_begins_when_it_is() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    let mut known = team.device().await;
    known.sync().await;
    let held = team.slow.invisible(&team.joins(2)).await;
    let members = team.slow.stage.world.keys().members("acme", &team.joe().to_string());
    let _: i64 = team.slow.stage.world.ask_redis(&["DEL", &members]).await;
    // GIVEN a device whose memberships are read while one of them is not shown
    let mut device = Device::new(&team.web, "tablet", team.joe()).await;
    while device.try_page(100).await == Some(true) {}
    assert!(!held.is_finished());
    assert_eq!(device.titles(), ["one", "first"]);
    team.show(held).await;
    for device in [&mut device, &mut known] {
        device.sync().await;
        assert_eq!(device.titles(), ["one", "two", "first", "second"]);
    }
    team.task(21, 2, "later").await;
    for device in [&mut device, &mut known] {
        device.sync().await;
        assert_eq!(device.titles(), ["one", "two", "first", "second", "later"]);
    }
    team.close().await;
}

#[tokio::test]
async fn join_waits_for_no_earlier_commit() {
    let team = Team::with_held_commits().await;
    let mut device = team.device().await;
    device.sync().await;
    let mut events = device.api.events("/sse/mobile/phone").await;
    let task = "INSERT INTO tenant_acme.tasks (id, list_id, title) VALUES (21, 2, 'hidden')";
    let held = team.slow.invisible(task).await;
    team.commit(&team.joins(2)).await;
    events.expect("group_joined").await;
    device.sync().await;
    assert!(!held.is_finished());
    assert_eq!(device.titles(), ["two", "second"]);
    // WHEN the commit is shown THEN the device is notified, and gets what the snapshot of the group lacked
    team.show(held).await;
    events.expect("sync_required").await;
    device.sync().await;
    assert_eq!(device.titles(), ["two", "second", "hidden"]);
    team.close().await;
}

#[tokio::test]
async fn membership_that_ends_at_once_keeps_nothing_waiting() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    let mut device = team.device().await;
    device.sync().await;
    let task = "INSERT INTO tenant_acme.tasks (id, list_id, title) VALUES (11, 1, 'hidden')";
    let held = team.slow.invisible(task).await;
    team.commit(&team.joins(2)).await;
    team.commit("DELETE FROM tenant_acme.list_members WHERE list_id = 2")
        .await;
    device.sync().await;
    assert!(!held.is_finished());
    assert_eq!(device.titles(), ["one", "first", "hidden"]);
    team.show(held).await;
    team.close().await;
}

#[tokio::test]
async fn truncated_table_without_members_delays_no_memberships() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    let held = team
        .slow
        .invisible("INSERT INTO tenant_acme.lists (id, title) VALUES (3, 'three')")
        .await;
    team.commit("TRUNCATE tenant_acme.tasks").await;
    let mut device = team.device().await;
    device.sync().await;
    assert!(!held.is_finished());
    assert_eq!(device.titles(), ["one"]);
    team.show(held).await;
    team.close().await;
}

#[tokio::test]
async fn memberships_from_before_the_writer_are_waited_for() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    let held = team.slow.invisible("DELETE FROM tenant_acme.list_members").await;
    // GIVEN changes that a writer of an earlier version has not kept
    let world = &team.slow.stage.world;
    let (log, checkpoint) = (world.keys().memberships("acme"), world.keys().checkpoint());
    let _: i64 = world.ask_redis(&["DEL", &log]).await;
    let _: i64 = world.ask_redis(&["HSET", &checkpoint, "memberships", "0 0 0-0"]).await;
    eventually("another term begins", || async {
        let kept: String = world.ask_redis(&["HGET", &checkpoint, "memberships"]).await;
        (!kept.starts_with("0 ")).then_some(())
    })
    .await;
    let mut device = team.device().await;
    assert_eq!(device.try_page(100).await, None);
    assert!(!held.is_finished());
    team.show(held).await;
    team.gets_nothing(&mut device).await;
    team.close().await;
}

#[tokio::test]
async fn resync_forgets_no_removal_that_the_log_does_not_name() {
    let slow = Slow::configured(Role::All, |config| {
        groups::configure(config);
        config.replication.row_bytes_max = 1024 * 1024;
    })
    .await;
    let team = Team::of(slow).await;
    team.commit("ALTER TABLE tenant_acme.list_members ADD note text").await;
    let (joe, note) = (team.joe(), "repeat('x', 2 * 1024 * 1024)");
    let member = format!("INSERT INTO tenant_acme.list_members (list_id, user_id, note) VALUES (1, '{joe}', {note})");
    team.commit(&member).await;
    team.device().await.sync().await;
    // GIVEN the end of a membership whose row is too large for the log, and another generation of the tenant
    let held = team.slow.invisible("DELETE FROM tenant_acme.list_members").await;
    tenants::resync(&team.slow.database, "acme").await.unwrap();
    team.slow.stage.world.published().await;
    let mut device = Device::new(&team.web, "tablet", joe).await;
    assert_eq!(device.try_page(100).await, None);
    assert!(!held.is_finished());
    team.show(held).await;
    team.gets_nothing(&mut device).await;
    team.close().await;
}

#[tokio::test]
async fn too_many_memberships_are_refused_although_some_end_unseen() {
    let team = Team::with_held_commits().await;
    let joe = team.joe();
    let many = format!(
        "INSERT INTO tenant_acme.list_members (list_id, user_id) SELECT n, '{joe}' FROM generate_series(1, 1500) n"
    );
    team.commit(&many).await;
    let held = team
        .slow
        .invisible("DELETE FROM tenant_acme.list_members WHERE list_id <= 450")
        .await;
    let mut device = team.device().await;
    assert_eq!(device.try_page(100).await, None);
    assert!(!held.is_finished());
    team.show(held).await;
    assert_eq!(device.try_page(100).await, None);
    team.commit("DELETE FROM tenant_acme.list_members WHERE list_id <= 500")
        .await;
    device.sync().await;
    assert_eq!(device.groups(), 1000);
    team.close().await;
}

#[tokio::test]
async fn more_unseen_memberships_than_are_kept_delay_new_devices() {
    let team = Team::with_held_commits().await;
    team.commit(&team.joins(1)).await;
    let many = format!(
        "INSERT INTO tenant_acme.list_members (list_id, user_id)
         SELECT 2, gen_random_uuid() FROM generate_series(1, {CHANGES_MAX} + 1)"
    );
    let held = team.slow.invisible(&many).await;
    let mut device = team.device().await;
    assert_eq!(device.try_page(100).await, None);
    assert!(!held.is_finished());
    team.show(held).await;
    device.sync().await;
    assert_eq!(device.titles(), ["one", "first"]);
    // What is shown is forgotten.
    let log = team.slow.stage.world.keys().memberships("acme");
    eventually("the latest memberships are removed", || async {
        let length: i64 = team.slow.stage.world.ask_redis(&["ZCARD", &log]).await;
        (length == 0).then_some(())
    })
    .await;
    team.close().await;
}
