//! What `/metrics` answers, read and checked.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::http::Api;

/// A scrape: values by sample, labels included, and types by family.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) samples: BTreeMap<String, f64>,
    pub(crate) types: BTreeMap<String, String>,
    /// As it came.
    pub(crate) text: String,
}

impl Scrape {
    pub(crate) async fn of(api: &Api) -> Self {
        let answer = api.admin().get("/metrics").await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.headers["content-type"],
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        );
        Self::parse(std::str::from_utf8(&answer.body).unwrap())
    }

    /// The metric that a sample belongs to: its family's name, without what a histogram appends.
    pub(crate) fn family<'a>(&self, name: &'a str) -> &'a str {
        ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| self.types.get(*family).is_some_and(|kind| kind == "histogram"))
            .unwrap_or(name)
    }

    /// The labels of a metric and their values, as far as there are samples.
    pub(crate) fn labels(&self, family: &str) -> BTreeMap<String, BTreeSet<String>> {
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for sample in self.samples.keys() {
            let (name, rest) = sample.split_once('{').unwrap_or((sample, ""));
            if self.family(name) != family {
                continue;
            }
            let rest = rest.trim_end_matches('}');
            for pair in rest.split("\",").filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once("=\"").unwrap();
                let value = value.trim_end_matches('"').to_owned();
                labels.entry(label.to_owned()).or_default().insert(value);
            }
        }
        labels.remove("le");
        labels
    }

    /// Parses OpenMetrics text and checks its form. The family of a counter has the name of its samples here, with `_total`.
    pub(crate) fn parse(text: &str) -> Self {
        let (mut samples, mut types, mut helps) = (BTreeMap::new(), BTreeMap::new(), HashSet::new());
        let body = text.strip_suffix("# EOF\n").expect("an end");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(help.len() > 10, "{line}");
                assert!(helps.insert(name), "{name} is there twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(helps.contains(name), "{name} has no HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                types.insert(sample_name(name, kind), kind.to_owned());
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let name = sample.split('{').next().unwrap();
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                assert!(
                    (name.starts_with("posduif_") || name.starts_with("process_")) && name.chars().all(is_name),
                    "{line}"
                );
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|suffix| name.strip_suffix(suffix))
                    .find(|family| types.get(*family).is_some_and(|kind| kind == "histogram"))
                    .unwrap_or(name);
                let kind = types.get(family).unwrap_or_else(|| panic!("{line} has no TYPE"));
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                let value: f64 = value.parse().unwrap();
                assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        Self {
            samples,
            types,
            text: text.to_owned(),
        }
    }

    /// The scrape in the older text format, which promtool checks: the family of a counter has the name of its samples.
    pub(crate) fn plain(&self) -> String {
        let mut plain = self.text.clone();
        for (sample, _) in self.types.iter().filter(|(_, kind)| *kind == "counter") {
            let family = sample.strip_suffix("_total").unwrap();
            for keyword in ["HELP", "TYPE"] {
                plain = plain.replace(&format!("# {keyword} {family} "), &format!("# {keyword} {sample} "));
            }
        }
        plain
    }

    /// A sample's value.
    #[track_caller]
    pub(crate) fn get(&self, sample: &str) -> f64 {
        let found = self.samples.get(&format!("posduif_{sample}"));
        *found.unwrap_or_else(|| panic!("no {sample} in {self:#?}"))
    }
}

/// The name of the samples of a family, histograms excepted.
fn sample_name(family: &str, kind: &str) -> String {
    match kind {
        "counter" => format!("{family}_total"),
        _ => family.to_owned(),
    }
}
