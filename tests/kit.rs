//! `posduif kit`: the phones in Rust and Python pass all cases, and broken copies of the latter fail those of the heading
//! they break.
//!
//! Needs python3; POSDUIF_PYTHON names another one, `none` leaves these tests out. The driver of the phone in Rust is an
//! example, which `cargo test` and `cargo nextest run` build with the tests.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::support::command::{Ended, posduif, run};
use crate::support::folder::Folder;

/// How long all cases may take on a slow machine.
const ALL_CASES_TIMEOUT: Duration = Duration::from_secs(180);

const PHONE: &str = include_str!("../examples/phone.py");
const DRIVER: &str = include_str!("../examples/phone_driver.py");

/// The Python to run the phone with; `None` leaves a test out.
fn python() -> Option<String> {
    let python = std::env::var("POSDUIF_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if python == "none" {
        eprintln!("left out, since POSDUIF_PYTHON is none");
        return None;
    }
    let found = std::process::Command::new(&python).arg("--version").output();
    let is_there = found.is_ok_and(|output| output.status.success());
    assert!(
        is_there,
        "there is no {python}: install Python 3, name one by POSDUIF_PYTHON, or leave this out by POSDUIF_PYTHON=none"
    );
    Some(python)
}

/// The driver of the phone in Rust.
fn rust_phone() -> String {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(Path::parent).unwrap();
    let driver = target.join("examples/phone_driver");
    assert!(
        driver.exists(),
        "there is no {}: run `cargo build --examples`",
        driver.display()
    );
    format!("'{}'", driver.display())
}

/// Runs cases with a driver.
async fn run_cases(kit: &mut Command, driver: &str, arguments: &[&str]) -> Ended {
    kit.args(["kit", "run", "--driver", driver]).args(arguments);
    let output = tokio::time::timeout(ALL_CASES_TIMEOUT, kit.output()).await;
    let output = output.expect("the cases end in time").unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs cases with the phone and the driver in Python of a folder.
async fn kit(python: &str, folder: &Folder, phone: &str, driver: &str, arguments: &[&str]) -> Ended {
    let phone = folder.write("phone.py", phone);
    let driver = folder.write("phone_driver.py", driver);
    let command = format!("{python} '{}'", driver.display());
    run_cases(posduif().env("POSDUIF_PHONE", phone), &command, arguments).await
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// All cases of a level pass, but for so many that the driver cannot run.
async fn phone_passes(driver: &str, level: &str, cases_min: usize, not_run: usize) {
    let folder = Folder::new();
    let (junit, html) = (folder.path().join("kit.xml"), folder.path().join("kit.html"));
    let files = ["--junit", junit.to_str().unwrap(), "--html", html.to_str().unwrap()];
    let arguments = [&["--json", "--level", level][..], &files].concat();
    let ended = run_cases(&mut posduif(), driver, &arguments).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report = report(&ended);
    let cases = report["cases"].as_array().unwrap();
    let count = |verdict: &str| cases.iter().filter(|case| case["verdict"] == verdict).count();
    assert_eq!(
        (count("not-run"), count("passed") + not_run),
        (not_run, cases.len()),
        "{report:#}"
    );
    assert!(cases.len() >= cases_min, "{} cases", cases.len());
    let skipped = format!("tests=\"{}\" failures=\"0\" skipped=\"{not_run}\"", cases.len());
    assert!(read(&junit).contains(&skipped), "{}", read(&junit));
    assert!(read(&html).contains(cases[0]["id"].as_str().unwrap()));
}

async fn python_phone_passes(level: &str, cases_min: usize, not_run: usize) {
    let Some(python) = python() else { return };
    let folder = Folder::new();
    folder.write("phone.py", PHONE);
    let driver = folder.write("phone_driver.py", DRIVER);
    phone_passes(&format!("{python} '{}'", driver.display()), level, cases_min, not_run).await;
}

#[tokio::test]
async fn python_phone_passes_the_cases_of_a_reader() {
    python_phone_passes("reader", 29, 0).await;
}

#[tokio::test]
async fn python_phone_passes_the_cases_of_a_writer() {
    python_phone_passes("writer", 32, 0).await;
}

#[tokio::test]
async fn python_phone_passes_the_live_cases() {
    python_phone_passes("live", 29, 16).await;
}

#[tokio::test]
async fn python_phone_passes_the_cases_of_credentials() {
    python_phone_passes("secure", 14, 3).await;
}

#[tokio::test]
async fn rust_phone_passes_the_cases_of_a_reader() {
    phone_passes(&rust_phone(), "reader", 29, 0).await;
}

#[tokio::test]
async fn rust_phone_passes_the_cases_of_a_writer() {
    phone_passes(&rust_phone(), "writer", 32, 0).await;
}

#[tokio::test]
async fn rust_phone_passes_the_live_cases() {
    phone_passes(&rust_phone(), "live", 29, 0).await;
}

#[tokio::test]
async fn rust_phone_passes_the_cases_of_credentials() {
    phone_passes(&rust_phone(), "secure", 14, 0).await;
}

/// A mistake in a phone: what is replaced by what, the case that notices it, and the heading that its report names.
struct Mistake {
    what: &'static str,
    changes: &'static [(&'static str, &'static str)],
    case: &'static str,
    heading: &'static str,
}

const MISTAKES: [Mistake; 12] = [
    Mistake {
        what: "cursors are stored before the rows",
        changes: &[
            (
                "            if self.store_batch(cursor, batch):\n",
                "            self.store.set(cursor=batch[\"cursor\"])\n            late.append(batch)\n            if True:\n",
            ),
            (
                "        rows, resets, batch = 0, 0, {\"has_more\": True}\n",
                "        rows, resets, batch, late = 0, 0, {\"has_more\": True}, []\n",
            ),
            (
                "        if rows:\n            with suppress",
                "        for batch in late:\n            self.store_batch(self.store.get(\"cursor\"), batch)\n        if rows:\n            with suppress",
            ),
        ],
        case: "stream/killed",
        heading: "Stream",
    },
    Mistake {
        what: "a reset empties the outbox",
        changes: &[(
            "        self.store.set(snapshot=1)\n",
            "        self.store.set(snapshot=1)\n        self.store.db.execute(\"DELETE FROM outbox\")\n",
        )],
        case: "the-outbox/kept-over-a-reset",
        heading: "The outbox, in every state with a token",
    },
    Mistake {
        what: "a refused token is sent again and again",
        changes: &[(
            "            rows = self.download()\n        if failed",
            "            while True:\n                with suppress(NotEnrolled):\n                    rows = self.download()\n                    break\n        if failed",
        )],
        case: "stream/ended-token",
        heading: "States and events",
    },
    Mistake {
        what: "a number is used again after a lost answer",
        changes: &[(
            "            last = store.items()[-1:]\n",
            "            last = store.items(\"NOT sent\")[-1:]\n",
        )],
        case: "sequence-numbers/lost-answer",
        heading: "Sequence numbers",
    },
    Mistake {
        what: "settled rows are ignored",
        changes: &[(
            "        if not always and number is not None and least is not None and number < least:\n",
            "        if False:\n",
        )],
        case: "the-outbox/batches-behind-a-result",
        heading: "The outbox, in every state with a token",
    },
    Mistake {
        what: "a leave is ignored",
        changes: &[(
            "            self.leave(f\"{change['group']}:{change['id']}\")\n",
            "            pass\n",
        )],
        case: "groups/leave",
        heading: "Groups, in every state with a cursor",
    },
    Mistake {
        what: "the id of an event is the cursor of the next sync",
        changes: &[(
            "            self.phone.store.set(last_event=self.last_id)\n",
            "            self.phone.store.set(last_event=self.last_id, cursor=self.last_id)\n",
        )],
        case: "live-events/event",
        heading: "Cursors",
    },
    Mistake {
        what: "requests are repeated without a delay",
        changes: &[(
            "            rows = self.download()\n        if failed",
            "            for _ in range(3):\n                with suppress(Unanswered):\n                    rows = self.download()\n                    break\n        if failed",
        )],
        case: "stream/lost-answer",
        heading: "Delays",
    },
    Mistake {
        what: "another user finds the rows of the former one",
        changes: &[(
            "            if self.store.get(\"user_id\") not in (None, answer[\"user_id\"]):\n",
            "            if False:\n",
        )],
        case: "unenrolled/other-users-outbox",
        heading: "Unenrolled",
    },
    Mistake {
        what: "a snapshot deletes the rows at its beginning",
        changes: &[(
            "        self.store.db.execute(\"UPDATE rows SET old = 1\")\n",
            "        self.store.db.execute(\"DELETE FROM rows\")\n",
        )],
        case: "snapshot/old-rows",
        heading: "Snapshot",
    },
    Mistake {
        what: "the device does not wait after `bye`",
        changes: &[(
            "                    return min(float(event.data.get(\"reconnect_ms\", 1000)) / 1000, LONGEST_WAIT_SECONDS)\n",
            "                    return 0.0\n",
        )],
        case: "live-events/bye",
        heading: "Live events, in every state with a token",
    },
    Mistake {
        what: "any last batch counts as the end of a snapshot",
        changes: &[(
            "            if not batch[\"has_more\"] and self.store.number(\"snapshot\"):\n",
            "            if not batch[\"has_more\"]:\n",
        )],
        case: "the-outbox/first-result-of-a-repeat",
        heading: "The outbox, in every state with a token",
    },
];

#[tokio::test]
async fn broken_phones_fail_and_the_report_names_the_heading() {
    let Some(python) = python() else { return };
    for mistake in MISTAKES {
        let mut phone = PHONE.to_owned();
        for (from, to) in mistake.changes {
            assert_eq!(
                phone.matches(from).count(),
                1,
                "{}: the phone has not {from:?} once",
                mistake.what
            );
            phone = phone.replace(from, to);
        }
        let folder = Folder::new();
        let ended = kit(&python, &folder, &phone, DRIVER, &["--json", "--case", mistake.case]).await;
        assert_eq!(ended.code, Some(1), "{}: {} passes", mistake.what, mistake.case);
        let report = report(&ended);
        let case = &report["cases"][0];
        assert_eq!(case["verdict"], "failed", "{}: {case}", mistake.what);
        assert_eq!(case["heading"], mistake.heading, "{}: {case}", mistake.what);
    }
}

#[tokio::test]
async fn case_without_its_feature_is_not_run() {
    let Some(python) = python() else { return };
    let folder = Folder::new();
    let driver = DRIVER.replace("\"restart\", \"write\", ", "");
    let cases = ["--json", "--case", "stream/killed", "--case", "stream/lost-answer"];
    let ended = kit(&python, &folder, PHONE, &driver, &cases).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report = report(&ended);
    let verdicts: Vec<&Value> = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| &case["verdict"])
        .collect();
    assert_eq!(verdicts, ["passed", "not-run"]);
    assert_eq!(report["cases"][1]["reason"], "the driver lacks restart");
}

#[tokio::test]
async fn known_failure_must_still_fail() {
    let Some(python) = python() else { return };
    let known = "\"known\": [{\"case\": \"groups/leave\", \"reason\": \"no groups yet\"}]";
    let driver = DRIVER.replace("\"known\": []", known);
    assert_ne!(driver, DRIVER);
    let phone = PHONE.replace(
        "            self.leave(f\"{change['group']}:{change['id']}\")\n",
        "            pass\n",
    );
    for (phone, code, verdict) in [(phone.as_str(), 0, "known-failure"), (PHONE, 1, "known-failure-passed")] {
        let folder = Folder::new();
        let ended = kit(&python, &folder, phone, &driver, &["--json", "--case", "groups/leave"]).await;
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert_eq!(report(&ended)["cases"][0]["verdict"], verdict);
    }
}

#[tokio::test]
async fn driver_that_ends_or_says_nonsense_fails_the_case() {
    for (driver, reason) in [
        (
            "sh -c 'echo broken >&2'",
            "the driver ended during `init`; its standard error ends with:\nbroken",
        ),
        (
            "sh -c 'read line; echo hello; read line'",
            "the driver answered `init` with \"hello\"",
        ),
    ] {
        let arguments = ["kit", "run", "--json", "--case", "stream/deletions", "--driver", driver];
        let ended = run(&mut posduif(), &arguments).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let case = report(&ended)["cases"][0].clone();
        assert!(case["reason"].as_str().unwrap().starts_with(reason), "{case}");
    }
}

#[tokio::test]
async fn cases_are_listed_and_explained() {
    let text = |arguments: &'static [&'static str]| async move { run(posduif().arg("kit"), arguments).await };
    let list = text(&["list", "--level", "secure"]).await.text();
    assert!(
        list.contains("unenrolled/other-user") && !list.contains("stream/deletions"),
        "{list}"
    );
    let explained = text(&["explain", "stream/deletions"]).await.text();
    assert!(explained.contains("docs/sync-protocol.md#stream"), "{explained}");
    assert!(
        explained.contains("a batch with deletions (`op: delete`): deletes those rows"),
        "{explained}"
    );
    let unknown = text(&["explain", "stream/none"]).await;
    assert_eq!(unknown.code, Some(2));
    assert!(
        unknown.stderr.contains("there is no case \"stream/none\""),
        "{}",
        unknown.stderr
    );
}
