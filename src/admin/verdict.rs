//! Whether what clients see is fresh, and if not, why and what to do: one sentence and one command for each problem, the worst
//! first. Pure.

use std::cmp::Reverse;

use serde::Serialize;

use crate::admin::level::Level;
use crate::admin::slot_report::{SlotReport, Verdict as SlotVerdict};

/// A slot that is lost within this time is urgent.
const SLOT_URGENT_SECONDS: f64 = 3600.0;

/// Names that one sentence has at most.
const NAMES_MAX: usize = 3;

/// A problem, or that there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// A warning: clients see fresh data, and a part of the system needs an operator. A failure: they see stale data, or will
    /// soon.
    pub level: Level,
    /// For example `redis` or `slot`.
    pub name: &'static str,
    pub sentence: String,
    /// What an operator types.
    pub command: Option<String>,
    /// The screen of the console that has more.
    pub screen: Option<&'static str>,
}

/// What the replicator of this process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replicator {
    /// This process has none.
    Absent,
    Starting,
    /// Another engine reads from the slot.
    Waiting,
    Streaming {
        /// What is wrong with Redis, as the publisher sees it.
        problem: Option<String>,
    },
    Failed(String),
}

/// A connected device that is behind.
#[derive(Debug, Clone, PartialEq)]
pub struct SlowDevice {
    pub tenant: String,
    pub device: String,
    pub seconds: f64,
}

/// What a verdict depends on. What is unknown is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Age of what clients see; `None` before the first heartbeat.
    pub age_seconds: Option<f64>,
    pub bound_seconds: u64,
    /// Why Postgres cannot be used, if so.
    pub postgres: Option<String>,
    /// Why Redis cannot be used, if so.
    pub redis: Option<String>,
    pub replicator: Replicator,
    pub slots: Vec<SlotReport>,
    /// Tenants that have stopped streams.
    pub stopped: Vec<String>,
    /// Tenants with quarantined changes, and their number.
    pub quarantined: Vec<(String, u64)>,
    pub paused: Vec<String>,
    /// Tables that are not published as they must be.
    pub uncovered: Vec<String>,
    pub slow_devices: Vec<SlowDevice>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            age_seconds: Some(0.0),
            bound_seconds: 10,
            postgres: None,
            redis: None,
            replicator: Replicator::Absent,
            slots: Vec::new(),
            stopped: Vec::new(),
            quarantined: Vec::new(),
            paused: Vec::new(),
            uncovered: Vec::new(),
            slow_devices: Vec::new(),
        }
    }
}

impl Facts {
    /// All problems, the worst first; of one level those first that are the cause of others.
    pub fn problems(&self) -> Vec<Verdict> {
        let mut found: Vec<Verdict> = self
            .servers()
            .into_iter()
            .chain(self.freshness())
            .chain(self.slots())
            .chain(self.tenants())
            .collect();
        found.sort_by_key(|problem| Reverse(problem.level));
        found
    }

    /// The first problem, or that all is well.
    pub fn verdict(&self, problems: &[Verdict]) -> Verdict {
        problems.first().cloned().unwrap_or_else(|| Verdict {
            level: Level::Ok,
            name: "fresh",
            sentence: format!(
                "What clients see is {} old, within the bound of {} s.",
                seconds(self.age_seconds.unwrap_or_default()),
                self.bound_seconds
            ),
            command: None,
            screen: None,
        })
    }

    fn servers(&self) -> Vec<Verdict> {
        let mut found = Vec::new();
        if let Some(cause) = &self.postgres {
            found.push(fail(
                "postgres",
                format!("Postgres cannot be used: {cause}. Changes are neither written nor read."),
                "systemctl start postgresql",
                "doctor",
            ));
        }
        if let Some(cause) = &self.redis {
            found.push(fail(
                "redis",
                format!("Redis cannot be used: {cause}. Nothing reaches devices; Postgres retains what is written."),
                "systemctl start redis-server",
                "doctor",
            ));
        }
        match &self.replicator {
            Replicator::Failed(cause) => found.push(fail(
                "replication",
                format!("Replication fails and is tried again: {cause}."),
                "posduif doctor --failing",
                "doctor",
            )),
            Replicator::Streaming {
                problem: Some(problem), ..
            } if self.redis.is_none() => found.push(fail(
                "replication",
                format!("Changes cannot be published: {problem}."),
                "posduif doctor --failing",
                "doctor",
            )),
            _ => {}
        }
        found
    }

    fn freshness(&self) -> Option<Verdict> {
        #[expect(clippy::cast_precision_loss, reason = "at most 3,600")]
        let bound = self.bound_seconds as f64;
        let sentence = match self.age_seconds {
            Some(age) if age <= bound => return None,
            Some(age) => format!(
                "What clients see is {} old; the bound is {} s.",
                seconds(age),
                self.bound_seconds
            ),
            None => "No heartbeat has arrived: how old the data is that clients see is unknown.".to_owned(),
        };
        let (why, command) = match &self.replicator {
            Replicator::Waiting => (
                " Another engine reads from the slot, but what it publishes does not arrive here.",
                "posduif status",
            ),
            Replicator::Absent => (
                " This process does not replicate, and no other one seems to.",
                "posduif serve",
            ),
            Replicator::Starting => (" Replication is starting.", "posduif status"),
            Replicator::Streaming { .. } | Replicator::Failed(_) => ("", "posduif status"),
        };
        Some(fail("freshness", sentence + why, command, "now"))
    }

    fn slots(&self) -> Vec<Verdict> {
        let mut found = Vec::new();
        for report in &self.slots {
            let (name, command) = (&report.slot.name, report.command.clone());
            let retained = bytes(report.retained_bytes.unwrap_or_default());
            let left = report.left.seconds();
            let problem = match report.verdict {
                SlotVerdict::Lost => Some((
                    if report.is_ours { Level::Fail } else { Level::Warn },
                    format!("The slot {name} is lost: Postgres has removed WAL that it needs."),
                )),
                SlotVerdict::SafeToDrop => Some((
                    Level::Warn,
                    format!("The slot {name} is abandoned: it has no reader and retains {retained} of WAL."),
                )),
                SlotVerdict::NoEngine => Some((
                    Level::Fail,
                    format!("No engine reads the slot {name}, which retains {retained} of WAL."),
                )),
                SlotVerdict::InUse if left.is_some_and(|left| left < SLOT_URGENT_SECONDS) => Some((
                    Level::Fail,
                    format!(
                        "The reader of the slot {name} is too slow: the slot will be lost in {}.",
                        seconds(left.unwrap_or_default())
                    ),
                )),
                _ => None,
            };
            found.extend(problem.map(|(level, sentence)| Verdict {
                level,
                name: "slot",
                sentence,
                command,
                screen: Some("slots"),
            }));
        }
        found
    }

    fn tenants(&self) -> Vec<Verdict> {
        let mut found = Vec::new();
        if let Some(first) = self.stopped.first() {
            found.push(warn(
                "stopped",
                format!("Streams are stopped, of {}: they lack entries.", names(&self.stopped)),
                format!("posduif stream rebuild --tenant {first} --yes"),
                "streams",
            ));
        }
        if let Some((first, _)) = self.quarantined.first() {
            let count: u64 = self.quarantined.iter().map(|(_, count)| count).sum();
            let tenants: Vec<String> = self.quarantined.iter().map(|(tenant, _)| tenant.clone()).collect();
            let changes = if count == 1 { "change is" } else { "changes are" };
            found.push(warn(
                "quarantine",
                format!(
                    "{count} {changes} in quarantine, of {}: no device has them.",
                    names(&tenants)
                ),
                format!("posduif stream quarantine retry --tenant {first} --all"),
                "quarantine",
            ));
        }
        if !self.uncovered.is_empty() {
            found.push(warn(
                "publication",
                format!(
                    "Tables are not published as they must be: {}. Changes of them may be missing.",
                    names(&self.uncovered)
                ),
                "posduif publication show".to_owned(),
                "doctor",
            ));
        }
        if let Some(first) = self.slow_devices.first() {
            found.push(warn(
                "device",
                format!(
                    "The connected device {} is {} behind{}.",
                    first.device,
                    seconds(first.seconds),
                    match self.slow_devices.len() {
                        1 => String::new(),
                        count => format!(", and {} more are", count - 1),
                    }
                ),
                format!("posduif device resync {} --tenant {} --yes", first.device, first.tenant),
                "devices",
            ));
        }
        if let Some(first) = self.paused.first() {
            found.push(warn(
                "paused",
                format!("Delivery is paused, of {}.", names(&self.paused)),
                format!("posduif tenant resume {first}"),
                "tenants",
            ));
        }
        found
    }
}

fn fail(name: &'static str, sentence: String, command: &str, screen: &'static str) -> Verdict {
    Verdict {
        level: Level::Fail,
        name,
        sentence,
        command: Some(command.to_owned()),
        screen: Some(screen),
    }
}

fn warn(name: &'static str, sentence: String, command: String, screen: &'static str) -> Verdict {
    Verdict {
        level: Level::Warn,
        name,
        sentence,
        command: Some(command),
        screen: Some(screen),
    }
}

fn names(all: &[String]) -> String {
    let more = all.len().saturating_sub(NAMES_MAX);
    let first = all.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
    match more {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A duration for a sentence.
fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// A size for a sentence.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(facts: &Facts) -> Verdict {
        facts.verdict(&facts.problems())
    }

    #[test]
    fn verdict_is_well_without_problems() {
        let well = verdict(&Facts::default());
        assert_eq!(well.level, Level::Ok);
        assert_eq!(
            well.sentence,
            "What clients see is 0.0 s old, within the bound of 10 s."
        );
    }

    #[test]
    fn cause_comes_before_its_effect_and_failure_before_warning() {
        let facts = Facts {
            age_seconds: Some(14.0),
            redis: Some("unavailable".to_owned()),
            quarantined: vec![("acme".to_owned(), 2)],
            ..Facts::default()
        };
        let names: Vec<&str> = facts.problems().iter().map(|problem| problem.name).collect();
        assert_eq!(names, ["redis", "freshness", "quarantine"]);
    }

    #[test]
    fn each_problem_has_a_command() {
        let facts = Facts {
            age_seconds: None,
            postgres: Some("unavailable".to_owned()),
            redis: Some("unavailable".to_owned()),
            replicator: Replicator::Failed("slot is gone".to_owned()),
            stopped: vec!["acme".to_owned()],
            quarantined: vec![("acme".to_owned(), 1), ("beta".to_owned(), 1)],
            paused: ["a", "b", "c", "d"].map(str::to_owned).into(),
            uncovered: vec!["tenant_acme.orders".to_owned()],
            slow_devices: vec![SlowDevice {
                tenant: "acme".to_owned(),
                device: "phone".to_owned(),
                seconds: 7300.0,
            }],
            ..Facts::default()
        };
        let problems = facts.problems();
        assert_eq!(problems.len(), 9);
        assert!(problems.iter().all(|problem| problem.command.is_some()));
        let sentence = |name: &str| {
            let found = problems.iter().find(|problem| problem.name == name);
            found.map(|problem| problem.sentence.clone()).unwrap_or_default()
        };
        assert_eq!(sentence("paused"), "Delivery is paused, of a, b, c and 1 more.");
        assert_eq!(sentence("device"), "The connected device phone is 2 h behind.");
        assert_eq!(
            sentence("quarantine"),
            "2 changes are in quarantine, of acme, beta: no device has them."
        );
    }
}
