//! Checks of the replication slots: free slots and walsenders, limits, the configured slot, abandoned slots.

use crate::admin::doctor::Check;
use crate::admin::doctor::postgres::{Facts, RESTART};
use crate::admin::slot_report::{SlotReport, SlotSnapshot, TimeLeft, Verdict};

/// Walsenders of an engine: one streams, another reads a timeline history after a failover.
const SENDERS: i32 = 2;

/// With a shorter idle timeout the slot does not survive a quiet weekend without an engine.
const IDLE_SECONDS_MIN: f64 = 86_400.0;

/// Checks the slots; `ours` are those of the lanes.
pub(super) fn checks(snapshot: &SlotSnapshot, facts: &Facts, ours: &[String]) -> Vec<Check> {
    let reports = snapshot.reports(snapshot, ours);
    let own: Vec<&SlotReport> = reports.iter().filter(|report| report.is_ours).collect();
    let missing = ours.len() - own.len();
    let readers = own.iter().filter(|report| report.slot.is_active).count();
    let mut checks = vec![
        free_slots(facts, missing),
        senders(facts, ours.len() - readers),
        keep_size(snapshot, facts),
        idle_timeout(snapshot, facts),
    ];
    checks.extend(ours.iter().map(|name| {
        let report = own.iter().find(|report| report.slot.name == *name);
        own_slot(report.copied(), name)
    }));
    checks.extend(reports.iter().filter(|report| !report.is_ours).filter_map(other_slot));
    checks
}

/// Whether there are slots for lanes that have none yet.
fn free_slots(facts: &Facts, missing: usize) -> Check {
    const NAME: &str = "postgres.max_replication_slots";
    let found = format!("{} of {} in use", facts.slots_used, facts.slots_max);
    let free = usize::try_from(facts.slots_max - facts.slots_used).unwrap_or(0);
    if missing <= free {
        return Check::ok(NAME, found);
    }
    let meaning = format!(
        "No slot is free for this engine, or not one for each lane; `posduif slot list` lists them{}",
        facts.elsewhere("max_replication_slots")
    );
    let statement = format!("ALTER SYSTEM SET max_replication_slots = {}", facts.slots_max + 5);
    Check::fail(NAME, found, meaning)
        .fix(facts.as_superuser(&statement))
        .then(RESTART)
}

/// Whether there are walsenders for lanes whose slots have no reader.
fn senders(facts: &Facts, idle: usize) -> Check {
    const NAME: &str = "postgres.max_wal_senders";
    let required = i32::try_from(idle).unwrap_or(i32::MAX).saturating_add(SENDERS - 1);
    let found = format!("{} of {} in use", facts.senders_used, facts.senders_max);
    if facts.senders_max - facts.senders_used >= required {
        return Check::ok(NAME, found);
    }
    let meaning = format!(
        "An engine uses one walsender for each lane, and another for a moment after a failover{}",
        facts.elsewhere("max_wal_senders")
    );
    let statement = format!("ALTER SYSTEM SET max_wal_senders = {}", facts.senders_max + 5);
    Check::fail(NAME, found, meaning)
        .fix(facts.as_superuser(&statement))
        .then(RESTART)
}

fn keep_size(snapshot: &SlotSnapshot, facts: &Facts) -> Check {
    const NAME: &str = "postgres.max_slot_wal_keep_size";
    if let Some(bytes) = snapshot.keep_bytes {
        return Check::ok(NAME, format!("{} MB", bytes >> 20));
    }
    let meaning = format!(
        "A slot without a reader retains WAL until the disk is full and Postgres stops. With a limit the slot is lost \
         instead, which costs a new epoch. Choose what the disk can spare{}",
        facts.elsewhere("max_slot_wal_keep_size")
    );
    Check::warn(NAME, "-1, unlimited", meaning)
        .fix(facts.as_superuser("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'"))
        .fix(facts.as_superuser("SELECT pg_reload_conf()"))
}

fn idle_timeout(snapshot: &SlotSnapshot, facts: &Facts) -> Check {
    const NAME: &str = "postgres.idle_replication_slot_timeout";
    let Some(seconds) = snapshot.idle_timeout_seconds else {
        return Check::ok(NAME, "none");
    };
    let found = format!("{seconds} s");
    if seconds >= IDLE_SECONDS_MIN {
        return Check::ok(NAME, found);
    }
    let meaning = format!(
        "The slot is invalidated after this time without an engine, which costs a new epoch{}",
        facts.elsewhere("idle_replication_slot_timeout")
    );
    Check::warn(NAME, found, meaning)
        .fix(facts.as_superuser("ALTER SYSTEM SET idle_replication_slot_timeout = '7d'"))
        .fix(facts.as_superuser("SELECT pg_reload_conf()"))
}

fn own_slot(own: Option<&SlotReport>, ours: &str) -> Check {
    const NAME: &str = "postgres.slot";
    let Some(report) = own else {
        return Check::ok(NAME, format!("the first engine creates {ours}"));
    };
    if report.slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = report.slot.plugin.as_deref().unwrap_or("nothing");
        return Check::fail(
            NAME,
            format!("{ours} decodes with {plugin}"),
            "It belongs to another system: set `replication.slot` to another name",
        )
        .fix(format!("export POSDUIF__REPLICATION__SLOT={ours}_engine"));
    }
    match (report.verdict, report.left) {
        (Verdict::Lost, _) => Check::fail(
            NAME,
            format!("{ours} is lost"),
            "Postgres has removed WAL that it needs, and nothing more is published from it. The next engine recreates it and \
             starts a new epoch: every device takes a snapshot",
        )
        .fix("posduif serve"),
        (Verdict::InUse, TimeLeft::Seconds(_)) => Check::warn(
            NAME,
            format!("{ours} has a reader, but is about to be lost"),
            "Its reader does not confirm what it reads; this shows why",
        )
        .fix("posduif status"),
        (Verdict::InUse, _) => Check::ok(NAME, format!("{ours} has a reader")),
        _ => Check::warn(
            NAME,
            format!("{ours} exists, but no engine reads it"),
            "It retains WAL for an engine; start one, or drop the slot",
        )
        .fix("posduif serve"),
    }
}

fn other_slot(report: &SlotReport) -> Option<Check> {
    let (state, meaning) = match report.verdict {
        Verdict::SafeToDrop => ("abandoned", "Inactive slot retaining WAL indefinitely"),
        Verdict::Lost => ("lost", "It is of no use to any reader"),
        Verdict::AskOwner | Verdict::InUse | Verdict::NoEngine | Verdict::Synced => return None,
    };
    let retained = report.retained_bytes.unwrap_or_default() >> 20;
    let found = format!("{} is {state}, {retained} MB of WAL", report.slot.name);
    Some(Check::warn("postgres.other_slot", found, meaning).fix(report.command.clone()?))
}
