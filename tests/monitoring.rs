//! Monitoring: `/metrics`, the dashboard, the alert rules and their runbooks use the same names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::office::Office;
use crate::support::scrape::Scrape;
use crate::support::{World, eventually, servers};
use posduif::config::lane::Lane;

const DASHBOARD: &str = include_str!("../config/grafana-dashboard.json");
const ALERTS: &str = include_str!("../config/prometheus-alerts.yml");
const OPERATIONS: &str = include_str!("../docs/operations.md");

/// Labels that Prometheus itself adds.
const ADDED: [&str; 2] = ["job", "instance"];

/// An answer of an engine that has been used, also without success, so that every metric has samples.
async fn scrape() -> Scrape {
    // Without a bound on WAL there is no share of it to report.
    let postgres = servers::postgres_with(|_, options| options.setting("max_slot_wal_keep_size", "1GB")).await;
    let world = World::on(&postgres.server.url(), &std::env::var("REDIS_URL").unwrap()).await;
    let eu = Lane {
        name: "eu".to_owned(),
        ..Lane::default()
    };
    let office = Office::within(world, |config| config.lanes = vec![eu]).await;
    office.world.in_lane("eu").published().await;
    let phone = office.phone("phone-1").await;
    office.ready().await;
    let mut events = phone.events("/sse/mobile/phone-1").await;
    office.insert(1).await;
    office.world.published().await;
    events.expect("message").await;
    let batch = phone.get("/api/sync/incoming").await.json();
    phone
        .get(&format!(
            "/api/sync/incoming?cursor={}",
            batch["cursor"].as_str().unwrap()
        ))
        .await;
    phone.post("/api/sync/ack", &json!({"cursor": batch["cursor"]})).await;
    phone.post("/api/sync/outgoing", &json!({"messages": []})).await;
    // What fails must be seen, too: a statement that a constraint refuses, and a key of another type.
    let mut broken = redis::cmd("SET");
    broken.arg(office.world.keys().presence("acme")).arg("no set");
    let _: String = broken.query_async(&mut office.world.redis().await).await.unwrap();
    phone.events("/sse/mobile/phone-1").await;
    // A user of this name is there already.
    let registering = json!({"username": "bob", "password": "correct horse battery", "tenant": "acme"});
    office.sql("UPDATE posduif.tenants SET registration_open = true").await;
    office.anybody.post("/api/auth/register", &registering).await;
    let scrape = eventually("what fails is counted", || async {
        let scrape = Scrape::of(&office.anybody).await;
        let fails = |family| !scrape.labels(family).is_empty();
        (fails("posduif_redis_command_errors_total") && fails("posduif_database_query_errors_total")).then_some(scrape)
    })
    .await;
    drop(events);
    office.close().await;
    scrape
}

/// Labels, and their values where they are known.
type Matched = Vec<(String, Option<String>)>;

/// What an expression asks for: metrics, each with the labels that are matched or grouped by, and their values where a
/// matcher names exactly one.
fn asked(expression: &str) -> Vec<(String, Matched)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut grouped = Vec::new();
    for (at, _) in expression.match_indices(" by (") {
        let list = expression[at + 5..].split(')').next().unwrap();
        grouped.extend(list.split(',').map(|label| label.trim().to_owned()));
    }
    let mut rest = expression;
    while let Some(start) = ["posduif_", "process_"]
        .iter()
        .filter_map(|prefix| rest.find(prefix))
        .min()
    {
        rest = &rest[start..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        let mut labels = Matched::new();
        if let Some(matchers) = behind.strip_prefix('{') {
            let matchers = matchers.split('}').next().unwrap();
            for matcher in matchers.split("\",").filter(|matcher| !matcher.trim().is_empty()) {
                let (label, rest) = matcher.split_at(matcher.find(['=', '!']).unwrap());
                let value = rest
                    .strip_prefix("=\"")
                    .map(|value| value.trim_end_matches('"').to_owned());
                let label = label.trim().to_owned();
                labels.push((label, value.filter(|value| !value.contains('$'))));
            }
        }
        labels.extend(grouped.iter().map(|label| (label.clone(), None)));
        found.push((name.to_owned(), labels));
        rest = behind;
    }
    found
}

/// All texts under a key, at any depth.
fn texts<'a>(tree: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match tree {
        Value::Object(map) => {
            for (name, value) in map {
                match value.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => texts(value, key, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

/// The rows of the table of metrics in the docs: name → type, labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut rows = BTreeMap::new();
    let section = OPERATIONS
        .split("\n## Metrics\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let names = cells[0].trim_start_matches("| ");
        for name in names
            .split('`')
            .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        {
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let name = match name.starts_with("process_") {
                true => name.to_owned(),
                false => format!("posduif_{name}"),
            };
            let labels = labels
                .trim_end_matches('}')
                .split(',')
                .filter(|label| !label.is_empty());
            let row = (cells[1].to_owned(), labels.map(str::to_owned).collect());
            assert!(rows.insert(name.clone(), row).is_none(), "{name} is there twice");
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_docs_dashboard_and_alerts_use_the_same_names() {
    let scrape = scrape().await;

    let mut known: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for (family, kind) in &scrape.types {
        let labels = scrape.labels(family);
        // Bounded: no client can make up values.
        for (label, values) in &labels {
            assert!(values.len() <= 130, "{family}{{{label}}} has {} values", values.len());
        }
        known.insert(family.clone(), (kind.clone(), labels.into_keys().collect()));
    }
    assert_eq!(documented(), known, "docs/operations.md differs from /metrics");

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let alerts: Value = serde_saphyr::from_str(ALERTS).unwrap();
    let mut expressions = Vec::new();
    texts(&dashboard["panels"], "expr", &mut expressions);
    let panels = expressions.len();
    texts(&alerts, "expr", &mut expressions);
    assert!(panels > 60 && expressions.len() > panels + 15);
    texts(&dashboard["templating"], "query", &mut expressions);
    let mut used = BTreeSet::new();
    for expression in expressions {
        for (name, labels) in asked(expression) {
            let family = scrape.family(&name);
            let (kind, has) = known
                .get(family)
                .unwrap_or_else(|| panic!("no metric {name}: {expression}"));
            assert_eq!(kind == "histogram", name != family, "{name} is a {kind}: {expression}");
            for (label, value) in labels {
                if ADDED.contains(&label.as_str()) || (label == "le" && kind == "histogram") {
                    continue;
                }
                assert!(has.contains(&label), "{name} has no label {label}: {expression}");
                // Classes of statuses, and what a client asked for, are there once they happened.
                if let Some(value) = value
                    && !["status", "route", "cause"].contains(&label.as_str())
                {
                    assert!(
                        scrape.labels(family)[&label].contains(&value),
                        "{expression}: no {label} is {value}"
                    );
                }
            }
            used.insert(family.to_owned());
        }
    }
    let unused: Vec<_> = known.keys().filter(|name| !used.contains(*name)).collect();
    assert_eq!(
        unused,
        ["process_virtual_memory_bytes"],
        "the dashboard shows everything else"
    );
    promtool(&["check", "metrics"], &scrape.plain());
}

#[test]
fn every_alert_has_a_runbook() {
    let alerts: Value = serde_saphyr::from_str(ALERTS).unwrap();
    let (mut names, mut pages) = (Vec::new(), Vec::new());
    texts(&alerts, "alert", &mut names);
    texts(&alerts, "runbook_url", &mut pages);
    let section = OPERATIONS
        .split("\n## Alerts\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let documented: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(names, documented);
    let expected: Vec<String> = names
        .iter()
        .map(|name| format!("docs/operations.md#{}", name.to_ascii_lowercase()))
        .collect();
    assert_eq!(pages, expected);
    promtool(
        &[
            "check",
            "rules",
            concat!(env!("CARGO_MANIFEST_DIR"), "/config/prometheus-alerts.yml"),
        ],
        "",
    );
}

/// Lets Prometheus' own tool judge.
fn promtool(arguments: &[&str], input: &str) {
    // Never left out silently: where it cannot be installed, a variable leaves it out.
    let program = match std::env::var("POSDUIF_PROMTOOL") {
        Ok(none) if none == "none" => return,
        Ok(program) if !program.is_empty() => program,
        _ => "promtool".to_owned(),
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(
            "promtool, of Debian's package prometheus: scripts/setup --tests installs it; or POSDUIF_PROMTOOL=none",
        );
    // Whether it reads its input is its own business.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "promtool {arguments:?}: {said:?}");
    if arguments[1] == "metrics" {
        assert_eq!(said.concat(), "", "promtool would have it otherwise");
    }
}
