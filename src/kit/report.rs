//! Runs cases, and reports what happened: as values, as JUnit XML and as a page.

use anyhow::Result;
use serde::Serialize;

use super::case::{Case, Level};
use super::driver::Introduction;
use super::failure::Failure;
use super::protocol;
use super::script;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Passed,
    Failed,
    /// It failed, and the driver has it in its list.
    KnownFailure,
    /// It passed, although the driver has it in its list: the list is out of date.
    KnownFailurePassed,
    /// The driver lacks a feature.
    NotRun,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::KnownFailure => "known failure",
            Self::KnownFailurePassed => "known failure passed",
            Self::NotRun => "not run",
        }
    }

    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::KnownFailurePassed)
    }
}

#[derive(Debug, Serialize)]
pub struct CaseReport {
    pub id: String,
    pub level: Level,
    pub title: String,
    pub verdict: Verdict,
    /// Why, unless it passed.
    pub reason: Option<String>,
    /// The heading of the specification that was broken, else that of the case.
    pub heading: String,
    /// Its address within the documentation.
    pub link: String,
    /// The rows of the specification that the case tests: event and action.
    pub rules: Vec<String>,
    /// The steps and the wire of a failure.
    pub transcript: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    /// The name that the driver gives.
    pub client: String,
    pub driver: String,
    pub seed: u64,
    pub cases: Vec<CaseReport>,
}

impl Report {
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict == verdict).count()
    }

    pub fn has_failed(&self) -> bool {
        self.cases.iter().any(|case| case.verdict.is_failure())
    }

    /// One line: how many cases ended how.
    pub fn summary(&self) -> String {
        let verdicts = [
            Verdict::Passed,
            Verdict::Failed,
            Verdict::KnownFailure,
            Verdict::KnownFailurePassed,
            Verdict::NotRun,
        ];
        let counts = verdicts.map(|verdict| (verdict, self.count(verdict)));
        let counted = counts
            .iter()
            .filter(|(verdict, count)| *count > 0 || *verdict == Verdict::Passed);
        let counted: Vec<String> = counted
            .map(|(verdict, count)| format!("{count} {}", verdict.name()))
            .collect();
        counted.join(", ")
    }
}

/// Runs cases one after the other; each has its own driver, server and storage.
///
/// # Errors
/// When the kit cannot listen or write its files.
pub async fn run(cases: &[Case], command: &str, seed: u64, mut done: impl FnMut(&CaseReport)) -> Result<Report> {
    let mut report = Report {
        client: String::new(),
        driver: command.to_owned(),
        seed,
        cases: Vec::new(),
    };
    for case in cases {
        let ended = Box::pin(script::run(case, command, seed)).await?;
        if !ended.introduction.client.is_empty() {
            report.client.clone_from(&ended.introduction.client);
        }
        let reported = report_of(case, ended);
        done(&reported);
        report.cases.push(reported);
    }
    Ok(report)
}

fn report_of(case: &Case, ended: script::Ended) -> CaseReport {
    let own = case.id.split('/').next().unwrap_or_default();
    let mut broken = own;
    let known = ended.introduction.known.iter().find(|known| known.case == case.id);
    let (verdict, reason) = match (&ended.result, known) {
        (None, _) => (Verdict::NotRun, Some(missing(case, &ended.introduction))),
        (Some(Ok(())), None) => (Verdict::Passed, None),
        (Some(Ok(())), Some(_)) => {
            let text = "the driver lists it as a known failure, but it passes: remove it from the list";
            (Verdict::KnownFailurePassed, Some(text.to_owned()))
        }
        (Some(Err(failure)), known) => {
            if let Failure::Broken {
                heading: Some(heading), ..
            } = failure
            {
                broken = heading;
            }
            match known {
                None => (Verdict::Failed, Some(failure.to_string())),
                Some(known) => (Verdict::KnownFailure, Some(format!("{} ({failure})", known.reason))),
            }
        }
    };
    let heading = protocol::heading_of(broken);
    let rules = case.rows.iter().filter_map(|row| protocol::row_of(row));
    CaseReport {
        id: case.id.clone(),
        level: case.level(),
        title: case.title.clone(),
        heading: heading.map_or(broken.to_owned(), |heading| heading.title.clone()),
        link: heading.map_or(protocol::PATH.to_owned(), |heading| {
            format!("{}#{}", protocol::PATH, heading.anchor)
        }),
        rules: rules.map(|row| format!("{}: {}", row.event, row.action)).collect(),
        transcript: if verdict == Verdict::Failed {
            ended.transcript
        } else {
            Vec::new()
        },
        verdict,
        reason,
    }
}

fn missing(case: &Case, introduction: &Introduction) -> String {
    let needs = case.needs();
    let missing = needs.iter().filter(|feature| !introduction.has(**feature));
    let missing: Vec<&str> = missing.map(|feature| feature.name()).collect();
    format!("the driver lacks {}", missing.join(", "))
}

/// The report as JUnit XML, as most runners of continuous integration read it.
pub fn junit(report: &Report) -> String {
    let (cases, failures) = (
        report.cases.len(),
        report.cases.iter().filter(|case| case.verdict.is_failure()).count(),
    );
    let skipped = report.count(Verdict::NotRun) + report.count(Verdict::KnownFailure);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"posduif kit: {}\" tests=\"{cases}\" \
         failures=\"{failures}\" skipped=\"{skipped}\">\n",
        escaped(&report.client)
    );
    for case in &report.cases {
        let reason = escaped(case.reason.as_deref().unwrap_or_default());
        out += &format!(
            "  <testcase classname=\"{}\" name=\"{}\"",
            case.level.name(),
            escaped(&case.id)
        );
        match case.verdict {
            Verdict::Passed => out += "/>\n",
            Verdict::NotRun | Verdict::KnownFailure => {
                out += &format!(">\n    <skipped message=\"{reason}\"/>\n  </testcase>\n");
            }
            Verdict::Failed | Verdict::KnownFailurePassed => {
                let rest = escaped(
                    &[vec![case.link.clone()], case.rules.clone(), case.transcript.clone()]
                        .concat()
                        .join("\n"),
                );
                out += &format!(">\n    <failure message=\"{reason}\">{rest}</failure>\n  </testcase>\n");
            }
        }
    }
    out + "</testsuite>\n"
}

/// The report as a page without scripts.
pub fn html(report: &Report) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>posduif kit: {client}</title>\n<style>\n\
         body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; \
         color-scheme: light dark }}\ntable {{ border-collapse: collapse; width: 100% }}\n\
         td, th {{ border-top: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top }}\n\
         .passed {{ color: #187a3c }} .failed, .known-failure-passed {{ color: #b3261e; font-weight: 600 }}\n\
         pre {{ overflow-x: auto; font-size: 12px }}\n@media (prefers-color-scheme: dark) {{ .passed {{ color: #6fd08c }} \
         .failed, .known-failure-passed {{ color: #ff8a80 }} }}\n</style></head><body>\n\
         <h1>Conformance of {client}</h1>\n<p>{summary}. Driver <code>{driver}</code>, seed {seed}.</p>\n",
        client = escaped(&report.client),
        summary = escaped(&report.summary()),
        driver = escaped(&report.driver),
        seed = report.seed,
    );
    for level in Level::ALL {
        let cases: Vec<&CaseReport> = report.cases.iter().filter(|case| case.level == level).collect();
        if cases.is_empty() {
            continue;
        }
        out += &format!(
            "<h2>{}</h2>\n<table><tr><th>case</th><th>result</th><th>heading</th></tr>\n",
            level.name()
        );
        for case in cases {
            out += &format!("<tr><td><code>{}</code><br>{}", escaped(&case.id), escaped(&case.title));
            if let Some(reason) = &case.reason {
                out += &format!("<p>{}</p>", escaped(reason));
            }
            if !case.transcript.is_empty() {
                let rules = case.rules.iter().map(|rule| format!("<li>{}</li>", escaped(rule)));
                out += &format!(
                    "<details><summary>rules and transcript</summary><ul>{}</ul><pre>{}</pre></details>",
                    rules.collect::<String>(),
                    escaped(&case.transcript.join("\n"))
                );
            }
            let class = case.verdict.name().replace(' ', "-");
            out += &format!(
                "</td><td class=\"{class}\">{}</td><td>{}</td></tr>\n",
                case.verdict.name(),
                escaped(&case.heading)
            );
        }
        out += "</table>\n";
    }
    out + "</body></html>\n"
}

/// Text as XML and HTML have it. Control characters are no part of XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(verdict: Verdict) -> CaseReport {
        CaseReport {
            id: "stream/<deletions>".to_owned(),
            level: Level::Reader,
            title: "A \"title\"".to_owned(),
            verdict,
            reason: Some("a < b & c\u{1b}".to_owned()),
            heading: "Stream".to_owned(),
            link: "docs/sync-protocol.md#stream".to_owned(),
            rules: Vec::new(),
            transcript: vec!["<step>".to_owned()],
        }
    }

    #[test]
    fn reports_escape_what_a_driver_says() {
        let report = Report {
            client: "<client>".to_owned(),
            driver: "a && b".to_owned(),
            seed: 1,
            cases: vec![case(Verdict::Failed), case(Verdict::NotRun), case(Verdict::Passed)],
        };
        assert_eq!(report.summary(), "1 passed, 1 failed, 1 not run");
        for text in [junit(&report), html(&report)] {
            assert!(
                text.contains("&lt;deletions&gt;") && text.contains("a &lt; b &amp; c\u{fffd}"),
                "{text}"
            );
            assert!(!text.contains("<step>") && !text.contains("<client>"), "{text}");
        }
        assert!(junit(&report).contains("tests=\"3\" failures=\"1\" skipped=\"1\""));
    }
}
